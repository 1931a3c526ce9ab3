//! The rolling hash of a replica's state. Decides only.
//!
//! With every entry that a replica applies, a hash of what the entry did is folded into one number in its
//! row: the entry's position and what it was, the newest versions, pieces and outcomes that it stored, what
//! it answered, and how it moved the stamps and floors. All of that is a function of the state and the
//! entry alone. So two replicas at one position have one number, and two that have once parted ways have
//! different ones from then on, whatever is applied later.
//!
//! What may differ between equal replicas is not in it: where the keys are (slots), what was moved aside
//! into history (it depends on what collection has removed already) and how entries were gathered into
//! batches. What rots after it was applied is not in it either: that is found by reading
//! ([`crate::shard::portion`]).
//!
//! A snapshot carries the number in its row. A shard that is split off begins with one that is derived from
//! the shard's it was split from; one that absorbs its neighbour goes on with one that is derived from both.
//!
//! The hash is for accidents, not for enemies: an entry that did something else is missed once in 2^32.

use std::collections::VecDeque;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::types::Position;
use crate::types::ShardId;
use crate::types::log::Payload;
use crate::types::shard::Chain;
use crate::types::shard::Link;

/// Entries between two positions whose hash every replica remembers, so that replicas that are not at one
/// position can be compared at one.
pub const MARK_ENTRIES: u64 = 256;
/// Such positions that are remembered: the last 8,192 entries, a second of the fastest group.
const MARKS_MAX: usize = 32;

/// After one more entry: `parts` say what it did.
pub(crate) fn after(before: Chain, position: Position, parts: &[&[u8]]) -> Chain {
    let mut sum = crc32c::crc32c(&position.term.to_be_bytes());
    let mut bytes = 0;
    for part in parts {
        sum = crc32c::crc32c_append(sum, &(part.len() as u64).to_be_bytes());
        sum = crc32c::crc32c_append(sum, part);
        bytes += part.len() as u64;
    }
    Chain(mixed(
        before.0 ^ (u64::from(sum) << 32) ^ position.index ^ bytes,
    ))
}

/// What the shard with this id begins with that is split off there.
pub(crate) fn of_child(parent: Chain, child: ShardId) -> Chain {
    Chain(mixed(parent.0 ^ mixed(child.0)))
}

/// What a shard goes on with that has absorbed its right neighbour. Whoever has parted ways in either goes on to
/// differ.
pub(crate) fn of_merged(left: Chain, right: Chain) -> Chain {
    Chain(mixed(left.0 ^ mixed(!right.0)))
}

/// Every number has one that only it gives (the last step of SplitMix64), so that chains which differ go on
/// to differ.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What the hash takes of an entry itself. Of a command nothing: what it did says it all.
pub(crate) fn said(payload: &Payload) -> &[u8] {
    match payload {
        Payload::Blank => &[0],
        Payload::Membership(membership) => membership,
        Payload::Command(_) => &[],
    }
}

/// The part of a key in the engine that is the same on every replica; `None` where what is stored there may
/// differ between equal ones.
pub(crate) fn counted(key: &[u8]) -> Option<&[u8]> {
    let place = layout::without_slot(key);
    match Family::of(*place.first()?)? {
        Family::Newest | Family::Outcome | Family::Chunk if layout::is_in_slot(key) => Some(place),
        Family::Newest | Family::Outcome | Family::Chunk => None,
        Family::History | Family::Intent | Family::SharedLock | Family::TransactionMark => None,
    }
}

/// The last positions at which every replica remembers its hash.
#[derive(Debug, Default)]
pub(crate) struct Marks(VecDeque<Link>);

impl Marks {
    /// Whether the hash at this position is one to remember.
    pub(crate) fn has_place_for(position: Position) -> bool {
        position.index.is_multiple_of(MARK_ENTRIES)
    }

    pub(crate) fn add(&mut self, link: Link) {
        if self.0.len() == MARKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(link);
    }

    /// A snapshot was installed: what led to the state before it is no part of the new one.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = Link> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Position {
        Position { term: 1, index }
    }

    #[test]
    fn chains_that_have_parted_stay_apart() {
        let same = |chain: Chain| {
            (2..2_000).fold(chain, |chain, index| {
                after(chain, at(index), &[b"the same"])
            })
        };
        let one = after(Chain::default(), at(1), &[b"one"]);
        let other = after(Chain::default(), at(1), &[b"onf"]);
        assert_ne!(one, other);
        assert_ne!(same(one), same(other));
    }

    #[test]
    fn the_term_the_place_and_the_borders_between_parts_count() {
        let base = after(Chain(7), at(3), &[b"ab", b"c"]);
        assert_eq!(base, after(Chain(7), at(3), &[b"ab", b"c"]));
        assert_ne!(base, after(Chain(7), at(3), &[b"a", b"bc"]));
        assert_ne!(base, after(Chain(7), at(4), &[b"ab", b"c"]));
        assert_ne!(base, after(Chain(8), at(3), &[b"ab", b"c"]));
        let later = Position { term: 2, index: 3 };
        assert_ne!(base, after(Chain(7), later, &[b"ab", b"c"]));
        assert_ne!(
            of_child(Chain(7), ShardId(1)),
            of_child(Chain(7), ShardId(2))
        );
    }

    #[test]
    fn a_merged_chain_depends_on_both_and_on_which_is_left() {
        let merged = |left, right| of_merged(Chain(left), Chain(right));
        assert_ne!(merged(1, 2), merged(1, 3));
        assert_ne!(merged(1, 2), merged(3, 2));
        assert_ne!(merged(1, 2), merged(2, 1));
    }

    #[test]
    fn the_last_marks_are_kept() {
        let mut marks = Marks::default();
        for index in 0..100 {
            let link = Link {
                position: at(index),
                chain: Chain(index),
            };
            marks.add(link);
        }
        assert_eq!(marks.links().count(), MARKS_MAX);
        assert_eq!(marks.links().last().map(|link| link.chain), Some(Chain(99)));
        marks.clear();
        assert_eq!(marks.links().count(), 0);
    }
}
