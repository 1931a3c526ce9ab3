//! What is done next to change the replicas of a shard. Decides only: `changes.rs` does it.
//!
//! The membership alone says how far a change has come, so that it can be begun again after a crash at
//! any step, here or by another leader: a replica that was added as a learner is used, not doubled.

use std::collections::BTreeSet;

use crate::machine::Membership;
use crate::types::NodeId;
use crate::types::ReplicaId;

/// What shall become of a shard's replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A further one, on this node.
    Add {
        /// The node.
        node: NodeId,
    },
    /// This learner becomes a voter.
    Promote {
        /// The learner.
        replica: ReplicaId,
    },
    /// One less.
    Remove {
        /// The replica.
        replica: ReplicaId,
    },
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The membership is as it shall be.
    Done,
    /// A new replica on this node, added as a learner.
    Create {
        /// The node.
        node: NodeId,
    },
    /// When the learner has caught up, it becomes a voter.
    Promote {
        /// The learner.
        learner: ReplicaId,
        /// All voters then.
        voters: BTreeSet<ReplicaId>,
    },
    /// These become the voters.
    SetVoters(BTreeSet<ReplicaId>),
    /// The learner leaves.
    RemoveLearner(ReplicaId),
    /// The leader shall leave: another one leads first.
    HandOver,
}

/// Why a change is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An earlier change is half-way. It is finished soon.
    #[error("its voters are being changed")]
    Joint,
    /// An earlier replica is still catching up. It is promoted soon, or can be removed.
    #[error("{learner} on {node} is still being added")]
    Unfinished {
        /// The replica.
        learner: ReplicaId,
        /// Its node.
        node: NodeId,
    },
    /// A node holds at most one replica of a shard.
    #[error("{replica} is there already")]
    HasReplica {
        /// The replica there.
        replica: ReplicaId,
    },
    /// Somebody has removed the learner meanwhile.
    #[error("{replica} was removed while it was being added")]
    Removed {
        /// The replica.
        replica: ReplicaId,
    },
    /// A group without voters could never be changed again.
    #[error("{replica} is the last voter")]
    LastVoter {
        /// The replica.
        replica: ReplicaId,
    },
}

/// What to do next for a change; `leader` is the replica that does it.
pub fn next_step(
    membership: &Membership,
    leader: ReplicaId,
    change: Change,
) -> Result<Step, Refusal> {
    let voters = match membership.voters.as_slice() {
        [voters] => voters,
        _ => return Err(Refusal::Joint),
    };
    match change {
        Change::Add { node } => add(membership, voters, node),
        Change::Promote { replica } if !membership.nodes.contains_key(&replica) => {
            Err(Refusal::Removed { replica })
        }
        Change::Promote { replica } => Ok(promote(voters, replica)),
        Change::Remove { replica } => remove(membership, voters, leader, replica),
    }
}

fn add(
    membership: &Membership,
    voters: &BTreeSet<ReplicaId>,
    node: NodeId,
) -> Result<Step, Refusal> {
    let replicas = membership.replicas();
    let here = replicas.iter().find(|replica| replica.node == node);
    if let Some(here) = here {
        return match voters.contains(&here.id) {
            true => Err(Refusal::HasReplica { replica: here.id }),
            false => Ok(promote(voters, here.id)),
        };
    }
    match replicas
        .iter()
        .find(|replica| !voters.contains(&replica.id))
    {
        Some(other) => Err(Refusal::Unfinished {
            learner: other.id,
            node: other.node,
        }),
        None => Ok(Step::Create { node }),
    }
}

fn promote(voters: &BTreeSet<ReplicaId>, replica: ReplicaId) -> Step {
    if voters.contains(&replica) {
        return Step::Done;
    }
    let mut voters = voters.clone();
    voters.insert(replica);
    Step::Promote {
        learner: replica,
        voters,
    }
}

