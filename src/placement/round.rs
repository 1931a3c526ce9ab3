//! What whoever leads placement's group does at one look: ends operators, notes who is silent, plans. Decides
//! only; it is carried out by making the changes given, one after the other.

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::node::Health;
use crate::placement::node::Unfit;
use crate::placement::operator::Progress;
use crate::placement::plan;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::placement::sightings::Sightings;
use crate::placement::state::PlacementState;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::Timestamp;
use crate::types::node::Duty;
use crate::types::operator::Action;
use crate::types::operator::Aim;
use crate::types::operator::Operator;
use crate::types::placement::PlacementCommand;
use crate::types::shard::Replica;

/// Operators recorded in one change: some hundred kilobytes.
const RECORDED_AT_ONCE_MAX: usize = 256;

/// Something to change, and what people are told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What is changed.
    pub command: PlacementCommand,
    /// What has happened, one line each; none where nobody needs to know.
    pub events: Vec<String>,
}

/// Everything to be changed now, in this order.
pub fn changes(
    state: &PlacementState,
    sightings: &Sightings,
    view: &View,
    policy: &Policy,
    now: Timestamp,
) -> Vec<Change> {
    let mut changes = endings(state, view, policy, now);
    changes.extend(descriptions(state, sightings));
    changes.extend(silences(state, view, policy, now));
    if !state.is_paused() || mutant::lives(Mutant::PausedPlans) {
        changes.extend(recordings(plan(view, policy, now)));
    }
    changes
}

/// Operators that have come to their end.
fn endings(state: &PlacementState, view: &View, policy: &Policy, now: Timestamp) -> Vec<Change> {
    let ended = state.operators().filter_map(|(operator, change)| {
        let how = ending(operator, view, policy, now)?;
        Some(Change {
            command: PlacementCommand::EndOperator {
                shard: operator.shard,
                change,
            },
            events: vec![format!("{how}: {operator}")],
        })
    });
    ended.collect()
}

fn ending(
    operator: &Operator,
    view: &View,
    policy: &Policy,
    now: Timestamp,
) -> Option<&'static str> {
    let Some(shard) = view.shard(operator.shard) else {
        return Some("ended with its shard");
    };
    match operator.next(shard) {
        Progress::Done => Some("done"),
        Progress::Stale => Some("ended, since the shard has changed"),
        Progress::Next(..) if operator.has_expired(now) => Some("given up, since its time is over"),
        Progress::Next(..) if is_refused(operator, shard, policy) => {
            Some("given up, since the node does not take it")
        }
        Progress::Next(..) if !can_be_reached(operator, shard, view, policy) => {
            Some("ended, since the node is not to have it any more")
        }
        Progress::Next(..) if must_pass_the_lead(operator, shard, view, policy) => {
            Some("ended, since the lead goes first")
        }
        Progress::Next(..) if has_other_neighbour(operator, view) => {
            Some("ended, since its neighbour has changed")
        }
        Progress::Next(..) => None,
    }
}

/// Whether the node has had the time to take a replica, which is none to copy it. Some other node may do.
fn is_refused(operator: &Operator, shard: &ShardView, policy: &Policy) -> bool {
    shard.asked_for >= policy.operator_time && operator.not_taken(&shard.descriptor).is_some()
}

/// Whether the node that gets something is still one that may get it; what it has got it keeps. One that is slow
/// may get a replica, which is where it goes when no other node would do: and copying alone can make it slow.
fn can_be_reached(operator: &Operator, shard: &ShardView, view: &View, policy: &Policy) -> bool {
    let (to, may_be_slow) = match &operator.action {
        Action::Add { to } | Action::Move { to, .. } if shard.voter_on(*to).is_some() => {
            return true;
        }
        Action::Add { to } | Action::Move { to, .. } => (to, true),
        Action::Transfer { to, .. } => (to, false),
        Action::Remove { .. } | Action::Split { .. } | Action::Merge { .. } => return true,
    };
    let fitness = view
        .nodes
        .get(to)
        .map(|node| node.fitness(operator.shard, policy));
    match fitness {
        Some(Ok(())) => true,
        Some(Err(Unfit::Health(Health::Slow))) => may_be_slow,
        Some(Err(_)) | None => false,
    }
}

