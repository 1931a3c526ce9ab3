//! The verb that has placement move a replica: shard move.

use clap::Args;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::orders;
use crate::cli::text;
use crate::cli::waiting::LOOK_INTERVAL;
use crate::client::Admin;
use crate::client::admin::ShardView;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::overview::Arrangement;
use crate::types::overview::Overview;

/// How often nodes are asked where the replica is: placement hears of it from the leader, and another node
/// may be the one that answers first.
const CHECKS_MAX: u32 = 5;

/// `quorate shard move`.
#[derive(Debug, Args)]
#[command(after_help = "\
The new node gets the data first, then the old one gives its replica up: there is never a replica less.
Waits until the move has ended, and says so when it has failed. Ctrl-C ends the waiting alone; `operator
cancel` gives the move up.

Example:
  quorate shard move s5 --from n1 --to n4
  quorate shard move s5 --from n1 --to n4 --no-wait")]
pub struct MoveArgs {
    /// The shard, such as s5
    #[arg(value_parser = text::decode_shard)]
    shard: ShardId,
    /// The node that has the replica
    #[arg(long, value_name = "NODE", value_parser = text::decode_node)]
    from: NodeId,
    /// The node that gets it
    #[arg(long, value_name = "NODE", value_parser = text::decode_node)]
    to: NodeId,
    /// End when the move is recorded
    #[arg(long)]
    no_wait: bool,
}

/// Has a replica moved.
pub async fn run(args: MoveArgs, context: &Context) -> Result<(), Failure> {
    let MoveArgs {
        shard, from, to, ..
    } = args;
    let admin = context.admin()?;
    let arrangement = Arrangement::MoveReplica { shard, from, to };
    orders::give(&admin, shard, arrangement, &format!("from {from} to {to}")).await?;
    let mut object = json!({ "shard": shard.to_string(), "from": from.0, "to": to.0 });
    object["moved"] = (!args.no_wait).into();
    if args.no_wait {
        let line = format!("{shard} is to move from {from} to {to}");
        return context.print_result(object, &line);
    }
    let overview = orders::wait(shard, "move", context).await?;
    check(&args, &overview, &admin, context).await?;
    context.print_result(object, &format!("{shard} has moved from {from} to {to}"))
}

/// Whether the replica is where it was to go, in the words of the nodes themselves.
async fn check(
    args: &MoveArgs,
    ended: &Overview,
    admin: &Admin,
    context: &Context,
) -> Result<(), Failure> {
    let each = context.timeout().min(NODE_DEADLINE);
    let mut seen = String::new();
    for attempt in 0..CHECKS_MAX {
        tokio::time::sleep(LOOK_INTERVAL * attempt.min(1)).await;
        let shards = admin.shards(each).await?;
        match place(&shards, args) {
            Place::There => return Ok(()),
            Place::Elsewhere(nodes) => seen = nodes,
        }
    }
    let MoveArgs {
        shard, from, to, ..
    } = args;
    let message = format!("{shard} has not moved from {from} to {to}: {seen}");
    Err(orders::failed(message, *shard, ended))
}

/// Where the replicas of a shard are.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// One is where it was to go, and none where it was.
    There,
    /// They are on these nodes.
    Elsewhere(String),
}

fn place(shards: &[ShardView], args: &MoveArgs) -> Place {
    let Some(view) = shards.iter().find(|view| view.shard.id == args.shard) else {
        return Place::Elsewhere("no node tells of it".to_owned());
    };
    let is_on = |node| view.shard.replica_on(node).is_some();
    if is_on(args.to) && !is_on(args.from) {
        return Place::There;
    }
    let nodes = view.shard.replicas.iter().map(|it| it.node.to_string());
    let nodes = nodes.collect::<Vec<String>>().join(", ");
    Place::Elsewhere(format!("it is on {nodes}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::ShardDescriptor;

    fn on(nodes: &[u64]) -> Vec<ShardView> {
        let replicas = nodes.iter().map(|node| Replica {
            id: ReplicaId(*node),
            node: NodeId(*node),
        });
        let shard = ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: replicas.collect(),
        };
        vec![ShardView {
            shard,
            leader: None,
            replicas: Vec::new(),
        }]
    }

    #[test]
    fn a_replica_has_moved_when_it_is_there_and_the_other_one_is_gone() {
        let args = MoveArgs {
            shard: ShardId(1),
            from: NodeId(1),
            to: NodeId(4),
            no_wait: false,
        };
        let elsewhere = |text: &str| Place::Elsewhere(text.to_owned());
        assert_eq!(place(&on(&[4, 2]), &args), Place::There);
        assert_eq!(place(&on(&[1, 4]), &args), elsewhere("it is on n1, n4"));
        assert_eq!(place(&on(&[1, 2]), &args), elsewhere("it is on n1, n2"));
        assert_eq!(place(&[], &args), elsewhere("no node tells of it"));
    }
}
