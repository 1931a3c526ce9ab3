//! Shards that are split again and again: together they are one model, whatever was lost in a crash,
//! and what becomes of one is nothing to its siblings.

use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::shard::destroy;
use crate::shard::empty;
use crate::types::shard::Birth;
use crate::types::shard::Size;

use super::*;

/// The replicas of one node, one of each shard, and what their logs say.
pub(super) struct Node {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) slots: Arc<Slots>,
    pub(super) machines: BTreeMap<ReplicaId, ShardMachine>,
    pub(super) logs: BTreeMap<ReplicaId, Vec<LogEntry>>,
    last_id: u64,
}

impl Node {
    pub(super) fn new(engine: Arc<dyn Engine>) -> Node {
        let machine = seeded(engine.clone());
        Node {
            engine,
            slots: machine.reader().slots().clone(),
            machines: [(REPLICA, machine)].into(),
            logs: [(REPLICA, Vec::new())].into(),
            last_id: 1_000,
        }
    }

    /// The replica of the shard with a key. There is one, and one only.
    pub(super) fn replica_of(&self, key: &Key) -> ReplicaId {
        let has_it = |machine: &ShardMachine| {
            let row = machine.reader().row();
            row.slot_of(key).is_some()
        };
        let mut replicas = self.machines.iter().filter(|(_, machine)| has_it(machine));
        let (replica, _) = replicas.next().expect("each key has a shard");
        assert!(replicas.next().is_none(), "two shards have {key:?}");
        *replica
    }

    pub(super) fn row(&self, replica: ReplicaId) -> Arc<Row> {
        self.machines[&replica].reader().row()
    }

    pub(super) fn apply(&mut self, replica: ReplicaId, header: Header, body: Body) -> Bytes {
        let row = self.row(replica);
        let last = row.applied.position.unwrap();
        let header = Header {
            epoch: row.descriptor.epoch,
            ..header
        };
        let entry = LogEntry {
            position: Position {
                term: last.term,
                index: last.index + 1,
            },
            payload: Payload::Command(Command { header, body }.encode()),
        };
        self.logs.get_mut(&replica).unwrap().push(entry.clone());
        let answers = self.machines.get_mut(&replica).unwrap().apply(&[entry]);
        self.open_seeded(replica);
        self.drop_ended(replica);
        answers.unwrap().remove(0)
    }

    /// What applying has seeded is opened.
    fn open_seeded(&mut self, parent: ReplicaId) {
        for child in self.machines.get_mut(&parent).unwrap().take_seeded() {
            let machine = open_in(&self.engine, &self.slots, child);
            assert!(self.machines.insert(child, machine).is_none());
            self.logs.entry(child).or_default();
        }
    }

    /// Nothing goes on with what has ended.
    fn drop_ended(&mut self, replica: ReplicaId) {
        for ended in self.machines.get_mut(&replica).unwrap().take_ended() {
            self.machines.remove(&ended);
        }
    }

    pub(super) fn split(
        &mut self,
        leader: &mut Leader,
        replica: ReplicaId,
        at: Key,
    ) -> SplitOutcome {
        self.last_id += 10;
        let before = self.row(replica);
        let left = self.machines[&replica].reader().size_below(&at).unwrap();
        let stamp = leader.stamp(1);
        let header = Header {
            stamp,
            ceiling: stamp,
            ..Header::default()
        };
        let body = Body::Split(Split {
            at,
            child: ShardId(self.last_id),
            left,
            replicas: replicas(self.last_id),
        });
        let answer = self.apply(replica, header, body);
        let Ok(Answer::Split(outcome)) = Answer::decode(&answer) else {
            panic!("a split is answered as one")
        };
        if let SplitOutcome::Done { left, right } = &outcome {
            self.check_birth(&before, replica, left, right);
        }
        outcome
    }

    fn check_birth(
        &self,
        before: &Row,
        parent: ReplicaId,
        left: &ShardDescriptor,
        right: &ShardDescriptor,
    ) {
        let range = &before.descriptor.range;
        assert_eq!(
            (&left.range.start, &right.range.end),
            (&range.start, &range.end)
        );
        assert_eq!(left.range.end.as_ref(), Some(&right.range.start));
        let (left_row, right_row) = (self.row(parent), self.row(ReplicaId(self.last_id)));
        assert_eq!((&left_row.descriptor, &right_row.descriptor), (left, right));
        assert_eq!(left_row.last_stamp, right_row.last_stamp);
        let birth = Birth {
            parent: left.id,
            replica: parent,
            position: left_row.applied.position.unwrap(),
        };
        assert_eq!(right_row.birth, Some(birth));
        assert_eq!(
            right_row.applied.position,
            Some(Position { term: 1, index: 1 })
        );
    }

