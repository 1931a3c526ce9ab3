//! Goes through a replica's state as of one position, while entries are applied. Decides only.
//!
//! Of each key it takes the versions at or below the position's stamp that a reader at or above the
//! floor can see, and nothing else: not what was written since, and not what collection might have
//! removed here and not there. So equal replicas give the same pairs in the same order.
//!
//! The newest versions of a portion of keys are read first, their history after that. A version at or
//! below the stamp is in one of the two: either it was still the newest when that was read, or it had
//! been moved into history before. The pin keeps both from being collected.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::layout::Slot;
use crate::engine::Engine;
use crate::engine::Pair;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::mvcc::Floors;
use crate::mvcc::version::Header;
use crate::shard::apply::decode_outcome;
use crate::shard::read::ReadError;
use crate::shard::read::ShardReader;
use crate::shard::row::Piece;
use crate::shard::row::Row;
use crate::shard::slots::Pin;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::wire::request::Portion;

/// Keys whose newest versions are read at once.
const KEYS_AT_ONCE: usize = 256;

/// Bytes after which a portion ends; one version with its pieces may go beyond.
const PORTION_BYTES: usize = 256 * 1024;

/// Records looked at after which a portion ends, even without a pair.
const PORTION_LOOKS: usize = 4_096;

/// A walk through one replica's state. Dropping it lets collection go on.
pub(crate) struct Walk {
    engine: Arc<dyn Engine>,
    row: Arc<Row>,
    _pin: Pin,
    /// What is left to walk.
    keys: VecDeque<Piece>,
    outcomes: VecDeque<Outcomes>,
    group: Option<Group>,
}

struct Outcomes {
    from: Vec<u8>,
    end: Vec<u8>,
}

impl Outcomes {
    fn of(piece: &Piece) -> Outcomes {
        let (from, end) = layout::family(piece.slot, Family::Outcome, &piece.range);
        Outcomes { from, end }
    }
}

/// Some keys whose newest versions were read, and where their history goes on.
struct Group {
    slot: Slot,
    newest: VecDeque<(Key, Vec<u8>)>,
    history_from: Vec<u8>,
    history_end: Vec<u8>,
    run: Run,
}

/// The front key of a group, as its versions come by: newest first.
#[derive(Default)]
struct Run {
    begun: bool,
    /// The last version taken.
    last: Option<Timestamp>,
    /// The one in force at the floor has come by.
    settled: bool,
}

impl Walk {
    /// Fixes the position: that of the row now.
    pub(crate) fn begin(reader: &ShardReader) -> Walk {
        loop {
            // Pinned before the row is read, so that nothing above that row's floors is collected;
            // with the lowest floors until they are known.
            let pieces = reader.row().pieces.clone();
            let pin = reader.slots().pin(pieces.clone(), Floors::default());
            let row = reader.row();
            if row.pieces != pieces {
                continue;
            }
            pin.raise(row.floors);
            return Walk {
                engine: reader.engine().clone(),
                keys: pieces.iter().cloned().collect(),
                outcomes: pieces.iter().map(Outcomes::of).collect(),
                group: None,
                row,
                _pin: pin,
            };
        }
    }

    /// Fixes a moment that others have too, and some keys.
    pub(crate) fn through(reader: &ShardReader, portion: &Portion) -> Result<Walk, ReadError> {
        let mut walk = Walk::begin(reader);
        let row = &walk.row;
        if !row.descriptor.range.covers(&portion.range) {
            let descriptor = Box::new(row.descriptor.clone());
            return Err(ReadError::OutOfBounds { descriptor });
        }
        if row.last_stamp < portion.as_of {
            let (as_of, applied) = (portion.as_of, row.last_stamp);
            return Err(ReadError::NotYet { as_of, applied });
        }
        if row.horizon() > portion.floor {
            let (as_of, oldest) = (portion.floor, row.horizon());
            return Err(ReadError::TooOld { as_of, oldest });
        }
        // The pin holds what is above the replica's own floors, and these are higher.
        let floors = Floors {
            history: portion.floor,
            outcomes: portion.floor,
        };
        let pieces = row.pieces_in(&portion.range);
        walk.row = Arc::new(Row {
            last_stamp: portion.as_of,
            floors,
            ..(**row).clone()
        });
        walk.outcomes = pieces.iter().map(Outcomes::of).collect();
        walk.keys = pieces.into();
        Ok(walk)
    }

    /// The row at the position.
    pub(crate) fn row(&self) -> &Row {
        &self.row
    }

    /// The next pairs, their keys without the slot; maybe none. `None` at the end.
    pub(crate) fn portion(&mut self) -> Result<Option<Vec<Pair>>, MachineError> {
        if let Some(group) = self.group.take() {
            return self.group_portion(group).map(Some);
        }
        if let Some(piece) = self.keys.pop_front() {
            self.group = self.next_group(piece)?;
            return Ok(Some(Vec::new()));
        }
        match self.outcomes.pop_front() {
            Some(outcomes) => self.outcomes_portion(outcomes).map(Some),
            None => Ok(None),
        }
    }

    fn next_group(&mut self, piece: Piece) -> Result<Option<Group>, MachineError> {
        let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
        let mut newest = VecDeque::new();
        for pair in self.engine.scan(&start, &end, false) {
            let (place, record) = pair?;
            let key = Key::from(Place::of(&place)?.key);
            if newest.len() == KEYS_AT_ONCE {
                let range = KeyRange {
                    start: key,
                    end: piece.range.end.clone(),
                };
                let slot = piece.slot;
                self.keys.push_front(Piece { range, slot });
                break;
            }
            newest.push_back((key, record));
        }
        let (Some((first, _)), Some((last, _))) = (newest.front(), newest.back()) else {
            return Ok(None);
        };
        let (history_from, _) = layout::history_from(piece.slot, first, Timestamp::MAX);
        let (_, history_end) = layout::history_from(piece.slot, last, Timestamp::MAX);
        Ok(Some(Group {
            slot: piece.slot,
            newest,
            history_from,
            history_end,
            run: Run::default(),
        }))
    }

