//! The gRPC doors of a node: one for clients, one for other nodes. They check what comes in, hand it
//! to the node's [`Service`], and turn its answer into a message.

pub mod accept;
pub mod inflow;
pub mod door;
pub mod kv;
pub mod cluster;
pub mod admin;
pub mod placement;
pub mod transport;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::env::handles;
use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::accept::Sockets;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::Guard;
use crate::server::grpc::inflow::Inflow;
use crate::types::RequestId;
use crate::wire::identity::IdentityCell;
use crate::wire::lane::CONNECTION_WINDOW_BYTES;
use crate::wire::lane::MESSAGE_BYTES_MAX;
use crate::wire::lane::STREAM_WINDOW_BYTES;
use crate::wire::lane::sentence;
use crate::wire::proto::DESCRIPTORS;
use crate::wire::proto::v1::administration_server::AdministrationServer;
use crate::wire::proto::v1::cluster_server::ClusterServer;
use crate::wire::proto::v1::kv_server::KvServer;
use crate::wire::proto::v1::placement_server::PlacementServer;
use crate::wire::proto::v1::transport_server::TransportServer;
use crate::wire::request::Service;

/// Requests of clients in work on one node, its own and those sent on to it. Full: refused with
/// `RESOURCE_EXHAUSTED` and a time to wait; nothing was done.
pub const REQUESTS_IN_WORK_MAX: usize = 4_096;

/// Scans open on one node. A reader that takes nothing holds a portion, and as much again or more in the
/// library. Full: refused with `RESOURCE_EXHAUSTED` and a time to wait.
pub const SCANS_OPEN_MAX: usize = 256;

/// Connections of clients. Full: further ones are closed at once.
const CLIENTS_MAX: usize = 1_024;
/// Connections of nodes, each of which makes three.
const NODES_MAX: usize = 1_024;

/// Calls open on one connection. Full: the client's library holds further ones back.
const CALLS_PER_CLIENT_MAX: u32 = 1_024;
/// All clients of one node may be behind another's connection.
const CALLS_PER_NODE_MAX: u32 = 8_192;

/// Above the 4 MiB that a request may hold, so that one a little over it is refused with our own words.
const CLIENT_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A client that has vanished is noticed within this and the next.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections cut off end at once; more would be a fault of ours that must not stop the stopping.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(1);

/// Names under which health is asked for; the empty one is the whole server.
const HEALTH_NAMES: [&str; 5] = [
    "",
    "quorate.v1.Kv",
    "quorate.v1.Cluster",
    "quorate.v1.Administration",
    "quorate.v1.Placement",
];

/// Both doors of one node.
#[derive(Clone)]
pub struct Doors {
    service: Arc<dyn Service>,
    new_request_id: Arc<dyn Fn() -> RequestId + Send + Sync>,
    in_work: Arc<Semaphore>,
    scans: Arc<Semaphore>,
}

/// When a door closes: no more connections are taken and no more requests on those there are; what is
/// in work has the time of `grace` to end, then its connections are cut off.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Says that it closes.
    pub token: CancellationToken,
    /// For what is in work.
    pub grace: Duration,
}

impl Doors {
    /// Doors to `service`. `new_request_id` names writes whose clients did not.
    pub fn new(
        service: Arc<dyn Service>,
        new_request_id: impl Fn() -> RequestId + Send + Sync + 'static,
    ) -> Doors {
        Doors::with_limit(service, new_request_id, REQUESTS_IN_WORK_MAX)
    }

    /// The same with another limit than [`REQUESTS_IN_WORK_MAX`].
    pub fn with_limit(
        service: Arc<dyn Service>,
        new_request_id: impl Fn() -> RequestId + Send + Sync + 'static,
        requests_in_work_max: usize,
    ) -> Doors {
        Doors {
            service,
            new_request_id: Arc::new(new_request_id),
            in_work: Arc::new(Semaphore::new(requests_in_work_max)),
            scans: Arc::new(Semaphore::new(SCANS_OPEN_MAX)),
        }
    }

