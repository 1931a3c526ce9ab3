//! How long nobody's write was acknowledged around each fault. Decides only.

use std::collections::BTreeMap;

use crate::testkit::chaos::fault::Kind;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::ShardId;
use crate::types::request::WriteOutcome;

/// A shard with fewer acknowledged writes is often silent for no reason.
const BUSY_WRITES_PER_SECOND: u64 = 5;

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
    /// The longest time without an acknowledged write from the fault's beginning to the next one's: where
    /// it began.
    pub from: Moment,
    /// And where it ended.
    pub to: Moment,
    /// The longest time in which one busy shard acknowledged nothing, in microseconds: others may have.
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
            let (from, to) = longest_gap(&all, fault.began, next);
            // Before its first one a shard was not there, or nobody asked it.
            let busy = acknowledged
                .values()
                .filter(|moments| is_busy(moments, end));
            let of_shards = busy.map(|moments| {
                let (from, to) = longest_gap(moments, fault.began.max(moments[0]), next);
                to.0 - from.0
            });
            let after = all.partition_point(|moment| *moment < fault.ended);
            let back = all.get(after);
            Effect {
                from,
                to,
                shard_gap_us: of_shards.chain([to.0 - from.0]).max().unwrap_or_default(),
                back_us: back.map(|moment| moment.0 - fault.ended.0),
            }
        })
        .collect()
}

/// Whether a shard is written so often that its silence means something.
fn is_busy(moments: &[Moment], end: Moment) -> bool {
    let life_us = end.0.saturating_sub(moments[0].0).max(1);
    moments.len() as u64 * 1_000_000 >= life_us * BUSY_WRITES_PER_SECOND
}

/// The longest time without an acknowledgement in `[from, to)`. One that began before counts from `from`
/// on, and one that ends later up to `to`: the rest has another cause.
fn longest_gap(acknowledged: &[Moment], from: Moment, to: Moment) -> (Moment, Moment) {
    let inside = acknowledged.iter().copied();
    let inside = inside.filter(|moment| (from..to).contains(moment));
    let mut last = from;
    let mut longest = (from, from);
    for moment in inside.chain([to.max(from)]) {
        if moment.0 - last.0 > longest.1.0 - longest.0.0 {
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
        check(&[(10, 20)], &[1, 5, 9, 28, 30, 35], 40, "10..28 8");
        check(&[(10, 20)], &[1, 5, 9, 12, 15, 35], 40, "15..35 15");
    }

    #[test]
    fn a_gap_belongs_to_the_fault_before_it_and_not_to_the_next_one() {
        check(
            &[(10, 20), (50, 60)],
            &[9, 30, 48, 49, 53, 61],
            70,
            "10..30 10, 61..70 1",
        );
        check(
            &[(10, 20), (50, 60)],
            &[9, 58, 59],
            70,
            "10..50 38, 59..70 never",
        );
    }

    #[test]
    fn a_cluster_that_never_comes_back_has_a_gap_to_the_end() {
        check(&[(10, 20)], &[1, 9], 100, "10..100 never");
        check(&[(10, 20)], &[], 100, "10..100 never");
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
        assert_eq!((kill.gap_median_us, kill.gap_worst_us), (60, 74));
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
        assert_eq!((effects[0].gap_us(), effects[0].shard_gap_us), (10, 45));
    }

    #[test]
    fn a_shard_that_is_seldom_written_is_not_called_silent() {
        let second = 1_000_000;
        let often: Vec<Moment> = (0..100).map(|n| Moment(n * second / 10)).collect();
        let seldom = [0, 4, 9].map(|at| Moment(at * second)).to_vec();
        let acknowledged = BTreeMap::from([(ShardId(1), often), (ShardId(2), seldom)]);
        let faults = [fault(Kind::Kill, second, 2 * second)];
        let effects = effects(&faults, &acknowledged, Moment(10 * second));
        assert!(effects[0].shard_gap_us < second, "{effects:?}");
    }

    #[test]
    fn the_lower_middle_is_the_median() {
        assert_eq!(median(vec![4, 1, 3, 2]), 2);
        assert_eq!(median(vec![5]), 5);
        assert_eq!(median(Vec::new()), 0);
    }
}
