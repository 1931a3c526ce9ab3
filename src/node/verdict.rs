//! Which replica of a shard is not as the others are. Decides only: `selfcheck.rs` asks them.
//!
//! More than half of all replicas that say the same are right; a replica that says something else about the
//! same position is not. Without such a majority nobody can tell who is wrong, and nobody is destroyed: of
//! two that differ each may be the good one. That is an alarm for a person, and the third one's answer may
//! settle it at the next look. The leader goes on to serve: nothing speaks against it more than against the
//! other, and a shard that stands still repairs nothing.
//!
//! A replica that cannot read what it has stored needs no majority against it: it says so itself. But one
//! other must have read the same, or be whole: the last one that serves is never given up, since it still
//! has all that it can read.

use std::collections::BTreeMap;

use crate::types::ReplicaId;
use crate::types::shard::Link;

/// What the comparison has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<T> {
    /// All that can be compared are equal; maybe there was nothing to compare.
    Equal,
    /// These differ from the majority, which says `expected`.
    Odd {
        /// What the majority says.
        expected: T,
        /// Who says what else.
        odd: Vec<(ReplicaId, T)>,
    },
    /// They differ, and no majority says which are right.
    Undecided(Vec<(ReplicaId, T)>),
}

/// Compares what some of `replicas` replicas have said of the same.
pub fn compare<T: Copy + Ord>(said: &[(ReplicaId, T)], replicas: usize) -> Verdict<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for (_, what) in said {
        *counts.entry(*what).or_default() += 1;
    }
    if counts.len() < 2 {
        return Verdict::Equal;
    }
    let majority = counts.iter().find(|(_, count)| **count * 2 > replicas);
    let Some((expected, _)) = majority else {
        return Verdict::Undecided(said.to_vec());
    };
    let odd = said.iter().filter(|(_, what)| what != expected);
    Verdict::Odd {
        expected: *expected,
        odd: odd.copied().collect(),
    }
}

/// What replicas have found where they were to read the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    /// What those have read that could.
    pub said: Vec<(ReplicaId, T)>,
    /// Those that could not, though another one could.
    pub odd: Vec<ReplicaId>,
    /// Whether none could that answered.
    pub is_lost: bool,
}

/// Tells those that could read from those that could not (`None`).
pub fn read<T: Copy>(found: &[(ReplicaId, Option<T>)]) -> Read<T> {
    let said: Vec<(ReplicaId, T)> = found
        .iter()
        .filter_map(|(id, what)| what.map(|what| (*id, what)))
        .collect();
    let unreadable = found.iter().filter(|(_, what)| what.is_none());
    let mut odd: Vec<ReplicaId> = unreadable.map(|(id, _)| *id).collect();
    let is_lost = said.is_empty() && !odd.is_empty();
    if is_lost {
        odd.clear();
    }
    Read { said, odd, is_lost }
}

/// What the replicas say of the last position that most of them remember. The term is part of what they
/// say: two replicas with different entries at one place have parted ways.
pub fn at_one_place(reports: &[(ReplicaId, Vec<Link>)]) -> Vec<(ReplicaId, Said)> {
    let mut known: BTreeMap<u64, usize> = BTreeMap::new();
    for link in reports.iter().flat_map(|(_, links)| links) {
        *known.entry(link.position.index).or_default() += 1;
    }
    let Some((index, _)) = known
        .into_iter()
        .max_by_key(|(index, count)| (*count, *index))
    else {
        return Vec::new();
    };
    let at_index = |links: &[Link]| {
        let mut links = links.iter();
        links.find(|link| link.position.index == index).copied()
    };
    let said = reports.iter();
    said.filter_map(|(replica, links)| Some((*replica, Said::of(at_index(links)?))))
        .collect()
}

/// What a replica says of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// The place.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// The hash up to it.
    pub chain: u64,
}

impl Said {
    fn of(link: Link) -> Said {
        Said {
            index: link.position.index,
            term: link.position.term,
            chain: link.chain.0,
        }
    }
}

