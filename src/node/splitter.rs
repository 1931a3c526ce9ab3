//! Splits a shard at a key: plans it with fresh ids, and proposes it.

use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::placement::PlacementClient;
use crate::node::replica::Replica;
use crate::node::replica::merging;
use crate::raft::Leadership;
use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::types::Key;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::shard;
use crate::types::shard::ShardDescriptor;

/// Splits the shard of a replica that leads it; gives both halves. The shard's own group decides: a shard
/// that has changed since it was looked at here is not split. Not cancel-safe: a dropped call may have
/// happened.
pub async fn split(
    replica: &Replica,
    placement: &PlacementClient,
    at: Key,
) -> Result<(ShardDescriptor, ShardDescriptor)> {
    let group = replica.group();
    if let Leadership::Following { leader } = *group.leadership().borrow() {
        return Err(Error::NotLeader {
            group: group.id(),
            leader: leader.map(|leader| leader.node),
        });
    }
    let planned = replica.reader().descriptor();
    check(&planned, &at)?;
    let (reader, key) = (replica.reader().clone(), at.clone());
    let left = offload(move || reader.size_below(&key)).await;
    let left = left.map_err(|error| Error::Internal(format!("measure {}: {error}", group.id())))?;
    // Ids of a split that comes to nothing are not used again.
    let first = placement
        .take_ids(1 + planned.replicas.len() as u64)
        .await?;
    let split = Split {
        at: at.clone(),
        child: ShardId(first),
        left,
        replicas: children(&planned, first + 1),
    };
    match replica.split(planned.epoch, split).await? {
        SplitOutcome::Done { left, right } => Ok((left, right)),
        SplitOutcome::Stale { current } => Err(Error::StaleEpoch {
            group: group.id(),
            current: vec![current],
        }),
        SplitOutcome::Joint => Err(Error::unavailable(
            group.id(),
            "its membership is being changed",
        )),
        SplitOutcome::Merging => Err(merging(group)),
        SplitOutcome::StaleStamp => Err(Error::unavailable(group.id(), "its leader has changed")),
        SplitOutcome::Refused { reason } => Err(Error::invalid("at", reason)),
    }
}

/// A key at which both halves have room.
fn check(planned: &ShardDescriptor, at: &Key) -> Result<()> {
    match planned.range.contains(at) && planned.range.start != *at {
        true => Ok(()),
        false => Err(Error::invalid(
            "at",
            format!(
                "{:?} is not inside {}, whose range is {}",
                at.escape_ascii().to_string(),
                planned.id,
                planned.range
            ),
        )),
    }
}

/// One replica of the child beside each of the parent.
fn children(planned: &ShardDescriptor, first: u64) -> Vec<shard::Replica> {
    let ids = (first..).map(ReplicaId);
    let replicas = planned.replicas.iter().zip(ids);
    replicas
        .map(|(parent, id)| shard::Replica {
            id,
            node: parent.node,
        })
        .collect()
}
