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

/// Changes after which a portion ends: one batch holds the engine's lock, for all who write.
const PORTION_CHANGES: usize = 256;
/// Bytes looked at after which a portion ends: the replica applies nothing meanwhile.
const PORTION_BYTES: usize = 256 * 1024;

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

/// How much a portion has looked at.
#[derive(Default)]
struct Looked {
    records: usize,
    bytes: usize,
}

impl Looked {
    fn at(&mut self, record: &[u8]) {
        self.records += 1;
        self.bytes += record.len();
    }

    fn is_enough(&self, records_max: usize, batch: &Batch) -> bool {
        self.records >= records_max
            || self.bytes >= PORTION_BYTES
            || batch.changes.len() >= PORTION_CHANGES
    }
}

/// The older versions of one key, as they come by: newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    key: Key,
    /// The version in force at the floor has come by: nobody sees what is older.
    settled: bool,
    /// A tombstone in force. It hides older versions, so it goes last.
    tombstone: Option<Vec<u8>>,
    /// The oldest that was found to go. It goes with the tombstone that hides it: a pass finds a key by
    /// its older versions, so one that a restart cuts short leaves the next pass something to find.
    oldest: Option<Older>,
}

/// A version that nobody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Older {
    place: Vec<u8>,
    stamp: Timestamp,
    chunks: u32,
}

impl Older {
    fn remove(self, slot: Slot, key: &[u8], batch: &mut Batch) {
        for number in 0..self.chunks {
            batch.delete(layout::chunk(slot, key, self.stamp, number));
        }
        batch.delete(self.place);
    }
}

