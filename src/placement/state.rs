//! What placement knows. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::placement::command::PlacementAnswer;
use crate::placement::command::PlacementCommand;
use crate::types::NodeId;
use crate::types::node::Member;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;

/// Placement's whole state. Shards are as last reported: their own groups are the authority.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlacementState {
    /// The nodes, by id.
    pub members: Vec<Member>,
    /// The shards, by id.
    pub shards: Vec<ShardDescriptor>,
    /// The next number for a node, a shard or a replica.
    pub next_id: u64,
}

impl PlacementState {
    /// The state of a cluster just formed. Numbers above those in use here are given out from now on.
    pub fn formed(members: Vec<Member>, shards: Vec<ShardDescriptor>) -> PlacementState {
        let nodes = members.iter().map(|member| member.id.0);
        let replicas = shards.iter().flat_map(|shard| &shard.replicas);
        let used = nodes
            .chain(replicas.map(|replica| replica.id.0))
            .chain(shards.iter().map(|shard| shard.id.0));
        let next_id = used.max().unwrap_or(0) + 1;
        let mut state = PlacementState {
            members,
            shards,
            next_id,
        };
        state.members.sort_by_key(|member| member.id);
        state.shards.sort_by_key(|shard| shard.id);
        state
    }

    /// A node, if it is a member.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Makes one change.
    pub fn apply(&mut self, command: PlacementCommand) -> PlacementAnswer {
        match command {
            PlacementCommand::RecordMember(member) => {
                match self
                    .members
                    .binary_search_by_key(&member.id, |known| known.id)
                {
                    Ok(at) => self.members[at] = member,
                    Err(at) => self.members.insert(at, member),
                }
                PlacementAnswer::Recorded
            }
            PlacementCommand::RecordShard(shard) => self.record_shard(shard),
            PlacementCommand::TakeIds { count } => {
                let first = self.next_id;
                self.next_id = first.saturating_add(count);
                PlacementAnswer::FirstId(first)
            }
        }
    }

    /// Reports come late and out of order; the epoch tells.
    fn record_shard(&mut self, shard: ShardDescriptor) -> PlacementAnswer {
        match self
            .shards
            .binary_search_by_key(&shard.id, |known| known.id)
        {
            Ok(at) if is_before(shard.epoch, self.shards[at].epoch) => PlacementAnswer::Outdated,
            Ok(at) => {
                self.shards[at] = shard;
                PlacementAnswer::Recorded
            }
            Err(at) => {
                self.shards.insert(at, shard);
                PlacementAnswer::Recorded
            }
        }
    }
}

/// Both parts of an epoch only rise, so that of two states of a shard one is later in both.
fn is_before(epoch: Epoch, known: Epoch) -> bool {
    epoch.conf < known.conf || epoch.bounds < known.bounds
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::shard::Replica;

    use super::*;

    fn shard(conf: u64, bounds: u64) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch { conf, bounds },
            replicas: vec![Replica {
                id: ReplicaId(41),
                node: NodeId(2),
            }],
        }
    }

    #[test]
    fn a_late_report_does_not_undo_a_later_one() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(2, 2)]);
        let record = |state: &mut PlacementState, conf, bounds| {
            state.apply(PlacementCommand::RecordShard(shard(conf, bounds)))
        };
        assert_eq!(record(&mut state, 1, 2), PlacementAnswer::Outdated);
        assert_eq!(record(&mut state, 2, 1), PlacementAnswer::Outdated);
        assert_eq!(record(&mut state, 3, 2), PlacementAnswer::Recorded);
        assert_eq!(state.shards, [shard(3, 2)]);
    }

    #[test]
    fn numbers_in_use_are_not_given_out() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 1)]);
        let first = state.apply(PlacementCommand::TakeIds { count: 3 });
        assert_eq!(first, PlacementAnswer::FirstId(42));
        let next = state.apply(PlacementCommand::TakeIds { count: 1 });
        assert_eq!(next, PlacementAnswer::FirstId(45));
    }
}
