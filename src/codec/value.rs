//! Values in the store: a byte that says which format, then the fields. Decides only.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Nothing decoded may claim more than this many bytes.
const DECODED_BYTES_MAX: usize = 256 * 1024 * 1024;

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
    let limited = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(fields, limited).map_err(|error| {
        ValueError::Damaged {
            what,
            reason: error.to_string(),
        }
    })?;
    if used != fields.len() {
        return Err(ValueError::Damaged {
            what,
            reason: format!("{} bytes too many", fields.len() - used),
        });
    }
    Ok(value)
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
