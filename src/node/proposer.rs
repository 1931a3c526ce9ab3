//! The one owner of what a shard's replica proposes: stamps it, gathers writes that wait together into one entry,
//! and proposes that. While the replica does not lead, every write is answered with who does.
//!
//! - **Stamps rise in the order of the log.** One task stamps and proposes, in that order. A new leader
//!   stamps only after a barrier, when it has applied everything that earlier leaders stamped, and
//!   after its clock has adopted the last stamp and the closed ceiling.
//! - **A proposal is of one term.** Stamps given in a term are never proposed in another.
//! - **The stamp of a write is above the time of its id,** so that a repeat is looked for only among
//!   versions above it. An id a little ahead of our clock waits here until the clock has passed it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::env::clock::Clock;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Effect;
use crate::error::Error;
use crate::error::Result;
use crate::hlc;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::shard::ShardReader;
use crate::shard::command::Answer;
use crate::shard::command::Body;
use crate::shard::command::Command;
use crate::shard::command::Header;
use crate::shard::merge_command::MergeStep;
use crate::telemetry::metrics;
use crate::telemetry::metrics::ProposalOutcome;
use crate::telemetry::metrics::Queue;
use crate::types::Timestamp;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;

/// Full: the write is answered Overloaded.
pub const WRITES_WAITING_MAX: usize = 4_096;
/// Full: the change is answered Overloaded.
pub const CHANGES_WAITING_MAX: usize = 16;
/// Entries that may be under way at once. Beyond [`ENTRIES_EAGER_MAX`] only full ones are sent.
const ENTRIES_IN_FLIGHT_MAX: usize = 8;
/// With fewer entries than this under way, whatever waits is sent at once.
const ENTRIES_EAGER_MAX: usize = 2;
/// Writes in one entry.
const ENTRY_WRITES_MAX: usize = 256;
/// Bytes of keys and values after which an entry is full.
const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// An id further ahead of our clock than this is refused; a nearer one waits.
const AHEAD_MS_MAX: u64 = 1_000;

/// A write and who waits for its outcome.
pub struct Pending {
    /// The write.
    pub write: Write,
    /// Where its outcome goes.
    pub outcome: oneshot::Sender<Result<WriteOutcome>>,
}

/// A change of the shard itself (a split, a step of a merge) and who waits for its outcome.
pub struct PendingChange {
    /// The shard as it was when the change was planned.
    pub planned: Epoch,
    /// The change.
    pub body: Body,
    /// Where its outcome goes.
    pub outcome: oneshot::Sender<Result<Answer>>,
}

impl Pending {
    fn bytes(&self) -> usize {
        match &self.write.kind {
            WriteKind::Keys {
                conditions,
                operations,
            } => {
                let conditions = conditions.iter().map(condition_bytes);
                conditions
                    .chain(operations.iter().map(operation_bytes))
                    .sum()
            }
            // As much work as a full entry: it has one of its own.
            WriteKind::Range { .. } => ENTRY_BYTES_MAX,
        }
    }

    fn answer(self, outcome: Result<WriteOutcome>) {
        // A caller that has gone asks again with the same id.
        let _ = self.outcome.send(outcome);
    }
}

/// What an operation or condition weighs beside its key and value: in the log, and as work when it is applied.
const ITEM_BYTES: usize = 64;

fn operation_bytes(operation: &Operation) -> usize {
    ITEM_BYTES
        + match operation {
            Operation::Put { key, value } => key.len() + value.len(),
            Operation::Delete { key } => key.len(),
        }
}

fn condition_bytes(condition: &Condition) -> usize {
    ITEM_BYTES
        + match condition {
            Condition::Value { key, value } => key.len() + value.len(),
            Condition::Version { key, .. } | Condition::Exists { key } => key.len(),
        }
}

