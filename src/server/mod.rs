//! Assembles a node and opens its doors: for clients and nodes in `grpc/`, for probes in `http/`.
//! [`start`] and [`Running::stop`] are the order in which a node comes up and goes down, written once.

pub mod options;
pub mod http;
pub mod grpc;
pub mod space;
mod space_driver;
pub mod host;
mod portion;
mod keyspace;
mod keyspace_driver;
pub mod handler;
pub mod assembly;

use std::net::SocketAddr;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::interval;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;

use crate::engine::Engine;
use crate::engine::sled;
use crate::engine::sled::OpenError;
use crate::engine::sled::SledEngine;
use crate::env::clock::Clock;
use crate::env::files::DiskFiles;
use crate::env::files::Files;
use crate::env::handles;
use crate::env::rng::Chance;
use crate::env::tasks::TaskResult;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::node::boot::Boot;
use crate::node::boot::BootError;
use crate::node::boot::Stores;
use crate::node::formation::Formed;
use crate::node::formation::InitialLayout;
use crate::node::formation::layout;
use crate::node::formation_driver;
use crate::node::formation_driver::FormationError;
use crate::node::formation_driver::Setup;
use crate::node::identity::DataDirectory;
use crate::node::identity::IdentityError;
use crate::node::joining;
use crate::node::joining::JoinError;
use crate::node::members::Members;
use crate::node::registry::Registry;
use crate::node::selfcheck;
use crate::raft;
use crate::raft::Fail;
use crate::raft::Leadership;
use crate::server::assembly::Assembly;
use crate::server::grpc::Doors;
use crate::server::grpc::Stop;
use crate::server::handler::Handler;
use crate::server::http::Check;
use crate::server::http::console;
use crate::server::options::OptionError;
use crate::server::options::Options;
use crate::server::space::Space;
use crate::telemetry::metrics;
use crate::types::Incarnation;
use crate::types::NodeId;
use crate::types::RequestId;
use crate::types::node::Identity;
use crate::types::node::Member;
use crate::types::node::Room;
use crate::wal;
use crate::wire::channel::GrpcChannel;
use crate::wire::identity::IdentityCell;
use crate::wire::request::Channel;

/// Exit code of a node that cannot go on: EX_SOFTWARE of sysexits.
pub const EXIT_BROKEN: i32 = 70;

