//! How much room a node's disk has, and what is refused for want of it. Decides only.
//!
//! Room is what is free on the disk and what the node has set aside: half of its reserve it really takes,
//! as blocks behind the engine's end, so that nobody else can fill the disk up to where sled meets an
//! error that it cannot bear. Log segments are set aside too, as spares.
//!
//! Two lines. Below the reserve room is *short*: puts are refused by a leader that is short itself, or
//! that has no majority which is not. What is under way then is taken by everybody, and deletes go on:
//! they use the rest of the reserve. Below a quarter of the reserve a disk is *full*: a follower takes no
//! more entries, and deletes need a majority that is not full. So a follower without room falls behind
//! and takes nobody with it, and the log never holds a put that no majority can take in front of deletes
//! that could make room.
//!
//! **Deletes do not make puts go again, not soon and maybe never.** What counts is what the file system calls
//! free. A deleted value is kept for as long as history is (ten minutes, unless set otherwise); then the
//! engine may use its place in its file again, but the file stays as long as it is, unless it happens to
//! end in places that are free. How much of the file is free sled does not tell, and what is free is not
//! all for use: a segment is, when everything in it has been written anew elsewhere, which takes room first.
//! So it is not counted. Counted, it would let puts in that end in an error which sled cannot bear; not
//! counted, it refuses some that would have had room. What makes puts go again is room on the disk: a larger
//! one, other files removed, replicas moved to other nodes (which helps as deletes do, later and maybe). What
//! deletes are good for on a full disk is that what is put afterwards finds places in the file; each takes a
//! little room itself, of the reserve.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::membership::Membership;
use crate::types::NodeId;
use crate::types::node::Room;

/// The share of the reserve that a node really takes.
const SET_ASIDE_SHARE: u64 = 2;
/// Below this share of the reserve nothing more is taken.
const FULL_SHARE: u64 = 4;

/// A node's room, as last looked at.
#[derive(Debug)]
pub struct Space {
    free_bytes: AtomicU64,
    capacity_bytes: AtomicU64,
    reserve_bytes: u64,
    others_lack: AtomicBool,
}

impl Space {
    /// Below `reserve_bytes` free, puts are refused.
    pub fn new(reserve_bytes: u64) -> Space {
        Space {
            free_bytes: AtomicU64::new(u64::MAX),
            capacity_bytes: AtomicU64::new(0),
            reserve_bytes,
            others_lack: AtomicBool::new(false),
        }
    }

    /// Bytes that the node is to set aside.
    pub fn to_set_aside(&self) -> u64 {
        self.reserve_bytes / SET_ASIDE_SHARE
    }

    /// What was found now: free on the disk, and set aside.
    pub fn found(&self, free_bytes: u64, set_aside_bytes: u64) {
        let room = free_bytes.saturating_add(set_aside_bytes);
        self.free_bytes.store(room, Ordering::Relaxed);
    }

    /// The size of the disk.
    pub fn found_capacity(&self, capacity_bytes: u64) {
        self.capacity_bytes.store(capacity_bytes, Ordering::Relaxed);
    }

    /// The size of the disk as last found, and what is used of it; 0 before the first look.
    pub fn disk(&self) -> (u64, u64) {
        let capacity_bytes = self.capacity_bytes.load(Ordering::Relaxed);
        (
            capacity_bytes,
            capacity_bytes.saturating_sub(self.free_bytes()),
        )
    }

    /// What was last found free, with what is set aside.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Says whether any other node was found to have less than enough.
    pub fn found_others(&self, lack: bool) {
        self.others_lack.store(lack, Ordering::Relaxed);
    }

    /// Whether any other node was last found to have less than enough.
    pub fn others_lack(&self) -> bool {
        self.others_lack.load(Ordering::Relaxed)
    }

    /// How much room that is.
    pub fn room(&self) -> Room {
        match self.free_bytes() {
            _ if mutant::lives(Mutant::ReserveIgnored) => Room::Enough,
            free if free >= self.reserve_bytes => Room::Enough,
            free if free >= self.reserve_bytes / FULL_SHARE => Room::Short,
            _ => Room::Full,
        }
    }
}

