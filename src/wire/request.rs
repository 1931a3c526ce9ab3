//! Every request that a node answers, as one closed enum, and the two traits that carry them.
//! Decides only.
//!
//! [`Service`] is what a node can be asked. It is implemented three times: by the node itself
//! (`server/handler.rs`), by the network's sending end for a remote node, and by a simulated one.
//! [`Channel`] finds the [`Service`] of a node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::error::Result;
use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Incarnation;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::key::Anchor;
use crate::types::keyspace::Definition;
use crate::types::keyspace::KeyspaceName;
use crate::types::log::LogEntry;
use crate::types::log::Vote;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::node::Room;
use crate::types::overview::Arrangement;
use crate::types::overview::Explained;
use crate::types::overview::Overview;
use crate::types::placement::Orders;
use crate::types::placement::PlacementAnswer;
use crate::types::placement::PlacementCommand;
use crate::types::report::Report;
use crate::types::request::Answered;
use crate::types::request::KeyValue;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteOutcome;
use crate::types::shard::Link;
use crate::types::shard::ShardDescriptor;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;

/// What a node can be asked.
pub trait Service: Send + Sync + 'static {
    /// One request, one answer. Cancel-safe: a dropped call may have happened.
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>>;

    /// Log entries for one replica, pipelined: answers come in the order of the requests, and the
    /// first error ends the stream. At most [`APPENDS_IN_FLIGHT_MAX`] requests are taken from
    /// `requests` before their answers have come out.
    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>>;

    /// A whole snapshot for one replica. The answer comes when it is installed or refused.
    fn snapshot(
        &self,
        snapshot: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>>;

    /// How much room the node's disk has; said beside answers to appends. `None`: not known.
    fn room(&self) -> Option<Room> {
        None
    }
}

/// Appends of one replica that may wait for their answer. Full: no more are taken from the sender.
pub const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// Finds nodes.
pub trait Channel: Send + Sync + 'static {
    /// The node of that id; calls fail with `Unavailable` while its address is not known.
    fn node(&self, id: NodeId) -> Arc<dyn Service>;

    /// Whoever listens at `host:port`: used before nodes have ids.
    fn address(&self, address: &str) -> Arc<dyn Service>;

    /// Learns where a node is, or that it has moved.
    fn learn(&self, member: Member);

    /// How much room a node's disk has, by its last answer to a heartbeat. `None`: not known, or its
    /// connection has broken since.
    fn room(&self, _node: NodeId) -> Option<Room> {
        None
    }
}

/// A request with what holds for every kind of it.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// How long the answer may take.
    pub deadline: Duration,
    /// Whether another node sent it on: then it is not sent on again.
    pub forwarded: bool,
    /// The cluster that the caller means; clients may leave it open.
    pub cluster: Option<ClusterId>,
}

/// The request kinds. Keys, values and limits are checked by the receiver.
#[derive(Debug, Clone)]
pub enum Request {
    /// One key.
    Get(Get),
    /// Several keys, each as [`Request::Get`].
    BatchGet(BatchGet),
    /// A portion of a range.
    Scan(Scan),
    /// A change.
    Write(Write),
    /// What is asked of keys in the words of a keyspace. From a client: nodes ask each other for stored keys.
    Within(Within),
    /// What the node knows of itself and the cluster.
    Status(StatusQuery),
    /// Hand a group's leadership over.
    TransferLeader(TransferLeader),
    /// Cut a shard in two.
    SplitShard(SplitShard),
    /// From which position on a follower's read is linearizable. For the group's leader.
    ReadPosition(GroupId),
    /// Raft: asks for a vote, or whether one would be given.
    Vote(Route, VoteRequest),
    /// Raft: one append outside the pipeline; a heartbeat.
    Append(Route, AppendRequest),
    /// Raft: the term that the receiver is in.
    Term(Route),
    /// Raft: the receiver shall lead.
    TakeLead(Route, TakeLead),
    /// Forming a cluster.
    Form(FormRequest),
    /// Becoming a member of a cluster.
    Join(JoinRequest),
    /// A change of placement's state. For its group's leader.
    Placement(PlacementCommand),
    /// How a node does and what has changed there. For the leader of placement's group.
    Report(Box<Report>),
    /// What placement sees and does.
    Overview(OverviewQuery),
    /// Why a shard is where it is.
    Explain(ShardId),
    /// What a person wants of placement.
    Arrange(Arrangement),
    /// Which keyspaces there are, in the words of placement's leader.
    ListKeyspaces,
    /// Which shard holds a key, or begins with the empty one, as far as the node knows.
    Locate(Key),
    /// Every route that the node knows behind its change of this number; waits for one, for half of
    /// the deadline. 0: all, at once. The numbers are of one node since its start; over the network
    /// it is always 0.
    Routes(u64),
    /// A replica that shall be on the receiving node, with nothing in it yet.
    CreateReplica(CreateReplica),
    /// Whether a replica belongs to its shard. For the shard's leader.
    Membership(ReplicaName),
    /// A replica on the receiving node has left its shard: a hint to ask.
    ReplicaLeft(ReplicaName),
    /// Give a shard a further replica. For the shard's leader.
    AddReplica(AddReplica),
    /// Take a replica from a shard. For the shard's leader.
    RemoveReplica(ReplicaName),
    /// About the state of a replica on the receiving node, to compare it with others.
    CheckReplica(ReplicaName, Check),
    /// Between those who make one shard of two.
    Merge(MergeRequest),
}

