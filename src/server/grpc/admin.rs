//! `Administration`: for operators and the console.

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::unexpected;
use crate::wire::convert::admin;
use crate::wire::proto::v1;
use crate::wire::proto::v1::administration_server::Administration;
use crate::wire::request::Request as NodeRequest;
use crate::wire::request::Response as NodeResponse;
use crate::wire::status::to_status;

/// Answers `Administration`.
pub struct AdminDoor {
    door: Arc<Door>,
}

impl AdminDoor {
    /// Behind this door.
    pub fn new(door: Arc<Door>) -> AdminDoor {
        AdminDoor { door }
    }
}

#[async_trait]
impl Administration for AdminDoor {
    async fn overview(
        &self,
        request: Request<v1::OverviewRequest>,
    ) -> Result<Response<v1::OverviewResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (query, cluster) = admin::overview_query_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::Overview(query);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::Overview(overview)) => {
                Ok(Response::new(admin::overview_out(*overview)))
            }
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (shard, cluster) = admin::explain_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::Explain(shard);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::Explain(explained)) => {
                Ok(Response::new(admin::explained_out(*explained)))
            }
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }

    async fn arrange(
        &self,
        request: Request<v1::ArrangeRequest>,
    ) -> Result<Response<v1::ArrangeResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (arrangement, cluster) =
            admin::arrangement_of(request.into_inner()).map_err(refused)?;
        let request = NodeRequest::Arrange(arrangement);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::Arrange) => Ok(Response::new(v1::ArrangeResponse {})),
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }

    async fn list_keyspaces(
        &self,
        request: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let cluster = admin::list_keyspaces_of(request.get_ref()).map_err(refused)?;
        let request = NodeRequest::ListKeyspaces;
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::Keyspaces(keyspaces)) => {
                Ok(Response::new(admin::keyspaces_out(keyspaces)))
            }
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }
}

fn refused(error: Error) -> Status {
    to_status(&error, None)
}
