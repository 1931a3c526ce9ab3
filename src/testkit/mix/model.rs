//! A store in a map, for tests: it loses answers on purpose, and lies where it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;

use crate::env::clock::Clock;
use crate::env::rng::Seeded;
use crate::error::Error;
use crate::error::Result;
use crate::testkit::mix::Target;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::log::Vote;
use crate::types::node::Member;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Cut;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Scan;
use crate::wire::request::Service;
use crate::wire::request::SnapshotHeader;

/// Who answers here.
pub(crate) const ANSWERED: Answered = Answered {
    shard: ShardId(1),
    replica: ReplicaId(1),
    leader: true,
    timestamp: Timestamp::MAX,
    as_of: Timestamp::MAX,
};

/// What the model does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    /// A repeat of a write is done again.
    ForgetsIds,
    /// One write in twenty is answered and not kept.
    LosesWrites,
    /// One read in twenty does not see the last write of its key.
    ReadsStale,
}

/// A cluster of one map, behind any address.
#[derive(Clone)]
pub(crate) struct Model {
    lie: Lie,
    state: Arc<Mutex<State>>,
}

struct State {
    keys: BTreeMap<Key, Vec<(Timestamp, Option<Value>)>>,
    outcomes: BTreeMap<RequestId, WriteOutcome>,
    clock: u64,
    chance: Seeded,
}