/// The task's state.
pub struct Proposer {
    group: Group,
    reader: ShardReader,
    clock: Clock,
    hlc: hlc::Clock,
    waiting: mpsc::Receiver<Pending>,
    changes: mpsc::Receiver<PendingChange>,
    leadership: watch::Receiver<Leadership>,
    role: Role,
    gathered: Vec<Pending>,
    gathered_bytes: usize,
    /// Writes whose id is ahead of our clock, by the millisecond at which they are due.
    early: BTreeMap<u64, Vec<Pending>>,
    early_count: usize,
    in_flight: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// What the proposer may do.
enum Role {
    /// Nothing: somebody else leads.
    Following,
    /// Nothing yet: the barrier of a new term is under way. Writes wait.
    Preparing {
        term: u64,
        barrier: BoxFuture<'static, Result<()>>,
    },
    /// Propose in this term.
    Leading { term: u64 },
}

impl Role {
    /// Ends with the barrier; never, when none is under way. Cancel-safe.
    async fn prepared(&mut self) -> Event {
        match self {
            Role::Preparing { term, barrier } => Event::Prepared(*term, barrier.await),
            Role::Following | Role::Leading { .. } => futures::future::pending().await,
        }
    }
}

enum Event {
    Stopped,
    LeadershipChanged,
    Prepared(u64, Result<()>),
    Landed,
    Arrived(Pending),
    Change(PendingChange),
    Due,
}

impl Proposer {
    /// The owner of a replica's writes and of changes of its shard; they arrive over the two receivers.
    pub fn new(
        group: Group,
        reader: ShardReader,
        clock: Clock,
        (waiting, changes): (mpsc::Receiver<Pending>, mpsc::Receiver<PendingChange>),
    ) -> Proposer {
        let mut leadership = group.leadership();
        leadership.mark_changed();
        Proposer {
            group,
            reader,
            clock,
            hlc: hlc::Clock::default(),
            waiting,
            changes,
            leadership,
            role: Role::Following,
            gathered: Vec::new(),
            gathered_bytes: 0,
            early: BTreeMap::new(),
            early_count: 0,
            in_flight: FuturesUnordered::new(),
        }
    }

    /// Runs until the last sender of writes is gone or the group stops.
    pub async fn run(mut self) {
        loop {
            let event = self.next().await;
            match event {
                Event::Stopped => return,
                Event::Change(pending) => self.change(pending).await,
                other => self.handle(other),
            }
            while let Some((term, batch)) = self.take_batch() {
                self.propose(term, batch).await;
            }
        }
    }

    /// Cancel-safe in every arm: nothing is taken without becoming an event.
    async fn next(&mut self) -> Event {
        let room = self.has_room();
        let preparing = matches!(self.role, Role::Preparing { .. });
        let due = self.early.keys().next().copied();
        let wait = due.map_or(Duration::MAX, |due| {
            Duration::from_millis(due.saturating_sub(self.clock.wall_ms()))
        });
        tokio::select! {
            biased;
            changed = self.leadership.changed() => match changed {
                Ok(()) => Event::LeadershipChanged,
                Err(_) => Event::Stopped,
            },
            prepared = self.role.prepared(), if preparing => prepared,
            Some(()) = self.in_flight.next(), if !self.in_flight.is_empty() => Event::Landed,
            () = sleep(wait), if due.is_some() => Event::Due,
            Some(pending) = self.changes.recv(), if !preparing => Event::Change(pending),
            pending = self.waiting.recv(), if room && !preparing => match pending {
                Some(pending) => Event::Arrived(pending),
                None => Event::Stopped,
            },
        }
    }

    fn has_room(&self) -> bool {
        self.gathered.len() < ENTRY_WRITES_MAX && self.gathered_bytes < ENTRY_BYTES_MAX
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Stopped | Event::Landed | Event::Change(_) => {}
            Event::LeadershipChanged => self.follow_leadership(),
            Event::Prepared(term, Ok(())) => self.start_leading(term),
            // Not the leader after all, or no quorum: the next change of leadership decides; until then
            // the barrier is tried again, since a leader without a recent quorum may get it back.
            Event::Prepared(term, Err(_)) => self.prepare(term, Duration::from_millis(20)),
            Event::Arrived(pending) => self.arrive_all(pending),
            Event::Due => self.admit_early(),
        }
    }

    fn follow_leadership(&mut self) {
        let leadership = *self.leadership.borrow_and_update();
        let known = match &self.role {
            Role::Following => None,
            Role::Preparing { term, .. } | Role::Leading { term } => Some(*term),
        };
        match leadership {
            Leadership::Leading { term } if known == Some(term) => {}
            Leadership::Leading { term } => {
                self.refuse_gathered();
                self.prepare(term, Duration::ZERO);
            }
            Leadership::Following { .. } | Leadership::Failed => {
                self.role = Role::Following;
                self.refuse_gathered();
            }
        }
    }

    /// Waits until everything that earlier leaders stamped is applied here.
    fn prepare(&mut self, term: u64, after: Duration) {
        let group = self.group.clone();
        let barrier = async move {
            sleep(after).await;
            let position = group.read_position().await?;
            group.wait_applied(position).await
        };
        self.role = Role::Preparing {
            term,
            barrier: barrier.boxed(),
        };
    }

