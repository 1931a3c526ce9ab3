//! One replica's membership in one group: opened, watched, reopened, asked and stopped.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::errors::Fatal;
use openraft::errors::ForwardToLeader;
use openraft::errors::RaftError;
use openraft::impls::ProgressResponder;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks;
use crate::error::Error;
use crate::error::Result;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::StateMachine;
use crate::raft::config::Command;
use crate::raft::config::Metrics;
use crate::raft::config::Options;
use crate::raft::config::Raft;
use crate::raft::config::TypeConfig;
use crate::raft::introductions::Introductions;
use crate::raft::log_store::LogStore;
use crate::raft::neighbours::Neighbours;
use crate::raft::network::Network;
use crate::raft::pace::Pace;
use crate::raft::state_machine::Fail;
use crate::raft::state_machine::Flush;
use crate::raft::state_machine::Hosted;
use crate::telemetry::metrics;
use crate::types::GroupId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wal::ReplicaLog;
use crate::wire::request::Channel;

/// How often a group is reopened within [`REOPEN_WINDOW`] before it is left alone and said to have failed.
const REOPENS_MAX: usize = 3;
const REOPEN_WINDOW: Duration = Duration::from_secs(600);

/// What a group is opened with.
pub struct Opening {
    /// The group.
    pub group: GroupId,
    /// The replica, which is Raft's node.
    pub replica: ReplicaId,
    /// Its log.
    pub log: ReplicaLog,
    /// Its state.
    pub machine: Box<dyn StateMachine>,
    /// An entry of its log that is known to be committed, beyond what the machine has applied: opening
    /// applies up to it before anything else happens to the replica.
    pub committed: Option<Position>,
    /// The way to the others.
    pub channel: Arc<dyn Channel>,
    /// Flushes the engine.
    pub flush: Flush,
    /// Ends the process.
    pub fail: Fail,
    /// The other replicas on the node.
    pub neighbours: Arc<dyn Neighbours>,
    /// The shard as the replica knows it, for nodes that do not have their replica yet; `None` where they
    /// have it from the start.
    pub introduction: Introduction,
    /// Whether the replica holds back from the lead from the start: [`Group::hold_back`].
    pub holds_back: bool,
    /// How fast the node sends snapshots.
    pub pace: Arc<Pace>,
    /// Settings.
    pub options: Options,
}

/// Tells what a node has to know to make its replica of a group.
pub type Introduction = Arc<dyn Fn() -> Option<ShardDescriptor> + Send + Sync>;

/// Who leads, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// This replica, in this term. What it proposes may still be refused.
    Leading {
        /// The term.
        term: u64,
    },
    /// Another replica, or nobody known.
    Following {
        /// The leader.
        leader: Option<Replica>,
    },
    /// The group was reopened too often, and is left alone until the node starts again.
    Failed,
}

/// What a group's status line shows.
#[derive(Debug, Clone)]
pub struct View {
    /// `leader`, `follower`, `candidate`, `learner`, `failed`.
    pub role: &'static str,
    /// The leader, if known.
    pub leader: Option<Replica>,
    /// The term.
    pub term: u64,
    /// End of the log.
    pub last_index: u64,
    /// What is applied.
    pub applied_index: u64,
    /// What is purged.
    pub purged_index: u64,
    /// All replicas, voters and learners.
    pub replicas: Vec<Replica>,
}