impl Model {
    pub(crate) fn new(lie: Lie, seed: u64) -> Model {
        let state = State {
            keys: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            clock: 0,
            chance: Seeded::new(seed),
        };
        Model {
            lie,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Clients of this model. Time runs by tokio's clock.
    pub(crate) fn target(&self) -> Target {
        Target {
            channel: Arc::new(self.clone()),
            addresses: vec!["n1:1".to_owned(), "n2:1".to_owned()],
            wall: Clock::manual(1_000_000),
            started: tokio::time::Instant::now(),
        }
    }

    fn answer(&self, request: Request) -> Result<Response> {
        let mut state = self.state.lock().unwrap();
        let lies = self.lie != Lie::None && state.chance.below(20) == 0;
        match request {
            Request::Write(write) => state.answer_write(&write, self.lie, lies),
            Request::Get(get) => {
                let lies = lies && self.lie == Lie::ReadsStale && get.read != ReadKind::Follower;
                let before = usize::from(lies);
                let found = state.newest(&get.key, Timestamp::MAX, before);
                Ok(Response::Get(found, ANSWERED))
            }
            Request::BatchGet(get) => {
                let keys = get.keys.iter();
                let found = keys.map(|key| state.newest(key, Timestamp::MAX, 0));
                Ok(Response::BatchGet(found.collect(), vec![ANSWERED]))
            }
            Request::Scan(scan) => Ok(Response::Scan(state.page(&scan))),
            Request::Status(_) | Request::Locate(_) => {
                Err(Error::unavailable("model", "knows no shards"))
            }
            other => panic!("the mix does not ask {other:?}"),
        }
    }
}

impl State {
    fn newest(&self, key: &Key, as_of: Timestamp, before: usize) -> Option<Versioned> {
        let versions = self.keys.get(key)?.iter().rev();
        let mut seen = versions.filter(|(stamp, _)| *stamp <= as_of).skip(before);
        let (version, value) = seen.next()?;
        let (value, version) = (value.clone()?, *version);
        Some(Versioned { value, version })
    }

    fn answer_write(&mut self, write: &Write, lie: Lie, lies: bool) -> Result<Response> {
        match self.chance.below(12) {
            0 => Err(Error::unavailable("model", "no leader")),
            1 => Err(self.unknown(write)),
            2 => {
                self.write(write, lie, lies);
                Err(self.unknown(write))
            }
            _ => Ok(Response::Write(self.write(write, lie, lies), ANSWERED)),
        }
    }

    fn unknown(&self, write: &Write) -> Error {
        Error::Unknown {
            request: write.id,
            reason: "the answer was lost".to_owned(),
        }
    }

    fn write(&mut self, write: &Write, lie: Lie, lies: bool) -> WriteOutcome {
        if let Some(first) = self.outcomes.get(&write.id)
            && lie != Lie::ForgetsIds
        {
            return first.clone();
        }
        self.clock += 1;
        let version = Timestamp(self.clock);
        let outcome = match &write.kind {
            WriteKind::Keys {
                conditions,
                operations,
            } => self.write_keys(
                version,
                conditions,
                operations,
                lies && lie == Lie::LosesWrites,
            ),
            WriteKind::Range { range, limit } => {
                let inside = self.keys.keys().filter(|key| range.contains(key));
                let there = inside.filter(|key| self.newest(key, Timestamp::MAX, 0).is_some());
                let there: Vec<Key> = there.cloned().collect();
                let (now, later) = there.split_at(there.len().min(*limit as usize));
                for key in now {
                    self.keys
                        .entry(key.clone())
                        .or_default()
                        .push((version, None));
                }
                WriteOutcome::Done {
                    version: if now.is_empty() {
                        Timestamp::ZERO
                    } else {
                        version
                    },
                    deleted: now.len() as u32,
                    resume: later.first().cloned(),
                }
            }
        };
        self.outcomes.insert(write.id, outcome.clone());
        outcome
    }

    fn write_keys(
        &mut self,
        version: Timestamp,
        conditions: &[Condition],
        operations: &[Operation],
        loses: bool,
    ) -> WriteOutcome {
        for (place, condition) in conditions.iter().enumerate() {
            let found = self.newest(condition.key(), Timestamp::MAX, 0);
            let actual = found
                .as_ref()
                .map_or(Timestamp::ZERO, |found| found.version);
            let holds = match condition {
                Condition::Version { version, .. } => actual == *version,
                Condition::Value { value, .. } => found.is_some_and(|found| found.value == value),
                Condition::Exists { .. } => found.is_some(),
            };
            if !holds {
                let condition = place as u32;
                return WriteOutcome::ConditionFailed { condition, actual };
            }
        }
        let mut changed = false;
        let mut deleted = 0;
        for operation in operations {
            let key = operation.key().clone();
            let there = self.newest(&key, Timestamp::MAX, 0).is_some();
            let value = match operation {
                Operation::Put { value, .. } => Some(value.clone()),
                Operation::Delete { .. } if there => None,
                Operation::Delete { .. } => continue,
            };
            deleted += u32::from(value.is_none());
            changed = true;
            if !loses {
                self.keys.entry(key).or_default().push((version, value));
            }
        }
        WriteOutcome::Done {
            version: if changed { version } else { Timestamp::ZERO },
            deleted,
            resume: None,
        }
    }

    fn page(&self, scan: &Scan) -> Page {
        let as_of = scan
            .cut
            .as_ref()
            .map_or(Timestamp(self.clock), |cut| cut.as_of);
        let inside = self.keys.keys().filter(|key| scan.range.contains(key));
        let mut items: Vec<KeyValue> = inside
            .filter_map(|key| {
                let versioned = self.newest(key, as_of, 0)?;
                let key = key.clone();
                Some(KeyValue { key, versioned })
            })
            .collect();
        if scan.reverse {
            items.reverse();
        }
        let more = items.len() > scan.keys_max as usize;
        items.truncate(scan.keys_max as usize);
        let rest = items.last().filter(|_| more).map(|last| {
            let mut rest = scan.range.clone();
            if scan.reverse {
                rest.end = Some(last.key.clone());
            } else {
                rest.start = Bytes::from([&last.key[..], &[0]].concat());
            }
            rest
        });
        Page {
            items,
            rest_cut: rest.as_ref().map(|_| Cut::at(as_of)),
            rest,
            as_of,
            answered: ANSWERED,
            unordered: None,
        }
    }
}

impl Service for Model {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let model = self.clone();
        let waits = model.state.lock().unwrap().chance.below(5_000);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_micros(waits / 2)).await;
            let answer = model.answer(call.request);
            tokio::time::sleep(Duration::from_micros(waits / 2)).await;
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

impl Channel for Model {
    fn node(&self, _: NodeId) -> Arc<dyn Service> {
        Arc::new(self.clone())
    }

    fn address(&self, _: &str) -> Arc<dyn Service> {
        Arc::new(self.clone())
    }

    fn learn(&self, _: Member) {}
}
