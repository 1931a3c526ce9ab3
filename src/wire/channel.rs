//! The network over gRPC: finds the connection to a node and sends it what [`Request`] says.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::Stream;
use futures::StreamExt;
use futures::future;
use futures::future::BoxFuture;
use futures::future::Either;
use futures::stream;
use futures::stream::BoxStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tonic::Status;
use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;
use tonic::transport;

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::NodeId;
use crate::types::log::Vote;
use crate::types::node::Member;
use crate::types::node::Room;
use crate::wire::appends;
use crate::wire::appends::Carrier;
use crate::wire::appends::Carriers;
use crate::wire::convert::admin;
use crate::wire::convert::cluster;
use crate::wire::convert::group_number;
use crate::wire::convert::kv;
use crate::wire::convert::merges;
use crate::wire::convert::placement;
use crate::wire::convert::transport as convert;
use crate::wire::identity;
use crate::wire::identity::FORWARDED_HEADER;
use crate::wire::identity::IdentityCell;
use crate::wire::lane::Lane;
use crate::wire::lane::MESSAGE_BYTES_MAX;
use crate::wire::lane::Watch;
use crate::wire::proto::v1;
use crate::wire::proto::v1::administration_client::AdministrationClient;
use crate::wire::proto::v1::cluster_client::ClusterClient;
use crate::wire::proto::v1::kv_client::KvClient;
use crate::wire::proto::v1::placement_client::PlacementClient;
use crate::wire::proto::v1::transport_client::TransportClient;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::KeyRequest;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Service;
use crate::wire::request::SnapshotHeader;
use crate::wire::request::Within;
use crate::wire::status::Asked;

/// Addresses whose connections are kept, beside those of nodes. Full: those that nobody holds are
/// closed.
const ADDRESSES_MAX: usize = 64;

/// Longer than anyone waits; keeps the sum with the clock in range.
const DEADLINE_MAX: Duration = Duration::from_secs(3_600);

/// The door to the network, for nodes and for clients. Clones share the connections.
#[derive(Clone)]
pub struct GrpcChannel {
    shared: Arc<Shared>,
}

struct Shared {
    speaker: Speaker,
    nodes: RwLock<HashMap<NodeId, Arc<Peer>>>,
    addresses: Mutex<HashMap<String, Arc<Peer>>>,
}

/// Who uses the channel.
enum Speaker {
    /// A node: it speaks to node ports and says who it is.
    Node(IdentityCell),
    /// A client: it speaks to client ports.
    Client,
}

impl GrpcChannel {
    /// For a node. Until its identity is set it reaches nobody but by [`Channel::address`].
    pub fn of_node(identity: IdentityCell) -> GrpcChannel {
        GrpcChannel::new(Speaker::Node(identity))
    }

    /// For a client: nodes are spoken to at their client addresses.
    pub fn of_client() -> GrpcChannel {
        GrpcChannel::new(Speaker::Client)
    }

    fn new(speaker: Speaker) -> GrpcChannel {
        let shared = Shared {
            speaker,
            nodes: RwLock::default(),
            addresses: Mutex::default(),
        };
        GrpcChannel {
            shared: Arc::new(shared),
        }
    }
}

impl Channel for GrpcChannel {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        let shared = self.shared.clone();
        Arc::new(Remote(Target::Node { shared, id }))
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        let mut addresses = self
            .shared
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = addresses.get(address) {
            return Arc::new(Remote(Target::Address(peer.clone())));
        }
        if addresses.len() >= ADDRESSES_MAX {
            addresses.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        let what = address.to_owned();
        let peer = Arc::new(Peer::new(address, what, None, &self.shared.speaker));
        addresses.insert(address.to_owned(), peer.clone());
        Arc::new(Remote(Target::Address(peer)))
    }

    fn learn(&self, member: Member) {
        let mut nodes = self
            .shared
            .nodes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let known = nodes.get(&member.id).and_then(|peer| peer.member.as_ref());
        if known == Some(&member) {
            return;
        }
        let address = match self.shared.speaker {
            Speaker::Node(_) => &member.node_address,
            Speaker::Client => &member.client_address,
        };
        let what = format!("{} at {address}", member.id);
        let peer = Peer::new(address, what, Some(member.clone()), &self.shared.speaker);
        nodes.insert(member.id, Arc::new(peer));
    }

