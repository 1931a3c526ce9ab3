//! How fast a node sends snapshots: all its groups together, so that clients do not feel it. Few are on their way at
//! once: were a thousand of them sent a little of each in turn, none would arrive before its time is over, and all
//! would begin anew.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use tokio::time::sleep_until;

/// Snapshots that a node sends at once. More wait.
const SENDING_MAX: usize = 4;

/// Lets so many bytes a second pass. What passes is in the order in which it came.
#[derive(Debug)]
pub struct Pace {
    turns: Semaphore,
    /// 0: as fast as may be.
    bytes_per_second: AtomicU64,
    /// When what has passed by now is paid for.
    free: Mutex<Option<Instant>>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            turns: Semaphore::new(SENDING_MAX),
            bytes_per_second: AtomicU64::new(0),
            free: Mutex::new(None),
        }
    }
}

impl Pace {
    /// Returns when one more snapshot may be sent, for as long as what it gives is kept. Cancel-safe.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        let turn = self.turns.acquire().await;
        turn.expect("nobody closes it")
    }

    /// From now on.
    pub fn set(&self, bytes_per_second: u64) {
        let before = self
            .bytes_per_second
            .swap(bytes_per_second, Ordering::Relaxed);
        if before != bytes_per_second {
            // What was to be waited for at the old rate is forgiven.
            *self.free.lock().expect("nothing panics under this lock") = None;
        }
    }

    /// Returns when so many bytes may go. Cancel-safe: a dropped call has used its turn.
    pub async fn pass(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let begins = {
            let mut free = self.free.lock().expect("nothing panics under this lock");
            let begins = free.unwrap_or_else(Instant::now).max(Instant::now());
            *free = Some(begins + takes);
            begins
        };
        sleep_until(begins).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn few_snapshots_are_sent_at_once() {
        let pace = Pace::default();
        let mut turns = Vec::new();
        for _ in 0..SENDING_MAX {
            turns.push(pace.turn().await);
        }
        assert!(pace.turn().now_or_never().is_none());
        turns.pop();
        assert!(pace.turn().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn senders_share_the_rate_and_what_was_not_used_is_lost() {
        let pace = Arc::new(Pace::default());
        let began = Instant::now();
        pace.pass(1 << 30).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody has set a rate");
        pace.set(1_000);
        let send = || {
            let pace = Arc::clone(&pace);
            async move {
                for _ in 0..10 {
                    pace.pass(100).await;
                }
            }
        };
        tokio::join!(send(), send());
        // The last of twenty waits for nineteen.
        assert_eq!(began.elapsed().as_millis() / 10, 190);
        tokio::time::sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        pace.pass(1_000).await;
        pace.pass(1_000).await;
        assert_eq!(began.elapsed().as_millis() / 10, 100);
    }
}
