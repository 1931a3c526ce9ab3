//! A shard against a simple model, and against itself: applied in other portions, after a crash, from
//! a snapshot, and read by other threads meanwhile.

mod chain;
mod merge;
mod merge_protocol;
mod slots;
mod split;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use proptest::prelude::*;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::MemoryEngine;
use crate::engine::Pair;
use crate::engine::SledEngine;
use crate::engine::sled::Options;
use crate::machine::Applied;
use crate::machine::Membership;
use crate::machine::SnapshotSource;
use crate::machine::StateMachine;
use crate::mvcc::Floors;
use crate::shard::Command;
use crate::shard::Others;
use crate::shard::Seed;
use crate::shard::ShardMachine;
use crate::shard::ShardReader;
use crate::shard::Slots;
use crate::shard::command::Answer;
use crate::shard::command::Body;
use crate::shard::command::Header;
use crate::shard::row::Piece;
use crate::shard::row::Row;
use crate::shard::seed;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;
use crate::wire::request::Cut;
use crate::wire::request::Scan;

const HISTORY_MS: u64 = 400;
const WINDOW_MS: u64 = 200;
const REPLICA: ReplicaId = ReplicaId(1);

const NODE: NodeId = NodeId(1);

/// The replicas of a shard on three nodes, from an id on; the first is on this node.
fn replicas(first: u64) -> Vec<Replica> {
    let replica = |number| Replica {
        id: ReplicaId(first + number),
        node: NodeId(NODE.0 + number),
    };
    (0..3).map(replica).collect()
}

fn nothing_gone() -> Arc<dyn Others> {
    Arc::new(|_| false)
}

fn open_in(engine: &Arc<dyn Engine>, slots: &Arc<Slots>, replica: ReplicaId) -> ShardMachine {
    ShardMachine::open(engine.clone(), slots.clone(), replica, nothing_gone())
        .unwrap()
        .unwrap()
}

/// After a start: what is on the clear list may be cleared.
fn reopened(engine: Arc<dyn Engine>) -> ShardMachine {
    let slots = Slots::open(engine.clone()).unwrap();
    open_in(&engine, &slots, REPLICA)
}

fn outcomes(answer: &[u8]) -> Vec<WriteOutcome> {
    match Answer::decode(answer).unwrap() {
        Answer::Writes(outcomes) => outcomes,
        other @ (Answer::Split(_) | Answer::Merge(_)) => panic!("writes were answered {other:?}"),
    }
}

fn seeded(engine: Arc<dyn Engine>) -> ShardMachine {
    seeded_as(engine, REPLICA)
}

/// The first shard's replica with this id.
fn seeded_as(engine: Arc<dyn Engine>, replica: ReplicaId) -> ShardMachine {
    let slots = Slots::open(engine.clone()).unwrap();
    let descriptor = ShardDescriptor {
        id: ShardId(1),
        range: KeyRange::ALL,
        epoch: Epoch { conf: 1, bounds: 1 },
        replicas: replicas(REPLICA.0),
    };
    let begins = Some(Position { term: 1, index: 1 });
    let applied = Applied {
        position: begins,
        membership_position: begins,
        membership: Membership::of(&descriptor.replicas).encode(),
    };
    let first = Seed {
        history_retention_ms: HISTORY_MS,
        retry_window_ms: WINDOW_MS,
        ..Seed::new(descriptor, applied)
    };
    seed(&engine, &slots, replica, first).unwrap();
    open_in(&engine, &slots, replica)
}

/// A replica with its keys in two slots, as after a merge.
fn seeded_in_two_pieces(engine: Arc<dyn Engine>) -> ShardMachine {
    let slots = {
        drop(seeded(engine.clone()));
        Slots::open(engine.clone()).unwrap()
    };
    let place = layout::row(REPLICA);
    let mut row = Row::decode(&engine.get(&place).unwrap().unwrap()).unwrap();
    let (left, right) = KeyRange::ALL.split_at(key(3)).unwrap();
    let other = slots.fresh().unwrap().slot();
    row.pieces = vec![
        Piece {
            range: left,
            slot: row.pieces[0].slot,
        },
        Piece {
            range: right,
            slot: other,
        },
    ];
    let mut batch = Batch::default();
    batch.put(place, row.encode());
    crate::shard::slots::take_off_clear_list(&mut batch, &crate::shard::slots::whole(other));
    engine.write(batch).unwrap();
    open_in(&engine, &slots, REPLICA)
}

