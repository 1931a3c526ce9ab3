//! The engine in memory: the model that the other engine is compared with, and the disk of simulated
//! nodes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;

use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::Pair;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// An engine without a disk. What was not flushed can be lost on purpose.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Map,
    durable: Map,
    unflushed: Vec<Batch>,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> MemoryEngine {
        MemoryEngine::default()
    }

    /// Batches written since the last flush.
    pub fn unflushed(&self) -> usize {
        self.read().unflushed.len()
    }

    /// Goes back to the last flush and the first `kept` batches after it: a crash keeps some prefix of
    /// what was written, at least what was flushed.
    pub fn crash(&self, kept: usize) {
        let mut state = self.write_lock();
        let mut survivors = std::mem::take(&mut state.unflushed);
        survivors.truncate(kept);
        state.current = state.durable.clone();
        for batch in survivors {
            change(&mut state.current, batch.clone());
            state.unflushed.push(batch);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no holder of the lock panics")
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no holder of the lock panics")
    }
}

fn change(map: &mut Map, batch: Batch) {
    for (key, value) in batch.changes {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.read().current.get(key).cloned())
    }

    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + Send + 'a> {
        Box::new(Steps {
            engine: self,
            start: Bound::Included(start.to_vec()),
            end: end.to_vec(),
            reverse,
        })
    }

    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let mut state = self.write_lock();
        change(&mut state.current, batch.clone());
        state.unflushed.push(batch);
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut state = self.write_lock();
        for batch in std::mem::take(&mut state.unflushed) {
            change(&mut state.durable, batch);
        }
        Ok(())
    }
}

/// Takes the lock for each step, so that a scan sees changes made meanwhile, as on the disk.
struct Steps<'a> {
    engine: &'a MemoryEngine,
    start: Bound<Vec<u8>>,
    end: Vec<u8>,
    reverse: bool,
}

impl Steps<'_> {
    fn is_over(&self) -> bool {
        match &self.start {
            Bound::Included(start) | Bound::Excluded(start) => *start >= self.end,
            Bound::Unbounded => false,
        }
    }
}

impl Iterator for Steps<'_> {
    type Item = Result<Pair, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over() {
            return None;
        }
        let state = self.engine.read();
        let end = Bound::Excluded(self.end.as_slice());
        let start = self.start.as_ref().map(Vec::as_slice);
        let mut pairs = state.current.range::<[u8], _>((start, end));
        let pair = if self.reverse {
            pairs.next_back()
        } else {
            pairs.next()
        };
        let (key, value) = pair?;
        if self.reverse {
            self.end.clone_from(key);
        } else {
            self.start = Bound::Excluded(key.clone());
        }
        Some(Ok((key.clone(), value.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(engine: &MemoryEngine, key: &str) {
        let mut batch = Batch::default();
        batch.put(key.into(), b"v".to_vec());
        engine.write(batch).unwrap();
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
        let engine = MemoryEngine::new();
        put(&engine, "a");
        engine.flush().unwrap();
        for key in ["b", "c", "d"] {
            put(&engine, key);
        }
        engine.crash(2);
        let keys = |engine: &MemoryEngine| -> Vec<Vec<u8>> {
            let pairs = engine.scan(b"", b"z", false);
            pairs.map(|pair| pair.unwrap().0).collect()
        };
        assert_eq!(keys(&engine), [b"a", b"b", b"c"]);
        engine.crash(0);
        assert_eq!(keys(&engine), [b"a"]);
    }
}