/// The nodes with enough room in the order in which they are asked to lead a group instead of this one:
/// first those behind the one that was asked last, since that one has not taken the lead.
pub fn in_turn(mut roomy: Vec<NodeId>, last: Option<NodeId>) -> Vec<NodeId> {
    roomy.sort();
    let behind = roomy.partition_point(|node| last.is_some_and(|last| *node <= last));
    roomy.rotate_left(behind);
    roomy
}

/// Whether a majority of the voters has at least so much room. Where no node is known to lack it, those
/// that are not known have it: they are dead or new, and that is for Raft to find out.
pub fn is_enough(
    needed: Room,
    membership: &Membership,
    room: impl Fn(NodeId) -> Option<Room>,
) -> bool {
    membership.voters.iter().all(|voters| {
        let nodes = voters
            .iter()
            .filter_map(|voter| membership.nodes.get(voter));
        let rooms: Vec<Option<Room>> = nodes.map(|node| room(*node)).collect();
        let lacking = rooms.iter().flatten().any(|room| *room < needed);
        let having = rooms.iter().flatten().filter(|room| **room >= needed);
        !lacking || having.count() > voters.len() / 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplicaId;
    use crate::types::shard::Replica;

    #[test]
    fn below_the_reserve_room_is_short_and_below_a_quarter_of_it_there_is_none() {
        let space = Space::new(1_000);
        let room = |free, set_aside| {
            space.found(free, set_aside);
            space.room()
        };
        assert_eq!(Space::new(1_000).room(), Room::Enough);
        assert_eq!(room(1_000, 0), Room::Enough);
        assert_eq!(room(600, 400), Room::Enough);
        assert_eq!(room(499, 500), Room::Short);
        assert_eq!(room(0, space.to_set_aside()), Room::Short);
        assert_eq!(room(0, 250), Room::Short);
        assert_eq!(room(0, 249), Room::Full);
        assert_eq!(Space::new(0).room(), Room::Enough);
    }

    #[test]
    fn one_that_does_not_take_the_lead_is_asked_again_only_after_all_others() {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let order = |roomy: &[u64], last: Option<u64>| in_turn(nodes(roomy), last.map(NodeId));
        assert_eq!(order(&[5, 2, 3], None), nodes(&[2, 3, 5]));
        assert_eq!(order(&[2, 3, 5], Some(2)), nodes(&[3, 5, 2]));
        assert_eq!(order(&[2, 3, 5], Some(3)), nodes(&[5, 2, 3]));
        assert_eq!(order(&[2, 3, 5], Some(5)), nodes(&[2, 3, 5]));
        // The one asked last has no room any more.
        assert_eq!(order(&[2, 5], Some(3)), nodes(&[5, 2]));
        assert_eq!(order(&[2], Some(2)), nodes(&[2]));
        assert_eq!(order(&[], Some(2)), nodes(&[]));
    }

    /// One letter for each voter: enough, short, full, not known.
    fn enough(needed: Room, rooms: &str) -> bool {
        let replicas: Vec<Replica> = (0..rooms.len() as u64)
            .map(|number| Replica {
                id: ReplicaId(number + 10),
                node: NodeId(number),
            })
            .collect();
        is_enough(needed, &Membership::of(&replicas), |node| {
            match rooms.as_bytes()[node.0 as usize] {
                b'e' => Some(Room::Enough),
                b's' => Some(Room::Short),
                b'f' => Some(Room::Full),
                _ => None,
            }
        })
    }

    #[test]
    fn puts_need_a_majority_with_enough_and_deletes_one_that_is_not_full() {
        for (rooms, put, delete) in [
            ("eee", true, true),
            ("ees", true, true),
            ("eef", true, true),
            ("ess", false, true),
            ("esf", false, true),
            ("eff", false, false),
            ("sss", false, true),
            ("e??", true, true),
            ("es?", false, true),
            ("ef?", false, false),
            ("ee?ss", false, true),
            ("eee??", true, true),
            ("e", true, true),
            ("s", false, true),
        ] {
            assert_eq!(enough(Room::Enough, rooms), put, "put, {rooms}");
            assert_eq!(enough(Room::Short, rooms), delete, "delete, {rooms}");
        }
    }
}
