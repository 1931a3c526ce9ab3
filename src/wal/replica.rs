//! The log of one replica, as its group sees it.
//!
//! There are two views of it. *Now* is what the caller has asked for: entries are there as soon as they
//! are appended. *Logged* is what the log on disk says, in its own order; only the writer changes it,
//! when a sync has returned. What is in the first and not yet in the second is in the cache and stays
//! there until it is written. So a reader never waits for a sync, and what is copied forward is never
//! ahead of the log that it is copied into.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::watch;

use crate::codec::record;
use crate::codec::record::Place;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Vote;
use crate::wal::Completion;
use crate::wal::Done;
use crate::wal::Door;
use crate::wal::LoggedReplica;
use crate::wal::Room;
use crate::wal::Shared;
use crate::wal::Work;
use crate::wal::closed;
use crate::wal::index::Index;
use crate::wal::index::Location;
use crate::wal::record::Record;
use crate::wal::segment::segment_path;

/// Where a replica's log begins and ends, and its vote, as last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    /// The last entry that was purged.
    pub purged: Option<Position>,
    /// The last entry, or the purge point when there is none.
    pub last: Option<Position>,
    /// The vote.
    pub vote: Option<Vote>,
}

pub(super) struct Replica {
    id: ReplicaId,
    state: Mutex<State>,
    /// Number of the last write that was completed. Changes after `state.logged` has.
    completed: watch::Sender<u64>,
}

pub(super) struct State {
    pub(super) now: LogState,
    /// Index of the first entry, where there is one.
    first: u64,
    /// Nothing more is asked of it.
    ended: bool,
    logged: Index,
    cache: Cache,
    /// Appends that are not completed.
    pending: VecDeque<Pending>,
    /// Number of the last write that was asked for.
    queued: u64,
}

#[derive(Clone, Copy)]
struct Pending {
    number: u64,
    first: u64,
    last: u64,
}

impl State {
    fn of(logged: Index) -> State {
        let begins = logged.purged().map_or(0, |purged| purged.index + 1);
        State {
            first: logged.first().unwrap_or(begins),
            now: LogState {
                purged: logged.purged(),
                last: logged.last(),
                vote: logged.vote(),
            },
            ended: logged.is_gone(),
            logged,
            cache: Cache::default(),
            pending: VecDeque::new(),
            queued: 0,
        }
    }

    /// Nothing is in it any more, and nothing will be.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.now = LogState::default();
        self.cache.truncate_from(0);
    }

    fn is_empty(&self) -> bool {
        self.now.last == self.now.purged
    }

    fn next_index(&self) -> Option<u64> {
        self.now.last.map(|last| last.index + 1)
    }

    fn append(&mut self, entries: &[LogEntry]) -> io::Result<()> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        let start = first.position.index;
        let purged = self.now.purged.map(|purged| purged.index);
        let behind_purged = purged.is_none_or(|purged| start > purged);
        let joined = self.next_index().is_none_or(|next| start <= next);
        if !behind_purged || !joined {
            return Err(refused(format!(
                "entries from {start} on do not follow a log purged to {purged:?} that ends at {:?}",
                self.now.last
            )));
        }
        let indexes = start..;
        if let Some((entry, _)) = entries
            .iter()
            .zip(indexes)
            .find(|(entry, index)| entry.position.index != *index)
        {
            return Err(refused(format!("a gap before entry {}", entry.position)));
        }
        if self.is_empty() || start < self.first {
            self.first = start;
        }
        self.now.last = Some(last.position);
        let number = self.queued + 1;
        self.cache.append(number, entries);
        self.pending.push_back(Pending {
            number,
            first: start,
            last: last.position.index,
        });
        Ok(())
    }

    fn truncate_after(&mut self, last: Option<Position>) -> io::Result<()> {
        let ends = self.now.last.map(|last| last.index);
        let begins = self.now.purged.map(|purged| purged.index);
        let stays = last.map(|last| last.index);
        if stays > ends {
            return Ok(());
        }
        if stays < begins {
            return Err(refused(format!(
                "the log from {begins:?} to {ends:?} cannot be cut behind {stays:?}"
            )));
        }
        let some_stay = stays.is_some_and(|stays| stays >= self.first);
        self.now.last = last.filter(|_| some_stay).or(self.now.purged);
        self.cache.truncate_from(stays.map_or(0, |stays| stays + 1));
        Ok(())
    }

    fn purge(&mut self, upto: Position) {
        if self
            .now
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return;
        }
        self.now.purged = Some(upto);
        self.first = self.first.max(upto.index + 1);
        if self.now.last.is_none_or(|last| last.index <= upto.index) {
            self.now.last = Some(upto);
        }
        self.cache.purge(upto.index);
    }

    /// The write after which entry `index`, as it stands now, is synced; `None` when there is no such
    /// entry.
    fn write_of(&self, index: u64) -> Option<u64> {
        if self.now.purged.is_some_and(|purged| index <= purged.index) {
            return Some(0);
        }
        self.next_index()
            .filter(|next| (self.first..*next).contains(&index))?;
        let pending = self.pending.iter().rev();
        let mut writes = pending.filter(|write| (write.first..=write.last).contains(&index));
        Some(writes.next().map_or(0, |write| write.number))
    }
}

fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

impl Replica {
    pub(super) fn recovered(id: ReplicaId, logged: Index) -> Replica {
        Replica {
            id,
            state: Mutex::new(State::of(logged)),
            completed: watch::Sender::new(0),
        }
    }

    pub(super) fn unborn(id: ReplicaId) -> Replica {
        Replica::recovered(id, Index::default())
    }

    pub(super) fn id(&self) -> ReplicaId {
        self.id
    }

    pub(super) fn is_alive(&self) -> bool {
        let state = self.state();
        state.logged.about().is_some() && !state.ended
    }

    pub(super) fn is_gone(&self) -> bool {
        let state = self.state();
        state.ended || state.logged.is_gone()
    }

    /// What the log says of it; `None` while it is not born durably.
    pub(super) fn logged(&self) -> Option<LoggedReplica> {
        let state = self.state();
        let gone = state.ended || state.logged.is_gone();
        let about = state.logged.about().cloned();
        (gone || about.is_some()).then(|| LoggedReplica {
            id: self.id,
            born: about.filter(|_| !gone).unwrap_or_default(),
            gone,
        })
    }

    /// Changes the log as it is now and queues the write of it, in one step: writes are queued in the
    /// order in which they are seen.
    fn submit(
        self: &Arc<Self>,
        room: Room,
        completion: Completion,
        change: impl FnOnce(&mut State) -> io::Result<Work>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let work = match change(&mut state) {
            Ok(work) => work,
            Err(error) => {
                drop(state);
                completion.forget();
                return Err(error);
            }
        };
        state.queued += 1;
        room.send(Some(self.clone()), state.queued, work, completion);
        Ok(())
    }

    pub(super) async fn submit_and_wait(
        self: &Arc<Self>,
        room: Room,
        change: impl FnOnce(&mut State) -> io::Result<Work>,
    ) -> io::Result<()> {
        let (completion, done) = Completion::awaited();
        self.submit(room, completion, change)?;
        done.await
    }

    /// Takes in a record that is synced now, or was copied. For the writer.
    pub(super) fn take(&self, change: impl FnOnce(&mut Index)) {
        change(&mut self.state().logged);
    }

