//! Versions of keys over an engine. Decides only.
//!
//! A key's newest version stands in place; the one that it replaced moves aside, into history. A
//! delete is a version too: a tombstone stays in place until the history behind it is collected, so
//! that a reader who looks at the newest version first and at history second never misses a key that
//! is deleted or written between the two looks.
//!
//! A reader may ask for any stamp at or above the floor, so of each key all versions above the floor
//! are kept, and the one in force at it unless that is a tombstone. Collection removes the rest in its
//! own time; snapshots and hashes leave it out, whether it is removed yet or not.

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
