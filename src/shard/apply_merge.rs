//! Applies the entries of a merge. Decides only.
//!
//! A shard that is frozen answers before it takes anything from an entry, its stamps too. One that absorbs its
//! neighbour needs that one's replica on the same node, at the freeze or behind it, and nobody who goes on with
//! it. Where that is not so yet, the entry is not applied, and whoever drives the machine is told what to do.

use crate::codec::layout;
use crate::engine::overlay::View;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::machine::Membership;
use crate::machine::Need;
use crate::shard::apply::Applying;
use crate::shard::apply::all;
use crate::shard::command::Answer;
use crate::shard::command::Body;
use crate::shard::command::Command;
use crate::shard::command::Header;
use crate::shard::command::SplitOutcome;
use crate::shard::merge;
use crate::shard::merge_command::Absorb;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::shard::merge_command::Prepare;
use crate::shard::merge_command::Unfreeze;
use crate::shard::quarantine;
use crate::shard::quarantine::Quarantined;
use crate::shard::row::Frozen;
use crate::shard::row::Part;
use crate::shard::row::Row;
use crate::shard::slots;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::request::WriteOutcome;
use crate::types::shard::Attempt;

/// What became of the replica of an absorbed shard on this node.
#[derive(Debug, Clone, Copy)]
pub(super) struct AbsorbedHere {
    /// The replica, whose row goes with the changes.
    pub(super) ended: ReplicaId,
    /// What was wrong with it is wrong with the one that has its keys.
    pub(super) is_quarantined: bool,
}

/// Where the neighbour's replica here stands.
enum Neighbour {
    Still(ReplicaId, Box<Row>, Frozen),
    Needed(Need),
}

