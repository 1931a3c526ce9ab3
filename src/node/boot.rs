//! Opens a node's stores and its replicas.
//!
//! Every replica is **born** in the log before anything else is written for it: the record says what it
//! begins with, so that a crash before its first row in the engine is made good here. A birth is for
//! ever; an id that was ever born here is never born again.
//!
//! The first replicas begin as if they had been split off nothing: all with the same state at position
//! (1, 1). So there is no first leader to wait for, and none to lose.
//!
//! A log that does not know the replicas of a node which had its replicas before is a lost log: the node
//! could vote again in a term in which it has voted. It does not start, and says what to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::codec::value;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::sled;
use crate::engine::sled::SledEngine;
use crate::env::clock::Clock;
use crate::env::files::Files;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Membership;
use crate::machine::StateMachine;
use crate::node::checkpoint::Checkpointer;
use crate::node::checkpoint::Checkpoints;
use crate::node::collector;
use crate::node::formation::InitialLayout;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::placement::PlacementReader;
use crate::placement::machine as placement;
use crate::placement::machine::PlacementMachine;
use crate::placement::state::PlacementState;
use crate::raft;
use crate::raft::Fail;
use crate::raft::Group;
use crate::raft::Opening;
use crate::shard;
use crate::shard::Gone;
use crate::shard::Seed;
use crate::shard::ShardMachine;
use crate::shard::ShardReader;
use crate::shard::Slots;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::Vote;
use crate::types::shard::ShardDescriptor;
use crate::wal;
use crate::wal::ReplicaLog;
use crate::wal::Wal;
use crate::wal::WalError;
use crate::wal::Writer;
use crate::wire::request::Channel;

/// Where the first replicas stand before their first entry.
const SEED: Position = Position { term: 1, index: 1 };
/// Says that this node has had its first replicas.
const FOUNDED: &str = "founded";

/// Why the stores do not open.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The log.
    #[error("open the log: {0}")]
    Wal(#[from] WalError),
    /// The engine.
    #[error("{0}")]
    Open(#[from] sled::OpenError),
    /// The engine, once open.
    #[error("flush the engine: {0}")]
    Engine(#[from] EngineError),
    /// A replica's stored state.
    #[error("open a replica: {0}")]
    Machine(#[from] MachineError),
    /// A group.
    #[error("open a group: {0}")]
    Group(#[from] Error),
    /// A file.
    #[error("{what}: {error}")]
    Files {
        /// What was done.
        what: String,
        /// Why it failed.
        error: std::io::Error,
    },
    /// The node has voted and cannot know how.
    #[error(
        "the log in {} does not know {replica}, which this node has had: the log was lost, and the node must not \
         vote again. Restore it as a new node: move the data directory away and start with --join", path.display()
    )]
    LogLost {
        /// The log's directory.
        path: PathBuf,
        /// The replica.
        replica: ReplicaId,
    },
    /// The engine has lost what the log no longer holds.
    #[error(
        "the engine in {} has {replica} at entry {applied}, and the log is purged up to {purged}: the engine was lost. \
         Restore the node as a new one: move the data directory away and start with --join", path.display()
    )]
    EngineLost {
        /// The engine's directory.
        path: PathBuf,
        /// The replica.
        replica: ReplicaId,
        /// The last entry that the engine has applied.
        applied: u64,
        /// The last entry that the log has given up.
        purged: u64,
    },
    /// A record of a birth that this program does not understand.
    #[error("read the birth of {replica}: {reason}")]
    Birth {
        /// The replica.
        replica: ReplicaId,
        /// Why.
        reason: String,
    },
}

/// The first byte of a birth.
const BIRTH_FORMAT: u8 = 1;

/// What a replica begins with; kept in the log for as long as the replica lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Birth {
    /// One of the first replicas of the placement group.
    Placement {
        state: PlacementState,
        members: bytes::Bytes,
    },
    /// One of the first replicas of the first shard.
    Shard {
        descriptor: ShardDescriptor,
        members: bytes::Bytes,
    },
}