impl Request {
    /// The identity of a write; everything else has none.
    pub fn write_id(&self) -> Option<RequestId> {
        match self {
            Request::Write(write)
            | Request::Within(Within {
                request: KeyRequest::Write(write),
                ..
            }) => Some(write.id),
            _ => None,
        }
    }

    /// How it reads keys; `None` when it reads none, or it is not known here where they are stored.
    pub fn read_kind(&self) -> Option<ReadKind> {
        match self {
            Request::Get(get) => Some(get.read),
            Request::BatchGet(get) => Some(get.read),
            Request::Scan(scan) => Some(scan.read),
            Request::Write(_)
            | Request::SplitShard(_)
            | Request::Status(_)
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
            | Request::Merge(_) => None,
        }
    }

    /// Where the shard is that a request is for; `None` where it is for no shard, or for a group by
    /// name. A batch of keys may be for further shards.
    pub fn anchor(&self) -> Option<Anchor<'_>> {
        match self {
            Request::Get(get) => Some(Anchor::At(&get.key)),
            Request::BatchGet(get) => get.keys.first().map(|key| Anchor::At(key)),
            Request::Scan(scan) => Some(scan.anchor()),
            Request::Write(write) => Some(Anchor::At(write.first_key())),
            Request::SplitShard(split) => Some(Anchor::At(&split.at)),
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
            | Request::Merge(_) => None,
        }
    }
}

/// The answers, one kind for each request kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To [`Request::Get`].
    Get(Option<Versioned>, Answered),
    /// To [`Request::BatchGet`]: in the order asked, and one [`Answered`] for each part that was read
    /// as of one moment.
    BatchGet(Vec<Option<Versioned>>, Vec<Answered>),
    /// To [`Request::Scan`].
    Scan(Page),
    /// To [`Request::Write`].
    Write(WriteOutcome, Answered),
    /// To [`Request::Status`].
    Status(Box<NodeStatus>),
    /// To [`Request::TransferLeader`].
    TransferLeader,
    /// To [`Request::SplitShard`].
    SplitShard {
        /// The keys below the cut, under the id of the shard that was cut.
        left: ShardDescriptor,
        /// The keys from the cut on, under a new id.
        right: ShardDescriptor,
    },
    /// To [`Request::ReadPosition`].
    ReadPosition(Position),
    /// To [`Request::Vote`].
    Vote(VoteResponse),
    /// To [`Request::Append`].
    Append(AppendResponse),
    /// To [`Request::Term`]: the last term in which the replica voted or followed; 0: none yet.
    Term(u64),
    /// To [`Request::TakeLead`]: refused or not.
    TakeLead(bool),
    /// To [`Request::Form`].
    Form(FormResponse),
    /// To [`Request::Join`].
    Join(JoinResponse),
    /// To [`Request::Placement`].
    Placement(PlacementAnswer),
    /// To [`Request::Report`]: everything reported is recorded.
    Report(Orders),
    /// To [`Request::Overview`].
    Overview(Box<Overview>),
    /// To [`Request::Explain`].
    Explain(Box<Explained>),
    /// To [`Request::Arrange`]: it is recorded.
    Arrange,
    /// To [`Request::ListKeyspaces`]: by name, deleted ones too.
    Keyspaces(Vec<Definition>),
    /// To [`Request::Locate`].
    Locate(ShardRoute),
    /// To [`Request::Routes`]: the number to ask on from, and the routes.
    Routes(u64, Vec<ShardRoute>),
    /// To [`Request::CreateReplica`].
    CreateReplica(Creation),
    /// To [`Request::Membership`]: also the shard, or the one that has absorbed it, as its leader knows it.
    Membership(Standing, ShardDescriptor),
    /// To [`Request::ReplicaLeft`]: heard.
    ReplicaLeft,
    /// To [`Request::AddReplica`]: the shard with the replica.
    AddReplica(ShardDescriptor),
    /// To [`Request::RemoveReplica`]: the shard without the replica.
    RemoveReplica(ShardDescriptor),
    /// To [`Request::CheckReplica`].
    CheckReplica(Checked),
    /// To [`Request::Merge`].
    Merge(MergeReply),
}

