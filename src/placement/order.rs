//! What a person orders, as an operator. Decides only.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::operator::Action;
use crate::types::operator::Aim;
use crate::types::operator::Operator;

/// A replica of a shard moves from one node to another. An error says why it cannot.
pub fn move_replica(
    view: &View,
    policy: &Policy,
    now: Timestamp,
    (id, from, to): (ShardId, NodeId, NodeId),
) -> Result<Operator, String> {
    let shard = view.shards.get(&id);
    let shard = shard.ok_or_else(|| format!("there is no {id}"))?;
    let leaving = shard.voter_on(from);
    let leaving = leaving.ok_or_else(|| format!("{id} has no replica on {from}"))?;
    if shard.voter_on(to).is_some() {
        return Err(format!("{id} has a replica on {to} already"));
    }
    let node = view.nodes.get(&to);
    let node = node.ok_or_else(|| format!("there is no {to}"))?;
    if let Err(unfit) = node.fitness(id, policy) {
        return Err(format!("{to} {unfit}"));
    }
    let rule = view.rule(shard, policy);
    if let Some(label) = rule.refusal(&node.labels) {
        return Err(format!("the rule for {id} excludes {to} by {label}"));
    }
    let expires_ms = now.wall_ms() + copy_time(shard.bytes, policy).as_millis() as u64;
    Ok(Operator {
        shard: id,
        aim: Aim::Order,
        action: Action::Move { from: leaving, to },
        reason: "a person wants it".to_owned(),
        epoch: shard.descriptor.epoch,
        voters: shard.voters().collect(),
        bytes: shard.bytes,
        expires: Timestamp::from_wall(expires_ms),
    })
}

/// A shard absorbs its right neighbour. An error says why it cannot, and what would help.
pub fn merge(
    view: &View,
    policy: &Policy,
    now: Timestamp,
    id: ShardId,
) -> Result<Operator, String> {
    let left = view.shards.get(&id);
    let left = left.ok_or_else(|| format!("there is no {id}"))?;
    let right = right_of(view, left)?;
    check_free(view, left)?;
    check_free(view, right)?;
    check_rule(view, left, right)?;
    check_nodes(left, right)?;
    check_size(policy, left, right)?;
    let expires_ms = now.wall_ms() + policy.operator_time.as_millis() as u64;
    Ok(Operator {
        shard: id,
        aim: Aim::Order,
        action: Action::Merge {
            right: right.descriptor.id,
            epoch: right.descriptor.epoch,
        },
        reason: "a person wants it".to_owned(),
        epoch: left.descriptor.epoch,
        voters: left.voters().collect(),
        bytes: 0,
        expires: Timestamp::from_wall(expires_ms),
    })
}

fn right_of<'a>(view: &'a View, left: &ShardView) -> Result<&'a ShardView, String> {
    let id = left.descriptor.id;
    let Some(end) = &left.descriptor.range.end else {
        return Err(format!("{id} has the last keys: nothing is right of it"));
    };
    let neighbours = view.shards.values();
    let neighbours = neighbours.filter(|shard| shard.descriptor.range.start == end);
    let right = neighbours.max_by_key(|shard| shard.descriptor.epoch.bounds);
    right.ok_or_else(|| format!("placement has not heard yet of what is right of {id}"))
}

fn check_free(view: &View, shard: &ShardView) -> Result<(), String> {
    let id = shard.descriptor.id;
    let mut operators = view.operators.values();
    let takes = |it: &&Operator| it.shard == id || it.action.absorbed() == Some(id);
    if let Some(operator) = operators.find(takes) {
        return Err(format!(
            "something else is being done: {operator}; `quorate operator cancel {}` gives it up",
            operator.shard
        ));
    }
    match shard.learner() {
        Some(learner) => Err(format!("{id} is getting a replica on {}", learner.node)),
        None => Ok(()),
    }
}

fn check_rule(view: &View, left: &ShardView, right: &ShardView) -> Result<(), String> {
    let (left, right) = (&left.descriptor, &right.descriptor);
    let mut both = left.range.clone();
    both.end.clone_from(&right.range.end);
    match view.wanted_bound(&both) {
        Some(bound) => Err(format!(
            "{bound}: {} and {} would be split there again",
            left.id, right.id
        )),
        None => Ok(()),
    }
}

fn check_nodes(left: &ShardView, right: &ShardView) -> Result<(), String> {
    let nodes = |shard: &ShardView| -> BTreeSet<NodeId> {
        shard.voters().map(|voter| voter.node).collect()
    };
    let (here, there) = (nodes(left), nodes(right));
    if here == there {
        return Ok(());
    }
    let (left, right) = (left.descriptor.id, right.descriptor.id);
    let apart = format!(
        "{left} is on {} and {right} on {}",
        list(&here),
        list(&there)
    );
    let leg = there
        .difference(&here)
        .next()
        .zip(here.difference(&there).next());
    Err(match leg {
        Some((from, to)) => format!(
            "{apart}: they must be on the same nodes; `quorate shard move {right} --from {from} --to {to}` brings them closer"
        ),
        None => format!("{apart}: they must be on the same nodes"),
    })
}

