//! What placement wants done with one shard, and how far that has come. Decides only.
//!
//! An operator is recorded in placement's state before its first step is handed out, so that it outlives
//! whoever planned it; there is at most one for a shard. It is carried out in *steps*, one at a time, by the
//! leader of the shard, which is told in the answers to its reports. Which step is next is not recorded
//! anywhere: it follows from what the shard is like ([`Operator::next`]). So a step that was handed out twice,
//! or by two drivers, is one step, and a driver that dies leaves nothing half-written.
//!
//! A step is a whole: [`Step::AddReplica`] adds a learner, waits until it has caught up and makes it a voter;
//! [`Step::RemoveReplica`] has a leader hand over before it leaves. A replica moves by the first and then the
//! second, so that the shard never has fewer voters than it had.
//!
//! Every step carries the epoch of the shard that it was decided for, and a node refuses one that is older
//! than its shard. An operator is *stale* once the shard has become something else than what this operator
//! makes of it: somebody has split it, or changed other replicas.

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::shard::ShardView;
use crate::types::NodeId;
use crate::types::Timestamp;
use crate::types::operator::Action;
use crate::types::operator::Operator;
use crate::types::operator::Step;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;

/// How far an operator has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// This is next, for a shard of this epoch.
    Next(Step, Epoch),
    /// The shard is as it shall be.
    Done,
    /// The shard is not what the operator was planned for.
    Stale,
}

/// What placement thinks of an operator.
impl Operator {
    /// What comes next for the shard as it is now.
    pub fn next(&self, shard: &ShardView) -> Progress {
        if self.is_done(shard) {
            return Progress::Done;
        }
        if !self.is_allowed(shard) {
            return Progress::Stale;
        }
        Progress::Next(self.step(shard), shard.descriptor.epoch)
    }

