//! The verb that has a shard absorb its right neighbour: shard merge.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::orders;
use crate::cli::target::TargetArgs;
use crate::cli::waiting::LOOK_INTERVAL;
use crate::client::Admin;
use crate::client::admin::ShardView;
use crate::types::ShardId;
use crate::types::overview::Arrangement;
use crate::types::overview::Overview;
use crate::types::shard::ShardDescriptor;

/// How often nodes are asked whether the shards are one: another node than the leader may answer first.
const CHECKS_MAX: u32 = 5;

/// `quorate shard merge`.
#[derive(Debug, Args)]
#[command(after_help = "\
The shard and its right neighbour become one, which keeps the id of the shard. No data moves: both must
be on the same nodes, under one rule, and too small together to be split again. Whoever reads or writes
there may wait for a moment. Waits until the merge has ended, and says so when it has failed. Ctrl-C ends
the waiting alone; `operator cancel` gives the merge up.

What looks like a shard's id, such as s5, is one unless --key, --base64 or --hex says that it is a key.

Example:
  quorate shard merge s5
  quorate shard merge user/4711 --no-wait")]
pub struct MergeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// End when the merge is recorded
    #[arg(long)]
    no_wait: bool,
}

/// The two that are to be one.
#[derive(Debug, PartialEq, Eq)]
struct Pair {
    left: ShardId,
    right: ShardDescriptor,
}

/// Has two shards merged.
pub async fn run(args: MergeArgs, context: &Context) -> Result<(), Failure> {
    args.target.check()?;
    let admin = context.admin()?;
    let cluster = admin.cluster(each(context)).await?;
    let pair = pair(&cluster.shards(), args.target.find(&cluster)?)?;
    let (left, right) = (pair.left, pair.right.id);
    let absorb = format!("absorb {right}");
    let arrangement = Arrangement::MergeShard { shard: left };
    orders::give(&admin, left, arrangement, &absorb).await?;
    let mut object = json!({ "shard": left.to_string(), "right": right.to_string() });
    object["merged"] = (!args.no_wait).into();
    if args.no_wait {
        return context.print_result(object, &format!("{left} is to {absorb}"));
    }
    let ended = orders::wait(left, "merge", context).await?;
    check(&pair, &ended, &admin, context).await?;
    context.print_result(object, &format!("{left} has absorbed {right}"))
}

fn pair(shards: &[ShardView], left: ShardId) -> Result<Pair, Failure> {
    let mut shards = shards.iter().map(|view| &view.shard);
    let known = shards.clone().find(|shard| shard.id == left);
    let known = known.ok_or_else(|| Failure::unreachable(format!("no node tells of {left}")))?;
    let Some(end) = &known.range.end else {
        let reason = format!("{left} has the last keys: nothing is right of it");
        return Err(Failure::bad_input(reason));
    };
    let right = shards.find(|shard| shard.range.start == end);
    let missing = || Failure::unreachable(format!("no node tells of what is right of {left}"));
    let right = right.ok_or_else(missing)?.clone();
    Ok(Pair { left, right })
}

/// Whether they are one, in the words of the nodes themselves.
async fn check(
    pair: &Pair,
    ended: &Overview,
    admin: &Admin,
    context: &Context,
) -> Result<(), Failure> {
    for attempt in 0..CHECKS_MAX {
        tokio::time::sleep(LOOK_INTERVAL * attempt.min(1)).await;
        if is_one(&admin.shards(each(context)).await?, pair) {
            return Ok(());
        }
    }
    let (left, right) = (pair.left, pair.right.id);
    let message = format!("{left} has not absorbed {right}");
    Err(orders::failed(message, left, ended))
}

fn is_one(shards: &[ShardView], pair: &Pair) -> bool {
    let mut shards = shards.iter().map(|view| &view.shard);
    let left = shards.find(|shard| shard.id == pair.left);
    left.is_some_and(|left| left.range.contains(&pair.right.range.start))
}

/// For each node that is asked.
fn each(context: &Context) -> Duration {
    context.timeout().min(NODE_DEADLINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;
    use crate::types::shard::Epoch;

    fn shard(id: u64, start: &'static str, end: &'static str) -> ShardView {
        ShardView {
            shard: ShardDescriptor {
                id: ShardId(id),
                range: KeyRange {
                    start: start.into(),
                    end: (!end.is_empty()).then(|| end.into()),
                },
                epoch: Epoch::default(),
                replicas: Vec::new(),
            },
            leader: None,
            replicas: Vec::new(),
        }
    }

    #[test]
    fn the_right_one_is_who_begins_where_the_left_one_ends() {
        let shards = [shard(1, "", "g"), shard(2, "g", "m"), shard(3, "m", "")];
        let right = |id| pair(&shards, ShardId(id)).map(|pair| pair.right.id);
        assert_eq!(right(1), Ok(ShardId(2)));
        assert_eq!(right(2), Ok(ShardId(3)));
        let last = right(3).unwrap_err();
        assert_eq!(
            last.to_string(),
            "s3 has the last keys: nothing is right of it"
        );
        let apart = pair(&[shard(1, "", "g"), shard(3, "m", "")], ShardId(1));
        let said = apart.unwrap_err().to_string();
        assert_eq!(said, "no node tells of what is right of s1");
    }

    #[test]
    fn they_are_one_when_the_left_one_has_the_first_key_of_the_right_one() {
        let both = [shard(1, "", "g"), shard(2, "g", "m")];
        let pair = pair(&both, ShardId(1)).unwrap();
        assert!(!is_one(&both, &pair));
        assert!(is_one(&[shard(1, "", "m")], &pair));
        assert!(!is_one(&[], &pair));
    }
}
