//! What the tests of the real binary share: a cluster of child processes and the writers beside it.

#![allow(clippy::unwrap_used)]
// Each test binary uses its own part of this file.
#![allow(dead_code, unreachable_pub)]

pub mod connect;
pub mod disk;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate::client;
use quorate::client::Sender;
use quorate::client::sender;
use quorate::env::clock::Clock;
use quorate::env::rng::Chance;
use quorate::testkit::history::History;
use quorate::testkit::processes::Options;
use quorate::testkit::processes::Processes;
use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::testkit::workload::RequestIds;
use quorate::testkit::workload::Workload;
use quorate::types::GroupId;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::RequestId;
use quorate::types::overview::Arrangement;
use quorate::types::request::ReadKind;
use quorate::types::request::Versioned;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::request::Call;
use quorate::wire::request::GroupStatus;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;

/// How long a cluster may take to form, or to find a leader after a fault. A debug build on a busy
/// machine is slow; a cluster that is well takes a second.
pub const READY: Duration = Duration::from_secs(60);

/// What is shown of a node after a failure has room for what matters.
const QUIET: &[&str] = &["--log=info,openraft=warn"];

/// A log that is checkpointed and purged often and whose segments are soon full, so that a short test
/// comes to what takes a running node hours.
pub const SMALL_LOG: &[&str] = &[
    "--checkpoint-interval=1s",
    "--log-entries-kept=50",
    "--log-segment-bytes=8MiB",
];

/// A cluster of child processes, and connections to its nodes. Shows the ends of the logs when the
/// test fails.
pub struct Rig {
    pub processes: Processes,
    pub nodes: Nodes,
    // Declared last: the processes end before their directory goes.
    _dir: Option<tempfile::TempDir>,
    _alone: File,
}

impl Rig {
    /// Three nodes in a directory of their own, formed and ready.
    pub async fn start(arguments: &[&str]) -> Rig {
        Rig::start_of(3, arguments).await
    }

    /// So many nodes in a directory of their own, formed and ready.
    pub async fn start_of(count: usize, arguments: &[&str]) -> Rig {
        Rig::start_made(count, arguments, |options| Processes::new(options).unwrap()).await
    }

    /// The same, with processes that `make` puts where they belong.
    pub async fn start_made(
        count: usize,
        arguments: &[&str],
        make: impl FnOnce(Options) -> Processes,
    ) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_quorate"));
        let mut rig = Rig::of(count, &binary, dir.path(), arguments, make);
        rig._dir = Some(dir);
        rig.processes.start_all().unwrap();
        rig.ready(&(0..count).collect::<Vec<_>>()).await;
        rig
    }

    /// Three nodes below `dir`, not started.
    pub fn new(binary: &Path, dir: &Path, arguments: &[&str]) -> Rig {
        let make = |options| Processes::new(options).unwrap();
        Rig::of(3, binary, dir, arguments, make)
    }

    /// Adds a node that is to join with `token`; gives its number. Starts nothing.
    pub fn add(&mut self, token: &str) -> usize {
        let added = self.processes.add(token).unwrap();
        let address = self.processes.client_address(added);
        self.nodes.extend(connect::connect(&[address]));
        added
    }

    fn of(
        count: usize,
        binary: &Path,
        dir: &Path,
        arguments: &[&str],
        make: impl FnOnce(Options) -> Processes,
    ) -> Rig {
        let alone = alone();
        let processes = make(Options {
            binary: binary.to_owned(),
            nodes: count,
            dir: dir.to_owned(),
            arguments: [QUIET, arguments]
                .concat()
                .iter()
                .map(ToString::to_string)
                .collect(),
        });
        let addresses: Vec<String> = (0..count)
            .map(|node| processes.client_address(node))
            .collect();
        Rig {
            processes,
            nodes: connect::connect(&addresses),
            _dir: None,
            _alone: alone,
        }
    }

    /// Waits until these nodes are ready.
    pub async fn ready(&mut self, nodes: &[usize]) -> Vec<NodeStatus> {
        let ready = self.processes.wait_ready(nodes, &self.nodes, READY).await;
        ready.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A client that knows these nodes and nothing else, asks the first of them first, and has patience.
    pub fn client(&self, nodes: &[usize]) -> Arc<Sender> {
        let addresses = nodes
            .iter()
            .map(|node| self.processes.client_address(*node));
        let ids = client::RequestIds::new(|| Clock::system().wall_ms(), || Chance.bytes());
        let options = sender::Options {
            deadline: READY,
            ..Default::default()
        };
        let channel = Arc::new(GrpcChannel::of_client());
        Arc::new(Sender::new(channel, addresses.collect(), Arc::new(ids), options).unwrap())
    }

    /// The node that leads the shard.
    pub async fn leader(&mut self) -> usize {
        for _ in 0..100 {
            for status in self.ready(&[0, 1, 2]).await {
                if shard(&status).role == "leader" {
                    return number(&status);
                }
            }
        }
        panic!("every node knows a leader, none is it");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.processes.logs());
        }
    }
}