fn check_size(policy: &Policy, left: &ShardView, right: &ShardView) -> Result<(), String> {
    let bytes = left.bytes + right.bytes;
    match bytes >= policy.split_bytes {
        true => Err(format!(
            "together they have {bytes} bytes, and would be split again at {}",
            policy.split_bytes
        )),
        false => Ok(()),
    }
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// How long an operator that copies so many bytes may take.
pub fn copy_time(bytes: u64, policy: &Policy) -> Duration {
    let rate = policy.snapshot_bytes_per_second.max(1);
    policy.operator_time + policy.catch_up_time + Duration::from_secs(bytes / rate)
}

#[cfg(test)]
mod tests {
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::rule::Rule;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::ShardDescriptor;

    use super::*;

    fn shard(id: u64, start: &'static str, end: &'static str, nodes: &[u64]) -> ShardView {
        let replicas = nodes.iter().map(|node| Replica {
            id: ReplicaId(10 * id + node),
            node: NodeId(*node),
        });
        ShardView::new(ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: start.into(),
                end: (!end.is_empty()).then(|| end.into()),
            },
            epoch: Epoch {
                conf: 1,
                bounds: id,
            },
            replicas: replicas.collect(),
        })
    }

    fn view(shards: Vec<ShardView>) -> View {
        let shards = shards.into_iter();
        View {
            shards: shards.map(|shard| (shard.descriptor.id, shard)).collect(),
            ..View::default()
        }
    }

    /// s1, s2 and s3, from left to right.
    fn row() -> View {
        view(vec![
            shard(1, "", "g", &[1, 2, 3]),
            shard(2, "g", "m", &[3, 2, 1]),
            shard(3, "m", "", &[1, 4, 5]),
        ])
    }

    fn ordered(view: &View, id: u64) -> Result<Operator, String> {
        merge(
            view,
            &Policy::default(),
            Timestamp::from_wall(1_000),
            ShardId(id),
        )
    }

    #[test]
    fn neighbours_on_the_same_nodes_are_merged() {
        let operator = ordered(&row(), 1).unwrap();
        assert_eq!(
            operator.to_string(),
            "s1: absorb s2 (order: a person wants it)"
        );
        let right = Epoch { conf: 1, bounds: 2 };
        assert!(matches!(operator.action, Action::Merge { epoch, .. } if epoch == right));
        assert_eq!(operator.expires, Timestamp::from_wall(31_000));
    }

    #[test]
    fn what_cannot_be_merged_is_refused_with_what_would_help() {
        let refused = |view: &View, id| ordered(view, id).unwrap_err();
        let mut view = row();
        assert_eq!(refused(&view, 9), "there is no s9");
        assert_eq!(
            refused(&view, 3),
            "s3 has the last keys: nothing is right of it"
        );
        assert_eq!(
            refused(&view, 2),
            "s2 is on n1, n2, n3 and s3 on n1, n4, n5: they must be on the same nodes; \
             `quorate shard move s3 --from n4 --to n2` brings them closer"
        );
        view.rules = vec![Rule {
            prefix: "g".into(),
            ..Rule::default()
        }];
        let ruled = "a rule begins or ends at g: s1 and s2 would be split there again";
        assert_eq!(refused(&view, 1), ruled);
        let mut view = row();
        let left = view.shards.get_mut(&ShardId(1)).unwrap();
        left.learners.insert(ReplicaId(12));
        assert_eq!(refused(&view, 1), "s1 is getting a replica on n2");
        let mut view = row();
        let left = view.shards.get_mut(&ShardId(1)).unwrap();
        left.bytes = Policy::default().split_bytes;
        let big = "together they have 67108864 bytes, and would be split again at 67108864";
        assert_eq!(refused(&view, 1), big);
        let mut view = row();
        view.shards.remove(&ShardId(2));
        let unheard = "placement has not heard yet of what is right of s1";
        assert_eq!(refused(&view, 1), unheard);
    }

    #[test]
    fn what_is_taken_by_another_operator_is_refused() {
        let mut view = row();
        let other = ordered(&view, 1).unwrap();
        view.operators.insert(ShardId(1), other);
        let doing = "something else is being done: s1: absorb s2 (order: a person wants it); \
                     `quorate operator cancel s1` gives it up";
        assert_eq!(ordered(&view, 1).unwrap_err(), doing);
        assert_eq!(ordered(&view, 2).unwrap_err(), doing);
    }
}
