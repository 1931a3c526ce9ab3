//! Messages from bytes, with a bound on what a few bytes may become. Decides only.
//!
//! An empty field that may be repeated is two bytes on the way and a hundred in memory: a message of 8 MiB
//! would be 400 MiB before anybody could count its fields. So they are counted first, in the bytes.

use std::marker::PhantomData;

use bytes::Buf as _;
use bytes::Bytes;
use prost::DecodeError;
use prost::Message;
use prost::encoding::DecodeContext;
use prost::encoding::decode_key;
use prost::encoding::skip_field;
use tonic::Status;
use tonic::codec::BufferSettings;
use tonic::codec::Codec;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic_prost::ProstEncoder;

use crate::error::Error;
use crate::wire::status::to_status;

/// Fields of one message, repeated ones each time. The largest that are sent have some thousands.
const FIELDS_MAX: usize = 64 * 1024;

/// What every call is encoded and decoded with; `build.rs` names it.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> BoundedCodec<T, U> {
        BoundedCodec(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(PhantomData)
    }
}

/// Decodes what has few enough fields.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        decode(bytes).map(Some)
    }
}

/// The message in the bytes.
pub(crate) fn decode<U: Message + Default>(bytes: Bytes) -> Result<U, Status> {
    let wrong = |error: DecodeError| Status::internal(error.to_string());
    let fields = count_fields(&bytes).map_err(wrong)?;
    if fields > FIELDS_MAX {
        let error = Error::invalid(
            "request",
            format!("it has {fields} fields, more than the {FIELDS_MAX} that are allowed"),
        );
        return Err(to_status(&error, None));
    }
    U::decode(bytes).map_err(wrong)
}

fn count_fields(mut bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut fields = 0;
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes)?;
        skip_field(kind, tag, &mut bytes, DecodeContext::default())?;
        fields += 1;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use crate::wire::proto::v1;

    use super::*;

    #[test]
    fn many_fields_are_refused_before_they_are_made() {
        let many = |count: usize| Bytes::from([0x12, 0].repeat(count));
        let write = decode::<v1::WriteRequest>(many(FIELDS_MAX)).unwrap();
        assert_eq!(write.operations.len(), FIELDS_MAX);
        let refused = decode::<v1::WriteRequest>(many(FIELDS_MAX + 1)).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let torn = decode::<v1::WriteRequest>(Bytes::from_static(&[0x12, 9])).unwrap_err();
        assert_eq!(torn.code(), Code::Internal);
    }
}
