//! A cluster that is drawn in a few lines, as placement sees it, and what becomes of it when operators are
//! carried out. Nothing runs: a step changes the view as the shard's leader would change the shard.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub)]

pub mod words;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use quorate::placement::Policy;
use quorate::placement::ShardView;
use quorate::placement::View;
use quorate::placement::node::Health;
use quorate::placement::operator::Progress;
use quorate::placement::plan;
use quorate::placement::sightings::placement_rule;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::operator::Operator;
use quorate::types::operator::SplitPoint;
use quorate::types::operator::Step;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;

/// A cluster at one moment, and what is needed to go on from there.
#[derive(Debug, Clone)]
pub struct Drawing {
    pub view: View,
    pub policy: Policy,
    pub now: Timestamp,
    /// What others than shards use of each disk, in bytes.
    pub used_otherwise: BTreeMap<NodeId, u64>,
    next_id: u64,
}

/// What has become of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Stepped(Step),
    Done,
    Stale,
    Expired,
}

impl Default for Drawing {
    fn default() -> Drawing {
        Drawing {
            view: View::default(),
            policy: Policy::default(),
            now: Timestamp::from_wall(1_000_000),
            used_otherwise: BTreeMap::new(),
            next_id: 1_000,
        }
    }
}

impl Drawing {
    pub fn plan(&self) -> Vec<Operator> {
        plan(&self.view, &self.policy, self.now)
    }

    /// Records what was planned, so that it is under way.
    pub fn record(&mut self, operators: Vec<Operator>) {
        for operator in operators {
            let shard = operator.shard;
            let earlier = self.view.operators.insert(shard, operator);
            assert_eq!(earlier, None, "{shard} has two operators");
        }
    }

    /// Every operator that is under way takes a step, or ends.
    pub fn step(&mut self) -> Vec<(Operator, Fate)> {
        let under_way: Vec<Operator> = self.view.operators.values().cloned().collect();
        let fates = under_way.into_iter().map(|operator| {
            let fate = self.advance(&operator);
            if !matches!(fate, Fate::Stepped(_)) {
                self.view.operators.remove(&operator.shard);
            }
            (operator, fate)
        });
        let fates = fates.collect();
        self.refresh();
        fates
    }

    fn advance(&mut self, operator: &Operator) -> Fate {
        let shard = self.view.shard(operator.shard).unwrap();
        match operator.next(shard) {
            Progress::Done => Fate::Done,
            Progress::Stale => Fate::Stale,
            Progress::Next(..) if operator.has_expired(self.now) => Fate::Expired,
            Progress::Next(step, epoch) => {
                assert_eq!(epoch, shard.descriptor.epoch);
                self.perform(operator.shard, step.clone());
                Fate::Stepped(step)
            }
        }
    }

    /// Time goes by, in which silent nodes stay silent and nothing else happens.
    pub fn wait(&mut self, time: Duration) {
        self.now = Timestamp::from_wall(self.now.wall_ms() + time.as_millis() as u64);
        for node in self.view.nodes.values_mut() {
            if node.silent_for > Duration::ZERO {
                node.silent_for += time;
            }
            node.slow_ago = node.slow_ago.map(|ago| ago + time);
        }
        for shard in self.view.shards.values_mut() {
            shard.led_for += time;
            shard.arrived.values_mut().for_each(|ago| *ago += time);
            match shard.is_busy(&self.policy) {
                true => shard.busy_for += time,
                false => shard.busy_for = Duration::ZERO,
            }
            match shard.is_quiet(&self.policy) {
                true => shard.quiet_for += time,
                false => shard.quiet_for = Duration::ZERO,
            }
        }
    }

    /// Where a leader is silent another replica leads, if a majority answers.
    pub fn elect(&mut self) {
        let (nodes, policy) = (&self.view.nodes, &self.policy);
        let is_live = |replica: &Replica| {
            let node = nodes.get(&replica.node);
            node.is_some_and(|node| node.health(policy) < Health::Suspect)
        };
        let placement = self.view.placement.iter_mut();
        for shard in placement.chain(self.view.shards.values_mut()) {
            let live: Vec<Replica> = shard.voters().filter(is_live).collect();
            if live.len() <= shard.voters().count() / 2 {
                shard.leader = None;
            } else if live.iter().all(|voter| Some(voter.id) != shard.leader) {
                shard.leader = Some(live[0].id);
                shard.led_for = Duration::ZERO;
            }
        }
    }

