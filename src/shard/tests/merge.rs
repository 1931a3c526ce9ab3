//! Shards that are split and become one again: together they are one model, whatever was lost in a crash,
//! however far a replica of a frozen shard has come, and whichever attempt comes to something.

use crate::machine::Need;
use crate::shard::destroy;
use crate::shard::empty;
use crate::shard::merge;
use crate::shard::merge_command::Absorb;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::shard::merge_command::Prepare;
use crate::shard::merge_command::Unfreeze;
use crate::shard::quarantine;
use crate::shard::read::ReadError;
use crate::shard::row::Frozen;
use crate::shard::row::Part;
use crate::shard::tests::split::Node;
use crate::shard::tests::split::Run;
use crate::shard::tests::split::put;
use crate::shard::tests::split::stored_in;
use crate::types::shard::Attempt;
use crate::types::shard::Chain;
use crate::types::shard::Fate;

use super::*;

fn merge_outcome(answer: &[u8]) -> MergeOutcome {
    match Answer::decode(answer).unwrap() {
        Answer::Merge(outcome) => outcome,
        other => panic!("a step of a merge was answered {other:?}"),
    }
}

impl Run {
    fn merge_step(&mut self, replica: ReplicaId, step: MergeStep) -> MergeOutcome {
        let header = self.header();
        merge_outcome(&self.node.apply(replica, header, Body::Merge(step)))
    }

    fn header(&mut self) -> Header {
        let stamp = self.leader.stamp(1);
        Header {
            stamp,
            ceiling: stamp,
            ..Header::default()
        }
    }

    fn writes(&mut self, replica: ReplicaId, write: Write) -> (Bytes, Timestamp) {
        let header = self.header();
        let answer = self.node.apply(replica, header, Body::Writes(vec![write]));
        (answer, header.stamp)
    }

    /// The replicas of a shard and of its right neighbour.
    fn neighbours(&self, of: &Key) -> Option<(ReplicaId, ReplicaId)> {
        let left = self.node.replica_of(of);
        let end = self.node.row(left).descriptor.range.end.clone()?;
        Some((left, self.node.replica_of(&end)))
    }

    fn prepare(&mut self, left: ReplicaId, right: ReplicaId) -> Attempt {
        let right = self.node.row(right).descriptor.clone();
        let over = Vec::new();
        match self.merge_step(left, MergeStep::Prepare(Prepare { right, over })) {
            MergeOutcome::Prepared { attempt } => attempt,
            other => panic!("not prepared: {other:?}"),
        }
    }

    /// Its leader may have closed what it has not stamped.
    fn freeze(&mut self, right: ReplicaId, attempt: Attempt) -> Absorb {
        let header = Header {
            ceiling: self.leader.last.plus(9),
            ..self.header()
        };
        let body = Body::Merge(MergeStep::Freeze(attempt));
        let MergeOutcome::Frozen {
            right,
            position,
            above,
        } = merge_outcome(&self.node.apply(right, header, body))
        else {
            panic!("it is alone, and the attempt is a new one")
        };
        self.leader.last = self.leader.last.max(above);
        Absorb {
            attempt,
            right,
            frozen: position,
            above,
        }
    }

    fn absorb(&mut self, left: ReplicaId, absorb: Absorb) -> MergeOutcome {
        self.merge_step(left, MergeStep::Absorb(absorb))
    }

    fn give_up(&mut self, left: ReplicaId, right: ReplicaId, attempt: Attempt) {
        let cancelled = self.merge_step(left, MergeStep::Cancel(attempt));
        assert_eq!(cancelled, MergeOutcome::Cancelled);
        let settled = self.node.row(left).applied.position.unwrap();
        let unfreeze = MergeStep::Unfreeze(Unfreeze { attempt, settled });
        let frozen = self.node.row(right).frozen().is_some();
        let expected = match frozen {
            true => MergeOutcome::Unfrozen,
            false => MergeOutcome::Settled,
        };
        assert_eq!(self.merge_step(right, unfreeze), expected);
    }

