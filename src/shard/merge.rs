//! Two neighbouring shards become one: who may, and what comes of it. Decides only.
//!
//! The left shard absorbs the right one. No key moves: its row takes the right one's pieces, so history,
//! tombstones, pieces of long values and stored outcomes are found there as before.
//!
//! **The left shard's log alone decides.** What is prepared there is ended there, by the first that is applied of
//! absorb, cancel, and an entry that changes the membership. The right shard stands still from its freeze on, and
//! goes on only when it is told that the attempt is over and has absorbed nothing. So the right one's log may be
//! late, and still no key ever has two shards, or none.
//!
//! What is refused is refused alike on every replica, since it is told from the entry and the row alone.
//!
//! # The way over the nodes
//!
//! L is the left shard, R the right one. `node/merges` is where their leaders talk, `node/bringer.rs` where R's
//! replicas end.
//!
//! 1. **Look.** Both are not joint, nothing is done with either, their nodes are the same; every replica of both has
//!    answered within a second, is filled, not quarantined, and close behind; on no node would the row of both
//!    become too long for the engine.
//! 2. **Prepare** in L, after a barrier, while no change of L's replicas begins.
//! 3. **Freeze** in R, at its leader, in the same manner. From then on R refuses writes and reads as of now: a
//!    majority of R may be where L has not absorbed it yet, and a read position that its leader gives from then on is
//!    not before the freeze. The leader waits until every replica, learners too, has *synced* its log up to the
//!    freeze, and answers with the position and the stamp above which L writes.
//! 4. **Absorb** in L when all have matched within 500 ms of sending the freeze; else **cancel**, whatever is in
//!    flight: the first that is applied wins, and [`fate`] says which. Then R is told to unfreeze, naming a position
//!    of L at or behind which its leader has seen the outcome after a barrier.
//!
//! A new leader of L that finds an open attempt cancels it after its barrier. A leader of R that has been frozen for
//! a moment asks L's leader for the fate, which answers after a barrier; when L is not there any more, whoever has
//! absorbed it knows. It is never told from placement, and R never decides by its own clock.
//!
//! **Applying an absorb** needs R's local replica at the freeze, with nobody who goes on with it: the machine answers
//! fewer entries than it was given and names what it needs. The node takes R's replica out of the registry for good,
//! ends its group, applies what it lacks from its own log (which may need a further shard first), and has L's machine
//! go on: one batch has L's row, no row of R any more, and the mark that R's replica is ending. Then a flush, and only
//! then does the log say that it is gone: after a power cut before that both are there again, and L's log does it
//! once more. None of this waits for the keeper, which at a start waits for L.
//!
//! **Changes of R's replicas** behind the freeze would let a replica be destroyed that its L has yet to absorb.
//! They begin after a barrier with a row that is alone. In L such an entry is a cancel.
//!
//! **Snapshots of L** that have absorbed R end the local R ([displaces](crate::shard::ShardMachine)), and a replica
//! takes none that is older than the shard that it was made for: it would find an absorb in the log behind it, and
//! no R. **An orphan of R** is answered by whoever remembers R as absorbed, after a quorum round, and is destroyed
//! only when [`are_left_over`] says so too.

use std::collections::BTreeSet;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::Membership;
use crate::mvcc::Floors;
use crate::shard::chain;
use crate::shard::merge_command::Absorb;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::row::Frozen;
use crate::shard::row::Merge;
use crate::shard::row::Part;
use crate::shard::row::Piece;
use crate::shard::row::Prepared;
use crate::shard::row::Row;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Attempt;
use crate::types::shard::Epoch;
use crate::types::shard::Fate;
use crate::types::shard::ShardDescriptor;

/// A shard that remembers so many ended ones takes no part in a merge before some are over. It remembers at most
/// those of two such shards: a kilobyte of its row, with ids of usual length. None is ever forgotten while a replica
/// of it may be left somewhere: it would be told that it was not absorbed, and go on.
pub const ABSORBED_MAX: usize = 128;

