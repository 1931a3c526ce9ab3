//! The stored form of one version. Decides only.
//!
//! Format byte, flags, the version's own stamp, its command's stamp where that differs, the request
//! id, then the value, or how many pieces it is in, or nothing. Stamps of commands rise along the
//! log; stamps of versions rise only per key, since a transaction decides its stamp later.

use bytes::Bytes;

use crate::machine::MachineError;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::Value;

const FORMAT: u8 = 1;

const VALUE: u8 = 1;
const TOMBSTONE: u8 = 1 << 1;
const CHUNKED: u8 = 1 << 2;
const COMMAND_STAMP: u8 = 1 << 3;
const KNOWN_FLAGS: u8 = VALUE | TOMBSTONE | CHUNKED | COMMAND_STAMP;

/// The longest record without its value, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 1 + 1 + 8 + 8 + 16;

/// Whose write it was, and as of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// The version's stamp.
    pub stamp: Timestamp,
    /// The stamp of the command that wrote it; equal to `stamp` outside of transactions.
    pub command: Timestamp,
    /// The request.
    pub request: RequestId,
}

/// What a version holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A value, in place.
    Value(Value),
    /// A value in pieces beside it.
    Chunked {
        /// How many pieces.
        chunks: u32,
        /// How long in all, in bytes.
        bytes: u32,
    },
    /// Nothing: the key was deleted.
    Tombstone,
}

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Who wrote it when.
    pub author: Author,
    /// What it holds.
    pub content: Content,
}

impl Version {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let (flag, tail): (u8, &[u8]) = match &self.content {
            Content::Value(value) => (VALUE, value),
            Content::Chunked { .. } => (VALUE | CHUNKED, &[]),
            Content::Tombstone => (TOMBSTONE, &[]),
        };
        let own_command = self.author.command != self.author.stamp;
        let mut out = Vec::with_capacity(HEADER_BYTES_MAX + 8 + tail.len());
        out.push(FORMAT);
        out.push(flag | if own_command { COMMAND_STAMP } else { 0 });
        out.extend_from_slice(&self.author.stamp.0.to_be_bytes());
        if own_command {
            out.extend_from_slice(&self.author.command.0.to_be_bytes());
        }
        out.extend_from_slice(&self.author.request.0);
        if let Content::Chunked { chunks, bytes } = &self.content {
            out.extend_from_slice(&chunks.to_be_bytes());
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        out.extend_from_slice(tail);
        out
    }

    /// Reads the stored form. The value shares the record's memory.
    pub fn decode(record: Bytes) -> Result<Version, MachineError> {
        let header = Header::of(&record)?;
        let tail = record.slice(header.bytes..);
        let content = if header.is_tombstone() {
            Content::Tombstone
        } else if header.is_chunked() {
            let (chunks, bytes) = header.pieces(&tail)?;
            Content::Chunked { chunks, bytes }
        } else {
            Content::Value(tail)
        };
        Ok(Version {
            author: header.author,
            content,
        })
    }
}

/// What can be told of a version without touching its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who wrote it when.
    pub author: Author,
    flags: u8,
    bytes: usize,
}

impl Header {
    /// Reads the front of a record.
    pub fn of(record: &[u8]) -> Result<Header, MachineError> {
        let short = || MachineError("a version record is cut short".to_owned());
        let (&[format, flags], mut rest) = record.split_first_chunk::<2>().ok_or_else(short)?;
        if format != FORMAT || flags & !KNOWN_FLAGS != 0 {
            return Err(MachineError(format!(
                "a version record of format {format} with flags {flags:#04x} is of another program version, \
                 this one knows format {FORMAT} with flags {KNOWN_FLAGS:#04x}"
            )));
        }
        let mut stamp = || {
            let (stamp, after) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            rest = after;
            Ok::<_, MachineError>(Timestamp(u64::from_be_bytes(*stamp)))
        };
        let own = stamp()?;
        let command = if flags & COMMAND_STAMP != 0 {
            stamp()?
        } else {
            own
        };
        let (request, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
        Ok(Header {
            author: Author {
                stamp: own,
                command,
                request: RequestId(*request),
            },
            flags,
            bytes: record.len() - rest.len(),
        })
    }

    /// Whether the key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.flags & TOMBSTONE != 0
    }

    /// Whether the value is in pieces.
    pub fn is_chunked(&self) -> bool {
        self.flags & CHUNKED != 0
    }

    /// How many pieces the value of `record` is in; 0 when it is not.
    pub fn chunks(&self, record: &[u8]) -> Result<u32, MachineError> {
        if !self.is_chunked() {
            return Ok(0);
        }
        Ok(self.pieces(&record[self.bytes..])?.0)
    }

    /// How long the value of `record` is, in bytes; 0 when it has none.
    pub fn value_bytes(&self, record: &[u8]) -> Result<u64, MachineError> {
        let tail = &record[self.bytes..];
        match self.is_chunked() {
            true => Ok(u64::from(self.pieces(tail)?.1)),
            false => Ok(tail.len() as u64),
        }
    }

    fn pieces(&self, tail: &[u8]) -> Result<(u32, u32), MachineError> {
        let numbers: &[u8; 8] = tail.try_into().map_err(|_| {
            MachineError("the record of a long value has a wrong length".to_owned())
        })?;
        let both = u64::from_be_bytes(*numbers);
        Ok(((both >> 32) as u32, both as u32))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20)
                .prop_map(|value| Content::Value(value.into())),
            any::<(u32, u32)>().prop_map(|(chunks, bytes)| Content::Chunked { chunks, bytes }),
            Just(Content::Tombstone),
        ]
    }

    proptest! {
        #[test]
        fn a_version_is_read_back(
            content in content(), stamp in any::<u64>(), command in any::<u64>(), same in any::<bool>(), id in any::<[u8; 16]>()
        ) {
            let author = Author {
                stamp: Timestamp(stamp),
                command: Timestamp(if same { stamp } else { command }),
                request: RequestId(id),
            };
            let version = Version { author, content };
            prop_assert_eq!(Version::decode(version.encode().into()).unwrap(), version);
        }

        #[test]
        fn damage_is_an_error_and_not_a_panic(bytes in prop::collection::vec(0..4u8, 0..50)) {
            let _ = Version::decode(bytes.into());
        }
    }

    #[test]
    fn the_first_format_is_still_read() {
        let old = [
            &[1, 1][..],
            &0x0102_0304_0506_0708u64.to_be_bytes(),
            &[9; 16],
            b"value",
        ]
        .concat();
        let version = Version::decode(old.clone().into()).unwrap();
        assert_eq!(
            version.content,
            Content::Value(Bytes::from_static(b"value"))
        );
        assert_eq!(version.author.stamp, Timestamp(0x0102_0304_0506_0708));
        assert_eq!(version.encode(), old);
    }
}