    /// A merge of the shard of a key with the one behind it, or an attempt that comes to nothing. Writes go on to
    /// arrive.
    fn merge(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (kind, first, second, number) = step;
        let Some((left, right)) = self.neighbours(&key(first)) else {
            return Ok(());
        };
        let (left_row, right_row) = (self.node.row(left), self.node.row(right));
        let attempt = self.prepare(left, right);
        let right_id = right_row.descriptor.id;
        let fate = |run: &Run| merge::fate(&run.node.row(left), &attempt, right_id);
        prop_assert_eq!(fate(self), Fate::Open);
        if number % 5 == 0 {
            self.give_up(left, right, attempt);
            prop_assert_eq!(fate(self), Fate::Cancelled);
            return Ok(());
        }
        // The left one goes on to write.
        let write = self
            .leader
            .write((kind, first, second, number), &self.model);
        if self.node.replica_of(write.first_key()) == left {
            let (answer, stamp) = self.writes(left, write.clone());
            let row = self.node.row(left);
            check_answers(&mut self.model, &answer, &[(write, stamp)], &row)?;
        }
        let absorb = self.freeze(right, attempt);
        self.check_frozen(right, number)?;
        if number % 5 == 1 {
            self.give_up(left, right, attempt);
            prop_assert_eq!(fate(self), Fate::Cancelled);
            prop_assert_eq!(self.absorb(left, absorb), MergeOutcome::Settled);
            return Ok(());
        }
        let MergeOutcome::Absorbed { left: merged } = self.absorb(left, absorb) else {
            panic!("it is prepared and frozen")
        };
        prop_assert_eq!(fate(self), Fate::Absorbed);
        let row = self.node.row(left);
        prop_assert_eq!(&merged, &row.descriptor);
        prop_assert_eq!(&merged.range.start, &left_row.descriptor.range.start);
        prop_assert_eq!(&merged.range.end, &right_row.descriptor.range.end);
        prop_assert!(left_row.descriptor.epoch.is_before(merged.epoch));
        prop_assert!(merged.epoch.bounds > right_row.descriptor.epoch.bounds);
        prop_assert!(!self.node.machines.contains_key(&right));
        prop_assert_eq!(row.frozen(), None);
        Ok(())
    }

    /// It answers nothing that is final, is not read as of now, and what comes to its log changes nothing.
    fn check_frozen(&mut self, right: ReplicaId, number: u16) -> Result<(), TestCaseError> {
        let before = self.node.row(right);
        let start = before.descriptor.range.start.clone();
        let write = self.leader.sent(put(start.clone(), b"never here"));
        for _ in 0..number % 3 {
            let (answer, _) = self.writes(right, write.clone());
            prop_assert_eq!(outcomes(&answer), [WriteOutcome::Frozen]);
        }
        let reader = self.node.machines[&right].reader();
        prop_assert!(matches!(reader.get(&start, None), Err(ReadError::Frozen)));
        prop_assert!(reader.get(&start, Some(before.last_stamp)).is_ok());
        let after = self.node.row(right);
        let unchanged = Row {
            applied: before.applied.clone(),
            chain: before.chain,
            ..(*after).clone()
        };
        prop_assert_eq!(&unchanged, &*before);
        Ok(())
    }

    fn merge_or_step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step.0 % 7 {
            1 | 2 => {
                self.leader.wall_ms += u64::from(step.3 % 23);
                self.merge(step)
            }
            _ => self.step(step),
        }
    }
}

fn merges_against_the_model(engine: Arc<dyn Engine>, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut run = Run::new(engine);
    for step in steps {
        run.merge_or_step(*step)?;
        run.collect_some(step.3 % 5);
        run.check_reads()?;
    }
    prop_assert_eq!(audited(&run.node), Vec::<String>::new());
    // All go: nothing of them is left.
    let pieces: Vec<Piece> = run.node.machines.values().fold(Vec::new(), |all, machine| {
        [all, machine.reader().row().pieces.clone()].concat()
    });
    for replica in std::mem::take(&mut run.node.machines).into_keys() {
        destroy(&run.node.engine, &run.node.slots, replica).unwrap();
    }
    while run.node.slots.clear().unwrap() {}
    prop_assert_eq!(stored_in(&*run.node.engine, &pieces), 0);
    let (start, end) = layout::slots();
    prop_assert_eq!(run.node.engine.scan(&start, &end, false).count(), 0);
    prop_assert_eq!(crate::shard::replicas(&*run.node.engine).unwrap(), []);
    Ok(())
}