    pub(super) fn hashes(&self) -> BTreeMap<ReplicaId, u64> {
        let hashes = self
            .machines
            .iter()
            .map(|(id, machine)| (*id, hash(machine)));
        hashes.collect()
    }

    /// After a crash: the logs give back what the engine has lost.
    pub(super) fn recover(
        engine: Arc<dyn Engine>,
        logs: BTreeMap<ReplicaId, Vec<LogEntry>>,
    ) -> Node {
        let mut node = Node::reopened(engine, logs);
        // A child's id is above its parent's: its parent has replayed the split by then.
        for replica in node.logs.keys().copied().collect::<Vec<_>>() {
            node.catch_up(replica, None);
        }
        node
    }

    pub(super) fn reopened(
        engine: Arc<dyn Engine>,
        logs: BTreeMap<ReplicaId, Vec<LogEntry>>,
    ) -> Node {
        let slots = Slots::open(engine.clone()).unwrap();
        let opened = crate::shard::replicas(&*engine).unwrap();
        let opened = opened.iter().map(|id| (*id, open_in(&engine, &slots, *id)));
        Node {
            machines: opened.collect(),
            engine,
            slots,
            logs,
            last_id: 0,
        }
    }

    /// Applies what the log of a replica has behind its state, up to an index. What it needs is brought to where
    /// it is needed first. Nothing where the replica has ended.
    pub(super) fn catch_up(&mut self, replica: ReplicaId, upto: Option<u64>) {
        loop {
            let Some(machine) = self.machines.get_mut(&replica) else {
                return;
            };
            let applied = machine.applied().position.unwrap();
            let log = self.logs.get(&replica).into_iter().flatten();
            let missing = log.filter(|entry| {
                let index = entry.position.index;
                index > applied.index && upto.is_none_or(|upto| index <= upto)
            });
            let missing: Vec<LogEntry> = missing.cloned().collect();
            let answers = machine.apply(&missing).unwrap();
            let need = machine.take_need();
            assert_eq!(need.is_some(), answers.len() < missing.len());
            self.open_seeded(replica);
            self.drop_ended(replica);
            let Some(need) = need else { return };
            let needed = need.replica.expect("it is on this node");
            self.catch_up(needed, Some(need.position.index));
            let brought = self.row(needed).applied.position.unwrap();
            assert_eq!(brought, need.position);
        }
    }
}

impl Leader {
    pub(super) fn stamp(&mut self, count: u64) -> Timestamp {
        let stamp = self.last.plus(1).max(Timestamp::from_wall(self.wall_ms));
        self.last = stamp.plus(count - 1);
        stamp
    }
}

/// One leader for all shards: its stamps rise in each.
pub(super) struct Run {
    pub(super) node: Node,
    pub(super) leader: Leader,
    pub(super) model: Model,
}

impl Run {
    pub(super) fn new(engine: Arc<dyn Engine>) -> Run {
        Run {
            node: Node::new(engine),
            leader: Leader::new(),
            model: Model::default(),
        }
    }

    pub(super) fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (kind, first, second, number) = step;
        self.leader.wall_ms += u64::from(number % 23);
        if kind % 7 == 0 {
            let replica = self.node.replica_of(&key(first));
            let outcome = self.node.split(&mut self.leader, replica, key(second));
            let range = &self.node.row(replica).descriptor.range;
            if let SplitOutcome::Refused { .. } = outcome {
                prop_assert!(range.split_at(key(second)).is_none());
            } else {
                prop_assert_eq!(range.end.as_ref(), Some(&key(second)));
            }
            return Ok(());
        }
        let write = self.leader.write(step, &self.model);
        let stamp = self.leader.stamp(1);
        let header = Header {
            stamp,
            ceiling: stamp,
            ..Header::default()
        };
        let replica = self.node.replica_of(write.first_key());
        let answer = self
            .node
            .apply(replica, header, Body::Writes(vec![write.clone()]));
        let row = self.node.row(replica);
        check_answers(&mut self.model, &answer, &[(write, stamp)], &row)
    }

    pub(super) fn collect_some(&mut self, portions: u16) {
        for machine in self.node.machines.values_mut() {
            collect_some(machine, portions);
        }
    }

    pub(super) fn check_reads(&self) -> Result<(), TestCaseError> {
        let mut machines = self.node.machines.values();
        machines.try_for_each(|machine| check_reads(&self.model, &machine.reader()))
    }
}

