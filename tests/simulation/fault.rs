//! What goes wrong in a run, and when: a function of the seed. Decides only.

use std::fmt;

use quorate::env::rng::Seeded;
use quorate::types::node::Duty;
use quorate::wal::SEGMENT_BYTES_MIN;

/// One run: how many nodes, and what happens to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// 3 to 7.
    pub nodes: u64,
    /// Of the clocks: how fast each gains, in millionths.
    pub drifts_ppm: Vec<i64>,
    /// Of the nodes.
    pub sizes: Sizes,
    /// Settings of placement, so that it repairs, splits and evens out within a run.
    pub settings: Vec<(&'static str, String)>,
    /// In the order of time.
    pub faults: Vec<Fault>,
}

/// How small and how slow the nodes are, so that what takes hours elsewhere happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Entries that stay in a log behind a checkpoint: few or none, so that followers need snapshots.
    pub entries_kept: u64,
    /// Length of a segment of the log: short, so that what still counts is copied forward out of the oldest.
    pub segment_bytes: u64,
    /// How long a flush of the engine goes on at most: others write meanwhile.
    pub flush_ms: u64,
}

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Milliseconds since the clients began.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// What happens. Nodes are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Nodes end, at once or at the so-manieth change of their disk from now on, and come back.
    Crash {
        nodes: Vec<u64>,
        how: Crash,
        at_step: Option<u64>,
        back_after_ms: u64,
    },
    /// A node is given no turn for a while.
    Pause { node: u64, for_ms: u64 },
    /// In these directions nothing arrives for a while.
    Cut { links: Vec<(u64, u64)>, for_ms: u64 },
    /// A node's links are slow for a while: all, or those to other nodes alone.
    Slow {
        node: u64,
        delay_ms: u64,
        clients: bool,
        for_ms: u64,
    },
    /// Messages between nodes are lost and doubled for a while.
    Lossy {
        lost_per_mille: u64,
        doubled_per_mille: u64,
        for_ms: u64,
    },
    /// A node's disk takes long for each round of the log, for a while.
    SlowDisk {
        node: u64,
        busy_ms: u64,
        for_ms: u64,
    },
    /// A node's disk takes no further byte for a while.
    FullDisk { node: u64, for_ms: u64 },
    /// One of the next syncs of a node's disk fails.
    FailingSync { node: u64, nth: u64 },
    /// A node's clock is wrong by so much from now on.
    ClockStep { node: u64, by_ms: i64 },
    /// A node's engine is flushed, and its log purged behind that.
    Checkpoint { node: u64 },
    /// A shard is cut in two at a key.
    Split { key: u64 },
    /// A shard absorbs its right neighbour.
    Merge { key: u64 },
    /// A shard's leader hands over.
    Transfer { key: u64, to: u64 },
    /// A shard gets a replica on a node, and gives up another one.
    Move { key: u64, to: u64 },
    /// The same, by an operator of placement.
    Order { key: u64, to: u64 },
    /// A person wants something else of a node.
    Duty { node: u64, duty: Duty },
    /// A person wants so many replicas of the shards with a prefix.
    Rule {
        prefix: &'static str,
        replicas: usize,
    },
}

/// What a crash takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process. Of the engine so many batches behind the last flush stay.
    Kill { kept: u64 },
    /// The machine: what is not synced may stay or not.
    PowerCut { seed: u64, kept: u64 },
}

