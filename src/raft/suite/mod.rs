//! The library's own conformance tests, run against our log and our state machine: in memory, and on
//! real files under a real engine. Then what the library's tests do not look at: a core that panics.

mod deaf;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt;
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use openraft::OptionalSend;
use openraft::StorageError;
use openraft::storage::EntryResponder;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::StoreBuilder;
use openraft::testing::log::Suite;
use tempfile::TempDir;

use crate::engine::Engine;
use crate::engine::memory::MemoryEngine;
use crate::engine::sled;
use crate::engine::sled::SledEngine;
use crate::env::files::DiskFiles;
use crate::error::Error;
use crate::error::Result;
use crate::machine::Applied;
use crate::machine::Membership;
use crate::mvcc::Seen;
use crate::raft::Alone;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::raft::Opening;
use crate::raft::Options;
use crate::raft::config::LogId;
use crate::raft::config::Snapshot;
use crate::raft::config::SnapshotMeta;
use crate::raft::config::StoredMembership;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::Applier;
use crate::raft::state_machine::CheckpointBuilder;
use crate::raft::state_machine::Hosted;
use crate::raft::state_machine::SnapshotData;
use crate::shard;
use crate::shard::Seed;
use crate::shard::ShardMachine;
use crate::shard::ShardReader;
use crate::shard::Slots;
use crate::shard::command::Body;
use crate::shard::command::Header;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;
use crate::types::request::Operation;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wal;
use crate::wal::ReplicaLog;
use crate::wal::Wal;
use crate::wire::request::AppendRequest;
use crate::wire::request::Channel;
use crate::wire::request::Service;
use crate::wire::request::TakeLead;

const REPLICA: ReplicaId = ReplicaId(1);
const SHADOW: ReplicaId = ReplicaId(2);

/// Where a store lives, and what must outlive it.
enum Ground {
    Memory,
    Files,
}

/// Fresh stores on memory or on files.
struct Builder(Ground);

/// Kept for as long as the store is used; the log's thread ends with the last way to it.
type Kept = (TempDir, Wal);

impl StoreBuilder<TypeConfig, LogStore, Logged, Kept> for Builder {
    async fn build(&self) -> Result<(Kept, LogStore, Logged), StorageError<TypeConfig>> {
        let directory = self.0.directory();
        let engine = self.0.engine(directory.path());
        let wal = open_wal(directory.path());
        let log = wal.born(REPLICA, Default::default()).await.unwrap();
        let shadow = wal.born(SHADOW, Default::default()).await.unwrap();
        let hosted = Hosted::new(
            Box::new(machine(&engine, Applied::default())),
            flush(&engine),
            fail(),
            Arc::new(Alone),
        );
        let applier = hosted.applier(shadow.clone()).await;
        Ok((
            (directory, wal),
            LogStore::new(log, None),
            Logged { applier, shadow },
        ))
    }
}

impl Ground {
    fn directory(&self) -> TempDir {
        match self {
            Ground::Memory => TempDir::new_in("/dev/shm").unwrap(),
            Ground::Files => TempDir::new().unwrap(),
        }
    }

    fn engine(&self, directory: &Path) -> Arc<dyn Engine> {
        match self {
            Ground::Memory => Arc::new(MemoryEngine::default()),
            Ground::Files => {
                let options = sled::Options {
                    cache_bytes: 8 << 20,
                };
                Arc::new(SledEngine::open(&directory.join("engine"), &options).unwrap())
            }
        }
    }
}

fn open_wal(directory: &Path) -> Wal {
    let options = wal::Options {
        segment_bytes: wal::SEGMENT_BYTES_MIN,
        ..Default::default()
    };
    let (wal, writer) = Wal::open(Arc::new(DiskFiles), &directory.join("wal"), options).unwrap();
    writer.spawn(&wal).unwrap();
    wal
}

