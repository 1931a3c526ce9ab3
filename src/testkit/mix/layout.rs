//! The keys of a mix: which there are, what each kind holds, and how counters, lists and sets stand in
//! a value. Decides only.

use bytes::Bytes;

use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Value;

/// Keys of one cluster that is written together.
pub const PAIR_KEYS: u64 = 4;
/// Keys of one cluster that is scanned and removed by range.
pub const SPAN_KEYS: u64 = 8;
/// Elements of one list or set. A full one is left alone, and the next one begun: values stay small, and
/// what was added once must be there for ever.
pub const ELEMENTS_MAX: usize = 32;

/// How many keys there are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Registers: put, deleted, compared and set.
    pub registers: u64,
    /// Counters.
    pub counters: u64,
    /// Lists that are appended to.
    pub lists: u64,
    /// Sets that are added to.
    pub sets: u64,
    /// Clusters of [`PAIR_KEYS`] keys that are written together.
    pub pairs: u64,
    /// Clusters of [`SPAN_KEYS`] keys that are scanned.
    pub spans: u64,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            registers: 24,
            counters: 4,
            lists: 2,
            sets: 2,
            pairs: 2,
            spans: 2,
        }
    }
}

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything; each write replaces it.
    Register,
    /// A number that only grows.
    Counter,
    /// Elements, in the order in which they were added.
    List,
    /// Elements, sorted.
    Set,
    /// As a register, written together with its neighbours.
    Pair,
    /// As a register, scanned and removed with its neighbours.
    Span,
}

/// Names the keys. All begin with one prefix.
#[derive(Debug, Clone)]
pub struct Layout {
    prefix: String,
}

impl Layout {
    /// Keys below `prefix`, which may be empty.
    pub fn new(prefix: &str) -> Layout {
        let prefix = prefix.to_owned();
        Layout { prefix }
    }

    /// A register.
    pub fn register(&self, number: u64) -> Key {
        self.key(&format!("reg/{number:04}"))
    }

    /// A counter.
    pub fn counter(&self, number: u64) -> Key {
        self.key(&format!("count/{number:04}"))
    }

    /// A list or set, and how many of its name were full before it.
    pub fn collection(&self, kind: Kind, number: u64, generation: u64) -> Key {
        let name = if kind == Kind::List { "list" } else { "set" };
        self.key(&format!("{name}/{number:04}/{generation:06}"))
    }

    /// A key of a cluster that is written together.
    pub fn pair(&self, cluster: u64, number: u64) -> Key {
        self.key(&format!("pair/{cluster:04}/{number:02}"))
    }

    /// All keys of a cluster that is written together.
    pub fn pair_range(&self, cluster: u64) -> KeyRange {
        KeyRange::of_prefix(&self.key(&format!("pair/{cluster:04}/")))
    }

    /// A key of a cluster that is scanned.
    pub fn span(&self, cluster: u64, number: u64) -> Key {
        self.key(&format!("span/{cluster:04}/{number:02}"))
    }

    /// Some keys of a cluster that is scanned: `first` and those up to, not including, `end`.
    pub fn span_range(&self, cluster: u64, first: u64, end: u64) -> KeyRange {
        KeyRange {
            start: self.span(cluster, first),
            end: Some(self.span(cluster, end)),
        }
    }

    /// What a key holds; `None` when it is none of these.
    pub fn kind_of(&self, key: &[u8]) -> Option<Kind> {
        let name = key.strip_prefix(self.prefix.as_bytes())?;
        let end = name.iter().position(|byte| *byte == b'/')?;
        match &name[..end] {
            b"reg" => Some(Kind::Register),
            b"count" => Some(Kind::Counter),
            b"list" => Some(Kind::List),
            b"set" => Some(Kind::Set),
            b"pair" => Some(Kind::Pair),
            b"span" => Some(Kind::Span),
            _ => None,
        }
    }

    fn key(&self, name: &str) -> Key {
        Bytes::from(format!("{}{name}", self.prefix))
    }
}

/// The number in a counter; 0 for one that is absent, `None` for a value that is no number.
pub fn number_in(value: Option<&Value>) -> Option<u64> {
    match value {
        None => Some(0),
        Some(value) => str::from_utf8(value).ok()?.parse().ok(),
    }
}

/// A counter's value.
pub fn counter_value(number: u64) -> Value {
    Bytes::from(number.to_string())
}

/// The elements of a list or set, as they stand.
pub fn elements(value: Option<&Value>) -> Vec<&[u8]> {
    let Some(value) = value else {
        return Vec::new();
    };
    value.split(|byte| *byte == b' ').collect()
}

/// The value with one more element: at the end of a list, in its place in a set.
pub fn with_element(kind: Kind, value: Option<&Value>, element: &str) -> Value {
    let mut elements = elements(value);
    elements.push(element.as_bytes());
    if kind == Kind::Set {
        elements.sort_unstable();
        elements.dedup();
    }
    Bytes::from(elements.join(&b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known_by_its_kind_and_none_of_another_run() {
        let layout = Layout::new("run/7/");
        let keys = [
            (layout.register(3), Kind::Register),
            (layout.counter(0), Kind::Counter),
            (layout.collection(Kind::List, 1, 2), Kind::List),
            (layout.collection(Kind::Set, 1, 2), Kind::Set),
            (layout.pair(0, 1), Kind::Pair),
            (layout.span(0, 1), Kind::Span),
        ];
        for (key, kind) in &keys {
            assert_eq!(layout.kind_of(key), Some(*kind));
            assert_eq!(Layout::new("run/8/").kind_of(key), None);
        }
        assert!(layout.pair_range(0).contains(&layout.pair(0, 3)));
        assert!(!layout.pair_range(0).contains(&layout.pair(1, 0)));
        assert!(!layout.span_range(0, 2, 4).contains(&layout.span(0, 4)));
    }

    #[test]
    fn lists_keep_their_order_and_sets_are_sorted() {
        let one = with_element(Kind::List, None, "c2.1");
        let two = with_element(Kind::List, Some(&one), "c1.1");
        assert_eq!(elements(Some(&two)), [b"c2.1", b"c1.1"]);
        let two = with_element(Kind::Set, Some(&one), "c1.1");
        assert_eq!(&two[..], b"c1.1 c2.1");
        assert_eq!(elements(None).len(), 0);
        assert_eq!(number_in(Some(&counter_value(7))), Some(7));
        assert_eq!((number_in(None), number_in(Some(&one))), (Some(0), None));
    }
}
