//! From which position on a read is linearizable (ReadIndex; Ongaro's thesis, section 6.4).
//!
//! A leader that was replaced does not know it. Before it lets anybody read what it has applied, it asks all
//! voters in which term they are, and goes on when a majority of each set of voters is in none later than its
//! own. One of these is among those who elected any later leader, and had not done so when it answered; so
//! whatever a later leader has acknowledged was acknowledged after the read began.
//!
//! What must hold:
//!
//! - **The round begins after the reader has come**, and each answer is to a question of this round. That is why
//!   the library's own confirmation is not used. It dates an acknowledgement by the last request that it may be
//!   an answer to, and where requests are sent before the answers to earlier ones are here, an old answer
//!   passes for one to a younger request: a replaced leader with answers under way would read alone.
//! - **The position is what the leader knows to be committed, once something of its own term is,** and until then
//!   the end of its log. What earlier leaders have acknowledged lies before the first entry of the term. That it
//!   has applied everything it has acknowledged is not enough: a follower may have applied, and shown, what the
//!   leader's own disk is too slow for; but no follower knows of a commit before the leader does.
//! - **The voters are those of the last membership in the leader's log, committed or not.** It is the only one
//!   in force, or next to it, and majorities of neighbours overlap.
//! - **A question does not keep a leader in the lead.** It goes past the library: nobody's lease is longer for
//!   it, and a leader that answers reads and no writes is replaced all the same (openraft #1747).
//!
//! A round costs one message to the library's core here, and for each other voter one frame each way beside the
//! heartbeats; there it costs a look at the vote.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::raft::Group;
use crate::raft::config::StoredMembership;
use crate::raft::convert;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::wire::request::Call;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;

/// How long a leader looks for a majority before its readers are told that it has none. Less than the node's
/// barrier waits, so that this is what they hear.
const CONFIRM_MAX: Duration = Duration::from_millis(900);
/// When a voter that could not be asked is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What a replica that leads knows, at one moment.
struct Claim {
    term: u64,
    position: Position,
    membership: Arc<StoredMembership>,
}

impl Group {
    /// A position that, once applied, shows every write acknowledged, and everything read, before the call. One
    /// round trip to a majority. Cancel-safe. For the leader only.
    ///
    /// # Errors
    /// `NotLeader` when this replica does not lead, or has been replaced; `Unavailable` when no majority answers
    /// for 900 ms, or while the group is being reopened.
    pub async fn read_position(&self) -> Result<Position> {
        if mutant::lives(Mutant::LeaderReadsAlone) {
            return Ok(self.inner.hosted.applied().borrow().unwrap_or_default());
        }
        let round = async {
            let claim = self.claim().await?;
            self.confirm(&claim).await?;
            Ok(claim.position)
        };
        let position = timeout(CONFIRM_MAX, round).await;
        position.unwrap_or_else(|_| {
            Err(Error::unavailable(
                self.id(),
                "its leader reaches no quorum",
            ))
        })
    }

    /// The last term in which this replica voted or followed; 0 before the first. A vote is counted here before
    /// anybody hears of it, so it has helped nobody to lead in a later one.
    ///
    /// # Errors
    /// `NotFound` when the replica has ended: what it voted is not known any more.
    pub fn term(&self) -> Result<u64> {
        let vote = self.inner.store.log().state().vote;
        // Behind the vote: it is forgotten after that.
        self.check_lives()?;
        Ok(vote.map_or(0, |vote| vote.term))
    }

    async fn claim(&self) -> Result<Claim> {
        let replica = self.replica();
        let raft = self.inner.raft();
        let claim = raft.with_raft_state(move |state| {
            let vote = convert::to_vote(state.vote_ref());
            let leads = state.server_state == ServerState::Leader
                && vote.committed
                && vote.replica == replica;
            let committed = state.local_committed().map(convert::to_position);
            let position = committed
                .filter(|committed| committed.term == vote.term)
                .or(state.log_ids.last().map(convert::to_position));
            leads.then(|| Claim {
                term: vote.term,
                position: position.unwrap_or_default(),
                membership: Arc::clone(state.membership_state.effective()),
            })
        });
        let claim = claim.await.map_err(|fatal| self.inner.stopped(&fatal))?;
        claim.ok_or_else(|| self.not_leading())
    }

    /// Returns when a majority has said that it has helped nobody to lead in a later term.
    async fn confirm(&self, claim: &Claim) -> Result<()> {
        let replica = self.replica();
        let membership = claim.membership.membership();
        let sets = membership.get_joint_config();
        // Its own term was looked at in this round.
        let mut confirmed = BTreeSet::from([replica]);
        let others = membership.voter_ids().filter(|voter| *voter != replica);
        let mut answers: FuturesUnordered<_> = others
            .filter_map(|voter| Some((voter, *membership.get_node(&voter)?)))
            .map(|(voter, node)| async move { (voter, self.ask_term(voter, node).await) })
            .collect();
        while !is_majority(sets, &confirmed) {
            match answers.next().await {
                Some((_, term)) if term > claim.term && !mutant::lives(Mutant::AnyTermConfirms) => {
                    return Err(Error::NotLeader {
                        group: self.id(),
                        leader: None,
                    });
                }
                Some((voter, _)) => confirmed.insert(voter),
                None => {
                    return Err(Error::unavailable(
                        self.id(),
                        "the nodes of its voters are not known",
                    ));
                }
            };
        }
        Ok(())
    }

    /// Asks until there is an answer.
    async fn ask_term(&self, voter: ReplicaId, node: NodeId) -> u64 {
        let service = self.inner.network.channel.node(node);
        let route = Route {
            group: self.id(),
            from: self.replica(),
            to: voter,
        };
        loop {
            let call = Call {
                request: Request::Term(route),
                deadline: CONFIRM_MAX,
                forwarded: false,
                cluster: None,
            };
            if let Ok(Response::Term(term)) = service.call(call).await {
                return term;
            }
            sleep(ASK_AGAIN).await;
        }
    }
}

/// Whether these are a majority of each of the sets: of the voters, and of the next ones while they change.
fn is_majority(voters: &[BTreeSet<ReplicaId>], confirmed: &BTreeSet<ReplicaId>) -> bool {
    let has_most = |of: &BTreeSet<ReplicaId>| of.intersection(confirmed).count() * 2 > of.len();
    voters.iter().all(has_most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(of: &[u64]) -> BTreeSet<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn a_majority_is_more_than_half_of_the_old_and_of_the_new_voters() {
        let check = |voters: &[&[u64]], confirmed: &[u64], expected: bool| {
            let voters: Vec<_> = voters.iter().map(|of| ids(of)).collect();
            let found = is_majority(&voters, &ids(confirmed));
            assert_eq!(found, expected, "{confirmed:?} of {voters:?}");
        };
        check(&[&[1]], &[1], true);
        check(&[&[1, 2]], &[1], false);
        check(&[&[1, 2, 3]], &[1], false);
        check(&[&[1, 2, 3]], &[1, 3], true);
        check(&[&[1, 2, 3, 4]], &[1, 2], false);
        check(&[&[1, 2, 3, 4, 5]], &[1, 2], false);
        check(&[&[1, 2, 3, 4, 5]], &[1, 2, 5], true);
        // A leader that is leaving does not count.
        check(&[&[2, 3, 4]], &[1, 2], false);
        check(&[&[2, 3, 4]], &[1, 2, 3], true);
        check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2], false);
        check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 4], false);
        check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 4], true);
    }
}
