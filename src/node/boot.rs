//! Opens a node's stores and its replicas.
//!
//! The first replicas begin as if they had been split off nothing: all with the same state at position
//! (1, 1). So there is no first leader to wait for, and none to lose.
//!
//! A log that does not know the replicas of a node which had its replicas before is a lost log: the node
//! could vote again in a term in which it has voted. It does not start, and says what to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::Engine;
use crate::engine::EngineError;
use crate::env::clock::Clock;
use crate::env::files::Files;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::env::tasks::spawn_on;
use crate::machine::MachineError;
use crate::machine::Membership;
use crate::node::beats;
use crate::node::bringer::Bringer;
use crate::node::checkpoint::Checkpointer;
use crate::node::checkpoint::Checkpoints;
use crate::node::checks::Checks;
use crate::node::collector;
use crate::node::formation::InitialLayout;
use crate::node::keeper::Keeper;
use crate::node::keeper::KeeperHandle;
use crate::node::keeper::NEWS_WAITING_MAX;
use crate::node::opener::OpenError;
use crate::node::opener::Opener;
use crate::node::opener::Origin;
use crate::node::opener::Ready;
use crate::node::opener::Stored;
use crate::node::registry::Registry;
use crate::placement::state::PlacementState;
use crate::raft;
use crate::raft::Fail;
use crate::shard;
use crate::shard::Slots;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::wal;
use crate::wal::Wal;
use crate::wal::WalError;
use crate::wal::Writer;
use crate::wire::request::Channel;
use crate::wire::request::CreateReplica;

/// Says that this node has had its first replicas.
pub(crate) const FOUNDED: &str = "founded";

