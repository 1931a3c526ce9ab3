//! The verbs that say what is wanted of a node: drain, decommission, recommission.
//!
//! Placement counts what it has been told; after a change of its leader that is nothing at first. So what it
//! counts as done is looked for once more among what the nodes themselves say before it is called done.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::cluster::NODE_DEADLINE;
use crate::cli::context::Context;
use crate::cli::explain;
use crate::cli::failure::Failure;
use crate::cli::progress::Countdown;
use crate::cli::text;
use crate::cli::waiting::Waiting;
use crate::client::Admin;
use crate::client::admin::ClusterStatus;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::node::Duty;
use crate::types::node::Role;
use crate::types::overview::Arrangement;
use crate::types::overview::NodeOverview;
use crate::types::overview::Overview;
use crate::types::overview::ShardOverview;
use crate::wire::request::OverviewQuery;

/// A replica that was ordered before the node was to leave may still be made within this time.
const CERTAIN_AFTER: Duration = Duration::from_secs(12);
/// When nothing has changed for so long, it is said what holds the rest back.
const STANDSTILL: Duration = Duration::from_secs(10);

/// `quorate node drain`.
#[derive(Debug, Args)]
#[command(after_help = "\
The node hands over what it leads and gets nothing new; its replicas stay. For a restart or an upgrade: take
it back with `node recommission` afterwards. Waits until the node leads no shard; Ctrl-C ends the waiting
alone. When nothing changes for 10 s, it says what holds the rest back.

Example:
  quorate node drain n4
  quorate node drain n4 --no-wait")]
pub struct DrainArgs {
    #[command(flatten)]
    which: Which,
    /// End when it is recorded
    #[arg(long)]
    no_wait: bool,
}

/// `quorate node decommission`.
#[derive(Debug, Args)]
#[command(after_help = "\
All that the node holds moves to others, so that it can be switched off for good. Waits until nothing of it
is left and says that it is safe then; Ctrl-C ends the waiting alone. When nothing changes for 10 s, it says
what holds the rest back. Exits with 1 when the node does not answer, so that it is not known whether it still
has a replica of placement's group.

Example:
  quorate node decommission n4
  quorate node decommission n4 --no-wait")]
pub struct DecommissionArgs {
    #[command(flatten)]
    which: Which,
    /// End when it is recorded
    #[arg(long)]
    no_wait: bool,
}

/// `quorate node recommission`.
#[derive(Debug, Args)]
#[command(after_help = "\
Takes `node drain` and `node decommission` back: the node may lead and get replicas again. What has moved
away comes back as far as balance wants it.

Example:
  quorate node recommission n4")]
pub struct RecommissionArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
struct Which {
    /// The node, such as n4
    #[arg(value_name = "NODE", value_parser = text::decode_node)]
    node: NodeId,
}

/// Has a node lead nothing.
pub async fn drain(args: DrainArgs, context: &Context) -> Result<(), Failure> {
    let node = args.which.node;
    order(node, Duty::Drain, context).await?;
    if args.no_wait {
        return print_recorded(node, Duty::Drain, "is to lead nothing", context);
    }
    let done = wait(node, Goal::LeadsNothing, context).await?;
    if done.leads_placement {
        context.world.tell(format!(
            "{node} still leads placement's group: quorate shard transfer-leader placement"
        ));
    }
    let object = json!({ "node": node.0, "duty": Duty::Drain.as_str(), "leaders": 0 });
    context.print_result(object, &format!("{node} leads no shard any more"))
}

/// Has a node hold nothing.
pub async fn decommission(args: DecommissionArgs, context: &Context) -> Result<(), Failure> {
    let node = args.which.node;
    order(node, Duty::Leave, context).await?;
    if args.no_wait {
        return print_recorded(node, Duty::Leave, "is to hold nothing", context);
    }
    let done = wait(node, Goal::HoldsNothing, context).await?;
    if !done.is_known {
        return Err(Failure::error(format!(
            "{node} does not answer: it is not known whether it has a replica of placement's group; it holds no shard any more"
        )));
    }
    let duty = Duty::Leave.as_str();
    let object = json!({ "node": node.0, "duty": duty, "leaders": 0, "replicas": 0, "safe": true });
    let line =
        format!("{node} holds nothing any more: it is safe to switch it off and delete its data");
    context.print_result(object, &line)
}

