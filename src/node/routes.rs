//! Where the keys live that have no replica here, as this node has heard. Decides only: `router.rs`
//! asks and listens.
//!
//! What is known comes from placement, from other nodes and from refusals, late and in any order. It
//! is a hint: whoever is asked in vain says better, or is asked no more. Of two shards that overlap
//! the one with the higher `bounds` is the later one, since a change of bounds raises it in every
//! shard that comes out of it; the other keeps what the later one leaves of it. Keys of which nothing
//! is known are looked for anew, so a gap is harmless.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::error::Error;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::ShardRoute;

/// What a node knows about where keys live.
#[derive(Debug)]
pub struct Routes {
    /// The key space as far as it is known, by start. No two parts overlap.
    parts: BTreeMap<Key, Part>,
    /// Every shard that has a part, and none else.
    shards: BTreeMap<ShardId, Known>,
    /// The number of the last change. Begins at 1: 0 asks for everything, and is never an answer to go on from.
    changes: u64,
}

impl Default for Routes {
    fn default() -> Routes {
        Routes {
            parts: BTreeMap::new(),
            shards: BTreeMap::new(),
            changes: 1,
        }
    }
}

#[derive(Debug)]
struct Part {
    end: Option<Key>,
    shard: ShardId,
}

#[derive(Debug)]
struct Known {
    shard: ShardDescriptor,
    leader: Option<NodeId>,
    /// How often it was asked in vain since it last answered.
    failures: usize,
    /// The number of the change that made it what it is.
    change: u64,
}

/// Whom to ask for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The shard that is thought to hold the key.
    pub shard: ShardId,
    /// The node: its leader if that is known, else one of its replicas.
    pub node: NodeId,
}

impl Routes {
    /// Learns how a shard is, and who leads it if that is known. What is older than what is known
    /// changes nothing.
    pub fn learn(&mut self, shard: ShardDescriptor, leader: Option<NodeId>) {
        match self.shards.get(&shard.id) {
            Some(known) if shard.epoch.is_before(known.shard.epoch) => {}
            Some(known) if known.shard == shard => {}
            Some(_) | None => self.place(shard.clone()),
        }
        self.lead(shard.id, leader);
    }

    /// Whom node `me` asks for a key. `None`: nothing is known.
    pub fn target(&self, key: &[u8], me: NodeId) -> Option<Target> {
        self.target_of(self.shard_of(key)?, me)
    }

    /// Whom node `me` asks about a shard.
    pub fn target_of(&self, shard: ShardId, me: NodeId) -> Option<Target> {
        let known = self.shards.get(&shard)?;
        let replicas = known.shard.replicas.iter().map(|replica| replica.node);
        let others: Vec<NodeId> = replicas.filter(|node| *node != me).collect();
        let leader = known.leader.filter(|leader| *leader != me);
        let turn = || others.get(known.failures % others.len().max(1)).copied();
        let node = leader.or_else(turn)?;
        Some(Target { shard, node })
    }

    /// The node asked has answered, and with that has shown that it leads the shard, or not.
    pub fn reached(&mut self, target: Target, leads: bool) {
        if let Some(known) = self.shards.get_mut(&target.shard) {
            known.failures = 0;
        }
        self.lead(target.shard, leads.then_some(target.node));
    }

