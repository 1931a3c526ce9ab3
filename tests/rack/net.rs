//! The network of a rack: calls go straight to the handler of the node, on that node's threads. A node that
//! has ended hears nothing and is not heard, and entries for one replica can be held back.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use quorate::error::Error;
use quorate::error::Result;
use quorate::server::handler::Handler;
use quorate::types::GroupId;
use quorate::types::NodeId;
use quorate::types::log::Vote;
use quorate::types::node::Member;
use quorate::wire::request::APPENDS_IN_FLIGHT_MAX;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// A node as the others reach it.
#[derive(Clone)]
pub struct Reached {
    pub handler: Handler,
    pub runtime: Handle,
    pub ended: CancellationToken,
}

/// Who is reached under which id.
#[derive(Default)]
pub struct Net {
    nodes: Mutex<BTreeMap<NodeId, Reached>>,
    held: watch::Sender<BTreeSet<(NodeId, GroupId)>>,
}

impl Net {
    /// From now on the node is reached there.
    pub fn put(&self, node: NodeId, reached: Reached) {
        self.nodes().insert(node, reached);
    }

    /// Nobody is reached any more.
    pub fn clear(&self) {
        self.nodes().clear();
    }

    /// Keeps entries of a group from a node until [`Net::let_go`]; heartbeats and votes go through.
    pub fn hold(&self, node: NodeId, group: GroupId) {
        self.held.send_modify(|held| {
            held.insert((node, group));
        });
    }

    /// Holds nothing any more.
    pub fn let_go(&self) {
        self.held.send_modify(BTreeSet::clear);
    }

    /// The channel of one life of a node; clients have one that never ends.
    pub fn channel(self: &Arc<Net>, of: CancellationToken) -> Arc<dyn Channel> {
        let net = Arc::clone(self);
        Arc::new(Port { net, of })
    }

    fn find(&self, node: NodeId) -> Result<Reached> {
        let found = self.nodes().get(&node).cloned();
        found
            .filter(|reached| !reached.ended.is_cancelled())
            .ok_or_else(|| cut(node))
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Reached>> {
        self.nodes.lock().expect("nothing panics under this lock")
    }
}

fn cut(node: NodeId) -> Error {
    Error::unavailable(node, "it is not reached")
}

struct Port {
    net: Arc<Net>,
    of: CancellationToken,
}

impl Channel for Port {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        Arc::new(Cable {
            net: Arc::clone(&self.net),
            from: self.of.clone(),
            to: id,
        })
    }

    fn address(&self, _address: &str) -> Arc<dyn Service> {
        unreachable!("the nodes of a rack have ids from the beginning")
    }

    fn learn(&self, _member: Member) {}
}

struct Cable {
    net: Arc<Net>,
    from: CancellationToken,
    to: NodeId,
}

impl Cable {
    fn ends(&self, reached: &Reached) -> Ends {
        Ends {
            from: self.from.clone(),
            to: reached.ended.clone(),
            node: self.to,
        }
    }
}

/// Both ends of what is under way.
#[derive(Clone)]
struct Ends {
    from: CancellationToken,
    to: CancellationToken,
    node: NodeId,
}

impl Ends {
    /// Returns when one of the two has ended.
    async fn cut(self) {
        tokio::select! {
            () = self.from.cancelled() => {}
            () = self.to.cancelled() => {}
        }
    }

    /// Runs until one of the two has ended; what was not heard before that is not heard.
    async fn carry<T>(self, answer: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.cut() => None,
            answer = answer => Some(answer),
        }
    }

    /// The stream until one of the two has ended, and then an error.
    fn carry_stream<T: Send + 'static>(
        self,
        items: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let carried = stream::unfold(Some(items), move |items| {
            let ends = self.clone();
            async move {
                let mut items = items?;
                let node = ends.node;
                match ends.carry(items.next()).await {
                    Some(item) => item.map(|item| (item, Some(items))),
                    None => Some((Err(cut(node)), None)),
                }
            }
        });
        carried.boxed()
    }
}

/// What the caller is told when the call or its answer was lost.
fn lost(node: NodeId, request: &Request) -> Error {
    match request {
        Request::Write(write) => Error::Unknown {
            request: write.id,
            reason: "the connection was lost".to_owned(),
        },
        _ => cut(node),
    }
}

impl Service for Cable {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let reached = match self.net.find(self.to) {
            Ok(reached) => reached,
            Err(error) => return std::future::ready(Err(error)).boxed(),
        };
        let (ends, lost) = (self.ends(&reached), lost(self.to, &call.request));
        async move {
            let answer = reached.runtime.spawn(reached.handler.call(call));
            match ends.carry(answer).await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) | None => Err(lost),
            }
        }
        .boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let reached = match self.net.find(self.to) {
            Ok(reached) => reached,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let ends = self.ends(&reached);
        let (place, held) = ((self.to, route.group), self.net.held.clone());
        let requests = requests.then(move |request| {
            let mut held = held.subscribe();
            async move {
                let _ = held.wait_for(|held| !held.contains(&place)).await;
                request
            }
        });
        let requests = requests.take_until(ends.clone().cut()).boxed();
        let (answered, mut answers) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
        let taken = reached.runtime.spawn(async move {
            let mut answers = reached.handler.append(route, requests);
            while let Some(answer) = answers.next().await {
                if answered.send(answer).await.is_err() {
                    return;
                }
            }
        });
        let taken = AbortOnDropHandle::new(taken);
        let answers = stream::poll_fn(move |context| {
            let _taken = &taken;
            answers.poll_recv(context)
        });
        ends.carry_stream(answers.boxed())
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let reached = match self.net.find(self.to) {
            Ok(reached) => reached,
            Err(error) => return std::future::ready(Err(error)).boxed(),
        };
        let (ends, lost) = (self.ends(&reached), cut(self.to));
        async move {
            let chunks = ends.clone().carry_stream(chunks);
            let handler = reached.handler.clone();
            let installed = reached
                .runtime
                .spawn(async move { handler.snapshot(header, chunks).await });
            match ends.carry(installed).await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) | None => Err(lost),
            }
        }
        .boxed()
    }
}