/// Has a node serve again.
pub async fn recommission(args: RecommissionArgs, context: &Context) -> Result<(), Failure> {
    let node = args.which.node;
    order(node, Duty::Serve, context).await?;
    print_recorded(node, Duty::Serve, "serves again", context)
}

fn print_recorded(node: NodeId, duty: Duty, what: &str, context: &Context) -> Result<(), Failure> {
    let object = json!({ "node": node.0, "duty": duty.to_string() });
    context.print_result(object, &format!("{node} {what}"))
}

/// Placement answers late for a node that there is not: so it is looked up first.
async fn order(node: NodeId, duty: Duty, context: &Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let overview = admin.overview(OverviewQuery::default(), None).await?;
    find(&overview, node)?;
    Ok(admin
        .arrange(Arrangement::SetDuty { node, duty }, None)
        .await?)
}

/// A node of the overview.
fn find(overview: &Overview, node: NodeId) -> Result<&NodeOverview, Failure> {
    let mut nodes = overview.nodes.iter();
    let found = nodes.find(|it| it.member.id == node);
    found.ok_or_else(|| {
        let nodes = overview.nodes.iter();
        let ids: Vec<String> = nodes.map(|it| it.member.id.to_string()).collect();
        Failure::not_found(format!("there is no {node}; there are {}", ids.join(", ")))
    })
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    LeadsNothing,
    HoldsNothing,
}

/// What a node still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Left {
    leaders: usize,
    replicas: usize,
    /// Whether it has a replica of placement's group.
    placement: bool,
}

impl Goal {
    fn duty(self) -> Duty {
        match self {
            Goal::LeadsNothing => Duty::Drain,
            Goal::HoldsNothing => Duty::Leave,
        }
    }

    fn is_reached(self, left: Left) -> bool {
        match self {
            Goal::LeadsNothing => left.leaders == 0,
            Goal::HoldsNothing => left == Left::default(),
        }
    }

    /// Whether it has been so for long enough that nothing comes any more.
    fn is_certain(self, reached_for: Duration) -> bool {
        match self {
            Goal::LeadsNothing => true,
            Goal::HoldsNothing => reached_for >= CERTAIN_AFTER,
        }
    }

    /// How much there is to do, and the same in words.
    fn shown(self, left: Left) -> (u64, String) {
        let leaders = counted(left.leaders, "leader");
        match self {
            Goal::LeadsNothing => (left.leaders as u64, format!("{leaders} left")),
            Goal::HoldsNothing => {
                let replicas = counted(left.replicas, "replica");
                let placement = match left.placement {
                    true => ", and placement's group",
                    false => "",
                };
                let line = format!("{replicas} and {leaders} left{placement}");
                (left.replicas as u64 + u64::from(left.placement), line)
            }
        }
    }

    /// What stays in force when nobody waits any more.
    fn stays(self, node: NodeId) -> String {
        let what = match self {
            Goal::LeadsNothing => "lead",
            Goal::HoldsNothing => "hold",
        };
        format!(
            "{node} is still to {what} nothing; take that back with: quorate node recommission {node}"
        )
    }

