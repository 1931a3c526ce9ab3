//! The chunks of a snapshot: numbered, with length and checksum, and a last one that says how many
//! there were. Decides only.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 1 + 4 + 4 + 4;

/// Bytes that a frame adds to its payload.
pub const FRAME_BYTES: usize = HEADER_BYTES;

/// What a chunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// What belongs to the snapshot beside its keys. The first chunk.
    Head = 1,
    /// Keys and values.
    Pairs = 2,
    /// Nothing more; the payload is the writer's own count.
    End = 3,
}

/// A chunk that is not what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk {number} of a snapshot: {reason}")]
pub struct FrameError {
    /// Which chunk, from 0.
    pub number: u32,
    /// What is wrong with it.
    pub reason: String,
}

/// Makes the chunks of one snapshot.
#[derive(Debug, Default)]
pub struct FrameWriter {
    number: u32,
}

impl FrameWriter {
    /// The next chunk.
    pub fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        out.put_u8(FORMAT);
        out.put_u8(kind as u8);
        out.put_u32(self.number);
        out.put_u32(u32::try_from(payload.len()).expect("a chunk is far below 4 GiB"));
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&out), payload);
        out.put_u32(checksum);
        out.put_slice(payload);
        self.number += 1;
        out.freeze()
    }
}

/// Checks the chunks of one snapshot as they arrive.
#[derive(Debug, Default)]
pub struct FrameReader {
    number: u32,
}

impl FrameReader {
    /// The kind and payload of the next chunk.
    pub fn open(&mut self, chunk: Bytes) -> Result<(FrameKind, Bytes), FrameError> {
        let bad = |reason: String| FrameError {
            number: self.number,
            reason,
        };
        if chunk.len() < HEADER_BYTES {
            return Err(bad(format!("{} bytes are no chunk", chunk.len())));
        }
        let field = |at: usize| {
            u32::from_be_bytes(
                chunk[at..at + 4]
                    .try_into()
                    .expect("four bytes were sliced"),
            )
        };
        if chunk[0] != FORMAT {
            return Err(bad(format!(
                "format {}, this program knows {FORMAT}",
                chunk[0]
            )));
        }
        let kind = match chunk[1] {
            1 => FrameKind::Head,
            2 => FrameKind::Pairs,
            3 => FrameKind::End,
            kind => return Err(bad(format!("unknown kind {kind}"))),
        };
        if field(2) != self.number {
            return Err(bad(format!("number {} came instead", field(2))));
        }
        if field(6) as usize != chunk.len() - HEADER_BYTES {
            return Err(bad("its length is wrong".to_owned()));
        }
        let sum = crc32c::crc32c_append(
            crc32c::crc32c(&chunk[..HEADER_BYTES - 4]),
            &chunk[HEADER_BYTES..],
        );
        if sum != field(10) {
            return Err(bad("its checksum is wrong".to_owned()));
        }
        self.number += 1;
        Ok((kind, chunk.slice(HEADER_BYTES..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_taken_in_order_and_whole() {
        let mut writer = FrameWriter::default();
        let first = writer.frame(FrameKind::Head, b"head");
        let second = writer.frame(FrameKind::Pairs, b"pairs");
        let mut reader = FrameReader::default();
        assert!(reader.open(second.clone()).is_err());
        assert_eq!(
            reader.open(first.clone()).unwrap(),
            (FrameKind::Head, Bytes::from_static(b"head"))
        );
        assert!(reader.open(first).is_err());
        assert!(reader.open(second.slice(..second.len() - 1)).is_err());
        assert_eq!(reader.open(second).unwrap().0, FrameKind::Pairs);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let chunk = FrameWriter::default().frame(FrameKind::Pairs, b"some payload");
        for at in 0..chunk.len() {
            let mut flipped = chunk.to_vec();
            flipped[at] ^= 0x10;
            assert!(
                FrameReader::default().open(Bytes::from(flipped)).is_err(),
                "byte {at}"
            );
        }
    }
}