    /// The node asked has not done it: turns to whom it names, or to another replica. A shard that is
    /// not where it was thought to be is forgotten, and one of which every replica was asked in vain.
    pub fn refused(&mut self, target: Target, error: &Error) {
        let Some(known) = self.shards.get_mut(&target.shard) else {
            return;
        };
        let group = GroupId::Shard(target.shard);
        match error {
            Error::NotLeader {
                group: of,
                leader: Some(leader),
            } if *of == group && *leader != target.node => {
                self.lead(target.shard, Some(*leader));
            }
            Error::StaleEpoch { current, .. } => {
                self.forget(target.shard);
                for shard in current {
                    self.learn(shard.clone(), None);
                }
            }
            Error::NotFound { .. } | Error::WrongNode { .. } => self.forget(target.shard),
            Error::NotLeader { .. }
            | Error::Unavailable { .. }
            | Error::Timeout { .. }
            | Error::Unknown { .. } => {
                known.leader = known.leader.filter(|leader| *leader != target.node);
                known.failures += 1;
                if known.failures > known.shard.replicas.len() {
                    self.forget(target.shard);
                }
            }
            Error::Invalid { .. }
            | Error::Overloaded { .. }
            | Error::NoSpace { .. }
            | Error::ClockAhead { .. }
            | Error::TooLateToKnow { .. }
            | Error::Spanning { .. }
            | Error::WrongCluster { .. }
            | Error::NoKeyspace { .. }
            | Error::Internal(_) => {}
        }
    }

    /// The shard that holds a key, as far as is known.
    pub fn locate(&self, key: &[u8]) -> Option<ShardRoute> {
        let known = self.shards.get(&self.shard_of(key)?)?;
        Some(known.route())
    }

    /// The number of the last change, at least 1. Rises.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Everything that has changed behind the change numbered `since`, in order of keys; 0: everything.
    pub fn changes_since(&self, since: u64) -> Vec<ShardRoute> {
        let changed = self.shards.values().filter(|known| known.change > since);
        let mut routes: Vec<ShardRoute> = changed.map(Known::route).collect();
        routes.sort_by(|one, other| one.shard.range.start.cmp(&other.shard.range.start));
        routes
    }

    fn shard_of(&self, key: &[u8]) -> Option<ShardId> {
        let (_, part) = self
            .parts
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()?;
        let inside = part.end.as_ref().is_none_or(|end| *key < **end);
        inside.then_some(part.shard)
    }

    fn lead(&mut self, shard: ShardId, leader: Option<NodeId>) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        if leader.is_some() && known.leader != leader {
            self.changes += 1;
            known.leader = leader;
            known.change = self.changes;
        }
    }

    fn forget(&mut self, shard: ShardId) {
        self.parts.retain(|_, part| part.shard != shard);
        self.shards.remove(&shard);
    }

    /// Gives a shard all of its range that no later shard has.
    fn place(&mut self, shard: ShardDescriptor) {
        let before = self.shards.get(&shard.id).and_then(|known| known.leader);
        self.forget(shard.id);
        let mut free = vec![shard.range.clone()];
        for (part, other) in self.overlapping(&shard.range) {
            let bounds = self.shards[&other].shard.epoch.bounds;
            if bounds < shard.epoch.bounds {
                self.cut(&part, &shard.range, other);
            } else {
                free = free
                    .iter()
                    .flat_map(|range| outside(range, &part))
                    .collect();
            }
        }
        if free.is_empty() {
            return;
        }
        for range in free {
            self.insert(range, shard.id);
        }
        self.changes += 1;
        let known = Known {
            // Whoever led it leads it still, unless it has left.
            leader: before.filter(|leader| shard.replica_on(*leader).is_some()),
            shard,
            failures: 0,
            change: self.changes,
        };
        self.shards.insert(known.shard.id, known);
    }

    fn overlapping(&self, range: &KeyRange) -> Vec<(KeyRange, ShardId)> {
        let parts = self.parts.iter().map(|(start, part)| {
            let range = KeyRange {
                start: start.clone(),
                end: part.end.clone(),
            };
            (range, part.shard)
        });
        parts.filter(|(part, _)| part.overlaps(range)).collect()
    }

    /// Takes what is inside `range` from a part.
    fn cut(&mut self, part: &KeyRange, range: &KeyRange, shard: ShardId) {
        self.parts.remove(&part.start);
        for rest in outside(part, range) {
            self.insert(rest, shard);
        }
        if !self.parts.values().any(|part| part.shard == shard) {
            self.shards.remove(&shard);
        }
    }

    fn insert(&mut self, range: KeyRange, shard: ShardId) {
        let end = range.end;
        self.parts.insert(range.start, Part { end, shard });
    }
}