    fn room(&self, node: NodeId) -> Option<Room> {
        let nodes = &self.shared.nodes;
        let nodes = nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node)?.beats.room()
    }
}

/// A node or address with its connections. One kind of traffic never waits behind another.
struct Peer {
    what: Arc<str>,
    member: Option<Member>,
    /// Log entries, and calls for clients.
    bulk: Arc<Lane>,
    /// Votes, heartbeats and what else must be quick.
    beat: Arc<Lane>,
    /// Snapshots.
    snapshot: Arc<Lane>,
    carriers: Carriers,
    /// As `carriers`, of heartbeats.
    beats: Carriers,
    headers: OnceLock<MetadataMap>,
}

impl Peer {
    fn new(address: &str, what: String, member: Option<Member>, speaker: &Speaker) -> Peer {
        let lane = |watch| Arc::new(Lane::new(address, &what, watch));
        let (watch, quiet) = match speaker {
            Speaker::Node(_) => (Watch::NODE, Watch::QUIET),
            Speaker::Client => (Watch::CLIENT, Watch::CLIENT),
        };
        Peer {
            bulk: lane(watch),
            beat: lane(watch),
            snapshot: lane(quiet),
            what: what.as_str().into(),
            member,
            carriers: Carriers::default(),
            beats: Carriers::default(),
            headers: OnceLock::new(),
        }
    }
}

/// Whom to send to; looked up for each call, since nodes move.
#[derive(Clone)]
enum Target {
    Node { shared: Arc<Shared>, id: NodeId },
    Address(Arc<Peer>),
}

impl Target {
    /// The peer, and the headers with which it is spoken to.
    fn find(&self) -> Result<(Arc<Peer>, MetadataMap)> {
        let (shared, id) = match self {
            Target::Address(peer) => return Ok((peer.clone(), MetadataMap::new())),
            Target::Node { shared, id } => (shared, id),
        };
        let nodes = shared.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let peer = nodes.get(id).cloned();
        drop(nodes);
        let peer = peer.ok_or_else(|| Error::unavailable(id, "its address is not known yet"))?;
        let Speaker::Node(identity) = &shared.speaker else {
            return Ok((peer, MetadataMap::new()));
        };
        if let Some(headers) = peer.headers.get() {
            let headers = headers.clone();
            return Ok((peer, headers));
        }
        let (Some(me), Some(member)) = (identity.get(), &peer.member) else {
            return Err(Error::unavailable(
                id,
                "this node is still forming its cluster",
            ));
        };
        let headers = peer
            .headers
            .get_or_init(|| identity::headers(&me, member))
            .clone();
        Ok((peer, headers))
    }
}

/// A node elsewhere.
struct Remote(Target);

impl Service for Remote {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let found = self.0.find();
        async move {
            let (peer, headers) = found?;
            match call.request {
                Request::Append(route, append) => {
                    let beat = async |carrier: &Carrier| carrier.beat(route, append).await;
                    let answer = framed(&peer, headers, beat, call.deadline).await;
                    answer.map(Response::Append)
                }
                Request::Term(route) => {
                    let question = async |carrier: &Carrier| carrier.term(route).await;
                    let term = framed(&peer, headers, question, call.deadline).await;
                    term.map(Response::Term)
                }
                request => send(&peer, headers, Call { request, ..call }).await,
            }
        }
        .boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let found = self.0.find();
        let opening = async move {
            let (peer, headers) = found?;
            peer.carriers.carrier(&peer.bulk, headers, &peer.what).await
        };
        appends::appends(opening, route, requests)
    }

    fn snapshot(
        &self,
        snapshot: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let found = self.0.find();
        async move {
            let (peer, headers) = found?;
            send_snapshot(&peer, headers, snapshot, chunks).await
        }
        .boxed()
    }
}

