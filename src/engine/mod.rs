//! An ordered map of bytes with atomic batches: the applied image of the log.
//!
//! A batch is atomic and in order with other batches, but not durable until [`Engine::flush`] has
//! returned; what a crash takes is replayed from the log. There is one engine per node, for all groups.

pub mod memory;
pub mod overlay;
pub(crate) mod format;
pub mod inspect;
pub mod sled;

pub use memory::MemoryEngine;
pub use overlay::Overlay;
pub use sled::SledEngine;

use std::time::Duration;

/// Why the engine could not do it. Poisons the node: nothing is tried again.
#[derive(Debug, thiserror::Error)]
#[error("engine: {0}")]
pub struct EngineError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Changes that become visible and durable together. Later changes of a key win.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Key, and its new value or `None` to remove it.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Stores a value.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push((key, Some(value)));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push((key, None));
    }
}

/// An ordered map of bytes. Every call may block on the disk.
pub trait Engine: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// The pairs with `start <= key < end`, in order or in reverse. No snapshot: changes made
    /// meanwhile may or may not be seen, but each pair is whole.
    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + Send + 'a>;

    /// Makes the changes, all or none.
    fn write(&self, batch: Batch) -> Result<(), EngineError>;

    /// Returns when everything written before the call survives a power cut. One caller at a time.
    fn flush(&self) -> Result<(), EngineError>;

    /// How long a flush that begins now goes on while others read and write. A real one lets its caller wait
    /// in the flush itself; a simulated one has no thread to stop.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }

    /// Takes so many bytes of the disk beyond what it uses now, for its own later writes, or as many as
    /// it can have. Says how many it has; 0 where nothing can be set aside.
    fn set_aside(&self, _bytes: u64) -> u64 {
        0
    }
}