fn machine(engine: &Arc<dyn Engine>, applied: Applied) -> ShardMachine {
    let slots = Slots::open(Arc::clone(engine)).unwrap();
    let replicas = vec![Replica {
        id: REPLICA,
        node: NodeId(1),
    }];
    let descriptor = ShardDescriptor {
        id: ShardId(1),
        range: KeyRange::ALL,
        epoch: Epoch::default(),
        replicas,
    };
    shard::seed(engine, &slots, REPLICA, Seed::new(descriptor, applied)).unwrap();
    ShardMachine::open(Arc::clone(engine), slots, REPLICA, Arc::new(|_| false))
        .unwrap()
        .unwrap()
}

fn flush(engine: &Arc<dyn Engine>) -> crate::raft::Flush {
    let engine = Arc::clone(engine);
    Arc::new(move || {
        engine.flush().unwrap();
        async {}.boxed()
    })
}

fn fail() -> crate::raft::Fail {
    Arc::new(|why| panic!("the machine failed: {why}"))
}

/// The suite applies entries that it has not logged, and leaves gaps between them. Neither happens in a
/// group, and neither is taken: the applier waits for the log, the machine refuses a gap. So gaps are
/// filled with blank entries, and all are logged first, in a log of their own.
struct Logged {
    applier: Applier,
    shadow: ReplicaLog,
}

