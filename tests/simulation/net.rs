//! The network of a simulated cluster: calls go straight to the handler of the node that is meant, after a
//! while, or not at all. It delays, loses, doubles and reorders, and each direction of each link can be cut
//! by itself.
//!
//! What it assumes of a real one: a call can be lost on its way there or back, silently or with an error,
//! and can arrive twice; what follows on one stream arrives in order and whole, up to some point.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use quorate::env::life::Life;
use quorate::env::rng::Chance;
use quorate::error::Error;
use quorate::error::Result;
use quorate::server::handler::Handler;
use quorate::types::NodeId;
use quorate::types::log::Vote;
use quorate::types::node::Member;
use quorate::types::node::Room;
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
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::trace::Trace;
use crate::watch::Event;
use crate::watch::Watch;

/// Clients stand here.
pub const CLIENTS: NodeId = NodeId(0);
/// Messages of one stream that are on their way at once.
const STREAM_MESSAGES: usize = 8;
/// A connection that has lost something is noticed after this long at most.
const SILENCE_MAX_MS: u64 = 1_500;

/// How the links behave now.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// Directions in which nothing arrives.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes behind a slow link.
    pub slow: BTreeMap<NodeId, Slow>,
    /// Of a thousand messages so many are lost.
    pub lost_per_mille: u64,
    /// Of a thousand calls between nodes so many arrive twice.
    pub doubled_per_mille: u64,
}

/// A slow link.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slow {
    /// How slow in milliseconds at most.
    pub delay_ms: u64,
    /// Whether clients wait for it, too: near ones reach a node that hears late of what the others do.
    pub clients: bool,
}

/// A node as the others reach it.
#[derive(Clone)]
pub struct Reached {
    pub handler: Handler,
    pub life: Life,
}

pub struct Net {
    state: Mutex<State>,
    trace: Trace,
    watch: Arc<Watch>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Reached>,
    weather: Weather,
}

/// What becomes of one message.
enum Fate {
    Arrives(Duration),
    /// The connection breaks after so long.
    Lost(Duration),
}

impl Net {
    pub fn new(trace: Trace, watch: Arc<Watch>) -> Arc<Net> {
        Arc::new(Net {
            state: Mutex::default(),
            trace,
            watch,
        })
    }

    /// From now on the node is reached there.
    pub fn put(&self, node: NodeId, reached: Reached) {
        self.state().nodes.insert(node, reached);
    }

    /// Nobody is reached any more, and nothing is kept alive by it.
    pub fn clear(&self) {
        let nodes = std::mem::take(&mut self.state().nodes);
        drop(nodes);
    }

