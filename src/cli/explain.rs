//! The verb that says why a shard is where it is: shard explain.

use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::render;
use crate::cli::target::TargetArgs;
use crate::cli::text;
use crate::client::Admin;
use crate::types::ShardId;
use crate::types::overview::Explained;
use crate::types::overview::Finding;
use crate::types::report::ShardReport;
use crate::types::shard::Replica;

/// `quorate shard explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Shows a shard as its leader reported it last, the rule that holds for it, and what placement considers for
it, most urgent first: what is in order, what is done next, and what is held back and why. LAG counts the
entries of the log that a replica lacks.

What looks like a shard's id, such as s5, is one unless --key, --base64 or --hex says that it is a key.

Example:
  quorate shard explain s5
  quorate shard explain user/4711
  quorate shard explain --key s5 -o json")]
pub struct ExplainArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// Explains a shard.
pub async fn run(args: ExplainArgs, context: &Context) -> Result<(), Failure> {
    args.target.check()?;
    let admin = context.admin()?;
    let cluster = admin.cluster(context.timeout().min(NODE_DEADLINE)).await?;
    let shard = args.target.find(&cluster)?;
    let explained = admin.explain(shard, None).await?;
    if context.is_json() {
        return context.print_json(explained_json(&explained));
    }
    context.world.print(shown(&explained))
}

/// What holds placement back, of what it considered: the aims that are not in order.
pub(super) fn findings_held(findings: &[Finding]) -> Vec<String> {
    let open = findings.iter().filter(|found| found.state != IN_ORDER);
    open.map(line).collect()
}

fn line(found: &Finding) -> String {
    format!("{}: {}", found.aim, found.text)
}

/// What placement says of an aim for which nothing is to be done.
const IN_ORDER: &str = "in_order";

/// Asks for what holds a shard back, as a sentence.
pub(super) async fn held_back(
    admin: &Admin,
    shard: ShardId,
    deadline: Duration,
) -> Result<String, Failure> {
    let explained = admin.explain(shard, Some(deadline)).await?;
    let held = findings_held(&explained.findings);
    Ok(match held.is_empty() {
        true => "placement finds nothing to do with it".to_owned(),
        false => held.join("; "),
    })
}

fn shown(explained: &Explained) -> String {
    let shard = &explained.shard.shard;
    let (start, end) = render::bounds(&shard.range);
    let mut lines = vec![
        format!("{} from {start} to {end}", shard.id),
        format!("epoch   {}.{}", shard.epoch.bounds, shard.epoch.conf),
    ];
    match &explained.shard.report {
        Some(report) => lines.extend(report_lines(explained, report)),
        None => lines.push("leader  has not reported it yet".to_owned()),
    }
    let rule = &explained.rule;
    let whose = match rule.prefix.is_empty() {
        true => String::new(),
        false => format!(" (for {})", text::shown(&rule.prefix)),
    };
    lines.push(format!("rule    {}{whose}", render::rule_sentence(rule)));
    lines.push(String::new());
    lines.push(replica_table(explained).to_string());
    lines.push(String::new());
    let findings = explained.findings.iter();
    lines.extend(findings.map(line));
    lines.join("\n") + "\n"
}

fn report_lines(explained: &Explained, report: &ShardReport) -> [String; 3] {
    let mut replicas = explained.shard.shard.replicas.iter();
    let leader = replicas.find(|replica| replica.id == report.leader);
    let leader = leader.map_or("none of its replicas".to_owned(), |it| it.node.to_string());
    let (term, led_for) = (report.term, render::seconds(report.led_for));
    let bytes = |bytes| indicatif::HumanBytes(bytes).to_string();
    [
        format!("leader  {leader} for {led_for}, term {term}"),
        format!(
            "size    {} keys, {}",
            report.size.keys,
            bytes(report.size.bytes)
        ),
        format!(
            "load    {} operations/s, {}/s",
            report.load.operations,
            bytes(report.load.bytes)
        ),
    ]
}

/// What a replica does, and how many entries it lacks; `None`: not heard of.
fn role(replica: Replica, report: Option<&ShardReport>) -> (Option<&'static str>, Option<u64>) {
    let Some(report) = report else {
        return (None, None);
    };
    let mut lags = report.lags.iter();
    let lag = lags.find(|(id, _)| *id == replica.id).map(|(_, lag)| *lag);
    if replica.id == report.leader {
        return (Some("leader"), lag.or(Some(0)));
    }
    let role = match report.learners.contains(&replica.id) {
        true => "learner",
        false => "follower",
    };
    (Some(role), lag)
}

fn replica_table(explained: &Explained) -> Table {
    let mut table = table(&["REPLICA", "NODE", "ROLE", "LAG"]);
    for replica in &explained.shard.shard.replicas {
        let (role, lag) = role(*replica, explained.shard.report.as_ref());
        table.add_row([
            replica.id.to_string(),
            replica.node.to_string(),
            role.unwrap_or(render::NONE).to_owned(),
            lag.map_or(render::NONE.to_owned(), |lag| lag.to_string()),
        ]);
    }
    table
}

fn explained_json(explained: &Explained) -> Json {
    let shard = &explained.shard.shard;
    let report = explained.shard.report.as_ref();
    let mut object = render::shard_object(shard);
    let leader = report.and_then(|report| {
        let mut replicas = shard.replicas.iter();
        replicas.find(|replica| replica.id == report.leader)
    });
    object.insert("leader".into(), leader.map(|leader| leader.node.0).into());
    if let Some(report) = report {
        object.insert("term".into(), report.term.into());
        object.insert("led_for_s".into(), report.led_for.as_secs().into());
        object.insert("keys".into(), report.size.keys.into());
        object.insert("bytes".into(), report.size.bytes.into());
        let load = json!({ "operations": report.load.operations, "bytes": report.load.bytes });
        object.insert("load_per_s".into(), load);
    }
    let replicas = shard.replicas.iter().map(|replica| {
        let (role, lag) = role(*replica, report);
        json!({ "replica": replica.id.0, "node": replica.node.0, "role": role, "lag": lag })
    });
    object.insert("replicas".into(), replicas.collect::<Vec<Json>>().into());
    let rule = render::rule_object(&explained.rule);
    object.insert("rule".into(), rule.into());
    let findings = explained.findings.iter();
    let findings =
        findings.map(|found| json!({ "aim": found.aim, "state": found.state, "text": found.text }));
    object.insert("findings".into(), findings.collect::<Vec<Json>>().into());
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_in_order_holds_back() {
        let found = |aim: &str, state: &str, text: &str| Finding {
            aim: aim.to_owned(),
            state: state.to_owned(),
            text: text.to_owned(),
        };
        let findings = [
            found("repair", "in_order", "in order"),
            found("vacate", "held", "held: no node"),
        ];
        assert_eq!(findings_held(&findings), ["vacate: held: no node"]);
    }
}