/// What is asked about a replica's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The hashes of what it has applied, at the positions that it remembers.
    Chains,
    /// A hash of what it has stored for some keys.
    Portion(Portion),
    /// It is not as the others are: it shall stop serving, and be rebuilt.
    Quarantine,
}

/// A part of a shard's state as of one moment, the same on all replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The keys.
    pub range: KeyRange,
    /// Nothing above this stamp counts.
    pub as_of: Timestamp,
    /// Of what was replaced before this stamp nothing counts.
    pub floor: Timestamp,
}

/// The answer to a [`Check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// To [`Check::Chains`]: rising positions, none before anything was applied.
    Chains(Vec<Link>),
    /// To [`Check::Portion`].
    Portion(u64),
    /// To [`Check::Portion`]: it cannot read what it has stored.
    Unreadable,
    /// It serves nothing; to any of them.
    Quarantined,
}

/// Reads one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// The key.
    pub key: Key,
    /// How fresh.
    pub read: ReadKind,
}

/// Reads several keys. Those of one shard are as of one moment of it; those of several are as of
/// several moments, each after the request was sent if the read is linearizable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchGet {
    /// The keys.
    pub keys: Vec<Key>,
    /// How fresh.
    pub read: ReadKind,
}

/// Reads a portion of a range in order of keys: at most what one shard holds of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The keys.
    pub range: KeyRange,
    /// Keys at most; at least 1.
    pub keys_max: u32,
    /// Bytes of keys and values at most; at least one key is returned.
    pub bytes_max: u32,
    /// From the end of the range backwards.
    pub reverse: bool,
    /// Without values.
    pub keys_only: bool,
    /// How fresh.
    pub read: ReadKind,
    /// Go on with this cut, which an earlier portion named.
    pub cut: Option<Cut>,
}

/// One cut of a shard that is read in portions. What comes to the shard meanwhile is no part of it: writes from
/// before the cut may be there above its stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The stamp as of which all of it is read.
    pub as_of: Timestamp,
    /// The key at which it ends, and backwards the one at which it begins; `None`: where the shard does. Of
    /// stored keys, in every keyspace.
    pub border: Option<Key>,
}

impl Cut {
    /// All that a shard has, as it was at a stamp.
    pub fn at(as_of: Timestamp) -> Cut {
        Cut {
            as_of,
            border: None,
        }
    }
}

impl Scan {
    /// Where the shard is that answers first.
    pub fn anchor(&self) -> Anchor<'_> {
        if self.reverse && !self.range.is_empty() {
            Anchor::Before(self.range.end.as_deref())
        } else {
            Anchor::At(&self.range.start)
        }
    }

    /// The cut that what this scan leaves of its range belongs to.
    pub fn cut_at(&self, as_of: Timestamp) -> Cut {
        let border = match self.reverse {
            true => Some(self.range.start.clone()),
            false => self.range.end.clone(),
        };
        Cut {
            as_of,
            border: border.filter(|border| !border.is_empty()),
        }
    }
}

