//! The verbs about nodes: list. Those that say what is wanted of a node are in `duty.rs`.

use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use comfy_table::Table;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::LEADER;
use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::duty;
use crate::cli::failure::Failure;
use crate::cli::render;
use crate::client::admin::ClusterStatus;
use crate::types::node::Member;
use crate::types::overview::NodeOverview;
use crate::types::overview::Overview;
use crate::types::report::NodeReport;
use crate::wire::request::NodeStatus;
use crate::wire::request::OverviewQuery;

/// `quorate node`.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List the nodes of the cluster, those that do not answer too
    List(ListArgs),
    /// Have a node lead nothing, for a restart or an upgrade
    Drain(duty::DrainArgs),
    /// Have a node hold nothing, to switch it off for good
    Decommission(duty::DecommissionArgs),
    /// Have a node serve again
    Recommission(duty::RecommissionArgs),
}

/// `quorate node list`.
#[derive(Debug, Args)]
#[command(after_help = "\
A node's id is its for ever; a node whose disk was lost comes back under a new one. GROUPS counts the
replicas on it, LEADERS those of them that lead. A node that does not answer is listed with what the
others know of it.

HEALTH, DUTY, LABELS, USED and REPLICAS are placement's: how the node does (up, slow, suspect or dead), what
is wanted of it (serve, drain or leave), how much of its disk is used by whomever, and of how many shards it
has a replica. They are empty while placement does not answer.

Example:
  quorate node list
  quorate node list -o json --endpoints n1:7400,n2:7400")]
pub struct ListArgs {}

/// Runs a verb about nodes.
pub async fn run(verb: NodeVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        NodeVerb::List(ListArgs {}) => list(context).await,
        NodeVerb::Drain(args) => duty::drain(args, context).await,
        NodeVerb::Decommission(args) => duty::decommission(args, context).await,
        NodeVerb::Recommission(args) => duty::recommission(args, context).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let each = context.timeout().min(NODE_DEADLINE);
    let admin = context.admin()?;
    let (cluster, overview) = tokio::join!(
        admin.cluster(each),
        admin.overview(OverviewQuery::default(), Some(each))
    );
    let cluster = cluster?;
    let rows = rows(&cluster, overview.as_ref().ok());
    if context.is_json() {
        return context.print_json(Json::Array(rows.iter().map(Row::json).collect()));
    }
    context.world.print(format!("{}\n", shown(&rows)))?;
    for (member, error) in cluster.silent.values() {
        let address = &member.client_address;
        context
            .world
            .tell(format!("{} at {address}: {error}", member.name));
    }
    if let Err(error) = overview {
        context.world.tell(format!("placement: {error}"));
    }
    Ok(())
}

/// One node, what it says if it answers, and what placement says if that does.
struct Row<'a> {
    member: &'a Member,
    status: Option<&'a NodeStatus>,
    seen: Option<&'a NodeOverview>,
}

/// All nodes by id.
fn rows<'a>(cluster: &'a ClusterStatus, overview: Option<&'a Overview>) -> Vec<Row<'a>> {
    let answered = cluster.nodes.values();
    let answered = answered.map(|status| (&status.member, Some(status)));
    let silent = cluster.silent.values().map(|(member, _)| (member, None));
    let seen = |id| {
        let mut nodes = overview?.nodes.iter();
        nodes.find(|node| node.member.id == id)
    };
    let rows = answered.chain(silent).map(|(member, status)| Row {
        member,
        status,
        seen: seen(member.id),
    });
    let mut rows: Vec<Row<'_>> = rows.collect();
    rows.sort_by_key(|row| row.member.id);
    rows
}

impl Row<'_> {
    fn state(&self) -> &'static str {
        match self.status {
            Some(status) if status.ready => "ready",
            Some(_) => "not ready",
            None => "no answer",
        }
    }

    fn groups(&self) -> Option<usize> {
        Some(self.status?.groups.len())
    }

    fn leaders(&self) -> Option<usize> {
        let groups = self.status?.groups.iter();
        Some(groups.filter(|group| group.role == LEADER).count())
    }

    fn uptime(&self) -> String {
        self.status.map_or("-".into(), |status| {
            humantime::format_duration(Duration::from_secs(status.uptime_s)).to_string()
        })
    }

    fn report(&self) -> Option<&NodeReport> {
        self.seen?.report.as_ref()
    }

    fn labels(&self) -> String {
        let labels = self.report().map(|report| &report.labels);
        labels.map_or(render::NONE.to_owned(), render::node_labels)
    }

    fn used(&self) -> String {
        let bytes = |bytes| indicatif::HumanBytes(bytes).to_string();
        match self.report() {
            Some(report) if report.capacity_bytes > 0 => format!(
                "{} of {}",
                bytes(report.used_bytes),
                bytes(report.capacity_bytes)
            ),
            Some(_) | None => render::NONE.to_owned(),
        }
    }

    fn json(&self) -> Json {
        let report = self.report();
        json!({
            "id": self.member.id.0,
            "name": self.member.name,
            "client_address": self.member.client_address,
            "node_address": self.member.node_address,
            "incarnation": self.member.incarnation.to_string(),
            "reachable": self.status.is_some(),
            "ready": self.status.is_some_and(|status| status.ready),
            "groups": self.groups(),
            "leaders": self.leaders(),
            "uptime_s": self.status.map(|status| status.uptime_s),
            "health": self.seen.map(|seen| &seen.health),
            "silent_for_s": self.seen.map(|seen| seen.silent_for.as_secs()),
            "duty": self.seen.map(|seen| seen.duty.as_str()),
            "role": report.map(|report| report.role.to_string()),
            "labels": report.map(|report| &report.labels),
            "capacity_bytes": report.map(|report| report.capacity_bytes),
            "used_bytes": report.map(|report| report.used_bytes),
            "replicas": self.seen.map(|seen| seen.replicas),
            "shards_led": self.seen.map(|seen| seen.leaders),
        })
    }
}

fn shown(rows: &[Row<'_>]) -> Table {
    let mut table = table(&[
        "NODE",
        "NAME",
        "STATE",
        "GROUPS",
        "LEADERS",
        "UP",
        "HEALTH",
        "DUTY",
        "REPLICAS",
        "USED",
        "LABELS",
        "CLIENTS",
        "NODES",
        "INCARNATION",
    ]);
    for row in rows {
        let word = |word: Option<&str>| word.unwrap_or(render::NONE).to_owned();
        let count =
            |count: Option<usize>| count.map_or(render::NONE.to_owned(), |count| count.to_string());
        table.add_row([
            row.member.id.to_string(),
            row.member.name.clone(),
            row.state().to_string(),
            count(row.groups()),
            count(row.leaders()),
            row.uptime(),
            word(row.seen.map(|seen| seen.health.as_str())),
            word(row.seen.map(|seen| seen.duty.as_str())),
            count(row.seen.map(|seen| seen.replicas as usize)),
            row.used(),
            row.labels(),
            row.member.client_address.clone(),
            row.member.node_address.clone(),
            row.member.incarnation.to_string(),
        ]);
    }
    table
}
