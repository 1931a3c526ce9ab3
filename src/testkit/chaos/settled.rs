//! Whether a cluster is well again: every replica is there and serves, and those of a shard are equal.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::testkit::chaos::watcher::statuses;
use crate::testkit::mix::Target;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::GroupStatus;
use crate::wire::request::NodeStatus;

/// For one question of all nodes. A hash of the whole state takes its time.
const ASK: Duration = Duration::from_secs(3);
/// How long replicas may take to come to one position once nobody writes.
const EVEN_WITHIN: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Whether every node is ready and every replica of every shard is there and knows its leader; what is
/// missing otherwise.
pub async fn ready(target: &Target, names: &[String]) -> Result<(), String> {
    let statuses = statuses(target, false, ASK).await;
    for (name, status) in names.iter().zip(&statuses) {
        node_ready(name, status.as_ref())?;
    }
    let statuses: Vec<NodeStatus> = statuses.into_iter().flatten().collect();
    for shard in newest(&statuses).values() {
        for replica in &shard.replicas {
            let nodes = statuses.iter();
            let mut nodes = nodes.filter(|status| status.member.id == replica.node);
            let there = nodes.any(|status| group(status, shard).is_some());
            if !there {
                let (id, node) = (shard.id, replica.node);
                return Err(format!("{id} has no replica on {node}"));
            }
        }
    }
    Ok(())
}

/// Whether one node is ready; what is missing otherwise.
pub async fn node(target: &Target, names: &[String], node: usize) -> Result<(), String> {
    let statuses = statuses(target, false, ASK).await;
    node_ready(&names[node], statuses[node].as_ref())
}

/// Waits until the replicas of each shard have applied as much, and says which then differ, or which
/// do not come to one position. Nobody may write meanwhile.
pub async fn differences(target: &Target, names: &[String]) -> Vec<String> {
    let end = Instant::now() + EVEN_WITHIN;
    loop {
        let statuses = statuses(target, true, ASK).await;
        let silent = statuses.iter().position(Option::is_none);
        let statuses: Vec<NodeStatus> = statuses.into_iter().flatten().collect();
        let shards = newest(&statuses);
        let told: Vec<(&ShardDescriptor, Vec<Replica>)> = shards
            .values()
            .map(|shard| (shard, replicas(shard, &statuses)))
            .collect();
        let uneven = told.iter().find(|(_, replicas)| !is_even(replicas));
        let why = match (silent, uneven) {
            (None, None) => {
                let differing = told.iter().filter(|(_, replicas)| !is_equal(replicas));
                return differing
                    .map(|(shard, replicas)| say(shard, replicas))
                    .collect();
            }
            (Some(node), _) => format!("{} does not say what it has", names[node]),
            (None, Some((shard, replicas))) => {
                let said = say(shard, replicas);
                format!("{said}: they do not come to one position")
            }
        };
        if Instant::now() > end {
            return vec![why];
        }
        tokio::time::sleep(POLL).await;
    }
}

fn node_ready(name: &str, status: Option<&NodeStatus>) -> Result<(), String> {
    let Some(status) = status else {
        return Err(format!("{name} does not answer"));
    };
    for group in &status.groups {
        if group.role == "failed" {
            return Err(format!("{} has failed on {name}", group.group));
        }
        if group.leader.is_none() {
            return Err(format!("{name} knows no leader of {}", group.group));
        }
    }
    match status.ready {
        true => Ok(()),
        false => Err(format!("{name} is not ready")),
    }
}

/// Each shard as the node with the newest epoch has it.
fn newest(statuses: &[NodeStatus]) -> BTreeMap<u64, ShardDescriptor> {
    let mut newest: BTreeMap<u64, ShardDescriptor> = BTreeMap::new();
    let groups = statuses.iter().flat_map(|status| &status.groups);
    for shard in groups.filter_map(|group| group.shard.as_ref()) {
        let known = newest.entry(shard.id.0).or_insert_with(|| shard.clone());
        if known.epoch.is_before(shard.epoch) {
            *known = shard.clone();
        }
    }
    newest
}

fn group<'a>(status: &'a NodeStatus, shard: &ShardDescriptor) -> Option<&'a GroupStatus> {
    let mut groups = status.groups.iter();
    groups.find(|group| group.group == GroupId::Shard(shard.id))
}

/// What one replica has applied, and the hash of what it then has.
type Replica = (NodeId, Option<(u64, Option<u64>)>);

fn replicas(shard: &ShardDescriptor, statuses: &[NodeStatus]) -> Vec<Replica> {
    let told = |node: NodeId| {
        let mut statuses = statuses.iter();
        let status = statuses.find(|status| status.member.id == node)?;
        let group = group(status, shard)?;
        Some((group.applied_index, group.state_hash))
    };
    let nodes = shard.replicas.iter().map(|replica| replica.node);
    nodes.map(|node| (node, told(node))).collect()
}

fn is_even(replicas: &[Replica]) -> bool {
    let mut applied = replicas
        .iter()
        .map(|(_, told)| told.map(|(index, _)| index));
    let first = applied.next().flatten();
    first.is_some() && applied.all(|index| index == first)
}

fn is_equal(replicas: &[Replica]) -> bool {
    let mut hashes = replicas
        .iter()
        .map(|(_, told)| told.and_then(|(_, hash)| hash));
    let first = hashes.next().flatten();
    first.is_some() && hashes.all(|hash| hash == first)
}

fn say(shard: &ShardDescriptor, replicas: &[Replica]) -> String {
    let each = replicas.iter().map(|(node, told)| match told {
        None => format!("{node} has none"),
        Some((index, None)) => format!("{node} at {index}"),
        Some((index, Some(hash))) => format!("{node} at {index} has {hash:016x}"),
    });
    let each: Vec<String> = each.collect();
    format!("the replicas of {} differ: {}", shard.id, each.join(", "))
}
