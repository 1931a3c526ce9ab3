//! What is to be done next in the cluster: a function of the view, the policy and the time. Decides only.
//!
//! The aims are taken one after another, the most urgent first ([`Aim`]); each looks at the shards for which
//! nothing is under way or planned yet, so that a shard has one operator at a time. What is planned counts as
//! done for what is planned after it: two shards do not both go to the emptiest node because neither knows of
//! the other. What is under way counts in the same manner, so that a plan made again a second later is empty,
//! unless something has changed.
//!
//! Plans end. Each aim has a reason that its own action takes away, and no action gives an earlier aim a
//! reason: replicas are put only where nothing speaks against them, what is evened out stays within the rules
//! and moves only where it is clearly better, a split leaves each half as it was, and what comes of a merge is far
//! from being split again. `tests/plan.rs` holds this on clusters drawn by chance.
//!
//! The same run that plans explains: asked about one shard, it keeps what it finds about that one.

mod balance;
mod draft;
mod hold;
mod leaders;
mod merge;
mod replicas;
mod split;
mod targets;

pub use hold::Excluded;
pub use hold::Explanation;
pub use hold::Finding;
pub use hold::Hold;
pub use hold::Limit;
pub use hold::Unit;

use crate::placement::plan::draft::Draft;
use crate::placement::plan::draft::Verdict;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::placement::view::View;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::operator::Aim;
use crate::types::operator::Operator;

/// What is to be done next, most urgent first; at most one operator for a shard, and none for a shard that
/// has one.
pub fn plan(view: &View, policy: &Policy, now: Timestamp) -> Vec<Operator> {
    drafted(view, policy, now, None).into_operators()
}

/// Why a shard is left as it is, or what is done with it; `None` when there is no such shard.
pub fn explain(
    view: &View,
    policy: &Policy,
    now: Timestamp,
    shard: ShardId,
) -> Option<Explanation> {
    view.shard(shard)?;
    drafted(view, policy, now, Some(shard)).into_explanation()
}

fn drafted<'a>(
    view: &'a View,
    policy: &'a Policy,
    now: Timestamp,
    explained: Option<ShardId>,
) -> Draft<'a> {
    let mut draft = Draft::new(view, policy, now, explained);
    for aim in Aim::ALL {
        match aim {
            // Only a person gives orders.
            Aim::Order => {}
            Aim::Relieve => each(&mut draft, aim, leaders::relieve),
            Aim::Repair => repair(&mut draft),
            Aim::Reduce => each(&mut draft, aim, replicas::reduce),
            Aim::Vacate => each(&mut draft, aim, replicas::vacate),
            Aim::Part => each(&mut draft, aim, split::part),
            Aim::Obey => each(&mut draft, aim, replicas::obey),
            Aim::Spread => each(&mut draft, aim, replicas::spread),
            Aim::Prefer => each(&mut draft, aim, leaders::prefer),
            Aim::SplitSize => each(&mut draft, aim, split::by_size),
            Aim::SplitLoad => each(&mut draft, aim, split::by_load),
            Aim::EvenLoad => balance::even_load(&mut draft),
            Aim::EvenBytes => balance::even_bytes(&mut draft),
            Aim::Merge => merge::merge(&mut draft),
        }
    }
    draft
}

type Look = fn(&Draft<'_>, &ShardView) -> Verdict;

/// What is done with keys is not done with placement's group, and is not asked about it.
fn each(draft: &mut Draft<'_>, aim: Aim, look: Look) {
    let is_about_keys = match aim {
        Aim::Relieve | Aim::Repair | Aim::Reduce | Aim::Vacate | Aim::Spread => false,
        Aim::Order
        | Aim::Part
        | Aim::Obey
        | Aim::Prefer
        | Aim::SplitSize
        | Aim::SplitLoad
        | Aim::EvenLoad
        | Aim::EvenBytes
        | Aim::Merge => true,
    };
    let groups = draft.view.groups();
    for shard in groups.filter(|shard| !(is_about_keys && shard.is_placement())) {
        one(draft, aim, shard, look);
    }
}

/// The shards that can afford to lose least come first.
fn repair(draft: &mut Draft<'_>) {
    let mut shards: Vec<&ShardView> = draft.view.groups().collect();
    shards.sort_by_cached_key(|shard| replicas::spare(draft, shard));
    for shard in shards {
        one(draft, Aim::Repair, shard, replicas::repair);
    }
}

fn one(draft: &mut Draft<'_>, aim: Aim, shard: &ShardView, look: Look) {
    if draft.is_taken(shard) || !draft.is_led(shard) {
        return;
    }
    let verdict = look(draft, shard);
    draft.decide(shard, aim, verdict);
}
