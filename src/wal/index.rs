//! Where everything that still counts stands in the log. Decides only.
//!
//! The index of a replica is what its records say, applied in the order of the log; the writer and
//! recovery apply them with the same function. While recovery reads a log whose oldest segments are
//! gone, an index may have holes: entries copied forward come behind their successors. At the end it
//! has none, or the log is damaged.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::Position;
use crate::types::log::LogEntry;
use crate::types::log::Vote;
use crate::wal::record::Record;
use crate::wal::record::entry_bytes;

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u64,
    pub(super) offset: u32,
    /// Length of the whole record.
    pub(super) bytes: u32,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// The record that holds it, maybe with its neighbours.
    pub(super) location: Location,
    pub(super) term: u64,
    /// Its own share of the record.
    pub(super) bytes: u32,
}

/// How much in each segment still counts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Live {
    segments: BTreeMap<u64, Count>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    items: u64,
    bytes: u64,
}

impl Live {
    /// The oldest segment with anything in it that counts.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.segments.keys().next().copied()
    }

    /// Bytes that count, in all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|count| count.bytes).sum()
    }

    fn add(&mut self, segment: u64, bytes: u32) {
        let count = self.segments.entry(segment).or_default();
        count.items += 1;
        count.bytes += u64::from(bytes);
    }

    fn take(&mut self, segment: u64, bytes: u32) {
        let count = self.segments.get_mut(&segment);
        let count = count.expect("what counts was added when it was written");
        count.items -= 1;
        count.bytes -= u64::from(bytes);
        if count.items == 0 {
            assert!(
                count.bytes == 0,
                "segment {segment} counts bytes of nothing"
            );
            self.segments.remove(&segment);
        }
    }
}

/// What the log says of one replica.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Index {
    born: Option<(Bytes, Location)>,
    gone: Option<Location>,
    vote: Option<(Vote, Location)>,
    purged: Option<(Position, Location)>,
    entries: BTreeMap<u64, Slot>,
}

impl Index {
    /// What was said at its birth; `None` before that.
    pub(super) fn about(&self) -> Option<&Bytes> {
        self.born.as_ref().map(|(about, _)| about)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.vote.map(|(vote, _)| vote)
    }

    pub(super) fn purged(&self) -> Option<Position> {
        self.purged.map(|(purged, _)| purged)
    }

    /// The last entry, or else the purge point.
    pub(super) fn last(&self) -> Option<Position> {
        let last = self.entries.last_key_value().map(|(index, slot)| Position {
            term: slot.term,
            index: *index,
        });
        last.or(self.purged())
    }

