//! The network between replicas: calls go straight to whoever sits at a node, a real replica or a puppet of
//! the test. Each direction of each link can be cut by itself; what is cut says nothing, and a stream breaks.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use quorate::error::Error;
use quorate::error::Result;
use quorate::types::NodeId;
use quorate::types::log::Vote;
use quorate::types::node::Member;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;
use tokio::sync::watch;
use tokio::time::sleep;

/// One way of a message. Never nothing: who tries again at once would stop virtual time.
const WAY: Duration = Duration::from_millis(1);
/// Messages of one direction of a stream that are on their way at once.
const MESSAGES: usize = 64;
/// How long it takes to notice that nobody listens.
const REFUSAL: Duration = Duration::from_millis(20);

type Link = (NodeId, NodeId);

/// All links.
#[derive(Default)]
pub struct Wires {
    seats: Mutex<BTreeMap<NodeId, Arc<dyn Service>>>,
    cut: watch::Sender<BTreeSet<Link>>,
    /// How much longer a way takes.
    slow: Mutex<BTreeMap<Link, Duration>>,
    /// How long each chunk of a snapshot takes.
    chunk: Mutex<Duration>,
    /// What is cut when somebody has said that it would lead.
    cut_next: Mutex<BTreeSet<Link>>,
    snapshots: Mutex<Vec<(NodeId, SnapshotHeader)>>,
}

impl Wires {
    /// From now on this one answers for the node.
    pub fn put(&self, node: NodeId, service: Arc<dyn Service>) {
        lock(&self.seats).insert(node, service);
    }

    /// Nobody is reached any more, and nothing is kept alive by it.
    pub fn clear(&self) {
        let seats = std::mem::take(&mut *lock(&self.seats));
        drop(seats);
    }

    /// From now on only these pairs of nodes reach each other.
    pub fn connect_only(&self, nodes: &[u64], pairs: &[(u64, u64)]) {
        let are_linked = |from, to| pairs.contains(&(from, to)) || pairs.contains(&(to, from));
        let all = nodes
            .iter()
            .flat_map(|from| nodes.iter().map(|to| (*from, *to)));
        let cut = all.filter(|(from, to)| from != to && !are_linked(*from, *to));
        self.cut
            .send_replace(cut.map(|(from, to)| (NodeId(from), NodeId(to))).collect());
    }

    /// Nothing from the first nodes arrives at the second ones any more.
    pub fn cut_ways(&self, from: &[u64], to: &[u64]) {
        self.cut.send_modify(|cut| {
            for from in from {
                let ways = to.iter().filter(|to| *to != from);
                cut.extend(ways.map(|to| (NodeId(*from), NodeId(*to))));
            }
        });
    }

    /// As [`Wires::cut_ways`], as soon as somebody has said that it would lead, and before it is asked to.
    pub fn cut_ways_before_a_handover(&self, from: &[u64], to: &[u64]) {
        let ways = from
            .iter()
            .flat_map(|from| to.iter().map(|to| (NodeId(*from), NodeId(*to))));
        lock(&self.cut_next).extend(ways);
    }

    /// These nodes and the other ones do not reach each other any more.
    pub fn cut_off(&self, some: &[u64], others: &[u64]) {
        self.cut_ways(some, others);
        self.cut_ways(others, some);
    }

    /// What goes from the first nodes to the second ones from now on takes so much longer.
    pub fn slow_ways(&self, from: &[u64], to: &[u64], longer: Duration) {
        let ways = from
            .iter()
            .flat_map(|from| to.iter().map(|to| (NodeId(*from), NodeId(*to))));
        lock(&self.slow).extend(ways.map(|way| (way, longer)));
    }

    /// How long a message takes that leaves now.
    fn way(&self, from: NodeId, to: NodeId) -> Duration {
        let longer = lock(&self.slow).get(&(from, to)).copied();
        WAY + longer.unwrap_or_default()
    }

    /// Everything arrives, and soon, but for what is on its way.
    pub fn heal(&self) {
        lock(&self.slow).clear();
        self.cut.send_replace(BTreeSet::new());
    }

    /// Each chunk of a snapshot takes so long from now on.
    pub fn slow_snapshots(&self, chunk: Duration) {
        *lock(&self.chunk) = chunk;
    }

    /// The snapshots that were begun to be sent to a node.
    pub fn snapshots_to(&self, node: NodeId) -> usize {
        let snapshots = lock(&self.snapshots);
        snapshots.iter().filter(|(to, _)| *to == node).count()
    }

    /// The channel of a node.
    pub fn channel(self: &Arc<Wires>, from: NodeId) -> Arc<dyn Channel> {
        let wires = Arc::clone(self);
        Arc::new(Port { wires, from })
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.borrow().contains(&(from, to))
    }

