//! The library's state machine over [`StateMachine`]: hands it committed entries, in order, off the
//! threads of the library's core.

use std::any::Any;
use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use futures::future::BoxFuture;
use openraft::OptionalSend;
use openraft::RaftSnapshotBuilder;
use openraft::storage::ApplyResponder;
use openraft::storage::EntryResponder;
use openraft::storage::RaftStateMachine;
use tokio::sync::OwnedMutexGuard;
use tokio::sync::watch;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::offload;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Need;
use crate::machine::Received;
use crate::machine::SnapshotReceiver;
use crate::machine::SnapshotSource;
use crate::machine::StateMachine;
use crate::raft::config::LogId;
use crate::raft::config::Snapshot;
use crate::raft::config::SnapshotMeta;
use crate::raft::config::StoredMembership;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::raft::neighbours::Neighbours;
use crate::telemetry::metrics;
use crate::telemetry::metrics::SnapshotWay;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::wal::ReplicaLog;

/// Flushes the node's engine; ends when everything applied before the call survives a power cut.
pub type Flush = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Ends the process: the state machine of a replica panicked or failed. The library never looks at the
/// task that applies, so nobody else would notice, and a machine that went wrong cannot be asked again.
pub type Fail = Arc<dyn Fn(String) + Send + Sync>;

/// Entries and bytes that are handed to the machine at once.
const APPLY_ENTRIES_MAX: usize = 512;
const APPLY_BYTES_MAX: usize = 1024 * 1024;

/// One replica's machine. It outlives the library's instances, of which a reopened group has several
/// in turn.
pub(super) struct Hosted {
    machine: Mutex<Box<dyn StateMachine>>,
    receiver: Box<dyn SnapshotReceiver>,
    applied: watch::Sender<Option<Position>>,
    /// What a flush is known to cover; the only thing that a snapshot is ever built of.
    checkpointed: Mutex<Applied>,
    flush: Flush,
    fail: Fail,
    neighbours: Arc<dyn Neighbours>,
    /// Held by the one [`Applier`] that may touch the machine, and by what it has under way.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Hosted {
    pub(super) fn new(
        machine: Box<dyn StateMachine>,
        flush: Flush,
        fail: Fail,
        neighbours: Arc<dyn Neighbours>,
    ) -> Arc<Hosted> {
        let applied = machine.applied();
        Arc::new(Hosted {
            receiver: machine.receiver(),
            applied: watch::Sender::new(applied.position),
            // The node flushes its engine before it opens a group.
            checkpointed: Mutex::new(applied),
            machine: Mutex::new(machine),
            flush,
            fail,
            neighbours,
            turn: Arc::default(),
        })
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Box<dyn StateMachine>> {
        self.machine
            .lock()
            .expect("a panic in the machine ends the process")
    }

    pub(super) fn receiver(&self) -> &dyn SnapshotReceiver {
        self.receiver.as_ref()
    }

    pub(super) fn applied(&self) -> watch::Receiver<Option<Position>> {
        self.applied.subscribe()
    }

    /// Notes what a flush covers; true when it is more than was known.
    pub(super) fn checkpointed(&self, applied: Applied) -> bool {
        let mut checkpointed = self
            .checkpointed
            .lock()
            .expect("nothing panics under this lock");
        // A snapshot may have been installed since the position was read.
        let is_more = applied.position > checkpointed.position;
        if is_more {
            *checkpointed = applied;
        }
        is_more
    }

    /// Works on the machine, which stands still meanwhile. Blocks. A failure ends the process.
    pub(super) fn on_machine<T>(
        &self,
        work: impl FnOnce(&mut dyn StateMachine) -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        let mut machine = self.machine();
        let outcome = catch_unwind(AssertUnwindSafe(|| work(machine.as_mut())));
        let outcome = outcome
            .unwrap_or_else(|panic| Err(MachineError(format!("panic: {}", panic_text(&panic)))));
        if let Err(error) = &outcome {
            (self.fail)(error.to_string());
            return outcome;
        }
        let (seeded, ended) = (machine.take_seeded(), machine.take_ended());
        drop(machine);
        if !seeded.is_empty() {
            self.neighbours.seeded(seeded);
        }
        if !ended.is_empty() {
            self.neighbours.ended(ended);
        }
        outcome
    }

    /// The library's face of the machine; waits until an earlier one has ended.
    pub(super) async fn applier(self: Arc<Self>, log: ReplicaLog) -> Applier {
        let turn = Arc::new(self.turn().await);
        Applier {
            hosted: self,
            log,
            turn,
        }
    }

    /// Waits until nothing has the machine's turn, and has it.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    pub(super) fn neighbours(&self) -> &dyn Neighbours {
        self.neighbours.as_ref()
    }

