//! Which fault comes when, and what else happens to the cluster: all of it follows from the seed.
//! Decides only.

use std::time::Duration;

use crate::env::rng::Seeded;
use crate::testkit::chaos::fault::Fault;
use crate::testkit::chaos::fault::Kind;

/// One fault of a schedule. Moments count from the beginning of the faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, if nothing before it takes longer.
    pub at: Duration,
    /// How long it lasts. A rolling restart takes as long as it takes.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

/// What is asked of the cluster itself while faults go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Duration,
    /// What.
    pub kind: ChangeKind,
    /// Which of what there is then: a number that is counted around.
    pub lot: u64,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// A shard is cut in two.
    Split,
    /// Another node leads a shard.
    MoveLeader,
    /// A shard gets a replica on a node that has none, and then loses another one.
    MoveReplica,
}

/// All of a run that follows from the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// In order; no two at once.
    pub faults: Vec<Planned>,
    /// In order.
    pub changes: Vec<Change>,
}

/// Before the first fault: how the cluster does while all is well.
const CALM: Duration = Duration::from_secs(3);
/// Between two changes.
const CHANGE_MS: (u64, u64) = (1_500, 4_000);

/// The schedule of a run of `duration` with these kinds, of which there must be at least one.
pub fn schedule(seed: u64, kinds: &[Kind], nodes: usize, duration: Duration) -> Schedule {
    assert!(!kinds.is_empty() && nodes > 0);
    let mut chance = Seeded::new(seed);
    let mut faults = Vec::new();
    let mut deck = Vec::new();
    let mut at = CALM.min(duration / 5);
    loop {
        if deck.is_empty() {
            deck = shuffled(kinds, &mut chance);
        }
        let Some(kind) = deck.pop() else { break };
        let planned = plan(kind, nodes, at, &mut chance);
        let quiet = Duration::from_millis(1_000 + chance.below(2_000));
        // What would not be over in time is not begun, unless it were the only one.
        let end = at + planned.lasts;
        if end > duration && !faults.is_empty() {
            break;
        }
        faults.push(planned);
        at = end + quiet;
    }
    Schedule {
        faults,
        changes: changes(&mut chance, duration),
    }
}

fn plan(kind: Kind, nodes: usize, at: Duration, chance: &mut Seeded) -> Planned {
    let everybody: Vec<usize> = (0..nodes).collect();
    let (least, most) = lasts_ms(kind, nodes);
    Planned {
        at,
        lasts: Duration::from_millis(least + chance.below(most - least + 1)),
        fault: Fault {
            kind,
            order: shuffled(&everybody, chance),
            leader_first: kind.is_of_leader() || chance.below(3) == 0,
            strength: chance.below(1_000),
        },
    }
}

/// How long a fault lasts, least and most, in milliseconds.
fn lasts_ms(kind: Kind, nodes: usize) -> (u64, u64) {
    match kind {
        Kind::Kill | Kind::KillLeader => (200, 4_000),
        Kind::KillMajority | Kind::KillAll => (100, 2_000),
        Kind::Pause | Kind::PauseLeader => (500, 5_000),
        Kind::RollingRestart => (2_000 * nodes as u64, 2_000 * nodes as u64),
        Kind::Halves
        | Kind::Isolate
        | Kind::IsolateLeader
        | Kind::OneWayIn
        | Kind::OneWayOut
        | Kind::Link
        | Kind::Ring
        | Kind::Bridge
        | Kind::Flapping => (1_500, 5_000),
        Kind::Delay | Kind::Loss | Kind::SlowDisk | Kind::FullDisk | Kind::Clock => (2_000, 5_000),
    }
}

fn changes(chance: &mut Seeded, duration: Duration) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        let (least, most) = CHANGE_MS;
        at += Duration::from_millis(least + chance.below(most - least));
        if at >= duration {
            return changes;
        }
        let kind = match chance.below(5) {
            0 => ChangeKind::Split,
            1..3 => ChangeKind::MoveLeader,
            _ => ChangeKind::MoveReplica,
        };
        let lot = chance.number();
        changes.push(Change { at, kind, lot });
    }
}

fn shuffled<T: Clone>(things: &[T], chance: &mut Seeded) -> Vec<T> {
    let mut things = things.to_vec();
    for last in (1..things.len()).rev() {
        let place = usize::try_from(chance.below(last as u64 + 1)).unwrap_or_default();
        things.swap(last, place);
    }
    things
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn transcript(seed: u64) -> Vec<String> {
        let schedule = schedule(seed, &Kind::ALL, 5, Duration::from_secs(30));
        let names: Vec<String> = (1..=5).map(|number| format!("n{number}")).collect();
        let faults = schedule.faults.iter().map(|planned| {
            let Planned { at, lasts, fault } = planned;
            let words = fault.harm(None).in_words(&names);
            format!("{:5} +{:<4} {words}", at.as_millis(), lasts.as_millis())
        });
        let changes = schedule.changes.iter().map(|change| {
            format!(
                "{:5} {:?} {}",
                change.at.as_millis(),
                change.kind,
                change.lot % 100
            )
        });
        faults.chain(changes).collect()
    }

    #[test]
    fn a_schedule_follows_from_its_seed() {
        let expected = [
            " 3000 +2768 kill -9 n1",
            " 6778 +329  kill -9 n4, n1, n3, n5, n2",
            " 8789 +3661 cut n1↔n4 n1↔n3 n3↔n5 n2↔n5 n2↔n4",
            "13571 +2898 cut n2↔n5 n2↔n3 n4↔n5 n3↔n4 n1↔n2 n1↔n4",
            "17578 +3595 n1↔n3 n1↔n5 n1↔n4 n1↔n2 +90 ms, jitter 45 ms",
            "24101 +3126 15 % lost between all",
            " 3602 MoveLeader 34",
            " 6240 MoveLeader 42",
            " 8912 MoveLeader 61",
            "11637 MoveLeader 43",
            "13359 Split 65",
            "15359 MoveReplica 49",
            "18274 MoveReplica 49",
            "20086 MoveReplica 63",
            "23743 MoveLeader 39",
            "26338 MoveLeader 9",
            "28763 Split 71",
        ];
        assert_eq!(transcript(7), expected);
        assert_eq!(transcript(7), transcript(7));
        assert_ne!(transcript(7), transcript(8));
    }

    #[test]
    fn no_two_faults_are_at_once_and_the_last_is_over_in_time() {
        for seed in 0..50 {
            let faults = schedule(seed, &Kind::ALL, 5, MINUTE).faults;
            assert!(faults.len() >= 5, "{}", faults.len());
            let apart = |pair: &[Planned]| pair[0].at + pair[0].lasts < pair[1].at;
            assert!(faults.windows(2).all(apart));
            assert!(
                faults
                    .iter()
                    .all(|planned| planned.at + planned.lasts <= MINUTE)
            );
        }
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let long = MINUTE * 10;
        let faults = schedule(3, &Kind::ALL, 5, long).faults;
        for round in faults.chunks_exact(Kind::ALL.len()) {
            let kinds: BTreeSet<Kind> = round.iter().map(|planned| planned.fault.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len());
        }
    }

    #[test]
    fn the_shortest_run_has_a_fault() {
        let short = schedule(1, &[Kind::RollingRestart], 9, Duration::from_secs(1));
        assert_eq!(short.faults.len(), 1);
    }
}
