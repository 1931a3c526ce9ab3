//! The one owner of which replicas run on this node: opens those that a split has seeded, and keeps the
//! tasks of each.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::env::tasks::TaskResult;
use crate::env::tasks::TaskSet;
use crate::node::opener::OpenError;
use crate::node::opener::Opener;
use crate::node::opener::Ready;
use crate::types::Position;
use crate::types::ReplicaId;

/// Splits whose children wait to be opened. Full: the replica that applies a split waits.
pub const SEEDED_WAITING_MAX: usize = 4_096;
/// Replicas that are opened side by side at a start: each waits for the disk in between.
const OPENING_MAX: usize = 32;
/// How long a task of a replica may take to stop.
const TASK_STOP_MAX: Duration = Duration::from_secs(5);

/// Keeps replicas.
pub struct Keeper {
    opener: Opener,
    /// The node watches the set that this one branched from.
    root: TaskSet,
    tasks: BTreeMap<ReplicaId, TaskSet>,
    seeded: mpsc::Receiver<Vec<ReplicaId>>,
}

impl Keeper {
    /// A keeper without replicas. `root` is a branch of the node's tasks; `seeded` brings the replicas that
    /// the machines have written the first row of.
    pub fn new(opener: Opener, root: TaskSet, seeded: mpsc::Receiver<Vec<ReplicaId>>) -> Keeper {
        Keeper {
            opener,
            root,
            tasks: BTreeMap::new(),
            seeded,
        }
    }

    /// Starts replicas side by side, and after them the children whose first row they have written while
    /// they caught up with what is known to be committed.
    pub async fn start_all(
        &mut self,
        ready: Vec<Ready>,
        committed: &BTreeMap<ReplicaId, Position>,
    ) -> Result<(), OpenError> {
        self.start_side_by_side(ready, committed).await?;
        while let Ok(seeded) = self.seeded.try_recv() {
            let mut children = Vec::new();
            for replica in seeded {
                children.extend(self.opener.split_off(replica).await?);
            }
            self.start_side_by_side(children, committed).await?;
        }
        Ok(())
    }

    async fn start_side_by_side(
        &mut self,
        ready: Vec<Ready>,
        committed: &BTreeMap<ReplicaId, Position>,
    ) -> Result<(), OpenError> {
        let (opener, root) = (&self.opener, &self.root);
        let starts = ready.into_iter().map(|ready| async move {
            let (replica, mut tasks) = (ready.replica, root.branch());
            let committed = committed.get(&replica).copied();
            opener.start(ready, committed, &mut tasks).await?;
            Ok::<_, OpenError>((replica, tasks))
        });
        let mut started = stream::iter(starts).buffer_unordered(OPENING_MAX);
        while let Some(started) = started.next().await {
            let (replica, tasks) = started?;
            self.tasks.insert(replica, tasks);
        }
        Ok(())
    }

    /// Runs until `stop`; then stops the tasks of all replicas, whose groups go on. An error ends the node.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        while let Some(Some(seeded)) = stop.run_until_cancelled(self.seeded.recv()).await {
            for replica in seeded {
                self.open_child(replica).await?;
            }
        }
        let stopped = self
            .tasks
            .into_values()
            .map(|tasks| tasks.stop(TASK_STOP_MAX));
        for stopped in futures::future::join_all(stopped).await {
            stopped?;
        }
        Ok(())
    }

    async fn open_child(&mut self, replica: ReplicaId) -> Result<(), OpenError> {
        let Some(ready) = self.opener.split_off(replica).await? else {
            return Ok(());
        };
        let mut tasks = self.root.branch();
        self.opener.start(ready, None, &mut tasks).await?;
        self.tasks.insert(replica, tasks);
        info!(%replica, "replica split off");
        Ok(())
    }
}
