//! Keys, values and ranges of keys. Decides only.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

/// A user's key: 1 to [`KEY_BYTES_MAX`] bytes, ordered as bytes.
pub type Key = Bytes;
/// A user's value: 0 to [`VALUE_BYTES_MAX`] bytes.
pub type Value = Bytes;

/// Longest key, in bytes. A key and the piece of a value beside it must stay small enough for the
/// engine's leaves.
pub const KEY_BYTES_MAX: usize = 2 * 1024;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Keys and values of one request together, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A span `[start, end)` of keys. `end` of `None` is the end of the key space.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key inside.
    pub start: Key,
    /// First key outside; `None` when there is none.
    pub end: Option<Key>,
}

impl KeyRange {
    /// Every key.
    pub const ALL: KeyRange = KeyRange {
        start: Bytes::new(),
        end: None,
    };

    /// One key alone.
    pub fn of_key(key: &[u8]) -> KeyRange {
        KeyRange {
            start: Bytes::copy_from_slice(key),
            end: Some(Bytes::from([key, &[0]].concat())),
        }
    }

    /// The keys that begin with `prefix`.
    pub fn of_prefix(prefix: &[u8]) -> KeyRange {
        let kept = prefix.iter().rposition(|byte| *byte != 0xff);
        let end = kept.map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        KeyRange {
            start: Bytes::copy_from_slice(prefix),
            end,
        }
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        *key >= *self.start && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// Whether the range could be cut at `key`: it is inside, and not the start.
    pub fn has_inside(&self, key: &[u8]) -> bool {
        *key != *self.start && self.contains(key)
    }

    /// Whether every key of `other` is inside.
    pub fn covers(&self, other: &KeyRange) -> bool {
        other.is_empty() || (other.start >= self.start && end_at_most(&other.end, &self.end))
    }

    /// Whether some key is inside both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys inside both; empty when there are none.
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let end = if end_at_most(&self.end, &other.end) {
            &self.end
        } else {
            &other.end
        };
        KeyRange {
            start,
            end: end.clone(),
        }
    }

    /// The halves left and right of `at`, which must be inside and not the start.
    pub fn split_at(&self, at: Key) -> Option<(KeyRange, KeyRange)> {
        if !self.contains(&at) || at == self.start {
            return None;
        }
        let left = KeyRange {
            start: self.start.clone(),
            end: Some(at.clone()),
        };
        Some((
            left,
            KeyRange {
                start: at,
                end: self.end.clone(),
            },
        ))
    }
}

/// The place in the order of keys by which a shard is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor<'a> {
    /// The shard that holds this key.
    At(&'a [u8]),
    /// The shard that holds the keys just below this one, or the last shard of all: what is read
    /// backwards begins there.
    Before(Option<&'a [u8]>),
}

impl<'a> Anchor<'a> {
    /// A key that the shard holds which is meant: the key itself, or the greatest of legal length below.
    pub fn key(self) -> Cow<'a, [u8]> {
        let filled =
            |key: &[u8]| [key, &vec![0xff; KEY_BYTES_MAX.saturating_sub(key.len())]].concat();
        match self {
            Anchor::At(key) => Cow::Borrowed(key),
            Anchor::Before(None) => Cow::Owned(filled(&[])),
            Anchor::Before(Some(end)) => match end.split_last() {
                None => Cow::Borrowed(end),
                Some((0, key)) => Cow::Borrowed(key),
                Some((last, key)) => Cow::Owned(filled(&[key, &[last - 1]].concat())),
            },
        }
    }
}

fn end_at_most(left: &Option<Key>, right: &Option<Key>) -> bool {
    match (left, right) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(left), Some(right)) => left <= right,
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        match &self.end {
            Some(end) => write!(f, "{})", end.escape_ascii()),
            None => write!(f, "∞)"),
        }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        let end = (!end.is_empty()).then(|| Key::from_static(end.as_bytes()));
        KeyRange {
            start: Key::from_static(start.as_bytes()),
            end,
        }
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_that_can_grow_has_grown() {
        assert_eq!(KeyRange::of_prefix(b"ab"), range("ab", "ac"));
        assert_eq!(KeyRange::of_prefix(b""), KeyRange::ALL);
        assert_eq!(KeyRange::of_prefix(&[0xff]).end, None);
        assert_eq!(
            KeyRange::of_prefix(&[b'a', 0xff]).end,
            Some(Key::from_static(b"b"))
        );
    }

    #[test]
    fn ranges_meet_but_do_not_overlap_at_their_border() {
        let (left, right) = KeyRange::ALL.split_at(Key::from_static(b"m")).unwrap();
        assert!(!left.overlaps(&right) && left.contains(b"lzz") && right.contains(b"m"));
        assert!(
            KeyRange::ALL.covers(&left) && !left.covers(&right) && !left.covers(&KeyRange::ALL)
        );
        assert!(left.split_at(Key::from_static(b"m")).is_none());
        assert_eq!(range("a", "m").intersect(&range("c", "")), range("c", "m"));
        assert!(range("b", "a").is_empty());
    }

    #[test]
    fn what_is_read_backwards_begins_in_the_shard_below() {
        let shards = [range("", "c"), range("c", "m"), range("m", "")];
        let found = |anchor: Anchor<'_>| {
            shards
                .iter()
                .position(|shard| shard.contains(&anchor.key()))
        };
        for (key, shard) in [("", 0), ("b", 0), ("c", 1), ("m", 2), ("z", 2)] {
            assert_eq!(found(Anchor::At(key.as_bytes())), Some(shard), "at {key}");
        }
        for (key, shard) in [("b", 0), ("c", 0), ("d", 1), ("m", 1), ("n", 2)] {
            let anchor = Anchor::Before(Some(key.as_bytes()));
            assert_eq!(found(anchor), Some(shard), "before {key}");
        }
        assert_eq!(found(Anchor::Before(None)), Some(2));
    }
}
