//! Three nodes in one process, on disks and engines in memory that forget what was not synced when they are
//! told to. Each node has threads of its own, so that it can be ended anywhere, and is opened again on what
//! it has left.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub)]
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod cases;
pub mod facts;
pub mod net;
pub mod steps;

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use net::Net;
use net::Reached;
use quorate::engine::Engine;
use quorate::engine::MemoryEngine;
use quorate::env::clock::Clock;
use quorate::env::tasks::TaskSet;
use quorate::node::boot::Boot;
use quorate::node::boot::BootError;
use quorate::node::boot::Stores;
use quorate::node::changes::Changer;
use quorate::node::driver::Driver;
use quorate::node::formation::Formed;
use quorate::node::formation::InitialLayout;
use quorate::node::keyspaces::Keyspaces;
use quorate::node::members::Members;
use quorate::node::members::Nodes;
use quorate::node::merges::Merges;
use quorate::node::orphans::Orphans;
use quorate::node::placement::PlacementClient;
use quorate::node::registry::Registry;
use quorate::node::replica::Replica;
use quorate::node::router::Router;
use quorate::raft;
use quorate::raft::Group;
use quorate::raft::Leadership;
use quorate::server::handler::Handler;
use quorate::server::host::Host;
use quorate::server::space::Space;
use quorate::shard::StateHash;
use quorate::testkit::disk::CrashDisk;
use quorate::types::ClusterId;
use quorate::types::GroupId;
use quorate::types::Incarnation;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::node::Identity;
use quorate::types::node::Member;
use quorate::types::shard;
use quorate::types::shard::Epoch;
use quorate::types::shard::ShardDescriptor;
use quorate::wal;
use quorate::wal::Wal;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use steps::SteppedEngine;
use steps::SteppedFiles;
use steps::Steps;
use tokio::runtime::Handle;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The first shard, over all keys.
pub const SHARD: ShardId = ShardId(1);
/// How long what must happen may take: a machine that is busy with other things is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at what must happen.
const PAUSE: Duration = Duration::from_millis(3);
/// One attempt of a request.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
const CLUSTER: ClusterId = ClusterId([7; 16]);

/// The nodes by their place; the node of place 0 is n1.
pub const NODES: [usize; 3] = [0, 1, 2];

/// What a crash takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process: files stay, and of the engine what it has given to the system, which may be all or
    /// nothing of what it has not flushed.
    Kill {
        /// Batches behind the last flush that stay.
        kept: Kept,
    },
    /// The machine: what is not synced may stay or not, as the seed says.
    PowerCut {
        /// Which of it.
        seed: u64,
        /// Batches behind the last flush that stay.
        kept: Kept,
    },
}

/// How much an engine keeps behind its last flush. What lies between is everything at an earlier step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
}

/// Three nodes with one shard over all keys.
pub struct Rack {
    net: Arc<Net>,
    seats: Vec<Seat>,
    /// The clock of all of them.
    pub clock: Clock,
}

/// What a node leaves behind, and the node while it lives.
struct Seat {
    id: NodeId,
    disk: CrashDisk,
    engine: Arc<MemoryEngine>,
    life: Option<Life>,
}

/// A running node.
struct Life {
    runtime: Option<Runtime>,
    steps: Arc<Steps>,
    stores: Stores,
    merges: Merges,
    /// Why the node has ended though nobody has ended it.
    failure: Arc<Mutex<Option<String>>>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.steps.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.net.clear();
    }
}

impl Rack {
    /// Three nodes that have just started.
    pub async fn start() -> Rack {
        let seats = NODES.map(|place| Seat {
            id: NodeId(place as u64 + 1),
            disk: CrashDisk::new(),
            engine: Arc::new(MemoryEngine::new()),
            life: None,
        });
        let mut rack = Rack {
            net: Arc::default(),
            seats: seats.into(),
            clock: Clock::system(),
        };
        for node in NODES {
            rack.open(node).await;
        }
        rack
    }

