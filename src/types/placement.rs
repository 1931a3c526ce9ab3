//! What placement is told and what it answers. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::NodeId;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::shard::ShardDescriptor;

/// One change of placement's state. Each may be sent again: a record that is there already stays, an
/// incarnation that has an id keeps it, and numbers that nobody has heard of are only lost.
///
/// Variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementCommand {
    /// A node is a member, with these addresses.
    RecordMember(Member),
    /// A shard is like this; kept unless a later epoch is known.
    RecordShard(ShardDescriptor),
    /// Gives out numbers for nodes, shards or replicas, in a row and never again.
    TakeIds {
        /// How many.
        count: u64,
    },
    /// Makes a node a member and gives it an id: the one that its incarnation has already, or a new one.
    AddMember(Newcomer),
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementAnswer {
    /// It is recorded.
    Recorded,
    /// A later state was known already; nothing was changed.
    Outdated,
    /// The first of the numbers given out.
    FirstId(u64),
    /// The member's id.
    Member(NodeId),
}

/// What has changed in placement's state since the change of some number, oldest first. Each record
/// is there once, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The number of the last change in here: to be asked on from.
    pub upto: u64,
    /// Whether there is more behind `upto` already.
    pub more: bool,
    /// Nodes.
    pub members: Vec<Member>,
    /// Shards, as last reported.
    pub shards: Vec<ShardDescriptor>,
}
