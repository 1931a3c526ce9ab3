//! A history in slices of time: how much was answered and how late. Decides only.

use crate::testkit::observed::Answer;
use crate::testkit::observed::Observed;
use crate::types::request::WriteOutcome;

/// One slice, in microseconds.
const SLICE_US: u64 = 100_000;
/// Slices of one picture: of a long run each is longer.
const SLICES_MAX: u64 = 6_000;

/// What was answered in one slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Slice {
    /// Requests with an answer.
    pub(super) answered: u64,
    /// Acknowledged writes among these.
    pub(super) acknowledged: u64,
    /// 99 of 100 were answered within so many microseconds; 0 when there were none.
    pub(super) p99_us: u64,
}

/// Slices of one length, from the run's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Series {
    /// Of one slice, in microseconds.
    pub(super) slice_us: u64,
    pub(super) slices: Vec<Slice>,
}

impl Series {
    /// Of a run that took so long.
    pub(super) fn of(history: &[Observed], run_us: u64) -> Series {
        let times = run_us.div_ceil(SLICE_US).div_ceil(SLICES_MAX).max(1);
        let slice_us = SLICE_US * times;
        let count = usize::try_from(run_us.div_ceil(slice_us)).unwrap_or_default();
        let mut slices = vec![Slice::default(); count];
        let mut latencies = vec![Vec::new(); count];
        for observed in history {
            let place = usize::try_from(observed.ended.0 / slice_us).unwrap_or(usize::MAX);
            let is_answered = match &observed.answer {
                Answer::Found(..) | Answer::Scanned { .. } | Answer::Wrote(..) => true,
                Answer::Unknown | Answer::Refused => false,
            };
            let (Some(slice), true) = (slices.get_mut(place), is_answered) else {
                continue;
            };
            slice.answered += 1;
            let done = matches!(
                &observed.answer,
                Answer::Wrote(WriteOutcome::Done { .. }, _)
            );
            slice.acknowledged += u64::from(done);
            latencies[place].push(observed.ended.0 - observed.began.0);
        }
        for (slice, latencies) in slices.iter_mut().zip(latencies) {
            slice.p99_us = p99(latencies);
        }
        Series { slice_us, slices }
    }

    /// The highest number of answers in a slice; at least 1.
    pub(super) fn most_answered(&self) -> u64 {
        let all = self.slices.iter().map(|slice| slice.answered);
        all.max().unwrap_or_default().max(1)
    }

    /// The highest latency of a slice, in microseconds; at least a millisecond.
    pub(super) fn worst_p99_us(&self) -> u64 {
        let all = self.slices.iter().map(|slice| slice.p99_us);
        all.max().unwrap_or_default().max(1_000)
    }
}

fn p99(mut latencies: Vec<u64>) -> u64 {
    latencies.sort_unstable();
    let place = (latencies.len() * 99).div_ceil(100).saturating_sub(1);
    latencies.get(place).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::mix::model::ANSWERED;
    use crate::testkit::observed::Asked;
    use crate::testkit::observed::Moment;
    use crate::types::request::ReadKind;

    fn read(began: u64, ended: u64, answer: Answer) -> Observed {
        Observed {
            client: 0,
            asked: Asked::Get {
                key: "k".into(),
                read: ReadKind::Linearizable,
            },
            began: Moment(began),
            ended: Moment(ended),
            answer,
        }
    }

    #[test]
    fn answers_count_where_they_came() {
        let found = Answer::Found(None, ANSWERED);
        let history = [
            read(0, 99_999, found.clone()),
            read(10, 100_000, found.clone()),
            read(100_000, 150_000, Answer::Unknown),
            read(0, 900_000, found),
        ];
        let series = Series::of(&history, 250_000);
        let answered: Vec<u64> = series.slices.iter().map(|slice| slice.answered).collect();
        assert_eq!((series.slice_us, answered), (100_000, vec![1, 1, 0]));
        assert_eq!(series.slices[1].p99_us, 99_990);
    }

    #[test]
    fn a_long_run_has_longer_slices() {
        let hours = 3 * 3_600_000_000;
        let series = Series::of(&[], hours);
        assert!(series.slices.len() <= 6_000 && series.slice_us.is_multiple_of(100_000));
        assert_eq!(Series::of(&[], 60_000_000).slices.len(), 600);
    }

    #[test]
    fn one_in_a_hundred_is_left_out() {
        assert_eq!(p99((1..=200).collect()), 198);
        assert_eq!((p99(vec![7]), p99(Vec::new())), (7, 0));
    }
}
