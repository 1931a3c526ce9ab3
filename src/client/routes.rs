//! Which node is asked. Decides only: time comes in as milliseconds since the client's start.
//!
//! Any node serves any key, so an entry always works; knowing the leader saves a hop. What is known is
//! a hint and may be late: the answers correct it.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::client::shards::Shards;
use crate::types::GroupId;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::key::Anchor;
use crate::types::request::Answered;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::NodeStatus;
use crate::wire::request::ShardRoute;

const AVOID_MS_FIRST: u64 = 1_000;
/// A node may advertise an address that this client can never reach: it is tried once a minute.
const AVOID_MS_MAX: u64 = 60_000;

/// What a client knows about where to send its requests.
#[derive(Debug)]
pub struct Routes {
    /// As given by the caller; never empty.
    endpoints: Vec<String>,
    /// Index into the endpoints, then the learned addresses.
    current: usize,
    learned: BTreeMap<NodeId, String>,
    shards: Shards,
    leads: HashMap<GroupId, Lead>,
    avoided: HashMap<String, Avoided>,
}

/// Who leads a group, as the newest term heard of has it.
#[derive(Debug, Default)]
struct Lead {
    term: u64,
    leader: Option<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct Avoided {
    failures: u32,
    until_ms: u64,
}

impl Routes {
    /// Starts with the addresses given, of which there must be at least one, at the one numbered
    /// `first` (counted around), so that several clients can spread over them.
    pub fn new(endpoints: Vec<String>, first: usize) -> Routes {
        assert!(!endpoints.is_empty(), "a client needs an address to ask");
        let current = first % endpoints.len();
        Routes {
            endpoints,
            current,
            learned: BTreeMap::new(),
            shards: Shards::default(),
            leads: HashMap::new(),
            avoided: HashMap::new(),
        }
    }

    /// The node asked when nothing better is known.
    pub fn entry(&self) -> String {
        let candidates = self.candidates();
        candidates[self.current % candidates.len()].clone()
    }

    /// Turns to the next entry if the current one is `failed`, and says which it is. Of several
    /// requests that fail at one node only the first turns.
    pub fn turn(&mut self, failed: &str) -> String {
        let candidates = self.candidates();
        let current = self.current % candidates.len();
        if candidates[current] == failed {
            self.current = (current + 1) % candidates.len();
        }
        self.entry()
    }

    /// How many different addresses are known.
    pub fn count(&self) -> usize {
        self.candidates().len()
    }

    /// Every address known, those given first.
    pub fn candidates(&self) -> Vec<String> {
        let learned = self.learned.values();
        let new = learned.filter(|address| !self.endpoints.contains(address));
        self.endpoints.iter().chain(new).cloned().collect()
    }

    /// Where clients reach a node, if that is known.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.learned.get(&node).cloned()
    }

    /// The shard at a place in the order of keys, if known.
    pub fn shard_at(&self, anchor: Anchor<'_>) -> Option<&ShardDescriptor> {
        self.shards.at(anchor)
    }

    /// The range of the shard that holds `key`, if known.
    pub fn range_with(&self, key: &[u8]) -> Option<KeyRange> {
        let shard = self.shard_at(Anchor::At(key))?;
        Some(shard.range.clone())
    }

    /// The address of the leader of the shard at a place in the order of keys, if known and not being
    /// avoided.
    pub fn leader_at(&self, anchor: Anchor<'_>, now_ms: u64) -> Option<String> {
        let shard = self.shard_at(anchor)?;
        self.leader_of(GroupId::Shard(shard.id), now_ms)
    }

    /// The address of a group's leader, if known and not being avoided.
    pub fn leader_of(&self, group: GroupId, now_ms: u64) -> Option<String> {
        self.usable(self.leads.get(&group)?.leader?, now_ms)
    }

    fn usable(&self, node: NodeId, now_ms: u64) -> Option<String> {
        let address = self.address(node)?;
        let avoided = self.avoided.get(&address);
        avoided
            .is_none_or(|avoided| avoided.until_ms <= now_ms)
            .then_some(address)
    }

    /// Learns members, shards and leaders from what one node knows.
    pub fn observe(&mut self, status: &NodeStatus) {
        for member in &status.members {
            self.learned
                .insert(member.id, member.client_address.clone());
        }
        let own = &status.member;
        self.learned.insert(own.id, own.client_address.clone());
        for seen in &status.groups {
            if let Some(shard) = &seen.shard {
                self.learn(shard.clone());
            }
            let known = self.leads.entry(seen.group).or_default();
            if seen.term >= known.term {
                known.term = seen.term;
                known.leader = seen.leader.or(known.leader);
            }
        }
    }

