//! The nodes of a simulated cluster: each a whole node without doors, on a disk and an engine in memory that
//! forget what was not synced, ended at any moment and opened again on what it has left.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use quorate::engine::Engine;
use quorate::engine::MemoryEngine;
use quorate::env::clock::Clock;
use quorate::env::life::Life;
use quorate::env::tasks::TaskSet;
use quorate::node::boot::Boot;
use quorate::node::checkpoint::Checkpoints;
use quorate::node::formation;
use quorate::node::formation::Formed;
use quorate::node::members::Members;
use quorate::node::merges::Merges;
use quorate::node::registry::Registry;
use quorate::node::selfcheck;
use quorate::raft;
use quorate::server::assembly::Assembly;
use quorate::server::handler::Handler;
use quorate::server::space::Space;
use quorate::testkit::disk::CrashDisk;
use quorate::types::ClusterId;
use quorate::types::Incarnation;
use quorate::types::NodeId;
use quorate::types::node::Identity;
use quorate::types::node::Role;
use quorate::types::rule::Labels;
use quorate::wal;
use quorate::wire::request::Channel;
use quorate::wire::request::Founder;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::fault::Crash;
use crate::fault::Plan;
use crate::fault::Sizes;
use crate::net::Net;
use crate::net::Reached;
use crate::steps::SteppedEngine;
use crate::steps::SteppedFiles;
use crate::steps::Steps;
use crate::trace::Trace;

const CLUSTER: ClusterId = ClusterId([7; 16]);
/// The clocks of a run begin here: some day.
const EPOCH_MS: u64 = 1_750_000_000_000;
/// A disk has room or none.
const RESERVE_BYTES: u64 = 1_000;
/// A node that ended because its disk failed is started again after this long.
const REPAIR: Duration = Duration::from_millis(700);
/// What a node says that ends of a disk that is full or fails.
const INFLICTED: [&str; 2] = ["injected sync failure", "no storage space"];

pub struct Cluster {
    pub net: Arc<Net>,
    seats: Vec<Seat>,
    sizes: Sizes,
    trace: Trace,
}

/// What a node leaves behind, and the node while it lives.
struct Seat {
    id: NodeId,
    disk: CrashDisk,
    engine: Arc<MemoryEngine>,
    clock: Clock,
    /// What the next crash takes.
    doom: Option<(Crash, Duration)>,
    node: Option<Node>,
    back_at: Option<Instant>,
    /// A disk fault was put in: the node may end by itself, once.
    may_fail: bool,
}

/// A running node.
struct Node {
    life: Life,
    steps: Arc<Steps>,
    opened: Arc<Mutex<Option<Opened>>>,
    /// Why it has ended though nobody has ended it.
    failure: Arc<Mutex<Option<String>>>,
}

/// What is seen of an open node.
#[derive(Clone)]
pub struct Opened {
    pub registry: Arc<Registry>,
    pub checkpoints: Checkpoints,
    pub merges: Merges,
    pub life: Life,
}

/// Nodes that have ended.
#[derive(Default)]
pub struct Buried {
    pub nodes: Vec<NodeId>,
    /// Those that nobody has ended, and why they did.
    pub surprises: Vec<String>,
}

impl Cluster {
    /// Nodes that have never run.
    pub fn new(net: Arc<Net>, plan: &Plan, trace: Trace) -> Cluster {
        let seats = plan.drifts_ppm.iter().zip(1..).map(|(drift_ppm, id)| Seat {
            id: NodeId(id),
            disk: CrashDisk::new(),
            engine: Arc::new(MemoryEngine::new()),
            clock: Clock::virtual_from(EPOCH_MS, *drift_ppm),
            doom: None,
            node: None,
            back_at: None,
            may_fail: false,
        });
        Cluster {
            net,
            seats: seats.collect(),
            sizes: plan.sizes,
            trace,
        }
    }

    /// The nodes' ids.
    pub fn ids(&self) -> Vec<NodeId> {
        self.seats.iter().map(|seat| seat.id).collect()
    }

