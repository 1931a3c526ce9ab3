//! The network over gRPC: real doors on loopback before a node that only remembers, spoken to through
//! the channel that nodes and clients use, and through a bare gRPC client.

#![allow(clippy::unwrap_used)]

#[path = "wire/admin.rs"]
mod admin;
#[path = "wire/merge.rs"]
mod merge;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use quorate::error::Effect;
use quorate::error::Error;
use quorate::error::Result;
use quorate::server::grpc::Doors;
use quorate::server::grpc::Stop;
use quorate::types::ClusterId;
use quorate::types::GroupId;
use quorate::types::Incarnation;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::Position;
use quorate::types::ReplicaId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::log::LogEntry;
use quorate::types::log::Payload;
use quorate::types::log::Vote;
use quorate::types::node::Identity;
use quorate::types::node::Member;
use quorate::types::node::Newcomer;
use quorate::types::placement::Changes;
use quorate::types::placement::Orders;
use quorate::types::placement::PlacementAnswer;
use quorate::types::placement::PlacementCommand;
use quorate::types::request::Answered;
use quorate::types::request::Condition;
use quorate::types::request::KeyValue;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Versioned;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::types::shard::Chain;
use quorate::types::shard::Epoch;
use quorate::types::shard::Link;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::identity::IdentityCell;
use quorate::wire::proto::v1;
use quorate::wire::proto::v1::kv_client::KvClient;
use quorate::wire::proto::v1::placement_client::PlacementClient;
use quorate::wire::request::APPENDS_IN_FLIGHT_MAX;
use quorate::wire::request::AddReplica;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::BatchGet;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Check;
use quorate::wire::request::Checked;
use quorate::wire::request::CreateReplica;
use quorate::wire::request::Creation;
use quorate::wire::request::Cut;
use quorate::wire::request::FormRequest;
use quorate::wire::request::FormResponse;
use quorate::wire::request::Founder;
use quorate::wire::request::Get;
use quorate::wire::request::GroupStatus;
use quorate::wire::request::JoinRequest;
use quorate::wire::request::JoinResponse;
use quorate::wire::request::KeyRequest;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Page;
use quorate::wire::request::Portion;
use quorate::wire::request::ReplicaName;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Scan;
use quorate::wire::request::Service;
use quorate::wire::request::ShardRoute;
use quorate::wire::request::SnapshotHeader;
use quorate::wire::request::SplitShard;
use quorate::wire::request::Standing;
use quorate::wire::request::StatusQuery;
use quorate::wire::request::TakeLead;
use quorate::wire::request::TransferLeader;
use quorate::wire::request::Unordered;
use quorate::wire::request::VoteRequest;
use quorate::wire::request::VoteResponse;
use quorate::wire::status;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

// ---- a node that only remembers ----

/// Streams of this group are never answered, nor are their requests taken.
const STALLED: GroupId = GroupId::Shard(ShardId(90));
/// Requests of this group are taken and not answered.
const SILENT: GroupId = GroupId::Shard(ShardId(91));
/// Streams of this group fail at their third request.
const FAILING: GroupId = GroupId::Shard(ShardId(92));

#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<Call>>,
    keys: Mutex<BTreeMap<Bytes, Versioned>>,
    pages: AtomicUsize,
    taken: Arc<AtomicUsize>,
    chunks: Mutex<Vec<Result<Bytes>>>,
    /// What is answered to questions for routes, one after the other; then always the same.
    routes: Mutex<VecDeque<Result<Response>>>,
    hanging: Notify,
    /// The first key of the second shard, if there are two. Scans over both go forwards.
    border: Mutex<Option<Bytes>>,
}

fn answered() -> Answered {
    Answered {
        shard: ShardId(1),
        replica: ReplicaId(7),
        leader: true,
        timestamp: Timestamp(900),
        as_of: Timestamp(899),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        replica: ReplicaId(3),
        committed: true,
    }
}

fn check_portion(floor: u64) -> Check {
    Check::Portion(Portion {
        range: KeyRange::of_key(&Bytes::from_static(b"k")),
        as_of: Timestamp(9),
        floor: Timestamp(floor),
    })
}

fn position(index: u64) -> Option<Position> {
    Some(Position { term: 4, index })
}

impl Fake {
    fn last_call(&self) -> Call {
        self.calls
            .lock()
            .unwrap()
            .last()
            .expect("a call came")
            .clone()
    }

    fn page(&self, scan: &Scan) -> Page {
        let border = self.border.lock().unwrap().clone();
        let Some(border) = border.filter(|border| scan.range.start < *border) else {
            return self.page_of_shard(scan);
        };
        let mut part = scan.clone();
        part.range.end = Some(border.clone());
        let page = self.page_of_shard(&part);
        let start = page.rest.map_or(border, |rest| rest.start);
        let end = scan.range.end.clone();
        Page {
            rest: Some(KeyRange { start, end }),
            ..page
        }
    }

    fn page_of_shard(&self, scan: &Scan) -> Page {
        let as_of = scan.cut.as_ref().map_or(Timestamp(555), |cut| cut.as_of);
        self.pages.fetch_add(1, Ordering::SeqCst);
        let keys = self.keys.lock().unwrap();
        let inside = keys.iter().filter(|(key, _)| scan.range.contains(key));
        let mut inside: Vec<_> = inside.collect();
        if scan.reverse {
            inside.reverse();
        }
        let (mut items, mut bytes, mut rest) = (Vec::new(), 0, None);
        for (key, versioned) in inside {
            let value = if scan.keys_only {
                Bytes::new()
            } else {
                versioned.value.clone()
            };
            bytes += key.len() + value.len();
            let full = items.len() == scan.keys_max as usize || bytes > scan.bytes_max as usize;
            if full && !items.is_empty() {
                rest = Some(match scan.reverse {
                    false => KeyRange {
                        start: key.clone(),
                        end: scan.range.end.clone(),
                    },
                    true => KeyRange {
                        start: scan.range.start.clone(),
                        end: items.last().map(|item: &KeyValue| item.key.clone()),
                    },
                });
                break;
            }
            let version = versioned.version;
            items.push(KeyValue {
                key: key.clone(),
                versioned: Versioned { value, version },
            });
        }
        Page {
            items,
            rest_cut: rest.is_some().then(|| scan.cut_at(as_of)),
            rest,
            as_of,
            answered: answered(),
            unordered: None,
        }
    }

    fn write(&self, write: &Write) -> Result<WriteOutcome> {
        let WriteKind::Keys {
            conditions,
            operations,
        } = &write.kind
        else {
            return Ok(WriteOutcome::Done {
                version: Timestamp(8),
                deleted: 3,
                resume: Some(Bytes::from_static(b"more")),
            });
        };
        match operations[0].key().as_ref() {
            b"no space" => return Err(Error::NoSpace { free_bytes: 12 }),
            b"ahead" => return Ok(WriteOutcome::ClockAhead { wait_ms: 70 }),
            _other => {}
        }
        if !conditions.is_empty() {
            return Ok(WriteOutcome::ConditionFailed {
                condition: 0,
                actual: Timestamp(6),
            });
        }
        for operation in operations {
            if let Operation::Put { key, value } = operation {
                let version = Timestamp(5);
                let versioned = Versioned {
                    value: value.clone(),
                    version,
                };
                self.keys.lock().unwrap().insert(key.clone(), versioned);
            }
        }
        Ok(WriteOutcome::Done {
            version: Timestamp(5),
            deleted: 0,
            resume: None,
        })
    }

