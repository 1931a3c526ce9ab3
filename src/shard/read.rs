//! Answers readers while entries are applied. Decides only.
//!
//! A read takes the row, reads at the row's last stamp (or at the one asked for), and then takes the
//! row again: if the bounds or the slots have changed, or the floor has passed the stamp, what was read
//! may be another shard's or half collected, and is thrown away. The row is published after its batch
//! is in the engine, so every key of every entry up to the row's position is there to be read.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::Xxh3;

use crate::engine::Engine;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::mvcc::Seen;
use crate::mvcc::read;
use crate::mvcc::read::Limits;
use crate::mvcc::read::Portion;
use crate::shard::chain::Marks;
use crate::shard::portion::hash_all;
use crate::shard::row::Row;
use crate::shard::slots::Slots;
use crate::shard::walk::Walk;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::Timestamp;
use crate::types::key::REQUEST_BYTES_MAX;
use crate::types::request::KeyValue;
use crate::types::request::Versioned;
use crate::types::shard::Link;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Scan;

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The shard does not have all of these keys (any more).
    #[error("the shard {} has the range {}, not all that was asked for", descriptor.id, descriptor.range)]
    OutOfBounds {
        /// The shard as it is now.
        descriptor: Box<ShardDescriptor>,
    },
    /// The versions in force at that stamp may be collected.
    #[error("reads at {as_of} are not possible any more, the oldest is {oldest}")]
    TooOld {
        /// The stamp asked for.
        as_of: Timestamp,
        /// The oldest that can be asked for.
        oldest: Timestamp,
    },
    /// The replica has not applied everything up to that stamp.
    #[error("reads at {as_of} are not possible yet, applied is {applied}")]
    NotYet {
        /// The stamp asked for.
        as_of: Timestamp,
        /// The last stamp applied.
        applied: Timestamp,
    },
    /// The values asked for are more than one answer holds.
    #[error(
        "their values together are over the limit of {bytes_max} bytes; ask for fewer keys at once"
    )]
    TooMuch {
        /// The limit.
        bytes_max: usize,
    },
    /// The replica is not as the others of its shard are: what it would say may be wrong.
    #[error("the replica here is quarantined: it is not as the others are, and is being rebuilt")]
    Quarantined,
    /// The shard stands still: its left neighbour may have absorbed it, and be writing to its keys.
    #[error("the shard is about to be one with its neighbour")]
    Frozen,
    /// The replica was destroyed: its keys are being cleared.
    #[error("the replica is not here any more")]
    Ended,
    /// The engine failed or stored bytes make no sense: the replica must not go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl ReadError {
    /// The error as a client gets it.
    pub fn into_error(self, group: GroupId) -> Error {
        match self {
            ReadError::OutOfBounds { descriptor } => Error::StaleEpoch {
                group,
                current: vec![*descriptor],
            },
            ReadError::Ended => Error::StaleEpoch {
                group,
                current: Vec::new(),
            },
            ReadError::TooMuch { .. } => Error::invalid("keys", self),
            ReadError::TooOld { .. } => Error::invalid("as_of", self),
            ReadError::NotYet { .. } | ReadError::Quarantined | ReadError::Frozen => {
                Error::unavailable(group, self)
            }
            ReadError::Machine(error) => Error::Internal(error.0),
        }
    }
}

impl From<ReadError> for String {
    fn from(error: ReadError) -> String {
        error.to_string()
    }
}

/// What was read, and as of which stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAt<T> {
    /// What was read.
    pub value: T,
    /// The stamp: everything at or below it was seen, nothing above it.
    pub as_of: Timestamp,
}

/// A hash of a replica's whole state. Equal at equal positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateHash {
    /// The position hashed.
    pub position: Option<Position>,
    /// The hash.
    pub hash: u64,
}

/// Reads one replica's keys, from any thread, while it applies. Every call may block on the engine.
#[derive(Clone)]
pub struct ShardReader {
    engine: Arc<dyn Engine>,
    slots: Arc<Slots>,
    ended: Arc<AtomicBool>,
    row: Arc<RwLock<Arc<Row>>>,
    marks: Arc<Mutex<Marks>>,
    quarantined: Arc<AtomicBool>,
}

