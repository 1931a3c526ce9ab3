//! Wall time, and the only place that asks for it. Durations and deadlines are not its business: they
//! come from `tokio::time::Instant`, which a paused runtime steers.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;

/// Tells wall time. Clones tell the same time, and move together when one of them is moved.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Arc<Source>,
}

#[derive(Debug)]
enum Source {
    /// The machine's clock, moved by so many milliseconds.
    System { offset_ms: AtomicI64 },
    /// Stands still until it is set.
    Manual { now_ms: AtomicU64 },
    /// Goes with the runtime's clock, which a simulation pauses; too fast by so many millionths, and moved
    /// by so many milliseconds.
    Virtual {
        began: Instant,
        epoch_ms: u64,
        drift_ppm: i64,
        offset_ms: AtomicI64,
    },
}

impl Clock {
    /// The machine's clock. It may jump, and may run backwards.
    pub fn system() -> Clock {
        Clock {
            source: Arc::new(Source::System {
                offset_ms: AtomicI64::new(0),
            }),
        }
    }

    /// A clock that shows `now_ms` until it is moved.
    pub fn manual(now_ms: u64) -> Clock {
        Clock {
            source: Arc::new(Source::Manual {
                now_ms: AtomicU64::new(now_ms),
            }),
        }
    }

    /// A clock that shows `epoch_ms` now and goes with `tokio::time`; it gains `drift_ppm` microseconds each
    /// second.
    pub fn virtual_from(epoch_ms: u64, drift_ppm: i64) -> Clock {
        Clock {
            source: Arc::new(Source::Virtual {
                began: Instant::now(),
                epoch_ms,
                drift_ppm,
                offset_ms: AtomicI64::new(0),
            }),
        }
    }

    /// Milliseconds since the Unix epoch; 0 for a clock that stands before it.
    pub fn wall_ms(&self) -> u64 {
        match &*self.source {
            Source::System { offset_ms } => {
                system_ms().saturating_add_signed(offset_ms.load(Ordering::Relaxed))
            }
            Source::Manual { now_ms } => now_ms.load(Ordering::Relaxed),
            Source::Virtual {
                began,
                epoch_ms,
                drift_ppm,
                offset_ms,
            } => {
                let passed = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
                let gained = passed.saturating_mul(*drift_ppm) / 1_000_000;
                let moved = passed + gained + offset_ms.load(Ordering::Relaxed);
                epoch_ms.saturating_add_signed(moved)
            }
        }
    }

    /// From now on the machine's clock is told wrong by `offset_ms` (0: right again). A fault for
    /// tests; a manual clock is moved by as much, once.
    pub fn set_offset_ms(&self, offset: i64) {
        match &*self.source {
            Source::System { offset_ms } | Source::Virtual { offset_ms, .. } => {
                offset_ms.store(offset, Ordering::Relaxed);
            }
            Source::Manual { now_ms } => {
                let moved = now_ms.load(Ordering::Relaxed).saturating_add_signed(offset);
                now_ms.store(moved, Ordering::Relaxed);
            }
        }
    }

    /// Moves the clock forward: a manual one's hands, the machine's offset.
    pub fn advance_ms(&self, by_ms: u64) {
        match &*self.source {
            Source::System { offset_ms } | Source::Virtual { offset_ms, .. } => {
                let by_ms = i64::try_from(by_ms).unwrap_or(i64::MAX);
                offset_ms.fetch_add(by_ms, Ordering::Relaxed);
            }
            Source::Manual { now_ms } => {
                now_ms.fetch_add(by_ms, Ordering::Relaxed);
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the door: everybody else asks a Clock"
)]
fn system_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |passed| {
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_move_together() {
        let clock = Clock::manual(1_000);
        let other = clock.clone();
        other.advance_ms(5);
        clock.set_offset_ms(-3);
        assert_eq!((clock.wall_ms(), other.wall_ms()), (1_002, 1_002));
    }

    #[tokio::test(start_paused = true)]
    async fn a_virtual_clock_goes_with_the_runtimes_and_drifts() {
        let clock = Clock::virtual_from(1_000, 1_000);
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        assert_eq!(clock.wall_ms(), 1_000 + 10_000 + 10);
        clock.set_offset_ms(-500);
        assert_eq!(clock.wall_ms(), 10_510);
    }

    #[test]
    fn an_offset_moves_the_machines_clock_until_it_is_taken_back() {
        let clock = Clock::system();
        let right = clock.wall_ms();
        clock.set_offset_ms(-1_000_000);
        assert!(clock.wall_ms() < right - 900_000);
        clock.set_offset_ms(0);
        assert!(clock.wall_ms() >= right);
    }
}