    /// Index of the first entry.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.keys().next().copied()
    }

    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        self.entries.get(&index).copied()
    }

    /// The first entry at or behind `from` that stands in `segment`.
    pub(super) fn entry_in(&self, segment: u64, from: u64) -> Option<u64> {
        let behind = self.entries.range(from..);
        let mut inside = behind.filter(|(_, slot)| slot.location.segment == segment);
        inside.next().map(|(index, _)| *index)
    }

    /// The last entry behind the newest ones that have at most so many entries and bytes; 0 if none is.
    pub(super) fn purgeable(&self, entries_kept: u64, bytes_kept: u64) -> u64 {
        let (mut entries, mut bytes) = (0, 0);
        let surplus = self.entries.iter().rev().find(|(_, slot)| {
            entries += 1;
            bytes += u64::from(slot.bytes);
            entries > entries_kept || bytes > bytes_kept
        });
        surplus.map_or(0, |(index, _)| *index)
    }

    /// What, beside entries, stands in `segment` and must stand in a newer one before that goes.
    pub(super) fn state_in(&self, segment: u64) -> Option<Record> {
        let inside = |location: &Location| location.segment == segment;
        if let Some(gone) = &self.gone {
            return inside(gone).then_some(Record::Gone);
        }
        let born = self.born.as_ref().is_some_and(|(_, at)| inside(at));
        let vote = self.vote.as_ref().is_some_and(|(_, at)| inside(at));
        let purged = self.purged.as_ref().is_some_and(|(_, at)| inside(at));
        (born || vote || purged).then(|| Record::CopiedState {
            purged: self.purged(),
            vote: self.vote(),
            about: self.about().cloned().unwrap_or_default(),
        })
    }

    /// Takes in the next record of the log.
    pub(super) fn apply(&mut self, record: &Record, location: Location, live: &mut Live) {
        if self.is_gone() && *record != Record::Gone {
            return;
        }
        match record {
            Record::Mark { .. } => {}
            Record::Entries(entries) => {
                self.remove_behind(entries, live);
                self.place(entries, location, live);
            }
            Record::CopiedEntries(entries) => {
                if mutant::lives(Mutant::CopiesTruncate) {
                    self.remove_behind(entries, live);
                }
                self.place(entries, location, live);
            }
            Record::Vote(vote) => self.set_vote(*vote, location, live),
            Record::Truncate(None) => self.remove_from(0, live),
            Record::Truncate(Some(last)) => self.remove_from(last.index.saturating_add(1), live),
            Record::Purge(upto) => self.set_purged(*upto, location, live),
            Record::Born(about) => self.set_born(about.clone(), location, live),
            Record::Gone => self.set_gone(location, live),
            Record::CopiedState {
                purged,
                vote,
                about,
            } => {
                self.set_born(about.clone(), location, live);
                if let Some(vote) = vote {
                    self.set_vote(*vote, location, live);
                }
                if let Some(purged) = purged {
                    self.set_purged(*purged, location, live);
                }
            }
        }
    }

    /// What is wrong with it after the whole log has been read.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.is_gone() {
            return Ok(());
        }
        if self.born.is_none() {
            return Err("it has records and was never born".to_string());
        }
        let mut last = self.purged().map(|purged| purged.index);
        for index in self.entries.keys() {
            // Behind the highest number there is none, and none is needed.
            let expected = last.and_then(|last| last.checked_add(1));
            if let Some(expected) = expected.filter(|expected| expected != index) {
                return Err(format!("entry {expected} is missing before entry {index}"));
            }
            last = Some(*index);
        }
        Ok(())
    }

    fn place(&mut self, entries: &[LogEntry], location: Location, live: &mut Live) {
        let purged = self.purged().map(|purged| purged.index);
        for entry in entries {
            let index = entry.position.index;
            if purged.is_some_and(|purged| index <= purged) {
                continue;
            }
            let bytes = u32::try_from(entry_bytes(entry)).expect("an entry fits in a segment");
            let slot = Slot {
                location,
                term: entry.position.term,
                bytes,
            };
            live.add(location.segment, bytes);
            if let Some(old) = self.entries.insert(index, slot) {
                live.take(old.location.segment, old.bytes);
            }
        }
    }

    /// Removes what stood where these entries come to stand, and all behind that.
    fn remove_behind(&mut self, entries: &[LogEntry], live: &mut Live) {
        if let Some(first) = entries.first() {
            self.remove_from(first.position.index, live);
        }
    }

    fn remove_from(&mut self, first: u64, live: &mut Live) {
        for slot in self.entries.split_off(&first).into_values() {
            live.take(slot.location.segment, slot.bytes);
        }
    }

    fn set_vote(&mut self, vote: Vote, location: Location, live: &mut Live) {
        live.add(location.segment, STATE_BYTES);
        if let Some((_, old)) = self.vote.replace((vote, location)) {
            live.take(old.segment, STATE_BYTES);
        }
    }

    fn set_purged(&mut self, upto: Position, location: Location, live: &mut Live) {
        live.add(location.segment, STATE_BYTES);
        if let Some((_, old)) = self.purged.replace((upto, location)) {
            live.take(old.segment, STATE_BYTES);
        }
        let kept = self.entries.split_off(&upto.index.saturating_add(1));
        for slot in std::mem::replace(&mut self.entries, kept).into_values() {
            live.take(slot.location.segment, slot.bytes);
        }
    }

    fn set_born(&mut self, about: Bytes, location: Location, live: &mut Live) {
        live.add(location.segment, STATE_BYTES);
        // What recovery has read is a slice of a whole segment, which it would keep in memory.
        let about = Bytes::copy_from_slice(&about);
        if let Some((_, old)) = self.born.replace((about, location)) {
            live.take(old.segment, STATE_BYTES);
        }
    }

    fn set_gone(&mut self, location: Location, live: &mut Live) {
        live.add(location.segment, STATE_BYTES);
        let marks = [
            self.gone.replace(location),
            self.born.take().map(|(_, old)| old),
            self.vote.take().map(|(_, old)| old),
            self.purged.take().map(|(_, old)| old),
        ];
        for old in marks.into_iter().flatten() {
            live.take(old.segment, STATE_BYTES);
        }
        self.remove_from(0, live);
    }
}

/// What a vote, purge point or mark is reckoned at when segments are weighed.
const STATE_BYTES: u32 = 64;