/// Why the stores do not open.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The log.
    #[error("open the log: {0}")]
    Wal(#[from] WalError),
    /// The engine.
    #[error("flush the engine: {0}")]
    Engine(#[from] EngineError),
    /// What the replicas share in the engine.
    #[error("read the engine: {0}")]
    Machine(#[from] MachineError),
    /// A replica.
    #[error("{0}")]
    Replica(#[from] OpenError),
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
    /// The engine. Opened before the log: each opening of the log takes a segment, and an engine that cannot be
    /// opened must not cost one.
    pub engine: Arc<dyn Engine>,
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
    /// Who makes and destroys them.
    pub keeper: KeeperHandle,
    wal: Wal,
    engine: Arc<dyn Engine>,
    writer: wal::WriterHandle,
    /// For its age.
    pub checkpoints: Checkpoints,
    /// How fast the node sends snapshots.
    pub pace: Arc<raft::Pace>,
}

impl Stores {
    /// The log of all of them.
    pub fn wal(&self) -> Wal {
        self.wal.clone()
    }

    /// The engine under all of them.
    pub fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine)
    }
}

impl Boot {
    /// Opens everything; what runs is put into `tasks`. On an error nothing runs.
    pub async fn open(self, tasks: &mut TaskSet) -> Result<Stores, BootError> {
        let engine = Arc::clone(&self.engine);
        let (wal, writer) = self.open_wal().await?;
        let writer = writer.spawn(&wal)?;
        self.watch_wal(&wal, tasks);
        let slots = Slots::open(Arc::clone(&engine))?;
        self.bear(&wal).await?;
        let registry = Arc::new(Registry::default());
        let (checkpoints, waiting) = Checkpoints::new();
        let (told, news) = mpsc::channel(NEWS_WAITING_MAX);
        let pace = Arc::new(raft::Pace::default());
        let stored = Stored {
            wal: wal.clone(),
            engine: Arc::clone(&engine),
            slots,
            registry: Arc::clone(&registry),
        };
        let bringer = Bringer::new(
            stored.clone(),
            (checkpoints.as_flush(), Arc::clone(&self.fail)),
            told,
        );
        let opener = Opener {
            stored,
            channel: Arc::clone(&self.channel),
            clock: self.clock.clone(),
            flush: checkpoints.as_flush(),
            fail: Arc::clone(&self.fail),
            neighbours: bringer,
            pace: Arc::clone(&pace),
            raft: self.raft.clone(),
            consensus: self.consensus.clone(),
        };
        // What is read now may be in memory only, and the log is cut behind it.
        let flushed = Arc::clone(&engine);
        offload(move || flushed.flush()).await?;
        opener.finish_destructions().await?;
        let found = Found::on(&opener).await?;
        // First rows may have been written; a checkpoint may build on them.
        let flushed = Arc::clone(&engine);
        offload(move || flushed.flush()).await?;
        let stores = (&engine, &opener.stored.slots);
        self.start_tasks(&registry, stores, (&checkpoints, waiting), tasks);
        let (handle, orders) = KeeperHandle::new();
        let mut keeper = Keeper::new(opener, tasks.branch(), news, orders);
        keeper.start_all(found.ready, &found.committed).await?;
        for create in found.unmade {
            // Where there is no room its group's next message makes it.
            keeper.create(create).await?;
        }
        let is_lost = |id: &ReplicaId| !registry.is_open(*id) && !registry.is_out(*id);
        let lost = found.waiting.into_iter().find(is_lost);
        if let Some(replica) = lost {
            return Err(OpenError::ChildLost { replica }.into());
        }
        tasks.spawn("keeper", |stop| keeper.run(stop));
        Ok(Stores {
            registry,
            wal,
            engine,
            writer,
            keeper: handle,
            checkpoints,
            pace,
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
        for (replica, origin) in self.origins() {
            if wal.replicas().iter().any(|known| known.id == replica) {
                continue;
            }
            if had && !mutant::lives(Mutant::LostLogBegunAnew) {
                return Err(BootError::LogLost {
                    path: self.wal_directory.clone(),
                    replica,
                });
            }
            wal.born(replica, origin.encode()).await?;
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

    fn origins(&self) -> Vec<(ReplicaId, Origin)> {
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
                Origin::Placement {
                    state,
                    members: Membership::of(&layout.placement).encode(),
                },
            )
        });
        let shard = here(&layout.shard.replicas).map(|id| {
            let members = Membership::of(&layout.shard.replicas).encode();
            (
                id,
                Origin::Shard {
                    descriptor: layout.shard.clone(),
                    members,
                },
            )
        });
        placement.into_iter().chain(shard).collect()
    }

    fn start_tasks(
        &self,
        registry: &Arc<Registry>,
        (engine, slots): (&Arc<dyn Engine>, &Arc<Slots>),
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
        let (collected, slots) = (Arc::clone(registry), Arc::clone(slots));
        tasks.spawn("collector", |stop| collector::run(collected, slots, stop));
        let (beating, every) = (Arc::clone(registry), self.raft.heartbeat);
        let consensus = self.consensus.clone();
        tasks.spawn("heartbeats", |stop| async move {
            // Beside the groups: where requests are served they may wait for a turn.
            let beats = spawn_on(&consensus, beats::run(beating, every, stop));
            AbortOnDropHandle::new(beats).await?
        });
    }
}

/// The replicas that the log and the engine know of at a start.
struct Found {
    ready: Vec<Ready>,
    /// Born, but their parent has to write their first row again.
    waiting: Vec<ReplicaId>,
    /// Born with nothing, and without the row that says so.
    unmade: Vec<CreateReplica>,
    /// How far their parents' logs are known to be committed, because of that.
    committed: BTreeMap<ReplicaId, Position>,
}

impl Found {
    async fn on(opener: &Opener) -> Result<Found, BootError> {
        let mut found = Found {
            ready: Vec::new(),
            waiting: Vec::new(),
            unmade: Vec::new(),
            committed: BTreeMap::new(),
        };
        for known in opener.stored.wal.replicas() {
            if opener.stored.wal.is_gone(known.id) {
                continue;
            }
            let origin = Origin::decode(known.id, &known.born)?;
            match opener.born(known.id, origin.clone()).await? {
                Some(ready) => found.ready.push(ready),
                None => found.add_rowless(known.id, origin),
            }
        }
        found.add_unborn(opener).await?;
        Ok(found)
    }

    fn add_rowless(&mut self, replica: ReplicaId, origin: Origin) {
        match origin {
            Origin::Split(_) if mutant::lives(Mutant::RowlessForgotten) => {}
            Origin::Split(birth) => {
                self.waiting.push(replica);
                let known = self.committed.entry(birth.replica).or_default();
                *known = (*known).max(birth.position);
            }
            Origin::Empty { descriptor } => self.unmade.push(CreateReplica {
                descriptor,
                replica,
            }),
            Origin::Placement { .. } | Origin::Shard { .. } | Origin::EmptyPlacement => {
                unreachable!("their rows are written when they are looked for")
            }
        }
    }

    /// Children whose first row was flushed and whose birth was not logged.
    async fn add_unborn(&mut self, opener: &Opener) -> Result<(), BootError> {
        let engine = Arc::clone(&opener.stored.engine);
        for replica in offload(move || shard::replicas(engine.as_ref())).await? {
            if opener.stored.wal.log(replica).is_none() && !mutant::lives(Mutant::UnbornForgotten) {
                self.ready.extend(opener.split_off(replica).await?);
            }
        }
        Ok(())
    }
}

impl Stores {
    /// What answers questions about the state of the replicas here.
    pub fn checks(&self) -> Checks {
        Checks::new(
            Arc::clone(&self.registry),
            Arc::clone(&self.engine),
            self.checkpoints.as_flush(),
        )
    }

    /// Stops every replica, flushes the engine and closes the log. The tasks of the replicas have been
    /// stopped before.
    pub async fn close(self) -> Result<(), BootError> {
        for group in self.registry.groups() {
            group.stop().await;
        }
        self.registry.clear();
        let engine = Arc::clone(&self.engine);
        offload(move || engine.flush()).await?;
        drop(self.wal);
        Ok(self.writer.stop().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::layout;
    use crate::engine::Batch;
    use crate::engine::MemoryEngine;
    use crate::env::files::DiskFiles;
    use crate::node::opener::tests::CHILD;
    use crate::node::opener::tests::Nobody;
    use crate::node::opener::tests::REPLICA;
    use crate::node::opener::tests::first_shard;
    use crate::node::opener::tests::opener;
    use crate::node::opener::tests::split;

    fn ids(ready: &[Ready]) -> Vec<ReplicaId> {
        ready.iter().map(|ready| ready.replica).collect()
    }

    /// A crash comes when the split is applied and the child is not born: its parent does not write the row a
    /// second time.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_that_was_not_born_before_the_crash_is_found_by_its_row() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        split(&opener).await;
        assert!(opener.stored.wal.log(CHILD).is_none());
        let found = Found::on(&opener).await.unwrap();
        assert_eq!(ids(&found.ready), [REPLICA, CHILD]);
        assert!(opener.stored.wal.log(CHILD).is_some());
    }

    /// A crash takes the row of a child that was born: its parent applies the split again, which the birth
    /// proves committed, before a snapshot could step over it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_with_a_log_and_without_a_row_waits_for_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let opener = opener(directory.path(), &engine);
        let position = split(&opener).await;
        opener.split_off(CHILD).await.unwrap().unwrap();
        let mut batch = Batch::default();
        batch.delete(layout::row(CHILD));
        engine.write(batch).unwrap();
        let found = Found::on(&opener).await.unwrap();
        assert_eq!(ids(&found.ready), [REPLICA]);
        assert_eq!(found.waiting, [CHILD]);
        assert_eq!(found.committed, BTreeMap::from([(REPLICA, position)]));
        assert!(found.unmade.is_empty());
    }

    async fn start(
        directory: &std::path::Path,
        engine: &Arc<dyn Engine>,
        tasks: &mut TaskSet,
    ) -> Result<Stores, BootError> {
        let boot = Boot {
            node: NodeId(1),
            layout: InitialLayout {
                members: Vec::new(),
                placement: Vec::new(),
                shard: first_shard(),
                next_id: 100,
            },
            directory: directory.to_path_buf(),
            wal_directory: directory.join("log"),
            engine: Arc::clone(engine),
            checkpoint_interval: Duration::from_secs(3_600),
            files: Arc::new(DiskFiles),
            clock: Clock::system(),
            channel: Arc::new(Nobody),
            wal: wal::Options {
                segment_bytes: wal::SEGMENT_BYTES_MIN,
                ..wal::Options::default()
            },
            raft: raft::Options::default(),
            consensus: Handle::current(),
            fail: Arc::new(|why| panic!("{why}")),
        };
        boot.open(tasks).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_has_lost_its_log_does_not_start() {
        let directory = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        for _ in 0..2 {
            let mut tasks = TaskSet::new();
            let stores = start(directory.path(), &engine, &mut tasks).await.unwrap();
            tasks.stop(Duration::from_secs(10)).await.unwrap();
            stores.close().await.unwrap();
        }
        std::fs::remove_dir_all(directory.path().join("log")).unwrap();
        let mut tasks = TaskSet::new();
        let started = start(directory.path(), &engine, &mut tasks).await;
        assert!(matches!(
            started,
            Err(BootError::LogLost {
                replica: REPLICA,
                ..
            })
        ));
    }
}
