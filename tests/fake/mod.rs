//! A cluster of three nodes over one store in memory, for tests of the client and the command line. It
//! answers as a real one does, and goes wrong as told.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod keyspaces;
mod placement;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::stream::StreamExt;
pub(crate) use placement::Placement;
use quorate::error::Error;
use quorate::error::Result;
use quorate::types::ClusterId;
use quorate::types::GroupId;
use quorate::types::Incarnation;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::key::Anchor;
use quorate::types::keyspace::Definition;
use quorate::types::log::Vote;
use quorate::types::node::Member;
use quorate::types::request::Answered;
use quorate::types::request::Condition;
use quorate::types::request::KeyValue;
use quorate::types::request::Operation;
use quorate::types::request::Versioned;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Cut;
use quorate::wire::request::GroupStatus;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Page;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Scan;
use quorate::wire::request::Service;
use quorate::wire::request::ShardRoute;
use quorate::wire::request::SnapshotHeader;

/// Where the cluster's clock stands at the start.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// The nodes with a replica of placement's group.
const PLACEMENT: RangeInclusive<u64> = 1..=3;

/// How one call goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Refused, nothing done.
    Refuse(Error),
    /// Done, and then nobody answers.
    LoseAnswer,
    /// Not done, and nobody answers.
    Hang,
    /// Nothing goes wrong: the fault behind it is for a later call.
    Pass,
}

/// The whole cluster.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Mutex<State>>);

