//! The type config of the library, the same in production and in simulation, and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::SnapshotPolicy;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::raft::runtime::Runtime;
use crate::types::NodeId;
use crate::types::ReplicaId;

openraft::declare_raft_types!(
    /// Opaque commands, opaque answers, replicas as Raft's nodes.
    pub(super) TypeConfig:
        D = Command,
        R = Bytes,
        NodeId = ReplicaId,
        Node = NodeId,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, ReplicaId>,
        AsyncRuntime = Runtime,
);

pub(super) type Raft = openraft::Raft<TypeConfig, crate::raft::state_machine::Applier>;
pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;
pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type RaftVote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot =
    openraft::alias::SnapshotOf<TypeConfig, crate::raft::state_machine::SnapshotData>;

/// A state machine's command, which Raft does not look into.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Command(pub(super) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a person may set about groups.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often a leader tells its followers that it lives. Default 100 ms.
    pub heartbeat: Duration,
    /// Shortest wait of a follower that has not heard of its leader. Default 300 ms: three times the
    /// slowest synced vote of a healthy disk, since calls for votes expire after it.
    pub election_timeout_min: Duration,
    /// Longest such wait, and how long a follower refuses votes after the last heartbeat. Default 450 ms.
    pub election_timeout_max: Duration,
    /// How long a snapshot may take to be sent and installed. Default 10 min.
    pub snapshot_timeout: Duration,
    /// Entries kept behind a checkpoint, so that a follower that was away briefly catches up from the
    /// log. Default 10,000.
    pub entries_kept: u64,
    /// And not more bytes than this. Default 256 MiB.
    pub bytes_kept: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            heartbeat: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(450),
            snapshot_timeout: Duration::from_secs(600),
            entries_kept: 10_000,
            bytes_kept: 256 << 20,
        }
    }
}

/// Entries that one append to a follower carries at most; it is cut by bytes before that.
const APPEND_ENTRIES_MAX: u64 = 1_024;
/// How long a leader waits before it tries again what a follower could not be sent. One that is not made yet is there
/// in a moment; one whose node is down costs two tries a second. When it is back, its second batch waits as long again.
const BACKOFF: &str = "10ms 20ms 40ms ..500ms";
/// Proposals and messages that wait for a group's core. Full: the sender waits.
const CORE_QUEUE_MAX: u64 = 4_096;

impl Options {
    pub(super) fn build(&self, name: String) -> Result<Arc<openraft::Config>, String> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: name,
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: APPEND_ENTRIES_MAX,
            api_channel_size: Some(CORE_QUEUE_MAX),
            backoff: BACKOFF.to_string(),
            // The checkpoint triggers snapshots and purges; nothing else does.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX / 2,
            // A follower is sent a snapshot when the log it needs is purged, not before.
            replication_lag_threshold: u64::MAX / 2,
            enable_pre_vote: Some(true),
            // A restarted leader that led on in its old term could give a committed position to another
            // payload, since entries go to followers before they are synced here.
            enable_leader_restore: Some(mutant::lives(Mutant::LeaderRestored)),
            quorum_loss_probe_interval: Some(millis(self.election_timeout_max) * 4),
            ..Default::default()
        };
        Ok(Arc::new(
            config.validate().map_err(|error| error.to_string())?,
        ))
    }
}
