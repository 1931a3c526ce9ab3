//! The library's network over [`Channel`]: one replica's messages to another.

use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use openraft::OptionalSend;
use openraft::errors::NetworkError;
use openraft::errors::RPCError;
use openraft::errors::ReplicationClosed;
use openraft::errors::StreamingError;
use openraft::errors::Unreachable;
use openraft::network::RPCOption;
use openraft::network::RaftNetworkFactory;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::AppendEntriesRequest;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::SnapshotResponse;
use openraft::raft::StreamAppendError;
use openraft::raft::StreamAppendResult;
use openraft::raft::TransferLeaderRequest;
use openraft::raft::TransferLeaderResponse;
use openraft::raft::VoteRequest;
use openraft::raft::VoteResponse;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::background;
use crate::error::Error;
use crate::machine::SnapshotSource;
use crate::raft::config::RaftVote;
use crate::raft::config::Snapshot;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::raft::introductions::Introducer;
use crate::raft::introductions::Introductions;
use crate::raft::pace::Pace;
use crate::raft::state_machine::SnapshotData;
use crate::telemetry::metrics;
use crate::telemetry::metrics::SnapshotWay;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::shard;
use crate::wire::request;
use crate::wire::request::AppendResponse;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Service;

/// Makes the senders of one replica.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) group: GroupId,
    pub(super) from: ReplicaId,
    pub(super) channel: Arc<dyn Channel>,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) introductions: Arc<Introductions>,
    pub(super) pace: Arc<Pace>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Sender;

    async fn new_client(&mut self, target: ReplicaId, node: &NodeId) -> Sender {
        let route = Route {
            group: self.group,
            from: self.from,
            to: target,
        };
        Sender {
            route,
            service: self.channel.node(*node),
            outgoing: Arc::clone(&self.outgoing),
            pace: Arc::clone(&self.pace),
            introducer: Introducer {
                introductions: Arc::clone(&self.introductions),
                service: self.channel.node(*node),
                to: shard::Replica {
                    id: target,
                    node: *node,
                },
            },
            beats: false,
        }
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, node: &NodeId) -> Sender {
        let sender = self.new_client(target, node).await;
        Sender {
            beats: true,
            ..sender
        }
    }
}

/// Sends one replica's messages to another. Which connection a message takes is the channel's matter:
/// votes and heartbeats never wait behind entries or snapshots.
pub(super) struct Sender {
    route: Route,
    service: Arc<dyn Service>,
    outgoing: Arc<Outgoing>,
    pace: Arc<Pace>,
    introducer: Introducer,
    /// Whether it carries heartbeats alone. The library sends them as a stream of one append, which
    /// must not travel with the entries.
    beats: bool,
}

