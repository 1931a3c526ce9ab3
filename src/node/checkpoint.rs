//! The one task that flushes the engine.
//!
//! Applying does not flush: what a crash takes from the engine is replayed from the log. So a log entry
//! may be purged only when a flush covers what it did. A checkpoint reads the position of every replica,
//! then flushes, and only then tells each group the position that it read. Whoever needs a flush of
//! his own (an installed snapshot) asks this task and waits.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::engine::Engine;
use crate::engine::EngineError;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskResult;
use crate::env::tasks::offload;
use crate::machine::Applied;
use crate::node::registry::Registry;
use crate::raft::Flush;
use crate::raft::Group;
use crate::telemetry::metrics;

/// Full: whoever asks waits.
const FLUSHES_WAITING_MAX: usize = 64;
/// How long a group's core may take to hear of a checkpoint. A core that is stuck behind a snapshot which
/// waits for the next flush must not keep that flush from beginning; it hears of the next checkpoint.
const TELL_MAX: Duration = Duration::from_secs(1);

type Asker = oneshot::Sender<()>;

/// Asks for flushes.
#[derive(Clone)]
pub struct Checkpoints {
    askers: mpsc::Sender<Asker>,
    last: watch::Sender<Instant>,
}

impl Checkpoints {
    /// The handle, and what the task takes its requests from.
    pub fn new() -> (Checkpoints, mpsc::Receiver<Asker>) {
        let (askers, waiting) = mpsc::channel(FLUSHES_WAITING_MAX);
        let last = watch::Sender::new(Instant::now());
        (Checkpoints { askers, last }, waiting)
    }

    /// How long ago the last checkpoint ended; before the first, how long ago the node started.
    pub fn age(&self) -> Duration {
        self.last.borrow().elapsed()
    }

    /// Returns when everything applied before the call survives a power cut; never, when the node is
    /// stopping or its engine has failed.
    pub fn as_flush(&self) -> Flush {
        let askers = self.askers.clone();
        Arc::new(move || {
            let askers = askers.clone();
            async move {
                let (asker, flushed) = oneshot::channel();
                if askers.send(asker).await.is_err() || flushed.await.is_err() {
                    futures::future::pending::<()>().await;
                }
            }
            .boxed()
        })
    }
}

/// What the task works on.
pub struct Checkpointer {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The replicas.
    pub registry: Arc<Registry>,
    /// Where it says that it has made one.
    pub checkpoints: Checkpoints,
    /// Time between two checkpoints that nobody asked for.
    pub interval: Duration,
}

impl Checkpointer {
    /// Runs until `stop`, never leaving a checkpoint half-way, or until the engine fails, which ends the
    /// node.
    pub async fn run(
        self,
        mut waiting: mpsc::Receiver<Asker>,
        stop: CancellationToken,
    ) -> TaskResult {
        let mut askers = Vec::new();
        loop {
            let asked = timeout(
                self.interval,
                waiting.recv_many(&mut askers, FLUSHES_WAITING_MAX),
            );
            match stop.run_until_cancelled(asked).await {
                None | Some(Ok(0)) => return Ok(()),
                Some(Ok(_) | Err(_)) => self.checkpoint(&mut askers).await?,
            }
        }
    }

    /// Flushes once, answers who asked, and tells every group what is covered.
    pub async fn checkpoint(&self, askers: &mut Vec<Asker>) -> Result<(), EngineError> {
        let began = Instant::now();
        let covered = self.flush().await?;
        for asker in askers.drain(..) {
            // Whoever has gone needs no answer.
            let _ = asker.send(());
        }
        metrics::checkpoint_done(began.elapsed());
        self.checkpoints.last.send_replace(Instant::now());
        for (group, applied) in covered {
            if timeout(TELL_MAX, group.checkpointed(applied))
                .await
                .is_err()
            {
                debug!(group = %group.id(), "busy, hears of the next checkpoint");
            }
        }
        Ok(())
    }

