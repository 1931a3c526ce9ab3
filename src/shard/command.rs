//! What a shard's log entries say, and what applying them answers. Decides only.
//!
//! A command begins with a header of fixed layout, so that a program that does not know its kind still
//! reads when it was proposed and says clearly what it cannot do.

use bytes::Bytes;

use crate::codec::value;
use crate::codec::value::ValueError;
use crate::machine::MachineError;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::types::Key;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::request::Write;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;

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
    /// Splits the shard.
    pub const SPLIT: u8 = 7;
    /// Merge: the left shard begins.
    pub const PREPARE_MERGE: u8 = 8;
    /// Merge: the right shard stops.
    pub const FREEZE: u8 = 9;
    /// Merge: the left shard takes the right one's keys.
    pub const ABSORB: u8 = 10;
    /// Merge: the left shard gives up.
    pub const CANCEL: u8 = 11;
    /// Merge: the right shard goes on alone.
    pub const UNFREEZE: u8 = 12;
    /// Reserved: changes how long outcomes and history are kept.
    pub const RETENTION: u8 = 13;
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 2 + 4 * 8;
const ANSWER_FORMAT: u8 = 1;

/// What every command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The stamp of the first write; the leader has reserved one for each, and one for a split or a step of a
    /// merge. Rises along the log.
    pub stamp: Timestamp,
    /// The leader closes no timestamp above it. `ZERO` leaves the ceiling where it is.
    pub ceiling: Timestamp,
    /// The shard's epoch that the leader checked the writes against, or that the split or merge was planned at.
    pub epoch: Epoch,
}

/// What an entry asks of the shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// What every command says.
    pub header: Header,
    /// What is asked.
    pub body: Body,
}

/// The kinds of commands that this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Writes that were proposed together, in order. Write `i` has the stamp `header.stamp.plus(i)`.
    Writes(Vec<Write>),
    /// Splits the shard in two.
    Split(Split),
    /// A step of a merge with a neighbour.
    Merge(MergeStep),
}

/// Where a shard is split, and what its right half becomes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Split {
    /// The first key of the right half. Inside the shard's range, and not its start.
    pub at: Key,
    /// The id of the right half, never used before.
    pub child: ShardId,
    /// How much there is left of the key, as counted when the split was planned.
    pub left: Size,
    /// The right half's replicas, one on each node that has one of the shard; ids never used before.
    pub replicas: Vec<Replica>,
}

impl Default for Body {
    fn default() -> Body {
        Body::Writes(Vec::new())
    }
}

impl Body {
    fn kind(&self) -> u8 {
        match self {
            Body::Writes(_) => kind::WRITE,
            Body::Split(_) => kind::SPLIT,
            Body::Merge(MergeStep::Prepare(_)) => kind::PREPARE_MERGE,
            Body::Merge(MergeStep::Freeze(_)) => kind::FREEZE,
            Body::Merge(MergeStep::Absorb(_)) => kind::ABSORB,
            Body::Merge(MergeStep::Cancel(_)) => kind::CANCEL,
            Body::Merge(MergeStep::Unfreeze(_)) => kind::UNFREEZE,
        }
    }

    /// How many stamps it takes, at least one.
    pub fn stamps(&self) -> u64 {
        match self {
            Body::Writes(writes) => (writes.len() as u64).max(1),
            Body::Split(_) | Body::Merge(_) => 1,
        }
    }
}

impl Command {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEADER_BYTES + 64 * self.body.stamps() as usize);
        out.extend_from_slice(&[FORMAT, self.body.kind()]);
        for number in [
            self.header.stamp.0,
            self.header.ceiling.0,
            self.header.epoch.conf,
            self.header.epoch.bounds,
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        match &self.body {
            Body::Writes(writes) => value::append(&mut out, writes),
            Body::Split(split) => value::append(&mut out, split),
            Body::Merge(MergeStep::Prepare(prepare)) => value::append(&mut out, prepare),
            Body::Merge(MergeStep::Absorb(absorb)) => value::append(&mut out, absorb),
            Body::Merge(MergeStep::Unfreeze(unfreeze)) => value::append(&mut out, unfreeze),
            Body::Merge(MergeStep::Freeze(attempt) | MergeStep::Cancel(attempt)) => {
                value::append(&mut out, attempt);
            }
        }
        out.into()
    }

    /// Whether these bytes may say that a shard absorbs its neighbour: told without reading them all.
    pub(crate) fn may_absorb(bytes: &[u8]) -> bool {
        bytes.get(1) == Some(&kind::ABSORB)
    }

    /// Reads an entry. An error is the same on every replica, and stops each: an older program cannot
    /// go on without knowing what the entry did.
    pub fn decode(bytes: &[u8]) -> Result<Command, MachineError> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| {
            MachineError(format!("{} bytes are too short for a command", bytes.len()))
        })?;
        let body = match (header[0], header[1]) {
            (FORMAT, kind::WRITE) => {
                Body::Writes(value::decode_fields("the writes of a command", body)?)
            }
            (FORMAT, kind::SPLIT) => Body::Split(value::decode_fields("a split", body)?),
            (FORMAT, kind) => match decode_step(kind, body)? {
                Some(step) => Body::Merge(step),
                None => return Err(of_newer_program(FORMAT, kind)),
            },
            (format, kind) => return Err(of_newer_program(format, kind)),
        };
        let number = |at: usize| {
            let at = 2 + at * 8;
            let bytes = header[at..at + 8].try_into();
            u64::from_be_bytes(bytes.expect("eight bytes were sliced"))
        };
        let header = Header {
            stamp: Timestamp(number(0)),
            ceiling: Timestamp(number(1)),
            epoch: Epoch {
                conf: number(2),
                bounds: number(3),
            },
        };
        Ok(Command { header, body })
    }
}