impl Logged {
    async fn log(&self, entries: &[EntryResponder<TypeConfig>]) -> io::Result<()> {
        for (entry, _) in entries {
            let entry = convert::to_log_entry(entry.clone());
            let Position { term, index } = entry.position;
            let last = self.shadow.state().last.map(|last| last.index);
            if index > 0 && last != Some(index - 1) {
                self.shadow
                    .purge(Position {
                        term,
                        index: index - 1,
                    })
                    .await?;
            }
            self.shadow
                .append(vec![entry], Box::new(|synced| synced.unwrap()))
                .await?;
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Logged {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.applier.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let given: Vec<_> = entries.map(Result::unwrap).collect().await;
        let applied = self.applier.applied_state().await?.0;
        let first = given.first().map_or(0, |(entry, _)| entry.log_id.index());
        let mut next = applied.map_or(first, |applied| applied.index() + 1);
        let mut entries = Vec::new();
        for (entry, responder) in given {
            let term = **entry.log_id.committed_leader_id();
            for index in next..entry.log_id.index() {
                let payload = Payload::Blank;
                let blank = LogEntry {
                    position: Position { term, index },
                    payload,
                };
                entries.push((convert::to_entry(blank).unwrap(), None));
            }
            next = entry.log_id.index() + 1;
            entries.push((entry, responder));
        }
        self.log(&entries).await?;
        self.applier
            .apply(stream::iter(entries.into_iter().map(Ok)))
            .await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        self.applier.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        self.applier.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.applier.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.applier.get_current_snapshot().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_librarys_suite_passes_in_memory() {
    Suite::test_all(Builder(Ground::Memory)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_librarys_suite_passes_on_real_files() {
    Suite::test_all(Builder(Ground::Files)).await.unwrap();
}

/// Such a core is ended by the error, and its group reopened; the process would be ended by the machine.
#[tokio::test]
async fn a_snapshot_that_would_take_the_state_back_is_refused_and_ends_no_process() {
    let (_kept, _, mut logged) = Builder(Ground::Memory).build().await.unwrap();
    let blank = |index| {
        let position = Position { term: 1, index };
        let payload = Payload::Blank;
        let entry = convert::to_entry(LogEntry { position, payload });
        stream::iter([Ok((entry.unwrap(), None))])
    };
    logged.apply(blank(0)).await.unwrap();
    let old = logged.get_current_snapshot().await.unwrap().unwrap();
    logged.apply(blank(1)).await.unwrap();
    let refused = logged.install_snapshot(&old.meta, old.snapshot).await;
    refused.unwrap_err();
    let applied = logged.applied_state().await.unwrap().0;
    assert_eq!(applied.map(|applied| applied.index()), Some(1));
    logged.apply(blank(2)).await.unwrap();
}

/// A group of one replica needs nobody.
struct Nobody;

impl Channel for Nobody {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        unreachable!("{id} was asked")
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        unreachable!("{address} was asked")
    }

    fn learn(&self, _member: crate::types::node::Member) {}
}

/// What a replica stands on that has just been born, and where.
async fn newborn() -> (Arc<dyn Engine>, Wal, TempDir) {
    let directory = Ground::Memory.directory();
    let engine = Ground::Memory.engine(directory.path());
    let wal = open_wal(directory.path());
    wal.born(REPLICA, Default::default()).await.unwrap();
    (engine, wal, directory)
}

async fn lone_group(engine: &Arc<dyn Engine>, wal: &Wal) -> (Group, ShardReader) {
    group_with(engine, wal, lone_membership(), Arc::new(Nobody)).await
}

fn lone_membership() -> Membership {
    Membership::of(&[Replica {
        id: REPLICA,
        node: NodeId(1),
    }])
}

async fn group_with(
    engine: &Arc<dyn Engine>,
    wal: &Wal,
    membership: Membership,
    channel: Arc<dyn Channel>,
) -> (Group, ShardReader) {
    group_that(false, engine, wal, membership, channel).await
}

async fn group_that(
    holds_back: bool,
    engine: &Arc<dyn Engine>,
    wal: &Wal,
    membership: Membership,
    channel: Arc<dyn Channel>,
) -> (Group, ShardReader) {
    let seed = Some(Position { term: 1, index: 1 });
    let applied = Applied {
        position: seed,
        membership_position: seed,
        membership: membership.encode(),
    };
    let machine = machine(engine, applied);
    let reader = machine.reader();
    let opening = Opening {
        group: GroupId::Shard(ShardId(1)),
        replica: REPLICA,
        log: wal.log(REPLICA).unwrap(),
        machine: Box::new(machine),
        committed: None,
        channel,
        flush: flush(engine),
        fail: fail(),
        neighbours: Arc::new(Alone),
        introduction: Arc::new(|| None),
        holds_back,
        pace: Arc::default(),
        options: Options::default(),
    };
    (Group::open(opening).await.unwrap(), reader)
}

async fn leading(group: &Group) -> u64 {
    let mut leadership = group.leadership();
    let leads = leadership.wait_for(|now| matches!(now, Leadership::Leading { .. }));
    let leads = tokio::time::timeout(Duration::from_secs(10), leads)
        .await
        .unwrap()
        .unwrap();
    match *leads {
        Leadership::Leading { term } => term,
        other => unreachable!("{other:?}"),
    }
}

fn put(round: u64) -> shard::Command {
    let key = Key::copy_from_slice(&[round as u8]);
    let operations = vec![Operation::Put {
        key,
        value: Value::from_static(b"value"),
    }];
    let kind = WriteKind::Keys {
        conditions: Vec::new(),
        operations,
    };
    let header = Header {
        stamp: Timestamp::from_wall(round + 1),
        ..Default::default()
    };
    shard::Command {
        header,
        body: Body::Writes(vec![Write {
            id: RequestId::new(round, [0; 10]),
            kind,
        }]),
    }
}

/// openraft's issue 2116 is one way for a core to panic; the group must come back on the same store,
/// with everything that was answered, in a later term.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_core_panics_is_reopened_and_has_lost_nothing() {
    let (engine, wal, _directory) = newborn().await;
    let (group, reader) = lone_group(&engine, &wal).await;
    for round in 1..=3 {
        let term = leading(&group).await;
        group
            .propose(term, put(round).encode())
            .await
            .unwrap()
            .await
            .unwrap();
        let before = group.read_position().await.unwrap();
        let leadership = Mutex::new(group.leadership());
        group.panic_core().await;
        let mut changes = leadership.into_inner().unwrap();
        changes
            .wait_for(|now| !matches!(now, Leadership::Leading { term: now } if *now == term))
            .await
            .unwrap();
        assert!(leading(&group).await > term);
        let position = group.read_position().await.unwrap();
        assert!(position > before);
        group.wait_applied(position).await.unwrap();
        for written in 1..=round {
            let key = [written as u8];
            assert!(
                matches!(reader.get(&key, None).unwrap().value, Seen::Present(_)),
                "{written}"
            );
        }
    }
    group.panic_core().await;
    let mut leadership = group.leadership();
    let failed = leadership.wait_for(|now| *now == Leadership::Failed);
    tokio::time::timeout(Duration::from_secs(10), failed)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(group.view().role, "failed");
}

/// What a leader leaves that dies between the two entries of a change of voters.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_left_joint_is_finished_by_its_next_leader() {
    let (engine, wal, _directory) = newborn().await;
    let mut joint = lone_membership();
    joint.voters.push(joint.voters[0].clone());
    let (group, reader) = group_with(&engine, &wal, joint, Arc::new(Nobody)).await;
    leading(&group).await;
    assert!(group.is_joint());
    let before = reader.descriptor().epoch.conf;
    group.finish_change().await.unwrap();
    assert!(!group.is_joint() && group.membership() == lone_membership());
    assert!(reader.descriptor().epoch.conf > before);
}

/// A group of one elects itself at its first tick, and again after each time that it is reopened.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_holds_back_never_leads_however_it_is_asked() {
    let (engine, wal, _directory) = newborn().await;
    let (group, _) = group_that(true, &engine, &wal, lone_membership(), Arc::new(Nobody)).await;
    let ticks = 4 * Options::default().election_timeout_max;
    let never_leads = async |group: &Group| {
        let mut leadership = group.leadership();
        let leads = leadership.wait_for(|now| matches!(now, Leadership::Leading { .. }));
        let leads = tokio::time::timeout(ticks, leads).await;
        assert!(leads.is_err(), "it leads");
    };
    let log = wal.log(REPLICA).unwrap();
    let vote = log.state().vote;
    group.elect().await.unwrap();
    never_leads(&group).await;
    assert_eq!(log.state().vote, vote, "it has voted for itself");
    // It follows another one, which then asks it to lead.
    let vote = Vote {
        term: 5,
        replica: SHADOW,
        committed: true,
    };
    let beat = AppendRequest {
        vote,
        previous: Some(Position { term: 1, index: 1 }),
        entries: Vec::new(),
        committed: None,
    };
    group.append(beat).await.unwrap();
    let take = TakeLead {
        vote,
        to: REPLICA,
        last: None,
        only_asked: false,
    };
    assert!(!group.take_lead(take).await.unwrap());
    let question = TakeLead {
        only_asked: true,
        ..take
    };
    assert!(!group.take_lead(question).await.unwrap());
    never_leads(&group).await;
    assert_eq!(log.state().vote, Some(vote), "it has voted for itself");
    group.end().await;

    // One that leads already, and is reopened.
    let (group, _) = lone_group(&engine, &wal).await;
    let term = leading(&group).await;
    group.hold_back();
    let mut leadership = group.leadership();
    group.panic_core().await;
    let led = Leadership::Leading { term };
    leadership.wait_for(|now| *now != led).await.unwrap();
    never_leads(&group).await;
}

/// The second change was decided before the first one was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_decided_on_an_older_membership_is_refused() {
    let (engine, wal, _directory) = newborn().await;
    let (group, _) = lone_group(&engine, &wal).await;
    leading(&group).await;
    // The same voters: what is refused is what was known, not what is asked for.
    let voters = std::collections::BTreeSet::from([REPLICA]);
    let seen = group.seen().unwrap();
    group.set_voters(&seen, voters.clone()).await.unwrap();
    group.set_voters(&seen, voters.clone()).await.unwrap_err();
    let seen = group.seen().unwrap();
    group.set_voters(&seen, voters).await.unwrap();
    assert_eq!(group.membership(), lone_membership());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_replica_that_ends_is_told() {
    let (engine, wal, _directory) = newborn().await;
    let (group, _) = lone_group(&engine, &wal).await;
    leading(&group).await;
    let never = Position {
        term: 99,
        index: u64::MAX,
    };
    let (waiter, ender) = (group.clone(), group.clone());
    let (waited, ()) = tokio::join!(waiter.wait_applied(never), ender.end());
    assert!(matches!(waited, Err(Error::NotFound { .. })));
}
