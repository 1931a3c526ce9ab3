//! Makes one shard of two neighbours. `shard/merge.rs` says who may, and what comes of it; here the leaders of both
//! talk about it.
//!
//! The leader of the left shard drives. It looks at both, prepares the left one, has the leader of the right one
//! freeze that and say when every replica stands there, and absorbs it. When that takes longer than [`FREEZE_MAX`] it
//! cancels, whatever is in flight: the first of the two in the left shard's log counts. Then it tells the right one
//! to go on.
//!
//! **Whoever leads next settles what is left.** A leader of the left shard that finds an attempt which it does not
//! drive cancels it. A leader of the right one that has been frozen for a moment asks for the fate of the
//! attempt, and goes on when it is over. Both look for such shards all the time, so a driver may die at any step, and
//! a message may be lost.
//!
//! While an attempt begins, no change of replicas begins at that leader ([`Changes::hold`]); after that the row says
//! that the shard is not alone, and no leader begins one.

mod answers;
mod leftovers;
mod talk;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tracing::debug;
use tracing::info;

use crate::engine::Engine;
use crate::error::Error;
use crate::error::Result;
use crate::node::changes::Changes;
use crate::node::members::Nodes;
use crate::node::merges::talk::misfit;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::replica::merging;
use crate::raft::Flush;
use crate::raft::Group;
use crate::shard::Row;
use crate::shard::merge;
use crate::shard::merge_command::Absorb;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::shard::merge_command::Prepare;
use crate::shard::merge_command::Unfreeze;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ShardId;
use crate::types::shard::Attempt;
use crate::types::shard::Epoch;
use crate::types::shard::Fate;
use crate::types::shard::ShardDescriptor;
use crate::wire::merge::Fitness;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;
use crate::wire::request::Channel;

/// From the moment in which the freeze is sent the left shard waits for so long, and then gives up.
pub const FREEZE_MAX: Duration = Duration::from_millis(500);
/// Entries that a replica may lack when an attempt begins: it has them long before the time is over.
const LAG_MAX: u64 = 100;
/// And it must have answered so recently.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// From so many absorbed shards on the left one looks which of them it need not remember any more.
const ABSORBED_KEPT: usize = merge::ABSORBED_MAX / 2;

/// What merges are made with. Cloning shares it.
#[derive(Clone)]
pub struct Merges {
    me: NodeId,
    registry: Arc<Registry>,
    engine: Arc<dyn Engine>,
    flush: Flush,
    changes: Changes,
    channel: Arc<dyn Channel>,
    nodes: Nodes,
    /// Left shards whose attempt is under way here.
    driven: Arc<Mutex<BTreeSet<ShardId>>>,
}

/// The merge that is wanted: two shards, each as it was when that was planned.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The left one.
    pub left: ShardId,
    /// Its epoch.
    pub left_epoch: Epoch,
    /// The right one.
    pub right: ShardId,
    /// Its epoch.
    pub right_epoch: Epoch,
}

/// Nobody else drives the left shard while this lives.
struct Driving {
    driven: Arc<Mutex<BTreeSet<ShardId>>>,
    left: ShardId,
}

impl Drop for Driving {
    fn drop(&mut self) {
        let mut driven = self.driven.lock().expect("nothing panics under this lock");
        driven.remove(&self.left);
    }
}

impl Merges {
    /// Nothing is under way yet.
    pub fn new(
        me: NodeId,
        registry: Arc<Registry>,
        (engine, flush): (Arc<dyn Engine>, Flush),
        changes: Changes,
        (channel, nodes): (Arc<dyn Channel>, Nodes),
    ) -> Merges {
        Merges {
            me,
            registry,
            engine,
            flush,
            changes,
            channel,
            nodes,
            driven: Arc::default(),
        }
    }

