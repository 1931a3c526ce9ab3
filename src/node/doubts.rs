//! Which replicas here may have left their group without hearing of it. Decides only: `orphans.rs` asks.
//!
//! A replica that was removed is sent nothing more, so silence is all that it learns; and so it is when
//! its group has lost its quorum. A doubt is no proof, and destroys nothing.

use std::collections::BTreeMap;

use crate::types::ReplicaId;

/// So long without a word from a leader makes a replica doubtful, in milliseconds: many elections.
pub const SILENCE_MS: u64 = 5_000;
/// Between the first two questions about a replica, in milliseconds; then twice as long each time.
const PAUSE_MS_MIN: u64 = 1_000;
/// And at most this, in milliseconds: many groups may have lost their quorum at once.
const PAUSE_MS_MAX: u64 = 30_000;

/// What a replica knows of its place in its group.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// How long its leader has not been heard, in milliseconds; 0 for a leader.
    pub silence_ms: u64,
    /// Whether it has applied anything: before that it knows no membership.
    pub is_filled: bool,
    /// Whether the membership that it has applied has it.
    pub is_listed: bool,
}

/// Whether a replica there should ask if it still belongs to its group.
pub fn is_doubtful(place: Place) -> bool {
    place.silence_ms >= SILENCE_MS || (place.is_filled && !place.is_listed)
}

/// When each doubtful replica is asked about. Times are milliseconds of one clock that only goes forward.
#[derive(Debug, Default)]
pub struct Doubts {
    next: BTreeMap<ReplicaId, Next>,
}

#[derive(Debug)]
struct Next {
    at_ms: u64,
    pause_ms: u64,
}

impl Doubts {
    /// Of the replicas in doubt now, those to be asked about; the others are remembered, and those that are
    /// not in doubt any more are forgotten.
    pub fn take_due(&mut self, doubtful: &[ReplicaId], now_ms: u64) -> Vec<ReplicaId> {
        self.next.retain(|replica, _| doubtful.contains(replica));
        let due = doubtful.iter().copied();
        due.filter(|replica| self.take_turn(*replica, now_ms))
            .collect()
    }

    fn take_turn(&mut self, replica: ReplicaId, now_ms: u64) -> bool {
        let next = self.next.entry(replica).or_insert(Next {
            at_ms: now_ms,
            pause_ms: PAUSE_MS_MIN,
        });
        if next.at_ms > now_ms {
            return false;
        }
        next.at_ms = now_ms + next.pause_ms;
        next.pause_ms = (next.pause_ms * 2).min(PAUSE_MS_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_a_membership_without_it_make_a_replica_doubtful() {
        let table = [
            (0, true, true, false),
            (SILENCE_MS - 1, true, true, false),
            (SILENCE_MS, true, true, true),
            (0, true, false, true),
            // Just made: nobody has told it anything yet.
            (0, false, false, false),
            (SILENCE_MS, false, false, true),
        ];
        for (silence_ms, is_filled, is_listed, doubtful) in table {
            let place = Place {
                silence_ms,
                is_filled,
                is_listed,
            };
            assert_eq!(is_doubtful(place), doubtful, "{place:?}");
        }
    }

    #[test]
    fn questions_about_one_replica_become_rarer_until_the_doubt_ends() {
        let (mut doubts, one) = (Doubts::default(), [ReplicaId(1)]);
        let asked = |doubts: &mut Doubts, until| {
            let times = (0..until).step_by(500);
            times
                .filter(|now| !doubts.take_due(&one, *now).is_empty())
                .collect::<Vec<u64>>()
        };
        assert_eq!(asked(&mut doubts, 8_000), [0, 1_000, 3_000, 7_000]);
        assert!(doubts.take_due(&[], 8_000).is_empty());
        assert_eq!(doubts.take_due(&one, 8_500), one);
    }
}
