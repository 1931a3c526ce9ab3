//! One node as placement sees it at one moment, and what state that is. Decides only.
//!
//! Two things are told apart. What a person wants of a node is its [`Duty`], which is replicated. How it does
//! is its [`Health`], which follows from what it reports, by the thresholds of the policy. A node that has
//! nothing to do with either is not in the view.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::placement::policy::Policy;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::node::Duty;
use crate::types::node::Role;
use crate::types::rule::Labels;

/// How a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It reports, and is as quick as the others.
    Up,
    /// It is, or was a short while ago, far slower than the others.
    Slow,
    /// It has not reported for some seconds.
    Suspect,
    /// It has been silent for so long that it is given up.
    Dead,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Up => "up",
            Health::Slow => "slow",
            Health::Suspect => "suspect",
            Health::Dead => "dead",
        })
    }
}

/// Why a node gets no replica, or does not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It is for other replicas than this one.
    Role(Role),
    /// It is being drained.
    Draining,
    /// It is leaving.
    Leaving,
    /// It does not do well.
    Health(Health),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Role(Role::Placement) => write!(f, "holds no shards"),
            Unfit::Role(Role::Both | Role::Data) => write!(f, "holds shards alone"),
            Unfit::Draining => write!(f, "is being drained"),
            Unfit::Leaving => write!(f, "is leaving"),
            Unfit::Health(health) => write!(f, "is {health}"),
        }
    }
}

/// One node at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// The node.
    pub id: NodeId,
    /// Its labels.
    pub labels: Labels,
    /// What it is for.
    pub role: Role,
    /// What a person wants of it.
    pub duty: Duty,
    /// The size of its disk; 0 while it has not said.
    pub capacity_bytes: u64,
    /// What is used of that, by whomever.
    pub used_bytes: u64,
    /// How long ago it was heard of last.
    pub silent_for: Duration,
    /// How long a sync of its log takes.
    pub sync: Duration,
    /// How long a round trip to its peers takes.
    pub round_trip: Duration,
    /// How long ago it was among the [`slow_nodes`] last; `None`: not that anybody knows.
    pub slow_ago: Option<Duration>,
}

impl NodeView {
    /// How it does.
    pub fn health(&self, policy: &Policy) -> Health {
        if self.silent_for >= policy.replace_after {
            return Health::Dead;
        }
        if self.silent_for >= policy.suspect_after {
            return Health::Suspect;
        }
        match self.slow_ago {
            Some(ago) if ago < policy.slow_recovery => Health::Slow,
            Some(_) | None => Health::Up,
        }
    }

    /// Whether it may get a replica of a shard, or of placement's group, or the lead of one that it has.
    pub fn fitness(&self, shard: ShardId, policy: &Policy) -> Result<(), Unfit> {
        if !self.is_for(shard) {
            return Err(Unfit::Role(self.role));
        }
        match self.duty {
            Duty::Drain => return Err(Unfit::Draining),
            Duty::Leave => return Err(Unfit::Leaving),
            Duty::Serve => {}
        }
        match self.health(policy) {
            Health::Up => Ok(()),
            health @ (Health::Slow | Health::Suspect | Health::Dead) => Err(Unfit::Health(health)),
        }
    }

    /// Whether its role lets it hold a replica of a shard, or of placement's group.
    pub fn is_for(&self, shard: ShardId) -> bool {
        match self.role {
            Role::Both => true,
            Role::Data => shard != ShardId::PLACEMENT,
            Role::Placement => shard == ShardId::PLACEMENT,
        }
    }

    /// Whether it has said how big its disk is. It looks at it within moments of its start.
    pub fn knows_disk(&self) -> bool {
        self.capacity_bytes > 0
    }

    /// Whether it has room for so much more; as long as nobody knows how big its disk is, it has.
    pub fn has_room(&self, more_bytes: u64, policy: &Policy) -> bool {
        if !self.knows_disk() {
            return true;
        }
        let usable = self.capacity_bytes / 100 * policy.full_percent;
        self.used_bytes.saturating_add(more_bytes) <= usable
    }
}