fn memory() -> Arc<MemoryEngine> {
    Arc::new(MemoryEngine::new())
}

fn sled_in(directory: &tempfile::TempDir) -> Arc<dyn Engine> {
    let options = Options {
        cache_bytes: 1024 * 1024,
    };
    Arc::new(SledEngine::open(directory.path(), &options).unwrap())
}

fn key(number: u8) -> Key {
    Key::from(vec![b'k', number])
}

fn id(number: u64, wall_ms: u64) -> RequestId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    RequestId::new(wall_ms, random)
}

/// One step of a random run: what kind, on which keys, and a number for whatever the kind needs.
type Step = (u8, u8, u8, u16);

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((any::<u8>(), 0..7u8, 0..7u8, any::<u16>()), 1..count)
}

/// What a shard must do, said simply: every version ever, every answer ever.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Key, Vec<(Timestamp, Option<Value>)>>,
    answers: BTreeMap<RequestId, WriteOutcome>,
}

impl Model {
    fn at(&self, key: &Key, as_of: Timestamp) -> Option<(Timestamp, Value)> {
        let versions = self.versions.get(key)?;
        let (stamp, value) = versions.iter().rev().find(|(stamp, _)| *stamp <= as_of)?;
        value.clone().map(|value| (*stamp, value))
    }

    fn stamp(&self, key: &Key) -> Timestamp {
        let found = self.at(key, Timestamp::MAX);
        found.map_or(Timestamp::ZERO, |(stamp, _)| stamp)
    }

    fn add(&mut self, key: &Key, stamp: Timestamp, value: Option<Value>) {
        let versions = self.versions.entry(key.clone()).or_default();
        versions.push((stamp, value));
    }

    fn remove(&mut self, key: &Key, stamp: Timestamp) -> u32 {
        let is_there = self.stamp(key) != Timestamp::ZERO;
        if is_there {
            self.add(key, stamp, None);
        }
        u32::from(is_there)
    }

    /// The answer to a write that was not applied before, of the shard with its first key and this
    /// range.
    fn apply(&mut self, write: &Write, stamp: Timestamp, here: &KeyRange) -> WriteOutcome {
        let (deleted, changed, resume) = match &write.kind {
            WriteKind::Keys {
                conditions,
                operations,
            } => {
                let keys = operations.iter().map(Operation::key);
                let mut keys = keys.chain(conditions.iter().map(Condition::key));
                if let Some(key) = keys.find(|key| !here.contains(key)) {
                    let key = key.clone();
                    return WriteOutcome::Spanning { key };
                }
                for (number, condition) in (0..).zip(conditions) {
                    let actual = self.stamp(condition.key());
                    let holds = match condition {
                        Condition::Version { version, .. } => actual == *version,
                        Condition::Exists { .. } => actual != Timestamp::ZERO,
                        Condition::Value { key, value } => self
                            .at(key, Timestamp::MAX)
                            .is_some_and(|(_, found)| found == *value),
                    };
                    if !holds {
                        let condition = number;
                        return WriteOutcome::ConditionFailed { condition, actual };
                    }
                }
                let mut deleted = 0;
                let mut changed = false;
                for operation in operations {
                    match operation {
                        Operation::Put { key, value } => {
                            self.add(key, stamp, Some(value.clone()));
                            changed = true;
                        }
                        Operation::Delete { key } => deleted += self.remove(key, stamp),
                    }
                }
                (deleted, changed || deleted > 0, None)
            }
            WriteKind::Range { range, limit } => {
                let range_here = range.intersect(here);
                let there =
                    |key: &&Key| range_here.contains(key) && self.stamp(key) != Timestamp::ZERO;
                let keys: Vec<Key> = self.versions.keys().filter(there).cloned().collect();
                let (now, later) = keys.split_at(keys.len().min(*limit as usize));
                let deleted = now.iter().map(|key| self.remove(key, stamp)).sum();
                let beyond = if here.covers(range) { &None } else { &here.end };
                (
                    deleted,
                    deleted > 0,
                    later.first().or(beyond.as_ref()).cloned(),
                )
            }
        };
        WriteOutcome::Done {
            version: if changed { stamp } else { Timestamp::ZERO },
            deleted,
            resume,
        }
    }
}

