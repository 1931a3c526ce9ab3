//! Ends replicas whose keys a neighbour absorbs, and brings them to where it absorbs them.
//!
//! A shard absorbs its right neighbour as that one stands at its freeze. On a node that is the state of the
//! neighbour's replica there, which may have come less far: its log has the rest, synced, before anybody proposes to
//! absorb it. So what is done here needs nobody but this node. The replica is taken out of the registry for good,
//! its group ends, and what it lacks is applied from its log; that may be an entry that absorbs a further shard, or
//! splits one off. Whoever waits here waits for what was done before, so nobody waits for each other.
//!
//! After a crash the replica may not be open yet when it is needed, and it never is then. It may even have no row:
//! its log says that it was split off, and its parent writes the row again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::Weak;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tracing::info;

use crate::env::tasks::give_blocking;
use crate::env::tasks::offload;
use crate::machine::MachineError;
use crate::machine::Need;
use crate::node::keeper::News;
use crate::node::opener::Stored;
use crate::raft::Fail;
use crate::raft::Flush;
use crate::raft::Group;
use crate::raft::Neighbours;
use crate::raft::Still;
use crate::shard::ShardMachine;
use crate::types::ReplicaId;

/// The replicas of one node, as their machines need each other.
pub struct Bringer {
    me: Weak<Bringer>,
    stored: Stored,
    flush: Flush,
    fail: Fail,
    keeper: mpsc::Sender<News>,
    /// Replicas that were taken out, until they have ended.
    taken: Mutex<BTreeMap<ReplicaId, Taken>>,
}

/// A replica that is to stand still.
#[derive(Clone)]
struct Taken {
    /// Its group, if that has run.
    group: Option<Group>,
    still: Still,
}

impl Bringer {
    /// Nothing is brought yet. What machines have done goes to the keeper.
    pub fn new(
        stored: Stored,
        (flush, fail): (Flush, Fail),
        keeper: mpsc::Sender<News>,
    ) -> Arc<Bringer> {
        Arc::new_cyclic(|me| Bringer {
            me: Weak::clone(me),
            stored,
            flush,
            fail,
            keeper,
            taken: Mutex::default(),
        })
    }

    fn me(&self) -> Arc<Bringer> {
        let me = self.me.upgrade();
        me.expect("whoever calls it has it")
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Taken>> {
        self.taken.lock().expect("nothing panics under this lock")
    }

    async fn bring_here(self: Arc<Self>, need: Need) -> Result<(), MachineError> {
        let Some(replica) = need.replica else {
            return Err(MachineError(format!("nothing on this node becomes {need}")));
        };
        info!(%replica, shard = %need.shard, position = %need.position, "to be absorbed");
        let still = match self.stand_still(replica).await {
            Some(still) => still,
            None => self.unopened(replica).await?,
        };
        still.replay(need.position).await
    }

    /// Ends the replica's group; `None` when it never ran.
    async fn stand_still(&self, replica: ReplicaId) -> Option<Still> {
        if let Some(group) = self.stored.registry.take_out(replica).await {
            // Before anything is awaited: whoever comes after a call that was dropped must find it.
            let still = Still::of(&group);
            let group = Some(group);
            self.taken().insert(replica, Taken { group, still });
        }
        let taken = self.taken().get(&replica).cloned()?;
        if let Some(group) = &taken.group {
            group.end().await;
        }
        self.stored.registry.note_still(replica);
        Some(taken.still)
    }

    /// One that was not open and will not be.
    async fn unopened(self: &Arc<Self>, replica: ReplicaId) -> Result<Still, MachineError> {
        let log = self.stored.wal.log(replica);
        let log = log.ok_or_else(|| MachineError(format!("{replica} has no log here")))?;
        let machine = self.with_row(replica).await?;
        let neighbours: Arc<dyn Neighbours> = self.me();
        let doors = (Arc::clone(&self.flush), Arc::clone(&self.fail));
        let still = Still::new(log, Box::new(machine), doors, neighbours);
        let taken = Taken { group: None, still };
        // The first one is the only one.
        let still = self.taken().entry(replica).or_insert(taken).still.clone();
        self.stored.registry.note_still(replica);
        Ok(still)
    }

    /// Its state, as soon as it has a row.
    async fn with_row(&self, replica: ReplicaId) -> Result<ShardMachine, MachineError> {
        let mut news = self.stored.registry.news();
        loop {
            news.mark_unchanged();
            let stored = self.stored.clone();
            if let Some(machine) = offload(move || stored.shard(replica)).await? {
                return Ok(machine);
            }
            if self.stored.wal.log(replica).is_none() {
                return Err(MachineError(format!("{replica} has ended without a row")));
            }
            let heard = news.changed().await;
            heard.expect("the registry keeps the sender");
        }
    }
}

impl Neighbours for Bringer {
    fn seeded(&self, replicas: Vec<ReplicaId>) {
        self.stored.registry.notice();
        // Nobody opens children any more when the node is stopping.
        give_blocking(&self.keeper, News::Seeded(replicas));
    }

    fn ended(&self, replicas: Vec<ReplicaId>) {
        self.taken()
            .retain(|replica, _| !replicas.contains(replica));
        give_blocking(&self.keeper, News::Ended(replicas));
    }

    fn bring(&self, need: Need) -> BoxFuture<'static, Result<(), MachineError>> {
        self.me().bring_here(need).boxed()
    }

    fn stop(&self, replicas: Vec<ReplicaId>) -> BoxFuture<'static, ()> {
        let me = self.me();
        async move {
            for replica in replicas {
                me.stand_still(replica).await;
            }
        }
        .boxed()
    }
}
