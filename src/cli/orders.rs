//! What a person has placement do with one shard: it is recorded, carried out, and has come to its end.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::render;
use crate::cli::waiting::Waiting;
use crate::client::Admin;
use crate::types::ShardId;
use crate::types::operator::Aim;
use crate::types::overview::Arrangement;
use crate::types::overview::OperatorOverview;
use crate::types::overview::Overview;
use crate::wire::request::OverviewQuery;

/// Events that are shown when an order has failed.
const EVENTS_SHOWN: usize = 3;

/// Gives an order. One that is there already, with an action that ends like this, may be this one, whose answer was
/// lost.
pub(super) async fn give(
    admin: &Admin,
    shard: ShardId,
    arrangement: Arrangement,
    action_end: &str,
) -> Result<(), Failure> {
    let Err(error) = admin.arrange(arrangement, None).await else {
        return Ok(());
    };
    let seen = admin.overview(OverviewQuery::default(), None).await;
    let is_there = seen.is_ok_and(|overview| {
        let order = order_of(&overview, shard);
        order.is_some_and(|order| order.action.ends_with(action_end))
    });
    match is_there {
        true => Ok(()),
        false => Err(error.into()),
    }
}

/// What is being done with a shard because a person wants it.
fn order_of(overview: &Overview, shard: ShardId) -> Option<&OperatorOverview> {
    let aim = Aim::Order.to_string();
    let mut operators = overview.operators.iter();
    operators.find(|it| it.shard == shard && it.aim == aim)
}

/// Until the order, in a word `what`, has ended, however. Each step is told once.
pub(super) async fn wait(
    shard: ShardId,
    what: &str,
    context: &Context,
) -> Result<Overview, Failure> {
    let stays = format!("the {what} goes on; give it up with: quorate operator cancel {shard}");
    let mut waiting = Waiting::start(context, stays)?;
    let mut told = String::new();
    loop {
        let overview = waiting.look().await?;
        let Some(order) = order_of(&overview, shard) else {
            return Ok(overview);
        };
        let step = match overview.paused {
            true => "placement is paused: see `quorate placement resume`",
            false => &order.step,
        };
        if told != step {
            context.world.tell(format!("{shard}: {step}"));
            told = step.to_owned();
        }
    }
}

/// What did not come about, with the last that was heard of the shard.
pub(super) fn failed(mut message: String, shard: ShardId, ended: &Overview) -> Failure {
    let named = events_of(ended, shard);
    let last = named.len().saturating_sub(EVENTS_SHOWN);
    for event in &named[last..] {
        message.push_str("\n  ");
        message.push_str(event);
    }
    Failure::error(message)
}

/// The events that name a shard, oldest first.
fn events_of(overview: &Overview, shard: ShardId) -> Vec<String> {
    let name = shard.to_string();
    let is_named = |text: &str| {
        let mut words = text.split(|letter: char| !letter.is_alphanumeric());
        words.any(|word| word == name)
    };
    let events = overview.events.iter();
    let named = events.filter(|event| is_named(&event.text));
    named
        .map(|event| format!("{}: {}", render::ago(event.at, overview.at), event.text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;
    use crate::types::overview::Event;

    fn overview(texts: &[&str]) -> Overview {
        let events = texts.iter().map(|text| Event {
            at: Timestamp::from_wall(1_000),
            text: (*text).to_owned(),
        });
        Overview {
            at: Timestamp::from_wall(4_000),
            events: events.collect(),
            ..Overview::default()
        }
    }

    #[test]
    fn events_are_of_the_shard_they_name() {
        let seen = overview(&["s1: a", "done: s12: b", "given up: s1: c", "n1 is silent"]);
        let named = events_of(&seen, ShardId(1));
        assert_eq!(named, ["3s ago: s1: a", "3s ago: given up: s1: c"]);
    }

    #[test]
    fn an_order_that_failed_is_told_with_the_last_events() {
        let seen = overview(&["s1: one", "s1: two", "s1: three", "s1: four"]);
        let said = failed("s1 has not moved".to_owned(), ShardId(1), &seen);
        let expected =
            "s1 has not moved\n  3s ago: s1: two\n  3s ago: s1: three\n  3s ago: s1: four";
        assert_eq!(said.to_string(), expected);
    }
}
