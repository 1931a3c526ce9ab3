//! The flags of `quorate serve`, each with its environment variable. A flag left out stays out of the
//! tree, so that the file or the default holds.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// Every option as a flag. All are texts here: the tree reads flag, variable and file alike.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct ServeFlags {
    /// Read options from this TOML file. Its keys are the flags' names with underscores
    #[arg(
        long,
        value_name = "FILE",
        env = "QUORATE_CONFIG",
        help_heading = "General"
    )]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// This node's name in the cluster: letters, digits, dots, underscores, dashes [default: n1]
    #[arg(
        long,
        value_name = "NAME",
        env = "QUORATE_NAME",
        help_heading = "General"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Where this node keeps its data [default: quorate-data]
    #[arg(
        long,
        value_name = "DIR",
        env = "QUORATE_DATA_DIR",
        help_heading = "General"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,

    /// What is logged: error, warn, info, debug, trace, or info,quorate::raft=debug [default: info,openraft=error]
    #[arg(
        long,
        value_name = "FILTER",
        env = "QUORATE_LOG",
        help_heading = "General"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,

    /// text, json, or auto: text on a terminal, else JSON [default: auto]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "QUORATE_LOG_FORMAT",
        help_heading = "General"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,

    /// The nodes that form the cluster, the same on each, with node ports: n1=host:7401,n2=host:7401.
    /// Ignored once the data directory has a cluster [default: this node alone]
    #[arg(
        long,
        value_name = "LIST",
        env = "QUORATE_INITIAL_CLUSTER",
        help_heading = "Cluster"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_cluster: Option<String>,

    /// Tells clusters apart that are formed of the same list; the same on each node [default: quorate]
    #[arg(
        long,
        value_name = "TOKEN",
        env = "QUORATE_INITIAL_CLUSTER_TOKEN",
        help_heading = "Cluster"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_cluster_token: Option<String>,

    /// Node addresses of an existing cluster to join: host:7401,host:7401
    #[arg(
        long,
        value_name = "ADDRESSES",
        env = "QUORATE_JOIN",
        help_heading = "Cluster"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,

    /// What is known of the node, for rules and for spreading replicas over zones: zone=a,disk=ssd
    #[arg(
        long,
        value_name = "NAME=VALUE,..",
        env = "QUORATE_LABELS",
        help_heading = "Cluster"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,

    /// What the node is for: both, data or placement [default: both]
    #[arg(
        long,
        value_name = "ROLE",
        env = "QUORATE_ROLE",
        help_heading = "Cluster"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,

    /// Address and port for clients [default: 127.0.0.1:7400]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "QUORATE_LISTEN_CLIENT",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_client: Option<String>,

    /// Address and port for the other nodes [default: 127.0.0.1:7401]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "QUORATE_LISTEN_NODE",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_node: Option<String>,

    /// Address and port for /livez, /readyz and /metrics [default: 127.0.0.1:7402]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "QUORATE_LISTEN_HTTP",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_http: Option<String>,

    /// Where clients reach this node [default: --listen-client]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "QUORATE_ADVERTISE_CLIENT",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_client: Option<String>,

    /// Where other nodes reach this one [default: its entry in --initial-cluster, else --listen-node]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "QUORATE_ADVERTISE_NODE",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_node: Option<String>,

    /// Allow other addresses than loopback, though nothing is encrypted and anybody may read and write
    #[arg(
        long,
        value_name = "BOOL",
        env = "QUORATE_INSECURE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Network"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,

    /// How long a stopping node lets requests end [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_DRAIN_TIMEOUT",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,

    /// The engine's page cache; it takes about 2.6 times as much memory [default: 64MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "QUORATE_CACHE_BYTES",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<String>,

    /// With less free disk than this, puts are refused; half of it is really taken [default: 256MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "QUORATE_FREE_SPACE_RESERVE_BYTES",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_space_reserve_bytes: Option<String>,

    /// How often a leader says that it is there [default: 100ms]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_HEARTBEAT_INTERVAL",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<String>,

    /// A follower that hears nothing waits at least this long; at least 3 heartbeats [default: 300ms]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_ELECTION_TIMEOUT_MIN",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election_timeout_min: Option<String>,

    /// And at most this long [default: 450ms]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_ELECTION_TIMEOUT_MAX",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election_timeout_max: Option<String>,

    /// How long the engine may go without a checkpoint [default: 5s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_CHECKPOINT_INTERVAL",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<String>,

    /// How often the replicas of a shard compare what they have applied [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_SELF_CHECK_INTERVAL",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_check_interval: Option<String>,

    /// Stored state that a node reads in a second at most to compare replicas; 0 compares none [default: 4MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "QUORATE_SCRUB_BYTES_PER_SECOND",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_bytes_per_second: Option<String>,

    /// From the beginning of one comparison of all stored state to that of the next, at least [default: 1h]
    #[arg(
        long,
        value_name = "DURATION",
        env = "QUORATE_SCRUB_INTERVAL",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_interval: Option<String>,

    /// Size of one log segment, 8MiB to 1GiB [default: 32MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "QUORATE_LOG_SEGMENT_BYTES",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_segment_bytes: Option<String>,

    /// Segments kept ready, filled with zeros [default: 2]
    #[arg(
        long,
        value_name = "COUNT",
        env = "QUORATE_LOG_SPARE_SEGMENTS",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_spare_segments: Option<u32>,

    /// Recent log entries kept in memory, for all groups together [default: 64MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "QUORATE_LOG_CACHE_BYTES",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_cache_bytes: Option<String>,

    /// Entries of each group kept behind a checkpoint for followers that lag [default: 10000]
    #[arg(
        long,
        value_name = "COUNT",
        env = "QUORATE_LOG_ENTRIES_KEPT",
        help_heading = "Tuning"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_entries_kept: Option<u64>,
}
