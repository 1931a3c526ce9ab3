//! What placement's group replicates. Decides only.

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::codec::value;
use crate::codec::value::ValueError;
use crate::types::node::Member;
use crate::types::shard::ShardDescriptor;

const COMMAND_FORMAT: u8 = 1;
const ANSWER_FORMAT: u8 = 1;

/// One change of placement's state. Variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementCommand {
    /// A node is a member, with these addresses.
    RecordMember(Member),
    /// A shard is like this; kept unless a later epoch is known.
    RecordShard(ShardDescriptor),
    /// Gives out numbers for nodes, shards or replicas, in a row and never again.
    TakeIds {
        /// How many.
        count: u64,
    },
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementAnswer {
    /// It is recorded.
    Recorded,
    /// A later state was known already; nothing was changed.
    Outdated,
    /// The first of the numbers given out.
    FirstId(u64),
}

impl PlacementCommand {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        value::encode(COMMAND_FORMAT, self).into()
    }

    /// Reads an entry; an error is the same on every replica and stops each.
    pub fn decode(bytes: &[u8]) -> Result<PlacementCommand, ValueError> {
        value::decode("a command of placement", COMMAND_FORMAT, bytes)
    }
}

impl PlacementAnswer {
    /// The answer's bytes.
    pub fn encode(&self) -> Bytes {
        value::encode(ANSWER_FORMAT, self).into()
    }

    /// Reads the answer to a command. The answer to any other entry is empty and is refused here.
    pub fn decode(bytes: &[u8]) -> Result<PlacementAnswer, ValueError> {
        value::decode("an answer of placement", ANSWER_FORMAT, bytes)
    }
}
