//! Opens replicas on the node's stores, one by one.
//!
//! Every replica is **born** in the log before anything else is written for it there: the record says what
//! it begins with, so that a crash before its first row in the engine is made good. A birth is for ever;
//! an id that was ever born here is never born again.
//!
//! A replica that was **split** off another has its first row from its parent, in the batch that shrank
//! the parent, and is born after that. When a crash takes the row and leaves the birth, the parent writes
//! the row again: its log still has the split, since a log is purged only behind what the engine has
//! flushed, and the birth proves that the split is committed.
//!
//! A replica that **comes to a group later** begins with nothing. One that has left its group is
//! **destroyed**: its row goes, the engine is flushed, and then the log says for ever that it is gone. A
//! crash in between is made good at the next start.

use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::codec::value;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::env::clock::Clock;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::env::tasks::spawn_on;
use crate::error::Error;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::StateMachine;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::placement::PlacementReader;
use crate::placement::machine as placement;
use crate::placement::machine::PlacementMachine;
use crate::placement::state::PlacementState;
use crate::raft;
use crate::raft::Fail;
use crate::raft::Flush;
use crate::raft::Group;
use crate::raft::Introduction;
use crate::raft::Leadership;
use crate::raft::Neighbours;
use crate::raft::Opening;
use crate::shard;
use crate::shard::Others;
use crate::shard::Quarantined;
use crate::shard::Seed;
use crate::shard::ShardMachine;
use crate::shard::ShardReader;
use crate::shard::Slots;
use crate::shard::quarantine;
use crate::types::GroupId;
use crate::types::KeyRange;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::Vote;
use crate::types::shard::Birth;
use crate::types::shard::ShardDescriptor;
use crate::wal::ReplicaLog;
use crate::wal::Wal;
use crate::wal::WalError;
use crate::wire::request::Channel;

/// Where the first replicas of a group stand before their first entry, when all begin with the same state.
pub const SEED: Position = Position { term: 1, index: 1 };

/// The first byte of an encoded origin.
const ORIGIN_FORMAT: u8 = 1;

/// What a replica begins with; kept in the log for as long as the replica lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Origin {
    /// One of the first replicas of the placement group.
    Placement {
        /// What placement begins with.
        state: PlacementState,
        /// Its replicas, encoded.
        members: bytes::Bytes,
    },
    /// One of the first replicas of the first shard.
    Shard {
        /// The shard.
        descriptor: ShardDescriptor,
        /// Its replicas, encoded.
        members: bytes::Bytes,
    },
    /// Split off a replica here.
    Split(Birth),
    /// Of a group that had others before: it begins with nothing and is filled by the group's log or a
    /// snapshot.
    Empty {
        /// The shard as it was then.
        descriptor: ShardDescriptor,
    },
    /// Of placement's group, after its first replicas: it begins with nothing too.
    EmptyPlacement,
}

/// Why a replica does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log.
    #[error("in the log: {0}")]
    Wal(#[from] WalError),
    /// Its stored state.
    #[error("open a replica: {0}")]
    Machine(#[from] MachineError),
    /// The engine.
    #[error("flush the engine: {0}")]
    Engine(#[from] EngineError),
    /// Its group.
    #[error("open a group: {0}")]
    Group(#[from] Error),
    /// A record in the log could not be written.
    #[error("log {what}: {error}")]
    Log {
        /// What.
        what: &'static str,
        /// Why it failed.
        error: std::io::Error,
    },
    /// The engine has lost what the log no longer holds.
    #[error(
        "the engine has {replica} at entry {applied}, and the log is purged up to {purged}: the engine was lost. \
         Restore the node as a new one: move the data directory away and start with --join"
    )]
    EngineLost {
        /// The replica.
        replica: ReplicaId,
        /// The last entry that the engine has applied.
        applied: u64,
        /// The last entry that the log has given up.
        purged: u64,
    },
    /// The engine has lost a replica, and nobody here can write its first row again.
    #[error(
        "the engine does not have {replica}, which was split off here: the engine was lost. Restore the node as a \
         new one: move the data directory away and start with --join"
    )]
    ChildLost {
        /// The replica.
        replica: ReplicaId,
    },
    /// A record of an origin that this program does not understand.
    #[error("read the origin of {replica}: {reason}")]
    Origin {
        /// The replica.
        replica: ReplicaId,
        /// Why.
        reason: String,
    },
}