    /// Starts a node that is not running.
    pub fn start(&mut self, id: NodeId) {
        let founders: Vec<Founder> = self.seats.iter().map(|seat| founder(seat.id)).collect();
        let channel = self.net.channel(id);
        let sizes = self.sizes;
        let seat = self.seat(id);
        if seat.node.is_some() {
            return;
        }
        let (life, steps, handler) = (Life::new(), Arc::new(Steps::default()), Handler::new());
        let (opened, failure) = (Arc::default(), Arc::default());
        let node = Node {
            life: life.clone(),
            steps: Arc::clone(&steps),
            opened: Arc::clone(&opened),
            failure: Arc::clone(&failure),
        };
        let fail = fails(&node);
        let assembly = match seat.assembly(founders, channel, &node, sizes) {
            Ok(assembly) => assembly,
            Err(error) => return seat.stay_down(&error.to_string()),
        };
        let reached = handler.clone();
        tokio::spawn(life.clone().live(async move {
            let mut tasks = TaskSet::new();
            let why = match assembly.open(&handler, &mut tasks).await {
                Ok(stores) => {
                    let host = handler.host().expect("it is open");
                    *lock(&opened) = Some(Opened {
                        registry: Arc::clone(&stores.registry),
                        checkpoints: stores.checkpoints.clone(),
                        merges: host.merges.clone(),
                        life: Life::current().expect("a node has a life"),
                    });
                    let failed = tasks.failed().await.to_string();
                    drop(stores);
                    failed
                }
                Err(error) => format!("open: {error}"),
            };
            fail(why);
        }));
        let ended = steps.ended();
        let follows = life.clone();
        tokio::spawn(async move {
            ended.cancelled().await;
            follows.end();
        });
        seat.node = Some(node);
        seat.back_at = None;
        self.net.put(
            id,
            Reached {
                handler: reached,
                life,
            },
        );
        self.trace.say(format_args!("{id} starts"));
    }

    /// Ends nodes: now, or each at the so-manieth change of its disk from now on.
    pub fn crash(
        &mut self,
        ids: &[NodeId],
        how: Crash,
        at_step: Option<u64>,
        back_after: Duration,
    ) {
        for id in ids {
            let seat = self.seat(*id);
            seat.doom = Some((how, back_after));
            match (&seat.node, at_step) {
                (Some(node), Some(step)) => node.steps.count_until(Some(step)),
                (Some(node), None) => node.steps.end(),
                (None, _) => {}
            }
        }
    }

    /// Clears up behind the nodes that have ended, and starts those whose time has come.
    pub fn bury(&mut self) -> Buried {
        let mut buried = Buried::default();
        for seat in &mut self.seats {
            let Some(node) = seat.node.take_if(|node| node.steps.ended().is_cancelled()) else {
                continue;
            };
            node.end();
            let failure = lock(&node.failure).take();
            let (how, back_after) = seat
                .doom
                .take()
                .unwrap_or((Crash::Kill { kept: u64::MAX }, REPAIR));
            self.trace
                .say(format_args!("{} has ended: {how:?} {failure:?}", seat.id));
            buried.nodes.push(seat.id);
            let is_inflicted =
                |why: &String| seat.may_fail && INFLICTED.iter().any(|text| why.contains(text));
            if let Some(why) = failure.filter(|why| !is_inflicted(why)) {
                buried
                    .surprises
                    .push(format!("{} ended by itself: {why}", seat.id));
            }
            // One fault is forgiven one end.
            seat.may_fail = false;
            let kept = match how {
                Crash::Kill { kept } => {
                    seat.disk.kill();
                    kept
                }
                Crash::PowerCut { seed, kept } => {
                    seat.disk.crash(seed ^ seat.id.0);
                    kept
                }
            };
            seat.may_fail |= seat.disk.may_fail();
            seat.engine
                .crash(usize::try_from(kept).unwrap_or(usize::MAX));
            seat.back_at = Some(Instant::now() + back_after);
        }
        let now = Instant::now();
        let due = self
            .seats
            .iter()
            .filter(|seat| seat.back_at.is_some_and(|at| at <= now));
        for id in due.map(|seat| seat.id).collect::<Vec<_>>() {
            self.start(id);
        }
        buried
    }

    /// From now on the node is given no turn, or is again.
    pub fn pause(&mut self, id: NodeId, paused: bool) {
        if let Some(node) = &self.seat(id).node {
            match paused {
                true => node.life.pause(),
                false => node.life.resume(),
            }
        }
    }

    /// One of the next syncs of a node's disk fails, which ends the node.
    pub fn fail_sync(&mut self, id: NodeId, nth: u64) {
        let seat = self.seat(id);
        seat.may_fail = true;
        seat.disk.fail_sync(nth);
    }

    /// From now on a node's disk takes no further byte, or does again. A node may end of it.
    pub fn fill_disk(&mut self, id: NodeId, is_full: bool) {
        let seat = self.seat(id);
        seat.may_fail |= is_full;
        seat.disk.set_full(is_full);
    }

    /// From now on a node's disk takes so long for each round of the log at most. A node bears it.
    pub fn slow_disk(&mut self, id: NodeId, busy_ms: u64) {
        self.seat(id).disk.set_busy_ms(busy_ms);
    }

    /// A node's clock.
    pub fn clock(&mut self, id: NodeId) -> Clock {
        self.seat(id).clock.clone()
    }