/// Threads of the groups' own runtime. Nothing that may block runs on them, so that a slow disk or a large
/// scan never makes a leader look dead.
const CONSENSUS_THREADS: usize = 2;
/// How often figures are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping leader waits for its successor.
const HANDOVER_MAX: Duration = Duration::from_secs(2);
/// How long a task may take to stop.
const TASK_STOP_MAX: Duration = Duration::from_secs(5);

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node has no cluster.
    #[error(transparent)]
    Formation(#[from] FormationError),
    /// The engine does not open.
    #[error(transparent)]
    Engine(#[from] OpenError),
    /// No cluster took the node in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The stores do not open.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A port cannot be had.
    #[error("listen on {address}: {source}; choose another with {flag}")]
    Listen {
        /// What was tried.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Something of ours failed.
    #[error("{0}")]
    Internal(String),
}

impl StartError {
    /// Whether the person who starts the node has to change something.
    pub fn is_bad_input(&self) -> bool {
        match self {
            StartError::Options(_) | StartError::Formation(_) | StartError::Listen { .. } => true,
            StartError::Join(error) => {
                matches!(error, JoinError::Refused { .. } | JoinError::Forming)
            }
            StartError::Identity(error) => !matches!(error, IdentityError::Io { .. }),
            StartError::Engine(_) | StartError::Boot(_) | StartError::Internal(_) => false,
        }
    }
}

/// A node that runs.
pub struct Running {
    /// Where clients are served.
    pub client_address: SocketAddr,
    /// Where the other nodes are served.
    pub node_address: SocketAddr,
    /// Where health and metrics are served.
    pub http_address: SocketAddr,
    drain_timeout: Duration,
    draining: CancellationToken,
    ready: watch::Sender<bool>,
    doors: TaskSet,
    tasks: TaskSet,
    stores: Stores,
    // Ends when the rest has ended.
    _consensus: Consensus,
    // Held until everything has ended: a second process must not open the directory before.
    _directory: DataDirectory,
}

/// What a node stands on.
#[derive(Clone)]
pub struct Machine {
    /// Where it keeps its log and what it knows of its cluster.
    pub files: Arc<dyn Files>,
    /// Its wall time.
    pub clock: Clock,
}

impl Default for Machine {
    /// The machine's own files and clock.
    fn default() -> Machine {
        Machine {
            files: Arc::new(DiskFiles),
            clock: Clock::system(),
        }
    }
}

/// Starts a node and returns when it takes requests. The first start returns when the cluster has formed,
/// which waits for the other listed nodes. Dropping it half-way is like a crash.
pub async fn start(options: Options, machine: Machine) -> Result<Running, StartError> {
    options.validate()?;
    handles::raise();
    metrics::install();
    let files = &machine.files;
    let directory = open_directory(&options, files).await?;
    let clients = listen(options.listen_client, "--listen-client").await?;
    let nodes = listen(options.listen_node, "--listen-node").await?;
    let http = listen(options.listen_http, "--listen-http").await?;
    let addresses = (address(&clients)?, address(&nodes)?, address(&http)?);

    let identity = IdentityCell::new();
    let channel: Arc<dyn Channel> = Arc::new(GrpcChannel::of_node(identity.clone()));
    let handler = Handler::new();
    let (ready, readiness) = watch::channel(false);
    let draining = CancellationToken::new();
    let mut doors = TaskSet::new();
    open_probes(http, &handler, &draining, &mut doors);
    let grpc = Doors::new(Arc::new(handler.clone()), new_request_id);
    open_nodes(nodes, &grpc, &identity, options.drain_timeout, &mut doors);

    let setup = Setup {
        name: options.name.clone(),
        initial_cluster: options.initial_cluster.0.clone(),
        token: options.initial_cluster_token.clone(),
        join: options.join.0.clone(),
        node_address: options.node_address(),
        client_address: options.client_address(),
    };
    let (setup, directory, joined) = maybe_join(setup, directory, &channel).await?;
    let (forming, driver) = formation_driver::prepare(setup, directory, Arc::clone(&channel))?;
    handler.form(forming);
    let (formed, directory) = driver.run().await?;
    let layout = layout(&formed);
    let member = introduce(&options, &formed, &directory, &identity)?;
    let members = open_members(files, &directory, &channel, &layout, &member).await?;
    members.learn(joined).await.map_err(members_failed)?;
    let me = Identity {
        cluster: formed.cluster,
        node: member.id,
        incarnation: member.incarnation,
    };

    let consensus = consensus_runtime()?;
    let mut tasks = TaskSet::new();
    let engine = open_engine(&options, &directory).await?;
    let boot = boot(
        &options,
        engine,
        me.node,
        layout,
        &directory,
        (channel, machine.clone()),
        &consensus,
    );
    let assembly = Assembly {
        identity: me,
        member,
        formed,
        members,
        boot,
        space: Space::new(options.free_space_reserve_bytes.0),
        selfcheck: selfcheck::Options {
            interval: options.self_check_interval,
            scrub_bytes_per_s: options.scrub_bytes_per_second.0,
            scrub_interval: options.scrub_interval,
        },
        labels: options.labels.0.clone(),
        role: options.role,
    };
    let stores = assembly.open(&handler, &mut tasks).await?;
    let told = (&ready, &draining);
    watch_node(&stores, told, &mut tasks);
    open_clients(clients, &grpc, readiness, options.drain_timeout, &mut doors);
    info!(cluster = %me.cluster, node = %me.node, name = options.name, clients = %addresses.0, "node started");
    Ok(Running {
        client_address: addresses.0,
        node_address: addresses.1,
        http_address: addresses.2,
        drain_timeout: options.drain_timeout,
        draining,
        ready,
        doors,
        tasks,
        stores,
        _consensus: consensus,
        _directory: directory,
    })
}

impl Running {
    /// Returns when the node cannot go on, with the reason. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            failure = self.doors.failed() => failure.to_string(),
            failure = self.tasks.failed() => failure.to_string(),
        }
    }

    /// Stops in order: readiness off, leaders handed over, requests ended, replicas stopped, engine
    /// flushed, log closed.
    pub async fn stop(self) -> Result<(), StartError> {
        self.draining.cancel();
        self.ready.send_replace(false);
        hand_over(&self.stores.registry).await;
        let drained = self.doors.stop(self.drain_timeout).await;
        let ended = self.tasks.stop(TASK_STOP_MAX).await;
        self.stores.close().await?;
        drained
            .and(ended)
            .map_err(|failure| StartError::Internal(failure.to_string()))
    }
}

async fn open_directory(
    options: &Options,
    files: &Arc<dyn Files>,
) -> Result<DataDirectory, StartError> {
    let (path, name) = (options.data_dir.clone(), options.name.clone());
    let (files, fresh) = (Arc::clone(files), Incarnation(Chance.bytes()));
    Ok(offload(move || DataDirectory::open(files, &path, &name, fresh)).await?)
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        address,
        flag,
        source,
    })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|error| StartError::Internal(format!("ask for a port's address: {error}")))
}

