//! Questions about the cluster, and orders to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::client::sender::Sender;
use crate::client::shards::Shards;
use crate::error::Error;
use crate::error::Result;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::keyspace::Definition;
use crate::types::node::Member;
use crate::types::overview::Arrangement;
use crate::types::overview::Explained;
use crate::types::overview::Overview;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::AddReplica;
use crate::wire::request::GroupStatus;
use crate::wire::request::NodeStatus;
use crate::wire::request::OverviewQuery;
use crate::wire::request::ReplicaName;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::SplitShard;
use crate::wire::request::StatusQuery;
use crate::wire::request::TransferLeader;

/// What every node that can be asked says, and which could not.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterStatus {
    /// By node; at least one.
    pub nodes: BTreeMap<NodeId, NodeStatus>,
    /// Members that did not answer, and why.
    pub silent: BTreeMap<NodeId, (Member, Error)>,
    /// Addresses given by the caller at which nobody answered, and why.
    pub unreachable: BTreeMap<String, Error>,
}

/// One shard as all nodes together see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardView {
    /// As the node that knows the newest epoch has it.
    pub shard: ShardDescriptor,
    /// The node that leads, in the newest term that anyone knows.
    pub leader: Option<NodeId>,
    /// Its copies, in the order of the descriptor.
    pub replicas: Vec<ReplicaView>,
}

/// One copy of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaView {
    /// The copy and its node.
    pub replica: Replica,
    /// What it does, as in [`GroupStatus::role`]; `None` when its node says nothing of it.
    pub role: Option<String>,
}

impl ClusterStatus {
    /// Every shard of which a node has told, in the order of their keys. Nodes that are late do not
    /// count against newer ones. There are gaps where no node has told.
    pub fn shards(&self) -> Vec<ShardView> {
        let mut shards = Shards::default();
        let groups = self.nodes.values().flat_map(|node| &node.groups);
        for shard in groups.filter_map(|group| group.shard.clone()) {
            shards.learn(shard);
        }
        shards.iter().map(|shard| self.view_of(shard)).collect()
    }

    fn view_of(&self, shard: &ShardDescriptor) -> ShardView {
        let replicas = shard.replicas.iter().map(|replica| ReplicaView {
            replica: *replica,
            role: self.role_of(shard.id, *replica),
        });
        ShardView {
            leader: self.leader_of(GroupId::Shard(shard.id)),
            replicas: replicas.collect(),
            shard: shard.clone(),
        }
    }

    fn role_of(&self, shard: ShardId, replica: Replica) -> Option<String> {
        let mut groups = self.nodes.get(&replica.node)?.groups.iter();
        let is_it = |group: &&GroupStatus| {
            group.group == GroupId::Shard(shard) && group.replica == replica.id
        };
        Some(groups.find(is_it)?.role.clone())
    }

    /// Only the newest term counts: a leader that was cut off does not know yet that it is none any more.
    fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let groups = self.nodes.values().flat_map(|node| &node.groups);
        let seen: Vec<&GroupStatus> = groups.filter(|seen| seen.group == group).collect();
        let term = seen.iter().map(|seen| seen.term).max()?;
        let mut newest = seen.iter().filter(|seen| seen.term == term);
        newest.find_map(|seen| seen.leader)
    }
}

/// The cluster as such. Cloning shares connections and routes.
#[derive(Clone)]
pub struct Admin {
    sender: Arc<Sender>,
}

impl Admin {
    /// Over the sender given.
    pub fn new(sender: Arc<Sender>) -> Admin {
        Admin { sender }
    }

