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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Incarnation;
    use crate::types::NodeId;
    use crate::types::node::Newcomer;

    #[test]
    fn examples_of_format_one_are_read() {
        let newcomer = Newcomer {
            incarnation: Incarnation([4; 16]),
            name: "n4".into(),
            node_address: "a:1".into(),
            client_address: "a:2".into(),
        };
        let add = [&[1, 3][..], &[4; 16], b"\x02n4\x03a:1\x03a:2"].concat();
        let decoded = PlacementCommand::decode(&add).unwrap();
        assert_eq!(decoded, PlacementCommand::AddMember(newcomer));
        assert_eq!(decoded.encode(), add);
        let take = PlacementCommand::decode(&[1, 2, 7]).unwrap();
        assert_eq!(take, PlacementCommand::TakeIds { count: 7 });
        let answers = [
            (&[1, 0][..], PlacementAnswer::Recorded),
            (&[1, 1], PlacementAnswer::Outdated),
            (&[1, 2, 9], PlacementAnswer::FirstId(9)),
            (&[1, 3, 9], PlacementAnswer::Member(NodeId(9))),
        ];
        for (bytes, answer) in answers {
            assert_eq!(PlacementAnswer::decode(bytes), Ok(answer));
            assert_eq!(answer.encode(), bytes);
        }
    }
}