/// One replica in one group. Cloning shares it.
#[derive(Clone)]
pub struct Group {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    group: GroupId,
    replica: ReplicaId,
    pub(super) store: LogStore,
    pub(super) hosted: Arc<Hosted>,
    pub(super) network: Network,
    pub(super) config: Arc<openraft::Config>,
    /// Entries and bytes that stay in the log behind a checkpoint.
    kept: (u64, u64),
    /// Replaced when the group is reopened.
    raft: RwLock<Raft>,
    leadership: watch::Sender<Leadership>,
    /// It votes and takes entries, and leads no more.
    holds_back: AtomicBool,
    /// The last term in which it was told to hand the lead over.
    pub(super) handed_over: AtomicU64,
    /// When its leader's last message came.
    heard: Mutex<Instant>,
    /// Nothing more is applied here.
    ended: CancellationToken,
    /// Kept until it was awaited.
    supervisor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Group {
    /// Opens the group on its store and watches over it until [`Group::stop`].
    pub async fn open(opening: Opening) -> Result<Group> {
        let config = opening
            .options
            .build(opening.group.to_string())
            .map_err(Error::Internal)?;
        let network = Network {
            group: opening.group,
            from: opening.replica,
            channel: opening.channel,
            outgoing: Arc::default(),
            introductions: Arc::new(Introductions::new(opening.introduction)),
            pace: opening.pace,
        };
        let (machine, neighbours) = (opening.machine, opening.neighbours);
        let hosted = Hosted::new(machine, opening.flush, opening.fail, neighbours);
        let store = LogStore::new(opening.log, opening.committed);
        let elects = !opening.holds_back;
        let raft = start(opening.replica, &config, elects, &network, &store, &hosted).await?;
        let inner = Arc::new(Inner {
            group: opening.group,
            replica: opening.replica,
            store,
            hosted,
            network,
            config,
            kept: (opening.options.entries_kept, opening.options.bytes_kept),
            raft: RwLock::new(raft),
            leadership: watch::Sender::new(Leadership::Following { leader: None }),
            holds_back: AtomicBool::new(opening.holds_back),
            handed_over: AtomicU64::new(0),
            heard: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
            supervisor: tokio::sync::Mutex::default(),
        });
        let supervisor = tasks::spawn(Arc::clone(&inner).supervise());
        *inner.supervisor.lock().await = Some(supervisor);
        Ok(Group { inner })
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.inner.group
    }

    /// The replica's id.
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica
    }

    /// Who leads, and each change of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Whether the group goes on here.
    ///
    /// # Errors
    /// `Unavailable` when it was reopened too often and is left alone.
    pub fn check(&self) -> Result<()> {
        match *self.inner.leadership.borrow() {
            Leadership::Leading { .. } | Leadership::Following { .. } => Ok(()),
            Leadership::Failed => Err(self.failed()),
        }
    }

    /// What is answered where the group was reopened too often and is left alone.
    pub fn failed(&self) -> Error {
        Error::unavailable(self.id(), "its replica here has failed")
    }

    /// How far the replica has applied, and each change of it.
    pub fn applied(&self) -> watch::Receiver<Option<Position>> {
        self.inner.hosted.applied()
    }

