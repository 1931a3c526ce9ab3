//! Bits that flip on the way. Decides only.
//!
//! Networks do that, and TCP's own check, of sixteen bits and made anew by whatever stands in between, does
//! not always see it. Where in a stream a bit flips is told by what stands there, so that a test says what is
//! spoilt: a key, a value.

use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;

use crate::testkit::relay::Way;

/// What is spoilt, on which way, and how often it was.
#[derive(Debug, Default)]
pub(super) struct Spoils(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    marked: Vec<(Way, Bytes)>,
    count: u64,
}

impl Spoils {
    /// From now on a bit flips in the last of these bytes whenever they pass in one piece.
    pub(super) fn add(&self, way: Way, marked: Bytes) {
        assert!(!marked.is_empty(), "a bit flips in some byte");
        self.with(|state| state.marked.push((way, marked)));
    }

    /// From now on nothing is spoilt.
    pub(super) fn clear(&self) {
        self.with(|state| state.marked.clear());
    }

    /// How many bits were flipped so far.
    pub(super) fn count(&self) -> u64 {
        self.with(|state| state.count)
    }

    /// Spoils what passes, if that is what was marked: one bit for each mark.
    pub(super) fn pass(&self, way: Way, bytes: &mut [u8]) {
        self.with(|state| {
            for (_, marked) in state.marked.iter().filter(|(on, _)| *on == way) {
                if let Some(start) = place(bytes, marked) {
                    bytes[start + marked.len() - 1] ^= 1;
                    state.count += 1;
                }
            }
        });
    }

    /// What is behind the lock is consistent after each statement.
    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn place(bytes: &[u8], marked: &[u8]) -> Option<usize> {
    bytes
        .windows(marked.len())
        .position(|window| window == marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Way = Way { from: 0, to: 1 };

    fn passed(spoils: &Spoils, way: Way, words: &str) -> String {
        let mut bytes = words.as_bytes().to_vec();
        spoils.pass(way, &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_marked_is_spoilt_on_its_way_until_that_is_taken_back() {
        let spoils = Spoils::default();
        spoils.add(THERE, Bytes::from_static(b"value"));
        assert_eq!(passed(&spoils, THERE.back(), "a value"), "a value");
        assert_eq!(passed(&spoils, THERE, "val"), "val");
        assert_eq!(spoils.count(), 0);
        assert_eq!(passed(&spoils, THERE, "a value, value"), "a valud, value");
        assert_eq!(passed(&spoils, THERE, "a value"), "a valud");
        assert_eq!(spoils.count(), 2);
        spoils.clear();
        assert_eq!(passed(&spoils, THERE, "a value"), "a value");
    }
}
