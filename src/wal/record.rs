//! What the log's records say, and how they are laid out in the frames of `codec/record.rs`.
//! Decides only.
//!
//! | kind | body |
//! |---|---|
//! | 1 mark | end of what was synced before this write, u64 |
//! | 2 entries | first index u64, count u32, then of each: term u64, kind u8, length u32, payload |
//! | 3 vote | term u64, replica u64, committed u8 |
//! | 4 truncate | last position that stays |
//! | 5 purge | last position that goes |
//! | 6 born | what was said about it |
//! | 7 gone | |
//! | 8 copied entries | as entries |
//! | 9 copied state | purge point, vote, what was said at birth |
//!
//! A position that may be missing is a u8 (0 or 1) and, if 1, term u64 and index u64; a vote alike.

use bytes::Buf as _;
use bytes::Bytes;

use crate::codec::record;
use crate::codec::record::FRAME_BYTES;
use crate::codec::record::Frame;
use crate::codec::record::Place;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;

/// Version of the format of all records and segment headers.
pub(super) const FORMAT: u8 = 1;
/// Bytes of a mark's record.
pub(super) const MARK_BYTES: usize = FRAME_BYTES + 8;
/// Bytes of a record of entries without any.
pub(super) const ENTRIES_BYTES: usize = FRAME_BYTES + 12;
/// Bytes of an entry in such a record beside its payload.
pub(super) const ENTRY_BYTES: usize = 13;

/// One fact about a replica's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Begins each write: everything before it is synced.
    Mark { synced: u64 },
    /// Stands behind what is before the first, and in place of all that was at or behind it.
    Entries(Vec<LogEntry>),
    /// Replaces the vote.
    Vote(Vote),
    /// Nothing stays behind this position.
    Truncate(Option<Position>),
    /// Nothing stays up to this position.
    Purge(Position),
    /// The replica exists.
    Born(Bytes),
    /// It does not any more, and never will again.
    Gone,
    /// The same entries as before, at a new place. Takes nothing away.
    CopiedEntries(Vec<LogEntry>),
    /// The same state as before, at a new place. Takes nothing away.
    CopiedState {
        purged: Option<Position>,
        vote: Option<Vote>,
        about: Bytes,
    },
}

const MARK: u8 = 1;

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Mark { .. } => MARK,
            Record::Entries(_) => 2,
            Record::Vote(_) => 3,
            Record::Truncate(_) => 4,
            Record::Purge(_) => 5,
            Record::Born(_) => 6,
            Record::Gone => 7,
            Record::CopiedEntries(_) => 8,
            Record::CopiedState { .. } => 9,
        }
    }

    /// Bytes that [`Record::encode`] appends.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Record::Mark { .. } => MARK_BYTES,
            Record::Entries(entries) | Record::CopiedEntries(entries) => {
                ENTRIES_BYTES + entries.iter().map(entry_bytes).sum::<usize>()
            }
            Record::Vote(_) => FRAME_BYTES + 17,
            Record::Truncate(last) => FRAME_BYTES + option_bytes(last.is_some(), 16),
            Record::Purge(_) => FRAME_BYTES + 16,
            Record::Born(about) => FRAME_BYTES + about.len(),
            Record::Gone => FRAME_BYTES,
            Record::CopiedState {
                purged,
                vote,
                about,
            } => {
                let fixed = option_bytes(purged.is_some(), 16) + option_bytes(vote.is_some(), 17);
                FRAME_BYTES + fixed + about.len()
            }
        }
    }

    pub(super) fn encode(&self, buffer: &mut Vec<u8>, place: Place, replica: ReplicaId) {
        record::encode(buffer, place, FORMAT, self.kind(), replica.0, |body| {
            self.encode_body(body);
        });
    }

    fn encode_body(&self, body: &mut Vec<u8>) {
        match self {
            Record::Mark { synced } => body.extend_from_slice(&synced.to_le_bytes()),
            Record::Entries(entries) | Record::CopiedEntries(entries) => put_entries(body, entries),
            Record::Vote(vote) => put_vote(body, vote),
            Record::Truncate(last) => put_option(body, last.as_ref(), put_position),
            Record::Purge(upto) => put_position(body, upto),
            Record::Born(about) => body.extend_from_slice(about),
            Record::Gone => {}
            Record::CopiedState {
                purged,
                vote,
                about,
            } => {
                put_option(body, purged.as_ref(), put_position);
                put_option(body, vote.as_ref(), put_vote);
                body.extend_from_slice(about);
            }
        }
    }

    /// Reads a frame that has passed its check. An error is our own writing that we cannot read, or
    /// a newer program's.
    pub(super) fn decode(frame: &Frame) -> Result<Record, Unreadable> {
        if frame.version != FORMAT {
            return Err(Unreadable::Version(frame.version));
        }
        let mut body = frame.body.clone();
        let record = match frame.kind {
            MARK => take_u64(&mut body).map(|synced| Record::Mark { synced }),
            2 => take_entries(&mut body).map(Record::Entries),
            3 => take_vote(&mut body).map(Record::Vote),
            4 => take_option(&mut body, take_position).map(Record::Truncate),
            5 => take_position(&mut body).map(Record::Purge),
            6 => Some(Record::Born(take_rest(&mut body))),
            7 => Some(Record::Gone),
            8 => take_entries(&mut body).map(Record::CopiedEntries),
            9 => take_state(&mut body),
            kind => return Err(Unreadable::Kind(kind)),
        };
        record
            .filter(|_| body.is_empty())
            .ok_or(Unreadable::Body(frame.kind))
    }
}

