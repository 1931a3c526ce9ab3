//! Every metric, with its name, its unit and what it says. Pushed to by whoever knows the number.
//!
//! Names are `quorate_<what>_<unit>`. Labels take their values from the enums below only: never a
//! key, a shard, a node or an address, or the number of series would grow with the data. Before
//! [`install`] every push does nothing and costs next to nothing.

use std::fs;
use std::sync::LazyLock;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::Counter;
use metrics::Gauge;
use metrics::Histogram;
use metrics::Unit;
use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::error::Error;

const REQUESTS: &str = "quorate_requests_total";
const REQUEST_DURATION: &str = "quorate_request_duration_seconds";
const LOG_SYNC_DURATION: &str = "quorate_log_sync_duration_seconds";
const LOG_BATCH_RECORDS: &str = "quorate_log_batch_records";
const LOG_BATCH_BYTES: &str = "quorate_log_batch_bytes";
const ENTRY_REQUESTS: &str = "quorate_entry_requests";
const PROPOSALS: &str = "quorate_proposals_total";
const APPLY_BATCH_ENTRIES: &str = "quorate_apply_batch_entries";
const APPLY_LAG: &str = "quorate_apply_lag_entries";
const GROUPS: &str = "quorate_groups_count";
const LEADERS: &str = "quorate_leaders_count";
const GROUPS_FAILED: &str = "quorate_groups_failed_count";
const LEADER_CHANGES: &str = "quorate_leader_changes_total";
const SNAPSHOTS: &str = "quorate_snapshots_total";
const CHECKPOINT_AGE: &str = "quorate_checkpoint_age_seconds";
const CHECKPOINT_DURATION: &str = "quorate_checkpoint_duration_seconds";
const QUEUE_DEPTH: &str = "quorate_queue_depth_items";
const REPLICAS_COMPARED: &str = "quorate_replica_comparisons_total";
const REPLICAS_DIFFER: &str = "quorate_replica_differences_total";
const REPLICAS_QUARANTINED: &str = "quorate_replicas_quarantined_count";
const QUARANTINES: &str = "quorate_quarantines_total";
const REBUILDS_STUCK: &str = "quorate_rebuilds_stuck_count";
const SCRUBBED: &str = "quorate_scrubbed_bytes_total";
const FREE_SPACE: &str = "quorate_free_space_bytes";
const BUILD_INFO: &str = "quorate_build_info";
// The names that every Prometheus client library uses for these, so that common dashboards find them.
const PROCESS_MEMORY: &str = "process_resident_memory_bytes";
const PROCESS_CPU: &str = "process_cpu_seconds_total";
const PROCESS_FILES: &str = "process_open_fds";

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// From a tenth of a millisecond, below a local sync, to ten seconds, above every deadline.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
const COUNTS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];
const BYTES: &[f64] = &[
    512.0,
    2048.0,
    8192.0,
    32768.0,
    131_072.0,
    524_288.0,
    2_097_152.0,
    8_388_608.0,
];

struct Declared(&'static str, Kind, Unit, &'static str);