    /// Puts a command behind those proposed before it, if this replica still leads in `term`. Waits
    /// while the core's queue is full. The future returned gives the machine's answer; dropping it does
    /// not take the command back. Not cancel-safe: a dropped call may have proposed.
    ///
    /// Errors: `NotLeader` when it was certainly not appended; `Unknown` otherwise, with a request id of
    /// zeros that the caller replaces.
    pub async fn propose(
        &self,
        term: u64,
        command: Bytes,
    ) -> Result<BoxFuture<'static, Result<Bytes>>> {
        let (responder, answer) = ProgressResponder::complete_only();
        let raft = self.inner.raft();
        let sent = raft
            .write(Command(command))
            .with_leader(term)
            .responder(responder)
            .await;
        sent.map_err(|fatal| self.inner.stopped(&fatal))?;
        let inner = Arc::clone(&self.inner);
        Ok(async move {
            match answer.await {
                Ok(Ok(response)) => Ok(response.data),
                Ok(Err(error)) => Err(inner.write_error(error)),
                Err(_) => Err(unknown("the group stopped")),
            }
        }
        .boxed())
    }

    /// Returns when the replica has applied `position`; an error when it ends before that. Cancel-safe.
    pub async fn wait_applied(&self, position: Position) -> Result<()> {
        let mut applied = self.applied();
        let needed = position.index - u64::from(mutant::lives(Mutant::ReaderWaitsOneShort));
        let reaches = applied.wait_for(|applied| applied.is_some_and(|at| at.index >= needed));
        tokio::select! {
            biased;
            reached = reaches => {
                reached.expect("the sender lives in the group");
                Ok(())
            }
            () = self.inner.ended.cancelled() => self.check_lives(),
        }
    }

    pub(super) fn check_lives(&self) -> Result<()> {
        match self.inner.ended.is_cancelled() {
            false => Ok(()),
            true => Err(Error::NotFound {
                what: format!("{} of {}", self.replica(), self.id()),
            }),
        }
    }

    /// How long ago the group's leader was last heard; nothing for a leader.
    pub fn silence(&self) -> Duration {
        match *self.inner.leadership.borrow() {
            Leadership::Leading { .. } => Duration::ZERO,
            Leadership::Following { .. } | Leadership::Failed => {
                let heard = self.inner.heard.lock();
                heard.expect("nothing panics under this lock").elapsed()
            }
        }
    }

    /// Tells the group what a flush of the engine covers, read before the flush began, and lets it purge
    /// its log behind that. Costs an idle group nothing.
    pub async fn checkpointed(&self, applied: Applied) {
        let Some(position) = applied.position else {
            return;
        };
        let is_more = self.inner.hosted.checkpointed(applied);
        let raft = self.inner.raft();
        let (entries_kept, bytes_kept) = self.inner.kept;
        let log = self.inner.store.log();
        let spare = log.purgeable(entries_kept, bytes_kept).min(position.index);
        let outgoing = self.inner.network.outgoing.purgeable();
        let upto = spare.min(outgoing.unwrap_or(u64::MAX));
        let purged = log.state().purged.map_or(0, |purged| purged.index);
        // Both fail only if the group has stopped, which its supervisor sees.
        if is_more {
            let _ = raft.trigger().snapshot().await;
        }
        if upto > purged {
            let _ = raft.trigger().purge_log(upto).await;
        }
    }

    /// How far the machine has come; what a checkpoint reads before it flushes.
    pub fn machine_applied(&self) -> Applied {
        self.inner.hosted.machine().applied()
    }

    /// Removes a portion of what no reader may ask for any more; true when there may be more. Blocks.
    pub fn collect(&self) -> Result<bool, MachineError> {
        let hosted = &self.inner.hosted;
        hosted.on_machine(|machine| match self.inner.ended.is_cancelled() {
            // Its keys may be another replica's by now.
            true => Ok(false),
            false => machine.collect(),
        })
    }

    /// From now on the replica stands for no election and takes no lead that it is offered, for ever: what
    /// it would answer as a leader may be wrong. It votes and takes entries as before, since its group may
    /// need it for a majority. A lead that it has, or is about to win, it must be told to give up.
    pub fn hold_back(&self) {
        self.inner.holds_back.store(true, Ordering::SeqCst);
        // Behind the mark: a core that is being reopened meanwhile sees it.
        self.inner.raft().runtime_config().elect(false);
    }

    /// Stands for election now, without waiting for a leader to be missed. For a replica that was split off
    /// on the node that leads its parent. One that holds back does not.
    pub async fn elect(&self) -> Result<()> {
        if self.inner.holds_back() {
            return Ok(());
        }
        let raft = self.inner.raft();
        let asked = raft.trigger().elect(false).await;
        asked.map_err(|fatal| self.inner.stopped(&fatal))
    }

    /// As the leader, tells all followers now what is committed; they would hear of it with the next entry or
    /// heartbeat.
    pub async fn announce(&self) -> Result<()> {
        let raft = self.inner.raft();
        let asked = raft.trigger().heartbeat().await;
        asked.map_err(|fatal| self.inner.stopped(&fatal))
    }

    /// What a status line shows.
    pub fn view(&self) -> View {
        let raft = self.inner.raft();
        let metrics = raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let failed = *self.inner.leadership.borrow() == Leadership::Failed;
        View {
            role: if failed {
                "failed"
            } else {
                role(metrics.state)
            },
            leader: self.inner.locate(metrics.current_leader),
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: self
                .inner
                .hosted
                .applied()
                .borrow()
                .map_or(0, |position| position.index),
            purged_index: self
                .inner
                .store
                .log()
                .state()
                .purged
                .map_or(0, |position| position.index),
            replicas: membership
                .nodes()
                .map(|(id, node)| Replica {
                    id: *id,
                    node: *node,
                })
                .collect(),
        }
    }

    /// Makes the library's core panic.
    #[cfg(test)]
    pub(super) async fn panic_core(&self) {
        let _ = self
            .inner
            .raft()
            .with_raft_state(|_| panic!("the core is made to panic"))
            .await;
    }

    /// Stops the replica; its store stays. Queued log writes have ended when it returns.
    pub async fn stop(&self) {
        let mut supervisor = self.inner.supervisor.lock().await;
        if let Some(running) = supervisor.as_mut() {
            running.abort();
            // It may be opening the group again at this moment; what it opens must be shut down too.
            let _ = running.await;
        }
        *supervisor = None;
        drop(supervisor);
        let raft = self.inner.raft();
        if let Err(error) = raft.shutdown().await {
            warn!(group = %self.inner.group, %error, "the group's core did not end by itself");
        }
        self.inner.store.log().drained().await;
    }

    /// As [`Group::stop`], for ever: when it returns nothing works on the replica's machine any more, and
    /// whoever waits for it to apply something is told.
    pub async fn end(&self) {
        self.stop().await;
        self.inner.ended.cancel();
        self.inner.hosted.idle().await;
        // A portion of collection that began before may be under way; none begins any more.
        let hosted = Arc::clone(&self.inner.hosted);
        tasks::offload(move || drop(hosted.machine())).await;
    }
}