/// Whether the shard that is to be absorbed is not what it was: nobody would do it.
fn has_other_neighbour(operator: &Operator, view: &View) -> bool {
    let Action::Merge { right, epoch } = &operator.action else {
        return false;
    };
    let right = view.shard(*right);
    right.is_none_or(|right| right.descriptor.epoch != *epoch)
}

/// A node that is drained gives up its leads within seconds, whatever else is done with the shard, if there is
/// somebody to take them: what has begun is gone on with behind its next leader.
fn must_pass_the_lead(
    operator: &Operator,
    shard: &ShardView,
    view: &View,
    policy: &Policy,
) -> bool {
    let Some(leading) = shard.leading() else {
        return false;
    };
    let node = view.nodes.get(&leading.node);
    let is_to_lead = node.is_none_or(|node| node.duty == Duty::Serve);
    let passes = matches!(operator.action, Action::Transfer { .. });
    let can_lead = |voter: Replica| {
        let node = view.nodes.get(&voter.node);
        let is_fit = node.is_some_and(|node| node.fitness(operator.shard, policy).is_ok());
        voter != leading && is_fit && shard.caught_up(voter.id, policy)
    };
    !is_to_lead && !passes && operator.aim > Aim::Relieve && shard.voters().any(can_lead)
}

/// What nodes say of themselves, where it is not what is recorded.
fn descriptions(state: &PlacementState, sightings: &Sightings) -> Vec<Change> {
    let reports = state.members().filter_map(|member| {
        let report = sightings.node(member.id)?;
        let record = state.node(member.id);
        let is_known = record.labels == report.labels && record.role == report.role;
        (!is_known).then(|| Change {
            command: PlacementCommand::DescribeNode {
                node: member.id,
                labels: report.labels.clone(),
                role: report.role,
            },
            events: Vec::new(),
        })
    });
    reports.collect()
}

/// Who has fallen silent, and who is back.
fn silences(state: &PlacementState, view: &View, policy: &Policy, now: Timestamp) -> Vec<Change> {
    let noted = view.nodes.values().filter_map(|node| {
        let health = node.health(policy);
        let is_silent = health >= Health::Suspect;
        if is_silent == state.node(node.id).is_silent() {
            return None;
        }
        let silent_ms = u64::try_from(node.silent_for.as_millis()).unwrap_or(u64::MAX);
        let since = Timestamp::from_wall(now.wall_ms().saturating_sub(silent_ms));
        Some(Change {
            command: PlacementCommand::NoteSilence {
                node: node.id,
                since: is_silent.then_some(since),
            },
            events: vec![match is_silent {
                true => format!("{} is silent", named(state, node.id)),
                false => format!("{} is back", named(state, node.id)),
            }],
        })
    });
    noted.collect()
}

fn named(state: &PlacementState, node: NodeId) -> String {
    match state.member(node) {
        Some(member) => format!("{node} ({})", member.name),
        None => node.to_string(),
    }
}