const DECLARED: &[Declared] = &[
    Declared(
        REQUESTS,
        Kind::Counter,
        Unit::Count,
        "Requests answered, by kind and outcome.",
    ),
    Declared(
        REQUEST_DURATION,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "Time from a request's arrival to its answer, by kind.",
    ),
    Declared(
        LOG_SYNC_DURATION,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "Time of one sync of the log.",
    ),
    Declared(
        LOG_BATCH_RECORDS,
        Kind::Histogram(COUNTS),
        Unit::Count,
        "Records that one sync of the log made durable.",
    ),
    Declared(
        LOG_BATCH_BYTES,
        Kind::Histogram(BYTES),
        Unit::Bytes,
        "Bytes that one sync of the log made durable.",
    ),
    Declared(
        ENTRY_REQUESTS,
        Kind::Histogram(COUNTS),
        Unit::Count,
        "Client writes in one log entry.",
    ),
    Declared(
        PROPOSALS,
        Kind::Counter,
        Unit::Count,
        "Entries proposed by leaders here, by outcome.",
    ),
    Declared(
        APPLY_BATCH_ENTRIES,
        Kind::Histogram(COUNTS),
        Unit::Count,
        "Entries applied in one batch of the engine.",
    ),
    Declared(
        APPLY_LAG,
        Kind::Gauge,
        Unit::Count,
        "Entries known to be committed and not yet applied, of the group that lags most.",
    ),
    Declared(
        GROUPS,
        Kind::Gauge,
        Unit::Count,
        "Groups with a replica here.",
    ),
    Declared(
        LEADERS,
        Kind::Gauge,
        Unit::Count,
        "Groups that the replica here leads.",
    ),
    Declared(
        GROUPS_FAILED,
        Kind::Gauge,
        Unit::Count,
        "Groups whose replica here has stopped.",
    ),
    Declared(
        LEADER_CHANGES,
        Kind::Counter,
        Unit::Count,
        "Changes of leader seen by the replicas here.",
    ),
    Declared(
        SNAPSHOTS,
        Kind::Counter,
        Unit::Count,
        "Snapshots sent and installed.",
    ),
    Declared(
        CHECKPOINT_AGE,
        Kind::Gauge,
        Unit::Seconds,
        "Time since the last checkpoint of the engine ended.",
    ),
    Declared(
        CHECKPOINT_DURATION,
        Kind::Histogram(SECONDS),
        Unit::Seconds,
        "Time of one checkpoint of the engine.",
    ),
    Declared(
        QUEUE_DEPTH,
        Kind::Gauge,
        Unit::Count,
        "Items waiting, by queue.",
    ),
    Declared(
        REPLICAS_COMPARED,
        Kind::Counter,
        Unit::Count,
        "Comparisons of what the replicas of a shard that is led from here have applied.",
    ),
    Declared(
        REPLICAS_DIFFER,
        Kind::Counter,
        Unit::Count,
        "Replicas found to differ from the others of their shard. Alert when it rises: the node's log says which.",
    ),
    Declared(
        QUARANTINES,
        Kind::Counter,
        Unit::Count,
        "Replicas here that were taken out of service because they differ. Alert when it rises.",
    ),
    Declared(
        REPLICAS_QUARANTINED,
        Kind::Gauge,
        Unit::Count,
        "Replicas of this node that are out of service and not rebuilt yet. Alert when it stays above 0.",
    ),
    Declared(
        REBUILDS_STUCK,
        Kind::Gauge,
        Unit::Count,
        "Replicas of this node that are out of service and whose rebuilding fails again and again. Alert when it is above 0: the node's log says why.",
    ),
    Declared(
        SCRUBBED,
        Kind::Counter,
        Unit::Bytes,
        "Bytes of stored state that were read here to compare replicas.",
    ),
    Declared(
        FREE_SPACE,
        Kind::Gauge,
        Unit::Bytes,
        "Free bytes on the disk with the node's data.",
    ),
    Declared(
        BUILD_INFO,
        Kind::Gauge,
        Unit::Count,
        "Always 1; the label says which release runs.",
    ),
    Declared(
        PROCESS_MEMORY,
        Kind::Gauge,
        Unit::Bytes,
        "Resident memory of the process.",
    ),
    Declared(
        PROCESS_CPU,
        Kind::Counter,
        Unit::Seconds,
        "User and system time of the process.",
    ),
    Declared(
        PROCESS_FILES,
        Kind::Gauge,
        Unit::Count,
        "Open file descriptors of the process.",
    ),
];

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// As it stands in the label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                }
            }
        }
    };
}

label!(
    /// What was asked.
    RequestKind {
        /// One key read.
        Get = "get",
        /// Several keys read.
        BatchGet = "batch_get",
        /// A portion of a range read.
        Scan = "scan",
        /// Keys written.
        Write = "write",
        /// A range deleted.
        DeleteRange = "delete_range",
        /// Status and other control requests.
        Control = "control",
        /// Messages of Raft outside its streams.
        Raft = "raft",
    }
);