impl ShardReader {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        slots: Arc<Slots>,
        replica: ReplicaId,
        row: Row,
    ) -> ShardReader {
        ShardReader {
            engine,
            ended: slots.ended(replica),
            slots,
            row: Arc::new(RwLock::new(Arc::new(row))),
            marks: Arc::default(),
            quarantined: Arc::default(),
        }
    }

    /// Makes a row visible, and the hashes that its batch has passed. The batch must be in the engine.
    pub(crate) fn publish(&self, row: Row, links: Vec<Link>) {
        self.show(row);
        let mut marks = self.marks();
        links.into_iter().for_each(|link| marks.add(link));
    }

    /// Makes a row visible that does not go on from the one before.
    pub(crate) fn replace(&self, row: Row) {
        self.show(row);
        self.marks().clear();
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().expect("no holder of the lock panics")
    }

    fn show(&self, row: Row) {
        *self.row.write().expect("no holder of the lock panics") = Arc::new(row);
    }

    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// The row as of the last batch.
    pub fn row(&self) -> Arc<Row> {
        self.row
            .read()
            .expect("no holder of the lock panics")
            .clone()
    }

    /// From now on nothing is read from this replica.
    pub fn quarantine(&self) {
        self.quarantined.store(true, Ordering::SeqCst);
    }

    /// Whether the replica serves nothing, because it is not as the others are.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::SeqCst)
    }

    /// How far the replica has come.
    pub fn applied(&self) -> Applied {
        self.row().applied.clone()
    }

    /// The rolling hash of the replica's state, at the position that it is of; `None` before anything was
    /// applied. Equal replicas at one position have the same. Costs nothing: it is kept in the row.
    pub fn chain(&self) -> Option<Link> {
        let row = self.row();
        let chain = row.chain;
        let position = row.applied.position?;
        Some(Link { position, chain })
    }

    /// As [`ShardReader::chain`], at the last positions that every replica remembers, and behind them the
    /// last one. Empty before anything was applied. Forgotten when the node ends.
    pub fn chains(&self) -> Vec<Link> {
        let mut links: Vec<Link> = self.marks().links().collect();
        let last = self.chain();
        links.retain(|link| Some(link.position) != last.map(|last| last.position));
        links.extend(last);
        links
    }

    /// The stamp of the last write applied.
    pub fn last_stamp(&self) -> Timestamp {
        self.row().last_stamp
    }

    /// Above this and above [`ShardReader::last_stamp`] a new leader stamps.
    pub fn ceiling(&self) -> Timestamp {
        self.row().ceiling
    }

    /// The shard as of the last entry applied.
    pub fn descriptor(&self) -> ShardDescriptor {
        self.row().descriptor.clone()
    }

    /// One key, as of a stamp or of now.
    pub fn get(&self, key: &[u8], as_of: Option<Timestamp>) -> Result<ReadAt<Seen>, ReadError> {
        let inside = |row: &Row| row.descriptor.range.contains(key);
        self.settled(as_of, inside, |row, as_of| self.seen(row, key, as_of))
    }

    /// Several keys, all as of one stamp, in the order asked for. Their values may have
    /// [`REQUEST_BYTES_MAX`] bytes together; no more than one value beyond that is held.
    pub fn get_many(
        &self,
        keys: &[Key],
        as_of: Option<Timestamp>,
    ) -> Result<ReadAt<Vec<Option<Versioned>>>, ReadError> {
        let inside = |row: &Row| keys.iter().all(|key| row.descriptor.range.contains(key));
        let read = self.settled(as_of, inside, |row, as_of| {
            self.seen_together(row, keys, as_of)
        })?;
        let as_of = read.as_of;
        let bytes_max = REQUEST_BYTES_MAX;
        let value = read.value.ok_or(ReadError::TooMuch { bytes_max })?;
        Ok(ReadAt { value, as_of })
    }

    /// `None`: more than one answer holds.
    fn seen_together(
        &self,
        row: &Row,
        keys: &[Key],
        as_of: Timestamp,
    ) -> Result<Option<Vec<Option<Versioned>>>, MachineError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let seen = self.seen(row, key, as_of)?.into_option();
            bytes += seen.as_ref().map_or(0, |versioned| versioned.value.len());
            if bytes > REQUEST_BYTES_MAX {
                return Ok(None);
            }
            found.push(seen);
        }
        Ok(Some(found))
    }

    /// A portion of a range, which must be within the shard's. How fresh it must be is the caller's
    /// matter. A portion may be without items and yet have a rest, where many keys are deleted.
    pub fn scan(&self, scan: &Scan) -> Result<ReadAt<Portion>, ReadError> {
        let inside = |row: &Row| row.descriptor.range.covers(&scan.range);
        let as_of = scan.cut.as_ref().map(|cut| cut.as_of);
        self.settled(as_of, inside, |row, as_of| {
            self.scan_pieces(row, scan, as_of)
        })
    }

    /// A hash of all that must be equal on all replicas at one position. Reads everything; other
    /// readers and writes go on.
    pub fn state_hash(&self) -> Result<StateHash, MachineError> {
        let mut walk = Walk::begin(self);
        let mut hash = Xxh3::new();
        hash.update(&walk.row().without_places().encode());
        let hashed = hash_all(&mut walk, hash)?;
        Ok(StateHash {
            position: walk.row().applied.position,
            hash: hashed.hash,
        })
    }

    fn seen(&self, row: &Row, key: &[u8], as_of: Timestamp) -> Result<Seen, MachineError> {
        match row.slot_of(key) {
            Some(slot) => read::get(&*self.engine, slot, key, as_of),
            None => Ok(Seen::Absent),
        }
    }

    /// Reads until the row after the read stands on the same ground as the row before.
    fn settled<T>(
        &self,
        as_of: Option<Timestamp>,
        inside: impl Fn(&Row) -> bool,
        read: impl Fn(&Row, Timestamp) -> Result<T, MachineError>,
    ) -> Result<ReadAt<T>, ReadError> {
        let mut row = self.row();
        loop {
            if !inside(&row) {
                let descriptor = Box::new(row.descriptor.clone());
                return Err(ReadError::OutOfBounds { descriptor });
            }
            // What was in force at a stamp stays so, whoever has the keys now.
            let is_of_now = as_of.is_none();
            if is_of_now && row.frozen().is_some() && !mutant::lives(Mutant::FrozenReads) {
                return Err(ReadError::Frozen);
            }
            let at = as_of.unwrap_or(row.last_stamp);
            check_stamp(&row, at)?;
            let value = read(&row, at);
            // Behind the read, so that nothing is answered that was read before and is sent after.
            if self.is_quarantined() {
                return Err(ReadError::Quarantined);
            }
            if self.ended.load(Ordering::SeqCst) && !mutant::lives(Mutant::EndedReplicaReads) {
                return Err(ReadError::Ended);
            }
            let after = self.row();
            if is_same_ground(&row, &after, at) || mutant::lives(Mutant::ReadLooksOnce) {
                let value = value?;
                return Ok(ReadAt { value, as_of: at });
            }
            row = after;
        }
    }

    fn scan_pieces(
        &self,
        row: &Row,
        scan: &Scan,
        as_of: Timestamp,
    ) -> Result<Portion, MachineError> {
        let mut pieces = row.pieces_in(&scan.range);
        if scan.reverse {
            pieces.reverse();
        }
        let mut left = Limits {
            keys_max: scan.keys_max.max(1) as usize,
            bytes_max: scan.bytes_max as usize,
            reverse: scan.reverse,
            keys_only: scan.keys_only,
        };
        let mut items = Vec::new();
        for piece in pieces {
            if left.keys_max == 0 || (left.bytes_max == 0 && !items.is_empty()) {
                let rest = Some(rest_of(scan, &piece.range));
                return Ok(Portion { items, rest });
            }
            let portion = read::scan(&*self.engine, piece.slot, &piece.range, as_of, left)?;
            left.keys_max = left.keys_max.saturating_sub(portion.items.len());
            let sizes = portion.items.iter().map(item_bytes);
            left.bytes_max = left.bytes_max.saturating_sub(sizes.sum());
            items.extend(portion.items);
            if let Some(rest) = portion.rest {
                let rest = Some(rest_of(scan, &rest));
                return Ok(Portion { items, rest });
            }
        }
        Ok(Portion { items, rest: None })
    }
}

