//! All that a replica stores beside its keys. Decides only.

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::codec::layout::Slot;
use crate::codec::value;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::mvcc::Floors;
use crate::types::KeyRange;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::Timestamp;
use crate::types::shard::Birth;
use crate::types::shard::ShardDescriptor;

const FORMAT: u8 = 1;

/// The replica's one row. Changes in the same batch as the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// How far it has come.
    #[serde(with = "AppliedFields")]
    pub applied: Applied,
    /// The stamp of the last write of the last command.
    pub last_stamp: Timestamp,
    /// The shard.
    pub descriptor: ShardDescriptor,
    /// Where its keys are, in order of keys; covers the shard's range without gap or overlap.
    pub pieces: Vec<Piece>,
    /// Below which stamps nothing is known.
    pub floors: Floors,
    /// No leader has closed a timestamp above it.
    pub ceiling: Timestamp,
    /// The term of the last leader that wrote; a later leader stamps above the ceiling.
    pub ceiling_term: u64,
    /// The stamp of the last command that stored an outcome: a request whose time is not below it can
    /// have none.
    pub last_outcome: Timestamp,
    /// How long replaced versions are kept, in milliseconds. At least `retry_window_ms`.
    pub history_retention_ms: u64,
    /// How long outcomes are known, in milliseconds.
    pub retry_window_ms: u64,
    /// Which split the shard comes from; `None` for a first shard, and as long as a replica has applied
    /// nothing.
    pub birth: Option<Birth>,
}

/// A part of a shard's range and the slot with its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The keys.
    pub range: KeyRange,
    /// The slot.
    pub slot: Slot,
}

impl Piece {
    /// Whether a place in the engine can be in both.
    pub fn overlaps(&self, other: &Piece) -> bool {
        self.slot == other.slot && self.range.overlaps(&other.range)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Applied")]
struct AppliedFields {
    position: Option<Position>,
    membership_position: Option<Position>,
    membership: Bytes,
}

impl Row {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        value::encode(FORMAT, self)
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Row, MachineError> {
        Ok(value::decode("the row of a replica", FORMAT, bytes)?)
    }

    /// The slot of a key; `None` when the key is not in the shard.
    pub fn slot_of(&self, key: &[u8]) -> Option<Slot> {
        self.descriptor
            .range
            .contains(key)
            .then(|| self.pieces.iter().find(|piece| piece.range.contains(key)))
            .flatten()
            .map(|piece| piece.slot)
    }

    /// The parts of `range` with their slots, in order of keys.
    pub fn pieces_in(&self, range: &KeyRange) -> Vec<Piece> {
        self.pieces
            .iter()
            .map(|piece| Piece {
                range: piece.range.intersect(range),
                slot: piece.slot,
            })
            .filter(|piece| !piece.range.is_empty())
            .collect()
    }

    /// Whether some of its keys are in these pieces.
    pub fn shares_slot_with(&self, pieces: &[Piece]) -> bool {
        let mine = |piece: &Piece| self.pieces.iter().any(|own| own.overlaps(piece));
        pieces.iter().any(mine)
    }

    /// The stamp at or below which no outcome is known: what may be collected, and whose repeat is too
    /// late, are decided by this alone.
    pub fn horizon(&self) -> Timestamp {
        self.floors.outcomes.max(self.floors.history)
    }

    /// Raises the floors to what a command with this stamp leaves known.
    pub fn raise_floors(&mut self, stamp: Timestamp) {
        let before = |ms: u64| Timestamp::from_wall(stamp.wall_ms().saturating_sub(ms));
        self.floors.history = self.floors.history.max(before(self.history_retention_ms));
        self.floors.outcomes = self.floors.outcomes.max(before(self.retry_window_ms));
    }

    /// The row without what differs between equal replicas: where the keys are, and which replica here
    /// applied the split.
    pub fn without_places(&self) -> Row {
        Row {
            pieces: Vec::new(),
            birth: self.birth_elsewhere(),
            ..self.clone()
        }
    }

    /// The birth as a replica knows it that came to the shard later.
    pub fn birth_elsewhere(&self) -> Option<Birth> {
        self.birth.map(|birth| Birth {
            replica: ReplicaId::default(),
            ..birth
        })
    }
}
