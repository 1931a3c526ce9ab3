//! What nodes have said since this node leads placement's group, and what is remembered from one look to the
//! next. Decides only: times are lengths since some moment of the caller's, by a clock that is not set back.
//!
//! A node that takes over begins with nothing. It goes by what was recorded of silent nodes, so that one that
//! is dead is not waited for anew, and makes no view before everybody has had time to report. But while nobody led,
//! nobody listened: after a power cut the nodes start one after the other, and one that was silent before is not
//! given up before it has had a fifth of the usual time to be heard of.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::node::NodeView;
use crate::placement::node::slow_nodes;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::placement::state::PlacementState;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::node::Duty;
use crate::types::report::Load;
use crate::types::report::NodeReport;
use crate::types::report::Report;
use crate::types::report::ShardReport;
use crate::types::rule::Rule;
use crate::types::shard::ShardDescriptor;

/// The steady load of a shard follows a change of its load by two thirds in so long.
const STEADY_TIME: Duration = Duration::from_secs(30);
/// A node that has not taken a replica gets it for so long only where no other would do.
const REFUSAL_TIME: Duration = Duration::from_secs(300);
/// A leader that has not reported a shard for so long leads it no more, as far as anybody knows.
const LEADER_SILENCE_MAX: Duration = Duration::from_secs(5);

/// What nodes have said.
#[derive(Debug)]
pub struct Sightings {
    began: Duration,
    nodes: BTreeMap<NodeId, SeenNode>,
    shards: BTreeMap<ShardId, SeenShard>,
    /// Placement's own group.
    placement: Option<ShardDescriptor>,
}

#[derive(Debug)]
struct SeenNode {
    report: NodeReport,
    heard: Duration,
    slow: Option<Duration>,
}

#[derive(Debug, Default)]
struct SeenShard {
    report: Option<(ShardReport, Duration)>,
    /// Since the last report; none since the range changed.
    steady: Option<Steady>,
    busy_since: Option<Duration>,
    quiet_since: Option<Duration>,
    /// The epoch of its range when that was noted.
    bounds: u64,
    members: BTreeSet<ReplicaId>,
    arrivals: BTreeMap<ReplicaId, Duration>,
    /// The node that is to get a replica and has not taken it, and since when that is so.
    asked: Option<(NodeId, Duration)>,
    /// Nodes that did not take one, and when they were given up.
    refusals: BTreeMap<NodeId, Duration>,
}

/// A mean of loads that were reported, the later ones counting for more.
#[derive(Debug, Clone, Copy)]
struct Steady {
    operations: f64,
    bytes: f64,
    at: Duration,
}

impl Steady {
    fn of(load: Load, at: Duration) -> Steady {
        Steady {
            operations: load.operations as f64,
            bytes: load.bytes as f64,
            at,
        }
    }

    fn with(self, load: Load, at: Duration) -> Steady {
        let seconds = at.saturating_sub(self.at).as_secs_f64();
        let old = (-seconds / STEADY_TIME.as_secs_f64()).exp();
        let new = Steady::of(load, at);
        Steady {
            operations: self.operations * old + new.operations * (1.0 - old),
            bytes: self.bytes * old + new.bytes * (1.0 - old),
            at,
        }
    }

    fn load(self) -> Load {
        Load {
            operations: self.operations.round() as u64,
            bytes: self.bytes.round() as u64,
        }
    }
}

impl Sightings {
    /// Nothing has been said yet.
    pub fn new(began: Duration) -> Sightings {
        Sightings {
            began,
            nodes: BTreeMap::new(),
            shards: BTreeMap::new(),
            placement: None,
        }
    }

    /// Placement's own group, as its leader, who keeps these sightings, knows it. It leads since they began.
    pub fn see_placement(
        &mut self,
        descriptor: ShardDescriptor,
        mut report: ShardReport,
        now: Duration,
    ) {
        report.led_for = now.saturating_sub(self.began);
        let seen = self.shards.entry(descriptor.id).or_default();
        seen.note_members(&descriptor, now);
        seen.report = Some((report, now));
        self.placement = Some(descriptor);
    }

