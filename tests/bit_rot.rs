//! A bit flips in a file of one of three nodes, or in what they say to each other: never is it served as data,
//! it is found and said at once or at the next check, and is repaired from the others, or refused with the way
//! out.
//!
//! | where | found | then |
//! |---|---|---|
//! | identity, segment header, vote, log entry | at the next start | refused, with the way out |
//! | engine, where sled would not see it | at the next start | refused, with the way out |
//! | a stored value, as memory or the engine may spoil it | by the comparison of stored state | the replica is rebuilt |
//! | a stored value, so that it cannot be read | by that comparison, on the word of the one that has it | the replica is rebuilt |
//! | what was applied | by the comparison of what was applied | the replica is rebuilt |
//! | an entry or a snapshot on its way | when it arrives | refused, and sent again |
//!
//! That no bit of a message between nodes passes flipped, `wire/checked.rs` tries for each; of a snapshot's
//! chunk, `codec/frame.rs`.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::codec::layout;
use quorate::codec::layout::Family;
use quorate::engine::Batch;
use quorate::engine::Engine;
use quorate::engine::SledEngine;
use quorate::engine::sled::Options;
use quorate::shard;
use quorate::shard::Row;
use quorate::testkit::processes::Processes;
use quorate::testkit::relay::Relay;
use quorate::testkit::relay::Way;
use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::wire::request::Call;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Service;
use quorate::wire::request::StatusQuery;
use support::READY;
use support::Rig;

/// Compares often and fast, so that a test comes to it.
const EAGER: &[&str] = &[
    "--checkpoint-interval=1s",
    "--log-segment-bytes=8MiB",
    "--self-check-interval=500ms",
    "--scrub-bytes-per-second=64MiB",
    "--scrub-interval=500ms",
];

/// A cluster with some data; the writers have stopped.
async fn filled(arguments: &[&str]) -> Rig {
    let rig = Rig::start(arguments).await;
    let writers = support::write(&rig.nodes, "rot/", 11);
    support::answered(&writers, 400, "before anything rots").await;
    support::stop_and_verify(writers, "rot/", &rig.nodes).await;
    rig
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

/// The log's segments, oldest first.
fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("wal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("log-")
    });
    paths.sort();
    paths
}

/// The first record of a kind in the log that another write follows: its file, and a place in its body.
fn record(data: &Path, kind: u8) -> (PathBuf, usize) {
    for path in segments(data) {
        let bytes = fs::read(&path).unwrap();
        let mut at = 512;
        loop {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            if length == 0 {
                break;
            }
            let next = u32::from_le_bytes(bytes[at + length..at + length + 4].try_into().unwrap());
            if bytes[at + 9] == kind && next != 0 {
                return (path, at + 20);
            }
            at += length;
        }
    }
    panic!("no record of kind {kind}");
}

const ENTRIES: u8 = 2;
const VOTE: u8 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_flipped_bit_in_its_files_does_not_start_and_says_what_to_do() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = filled(support::SMALL_LOG).await;
    let victim = 1;
    rig.processes.kill(victim).unwrap();
    let data = rig.processes.data(victim).to_owned();
    let whole = tempfile::tempdir().unwrap();
    copy_all(&data, whole.path());
    let places = [
        ("identity", data.join("identity"), 40),
        ("segment header", segments(&data).pop().unwrap(), 20),
        place("vote", record(&data, VOTE)),
        place("log entry", record(&data, ENTRIES)),
        ("engine", data.join("engine/db"), 25),
        ("flushes", data.join("engine/flushes"), 3),
    ];
    for (what, file, at) in places {
        flip(&file, at);
        rig.processes.start(victim).unwrap();
        let ended = rig.processes.wait_exit(victim, READY).await.unwrap();
        assert!(!ended.success(), "{what}: {ended}");
        let said = rig.processes.log(victim);
        let said = said.lines().last().unwrap_or_default().to_owned();
        assert!(
            said.contains("move") && said.contains("new"),
            "{what}: {said}"
        );
        assert!(said.contains(&*data.to_string_lossy()), "{what}: {said}");
        // The others go on, and nothing is missing.
        let others: Nodes = [0, 2].map(|node| rig.nodes[node].clone()).to_vec();
        workload::scan(&others, KeyRange::ALL, ReadKind::Linearizable)
            .await
            .unwrap();
        rig.processes.wipe(victim).unwrap();
        copy_all(whole.path(), &data);
    }
    rig.processes.start(victim).unwrap();
    rig.ready(&[0, 1, 2]).await;
}

