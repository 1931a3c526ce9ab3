//! Histories of a made-up store that is right, to try the checker on. Decides only: everything follows from
//! the seed.
//!
//! Each client sends one request at a time. A request takes effect at one moment between its begin and its
//! end; one without an answer at a moment after its begin, which may be long after its client went on, or
//! never.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::env::rng::Seeded;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// What a history looks like. Shares are of a thousand requests; what is left are gets, puts, deletes and
/// conditional writes of one key.
#[derive(Debug, Clone)]
pub struct Shape {
    /// How many requests.
    pub requests: usize,
    /// Clients at once.
    pub clients: u32,
    /// Keys.
    pub keys: usize,
    /// Different values; 0: each write has its own.
    pub values: u64,
    /// Requests without an answer.
    pub unknown: u64,
    /// Writes of two or three keys.
    pub wide: u64,
    /// Scans.
    pub scans: u64,
    /// Range deletes.
    pub range_deletes: u64,
}

/// A history that is linearizable.
pub fn sample(shape: &Shape, seed: u64) -> Vec<Observed> {
    let mut sampler = Sampler {
        shape,
        chance: Seeded::new(seed),
        held: BTreeMap::new(),
        stamp: 0,
        written: 0,
        events: BTreeMap::new(),
        history: Vec::new(),
    };
    for client in 0..shape.clients {
        sampler.at(0, Event::Begin(client));
    }
    while let Some(((now, _), event)) = sampler.events.pop_first() {
        match event {
            Event::Begin(client) => sampler.begin(client, now),
            Event::Effect(number) => sampler.effect(number, now),
        }
    }
    sampler.history
}

/// The key of a number, as the samples name them.
pub fn key(number: usize) -> Key {
    Bytes::from(format!("k{number:04}"))
}

enum Event {
    Begin(u32),
    Effect(usize),
}

struct Sampler<'s> {
    shape: &'s Shape,
    chance: Seeded,
    held: BTreeMap<Key, Versioned>,
    stamp: u64,
    written: u64,
    /// By time, then by chance.
    events: BTreeMap<(u64, u64), Event>,
    history: Vec<Observed>,
}

/// A request takes this long to its effect, and from there to its end, in microseconds at most.
const DELAY_MAX: u64 = 1_000;

