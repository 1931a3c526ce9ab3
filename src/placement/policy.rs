//! Every threshold of placement in one value. Decides only.
//!
//! A policy is one for the whole cluster, since two that plan by different ones would undo each other's work.
//! Times are lengths; whoever makes a view measures them with a clock that is not set back.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::placement::rule::Rule;

const MIB: u64 = 1024 * 1024;

/// When is something wrong, and how much is done about it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What is wanted of shards for which there is no other rule. Default: three replicas over zones.
    pub rule: Rule,

    /// A node that has been silent for so long gets nothing new. Default 5 s.
    pub suspect_after: Duration,
    /// And after so long its replicas are replaced. Default 5 min: a restart must not move everything.
    pub replace_after: Duration,

    /// A node is slow when its log sync or its round trips take so many times as long as the median of its
    /// peers. Default 5.
    pub slow_times: u32,
    /// And at least so long. Default 50 ms: below that nobody notices.
    pub slow_min: Duration,
    /// It leads nothing until it has been well for so long. Default 1 min.
    pub slow_recovery: Duration,

    /// A shard of this size is split, in bytes. Default 64 MiB.
    pub split_bytes: u64,
    /// A shard with so many operations a second is split. Default 2,000: a fifth of what one leader bears.
    pub split_operations: u64,
    /// It must have had them for so long without a break. Default 10 s.
    pub split_sustained: Duration,
    /// Sampled keys below which nothing is said about where the load is. Default 20.
    pub split_samples_min: usize,
    /// The lighter half must get at least this share of the load, in percent. Default 20: less is no relief.
    pub split_share_min_percent: u64,
    /// Splits at once in the cluster. Default 8.
    pub splits_at_once: usize,

    /// So many bytes of a request cost as much as the request itself. Default 4 KiB.
    pub operation_bytes: u64,
    /// To lead a shard costs at least as much as so many operations a second, so that the leaders of an idle
    /// cluster are even too. Default 10.
    pub leader_operations: u64,
    /// A replica counts as so many bytes more than it has, so that empty ones are even too. Default 1 MiB.
    pub replica_bytes: u64,
    /// To even out, a move must bring two nodes closer by more than this share of the mean, in percent.
    /// Default 5.
    pub balance_percent: u64,
    /// A replica that has come to its node within this time is not moved away to even out. Default 5 min.
    pub replica_rest: Duration,
    /// Nor is the lead passed on that was taken within this time. Default 1 min.
    pub leader_rest: Duration,

    /// Replicas on the way to one node at once. Default 2.
    pub moves_per_node: usize,
    /// Replicas on the way in the cluster at once. Default 8.
    pub moves_per_cluster: usize,
    /// Leads passed on from or to one node at once to even out. Default 4.
    pub transfers_per_node: usize,
    /// The same, to or from a node that shall not lead: its leaders must be gone in seconds. Default 128.
    pub drains_per_node: usize,

    /// A node is full when so much of its disk is used, in percent: it gets no more replicas. Default 85.
    pub full_percent: u64,
    /// Entries that a replica may lack and still be called caught up. Default 1,000.
    pub lag_max: u64,

    /// An operator that has nothing to copy has failed after this time. Default 30 s.
    pub operator_time: Duration,
    /// One that copies a shard may take so much longer, besides the time for its bytes. Default 10 min, which
    /// a shard's leader gives a new replica to catch up.
    pub catch_up_time: Duration,
    /// What a node sends of snapshots, in bytes a second, so that clients do not feel it. Default 32 MiB.
    pub snapshot_bytes_per_second: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            rule: Rule::default(),
            suspect_after: Duration::from_secs(5),
            replace_after: Duration::from_secs(300),
            slow_times: 5,
            slow_min: Duration::from_millis(50),
            slow_recovery: Duration::from_secs(60),
            split_bytes: 64 * MIB,
            split_operations: 2_000,
            split_sustained: Duration::from_secs(10),
            split_samples_min: 20,
            split_share_min_percent: 20,
            splits_at_once: 8,
            operation_bytes: 4 * 1024,
            leader_operations: 10,
            replica_bytes: MIB,
            balance_percent: 5,
            replica_rest: Duration::from_secs(300),
            leader_rest: Duration::from_secs(60),
            moves_per_node: 2,
            moves_per_cluster: 8,
            transfers_per_node: 4,
            drains_per_node: 128,
            full_percent: 85,
            lag_max: 1_000,
            operator_time: Duration::from_secs(30),
            catch_up_time: Duration::from_secs(600),
            snapshot_bytes_per_second: 32 * MIB,
        }
    }
}
