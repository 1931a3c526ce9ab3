//! Finds the node for a key that has no replica here. `routes.rs` decides; this asks and listens.
//!
//! What placement says is the usual source. When nothing is known of a key, placement's group may be
//! down: then every other node is asked what it knows, so that keys which are placed are found as long
//! as one of their replicas lives.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::error::Error;
use crate::error::Result;
use crate::node::members::Members;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::routes::Routes;
use crate::node::routes::Target;
use crate::raft::Leadership;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::node::Identity;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::ShardRoute;

/// How long the other nodes may take to say where a key is.
const LOCATE_MAX: Duration = Duration::from_millis(500);
/// How long a later state of the shard is waited for when one is known: the others were asked at the
/// same moment.
const LATER_MAX: Duration = Duration::from_millis(20);
/// Keys that are looked for at other nodes at once. Full: further requests wait, and mostly find what
/// those before them have learned.
const ASKING_MAX: usize = 8;

/// Where the keys live. Shared by everything that sends requests on.
pub struct Router {
    me: Identity,
    registry: Arc<Registry>,
    members: Arc<Members>,
    channel: Arc<dyn Channel>,
    /// Held for moments.
    routes: Mutex<Routes>,
    /// The number of the routes' last change.
    changed: watch::Sender<u64>,
    asking: Semaphore,
}

impl Router {
    /// For node `me`, which knows nothing yet but its own replicas.
    pub fn new(
        me: Identity,
        registry: Arc<Registry>,
        members: Arc<Members>,
        channel: Arc<dyn Channel>,
    ) -> Router {
        Router {
            me,
            registry,
            members,
            channel,
            routes: Mutex::default(),
            changed: watch::Sender::new(0),
            asking: Semaphore::new(ASKING_MAX),
        }
    }

    /// Learns how a shard is, and who leads it if that is known.
    pub fn learn(&self, shard: ShardDescriptor, leader: Option<NodeId>) {
        self.with_routes(|routes| routes.learn(shard, leader));
    }

    /// Learns how this node's own shards are, for those who ask for all routes.
    pub fn learn_own(&self) {
        for replica in self.registry.shards() {
            let route = self.own_route(&replica);
            self.learn(route.shard, route.leader);
        }
    }

    /// Whom to ask for a key, or for the first shard if it is empty; not this node. Asks the others
    /// when nothing is known, for half a second at most. Cancel-safe.
    pub async fn target(&self, key: &[u8], until: Instant) -> Result<Target> {
        if let Some(target) = self.known_target(key) {
            return Ok(target);
        }
        let until = until.min(Instant::now() + LOCATE_MAX);
        let asking = timeout_at(until, self.asking.acquire()).await;
        if asking.is_ok() && self.known_target(key).is_none() {
            self.ask_all(key, until).await;
        }
        self.known_target(key).ok_or_else(|| nobody_knows(key))
    }

    /// Whom to ask about a shard that is named; not this node.
    pub fn target_of(&self, shard: ShardId) -> Result<Target> {
        let known = self.with_routes(|routes| routes.target_of(shard, self.me.node));
        known.ok_or_else(|| Error::NotFound {
            what: format!("{shard}, or word of it,"),
        })
    }

    /// Returns when another node is to be asked about the shard: another leads it, as far as is known, or
    /// others have asked this one in vain. Cancel-safe.
    pub async fn turned_from(&self, target: Target) {
        let mut changed = self.changed.subscribe();
        let elsewhere = |now: Target| now.node != target.node;
        // The sender lives as long as this does, so that a change is all that ends the wait.
        while !self.target_of(target.shard).is_ok_and(elsewhere) && changed.changed().await.is_ok()
        {
        }
    }

    /// The node asked has answered, and with that has shown that it leads the shard, or not.
    pub fn reached(&self, target: Target, leads: bool) {
        self.with_routes(|routes| routes.reached(target, leads));
    }

    /// The node asked has not done it, and says why.
    pub fn refused(&self, target: Target, error: &Error) {
        self.with_routes(|routes| routes.refused(target, error));
    }

    /// Which shard holds a key as far as this node knows: by its own replicas, else by hearsay.
    pub fn locate(&self, key: &[u8]) -> Result<ShardRoute> {
        if let Ok(replica) = self.registry.shard_of(key) {
            return Ok(self.own_route(&replica));
        }
        let known = self.with_routes(|routes| routes.locate(key));
        known.ok_or_else(|| Error::NotFound {
            what: format!("the shard with key {:?}", shown(key)),
        })
    }

    /// Every route that has changed behind the change numbered `since`, with the number to ask on
    /// from. 0: all, at once; otherwise waits for a change, and answers without one at `until`.
    /// Cancel-safe.
    pub async fn changes_since(&self, since: u64, until: Instant) -> (u64, Vec<ShardRoute>) {
        if since == 0 {
            self.learn_own();
        } else {
            let mut changed = self.changed.subscribe();
            let news = changed.wait_for(|last| *last > since);
            let _ = timeout_at(until, news).await;
        }
        self.with_routes(|routes| (routes.changes(), routes.changes_since(since)))
    }

    fn own_route(&self, replica: &Replica) -> ShardRoute {
        let leadership = *replica.group().leadership().borrow();
        ShardRoute {
            shard: replica.reader().row().descriptor.clone(),
            leader: match leadership {
                Leadership::Leading { .. } => Some(self.me.node),
                Leadership::Following { leader } => leader.map(|leader| leader.node),
                Leadership::Failed => None,
            },
        }
    }

    fn known_target(&self, key: &[u8]) -> Option<Target> {
        self.with_routes(|routes| routes.target(key, self.me.node))
    }

    /// Asks all members at once and learns from every answer, until all have come or soon after the
    /// first one that helps.
    async fn ask_all(&self, key: &[u8], until: Instant) {
        let others = self.members.list().into_iter();
        let others = others.filter(|member| member.id != self.me.node);
        let mut answers: FuturesUnordered<_> = others
            .map(|member| {
                let call = Call {
                    request: Request::Locate(Key::copy_from_slice(key)),
                    deadline: until.saturating_duration_since(Instant::now()),
                    forwarded: true,
                    cluster: Some(self.me.cluster),
                };
                self.channel.node(member.id).call(call)
            })
            .collect();
        let mut until = until;
        while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
            let Ok(Response::Locate(route)) = answer else {
                continue;
            };
            self.learn(route.shard, route.leader);
            if self.known_target(key).is_some() {
                until = until.min(Instant::now() + LATER_MAX);
            }
        }
    }

    fn with_routes<T>(&self, action: impl FnOnce(&mut Routes) -> T) -> T {
        let mut routes = self.routes.lock().expect("nothing panics under this lock");
        let done = action(&mut routes);
        let changes = routes.changes();
        drop(routes);
        self.changed.send_if_modified(|last| {
            let is_new = *last < changes;
            *last = changes.max(*last);
            is_new
        });
        done
    }
}

fn nobody_knows(key: &[u8]) -> Error {
    Error::unavailable(
        format!("the shard with key {:?}", shown(key)),
        "no node that answers knows where it is",
    )
}

fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