async fn send(peer: &Peer, headers: MetadataMap, call: Call) -> Result<Response> {
    let deadline = Instant::now() + call.deadline.min(DEADLINE_MAX);
    let asked = Asked {
        what: &peer.what,
        write: call.request.write_id(),
        deadline: call.deadline,
    };
    let lane = lane_of(peer, &call.request);
    let connection = timeout_at(deadline, lane.connection()).await;
    let connection = connection
        .map_err(|_| Error::unavailable(&peer.what, "no connection was made in time"))??;
    let outgoing = Outgoing {
        channel: connection.channel.clone(),
        headers,
        forwarded: call.forwarded,
        cluster: call.cluster,
        deadline,
    };
    // From here on the receiver may have the request.
    match timeout_at(deadline, outgoing.ask(call.request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(Failure::Status(status))) => {
            lane.check(&connection, &status);
            Err(asked.failed(&status))
        }
        Ok(Err(Failure::Answer(error))) => Err(unreadable(&asked, &error)),
        Err(_elapsed) => Err(asked.timed_out()),
    }
}

/// Heartbeats of all groups, and questions beside them, share one stream of frames, so that idle groups cost
/// a frame and not a call, and giving up what is slow disturbs nothing else.
async fn framed<T>(
    peer: &Peer,
    headers: MetadataMap,
    ask: impl AsyncFnOnce(&Carrier) -> Result<T>,
    within: Duration,
) -> Result<T> {
    let answered = async {
        let carrier = peer.beats.carrier(&peer.beat, headers, &peer.what).await?;
        ask(&carrier).await
    };
    let answer = timeout_at(Instant::now() + within.min(DEADLINE_MAX), answered).await;
    answer.unwrap_or_else(|_| {
        Err(Error::Timeout {
            what: format!("a heartbeat or question to {}", peer.what),
            after: within,
        })
    })
}

/// A write's answer that makes no sense leaves its outcome unknown.
fn unreadable(asked: &Asked<'_>, error: &Error) -> Error {
    let reason = format!("its answer makes no sense: {error}");
    match asked.write {
        Some(request) => Error::Unknown { request, reason },
        None => Error::Internal(format!("{}: {reason}", asked.what)),
    }
}

fn lane_of<'a>(peer: &'a Peer, request: &Request) -> &'a Lane {
    match request {
        Request::Get(_)
        | Request::BatchGet(_)
        | Request::Scan(_)
        | Request::Write(_)
        | Request::Status(_)
        | Request::TransferLeader(_)
        | Request::SplitShard(_)
        | Request::Report(_)
        | Request::Overview(_)
        | Request::Explain(_)
        | Request::Arrange(_)
        | Request::Within(_)
        | Request::Routes(_)
        | Request::AddReplica(_)
        | Request::RemoveReplica(_)
        | Request::CheckReplica(..) => &peer.bulk,
        Request::ReadPosition(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::Term(_)
        | Request::TakeLead(..)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Placement(_)
        | Request::ListKeyspaces
        | Request::Locate(_)
        | Request::CreateReplica(_)
        | Request::Membership(_)
        | Request::ReplicaLeft(_)
        | Request::Merge(_) => &peer.beat,
    }
}

/// Why a call that was sent has no answer.
enum Failure {
    /// It came back with this.
    Status(Status),
    /// The answer breaks the protocol.
    Answer(Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(status)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Answer(error)
    }
}

/// One call on a connection that was made.
struct Outgoing {
    channel: transport::Channel,
    headers: MetadataMap,
    forwarded: bool,
    cluster: Option<ClusterId>,
    deadline: Instant,
}

