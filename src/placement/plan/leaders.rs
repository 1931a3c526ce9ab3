//! Who shall lead one shard. Decides only.

use crate::placement::node::Health;
use crate::placement::node::NodeView;
use crate::placement::node::Unfit;
use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Proposal;
use crate::placement::plan::draft::Seat;
use crate::placement::plan::draft::Verdict;
use crate::placement::plan::hold::Hold;
use crate::placement::shard::ShardView;
use crate::types::operator::Action;
use crate::types::shard::Replica;

/// Not on a node that is drained, leaves, holds no shards or is slow.
pub(super) fn relieve(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let Some((leading, seat)) = leader(draft, shard) else {
        return Ok(None);
    };
    let Err(unfit) = seat.fitness(shard) else {
        return Ok(None);
    };
    let to = successor(draft, shard, leading).ok_or(Hold::NoSuccessor)?;
    Ok(Some(Proposal {
        action: Action::Transfer {
            from: leading.node,
            to: to.node.id,
        },
        reason: format!("{} {}", leading.node, describe(unfit, seat.node)),
    }))
}

/// Where the rule prefers it.
pub(super) fn prefer(draft: &Draft<'_>, shard: &ShardView) -> Verdict {
    let rule = draft.rule(shard);
    let Some((leading, seat)) = leader(draft, shard) else {
        return Ok(None);
    };
    if rule.prefers(&seat.node.labels) {
        return Ok(None);
    }
    let successor = successor(draft, shard, leading);
    let preferred = successor.filter(|seat| rule.prefers(&seat.node.labels));
    let to = preferred.ok_or(Hold::NoSuccessor)?.node.id;
    Ok(Some(Proposal {
        action: Action::Transfer {
            from: leading.node,
            to,
        },
        reason: format!("the rule prefers {to} to {}", leading.node),
    }))
}

pub(super) fn leader<'d, 'a>(
    draft: &'d Draft<'a>,
    shard: &ShardView,
) -> Option<(Replica, &'d Seat<'a>)> {
    let leading = shard.leading()?;
    Some((leading, draft.seats.get(&leading.node)?))
}

/// Whether a replica on this node could lead.
pub(super) fn can_lead(draft: &Draft<'_>, shard: &ShardView, voter: Replica) -> bool {
    let seat = draft.seats.get(&voter.node);
    seat.is_some_and(|seat| seat.fitness(shard).is_ok()) && shard.caught_up(voter.id, draft.policy)
}

/// Whoever is preferred, and of those whoever leads least.
fn successor<'d, 'a>(
    draft: &'d Draft<'a>,
    shard: &ShardView,
    leading: Replica,
) -> Option<&'d Seat<'a>> {
    let rule = draft.rule(shard);
    let others = shard.voters().filter(|voter| voter.id != leading.id);
    let able = others.filter(|voter| can_lead(draft, shard, *voter));
    let seats = able.filter_map(|voter| draft.seats.get(&voter.node));
    seats.min_by_key(|seat| (!rule.prefers(&seat.node.labels), seat.lead, seat.node.id))
}

fn describe(unfit: Unfit, node: &NodeView) -> String {
    match unfit {
        Unfit::Health(Health::Slow) => format!(
            "is slow: a sync takes {} ms, a round trip {} ms",
            node.sync.as_millis(),
            node.round_trip.as_millis()
        ),
        Unfit::Health(Health::Up | Health::Suspect | Health::Dead)
        | Unfit::Role(_)
        | Unfit::Draining
        | Unfit::Leaving => unfit.to_string(),
    }
}
