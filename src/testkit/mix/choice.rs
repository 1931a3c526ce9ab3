//! What a client of a mix does next. Decides only: everything follows from the seed.

use crate::env::rng::Seeded;
use crate::testkit::mix::layout::Counts;
use crate::testkit::mix::layout::Kind;
use crate::testkit::mix::layout::Layout;
use crate::testkit::mix::layout::PAIR_KEYS;
use crate::testkit::mix::layout::SPAN_KEYS;
use crate::types::Key;
use crate::types::KeyRange;

/// How often each action is chosen, beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratios {
    /// Linearizable reads of one register or counter.
    pub get: u32,
    /// Reads of whatever one node has.
    pub follower_get: u32,
    /// Reads of several registers at once.
    pub batch_get: u32,
    /// Writes of a register without a condition.
    pub put: u32,
    /// Deletes of a register.
    pub delete: u32,
    /// Writes of a register under a condition.
    pub compare: u32,
    /// Increments of a counter.
    pub count: u32,
    /// Elements added to a list or set.
    pub append: u32,
    /// Writes of several keys at once.
    pub pair_write: u32,
    /// Scans of a cluster that is written together.
    pub pair_scan: u32,
    /// Writes and deletes of keys that are scanned.
    pub span_write: u32,
    /// Scans of some of these.
    pub span_scan: u32,
    /// Deletes of a range of these.
    pub delete_range: u32,
}

impl Default for Ratios {
    fn default() -> Ratios {
        Ratios {
            get: 20,
            follower_get: 4,
            batch_get: 4,
            put: 16,
            delete: 4,
            compare: 14,
            count: 10,
            append: 10,
            pair_write: 8,
            pair_scan: 5,
            span_write: 8,
            span_scan: 6,
            delete_range: 1,
        }
    }
}

/// Through which node a linearizable read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The one that the client holds for the leader.
    Usual,
    /// Any, by chance: each must serve the newest.
    Any,
}

/// What must hold for a register to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// The version that was seen last, or absence.
    Version,
    /// The value that was seen last.
    Value,
    /// That it is there.
    Presence,
    /// That it is not.
    Absence,
}

/// What a client does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Reads a key.
    Get(Key, Entry),
    /// Reads what one node has of a key.
    FollowerGet(Key),
    /// Reads several keys at once; no two are equal.
    BatchGet(Vec<Key>),
    /// Writes a key.
    Put(Key),
    /// Deletes a key.
    Delete(Key),
    /// Writes a key, or deletes it, under a condition.
    Compare {
        /// The key.
        key: Key,
        /// The condition.
        on: Expectation,
        /// Whether the key is read first, though something is known of it.
        fresh: bool,
        /// Whether it is deleted.
        delete: bool,
    },
    /// Adds one to a counter.
    Count(Key),
    /// Adds an element to the list or set of this number.
    Append(Kind, u64),
    /// Writes these keys at once, all with one value; no two are equal.
    Together {
        /// The keys, in this order.
        keys: Vec<Key>,
        /// Whether the first one must be as it was seen last.
        condition: bool,
        /// Whether the last one is deleted instead.
        delete: bool,
    },
    /// Scans a range, so many keys in a portion.
    Scan {
        /// The range.
        range: KeyRange,
        /// Keys in one portion.
        portion: u32,
        /// From its end.
        reverse: bool,
    },
    /// Deletes so many keys from the start of a range.
    DeleteRange(KeyRange, u32),
}

/// Draws the rest of an action of one kind.
type Make = fn(&mut Choice) -> Action;

/// Chooses.
#[derive(Debug)]
pub struct Choice {
    chance: Seeded,
    layout: Layout,
    counts: Counts,
    ratios: Ratios,
}

impl Choice {
    /// The choices of one client follow from its seed.
    ///
    /// # Panics
    /// When there is nothing to choose from.
    pub fn new(seed: u64, layout: Layout, counts: Counts, ratios: Ratios) -> Choice {
        let chance = Seeded::new(seed);
        let choice = Choice {
            chance,
            layout,
            counts,
            ratios,
        };
        assert!(choice.table().iter().any(|(ratio, _)| *ratio > 0));
        choice
    }

