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
        let mut covered = self.positions().await;
        let engine = Arc::clone(&self.engine);
        if !mutant::lives(Mutant::CheckpointWithoutFlush) {
            offload(move || engine.flush()).await?;
        }
        if mutant::lives(Mutant::CheckpointReadLate) {
            covered = self.positions().await;
        }
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
