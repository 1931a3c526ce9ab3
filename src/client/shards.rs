//! Shards by the order of their keys, as far as a client has heard of them. Decides only.
//!
//! What is heard comes late and out of order. Of two descriptors that overlap the one whose bounds have
//! changed more often is the newer one, since both halves of a split and a merged shard count on from
//! what they were; the older one is forgotten, which costs a hop and never an answer.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Bound;

use crate::types::Key;
use crate::types::KeyRange;
use crate::types::ShardId;
use crate::types::key::Anchor;
use crate::types::shard::ShardDescriptor;

/// Descriptors of which no two overlap. There may be gaps.
#[derive(Debug, Default)]
pub struct Shards {
    /// By the first key of each.
    by_start: BTreeMap<Key, ShardDescriptor>,
    starts: HashMap<ShardId, Key>,
}

impl Shards {
    /// The shard at a place in the order of keys.
    pub fn at(&self, anchor: Anchor<'_>) -> Option<&ShardDescriptor> {
        let key = anchor.key();
        let bounds = (Bound::Unbounded, Bound::Included(&*key));
        let (_, shard) = self.by_start.range::<[u8], _>(bounds).next_back()?;
        shard.range.contains(&key).then_some(shard)
    }

    /// The shard of that id.
    pub fn get(&self, id: ShardId) -> Option<&ShardDescriptor> {
        self.by_start.get(self.starts.get(&id)?)
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &ShardDescriptor> {
        self.by_start.values()
    }

    /// Learns a descriptor. False when what is known is as new.
    pub fn learn(&mut self, shard: ShardDescriptor) -> bool {
        let overlapping = self.overlapping(&shard);
        let mut known = overlapping.iter().filter_map(|id| self.get(*id));
        if known.any(|known| !is_newer(&shard, known)) {
            return false;
        }
        for id in overlapping {
            self.forget(id);
        }
        self.starts.insert(shard.id, shard.range.start.clone());
        self.by_start.insert(shard.range.start.clone(), shard);
        true
    }

    /// What cannot be true together with `shard`: other shards with some of its keys, and what is known
    /// under its own id.
    fn overlapping(&self, shard: &ShardDescriptor) -> Vec<ShardId> {
        let KeyRange { start, end } = &shard.range;
        let above = match end {
            Some(end) => Bound::Excluded(end.clone()),
            None => Bound::Unbounded,
        };
        let mut ids: Vec<ShardId> = Vec::new();
        ids.extend(self.at(Anchor::At(start)).map(|shard| shard.id));
        if !shard.range.is_empty() {
            let behind = self.by_start.range((Bound::Excluded(start.clone()), above));
            ids.extend(behind.map(|(_, shard)| shard.id));
        }
        if self.starts.contains_key(&shard.id) && !ids.contains(&shard.id) {
            ids.push(shard.id);
        }
        ids
    }

    fn forget(&mut self, id: ShardId) {
        if let Some(start) = self.starts.remove(&id) {
            self.by_start.remove(&start);
        }
    }
}

/// Bounds decide; of one shard with the same bounds, its membership.
fn is_newer(shard: &ShardDescriptor, known: &ShardDescriptor) -> bool {
    if shard.id == known.id {
        let epoch = |shard: &ShardDescriptor| (shard.epoch.bounds, shard.epoch.conf);
        return epoch(shard) > epoch(known);
    }
    shard.epoch.bounds > known.epoch.bounds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::shard::Epoch;

    /// `s1 a..m 3` is shard 1 with the keys from a to m and bounds that have changed three times;
    /// `3.1` says that its membership has changed once.
    fn shard(text: &str) -> ShardDescriptor {
        let mut words = text.split(' ');
        let id = words.next().unwrap()[1..].parse().unwrap();
        let (start, end) = words.next().unwrap().split_once("..").unwrap();
        let epoch = words.next().unwrap();
        let (bounds, conf) = epoch.split_once('.').unwrap_or((epoch, "0"));
        let key = |text: &str| Key::copy_from_slice(text.as_bytes());
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: key(start),
                end: (!end.is_empty()).then(|| key(end)),
            },
            epoch: Epoch {
                conf: conf.parse().unwrap(),
                bounds: bounds.parse().unwrap(),
            },
            replicas: Vec::new(),
        }
    }

    fn shown(shards: &Shards) -> String {
        let text = |key: &Key| String::from_utf8(key.to_vec()).unwrap();
        let shown = shards.iter().map(|shard| {
            let (start, end) = (&shard.range.start, &shard.range.end);
            let end = end.as_ref().map(text).unwrap_or_default();
            let Epoch { conf, bounds } = shard.epoch;
            let conf = if conf == 0 {
                String::new()
            } else {
                format!(".{conf}")
            };
            format!("{} {}..{end} {bounds}{conf}", shard.id, text(start))
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    /// Learned one after the other -> known in the end.
    fn check(learned: &[&str], expected: &str) {
        let mut shards = Shards::default();
        for text in learned {
            shards.learn(shard(text));
        }
        assert_eq!(shown(&shards), expected, "{learned:?}");
        for known in shards.iter() {
            assert_eq!(shards.get(known.id), Some(known));
        }
        assert_eq!(shards.starts.len(), shards.by_start.len());
    }

    #[test]
    fn of_two_that_overlap_the_one_with_the_newer_bounds_stays() {
        check(&["s1 .. 1"], "s1 .. 1");
        check(&["s1 .. 1", "s1 ..m 2", "s2 m.. 2"], "s1 ..m 2, s2 m.. 2");
        check(&["s1 ..m 2", "s2 m.. 2", "s1 .. 1"], "s1 ..m 2, s2 m.. 2");
        check(&["s1 .. 1", "s2 m.. 2"], "s2 m.. 2");
        check(&["s2 m.. 2", "s1 .. 1"], "s2 m.. 2");
        check(&["s1 ..m 2", "s2 m..t 3", "s3 t.. 3", "s1 .. 4"], "s1 .. 4");
        check(&["s1 a..c 1", "s2 c..e 1", "s3 b..d 2"], "s3 b..d 2");
        check(
            &["s1 a..c 1", "s2 c..e 3", "s3 b..d 2"],
            "s1 a..c 1, s2 c..e 3",
        );
    }

    #[test]
    fn of_one_shard_the_newer_membership_stays() {
        check(&["s1 .. 1", "s1 .. 1.1"], "s1 .. 1.1");
        check(&["s1 .. 1.1", "s1 .. 1"], "s1 .. 1.1");
        check(&["s1 .. 1.5", "s1 ..m 2.1"], "s1 ..m 2.1");
        check(&["s1 a..c 2", "s1 x..z 3"], "s1 x..z 3");
        check(&["s1 a..c 3", "s1 x..z 2"], "s1 a..c 3");
    }

    #[test]
    fn neighbours_do_not_overlap() {
        check(
            &["s2 c..e 1", "s1 a..c 9", "s3 e.. 9"],
            "s1 a..c 9, s2 c..e 1, s3 e.. 9",
        );
    }

    #[test]
    fn shards_are_found_by_key_and_from_behind() {
        let mut shards = Shards::default();
        for text in ["s1 ..c 1", "s2 c..e 1", "s3 m.. 1"] {
            shards.learn(shard(text));
        }
        let at = |anchor| shards.at(anchor).map(|shard| shard.id.0);
        for (key, id) in [("", Some(1)), ("c", Some(2)), ("e", None), ("z", Some(3))] {
            assert_eq!(at(Anchor::At(key.as_bytes())), id, "at {key}");
        }
        for (key, id) in [
            ("c", Some(1)),
            ("d", Some(2)),
            ("e", Some(2)),
            ("f", None),
            ("m", None),
        ] {
            assert_eq!(at(Anchor::Before(Some(key.as_bytes()))), id, "before {key}");
        }
        assert_eq!(at(Anchor::Before(None)), Some(3));
    }

    proptest! {
        /// Splits at random, heard of in any order and as often as you like: in the end all that is
        /// now is known, and nothing that is no more.
        #[test]
        fn in_whatever_order_splits_are_heard_of(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 1u8..255), 0..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let whole = ShardDescriptor {
                id: ShardId(1),
                range: KeyRange::ALL,
                epoch: Epoch { conf: 0, bounds: 1 },
                replicas: Vec::new(),
            };
            let (mut now, mut ever) = (vec![whole.clone()], vec![whole]);
            for (which, at) in cuts {
                let which = which.index(now.len());
                let at = Key::copy_from_slice(&[at]);
                let Some((left, right)) = now[which].range.split_at(at) else { continue };
                let mut parent = now.remove(which);
                parent.epoch.bounds += 1;
                let id = ShardId(ever.len() as u64 + 1);
                let halves = [
                    ShardDescriptor { range: left, ..parent.clone() },
                    ShardDescriptor { range: right, id, ..parent },
                ];
                now.extend(halves.clone());
                ever.extend(halves);
            }
            let mut shards = Shards::default();
            for which in order {
                shards.learn(ever[which.index(ever.len())].clone());
                let known: Vec<_> = shards.iter().collect();
                prop_assert!(known.windows(2).all(|pair| !pair[0].range.overlaps(&pair[1].range)));
            }
            for shard in &now {
                shards.learn(shard.clone());
            }
            now.sort_by(|one, other| one.range.start.cmp(&other.range.start));
            prop_assert!(shards.iter().eq(&now));
        }
    }
}
