//! Encodings whose byte order is the order of the values. Decides only.
//!
//! Strings of bytes are escaped so that none is a prefix of another: a zero becomes `00 ff`, and
//! `00 01` ends the string. Integers are big-endian. A stamp that sorts newest first is inverted.

use crate::types::Timestamp;

/// A stored key or value that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes make no sense: {0}")]
pub struct OrderedError(pub &'static str);

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const TERMINATOR: u8 = 0x01;

/// Appends a string of bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    for run in bytes.split_inclusive(|byte| *byte == ESCAPE) {
        out.extend_from_slice(run);
        if run.last() == Some(&ESCAPE) {
            out.push(ESCAPED_ZERO);
        }
    }
    out.extend_from_slice(&[ESCAPE, TERMINATOR]);
}

/// Takes a string of bytes from the front; returns it and what follows.
pub fn take_bytes(encoded: &[u8]) -> Result<(Vec<u8>, &[u8]), OrderedError> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    loop {
        let zero = rest
            .iter()
            .position(|byte| *byte == ESCAPE)
            .ok_or(OrderedError("a string without end"))?;
        bytes.extend_from_slice(&rest[..zero]);
        let mark = rest.get(zero + 1).copied();
        rest = &rest[(zero + 2).min(rest.len())..];
        match mark {
            Some(ESCAPED_ZERO) => bytes.push(ESCAPE),
            Some(TERMINATOR) => return Ok((bytes, rest)),
            _ => return Err(OrderedError("a string with a bad escape")),
        }
    }
}

/// Appends an integer.
pub fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

/// Takes an integer from the front.
pub fn take_u64(encoded: &[u8]) -> Result<(u64, &[u8]), OrderedError> {
    let (head, rest) = encoded
        .split_first_chunk::<8>()
        .ok_or(OrderedError("a short integer"))?;
    Ok((u64::from_be_bytes(*head), rest))
}

/// Appends a stamp so that later stamps sort first.
pub fn put_stamp_newest_first(out: &mut Vec<u8>, stamp: Timestamp) {
    put_u64(out, !stamp.0);
}

/// Takes an inverted stamp from the front.
pub fn take_stamp_newest_first(encoded: &[u8]) -> Result<(Timestamp, &[u8]), OrderedError> {
    let (inverted, rest) = take_u64(encoded)?;
    Ok((Timestamp(!inverted), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, bytes);
        out
    }

    fn tricky_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 0..12)
    }

    proptest! {
        #[test]
        fn bytes_come_back_with_what_follows(bytes in tricky_bytes(), after in tricky_bytes()) {
            let mut out = encoded(&bytes);
            out.extend_from_slice(&after);
            prop_assert_eq!(take_bytes(&out), Ok((bytes, &after[..])));
        }

        #[test]
        fn encoded_order_is_the_order_of_the_values(
            left in tricky_bytes(), right in tricky_bytes(), tails in any::<(u64, u64)>()
        ) {
            let with_tail = |bytes: &[u8], tail| {
                let mut out = encoded(bytes);
                put_u64(&mut out, tail);
                out
            };
            let encoded_order = with_tail(&left, tails.0).cmp(&with_tail(&right, tails.1));
            prop_assert_eq!(encoded_order, left.cmp(&right).then(tails.0.cmp(&tails.1)));
        }

        #[test]
        fn stamps_sort_newest_first(left in any::<u64>(), right in any::<u64>()) {
            let inverted = |stamp| {
                let mut out = Vec::new();
                put_stamp_newest_first(&mut out, Timestamp(stamp));
                out
            };
            prop_assert_eq!(inverted(left).cmp(&inverted(right)), right.cmp(&left));
            prop_assert_eq!(take_stamp_newest_first(&inverted(left)).unwrap().0, Timestamp(left));
        }

        #[test]
        fn damage_is_an_error_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let _ = take_bytes(&bytes);
            let _ = take_stamp_newest_first(&bytes);
        }
    }
}