fn recordings(mut planned: Vec<Operator>) -> Vec<Change> {
    let mut changes = Vec::new();
    while !planned.is_empty() {
        let rest = planned.split_off(planned.len().min(RECORDED_AT_ONCE_MAX));
        let portion = std::mem::replace(&mut planned, rest);
        changes.push(Change {
            events: portion.iter().map(ToString::to_string).collect(),
            command: PlacementCommand::RecordOperators(portion),
        });
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::Incarnation;
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::node::Newcomer;
    use crate::types::report::NodeReport;
    use crate::types::report::Report;
    use crate::types::report::ShardReport;
    use crate::types::shard::Epoch;
    use crate::types::shard::ShardDescriptor;
    use crate::types::shard::Size;

    const WALL: Timestamp = Timestamp::from_wall(1_000_000);

    fn shard(bounds: u64) -> ShardDescriptor {
        let replicas = (1..=3).map(|id| Replica {
            id: ReplicaId(id),
            node: NodeId(id),
        });
        ShardDescriptor {
            id: ShardId(9),
            range: KeyRange::ALL,
            epoch: Epoch { conf: 1, bounds },
            replicas: replicas.collect(),
        }
    }

    /// Three nodes that have reported at second 0, with a shard of so many bytes.
    struct Scene {
        state: PlacementState,
        sightings: Sightings,
        policy: Policy,
    }

    impl Scene {
        fn new(bytes: u64) -> Scene {
            Scene::of(3, bytes)
        }

        fn of(nodes: u64, bytes: u64) -> Scene {
            let members = (1..=nodes).map(|id| {
                let newcomer = Newcomer {
                    incarnation: Incarnation([id as u8; 16]),
                    name: format!("host-{id}"),
                    node_address: String::new(),
                    client_address: String::new(),
                };
                newcomer.into_member(NodeId(id))
            });
            let mut scene = Scene {
                state: PlacementState::formed(members.collect(), vec![shard(1)], 100),
                sightings: Sightings::new(Duration::ZERO),
                policy: Policy::default(),
            };
            (1..=nodes).for_each(|node| scene.report(node, bytes));
            scene
        }

        fn report(&mut self, node: u64, bytes: u64) {
            self.report_at(0, node, bytes, Duration::ZERO);
        }

        fn report_at(&mut self, at_s: u64, node: u64, bytes: u64, sync: Duration) {
            let led = ShardReport {
                shard: ShardId(9),
                epoch: Epoch::default(),
                leader: ReplicaId(1),
                term: 1,
                led_for: Duration::from_secs(100),
                learners: Vec::new(),
                lags: (1..=3).map(|id| (ReplicaId(id), 0)).collect(),
                size: Size { keys: 9, bytes },
                load: crate::types::report::Load::default(),
                sample: Vec::new(),
            };
            let report = Report {
                node: NodeReport {
                    node: NodeId(node),
                    capacity_bytes: 1 << 40,
                    sync,
                    ..NodeReport::default()
                },
                led: match node {
                    1 => vec![led],
                    _ => Vec::new(),
                },
                ..Report::default()
            };
            self.sightings.hear(&report, Duration::from_secs(at_s));
        }

        /// At that second all report, and the fourth node is as slow as told.
        fn round_with_four(&mut self, at_s: u64, sync_ms: u64) -> Vec<String> {
            for node in 1..=4 {
                let sync = if node == 4 { sync_ms } else { 1 };
                self.report_at(at_s, node, 0, Duration::from_millis(sync));
            }
            self.round(at_s)
        }

        fn adds_on_the_fourth() -> (Scene, Operator) {
            let mut scene = Scene::of(4, 0);
            let add = Operator {
                shard: ShardId(9),
                aim: Aim::Repair,
                action: Action::Add { to: NodeId(4) },
                reason: "for the test".to_owned(),
                epoch: shard(1).epoch,
                voters: shard(1).replicas,
                bytes: 0,
                expires: Timestamp::from_wall(WALL.wall_ms() * 2),
            };
            let record = PlacementCommand::RecordOperators(vec![add.clone()]);
            scene.state.apply(record);
            (scene, add)
        }

        /// What is changed at a second, after which it is.
        fn round(&mut self, at_s: u64) -> Vec<String> {
            let now = Duration::from_secs(at_s);
            let wall = Timestamp::from_wall(WALL.wall_ms() + at_s * 1_000);
            let view = self.sightings.look(&self.state, &self.policy, now, wall);
            let changes = changes(&self.state, &self.sightings, &view, &self.policy, wall);
            let events = changes.iter().flat_map(|change| change.events.clone());
            let events = events.collect();
            for change in changes {
                self.state.apply(change.command);
            }
            events
        }
    }

    const SPLIT: &str =
        "s9: split in the middle (split by size: it has 100 MiB, of 64 MiB at most)";

    #[test]
    fn what_is_planned_is_recorded_once_and_ended_when_it_is_done() {
        let mut scene = Scene::new(100 << 20);
        assert_eq!(scene.round(0), [SPLIT]);
        assert_eq!(scene.round(1), [""; 0], "it is under way");
        scene.state.apply(PlacementCommand::RecordShard(shard(2)));
        scene.report(1, 50 << 20);
        assert_eq!(scene.round(2), [format!("done: {SPLIT}")]);
        assert_eq!(scene.state.operators().count(), 0);
    }

    /// Copying alone can make it slow, and it may have been chosen though it was.
    #[test]
    fn a_replica_goes_to_a_slow_node_all_the_same_and_the_lead_does_not() {
        let (mut scene, add) = Scene::adds_on_the_fourth();
        assert_eq!(scene.round_with_four(1, 900), [""; 0]);
        let (_, change) = scene.state.operator(ShardId(9)).unwrap();
        let shard = ShardId(9);
        scene
            .state
            .apply(PlacementCommand::EndOperator { shard, change });
        let four = Replica {
            id: ReplicaId(4),
            node: NodeId(4),
        };
        let mut shard = self::shard(1);
        shard.epoch.conf += 1;
        shard.replicas.push(four);
        scene.state.apply(PlacementCommand::RecordShard(shard));
        let pass = Operator {
            action: Action::Transfer {
                from: NodeId(1),
                to: NodeId(4),
            },
            ..add
        };
        let ended = "ended, since the node is not to have it any more";
        let events = vec![format!("{ended}: {pass}")];
        scene
            .state
            .apply(PlacementCommand::RecordOperators(vec![pass]));
        assert_eq!(scene.round_with_four(2, 900)[..1], events);
    }

    #[test]
    fn a_node_that_does_not_take_a_replica_is_not_waited_for_as_long_as_a_copy_takes() {
        let (mut scene, add) = Scene::adds_on_the_fourth();
        for at_s in 0..30 {
            assert_eq!(scene.round_with_four(at_s, 1), [""; 0]);
        }
        let given_up = format!("given up, since the node does not take it: {add}");
        assert_eq!(scene.round_with_four(30, 1), [given_up]);
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let mut scene = Scene::new(100 << 20);
        assert_eq!(scene.round(0), [SPLIT]);
        (1..=3).for_each(|node| {
            scene.sightings.hear(
                &Report {
                    node: NodeReport {
                        node: NodeId(node),
                        ..NodeReport::default()
                    },
                    ..Report::default()
                },
                Duration::from_secs(30),
            );
        });
        let given_up = format!("given up, since its time is over: {SPLIT}");
        assert_eq!(scene.round(30), [given_up]);
    }

    #[test]
    fn paused_it_plans_nothing_and_still_sees_what_is_done_and_who_is_silent() {
        let mut scene = Scene::new(100 << 20);
        scene.state.apply(PlacementCommand::SetPaused(true));
        assert_eq!(scene.round(0), [""; 0]);
        let silent = [
            "n1 (host-1) is silent",
            "n2 (host-2) is silent",
            "n3 (host-3) is silent",
        ];
        assert_eq!(scene.round(5), silent);
        assert_eq!(scene.round(6), [""; 0], "that is known");
        let since = scene.state.node(NodeId(1)).silent_since;
        assert_eq!(since, Some(WALL), "since when it was heard last");
    }

    #[test]
    fn a_drained_node_gets_nothing_and_its_leads_go_before_what_is_under_way() {
        let mut scene = Scene::new(1);
        let move_away = |from, to| Operator {
            shard: ShardId(9),
            aim: Aim::EvenBytes,
            action: Action::Move {
                from: Replica {
                    id: ReplicaId(from),
                    node: NodeId(from),
                },
                to: NodeId(to),
            },
            reason: "even".to_owned(),
            epoch: shard(1).epoch,
            voters: shard(1).replicas,
            bytes: 0,
            expires: Timestamp::MAX,
        };
        let drain = |node| PlacementCommand::SetDuty {
            node: NodeId(node),
            duty: Duty::Drain,
        };
        let newcomer = Newcomer {
            incarnation: Incarnation([4; 16]),
            name: "host-4".to_owned(),
            node_address: String::new(),
            client_address: String::new(),
        };
        let joined = newcomer.into_member(NodeId(100));
        scene.state.apply(PlacementCommand::RecordMember(joined));
        let begin = |scene: &mut Scene| {
            let moves = vec![move_away(3, 100)];
            scene.state.apply(PlacementCommand::RecordOperators(moves));
        };
        begin(&mut scene);
        assert_eq!(scene.round(0), [""; 0], "it goes on");
        scene.state.apply(drain(100));
        let ended = "ended, since the node is not to have it any more: s9: move r3 from n3 to n100 (even bytes: even)";
        assert_eq!(scene.round(0), [ended]);
        scene.state.apply(PlacementCommand::SetDuty {
            node: NodeId(100),
            duty: Duty::Serve,
        });
        begin(&mut scene);
        scene.state.apply(drain(1));
        let ended =
            "ended, since the lead goes first: s9: move r3 from n3 to n100 (even bytes: even)";
        assert_eq!(scene.round(0), [ended]);
        let relief = "s9: pass the lead from n1 to n2 (relieve: n1 is being drained)";
        assert_eq!(scene.round(0), [relief]);
    }

    #[test]
    fn a_merge_ends_with_its_left_shard_grown_or_its_right_one_changed() {
        let right = |bounds| ShardDescriptor {
            id: ShardId(10),
            range: KeyRange::of_prefix(b"m"),
            ..shard(bounds)
        };
        let merge = Operator {
            shard: ShardId(9),
            aim: Aim::Merge,
            action: Action::Merge {
                right: ShardId(10),
                epoch: right(7).epoch,
            },
            reason: "cold".to_owned(),
            epoch: shard(1).epoch,
            voters: shard(1).replicas,
            bytes: 0,
            expires: Timestamp::MAX,
        };
        let begin = |scene: &mut Scene| {
            scene.state.apply(PlacementCommand::RecordShard(right(7)));
            let merges = vec![merge.clone()];
            scene.state.apply(PlacementCommand::RecordOperators(merges));
        };
        let mut scene = Scene::new(1);
        begin(&mut scene);
        assert_eq!(scene.round(0), [""; 0], "it goes on");
        scene.state.apply(PlacementCommand::RecordShard(right(8)));
        let changed = "ended, since its neighbour has changed: s9: absorb s10 (merge: cold)";
        assert_eq!(scene.round(1), [changed]);
        let mut scene = Scene::new(1);
        begin(&mut scene);
        scene.state.apply(PlacementCommand::RecordShard(shard(8)));
        assert_eq!(scene.round(0), ["done: s9: absorb s10 (merge: cold)"]);
        assert_eq!(scene.state.shard(ShardId(10)), None);
    }

    #[test]
    fn an_operator_ends_with_its_shard() {
        let mut scene = Scene::new(1);
        let right = ShardDescriptor {
            id: ShardId(10),
            range: KeyRange::of_prefix(b"m"),
            ..shard(7)
        };
        scene
            .state
            .apply(PlacementCommand::RecordShard(right.clone()));
        let order = Operator {
            shard: ShardId(10),
            aim: Aim::Order,
            action: Action::Add { to: NodeId(2) },
            reason: "why".to_owned(),
            epoch: right.epoch,
            voters: right.replicas,
            bytes: 0,
            expires: Timestamp::MAX,
        };
        let orders = vec![order];
        scene.state.apply(PlacementCommand::RecordOperators(orders));
        scene.state.apply(PlacementCommand::RecordShard(shard(8)));
        let ended = "ended with its shard: s10: add a replica on n2 (order: why)";
        assert_eq!(scene.round(0), [ended]);
    }

    #[test]
    fn what_a_node_says_of_itself_is_recorded_when_it_is_new() {
        let mut scene = Scene::new(1);
        let labels = [("zone".to_owned(), "a".to_owned())];
        let report = Report {
            node: NodeReport {
                node: NodeId(2),
                labels: labels.into(),
                ..NodeReport::default()
            },
            ..Report::default()
        };
        scene.sightings.hear(&report, Duration::ZERO);
        scene.round(0);
        let record = scene.state.node(NodeId(2));
        assert_eq!(record.labels, report.node.labels);
        let before = scene.state.clone();
        scene.round(1);
        assert_eq!(scene.state, before);
    }
}
