//! What placement's group replicates, as it stands in the log. Decides only.

use bytes::Bytes;

use crate::codec::value;
use crate::codec::value::ValueError;
pub use crate::types::placement::PlacementAnswer;
pub use crate::types::placement::PlacementCommand;

const COMMAND_FORMAT: u8 = 1;
const ANSWER_FORMAT: u8 = 1;

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
