//! When two neighbouring shards become one, and what brings them together. Decides only.
//!
//! Neighbours that have both been small and cold for a while, and are so together, are a *pair*. A shard is in one
//! pair at most: they are made in the order of the keys, so that of three the first two become one, and the third
//! follows when the two have been quiet for long enough again. A pair on the same nodes is merged, the left one
//! absorbs the right one. Of any other the smaller one moves beside the other, one replica after the other.
//!
//! **Nothing here is undone.** A pair is none unless its whole way can be gone: every node on it is fit and has
//! room, and in no step more replicas get into one zone. Who is a pair does not depend on what is being done with
//! it: what is under way counts as done. And what is in a pair is not moved to even out. What comes of a merge is
//! far from what calls for a split, and shards of two rules never are a pair.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Proposal;
use crate::placement::plan::draft::Verdict;
use crate::placement::plan::hold::Finding;
use crate::placement::plan::hold::Hold;
use crate::placement::plan::hold::Unit;
use crate::placement::plan::replicas::without;
use crate::placement::plan::targets::crowd;
use crate::placement::plan::targets::exclusion;
use crate::placement::shard::ShardView;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::operator::Action;
use crate::types::operator::Aim;

/// Two neighbours that shall be one.
#[derive(Clone, Copy)]
struct Pair<'a> {
    left: &'a ShardView,
    right: &'a ShardView,
}

/// A replica goes from the first to the second.
type Leg = (NodeId, NodeId);

/// No more shards than it takes.
pub(super) fn merge(draft: &mut Draft<'_>) {
    let pairs = pairs(draft);
    for pair in &pairs {
        join(draft, *pair);
    }
    let mut shards = draft.view.shards.values();
    let explained = shards.find(|shard| draft.explains(shard) && !draft.is_taken(shard));
    let unpaired = explained.filter(|shard| !pairs.iter().any(|pair| pair.has(shard)));
    if let Some(shard) = unpaired {
        let finding = finding(draft, shard);
        draft.note(shard, Aim::Merge, finding);
    }
}

/// The shards that stay where they are until they are one with a neighbour.
pub(super) fn paired(draft: &Draft<'_>) -> BTreeSet<ShardId> {
    let both = |pair: Pair<'_>| [pair.left, pair.right].map(|shard| shard.descriptor.id);
    pairs(draft).into_iter().flat_map(both).collect()
}

impl<'a> Pair<'a> {
    fn has(self, shard: &ShardView) -> bool {
        [self.left, self.right]
            .map(|it| it.descriptor.id)
            .contains(&shard.descriptor.id)
    }

    /// The smaller one, which is quicker to move, and the other one.
    fn mover(self) -> (&'a ShardView, &'a ShardView) {
        match self.left.bytes < self.right.bytes {
            true => (self.left, self.right),
            false => (self.right, self.left),
        }
    }

    fn bytes(self) -> u64 {
        self.left.bytes + self.right.bytes
    }

    fn cost(self, draft: &Draft<'_>) -> u64 {
        self.left.load.cost(draft.policy) + self.right.load.cost(draft.policy)
    }

    /// What both have together, for people.
    fn sum(self, draft: &Draft<'_>) -> String {
        let max = Unit::Bytes.of(draft.policy.merge_bytes_max().unwrap_or(0));
        format!(
            "both have {} of {max} and bear {} operations/s of {}",
            Unit::Bytes.of(self.bytes()),
            self.cost(draft),
            draft.policy.merge_operations_max()
        )
    }
}

/// All pairs, in the order of their keys.
fn pairs<'a>(draft: &Draft<'a>) -> Vec<Pair<'a>> {
    let starts = by_start(draft);
    let mut pairs: Vec<Pair<'a>> = Vec::new();
    let mut absorbed = BTreeSet::new();
    for left in starts.values().copied() {
        // Most shards are out of the question at first sight.
        if !left.is_quiet(draft.policy) || absorbed.contains(&left.descriptor.id) {
            continue;
        }
        let right = neighbour(&starts, left);
        let pair = right.map(|right| Pair { left, right });
        if let Some(pair) = pair.filter(|pair| check(draft, *pair).is_ok()) {
            absorbed.insert(pair.right.descriptor.id);
            pairs.push(pair);
        }
    }
    pairs
}

/// Of two that begin at one key one is reported late.
fn by_start<'a>(draft: &Draft<'a>) -> BTreeMap<&'a Key, &'a ShardView> {
    let mut shards: Vec<&ShardView> = draft.view.shards.values().collect();
    shards.sort_by_key(|shard| shard.descriptor.epoch.bounds);
    let starts = shards.into_iter();
    starts
        .map(|shard| (&shard.descriptor.range.start, shard))
        .collect()
}