    /// A shard as it is recorded, or placement's group as it was seen last.
    pub fn descriptor<'a>(
        &'a self,
        state: &'a PlacementState,
        id: ShardId,
    ) -> Option<&'a ShardDescriptor> {
        match id {
            ShardId::PLACEMENT => self.placement.as_ref(),
            id => state.shard(id),
        }
    }

    /// A node reports.
    pub fn hear(&mut self, report: &Report, now: Duration) {
        let node = report.node.clone();
        let slow = self.nodes.get(&node.node).and_then(|seen| seen.slow);
        let seen = SeenNode {
            heard: now,
            slow,
            report: node,
        };
        self.nodes.insert(seen.report.node, seen);
        for led in &report.led {
            let seen = self.shards.entry(led.shard).or_default();
            // A leader that was deposed may not know it yet.
            let is_late = seen.report.as_ref().is_some_and(|(known, heard)| {
                led.term < known.term && now < *heard + LEADER_SILENCE_MAX
            });
            if !is_late || mutant::lives(Mutant::LateLeaderBelieved) {
                seen.report = Some((led.clone(), now));
                seen.steady = Some(match seen.steady {
                    Some(steady) => steady.with(led.load, now),
                    None => Steady::of(led.load, now),
                });
            }
        }
    }

    /// What a node has reported last.
    pub fn node(&self, id: NodeId) -> Option<&NodeReport> {
        self.nodes.get(&id).map(|seen| &seen.report)
    }

    /// What was reported of a shard last, however long ago.
    pub fn last_of(&self, id: ShardId) -> Option<&ShardReport> {
        let (report, _) = self.shards.get(&id)?.report.as_ref()?;
        Some(report)
    }

    /// What a shard's leader has reported last, while that is young.
    pub fn shard(&self, id: ShardId, now: Duration) -> Option<&ShardReport> {
        let (report, heard) = self.shards.get(&id)?.report.as_ref()?;
        (now < *heard + LEADER_SILENCE_MAX).then_some(report)
    }

    /// Whether everybody who may report has done so, or has had the time.
    pub fn is_settled(&self, state: &PlacementState, policy: &Policy, now: Duration) -> bool {
        let mut members = state.members().map(|member| member.id);
        now >= self.began + policy.suspect_after
            || members.all(|id| self.nodes.contains_key(&id) || state.node(id).is_silent())
    }

    /// The cluster at this moment; remembers what the next look needs. `wall` is the cluster's clock.
    pub fn look(
        &mut self,
        state: &PlacementState,
        policy: &Policy,
        now: Duration,
        wall: Timestamp,
    ) -> View {
        self.shards
            .retain(|id, _| *id == ShardId::PLACEMENT || state.shard(*id).is_some());
        for shard in state.shards() {
            let seen = self.shards.entry(shard.id).or_default();
            seen.note_members(shard, now);
            seen.note_load(shard.epoch.bounds, policy, now);
        }
        for shard in state.shards().chain(self.placement.as_ref()) {
            let operator = state.operator(shard.id).filter(|_| !state.is_paused());
            let to = operator.and_then(|(operator, _)| operator.not_taken(shard));
            let seen = self.shards.entry(shard.id).or_default();
            seen.note_asked(to, policy, now);
        }
        let mut nodes: BTreeMap<NodeId, NodeView> = state
            .members()
            .map(|member| {
                (
                    member.id,
                    self.node_view(state, policy, member.id, (now, wall)),
                )
            })
            .collect();
        for slow in slow_nodes(&nodes, policy) {
            if let Some(seen) = self.nodes.get_mut(&slow) {
                seen.slow = Some(now);
            }
        }
        for node in nodes.values_mut() {
            let seen = self.nodes.get(&node.id).and_then(|seen| seen.slow);
            node.slow_ago = seen.map(|at| now.saturating_sub(at));
        }
        let shards = state.shards();
        let operators = state.operators();
        View {
            shards: shards
                .map(|shard| (shard.id, self.shard_view(shard, now)))
                .collect(),
            placement: self
                .placement
                .as_ref()
                .map(|placement| self.shard_view(placement, now)),
            placement_rule: placement_rule(&nodes),
            rules: state.rules().to_vec(),
            keyspaces: state
                .keyspaces()
                .filter(|known| !known.retired)
                .map(|known| known.keyspace.clone())
                .collect(),
            operators: operators
                .map(|(operator, _)| (operator.shard, operator.clone()))
                .collect(),
            nodes,
        }
    }

    /// One shard at this moment.
    pub fn shard_view(&self, descriptor: &ShardDescriptor, now: Duration) -> ShardView {
        let mut shard = ShardView::new(descriptor.clone());
        let Some(seen) = self.shards.get(&descriptor.id) else {
            return shard;
        };
        let ago = |at: Duration| now.saturating_sub(at);
        let arrivals = seen.arrivals.iter();
        shard.arrived = arrivals.map(|(replica, at)| (*replica, ago(*at))).collect();
        shard.busy_for = seen.busy_since.map_or(Duration::ZERO, ago);
        shard.quiet_for = seen.quiet_since.map_or(Duration::ZERO, ago);
        shard.asked_for = seen.asked.map_or(Duration::ZERO, |(_, since)| ago(since));
        shard.refused = seen.refusals.keys().copied().collect();
        if let Some((report, _)) = &seen.report {
            shard.learners = report.learners.iter().copied().collect();
            shard.bytes = report.size.bytes;
            shard.keys = report.size.keys;
            shard.load = report.load;
            shard.steady = seen.steady.map_or(report.load, Steady::load);
            shard.sample = report.sample.clone();
        }
        if let Some(report) = self.shard(descriptor.id, now) {
            shard.leader = Some(report.leader);
            shard.led_for = report.led_for;
            shard.lags = report.lags.iter().copied().collect();
        }
        shard
    }

    fn node_view(
        &self,
        state: &PlacementState,
        policy: &Policy,
        id: NodeId,
        (now, wall): (Duration, Timestamp),
    ) -> NodeView {
        let record = state.node(id);
        let seen = self.nodes.get(&id);
        let report = seen.map(|seen| &seen.report);
        let silent_for = match seen {
            Some(seen) => now.saturating_sub(seen.heard),
            None => {
                let recorded = record.silent_since.map_or(0, Timestamp::wall_ms);
                let recorded = match recorded {
                    _ if mutant::lives(Mutant::SilenceBegunAnew) => Duration::ZERO,
                    0 => Duration::ZERO,
                    since => Duration::from_millis(wall.wall_ms().saturating_sub(since)),
                };
                let listened = now.saturating_sub(self.began);
                let believed = policy.replace_after * 4 / 5 + listened;
                recorded.min(believed).max(listened)
            }
        };
        NodeView {
            id,
            silent_for,
            labels: report.map_or(record.labels, |report| report.labels.clone()),
            role: report.map_or(record.role, |report| report.role),
            duty: record.duty,
            capacity_bytes: report.map_or(0, |report| report.capacity_bytes),
            used_bytes: report.map_or(0, |report| report.used_bytes),
            sync: report.map_or(Duration::ZERO, |report| report.sync),
            round_trip: report.map_or(Duration::ZERO, |report| report.round_trip),
            slow_ago: None,
        }
    }
}