/// Where the replicas of a node are kept. Cloning shares it.
#[derive(Clone)]
pub struct Stored {
    /// The log.
    pub wal: Wal,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Its slots.
    pub slots: Arc<Slots>,
    /// Those that are open.
    pub registry: Arc<Registry>,
}

impl Stored {
    /// The state of a shard's replica; `None` without a row. Blocks.
    pub fn shard(&self, replica: ReplicaId) -> Result<Option<ShardMachine>, MachineError> {
        let (engine, slots) = (Arc::clone(&self.engine), Arc::clone(&self.slots));
        ShardMachine::open(engine, slots, replica, Arc::new(self.clone()))
    }
}

impl Others for Stored {
    /// One that is being destroyed is not seeded again in the moment before the log calls it gone. Should the engine
    /// fail here, it fails the batch that asks, too.
    fn has_ended(&self, replica: ReplicaId) -> bool {
        let is_ending = || shard::is_ending(self.engine.as_ref(), replica).unwrap_or(false);
        self.wal.is_gone(replica) || is_ending()
    }

    fn stands_still(&self, replica: ReplicaId) -> bool {
        self.registry.stands_still(replica)
    }
}

/// Everything that a replica is opened with. Cloning shares it.
#[derive(Clone)]
pub struct Opener {
    /// Where replicas are kept.
    pub stored: Stored,
    /// The way to other nodes.
    pub channel: Arc<dyn Channel>,
    /// Wall time.
    pub clock: Clock,
    /// Flushes the engine.
    pub flush: Flush,
    /// Ends the process.
    pub fail: Fail,
    /// The replicas beside each.
    pub neighbours: Arc<dyn Neighbours>,
    /// How fast the node sends snapshots.
    pub pace: Arc<raft::Pace>,
    /// The groups' settings.
    pub raft: raft::Options,
    /// Where the groups' tasks run, away from everything that may block.
    pub consensus: Handle,
}

/// A replica whose log and state are at hand.
pub struct Ready {
    /// The replica.
    pub replica: ReplicaId,
    log: ReplicaLog,
    machine: Machine,
}

/// The state of a replica.
pub enum Machine {
    /// Of placement.
    Placement(PlacementMachine),
    /// Of a shard.
    Shard(ShardMachine),
}

enum Reader {
    Placement(PlacementReader),
    Shard(ShardReader),
}

impl Reader {
    fn is_quarantined(&self) -> bool {
        match self {
            Reader::Placement(_) => false,
            Reader::Shard(reader) => reader.is_quarantined(),
        }
    }
}

impl Machine {
    fn as_state_machine(&self) -> &dyn StateMachine {
        match self {
            Machine::Placement(machine) => machine,
            Machine::Shard(machine) => machine,
        }
    }
}

impl Origin {
    /// What the log keeps.
    pub fn encode(&self) -> bytes::Bytes {
        value::encode(ORIGIN_FORMAT, self).into()
    }

    /// Reads what the log has kept.
    pub fn decode(replica: ReplicaId, bytes: &[u8]) -> Result<Origin, OpenError> {
        value::decode("an origin", ORIGIN_FORMAT, bytes).map_err(|error| OpenError::Origin {
            replica,
            reason: error.to_string(),
        })
    }
}

impl Opener {
    /// Ends for ever what a crash has left half-destroyed: the log says that it is gone, behind a flush of
    /// what the engine did. Before any replica is opened.
    pub async fn finish_destructions(&self) -> Result<(), OpenError> {
        let engine = Arc::clone(&self.stored.engine);
        let destroyed = offload(move || shard::destroyed(engine.as_ref())).await?;
        if destroyed.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(&self.stored.engine);
        offload(move || engine.flush()).await?;
        for replica in destroyed {
            self.end(replica).await?;
        }
        Ok(())
    }

