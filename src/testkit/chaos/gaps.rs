//! How long nobody's write was acknowledged around each fault. Decides only.

use std::collections::BTreeMap;

use crate::testkit::chaos::fault::Kind;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::ShardId;
use crate::types::request::WriteOutcome;

/// A fault that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// What kind.
    pub kind: Kind,
    /// What was done to whom, for people.
    pub what: String,
    /// When it began.
    pub began: Moment,
    /// When it was over.
    pub ended: Moment,
}

/// What a fault did to the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// The longest time without an acknowledged write that overlaps the time from the fault's beginning
    /// to the next one's: where it began.
    pub from: Moment,
    /// And where it ended.
    pub to: Moment,
    /// The longest time in which one shard acknowledged nothing, in microseconds: others may have.
    pub shard_gap_us: u64,
    /// From the fault's end to the first acknowledged write after it, in microseconds; `None` when
    /// there was none before the run's end.
    pub back_us: Option<u64>,
}

impl Effect {
    /// Without an acknowledged write, in microseconds.
    pub fn gap_us(&self) -> u64 {
        self.to.0 - self.from.0
    }
}

/// All faults of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfKind {
    /// Which.
    pub kind: Kind,
    /// How many.
    pub times: usize,
    /// How long one lasted, in microseconds: the median.
    pub lasted_us: u64,
    /// Without an acknowledged write, in microseconds: the median.
    pub gap_median_us: u64,
    /// The same: the worst.
    pub gap_worst_us: u64,
    /// One shard without an acknowledged write, in microseconds: the median.
    pub shard_gap_median_us: u64,
    /// The same: the worst.
    pub shard_gap_worst_us: u64,
    /// From the fault's end to the next acknowledged write, in microseconds: the worst. `None`: at
    /// least once there was none.
    pub back_worst_us: Option<u64>,
}

/// When writes were acknowledged, by the shard that did so; each in order.
pub fn acknowledgements(history: &[Observed]) -> BTreeMap<ShardId, Vec<Moment>> {
    let mut shards: BTreeMap<ShardId, Vec<Moment>> = BTreeMap::new();
    for observed in history {
        if let Answer::Wrote(WriteOutcome::Done { .. }, answered) = &observed.answer {
            let moments = shards.entry(answered.shard).or_default();
            moments.push(observed.ended);
        }
    }
    shards
        .values_mut()
        .for_each(|moments| moments.sort_unstable());
    shards
}

/// What each fault did, in order. Each list of `acknowledged` is sorted; the run is over at `end`.
pub fn effects(
    faults: &[Happened],
    acknowledged: &BTreeMap<ShardId, Vec<Moment>>,
    end: Moment,
) -> Vec<Effect> {
    let mut all: Vec<Moment> = acknowledged.values().flatten().copied().collect();
    all.sort_unstable();
    let nexts = faults.iter().skip(1).map(|fault| fault.began);
    let windows = faults.iter().zip(nexts.chain([end]));
    windows
        .map(|(fault, next)| {
            let (from, to) = longest_gap(&all, Moment(0), fault.began, next, end);
            let of_shards = acknowledged.values().map(|moments| {
                // Before its first one the shard was not there, or nobody asked it.
                let (from, to) = longest_gap(moments, moments[0], fault.began, next, end);
                to.0 - from.0
            });
            let after = all.partition_point(|moment| *moment < fault.ended);
            let back = all.get(after);
            Effect {
                from,
                to,
                shard_gap_us: of_shards.max().unwrap_or_default(),
                back_us: back.map(|moment| moment.0 - fault.ended.0),
            }
        })
        .collect()
}

/// The longest time between two acknowledgements, or between one and the run's beginning or end, that
/// overlaps `[from, to)`.
fn longest_gap(
    acknowledged: &[Moment],
    beginning: Moment,
    from: Moment,
    to: Moment,
    end: Moment,
) -> (Moment, Moment) {
    let first = acknowledged.partition_point(|moment| *moment <= from);
    let mut last = match first.checked_sub(1) {
        Some(before) => acknowledged[before],
        None => beginning,
    };
    let mut longest = (last, last);
    let rest = acknowledged[first..].iter().copied();
    for moment in rest.chain([end]) {
        if last >= to {
            break;
        }
        if moment.0.saturating_sub(last.0) > longest.1.0 - longest.0.0 {
            longest = (last, moment);
        }
        last = moment;
    }
    longest
}

