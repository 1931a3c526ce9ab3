//! Encodings whose byte order is the order of the values. Decides only.
//!
//! Strings of bytes are escaped so that none is a prefix of another: a zero becomes `00 ff`, and
//! `00 01` ends the string. After three `ff` in a row an `80` is put in, where it changes no order: a run of
//! four would send sled 0.34.7 astray in a reverse scan (it looks for the leaf to the left under
//! `ff ff ff ff`, and with keys above that it goes back and forth until it panics). Integers are big-endian. A stamp that sorts newest first is inverted.

use crate::types::Timestamp;

/// A stored key or value that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes make no sense: {0}")]
pub struct OrderedError(pub &'static str);

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const TERMINATOR: u8 = 0x01;

/// How many `ff` may follow each other.
const RUN_MAX: u32 = 3;
const RUN_BREAK: u8 = 0x80;

/// Counts the `ff` at the end of what is encoded.
#[derive(Default)]
struct Run(u32);

impl Run {
    /// After this byte: whether the run must be broken.
    fn is_full_after(&mut self, byte: u8) -> bool {
        self.0 = if byte == 0xff { self.0 + 1 } else { 0 };
        let full = self.0 == RUN_MAX;
        if full {
            self.0 = 0;
        }
        full
    }
}

/// Appends a string of bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    let mut run = Run::default();
    let mut put = |out: &mut Vec<u8>, byte| {
        out.push(byte);
        if run.is_full_after(byte) {
            out.push(RUN_BREAK);
        }
    };
    for byte in bytes {
        put(out, *byte);
        if *byte == ESCAPE {
            put(out, ESCAPED_ZERO);
        }
    }
    out.extend_from_slice(&[ESCAPE, TERMINATOR]);
}

/// Takes a string of bytes from the front; returns it and what follows.
pub fn take_bytes(encoded: &[u8]) -> Result<(Vec<u8>, &[u8]), OrderedError> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = Rest {
        bytes: encoded,
        run: Run::default(),
    };
    loop {
        let byte = rest.take()?;
        if byte != ESCAPE {
            bytes.push(byte);
            continue;
        }
        match rest.take()? {
            ESCAPED_ZERO => bytes.push(ESCAPE),
            TERMINATOR => return Ok((bytes, rest.bytes)),
            _ => return Err(OrderedError("a string with a bad escape")),
        }
    }
}

/// What is still to be decoded, without the bytes that break runs.
struct Rest<'a> {
    bytes: &'a [u8],
    run: Run,
}

impl Rest<'_> {
    fn take(&mut self) -> Result<u8, OrderedError> {
        let byte = self.take_any()?;
        match self.run.is_full_after(byte) && self.take_any()? != RUN_BREAK {
            true => Err(OrderedError("a run of ff that is not broken")),
            false => Ok(byte),
        }
    }

    fn take_any(&mut self) -> Result<u8, OrderedError> {
        let (byte, rest) = self
            .bytes
            .split_first()
            .ok_or(OrderedError("a string without end"))?;
        self.bytes = rest;
        Ok(*byte)
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
        let byte = prop_oneof![
            Just(0u8),
            Just(1),
            Just(0x7f),
            Just(0x80),
            Just(0x81),
            Just(0xfe),
            Just(0xff),
            Just(0xff),
            any::<u8>()
        ];
        prop::collection::vec(byte, 0..16)
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
        fn no_four_ff_follow_each_other(bytes in prop::collection::vec(0xfeu8.., 0..40)) {
            let bytes: Vec<u8> = bytes.into_iter().map(|byte| if byte == 0xfe { 0 } else { byte }).collect();
            prop_assert!(encoded(&bytes).windows(4).all(|four| four != [0xff; 4]));
            let encoded = encoded(&bytes);
            prop_assert_eq!(take_bytes(&encoded), Ok((bytes, &[][..])));
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
