//! How much is asked of a replica: counts operations and their bytes, and keeps a sample of their keys.
//!
//! Counting costs each operation two additions. The sample is a reservoir (Li, "Reservoir-Sampling Algorithms of
//! Time Complexity O(n log(1 + N/n))", 1994, Algorithm L): it says in advance which operation it takes next, so
//! that the others do not touch it. It is begun anew each few seconds; what was drawn before stands until the
//! new one is full, or as old.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::env::rng::Chance;
use crate::types::Key;
use crate::types::report::Load;

/// Keys in a sample. Enough for shares to be right within some percent.
const SAMPLE_KEYS: usize = 64;
/// How long one sample is drawn.
const SAMPLE_TIME: Duration = Duration::from_secs(5);
/// A rate follows a change of load by two thirds in so long.
const RATE_TIME: Duration = Duration::from_secs(5);

/// Counts what is asked of one replica.
#[derive(Debug)]
pub struct Meter {
    operations: AtomicU64,
    bytes: AtomicU64,
    /// The operation that the sample takes next.
    next: AtomicU64,
    sample: Mutex<Sample>,
}

#[derive(Debug)]
struct Sample {
    began: Instant,
    /// Operations counted before it began.
    before: u64,
    keys: Vec<Key>,
    /// Algorithm L's W.
    weight: f64,
    /// The one before.
    earlier: Vec<Key>,
}

impl Default for Meter {
    fn default() -> Meter {
        Meter {
            operations: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            next: AtomicU64::new(0),
            sample: Mutex::new(Sample {
                began: Instant::now(),
                before: 0,
                keys: Vec::new(),
                weight: 1.0,
                earlier: Vec::new(),
            }),
        }
    }
}

impl Meter {
    /// One operation on a key.
    pub fn count(&self, key: &Key, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        if number >= self.next.load(Ordering::Relaxed) {
            self.take(key, number);
        }
    }

    /// Operations and bytes since the start.
    pub fn totals(&self) -> Load {
        Load {
            operations: self.operations.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Keys of the last seconds, each operation as likely as any other.
    pub fn sample(&self) -> Vec<Key> {
        let mut sample = self.lock();
        let total = self.operations.load(Ordering::Relaxed);
        if sample.began.elapsed() >= SAMPLE_TIME {
            sample.begin_anew(total);
            self.next.store(total, Ordering::Relaxed);
        }
        match sample.keys.len() >= sample.earlier.len() {
            true => sample.keys.clone(),
            false => sample.earlier.clone(),
        }
    }

    fn take(&self, key: &Key, number: u64) {
        let mut sample = self.lock();
        // Another thread may have been first.
        if number < self.next.load(Ordering::Relaxed) {
            return;
        }
        let next = number + 1 + sample.put(key.clone());
        self.next.store(next, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().expect("nothing panics under this lock")
    }
}

impl Sample {
    fn begin_anew(&mut self, total: u64) {
        self.earlier = std::mem::take(&mut self.keys);
        if total == self.before {
            self.earlier.clear();
        }
        self.before = total;
        self.weight = 1.0;
        self.began = Instant::now();
    }

    /// Takes a key, and says how many operations are left out behind it.
    fn put(&mut self, key: Key) -> u64 {
        if self.keys.len() < SAMPLE_KEYS {
            self.keys.push(key);
            if self.keys.len() < SAMPLE_KEYS {
                return 0;
            }
        } else {
            let place = Chance.below(SAMPLE_KEYS as u64);
            self.keys[place as usize] = key;
        }
        self.weight *= (part().ln() / SAMPLE_KEYS as f64).exp();
        let skipped = part().ln() / (1.0 - self.weight).ln();
        // What is beyond the range of the number is never reached either.
        skipped as u64
    }
}

/// Above 0 and below 1, each as likely.
fn part() -> f64 {
    ((Chance.number() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// Rates out of totals that are looked at now and then.
#[derive(Debug, Default)]
pub struct Rates {
    last: Option<(Instant, Load)>,
    operations: f64,
    bytes: f64,
}

impl Rates {
    /// The rates with what has been counted up to now.
    pub fn look(&mut self, totals: Load, now: Instant) -> Load {
        if let Some((then, before)) = self.last {
            let seconds = now.duration_since(then).as_secs_f64();
            if seconds <= 0.0 {
                return self.load();
            }
            let old = (-seconds / RATE_TIME.as_secs_f64()).exp();
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            let mix = |known: f64, rate: f64| known * old + rate * (1.0 - old);
            self.operations = mix(self.operations, rate(totals.operations, before.operations));
            self.bytes = mix(self.bytes, rate(totals.bytes, before.bytes));
        }
        self.last = Some((now, totals));
        self.load()
    }

    fn load(&self) -> Load {
        Load {
            operations: self.operations.round() as u64,
            bytes: self.bytes.round() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::env::rng::seed_thread;

    use super::*;

    fn key(number: u64) -> Key {
        number.to_be_bytes().to_vec().into()
    }

    #[test]
    fn each_operation_is_as_likely_in_the_sample() {
        let _scope = seed_thread(7);
        let mut taken: BTreeMap<u64, usize> = BTreeMap::new();
        let (rounds, operations) = (400, 1_000);
        for _ in 0..rounds {
            let meter = Meter::default();
            (0..operations).for_each(|number| meter.count(&key(number), 10));
            let sample = meter.sample();
            assert_eq!(sample.len(), SAMPLE_KEYS);
            for key in sample {
                let number = u64::from_be_bytes(key[..].try_into().unwrap());
                *taken.entry(number / 100).or_default() += 1;
            }
        }
        // 2,560 in each tenth are expected; five deviations are 243.
        let expected = rounds * SAMPLE_KEYS / 10;
        for (tenth, count) in taken {
            assert!(
                count.abs_diff(expected) < 243,
                "{tenth}: {count} of {expected}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_long_ago_leaves_the_sample() {
        let meter = Meter::default();
        (0..100).for_each(|_| meter.count(&key(1), 0));
        assert!(meter.sample().iter().all(|it| *it == key(1)));
        tokio::time::advance(SAMPLE_TIME).await;
        assert_eq!(meter.sample().len(), SAMPLE_KEYS, "there is nothing newer");
        (0..100).for_each(|_| meter.count(&key(2), 0));
        assert!(meter.sample().iter().all(|it| *it == key(2)));
        tokio::time::advance(SAMPLE_TIME).await;
        meter.sample();
        tokio::time::advance(SAMPLE_TIME).await;
        assert_eq!(
            meter.sample(),
            Vec::<Key>::new(),
            "nothing is asked any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_comes_close_to_what_is_asked_and_falls_with_it() {
        let mut rates = Rates::default();
        let mut totals = Load::default();
        rates.look(totals, Instant::now());
        for _ in 0..30 {
            tokio::time::advance(Duration::from_secs(1)).await;
            totals.operations += 1_000;
            totals.bytes += 4_000;
            rates.look(totals, Instant::now());
        }
        let load = rates.look(totals, Instant::now());
        assert!((990..=1_000).contains(&load.operations), "{load:?}");
        assert!((3_960..=4_000).contains(&load.bytes), "{load:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(rates.look(totals, Instant::now()), Load::default());
    }
}
