//! The verbs about nodes: list.

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
use crate::cli::failure::Failure;
use crate::client::admin::ClusterStatus;
use crate::types::node::Member;
use crate::wire::request::NodeStatus;

/// `quorate node`.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List the nodes of the cluster, those that do not answer too
    List(ListArgs),
}

/// `quorate node list`.
#[derive(Debug, Args)]
#[command(after_help = "\
A node's id is its for ever; a node whose disk was lost comes back under a new one. GROUPS counts the
replicas on it, LEADERS those of them that lead. A node that does not answer is listed with what the
others know of it.

Example:
  quorate node list
  quorate node list -o json --endpoints n1:7400,n2:7400")]
pub struct ListArgs {}

/// Runs a verb about nodes.
pub async fn run(verb: NodeVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        NodeVerb::List(ListArgs {}) => list(context).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let each = context.timeout().min(NODE_DEADLINE);
    let cluster = context.admin()?.cluster(each).await?;
    if context.is_json() {
        return context.print_json(Json::Array(rows(&cluster).iter().map(Row::json).collect()));
    }
    context
        .world
        .print(format!("{}\n", shown(&rows(&cluster))))?;
    for (member, error) in cluster.silent.values() {
        let address = &member.client_address;
        context
            .world
            .tell(format!("{} at {address}: {error}", member.name));
    }
    Ok(())
}

/// One node, and what it says if it answers.
struct Row<'a> {
    member: &'a Member,
    status: Option<&'a NodeStatus>,
}

/// All nodes by id.
fn rows(cluster: &ClusterStatus) -> Vec<Row<'_>> {
    let answered = cluster.nodes.values().map(|status| Row {
        member: &status.member,
        status: Some(status),
    });
    let silent = cluster.silent.values().map(|(member, _)| Row {
        member,
        status: None,
    });
    let mut rows: Vec<Row<'_>> = answered.chain(silent).collect();
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

    fn json(&self) -> Json {
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
        "CLIENTS",
        "NODES",
        "INCARNATION",
    ]);
    for row in rows {
        let count = |count: Option<usize>| count.map_or("-".to_string(), |count| count.to_string());
        table.add_row([
            row.member.id.to_string(),
            row.member.name.clone(),
            row.state().to_string(),
            count(row.groups()),
            count(row.leaders()),
            row.uptime(),
            row.member.client_address.clone(),
            row.member.node_address.clone(),
            row.member.incarnation.to_string(),
        ]);
    }
    table
}
