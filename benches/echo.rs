//! What the machine and the library allow at most: a bare gRPC echo over loopback, with nothing behind it,
//! driven as `quorate bench` drives a cluster. Run both in turn in the same minute; only their ratio means
//! something on a machine that others use too.
//!
//! `cargo bench --bench echo -- --clients 64 --duration 10s --value-size 256`

use std::convert::Infallible;
use std::future::Ready;
use std::future::ready;
use std::net::SocketAddr;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use quorate::cli::load::Action;
use quorate::cli::load::Sequence;
use quorate::cli::load::Tally;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::server::UnaryService;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_prost::ProstCodec;

const PATH: &str = "/quorate.bench.Echo/Echo";

#[derive(Parser)]
#[command(about = "A bare gRPC echo over loopback")]
struct Args {
    /// Clients at the same time, each with one request under way
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Connections that the clients share
    #[arg(long, default_value_t = 2)]
    connections: u64,
    /// How long
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Bytes sent and sent back
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "quorate.bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<Bytes, Bytes>::default();
            Ok(tonic::server::Grpc::new(codec)
                .unary(SendBack, request)
                .await)
        })
    }
}

struct SendBack;

impl UnaryService<Bytes> for SendBack {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(Echo);
    let server = tokio::spawn(server.serve_with_incoming(incoming));

    let channels = connect(address, args.connections.max(1)).await?;
    let started = Instant::now();
    let end = started + args.duration;
    let mut clients = JoinSet::new();
    for client in 0..args.clients {
        let place = usize::try_from(client % args.connections.max(1))?;
        let value = Sequence::new(client).value(args.value_size);
        clients.spawn(drive(channels[place].clone(), value, end));
    }
    let mut all = Tally::default();
    while let Some(tally) = clients.join_next().await {
        all.add(tally??);
    }
    println!("{}", all.to_json(started.elapsed()));
    server.abort();
    Ok(())
}

async fn connect(address: SocketAddr, count: u64) -> Result<Vec<Channel>, Failed> {
    let mut channels = Vec::new();
    for _ in 0..count {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        channels.push(endpoint.tcp_nodelay(true).connect().await?);
    }
    Ok(channels)
}

/// One client: one request after the other, until the end. It sends and gets back, which is counted as
/// a put.
async fn drive(channel: Channel, value: Bytes, end: Instant) -> Result<Tally, Failed> {
    let mut tally = Tally::default();
    let mut grpc = tonic::client::Grpc::new(channel);
    while Instant::now() < end {
        let sent = Instant::now();
        grpc.ready().await?;
        let codec = ProstCodec::<Bytes, Bytes>::default();
        let path = http::uri::PathAndQuery::from_static(PATH);
        let request = Request::new(value.clone());
        let answer = grpc.unary(request, path, codec).await?;
        assert_eq!(
            answer.get_ref().len(),
            value.len(),
            "an echo sends back what it got"
        );
        tally.done(Action::Put, sent.elapsed());
    }
    Ok(tally)
}
