//! The verbs about shards: list, split, transfer-leader. The others are in files of their own.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use clap::Subcommand;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::explain;
use crate::cli::failure::Failure;
use crate::cli::keys::EncodingArgs;
use crate::cli::merges;
use crate::cli::moves;
use crate::cli::progress::Steps;
use crate::cli::render::bounds;
use crate::cli::render::shard_object;
use crate::cli::replicas;
use crate::cli::text;
use crate::client::Admin;
use crate::client::admin::ShardView;
use crate::client::shards::Shards;
use crate::error::Advice;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::key::Anchor;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::shard::ShardDescriptor;

/// Parts into which one command cuts a prefix at most.
const PARTS_MAX: u64 = 10_000;
/// Bytes behind a prefix that are counted through for even parts.
const EVEN_BYTES: usize = 2;
/// How often a cut is tried while shards change.
const CUT_ATTEMPTS_MAX: u32 = 5;
/// Between two of them.
const CUT_PAUSE: Duration = Duration::from_millis(200);

/// `quorate shard`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate shard list
  quorate shard split s1 --at m
  quorate shard merge s1
  quorate shard transfer-leader s1 --to n2
  quorate shard explain s1")]
pub struct ShardArgs {
    #[command(subcommand)]
    verb: ShardVerb,
}

#[derive(Debug, Subcommand)]
enum ShardVerb {
    /// List shards in the order of their keys
    List(ListArgs),
    /// Cut a shard in two, or the keys of a prefix into even parts
    Split(SplitArgs),
    /// Hand the leadership of a shard to another node
    TransferLeader(TransferLeaderArgs),
    /// Give a shard a replica on a further node
    AddReplica(replicas::AddReplicaArgs),
    /// Take a replica from a shard
    RemoveReplica(replicas::RemoveReplicaArgs),
    /// Have placement move a replica from one node to another
    Move(moves::MoveArgs),
    /// Have a shard absorb its right neighbour
    Merge(merges::MergeArgs),
    /// Say why a shard is where it is, and what holds placement back
    Explain(explain::ExplainArgs),
}

/// Does what was typed.
pub async fn run(args: ShardArgs, context: &Context) -> Result<(), Failure> {
    match args.verb {
        ShardVerb::List(args) => list(args, context).await,
        ShardVerb::Split(args) => split(args, context).await,
        ShardVerb::TransferLeader(args) => transfer_leader(args, context).await,
        ShardVerb::AddReplica(args) => replicas::add(args, context).await,
        ShardVerb::RemoveReplica(args) => replicas::remove(args, context).await,
        ShardVerb::Move(args) => moves::run(args, context).await,
        ShardVerb::Merge(args) => merges::run(args, context).await,
        ShardVerb::Explain(args) => explain::run(args, context).await,
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
A range is from START up to, not including, END; - is before the first key and behind the last one.
Behind each node stands what its replica does. Nodes are asked for what they have, so a shard of which
no node answers is not in the list.

Example:
  quorate shard list
  quorate shard list --prefix user/ -o json")]
struct ListArgs {
    /// Only shards that may hold keys that begin with this
    #[arg(long, value_name = "KEY")]
    prefix: Option<String>,
    #[command(flatten)]
    encoding: EncodingArgs,
}

async fn list(args: ListArgs, context: &Context) -> Result<(), Failure> {
    let prefix = match &args.prefix {
        Some(prefix) => args.encoding.decode("--prefix", prefix)?,
        None => Bytes::new(),
    };
    let wanted = KeyRange::of_prefix(&prefix);
    let cluster = context.admin()?.cluster(each(context)).await?;
    let mut shards = cluster.shards();
    shards.retain(|view| view.shard.range.overlaps(&wanted));
    for (member, error) in cluster.silent.values() {
        let name = &member.name;
        context.world.tell(format!("{name}: {error}"));
    }
    if context.is_json() {
        let shards: Vec<Json> = shards.iter().map(view_json).collect();
        return context.print_json(json!({ "shards": shards }));
    }
    let mut table = table(&["SHARD", "START", "END", "LEADER", "REPLICAS", "EPOCH"]);
    for view in &shards {
        table.add_row(row(view));
    }
    context.world.print(format!("{table}\n"))
}

fn row(view: &ShardView) -> [String; 6] {
    let shard = &view.shard;
    let (start, end) = bounds(&shard.range);
    let replicas = view.replicas.iter().map(|replica| {
        let role = replica.role.as_deref().unwrap_or("silent");
        format!("{} {role}", replica.replica.node)
    });
    [
        shard.id.to_string(),
        start,
        end,
        view.leader
            .map_or("none".to_string(), |node| node.to_string()),
        replicas.collect::<Vec<String>>().join(", "),
        format!("{}.{}", shard.epoch.bounds, shard.epoch.conf),
    ]
}

fn view_json(view: &ShardView) -> Json {
    let mut object = shard_object(&view.shard);
    let replicas = view.replicas.iter().map(|seen| {
        json!({
            "replica": seen.replica.id.0,
            "node": seen.replica.node.0,
            "role": seen.role,
        })
    });
    let leader = view.leader.map(|leader| leader.0);
    object.insert("leader".into(), leader.into());
    object.insert("replicas".into(), replicas.collect::<Vec<Json>>().into());
    object.into()
}

#[derive(Debug, Args)]
#[command(after_help = "\
No data moves: both halves stay on the nodes where they are. Where a shard begins already nothing is
cut, so the same command may be given again. What stays small and cold is merged again after a while,
unless `placement set merge_bytes 0` says that nothing is.

Even parts: key i of N - 1 is the prefix and, behind it, i * 65536 / N as two bytes, the last of them
left out where it is zero. So --prefix '' --count 4 cuts at the bytes 40, 80 and c0. Keys that are text
use few of these bytes: then --at fits better.

Example:
  quorate shard split --at user/g --at user/p
  quorate shard split s1 --hex --at 80
  quorate shard split --prefix blob/ --count 16")]
struct SplitArgs {
    /// The shard, such as s1, for one cut; the one that holds the key when not given
    #[arg(value_parser = text::decode_shard, requires = "at")]
    shard: Option<ShardId>,
    /// First key of the right half; may be given several times
    #[arg(long, value_name = "KEY", required_unless_present = "prefix")]
    at: Vec<String>,
    /// Cut the keys that begin with this into even parts, whatever shards they are in
    #[arg(long, value_name = "KEY", conflicts_with_all = ["shard", "at"], requires = "count")]
    prefix: Option<String>,
    /// How many parts
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["shard", "at"],
        requires = "prefix",
        value_parser = clap::value_parser!(u64).range(2..=PARTS_MAX)
    )]
    count: Option<u64>,
    #[command(flatten)]
    encoding: EncodingArgs,
}