/// What the stores are opened with.
pub struct Boot {
    /// This node.
    pub node: NodeId,
    /// What the cluster began with.
    pub layout: InitialLayout,
    /// The data directory.
    pub directory: PathBuf,
    /// Where the log lives.
    pub wal_directory: PathBuf,
    /// Where the engine lives.
    pub engine_directory: PathBuf,
    /// Memory for the engine's cache, in bytes.
    pub cache_bytes: u64,
    /// Time between two checkpoints.
    pub checkpoint_interval: Duration,
    /// The disk.
    pub files: Arc<dyn Files>,
    /// Wall time.
    pub clock: Clock,
    /// The way to other nodes.
    pub channel: Arc<dyn Channel>,
    /// The log's settings.
    pub wal: wal::Options,
    /// The groups' settings.
    pub raft: raft::Options,
    /// Where the groups' tasks run, away from everything that may block.
    pub consensus: Handle,
    /// Ends the process.
    pub fail: Fail,
}

/// Open stores with running replicas.
pub struct Stores {
    /// The replicas.
    pub registry: Arc<Registry>,
    wal: Wal,
    engine: Arc<dyn Engine>,
    writer: wal::WriterHandle,
    /// For its age.
    pub checkpoints: Checkpoints,
}

impl Boot {
    /// Opens everything; what runs is put into `tasks`. On an error nothing runs.
    pub async fn open(self, tasks: &mut TaskSet) -> Result<Stores, BootError> {
        // Each opening of the log takes a segment; an engine that cannot be opened must not cost one.
        let engine = self.open_engine().await?;
        let (wal, writer) = self.open_wal().await?;
        let writer = writer.spawn(&wal)?;
        self.watch_wal(&wal, tasks);
        let slots = Slots::open(Arc::clone(&engine))?;
        self.bear(&wal).await?;
        let replicas = self.open_machines(&wal, &engine, &slots).await?;
        // What is read now may be in memory only; a checkpoint may build on it, so it is flushed first.
        let flushed = Arc::clone(&engine);
        offload(move || flushed.flush()).await?;

        let registry = Arc::new(Registry::default());
        let (checkpoints, waiting) = Checkpoints::new();
        self.start_tasks(&registry, &engine, (&checkpoints, waiting), tasks);
        for opened in replicas {
            self.start_replica(opened, &registry, &checkpoints, tasks)
                .await?;
        }
        Ok(Stores {
            registry,
            wal,
            engine,
            writer,
            checkpoints,
        })
    }

    async fn open_wal(&self) -> Result<(Wal, Writer), BootError> {
        let files = Arc::clone(&self.files);
        let (directory, options) = (self.wal_directory.clone(), self.wal.clone());
        Ok(offload(move || Wal::open(files, &directory, options)).await?)
    }

    /// A failed write or sync is final: whoever waits for it is told nothing, and the node ends.
    fn watch_wal(&self, wal: &Wal, tasks: &mut TaskSet) {
        let (wal, fail) = (wal.clone(), Arc::clone(&self.fail));
        tasks.spawn("log", |stop| async move {
            if let Some(why) = stop.run_until_cancelled(wal.failed()).await {
                fail(format!("the log failed: {why}"));
            }
            Ok(())
        });
    }

    async fn open_engine(&self) -> Result<Arc<dyn Engine>, BootError> {
        let directory = self.engine_directory.clone();
        let options = sled::Options {
            cache_bytes: self.cache_bytes,
        };
        let engine = offload(move || SledEngine::open(&directory, &options)).await?;
        Ok(Arc::new(engine))
    }

    /// At the first start, gives the node its first replicas.
    async fn bear(&self, wal: &Wal) -> Result<(), BootError> {
        let founded = self.directory.join(FOUNDED);
        let failed = |what: &str, error| BootError::Files {
            what: what.to_string(),
            error,
        };
        let had = self
            .files
            .read(&founded)
            .map_err(|error| failed("read the founding mark", error))?
            .is_some();
        for (replica, birth) in self.births() {
            if wal.replicas().iter().any(|known| known.id == replica) {
                continue;
            }
            if had {
                return Err(BootError::LogLost {
                    path: self.wal_directory.clone(),
                    replica,
                });
            }
            wal.born(replica, value::encode(BIRTH_FORMAT, &birth).into())
                .await?;
        }
        match had {
            true => Ok(()),
            false => self
                .files
                .write_atomically(
                    &founded,
                    b"the first replicas of this node are in its log\n",
                )
                .map_err(|error| failed("write the founding mark", error)),
        }
    }