fn item_bytes(item: &KeyValue) -> usize {
    item.key.len() + item.versioned.value.len()
}

/// What is left of the whole range when this part of a piece is left.
fn rest_of(scan: &Scan, part: &KeyRange) -> KeyRange {
    if scan.reverse {
        KeyRange {
            start: scan.range.start.clone(),
            end: part.end.clone(),
        }
    } else {
        KeyRange {
            start: part.start.clone(),
            end: scan.range.end.clone(),
        }
    }
}

fn check_stamp(row: &Row, as_of: Timestamp) -> Result<(), ReadError> {
    if as_of < row.floors.history {
        let oldest = row.floors.history;
        return Err(ReadError::TooOld { as_of, oldest });
    }
    if as_of > row.last_stamp {
        let applied = row.last_stamp;
        return Err(ReadError::NotYet { as_of, applied });
    }
    Ok(())
}

fn is_same_ground(before: &Row, after: &Row, as_of: Timestamp) -> bool {
    before.descriptor.range == after.descriptor.range
        && before.pieces == after.pieces
        && as_of >= after.floors.history
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::codec::layout::Slot;
    use crate::engine::MemoryEngine;
    use crate::shard;
    use crate::shard::Seed;
    use crate::shard::ShardMachine;
    use crate::types::ShardId;
    use crate::types::shard::Epoch;

    const REPLICA: ReplicaId = ReplicaId(1);

    fn reader() -> ShardReader {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let slots = Slots::open(Arc::clone(&engine)).unwrap();
        let descriptor = ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let seed = Seed::new(descriptor, Applied::default());
        shard::seed(&engine, &slots, REPLICA, seed).unwrap();
        let machine = ShardMachine::open(engine, slots, REPLICA, Arc::new(|_| false));
        machine.unwrap().unwrap().reader()
    }

    /// How often "m" was read when it is answered, if the row changes in this way during the first read.
    fn reads(change: impl Fn(&ShardReader, &mut Row)) -> Result<u32, ReadError> {
        let reader = reader();
        let reads = Cell::new(0);
        let inside = |row: &Row| row.descriptor.range.contains(b"m");
        let read = reader.settled(None, inside, |row, _| {
            reads.set(reads.get() + 1);
            if reads.get() == 1 {
                let mut row = row.clone();
                change(&reader, &mut row);
                reader.publish(row, Vec::new());
            }
            Ok(reads.get())
        });
        read.map(|read| read.value)
    }

    #[test]
    fn what_was_read_while_the_ground_changed_is_thrown_away() {
        let stamp = Timestamp::from_wall(5);
        assert!(matches!(reads(|_, row| row.last_stamp = stamp), Ok(1)));
        // A snapshot was installed.
        assert!(matches!(
            reads(|_, row| row.pieces[0].slot = Slot(99)),
            Ok(2)
        ));
        // What was in force at the stamp of the read may be collected.
        let collected = reads(|_, row| {
            row.last_stamp = stamp;
            row.floors.history = stamp;
        });
        assert!(matches!(collected, Ok(2)));
        // The key has gone to a shard that was split off.
        let split = reads(|_, row| row.descriptor.range.end = Some(Key::from_static(b"m")));
        assert!(matches!(split, Err(ReadError::OutOfBounds { .. })));
        let ended = reads(|reader, _| reader.slots.end(REPLICA));
        assert!(matches!(ended, Err(ReadError::Ended)));
        let quarantined = reads(|reader, _| reader.quarantine());
        assert!(matches!(quarantined, Err(ReadError::Quarantined)));
    }
}
