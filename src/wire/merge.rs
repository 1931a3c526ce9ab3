//! What the leaders of two shards that are to be one say to each other, and to the nodes in between. Decides only.

use crate::types::Position;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Attempt;
use crate::types::shard::Epoch;
use crate::types::shard::Fate;
use crate::types::shard::ShardDescriptor;

/// What is asked. All of it may be asked again without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeRequest {
    /// Whether the receiving node's replicas of both are fit to be one.
    Look {
        /// The left shard.
        left: ShardId,
        /// The right one.
        right: ShardId,
    },
    /// The right shard shall stand still. For its leader, which answers when every replica has come there.
    Freeze {
        /// The right shard.
        shard: ShardId,
        /// For this attempt.
        attempt: Attempt,
        /// As it was when that was planned.
        epoch: Epoch,
    },
    /// The right shard shall go on. For its leader.
    Unfreeze {
        /// The right shard.
        shard: ShardId,
        /// The attempt that is over.
        attempt: Attempt,
        /// Where it was over, in the left shard's log.
        settled: Position,
    },
    /// What has become of an attempt. For the leader of the left shard, or of the one that has absorbed either.
    Fate {
        /// The right shard.
        right: ShardId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Of which of these shards the receiving node has a replica.
    Remains(Vec<ShardId>),
}

/// The answers, one kind for each kind of question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeReply {
    /// To [`MergeRequest::Look`].
    Look(Fitness),
    /// To [`MergeRequest::Freeze`].
    Freeze(Standstill),
    /// To [`MergeRequest::Unfreeze`]: it is not frozen for that attempt any more.
    Unfreeze,
    /// To [`MergeRequest::Fate`]: seen at this position, which a quorum has confirmed.
    Fate(Fate, Position),
    /// To [`MergeRequest::Remains`].
    Remains(Vec<ShardId>),
}

/// Whether replicas on one node are fit to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// They are.
    Fit,
    /// They are not, for this reason.
    Unfit(String),
}

/// A shard that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standstill {
    /// The shard.
    pub right: ShardDescriptor,
    /// Where, in its log. Every replica has that entry, synced.
    pub position: Position,
    /// Whoever absorbs it stamps above this.
    pub above: Timestamp,
}