    /// Learns a shard, unless what is known is newer.
    pub fn learn(&mut self, shard: ShardDescriptor) {
        self.shards.learn(shard);
    }

    /// Learns where a shard is from a node that has heard of it, and who leads it if nobody better has said so.
    pub fn located(&mut self, route: ShardRoute) {
        let lead = self.leads.entry(route.shard.id.group()).or_default();
        lead.leader = lead.leader.or(route.leader);
        self.learn(route.shard);
    }

    /// Whether any node has said who belongs to its cluster.
    pub fn knows_members(&self) -> bool {
        !self.learned.is_empty()
    }

    /// Learns from an answer who leads. False when the answering replica is not known, or only follows where
    /// it was taken for the leader or nobody was: then a status would tell.
    pub fn answered(&mut self, answered: &Answered) -> bool {
        let replica = self.shards.get(answered.shard).and_then(|shard| {
            let mut replicas = shard.replicas.iter();
            replicas.find(|replica| replica.id == answered.replica)
        });
        let Some(node) = replica.map(|replica| replica.node) else {
            return false;
        };
        let group = GroupId::Shard(answered.shard);
        let leader = &mut self.leads.entry(group).or_default().leader;
        // A follower answers too, for a round trip more: it must not stay the leader here for that.
        *leader = match answered.leader {
            true => Some(node),
            false => leader.filter(|known| *known != node),
        };
        leader.is_some()
    }

    /// Whether the shard that is known at this place is the one that has answered. It is not when that has
    /// absorbed it: then a status would tell.
    pub fn meant(&self, place: Anchor<'_>, answers: &[Answered]) -> bool {
        match (self.shard_at(place), answers) {
            (Some(shard), [answer]) => shard.id == answer.shard,
            (Some(_), _) | (None, _) => true,
        }
    }

    /// Learns from a refusal who leads.
    pub fn redirected(&mut self, group: GroupId, leader: Option<NodeId>) {
        self.leads.entry(group).or_default().leader = leader;
    }

    /// Notes that nobody answered at `address`, or not usefully.
    pub fn failed(&mut self, address: &str, now_ms: u64) {
        let failures = self.avoided.get(address).map_or(0, |known| known.failures);
        let wait = AVOID_MS_FIRST << failures.min(10);
        self.avoided.insert(
            address.to_string(),
            Avoided {
                failures: failures + 1,
                until_ms: now_ms + wait.min(AVOID_MS_MAX),
            },
        );
    }

