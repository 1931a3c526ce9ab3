//! The faults that a cluster can be given, and what each does to which node. Decides only.

use std::time::Duration;

use crate::testkit::relay::Rule;
use crate::testkit::relay::Way;

/// A kind of fault, as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One node is killed.
    Kill,
    /// The node that leads is killed.
    KillLeader,
    /// A majority is killed at once.
    KillMajority,
    /// All are killed at once.
    KillAll,
    /// One node stands still.
    Pause,
    /// The node that leads stands still.
    PauseLeader,
    /// Each node is stopped in order and started again.
    RollingRestart,
    /// Two halves do not hear each other.
    Halves,
    /// One node hears nobody and is not heard.
    Isolate,
    /// The same for the node that leads.
    IsolateLeader,
    /// One node is heard and hears nobody.
    OneWayIn,
    /// One node hears and is not heard.
    OneWayOut,
    /// Two nodes do not hear each other.
    Link,
    /// Each node hears another majority.
    Ring,
    /// Two halves hear each other over one node only.
    Bridge,
    /// One node comes and goes.
    Flapping,
    /// Everything to and from one node arrives late.
    Delay,
    /// Everything between all is lost now and then.
    Loss,
    /// One node's disk is slow.
    SlowDisk,
    /// The disks of a minority are full.
    FullDisk,
    /// One node's clock is wrong.
    Clock,
}

/// What a cluster must allow for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// To end and start nodes, and to let them stand still.
    Nodes,
    /// To separate one node from all others.
    Separation,
    /// To set a rule for each way between two nodes.
    Ways,
    /// To tell a node that its disk or clock is bad.
    Door,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 21] = [
        Kind::Kill,
        Kind::KillLeader,
        Kind::KillMajority,
        Kind::KillAll,
        Kind::Pause,
        Kind::PauseLeader,
        Kind::RollingRestart,
        Kind::Halves,
        Kind::Isolate,
        Kind::IsolateLeader,
        Kind::OneWayIn,
        Kind::OneWayOut,
        Kind::Link,
        Kind::Ring,
        Kind::Bridge,
        Kind::Flapping,
        Kind::Delay,
        Kind::Loss,
        Kind::SlowDisk,
        Kind::FullDisk,
        Kind::Clock,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::KillLeader => "kill-leader",
            Kind::KillMajority => "kill-majority",
            Kind::KillAll => "kill-all",
            Kind::Pause => "pause",
            Kind::PauseLeader => "pause-leader",
            Kind::RollingRestart => "rolling-restart",
            Kind::Halves => "halves",
            Kind::Isolate => "isolate",
            Kind::IsolateLeader => "isolate-leader",
            Kind::OneWayIn => "one-way-in",
            Kind::OneWayOut => "one-way-out",
            Kind::Link => "link",
            Kind::Ring => "ring",
            Kind::Bridge => "bridge",
            Kind::Flapping => "flapping",
            Kind::Delay => "delay",
            Kind::Loss => "loss",
            Kind::SlowDisk => "slow-disk",
            Kind::FullDisk => "full-disk",
            Kind::Clock => "clock",
        }
    }

    /// In one line.
    pub fn description(self) -> &'static str {
        match self {
            Kind::Kill => "kill -9 of one node",
            Kind::KillLeader => "kill -9 of the node that leads",
            Kind::KillMajority => "kill -9 of a majority at once",
            Kind::KillAll => "kill -9 of all nodes at once",
            Kind::Pause => "one node stands still (SIGSTOP) for 0.5 to 5 s",
            Kind::PauseLeader => "the node that leads stands still for 0.5 to 5 s",
            Kind::RollingRestart => {
                "each node is stopped in order and started, one after the other"
            }
            Kind::Halves => "two halves that do not hear each other",
            Kind::Isolate => "one node is cut off",
            Kind::IsolateLeader => "the node that leads is cut off",
            Kind::OneWayIn => "one node is heard and hears nobody",
            Kind::OneWayOut => "one node hears and is heard by nobody",
            Kind::Link => "two nodes do not hear each other",
            Kind::Ring => "each node hears a majority, each another one (4 nodes or more)",
            Kind::Bridge => "two halves that hear each other over one node only",
            Kind::Flapping => "one node is cut off and back again several times a second",
            Kind::Delay => "what one node sends and hears is late by 5 to 300 ms and jitter",
            Kind::Loss => "1 to 50 % of all segments between nodes are lost and sent again",
            Kind::SlowDisk => "each sync of one node takes 20 to 300 ms longer",
            Kind::FullDisk => "no space left on a minority of the nodes",
            Kind::Clock => "one node's wall clock is wrong by up to 20 s",
        }
    }

    /// What the cluster must allow.
    pub fn needs(self) -> Needs {
        match self {
            Kind::Kill
            | Kind::KillLeader
            | Kind::KillMajority
            | Kind::KillAll
            | Kind::Pause
            | Kind::PauseLeader
            | Kind::RollingRestart => Needs::Nodes,
            Kind::Isolate | Kind::IsolateLeader | Kind::Flapping => Needs::Separation,
            Kind::Halves
            | Kind::OneWayIn
            | Kind::OneWayOut
            | Kind::Link
            | Kind::Ring
            | Kind::Bridge
            | Kind::Delay
            | Kind::Loss => Needs::Ways,
            Kind::SlowDisk | Kind::FullDisk | Kind::Clock => Needs::Door,
        }
    }

    /// Whether it can be done to containers, through the docker command.
    pub fn is_for_containers(self) -> bool {
        match self.needs() {
            Needs::Nodes | Needs::Separation => true,
            Needs::Ways | Needs::Door => false,
        }
    }

    /// With fewer nodes there is no such fault.
    pub fn nodes_min(self) -> usize {
        match self {
            Kind::Ring => 4,
            Kind::Kill
            | Kind::KillLeader
            | Kind::KillMajority
            | Kind::KillAll
            | Kind::Pause
            | Kind::PauseLeader
            | Kind::RollingRestart
            | Kind::Halves
            | Kind::Isolate
            | Kind::IsolateLeader
            | Kind::OneWayIn
            | Kind::OneWayOut
            | Kind::Link
            | Kind::Bridge
            | Kind::Flapping
            | Kind::Delay
            | Kind::Loss
            | Kind::SlowDisk
            | Kind::FullDisk
            | Kind::Clock => 3,
        }
    }

    /// Whether the node that leads is always the first one hit.
    pub fn is_of_leader(self) -> bool {
        matches!(
            self,
            Kind::KillLeader | Kind::PauseLeader | Kind::IsolateLeader
        )
    }
}

