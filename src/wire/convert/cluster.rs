//! Requests and answers of `cluster.proto`. Decides only.

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::node::Member;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wire::convert::Size;
use crate::wire::convert::cluster_bytes;
use crate::wire::convert::cluster_of;
use crate::wire::convert::group_number;
use crate::wire::convert::group_of;
use crate::wire::convert::kv::Meant;
use crate::wire::convert::node_of;
use crate::wire::convert::range_of;
use crate::wire::convert::range_out;
use crate::wire::convert::required;
use crate::wire::convert::sixteen;
use crate::wire::convert::sixteen_bytes;
use crate::wire::proto::v1;
use crate::wire::request::AddReplica;
use crate::wire::request::GroupStatus;
use crate::wire::request::NodeStatus;
use crate::wire::request::ReplicaName;
use crate::wire::request::Response;
use crate::wire::request::SplitShard;
use crate::wire::request::StatusQuery;
use crate::wire::request::TransferLeader;

/// Checks a Status request.
pub fn status_request_of(request: &v1::StatusRequest) -> Result<Meant<StatusQuery>> {
    let query = StatusQuery {
        state_hash: request.state_hash,
    };
    Ok((query, cluster_of(&request.cluster_id)?))
}

/// A Status request as it is sent.
pub fn status_request_out(query: StatusQuery, cluster: Option<ClusterId>) -> v1::StatusRequest {
    v1::StatusRequest {
        state_hash: query.state_hash,
        cluster_id: cluster_bytes(cluster),
    }
}

/// Checks a TransferLeader.
pub fn transfer_of(request: &v1::TransferLeaderRequest) -> Result<Meant<TransferLeader>> {
    let transfer = TransferLeader {
        group: group_of(request.group),
        to: node_of(request.to),
    };
    Ok((transfer, cluster_of(&request.cluster_id)?))
}

/// A TransferLeader as it is sent.
pub fn transfer_out(
    transfer: TransferLeader,
    cluster: Option<ClusterId>,
) -> v1::TransferLeaderRequest {
    v1::TransferLeaderRequest {
        group: group_number(transfer.group),
        to: transfer.to.unwrap_or_default().0,
        cluster_id: cluster_bytes(cluster),
    }
}

/// Checks a SplitShard.
pub fn split_of(request: v1::SplitShardRequest) -> Result<Meant<SplitShard>> {
    let cluster = cluster_of(&request.cluster_id)?;
    if request.shard == 0 {
        return Err(Error::invalid("shard", "ids of shards start at 1"));
    }
    let split = SplitShard {
        shard: ShardId(request.shard),
        at: Size::default().key("at", request.at)?,
    };
    Ok((split, cluster))
}

/// A SplitShard as it is sent.
pub fn split_out(split: SplitShard, cluster: Option<ClusterId>) -> v1::SplitShardRequest {
    v1::SplitShardRequest {
        shard: split.shard.0,
        at: split.at,
        cluster_id: cluster_bytes(cluster),
    }
}

/// Answers SplitShard.
pub fn split_done_out(left: ShardDescriptor, right: ShardDescriptor) -> v1::SplitShardResponse {
    v1::SplitShardResponse {
        left: Some(shard_out(left)),
        right: Some(shard_out(right)),
    }
}

/// The answer to SplitShard.
pub fn split_done_of(response: v1::SplitShardResponse) -> Result<Response> {
    Ok(Response::SplitShard {
        left: shard_of(required("left", response.left)?)?,
        right: shard_of(required("right", response.right)?)?,
    })
}

/// Checks an AddReplica.
pub fn add_replica_of(request: &v1::AddReplicaRequest) -> Result<Meant<AddReplica>> {
    let add = AddReplica {
        shard: ShardId(numbered("shard", request.shard)?),
        node: NodeId(numbered("node", request.node)?),
    };
    Ok((add, cluster_of(&request.cluster_id)?))
}

/// An AddReplica as it is sent.
pub fn add_replica_out(add: AddReplica, cluster: Option<ClusterId>) -> v1::AddReplicaRequest {
    v1::AddReplicaRequest {
        shard: add.shard.0,
        node: add.node.0,
        cluster_id: cluster_bytes(cluster),
    }
}

/// Checks a RemoveReplica.
pub fn remove_replica_of(request: &v1::RemoveReplicaRequest) -> Result<Meant<ReplicaName>> {
    let name = ReplicaName {
        shard: ShardId(numbered("shard", request.shard)?),
        replica: ReplicaId(numbered("replica", request.replica)?),
    };
    Ok((name, cluster_of(&request.cluster_id)?))
}