/// A portion of a range, out of one shard. A cut is of one shard: a range over several is read as
/// several cuts, one after the other, each linearizable by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// What was found.
    pub items: Vec<KeyValue>,
    /// What is left of the whole range that was asked for; `None` at its end.
    pub rest: Option<KeyRange>,
    /// The stamp at which all of this portion was read.
    pub as_of: Timestamp,
    /// The cut with which `rest` goes on. `None` when nothing is left, or when it begins in another
    /// shard, and so with a new cut.
    pub rest_cut: Option<Cut>,
    /// By whom.
    pub answered: Answered,
    /// How it is to be taken; set in a hash keyspace alone.
    pub unordered: Option<Unordered>,
}

/// A portion of a hash keyspace: its keys come bucket by bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unordered {
    /// Where `rest` goes on, as [`Within::resume`] of the next request. Means nothing but to nodes.
    pub resume: Option<Key>,
}

/// What is asked of the keys of a keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    /// The keyspace.
    pub keyspace: KeyspaceName,
    /// What is asked.
    pub request: KeyRequest,
    /// Where a scan or the removal of a range goes on, in the words of an earlier answer.
    pub resume: Option<Key>,
}

/// What can be asked of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRequest {
    /// One key.
    Get(Get),
    /// Several keys.
    BatchGet(BatchGet),
    /// A portion of a range.
    Scan(Scan),
    /// A change.
    Write(Write),
}

impl KeyRequest {
    /// The request for these keys as they are, or as keys of a keyspace.
    pub fn of(self, keyspace: Option<KeyspaceName>, resume: Option<Key>) -> Request {
        if let Some(keyspace) = keyspace {
            return Request::Within(Within {
                keyspace,
                request: self,
                resume,
            });
        }
        match self {
            KeyRequest::Get(get) => Request::Get(get),
            KeyRequest::BatchGet(get) => Request::BatchGet(get),
            KeyRequest::Scan(scan) => Request::Scan(scan),
            KeyRequest::Write(write) => Request::Write(write),
        }
    }
}

/// Asks a node for its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusQuery {
    /// Whether each shard's whole state is read and hashed, to compare replicas.
    pub state_hash: bool,
}

/// Hands leadership over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLeader {
    /// The group.
    pub group: GroupId,
    /// The next leader's node; `None` lets the leader choose.
    pub to: Option<NodeId>,
}

/// Cuts a shard in two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitShard {
    /// The shard.
    pub shard: ShardId,
    /// First key of the right half; inside the shard and not its first key.
    pub at: Key,
}

/// From which replica to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// Their group.
    pub group: GroupId,
    /// Sender.
    pub from: ReplicaId,
    /// Receiver.
    pub to: ReplicaId,
}

/// Raft's request for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRequest {
    /// The vote wanted.
    pub vote: Vote,
    /// Where the candidate's log ends.
    pub last: Option<Position>,
    /// Whether the old leader has asked for this election.
    pub leadership_transfer: bool,
    /// Only asks whether the vote would be given.
    pub pre_vote: bool,
}

/// Raft's answer to a request for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteResponse {
    /// The voter's vote after the request.
    pub vote: Vote,
    /// Where the voter's log ends.
    pub last: Option<Position>,
    /// Whether the vote was given.
    pub granted: bool,
}

/// Raft's append of entries; without entries a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendRequest {
    /// The leader's vote.
    pub vote: Vote,
    /// The entry before the first.
    pub previous: Option<Position>,
    /// In order, without gaps.
    pub entries: Vec<LogEntry>,
    /// What the leader knows to be committed.
    pub committed: Option<Position>,
}

/// Raft's answer to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendResponse {
    /// The logs are equal up to here.
    Matched(Option<Position>),
    /// The logs differ at this place.
    Conflict(Position),
    /// The receiver has seen a later vote.
    HigherVote(Vote),
}

/// Raft's request to take over the leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeLead {
    /// The vote of the leader that leaves.
    pub vote: Vote,
    /// The next leader.
    pub to: ReplicaId,
    /// What its log must at least hold.
    pub last: Option<Position>,
    /// It is only asked whether it would.
    pub only_asked: bool,
}