fn neighbour<'a>(
    starts: &BTreeMap<&Key, &'a ShardView>,
    left: &ShardView,
) -> Option<&'a ShardView> {
    let right = starts.get(left.descriptor.range.end.as_ref()?)?;
    (right.descriptor.id != left.descriptor.id).then_some(*right)
}

/// Whether two neighbours are a pair, or why not, as it is found for the left one.
fn check(draft: &Draft<'_>, pair: Pair<'_>) -> Result<(), Finding> {
    let beside = |shard: &ShardView, hold| match shard.descriptor.id == pair.left.descriptor.id {
        true => Finding::Held(hold),
        false => Finding::Beside(shard.descriptor.id, Box::new(Finding::Held(hold))),
    };
    is_little(draft, pair).map_err(Finding::Held)?;
    has_one_rule(draft, pair).map_err(Finding::Held)?;
    for shard in [pair.left, pair.right] {
        is_ready(draft, shard).map_err(|hold| beside(shard, hold))?;
    }
    let (mover, other) = pair.mover();
    way(draft, mover, other).map_err(|hold| beside(mover, hold))?;
    Ok(())
}

fn is_little(draft: &Draft<'_>, pair: Pair<'_>) -> Result<(), Hold> {
    let with = pair.right.descriptor.id;
    let (bytes, max) = (pair.bytes(), draft.policy.merge_bytes_max().unwrap_or(0));
    if bytes > max {
        return Err(Hold::TooBig { with, bytes, max });
    }
    let (operations, max) = (pair.cost(draft), draft.policy.merge_operations_max());
    match operations > max {
        true => Err(Hold::TooBusy {
            with,
            operations,
            max,
        }),
        false => Ok(()),
    }
}

