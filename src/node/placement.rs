//! The way to placement from any node: its own replica when that leads the group, else the node that
//! does.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::error::Advice;
use crate::error::Error;
use crate::error::Result;
use crate::node::registry::Registry;
use crate::placement::PlacementAnswer;
use crate::placement::PlacementCommand;
use crate::raft::Leadership;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::node::Identity;
use crate::types::placement::Changes;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Report;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// How long placement may take to answer: an election and something.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one node may take: one that stands still must not use the time of the others up.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// Between two attempts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Asks placement. Cloning shares what is known of its leader.
#[derive(Clone)]
pub struct PlacementClient {
    shared: Arc<Shared>,
}

struct Shared {
    me: Identity,
    registry: Arc<Registry>,
    channel: Arc<dyn Channel>,
    /// Held for moments.
    compass: Mutex<Compass>,
}

impl PlacementClient {
    /// For the node `me`. `hosts` are the nodes with a replica of placement, at least one.
    pub fn new(
        me: Identity,
        hosts: Vec<NodeId>,
        registry: Arc<Registry>,
        channel: Arc<dyn Channel>,
    ) -> PlacementClient {
        let compass = Mutex::new(Compass::new(hosts, me.node));
        PlacementClient {
            shared: Arc::new(Shared {
                me,
                registry,
                channel,
                compass,
            }),
        }
    }

