//! How a cluster is drawn: one line for the nodes, one for each shard, rule, and whatever is special.

use std::fmt::Write as _;
use std::time::Duration;

use quorate::placement::NodeView;
use quorate::placement::ShardView;
use quorate::placement::explain;
use quorate::placement::plan::Finding;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::keyspace::Buckets;
use quorate::types::keyspace::Keyspace;
use quorate::types::keyspace::Layout;
use quorate::types::node::Duty;
use quorate::types::node::Role;
use quorate::types::rule::Label;
use quorate::types::rule::Rule;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;

use super::Drawing;
use super::Fate;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// Rounds of plans after which a cluster should have settled.
const ROUNDS_MAX: usize = 200;

impl Drawing {
    /// Takes one line, and answers it.
    pub fn answer(&mut self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match verb {
            "cluster" => {
                *self = Drawing::default();
                words.iter().for_each(|word| self.draw_node(word));
            }
            "nodes" => words.iter().for_each(|word| self.draw_node(word)),
            "node" => self.change_node(&words),
            "shard" => {
                let shard = draw_shard(&words);
                self.view.shards.insert(shard.descriptor.id, shard);
            }
            // `placement on 1* 2 3`: its own group.
            "placement" => {
                let words: Vec<&str> = ["0", ".."].into_iter().chain(words).collect();
                self.view.placement = Some(draw_shard(&words));
            }
            "rule" => self.view.rules.push(rule(&words)),
            "keyspace" => self.view.keyspaces.push(keyspace(&words)),
            "policy" => words.iter().for_each(|word| self.set(word)),
            "wait" => self.wait(time(words[0])),
            "elect" => self.elect(),
            "plan" => return lines(self.plan().iter()),
            "start" => {
                let planned = self.plan();
                let started = lines(planned.iter());
                self.record(planned);
                return started;
            }
            "step" => return lines(self.step().into_iter().map(fate)),
            "settle" => return self.settle(),
            "show" => return lines(self.view.groups().map(show)),
            "explain" => return self.explained(ShardId(number(words[0]))),
            _ => panic!("no such command: {line}"),
        }
        self.refresh();
        "ok".to_owned()
    }

    /// `4@b`: node 4 in zone b.
    fn draw_node(&mut self, word: &str) {
        let (id, zone) = word.split_once('@').unwrap_or((word, ""));
        let mut node = NodeView {
            id: NodeId(number(id)),
            capacity_bytes: 100 * GIB,
            sync: Duration::from_millis(1),
            round_trip: Duration::from_millis(1),
            ..NodeView::default()
        };
        if !zone.is_empty() {
            node.labels.insert("zone".to_owned(), zone.to_owned());
        }
        self.view.nodes.insert(node.id, node);
    }

    fn change_node(&mut self, words: &[&str]) {
        let id = NodeId(number(words[0]));
        let node = self.view.nodes.get_mut(&id).unwrap();
        for word in &words[1..] {
            let (name, value) = word.split_once(':').unwrap();
            match name {
                "silent" => node.silent_for = time(value),
                "slow" => node.slow_ago = Some(time(value)),
                "sync" => node.sync = time(value),
                "capacity" => node.capacity_bytes = bytes(value),
                "used" => drop(self.used_otherwise.insert(id, bytes(value))),
                "label" => {
                    let label = label(value);
                    node.labels.insert(label.name, label.value);
                }
                "duty" => {
                    node.duty = match value {
                        "serve" => Duty::Serve,
                        "drain" => Duty::Drain,
                        "leave" => Duty::Leave,
                        _ => panic!("no such duty: {value}"),
                    }
                }
                "role" => {
                    node.role = match value {
                        "both" => Role::Both,
                        "data" => Role::Data,
                        "placement" => Role::Placement,
                        _ => panic!("no such role: {value}"),
                    }
                }
                _ => panic!("no such word: {word}"),
            }
        }
    }

