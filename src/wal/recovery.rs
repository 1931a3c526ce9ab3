//! From the bytes of the segments to the index, or to the place where they are damaged. Decides only:
//! `wal/open.rs` reads the files.
//!
//! A tear is what a power cut leaves of the last write: nothing in it was acknowledged, so it is cut.
//! Anything else that cannot be read was acknowledged once, so the log must not be trusted. The two
//! are told apart by what was synced: all of a segment that has a successor, up to the end that the
//! successor names; in the last one, all before the last mark.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::codec::record;
use crate::codec::record::Place;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::ReplicaId;
use crate::wal::index::Index;
use crate::wal::index::Live;
use crate::wal::index::Location;
use crate::wal::record::Record;
use crate::wal::record::Unreadable;
use crate::wal::record::find_mark;
use crate::wal::segment::HEADER_BYTES;

/// What the segments read so far say.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) replicas: BTreeMap<ReplicaId, Index>,
    pub(super) live: Live,
}

/// Where the records of the last segment end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Behind the last whole record.
    pub(super) offset: u64,
    /// Before the last write, which may not be synced.
    pub(super) synced: u64,
    /// Whether a torn record was cut off.
    pub(super) torn: bool,
}

/// Bytes that were synced once and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damaged {
    pub(super) offset: u64,
    pub(super) reason: String,
    /// The bytes are as they were written, but by a program that writes what this one cannot read.
    pub(super) whole: bool,
    /// Its format version, where that is the reason.
    pub(super) version: Option<u32>,
}

impl Damaged {
    fn new(offset: u64, reason: impl ToString) -> Damaged {
        Damaged {
            offset,
            reason: reason.to_string(),
            whole: false,
            version: None,
        }
    }

    fn unreadable(offset: u64, error: Unreadable) -> Damaged {
        let version = match error {
            Unreadable::Version(version) => Some(u32::from(version)),
            Unreadable::Kind(_) | Unreadable::Body(_) => None,
        };
        Damaged {
            whole: true,
            version,
            ..Damaged::new(offset, error)
        }
    }
}

impl Recovered {
    /// Reads a segment whose successor says that its records end at `end`.
    pub(super) fn read_ended(
        &mut self,
        sequence: u64,
        bytes: &Bytes,
        end: u64,
    ) -> Result<(), Damaged> {
        let length = usize::try_from(end).ok();
        let inside = length.filter(|length| (HEADER_BYTES as usize..=bytes.len()).contains(length));
        let Some(length) = inside else {
            let reason = format!("its records should end at {end}, outside the file");
            return Err(Damaged::new(bytes.len() as u64, reason));
        };
        let mut reader = Reader::new(sequence, bytes.slice(..length));
        while let Some((record, replica, location)) = reader.next()? {
            self.take(&record, replica, location);
        }
        if reader.offset != end {
            let reason = format!("no record, but records were written up to {end}");
            return Err(Damaged::new(reader.offset, reason));
        }
        Ok(())
    }

    /// Reads the last segment, which may end in a torn write.
    pub(super) fn read_last(&mut self, sequence: u64, bytes: &Bytes) -> Result<End, Damaged> {
        let mut reader = Reader::new(sequence, bytes.clone());
        let mut synced = HEADER_BYTES;
        let damage = loop {
            match reader.next() {
                Ok(None) => break None,
                Err(damage) if damage.whole => return Err(damage),
                Err(damage) => break Some(damage),
                Ok(Some((Record::Mark { .. }, _, at))) => synced = u64::from(at.offset),
                Ok(Some((record, replica, location))) => self.take(&record, replica, location),
            }
        };
        let offset = reader.offset;
        // A later write would have begun only after this place was synced.
        let is_trusted = |_: &_| !mutant::lives(Mutant::CorruptionCutOff);
        if let Some(mark) = find_mark(&reader.rest(), reader.place()).filter(is_trusted) {
            let reason = damage.map_or("no record".to_string(), |damage| damage.reason);
            let reason = format!("{reason}; a write at {mark} shows that it was synced");
            return Err(Damaged::new(offset, reason));
        }
        Ok(End {
            offset,
            synced,
            torn: damage.is_some(),
        })
    }

    /// What is wrong with the whole.
    pub(super) fn check(&self) -> Result<(), String> {
        for (replica, index) in &self.replicas {
            let checked = index.check();
            checked.map_err(|reason| format!("replica {replica}: {reason}"))?;
        }
        Ok(())
    }

    fn take(&mut self, record: &Record, replica: ReplicaId, location: Location) {
        if matches!(record, Record::Mark { .. }) {
            return;
        }
        if mutant::lives(Mutant::CopiesNotRead) && matches!(record, Record::CopiedEntries(_)) {
            return;
        }
        let index = self.replicas.entry(replica).or_default();
        index.apply(record, location, &mut self.live);
    }
}

/// Steps through the records of one segment.
struct Reader {
    sequence: u64,
    bytes: Bytes,
    offset: u64,
}

impl Reader {
    fn new(sequence: u64, bytes: Bytes) -> Reader {
        Reader {
            sequence,
            bytes,
            offset: HEADER_BYTES,
        }
    }

    fn place(&self) -> Place {
        Place {
            file: self.sequence,
            offset: self.offset,
        }
    }

    fn rest(&self) -> Bytes {
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        self.bytes.slice(offset.min(self.bytes.len())..)
    }

    fn next(&mut self) -> Result<Option<(Record, ReplicaId, Location)>, Damaged> {
        let decoded = record::decode(&self.rest(), self.place());
        let frame = match decoded {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(damage) => return Err(Damaged::new(self.offset, damage)),
        };
        let read = Record::decode(&frame);
        let record = read.map_err(|error| Damaged::unreadable(self.offset, error))?;
        let location = Location {
            segment: self.sequence,
            offset: u32::try_from(self.offset).expect("a segment is below 4 GiB"),
            bytes: u32::try_from(frame.bytes()).expect("a segment is below 4 GiB"),
        };
        self.offset += u64::from(location.bytes);
        Ok(Some((record, ReplicaId(frame.owner), location)))
    }
}