    fn start_leading(&mut self, term: u64) {
        let row = self.reader.row();
        if !mutant::lives(Mutant::StampsMayFall) {
            self.hlc.adopt(row.last_stamp);
        }
        self.hlc.adopt(row.ceiling);
        self.role = Role::Leading { term };
    }

    /// Takes what has arrived together, so that one wake-up serves it all.
    fn arrive_all(&mut self, first: Pending) {
        self.arrive(first);
        while self.has_room() {
            match self.waiting.try_recv() {
                Ok(pending) => self.arrive(pending),
                Err(_) => return,
            }
        }
    }

    fn arrive(&mut self, pending: Pending) {
        if pending.outcome.is_closed() {
            // Its caller has given up, and was told that it may have happened: it need not.
            return;
        }
        if !matches!(self.role, Role::Leading { .. }) {
            let refusal = self.not_leader();
            return pending.answer(Err(refusal));
        }
        let (now, due) = (self.clock.wall_ms(), pending.write.id.wall_ms());
        if due > now + AHEAD_MS_MAX {
            return pending.answer(Err(Error::ClockAhead {
                wait: Duration::from_millis(due - now),
            }));
        }
        match due > now && !mutant::lives(Mutant::StampBelowItsRequest) {
            true => self.wait_for_clock(due, pending),
            false => self.gather(pending),
        }
    }

    fn wait_for_clock(&mut self, due: u64, pending: Pending) {
        if self.early_count >= WRITES_WAITING_MAX {
            return pending.answer(Err(Error::Overloaded {
                queue: "writes ahead of the cluster's clock".to_string(),
                retry_after: Duration::from_millis(100),
            }));
        }
        self.early_count += 1;
        self.early.entry(due).or_default().push(pending);
    }

    fn admit_early(&mut self) {
        let later = self.early.split_off(&(self.clock.wall_ms() + 1));
        let due = std::mem::replace(&mut self.early, later);
        for pending in due.into_values().flatten() {
            self.early_count -= 1;
            self.arrive(pending);
        }
    }

    fn gather(&mut self, pending: Pending) {
        self.gathered_bytes += pending.bytes();
        self.gathered.push(pending);
    }

    fn not_leader(&self) -> Error {
        let leader = match *self.leadership.borrow() {
            Leadership::Following { leader } => leader.map(|leader| leader.node),
            Leadership::Leading { .. } | Leadership::Failed => None,
        };
        Error::NotLeader {
            group: self.group.id(),
            leader,
        }
    }

    fn refuse_gathered(&mut self) {
        let refusal = self.not_leader();
        self.gathered_bytes = 0;
        self.early_count = 0;
        let early = std::mem::take(&mut self.early).into_values().flatten();
        for pending in self.gathered.drain(..).chain(early) {
            pending.answer(Err(refusal.clone()));
        }
    }

    /// What goes into the next entry, if one is to be sent now.
    fn take_batch(&mut self) -> Option<(u64, Vec<Pending>)> {
        let Role::Leading { term } = self.role else {
            return None;
        };
        let full = !self.has_room();
        let limit = if full {
            ENTRIES_IN_FLIGHT_MAX
        } else {
            ENTRIES_EAGER_MAX
        };
        // Below the eager limit, whatever has already arrived still rides along.
        let more = !full && !self.waiting.is_empty();
        if self.gathered.is_empty() || self.in_flight.len() >= limit || more {
            return None;
        }
        Some((term, self.cut_batch()))
    }

    /// The first of what is gathered, as much as an entry takes; at least one write.
    fn cut_batch(&mut self) -> Vec<Pending> {
        let (mut count, mut bytes) = (0, 0);
        for pending in &self.gathered {
            let more = pending.bytes();
            if count > 0 && (count >= ENTRY_WRITES_MAX || bytes + more > ENTRY_BYTES_MAX) {
                break;
            }
            count += 1;
            bytes += more;
        }
        let rest = self.gathered.split_off(count);
        self.gathered_bytes -= bytes;
        std::mem::replace(&mut self.gathered, rest)
    }