/// Three replicas of placement's group, or five where there are so many nodes for them.
pub fn placement_rule(nodes: &BTreeMap<NodeId, NodeView>) -> Rule {
    let hosts = nodes.values();
    let hosts = hosts.filter(|node| node.is_for(ShardId::PLACEMENT) && node.duty != Duty::Leave);
    Rule {
        replicas: match hosts.count() {
            0..5 => 3,
            5.. => 5,
        },
        ..Rule::default()
    }
}

impl SeenShard {
    /// Replicas that the shard had when it was first looked at have not come lately, as far as anybody knows.
    fn note_members(&mut self, shard: &ShardDescriptor, now: Duration) {
        let members: BTreeSet<ReplicaId> = shard.replicas.iter().map(|it| it.id).collect();
        if !self.members.is_empty() {
            let new = members.difference(&self.members);
            self.arrivals.extend(new.map(|replica| (*replica, now)));
        }
        self.arrivals.retain(|replica, _| members.contains(replica));
        self.members = members;
    }

    /// Nobody is asked while no leader is there to do it.
    fn note_asked(&mut self, to: Option<NodeId>, policy: &Policy, now: Duration) {
        self.refusals
            .retain(|_, at| now.saturating_sub(*at) < REFUSAL_TIME);
        let heard = self.report.as_ref().map(|(_, heard)| *heard);
        let is_led = heard.is_some_and(|heard| now < heard + LEADER_SILENCE_MAX);
        self.asked = match (self.asked, to.filter(|_| is_led)) {
            (Some((node, since)), Some(to)) if node == to => Some((node, since)),
            (_, to) => to.map(|to| (to, now)),
        };
        if let Some((node, since)) = self.asked
            && now.saturating_sub(since) >= policy.operator_time
        {
            self.refusals.insert(node, now);
        }
    }