impl Known {
    fn route(&self) -> ShardRoute {
        ShardRoute {
            shard: self.shard.clone(),
            leader: self.leader,
        }
    }
}

/// What of `range` lies before and behind `other`, which overlaps it or not.
fn outside(range: &KeyRange, other: &KeyRange) -> Vec<KeyRange> {
    let before = KeyRange {
        start: Key::new(),
        end: Some(other.start.clone()),
    };
    let behind = other.end.clone().map(|start| KeyRange { start, end: None });
    let parts = [Some(before), behind].into_iter().flatten();
    let parts = parts.map(|part| range.intersect(&part));
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplicaId;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;

    const ME: NodeId = NodeId(9);

    /// `2@3[m,t)`: shard 2 of bounds 3 from m to t; an empty end is none. Replicas on nodes 1, 2, 3.
    fn shard(text: &str) -> ShardDescriptor {
        let (name, range) = text.split_once('[').unwrap();
        let (id, bounds) = name.split_once('@').unwrap();
        let (start, end) = range.trim_end_matches(')').split_once(',').unwrap();
        let id: u64 = id.parse().unwrap();
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: Key::copy_from_slice(start.as_bytes()),
                end: (!end.is_empty()).then(|| Key::copy_from_slice(end.as_bytes())),
            },
            epoch: Epoch {
                conf: 1,
                bounds: bounds.parse().unwrap(),
            },
            replicas: (1..=3)
                .map(|node| Replica {
                    id: ReplicaId(id * 10 + node),
                    node: NodeId(node),
                })
                .collect(),
        }
    }

    fn routes(learned: &str) -> Routes {
        let mut routes = Routes::default();
        for text in learned.split_whitespace() {
            routes.learn(shard(text), None);
        }
        routes
    }

    /// The known parts in order, as `m..t:2`.
    fn shown(routes: &Routes) -> String {
        let text = |key: &[u8]| key.escape_ascii().to_string();
        let parts = routes.parts.iter().map(|(start, part)| {
            let end = part.end.as_ref().map_or(String::new(), |end| text(end));
            format!("{}..{end}:{}", text(start), part.shard.0)
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(learned: &str, expected: &str) {
        assert_eq!(shown(&routes(learned)), expected, "after {learned}");
    }

    #[test]
    fn later_shards_take_their_ranges_from_older_ones_whatever_comes_first() {
        check("1@1[,)", "..:1");
        check("1@1[,) 2@2[m,)", "..m:1 m..:2");
        check("1@1[,) 2@2[m,) 1@2[,m)", "..m:1 m..:2");
        check("1@1[,) 1@2[,m)", "..m:1");
        check("2@2[m,) 1@1[,)", "..m:1 m..:2");
        check("1@1[,) 3@3[f,k)", "..f:1 f..k:3 k..:1");
        check("3@3[f,k) 1@1[,)", "..f:1 f..k:3 k..:1");
        check("3@3[f,k) 1@2[,m) 2@2[m,)", "..f:1 f..k:3 k..m:1 m..:2");
        check("1@5[,m) 1@4[,)", "..m:1");
        check("2@5[,) 1@4[,m)", "..:2");
        check("1@1[,) 2@2[a,b) 3@2[b,c) 4@3[a,c)", "..a:1 a..c:4 c..:1");
    }

    #[test]
    fn every_order_of_the_same_reports_ends_in_the_same_places() {
        let reports = ["1@1[,)", "1@2[,m)", "2@2[m,)", "2@3[m,t)", "3@3[t,)"];
        let mut orders = vec![Vec::new()];
        for report in reports {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<&str>| {
                    (0..=order.len()).map(move |at| {
                        let mut order = order.clone();
                        order.insert(at, report);
                        order
                    })
                })
                .collect();
        }
        for order in orders {
            check(&order.join(" "), "..m:1 m..t:2 t..:3");
        }
    }

    #[test]
    fn a_key_goes_to_the_leader_if_known_and_never_to_the_one_who_asks() {
        let mut routes = routes("1@2[,m) 2@2[m,)");
        let asked = |routes: &Routes, key: &[u8], me| {
            routes.target(key, me).map(|to| (to.shard.0, to.node.0))
        };
        assert_eq!(asked(&routes, b"a", ME), Some((1, 1)));
        assert_eq!(asked(&routes, b"m", ME), Some((2, 1)));
        assert_eq!(asked(&routes, b"m", NodeId(1)), Some((2, 2)));
        routes.learn(shard("2@2[m,)"), Some(NodeId(3)));
        assert_eq!(asked(&routes, b"m", ME), Some((2, 3)));
        assert_eq!(asked(&routes, b"m", NodeId(3)), Some((2, 1)));
        routes.learn(shard("2@3[m,t)"), None);
        assert_eq!(asked(&routes, b"m", ME), Some((2, 3)), "it leads still");
        assert_eq!(asked(&routes, b"t", ME), None);
    }

    fn refuse(routes: &mut Routes, error: &Error) -> Option<u64> {
        let target = routes.target(b"k", ME)?;
        routes.refused(target, error);
        routes.target(b"k", ME).map(|to| to.node.0)
    }

    #[test]
    fn a_refusal_names_the_leader_or_turns_to_the_next_replica() {
        let mut routes = routes("1@1[,)");
        let group = GroupId::Shard(ShardId(1));
        let named = |leader| Error::NotLeader {
            group,
            leader: Some(NodeId(leader)),
        };
        assert_eq!(refuse(&mut routes, &named(3)), Some(3));
        let gone = Error::unavailable("n3", "no connection");
        assert_eq!(refuse(&mut routes, &gone), Some(2));
        assert_eq!(refuse(&mut routes, &gone), Some(3));
        routes.reached(routes.target(b"k", ME).unwrap(), false);
        assert_eq!(refuse(&mut routes, &Error::invalid("key", "long")), Some(1));
        assert_eq!(refuse(&mut routes, &gone), Some(2));
        assert_eq!(refuse(&mut routes, &gone), Some(3));
        assert_eq!(refuse(&mut routes, &gone), Some(1));
        assert_eq!(refuse(&mut routes, &gone), None, "asked all in vain");
    }

    #[test]
    fn who_has_shown_that_it_leads_is_asked_by_everybody() {
        let mut routes = routes("1@1[,)");
        let second = routes.target(b"k", NodeId(1)).unwrap();
        assert_eq!(second.node, NodeId(2));
        routes.reached(second, true);
        assert_eq!(routes.target(b"k", ME), Some(second));
        assert_eq!(routes.locate(b"k").unwrap().leader, Some(NodeId(2)));
    }

    #[test]
    fn a_shard_that_is_not_there_is_forgotten() {
        let lost = [
            Error::NotFound { what: "r1".into() },
            Error::StaleEpoch {
                group: GroupId::Shard(ShardId(1)),
                current: Vec::new(),
            },
        ];
        for error in lost {
            assert_eq!(refuse(&mut routes("1@1[,)"), &error), None);
        }
    }

    #[test]
    fn changes_are_told_once() {
        let mut routes = routes("2@2[m,) 1@2[,m)");
        let told = |routes: &Routes, since| -> Vec<u64> {
            let changed = routes.changes_since(since);
            changed.iter().map(|route| route.shard.id.0).collect()
        };
        assert_eq!(told(&routes, 0), [1, 2]);
        let since = routes.changes();
        routes.learn(shard("1@2[,m)"), None);
        assert_eq!((routes.changes(), told(&routes, since)), (since, vec![]));
        routes.learn(shard("1@2[,m)"), Some(NodeId(2)));
        routes.learn(shard("1@2[,m)"), Some(NodeId(2)));
        assert_eq!(
            (routes.changes(), told(&routes, since)),
            (since + 1, vec![1])
        );
    }
}
