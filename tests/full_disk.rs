//! Disks that fill up to the last byte while a cluster writes, on one node, two, and all three: puts are
//! refused by name where there is no majority with room, reads and deletes go on, no node ends, and when
//! there is room again everything goes on and nothing is missing.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "faults/disks.rs"]
mod disks;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disks::Disks;
use quorate::error::Error;
use quorate::testkit::processes::ready_status;
use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::testkit::workload::Workload;
use quorate::types::RequestId;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::wire::request::Call;
use quorate::wire::request::Get;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Service;
use support::READY;
use support::Rig;
use tokio::time::Instant;
use tokio::time::sleep;

const REQUIRED: &str = "QUORATE_REQUIRE_NAMESPACES";
/// Small disks have a small reserve.
const SMALL_DISK: &[&str] = &["--free-space-reserve-bytes=64MiB", "--cache-bytes=16MiB"];
/// A quarter of that: a disk with less is full.
const FULL_BYTES: u64 = 16 * 1024 * 1024;
/// Half of it, which a node takes as blocks of its engine's file.
const SET_ASIDE_BYTES: u64 = 32 * 1024 * 1024;
/// What the system counts blocks in.
const BLOCK_BYTES: u64 = 512;
const ALL: [usize; 3] = [0, 1, 2];

/// A cluster, each node on a disk of its own.
struct Stage {
    rig: Rig,
    // Unmounted when the processes have ended.
    disks: Disks,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Option<Stage> {
        if support::skipped("full_disk") {
            support::skip(REQUIRED, "full_disk", "QUORATE_SKIP names it");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let disks = match Disks::new(directory.path(), ALL.len()) {
            Ok(disks) => disks,
            Err(error) => {
                support::skip(REQUIRED, "full_disk", &format!("no disks: {error}"));
                return None;
            }
        };
        let arguments = [support::SMALL_LOG, SMALL_DISK].concat();
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_quorate"));
        let rig = Rig::new(&binary, directory.path(), &arguments);
        Some(Stage {
            rig,
            disks,
            _directory: directory,
        })
    }

    async fn start(&mut self) {
        self.rig.processes.start_all().unwrap();
        self.rig.ready(&ALL).await;
        self.set_aside().await;
    }

    /// Until each node has set aside what it lives on when its disk is full: one that is filled up before
    /// that has nothing.
    async fn set_aside(&self) {
        let deadline = Instant::now() + READY;
        for node in ALL {
            let engine = self.rig.processes.data(node).join("engine/db");
            while fs::metadata(&engine).unwrap().blocks() * BLOCK_BYTES < SET_ASIDE_BYTES {
                assert!(Instant::now() < deadline, "nothing is set aside");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_full_disk_everything_goes_on() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.start().await;
    // The leader's, then a follower's: which one it is then.
    for round in 0..2 {
        let leader = stage.rig.leader().await;
        let full = (leader + round) % 3;
        let prefix = format!("one{round}/");
        put(&stage.rig.nodes, &format!("kept{round}"))
            .await
            .unwrap();
        stage.disks.fill(full);
        eventually_put(&stage.rig.nodes, "another leader has room").await;
        let writers = support::write(&stage.rig.nodes, &prefix, 1);
        support::answered(&writers, 300, "with one full disk").await;
        reads_and_deletes_work(&stage.rig.nodes, &format!("kept{round}")).await;
        stage.disks.make_room(full);
        support::answered(&writers, 50, "after room was made").await;
        stage.rig.ready(&ALL).await;
        support::stop_and_verify(writers, &prefix, &stage.rig.nodes).await;
    }
    caught_up(&mut stage.rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_room_falls_behind_and_takes_nobody_with_it() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.start().await;
    let nodes = stage.rig.nodes.clone();
    let full = (stage.rig.leader().await + 1) % 3;
    put(&nodes, "kept").await.unwrap();
    stage.disks.fill(full);
    let heavy = workload::Options {
        value_bytes: 12_000,
        ..support::writers("heavy/", 5)
    };
    let writers = Workload::start(&nodes, &heavy, &support::ids());
    // It takes what comes until that line, and what was under way then.
    while look(&nodes[full]).await.free_bytes >= FULL_BYTES {
        support::answered(&writers, 20, "while its room is used up").await;
    }
    let before = takes_nothing(&nodes[full], &writers).await;
    support::answered(&writers, 100, "with a follower that takes nothing").await;
    let after = look(&nodes[full]).await;
    let applied = |status| support::shard(status).applied_index;
    assert_eq!(applied(&before), applied(&after), "it took more");
    assert!(after.free_bytes > FULL_BYTES / 4, "{after:?}");
    reads_and_deletes_work(&nodes, "kept").await;
    stage.disks.make_room(full);
    caught_up_under(&mut stage.rig, applied(&after)).await;
    support::stop_and_verify(writers, "heavy/", &nodes).await;
    caught_up(&mut stage.rig).await;
}

/// A node's status once nothing more comes into its log though the others go on: what was under way to it
/// has come.
async fn takes_nothing(node: &Arc<dyn Service>, writers: &Workload) -> NodeStatus {
    let ends = |status: &NodeStatus| {
        let group = support::shard(status);
        (group.last_index, group.applied_index)
    };
    let deadline = Instant::now() + READY;
    let mut before = look(node).await;
    loop {
        support::answered(writers, 100, "while a follower comes to its end").await;
        let now = look(node).await;
        if ends(&now) == ends(&before) {
            return now;
        }
        assert!(Instant::now() < deadline, "it takes on: {now:?}");
        before = now;
    }
}

/// A node's status.
async fn look(node: &Arc<dyn Service>) -> NodeStatus {
    let deadline = Instant::now() + READY;
    loop {
        match ready_status(node).await {
            Ok(status) => return status,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
    }
}

/// Until each node has applied something behind `index`.
async fn caught_up_under(rig: &mut Rig, index: u64) {
    let deadline = Instant::now() + READY;
    loop {
        let all = rig.ready(&ALL).await;
        let applied = all
            .iter()
            .map(|status| support::shard(status).applied_index);
        if applied.min() > Some(index) {
            return;
        }
        assert!(Instant::now() < deadline, "{all:#?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_with_room_puts_are_refused_by_name_and_reads_and_deletes_work() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.start().await;
    for count in [2, 3] {
        let leader = stage.rig.leader().await;
        // With two, the leader is the one with room.
        let full: Vec<usize> = (1..=count).map(|step| (leader + step) % 3).collect();
        let prefix = format!("full{count}/");
        let writers = support::write(&stage.rig.nodes, &prefix, 2);
        support::answered(&writers, 200, "before the disks are full").await;
        let before = support::stop_and_verify(writers, &prefix, &stage.rig.nodes).await;
        put(&stage.rig.nodes, "kept").await.unwrap();
        for disk in &full {
            stage.disks.fill(*disk);
        }
        eventually_refused(&stage.rig.nodes).await;
        // Long after it was first noticed, too.
        for _ in 0..20 {
            reads_and_deletes_work(&stage.rig.nodes, "kept").await;
            let refused = put(&stage.rig.nodes, "refused").await;
            assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
        }
        for disk in &full {
            stage.disks.make_room(*disk);
        }
        eventually_put(&stage.rig.nodes, "there is room again").await;
        stage.rig.ready(&ALL).await;
        let writers = support::write(&stage.rig.nodes, &format!("after{count}/"), 3);
        support::answered(&writers, 200, "after room was made").await;
        support::stop_and_verify(writers, &format!("after{count}/"), &stage.rig.nodes).await;
        let found = support::newest(&stage.rig.nodes, &prefix).await;
        support::none_of(
            &before.check_newest(&found),
            "written before the disks were full",
        );
        assert_eq!(get(&stage.rig.nodes[0], "refused").await, None);
    }
    caught_up(&mut stage.rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_disks_that_fill_up_at_once_under_writers_lose_nothing() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.start().await;
    let nodes = stage.rig.nodes.clone();
    put(&nodes, "kept").await.unwrap();
    let writers = support::write(&nodes, "three/", 6);
    support::answered(&writers, 200, "before the disks are full").await;
    ALL.iter().for_each(|disk| stage.disks.fill(*disk));
    // What was under way is taken, and the writers go on asking.
    eventually_refused(&nodes).await;
    for _ in 0..20 {
        reads_and_deletes_work(&nodes, "kept").await;
        let refused = put(&nodes, "refused").await;
        assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    }
    ALL.iter().for_each(|disk| stage.disks.make_room(*disk));
    eventually_put(&nodes, "there is room again").await;
    support::answered(&writers, 200, "after room was made").await;
    stage.rig.ready(&ALL).await;
    support::stop_and_verify(writers, "three/", &nodes).await;
    assert_eq!(get(&nodes[0], "refused").await, None);
    caught_up(&mut stage.rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_finds_its_disk_full_says_so_and_starts_when_there_is_room() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    // The first start of all, with nothing there yet.
    stage.disks.fill(0);
    stage.rig.processes.start(0).unwrap();
    let ended = stage.rig.processes.wait_exit(0, READY).await.unwrap();
    assert_ne!(ended.code(), Some(0));
    let said = stage.rig.processes.log(0);
    assert!(said.contains("No space left on device"), "{said}");
    stage.disks.make_room(0);
    stage.start().await;

    let writers = support::write(&stage.rig.nodes, "start/", 4);
    support::answered(&writers, 200, "before the disk is full").await;
    let mut started = 0;
    for node in [0, 1, 2, 0, 1, 2] {
        stage.rig.processes.kill(node).unwrap();
        support::answered(&writers, 50, "without the node").await;
        let said_before = stage.rig.processes.log(node).len();
        stage.disks.fill(node);
        stage.rig.processes.start(node).unwrap();
        // Either it runs on what it had set aside, or it says what is missing; never anything else.
        match stage
            .rig
            .processes
            .wait_exit(node, Duration::from_secs(5))
            .await
        {
            Ok(_) => {
                let said = stage.rig.processes.log(node);
                let said = &said[said_before..];
                assert!(said.contains("No space left on device"), "{said}");
                assert!(!said.contains("damaged"), "{said}");
                stage.disks.make_room(node);
                stage.rig.processes.start(node).unwrap();
            }
            Err(_) => {
                started += 1;
                stage.disks.make_room(node);
            }
        }
        stage.rig.ready(&ALL).await;
        support::answered(&writers, 50, "after there was room").await;
    }
    println!("{started} of 6 starts on a full disk went well");
    support::stop_and_verify(writers, "start/", &stage.rig.nodes).await;
    caught_up(&mut stage.rig).await;
}

/// Each node has applied what the others have, and none has ended meanwhile.
async fn caught_up(rig: &mut Rig) {
    let deadline = Instant::now() + READY;
    loop {
        let all = rig.ready(&ALL).await;
        let applied: Vec<u64> = all
            .iter()
            .map(|status| support::shard(status).applied_index)
            .collect();
        if applied.iter().all(|index| *index == applied[0]) {
            break;
        }
        assert!(Instant::now() < deadline, "applied {applied:?}");
        sleep(Duration::from_millis(100)).await;
    }
    for node in ALL {
        let log = rig.processes.log(node);
        assert!(!log.contains("panicked"), "{log}");
    }
}

async fn reads_and_deletes_work(nodes: &Nodes, kept: &str) {
    for node in nodes {
        let found = get(node, kept).await;
        assert_eq!(found.as_deref(), Some("value"), "{kept}");
    }
    let key = Bytes::from_static(b"deleted");
    write(nodes, Operation::Delete { key }).await.unwrap();
}

async fn eventually_refused(nodes: &Nodes) {
    let deadline = Instant::now() + READY;
    loop {
        match put(nodes, "early").await {
            Err(Error::NoSpace { .. }) => return,
            answer => assert!(Instant::now() < deadline, "still {answer:?}"),
        }
    }
}

async fn eventually_put(nodes: &Nodes, what: &str) {
    let deadline = Instant::now() + READY;
    while let Err(error) = put(nodes, "again").await {
        assert!(Instant::now() < deadline, "{what}: {error}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn put(nodes: &Nodes, key: &str) -> Result<(), Error> {
    let operation = Operation::Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from_static(b"value"),
    };
    write(nodes, operation).await
}

/// Writes until there is a final answer, which a refusal is.
async fn write(nodes: &Nodes, operation: Operation) -> Result<(), Error> {
    let request = Request::Write(Write {
        id: RequestId(uuid::Uuid::now_v7().into_bytes()),
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![operation],
        },
    });
    let deadline = Instant::now() + READY;
    for attempt in 0.. {
        match nodes[attempt % nodes.len()]
            .call(call(request.clone()))
            .await
        {
            Ok(Response::Write(WriteOutcome::Done { .. }, _)) => return Ok(()),
            Err(error @ Error::NoSpace { .. }) => return Err(error),
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
    unreachable!("there is an attempt after each")
}

/// Reads a key here, linearizable.
async fn get(node: &Arc<dyn Service>, key: &str) -> Option<String> {
    let request = Request::Get(Get {
        key: Bytes::from(key.to_owned()),
        read: ReadKind::Linearizable,
    });
    let deadline = Instant::now() + READY;
    loop {
        match node.call(call(request.clone())).await {
            Ok(Response::Get(found, _)) => {
                let value = found.map(|found| found.value.to_vec());
                return value.map(|value| String::from_utf8(value).unwrap());
            }
            other => assert!(Instant::now() < deadline, "{key}: {other:?}"),
        }
    }
}

fn call(request: Request) -> Call {
    Call {
        request,
        deadline: Duration::from_secs(5),
        forwarded: false,
        cluster: None,
    }
}
