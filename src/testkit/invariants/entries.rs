//! Committed entries are equal everywhere, and one place of a log has one entry for each term (Ongaro's
//! thesis, figure 3.2: log matching and state machine safety). Decides only.

use std::collections::BTreeMap;

use crate::testkit::invariants::Violation;
use crate::types::GroupId;
use crate::types::Position;
use crate::types::log::LogEntry;

/// Entries that were seen, by their checksums.
#[derive(Debug, Default)]
pub struct Entries {
    proposed: BTreeMap<(GroupId, Position), u32>,
    committed: BTreeMap<(GroupId, u64), (u64, u32)>,
}

impl Entries {
    /// An entry is in a log or on its way there.
    pub fn seen(&mut self, group: GroupId, entry: &LogEntry) -> Result<(), Violation> {
        let sum = checksum(entry);
        let place = (group, entry.position);
        let known = *self.proposed.entry(place).or_insert(sum);
        match known == sum {
            true => Ok(()),
            false => Err(format!(
                "two entries at {} of {group}: {known:08x} and {sum:08x}",
                entry.position
            )),
        }
    }

    /// An entry is said to be committed.
    pub fn committed(&mut self, group: GroupId, entry: &LogEntry) -> Result<(), Violation> {
        self.seen(group, entry)?;
        let Position { term, index } = entry.position;
        let found = (term, checksum(entry));
        let known = *self.committed.entry((group, index)).or_insert(found);
        match known == found {
            true => Ok(()),
            false => Err(format!(
                "two committed entries at index {index} of {group}: {:08x} of term {} and {:08x} of term {term}",
                known.1, known.0, found.1
            )),
        }
    }

    /// How many committed entries were seen.
    pub fn count(&self) -> usize {
        self.committed.len()
    }
}

fn checksum(entry: &LogEntry) -> u32 {
    let kind = match entry.payload {
        crate::types::log::Payload::Blank => 0,
        crate::types::log::Payload::Command(_) => 1,
        crate::types::log::Payload::Membership(_) => 2,
    };
    crc32c::crc32c_append(kind, entry.payload.bytes())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::log::Payload;

    fn entry(term: u64, index: u64, what: &'static str) -> LogEntry {
        LogEntry {
            position: Position { term, index },
            payload: Payload::Command(Bytes::from(what)),
        }
    }

    #[test]
    fn a_position_has_one_entry() {
        let mut entries = Entries::default();
        let group = GroupId::Placement;
        assert_eq!(entries.seen(group, &entry(1, 1, "a")), Ok(()));
        assert_eq!(entries.seen(group, &entry(2, 1, "b")), Ok(()));
        assert!(entries.seen(group, &entry(1, 1, "b")).is_err());
    }

    #[test]
    fn an_index_is_committed_once() {
        let mut entries = Entries::default();
        let group = GroupId::Placement;
        assert_eq!(entries.committed(group, &entry(1, 1, "a")), Ok(()));
        assert_eq!(entries.committed(group, &entry(1, 1, "a")), Ok(()));
        assert!(entries.committed(group, &entry(2, 1, "a")).is_err());
    }
}
