//! One shard's replica on this node, as requests see it: writes go to its proposer, linearizable reads
//! through its barrier, follower reads straight to what is applied.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tracing::debug;

use crate::env::clock::Clock;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::mvcc::read::Portion;
use crate::node::barrier::Barrier;
use crate::node::meter::Meter;
use crate::node::proposer::CHANGES_WAITING_MAX;
use crate::node::proposer::Pending;
use crate::node::proposer::PendingChange;
use crate::node::proposer::Proposer;
use crate::node::proposer::WRITES_WAITING_MAX;
use crate::node::proposer::misfit;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::shard::ReadAt;
use crate::shard::ReadError;
use crate::shard::ShardReader;
use crate::shard::command::Answer;
use crate::shard::command::Body;
use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::types::Position;
use crate::types::Timestamp;
use crate::types::request::Answered;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;
use crate::wire::request::BatchGet;
use crate::wire::request::Channel;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Scan;

/// Cloning shares the replica.
#[derive(Clone)]
pub struct Replica {
    group: Group,
    reader: ShardReader,
    clock: Clock,
    writes: mpsc::Sender<Pending>,
    changes: mpsc::Sender<PendingChange>,
    barrier: Barrier,
    meter: Arc<Meter>,
}

impl Replica {
    /// Starts the tasks of a shard's replica in `tasks`.
    pub fn start(
        group: Group,
        reader: ShardReader,
        clock: Clock,
        channel: Arc<dyn Channel>,
        tasks: &mut TaskSet,
    ) -> Replica {
        let (writes, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let (changes, changes_waiting) = mpsc::channel(CHANGES_WAITING_MAX);
        let waiting = (waiting, changes_waiting);
        let proposer = Proposer::new(group.clone(), reader.clone(), clock.clone(), waiting);
        let (barrier, rounds) = Barrier::new(group.clone(), channel);
        tasks.spawn(format!("proposer of {}", group.id()), |stop| async move {
            stop.run_until_cancelled(proposer.run()).await;
            Ok(())
        });
        tasks.spawn(format!("barrier of {}", group.id()), |stop| async move {
            stop.run_until_cancelled(rounds).await;
            Ok(())
        });
        Replica {
            group,
            reader,
            clock,
            writes,
            changes,
            barrier,
            meter: Arc::default(),
        }
    }

    /// Its group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Whether it has applied anything: one that was just made and that its group has not reached yet
    /// knows less than it seems to.
    pub fn is_filled(&self) -> bool {
        self.reader.row().applied.position.is_some()
    }

    /// What was asked of it.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What it has applied.
    pub fn reader(&self) -> &ShardReader {
        &self.reader
    }

    /// Writes, if this replica leads. Not cancel-safe: a dropped call may have happened.
    pub async fn write(&self, write: Write) -> Result<(WriteOutcome, Answered)> {
        self.check_serves()?;
        let request = write.id;
        self.meter.count(write.first_key(), write_bytes(&write));
        let (outcome, answer) = oneshot::channel();
        self.writes
            .try_send(Pending { write, outcome })
            .map_err(|_| Error::Overloaded {
                queue: "writes waiting to be proposed".to_string(),
                retry_after: Duration::from_millis(100),
            })?;
        let lost = || Error::Unknown {
            request,
            reason: "the node is stopping".to_string(),
        };
        match answer.await.map_err(|_| lost())?? {
            WriteOutcome::StaleEpoch => Err(Error::StaleEpoch {
                group: self.group.id(),
                current: vec![self.reader.descriptor()],
            }),
            WriteOutcome::Spanning { key } => Err(Error::Spanning { request, key }),
            WriteOutcome::StaleStamp => Err(Error::unavailable(
                self.group.id(),
                "its leader has changed",
            )),
            WriteOutcome::Frozen => Err(merging(&self.group)),
            WriteOutcome::ClockAhead { wait_ms } => Err(Error::ClockAhead {
                wait: Duration::from_millis(wait_ms),
            }),
            WriteOutcome::TooLateToKnow { retry_window_ms } => {
                let retry_window = Duration::from_millis(retry_window_ms);
                Err(Error::TooLateToKnow {
                    request,
                    retry_window,
                })
            }
            outcome @ (WriteOutcome::Done { .. } | WriteOutcome::ConditionFailed { .. }) => {
                Ok((outcome, self.answered(self.reader.last_stamp())))
            }
        }
    }

    /// Splits the shard, if this replica leads and the shard is still as it was `planned`. Not cancel-safe: a
    /// dropped call may have happened.
    pub async fn split(&self, planned: Epoch, split: Split) -> Result<SplitOutcome> {
        match self.change(planned, Body::Split(split)).await? {
            Answer::Split(outcome) => Ok(outcome),
            other => Err(misfit(&other)),
        }
    }

    /// Takes a step of a merge, if this replica leads and the shard is still as it was `planned`. Not cancel-safe:
    /// a dropped call may have happened.
    pub async fn merge(&self, planned: Epoch, step: MergeStep) -> Result<MergeOutcome> {
        match self.change(planned, Body::Merge(step)).await? {
            Answer::Merge(outcome) => Ok(outcome),
            other => Err(misfit(&other)),
        }
    }

    async fn change(&self, planned: Epoch, body: Body) -> Result<Answer> {
        self.check_serves()?;
        let (outcome, answer) = oneshot::channel();
        let pending = PendingChange {
            planned,
            body,
            outcome,
        };
        self.changes
            .try_send(pending)
            .map_err(|_| Error::Overloaded {
                queue: "changes of a shard waiting to be proposed".to_string(),
                retry_after: Duration::from_millis(100),
            })?;
        let stopping = |_| Error::unavailable("the node", "it is stopping");
        let outcome = answer.await.map_err(stopping)??;
        // The other nodes do their part of it when they apply it: they shall not wait for the next heartbeat.
        // It is done, whether they hear of it now or then.
        let _ = self.group.announce().await;
        Ok(outcome)
    }

    /// The newest version of a key.
    pub async fn get(&self, get: Get) -> Result<(Option<Versioned>, Answered)> {
        self.ready(get.read).await?;
        let read = self
            .reader
            .get(&get.key, None)
            .map_err(|error| self.refused(error))?;
        let found = read.value.into_option();
        let bytes = found.as_ref().map_or(0, |found| found.value.len());
        self.meter.count(&get.key, get.key.len() + bytes);
        Ok((found, self.answered(read.as_of)))
    }

    /// The newest versions of several keys, as of one moment.
    pub async fn batch_get(&self, get: BatchGet) -> Result<(Vec<Option<Versioned>>, Answered)> {
        self.ready(get.read).await?;
        let (reader, keys) = (self.reader.clone(), get.keys.clone());
        let read = offload(move || reader.get_many(&keys, None)).await;
        let read = read.map_err(|error| self.refused(error))?;
        for (key, found) in get.keys.iter().zip(&read.value) {
            let bytes = found.as_ref().map_or(0, |found| found.value.len());
            self.meter.count(key, key.len() + bytes);
        }
        Ok((read.value, self.answered(read.as_of)))
    }

    /// A portion of a range. Without a cut it begins one.
    pub async fn scan(&self, scan: Scan) -> Result<Page> {
        match &scan.cut {
            // A cut may be read wherever its moment has been applied.
            Some(cut) if self.reader.last_stamp() >= cut.as_of => {}
            Some(_) | None => self.ready(scan.read).await?,
        }
        let mut read = self.read_portion(&scan).await?;
        if read.value.rest.is_some() && self.would_age(&scan) && self.leads() {
            // Where it cannot be raised the cut is as good as any that began when its stamp was new.
            match self.raise_stamp().await {
                Ok(()) => read = self.read_portion(&scan).await?,
                Err(error) => {
                    debug!(group = %self.group.id(), %error, "a scan begins on an old stamp")
                }
            }
        }
        let answered = self.answered(read.as_of);
        let bytes = read.value.items.iter();
        let bytes = bytes.map(|item| item.key.len() + item.versioned.value.len());
        self.meter.count(&scan.range.start, bytes.sum());
        let rest = read.value.rest;
        Ok(Page {
            items: read.value.items,
            rest_cut: rest.as_ref().map(|_| scan.cut_at(read.as_of)),
            rest,
            as_of: read.as_of,
            answered,
            unordered: None,
        })
    }

    async fn read_portion(&self, scan: &Scan) -> Result<ReadAt<Portion>> {
        let (reader, asked) = (self.reader.clone(), scan.clone());
        let read = offload(move || reader.scan(&asked)).await;
        read.map_err(|error| self.refused(error))
    }

    /// Whether a cut that the scan begins here would have the stamp of a write of long ago. The next write would
    /// leave the scan little time, or none: what is kept of the past is counted back from there. A leader raises
    /// the stamp before it begins such a cut: once in a tenth of that time, and once for each of those that begin
    /// at one moment.
    pub fn would_age(&self, scan: &Scan) -> bool {
        let row = self.reader.row();
        let age_ms = self
            .clock
            .wall_ms()
            .saturating_sub(row.last_stamp.wall_ms());
        scan.cut.is_none()
            && scan.read == ReadKind::Linearizable
            && age_ms > row.history_retention_ms / 10
    }

    /// One entry without a write.
    async fn raise_stamp(&self) -> Result<()> {
        let planned = self.reader.descriptor().epoch;
        match self.change(planned, Body::Writes(Vec::new())).await? {
            Answer::Writes(_) => Ok(()),
            other => Err(misfit(&other)),
        }
    }

    /// Whether it leads, as far as it knows.
    pub fn leads(&self) -> bool {
        matches!(
            *self.group.leadership().borrow(),
            Leadership::Leading { .. }
        )
    }

    /// For followers: from which position on their reads are linearizable. Refused unless this leads.
    pub async fn read_position(&self) -> Result<Position> {
        self.check_serves()?;
        let leadership = *self.group.leadership().borrow();
        match leadership {
            Leadership::Leading { .. } => self.barrier.position().await,
            Leadership::Following { leader } => Err(Error::NotLeader {
                group: self.group.id(),
                leader: leader.map(|leader| leader.node),
            }),
            Leadership::Failed => Err(self.group.failed()),
        }
    }

    async fn ready(&self, read: ReadKind) -> Result<()> {
        match read {
            ReadKind::Linearizable => {
                let position = self.barrier.position().await?;
                if mutant::lives(Mutant::FollowerReadsUnapplied) {
                    return Ok(());
                }
                self.group.wait_applied(position).await
            }
            ReadKind::Follower => Ok(()),
        }
    }

    fn check_serves(&self) -> Result<()> {
        match self.reader.is_quarantined() {
            false => Ok(()),
            true => Err(self.refused(ReadError::Quarantined)),
        }
    }

    fn refused(&self, error: ReadError) -> Error {
        error.into_error(self.group.id())
    }

    fn answered(&self, as_of: Timestamp) -> Answered {
        let row = self.reader.row();
        let wall = Timestamp::from_wall(self.clock.wall_ms());
        Answered {
            shard: row.descriptor.id,
            replica: self.group.replica(),
            leader: self.leads(),
            timestamp: wall.max(row.last_stamp),
            as_of,
        }
    }
}

/// What is asked of a shard that takes part in a merge, and must wait for its end. Nothing was done.
pub fn merging(group: &Group) -> Error {
    Error::unavailable(group.id(), "it is about to be one with its neighbour")
}

/// Bytes of keys and values in a write.
fn write_bytes(write: &Write) -> usize {
    match &write.kind {
        WriteKind::Keys { operations, .. } => {
            let bytes = operations.iter().map(|operation| match operation {
                Operation::Put { key, value } => key.len() + value.len(),
                Operation::Delete { key } => key.len(),
            });
            bytes.sum()
        }
        WriteKind::Range { range, .. } => range.start.len(),
    }
}