fn audited(node: &Node) -> Vec<String> {
    let clear_list = node.slots.clear_list().unwrap();
    let audit = crate::shard::audit::audit(&*node.engine, &clear_list, &mut |_| {}).unwrap();
    assert_eq!(audit.stray, 0);
    audit.problems
}

/// Chains, sizes and everything else that equal replicas have in common.
fn equals(node: &Node) -> BTreeMap<ReplicaId, (u64, Chain, Row)> {
    let hashes = node.hashes().into_iter();
    let rows = hashes.map(|(id, hash)| {
        let row = node.row(id);
        (id, (hash, row.chain, row.without_places()))
    });
    rows.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn shards_that_are_split_and_merged_answer_together_as_the_model_does(steps in steps(60)) {
        merges_against_the_model(memory(), &steps)?;
    }

    /// A crash takes what was not flushed, down to any batch; snapshots are as of their beginning.
    #[test]
    fn what_a_crash_takes_of_merges_is_replayed(
        steps in steps(60), begin in any::<u8>(), flush in any::<u8>(), kept in 0..60usize
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
            run.merge_or_step(*step)?;
            run.collect_some(step.3 % 6);
        }
        for (mut source, then) in begun {
            let other: Arc<dyn Engine> = memory();
            let slots = Slots::open(other.clone()).unwrap();
            let descriptor = ShardDescriptor {
                epoch: Epoch::default(),
                ..run.node.row(REPLICA).descriptor.clone()
            };
            prop_assert!(empty(&other, &slots, REPLICA, descriptor).unwrap());
            let mut target = open_in(&other, &slots, REPLICA);
            drain(&mut *source, &mut target).unwrap();
            prop_assert_eq!(hash(&target), then);
        }
        let before = equals(&run.node);
        let logs = std::mem::take(&mut run.node.logs);
        drop(run.node);
        engine.crash(kept);
        run.node = Node::recover(engine, logs);
        prop_assert_eq!(equals(&run.node), before);
        prop_assert_eq!(audited(&run.node), Vec::<String>::new());
        run.check_reads()?;
    }

    /// Another node applies the same logs in another order: a frozen shard is at its freeze there when it is
    /// absorbed, and was further here.
    #[test]
    fn replicas_are_equal_wherever_the_right_one_had_come_to(steps in steps(60)) {
        let mut run = Run::new(memory());
        for step in &steps {
            run.merge_or_step(*step)?;
            run.collect_some(step.3 % 6);
        }
        let other = memory();
        drop(seeded(other.clone()));
        let other = Node::recover(other, run.node.logs.clone());
        prop_assert_eq!(equals(&other), equals(&run.node));
    }

    /// Another node is behind, and gets snapshots of some shards instead of what it lacks.
    #[test]
    fn a_snapshot_takes_the_place_of_all_that_it_has_absorbed(
        steps in steps(60), behind in any::<u8>(), logs in any::<u8>()
    ) {
        let mut run = Run::new(memory());
        for step in &steps {
            run.merge_or_step(*step)?;
        }
        let engine = memory();
        drop(seeded(engine.clone()));
        let mut other = Node::reopened(engine, run.node.logs.clone());
        let entries = run.node.logs[&REPLICA].len() as u64;
        other.catch_up(REPLICA, Some(1 + entries * u64::from(behind) / 256));
        // Where there is room a new one is made, as the first message of its group does it.
        let living: Vec<ReplicaId> = run.node.machines.keys().copied().collect();
        for _ in 0..living.len() {
            destroy_orphans(&mut other, &run.node);
            for replica in &living {
                let descriptor = run.node.row(*replica).descriptor.clone();
                let holder = crate::shard::holder(&*other.engine, &descriptor.range).unwrap();
                if !other.machines.contains_key(replica) && holder.is_none() {
                    empty(&other.engine, &other.slots, *replica, descriptor).unwrap();
                    let machine = open_in(&other.engine, &other.slots, *replica);
                    other.machines.insert(*replica, machine);
                }
                let Some(machine) = other.machines.get(replica) else {
                    continue;
                };
                let has_begun = machine.applied().position.is_some();
                if has_begun && logs >> (replica.0 / 10 % 8) & 1 == 1 {
                    other.catch_up(*replica, None);
                } else {
                    let source = &mut *run.node.machines[replica].snapshot().unwrap();
                    install(source, &mut other, *replica);
                }
            }
        }
        prop_assert_eq!(equals(&other), equals(&run.node));
        while other.slots.clear().unwrap() {}
        prop_assert_eq!(audited(&other), Vec::<String>::new());
    }
}

