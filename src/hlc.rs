//! The hybrid logical clock: stamps that rise, and stay close to wall time. Decides only.
//!
//! The clock has two doors. What others say about time is observed, and refused when it lies far in
//! the future, or one broken clock would carry the whole cluster away. What is committed is adopted
//! without question, since refusing it would let a stamp be given out twice.

use crate::types::Timestamp;

/// How far ahead of the wall clock a remote stamp may be, in milliseconds: room for a ceiling that a
/// new leader has adopted (3 s ahead) and for clocks that differ by seconds.
pub const OBSERVE_AHEAD_MS_MAX: u64 = 10_000;

/// A remote stamp that lies too far ahead of the wall clock. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stamp {ahead_ms} ms ahead of the wall clock, more than the {OBSERVE_AHEAD_MS_MAX} ms allowed"
)]
pub struct FarFuture {
    /// How far ahead.
    pub ahead_ms: u64,
}

/// The state of the clock. Every stamp that it gives is above every stamp that it gave or learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    last: Timestamp,
}

impl Clock {
    /// The last stamp given or learned.
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// A new stamp.
    pub fn tick(&mut self, wall_ms: u64) -> Timestamp {
        self.reserve(1, wall_ms)
    }

    /// The first of `count` (at least 1) new stamps in a row.
    pub fn reserve(&mut self, count: u64, wall_ms: u64) -> Timestamp {
        let first = self.last.plus(1).max(Timestamp::from_wall(wall_ms));
        self.last = first.plus(count.max(1) - 1);
        first
    }

    /// Learns a stamp from another node or a client.
    pub fn observe(&mut self, remote: Timestamp, wall_ms: u64) -> Result<(), FarFuture> {
        let ahead_ms = remote.wall_ms().saturating_sub(wall_ms);
        if ahead_ms > OBSERVE_AHEAD_MS_MAX {
            return Err(FarFuture { ahead_ms });
        }
        self.adopt(remote);
        Ok(())
    }

    /// Learns a stamp that is committed, or a ceiling: never refused.
    pub fn adopt(&mut self, stamp: Timestamp) {
        self.last = self.last.max(stamp);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stamps_follow_the_wall_and_count_when_it_stands_or_falls() {
        let mut clock = Clock::default();
        assert_eq!(clock.tick(5), Timestamp::from_wall(5));
        assert_eq!(clock.tick(5), Timestamp::from_wall(5).plus(1));
        assert_eq!(clock.tick(4), Timestamp::from_wall(5).plus(2));
        assert_eq!(clock.reserve(10, 4), Timestamp::from_wall(5).plus(3));
        assert_eq!(clock.tick(4), Timestamp::from_wall(5).plus(13));
        assert_eq!(clock.tick(6), Timestamp::from_wall(6));
    }

    #[test]
    fn the_far_future_is_refused_from_others_and_adopted_from_the_log() {
        let mut clock = Clock::default();
        let far = Timestamp::from_wall(OBSERVE_AHEAD_MS_MAX + 101);
        assert_eq!(
            clock.observe(far, 100),
            Err(FarFuture {
                ahead_ms: OBSERVE_AHEAD_MS_MAX + 1
            })
        );
        assert_eq!(clock.last(), Timestamp::ZERO);
        assert_eq!(clock.observe(far, 101), Ok(()));
        clock.adopt(Timestamp::from_wall(1 << 40));
        assert_eq!(clock.tick(101), Timestamp::from_wall(1 << 40).plus(1));
    }

    proptest! {
        #[test]
        fn no_stamp_is_given_twice(steps in prop::collection::vec((0..50u64, 1..5u64, 0..60u64), 1..50)) {
            let mut clock = Clock::default();
            let mut highest = Timestamp::ZERO;
            for (wall, count, remote) in steps {
                let _ = clock.observe(Timestamp::from_wall(remote), wall);
                let first = clock.reserve(count, wall);
                prop_assert!(first > highest && first >= Timestamp::from_wall(wall));
                highest = first.plus(count - 1);
            }
        }
    }
}