    fn find(&self, node: NodeId) -> Result<Arc<dyn Service>> {
        let found = lock(&self.seats).get(&node).cloned();
        found.ok_or_else(|| broken(node))
    }

    /// Returns when either direction is cut.
    async fn breaks(self: Arc<Wires>, a: NodeId, b: NodeId) {
        let mut cut = self.cut.subscribe();
        let is_broken = |cut: &BTreeSet<Link>| cut.contains(&(a, b)) || cut.contains(&(b, a));
        let _ = cut.wait_for(is_broken).await;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("nothing panics under this lock")
}

fn broken(node: NodeId) -> Error {
    Error::unavailable(node, "the connection broke")
}

struct Port {
    wires: Arc<Wires>,
    from: NodeId,
}

impl Channel for Port {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        Arc::new(Cable {
            wires: Arc::clone(&self.wires),
            from: self.from,
            to: id,
        })
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        unreachable!("{address} was asked, though all nodes have ids")
    }

    fn learn(&self, _member: Member) {}
}

#[derive(Clone)]
struct Cable {
    wires: Arc<Wires>,
    from: NodeId,
    to: NodeId,
}

impl Cable {
    /// Asks for as long as the call may take; what is lost is waited for in vain.
    async fn ask(self, call: Call) -> Result<Response> {
        let deadline = call.deadline;
        let answer = tokio::time::timeout(deadline, async {
            sleep(self.wires.way(self.from, self.to)).await;
            if self.wires.is_cut(self.from, self.to) {
                return std::future::pending().await;
            }
            let is_question =
                matches!(&call.request, Request::TakeLead(_, take) if take.only_asked);
            let answer = self.wires.find(self.to)?.call(call).await;
            sleep(self.wires.way(self.to, self.from)).await;
            if self.wires.is_cut(self.to, self.from) {
                return std::future::pending().await;
            }
            if is_question {
                let next = std::mem::take(&mut *lock(&self.wires.cut_next));
                self.wires.cut.send_modify(|cut| cut.extend(next));
            }
            answer
        });
        answer.await.unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: format!("a call of {}", self.to),
                after: deadline,
            })
        })
    }

    /// The messages of one direction of a stream as they arrive, in order.
    fn travel<T: Send + 'static>(
        self,
        (from, to): Link,
        messages: BoxStream<'static, T>,
    ) -> BoxStream<'static, T> {
        let travelling = messages.map(move |message| {
            let way = self.wires.way(from, to);
            async move {
                sleep(way).await;
                message
            }
        });
        travelling.buffered(MESSAGES).boxed()
    }

    async fn send(
        self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> Result<Vote> {
        let (from, to) = (self.from, self.to);
        sleep(WAY).await;
        if self.wires.is_cut(from, to) {
            sleep(REFUSAL).await;
            return Err(broken(to));
        }
        let seat = self.wires.find(to)?;
        lock(&self.wires.snapshots).push((to, header.clone()));
        let wires = Arc::clone(&self.wires);
        let breaks = Arc::clone(&wires).breaks(from, to);
        let slowly = chunks.then(move |chunk| {
            let pause = *lock(&wires.chunk);
            async move {
                sleep(pause + WAY).await;
                chunk
            }
        });
        let last = stream::once(async move { Err(broken(to)) });
        let arriving = slowly.map(Some).chain(stream::once(async { None }));
        let whole = arriving.take_until(breaks).chain(last.map(Some));
        let whole = whole
            .take_while(|chunk| std::future::ready(chunk.is_some()))
            .filter_map(std::future::ready);
        let installed = seat.snapshot(header, whole.boxed());
        tokio::select! {
            biased;
            () = Arc::clone(&self.wires).breaks(from, to) => Err(broken(to)),
            installed = installed => installed,
        }
    }
}

impl Service for Cable {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        self.clone().ask(call).boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let to = self.to;
        let is_cut = self.wires.is_cut(self.from, to) || self.wires.is_cut(to, self.from);
        let Some(seat) = self.wires.find(to).ok().filter(|_| !is_cut) else {
            return stream::once(async move {
                sleep(REFUSAL).await;
                Err(broken(to))
            })
            .boxed();
        };
        let arriving = self.clone().travel((self.from, to), requests);
        let arriving = arriving.take_until(Arc::clone(&self.wires).breaks(self.from, to));
        let answers = seat.append(route, arriving.boxed());
        let answers = self.clone().travel((to, self.from), answers);
        let answers = answers.take_until(Arc::clone(&self.wires).breaks(self.from, to));
        answers
            .chain(stream::once(async move { Err(broken(to)) }))
            .boxed()
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        self.clone().send(header, chunks).boxed()
    }
}

/// A vote or heartbeat that no puppet expects.
pub fn unexpected(request: &Request) -> Result<Response> {
    Err(Error::Internal(format!("nobody answers {request:?} here")))
}
