//! Placement never leaves a group with fewer voters than are wanted: it adds before it removes. Decides only.

use crate::machine::Membership;
use crate::testkit::invariants::Violation;
use crate::types::GroupId;

/// How few voters may be seen.
#[derive(Debug, Default)]
pub struct Voters {
    /// 0: nothing is known about what is wanted.
    pub least: usize,
}

impl Voters {
    /// A leader knows this membership of its group. While it is joint both sets count.
    pub fn seen(&self, group: GroupId, membership: &Membership) -> Result<(), Violation> {
        let sets = membership.voters.iter();
        match sets
            .map(|set| set.len())
            .find(|voters| *voters < self.least)
        {
            None => Ok(()),
            Some(voters) => Err(format!(
                "{group} has {voters} voters, and nobody wants fewer than {}",
                self.least
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::NodeId;
    use crate::types::ReplicaId;

    #[test]
    fn a_smaller_set_is_found_also_while_it_is_joint() {
        let voters = Voters { least: 3 };
        let seen = |sets: &[&[u64]]| {
            let set = |ids: &&[u64]| ids.iter().copied().map(ReplicaId).collect();
            let membership = Membership {
                voters: sets.iter().map(set).collect(),
                nodes: BTreeMap::from([(ReplicaId(1), NodeId(1))]),
            };
            voters.seen(GroupId::Placement, &membership).is_ok()
        };
        assert!(seen(&[&[1, 2, 3]]) && seen(&[&[1, 2, 3], &[1, 2, 3, 4]]));
        assert!(!seen(&[&[1, 2]]) && !seen(&[&[1, 2, 3], &[1, 2]]));
    }
}
