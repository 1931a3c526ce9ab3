//! The cut between Raft and what it replicates. Decides only.
//!
//! Raft carries opaque bytes and hands them over in order; a [`StateMachine`] turns them into changes
//! of the engine. A shard is one, placement is the other.

pub mod membership;

use std::any::Any;
use std::fmt;

use bytes::Bytes;

use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::log::LogEntry;

pub use membership::Membership;

/// A failure of the engine or of a stored byte. It is not an answer: it ends the replica, since the
/// others may have gone on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

/// How far a replica has come. Changes in the same batch as the data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The last entry whose effects are in the engine.
    pub position: Option<Position>,
    /// Where the last membership entry stood.
    pub membership_position: Option<Position>,
    /// The last [`Membership`], encoded; empty before the first.
    pub membership: Bytes,
}

/// One replica's state. Owned by one task; readers have their own handles. Every call may block on
/// the engine.
pub trait StateMachine: Send + 'static {
    /// How far it has come.
    fn applied(&self) -> Applied;

    /// Applies committed entries in order, in as few batches as it likes, each with its position;
    /// returns one answer for each entry. The outcome is a function of state and entries alone.
    ///
    /// Fewer answers than entries: what comes behind the last of them is not applied, and
    /// [`StateMachine::take_need`] says what must be done first. Then the rest is given again.
    fn apply(&mut self, entries: &[LogEntry]) -> Result<Vec<Bytes>, MachineError>;

    /// Why the last call of [`StateMachine::apply`] has stopped before its end.
    fn take_need(&mut self) -> Option<Need>;

    /// The replicas on this node whose first row this machine has written since the last call: those
    /// of a child that was split off. Their rows are in the engine, not flushed yet.
    fn take_seeded(&mut self) -> Vec<ReplicaId>;

    /// The replicas on this node that have ended with what this machine has done since the last call: their rows
    /// are gone from the engine, which is not flushed yet. Behind a flush the log may call them gone.
    fn take_ended(&mut self) -> Vec<ReplicaId>;

    /// The whole state as of now. Reading it may go on while entries are applied.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError>;

    /// Removes a portion of what no reader may ask for any more; true when there may be more of it.
    /// Called between entries by whoever owns the machine.
    fn collect(&mut self) -> Result<bool, MachineError>;

    /// Takes snapshots beside the machine, which goes on.
    fn receiver(&self) -> Box<dyn SnapshotReceiver>;

    /// The replicas on this node that end with the installation of a received state. Nobody may go on with them
    /// when that is begun.
    fn displaces(&self, received: &Received) -> Result<Vec<ReplicaId>, MachineError>;

    /// Replaces the whole state by a received one, in one small batch.
    fn install(&mut self, applied: Applied, received: Received) -> Result<(), MachineError>;
}

/// What must be done on a node before an entry can be applied: the replica of another group is brought to a
/// position out of its own log, and nobody goes on with it from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The shard that it is a replica of.
    pub shard: ShardId,
    /// The replica; `None` where there is none on this node and there will be none: only a snapshot helps the
    /// machine on.
    pub replica: Option<ReplicaId>,
    /// Where it must have come to.
    pub position: Position,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.replica {
            Some(replica) => write!(f, "{replica} of {} at {}", self.shard, self.position),
            None => write!(f, "a replica of {} at {}", self.shard, self.position),
        }
    }
}

/// A snapshot on its way out. Dropping it releases what it held back.
pub trait SnapshotSource: Send + 'static {
    /// What it contains.
    fn applied(&self) -> Applied;

    /// The next chunk, at most [`SNAPSHOT_CHUNK_BYTES_MAX`]; `None` after the last.
    fn next(&mut self) -> Result<Option<Bytes>, MachineError>;
}

/// Chunks are small enough to leave room for other calls on one connection, and for other writes where one is
/// stored at once.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Opens a place for a snapshot that comes in.
pub trait SnapshotReceiver: Send + Sync + 'static {
    /// A fresh place.
    fn begin(&self) -> Result<Box<dyn SnapshotSink>, MachineError>;
}

/// A snapshot on its way in. Dropping it before [`SnapshotSink::finish`] gives it up; what it wrote is
/// cleared later, after a crash too.
pub trait SnapshotSink: Send + 'static {
    /// Takes the next chunk; its checksum is verified.
    fn chunk(&mut self, chunk: Bytes) -> Result<(), MachineError>;

    /// All chunks are here and complete.
    fn finish(self: Box<Self>) -> Result<Received, MachineError>;
}

/// A complete snapshot beside the state that it will replace.
#[derive(Debug)]
pub struct Received {
    /// The slot that was filled; `None` where the state is all in `state`.
    pub slot: Option<u64>,
    /// What belongs to the snapshot beside the slot's keys, in the machine's own encoding.
    pub state: Bytes,
    /// Keeps the slot from being cleared; dropped without an installation, it gives the slot up.
    pub hold: Option<Box<dyn Any + Send>>,
}