    /// Returns when nothing has the machine's turn.
    pub(super) async fn idle(&self) {
        drop(self.turn().await);
    }

    /// Takes a snapshot that has never left this process. Blocks.
    fn copy(&self, mut source: Box<dyn SnapshotSource>) -> Result<Received, MachineError> {
        let mut sink = self.receiver.begin()?;
        while let Some(chunk) = source.next()? {
            sink.chunk(chunk)?;
        }
        sink.finish()
    }

    /// Refuses a snapshot of less than what is applied. The library can let a snapshot wait, and meanwhile
    /// apply entries behind its position (openraft #2116). An error here ends the library's core and not the
    /// process: the group is reopened on the state that it has.
    fn leads_forward(&self, position: Option<Position>) -> io::Result<()> {
        let applied = *self.applied.borrow();
        if position < applied {
            return Err(io::Error::other(format!(
                "a snapshot of {} came after {} was applied",
                position.unwrap_or_default(),
                applied.unwrap_or_default()
            )));
        }
        Ok(())
    }

    fn publish(&self, position: Option<Position>) {
        self.applied
            .send_if_modified(|applied| std::mem::replace(applied, position) != position);
    }
}

fn panic_text(panic: &Box<dyn Any + Send>) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}

/// What a snapshot holds as the library passes it on.
pub(super) enum SnapshotData {
    /// Nothing: tells the library what is durable here. Never sent.
    Checkpoint,
    /// On its way out; read when it is sent.
    Source(Box<dyn SnapshotSource>),
    /// Came in complete.
    Received(Received),
}

pub(super) struct Applier {
    hosted: Arc<Hosted>,
    log: ReplicaLog,
    turn: Arc<OwnedMutexGuard<()>>,
}

