//! How a leader hands over (Ongaro's thesis, section 3.10).
//!
//! It stops to propose, and asks a successor to stand for election at once; voters grant such an election though
//! they have heard from the leader a moment ago. The library sends that one message and leaves the rest to chance.
//! It takes no proposal in that term any more, so when the message is lost, or the successor cannot lead yet, the
//! group would stand still until a follower misses its leader: for a second or more, since whatever the leader still
//! sends to those that lack entries tells them that it lives.
//!
//! So a leader first asks whom it has chosen whether it would: one that is quarantined votes and never leads, and a
//! group that has only such others keeps its leader. And whoever handed over asks again, and the others in turn,
//! until somebody else leads. Two that stand for election in one term cannot both win, and a message of an earlier
//! term is refused: asking too often costs nothing but a term.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::sleep;
use tracing::debug;

use crate::env::tasks;
use crate::error::Error;
use crate::error::Result;
use crate::raft::Group;
use crate::raft::convert;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::shard::Replica;
use crate::wire::request::Call;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::TakeLead;

/// Who was asked has so long to be elected; then the next is asked. An election is two syncs and a round trip.
pub(super) const ELECTED_WITHIN: Duration = Duration::from_millis(150);

impl Group {
    /// Hands the leadership to the replica on `node`, or to the most up-to-date voter that would lead. Returns when
    /// it has been asked, not when it has happened; when it cannot, another voter leads. Costs a round trip before
    /// the leader stops to propose.
    ///
    /// # Errors
    /// `NotLeader` when this replica does not lead; `Invalid` when there is no such voter; `Unavailable` when it
    /// does not answer, or holds back from leading. This replica leads on then.
    pub async fn transfer_leader(&self, node: Option<NodeId>) -> Result<()> {
        let (term, mut successors) = self.successors(node)?;
        let candidates = match node {
            Some(_) => &successors[..1],
            None => &successors[..],
        };
        let willing = self.willing(term, candidates).await?;
        successors[..=willing].rotate_right(1);
        let raft = self.inner.raft();
        let asked = raft.trigger().transfer_leader(successors[0].id).await;
        asked.map_err(|fatal| self.inner.stopped(&fatal))?;
        if self.inner.handed_over.swap(term, Ordering::SeqCst) != term {
            tasks::spawn(self.clone().see_through(term, successors));
        }
        Ok(())
    }

    /// The place of the first that would lead. Asks one after the other.
    async fn willing(&self, term: u64, candidates: &[Replica]) -> Result<usize> {
        let patience = Duration::from_millis(self.inner.config.election_timeout_min);
        let mut refused = self.not_leading();
        for (place, candidate) in candidates.iter().enumerate() {
            let question = TakeLead {
                only_asked: true,
                ..self.offer(term, candidate.id).await?
            };
            match self.ask_to_lead(*candidate, question, patience).await {
                Ok(()) => return Ok(place),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// The other voters, in the order in which they are asked to lead, and the term that ends with it.
    fn successors(&self, node: Option<NodeId>) -> Result<(u64, Vec<Replica>)> {
        let metrics = self.inner.raft().metrics().borrow_watched().clone();
        let Some(replication) = metrics.replication else {
            return Err(self.not_leading());
        };
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids().filter(|id| *id != self.replica());
        let located = voters.filter_map(|id| {
            let node = *membership.get_node(&id)?;
            Some(Replica { id, node })
        });
        let mut voters: Vec<Replica> = located.collect();
        voters.sort_by_key(|voter| replication.get(&voter.id).copied().flatten());
        voters.reverse();
        // One that died in a quiet moment has all entries, and must not be chosen for that.
        let recent = Duration::from_millis(self.inner.config.election_timeout_min);
        let beats = metrics.heartbeat.unwrap_or_default();
        let is_alive = |id: ReplicaId| match beats.get(&id) {
            Some(Some(beat)) => beat.elapsed() < recent,
            Some(None) | None => false,
        };
        let asked_for = |voter: &Replica| node.is_none_or(|node| voter.node == node);
        // A leader that has asked one that is down leads nothing until another one is elected.
        let first = voters
            .iter()
            .position(|voter| asked_for(voter) && is_alive(voter.id));
        let Some(first) = first else {
            return Err(self.no_successor(node, !voters.iter().any(asked_for)));
        };
        let first = voters.remove(first);
        voters.insert(0, first);
        Ok((metrics.current_term, voters))
    }

    /// Who does not answer may do so in a moment; who is not there will not.
    fn no_successor(&self, node: Option<NodeId>, is_unknown: bool) -> Error {
        let group = self.id();
        match node {
            Some(node) if is_unknown => {
                Error::invalid("to", format!("{node} has no other voter of {group}"))
            }
            None if is_unknown => Error::invalid("to", format!("{group} has no other voter")),
            Some(node) => {
                Error::unavailable(node, format!("it does not answer the leader of {group}"))
            }
            None => Error::unavailable(group, "no other voter answers its leader"),
        }
    }

    /// Asks one after the other until this replica leads no more in the term, or has stopped.
    async fn see_through(self, term: u64, successors: Vec<Replica>) {
        for successor in successors.iter().cycle() {
            sleep(ELECTED_WITHIN).await;
            let Ok(take) = self.offer(term, successor.id).await else {
                return;
            };
            debug!(group = %self.id(), term, successor = %successor.id, "asked again to lead");
            if let Err(error) = self.ask_to_lead(*successor, take, ELECTED_WITHIN).await {
                debug!(group = %self.id(), term, successor = %successor.id, %error, "does not lead");
            }
        }
    }

    async fn offer(&self, term: u64, to: ReplicaId) -> Result<TakeLead> {
        let raft = self.inner.raft();
        let offer = raft.with_raft_state(move |state| {
            let vote = convert::to_vote(state.vote_ref());
            let leads = state.server_state == ServerState::Leader && vote.term == term;
            leads.then(|| TakeLead {
                vote,
                to,
                last: state.log_ids.last().map(convert::to_position),
                only_asked: false,
            })
        });
        let offer = offer.await.map_err(|fatal| self.inner.stopped(&fatal))?;
        offer.ok_or_else(|| self.not_leading())
    }

    async fn ask_to_lead(
        &self,
        successor: Replica,
        take: TakeLead,
        deadline: Duration,
    ) -> Result<()> {
        let route = Route {
            group: self.id(),
            from: self.replica(),
            to: successor.id,
        };
        let call = Call {
            request: Request::TakeLead(route, take),
            deadline,
            forwarded: false,
            cluster: None,
        };
        let service = self.inner.network.channel.node(successor.node);
        match service.call(call).await? {
            Response::TakeLead(true) => Ok(()),
            Response::TakeLead(false) => {
                Err(Error::unavailable(successor.id, "it does not lead now"))
            }
            other => Err(Error::Internal(format!("asked to lead, got {other:?}"))),
        }
    }
}
