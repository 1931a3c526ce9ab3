//! A replica gives one vote in a term, and its term never falls, whatever it forgets in a crash. Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::ReplicaId;

/// Who was seen to give its vote to whom.
#[derive(Debug, Default)]
pub struct Votes {
    given: BTreeMap<(GroupId, ReplicaId, u64), ReplicaId>,
    /// The highest term of each that was seen before its last look.
    reached: BTreeMap<(GroupId, ReplicaId), u64>,
    /// The highest term in which each has given its vote, or said that it has what a leader sent.
    promised: BTreeMap<(GroupId, ReplicaId), u64>,
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
        self.took(group, voter, term);
        match known == candidate {
            true => Ok(()),
            false => Err(format!(
                "{voter} of {group} voted twice in term {term}: for {known} and for {candidate}"
            )),
        }
    }

    /// A replica has told the leader of the term that it has what was sent.
    pub fn took(&mut self, group: GroupId, replica: ReplicaId, term: u64) {
        let promised = self.promised.entry((group, replica)).or_default();
        *promised = term.max(*promised);
    }

    /// A replica says that it is in this term. Term 0 is that of a replica that has not read its log yet.
    pub fn reached(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        term: u64,
    ) -> Result<(), Violation> {
        let known = self.reached.entry((group, replica)).or_default();
        let before = std::mem::replace(known, term.max(*known));
        match term >= before || term == 0 {
            true => Ok(()),
            false => Err(format!(
                "{replica} of {group} is in term {term} and was in term {before}"
            )),
        }
    }

    /// A replica has ended. While it lived it may have said late which term it was in, or before that was on
    /// its disk; when it comes back it knows every term in which it has told another one something.
    pub fn ended(&mut self, group: GroupId, replica: ReplicaId) {
        let of = (group, replica);
        let promised = self.promised.get(&of).copied().unwrap_or_default();
        self.reached.insert(of, promised);
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

    #[test]
    fn a_term_never_falls() {
        let (group, voter) = (GroupId::Placement, ReplicaId(1));
        let mut votes = Votes::default();
        assert_eq!(votes.reached(group, voter, 2), Ok(()));
        assert_eq!(votes.granted(group, voter, 4, ReplicaId(2)), Ok(()));
        assert_eq!(votes.reached(group, voter, 3), Ok(()));
        votes.ended(group, voter);
        assert_eq!(votes.reached(group, voter, 0), Ok(()));
        assert!(votes.reached(group, voter, 3).is_err());
        assert_eq!(votes.reached(group, voter, 4), Ok(()));
        assert_eq!(votes.reached(group, ReplicaId(2), 1), Ok(()));
        // It was in term 6 and has told nobody.
        votes.took(group, voter, 5);
        assert_eq!(votes.reached(group, voter, 6), Ok(()));
        assert!(votes.reached(group, voter, 5).is_err());
        votes.ended(group, voter);
        assert_eq!(votes.reached(group, voter, 5), Ok(()));
        votes.ended(group, voter);
        assert!(votes.reached(group, voter, 4).is_err());
    }
}
