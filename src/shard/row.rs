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
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Attempt;
use crate::types::shard::Birth;
use crate::types::shard::Chain;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;

const FORMAT: u8 = 3;

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
    /// How much there is. Exact but for the writes that were made while a split was being planned.
    pub size: Size,
    /// Which split the shard comes from; `None` for a first shard, and as long as a replica has applied
    /// nothing.
    pub birth: Option<Birth>,
    /// The hash of all that was applied.
    pub chain: Chain,
    /// What it has to do with merges.
    pub merge: Merge,
}

/// What a shard has to do with merges, and had.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Merge {
    /// Its part in the one that is under way.
    pub part: Part,
    /// The last attempt that has frozen it: an earlier one never does any more.
    pub seen: Option<Attempt>,
    /// Shards that have ended and whose keys came here, the last one last, so that what is left of them
    /// somewhere gets an answer.
    pub absorbed: Vec<ShardId>,
}

/// A shard's part in a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Part {
    /// None.
    #[default]
    Alone,
    /// It may absorb its right neighbour.
    Left(Prepared),
    /// Its left neighbour may absorb it.
    Right(Frozen),
}

/// What a shard is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The attempt.
    pub attempt: Attempt,
    /// The right neighbour.
    pub right: ShardId,
    /// And its epoch when that was planned.
    pub epoch: Epoch,
}

/// A shard that stands still: entries behind the freeze change its position, its membership and its chain, and
/// nothing else. So what a neighbour absorbs is the same wherever the replica has come to meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The attempt.
    pub attempt: Attempt,
    /// Where the freeze stands in its log.
    pub position: Position,
    /// The chain at that place.
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

    /// The freeze that it is under.
    pub fn frozen(&self) -> Option<&Frozen> {
        match &self.merge.part {
            Part::Right(frozen) => Some(frozen),
            Part::Alone | Part::Left(_) => None,
        }
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
    pub(crate) fn numbers(&self) -> [u8; 80] {
        let mut out = [0; 80];
        let numbers = [
            self.last_stamp.0,
            self.ceiling.0,
            self.ceiling_term,
            self.last_outcome.0,
            self.floors.history.0,
            self.floors.outcomes.0,
            self.descriptor.epoch.conf,
            self.descriptor.epoch.bounds,
            self.size.keys,
            self.size.bytes,
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
            size: Size { keys: 8, bytes: 9 },
            birth: None,
            chain: Chain(7),
            merge: Merge::default(),
        }
    }

    fn attempt() -> Attempt {
        Attempt {
            bounds: 4,
            prepared: Position { term: 5, index: 6 },
            left: ShardId(1),
        }
    }

    #[test]
    fn the_third_format_of_a_part_in_a_merge_is_still_read_and_written() {
        let prepared = Prepared {
            attempt: attempt(),
            right: ShardId(2),
            epoch: Epoch { conf: 7, bounds: 8 },
        };
        let frozen = Frozen {
            attempt: attempt(),
            position: Position { term: 3, index: 10 },
            chain: Chain(11),
        };
        let table = [
            (Part::Alone, &[0][..]),
            (Part::Left(prepared), &[1, 4, 5, 6, 1, 2, 7, 8]),
            (Part::Right(frozen), &[2, 4, 5, 6, 1, 3, 10, 11]),
        ];
        for (part, stored) in table {
            let merge = Merge {
                part,
                seen: Some(attempt()),
                absorbed: vec![ShardId(12), ShardId(13)],
            };
            let mut bytes = Vec::new();
            value::append(&mut bytes, &merge);
            assert_eq!(bytes, [stored, &[1, 4, 5, 6, 1, 2, 12, 13]].concat());
            assert_eq!(value::decode_fields("a part", &bytes), Ok(merge));
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