impl Outgoing {
    async fn ask(self, request: Request) -> Result<Response, Failure> {
        match request {
            Request::Get(get) => {
                let request = kv::get_out(get, self.cluster);
                self.get(request).await
            }
            Request::BatchGet(batch) => {
                let request = kv::batch_get_out(batch, self.cluster);
                self.batch_get(request).await
            }
            Request::Scan(scan) => {
                let request = kv::scan_out(scan, self.cluster);
                Ok(Response::Scan(self.scan(request).await?))
            }
            Request::Within(within) => self.within(within).await,
            Request::Write(write) => {
                let request = kv::write_out(write, self.cluster);
                self.write(request).await
            }
            Request::Status(query) => {
                let request = cluster::status_request_out(query, self.cluster);
                let response = self.cluster().status(self.wrap(request)).await?;
                let status = cluster::status_of(response.into_inner())?;
                Ok(Response::Status(Box::new(status)))
            }
            Request::TransferLeader(transfer) => {
                let request = cluster::transfer_out(transfer, self.cluster);
                self.cluster().transfer_leader(self.wrap(request)).await?;
                Ok(Response::TransferLeader)
            }
            Request::SplitShard(split) => {
                let request = cluster::split_out(split, self.cluster);
                let response = self.cluster().split_shard(self.wrap(request)).await?;
                Ok(cluster::split_done_of(response.into_inner())?)
            }
            Request::ReadPosition(group) => {
                let group = group_number(group);
                let request = v1::ReadPositionRequest { group };
                let response = self.transport().read_position(self.wrap(request)).await?;
                let position = response.into_inner().position;
                let position = crate::wire::convert::required("position", position)?;
                Ok(Response::ReadPosition(convert::position_of(position)))
            }
            Request::Vote(route, vote) => {
                let request = convert::vote_request_out(route, vote);
                let response = self.transport().vote(self.wrap(request)).await?;
                Ok(Response::Vote(convert::voted_of(response.into_inner())?))
            }
            Request::Append(..) | Request::Term(_) => {
                Err(Error::Internal("it is a frame, and no call of its own".to_owned()).into())
            }
            Request::TakeLead(route, take) => {
                let request = convert::take_lead_out(route, take);
                let response = self.transport().take_lead(self.wrap(request)).await?;
                Ok(Response::TakeLead(response.into_inner().accepted))
            }
            Request::Form(form) => {
                let request = convert::form_out(form);
                let response = self.transport().form(self.wrap(request)).await?;
                Ok(Response::Form(convert::formed_of(response.into_inner())?))
            }
            Request::Join(join) => {
                let request = placement::join_out(join);
                let response = self.transport().join(self.wrap(request)).await?;
                let joined = placement::joined_of(response.into_inner())?;
                Ok(Response::Join(joined))
            }
            Request::Placement(command) => {
                let request = self.wrap(placement::command_out(command));
                let response = self.transport().change_placement(request).await?;
                let answer = placement::answer_of(response.into_inner())?;
                Ok(Response::Placement(answer))
            }
            Request::Report(report) => {
                let request = placement::report_out(*report);
                let response = self.transport().report(self.wrap(request)).await?;
                let orders = placement::orders_of(response.into_inner())?;
                Ok(Response::Report(orders))
            }
            Request::Overview(query) => {
                let request = admin::overview_query_out(query, self.cluster);
                let response = self.admin().overview(self.wrap(request)).await?;
                let overview = admin::overview_of(response.into_inner())?;
                Ok(Response::Overview(Box::new(overview)))
            }
            Request::Explain(shard) => {
                let request = admin::explain_out(shard, self.cluster);
                let response = self.admin().explain(self.wrap(request)).await?;
                let explained = admin::explained_of(response.into_inner())?;
                Ok(Response::Explain(Box::new(explained)))
            }
            Request::Arrange(arrangement) => {
                let request = admin::arrangement_out(arrangement, self.cluster);
                self.admin().arrange(self.wrap(request)).await?;
                Ok(Response::Arrange)
            }
            Request::ListKeyspaces => {
                let request = self.wrap(admin::list_keyspaces_out(self.cluster));
                let response = self.admin().list_keyspaces(request).await?;
                let keyspaces = admin::keyspaces_of(response.into_inner())?;
                Ok(Response::Keyspaces(keyspaces))
            }
            Request::Locate(key) => {
                let request = placement::locate_out(key, self.cluster);
                let response = self.placement().locate(self.wrap(request)).await?;
                let route = placement::located_of(response.into_inner())?;
                Ok(Response::Locate(route))
            }
            Request::Routes(_) => self.routes().await,
            Request::CreateReplica(create) => {
                let request = self.wrap(convert::create_replica_out(create));
                let response = self.transport().create_replica(request).await?;
                let creation = convert::created_of(response.into_inner())?;
                Ok(Response::CreateReplica(creation))
            }
            Request::Membership(name) => {
                let request = self.wrap(convert::membership_out(name));
                let response = self.transport().membership(request).await?;
                let (standing, shard) = convert::standing_of(response.into_inner())?;
                Ok(Response::Membership(standing, shard))
            }
            Request::CheckReplica(name, check) => {
                let request = self.wrap(convert::check_out(name, check));
                let response = self.transport().check_replica(request).await?;
                let checked = convert::checked_of(response.into_inner())?;
                Ok(Response::CheckReplica(checked))
            }
            Request::Merge(merge) => {
                let request = self.wrap(merges::request_out(merge));
                let response = self.transport().merge(request).await?;
                let reply = merges::reply_of(response.into_inner())?;
                Ok(Response::Merge(reply))
            }
            Request::ReplicaLeft(name) => {
                let request = self.wrap(convert::left_out(name));
                self.transport().replica_left(request).await?;
                Ok(Response::ReplicaLeft)
            }
            Request::AddReplica(add) => {
                let request = self.wrap(cluster::add_replica_out(add, self.cluster));
                let response = self.cluster().add_replica(request).await?;
                let shard = cluster::changed_of(response.into_inner().shard)?;
                Ok(Response::AddReplica(shard))
            }
            Request::RemoveReplica(name) => {
                let request = self.wrap(cluster::remove_replica_out(name, self.cluster));
                let response = self.cluster().remove_replica(request).await?;
                let shard = cluster::changed_of(response.into_inner().shard)?;
                Ok(Response::RemoveReplica(shard))
            }
        }
    }

