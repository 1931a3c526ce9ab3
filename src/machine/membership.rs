//! Who is in a group, as logs, rows and snapshots store it. Decides only.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::codec::value;
use crate::machine::MachineError;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::shard::Replica;

/// The first byte of an encoded membership.
const FORMAT: u8 = 1;

/// The replicas of a group. Every voter has a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// One set of voters; two while a change is joint.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// Every replica, learners too, and its node.
    pub nodes: BTreeMap<ReplicaId, NodeId>,
}

impl Membership {
    /// All of them voters.
    pub fn of(replicas: &[Replica]) -> Membership {
        let nodes = replicas.iter().map(|replica| (replica.id, replica.node));
        Membership {
            voters: vec![replicas.iter().map(|replica| replica.id).collect()],
            nodes: nodes.collect(),
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        value::encode(FORMAT, self).into()
    }

    /// Reads the stored form. An error when a voter has no node.
    pub fn decode(bytes: &[u8]) -> Result<Membership, MachineError> {
        let membership: Membership = value::decode("a membership", FORMAT, bytes)?;
        let mut voters = membership.voters.iter().flatten();
        match voters.find(|voter| !membership.nodes.contains_key(voter)) {
            Some(voter) => Err(MachineError(format!(
                "decode a membership: the voter {voter} has no node"
            ))),
            None => Ok(membership),
        }
    }

    /// Whether a change is under way: two sets of voters must agree.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }

    /// Every replica, voters and learners, by id.
    pub fn replicas(&self) -> Vec<Replica> {
        let replicas = self.nodes.iter();
        replicas.map(|(&id, &node)| Replica { id, node }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u64, node: u64) -> Replica {
        Replica {
            id: ReplicaId(id),
            node: NodeId(node),
        }
    }

    #[test]
    fn the_first_format_is_still_read_and_written() {
        let old = [1, 1, 2, 7, 9, 3, 7, 1, 8, 3, 9, 2];
        let mut membership = Membership::of(&[replica(7, 1), replica(9, 2)]);
        membership.nodes.insert(ReplicaId(8), NodeId(3));
        assert_eq!(Membership::decode(&old).unwrap(), membership);
        assert_eq!(*membership.encode(), old);
        let all = [replica(7, 1), replica(8, 3), replica(9, 2)];
        assert_eq!(membership.replicas(), all);
        assert!(!membership.is_joint());
    }

    #[test]
    fn a_voter_without_a_node_is_refused() {
        let mut membership = Membership::of(&[replica(7, 1)]);
        membership.voters.push([ReplicaId(8)].into());
        assert!(membership.is_joint());
        assert!(Membership::decode(&membership.encode()).is_err());
        assert!(Membership::decode(b"").is_err());
    }
}
