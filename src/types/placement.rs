//! What placement is told and what it answers. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::NodeId;
use crate::types::id::ShardId;
use crate::types::key::Key;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;
use crate::types::node::Duty;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::node::Role;
use crate::types::operator::Operator;
use crate::types::report::ShardStep;
use crate::types::rule::Labels;
use crate::types::rule::Rule;
use crate::types::shard::ShardDescriptor;
use crate::types::timestamp::Timestamp;

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
    /// What a node says of itself.
    DescribeNode {
        /// The node.
        node: NodeId,
        /// Its labels.
        labels: Labels,
        /// What it is for.
        role: Role,
    },
    /// What a person wants of a node.
    SetDuty {
        /// The node.
        node: NodeId,
        /// What is wanted.
        duty: Duty,
    },
    /// Since when a node has been silent, or that it reports again.
    NoteSilence {
        /// The node.
        node: NodeId,
        /// Since when.
        since: Option<Timestamp>,
    },
    /// What is wanted of the shards with a prefix, in place of what was wanted before.
    SetRule(Rule),
    /// Nothing particular is wanted of them any more.
    DeleteRule {
        /// The prefix.
        prefix: Key,
    },
    /// One threshold of the policy.
    SetSetting {
        /// Its name.
        name: String,
        /// Its value; `None`: the default again.
        value: Option<String>,
    },
    /// Whether placement only watches.
    SetPaused(bool),
    /// What is to be done. Of a shard that has an operator already none is recorded.
    RecordOperators(Vec<Operator>),
    /// An operator has come to its end, whichever.
    EndOperator {
        /// The shard.
        shard: ShardId,
        /// The change that recorded it: another one of the same shard goes on.
        change: u64,
    },
    /// There is a keyspace. It never changes.
    CreateKeyspace(Keyspace),
    /// There is none any more. Its name and its prefix stay taken.
    RetireKeyspace {
        /// Its name.
        name: KeyspaceName,
    },
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementAnswer {
    /// It is recorded.
    Recorded,
    /// A later state was known already, or what was to be made is taken; nothing was changed.
    Outdated,
    /// The first of the numbers given out.
    FirstId(u64),
    /// The member's id.
    Member(NodeId),
    /// There is no such node, rule, operator or keyspace; nothing was changed.
    Missing,
}

/// The answer to a node's report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Orders {
    /// What has changed.
    pub changes: Changes,
    /// What is to be done with the shards that the node leads.
    pub steps: Vec<ShardStep>,
    /// The nodes with a replica of placement.
    pub hosts: Vec<NodeId>,
    /// How fast the node may send snapshots; 0: as fast as may be.
    pub snapshot_bytes_per_second: u64,
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
    /// Keyspaces, deleted ones too.
    pub keyspaces: Vec<Definition>,
}
