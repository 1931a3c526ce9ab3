//! What the keys hold after the acts placed so far, and whether an act can be the next one. Decides only.
//!
//! Placing and taking back are exact opposites, so that a search can walk through many orders on one board.
//!
//! Looking ahead: a version is made once, by a write that was told so or by one of unknown outcome. So an act
//! that changes a key is not placed while somebody still has to see what the key holds now and nothing can
//! bring it back. Without that a search goes on for long in an order that is lost already.

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::links::Links;
use crate::testkit::linear::part::Maker;
use crate::testkit::linear::part::Part;
use crate::testkit::observed::Moment;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Absent,
    Known {
        value: u32,
        /// [`UNSEEN`]: a version that nobody speaks of.
        slot: u32,
    },
    /// Written by an act whose version has not been seen so far.
    Open {
        value: u32,
        /// The act, if it wrote several keys: they get one version. Otherwise [`ALONE`].
        writer: u32,
    },
}

const UNSEEN: u32 = u32::MAX;
const ALONE: u32 = u32::MAX;

/// Why an act cannot be the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocked {
    /// A key does not hold what it needs.
    Unmet { key: usize, need: Need, held: Held },
    /// It counted so many keys, and these are there.
    Miscounted { counted: u32, there: u32 },
    /// It would change what others have still to see.
    Overwrites { key: usize, held: Held },
}

/// How a key meets a need.
enum Meets {
    Yes,
    /// If the open version is this one.
    AsVersion(u32),
    No,
}

/// What is needed to take an act back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    changes: usize,
    returned: usize,
    fingerprint: u128,
}

/// One configuration: which acts are placed, and what the keys hold.
pub(super) struct Board<'p> {
    part: &'p Part,
    held: Vec<Held>,
    placed: Vec<bool>,
    required: Links,
    optional: Links,
    /// How many of the part's returns, from the first on, are placed.
    returned: usize,
    /// For each slot how many acts still need it: those that happened, and all.
    needed: Vec<(u32, u32)>,
    /// For each key how many acts that happened still need it absent, and how many may still delete it.
    absences: Vec<(u32, u32)>,
    changes: Vec<(usize, Held)>,
    fingerprint: u128,
}

