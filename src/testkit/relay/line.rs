//! When what was sent arrives: delay, jitter, loss and rate as the reader of a TCP stream sees them.
//! Decides only.

use std::time::Duration;

use crate::env::rng::Seeded;
use crate::testkit::relay::Rule;

/// The first repeat of a segment that was lost is sent after so long: Linux's smallest timeout.
const REPEAT_AFTER: Duration = Duration::from_millis(200);
/// Repeats at most. Real stacks go on for minutes; here a way that is open again is well within
/// seconds.
const REPEATS_MAX: u32 = 5;

/// One way of one connection. Moments are durations since its beginning.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// When the last byte has left.
    sent: Duration,
    /// When the last byte arrives.
    arrived: Duration,
}

impl Line {
    /// When a segment arrives that is sent now; never before those that were sent before it.
    pub(super) fn arrival(
        &mut self,
        now: Duration,
        bytes: usize,
        rule: &Rule,
        chance: &mut Seeded,
    ) -> Duration {
        self.sent = self.sent.max(now) + time_to_send(bytes, rule);
        let jitter = Duration::from_nanos(chance.below(nanos(rule.jitter)));
        let arrival = self.sent + rule.delay + jitter + repeats(rule, chance);
        self.arrived = self.arrived.max(arrival);
        self.arrived
    }
}

fn time_to_send(bytes: usize, rule: &Rule) -> Duration {
    let Some(rate) = rule.bytes_per_second else {
        return Duration::ZERO;
    };
    let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How late a segment is because it, and its repeats, were lost.
fn repeats(rule: &Rule, chance: &mut Seeded) -> Duration {
    let mut late = Duration::ZERO;
    for repeat in 0..REPEATS_MAX {
        if chance.below(100) >= rule.loss_percent {
            break;
        }
        late += REPEAT_AFTER * (1 << repeat);
    }
    late
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// When segments of so many bytes arrive that are sent at these milliseconds.
    fn arrivals(rule: Rule, sent: &[(u64, usize)]) -> Vec<Duration> {
        let (mut line, mut chance) = (Line::default(), Seeded::new(1));
        let arrive = sent
            .iter()
            .map(|(at, bytes)| line.arrival(ms(*at), *bytes, &rule, &mut chance));
        arrive.collect()
    }

    #[test]
    fn an_open_way_takes_no_time() {
        let sent = [(0, 10), (3, 1 << 20)];
        assert_eq!(arrivals(Rule::default(), &sent), [ms(0), ms(3)]);
    }

    #[test]
    fn a_delay_holds_for_each_segment_and_not_for_their_sum() {
        let rule = Rule::late(ms(50), ms(0));
        let sent = [(0, 10), (1, 10), (40, 10)];
        assert_eq!(arrivals(rule, &sent), [ms(50), ms(51), ms(90)]);
    }

    #[test]
    fn jitter_stays_within_its_bound_and_nothing_overtakes() {
        let rule = Rule::late(ms(10), ms(20));
        let sent: Vec<(u64, usize)> = (0..200).map(|at| (at, 1)).collect();
        let arrived = arrivals(rule, &sent);
        assert!(arrived.is_sorted());
        let late = |(at, arrived): (usize, &Duration)| *arrived - ms(at as u64);
        let late: Vec<Duration> = arrived.iter().enumerate().map(late).collect();
        assert!(late.iter().all(|late| (ms(10)..ms(30)).contains(late)));
        assert!(late.iter().any(|late| *late > ms(25)));
        assert!(late.iter().any(|late| *late < ms(29)));
    }

    #[test]
    fn a_rate_is_kept_over_many_segments() {
        let rule = Rule {
            bytes_per_second: Some(1_000),
            ..Rule::default()
        };
        let sent = [(0, 100), (0, 100), (500, 50)];
        assert_eq!(arrivals(rule, &sent), [ms(100), ms(200), ms(550)]);
    }

    #[test]
    fn a_loss_costs_a_timeout_that_doubles_and_holds_up_what_is_behind() {
        assert_eq!(arrivals(Rule::lossy(100), &[(0, 1)]), [ms(6_200)]);
        let arrived = arrivals(Rule::lossy(20), &vec![(0, 1); 1_000]);
        assert!(arrived.is_sorted());
        let mut steps: Vec<Duration> = arrived;
        steps.dedup();
        let timeouts = [0, 200, 600, 1_400, 3_000, 6_200].map(ms);
        assert!(
            steps.iter().all(|step| timeouts.contains(step)),
            "{steps:?}"
        );
        assert!(steps.len() >= 4, "{steps:?}");
    }
}