async fn split(args: SplitArgs, context: &Context) -> Result<(), Failure> {
    let encoding = &args.encoding;
    let cuts = match &args.prefix {
        Some(prefix) => {
            let prefix = encoding.decode("--prefix", prefix)?;
            even_keys(&prefix, args.count.unwrap_or(2))?
        }
        None => {
            let keys = args.at.iter().map(|at| encoding.decode("--at", at));
            keys.collect::<Result<Vec<Key>, Failure>>()?
        }
    };
    if args.shard.is_some() && cuts.len() > 1 {
        let reason = "a shard is named for one cut: its right half is another shard";
        return Err(Failure::bad_input(reason));
    }
    let mut knife = Knife {
        admin: context.admin()?,
        each: each(context),
        shards: Shards::default(),
    };
    knife.look().await?;
    let mut steps = Steps::start(&context.world, "cut", cuts.len() as u64);
    let mut done = Vec::new();
    for at in &cuts {
        let cut = knife.cut(at, args.shard).await.map_err(|failure| {
            steps.clear();
            let count = done.len();
            failure.while_doing(format!("after {count} cuts, at {}", text::shown(at)))
        })?;
        done.extend(cut);
        steps.advance();
    }
    steps.clear();
    print_cuts(&done, cuts.len() - done.len(), context)
}

fn print_cuts(
    done: &[(ShardDescriptor, ShardDescriptor)],
    existed: usize,
    context: &Context,
) -> Result<(), Failure> {
    if context.is_json() {
        let cuts = done.iter().map(|(left, right)| {
            let (left, right) = (shard_object(left), shard_object(right));
            json!({ "left": left, "right": right })
        });
        let cuts: Vec<Json> = cuts.collect();
        return context.print_json(json!({ "cuts": cuts, "existed": existed }));
    }
    for (left, right) in done {
        let at = text::shown(&right.range.start);
        let line = format!("{} ends and {} begins at {at}\n", left.id, right.id);
        context.world.print(line)?;
    }
    if existed > 0 {
        let line = format!("{existed} of the cuts were there already\n");
        context.world.print(line)?;
    }
    Ok(())
}

/// Cuts shards at keys, and knows where they have been cut.
struct Knife {
    admin: Admin,
    each: Duration,
    shards: Shards,
}

impl Knife {
    /// Learns which shards there are.
    async fn look(&mut self) -> Result<(), Failure> {
        for view in self.admin.shards(self.each).await? {
            self.shards.learn(view.shard);
        }
        Ok(())
    }

