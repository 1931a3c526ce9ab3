//! Writers that keep a cluster busy and remember what they were told, and the reader that holds the
//! cluster to it.
//!
//! Each writer owns its keys and sends one write at a time. A write without a final answer is sent
//! again under the same request id, to another node, until it has one or the writer is stopped. What
//! is written follows from the seed; when it is written, and where it fails, does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::Advice;
use crate::error::Error;
use crate::error::Result;
use crate::testkit::history::Ended;
use crate::testkit::history::Expected;
use crate::testkit::history::History;
use crate::testkit::history::Recorded;
use crate::testkit::history::check_span;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::wire::request::Call;
use crate::wire::request::Cut;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Scan;
use crate::wire::request::Service;

/// What is written, and how patiently.
#[derive(Debug, Clone)]
pub struct Options {
    /// Every key begins with it; two workloads of one cluster have different ones.
    pub prefix: String,
    /// Writers at once.
    pub writers: usize,
    /// Keys of each writer.
    pub keys: usize,
    /// Bytes of a value, at least; a value also names its write. One in sixteen is 64 times as long.
    pub value_bytes: usize,
    /// What is written follows from it.
    pub seed: u64,
    /// How long one attempt may take before the same request id is sent to another node.
    pub attempt: Duration,
}

/// The nodes, in any order; each serves every key.
pub type Nodes = Vec<Arc<dyn Service>>;

/// Makes a request id of the present time. Called once for each write.
pub type RequestIds = Arc<dyn Fn() -> RequestId + Send + Sync>;

/// Writers at work. Dropping it ends them without a history.
#[derive(Debug)]
pub struct Workload {
    stop: watch::Sender<bool>,
    answered: watch::Sender<usize>,
    writers: JoinSet<History>,
}

impl Workload {
    /// Starts the writers.
    pub fn start(nodes: &Nodes, options: &Options, ids: &RequestIds) -> Workload {
        let (stop, stopped) = watch::channel(false);
        let (answered, _) = watch::channel(0);
        let mut writers = JoinSet::new();
        for number in 0..options.writers {
            let writer = Writer {
                nodes: nodes.clone(),
                options: options.clone(),
                ids: ids.clone(),
                stopped: stopped.clone(),
                answered: answered.clone(),
                chance: Chance(options.seed ^ (number as u64) << 32),
                number,
                written: 0,
                versions: vec![Timestamp::ZERO; options.keys],
                history: History::default(),
            };
            writers.spawn(writer.run());
        }
        Workload {
            stop,
            answered,
            writers,
        }
    }