    /// Has a shard that is led from here absorb its right neighbour; gives it as it is then. Not cancel-safe: a
    /// dropped call is settled by whoever leads.
    ///
    /// # Errors
    /// `StaleEpoch` when one of them has changed since it was planned; `Unavailable` with the reason when it cannot
    /// be done now, or was cancelled. Nothing has changed then.
    pub async fn merge(&self, wanted: Wanted) -> Result<ShardDescriptor> {
        let left = self.registry.shard(wanted.left)?;
        let _driving = self.drive(wanted.left, left.group())?;
        let right = self.look(&left, wanted).await?;
        let attempt = self.prepare(&left, wanted, right.clone()).await?;
        let until = Instant::now() + FREEZE_MAX;
        let absorbing = self.freeze_and_absorb(&left, attempt, &right);
        let why = match timeout_at(until, absorbing).await {
            Ok(Ok(merged)) => return Ok(merged),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("{} did not stand still in time", right.id),
        };
        match self.settle(&left, attempt, right.id).await? {
            Fate::Absorbed => Ok(left.reader().descriptor()),
            Fate::Cancelled | Fate::Open | Fate::Unknown => {
                Err(Error::unavailable(left.group().id(), why))
            }
        }
    }

    fn drive(&self, left: ShardId, group: &Group) -> Result<Driving> {
        let mut driven = self.driven.lock().expect("nothing panics under this lock");
        match driven.insert(left) {
            false => Err(merging(group)),
            true => Ok(Driving {
                driven: Arc::clone(&self.driven),
                left,
            }),
        }
    }

    fn is_driven(&self, left: ShardId) -> bool {
        let driven = self.driven.lock().expect("nothing panics under this lock");
        driven.contains(&left)
    }

    /// Whether it may begin; gives the right shard.
    async fn look(&self, left: &Replica, wanted: Wanted) -> Result<ShardDescriptor> {
        let group = left.group();
        barrier(group).await?;
        check_epoch(left, wanted.left_epoch)?;
        let right = self.registry.shard(wanted.right)?;
        let planned = check_epoch(&right, wanted.right_epoch)?;
        check_pace(group)?;
        let descriptor = left.reader().descriptor();
        let asked = descriptor.replicas.iter().map(|replica| async {
            let look = MergeRequest::Look {
                left: wanted.left,
                right: wanted.right,
            };
            match self.ask(replica.node, look).await? {
                MergeReply::Look(Fitness::Fit) => Ok(()),
                MergeReply::Look(Fitness::Unfit(reason)) => {
                    Err(Error::unavailable(replica.node, reason))
                }
                other => Err(misfit(&other)),
            }
        });
        join_all(asked)
            .await
            .into_iter()
            .collect::<Result<Vec<()>>>()?;
        Ok(planned)
    }

    async fn prepare(
        &self,
        left: &Replica,
        wanted: Wanted,
        right: ShardDescriptor,
    ) -> Result<Attempt> {
        let over = self.over(&left.reader().row()).await;
        let group = left.group();
        let held = self.changes.hold(group.id()).await?;
        barrier(group).await?;
        let prepare = MergeStep::Prepare(Prepare { right, over });
        let outcome = left.merge(wanted.left_epoch, prepare).await;
        drop(held);
        match outcome? {
            MergeOutcome::Prepared { attempt } => Ok(attempt),
            other => Err(refused(group, other)),
        }
    }

    async fn freeze_and_absorb(
        &self,
        left: &Replica,
        attempt: Attempt,
        right: &ShardDescriptor,
    ) -> Result<ShardDescriptor> {
        let freeze = MergeRequest::Freeze {
            shard: right.id,
            attempt,
            epoch: right.epoch,
        };
        let still = match self.ask_leader(right.id, freeze).await? {
            MergeReply::Freeze(still) => still,
            other => return Err(misfit(&other)),
        };
        let absorb = MergeStep::Absorb(Absorb {
            attempt,
            right: still.right,
            frozen: still.position,
            above: still.above,
        });
        let planned = left.reader().row().descriptor.epoch;
        match left.merge(planned, absorb).await? {
            MergeOutcome::Absorbed { left } => Ok(left),
            other => Err(refused(left.group(), other)),
        }
    }

