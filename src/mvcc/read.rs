//! Reads keys as of a stamp. Decides only.
//!
//! Nothing here is a snapshot of the engine: batches are written while it reads. It is still exact
//! for every stamp that is neither below the floor of collection nor above the last batch's stamp:
//! - The newest version is looked at first. If it is at or below the stamp it is the answer, and what
//!   is written meanwhile is above the stamp.
//! - If it is above, the answer was moved into history in the same batch, or in an earlier one, so it
//!   is there by now; later batches add only above it.
//! - Pieces of a long value are stored before it is found and removed with it. If one is missing, the
//!   version was collected since it was found, and the look is repeated.
//!
//! The caller checks floors, bounds and slot once more after reading.

use bytes::Bytes;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::layout::Slot;
use crate::engine::overlay::View;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::mvcc::version::Content;
use crate::mvcc::version::Header;
use crate::mvcc::version::Version;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::key::VALUE_BYTES_MAX;
use crate::types::request::KeyValue;
use crate::types::request::Versioned;

/// What a reader finds. A third case, a version that its transaction has not decided, comes with
/// transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// No value as of the stamp.
    Absent,
    /// A value.
    Present(Versioned),
}

impl Seen {
    /// The value, if there is one.
    pub fn into_option(self) -> Option<Versioned> {
        match self {
            Seen::Absent => None,
            Seen::Present(versioned) => Some(versioned),
        }
    }
}

/// How much a scan returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Keys at most; at least 1.
    pub keys_max: usize,
    /// Bytes of keys and values at most; one key is returned even so.
    pub bytes_max: usize,
    /// From the end of the range backwards.
    pub reverse: bool,
    /// Without values.
    pub keys_only: bool,
}

/// A portion of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// What was found, in the order asked for.
    pub items: Vec<KeyValue>,
    /// What was not looked at; `None` at the end of the range.
    pub rest: Option<KeyRange>,
}

/// Keys that one scan looks at, dead ones included, so that a range full of deleted keys does not
/// hold a reader for seconds. Beyond it the portion ends, even without an item.
pub const SCAN_LOOKS_MAX: usize = 100_000;

/// The value of a key as of a stamp.
pub fn get<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    as_of: Timestamp,
) -> Result<Seen, MachineError> {
    match view.get(&layout::newest(slot, key))? {
        Some(record) => settle(view, slot, key, record, as_of),
        None => Ok(Seen::Absent),
    }
}

/// The keys of a range that have a value as of a stamp.
pub fn scan<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    range: &KeyRange,
    as_of: Timestamp,
    limits: Limits,
) -> Result<Portion, MachineError> {
    let mut items: Vec<KeyValue> = Vec::new();
    let mut bytes = 0;
    let (start, end) = layout::family(slot, Family::Newest, range);
    for (looked_at, pair) in view.scan(&start, &end, limits.reverse).enumerate() {
        let (place, record) = pair?;
        let key = Key::from(Place::of(&place)?.key);
        let is_left = || !mutant::lives(Mutant::ScanEndsEarly);
        let rest = || is_left().then(|| rest_from(range, &key, limits.reverse));
        if items.len() >= limits.keys_max || looked_at >= SCAN_LOOKS_MAX {
            return Ok(Portion {
                items,
                rest: rest(),
            });
        }
        let seen = if limits.keys_only {
            settle_key(view, slot, &key, &record, as_of)?
        } else {
            settle(view, slot, &key, record, as_of)?
        };
        let Seen::Present(versioned) = seen else {
            continue;
        };
        bytes += key.len() + versioned.value.len();
        if bytes > limits.bytes_max && !items.is_empty() {
            return Ok(Portion {
                items,
                rest: rest(),
            });
        }
        items.push(KeyValue { key, versioned });
    }
    Ok(Portion { items, rest: None })
}

/// What is left of a range when `key` is the next to be looked at.
fn rest_from(range: &KeyRange, key: &Key, reverse: bool) -> KeyRange {
    if reverse {
        KeyRange {
            start: range.start.clone(),
            end: Some(after(key)),
        }
    } else {
        KeyRange {
            start: key.clone(),
            end: range.end.clone(),
        }
    }
}

/// The next possible key.
fn after(key: &[u8]) -> Key {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Key::from(next)
}

