//! Changes that are not written yet, seen as if they were. Decides only.
//!
//! Entries that are applied together end in one batch; each must see what the ones before it did.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::Pair;

/// What can be read: an engine, or an engine with changes on top.
pub trait View {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// As [`Engine::scan`].
    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a>;
}

impl<E: Engine + ?Sized> View for E {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Engine::get(self, key)
    }

    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a> {
        Engine::scan(self, start, end, reverse)
    }
}

/// The part of a key that counts in the digest of what is put; `None` where the change does not count.
pub type Counted = fn(&[u8]) -> Option<&[u8]>;

/// Changes on top of an engine.
pub struct Overlay<'a> {
    engine: &'a dyn Engine,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    counted: Counted,
    digest: u32,
}

impl<'a> Overlay<'a> {
    /// No changes yet.
    pub fn new(engine: &'a dyn Engine) -> Overlay<'a> {
        Overlay::counting(engine, |_| None)
    }

    /// No changes yet; what counts of those to come makes a digest.
    pub fn counting(engine: &'a dyn Engine, counted: Counted) -> Overlay<'a> {
        Overlay {
            engine,
            changes: BTreeMap::new(),
            bytes: 0,
            counted,
            digest: 0,
        }
    }

    /// Stores a value.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        if let Some(part) = (self.counted)(&key) {
            self.count(part.len(), &[part, &value]);
        }
        self.changes.insert(key, Some(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        if let Some(part) = (self.counted)(&key) {
            self.count(part.len(), &[part]);
        }
        self.changes.insert(key, None);
    }

    fn count(&mut self, key_bytes: usize, parts: &[&[u8]]) {
        self.digest = crc32c::crc32c_append(self.digest, &(key_bytes as u64).to_be_bytes());
        for part in parts {
            self.digest = crc32c::crc32c_append(self.digest, part);
        }
    }

    /// A checksum of what counted since it was taken last, in the order in which it was changed.
    pub fn take_digest(&mut self) -> u32 {
        std::mem::take(&mut self.digest)
    }

    /// Bytes of keys and values changed so far; a key changed twice counts twice.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes, leaving none.
    pub fn take_batch(&mut self) -> Batch {
        self.bytes = 0;
        Batch {
            changes: std::mem::take(&mut self.changes).into_iter().collect(),
        }
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.engine.get(key),
        }
    }

    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let changes = self.changes.range::<[u8], _>(bounds);
        let changes: Box<dyn Iterator<Item = Change<'a>> + 'a> = if reverse {
            Box::new(changes.rev())
        } else {
            Box::new(changes)
        };
        Box::new(Merged {
            below: Engine::scan(self.engine, start, end, reverse).peekable(),
            changes: changes.peekable(),
            reverse,
        })
    }
}

type Change<'a> = (&'a Vec<u8>, &'a Option<Vec<u8>>);

struct Merged<'a, B: Iterator> {
    below: Peekable<B>,
    changes: Peekable<Box<dyn Iterator<Item = Change<'a>> + 'a>>,
    reverse: bool,
}

impl<'a, B: Iterator<Item = Result<Pair, EngineError>>> Iterator for Merged<'a, B> {
    type Item = Result<Pair, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.below.peek(), self.changes.peek()) {
                (_, None) | (Some(Err(_)), _) => return self.below.next(),
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok((below, _))), Some((changed, _))) => {
                    let order = below.cmp(changed);
                    if self.reverse { order.reverse() } else { order }
                }
            };
            match order {
                Ordering::Less => return self.below.next(),
                Ordering::Equal => {
                    self.below.next();
                }
                Ordering::Greater => {}
            }
            if let Some((key, Some(value))) = self.changes.next() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::engine::MemoryEngine;

    use super::*;

    fn all(view: &dyn View, from: u8, to: u8, reverse: bool) -> Vec<Pair> {
        let pairs = view.scan(&[from], &[to], reverse);
        pairs.collect::<Result<_, _>>().unwrap()
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_the_engine_does_once_it_is_written(
            first in prop::collection::vec((0..12u8, any::<Option<u8>>()), 0..16),
            second in prop::collection::vec((0..12u8, any::<Option<u8>>()), 0..16),
            from in 0..12u8, to in 0..13u8, reverse in any::<bool>(),
        ) {
            let engine = MemoryEngine::new();
            let mut overlay = Overlay::new(&engine);
            for (round, changes) in [first, second].into_iter().enumerate() {
                for (key, value) in changes {
                    match value {
                        Some(value) => overlay.put(vec![key], vec![value]),
                        None => overlay.delete(vec![key]),
                    }
                }
                if round == 0 {
                    let batch = overlay.take_batch();
                    Engine::write(&engine, batch).unwrap();
                }
            }
            let before = all(&overlay, from, to, reverse);
            let single = overlay.get(&[from]).unwrap();
            let batch = overlay.take_batch();
            Engine::write(&engine, batch).unwrap();
            prop_assert_eq!(before, all(&engine, from, to, reverse));
            prop_assert_eq!(single, Engine::get(&engine, &[from]).unwrap());
        }
    }
}
