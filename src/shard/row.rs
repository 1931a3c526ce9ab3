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
use crate::types::shard::Chain;
use crate::types::shard::ShardDescriptor;

const FORMAT: u8 = 2;

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
    #[serde(with = "stored_pieces")]
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
    /// The hash of all that was applied.
    pub chain: Chain,
}

/// A part of a shard's range and the slot with its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let mut row: Row = value::decode("the row of a replica", FORMAT, bytes)?;
        if let Some(first) = row.pieces.first_mut() {
            first.range.start = row.descriptor.range.start.clone();
        }
        if let Some(last) = row.pieces.last_mut() {
            last.range.end = row.descriptor.range.end.clone();
        }
        Ok(row)
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

    /// What the last entry made of the numbers in the row, for the hash of all that was applied.
    pub(crate) fn numbers(&self) -> [u8; 64] {
        let mut out = [0; 64];
        let numbers = [
            self.last_stamp.0,
            self.ceiling.0,
            self.ceiling_term,
            self.last_outcome.0,
            self.floors.history.0,
            self.floors.outcomes.0,
            self.descriptor.epoch.conf,
            self.descriptor.epoch.bounds,
        ];
        for (place, number) in out.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        out
    }

    /// The birth as a replica knows it that came to the shard later.
    pub fn birth_elsewhere(&self) -> Option<Birth> {
        self.birth.map(|birth| Birth {
            replica: ReplicaId::default(),
            ..birth
        })
    }
}

/// Slots, and the keys between each two. The ends of the range are the descriptor's: a row says each
/// key once, so that rows stay small with the longest keys too. The engine puts a leaf that has grown
/// too big into a file that it never syncs.
mod stored_pieces {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;
    use serde::de::Error;

    use super::Piece;
    use crate::codec::layout::Slot;
    use crate::types::Key;
    use crate::types::KeyRange;

    pub(super) fn serialize<S: Serializer>(
        pieces: &[Piece],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let slots: Vec<Slot> = pieces.iter().map(|piece| piece.slot).collect();
        let borders: Vec<&Key> = pieces.iter().skip(1).map(|it| &it.range.start).collect();
        (slots, borders).serialize(serializer)
    }

    /// The first piece begins with the first key and the last one has no end.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Piece>, D::Error> {
        let (slots, borders) = <(Vec<Slot>, Vec<Key>)>::deserialize(deserializer)?;
        if borders.len() != slots.len().saturating_sub(1) {
            return Err(D::Error::custom(
                "the slots and the keys between them do not match",
            ));
        }
        let starts = std::iter::once(Key::new()).chain(borders.clone());
        let ends = borders.into_iter().map(Some).chain([None]);
        let ranges = starts.zip(ends);
        let ranges = ranges.map(|(start, end)| KeyRange { start, end });
        let pieces = slots.into_iter().zip(ranges);
        Ok(pieces.map(|(slot, range)| Piece { range, slot }).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::types::ShardId;
    use crate::types::key::KEY_BYTES_MAX;
    use crate::types::shard::Epoch;

    use super::*;

    fn key(byte: u8) -> Bytes {
        vec![byte; KEY_BYTES_MAX].into()
    }

    fn row(cuts: &[u8]) -> Row {
        let ends = cuts.iter().zip(&cuts[1..]).zip(1..);
        let pieces: Vec<Piece> = ends
            .map(|((start, end), slot)| Piece {
                range: KeyRange {
                    start: key(*start),
                    end: Some(key(*end)),
                },
                slot: Slot(slot),
            })
            .collect();
        let whole = KeyRange {
            start: key(cuts[0]),
            end: cuts.last().map(|last| key(*last)),
        };
        Row {
            applied: Applied::default(),
            last_stamp: Timestamp(1),
            descriptor: ShardDescriptor {
                id: ShardId(1),
                range: whole,
                epoch: Epoch::default(),
                replicas: Vec::new(),
            },
            pieces,
            floors: Floors::default(),
            ceiling: Timestamp(2),
            ceiling_term: 3,
            last_outcome: Timestamp(4),
            history_retention_ms: 5,
            retry_window_ms: 6,
            birth: None,
            chain: Chain(7),
        }
    }

    #[test]
    fn a_row_is_read_back_and_says_each_key_once() {
        for cuts in [&[1, 9][..], &[1, 5, 9], &[1, 4, 6, 9]] {
            let row = row(cuts);
            let stored = row.encode();
            assert_eq!(Row::decode(&stored).unwrap(), row);
            assert!(stored.len() < cuts.len() * (KEY_BYTES_MAX + 3) + 64);
            assert_eq!(
                Row::decode(&row.without_places().encode()).unwrap().pieces,
                []
            );
        }
    }
}