/// The faults by kind, in the order of the kinds.
pub fn by_kind(faults: &[Happened], effects: &[Effect]) -> Vec<OfKind> {
    let mut kinds: BTreeMap<Kind, Vec<(&Happened, &Effect)>> = BTreeMap::new();
    for (fault, effect) in faults.iter().zip(effects) {
        kinds.entry(fault.kind).or_default().push((fault, effect));
    }
    let rows = kinds.into_iter().map(|(kind, of_kind)| {
        let lasted = of_kind
            .iter()
            .map(|(fault, _)| fault.ended.0 - fault.began.0);
        let gaps: Vec<u64> = of_kind.iter().map(|(_, effect)| effect.gap_us()).collect();
        let of_shards = of_kind.iter().map(|(_, effect)| effect.shard_gap_us);
        let of_shards: Vec<u64> = of_shards.collect();
        let backs: Option<Vec<u64>> = of_kind.iter().map(|(_, effect)| effect.back_us).collect();
        OfKind {
            kind,
            times: of_kind.len(),
            lasted_us: median(lasted.collect()),
            gap_worst_us: gaps.iter().copied().max().unwrap_or_default(),
            gap_median_us: median(gaps),
            shard_gap_worst_us: of_shards.iter().copied().max().unwrap_or_default(),
            shard_gap_median_us: median(of_shards),
            back_worst_us: backs.map(|backs| backs.into_iter().max().unwrap_or_default()),
        }
    });
    rows.collect()
}

/// The middle one; of an even number the lower of the two.
fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    let middle = numbers.len().saturating_sub(1) / 2;
    numbers.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: Kind, began: u64, ended: u64) -> Happened {
        Happened {
            kind,
            what: String::new(),
            began: Moment(began),
            ended: Moment(ended),
        }
    }

    fn of_one_shard(acknowledged: &[u64]) -> BTreeMap<ShardId, Vec<Moment>> {
        let moments: Vec<Moment> = acknowledged.iter().copied().map(Moment).collect();
        let shards = [(ShardId(1), moments)].into_iter();
        shards.filter(|(_, moments)| !moments.is_empty()).collect()
    }

    /// Faults as `kind began..ended`, acknowledgements, end; as `from..to back`.
    #[track_caller]
    fn check(faults: &[(u64, u64)], acknowledged: &[u64], end: u64, expected: &str) {
        let faults = faults
            .iter()
            .map(|(began, ended)| fault(Kind::Kill, *began, *ended));
        let faults: Vec<Happened> = faults.collect();
        let effects = effects(&faults, &of_one_shard(acknowledged), Moment(end));
        let said = effects.iter().map(|effect| {
            let back = effect
                .back_us
                .map_or("never".to_owned(), |back| back.to_string());
            format!("{}..{} {back}", effect.from.0, effect.to.0)
        });
        assert_eq!(said.collect::<Vec<_>>().join(", "), expected);
    }

    #[test]
    fn a_gap_is_the_longest_time_without_an_acknowledged_write() {
        check(&[(10, 20)], &[1, 5, 9, 28, 30, 35], 40, "9..28 8");
        check(&[(10, 20)], &[1, 5, 9, 12, 15, 35], 40, "15..35 15");
    }

    #[test]
    fn a_gap_belongs_to_the_fault_before_it_and_not_to_the_next_one() {
        check(
            &[(10, 20), (50, 60)],
            &[9, 30, 48, 49, 53, 61],
            70,
            "9..30 10, 61..70 1",
        );
        check(
            &[(10, 20), (50, 60)],
            &[9, 58, 59],
            70,
            "9..58 38, 9..58 never",
        );
    }

    #[test]
    fn a_cluster_that_never_comes_back_has_a_gap_to_the_end() {
        check(&[(10, 20)], &[1, 9], 100, "9..100 never");
        check(&[(10, 20)], &[], 100, "0..100 never");
        check(&[], &[1], 100, "");
    }

    #[test]
    fn kinds_have_a_median_and_a_worst() {
        let faults = [
            fault(Kind::Kill, 10, 20),
            fault(Kind::Pause, 100, 140),
            fault(Kind::Kill, 200, 230),
            fault(Kind::Kill, 300, 310),
        ];
        let acknowledged = of_one_shard(&[9, 25, 99, 150, 199, 260, 299, 305, 311]);
        let effects = effects(&faults, &acknowledged, Moment(312));
        let rows = by_kind(&faults, &effects);
        let kill = &rows[0];
        assert_eq!((kill.kind, kill.times, kill.lasted_us), (Kind::Kill, 3, 10));
        assert_eq!((kill.gap_median_us, kill.gap_worst_us), (61, 74));
        assert_eq!(kill.back_worst_us, Some(30));
        assert_eq!((rows[1].kind, rows[1].times), (Kind::Pause, 1));
    }

    #[test]
    fn a_shard_that_is_silent_is_seen_though_others_are_not() {
        let moments = |all: &[u64]| all.iter().copied().map(Moment).collect::<Vec<_>>();
        let acknowledged = BTreeMap::from([
            (ShardId(1), moments(&[1, 8, 55, 60])),
            (ShardId(2), moments(&[2, 15, 20, 30, 40, 50, 60])),
            // Split off later: it was not silent before.
            (ShardId(3), moments(&[58, 60])),
        ]);
        let effects = effects(&[fault(Kind::Kill, 10, 20)], &acknowledged, Moment(61));
        assert_eq!((effects[0].gap_us(), effects[0].shard_gap_us), (10, 47));
    }

    #[test]
    fn the_lower_middle_is_the_median() {
        assert_eq!(median(vec![4, 1, 3, 2]), 2);
        assert_eq!(median(vec![5]), 5);
        assert_eq!(median(Vec::new()), 0);
    }
}