label!(
    /// How a request ended.
    Outcome {
        /// Answered.
        Done = "done",
        /// Refused: against a limit or without sense.
        Invalid = "invalid",
        /// Refused: not here, or not any more.
        Elsewhere = "elsewhere",
        /// No leader, no quorum, or not started.
        Unavailable = "unavailable",
        /// Refused: a queue was full.
        Overloaded = "overloaded",
        /// Refused: the disk is full.
        NoSpace = "no_space",
        /// Late; nothing was changed.
        Timeout = "timeout",
        /// May have happened.
        Unknown = "unknown",
        /// Something of ours failed.
        Internal = "internal",
    }
);

label!(
    /// How a proposal ended.
    ProposalOutcome {
        /// Committed and applied.
        Applied = "applied",
        /// Refused before it was in the log.
        Refused = "refused",
        /// Its deadline passed, or its leader was deposed.
        Unknown = "unknown",
    }
);

label!(
    /// Which way a snapshot went.
    SnapshotWay {
        /// To another replica.
        Sent = "sent",
        /// Into a replica here.
        Installed = "installed",
    }
);

label!(
    /// The bounded queues.
    Queue {
        /// Appends waiting for the log's writer.
        LogAppends = "log_appends",
        /// Writes waiting to be proposed, over all groups.
        Writes = "writes",
        /// Entries proposed and not yet applied, over all groups.
        Proposals = "proposals",
        /// Client requests being worked on.
        Requests = "requests",
        /// Messages to other nodes, over all connections.
        Messages = "messages",
    }
);

impl Outcome {
    /// Of an answer.
    pub fn of<T>(result: &Result<T, Error>) -> Outcome {
        match result {
            Ok(_) => Outcome::Done,
            Err(
                Error::Invalid { .. }
                | Error::TooLateToKnow { .. }
                | Error::ClockAhead { .. }
                | Error::Spanning { .. }
                | Error::NoKeyspace { .. },
            ) => Outcome::Invalid,
            Err(
                Error::NotLeader { .. }
                | Error::StaleEpoch { .. }
                | Error::WrongCluster { .. }
                | Error::WrongNode { .. }
                | Error::NotFound { .. },
            ) => Outcome::Elsewhere,
            Err(Error::Unavailable { .. }) => Outcome::Unavailable,
            Err(Error::Overloaded { .. }) => Outcome::Overloaded,
            Err(Error::NoSpace { .. }) => Outcome::NoSpace,
            Err(Error::Timeout { .. }) => Outcome::Timeout,
            Err(Error::Unknown { .. }) => Outcome::Unknown,
            Err(Error::Internal(_)) => Outcome::Internal,
        }
    }
}

/// Handles looked up once: a push is an addition, not a search.
struct Handles {
    requests: Vec<Vec<Counter>>,
    request_duration: Vec<Histogram>,
    log_sync_duration: Histogram,
    log_batch_records: Histogram,
    log_batch_bytes: Histogram,
    entry_requests: Histogram,
    proposals: Vec<Counter>,
    apply_batch_entries: Histogram,
    leader_changes: Counter,
    snapshots: Vec<Counter>,
    checkpoint_duration: Histogram,
    replicas_compared: Counter,
    replicas_differ: Counter,
    quarantines: Counter,
    scrubbed: Counter,
    queue_depth: Vec<Gauge>,
}

static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    requests: RequestKind::ALL
        .iter()
        .map(|kind| of_outcomes(*kind))
        .collect(),
    request_duration: RequestKind::ALL
        .iter()
        .map(|kind| metrics::histogram!(REQUEST_DURATION, "kind" => kind.as_str()))
        .collect(),
    log_sync_duration: metrics::histogram!(LOG_SYNC_DURATION),
    log_batch_records: metrics::histogram!(LOG_BATCH_RECORDS),
    log_batch_bytes: metrics::histogram!(LOG_BATCH_BYTES),
    entry_requests: metrics::histogram!(ENTRY_REQUESTS),
    proposals: ProposalOutcome::ALL
        .iter()
        .map(|outcome| metrics::counter!(PROPOSALS, "outcome" => outcome.as_str()))
        .collect(),
    apply_batch_entries: metrics::histogram!(APPLY_BATCH_ENTRIES),
    leader_changes: metrics::counter!(LEADER_CHANGES),
    snapshots: SnapshotWay::ALL
        .iter()
        .map(|way| metrics::counter!(SNAPSHOTS, "way" => way.as_str()))
        .collect(),
    checkpoint_duration: metrics::histogram!(CHECKPOINT_DURATION),
    replicas_compared: metrics::counter!(REPLICAS_COMPARED),
    replicas_differ: metrics::counter!(REPLICAS_DIFFER),
    quarantines: metrics::counter!(QUARANTINES),
    scrubbed: metrics::counter!(SCRUBBED),
    queue_depth: Queue::ALL
        .iter()
        .map(|queue| metrics::gauge!(QUEUE_DEPTH, "queue" => queue.as_str()))
        .collect(),
});