/// `None`: the kind is none of a step of a merge.
fn decode_step(kind: u8, body: &[u8]) -> Result<Option<MergeStep>, ValueError> {
    let step = match kind {
        kind::PREPARE_MERGE => MergeStep::Prepare(value::decode_fields("a prepared merge", body)?),
        kind::FREEZE => MergeStep::Freeze(value::decode_fields("a freeze", body)?),
        kind::ABSORB => MergeStep::Absorb(value::decode_fields("an absorption", body)?),
        kind::CANCEL => MergeStep::Cancel(value::decode_fields("a cancelled merge", body)?),
        kind::UNFREEZE => MergeStep::Unfreeze(value::decode_fields("the end of a freeze", body)?),
        _ => return Ok(None),
    };
    Ok(Some(step))
}

fn of_newer_program(format: u8, kind: u8) -> MachineError {
    MachineError(format!(
        "a command of format {format} and kind {kind} is of a newer program version; this one knows \
         format {FORMAT}, kinds {}, and {} to {}: upgrade this node",
        kind::WRITE,
        kind::SPLIT,
        kind::UNFREEZE
    ))
}

/// What applying a command answers, the same on every replica. The answer to any other entry is empty.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Answer {
    /// One outcome for each write, in order.
    Writes(Vec<WriteOutcome>),
    /// How the split ended.
    Split(SplitOutcome),
    /// How the step of a merge ended.
    Merge(MergeOutcome),
}

/// How a split ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SplitOutcome {
    /// There are two shards now.
    Done {
        /// The shard that was split, without its right half.
        left: ShardDescriptor,
        /// The new shard.
        right: ShardDescriptor,
    },
    /// The shard has changed since the split was planned. Nothing was done: plan it again.
    Stale {
        /// The shard as it is.
        current: ShardDescriptor,
    },
    /// A change of the shard's membership is under way. Nothing was done: wait until it has ended.
    Joint,
    /// The split makes no sense for this shard, and never will. Nothing was done.
    Refused {
        /// Why.
        reason: String,
    },
    /// The stamp was not above the shard's last one. Nothing was done: propose it again.
    StaleStamp,
    /// The shard has a part in a merge. Nothing was done: wait until that has ended.
    Merging,
}

impl Answer {
    /// The bytes that the proposer gets.
    pub fn encode(&self) -> Bytes {
        value::encode(ANSWER_FORMAT, self).into()
    }

    /// Reads the answer to a command. The answer to any other entry is empty and is refused here.
    pub fn decode(bytes: &[u8]) -> Result<Answer, ValueError> {
        value::decode("the answer to a command", ANSWER_FORMAT, bytes)
    }
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::NodeId;
    use crate::types::Position;
    use crate::types::ReplicaId;
    use crate::types::RequestId;
    use crate::types::request::Condition;
    use crate::types::request::Operation;
    use crate::types::request::WriteKind;
    use crate::types::shard::Attempt;

    use crate::shard::merge_command::Absorb;
    use crate::shard::merge_command::Prepare;
    use crate::shard::merge_command::Unfreeze;

    use super::*;

    fn command() -> Command {
        Command {
            header: Header {
                stamp: Timestamp(0x11),
                ceiling: Timestamp(0x22),
                epoch: Epoch { conf: 3, bounds: 4 },
            },
            body: Body::Writes(vec![Write {
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
            }]),
        }
    }

