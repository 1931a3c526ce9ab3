//! What placement knows at one moment, as one value. Decides only.
//!
//! It is made of placement's state (nodes, rules, operators, the descriptors that were reported) and of what
//! the nodes have said since: the driver makes a new one for each plan. Reports come late and out of order, so
//! that ranges may overlap or leave gaps, a shard may name replicas on nodes that are gone, and two nodes may
//! both call themselves its leader. Nothing here relies on more than one shard at a time being consistent.

use std::collections::BTreeMap;
use std::fmt;

use crate::placement::node::Health;
use crate::placement::node::NodeView;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::keyspace::Keyspace;
use crate::types::operator::Operator;
use crate::types::rule;
use crate::types::rule::Rule;
use crate::types::rule::rule_of;

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Every member.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Every shard.
    pub shards: BTreeMap<ShardId, ShardView>,
    /// Placement's own group, as a shard without keys; `None` while it is left alone.
    pub placement: Option<ShardView>,
    /// What is wanted of that.
    pub placement_rule: Rule,
    /// What persons want, in no order.
    pub rules: Vec<Rule>,
    /// The keyspaces that there are, in no order.
    pub keyspaces: Vec<Keyspace>,
    /// What is being done, one operator for a shard at most.
    pub operators: BTreeMap<ShardId, Operator>,
}

/// A key at which a shard is wanted to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedBound<'a> {
    /// The key.
    pub key: Key,
    /// The keyspace of which a part begins or ends there; `None`: a rule does.
    pub of: Option<&'a Keyspace>,
}

impl fmt::Display for WantedBound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.key.escape_ascii();
        match self.of {
            None => write!(f, "a rule begins or ends at {at}"),
            Some(keyspace) => write!(f, "keyspace {} is to be parted at {at}", keyspace.name),
        }
    }
}

impl View {
    /// What is wanted of a shard.
    pub fn rule<'a>(&'a self, shard: &ShardView, policy: &'a Policy) -> &'a Rule {
        if shard.is_placement() {
            return &self.placement_rule;
        }
        rule_of(&self.rules, &policy.rule, &shard.descriptor.range)
    }

    /// A key strictly inside the range at which a shard is wanted to end and another to begin: a bound of a rule,
    /// or of a keyspace's parts. `None`: one shard may have all of the range. Of several bounds it is the middle
    /// one, so that a shard with many parts in it becomes many soon.
    pub fn wanted_bound(&self, range: &KeyRange) -> Option<WantedBound<'_>> {
        let of_rules = rule::bounds_inside(&self.rules, range);
        let of_rules = of_rules.map(|key| WantedBound { key, of: None });
        let near = self.keyspaces.iter();
        let near = near.filter(|keyspace| keyspace.reaches_into(range));
        let of_keyspaces = near.flat_map(|keyspace| {
            let bounds = keyspace.bounds().into_iter();
            bounds.map(|key| WantedBound {
                key,
                of: Some(keyspace),
            })
        });
        let is_inside = |bound: &WantedBound<'_>| range.has_inside(&bound.key);
        let mut bounds: Vec<_> = of_rules.chain(of_keyspaces.filter(is_inside)).collect();
        bounds.sort_by(|one, other| one.key.cmp(&other.key));
        let middle = bounds.len().checked_sub(1)? / 2;
        Some(bounds.swap_remove(middle))
    }

    /// A shard, or placement's group.
    pub fn shard(&self, id: ShardId) -> Option<&ShardView> {
        match id {
            ShardId::PLACEMENT => self.placement.as_ref(),
            id => self.shards.get(&id),
        }
    }

    /// Placement's group, and every shard.
    pub fn groups(&self) -> impl Iterator<Item = &ShardView> {
        self.placement.iter().chain(self.shards.values())
    }

    /// How a node does. One that is no member any more will not come back.
    pub fn health(&self, node: NodeId, policy: &Policy) -> Health {
        let known = self.nodes.get(&node);
        known.map_or(Health::Dead, |node| node.health(policy))
    }
}
