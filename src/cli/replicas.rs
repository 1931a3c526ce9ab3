//! The verbs that change which nodes hold a shard: add-replica, remove-replica.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::text;
use crate::client::Admin;
use crate::error::Error;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::shard::ShardDescriptor;

/// A new replica takes a snapshot of the shard first.
const CHANGE_DEADLINE: Duration = Duration::from_secs(120);

/// `quorate shard add-replica`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends when the replica has all data and votes. If that takes longer than --timeout (120s unless given), it
goes on without; the same command waits for it again.

Example:
  quorate shard add-replica s1 --node n4")]
pub struct AddReplicaArgs {
    /// The shard, such as s1
    #[arg(value_parser = text::decode_shard)]
    shard: ShardId,
    /// The node that gets the replica
    #[arg(long, value_name = "NODE", value_parser = text::decode_node)]
    node: NodeId,
}

/// Gives a shard a further replica.
pub async fn add(args: AddReplicaArgs, context: &Context) -> Result<(), Failure> {
    let AddReplicaArgs { shard, node } = args;
    let deadline = Some(deadline(context));
    let changed = context.admin()?.add_replica(shard, node, deadline).await?;
    print(
        &changed,
        &format!("{shard} has a replica on {node}"),
        context,
    )
}

/// `quorate shard remove-replica`.
#[derive(Debug, Args)]
#[command(after_help = "\
The node clears the replica's keys in the background. A replica whose node is down is removed all the same;
the node finds out when it is back.

Example:
  quorate shard remove-replica s1 --node n4
  quorate shard remove-replica s1 --replica r17")]
pub struct RemoveReplicaArgs {
    /// The shard, such as s1
    #[arg(value_parser = text::decode_shard)]
    shard: ShardId,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The node whose replica is removed
    #[arg(long, value_name = "NODE", value_parser = text::decode_node)]
    node: Option<NodeId>,
    /// The replica, as `quorate status` names it
    #[arg(long, value_name = "REPLICA", value_parser = decode_replica)]
    replica: Option<ReplicaId>,
}

/// Takes a replica from a shard.
pub async fn remove(args: RemoveReplicaArgs, context: &Context) -> Result<(), Failure> {
    let RemoveReplicaArgs { shard, which } = args;
    let admin = context.admin()?;
    let replica = match (which.replica, which.node) {
        (Some(replica), _) => replica,
        (None, Some(node)) => replica_on(&admin, shard, node).await?,
        (None, None) => return Err(Error::invalid("replica", "--node or --replica").into()),
    };
    let deadline = Some(deadline(context));
    let changed = admin.remove_replica(shard, replica, deadline).await?;
    print(&changed, &format!("{shard} is without {replica}"), context)
}

fn deadline(context: &Context) -> Duration {
    context.global.timeout.unwrap_or(CHANGE_DEADLINE)
}

/// As the node says that knows the latest membership.
async fn replica_on(admin: &Admin, shard: ShardId, node: NodeId) -> Result<ReplicaId, Failure> {
    let cluster = admin.cluster(NODE_DEADLINE).await?;
    let groups = cluster.nodes.values().flat_map(|status| &status.groups);
    let known = groups.filter_map(|group| group.shard.as_ref());
    let latest = known
        .filter(|known| known.id == shard)
        .max_by_key(|known| known.epoch.conf);
    let found = latest.and_then(|shard| shard.replica_on(node));
    let missing = || Error::NotFound {
        what: format!("a replica of {shard} on {node}"),
    };
    Ok(found.ok_or_else(missing)?.id)
}

fn print(shard: &ShardDescriptor, line: &str, context: &Context) -> Result<(), Failure> {
    let replicas = shard.replicas.iter();
    let replicas = replicas.map(|it| json!({ "replica": it.id.0, "node": it.node.0 }));
    let object = json!({
        "shard": shard.id.to_string(),
        "conf_epoch": shard.epoch.conf,
        "replicas": replicas.collect::<Vec<_>>(),
    });
    context.print_result(object, line)
}

fn decode_replica(text: &str) -> Result<ReplicaId, String> {
    let number = text.strip_prefix('r').unwrap_or(text).parse::<u64>();
    match number {
        Ok(number) if number > 0 => Ok(ReplicaId(number)),
        Ok(_) | Err(_) => Err("it must be a replica such as r4".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    enum Verbs {
        Add(AddReplicaArgs),
        Remove(RemoveReplicaArgs),
    }

    #[test]
    fn a_replica_is_named_by_its_node_or_by_itself() {
        let removed = |words: &[&str]| {
            let words = ["quorate", "remove"].iter().chain(words);
            match Verbs::try_parse_from(words) {
                Ok(Verbs::Remove(args)) => Ok((args.shard, args.which.node, args.which.replica)),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.kind()),
            }
        };
        let shard = ShardId(1);
        let by_node = removed(&["s1", "--node", "n4"]);
        assert_eq!(by_node, Ok((shard, Some(NodeId(4)), None)));
        let by_name = removed(&["1", "--replica", "r17"]);
        assert_eq!(by_name, Ok((shard, None, Some(ReplicaId(17)))));
        for wrong in [
            &["s1"][..],
            &["placement", "--node", "n4"],
            &["s1", "--replica", "r0"],
            &["s1", "--node", "n4", "--replica", "r17"],
        ] {
            assert!(removed(wrong).is_err(), "{wrong:?}");
        }
        let added = Verbs::try_parse_from(["quorate", "add", "s2", "--node", "3"]);
        assert!(matches!(
            added,
            Ok(Verbs::Add(AddReplicaArgs {
                shard: ShardId(2),
                node: NodeId(3)
            }))
        ));
    }
}
