//! Adds versions to a key. Decides only.

use bytes::Bytes;

use crate::codec::layout;
use crate::codec::layout::STORED_BYTES_MAX;
use crate::codec::layout::Slot;
use crate::engine::Overlay;
use crate::engine::overlay::View;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::mvcc::version::Author;
use crate::mvcc::version::Content;
use crate::mvcc::version::HEADER_BYTES_MAX;
use crate::mvcc::version::Header;
use crate::mvcc::version::Version;
use crate::types::Timestamp;
use crate::types::shard::Size;

/// A key's newest version, looked at before something is written over it.
pub struct Current<'k> {
    slot: Slot,
    key: &'k [u8],
    place: Vec<u8>,
    newest: Option<(Header, Vec<u8>)>,
}

impl<'k> Current<'k> {
    /// Looks the key up.
    pub fn of(view: &impl View, slot: Slot, key: &'k [u8]) -> Result<Current<'k>, MachineError> {
        let place = layout::newest(slot, key);
        let newest = match view.get(&place)? {
            Some(record) => Some((Header::of(&record)?, record)),
            None => None,
        };
        Ok(Current {
            slot,
            key,
            place,
            newest,
        })
    }

    /// A key whose newest version a scan has found at `place`.
    pub fn found(
        slot: Slot,
        key: &'k [u8],
        place: Vec<u8>,
        record: Vec<u8>,
    ) -> Result<Current<'k>, MachineError> {
        Ok(Current {
            slot,
            key,
            place,
            newest: Some((Header::of(&record)?, record)),
        })
    }

    /// The newest version, tombstones too.
    pub fn header(&self) -> Option<Header> {
        self.newest.as_ref().map(|(header, _)| *header)
    }

    /// The stamp of the value that is there; `ZERO` if there is none.
    pub fn version(&self) -> Timestamp {
        match &self.newest {
            Some((header, _)) if !header.is_tombstone() => header.author.stamp,
            _ => Timestamp::ZERO,
        }
    }

    /// What the key takes up: nothing without a value.
    pub fn size(&self) -> Result<Size, MachineError> {
        match &self.newest {
            Some((header, record)) if !header.is_tombstone() => {
                Ok(Size::of(self.key, header.value_bytes(record)?))
            }
            Some(_) | None => Ok(Size::default()),
        }
    }

    /// Stores a value; a long one goes beside its record, in pieces.
    pub fn put(self, overlay: &mut Overlay<'_>, author: Author, value: &Bytes) {
        let room = STORED_BYTES_MAX - HEADER_BYTES_MAX;
        let fits = self.place.len() + value.len() <= room;
        let content = if fits || mutant::lives(Mutant::LongValuesWhole) {
            Content::Value(value.clone())
        } else {
            self.put_chunks(overlay, author.stamp, value)
        };
        self.replace(overlay, Version { author, content });
    }

    /// Leaves a tombstone. The caller has seen that there is a value.
    pub fn delete(self, overlay: &mut Overlay<'_>, author: Author) {
        let content = Content::Tombstone;
        self.replace(overlay, Version { author, content });
    }

    fn put_chunks(&self, overlay: &mut Overlay<'_>, stamp: Timestamp, value: &Bytes) -> Content {
        let key_bytes = layout::chunk(self.slot, self.key, stamp, 0).len();
        let mut chunks = 0;
        for piece in value.chunks(STORED_BYTES_MAX.saturating_sub(key_bytes).max(1)) {
            let place = layout::chunk(self.slot, self.key, stamp, chunks);
            overlay.put(place, piece.to_vec());
            chunks += 1;
        }
        Content::Chunked {
            chunks,
            bytes: u32::try_from(value.len()).unwrap_or(u32::MAX),
        }
    }

    fn replace(self, overlay: &mut Overlay<'_>, version: Version) {
        let kept = |_: &_| !mutant::lives(Mutant::HistoryNotKept);
        if let Some((header, record)) = self.newest.filter(kept) {
            let aside = layout::history(self.slot, self.key, header.author.stamp);
            overlay.put(aside, record);
        }
        if mutant::lives(Mutant::DeletesLeaveNothing) && version.content == Content::Tombstone {
            return overlay.delete(self.place);
        }
        overlay.put(self.place, version.encode());
    }
}