    /// Removes all that a replica has here, whose tasks and group have ended. What is left of it is that
    /// its id is gone.
    pub async fn destroy(&self, group: GroupId, replica: ReplicaId) -> Result<(), OpenError> {
        let (engine, slots) = (
            Arc::clone(&self.stored.engine),
            Arc::clone(&self.stored.slots),
        );
        let destroy = move || match group {
            GroupId::Placement => placement::destroy(engine.as_ref(), replica),
            GroupId::Shard(_) => shard::destroy(&engine, &slots, replica),
        };
        offload(destroy).await?;
        self.end_all(&[replica]).await
    }

    /// The log calls these gone, whose rows are gone from the engine: behind a flush of that.
    pub async fn end_all(&self, replicas: &[ReplicaId]) -> Result<(), OpenError> {
        if !mutant::lives(Mutant::GoneBeforeFlush) {
            (self.flush)().await;
        }
        for replica in replicas {
            self.end(*replica).await?;
        }
        Ok(())
    }

    /// The engine is flushed: without its entries the replica could not be brought back to what an older
    /// state of the engine says of it.
    async fn end(&self, replica: ReplicaId) -> Result<(), OpenError> {
        if !mutant::lives(Mutant::EndOfReplicaNotLogged) {
            self.stored.wal.gone(replica).await?;
        }
        let engine = Arc::clone(&self.stored.engine);
        offload(move || shard::forget(engine.as_ref(), replica)).await?;
        Ok(())
    }

    /// The replica whose row says that it has some of these keys, open or not.
    pub async fn holder(&self, range: &KeyRange) -> Result<Option<ReplicaId>, OpenError> {
        let (engine, range) = (Arc::clone(&self.stored.engine), range.clone());
        Ok(offload(move || shard::holder(engine.as_ref(), &range)).await?)
    }

    /// A replica of a group that had others before, with nothing in it. The caller has seen that no other
    /// replica here holds its keys, and that its id has not ended.
    pub async fn empty(
        &self,
        replica: ReplicaId,
        descriptor: ShardDescriptor,
    ) -> Result<Ready, OpenError> {
        // What made room for it (a split applied, a snapshot installed, a replica destroyed) must not be
        // undone by a power cut that leaves its birth: two replicas would hold the same keys.
        (self.flush)().await;
        let log = match self.stored.wal.log(replica) {
            Some(log) => log,
            None => {
                let descriptor = descriptor.clone();
                let birth = Origin::Empty { descriptor }.encode();
                self.stored.wal.born(replica, birth).await?
            }
        };
        let opener = self.clone();
        let machine = offload(move || {
            shard::empty(
                &opener.stored.engine,
                &opener.stored.slots,
                replica,
                descriptor,
            )?;
            opener.stored.shard(replica)
        });
        let machine = machine.await?.expect("its row was written just now");
        self.ready(replica, log, Machine::Shard(machine)).await
    }

    /// A replica of placement's group that comes to it later. The caller has seen that there is no other one
    /// here, and that its id has not ended.
    pub async fn empty_placement(&self, replica: ReplicaId) -> Result<Ready, OpenError> {
        let birth = Origin::EmptyPlacement;
        if self.stored.wal.log(replica).is_none() {
            self.stored.wal.born(replica, birth.encode()).await?;
        }
        let ready = self.born(replica, birth).await?;
        Ok(ready.expect("its log is there, and its row is written when it is looked for"))
    }

    /// Finds the state of a replica that was born here, or begins it where the crash that ended the last
    /// start came before its first row. `None` for one whose row somebody else writes: its parent, or
    /// whoever sees that there is room for it.
    pub async fn born(
        &self,
        replica: ReplicaId,
        origin: Origin,
    ) -> Result<Option<Ready>, OpenError> {
        let Some(log) = self.stored.wal.log(replica) else {
            return Ok(None);
        };
        let opener = self.clone();
        let machine = offload(move || opener.machine(replica, origin)).await?;
        match machine {
            Some(machine) => self.ready(replica, log, machine).await.map(Some),
            None => Ok(None),
        }
    }