    /// What is done next.
    pub fn next_action(&mut self) -> Action {
        let table = self.table();
        let sum: u64 = table.iter().map(|(ratio, _)| u64::from(*ratio)).sum();
        let mut drawn = self.chance.below(sum);
        for (ratio, make) in table {
            if drawn < u64::from(ratio) {
                return make(self);
            }
            drawn -= u64::from(ratio);
        }
        unreachable!("what is drawn is below the sum")
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.chance.below(end)
    }

    /// One in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.chance.below(times) == 0
    }

    /// What there are no keys for is not chosen.
    fn table(&self) -> [(u32, Make); 13] {
        let Ratios {
            get,
            follower_get,
            batch_get,
            put,
            delete,
            compare,
            count,
            append,
            pair_write,
            pair_scan,
            span_write,
            span_scan,
            delete_range,
        } = self.ratios;
        let Counts {
            registers,
            counters,
            lists,
            sets,
            pairs,
            spans,
        } = self.counts;
        let given = |ratio: u32, keys: u64| if keys > 0 { ratio } else { 0 };
        [
            (given(get, registers + counters), Choice::get),
            (given(follower_get, registers), Choice::follower_get),
            (given(batch_get, registers), Choice::batch_get),
            (given(put, registers), Choice::put),
            (given(delete, registers), Choice::delete),
            (given(compare, registers), Choice::compare),
            (given(count, counters), Choice::count),
            (given(append, lists + sets), Choice::append),
            (given(pair_write, pairs), Choice::together),
            (given(pair_scan, pairs), Choice::pair_scan),
            (given(span_write, spans), Choice::span_write),
            (given(span_scan, spans), Choice::span_scan),
            (given(delete_range, spans), Choice::delete_range),
        ]
    }

    fn register(&mut self) -> Key {
        let number = self.below(self.counts.registers);
        self.layout.register(number)
    }

    fn get(&mut self) -> Action {
        let number = self.below(self.counts.registers + self.counts.counters);
        let key = match number.checked_sub(self.counts.registers) {
            Some(counter) => self.layout.counter(counter),
            None => self.layout.register(number),
        };
        let entry = if self.one_in(2) {
            Entry::Any
        } else {
            Entry::Usual
        };
        Action::Get(key, entry)
    }

    fn follower_get(&mut self) -> Action {
        Action::FollowerGet(self.register())
    }

    fn batch_get(&mut self) -> Action {
        let first = self.below(self.counts.registers);
        let step = 1 + self.below(self.counts.registers.div_ceil(4));
        let count = (2 + self.below(3)).min(self.counts.registers.div_ceil(step));
        let numbers = (0..count).map(|place| (first + place * step) % self.counts.registers);
        Action::BatchGet(numbers.map(|number| self.layout.register(number)).collect())
    }

    fn put(&mut self) -> Action {
        Action::Put(self.register())
    }

    fn delete(&mut self) -> Action {
        Action::Delete(self.register())
    }

    fn compare(&mut self) -> Action {
        let on = match self.below(8) {
            0 => Expectation::Presence,
            1 => Expectation::Absence,
            2..4 => Expectation::Value,
            _ => Expectation::Version,
        };
        Action::Compare {
            key: self.register(),
            on,
            fresh: self.one_in(2),
            delete: self.one_in(8),
        }
    }

    fn count(&mut self) -> Action {
        let number = self.below(self.counts.counters);
        Action::Count(self.layout.counter(number))
    }

    fn append(&mut self) -> Action {
        let number = self.below(self.counts.lists + self.counts.sets);
        match number.checked_sub(self.counts.lists) {
            Some(number) => Action::Append(Kind::Set, number),
            None => Action::Append(Kind::List, number),
        }
    }

    fn together(&mut self) -> Action {
        let cluster = self.below(self.counts.pairs);
        let first = self.below(PAIR_KEYS);
        let count = 2 + self.below(PAIR_KEYS - 1);
        let numbers = (first..first + count).map(|number| number % PAIR_KEYS);
        Action::Together {
            keys: numbers
                .map(|number| self.layout.pair(cluster, number))
                .collect(),
            condition: self.one_in(4),
            delete: self.one_in(8),
        }
    }

    fn pair_scan(&mut self) -> Action {
        let cluster = self.below(self.counts.pairs);
        Action::Scan {
            range: self.layout.pair_range(cluster),
            portion: 100,
            reverse: self.one_in(4),
        }
    }

    fn span_write(&mut self) -> Action {
        let cluster = self.below(self.counts.spans);
        let number = self.below(SPAN_KEYS);
        let key = self.layout.span(cluster, number);
        if self.one_in(6) {
            Action::Delete(key)
        } else {
            Action::Put(key)
        }
    }

    fn span_scan(&mut self) -> Action {
        let range = self.part_of_span();
        // Small portions: a scan is one cut of its shard, however many it takes.
        let portion = if self.one_in(2) { 3 } else { 100 };
        Action::Scan {
            range,
            portion,
            reverse: self.one_in(3),
        }
    }

    fn delete_range(&mut self) -> Action {
        let range = self.part_of_span();
        let limit = if self.one_in(2) { 2 } else { 100 };
        Action::DeleteRange(range, limit)
    }

    fn part_of_span(&mut self) -> KeyRange {
        let cluster = self.below(self.counts.spans);
        let first = self.below(SPAN_KEYS);
        let end = first + 1 + self.below(SPAN_KEYS - first);
        self.layout.span_range(cluster, first, end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn choice(seed: u64, counts: Counts) -> Choice {
        Choice::new(seed, Layout::new(""), counts, Ratios::default())
    }

    #[test]
    fn what_is_done_follows_from_the_seed() {
        let actions = |seed| {
            let mut choice = choice(seed, Counts::default());
            (0..200)
                .map(|_| choice.next_action())
                .collect::<Vec<Action>>()
        };
        assert_eq!(actions(7), actions(7));
        assert_ne!(actions(7), actions(8));
    }

    #[test]
    fn everything_is_chosen_and_no_request_names_a_key_twice() {
        let mut choice = choice(1, Counts::default());
        let mut kinds = BTreeSet::new();
        for _ in 0..5_000 {
            let action = choice.next_action();
            let keys = match &action {
                Action::BatchGet(keys) | Action::Together { keys, .. } => keys.clone(),
                Action::Scan { range, .. } | Action::DeleteRange(range, _) => {
                    assert!(!range.is_empty());
                    Vec::new()
                }
                _ => Vec::new(),
            };
            let distinct: BTreeSet<&Key> = keys.iter().collect();
            assert_eq!(distinct.len(), keys.len(), "{keys:?}");
            let name = format!("{action:?}");
            kinds.insert(name.split(['(', ' ']).next().unwrap_or_default().to_owned());
        }
        assert_eq!(kinds.len(), 11, "{kinds:?}");
    }

    #[test]
    fn what_there_are_no_keys_for_is_not_chosen() {
        let none = Counts {
            registers: 1,
            counters: 0,
            lists: 0,
            sets: 0,
            pairs: 0,
            spans: 0,
        };
        let mut choice = choice(3, none);
        for _ in 0..500 {
            match choice.next_action() {
                Action::BatchGet(keys) => assert_eq!(keys.len(), 1),
                Action::Count(_)
                | Action::Append(..)
                | Action::Together { .. }
                | Action::Scan { .. }
                | Action::DeleteRange(..) => panic!("there is one register"),
                Action::Get(..)
                | Action::FollowerGet(_)
                | Action::Put(_)
                | Action::Delete(_)
                | Action::Compare { .. } => {}
            }
        }
    }
}
