//! Changes of who is in a group, each one entry of its log or two. For the group's leader.
//!
//! A replica is added as a learner, which counts in no quorum, and becomes a voter when it has caught up.
//! Voters change through a joint membership, in which a majority of the old and of the new voters must
//! agree (Ongaro and Ousterhout 2014, section 6). A leader that dies between the two entries leaves the
//! group joint; its successor finishes the change.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::errors::RaftError;
use openraft::raft::Precondition;

use crate::error::Error;
use crate::error::Result;
use crate::machine::Membership;
use crate::raft::config::LogId;
use crate::raft::config::StoredMembership;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::raft::group::Group;
use crate::raft::group::Leadership;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::shard::Replica;

type Change = ChangeMembers<ReplicaId, NodeId>;

/// A group's membership as its leader knew it at one moment. A change that is decided by it is made only while
/// the replica leads in the same term, without a break, and the membership is this one: another leader may have
/// changed it in between, or told a replica that is about to be added that it does not belong.
pub struct Seen {
    /// The last membership in the leader's log, committed or not.
    pub membership: Membership,
    at: Option<LogId>,
    term: u64,
}

impl Group {
    /// Who is in the group, as this replica knows it: the last membership in its log, committed or not.
    pub fn membership(&self) -> Membership {
        convert::from_membership(self.effective().membership())
    }

    /// Who is in the group, for its leader to change. A leader that has left the group leads on for a moment, and
    /// leaves further changes to the next one.
    ///
    /// # Errors
    /// `NotLeader` when this replica does not lead, or has left.
    pub fn seen(&self) -> Result<Seen> {
        let raft = self.inner.raft();
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != openraft::ServerState::Leader {
            return Err(self.not_leading());
        }
        let effective = &metrics.membership_config;
        let membership = convert::from_membership(effective.membership());
        if !membership
            .voters
            .iter()
            .any(|voters| voters.contains(&self.replica()))
        {
            return Err(self.not_leading());
        }
        Ok(Seen {
            membership,
            at: *effective.log_id(),
            term: metrics.current_term,
        })
    }

    /// Adds a replica that counts in no quorum and is sent the log. Not cancel-safe: a dropped call may have
    /// changed the group. Returns when the change is committed.
    pub async fn add_learner(&self, seen: &Seen, replica: Replica) -> Result<()> {
        let nodes = BTreeMap::from([(replica.id, replica.node)]);
        self.change(seen, ChangeMembers::AddNodes(nodes)).await
    }

    /// Makes these replicas, all of them voters or learners now, the voters; voters that are left out leave
    /// the group. Not cancel-safe: a dropped call may have changed the group. Returns when the change is
    /// committed.
    pub async fn set_voters(&self, seen: &Seen, voters: BTreeSet<ReplicaId>) -> Result<()> {
        self.change(seen, ChangeMembers::ReplaceAllVoters(voters))
            .await
    }

    /// Removes a learner. Not cancel-safe: a dropped call may have changed the group. Returns when the change
    /// is committed.
    pub async fn remove_learner(&self, seen: &Seen, learner: ReplicaId) -> Result<()> {
        let learners = BTreeSet::from([learner]);
        self.change(seen, ChangeMembers::RemoveNodes(learners))
            .await
    }

