//! Which node gets a replica. Decides only.
//!
//! First comes where it stands apart from the others, then where there is most room. A node that would be
//! best but has enough on its way already, or has only just started and not looked at its disk, is waited for: a
//! replica that were put into a worse zone now would have to be moved again. A slow node gets one only where there
//! is no other, and so does one that has not taken it lately: a replica that is slow to have a write is better than
//! none.

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::node::Health;
use crate::placement::node::Unfit;
use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Seat;
use crate::placement::plan::hold::Excluded;
use crate::placement::plan::hold::Hold;
use crate::placement::shard::ShardView;
use crate::types::NodeId;
use crate::types::rule::Rule;

/// The nodes that would do, all with as few of the shard's replicas in their zone.
pub(super) struct Targets<'d, 'a> {
    draft: &'d Draft<'a>,
    seats: Vec<&'d Seat<'a>>,
    /// How many replicas of the shard are in the zone of each.
    pub(super) crowd: usize,
}

/// The nodes that would do for a replica beside those on the nodes that keep theirs.
pub(super) fn targets<'d, 'a>(
    draft: &'d Draft<'a>,
    shard: &ShardView,
    kept: &[NodeId],
) -> Result<Targets<'d, 'a>, Hold> {
    let (mut excluded, mut fit) = (Vec::new(), Vec::new());
    for seat in draft.seats.values() {
        match exclusion(draft, shard, seat) {
            Some(why) => excluded.push((seat.node.id, why)),
            None => fit.push(seat),
        }
    }
    apart(draft, shard, kept, fit).ok_or(Hold::NoNode(excluded))
}

/// As [`targets`], for a replica that must not wait: where no other node would do, one that is slow does, or has not
/// taken it lately.
pub(super) fn targets_at_need<'d, 'a>(
    draft: &'d Draft<'a>,
    shard: &ShardView,
    kept: &[NodeId],
) -> Result<Targets<'d, 'a>, Hold> {
    let is_last_resort = |seat: &Seat<'_>| match exclusion(draft, shard, seat) {
        Some(Excluded::Unfit(Unfit::Health(Health::Slow)) | Excluded::Refused) => {
            refusal(draft, shard, seat).is_none()
        }
        Some(_) | None => false,
    };
    targets(draft, shard, kept).or_else(|hold| {
        let seats = draft.seats.values();
        let would_do = seats.filter(|seat| is_last_resort(seat));
        apart(draft, shard, kept, would_do.collect()).ok_or(hold)
    })
}

/// Those of the nodes that stand apart from the others as far as any does.
fn apart<'d, 'a>(
    draft: &'d Draft<'a>,
    shard: &ShardView,
    kept: &[NodeId],
    seats: Vec<&'d Seat<'a>>,
) -> Option<Targets<'d, 'a>> {
    let rule = draft.rule(shard);
    let crowd = |seat: &&Seat<'_>| crowd(draft, rule, kept, seat.node.id);
    let least = seats.iter().map(crowd).min()?;
    let seats = seats.into_iter().filter(|seat| crowd(seat) == least);
    Some(Targets {
        draft,
        seats: seats.collect(),
        crowd: least,
    })
}

impl Targets<'_, '_> {
    /// The emptiest of those to which one more may be on its way.
    pub(super) fn best(&self) -> Result<NodeId, Hold> {
        let seats = self.seats.iter();
        let open = seats.filter(|seat| self.draft.has_place(seat.node.id).is_ok());
        let emptiest = open.min_by(|one, other| {
            let shares = one.share(one.bytes).total_cmp(&other.share(other.bytes));
            shares.then(one.node.id.cmp(&other.node.id))
        });
        let best = emptiest.or(self.seats.first());
        let best = best.expect("there is one with as few as possible").node.id;
        self.draft.has_place(best).map(|()| best)
    }
}

/// Why a node does not get a replica of the shard.
pub(super) fn exclusion(draft: &Draft<'_>, shard: &ShardView, seat: &Seat<'_>) -> Option<Excluded> {
    if shard.descriptor.replica_on(seat.node.id).is_some() {
        return Some(Excluded::Holds);
    }
    if let Err(unfit) = seat.fitness(shard) {
        return Some(Excluded::Unfit(unfit));
    }
    if shard.refused.contains(&seat.node.id) {
        return Some(Excluded::Refused);
    }
    refusal(draft, shard, seat)
}

/// Why it does not, however well it does.
fn refusal(draft: &Draft<'_>, shard: &ShardView, seat: &Seat<'_>) -> Option<Excluded> {
    if let Some(label) = draft.rule(shard).refusal(&seat.node.labels) {
        return Some(Excluded::Label(label));
    }
    (!draft.has_room(seat, shard)).then_some(Excluded::Full)
}

/// How many of these nodes, the node itself left out, are in its zone.
pub(super) fn crowd(draft: &Draft<'_>, rule: &Rule, nodes: &[NodeId], node: NodeId) -> usize {
    if mutant::lives(Mutant::ZonesIgnored) {
        return 0;
    }
    let zone = |node: NodeId| {
        let seat = draft.seats.get(&node)?;
        rule.zone(&seat.node.labels)
    };
    let Some(own) = zone(node) else {
        return 0;
    };
    let others = nodes.iter().filter(|other| **other != node);
    others.filter(|other| zone(**other) == Some(own)).count()
}
