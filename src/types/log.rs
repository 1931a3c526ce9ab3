//! What a group's log is made of. Decides only. These are the store's own words for Raft's values;
//! the library's types stay inside `raft/`.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::types::id::ReplicaId;

/// A place in a group's log.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Position {
    /// Term in which the entry was proposed.
    pub term: u64,
    /// Place in the log; without gaps.
    pub index: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// Whom a replica follows or votes for in a term. Replaced whole, never in two writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate or leader.
    pub replica: ReplicaId,
    /// Whether a quorum has granted it: then `replica` leads the term.
    pub committed: bool,
}

/// What one log entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A command of the state machine.
    Command(Bytes),
    /// An encoded `machine::Membership`.
    Membership(Bytes),
}

impl Payload {
    /// The bytes carried.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Blank => &[],
            Payload::Command(bytes) | Payload::Membership(bytes) => bytes,
        }
    }
}

/// One entry of a group's log. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub position: Position,
    /// What it asks for.
    pub payload: Payload,
}