/// Turns steps into entries: the leader's part.
struct Leader {
    wall_ms: u64,
    last: Timestamp,
    index: u64,
    sent: Vec<Write>,
}

impl Leader {
    fn new() -> Leader {
        Leader {
            wall_ms: 1_000,
            last: Timestamp::ZERO,
            index: 1,
            sent: Vec::new(),
        }
    }

    fn entry(&mut self, payload: Payload) -> LogEntry {
        self.index += 1;
        LogEntry {
            position: Position {
                term: 1,
                index: self.index,
            },
            payload,
        }
    }

    /// A command with one or two writes, or an entry of another kind.
    fn step(&mut self, step: Step, model: &Model) -> (LogEntry, Vec<(Write, Timestamp)>) {
        let (kind, _, _, number) = step;
        self.wall_ms += u64::from(number % 23);
        match kind % 16 {
            0 => (self.entry(Payload::Blank), Vec::new()),
            1 => {
                let mut replicas = replicas(REPLICA.0);
                replicas[2].id.0 += u64::from(number);
                let membership = Membership::of(&replicas).encode();
                (self.entry(Payload::Membership(membership)), Vec::new())
            }
            _ => {
                let mut writes = vec![self.write(step, model)];
                if kind % 3 == 0 {
                    let (kind, first, second, number) = step;
                    let other = (kind.wrapping_add(5), second, first, number.rotate_left(5));
                    writes.push(self.write(other, model));
                }
                self.command(writes)
            }
        }
    }

    fn write(&mut self, (kind, first, second, number): Step, model: &Model) -> Write {
        if kind % 5 == 0 && !self.sent.is_empty() {
            return self.sent[number as usize % self.sent.len()].clone();
        }
        let (first, second) = (key(first), key(second));
        let put = |key: &Key| Operation::Put {
            key: key.clone(),
            value: match number % 7 {
                0 => vec![number as u8; 7_000 + usize::from(number % 6_000)].into(),
                _ => number.to_be_bytes().to_vec().into(),
            },
        };
        let delete = |key: &Key| Operation::Delete { key: key.clone() };
        let of_key = |operation| (Vec::new(), vec![operation]);
        let (conditions, operations) = match kind % 11 {
            0..=3 => of_key(put(&first)),
            4 | 5 => of_key(delete(&first)),
            6 => {
                let version = model.stamp(&second).plus(u64::from(number % 2));
                let key = second.clone();
                (vec![Condition::Version { key, version }], vec![put(&first)])
            }
            7 => {
                let conditions = vec![Condition::Exists {
                    key: second.clone(),
                }];
                (conditions, vec![delete(&first)])
            }
            8 if first != second => (Vec::new(), vec![delete(&first), put(&second)]),
            9 if first != second => (Vec::new(), vec![put(&first), delete(&second)]),
            _ => {
                return self.sent(WriteKind::Range {
                    range: KeyRange {
                        start: first,
                        end: number.is_multiple_of(2).then_some(second),
                    },
                    limit: u32::from(number % 4) + 1,
                });
            }
        };
        self.sent(WriteKind::Keys {
            conditions,
            operations,
        })
    }

    fn sent(&mut self, kind: WriteKind) -> Write {
        let id = id(self.sent.len() as u64, self.wall_ms - 1);
        let write = Write { id, kind };
        self.sent.push(write.clone());
        write
    }

    fn command(&mut self, writes: Vec<Write>) -> (LogEntry, Vec<(Write, Timestamp)>) {
        let stamp = self.last.plus(1).max(Timestamp::from_wall(self.wall_ms));
        self.last = stamp.plus(writes.len() as u64 - 1);
        let header = Header {
            stamp,
            ceiling: stamp,
            epoch: Epoch { conf: 1, bounds: 1 },
        };
        let stamped = (0..)
            .zip(writes.iter().cloned())
            .map(|(number, write)| (write, stamp.plus(number)))
            .collect();
        let body = Body::Writes(writes);
        let bytes = Command { header, body }.encode();
        (self.entry(Payload::Command(bytes)), stamped)
    }
}

