//! What the leaders of two shards that merge, and the nodes in between, answer each other.

use std::sync::Arc;

use tracing::debug;

use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::merges::Merges;
use crate::node::merges::barrier;
use crate::node::merges::check_pace;
use crate::node::merges::refused;
use crate::node::merges::unfreeze;
use crate::node::replica::Replica;
use crate::shard;
use crate::shard::Row;
use crate::shard::merge;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::types::Position;
use crate::types::ShardId;
use crate::types::shard::Attempt;
use crate::types::shard::Epoch;
use crate::types::shard::Fate;
use crate::wire::merge::Fitness;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;
use crate::wire::merge::Standstill;

/// Bytes of the rows of both on one node: a leaf of the engine has sixteen values, and must not grow too big.
const ROWS_BYTES_MAX: usize = 6 * 1024;

impl Merges {
    /// Answers what another node asks.
    pub async fn answer(&self, request: MergeRequest) -> Result<MergeReply> {
        match request {
            MergeRequest::Look { left, right } => Ok(MergeReply::Look(self.fitness(left, right))),
            MergeRequest::Freeze {
                shard,
                attempt,
                epoch,
            } => {
                let still = self.freeze(shard, attempt, epoch).await?;
                Ok(MergeReply::Freeze(still))
            }
            MergeRequest::Unfreeze {
                shard,
                attempt,
                settled,
            } => {
                let right = self.registry.shard(shard)?;
                unfreeze(&right, attempt, settled).await?;
                Ok(MergeReply::Unfreeze)
            }
            MergeRequest::Fate { right, attempt } => {
                let (fate, position) = self.fate(right, attempt).await?;
                Ok(MergeReply::Fate(fate, position))
            }
            MergeRequest::Remains(shards) => {
                // What is not there any more must not come back with a power cut.
                (self.flush)().await;
                let engine = Arc::clone(&self.engine);
                let remains = offload(move || shard::remains(engine.as_ref(), &shards)).await;
                let remains = remains.map_err(|error| Error::Internal(error.to_string()))?;
                Ok(MergeReply::Remains(remains))
            }
        }
    }

    fn fitness(&self, left: ShardId, right: ShardId) -> Fitness {
        let mut rows = 0;
        for shard in [left, right] {
            let unfit = |reason: &str| Fitness::Unfit(format!("its replica of {shard} {reason}"));
            let replica = match self.registry.shard(shard) {
                Ok(replica) => replica,
                Err(_) => return unfit("is not there"),
            };
            if !replica.is_filled() {
                return unfit("is not filled yet");
            }
            if replica.reader().is_quarantined() || replica.group().check().is_err() {
                return unfit("serves nothing");
            }
            rows += replica.reader().row().encode().len();
        }
        match rows <= ROWS_BYTES_MAX {
            true => Fitness::Fit,
            false => Fitness::Unfit(format!(
                "{left} and {right} have their keys there in too many pieces: {rows} bytes to name them, of \
                 {ROWS_BYTES_MAX}"
            )),
        }
    }

    async fn freeze(&self, shard: ShardId, attempt: Attempt, epoch: Epoch) -> Result<Standstill> {
        let right = self.registry.shard(shard)?;
        let group = right.group();
        check_pace(group)?;
        let held = self.changes.hold(group.id()).await?;
        barrier(group).await?;
        let outcome = right.merge(epoch, MergeStep::Freeze(attempt)).await;
        drop(held);
        let still = match outcome? {
            MergeOutcome::Frozen {
                right,
                position,
                above,
            } => {
                debug!(%shard, ?attempt, %position, "frozen");
                Standstill {
                    right,
                    position,
                    above,
                }
            }
            other => return Err(refused(group, other)),
        };
        group.everywhere(still.position).await?;
        Ok(still)
    }

    async fn fate(&self, right: ShardId, attempt: Attempt) -> Result<(Fate, Position)> {
        let mut refusal = Error::NotFound {
            what: format!("who knows what has become of {right}"),
        };
        for replica in self.registry.shards() {
            if !may_know(&replica.reader().row(), right, &attempt) {
                continue;
            }
            match self.confirmed_fate(&replica, right, attempt).await {
                Ok((Fate::Unknown, _)) => {}
                Ok(known) => return Ok(known),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    async fn confirmed_fate(
        &self,
        replica: &Replica,
        right: ShardId,
        attempt: Attempt,
    ) -> Result<(Fate, Position)> {
        let at = replica.read_position().await?;
        replica.group().wait_applied(at).await?;
        let row = replica.reader().row();
        let fate = merge::fate(&row, &attempt, right);
        let position = row.applied.position.unwrap_or_default();
        if fate == Fate::Open && !self.is_driven(attempt.left) {
            let settled = self.settle(replica, attempt, right).await?;
            let applied = replica.reader().row().applied.position;
            return Ok((settled, applied.unwrap_or_default()));
        }
        Ok((fate, position))
    }
}

/// Whether a row may say what has become of an attempt.
fn may_know(row: &Row, right: ShardId, attempt: &Attempt) -> bool {
    let absorbed = &row.merge.absorbed;
    row.descriptor.id == attempt.left
        || absorbed.contains(&right)
        || absorbed.contains(&attempt.left)
}
