//! The write-ahead log: one for all groups of a node.
//!
//! **The idea.** A disk that is synced once can make a hundred answers durable. So every group's
//! entries and votes go into the same file: the one writer takes whatever has arrived from all groups,
//! lays it out behind what is there, writes it, syncs once, and then answers everything that waited
//! ([`Writer`]). The file is a run of segments of equal length, written full of zeros before they are
//! used and used again afterwards: a synced write over zeros takes a thirtieth, at the 99th percentile,
//! of one into space that was only reserved. What an append waits for is at most the sync that is
//! under way and the one after it.
//!
//! A group sees none of this. It has a [`ReplicaLog`]: entries that are readable as soon as they are
//! appended (from memory: a reader never waits for a sync), durable when they are said to be, and a
//! vote, a truncation and a purge point that are durable alike. Replicas are keyed by an id that is
//! never used twice; the log remembers for ever which ones were born and which are gone.
//!
//! **What holds**, and where it is held:
//!
//! 1. What was answered is there after a power cut. The answer follows the sync (`writer.rs`), the name
//!    of a segment is durable before its first record (`segment.rs`), and what recovery has read is
//!    made durable before anything is built on it (`open.rs`).
//! 2. A tear is cut, damage stops the node. Each write begins with a mark: all before it is synced. A
//!    bad record before a mark, or before the end that the next segment's header names, was synced
//!    once; a bad record behind the last mark was never answered (`recovery.rs`). Every start opens a
//!    new segment, whose header makes the cut final.
//! 3. Records of a file's earlier use are never read: checksums are seeded with the segment's number,
//!    which is never used twice, and the offset (`codec/record.rs`).
//! 4. Nothing that was truncated or purged comes back. Segments are given up oldest first, and only
//!    when the synced header of a newer one says that they are not needed; a file that reappears
//!    below that is ignored. What still counts in the oldest is copied forward in records that put
//!    entries in their place and take nothing away (`index.rs`).
//! 5. Answers come in the order of the calls, and a failed write or sync is the end: everything that
//!    waits gets the error, so does everything that comes, and the node ends ([`Wal::failed`]).
//!
//! **What is absent.** No record says which entries are committed or applied: that is the engine's.
//! No background flush, no retry, no repair: a damaged log means a new node.

mod record;
mod index;
mod segment;
mod recovery;
pub(crate) mod trial;
mod open;
mod replica;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::env::files::File;
use crate::env::files::Files;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::wal::record::ENTRIES_BYTES;
use crate::wal::record::ENTRY_BYTES;
use crate::wal::record::MARK_BYTES;
use crate::wal::record::Record;
use crate::wal::replica::Replica;
use crate::wal::segment::END_BYTES;
use crate::wal::segment::HEADER_BYTES;

pub use replica::LogState;
pub use replica::ReplicaLog;
pub use writer::Writer;
pub use writer::WriterHandle;

/// What a node may choose about its log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of a segment, in bytes; an entry must fit in one. At least [`SEGMENT_BYTES_MIN`]. It may
    /// change from start to start.
    pub segment_bytes: u64,
    /// Payload bytes of recent entries that are kept in memory, for all replicas together. What is not
    /// synced yet is kept beside that.
    pub cache_bytes: usize,
    /// Segments kept ready. What is freed beyond is given back to the file system.
    pub spare_segments: usize,
    /// Payload bytes that may wait to be written. Full: appends wait.
    pub queue_bytes: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 32 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            spare_segments: 2,
            queue_bytes: 32 * 1024 * 1024,
        }
    }
}

/// Shortest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 16 * 1024;
/// Longest segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Writes that may wait, of all replicas. Full: the caller waits.
const WRITES_WAITING_MAX: usize = 4_096;

/// Called when what was asked for is durable, or never will be. Runs on the writer's thread: it must
/// be short and must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Why a log cannot be opened or does not take a replica.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Bytes that were synced once are not what was written. The log cannot be trusted.
    #[error(
        "{} is damaged at offset {offset}: {reason}; acknowledged writes may be missing here, so this \
         node must not go on: move its data directory away and start it with --join as a new node",
        file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A newer program has written this.
    #[error(
        "{} has format version {found}, this program reads version {known}: start the version that \
         wrote it",
        file.display()
    )]
    Version {
        /// The segment.
        file: PathBuf,
        /// What it says.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// The options contradict themselves.
    #[error("log option {option}: {reason}")]
    Option {
        /// Which.
        option: &'static str,
        /// Why.
        reason: String,
    },
    /// What is said about a replica does not fit in a segment.
    #[error("{bytes} bytes about a replica do not fit in a segment of the log")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The id was used here before; ids are never used twice.
    #[error("replica {0} was born on this node before")]
    BornBefore(ReplicaId),
    /// The log has failed or was closed; the node must end.
    #[error("the log takes no more writes: {0}")]
    Failed(String),
}