    /// What one node knows: whichever answers first in turn. Cancel-safe.
    pub async fn status(&self, deadline: Option<Duration>) -> Result<NodeStatus> {
        match self
            .sender
            .send(Request::Status(StatusQuery::default()), deadline)
            .await?
        {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node at `address` says of itself; asked once. Cancel-safe.
    pub async fn status_of(&self, address: &str, deadline: Duration) -> Result<NodeStatus> {
        match self
            .sender
            .ask(address, Request::Status(StatusQuery::default()), deadline)
            .await?
        {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks every address given and every member that those name, each once, `each` long at most.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The first error when nobody at all answers.
    pub async fn cluster(&self, each: Duration) -> Result<ClusterStatus> {
        let given = self.sender.addresses();
        let mut cluster = ClusterStatus {
            nodes: BTreeMap::new(),
            silent: BTreeMap::new(),
            unreachable: BTreeMap::new(),
        };
        for (address, answer) in self.ask_all(given, each).await {
            match answer {
                Ok(status) => {
                    cluster.nodes.insert(status.member.id, status);
                }
                Err(error) => {
                    cluster.unreachable.insert(address, error);
                }
            }
        }
        if cluster.nodes.is_empty() {
            let first = cluster.unreachable.into_values().next();
            return Err(first.unwrap_or_else(|| Error::unavailable("the cluster", "no address")));
        }
        let missing = missing_members(&cluster);
        let addresses = missing.iter().map(|member| member.client_address.clone());
        let answers = self.ask_all(addresses.collect(), each).await;
        for (member, (_, answer)) in missing.into_iter().zip(answers) {
            match answer {
                // Another node at the member's address is not the member.
                Ok(status) if status.member.id != member.id => {
                    let error = Error::unavailable(member.id, "another node answers there");
                    cluster.silent.insert(member.id, (member, error));
                }
                Ok(status) => {
                    cluster.nodes.insert(status.member.id, status);
                }
                Err(error) => {
                    cluster.silent.insert(member.id, (member, error));
                }
            }
        }
        Ok(cluster)
    }

    /// Hands a group's leadership to the node `to`, or to one that the leader chooses. Sent again it
    /// does no harm, so an uncertain attempt is repeated. Cancel-safe.
    pub async fn transfer_leader(
        &self,
        group: GroupId,
        to: Option<NodeId>,
        deadline: Option<Duration>,
    ) -> Result<()> {
        let request = Request::TransferLeader(TransferLeader { group, to });
        match self.sender.send(request, deadline).await? {
            Response::TransferLeader => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Every shard of which a node tells within `each`, in the order of their keys: see
    /// [`ClusterStatus::shards`]. Cancel-safe.
    ///
    /// # Errors
    /// The first error when nobody at all answers.
    pub async fn shards(&self, each: Duration) -> Result<Vec<ShardView>> {
        Ok(self.cluster(each).await?.shards())
    }

    /// Cuts a shard in two at `at`, the first key of the right half, and gives the left and the right
    /// half. After an error the cut may have been made all the same: look at [`Admin::shards`]. May
    /// have happened when dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the key is not inside the shard, or its first.
    pub async fn split_shard(
        &self,
        shard: ShardId,
        at: Key,
        deadline: Option<Duration>,
    ) -> Result<(ShardDescriptor, ShardDescriptor)> {
        let request = Request::SplitShard(SplitShard { shard, at });
        match self.sender.send(request, deadline).await? {
            Response::SplitShard { left, right } => Ok((left, right)),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives a shard a further replica, on `node`, and waits until it is a voter. Sent again it joins what
    /// is under way, so an uncertain attempt is repeated. A dropped call goes on.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the node has a replica of the shard already.
    pub async fn add_replica(
        &self,
        shard: ShardId,
        node: NodeId,
        deadline: Option<Duration>,
    ) -> Result<ShardDescriptor> {
        let request = Request::AddReplica(AddReplica { shard, node });
        match self.sender.send(request, deadline).await? {
            Response::AddReplica(shard) => Ok(shard),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a replica from a shard; one that is not there any more is no error. Sent again it joins what
    /// is under way. A dropped call goes on.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is the last voter.
    pub async fn remove_replica(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        deadline: Option<Duration>,
    ) -> Result<ShardDescriptor> {
        let request = Request::RemoveReplica(ReplicaName { shard, replica });
        match self.sender.send(request, deadline).await? {
            Response::RemoveReplica(shard) => Ok(shard),
            other => Err(unexpected(&other)),
        }
    }

    /// What placement sees and does; the shards only if asked for. Cancel-safe.
    pub async fn overview(
        &self,
        query: OverviewQuery,
        deadline: Option<Duration>,
    ) -> Result<Overview> {
        let request = Request::Overview(query);
        match self.sender.send(request, deadline).await? {
            Response::Overview(overview) => Ok(*overview),
            other => Err(unexpected(&other)),
        }
    }

    /// Why a shard is where it is, and what holds placement back. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::NotFound`] when placement has not heard of the shard.
    pub async fn explain(&self, shard: ShardId, deadline: Option<Duration>) -> Result<Explained> {
        match self.sender.send(Request::Explain(shard), deadline).await? {
            Response::Explain(explained) => Ok(*explained),
            other => Err(unexpected(&other)),
        }
    }

    /// Says what is wanted of placement. Sent again it does no harm, so an uncertain attempt is repeated. A
    /// dropped call may have been recorded.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it makes no sense, [`Error::NotFound`] when what it is about is not there.
    pub async fn arrange(
        &self,
        arrangement: Arrangement,
        deadline: Option<Duration>,
    ) -> Result<()> {
        match self
            .sender
            .send(Request::Arrange(arrangement), deadline)
            .await?
        {
            Response::Arrange => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The keyspaces by name, deleted ones too. Cancel-safe.
    pub async fn keyspaces(&self, deadline: Option<Duration>) -> Result<Vec<Definition>> {
        match self.sender.send(Request::ListKeyspaces, deadline).await? {
            Response::Keyspaces(keyspaces) => Ok(keyspaces),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_all(
        &self,
        addresses: Vec<String>,
        each: Duration,
    ) -> Vec<(String, Result<NodeStatus>)> {
        let questions = addresses.into_iter().map(|address| async move {
            let answer = self.status_of(&address, each).await;
            (address, answer)
        });
        join_all(questions).await
    }
}

fn missing_members(cluster: &ClusterStatus) -> Vec<Member> {
    let mut missing: BTreeMap<NodeId, Member> = BTreeMap::new();
    for member in cluster.nodes.values().flat_map(|node| &node.members) {
        if !cluster.nodes.contains_key(&member.id) {
            missing.insert(member.id, member.clone());
        }
    }
    missing.into_values().collect()
}

fn unexpected(answer: &Response) -> Error {
    Error::Internal(format!("the question was answered with {answer:?}"))
}
