//! Every threshold of placement in one value. Decides only.
//!
//! A policy is one for the whole cluster, since two that plan by different ones would undo each other's work.
//! What persons set of it is kept by name, as text, so that a later program with more thresholds reads what an
//! earlier one has kept. Times are lengths; whoever makes a view measures them with a clock that is not set back.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::types::report::Load;
use crate::types::rule::Rule;

const MIB: u64 = 1024 * 1024;

/// Smaller shards are nothing but cost.
const SPLIT_BYTES_MIN: u64 = 1_024;
/// Longer than any cluster waits.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Above what any disk holds or any node does in a second; sums of such numbers are numbers still.
const NUMBER_MAX: u64 = 1 << 50;

/// A node reports each second, and one report may be late.
const SILENCE_MIN: Duration = Duration::from_secs(2);

/// When is something wrong, and how much is done about it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What is wanted of shards for which there is no other rule. Default: three replicas over zones.
    pub rule: Rule,

    /// A node that has been silent for so long gets nothing new. Default 5 s.
    pub suspect_after: Duration,
    /// And after so long its replicas are replaced. Default 5 min: a restart must not move everything.
    pub replace_after: Duration,

    /// A node is slow when its log sync or its round trips take so many times as long as the median of its
    /// peers. Default 5.
    pub slow_times: u32,
    /// And at least so long. Default 50 ms: below that nobody notices.
    pub slow_min: Duration,
    /// It leads nothing until it has been well for so long. Default 1 min.
    pub slow_recovery: Duration,

    /// A shard of this size is split, in bytes. Default 64 MiB.
    pub split_bytes: u64,
    /// A shard with so many operations a second is split. Default 2,000: a fifth of what one leader bears.
    pub split_operations: u64,
    /// It must have had them for so long without a break. Default 10 s.
    pub split_sustained: Duration,
    /// Sampled keys below which nothing is said about where the load is. Default 20.
    pub split_samples_min: usize,
    /// The lighter half must get at least this share of the load, in percent. Default 20: less is no relief.
    pub split_share_min_percent: u64,
    /// Splits at once in the cluster. Default 8.
    pub splits_at_once: usize,

    /// Two neighbouring shards may become one when both together have at most so many bytes. Whatever is set, half
    /// of `split_bytes` is the most, so that no merge calls for a split. Default 16 MiB; 0 is for never.
    pub merge_bytes: Option<u64>,
    /// And both together bear at most so many operations a second; half of `split_operations` is the most.
    /// Default 200.
    pub merge_operations: u64,
    /// Each must have been below both for so long without a break, and with the same range: so a split is not
    /// undone at once. Default 5 min.
    pub merge_sustained: Duration,
    /// Merges at once in the cluster. Default 4.
    pub merges_at_once: usize,

    /// So many bytes of a request cost as much as the request itself. Default 4 KiB.
    pub operation_bytes: u64,
    /// To lead a shard costs at least as much as so many operations a second, so that the leaders of an idle
    /// cluster are even too. Default 10.
    pub leader_operations: u64,
    /// A replica counts as so many bytes more than it has, so that empty ones are even too. Default 1 MiB.
    pub replica_bytes: u64,
    /// To even out, a move must bring two nodes closer by more than this share of the mean, in percent.
    /// Default 5.
    pub balance_percent: u64,
    /// A replica that has come to its node within this time is not moved away to even out. Default 5 min.
    pub replica_rest: Duration,
    /// Nor is the lead passed on that was taken within this time. Default 1 min.
    pub leader_rest: Duration,

    /// Replicas on the way to one node at once. Default 2.
    pub moves_per_node: usize,
    /// Replicas on the way in the cluster at once. Default 8.
    pub moves_per_cluster: usize,
    /// Leads passed on from or to one node at once to even out. Default 4.
    pub transfers_per_node: usize,
    /// The same, to or from a node that shall not lead: its leaders must be gone in seconds. Default 128.
    pub drains_per_node: usize,

    /// A node is full when so much of its disk is used, in percent: it gets no more replicas. Default 85.
    pub full_percent: u64,
    /// Entries that a replica may lack and still be called caught up. Default 1,000.
    pub lag_max: u64,

    /// An operator that has nothing to copy has failed after this time. Default 30 s.
    pub operator_time: Duration,
    /// One that copies a shard may take so much longer, besides the time for its bytes. Default 10 min, which
    /// a shard's leader gives a new replica to catch up.
    pub catch_up_time: Duration,
    /// What a node sends of snapshots, in bytes a second, so that clients do not feel it. Default 32 MiB.
    pub snapshot_bytes_per_second: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            rule: Rule::default(),
            suspect_after: Duration::from_secs(5),
            replace_after: Duration::from_secs(300),
            slow_times: 5,
            slow_min: Duration::from_millis(50),
            slow_recovery: Duration::from_secs(60),
            split_bytes: 64 * MIB,
            split_operations: 2_000,
            split_sustained: Duration::from_secs(10),
            split_samples_min: 20,
            split_share_min_percent: 20,
            splits_at_once: 8,
            merge_bytes: Some(16 * MIB),
            merge_operations: 200,
            merge_sustained: Duration::from_secs(300),
            merges_at_once: 4,
            operation_bytes: 4 * 1024,
            leader_operations: 10,
            replica_bytes: MIB,
            balance_percent: 5,
            replica_rest: Duration::from_secs(300),
            leader_rest: Duration::from_secs(60),
            moves_per_node: 2,
            moves_per_cluster: 8,
            transfers_per_node: 4,
            drains_per_node: 128,
            full_percent: 85,
            lag_max: 1_000,
            operator_time: Duration::from_secs(30),
            catch_up_time: Duration::from_secs(600),
            snapshot_bytes_per_second: 32 * MIB,
        }
    }
}