fn check_answers(
    model: &mut Model,
    answer: &Bytes,
    stamped: &[(Write, Timestamp)],
    row: &Row,
) -> Result<(), TestCaseError> {
    if stamped.is_empty() {
        prop_assert!(answer.is_empty());
        return Ok(());
    }
    let outcomes = outcomes(answer);
    prop_assert_eq!(outcomes.len(), stamped.len());
    for (outcome, (write, stamp)) in outcomes.into_iter().zip(stamped) {
        let is_late = Timestamp::from_wall(write.id.wall_ms()) < row.horizon();
        if matches!(outcome, WriteOutcome::TooLateToKnow { .. }) {
            prop_assert!(is_late);
            continue;
        }
        let expected = match model.answers.get(&write.id) {
            Some(first) => first.clone(),
            None => {
                prop_assert!(!is_late, "applied too late to know");
                model.apply(write, *stamp, &row.descriptor.range)
            }
        };
        prop_assert_eq!(&outcome, &expected);
        model.answers.insert(write.id, outcome);
    }
    Ok(())
}

fn check_reads(model: &Model, reader: &ShardReader) -> Result<(), TestCaseError> {
    let row = reader.row();
    let all = model.versions.values().flatten();
    let mut stamps: Vec<Timestamp> = all.map(|(stamp, _)| *stamp).collect();
    stamps.extend([row.floors.history, row.last_stamp]);
    stamps.retain(|stamp| (row.floors.history..=row.last_stamp).contains(stamp));
    stamps.sort();
    stamps.dedup();
    // Enough of them: the ends and some between.
    let some = stamps.len() / 6 + 1;
    for as_of in stamps.iter().copied().step_by(some).chain([row.last_stamp]) {
        let mut expected = Vec::new();
        let here = |key: &Key| row.descriptor.range.contains(key);
        for key in (0..7).map(key).filter(here) {
            let found = reader.get(&key, Some(as_of)).unwrap().value.into_option();
            let found = found.map(|found| (found.version, found.value));
            let modelled = model.at(&key, as_of);
            prop_assert_eq!(&found, &modelled, "{:?} at {}", key, as_of);
            expected.extend(modelled.map(|(stamp, value)| (key, stamp, value)));
        }
        for reverse in [false, true] {
            prop_assert_eq!(&scan_all(reader, as_of, reverse), &expected);
            expected.reverse();
        }
    }
    let below = Timestamp(row.floors.history.0.saturating_sub(1));
    if below != row.floors.history {
        prop_assert!(reader.get(&key(1), Some(below)).is_err());
    }
    check_size(model, reader)
}

/// No write came between the counting for a split and the split, so every size is exact.
fn check_size(model: &Model, reader: &ShardReader) -> Result<(), TestCaseError> {
    let row = reader.row();
    let here = |key: &Key| row.descriptor.range.contains(key);
    let sizes = (0..7).map(key).filter(here).filter_map(|key| {
        let (_, value) = model.at(&key, row.last_stamp)?;
        let size = Size::of(&key, value.len() as u64);
        Some((key, size))
    });
    let sizes: Vec<(Key, Size)> = sizes.collect();
    let all = sizes
        .iter()
        .fold(Size::default(), |all, (_, size)| all.with(*size));
    prop_assert_eq!(row.size, all);
    prop_assert_eq!(reader.counted().unwrap(), all);
    let middle = reader.middle().unwrap();
    prop_assert_eq!(middle.is_some(), sizes.len() > 1);
    let Some((middle, below)) = middle else {
        return Ok(());
    };
    prop_assert_eq!(reader.size_below(&middle).unwrap(), below);
    let place = sizes.iter().position(|(key, _)| *key == middle);
    let place = place.expect("the middle is a key of the shard");
    prop_assert!(place > 0 && below.keys == place as u64);
    // It is the first with half of the bytes below it, or the last.
    prop_assert!(below.bytes >= all.bytes / 2 || place == sizes.len() - 1);
    let before = below.bytes - sizes[place - 1].1.bytes;
    prop_assert!(place == 1 || before < all.bytes / 2);
    Ok(())
}