    async fn within(self, within: Within) -> Result<Response, Failure> {
        let keyspace = within.keyspace.to_string();
        let resume_key = within.resume.unwrap_or_default();
        match within.request {
            KeyRequest::Get(get) => {
                let request = kv::get_out(get, self.cluster);
                self.get(v1::GetRequest {
                    keyspace,
                    ..request
                })
                .await
            }
            KeyRequest::BatchGet(batch) => {
                let request = kv::batch_get_out(batch, self.cluster);
                self.batch_get(v1::BatchGetRequest {
                    keyspace,
                    ..request
                })
                .await
            }
            KeyRequest::Scan(scan) => {
                let request = kv::scan_out(scan, self.cluster);
                let request = v1::ScanRequest {
                    keyspace,
                    resume_key,
                    ..request
                };
                Ok(Response::Scan(self.scan(request).await?))
            }
            KeyRequest::Write(write) => {
                let mut request = kv::write_out(write, self.cluster);
                match &mut request {
                    kv::WriteOut::Keys(request) => request.keyspace = keyspace,
                    kv::WriteOut::Range(request) => {
                        request.keyspace = keyspace;
                        request.resume_key = resume_key;
                    }
                }
                self.write(request).await
            }
        }
    }

    async fn get(self, request: v1::GetRequest) -> Result<Response, Failure> {
        let response = self.kv().get(self.wrap(request)).await?.into_inner();
        let (found, answered) = kv::got_of(response)?;
        Ok(Response::Get(found, answered))
    }

    async fn batch_get(self, request: v1::BatchGetRequest) -> Result<Response, Failure> {
        let asked = request.keys.len();
        let response = self.kv().batch_get(self.wrap(request)).await?.into_inner();
        let (found, answered) = kv::batch_got_of(response, asked)?;
        Ok(Response::BatchGet(found, answered))
    }

    async fn write(self, request: kv::WriteOut) -> Result<Response, Failure> {
        let (outcome, answered) = match request {
            kv::WriteOut::Keys(request) => {
                let response = self.kv().write(self.wrap(request)).await?;
                kv::written_of(response.into_inner())?
            }
            kv::WriteOut::Range(request) => {
                let response = self.kv().delete_range(self.wrap(request)).await?;
                kv::range_done_of(response.into_inner())?
            }
        };
        Ok(Response::Write(outcome, answered))
    }