/// Groups of kinds that can be typed for all of them.
pub const GROUPS: [(&str, &[Kind]); 4] = [
    ("all", &Kind::ALL),
    (
        "kills",
        &[
            Kind::Kill,
            Kind::KillLeader,
            Kind::KillMajority,
            Kind::KillAll,
        ],
    ),
    (
        "partition",
        &[
            Kind::Halves,
            Kind::Isolate,
            Kind::IsolateLeader,
            Kind::OneWayIn,
            Kind::OneWayOut,
            Kind::Link,
            Kind::Ring,
            Kind::Bridge,
            Kind::Flapping,
        ],
    ),
    ("disk", &[Kind::SlowDisk, Kind::FullDisk]),
];

/// The kinds that a word names: one kind, or a group.
pub fn named(word: &str) -> Option<Vec<Kind>> {
    let group = GROUPS.iter().find(|(name, _)| *name == word);
    if let Some((_, kinds)) = group {
        return Some(kinds.to_vec());
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word);
    kind.map(|kind| vec![kind])
}

/// One fault as it is planned: which nodes it hits is an order, of which the first ones count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// All nodes, those that are hit first.
    pub order: Vec<usize>,
    /// Whether the node that leads at that moment comes before all others.
    pub leader_first: bool,
    /// How bad, from 0 to 999.
    pub strength: u64,
}

/// What a fault does, once it is known who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Harm {
    /// These nodes are killed at once, and started when it is over.
    Kill(Vec<usize>),
    /// These nodes stand still.
    Pause(Vec<usize>),
    /// These nodes are stopped and started, one after the other.
    Restart(Vec<usize>),
    /// A rule holds on these ways.
    Net(Vec<Way>, Rule),
    /// This node is cut off from all others.
    Separate(usize),
    /// This node is cut off and back again, each for so long.
    Flap(usize, Duration),
    /// Each sync of these nodes takes so much longer.
    SlowSync(Vec<usize>, Duration),
    /// These nodes have no space left.
    Full(Vec<usize>),
    /// This node's clock is wrong by so many milliseconds.
    Clock(usize, i64),
}