    /// Ends an attempt of a shard that is led from here, if nothing else has, and has the right shard go on unless it
    /// was absorbed.
    async fn settle(&self, left: &Replica, attempt: Attempt, right: ShardId) -> Result<Fate> {
        let planned = left.reader().row().descriptor.epoch;
        left.merge(planned, MergeStep::Cancel(attempt)).await?;
        barrier(left.group()).await?;
        let row = left.reader().row();
        let fate = merge::fate(&row, &attempt, right);
        info!(left = %attempt.left, %right, ?fate, "merge settled");
        if fate == Fate::Cancelled {
            let unfreeze = MergeRequest::Unfreeze {
                shard: right,
                attempt,
                settled: row.applied.position.unwrap_or_default(),
            };
            // It asks when nobody tells it.
            if let Err(error) = self.ask_leader(right, unfreeze).await {
                debug!(%right, %error, "not told to go on; it will ask");
            }
        }
        Ok(fate)
    }

    /// What a shard has absorbed and no node has a replica of any more, once it remembers many.
    async fn over(&self, row: &Row) -> Vec<ShardId> {
        let absorbed = &row.merge.absorbed;
        if absorbed.len() < ABSORBED_KEPT {
            return Vec::new();
        }
        let asked = (self.nodes)().into_iter().map(|node| {
            let remains = MergeRequest::Remains(absorbed.clone());
            self.ask(node, remains)
        });
        let mut over: BTreeSet<ShardId> = absorbed.iter().copied().collect();
        for reply in join_all(asked).await {
            match reply {
                Ok(MergeReply::Remains(left)) => over.retain(|shard| !left.contains(shard)),
                // It may have any of them.
                Ok(_) | Err(_) => return Vec::new(),
            }
        }
        over.into_iter().collect()
    }
}

/// What earlier leaders have committed is applied when it returns. For the leader only.
pub(super) async fn barrier(group: &Group) -> Result<()> {
    let position = group.read_position().await?;
    group.wait_applied(position).await
}

/// The shard, as it was when it was planned.
fn check_epoch(replica: &Replica, planned: Epoch) -> Result<ShardDescriptor> {
    let current = replica.reader().descriptor();
    match current.epoch == planned {
        true => Ok(current),
        false => Err(Error::StaleEpoch {
            group: replica.group().id(),
            current: vec![current],
        }),
    }
}

/// All replicas must come to the freeze in a moment.
pub(super) fn check_pace(group: &Group) -> Result<()> {
    match group.laggard(LAG_MAX, ANSWERED_WITHIN)? {
        None => Ok(()),
        Some(late) => Err(Error::unavailable(
            group.id(),
            format!("{late} does not answer, or lacks entries"),
        )),
    }
}

pub(super) async fn unfreeze(right: &Replica, attempt: Attempt, settled: Position) -> Result<()> {
    let planned = right.reader().row().descriptor.epoch;
    let step = MergeStep::Unfreeze(Unfreeze { attempt, settled });
    match right.merge(planned, step).await? {
        MergeOutcome::Unfrozen | MergeOutcome::Settled => Ok(()),
        other => Err(refused(right.group(), other)),
    }
}

/// A step that was not taken. Nothing was done.
pub(super) fn refused(group: &Group, outcome: MergeOutcome) -> Error {
    let id = group.id();
    match outcome {
        MergeOutcome::Stale { current } => Error::StaleEpoch {
            group: id,
            current: vec![current],
        },
        MergeOutcome::Joint => Error::unavailable(id, "its membership is being changed"),
        MergeOutcome::Merging => merging(group),
        MergeOutcome::Settled => Error::unavailable(id, "the merge is over"),
        MergeOutcome::Refused { reason } => Error::unavailable(id, reason),
        MergeOutcome::StaleStamp => Error::unavailable(id, "its leader has changed"),
        other @ (MergeOutcome::Prepared { .. }
        | MergeOutcome::Frozen { .. }
        | MergeOutcome::Absorbed { .. }
        | MergeOutcome::Cancelled
        | MergeOutcome::Unfrozen) => {
            Error::Internal(format!("a step of a merge ended as {other:?}"))
        }
    }
}
