//! A replica's id is used once: for one group, on one node. Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::ReplicaId;

/// Where which replica was seen.
#[derive(Debug, Default)]
pub struct Replicas {
    places: BTreeMap<ReplicaId, (GroupId, NodeId)>,
}

impl Replicas {
    /// The replicas that were seen on a node.
    pub fn on(&self, node: NodeId) -> Vec<(GroupId, ReplicaId)> {
        let places = self.places.iter();
        let here = places.filter(|(_, (_, on))| *on == node);
        here.map(|(replica, (group, _))| (*group, *replica))
            .collect()
    }

    /// A node has a replica of a group.
    pub fn seen(
        &mut self,
        replica: ReplicaId,
        group: GroupId,
        node: NodeId,
    ) -> Result<(), Violation> {
        let known = *self.places.entry(replica).or_insert((group, node));
        match known == (group, node) {
            true => Ok(()),
            false => Err(format!(
                "{replica} is of {} on {} and of {group} on {node}",
                known.0, known.1
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_in_one_place() {
        let mut replicas = Replicas::default();
        let mut see = |id, node| replicas.seen(ReplicaId(id), GroupId::Placement, NodeId(node));
        assert_eq!(see(1, 1), Ok(()));
        assert_eq!(see(1, 1), Ok(()));
        assert!(see(1, 2).is_err());
    }
}
