//! What evens out the nodes when every shard is in order. Decides only.
//!
//! Two things are evened out apart from each other: what it costs a node to lead what it leads, by passing the
//! lead on to a replica that is there; and the bytes that a node holds, by moving replicas that do not lead. So
//! neither disturbs the other. (A shard's only replica takes the lead along. It moves only where both are
//! better.)
//!
//! **It ends, and nothing goes back.** A move is made only when it brings two nodes closer, by more than a share
//! of the mean beyond what it moves: the sum of squares over the nodes falls by at least that with each, and
//! nothing that is moved here raises it. Of those that would do, the one goes first by which it falls most.
//! That does not yet keep a replica from being moved twice, since what is best changes with every other move.
//! So what has come to a node lately stays there, and so does a lead. Loads that only waver move nothing.

use std::collections::BTreeSet;

use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Proposal;
use crate::placement::plan::draft::Seat;
use crate::placement::plan::hold::Finding;
use crate::placement::plan::hold::Hold;
use crate::placement::plan::hold::Unit;
use crate::placement::plan::leaders::can_lead;
use crate::placement::plan::leaders::leader;
use crate::placement::plan::merge::paired;
use crate::placement::plan::replicas::has_surplus;
use crate::placement::plan::replicas::nodes;
use crate::placement::plan::replicas::undisturbed;
use crate::placement::plan::replicas::without;
use crate::placement::plan::targets::crowd;
use crate::placement::plan::targets::exclusion;
use crate::placement::shard::ShardView;
use crate::types::NodeId;
use crate::types::operator::Action;
use crate::types::operator::Aim;
use crate::types::shard::Replica;

/// What goes from one node to another.
#[derive(Clone, Copy)]
enum Goods {
    Lead,
    Replica,
}

/// Something that evens out.
struct Gain<'a> {
    shard: &'a ShardView,
    from: Replica,
    to: NodeId,
    /// By how much the sum of squares falls.
    fall: f64,
}

/// By how much two nodes must differ beyond what goes from one to the other.
#[derive(Clone, Copy)]
struct Margin {
    lead: u64,
    share: f64,
}

/// Evens out what the nodes lead.
pub(super) fn even_load(draft: &mut Draft<'_>) {
    even(draft, Aim::EvenLoad, Goods::Lead);
}

/// Evens out the bytes that they hold.
pub(super) fn even_bytes(draft: &mut Draft<'_>) {
    even(draft, Aim::EvenBytes, Goods::Replica);
}

fn even(draft: &mut Draft<'_>, aim: Aim, goods: Goods) {
    let margin = margin(draft);
    // What shall be one with its neighbour goes to that, or waits for it.
    let staying = match goods {
        Goods::Lead => BTreeSet::new(),
        Goods::Replica => paired(draft),
    };
    let shards = draft.view.shards.values();
    let shards = shards.filter(|shard| !staying.contains(&shard.descriptor.id));
    let mut shards: Vec<&ShardView> = shards.filter(|shard| draft.is_led(shard)).collect();
    loop {
        shards.retain(|shard| !draft.is_taken(shard));
        let Some(best) = best(draft, aim, goods, margin, &shards) else {
            break;
        };
        let proposal = proposal(draft, goods, &best);
        draft.decide(best.shard, aim, Ok(Some(proposal)));
    }
    if let Some(shard) = shards.into_iter().find(|shard| draft.explains(shard)) {
        let finding = finding(draft, aim, goods, margin, shard);
        draft.note(shard, aim, finding);
    }
}

