//! Requests that have to be put into one order together. Decides only.

use std::collections::HashMap;
use std::collections::HashSet;

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::Names;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::act::gather;
use crate::types::Timestamp;

/// Acts, with what follows from them for any order.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) names: Names,
    /// By the time they began.
    pub(super) acts: Vec<Act>,
    /// Those that happened, by the time they ended.
    pub(super) returns: Vec<usize>,
    /// For each act the keys that it looks at or changes, ascending.
    pub(super) touches: Vec<Vec<usize>>,
    /// For each act the keys on which the order of it and another act that touches them matters.
    pub(super) changes: Vec<Vec<usize>>,
    /// For each slot who made it.
    pub(super) makers: Vec<Maker>,
    /// For each key the optional acts that change it alone.
    pub(super) optional_on: Vec<Vec<usize>>,
    /// Optional acts that change several keys.
    pub(super) optional_wide: Vec<usize>,
    /// For each key whether somebody looks at its value whatever its version.
    pub(super) values_matter: Vec<bool>,
    /// For each key and value the versions that it was seen with and nobody was told to have made.
    pub(super) orphans: HashMap<(usize, u32), Vec<u32>>,
    /// The slots of keys that a write of several keys with unknown outcome may have written.
    slots: HashMap<(usize, Timestamp), u32>,
}

/// Who was told that it made a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// Nobody: a write with an unknown outcome may have made it.
    Nobody,
    /// One write.
    One(usize),
    /// Several, which is wrong; nothing is concluded from it here.
    Several,
}

impl Part {
    pub(super) fn new(names: Names, mut acts: Vec<Act>) -> Part {
        acts.sort_by_key(|act| (act.began, act.ended, act.source));
        loop {
            let makers = makers(names.slots.len(), &acts);
            let wanted = Wanted::of(&acts, &makers, names.keys.len());
            let before = acts.len();
            acts.retain(|act| !act.is_optional || wanted.wants(act));
            if acts.len() == before {
                return Part::of_wanted(names, acts, makers);
            }
        }
    }

    fn of_wanted(names: Names, acts: Vec<Act>, makers: Vec<Maker>) -> Part {
        let key_count = names.keys.len();
        let mut returns: Vec<usize> = (0..acts.len()).filter(|n| !acts[*n].is_optional).collect();
        returns.sort_by_key(|number| (acts[*number].ended, *number));
        let mut part = Part {
            touches: acts.iter().map(Act::keys).collect(),
            changes: Vec::new(),
            optional_on: vec![Vec::new(); key_count],
            optional_wide: Vec::new(),
            values_matter: vec![false; key_count],
            orphans: HashMap::new(),
            slots: HashMap::new(),
            names,
            returns,
            makers,
            acts,
        };
        for (number, act) in part.acts.iter().enumerate() {
            for (key, need) in &act.needs {
                part.values_matter[*key] |= matches!(need, Need::Value { .. });
            }
            let mut changed = act.changes();
            match (act.is_optional, changed.next(), changed.next()) {
                (true, Some(key), None) if act.clears.is_none() => {
                    part.optional_on[key].push(number)
                }
                (true, ..) => part.optional_wide.push(number),
                (false, ..) => {}
            }
        }
        part.find_orphans();
        part.changes = (0..part.acts.len()).map(|n| part.changes_of(n)).collect();
        if !part.optional_wide.is_empty() {
            part.slots = part.number_slots();
        }
        part
    }

    /// The versions that each value was seen with and that nobody was told to have made; and from them where
    /// a put of unknown outcome probably stands: at the lowest one of its values.
    fn find_orphans(&mut self) {
        for (key, need) in self.acts.iter().flat_map(|act| &act.needs) {
            let Need::Exactly { value, slot } = *need else {
                continue;
            };
            if self.makers[slot as usize] == Maker::Nobody {
                let slots = self.orphans.entry((*key, value)).or_default();
                if !slots.contains(&slot) {
                    slots.push(slot);
                }
            }
        }
        for act in self.acts.iter_mut().filter(|act| act.is_optional) {
            let slots = act.effects.iter().filter_map(|(key, effect)| match effect {
                Effect::Put { value, .. } => self.orphans.get(&(*key, *value)),
                Effect::Delete => None,
            });
            let versions = slots.flatten().map(|slot| self.names.slots[*slot as usize]);
            act.hint = versions.min().unwrap_or(Timestamp::MAX);
        }
    }

    fn number_slots(&self) -> HashMap<(usize, Timestamp), u32> {
        let mut slots = HashMap::new();
        for act in &self.acts {
            let needed = act.needs.iter().map(|(key, need)| (*key, need.slot()));
            let made = act
                .effects
                .iter()
                .map(|(key, effect)| (*key, effect.slot()));
            for (key, slot) in needed.chain(made) {
                slots.extend(slot.map(|slot| ((key, self.names.slots[slot as usize]), slot)));
            }
        }
        slots
    }

