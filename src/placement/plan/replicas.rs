//! Where the replicas of one shard shall be. Decides only.
//!
//! Each aim looks at one shard and gives one action at most; which comes first when several are wanted is the
//! order of the aims. A replica is replaced rather than removed: it goes when the other one is there. Only
//! what the rule has too much of is removed outright, and never so that too few would be left that answer.
//!
//! No aim undoes another's work. What is put on a node satisfies everything that is asked of it: it stands
//! apart from the others as far as it can, the rule allows the node, and the node does well if any does. So only
//! a change of the cluster gives a reason to move it again.

use std::cmp::Reverse;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::node::Health;
use crate::placement::node::NodeView;
use crate::placement::node::Unfit;
use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Proposal;
use crate::placement::plan::draft::Verdict;
use crate::placement::plan::hold::Hold;
use crate::placement::plan::targets::crowd;
use crate::placement::plan::targets::targets;
use crate::placement::plan::targets::targets_at_need;
use crate::placement::shard::ShardView;
use crate::types::NodeId;
use crate::types::node::Duty;
use crate::types::operator::Action;
use crate::types::rule::Rule;
use crate::types::shard::Replica;

/// How many replicas can be lost before no majority answers; below 0: none does.
pub(super) fn spare(draft: &Draft<'_>, shard: &ShardView) -> i64 {
    let live = shard.voters().filter(|voter| draft.is_live(voter.node));
    live.count() as i64 - (shard.voters().count() / 2 + 1) as i64
}

/// As many as the rule says, none on a dead node.
pub(super) fn repair(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    if let Some(learner) = shard.learner() {
        return match draft.health(learner.node) {
            Health::Dead => Ok(Some(remove(learner, format!("{} is dead", learner.node)))),
            Health::Up | Health::Slow | Health::Suspect => Err(Hold::Learner(learner)),
        };
    }
    let (voters, wanted) = (nodes(shard), draft.rule(shard).replicas);
    let mut dead = shard.voters();
    let dead = dead.find(|voter| draft.health(voter.node) == Health::Dead);
    if let Some(dead) = dead.filter(|_| !has_surplus(draft, shard)) {
        let silent_for = draft.view.nodes.get(&dead.node);
        let reason = match silent_for.map(|node| node.silent_for.as_secs()) {
            Some(seconds) => format!("{} is silent for {seconds} s", dead.node),
            None => format!("{} is no member any more", dead.node),
        };
        return replace(draft, shard, dead, reason);
    }
    if voters.len() < wanted {
        let to = targets_at_need(draft, shard, &voters)?.best()?;
        return Ok(Some(Proposal {
            action: Action::Add { to },
            reason: format!("it has {} of {wanted} replicas", voters.len()),
        }));
    }
    match voters.iter().find_map(|voter| silent(draft, *voter)) {
        Some(hold) => Err(hold),
        None => Ok(None),
    }
}

/// No more than the rule says. A shard that has keys of two rules is split first: what is too many for the one may
/// be what the other asks for.
pub(super) fn reduce(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let (voters, wanted) = (nodes(shard), draft.rule(shard).replicas);
    let is_parted = draft.view.wanted_bound(&shard.descriptor.range).is_none();
    if !has_surplus(draft, shard) || !(is_parted || shard.is_placement()) {
        return Ok(None);
    }
    undisturbed(shard)?;
    let worst = shard
        .voters()
        .max_by_key(|voter| badness(draft, shard, &voters, voter));
    let worst = worst.expect("more voters than are wanted are at least one");
    let left = without(&voters, worst.node);
    let live = left.iter().filter(|node| draft.is_live(**node)).count();
    // One that answers is not given up for one of which nobody knows whether it will.
    let majority = left.len() / 2 + 1;
    let needed = match draft.is_live(worst.node) {
        true => majority.max(wanted),
        false => majority,
    };
    if live < needed && !mutant::lives(Mutant::FewLeftRemoved) {
        let left = left.len();
        return Err(Hold::FewLeft { live, left });
    }
    let reason = format!("it has {} of {wanted} replicas", voters.len());
    Ok(Some(remove(worst, reason)))
}

/// None on a node that leaves.
pub(super) fn vacate(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    if has_surplus(draft, shard) {
        return Ok(None);
    }
    let leaving = |voter: &Replica| why_left(shard, draft.view.nodes.get(&voter.node)?);
    let mut voters = shard.voters();
    let Some((voter, why)) = voters.find_map(|voter| leaving(&voter).map(|why| (voter, why)))
    else {
        return Ok(None);
    };
    undisturbed(shard)?;
    replace(draft, shard, voter, format!("{} {why}", voter.node))
}