fn scan_all(reader: &ShardReader, as_of: Timestamp, reverse: bool) -> Vec<(Key, Timestamp, Value)> {
    let mut scan = Scan {
        range: reader.descriptor().range,
        keys_max: 2,
        bytes_max: 9_000,
        reverse,
        keys_only: false,
        read: ReadKind::Follower,
        cut: Some(Cut::at(as_of)),
    };
    let mut all = Vec::new();
    loop {
        let portion = reader.scan(&scan).unwrap().value;
        let items = portion.items.into_iter();
        all.extend(items.map(|item| (item.key, item.versioned.version, item.versioned.value)));
        match portion.rest {
            Some(rest) => scan.range = rest,
            None => return all,
        }
    }
}

fn collect_some(machine: &mut ShardMachine, portions: u16) {
    for _ in 0..portions {
        machine.collect().unwrap();
    }
}

fn against_the_model(mut machine: ShardMachine, steps: &[Step]) -> Result<(), TestCaseError> {
    let (mut leader, mut model) = (Leader::new(), Model::default());
    for step in steps {
        let (entry, stamped) = leader.step(*step, &model);
        let answers = machine.apply(&[entry]).unwrap();
        let row = machine.reader().row();
        check_answers(&mut model, &answers[0], &stamped, &row)?;
        collect_some(&mut machine, step.3 % 5);
        check_reads(&model, &machine.reader())?;
    }
    Ok(())
}

fn drain(
    source: &mut dyn SnapshotSource,
    target: &mut ShardMachine,
) -> Result<(), crate::machine::MachineError> {
    let mut sink = target.receiver().begin()?;
    while let Some(chunk) = source.next()? {
        assert!(chunk.len() <= crate::machine::SNAPSHOT_CHUNK_BYTES_MAX);
        sink.chunk(chunk)?;
    }
    let received = sink.finish()?;
    target.install(source.applied(), received)
}

fn hash(machine: &ShardMachine) -> u64 {
    machine.reader().state_hash().unwrap().hash
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_answer_and_every_read_is_the_models(steps in steps(60)) {
        against_the_model(seeded(memory()), &steps)?;
    }

    #[test]
    fn the_same_with_the_keys_in_two_slots(steps in steps(40)) {
        against_the_model(seeded_in_two_pieces(memory()), &steps)?;
    }

    #[test]
    fn replicas_are_equal_however_they_came_to_their_position(
        steps in steps(60), portions in prop::collection::vec(1..5usize, 60), begin in any::<u8>(), kept in 0..4usize
    ) {
        let (mut leader, model) = (Leader::new(), Model::default());
        let entries: Vec<LogEntry> = steps.iter().map(|step| leader.step(*step, &model).0).collect();

        // One applies entry by entry and collects; a snapshot of it is begun on the way.
        let mut first = seeded(memory());
        let mut answers = Vec::new();
        let begin = begin as usize % entries.len();
        let mut begun = None;
        for (number, entry) in entries.iter().enumerate() {
            if number == begin {
                begun = Some((first.snapshot().unwrap(), hash(&first)));
            }
            answers.extend(first.apply(std::slice::from_ref(entry)).unwrap());
            collect_some(&mut first, steps[number].3 % 6);
        }

        // One applies in portions, never collects, has two slots, and crashes half-way.
        let engine = memory();
        let mut second = seeded_in_two_pieces(engine.clone());
        engine.flush().unwrap();
        let mut answers_of_second = Vec::new();
        let mut rest = &entries[..];
        for portion in &portions {
            let (now, later) = rest.split_at((*portion).min(rest.len()));
            answers_of_second.extend(second.apply(now).unwrap());
            rest = later;
        }
        answers_of_second.extend(second.apply(rest).unwrap());
        prop_assert_eq!(&answers, &answers_of_second);
        prop_assert_eq!(hash(&first), hash(&second));
        engine.crash(kept);
        let mut second = reopened(engine);
        let applied = second.applied().position.unwrap().index as usize - 1;
        second.apply(&entries[applied..]).unwrap();
        prop_assert_eq!(hash(&first), hash(&second));

        // One comes from the snapshot, whose end is read long after its position.
        let (mut source, hash_then) = begun.unwrap();
        let mut third = seeded(memory());
        drain(&mut *source, &mut third).unwrap();
        prop_assert_eq!(hash(&third), hash_then);
        third.apply(&entries[begin..]).unwrap();
        prop_assert_eq!(hash(&third), hash(&first));
        while third.collect().unwrap() {}
        prop_assert_eq!(hash(&third), hash(&first));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn on_disk_every_answer_and_every_read_is_the_models(steps in steps(50)) {
        let directory = tempfile::tempdir().unwrap();
        against_the_model(seeded(sled_in(&directory)), &steps)?;
    }
}

/// A value of some length that says its counter at both ends.
fn counted(counter: u64) -> Value {
    let mut value = counter.to_be_bytes().to_vec();
    value.resize(8 + (counter as usize * 977) % 14_000, counter as u8);
    value.extend_from_slice(&counter.to_be_bytes());
    value.into()
}

fn counter_of(value: &[u8]) -> u64 {
    let counter = u64::from_be_bytes(value[..8].try_into().unwrap());
    assert_eq!(*value, *counted(counter), "a torn value");
    counter
}

/// Overwrites, or deletes and puts in one entry, as fast as it can; collects in between.
struct Writer {
    machine: ShardMachine,
    leader: Leader,
    counter: u64,
}

const KEYS: u8 = 5;

impl Writer {
    fn run(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.counter += 1;
            self.leader.wall_ms += 3;
            let key = key((self.counter % u64::from(KEYS)) as u8);
            let put = Operation::Put {
                key: key.clone(),
                value: counted(self.counter),
            };
            let mut operations = vec![put];
            if self.counter > u64::from(KEYS) && self.counter.is_multiple_of(3) {
                operations.insert(0, Operation::Delete { key });
            }
            let writes = operations.into_iter().map(|operation| {
                self.leader.sent(WriteKind::Keys {
                    conditions: Vec::new(),
                    operations: vec![operation],
                })
            });
            let writes = writes.collect();
            let (entry, _) = self.leader.command(writes);
            self.machine.apply(&[entry]).unwrap();
            collect_some(&mut self.machine, 2);
        }
    }
}

