//! The one owner of which replicas run on this node: opens those that a split has seeded, makes and
//! destroys others as it is told to, and keeps the tasks of each.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskResult;
use crate::env::tasks::TaskSet;
use crate::error::Error;
use crate::error::Result;
use crate::node::opener::OpenError;
use crate::node::opener::Opener;
use crate::node::opener::Ready;
use crate::types::GroupId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::wire::request::CreateReplica;
use crate::wire::request::Creation;

/// Splits and merges whose children and ended replicas wait for the keeper. Full: the replica that applies one
/// waits.
pub const NEWS_WAITING_MAX: usize = 4_096;
/// Replicas that are opened side by side at a start: each waits for the disk in between.
const OPENING_MAX: usize = 32;
/// How long a task of a replica may take to stop.
const TASK_STOP_MAX: Duration = Duration::from_secs(5);

/// Orders that wait. Full: whoever gives one waits.
const ORDERS_WAITING_MAX: usize = 64;

/// Gives orders to the node's keeper. Cloning shares it.
#[derive(Clone)]
pub struct KeeperHandle {
    orders: mpsc::Sender<Order>,
}

/// What a keeper is told to do.
pub struct Order {
    what: What,
    done: oneshot::Sender<Creation>,
}

/// What the machines of this node have done to others.
pub enum News {
    /// These have their first row.
    Seeded(Vec<ReplicaId>),
    /// These have no row any more, as of a batch that may not be flushed yet.
    Ended(Vec<ReplicaId>),
}

enum What {
    Create(CreateReplica),
    Destroy(ReplicaId),
}

impl KeeperHandle {
    /// The handle, and what the keeper takes its orders from.
    pub fn new() -> (KeeperHandle, mpsc::Receiver<Order>) {
        let (orders, waiting) = mpsc::channel(ORDERS_WAITING_MAX);
        (KeeperHandle { orders }, waiting)
    }

    /// Makes a replica that begins with nothing, unless it is there. Cancel-safe: a dropped call may have
    /// made it. An error only when the node is stopping.
    pub async fn create(&self, create: CreateReplica) -> Result<Creation> {
        self.order(What::Create(create)).await
    }

    /// Destroys a replica, if it is there. The caller knows that it has left its group for
    /// ever. Cancel-safe: a dropped call goes on. An error only when the node is stopping.
    pub async fn destroy(&self, replica: ReplicaId) -> Result<()> {
        self.order(What::Destroy(replica)).await.map(drop)
    }