/// What was absorbed elsewhere ends here on the word of the shard that has its keys.
fn destroy_orphans(node: &mut Node, knows: &Node) {
    let shards = |node: &Node| -> Vec<ShardDescriptor> {
        let rows = node.machines.keys().map(|id| node.row(*id));
        rows.map(|row| row.descriptor.clone()).collect()
    };
    for absorber in knows.machines.keys() {
        let row = knows.row(*absorber);
        let absorbed = &row.merge.absorbed;
        if !merge::are_left_over(&row.descriptor, absorbed, &shards(node)) {
            continue;
        }
        let is_absorbed = |id: &ReplicaId| absorbed.contains(&node.row(*id).descriptor.id);
        let orphans = node.machines.keys().copied().filter(is_absorbed);
        for orphan in orphans.collect::<Vec<_>>() {
            node.machines.remove(&orphan);
            destroy(&node.engine, &node.slots, orphan).unwrap();
        }
    }
}

/// Those that it displaces are stopped first.
fn install(source: &mut dyn SnapshotSource, node: &mut Node, replica: ReplicaId) {
    let mut sink = node.machines[&replica].receiver().begin().unwrap();
    while let Some(chunk) = source.next().unwrap() {
        sink.chunk(chunk).unwrap();
    }
    let received = sink.finish().unwrap();
    let displaced = node.machines[&replica].displaces(&received).unwrap();
    for displaced in &displaced {
        assert!(node.machines.remove(displaced).is_some());
    }
    let machine = node.machines.get_mut(&replica).unwrap();
    machine.install(source.applied(), received).unwrap();
    assert_eq!(machine.take_ended(), displaced);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn merges_on_disk_too(steps in steps(50)) {
        let directory = tempfile::tempdir().unwrap();
        merges_against_the_model(sled_in(&directory), &steps)?;
    }
}

/// Two shards with a key in each: `k\x01` and `k\x03`, parted at `k\x03`.
fn two_shards(engine: Arc<dyn Engine>) -> (Run, ReplicaId) {
    let mut run = Run::new(engine);
    for number in [1, 3] {
        let write = run.leader.sent(put(key(number), b"1"));
        run.leader.wall_ms += 1;
        run.writes(REPLICA, write);
    }
    run.node.split(&mut run.leader, REPLICA, key(3));
    let right = run.node.replica_of(&key(3));
    (run, right)
}