/// What a row says of an attempt on `right`. That it was cancelled is true for ever; for anything to follow from
/// it the replica must lead, and have asked a quorum.
pub fn fate(row: &Row, attempt: &Attempt, right: ShardId) -> Fate {
    let absorbed = &row.merge.absorbed;
    if absorbed.contains(&right) {
        return Fate::Absorbed;
    }
    // It has inherited what the left shard knew.
    if absorbed.contains(&attempt.left) {
        return Fate::Cancelled;
    }
    if row.descriptor.id != attempt.left || row.applied.position < Some(attempt.prepared) {
        return Fate::Unknown;
    }
    match &row.merge.part {
        Part::Left(prepared) if prepared.attempt == *attempt => Fate::Open,
        Part::Left(_) | Part::Right(_) | Part::Alone => Fate::Cancelled,
    }
}

/// Whether the replicas here of shards that `absorber` has absorbed may be destroyed because its leader says so,
/// who has asked a quorum. `here` are the shards of all replicas on the node. A replica of the absorber that is here
/// may have yet to absorb them; so may one that is not born yet, whose parent here still has its keys. Those that
/// have ended are in nobody's way: two of them would wait for each other.
pub fn are_left_over(
    absorber: &ShardDescriptor,
    absorbed: &[ShardId],
    here: &[ShardDescriptor],
) -> bool {
    let needs_them = |shard: &ShardDescriptor| {
        let overlaps = shard.range.overlaps(&absorber.range);
        shard.id == absorber.id || (overlaps && !absorbed.contains(&shard.id))
    };
    !here.iter().any(needs_them) || mutant::lives(Mutant::OrphanBeforeAbsorbed)
}

/// Begins a merge with `right`, as it was when that was planned. `row` says already that the entry is applied, and
/// does not remember any more what is over.
pub(crate) fn prepare(
    row: &Row,
    membership: &Membership,
    right: &ShardDescriptor,
    planned_at: Epoch,
) -> Result<Prepared, Box<MergeOutcome>> {
    check_free(row, membership, planned_at)?;
    let left = &row.descriptor;
    if left.range.end.as_ref() != Some(&right.range.start) || right.id == left.id {
        return Err(refused(format!(
            "{} with {} does not end where {} with {} begins",
            left.id, left.range, right.id, right.range
        )));
    }
    let nodes: BTreeSet<NodeId> = right.replicas.iter().map(|it| it.node).collect();
    let is_each_once = nodes.len() == right.replicas.len();
    if !is_each_once || !nodes.iter().eq(&left_nodes(membership)) {
        return Err(refused(format!(
            "{} must have its replicas on the nodes of {}, one on each",
            right.id, left.id
        )));
    }
    Ok(Prepared {
        attempt: Attempt {
            bounds: left.epoch.bounds,
            prepared: row.applied.position.unwrap_or_default(),
            left: left.id,
        },
        right: right.id,
        epoch: right.epoch,
    })
}

fn left_nodes(membership: &Membership) -> BTreeSet<NodeId> {
    membership.nodes.values().copied().collect()
}

/// Freezes the shard for an attempt of its left neighbour. `row` says already that the entry is applied.
pub(crate) fn freeze(
    row: &Row,
    membership: &Membership,
    attempt: Attempt,
    planned_at: Epoch,
) -> Result<Frozen, Box<MergeOutcome>> {
    if row.merge.seen >= Some(attempt) && !mutant::lives(Mutant::OldAttemptFreezes) {
        return Err(Box::new(MergeOutcome::Settled));
    }
    check_free(row, membership, planned_at)?;
    Ok(Frozen {
        attempt,
        position: row.applied.position.unwrap_or_default(),
        // Known when the entry is all applied.
        chain: row.chain,
    })
}

/// What the freeze is answered with, now and to a repeat.
pub(crate) fn frozen(row: &Row, frozen: &Frozen) -> MergeOutcome {
    MergeOutcome::Frozen {
        right: row.descriptor.clone(),
        position: frozen.position,
        above: row.last_stamp.max(row.ceiling),
    }
}

/// Both shards of a merge must be as they were when it was planned, have nothing else to do, and room for what they
/// are to remember.
fn check_free(
    row: &Row,
    membership: &Membership,
    planned_at: Epoch,
) -> Result<(), Box<MergeOutcome>> {
    // Membership too: the replicas of both stand beside each other.
    if planned_at != row.descriptor.epoch && !mutant::lives(Mutant::MergeOfAnotherEpoch) {
        let current = row.descriptor.clone();
        return Err(Box::new(MergeOutcome::Stale { current }));
    }
    if membership.is_joint() && !mutant::lives(Mutant::MergeWhileJoint) {
        return Err(Box::new(MergeOutcome::Joint));
    }
    if row.merge.part != Part::Alone {
        return Err(Box::new(MergeOutcome::Merging));
    }
    match row.merge.absorbed.len() < ABSORBED_MAX {
        true => Ok(()),
        false => Err(refused(format!(
            "{} has absorbed {ABSORBED_MAX} shards that may have replicas left",
            row.descriptor.id
        ))),
    }
}