/// The threads of the groups. They may be given up anywhere: a runtime as such must not be dropped by a
/// task.
struct Consensus(Option<Runtime>);

impl Consensus {
    fn handle(&self) -> Handle {
        self.0
            .as_ref()
            .expect("taken only when it is dropped")
            .handle()
            .clone()
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn consensus_runtime() -> Result<Consensus, StartError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder
        .worker_threads(CONSENSUS_THREADS)
        .thread_name("consensus")
        .enable_all()
        .build();
    let built = built.map(|runtime| Consensus(Some(runtime)));
    built.map_err(|error| StartError::Internal(format!("start the threads of the groups: {error}")))
}

/// Before its first cluster a node may ask to be taken into one that exists. Gives the members that
/// were named to it.
async fn maybe_join(
    mut setup: Setup,
    directory: DataDirectory,
    channel: &Arc<dyn Channel>,
) -> Result<(Setup, DataDirectory, Vec<Member>), StartError> {
    if setup.join.is_empty() || directory.formed().is_some() {
        return Ok((setup, directory, Vec::new()));
    }
    let (directory, members) = joining::join(&setup, directory, channel).await?;
    // It has done its work; from here on the node is one that returns.
    setup.join.clear();
    Ok((setup, directory, members))
}

/// Opens the memory of who the members are, this one among them.
async fn open_members(
    files: &Arc<dyn Files>,
    directory: &DataDirectory,
    channel: &Arc<dyn Channel>,
    layout: &InitialLayout,
    own: &Member,
) -> Result<Arc<Members>, StartError> {
    let (path, channel) = (directory.path().to_path_buf(), Arc::clone(channel));
    let (files, own, given) = (Arc::clone(files), own.clone(), layout.members.clone());
    let open = move || Members::open(files, &path, channel, own, given);
    offload(open).await.map(Arc::new).map_err(members_failed)
}

fn members_failed(error: std::io::Error) -> StartError {
    StartError::Internal(format!("remember the members: {error}"))
}

/// Finds out who this node is, and says so from now on: a founder as it stands in the list, a later
/// member as its flags describe it.
fn introduce(
    options: &Options,
    formed: &Formed,
    directory: &DataDirectory,
    cell: &IdentityCell,
) -> Result<Member, StartError> {
    let incarnation = directory.incarnation();
    let nobody = || StartError::Internal("the list does not have this incarnation".into());
    let node = directory.node().ok_or_else(nobody)?;
    let mut founders = layout(formed).members.into_iter();
    let as_founder = founders.find(|member| member.incarnation == incarnation);
    let member = as_founder.unwrap_or_else(|| Member {
        id: node,
        incarnation,
        name: options.name.clone(),
        node_address: options.node_address(),
        client_address: options.client_address(),
    });
    let identity = Identity {
        cluster: formed.cluster,
        node,
        incarnation,
    };
    cell.set(identity)
        .map_err(|_| StartError::Internal("the node has had another identity".into()))?;
    Ok(member)
}

async fn open_engine(
    options: &Options,
    directory: &DataDirectory,
) -> Result<Arc<dyn Engine>, StartError> {
    let path = directory.engine();
    let options = sled::Options {
        cache_bytes: options.cache_bytes.0,
    };
    Ok(Arc::new(
        offload(move || SledEngine::open(&path, &options)).await?,
    ))
}

fn boot(
    options: &Options,
    engine: Arc<dyn Engine>,
    node: NodeId,
    layout: InitialLayout,
    directory: &DataDirectory,
    (channel, machine): (Arc<dyn Channel>, Machine),
    consensus: &Consensus,
) -> Boot {
    Boot {
        node,
        layout,
        directory: directory.path().to_path_buf(),
        wal_directory: directory.wal(),
        engine,
        checkpoint_interval: options.checkpoint_interval,
        files: machine.files,
        clock: machine.clock,
        channel,
        wal: wal::Options {
            segment_bytes: options.log_segment_bytes.0,
            cache_bytes: options.log_cache_bytes.0 as usize,
            spare_segments: options.log_spare_segments as usize,
            ..Default::default()
        },
        raft: raft::Options {
            heartbeat: options.heartbeat_interval,
            election_timeout_min: options.election_timeout_min,
            election_timeout_max: options.election_timeout_max,
            entries_kept: options.log_entries_kept,
            ..Default::default()
        },
        consensus: consensus.handle(),
        fail: broken(),
    }
}

/// What went wrong cannot be asked again and must not answer anybody: the process ends here.
fn broken() -> Fail {
    Arc::new(|why| {
        error!(%why, "the node cannot go on");
        exit(EXIT_BROKEN)
    })
}

fn open_probes(
    listener: TcpListener,
    handler: &Handler,
    draining: &CancellationToken,
    doors: &mut TaskSet,
) {
    let (asked, draining) = (handler.clone(), draining.clone());
    let checks = Arc::new(move || readiness(&asked, &draining));
    let named = handler.clone();
    let console = console::Source {
        service: Arc::new(handler.clone()),
        identity: Arc::new(move || {
            let identity = named.host().ok()?.identity;
            Some((identity.cluster, identity.node))
        }),
    };
    doors.spawn("http", |stop| async move {
        http::serve(listener, checks, console, stop.cancelled_owned()).await?;
        Ok(())
    });
}

fn open_nodes(
    listener: TcpListener,
    grpc: &Doors,
    identity: &IdentityCell,
    grace: Duration,
    doors: &mut TaskSet,
) {
    let (grpc, identity) = (grpc.clone(), identity.clone());
    doors.spawn("nodes", move |token| async move {
        Ok(grpc
            .serve_nodes(listener, identity, Stop { token, grace })
            .await?)
    });
}

fn open_clients(
    listener: TcpListener,
    grpc: &Doors,
    ready: watch::Receiver<bool>,
    grace: Duration,
    doors: &mut TaskSet,
) {
    let grpc = grpc.clone();
    doors.spawn("clients", move |token| async move {
        Ok(grpc
            .serve_clients(listener, ready, Stop { token, grace })
            .await?)
    });
}

/// For a request that came without an id: it covers this node's own attempts only.
fn new_request_id() -> RequestId {
    RequestId::new(Clock::system().wall_ms(), Chance.bytes())
}

fn readiness(handler: &Handler, draining: &CancellationToken) -> Vec<Check> {
    let host = match handler.host() {
        Ok(host) => host,
        Err(error) => {
            return vec![Check {
                name: "stores".into(),
                ok: false,
                detail: error.to_string(),
            }];
        }
    };
    let group = |group: &raft::Group| {
        let view = group.view();
        let ok = view.role != "failed" && view.leader.is_some();
        let leader = view
            .leader
            .map_or("nobody".to_string(), |leader| leader.node.to_string());
        Check {
            name: group.id().to_string(),
            ok,
            detail: format!("{}, led by {leader}", view.role),
        }
    };
    let mut checks: Vec<Check> = host.registry.groups().iter().map(group).collect();
    checks.push(Check {
        name: "running".into(),
        ok: !draining.is_cancelled(),
        detail: if draining.is_cancelled() {
            "stopping"
        } else {
            "not stopping"
        }
        .into(),
    });
    let free = host.space.free_bytes();
    checks.push(Check {
        name: "disk".into(),
        ok: host.space.room() == Room::Enough,
        detail: format!("{free} bytes free"),
    });
    checks
}

/// Looks at figures once a second, and says whether the node is ready.
fn watch_node(
    stores: &Stores,
    (ready, draining): (&watch::Sender<bool>, &CancellationToken),
    tasks: &mut TaskSet,
) {
    let registry = Arc::clone(&stores.registry);
    let checkpoints = stores.checkpoints.clone();
    let (ready, draining) = (ready.clone(), draining.clone());
    tasks.spawn("watch", move |stop: CancellationToken| async move {
        let mut ticks = interval(WATCH_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            metrics::checkpoint_age(checkpoints.age());
            push_group_figures(&registry);
            metrics::upkeep();
            ready.send_if_modified(|ready| {
                let led = |group: &raft::Group| group.view().leader.is_some();
                let now = !draining.is_cancelled() && registry.groups().iter().all(led);
                std::mem::replace(ready, now) != now
            });
        }
        TaskResult::Ok(())
    });
}

fn push_group_figures(registry: &Registry) {
    let views: Vec<_> = registry.groups().iter().map(raft::Group::view).collect();
    let count = |role: &str| views.iter().filter(|view| view.role == role).count();
    metrics::groups(views.len(), count("leader"), count("failed"));
    let lag = views
        .iter()
        .map(|view| view.last_index.saturating_sub(view.applied_index))
        .max();
    metrics::apply_lag(lag.unwrap_or(0));
}

/// Asks another voter to lead each group that this node leads, and waits until it does.
async fn hand_over(registry: &Registry) {
    let handed = registry.groups().into_iter().map(|group| async move {
        let mut leadership = group.leadership();
        // Alone in its group, it has nobody to hand over to.
        if matches!(*leadership.borrow(), Leadership::Leading { .. })
            && group.transfer_leader(None).await.is_ok()
        {
            let gone = leadership.wait_for(|now| !matches!(now, Leadership::Leading { .. }));
            let _ = timeout(HANDOVER_MAX, gone).await;
        }
    });
    futures::future::join_all(handed).await;
}
