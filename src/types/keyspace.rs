//! Keyspaces: a named prefix with options. Decides only.
//!
//! A key of a keyspace is stored behind the keyspace's prefix. In an **ordered** keyspace nothing stands between
//! the two, so that the order of keys stays. In a **hash** keyspace two bytes do: the key's bucket. Keys that
//! follow one another are in different buckets, so that no shard gets all of what is written at the end of a
//! sequence; and since buckets are ranges of stored keys, shards hold whole buckets, and a new node takes whole
//! shards over: about its share of the keys, and no other key moves. Hashing keys to nodes instead would need
//! a rule of its own for who holds a key; this way there is only one.
//!
//! The bucket of a key is the highest bits of its SipHash-2-4 ([`hash`]), as many as the number of buckets
//! needs. A definition never changes, and neither its name nor its prefix is ever used again: so whoever knows
//! a keyspace knows it right, however late, and puts no key in a wrong place.
//!
//! Whoever a request enters at turns its keys into stored keys, and back in the answer. Nobody else knows of
//! keyspaces: shards, logs and requests between nodes have stored keys alone.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::types::hash::hash;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::key::Key;
use crate::types::key::KeyRange;

/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 64;
/// Bytes of a prefix: most of a stored key is its user's.
pub const PREFIX_BYTES_MAX: usize = 256;
/// Buckets of a hash keyspace: what two bytes can tell apart.
pub const BUCKETS_MAX: u32 = 65_536;
/// Buckets where nobody says how many.
pub const BUCKETS_DEFAULT: u32 = 256;
/// Ranges of buckets that a hash keyspace is split into from the start.
pub const PARTS_MAX: u32 = 256;
/// Ranges where nobody says how many.
pub const PARTS_DEFAULT: u32 = 8;
/// Bytes of a stored key that name the bucket.
const BUCKET_BYTES: usize = 2;

/// What a keyspace is called: 1 to [`NAME_CHARS_MAX`] of `a-z`, `0-9`, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyspaceName(String);

impl KeyspaceName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyspaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyspaceName, String> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let fits = (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(is_plain);
        match fits {
            true => Ok(KeyspaceName(text.to_owned())),
            false => Err(format!(
                "{text:?}: a keyspace's name has 1 to {NAME_CHARS_MAX} of a-z, 0-9, dot, underscore and dash"
            )),
        }
    }
}

impl fmt::Display for KeyspaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How keys are laid out behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// As they are.
    Ordered,
    /// By the hash of each.
    Hash(Buckets),
}

/// The buckets of a hash keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets {
    /// How many: a power of two, 2 to [`BUCKETS_MAX`].
    pub count: u32,
    /// Into how many ranges of them the keyspace is split from the start: 1 to [`PARTS_MAX`], and at most one
    /// for each bucket.
    pub parts: u32,
}

impl Buckets {
    /// With what is usual for what is not said.
    pub fn of(count: Option<u32>, parts: Option<u32>) -> Buckets {
        let count = count.unwrap_or(BUCKETS_DEFAULT);
        Buckets {
            count,
            parts: parts.unwrap_or(PARTS_DEFAULT.min(count)),
        }
    }

    fn check(self) -> Result<(), String> {
        let Buckets { count, parts } = self;
        if !count.is_power_of_two() || !(2..=BUCKETS_MAX).contains(&count) {
            return Err(format!(
                "buckets: {count} is no power of two from 2 to {BUCKETS_MAX}"
            ));
        }
        let parts_max = PARTS_MAX.min(count);
        match (1..=parts_max).contains(&parts) {
            true => Ok(()),
            false => Err(format!(
                "parts: {parts} is not 1 to {parts_max}, one for each of {count} buckets at most"
            )),
        }
    }

    fn of_key(self, key: &[u8]) -> u16 {
        let bits = self.count.trailing_zeros();
        // At most sixteen bits are left.
        (hash(key) >> (u64::BITS - bits)) as u16
    }
}

/// A named prefix with options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    /// Its name.
    pub name: KeyspaceName,
    /// What stored keys begin with: 1 to [`PREFIX_BYTES_MAX`] bytes. No keyspace's prefix begins with
    /// another's.
    pub prefix: Key,
    /// What comes behind it.
    pub layout: Layout,
}

/// A keyspace as placement has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What it is.
    pub keyspace: Keyspace,
    /// Whether it was deleted: it is kept, so that its name and its prefix are not used again.
    pub retired: bool,
}