    fn set(&mut self, word: &str) {
        let (name, value) = word.split_once(':').unwrap();
        let policy = &mut self.policy;
        match name {
            "moves_per_node" => policy.moves_per_node = number(value) as usize,
            "moves_per_cluster" => policy.moves_per_cluster = number(value) as usize,
            "drains_per_node" => policy.drains_per_node = number(value) as usize,
            "splits_at_once" => policy.splits_at_once = number(value) as usize,
            "samples" => policy.split_samples_min = number(value) as usize,
            "rest" => (policy.replica_rest, policy.leader_rest) = (time(value), time(value)),
            "replace_after" => policy.replace_after = time(value),
            "merges_at_once" => policy.merges_at_once = number(value) as usize,
            "merge_sustained" => policy.merge_sustained = time(value),
            "merge_bytes" => policy.merge_bytes = Some(bytes(value)).filter(|bytes| *bytes > 0),
            "split_bytes" => policy.split_bytes = bytes(value),
            _ => panic!("no such word: {word}"),
        }
    }

    fn explained(&self, shard: ShardId) -> String {
        let Some(explanation) = explain(&self.view, &self.policy, self.now, shard) else {
            return format!("there is no {shard}");
        };
        let findings = explanation.findings.iter();
        let findings = findings.filter(|(_, finding)| *finding != Finding::InOrder);
        lines(findings.map(|(aim, finding)| format!("{aim}: {finding}")))
    }

    /// Plans and carries out until nothing changes, a second each round; says what was planned.
    fn settle(&mut self) -> String {
        let mut told = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let planned = self.plan();
            told.extend(planned.iter().map(ToString::to_string));
            self.record(planned);
            if self.view.operators.is_empty() {
                return lines(told.iter());
            }
            self.step();
            self.wait(Duration::from_secs(1));
        }
        panic!("it does not settle: {told:?}");
    }
}

/// `3+`: a learner on node 3; `1*`: it leads.
fn draw_replica(shard: &mut ShardView, word: &str) {
    let node = number(word.trim_end_matches(['*', '+']));
    let id = ReplicaId(shard.descriptor.id.0 * 10 + node);
    shard.descriptor.replicas.push(Replica {
        id,
        node: NodeId(node),
    });
    shard.lags.entry(id).or_insert(0);
    if word.ends_with('*') {
        shard.leader = Some(id);
    }
    if word.ends_with('+') {
        shard.learners.insert(id);
    }
}

/// `a5`: five operations on the key a.
fn sampled(word: &str) -> impl Iterator<Item = Key> {
    let (key, count) = word.split_at(1);
    let key = Key::copy_from_slice(key.as_bytes());
    std::iter::repeat_n(key, number(count) as usize)
}

/// `a replicas:5 require:region=eu`: of the keys that begin with a; `*`: of all.
fn rule(words: &[&str]) -> Rule {
    let prefix = words[0].trim_matches('*');
    let mut rule = Rule {
        prefix: Key::copy_from_slice(prefix.as_bytes()),
        ..Rule::default()
    };
    for word in &words[1..] {
        let (name, value) = word.split_once(':').unwrap();
        match name {
            "replicas" => rule.replicas = number(value) as usize,
            "require" => rule.required.push(label(value)),
            "forbid" => rule.forbidden.push(label(value)),
            "lead" => rule.preferred_leaders.push(label(value)),
            "spread" => rule.spread = value.to_owned(),
            _ => panic!("no such word: {word}"),
        }
    }
    rule
}

/// `orders buckets:16 parts:4`; without buckets it is ordered.
fn keyspace(words: &[&str]) -> Keyspace {
    let (mut buckets, mut parts) = (None, None);
    for word in &words[1..] {
        let (name, value) = word.split_once(':').unwrap();
        match name {
            "buckets" => buckets = Some(number(value) as u32),
            "parts" => parts = Some(number(value) as u32),
            _ => panic!("no such word: {word}"),
        }
    }
    let layout = match buckets {
        None => Layout::Ordered,
        Some(_) => Layout::Hash(Buckets::of(buckets, parts)),
    };
    Keyspace::new(words[0].parse().unwrap(), None, layout).unwrap()
}