    fn split() -> Command {
        Command {
            body: Body::Split(Split {
                at: Key::from_static(b"m"),
                child: ShardId(5),
                left: Size { keys: 8, bytes: 9 },
                replicas: vec![Replica {
                    id: ReplicaId(6),
                    node: NodeId(7),
                }],
            }),
            ..command()
        }
    }

    fn attempt() -> Attempt {
        Attempt {
            bounds: 4,
            prepared: Position { term: 5, index: 6 },
            left: ShardId(1),
        }
    }

    fn right() -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(2),
            range: KeyRange {
                start: Key::from_static(b"m"),
                end: None,
            },
            epoch: Epoch { conf: 7, bounds: 8 },
            replicas: vec![Replica {
                id: ReplicaId(21),
                node: NodeId(9),
            }],
        }
    }

    fn old(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut old = vec![1, kind];
        for number in [0x11u64, 0x22, 3, 4] {
            old.extend_from_slice(&number.to_be_bytes());
        }
        old.extend_from_slice(body);
        old
    }

    #[test]
    fn the_first_format_is_still_read_and_written() {
        let body = [
            &[1][..],
            &[7; 16],
            &[0, 1, 2, 1, b'a', 1, 0, 1, b'a', 1, b'1'],
        ]
        .concat();
        let writes = old(1, &body);
        assert_eq!(Command::decode(&writes).unwrap(), command());
        assert_eq!(command().encode(), writes);
        let halves = old(7, &[1, b'm', 5, 8, 9, 1, 6, 7]);
        assert_eq!(Command::decode(&halves).unwrap(), split());
        assert_eq!(split().encode(), halves);
    }

    #[test]
    fn the_first_format_of_a_merge_is_still_read_and_written() {
        const ATTEMPT: [u8; 4] = [4, 5, 6, 1];
        const RIGHT: [u8; 9] = [2, 1, b'm', 0, 7, 8, 1, 21, 9];
        let absorb = Absorb {
            attempt: attempt(),
            right: right(),
            frozen: Position { term: 3, index: 10 },
            above: Timestamp(11),
        };
        let unfreeze = Unfreeze {
            attempt: attempt(),
            settled: Position { term: 5, index: 12 },
        };
        let prepare = Prepare {
            right: right(),
            over: vec![ShardId(44)],
        };
        let steps = [
            (
                8,
                MergeStep::Prepare(prepare),
                [&RIGHT[..], &[1, 44]].concat(),
            ),
            (9, MergeStep::Freeze(attempt()), ATTEMPT.to_vec()),
            (
                10,
                MergeStep::Absorb(absorb),
                [&ATTEMPT[..], &RIGHT, &[3, 10, 11]].concat(),
            ),
            (11, MergeStep::Cancel(attempt()), ATTEMPT.to_vec()),
            (
                12,
                MergeStep::Unfreeze(unfreeze),
                [&ATTEMPT[..], &[5, 12]].concat(),
            ),
        ];
        for (kind, step, body) in steps {
            let bytes = old(kind, &body);
            let command = Command {
                body: Body::Merge(step),
                ..command()
            };
            assert_eq!(command.encode(), bytes);
            assert_eq!(Command::may_absorb(&bytes), kind == kind::ABSORB);
            assert_eq!(Command::decode(&bytes).unwrap(), command);
        }
    }

    #[test]
    fn an_unknown_kind_says_what_to_do() {
        let mut bytes = command().encode().to_vec();
        bytes[1] = kind::RETENTION;
        let error = Command::decode(&bytes).unwrap_err().to_string();
        assert!(
            error.contains("kind 13") && error.contains("upgrade"),
            "{error}"
        );
        assert!(Command::decode(&bytes[..20]).is_err());
    }

    #[test]
    fn answers_are_read_back() {
        let writes = Answer::Writes(vec![
            WriteOutcome::StaleEpoch,
            WriteOutcome::Done {
                version: Timestamp(9),
                deleted: 2,
                resume: Some(Key::from_static(b"x")),
            },
        ]);
        let current = ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch { conf: 3, bounds: 4 },
            replicas: Vec::new(),
        };
        let stale = Answer::Split(SplitOutcome::Stale { current });
        let frozen = Answer::Merge(MergeOutcome::Frozen {
            right: right(),
            position: Position { term: 3, index: 10 },
            above: Timestamp(11),
        });
        let settled = Answer::Merge(MergeOutcome::Settled);
        let merging = Answer::Split(SplitOutcome::Merging);
        assert_eq!(*settled.encode(), [1, 2, 8]);
        assert_eq!(*merging.encode(), [1, 1, 5]);
        for answer in [writes, stale, frozen, settled, merging] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        assert!(Answer::decode(b"").is_err());
    }
}
