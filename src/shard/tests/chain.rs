//! The hash of all that was applied: it tells replicas apart that did not do the same.

use crate::shard::Quarantined;
use crate::shard::ReadError;
use crate::shard::quarantine;
use crate::types::shard::Link;

use super::*;

fn puts(leader: &mut Leader, count: u64) -> Vec<LogEntry> {
    let entries = (0..count).map(|number| {
        leader.wall_ms += 1;
        let operation = Operation::Put {
            key: key((number % 7) as u8),
            value: counted(number),
        };
        let write = leader.sent(WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![operation],
        });
        leader.command(vec![write]).0
    });
    entries.collect()
}

fn chain(machine: &ShardMachine) -> Link {
    machine.reader().chain().unwrap()
}

#[test]
fn an_entry_that_did_something_else_on_one_replica_is_never_forgotten() {
    let mut leader = Leader::new();
    let (engine, other_engine) = (memory(), memory());
    let (mut one, mut other) = (seeded(engine), seeded(other_engine.clone()));
    for entry in puts(&mut leader, 20) {
        one.apply(std::slice::from_ref(&entry)).unwrap();
        other.apply(&[entry]).unwrap();
    }
    assert_eq!(chain(&one), chain(&other));
    // A key is lost behind the other one's back.
    let slot = other.reader().row().slot_of(&key(3)).unwrap();
    let mut loss = Batch::default();
    loss.delete(layout::newest(slot, &key(3)));
    other_engine.write(loss).unwrap();
    leader.wall_ms += 1;
    let delete = leader.sent(WriteKind::Keys {
        conditions: Vec::new(),
        operations: vec![Operation::Delete { key: key(3) }],
    });
    let (entry, _) = leader.command(vec![delete]);
    one.apply(std::slice::from_ref(&entry)).unwrap();
    other.apply(&[entry]).unwrap();
    assert_ne!(chain(&one), chain(&other));
    for entry in puts(&mut leader, 50) {
        one.apply(std::slice::from_ref(&entry)).unwrap();
        other.apply(&[entry]).unwrap();
    }
    assert_eq!(chain(&one).position, chain(&other).position);
    assert_ne!(chain(&one).chain, chain(&other).chain);
}

#[test]
fn an_entry_that_says_something_else_on_one_replica_is_told_by_what_was_stored() {
    let mut leader = Leader::new();
    let (mut one, mut other) = (seeded(memory()), seeded(memory()));
    let entry = puts(&mut leader, 1).remove(0);
    let Payload::Command(bytes) = &entry.payload else {
        panic!("a put is a command");
    };
    // The last byte of the value, as it was flipped in a leader's memory.
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let flipped = LogEntry {
        payload: Payload::Command(bytes.into()),
        ..entry.clone()
    };
    let (answer, same) = (
        one.apply(&[entry]).unwrap(),
        other.apply(&[flipped]).unwrap(),
    );
    assert_eq!(answer, same);
    assert_ne!(chain(&one), chain(&other));
}

#[test]
fn what_one_replica_has_collected_and_another_has_not_makes_no_difference() {
    let mut leader = Leader::new();
    let (mut one, mut other) = (seeded(memory()), seeded(memory()));
    let mut apply = |entry: LogEntry, one: &mut ShardMachine| {
        one.apply(std::slice::from_ref(&entry)).unwrap();
        other.apply(&[entry]).unwrap();
        assert_eq!(one.reader().chain(), other.reader().chain());
    };
    for entry in puts(&mut leader, 7) {
        apply(entry, &mut one);
    }
    let delete = leader.sent(WriteKind::Keys {
        conditions: Vec::new(),
        operations: vec![Operation::Delete { key: key(3) }],
    });
    apply(leader.command(vec![delete]).0, &mut one);
    leader.wall_ms += 10 * HISTORY_MS;
    let put = puts(&mut leader, 1).remove(0);
    apply(put, &mut one);
    while one.collect().unwrap() {}
    // The tombstone is moved aside on one replica, and was collected on the other.
    let slot = one.reader().row().slot_of(&key(3)).unwrap();
    let tombstone = one.reader().engine().get(&layout::newest(slot, &key(3)));
    assert_eq!(tombstone.unwrap(), None);
    for entry in puts(&mut leader, 7) {
        apply(entry, &mut one);
    }
}

#[test]
fn replicas_that_are_not_at_one_position_have_one_in_common() {
    let mut leader = Leader::new();
    let entries = puts(&mut leader, 700);
    let (mut ahead, mut behind) = (seeded(memory()), seeded(memory()));
    ahead.apply(&entries).unwrap();
    for entry in &entries[..600] {
        behind.apply(std::slice::from_ref(entry)).unwrap();
    }
    let common: Vec<Link> = ahead.reader().chains();
    let common = common
        .into_iter()
        .filter(|link| behind.reader().chains().contains(link));
    let positions: Vec<u64> = common.map(|link| link.position.index).collect();
    assert_eq!(positions, [256, 512]);
    assert_eq!(
        ahead.reader().chains().last().copied(),
        ahead.reader().chain()
    );
}

