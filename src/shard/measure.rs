//! How much there is in a part of a shard, and where its middle is. Decides only.
//!
//! Both look at every key that they count, and not at values: some hundred thousand keys a second. What is
//! written meanwhile may be counted or not.

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::machine::MachineError;
use crate::mvcc::version::Header;
use crate::shard::read::ShardReader;
use crate::shard::row::Row;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::shard::Size;

impl ShardReader {
    /// How much there is below a key of the shard.
    pub fn size_below(&self, at: &Key) -> Result<Size, MachineError> {
        let row = self.row();
        let below = KeyRange {
            start: row.descriptor.range.start.clone(),
            end: Some(at.clone()),
        };
        let mut size = Size::default();
        self.each_size(&row, &below, |_, key_size| {
            size = size.with(key_size);
            true
        })?;
        Ok(size)
    }

    /// How much there is in all, counted.
    pub fn counted(&self) -> Result<Size, MachineError> {
        Ok(self.bound_at(u64::MAX)?.1)
    }

    /// The key that halves the bytes of the shard, and how much there is below it; `None` with fewer than
    /// two keys.
    pub fn middle(&self) -> Result<Option<(Key, Size)>, MachineError> {
        let half = self.row().size.bytes / 2;
        match self.bound_at(half)? {
            (Some((middle, below)), _) if below.bytes >= half => Ok(Some((middle, below))),
            // The row's size is out by what was written while earlier splits were planned.
            (_, counted) => Ok(self.bound_at(counted.bytes / 2)?.0),
        }
    }

    /// The first key with at least so many bytes below it, or else the last key, and how much there is below
    /// it; and all that was counted.
    fn bound_at(&self, bytes: u64) -> Result<(Option<(Key, Size)>, Size), MachineError> {
        let row = self.row();
        let mut bound = None;
        let mut below = Size::default();
        self.each_size(&row, &row.descriptor.range, |key, key_size| {
            if below.keys > 0 {
                bound = Some((key, below));
            }
            let is_found = bound.is_some() && below.bytes >= bytes;
            below = below.with(key_size);
            !is_found
        })?;
        Ok((bound, below))
    }

    /// Tells of each key with a value how much it takes up, in order, until it is told to stop.
    fn each_size(
        &self,
        row: &Row,
        range: &KeyRange,
        mut tell: impl FnMut(Key, Size) -> bool,
    ) -> Result<(), MachineError> {
        for piece in row.pieces_in(range) {
            let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
            for pair in self.engine().scan(&start, &end, false) {
                let (place, record) = pair?;
                let header = Header::of(&record)?;
                if header.is_tombstone() {
                    continue;
                }
                let key = Key::from(Place::of(&place)?.key);
                let size = Size::of(&key, header.value_bytes(&record)?);
                if !tell(key, size) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
