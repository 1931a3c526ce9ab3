//! Removes versions and outcomes that nobody may ask for any more. Decides only.

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::layout::Slot;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::machine::MachineError;
use crate::mvcc::version::Header;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;

/// Below which stamps nothing is known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Floors {
    /// Reads below it are refused.
    pub history: Timestamp,
    /// Stored outcomes at or below it are forgotten.
    pub outcomes: Timestamp,
}

impl Floors {
    /// The lower of both.
    pub fn min(self, other: Floors) -> Floors {
        Floors {
            history: self.history.min(other.history),
            outcomes: self.outcomes.min(other.outcomes),
        }
    }
}

/// Versions or outcomes that one portion looks at.
pub const PORTION_LOOKS: usize = 2_000;

/// Changes after which a portion ends: one batch holds the engine's lock for all readers.
pub const PORTION_CHANGES: usize = 4_000;

/// Where a pass goes on. A key may have more old versions than a portion takes. The floor stays that of
/// the pass's first portion: with a higher one, a tombstone could go before all that it hides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    from: Vec<u8>,
    floor: Timestamp,
    run: Run,
}

/// What one portion came to.
#[derive(Debug)]
pub struct Collected {
    /// What to remove.
    pub batch: Batch,
    /// Where to go on; `None` at the end of the range.
    pub rest: Option<Cursor>,
}

/// The older versions of one key, as they come by: newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    key: Key,
    /// The version in force at the floor has come by: nobody sees what is older.
    settled: bool,
    /// A tombstone in force. It hides older versions, so it goes last.
    tombstone: Option<Vec<u8>>,
}

/// A portion of the older versions in a range, and of the tombstones in front of them.
pub fn versions(
    engine: &dyn Engine,
    slot: Slot,
    range: &KeyRange,
    floor: Timestamp,
    cursor: Option<Cursor>,
) -> Result<Collected, MachineError> {
    let mut batch = Batch::default();
    let (start, end) = layout::family(slot, Family::History, range);
    let (from, floor, mut run) = match cursor {
        Some(cursor) => (cursor.from, cursor.floor, cursor.run),
        None => (start, floor, Run::default()),
    };
    for (looked_at, pair) in engine.scan(&from, &end, false).enumerate() {
        let (place, record) = pair?;
        if looked_at >= PORTION_LOOKS || batch.changes.len() >= PORTION_CHANGES {
            let rest = Some(Cursor {
                from: place,
                floor,
                run,
            });
            return Ok(Collected { batch, rest });
        }
        let read = Place::of(&place)?;
        if run.key != read.key {
            run.finish(engine, slot, floor, &mut batch)?;
            run.key = Key::from(read.key);
        }
        run.take(engine, slot, floor, place, &record, &mut batch)?;
    }
    run.finish(engine, slot, floor, &mut batch)?;
    Ok(Collected { batch, rest: None })
}

impl Run {
    fn take(
        &mut self,
        engine: &dyn Engine,
        slot: Slot,
        floor: Timestamp,
        place: Vec<u8>,
        record: &[u8],
        batch: &mut Batch,
    ) -> Result<(), MachineError> {
        let header = Header::of(record)?;
        let stamp = header.author.stamp;
        if stamp > floor {
            return Ok(());
        }
        if !self.settled {
            self.settled = true;
            let newest = newest_header(engine, slot, &self.key)?;
            if newest.is_none_or(|newest| newest.author.stamp > floor) {
                self.tombstone = header.is_tombstone().then_some(place);
                return Ok(());
            }
        }
        for number in 0..header.chunks(record)? {
            batch.delete(layout::chunk(slot, &self.key, stamp, number));
        }
        batch.delete(place);
        Ok(())
    }

    /// All that a tombstone hid is gone: so it may go.
    fn finish(
        &mut self,
        engine: &dyn Engine,
        slot: Slot,
        floor: Timestamp,
        batch: &mut Batch,
    ) -> Result<(), MachineError> {
        let run = std::mem::take(self);
        if !run.settled {
            return Ok(());
        }
        if let Some(place) = run.tombstone {
            batch.delete(place);
        }
        let newest = newest_header(engine, slot, &run.key)?;
        if newest.is_some_and(|newest| newest.is_tombstone() && newest.author.stamp <= floor) {
            batch.delete(layout::newest(slot, &run.key));
        }
        Ok(())
    }
}

fn newest_header(
    engine: &dyn Engine,
    slot: Slot,
    key: &[u8],
) -> Result<Option<Header>, MachineError> {
    let record = engine.get(&layout::newest(slot, key))?;
    record.map(|record| Header::of(&record)).transpose()
}

/// A portion of the stored outcomes in a range; `forgotten` tells from the record.
pub fn outcomes(
    engine: &dyn Engine,
    slot: Slot,
    range: &KeyRange,
    forgotten: impl Fn(&[u8]) -> Result<bool, MachineError>,
    cursor: Option<Cursor>,
) -> Result<Collected, MachineError> {
    let mut batch = Batch::default();
    let (start, end) = layout::family(slot, Family::Outcome, range);
    let from = cursor.map_or(start, |cursor| cursor.from);
    for (looked_at, pair) in engine.scan(&from, &end, false).enumerate() {
        let (place, record) = pair?;
        if looked_at >= PORTION_LOOKS {
            let rest = Some(Cursor {
                from: place,
                floor: Timestamp::ZERO,
                run: Run::default(),
            });
            return Ok(Collected { batch, rest });
        }
        if forgotten(&record)? {
            batch.delete(place);
        }
    }
    Ok(Collected { batch, rest: None })
}