    /// Lets a shard begin at a key: both halves, or `None` where one begins already. With `named` only
    /// that shard is cut. A failed attempt may have cut, and shards change by themselves: so it is
    /// looked again before it is tried again.
    async fn cut(
        &mut self,
        at: &Key,
        named: Option<ShardId>,
    ) -> Result<Option<(ShardDescriptor, ShardDescriptor)>, Failure> {
        let mut attempts = 0;
        loop {
            let shard = self.holder(at)?;
            if shard.range.start == at {
                return Ok(None);
            }
            if let Some(named) = named.filter(|named| *named != shard.id) {
                return Err(Failure::bad_input(format!(
                    "that key is in {}, not in {named}",
                    shard.id
                )));
            }
            let id = shard.id;
            let error = match self.admin.split_shard(id, at.clone(), None).await {
                Ok((left, right)) => {
                    self.shards.learn(left.clone());
                    self.shards.learn(right.clone());
                    return Ok(Some((left, right)));
                }
                Err(error) => error,
            };
            attempts += 1;
            self.look().await?;
            if self.holder(at)?.range.start == at {
                return Ok(None);
            }
            let is_final = matches!(error.advice(), Advice::Fix | Advice::Stop);
            if is_final || attempts == CUT_ATTEMPTS_MAX {
                return Err(error.into());
            }
            tokio::time::sleep(CUT_PAUSE).await;
        }
    }

    fn holder(&self, at: &Key) -> Result<&ShardDescriptor, Failure> {
        let shard = self.shards.at(Anchor::At(at));
        shard.ok_or_else(|| Failure::unreachable("no node that answers has the shard of that key"))
    }
}

/// The keys that cut those beginning with `prefix` into `count` even parts; the rule is in the help.
fn even_keys(prefix: &[u8], count: u64) -> Result<Vec<Key>, Failure> {
    if prefix.len() + EVEN_BYTES > KEY_BYTES_MAX {
        let max = KEY_BYTES_MAX - EVEN_BYTES;
        return Err(Failure::bad_input(format!(
            "--prefix has {} bytes, at most {max} leave room for a cut",
            prefix.len()
        )));
    }
    let keys = (1..count).map(|part| {
        let number = u16::try_from(part * 65_536 / count);
        let [high, low] = number.expect("below the whole").to_be_bytes();
        let behind: &[u8] = if low == 0 { &[high] } else { &[high, low] };
        Key::from([prefix, behind].concat())
    });
    Ok(keys.collect())
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate shard transfer-leader s1 --to n2
  quorate shard transfer-leader placement")]
struct TransferLeaderArgs {
    /// The shard, such as s1; or placement
    #[arg(value_name = "SHARD", value_parser = text::decode_group)]
    group: GroupId,
    /// The next leader; the present one chooses when not given
    #[arg(long, value_name = "NODE", value_parser = text::decode_node)]
    to: Option<NodeId>,
}

async fn transfer_leader(args: TransferLeaderArgs, context: &Context) -> Result<(), Failure> {
    let TransferLeaderArgs { group, to } = args;
    context.admin()?.transfer_leader(group, to, None).await?;
    let object = json!({ "group": group.to_string(), "to": to.map(|node| node.0) });
    let line = match to {
        Some(node) => format!("the leadership of {group} goes to {node}"),
        None => format!("the leadership of {group} goes to another node"),
    };
    context.print_result(object, &line)
}

/// For each node that is asked.
fn each(context: &Context) -> Duration {
    context.timeout().min(NODE_DEADLINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prefix: &str, count: u64, expected: &[&[u8]]) {
        let keys = even_keys(prefix.as_bytes(), count).unwrap();
        let expected = expected.iter().map(|key| Key::copy_from_slice(key));
        assert_eq!(keys, expected.collect::<Vec<_>>(), "{prefix} {count}");
    }

    #[test]
    fn even_parts_count_two_bytes_behind_the_prefix() {
        check("", 2, &[&[0x80]]);
        check("", 4, &[&[0x40], &[0x80], &[0xc0]]);
        check("p", 3, &[b"p\x55\x55", b"p\xaa\xaa"]);
    }

    #[test]
    fn even_keys_rise_and_keep_the_prefix_whatever_the_count() {
        let inside = KeyRange::of_prefix(b"p/");
        for count in [2, 3, 7, 255, 256, 257, 1_000, PARTS_MAX] {
            let keys = even_keys(b"p/", count).unwrap();
            assert_eq!(keys.len() as u64, count - 1);
            assert!(keys.is_sorted_by(|one, other| one < other), "{count}");
            assert!(keys.iter().all(|key| inside.contains(key) && key != "p/"));
        }
        assert!(even_keys(&[b'x'; KEY_BYTES_MAX - 1], 2).is_err());
    }
}
