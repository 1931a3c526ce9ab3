//! Identities of writes, on the cluster's clock. Decides only: time and chance come from two closures.
//!
//! A shard judges a repeat by the time inside its id, so that time is taken from the cluster's clock
//! as soon as one answer has told it. Before the first answer it is the local wall clock.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;

use crate::types::RequestId;
use crate::types::Timestamp;

type WallMs = Box<dyn Fn() -> u64 + Send + Sync>;
type Chance = Box<dyn Fn() -> [u8; 10] + Send + Sync>;

/// Makes the identities of writes. Shared by all that one client sends.
pub struct RequestIds {
    wall_ms: WallMs,
    chance: Chance,
    /// Cluster's clock minus local clock, as the last answer showed it. Too small by the time that
    /// the answer travelled, which errs to the safe side: an id must not be ahead of the cluster.
    offset_ms: AtomicI64,
}

impl RequestIds {
    /// From a wall clock (milliseconds since the Unix epoch) and a source of random bytes.
    pub fn new(
        wall_ms: impl Fn() -> u64 + Send + Sync + 'static,
        chance: impl Fn() -> [u8; 10] + Send + Sync + 'static,
    ) -> RequestIds {
        RequestIds {
            wall_ms: Box::new(wall_ms),
            chance: Box::new(chance),
            offset_ms: AtomicI64::new(0),
        }
    }

    /// A new identity.
    pub fn next(&self) -> RequestId {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        let wall_ms = (self.wall_ms)().saturating_add_signed(offset);
        RequestId::new(wall_ms, (self.chance)())
    }

    /// Learns the cluster's clock from the timestamp of an answer.
    pub fn observe(&self, timestamp: Timestamp) {
        if timestamp == Timestamp::ZERO {
            return;
        }
        self.observe_wall(timestamp.wall_ms());
    }

    /// Learns the cluster's clock, in milliseconds since the Unix epoch.
    pub fn observe_wall(&self, cluster_ms: u64) {
        let offset = cluster_ms.cast_signed() - (self.wall_ms)().cast_signed();
        self.offset_ms.store(offset, Ordering::Relaxed);
    }

    /// A number from 0 up to, not including, 1: spreads the clients that retry.
    pub fn jitter(&self) -> f64 {
        let bytes = (self.chance)();
        let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        f64::from(number) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> RequestIds {
        RequestIds::new(|| 1_000_000, || [7; 10])
    }

    #[test]
    fn before_the_first_answer_the_local_clock_counts() {
        assert_eq!(ids().next().wall_ms(), 1_000_000);
    }

    #[test]
    fn afterwards_the_clusters_clock_counts_whether_ahead_or_behind() {
        let ids = ids();
        ids.observe(Timestamp::from_wall(1_500_000));
        assert_eq!(ids.next().wall_ms(), 1_500_000);
        ids.observe(Timestamp::from_wall(400_000));
        assert_eq!(ids.next().wall_ms(), 400_000);
    }

    #[test]
    fn an_answer_without_a_stamp_teaches_nothing() {
        let ids = ids();
        ids.observe(Timestamp::ZERO);
        assert_eq!(ids.next().wall_ms(), 1_000_000);
    }

    #[test]
    fn jitter_stays_below_one() {
        assert!(RequestIds::new(|| 0, || [0xff; 10]).jitter() < 1.0);
        assert_eq!(RequestIds::new(|| 0, || [0; 10]).jitter(), 0.0);
    }
}