impl WalError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> WalError {
        WalError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    fn damaged(file: &Path, offset: u64, reason: &str) -> WalError {
        WalError::Damaged {
            file: file.to_path_buf(),
            offset,
            reason: reason.to_string(),
        }
    }

    fn version(file: &Path, found: u32) -> WalError {
        WalError::Version {
            file: file.to_path_buf(),
            found,
            known: u32::from(record::FORMAT),
        }
    }
}

/// A replica that the log knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedReplica {
    /// Its id.
    pub id: ReplicaId,
    /// What was said at its birth; empty when it is gone.
    pub born: Bytes,
    /// Whether it is gone, for ever.
    pub gone: bool,
}

/// What a log holds that nobody has opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Files that are needed.
    pub segments: usize,
    /// Whether its last write was torn. It was never answered; the next start cuts it off.
    pub torn: bool,
    /// Every replica that it knows, by id, with what it says of it.
    pub replicas: Vec<(LoggedReplica, LogState)>,
}

/// Checks the log in `dir` by the rules by which it is opened, and changes nothing. `progress` hears of
/// bytes read. Blocks on the disk. Nobody may write it meanwhile.
pub fn inspect(
    files: Arc<dyn Files>,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Inspected, WalError> {
    let found = open::inspect(files, dir, progress)?;
    let replicas = found.recovered.replicas.into_iter();
    let replicas = replicas.filter_map(|(id, index)| {
        let replica = Replica::recovered(id, index);
        let state = replica.state().now;
        Some((replica.logged()?, state))
    });
    Ok(Inspected {
        segments: found.segments,
        torn: found.torn,
        replicas: replicas.collect(),
    })
}

/// A node's log. Clones are the same log.
#[derive(Clone)]
pub struct Wal {
    door: Arc<Door>,
}

/// The way to the writer, who ends when nobody has one any more.
struct Door {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Queued>,
}

/// What the log's users and its writer share. No lock here is held over a file operation.
struct Shared {
    options: Options,
    dir: PathBuf,
    room: Arc<Semaphore>,
    replicas: RwLock<BTreeMap<ReplicaId, Arc<Replica>>>,
    segments: RwLock<BTreeMap<u64, Arc<dyn File>>>,
    syncs: Mutex<Syncs>,
    /// Why nothing is written any more. Set when all that waited has its answer.
    end: watch::Sender<Option<Arc<str>>>,
}

#[derive(Default)]
struct Syncs {
    count: u64,
    last: Duration,
    began: Option<Instant>,
}

/// How the disk is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncStats {
    /// Writes that were synced since the start.
    pub count: u64,
    /// How long the last write and its sync took.
    pub last: Duration,
    /// How long the one under way has taken up to now.
    pub under_way: Option<Duration>,
}

/// A write on its way to the writer.
struct Queued {
    replica: Option<Arc<Replica>>,
    /// Its number among the replica's writes; they complete in this order.
    number: u64,
    work: Work,
    completion: Completion,
    /// Held while it waits to be written.
    room: Option<OwnedSemaphorePermit>,
}

enum Work {
    /// Entries in order, without gaps: as many records as they need.
    Append(Vec<LogEntry>),
    /// One record.
    Record(Record),
    /// Nothing is written; completes when everything before it has.
    Fence,
    /// What still counts in the oldest segment is copied forward, and the segment given up.
    Release,
    /// The last write.
    Stop,
}

/// Answers exactly once, with an error if it is dropped.
struct Completion(Option<Done>);

impl Completion {
    fn nobody() -> Completion {
        Completion(None)
    }

    /// Does not answer after all.
    fn forget(mut self) {
        self.0 = None;
    }

    /// A completion, and what waits for it.
    fn awaited() -> (Completion, impl Future<Output = io::Result<()>> + Send) {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result| {
            // Whoever asked may have gone away.
            let _ = tell.send(result);
        });
        let wait = async move {
            let answered = told.await;
            answered.unwrap_or_else(|_| Err(closed("the writer has gone")))
        };
        (Completion(Some(done)), wait)
    }

    fn complete(mut self, result: io::Result<()>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(closed("the writer has gone")));
        }
    }
}

