//! A checksum behind each message between nodes, so that what a network spoils is never taken for what was
//! sent. Decides only.
//!
//! TCP's own check has sixteen bits, and is made anew by whatever stands in between. What passes it with a
//! flipped bit would be believed: a position that a follower says it has, a vote that it says it gives, what
//! the leader says is committed, an entry that one replica keeps and the others do not. No later check finds
//! the first three. So the whole message is checked, whatever it says:
//!
//! ```text
//! message, as Protocol Buffers | CRC-32C of it, u32, little-endian
//! ```
//!
//! One that does not match is not read. It ends its call with `DATA_LOSS`, and the call's sender sends again,
//! as after a broken connection. Clients speak plain gRPC, without it.
//!
//! What it costs: some gigabytes a second at either end, with the processor's own instruction, and a copy of
//! the message where it is sent, since the buffer that it goes to cannot be read.

use std::marker::PhantomData;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tonic::codec::Codec;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic::codec::EncodeBuf;
use tonic::codec::Encoder;

use crate::wire::codec;

const CHECKSUM_BYTES: usize = 4;

/// A message that is not what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Spoilt {
    /// It has another checksum than the one that came with it.
    #[error(
        "a message of {bytes} bytes is not what was sent: checksum {actual:08x}, not {expected:08x}"
    )]
    Checksum {
        bytes: usize,
        expected: u32,
        actual: u32,
    },
    /// It has no room for a checksum.
    #[error("a message of {0} bytes has no checksum")]
    Short(usize),
}

/// How `Transport` puts its messages into bytes and back.
#[derive(Debug)]
pub struct CheckedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        CheckedCodec(PhantomData)
    }
}

impl<T, U> Codec for CheckedCodec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Sealer<T>;
    type Decoder = Opener<U>;

    fn encoder(&mut self) -> Sealer<T> {
        Sealer(PhantomData)
    }

    fn decoder(&mut self) -> Opener<U> {
        Opener(PhantomData)
    }
}

/// The sending end.
#[derive(Debug)]
pub struct Sealer<T>(PhantomData<T>);

impl<T: Message> Encoder for Sealer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let message = item.encode_to_vec();
        out.reserve(message.len() + CHECKSUM_BYTES);
        out.put_slice(&message);
        out.put_u32_le(crc32c::crc32c(&message));
        Ok(())
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Opener<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Opener<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let sealed = message.copy_to_bytes(message.remaining());
        let message = open(sealed).map_err(|spoilt| {
            tracing::warn!(%spoilt, "refused what came from another node");
            Status::data_loss(spoilt.to_string())
        })?;
        codec::decode(message).map(Some)
    }
}

/// What was sent, without its checksum.
fn open(mut sealed: Bytes) -> Result<Bytes, Spoilt> {
    let bytes = sealed.len().checked_sub(CHECKSUM_BYTES);
    let bytes = bytes.ok_or(Spoilt::Short(sealed.len()))?;
    let expected = sealed.split_off(bytes).get_u32_le();
    let actual = crc32c::crc32c(&sealed);
    match actual == expected {
        true => Ok(sealed),
        false => Err(Spoilt::Checksum {
            bytes,
            expected,
            actual,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(message: &[u8]) -> Bytes {
        let checksum = crc32c::crc32c(message).to_le_bytes();
        [message, &checksum].concat().into()
    }

    #[test]
    fn a_message_is_taken_as_it_was_sent_and_with_no_flipped_bit() {
        for message in [&b""[..], b"m", b"a vote that is given"] {
            let whole = sealed(message);
            assert_eq!(open(whole.clone()).unwrap(), message);
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(open(flipped.into()).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_message_that_was_cut_short_is_refused() {
        let whole = sealed(b"a vote that is given");
        for bytes in 0..whole.len() {
            assert!(open(whole.slice(..bytes)).is_err(), "{bytes} bytes");
        }
    }
}