fn splits_against_the_model(engine: Arc<dyn Engine>, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut run = Run::new(engine);
    for step in steps {
        run.step(*step)?;
        run.collect_some(step.3 % 5);
        run.check_reads()?;
    }
    // Every second shard goes: nothing of it is left, and the others do not notice.
    let replicas: Vec<ReplicaId> = run.node.machines.keys().copied().collect();
    for replica in replicas.into_iter().skip(1).step_by(2) {
        let row = run.node.row(replica);
        run.node.machines.remove(&replica);
        destroy(&run.node.engine, &run.node.slots, replica).unwrap();
        while run.node.slots.clear().unwrap() {}
        prop_assert_eq!(stored_in(&*run.node.engine, &row.pieces), 0);
    }
    prop_assert_eq!(run.node.slots.clear_list().unwrap(), []);
    run.check_reads()
}

pub(super) fn stored_in(engine: &dyn Engine, pieces: &[Piece]) -> usize {
    let families = pieces.iter().flat_map(|piece| {
        let family = |family| layout::family(piece.slot, family, &piece.range);
        Family::CLEARED.map(family)
    });
    let stored = families.map(|(start, end)| engine.scan(&start, &end, false).count());
    stored.sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn shards_that_are_split_answer_together_as_the_model_does(steps in steps(60)) {
        splits_against_the_model(memory(), &steps)?;
    }

    #[test]
    fn what_a_crash_takes_is_replayed_and_snapshots_are_as_of_their_beginning(
        steps in steps(60), begin in any::<u8>(), flush in any::<u8>(), kept in 0..40usize
    ) {
        let engine = memory();
        let mut run = Run::new(engine.clone());
        engine.flush().unwrap();
        let (begin, flush) = (begin as usize % steps.len(), flush as usize % steps.len());
        let mut begun = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            if number == begin {
                let machines = run.node.machines.values();
                begun.extend(machines.map(|machine| (machine.snapshot().unwrap(), hash(machine))));
            }
            if number == flush {
                engine.flush().unwrap();
            }
            run.step(*step)?;
            run.collect_some(step.3 % 6);
        }
        // Read long after they were begun, each into a replica that has nothing.
        for (mut source, then) in begun {
            let other: Arc<dyn Engine> = memory();
            let slots = Slots::open(other.clone()).unwrap();
            let descriptor = ShardDescriptor {
                epoch: Epoch::default(),
                ..run.node.row(REPLICA).descriptor.clone()
            };
            prop_assert!(empty(&other, &slots, REPLICA, descriptor).unwrap());
            let mut target = open_in(&other, &slots, REPLICA);
            prop_assert_eq!(target.applied(), Applied::default());
            drain(&mut *source, &mut target).unwrap();
            prop_assert_eq!(hash(&target), then);
        }
        let before = run.node.hashes();
        let logs = std::mem::take(&mut run.node.logs);
        drop(run.node);
        engine.crash(kept);
        run.node = Node::recover(engine, logs);
        prop_assert_eq!(run.node.hashes(), before);
        run.check_reads()?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn on_disk_too(steps in steps(50)) {
        let directory = tempfile::tempdir().unwrap();
        splits_against_the_model(sled_in(&directory), &steps)?;
    }
}

pub(super) fn put(key: Key, value: &'static [u8]) -> WriteKind {
    let value = Value::from_static(value);
    WriteKind::Keys {
        conditions: Vec::new(),
        operations: vec![Operation::Put { key, value }],
    }
}

