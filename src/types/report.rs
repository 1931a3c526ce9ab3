//! What nodes tell placement each second, and what they are told. Decides only.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::NodeId;
use crate::types::id::ReplicaId;
use crate::types::id::ShardId;
use crate::types::key::Key;
use crate::types::node::Role;
use crate::types::operator::Step;
use crate::types::rule::Labels;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;

/// What is asked of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Reads and writes a second.
    pub operations: u64,
    /// Bytes of keys and values in them, a second.
    pub bytes: u64,
}

/// How a node does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Its labels, as given by the person who runs it.
    pub labels: Labels,
    /// What it is for.
    pub role: Role,
    /// The size of its disk; 0: not known.
    pub capacity_bytes: u64,
    /// What is used of that, by whomever.
    pub used_bytes: u64,
    /// How long a sync of its log takes.
    pub sync: Duration,
    /// How long a round trip to its peers takes.
    pub round_trip: Duration,
}

/// How a shard does, in the words of the node that leads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The replica that leads.
    pub leader: ReplicaId,
    /// Its term.
    pub term: u64,
    /// How long it has led, or, in a shard that was split off since, its node led the shard before.
    pub led_for: Duration,
    /// Replicas that are no voters.
    pub learners: Vec<ReplicaId>,
    /// How many entries each replica lacks that has been heard of.
    pub lags: Vec<(ReplicaId, u64)>,
    /// How much there is.
    pub size: Size,
    /// What is asked of it, as a mean over some seconds.
    pub load: Load,
    /// Keys of operations drawn by chance, each operation as likely as any other; in no order. Empty while
    /// little is asked.
    pub sample: Vec<Key>,
}

/// What a node tells placement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How it does.
    pub node: NodeReport,
    /// Shards that it leads and that have changed since a report of them was answered.
    pub changed: Vec<ShardDescriptor>,
    /// How the shards do that it leads: all of them, or a portion.
    pub led: Vec<ShardReport>,
    /// The number of the last change of placement's state that it knows; 0: none.
    pub since: u64,
}

/// A step for the leader of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStep {
    /// The shard.
    pub shard: ShardId,
    /// What it must be like: a step for another state is refused.
    pub epoch: Epoch,
    /// What is to be done.
    pub step: Step,
}