/// What evens out most; the first of equals, so that a plan is the same each time.
fn best<'a>(
    draft: &Draft<'a>,
    aim: Aim,
    goods: Goods,
    margin: Margin,
    shards: &[&'a ShardView],
) -> Option<Gain<'a>> {
    let fit = || draft.seats.values().filter(|seat| seat.is_fit());
    let least_lead = fit().map(|seat| seat.lead).min()?;
    let least_share = fit().map(|seat| seat.share(seat.bytes)).reduce(f64::min)?;
    // Most shards are out of the question at first sight: of thousands this is asked every second.
    let is_high = |seat: &Seat<'_>| match goods {
        Goods::Lead => seat.lead > least_lead + margin.lead,
        Goods::Replica => seat.share(seat.bytes) > least_share + margin.share,
    };
    let high: BTreeSet<NodeId> = fit()
        .filter(|seat| is_high(seat))
        .map(|seat| seat.node.id)
        .collect();
    let mut best: Option<Gain<'a>> = None;
    for shard in shards.iter().copied() {
        if !shard.voters().any(|voter| high.contains(&voter.node)) {
            continue;
        }
        each(draft, goods, margin, shard, &mut |gain| {
            let Ok(gain) = gain else { return };
            let is_better = best.as_ref().is_none_or(|best| gain.fall > best.fall);
            if is_better && draft.admits(shard, aim, &action(goods, &gain)).is_ok() {
                best = Some(gain);
            }
        });
    }
    best
}

/// Why nothing is done with a shard: of all that could be done, what comes closest.
fn finding(
    draft: &Draft<'_>,
    aim: Aim,
    goods: Goods,
    margin: Margin,
    shard: &ShardView,
) -> Finding {
    let mut closest: Option<(u64, Hold)> = None;
    each(draft, goods, margin, shard, &mut |gain| {
        let admitted = gain.and_then(|gain| draft.admits(shard, aim, &action(goods, &gain)));
        let Err(hold) = admitted else { return };
        // When the nodes differ by enough, something else is in the way.
        let gap = hold.gap().unwrap_or(u64::MAX);
        if closest.as_ref().is_none_or(|(most, _)| gap > *most) {
            closest = Some((gap, hold));
        }
    });
    closest.map_or(Finding::InOrder, |(_, hold)| Finding::Held(hold))
}

/// Looks at everything that could go from one node to another.
fn each<'a>(
    draft: &Draft<'a>,
    goods: Goods,
    margin: Margin,
    shard: &'a ShardView,
    look: &mut dyn FnMut(Result<Gain<'a>, Hold>),
) {
    let Some((leading, _)) = leader(draft, shard) else {
        return;
    };
    match goods {
        Goods::Lead => {
            let others = shard.voters().filter(|voter| voter.id != leading.id);
            let able = others.filter(|voter| can_lead(draft, shard, *voter));
            able.for_each(|voter| look(pass(draft, margin, shard, leading, voter)));
        }
        Goods::Replica if has_surplus(draft, shard) => {}
        Goods::Replica => {
            let is_only = shard.voters().count() == 1;
            let movable = shard
                .voters()
                .filter(|voter| is_only || voter.id != leading.id);
            let seats = draft.seats.values();
            let open = seats.filter(|seat| exclusion(draft, shard, seat).is_none());
            let open: Vec<&Seat<'a>> = open.collect();
            for voter in movable {
                if let Some(here) = draft.seats.get(&voter.node).filter(|seat| seat.is_fit()) {
                    let seats = open.iter();
                    seats.for_each(|there| look(carry(draft, margin, shard, voter, here, there)));
                }
            }
        }
    }
}

/// Passes the lead on.
fn pass<'a>(
    draft: &Draft<'a>,
    margin: Margin,
    shard: &'a ShardView,
    from: Replica,
    to: Replica,
) -> Result<Gain<'a>, Hold> {
    let (Some(here), Some(there)) = (draft.seats.get(&from.node), draft.seats.get(&to.node)) else {
        return Err(Hold::NoSuccessor);
    };
    let lead = draft.lead(shard);
    let needed = lead + margin.lead;
    if here.lead <= there.lead + needed {
        return Err(even_lead(here, there, needed));
    }
    if shard.led_for < draft.policy.leader_rest {
        return Err(Hold::Rests);
    }
    let rule = draft.rule(shard);
    if rule.prefers(&here.node.labels) && !rule.prefers(&there.node.labels) {
        return Err(Hold::NoSuccessor);
    }
    Ok(Gain {
        shard,
        from,
        to: to.node,
        fall: lead as f64 * (here.lead - there.lead - lead) as f64,
    })
}