    fn answer(&self, request: Request) -> Result<Response> {
        let found = |key: &Bytes| self.keys.lock().unwrap().get(key).cloned();
        Ok(match request {
            Request::Get(get) => Response::Get(found(&get.key), answered()),
            Request::BatchGet(batch) => {
                let found = batch.keys.iter().map(found).collect();
                Response::BatchGet(found, vec![answered(), answered()])
            }
            Request::Scan(scan) => Response::Scan(self.page(&scan)),
            Request::Write(write) => Response::Write(self.write(&write)?, answered()),
            Request::Status(_) => Response::Status(Box::new(node_status())),
            Request::TransferLeader(_) => Response::TransferLeader,
            Request::SplitShard(split) => split_done(&split),
            Request::ReadPosition(_) => Response::ReadPosition(position(77).unwrap()),
            Request::Vote(_, request) => Response::Vote(VoteResponse {
                vote: request.vote,
                last: position(3),
                granted: request.pre_vote,
            }),
            Request::Append(_, append) => {
                Response::Append(AppendResponse::Matched(append.committed))
            }
            Request::Term(_) => Response::Term(9),
            Request::TakeLead(_, _) => Response::TakeLead(true),
            Request::Form(form) => Response::Form(FormResponse::Forming(form)),
            Request::Join(join) => Response::Join(JoinResponse {
                node: NodeId(8),
                cluster: ClusterId([1; 16]),
                founders: vec![founder()],
                members: vec![join.newcomer.into_member(NodeId(8))],
            }),
            Request::Placement(command) => Response::Placement(match command {
                PlacementCommand::RecordMember(_) => PlacementAnswer::Recorded,
                PlacementCommand::RecordShard(_) => PlacementAnswer::Outdated,
                PlacementCommand::TakeIds { count } => PlacementAnswer::FirstId(count + 1),
                PlacementCommand::AddMember(_) => PlacementAnswer::Member(NodeId(8)),
                PlacementCommand::EndOperator { .. } => PlacementAnswer::Missing,
                _ => PlacementAnswer::Recorded,
            }),
            Request::Report(report) => Response::Report(Orders {
                changes: Changes {
                    upto: report.since + 3,
                    more: true,
                    members: vec![newcomer().into_member(NodeId(8))],
                    shards: report.changed,
                    keyspaces: admin::keyspaces(),
                },
                steps: admin::steps(),
                hosts: vec![NodeId(1), NodeId(3)],
                snapshot_bytes_per_second: 7,
            }),
            Request::Overview(_) => Response::Overview(Box::new(admin::overview())),
            Request::Explain(_) => Response::Explain(Box::new(admin::explained())),
            Request::Arrange(_) => Response::Arrange,
            Request::ListKeyspaces => Response::Keyspaces(admin::keyspaces()),
            Request::Within(within) => {
                let resume = within.resume.clone();
                let mut answer = self.answer(within.request.of(None, None))?;
                if let Response::Scan(page) = &mut answer {
                    page.unordered = Some(Unordered { resume });
                }
                answer
            }
            Request::Locate(_) => Response::Locate(shard_route(None)),
            Request::Routes(_) => match self.routes.lock().unwrap().pop_front() {
                Some(answer) => answer?,
                None => Response::Routes(0, vec![shard_route(Some(NodeId(1)))]),
            },
            Request::CreateReplica(create) => Response::CreateReplica(match create.replica.0 {
                1 => Creation::Open,
                2 => Creation::Gone,
                _ => Creation::NotYet,
            }),
            Request::Membership(name) => {
                let standing = match name.replica.0 {
                    1 => Standing::Member,
                    2 => Standing::NotYet,
                    3 => Standing::Stranger,
                    _ => Standing::Absorbed(vec![ShardId(8), ShardId(9)]),
                };
                Response::Membership(standing, shard_descriptor())
            }
            Request::ReplicaLeft(_) => Response::ReplicaLeft,
            Request::AddReplica(_) => Response::AddReplica(shard_descriptor()),
            Request::RemoveReplica(_) => Response::RemoveReplica(shard_descriptor()),
            Request::CheckReplica(_, check) => Response::CheckReplica(match check {
                Check::Chains => Checked::Chains(vec![Link {
                    position: position(4).unwrap(),
                    chain: Chain(u64::MAX),
                }]),
                Check::Portion(portion) if portion.floor.0 == 0 => Checked::Unreadable,
                Check::Portion(portion) => Checked::Portion(portion.as_of.0 + 1),
                Check::Quarantine => Checked::Quarantined,
            }),
            Request::Merge(request) => Response::Merge(merge::answer(request)),
        })
    }
}

/// Calls for this key are taken and never answered.
fn hangs(request: &Request) -> bool {
    match request {
        Request::Get(get) => get.key == "hang",
        Request::Write(write) => write.first_key() == "hang",
        Request::Routes(since) => *since == 99,
        _other => false,
    }
}

/// As a service, so that calls have what they need for ever.
#[derive(Clone)]
struct FakeNode(Arc<Fake>);

impl Service for FakeNode {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let fake = self.0.clone();
        async move {
            fake.calls.lock().unwrap().push(call.clone());
            if hangs(&call.request) {
                fake.hanging.notify_one();
                std::future::pending::<()>().await;
            }
            fake.answer(call.request)
        }
        .boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let taken = self.0.taken.clone();
        if route.group == STALLED {
            return stream::pending().boxed();
        }
        if route.group == SILENT {
            let silent = requests.filter_map(move |_| {
                taken.fetch_add(1, Ordering::SeqCst);
                std::future::ready(None)
            });
            return silent.boxed();
        }
        let mut seen = 0;
        let answers = requests.map(move |request| {
            seen += 1;
            if route.group == FAILING && seen == 3 {
                return Err(Error::NotFound {
                    what: "replica r3".to_owned(),
                });
            }
            assert_eq!(
                request.committed.map(|at| at.index),
                Some(seen),
                "in order, none twice"
            );
            Ok(AppendResponse::Matched(request.committed))
        });
        answers.boxed()
    }

    fn snapshot(
        &self,
        snapshot: SnapshotHeader,
        mut chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let fake = self.0.clone();
        async move {
            while let Some(chunk) = chunks.next().await {
                let failed = chunk.as_ref().err().cloned();
                fake.chunks.lock().unwrap().push(chunk);
                if let Some(error) = failed {
                    fake.hanging.notify_one();
                    return Err(error);
                }
            }
            Ok(snapshot.vote)
        }
        .boxed()
    }
}