async fn start(
    replica: ReplicaId,
    config: &Arc<openraft::Config>,
    elects: bool,
    network: &Network,
    store: &LogStore,
    hosted: &Arc<Hosted>,
) -> Result<Raft> {
    let config = openraft::Config {
        enable_elect: elects,
        ..openraft::Config::clone(config)
    };
    let applier = Arc::clone(hosted).applier(store.log().clone()).await;
    let opened = Raft::new(
        replica,
        Arc::new(config),
        network.clone(),
        store.clone(),
        applier,
    )
    .await;
    opened.map_err(|fatal| Error::Internal(format!("open {} as {replica}: {fatal}", network.group)))
}

fn role(state: openraft::ServerState) -> &'static str {
    match state {
        openraft::ServerState::Leader => "leader",
        openraft::ServerState::Follower => "follower",
        openraft::ServerState::Candidate => "candidate",
        openraft::ServerState::Learner => "learner",
        openraft::ServerState::Shutdown => "failed",
    }
}

fn unknown(reason: &str) -> Error {
    Error::Unknown {
        request: RequestId::default(),
        reason: reason.to_string(),
    }
}

impl Inner {
    pub(super) fn raft(&self) -> Raft {
        self.raft
            .read()
            .expect("nothing panics under this lock")
            .clone()
    }

    pub(super) fn stopped(&self, fatal: &Fatal<TypeConfig>) -> Error {
        Error::unavailable(
            self.group,
            format!("{} is being reopened: {fatal}", self.replica),
        )
    }

    pub(super) fn raft_error(&self, error: &RaftError<TypeConfig>) -> Error {
        match error {
            RaftError::APIError(never) => match *never {},
            RaftError::Fatal(fatal) => self.stopped(fatal),
        }
    }

    pub(super) fn not_leader(&self, forward: &ForwardToLeader<TypeConfig>) -> Error {
        Error::NotLeader {
            group: self.group,
            leader: forward.leader_node,
        }
    }

