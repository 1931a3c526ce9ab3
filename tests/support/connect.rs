//! The network between a test and the nodes.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate::error::Error;
use quorate::error::Result;
use quorate::testkit::workload::Nodes;
use quorate::types::log::Vote;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;

/// The nodes that serve clients at `addresses`, in that order.
pub fn connect(addresses: &[String]) -> Nodes {
    let nodes = addresses
        .iter()
        .map(|_| Arc::new(Nobody) as Arc<dyn Service>);
    nodes.collect()
}

struct Nobody;

impl Service for Nobody {
    fn call(&self, _: Call) -> BoxFuture<'static, Result<Response>> {
        Box::pin(async { Err(Error::unavailable("the node", "there is no channel yet")) })
    }

    fn append(
        &self,
        _: Route,
        _: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        Box::pin(futures::stream::empty())
    }

    fn snapshot(
        &self,
        _: SnapshotHeader,
        _: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        Box::pin(async { Err(Error::unavailable("the node", "there is no channel yet")) })
    }
}