/// Reads all counters again and again: all are there, and none goes back.
fn watch(is_over: &AtomicBool, read: impl Fn() -> Option<Vec<u64>>) {
    let mut last = vec![0; KEYS as usize];
    let mut reads = 0u64;
    while !is_over.load(Ordering::Relaxed) {
        let Some(counters) = read() else { continue };
        assert_eq!(counters.len(), last.len(), "a key was missed: {counters:?}");
        assert!(counters.iter().zip(&last).all(|(now, last)| now >= last));
        last = counters;
        reads += 1;
    }
    assert!(reads > 10, "{reads} reads are too few to mean anything");
}

fn get_all(reader: &ShardReader) -> Option<Vec<u64>> {
    let get = |number| {
        let found = reader.get(&key(number), None).unwrap().value.into_option();
        found.map(|found| counter_of(&found.value))
    };
    Some((0..KEYS).filter_map(get).collect())
}

fn get_many(reader: &ShardReader) -> Option<Vec<u64>> {
    let keys: Vec<Key> = (0..KEYS).map(key).collect();
    let found = reader.get_many(&keys, None).unwrap();
    assert!(
        found.as_of
            >= found
                .value
                .iter()
                .flatten()
                .map(|found| found.version)
                .max()?
    );
    let found = found.value.into_iter().flatten();
    Some(found.map(|found| counter_of(&found.value)).collect())
}

/// As of one stamp; `None` when the floor has passed it meanwhile.
fn scan_cut(reader: &ShardReader) -> Option<Vec<u64>> {
    let mut scan = Scan {
        range: KeyRange::ALL,
        keys_max: 2,
        bytes_max: u32::MAX,
        reverse: false,
        keys_only: false,
        read: ReadKind::Follower,
        cut: Some(Cut::at(reader.last_stamp())),
    };
    let mut counters = Vec::new();
    loop {
        let portion = reader.scan(&scan).ok()?.value;
        let values = portion.items.iter().map(|item| &item.versioned.value);
        counters.extend(values.map(|value| counter_of(value)));
        match portion.rest {
            Some(rest) => scan.range = rest,
            None => return Some(counters),
        }
    }
}