/// What comes before the chunks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// From whom to whom.
    pub route: Route,
    /// The sending leader's vote.
    pub vote: Vote,
    /// The last entry that the snapshot contains.
    pub position: Option<Position>,
    /// Where that membership stood.
    pub membership_position: Option<Position>,
    /// The membership in force there, encoded by `raft/`.
    pub membership: Bytes,
}

/// One listed node as it introduces itself while the cluster forms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Founder {
    /// Its name in `--initial-cluster`.
    pub name: String,
    /// Its data directory's random number.
    pub incarnation: Incarnation,
    /// `host:port` for other nodes, from the list.
    pub node_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

/// What one node tells another while the cluster forms: all it knows. Repeated until formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormRequest {
    /// `--initial-cluster-token`.
    pub token: String,
    /// Hash of the names and addresses in the sender's `--initial-cluster`.
    pub list: ClusterId,
    /// Who sends.
    pub from: Founder,
    /// The hash of the complete list that the sender has confirmed and synced.
    pub confirmed: Option<ClusterId>,
}

/// The receiver's own state, as it would send it, and the list of a formed cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormResponse {
    /// Still forming.
    Forming(FormRequest),
    /// The cluster is formed of exactly these, in this order.
    Formed {
        /// The token with which it was formed.
        token: String,
        /// Its id.
        cluster: ClusterId,
        /// Its first nodes.
        founders: Vec<Founder>,
    },
}

/// Asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The token with which the cluster was formed.
    pub token: String,
    /// Who asks.
    pub newcomer: Newcomer,
}

/// The node that asked is a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinResponse {
    /// Its id.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The cluster's first nodes, in the order of their ids.
    pub founders: Vec<Founder>,
    /// Every member known to the node that answers.
    pub members: Vec<Member>,
}

/// What is wanted of an overview.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OverviewQuery {
    /// Whether the shards are listed.
    pub shards: bool,
}

/// Orders a replica that begins with nothing: its group's log or a snapshot fills it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateReplica {
    /// The shard as the sender knows it.
    pub descriptor: ShardDescriptor,
    /// The replica. It is on this node or never was anywhere.
    pub replica: ReplicaId,
}

/// What became of an order for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It is there and takes its group's messages.
    Open,
    /// It has ended there, and will not be again.
    Gone,
    /// Another replica there still holds some of its keys: one that has not applied a split yet, or is
    /// about to be destroyed. Ask again.
    NotYet,
}

/// A replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaName {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
}

/// Whether a replica belongs to its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a voter or a learner.
    Member,
    /// It is neither, but it is being added, or was a moment ago: it may become one.
    NotYet,
    /// It is neither and never will be.
    Stranger,
    /// The shard has ended: another one has absorbed it, and these too.
    Absorbed(Vec<ShardId>),
}

/// Gives a shard a further replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddReplica {
    /// The shard.
    pub shard: ShardId,
    /// The node that gets it.
    pub node: NodeId,
}

/// Where a shard is, as somebody knows it: a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRoute {
    /// The shard.
    pub shard: ShardDescriptor,
    /// The node that leads it, if known.
    pub leader: Option<NodeId>,
}

/// What a node says about itself and what it knows of its cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Itself.
    pub member: Member,
    /// Version of its program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether it may be sent traffic.
    pub ready: bool,
    /// Free bytes on the disk with its data.
    pub free_bytes: u64,
    /// Every group with a replica here.
    pub groups: Vec<GroupStatus>,
    /// Every node that it knows.
    pub members: Vec<Member>,
}

/// What a node knows of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The replica here.
    pub replica: ReplicaId,
    /// What the replica does: `leader`, `follower`, `candidate`, `learner`, or `failed`.
    pub role: String,
    /// The node that leads, as far as the replica knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// End of its log.
    pub last_index: u64,
    /// What it has applied.
    pub applied_index: u64,
    /// Where its log begins: what is purged.
    pub purged_index: u64,
    /// The shard's range, epoch and replicas, where the group is a shard's.
    pub shard: Option<ShardDescriptor>,
    /// A hash of the replica's whole state at `applied_index`, when it was asked for.
    pub state_hash: Option<u64>,
}