/// The nodes that are far slower than their peers at this moment. Whoever makes views remembers when each was
/// among them last. A peer that has had nothing to do says nothing of how long it takes.
pub fn slow_nodes(nodes: &BTreeMap<NodeId, NodeView>, policy: &Policy) -> BTreeSet<NodeId> {
    let heard = nodes
        .values()
        .filter(|node| node.silent_for < policy.suspect_after);
    let heard: Vec<&NodeView> = heard.collect();
    let is_slow = |node: &NodeView, time: fn(&NodeView) -> Duration| {
        let peers = heard.iter().filter(|peer| peer.id != node.id);
        let times = peers.map(|peer| time(peer));
        let median = median(times.filter(|time| !time.is_zero()).collect());
        let bound = median.map(|median| policy.slow_min.max(median * policy.slow_times));
        bound.is_some_and(|bound| time(node) > bound)
    };
    let slow = heard
        .iter()
        .filter(|node| is_slow(node, |node| node.sync) || is_slow(node, |node| node.round_trip));
    slow.map(|node| node.id).collect()
}

/// Of an even number the lower one.
fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(silent_s: u64, slow_ago_s: Option<u64>) -> NodeView {
        NodeView {
            silent_for: Duration::from_secs(silent_s),
            slow_ago: slow_ago_s.map(Duration::from_secs),
            ..NodeView::default()
        }
    }

    #[test]
    fn silence_and_slowness_make_the_health_by_the_thresholds() {
        let policy = Policy::default();
        for (silent_s, slow_ago_s, health) in [
            (0, None, Health::Up),
            (4, Some(60), Health::Up),
            (4, Some(59), Health::Slow),
            (5, Some(0), Health::Suspect),
            (299, None, Health::Suspect),
            (300, None, Health::Dead),
        ] {
            assert_eq!(node(silent_s, slow_ago_s).health(&policy), health);
        }
    }

    #[test]
    fn only_a_node_that_serves_and_does_well_is_fit() {
        let policy = Policy::default();
        let fitness = |role, duty, silent_s| {
            let node = NodeView {
                role,
                duty,
                ..node(silent_s, None)
            };
            node.fitness(ShardId(1), &policy)
        };
        assert_eq!(fitness(Role::Data, Duty::Serve, 0), Ok(()));
        let role = Role::Placement;
        assert_eq!(fitness(role, Duty::Serve, 0), Err(Unfit::Role(role)));
        assert_eq!(fitness(Role::Both, Duty::Drain, 0), Err(Unfit::Draining));
        assert_eq!(fitness(Role::Both, Duty::Leave, 0), Err(Unfit::Leaving));
        let suspect = Err(Unfit::Health(Health::Suspect));
        assert_eq!(fitness(Role::Both, Duty::Serve, 9), suspect);
    }

    #[test]
    fn slow_is_who_is_far_above_the_median_of_the_others() {
        let policy = Policy::default();
        let slow = |syncs_ms: &[u64]| -> Vec<u64> {
            let nodes = (1..).zip(syncs_ms).map(|(id, sync_ms)| {
                let node = NodeView {
                    id: NodeId(id),
                    sync: Duration::from_millis(*sync_ms),
                    ..NodeView::default()
                };
                (node.id, node)
            });
            let slow = slow_nodes(&nodes.collect(), &policy);
            slow.into_iter().map(|node| node.0).collect()
        };
        assert_eq!(slow(&[10, 10, 60]), [3]);
        assert_eq!(slow(&[10, 10, 50]), [0; 0], "five times is not far above");
        assert_eq!(slow(&[1, 1, 40]), [0; 0], "nobody notices 40 ms");
        assert_eq!(slow(&[20, 20, 200, 200]), [3, 4]);
        assert_eq!(slow(&[200, 200, 200]), [0; 0], "all are alike");
        assert_eq!(slow(&[900]), [0; 0], "there is nobody to compare with");
        assert_eq!(slow(&[0, 0, 0, 60, 60, 60]), [0; 0], "three are idle");
        assert_eq!(slow(&[0, 0, 10, 60]), [4]);
    }
}