    /// All messages of a scan with the limits of one portion, which ends with its cut.
    async fn scan(self, request: v1::ScanRequest) -> Result<Page, Failure> {
        let mut pages = self.kv().scan(self.wrap(request)).await?.into_inner();
        let first = pages.message().await?;
        let first = first.ok_or_else(|| Error::invalid("scan", "it ended without an answer"))?;
        let mut page = kv::page_of(first)?;
        while let Some(next) = pages.message().await? {
            let next = kv::page_of(next)?;
            page.items.extend(next.items);
            page.rest = next.rest;
            page.rest_cut = next.rest_cut;
            page.unordered = next.unordered;
        }
        Ok(page)
    }

    /// The first message of a watch. The numbers of changes mean nothing to another node.
    async fn routes(self) -> Result<Response, Failure> {
        let request = placement::watch_out(self.cluster);
        let watched = self.placement().watch_routes(self.wrap(request)).await?;
        let first = watched.into_inner().message().await?;
        let first = first.ok_or_else(|| Error::invalid("routes", "it ended without an answer"))?;
        Ok(Response::Routes(0, placement::routes_of(first)?))
    }

    fn wrap<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        if self.forwarded {
            let value = AsciiMetadataValue::from_static("1");
            request.metadata_mut().insert(FORWARDED_HEADER, value);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        request.set_timeout(left.max(Duration::from_millis(1)));
        request
    }

    fn kv(&self) -> KvClient<transport::Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn cluster(&self) -> ClusterClient<transport::Channel> {
        ClusterClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn admin(&self) -> AdministrationClient<transport::Channel> {
        AdministrationClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn placement(&self) -> PlacementClient<transport::Channel> {
        PlacementClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn transport(&self) -> TransportClient<transport::Channel> {
        TransportClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// There is no deadline: a snapshot takes as long as it takes, and a dead receiver breaks the
/// connection.
async fn send_snapshot(
    peer: &Peer,
    headers: MetadataMap,
    snapshot: SnapshotHeader,
    chunks: BoxStream<'static, Result<Bytes>>,
) -> Result<Vote> {
    let connection = peer.snapshot.connection().await?;
    let (parts, failed) = parts_of(snapshot, chunks);
    let mut request = tonic::Request::new(parts);
    *request.metadata_mut() = headers;
    let mut client = TransportClient::new(connection.channel.clone());
    let answer = tokio::select! {
        biased;
        Ok(error) = failed => return Err(error),
        answer = client.snapshot(request) => answer,
    };
    let asked = Asked {
        what: &peer.what,
        write: None,
        deadline: Duration::MAX,
    };
    match answer {
        Ok(response) => {
            let vote = convert::vote_of(response.into_inner().vote);
            vote.map_err(|error| unreadable(&asked, &error))
        }
        Err(status) => {
            peer.snapshot.check(&connection, &status);
            Err(asked.failed(&status))
        }
    }
}

/// The messages of a snapshot. After an error of the source, which comes beside them, they stop without
/// an end: the receiver must not take what it has for the whole.
fn parts_of(
    snapshot: SnapshotHeader,
    chunks: BoxStream<'static, Result<Bytes>>,
) -> (Parts, oneshot::Receiver<Error>) {
    use v1::snapshot_request::End;
    use v1::snapshot_request::Part;
    let (fail, failed) = oneshot::channel();
    let mut fail = Some(fail);
    let chunks = chunks.then(move |chunk| match chunk {
        Ok(chunk) => Either::Left(future::ready(Part::Chunk(chunk))),
        Err(error) => {
            let _ = fail.take().map(|fail| fail.send(error));
            Either::Right(future::pending())
        }
    });
    let header = Part::Header(convert::header_out(snapshot));
    let parts = stream::once(future::ready(header)).chain(chunks);
    let parts = parts.chain(stream::once(future::ready(Part::End(End {}))));
    let parts = parts.map(|part| v1::SnapshotRequest { part: Some(part) });
    (Parts(parts.boxed()), failed)
}

/// Named, since the compiler cannot prove of an unnamed stream of trait objects that it may be sent.
struct Parts(BoxStream<'static, v1::SnapshotRequest>);

impl Stream for Parts {
    type Item = v1::SnapshotRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}
