//! One shard becomes two: what each half begins with. Decides only.
//!
//! The halves cover the range of the shard without gap or overlap. No key moves: the right half's rows
//! say that its keys are in the same slots, so history, tombstones, pieces of long values and stored
//! outcomes are found there as before. The right half begins at position (1, 1) on every node, with the
//! same state everywhere, as the first shard did; so there is no first leader to wait for.
//!
//! What is refused is refused alike on every replica, since it is told from the entry and the row alone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::Applied;
use crate::machine::Membership;
use crate::shard::chain;
use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::shard::row::Merge;
use crate::shard::row::Row;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Birth;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;

/// Where a shard that was split off stands before its first entry.
const FIRST: Position = Position { term: 1, index: 1 };

/// What a split comes to on one node.
pub(crate) struct Halves {
    /// The shard as it goes on.
    pub(crate) left: Row,
    /// What the new shard begins with.
    pub(crate) right: Row,
    /// The new shard's replica on this node; `None` where the replica is not a member yet and is only
    /// catching up with what was done before it became one.
    pub(crate) child: Option<ReplicaId>,
}

/// Cuts the shard in two. `row` says already that the split's entry is applied; `here` is the replica
/// that the row belongs to, and `planned_at` the epoch that the split was planned at.
pub(crate) fn halves(
    row: &Row,
    membership: &Membership,
    here: ReplicaId,
    split: &Split,
    planned_at: Epoch,
) -> Result<Halves, Box<SplitOutcome>> {
    let descriptor = &row.descriptor;
    // Unlike writes, which only ask for the bounds: the replicas were chosen for this membership.
    if planned_at != descriptor.epoch && !mutant::lives(Mutant::SplitOfAnotherEpoch) {
        let current = descriptor.clone();
        return Err(Box::new(SplitOutcome::Stale { current }));
    }
    if membership.is_joint() && !mutant::lives(Mutant::SplitWhileJoint) {
        return Err(Box::new(SplitOutcome::Joint));
    }
    let halves = descriptor.range.split_at(split.at.clone());
    let Some((left_range, right_range)) = halves else {
        return Err(refused(format!(
            "the key {} does not part {}",
            split.at.escape_ascii(),
            descriptor.range
        )));
    };
    let members = members_of_child(descriptor.id, membership, split)?;
    let epoch = Epoch {
        conf: descriptor.epoch.conf,
        bounds: descriptor.epoch.bounds + 1,
    };
    let node = membership.nodes.get(&here);
    let child = split.replicas.iter().find(|it| Some(&it.node) == node);
    let whole = mutant::lives(Mutant::ParentKeepsItsRange).then(|| descriptor.range.clone());
    // What was written since it was counted makes no half greater than the whole.
    let left_size = Size {
        keys: split.left.keys.min(row.size.keys),
        bytes: split.left.bytes.min(row.size.bytes),
    };
    Ok(Halves {
        left: Row {
            size: left_size,
            pieces: row.pieces_in(&left_range),
            descriptor: ShardDescriptor {
                range: whole.unwrap_or(left_range),
                epoch,
                ..descriptor.clone()
            },
            ..row.clone()
        },
        right: Row {
            size: row.size.without(left_size),
            pieces: row.pieces_in(&right_range),
            descriptor: ShardDescriptor {
                id: split.child,
                range: right_range,
                epoch,
                replicas: members.replicas(),
            },
            applied: Applied {
                position: Some(FIRST),
                membership_position: Some(FIRST),
                membership: members.encode(),
            },
            // No leader of the child has written: the first one stamps above the ceiling that leaders of
            // the shard may have closed up to.
            ceiling_term: 0,
            last_stamp: match mutant::lives(Mutant::ChildForgetsStamps) {
                true => Timestamp::ZERO,
                false => row.last_stamp,
            },
            last_outcome: match mutant::lives(Mutant::ChildForgetsOutcomes) {
                true => Timestamp::ZERO,
                false => row.last_outcome,
            },
            chain: chain::of_child(row.chain, split.child),
            // The left half begins where the shard has begun, and so has its left neighbour and its past.
            merge: Merge::default(),
            birth: Some(Birth {
                parent: descriptor.id,
                replica: here,
                position: row.applied.position.unwrap_or_default(),
            }),
            ..row.clone()
        },
        child: child.map(|replica| replica.id),
    })
}

/// The shard's voters and learners, each as the child's replica on the same node.
fn members_of_child(
    parent: ShardId,
    members: &Membership,
    split: &Split,
) -> Result<Membership, Box<SplitOutcome>> {
    if split.child == parent {
        return Err(refused(format!("{parent} cannot be split from itself")));
    }
    let replicas = &split.replicas;
    let is_known = |id: &ReplicaId| members.nodes.contains_key(id);
    if let Some(known) = replicas.iter().find(|replica| is_known(&replica.id)) {
        let known = known.id;
        return Err(refused(format!("{known} is a replica of {parent} already")));
    }
    let on_node: BTreeMap<NodeId, ReplicaId> = replicas.iter().map(|it| (it.node, it.id)).collect();
    let nodes: BTreeMap<ReplicaId, NodeId> = replicas.iter().map(|it| (it.id, it.node)).collect();
    let expected: BTreeSet<NodeId> = members.nodes.values().copied().collect();
    let is_each_once = [on_node.len(), nodes.len(), members.nodes.len()] == [replicas.len(); 3];
    if !is_each_once || !on_node.keys().eq(&expected) {
        return Err(refused(format!(
            "the new shard's replicas must be one on each node of {parent}, with ids of their own"
        )));
    }
    let child_of = |voter: &ReplicaId| on_node.get(members.nodes.get(voter)?).copied();
    let voters = members.voters.iter();
    Ok(Membership {
        voters: voters
            .map(|set| set.iter().filter_map(child_of).collect())
            .collect(),
        nodes,
    })
}

fn refused(reason: String) -> Box<SplitOutcome> {
    Box::new(SplitOutcome::Refused { reason })
}