    /// Reads what is logged. For the writer.
    pub(super) fn with_logged<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.state().logged)
    }

    /// All writes up to this one are over. For the writer.
    pub(super) fn complete(&self, number: u64) {
        let mut state = self.state();
        while state
            .pending
            .front()
            .is_some_and(|write| write.number <= number)
        {
            state.pending.pop_front();
        }
        drop(state);
        self.completed.send_replace(number);
    }

    /// Forgets the cached entries of that write and those before it. For the writer.
    pub(super) fn evict(&self, number: u64) {
        self.state().cache.evict(number);
    }

    /// An entry that is logged, from memory if it is still there. For the writer.
    pub(super) fn cached_entry(&self, index: u64) -> Option<LogEntry> {
        let completed = *self.completed.borrow();
        let state = self.state();
        // A later write may be on its way to this place; it is not what is logged.
        let cached = state.cache.get(index);
        let logged = cached.filter(|(number, _)| *number <= completed);
        logged.map(|(_, entry)| entry.clone())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica's log. Clones are the same log. Calls of one replica take effect in the order in which
/// they are made; each may be dropped half-way, and has then either happened or not.
#[derive(Clone)]
pub struct ReplicaLog {
    replica: Arc<Replica>,
    door: Arc<Door>,
}

impl ReplicaLog {
    pub(super) fn new(replica: Arc<Replica>, door: Arc<Door>) -> ReplicaLog {
        ReplicaLog { replica, door }
    }

    /// Whose log it is.
    pub fn id(&self) -> ReplicaId {
        self.replica.id
    }

    /// Where it begins and ends, and the vote.
    pub fn state(&self) -> LogState {
        self.replica.state().now
    }

    /// Appends entries, in place of any at or behind the first of them. They can be read on return;
    /// `done` is called when they are synced, in the order of the calls. Waits while the writer's
    /// queue is full. On an error `done` is not called and nothing has happened.
    pub async fn append(&self, entries: Vec<LogEntry>, done: Done) -> io::Result<()> {
        let most = self.door.shared.payload_bytes_max();
        let payloads = entries.iter().map(|entry| entry.payload.bytes().len());
        if let Some(longest) = payloads.clone().max().filter(|bytes| *bytes as u64 > most) {
            return Err(refused(format!(
                "an entry of {longest} bytes; the log's segments take {most}"
            )));
        }
        let room = self.door.room_for(payloads.sum()).await?;
        let completion = Completion(Some(done));
        self.submit(room, completion, |state| {
            state.append(&entries)?;
            Ok(Work::Append(entries))
        })
    }

    /// Replaces the vote. Synced on return.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        self.write(|state| {
            state.now.vote = Some(vote);
            Ok(Record::Vote(vote))
        })
        .await
    }

    /// Removes everything behind `last`, which must not be before the purge point; behind the end there is
    /// nothing to remove. Synced on return.
    pub async fn truncate_after(&self, last: Option<Position>) -> io::Result<()> {
        self.write(|state| {
            state.truncate_after(last)?;
            Ok(Record::Truncate(state.now.last))
        })
        .await
    }

    /// Removes everything up to `upto`, which may lie behind the last entry: then the log is empty and
    /// goes on there. Needs no sync of its own: it rides along with the next write, and a power cut
    /// before that brings the entries back. A point that was purged before changes nothing.
    pub async fn purge(&self, upto: Position) -> io::Result<()> {
        let room = self.door.room_for(0).await?;
        if self
            .state()
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return Ok(());
        }
        self.submit(room, Completion::nobody(), |state| {
            state.purge(upto);
            let upto = state.now.purged.unwrap_or(upto);
            Ok(Work::Record(Record::Purge(upto)))
        })
    }

    /// The last entry that may be purged when so many entries and bytes stay; 0 if all stay. Looks at what
    /// is synced.
    pub fn purgeable(&self, entries_kept: u64, bytes_kept: u64) -> u64 {
        self.replica
            .with_logged(|index| index.purgeable(entries_kept, bytes_kept))
    }

    /// The entries in `range` that there are, until they have `bytes_max` payload bytes; at least one
    /// if there is one. May block on the disk, never on a sync.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = range.start;
        while next < range.end {
            let found = self.read_run(next..range.end, bytes_max - bytes.min(bytes_max))?;
            let Some(last) = found.last() else {
                return Ok(entries);
            };
            next = last.position.index + 1;
            for entry in found {
                bytes += entry.payload.bytes().len();
                if bytes > bytes_max && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// Whether [`ReplicaLog::read`] of that range would not touch the disk.
    pub fn is_cached(&self, range: &Range<u64>) -> bool {
        let state = self.replica.state();
        let wanted = state.present(range);
        wanted.is_empty() || state.cache.get(wanted.start).is_some()
    }

    /// Returns when entry `index`, as it stands now, is synced; at once when it is purged. Waits for
    /// an entry that is not there yet. Fails when the log has failed. Cancel-safe.
    pub async fn synced(&self, index: u64) -> io::Result<()> {
        let mut completed = self.replica.completed.subscribe();
        let mut end = self.door.shared.end.subscribe();
        loop {
            let done = *completed.borrow_and_update();
            let write = {
                let state = self.replica.state();
                if state.ended {
                    return Err(closed("the replica is gone"));
                }
                state.write_of(index)
            };
            if write.is_some_and(|write| write <= done) {
                return Ok(());
            }
            tokio::select! {
                biased;
                changed = completed.changed() => changed.map_err(|_| self.door.shared.ended())?,
                _ = end.wait_for(Option::is_some) => return Err(self.door.shared.ended()),
            }
        }
    }

    /// Returns when every write that was queued for this replica is over, done or failed.
    pub async fn drained(&self) {
        let Ok(room) = self.door.room_for(0).await else {
            self.door.shared.wait_for_end().await;
            return;
        };
        let fence = self.replica.submit_and_wait(room, |_| Ok(Work::Fence));
        // Failed or done, it is over.
        let _ = fence.await;
    }

    async fn write(&self, change: impl FnOnce(&mut State) -> io::Result<Record>) -> io::Result<()> {
        let room = self.door.room_for(0).await?;
        let (completion, done) = Completion::awaited();
        self.submit(room, completion, |state| change(state).map(Work::Record))?;
        done.await
    }

    fn submit(
        &self,
        room: Room,
        completion: Completion,
        change: impl FnOnce(&mut State) -> io::Result<Work>,
    ) -> io::Result<()> {
        self.replica.submit(room, completion, |state| {
            if state.ended {
                return Err(closed("the replica is gone"));
            }
            change(state)
        })
    }

    /// Some of the entries in `range`, from its start on; none only if there is none.
    fn read_run(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let mut failed = None;
        loop {
            let run = {
                let state = self.replica.state();
                let wanted = state.present(&range);
                let cached = state.cache.run(&wanted, bytes_max);
                if wanted.is_empty() || !cached.is_empty() {
                    return Ok(cached);
                }
                state.logged_run(&wanted)
            };
            let Some((location, wanted)) = run else {
                return Err(damaged(format!(
                    "entry {} of replica {} is nowhere in the log",
                    range.start, self.replica.id
                )));
            };
            // A segment may be given up while it is being read; then the entry stands elsewhere by now.
            if let Some((at, error)) = failed.take()
                && at == location
            {
                return Err(error);
            }
            match self.door.shared.read_entries(location, self.replica.id) {
                Ok(entries) => {
                    let inside = |entry: &LogEntry| wanted.contains(&entry.position.index);
                    return Ok(entries.into_iter().filter(inside).collect());
                }
                Err(error) => failed = Some((location, error)),
            }
        }
    }
}

impl State {
    /// The part of `range` that is in the log.
    fn present(&self, range: &Range<u64>) -> Range<u64> {
        let end = self.next_index().unwrap_or(0).min(range.end);
        let start = range.start.max(self.first);
        start..end.max(start)
    }

    /// The record that holds the first of the wanted entries, and which of them it holds.
    fn logged_run(&self, wanted: &Range<u64>) -> Option<(Location, Range<u64>)> {
        let location = self.logged.slot(wanted.start)?.location;
        let limit = wanted.end.min(self.cache.first().max(wanted.start + 1));
        let mut end = wanted.start + 1;
        while end < limit
            && self
                .logged
                .slot(end)
                .is_some_and(|slot| slot.location == location)
        {
            end += 1;
        }
        Some((location, wanted.start..end))
    }
}

impl Shared {
    /// Reads the entries of one record.
    pub(super) fn read_entries(
        &self,
        location: Location,
        replica: ReplicaId,
    ) -> io::Result<Vec<LogEntry>> {
        let path = segment_path(&self.dir, location.segment);
        let path = path.display();
        let Some(file) = self.segment(location.segment) else {
            return Err(damaged(format!("{path} was given up")));
        };
        let mut bytes = vec![0; location.bytes as usize];
        file.read_at(&mut bytes, u64::from(location.offset))?;
        let place = Place {
            file: location.segment,
            offset: u64::from(location.offset),
        };
        let here = |reason: String| damaged(format!("{path} at {}: {reason}", location.offset));
        let frame = record::decode(&bytes.into(), place).map_err(|it| here(it.to_string()))?;
        let frame = frame.filter(|frame| frame.owner == replica.0);
        let frame = frame.ok_or_else(|| here("no record of this replica".to_string()))?;
        match Record::decode(&frame).map_err(|it| here(it.to_string()))? {
            Record::Entries(entries) | Record::CopiedEntries(entries) => Ok(entries),
            other => Err(here(format!("{other:?} where entries were"))),
        }
    }
}

fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The last entries of a log, without gaps up to its end.
#[derive(Default)]
struct Cache {
    /// Index of the front one.
    first: u64,
    entries: VecDeque<(u64, LogEntry)>,
}

impl Cache {
    /// Index of the first one; beyond all when there is none.
    fn first(&self) -> u64 {
        if self.entries.is_empty() {
            u64::MAX
        } else {
            self.first
        }
    }

    fn get(&self, index: u64) -> Option<&(u64, LogEntry)> {
        let nth = index.checked_sub(self.first)?;
        self.entries.get(usize::try_from(nth).ok()?)
    }

    /// Those in `range`, if the first of it is here, up to the one that passes `bytes_max`.
    fn run(&self, range: &Range<u64>, bytes_max: usize) -> Vec<LogEntry> {
        let mut bytes = 0;
        let mut run = Vec::new();
        for index in range.clone() {
            let Some((_, entry)) = self.get(index).filter(|_| bytes <= bytes_max) else {
                break;
            };
            bytes += entry.payload.bytes().len();
            run.push(entry.clone());
        }
        run
    }

    fn append(&mut self, number: u64, entries: &[LogEntry]) {
        let Some(first) = entries.first() else {
            return;
        };
        self.truncate_from(first.position.index);
        if self.entries.is_empty() {
            self.first = first.position.index;
        }
        self.entries
            .extend(entries.iter().map(|entry| (number, entry.clone())));
    }

    fn truncate_from(&mut self, index: u64) {
        let kept = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.entries.truncate(kept);
    }

    fn purge(&mut self, upto: u64) {
        while !self.entries.is_empty() && self.first <= upto {
            self.pop_front();
        }
    }

    fn evict(&mut self, number: u64) {
        while self
            .entries
            .front()
            .is_some_and(|(write, _)| *write <= number)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        self.entries.pop_front();
        self.first += 1;
    }
}