fn readers_never_miss_a_key(engine: Arc<dyn Engine>, rounds: u64) {
    let mut writer = Writer {
        machine: seeded(engine),
        leader: Leader::new(),
        counter: 0,
    };
    writer.run(u64::from(KEYS));
    let reader = writer.machine.reader();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for read in [get_all, get_many, scan_cut] {
            let (reader, is_over) = (&reader, &is_over);
            threads.spawn(move || watch(is_over, || read(reader)));
        }
        writer.run(rounds);
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn readers_never_miss_a_key_in_memory() {
    readers_never_miss_a_key(memory(), 4_000);
}

#[test]
fn readers_never_miss_a_key_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    readers_never_miss_a_key(sled_in(&directory), 1_500);
}

#[test]
fn snapshots_are_equal_to_their_position_while_another_thread_writes() {
    let mut writer = Writer {
        machine: seeded(memory()),
        leader: Leader::new(),
        counter: 0,
    };
    writer.run(200);
    for _ in 0..20 {
        let (mut source, then) = (writer.machine.snapshot().unwrap(), hash(&writer.machine));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mut target = seeded(memory());
                drain(&mut *source, &mut target).unwrap();
                assert_eq!(hash(&target), then);
            });
            writer.run(100);
        });
    }
}

#[test]
fn a_pin_holds_back_collection_and_clearing_until_it_is_dropped() {
    let mut writer = Writer {
        machine: seeded(memory()),
        leader: Leader::new(),
        counter: 0,
    };
    writer.run(10);
    let reader = writer.machine.reader();
    let source = writer.machine.snapshot().unwrap();
    writer.leader.wall_ms += 10 * HISTORY_MS;
    writer.run(10);
    let history = || {
        let slot = reader.row().pieces[0].slot;
        let (start, end) = layout::family(slot, Family::History, &KeyRange::ALL);
        Engine::scan(&**reader.engine(), &start, &end, false).count()
    };
    let before = history();
    while writer.machine.collect().unwrap() {}
    assert_eq!(history(), before);
    drop(source);
    while writer.machine.collect().unwrap() {}
    assert!(history() < before);

    let slots = reader.slots();
    let given_up = slots.fresh().unwrap();
    let piece = crate::shard::slots::whole(given_up.slot());
    let pin = slots.pin(vec![piece], Floors::default());
    drop(given_up);
    assert!(!slots.clear().unwrap());
    drop(pin);
    while slots.clear().unwrap() {}
    assert_eq!(slots.clear_list().unwrap(), []);
}

#[test]
fn a_damaged_or_incomplete_snapshot_is_refused_and_leaves_the_replica_as_it_was() {
    let mut writer = Writer {
        machine: seeded(memory()),
        leader: Leader::new(),
        counter: 0,
    };
    writer.run(100);
    let chunks = || {
        let mut source = writer.machine.snapshot().unwrap();
        std::iter::from_fn(move || source.next().unwrap()).collect::<Vec<Bytes>>()
    };
    let target = seeded(memory());
    let before = hash(&target);
    let send = |chunks: &[Bytes]| {
        let mut sink = target.receiver().begin().unwrap();
        for chunk in chunks {
            sink.chunk(chunk.clone())?;
        }
        sink.finish()
    };
    let good = chunks();
    assert!(good.len() > 3);
    let received = send(&good).unwrap();
    assert!(send(&good[..good.len() - 1]).is_err());
    assert!(send(&good[1..]).is_err());
    for number in 0..good.len() {
        let mut bad = good.clone();
        let mut bytes = bad[number].to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bad[number] = bytes.into();
        assert!(send(&bad).is_err(), "chunk {number}");
    }
    assert_eq!(hash(&target), before);
    let slots = target.reader().slots().clone();
    while slots.clear().unwrap() {}
    // The complete one waits for its installation; given up, it is cleared too.
    assert_eq!(slots.clear_list().unwrap().len(), 1);
    drop(received);
    while slots.clear().unwrap() {}
    assert!(slots.clear_list().unwrap().is_empty());
}

#[test]
fn a_large_portion_of_entries_ends_in_several_batches() {
    let engine = memory();
    let mut machine = seeded(engine.clone());
    let mut leader = Leader::new();
    let entries: Vec<LogEntry> = (0..20u8)
        .map(|number| {
            let put = Operation::Put {
                key: key(number),
                value: vec![number; 1024 * 1024].into(),
            };
            let write = leader.sent(WriteKind::Keys {
                conditions: Vec::new(),
                operations: vec![put],
            });
            leader.command(vec![write]).0
        })
        .collect();
    let before = engine.unflushed();
    machine.apply(&entries).unwrap();
    // Each entry takes a batch above its bound, or up to it.
    assert!((10..=20).contains(&(engine.unflushed() - before)));
    assert_eq!(machine.applied().position.unwrap().index, 21);
}