impl Sender {
    async fn call(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let call = Call {
            request,
            deadline: option.soft_ttl(),
            forwarded: false,
            cluster: None,
        };
        match self.service.call(call).await {
            Ok(response) => Ok(response),
            Err(error) => {
                self.introducer.refused(&error).await;
                Err(to_rpc_error(error))
            }
        }
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = request::VoteRequest {
            vote: convert::to_vote(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(convert::to_position),
            leadership_transfer: rpc.leadership_transfer,
            pre_vote,
        };
        match self
            .call(Request::Vote(self.route, request), &option)
            .await?
        {
            Response::Vote(answer) => Ok(VoteResponse {
                vote: convert::to_raft_vote(answer.vote),
                vote_granted: answer.granted || mutant::lives(Mutant::RefusedVoteCounted),
                last_log_id: answer.last.map(convert::to_log_id),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

/// Unreachable makes the library wait before it tries again; of other failures it bears some before it does.
fn to_rpc_error(error: Error) -> RPCError<TypeConfig> {
    match error {
        Error::Timeout { .. } | Error::Unknown { .. } => {
            RPCError::Network(NetworkError::from_string(error))
        }
        other => RPCError::Unreachable(Unreachable::from_string(other)),
    }
}

fn unexpected(response: &Response) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!(
        "answer of another kind: {response:?}"
    )))
}

fn to_stream_result(answer: AppendResponse) -> StreamAppendResult<TypeConfig> {
    match answer {
        AppendResponse::Matched(position) => Ok(position.map(convert::to_log_id)),
        AppendResponse::Conflict(position) => {
            Err(StreamAppendError::Conflict(convert::to_log_id(position)))
        }
        AppendResponse::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(convert::to_raft_vote(vote)))
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Sender {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::Append(self.route, convert::to_append(rpc));
        match self.call(request, &option).await? {
            Response::Append(AppendResponse::Matched(position)) => Ok(
                AppendEntriesResponse::PartialSuccess(position.map(convert::to_log_id)),
            ),
            Response::Append(AppendResponse::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
            Response::Append(AppendResponse::HigherVote(vote)) => Ok(
                AppendEntriesResponse::HigherVote(convert::to_raft_vote(vote)),
            ),
            other => Err(unexpected(&other)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>>
            + OptionalSend
            + Unpin
            + 'static,
    {
        if self.beats {
            let sender: &'s Sender = self;
            let answers = input.then(move |rpc| beat(sender, rpc, option.clone()));
            return async move { Ok(answers.boxed()) }.boxed();
        }
        let (service, route) = (Arc::clone(&self.service), self.route);
        let mut requests = input.map(convert::to_append);
        // After an error the library waits before it makes a request, and not before it opens a stream. One that
        // were opened at once would be refused thousands of times a second, by a node without the replica.
        let answers = async move {
            match requests.next().await {
                Some(first) => service.append(route, stream::iter([first]).chain(requests).boxed()),
                None => stream::empty().boxed(),
            }
        };
        let answers = answers.flatten_stream();
        let introducer: &'s Introducer = &self.introducer;
        let answers = answers.then(async move |answer| match answer {
            Ok(answer) => Ok(to_stream_result(answer)),
            Err(error) => {
                introducer.refused(&error).await;
                Err(to_rpc_error(error))
            }
        });
        async move { Ok(answers.boxed()) }.boxed()
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, false, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Source(source) = snapshot.snapshot else {
            return Err(ReplicationClosed::new("a snapshot without data is never sent").into());
        };
        let applied = convert::to_applied(&snapshot.meta);
        let header = request::SnapshotHeader {
            route: self.route,
            vote: convert::to_vote(&vote),
            position: applied.position,
            membership_position: applied.membership_position,
            membership: applied.membership,
        };
        let _held = self.outgoing.hold(header.position);
        let sent = async {
            let _turn = self.pace.turn().await;
            let (taken, last) = watch::channel(Instant::now());
            let sent = self
                .service
                .snapshot(header, chunks(source, &self.pace, taken));
            let sent = tokio::time::timeout(option.hard_ttl(), sent);
            tokio::select! {
                sent = sent => sent.unwrap_or_else(|_| Err(timed_out(option.hard_ttl()))),
                () = stalled(last) => Err(timed_out(STALL_MAX)),
            }
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = sent => answer,
        };
        match answer {
            Ok(vote) => {
                metrics::snapshot_done(SnapshotWay::Sent);
                Ok(SnapshotResponse::new(convert::to_raft_vote(vote)))
            }
            Err(error) => {
                self.introducer.refused(&error).await;
                Err(to_rpc_error(error).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let take = request::TakeLead {
            vote: convert::to_vote(req.from_leader()),
            to: *req.to_node_id(),
            last: req.last_log_id().map(convert::to_position),
            only_asked: false,
        };
        match self
            .call(Request::TakeLead(self.route, take), &option)
            .await?
        {
            Response::TakeLead(true) => Ok(Ok(())),
            // The library asks again only if the call itself failed.
            Response::TakeLead(false) => {
                Err(RPCError::Network(NetworkError::from_string("refused")))
            }
            other => Err(unexpected(&other)),
        }
    }
}

async fn beat(
    sender: &Sender,
    rpc: AppendEntriesRequest<TypeConfig>,
    option: RPCOption,
) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    let mut append = convert::to_append(rpc);
    if mutant::lives(Mutant::BeatsWithoutCommit) {
        append.committed = None;
    }
    let request = Request::Append(sender.route, append);
    match sender.call(request, &option).await? {
        Response::Append(answer) => Ok(to_stream_result(answer)),
        other => Err(unexpected(&other)),
    }
}

/// How long the log behind a snapshot is kept after it was sent: the receiver goes on from there.
const OUTGOING_LINGER: Duration = Duration::from_secs(30);
/// For so long a receiver may take nothing of a snapshot, or install what it has taken.
const STALL_MAX: Duration = Duration::from_secs(120);

/// Positions of the snapshots that are being sent or were sent just now. The log behind them is not purged,
/// or the receiver would need another snapshot as soon as it has this one, for as long as writes go on.
#[derive(Default)]
pub(super) struct Outgoing {
    held: Mutex<Vec<Held>>,
}

struct Held {
    index: u64,
    /// `None` while it is being sent.
    until: Option<Instant>,
}

impl Outgoing {
    /// Holds the log behind `position` until the guard is dropped, and a while longer.
    fn hold(self: &Arc<Self>, position: Option<Position>) -> HeldOutgoing {
        let index = position.map_or(0, |position| position.index);
        self.lock().push(Held { index, until: None });
        HeldOutgoing {
            outgoing: Arc::clone(self),
            index,
        }
    }

    /// The last entry that may be purged; `None` when nothing is held.
    pub(super) fn purgeable(&self) -> Option<u64> {
        let mut held = self.lock();
        held.retain(|held| held.until.is_none_or(|until| Instant::now() < until));
        held.iter().map(|held| held.index).min()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().expect("nothing panics under this lock")
    }
}

struct HeldOutgoing {
    outgoing: Arc<Outgoing>,
    index: u64,
}

impl Drop for HeldOutgoing {
    fn drop(&mut self) {
        let mut held = self.outgoing.lock();
        let sent = |held: &&mut Held| held.index == self.index && held.until.is_none();
        if let Some(held) = held.iter_mut().find(sent) {
            held.until = Some(Instant::now() + OUTGOING_LINGER);
        }
    }
}

/// Nobody takes more of a snapshot, or installs it: it must not keep its turn from others.
fn timed_out(after: Duration) -> Error {
    Error::unavailable(
        "the receiver of a snapshot",
        format!("it was not done within {} s", after.as_secs()),
    )
}

/// Returns when nothing was taken for too long.
async fn stalled(last: watch::Receiver<Instant>) {
    loop {
        let taken = *last.borrow();
        sleep_until(taken + STALL_MAX).await;
        if *last.borrow() == taken {
            return;
        }
    }
}

/// Reads a snapshot's chunks, each on a thread that may block, as fast as they are taken, clients leave time for it, and
/// the node may send; notes when one was taken last.
fn chunks(
    source: Box<dyn SnapshotSource>,
    pace: &Arc<Pace>,
    taken: watch::Sender<Instant>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let pace = Arc::clone(pace);
    stream::unfold(Some((source, pace, taken)), |sending| async move {
        let (mut source, pace, taken) = sending?;
        let (next, source) = background(move || (source.next(), source)).await;
        taken.send_replace(Instant::now());
        match next {
            Ok(Some(chunk)) => {
                pace.pass(chunk.len()).await;
                Some((Ok(chunk), Some((source, pace, taken))))
            }
            Ok(None) => None,
            Err(error) => Some((
                Err(Error::Internal(format!("read a snapshot: {error}"))),
                None,
            )),
        }
    })
    .boxed()
}
