//! What the entries of a merge say, and what applying them answers. Decides only.
//!
//! The left shard absorbs its right neighbour. It *prepares* that in its own log, which names the attempt; the
//! right shard *freezes* in its log; then the left one's log alone decides: the first of *absorb* and *cancel*
//! counts. The right shard *unfreezes* only when the left one has cancelled.

use serde::Deserialize;
use serde::Serialize;

use crate::types::Position;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Attempt;
use crate::types::shard::ShardDescriptor;

/// A step of a merge, as one entry of one of the two logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeStep {
    /// In the left shard's log: it will absorb its right neighbour. No splits, other merges and changes of
    /// membership from now on.
    Prepare(Prepare),
    /// In the right shard's log: it stands still.
    Freeze(Attempt),
    /// In the left shard's log: the right one's keys are its own from now on.
    Absorb(Absorb),
    /// In the left shard's log: it gives up.
    Cancel(Attempt),
    /// In the right shard's log: it goes on alone.
    Unfreeze(Unfreeze),
}

/// What a merge begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The right neighbour, as it was when the merge was planned.
    pub right: ShardDescriptor,
    /// Shards that were absorbed before and of which no node has a replica any more, so that nobody will ever ask
    /// for them. They need not be remembered.
    pub over: Vec<ShardId>,
}

/// What is absorbed: what the freeze has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absorb {
    /// The attempt.
    pub attempt: Attempt,
    /// The right shard.
    pub right: ShardDescriptor,
    /// Where it stands still, in its own log.
    pub frozen: Position,
    /// No stamp at or below this one may be used any more for its keys.
    pub above: Timestamp,
}

/// Ends a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfreeze {
    /// The attempt that has frozen the shard.
    pub attempt: Attempt,
    /// A position of the left shard's log at which the attempt is over and has absorbed nothing.
    pub settled: Position,
}

/// How a step of a merge ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MergeOutcome {
    /// The left shard waits.
    Prepared {
        /// The name of the attempt, for all that follows.
        attempt: Attempt,
    },
    /// The right shard stands still. A repeat is answered the same.
    Frozen {
        /// The shard.
        right: ShardDescriptor,
        /// Where it stands still.
        position: Position,
        /// The left shard must stamp above this.
        above: Timestamp,
    },
    /// The two shards are one.
    Absorbed {
        /// The shard as it is now.
        left: ShardDescriptor,
    },
    /// The left shard goes on as it was. The right one may be told.
    Cancelled,
    /// The right shard goes on as it was.
    Unfrozen,
    /// The shard has changed since the merge was planned. Nothing was done: plan it again.
    Stale {
        /// The shard as it is.
        current: ShardDescriptor,
    },
    /// A change of the shard's membership is under way. Nothing was done: wait until it has ended.
    Joint,
    /// The shard has a part in another merge. Nothing was done: wait until that has ended.
    Merging,
    /// The attempt is not open here: it is over, or a later one has come. Nothing was done.
    Settled,
    /// The merge makes no sense for these shards, and never will. Nothing was done.
    Refused {
        /// Why.
        reason: String,
    },
    /// The stamp was not above the last one of the shard, or of the one to be absorbed. Nothing was done: propose
    /// it again.
    StaleStamp,
}