/// A RemoveReplica as it is sent.
pub fn remove_replica_out(
    name: ReplicaName,
    cluster: Option<ClusterId>,
) -> v1::RemoveReplicaRequest {
    v1::RemoveReplicaRequest {
        shard: name.shard.0,
        replica: name.replica.0,
        cluster_id: cluster_bytes(cluster),
    }
}

/// The shard after a change of its replicas, as it is sent.
pub fn changed_out(shard: ShardDescriptor) -> Option<v1::ShardDescriptor> {
    Some(shard_out(shard))
}

/// The shard after a change of its replicas.
pub fn changed_of(shard: Option<v1::ShardDescriptor>) -> Result<ShardDescriptor> {
    shard_of(required("shard", shard)?)
}

pub(super) fn numbered(field: &str, id: u64) -> Result<u64> {
    match id {
        0 => Err(Error::invalid(field, "ids start at 1")),
        id => Ok(id),
    }
}

/// Answers Status.
pub fn status_out(status: NodeStatus) -> v1::StatusResponse {
    v1::StatusResponse {
        cluster_id: sixteen_bytes(status.cluster.0),
        member: Some(member_out(status.member)),
        version: status.version,
        uptime_s: status.uptime_s,
        ready: status.ready,
        free_bytes: status.free_bytes,
        groups: status.groups.into_iter().map(group_out).collect(),
        members: status.members.into_iter().map(member_out).collect(),
    }
}

/// The answer to Status.
pub fn status_of(response: v1::StatusResponse) -> Result<NodeStatus> {
    let groups = response.groups.into_iter().map(group_status_of);
    let members = response.members.into_iter().map(member_of);
    Ok(NodeStatus {
        cluster: ClusterId(sixteen("cluster_id", &response.cluster_id)?),
        member: member_of(required("member", response.member)?)?,
        version: response.version,
        uptime_s: response.uptime_s,
        ready: response.ready,
        free_bytes: response.free_bytes,
        groups: groups.collect::<Result<_>>()?,
        members: members.collect::<Result<_>>()?,
    })
}

pub(super) fn member_out(member: Member) -> v1::Member {
    v1::Member {
        id: member.id.0,
        incarnation: sixteen_bytes(member.incarnation.0),
        name: member.name,
        node_address: member.node_address,
        client_address: member.client_address,
    }
}

pub(super) fn member_of(member: v1::Member) -> Result<Member> {
    Ok(Member {
        id: NodeId(member.id),
        incarnation: Incarnation(sixteen("member.incarnation", &member.incarnation)?),
        name: member.name,
        node_address: member.node_address,
        client_address: member.client_address,
    })
}

fn group_out(status: GroupStatus) -> v1::GroupStatus {
    v1::GroupStatus {
        group: group_number(status.group),
        replica: status.replica.0,
        role: status.role,
        leader: status.leader.map(|node| node.0),
        term: status.term,
        last_index: status.last_index,
        applied_index: status.applied_index,
        purged_index: status.purged_index,
        shard: status.shard.map(shard_out),
        state_hash: status.state_hash,
    }
}

fn group_status_of(status: v1::GroupStatus) -> Result<GroupStatus> {
    Ok(GroupStatus {
        group: group_of(status.group),
        replica: ReplicaId(status.replica),
        role: status.role,
        leader: status.leader.map(NodeId),
        term: status.term,
        last_index: status.last_index,
        applied_index: status.applied_index,
        purged_index: status.purged_index,
        shard: status.shard.map(shard_of).transpose()?,
        state_hash: status.state_hash,
    })
}

pub(super) fn replica_out(replica: Replica) -> v1::Replica {
    v1::Replica {
        id: replica.id.0,
        node: replica.node.0,
    }
}

pub(super) fn replica_of(replica: v1::Replica) -> Replica {
    Replica {
        id: ReplicaId(replica.id),
        node: NodeId(replica.node),
    }
}

/// A shard, to be sent.
pub(crate) fn shard_out(shard: ShardDescriptor) -> v1::ShardDescriptor {
    let replicas = shard.replicas.into_iter().map(replica_out);
    v1::ShardDescriptor {
        id: shard.id.0,
        range: Some(range_out(shard.range)),
        conf_epoch: shard.epoch.conf,
        bounds_epoch: shard.epoch.bounds,
        replicas: replicas.collect(),
    }
}

/// A shard that was received.
pub(crate) fn shard_of(shard: v1::ShardDescriptor) -> Result<ShardDescriptor> {
    let replicas = shard.replicas.into_iter().map(replica_of);
    Ok(ShardDescriptor {
        id: ShardId(shard.id),
        range: range_of("shard.range", required("shard.range", shard.range)?)?,
        epoch: Epoch {
            conf: shard.conf_epoch,
            bounds: shard.bounds_epoch,
        },
        replicas: replicas.collect(),
    })
}