    /// Waits until `count` further writes have a final answer; false when `limit` passes before.
    /// Cancel-safe.
    pub async fn wait_answered(&self, count: usize, limit: Duration) -> bool {
        let mut answered = self.answered.subscribe();
        let goal = *answered.borrow() + count;
        let reached = answered.wait_for(|answered| *answered >= goal);
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    /// Stops the writers at once; a write that is under way stays unknown.
    pub async fn stop(mut self) -> History {
        self.stop.send_replace(true);
        let mut history = History::default();
        while let Some(writer) = self.writers.join_next().await {
            history.merge(writer.expect("writers do not panic"));
        }
        history
    }
}

/// Sends every unknown write again under its request id and notes the answers. Writes that have no
/// final answer when `limit` has passed stay unknown.
pub async fn settle(history: &mut History, nodes: &Nodes, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    for write in history.unknown() {
        let answer = tokio::time::timeout_at(deadline, answer_of(nodes, &write)).await;
        match answer {
            Ok(Ok(outcome)) => history.settle(&write, outcome),
            Ok(Err(error)) => history.complain(format!("{write:?} sent again: {error}")),
            Err(_) => return,
        }
    }
}

/// Sends the last answered write of every key again under its request id: each must get its first
/// answer. Returns what is wrong.
pub async fn repeat_answered(history: &History, nodes: &Nodes) -> Vec<String> {
    let repeats = stream::iter(history.last_answered()).map(|(write, first)| async move {
        match answer_of(nodes, &write).await {
            Ok(answer) if answer == first => None,
            Ok(answer) => Some(format!("{write:?}: first {first:?}, repeated {answer:?}")),
            Err(error) => Some(format!("{write:?} repeated: {error}")),
        }
    });
    let complaints = repeats.buffer_unordered(CHECKS_AT_ONCE);
    complaints.filter_map(|said| async { said }).collect().await
}

/// Reads everything under the history's prefix and compares it with the answers: newest versions,
/// and exactly one version for each write. Returns what is wrong. Needs a cluster that answers.
pub async fn verify(history: &History, prefix: &str, nodes: &Nodes) -> Result<Vec<String>> {
    let mut complaints = history.check_answers();
    let range = KeyRange::of_prefix(prefix.as_bytes());
    complaints.extend(history.check_newest(&scan(nodes, range, ReadKind::Linearizable).await?));
    let reads = stream::iter(history.spans()).map(|expected| async move {
        let actual = read_at(nodes, &expected).await?;
        Ok(check_span(&expected, actual.as_ref()))
    });
    let mut reads = reads.buffer_unordered(CHECKS_AT_ONCE);
    while let Some(said) = reads.next().await {
        complaints.extend(said?);
    }
    Ok(complaints)
}

/// Reads every key of a range: linearizable from any of the nodes, or as the first one that answers
/// has applied it.
pub async fn scan(
    nodes: &Nodes,
    range: KeyRange,
    read: ReadKind,
) -> Result<BTreeMap<Key, Versioned>> {
    let mut found = BTreeMap::new();
    let mut rest = Some(range);
    let mut cut = None;
    while let Some(range) = rest {
        let scan = Scan {
            range,
            keys_max: 1_000,
            bytes_max: 1024 * 1024,
            reverse: false,
            keys_only: false,
            read,
            cut,
        };
        let page = page(nodes, scan).await?;
        let items = page.items.into_iter();
        found.extend(items.map(|item| (item.key, item.versioned)));
        cut = page.rest_cut;
        rest = page.rest;
    }
    Ok(found)
}

/// Reads of a check under way at once.
const CHECKS_AT_ONCE: usize = 16;
/// Patience of one read of a check.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Attempts of one read of a check.
const READ_ATTEMPTS: usize = 20;
/// Pause after an error that does not name one.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: a node that is down must not slow its writers.
const PAUSE_MAX: Duration = Duration::from_millis(200);

async fn read_at(nodes: &Nodes, expected: &Expected) -> Result<Option<Versioned>> {
    let mut end = expected.key.to_vec();
    end.push(0);
    let range = KeyRange {
        start: expected.key.clone(),
        end: Some(Bytes::from(end)),
    };
    let scan = Scan {
        range,
        keys_max: 1,
        bytes_max: 2 * 1024 * 1024,
        reverse: false,
        keys_only: false,
        read: ReadKind::Linearizable,
        cut: Some(Cut::at(expected.as_of)),
    };
    let mut page = page(nodes, scan).await?;
    Ok(page.items.pop().map(|item| item.versioned))
}

async fn page(nodes: &Nodes, scan: Scan) -> Result<Page> {
    let request = Request::Scan(scan);
    let mut attempt = 0;
    loop {
        let node = &nodes[attempt % nodes.len()];
        match node.call(call(request.clone(), READ_DEADLINE)).await {
            Ok(Response::Scan(page)) => return Ok(page),
            Ok(other) => return Err(Error::Internal(format!("a scan was answered {other:?}"))),
            Err(error) if attempt < READ_ATTEMPTS => pause(&error).await?,
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

/// Sends a write under its id until it has a final answer.
async fn answer_of(nodes: &Nodes, write: &Write) -> Result<WriteOutcome> {
    let mut attempt = 0;
    loop {
        let node = &nodes[attempt % nodes.len()];
        match attempt_once(node, write, READ_DEADLINE).await {
            Ok(Some(outcome)) => return Ok(outcome),
            Ok(None) => {}
            Err(error) => pause(&error).await?,
        }
        attempt += 1;
    }
}

/// One attempt; none when the answer is to send the same id again.
async fn attempt_once(
    node: &Arc<dyn Service>,
    write: &Write,
    deadline: Duration,
) -> Result<Option<WriteOutcome>> {
    let request = Request::Write(write.clone());
    match node.call(call(request, deadline)).await? {
        Response::Write(WriteOutcome::ClockAhead { wait_ms }, _) => {
            tokio::time::sleep(Duration::from_millis(wait_ms).min(PAUSE_MAX)).await;
            Ok(None)
        }
        Response::Write(
            WriteOutcome::StaleEpoch | WriteOutcome::StaleStamp | WriteOutcome::Frozen,
            _,
        ) => Ok(None),
        Response::Write(outcome, _) => Ok(Some(outcome)),
        other => Err(Error::Internal(format!("a write was answered {other:?}"))),
    }
}

fn call(request: Request, deadline: Duration) -> Call {
    Call {
        request,
        deadline,
        forwarded: false,
        cluster: None,
    }
}

/// Waits as the error advises; gives the error back when sending again cannot help.
async fn pause(error: &Error) -> Result<()> {
    let wait = match error.advice() {
        Advice::Fix => return Err(error.clone()),
        Advice::RetryAfter(wait) => wait,
        Advice::Redirect(_) | Advice::Stop => PAUSE,
    };
    tokio::time::sleep(wait.min(PAUSE_MAX)).await;
    Ok(())
}

/// One writer with its keys.
struct Writer {
    nodes: Nodes,
    options: Options,
    ids: RequestIds,
    stopped: watch::Receiver<bool>,
    answered: watch::Sender<usize>,
    chance: Chance,
    number: usize,
    /// Writes so far; part of each value, so that no two are equal.
    written: usize,
    /// The version of each key by the last answer; `ZERO` while it is absent.
    versions: Vec<Timestamp>,
    history: History,
}

impl Writer {
    async fn run(mut self) -> History {
        while !*self.stopped.borrow() {
            let key = self.chance.below(self.options.keys);
            let write = self.next_write(key);
            let Some(outcome) = self.send(&write).await else {
                break;
            };
            self.versions[key] = version_after(&write, &outcome);
            if matches!(outcome, WriteOutcome::Done { .. }) && self.chance.below(4) == 0 {
                self.read_own(&write, &outcome).await;
            }
        }
        self.history
    }

    fn next_write(&mut self, key: usize) -> Write {
        self.written += 1;
        let name = format!("{}w{:02}/k{key:03}", self.options.prefix, self.number);
        let mut value = format!("{name}#{}", self.written).into_bytes();
        let times = if self.chance.below(16) == 0 { 64 } else { 1 };
        value.resize(value.len().max(self.options.value_bytes * times), b'.');
        let key_bytes = Bytes::from(name);
        let put = Operation::Put {
            key: key_bytes.clone(),
            value: Bytes::from(value),
        };
        let (conditions, operation) = match self.chance.below(10) {
            0 => (Vec::new(), Operation::Delete { key: key_bytes }),
            1..4 => {
                let condition = Condition::Version {
                    key: key_bytes,
                    version: self.versions[key],
                };
                (vec![condition], put)
            }
            _ => (Vec::new(), put),
        };
        Write {
            id: (self.ids)(),
            kind: WriteKind::Keys {
                conditions,
                operations: vec![operation],
            },
        }
    }

    /// Sends the write until it has a final answer, which is noted and returned; none when stopped
    /// before, or when the cluster refuses what must be accepted.
    async fn send(&mut self, write: &Write) -> Option<WriteOutcome> {
        let mut attempts = 0;
        let first_node = self.chance.below(self.nodes.len());
        let ended = loop {
            if *self.stopped.borrow() && attempts > 0 {
                break Ended::Unknown;
            }
            let node = &self.nodes[(first_node + attempts as usize) % self.nodes.len()];
            attempts += 1;
            let mut stopped = self.stopped.clone();
            let sent = tokio::select! {
                biased;
                sent = attempt_once(node, write, self.options.attempt) => sent,
                _ = stopped.wait_for(|stopped| *stopped) => break Ended::Unknown,
            };
            match sent {
                Ok(Some(outcome)) => break Ended::Answered(outcome),
                Ok(None) => {}
                Err(error) => {
                    if let Err(refused) = pause(&error).await {
                        self.history.complain(format!("{write:?}: {refused}"));
                        break Ended::Unknown;
                    }
                }
            }
        };
        let outcome = match &ended {
            Ended::Answered(outcome) => Some(outcome.clone()),
            Ended::Unknown => None,
        };
        self.history.record(Recorded {
            write: write.clone(),
            attempts,
            ended,
        });
        if outcome.is_some() {
            self.answered.send_modify(|answered| *answered += 1);
        }
        outcome
    }

    /// A linearizable read after the answer sees the write: nobody else writes this key.
    async fn read_own(&mut self, write: &Write, outcome: &WriteOutcome) {
        let version = version_after(write, outcome);
        let expected = put_value(write).map(|value| Versioned { value, version });
        let get = Request::Get(Get {
            key: write.first_key().clone(),
            read: ReadKind::Linearizable,
        });
        let node = &self.nodes[self.chance.below(self.nodes.len())];
        let answer = node.call(call(get, self.options.attempt)).await;
        if let Ok(Response::Get(found, answered)) = answer
            && found != expected
        {
            self.history.complain(format!(
                "stale read after {write:?} was answered {outcome:?}: found {found:?} at {answered:?}"
            ));
        }
    }
}

fn put_value(write: &Write) -> Option<Value> {
    match &write.kind {
        WriteKind::Keys { operations, .. } => match &operations[0] {
            Operation::Put { value, .. } => Some(value.clone()),
            Operation::Delete { .. } => None,
        },
        WriteKind::Range { .. } => None,
    }
}

/// The version that a key has after its writer's last write; `ZERO` when it is absent.
fn version_after(write: &Write, outcome: &WriteOutcome) -> Timestamp {
    match outcome {
        WriteOutcome::Done { version, .. } if put_value(write).is_some() => *version,
        WriteOutcome::ConditionFailed { actual, .. } => *actual,
        WriteOutcome::Done { .. }
        | WriteOutcome::TooLateToKnow { .. }
        | WriteOutcome::ClockAhead { .. }
        | WriteOutcome::Spanning { .. }
        | WriteOutcome::StaleEpoch
        | WriteOutcome::StaleStamp
        | WriteOutcome::Frozen => Timestamp::ZERO,
    }
}

/// Repeatable chance for the choice of what is written: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use futures::future::BoxFuture;
    use futures::stream::BoxStream;

    use super::*;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::log::Vote;
    use crate::types::request::Answered;
    use crate::types::request::KeyValue;
    use crate::wire::request::AppendRequest;
    use crate::wire::request::AppendResponse;
    use crate::wire::request::Route;
    use crate::wire::request::SnapshotHeader;

    /// What the model does wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        ForgetsIds,
        LosesWrites,
        ReadsStale,
    }

    /// A store in a map, with answers that get lost.
    struct Model {
        fault: Fault,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        keys: BTreeMap<Key, Vec<(Timestamp, Option<Value>)>>,
        outcomes: HashMap<RequestId, WriteOutcome>,
        clock: u64,
        calls: u64,
    }

    impl State {
        fn newest(&self, key: &Key, as_of: Timestamp) -> Option<Versioned> {
            let versions = self.keys.get(key)?.iter().rev();
            let (version, value) = versions.clone().find(|(stamp, _)| *stamp <= as_of)?;
            let (value, version) = (value.clone()?, *version);
            Some(Versioned { value, version })
        }

        fn apply(&mut self, write: &Write) -> WriteOutcome {
            let WriteKind::Keys {
                conditions,
                operations,
            } = &write.kind
            else {
                panic!("the workload deletes no ranges");
            };
            for condition in conditions {
                let Condition::Version { key, version } = condition else {
                    panic!("the workload checks versions only");
                };
                let found = self.newest(key, Timestamp::MAX);
                let actual = found.map_or(Timestamp::ZERO, |found| found.version);
                if actual != *version {
                    let condition = 0;
                    return WriteOutcome::ConditionFailed { condition, actual };
                }
            }
            self.clock += 2;
            let version = Timestamp(self.clock);
            let key = operations[0].key().clone();
            let versions = self.keys.entry(key).or_default();
            versions.push((version, put_value(write)));
            WriteOutcome::Done {
                version,
                deleted: 0,
                resume: None,
            }
        }

        fn write(&mut self, write: &Write, fault: Fault) -> WriteOutcome {
            if let Some(first) = self.outcomes.get(&write.id)
                && fault != Fault::ForgetsIds
            {
                return first.clone();
            }
            let outcome = self.apply(write);
            if fault == Fault::LosesWrites && self.clock.is_multiple_of(14) {
                let versions = self.keys.get_mut(write.first_key()).unwrap();
                versions.pop();
            }
            self.outcomes.insert(write.id, outcome.clone());
            outcome
        }
    }

    const ANSWERED: Answered = Answered {
        shard: ShardId(1),
        replica: ReplicaId(1),
        leader: true,
        timestamp: Timestamp::MAX,
        as_of: Timestamp::MAX,
    };

    impl Model {
        fn answer(&self, request: Request) -> Result<Response> {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            match request {
                Request::Write(write) => match state.calls % 5 {
                    0 => Err(Error::Unavailable {
                        what: "model".to_owned(),
                        reason: "no leader".to_owned(),
                        retry_after: Duration::from_millis(1),
                    }),
                    1 => {
                        state.write(&write, self.fault);
                        Err(Error::Unknown {
                            request: write.id,
                            reason: "the answer was lost".to_owned(),
                        })
                    }
                    _ => Ok(Response::Write(state.write(&write, self.fault), ANSWERED)),
                },
                Request::Get(get) => {
                    let stale = self.fault == Fault::ReadsStale;
                    let as_of = state.clock - u64::from(stale) * 2;
                    let found = state.newest(&get.key, Timestamp(as_of));
                    Ok(Response::Get(found, ANSWERED))
                }
                Request::Scan(scan) => {
                    let as_of = scan
                        .cut
                        .as_ref()
                        .map_or(Timestamp(state.clock), |cut| cut.as_of);
                    let inside = state.keys.keys().filter(|key| scan.range.contains(key));
                    let items = inside.filter_map(|key| {
                        let versioned = state.newest(key, as_of)?;
                        let key = key.clone();
                        Some(KeyValue { key, versioned })
                    });
                    Ok(Response::Scan(Page {
                        items: items.collect(),
                        rest: None,
                        as_of,
                        rest_cut: None,
                        answered: ANSWERED,
                        unordered: None,
                    }))
                }
                other => panic!("the workload does not ask {other:?}"),
            }
        }
    }

    impl Service for Model {
        fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
            let answer = self.answer(call.request);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                answer
            })
        }