#[test]
fn a_split_ends_its_batch_and_what_follows_is_applied_behind_it() {
    let engine = memory();
    let mut node = Node::new(engine.clone());
    let mut leader = Leader::new();
    let mut machine = node.machines.remove(&REPLICA).unwrap();
    let write = |leader: &mut Leader, bounds, kind| {
        let write = leader.sent(kind);
        let header = Header {
            stamp: leader.stamp(1),
            epoch: Epoch { conf: 1, bounds },
            ..Header::default()
        };
        let body = Body::Writes(vec![write]);
        leader.entry(Payload::Command(Command { header, body }.encode()))
    };
    let split = |leader: &mut Leader| {
        let header = Header {
            stamp: leader.stamp(1),
            epoch: Epoch { conf: 1, bounds: 1 },
            ..Header::default()
        };
        let body = Body::Split(Split {
            at: key(3),
            child: ShardId(7),
            left: Size::default(),
            replicas: replicas(11),
        });
        leader.entry(Payload::Command(Command { header, body }.encode()))
    };
    let entries = [
        write(&mut leader, 1, put(key(1), b"1")),
        split(&mut leader),
        // Proposed before the split was applied, and planned twice.
        write(&mut leader, 1, put(key(1), b"2")),
        split(&mut leader),
        write(&mut leader, 2, put(key(1), b"3")),
    ];
    let before = engine.unflushed();
    let answers = machine.apply(&entries).unwrap();
    assert_eq!(engine.unflushed() - before, 2);
    assert_eq!(machine.take_seeded(), [ReplicaId(11)]);
    assert_eq!(machine.take_seeded(), []);
    assert_eq!(outcomes(&answers[2]), [WriteOutcome::StaleEpoch]);
    let Ok(Answer::Split(SplitOutcome::Stale { current })) = Answer::decode(&answers[3]) else {
        panic!("a split that was planned before another one is stale")
    };
    assert_eq!(current, machine.reader().descriptor());
    let found = machine.reader().get(&key(1), None).unwrap().value;
    assert_eq!(found.into_option().unwrap().value, "3");

    // Without the batch of the split there is no child; with it the child is there, at its beginning.
    for (kept, rows) in [(before, 1), (before + 1, 2), (before + 2, 2)] {
        let engine = memory();
        let mut machine = seeded(engine.clone());
        machine.apply(&entries).unwrap();
        engine.crash(kept);
        assert_eq!(crate::shard::replicas(&*engine).unwrap().len(), rows);
        let mut machine = reopened(engine.clone());
        let applied = machine.applied().position.unwrap().index as usize - 1;
        machine.apply(&entries[applied..]).unwrap();
        let seeded = machine.take_seeded().len();
        assert_eq!(
            seeded,
            2 - rows,
            "a child that is there is not seeded again"
        );
        let child = open_in(
            &(engine as Arc<dyn Engine>),
            machine.reader().slots(),
            ReplicaId(11),
        );
        assert_eq!(child.applied().position.unwrap().index, 1);
        assert_eq!(machine.reader().slots().clear_list().unwrap(), []);
    }
}

#[test]
fn a_pass_of_collection_does_not_go_on_in_keys_that_were_split_off() {
    let mut node = Node::new(memory());
    let mut leader = Leader::new();
    for round in 0..2_500 {
        leader.wall_ms += u64::from(round == 1_250) * 10 * HISTORY_MS;
        let kind = put(key(round as u8 % 7), b"value");
        let write = leader.sent(kind);
        let header = Header {
            stamp: leader.stamp(1),
            ..Header::default()
        };
        node.apply(REPLICA, header, Body::Writes(vec![write]));
    }
    let parent = node.machines.get_mut(&REPLICA).unwrap();
    assert!(parent.collect().unwrap(), "a pass is under way");
    assert!(parent.has_pass());
    let before = hash(parent);
    leader.wall_ms += 1;
    let outcome = node.split(&mut leader, REPLICA, key(1));
    assert!(matches!(outcome, SplitOutcome::Done { .. }));
    let parent = &node.machines[&REPLICA];
    assert!(!parent.has_pass());
    assert_ne!(hash(parent), before);
}

#[test]
fn a_child_that_is_gone_is_not_cleared_while_readers_go_by_the_old_row() {
    let engine = Arc::new(Watched::default());
    let shared: Arc<dyn Engine> = engine.clone();
    let slots = seeded(shared.clone()).reader().slots().clone();
    let gone: Arc<dyn Others> = Arc::new(|replica| replica == ReplicaId(11));
    let opened = ShardMachine::open(shared, slots.clone(), REPLICA, gone);
    let mut machine = opened.unwrap().unwrap();
    let mut leader = Leader::new();
    let header = |leader: &mut Leader| Header {
        stamp: leader.stamp(1),
        epoch: Epoch { conf: 1, bounds: 1 },
        ..Header::default()
    };
    let write = leader.sent(put(key(1), b"1"));
    let command = Command {
        header: header(&mut leader),
        body: Body::Writes(vec![write]),
    };
    let entry = leader.entry(Payload::Command(command.encode()));
    machine.apply(&[entry]).unwrap();
    assert!(engine.reader.set(machine.reader()).is_ok());
    engine.clears.store(true, Ordering::Relaxed);
    let command = Command {
        header: header(&mut leader),
        body: Body::Split(Split {
            at: key(1),
            child: ShardId(7),
            left: Size::default(),
            replicas: replicas(11),
        }),
    };
    let entry = leader.entry(Payload::Command(command.encode()));
    machine.apply(&[entry]).unwrap();
    engine.clears.store(false, Ordering::Relaxed);
    assert_eq!(machine.take_seeded(), []);
    assert_eq!(slots.clear_list().unwrap().len(), 1);
    while slots.clear().unwrap() {}
    assert_eq!(slots.clear_list().unwrap(), []);
}