impl Keyspace {
    /// Behind the name and a slash where no prefix is said. The error is a sentence.
    pub fn new(
        name: KeyspaceName,
        prefix: Option<Key>,
        layout: Layout,
    ) -> Result<Keyspace, String> {
        let usual = || Key::from(format!("{name}/"));
        let keyspace = Keyspace {
            prefix: prefix.unwrap_or_else(usual),
            name,
            layout,
        };
        if !(1..=PREFIX_BYTES_MAX).contains(&keyspace.prefix.len()) {
            let length = keyspace.prefix.len();
            return Err(format!(
                "prefix: it has {length} bytes, and not 1 to {PREFIX_BYTES_MAX}"
            ));
        }
        match layout {
            Layout::Ordered => Ok(keyspace),
            Layout::Hash(buckets) => buckets.check().map(|()| keyspace),
        }
    }

    /// Whether some stored key could be of both.
    pub fn overlaps(&self, other: &Keyspace) -> bool {
        self.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&self.prefix)
    }

    /// Bytes of a stored key that are not its user's.
    pub fn overhead(&self) -> usize {
        match self.layout {
            Layout::Ordered => self.prefix.len(),
            Layout::Hash(_) => self.prefix.len() + BUCKET_BYTES,
        }
    }

    /// Longest key that its user can store.
    pub fn key_bytes_max(&self) -> usize {
        KEY_BYTES_MAX - self.overhead()
    }

    /// Where its stored keys are.
    pub fn range(&self) -> KeyRange {
        KeyRange::of_prefix(&self.prefix)
    }

    /// Whether some of its stored keys could be in a range. Asked of every keyspace about every shard, so that it
    /// makes no ranges.
    pub fn reaches_into(&self, range: &KeyRange) -> bool {
        let ends_before = range.end.as_ref().is_some_and(|end| *end <= self.prefix);
        let begins_behind = range.start > self.prefix && !range.start.starts_with(&self.prefix);
        !ends_before && !begins_behind && !range.is_empty()
    }

    /// Where a key is stored.
    pub fn stored_key(&self, key: &[u8]) -> Key {
        match self.layout {
            Layout::Ordered => self.behind_prefix(&[key]),
            Layout::Hash(buckets) => self.behind_prefix(&[&buckets.of_key(key).to_be_bytes(), key]),
        }
    }

    /// Whose key is stored there; `None` when it is not of this keyspace: somebody has written it without.
    pub fn user_key(&self, stored: &Key) -> Option<Key> {
        let key = (stored.len() > self.overhead()).then(|| stored.slice(self.overhead()..))?;
        (self.stored_key(&key) == *stored).then_some(key)
    }

    /// Where the keys of a range are stored in an ordered keyspace.
    pub fn stored_range(&self, range: &KeyRange) -> KeyRange {
        let end = range.end.as_ref().map(|end| self.behind_prefix(&[end]));
        KeyRange {
            start: self.behind_prefix(&[&range.start]),
            end: end.or(self.range().end),
        }
    }

    /// Which keys are stored in a range of an ordered keyspace.
    pub fn user_range(&self, stored: &KeyRange) -> KeyRange {
        KeyRange {
            start: self.place(&stored.start).unwrap_or_default(),
            end: stored.end.as_ref().and_then(|end| self.place(end)),
        }
    }

    /// Where the keys of a range are stored that are in one bucket.
    pub fn bucket_range(&self, bucket: u32, range: &KeyRange) -> KeyRange {
        let inside = |key: &[u8]| {
            let bytes = bucket.to_be_bytes();
            self.behind_prefix(&[&bytes[BUCKET_BYTES..], key])
        };
        let end = range.end.as_ref().map(|end| inside(end));
        KeyRange {
            start: inside(&range.start),
            end: end.or_else(|| self.bucket_start(bucket + 1)),
        }
    }

    /// What is behind the prefix of a stored key, or of a bound between stored keys.
    pub fn place(&self, stored: &Key) -> Option<Key> {
        let is_inside = stored.starts_with(&self.prefix);
        is_inside.then(|| stored.slice(self.prefix.len()..))
    }

    /// The bound between stored keys that is so far behind the prefix.
    pub fn at_place(&self, place: &[u8]) -> Key {
        self.behind_prefix(&[place])
    }

    /// Where its shards shall begin and end, in order: around the keyspace, and in a hash keyspace around each
    /// of its parts.
    pub fn bounds(&self) -> Vec<Key> {
        let inner = match self.layout {
            Layout::Ordered => Vec::new(),
            Layout::Hash(buckets) => (1..buckets.parts)
                .filter_map(|part| self.bucket_start(part * buckets.count / buckets.parts))
                .collect(),
        };
        let KeyRange { start, end } = self.range();
        [start].into_iter().chain(inner).chain(end).collect()
    }

    /// The end of the keyspace where there is no such bucket.
    fn bucket_start(&self, bucket: u32) -> Option<Key> {
        match u16::try_from(bucket) {
            Ok(bucket) => Some(self.behind_prefix(&[&bucket.to_be_bytes()])),
            Err(_behind_the_last) => self.range().end,
        }
    }

    fn behind_prefix(&self, pieces: &[&[u8]]) -> Key {
        let prefix: &[u8] = &self.prefix;
        let pieces = [prefix].into_iter().chain(pieces.iter().copied());
        Bytes::from(pieces.collect::<Vec<_>>().concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyspace(prefix: &[u8], layout: Layout) -> Keyspace {
        let name = "orders".parse().unwrap();
        Keyspace::new(name, Some(Key::copy_from_slice(prefix)), layout).unwrap()
    }

    fn layout() -> impl Strategy<Value = Layout> {
        let hash = (1u32..=16, 1u32..=256).prop_map(|(bits, parts)| {
            let count = 1 << bits;
            let parts = parts.min(count);
            Layout::Hash(Buckets { count, parts })
        });
        prop_oneof![Just(Layout::Ordered), hash]
    }

    fn any_keyspace() -> impl Strategy<Value = Keyspace> {
        let prefix =
            prop::collection::vec(prop_oneof![Just(0xffu8), Just(b'a'), any::<u8>()], 1..4);
        (prefix, layout()).prop_map(|(prefix, layout)| keyspace(&prefix, layout))
    }

    fn key() -> impl Strategy<Value = Key> {
        let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 1..6).prop_map(Key::from)
    }

    proptest! {
        #[test]
        fn a_stored_key_is_one_keys_alone_and_comes_back(
            keyspace in any_keyspace(), one in key(), other in key(),
        ) {
            let stored = keyspace.stored_key(&one);
            prop_assert!(keyspace.range().contains(&stored));
            prop_assert_eq!(stored.len(), one.len() + keyspace.overhead());
            prop_assert_eq!(stored == keyspace.stored_key(&other), one == other);
            prop_assert_eq!(keyspace.user_key(&stored), Some(one));
        }

        #[test]
        fn keyspaces_that_do_not_overlap_have_no_stored_key_in_common(
            one in any_keyspace(), other in any_keyspace(), key in key(),
        ) {
            prop_assert_eq!(one.overlaps(&other), one.range().overlaps(&other.range()));
            let stored = one.stored_key(&key);
            prop_assert!(one.overlaps(&other) || other.user_key(&stored).is_none());
        }

        #[test]
        fn a_keyspace_reaches_into_the_ranges_that_overlap_its_own(
            keyspace in any_keyspace(), bounds in (key(), prop::option::of(key())),
            inside: bool,
        ) {
            let (start, end) = bounds;
            let start = if inside { keyspace.stored_key(&start) } else { start };
            let range = KeyRange { start, end };
            prop_assert_eq!(keyspace.reaches_into(&range), keyspace.range().overlaps(&range));
        }

        #[test]
        fn an_ordered_keyspace_keeps_the_order_and_the_ranges(
            prefix in prop::collection::vec(any::<u8>(), 1..4),
            one in key(), other in key(), bounds in (key(), prop::option::of(key())),
        ) {
            let keyspace = keyspace(&prefix, Layout::Ordered);
            prop_assert_eq!(
                keyspace.stored_key(&one).cmp(&keyspace.stored_key(&other)),
                one.cmp(&other)
            );
            let range = KeyRange { start: bounds.0, end: bounds.1 };
            let stored = keyspace.stored_range(&range);
            prop_assert_eq!(stored.contains(&keyspace.stored_key(&one)), range.contains(&one));
            prop_assert!(range.is_empty() || keyspace.range().covers(&stored));
            prop_assert_eq!(keyspace.user_range(&stored), range);
        }

        #[test]
        fn a_range_is_stored_in_disjoint_ranges_one_for_each_bucket(
            bits in 1u32..=6, key in key(), bounds in (key(), prop::option::of(key())),
        ) {
            let buckets = Buckets { count: 1 << bits, parts: 1 };
            let keyspace = keyspace(b"p/", Layout::Hash(buckets));
            let range = KeyRange { start: bounds.0, end: bounds.1 };
            prop_assume!(!range.is_empty());
            let stored = keyspace.stored_key(&key);
            let mut holding = 0;
            let mut below: Option<KeyRange> = None;
            for bucket in 0..buckets.count {
                let part = keyspace.bucket_range(bucket, &range);
                prop_assert!(keyspace.range().covers(&part) && !part.is_empty());
                if let Some(below) = below {
                    prop_assert!(below.end.is_some_and(|end| end <= part.start));
                }
                holding += usize::from(part.contains(&stored));
                below = Some(part);
            }
            prop_assert_eq!(holding, usize::from(range.contains(&key)));
        }

        #[test]
        fn the_bounds_of_parts_are_bounds_of_whole_buckets(keyspace in any_keyspace(), key in key()) {
            let bounds = keyspace.bounds();
            prop_assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
            let range = keyspace.range();
            prop_assert_eq!(&bounds[0], &range.start);
            let Layout::Hash(buckets) = keyspace.layout else {
                return Ok(());
            };
            let inner = bounds[1..].iter().filter(|bound| Some(*bound) != range.end.as_ref());
            prop_assert_eq!(inner.clone().count() as u32, buckets.parts - 1);
            for bound in inner {
                prop_assert_eq!(bound.len(), keyspace.overhead());
            }
            prop_assert!(keyspace.stored_key(&key) >= bounds[0]);
        }
    }

    /// A stored key of long ago is found for ever.
    #[test]
    fn examples_of_stored_keys() {
        let hash = |count| Layout::Hash(Buckets { count, parts: 1 });
        let stored = |layout| keyspace(b"p/", layout).stored_key(b"order-1");
        assert_eq!(stored(Layout::Ordered), "p/order-1");
        assert_eq!(stored(hash(2)), &b"p/\0\x01order-1"[..]);
        assert_eq!(stored(hash(256)), &b"p/\0\xc3order-1"[..]);
        assert_eq!(stored(hash(65_536)), &b"p/\xc3\x7eorder-1"[..]);
    }

    #[test]
    fn keys_that_follow_one_another_are_spread_evenly() {
        let buckets = Buckets::of(None, None);
        let mut counts = vec![0u32; buckets.count as usize];
        const KEYS: u32 = 256_000;
        for number in 0..KEYS {
            let key = format!("order-{number:09}");
            counts[usize::from(buckets.of_key(key.as_bytes()))] += 1;
        }
        // A thousand each: chance takes none further than five times its root away.
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 840 && *most < 1_160, "{least} to {most}");
        let parts = counts.chunks(counts.len() / buckets.parts as usize);
        for part in parts.map(|part| part.iter().sum::<u32>()) {
            assert!((31_000..33_000).contains(&part), "{part}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let new = |prefix: &[u8], layout| {
            let prefix = Key::copy_from_slice(prefix);
            Keyspace::new("a".parse().unwrap(), Some(prefix), layout)
        };
        let hash = |count, parts| Layout::Hash(Buckets { count, parts });
        for refused in [
            hash(1, 1),
            hash(3, 1),
            hash(131_072, 1),
            hash(4, 5),
            hash(512, 257),
            hash(2, 0),
        ] {
            assert!(new(b"p", refused).is_err(), "{refused:?}");
        }
        assert!(new(b"", Layout::Ordered).is_err());
        assert!(new(&[b'p'; PREFIX_BYTES_MAX + 1], Layout::Ordered).is_err());
        assert!(new(b"p", hash(65_536, 256)).is_ok() && new(b"p", hash(2, 2)).is_ok());
        for name in ["", "A", "a/b", "ä", &"a".repeat(65)] {
            assert!(name.parse::<KeyspaceName>().is_err(), "{name}");
        }
        let usual = Keyspace::new("a.b-1_".parse().unwrap(), None, Layout::Ordered);
        assert_eq!(usual.unwrap().prefix, "a.b-1_/");
        assert_eq!(Buckets::of(Some(4), None), Buckets { count: 4, parts: 4 });
    }

    #[test]
    fn what_was_written_without_the_keyspace_is_not_of_it() {
        let keyspace = keyspace(b"p/", Layout::Hash(Buckets::of(None, None)));
        let stored = keyspace.stored_key(b"k");
        let mut elsewhere = stored.to_vec();
        elsewhere[3] ^= 1;
        for raw in [&b"p/"[..], b"p/ab", b"q/abc", &elsewhere] {
            assert_eq!(keyspace.user_key(&Key::copy_from_slice(raw)), None);
        }
    }
}
