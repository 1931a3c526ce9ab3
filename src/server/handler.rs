//! One match over everything that a node can be asked.
//!
//! Any node takes any request. A read is answered by the replica here, after a round through its leader
//! unless it is asked for as a follower's; a write goes to the leader, sent on at most once. What had no
//! effect is tried again here while the caller's deadline lasts, so that an election or a split is a delay
//! and not an error: every attempt looks the shard up again. A write whose outcome is open is tried again
//! under the same id, which finds out what became of it, and never under another.
//!
//! A batch of keys asks all their shards; of a range one shard answers a portion, and the rest of the
//! range is the caller's to go on with.

use std::future::Future;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::future::join_all;
use futures::stream;
use futures::stream::BoxStream;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::client::gather::Gather;
use crate::client::retry;
use crate::error::Advice;
use crate::error::Effect;
use crate::error::Error;
use crate::error::Result;
use crate::node::change_step::Change;
use crate::node::formation_driver::FormationHandle;
use crate::node::replica::Replica;
use crate::raft::Leadership;
use crate::server::host::Host;
use crate::server::keyspace_driver;
use crate::server::keyspace_driver::Terms;
use crate::server::portion;
use crate::server::space_driver::check_room;
use crate::server::space_driver::while_there_is_room;
use crate::telemetry::metrics;
use crate::telemetry::metrics::Outcome;
use crate::telemetry::metrics::RequestKind;
use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::log::Vote;
use crate::types::node::Room;
use crate::types::request::ReadKind;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::BatchGet;
use crate::wire::request::Call;
use crate::wire::request::KeyRequest;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Service;
use crate::wire::request::SnapshotHeader;

/// Between two attempts when the error names no time.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause between two attempts: a new leader is not kept waiting.
const ATTEMPT_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a call for a vote waits for its replica: a split's child is called by the node that leads it as
/// soon as that node has applied the split.
const BIRTH_PATIENCE: Duration = Duration::from_millis(200);

/// What a node answers. Before its stores are open it only helps to form the cluster.
#[derive(Clone)]
pub struct Handler {
    host: Arc<OnceLock<Host>>,
    formation: Arc<OnceLock<FormationHandle>>,
}

impl Handler {
    /// A handler that waits for its node.
    pub fn new() -> Handler {
        Handler {
            host: Arc::default(),
            formation: Arc::default(),
        }
    }

    /// From now on calls that form the cluster are answered.
    pub fn form(&self, formation: FormationHandle) {
        let set = self.formation.set(formation);
        assert!(set.is_ok(), "a node forms once");
    }

    /// From now on everything is answered.
    pub fn open(&self, host: Host) {
        let set = self.host.set(host);
        assert!(set.is_ok(), "a node opens once");
    }

    /// The open node.
    pub fn host(&self) -> Result<&Host> {
        self.host
            .get()
            .ok_or_else(|| Error::unavailable("the node", "it is starting"))
    }

    async fn answer(self, call: Call) -> Result<Response> {
        if let Request::Form(request) = call.request {
            let formation = self.formation.get();
            let formation =
                formation.ok_or_else(|| Error::unavailable("the node", "it is starting"))?;
            return Ok(Response::Form(formation.answer(&request)));
        }
        let host = self.host()?;
        check_cluster(call.cluster, host)?;
        let kind = kind(&call.request);
        let write = call.request.write_id();
        let (began, deadline) = (Instant::now(), call.deadline);
        let answer = match timeout(deadline, serve(host, call)).await {
            Ok(answer) => answer,
            Err(_) => Err(match write {
                Some(request) => Error::Unknown {
                    request,
                    reason: "its deadline passed".to_string(),
                },
                None => Error::Timeout {
                    what: kind.as_str().to_string(),
                    after: deadline,
                },
            }),
        };
        metrics::request_done(kind, Outcome::of(&answer), began.elapsed());
        answer
    }
}

impl Default for Handler {
    fn default() -> Handler {
        Handler::new()
    }
}

fn check_cluster(named: Option<ClusterId>, host: &Host) -> Result<()> {
    match named {
        Some(expected) if expected != host.identity.cluster => Err(Error::WrongCluster {
            expected,
            actual: host.identity.cluster,
        }),
        Some(_) | None => Ok(()),
    }
}