#[test]
fn an_absorption_waits_for_the_right_replica_and_says_for_which() {
    let engine = memory();
    let (mut run, right) = two_shards(engine.clone());
    engine.flush().unwrap();
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    let (frozen, right_id) = (absorb.frozen, absorb.right.id);
    run.absorb(REPLICA, absorb);
    let logs = run.node.logs.clone();
    let after = equals(&run.node);
    drop(run);
    engine.crash(0);
    let mut node = Node::reopened(engine, logs.clone());
    let applied = node.row(REPLICA).applied.position.unwrap().index;
    let missing = logs[&REPLICA].iter();
    let missing = missing.filter(|entry| entry.position.index > applied);
    let missing: Vec<LogEntry> = missing.cloned().collect();
    let machine = node.machines.get_mut(&REPLICA).unwrap();
    let need = Need {
        shard: right_id,
        replica: Some(right),
        position: frozen,
    };
    // What comes before it is applied, and asking again changes nothing.
    for answers in [1, 0] {
        let applied = machine.applied().position.unwrap().index;
        let behind = missing.iter().filter(|it| it.position.index > applied);
        let behind: Vec<LogEntry> = behind.cloned().collect();
        assert_eq!(machine.apply(&behind).unwrap().len(), answers);
        assert_eq!(machine.take_need(), Some(need));
        assert_eq!(machine.take_need(), None);
        assert_eq!(machine.take_ended(), []);
    }
    node.catch_up(REPLICA, None);
    assert_eq!(equals(&node), after);
}

/// Otherwise one would be stopped for a merge that does not come.
#[test]
fn what_is_refused_waits_for_nobody() {
    let (mut run, right) = two_shards(memory());
    let attempt = run.prepare(REPLICA, right);
    let right_row = run.node.row(right);
    // It was never frozen, and the left one has given up.
    let absorb = Absorb {
        attempt,
        right: right_row.descriptor.clone(),
        frozen: Position { term: 1, index: 9 },
        above: Timestamp::ZERO,
    };
    run.give_up(REPLICA, right, attempt);
    assert_eq!(run.absorb(REPLICA, absorb), MergeOutcome::Settled);
}

#[test]
fn a_node_without_the_right_shard_needs_more_than_its_log() {
    let (mut run, right) = two_shards(memory());
    let attempt = run.prepare(REPLICA, right);
    let mut absorb = run.freeze(right, attempt);
    absorb.right.replicas.retain(|replica| replica.id != right);
    let (shard, position) = (absorb.right.id, absorb.frozen);
    let command = Command {
        header: run.header(),
        body: Body::Merge(MergeStep::Absorb(absorb)),
    };
    let last = run.node.row(REPLICA).applied.position.unwrap();
    let entry = LogEntry {
        position: Position {
            index: last.index + 1,
            ..last
        },
        payload: Payload::Command(command.encode()),
    };
    let machine = run.node.machines.get_mut(&REPLICA).unwrap();
    assert_eq!(machine.apply(&[entry]).unwrap().len(), 0);
    let need = Need {
        shard,
        replica: None,
        position,
    };
    assert_eq!(machine.take_need(), Some(need));
}

#[test]
fn what_a_quarantined_replica_has_got_wrong_the_one_that_absorbs_it_does_not_serve() {
    let engine = memory();
    let (mut run, right) = two_shards(engine.clone());
    let quarantined = quarantine::Quarantined {
        replica: right,
        shard: run.node.row(right).descriptor.id,
    };
    quarantine::mark(&*engine, quarantined).unwrap();
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    assert!(run.node.machines[&REPLICA].reader().is_quarantined());
    let marked = quarantine::marked(&*engine).unwrap();
    let here = quarantine::Quarantined {
        replica: REPLICA,
        shard: ShardId(1),
    };
    assert_eq!(marked, [here]);
}

#[test]
fn a_snapshot_that_displaces_a_quarantined_replica_leaves_no_mark_of_it() {
    let (mut run, right) = two_shards(memory());
    let engine = memory();
    drop(seeded(engine.clone()));
    let mut behind = Node::reopened(engine.clone(), run.node.logs.clone());
    behind.catch_up(REPLICA, None);
    let quarantined = quarantine::Quarantined {
        replica: right,
        shard: run.node.row(right).descriptor.id,
    };
    quarantine::mark(&*engine, quarantined).unwrap();
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    let source = &mut *run.node.machines[&REPLICA].snapshot().unwrap();
    install(source, &mut behind, REPLICA);
    assert!(!behind.machines.contains_key(&right));
    assert!(!behind.machines[&REPLICA].reader().is_quarantined());
    assert_eq!(quarantine::marked(&*engine).unwrap(), []);
}