/// A portion of the older versions in a range, and of the tombstones in front of them; looks at
/// `looks` (at least 1) versions.
pub fn versions(
    engine: &dyn Engine,
    slot: Slot,
    range: &KeyRange,
    floor: Timestamp,
    cursor: Option<Cursor>,
    looks: usize,
) -> Result<Collected, MachineError> {
    let mut batch = Batch::default();
    let (start, end) = layout::family(slot, Family::History, range);
    let (from, floor, mut run) = match cursor {
        Some(cursor) => (cursor.from, cursor.floor, cursor.run),
        None => (start, floor, Run::default()),
    };
    let mut looked = Looked::default();
    for pair in engine.scan(&from, &end, false) {
        let (place, record) = pair?;
        if looked.is_enough(looks, &batch) {
            let rest = Some(Cursor {
                from: place,
                floor,
                run,
            });
            return Ok(Collected { batch, rest });
        }
        looked.at(&record);
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
        let older = Older {
            place,
            stamp,
            chunks: header.chunks(record)?,
        };
        if let Some(newer) = self.oldest.replace(older) {
            newer.remove(slot, &self.key, batch);
        }
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
        if let Some(oldest) = run.oldest {
            oldest.remove(slot, &run.key, batch);
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

/// A portion of the stored outcomes in a range, of `looks` (at least 1); `forgotten` tells from the
/// record.
pub fn outcomes(
    engine: &dyn Engine,
    slot: Slot,
    range: &KeyRange,
    forgotten: impl Fn(&[u8]) -> Result<bool, MachineError>,
    cursor: Option<Cursor>,
    looks: usize,
) -> Result<Collected, MachineError> {
    let mut batch = Batch::default();
    let (start, end) = layout::family(slot, Family::Outcome, range);
    let from = cursor.map_or(start, |cursor| cursor.from);
    let mut looked = Looked::default();
    for pair in engine.scan(&from, &end, false) {
        let (place, record) = pair?;
        if looked.is_enough(looks, &batch) {
            let rest = Some(Cursor {
                from: place,
                floor: Timestamp::ZERO,
                run: Run::default(),
            });
            return Ok(Collected { batch, rest });
        }
        looked.at(&record);
        if forgotten(&record)? {
            batch.delete(place);
        }
    }
    Ok(Collected { batch, rest: None })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::engine::MemoryEngine;
    use crate::engine::Overlay;
    use crate::mvcc::Author;
    use crate::mvcc::read;
    use crate::mvcc::write::Current;
    use crate::types::RequestId;

    use super::*;

    const SLOT: Slot = Slot(1);

    /// Writes or deletes; a delete of nothing is no write.
    fn write(engine: &MemoryEngine, key: u8, stamp: u64, value: Option<Vec<u8>>) {
        let mut overlay = Overlay::new(engine);
        let author = Author {
            stamp: Timestamp(stamp),
            command: Timestamp(stamp),
            request: RequestId([0; 16]),
        };
        let key = [key];
        let current = Current::of(&overlay, SLOT, &key).unwrap();
        match value {
            Some(value) => current.put(&mut overlay, author, &Bytes::from(value)),
            None if current.version() == Timestamp::ZERO => return,
            None => current.delete(&mut overlay, author),
        }
        let batch = overlay.take_batch();
        engine.write(batch).unwrap();
    }

    #[test]
    fn a_portion_ends_after_some_bytes_and_after_some_changes() {
        let portions = |versions: u64, bytes: usize| {
            let engine = MemoryEngine::default();
            for stamp in 1..=versions {
                write(&engine, 1, stamp, Some(vec![0; bytes]));
            }
            let (mut portions, mut cursor) = (Vec::new(), None);
            loop {
                let (range, floor) = (&KeyRange::ALL, Timestamp(versions));
                let collected = super::versions(&engine, SLOT, range, floor, cursor, usize::MAX);
                let Collected { batch, rest } = collected.unwrap();
                portions.push(batch.changes.len());
                engine.write(batch).unwrap();
                match rest {
                    Some(rest) => cursor = Some(rest),
                    None => return portions,
                }
            }
        };
        let few = portions(1_000, 1);
        assert_eq!(few.iter().sum::<usize>(), 999);
        assert!(few.iter().all(|changes| *changes <= PORTION_CHANGES));
        let long = portions(200, 5_000);
        assert_eq!(long.iter().sum::<usize>(), 199);
        assert!(
            long.iter()
                .all(|changes| changes * 5_000 <= PORTION_BYTES + 5_000)
        );
    }

    fn all_at(engine: &MemoryEngine, as_of: u64) -> Vec<read::Seen> {
        let get = |key| read::get(engine, SLOT, &[key], Timestamp(as_of)).unwrap();
        (0..3).map(get).collect()
    }

    /// What is stored, as key, stamp and whether it is a tombstone; newest first.
    fn stored(engine: &MemoryEngine) -> BTreeMap<Vec<u8>, Vec<(Timestamp, bool)>> {
        let mut stored: BTreeMap<Vec<u8>, Vec<(Timestamp, bool)>> = BTreeMap::new();
        for family in [Family::Newest, Family::History] {
            let (start, end) = layout::family(SLOT, family, &KeyRange::ALL);
            for pair in engine.scan(&start, &end, false) {
                let (place, record) = pair.unwrap();
                let header = Header::of(&record).unwrap();
                let versions = stored.entry(Place::of(&place).unwrap().key).or_default();
                versions.push((header.author.stamp, header.is_tombstone()));
            }
        }
        stored
    }

    /// How many versions, newest first, a reader at or above the floor can see.
    fn visible(versions: &[(Timestamp, bool)], floor: Timestamp) -> usize {
        let above = versions.iter().take_while(|(stamp, _)| *stamp > floor);
        let above = above.count();
        match versions.get(above) {
            Some((_, is_tombstone)) => above + usize::from(!is_tombstone),
            None => above,
        }
    }

    proptest! {
        #[test]
        fn reads_at_the_floor_and_above_are_the_same_before_between_and_after_the_portions(
            writes in prop::collection::vec((0..3u8, any::<Option<u8>>()), 1..40),
            floor in 0..40u64, looks in 1..5usize, each in 0..3usize, restart in 0..6usize,
        ) {
            let engine = MemoryEngine::new();
            let (before, meanwhile) = writes.split_at(writes.len() * 2 / 3);
            let mut stamp = 0;
            let mut write_next = |(key, value): (u8, Option<u8>)| {
                stamp += 1;
                let value = value.map(|byte| match byte % 5 {
                    0 => vec![byte; 10_000],
                    _ => vec![byte],
                });
                write(&engine, key, stamp, value);
            };
            before.iter().copied().for_each(&mut write_next);
            // Nothing is written at or below the floor any more.
            let floor = floor.min(before.len() as u64);
            let stamps = floor..=before.len() as u64;
            let expected: Vec<_> = stamps.clone().map(|at| all_at(&engine, at)).collect();
            let mut meanwhile = meanwhile.iter().copied();
            let mut cursor = None;
            let mut portions = 0;
            loop {
                // A later portion must not take a higher floor than the first one.
                let floor_now = Timestamp(if cursor.is_some() { u64::MAX } else { floor });
                let all = KeyRange::ALL;
                let collected = versions(&engine, SLOT, &all, floor_now, cursor, looks).unwrap();
                engine.write(collected.batch).unwrap();
                let now: Vec<_> = stamps.clone().map(|at| all_at(&engine, at)).collect();
                prop_assert_eq!(&now, &expected);
                cursor = collected.rest;
                if cursor.is_none() {
                    break;
                }
                portions += 1;
                if portions == restart {
                    // What the pass knew is lost; the next one begins anew.
                    cursor = None;
                }
                meanwhile.by_ref().take(each).for_each(&mut write_next);
            }
            // Without writes in between, exactly what a reader can see is left.
            if each == 0 {
                for versions in stored(&engine).values() {
                    prop_assert_eq!(visible(versions, Timestamp(floor)), versions.len());
                }
                let (start, end) = layout::family(SLOT, Family::Chunk, &KeyRange::ALL);
                for pair in engine.scan(&start, &end, false) {
                    let place = Place::of(&pair.unwrap().0).unwrap();
                    let stamp = place.stamp().unwrap();
                    let owners = &stored(&engine)[&place.key];
                    prop_assert!(owners.iter().any(|(owner, _)| *owner == stamp));
                }
            }
        }
    }
}