fn kind(request: &Request) -> RequestKind {
    match request {
        Request::Get(_) => RequestKind::Get,
        Request::BatchGet(_) => RequestKind::BatchGet,
        Request::Scan(_) => RequestKind::Scan,
        Request::Write(write) => kind_of_write(write),
        Request::Within(within) => match &within.request {
            KeyRequest::Get(_) => RequestKind::Get,
            KeyRequest::BatchGet(_) => RequestKind::BatchGet,
            KeyRequest::Scan(_) => RequestKind::Scan,
            KeyRequest::Write(write) => kind_of_write(write),
        },
        Request::Status(_)
        | Request::TransferLeader(_)
        | Request::SplitShard(_)
        | Request::ListKeyspaces
        | Request::Form(_)
        | Request::Join(_)
        | Request::Placement(_)
        | Request::Report(_)
        | Request::Overview(_)
        | Request::Explain(_)
        | Request::Arrange(_)
        | Request::Locate(_)
        | Request::Routes(_)
        | Request::CreateReplica(_)
        | Request::Membership(_)
        | Request::ReplicaLeft(_)
        | Request::AddReplica(_)
        | Request::RemoveReplica(_)
        | Request::CheckReplica(..)
        | Request::Merge(_) => RequestKind::Control,
        Request::ReadPosition(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::Term(_)
        | Request::TakeLead(..) => RequestKind::Raft,
    }
}

fn kind_of_write(write: &Write) -> RequestKind {
    match &write.kind {
        WriteKind::Keys { .. } => RequestKind::Write,
        WriteKind::Range { .. } => RequestKind::DeleteRange,
    }
}

/// What is asked of keys as they are stored.
pub(super) async fn serve_keys(
    host: &Host,
    request: Request,
    until: Instant,
    once: bool,
) -> Result<Response> {
    match request {
        Request::BatchGet(get) => batch_get(host, get, until, once).await,
        Request::Write(ref write) => persist_write(host, write.id, &request, until, once).await,
        request => persist(once, until, || attempt(host, &request, until, once)).await,
    }
}

async fn serve(host: &Host, call: Call) -> Result<Response> {
    let once = call.forwarded;
    let until = Instant::now() + call.deadline;
    let registry = &host.registry;
    match call.request {
        Request::Get(_)
        | Request::BatchGet(_)
        | Request::Scan(_)
        | Request::Write(_)
        | Request::SplitShard(_) => serve_keys(host, call.request, until, once).await,
        Request::Within(within) => {
            keyspace_driver::serve(host, within, Terms { until, once }).await
        }
        Request::Status(query) => Ok(Response::Status(Box::new(host.status(query).await?))),
        Request::TransferLeader(transfer) => {
            let group = match (registry.group(transfer.group), transfer.group) {
                (Err(Error::NotFound { .. }), GroupId::Shard(shard)) if !once => {
                    return host.ask_shard(shard, call.request.clone(), until).await;
                }
                (group, _) => group?,
            };
            let outcome = group.transfer_leader(transfer.to).await;
            let outcome = outcome.map(|()| Response::TransferLeader);
            or_at_leader(host, outcome, &call.request, until, once).await
        }
        Request::ReadPosition(group) => host.read_position(group).await.map(Response::ReadPosition),
        Request::Vote(route, request) => registry
            .awaited_receiver(route, call.deadline.min(BIRTH_PATIENCE))
            .await?
            .vote(request)
            .await
            .map(Response::Vote),
        Request::Append(route, request) => registry
            .receiver(route)?
            .append(request)
            .await
            .map(Response::Append),
        Request::Term(route) => registry.receiver(route)?.term().map(Response::Term),
        Request::TakeLead(route, take) => registry
            .receiver(route)?
            .take_lead(take)
            .await
            .map(Response::TakeLead),
        Request::Placement(command) => host
            .placement
            .propose_here(command)
            .await
            .map(Response::Placement),
        Request::Report(report) => host
            .placement
            .report_here(&report)
            .await
            .map(Response::Report),
        Request::Overview(query) if once => host
            .placement
            .overview_here(query)
            .await
            .map(Response::Overview),
        Request::Overview(query) => {
            let overview = host.placement.overview(query, until).await?;
            Ok(Response::Overview(overview))
        }
        Request::Explain(shard) if once => host
            .placement
            .explain_here(shard)
            .await
            .map(Response::Explain),
        Request::Explain(shard) => {
            let explained = host.placement.explain(shard, until).await?;
            Ok(Response::Explain(explained))
        }
        Request::Arrange(arrangement) => {
            match once {
                true => host.placement.arrange_here(arrangement).await?,
                false => keyspace_driver::arrange(host, arrangement, Terms { until, once }).await?,
            }
            Ok(Response::Arrange)
        }
        Request::ListKeyspaces if once => host
            .placement
            .keyspaces_here()
            .await
            .map(Response::Keyspaces),
        Request::ListKeyspaces => {
            let keyspaces = host.placement.keyspaces(until).await?;
            Ok(Response::Keyspaces(keyspaces))
        }
        Request::Join(join) => host.join(join, until).await.map(Response::Join),
        Request::Locate(key) => host.router.locate(&key).map(Response::Locate),
        Request::Routes(since) => {
            let half = until - call.deadline / 2;
            let (upto, routes) = host.router.changes_since(since, half).await;
            Ok(Response::Routes(upto, routes))
        }
        Request::CreateReplica(create) => {
            let creation = host.create_replica(create).await?;
            Ok(Response::CreateReplica(creation))
        }
        Request::Membership(name) => {
            let (standing, shard) = host.standing(name).await?;
            Ok(Response::Membership(standing, shard))
        }
        Request::ReplicaLeft(name) => {
            host.hints.may_have_left(name.replica);
            Ok(Response::ReplicaLeft)
        }
        Request::AddReplica(add) => {
            persist(once, until, async || host.check_member(add.node)).await?;
            let (request, change) = (Request::AddReplica(add), Change::Add { node: add.node });
            let shard = change_replicas(host, (add.shard, change), request, until, once).await?;
            Ok(Response::AddReplica(shard))
        }
        Request::RemoveReplica(name) => {
            let (request, replica) = (Request::RemoveReplica(name), name.replica);
            let change = Change::Remove { replica };
            let shard = change_replicas(host, (name.shard, change), request, until, once).await?;
            Ok(Response::RemoveReplica(shard))
        }
        Request::CheckReplica(name, check) => {
            let checked = host.checks.check(name, check).await?;
            Ok(Response::CheckReplica(checked))
        }
        Request::Merge(request) => host.merges.answer(request).await.map(Response::Merge),
        Request::Form(_) => Err(Error::Internal(
            "forming is answered before this".to_string(),
        )),
    }
}

/// A change of a shard's replicas, which the shard's leader makes, wherever it is.
async fn change_replicas(
    host: &Host,
    (shard, change): (ShardId, Change),
    request: Request,
    until: Instant,
    once: bool,
) -> Result<ShardDescriptor> {
    let left = || until.saturating_duration_since(Instant::now());
    let changed = persist(once, until, async || {
        let answer = match host.changes.change(shard.group(), change).await {
            Err(Error::NotLeader {
                leader: Some(leader),
                ..
            }) if !once => host.forward(leader, request.clone(), left()).await,
            Err(Error::NotFound { .. }) if !once => {
                host.ask_shard(shard, request.clone(), until).await
            }
            outcome => return outcome,
        };
        match answer? {
            Response::AddReplica(shard) | Response::RemoveReplica(shard) => Ok(shard),
            other => Err(Error::Internal(format!(
                "a change of replicas was answered with {other:?}"
            ))),
        }
    });
    changed.await
}

/// One attempt of a request for one shard. Which shard and which replica that is is looked up each
/// time: between two attempts the shard may have been split, or have come here.
async fn attempt(host: &Host, request: &Request, until: Instant, once: bool) -> Result<Response> {
    let anchor = request
        .anchor()
        .ok_or_else(|| Error::Internal("the request is for no shard".to_string()))?;
    let key = anchor.key();
    match host.registry.shard_of(&key) {
        Ok(replica) => ask_replica(host, &replica, request, until, once).await,
        Err(error) if once => Err(error),
        Err(_) => host.ask_elsewhere(&key, request.clone(), until).await,
    }
}

async fn ask_replica(
    host: &Host,
    replica: &Replica,
    request: &Request,
    until: Instant,
    once: bool,
) -> Result<Response> {
    if !once
        && request.read_kind() == Some(ReadKind::Linearizable)
        && let Some(leader) = only_leader_reads(host, replica, request)
    {
        let answer = while_it_leads(host, replica, leader, request, until).await;
        return answer.unwrap_or_else(|| Err(led_by_another(replica)));
    }
    match request {
        Request::Get(get) => {
            let (found, answered) = replica.get(get.clone()).await?;
            Ok(Response::Get(found, answered))
        }
        Request::BatchGet(get) => {
            let (found, answered) = replica.batch_get(get.clone()).await?;
            Ok(Response::BatchGet(found, vec![answered]))
        }
        Request::Scan(scan) => {
            let part = portion::inside(scan, &replica.reader().row().descriptor.range);
            let page = replica.scan(part.clone()).await?;
            Ok(Response::Scan(portion::whole(scan, &part, page)))
        }
        Request::Write(write) => {
            // Elsewhere there may be room.
            if replica.leads() {
                host.check_space(replica, write)?;
            }
            match replica.write(write.clone()).await {
                Ok((outcome, answered)) => Ok(Response::Write(outcome, answered)),
                Err(Error::NotLeader {
                    leader: Some(leader),
                    ..
                }) if !once => {
                    let answer = while_it_leads(host, replica, leader, request, until).await;
                    answer.unwrap_or_else(|| Err(given_up(write.id, leader)))
                }
                Err(error) => Err(error),
            }
        }
        Request::SplitShard(split) => {
            let outcome = host.split_shard(split.clone()).await;
            or_at_leader(host, outcome, request, until, once).await
        }
        Request::Status(_)
        | Request::TransferLeader(_)
        | Request::ReadPosition(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::Term(_)
        | Request::TakeLead(..)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Placement(_)
        | Request::Report(_)
        | Request::Overview(_)
        | Request::Explain(_)
        | Request::Arrange(_)
        | Request::ListKeyspaces
        | Request::Within(_)
        | Request::Locate(_)
        | Request::Routes(_)
        | Request::CreateReplica(_)
        | Request::Membership(_)
        | Request::ReplicaLeft(_)
        | Request::AddReplica(_)
        | Request::RemoveReplica(_)
        | Request::CheckReplica(..)
        | Request::Merge(_) => Err(Error::Internal("the request is for no shard".to_string())),
    }
}

/// The leader, where it alone shall answer a linearizable read. A replica that takes no more entries for want of
/// room would wait in vain for what it has to show; and only a leader can begin a cut that lasts on a shard that
/// nobody has written for long.
fn only_leader_reads(host: &Host, replica: &Replica, request: &Request) -> Option<NodeId> {
    let Leadership::Following { leader } = *replica.group().leadership().borrow() else {
        return None;
    };
    let would_age = match request {
        Request::Scan(scan) => replica.would_age(scan),
        _ => false,
    };
    let leader = leader.filter(|_| would_age || host.space.room() == Room::Full);
    leader.map(|leader| leader.node)
}

/// The leader's answer; none when the replica here hears of another leader before it comes. One that stands
/// still answers nobody, and what was sent to it must not wait for longer than its group has waited.
async fn while_it_leads(
    host: &Host,
    replica: &Replica,
    leader: NodeId,
    request: &Request,
    until: Instant,
) -> Option<Result<Response>> {
    let left = until.saturating_duration_since(Instant::now());
    let mut leadership = replica.group().leadership();
    let another = leadership.wait_for(|now| match now {
        Leadership::Leading { .. } => true,
        Leadership::Following { leader: next } => next.is_some_and(|next| next.node != leader),
        Leadership::Failed => false,
    });
    tokio::select! {
        biased;
        answer = host.forward(leader, request.clone(), left) => Some(answer),
        Ok(_) = another => None,
    }
}

fn led_by_another(replica: &Replica) -> Error {
    Error::NotLeader {
        group: replica.group().id(),
        leader: None,
    }
}

/// What only a leader does is sent on to the leader that the replica here has named, once.
async fn or_at_leader(
    host: &Host,
    outcome: Result<Response>,
    request: &Request,
    until: Instant,
    once: bool,
) -> Result<Response> {
    match outcome {
        Err(Error::NotLeader {
            leader: Some(leader),
            ..
        }) if !once => {
            let left = until.saturating_duration_since(Instant::now());
            host.forward(leader, request.clone(), left).await
        }
        outcome => outcome,
    }
}

/// Asks the shard of each key, all shards beside each other, each once; keys whose shard has changed are
/// parted anew and asked again.
async fn batch_get(host: &Host, get: BatchGet, until: Instant, once: bool) -> Result<Response> {
    if get.keys.is_empty() {
        return Err(Error::invalid("keys", "at least one key is needed"));
    }
    let mut gather = Gather::new(get);
    loop {
        let parts = gather.parts(|key| {
            let shard = host.shard_with(key);
            Some(shard.map_or_else(|| KeyRange::of_key(key), |shard| shard.range))
        });
        let answers = parts.iter().map(|part| async {
            let request = Request::BatchGet(part.get.clone());
            attempt(host, &request, until, once).await
        });
        let mut refusal = None;
        for (part, answer) in parts.iter().zip(join_all(answers).await) {
            match answer {
                Ok(Response::BatchGet(found, answered)) => gather.take(part, found, answered)?,
                Ok(other) => return Err(Error::Internal(format!("keys came as {other:?}"))),
                Err(error) => refusal = Some(refusal.unwrap_or(error)),
            }
        }
        let Some(refusal) = refusal else {
            let (found, answered) = gather.end();
            return Ok(Response::BatchGet(found, answered));
        };
        sleep(pause_after(refusal, once, until)?).await;
    }
}

/// Tries again what had no effect and may succeed elsewhere or later, while there is time.
async fn persist<T, Attempt>(
    once: bool,
    until: Instant,
    mut attempt: impl FnMut() -> Attempt,
) -> Result<T>
where
    Attempt: Future<Output = Result<T>>,
{
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => sleep(pause_after(error, once, until)?).await,
        }
    }
}