fn split_done(split: &SplitShard) -> Response {
    let (left, right) = KeyRange::ALL.split_at(split.at.clone()).unwrap();
    let half = |id, range| ShardDescriptor {
        id,
        range,
        epoch: Epoch { conf: 3, bounds: 9 },
        replicas: vec![Replica {
            id: ReplicaId(4),
            node: NodeId(2),
        }],
    };
    Response::SplitShard {
        left: half(split.shard, left),
        right: half(ShardId(77), right),
    }
}

fn shard_descriptor() -> ShardDescriptor {
    ShardDescriptor {
        id: ShardId(1),
        range: KeyRange {
            start: Bytes::from_static(b"a"),
            end: None,
        },
        epoch: Epoch { conf: 3, bounds: 4 },
        replicas: vec![Replica {
            id: ReplicaId(1),
            node: NodeId(1),
        }],
    }
}

fn shard_route(leader: Option<NodeId>) -> ShardRoute {
    ShardRoute {
        shard: shard_descriptor(),
        leader,
    }
}

fn founder() -> Founder {
    Founder {
        name: "n1".to_owned(),
        incarnation: Incarnation([4; 16]),
        node_address: "h:1".to_owned(),
        client_address: "h:2".to_owned(),
    }
}

fn newcomer() -> Newcomer {
    Newcomer {
        incarnation: Incarnation([8; 16]),
        name: "n8".to_owned(),
        node_address: "n8:7401".to_owned(),
        client_address: "n8:7400".to_owned(),
    }
}

fn node_status() -> NodeStatus {
    let shard = shard_descriptor();
    let group = GroupStatus {
        group: GroupId::Shard(ShardId(1)),
        replica: ReplicaId(1),
        role: "leader".to_owned(),
        leader: Some(NodeId(1)),
        term: 2,
        last_index: 30,
        applied_index: 29,
        purged_index: 10,
        shard: Some(shard),
        state_hash: Some(99),
    };
    let placement = GroupStatus {
        group: GroupId::Placement,
        leader: None,
        shard: None,
        state_hash: None,
        ..group.clone()
    };
    NodeStatus {
        cluster: ClusterId([1; 16]),
        member: member(&identity(1), "1.2.3.4:1", "1.2.3.4:2"),
        version: "0.1.0".to_owned(),
        uptime_s: 5,
        ready: true,
        free_bytes: 6,
        groups: vec![placement, group],
        members: vec![member(&identity(2), "a:1", "b:2")],
    }
}

// ---- doors and channels ----

fn identity(node: u8) -> Identity {
    Identity {
        cluster: ClusterId([1; 16]),
        node: NodeId(node.into()),
        incarnation: Incarnation([node; 16]),
    }
}

fn member(identity: &Identity, node_address: &str, client_address: &str) -> Member {
    Member {
        id: identity.node,
        incarnation: identity.incarnation,
        name: format!("node {}", identity.node),
        node_address: node_address.to_owned(),
        client_address: client_address.to_owned(),
    }
}

fn made_id() -> RequestId {
    RequestId::new(1_700_000_000_000, [9; 10])
}

fn given_id() -> RequestId {
    RequestId::new(1_600_000_000_000, [2; 10])
}

struct Node {
    fake: Arc<Fake>,
    nodes: SocketAddr,
    clients: SocketAddr,
    ready: watch::Sender<bool>,
    identity: IdentityCell,
    stop: CancellationToken,
    served: Vec<JoinHandle<Result<()>>>,
}

async fn start(identity: IdentityCell) -> Node {
    start_with(identity, 100, Duration::from_millis(200)).await
}

async fn start_with(identity: IdentityCell, in_work_max: usize, grace: Duration) -> Node {
    let fake = Arc::new(Fake::default());
    let service = Arc::new(FakeNode(fake.clone()));
    let doors = Doors::with_limit(service, made_id, in_work_max);
    let token = CancellationToken::new();
    let (ready, readiness) = watch::channel(false);
    let (nodes, node_address) = listen().await;
    let (clients, client_address) = listen().await;
    let stop = Stop {
        token: token.clone(),
        grace,
    };
    let (node_door, cell, node_stop) = (doors.clone(), identity.clone(), stop.clone());
    let node_door = async move { node_door.serve_nodes(nodes, cell, node_stop).await };
    let client_door = async move { doors.serve_clients(clients, readiness, stop).await };
    Node {
        fake,
        nodes: node_address,
        clients: client_address,
        ready,
        identity,
        stop: token,
        served: vec![tokio::spawn(node_door), tokio::spawn(client_door)],
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port that refuses connections, and that nobody else gets.
fn bound() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

impl Node {
    fn member(&self) -> Member {
        let identity = self.identity.get().expect("set in this test");
        member(
            &identity,
            &self.nodes.to_string(),
            &self.clients.to_string(),
        )
    }
}

/// Node 2, and node 1's way to it.
async fn pair() -> (Node, Arc<dyn Service>) {
    let node = start(IdentityCell::of(identity(2))).await;
    let channel = GrpcChannel::of_node(IdentityCell::of(identity(1)));
    channel.learn(node.member());
    let remote = channel.node(NodeId(2));
    (node, remote)
}

fn call(request: Request) -> Call {
    Call {
        request,
        deadline: Duration::from_secs(5),
        forwarded: false,
        cluster: None,
    }
}

fn get(key: &'static str) -> Request {
    Request::Get(Get {
        key: key.into(),
        read: ReadKind::Linearizable,
    })
}

fn put(key: &'static str, value: &'static str) -> Request {
    let operation = Operation::Put {
        key: key.into(),
        value: value.into(),
    };
    let kind = WriteKind::Keys {
        conditions: vec![],
        operations: vec![operation],
    };
    Request::Write(Write {
        id: given_id(),
        kind,
    })
}

fn route(group: GroupId) -> Route {
    Route {
        group,
        from: ReplicaId(1),
        to: ReplicaId(2),
    }
}

fn append(number: u64) -> AppendRequest {
    let entry = |index, payload| LogEntry {
        position: Position { term: 1, index },
        payload,
    };
    AppendRequest {
        vote: vote(1),
        previous: position(9),
        entries: vec![
            entry(10, Payload::Blank),
            entry(11, Payload::Command(Bytes::from_static(b"command"))),
            entry(12, Payload::Membership(Bytes::from_static(b"three"))),
        ],
        committed: position(number),
    }
}

/// A relay whose connections can be broken.
struct Relay {
    address: SocketAddr,
    broken: Arc<Notify>,
    _task: JoinHandle<()>,
}

async fn relay(to: SocketAddr) -> Relay {
    let (listener, address) = listen().await;
    let broken = Arc::new(Notify::new());
    let breaking = broken.clone();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = breaking.notified() => connections.abort_all(),
                accepted = listener.accept() => {
                    let (mut from, _) = accepted.unwrap();
                    let mut to = TcpStream::connect(to).await.unwrap();
                    connections.spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    });
                }
            }
        }
    });
    Relay {
        address,
        broken,
        _task: task,
    }
}

