//! One leader per term (Ongaro's thesis, figure 3.2: election safety). Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::ReplicaId;

/// Who was seen to lead which term.
#[derive(Debug, Default)]
pub struct Leaders {
    terms: BTreeMap<(GroupId, u64), ReplicaId>,
}

impl Leaders {
    /// A replica says that it leads the term, or acts as if.
    pub fn led(&mut self, group: GroupId, term: u64, by: ReplicaId) -> Result<(), Violation> {
        let known = *self.terms.entry((group, term)).or_insert(by);
        match known == by {
            true => Ok(()),
            false => Err(format!(
                "two leaders in term {term} of {group}: {known} and {by}"
            )),
        }
    }

    /// How many terms were led.
    pub fn count(&self) -> usize {
        self.terms.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_has_one_leader() {
        let mut leaders = Leaders::default();
        let group = GroupId::Placement;
        assert_eq!(leaders.led(group, 1, ReplicaId(1)), Ok(()));
        assert_eq!(leaders.led(group, 1, ReplicaId(1)), Ok(()));
        assert_eq!(leaders.led(group, 2, ReplicaId(2)), Ok(()));
        assert!(leaders.led(group, 1, ReplicaId(2)).is_err());
    }
}