/// Tries a write until its outcome is known, while there is time: under one id it happens once, however often
/// it is sent. A refusal behind an attempt that may have happened says nothing about that attempt.
async fn persist_write(
    host: &Host,
    id: RequestId,
    request: &Request,
    until: Instant,
    once: bool,
) -> Result<Response> {
    let mut happened = false;
    loop {
        let error = match attempt(host, request, until, once).await {
            Ok(done) => return Ok(done),
            Err(error) if once => return Err(error),
            Err(error) => error,
        };
        happened |= retry::may_have_happened(&error);
        let pause = pause_before(error, until);
        sleep(pause.map_err(|error| retry::final_error(error, id, happened))?).await;
    }
}

fn given_up(request: RequestId, leader: NodeId) -> Error {
    Error::Unknown {
        request,
        reason: format!("{leader} does not lead any more and has not answered"),
    }
}

/// The pause after an attempt, if there is to be another one: none after one that may have had an effect.
fn pause_after(error: Error, once: bool, until: Instant) -> Result<Duration> {
    match once || error.effect() != Effect::None {
        true => Err(error),
        false => pause_before(error, until),
    }
}

/// The pause before the next attempt. When no time is left for another one, the last refusal is the
/// answer: it says more than that the deadline passed. Full queues and clocks are the caller's to wait
/// for.
fn pause_before(error: Error, until: Instant) -> Result<Duration> {
    let pause = match error.advice() {
        Advice::Redirect(_) => ATTEMPT_PAUSE,
        Advice::RetryAfter(pause) => pause.clamp(ATTEMPT_PAUSE, ATTEMPT_PAUSE_MAX),
        Advice::Fix | Advice::Stop => return Err(error),
    };
    let callers = matches!(error, Error::Overloaded { .. } | Error::ClockAhead { .. });
    if callers || Instant::now() + pause >= until {
        return Err(error);
    }
    Ok(pause)
}

impl Service for Handler {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        self.clone().answer(call).boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let found = self.host().and_then(|host| {
            let group = host.registry.receiver(route)?;
            Ok((group, Arc::clone(&host.space)))
        });
        match found {
            Ok((group, space)) => while_there_is_room(space, route, requests, |requests| {
                group.append_stream(requests)
            }),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let found = self.host().and_then(|host| {
            let group = host.registry.receiver(header.route)?;
            let space = Arc::clone(&host.space);
            check_room(&space, Room::Enough)?;
            Ok((group, space))
        });
        async move {
            let (group, space) = found?;
            let chunks = chunks.map(move |chunk| {
                check_room(&space, Room::Short)?;
                chunk
            });
            group.install(header, chunks.boxed()).await
        }
        .boxed()
    }

    fn room(&self) -> Option<Room> {
        self.host().ok().map(|host| host.space.room())
    }
}