#[test]
fn an_ended_replica_is_marked_until_the_log_says_that_it_is_gone() {
    let engine = memory();
    let (mut run, right) = two_shards(engine.clone());
    let reader = run.node.machines[&right].reader();
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    let stamp = Some(reader.last_stamp());
    assert!(matches!(reader.get(&key(3), stamp), Err(ReadError::Ended)));
    assert_eq!(crate::shard::destroyed(&*engine).unwrap(), [right]);
    assert_eq!(run.node.slots.clear_list().unwrap(), []);
    // What was one slot's is one piece again.
    assert_eq!(run.node.row(REPLICA).pieces.len(), 1);
}

#[test]
fn a_pass_of_collection_begins_anew_over_what_was_absorbed() {
    let (mut run, right) = two_shards(memory());
    for round in 0..2_500 {
        run.leader.wall_ms += u64::from(round == 1_250) * 10 * HISTORY_MS;
        for (replica, number) in [(REPLICA, 1), (right, 3)] {
            let write = run.leader.sent(put(key(number), b"value"));
            run.writes(replica, write);
        }
    }
    let history = |run: &Run, number| {
        let row = run.node.row(run.node.replica_of(&key(number)));
        let only = KeyRange {
            start: key(number),
            end: Some(key(number + 1)),
        };
        let piece = &row.pieces_in(&only)[0];
        let (start, end) = layout::family(piece.slot, Family::History, &piece.range);
        run.node.engine.scan(&start, &end, false).count()
    };
    let before = [1, 3].map(|number| history(&run, number));
    let left = run.node.machines.get_mut(&REPLICA).unwrap();
    assert!(left.collect().unwrap() && left.has_pass());
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    let left = run.node.machines.get_mut(&REPLICA).unwrap();
    assert!(!left.has_pass());
    while left.collect().unwrap() {}
    let after = [1, 3].map(|number| history(&run, number));
    assert!(after[0] < before[0] && after[1] < before[1], "{after:?}");
}

#[test]
fn a_new_replica_takes_no_state_from_before_it_was_made() {
    let (mut run, right) = two_shards(memory());
    let mut early = run.node.machines[&REPLICA].snapshot().unwrap();
    let attempt = run.prepare(REPLICA, right);
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    let other: Arc<dyn Engine> = memory();
    let slots = Slots::open(other.clone()).unwrap();
    let descriptor = run.node.row(REPLICA).descriptor.clone();
    empty(&other, &slots, REPLICA, descriptor).unwrap();
    let mut target = open_in(&other, &slots, REPLICA);
    let refused = drain(&mut *early, &mut target).unwrap_err().to_string();
    assert!(refused.contains("the shard has changed"), "{refused}");
    let mut later = run.node.machines[&REPLICA].snapshot().unwrap();
    drain(&mut *later, &mut target).unwrap();
}

fn row_of(run: &Run, replica: ReplicaId) -> Row {
    (*run.node.row(replica)).clone()
}

#[test]
fn a_merged_shard_knows_no_less_and_promises_no_more_than_either_half() {
    let (run, right) = two_shards(memory());
    let stamp = Timestamp::from_wall;
    let floors = |history, outcomes| Floors {
        history: stamp(history),
        outcomes: stamp(outcomes),
    };
    let left = Row {
        last_stamp: stamp(50),
        ceiling: stamp(60),
        ceiling_term: 3,
        last_outcome: stamp(10),
        floors: floors(5, 7),
        history_retention_ms: 40,
        retry_window_ms: 20,
        size: Size { keys: 1, bytes: 10 },
        ..row_of(&run, REPLICA)
    };
    let mut right = Row {
        last_stamp: stamp(70),
        ceiling: stamp(40),
        ceiling_term: 9,
        last_outcome: stamp(12),
        floors: floors(6, 4),
        history_retention_ms: 30,
        retry_window_ms: 30,
        size: Size { keys: 2, bytes: 20 },
        ..row_of(&run, right)
    };
    right.descriptor.epoch.bounds = 17;
    right.merge.absorbed = vec![ShardId(90), ShardId(91)];
    let frozen = Frozen {
        attempt: Attempt::default(),
        position: Position::default(),
        chain: Chain(5),
    };
    let merged = merge::merged(&left, &right, &frozen);
    assert_eq!((merged.last_stamp, merged.ceiling), (stamp(70), stamp(60)));
    assert_eq!((merged.ceiling_term, merged.last_outcome), (3, stamp(12)));
    assert_eq!(merged.floors, floors(6, 7));
    assert_eq!(
        (merged.history_retention_ms, merged.retry_window_ms),
        (40, 30)
    );
    assert_eq!(merged.size, Size { keys: 3, bytes: 30 });
    assert_eq!(
        merged.descriptor.epoch,
        Epoch {
            conf: 1,
            bounds: 18
        }
    );
    let right_id = right.descriptor.id;
    assert_eq!(merged.merge.absorbed, [ShardId(90), ShardId(91), right_id]);
}

