//! One match over everything that a node can be asked.
//!
//! Any node takes any request. A read is answered by the replica here, after a round through its leader
//! unless it is asked for as a follower's; a write goes to the leader, sent on at most once. What had no
//! effect is tried again here while the caller's deadline lasts, so that an election is a delay and not
//! an error. A write whose outcome is open is never tried again under another id.

use std::future::Future;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::error::Advice;
use crate::error::Effect;
use crate::error::Error;
use crate::error::Result;
use crate::node::change_step::Change;
use crate::node::formation_driver::FormationHandle;
use crate::node::replica::Replica;
use crate::server::host::Host;
use crate::telemetry::metrics;
use crate::telemetry::metrics::Outcome;
use crate::telemetry::metrics::RequestKind;
use crate::types::ClusterId;
use crate::types::Key;
use crate::types::ShardId;
use crate::types::log::Vote;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Call;
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
        let write = match &call.request {
            Request::Write(write) => Some(write.id),
            _ => None,
        };
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
        Request::Write(write) => match &write.kind {
            WriteKind::Keys { .. } => RequestKind::Write,
            WriteKind::Range { .. } => RequestKind::DeleteRange,
        },
        Request::Status(_)
        | Request::TransferLeader(_)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Placement(_)
        | Request::Report(_)
        | Request::Locate(_)
        | Request::Routes(_)
        | Request::CreateReplica(_)
        | Request::Membership(_)
        | Request::ReplicaLeft(_)
        | Request::AddReplica(_)
        | Request::RemoveReplica(_) => RequestKind::Control,
        Request::ReadPosition(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::TakeLead(..) => RequestKind::Raft,
    }
}

async fn serve(host: &Host, call: Call) -> Result<Response> {
    let once = call.forwarded;
    let until = Instant::now() + call.deadline;
    let registry = &host.registry;
    if !once && first_key(&call.request).is_some_and(|key| registry.shard_of(key).is_err()) {
        return persist(once, until, async || {
            host.ask_home(call.request.clone(), until).await
        })
        .await;
    }
    match call.request {
        Request::Get(get) => {
            let (found, answered) = persist(once, until, async || {
                registry.shard_of(&get.key)?.get(get.clone()).await
            })
            .await?;
            Ok(Response::Get(found, answered))
        }
        Request::BatchGet(get) => {
            let replica = host.shard_of_all(get.keys.iter())?;
            let (found, answered) =
                persist(once, until, async || replica.batch_get(get.clone()).await).await?;
            Ok(Response::BatchGet(found, answered))
        }
        Request::Scan(scan) => {
            let replica = registry.shard_of(&scan.range.start)?;
            let page = persist(once, until, async || replica.scan(scan.clone()).await).await?;
            Ok(Response::Scan(page))
        }
        Request::Write(write) => write_through(host, write, until, once).await,
        Request::Status(query) => Ok(Response::Status(Box::new(host.status(query).await?))),
        Request::TransferLeader(transfer) => {
            let group = registry.group(transfer.group)?;
            match group.transfer_leader(transfer.to).await {
                Err(Error::NotLeader {
                    leader: Some(leader),
                    ..
                }) if !once => {
                    host.forward(leader, Request::TransferLeader(transfer), call.deadline)
                        .await
                }
                outcome => outcome.map(|()| Response::TransferLeader),
            }
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
            .report_here(report)
            .await
            .map(Response::Report),
        Request::Join(_) | Request::Locate(_) | Request::Routes(_) => {
            Err(Error::unavailable("this node", "routes are not served yet"))
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
        let answer = match host.changes.change(shard, change).await {
            Err(Error::NotLeader {
                leader: Some(leader),
                ..
            }) if !once => host.forward(leader, request.clone(), left()).await,
            Err(Error::NotFound { .. }) if !once => host.ask_home(request.clone(), until).await,
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

/// The key by which the shard of a request is found; `None` where it is not for a shard.
fn first_key(request: &Request) -> Option<&Key> {
    match request {
        Request::Get(get) => Some(&get.key),
        Request::BatchGet(get) => get.keys.first(),
        Request::Scan(scan) => Some(&scan.range.start),
        Request::Write(write) => Some(write.first_key()),
        Request::Status(_)
        | Request::TransferLeader(_)
        | Request::ReadPosition(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::TakeLead(..)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Placement(_)
        | Request::Report(_)
        | Request::Locate(_)
        | Request::Routes(_)
        | Request::CreateReplica(_)
        | Request::Membership(_)
        | Request::ReplicaLeft(_)
        | Request::AddReplica(_)
        | Request::RemoveReplica(_) => None,
    }
}

/// Tries again what had no effect and may succeed elsewhere or later. When no time is left for another
/// attempt, the last refusal is the answer: it says more than that the deadline passed. Full queues and
/// clocks are the caller's to wait for.
async fn persist<T, Attempt>(
    once: bool,
    until: Instant,
    mut attempt: impl FnMut() -> Attempt,
) -> Result<T>
where
    Attempt: Future<Output = Result<T>>,
{
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let pause = match error.advice() {
            _ if once || error.effect() != Effect::None => return Err(error),
            Advice::Redirect(_) => ATTEMPT_PAUSE,
            Advice::RetryAfter(pause) => pause.clamp(ATTEMPT_PAUSE, ATTEMPT_PAUSE_MAX),
            Advice::Fix | Advice::Stop => return Err(error),
        };
        let callers = matches!(error, Error::Overloaded { .. } | Error::ClockAhead { .. });
        if callers || Instant::now() + pause >= until {
            return Err(error);
        }
        sleep(pause).await;
    }
}

async fn write_through(host: &Host, write: Write, until: Instant, once: bool) -> Result<Response> {
    let replica = host.shard_of_write(&write)?;
    host.check_space(&write)?;
    persist(once, until, async || {
        write_once(host, &replica, write.clone(), until, once).await
    })
    .await
}

async fn write_once(
    host: &Host,
    replica: &Replica,
    write: Write,
    until: Instant,
    once: bool,
) -> Result<Response> {
    match replica.write(write.clone()).await {
        Err(Error::NotLeader {
            leader: Some(leader),
            ..
        }) if !once => {
            let left = until.saturating_duration_since(Instant::now());
            host.forward(leader, Request::Write(write), left).await
        }
        outcome => outcome.map(|(outcome, answered)| Response::Write(outcome, answered)),
    }
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
        match self.host().and_then(|host| host.registry.receiver(route)) {
            Ok(group) => group.append_stream(requests),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let group = self
            .host()
            .and_then(|host| host.registry.receiver(header.route));
        async move { group?.install(header, chunks).await }.boxed()
    }
}