    /// A replica whose first row its parent has written; `None` when it is open already, or has ended.
    pub async fn split_off(&self, replica: ReplicaId) -> Result<Option<Ready>, OpenError> {
        let is_over = self.stored.registry.is_out(replica) || self.stored.wal.is_gone(replica);
        if self.stored.registry.is_open(replica) || is_over {
            return Ok(None);
        }
        let opener = self.clone();
        let Some(machine) = offload(move || opener.stored.shard(replica)).await? else {
            return Ok(None);
        };
        let Some(birth) = machine.reader().row().birth else {
            return Ok(None);
        };
        let log = match self.stored.wal.log(replica) {
            Some(log) => {
                // It may have been born with nothing, and its birth does not say that the split is committed:
                // what it does from now on must not outlive the row that it began with.
                (self.flush)().await;
                log
            }
            None => {
                let opener = self.clone();
                let reader = machine.reader();
                offload(move || opener.quarantine_with_parent(replica, &reader, &birth)).await?;
                let birth = Origin::Split(birth).encode();
                self.stored.wal.born(replica, birth).await?
            }
        };
        let ready = self.ready(replica, log, Machine::Shard(machine)).await?;
        Ok(Some(ready))
    }

    /// What its parent here has got wrong or cannot read, a child has too: it is marked before it is born.
    /// Blocks.
    fn quarantine_with_parent(
        &self,
        child: ReplicaId,
        reader: &ShardReader,
        birth: &Birth,
    ) -> Result<(), MachineError> {
        if !quarantine::is_marked(self.stored.engine.as_ref(), birth.replica)? {
            return Ok(());
        }
        reader.quarantine();
        let quarantined = Quarantined {
            replica: child,
            shard: reader.row().descriptor.id,
        };
        quarantine::mark(self.stored.engine.as_ref(), quarantined)
    }

    /// Starts a replica; its tasks go into `tasks`. `committed` is an entry of its log that is known to be
    /// committed. On an error nothing of it runs.
    pub async fn start(
        &self,
        ready: Ready,
        committed: Option<Position>,
        tasks: &mut TaskSet,
    ) -> Result<(), OpenError> {
        // It may have been absorbed by a neighbour that was started before it.
        let Some(_opening) = self.stored.registry.begin_opening(ready.replica) else {
            return Ok(());
        };
        let (id, machine, reader): (_, Box<dyn StateMachine>, _) = match ready.machine {
            Machine::Placement(machine) => {
                let reader = Reader::Placement(machine.reader());
                (GroupId::Placement, Box::new(machine), reader)
            }
            Machine::Shard(machine) => {
                let reader = machine.reader();
                let id = GroupId::Shard(reader.row().descriptor.id);
                (id, Box::new(machine), Reader::Shard(reader))
            }
        };
        let opening = Opening {
            group: id,
            replica: ready.replica,
            log: ready.log,
            machine,
            committed,
            channel: Arc::clone(&self.channel),
            flush: Arc::clone(&self.flush),
            fail: Arc::clone(&self.fail),
            neighbours: Arc::clone(&self.neighbours),
            introduction: introduction(&reader),
            holds_back: reader.is_quarantined(),
            pace: Arc::clone(&self.pace),
            options: self.raft.clone(),
        };
        let opened = spawn_on(&self.consensus, Group::open(opening)).await;
        let group = opened.map_err(|error| Error::Internal(format!("open {id}: {error}")))??;
        match reader {
            Reader::Placement(reader) => {
                self.stored.registry.add_placement(group, reader);
                Ok(())
            }
            Reader::Shard(reader) => self.start_shard(group, reader, tasks).await,
        }
    }