/// Node 2 behind a relay, and node 1's way through it.
async fn pair_over_relay() -> (Node, Relay, Arc<dyn Service>) {
    let node = start(IdentityCell::of(identity(2))).await;
    let relay = relay(node.nodes).await;
    let channel = GrpcChannel::of_node(IdentityCell::of(identity(1)));
    channel.learn(member(&identity(2), &relay.address.to_string(), ""));
    let remote = channel.node(NodeId(2));
    (node, relay, remote)
}

// ---- requests and answers ----

fn one_of_each_request() -> Vec<Request> {
    let key = || Bytes::from_static(b"k");
    let conditions = vec![
        Condition::Version {
            key: key(),
            version: Timestamp(4),
        },
        Condition::Value {
            key: key(),
            value: Bytes::from_static(b"v"),
        },
        Condition::Exists { key: key() },
    ];
    let operations = vec![
        Operation::Put {
            key: key(),
            value: Bytes::from_static(b"v2"),
        },
        Operation::Delete {
            key: Bytes::from_static(b"k2"),
        },
    ];
    let range = KeyRange {
        start: Bytes::from_static(b"a"),
        end: None,
    };
    let scan = Scan {
        range: range.clone(),
        keys_max: 2,
        bytes_max: 1_000,
        reverse: true,
        keys_only: false,
        read: ReadKind::Follower,
        cut: Some(Cut {
            as_of: Timestamp(44),
            border: Some(Bytes::from_static(b"m")),
        }),
    };
    let write = |kind| {
        Request::Write(Write {
            id: given_id(),
            kind,
        })
    };
    let form = FormRequest {
        token: "t".to_owned(),
        list: ClusterId([5; 16]),
        from: founder(),
        confirmed: Some(ClusterId([6; 16])),
    };
    let ask = VoteRequest {
        vote: vote(3),
        last: position(2),
        leadership_transfer: true,
        pre_vote: true,
    };
    let take = TakeLead {
        vote: vote(3),
        to: ReplicaId(2),
        last: position(2),
        only_asked: true,
    };
    let shard = GroupId::Shard(ShardId(5));
    let create = |replica| {
        Request::CreateReplica(CreateReplica {
            descriptor: shard_descriptor(),
            replica: ReplicaId(replica),
        })
    };
    let name = |replica| ReplicaName {
        shard: ShardId(5),
        replica: ReplicaId(replica),
    };
    let requests = vec![
        put("k", "v"),
        get("k"),
        get("absent"),
        Request::BatchGet(BatchGet {
            keys: vec![key(), "absent".into()],
            read: ReadKind::Follower,
        }),
        Request::Scan(scan),
        write(WriteKind::Keys {
            conditions,
            operations,
        }),
        write(WriteKind::Range { range, limit: 10 }),
        Request::Status(StatusQuery { state_hash: true }),
        Request::TransferLeader(TransferLeader {
            group: shard,
            to: Some(NodeId(3)),
        }),
        Request::SplitShard(SplitShard {
            shard: ShardId(5),
            at: key(),
        }),
        Request::ReadPosition(GroupId::Placement),
        Request::Vote(route(shard), ask),
        Request::Append(route(GroupId::Placement), append(6)),
        Request::Term(route(shard)),
        Request::TakeLead(route(shard), take),
        Request::Form(form),
        Request::Join(JoinRequest {
            token: "token".to_owned(),
            newcomer: newcomer(),
        }),
        Request::Placement(PlacementCommand::RecordMember(
            newcomer().into_member(NodeId(8)),
        )),
        Request::Placement(PlacementCommand::RecordShard(shard_descriptor())),
        Request::Placement(PlacementCommand::TakeIds { count: 9 }),
        Request::Placement(PlacementCommand::AddMember(newcomer())),
        Request::Locate(key()),
        create(1),
        create(2),
        create(3),
        Request::Membership(name(1)),
        Request::Membership(name(2)),
        Request::Membership(name(3)),
        Request::Membership(name(4)),
        Request::ReplicaLeft(name(4)),
        Request::AddReplica(AddReplica {
            shard: ShardId(5),
            node: NodeId(4),
        }),
        Request::RemoveReplica(name(6)),
        Request::CheckReplica(name(7), Check::Chains),
        Request::CheckReplica(name(7), check_portion(8)),
        Request::CheckReplica(name(7), check_portion(0)),
        Request::CheckReplica(name(7), Check::Quarantine),
    ];
    let of_keyspace: Vec<Request> = requests.iter().filter_map(within).collect();
    requests
        .into_iter()
        .chain(of_keyspace)
        .chain(admin::requests())
        .chain(merge::requests())
        // The last one: its stream goes on asking for a moment after the first answer was taken.
        .chain([Request::Routes(0)])
        .collect()
}

/// The same of the keys of a keyspace.
fn within(request: &Request) -> Option<Request> {
    let place = || Some(Key::from("place"));
    let (request, resume) = match request.clone() {
        Request::Get(get) => (KeyRequest::Get(get), None),
        Request::BatchGet(get) => (KeyRequest::BatchGet(get), None),
        Request::Scan(scan) => (KeyRequest::Scan(scan), place()),
        Request::Write(write) => {
            let is_range = matches!(write.kind, WriteKind::Range { .. });
            let resume = place().filter(|_| is_range);
            (KeyRequest::Write(write), resume)
        }
        _ => return None,
    };
    let keyspace = "orders".parse().unwrap();
    Some(request.of(Some(keyspace), resume))
}

#[tokio::test]
async fn every_request_arrives_as_it_was_sent_and_every_answer_comes_back() {
    let (node, remote) = pair().await;
    for request in one_of_each_request() {
        let before = node.fake.calls.lock().unwrap().len();
        let response = remote.call(call(request.clone())).await.unwrap();
        let arrived = node.fake.calls.lock().unwrap()[before].clone();
        assert_eq!(format!("{:?}", arrived.request), format!("{request:?}"));
        let expected = node.fake.answer(request).unwrap();
        assert_eq!(response, expected);
    }
}