    async fn order(&self, what: What) -> Result<Creation> {
        let stopping = || Error::unavailable("the node", "it is stopping");
        let (done, answer) = oneshot::channel();
        let sent = self.orders.send(Order { what, done }).await;
        sent.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

/// Keeps replicas.
pub struct Keeper {
    opener: Opener,
    /// The node watches the set that this one branched from.
    root: TaskSet,
    tasks: BTreeMap<ReplicaId, TaskSet>,
    news: mpsc::Receiver<News>,
    orders: mpsc::Receiver<Order>,
}

impl Keeper {
    /// A keeper without replicas. `root` is a branch of the node's tasks.
    pub fn new(
        opener: Opener,
        root: TaskSet,
        news: mpsc::Receiver<News>,
        orders: mpsc::Receiver<Order>,
    ) -> Keeper {
        Keeper {
            opener,
            root,
            tasks: BTreeMap::new(),
            news,
            orders,
        }
    }

    /// Starts replicas side by side, and after them the children whose first row they have written while
    /// they caught up with what is known to be committed.
    pub async fn start_all(
        &mut self,
        ready: Vec<Ready>,
        committed: &BTreeMap<ReplicaId, Position>,
    ) -> Result<(), OpenError> {
        let is_proven = |ready: &Ready| committed.contains_key(&ready.replica);
        let (proven, others): (Vec<_>, Vec<_>) = ready.into_iter().partition(is_proven);
        // Each may have to wait for what any other of these does.
        let all = proven.len().max(1);
        self.start_side_by_side(proven, committed, all).await?;
        // Their children come first: what another replica gets as a snapshot may end them, and must find them.
        self.start_children(committed).await?;
        self.start_side_by_side(others, committed, OPENING_MAX)
            .await?;
        self.start_children(committed).await
    }

    async fn start_children(
        &mut self,
        committed: &BTreeMap<ReplicaId, Position>,
    ) -> Result<(), OpenError> {
        while let Ok(news) = self.news.try_recv() {
            let seeded = match news {
                News::Seeded(seeded) => seeded,
                News::Ended(ended) => {
                    self.bury(ended).await?;
                    continue;
                }
            };
            let mut children = Vec::new();
            for replica in seeded {
                children.extend(self.opener.split_off(replica).await?);
            }
            self.start_side_by_side(children, committed, OPENING_MAX)
                .await?;
        }
        Ok(())
    }

    async fn start_side_by_side(
        &mut self,
        ready: Vec<Ready>,
        committed: &BTreeMap<ReplicaId, Position>,
        at_once_max: usize,
    ) -> Result<(), OpenError> {
        let (opener, root) = (&self.opener, &self.root);
        let starts = ready.into_iter().map(|ready| async move {
            let (replica, mut tasks) = (ready.replica, root.branch());
            let committed = committed.get(&replica).copied();
            opener.start(ready, committed, &mut tasks).await?;
            Ok::<_, OpenError>((replica, tasks))
        });
        let mut started = stream::iter(starts).buffer_unordered(at_once_max);
        while let Some(started) = started.next().await {
            let (replica, tasks) = started?;
            self.tasks.insert(replica, tasks);
        }
        Ok(())
    }

    /// Runs until `stop`; then stops the tasks of all replicas, whose groups go on. An error ends the node.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        loop {
            // Receiving is cancel-safe; what is done with what came is not dropped half-way.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(news) = self.news.recv() => self.hear(news).await?,
                Some(order) = self.orders.recv() => self.follow(order).await?,
                else => break,
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

    async fn hear(&mut self, news: News) -> TaskResult {
        match news {
            News::Seeded(seeded) => {
                for replica in seeded {
                    self.open_child(replica).await?;
                }
            }
            News::Ended(ended) => self.bury(ended).await?,
        }
        Ok(())
    }

    async fn follow(&mut self, order: Order) -> TaskResult {
        let outcome = match order.what {
            What::Create(create) => self.create(create).await?,
            What::Destroy(replica) => {
                self.destroy(replica).await?;
                Creation::Gone
            }
        };
        // Whoever has gone needs no answer.
        let _ = order.done.send(outcome);
        Ok(())
    }

    /// Makes a replica that begins with nothing, if there is room for it.
    pub async fn create(&mut self, create: CreateReplica) -> Result<Creation, OpenError> {
        let CreateReplica {
            descriptor,
            replica,
        } = create;
        let (registry, wal) = (&self.opener.stored.registry, &self.opener.stored.wal);
        if wal.is_gone(replica) || registry.is_out(replica) {
            return Ok(Creation::Gone);
        }
        // Its parent may have written its first row, and it only was not opened yet.
        if registry.is_open(replica) || self.open_child(replica).await? {
            return Ok(Creation::Open);
        }
        if descriptor.id == ShardId::PLACEMENT {
            return self.create_placement(replica).await;
        }
        let registry = &self.opener.stored.registry;
        let waits = |_: &ReplicaId| !mutant::lives(Mutant::NoRoomAwaited);
        if let Some(other) = registry.overlapping(&descriptor.range).filter(waits) {
            debug!(%replica, shard = %descriptor.id, %other, "no room for the replica yet");
            return Ok(Creation::NotYet);
        }
        // A child has its row before anybody here has heard of it.
        let holder = self.opener.holder(&descriptor.range).await?;
        if let Some(other) = holder.filter(waits) {
            debug!(%replica, shard = %descriptor.id, %other, "no room for the replica yet");
            return Ok(Creation::NotYet);
        }
        let shard = descriptor.id;
        let ready = self.opener.empty(replica, descriptor).await?;
        self.start(replica, ready).await?;
        info!(%replica, %shard, "replica made");
        Ok(Creation::Open)
    }

    /// An earlier replica of placement here is in the way until it has heard that it has left.
    async fn create_placement(&mut self, replica: ReplicaId) -> Result<Creation, OpenError> {
        if let Ok(other) = self.opener.stored.registry.group(GroupId::Placement) {
            debug!(%replica, other = %other.replica(), "no room for the replica of placement yet");
            return Ok(Creation::NotYet);
        }
        let ready = self.opener.empty_placement(replica).await?;
        self.start(replica, ready).await?;
        info!(%replica, "replica of placement made");
        Ok(Creation::Open)
    }

    /// Nothing finds the replica before its tasks end, and nothing of it runs when its row goes.
    async fn destroy(&mut self, replica: ReplicaId) -> TaskResult {
        let Some(group) = self.opener.stored.registry.take_out(replica).await else {
            return Ok(());
        };
        self.end_tasks(replica).await?;
        group.end().await;
        self.opener.destroy(group.id(), replica).await?;
        info!(%replica, group = %group.id(), "replica destroyed");
        Ok(())
    }

    /// What is left of replicas that were absorbed goes: their tasks, and their logs behind a flush of the row
    /// that has their keys.
    async fn bury(&mut self, ended: Vec<ReplicaId>) -> Result<(), OpenError> {
        for replica in &ended {
            self.end_tasks(*replica).await?;
        }
        self.opener.end_all(&ended).await?;
        info!(replicas = %list(&ended), "replicas absorbed");
        Ok(())
    }

    async fn end_tasks(&mut self, replica: ReplicaId) -> Result<(), OpenError> {
        let Some(tasks) = self.tasks.remove(&replica) else {
            return Ok(());
        };
        let stopped = tasks.stop(TASK_STOP_MAX).await;
        stopped.map_err(|error| Error::Internal(error.to_string()).into())
    }

    /// Whether there was such a child.
    async fn open_child(&mut self, replica: ReplicaId) -> Result<bool, OpenError> {
        let Some(ready) = self.opener.split_off(replica).await? else {
            return Ok(false);
        };
        self.start(replica, ready).await?;
        info!(%replica, "replica split off");
        Ok(true)
    }

    async fn start(&mut self, replica: ReplicaId, ready: Ready) -> Result<(), OpenError> {
        let mut tasks = self.root.branch();
        self.opener.start(ready, None, &mut tasks).await?;
        self.tasks.insert(replica, tasks);
        Ok(())
    }
}

fn list(replicas: &[ReplicaId]) -> String {
    let names: Vec<String> = replicas.iter().map(ReplicaId::to_string).collect();
    names.join(", ")
}
