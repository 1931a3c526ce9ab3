//! The lines of an import and an export: one JSON object for each record. Decides only.
//!
//! A field whose bytes are no text stands in base64 under `key_base64` or `value_base64`; the two
//! fields of one record may differ in that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Map;

use crate::cli::text;
use crate::types::Key;
use crate::types::Value;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::key::VALUE_BYTES_MAX;

/// Longest line: the longest value with every byte written as `\u0000`, and room for the key.
pub const LINE_BYTES_MAX: usize = 6 * VALUE_BYTES_MAX + 64 * 1024;

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

/// Reads one line and checks the limits of keys and values; the error says what is wrong with it.
pub fn parse(line: &[u8]) -> Result<Record, String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| without_place(&error))?;
    let key = field("key", line.key, line.key_base64)?;
    let value = field("value", line.value, line.value_base64)?;
    if key.is_empty() {
        return Err("the key is empty".to_string());
    }
    if key.len() > KEY_BYTES_MAX {
        let length = key.len();
        return Err(format!(
            "the key has {length} bytes, at most {KEY_BYTES_MAX} are allowed"
        ));
    }
    if value.len() > VALUE_BYTES_MAX {
        let length = value.len();
        return Err(format!(
            "the value has {length} bytes, at most {VALUE_BYTES_MAX} are allowed"
        ));
    }
    Ok(Record { key, value })
}

/// Writes one line, without its end.
pub fn format(key: &[u8], value: &[u8]) -> String {
    let mut object = Map::new();
    text::insert_bytes(&mut object, "key", key);
    text::insert_bytes(&mut object, "value", value);
    serde_json::Value::from(object).to_string()
}

fn field(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(base64)) => BASE64
            .decode(&base64)
            .map(Bytes::from)
            .map_err(|error| format!("{name}_base64: {error}")),
        (None, None) => Err(format!("there is neither {name} nor {name}_base64")),
        (Some(_), Some(_)) => Err(format!("there are both {name} and {name}_base64")),
    }
}

/// The library counts lines within what it was given, which is always line 1 here.
fn without_place(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match said.strip_suffix(&place) {
        Some(what) => format!("{what} at column {}", error.column()),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(line: &str, key: &[u8], value: &[u8]) {
        let expected = Record {
            key: Key::copy_from_slice(key),
            value: Value::copy_from_slice(value),
        };
        assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
    }

    fn refused(line: &str, why: &str) {
        assert_eq!(parse(line.as_bytes()), Err(why.to_string()), "{line}");
    }

    #[test]
    fn text_and_base64_may_be_mixed() {
        check(r#"{"key":"a","value":"b"}"#, b"a", b"b");
        check(r#"{"value":"","key":"a"}"#, b"a", b"");
        check(r#"{"key_base64":"/w==","value":"\u0000"}"#, &[0xff], &[0]);
        check(r#"{"key":"a","value_base64":"AAE="}"#, b"a", &[0, 1]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        refused(r#"{"value":"b"}"#, "there is neither key nor key_base64");
        refused(
            r#"{"key":"a","key_base64":"YQ==","value":"b"}"#,
            "there are both key and key_base64",
        );
        refused(r#"{"key":"","value":"b"}"#, "the key is empty");
        refused(
            r#"{"key":"a","value":1}"#,
            "invalid type: integer `1`, expected a string at column 20",
        );
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        refused(
            &format!(r#"{{"key":"{long}","value":""}}"#),
            "the key has 2049 bytes, at most 2048 are allowed",
        );
        assert!(parse(br#"{"key":"a","value":"b","ttl":1}"#).is_err());
        assert!(parse(b"{").is_err() && parse(b"[]").is_err());
    }

    proptest! {
        #[test]
        fn every_record_reads_back(
            key in prop::collection::vec(any::<u8>(), 1..40),
            value in prop::collection::vec(any::<u8>(), 0..80),
            word: String,
        ) {
            for value in [value.as_slice(), word.as_bytes()] {
                let line = format(&key, value);
                prop_assert!(!line.contains('\n'));
                let record = parse(line.as_bytes()).unwrap();
                prop_assert_eq!((&record.key[..], &record.value[..]), (&key[..], value));
            }
        }
    }
}
