//! What placement shows to people, and what they can ask of it, as values. Decides only.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::id::NodeId;
use crate::types::id::ShardId;
use crate::types::key::Key;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;
use crate::types::node::Duty;
use crate::types::node::Member;
use crate::types::report::NodeReport;
use crate::types::report::ShardReport;
use crate::types::rule::Rule;
use crate::types::shard::ShardDescriptor;
use crate::types::timestamp::Timestamp;

/// The cluster as placement's leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overview {
    /// The node that leads placement's group.
    pub driver: NodeId,
    /// When, by its clock.
    pub at: Timestamp,
    /// Whether placement only watches.
    pub paused: bool,
    /// The nodes, by id.
    pub nodes: Vec<NodeOverview>,
    /// The shards, in the order of their keys, if they were asked for.
    pub shards: Vec<ShardOverview>,
    /// What is being done, by shard.
    pub operators: Vec<OperatorOverview>,
    /// What persons want, by prefix.
    pub rules: Vec<Rule>,
    /// Every threshold of the policy.
    pub settings: Vec<Setting>,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

/// What a node has of the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Bytes of its replicas, as the shards' leaders have counted them.
    pub bytes: u64,
    /// Shards that it leads.
    pub leaders: usize,
}

impl Overview {
    /// What each node has of the shards that were asked for and have been reported; nothing of one that has none.
    pub fn shares(&self) -> BTreeMap<NodeId, Share> {
        let mut shares: BTreeMap<NodeId, Share> = BTreeMap::new();
        for shard in &self.shards {
            let Some(report) = &shard.report else {
                continue;
            };
            for replica in &shard.shard.replicas {
                let share = shares.entry(replica.node).or_default();
                share.bytes += report.size.bytes;
                share.leaders += usize::from(replica.id == report.leader);
            }
        }
        shares
    }
}

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOverview {
    /// Who it is.
    pub member: Member,
    /// What it has reported last; `None`: nothing since placement's leader leads.
    pub report: Option<NodeReport>,
    /// What is wanted of it.
    pub duty: Duty,
    /// How it does, in a word.
    pub health: String,
    /// How long it has been silent.
    pub silent_for: Duration,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Shards that it leads.
    pub leaders: u32,
}

/// A shard as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOverview {
    /// As it was recorded last.
    pub shard: ShardDescriptor,
    /// What its leader has reported last; `None`: nothing since placement's leader leads.
    pub report: Option<ShardReport>,
    /// For how long its load has been enough to be split.
    pub busy_for: Duration,
    /// For how long it has been small and cold enough to be merged.
    pub quiet_for: Duration,
}

/// Something that is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorOverview {
    /// The shard.
    pub shard: ShardId,
    /// Its number, to cancel it by.
    pub number: u64,
    /// What for, in a word.
    pub aim: String,
    /// What.
    pub action: String,
    /// Why.
    pub reason: String,
    /// What comes next, in a few words.
    pub step: String,
    /// Whether that is to be done, everything is done, or the shard has become another: `next`, `done`, `stale`.
    pub progress: String,
    /// What it copies.
    pub bytes: u64,
    /// When it is given up.
    pub expires: Timestamp,
}

/// A threshold of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether a person has set it.
    pub is_set: bool,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub text: String,
}

/// Why a shard is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The shard.
    pub shard: ShardOverview,
    /// The rule that holds for it.
    pub rule: Rule,
    /// What was considered, most urgent first.
    pub findings: Vec<Finding>,
}

/// What came of one aim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The aim, in a word.
    pub aim: String,
    /// Whether there is nothing to do, something is planned, or something is held back: `in_order`, `planned`,
    /// `held`.
    pub state: String,
    /// What was found, in words.
    pub text: String,
}

/// What a person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrangement {
    /// Of a node.
    SetDuty {
        /// The node.
        node: NodeId,
        /// What is wanted.
        duty: Duty,
    },
    /// Of the shards with a prefix.
    SetRule(Rule),
    /// Nothing particular of them any more.
    DeleteRule {
        /// The prefix.
        prefix: Key,
    },
    /// Of the policy.
    SetSetting {
        /// The name.
        name: String,
        /// The value; `None`: the default again.
        value: Option<String>,
    },
    /// That placement only watches, or goes on.
    SetPaused(bool),
    /// That an operator is given up.
    CancelOperator {
        /// The shard.
        shard: ShardId,
        /// Its number.
        number: u64,
    },
    /// That a replica moves.
    MoveReplica {
        /// The shard.
        shard: ShardId,
        /// The node that has it.
        from: NodeId,
        /// The node that gets one.
        to: NodeId,
    },
    /// That a shard absorbs its right neighbour.
    MergeShard {
        /// The shard.
        shard: ShardId,
    },
    /// That there is a keyspace.
    CreateKeyspace(Keyspace),
    /// That there is none any more.
    DeleteKeyspace {
        /// Its name.
        name: KeyspaceName,
    },
}