fn of_outcomes(kind: RequestKind) -> Vec<Counter> {
    let counter = |outcome: &Outcome| metrics::counter!(REQUESTS, "kind" => kind.as_str(), "outcome" => outcome.as_str());
    Outcome::ALL.iter().map(counter).collect()
}

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts counting, once per process; calling it again does nothing. To be called before anything is
/// pushed: what was pushed before is not counted, and never will be.
pub fn install() {
    RECORDER.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for Declared(name, kind, ..) in DECLARED {
            if let Kind::Histogram(buckets) = kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
                    .expect("the buckets above are not empty");
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Fails only where a test has installed another recorder: then nothing is counted here.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        LazyLock::force(&HANDLES);
        metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        handle
    });
}

fn describe() {
    for Declared(name, kind, unit, help) in DECLARED {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *unit, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *unit, *help),
            Kind::Histogram(_) => metrics::describe_histogram!(*name, *unit, *help),
        }
    }
}

/// All metrics in Prometheus' text format; empty before [`install`].
pub fn render() -> String {
    sample_process();
    RECORDER
        .get()
        .map_or_else(String::new, PrometheusHandle::render)
}

/// Moves what was pushed into its buckets. Between calls memory grows with each push to a histogram:
/// call it every few seconds, whether or not anybody asks for the metrics.
pub fn upkeep() {
    if let Some(recorder) = RECORDER.get() {
        recorder.run_upkeep();
    }
}

/// What pushes go to; `None` before [`install`], since a handle made before it counts nowhere for ever.
fn handles() -> Option<&'static Handles> {
    RECORDER.get().map(|_| &*HANDLES)
}

/// A request was answered.
pub fn request_done(kind: RequestKind, outcome: Outcome, took: Duration) {
    let Some(handles) = handles() else { return };
    handles.requests[kind as usize][outcome as usize].increment(1);
    handles.request_duration[kind as usize].record(took);
}

/// The log was synced once.
pub fn log_synced(took: Duration, records: usize, bytes: usize) {
    let Some(handles) = handles() else { return };
    handles.log_sync_duration.record(took);
    handles.log_batch_records.record(records as f64);
    handles.log_batch_bytes.record(bytes as f64);
}

/// So many client writes went into one entry.
pub fn entry_proposed(requests: usize) {
    let Some(handles) = handles() else { return };
    handles.entry_requests.record(requests as f64);
}

/// A proposal ended.
pub fn proposal_done(outcome: ProposalOutcome) {
    let Some(handles) = handles() else { return };
    handles.proposals[outcome as usize].increment(1);
}

/// So many entries went into one batch of the engine.
pub fn applied(entries: usize) {
    let Some(handles) = handles() else { return };
    handles.apply_batch_entries.record(entries as f64);
}

/// A replica here has seen another leader than before.
pub fn leader_changed() {
    let Some(handles) = handles() else { return };
    handles.leader_changes.increment(1);
}

/// A snapshot went out or was installed.
pub fn snapshot_done(way: SnapshotWay) {
    let Some(handles) = handles() else { return };
    handles.snapshots[way as usize].increment(1);
}

/// The engine was checkpointed.
pub fn checkpoint_done(took: Duration) {
    let Some(handles) = handles() else { return };
    handles.checkpoint_duration.record(took);
}

/// The replicas of a shard were asked what they have applied.
pub fn replicas_compared() {
    let Some(handles) = handles() else { return };
    handles.replicas_compared.increment(1);
}

