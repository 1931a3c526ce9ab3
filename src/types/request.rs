//! What is asked of a shard, and what it answers. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::ReplicaId;
use crate::types::id::RequestId;
use crate::types::id::ShardId;
use crate::types::key::Key;
use crate::types::key::KeyRange;
use crate::types::key::Value;
use crate::types::timestamp::Timestamp;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum ReadKind {
    /// As of a moment after the request was sent: sees every write acknowledged before.
    #[default]
    Linearizable,
    /// Whatever the answering replica has applied; the answer says as of when.
    Follower,
}

/// What must hold for a write to happen. All are checked against the state before the write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key's newest version is exactly this one; `ZERO` means the key is absent.
    Version {
        /// The key looked at.
        key: Key,
        /// The version expected.
        version: Timestamp,
    },
    /// The key is there and has exactly this value.
    Value {
        /// The key looked at.
        key: Key,
        /// The value expected.
        value: Value,
    },
    /// The key is there.
    Exists {
        /// The key looked at.
        key: Key,
    },
}

impl Condition {
    /// The key looked at.
    pub fn key(&self) -> &Key {
        match self {
            Condition::Version { key, .. }
            | Condition::Value { key, .. }
            | Condition::Exists { key } => key,
        }
    }
}

/// One change to one key. A request changes a key at most once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Store a value.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Key,
    },
}

impl Operation {
    /// The key changed.
    pub fn key(&self) -> &Key {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteKind {
    /// Changes keys if all conditions hold; all of it or none. At least one operation.
    Keys {
        /// What must hold before.
        conditions: Vec<Condition>,
        /// What is done.
        operations: Vec<Operation>,
    },
    /// Removes up to `limit` keys from the start of a range, as far as the shard with the start goes.
    Range {
        /// The keys.
        range: KeyRange,
        /// How many at most; 1 to [`DELETE_RANGE_KEYS_MAX`].
        limit: u32,
    },
}

/// Keys that one DeleteRange removes at most: one log entry's worth of work.
pub const DELETE_RANGE_KEYS_MAX: u32 = 10_000;

/// A write, with the identity under which it may be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Its identity.
    pub id: RequestId,
    /// What it does.
    pub kind: WriteKind,
}

impl Write {
    /// The key under which a repeat is looked for.
    pub fn first_key(&self) -> &Key {
        match &self.kind {
            WriteKind::Keys { operations, .. } => operations[0].key(),
            WriteKind::Range { range, .. } => &range.start,
        }
    }
}

/// A key's newest version as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// Its value.
    pub value: Value,
    /// Its stamp.
    pub version: Timestamp,
}

/// A key with its version, as a scan returns it. The value is empty in a scan of keys only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// What it holds.
    pub versioned: Versioned,
}

/// How a write ended at its shard: the same on every replica, and for a repeat of the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOutcome {
    /// It happened. `deleted` counts the keys that were there and are not any more.
    Done {
        /// Stamp of every version it made; `ZERO` when it changed nothing (a delete that found nothing).
        version: Timestamp,
        /// Keys removed.
        deleted: u32,
        /// DeleteRange stopped at its limit or at the end of the shard: go on from here, under a new id.
        resume: Option<Key>,
    },
    /// A condition did not hold; nothing was changed, and a repeat of this id never will change anything.
    ConditionFailed {
        /// Which condition, from 0.
        condition: u32,
        /// The version that was there instead; `ZERO` if the key was absent.
        actual: Timestamp,
    },
    /// The id is older than outcomes are remembered: it may or may not have happened.
    TooLateToKnow {
        /// How long outcomes are remembered, in milliseconds.
        retry_window_ms: u64,
    },
    /// The id's time is ahead of the cluster's clock. Not final: send the same id again.
    ClockAhead {
        /// Milliseconds to wait.
        wait_ms: u64,
    },
    /// The shard has the write's first key and not this one of its keys. Nothing was changed, and a
    /// repeat of this id never will change anything, even if the shards become one.
    Spanning {
        /// The key that is elsewhere.
        key: Key,
    },
    /// The shard's bounds changed before the write was applied. Not final: look the shard up again.
    StaleEpoch,
    /// The stamp was not above the shard's last one. Not final: propose again.
    StaleStamp,
    /// The shard stands still until its left neighbour has absorbed it or given that up. Not final: send the
    /// same id again.
    Frozen,
}

/// Who answered and as of when; part of every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The shard.
    pub shard: ShardId,
    /// The replica that answered.
    pub replica: ReplicaId,
    /// Whether that replica led its group.
    pub leader: bool,
    /// The clock of the answering replica: above everything the answer has seen.
    pub timestamp: Timestamp,
    /// The stamp of the last command that the answering replica had applied: how old a follower read is.
    pub as_of: Timestamp,
}