    /// Disks and clocks are as they should be, nodes go on, and those that are down come back.
    pub fn heal(&mut self) {
        for id in self.ids() {
            self.pause(id, false);
            let seat = self.seat(id);
            seat.disk.repair();
            if let Some(node) = &seat.node {
                // What was to end it later does not.
                node.steps.count_until(None);
            }
            seat.doom = None;
            seat.back_at = seat.back_at.map(|_| Instant::now());
        }
    }

    /// From now on no node may end by itself.
    pub fn must_not_fail(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.may_fail = false);
    }

    /// The nodes that are open.
    pub fn open(&self) -> Vec<(NodeId, Opened)> {
        let open = self.seats.iter();
        open.filter_map(|seat| Some((seat.id, seat.opened()?)))
            .collect()
    }

    fn seat(&mut self, id: NodeId) -> &mut Seat {
        let mut seats = self.seats.iter_mut();
        let found = seats.find(|seat| seat.id == id);
        found.expect("a plan names nodes that there are")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.net.clear();
        for seat in &mut self.seats {
            if let Some(node) = seat.node.take() {
                node.steps.end();
                node.end();
            }
        }
    }
}

impl Node {
    /// Nothing of it is given a turn any more, or kept in memory.
    fn end(&self) {
        self.life.end();
        let opened = lock(&self.opened).take();
        if let Some(opened) = opened {
            opened.registry.clear();
        }
    }
}

impl Seat {
    fn opened(&self) -> Option<Opened> {
        let node = self.node.as_ref()?;
        match node.steps.ended().is_cancelled() {
            true => None,
            false => lock(&node.opened).clone(),
        }
    }

    fn stay_down(&mut self, why: &str) {
        assert!(self.may_fail, "{} does not start: {why}", self.id);
        self.back_at = Some(Instant::now() + REPAIR);
    }

    fn assembly(
        &self,
        founders: Vec<Founder>,
        channel: Arc<dyn Channel>,
        node: &Node,
        sizes: Sizes,
    ) -> std::io::Result<Assembly> {
        let engine: Arc<dyn Engine> = Arc::new(SteppedEngine {
            engine: Arc::clone(&self.engine),
            steps: Arc::clone(&node.steps),
            flush_ms: sizes.flush_ms,
        });
        let files = Arc::new(SteppedFiles {
            disk: self.disk.clone(),
            steps: Arc::clone(&node.steps),
        });
        let formed = Formed {
            cluster: CLUSTER,
            token: "simulated".to_owned(),
            founders,
        };
        let layout = formation::layout(&formed);
        let mut members = layout.members.iter();
        let member = members.find(|member| member.id == self.id).cloned();
        let member = member.expect("every node is a founder");
        let directory = PathBuf::from(self.id.to_string());
        let members = Members::open(
            files.clone(),
            &directory,
            Arc::clone(&channel),
            member.clone(),
            layout.members.clone(),
        )?;
        let failing = fails(node);
        Ok(Assembly {
            identity: Identity {
                cluster: CLUSTER,
                node: self.id,
                incarnation: member.incarnation,
            },
            member,
            formed,
            members: Arc::new(members),
            boot: Boot {
                node: self.id,
                layout,
                wal_directory: directory.join("log"),
                directory,
                engine,
                checkpoint_interval: Duration::from_secs(2),
                files,
                clock: self.clock.clone(),
                channel,
                wal: wal::Options {
                    segment_bytes: sizes.segment_bytes,
                    spare_segments: 1,
                    ..wal::Options::default()
                },
                raft: raft::Options {
                    entries_kept: sizes.entries_kept,
                    bytes_kept: 16 * 1024,
                    ..raft::Options::default()
                },
                consensus: Handle::current(),
                fail: Arc::new(failing),
            },
            space: Space::new(RESERVE_BYTES),
            selfcheck: selfcheck::Options {
                interval: Duration::from_secs(2),
                scrub_bytes_per_s: 1024 * 1024,
                scrub_interval: Duration::from_secs(10),
            },
            labels: Labels::new(),
            role: Role::Both,
        })
    }
}

/// Ends a node that cannot go on.
fn fails(node: &Node) -> impl Fn(String) + Send + Sync + use<> {
    let (steps, failure) = (Arc::clone(&node.steps), Arc::clone(&node.failure));
    move |why| {
        // After the end of the node its tasks fail for that alone.
        if !steps.ended().is_cancelled() {
            steps.end();
            lock(&failure).get_or_insert(why);
        }
    }
}

fn founder(id: NodeId) -> Founder {
    Founder {
        name: id.to_string(),
        incarnation: Incarnation([id.0 as u8; 16]),
        node_address: id.to_string(),
        client_address: id.to_string(),
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().expect("nothing panics under this lock")
}
