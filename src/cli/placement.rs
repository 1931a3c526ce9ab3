//! The verbs about placement as such: status, pause, resume, settings, set, reset.

use std::collections::BTreeMap;

use clap::Args;
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::render;
use crate::types::overview::Arrangement;
use crate::types::overview::Event;
use crate::types::overview::Overview;
use crate::types::overview::Setting;
use crate::wire::request::OverviewQuery;

/// `quorate placement`.
#[derive(Debug, Subcommand)]
pub enum PlacementVerb {
    /// Show who drives placement, what there is to do, and what has happened
    Status(StatusArgs),
    /// Have placement only watch
    Pause(PauseArgs),
    /// Have placement go on
    Resume(ResumeArgs),
    /// List the thresholds by which placement acts
    Settings(SettingsArgs),
    /// Set a threshold
    Set(SetArgs),
    /// Give a threshold its default again
    Reset(ResetArgs),
}

/// Runs a verb about placement.
pub async fn run(verb: PlacementVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        PlacementVerb::Status(args) => status(args, context).await,
        PlacementVerb::Pause(PauseArgs {}) => set_paused(true, context).await,
        PlacementVerb::Resume(ResumeArgs {}) => set_paused(false, context).await,
        PlacementVerb::Settings(SettingsArgs {}) => settings(context).await,
        PlacementVerb::Set(args) => set(args.name, Some(args.value), context).await,
        PlacementVerb::Reset(args) => set(args.name, None, context).await,
    }
}

/// `quorate placement status`.
#[derive(Debug, Args)]
#[command(after_help = "\
The driver is the node that leads placement's group. Events are forgotten when another node does.

Example:
  quorate placement status
  quorate placement status --events 50 -o json")]
pub struct StatusArgs {
    /// How many of the last events are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    events: usize,
}

async fn status(args: StatusArgs, context: &Context) -> Result<(), Failure> {
    let query = OverviewQuery::default();
    let overview = context.admin()?.overview(query, None).await?;
    let events = last(&overview.events, args.events);
    if context.is_json() {
        return context.print_json(status_json(&overview, events));
    }
    let mut lines = status_lines(&overview);
    if !events.is_empty() {
        lines.push(String::new());
    }
    let shown = events.iter();
    lines.extend(shown.map(|event| {
        let ago = render::ago(event.at, overview.at);
        format!("{ago}: {}", event.text)
    }));
    context.world.print(lines.join("\n") + "\n")
}

fn last(events: &[Event], count: usize) -> &[Event] {
    &events[events.len().saturating_sub(count)..]
}

/// How often each word comes.
fn tally<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn health(overview: &Overview) -> BTreeMap<&str, usize> {
    tally(overview.nodes.iter().map(|node| node.health.as_str()))
}

fn duties(overview: &Overview) -> BTreeMap<&str, usize> {
    tally(overview.nodes.iter().map(|node| node.duty.as_str()))
}

fn aims(overview: &Overview) -> BTreeMap<&str, usize> {
    tally(overview.operators.iter().map(|it| it.aim.as_str()))
}

fn settings_set(overview: &Overview) -> usize {
    overview.settings.iter().filter(|it| it.is_set).count()
}

fn status_lines(overview: &Overview) -> Vec<String> {
    let counted = |counts: &BTreeMap<&str, usize>| {
        let counts = counts.iter();
        let counts = counts.map(|(word, count)| format!("{count} {word}"));
        counts.collect::<Vec<String>>().join(", ")
    };
    let of = |total: usize, parts: String| match parts.is_empty() {
        true => total.to_string(),
        false => format!("{total}: {parts}"),
    };
    let nodes = format!(
        "{}; {}",
        counted(&health(overview)),
        counted(&duties(overview))
    );
    vec![
        format!("driver     {}", overview.driver),
        format!("paused     {}", if overview.paused { "yes" } else { "no" }),
        format!("nodes      {}", of(overview.nodes.len(), nodes)),
        format!(
            "operators  {}",
            of(overview.operators.len(), counted(&aims(overview)))
        ),
        format!("rules      {}", overview.rules.len()),
        format!("settings   {} set by a person", settings_set(overview)),
    ]
}