    /// A change has an entry of its own, after whatever was proposed before it.
    async fn change(&mut self, pending: PendingChange) {
        let PendingChange {
            planned,
            body,
            outcome,
        } = pending;
        let Role::Leading { term } = self.role else {
            let refusal = self.not_leader();
            // A caller that has gone looks at the shard to learn what became of it.
            let _ = outcome.send(Err(refusal));
            return;
        };
        if let Body::Merge(MergeStep::Absorb(absorb)) = &body {
            // Leaders of the right shard have closed up to there.
            self.hlc.adopt(absorb.above);
        }
        let header = Header {
            stamp: self.hlc.reserve(1, self.clock.wall_ms()),
            ceiling: Timestamp::ZERO,
            epoch: planned,
        };
        let command = Command { header, body };
        match self.group.propose(term, command.encode()).await {
            Ok(answer) => self.in_flight.push(land_change(outcome, answer).boxed()),
            Err(error) => drop(outcome.send(Err(error))),
        }
    }

    async fn propose(&mut self, term: u64, batch: Vec<Pending>) {
        let command = self.encode(&batch);
        metrics::entry_proposed(batch.len());
        metrics::queue_depth(Queue::Writes, self.waiting.len());
        metrics::queue_depth(Queue::Proposals, self.in_flight.len() + 1);
        match self.group.propose(term, command).await {
            Ok(_) if mutant::lives(Mutant::AnsweredWhenProposed) => {
                let (version, deleted, resume) = (self.hlc.last(), 0, None);
                let done = WriteOutcome::Done {
                    version,
                    deleted,
                    resume,
                };
                batch.into_iter().for_each(|it| it.answer(Ok(done.clone())));
            }
            Ok(answer) => self.in_flight.push(land(batch, answer).boxed()),
            Err(error) => answer_all(batch, &error),
        }
    }

    fn encode(&mut self, batch: &[Pending]) -> Bytes {
        let wall = self.clock.wall_ms();
        let newest = batch
            .iter()
            .map(|pending| pending.write.id.wall_ms())
            .max()
            .unwrap_or(0);
        // Not ahead of our clock, which the gate has seen to: the stamp ends up above the ids' time.
        if !mutant::lives(Mutant::StampBelowItsRequest) {
            self.hlc.adopt(Timestamp::from_wall(newest));
        }
        let header = Header {
            stamp: self.hlc.reserve(batch.len() as u64, wall),
            // Nothing is closed yet, so that a new leader need not stamp ahead of its clock.
            ceiling: Timestamp::ZERO,
            epoch: self.reader.row().descriptor.epoch,
        };
        let writes = batch.iter().map(|pending| pending.write.clone()).collect();
        let body = Body::Writes(writes);
        Command { header, body }.encode()
    }
}

/// Waits for an entry's outcome and hands each write its own.
async fn land(batch: Vec<Pending>, answer: BoxFuture<'static, Result<Bytes>>) {
    let outcomes = match answer.await {
        Ok(answer) => match Answer::decode(&answer) {
            Ok(Answer::Writes(outcomes)) => Ok(outcomes),
            Ok(other) => Err(misfit(&other)),
            Err(error) => Err(Error::Internal(error.to_string())),
        },
        Err(error) => Err(error),
    };
    metrics::proposal_done(match &outcomes {
        Ok(_) => ProposalOutcome::Applied,
        Err(error) => match error.effect() {
            Effect::None => ProposalOutcome::Refused,
            Effect::Unknown => ProposalOutcome::Unknown,
        },
    });
    match outcomes {
        Ok(outcomes) if outcomes.len() == batch.len() => {
            for (pending, outcome) in batch.into_iter().zip(outcomes) {
                pending.answer(Ok(outcome));
            }
        }
        Ok(_) => answer_all(
            batch,
            &Error::Internal("an entry's outcomes do not match its writes".to_string()),
        ),
        Err(error) => answer_all(batch, &error),
    }
}

/// Waits for a change's outcome and hands it on.
async fn land_change(
    outcome: oneshot::Sender<Result<Answer>>,
    answer: BoxFuture<'static, Result<Bytes>>,
) {
    let decode =
        |answer: Bytes| Answer::decode(&answer).map_err(|error| Error::Internal(error.to_string()));
    let landed = answer.await.and_then(decode);
    // A caller that has gone looks at the shard to learn what became of it.
    let _ = outcome.send(landed);
}

/// An answer to something else than what was proposed.
pub fn misfit(answer: &Answer) -> Error {
    Error::Internal(format!("an entry was answered with {answer:?}"))
}

fn answer_all(batch: Vec<Pending>, error: &Error) {
    for pending in batch {
        let error = match error {
            Error::Unknown { reason, .. } => Error::Unknown {
                request: pending.write.id,
                reason: reason.clone(),
            },
            other => other.clone(),
        };
        pending.answer(Err(error));
    }
}