/// Leave to queue one write: it cannot fail any more, nor has it to wait.
struct Room {
    slot: mpsc::OwnedPermit<Queued>,
    bytes: OwnedSemaphorePermit,
}

impl Room {
    fn send(self, replica: Option<Arc<Replica>>, number: u64, work: Work, completion: Completion) {
        self.slot.send(Queued {
            replica,
            number,
            work,
            completion,
            room: Some(self.bytes),
        });
    }
}

impl Door {
    /// Waits until a write with such a payload may be queued. Cancel-safe: nothing has happened.
    async fn room_for(&self, payload_bytes: usize) -> io::Result<Room> {
        let shared = &self.shared;
        let most = shared.options.queue_bytes;
        let bytes = u32::try_from(payload_bytes).unwrap_or(most).clamp(1, most);
        let bytes = shared.room.clone().acquire_many_owned(bytes).await;
        let bytes = bytes.map_err(|_| shared.ended())?;
        let slot = self.queue.clone().reserve_owned().await;
        let slot = slot.map_err(|_| shared.ended())?;
        if shared.end.borrow().is_some() {
            return Err(shared.ended());
        }
        Ok(Room { slot, bytes })
    }
}

impl Shared {
    /// Waits until everything that was queued has its answer and nothing else will be taken.
    async fn wait_for_end(&self) -> String {
        let mut end = self.end.subscribe();
        let ended = end.wait_for(Option::is_some).await;
        let reason = ended.ok().and_then(|reason| reason.clone());
        reason.map_or("closed".to_string(), |reason| reason.to_string())
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest payload of one entry or birth, in bytes: a record of it alone fits in a segment.
    fn payload_bytes_max(&self) -> u64 {
        let around = ENTRIES_BYTES + ENTRY_BYTES + MARK_BYTES + END_BYTES;
        self.options.segment_bytes - HEADER_BYTES - around as u64 - STATE_ROOM_BYTES
    }

    fn ended(&self) -> io::Error {
        let reason = self.end.borrow().clone();
        closed(reason.as_deref().unwrap_or("it is closing"))
    }

    fn replicas(&self) -> RwLockReadGuard<'_, BTreeMap<ReplicaId, Arc<Replica>>> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replicas_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<ReplicaId, Arc<Replica>>> {
        self.replicas
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn segment(&self, sequence: u64) -> Option<Arc<dyn File>> {
        let segments = self.segments.read();
        let segments = segments.unwrap_or_else(PoisonError::into_inner);
        segments.get(&sequence).cloned()
    }

    fn last_segment(&self) -> Option<(u64, Arc<dyn File>)> {
        let segments = self.segments.read();
        let segments = segments.unwrap_or_else(PoisonError::into_inner);
        let (sequence, file) = segments.last_key_value()?;
        Some((*sequence, file.clone()))
    }

    fn first_segment(&self) -> u64 {
        let segments = self.segments.read();
        let segments = segments.unwrap_or_else(PoisonError::into_inner);
        segments.keys().next().copied().unwrap_or(0)
    }

    fn take_segments_below(&self, oldest: u64) -> Vec<u64> {
        let mut segments = self.segments_mut();
        let kept = segments.split_off(&oldest);
        std::mem::replace(&mut *segments, kept)
            .into_keys()
            .collect()
    }

    /// The replica with that id, or the next higher one.
    fn replica_from(&self, id: ReplicaId) -> Option<Arc<Replica>> {
        let replicas = self.replicas();
        let (_, replica) = replicas.range(id..).next()?;
        Some(replica.clone())
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Arc<dyn File>>> {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a copied state needs beside what was said at birth, and more.
const STATE_ROOM_BYTES: u64 = 64;

fn closed(reason: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        WalError::Failed(reason.to_string()),
    )
}

impl Wal {
    /// Opens the log in `dir`, or makes one there: reads all of it, cuts a torn last write, and starts
    /// a new segment. Blocks on the disk. The directory must belong to this process alone.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        options: Options,
    ) -> Result<(Wal, Writer), WalError> {
        check(&options)?;
        let opened = open::open(files, dir, &options)?;
        let (queue, arrivals) = mpsc::channel(WRITES_WAITING_MAX);
        let replicas = opened.recovered.replicas.into_iter();
        let replicas = replicas.map(|(id, index)| (id, Arc::new(Replica::recovered(id, index))));
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            room: Arc::new(Semaphore::new(options.queue_bytes as usize)),
            options,
            replicas: RwLock::new(replicas.collect()),
            segments: RwLock::new(opened.segments),
            syncs: Mutex::default(),
            end: watch::Sender::new(None),
        });
        let writer = Writer::new(
            shared.clone(),
            arrivals,
            opened.spares,
            opened.recovered.live,
        );
        let door = Arc::new(Door { shared, queue });
        Ok((Wal { door }, writer))
    }

