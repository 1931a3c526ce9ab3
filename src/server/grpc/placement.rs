//! `Placement`: where keys live, for clients that send their requests to the right node at once.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::Entered;
use crate::server::grpc::door::unexpected;
use crate::types::ClusterId;
use crate::wire::convert::placement;
use crate::wire::proto::v1;
use crate::wire::proto::v1::placement_server::Placement;
use crate::wire::request::Request as NodeRequest;
use crate::wire::request::Response as NodeResponse;
use crate::wire::request::ShardRoute;
use crate::wire::status::to_status;

/// How long the node may wait for a change; it answers without one before that and is asked again.
const CHANGE_WAIT: Duration = Duration::from_secs(60);
/// Routes in one message: some hundred kilobytes.
const MESSAGE_ROUTES_MAX: usize = 1_000;

/// Answers `Placement`.
pub struct PlacementDoor {
    door: Arc<Door>,
    closing: CancellationToken,
}

impl PlacementDoor {
    /// Behind this door, until it closes.
    pub fn new(door: Arc<Door>, closing: CancellationToken) -> PlacementDoor {
        PlacementDoor { door, closing }
    }
}

#[async_trait]
impl Placement for PlacementDoor {
    type WatchRoutesStream = BoxStream<'static, Result<v1::WatchRoutesResponse, Status>>;

    async fn locate(
        &self,
        request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let (key, cluster) = placement::locate_of(request.into_inner()).map_err(refused)?;
        let request = NodeRequest::Locate(key);
        match self.door.ask(entered, request, cluster).await {
            Ok(NodeResponse::Locate(route)) => Ok(Response::new(placement::located_out(route))),
            Ok(other) => Err(refused(unexpected(&other))),
            Err(error) => Err(refused(error)),
        }
    }

    async fn watch_routes(
        &self,
        request: Request<v1::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let cluster = placement::watch_of(request.get_ref()).map_err(refused)?;
        let changes = watch(Arc::clone(&self.door), entered, cluster);
        let closing = self.closing.clone().cancelled_owned();
        Ok(Response::new(changes.take_until(closing).boxed()))
    }
}

/// All routes, then what changes; the first error ends it.
fn watch(
    door: Arc<Door>,
    entered: Entered,
    cluster: Option<ClusterId>,
) -> impl Stream<Item = Result<v1::WatchRoutesResponse, Status>> {
    let waiting = Entered {
        deadline: Some(CHANGE_WAIT),
        ..entered
    };
    let portions = stream::unfold(Some(0), move |since| {
        let door = Arc::clone(&door);
        async move {
            let since = since?;
            match next(&door, waiting, cluster, since).await {
                Ok((upto, routes)) => Some((Ok(routes), Some(upto))),
                Err(error) => Some((Err(refused(error)), None)),
            }
        }
    });
    portions.flat_map(|portion| {
        let messages = match portion {
            Ok(routes) => routes
                .chunks(MESSAGE_ROUTES_MAX)
                .map(|part| Ok(placement::routes_out(part.to_vec())))
                .collect(),
            Err(status) => vec![Err(status)],
        };
        stream::iter(messages)
    })
}

async fn next(
    door: &Door,
    waiting: Entered,
    cluster: Option<ClusterId>,
    since: u64,
) -> Result<(u64, Vec<ShardRoute>)> {
    match door
        .ask(waiting, NodeRequest::Routes(since), cluster)
        .await?
    {
        NodeResponse::Routes(upto, routes) => Ok((upto, routes)),
        other => Err(unexpected(&other)),
    }
}

fn refused(error: Error) -> Status {
    to_status(&error, None)
}