impl Applier {
    /// Works on the machine on a thread that may block. The work goes on when the caller is dropped, and
    /// keeps the turn until it has ended.
    async fn on_machine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn StateMachine) -> Result<T, MachineError> + Send + 'static,
    ) -> io::Result<T> {
        let hosted = Arc::clone(&self.hosted);
        let turn = Arc::clone(&self.turn);
        let outcome = offload(move || {
            let outcome = hosted.on_machine(work);
            drop(turn);
            outcome
        });
        outcome.await.map_err(io::Error::other)
    }

    async fn apply_portion(&self, mut portion: Portion) -> io::Result<()> {
        let Some(last) = portion.entries.last().map(|entry| entry.position) else {
            return Ok(());
        };
        self.log.synced(last.index).await?;
        while let Some(need) = self.apply_some(&mut portion).await? {
            let brought = self.hosted.neighbours.bring(need).await;
            brought.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// What ends with a received state, but for what was stopped already.
    async fn displaced(
        &self,
        received: Received,
        stopped: &[ReplicaId],
    ) -> io::Result<(Received, Vec<ReplicaId>)> {
        let found = self.on_machine(move |machine| {
            let displaced = machine.displaces(&received)?;
            Ok((received, displaced))
        });
        let (received, mut displaced) = found.await?;
        displaced.retain(|replica| !stopped.contains(replica));
        Ok((received, displaced))
    }

    /// Applies as much as can be applied; gives what the rest needs.
    async fn apply_some(&self, portion: &mut Portion) -> io::Result<Option<Need>> {
        let entries = std::mem::take(&mut portion.entries);
        let applied = self.on_machine(move |machine| {
            let answers = machine.apply(&entries)?;
            Ok((entries, answers, machine.take_need()))
        });
        let (mut entries, answers, need) = applied.await?;
        if answers.len() != entries.len() && need.is_none() {
            return Err(io::Error::other(
                "the machine owes one answer for each entry",
            ));
        }
        metrics::applied(answers.len());
        portion.entries = entries.split_off(answers.len());
        if let Some(last) = entries.last() {
            self.hosted.publish(Some(last.position));
        }
        portion.answer(answers);
        Ok(need)
    }
}

/// Entries that are applied together, and who waits for each.
#[derive(Default)]
struct Portion {
    entries: Vec<LogEntry>,
    responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    bytes: usize,
}

impl Portion {
    fn push(&mut self, (entry, responder): EntryResponder<TypeConfig>) {
        let entry = convert::to_log_entry(entry);
        self.bytes += entry.payload.bytes().len();
        self.entries.push(entry);
        self.responders.push(responder);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= APPLY_ENTRIES_MAX || self.bytes >= APPLY_BYTES_MAX
    }

    /// Of its first entries.
    fn answer(&mut self, answers: Vec<Bytes>) {
        let responders = self.responders.drain(..answers.len());
        for (responder, answer) in responders.zip(answers) {
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.hosted.machine().applied();
        let membership = convert::to_stored_membership(&applied).map_err(io::Error::other)?;
        Ok((applied.position.map(convert::to_log_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut portion = Portion::default();
        while let Some(entry) = entries.next().await {
            portion.push(entry?);
            if portion.is_full() {
                self.apply_portion(std::mem::take(&mut portion)).await?;
            }
        }
        self.apply_portion(portion).await
    }

    /// `force`: the library needs one now, so the engine is flushed for it.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        if force {
            let applied = self.hosted.machine().applied();
            (self.hosted.flush)().await;
            self.hosted.checkpointed(applied);
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        let checkpointed = self
            .hosted
            .checkpointed
            .lock()
            .expect("nothing panics under this lock")
            .clone();
        CheckpointBuilder { checkpointed }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let mut received = match snapshot {
            SnapshotData::Received(received) => received,
            SnapshotData::Source(source) => self.hosted.copy(source).map_err(io::Error::other)?,
            SnapshotData::Checkpoint => {
                return Err(io::Error::other("a checkpoint cannot be installed"));
            }
        };
        let applied = convert::to_applied(meta);
        self.hosted.leads_forward(applied.position)?;
        let durable = applied.clone();
        let mut stopped = Vec::new();
        loop {
            // Another one may have got its first row while these were stopped.
            let displaced;
            (received, displaced) = self.displaced(received, &stopped).await?;
            if displaced.is_empty() {
                break;
            }
            stopped.extend(&displaced);
            self.hosted.neighbours.stop(displaced).await;
        }
        self.on_machine(move |machine| machine.install(applied, received))
            .await?;
        // The library purges the log up to the snapshot when this returns: it must survive a power cut.
        if !mutant::lives(Mutant::SnapshotNotFlushed) {
            (self.hosted.flush)().await;
        }
        self.hosted.publish(durable.position);
        self.hosted.checkpointed(durable);
        metrics::snapshot_done(SnapshotWay::Installed);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.hosted.applied.borrow().is_none() {
            return Ok(None);
        }
        let source = self.on_machine(|machine| machine.snapshot()).await?;
        let meta = convert::to_meta(&source.applied()).map_err(io::Error::other)?;
        Ok(Some(Snapshot {
            meta,
            snapshot: SnapshotData::Source(source),
        }))
    }
}

/// Builds what the library takes for a snapshot: the position that a flush covers.
pub(super) struct CheckpointBuilder {
    checkpointed: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = convert::to_meta(&self.checkpointed).map_err(io::Error::other)?;
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Checkpoint,
        })
    }
}
