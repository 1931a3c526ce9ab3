//! The one writer: takes what has arrived from all groups, lays it out, writes it, syncs once, and
//! answers all that waited, in order.
//!
//! What is written together is a *round*. A round stays inside one segment and begins with a mark. A
//! record that does not fit any more waits for the next segment. Between rounds everything in the log
//! is synced, so a new segment's header can say so.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::codec::record::Place;
use crate::env::files::File;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::rng;
use crate::env::tasks::offload;
use crate::env::tasks::spawn;
use crate::telemetry::metrics;
use crate::telemetry::metrics::Queue;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::wal::Completion;
use crate::wal::Queued;
use crate::wal::Shared;
use crate::wal::Wal;
use crate::wal::WalError;
use crate::wal::Work;
use crate::wal::closed;
use crate::wal::failed;
use crate::wal::index::Live;
use crate::wal::index::Location;
use crate::wal::index::Slot;
use crate::wal::record::ENTRIES_BYTES;
use crate::wal::record::MARK_BYTES;
use crate::wal::record::Record;
use crate::wal::record::entry_bytes;
use crate::wal::replica::Replica;
use crate::wal::segment::END_BYTES;
use crate::wal::segment::HEADER_BYTES;
use crate::wal::segment::Header;
use crate::wal::segment::Spares;
use crate::wal::segment::segment_path;

/// Bytes after which a round is long enough. What came later waits for the next one.
const ROUND_BYTES: usize = 4 * 1024 * 1024;
/// Bytes after which a record of entries is long enough: to read one entry, its record is read.
const RECORD_BYTES: usize = 256 * 1024;
/// Bytes that a round copies forward at most, so that nobody waits long behind them.
const COPY_BYTES: usize = 1024 * 1024;
/// Purges that wait for a write to ride along with. More make a write of their own.
const RIDING_MAX: usize = 256;
/// Segments in use beyond twice what counts before anything is copied forward.
const SLACK_SEGMENTS: u64 = 4;

/// Writes the log. Exactly one per log; does nothing unless it is driven.
pub struct Writer {
    shared: Arc<Shared>,
    arrivals: mpsc::Receiver<Queued>,
    spares: Spares,
    live: Live,
    segment: Active,
    waiting: VecDeque<Queued>,
    /// Entries of the first waiting append that are written.
    begun: usize,
    copying: Option<Copying>,
    /// Bytes that may be copied forward: earned by writing. Bounds the work when nothing is gained.
    copy_credit: u64,
    releases: Vec<Release>,
    /// Completed appends whose entries are cached, oldest first, with their payload bytes.
    cached: VecDeque<(Arc<Replica>, u64, usize)>,
    cached_bytes: usize,
    ended: bool,
}

/// The segment that is being written.
struct Active {
    sequence: u64,
    file: Arc<dyn File>,
    /// Where the next round begins; everything before it is synced.
    end: u64,
}

/// How far the oldest segment's live rest is copied.
struct Copying {
    segment: u64,
    replica: ReplicaId,
    state_done: bool,
    /// First entry to look at.
    index: u64,
}

struct Release {
    /// The oldest segment when it was asked for.
    segment: u64,
    completion: Completion,
}

/// Records that are written and synced together.
struct Round {
    segment: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Bytes up to the end of the segment.
    limit: usize,
    records: Vec<(Arc<Replica>, Record, Location)>,
    /// Of the waiting writes, so many are complete with it.
    completes: usize,
    /// Whether something did not fit.
    full: bool,
    copied: usize,
}

impl Round {
    fn new(segment: &Active, segment_bytes: u64) -> Round {
        let left = segment_bytes.saturating_sub(segment.end);
        Round {
            segment: segment.sequence,
            start: segment.end,
            bytes: Vec::new(),
            limit: usize::try_from(left).map_or(0, |left| left.saturating_sub(END_BYTES)),
            records: Vec::new(),
            completes: 0,
            full: false,
            copied: 0,
        }
    }