impl Fault {
    /// What it does while `leader` leads.
    pub fn harm(&self, leader: Option<usize>) -> Harm {
        let order = self.order_with(leader);
        let count = order.len();
        let first = order[0];
        let others = &order[1..];
        let majority = count / 2 + 1;
        let strength = self.strength;
        match self.kind {
            Kind::Kill | Kind::KillLeader => Harm::Kill(vec![first]),
            Kind::KillMajority => Harm::Kill(order[..majority].to_vec()),
            Kind::KillAll => Harm::Kill(order),
            Kind::Pause | Kind::PauseLeader => Harm::Pause(vec![first]),
            Kind::RollingRestart => Harm::Restart(order),
            Kind::Halves => {
                let (left, right) = order.split_at(count / 2);
                Harm::Net(Way::between(left, right), Rule::CUT)
            }
            Kind::Isolate | Kind::IsolateLeader => Harm::Separate(first),
            Kind::OneWayIn => Harm::Net(Way::across(others, &[first]), Rule::CUT),
            Kind::OneWayOut => Harm::Net(Way::across(&[first], others), Rule::CUT),
            Kind::Link => Harm::Net(Way::between(&[first], &others[..1]), Rule::CUT),
            Kind::Ring => Harm::Net(ring(&order), Rule::CUT),
            Kind::Bridge => {
                let (left, right) = others.split_at(others.len() / 2);
                Harm::Net(Way::between(left, right), Rule::CUT)
            }
            Kind::Flapping => Harm::Flap(first, Duration::from_millis(scale(strength, 100, 800))),
            Kind::Delay => {
                let delay = Duration::from_millis(scale(strength, 5, 300));
                Harm::Net(Way::between(&[first], others), Rule::late(delay, delay / 2))
            }
            Kind::Loss => {
                let everywhere = Way::across(&order, &order);
                Harm::Net(everywhere, Rule::lossy(scale(strength, 1, 50)))
            }
            Kind::SlowDisk => {
                let delay = Duration::from_millis(scale(strength, 20, 300));
                Harm::SlowSync(vec![first], delay)
            }
            Kind::FullDisk => {
                let minority = count - majority;
                let hit = usize::try_from(strength).unwrap_or_default() % minority + 1;
                Harm::Full(order[..hit].to_vec())
            }
            Kind::Clock => {
                let offset = scale(strength, 100, 20_000).cast_signed();
                Harm::Clock(
                    first,
                    if strength.is_multiple_of(2) {
                        offset
                    } else {
                        -offset
                    },
                )
            }
        }
    }

    fn order_with(&self, leader: Option<usize>) -> Vec<usize> {
        let mut order = self.order.clone();
        if let Some(leader) = leader
            && self.leader_first
            && let Some(place) = order.iter().position(|node| *node == leader)
        {
            order[..=place].rotate_right(1);
        }
        order
    }
}

/// Nodes stand in a circle, and each hears its neighbours: just enough to be a majority with itself.
fn ring(order: &[usize]) -> Vec<Way> {
    let count = order.len();
    let reach = (count / 2).div_ceil(2);
    let mut cut = Vec::new();
    for left in 0..count {
        for right in left + 1..count {
            let apart = (right - left).min(count - (right - left));
            if apart > reach {
                cut.extend(Way::between(&[order[left]], &[order[right]]));
            }
        }
    }
    cut
}

fn scale(strength: u64, least: u64, most: u64) -> u64 {
    least + (most - least) * strength.min(999) / 999
}

