//! The smallest part of a history that still cannot be ordered. Decides only.
//!
//! Leaving out must not make a right history look wrong: whatever is left here has to follow from the
//! whole. Take an order in which everything is right, and take an act out of it. What it saw is then not
//! asked for any more, and that is always allowed. What it left behind is not there any more; so nothing
//! may ask for that either, and every need that it might have met is left out together with it: its version,
//! its value, and that the key was there, or for a delete that it was not. The rest of the order is still
//! right. So if what is left has no order, the whole had none.
//!
//! Acts are left out in ever smaller groups, as long as what is left has no order (delta debugging: Zeller
//! and Hildebrandt, Simplifying and Isolating Failure-Inducing Input), then single needs of what is left.
//! In the end each act is necessary; another selection may be smaller still.

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::part::Maker;
use crate::testkit::linear::part::Part;
use crate::testkit::linear::search::Bound;
use crate::testkit::linear::search::Outcome;
use crate::testkit::linear::search::Search;

/// A part without order, smaller than the given one, which has none. Each try is bounded; one that reaches
/// the bound counts as ordered.
pub(super) fn shrink(part: &Part, bound: Bound) -> Part {
    let is_stuck = |acts: Vec<Act>| {
        let part = Part::new(part.names.clone(), acts);
        let stuck = Search::new(&part, bound).run() == Outcome::Stuck;
        stuck.then_some(part.acts)
    };
    let acts = cut_end(part, &is_stuck);
    let acts = leave_out_acts(acts, part, &is_stuck);
    let acts = leave_out_needs(acts, &is_stuck);
    Part::new(part.names.clone(), acts)
}

/// The acts that began around one of them, with those that made what they see; so many at most on either
/// side. If these have no order, the whole has none.
pub(super) fn window(part: &Part, around: usize, count: usize) -> Part {
    let span = around.saturating_sub(count)..around.saturating_add(count).min(part.acts.len());
    let mut is_kept = vec![false; part.acts.len()];
    for number in span {
        is_kept[number] = true;
        let needed = part.acts[number]
            .needs
            .iter()
            .filter_map(|(_, need)| need.slot());
        for slot in needed {
            if let Maker::One(maker) = part.makers[slot as usize] {
                is_kept[maker] = true;
            }
        }
    }
    let left_out = (0..part.acts.len()).filter(|number| !is_kept[*number]);
    let gone = Gone::of(left_out.map(|number| &part.acts[number]), part);
    let kept = (0..part.acts.len()).filter(|number| is_kept[*number]);
    let kept = kept.map(|number| gone.weaken(&part.acts[number], part));
    Part::new(part.names.clone(), kept.collect())
}

/// The acts up to the one with which the trouble begins.
fn cut_end(part: &Part, is_stuck: &impl Fn(Vec<Act>) -> Option<Vec<Act>>) -> Vec<Act> {
    let mut stuck = part.acts.clone();
    let (mut ordered, mut end) = (0, stuck.len());
    while end - ordered > 1 {
        let middle = ordered + (end - ordered) / 2;
        match is_stuck(without(&part.acts, middle..part.acts.len(), part)) {
            Some(acts) => (stuck, end) = (acts, middle),
            None => ordered = middle,
        }
    }
    stuck
}

fn leave_out_acts(
    mut acts: Vec<Act>,
    part: &Part,
    is_stuck: &impl Fn(Vec<Act>) -> Option<Vec<Act>>,
) -> Vec<Act> {
    let mut size = acts.len().div_ceil(2);
    loop {
        let before = acts.len();
        // From the end on, so that what is left out does not move what is still to be tried.
        let mut end = acts.len();
        while end > 0 {
            let begin = end.saturating_sub(size);
            if let Some(fewer) = is_stuck(without(&acts, begin..end, part)) {
                acts = fewer;
            }
            end = begin.min(acts.len());
        }
        if size == 1 && acts.len() == before {
            return acts;
        }
        size = size.div_ceil(2);
    }
}

fn leave_out_needs(
    mut acts: Vec<Act>,
    is_stuck: &impl Fn(Vec<Act>) -> Option<Vec<Act>>,
) -> Vec<Act> {
    for number in 0..acts.len() {
        let mut size = acts[number].needs.len().div_ceil(2);
        while size > 0 {
            let mut end = acts[number].needs.len();
            while end > 0 {
                let begin = end.saturating_sub(size);
                let mut fewer = acts.clone();
                fewer[number].needs.drain(begin..end);
                // The same acts must be left, so that their numbers stay.
                if let Some(fewer) = is_stuck(fewer).filter(|fewer| fewer.len() == acts.len()) {
                    acts = fewer;
                }
                end = begin;
            }
            size /= 2;
        }
    }
    acts
}

/// The acts without some of them, and without every need that those might have met.
fn without(acts: &[Act], left_out: std::ops::Range<usize>, part: &Part) -> Vec<Act> {
    let gone = Gone::of(acts[left_out.clone()].iter(), part);
    let kept = acts[..left_out.start].iter().chain(&acts[left_out.end..]);
    kept.map(|act| gone.weaken(act, part)).collect()
}

/// What acts that are left out would have left behind.
struct Gone {
    /// For each key what they put there: the value, and the version if it is known.
    puts: Vec<Vec<(u32, Option<u32>)>>,
    /// For each key whether one of them might have deleted it.
    deleted: Vec<bool>,
    deletes: bool,
}

impl Gone {
    fn of<'a>(acts: impl Iterator<Item = &'a Act>, part: &Part) -> Gone {
        let keys = part.names.keys.len();
        let mut gone = Gone {
            puts: vec![Vec::new(); keys],
            deleted: vec![false; keys],
            deletes: false,
        };
        for act in acts {
            for (key, effect) in &act.effects {
                match *effect {
                    Effect::Put { value, slot } => gone.puts[*key].push((value, slot)),
                    Effect::Delete => gone.deleted[*key] = true,
                }
            }
            for key in act.clears.iter().flat_map(|clears| &clears.keys) {
                gone.deleted[*key] = true;
            }
        }
        gone.deletes = gone.deleted.contains(&true);
        gone
    }

    fn weaken(&self, act: &Act, part: &Part) -> Act {
        let mut act = act.clone();
        act.needs.retain(|(key, need)| !self.met(*key, *need, part));
        act.count = act.count.filter(|count| {
            let mut keys = count.keys.iter();
            keys.all(|key| self.puts[*key].is_empty() && !self.deleted[*key])
        });
        // Keys that are not deleted any more may stand before those that it removed.
        if let Some(clears) = act.clears.as_mut().filter(|_| self.deletes) {
            clears.limit = u32::MAX;
        }
        act
    }

    /// Whether one of them might have met the need.
    fn met(&self, key: usize, need: Need, part: &Part) -> bool {
        if need == Need::Absent {
            return self.deleted[key];
        }
        // A put with the version that was seen, or with the value where nobody was told to have made that
        // version, stays in any case: it shows what is wrong, if it is the other half that differs.
        self.puts[key]
            .iter()
            .any(|(value, slot)| match need.slot() {
                None => need.allows_value(*value),
                Some(needed) if part.is_orphan(needed) => need.allows_value(*value),
                Some(needed) => *slot == Some(needed),
            })
    }
}