impl<'p> Board<'p> {
    pub(super) fn new(part: &'p Part) -> Board<'p> {
        let keys = part.names.keys.len();
        let mut board = Board {
            part,
            held: vec![Held::Absent; keys],
            placed: vec![false; part.acts.len()],
            required: Links::of(part.acts.iter().map(|act| !act.is_optional)),
            optional: Links::of(part.acts.iter().map(|act| act.is_optional)),
            returned: 0,
            needed: vec![(0, 0); part.names.slots.len()],
            absences: vec![(0, 0); keys],
            changes: Vec::new(),
            fingerprint: 0,
        };
        for act in &part.acts {
            board.expect(act);
        }
        board
    }

    /// Whether everything that happened is placed.
    pub(super) fn is_complete(&self) -> bool {
        self.returned == self.part.returns.len()
    }

    /// How many of the part's returns, from the first on, are placed.
    pub(super) fn returned(&self) -> usize {
        self.returned
    }

    pub(super) fn is_placed(&self, number: usize) -> bool {
        self.placed[number]
    }

    /// The act that has to be placed before anything that began after its end.
    pub(super) fn first_return(&self) -> usize {
        self.part.returns[self.returned]
    }

    /// Nothing that began after this can be next.
    pub(super) fn horizon(&self) -> Moment {
        let next = self.part.returns.get(self.returned);
        next.map_or(Moment(u64::MAX), |number| self.part.acts[*number].ended)
    }

    /// Acts that happened and are not placed, by their begin.
    pub(super) fn required(&self) -> impl Iterator<Item = usize> {
        self.required.iter()
    }

    /// Optional acts that are not placed, by their begin.
    pub(super) fn optional(&self) -> impl Iterator<Item = usize> {
        self.optional.iter()
    }

    /// Tells which acts are placed and what the keys hold, as far as it can make a difference from here
    /// on. Two different configurations share one with a chance of 2^-128 for each pair.
    pub(super) fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Whether the act only looks and sees what it needs, so that no order is lost by placing it now.
    pub(super) fn is_settled_read(&self, number: usize) -> bool {
        let act = &self.part.acts[number];
        act.effects.is_empty()
            && act.clears.is_none()
            && act
                .needs
                .iter()
                .all(|(key, need)| matches!(self.meets(*key, *need), Meets::Yes))
            && self.counts(act)
    }

    /// Whether the keys meet what the act needs, if open versions are the ones that it saw.
    pub(super) fn fits(&self, number: usize) -> bool {
        let act = &self.part.acts[number];
        let mut needs = act.needs.iter();
        needs.all(|(key, need)| !matches!(self.meets(*key, *need), Meets::No)) && self.counts(act)
    }

    /// The act's needs that the keys do not meet, or only if an open version is the one needed.
    pub(super) fn unsettled(&self, act: &'p Act) -> impl Iterator<Item = (usize, Need)> {
        let needs = act.needs.iter().copied();
        needs.filter(|(key, need)| !matches!(self.meets(*key, *need), Meets::Yes))
    }

    /// Whether as many keys are there as the act counted.
    pub(super) fn counts(&self, act: &Act) -> bool {
        act.count
            .as_ref()
            .is_none_or(|count| self.there(&count.keys) == count.count)
    }

    /// How many of the keys are there.
    pub(super) fn there(&self, keys: &[usize]) -> u32 {
        keys.iter()
            .filter(|key| self.held[**key] != Held::Absent)
            .count() as u32
    }

    /// Places an act. `cleared` is how many keys an unknown range delete removes. On an error nothing has
    /// changed.
    pub(super) fn place(&mut self, number: usize, cleared: u32) -> Result<Mark, Blocked> {
        let part = self.part;
        let act = &part.acts[number];
        let mark = Mark {
            changes: self.changes.len(),
            returned: self.returned,
            fingerprint: self.fingerprint,
        };
        if let Err(blocked) = self.settle(act) {
            self.undo(mark);
            return Err(blocked);
        }
        for key in &part.touches[number] {
            self.toggle(*key);
        }
        self.met(act);
        self.placed[number] = true;
        let changed = self.change(number, cleared);
        for key in &part.touches[number] {
            self.toggle(*key);
        }
        if let Err(blocked) = changed {
            self.placed[number] = false;
            self.expect(act);
            self.undo(mark);
            return Err(blocked);
        }
        self.links(number).remove(number);
        while !self.is_complete() && self.placed[self.first_return()] {
            self.returned += 1;
        }
        self.fingerprint ^= mix(number as u64, 0, PLACED);
        Ok(mark)
    }

    /// Takes back the act that was placed last.
    pub(super) fn take_back(&mut self, number: usize, mark: Mark) {
        self.links(number).put_back(number);
        self.placed[number] = false;
        self.expect(&self.part.acts[number]);
        self.undo(mark);
    }

    fn links(&mut self, number: usize) -> &mut Links {
        if self.part.acts[number].is_optional {
            &mut self.optional
        } else {
            &mut self.required
        }
    }

    fn undo(&mut self, mark: Mark) {
        for (key, held) in self.changes.drain(mark.changes..).rev() {
            self.held[key] = held;
        }
        self.returned = mark.returned;
        self.fingerprint = mark.fingerprint;
    }

    fn meets(&self, key: usize, need: Need) -> Meets {
        let yes_if = |yes: bool| if yes { Meets::Yes } else { Meets::No };
        match self.held[key] {
            Held::Absent => yes_if(need == Need::Absent),
            Held::Known { value, slot } => {
                let is_version = need.slot().is_none_or(|needed| needed == slot);
                yes_if(is_version && need.allows_value(value))
            }
            Held::Open { value, .. } if !need.allows_value(value) => Meets::No,
            Held::Open { .. } => match need.slot() {
                None => Meets::Yes,
                // A version that somebody was told to have made is not this one.
                Some(slot) if self.part.is_orphan(slot) => Meets::AsVersion(slot),
                Some(_) => Meets::No,
            },
        }
    }

    /// Checks what the act needs, and gives open versions their number where it saw one.
    fn settle(&mut self, act: &Act) -> Result<(), Blocked> {
        for (key, need) in &act.needs {
            let (key, need) = (*key, *need);
            let held = self.held[key];
            match self.meets(key, need) {
                Meets::Yes => {}
                Meets::AsVersion(slot) if self.name_version(key, slot) => {}
                Meets::AsVersion(_) | Meets::No => return Err(Blocked::Unmet { key, need, held }),
            }
        }
        match &act.count {
            Some(count) if !self.counts(act) => Err(Blocked::Miscounted {
                counted: count.count,
                there: self.there(&count.keys),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The open version of a key is this one. False when it cannot be: another key of the same write
    /// would get a version that another write made.
    fn name_version(&mut self, key: usize, slot: u32) -> bool {
        let Held::Open { value, writer } = self.held[key] else {
            unreachable!("only an open version gets a number");
        };
        if writer == ALONE {
            self.set(key, Held::Known { value, slot });
            return true;
        }
        let part = self.part;
        let version = part.names.slots[slot as usize];
        for (other, _) in &part.acts[writer as usize].effects {
            let Held::Open { value, writer: by } = self.held[*other] else {
                continue;
            };
            if by != writer {
                continue;
            }
            let slot = part.slot_of(*other, version).unwrap_or(UNSEEN);
            if slot != UNSEEN && !part.is_orphan(slot) {
                return false;
            }
            self.set(*other, Held::Known { value, slot });
        }
        true
    }

    fn change(&mut self, number: usize, cleared: u32) -> Result<(), Blocked> {
        let part = self.part;
        let act = &part.acts[number];
        let alone = act.effects.len() == 1 || !act.is_optional;
        for (key, effect) in &act.effects {
            let held = match *effect {
                Effect::Delete => Held::Absent,
                Effect::Put {
                    value,
                    slot: Some(slot),
                } => Held::Known { value, slot },
                Effect::Put { value, slot: None } => Held::Open {
                    value,
                    writer: if alone { ALONE } else { number as u32 },
                },
            };
            self.replace(*key, held)?;
        }
        let clears = act.clears.iter().flat_map(|clears| &clears.keys);
        let there = clears.filter(|key| self.held[**key] != Held::Absent);
        let cleared: Vec<usize> = there.take(cleared as usize).copied().collect();
        cleared
            .into_iter()
            .try_for_each(|key| self.replace(key, Held::Absent))
    }

    /// Changes a key whose part of the fingerprint is out, unless what it held has still to be seen.
    fn replace(&mut self, key: usize, new: Held) -> Result<(), Blocked> {
        let held = self.held[key];
        if held == new {
            return Ok(());
        }
        if self.is_still_to_be_seen(key) {
            return Err(Blocked::Overwrites { key, held });
        }
        self.changes.push((key, held));
        self.held[key] = new;
        Ok(())
    }

    /// The acts that happened and have still to see what the key holds, other than this one.
    pub(super) fn readers(&self, key: usize, other: usize) -> Vec<usize> {
        let sees = |number: &usize| {
            let needs = &self.part.acts[*number].needs;
            *number != other
                && needs
                    .iter()
                    .any(|(at, need)| *at == key && matches!(self.meets(key, *need), Meets::Yes))
        };
        self.required().filter(sees).collect()
    }

    /// Whether an act that happened needs what the key holds, and nothing can bring it back.
    fn is_still_to_be_seen(&self, key: usize) -> bool {
        match self.held[key] {
            Held::Absent => self.absences[key].0 > 0 && self.absences[key].1 == 0,
            Held::Known { slot: UNSEEN, .. } => false,
            Held::Open { value, .. } => {
                let versions = self.part.orphans.get(&(key, value)).into_iter().flatten();
                let is_needed = |slot: &u32| self.needed[*slot as usize].0 > 0;
                versions.copied().any(|slot| is_needed(&slot)) && !self.may_come_back(key, value)
            }
            Held::Known { value, slot } => {
                self.needed[slot as usize].0 > 0
                    && match self.part.makers[slot as usize] {
                        Maker::One(_) => true,
                        Maker::Several => false,
                        Maker::Nobody => !self.may_come_back(key, value),
                    }
            }
        }
    }

    /// Whether an optional act that is not placed writes this value to the key.
    fn may_come_back(&self, key: usize, written: u32) -> bool {
        let alone = self.part.optional_on[key].iter();
        let mut writers = alone.chain(&self.part.optional_wide);
        writers.any(|number| {
            let mut effects = self.part.acts[*number].effects.iter();
            !self.placed[*number]
                && effects.any(|(at, effect)| {
                    *at == key && matches!(effect, Effect::Put { value, .. } if *value == written)
                })
        })
    }

    /// The act is not placed: somebody waits for what it needs.
    fn expect(&mut self, act: &Act) {
        self.tally(act, |count| *count += 1);
    }

    /// The act is placed.
    fn met(&mut self, act: &Act) {
        self.tally(act, |count| *count -= 1);
    }

    fn tally(&mut self, act: &Act, step: impl Fn(&mut u32)) {
        for (key, need) in &act.needs {
            if let Some(slot) = need.slot() {
                let (required, all) = &mut self.needed[slot as usize];
                step(all);
                if !act.is_optional {
                    step(required);
                }
            }
            if *need == Need::Absent && !act.is_optional {
                step(&mut self.absences[*key].0);
            }
        }
        for (key, effect) in &act.effects {
            if *effect == Effect::Delete {
                step(&mut self.absences[*key].1);
            }
        }
        for key in act.clears.iter().flat_map(|clears| &clears.keys) {
            step(&mut self.absences[*key].1);
        }
    }

    fn set(&mut self, key: usize, held: Held) {
        self.toggle(key);
        self.changes.push((key, self.held[key]));
        self.held[key] = held;
        self.toggle(key);
    }

    /// Puts a key's part of the fingerprint in, or takes it out. A version that nobody needs any more is
    /// like any other one.
    fn toggle(&mut self, key: usize) {
        let value_of = |value: u32| {
            if self.part.values_matter[key] {
                u64::from(value) + 1
            } else {
                0
            }
        };
        let told = match self.held[key] {
            Held::Absent => return,
            Held::Known { value, slot } if slot == UNSEEN || self.needed[slot as usize].1 == 0 => {
                mix(key as u64, value_of(value), PASSED)
            }
            Held::Known { slot, .. } => mix(key as u64, u64::from(slot), KNOWN),
            Held::Open { value, writer } => {
                mix(key as u64, u64::from(value) << 32 | u64::from(writer), OPEN)
            }
        };
        self.fingerprint ^= told;
    }
}

const PLACED: u64 = 1;
const PASSED: u64 = 2;
const KNOWN: u64 = 3;
const OPEN: u64 = 4;

/// Three numbers as one that looks drawn.
fn mix(first: u64, second: u64, third: u64) -> u128 {
    let half = |salt: u64| {
        [first, second, third]
            .into_iter()
            .fold(salt, |bits, number| {
                let mut bits = (bits ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
                bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                bits ^ (bits >> 31)
            })
    };
    u128::from(half(0x1f83_d9ab_fb41_bd6b)) << 64 | u128::from(half(0x5be0_cd19_137e_2179))
}
