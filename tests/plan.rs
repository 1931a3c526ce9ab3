//! Plans on clusters drawn by chance, carried out until nothing changes: it ends, what can be respected is
//! respected then, a shard never has fewer replicas than it had, and nothing that was done is undone. Shards are
//! split and merged in it, too.

#![allow(clippy::unwrap_used)]

mod drawing;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use drawing::Drawing;
use drawing::Fate;
use proptest::prelude::*;
use quorate::placement::NodeView;
use quorate::placement::ShardView;
use quorate::placement::node::Health;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ShardId;
use quorate::types::operator::Action;
use quorate::types::operator::Aim;
use quorate::types::operator::Operator;
use quorate::types::operator::Step;
use quorate::types::rule::Rule;
use quorate::types::shard::Replica;

/// Rounds after which everything must be in order.
const ROUNDS_MAX: usize = 2_000;
const LONG: Duration = Duration::from_secs(1_000_000);

/// How a node is, apart from where: mostly well.
fn condition() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        12 => Just(""),
        1 => Just(" silent:10s"),
        2 => Just(" silent:400s"),
        1 => Just(" slow:1s"),
        1 => Just(" duty:drain"),
        1 => Just(" duty:leave"),
        1 => Just(" role:placement"),
        1 => Just(" capacity:300GiB"),
        1 => Just(" capacity:1GiB"),
    ]
}

fn rules() -> impl Strategy<Value = Vec<&'static str>> {
    let rule = prop_oneof![
        Just("rule * replicas:1"),
        Just("rule * replicas:5"),
        Just("rule * forbid:zone=a"),
        Just("rule c replicas:5"),
        Just("rule c require:zone=b"),
        Just("rule d lead:zone=a lead:zone=c"),
        Just("rule d forbid:zone=c replicas:1"),
    ];
    prop::collection::vec(rule, 0..3)
}

/// One shard: the places of its replicas among the nodes, and the rest of its line.
fn shard() -> impl Strategy<Value = (Vec<usize>, String)> {
    let size = prop_oneof![4 => 0u64..9, 4 => 9u64..60, 1 => 60u64..200];
    let load = prop_oneof![2 => 0u64..80, 4 => 0u64..300, 1 => 1_000u64..9_000];
    let sample = prop_oneof![Just("a30"), Just("a9,b9,c9"), Just("c9,d9,e9"), Just("f9")];
    let places = prop::collection::vec(0usize..9, 1..6);
    (places, size, load, sample, 0usize..6).prop_map(
        |(places, mib, operations, sample, learner)| {
            let learner = if learner == 0 { "+" } else { "" };
            let line = format!(
                "{learner} {mib}MiB {operations}ops busy:3600s quiet:3600s sample:{sample}"
            );
            (places, line)
        },
    )
}

/// The lines that draw a cluster.
fn cluster() -> impl Strategy<Value = Vec<String>> {
    let node = (
        prop_oneof![Just("a"), Just("b"), Just("c"), Just("d"), Just("")],
        condition(),
    );
    let nodes = prop::collection::vec(node, 1..9);
    let shards = prop::collection::vec(shard(), 1..10);
    (nodes, rules(), shards, 1usize..3, 1usize..9).prop_map(
        |(nodes, rules, shards, per_node, per_cluster)| {
            let names = (1..).zip(&nodes).map(|(id, (zone, _))| match *zone {
                "" => format!(" {id}"),
                zone => format!(" {id}@{zone}"),
            });
            let mut lines = vec![format!("cluster{}", names.collect::<String>())];
            let limits = format!("moves_per_node:{per_node} moves_per_cluster:{per_cluster}");
            lines.push(format!("policy {limits}"));
            lines.push("policy merge_sustained:2s merges_at_once:1".to_owned());
            let changed = (1..)
                .zip(&nodes)
                .filter(|(_, (_, condition))| !condition.is_empty());
            lines.extend(changed.map(|(id, (_, condition))| format!("node {id}{condition}")));
            lines.extend(rules.into_iter().map(str::to_owned));
            // Some rules begin in the middle of a shard.
            let bounds = "acegikmoqsu";
            for (at, (places, rest)) in shards.iter().enumerate() {
                let on: BTreeSet<usize> =
                    places.iter().map(|place| place % nodes.len() + 1).collect();
                let on: Vec<String> = on.iter().map(usize::to_string).collect();
                let (start, end) = (&bounds[at..at + 1], &bounds[at + 1..at + 2]);
                let rest = match on.len() {
                    1 => rest.trim_start_matches('+'),
                    _ => rest,
                };
                let replicas = format!("{}* {}", on[0], on[1..].join(" "));
                lines.push(format!(
                    "shard {} {start}..{end} on {}{rest}",
                    at + 1,
                    replicas.trim()
                ));
            }
            lines
        },
    )
}