impl Sampler<'_> {
    fn at(&mut self, now: u64, event: Event) {
        let order = self.chance.number();
        self.events.insert((now, order), event);
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.chance.below(count) == 0
    }

    fn begin(&mut self, client: u32, now: u64) {
        if self.history.len() >= self.shape.requests {
            return;
        }
        let asked = self.asked();
        let is_unknown = self.chance.below(1_000) < self.shape.unknown;
        let ended = now + 1 + self.chance.below(2 * DELAY_MAX);
        let number = self.history.len();
        self.history.push(Observed {
            client,
            asked,
            began: Moment(now),
            ended: Moment(ended),
            answer: Answer::Unknown,
        });
        let delay = 1 + self.chance.below(DELAY_MAX);
        if !is_unknown {
            self.at(now + delay, Event::Effect(number));
            return;
        }
        if !self.one_in(3) {
            let late = if self.one_in(2) { 20 } else { 1 };
            self.at(now + delay * late, Event::Effect(number));
        }
        self.at(ended + 1, Event::Begin(client));
    }

    fn effect(&mut self, number: usize, now: u64) {
        let asked = self.history[number].asked.clone();
        let answer = self.answer(&asked);
        // A client that has gone on is not told.
        let client = self.history[number].client;
        let is_last = self.history[number + 1..]
            .iter()
            .all(|later| later.client != client);
        let waits = self
            .events
            .values()
            .all(|event| !matches!(event, Event::Begin(c) if *c == client));
        if is_last && waits {
            let ended = now + self.chance.below(DELAY_MAX);
            self.history[number].ended = Moment(ended);
            self.history[number].answer = answer;
            let pause = self.chance.below(50);
            self.at(ended + pause, Event::Begin(client));
        }
    }

    fn asked(&mut self) -> Asked {
        let shape = self.shape;
        let kind = self.chance.below(1_000);
        if kind < shape.scans {
            return Asked::Scan {
                range: self.range(),
                limit: if self.one_in(4) { 2 } else { 1_000 },
                reverse: self.one_in(3),
                read: ReadKind::Linearizable,
            };
        }
        if kind < shape.scans + shape.range_deletes {
            let limit = if self.one_in(3) { 1 } else { 1_000 };
            let range = self.range();
            return self.write(WriteKind::Range { range, limit });
        }
        let is_wide = kind < shape.scans + shape.range_deletes + shape.wide;
        if !is_wide && self.one_in(2) {
            return Asked::Get {
                key: self.key(),
                read: ReadKind::Linearizable,
            };
        }
        let count = if is_wide { 2 + self.chance.below(2) } else { 1 };
        let operations: Vec<Operation> = (0..count).map(|_| self.operation()).collect();
        let mut conditions = Vec::new();
        while self.one_in(3) {
            let key = match is_wide {
                true => self.key(),
                false => operations[0].key().clone(),
            };
            conditions.push(self.condition(key));
        }
        self.write(WriteKind::Keys {
            conditions,
            operations,
        })
    }

    fn write(&mut self, kind: WriteKind) -> Asked {
        self.written += 1;
        let mut random = [0; 10];
        self.chance.fill(&mut random);
        Asked::Write(Write {
            id: RequestId::new(self.written, random),
            kind,
        })
    }

    fn key(&mut self) -> Key {
        key(self.chance.below(self.shape.keys as u64) as usize)
    }

    fn range(&mut self) -> KeyRange {
        if self.one_in(2) {
            return KeyRange::ALL;
        }
        let (one, other) = (self.key(), self.key());
        KeyRange {
            start: one.clone().min(other.clone()),
            end: Some(one.max(other)),
        }
    }

    fn operation(&mut self) -> Operation {
        let key = self.key();
        match self.one_in(6) {
            true => Operation::Delete { key },
            false => Operation::Put {
                key,
                value: self.value(),
            },
        }
    }

    fn value(&mut self) -> Value {
        let number = match self.shape.values {
            0 => self.written,
            values => self.chance.below(values),
        };
        Bytes::from(format!("v{number}"))
    }

    /// Half of the time one that holds now.
    fn condition(&mut self, key: Key) -> Condition {
        let held = self.held.get(&key).cloned();
        let holds = self.one_in(2);
        match (self.chance.below(3), held) {
            (0, _) => Condition::Exists { key },
            (1, Some(held)) if holds => Condition::Value {
                key,
                value: held.value,
            },
            (1, _) => Condition::Value {
                key,
                value: self.value(),
            },
            (_, held) if holds => Condition::Version {
                key,
                version: held.map_or(Timestamp::ZERO, |held| held.version),
            },
            (_, _) => Condition::Version {
                key,
                version: Timestamp(self.chance.below(self.stamp + 1)),
            },
        }
    }

    fn answer(&mut self, asked: &Asked) -> Answer {
        match asked {
            Asked::Get { key, .. } => Answer::Found(self.held.get(key).cloned(), self.answered()),
            Asked::Scan {
                range,
                limit,
                reverse,
                ..
            } => self.scan(range, *limit as usize, *reverse),
            Asked::Write(write) => {
                self.stamp += 1;
                let outcome = match &write.kind {
                    WriteKind::Keys {
                        conditions,
                        operations,
                    } => self.write_keys(conditions, operations),
                    WriteKind::Range { range, limit } => self.delete_range(range, *limit as usize),
                };
                Answer::Wrote(outcome, self.answered())
            }
        }
    }

    fn answered(&self) -> Answered {
        Answered {
            shard: ShardId(1),
            replica: ReplicaId(1),
            leader: true,
            timestamp: Timestamp(self.stamp),
            as_of: Timestamp(self.stamp),
        }
    }

    fn in_range(&self, range: &KeyRange) -> Vec<KeyValue> {
        let held = self.held.iter().filter(|(key, _)| range.contains(key));
        held.map(|(key, versioned)| KeyValue {
            key: key.clone(),
            versioned: versioned.clone(),
        })
        .collect()
    }

    fn scan(&self, range: &KeyRange, limit: usize, reverse: bool) -> Answer {
        let mut entries = self.in_range(range);
        if reverse {
            entries.reverse();
        }
        let mut covered = range.clone();
        if entries.len() > limit {
            entries.truncate(limit);
            let last = &entries[limit - 1].key;
            match reverse {
                true => covered.start = last.clone(),
                false => covered.end = KeyRange::of_key(last).end,
            }
        }
        Answer::Scanned {
            entries,
            covered,
            answered: self.answered(),
        }
    }

    fn write_keys(&mut self, conditions: &[Condition], operations: &[Operation]) -> WriteOutcome {
        for (number, condition) in (0..).zip(conditions) {
            let held = self.held.get(condition.key());
            let holds = match condition {
                Condition::Version { version, .. } => {
                    held.map_or(Timestamp::ZERO, |held| held.version) == *version
                }
                Condition::Value { value, .. } => held.is_some_and(|held| held.value == *value),
                Condition::Exists { .. } => held.is_some(),
            };
            if !holds {
                return WriteOutcome::ConditionFailed {
                    condition: number,
                    actual: held.map_or(Timestamp::ZERO, |held| held.version),
                };
            }
        }
        let last: BTreeMap<&Key, &Operation> = operations.iter().map(|o| (o.key(), o)).collect();
        let version = Timestamp(self.stamp);
        let (mut deleted, mut changed) = (0, false);
        for operation in last.into_values() {
            match operation {
                Operation::Put { key, value } => {
                    let value = value.clone();
                    self.held.insert(key.clone(), Versioned { value, version });
                    changed = true;
                }
                Operation::Delete { key } => deleted += u32::from(self.held.remove(key).is_some()),
            }
        }
        let changed = changed || deleted > 0;
        WriteOutcome::Done {
            version: if changed { version } else { Timestamp::ZERO },
            deleted,
            resume: None,
        }
    }

    fn delete_range(&mut self, range: &KeyRange, limit: usize) -> WriteOutcome {
        let there = self.in_range(range);
        let deleted = there.len().min(limit);
        for entry in &there[..deleted] {
            self.held.remove(&entry.key);
        }
        let version = if deleted == 0 {
            Timestamp::ZERO
        } else {
            Timestamp(self.stamp)
        };
        WriteOutcome::Done {
            version,
            deleted: deleted as u32,
            resume: there.get(limit).map(|entry| entry.key.clone()),
        }
    }
}