impl Applying<'_> {
    /// What must happen on this node before the next entry can be applied. Only what absorbs a neighbour waits for
    /// anything, and only when it does absorb it.
    pub(super) fn need(&self, entry: &LogEntry) -> Result<Option<Need>, MachineError> {
        let Payload::Command(bytes) = &entry.payload else {
            return Ok(None);
        };
        if !Command::may_absorb(bytes) {
            return Ok(None);
        }
        let command = Command::decode(bytes)?;
        let Body::Merge(MergeStep::Absorb(absorb)) = &command.body else {
            return Ok(None);
        };
        let is_refused = self.row.frozen().is_some()
            || self.is_stale(&command, entry.position.term)
            || merge::check_absorb(&self.row, absorb, command.header.stamp).is_err();
        if is_refused {
            return Ok(None);
        }
        match self.neighbour(absorb)? {
            Neighbour::Still(..) => Ok(None),
            Neighbour::Needed(need) => Ok(Some(need)),
        }
    }

    /// What a frozen shard answers; `None` to the end of its freeze.
    pub(super) fn answer_of_frozen(&self, body: &Body) -> Option<Answer> {
        let frozen = self.row.frozen()?;
        if mutant::lives(Mutant::FrozenWrites) && matches!(body, Body::Writes(_)) {
            return None;
        }
        let outcome = match body {
            Body::Writes(writes) => return Some(all(writes, WriteOutcome::Frozen)),
            Body::Split(_) if mutant::lives(Mutant::SplitWhileMerging) => return None,
            Body::Split(_) => return Some(Answer::Split(SplitOutcome::Merging)),
            Body::Merge(MergeStep::Unfreeze(unfreeze)) if thaws(frozen, unfreeze) => return None,
            Body::Merge(MergeStep::Freeze(attempt)) if *attempt == frozen.attempt => {
                merge::frozen(&self.row, frozen)
            }
            Body::Merge(MergeStep::Freeze(attempt)) if *attempt < frozen.attempt => {
                MergeOutcome::Settled
            }
            Body::Merge(MergeStep::Freeze(_) | MergeStep::Prepare(_)) => MergeOutcome::Merging,
            Body::Merge(MergeStep::Absorb(_) | MergeStep::Cancel(_) | MergeStep::Unfreeze(_)) => {
                MergeOutcome::Settled
            }
        };
        Some(Answer::Merge(outcome))
    }

    /// A step whose stamp is taken.
    pub(super) fn merge(
        &mut self,
        step: &MergeStep,
        header: Header,
    ) -> Result<MergeOutcome, MachineError> {
        let membership = Membership::decode(&self.row.applied.membership)?;
        let outcome = match step {
            MergeStep::Prepare(Prepare { right, over }) => {
                // Whatever comes of the merge: they are over.
                let absorbed = &mut self.row.merge.absorbed;
                absorbed.retain(|shard| !over.contains(shard));
                let prepared = merge::prepare(&self.row, &membership, right, header.epoch);
                prepared.map(|prepared| {
                    self.row.merge.part = Part::Left(prepared);
                    let attempt = prepared.attempt;
                    MergeOutcome::Prepared { attempt }
                })
            }
            MergeStep::Freeze(attempt) => {
                let frozen = merge::freeze(&self.row, &membership, *attempt, header.epoch);
                frozen.map(|frozen| {
                    self.row.merge.part = Part::Right(frozen);
                    self.row.merge.seen = Some(*attempt);
                    merge::frozen(&self.row, &frozen)
                })
            }
            MergeStep::Absorb(absorb) => {
                match merge::check_absorb(&self.row, absorb, header.stamp) {
                    Ok(()) => return self.absorb(absorb),
                    Err(refused) => Err(refused),
                }
            }
            MergeStep::Cancel(attempt) => Ok(self.cancel(attempt)),
            MergeStep::Unfreeze(unfreeze) => Ok(self.unfreeze(unfreeze)),
        };
        Ok(outcome.unwrap_or_else(|refused| *refused))
    }

    fn cancel(&mut self, attempt: &Attempt) -> MergeOutcome {
        match &self.row.merge.part {
            Part::Left(open) if open.attempt == *attempt => {
                self.row.merge.part = Part::Alone;
                MergeOutcome::Cancelled
            }
            Part::Left(_) | Part::Right(_) | Part::Alone => MergeOutcome::Settled,
        }
    }

    /// A membership entry cannot be refused any more. The merge was planned for the members before it.
    pub(super) fn cancel_for_membership(&mut self) {
        if let Part::Left(_) = &self.row.merge.part
            && !mutant::lives(Mutant::MembershipKeepsAttempt)
        {
            self.row.merge.part = Part::Alone;
        }
    }

    fn unfreeze(&mut self, unfreeze: &Unfreeze) -> MergeOutcome {
        match self.row.frozen() {
            Some(frozen) if thaws(frozen, unfreeze) => {
                self.row.merge.part = Part::Alone;
                MergeOutcome::Unfrozen
            }
            Some(_) | None => MergeOutcome::Settled,
        }
    }

    fn absorb(&mut self, absorb: &Absorb) -> Result<MergeOutcome, MachineError> {
        let (ended, right, frozen) = match self.neighbour(absorb)? {
            Neighbour::Still(ended, right, frozen) => (ended, right, frozen),
            Neighbour::Needed(need) => {
                return Err(MachineError(format!(
                    "a merge is applied before {need}, which it needs"
                )));
            }
        };
        self.row = merge::merged(&self.row, &right, &frozen);
        if !mutant::lives(Mutant::RightOutlivesMerge) {
            self.overlay.delete(layout::row(ended));
        }
        // As of a replica that was destroyed: until the log says that it is gone.
        self.overlay.put(layout::ending(ended), Vec::new());
        if mutant::lives(Mutant::AbsorbedCleared) {
            for piece in &right.pieces {
                let (place, entry) = slots::clear_entry(piece);
                self.overlay.put(place, entry);
            }
        }
        let is_quarantined = self.take_quarantine(ended)?;
        self.absorbed = Some(AbsorbedHere {
            ended,
            is_quarantined,
        });
        let left = self.row.descriptor.clone();
        Ok(MergeOutcome::Absorbed { left })
    }

    /// Whether the neighbour's replica here serves nothing. Then this one does not either.
    fn take_quarantine(&mut self, ended: ReplicaId) -> Result<bool, MachineError> {
        let mark = layout::quarantine(ended);
        if self.overlay.get(&mark)?.is_none() || mutant::lives(Mutant::QuarantineNotMerged) {
            return Ok(false);
        }
        let (place, mark_here) = quarantine::entry(Quarantined {
            replica: self.replica,
            shard: self.row.descriptor.id,
        });
        self.overlay.delete(mark);
        self.overlay.put(place, mark_here);
        Ok(true)
    }

    /// The neighbour's replica on this node: as its row says, which no one else may be changing meanwhile.
    fn neighbour(&self, absorb: &Absorb) -> Result<Neighbour, MachineError> {
        let membership = Membership::decode(&self.row.applied.membership)?;
        let node = membership.nodes.get(&self.replica);
        let mut replicas = absorb.right.replicas.iter();
        let here = replicas.find(|it| Some(&it.node) == node).map(|it| it.id);
        let needed = || {
            Ok(Neighbour::Needed(Need {
                shard: absorb.right.id,
                replica: here,
                position: absorb.frozen,
            }))
        };
        let Some(replica) = here else {
            return needed();
        };
        let Some(row) = self.overlay.get(&layout::row(replica))? else {
            return needed();
        };
        let row = Row::decode(&row)?;
        match row.frozen() {
            Some(frozen) if is_freeze_of(frozen, absorb) => {
                if !self.others.stands_still(replica) && !mutant::lives(Mutant::AbsorbedAlive) {
                    return needed();
                }
                let frozen = *frozen;
                Ok(Neighbour::Still(replica, Box::new(row), frozen))
            }
            _ if mutant::lives(Mutant::AbsorbedUnfrozen) => {
                let frozen = Frozen {
                    attempt: absorb.attempt,
                    position: absorb.frozen,
                    chain: row.chain,
                };
                Ok(Neighbour::Still(replica, Box::new(row), frozen))
            }
            _ if row.applied.position < Some(absorb.frozen) => needed(),
            // It is behind the freeze and goes on: then it was told that this attempt has absorbed nothing.
            Some(_) | None => Err(MachineError(format!(
                "{} is absorbed as of {}, and {replica} has gone on from there",
                absorb.right.id, absorb.frozen
            ))),
        }
    }
}

fn is_freeze_of(frozen: &Frozen, absorb: &Absorb) -> bool {
    frozen.attempt == absorb.attempt && frozen.position == absorb.frozen
}

fn thaws(frozen: &Frozen, unfreeze: &Unfreeze) -> bool {
    frozen.attempt == unfreeze.attempt || mutant::lives(Mutant::LateUnfreezeThaws)
}
