//! What is cleared, and in what portions.

use super::key;
use super::memory;
use crate::codec::layout;
use crate::codec::layout::Family;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::MemoryEngine;
use crate::shard::Slots;
use crate::shard::row::Piece;
use crate::shard::slots::put_on_clear_list;
use crate::shard::slots::take_off_clear_list;
use crate::types::KeyRange;

#[test]
fn clearing_goes_by_small_portions() {
    let portions = |keys: u16, bytes: usize| {
        let engine = memory();
        let slots = Slots::open(engine.clone()).unwrap();
        let slot = slots.fresh().unwrap().slot();
        let mut batch = Batch::default();
        for number in 0..keys {
            let place = layout::newest(slot, &number.to_be_bytes());
            batch.put(place, vec![1; bytes]);
        }
        engine.write(batch).unwrap();
        let (start, end) = layout::family(slot, Family::Newest, &KeyRange::ALL);
        let mut portions = Vec::new();
        let mut left = usize::from(keys);
        while slots.clear().unwrap() {
            let now = Engine::scan(&*engine, &start, &end, false).count();
            portions.push(left - now);
            left = now;
        }
        assert_eq!(slots.clear_list().unwrap(), []);
        portions
    };
    assert_eq!(portions(300, 1), [256, 44, 0]);
    assert_eq!(portions(5, 100 * 1024), [3, 2, 0]);
}

#[test]
fn pieces_of_one_slot_are_held_and_cleared_apart() {
    let engine = memory();
    let slots = Slots::open(engine.clone()).unwrap();
    let slot = slots.fresh().unwrap().slot();
    let (left, right) = KeyRange::ALL.split_at(key(3)).unwrap();
    let [left, right] = [left, right].map(|range| Piece { range, slot });
    let put = |engine: &MemoryEngine| {
        let mut batch = Batch::default();
        for number in 0..6 {
            batch.put(layout::newest(slot, &key(number)), vec![1]);
        }
        engine.write(batch).unwrap();
    };
    let left_over = |piece: &Piece| {
        let (start, end) = layout::family(slot, Family::Newest, &piece.range);
        Engine::scan(&*engine, &start, &end, false).count()
    };
    let list = |pieces: &[&Piece]| {
        let mut batch = Batch::default();
        for piece in pieces {
            put_on_clear_list(&mut batch, piece);
        }
        engine.write(batch).unwrap();
    };
    while slots.clear().unwrap() {}
    put(&engine);
    list(&[&left, &right]);
    let once = slots.hold(std::slice::from_ref(&left));
    let twice = slots.hold(std::slice::from_ref(&left));
    while slots.clear().unwrap() {}
    assert_eq!((left_over(&left), left_over(&right)), (3, 0));
    drop(once);
    while slots.clear().unwrap() {}
    assert_eq!(left_over(&left), 3, "one of two holds was dropped");
    drop(twice);
    while slots.clear().unwrap() {}
    assert_eq!(left_over(&left), 0);

    // Two entries with the same start are two entries, and neither reaches beyond its end.
    put(&engine);
    let shorter = Piece {
        range: left.range.split_at(key(1)).unwrap().0,
        slot,
    };
    list(&[&shorter, &left]);
    assert_eq!(slots.clear_list().unwrap().len(), 2);
    let mut batch = Batch::default();
    take_off_clear_list(&mut batch, &left);
    engine.write(batch).unwrap();
    while slots.clear().unwrap() {}
    assert_eq!((left_over(&left), left_over(&right)), (2, 3));
}
