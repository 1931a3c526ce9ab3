//! Which keys have to be judged together. Decides only.

use std::collections::BTreeMap;

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::Names;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::act::gather;
use crate::testkit::linear::part::Part;

/// Keys belong together when one act is about both. A key that nobody ever puts is absent for ever, so
/// that seeing it absent binds nothing.
pub(super) fn split(names: &Names, mut acts: Vec<Act>) -> Vec<Part> {
    let mut is_put = vec![false; names.keys.len()];
    for (key, effect) in acts.iter().flat_map(|act| &act.effects) {
        is_put[*key] |= *effect != Effect::Delete;
    }
    for act in &mut acts {
        act.needs
            .retain(|(key, need)| *need != Need::Absent || is_put[*key]);
        act.effects.retain(|(key, _)| is_put[*key]);
        if let Some(clears) = &mut act.clears {
            clears.keys.retain(|key| is_put[*key]);
        }
        // A count of keys that nobody put is wrong, and stays.
        if let Some(count) = act
            .count
            .as_mut()
            .filter(|count| count.keys.iter().any(|key| is_put[*key]))
        {
            count.keys.retain(|key| is_put[*key]);
        }
    }
    let mut groups = Groups((0..names.keys.len()).collect());
    for act in &acts {
        let keys = act.keys();
        keys.windows(2)
            .for_each(|pair| groups.join(pair[0], pair[1]));
    }
    let mut parts: BTreeMap<usize, (Vec<usize>, Vec<Act>)> = BTreeMap::new();
    for key in 0..names.keys.len() {
        let group = groups.of(key);
        parts.entry(group).or_default().0.push(key);
    }
    for act in acts {
        if let Some(first) = act.keys().first() {
            let group = groups.of(*first);
            let part = parts.get_mut(&group).expect("every key has its group");
            part.1.push(act);
        }
    }
    let filled = parts.into_values().filter(|(_, acts)| !acts.is_empty());
    filled
        .map(|(keys, acts)| {
            let (names, acts) = gather(names, &acts, &keys);
            Part::new(names, acts)
        })
        .collect()
}

/// Which keys belong together: each points to another one of its group, and one to itself.
struct Groups(Vec<usize>);

impl Groups {
    fn of(&mut self, key: usize) -> usize {
        let mut at = key;
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, left: usize, right: usize) {
        let (left, right) = (self.of(left), self.of(right));
        self.0[left] = right;
    }
}