#[tokio::test]
async fn a_client_reaches_a_node_by_address_and_by_id_and_is_not_believed_to_forward() {
    let node = start(IdentityCell::of(identity(2))).await;
    let channel = GrpcChannel::of_client();
    channel.learn(node.member());
    let by_address = channel.address(&node.clients.to_string());
    for remote in [by_address, channel.node(NodeId(2))] {
        let forwarded = Call {
            forwarded: true,
            cluster: Some(ClusterId([1; 16])),
            ..call(put("k", "v"))
        };
        remote.call(forwarded).await.unwrap();
        let arrived = node.fake.last_call();
        assert!(!arrived.forwarded);
        assert_eq!(arrived.cluster, Some(ClusterId([1; 16])));
        assert!(arrived.deadline <= Duration::from_secs(5));
        assert!(arrived.deadline > Duration::from_secs(4));
    }
    let unknown = channel.node(NodeId(9)).call(call(get("k"))).await;
    assert!(
        matches!(unknown, Err(Error::Unavailable { .. })),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn a_node_is_believed_to_forward() {
    let (node, remote) = pair().await;
    remote
        .call(Call {
            forwarded: true,
            ..call(get("k"))
        })
        .await
        .unwrap();
    assert!(node.fake.last_call().forwarded);
}

#[tokio::test]
async fn typed_errors_arrive_as_they_were_said() {
    let (_node, remote) = pair().await;
    let full = remote.call(call(put("no space", ""))).await;
    assert_eq!(full, Err(Error::NoSpace { free_bytes: 12 }));
    let ahead = remote.call(call(put("ahead", ""))).await;
    assert_eq!(
        ahead,
        Err(Error::ClockAhead {
            wait: Duration::from_millis(70)
        })
    );
}

#[tokio::test]
async fn calls_meant_for_another_cluster_node_or_life_are_refused() {
    let node = start(IdentityCell::of(identity(2))).await;
    let address = node.nodes.to_string();
    let speak = |me: Identity, to: Identity| {
        let channel = GrpcChannel::of_node(IdentityCell::of(me));
        channel.learn(member(&to, &address, ""));
        channel.node(to.node)
    };
    let elsewhere = Identity {
        cluster: ClusterId([8; 16]),
        ..identity(1)
    };
    let another_life = Identity {
        incarnation: Incarnation([99; 16]),
        ..identity(2)
    };
    let cluster = speak(elsewhere, identity(2));
    for remote in [
        speak(identity(1), identity(3)),
        speak(identity(1), another_life),
    ] {
        for request in [
            get("k"),
            Request::Status(StatusQuery { state_hash: true }),
            Request::ReadPosition(GroupId::Placement),
        ] {
            let refused = remote.call(call(request)).await;
            assert!(
                matches!(refused, Err(Error::WrongNode { .. })),
                "{refused:?}"
            );
        }
        let appended = remote.append(route(GroupId::Placement), stream::empty().boxed());
        let appended: Vec<_> = appended.collect().await;
        assert!(
            matches!(appended[..], [Err(Error::WrongNode { .. })]),
            "{appended:?}"
        );
        let snapshot = remote.snapshot(header(), stream::empty().boxed()).await;
        assert!(
            matches!(snapshot, Err(Error::WrongNode { .. })),
            "{snapshot:?}"
        );
    }
    let expected = ClusterId([8; 16]);
    let wrong = Error::WrongCluster {
        expected,
        actual: ClusterId([1; 16]),
    };
    assert_eq!(cluster.call(call(put("k", "v"))).await, Err(wrong));
    // Someone who does not say for whom the call is.
    let stranger = GrpcChannel::of_client().address(&address);
    let refused = stranger.call(call(get("k"))).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert!(node.fake.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_forming_node_answers_form_and_nothing_else() {
    let node = start(IdentityCell::new()).await;
    let me = IdentityCell::new();
    let channel = GrpcChannel::of_node(me.clone());
    let mut requests = one_of_each_request().into_iter();
    let form = requests.find(|request| matches!(request, Request::Form(_)));
    let form = form.unwrap();
    let by_address = channel.address(&node.nodes.to_string());
    assert!(by_address.call(call(form)).await.is_ok());
    channel.learn(member(&identity(2), &node.nodes.to_string(), ""));
    let remote = channel.node(NodeId(2));
    for identity in [&me, &node.identity] {
        let early = remote.call(call(get("k"))).await;
        assert!(matches!(early, Err(Error::Unavailable { .. })), "{early:?}");
        identity
            .set(if std::ptr::eq(identity, &me) {
                self::identity(1)
            } else {
                self::identity(2)
            })
            .unwrap();
    }
    remote.call(call(get("k"))).await.unwrap();
}

// ---- what a failure means ----

#[tokio::test]
async fn a_write_is_unknown_only_after_it_may_have_arrived() {
    // Nobody listens: nothing was sent.
    let (_silent, address) = bound();
    let nobody = GrpcChannel::of_client().address(&address.to_string());
    for request in [put("k", "v"), get("k")] {
        let refused = nobody.call(call(request)).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
    }

    // The connection breaks while the node has the request.
    let (node, relay, remote) = pair_over_relay().await;
    let broken_under = async |request| {
        let calling = tokio::spawn(remote.call(call(request)));
        node.fake.hanging.notified().await;
        relay.broken.notify_one();
        calling.await.unwrap().unwrap_err()
    };
    let write = broken_under(put("hang", "v")).await;
    assert!(
        matches!(write, Error::Unknown { request, .. } if request == given_id()),
        "{write:?}"
    );
    let read = broken_under(get("hang")).await;
    assert!(matches!(read, Error::Unavailable { .. }), "{read:?}");

    // The node has it and does not answer in time.
    let in_time = |request| Call {
        deadline: Duration::from_millis(80),
        ..call(request)
    };
    let write = remote.call(in_time(put("hang", "v"))).await.unwrap_err();
    assert!(matches!(write, Error::Unknown { .. }), "{write:?}");
    let read = remote.call(in_time(get("hang"))).await.unwrap_err();
    assert!(matches!(read, Error::Timeout { .. }), "{read:?}");

    // And all is well afterwards.
    remote.call(call(put("k", "v"))).await.unwrap();
}

#[tokio::test]
async fn a_node_that_starts_late_is_found_soon() {
    let (socket, address) = bound();
    let channel = GrpcChannel::of_client();
    let remote = channel.address(&address.to_string());
    assert!(remote.call(call(get("k"))).await.is_err());
    let listener = socket.listen(16).unwrap();
    let doors = Doors::new(Arc::new(FakeNode(Arc::default())), made_id);
    let stop = Stop {
        token: CancellationToken::new(),
        grace: Duration::ZERO,
    };
    let (_ready, readiness) = watch::channel(true);
    tokio::spawn(async move { doors.serve_clients(listener, readiness, stop).await });
    let answered = tokio::time::timeout(Duration::from_secs(1), async {
        // Each refusal says when to ask again.
        while let Err(Error::Unavailable { retry_after, .. }) = remote.call(call(get("k"))).await {
            assert!(retry_after <= Duration::from_millis(250));
            tokio::time::sleep(retry_after).await;
        }
    });
    answered.await.unwrap();
}

// ---- append streams ----

#[tokio::test]
async fn streams_of_many_groups_keep_their_order_beside_one_that_is_stuck() {
    let (_node, remote) = pair().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let counting = taken.clone();
    let endless = stream::iter(1..).map(move |number| {
        counting.fetch_add(1, Ordering::SeqCst);
        append(number)
    });
    let mut stalled = remote.append(route(STALLED), endless.boxed());
    let stalled = tokio::spawn(async move { stalled.next().await });
    let mut streams = JoinSet::new();
    for group in 1..=20 {
        let requests = stream::iter(1..=300).map(append).boxed();
        let answers = remote.append(route(GroupId::Shard(ShardId(group))), requests);
        streams.spawn(answers.collect::<Vec<_>>());
    }
    let expected: Vec<_> = (1..=300)
        .map(|at| Ok(AppendResponse::Matched(position(at))))
        .collect();
    for answers in streams.join_all().await {
        assert_eq!(answers, expected);
    }
    assert_eq!(taken.load(Ordering::SeqCst), APPENDS_IN_FLIGHT_MAX);
    assert!(!stalled.is_finished());
    stalled.abort();
}

#[tokio::test]
async fn a_window_is_taken_and_no_more() {
    let (node, remote) = pair().await;
    let requests = stream::iter(1..=1_000).map(append).boxed();
    let mut silent = remote.append(route(SILENT), requests);
    let polling = tokio::spawn(async move { silent.next().await });
    // Another stream of the same carrier: what it answers was sent later.
    let after = async || {
        let one = stream::iter([append(1)]).boxed();
        let answers = remote.append(route(GroupId::Placement), one);
        assert_eq!(answers.count().await, 1);
    };
    while node.fake.taken.load(Ordering::SeqCst) < APPENDS_IN_FLIGHT_MAX {
        after().await;
    }
    after().await;
    assert_eq!(
        node.fake.taken.load(Ordering::SeqCst),
        APPENDS_IN_FLIGHT_MAX
    );
    polling.abort();
}

#[tokio::test]
async fn a_stream_ends_with_its_first_error() {
    let (_node, remote) = pair().await;
    let requests = stream::iter(1..=10)
        .map(append)
        .chain(stream::pending())
        .boxed();
    let answers: Vec<_> = remote.append(route(FAILING), requests).collect().await;
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1], Ok(AppendResponse::Matched(position(2))));
    assert_eq!(
        answers[2],
        Err(Error::NotFound {
            what: "replica r3".to_owned()
        })
    );
}

#[tokio::test]
async fn a_broken_connection_ends_its_streams_and_the_next_ones_work() {
    let (_node, relay, remote) = pair_over_relay().await;
    for _round in 0..3 {
        let requests = stream::iter(1..=2).map(append).chain(stream::pending());
        let mut streams: Vec<_> = (1..=3)
            .map(|group| {
                let requests = stream::iter(1..=2).map(append).chain(stream::pending());
                remote.append(route(GroupId::Shard(ShardId(group))), requests.boxed())
            })
            .collect();
        drop(requests);
        for answers in &mut streams {
            assert_eq!(
                answers.next().await,
                Some(Ok(AppendResponse::Matched(position(1))))
            );
        }
        relay.broken.notify_one();
        for answers in streams {
            let left: Vec<_> = answers.collect().await;
            let Some(Err(error)) = left.last() else {
                panic!("{left:?}")
            };
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn an_append_that_is_too_large_ends_its_stream_alone() {
    let (_node, remote) = pair().await;
    let mut other = remote.append(
        route(GroupId::Placement),
        stream::iter([append(1)]).chain(stream::pending()).boxed(),
    );
    assert!(other.next().await.unwrap().is_ok());
    let mut large = append(1);
    large.entries[2].payload = Payload::Command(vec![0; 50 << 20].into());
    let shard = GroupId::Shard(ShardId(1));
    let answers = remote.append(route(shard), stream::iter([large]).boxed());
    let answers: Vec<_> = answers.collect().await;
    assert!(
        matches!(answers[..], [Err(Error::Invalid { .. })]),
        "{answers:?}"
    );
    assert!(other.next().now_or_never().is_none(), "still open");
}

// ---- snapshots ----

fn header() -> SnapshotHeader {
    SnapshotHeader {
        route: route(GroupId::Shard(ShardId(1))),
        vote: vote(6),
        position: position(40),
        membership_position: position(7),
        membership: Bytes::from_static(b"three"),
    }
}

#[tokio::test]
async fn a_snapshot_arrives_whole_or_as_an_error() {
    let (node, remote) = pair().await;
    let chunk = |byte: u8| Ok(Bytes::from(vec![byte; 256 * 1024]));
    let chunks: Vec<_> = (0..40).map(chunk).collect();
    let installed = remote
        .snapshot(header(), stream::iter(chunks.clone()).boxed())
        .await;
    assert_eq!(installed, Ok(vote(6)));
    assert_eq!(*node.fake.chunks.lock().unwrap(), chunks);

    node.fake.chunks.lock().unwrap().clear();
    let gone = Error::Internal("the disk is gone".to_owned());
    let failing = stream::iter([chunk(1), Err(gone.clone())]).boxed();
    assert_eq!(remote.snapshot(header(), failing).await, Err(gone));
    node.fake.hanging.notified().await;
    let received = node.fake.chunks.lock().unwrap().clone();
    assert!(
        matches!(received.last(), Some(Err(Error::Unavailable { .. }))),
        "{received:?}"
    );
}

// ---- the client port ----

async fn bare_client(node: &Node) -> KvClient<tonic::transport::Channel> {
    KvClient::connect(format!("http://{}", node.clients))
        .await
        .unwrap()
}

#[tokio::test]
async fn writes_without_an_id_get_one_and_every_error_says_it() {
    let node = start(IdentityCell::of(identity(2))).await;
    let mut client = bare_client(&node).await;
    let put = |key: &'static str| v1::PutRequest {
        key: key.into(),
        value: "v".into(),
        ..Default::default()
    };
    let response = client.put(put("k")).await.unwrap().into_inner();
    assert_eq!(response.version, 5);
    assert_eq!(response.answered.unwrap().request_id, made_id().0.to_vec());
    let full = client.put(put("no space")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(status::request_of(&full), Some(made_id()));
    let named = v1::PutRequest {
        request_id: given_id().0.to_vec().into(),
        ..put("no space")
    };
    let full = client.put(named).await.unwrap_err();
    assert_eq!(status::request_of(&full), Some(given_id()));

    let mut late = tonic::Request::new(put("hang"));
    late.set_timeout(Duration::from_millis(1_200));
    let late = client.put(late).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(
        status::request_of(&late),
        Some(made_id()),
        "our answer came first: {late:?}"
    );
    assert_eq!(
        status::from_status(&late).unwrap().effect(),
        Effect::Unknown
    );

    let deleted = v1::DeleteRequest {
        key: "k".into(),
        ..Default::default()
    };
    let deleted = client.delete(deleted).await.unwrap().into_inner();
    assert!(!deleted.deleted);
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused_by_name() {
    let node = start(IdentityCell::of(identity(2))).await;
    let mut client = bare_client(&node).await;
    let key = |bytes: usize| Bytes::from(vec![b'k'; bytes]);
    let put = |key: Bytes, value: usize| v1::PutRequest {
        key,
        value: vec![0; value].into(),
        ..Default::default()
    };
    let operation = |key: &'static str, value: usize| v1::Operation {
        kind: Some(v1::operation::Kind::Put(v1::operation::Put {
            key: key.into(),
            value: vec![0; value].into(),
        })),
    };
    let write = |operations| v1::WriteRequest {
        operations,
        ..Default::default()
    };
    let mebibyte = 1 << 20;
    let mut refused = Vec::new();
    refused.push(("key", client.put(put(key(0), 1)).await.err()));
    refused.push(("key", client.put(put(key(2_049), 1)).await.err()));
    refused.push(("value", client.put(put(key(1), mebibyte + 1)).await.err()));
    let id = v1::PutRequest {
        request_id: vec![1; 16].into(),
        ..put(key(1), 1)
    };
    refused.push(("request_id", client.put(id).await.err()));
    let id = v1::PutRequest {
        request_id: vec![1; 3].into(),
        ..put(key(1), 1)
    };
    refused.push(("request_id", client.put(id).await.err()));
    let cluster = v1::PutRequest {
        cluster_id: vec![1; 3].into(),
        ..put(key(1), 1)
    };
    refused.push(("cluster_id", client.put(cluster).await.err()));
    refused.push(("operations", client.write(write(vec![])).await.err()));
    let twice = vec![operation("k", 1), operation("k", 2)];
    refused.push(("operations", client.write(write(twice)).await.err()));
    let large = ["a", "b", "c", "d", "e"]
        .map(|key| operation(key, mebibyte))
        .to_vec();
    refused.push(("request", client.write(write(large)).await.err()));
    let range = Some(v1::KeyRange {
        start: "b".into(),
        end: "a".into(),
    });
    let delete = v1::DeleteRangeRequest {
        range: range.clone(),
        ..Default::default()
    };
    refused.push(("range", client.delete_range(delete).await.err()));
    refused.push((
        "range",
        client
            .delete_range(v1::DeleteRangeRequest::default())
            .await
            .err(),
    ));
    let scan = v1::ScanRequest {
        range,
        ..Default::default()
    };
    refused.push(("range", client.scan(scan).await.err()));
    let keys = vec![key(1); 1_001];
    let batch = v1::BatchGetRequest {
        keys,
        ..Default::default()
    };
    refused.push(("keys", client.batch_get(batch).await.err()));
    let read = v1::GetRequest {
        key: key(1),
        read: 77,
        ..Default::default()
    };
    refused.push(("read", client.get(read).await.err()));
    for (field, error) in refused {
        let error = error.unwrap_or_else(|| panic!("{field} was not refused"));
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        let Some(Error::Invalid { field: named, .. }) = status::from_status(&error) else {
            panic!("{error:?}")
        };
        assert_eq!(named, field);
    }
    assert!(
        node.fake.calls.lock().unwrap().is_empty(),
        "none of them came through"
    );
    client.put(put(key(2_048), mebibyte)).await.unwrap();
}

#[tokio::test]
async fn too_much_in_work_is_refused_with_a_time_to_wait() {
    let node = start_with(IdentityCell::of(identity(2)), 1, Duration::ZERO).await;
    let remote = GrpcChannel::of_client().address(&node.clients.to_string());
    let hanging = tokio::spawn(remote.call(call(get("hang"))));
    node.fake.hanging.notified().await;
    let refused = remote.call(call(put("k", "v"))).await.unwrap_err();
    assert!(matches!(refused, Error::Overloaded { retry_after, .. } if !retry_after.is_zero()));
    // Who wants to know why is answered.
    remote
        .call(call(Request::Status(StatusQuery::default())))
        .await
        .unwrap();
    hanging.abort();
    while remote.call(call(put("k", "v"))).await.is_err() {}
}

#[tokio::test]
async fn health_follows_readiness_and_reflection_knows_every_service() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let node = start(IdentityCell::of(identity(2))).await;
    let endpoint = tonic::transport::Endpoint::new(format!("http://{}", node.clients)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let asked = HealthCheckRequest {
        service: "quorate.v1.Kv".to_owned(),
    };
    let mut watching = health.watch(asked).await.unwrap().into_inner();
    let mut next = async || watching.message().await.unwrap().unwrap().status();
    while next().await != ServingStatus::NotServing {}
    node.ready.send(true).unwrap();
    while next().await != ServingStatus::Serving {}
    node.ready.send(false).unwrap();
    while next().await != ServingStatus::NotServing {}

    macro_rules! services {
        ($version:ident) => {{
            use server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::*;
            let list = server_reflection_request::MessageRequest::ListServices(String::new());
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(list),
            };
            let mut client = ServerReflectionClient::new(channel.clone());
            let asked = stream::iter([request]);
            let mut answers = client
                .server_reflection_info(asked)
                .await
                .unwrap()
                .into_inner();
            let answer = answers
                .message()
                .await
                .unwrap()
                .unwrap()
                .message_response
                .unwrap();
            format!("{answer:?}")
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for service in [
            "quorate.v1.Kv",
            "quorate.v1.Cluster",
            "quorate.v1.Placement",
            "grpc.health.v1.Health",
        ] {
            assert!(services.contains(service), "{services}");
        }
    }
}

// ---- routes ----

/// A watch of node 2's routes, which answers with these to begin with.
async fn watched(
    answers: Vec<Result<Response>>,
) -> (Node, tonic::Streaming<v1::WatchRoutesResponse>) {
    let node = start(IdentityCell::of(identity(2))).await;
    node.fake.routes.lock().unwrap().extend(answers);
    let endpoint = tonic::transport::Endpoint::new(format!("http://{}", node.clients)).unwrap();
    let mut client = PlacementClient::new(endpoint.connect().await.unwrap());
    let request = v1::WatchRoutesRequest::default();
    let watch = client.watch_routes(request).await.unwrap().into_inner();
    (node, watch)
}

#[tokio::test]
async fn a_watch_tells_all_routes_in_portions_and_then_what_changes() {
    let route = || shard_route(Some(NodeId(1)));
    let (node, mut watch) = watched(vec![
        Ok(Response::Routes(7, vec![route(); 2_500])),
        Ok(Response::Routes(7, Vec::new())),
        Ok(Response::Routes(9, vec![route()])),
        Err(Error::unavailable("the node", "it is stopping")),
    ])
    .await;
    for count in [1_000, 1_000, 500, 1] {
        let message = watch.message().await.unwrap().unwrap();
        assert_eq!(message.routes.len(), count);
    }
    let error = watch.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let calls = node.fake.calls.lock().unwrap();
    let asked = calls.iter().map(|call| format!("{:?}", call.request));
    let asked: Vec<String> = asked.collect();
    assert_eq!(asked, ["Routes(0)", "Routes(7)", "Routes(7)", "Routes(9)"]);
}

#[tokio::test]
async fn a_watch_ends_with_the_door() {
    let all = Response::Routes(99, vec![shard_route(None)]);
    let (node, mut watch) = watched(vec![Ok(all)]).await;
    assert!(watch.message().await.unwrap().is_some());
    node.fake.hanging.notified().await;
    node.stop.cancel();
    assert!(watch.message().await.unwrap().is_none());
}

// ---- scans ----

fn fill(node: &Node, keys: usize, value: usize) {
    let mut all = node.fake.keys.lock().unwrap();
    for number in 0..keys {
        let value = Bytes::from(vec![b'v'; value]);
        let version = Timestamp(3);
        all.insert(format!("{number:06}").into(), Versioned { value, version });
    }
}

async fn scan(node: &Node, request: v1::ScanRequest) -> Vec<v1::ScanResponse> {
    let mut client = bare_client(node).await;
    let portions = client.scan(request).await.unwrap().into_inner();
    portions.map(|portion| portion.unwrap()).collect().await
}

fn keys(portions: &[v1::ScanResponse]) -> Vec<&[u8]> {
    let items = portions.iter().flat_map(|portion| &portion.items);
    items.map(|item| item.key.as_ref()).collect()
}

#[tokio::test]
async fn a_scan_is_one_cut_in_portions_and_goes_on_where_a_limit_ended_it() {
    let node = start(IdentityCell::of(identity(2))).await;
    fill(&node, 3_500, 10);
    let all = scan(&node, v1::ScanRequest::default()).await;
    assert_eq!(all.len(), 4);
    assert_eq!(keys(&all).len(), 3_500);
    assert!(keys(&all).is_sorted());
    assert!(all[3].resume.is_none());
    let calls = node.fake.calls.lock().unwrap().clone();
    let stamps = calls.iter().map(|call| match &call.request {
        Request::Scan(scan) => scan.cut.as_ref().map(|cut| cut.as_of),
        other => panic!("{other:?}"),
    });
    let first = Some(Timestamp(555));
    assert_eq!(stamps.collect::<Vec<_>>(), [None, first, first, first]);

    for reverse in [false, true] {
        let mut request = v1::ScanRequest {
            limit: 1_200,
            reverse,
            ..Default::default()
        };
        let mut seen = Vec::new();
        loop {
            let portions = scan(&node, request.clone()).await;
            seen.extend(keys(&portions).into_iter().map(<[u8]>::to_vec));
            let last = portions.last().unwrap();
            request.as_of = last.resume_as_of;
            request.border = last.resume_border.clone();
            request.range = last.resume.clone();
            if request.range.is_none() {
                break;
            }
            assert_eq!(keys(&portions).len(), 1_200);
        }
        assert_eq!(seen.len(), 3_500, "reverse: {reverse}");
        assert!(if reverse {
            seen.is_sorted_by(|a, b| a > b)
        } else {
            seen.is_sorted()
        });
    }

    let prefix = v1::ScanRequest {
        prefix: "0000".into(),
        keys_only: true,
        ..Default::default()
    };
    assert_eq!(keys(&scan(&node, prefix).await).len(), 100);
    let bytes = v1::ScanRequest {
        limit_bytes: 100,
        ..Default::default()
    };
    assert_eq!(keys(&scan(&node, bytes).await).len(), 6, "of 16 bytes each");
}

#[tokio::test]
async fn a_scan_goes_over_shards_cut_by_cut_and_one_cut_ends_with_its_shard() {
    let node = start(IdentityCell::of(identity(2))).await;
    fill(&node, 3_500, 10);
    *node.fake.border.lock().unwrap() = Some("001500".into());
    let all = scan(&node, v1::ScanRequest::default()).await;
    let sizes = all.iter().map(|portion| portion.items.len());
    assert_eq!(sizes.collect::<Vec<_>>(), [1_000, 500, 1_000, 1_000]);
    assert!(keys(&all).is_sorted());
    let goes_on = all.iter().map(|portion| portion.resume_as_of);
    assert_eq!(goes_on.collect::<Vec<_>>(), [555, 0, 555, 0]);
    let calls = node.fake.calls.lock().unwrap().clone();
    let stamps = calls.iter().map(|call| match &call.request {
        Request::Scan(scan) => scan.cut.as_ref().map(|cut| cut.as_of),
        other => panic!("{other:?}"),
    });
    let first = Some(Timestamp(555));
    assert_eq!(stamps.collect::<Vec<_>>(), [None, first, None, first]);

    let one_cut = v1::ScanRequest {
        one_cut: true,
        ..Default::default()
    };
    let portions = scan(&node, one_cut).await;
    assert_eq!(keys(&portions).len(), 1_500);
    let resume = portions[1].resume.clone().unwrap();
    assert_eq!(
        (&resume.start[..], portions[1].resume_as_of),
        (&b"001500"[..], 0)
    );
    // A limit of bytes is one of the whole scan, not of each shard.
    let bytes = v1::ScanRequest {
        limit_bytes: 16 * 4,
        range: Some(v1::KeyRange {
            start: "001498".into(),
            end: Bytes::new(),
        }),
        ..Default::default()
    };
    assert_eq!(keys(&scan(&node, bytes).await).len(), 4, "of 16 bytes each");
}

#[tokio::test]
async fn a_slow_reader_bounds_what_is_read_for_it() {
    let node = start(IdentityCell::of(identity(2))).await;
    fill(&node, 2_000, 100_000);
    let endpoint = tonic::transport::Endpoint::new(format!("http://{}", node.clients)).unwrap();
    let channel = endpoint
        .initial_stream_window_size(64 * 1024)
        .connect()
        .await
        .unwrap();
    let mut client = KvClient::new(channel);
    let mut portions = client
        .scan(v1::ScanRequest::default())
        .await
        .unwrap()
        .into_inner();
    portions.message().await.unwrap().unwrap();
    // Other calls on the same connection go on, and are the measure of time.
    for _call in 0..100 {
        let get = v1::GetRequest {
            key: "000001".into(),
            ..Default::default()
        };
        client.get(get).await.unwrap();
    }
    let read = node.fake.pages.load(Ordering::SeqCst);
    assert!(read <= 4, "{read} of 1,000 portions were read");
    portions.message().await.unwrap().unwrap();
}

// ---- the end ----

#[tokio::test]
async fn a_closing_door_lets_work_end_within_its_grace() {
    let node = start_with(
        IdentityCell::of(identity(2)),
        10,
        Duration::from_millis(300),
    )
    .await;
    let remote = GrpcChannel::of_client().address(&node.clients.to_string());
    let hanging = tokio::spawn(remote.call(call(put("hang", "v"))));
    node.fake.hanging.notified().await;
    let channel = GrpcChannel::of_node(IdentityCell::of(identity(1)));
    channel.learn(node.member());
    let requests = stream::iter([append(1)]).chain(stream::pending()).boxed();
    let mut appends = channel
        .node(NodeId(2))
        .append(route(GroupId::Placement), requests);
    assert!(appends.next().await.unwrap().is_ok());

    node.stop.cancel();
    let ended = appends.next().await.unwrap();
    assert!(matches!(ended, Err(Error::Unavailable { .. })), "{ended:?}");
    assert!(!hanging.is_finished());
    for served in node.served {
        served.await.unwrap().unwrap();
    }
    let cut_off = hanging.await.unwrap().unwrap_err();
    assert!(matches!(cut_off, Error::Unknown { .. }), "{cut_off:?}");
    assert!(
        TcpStream::connect(node.clients).await.is_err(),
        "nobody listens any more"
    );
}