fn has_one_rule(draft: &Draft<'_>, pair: Pair<'_>) -> Result<(), Hold> {
    let mut both = pair.left.descriptor.range.clone();
    both.end.clone_from(&pair.right.descriptor.range.end);
    match draft.view.wanted_bound(&both) {
        Some(bound) if !mutant::lives(Mutant::MergeAcrossRules) => Err(Hold::Parted {
            with: pair.right.descriptor.id,
            bound: bound.to_string(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Whether a shard could be merged, whoever its neighbour is.
fn is_ready(draft: &Draft<'_>, shard: &ShardView) -> Result<(), Hold> {
    let (quiet_for, needed) = (shard.quiet_for, draft.policy.merge_sustained);
    if quiet_for < needed && !mutant::lives(Mutant::MergeRightAfterSplit) {
        return Err(Hold::Unsettled { quiet_for, needed });
    }
    if !draft.is_led(shard) {
        return Err(Hold::NoLeader);
    }
    let is_expected = draft.operator(shard).is_some();
    if let Some(learner) = shard.learner().filter(|_| !is_expected) {
        return Err(Hold::Learner(learner));
    }
    let (nodes, wanted) = (nodes_then(draft, shard), draft.rule(shard).replicas);
    if nodes.len() != wanted {
        let replicas = nodes.len();
        return Err(Hold::NotAsMany { replicas, wanted });
    }
    nodes.into_iter().try_for_each(|node| {
        let seat = draft.seats.get(&node).ok_or(Hold::Gone(node))?;
        let fitness = seat.fitness(shard);
        fitness.map_err(|unfit| Hold::Unfit(node, unfit))
    })
}

/// The nodes of its voters when what is being done with it has been done.
fn nodes_then(draft: &Draft<'_>, shard: &ShardView) -> Vec<NodeId> {
    let mut nodes: BTreeSet<NodeId> = shard.voters().map(|voter| voter.node).collect();
    match draft.operator(shard).map(|operator| &operator.action) {
        Some(Action::Add { to }) => {
            nodes.insert(*to);
        }
        Some(Action::Remove { replica }) => {
            nodes.remove(&replica.node);
        }
        Some(Action::Move { from, to }) => {
            nodes.remove(&from.node);
            nodes.insert(*to);
        }
        Some(Action::Transfer { .. } | Action::Split { .. } | Action::Merge { .. }) | None => {}
    }
    nodes.into_iter().collect()
}

/// What brings the replicas of one shard to the nodes of the other, in this order; nothing when they are there.
fn way(draft: &Draft<'_>, mover: &ShardView, other: &ShardView) -> Result<Vec<Leg>, Hold> {
    let (mut here, there) = (nodes_then(draft, mover), nodes_then(draft, other));
    let mut leaving: Vec<NodeId> = without_all(&here, &there);
    // What leads goes last.
    leaving.sort_by_key(|node| mover.leading().is_some_and(|leading| leading.node == *node));
    let mut coming: Vec<NodeId> = without_all(&there, &here);
    for node in &coming {
        let why = draft
            .seats
            .get(node)
            .and_then(|seat| exclusion(draft, mover, seat));
        if let Some(why) = why {
            return Err(Hold::NoNode(vec![(*node, why)]));
        }
    }
    let mut legs = Vec::new();
    while !coming.is_empty() {
        let (from, to) = leg(draft, mover, &here, (&leaving, &coming))?;
        leaving.retain(|node| *node != from);
        coming.retain(|node| *node != to);
        here.retain(|node| *node != from);
        here.push(to);
        legs.push((from, to));
    }
    Ok(legs)
}

/// A replica goes where it has no more company than before.
fn leg(
    draft: &Draft<'_>,
    mover: &ShardView,
    here: &[NodeId],
    (leaving, coming): (&[NodeId], &[NodeId]),
) -> Result<Leg, Hold> {
    let rule = draft.rule(mover);
    for from in leaving {
        let kept = without(here, *from);
        let crowd = |node: NodeId| crowd(draft, rule, &kept, node);
        let to = coming.iter().find(|to| crowd(**to) <= crowd(*from));
        if let Some(to) = to {
            return Ok((*from, *to));
        }
    }
    let fullest = coming.iter().map(|to| crowd(draft, rule, here, *to)).max();
    Err(Hold::NoZone {
        replicas: fullest.unwrap_or(0) + 1,
    })
}

fn without_all(nodes: &[NodeId], left_out: &[NodeId]) -> Vec<NodeId> {
    let kept = nodes.iter().copied();
    kept.filter(|node| !left_out.contains(node)).collect()
}

/// Does the next thing for a pair.
fn join(draft: &mut Draft<'_>, pair: Pair<'_>) {
    if draft.is_taken(pair.left) || draft.is_taken(pair.right) {
        note_taken(draft, pair);
        return;
    }
    let (mover, _) = pair.mover();
    let (shard, verdict) = match next(draft, pair) {
        Ok(None) => (pair.left, Ok(Some(absorb(draft, pair)))),
        other => (mover, other),
    };
    let other = match shard.descriptor.id == pair.left.descriptor.id {
        true => pair.right,
        false => pair.left,
    };
    let finding = draft.decide(shard, Aim::Merge, verdict);
    let finding = Finding::Beside(shard.descriptor.id, Box::new(finding));
    draft.note(other, Aim::Merge, finding);
}

/// What brings a pair closer; nothing when it is on the same nodes.
fn next(draft: &Draft<'_>, pair: Pair<'_>) -> Verdict {
    let (mover, other) = pair.mover();
    let Some((from, to)) = way(draft, mover, other)?.first().copied() else {
        return Ok(None);
    };
    let from = mover.voter_on(from);
    let from = from.expect("nothing is being done with it, so that its voters are on these nodes");
    if mover.rests(from.id, draft.policy) {
        return Err(Hold::Rests);
    }
    Ok(Some(Proposal {
        action: Action::Move { from, to },
        reason: format!("{} is there, and {}", other.descriptor.id, pair.sum(draft)),
    }))
}

fn absorb(draft: &Draft<'_>, pair: Pair<'_>) -> Proposal {
    let right = &pair.right.descriptor;
    Proposal {
        action: Action::Merge {
            right: right.id,
            epoch: right.epoch,
        },
        reason: pair.sum(draft),
    }
}

/// Each of a pair waits for what is being done with the other one.
fn note_taken(draft: &mut Draft<'_>, pair: Pair<'_>) {
    for (shard, other) in [(pair.left, pair.right), (pair.right, pair.left)] {
        let doing = draft.operator(other).map(ToString::to_string);
        if let Some(doing) = doing.filter(|_| !draft.is_taken(shard)) {
            let held = Finding::Held(Hold::Operator(doing));
            let finding = Finding::Beside(other.descriptor.id, Box::new(held));
            draft.note(shard, Aim::Merge, finding);
        }
    }
}

/// Why a shard is in no pair: nobody asks about one that is big or busy, and the last one has no neighbour.
fn finding(draft: &Draft<'_>, left: &ShardView) -> Finding {
    if !left.is_quiet(draft.policy) {
        return Finding::InOrder;
    }
    let Some(right) = neighbour(&by_start(draft), left) else {
        return Finding::InOrder;
    };
    let checked = check(draft, Pair { left, right });
    checked.err().unwrap_or(Finding::InOrder)
}