    /// The slot of a version of a key; none when nobody speaks of it.
    pub(super) fn slot_of(&self, key: usize, version: Timestamp) -> Option<u32> {
        self.slots.get(&(key, version)).copied()
    }

    /// An act that sees a version which nobody was told may settle the version of a write of several
    /// keys, and with it what the write's other keys hold.
    fn changes_of(&self, number: usize) -> Vec<usize> {
        let act = &self.acts[number];
        let mut changes: Vec<usize> = act.changes().collect();
        for (key, need) in &act.needs {
            if !need.slot().is_some_and(|slot| self.is_orphan(slot)) {
                continue;
            }
            for wide in &self.optional_wide {
                let effects = &self.acts[*wide].effects;
                if effects.iter().any(|(changed, _)| changed == key) {
                    changes.extend(effects.iter().map(|(changed, _)| *changed));
                }
            }
        }
        changes.sort_unstable();
        changes.dedup();
        changes
    }

    /// The same acts as far as they are about one key.
    pub(super) fn of_key(&self, key: usize) -> Part {
        let touching = self.acts.iter().zip(&self.touches);
        let touching = touching.filter(|(_, touches)| touches.binary_search(&key).is_ok());
        let acts: Vec<Act> = touching.map(|(act, _)| act.clone()).collect();
        let (names, acts) = gather(&self.names, &acts, &[key]);
        Part::new(names, acts)
    }

    /// Whether nobody was told that it made this version.
    pub(super) fn is_orphan(&self, slot: u32) -> bool {
        self.makers[slot as usize] == Maker::Nobody
    }

    /// Whether the order of two acts may matter.
    pub(super) fn conflict(&self, left: usize, right: usize) -> bool {
        meet(&self.changes[left], &self.touches[right])
            || meet(&self.touches[left], &self.changes[right])
    }

    /// Whether `later` sees a version that only `earlier` made.
    pub(super) fn sees(&self, later: usize, earlier: usize) -> bool {
        let mut slots = self.acts[later]
            .needs
            .iter()
            .filter_map(|(_, need)| need.slot());
        slots.any(|slot| self.makers[slot as usize] == Maker::One(earlier))
    }
}

/// Whether two ascending lists have a number in common.
fn meet(left: &[usize], right: &[usize]) -> bool {
    let (few, many) = if left.len() <= right.len() {
        (left, right)
    } else {
        (right, left)
    };
    few.iter().any(|number| many.binary_search(number).is_ok())
}

fn makers(slots: usize, acts: &[Act]) -> Vec<Maker> {
    let mut makers = vec![Maker::Nobody; slots];
    for (number, act) in acts.iter().enumerate() {
        for (_, effect) in &act.effects {
            if let Effect::Put {
                slot: Some(slot), ..
            } = effect
            {
                let maker = &mut makers[*slot as usize];
                *maker = match maker {
                    Maker::Nobody => Maker::One(number),
                    Maker::One(_) | Maker::Several => Maker::Several,
                };
            }
        }
    }
    makers
}

/// What anybody's answer or condition says of the keys, and a write of unknown outcome could explain. One
/// that explains nothing can be left out of any order in which it stands: what comes after it either does
/// not look or looks for something else.
struct Wanted {
    absent: Vec<bool>,
    present: Vec<bool>,
    values: HashSet<(usize, u32)>,
}

impl Wanted {
    fn of(acts: &[Act], makers: &[Maker], keys: usize) -> Wanted {
        let mut wanted = Wanted {
            absent: vec![false; keys],
            present: vec![false; keys],
            values: HashSet::new(),
        };
        for act in acts {
            for key in act.count.iter().flat_map(|count| &count.keys) {
                wanted.absent[*key] = true;
                wanted.present[*key] = true;
            }
            for (key, need) in &act.needs {
                // A version whose maker is known needs no other explanation.
                if need
                    .slot()
                    .is_some_and(|slot| makers[slot as usize] != Maker::Nobody)
                {
                    continue;
                }
                match need {
                    Need::Absent => wanted.absent[*key] = true,
                    Need::Present | Need::Version { .. } | Need::NotValue { .. } => {
                        wanted.present[*key] = true;
                    }
                    Need::Exactly { value, .. } | Need::Value { value } => {
                        wanted.values.insert((*key, *value));
                    }
                }
            }
        }
        wanted
    }

    fn wants(&self, act: &Act) -> bool {
        let mut cleared = act.clears.iter().flat_map(|clears| &clears.keys);
        cleared.any(|key| self.absent[*key])
            || act.effects.iter().any(|(key, effect)| match effect {
                Effect::Delete => self.absent[*key],
                Effect::Put { value, .. } => {
                    self.present[*key] || self.values.contains(&(*key, *value))
                }
            })
    }
}