/// What has a name among the settings: all of the policy but the rule, since a rule for all keys is a rule.
macro_rules! settings {
    ($($name:ident),* $(,)?) => {
        impl Policy {
            /// The names of all settings.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Sets one threshold.
            pub fn set(&mut self, name: &str, text: &str) -> Result<(), SettingError> {
                if let Some(expected) = unbearable(name, text) {
                    let (name, text) = (name.to_owned(), text.to_owned());
                    return Err(SettingError::Value { name, text, expected });
                }
                match name {
                    $(stringify!($name) => self.$name = Setting::read(text).map_err(|expected| {
                        SettingError::Value { name: name.to_owned(), text: text.to_owned(), expected }
                    })?,)*
                    _ => return Err(SettingError::Name(name.to_owned())),
                }
                Ok(())
            }

            /// Every setting with its value, in the words in which it is set.
            pub fn settings(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), Setting::show(&self.$name))),*]
            }
        }
    };
}

settings!(
    suspect_after,
    replace_after,
    slow_times,
    slow_min,
    slow_recovery,
    split_bytes,
    split_operations,
    split_sustained,
    split_samples_min,
    split_share_min_percent,
    splits_at_once,
    merge_bytes,
    merge_operations,
    merge_sustained,
    merges_at_once,
    operation_bytes,
    leader_operations,
    replica_bytes,
    balance_percent,
    replica_rest,
    leader_rest,
    moves_per_node,
    moves_per_cluster,
    transfers_per_node,
    drains_per_node,
    full_percent,
    lag_max,
    operator_time,
    catch_up_time,
    snapshot_bytes_per_second,
);

/// What a setting must be, where such a value would make the cluster do foolish things for ever.
fn unbearable(name: &str, text: &str) -> Option<&'static str> {
    let time = <Duration as Setting>::read(text).ok();
    let number = <u64 as Setting>::read(text).ok();
    match name {
        "suspect_after" | "replace_after" if time? < SILENCE_MIN => {
            Some("at least 2s, since nodes report each second,")
        }
        "split_bytes" if number? < SPLIT_BYTES_MIN => Some("at least 1024 bytes"),
        "snapshot_bytes_per_second" if number? < MIB => Some("at least 1048576 bytes a second"),
        percent if percent.ends_with("percent") && number? > 100 => Some("at most 100"),
        _ => None,
    }
}

impl Policy {
    /// The defaults with what persons have set. What this program does not understand, since another version
    /// has kept it, is as if it were not there.
    pub fn of(settings: &BTreeMap<String, String>) -> Policy {
        let mut policy = Policy::default();
        for (name, text) in settings {
            let _ = policy.set(name, text);
        }
        policy
    }

    /// Whether such a load is enough to be split.
    pub fn is_busy(&self, load: Load) -> bool {
        load.cost(self) >= self.split_operations
    }

    /// Whether so many bytes with such a load are few enough to be merged.
    pub fn is_quiet(&self, bytes: u64, load: Load) -> bool {
        let max = self.merge_bytes_max();
        max.is_some_and(|max| bytes <= max) && load.cost(self) <= self.merge_operations_max()
    }