    /// Every replica that was ever born or gone here, by id.
    pub fn replicas(&self) -> Vec<LoggedReplica> {
        let replicas = self.door.shared.replicas();
        replicas.values().filter_map(|it| it.logged()).collect()
    }

    /// Whether this id has ended here, for ever.
    pub fn is_gone(&self, id: ReplicaId) -> bool {
        let replicas = self.door.shared.replicas();
        replicas.get(&id).is_some_and(|it| it.is_gone())
    }

    /// The log of a replica that is born and not gone.
    pub fn log(&self, id: ReplicaId) -> Option<ReplicaLog> {
        let replica = self.door.shared.replicas().get(&id).cloned()?;
        let alive = replica.is_alive();
        alive.then(|| ReplicaLog::new(replica, self.door.clone()))
    }

    /// Begins a replica's log; `about` is kept with it. Synced on return. Refused for an id that was
    /// ever born or gone here. Dropped half-way, it may have happened.
    pub async fn born(&self, id: ReplicaId, about: Bytes) -> Result<ReplicaLog, WalError> {
        let fits = about.len() as u64 <= self.door.shared.payload_bytes_max();
        if !fits {
            return Err(WalError::TooLong { bytes: about.len() });
        }
        let room = self.door.room_for(about.len()).await.map_err(failed)?;
        let replica = Arc::new(Replica::unborn(id));
        {
            let mut replicas = self.door.shared.replicas_mut();
            if replicas.contains_key(&id) && !mutant::lives(Mutant::BornTwice) {
                return Err(WalError::BornBefore(id));
            }
            replicas.insert(id, replica.clone());
        }
        let work = Work::Record(Record::Born(about));
        let born = replica.submit_and_wait(room, |_| Ok(work)).await;
        born.map_err(failed)?;
        Ok(ReplicaLog::new(replica, self.door.clone()))
    }

    /// Ends a replica's log for ever and forgets what was in it. Synced on return; done before, it is
    /// done. An id that was never born here is marked too. Dropped half-way, it may have happened.
    pub async fn gone(&self, id: ReplicaId) -> Result<(), WalError> {
        let room = self.door.room_for(0).await.map_err(failed)?;
        let unborn = || Arc::new(Replica::unborn(id));
        let replica = self
            .door
            .shared
            .replicas_mut()
            .entry(id)
            .or_insert_with(unborn)
            .clone();
        let gone = replica.submit_and_wait(room, |state| {
            state.end();
            Ok(Work::Record(Record::Gone))
        });
        gone.await.map_err(failed)
    }

    /// Copies what still counts in the oldest segment forward and gives the segment up, now instead
    /// of when the log has grown. Done on return.
    pub async fn release(&self) -> Result<(), WalError> {
        let room = self.door.room_for(0).await.map_err(failed)?;
        let (completion, done) = Completion::awaited();
        room.send(None, 0, Work::Release, completion);
        done.await.map_err(failed)
    }

    /// Waits until the log has failed or was closed, and says why. A failure is final: the node must
    /// end. Cancel-safe.
    pub async fn failed(&self) -> String {
        self.door.shared.wait_for_end().await
    }

    /// How the disk is doing. Never waits for it.
    pub fn syncs(&self) -> SyncStats {
        let syncs = self.door.shared.syncs();
        SyncStats {
            count: syncs.count,
            last: syncs.last,
            under_way: syncs.began.map(|began| began.elapsed()),
        }
    }

    /// Segments in use; each takes its whole length on the disk.
    pub fn segments(&self) -> usize {
        let segments = self.door.shared.segments.read();
        segments.unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn failed(error: io::Error) -> WalError {
    WalError::Failed(error.to_string())
}

fn check(options: &Options) -> Result<(), WalError> {
    let refuse = |option, reason: String| Err(WalError::Option { option, reason });
    let lengths = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if !lengths.contains(&options.segment_bytes) {
        let (shortest, longest) = lengths.into_inner();
        let reason = format!(
            "{} is not from {shortest} to {longest}",
            options.segment_bytes
        );
        return refuse("segment_bytes", reason);
    }
    if options.queue_bytes == 0 {
        return refuse("queue_bytes", "0 lets nothing through".to_string());
    }
    Ok(())
}