    fn write_error(&self, error: ClientWriteError<TypeConfig>) -> Error {
        match error {
            ClientWriteError::ForwardToLeader(forward) => self.not_leader(&forward),
            // The entry may be committed by another leader.
            ClientWriteError::LogEntryDiscarded(_)
                if mutant::lives(Mutant::UnknownCalledRefused) =>
            {
                Error::invalid("write", "the leader changed")
            }
            ClientWriteError::LogEntryDiscarded(_) => unknown("the leader changed"),
            ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_) => Error::Internal(format!(
                "a command was taken for a membership change: {error}"
            )),
        }
    }

    pub(super) fn holds_back(&self) -> bool {
        self.holds_back.load(Ordering::SeqCst)
    }

    /// A message of the leader has come and was not too late.
    pub(super) fn hear(&self) {
        *self.heard.lock().expect("nothing panics under this lock") = Instant::now();
    }

    fn locate(&self, replica: Option<ReplicaId>) -> Option<Replica> {
        let raft = self.raft();
        let id = replica?;
        let metrics = raft.metrics();
        located(&metrics.borrow_watched(), id)
    }

    /// The term, and who leads in it.
    fn leadership_in(&self, now: &Metrics) -> Result<(u64, Leadership), Fatal<TypeConfig>> {
        now.running_state.clone()?;
        let term = now.current_term;
        let leads =
            now.state == openraft::ServerState::Leader && now.current_leader == Some(self.replica);
        let leadership = match leads {
            true => Leadership::Leading { term },
            false => Leadership::Following {
                leader: now.current_leader.and_then(|id| located(now, id)),
            },
        };
        Ok((term, leadership))
    }

    /// Follows the library's state; reopens the group when the library has failed.
    async fn supervise(self: Arc<Self>) {
        let mut reopened: Vec<Instant> = Vec::new();
        loop {
            let why = self.follow().await;
            self.leadership
                .send_replace(Leadership::Following { leader: None });
            reopened.retain(|at| at.elapsed() < REOPEN_WINDOW);
            if reopened.len() >= REOPENS_MAX {
                error!(group = %self.group, replica = %self.replica, %why, "group failed too often, left alone");
                self.leadership.send_replace(Leadership::Failed);
                return;
            }
            reopened.push(Instant::now());
            warn!(group = %self.group, replica = %self.replica, %why, "group failed, reopening it");
            if let Err(error) = self.reopen().await {
                error!(group = %self.group, replica = %self.replica, %error, "group could not be reopened");
                self.leadership.send_replace(Leadership::Failed);
                return;
            }
        }
    }

    /// Publishes who leads until the library fails; returns why. Wakes at each step of the library's core, so it
    /// copies nothing of what it looks at.
    async fn follow(&self) -> String {
        let mut metrics = self.raft().metrics();
        loop {
            let seen = self.leadership_in(&metrics.borrow_and_update());
            let (term, leadership) = match seen {
                Ok(seen) => seen,
                Err(fatal) => return fatal.to_string(),
            };
            let has_changed = self.leadership.send_if_modified(|known| {
                let changed = *known != leadership;
                *known = leadership;
                changed
            });
            if has_changed {
                metrics::leader_changed();
                info!(group = %self.group, replica = %self.replica, term, ?leadership, "leadership");
            }
            if has_changed && matches!(leadership, Leadership::Leading { .. }) {
                // It may serve when a majority has answered. Fails only when the core ends, which is seen below.
                let _ = self.raft().trigger().heartbeat().await;
            }
            if metrics.changed().await.is_err() {
                return "its core has gone".to_string();
            }
        }
    }

    async fn reopen(&self) -> Result<()> {
        let old = self.raft();
        // Ends the apply worker, which holds the machine's turn until its last work is done.
        let _ = old.shutdown().await;
        self.store.log().drained().await;
        let raft = start(
            self.replica,
            &self.config,
            !self.holds_back(),
            &self.network,
            &self.store,
            &self.hosted,
        )
        .await?;
        *self.raft.write().expect("nothing panics under this lock") = raft;
        // It may have been told while this one was being started.
        if self.holds_back() {
            self.raft().runtime_config().elect(false);
        }
        Ok(())
    }
}

fn located(now: &Metrics, id: ReplicaId) -> Option<Replica> {
    let membership = now.membership_config.membership();
    let node = membership.get_node(&id).copied()?;
    Some(Replica { id, node })
}

/// Keeps the compiler honest: a group may be asked from any task.
const _: fn() = || {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Group>();
    fn sent<T: Send>(_: T) {}
    let _ = |group: Group| sent(async move { group.read_position().await });
};