    fn births(&self) -> Vec<(ReplicaId, Birth)> {
        let layout = &self.layout;
        let here = |replicas: &[crate::types::shard::Replica]| {
            replicas
                .iter()
                .find(|replica| replica.node == self.node)
                .map(|replica| replica.id)
        };
        let placement = here(&layout.placement).map(|id| {
            let state = PlacementState::formed(
                layout.members.clone(),
                vec![layout.shard.clone()],
                layout.next_id,
            );
            (
                id,
                Birth::Placement {
                    state,
                    members: Membership::of(&layout.placement).encode(),
                },
            )
        });
        let shard = here(&layout.shard.replicas).map(|id| {
            let members = Membership::of(&layout.shard.replicas).encode();
            (
                id,
                Birth::Shard {
                    descriptor: layout.shard.clone(),
                    members,
                },
            )
        });
        placement.into_iter().chain(shard).collect()
    }

    async fn open_machines(
        &self,
        wal: &Wal,
        engine: &Arc<dyn Engine>,
        slots: &Arc<Slots>,
    ) -> Result<Vec<Opened>, BootError> {
        let mut opened = Vec::new();
        for known in wal.replicas() {
            let Some(log) = wal.log(known.id) else {
                continue;
            };
            let birth: Birth =
                value::decode("a birth", BIRTH_FORMAT, &known.born).map_err(|error| {
                    BootError::Birth {
                        replica: known.id,
                        reason: error.to_string(),
                    }
                })?;
            let (engine, slots) = (Arc::clone(engine), Arc::clone(slots));
            let gone = gone_in(wal);
            let machine = offload(move || birth.open(engine, slots, gone, known.id)).await?;
            self.check_reach(&log, &machine)?;
            self.cut_behind_snapshot(&log, &machine).await?;
            if log.state().vote.is_none() {
                // The seed stands in term 1; without a vote in it the replica would vote there again.
                let vote = Vote {
                    term: SEED.term,
                    replica: known.id,
                    committed: false,
                };
                log.save_vote(vote)
                    .await
                    .map_err(|error| BootError::Files {
                        what: "log the first vote".to_string(),
                        error,
                    })?;
            }
            opened.push(Opened {
                replica: known.id,
                log,
                machine,
            });
        }
        Ok(opened)
    }

    /// The log must go on where the engine ends: a hole between them was never applied here.
    fn check_reach(&self, log: &ReplicaLog, machine: &Machine) -> Result<(), BootError> {
        let applied = machine
            .as_state_machine()
            .applied()
            .position
            .map_or(0, |at| at.index);
        let purged = log.state().purged.map_or(0, |purged| purged.index);
        match purged <= applied {
            true => Ok(()),
            false => Err(BootError::EngineLost {
                path: self.engine_directory.clone(),
                replica: log.id(),
                applied,
                purged,
            }),
        }
    }

