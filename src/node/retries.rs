//! When the next step of rebuilding each quarantined replica is due. Decides only: `selfcheck.rs` takes it.
//!
//! A step that fails is tried for as long as the replica is marked, since nobody else knows that another one
//! is to come. But each failure in a row doubles the pause, and its reason is said once.

use std::collections::BTreeMap;

use crate::types::ReplicaId;

/// After the first failure, in milliseconds; then twice as long each time.
const PAUSE_MS_MIN: u64 = 1_000;
/// And at most this, in milliseconds: what was in the way may be gone, and a copy is missing meanwhile.
const PAUSE_MS_MAX: u64 = 30_000;
/// So many failures in a row are more than an election or a restart brings: a person should look.
const FAILURES_MAX: u32 = 4;

/// The steps that have failed. Times are milliseconds of one clock that only goes forward.
#[derive(Debug, Default)]
pub struct Retries {
    failed: BTreeMap<ReplicaId, Failed>,
}

#[derive(Debug)]
struct Failed {
    due_ms: u64,
    in_a_row: u32,
    said: String,
}

impl Retries {
    /// Whether the next step of this replica is due.
    pub fn is_due(&self, replica: ReplicaId, now_ms: u64) -> bool {
        let failed = self.failed.get(&replica);
        failed.is_none_or(|failed| failed.due_ms <= now_ms)
    }

    /// A step has failed. True when it is to be said: the reason is not the last one.
    pub fn failed(&mut self, replica: ReplicaId, now_ms: u64, why: &str) -> bool {
        let failed = self.failed.entry(replica).or_insert(Failed {
            due_ms: 0,
            in_a_row: 0,
            said: String::new(),
        });
        let doublings = failed.in_a_row.min(u64::BITS / 2);
        let pause = (PAUSE_MS_MIN << doublings).min(PAUSE_MS_MAX);
        failed.due_ms = now_ms + pause;
        failed.in_a_row += 1;
        let is_new = failed.said != why;
        if is_new {
            failed.said = why.to_owned();
        }
        is_new
    }

    /// A step went well.
    pub fn went_well(&mut self, replica: ReplicaId) {
        self.failed.remove(&replica);
    }

    /// Forgets all replicas but these.
    pub fn keep(&mut self, replicas: &[ReplicaId]) {
        self.failed.retain(|replica, _| replicas.contains(replica));
    }

    /// How many have failed so often in a row that a person should look.
    pub fn stuck(&self) -> usize {
        let failed = self.failed.values();
        failed
            .filter(|failed| failed.in_a_row >= FAILURES_MAX)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ReplicaId = ReplicaId(1);
    const OTHER: ReplicaId = ReplicaId(2);

    #[test]
    fn each_failure_in_a_row_doubles_the_pause_up_to_a_limit_and_success_ends_it() {
        let mut retries = Retries::default();
        let mut now_ms = 7;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(retries.is_due(ONE, now_ms) && retries.is_due(OTHER, now_ms));
            retries.failed(ONE, now_ms, "no room");
            let due = (now_ms..).find(|now_ms| retries.is_due(ONE, *now_ms));
            pauses.push(due.unwrap() - now_ms);
            now_ms = due.unwrap();
        }
        let expected = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];
        assert_eq!(pauses, expected);
        retries.failed(ONE, now_ms, "no room");
        retries.went_well(ONE);
        assert!(retries.is_due(ONE, now_ms));
    }

    #[test]
    fn a_reason_is_said_once_and_what_goes_on_failing_is_counted() {
        let mut retries = Retries::default();
        assert!(retries.failed(ONE, 0, "no leader"));
        assert!(!retries.failed(ONE, 1_000, "no leader"));
        assert!(retries.failed(ONE, 3_000, "no room"));
        assert!(retries.failed(OTHER, 3_000, "no room"));
        assert_eq!(retries.stuck(), 0);
        assert!(!retries.failed(ONE, 7_000, "no room"));
        assert_eq!(retries.stuck(), 1);
        retries.keep(&[OTHER]);
        assert_eq!(retries.stuck(), 0);
        assert!(retries.failed(ONE, 9_000, "no room"));
    }
}
