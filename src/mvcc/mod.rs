//! Versions of keys over an engine. Decides only.
//!
//! A key's newest version stands in place; the one that it replaced moves aside, into history. A
//! delete is a version too: a tombstone stays in place until the history behind it is collected, so
//! that a reader who looks at the newest version first and at history second never misses a key that
//! is deleted or written between the two looks.
//!
//! What a reader may still ask for is said once, in [`retain`]: collection removes the rest,
//! snapshots and hashes leave it out.

pub mod version;
pub mod write;
pub mod read;
pub mod gc;

pub use gc::Floors;
pub use read::Seen;
pub use version::Author;
pub use version::Version;

use crate::codec::ordered::OrderedError;
use crate::codec::value::ValueError;
use crate::engine::EngineError;
use crate::machine::MachineError;
use crate::types::Timestamp;

impl From<EngineError> for MachineError {
    fn from(error: EngineError) -> MachineError {
        MachineError(error.to_string())
    }
}

impl From<OrderedError> for MachineError {
    fn from(error: OrderedError) -> MachineError {
        MachineError(error.to_string())
    }
}

impl From<ValueError> for MachineError {
    fn from(error: ValueError) -> MachineError {
        MachineError(error.to_string())
    }
}

/// How many of a key's versions, newest first, can still be seen by a reader at or above `floor`:
/// all above it, and the one in force at it unless that is a tombstone.
pub fn retain(versions: impl IntoIterator<Item = (Timestamp, bool)>, floor: Timestamp) -> usize {
    let mut kept = 0;
    for (stamp, is_tombstone) in versions {
        if stamp <= floor {
            return kept + usize::from(!is_tombstone);
        }
        kept += 1;
    }
    kept
}