/// A replica, here or elsewhere, differs from the others of its shard.
pub fn replicas_differ() {
    let Some(handles) = handles() else { return };
    handles.replicas_differ.increment(1);
}

/// A replica here was taken out of service.
pub fn replica_quarantined() {
    let Some(handles) = handles() else { return };
    handles.quarantines.increment(1);
}

/// How many replicas of this node are out of service and not rebuilt.
pub fn replicas_quarantined(count: usize) {
    metrics::gauge!(REPLICAS_QUARANTINED).set(count as f64);
}

/// How many of them could not be rebuilt at the last attempts.
pub fn rebuilds_stuck(count: usize) {
    metrics::gauge!(REBUILDS_STUCK).set(count as f64);
}

/// So many bytes of stored state were read to compare replicas.
pub fn scrubbed(bytes: u64) {
    let Some(handles) = handles() else { return };
    handles.scrubbed.increment(bytes);
}

/// How long ago the last checkpoint ended.
pub fn checkpoint_age(age: Duration) {
    metrics::gauge!(CHECKPOINT_AGE).set(age);
}

/// How many groups have a replica here, how many of those lead, how many have stopped.
pub fn groups(all: usize, leading: usize, failed: usize) {
    metrics::gauge!(GROUPS).set(all as f64);
    metrics::gauge!(LEADERS).set(leading as f64);
    metrics::gauge!(GROUPS_FAILED).set(failed as f64);
}

/// Committed and not yet applied, of the group that lags most.
pub fn apply_lag(entries: u64) {
    metrics::gauge!(APPLY_LAG).set(entries as f64);
}

/// So many items wait.
pub fn queue_depth(queue: Queue, items: usize) {
    let Some(handles) = handles() else { return };
    handles.queue_depth[queue as usize].set(items as f64);
}

/// Free bytes on the disk with the node's data.
pub fn free_space(bytes: u64) {
    metrics::gauge!(FREE_SPACE).set(bytes as f64);
}

/// The kernel counts processor time in hundredths of a second, whatever its own tick is.
const CPU_TICKS_PER_SECOND: u64 = 100;

/// Reads what the kernel knows of the process; where there is no `/proc` nothing is set.
fn sample_process() {
    if let Some(bytes) = fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(resident_bytes)
    {
        metrics::gauge!(PROCESS_MEMORY).set(bytes as f64);
    }
    if let Some(ticks) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(cpu_ticks)
    {
        metrics::counter!(PROCESS_CPU).absolute(ticks / CPU_TICKS_PER_SECOND);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        metrics::gauge!(PROCESS_FILES).set(files.count() as f64);
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// User and system time: the 14th and 15th field. The second one, the program's name, may hold spaces.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_rendered_with_its_help() {
        install();
        install();
        request_done(RequestKind::Get, Outcome::Done, Duration::from_millis(3));
        log_synced(Duration::from_micros(90), 5, 4096);
        queue_depth(Queue::Writes, 12);
        groups(2, 1, 0);
        let text = render();
        for line in [
            "# HELP quorate_requests_total Requests answered, by kind and outcome.",
            "quorate_requests_total{kind=\"get\",outcome=\"done\"} 1",
            "quorate_request_duration_seconds_bucket{kind=\"get\",le=\"0.005\"} 1",
            "quorate_queue_depth_items{queue=\"writes\"} 12",
            "quorate_groups_count 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_are_what_and_unit_without_repetition() {
        let units = [
            "total", "seconds", "records", "bytes", "requests", "entries", "count", "items",
            "info", "fds",
        ];
        for (place, Declared(name, _, _, help)) in DECLARED.iter().enumerate() {
            assert!(
                units.iter().any(|unit| name.ends_with(&format!("_{unit}"))),
                "{name}"
            );
            assert!(help.ends_with('.'), "{name}: {help}");
            assert!(
                DECLARED[..place]
                    .iter()
                    .all(|Declared(other, ..)| other != name),
                "{name}"
            );
        }
    }

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(
            resident_bytes("Name:\tq\nVmRSS:\t  2048 kB\n"),
            Some(2048 * 1024)
        );
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0";
        assert_eq!(cpu_ticks(stat), Some(400));
        assert_eq!(resident_bytes("nothing"), None);
    }
}