    /// Counts again what the disks hold.
    pub fn refresh(&mut self) {
        self.view.placement_rule = placement_rule(&self.view.nodes);
        for (id, node) in &mut self.view.nodes {
            let shards = self.view.shards.values();
            let held = shards.filter(|shard| shard.descriptor.replica_on(*id).is_some());
            let otherwise = self.used_otherwise.get(id).copied().unwrap_or(0);
            node.used_bytes = otherwise + held.map(|shard| shard.bytes).sum::<u64>();
        }
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn shard(&mut self, id: ShardId) -> &mut ShardView {
        match id {
            ShardId::PLACEMENT => self.view.placement.as_mut().unwrap(),
            id => self.view.shards.get_mut(&id).unwrap(),
        }
    }

    fn perform(&mut self, id: ShardId, step: Step) {
        match step {
            Step::AddReplica(node) => self.add_or_promote(id, node),
            Step::RemoveReplica(replica) => {
                let shard = self.shard(id);
                shard.descriptor.replicas.retain(|other| *other != replica);
                shard.descriptor.epoch.conf += 1;
                shard.learners.remove(&replica.id);
                shard.arrived.remove(&replica.id);
                self.elect();
            }
            Step::TransferLeader(node) => {
                let shard = self.shard(id);
                shard.leader = Some(shard.voter_on(node).unwrap().id);
                shard.led_for = Duration::ZERO;
            }
            Step::Split(at) => self.split(id, at),
            Step::Merge { right, epoch } => self.merge(id, right, epoch),
        }
    }

    fn add_or_promote(&mut self, id: ShardId, node: NodeId) {
        let replica = Replica {
            id: ReplicaId(self.take_id()),
            node,
        };
        let shard = self.shard(id);
        let other = shard.learner().filter(|learner| learner.node != node);
        assert_eq!(other, None, "the leader of {id} refuses a second learner");
        shard.descriptor.epoch.conf += 1;
        match shard.descriptor.replica_on(node) {
            Some(learner) => {
                assert!(shard.learners.remove(&learner.id), "{learner:?} votes");
                shard.lags.insert(learner.id, 0);
            }
            None => {
                shard.descriptor.replicas.push(replica);
                shard.learners.insert(replica.id);
                shard.arrived.insert(replica.id, Duration::ZERO);
            }
        }
    }

    fn split(&mut self, id: ShardId, at: SplitPoint) {
        let at = match at {
            SplitPoint::Key(key) => key,
            SplitPoint::Middle => middle(&self.view.shards[&id].descriptor.range),
        };
        let child_id = ShardId(self.take_id());
        let fresh: Vec<u64> = (0..9).map(|_| self.take_id()).collect();
        let parent = self.shard(id);
        let (left, right) = parent.descriptor.range.split_at(at).unwrap();
        parent.descriptor.epoch.bounds += 1;
        parent.quiet_for = Duration::ZERO;
        let mut child = parent.clone();
        parent.descriptor.range = left.clone();
        child.descriptor.id = child_id;
        child.descriptor.range = right;
        for (replica, id) in child.descriptor.replicas.iter_mut().zip(fresh) {
            if child.leader == Some(replica.id) {
                child.leader = Some(ReplicaId(id));
            }
            if child.learners.remove(&replica.id) {
                child.learners.insert(ReplicaId(id));
            }
            replica.id = ReplicaId(id);
        }
        child.arrived.clear();
        let replicas = child.descriptor.replicas.iter();
        child.lags = replicas.map(|replica| (replica.id, 0)).collect();
        parent.bytes /= 2;
        parent.keys /= 2;
        child.bytes -= parent.bytes;
        child.keys -= parent.keys;
        let all = parent.sample.len().max(1) as u64;
        parent.sample.retain(|key| left.contains(key));
        child.sample.retain(|key| !left.contains(key));
        let share = |load: u64| match parent.sample.len() + child.sample.len() {
            0 => load / 2,
            _ => load * parent.sample.len() as u64 / all,
        };
        parent.load.operations = share(parent.load.operations);
        parent.load.bytes = share(parent.load.bytes);
        child.load.operations -= parent.load.operations;
        child.load.bytes -= parent.load.bytes;
        (parent.steady, child.steady) = (parent.load, child.load);
        self.view.shards.insert(child_id, child);
    }
}

impl Drawing {
    fn merge(&mut self, id: ShardId, right: ShardId, epoch: Epoch) {
        assert!(!self.view.operators.contains_key(&right), "{right} is busy");
        let right = self.view.shards.remove(&right).unwrap();
        let left = self.shard(id);
        let nodes = |shard: &ShardView| -> BTreeSet<NodeId> {
            let replicas = shard.descriptor.replicas.iter();
            replicas.map(|replica| replica.node).collect()
        };
        assert_eq!(nodes(left), nodes(&right), "they are on the same nodes");
        assert_eq!(right.descriptor.epoch, epoch, "it is as it was planned");
        let (known, end) = (&mut left.descriptor, right.descriptor.range.end);
        assert_eq!(known.range.end, Some(right.descriptor.range.start));
        known.range.end = end;
        known.epoch.bounds = known.epoch.bounds.max(epoch.bounds) + 1;
        left.bytes += right.bytes;
        left.keys += right.keys;
        left.load.operations += right.load.operations;
        left.load.bytes += right.load.bytes;
        left.steady = left.load;
        left.sample.extend(right.sample);
        left.quiet_for = Duration::ZERO;
    }
}

/// A key about half-way through a range.
fn middle(range: &KeyRange) -> Key {
    let number = |key: &[u8]| {
        let mut bytes = [0; 8];
        let count = key.len().min(8);
        bytes[..count].copy_from_slice(&key[..count]);
        u64::from_be_bytes(bytes)
    };
    let start = number(&range.start);
    let end = range.end.as_ref().map_or(u64::MAX, |end| number(end));
    Key::copy_from_slice(&(start + (end - start) / 2).to_be_bytes())
}