fn place(what: &'static str, (file, at): (PathBuf, usize)) -> (&'static str, PathBuf, usize) {
    (what, file, at)
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_all(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

/// Changes the engine of a node that does not run, as no checksum below notices.
fn spoil(data: &Path, change: impl Fn(&dyn Engine, ReplicaId, Row) -> Batch) {
    let engine = SledEngine::open(&data.join("engine"), &Options::default()).unwrap();
    let replica = shard::replicas(&engine).unwrap()[0];
    let row = Row::decode(&engine.get(&layout::row(replica)).unwrap().unwrap()).unwrap();
    let batch = change(&engine, replica, row);
    engine.write(batch).unwrap();
    engine.flush().unwrap();
}

/// One bit of the first stored value.
fn a_value(engine: &dyn Engine, _: ReplicaId, row: Row) -> Batch {
    let piece = &row.pieces[0];
    let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
    let mut pairs = engine.scan(&start, &end, false);
    let (place, mut value) = pairs.next().unwrap().unwrap();
    *value.last_mut().unwrap() ^= 1;
    let mut batch = Batch::default();
    batch.put(place, value);
    batch
}

/// The first byte of the first stored value, which says how the rest is to be read.
fn the_form_of_a_value(engine: &dyn Engine, _: ReplicaId, row: Row) -> Batch {
    let piece = &row.pieces[0];
    let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
    let mut pairs = engine.scan(&start, &end, false);
    let (place, mut value) = pairs.next().unwrap().unwrap();
    value[0] ^= 0x80;
    let mut batch = Batch::default();
    batch.put(place, value);
    batch
}

/// What a replica has that did something else once.
fn what_was_applied(_: &dyn Engine, replica: ReplicaId, mut row: Row) -> Batch {
    row.chain.0 ^= 1;
    let mut batch = Batch::default();
    batch.put(layout::row(replica), row.encode());
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_a_spoiled_value_is_rebuilt_from_the_others() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = filled(EAGER).await;
    let victim = rig.leader().await;
    rebuilt_after(&mut rig, (victim + 1) % 3, "what is stored", a_value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_read_a_value_is_rebuilt_from_the_others() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = filled(EAGER).await;
    let victim = rig.leader().await;
    let said = "a replica cannot read what it has stored";
    rebuilt_after(&mut rig, (victim + 1) % 3, said, the_form_of_a_value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_did_something_else_is_rebuilt_from_the_others() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = filled(EAGER).await;
    let leader = rig.leader().await;
    rebuilt_after(
        &mut rig,
        (leader + 1) % 3,
        "what was applied",
        what_was_applied,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_did_something_else_hands_over_and_is_rebuilt() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = filled(EAGER).await;
    // Its log is the longest, so that it leads again more often than not; both ways must end well.
    let leader = rig.leader().await;
    rig.processes.kill_all().unwrap();
    rebuilt_after(&mut rig, leader, "what was applied", what_was_applied).await;
}

async fn rebuilt_after(
    rig: &mut Rig,
    victim: usize,
    what: &str,
    change: impl Fn(&dyn Engine, ReplicaId, Row) -> Batch,
) {
    rig.processes.kill(victim).unwrap();
    let data = rig.processes.data(victim).to_owned();
    spoil(&data, change);
    rig.processes.start_all().unwrap();
    let node = NodeId(victim as u64 + 1);
    let old = rebuilt(rig, victim).await;
    let after = rig.ready(&[0, 1, 2]).await;
    let here = support::shard(&after[victim]);
    assert!(
        old.iter().all(|id| *id != here.replica),
        "{node} has {old:?} again"
    );
    let logs = (0..3)
        .map(|node| rig.processes.log(node))
        .collect::<String>();
    assert!(logs.contains(what), "{logs}");
    all_say_the_same(rig).await;
    let writers = support::write(&rig.nodes, "after/", 12);
    support::answered(&writers, 100, "after the rebuilding").await;
    support::stop_and_verify(writers, "after/", &rig.nodes).await;
}

/// Every node says the same, each from its own state.
async fn all_say_the_same(rig: &Rig) {
    let mut seen: Vec<Vec<(Bytes, Bytes)>> = Vec::new();
    for node in 0..3 {
        let one: Nodes = vec![rig.nodes[node].clone()];
        let scanned = workload::scan(&one, KeyRange::ALL, ReadKind::Follower)
            .await
            .unwrap();
        seen.push(
            scanned
                .into_iter()
                .map(|item| (item.0, item.1.value))
                .collect(),
        );
    }
    assert!(!seen[0].is_empty() && seen[0] == seen[1] && seen[1] == seen[2]);
}

/// Waits until another replica of the shard is a full member on the node; gives the ids that it had before.
async fn rebuilt(rig: &mut Rig, victim: usize) -> Vec<ReplicaId> {
    let mut seen: Vec<ReplicaId> = Vec::new();
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not rebuilt after {READY:?}"
        );
        let status = quorate::testkit::processes::ready_status(&rig.nodes[victim]).await;
        if let Some(id) = status.ok().and_then(|status| member(&status)) {
            if !seen.contains(&id) {
                seen.push(id);
            }
            if seen.len() == 2 {
                seen.pop();
                return seen;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The shard's replica here, if the shard has three and this is one of them.
fn member(status: &NodeStatus) -> Option<ReplicaId> {
    let group = status.groups.iter().find(|group| group.shard.is_some())?;
    let replicas = &group.shard.as_ref()?.replicas;
    let is_listed = replicas.iter().any(|replica| replica.id == group.replica);
    (is_listed && replicas.len() == 3 && group.role != "learner").then_some(group.replica)
}

/// What a node says when a message of another one has a flipped bit.
const REFUSED: &str = "refused what came from another node";

/// A cluster behind a relay.
async fn behind_relay() -> Rig {
    let make = |options| Processes::behind(Relay::new(1), options).unwrap();
    Rig::start_made(3, support::SMALL_LOG, make).await
}

fn relay(rig: &Rig) -> &Relay {
    rig.processes.relay().expect("it was started behind one")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_with_a_flipped_bit_is_refused_and_sent_again() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = behind_relay().await;
    let behind = (rig.leader().await + 1) % 3;
    let others = [(behind + 1) % 3, (behind + 2) % 3];
    let held = support::shard(&rig.ready(&[behind]).await[0]).last_index;
    rig.processes.kill(behind).unwrap();
    let writers = support::write(&rig.nodes, "rot/", 13);
    support::answered(&writers, 400, "without the third").await;
    let purged = |status: &NodeStatus| support::shard(status).purged_index > held;
    wait_for(&mut rig, &others, "the log is purged", purged).await;
    support::stop_and_verify(writers, "rot/", &rig.nodes).await;
    // Nothing but a snapshot can bring a key of that time. An attempt that comes before the node is open is
    // refused whatever it brings, so that all are spoilt until it says of one that it was.
    for way in Way::across(&others, &[behind]) {
        relay(&rig).spoil(way, Bytes::from_static(b"rot/w0"));
    }
    rig.processes.start(behind).unwrap();
    let deadline = tokio::time::Instant::now() + READY;
    while !rig.processes.log(behind).contains(REFUSED) {
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "a spoilt snapshot is not refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(relay(&rig).spoilt() > 0);
    relay(&rig).heal();
    let caught_up = |status: &NodeStatus| support::shard(status).purged_index > held;
    wait_for(&mut rig, &[behind], "it has caught up", caught_up).await;
    same_state(&mut rig).await;
    all_say_the_same(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_with_a_flipped_bit_is_refused_and_sent_again() {
    if support::skipped("bit_rot") {
        return;
    }
    let mut rig = behind_relay().await;
    let leader = rig.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for (round, follower) in others.into_iter().cycle().take(10).enumerate() {
        let value = format!("to be spoilt {round}");
        let way = Way {
            from: leader,
            to: follower,
        };
        let before = relay(&rig).spoilt();
        relay(&rig).spoil(way, Bytes::from(value.clone()));
        let deadline = tokio::time::Instant::now() + READY;
        // At the leader, so that it goes to the others as an entry only; until one has passed in one piece.
        while relay(&rig).spoilt() == before {
            assert!(tokio::time::Instant::now() < deadline, "nothing is spoilt");
            put(&rig.nodes[leader], &value).await;
        }
        relay(&rig).heal();
    }
    same_state(&mut rig).await;
    all_say_the_same(&rig).await;
    for follower in others {
        assert!(rig.processes.log(follower).contains(REFUSED));
    }
}

/// Stores a value.
async fn put(node: &Arc<dyn Service>, value: &str) {
    let value = Bytes::from(value.to_owned());
    let put = Operation::Put {
        key: Bytes::from_static(b"key"),
        value,
    };
    let write = Write {
        id: (support::ids())(),
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![put],
        },
    };
    let answer = node.call(call(Request::Write(write))).await.unwrap();
    assert!(matches!(
        answer,
        Response::Write(WriteOutcome::Done { .. }, _)
    ));
}

/// Waits until the shard's state is the same on all, at the same position.
async fn same_state(rig: &mut Rig) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        rig.ready(&[0, 1, 2]).await;
        let mut states = Vec::new();
        for node in &rig.nodes {
            let request = Request::Status(StatusQuery { state_hash: true });
            let Response::Status(status) = node.call(call(request)).await.unwrap() else {
                panic!("a status was answered with something else");
            };
            let group = support::shard(&status);
            states.push((group.applied_index, group.state_hash));
        }
        let applied = |state: &(u64, _)| state.0;
        if states
            .iter()
            .all(|state| applied(state) == applied(&states[0]))
        {
            assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
            return;
        }
        let now = tokio::time::Instant::now();
        assert!(
            now < deadline,
            "they do not come to one position: {states:?}"
        );
    }
}

fn call(request: Request) -> Call {
    Call {
        request,
        deadline: READY,
        forwarded: false,
        cluster: None,
    }
}

/// Waits until a condition holds for each of these nodes.
async fn wait_for(rig: &mut Rig, nodes: &[usize], what: &str, holds: impl Fn(&NodeStatus) -> bool) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let statuses = rig.ready(nodes).await;
        if statuses.iter().all(&holds) {
            return;
        }
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "{what}: {statuses:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