        fn append(
            &self,
            _: Route,
            _: BoxStream<'static, AppendRequest>,
        ) -> BoxStream<'static, Result<AppendResponse>> {
            Box::pin(stream::empty())
        }

        fn snapshot(
            &self,
            _: SnapshotHeader,
            _: BoxStream<'static, Result<Bytes>>,
        ) -> BoxFuture<'static, Result<Vote>> {
            Box::pin(async { Err(Error::unavailable("model", "takes no snapshots")) })
        }
    }

    fn ids() -> RequestIds {
        let count = AtomicU64::new(0);
        Arc::new(move || {
            let mut random = [0; 10];
            random[2..].copy_from_slice(&count.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            RequestId::new(1, random)
        })
    }

    /// Everything found wrong with a model that has this fault.
    async fn complaints_about(fault: Fault) -> Vec<String> {
        let state = Mutex::new(State::default());
        let model: Arc<dyn Service> = Arc::new(Model { fault, state });
        let nodes = vec![model];
        let options = Options {
            prefix: "t/".to_owned(),
            writers: 4,
            keys: 3,
            value_bytes: 40,
            seed: 7,
            attempt: Duration::from_secs(1),
        };
        let workload = Workload::start(&nodes, &options, &ids());
        assert!(workload.wait_answered(200, Duration::from_secs(60)).await);
        let mut history = workload.stop().await;
        settle(&mut history, &nodes, Duration::from_secs(60)).await;
        let counts = history.counts();
        assert_eq!(counts.unknown, 0);
        assert!(counts.answered >= 200 && counts.resent >= 30, "{counts:?}");
        let mut complaints = verify(&history, "t/", &nodes).await.unwrap();
        complaints.extend(repeat_answered(&history, &nodes).await);
        complaints
    }

    #[tokio::test]
    async fn a_store_that_keeps_its_word_passes() {
        assert_eq!(complaints_about(Fault::None).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_store_that_applies_a_repeat_twice_is_found() {
        let said = complaints_about(Fault::ForgetsIds).await;
        assert!(
            said.iter().any(|said| said.contains("instead of")),
            "{said:?}"
        );
    }

    #[tokio::test]
    async fn a_store_that_loses_an_answered_write_is_found() {
        let said = complaints_about(Fault::LosesWrites).await;
        assert!(
            said.iter().any(|said| said.contains("instead of")),
            "{said:?}"
        );
    }

    #[tokio::test]
    async fn a_stale_read_is_found() {
        let said = complaints_about(Fault::ReadsStale).await;
        assert!(
            said.iter().any(|said| said.contains("stale read")),
            "{said:?}"
        );
    }
}
