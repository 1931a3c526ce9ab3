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

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::placement::shard::ShardView;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;

/// Why something is done with a shard. The earlier in this list, the more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Aim {
    /// Nobody leads who should not: not on a node that is drained, leaves or is slow.
    Relieve,
    /// As many replicas as the rule says, none of them on a dead node.
    Repair,
    /// No more of them than that.
    Reduce,
    /// None on a node that leaves.
    Vacate,
    /// No keys of two rules in one shard.
    Part,
    /// None on a node that the rule excludes.
    Obey,
    /// No two in one zone while there is another.
    Spread,
    /// Led where the rule prefers it.
    Prefer,
    /// No shard so big that it is hard to move.
    SplitSize,
    /// No more load on a shard than one leader bears.
    SplitLoad,
    /// As much to lead for every node.
    EvenLoad,
    /// As many bytes on every node.
    EvenBytes,
}

impl Aim {
    /// All, most urgent first.
    pub const ALL: [Aim; 12] = [
        Aim::Relieve,
        Aim::Repair,
        Aim::Reduce,
        Aim::Vacate,
        Aim::Part,
        Aim::Obey,
        Aim::Spread,
        Aim::Prefer,
        Aim::SplitSize,
        Aim::SplitLoad,
        Aim::EvenLoad,
        Aim::EvenBytes,
    ];
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aim::Relieve => "relieve",
            Aim::Repair => "repair",
            Aim::Reduce => "reduce",
            Aim::Vacate => "vacate",
            Aim::Part => "part",
            Aim::Obey => "obey",
            Aim::Spread => "spread",
            Aim::Prefer => "prefer",
            Aim::SplitSize => "split by size",
            Aim::SplitLoad => "split by load",
            Aim::EvenLoad => "even load",
            Aim::EvenBytes => "even bytes",
        })
    }
}

/// Where a shard is split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitPoint {
    /// At the key that halves its bytes, which its leader looks for.
    Middle,
    /// At this key, the first of the right half.
    Key(Key),
}

/// What is done with a shard. Variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// One replica more.
    Add {
        /// Where.
        to: NodeId,
    },
    /// One less.
    Remove {
        /// Which.
        replica: Replica,
    },
    /// One more, and then one less.
    Move {
        /// Which goes, once there is the other.
        from: Replica,
        /// Where the other comes.
        to: NodeId,
    },
    /// Another leader.
    Transfer {
        /// Who leads now.
        from: NodeId,
        /// Who shall.
        to: NodeId,
    },
    /// Two shards.
    Split {
        /// Where.
        at: SplitPoint,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Add { to } => write!(f, "add a replica on {to}"),
            Action::Remove { replica } => write!(f, "remove {} from {}", replica.id, replica.node),
            Action::Move { from, to } => write!(f, "move {} from {} to {to}", from.id, from.node),
            Action::Transfer { from, to } => write!(f, "pass the lead from {from} to {to}"),
            Action::Split { at } => match at {
                SplitPoint::Middle => write!(f, "split in the middle"),
                SplitPoint::Key(key) => write!(f, "split at {}", key.escape_ascii()),
            },
        }
    }
}

/// One thing that the leader of a shard can do and placement can see done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A replica on a node becomes a voter, from nothing or from what there is already.
    AddReplica(NodeId),
    /// A replica leaves; when it leads, another one leads first.
    RemoveReplica(Replica),
    /// The replica on a node leads.
    TransferLeader(NodeId),
    /// The shard becomes two.
    Split(SplitPoint),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddReplica(node) => write!(f, "add a replica on {node}"),
            Step::RemoveReplica(replica) => {
                write!(f, "remove {} from {}", replica.id, replica.node)
            }
            Step::TransferLeader(node) => write!(f, "pass the lead to {node}"),
            Step::Split(SplitPoint::Middle) => write!(f, "split in the middle"),
            Step::Split(SplitPoint::Key(key)) => write!(f, "split at {}", key.escape_ascii()),
        }
    }
}

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

/// What placement wants done with one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The shard.
    pub shard: ShardId,
    /// What for.
    pub aim: Aim,
    /// What.
    pub action: Action,
    /// Why, in words and numbers, for people.
    pub reason: String,
    /// The shard's epoch when it was planned.
    pub epoch: Epoch,
    /// The shard's voters when it was planned.
    pub voters: Vec<Replica>,
    /// What it copies.
    pub bytes: u64,
    /// When it is given up.
    pub expires: Timestamp,
}

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
        now >= self.expires
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
            Action::Split { .. } => epoch == self.epoch,
        }
    }

    fn step(&self, shard: &ShardView) -> Step {
        match &self.action {
            Action::Add { to } => Step::AddReplica(*to),
            Action::Remove { replica } => Step::RemoveReplica(*replica),
            Action::Move { from, to } => match shard.voter_on(*to) {
                None => Step::AddReplica(*to),
                // The load goes where it was planned to go, and not to whoever is elected.
                Some(_) if shard.leader == Some(from.id) => Step::TransferLeader(*to),
                Some(_) => Step::RemoveReplica(*from),
            },
            Action::Transfer { to, .. } => Step::TransferLeader(*to),
            Action::Split { at } => Step::Split(at.clone()),
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({}: {})",
            self.shard, self.action, self.aim, self.reason
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::shard::ShardDescriptor;

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
    fn it_is_given_up_when_its_time_has_come() {
        assert!(!moves(1).has_expired(Timestamp(8)));
        assert!(moves(1).has_expired(Timestamp(9)));
    }
}
