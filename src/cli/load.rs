//! What a load consists of and what it measured. Decides only.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::Value as Json;
use serde_json::json;

use crate::error::Error;
use crate::types::Key;
use crate::types::Value;

/// Latencies above are counted as this one.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Store values
    Put,
    /// Read single keys
    Get,
    /// Store and read
    Mixed,
    /// Read ranges
    Scan,
}

/// What one client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Stores a value.
    Put,
    /// Reads a key.
    Get,
    /// Reads a range.
    Scan,
}

impl Action {
    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Action::Put => "put",
            Action::Get => "get",
            Action::Scan => "scan",
        }
    }
}

/// Numbers that look random and follow from a seed (splitmix64): a load must be the same each time.
#[derive(Debug, Clone)]
pub struct Sequence(u64);

impl Sequence {
    /// Its own sequence for each seed.
    pub fn new(seed: u64) -> Sequence {
        Sequence(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// The next number below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// What comes next in a load.
    pub fn action(&mut self, kind: Kind, read_percent: u64) -> Action {
        match kind {
            Kind::Put => Action::Put,
            Kind::Get => Action::Get,
            Kind::Scan => Action::Scan,
            Kind::Mixed if self.below(100) < read_percent => Action::Get,
            Kind::Mixed => Action::Put,
        }
    }

    /// A value of letters and digits.
    pub fn value(&mut self, length: usize) -> Value {
        const LETTERS: &[u8; 64] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        let mut value = Vec::with_capacity(length + 8);
        while value.len() < length {
            let bytes = self.number().to_le_bytes();
            value.extend(bytes.map(|byte| LETTERS[usize::from(byte & 63)]));
        }
        value.truncate(length);
        Value::from(value)
    }
}

/// The key with a number.
pub fn key(prefix: &str, number: u64) -> Key {
    Key::from(format!("{prefix}{number:012}"))
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    latencies: BTreeMap<Action, Latencies>,
    errors: BTreeMap<&'static str, u64>,
    /// The first, for a person.
    pub first_error: Option<Error>,
}

#[derive(Debug, Clone)]
struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS);
        Latencies(histogram.expect("the bounds and digits are in the range that is allowed"))
    }
}

impl Tally {
    /// Counts a request that was answered.
    pub fn done(&mut self, action: Action, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let latencies = self.latencies.entry(action).or_default();
        latencies.0.saturating_record(us.max(1));
    }

    /// Counts a request that failed.
    pub fn failed(&mut self, error: Error) {
        *self.errors.entry(error_kind(&error)).or_default() += 1;
        self.first_error.get_or_insert(error);
    }

    /// Adds what another client has measured.
    pub fn add(&mut self, other: Tally) {
        for (action, latencies) in other.latencies {
            let own = self.latencies.entry(action).or_default();
            // Same bounds on both sides: nothing to refuse.
            let _ = own.0.add(latencies.0);
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
    }

    /// Requests answered.
    pub fn count(&self) -> u64 {
        self.latencies
            .values()
            .map(|latencies| latencies.0.len())
            .sum()
    }

    /// Requests failed.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// For programs.
    pub fn to_json(&self, elapsed: Duration) -> Json {
        let seconds = elapsed.as_secs_f64();
        let rows = self.latencies.iter().map(|(action, latencies)| {
            let histogram = &latencies.0;
            let row = json!({
                "ops": histogram.len(),
                "ops_per_s": histogram.len() as f64 / seconds,
                "mean_us": histogram.mean(),
                "p50_us": histogram.value_at_quantile(0.5),
                "p95_us": histogram.value_at_quantile(0.95),
                "p99_us": histogram.value_at_quantile(0.99),
                "max_us": histogram.max(),
            });
            (action.name().to_string(), row)
        });
        let mut object: serde_json::Map<String, Json> = rows.collect();
        object.insert("ops".into(), self.count().into());
        object.insert("ops_per_s".into(), (self.count() as f64 / seconds).into());
        object.insert("seconds".into(), seconds.into());
        object.insert("errors".into(), json!(self.errors));
        object.into()
    }

    /// For people: one row for each action.
    pub fn rows(&self, elapsed: Duration) -> Vec<[String; 7]> {
        let rows = self.latencies.iter().map(|(action, latencies)| {
            let histogram = &latencies.0;
            let ms = |us: u64| format!("{:.2}", us as f64 / 1_000.0);
            let rate = histogram.len() as f64 / elapsed.as_secs_f64();
            [
                action.name().to_string(),
                histogram.len().to_string(),
                format!("{rate:.0}"),
                ms(histogram.value_at_quantile(0.5)),
                ms(histogram.value_at_quantile(0.95)),
                ms(histogram.value_at_quantile(0.99)),
                ms(histogram.max()),
            ]
        });
        rows.collect()
    }

    /// Errors in words, by kind; `None` without any.
    pub fn errors_line(&self) -> Option<String> {
        let kinds = self
            .errors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"));
        let kinds: Vec<String> = kinds.collect();
        (!kinds.is_empty()).then(|| format!("errors: {}", kinds.join(", ")))
    }
}

fn error_kind(error: &Error) -> &'static str {
    match error {
        Error::Invalid { .. } => "invalid",
        Error::NotLeader { .. } => "not leader",
        Error::Unavailable { .. } => "unavailable",
        Error::Overloaded { .. } => "overloaded",
        Error::NoSpace { .. } => "no space",
        Error::Unknown { .. } => "unknown outcome",
        Error::Timeout { .. } => "timeout",
        Error::ClockAhead { .. } => "clock ahead",
        Error::TooLateToKnow { .. } => "too late to know",
        Error::StaleEpoch { .. } => "stale epoch",
        Error::Spanning { .. } => "keys in several shards",
        Error::WrongCluster { .. } => "wrong cluster",
        Error::WrongNode { .. } => "wrong node",
        Error::NotFound { .. } => "not found",
        Error::NoKeyspace { .. } => "no keyspace",
        Error::Internal(_) => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_clients_together() {
        let mut all = Tally::default();
        for client in 0..4 {
            let mut tally = Tally::default();
            for step in 1..=250 {
                tally.done(Action::Get, Duration::from_micros(client * 250 + step));
            }
            all.add(tally);
        }
        all.failed(Error::unavailable("n1", "down"));
        let report = all.to_json(Duration::from_secs(2));
        assert_eq!(report["ops"], 1000);
        assert_eq!(report["ops_per_s"], 500.0);
        assert_eq!(report["get"]["p50_us"], 500);
        assert_eq!(report["get"]["p99_us"], 990);
        assert_eq!(report["get"]["max_us"], 1000);
        assert_eq!(report["errors"]["unavailable"], 1);
        assert_eq!(all.errors_line().unwrap(), "errors: 1 unavailable");
    }

    #[test]
    fn a_load_follows_from_its_seed() {
        let mut one = Sequence::new(7);
        let mut same = Sequence::new(7);
        assert_eq!(one.value(100), same.value(100));
        assert_eq!(one.value(0).len(), 0);
        let reads = (0..1_000).filter(|_| one.action(Kind::Mixed, 80) == Action::Get);
        assert!((760..840).contains(&reads.count()));
    }

    #[test]
    fn keys_sort_by_their_number() {
        assert!(key("bench/", 9) < key("bench/", 10));
    }
}
