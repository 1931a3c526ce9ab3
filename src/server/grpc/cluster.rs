//! `Cluster`: for operators.

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::unexpected;
use crate::wire::convert::cluster;
use crate::wire::proto::v1;
use crate::wire::proto::v1::cluster_server::Cluster;
use crate::wire::request::Request as NodeRequest;
use crate::wire::request::Response as NodeResponse;
use crate::wire::status::to_status;

/// Answers `Cluster`. Not refused when much is in work: it is how one finds out why.
pub struct ClusterDoor {
    door: Arc<Door>,
}

impl ClusterDoor {
    /// Behind this door.
    pub fn new(door: Arc<Door>) -> ClusterDoor {
        ClusterDoor { door }
    }
}

#[async_trait]
impl Cluster for ClusterDoor {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (query, cluster) = cluster::status_request_of(request.get_ref()).map_err(refused)?;
        let response = self
            .door
            .ask(entered, NodeRequest::Status(query), cluster)
            .await;
        match response.map_err(refused)? {
            NodeResponse::Status(status) => Ok(Response::new(cluster::status_out(*status))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (transfer, cluster) = cluster::transfer_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::TransferLeader(transfer);
        match self
            .door
            .ask(entered, request, cluster)
            .await
            .map_err(refused)?
        {
            NodeResponse::TransferLeader => Ok(Response::new(v1::TransferLeaderResponse {})),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn split_shard(
        &self,
        request: Request<v1::SplitShardRequest>,
    ) -> Result<Response<v1::SplitShardResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (split, cluster) = cluster::split_of(request.into_inner()).map_err(refused)?;
        let request = NodeRequest::SplitShard(split);
        match self
            .door
            .ask(entered, request, cluster)
            .await
            .map_err(refused)?
        {
            NodeResponse::SplitShard { left, right } => {
                Ok(Response::new(cluster::split_done_out(left, right)))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn add_replica(
        &self,
        request: Request<v1::AddReplicaRequest>,
    ) -> Result<Response<v1::AddReplicaResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (add, cluster) = cluster::add_replica_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::AddReplica(add);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::AddReplica(shard)) => Ok(Response::new(v1::AddReplicaResponse {
                shard: cluster::changed_out(shard),
            })),
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Result<Response<v1::RemoveReplicaResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (name, cluster) = cluster::remove_replica_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::RemoveReplica(name);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::RemoveReplica(shard)) => {
                Ok(Response::new(v1::RemoveReplicaResponse {
                    shard: cluster::changed_out(shard),
                }))
            }
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }
}

fn refused(error: Error) -> Status {
    to_status(&error, None)
}
