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
use crate::node::driver::Driver;
use crate::node::members::Nodes;
use crate::node::registry::Registry;
use crate::placement::PlacementAnswer;
use crate::placement::PlacementCommand;
use crate::placement::PlacementState;
use crate::placement::order;
use crate::placement::policy::Policy;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::keyspace::Definition;
use crate::types::keyspace::KeyspaceName;
use crate::types::node::Identity;
use crate::types::overview::Arrangement;
use crate::types::overview::Explained;
use crate::types::overview::Overview;
use crate::types::placement::Orders;
use crate::types::report::Load;
use crate::types::report::Report;
use crate::types::report::ShardReport;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::OverviewQuery;
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
    driver: Driver,
    nodes: Nodes,
    /// Held for moments.
    compass: Mutex<Compass>,
}

impl PlacementClient {
    /// For the node `me`. `hosts` are the nodes that had a replica of placement at first, at least one; `nodes`
    /// are all that are known.
    pub fn new(
        me: Identity,
        hosts: Vec<NodeId>,
        registry: Arc<Registry>,
        channel: Arc<dyn Channel>,
        (driver, nodes): (Driver, Nodes),
    ) -> PlacementClient {
        let compass = Mutex::new(Compass::new(hosts, me.node));
        PlacementClient {
            shared: Arc::new(Shared {
                me,
                registry,
                channel,
                driver,
                nodes,
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

    /// Tells placement's leader how this node does and what has changed here, and learns what has changed
    /// elsewhere and what is to be done. Takes up to 5 s. A dropped call may have been recorded.
    pub async fn report(&self, report: Report) -> Result<Orders> {
        let until = Instant::now() + ANSWER_MAX;
        match self.ask(Request::Report(Box::new(report)), until).await? {
            Response::Report(orders) => Ok(orders),
            other => Err(unexpected(&other)),
        }
    }

    /// What placement sees and does, in the words of its leader.
    pub async fn overview(&self, query: OverviewQuery, until: Instant) -> Result<Box<Overview>> {
        match self.ask(Request::Overview(query), until).await? {
            Response::Overview(overview) => Ok(overview),
            other => Err(unexpected(&other)),
        }
    }

    /// Why a shard is where it is, in the words of placement's leader.
    pub async fn explain(&self, shard: ShardId, until: Instant) -> Result<Box<Explained>> {
        match self.ask(Request::Explain(shard), until).await? {
            Response::Explain(explained) => Ok(explained),
            other => Err(unexpected(&other)),
        }
    }

    /// Has placement's leader record what a person wants. May be sent again; a dropped call may have been
    /// recorded.
    pub async fn arrange(&self, arrangement: Arrangement, until: Instant) -> Result<()> {
        match self.ask(Request::Arrange(arrangement), until).await? {
            Response::Arrange => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The keyspaces, deleted ones too, in the words of placement's leader.
    pub async fn keyspaces(&self, until: Instant) -> Result<Vec<Definition>> {
        match self.ask(Request::ListKeyspaces, until).await? {
            Response::Keyspaces(keyspaces) => Ok(keyspaces),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a change if this node leads placement's group; `NotLeader` otherwise, with the leader when
    /// that is known here. A dropped call may have proposed.
    pub async fn propose_here(&self, command: PlacementCommand) -> Result<PlacementAnswer> {
        let group = self.group()?;
        let term = leading(&group)?;
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
    pub async fn report_here(&self, report: &Report) -> Result<Orders> {
        let (mut term, mut state) = self.led().await?;
        let node = report.node.node;
        if state.member(node).is_none() {
            return Err(Error::invalid("node", format!("{node} is no member")));
        }
        let changed = report.changed.iter();
        let news: Vec<_> = changed.filter(|shard| state.wants(shard)).collect();
        if !news.is_empty() {
            let recorded = news.into_iter().cloned().map(PlacementCommand::RecordShard);
            try_join_all(recorded.map(|command| self.propose_here(command))).await?;
            (term, state) = self.led().await?;
        }
        Ok(Orders {
            steps: self.shared.driver.hear(term, report, &state),
            changes: state.changes_since(report.since),
            hosts: self.hosts()?,
            snapshot_bytes_per_second: Policy::of(state.settings()).snapshot_bytes_per_second,
        })
    }

    /// Placement's own group, as its leader knows it.
    pub fn own_group(&self) -> Result<(ShardDescriptor, ShardReport)> {
        let group = self.group()?;
        let descriptor = self.shared.registry.descriptor(GroupId::Placement)?;
        let report = ShardReport {
            shard: descriptor.id,
            epoch: descriptor.epoch,
            leader: group.replica(),
            term: group.view().term,
            led_for: Duration::ZERO,
            learners: group.learners(),
            lags: group.lags(),
            size: Size::default(),
            load: Load::default(),
            sample: Vec::new(),
        };
        Ok((descriptor, report))
    }

    fn hosts(&self) -> Result<Vec<NodeId>> {
        let placement = self.shared.registry.descriptor(GroupId::Placement)?;
        Ok(placement.replicas.iter().map(|it| it.node).collect())
    }

    /// What this node sees and does, if it leads placement's group.
    pub async fn overview_here(&self, query: OverviewQuery) -> Result<Box<Overview>> {
        let (term, state) = self.led().await?;
        let me = self.shared.me.node;
        let overview = self
            .shared
            .driver
            .show(term, &state, |shown, events| Overview {
                events,
                ..shown.overview(me, query.shards)
            });
        Ok(Box::new(overview))
    }

    /// Why a shard is where it is, if this node leads placement's group.
    pub async fn explain_here(&self, shard: ShardId) -> Result<Box<Explained>> {
        let (term, state) = self.led().await?;
        let explained = self
            .shared
            .driver
            .show(term, &state, |shown, _| shown.explain(shard));
        explained.map(Box::new).ok_or_else(|| Error::NotFound {
            what: shard.to_string(),
        })
    }

    /// The keyspaces, deleted ones too, if this node leads placement's group.
    pub async fn keyspaces_here(&self) -> Result<Vec<Definition>> {
        let (_, state) = self.led().await?;
        Ok(state.keyspaces().cloned().collect())
    }

    /// Records what a person wants, if this node leads placement's group.
    pub async fn arrange_here(&self, arrangement: Arrangement) -> Result<()> {
        let (term, state) = self.led().await?;
        let (command, what) = self.command_for(arrangement, term, &state)?;
        let answer = self.propose_here(command).await?;
        self.shared.driver.look_soon();
        match answer {
            PlacementAnswer::Recorded => Ok(()),
            PlacementAnswer::Missing => Err(Error::NotFound { what }),
            PlacementAnswer::Outdated => Err(Error::unavailable(
                what,
                "something else is being done with it; see `quorate operator list`",
            )),
            other => Err(unexpected(&other)),
        }
    }

    /// The change that brings about what a person wants, and what it is about.
    fn command_for(
        &self,
        arrangement: Arrangement,
        term: u64,
        state: &PlacementState,
    ) -> Result<(PlacementCommand, String)> {
        Ok(match arrangement {
            Arrangement::SetDuty { node, duty } => {
                let command = PlacementCommand::SetDuty { node, duty };
                (command, node.to_string())
            }
            Arrangement::SetRule(rule) => {
                let what = rule_name(&rule.prefix);
                (PlacementCommand::SetRule(rule), what)
            }
            Arrangement::DeleteRule { prefix } => {
                let what = rule_name(&prefix);
                (PlacementCommand::DeleteRule { prefix }, what)
            }
            Arrangement::SetSetting { name, value } => {
                let mut policy = Policy::default();
                let shown = policy.settings().into_iter();
                let default = shown.into_iter().find(|(known, _)| *known == name);
                let text = value
                    .as_deref()
                    .unwrap_or_else(|| default.as_ref().map_or("", |(_, text)| text.as_str()));
                let set = policy.set(&name, text);
                set.map_err(|error| Error::invalid("setting", error.to_string()))?;
                let what = name.clone();
                (PlacementCommand::SetSetting { name, value }, what)
            }
            Arrangement::SetPaused(paused) => {
                (PlacementCommand::SetPaused(paused), "placement".to_owned())
            }
            Arrangement::CancelOperator { shard, number } => {
                let command = PlacementCommand::EndOperator {
                    shard,
                    change: number,
                };
                (command, format!("operator {number} of {shard}"))
            }
            Arrangement::MoveReplica { shard, from, to } => {
                let ordered = self.shared.driver.show(term, state, |shown, _| {
                    let what = (shard, from, to);
                    order::move_replica(shown.view, shown.policy, shown.now, what)
                });
                let operator = ordered.map_err(|error| Error::invalid("move_replica", error))?;
                let command = PlacementCommand::RecordOperators(vec![operator]);
                (command, shard.to_string())
            }
            Arrangement::MergeShard { shard } => {
                let ordered = self.shared.driver.show(term, state, |shown, _| {
                    order::merge(shown.view, shown.policy, shown.now, shard)
                });
                let operator = ordered.map_err(|error| Error::invalid("merge_shard", error))?;
                let command = PlacementCommand::RecordOperators(vec![operator]);
                (command, shard.to_string())
            }
            Arrangement::CreateKeyspace(keyspace) => {
                if let Some(refusal) = state.refusal_of(&keyspace) {
                    return Err(Error::invalid("create_keyspace", refusal));
                }
                let what = keyspace_name(&keyspace.name);
                (PlacementCommand::CreateKeyspace(keyspace), what)
            }
            Arrangement::DeleteKeyspace { name } => {
                let what = keyspace_name(&name);
                (PlacementCommand::RetireKeyspace { name }, what)
            }
        })
    }

    /// Which nodes have a replica of placement, in the words of its leader.
    pub fn learn_hosts(&self, hosts: Vec<NodeId>) {
        self.compass().learn(hosts);
    }

    /// The term in which this node leads placement's group, and the state, after a round to a quorum: whoever has
    /// been deposed without hearing of it, or has not applied everything yet, answers nobody.
    pub async fn led(&self) -> Result<(u64, Arc<PlacementState>)> {
        let group = self.group()?;
        let term = leading(&group)?;
        let position = group.read_position().await?;
        group.wait_applied(position).await?;
        let reader = self.shared.registry.placement();
        let reader = reader.ok_or_else(|| not_leader(None))?;
        Ok((term, reader.state()))
    }

    /// This node's replica. Without one somebody else has it: that is no [`Error::NotFound`], which only the
    /// leader says, of what is asked about.
    fn group(&self) -> Result<Group> {
        let group = self.shared.registry.group(GroupId::Placement);
        group.map_err(|_none_here| not_leader(None))
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
            self.compass().refused(node, &error, &*self.shared.nodes);
            // Only the leader says that something is not there.
            if matches!(error.advice(), Advice::Fix | Advice::Stop)
                || matches!(error, Error::NotFound { .. })
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
            Request::Report(report) => self.report_here(&report).await.map(Response::Report),
            Request::Overview(query) => self.overview_here(query).await.map(Response::Overview),
            Request::Explain(shard) => self.explain_here(shard).await.map(Response::Explain),
            Request::ListKeyspaces => self.keyspaces_here().await.map(Response::Keyspaces),
            Request::Arrange(arrangement) => self
                .arrange_here(arrangement)
                .await
                .map(|()| Response::Arrange),
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

fn keyspace_name(name: &KeyspaceName) -> String {
    format!("keyspace {name}")
}

fn rule_name(prefix: &[u8]) -> String {
    format!("a rule for {:?}", prefix.escape_ascii().to_string())
}

/// The term in which this node leads placement's group.
fn leading(group: &Group) -> Result<u64> {
    let leadership = *group.leadership().borrow();
    match leadership {
        Leadership::Leading { term } => Ok(term),
        Leadership::Following { leader } => Err(not_leader(leader.map(|leader| leader.node))),
        Leadership::Failed => Err(group.failed()),
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

/// Which node is asked: the leader that was named last, else one host after the other. When none of them knows
/// a leader, all nodes are asked: the replicas may have moved while this node was away.
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

    /// What the leader says. Who was asked last is gone on with.
    fn learn(&mut self, hosts: Vec<NodeId>) {
        if hosts.is_empty() || hosts == self.hosts {
            return;
        }
        self.named.get_or_insert(self.hosts[self.next]);
        self.hosts = hosts;
        self.next = 0;
    }

    /// Of several requests that fail at one node only the first turns away from it.
    fn refused(&mut self, asked: NodeId, error: &Error, nodes: &dyn Fn() -> Vec<NodeId>) {
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
            self.next += 1;
        }
        if self.next == self.hosts.len() {
            let known = nodes().into_iter();
            let strangers = known.filter(|node| !self.hosts.contains(node));
            let strangers: Vec<NodeId> = strangers.collect();
            self.hosts.extend(strangers);
            self.next %= self.hosts.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::clock::Clock;
    use crate::node::opener::tests::Nobody;
    use crate::types::ClusterId;
    use crate::types::Incarnation;

    fn compass(me: u64) -> Compass {
        Compass::new(vec![NodeId(1), NodeId(2), NodeId(3)], NodeId(me))
    }

    /// Each step: who is asked, and whom that node names.
    fn check(me: u64, steps: &[(u64, Option<u64>)]) {
        let mut compass = compass(me);
        for (asked, named) in steps {
            assert_eq!(compass.node(), NodeId(*asked), "{steps:?}");
            compass.refused(NodeId(*asked), &not_leader(named.map(NodeId)), &Vec::new);
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

    /// A node that had a replica once is asked as long as others believe that it has: what it says must send
    /// them on.
    #[tokio::test]
    async fn a_node_without_a_replica_of_placement_does_not_lead_it() {
        let me = Identity {
            cluster: ClusterId([1; 16]),
            node: NodeId(1),
            incarnation: Incarnation([1; 16]),
        };
        let others = (Driver::new(Clock::manual(0)), Arc::new(Vec::new) as Nodes);
        let (registry, channel) = (Arc::default(), Arc::new(Nobody));
        let placement = PlacementClient::new(me, vec![me.node], registry, channel, others);
        let change = placement.propose_here(PlacementCommand::TakeIds { count: 1 });
        let query = OverviewQuery { shards: false };
        let asked = [
            change.await.err(),
            placement.overview_here(query).await.err(),
            placement.own_group().err(),
        ];
        assert_eq!(asked, [(); 3].map(|()| Some(not_leader(None))));
    }

    #[test]
    fn a_leader_that_does_not_answer_is_turned_away_from_once() {
        let mut compass = compass(1);
        compass.refused(NodeId(1), &not_leader(Some(NodeId(3))), &Vec::new);
        let gone = Error::unavailable("n3", "no connection");
        for _ in 0..3 {
            compass.refused(NodeId(3), &gone, &Vec::new);
        }
        assert_eq!(compass.node(), NodeId(2));
    }

    #[test]
    fn a_host_that_names_itself_without_leading_is_not_asked_for_ever() {
        check(1, &[(1, Some(1)), (2, None)]);
    }

    #[test]
    fn when_no_host_knows_a_leader_all_nodes_are_asked() {
        let mut compass = compass(1);
        let nodes = || (1..=5).map(NodeId).collect();
        let mut asked = Vec::new();
        for _ in 0..6 {
            asked.push(compass.node().0);
            compass.refused(compass.node(), &not_leader(None), &nodes);
        }
        assert_eq!(asked, [1, 2, 3, 4, 5, 1]);
    }

    #[test]
    fn what_the_leader_says_of_the_hosts_counts_from_then_on() {
        let mut compass = compass(1);
        compass.refused(NodeId(1), &not_leader(Some(NodeId(5))), &Vec::new);
        compass.learn(vec![NodeId(4), NodeId(5), NodeId(6)]);
        assert_eq!(compass.node(), NodeId(5));
        compass.refused(NodeId(5), &not_leader(None), &Vec::new);
        assert_eq!(compass.node(), NodeId(5), "the second of them");
    }

    #[test]
    fn the_leader_of_another_group_is_not_placements() {
        let mut compass = compass(1);
        let other = Error::NotLeader {
            group: GroupId::Shard(ShardId(1)),
            leader: Some(NodeId(3)),
        };
        compass.refused(NodeId(1), &other, &Vec::new);
        assert_eq!(compass.node(), NodeId(2));
    }
}