    /// Changes how the links behave.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.state().weather);
    }

    /// The channel of a node, or of the clients.
    pub fn channel(self: &Arc<Net>, from: NodeId) -> Arc<dyn Channel> {
        Arc::new(Port {
            net: Arc::clone(self),
            from,
        })
    }

    fn fate(&self, from: NodeId, to: NodeId) -> Fate {
        let state = self.state();
        let weather = &state.weather;
        let between_nodes = from != CLIENTS && to != CLIENTS;
        let silence = || Fate::Lost(Duration::from_millis(Chance.below(SILENCE_MAX_MS)));
        if weather.cut.contains(&(from, to)) {
            return silence();
        }
        if Chance.below(1_000) < weather.lost_per_mille {
            return silence();
        }
        let links = [from, to].map(|node| weather.slow.get(&node));
        let slow = links.into_iter().flatten();
        let felt = slow.filter(|slow| between_nodes || slow.clients);
        let slowest = felt.map(|slow| slow.delay_ms).max().unwrap_or(0);
        // Mostly quick, now and then not. Never at once: who tries again at once would stop the time.
        let usual = match Chance.below(20) {
            0 => 1 + Chance.below(20),
            _ => 1 + Chance.below(2),
        };
        Fate::Arrives(Duration::from_millis(usual + Chance.below(slowest + 1)))
    }

    /// Whether a call arrives twice.
    fn doubles(&self, from: NodeId, to: NodeId) -> bool {
        let between_nodes = from != CLIENTS && to != CLIENTS;
        let doubled_per_mille = self.state().weather.doubled_per_mille;
        between_nodes && Chance.below(1_000) < doubled_per_mille
    }

    /// Returns when the message has arrived; an error when the connection has broken.
    async fn travel(&self, from: NodeId, to: NodeId) -> Result<()> {
        match self.fate(from, to) {
            Fate::Arrives(after) => {
                sleep(after).await;
                Ok(())
            }
            Fate::Lost(after) => {
                sleep(after).await;
                Err(Error::unavailable(to, "the connection broke"))
            }
        }
    }

    fn find(&self, node: NodeId) -> Result<Reached> {
        let found = self.state().nodes.get(&node).cloned();
        found
            .filter(|reached| !reached.life.is_over())
            .ok_or_else(|| Error::unavailable(node, "nobody listens there"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

struct Port {
    net: Arc<Net>,
    from: NodeId,
}

impl Channel for Port {
    fn node(&self, id: NodeId) -> Arc<dyn Service> {
        Arc::new(Cable {
            net: Arc::clone(&self.net),
            from: self.from,
            to: id,
        })
    }

    /// An address is the node's name.
    fn address(&self, address: &str) -> Arc<dyn Service> {
        let id = address.trim_start_matches('n').parse();
        self.node(NodeId(id.expect("an address is n and a number")))
    }

    fn learn(&self, _member: Member) {}

    /// What the last answer said: nothing of a node that is not reached.
    fn room(&self, node: NodeId) -> Option<Room> {
        let is_cut = self.net.state().weather.cut.contains(&(node, self.from));
        let reached = self.net.find(node).ok().filter(|_| !is_cut)?;
        reached.handler.room()
    }
}

#[derive(Clone)]
struct Cable {
    net: Arc<Net>,
    from: NodeId,
    to: NodeId,
}

impl Cable {
    async fn carry(self, call: Call) -> Result<Response> {
        let (write, what) = (call.request.write_id(), kind(&call.request));
        self.net.travel(self.from, self.to).await?;
        let reached = self.net.find(self.to)?;
        self.net
            .trace
            .say(format_args!("{} → {} {what}", self.from, self.to));
        self.net.watch.request(self.from, self.to, &call.request);
        // A client repeats a write under its id. What is sent on by a node arrives once: who is told that a
        // write was refused must not find it done by a second copy.
        if self.net.doubles(self.from, self.to) && write.is_none() {
            self.again(&reached, call.clone());
        }
        let asked = call.request.clone();
        let answer = deliver(&reached, call).await;
        // From here on it may have happened.
        let broken = |error: Error| match write {
            Some(request) => Error::Unknown {
                request,
                reason: error.to_string(),
            },
            None => error,
        };
        let answer = answer
            .ok_or_else(|| broken(Error::unavailable(self.to, "it died while it was asked")))?;
        self.net.watch.response(&asked, &answer);
        let travelled = self.net.travel(self.to, self.from).await;
        travelled.map_err(broken)?;
        self.net.trace.say(format_args!(
            "{} ← {} {what} {}",
            self.from,
            self.to,
            if answer.is_ok() { "done" } else { "refused" }
        ));
        answer
    }

    /// The call arrives once more, later; nobody hears the answer.
    fn again(&self, reached: &Reached, call: Call) {
        let later = Duration::from_millis(Chance.below(300));
        let reached = reached.clone();
        let asked = call.request.clone();
        let watch = Arc::clone(&self.net.watch);
        let (trace, from, to) = (self.net.trace.clone(), self.from, self.to);
        tokio::spawn(async move {
            sleep(later).await;
            trace.say(format_args!("{from} → {to} {} again", kind(&asked)));
            if let Some(answer) = deliver(&reached, call).await {
                watch.response(&asked, &answer);
            }
        });
    }

    /// The messages of one direction of a stream as they arrive, in order. Nothing arrives behind the place
    /// where the connection broke, which is `None`.
    fn stream<T: Send + 'static>(
        &self,
        (from, to): (NodeId, NodeId),
        messages: BoxStream<'static, T>,
        broken: &CancellationToken,
    ) -> BoxStream<'static, Option<T>> {
        let (net, breaks) = (Arc::clone(&self.net), broken.clone());
        let travelling = messages.map(move |message| {
            let (net, breaks) = (Arc::clone(&net), breaks.clone());
            async move {
                match net.fate(from, to) {
                    Fate::Arrives(after) => {
                        sleep(after).await;
                        Some(message)
                    }
                    Fate::Lost(after) => {
                        sleep(after).await;
                        breaks.cancel();
                        None
                    }
                }
            }
        });
        let mut is_whole = true;
        let arrived = travelling.buffered(STREAM_MESSAGES);
        arrived
            .take_while(move |message| {
                let goes_on = is_whole;
                is_whole = message.is_some();
                std::future::ready(goes_on)
            })
            .boxed()
    }
}

/// Nobody listens there, which takes a moment to learn.
async fn refused<T>(error: Error) -> Result<T> {
    sleep(Duration::from_millis(1 + Chance.below(3))).await;
    Err(error)
}

/// What the node answers; nothing when it dies before.
async fn deliver(reached: &Reached, call: Call) -> Option<Result<Response>> {
    let (answered, answer) = oneshot::channel();
    let handler = reached.handler.clone();
    let life = reached.life.clone();
    tokio::spawn(life.live(async move {
        let _ = answered.send(handler.call(call).await);
    }));
    answer.await.ok()
}

impl Service for Cable {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let (write, deadline) = (call.request.write_id(), call.deadline);
        let what = kind(&call.request);
        let carried = self.clone().carry(call);
        let to = self.to;
        async move {
            match timeout(deadline, carried).await {
                Ok(answer) => answer,
                Err(_) => Err(match write {
                    Some(request) => Error::Unknown {
                        request,
                        reason: format!("{to} did not answer in time"),
                    },
                    None => Error::Timeout {
                        what: format!("{what} at {to}"),
                        after: deadline,
                    },
                }),
            }
        }
        .boxed()
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let to = self.to;
        let cut = move || Error::unavailable(to, "the connection broke");
        let reached = match self.net.find(to) {
            Ok(reached) => reached,
            Err(error) => return stream::once(refused(error)).boxed(),
        };
        let broken = CancellationToken::new();
        let watch = Arc::clone(&self.net.watch);
        let trace = self.net.trace.clone();
        let from = self.from;
        // Of the leader that the stream belongs to.
        let term = Arc::new(AtomicU64::new(0));
        let (sent, answering) = (Arc::clone(&term), Arc::clone(&self.net.watch));
        let requests = self.stream((from, to), requests, &broken);
        let requests = requests
            .take_while(|request| std::future::ready(request.is_some()))
            .filter_map(std::future::ready)
            .take_until(broken.clone().cancelled_owned())
            .inspect(move |request| {
                trace.say(format_args!(
                    "{from} → {to} {} append {:?}+{} commit {:?}",
                    route.group,
                    request.previous.map(|at| at.to_string()),
                    request.entries.len(),
                    request.committed.map(|at| at.to_string()),
                ));
                sent.store(request.vote.term, Ordering::Relaxed);
                watch.append(route, request);
            })
            .boxed();
        let (answered, mut answers) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
        let done = Arc::new(AtomicBool::new(false));
        let is_whole = Arc::clone(&done);
        let (net, breaks) = (Arc::clone(&self.net), broken.clone());
        let taken = tokio::spawn(reached.life.clone().live(async move {
            // That it is opened is told too, and fails as anything else does.
            if net.travel(from, to).await.is_err() {
                return breaks.cancel();
            }
            let mut answers = reached.handler.append(route, requests);
            while let Some(answer) = answers.next().await {
                if let Ok(answer) = &answer {
                    answering.appended(route, term.load(Ordering::Relaxed), answer);
                }
                if answered.send(answer).await.is_err() {
                    return;
                }
            }
            done.store(true, Ordering::Relaxed);
        }));
        let taken = AbortOnDropHandle::new(taken);
        let answers = stream::poll_fn(move |context| {
            let _taken = &taken;
            answers.poll_recv(context)
        });
        let answers = self.stream((to, from), answers.boxed(), &broken);
        let answers = answers
            .take_while(|answer| std::future::ready(answer.is_some()))
            .filter_map(std::future::ready)
            .take_until(broken.clone().cancelled_owned());
        // One whose last request is answered ends without an error.
        let last = move || match is_whole.load(Ordering::Relaxed) && !broken.is_cancelled() {
            true => None,
            false => Some(Err(cut())),
        };
        let last = stream::once(async move { last() }).filter_map(std::future::ready);
        answers.chain(last).boxed()
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let reached = match self.net.find(self.to) {
            Ok(reached) => reached,
            Err(error) => return refused(error).boxed(),
        };
        let cable = self.clone();
        async move {
            let (from, to) = (cable.from, cable.to);
            cable.net.travel(from, to).await?;
            let broken = CancellationToken::new();
            let chunks = cable.stream((from, to), chunks, &broken);
            let chunks = chunks
                .map(move |chunk| {
                    chunk.unwrap_or_else(|| Err(Error::unavailable(to, "the connection broke")))
                })
                .boxed();
            cable.net.trace.say(format_args!(
                "{from} → {to} {} snapshot at {:?}",
                header.route.group,
                header.position.map(|at| at.to_string())
            ));
            let (answered, answer) = oneshot::channel();
            tokio::spawn(reached.life.clone().live(async move {
                let _ = answered.send(reached.handler.snapshot(header, chunks).await);
            }));
            let answer = answer.await;
            let answer =
                answer.map_err(|_| Error::unavailable(to, "it died while it was asked"))?;
            cable.net.watch.count(Event::Snapshot);
            cable.net.travel(to, from).await?;
            answer
        }
        .boxed()
    }
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Get(_) => "get",
        Request::BatchGet(_) => "batch get",
        Request::Scan(_) => "scan",
        Request::Write(_) => "write",
        Request::Status(_) => "status",
        Request::TransferLeader(_) => "transfer",
        Request::SplitShard(_) => "split",
        Request::ReadPosition(_) => "read position",
        Request::Vote(..) => "vote",
        Request::Append(..) => "beat",
        Request::Term(_) => "term",
        Request::TakeLead(..) => "take lead",
        Request::Form(_) => "form",
        Request::Join(_) => "join",
        Request::Placement(_) => "placement",
        Request::Report(_) => "report",
        Request::Overview(_) => "overview",
        Request::Explain(_) => "explain",
        Request::Arrange(_) => "arrange",
        Request::ListKeyspaces => "list keyspaces",
        Request::Within(_) => "within",
        Request::Locate(_) => "locate",
        Request::Routes(_) => "routes",
        Request::CreateReplica(_) => "create",
        Request::Membership(_) => "membership",
        Request::ReplicaLeft(_) => "replica left",
        Request::AddReplica(_) => "add replica",
        Request::RemoveReplica(_) => "remove replica",
        Request::CheckReplica(..) => "check replica",
        Request::Merge(_) => "merge",
    }
}