/// The one shard's status.
pub fn shard(status: &NodeStatus) -> &GroupStatus {
    let mut groups = status.groups.iter();
    groups
        .find(|group| matches!(group.group, GroupId::Shard(_)))
        .unwrap()
}

/// The node's number in its rig: `n1` is 0.
pub fn number(status: &NodeStatus) -> usize {
    let name = &status.member.name;
    name[1..].parse::<usize>().unwrap() - 1
}

/// Has placement only watch, for a test that changes replicas by hand.
pub async fn pause_placement(nodes: &Nodes) {
    let end = tokio::time::Instant::now() + READY;
    for node in nodes.iter().cycle() {
        let call = Call {
            request: Request::Arrange(Arrangement::SetPaused(true)),
            deadline: Duration::from_secs(5),
            forwarded: false,
            cluster: None,
        };
        match node.call(call).await {
            Ok(_) => return,
            Err(error) if tokio::time::Instant::now() > end => panic!("{error}"),
            Err(_) => {}
        }
    }
}

/// Request ids of the present time.
pub fn ids() -> RequestIds {
    Arc::new(|| RequestId(uuid::Uuid::now_v7().into_bytes()))
}

/// Eight writers on four keys each, below `prefix`.
pub fn writers(prefix: &str, seed: u64) -> workload::Options {
    workload::Options {
        prefix: prefix.to_owned(),
        writers: 8,
        keys: 4,
        value_bytes: 300,
        seed,
        attempt: Duration::from_secs(2),
    }
}

/// Starts [`writers`].
pub fn write(nodes: &Nodes, prefix: &str, seed: u64) -> Workload {
    Workload::start(nodes, &writers(prefix, seed), &ids())
}

/// Waits until so many further writes are answered.
pub async fn answered(workload: &Workload, count: usize, what: &str) {
    let reached = workload.wait_answered(count, READY).await;
    assert!(reached, "{what}: less than {count} writes in {READY:?}");
}

/// Every key below `prefix` with its newest version.
pub async fn newest(nodes: &Nodes, prefix: &str) -> BTreeMap<Key, Versioned> {
    let range = KeyRange::of_prefix(prefix.as_bytes());
    let found = workload::scan(nodes, range, ReadKind::Linearizable).await;
    found.unwrap()
}

/// Stops the writers, learns every unknown outcome, and holds the cluster to every answer.
pub async fn stop_and_verify(workload: Workload, prefix: &str, nodes: &Nodes) -> History {
    let mut history = workload.stop().await;
    workload::settle(&mut history, nodes, READY).await;
    assert_eq!(
        history.counts().unknown,
        0,
        "unknown outcomes after {READY:?}"
    );
    let mut complaints = workload::verify(&history, prefix, nodes).await.unwrap();
    complaints.extend(workload::repeat_answered(&history, nodes).await);
    none_of(&complaints, prefix);
    history
}

/// Fails with the complaints, if there are any.
#[track_caller]
pub fn none_of(complaints: &[String], what: &str) {
    let shown = complaints.iter().take(20).cloned().collect::<Vec<_>>();
    assert!(
        complaints.is_empty(),
        "{what}: {} complaints, among them\n{}",
        complaints.len(),
        shown.join("\n")
    );
}

/// One cluster at a time on one machine, whichever runner starts the tests: two starve each other.
pub fn alone() -> File {
    let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-cluster-at-a-time");
    let lock = File::create(lock).unwrap();
    lock.lock().unwrap();
    lock
}

/// Whether `QUORATE_SKIP` names this test: CI runs the long ones by themselves.
pub fn skipped(test: &str) -> bool {
    let list = std::env::var("QUORATE_SKIP").unwrap_or_default();
    list.split(',').any(|name| name == test)
}

/// Says loudly that a test is skipped, or fails where the environment variable `required` is set.
pub fn skip(required: &str, test: &str, why: &str) {
    let must = std::env::var(required).is_ok_and(|value| value == "1");
    assert!(!must, "{test} cannot run, and {required} is set: {why}");
    // Not `println!`: the test runner would keep it to itself.
    let line = format!("\n!!! SKIPPED {test}: {why}\n\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
