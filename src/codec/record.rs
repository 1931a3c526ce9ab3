//! The frame around everything that is stored in sequence: length and checksum. Decides only.
//!
//! ```text
//! length u32 | checksum u32 | version u8 | kind u8 | owner u64 | body
//! ```
//!
//! Little-endian; `length` counts the whole frame. The checksum is a CRC-32C of everything but itself,
//! seeded with the place of the frame, so that a frame that lies where it was not written (in a file
//! used again, at a shifted offset) never passes. Length 0 ends the sequence.

use bytes::Bytes;

/// Bytes of a frame with an empty body.
pub const FRAME_BYTES: usize = 18;

/// Where a frame stands. Two frames never stand at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the file, never used twice.
    pub file: u64,
    /// Offset of the frame in it.
    pub offset: u64,
}

impl Place {
    fn seed(self) -> u32 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.file.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c::crc32c(&bytes)
    }
}

/// A frame that has passed its check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Version of the body's format.
    pub version: u8,
    /// What the body is.
    pub kind: u8,
    /// Whose it is.
    pub owner: u64,
    /// The rest; shares the bytes that were decoded.
    pub body: Bytes,
}

impl Frame {
    /// Bytes from this frame's start to the next one's.
    pub fn bytes(&self) -> usize {
        FRAME_BYTES + self.body.len()
    }
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The length is none that was written.
    #[error("a record of {length} bytes where {room} are left")]
    Length {
        /// What it says.
        length: u32,
        /// What is there.
        room: usize,
    },
    /// The checksum is not that of the bytes at this place.
    #[error("checksum {actual:08x}, not {expected:08x}")]
    Checksum {
        /// What is stored.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
}

/// Appends a frame whose body is what `body` appends.
pub fn encode(
    buffer: &mut Vec<u8>,
    place: Place,
    version: u8,
    kind: u8,
    owner: u64,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    buffer.push(version);
    buffer.push(kind);
    buffer.extend_from_slice(&owner.to_le_bytes());
    body(buffer);
    let frame = &mut buffer[start..];
    let length = u32::try_from(frame.len()).expect("a record is far below 4 GiB");
    frame[..4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(frame, place);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The frame at the start of `bytes`, which stand at `place`; `None` at the end of the sequence.
pub fn decode(bytes: &Bytes, place: Place) -> Result<Option<Frame>, Damage> {
    let Some(length) = number(bytes, 0).filter(|length| *length != 0) else {
        return Ok(None);
    };
    let room = bytes.len();
    let whole = usize::try_from(length).unwrap_or(usize::MAX);
    if whole < FRAME_BYTES || whole > room {
        return Err(Damage::Length { length, room });
    }
    let frame = bytes.slice(..whole);
    let expected = number(&frame, 4).expect("a frame has its head");
    let actual = checksum(&frame, place);
    if expected != actual {
        return Err(Damage::Checksum { expected, actual });
    }
    let mut owner = [0; 8];
    owner.copy_from_slice(&frame[10..FRAME_BYTES]);
    Ok(Some(Frame {
        version: frame[8],
        kind: frame[9],
        owner: u64::from_le_bytes(owner),
        body: frame.slice(FRAME_BYTES..),
    }))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

fn checksum(frame: &[u8], place: Place) -> u32 {
    let length = crc32c::crc32c_append(place.seed(), &frame[..4]);
    crc32c::crc32c_append(length, &frame[8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        file: 7,
        offset: 512,
    };

    fn encoded() -> Bytes {
        let mut buffer = Vec::new();
        encode(&mut buffer, PLACE, 1, 3, 42, |body| {
            body.extend_from_slice(b"hello");
        });
        buffer.into()
    }

    #[test]
    fn a_frame_is_found_where_it_was_written_and_nowhere_else() {
        let frame = decode(&encoded(), PLACE).unwrap().unwrap();
        assert_eq!((frame.version, frame.kind, frame.owner), (1, 3, 42));
        assert_eq!(&frame.body[..], b"hello");
        for place in [
            Place { file: 8, ..PLACE },
            Place {
                offset: 513,
                ..PLACE
            },
        ] {
            assert!(matches!(
                decode(&encoded(), place),
                Err(Damage::Checksum { .. })
            ));
        }
    }

    #[test]
    fn no_flipped_byte_and_no_missing_byte_passes() {
        for at in 0..encoded().len() {
            let mut flipped = encoded().to_vec();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped.into(), PLACE).is_err(), "byte {at}");
            if at >= 4 {
                assert!(decode(&encoded().slice(..at), PLACE).is_err(), "cut {at}");
            }
        }
        assert_eq!(decode(&Bytes::from_static(&[0; 64]), PLACE), Ok(None));
        assert_eq!(decode(&Bytes::new(), PLACE), Ok(None));
    }
}
