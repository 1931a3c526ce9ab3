//! Shards cover the key space without gap or overlap. Decides only.

use crate::testkit::invariants::Violation;
use crate::types::shard::ShardDescriptor;

/// Judges the shards as their leaders know them, all asked when nothing was under way.
pub fn cover(shards: &[ShardDescriptor]) -> Result<(), Violation> {
    let mut sorted: Vec<&ShardDescriptor> = shards.iter().collect();
    sorted.sort_by(|left, right| left.range.start.cmp(&right.range.start));
    let mut reached = Some(bytes::Bytes::new());
    for shard in sorted {
        if reached.as_ref() != Some(&shard.range.start) {
            return Err(format!(
                "{} begins at {:?}, but what is before it ends at {reached:?}",
                shard.id, shard.range.start
            ));
        }
        reached = shard.range.end.clone();
    }
    match reached {
        None => Ok(()),
        Some(end) => Err(format!("nobody has the keys from {end:?} on")),
    }
}

/// Judges the replicas of one node: no two may hold the same key.
pub fn apart(replicas: &[ShardDescriptor]) -> Result<(), Violation> {
    for (nth, one) in replicas.iter().enumerate() {
        let overlapping = |other: &&ShardDescriptor| other.range.overlaps(&one.range);
        if let Some(other) = replicas[nth + 1..].iter().find(overlapping) {
            return Err(format!(
                "{} with {:?} and {} with {:?} overlap",
                one.id, one.range, other.id, other.range
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::KeyRange;
    use crate::types::ShardId;
    use crate::types::shard::Epoch;

    fn shard(id: u64, start: &'static str, end: Option<&'static str>) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: Bytes::from(start),
                end: end.map(Bytes::from),
            },
            epoch: Epoch::default(),
            replicas: Vec::new(),
        }
    }

    #[test]
    fn the_key_space_is_covered_once() {
        assert_eq!(
            cover(&[shard(2, "m", None), shard(1, "", Some("m"))]),
            Ok(())
        );
        assert!(cover(&[shard(1, "", Some("m"))]).is_err());
        assert!(cover(&[shard(1, "", Some("m")), shard(2, "n", None)]).is_err());
        assert!(cover(&[shard(1, "", Some("m")), shard(2, "k", None)]).is_err());
        assert!(cover(&[shard(1, "a", None)]).is_err());
    }

    #[test]
    fn the_replicas_of_a_node_do_not_overlap() {
        assert_eq!(
            apart(&[shard(2, "m", None), shard(1, "", Some("k"))]),
            Ok(())
        );
        assert!(apart(&[shard(1, "", Some("m")), shard(2, "k", None)]).is_err());
    }
}
