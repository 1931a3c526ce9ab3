//! What placement knows at one moment, as one value. Decides only.
//!
//! It is made of placement's state (nodes, rules, operators, the descriptors that were reported) and of what
//! the nodes have said since: the driver makes a new one for each plan. Reports come late and out of order, so
//! that ranges may overlap or leave gaps, a shard may name replicas on nodes that are gone, and two nodes may
//! both call themselves its leader. Nothing here relies on more than one shard at a time being consistent.

use std::collections::BTreeMap;

use crate::placement::node::Health;
use crate::placement::node::NodeView;
use crate::placement::operator::Operator;
use crate::placement::policy::Policy;
use crate::placement::rule::Rule;
use crate::placement::rule::rule_of;
use crate::placement::shard::ShardView;
use crate::types::NodeId;
use crate::types::ShardId;

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Every member.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Every shard.
    pub shards: BTreeMap<ShardId, ShardView>,
    /// What persons want, in no order.
    pub rules: Vec<Rule>,
    /// What is being done, one operator for a shard at most.
    pub operators: BTreeMap<ShardId, Operator>,
}

impl View {
    /// What is wanted of a shard.
    pub fn rule<'a>(&'a self, shard: &ShardView, policy: &'a Policy) -> &'a Rule {
        rule_of(&self.rules, &policy.rule, &shard.descriptor.range)
    }

    /// How a node does. One that is no member any more will not come back.
    pub fn health(&self, node: NodeId, policy: &Policy) -> Health {
        let known = self.nodes.get(&node);
        known.map_or(Health::Dead, |node| node.health(policy))
    }
}