fn status_json(overview: &Overview, events: &[Event]) -> Json {
    let events = events
        .iter()
        .map(|event| json!({ "at_ms": event.at.wall_ms(), "text": event.text }));
    json!({
        "driver": overview.driver.0,
        "at_ms": overview.at.wall_ms(),
        "paused": overview.paused,
        "nodes": overview.nodes.len(),
        "nodes_by_health": health(overview),
        "nodes_by_duty": duties(overview),
        "operators": overview.operators.len(),
        "operators_by_aim": aims(overview),
        "rules": overview.rules.len(),
        "settings_set": settings_set(overview),
        "events": events.collect::<Vec<Json>>(),
    })
}

/// `quorate placement pause`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is moved, split or repaired any more, and what is under way rests, until `placement resume`.
Nodes and shards do as before.

Example:
  quorate placement pause")]
pub struct PauseArgs {}

/// `quorate placement resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate placement resume")]
pub struct ResumeArgs {}

async fn set_paused(paused: bool, context: &Context) -> Result<(), Failure> {
    let arrangement = Arrangement::SetPaused(paused);
    context.admin()?.arrange(arrangement, None).await?;
    let line = match paused {
        true => "placement is paused",
        false => "placement goes on",
    };
    context.print_result(json!({ "paused": paused }), line)
}

/// `quorate placement settings`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every threshold by which placement acts, such as after which silence a node's replicas are replaced.

Example:
  quorate placement settings
  quorate placement settings -o json")]
pub struct SettingsArgs {}

async fn settings(context: &Context) -> Result<(), Failure> {
    let query = OverviewQuery::default();
    let overview = context.admin()?.overview(query, None).await?;
    if context.is_json() {
        let settings: Vec<Json> = overview.settings.iter().map(setting_json).collect();
        return context.print_json(json!({ "settings": settings }));
    }
    let mut table = table(&["NAME", "VALUE", "SET BY"]);
    for Setting {
        name,
        value,
        is_set,
    } in &overview.settings
    {
        let set_by = if *is_set { "a person" } else { "default" };
        table.add_row([name, value, set_by]);
    }
    context.world.print(format!("{table}\n"))
}

fn setting_json(setting: &Setting) -> Json {
    json!({ "name": setting.name, "value": setting.value, "is_set": setting.is_set })
}

/// `quorate placement set`.
#[derive(Debug, Args)]
#[command(after_help = "\
Holds for the whole cluster at once. Times are written as 90s or 5m, everything else is a whole number; `_`
may stand between digits. `placement settings` lists the names.

Example:
  quorate placement set replace_after 10m
  quorate placement set split_bytes 128_000_000")]
pub struct SetArgs {
    /// The threshold
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Its value
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    value: String,
}

/// `quorate placement reset`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate placement reset replace_after")]
pub struct ResetArgs {
    /// The threshold
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
}

async fn set(name: String, value: Option<String>, context: &Context) -> Result<(), Failure> {
    let line = match &value {
        Some(value) => format!("{name} is {value}"),
        None => format!("{name} has its default again"),
    };
    let object = json!({ "name": name, "value": value, "is_set": value.is_some() });
    let arrangement = Arrangement::SetSetting { name, value };
    context.admin()?.arrange(arrangement, None).await?;
    context.print_result(object, &line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn the_last_events_are_shown_however_many_are_wanted() {
        let event = |text: &str| Event {
            at: Timestamp::ZERO,
            text: text.to_owned(),
        };
        let events = [event("a"), event("b"), event("c")];
        for (count, expected) in [(0, ""), (2, "bc"), (9, "abc")] {
            let shown: String = last(&events, count)
                .iter()
                .map(|it| it.text.as_str())
                .collect();
            assert_eq!(shown, expected, "{count}");
        }
    }
}
