//! When a shard becomes two, and where. Decides only.
//!
//! By size it is split in the middle, which its leader looks for. By load it is split at the key that halves
//! the load, as far as a sample of the keys asked for tells. When no key parts the load so that both halves
//! get a fair share, one key has most of it, and a split would only make another shard.

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Proposal;
use crate::placement::plan::draft::Verdict;
use crate::placement::plan::hold::Hold;
use crate::placement::plan::hold::Unit;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::types::Key;
use crate::types::operator::Action;
use crate::types::operator::SplitPoint;

/// No keys of two rules in one shard, and none of two parts of keyspaces.
pub(super) fn part(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let bound = draft.view.wanted_bound(&shard.descriptor.range);
    Ok(bound.map(|bound| {
        let reason = bound.to_string();
        split(SplitPoint::Key(bound.key), reason)
    }))
}

/// No shard that is too big.
pub(super) fn by_size(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let (bytes, max) = (shard.bytes, draft.policy.split_bytes);
    if bytes < max {
        return Ok(None);
    }
    if shard.keys == 1 {
        return Err(Hold::OneKey);
    }
    let of = |bytes| Unit::Bytes.of(bytes);
    let reason = format!("it has {}, of {} at most", of(bytes), of(max));
    Ok(Some(split(SplitPoint::Middle, reason)))
}

/// No more load than one leader bears.
pub(super) fn by_load(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let policy = draft.policy;
    if !shard.is_busy(policy) {
        return Ok(None);
    }
    if shard.busy_for < policy.split_sustained {
        return Err(Hold::Brief {
            busy_for: shard.busy_for,
            needed: policy.split_sustained,
        });
    }
    let (key, percent) = halving_key(shard, policy)?;
    let (cost, max) = (shard.load.cost(policy), policy.split_operations);
    let reason =
        format!("it bears {cost} operations/s of {max}, {percent} % of them left of the key");
    Ok(Some(split(SplitPoint::Key(key), reason)))
}

/// The key that parts the load most evenly, and the share in percent that is left of it.
fn halving_key(shard: &ShardView, policy: &Policy) -> Result<(Key, u64), Hold> {
    let range = &shard.descriptor.range;
    // Late samples may have keys that a split has taken away.
    let inside = shard.sample.iter().filter(|key| range.contains(key));
    let mut sample: Vec<&Key> = inside.collect();
    sample.sort_unstable();
    if sample.len() < policy.split_samples_min.max(1) {
        return Err(Hold::Samples {
            known: sample.len(),
            needed: policy.split_samples_min,
        });
    }
    let percent = |count: usize| count as u64 * 100 / sample.len() as u64;
    let mut best: Option<(Key, usize)> = None;
    let mut hottest: Option<(&Key, usize)> = None;
    let mut left = 0;
    for alike in sample.chunk_by(|one, other| one == other) {
        let key = alike[0];
        let lighter = |left: usize| left.min(sample.len() - left);
        if *key != range.start
            && best
                .as_ref()
                .is_none_or(|best| lighter(left) > lighter(best.1))
        {
            best = Some((key.clone(), left));
        }
        if hottest.is_none_or(|(_, count)| alike.len() > count) {
            hottest = Some((key, alike.len()));
        }
        left += alike.len();
    }
    let fair =
        |left: usize| percent(left.min(sample.len() - left)) >= policy.split_share_min_percent;
    match best {
        Some((key, left)) if fair(left) || mutant::lives(Mutant::HotKeySplit) => {
            Ok((key, percent(left)))
        }
        Some(_) | None => {
            let (key, count) = hottest.expect("the sample has keys");
            Err(Hold::HotKey {
                key: key.clone(),
                percent: percent(count),
            })
        }
    }
}

fn split(at: SplitPoint, reason: String) -> Proposal {
    let action = Action::Split { at };
    Proposal { action, reason }
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::ShardId;
    use crate::types::shard::Epoch;
    use crate::types::shard::ShardDescriptor;

    use super::*;

    /// Of a sample written as keys of one letter.
    fn halved(start: &'static str, sample: &str) -> Result<(Key, u64), Hold> {
        let mut shard = ShardView::new(ShardDescriptor {
            id: ShardId(1),
            range: KeyRange {
                start: start.into(),
                end: None,
            },
            epoch: Epoch::default(),
            replicas: Vec::new(),
        });
        shard.sample = sample.bytes().map(|letter| vec![letter].into()).collect();
        let policy = Policy {
            split_samples_min: 4,
            ..Policy::default()
        };
        halving_key(&shard, &policy)
    }

    #[test]
    fn the_key_that_halves_the_load_is_found_in_a_sample_in_any_order() {
        let at = |key: &'static str, percent| Ok((Key::from(key), percent));
        assert_eq!(halved("", "dcba"), at("c", 50));
        assert_eq!(halved("", "aabbbbbcdd"), at("c", 70));
        assert_eq!(halved("", "aaaabbbbcc"), at("b", 40));
        assert_eq!(halved("", "aaaabb"), at("b", 66));
        assert_eq!(halved("", "aabbbb"), at("b", 33));
        assert_eq!(halved("b", "abbcc"), at("c", 50), "a is not in the shard");
    }

    #[test]
    fn one_hot_key_is_not_parted_from_the_rest() {
        let hot = |key: &'static str, percent| {
            Err(Hold::HotKey {
                key: key.into(),
                percent,
            })
        };
        assert_eq!(halved("", "kkkkkkkkkz"), hot("k", 90));
        assert_eq!(halved("", "akkkkkkkkz"), hot("k", 80));
        assert_eq!(halved("k", "kkkkkkkkkk"), hot("k", 100));
        assert_eq!(halved("", "kkkk"), hot("k", 100));
        let few = Hold::Samples {
            known: 3,
            needed: 4,
        };
        assert_eq!(halved("", "abc"), Err(few));
    }
}
