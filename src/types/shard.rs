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