/// A frame that is whole and yet says nothing that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("a record of format version {0}; this program reads version {FORMAT}")]
    Version(u8),
    #[error("a record of the unknown kind {0}")]
    Kind(u8),
    #[error("a record of kind {0} with another length than such a record has")]
    Body(u8),
}

/// Bytes of an entry in a record.
pub(super) fn entry_bytes(entry: &LogEntry) -> usize {
    ENTRY_BYTES + entry.payload.bytes().len()
}

/// Whether a write of this file begins somewhere in `bytes`, which stand at `from`: then everything
/// before it was synced. Says where.
pub(super) fn find_mark(bytes: &Bytes, from: Place) -> Option<u64> {
    let mut start = 0;
    while start + MARK_BYTES <= bytes.len() {
        // Most of a segment that was never full is zeros, and comparing blocks is fast.
        if bytes[start..].starts_with(ZEROS) {
            start += ZEROS.len();
            continue;
        }
        let block = start..(start + ZEROS.len()).min(bytes.len() - MARK_BYTES + 1);
        start = block.end;
        for at in block {
            if is_mark(bytes, at, from) {
                return Some(from.offset + at as u64);
            }
        }
    }
    None
}

fn is_mark(bytes: &Bytes, at: usize, from: Place) -> bool {
    if bytes[at] != MARK_LENGTH.to_le_bytes()[0] || bytes[at + 9] != MARK {
        return false;
    }
    let place = Place {
        offset: from.offset + at as u64,
        ..from
    };
    let window = bytes.slice(at..at + MARK_BYTES);
    matches!(record::decode(&window, place), Ok(Some(frame)) if frame.kind == MARK)
}

/// No mark begins with so many zeros, and none ends in them: skipping them skips no mark.
const ZEROS: &[u8] = &[0; 4096];
const MARK_LENGTH: u32 = 26;
const _: () = assert!(MARK_BYTES == 26);

fn option_bytes(present: bool, bytes: usize) -> usize {
    1 + if present { bytes } else { 0 }
}

fn put_option<T>(body: &mut Vec<u8>, value: Option<&T>, put: fn(&mut Vec<u8>, &T)) {
    body.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(body, value);
    }
}

fn put_position(body: &mut Vec<u8>, position: &Position) {
    body.extend_from_slice(&position.term.to_le_bytes());
    body.extend_from_slice(&position.index.to_le_bytes());
}

fn put_vote(body: &mut Vec<u8>, vote: &Vote) {
    body.extend_from_slice(&vote.term.to_le_bytes());
    body.extend_from_slice(&vote.replica.0.to_le_bytes());
    body.push(u8::from(vote.committed));
}

fn put_entries(body: &mut Vec<u8>, entries: &[LogEntry]) {
    let first = entries.first().map_or(0, |entry| entry.position.index);
    let count = u32::try_from(entries.len()).expect("a record's entries are few");
    body.extend_from_slice(&first.to_le_bytes());
    body.extend_from_slice(&count.to_le_bytes());
    for entry in entries {
        let (kind, payload) = match &entry.payload {
            Payload::Blank => (0, &[][..]),
            Payload::Command(bytes) => (1, &bytes[..]),
            Payload::Membership(bytes) => (2, &bytes[..]),
        };
        let length = u32::try_from(payload.len()).expect("an entry fits in a segment");
        body.extend_from_slice(&entry.position.term.to_le_bytes());
        body.push(kind);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(payload);
    }
}

fn take_u64(body: &mut Bytes) -> Option<u64> {
    body.try_get_u64_le().ok()
}

fn take_rest(body: &mut Bytes) -> Bytes {
    body.split_to(body.len())
}

fn take_option<T>(body: &mut Bytes, take: fn(&mut Bytes) -> Option<T>) -> Option<Option<T>> {
    match body.try_get_u8().ok()? {
        0 => Some(None),
        1 => take(body).map(Some),
        _ => None,
    }
}

fn take_position(body: &mut Bytes) -> Option<Position> {
    let term = take_u64(body)?;
    let index = take_u64(body)?;
    Some(Position { term, index })
}