impl Harm {
    /// For people; nodes are named as they are in the cluster.
    pub fn in_words(&self, names: &[String]) -> String {
        let list = |nodes: &[usize]| {
            let names = nodes.iter().map(|node| names[*node].as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let one = |node: usize| names[node].as_str();
        match self {
            Harm::Kill(nodes) => format!("kill -9 {}", list(nodes)),
            Harm::Pause(nodes) => format!("{} stands still", list(nodes)),
            Harm::Restart(nodes) => format!("restart {}", list(nodes)),
            Harm::Net(ways, rule) => net_in_words(ways, rule, names),
            Harm::Separate(node) => format!("{} is cut off", one(*node)),
            Harm::Flap(node, each) => {
                format!(
                    "{} comes and goes, {} ms each",
                    one(*node),
                    each.as_millis()
                )
            }
            Harm::SlowSync(nodes, delay) => {
                format!("syncs of {} +{} ms", list(nodes), delay.as_millis())
            }
            Harm::Full(nodes) => format!("no space on {}", list(nodes)),
            Harm::Clock(node, offset_ms) => {
                format!(
                    "clock of {} {:+.1} s",
                    one(*node),
                    *offset_ms as f64 / 1_000.0
                )
            }
        }
    }
}

fn net_in_words(ways: &[Way], rule: &Rule, names: &[String]) -> String {
    if !rule.delay.is_zero() {
        let (delay, jitter) = (rule.delay.as_millis(), rule.jitter.as_millis());
        return format!("{} +{delay} ms, jitter {jitter} ms", arrows(ways, names));
    }
    if rule.loss_percent > 0 {
        return format!("{} % lost between all", rule.loss_percent);
    }
    format!("cut {}", arrows(ways, names))
}

/// `n1↔n2` where both ways are meant, `n1→n2` where one is.
fn arrows(ways: &[Way], names: &[String]) -> String {
    let back = |way: &Way| Way {
        from: way.to,
        to: way.from,
    };
    let mut said = Vec::new();
    for way in ways {
        let both = ways.contains(&back(way));
        if both && way.from > way.to {
            continue;
        }
        let arrow = if both { '↔' } else { '→' };
        said.push(format!("{}{arrow}{}", names[way.from], names[way.to]));
    }
    said.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn harm(kind: Kind, count: usize, strength: u64) -> String {
        let fault = Fault {
            kind,
            order: (0..count).rev().collect(),
            leader_first: kind.is_of_leader(),
            strength,
        };
        let names: Vec<String> = (1..=count).map(|number| format!("n{number}")).collect();
        fault.harm(Some(0)).in_words(&names)
    }

    #[test]
    fn each_kind_does_what_it_says() {
        let transcript: Vec<String> = Kind::ALL
            .into_iter()
            .map(|kind| format!("{}: {}", kind.name(), harm(kind, 5, 500)))
            .collect();
        let expected = "\
kill: kill -9 n5
kill-leader: kill -9 n1
kill-majority: kill -9 n5, n4, n3
kill-all: kill -9 n5, n4, n3, n2, n1
pause: n5 stands still
pause-leader: n1 stands still
rolling-restart: restart n5, n4, n3, n2, n1
halves: cut n3↔n5 n2↔n5 n1↔n5 n3↔n4 n2↔n4 n1↔n4
isolate: n5 is cut off
isolate-leader: n1 is cut off
one-way-in: cut n4→n5 n3→n5 n2→n5 n1→n5
one-way-out: cut n5→n4 n5→n3 n5→n2 n5→n1
link: cut n4↔n5
ring: cut n3↔n5 n2↔n5 n2↔n4 n1↔n4 n1↔n3
bridge: cut n2↔n4 n1↔n4 n2↔n3 n1↔n3
flapping: n5 comes and goes, 450 ms each
delay: n4↔n5 n3↔n5 n2↔n5 n1↔n5 +152 ms, jitter 76 ms
loss: 25 % lost between all
slow-disk: syncs of n5 +160 ms
full-disk: no space on n5
clock: clock of n5 +10.1 s";
        let mut said: Vec<String> = transcript;
        // The order in which links are named does not matter.
        let mut expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        for line in said.iter_mut().chain(&mut expected) {
            if line.contains("cut ") || line.contains('↔') {
                let mut words: Vec<&str> = line.split(' ').collect();
                words.sort_unstable();
                *line = words.join(" ");
            }
        }
        assert_eq!(said, expected);
    }

    #[test]
    fn in_a_ring_each_node_hears_a_majority_and_no_two_the_same() {
        for count in [5, 7, 9] {
            let order: Vec<usize> = (0..count).collect();
            let cut = ring(&order);
            let hears = |to: usize| -> BTreeSet<usize> {
                let open = |from: &usize| !cut.contains(&Way { from: *from, to });
                order.iter().copied().filter(open).collect()
            };
            let heard: BTreeSet<BTreeSet<usize>> = order.iter().map(|to| hears(*to)).collect();
            assert_eq!(heard.len(), count);
            assert!(
                heard
                    .iter()
                    .all(|hears| hears.len() > count / 2 && hears.len() < count)
            );
        }
        assert!(!ring(&[0, 1, 2, 3]).is_empty());
    }

    #[test]
    fn words_name_kinds_and_groups() {
        assert_eq!(named("kill"), Some(vec![Kind::Kill]));
        assert_eq!(named("all").map(|kinds| kinds.len()), Some(Kind::ALL.len()));
        assert_eq!(named("earthquake"), None);
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(GROUPS.iter().all(|(name, _)| !names.contains(name)));
    }

    #[test]
    fn a_full_disk_never_hits_a_majority() {
        for count in [3, 4, 5, 9] {
            for strength in 0..1_000 {
                let said = harm(Kind::FullDisk, count, strength);
                assert!(said.split(", ").count() <= (count - 1) / 2, "{said}");
            }
        }
    }
}
