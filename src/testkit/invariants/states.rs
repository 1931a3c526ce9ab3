//! Replicas that have applied the same have the same state. Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::Position;
use crate::types::ReplicaId;

/// The states that were seen, by their hashes.
#[derive(Debug, Default)]
pub struct States {
    seen: BTreeMap<(GroupId, Position), (u64, ReplicaId)>,
    compared: u64,
}

impl States {
    /// A replica that has applied up to a position has a state with this hash.
    pub fn seen(
        &mut self,
        group: GroupId,
        position: Position,
        hash: u64,
        by: ReplicaId,
    ) -> Result<(), Violation> {
        let known = *self.seen.entry((group, position)).or_insert((hash, by));
        self.compared += u64::from(known.1 != by);
        match known.0 == hash {
            true => Ok(()),
            false => Err(format!(
                "{group} at {position} is {:016x} on {} and {hash:016x} on {by}",
                known.0, known.1
            )),
        }
    }

    /// How often two replicas were compared.
    pub fn compared(&self) -> u64 {
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_positions_have_equal_states() {
        let mut states = States::default();
        let mut see = |term, index, hash, by| {
            let position = Position { term, index };
            states.seen(GroupId::Placement, position, hash, ReplicaId(by))
        };
        assert_eq!(see(1, 1, 7, 1), Ok(()));
        assert_eq!(see(1, 1, 7, 2), Ok(()));
        assert_eq!(see(1, 2, 8, 2), Ok(()));
        assert!(see(1, 2, 7, 1).is_err());
        assert_eq!(states.compared(), 2);
    }
}
