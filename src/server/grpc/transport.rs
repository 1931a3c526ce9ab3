//! `Transport`: what other nodes ask.
//!
//! The frames of one connection are taken apart into streams, one for each pair of replicas. Each
//! stream has its own task and room for a whole window of requests, so that taking frames never waits
//! for any of them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::async_trait;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::Entered;
use crate::server::grpc::door::unexpected;
use crate::types::ClusterId;
use crate::wire::convert::group_of;
use crate::wire::convert::merges;
use crate::wire::convert::placement;
use crate::wire::convert::transport as convert;
use crate::wire::outbox::Outbox;
use crate::wire::outbox::Taker;
use crate::wire::proto::v1;
use crate::wire::proto::v1::append_frame::Beat;
use crate::wire::proto::v1::append_frame::Body;
use crate::wire::proto::v1::append_frame::End;
use crate::wire::proto::v1::transport_server::Transport;
use crate::wire::request::APPENDS_IN_FLIGHT_MAX;
use crate::wire::request::AppendRequest;
use crate::wire::request::Call;
use crate::wire::request::Request as NodeRequest;
use crate::wire::request::Response as NodeResponse;
use crate::wire::request::Route;
use crate::wire::request::Service;
use crate::wire::status::to_detail;
use crate::wire::status::to_status;

/// How long a beat or a question may take here: whoever sent it does not wait longer.
const BEAT_MAX: Duration = Duration::from_secs(1);

/// Answers `Transport`.
pub struct TransportDoor {
    door: Arc<Door>,
    closing: CancellationToken,
}

impl TransportDoor {
    /// Behind this door, until it closes.
    pub fn new(door: Arc<Door>, closing: CancellationToken) -> TransportDoor {
        TransportDoor { door, closing }
    }

    async fn ask(&self, entered: Entered, request: NodeRequest) -> Result<NodeResponse, Status> {
        let response = self.door.ask(entered, request, None::<ClusterId>).await;
        response.map_err(refused)
    }
}