    /// Serves Kv, Cluster, Administration, Placement, health and reflection. Health says `SERVING` while `ready` is true. Returns
    /// after `stop`; dropping the future stops taking connections and leaves those there are open.
    pub async fn serve_clients(
        &self,
        listener: TcpListener,
        ready: watch::Receiver<bool>,
        stop: Stop,
    ) -> Result<()> {
        let door = Arc::new(self.door(Guard::Clients));
        let room = Inflow::new();
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = server(CALLS_PER_CLIENT_MAX)
            .add_service(
                room.bound(
                    KvServer::new(kv::KvDoor::new(door.clone(), self.scans.clone()))
                        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX),
                ),
            )
            .add_service(room.bound(ClusterServer::new(cluster::ClusterDoor::new(door.clone()))))
            .add_service(room.bound(AdministrationServer::new(admin::AdminDoor::new(
                door.clone(),
            ))))
            .add_service(
                room.bound(PlacementServer::new(placement::PlacementDoor::new(
                    door,
                    stop.token.clone(),
                ))),
            )
            .add_service(room.bound(health))
            .add_service(room.bound(reflection().build_v1().map_err(failed)?))
            .add_service(room.bound(reflection().build_v1alpha().map_err(failed)?));
        let follow = follow_readiness(reporter, ready);
        tokio::select! {
            biased;
            served = serve(router, listener, stop, CLIENTS_MAX) => served,
            never = follow => match never {},
        }
    }

    /// Serves Transport, and Kv, Cluster, Administration and Placement for calls of other nodes. Until `identity` is
    /// set, only Form and Join are answered. Returns after `stop`; dropping the future stops taking connections
    /// and leaves those there are open.
    pub async fn serve_nodes(
        &self,
        listener: TcpListener,
        identity: IdentityCell,
        stop: Stop,
    ) -> Result<()> {
        let door = Arc::new(self.door(Guard::Nodes(identity)));
        let transport = transport::TransportDoor::new(door.clone(), stop.token.clone());
        // Apart, so that calls that are sent on never take the room of the log.
        let (log, room) = (Inflow::new(), Inflow::new());
        let router = server(CALLS_PER_NODE_MAX)
            .add_service(log.bound(
                TransportServer::new(transport).max_decoding_message_size(MESSAGE_BYTES_MAX),
            ))
            .add_service(
                room.bound(
                    KvServer::new(kv::KvDoor::new(door.clone(), self.scans.clone()))
                        .max_decoding_message_size(MESSAGE_BYTES_MAX),
                ),
            )
            .add_service(room.bound(ClusterServer::new(cluster::ClusterDoor::new(door.clone()))))
            .add_service(room.bound(AdministrationServer::new(admin::AdminDoor::new(
                door.clone(),
            ))))
            .add_service(
                room.bound(PlacementServer::new(placement::PlacementDoor::new(
                    door,
                    stop.token.clone(),
                ))),
            );
        serve(router, listener, stop, NODES_MAX).await
    }

    fn door(&self, guard: Guard) -> Door {
        Door::new(
            self.service.clone(),
            self.new_request_id.clone(),
            self.in_work.clone(),
            guard,
        )
    }
}

fn server(calls_max: u32) -> Server {
    Server::builder()
        .max_concurrent_streams(calls_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn serve(
    router: Router,
    listener: TcpListener,
    stop: Stop,
    connections_max: usize,
) -> Result<()> {
    // Each holds two handles, and half of all are for the log and the engine.
    let handles = usize::try_from(handles::max()).unwrap_or(usize::MAX);
    let sockets = Sockets::with_limit(connections_max.min(handles / 8));
    let closing = stop.token.clone().cancelled_owned();
    let incoming = accept::incoming(listener, sockets.clone());
    let serving = router.serve_with_incoming_shutdown(incoming, closing);
    tokio::pin!(serving);
    let overdue = async {
        stop.token.cancelled().await;
        tokio::time::sleep(stop.grace).await;
    };
    tokio::select! {
        biased;
        served = &mut serving => return served.map_err(failed),
        () = overdue => sockets.cut_off(),
    }
    match timeout(CUT_OFF_TIMEOUT, serving).await {
        Ok(served) => served.map_err(failed),
        Err(_elapsed) => Err(Error::Internal(
            "connections outlived their sockets".to_owned(),
        )),
    }
}

async fn follow_readiness(
    reporter: HealthReporter,
    mut ready: watch::Receiver<bool>,
) -> std::convert::Infallible {
    loop {
        let status = match *ready.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in HEALTH_NAMES {
            reporter.set_service_status(name, status).await;
        }
        if ready.changed().await.is_err() {
            // Whoever knew is gone: what was said last holds.
            std::future::pending::<()>().await;
        }
    }
}

fn failed(error: impl std::error::Error) -> Error {
    Error::Internal(format!("serve gRPC: {}", sentence(&error)))
}
