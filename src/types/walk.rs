//! The way through a hash keyspace: a range of keys is read or removed bucket by bucket. Decides only.
//!
//! A walk over all keys takes the buckets as what they are, one range of stored keys; one over fewer keys takes
//! the same keys of each bucket. Where it stands is said as a *place*: how far behind the prefix, in stored
//! keys. It is what users get as a resume key, and means nothing to them.

use crate::types::key::Key;
use crate::types::key::KeyRange;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::Layout;

/// What is walked through.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    /// The keyspace.
    keyspace: &'a Keyspace,
    /// How many buckets it has.
    buckets: u32,
    /// Which keys of each bucket.
    range: &'a KeyRange,
    /// Whether it begins with the last bucket.
    reverse: bool,
}

impl<'a> Walk<'a> {
    /// Over the keys of a range; `None` where the keyspace is ordered and there are no buckets.
    pub fn new(keyspace: &'a Keyspace, range: &'a KeyRange, reverse: bool) -> Option<Walk<'a>> {
        let Layout::Hash(buckets) = keyspace.layout else {
            return None;
        };
        Some(Walk {
            keyspace,
            buckets: buckets.count,
            range,
            reverse,
        })
    }

    /// Whether it goes over all keys, and so through one range.
    pub fn is_whole(&self) -> bool {
        *self.range == KeyRange::ALL
    }

    /// The next ranges of stored keys from a place on, so many at most; none of them is empty, and none comes
    /// at the end. `None` is the beginning.
    pub fn spans(&self, place: Option<&Key>, count: usize) -> Vec<KeyRange> {
        let left = self.left(place);
        if self.range.is_empty() || left.is_empty() {
            return Vec::new();
        }
        if self.is_whole() {
            return vec![left];
        }
        let first = self.first_bucket(place);
        let buckets = (0..).map_while(|number| self.bucket(first, number));
        let spans = buckets.map(|bucket| {
            let span = self.keyspace.bucket_range(bucket, self.range);
            span.intersect(&left)
        });
        spans.filter(|span| !span.is_empty()).take(count).collect()
    }

    fn bucket(&self, first: u32, number: u32) -> Option<u32> {
        match self.reverse {
            true => first.min(self.buckets - 1).checked_sub(number),
            false => Some(first + number).filter(|bucket| *bucket < self.buckets),
        }
    }

    /// The place at which a walk goes on that has come to the end of a range of stored keys.
    pub fn behind(&self, span: &KeyRange) -> Option<Key> {
        match self.reverse {
            true => self.keyspace.place(&span.start),
            false => self.keyspace.place(span.end.as_ref()?),
        }
    }

    /// The place at which a walk goes on that has left so much of a range of stored keys.
    pub fn before(&self, rest: &KeyRange) -> Option<Key> {
        match self.reverse {
            true => self.keyspace.place(rest.end.as_ref()?),
            false => self.keyspace.place(&rest.start),
        }
    }

    /// The place behind a stored key.
    pub fn past(&self, stored: &Key) -> Option<Key> {
        match self.reverse {
            true => self.keyspace.place(stored),
            false => self.keyspace.place(&[stored, &[0][..]].concat().into()),
        }
    }

    /// All stored keys that have not been walked by.
    fn left(&self, place: Option<&Key>) -> KeyRange {
        let whole = self.keyspace.range();
        let Some(place) = place else {
            return whole;
        };
        let bound = self.keyspace.at_place(place);
        match self.reverse {
            true => KeyRange {
                start: whole.start,
                end: Some(bound),
            },
            false => KeyRange {
                start: bound,
                end: whole.end,
            },
        }
    }

    /// The bucket of a place, or the one with which the walk begins.
    fn first_bucket(&self, place: Option<&Key>) -> u32 {
        let Some(place) = place else {
            return if self.reverse { self.buckets - 1 } else { 0 };
        };
        let byte = |at: usize| u32::from(place.get(at).copied().unwrap_or(0));
        (byte(0) << 8) | byte(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::keyspace::Buckets;

    fn keyspace(prefix: &[u8], count: u32) -> Keyspace {
        let layout = Layout::Hash(Buckets { count, parts: 1 });
        let prefix = Some(Key::copy_from_slice(prefix));
        Keyspace::new("orders".parse().unwrap(), prefix, layout).unwrap()
    }

    /// Walks in portions of some keys each over stored keys in order, as a node does.
    fn walked(walk: &Walk<'_>, stored: &[Key], portion: usize) -> Vec<Key> {
        let (mut seen, mut place) = (Vec::new(), None);
        while let Some(span) = walk.spans(place.as_ref(), 1).first() {
            let mut inside: Vec<&Key> = stored.iter().filter(|key| span.contains(key)).collect();
            if walk.reverse {
                inside.reverse();
            }
            let taken = &inside[..portion.min(inside.len())];
            seen.extend(taken.iter().map(|key| (*key).clone()));
            place = match taken.last() {
                Some(last) if taken.len() == portion => walk.past(last),
                Some(_) | None => walk.behind(span),
            };
            if place.is_none() {
                break;
            }
        }
        seen
    }

    fn keys() -> impl Strategy<Value = Vec<Key>> {
        let byte = prop_oneof![Just(0u8), Just(0xffu8), b'a'..b'd'];
        let key = prop::collection::vec(byte, 1..4).prop_map(Key::from);
        prop::collection::vec(key, 0..40)
    }

    proptest! {
        #[test]
        fn every_key_of_the_range_is_walked_by_once_in_either_direction(
            prefix in prop_oneof![Just(&b"p/"[..]), Just(&[0xff][..])],
            bits in 1u32..=6,
            keys in keys(), bounds in keys(), reverse: bool, portion in 1usize..5,
        ) {
            let keyspace = keyspace(prefix, 1 << bits);
            let range = KeyRange {
                start: bounds.first().cloned().unwrap_or_default(),
                end: bounds.get(1).cloned(),
            };
            let mut expected: Vec<Key> = keys.iter().map(|key| keyspace.stored_key(key)).collect();
            expected.sort();
            expected.dedup();
            let stored = expected.clone();
            expected.retain(|key| range.contains(&keyspace.user_key(key).unwrap()));
            if reverse {
                expected.reverse();
            }
            let walk = Walk::new(&keyspace, &range, reverse).unwrap();
            prop_assert_eq!(walked(&walk, &stored, portion), expected);
        }

        /// Whatever a user sends back.
        #[test]
        fn any_place_leads_into_the_keyspace(
            place in prop::collection::vec(any::<u8>(), 0..5), reverse: bool, start in keys(),
        ) {
            let keyspace = keyspace(b"p/", 256);
            let range = KeyRange { start: start.first().cloned().unwrap_or_default(), end: None };
            let walk = Walk::new(&keyspace, &range, reverse).unwrap();
            for span in walk.spans(Some(&Key::from(place)), 4) {
                prop_assert!(keyspace.range().covers(&span) && !span.is_empty());
            }
        }
    }

    #[test]
    fn all_keys_are_one_range_and_fewer_are_one_in_each_bucket() {
        let keyspace = keyspace(b"p/", 4);
        let some = KeyRange::of_prefix(b"k");
        let shown = |range: &KeyRange, place: Option<&Key>, reverse| {
            let walk = Walk::new(&keyspace, range, reverse).unwrap();
            let spans = walk.spans(place, 9);
            spans.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(shown(&KeyRange::ALL, None, false), ["[p/, p0)"]);
        let buckets =
            [0, 1, 2, 3].map(|bucket| format!("[p/\\x00\\x0{bucket}k, p/\\x00\\x0{bucket}l)"));
        assert_eq!(shown(&some, None, false), buckets);
        let place = Key::from(&b"\0\x02kk"[..]);
        assert_eq!(
            shown(&some, Some(&place), false),
            ["[p/\\x00\\x02kk, p/\\x00\\x02l)", &buckets[3]]
        );
        let below = ["[p/\\x00\\x02k, p/\\x00\\x02kk)", &buckets[1], &buckets[0]];
        assert_eq!(shown(&some, Some(&place), true), below);
        let none = KeyRange {
            start: "k".into(),
            end: Some("k".into()),
        };
        assert!(shown(&none, None, false).is_empty());
    }
}