    /// Bytes that a further record may have.
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.bytes.len().max(MARK_BYTES))
    }

    fn is_long_enough(&self) -> bool {
        self.full || self.bytes.len() >= ROUND_BYTES
    }

    fn place(&self) -> Place {
        Place {
            file: self.segment,
            offset: self.start + self.bytes.len() as u64,
        }
    }

    fn mark(&mut self) {
        let synced = self.start;
        let place = self.place();
        Record::Mark { synced }.encode(&mut self.bytes, place, ReplicaId(0));
    }

    /// Appends a record if it fits.
    fn push(&mut self, replica: &Arc<Replica>, record: Record) -> bool {
        let bytes = record.bytes();
        if bytes > self.room() {
            self.full = true;
            return false;
        }
        if self.bytes.is_empty() {
            self.mark();
        }
        let place = self.place();
        record.encode(&mut self.bytes, place, replica.id());
        let location = Location {
            segment: self.segment,
            offset: u32::try_from(place.offset).expect("a segment is below 4 GiB"),
            bytes: u32::try_from(bytes).expect("a segment is below 4 GiB"),
        };
        self.records.push((replica.clone(), record, location));
        true
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        arrivals: mpsc::Receiver<Queued>,
        spares: Spares,
        live: Live,
    ) -> Writer {
        let last = shared.last_segment().expect("an open log has a segment");
        let (sequence, file) = last;
        let copy_credit = 2 * SLACK_SEGMENTS * shared.options.segment_bytes;
        Writer {
            shared,
            arrivals,
            spares,
            live,
            segment: Active {
                sequence,
                file,
                end: HEADER_BYTES,
            },
            waiting: VecDeque::new(),
            begun: 0,
            copying: None,
            copy_credit,
            releases: Vec::new(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            ended: false,
        }
    }

    /// Drives the log on a thread of its own, or in a simulation as a task. It ends when the handle stops
    /// it, when the log fails, or when nobody has the log any more.
    pub fn spawn(mut self, wal: &Wal) -> Result<WriterHandle, WalError> {
        let wal = wal.clone();
        if rng::is_seeded() {
            let running = Running::Task(spawn(self.run()));
            return Ok(WriterHandle { wal, running });
        }
        let begun = self.spares.make_ahead().and_then(|()| {
            let name = "wal-writer".to_string();
            let work = move || self.run_blocking();
            std::thread::Builder::new().name(name).spawn(work)
        });
        let thread = begun.map_err(|error| WalError::Failed(error.to_string()))?;
        let running = Running::Thread(thread);
        Ok(WriterHandle { wal, running })
    }

    /// Drives the log as a task, for a simulation: files are written on the calling thread, when the disk
    /// is ready. Ends as [`Writer::spawn`] does.
    pub async fn run(mut self) -> Result<(), WalError> {
        while !self.ended {
            if !self.has_work() {
                match self.arrivals.recv().await {
                    Some(arrived) => self.arrive(arrived),
                    None => return self.finish(),
                }
            }
            let busy = self.spares.disk_busy();
            if !busy.is_zero() {
                sleep(busy).await;
            }
            self.round()?;
        }
        Ok(())
    }

    fn run_blocking(mut self) -> Result<(), WalError> {
        while !self.ended {
            if !self.has_work() {
                match self.arrivals.blocking_recv() {
                    Some(arrived) => self.arrive(arrived),
                    None => return self.finish(),
                }
            }
            self.round()?;
        }
        Ok(())
    }

    /// One round, without waiting: whether anything was done. An error is the end of the log, and
    /// everything that waited has been told so.
    pub fn round(&mut self) -> Result<bool, WalError> {
        if self.ended {
            return Ok(false);
        }
        let done = self.try_round();
        if let Err(error) = &done {
            tracing::error!(%error, "the log has failed");
            self.end(&error.to_string());
        }
        done
    }

    fn try_round(&mut self) -> Result<bool, WalError> {
        metrics::queue_depth(Queue::LogAppends, self.arrivals.len());
        while let Ok(arrived) = self.arrivals.try_recv() {
            self.arrive(arrived);
        }
        self.maybe_copy();
        if !self.has_work() {
            return Ok(false);
        }
        let mut round = self.lay_out()?;
        if round.full && round.records.is_empty() && round.completes == 0 {
            self.next_segment()?;
            round = self.lay_out()?;
        }
        assert!(
            !(round.full && round.records.is_empty()) || round.completes > 0,
            "a record was let in that fits in no segment"
        );
        self.write(&mut round)?;
        self.settle(round)?;
        Ok(true)
    }

    fn arrive(&mut self, mut queued: Queued) {
        if rides(&queued) {
            // It may wait for the next write, which must not have to wait for its room.
            queued.room = None;
        }
        self.waiting.push_back(queued);
    }

    /// Whether something waits that must not wait longer.
    fn has_work(&self) -> bool {
        let urgent = self.waiting.len() > RIDING_MAX || !self.waiting.iter().all(rides);
        urgent || self.copying.is_some() || !self.releases.is_empty()
    }

    fn lay_out(&mut self) -> Result<Round, WalError> {
        let mut round = Round::new(&self.segment, self.shared.options.segment_bytes);
        // Copies come first: what waits is not in the index yet, and follows them in the log as well.
        self.lay_out_copies(&mut round)?;
        self.lay_out_waiting(&mut round);
        Ok(round)
    }

    fn lay_out_waiting(&mut self, round: &mut Round) {
        for queued in &self.waiting {
            if round.is_long_enough() {
                return;
            }
            let fits = match (&queued.work, &queued.replica) {
                (Work::Append(entries), Some(replica)) => {
                    lay_out_entries(round, replica, entries, &mut self.begun)
                }
                (Work::Record(record), Some(replica)) => round.push(replica, record.clone()),
                (Work::Append(_) | Work::Record(_), None) => {
                    unreachable!("only a replica has records")
                }
                (Work::Fence | Work::Release, _) => true,
                (Work::Stop, _) => {
                    round.completes += 1;
                    return;
                }
            };
            if !fits {
                return;
            }
            self.begun = 0;
            round.completes += 1;
        }
    }

    fn lay_out_copies(&mut self, round: &mut Round) -> Result<(), WalError> {
        let share = usize::try_from(self.shared.options.segment_bytes / 4).unwrap_or(COPY_BYTES);
        let budget = COPY_BYTES.min(share);
        let Some(mut copying) = self.copying.take() else {
            return Ok(());
        };
        while let Some(replica) = self.shared.replica_from(copying.replica) {
            if copying.replica != replica.id() {
                copying = Copying::from(copying.segment, replica.id());
            }
            if !copying.state_done {
                let state = replica.with_logged(|index| index.state_in(copying.segment));
                if state.is_some_and(|state| !round.push(&replica, state)) {
                    break;
                }
                copying.state_done = true;
            }
            let room = round.room().min(RECORD_BYTES);
            let entries = self.entries_to_copy(&replica, &copying, room)?;
            match entries.last().map(|last| last.position.index + 1) {
                Some(next) => {
                    if !round.push(&replica, Record::CopiedEntries(entries)) {
                        break;
                    }
                    copying.index = next;
                }
                None => copying = Copying::from(copying.segment, ReplicaId(replica.id().0 + 1)),
            }
            if round.bytes.len() >= budget {
                break;
            }
        }
        round.copied = round.bytes.len();
        self.copying = Some(copying);
        Ok(())
    }

    /// A run of entries of the segment that is being copied, as many as fit, at least one if there is
    /// one.
    fn entries_to_copy(
        &self,
        replica: &Replica,
        copying: &Copying,
        room: usize,
    ) -> Result<Vec<LogEntry>, WalError> {
        let mut left = room.saturating_sub(ENTRIES_BYTES);
        let run: Vec<(u64, Slot)> = replica.with_logged(|index| {
            let Some(first) = index.entry_in(copying.segment, copying.index) else {
                return Vec::new();
            };
            let slots = (first..).map_while(|at| Some((at, index.slot(at)?)));
            let slots = slots.enumerate().take_while(|(nth, (_, slot))| {
                let bytes = slot.bytes as usize;
                let fits = *nth == 0 || bytes <= left;
                left = left.saturating_sub(bytes);
                fits && slot.location.segment == copying.segment
            });
            slots.map(|(_, found)| found).collect()
        });
        let mut read: Option<(Location, Vec<LogEntry>)> = None;
        let mut entries = Vec::with_capacity(run.len());
        for (at, slot) in run {
            if let Some(entry) = replica.cached_entry(at) {
                entries.push(entry);
                continue;
            }
            let known = read
                .take()
                .filter(|(location, _)| *location == slot.location);
            let (location, found) = match known {
                Some(known) => known,
                None => (slot.location, self.read_entries(replica, slot.location)?),
            };
            let entry = found
                .iter()
                .find(|entry| entry.position.index == at && entry.position.term == slot.term);
            let entry = entry.expect("a record holds the entries that were indexed from it");
            entries.push(entry.clone());
            read = Some((location, found));
        }
        Ok(entries)
    }

    fn read_entries(&self, replica: &Replica, at: Location) -> Result<Vec<LogEntry>, WalError> {
        let path = segment_path(&self.shared.dir, at.segment);
        let read = self.shared.read_entries(at, replica.id());
        read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                WalError::damaged(&path, u64::from(at.offset), &error.to_string())
            }
            _ => WalError::io("read", &path, error),
        })
    }

    /// One write, one sync.
    fn write(&mut self, round: &mut Round) -> Result<(), WalError> {
        if round.bytes.is_empty() {
            return Ok(());
        }
        let records = round.bytes.len();
        round.bytes.extend_from_slice(&[0; END_BYTES]);
        self.shared.syncs().began = Some(Instant::now());
        let file = &self.segment.file;
        let path = || segment_path(&self.shared.dir, self.segment.sequence);
        let written = file.write_at(&round.bytes, round.start);
        written.map_err(|error| WalError::io("write", &path(), error))?;
        let synced = match mutant::lives(Mutant::LogNotSynced) {
            true => Ok(()),
            false => file.sync_data(),
        };
        let again = || mutant::lives(Mutant::FailedSyncRepeated).then(|| file.sync_data());
        let synced = synced.or_else(|error| again().unwrap_or(Err(error)));
        synced.map_err(|error| WalError::io("sync", &path(), error))?;
        round.bytes.truncate(records);
        self.segment.end = round.start + records as u64;
        let mut syncs = self.shared.syncs();
        syncs.count += 1;
        let began = syncs.began.take();
        syncs.last = began.map_or(syncs.last, |began| began.elapsed());
        metrics::log_synced(syncs.last, round.records.len(), records);
        Ok(())
    }

    /// After the sync: takes the records into the index and answers.
    fn settle(&mut self, round: Round) -> Result<(), WalError> {
        for (replica, record, location) in &round.records {
            replica.take(|index| index.apply(record, *location, &mut self.live));
        }
        let written = (round.bytes.len() - round.copied) as u64;
        let most = 4 * SLACK_SEGMENTS * self.shared.options.segment_bytes;
        self.copy_credit = (self.copy_credit + 3 * written).min(most);
        self.copy_credit = self.copy_credit.saturating_sub(round.copied as u64);
        let completed: Vec<Queued> = self.waiting.drain(..round.completes).collect();
        for queued in completed {
            self.complete(queued)?;
        }
        self.evict();
        self.maybe_end_copy();
        self.maybe_release()
    }

    fn complete(&mut self, queued: Queued) -> Result<(), WalError> {
        let Queued {
            replica,
            number,
            work,
            completion,
            room,
        } = queued;
        // What was waiting for room may come.
        drop(room);
        if let (Work::Append(entries), Some(replica)) = (&work, &replica) {
            let bytes = entries.iter().map(entry_bytes).sum();
            self.cached.push_back((replica.clone(), number, bytes));
            self.cached_bytes += bytes;
        }
        if let Some(replica) = replica {
            replica.complete(number);
        }
        match work {
            Work::Append(_) | Work::Record(_) | Work::Fence => completion.complete(Ok(())),
            Work::Release => {
                let segment = self.shared.first_segment();
                self.releases.push(Release {
                    segment,
                    completion,
                });
            }
            Work::Stop => {
                self.close()?;
                completion.complete(Ok(()));
            }
        }
        Ok(())
    }

    fn evict(&mut self) {
        while self.cached_bytes > self.shared.options.cache_bytes {
            let Some((replica, number, bytes)) = self.cached.pop_front() else {
                return;
            };
            self.cached_bytes -= bytes;
            replica.evict(number);
        }
    }

    /// Starts the next segment and gives up those that its header says nobody needs.
    fn next_segment(&mut self) -> Result<(), WalError> {
        let sequence = self.segment.sequence + 1;
        let oldest = self.live.oldest().unwrap_or(sequence);
        let oldest = (oldest + u64::from(mutant::lives(Mutant::LiveSegmentFreed))).min(sequence);
        let header = Header {
            sequence,
            oldest,
            previous_end: self.segment.end,
        };
        let file = self.spares.start_segment(&header)?;
        self.shared.segments_mut().insert(sequence, file.clone());
        self.segment = Active {
            sequence,
            file,
            end: HEADER_BYTES,
        };
        for obsolete in self.shared.take_segments_below(oldest) {
            self.spares.recycle(obsolete)?;
        }
        Ok(())
    }

    /// Begins to copy the oldest segment's live rest, if that is asked for or gains something.
    fn maybe_copy(&mut self) {
        let oldest = self.live.oldest();
        let Some(oldest) = oldest.filter(|oldest| *oldest < self.segment.sequence) else {
            return;
        };
        if self.copying.is_some() {
            return;
        }
        let asked = self
            .releases
            .iter()
            .any(|release| oldest <= release.segment);
        let segment_bytes = self.shared.options.segment_bytes;
        let used = (self.segment.sequence - oldest + 1) * segment_bytes;
        let gains = used > 2 * self.live.bytes() + SLACK_SEGMENTS * segment_bytes;
        if asked || (gains && self.copy_credit > segment_bytes) {
            self.copying = Some(Copying::from(oldest, ReplicaId(0)));
        }
    }

    fn maybe_end_copy(&mut self) {
        let Some(copying) = &self.copying else {
            return;
        };
        if self.shared.replica_from(copying.replica).is_some() {
            return;
        }
        assert!(
            self.live.oldest() > Some(copying.segment),
            "segment {} was copied forward and still holds something that counts",
            copying.segment
        );
        self.copying = None;
    }

    fn maybe_release(&mut self) -> Result<(), WalError> {
        let oldest = self.live.oldest().unwrap_or(self.segment.sequence);
        let due = |release: &Release| release.segment < oldest;
        if self.releases.iter().any(due) {
            self.next_segment()?;
        }
        let first = self.shared.first_segment();
        let last = self.segment.sequence;
        let over = |release: &mut Release| release.segment < first || release.segment >= last;
        let over: Vec<Release> = self.releases.extract_if(.., over).collect();
        for release in over {
            release.completion.complete(Ok(()));
        }
        Ok(())
    }

    /// Writes what waits, then says that all of it was synced.
    fn finish(mut self) -> Result<(), WalError> {
        let finished = self.try_finish();
        let reason = finished.as_ref().err().map(ToString::to_string);
        self.end(reason.as_deref().unwrap_or("closed"));
        finished
    }

    fn try_finish(&mut self) -> Result<(), WalError> {
        // Purges may wait, riding; a fence makes them go.
        while !self.waiting.is_empty() {
            let mut round = self.lay_out()?;
            if round.full && round.records.is_empty() {
                self.next_segment()?;
                round = self.lay_out()?;
            }
            self.write(&mut round)?;
            self.settle(round)?;
        }
        self.close()
    }

    /// The last write: a mark, by which the next start can tell damage of the last round from a tear.
    fn close(&mut self) -> Result<(), WalError> {
        if self.ended {
            return Ok(());
        }
        let mut round = Round::new(&self.segment, self.shared.options.segment_bytes);
        if round.limit >= MARK_BYTES {
            round.mark();
            self.write(&mut round)?;
        }
        self.end("closed");
        Ok(())
    }

    /// Takes nothing more, tells everybody who waits, and then says that it has ended.
    fn end(&mut self, reason: &str) {
        if mem::replace(&mut self.ended, true) {
            return;
        }
        self.arrivals.close();
        self.shared.room.close();
        metrics::queue_depth(Queue::LogAppends, self.arrivals.len());
        while let Ok(arrived) = self.arrivals.try_recv() {
            self.arrive(arrived);
        }
        for release in self.releases.drain(..) {
            release.completion.complete(Err(closed(reason)));
        }
        for queued in self.waiting.drain(..) {
            queued.completion.complete(Err(closed(reason)));
        }
        self.shared.end.send_replace(Some(reason.into()));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end("the writer has gone");
    }
}