    fn group_portion(&mut self, mut group: Group) -> Result<Vec<Pair>, MachineError> {
        let mut out = Output::default();
        let history = self
            .engine
            .scan(&group.history_from, &group.history_end, false);
        for (looked_at, pair) in history.enumerate() {
            let (place, record) = pair?;
            if looked_at >= PORTION_LOOKS || out.bytes >= PORTION_BYTES {
                group.history_from = place;
                self.group = Some(group);
                return Ok(out.pairs);
            }
            let key = Place::of(&place)?.key;
            while group.front_is_before(Some(&key)) {
                if out.bytes >= PORTION_BYTES {
                    group.history_from = place;
                    self.group = Some(group);
                    return Ok(out.pairs);
                }
                self.finish_front(&mut group, &mut out)?;
            }
            if group.front_is(&key) {
                self.begin_front(&mut group, &mut out)?;
                self.take(group.slot, &key, &mut group.run, record, &mut out)?;
            }
        }
        while group.front_is_before(None) {
            if out.bytes >= PORTION_BYTES {
                group.history_from = group.history_end.clone();
                self.group = Some(group);
                return Ok(out.pairs);
            }
            self.finish_front(&mut group, &mut out)?;
        }
        Ok(out.pairs)
    }

    fn begin_front(&self, group: &mut Group, out: &mut Output) -> Result<(), MachineError> {
        if group.run.begun {
            return Ok(());
        }
        group.run.begun = true;
        let Some((key, record)) = group.newest.front_mut() else {
            return Ok(());
        };
        let record = std::mem::take(record);
        self.take(group.slot, key, &mut group.run, record, out)
    }

    fn finish_front(&self, group: &mut Group, out: &mut Output) -> Result<(), MachineError> {
        self.begin_front(group, out)?;
        group.newest.pop_front();
        group.run = Run::default();
        Ok(())
    }

    /// Takes a version if it belongs to the state.
    fn take(
        &self,
        slot: Slot,
        key: &[u8],
        run: &mut Run,
        record: Vec<u8>,
        out: &mut Output,
    ) -> Result<(), MachineError> {
        let header = Header::of(&record)?;
        let stamp = header.author.stamp;
        // Read as the newest and, moved meanwhile, in history again.
        let is_known = run.last == Some(stamp);
        let is_later = stamp > self.row.last_stamp && !mutant::lives(Mutant::SnapshotRunsAhead);
        if run.settled || is_known || is_later {
            return Ok(());
        }
        run.settled = stamp <= self.row.floors.history;
        if run.settled && header.is_tombstone() {
            return Ok(());
        }
        let place = match run.last {
            None => layout::newest(slot, key),
            Some(_) => layout::history(slot, key, stamp),
        };
        run.last = Some(stamp);
        let chunks = header.chunks(&record)?;
        out.push(&place, record);
        self.take_chunks(slot, key, stamp, chunks, out)
    }

    fn take_chunks(
        &self,
        slot: Slot,
        key: &[u8],
        stamp: Timestamp,
        chunks: u32,
        out: &mut Output,
    ) -> Result<(), MachineError> {
        if chunks == 0 {
            return Ok(());
        }
        let start = layout::chunk(slot, key, stamp, 0);
        let end = layout::chunk(slot, key, stamp, chunks);
        let mut found = 0;
        for pair in self.engine.scan(&start, &end, false) {
            let (place, piece) = pair?;
            out.push(&place, piece);
            found += 1;
        }
        if found != chunks {
            return Err(MachineError(format!(
                "{found} of the {chunks} pieces of the version {stamp} of key {} are there",
                key.escape_ascii()
            )));
        }
        Ok(())
    }

    fn outcomes_portion(&mut self, mut outcomes: Outcomes) -> Result<Vec<Pair>, MachineError> {
        let mut out = Output::default();
        let pairs = self.engine.scan(&outcomes.from, &outcomes.end, false);
        for (looked_at, pair) in pairs.enumerate() {
            let (place, record) = pair?;
            if looked_at >= PORTION_LOOKS || out.bytes >= PORTION_BYTES {
                outcomes.from = place;
                self.outcomes.push_front(outcomes);
                return Ok(out.pairs);
            }
            let (stamp, _) = decode_outcome(&record)?;
            if stamp > self.row.horizon() && stamp <= self.row.last_stamp {
                out.push(&place, record);
            }
        }
        Ok(out.pairs)
    }
}

impl Group {
    fn front_is(&self, key: &[u8]) -> bool {
        matches!(self.newest.front(), Some((front, _)) if *front == *key)
    }

    /// `None` is behind every key.
    fn front_is_before(&self, key: Option<&[u8]>) -> bool {
        match (self.newest.front(), key) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some((front, _)), Some(key)) => **front < *key,
        }
    }
}

#[derive(Default)]
struct Output {
    pairs: Vec<Pair>,
    bytes: usize,
}

impl Output {
    fn push(&mut self, place: &[u8], record: Vec<u8>) {
        let place = layout::without_slot(place).to_vec();
        self.bytes += place.len() + record.len();
        self.pairs.push((place, record));
    }
}