/// None on a node that the rule excludes.
pub(super) fn obey(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    if has_surplus(draft, shard) {
        return Ok(None);
    }
    let rule = draft.rule(shard);
    let refusal = |voter: &Replica| rule.refusal(&draft.view.nodes.get(&voter.node)?.labels);
    let mut voters = shard.voters();
    let excluded = voters.find_map(|voter| refusal(&voter).map(|label| (voter, label)));
    let Some((voter, label)) = excluded else {
        return Ok(None);
    };
    undisturbed(shard)?;
    let reason = format!("the rule excludes {} by {label}", voter.node);
    replace(draft, shard, voter, reason)
}

/// No two in one zone while there is another.
pub(super) fn spread(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    if has_surplus(draft, shard) {
        return Ok(None);
    }
    let (rule, voters) = (draft.rule(shard), nodes(shard));
    let crowd = |voter: &Replica| crowd(draft, rule, &voters, voter.node);
    let mut crowded: Vec<Replica> = shard.voters().filter(|voter| crowd(voter) > 0).collect();
    if crowded.is_empty() {
        return Ok(None);
    }
    undisturbed(shard)?;
    // What does not lead goes rather than what leads, and the newest stays.
    crowded.sort_by_key(|voter| {
        let leads = shard.leader == Some(voter.id);
        (Reverse(crowd(voter)), leads, voter.id)
    });
    let mut hold = Hold::NoZone {
        replicas: crowded.first().map_or(0, crowd) + 1,
    };
    for voter in crowded {
        let kept = without(&voters, voter.node);
        let targets = targets(draft, shard, &kept)?;
        if targets.crowd >= crowd(&voter) {
            continue;
        }
        if shard.rests(voter.id, draft.policy) {
            hold = Hold::Rests;
            continue;
        }
        let to = targets.best()?;
        let zone = draft.view.nodes.get(&voter.node);
        let zone = zone.and_then(|node| rule.zone(&node.labels)).unwrap_or("");
        let (name, both) = (&rule.spread, crowd(&voter) + 1);
        return Ok(Some(Proposal {
            action: Action::Move { from: voter, to },
            reason: format!("{both} replicas are in {name}={zone}"),
        }));
    }
    Err(hold)
}

/// A replica that is being added comes first, since the shard's leader refuses anything else.
pub(super) fn undisturbed(shard: &ShardView) -> Result<(), Hold> {
    let learner = shard.learner();
    learner.map_or(Ok(()), |learner| Err(Hold::Learner(learner)))
}

/// And so does one that is too many.
pub(super) fn has_surplus(draft: &Draft<'_>, shard: &ShardView) -> bool {
    shard.voters().count() > draft.rule(shard).replicas
}

pub(super) fn nodes(shard: &ShardView) -> Vec<NodeId> {
    shard.voters().map(|voter| voter.node).collect()
}

pub(super) fn without(nodes: &[NodeId], left_out: NodeId) -> Vec<NodeId> {
    let kept = nodes.iter().copied();
    kept.filter(|node| *node != left_out).collect()
}

fn replace(draft: &Draft<'_>, shard: &ShardView, from: Replica, reason: String) -> Verdict {
    let kept = without(&nodes(shard), from.node);
    let to = targets_at_need(draft, shard, &kept)?.best()?;
    let action = Action::Move { from, to };
    Ok(Some(Proposal { action, reason }))
}

fn remove(replica: Replica, reason: String) -> Proposal {
    Proposal {
        action: Action::Remove { replica },
        reason,
    }
}

fn why_left(shard: &ShardView, node: &NodeView) -> Option<Unfit> {
    if !node.is_for(shard.descriptor.id) {
        return Some(Unfit::Role(node.role));
    }
    match node.duty {
        Duty::Leave => Some(Unfit::Leaving),
        Duty::Serve | Duty::Drain => None,
    }
}

fn silent(draft: &Draft<'_>, node: NodeId) -> Option<Hold> {
    match draft.health(node) {
        Health::Up | Health::Slow | Health::Dead => None,
        Health::Suspect => Some(Hold::Silent {
            node,
            silent_for: draft.view.nodes.get(&node)?.silent_for,
            replace_after: draft.policy.replace_after,
        }),
    }
}

/// How much better a shard is off without a replica. Each later word decides only between equals.
fn badness(
    draft: &Draft<'_>,
    shard: &ShardView,
    voters: &[NodeId],
    voter: &Replica,
) -> impl Ord + use<> {
    let rule: &Rule = draft.rule(shard);
    let node = draft.view.nodes.get(&voter.node);
    let health = draft.health(voter.node);
    (
        health == Health::Dead,
        node.is_some_and(|node| why_left(shard, node).is_some()),
        node.is_some_and(|node| rule.refusal(&node.labels).is_some()),
        health == Health::Suspect,
        crowd(draft, rule, voters, voter.node),
        !shard.rests(voter.id, draft.policy),
        health == Health::Slow,
        shard.leader != Some(voter.id),
        voter.id,
    )
}