    /// A shard that keeps the goal from being reached, rather one with which nothing is done, or placement's group.
    fn rest(self, overview: &Overview, node: NodeId) -> Option<ShardId> {
        let is_left = |shard: &&ShardOverview| match self {
            Goal::LeadsNothing => leader_of(shard) == Some(node),
            Goal::HoldsNothing => shard.shard.replica_on(node).is_some(),
        };
        let is_moving = |id| overview.operators.iter().any(|it| it.shard == id);
        let left = overview.shards.iter().filter(is_left);
        let left = left.map(|shard| shard.shard.id);
        let rest = left.min_by_key(|id| is_moving(*id));
        let placement = (self == Goal::HoldsNothing).then_some(ShardId::PLACEMENT);
        rest.or(placement)
    }
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

fn leader_of(shard: &ShardOverview) -> Option<NodeId> {
    let leader = shard.report.as_ref()?.leader;
    let mut replicas = shard.shard.replicas.iter();
    Some(replicas.find(|replica| replica.id == leader)?.node)
}

/// What placement has heard of.
fn left_heard(node: &NodeOverview) -> Left {
    Left {
        leaders: node.leaders as usize,
        replicas: node.replicas as usize,
        placement: false,
    }
}

/// What the nodes say themselves.
fn left_seen(cluster: &ClusterStatus, node: NodeId) -> Left {
    let shards = cluster.shards();
    let held = shards
        .iter()
        .filter(|it| it.shard.replica_on(node).is_some());
    let led = shards.iter().filter(|it| it.leader == Some(node));
    let status = cluster.nodes.get(&node);
    let mut groups = status.iter().flat_map(|status| &status.groups);
    Left {
        leaders: led.count(),
        replicas: held.count(),
        placement: groups.any(|group| group.group == GroupId::Placement),
    }
}

/// Whether it is known that a node has no replica of placement's group, of which none was seen.
fn is_known(cluster: &ClusterStatus, node: &NodeOverview) -> bool {
    let role = node.report.as_ref().map(|report| report.role);
    cluster.nodes.contains_key(&node.member.id) || role == Some(Role::Data)
}

/// Since when nothing has changed.
#[derive(Debug, Default)]
struct Standstill {
    last: Option<Left>,
    since: Duration,
}

impl Standstill {
    /// Whether nothing has changed for long, or for long since that was said last.
    fn note(&mut self, left: Left, now: Duration) -> bool {
        if self.last.replace(left) != Some(left) {
            self.since = now;
            return false;
        }
        let is_long = now.saturating_sub(self.since) >= STANDSTILL;
        if is_long {
            self.since = now;
        }
        is_long
    }
}

/// How the waiting has ended.
struct Done {
    leads_placement: bool,
    /// Whether the node has said that it has no replica of placement's group.
    is_known: bool,
}

async fn wait(node: NodeId, goal: Goal, context: &Context) -> Result<Done, Failure> {
    let admin = context.admin()?;
    let mut waiting = Waiting::start(context, goal.stays(node))?;
    let mut countdown = Countdown::start(&context.world);
    let ended = wait_with(node, goal, &admin, &mut waiting, &mut countdown, context).await;
    countdown.clear();
    ended
}

async fn wait_with(
    id: NodeId,
    goal: Goal,
    admin: &Admin,
    waiting: &mut Waiting<'_>,
    countdown: &mut Countdown<'_>,
    context: &Context,
) -> Result<Done, Failure> {
    let each = context.timeout().min(NODE_DEADLINE);
    let mut standstill = Standstill::default();
    let mut reached: Option<Duration> = None;
    let mut told = String::new();
    loop {
        let overview = waiting.look().await?;
        let node = find(&overview, id)?;
        if node.duty != goal.duty() {
            return Err(taken_back(node));
        }
        let mut left = left_heard(node);
        if goal.is_reached(left)
            && let Ok(cluster) = admin.cluster(each).await
        {
            left = left_seen(&cluster, id);
            let since = *reached.get_or_insert(waiting.elapsed());
            if goal.is_reached(left) && goal.is_certain(waiting.elapsed() - since) {
                return Ok(Done {
                    leads_placement: overview.driver == id,
                    is_known: is_known(&cluster, node),
                });
            }
        }
        if !goal.is_reached(left) {
            reached = None;
        }
        let (count, line) = goal.shown(left);
        countdown.show(count, &line);
        if !goal.is_reached(left) && standstill.note(left, waiting.elapsed()) {
            let why = why_not(id, goal, admin, each).await;
            if why != told {
                countdown.tell(&format!("nothing has changed for a while: {why}"));
                told = why;
            }
        }
    }
}

fn taken_back(node: &NodeOverview) -> Failure {
    let (id, duty) = (node.member.id, node.duty.to_string());
    Failure::error(format!(
        "somebody has changed what is wanted of {id} meanwhile: {duty}"
    ))
}

/// What holds the rest back, of one shard of it. Not to learn it is no reason to end the waiting.
async fn why_not(node: NodeId, goal: Goal, admin: &Admin, each: Duration) -> String {
    let query = OverviewQuery { shards: true };
    let overview = match admin.overview(query, Some(each)).await {
        Ok(overview) => overview,
        Err(error) => return error.to_string(),
    };
    if overview.paused {
        return "placement is paused: see `quorate placement resume`".to_owned();
    }
    let Some(shard) = goal.rest(&overview, node) else {
        return "placement has not heard yet of all that is left".to_owned();
    };
    let held = explain::held_back(admin, shard, each).await;
    match held {
        Ok(held) => format!("{shard}: {held}"),
        Err(failure) => format!("{shard}: {failure}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::Error;
    use crate::types::ClusterId;
    use crate::types::Incarnation;
    use crate::types::ReplicaId;
    use crate::types::node::Member;
    use crate::types::overview::OperatorOverview;
    use crate::types::report::NodeReport;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::ShardDescriptor;
    use crate::wire::request::GroupStatus;
    use crate::wire::request::NodeStatus;

    const NODE: NodeId = NodeId(4);

    fn member() -> Member {
        Member {
            id: NODE,
            incarnation: Incarnation([4; 16]),
            name: "n4".into(),
            node_address: String::new(),
            client_address: String::new(),
        }
    }

    fn node(role: Option<Role>) -> NodeOverview {
        NodeOverview {
            member: member(),
            report: role.map(|role| NodeReport {
                role,
                ..NodeReport::default()
            }),
            duty: Duty::Leave,
            health: "up".into(),
            silent_for: Duration::ZERO,
            replicas: 0,
            leaders: 0,
        }
    }

    fn shard(id: u64, nodes: &[u64]) -> ShardDescriptor {
        let replicas = nodes.iter().map(|node| Replica {
            id: ReplicaId(10 * id + node),
            node: NodeId(*node),
        });
        ShardDescriptor {
            id: ShardId(id),
            range: crate::types::KeyRange::of_prefix(&[id as u8]),
            epoch: Epoch { conf: 1, bounds: 1 },
            replicas: replicas.collect(),
        }
    }

    fn group(group: GroupId, shard: Option<ShardDescriptor>, leader: u64) -> GroupStatus {
        GroupStatus {
            group,
            replica: ReplicaId(1),
            role: "follower".into(),
            leader: Some(NodeId(leader)),
            term: 1,
            last_index: 1,
            applied_index: 1,
            purged_index: 0,
            shard,
            state_hash: None,
        }
    }

    /// Node 4 answers with these groups, or does not.
    fn cluster(groups: Option<Vec<GroupStatus>>) -> ClusterStatus {
        let silent = groups.is_none();
        let status = groups.map(|groups| NodeStatus {
            cluster: ClusterId([0; 16]),
            member: member(),
            version: String::new(),
            uptime_s: 0,
            ready: true,
            free_bytes: 0,
            groups,
            members: Vec::new(),
        });
        let error = Error::unavailable("n4", "refused");
        ClusterStatus {
            nodes: status.into_iter().map(|status| (NODE, status)).collect(),
            silent: silent
                .then(|| (NODE, (member(), error)))
                .into_iter()
                .collect(),
            unreachable: BTreeMap::new(),
        }
    }

    #[test]
    fn a_replica_of_placement_is_left_too_and_silence_says_nothing_of_it() {
        let placement = group(GroupId::Placement, None, 1);
        let left = left_seen(&cluster(Some(vec![placement])), NODE);
        assert!(left.placement && !Goal::HoldsNothing.is_reached(left));
        assert!(Goal::LeadsNothing.is_reached(left));
        let shown = Goal::HoldsNothing.shown(left);
        let line = "0 replicas and 0 leaders left, and placement's group";
        assert_eq!(shown, (1, line.to_owned()));
        let check = |groups, role, expected| {
            assert_eq!(is_known(&cluster(groups), &node(role)), expected);
        };
        check(Some(Vec::new()), None, true);
        check(None, Some(Role::Data), true);
        check(None, Some(Role::Both), false);
        check(None, None, false);
    }

    #[test]
    fn what_the_nodes_say_counts_where_placement_has_heard_nothing() {
        let mut seen = shard(1, &[1, 4]);
        let one = group(GroupId::Shard(ShardId(1)), Some(seen.clone()), 4);
        seen = shard(2, &[1, 2]);
        let other = group(GroupId::Shard(ShardId(2)), Some(seen), 1);
        let left = left_seen(&cluster(Some(vec![one, other])), NODE);
        let expected = Left {
            leaders: 1,
            replicas: 1,
            placement: false,
        };
        assert_eq!(left, expected);
        assert!(!Goal::LeadsNothing.is_reached(left));
        let follows = Left { leaders: 0, ..left };
        assert!(Goal::LeadsNothing.is_reached(follows));
        assert!(!Goal::HoldsNothing.is_reached(follows));
    }

    #[test]
    fn what_is_left_is_said_in_words() {
        let left = |leaders, replicas| Left {
            leaders,
            replicas,
            placement: false,
        };
        let drain = Goal::LeadsNothing.shown(left(12, 40));
        assert_eq!(drain, (12, "12 leaders left".to_owned()));
        let leave = Goal::HoldsNothing.shown(left(0, 1));
        assert_eq!(leave, (1, "1 replica and 0 leaders left".to_owned()));
    }

    #[test]
    fn a_standstill_is_told_after_ten_seconds_and_again_after_ten_more() {
        let mut standstill = Standstill::default();
        let mut note = |seconds, replicas| {
            let left = Left {
                replicas,
                ..Left::default()
            };
            standstill.note(left, Duration::from_secs(seconds))
        };
        assert!(!note(0, 3) && !note(9, 3) && note(10, 3) && !note(19, 3));
        assert!(!note(19, 2) && !note(28, 2) && note(29, 2) && note(39, 2));
    }

    #[test]
    fn of_what_is_left_a_shard_is_asked_for_that_does_not_move() {
        let shards = [shard(1, &[4]), shard(2, &[4]), shard(3, &[1])];
        let shards = shards.map(|shard| ShardOverview {
            shard,
            report: None,
            busy_for: Duration::ZERO,
            quiet_for: Duration::ZERO,
        });
        let moving = OperatorOverview {
            shard: ShardId(1),
            number: 1,
            aim: String::new(),
            action: String::new(),
            reason: String::new(),
            step: String::new(),
            progress: String::new(),
            bytes: 0,
            expires: crate::types::Timestamp::ZERO,
        };
        let mut overview = Overview {
            shards: shards.to_vec(),
            operators: vec![moving],
            ..Overview::default()
        };
        assert_eq!(Goal::HoldsNothing.rest(&overview, NODE), Some(ShardId(2)));
        assert_eq!(Goal::LeadsNothing.rest(&overview, NODE), None);
        overview.shards.remove(1);
        assert_eq!(Goal::HoldsNothing.rest(&overview, NODE), Some(ShardId(1)));
        overview.shards.remove(0);
        let placement = Goal::HoldsNothing.rest(&overview, NODE);
        assert_eq!(placement, Some(ShardId::PLACEMENT));
    }
}