/// A run, and what must not be undone in it.
struct Run {
    drawing: Drawing,
    /// As the cluster was drawn: silent nodes stay as silent, slow ones as slow.
    nodes: BTreeMap<NodeId, NodeView>,
    added: BTreeSet<(ShardId, NodeId)>,
    relieved: BTreeSet<(ShardId, NodeId)>,
    /// Voters that each shard had when its last operator was planned, and those of them that answered.
    planned_with: BTreeMap<ShardId, (usize, usize)>,
    told: Vec<String>,
}

impl Run {
    fn new(lines: &[String], rest: Duration) -> Run {
        let mut drawing = Drawing::default();
        for line in lines {
            drawing.answer(line);
        }
        drawing.policy.replica_rest = rest;
        drawing.policy.leader_rest = rest;
        // Whoever leads has led for longer.
        for shard in drawing.view.shards.values_mut() {
            shard.led_for = LONG + LONG;
        }
        drawing.elect();
        Run {
            nodes: drawing.view.nodes.clone(),
            drawing,
            added: BTreeSet::new(),
            relieved: BTreeSet::new(),
            planned_with: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Until nothing is planned and nothing is under way.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.finish_learners();
            let planned = self.drawing.plan();
            self.check_plan(&planned);
            self.told.extend(planned.iter().map(ToString::to_string));
            let shards: Vec<ShardId> = planned.iter().map(|operator| operator.shard).collect();
            self.drawing.record(planned);
            if self.drawing.view.operators.is_empty() && self.is_over() {
                return;
            }
            let counts = self.counts();
            let fresh = shards.into_iter().map(|shard| (shard, counts[&shard]));
            self.planned_with.extend(fresh);
            let fates = self.drawing.step();
            fates
                .iter()
                .for_each(|(operator, fate)| self.check_step(operator, fate));
            self.check_counts();
            self.drawing.wait(Duration::from_secs(1));
            self.hold_still();
        }
        self.fail("it does not end");
    }

    /// Whether nothing is planned either when what has been merged has been quiet for as long as it takes.
    fn is_over(&mut self) -> bool {
        self.drawing.wait(self.drawing.policy.merge_sustained);
        self.hold_still();
        self.drawing.plan().is_empty()
    }

    /// The leader of a shard finishes what nobody else does.
    fn finish_learners(&mut self) {
        let live = live_nodes(&self.drawing);
        let operators = &self.drawing.view.operators;
        for (id, shard) in &mut self.drawing.view.shards {
            if let Some(learner) = shard.learner()
                && !operators.contains_key(id)
                && live.contains(&learner.node)
            {
                shard.learners.remove(&learner.id);
                shard.descriptor.epoch.conf += 1;
            }
        }
    }

    fn hold_still(&mut self) {
        for (id, node) in &mut self.drawing.view.nodes {
            node.silent_for = self.nodes[id].silent_for;
            node.slow_ago = self.nodes[id].slow_ago;
        }
    }

    fn check_plan(&self, planned: &[Operator]) {
        let aims: Vec<Aim> = planned.iter().map(|operator| operator.aim).collect();
        assert!(aims.is_sorted(), "{}", self.story());
        let policy = &self.drawing.policy;
        let under_way = self.drawing.view.operators.values().chain(planned);
        let rights = under_way.clone().filter_map(|it| it.action.absorbed());
        let rights: Vec<ShardId> = rights.collect();
        let mut taken = under_way.clone().map(|operator| operator.shard);
        assert!(rights.len() <= policy.merges_at_once, "{}", self.story());
        assert!(!taken.any(|it| rights.contains(&it)), "{}", self.story());
        let mut arriving: BTreeMap<NodeId, usize> = BTreeMap::new();
        for operator in under_way {
            let shard = &self.drawing.view.shards[&operator.shard];
            match operator.action {
                Action::Add { to } | Action::Move { to, .. } if shard.voter_on(to).is_none() => {
                    *arriving.entry(to).or_default() += 1;
                }
                _ => {}
            }
        }
        let most = arriving.values().copied().max().unwrap_or(0);
        assert!(most <= policy.moves_per_node, "{}", self.story());
        let all: usize = arriving.values().sum();
        assert!(all <= policy.moves_per_cluster, "{}", self.story());
    }