/// Moves a replica.
fn carry<'a>(
    draft: &Draft<'a>,
    margin: Margin,
    shard: &'a ShardView,
    from: Replica,
    here: &Seat<'_>,
    there: &Seat<'_>,
) -> Result<Gain<'a>, Hold> {
    let weight = draft.weight(shard);
    let needed = (here.share(weight) + there.share(weight)) / 2.0;
    let gap = here.share(here.bytes) - there.share(there.bytes);
    let to = there.node.id;
    if gap <= needed + margin.share {
        return Err(Hold::Even {
            unit: Unit::Bytes,
            from: from.node,
            here: here.bytes,
            to,
            there: there.bytes,
            needed: ((needed + margin.share) * there.node.capacity_bytes as f64) as u64,
        });
    }
    undisturbed(shard)?;
    if shard.rests(from.id, draft.policy) {
        return Err(Hold::Rests);
    }
    let (rule, voters) = (draft.rule(shard), nodes(shard));
    let kept = without(&voters, from.node);
    let crowd = |node: NodeId| crowd(draft, rule, &kept, node);
    if crowd(to) > crowd(from.node) {
        return Err(Hold::NoZone {
            replicas: crowd(to),
        });
    }
    // The lead goes along.
    let lead = draft.lead(shard);
    if shard.leader == Some(from.id) && here.lead < there.lead + lead {
        return Err(even_lead(here, there, lead));
    }
    Ok(Gain {
        shard,
        from,
        to,
        fall: weight as f64 * (gap - needed),
    })
}

fn even_lead(here: &Seat<'_>, there: &Seat<'_>, needed: u64) -> Hold {
    Hold::Even {
        unit: Unit::Operations,
        from: here.node.id,
        here: here.lead,
        to: there.node.id,
        there: there.lead,
        needed,
    }
}

fn action(goods: Goods, gain: &Gain<'_>) -> Action {
    let (from, to) = (gain.from, gain.to);
    match goods {
        Goods::Lead => Action::Transfer {
            from: from.node,
            to,
        },
        Goods::Replica => Action::Move { from, to },
    }
}

fn proposal(draft: &Draft<'_>, goods: Goods, gain: &Gain<'_>) -> Proposal {
    let (from, to) = (gain.from.node, gain.to);
    let count = |node: NodeId| match (goods, draft.seats.get(&node)) {
        (Goods::Lead, Some(seat)) => seat.lead,
        (Goods::Replica, Some(seat)) => seat.bytes,
        (Goods::Lead | Goods::Replica, None) => 0,
    };
    let (verb, unit, goes) = match goods {
        Goods::Lead => ("leads", Unit::Operations, draft.lead(gain.shard)),
        Goods::Replica => ("holds", Unit::Bytes, draft.weight(gain.shard)),
    };
    let (here, there, goes) = (unit.of(count(from)), unit.of(count(to)), unit.of(goes));
    let reason = format!("{from} {verb} {here} and {to} {there}, {goes} of it by this shard");
    Proposal {
        action: action(goods, gain),
        reason,
    }
}

/// A share of the mean over the nodes that may get something.
fn margin(draft: &Draft<'_>) -> Margin {
    let percent = draft.policy.balance_percent;
    let fit: Vec<&Seat<'_>> = draft.seats.values().filter(|seat| seat.is_fit()).collect();
    let count = (fit.len() as u64).max(1);
    let lead: u64 = fit.iter().map(|seat| seat.lead).sum();
    let shares: f64 = fit.iter().map(|seat| seat.share(seat.bytes)).sum();
    Margin {
        lead: lead * percent / 100 / count,
        share: shares * percent as f64 / 100.0 / count as f64,
    }
}