    /// Opens a node on what it has left.
    pub async fn open(&mut self, node: usize) {
        let (seat, steps) = (&self.seats[node], Arc::new(Steps::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(seat.id.to_string())
            .enable_all()
            .build()
            .unwrap();
        let (handler, failure) = (Handler::new(), Arc::default());
        let reached = Reached {
            handler: handler.clone(),
            runtime: runtime.handle().clone(),
            ended: steps.ended(),
        };
        self.net.put(seat.id, reached);
        let channel = self.net.channel(steps.ended());
        let boot = Boot {
            clock: self.clock.clone(),
            ..boot(seat, &steps, &channel, &runtime, &failure)
        };
        let opened = runtime.spawn(async move {
            let mut tasks = TaskSet::new();
            let stores = boot.open(&mut tasks).await?;
            Ok::<_, BootError>((stores, tasks))
        });
        let opened = opened.await.expect("booting does not panic");
        let (stores, mut tasks) =
            opened.unwrap_or_else(|error| panic!("open {}: {error}", seat.id));
        let watched = Ending {
            steps: Arc::clone(&steps),
            failure: Arc::clone(&failure),
        };
        runtime.spawn(async move {
            let failed = tasks.failed().await;
            watched.because(failed.to_string());
        });
        let life = (runtime.handle(), steps.ended());
        let host = host(seat.id, &stores, channel, life);
        let merges = host.merges.clone();
        handler.open(host);
        self.seats[node].life = Some(Life {
            runtime: Some(runtime),
            steps,
            stores,
            merges,
            failure,
        });
    }

    /// Ends nodes at one moment; their disks lose what the crash takes.
    pub fn crash(&mut self, nodes: &[usize], crash: Crash) {
        for node in nodes {
            self.steps(*node).end();
        }
        for node in nodes {
            self.check(*node);
            let seat = &mut self.seats[*node];
            seat.life = None;
            match crash {
                Crash::Kill { .. } => seat.disk.kill(),
                Crash::PowerCut { seed, .. } => seat.disk.crash(seed + seat.id.0),
            }
            let (Crash::Kill { kept } | Crash::PowerCut { kept, .. }) = crash;
            seat.engine.crash(match kept {
                Kept::Nothing => 0,
                Kept::Everything => usize::MAX,
            });
        }
    }

    /// Keeps entries of a shard from a node until [`Rack::let_go`].
    pub fn hold(&self, node: usize, shard: ShardId) {
        self.net.hold(self.seats[node].id, GroupId::Shard(shard));
    }

    /// Keeps nothing back any more.
    pub fn let_go(&self) {
        self.net.let_go();
    }

    /// The steps of a living node.
    pub fn steps(&self, node: usize) -> Arc<Steps> {
        Arc::clone(&self.life(node).steps)
    }

    /// The nodes that live.
    pub fn living(&self) -> Vec<usize> {
        let lives = |node: &usize| self.seats[*node].life.is_some();
        NODES.into_iter().filter(lives).collect()
    }

    /// Fails when a living node has failed by itself.
    pub fn check(&self, node: usize) {
        let failure = self.life(node).failure.lock().unwrap().clone();
        assert_eq!(failure, None, "n{} failed", node + 1);
    }

    /// What runs on a node.
    pub fn registry(&self, node: usize) -> Arc<Registry> {
        Arc::clone(&self.life(node).stores.registry)
    }

    /// What a node makes one shard of two with.
    pub fn merges(&self, node: usize) -> Merges {
        self.life(node).merges.clone()
    }

    /// The replica of a shard on a node.
    pub fn replica(&self, node: usize, shard: ShardId) -> Result<Replica, String> {
        self.check(node);
        let found = self.registry(node).shard(shard);
        found.map_err(|error| format!("n{}: {error}", node + 1))
    }

    /// The living node that leads a shard.
    pub fn leader(&self, shard: ShardId) -> Result<usize, String> {
        let leads = |node: &usize| {
            self.replica(*node, shard).is_ok_and(|replica| {
                let leadership = *replica.group().leadership().borrow();
                matches!(leadership, Leadership::Leading { .. })
            })
        };
        let leader = self.living().into_iter().find(leads);
        leader.ok_or_else(|| format!("nobody leads {shard}"))
    }

    /// Runs on a node's threads. `None` when the node ends before.
    pub async fn on<T: Send + 'static>(
        &self,
        node: usize,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let life = self.life(node);
        let runtime = life.runtime.as_ref().unwrap();
        let ended = life.steps.ended();
        let done = AbortOnDropHandle::new(runtime.spawn(work));
        tokio::select! {
            biased;
            () = ended.cancelled() => None,
            done = done => done.ok(),
        }
    }

    /// Flushes a node's engine, which lets its log be purged. Returns early when the node ends.
    pub async fn checkpoint(&self, node: usize) {
        let flush = self.life(node).stores.checkpoints.as_flush();
        self.on(node, async move { flush().await }).await;
    }

    /// Flushes every node until its logs are purged behind that: the library purges what the checkpoint before
    /// has covered.
    pub async fn purge(&self) {
        for node in self.living() {
            let groups = self.registry(node).groups();
            let applied = |group: Group| {
                let position = group.machine_applied().position.unwrap_or_default();
                (group, position.index)
            };
            let covered: Vec<_> = groups.into_iter().map(applied).collect();
            eventually("a purged log", async || {
                self.checkpoint(node).await;
                let behind = |(group, upto): &&(Group, u64)| group.view().purged_index < *upto;
                match covered.iter().find(behind) {
                    None => Ok(()),
                    Some((group, upto)) => {
                        Err(format!("{} of n{} to {upto}", group.id(), node + 1))
                    }
                }
            })
            .await;
        }
    }

    /// Waits until the replicas on all living nodes have come equally far, and compares them.
    pub async fn level(&self, shards: &[ShardId]) {
        for shard in shards {
            eventually("equal replicas", async || {
                let mut hashes = Vec::new();
                for node in self.living() {
                    hashes.push(self.state_hash(node, *shard).await?);
                }
                let first = hashes[0];
                match hashes.iter().all(|hash| hash.position == first.position) {
                    false => Err(format!("{shard} is at {hashes:?}")),
                    true if hashes.iter().all(|hash| *hash == first) => Ok(()),
                    true => panic!("{shard} differs: {hashes:?}"),
                }
            })
            .await;
        }
    }

    /// Asks the nodes in turn until one answers.
    pub async fn ask(&self, request: Request) -> Response {
        self.ask_from(0, request).await
    }

    /// As [`Rack::ask`], beginning with the so-manieth node that lives.
    pub async fn ask_from(&self, first: usize, request: Request) -> Response {
        let channel = self.net.channel(CancellationToken::new());
        let until = Instant::now() + PATIENCE;
        let mut turn = first;
        loop {
            let living = self.living();
            let node = living[turn % living.len()];
            self.check(node);
            let call = Call {
                request: request.clone(),
                deadline: ATTEMPT_MAX,
                forwarded: false,
                cluster: Some(CLUSTER),
            };
            match channel.node(self.seats[node].id).call(call).await {
                Ok(response) => return response,
                Err(error) if Instant::now() > until => panic!("nobody answers: {error}"),
                Err(_) => sleep(PAUSE).await,
            }
            turn += 1;
        }
    }

    /// The state of a shard on a node, hashed.
    pub async fn state_hash(&self, node: usize, shard: ShardId) -> Result<StateHash, String> {
        let reader = self.replica(node, shard)?.reader().clone();
        let hashed = tokio::task::spawn_blocking(move || reader.state_hash());
        hashed.await.unwrap().map_err(|error| error.to_string())
    }

    /// The replicas whose births are in a node's log, as a start would find them now.
    pub fn births(&self, node: usize) -> BTreeSet<ReplicaId> {
        let disk = Arc::new(self.seats[node].disk.copy());
        let (wal, _writer) = Wal::open(disk, &directory(self.seats[node].id), wal_options())
            .unwrap_or_else(|error| panic!("open the log of n{} again: {error}", node + 1));
        let known = wal.replicas();
        known.into_iter().map(|replica| replica.id).collect()
    }

    /// Those of them that have ended, by the log.
    pub fn ended(&self, node: usize) -> BTreeSet<ReplicaId> {
        let disk = Arc::new(self.seats[node].disk.copy());
        let (wal, _writer) = Wal::open(disk, &directory(self.seats[node].id), wal_options())
            .unwrap_or_else(|error| panic!("open the log of n{} again: {error}", node + 1));
        let known = wal.replicas().into_iter().map(|replica| replica.id);
        known.filter(|replica| wal.is_gone(*replica)).collect()
    }

    /// The replicas that have a row in a node's engine.
    pub fn rows(&self, node: usize) -> BTreeSet<ReplicaId> {
        let found = quorate::shard::replicas(self.seats[node].engine.as_ref());
        found.unwrap().into_iter().collect()
    }

    fn life(&self, node: usize) -> &Life {
        self.seats[node].life.as_ref().expect("the node lives")
    }
}

/// Looks until it is there; fails with the last reason for which it was not.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if Instant::now() > until => panic!("{what}: {why}"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Ends a node that cannot go on.
struct Ending {
    steps: Arc<Steps>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Ending {
    /// After the end of the node its tasks fail for that alone.
    fn because(&self, why: String) {
        if self.steps.ended().is_cancelled() {
            return;
        }
        self.steps.end();
        self.failure.lock().unwrap().get_or_insert(why);
    }
}

fn directory(node: NodeId) -> PathBuf {
    PathBuf::from(format!("{node}/log"))
}

fn wal_options() -> wal::Options {
    wal::Options {
        // All that a case writes may come into one entry, when it is repeated: 300 KiB.
        segment_bytes: 512 * 1024,
        spare_segments: 1,
        ..wal::Options::default()
    }
}

/// Fast, and without a log behind a checkpoint.
fn raft_options() -> raft::Options {
    raft::Options {
        heartbeat: Duration::from_millis(20),
        election_timeout_min: Duration::from_millis(60),
        election_timeout_max: Duration::from_millis(90),
        entries_kept: 0,
        bytes_kept: 0,
        ..raft::Options::default()
    }
}

fn boot(
    seat: &Seat,
    steps: &Arc<Steps>,
    channel: &Arc<dyn Channel>,
    runtime: &Runtime,
    failure: &Arc<Mutex<Option<String>>>,
) -> Boot {
    let engine: Arc<dyn Engine> = Arc::new(SteppedEngine {
        engine: Arc::clone(&seat.engine),
        steps: Arc::clone(steps),
        flush_ms: 0,
    });
    let ending = Ending {
        steps: Arc::clone(steps),
        failure: Arc::clone(failure),
    };
    Boot {
        node: seat.id,
        layout: layout(),
        directory: PathBuf::from(seat.id.to_string()),
        wal_directory: directory(seat.id),
        engine,
        // Checkpoints are made when a test asks for them.
        checkpoint_interval: Duration::from_secs(3_600),
        files: Arc::new(SteppedFiles {
            disk: seat.disk.clone(),
            steps: Arc::clone(steps),
        }),
        clock: Clock::system(),
        channel: Arc::clone(channel),
        wal: wal_options(),
        raft: raft_options(),
        consensus: runtime.handle().clone(),
        fail: Arc::new(move |why| ending.because(why)),
    }
}

fn member(id: NodeId) -> Member {
    Member {
        id,
        incarnation: Incarnation([id.0 as u8; 16]),
        name: id.to_string(),
        node_address: String::new(),
        client_address: String::new(),
    }
}

/// One shard with a replica on each node, of the same number. There is no placement group: what is tested
/// does not ask it, and its steps would be counted.
fn layout() -> InitialLayout {
    let nodes = NODES.map(|place| NodeId(place as u64 + 1));
    let replicas = nodes.map(|node| shard::Replica {
        id: ReplicaId(node.0),
        node,
    });
    InitialLayout {
        members: nodes.map(member).into(),
        placement: Vec::new(),
        shard: ShardDescriptor {
            id: SHARD,
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: replicas.into(),
        },
        next_id: 100,
    }
}

/// The node as its handler sees it. Nobody looks here for replicas that have left.
fn host(
    node: NodeId,
    stores: &Stores,
    channel: Arc<dyn Channel>,
    (runtime, ended): (&Handle, CancellationToken),
) -> Host {
    let layout = layout();
    let registry = &stores.registry;
    let identity = Identity {
        cluster: CLUSTER,
        node,
        incarnation: member(node).incarnation,
    };
    let nodes = layout.members.iter().map(|member| member.id).collect();
    let placement = PlacementClient::new(
        identity,
        nodes,
        Arc::clone(registry),
        Arc::clone(&channel),
        (Driver::new(Clock::system()), Arc::new(Vec::new)),
    );
    // Not the node's own disk, whose steps are counted.
    let members = Members::open(
        Arc::new(CrashDisk::new()),
        Path::new("members"),
        Arc::clone(&channel),
        member(node),
        layout.members,
    );
    let members = Arc::new(members.unwrap());
    let keyspaces = Keyspaces::open(Arc::new(CrashDisk::new()), Path::new("keyspaces")).unwrap();
    let router = Router::new(
        identity,
        Arc::clone(registry),
        Arc::clone(&members),
        Arc::clone(&channel),
    );
    let (changes, changer) = Changer::new(
        Arc::clone(registry),
        placement.clone(),
        Arc::clone(&channel),
    );
    runtime.spawn(changer.run(ended.clone()));
    let nodes: Nodes = Arc::new(|| NODES.map(|place| NodeId(place as u64 + 1)).into());
    let merges = Merges::new(
        node,
        Arc::clone(registry),
        (stores.engine(), stores.checkpoints.as_flush()),
        changes.clone(),
        (Arc::clone(&channel), nodes),
    );
    runtime.spawn(merges.clone().run(ended));
    let (hints, _) = Orphans::new(
        node,
        (Arc::clone(registry), stores.engine()),
        stores.keeper.clone(),
        Arc::clone(&channel),
        Arc::new(Vec::new),
    );
    Host {
        identity,
        member: member(node),
        members,
        keyspaces: Arc::new(keyspaces),
        formed: Formed {
            cluster: CLUSTER,
            token: String::new(),
            founders: Vec::new(),
        },
        router: Arc::new(router),
        keeper: stores.keeper.clone(),
        merges,
        changes,
        hints,
        checks: stores.checks(),
        placement,
        registry: Arc::clone(registry),
        channel,
        started: Instant::now(),
        space: Arc::new(Space::new(0)),
    }
}