    fn check_step(&mut self, operator: &Operator, fate: &Fate) {
        let shard = operator.shard;
        match fate {
            Fate::Stepped(Step::AddReplica(node)) => {
                self.added.insert((shard, *node));
            }
            Fate::Stepped(Step::RemoveReplica(replica)) => {
                if self.added.contains(&(shard, replica.node)) {
                    self.fail(&format!("{shard} came to {} and went", replica.node));
                }
            }
            Fate::Stepped(Step::TransferLeader(node)) => {
                if self.relieved.contains(&(shard, *node)) {
                    self.fail(&format!("the lead of {shard} goes back to {node}"));
                }
                let from = operator.voters.iter().map(|voter| voter.node);
                let from: Vec<NodeId> = from.filter(|from| from != node).collect();
                match &operator.action {
                    Action::Transfer { from, .. } => self.relieved.insert((shard, *from)),
                    Action::Move { from, .. } => self.relieved.insert((shard, from.node)),
                    _ => panic!("{operator} passes the lead on, of {from:?}"),
                };
            }
            // A cluster with other shards is another one.
            Fate::Stepped(Step::Split(_)) => {
                self.added.clear();
                self.relieved.clear();
            }
            Fate::Stepped(Step::Merge { right, .. }) => {
                self.planned_with.remove(right);
            }
            Fate::Done => {}
            Fate::Stale | Fate::Expired => self.fail(&format!("{operator}: {fate:?}")),
        }
    }

    /// Voters of each shard, and those of them that answer.
    fn counts(&self) -> BTreeMap<ShardId, (usize, usize)> {
        let live = live_nodes(&self.drawing);
        let shards = self.drawing.view.shards.iter();
        let counted = shards.map(|(id, shard)| {
            let answer = shard.voters().filter(|voter| live.contains(&voter.node));
            (*id, (shard.voters().count(), answer.count()))
        });
        counted.collect()
    }