fn take_vote(body: &mut Bytes) -> Option<Vote> {
    let term = take_u64(body)?;
    let replica = ReplicaId(take_u64(body)?);
    let committed = match body.try_get_u8().ok()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Vote {
        term,
        replica,
        committed,
    })
}

fn take_state(body: &mut Bytes) -> Option<Record> {
    Some(Record::CopiedState {
        purged: take_option(body, take_position)?,
        vote: take_option(body, take_vote)?,
        about: take_rest(body),
    })
}

fn take_entries(body: &mut Bytes) -> Option<Vec<LogEntry>> {
    let first = take_u64(body)?;
    let count = body.try_get_u32_le().ok()?;
    let mut entries = Vec::new();
    for nth in 0..u64::from(count) {
        let index = first.checked_add(nth)?;
        entries.push(take_entry(body, index)?);
    }
    Some(entries)
}

fn take_entry(body: &mut Bytes, index: u64) -> Option<LogEntry> {
    let term = take_u64(body)?;
    let kind = body.try_get_u8().ok()?;
    let length = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
    if length > body.len() {
        return None;
    }
    let bytes = body.split_to(length);
    let payload = match kind {
        0 if bytes.is_empty() => Payload::Blank,
        1 => Payload::Command(bytes),
        2 => Payload::Membership(bytes),
        _ => return None,
    };
    let position = Position { term, index };
    Some(LogEntry { position, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        file: 3,
        offset: 512,
    };

    fn position(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    fn one_of_each() -> Vec<Record> {
        let vote = Vote {
            term: 4,
            replica: ReplicaId(9),
            committed: true,
        };
        let entries = vec![
            LogEntry {
                position: position(3, 10),
                payload: Payload::Blank,
            },
            LogEntry {
                position: position(4, 11),
                payload: Payload::Command(Bytes::from_static(b"put")),
            },
            LogEntry {
                position: position(4, 12),
                payload: Payload::Membership(Bytes::from_static(b"")),
            },
        ];
        vec![
            Record::Mark { synced: 512 },
            Record::Entries(entries.clone()),
            Record::Vote(vote),
            Record::Truncate(None),
            Record::Truncate(Some(position(1, 2))),
            Record::Purge(position(3, 4)),
            Record::Born(Bytes::from_static(b"by split")),
            Record::Gone,
            Record::CopiedEntries(entries),
            Record::CopiedState {
                purged: Some(position(5, 6)),
                vote: Some(vote),
                about: Bytes::new(),
            },
        ]
    }

    #[test]
    fn every_kind_is_read_back_and_has_the_size_it_says() {
        for record in one_of_each() {
            let mut buffer = Vec::new();
            record.encode(&mut buffer, PLACE, ReplicaId(7));
            assert_eq!(buffer.len(), record.bytes(), "{record:?}");
            let frame = record::decode(&buffer.into(), PLACE).unwrap().unwrap();
            assert_eq!(frame.owner, 7);
            assert_eq!(Record::decode(&frame), Ok(record));
        }
    }

    /// The first version's bytes, kept as an example: what is on disks must stay readable.
    #[test]
    fn the_stored_format_has_not_changed() {
        let mut buffer = Vec::new();
        one_of_each()[1].encode(&mut buffer, PLACE, ReplicaId(7));
        let hex: String = buffer.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FIRST_VERSION);
    }

    const FIRST_VERSION: &str = "48000000c2a1e975010207000000000000000a00000000000000\
        03000000030000000000000000000000000400000000000000010300000070757404000000000000000200000000";

    #[test]
    fn a_body_that_is_too_long_too_short_or_of_no_known_kind_is_refused() {
        let frame = |version, kind, body: &'static [u8]| Frame {
            version,
            kind,
            owner: 1,
            body: Bytes::from_static(body),
        };
        assert_eq!(
            Record::decode(&frame(2, 7, b"")),
            Err(Unreadable::Version(2))
        );
        assert_eq!(
            Record::decode(&frame(1, 99, b"")),
            Err(Unreadable::Kind(99))
        );
        assert_eq!(Record::decode(&frame(1, 7, b"x")), Err(Unreadable::Body(7)));
        assert_eq!(Record::decode(&frame(1, 1, b"x")), Err(Unreadable::Body(1)));
        let many = b"\0\0\0\0\0\0\0\0\xff\xff\xff\xff";
        assert_eq!(Record::decode(&frame(1, 2, many)), Err(Unreadable::Body(2)));
    }

    #[test]
    fn a_mark_is_found_only_at_its_own_place() {
        let mut buffer = vec![7; 30];
        let place = Place {
            offset: PLACE.offset + 30,
            ..PLACE
        };
        Record::Mark { synced: 1 }.encode(&mut buffer, place, ReplicaId(0));
        let bytes = Bytes::from(buffer);
        assert_eq!(find_mark(&bytes, PLACE), Some(place.offset));
        let shifted = Place { offset: 0, ..PLACE };
        assert_eq!(find_mark(&bytes, shifted), None);
    }
}
