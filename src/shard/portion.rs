//! Hashes what a replica has stored for some keys, as of a moment that all replicas have. Decides only.
//!
//! The rolling hash tells what a replica did; what became of it since, at rest, only reading tells. Replicas
//! are never at one position while they write. But stamps rise along the log and versions are kept for a
//! while, so all of them can say what stood there as of one stamp: of each key the versions above a floor
//! and the one in force at it, and the outcomes above it. The floor is high enough that no replica has
//! collected anything of that, and the stamp low enough that each has applied it.

use xxhash_rust::xxh3::Xxh3;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::machine::MachineError;
use crate::shard::read::ReadError;
use crate::shard::read::ShardReader;
use crate::shard::row::Piece;
use crate::shard::walk::Walk;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::wire::request::Portion;

/// Keys in one portion at most: small values have many.
const KEYS_MAX: usize = 20_000;

/// What was read of a portion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    /// The hash. Equal on equal replicas.
    pub hash: u64,
    /// Bytes of keys and records that were read for it.
    pub bytes: u64,
}

impl ShardReader {
    /// The portion that begins with a key, or with the shard's first one where that is behind it, and has
    /// about so many bytes; as of now. `None`: the shard has nothing behind the key.
    pub fn portion_from(&self, key: &Key, bytes_max: u64) -> Result<Option<Portion>, ReadError> {
        let row = self.row();
        let shard = &row.descriptor.range;
        let start = key.max(&shard.start).clone();
        let range = KeyRange {
            start,
            end: shard.end.clone(),
        };
        if range.is_empty() {
            return Ok(None);
        }
        let end = self.end_of(row.pieces_in(&range), bytes_max)?;
        // Half of the time that outcomes are known is left to whoever is asked about the portion.
        let kept_ms = row.retry_window_ms / 2;
        let before = row.last_stamp.wall_ms().saturating_sub(kept_ms);
        Ok(Some(Portion {
            range: KeyRange {
                end: end.or(range.end),
                ..range
            },
            as_of: row.last_stamp,
            floor: Timestamp::from_wall(before),
        }))
    }

    /// The first key that is too much.
    fn end_of(&self, pieces: Vec<Piece>, bytes_max: u64) -> Result<Option<Key>, MachineError> {
        let (mut bytes, mut keys) = (0, 0);
        for piece in pieces {
            let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
            for pair in self.engine().scan(&start, &end, false) {
                let (place, record) = pair?;
                if bytes >= bytes_max || keys >= KEYS_MAX {
                    return Ok(Some(Place::of(&place)?.key.into()));
                }
                bytes += (place.len() + record.len()) as u64;
                keys += 1;
            }
        }
        Ok(None)
    }

    /// The hash of a portion. Reads all of it; other readers and writes go on.
    ///
    /// # Errors
    /// `NotYet` and `TooOld` where this replica cannot answer as of that moment, `OutOfBounds` where it does
    /// not have all of the keys (any more): nothing is wrong with it then.
    pub fn hash_portion(&self, portion: &Portion) -> Result<Hashed, ReadError> {
        let mut walk = Walk::through(self, portion)?;
        Ok(hash_all(&mut walk, Xxh3::new())?)
    }
}

/// The hash of all that is left to walk, and of what was hashed before. It is for accidents, not for enemies: XXH3 of 64
/// bits, which is as fast as memory is read.
pub(crate) fn hash_all(walk: &mut Walk, mut hash: Xxh3) -> Result<Hashed, MachineError> {
    let mut bytes = 0;
    while let Some(pairs) = walk.portion()? {
        for (place, record) in pairs {
            hash.update(&(place.len() as u64).to_be_bytes());
            hash.update(&place);
            hash.update(&(record.len() as u64).to_be_bytes());
            hash.update(&record);
            bytes += (place.len() + record.len()) as u64;
        }
    }
    let hash = hash.digest();
    Ok(Hashed { hash, bytes })
}