/// One that was forgotten would be told that it was not absorbed.
#[test]
fn a_shard_that_remembers_much_absorbs_no_more_before_some_of_it_is_over() {
    let (mut run, right) = two_shards(memory());
    let step = |run: &mut Run, over: &[u64]| {
        let right = run.node.row(right).descriptor.clone();
        let over = over.iter().copied().map(ShardId).collect();
        run.merge_step(REPLICA, MergeStep::Prepare(Prepare { right, over }))
    };
    let mut row = row_of(&run, REPLICA);
    row.merge.absorbed = (100..).map(ShardId).take(merge::ABSORBED_MAX).collect();
    let mut batch = Batch::default();
    batch.put(layout::row(REPLICA), row.encode());
    run.node.engine.write(batch).unwrap();
    let machine = open_in(&run.node.engine, &run.node.slots, REPLICA);
    run.node.machines.insert(REPLICA, machine);
    for over in [&[][..], &[1, 99]] {
        let outcome = step(&mut run, over);
        assert!(
            matches!(outcome, MergeOutcome::Refused { .. }),
            "{outcome:?}"
        );
    }
    let MergeOutcome::Prepared { attempt } = step(&mut run, &[100, 102]) else {
        panic!("it has room by now")
    };
    let absorb = run.freeze(right, attempt);
    run.absorb(REPLICA, absorb);
    let absorbed = row_of(&run, REPLICA).merge.absorbed;
    assert_eq!(absorbed.len(), merge::ABSORBED_MAX - 1);
    assert_eq!(absorbed[..2], [ShardId(101), ShardId(103)]);
}

#[test]
fn what_became_of_an_attempt_is_told_by_whoever_has_the_left_shard() {
    let (mut run, right) = two_shards(memory());
    let early = row_of(&run, REPLICA);
    let attempt = run.prepare(REPLICA, right);
    let right_id = run.node.row(right).descriptor.id;
    let fate = |row: &Row| merge::fate(row, &attempt, right_id);
    assert_eq!(fate(&early), Fate::Unknown);
    assert_eq!(fate(&row_of(&run, REPLICA)), Fate::Open);
    assert_eq!(fate(&row_of(&run, right)), Fate::Unknown);
    run.give_up(REPLICA, right, attempt);
    let mut row = row_of(&run, REPLICA);
    assert_eq!(fate(&row), Fate::Cancelled);
    row.merge.absorbed = vec![right_id];
    assert_eq!(fate(&row), Fate::Absorbed);
    // Another one has absorbed the left shard, and what that has known.
    row.descriptor.id = ShardId(99);
    assert_eq!(fate(&row), Fate::Absorbed);
    row.merge.absorbed = vec![ShardId(1)];
    assert_eq!(fate(&row), Fate::Cancelled);
    row.merge.absorbed = Vec::new();
    assert_eq!(fate(&row), Fate::Unknown);
    // A later attempt says that this one has come to nothing.
    let later = run.prepare(REPLICA, right);
    assert!(later > attempt);
    assert_eq!(fate(&row_of(&run, REPLICA)), Fate::Cancelled);
    assert!(matches!(run.node.row(REPLICA).merge.part, Part::Left(_)));
}