    /// A crash between a snapshot's installation and the purge behind it leaves entries below the snapshot;
    /// what is appended next would not follow them.
    async fn cut_behind_snapshot(
        &self,
        log: &ReplicaLog,
        machine: &Machine,
    ) -> Result<(), BootError> {
        let applied = machine.as_state_machine().applied().position;
        let ends = log.state().last.map(|last| last.index);
        match applied {
            Some(applied) if ends.is_some_and(|ends| ends < applied.index) => {
                let purged = log.purge(applied).await;
                purged.map_err(|error| BootError::Files {
                    what: "purge the log behind a snapshot".to_string(),
                    error,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn start_tasks(
        &self,
        registry: &Arc<Registry>,
        engine: &Arc<dyn Engine>,
        (checkpoints, waiting): (&Checkpoints, mpsc::Receiver<oneshot::Sender<()>>),
        tasks: &mut TaskSet,
    ) {
        let checkpointer = Checkpointer {
            engine: Arc::clone(engine),
            registry: Arc::clone(registry),
            checkpoints: checkpoints.clone(),
            interval: self.checkpoint_interval,
        };
        tasks.spawn("checkpoint", |stop| checkpointer.run(waiting, stop));
        let collected = Arc::clone(registry);
        tasks.spawn("collector", |stop| collector::run(collected, stop));
    }

    async fn start_replica(
        &self,
        opened: Opened,
        registry: &Registry,
        checkpoints: &Checkpoints,
        tasks: &mut TaskSet,
    ) -> Result<(), BootError> {
        let (group, machine, reader): (_, Box<dyn StateMachine>, _) = match opened.machine {
            Machine::Placement(machine) => {
                let reader = Reader::Placement(machine.reader());
                (GroupId::Placement, Box::new(machine), reader)
            }
            Machine::Shard(machine) => {
                let reader = machine.reader();
                let group = GroupId::Shard(reader.row().descriptor.id);
                (group, Box::new(machine), Reader::Shard(reader))
            }
        };
        let opening = Opening {
            group,
            replica: opened.replica,
            log: opened.log,
            machine,
            channel: Arc::clone(&self.channel),
            flush: checkpoints.as_flush(),
            fail: Arc::clone(&self.fail),
            options: self.raft.clone(),
        };
        let started = self.consensus.spawn(Group::open(opening)).await;
        let group =
            started.map_err(|error| Error::Internal(format!("open {group}: {error}")))??;
        match reader {
            Reader::Placement(reader) => registry.add_placement(group, reader),
            Reader::Shard(reader) => self.start_shard(group, reader, registry, tasks),
        }
        Ok(())
    }

    fn start_shard(
        &self,
        group: Group,
        reader: ShardReader,
        registry: &Registry,
        tasks: &mut TaskSet,
    ) {
        let shard = reader.row().descriptor.id;
        let replica = Replica::start(
            group,
            reader,
            self.clock.clone(),
            Arc::clone(&self.channel),
            tasks,
        );
        registry.add_shard(shard, replica);
    }
}

/// What a machine asks before it seeds a replica.
fn gone_in(wal: &Wal) -> Gone {
    let wal = wal.clone();
    Arc::new(move |replica| wal.is_gone(replica))
}

struct Opened {
    replica: ReplicaId,
    log: ReplicaLog,
    machine: Machine,
}

enum Machine {
    Placement(PlacementMachine),
    Shard(ShardMachine),
}

enum Reader {
    Placement(PlacementReader),
    Shard(ShardReader),
}

impl Machine {
    fn as_state_machine(&self) -> &dyn StateMachine {
        match self {
            Machine::Placement(machine) => machine,
            Machine::Shard(machine) => machine,
        }
    }
}

impl Birth {
    /// Opens the replica's state, or begins it when the crash that ended the last start came before its
    /// first row. Blocks.
    fn open(
        self,
        engine: Arc<dyn Engine>,
        slots: Arc<Slots>,
        gone: Gone,
        replica: ReplicaId,
    ) -> Result<Machine, MachineError> {
        let begins = |membership| Applied {
            position: Some(SEED),
            membership_position: Some(SEED),
            membership,
        };
        let missing = || MachineError(format!("{replica} has no row right after it was written"));
        match self {
            Birth::Placement { state, members } => {
                placement::seed(engine.as_ref(), replica, state, begins(members))?;
                PlacementMachine::open(engine, replica)?
                    .map(Machine::Placement)
                    .ok_or_else(missing)
            }
            Birth::Shard {
                descriptor,
                members,
            } => {
                // Its windows are the same on every node, or replicas would part ways.
                let seed = Seed::new(descriptor, begins(members));
                shard::seed(&engine, &slots, replica, seed)?;
                ShardMachine::open(engine, slots, replica, gone)?
                    .map(Machine::Shard)
                    .ok_or_else(missing)
            }
        }
    }
}

impl Stores {
    /// Stops every replica, flushes the engine and closes the log. The tasks of the replicas have been
    /// stopped before.
    pub async fn close(self) -> Result<(), BootError> {
        for group in self.registry.groups() {
            group.stop().await;
        }
        let engine = Arc::clone(&self.engine);
        offload(move || engine.flush()).await?;
        drop(self.wal);
        Ok(self.writer.stop().await?)
    }
}