#[async_trait]
impl Transport for TransportDoor {
    type AppendStream = Answers;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Answers>, Status> {
        self.door.enter(request.metadata())?;
        let outbox = Arc::new(Outbox::default());
        let service = self.door.service.clone();
        let carrier = Carrier {
            service: service.clone(),
            outbox: outbox.clone(),
            streams: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let run = carrier.run(request.into_inner(), self.closing.clone());
        Ok(Response::new(Answers {
            frames: Taker::of(outbox),
            service,
            _carrier: AbortOnDropHandle::new(tokio::spawn(run)),
        }))
    }

    async fn vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::VoteResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (route, vote) = convert::vote_request_of(request.into_inner()).map_err(refused)?;
        match self.ask(entered, NodeRequest::Vote(route, vote)).await? {
            NodeResponse::Vote(voted) => Ok(Response::new(convert::voted_out(voted))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn take_lead(
        &self,
        request: Request<v1::TakeLeadRequest>,
    ) -> Result<Response<v1::TakeLeadResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (route, take) = convert::take_lead_of(request.into_inner()).map_err(refused)?;
        match self
            .ask(entered, NodeRequest::TakeLead(route, take))
            .await?
        {
            NodeResponse::TakeLead(accepted) => {
                Ok(Response::new(v1::TakeLeadResponse { accepted }))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn read_position(
        &self,
        request: Request<v1::ReadPositionRequest>,
    ) -> Result<Response<v1::ReadPositionResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let group = group_of(request.get_ref().group);
        match self.ask(entered, NodeRequest::ReadPosition(group)).await? {
            NodeResponse::ReadPosition(position) => {
                let position = Some(convert::position_out(position));
                Ok(Response::new(v1::ReadPositionResponse { position }))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotRequest>>,
    ) -> Result<Response<v1::SnapshotResponse>, Status> {
        use v1::snapshot_request::Part;
        self.door.enter(request.metadata())?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(refused(Error::invalid(
                "part",
                "the first one is not a header",
            )));
        };
        let header = convert::header_of(header).map_err(refused)?;
        let vote = self.door.service.snapshot(header, chunks_of(parts)).await;
        let vote = Some(convert::vote_out(vote.map_err(refused)?));
        Ok(Response::new(v1::SnapshotResponse { vote }))
    }

    async fn form(
        &self,
        request: Request<v1::FormRequest>,
    ) -> Result<Response<v1::FormResponse>, Status> {
        let entered = self.door.enter_unknown(request.metadata());
        let form = convert::form_of(request.into_inner()).map_err(refused)?;
        match self.ask(entered, NodeRequest::Form(form)).await? {
            NodeResponse::Form(response) => Ok(Response::new(convert::formed_out(response))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let entered = self.door.enter_unknown(request.metadata());
        let join = placement::join_of(request.into_inner()).map_err(refused)?;
        match self.ask(entered, NodeRequest::Join(join)).await? {
            NodeResponse::Join(joined) => Ok(Response::new(placement::joined_out(joined))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn change_placement(
        &self,
        request: Request<v1::ChangePlacementRequest>,
    ) -> Result<Response<v1::ChangePlacementResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let command = placement::command_of(request.into_inner()).map_err(refused)?;
        match self.ask(entered, NodeRequest::Placement(command)).await? {
            NodeResponse::Placement(answer) => Ok(Response::new(placement::answer_out(answer))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let report = placement::report_of(request.into_inner()).map_err(refused)?;
        match self
            .ask(entered, NodeRequest::Report(Box::new(report)))
            .await?
        {
            NodeResponse::Report(orders) => Ok(Response::new(placement::orders_out(orders))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn create_replica(
        &self,
        request: Request<v1::CreateReplicaRequest>,
    ) -> Result<Response<v1::CreateReplicaResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let create = convert::create_replica_of(request.into_inner()).map_err(refused)?;
        match self
            .ask(entered, NodeRequest::CreateReplica(create))
            .await?
        {
            NodeResponse::CreateReplica(creation) => {
                Ok(Response::new(convert::created_out(creation)))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn membership(
        &self,
        request: Request<v1::MembershipRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let name = convert::membership_of(request.into_inner());
        match self.ask(entered, NodeRequest::Membership(name)).await? {
            NodeResponse::Membership(standing, shard) => {
                Ok(Response::new(convert::standing_out(standing, shard)))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn check_replica(
        &self,
        request: Request<v1::CheckReplicaRequest>,
    ) -> Result<Response<v1::CheckReplicaResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (name, check) = convert::check_of(request.into_inner()).map_err(refused)?;
        let request = NodeRequest::CheckReplica(name, check);
        match self.ask(entered, request).await? {
            NodeResponse::CheckReplica(checked) => Ok(Response::new(convert::checked_out(checked))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn merge(
        &self,
        request: Request<v1::MergeRequest>,
    ) -> Result<Response<v1::MergeResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let merge = merges::request_of(request.into_inner()).map_err(refused)?;
        match self.ask(entered, NodeRequest::Merge(merge)).await? {
            NodeResponse::Merge(reply) => Ok(Response::new(merges::reply_out(reply))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn replica_left(
        &self,
        request: Request<v1::ReplicaLeftRequest>,
    ) -> Result<Response<v1::ReplicaLeftResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let name = convert::left_of(request.into_inner());
        match self.ask(entered, NodeRequest::ReplicaLeft(name)).await? {
            NodeResponse::ReplicaLeft => Ok(Response::new(v1::ReplicaLeftResponse {})),
            other => Err(refused(unexpected(&other))),
        }
    }
}

/// The chunks between header and end. Without the end the last item is an error.
fn chunks_of(parts: Streaming<v1::SnapshotRequest>) -> BoxStream<'static, Result<Bytes>> {
    use v1::snapshot_request::Part;
    let chunks = stream::unfold(Some(parts), async |parts| {
        let mut parts = parts?;
        let cut_off =
            |reason: String| Some((Err(Error::unavailable("the snapshot", reason)), None));
        match parts.message().await {
            Ok(Some(message)) => match message.part {
                Some(Part::Chunk(chunk)) => Some((Ok(chunk), Some(parts))),
                Some(Part::End(_)) => None,
                Some(Part::Header(_)) | None => cut_off("its parts are out of order".to_owned()),
            },
            Ok(None) => cut_off("it ended before its end".to_owned()),
            Err(status) => cut_off(format!("it was cut off: {}", status.message())),
        }
    });
    chunks.boxed()
}

/// Frames that go back to the sender. Dropping them ends everything that belongs to the connection.
pub struct Answers {
    frames: Taker,
    service: Arc<dyn Service>,
    _carrier: AbortOnDropHandle<()>,
}

impl Stream for Answers {
    type Item = Result<v1::AppendResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frames = self.frames.poll_next_unpin(context);
        frames.map(|frames| {
            let room = convert::room_out(self.service.room()).into();
            frames.map(|frames| Ok(v1::AppendResponse { frames, room }))
        })
    }
}

/// The receiving end of one stream of frames.
struct Carrier {
    service: Arc<dyn Service>,
    outbox: Arc<Outbox>,
    streams: HashMap<u64, Inlet>,
    /// One for each stream, which gives its number when it ends.
    tasks: JoinSet<u64>,
}

/// Where the requests of one stream go.
struct Inlet {
    /// Has room for a whole window; `None` after the last request.
    requests: Option<mpsc::Sender<AppendRequest>>,
    task: AbortHandle,
}

impl Carrier {
    async fn run(mut self, mut frames: Streaming<v1::AppendRequest>, closing: CancellationToken) {
        loop {
            // All of these may be dropped half-way: none has taken anything then.
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                Some(ended) = self.tasks.join_next() => if self.ended(ended).is_err() { break },
                message = frames.message() => match message {
                    Ok(Some(message)) => message.frames.into_iter().for_each(|frame| self.take(frame)),
                    Ok(None) | Err(_) => break,
                },
            }
        }
        self.outbox.close();
    }

    /// A stream's task that panicked takes the connection with it: the sender must not wait for it.
    fn ended(&mut self, ended: Result<u64, JoinError>) -> Result<(), JoinError> {
        match ended {
            Ok(stream) => {
                self.streams.remove(&stream);
                Ok(())
            }
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, frame: v1::AppendFrame) {
        let stream = frame.stream;
        let taken = match frame.body {
            Some(Body::Open(route)) => self.open(stream, route),
            Some(Body::Request(entries)) => self.request(stream, entries),
            Some(Body::Beat(beat)) => self.beat(stream, beat),
            Some(Body::Question(route)) => self.question(stream, route),
            Some(Body::End(_)) => {
                if let Some(inlet) = self.streams.get_mut(&stream) {
                    inlet.requests = None;
                }
                Ok(())
            }
            Some(Body::Cancel(_)) => {
                self.abort(stream);
                Ok(())
            }
            Some(Body::Response(_) | Body::Term(_) | Body::Failed(_)) | None => Err(
                Error::invalid("frame", "it is none for the receiving end of a stream"),
            ),
        };
        if let Err(error) = taken {
            self.abort(stream);
            push(&self.outbox, stream, Body::Failed(encoded(&error)));
        }
    }

    fn open(&mut self, stream: u64, route: v1::Route) -> Result<()> {
        let route = convert::route_of(Some(route))?;
        if self.streams.contains_key(&stream) {
            return Err(Error::invalid("stream", "it is open already"));
        }
        let (requests, waiting) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
        let waiting = ReceiverStream::new(waiting).boxed();
        let answering = answer(
            self.service.clone(),
            self.outbox.clone(),
            stream,
            route,
            waiting,
        );
        let task = self.tasks.spawn(answering);
        let requests = Some(requests);
        self.streams.insert(stream, Inlet { requests, task });
        Ok(())
    }

    fn beat(&mut self, stream: u64, beat: Beat) -> Result<()> {
        let route = convert::route_of(beat.route)?;
        let request = convert::append_of(beat.entries.unwrap_or_default())?;
        self.answer_one(stream, NodeRequest::Append(route, request));
        Ok(())
    }

    fn question(&mut self, stream: u64, route: v1::Route) -> Result<()> {
        let route = convert::route_of(Some(route))?;
        self.answer_one(stream, NodeRequest::Term(route));
        Ok(())
    }

    /// Answers what has one answer, and waits for nothing else.
    fn answer_one(&mut self, stream: u64, request: NodeRequest) {
        let call = Call {
            request,
            deadline: BEAT_MAX,
            forwarded: false,
            cluster: None,
        };
        let (answering, outbox) = (self.service.call(call), self.outbox.clone());
        self.tasks.spawn(async move {
            let body = match answering.await {
                Ok(NodeResponse::Append(answer)) => Body::Response(convert::appended_out(answer)),
                Ok(NodeResponse::Term(term)) => Body::Term(term),
                Ok(other) => Body::Failed(encoded(&unexpected(&other))),
                Err(error) => Body::Failed(encoded(&error)),
            };
            push(&outbox, stream, body);
            stream
        });
    }

    fn request(&mut self, stream: u64, entries: v1::Entries) -> Result<()> {
        // A stream that has failed here is still sent to until its sender knows.
        let Some(inlet) = self.streams.get(&stream) else {
            return Ok(());
        };
        let Some(requests) = &inlet.requests else {
            return Err(Error::invalid("frame", "a request after the last one"));
        };
        let request = convert::append_of(entries)?;
        match requests.try_send(request) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::invalid(
                "frame",
                "more requests than the window allows",
            )),
        }
    }

    fn abort(&mut self, stream: u64) {
        if let Some(inlet) = self.streams.remove(&stream) {
            inlet.task.abort();
        }
    }
}

/// Answers one stream until it ends.
async fn answer(
    service: Arc<dyn Service>,
    outbox: Arc<Outbox>,
    stream: u64,
    route: Route,
    requests: BoxStream<'static, AppendRequest>,
) -> u64 {
    let mut answers = service.append(route, requests);
    loop {
        let body = match answers.next().await {
            Some(Ok(answer)) => Body::Response(convert::appended_out(answer)),
            Some(Err(error)) => Body::Failed(encoded(&error)),
            None => Body::End(End {}),
        };
        let over = !matches!(body, Body::Response(_));
        push(&outbox, stream, body);
        if over {
            return stream;
        }
    }
}

fn push(outbox: &Outbox, stream: u64, body: Body) {
    let body = Some(body);
    let sent = outbox.push(v1::AppendFrame { stream, body });
    assert!(sent, "answers are small");
}

fn encoded(error: &Error) -> Bytes {
    to_detail(error, None).encode_to_vec().into()
}

fn refused(error: Error) -> Status {
    to_status(&error, None)
}
