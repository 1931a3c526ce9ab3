//! A request as the search sees it: what it needs of the keys and what it does to them. Decides only.
//!
//! Keys, values and versions are numbers here. A *slot* is one version of one key, so that needing it and
//! making it are the same number.

use std::collections::HashMap;

use crate::testkit::observed::Moment;
use crate::types::Key;
use crate::types::Timestamp;

/// A request of one part of a history.
#[derive(Debug, Clone)]
pub(super) struct Act {
    /// Which request of the history it is.
    pub(super) source: usize,
    pub(super) began: Moment,
    /// It happened before this. [`NEVER`] for one that is optional.
    pub(super) ended: Moment,
    /// Its outcome is unknown: it may be left out, and it may happen at any time after it began.
    pub(super) is_optional: bool,
    /// What its answer says about the keys just before it happened, by key. All of it holds.
    pub(super) needs: Vec<(usize, Need)>,
    /// How many keys it says it removed, where it does not say which.
    pub(super) count: Option<Count>,
    /// What it does, by key.
    pub(super) effects: Vec<(usize, Effect)>,
    /// What a range delete with an unknown outcome may do.
    pub(super) clears: Option<Clears>,
    /// Where its place probably is. Only ever says what is tried first.
    pub(super) hint: Timestamp,
}

/// When an optional act must have happened.
pub(super) const NEVER: Moment = Moment(u64::MAX);

/// What must hold of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Absent,
    Present,
    /// This value under this version.
    Exactly {
        value: u32,
        slot: u32,
    },
    /// This version, whatever its value.
    Version {
        slot: u32,
    },
    /// This value, whatever its version.
    Value {
        value: u32,
    },
    /// This version, whose value is another one than this.
    NotValue {
        value: u32,
        slot: u32,
    },
}

impl Need {
    /// The version needed.
    pub(super) fn slot(self) -> Option<u32> {
        match self {
            Need::Absent | Need::Present | Need::Value { .. } => None,
            Need::Exactly { slot, .. } | Need::Version { slot } | Need::NotValue { slot, .. } => {
                Some(slot)
            }
        }
    }

    /// Whether a key that holds this value would do, as far as the value goes.
    pub(super) fn allows_value(self, held: u32) -> bool {
        match self {
            Need::Absent => false,
            Need::Present | Need::Version { .. } => true,
            Need::Exactly { value, .. } | Need::Value { value } => value == held,
            Need::NotValue { value, .. } => value != held,
        }
    }

    fn with_slot(self, slot_of: &mut impl FnMut(u32) -> u32) -> Need {
        match self {
            Need::Absent | Need::Present | Need::Value { .. } => self,
            Need::Exactly { value, slot } => Need::Exactly {
                value,
                slot: slot_of(slot),
            },
            Need::Version { slot } => Need::Version {
                slot: slot_of(slot),
            },
            Need::NotValue { value, slot } => Need::NotValue {
                value,
                slot: slot_of(slot),
            },
        }
    }
}

/// So many of these keys are there.
#[derive(Debug, Clone)]
pub(super) struct Count {
    pub(super) keys: Vec<usize>,
    pub(super) count: u32,
}

/// What is done to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// No slot: nobody was told the version.
    Put {
        value: u32,
        slot: Option<u32>,
    },
    Delete,
}

impl Effect {
    /// The version made, if somebody was told it.
    pub(super) fn slot(self) -> Option<u32> {
        match self {
            Effect::Put { slot, .. } => slot,
            Effect::Delete => None,
        }
    }
}

/// Some of these keys, from the first one on and at most `limit` that are there, are removed. How many
/// follows from where a shard ended, which nobody was told.
#[derive(Debug, Clone)]
pub(super) struct Clears {
    pub(super) keys: Vec<usize>,
    pub(super) limit: u32,
}

impl Act {
    /// Every key that it looks at or changes, in order, once each.
    pub(super) fn keys(&self) -> Vec<usize> {
        let counted = self.count.iter().flat_map(|count| &count.keys);
        let mut keys: Vec<usize> = self.needs.iter().map(|(key, _)| *key).collect();
        keys.extend(counted);
        keys.extend(self.changes());
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Every key that it may change.
    pub(super) fn changes(&self) -> impl Iterator<Item = usize> {
        let cleared = self.clears.iter().flat_map(|clears| &clears.keys);
        self.effects
            .iter()
            .map(|(key, _)| *key)
            .chain(cleared.copied())
    }

    /// The same act in the numbers of a part. What is about keys that the part does not have is left out.
    fn within(
        &self,
        key_of: impl Fn(usize) -> Option<usize>,
        slot_of: &mut impl FnMut(u32) -> u32,
    ) -> Act {
        let keys_of = |keys: &[usize]| {
            keys.iter()
                .filter_map(|key| key_of(*key))
                .collect::<Vec<_>>()
        };
        let needs = self.needs.iter();
        let needs = needs.filter_map(|(key, need)| Some((key_of(*key)?, *need)));
        let needs = needs.collect::<Vec<_>>();
        let effects = self.effects.iter();
        let effects = effects.filter_map(|(key, effect)| Some((key_of(*key)?, *effect)));
        let effects = effects.collect::<Vec<_>>();
        // A count is about all of its keys or about nothing.
        let count = self.count.as_ref().map(|count| Count {
            keys: keys_of(&count.keys),
            count: count.count,
        });
        let was_counted = self.count.as_ref().map_or(0, |count| count.keys.len());
        Act {
            needs: needs
                .into_iter()
                .map(|(key, need)| (key, need.with_slot(slot_of)))
                .collect(),
            count: count.filter(|count| count.keys.len() == was_counted),
            effects: effects
                .into_iter()
                .map(|(key, effect)| match effect {
                    Effect::Put { value, slot } => (
                        key,
                        Effect::Put {
                            value,
                            slot: slot.map(&mut *slot_of),
                        },
                    ),
                    Effect::Delete => (key, Effect::Delete),
                })
                .collect(),
            clears: self.clears.as_ref().map(|clears| Clears {
                keys: keys_of(&clears.keys),
                limit: clears.limit,
            }),
            ..*self
        }
    }
}

/// What the numbers of acts stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// In the order of keys.
    pub(super) keys: Vec<Key>,
    pub(super) slots: Vec<Timestamp>,
}

/// The acts as far as they are about `keys`, which are ascending, in numbers of their own.
pub(super) fn gather(names: &Names, acts: &[Act], keys: &[usize]) -> (Names, Vec<Act>) {
    let mut gathered = Names {
        keys: keys.iter().map(|key| names.keys[*key].clone()).collect(),
        slots: Vec::new(),
    };
    let mut slots = HashMap::new();
    let mut slot_of = |slot: u32| {
        *slots.entry(slot).or_insert_with(|| {
            gathered.slots.push(names.slots[slot as usize]);
            gathered.slots.len() as u32 - 1
        })
    };
    let key_of = |key: usize| keys.binary_search(&key).ok();
    let acts = acts
        .iter()
        .map(|act| act.within(key_of, &mut slot_of))
        .filter(|act| !act.is_empty())
        .collect();
    (gathered, acts)
}

impl Act {
    fn is_empty(&self) -> bool {
        let clears_nothing = self
            .clears
            .as_ref()
            .is_none_or(|clears| clears.keys.is_empty());
        self.needs.is_empty() && self.count.is_none() && self.effects.is_empty() && clears_nothing
    }
}