pub(crate) struct State {
    pub(crate) data: BTreeMap<Key, Versioned>,
    /// Every version that was ever made, in order.
    pub(crate) versions: Vec<(Key, RequestId)>,
    outcomes: HashMap<RequestId, WriteOutcome>,
    pub(crate) stamp: Timestamp,
    /// Leads every shard that has no leader of its own.
    pub(crate) leader: Option<u64>,
    pub(crate) leaders: HashMap<u64, u64>,
    /// In the order of their keys, without gaps.
    pub(crate) shards: Vec<ShardDescriptor>,
    /// Shards are cut here before the page with that number (from 0) is read.
    pub(crate) cuts: BTreeMap<u64, Vec<Key>>,
    pub(crate) down: HashSet<u64>,
    pub(crate) not_ready: HashSet<u64>,
    /// What goes wrong with the next calls, by node.
    pub(crate) faults: HashMap<u64, VecDeque<Fault>>,
    /// What goes wrong with every further write.
    pub(crate) every_write: Option<Fault>,
    /// The first write of this value hangs.
    pub(crate) hang_value: Option<Bytes>,
    /// Puts after which every further one is refused.
    pub(crate) puts_left: Option<u64>,
    /// Pages after which every further one is refused.
    pub(crate) pages_left: Option<u64>,
    /// What placement knows and does.
    pub(crate) placement: Placement,
    /// The keyspaces, in the order in which they were made.
    pub(crate) keyspaces: Vec<Definition>,
    /// Where clients reach the nodes, from node 1 on.
    pub(crate) addresses: Vec<String>,
    /// Node and kind of each call that arrived.
    pub(crate) calls: Vec<String>,
    /// Most calls under way at the same time.
    pub(crate) busiest: usize,
    under_way: usize,
    /// Pages handed out.
    pub(crate) pages: u64,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        Cluster(Arc::new(Mutex::new(State {
            data: BTreeMap::new(),
            versions: Vec::new(),
            outcomes: HashMap::new(),
            stamp: Timestamp::from_wall(START_MS),
            leader: Some(1),
            leaders: HashMap::new(),
            shards: vec![descriptor(1, KeyRange::ALL, 1)],
            cuts: BTreeMap::new(),
            down: HashSet::new(),
            not_ready: HashSet::new(),
            faults: HashMap::new(),
            every_write: None,
            puts_left: None,
            hang_value: None,
            addresses: (1..=3).map(|node| format!("n{node}:7400")).collect(),
            placement: Placement::default(),
            keyspaces: Vec::new(),
            pages_left: None,
            calls: Vec::new(),
            busiest: 0,
            under_way: 0,
            pages: 0,
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn fault(&self, node: u64, fault: Fault) {
        self.state()
            .faults
            .entry(node)
            .or_default()
            .push_back(fault);
    }

    pub(crate) fn store(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let mut state = self.state();
        let id = RequestId([0; 16]);
        let kind = WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![Operation::Put {
                key: key.into(),
                value: value.into(),
            }],
        };
        state.apply(&Write { id, kind });
    }

    /// Lets a shard begin at `at`; it gets the next id.
    pub(crate) fn split(&self, at: impl Into<Bytes>) {
        self.state().split(at.into()).unwrap();
    }

    /// A further node, which holds nothing.
    pub(crate) fn add_node(&self) {
        let mut state = self.state();
        let address = format!("n{}:7400", state.addresses.len() + 1);
        state.addresses.push(address);
    }

    /// Calls that arrived since the last look, as `n1 put n2 get`.
    pub(crate) fn take_calls(&self) -> String {
        std::mem::take(&mut self.state().calls).join(" ")
    }

    pub(crate) fn service(&self, node: u64) -> Arc<dyn Service> {
        Arc::new(Node {
            cluster: self.clone(),
            node,
        })
    }
}

impl Channel for Cluster {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        self.service(id.0)
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        let number = address
            .strip_prefix('n')
            .and_then(|rest| rest.split(':').next());
        self.service(number.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    fn learn(&self, _member: Member) {}
}

struct Node {
    cluster: Cluster,
    node: u64,
}

impl Service for Node {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let (cluster, node) = (self.cluster.clone(), self.node);
        async move {
            let mut guard = UnderWay::enter(&cluster);
            // Lets other calls arrive while this one is under way.
            tokio::task::yield_now().await;
            let answer = cluster.state().answer(node, call);
            match answer {
                Some(answer) => answer,
                None => {
                    guard.leave();
                    futures::future::pending().await
                }
            }
        }
        .boxed()
    }

    fn append(
        &self,
        _route: Route,
        _requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        futures::stream::empty().boxed()
    }

    fn snapshot(
        &self,
        _snapshot: SnapshotHeader,
        _chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        async { Err(Error::unavailable("snapshots", "this is no real node")) }.boxed()
    }
}

struct UnderWay(Option<Cluster>);

impl UnderWay {
    fn enter(cluster: &Cluster) -> UnderWay {
        let mut state = cluster.state();
        state.under_way += 1;
        state.busiest = state.busiest.max(state.under_way);
        drop(state);
        UnderWay(Some(cluster.clone()))
    }

    fn leave(&mut self) {
        if let Some(cluster) = self.0.take() {
            cluster.state().under_way -= 1;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.leave();
    }
}

impl State {
    /// `None`: nobody ever answers.
    fn answer(&mut self, node: u64, call: Call) -> Option<Result<Response>> {
        let kind = match &call.request {
            Request::Get(_) => "get",
            Request::BatchGet(_) => "batch-get",
            Request::Scan(_) => "scan",
            Request::Write(_) => "write",
            Request::Status(_) => "status",
            Request::TransferLeader(_) => "transfer",
            Request::SplitShard(_) => "split",
            Request::Overview(_) => "overview",
            Request::Explain(_) => "explain",
            Request::ListKeyspaces => "keyspaces",
            Request::Within(_) => "within",
            Request::Arrange(_) => "arrange",
            Request::Locate(_) => "locate",
            _ => "other",
        };
        self.calls.push(format!("n{node} {kind}"));
        if !self.nodes().contains(&node) || self.down.contains(&node) {
            return Some(Err(Error::unavailable(
                format!("n{node}:7400"),
                "connection refused",
            )));
        }
        let mut fault = self.faults.get_mut(&node).and_then(VecDeque::pop_front);
        if let Request::Write(write) = &call.request {
            fault = fault.or(self.every_write.clone());
            if self
                .hang_value
                .as_ref()
                .is_some_and(|value| stores(write, value))
            {
                self.hang_value = None;
                fault = Some(Fault::Hang);
            }
            let puts = puts_in(write);
            if fault.is_none() && self.puts_left.is_some_and(|left| left < puts) {
                let reason = "refused for the test";
                return Some(Err(Error::invalid("value", reason)));
            }
            self.puts_left = self.puts_left.map(|left| left - puts);
            if write.id == RequestId([0; 16]) {
                return Some(Err(Error::invalid("request_id", "is missing")));
            }
        }
        if matches!(call.request, Request::Scan(_)) {
            if self.pages_left == Some(0) {
                return Some(Err(Error::Internal("broken for the test".into())));
            }
            self.pages_left = self.pages_left.map(|left| left - 1);
        }
        match fault {
            Some(Fault::Refuse(error)) => Some(Err(error)),
            Some(Fault::Hang) => None,
            Some(Fault::LoseAnswer) => {
                let _ = self.handle(node, call);
                None
            }
            Some(Fault::Pass) | None => Some(self.handle(node, call)),
        }
    }

    fn handle(&mut self, node: u64, call: Call) -> Result<Response> {
        if call.cluster.is_some_and(|cluster| cluster != cluster_id()) {
            return Err(Error::WrongCluster {
                expected: call.cluster.unwrap_or_default(),
                actual: cluster_id(),
            });
        }
        if matches!(call.request, Request::Status(_)) {
            return Ok(Response::Status(Box::new(self.status(node))));
        }
        self.stamp = self.stamp.plus(1);
        match call.request {
            Request::Get(get) => {
                check_key(&get.key)?;
                let answered = self.answered(Anchor::At(&get.key))?;
                let answered = self.read_by(node, answered);
                Ok(Response::Get(self.data.get(&get.key).cloned(), answered))
            }
            Request::BatchGet(get) => {
                let found = get.keys.iter().map(|key| self.data.get(key).cloned());
                let found = found.collect();
                let shards = get.keys.iter().map(|key| self.shard_at(Anchor::At(key)));
                let shards: BTreeSet<usize> = shards.collect();
                let answered = shards.into_iter().map(|at| self.answered_by(at));
                let answered: Vec<Answered> = answered.collect::<Result<_>>()?;
                let answered = answered.into_iter().map(|it| self.read_by(node, it));
                Ok(Response::BatchGet(found, answered.collect()))
            }
            Request::Scan(scan) => {
                for at in self.cuts.remove(&self.pages).unwrap_or_default() {
                    let _ = self.split(at);
                }
                Ok(Response::Scan(self.scan(&scan)?))
            }
            Request::Write(write) => {
                let answered = self.answered(Anchor::At(write.first_key()))?;
                if let WriteKind::Keys { operations, .. } = &write.kind {
                    operations
                        .iter()
                        .try_for_each(|operation| check_key(operation.key()))?;
                    self.check_one_shard(operations)?;
                }
                Ok(Response::Write(self.apply(&write), answered))
            }
            Request::TransferLeader(transfer) => {
                let leader = self.leader.unwrap_or(3);
                let next = transfer.to.map_or(leader % 3 + 1, |node| node.0);
                match transfer.group {
                    GroupId::Shard(shard) if shard.0 > 1 => {
                        self.leaders.insert(shard.0, next);
                    }
                    GroupId::Shard(_) | GroupId::Placement => self.leader = Some(next),
                }
                Ok(Response::TransferLeader)
            }
            Request::SplitShard(split) => {
                let at = self.shard_at(Anchor::At(&split.at));
                if self.shards[at].id != split.shard {
                    return Err(Error::invalid("at", "is in another shard"));
                }
                let (left, right) = self.split(split.at)?;
                Ok(Response::SplitShard { left, right })
            }
            Request::Locate(key) => {
                let shard = self.shards[self.shard_at(Anchor::At(&key))].clone();
                let leader = self.leader_of(shard.id).map(NodeId);
                Ok(Response::Locate(ShardRoute { shard, leader }))
            }
            Request::Overview(query) => self.overview(query),
            Request::Explain(shard) => self.explain(shard),
            Request::Arrange(arrangement) => self.arrange(arrangement),
            Request::ListKeyspaces => Ok(Response::Keyspaces(self.keyspaces.clone())),
            Request::Within(within) => {
                let request = self.stored(&within)?;
                let response = self.handle(node, Call { request, ..call })?;
                self.of_keyspace(&within, response)
            }
            other => Err(Error::invalid("request", format!("{other:?}"))),
        }
    }

    fn shard_at(&self, anchor: Anchor<'_>) -> usize {
        let mut shards = self.shards.iter();
        let found = shards.position(|shard| shard.range.contains(&anchor.key()));
        found.expect("there are no gaps")
    }

    fn leader_of(&self, shard: ShardId) -> Option<u64> {
        let own = self.leaders.get(&shard.0).copied();
        own.or(self.leader)
            .filter(|leader| !self.down.contains(leader))
    }

    fn answered(&self, anchor: Anchor<'_>) -> Result<Answered> {
        self.answered_by(self.shard_at(anchor))
    }

    fn answered_by(&self, at: usize) -> Result<Answered> {
        let shard = self.shards[at].id;
        let Some(leader) = self.leader_of(shard) else {
            return Err(Error::unavailable(shard, "it has no leader"));
        };
        Ok(Answered {
            shard,
            replica: ReplicaId(10 * shard.0 + leader),
            leader: true,
            timestamp: self.stamp,
            as_of: self.stamp,
        })
    }

    /// What a node reads from its own replica, where it has one, and whether or not that leads.
    fn read_by(&self, node: u64, by_leader: Answered) -> Answered {
        let shards = self.shards.iter();
        let mut shard = shards.filter(|shard| shard.id == by_leader.shard);
        let own = shard.find_map(|shard| shard.replica_on(NodeId(node)));
        let replica = own.map_or(by_leader.replica, |own| own.id);
        Answered {
            leader: replica == by_leader.replica,
            replica,
            ..by_leader
        }
    }

    fn check_one_shard(&self, operations: &[Operation]) -> Result<()> {
        let at = self.shard_at(Anchor::At(operations[0].key()));
        let range = &self.shards[at].range;
        let all = operations.iter().all(|one| range.contains(one.key()));
        all.then_some(())
            .ok_or_else(|| Error::invalid("operations", "are for several shards"))
    }

    fn split(&mut self, key: Key) -> Result<(ShardDescriptor, ShardDescriptor)> {
        let at = self.shard_at(Anchor::At(&key));
        let parent = self.shards[at].clone();
        let Some((left, right)) = parent.range.split_at(key) else {
            return Err(Error::invalid("at", "is the first key of its shard"));
        };
        let bounds = parent.epoch.bounds + 1;
        let left = descriptor(parent.id.0, left, bounds);
        let right = descriptor(self.shards.len() as u64 + 1, right, bounds);
        self.shards.splice(at..=at, [left.clone(), right.clone()]);
        Ok((left, right))
    }

    fn apply(&mut self, write: &Write) -> WriteOutcome {
        if let Some(outcome) = self.outcomes.get(&write.id) {
            return outcome.clone();
        }
        self.stamp = self.stamp.plus(1);
        let outcome = match &write.kind {
            WriteKind::Keys {
                conditions,
                operations,
            } => self.apply_keys(write.id, conditions, operations),
            WriteKind::Range { range, limit } => self.delete_range(range, *limit),
        };
        if write.id != RequestId([0; 16]) {
            self.outcomes.insert(write.id, outcome.clone());
        }
        outcome
    }

    fn apply_keys(
        &mut self,
        id: RequestId,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> WriteOutcome {
        for (number, condition) in conditions.iter().enumerate() {
            let found = self.data.get(condition.key());
            let actual = found.map_or(Timestamp::ZERO, |found| found.version);
            let holds = match condition {
                Condition::Version { version, .. } => actual == *version,
                Condition::Value { value, .. } => found.is_some_and(|found| found.value == *value),
                Condition::Exists { .. } => found.is_some(),
            };
            if !holds {
                return WriteOutcome::ConditionFailed {
                    condition: number as u32,
                    actual,
                };
            }
        }
        let version = self.stamp;
        let mut deleted = 0;
        let mut changed = false;
        for operation in operations {
            match operation {
                Operation::Put { key, value } => {
                    let value = value.clone();
                    self.data.insert(key.clone(), Versioned { value, version });
                    self.versions.push((key.clone(), id));
                    changed = true;
                }
                Operation::Delete { key } => {
                    let was_there = self.data.remove(key).is_some();
                    deleted += u32::from(was_there);
                    changed |= was_there;
                }
            }
        }
        WriteOutcome::Done {
            version: if changed { version } else { Timestamp::ZERO },
            deleted,
            resume: None,
        }
    }

    fn delete_range(&mut self, range: &KeyRange, limit: u32) -> WriteOutcome {
        let shard = &self.shards[self.shard_at(Anchor::At(&range.start))].range;
        let part = range.intersect(shard);
        let behind = part.end.clone().filter(|_| part.end != range.end);
        let keys = self.data.keys().filter(|key| part.contains(key));
        let mut keys: Vec<Key> = keys.take(limit as usize + 1).cloned().collect();
        let resume = (keys.len() > limit as usize).then(|| keys.pop()).flatten();
        for key in &keys {
            self.data.remove(key);
        }
        WriteOutcome::Done {
            version: self.stamp,
            deleted: keys.len() as u32,
            resume: resume.or(behind),
        }
    }

    fn scan(&mut self, scan: &Scan) -> Result<Page> {
        self.pages += 1;
        let at = self.shard_at(scan.anchor());
        let answered = self.answered_by(at)?;
        let part = scan.range.intersect(&self.shards[at].range);
        let inside = self.data.iter().filter(|(key, _)| part.contains(key));
        let mut inside: Vec<KeyValue> = inside
            .map(|(key, versioned)| KeyValue {
                key: key.clone(),
                versioned: versioned.clone(),
            })
            .collect();
        if scan.reverse {
            inside.reverse();
        }
        let rest = inside.split_off(inside.len().min(scan.keys_max as usize));
        let rest_here = rest.first().map(|next| KeyRange {
            start: if scan.reverse {
                scan.range.start.clone()
            } else {
                next.key.clone()
            },
            end: if scan.reverse {
                Some(Key::from([&next.key[..], &[0]].concat()))
            } else {
                scan.range.end.clone()
            },
        });
        let rest_elsewhere = if scan.reverse {
            let is_left = part.start != scan.range.start;
            is_left.then(|| KeyRange {
                start: scan.range.start.clone(),
                end: Some(part.start),
            })
        } else {
            let is_left = part.end != scan.range.end;
            is_left.then(|| KeyRange {
                start: part.end.unwrap(),
                end: scan.range.end.clone(),
            })
        };
        if scan.keys_only {
            for item in &mut inside {
                item.versioned.value = Bytes::new();
            }
        }
        let as_of = scan.cut.as_ref().map_or(self.stamp, |cut| cut.as_of);
        Ok(Page {
            items: inside,
            rest_cut: rest_here.is_some().then(|| Cut::at(as_of)),
            rest: rest_here.or(rest_elsewhere),
            as_of,
            answered,
            unordered: None,
        })
    }

    fn nodes(&self) -> RangeInclusive<u64> {
        1..=self.addresses.len() as u64
    }

    fn member(&self, id: u64) -> Member {
        Member {
            id: NodeId(id),
            incarnation: Incarnation([id as u8; 16]),
            name: format!("n{id}"),
            node_address: format!("n{id}:7401"),
            client_address: self.addresses[id as usize - 1].clone(),
        }
    }

    fn status(&self, node: u64) -> NodeStatus {
        let group = |group, leader: Option<u64>, shard: Option<ShardDescriptor>| GroupStatus {
            group,
            replica: match &shard {
                Some(shard) => shard.replica_on(NodeId(node)).unwrap().id,
                None => ReplicaId(node),
            },
            role: if leader == Some(node) {
                "leader".into()
            } else {
                "follower".into()
            },
            leader: leader.map(NodeId),
            term: 3,
            last_index: 12,
            applied_index: 12 - (node - 1),
            purged_index: 2,
            shard,
            state_hash: None,
        };
        let mut groups = vec![group(GroupId::Placement, self.leader, None)];
        if !PLACEMENT.contains(&node) || self.placement.left.contains(&node) {
            groups.clear();
        }
        let held = self.shards.iter();
        let held = held.filter(|shard| shard.replica_on(NodeId(node)).is_some());
        groups.extend(held.map(|shard| {
            let leader = self.leaders.get(&shard.id.0).copied().or(self.leader);
            group(GroupId::Shard(shard.id), leader, Some(shard.clone()))
        }));
        NodeStatus {
            cluster: cluster_id(),
            member: self.member(node),
            version: "0.1.0".into(),
            uptime_s: 61,
            ready: !self.not_ready.contains(&node),
            free_bytes: 1 << 30,
            groups,
            members: self.nodes().map(|node| self.member(node)).collect(),
        }
    }
}

fn descriptor(id: u64, range: KeyRange, bounds: u64) -> ShardDescriptor {
    let replicas = (1..=3).map(|node| Replica {
        id: ReplicaId(10 * id + node),
        node: NodeId(node),
    });
    ShardDescriptor {
        id: ShardId(id),
        range,
        epoch: Epoch { conf: 1, bounds },
        replicas: replicas.collect(),
    }
}

fn puts_in(write: &Write) -> u64 {
    match &write.kind {
        WriteKind::Keys { operations, .. } => operations.len() as u64,
        WriteKind::Range { .. } => 1,
    }
}

fn stores(write: &Write, wanted: &Bytes) -> bool {
    match &write.kind {
        WriteKind::Keys { operations, .. } => operations
            .iter()
            .any(|operation| matches!(operation, Operation::Put { value, .. } if value == wanted)),
        WriteKind::Range { .. } => false,
    }
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("key", "is empty"));
    }
    Ok(())
}

pub(crate) fn cluster_id() -> ClusterId {
    ClusterId([0xc1; 16])
}