    /// What a move has added does not count: it may have one more meanwhile.
    fn check_counts(&self) {
        let (view, now) = (&self.drawing.view, self.counts());
        for (id, (voters, live)) in &self.planned_with {
            let wanted = view.rule(&view.shards[id], &self.drawing.policy).replicas;
            if now[id].0 < *voters.min(&wanted) || now[id].1 < *live.min(&wanted) {
                self.fail(&format!("{id} has fewer replicas than it had"));
            }
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n{}", self.story());
    }

    fn story(&self) -> String {
        self.told.join("\n")
    }
}

fn live_nodes(drawing: &Drawing) -> BTreeSet<NodeId> {
    let nodes = drawing.view.nodes.values();
    let live = nodes.filter(|node| node.health(&drawing.policy) < Health::Suspect);
    live.map(|node| node.id).collect()
}

/// Whether a shard could be merged with its right neighbour at once, said without the planner's own words.
fn is_left_over(drawing: &Drawing, left: &ShardView) -> bool {
    let (view, policy) = (&drawing.view, &drawing.policy);
    let nodes = |shard: &ShardView| -> BTreeSet<NodeId> {
        let voters = shard.voters().map(|voter| &view.nodes[&voter.node]);
        let fit = voters.filter(|node| node.fitness(ShardId(1), policy).is_ok());
        fit.map(|node| node.id).collect()
    };
    let is_whole = |shard: &ShardView| {
        let wanted = view.rule(shard, policy).replicas;
        let all = shard.descriptor.replicas.len();
        shard.leading().is_some() && all == wanted && nodes(shard).len() == wanted
    };
    let are_little = |one: &ShardView, other: &ShardView| {
        let operations = one.load.cost(policy) + other.load.cost(policy);
        one.bytes + other.bytes <= 16 << 20 && operations <= 200
    };
    let mut shards = view.shards.values();
    let end = left.descriptor.range.end.as_ref();
    let right = shards.find(|shard| Some(&shard.descriptor.range.start) == end);
    let mut shards = view.shards.values();
    let start = Some(&left.descriptor.range.start);
    let before = shards.find(|shard| shard.descriptor.range.end.as_ref() == start);
    right.is_some_and(|right| {
        let mut both = left.descriptor.range.clone();
        both.end.clone_from(&right.descriptor.range.end);
        // What is to be one with its left neighbour waits for that.
        let waits = before.is_some_and(|before| are_little(before, left));
        let is_ruled = view.wanted_bound(&both).is_none();
        let is_near = nodes(left) == nodes(right);
        are_little(left, right)
            && is_whole(left)
            && is_whole(right)
            && is_near
            && is_ruled
            && !waits
    })
}

/// What is still wrong with a shard though it could be put right, said without the planner's own words.
fn complaint(drawing: &Drawing, shard: &ShardView) -> Option<String> {
    let (view, policy) = (&drawing.view, &drawing.policy);
    let rule: &Rule = view.rule(shard, policy);
    let live = live_nodes(drawing);
    let leader = shard
        .leading()
        .filter(|leading| live.contains(&leading.node))?;
    let voters: Vec<NodeId> = shard.voters().map(|voter| voter.node).collect();
    let fit = |node: &NodeId| {
        let known = view.nodes.get(node);
        known.is_some_and(|node| node.fitness(ShardId(1), policy).is_ok())
    };
    let zone = |node: &NodeId| rule.zone(&view.nodes[node].labels);
    let mates = |node: &NodeId| {
        let others = voters.iter().filter(|other| *other != node);
        others
            .filter(|other| zone(other).is_some() && zone(other) == zone(node))
            .count()
    };
    let free: Vec<NodeId> = view
        .nodes
        .values()
        .filter(|node| fit(&node.id) && rule.refusal(&node.labels).is_none())
        .filter(|node| shard.descriptor.replica_on(node.id).is_none())
        .filter(|node| node.has_room(shard.bytes, policy))
        .map(|node| node.id)
        .collect();
    if view.wanted_bound(&shard.descriptor.range).is_some() {
        return Some("it has keys of two rules or parts of keyspaces".to_owned());
    }
    if shard.bytes >= policy.split_bytes {
        return Some("it is too big".to_owned());
    }
    if is_left_over(drawing, shard) {
        return Some("it could be one with its neighbour".to_owned());
    }
    if let Some(learner) = shard.learner() {
        // Whoever is silent may come back and catch up.
        let is_suspect = view.health(learner.node, policy) == Health::Suspect;
        return (!is_suspect).then(|| format!("{learner:?} learns"));
    }
    if voters.len() < rule.replicas && !free.is_empty() {
        return Some(format!("it has too few replicas, and {free:?} are free"));
    }
    let answering = voters.iter().filter(|node| live.contains(node)).count();
    let is_dead = |node: &NodeId| view.health(*node, policy) == Health::Dead;
    if voters.len() > rule.replicas {
        let majority = (voters.len() - 1) / 2 + 1;
        let can_go = voters.iter().any(is_dead) && answering >= majority;
        let can_spare = answering > rule.replicas && answering > majority;
        // Else it is not known yet which of them will be left.
        return (can_go || can_spare).then(|| "it has too many replicas".to_owned());
    }
    for node in &voters {
        let known = &view.nodes[node];
        let is_leaving = matches!(known.fitness(ShardId(1), policy), Err(unfit) if format!("{unfit}") == "is leaving");
        let is_excluded = rule.refusal(&known.labels).is_some();
        if (is_dead(node) || is_leaving || is_excluded) && !free.is_empty() {
            return Some(format!("a replica is on {node}, and {free:?} are free"));
        }
        let apart = |other: &NodeId| {
            let same = zone(other).is_some() && zone(other) == zone(node);
            mates(other) - usize::from(same) < mates(node)
        };
        // What has come lately stays, though another node has got room since.
        let rests = |voter: &Replica| voter.node == *node && shard.rests(voter.id, policy);
        if !shard.voters().any(|voter| rests(&voter)) && free.iter().any(apart) {
            return Some(format!("{node} has company, and one of {free:?} has less"));
        }
    }
    let others = shard.voters().filter(|voter| voter.id != leader.id);
    let able: Vec<NodeId> = others.map(|voter| voter.node).filter(fit).collect();
    if !fit(&leader.node) && !able.is_empty() {
        return Some(format!("{} leads it, and {able:?} can", leader.node));
    }
    let prefers = |node: &NodeId| rule.prefers(&view.nodes[node].labels);
    if !prefers(&leader.node) && able.iter().any(prefers) {
        return Some(format!(
            "{} leads it, and one of {able:?} is preferred",
            leader.node
        ));
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn plans_end_with_everything_in_order_and_undo_nothing(lines in cluster()) {
        let mut run = Run::new(&lines, LONG);
        run.settle();
        for (id, shard) in &run.drawing.view.shards {
            if let Some(complaint) = complaint(&run.drawing, shard) {
                run.fail(&format!("{id}: {complaint}"));
            }
        }
    }

    /// Without any rest what is evened out ends too.
    #[test]
    fn plans_end_though_nothing_rests(lines in cluster()) {
        let mut run = Run::new(&lines, Duration::ZERO);
        for _ in 0..ROUNDS_MAX {
            run.added.clear();
            run.relieved.clear();
            let planned = run.drawing.plan();
            run.drawing.record(planned);
            if run.drawing.view.operators.is_empty() && run.is_over() {
                break;
            }
            run.finish_learners();
            run.drawing.step();
            run.drawing.wait(Duration::from_secs(1));
            run.hold_still();
        }
        prop_assert!(run.drawing.view.operators.is_empty(), "it does not end");
    }
}

/// Two nodes that join three: in the end every node has its share, and little more than that was moved.
#[test]
fn new_nodes_get_their_share_of_bytes_and_leaders() {
    let mut drawing = Drawing::default();
    drawing.answer("cluster 1 2 3 4 5");
    for shard in 1..=100 {
        let leader = shard % 3 + 1;
        let others: String = (1..=3)
            .filter(|node| *node != leader)
            .map(|node| format!(" {node}"))
            .collect();
        drawing.answer(&format!(
            "shard {shard} {shard:03}..{:03} on {leader}*{others} 30MiB 50ops",
            shard + 1
        ));
    }
    let mut moves = 0;
    loop {
        let planned = drawing.plan();
        moves += planned
            .iter()
            .filter(|operator| matches!(operator.action, Action::Move { .. }))
            .count();
        drawing.record(planned);
        if drawing.view.operators.is_empty() {
            break;
        }
        drawing.step();
        drawing.wait(Duration::from_secs(1));
    }
    let shards = drawing.view.shards.values();
    let replicas = shards
        .clone()
        .flat_map(|shard| shard.voters().map(|voter| voter.node));
    let leaders = shards.map(|shard| shard.leading().unwrap().node);
    let count = |nodes: Vec<NodeId>| -> Vec<usize> {
        let on = |node: u64| nodes.iter().filter(|other| **other == NodeId(node)).count();
        (1..=5).map(on).collect()
    };
    let (replicas, leaders) = (count(replicas.collect()), count(leaders.collect()));
    // 60 each and 20 each, and 120 moves at least.
    assert!(
        replicas.iter().all(|count| (57..=63).contains(count)),
        "{replicas:?}"
    );
    assert!(
        leaders.iter().all(|count| (18..=22).contains(count)),
        "{leaders:?}"
    );
    assert!(moves <= 120, "{moves} moves, {replicas:?}");
}

/// A fourth node gets a fourth of a hash keyspace, in whole shards; nothing else moves.
#[test]
fn of_a_hash_keyspace_a_new_node_takes_its_share_in_whole_shards() {
    const PARTS: u64 = 64;
    let mut drawing = Drawing::default();
    drawing.answer("cluster 1 2 3");
    drawing.answer("rule * replicas:1");
    drawing.answer(&format!("keyspace orders buckets:1024 parts:{PARTS}"));
    let bounds = drawing.view.keyspaces[0].bounds();
    assert_eq!(bounds.len() as u64, PARTS + 1);
    for (shard, bounds) in (1..).zip(bounds.windows(2)) {
        let node = shard % 3 + 1;
        drawing.answer(&format!("shard {shard} a..b on {node}* 30MiB 50ops"));
        let shard = drawing.view.shards.get_mut(&ShardId(shard)).unwrap();
        shard.descriptor.range.start = bounds[0].clone();
        shard.descriptor.range.end = Some(bounds[1].clone());
    }
    let layout = |drawing: &Drawing| -> Vec<_> {
        let shards = drawing.view.shards.values();
        let nodes = shards.map(|shard| (shard.descriptor.range.clone(), shard.leading().unwrap()));
        nodes.map(|(range, leader)| (range, leader.node)).collect()
    };
    let before = layout(&drawing);
    drawing.answer("nodes 4");
    loop {
        let planned = drawing.plan();
        drawing.record(planned);
        if drawing.view.operators.is_empty() {
            break;
        }
        drawing.step();
        drawing.wait(Duration::from_secs(1));
    }
    let after = layout(&drawing);
    let ranges = |layout: &[(KeyRange, NodeId)]| -> Vec<KeyRange> {
        layout.iter().map(|(range, _)| range.clone()).collect()
    };
    assert_eq!(ranges(&before), ranges(&after), "no shard was split");
    let moved: Vec<NodeId> = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before.1 != after.1)
        .map(|(_, after)| after.1)
        .collect();
    assert!(moved.iter().all(|node| *node == NodeId(4)), "{moved:?}");
    let share = PARTS as usize / 4;
    assert!(
        (share - 3..=share).contains(&moved.len()),
        "{}",
        moved.len()
    );
}