    /// The first of `count` numbers in a row, which nobody else gets. When the answer is lost others
    /// are taken: numbers are never given twice, but some are never given. Takes up to 5 s. A dropped
    /// call may have taken some.
    pub async fn take_ids(&self, count: u64) -> Result<u64> {
        match self.propose(PlacementCommand::TakeIds { count }).await? {
            PlacementAnswer::FirstId(first) => Ok(first),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a change, wherever placement's leader is. It is sent again when its outcome is open, which
    /// every command allows. Takes up to 5 s. Errors say why nobody has made it; it may still happen, as
    /// after a dropped call.
    pub async fn propose(&self, command: PlacementCommand) -> Result<PlacementAnswer> {
        self.propose_until(command, Instant::now() + ANSWER_MAX)
            .await
    }

    /// The same with another end than in 5 s.
    pub async fn propose_until(
        &self,
        command: PlacementCommand,
        until: Instant,
    ) -> Result<PlacementAnswer> {
        match self.ask(Request::Placement(command), until).await? {
            Response::Placement(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells placement's leader what has changed here, and learns what has changed elsewhere. Takes up
    /// to 5 s. A dropped call may have been recorded.
    pub async fn report(&self, report: Report) -> Result<Changes> {
        let until = Instant::now() + ANSWER_MAX;
        match self.ask(Request::Report(report), until).await? {
            Response::Report(changes) => Ok(changes),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a change if this node leads placement's group; `NotLeader` otherwise, with the leader when
    /// that is known here. A dropped call may have proposed.
    pub async fn propose_here(&self, command: PlacementCommand) -> Result<PlacementAnswer> {
        let group = self.shared.registry.group(GroupId::Placement)?;
        let term = self.term()?;
        let answer = async { group.propose(term, command.encode()).await?.await };
        let answer = answer.await.map_err(|error| match error {
            // Nothing is known of what became of it; each command may be sent again.
            Error::Unknown { reason, .. } => Error::unavailable(GroupId::Placement, reason),
            other => other,
        })?;
        PlacementAnswer::decode(&answer).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Records a report if this node leads placement's group, and says what has changed since. What is
    /// known already is not proposed.
    pub async fn report_here(&self, report: Report) -> Result<Changes> {
        self.term()?;
        let reader = self.shared.registry.placement();
        let reader = reader.ok_or_else(|| not_leader(None))?;
        let known = reader.state();
        let news = report.shards.into_iter().filter(|shard| known.wants(shard));
        let recorded = news.map(|shard| self.propose_here(PlacementCommand::RecordShard(shard)));
        try_join_all(recorded).await?;
        Ok(reader.state().changes_since(report.since))
    }

    /// The term in which this node leads placement's group.
    fn term(&self) -> Result<u64> {
        let group = self.shared.registry.group(GroupId::Placement)?;
        let leadership = *group.leadership().borrow();
        match leadership {
            Leadership::Leading { term } => Ok(term),
            Leadership::Following { leader } => Err(not_leader(leader.map(|leader| leader.node))),
            Leadership::Failed => Err(group.failed()),
        }
    }

    async fn ask(&self, request: Request, until: Instant) -> Result<Response> {
        loop {
            let node = self.compass().node();
            let left = until.saturating_duration_since(Instant::now());
            let error = match self
                .attempt(node, request.clone(), left.min(ATTEMPT_MAX))
                .await
            {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            self.compass().refused(node, &error);
            if matches!(error.advice(), Advice::Fix | Advice::Stop)
                || Instant::now() + ATTEMPT_PAUSE >= until
            {
                return Err(error);
            }
            sleep(ATTEMPT_PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        node: NodeId,
        request: Request,
        deadline: Duration,
    ) -> Result<Response> {
        if node == self.shared.me.node {
            let answer = tokio::time::timeout(deadline, self.answer_here(request)).await;
            return answer.unwrap_or_else(|_elapsed| {
                Err(Error::Timeout {
                    what: GroupId::Placement.to_string(),
                    after: deadline,
                })
            });
        }
        let call = Call {
            request,
            deadline,
            forwarded: true,
            cluster: Some(self.shared.me.cluster),
        };
        self.shared.channel.node(node).call(call).await
    }

    async fn answer_here(&self, request: Request) -> Result<Response> {
        match request {
            Request::Placement(command) => {
                self.propose_here(command).await.map(Response::Placement)
            }
            Request::Report(report) => self.report_here(report).await.map(Response::Report),
            other => Err(Error::Internal(format!("placement is asked {other:?}"))),
        }
    }

    fn compass(&self) -> MutexGuard<'_, Compass> {
        self.shared
            .compass
            .lock()
            .expect("nothing panics under this lock")
    }
}

fn not_leader(leader: Option<NodeId>) -> Error {
    Error::NotLeader {
        group: GroupId::Placement,
        leader,
    }
}

fn unexpected(answer: &dyn std::fmt::Debug) -> Error {
    Error::Internal(format!(
        "placement answered {answer:?}, which was not asked"
    ))
}

/// Which node is asked: the leader that was named last, else one host after the other.
struct Compass {
    hosts: Vec<NodeId>,
    next: usize,
    named: Option<NodeId>,
}

impl Compass {
    /// Begins with `me` if it is a host, since it names the leader for nothing.
    fn new(hosts: Vec<NodeId>, me: NodeId) -> Compass {
        assert!(!hosts.is_empty(), "placement has at least one replica");
        let own = hosts.iter().position(|host| *host == me);
        Compass {
            next: own.unwrap_or(me.0 as usize % hosts.len()),
            hosts,
            named: None,
        }
    }

    fn node(&self) -> NodeId {
        self.named.unwrap_or(self.hosts[self.next])
    }

    /// Of several requests that fail at one node only the first turns away from it.
    fn refused(&mut self, asked: NodeId, error: &Error) {
        if asked != self.node() {
            return;
        }
        self.named = match error {
            Error::NotLeader {
                group: GroupId::Placement,
                leader,
            } => leader.filter(|leader| *leader != asked),
            _ => None,
        };
        if self.named.is_none() {
            self.next = (self.next + 1) % self.hosts.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compass(me: u64) -> Compass {
        Compass::new(vec![NodeId(1), NodeId(2), NodeId(3)], NodeId(me))
    }

    /// Each step: who is asked, and whom that node names.
    fn check(me: u64, steps: &[(u64, Option<u64>)]) {
        let mut compass = compass(me);
        for (asked, named) in steps {
            assert_eq!(compass.node(), NodeId(*asked), "{steps:?}");
            compass.refused(NodeId(*asked), &not_leader(named.map(NodeId)));
        }
    }

    #[test]
    fn a_host_asks_itself_first_and_then_whom_it_names() {
        check(
            2,
            &[(2, Some(3)), (3, Some(1)), (1, None), (3, None), (1, None)],
        );
        check(4, &[(2, None), (3, None), (1, None), (2, None)]);
    }

    #[test]
    fn a_leader_that_does_not_answer_is_turned_away_from_once() {
        let mut compass = compass(1);
        compass.refused(NodeId(1), &not_leader(Some(NodeId(3))));
        let gone = Error::unavailable("n3", "no connection");
        for _ in 0..3 {
            compass.refused(NodeId(3), &gone);
        }
        assert_eq!(compass.node(), NodeId(2));
    }

    #[test]
    fn a_host_that_names_itself_without_leading_is_not_asked_for_ever() {
        check(1, &[(1, Some(1)), (2, None)]);
    }

    #[test]
    fn the_leader_of_another_group_is_not_placements() {
        let mut compass = compass(1);
        let other = Error::NotLeader {
            group: GroupId::Shard(crate::types::ShardId(1)),
            leader: Some(NodeId(3)),
        };
        compass.refused(NodeId(1), &other);
        assert_eq!(compass.node(), NodeId(2));
    }
}