/// The answer for a key whose newest version was `newest` a moment ago.
fn settle<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    newest: Vec<u8>,
    as_of: Timestamp,
) -> Result<Seen, MachineError> {
    let mut newest = Some(newest);
    let mut incomplete = None;
    while let Some(record) = newest {
        let Some(version) = in_force(view, slot, key, record, as_of)? else {
            return Ok(Seen::Absent);
        };
        let stamp = version.author.stamp;
        let value = match version.content {
            Content::Tombstone => return Ok(Seen::Absent),
            Content::Value(value) => Some(value),
            Content::Chunked { chunks, bytes } => {
                gather(view, slot, key, stamp, chunks, bytes as usize)?
            }
        };
        if let Some(value) = value {
            let version = stamp;
            return Ok(Seen::Present(Versioned { value, version }));
        }
        // Collected since it was found: then it is not found again.
        if incomplete == Some(stamp) {
            return Err(MachineError(format!(
                "a piece of the version {stamp} of key {} is missing",
                key.escape_ascii()
            )));
        }
        incomplete = Some(stamp);
        newest = view.get(&layout::newest(slot, key))?;
    }
    Ok(Seen::Absent)
}

/// As [`settle`], without the value.
fn settle_key<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    newest: &[u8],
    as_of: Timestamp,
) -> Result<Seen, MachineError> {
    let mut header = Some(Header::of(newest)?);
    if header.is_some_and(|header| header.author.stamp > as_of) {
        let older = older(view, slot, key, as_of)?;
        header = older.map(|record| Header::of(&record)).transpose()?;
    }
    Ok(match header {
        Some(header) if !header.is_tombstone() => Seen::Present(Versioned {
            value: Bytes::new(),
            version: header.author.stamp,
        }),
        _ => Seen::Absent,
    })
}

fn in_force<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    newest: Vec<u8>,
    as_of: Timestamp,
) -> Result<Option<Version>, MachineError> {
    if Header::of(&newest)?.author.stamp <= as_of {
        return Version::decode(newest.into()).map(Some);
    }
    match older(view, slot, key, as_of)? {
        Some(record) => Version::decode(record.into()).map(Some),
        None => Ok(None),
    }
}

fn older<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    as_of: Timestamp,
) -> Result<Option<Vec<u8>>, MachineError> {
    let (start, end) = layout::history_from(slot, key, as_of);
    match view.scan(&start, &end, false).next() {
        Some(pair) => Ok(Some(pair?.1)),
        None => Ok(None),
    }
}

/// A long value; `None` when a piece is not there.
fn gather<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    stamp: Timestamp,
    chunks: u32,
    bytes: usize,
) -> Result<Option<Bytes>, MachineError> {
    let start = layout::chunk(slot, key, stamp, 0);
    let end = layout::chunk(slot, key, stamp, chunks);
    let mut value = Vec::with_capacity(bytes.min(VALUE_BYTES_MAX));
    for piece in view.scan(&start, &end, false) {
        value.extend_from_slice(&piece?.1);
    }
    Ok((value.len() == bytes).then(|| Bytes::from(value)))
}

/// The version that a request made, among the key's older ones above `above`.
pub fn made_by<V: View + ?Sized>(
    view: &V,
    slot: Slot,
    key: &[u8],
    request: RequestId,
    above: Timestamp,
) -> Result<Option<Header>, MachineError> {
    let (start, _) = layout::history_from(slot, key, Timestamp::MAX);
    let end = layout::history(slot, key, above);
    for pair in view.scan(&start, &end, false) {
        let header = Header::of(&pair?.1)?;
        if header.author.request == request {
            return Ok(Some(header));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use crate::engine::Batch;
    use crate::engine::Engine;
    use crate::engine::MemoryEngine;
    use crate::engine::Overlay;
    use crate::mvcc::Author;
    use crate::mvcc::write::Current;

    use super::*;

    #[test]
    fn a_lost_piece_is_an_error_and_not_an_absent_key() {
        let engine = MemoryEngine::new();
        let mut overlay = Overlay::new(&engine);
        let author = Author {
            stamp: Timestamp(5),
            command: Timestamp(5),
            request: RequestId([0; 16]),
        };
        let current = Current::of(&overlay, Slot(1), b"key").unwrap();
        current.put(&mut overlay, author, &Bytes::from(vec![1; 20_000]));
        let batch = overlay.take_batch();
        engine.write(batch).unwrap();
        assert!(get(&engine, Slot(1), b"key", Timestamp(5)).is_ok());
        let mut loss = Batch::default();
        loss.delete(layout::chunk(Slot(1), b"key", Timestamp(5), 1));
        engine.write(loss).unwrap();
        let error = get(&engine, Slot(1), b"key", Timestamp(5)).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
        assert_eq!(
            get(&engine, Slot(1), b"key", Timestamp(4)).unwrap(),
            Seen::Absent
        );
    }
}
