//! What a shard is, and whether a request is meant for it. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::NodeId;
use crate::types::id::ReplicaId;
use crate::types::id::ShardId;
use crate::types::key::KeyRange;
use crate::types::log::Position;

/// Rises with each change of a shard, so that whoever knows an older state is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Epoch {
    /// Rises with the membership.
    pub conf: u64,
    /// Rises with the range.
    pub bounds: u64,
}

impl Epoch {
    /// Whether this is of an older state than `other`, of the same shard. Both parts only rise, so that
    /// of two states one is later in both.
    pub fn is_before(self, other: Epoch) -> bool {
        self.conf < other.conf || self.bounds < other.bounds
    }
}

/// One copy of a shard and the node that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// The copy.
    pub id: ReplicaId,
    /// Where it is.
    pub node: NodeId,
}

/// A shard as its own group knows it. The group is the authority; every other copy may be late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// The shard.
    pub id: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// How often it has changed.
    pub epoch: Epoch,
    /// Its copies, voters and learners.
    pub replicas: Vec<Replica>,
}

impl ShardDescriptor {
    /// The copy on `node`, if there is one.
    pub fn replica_on(&self, node: NodeId) -> Option<Replica> {
        self.replicas
            .iter()
            .copied()
            .find(|replica| replica.node == node)
    }
}

/// How much there is in a shard, or in a part of one: what has a value now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Size {
    /// Keys.
    pub keys: u64,
    /// Bytes of the keys and their values.
    pub bytes: u64,
}

impl Size {
    /// One key with a value of so many bytes.
    pub fn of(key: &[u8], value_bytes: u64) -> Size {
        Size {
            keys: 1,
            bytes: key.len() as u64 + value_bytes,
        }
    }

    /// Both together.
    pub fn with(self, other: Size) -> Size {
        Size {
            keys: self.keys.saturating_add(other.keys),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// What is left without the other. Sizes of halves are counted a moment before the shard is split:
    /// what would be below nothing is nothing.
    pub fn without(self, other: Size) -> Size {
        Size {
            keys: self.keys.saturating_sub(other.keys),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// A hash of all that a replica of a shard has applied. Equal on all replicas at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Chain(pub u64);

/// The hash at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The last entry in it.
    pub position: Position,
    /// The hash.
    pub chain: Chain,
}

/// Which split a shard comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Birth {
    /// The shard that was split.
    pub parent: ShardId,
    /// The parent's replica that applied the split on the child's node; 0 at a replica that came to the
    /// shard later.
    pub replica: ReplicaId,
    /// The split's place in the parent's log. That it was applied proves that it was committed.
    pub position: Position,
}

/// One attempt of a shard to absorb its right neighbour. Of two attempts on one neighbour the later one is
/// greater: whenever a shard gets another left neighbour, that one's bounds are higher, since what is split off
/// and what absorbs are above what was there before.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Attempt {
    /// The left shard's bounds.
    pub bounds: u64,
    /// Where it began, in the left shard's log.
    pub prepared: Position,
    /// The left shard.
    pub left: ShardId,
}

/// What has become of an attempt, as the left shard knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It may still go either way.
    Open,
    /// The right shard has ended: its keys are the left one's.
    Absorbed,
    /// It is over and has absorbed nothing: the right shard may go on.
    Cancelled,
    /// This replica cannot tell: it has not come so far, or knows nothing of the left shard.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right shard knows the attempts of all that were to its left by their order alone.
    #[test]
    fn a_later_attempt_is_greater_whoever_is_left_by_then() {
        let attempt = |bounds, term, index, left| Attempt {
            bounds,
            prepared: Position { term, index },
            left: ShardId(left),
        };
        let in_order = [
            attempt(4, 7, 90, 1),
            attempt(4, 7, 91, 1),
            attempt(4, 8, 92, 1),
            // Split off the one before.
            attempt(5, 1, 2, 9),
            // Absorbed again.
            attempt(6, 8, 99, 1),
        ];
        assert!(in_order.is_sorted());
    }
}