    /// Whether it is past its time. What of it has been done stays, and is looked at anew.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        now >= self.expires && !mutant::lives(Mutant::OperatorsForEver)
    }

    /// The node that is to get a replica and has none yet, not even one that learns.
    pub fn not_taken(&self, shard: &ShardDescriptor) -> Option<NodeId> {
        match self.action {
            Action::Add { to } | Action::Move { to, .. } => {
                shard.replica_on(to).is_none().then_some(to)
            }
            Action::Remove { .. }
            | Action::Transfer { .. }
            | Action::Split { .. }
            | Action::Merge { .. } => None,
        }
    }

    fn is_done(&self, shard: &ShardView) -> bool {
        let is_gone = |replica: &Replica| !shard.descriptor.replicas.contains(replica);
        match &self.action {
            Action::Add { to } => shard.voter_on(*to).is_some(),
            Action::Remove { replica } => is_gone(replica),
            Action::Move { from, to } => is_gone(from) && shard.voter_on(*to).is_some(),
            Action::Transfer { to, .. } => {
                shard.leading().is_some_and(|leading| leading.node == *to)
            }
            Action::Split { .. } => shard.descriptor.epoch.bounds > self.epoch.bounds,
            // The bounds of what came of two are above those of both.
            Action::Merge { epoch, .. } => {
                shard.descriptor.epoch.bounds > self.epoch.bounds.max(epoch.bounds)
            }
        }
    }

    /// Whether the shard is what it was, or what this operator has made of it so far.
    fn is_allowed(&self, shard: &ShardView) -> bool {
        let epoch = shard.descriptor.epoch;
        let voters = |to: Option<NodeId>| {
            let known = shard.voters().filter(|voter| Some(voter.node) != to);
            known.eq(self.voters.iter().copied())
        };
        match &self.action {
            Action::Add { to } => epoch.bounds == self.epoch.bounds && voters(Some(*to)),
            Action::Move { to, .. } => epoch.bounds == self.epoch.bounds && voters(Some(*to)),
            Action::Remove { .. } => epoch.bounds == self.epoch.bounds && voters(None),
            // Whoever has come to lead meanwhile does not do so because of this operator.
            Action::Transfer { from, to } => {
                shard.voter_on(*to).is_some()
                    && shard.leading().is_some_and(|leading| leading.node == *from)
            }
            Action::Split { .. } | Action::Merge { .. } => epoch == self.epoch,
        }
    }

    fn step(&self, shard: &ShardView) -> Step {
        match &self.action {
            Action::Add { to } => Step::AddReplica(*to),
            Action::Remove { replica } => Step::RemoveReplica(*replica),
            Action::Move { from, .. }
                if mutant::lives(Mutant::MoveRemovesFirst)
                    && shard.descriptor.replicas.contains(from) =>
            {
                Step::RemoveReplica(*from)
            }
            Action::Move { from, to } => match shard.voter_on(*to) {
                None => Step::AddReplica(*to),
                // The load goes where it was planned to go, and not to whoever is elected.
                Some(_) if shard.leader == Some(from.id) => Step::TransferLeader(*to),
                Some(_) => Step::RemoveReplica(*from),
            },
            Action::Transfer { to, .. } => Step::TransferLeader(*to),
            Action::Split { at } => Step::Split(at.clone()),
            Action::Merge { right, epoch } => Step::Merge {
                right: *right,
                epoch: *epoch,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::ReplicaId;

    use crate::types::ShardId;
    use crate::types::operator::Aim;
    use crate::types::operator::SplitPoint;

    use super::*;

    /// Replica `r` is on node `r % 10`.
    fn replica(id: u64) -> Replica {
        Replica {
            id: ReplicaId(id),
            node: NodeId(id % 10),
        }
    }

    fn shard(leader: u64, voters: &[u64], learners: &[u64], bounds: u64) -> ShardView {
        let ids = voters.iter().chain(learners);
        let mut shard = ShardView::new(ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch { conf: 7, bounds },
            replicas: ids.map(|id| replica(*id)).collect(),
        });
        shard.learners = learners.iter().copied().map(ReplicaId).collect();
        shard.leader = Some(ReplicaId(leader));
        shard
    }

    /// Planned for r1, which leads, r2 and r3.
    fn operator(action: Action) -> Operator {
        Operator {
            shard: ShardId(1),
            aim: Aim::Repair,
            action,
            reason: String::new(),
            epoch: Epoch { conf: 7, bounds: 1 },
            voters: [1, 2, 3].map(replica).into(),
            bytes: 0,
            expires: Timestamp(9),
        }
    }

    fn step(step: Step) -> Progress {
        Progress::Next(step, Epoch { conf: 7, bounds: 1 })
    }

    fn moves(from: u64) -> Operator {
        operator(Action::Move {
            from: replica(from),
            to: NodeId(4),
        })
    }

    #[test]
    fn a_move_adds_then_passes_the_lead_then_removes() {
        let operator = moves(1);
        let add = step(Step::AddReplica(NodeId(4)));
        assert_eq!(operator.next(&shard(1, &[1, 2, 3], &[], 1)), add);
        assert_eq!(operator.next(&shard(1, &[1, 2, 3], &[14], 1)), add);
        let pass = step(Step::TransferLeader(NodeId(4)));
        assert_eq!(operator.next(&shard(1, &[1, 2, 3, 14], &[], 1)), pass);
        let remove = step(Step::RemoveReplica(replica(1)));
        assert_eq!(operator.next(&shard(14, &[1, 2, 3, 14], &[], 1)), remove);
        assert_eq!(operator.next(&shard(2, &[1, 2, 3, 14], &[], 1)), remove);
        assert_eq!(
            operator.next(&shard(14, &[2, 3, 14], &[], 1)),
            Progress::Done
        );
    }

    #[test]
    fn an_operator_is_stale_once_the_shard_is_something_else() {
        let add = operator(Action::Add { to: NodeId(4) });
        let remove = operator(Action::Remove {
            replica: replica(3),
        });
        for operator in [&add, &remove, &moves(3)] {
            let others = shard(1, &[1, 3, 25], &[], 1);
            assert_eq!(operator.next(&others), Progress::Stale, "{operator}");
            let split = shard(1, &[1, 2, 3], &[], 2);
            assert_eq!(operator.next(&split), Progress::Stale, "{operator}");
        }
        let added = shard(1, &[1, 2, 3, 14], &[], 1);
        assert_eq!(add.next(&added), Progress::Done);
        assert_eq!(remove.next(&added), Progress::Stale);
        assert_eq!(remove.next(&shard(1, &[1, 2], &[], 1)), Progress::Done);
        // Both were done, by whomever, and then the new one was taken away again.
        assert_eq!(moves(3).next(&shard(1, &[1, 2], &[], 1)), Progress::Stale);
    }

    #[test]
    fn the_lead_is_passed_on_by_whom_it_was_planned_for_alone() {
        let transfer = operator(Action::Transfer {
            from: NodeId(1),
            to: NodeId(2),
        });
        let three = [1, 2, 3];
        let pass = step(Step::TransferLeader(NodeId(2)));
        assert_eq!(transfer.next(&shard(1, &three, &[], 1)), pass);
        assert_eq!(transfer.next(&shard(2, &three, &[], 1)), Progress::Done);
        assert_eq!(transfer.next(&shard(3, &three, &[], 1)), Progress::Stale);
        assert_eq!(transfer.next(&shard(1, &[1, 3], &[], 1)), Progress::Stale);
    }

    #[test]
    fn a_split_is_for_one_epoch() {
        let at = SplitPoint::Key("m".into());
        let split = operator(Action::Split { at: at.clone() });
        let mut shard = shard(1, &[1, 2, 3], &[], 1);
        assert_eq!(split.next(&shard), step(Step::Split(at)));
        shard.descriptor.epoch.conf = 8;
        assert_eq!(split.next(&shard), Progress::Stale);
        shard.descriptor.epoch.bounds = 2;
        assert_eq!(split.next(&shard), Progress::Done);
    }

    #[test]
    fn a_merge_is_for_one_epoch_and_done_when_the_bounds_are_above_those_of_both() {
        let right = Epoch { conf: 4, bounds: 3 };
        let merge = Action::Merge {
            right: ShardId(2),
            epoch: right,
        };
        let merge = operator(merge);
        let three = [1, 2, 3];
        let absorb = step(Step::Merge {
            right: ShardId(2),
            epoch: right,
        });
        assert_eq!(merge.next(&shard(1, &three, &[], 1)), absorb);
        // It was split instead.
        assert_eq!(merge.next(&shard(1, &three, &[], 2)), Progress::Stale);
        assert_eq!(merge.next(&shard(1, &three, &[], 4)), Progress::Done);
        let mut others = shard(1, &three, &[], 1);
        others.descriptor.epoch.conf = 8;
        assert_eq!(merge.next(&others), Progress::Stale);
    }

    #[test]
    fn it_is_given_up_when_its_time_has_come() {
        assert!(!moves(1).has_expired(Timestamp(8)));
        assert!(moves(1).has_expired(Timestamp(9)));
    }
}
