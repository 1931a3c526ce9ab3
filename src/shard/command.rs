//! What a shard's log entries say, and what applying them answers. Decides only.
//!
//! A command begins with a header of fixed layout, so that a program that does not know its kind still
//! reads when it was proposed and says clearly what it cannot do.

use bytes::Bytes;

use crate::codec::value;
use crate::codec::value::ValueError;
use crate::machine::MachineError;
use crate::types::Timestamp;
use crate::types::request::Write;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;

/// The numbers of the kinds of commands. A number is never given to another kind; most are reserved
/// for what is designed and not built yet.
pub mod kind {
    /// Writes of clients.
    pub const WRITE: u8 = 1;
    /// Reserved, transactions over shards: lays down what is undecided.
    pub const PREPARE: u8 = 2;
    /// Reserved, transactions over shards: carries a decision out.
    pub const FINALIZE: u8 = 3;
    /// Reserved, transactions over shards: records a decision.
    pub const STATUS: u8 = 4;
    /// Reserved, transactions over shards: rules a late prepare out.
    pub const PREVENT: u8 = 5;
    /// Reserved: raises the ceiling of closed timestamps without a write.
    pub const RAISE_CEILING: u8 = 6;
    /// Reserved: splits the shard.
    pub const SPLIT: u8 = 7;
    /// Reserved, merge: the left shard begins.
    pub const PREPARE_MERGE: u8 = 8;
    /// Reserved, merge: the right shard stops.
    pub const FREEZE: u8 = 9;
    /// Reserved, merge: the left shard takes the right one's keys.
    pub const ABSORB: u8 = 10;
    /// Reserved, merge: the left shard gives up.
    pub const CANCEL: u8 = 11;
    /// Reserved, merge: the right shard goes on alone.
    pub const UNFREEZE: u8 = 12;
    /// Reserved: changes how long outcomes and history are kept.
    pub const RETENTION: u8 = 13;
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 2 + 4 * 8;
const OUTCOMES_FORMAT: u8 = 1;

/// What every command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The stamp of the first write; the leader has reserved one for each. Rises along the log.
    pub stamp: Timestamp,
    /// The leader closes no timestamp above it. `ZERO` leaves the ceiling where it is.
    pub ceiling: Timestamp,
    /// The shard's epoch that the leader checked the writes against.
    pub epoch: Epoch,
}

/// Writes that were proposed together. Write `i` has the stamp `header.stamp.plus(i)`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// What every command says.
    pub header: Header,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

impl Command {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEADER_BYTES + 64 * self.writes.len());
        out.extend_from_slice(&[FORMAT, kind::WRITE]);
        for number in [
            self.header.stamp.0,
            self.header.ceiling.0,
            self.header.epoch.conf,
            self.header.epoch.bounds,
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        value::append(&mut out, &self.writes);
        out.into()
    }

    /// Reads an entry. An error is the same on every replica, and stops each: an older program cannot
    /// go on without knowing what the entry did.
    pub fn decode(bytes: &[u8]) -> Result<Command, MachineError> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| {
            MachineError(format!("{} bytes are too short for a command", bytes.len()))
        })?;
        if header[0] != FORMAT || header[1] != kind::WRITE {
            return Err(MachineError(format!(
                "a command of format {} and kind {} is of a newer program version; this one knows \
                 format {FORMAT}, kind {}: upgrade this node",
                header[0],
                header[1],
                kind::WRITE
            )));
        }
        let number = |at: usize| {
            let at = 2 + at * 8;
            let bytes = header[at..at + 8].try_into();
            u64::from_be_bytes(bytes.expect("eight bytes were sliced"))
        };
        Ok(Command {
            header: Header {
                stamp: Timestamp(number(0)),
                ceiling: Timestamp(number(1)),
                epoch: Epoch {
                    conf: number(2),
                    bounds: number(3),
                },
            },
            writes: value::decode_fields("the writes of a command", body)?,
        })
    }
}

/// The answer to a command: one outcome for each write, in order.
pub fn encode_outcomes(outcomes: &[WriteOutcome]) -> Bytes {
    value::encode(OUTCOMES_FORMAT, &outcomes).into()
}

/// Reads the answer to a command. The answer to any other entry is empty and is refused here.
pub fn decode_outcomes(bytes: &[u8]) -> Result<Vec<WriteOutcome>, ValueError> {
    value::decode("the answer to a command", OUTCOMES_FORMAT, bytes)
}

#[cfg(test)]
mod tests {
    use crate::types::Key;
    use crate::types::RequestId;
    use crate::types::request::Condition;
    use crate::types::request::Operation;
    use crate::types::request::WriteKind;

    use super::*;

    fn command() -> Command {
        Command {
            header: Header {
                stamp: Timestamp(0x11),
                ceiling: Timestamp(0x22),
                epoch: Epoch { conf: 3, bounds: 4 },
            },
            writes: vec![Write {
                id: RequestId([7; 16]),
                kind: WriteKind::Keys {
                    conditions: vec![Condition::Exists {
                        key: Key::from_static(b"a"),
                    }],
                    operations: vec![Operation::Put {
                        key: Key::from_static(b"a"),
                        value: Bytes::from_static(b"1"),
                    }],
                },
            }],
        }
    }

    #[test]
    fn the_first_format_is_still_read_and_written() {
        let mut old = vec![1, 1];
        for number in [0x11u64, 0x22, 3, 4] {
            old.extend_from_slice(&number.to_be_bytes());
        }
        old.push(1);
        old.extend_from_slice(&[7; 16]);
        old.extend_from_slice(&[0, 1, 2, 1, b'a', 1, 0, 1, b'a', 1, b'1']);
        assert_eq!(Command::decode(&old).unwrap(), command());
        assert_eq!(command().encode(), old);
    }

    #[test]
    fn an_unknown_kind_says_what_to_do() {
        let mut bytes = command().encode().to_vec();
        bytes[1] = kind::SPLIT;
        let error = Command::decode(&bytes).unwrap_err().to_string();
        assert!(
            error.contains("kind 7") && error.contains("upgrade"),
            "{error}"
        );
        assert!(Command::decode(&bytes[..20]).is_err());
    }

    #[test]
    fn outcomes_are_read_back() {
        let outcomes = vec![
            WriteOutcome::StaleEpoch,
            WriteOutcome::Done {
                version: Timestamp(9),
                deleted: 2,
                resume: Some(Key::from_static(b"x")),
            },
        ];
        assert_eq!(decode_outcomes(&encode_outcomes(&outcomes)), Ok(outcomes));
        assert!(decode_outcomes(b"").is_err());
    }
}