    /// Flushes, and gives what is certainly covered: what was applied before. What is applied during the flush
    /// may be or not.
    async fn flush(&self) -> Result<Vec<(Group, Applied)>, EngineError> {
        let mut covered = self.positions().await;
        let engine = Arc::clone(&self.engine);
        if !mutant::lives(Mutant::CheckpointWithoutFlush) {
            let busy = engine.busy();
            offload(move || engine.flush()).await?;
            if !busy.is_zero() {
                sleep(busy).await;
            }
        }
        if mutant::lives(Mutant::CheckpointReadLate) {
            covered = self.positions().await;
        }
        Ok(covered)
    }

    async fn positions(&self) -> Vec<(Group, Applied)> {
        let groups = self.registry.groups();
        offload(move || {
            let read = |group: Group| {
                let applied = group.machine_applied();
                (group, applied)
            };
            groups.into_iter().map(read).collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::runtime::Handle;
    use tokio::task::yield_now;

    use super::*;
    use crate::engine::Batch;
    use crate::engine::MemoryEngine;
    use crate::engine::Pair;
    use crate::env::clock::Clock;
    use crate::env::tasks::TaskSet;
    use crate::node::opener::tests::REPLICA;
    use crate::node::opener::tests::first_origin;
    use crate::node::opener::tests::first_shard;
    use crate::node::opener::tests::opener;
    use crate::node::replica::Replica;
    use crate::types::Key;
    use crate::types::RequestId;
    use crate::types::request::Operation;
    use crate::types::request::Write;
    use crate::types::request::WriteKind;

    type Work = Box<dyn FnOnce() + Send>;

    /// An engine with something to do when its flush has ended, and before that is known.
    #[derive(Default)]
    struct Engaged {
        engine: MemoryEngine,
        then: Mutex<Option<Work>>,
    }

    impl Engine for Engaged {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
            self.engine.get(key)
        }

        fn scan<'a>(
            &'a self,
            start: &[u8],
            end: &[u8],
            reverse: bool,
        ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + Send + 'a> {
            self.engine.scan(start, end, reverse)
        }

        fn write(&self, batch: Batch) -> Result<(), EngineError> {
            self.engine.write(batch)
        }

        fn flush(&self) -> Result<(), EngineError> {
            self.engine.flush()?;
            let then = self.then.lock().unwrap().take();
            then.into_iter().for_each(|work| work());
            Ok(())
        }
    }

    /// Writes as soon as the replica leads.
    async fn write(replica: &Replica) {
        let id = RequestId::new(Clock::system().wall_ms(), [1; 10]);
        let operations = vec![Operation::Delete {
            key: Key::from_static(b"k"),
        }];
        let kind = WriteKind::Keys {
            conditions: Vec::new(),
            operations,
        };
        let write = Write { id, kind };
        while replica.write(write.clone()).await.is_err() {
            yield_now().await;
        }
    }

    /// The log is purged behind what a checkpoint covers: what is lost from the engine must not be lost there.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_applied_during_a_flush_is_not_covered_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let engaged = Arc::new(Engaged::default());
        let engine: Arc<dyn Engine> = Arc::clone(&engaged) as _;
        let opener = opener(directory.path(), &engine);
        let origin = first_origin();
        opener
            .stored
            .wal
            .born(REPLICA, origin.encode())
            .await
            .unwrap();
        let ready = opener.born(REPLICA, origin).await.unwrap().unwrap();
        let mut tasks = TaskSet::new();
        opener.start(ready, None, &mut tasks).await.unwrap();
        let replica = opener.stored.registry.shard(first_shard().id).unwrap();
        let written = timeout(Duration::from_secs(10), write(&replica));
        written.await.unwrap();
        let before = replica.group().machine_applied();
        let (writing, here) = (replica.clone(), Handle::current());
        let work: Work = Box::new(move || here.block_on(write(&writing)));
        *engaged.then.lock().unwrap() = Some(work);
        let checkpointer = Checkpointer {
            engine,
            registry: Arc::clone(&opener.stored.registry),
            checkpoints: Checkpoints::new().0,
            interval: Duration::from_secs(3_600),
        };
        let covered = checkpointer.flush().await.unwrap();
        let covered: Vec<Applied> = covered.into_iter().map(|(_, applied)| applied).collect();
        assert!(replica.group().machine_applied().position > before.position);
        assert_eq!(covered, [before]);
    }
}
