//! Values in the store: a byte that says which format, then the fields. Decides only.

use bincode::error::DecodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Why stored or received bytes could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Written by another version of the program.
    #[error("{what} has format {found}, this program knows {known}")]
    Format {
        /// What was read.
        what: &'static str,
        /// The format byte found; 0 if there was none.
        found: u8,
        /// The one this program writes.
        known: u8,
    },
    /// The fields make no sense.
    #[error("{what} cannot be decoded: {reason}")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// Where it broke.
        reason: String,
    },
}

/// The format byte and the fields of a value.
pub fn encode<T: Serialize>(format: u8, value: &T) -> Vec<u8> {
    let mut out = vec![format];
    append(&mut out, value);
    out
}

/// Appends the fields of a value without a format byte: for bodies behind a header of their own.
pub fn append<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("our own types have lengths that are known, and memory takes all bytes");
}

/// Reads what [`encode`] wrote; every byte must be used.
pub fn decode<T: DeserializeOwned>(
    what: &'static str,
    format: u8,
    bytes: &[u8],
) -> Result<T, ValueError> {
    match bytes.split_first() {
        Some((found, fields)) if *found == format => decode_fields(what, fields),
        found => Err(ValueError::Format {
            what,
            found: found.map_or(0, |(format, _)| *format),
            known: format,
        }),
    }
}

/// Reads what [`append`] wrote; every byte must be used.
pub fn decode_fields<T: DeserializeOwned>(
    what: &'static str,
    fields: &[u8],
) -> Result<T, ValueError> {
    // A length is believed, and room made for it, before what it is of is read. No number takes more than
    // sixteen times its stored bytes.
    let decoded = match fields.len() / KIB {
        0..4 => claiming::<T, { 64 * KIB }>(fields),
        4..64 => claiming::<T, MIB>(fields),
        64..1_024 => claiming::<T, { 16 * MIB }>(fields),
        1_024.. => claiming::<T, { 256 * MIB }>(fields),
    };
    let (value, used) = decoded.map_err(|error| ValueError::Damaged {
        what,
        reason: error.to_string(),
    })?;
    if used != fields.len() {
        return Err(ValueError::Damaged {
            what,
            reason: format!("{} bytes too many", fields.len() - used),
        });
    }
    Ok(value)
}

fn claiming<T: DeserializeOwned, const BYTES_MAX: usize>(
    fields: &[u8],
) -> Result<(T, usize), DecodeError> {
    let limited = bincode::config::standard().with_limit::<BYTES_MAX>();
    bincode::serde::decode_from_slice(fields, limited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_format_and_surplus_bytes_are_refused() {
        let bytes = encode(3, &(7u64, "seven".to_owned()));
        assert_eq!(
            decode::<(u64, String)>("pair", 3, &bytes),
            Ok((7, "seven".to_owned()))
        );
        assert_eq!(
            decode::<(u64, String)>("pair", 2, &bytes)
                .unwrap_err()
                .to_string(),
            "pair has format 3, this program knows 2"
        );
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<(u64, String)>("pair", 3, &longer).is_err());
        assert!(decode::<(u64, String)>("pair", 3, &bytes[..4]).is_err());
        assert!(decode::<(u64, String)>("pair", 3, &[]).is_err());
    }
}