#[test]
fn a_range_of_large_values_is_deleted_over_several_entries() {
    let mut machine = seeded(memory());
    let mut leader = Leader::new();
    for number in 0..250u64 {
        let operations = (0..10u64).map(|more| Operation::Put {
            key: format!("{:04}", number * 10 + more).into(),
            value: vec![0; 5_000].into(),
        });
        let write = leader.sent(WriteKind::Keys {
            conditions: Vec::new(),
            operations: operations.collect(),
        });
        let (entry, _) = leader.command(vec![write]);
        machine.apply(&[entry]).unwrap();
    }
    let mut range = KeyRange::ALL;
    let (mut entries, mut removed) = (0, 0);
    loop {
        let limit = u32::MAX;
        let write = leader.sent(WriteKind::Range {
            range: range.clone(),
            limit,
        });
        let (entry, _) = leader.command(vec![write]);
        let answers = machine.apply(&[entry]).unwrap();
        let [
            WriteOutcome::Done {
                deleted, resume, ..
            },
        ] = &outcomes(&answers[0])[..]
        else {
            panic!("a delete is done")
        };
        entries += 1;
        removed += deleted;
        match resume {
            Some(resume) => range.start = resume.clone(),
            None => break,
        }
    }
    assert_eq!(removed, 2_500);
    assert!(entries > 3, "{entries}");
}

/// Notes how far a reader has come whenever a batch is about to be written; clears what it may and
/// reads right after.
#[derive(Default)]
struct Watched {
    inner: MemoryEngine,
    reader: OnceLock<ShardReader>,
    seen: Mutex<Vec<u64>>,
    clears: AtomicBool,
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Engine::get(&self.inner, key)
    }

    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + Send + 'a> {
        Engine::scan(&self.inner, start, end, reverse)
    }

    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        if let Some(reader) = self.reader.get() {
            let position = reader.applied().position.unwrap();
            self.seen.lock().unwrap().push(position.index);
        }
        self.inner.write(batch)?;
        if let Some(reader) = self.reader.get()
            && self.clears.load(Ordering::Relaxed)
        {
            while reader.slots().clear().unwrap() {}
            let found = reader.get(&key(1), None).unwrap().value;
            assert!(found.into_option().is_some(), "cleared under a reader");
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.inner.flush()
    }
}

#[test]
fn readers_learn_of_a_position_only_when_its_batch_is_written() {
    let engine = Arc::new(Watched::default());
    let mut machine = seeded(engine.clone());
    assert!(engine.reader.set(machine.reader()).is_ok());
    let mut leader = Leader::new();
    for _ in 0..3 {
        let entry = leader.entry(Payload::Blank);
        machine.apply(&[entry]).unwrap();
    }
    assert_eq!(*engine.seen.lock().unwrap(), [1, 2, 3]);
}

#[test]
fn the_old_slot_is_not_cleared_while_readers_go_by_the_old_row() {
    let mut writer = Writer {
        machine: seeded(memory()),
        leader: Leader::new(),
        counter: 0,
    };
    writer.run(20);
    let engine = Arc::new(Watched::default());
    let mut target = seeded(engine.clone());
    assert!(engine.reader.set(target.reader()).is_ok());
    drain(&mut *writer.machine.snapshot().unwrap(), &mut target).unwrap();
    writer.run(20);
    let mut source = writer.machine.snapshot().unwrap();
    let mut sink = target.receiver().begin().unwrap();
    while let Some(chunk) = source.next().unwrap() {
        sink.chunk(chunk).unwrap();
    }
    let received = sink.finish().unwrap();
    engine.clears.store(true, Ordering::Relaxed);
    target.install(source.applied(), received).unwrap();
    engine.clears.store(false, Ordering::Relaxed);
    let slots = target.reader().slots().clone();
    while slots.clear().unwrap() {}
    assert_eq!(slots.clear_list().unwrap(), []);
}