    /// A child whose parent is led from here stands for election at once.
    async fn start_shard(
        &self,
        group: Group,
        reader: ShardReader,
        tasks: &mut TaskSet,
    ) -> Result<(), OpenError> {
        let row = reader.row();
        let (clock, channel) = (self.clock.clone(), Arc::clone(&self.channel));
        let replica = Replica::start(group.clone(), reader, clock, channel, tasks);
        self.stored.registry.add_shard(row.descriptor.id, replica);
        match &row.birth {
            Some(birth) if self.leads(birth) => Ok(group.elect().await?),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether this node leads the shard that a replica was split off.
    fn leads(&self, birth: &Birth) -> bool {
        let parent = self.stored.registry.shard(birth.parent);
        parent.is_ok_and(|parent| {
            let leadership = parent.group().leadership();
            let leads = matches!(*leadership.borrow(), Leadership::Leading { .. });
            leads
        })
    }

    async fn ready(
        &self,
        replica: ReplicaId,
        log: ReplicaLog,
        machine: Machine,
    ) -> Result<Ready, OpenError> {
        check_reach(&log, &machine)?;
        cut_behind_snapshot(&log, &machine).await?;
        if machine.as_state_machine().applied().position.is_some() {
            vote_in_seed_term(&log).await?;
        }
        Ok(Ready {
            replica,
            log,
            machine,
        })
    }

    /// Blocks.
    fn machine(&self, replica: ReplicaId, origin: Origin) -> Result<Option<Machine>, MachineError> {
        let begins = |membership| Applied {
            position: Some(SEED),
            membership_position: Some(SEED),
            membership,
        };
        match origin {
            Origin::Placement { state, members } => {
                placement::seed(self.stored.engine.as_ref(), replica, state, begins(members))?;
                let machine = PlacementMachine::open(Arc::clone(&self.stored.engine), replica)?;
                Ok(machine.map(Machine::Placement))
            }
            Origin::Shard {
                descriptor,
                members,
            } => {
                // Its windows are the same on every node, or replicas would part ways.
                let seed = Seed::new(descriptor, begins(members));
                shard::seed(&self.stored.engine, &self.stored.slots, replica, seed)?;
                Ok(self.stored.shard(replica)?.map(Machine::Shard))
            }
            Origin::EmptyPlacement => {
                placement::empty(self.stored.engine.as_ref(), replica)?;
                let machine = PlacementMachine::open(Arc::clone(&self.stored.engine), replica)?;
                Ok(machine.map(Machine::Placement))
            }
            Origin::Split(_) | Origin::Empty { .. } => {
                Ok(self.stored.shard(replica)?.map(Machine::Shard))
            }
        }
    }
}

fn introduction(reader: &Reader) -> Introduction {
    match reader {
        Reader::Placement(_) => Arc::new(|| None),
        Reader::Shard(reader) => {
            let reader = reader.clone();
            Arc::new(move || Some(reader.descriptor()))
        }
    }
}

/// The log must go on where the engine ends: a hole between them was never applied here.
fn check_reach(log: &ReplicaLog, machine: &Machine) -> Result<(), OpenError> {
    let applied = machine.as_state_machine().applied().position;
    let applied = applied.map_or(0, |at| at.index);
    let purged = log.state().purged.map_or(0, |purged| purged.index);
    match purged <= applied || mutant::lives(Mutant::HoleOverlooked) {
        true => Ok(()),
        false => Err(OpenError::EngineLost {
            replica: log.id(),
            applied,
            purged,
        }),
    }
}

/// A crash between a snapshot's installation and the purge behind it leaves entries below the snapshot;
/// what is appended next would not follow them.
async fn cut_behind_snapshot(log: &ReplicaLog, machine: &Machine) -> Result<(), OpenError> {
    let applied = machine.as_state_machine().applied().position;
    let ends = log.state().last.map(|last| last.index);
    match applied {
        Some(_) if mutant::lives(Mutant::LogNotCut) => Ok(()),
        Some(applied) if ends.is_some_and(|ends| ends < applied.index) => {
            let purged = log.purge(applied).await;
            purged.map_err(|error| OpenError::Log {
                what: "the purge behind a snapshot",
                error,
            })
        }
        Some(_) | None => Ok(()),
    }
}

/// A seed stands in term 1; without a vote in it the replica would vote there again. A vote that the log
/// has already is left alone.
async fn vote_in_seed_term(log: &ReplicaLog) -> Result<(), OpenError> {
    if log.state().vote.is_some() && !mutant::lives(Mutant::SeedVoteReplacesVotes) {
        return Ok(());
    }
    if mutant::lives(Mutant::SeedIsNoVote) {
        return Ok(());
    }
    let vote = Vote {
        term: SEED.term,
        replica: log.id(),
        committed: false,
    };
    let saved = log.save_vote(vote).await;
    saved.map_err(|error| OpenError::Log {
        what: "the first vote",
        error,
    })
}

#[cfg(test)]
pub(in crate::node) mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;

    use super::*;
    use crate::engine::memory::MemoryEngine;
    use crate::env::files::DiskFiles;
    use crate::machine::Membership;
    use crate::shard::Command;
    use crate::shard::command::Body;
    use crate::shard::command::Header;
    use crate::shard::command::Split;
    use crate::types::Key;
    use crate::types::KeyRange;
    use crate::types::NodeId;
    use crate::types::ShardId;
    use crate::types::Timestamp;
    use crate::types::log::LogEntry;
    use crate::types::log::Payload;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica as Member;
    use crate::types::shard::Size;
    use crate::wire::request::Route;
    use crate::wire::request::Service;

    pub(in crate::node) const REPLICA: ReplicaId = ReplicaId(7);
    /// What [`split`] splits off.
    pub(in crate::node) const CHILD: ReplicaId = ReplicaId(17);

    pub(in crate::node) struct Nobody;

    impl Channel for Nobody {
        fn node(&self, id: NodeId) -> Arc<dyn Service> {
            unreachable!("{id} was asked")
        }

        fn address(&self, address: &str) -> Arc<dyn Service> {
            unreachable!("{address} was asked")
        }

        fn learn(&self, _member: crate::types::node::Member) {}
    }

    pub(in crate::node) fn opener(directory: &std::path::Path, engine: &Arc<dyn Engine>) -> Opener {
        let options = crate::wal::Options {
            segment_bytes: crate::wal::SEGMENT_BYTES_MIN,
            ..Default::default()
        };
        let (wal, writer) = Wal::open(Arc::new(DiskFiles), directory, options).unwrap();
        writer.spawn(&wal).unwrap();
        let flushed = Arc::clone(engine);
        Opener {
            stored: Stored {
                wal,
                engine: Arc::clone(engine),
                slots: Slots::open(Arc::clone(engine)).unwrap(),
                registry: Arc::default(),
            },
            channel: Arc::new(Nobody),
            clock: Clock::system(),
            flush: Arc::new(move || {
                flushed.flush().unwrap();
                async {}.boxed()
            }),
            fail: Arc::new(|why| panic!("{why}")),
            neighbours: Arc::new(raft::Alone),
            pace: Arc::default(),
            raft: raft::Options::default(),
            consensus: Handle::current(),
        }
    }

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(1),
            range: KeyRange {
                start: Key::from_static(b"m"),
                end: None,
            },
            epoch: Epoch::default(),
            replicas: Vec::new(),
        }
    }

    fn on_node_1(id: ReplicaId) -> Member {
        let node = NodeId(1);
        Member { id, node }
    }

    /// The first shard, with one replica.
    pub(in crate::node) fn first_shard() -> ShardDescriptor {
        ShardDescriptor {
            range: KeyRange::ALL,
            replicas: vec![on_node_1(REPLICA)],
            ..descriptor()
        }
    }

    pub(in crate::node) fn first_origin() -> Origin {
        let descriptor = first_shard();
        Origin::Shard {
            members: Membership::of(&descriptor.replicas).encode(),
            descriptor,
        }
    }

    /// The first shard is there and has applied a split at this position: the child has its row.
    pub(in crate::node) async fn split(opener: &Opener) -> Position {
        let origin = first_origin();
        opener
            .stored
            .wal
            .born(REPLICA, origin.encode())
            .await
            .unwrap();
        let ready = opener.born(REPLICA, origin).await.unwrap().unwrap();
        let Machine::Shard(mut machine) = ready.machine else {
            unreachable!("the replica is a shard's")
        };
        let position = Position { term: 1, index: 2 };
        let header = Header {
            stamp: Timestamp::from_wall(1),
            epoch: first_shard().epoch,
            ..Header::default()
        };
        let body = Body::Split(Split {
            at: Key::from_static(b"m"),
            child: ShardId(2),
            left: Size::default(),
            replicas: vec![on_node_1(CHILD)],
        });
        let payload = Payload::Command(Command { header, body }.encode());
        machine.apply(&[LogEntry { position, payload }]).unwrap();
        assert_eq!(machine.take_seeded(), [CHILD]);
        position
    }

    /// Otherwise it could vote for another replica in the term that its seed stands in.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_seed_counts_as_a_vote_in_its_term_until_the_log_has_one() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        split(&opener).await;
        let ready = opener.split_off(CHILD).await.unwrap().unwrap();
        let vote = |term, replica| Vote {
            term,
            replica,
            committed: false,
        };
        assert_eq!(ready.log.state().vote, Some(vote(SEED.term, CHILD)));
        let later = vote(SEED.term + 1, ReplicaId(18));
        ready.log.save_vote(later).await.unwrap();
        let ready = opener.split_off(CHILD).await.unwrap().unwrap();
        assert_eq!(ready.log.state().vote, Some(later));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_goes_on_where_the_engine_ends_or_the_replica_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        let applied = split(&opener).await;
        let log = opener.stored.wal.log(REPLICA).unwrap();
        // The engine's end is from a snapshot, as a crash before the purge behind it leaves it.
        let payload = Payload::Blank;
        let position = SEED;
        let entries = vec![LogEntry { position, payload }];
        let appended = log.append(entries, Box::new(|synced| synced.unwrap()));
        appended.await.unwrap();
        let ready = opener.born(REPLICA, first_origin()).await.unwrap().unwrap();
        assert_eq!(ready.log.state().purged, Some(applied));
        // The engine is older than what the log was purged behind.
        let index = applied.index + 1;
        log.purge(Position { index, ..applied }).await.unwrap();
        let opened = opener.born(REPLICA, first_origin()).await;
        assert!(matches!(opened, Err(OpenError::EngineLost { .. })));
    }

    /// Before the flush a power cut would bring its row back, and its log would be gone.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_destroyed_replica_is_called_gone_behind_a_flush() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let mut opener = opener(directory.path(), &engine);
        opener.empty(REPLICA, descriptor()).await.unwrap();
        let flushes = Arc::new(Mutex::new(Vec::new()));
        let (wal, noted) = (opener.stored.wal.clone(), Arc::clone(&flushes));
        opener.flush = Arc::new(move || {
            noted.lock().unwrap().push(wal.is_gone(REPLICA));
            async {}.boxed()
        });
        opener
            .destroy(GroupId::Shard(ShardId(1)), REPLICA)
            .await
            .unwrap();
        assert_eq!(*flushes.lock().unwrap(), [false]);
        assert!(opener.stored.wal.is_gone(REPLICA));
    }

    /// A vote or an answer of the one that is here would count as the other's.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_message_for_an_earlier_replica_of_its_group_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        let ready = opener.empty(REPLICA, descriptor()).await.unwrap();
        let mut tasks = TaskSet::new();
        opener.start(ready, None, &mut tasks).await.unwrap();
        let receiver = |to| {
            let (group, from) = (GroupId::Shard(ShardId(1)), ReplicaId(8));
            let found = opener.stored.registry.receiver(Route { group, from, to });
            found.map(|group| group.replica())
        };
        assert_eq!(receiver(REPLICA).ok(), Some(REPLICA));
        assert!(matches!(
            receiver(ReplicaId(6)),
            Err(Error::NotFound { .. })
        ));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_destruction_that_a_crash_has_cut_short_is_finished_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        opener.empty(REPLICA, descriptor()).await.unwrap();
        opener.finish_destructions().await.unwrap();
        let origin = Origin::Empty {
            descriptor: descriptor(),
        };
        let born = opener.born(REPLICA, origin.clone()).await.unwrap();
        assert!(born.is_some(), "one that lives is left alone");

        // The crash comes before the log says that it is gone.
        shard::destroy(&engine, &opener.stored.slots, REPLICA).unwrap();
        assert!(!opener.stored.wal.is_gone(REPLICA));
        opener.finish_destructions().await.unwrap();
        assert!(opener.stored.wal.is_gone(REPLICA));
        assert!(shard::destroyed(engine.as_ref()).unwrap().is_empty());
        assert!(opener.born(REPLICA, origin).await.unwrap().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replica_that_begins_with_nothing_has_no_vote_and_comes_back_with_its_row() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        let ready = opener.empty(REPLICA, descriptor()).await.unwrap();
        assert_eq!(ready.log.state(), Default::default());
        let known = opener.stored.wal.replicas();
        let origin = Origin::decode(REPLICA, &known[0].born).unwrap();
        assert!(
            opener
                .born(REPLICA, origin.clone())
                .await
                .unwrap()
                .is_some()
        );
        // Its row was lost: whoever sees that there is room makes it anew, with the same birth.
        let mut batch = crate::engine::Batch::default();
        batch.delete(crate::codec::layout::row(REPLICA));
        engine.write(batch).unwrap();
        assert!(opener.born(REPLICA, origin).await.unwrap().is_none());
        opener.empty(REPLICA, descriptor()).await.unwrap();
        assert_eq!(opener.stored.wal.replicas().len(), 1);
    }

    /// The first row of a child that was split off replica 1, as the parent writes it.
    fn split_off(engine: &Arc<dyn Engine>, opener: &Opener) {
        let begins = Applied {
            position: Some(SEED),
            ..Default::default()
        };
        shard::seed(
            engine,
            &opener.stored.slots,
            REPLICA,
            Seed::new(descriptor(), begins),
        )
        .unwrap();
        let place = crate::codec::layout::row(REPLICA);
        let mut row = shard::Row::decode(&engine.get(&place).unwrap().unwrap()).unwrap();
        row.birth = Some(Birth {
            parent: ShardId(9),
            replica: ReplicaId(1),
            position: SEED,
        });
        let mut batch = crate::engine::Batch::default();
        batch.put(place, row.encode());
        engine.write(batch).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_of_a_quarantined_replica_is_quarantined_and_one_of_a_whole_one_is_not() {
        for is_marked in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
            let opener = opener(directory.path(), &engine);
            if is_marked {
                let parent = Quarantined {
                    replica: ReplicaId(1),
                    shard: ShardId(9),
                };
                quarantine::mark(engine.as_ref(), parent).unwrap();
            }
            split_off(&engine, &opener);
            let child = opener.split_off(REPLICA).await.unwrap().unwrap();
            let Machine::Shard(machine) = child.machine else {
                panic!("it is a shard's");
            };
            assert_eq!(machine.reader().is_quarantined(), is_marked);
            let marks = quarantine::marked(engine.as_ref()).unwrap();
            let has_mark = marks.iter().any(|mark| mark.replica == REPLICA);
            assert_eq!(has_mark, is_marked);
        }
    }

    #[test]
    fn the_first_format_of_an_empty_origin_is_still_read_and_written() {
        let origin = Origin::Empty {
            descriptor: descriptor(),
        };
        let old = [1, 3, 1, 1, b'm', 0, 0, 0, 0];
        assert_eq!(*origin.encode(), old);
        let read = Origin::decode(REPLICA, &old).unwrap();
        assert!(matches!(read, Origin::Empty { descriptor: read } if read == descriptor()));
    }
}