#[test]
fn a_snapshot_brings_its_hash_and_forgets_the_way_to_the_old_state() {
    let mut leader = Leader::new();
    let entries = puts(&mut leader, 300);
    let (mut full, mut late) = (seeded(memory()), seeded(memory()));
    full.apply(&entries).unwrap();
    late.apply(&entries[..280]).unwrap();
    drain(&mut *full.snapshot().unwrap(), &mut late).unwrap();
    assert_eq!(late.reader().chains(), [chain(&full)]);
}

/// What is stored for each half of the keys, as the first of the replicas asks for it.
fn portions(asked: &ShardMachine, others: &[&ShardMachine]) -> Vec<Vec<Result<u64, String>>> {
    let mut from = Key::new();
    let mut found = Vec::new();
    while let Some(portion) = asked.reader().portion_from(&from, 2_000).unwrap() {
        let machines = [&[asked], others].concat();
        let hashes = machines.iter().map(|machine| {
            let hashed = machine.reader().hash_portion(&portion);
            hashed
                .map(|hashed| hashed.hash)
                .map_err(|error| error.to_string())
        });
        found.push(hashes.collect());
        match portion.range.end {
            Some(end) => from = end,
            None => break,
        }
    }
    found
}

#[test]
fn replicas_at_different_positions_have_stored_the_same_as_of_one_stamp() {
    let mut leader = Leader::new();
    let (mut asked, mut ahead, mut late) = (
        seeded(memory()),
        seeded_in_two_pieces(memory()),
        seeded(memory()),
    );
    for round in 0..30 {
        let entries = puts(&mut leader, 9 + round);
        asked.apply(&entries).unwrap();
        late.apply(&entries).unwrap();
        for entry in &entries {
            ahead.apply(std::slice::from_ref(entry)).unwrap();
        }
        collect_some(&mut late, 3);
        let more = puts(&mut leader, 5);
        ahead.apply(&more).unwrap();
        for hashes in portions(&asked, &[&ahead, &late]) {
            assert!(
                hashes.iter().all(|hash| hash.is_ok() && *hash == hashes[0]),
                "{hashes:?}"
            );
        }
        asked.apply(&more).unwrap();
        late.apply(&more).unwrap();
        // It asks for what the late one has not applied.
        let lead = puts(&mut leader, 1);
        asked.apply(&lead).unwrap();
        let hashes = portions(&asked, &[&late]);
        assert!(hashes.iter().all(|hashes| hashes[1].is_err()), "{hashes:?}");
        ahead.apply(&lead).unwrap();
        late.apply(&lead).unwrap();
    }
}

#[test]
fn a_stored_bit_that_was_flipped_is_in_the_hash_of_its_portion() {
    let mut leader = Leader::new();
    let engine = memory();
    let (mut whole, mut rotten) = (seeded(memory()), seeded(engine.clone()));
    let entries = puts(&mut leader, 200);
    whole.apply(&entries).unwrap();
    rotten.apply(&entries).unwrap();
    let slot = rotten.reader().row().slot_of(&key(3)).unwrap();
    let place = layout::newest(slot, &key(3));
    let mut record = engine.get(&place).unwrap().unwrap();
    *record.last_mut().unwrap() ^= 1;
    let mut flip = Batch::default();
    flip.put(place, record);
    engine.write(flip).unwrap();
    let hashes = portions(&whole, &[&rotten]);
    let differing = hashes.iter().filter(|hashes| hashes[0] != hashes[1]);
    assert_eq!(differing.count(), 1, "{hashes:?}");
    // Nobody has done anything else, so what was applied does not tell.
    assert_eq!(chain(&whole), chain(&rotten));
}

#[test]
fn a_quarantined_replica_answers_nothing_and_stays_so_after_a_restart() {
    let mut leader = Leader::new();
    let engine = memory();
    let mut machine = seeded(engine.clone());
    machine.apply(&puts(&mut leader, 20)).unwrap();
    let reader = machine.reader();
    assert!(reader.get(&key(3), None).is_ok());
    let quarantined = Quarantined {
        replica: REPLICA,
        shard: ShardId(1),
    };
    let mut begun = machine.snapshot().unwrap();
    assert!(begun.next().unwrap().is_some());
    reader.quarantine();
    quarantine::mark(&*engine, quarantined).unwrap();
    // Nor does it fill another one, whenever that was begun.
    begun.next().unwrap_err();
    machine.snapshot().unwrap().next().unwrap_err();
    let refused = |reader: &ShardReader| {
        let get = reader.get(&key(3), None).map(drop);
        let many = reader.get_many(&[key(3)], None).map(drop);
        let scan = scan_cut(reader).map(drop);
        assert!(matches!(get, Err(ReadError::Quarantined)), "{get:?}");
        assert!(matches!(many, Err(ReadError::Quarantined)), "{many:?}");
        assert!(scan.is_none());
    };
    refused(&reader);
    // It goes on as a member of its group.
    machine.apply(&puts(&mut leader, 5)).unwrap();
    engine.flush().unwrap();
    refused(&reopened(engine.clone()).reader());
    assert_eq!(quarantine::marked(&*engine).unwrap(), [quarantined]);
    quarantine::unmark(&*engine, REPLICA).unwrap();
    assert_eq!(quarantine::marked(&*engine).unwrap(), []);
}