fn remove(
    membership: &Membership,
    voters: &BTreeSet<ReplicaId>,
    leader: ReplicaId,
    replica: ReplicaId,
) -> Result<Step, Refusal> {
    if !membership.nodes.contains_key(&replica) {
        return Ok(Step::Done);
    }
    if !voters.contains(&replica) {
        return Ok(Step::RemoveLearner(replica));
    }
    let mut others = voters.clone();
    others.remove(&replica);
    if others.is_empty() {
        return Err(Refusal::LastVoter { replica });
    }
    match replica == leader {
        true => Ok(Step::HandOver),
        false => Ok(Step::SetVoters(others)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Replica `r` is on node `r % 10`.
    fn membership(voters: &[&[u64]], learners: &[u64]) -> Membership {
        let ids = voters.iter().copied().flatten().chain(learners);
        let nodes: BTreeMap<_, _> = ids.map(|id| (ReplicaId(*id), NodeId(id % 10))).collect();
        Membership {
            voters: voters.iter().map(|set| set_of(set)).collect(),
            nodes,
        }
    }

    fn set_of(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn add(node: u64) -> Change {
        Change::Add { node: NodeId(node) }
    }

    fn remove(replica: u64) -> Change {
        Change::Remove {
            replica: ReplicaId(replica),
        }
    }

    fn promoted(learner: u64, voters: &[u64]) -> Result<Step, Refusal> {
        Ok(Step::Promote {
            learner: ReplicaId(learner),
            voters: set_of(voters),
        })
    }

    /// Voters, learners, what is asked for, and the step.
    type Case = (
        &'static [&'static [u64]],
        &'static [u64],
        Change,
        Result<Step, Refusal>,
    );

    /// Led by r1.
    #[test]
    fn each_membership_has_one_next_step() {
        let promote = |replica| Change::Promote {
            replica: ReplicaId(replica),
        };
        let three: &'static [&'static [u64]] = &[&[1, 2, 3]];
        let learner = |id: u64| Refusal::Unfinished {
            learner: ReplicaId(id),
            node: NodeId(id % 10),
        };
        let create = |node| Ok(Step::Create { node: NodeId(node) });
        let table: &[Case] = &[
            (three, &[], add(4), create(4)),
            (three, &[14], add(4), promoted(14, &[1, 2, 3, 14])),
            (
                three,
                &[],
                add(3),
                Err(Refusal::HasReplica {
                    replica: ReplicaId(3),
                }),
            ),
            (three, &[14], add(5), Err(learner(14))),
            (three, &[14], promote(14), promoted(14, &[1, 2, 3, 14])),
            (three, &[], promote(3), Ok(Step::Done)),
            (
                three,
                &[],
                promote(14),
                Err(Refusal::Removed {
                    replica: ReplicaId(14),
                }),
            ),
            (three, &[], remove(3), Ok(Step::SetVoters(set_of(&[1, 2])))),
            (three, &[], remove(1), Ok(Step::HandOver)),
            (
                three,
                &[14],
                remove(14),
                Ok(Step::RemoveLearner(ReplicaId(14))),
            ),
            (
                three,
                &[14],
                remove(3),
                Ok(Step::SetVoters(set_of(&[1, 2]))),
            ),
            (three, &[], remove(9), Ok(Step::Done)),
            (
                &[&[1]],
                &[],
                remove(1),
                Err(Refusal::LastVoter {
                    replica: ReplicaId(1),
                }),
            ),
            (&[&[1]], &[], add(2), create(2)),
            (&[&[1, 2, 3], &[1, 2]], &[], add(4), Err(Refusal::Joint)),
            (&[&[1, 2, 3], &[1, 2]], &[], remove(3), Err(Refusal::Joint)),
            (
                &[&[1, 2], &[1, 2, 13]],
                &[],
                promote(13),
                Err(Refusal::Joint),
            ),
        ];
        for (voters, learners, change, expected) in table {
            let step = next_step(&membership(voters, learners), ReplicaId(1), *change);
            assert_eq!(step, *expected, "{voters:?} {learners:?} {change:?}");
        }
    }

    /// Whoever leads and however often it is begun anew: it ends, and never with less than it shall keep.
    #[test]
    fn a_change_that_is_begun_anew_after_every_step_ends() {
        for change in [add(4), remove(3), remove(1)] {
            let mut state = membership(&[&[1, 2, 3]], &[]);
            let mut leader = ReplicaId(1);
            let mut steps = 0;
            loop {
                steps += 1;
                assert!(steps < 5, "{change:?} {state:?}");
                match next_step(&state, leader, change) {
                    Ok(Step::Done) | Err(Refusal::HasReplica { .. }) => break,
                    Ok(Step::Create { .. }) => state = membership(&[&[1, 2, 3]], &[14]),
                    Ok(Step::Promote { voters, .. }) => state.voters = vec![voters],
                    Ok(Step::SetVoters(voters)) => {
                        state.nodes.retain(|id, _| voters.contains(id));
                        state.voters = vec![voters];
                    }
                    Ok(Step::HandOver) => leader = ReplicaId(2),
                    other => panic!("{other:?}"),
                }
            }
            let expected: &[u64] = match change {
                Change::Add { .. } => &[1, 2, 3, 14],
                Change::Remove {
                    replica: ReplicaId(1),
                } => &[2, 3],
                _ => &[1, 2],
            };
            assert_eq!(state.voters, [set_of(expected)]);
        }
    }
}