fn label(word: &str) -> Label {
    let (name, value) = word.split_once('=').unwrap();
    Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn number(word: &str) -> u64 {
    let parsed = word.parse();
    parsed.unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn time(word: &str) -> Duration {
    match word.strip_suffix("ms") {
        Some(milliseconds) => Duration::from_millis(number(milliseconds)),
        None => Duration::from_secs(number(word.trim_end_matches('s'))),
    }
}

fn bytes(word: &str) -> u64 {
    let units = [("GiB", GIB), ("MiB", MIB), ("KiB", 1024), ("B", 1)];
    let mut units = units.into_iter();
    let found = units.find_map(|(name, unit)| Some(number(word.strip_suffix(name)?) * unit));
    found.unwrap_or_else(|| panic!("{word:?} is no size"))
}

fn lines<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> String {
    let mut out = String::new();
    items.for_each(|item| writeln!(out, "{item}").unwrap());
    match out.trim_end() {
        "" => "nothing".to_owned(),
        lines => lines.to_owned(),
    }
}

fn fate((operator, fate): (super::Operator, Fate)) -> String {
    let shard = operator.shard;
    match fate {
        Fate::Stepped(step) => format!("{shard}: {step}"),
        Fate::Done => format!("{shard}: done"),
        Fate::Stale => format!("{shard}: stale"),
        Fate::Expired => format!("{shard}: expired"),
    }
}

/// `1 a..m on 1* 2 3+ 64MiB 500ops`: on three nodes, led on the first, and a learner on the third.
fn draw_shard(words: &[&str]) -> ShardView {
    let id = number(words[0]);
    let (start, end) = words[1].split_once("..").unwrap();
    let range = KeyRange {
        start: Key::copy_from_slice(start.as_bytes()),
        end: (!end.is_empty()).then(|| Key::copy_from_slice(end.as_bytes())),
    };
    let mut shard = ShardView::new(ShardDescriptor {
        id: ShardId(id),
        range,
        epoch: Epoch { conf: 1, bounds: 1 },
        replicas: Vec::new(),
    });
    (shard.bytes, shard.keys) = (10 * MIB, 100);
    shard.led_for = Duration::from_secs(3_600);
    for word in &words[2..] {
        let on_node = |node: &str| ReplicaId(id * 10 + number(node));
        match word.split_once(':') {
            Some(("keys", value)) => shard.keys = number(value),
            Some(("led", value)) => shard.led_for = time(value),
            Some(("busy", value)) => shard.busy_for = time(value),
            Some(("quiet", value)) => shard.quiet_for = time(value),
            Some(("sample", value)) => {
                let keys = value.split(',').flat_map(sampled);
                shard.sample = keys.collect();
            }
            Some(("lag", value)) => {
                let (node, lag) = value.split_once('=').unwrap();
                shard.lags.insert(on_node(node), number(lag));
            }
            Some(("refused", node)) => {
                shard.refused.insert(NodeId(number(node)));
            }
            Some(("arrived", value)) => {
                let (node, ago) = value.split_once('=').unwrap();
                shard.arrived.insert(on_node(node), time(ago));
            }
            Some(_) => panic!("no such word: {word}"),
            None if *word == "on" => {}
            None if word.ends_with("ops") => {
                shard.load.operations = number(word.trim_end_matches("ops"));
                shard.steady = shard.load;
            }
            None if word.ends_with("B/s") => {
                shard.load.bytes = bytes(word.trim_end_matches("/s"));
                shard.steady = shard.load;
            }
            None if word.ends_with('B') => shard.bytes = bytes(word),
            None => draw_replica(&mut shard, word),
        }
    }
    shard
}

fn show(shard: &ShardView) -> String {
    let descriptor = &shard.descriptor;
    let mut out = format!("{} {} on", descriptor.id.group(), descriptor.range);
    for replica in &descriptor.replicas {
        let leads = shard.leader == Some(replica.id);
        let learns = shard.learners.contains(&replica.id);
        let mark = match (leads, learns) {
            (true, _) => "*",
            (false, true) => "+",
            (false, false) => "",
        };
        write!(out, " {}{mark}", replica.node).unwrap();
    }
    out
}