/// Whether the left shard with this row absorbs its neighbour under this stamp. Told without the neighbour's row,
/// so that no replica of it is stopped for nothing.
pub(crate) fn check_absorb(
    row: &Row,
    absorb: &Absorb,
    stamp: Timestamp,
) -> Result<(), Box<MergeOutcome>> {
    let is_open = matches!(&row.merge.part, Part::Left(open) if open.attempt == absorb.attempt);
    if !is_open && !mutant::lives(Mutant::AbsorbedAfterCancel) {
        return Err(Box::new(MergeOutcome::Settled));
    }
    if let Part::Left(open) = &row.merge.part
        && (open.right, open.epoch) != (absorb.right.id, absorb.right.epoch)
    {
        return Err(refused(format!(
            "{} was prepared for {}, not for {} as it is",
            row.descriptor.id, open.right, absorb.right.id
        )));
    }
    // Leaders of the right shard have closed up to there.
    if stamp <= absorb.above && !mutant::lives(Mutant::MergedForgetsStamps) {
        return Err(Box::new(MergeOutcome::StaleStamp));
    }
    Ok(())
}

/// The left shard with the keys of the right one, which stands still.
pub(crate) fn merged(left: &Row, right: &Row, frozen: &Frozen) -> Row {
    let bounds = match mutant::lives(Mutant::MergedBoundsLow) {
        true => left.descriptor.epoch.bounds,
        false => left
            .descriptor
            .epoch
            .bounds
            .max(right.descriptor.epoch.bounds),
    };
    let mut range = left.descriptor.range.clone();
    range.end = right.descriptor.range.end.clone();
    let retry_window_ms = left.retry_window_ms.max(right.retry_window_ms);
    let retention_ms = left.history_retention_ms.max(right.history_retention_ms);
    Row {
        descriptor: ShardDescriptor {
            range,
            epoch: Epoch {
                conf: left.descriptor.epoch.conf,
                bounds: bounds + 1,
            },
            ..left.descriptor.clone()
        },
        pieces: joined(&left.pieces, &right.pieces),
        last_stamp: match mutant::lives(Mutant::MergedForgetsStamps) {
            true => left.last_stamp,
            false => left.last_stamp.max(right.last_stamp),
        },
        ceiling: left.ceiling.max(right.ceiling),
        last_outcome: match mutant::lives(Mutant::MergedForgetsOutcomes) {
            true => left.last_outcome,
            false => left.last_outcome.max(right.last_outcome),
        },
        floors: match mutant::lives(Mutant::MergedForgetsFloors) {
            true => left.floors,
            false => higher(left.floors, right.floors),
        },
        history_retention_ms: retention_ms.max(retry_window_ms),
        retry_window_ms,
        size: left.size.with(right.size),
        chain: chain::of_merged(left.chain, frozen.chain),
        merge: Merge {
            part: Part::Alone,
            seen: left.merge.seen,
            absorbed: remembered(left, right),
        },
        ..left.clone()
    }
}

/// What either half may have given up, both have.
fn higher(left: Floors, right: Floors) -> Floors {
    Floors {
        history: left.history.max(right.history),
        outcomes: left.outcomes.max(right.outcomes),
    }
}

fn remembered(left: &Row, right: &Row) -> Vec<ShardId> {
    let mut absorbed = left.merge.absorbed.clone();
    if mutant::lives(Mutant::AbsorbedForgotten) {
        return absorbed;
    }
    absorbed.extend(&right.merge.absorbed);
    absorbed.push(right.descriptor.id);
    absorbed
}

/// The pieces of neighbours. What was one slot's before a split is one piece again.
fn joined(left: &[Piece], right: &[Piece]) -> Vec<Piece> {
    let mut pieces = left.to_vec();
    for piece in right {
        match pieces.last_mut() {
            Some(last) if last.slot == piece.slot => last.range.end = piece.range.end.clone(),
            Some(_) | None => pieces.push(piece.clone()),
        }
    }
    pieces
}

fn refused(reason: String) -> Box<MergeOutcome> {
    Box::new(MergeOutcome::Refused { reason })
}