    /// What two shards may have together to be merged; `None`: none are.
    pub fn merge_bytes_max(&self) -> Option<u64> {
        let bytes = self.merge_bytes?;
        Some(bytes.min(self.split_bytes / 2))
    }

    /// What two shards may bear together to be merged, in operations a second.
    pub fn merge_operations_max(&self) -> u64 {
        self.merge_operations.min(self.split_operations / 2)
    }
}

/// Why a setting cannot be set. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is none of that name.
    #[error("there is no setting {0:?}; there are {names}", names = Policy::NAMES.join(", "))]
    Name(String),
    /// Its value makes no sense.
    #[error("{name} cannot be {text:?}: {expected} is expected")]
    Value {
        /// Its name.
        name: String,
        /// What was given.
        text: String,
        /// What a value is like.
        expected: &'static str,
    },
}

/// A value of the policy as text.
trait Setting: Sized {
    /// An error says what is expected.
    fn read(text: &str) -> Result<Self, &'static str>;
    fn show(&self) -> String;
}

impl Setting for Duration {
    fn read(text: &str) -> Result<Duration, &'static str> {
        let expected = "a length of time such as 90s or 5m";
        let time = humantime::parse_duration(text).map_err(|_| expected)?;
        match time <= TIME_MAX {
            true => Ok(time),
            false => Err("at most a year"),
        }
    }

    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl Setting for $kind {
            fn read(text: &str) -> Result<$kind, &'static str> {
                let text: String = text.chars().filter(|c| *c != '_').collect();
                match text.parse::<u64>() {
                    Ok(0) | Err(_) => Err("a whole number above 0"),
                    Ok(number) if number > NUMBER_MAX => Err("a smaller number"),
                    Ok(number) => <$kind>::try_from(number).map_err(|_| "a smaller number"),
                }
            }

            fn show(&self) -> String {
                ToString::to_string(self)
            }
        }
    )*};
}

numbers!(u32, u64, usize);

/// What may never be done: then it is 0.
impl Setting for Option<u64> {
    fn read(text: &str) -> Result<Option<u64>, &'static str> {
        match text {
            "0" => Ok(None),
            _ => <u64 as Setting>::read(text).map(Some),
        }
    }

    fn show(&self) -> String {
        self.unwrap_or(0).to_string()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut settings = self.settings().into_iter();
        settings.try_for_each(|(name, value)| writeln!(f, "{name} = {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set() {
        let mut policy = Policy::default();
        policy.set("replace_after", "10s").unwrap();
        policy.set("split_bytes", "1_000_000").unwrap();
        assert_eq!(policy.replace_after, Duration::from_secs(10));
        assert_eq!(policy.split_bytes, 1_000_000);
        let shown = policy.settings().into_iter();
        let shown = shown.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(Policy::of(&shown.collect()), policy);
        assert_eq!(policy.settings().len(), Policy::NAMES.len());
    }

    #[test]
    fn a_merge_never_calls_for_a_split() {
        let mut policy = Policy::default();
        assert_eq!(policy.merge_bytes_max(), Some(16 * MIB));
        assert_eq!(policy.merge_operations_max(), 200);
        policy.set("split_bytes", "1048576").unwrap();
        policy.set("split_operations", "300").unwrap();
        assert_eq!(policy.merge_bytes_max(), Some(MIB / 2));
        assert_eq!(policy.merge_operations_max(), 150);
        policy.set("merge_bytes", "0").unwrap();
        assert_eq!(policy.merge_bytes_max(), None);
        assert!(!policy.is_quiet(0, Load::default()));
        let shown = policy.settings().into_iter();
        let bytes = shown.into_iter().find(|(name, _)| *name == "merge_bytes");
        assert_eq!(bytes, Some(("merge_bytes", "0".to_owned())));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let mut policy = Policy::default();
        for (name, text, said) in [
            ("split_bites", "1", "there is no setting"),
            ("split_bytes", "much", "a whole number above 0"),
            ("split_bytes", "0", "a whole number above 0"),
            ("replace_after", "10", "such as 90s"),
            ("suspect_after", "1900ms", "at least 2s"),
            ("replace_after", "4000days", "at most a year"),
            ("split_bytes", "64", "at least 1024"),
            ("split_bytes", "18446744073709551615", "a smaller number"),
            ("full_percent", "101", "at most 100"),
        ] {
            let error = policy.set(name, text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(policy, Policy::default());
        let kept = BTreeMap::from([("of_a_later_program".to_owned(), "7".to_owned())]);
        assert_eq!(Policy::of(&kept), Policy::default());
    }
}