impl Copying {
    fn from(segment: u64, replica: ReplicaId) -> Copying {
        Copying {
            segment,
            replica,
            state_done: false,
            index: 0,
        }
    }
}

/// Whether it needs no sync of its own.
fn rides(queued: &Queued) -> bool {
    matches!(queued.work, Work::Record(Record::Purge(_)))
}

/// Lays out the entries behind the first `begun`, in records of moderate length; whether all fit.
fn lay_out_entries(
    round: &mut Round,
    replica: &Arc<Replica>,
    entries: &[LogEntry],
    begun: &mut usize,
) -> bool {
    while *begun < entries.len() {
        let rest = &entries[*begun..];
        let mut left = round.room().min(RECORD_BYTES).saturating_sub(ENTRIES_BYTES);
        let fitting = rest.iter().take_while(|entry| {
            let bytes = entry_bytes(entry);
            let fits = bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        });
        // One that is longer than a record should be has one of its own.
        let count = fitting.count().max(1);
        if !round.push(replica, Record::Entries(rest[..count].to_vec())) {
            return false;
        }
        *begun += count;
        if round.is_long_enough() && *begun < entries.len() {
            return false;
        }
    }
    true
}

/// Whoever writes.
pub struct WriterHandle {
    wal: Wal,
    running: Running,
}

enum Running {
    Thread(std::thread::JoinHandle<Result<(), WalError>>),
    Task(JoinHandle<Result<(), WalError>>),
}

impl WriterHandle {
    /// Writes what has arrived, and ends. What comes later is refused. Fails when the log has failed;
    /// a panic of the writer goes on here.
    pub async fn stop(self) -> Result<(), WalError> {
        let stopped = self.ask().await;
        let ended = match self.running {
            Running::Thread(thread) => offload(move || thread.join()).await,
            Running::Task(task) => task.await.map_err(JoinError::into_panic),
        };
        match ended {
            Ok(ended) => ended.and(stopped),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn ask(&self) -> Result<(), WalError> {
        let room = self.wal.door.room_for(0).await.map_err(failed)?;
        let (completion, done) = Completion::awaited();
        room.send(None, 0, Work::Stop, completion);
        done.await.map_err(failed)
    }
}