    fn note_load(&mut self, bounds: u64, policy: &Policy, now: Duration) {
        let report = self.report.as_ref().map(|(report, _)| report);
        let is_busy = report.is_some_and(|report| policy.is_busy(report.load));
        let is_quiet = report.is_some_and(|it| policy.is_quiet(it.size.bytes, it.load));
        // What was asked of the whole says nothing of its halves, and that both were quiet nothing of the whole.
        if self.bounds != bounds {
            (self.busy_since, self.quiet_since) = (None, None);
            self.steady = None;
            self.bounds = bounds;
        }
        self.busy_since = is_busy.then(|| self.busy_since.unwrap_or(now));
        self.quiet_since = is_quiet.then(|| self.quiet_since.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use crate::placement::node::Health;
    use crate::types::Incarnation;
    use crate::types::KeyRange;
    use crate::types::node::Newcomer;
    use crate::types::operator::Action;
    use crate::types::operator::Aim;
    use crate::types::operator::Operator;
    use crate::types::placement::PlacementAnswer;
    use crate::types::placement::PlacementCommand;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::Size;

    use super::*;

    const WALL: Timestamp = Timestamp::from_wall(1_000_000);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn shard(replicas: &[u64]) -> ShardDescriptor {
        let replicas = replicas.iter().map(|id| Replica {
            id: ReplicaId(*id),
            node: NodeId(id % 10),
        });
        ShardDescriptor {
            id: ShardId(9),
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: replicas.collect(),
        }
    }

    fn state(nodes: u64) -> PlacementState {
        let members = (1..=nodes).map(|id| {
            let newcomer = Newcomer {
                incarnation: Incarnation([id as u8; 16]),
                name: format!("n{id}"),
                node_address: String::new(),
                client_address: String::new(),
            };
            newcomer.into_member(NodeId(id))
        });
        PlacementState::formed(members.collect(), vec![shard(&[1, 2, 3])], 100)
    }

    fn report(node: u64, term: u64, operations: u64) -> Report {
        let led = ShardReport {
            shard: ShardId(9),
            epoch: Epoch::default(),
            leader: ReplicaId(node),
            term,
            led_for: seconds(7),
            learners: Vec::new(),
            lags: vec![(ReplicaId(2), 5)],
            size: Size::default(),
            load: Load {
                operations,
                bytes: 0,
            },
            sample: Vec::new(),
        };
        Report {
            node: NodeReport {
                node: NodeId(node),
                sync: Duration::from_millis(1),
                ..NodeReport::default()
            },
            led: match term {
                0 => Vec::new(),
                _ => vec![led],
            },
            ..Report::default()
        }
    }

    /// Where health and leaders come from, second by second.
    struct Scene {
        sightings: Sightings,
        state: PlacementState,
        policy: Policy,
    }

    impl Scene {
        fn new(began_s: u64) -> Scene {
            Scene {
                sightings: Sightings::new(seconds(began_s)),
                state: state(3),
                policy: Policy::default(),
            }
        }

        fn hear(&mut self, at_s: u64, report: &Report) {
            self.sightings.hear(report, seconds(at_s));
        }

        fn look(&mut self, at_s: u64) -> View {
            let Scene {
                sightings,
                state,
                policy,
            } = self;
            sightings.look(state, policy, seconds(at_s), WALL)
        }

        fn health(&mut self, at_s: u64, node: u64) -> Health {
            let view = self.look(at_s);
            view.health(NodeId(node), &self.policy)
        }
    }

    #[test]
    fn silence_counts_from_the_last_report_or_from_the_takeover() {
        let mut scene = Scene::new(100);
        scene.hear(101, &report(1, 0, 0));
        assert_eq!(scene.health(104, 1), Health::Up);
        assert_eq!(scene.health(104, 2), Health::Up);
        assert_eq!(scene.health(106, 1), Health::Suspect);
        assert_eq!(scene.health(105, 2), Health::Suspect);
        assert_eq!(scene.health(400, 2), Health::Dead);
    }

    #[test]
    fn whoever_takes_over_goes_on_with_the_silence_that_is_recorded() {
        let mut scene = Scene::new(100);
        let since = Some(Timestamp::from_wall(WALL.wall_ms() - 299_000));
        let node = NodeId(2);
        scene
            .state
            .apply(PlacementCommand::NoteSilence { node, since });
        assert_eq!(scene.health(101, 2), Health::Suspect);
        let since = Some(Timestamp::from_wall(WALL.wall_ms() - 300_000));
        scene
            .state
            .apply(PlacementCommand::NoteSilence { node, since });
        // It may be about to start: for a fifth of the time it is listened for.
        assert_eq!(scene.health(101, 2), Health::Suspect);
        assert_eq!(scene.health(159, 2), Health::Suspect);
        assert_eq!(scene.health(160, 2), Health::Dead);
        // What it says itself counts more than what was recorded.
        scene.hear(102, &report(2, 0, 0));
        assert_eq!(scene.health(102, 2), Health::Up);
    }

    #[test]
    fn a_view_is_settled_when_all_have_reported_or_have_had_the_time() {
        let mut scene = Scene::new(100);
        let settled = |scene: &Scene, at_s| {
            scene
                .sightings
                .is_settled(&scene.state, &scene.policy, seconds(at_s))
        };
        scene.hear(101, &report(1, 0, 0));
        scene.hear(101, &report(2, 0, 0));
        assert!(!settled(&scene, 104));
        assert!(settled(&scene, 105));
        scene.hear(101, &report(3, 0, 0));
        assert!(settled(&scene, 101));
        let mut scene = Scene::new(100);
        scene.hear(101, &report(1, 0, 0));
        scene.hear(101, &report(2, 0, 0));
        scene.state.apply(PlacementCommand::NoteSilence {
            node: NodeId(3),
            since: Some(WALL),
        });
        assert!(settled(&scene, 101), "it is known to be silent");
    }

    #[test]
    fn the_leader_of_the_later_term_counts_while_it_reports() {
        let mut scene = Scene::new(0);
        let leader = |scene: &mut Scene, at_s| {
            let view = scene.look(at_s);
            view.shards[&ShardId(9)].leader.map(|replica| replica.0)
        };
        assert_eq!(leader(&mut scene, 1), None);
        scene.hear(1, &report(1, 4, 0));
        scene.hear(2, &report(2, 5, 0));
        scene.hear(3, &report(1, 4, 0));
        assert_eq!(leader(&mut scene, 3), Some(2));
        assert_eq!(leader(&mut scene, 7), None, "it has not reported for 5 s");
        scene.hear(7, &report(1, 4, 0));
        assert_eq!(leader(&mut scene, 7), Some(1), "terms of another disk");
    }

    #[test]
    fn load_lasts_from_the_first_look_that_finds_it_and_arrivals_from_the_first_one_too() {
        let mut scene = Scene::new(0);
        scene.hear(1, &report(1, 1, 5_000));
        scene.look(1);
        scene
            .state
            .apply(PlacementCommand::RecordShard(ShardDescriptor {
                epoch: Epoch { conf: 1, bounds: 0 },
                ..shard(&[1, 2, 13])
            }));
        scene.look(4);
        let view = scene.look(6);
        let shard = &view.shards[&ShardId(9)];
        assert_eq!(shard.busy_for, seconds(5));
        assert_eq!(shard.arrived, BTreeMap::from([(ReplicaId(13), seconds(2))]));
        scene.hear(7, &report(1, 1, 10));
        scene.look(7);
        scene.hear(8, &report(1, 1, 5_000));
        let view = scene.look(9);
        assert_eq!(view.shards[&ShardId(9)].busy_for, Duration::ZERO);
    }

    #[test]
    fn a_load_that_wavers_hardly_moves_the_steady_one_and_one_that_stays_does() {
        let mut scene = Scene::new(0);
        let steady =
            |scene: &mut Scene, at_s| scene.look(at_s).shards[&ShardId(9)].steady.operations;
        scene.hear(1, &report(1, 1, 200));
        assert_eq!(steady(&mut scene, 1), 200, "nothing else is known");
        for at_s in 2..60 {
            scene.hear(at_s, &report(1, 1, 200 + 100 * (at_s % 2)));
            let now = steady(&mut scene, at_s);
            assert!((200..260).contains(&now), "{now} after {at_s} s");
        }
        for at_s in 60..240 {
            scene.hear(at_s, &report(1, 1, 1_000));
        }
        assert!((990..=1_000).contains(&steady(&mut scene, 240)));
        let shard = ShardDescriptor {
            epoch: Epoch { conf: 0, bounds: 1 },
            ..shard(&[1, 2, 3])
        };
        scene.state.apply(PlacementCommand::RecordShard(shard));
        scene.look(241);
        scene.hear(242, &report(1, 1, 400));
        assert_eq!(steady(&mut scene, 242), 400, "of another range");
    }

    #[test]
    fn quiet_begins_anew_when_there_is_more_to_do_and_with_another_range() {
        let mut scene = Scene::new(0);
        let quiet_for = |scene: &mut Scene, at_s| scene.look(at_s).shards[&ShardId(9)].quiet_for;
        assert_eq!(quiet_for(&mut scene, 1), Duration::ZERO, "nothing is known");
        scene.hear(2, &report(1, 1, 200));
        quiet_for(&mut scene, 2);
        assert_eq!(quiet_for(&mut scene, 9), seconds(7));
        scene.hear(10, &report(1, 1, 201));
        assert_eq!(quiet_for(&mut scene, 10), Duration::ZERO);
        scene.hear(11, &report(1, 1, 0));
        quiet_for(&mut scene, 11);
        assert_eq!(quiet_for(&mut scene, 13), seconds(2));
        let merged = ShardDescriptor {
            epoch: Epoch { conf: 0, bounds: 1 },
            ..shard(&[1, 2, 3])
        };
        scene.state.apply(PlacementCommand::RecordShard(merged));
        assert_eq!(quiet_for(&mut scene, 14), Duration::ZERO);
        assert_eq!(quiet_for(&mut scene, 15), seconds(1));
    }

    #[test]
    fn a_node_that_does_not_take_a_replica_for_as_long_as_a_step_may_last_is_remembered() {
        let mut scene = Scene::new(0);
        let add = Operator {
            shard: ShardId(9),
            aim: Aim::Repair,
            action: Action::Add { to: NodeId(4) },
            reason: String::new(),
            epoch: Epoch::default(),
            voters: shard(&[1, 2, 3]).replicas,
            bytes: 0,
            expires: Timestamp::from_wall(WALL.wall_ms() * 2),
        };
        let record = PlacementCommand::RecordOperators(vec![add.clone()]);
        assert_eq!(scene.state.apply(record), PlacementAnswer::Recorded);
        let asked = |scene: &mut Scene, at_s| {
            scene.hear(at_s, &report(1, 1, 0));
            let view = scene.look(at_s);
            let shard = &view.shards[&ShardId(9)];
            (shard.asked_for.as_secs(), shard.refused.len())
        };
        assert_eq!(asked(&mut scene, 1), (0, 0));
        scene.look(8);
        assert_eq!(asked(&mut scene, 9), (0, 0), "nobody led it for a while");
        assert_eq!(asked(&mut scene, 38), (29, 0));
        assert_eq!(asked(&mut scene, 39), (30, 1));
        let (_, change) = scene.state.operator(ShardId(9)).unwrap();
        let shard = ShardId(9);
        scene
            .state
            .apply(PlacementCommand::EndOperator { shard, change });
        assert_eq!(asked(&mut scene, 40), (0, 1));
        // It is the last resort.
        scene
            .state
            .apply(PlacementCommand::RecordOperators(vec![add]));
        assert_eq!(asked(&mut scene, 41), (0, 1));
        assert_eq!(asked(&mut scene, 42), (1, 1));
    }

    #[test]
    fn a_slow_node_is_remembered() {
        let mut scene = Scene::new(0);
        let slow = |at_ms| {
            let mut slow = report(3, 0, 0);
            slow.node.sync = Duration::from_millis(at_ms);
            slow
        };
        for node in [1, 2] {
            scene.hear(1, &report(node, 0, 0));
        }
        scene.hear(1, &slow(90));
        scene.look(1);
        for at_s in [2, 3] {
            for node in [1, 2] {
                scene.hear(at_s, &report(node, 0, 0));
            }
            scene.hear(at_s, &slow(1));
        }
        let view = scene.look(3);
        assert_eq!(view.nodes[&NodeId(3)].slow_ago, Some(seconds(2)));
        assert_eq!(view.nodes[&NodeId(1)].slow_ago, None);
    }
}
