//! Bytes as people and scripts write and read them. Decides only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::ValueEnum;
use serde_json::Map;
use serde_json::Value as Json;

use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON object, or one in each line.
    Json,
}

/// How keys and values are written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The text's UTF-8 bytes.
    Text,
    /// Base64 with the standard alphabet.
    Base64,
    /// Two hexadecimal digits for each byte.
    Hex,
}

impl Encoding {
    /// The bytes meant; the error is the end of a sentence.
    pub fn decode(self, text: &str) -> Result<Bytes, String> {
        match self {
            Encoding::Text => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Encoding::Base64 => BASE64
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| format!("{text:?} is not base64: {error}")),
            Encoding::Hex => decode_hex(text).map(Bytes::from),
        }
    }
}

/// Bytes of hexadecimal digits; the error is the end of a sentence.
pub fn decode_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.ok_or_else(|| format!("{text:?} has something else than hex digits"))?;
    if digits.len() % 2 == 1 {
        return Err(format!("{text:?} has an odd number of hex digits"));
    }
    let bytes = digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8);
    Ok(bytes.collect())
}

/// Sixteen bytes written as 32 hex digits, with or without the hyphens of a UUID.
pub fn decode_id(text: &str) -> Result<[u8; 16], String> {
    let bytes = decode_hex(&text.replace('-', ""))?;
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| format!("an id has 32 hex digits, not {}", 2 * length))
}

/// A request id as errors and answers print it.
pub fn decode_request_id(text: &str) -> Result<RequestId, String> {
    let id = RequestId(decode_id(text)?);
    if !id.is_valid() {
        return Err("a request id is a UUID of version 7".to_string());
    }
    Ok(id)
}

/// `placement`, `s1` or `1`.
pub fn decode_group(text: &str) -> Result<GroupId, String> {
    if text == "placement" {
        return Ok(GroupId::Placement);
    }
    let shard = decode_shard(text).map(GroupId::Shard);
    shard.map_err(|_| format!("{text:?} is no group: use placement, or a shard such as s1"))
}

/// `s1` or `1`.
pub fn decode_shard(text: &str) -> Result<ShardId, String> {
    let number = text.strip_prefix('s').unwrap_or(text).parse();
    match number {
        Ok(0) | Err(_) => Err(format!("{text:?} is no shard: use its id, such as s1")),
        Ok(number) => Ok(ShardId(number)),
    }
}

/// `n1` or `1`.
pub fn decode_node(text: &str) -> Result<NodeId, String> {
    let number = text.strip_prefix('n').unwrap_or(text).parse();
    number
        .map(NodeId)
        .map_err(|_| format!("{text:?} is no node: use its id, such as n1"))
}

/// For a terminal: text as it is, everything that would upset a terminal or is no text escaped.
pub fn shown(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return bytes.escape_ascii().to_string();
    };
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || letter == '\\' {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Puts bytes into an object: under `name` if they are text, else under `name_base64`.
pub fn insert_bytes(object: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_string(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), BASE64.encode(bytes).into()),
    };
}

/// A stamp as a string of digits: a JSON number of this size loses its last digits in many readers.
pub fn stamp(timestamp: Timestamp) -> String {
    timestamp.0.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn binary_keys_are_written_in_base64_or_hex() {
        assert_eq!(Encoding::Text.decode("grüß").unwrap(), "grüß".as_bytes());
        assert_eq!(
            Encoding::Base64.decode("AP8=").unwrap(),
            [0, 255].as_slice()
        );
        assert_eq!(Encoding::Hex.decode("00fF").unwrap(), [0, 255].as_slice());
        assert!(Encoding::Hex.decode("0").is_err() && Encoding::Hex.decode("+1").is_err());
        assert!(Encoding::Hex.decode("xy").is_err() && Encoding::Base64.decode("?").is_err());
    }

    #[test]
    fn ids_and_groups_read_as_they_are_printed() {
        let id = RequestId::new(1_700_000_000_000, [9; 10]);
        assert_eq!(decode_request_id(&id.to_string()), Ok(id));
        let uuid = uuid::Uuid::from_bytes(id.0).to_string();
        assert_eq!(decode_request_id(&uuid), Ok(id));
        assert!(decode_request_id("00").is_err());
        for group in [GroupId::Placement, GroupId::Shard(ShardId(7))] {
            assert_eq!(decode_group(&group.to_string()), Ok(group));
        }
        assert_eq!(decode_node("n3"), Ok(NodeId(3)));
        assert!(decode_group("shard").is_err() && decode_node("").is_err());
    }

    #[test]
    fn what_would_upset_a_terminal_is_escaped() {
        assert_eq!(
            shown("grüß\tdich\u{1b}[2J".as_bytes()),
            "grüß\\tdich\\u{1b}[2J"
        );
        assert_eq!(shown(&[b'a', 0xff]), "a\\xff");
    }

    proptest! {
        #[test]
        fn hex_reads_back(bytes: Vec<u8>) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(decode_hex(&text).unwrap(), bytes);
        }
    }
}