    /// Finishes a change of voters that a former leader has left joint; does nothing when there is none.
    pub async fn finish_change(&self) -> Result<()> {
        let seen = self.seen()?;
        match seen.membership.voters.last() {
            Some(voters) if seen.membership.is_joint() => {
                self.set_voters(&seen, voters.clone()).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How many entries of the log a replica lacks; `None` when this replica does not lead, or has not heard
    /// from the other.
    pub fn lag(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.inner.raft().metrics().borrow_watched().clone();
        let matched = metrics.replication?.get(&replica).cloned().flatten()?;
        Some(
            metrics
                .last_log_index
                .unwrap_or(0)
                .saturating_sub(matched.index()),
        )
    }

    /// The replicas that are no voters, as this replica knows it.
    pub fn learners(&self) -> Vec<ReplicaId> {
        self.effective().membership().learner_ids().collect()
    }

    /// As [`Group::lag`], of every replica that was heard from.
    pub fn lags(&self) -> Vec<(ReplicaId, u64)> {
        let effective = self.effective();
        let nodes = effective.membership().nodes();
        nodes
            .filter_map(|(id, _)| Some((*id, self.lag(*id)?)))
            .collect()
    }

    /// Whether a change of voters is half-way, as this replica knows it.
    pub fn is_joint(&self) -> bool {
        self.effective().membership().get_joint_config().len() > 1
    }

    /// A replica that is no voter, as this replica knows it.
    pub fn learner(&self) -> Option<Replica> {
        let effective = self.effective();
        let membership = effective.membership();
        let id = membership.learner_ids().next()?;
        let node = *membership.get_node(&id)?;
        Some(Replica { id, node })
    }

    /// Returns when a replica lacks at most `lag` entries of the log and has answered within the time given.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotLeader` as soon as this replica does not lead.
    pub async fn caught_up(&self, replica: ReplicaId, lag: u64, within: Duration) -> Result<()> {
        let mut metrics = self.inner.raft().metrics();
        loop {
            let answered = {
                let seen = metrics.borrow_and_update();
                let beats = seen.heartbeat.as_ref();
                let beats = beats.ok_or_else(|| self.not_leading())?;
                let last = beats.get(&replica).cloned().flatten();
                last.is_some_and(|at| at.elapsed() < within)
            };
            if answered && self.lag(replica).is_some_and(|lacks| lacks <= lag) {
                return Ok(());
            }
            if metrics.changed().await.is_err() {
                return Err(Error::unavailable(
                    self.id(),
                    "its replica here is stopping",
                ));
            }
        }
    }

    /// Returns when a replica has not answered for so long, as far as this one, which leads, has seen from now on.
    /// Cancel-safe.
    pub async fn silent(&self, replica: ReplicaId, length: Duration) {
        let metrics = self.inner.raft().metrics();
        let began = tokio::time::Instant::now();
        loop {
            let beats = metrics.borrow_watched().heartbeat.clone();
            let last = beats.and_then(|beats| beats.get(&replica).cloned().flatten());
            let waited = began.elapsed();
            let silent_for = last.map_or(waited, |at| waited.min(at.elapsed()));
            match length.checked_sub(silent_for) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Some(_) | None => return,
            }
        }
    }

    /// A replica that lacks more than `lag` entries of the log or has not answered within the time given; `None`
    /// when there is none.
    ///
    /// # Errors
    /// `NotLeader` when this replica does not lead.
    pub fn laggard(&self, lag: u64, within: Duration) -> Result<Option<ReplicaId>> {
        let metrics = self.inner.raft().metrics().borrow_watched().clone();
        let beats = metrics.heartbeat.ok_or_else(|| self.not_leading())?;
        let answers = |id: &ReplicaId| {
            let last = beats.get(id).cloned().flatten();
            last.is_some_and(|at| at.elapsed() < within)
        };
        let membership = metrics.membership_config.membership();
        let mut others = membership.nodes().map(|(id, _)| *id);
        let is_late =
            |id: &ReplicaId| !answers(id) || self.lag(*id).is_none_or(|lacks| lacks > lag);
        Ok(others.find(|id| *id != self.replica() && is_late(id)))
    }

    /// Returns when every replica, learners too, has synced its log up to an entry that this one has applied.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotLeader` as soon as this replica does not lead.
    pub async fn everywhere(&self, position: Position) -> Result<()> {
        let mut metrics = self.inner.raft().metrics();
        loop {
            let lacks = {
                let seen = metrics.borrow_and_update();
                let matched = seen.replication.as_ref();
                let matched = matched.ok_or_else(|| self.not_leading())?;
                let has = |id: &ReplicaId| {
                    let matched = matched.get(id).cloned().flatten();
                    matched.is_some_and(|matched| matched.index() >= position.index)
                };
                let membership = seen.membership_config.membership();
                let mut others = membership.nodes().map(|(id, _)| *id);
                others.any(|id| id != self.replica() && !has(&id))
            };
            if !lacks {
                return Ok(());
            }
            if metrics.changed().await.is_err() {
                return Err(Error::unavailable(
                    self.id(),
                    "its replica here is stopping",
                ));
            }
        }
    }

    pub(super) fn not_leading(&self) -> Error {
        let leader = match *self.leadership().borrow() {
            Leadership::Following { leader } => leader.map(|leader| leader.node),
            Leadership::Leading { .. } | Leadership::Failed => None,
        };
        Error::NotLeader {
            group: self.id(),
            leader,
        }
    }

    async fn change(&self, seen: &Seen, change: Change) -> Result<()> {
        let same_membership = Precondition::LastMembershipLogId {
            last_membership_log_id: seen.at,
        };
        let same_leader = Precondition::CommittedLeaderId {
            committed_leader_id: convert::to_leader_id(seen.term),
        };
        let preconditions = [same_membership, same_leader];
        let raft = self.inner.raft();
        match raft
            .change_membership_if(change, false, preconditions)
            .await
        {
            Ok(changed) => {
                self.await_seen(changed.log_id).await;
                Ok(())
            }
            Err(RaftError::Fatal(fatal)) => Err(self.inner.stopped(&fatal)),
            Err(RaftError::APIError(error)) => Err(self.change_error(error)),
        }
    }

    /// Returns when whoever looks at the membership sees a change of it: the library answers a moment before.
    async fn await_seen(&self, changed: LogId) {
        let mut metrics = self.inner.raft().metrics();
        while *metrics.borrow_and_update().membership_config.log_id() < Some(changed) {
            // The group has stopped: nobody sees anything any more.
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    fn change_error(&self, error: ClientWriteError<TypeConfig>) -> Error {
        match error {
            ClientWriteError::ForwardToLeader(forward) => self.inner.not_leader(&forward),
            // Another leader may have committed it; whoever asked looks at the membership.
            ClientWriteError::LogEntryDiscarded(_) => {
                Error::unavailable(self.id(), "its leader has changed")
            }
            ClientWriteError::ChangeMembershipError(error) => {
                Error::unavailable(self.id(), format!("its membership did not change: {error}"))
            }
            ClientWriteError::PreconditionFailed(_) => {
                Error::unavailable(self.id(), "its membership or its leader has changed")
            }
        }
    }

    fn effective(&self) -> std::sync::Arc<StoredMembership> {
        let raft = self.inner.raft();
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.clone()
    }
}