/// What speaks against removing a replica from its shard to be rebuilt, if anything does. More than half of
/// those that stay must answer, or nobody could change anything any more, and one of them must be whole, to
/// fill the next. Those that are quarantined themselves count among the first: they vote. Two that waited for
/// each other to be rebuilt would wait for ever. And its node must have room for the next: until then the
/// quarantined one at least votes and holds the log, and its shard has as many members as before.
pub fn hindrance(
    has_room: bool,
    others: usize,
    answering: usize,
    whole: usize,
) -> Option<&'static str> {
    if !has_room {
        return Some(
            "its node has too little room on its disk for the one that would take its place",
        );
    }
    if answering * 2 <= others {
        return Some("too few of the other replicas answer");
    }
    (whole == 0).then_some("no other replica that answers is whole")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Position;
    use crate::types::shard::Chain;

    /// Replica 1 says the first letter, and so on; `-` says nothing.
    fn compared(text: &str) -> String {
        let said: Vec<(ReplicaId, char)> = (1..)
            .zip(text.chars())
            .filter(|(_, what)| *what != '-')
            .map(|(id, what)| (ReplicaId(id), what))
            .collect();
        match compare(&said, text.len()) {
            Verdict::Equal => "equal".to_owned(),
            Verdict::Undecided(_) => "undecided".to_owned(),
            Verdict::Odd { expected, odd } => {
                let odd: Vec<String> = odd.iter().map(|(id, _)| id.to_string()).collect();
                format!("{expected}, not {}", odd.join(" "))
            }
        }
    }

    /// As `compared`; `!` cannot read.
    fn could_read(text: &str) -> String {
        let found: Vec<(ReplicaId, Option<char>)> = (1..)
            .zip(text.chars())
            .filter(|(_, what)| *what != '-')
            .map(|(id, what)| (ReplicaId(id), Some(what).filter(|what| *what != '!')))
            .collect();
        let Read { said, odd, is_lost } = read(&found);
        let said: String = said.iter().map(|(_, what)| what).collect();
        let odd: String = odd.iter().map(|id| format!(" {id}")).collect();
        let lost = if is_lost { " lost" } else { "" };
        format!("{said}{odd}{lost}")
    }

    #[test]
    fn one_that_cannot_read_is_odd_without_a_majority_but_never_the_last_one() {
        let table = [
            ("aaa", "aaa"),
            ("aa!", "aa r3"),
            ("a!!", "a r2 r3"),
            ("!a-", "a r1"),
            ("!--", " lost"),
            ("!!!", " lost"),
            ("---", ""),
        ];
        for (found, verdict) in table {
            assert_eq!(could_read(found), verdict, "{found}");
        }
    }

    #[test]
    fn more_than_half_of_all_replicas_are_right_and_nobody_else() {
        let table = [
            ("aaa", "equal"),
            ("a--", "equal"),
            ("aa-", "equal"),
            ("aab", "a, not r3"),
            ("baa", "a, not r1"),
            ("ab-", "undecided"),
            ("ab", "undecided"),
            ("abc", "undecided"),
            ("aaab-", "a, not r4"),
            ("aabc-", "undecided"),
            ("aaabc", "a, not r4 r5"),
        ];
        for (said, verdict) in table {
            assert_eq!(compared(said), verdict, "{said}");
        }
    }

    fn links(indexes: &[u64]) -> Vec<Link> {
        let link = |index: &u64| Link {
            position: Position {
                term: 2,
                index: *index,
            },
            chain: Chain(index * 10),
        };
        indexes.iter().map(link).collect()
    }

    #[test]
    fn the_last_place_that_most_remember_is_compared() {
        let at = |reports: [&[u64]; 3]| {
            let reports: Vec<_> = (1..)
                .zip(reports)
                .map(|(id, indexes)| (ReplicaId(id), links(indexes)))
                .collect();
            let said = at_one_place(&reports);
            (said.first().map_or(0, |(_, said)| said.index), said.len())
        };
        assert_eq!(
            at([&[256, 512, 600], &[256, 512, 590], &[256, 300]]),
            (256, 3)
        );
        assert_eq!(
            at([&[256, 512, 600], &[256, 512, 600], &[512, 600]]),
            (600, 3)
        );
        assert_eq!(at([&[7], &[8], &[]]), (8, 1));
        assert_eq!(at([&[], &[], &[]]), (0, 0));
    }

    #[test]
    fn a_replica_is_removed_only_while_the_others_can_change_the_shard() {
        let may_remove = |others, answering, whole| {
            let hindrance = hindrance(true, others, answering, whole);
            hindrance.is_none()
        };
        assert!(may_remove(2, 2, 2) && !may_remove(2, 1, 1));
        assert!(may_remove(4, 3, 3) && !may_remove(4, 2, 2));
        assert!(!may_remove(0, 0, 0));
        // The other one that is quarantined votes; the last whole one fills both, one by one.
        assert!(may_remove(2, 2, 1) && !may_remove(2, 2, 0));
    }

    #[test]
    fn a_replica_stays_where_there_is_no_room_for_the_one_that_takes_its_place() {
        assert!(hindrance(false, 2, 2, 2).is_some_and(|why| why.contains("room")));
        assert_eq!(hindrance(true, 2, 2, 2), None);
    }
}
