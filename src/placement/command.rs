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
    use crate::types::ShardId;
    use crate::types::Timestamp;
    use crate::types::keyspace::Buckets;
    use crate::types::keyspace::Keyspace;
    use crate::types::keyspace::Layout;
    use crate::types::node::Newcomer;
    use crate::types::operator::Action;
    use crate::types::operator::Aim;
    use crate::types::operator::Operator;
    use crate::types::shard::Epoch;

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
        let end = PlacementCommand::decode(&[1, 12, 5, 9]).unwrap();
        let (shard, change) = (ShardId(5), 9);
        assert_eq!(end, PlacementCommand::EndOperator { shard, change });
        // One operator: shard, aim, action with its right shard and epoch, reason, epoch, no voters, bytes, expiry.
        let merge = [1, 11, 1, 5, 13, 5, 6, 2, 3, 1, b'w', 1, 2, 0, 0, 8];
        let operator = Operator {
            shard: ShardId(5),
            aim: Aim::Merge,
            action: Action::Merge {
                right: ShardId(6),
                epoch: Epoch { conf: 2, bounds: 3 },
            },
            reason: "w".to_owned(),
            epoch: Epoch { conf: 1, bounds: 2 },
            voters: Vec::new(),
            bytes: 0,
            expires: Timestamp(8),
        };
        let recorded = PlacementCommand::RecordOperators(vec![operator]);
        assert_eq!(PlacementCommand::decode(&merge), Ok(recorded.clone()));
        assert_eq!(recorded.encode(), merge.as_slice());
        let paused = PlacementCommand::decode(&[1, 10, 1]).unwrap();
        assert_eq!(paused, PlacementCommand::SetPaused(true));
        let buckets = Buckets { count: 4, parts: 2 };
        let keyspace = Keyspace {
            name: "ks".parse().unwrap(),
            prefix: "p/".into(),
            layout: Layout::Hash(buckets),
        };
        let create = b"\x01\x0d\x02ks\x02p/\x01\x04\x02";
        let decoded = PlacementCommand::decode(create).unwrap();
        assert_eq!(decoded, PlacementCommand::CreateKeyspace(keyspace));
        assert_eq!(decoded.encode(), &create[..]);
        let retire = PlacementCommand::decode(b"\x01\x0e\x02ks").unwrap();
        let name = "ks".parse().unwrap();
        assert_eq!(retire, PlacementCommand::RetireKeyspace { name });
        let answers = [
            (&[1, 0][..], PlacementAnswer::Recorded),
            (&[1, 1], PlacementAnswer::Outdated),
            (&[1, 2, 9], PlacementAnswer::FirstId(9)),
            (&[1, 3, 9], PlacementAnswer::Member(NodeId(9))),
            (&[1, 4], PlacementAnswer::Missing),
        ];
        for (bytes, answer) in answers {
            assert_eq!(PlacementAnswer::decode(bytes), Ok(answer));
            assert_eq!(answer.encode(), bytes);
        }
    }
}
