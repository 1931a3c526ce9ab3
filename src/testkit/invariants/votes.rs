//! A replica gives one vote in a term, whatever it forgets in a crash. Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::ReplicaId;

/// Who was seen to give its vote to whom.
#[derive(Debug, Default)]
pub struct Votes {
    given: BTreeMap<(GroupId, ReplicaId, u64), ReplicaId>,
}

impl Votes {
    /// A voter has given its vote of the term to a candidate.
    pub fn granted(
        &mut self,
        group: GroupId,
        voter: ReplicaId,
        term: u64,
        candidate: ReplicaId,
    ) -> Result<(), Violation> {
        let place = (group, voter, term);
        let known = *self.given.entry(place).or_insert(candidate);
        match known == candidate {
            true => Ok(()),
            false => Err(format!(
                "{voter} of {group} voted twice in term {term}: for {known} and for {candidate}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_is_given_once_in_a_term() {
        let mut votes = Votes::default();
        let mut give =
            |term, to| votes.granted(GroupId::Placement, ReplicaId(1), term, ReplicaId(to));
        assert_eq!(give(1, 2), Ok(()));
        assert_eq!(give(1, 2), Ok(()));
        assert_eq!(give(2, 3), Ok(()));
        assert!(give(1, 3).is_err());
    }
}
