//! What clients asked and what they were told, request by request: the evidence on which a run is judged.
//! Decides only.
//!
//! A client sends one request at a time. A write that is sent again under its id is one request here: it
//! begins with its first attempt and ends with the last one's answer.

use bytes::Bytes;

use crate::types::Key;
use crate::types::KeyRange;
use crate::types::request::Answered;
use crate::types::request::KeyValue;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteOutcome;

/// Microseconds since the run began, by one clock for all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

/// One request of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Who asked.
    pub client: u32,
    /// What.
    pub asked: Asked,
    /// When it was first sent.
    pub began: Moment,
    /// When its client stopped waiting: with the answer, or without one. A request whose answer is
    /// [`Answer::Unknown`] may still happen after this.
    pub ended: Moment,
    /// What its client was told.
    pub answer: Answer,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// One key.
    Get {
        /// The key.
        key: Key,
        /// How fresh.
        read: ReadKind,
    },
    /// A portion of a range, as far as one shard answers it.
    Scan {
        /// The keys.
        range: KeyRange,
        /// How many at most.
        limit: u32,
        /// Whether from the end.
        reverse: bool,
        /// How fresh.
        read: ReadKind,
    },
    /// A change.
    Write(Write),
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A get's.
    Found(Option<Versioned>, Answered),
    /// A scan's: what is there, in the order of the scan, and the part of the range that it covers.
    Scanned {
        /// Keys that are there.
        entries: Vec<KeyValue>,
        /// Everything else in here is absent.
        covered: KeyRange,
        /// Who answered.
        answered: Answered,
    },
    /// A write's final outcome.
    Wrote(WriteOutcome, Answered),
    /// None, or none that is final: a write may have happened, or may happen later; a read says nothing.
    Unknown,
    /// It has not happened and will not.
    Refused,
}

/// A key or value for people to read.
pub fn show(bytes: &Bytes) -> String {
    let shown = bytes.escape_ascii().to_string();
    match shown.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}