/// Keys that a plan may name.
pub const KEYS: u64 = 64;

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut chance = Seeded::new(seed);
        let nodes = [3, 3, 3, 4, 5, 5, 6, 7][chance.below(8) as usize];
        let drifts_ppm = (0..nodes)
            .map(|_| [0, 0, 200, -200, 5_000, -5_000][chance.below(6) as usize])
            .collect();
        // A run has a character: some of the faults, not a little of all.
        let kinds: Vec<u64> = (0..KINDS).filter(|_| chance.below(2) == 0).collect();
        let count = 2 + chance.below(14);
        let mut at_ms = 0;
        let mut faults = Vec::new();
        for _ in 0..count {
            at_ms += chance.below(1_500);
            let kind = match kinds.is_empty() {
                true => chance.below(KINDS),
                false => kinds[chance.below(kinds.len() as u64) as usize],
            };
            let what = what(&mut chance, kind, nodes);
            faults.push(Fault { at_ms, what });
        }
        // And what an operator may ask for at any time, whatever goes wrong.
        for _ in 0..chance.below(7) {
            let at_ms = chance.below(at_ms + 1);
            let what = order(&mut chance, nodes);
            faults.push(Fault { at_ms, what });
        }
        // In half of the runs there are shards to merge from the beginning.
        if chance.below(2) == 0 {
            for _ in 0..1 + chance.below(4) {
                let (at_ms, key) = (chance.below(1_000), chance.below(KEYS));
                let what = What::Split { key };
                faults.push(Fault { at_ms, what });
            }
            for _ in 0..1 + chance.below(8) {
                let (at_ms, key) = (500 + chance.below(at_ms + 500), chance.below(KEYS));
                let what = What::Merge { key };
                faults.push(Fault { at_ms, what });
            }
        }
        faults.sort_by_key(|fault| fault.at_ms);
        Plan {
            nodes,
            drifts_ppm,
            sizes: Sizes {
                entries_kept: [0, 0, 20, 200][chance.below(4) as usize],
                segment_bytes: [SEGMENT_BYTES_MIN, SEGMENT_BYTES_MIN, 64 * 1024]
                    [chance.below(3) as usize],
                flush_ms: [0, 30, 400][chance.below(3) as usize],
            },
            settings: settings(&mut chance),
            faults,
        }
    }

    /// So many voters each group has at least, if placement alone takes any away; 0: somebody else may.
    pub fn least_voters(&self) -> usize {
        let wanted = self.faults.iter().map(|fault| match fault.what {
            What::Move { .. } => 0,
            What::Rule { replicas, .. } => replicas,
            _ => 3,
        });
        wanted.min().unwrap_or(3).min(3)
    }

    /// When the last fault is over, in milliseconds.
    pub fn ends_ms(&self) -> u64 {
        let ends = self
            .faults
            .iter()
            .map(|fault| fault.at_ms + fault.what.lasts_ms());
        ends.max().unwrap_or(0)
    }
}

const KINDS: u64 = 13;

fn what(chance: &mut Seeded, kind: u64, nodes: u64) -> What {
    let node = 1 + chance.below(nodes);
    let for_ms = 50 + chance.below(3_000);
    match kind {
        0..=2 => What::Crash {
            nodes: victims(chance, nodes),
            how: crash(chance),
            at_step: (chance.below(2) == 0).then(|| chance.below(60)),
            // Often before its leader is missed, or it missed as the leader.
            back_after_ms: [chance.below(200), chance.below(3_000)][chance.below(2) as usize],
        },
        3 => What::Pause { node, for_ms },
        4 | 5 => What::Cut {
            links: cut(chance, nodes),
            for_ms,
        },
        6 => What::Slow {
            node,
            // Now and then longer than an election.
            delay_ms: match chance.below(3) {
                0 => 1 + chance.below(1_500),
                _ => 1 + chance.below(400),
            },
            clients: chance.below(2) == 0,
            for_ms,
        },
        7 => What::Lossy {
            lost_per_mille: chance.below(300),
            doubled_per_mille: chance.below(300),
            for_ms,
        },
        8 => What::SlowDisk {
            node,
            busy_ms: 1 + chance.below(700),
            for_ms,
        },
        9 => What::FullDisk { node, for_ms },
        10 => What::FailingSync {
            node,
            nth: 1 + chance.below(20),
        },
        11 => What::ClockStep {
            node,
            by_ms: chance.below(4_000) as i64 - 2_000,
        },
        _ => What::Checkpoint { node },
    }
}

fn order(chance: &mut Seeded, nodes: u64) -> What {
    let (key, to) = (chance.below(KEYS), 1 + chance.below(nodes));
    match chance.below(8) {
        0 => What::Split { key },
        7 => What::Merge { key },
        1 => What::Transfer { key, to },
        2 => What::Move { key, to },
        3 => What::Order { key, to },
        4 | 5 => What::Duty {
            node: to,
            duty: [Duty::Serve, Duty::Drain, Duty::Leave][chance.below(3) as usize],
        },
        _ => What::Rule {
            prefix: ["", "count/", "reg/", "span/0"][chance.below(4) as usize],
            replicas: [1, 3, 3, 5][chance.below(4) as usize],
        },
    }
}