    /// Notes that the node at `address` has answered.
    pub fn reached(&mut self, address: &str) {
        if !self.avoided.is_empty() {
            self.avoided.remove(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClusterId;
    use crate::types::Incarnation;
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::Timestamp;
    use crate::types::node::Member;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::wire::request::GroupStatus;

    const SHARD: GroupId = GroupId::Shard(ShardId(1));

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            incarnation: Incarnation([id as u8; 16]),
            name: format!("n{id}"),
            node_address: format!("n{id}:7401"),
            client_address: format!("n{id}:7400"),
        }
    }

    /// A status of node 1 in a cluster of three, whose one shard has replicas 11, 12, 13.
    fn status(term: u64, leader: Option<u64>) -> NodeStatus {
        let replica = |node| Replica {
            id: ReplicaId(10 + node),
            node: NodeId(node),
        };
        NodeStatus {
            cluster: ClusterId([1; 16]),
            member: member(1),
            version: "0".into(),
            uptime_s: 1,
            ready: true,
            free_bytes: 1,
            groups: vec![GroupStatus {
                group: SHARD,
                replica: ReplicaId(11),
                role: "follower".into(),
                leader: leader.map(NodeId),
                term,
                last_index: 1,
                applied_index: 1,
                purged_index: 0,
                shard: Some(ShardDescriptor {
                    id: ShardId(1),
                    range: KeyRange::ALL,
                    epoch: Epoch::default(),
                    replicas: vec![replica(1), replica(2), replica(3)],
                }),
                state_hash: None,
            }],
            members: vec![member(1), member(2), member(3)],
        }
    }

    fn answered(replica: u64, leader: bool) -> Answered {
        Answered {
            shard: ShardId(1),
            replica: ReplicaId(replica),
            leader,
            timestamp: Timestamp::ZERO,
            as_of: Timestamp::ZERO,
        }
    }

    fn routes() -> Routes {
        Routes::new(vec!["a:1".into(), "n2:7400".into()], 0)
    }

    #[test]
    fn only_the_first_of_several_failures_at_one_node_turns_away_from_it() {
        let mut routes = routes();
        assert_eq!(routes.entry(), "a:1");
        assert_eq!(routes.turn("a:1"), "n2:7400");
        assert_eq!(routes.turn("a:1"), "n2:7400");
        assert_eq!(routes.turn("n2:7400"), "a:1");
    }

    #[test]
    fn members_that_were_learned_are_further_entries() {
        let mut routes = routes();
        routes.observe(&status(1, None));
        assert_eq!(
            routes.candidates(),
            ["a:1", "n2:7400", "n1:7400", "n3:7400"]
        );
    }

    #[test]
    fn an_answer_of_another_shard_than_the_known_one_shows_that_more_is_to_be_learned() {
        let mut routes = routes();
        let place = Anchor::At(b"k");
        assert!(
            routes.meant(place, &[answered(11, true)]),
            "nothing known yet"
        );
        routes.observe(&status(1, Some(2)));
        assert!(routes.meant(place, &[answered(11, true)]));
        let absorber = Answered {
            shard: ShardId(9),
            ..answered(11, true)
        };
        assert!(!routes.meant(place, &[absorber]));
    }

    #[test]
    fn the_leader_is_learned_from_status_answers_and_redirects() {
        let mut routes = routes();
        assert!(!routes.answered(&answered(13, true)), "nothing known yet");
        routes.observe(&status(1, Some(2)));
        assert_eq!(routes.leader_at(Anchor::At(b"k"), 0).unwrap(), "n2:7400");
        assert!(routes.answered(&answered(11, false)));
        assert_eq!(routes.leader_of(SHARD, 0).unwrap(), "n2:7400");
        assert!(routes.answered(&answered(13, true)));
        assert_eq!(routes.leader_of(SHARD, 0).unwrap(), "n3:7400");
        routes.redirected(SHARD, Some(NodeId(1)));
        assert_eq!(routes.leader_of(SHARD, 0).unwrap(), "n1:7400");
        assert!(!routes.answered(&answered(99, true)), "a new replica");
    }

    #[test]
    fn a_leader_that_only_follows_now_is_forgotten_and_the_next_is_asked_for() {
        let mut routes = routes();
        routes.observe(&status(1, None));
        assert!(!routes.answered(&answered(11, false)), "nobody is known");
        routes.observe(&status(1, Some(2)));
        assert!(routes.answered(&answered(11, false)));
        assert!(!routes.answered(&answered(12, false)));
        assert_eq!(routes.leader_of(SHARD, 0), None);
        routes.observe(&status(2, Some(3)));
        assert_eq!(routes.leader_of(SHARD, 0).unwrap(), "n3:7400");
    }

    #[test]
    fn each_shard_has_its_leader_and_a_split_is_learned_whole() {
        let mut routes = routes();
        let before = status(3, Some(1));
        routes.observe(&before);
        let whole = before.groups[0].shard.clone().unwrap();
        let (left, right) = whole.range.split_at("m".into()).unwrap();
        let half = |id, range| ShardDescriptor {
            id: ShardId(id),
            range,
            epoch: Epoch { conf: 0, bounds: 1 },
            replicas: whole.replicas.clone(),
        };
        let mut after = status(3, Some(1));
        after.groups[0].shard = Some(half(1, left));
        after.groups.push(GroupStatus {
            group: GroupId::Shard(ShardId(2)),
            leader: Some(NodeId(3)),
            shard: Some(half(2, right.clone())),
            ..after.groups[0].clone()
        });
        routes.observe(&after);
        let leader = |routes: &Routes, anchor| routes.leader_at(anchor, 0).unwrap();
        // Heard late: the shard as it was.
        routes.observe(&before);
        assert_eq!(leader(&routes, Anchor::At(b"a")), "n1:7400");
        assert_eq!(leader(&routes, Anchor::At(b"m")), "n3:7400");
        assert_eq!(leader(&routes, Anchor::Before(Some(b"m"))), "n1:7400");
        assert_eq!(leader(&routes, Anchor::Before(None)), "n3:7400");
        assert_eq!(routes.range_with(b"x"), Some(right));
    }

    #[test]
    fn an_older_status_does_not_undo_a_newer_one() {
        let mut routes = routes();
        routes.observe(&status(5, Some(3)));
        routes.observe(&status(4, Some(2)));
        assert_eq!(routes.leader_of(SHARD, 0).unwrap(), "n3:7400");
    }

    #[test]
    fn a_leader_that_cannot_be_reached_is_avoided_for_longer_each_time() {
        let mut routes = routes();
        routes.observe(&status(1, Some(3)));
        routes.failed("n3:7400", 0);
        assert_eq!(routes.leader_of(SHARD, 999), None);
        assert!(routes.leader_of(SHARD, 1_000).is_some());
        routes.failed("n3:7400", 1_000);
        assert_eq!(routes.leader_of(SHARD, 2_999), None);
        routes.reached("n3:7400");
        assert!(routes.leader_of(SHARD, 2_000).is_some());
    }
}
