//! The verbs about the cluster: status, health.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use comfy_table::ContentArrangement;
use comfy_table::Table;
use comfy_table::presets;
use serde_json::Value as Json;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::client::Admin;
use crate::client::Kv;
use crate::client::admin::ClusterStatus;
use crate::client::kv::ReadOptions;
use crate::error::Error;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::NodeId;
use crate::wire::request::GroupStatus;
use crate::wire::request::NodeStatus;

/// For each node: one that is stopped must not hold up the answers of the others for long.
pub(super) const NODE_DEADLINE: Duration = Duration::from_secs(2);
/// Between two looks while waiting.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The role of a replica that leads.
pub(super) const LEADER: &str = "leader";

/// `quorate status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 0 only when every group has a leader, with 1 when one has none, with 2 when nobody answers.

Example:
  quorate status
  quorate status --wait 30 --endpoints n1:7400,n2:7400,n3:7400")]
pub struct StatusArgs {
    /// Wait until every group has a leader, for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
}

/// Shows nodes and groups.
pub async fn status(args: StatusArgs, context: &Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let kv = context.kv()?;
    let each = context.timeout().min(NODE_DEADLINE);
    let end = Instant::now() + Duration::from_secs(args.wait);
    loop {
        let seen = look(&admin, &kv, each).await;
        let is_good = matches!(&seen, Ok((_, groups)) if leaderless(groups).is_none());
        if is_good || Instant::now() + LOOK_INTERVAL > end {
            let (cluster, groups) = seen?;
            print_status(&cluster, &groups, context)?;
            return leaderless(&groups).map_or(Ok(()), |why| Err(Failure::error(why)));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn look(
    admin: &Admin,
    kv: &Kv,
    each: Duration,
) -> Result<(ClusterStatus, BTreeMap<GroupId, GroupView>), Failure> {
    let cluster = admin.cluster(each).await?;
    let mut groups = view_groups(&cluster);
    for group in groups.values_mut() {
        if let (Lead::Named(node), Some(probe)) = (group.lead, &group.probe) {
            let options = ReadOptions {
                deadline: Some(each),
                ..ReadOptions::default()
            };
            let answer = kv.get(probe.clone(), options).await;
            group.lead = match answer {
                Ok(_) => Lead::Led(node),
                Err(_) => Lead::None,
            };
        }
    }
    Ok((cluster, groups))
}

/// Who leads a group, as far as can be told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// The node says so itself, or a read through it succeeded.
    Led(NodeId),
    /// Others say so; the node itself could not be asked.
    Named(NodeId),
    /// Nobody.
    None,
}

/// One group as all nodes together see it.
#[derive(Debug, Clone, PartialEq)]
struct GroupView {
    lead: Lead,
    term: u64,
    /// The farthest end of a log that was seen: lag is counted from there.
    last_index: u64,
    /// A key of its range: reading it proves a leader.
    probe: Option<Key>,
    replicas: Vec<(NodeId, GroupStatus)>,
}

fn view_groups(cluster: &ClusterStatus) -> BTreeMap<GroupId, GroupView> {
    let mut reports: BTreeMap<GroupId, Vec<(NodeId, GroupStatus)>> = BTreeMap::new();
    for (node, status) in &cluster.nodes {
        for group in &status.groups {
            let replicas = reports.entry(group.group).or_default();
            replicas.push((*node, group.clone()));
        }
    }
    let views = reports.into_iter().map(|(group, replicas)| {
        let term = replicas.iter().map(|(_, seen)| seen.term).max();
        let last_index = replicas.iter().map(|(_, seen)| seen.last_index).max();
        let probe = replicas.iter().find_map(|(_, seen)| {
            let shard = seen.shard.as_ref()?;
            let start = shard.range.start.clone();
            Some(if start.is_empty() {
                Key::from_static(&[0])
            } else {
                start
            })
        });
        let view = GroupView {
            lead: lead(&replicas, term.unwrap_or(0), cluster),
            term: term.unwrap_or(0),
            last_index: last_index.unwrap_or(0),
            probe,
            replicas,
        };
        (group, view)
    });
    views.collect()
}

/// Only the newest term counts: a leader that was cut off does not know yet that it is none any more.
fn lead(replicas: &[(NodeId, GroupStatus)], term: u64, cluster: &ClusterStatus) -> Lead {
    let newest = || replicas.iter().filter(|(_, seen)| seen.term == term);
    if let Some((node, _)) = newest().find(|(_, seen)| seen.role == LEADER) {
        return Lead::Led(*node);
    }
    let named = newest().find_map(|(_, seen)| seen.leader);
    match named {
        Some(node) if !cluster.nodes.contains_key(&node) => Lead::Named(node),
        _ => Lead::None,
    }
}

/// Why the cluster is not as it should be, if it is not.
fn leaderless(groups: &BTreeMap<GroupId, GroupView>) -> Option<String> {
    if groups.is_empty() {
        return Some("there are no groups yet: the cluster is forming".to_string());
    }
    let without = groups.iter().filter(|(_, view)| view.lead == Lead::None);
    let without: Vec<String> = without.map(|(group, _)| group.to_string()).collect();
    (!without.is_empty()).then(|| format!("no leader: {}", without.join(", ")))
}

fn print_status(
    cluster: &ClusterStatus,
    groups: &BTreeMap<GroupId, GroupView>,
    context: &Context,
) -> Result<(), Failure> {
    if context.is_json() {
        return context.print_json(status_json(cluster, groups));
    }
    if let Some(status) = cluster.nodes.values().next() {
        context
            .world
            .print(format!("cluster {}\n\n", status.cluster))?;
    }
    context
        .world
        .print(format!("{}\n\n", node_table(cluster)))?;
    context.world.print(format!("{}\n", group_table(groups)))?;
    for (address, error) in &cluster.unreachable {
        context.world.tell(format!("{address}: {error}"));
    }
    for (member, error) in cluster.silent.values() {
        let address = &member.client_address;
        context
            .world
            .tell(format!("{} at {address}: {error}", member.name));
    }
    Ok(())
}

/// A table without lines, for people and for awk.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

fn node_table(cluster: &ClusterStatus) -> Table {
    let mut table = table(&[
        "NODE", "NAME", "CLIENTS", "NODES", "STATE", "UP", "FREE", "VERSION",
    ]);
    for (id, status) in &cluster.nodes {
        let member = &status.member;
        table.add_row([
            id.to_string(),
            member.name.clone(),
            member.client_address.clone(),
            member.node_address.clone(),
            if status.ready { "ready" } else { "not ready" }.to_string(),
            humantime::format_duration(Duration::from_secs(status.uptime_s)).to_string(),
            indicatif::HumanBytes(status.free_bytes).to_string(),
            status.version.clone(),
        ]);
    }
    for (id, (member, _)) in &cluster.silent {
        table.add_row([
            id.to_string(),
            member.name.clone(),
            member.client_address.clone(),
            member.node_address.clone(),
            "no answer".to_string(),
        ]);
    }
    table
}

fn group_table(groups: &BTreeMap<GroupId, GroupView>) -> Table {
    let mut table = table(&[
        "GROUP", "LEADER", "TERM", "NODE", "REPLICA", "ROLE", "APPLIED", "LAG", "LOG",
    ]);
    for (group, view) in groups {
        for (node, seen) in &view.replicas {
            table.add_row([
                group.to_string(),
                leader_of(view).map_or("none".to_string(), |leader| leader.to_string()),
                seen.term.to_string(),
                node.to_string(),
                seen.replica.to_string(),
                seen.role.clone(),
                seen.applied_index.to_string(),
                view.last_index
                    .saturating_sub(seen.applied_index)
                    .to_string(),
                format!("{}..{}", seen.purged_index + 1, seen.last_index),
            ]);
        }
    }
    table
}

fn leader_of(view: &GroupView) -> Option<NodeId> {
    match view.lead {
        Lead::Led(node) | Lead::Named(node) => Some(node),
        Lead::None => None,
    }
}

fn status_json(cluster: &ClusterStatus, groups: &BTreeMap<GroupId, GroupView>) -> Json {
    let answered = cluster.nodes.values().map(node_json);
    let silent = cluster.silent.iter().map(|(id, (member, error))| {
        json!({
            "id": id.0,
            "name": member.name,
            "client_address": member.client_address,
            "node_address": member.node_address,
            "error": error.to_string(),
        })
    });
    let id = cluster
        .nodes
        .values()
        .next()
        .map(|status| status.cluster.to_string());
    json!({
        "cluster": id,
        "healthy": leaderless(groups).is_none(),
        "nodes": answered.chain(silent).collect::<Vec<Json>>(),
        "groups": groups.iter().map(|(id, view)| group_json(*id, view)).collect::<Vec<Json>>(),
    })
}

fn node_json(status: &NodeStatus) -> Json {
    json!({
        "id": status.member.id.0,
        "name": status.member.name,
        "client_address": status.member.client_address,
        "node_address": status.member.node_address,
        "version": status.version,
        "uptime_s": status.uptime_s,
        "ready": status.ready,
        "free_bytes": status.free_bytes,
    })
}

fn group_json(group: GroupId, view: &GroupView) -> Json {
    let replicas = view.replicas.iter().map(|(node, seen)| {
        json!({
            "node": node.0,
            "replica": seen.replica.0,
            "role": seen.role,
            "leader": seen.leader.map(|leader| leader.0),
            "term": seen.term,
            "last_index": seen.last_index,
            "applied_index": seen.applied_index,
            "purged_index": seen.purged_index,
            "lag": view.last_index.saturating_sub(seen.applied_index),
            "state_hash": seen.state_hash.map(|hash| format!("{hash:016x}")),
        })
    });
    json!({
        "group": group.to_string(),
        "leader": leader_of(view).map(|leader| leader.0),
        "term": view.term,
        "replicas": replicas.collect::<Vec<Json>>(),
    })
}

/// `quorate health`.
#[derive(Debug, Args)]
#[command(after_help = "\
Asks the first of --endpoints once. Exits with 0 when it is ready, with 1 when it is not, with 2 when it
does not answer.

Example:
  quorate health --timeout 1s")]
pub struct HealthArgs {}

/// Asks one node whether it is ready.
pub async fn health(_args: HealthArgs, context: &Context) -> Result<(), Failure> {
    let deadline = context.global.timeout.unwrap_or(NODE_DEADLINE);
    let endpoints = &context.global.endpoints;
    let Some(endpoint) = endpoints.first() else {
        return Err(Error::invalid("endpoints", "one is needed").into());
    };
    let status = context.admin()?.status_of(endpoint, deadline).await?;
    if !status.ready {
        let name = &status.member.name;
        return Err(Failure::error(format!("{name} at {endpoint} is not ready")));
    }
    let object = json!({ "ready": true, "name": status.member.name });
    context.print_result(object, "ready")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClusterId;
    use crate::types::Incarnation;
    use crate::types::ReplicaId;
    use crate::types::node::Member;

    /// One report of the placement group: node, role, term, leader named.
    type Report = (u64, &'static str, u64, Option<u64>);

    fn cluster(reports: &[Report]) -> ClusterStatus {
        let nodes = reports.iter().map(|(id, role, term, leader)| {
            let member = Member {
                id: NodeId(*id),
                incarnation: Incarnation([0; 16]),
                name: format!("n{id}"),
                node_address: String::new(),
                client_address: String::new(),
            };
            let group = GroupStatus {
                group: GroupId::Placement,
                replica: ReplicaId(*id),
                role: (*role).to_string(),
                leader: leader.map(NodeId),
                term: *term,
                last_index: 9,
                applied_index: 9,
                purged_index: 0,
                shard: None,
                state_hash: None,
            };
            let status = NodeStatus {
                cluster: ClusterId([0; 16]),
                member,
                version: String::new(),
                uptime_s: 0,
                ready: true,
                free_bytes: 0,
                groups: vec![group],
                members: Vec::new(),
            };
            (NodeId(*id), status)
        });
        ClusterStatus {
            nodes: nodes.collect(),
            silent: BTreeMap::new(),
            unreachable: BTreeMap::new(),
        }
    }

    fn check(reports: &[Report], expected: Lead) {
        let views = view_groups(&cluster(reports));
        assert_eq!(views[&GroupId::Placement].lead, expected, "{reports:?}");
    }

    #[test]
    fn a_group_is_led_when_its_leader_says_so_in_the_newest_term() {
        let led = Lead::Led(NodeId(1));
        check(
            &[(1, "leader", 3, Some(1)), (2, "follower", 3, Some(1))],
            led,
        );
        check(
            &[(1, "leader", 3, Some(1)), (2, "candidate", 4, None)],
            Lead::None,
        );
        check(
            &[(2, "follower", 3, Some(1)), (3, "follower", 3, Some(1))],
            Lead::Named(NodeId(1)),
        );
        check(
            &[(1, "follower", 3, None), (2, "follower", 3, Some(1))],
            Lead::None,
        );
        check(&[(1, "follower", 3, None)], Lead::None);
    }

    #[test]
    fn a_cluster_without_groups_is_not_ready() {
        assert!(leaderless(&BTreeMap::new()).is_some());
    }
}