/// Mostly impatient, so that placement does in seconds what it otherwise does in minutes.
fn settings(chance: &mut Seeded) -> Vec<(&'static str, String)> {
    if chance.below(4) == 0 {
        return Vec::new();
    }
    let split_bytes = [1_500, 4_000, 20_000][chance.below(3) as usize];
    let split_operations = [20, 60, 2_000][chance.below(3) as usize];
    let merge_bytes = [0, 700, 2_000, 20_000][chance.below(4) as usize];
    let merge_operations = [10, 30, 1_000][chance.below(3) as usize];
    let replace_ms = 2_000 + chance.below(3_000);
    vec![
        ("suspect_after", "2s".to_owned()),
        ("replace_after", format!("{replace_ms}ms")),
        ("slow_recovery", "2s".to_owned()),
        ("split_bytes", split_bytes.to_string()),
        ("split_operations", split_operations.to_string()),
        ("split_sustained", "1s".to_owned()),
        ("merge_bytes", merge_bytes.to_string()),
        ("merge_operations", merge_operations.to_string()),
        ("merge_sustained", "2s".to_owned()),
        ("replica_bytes", "500".to_owned()),
        ("replica_rest", "2s".to_owned()),
        ("leader_rest", "1s".to_owned()),
        ("operator_time", "5s".to_owned()),
        ("catch_up_time", "5s".to_owned()),
    ]
}

fn victims(chance: &mut Seeded, nodes: u64) -> Vec<u64> {
    match chance.below(6) {
        // All at once.
        0 => (1..=nodes).collect(),
        // Any number of them.
        1 => (1..=nodes).filter(|_| chance.below(2) == 0).collect(),
        _ => vec![1 + chance.below(nodes)],
    }
}

fn crash(chance: &mut Seeded) -> Crash {
    let kept = match chance.below(3) {
        0 => 0,
        1 => u64::MAX,
        _ => chance.below(30),
    };
    match chance.below(2) {
        0 => Crash::Kill { kept },
        _ => Crash::PowerCut {
            seed: chance.number(),
            kept,
        },
    }
}

/// Directions that are cut: one node alone, one way in or out, two halves, one link, or a ring in which
/// each node sees its neighbours only. Sometimes the clients, number 0, are cut off like a node.
fn cut(chance: &mut Seeded, nodes: u64) -> Vec<(u64, u64)> {
    let node = 1 + chance.below(nodes);
    let kind = chance.below(6);
    let first = if kind < 4 { chance.below(2) } else { 1 };
    let all = (first..=nodes).flat_map(|from| (first..=nodes).map(move |to| (from, to)));
    let side = chance.number();
    let other = 1 + (node + chance.below(nodes - 1)) % nodes;
    let is_cut = |(from, to): &(u64, u64)| match kind {
        0 => *from == node || *to == node,
        1 => *from == node,
        2 => *to == node,
        3 => (side >> from) & 1 != (side >> to) & 1,
        4 => (*from, *to) == (node, other) || (*from, *to) == (other, node),
        _ => {
            let apart = from.abs_diff(*to);
            apart.min(nodes - apart) > 1
        }
    };
    all.filter(|(from, to)| from != to).filter(is_cut).collect()
}

impl What {
    fn lasts_ms(&self) -> u64 {
        match self {
            What::Crash { back_after_ms, .. } => *back_after_ms,
            What::Pause { for_ms, .. }
            | What::Cut { for_ms, .. }
            | What::Slow { for_ms, .. }
            | What::Lossy { for_ms, .. }
            | What::SlowDisk { for_ms, .. }
            | What::FullDisk { for_ms, .. } => *for_ms,
            What::FailingSync { .. }
            | What::ClockStep { .. }
            | What::Checkpoint { .. }
            | What::Split { .. }
            | What::Merge { .. }
            | What::Transfer { .. }
            | What::Move { .. }
            | What::Order { .. }
            | What::Duty { .. }
            | What::Rule { .. } => 0,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms: {:?}", self.at_ms, self.what)
    }
}
