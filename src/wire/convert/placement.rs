//! Requests and answers of `placement.proto`, and those of `transport.proto` that are about placement.
//! Decides only.

use crate::codec::value;
use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::keyspace::Definition;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::operator::SplitPoint;
use crate::types::operator::Step;
use crate::types::placement::Changes;
use crate::types::placement::Orders;
use crate::types::placement::PlacementAnswer;
use crate::types::placement::PlacementCommand;
use crate::types::report::Report;
use crate::types::report::ShardStep;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;
use crate::wire::convert::admin::definition_of;
use crate::wire::convert::admin::definition_out;
use crate::wire::convert::admin::node_report_of;
use crate::wire::convert::admin::node_report_out;
use crate::wire::convert::admin::rule_of;
use crate::wire::convert::admin::rule_out;
use crate::wire::convert::admin::shard_report_of;
use crate::wire::convert::admin::shard_report_out;
use crate::wire::convert::at_most;
use crate::wire::convert::check_bound;
use crate::wire::convert::cluster::member_of;
use crate::wire::convert::cluster::member_out;
use crate::wire::convert::cluster::numbered;
use crate::wire::convert::cluster::replica_of;
use crate::wire::convert::cluster::replica_out;
use crate::wire::convert::cluster::shard_of;
use crate::wire::convert::cluster::shard_out;
use crate::wire::convert::cluster_bytes;
use crate::wire::convert::cluster_of;
use crate::wire::convert::kv::Meant;
use crate::wire::convert::required;
use crate::wire::convert::sixteen;
use crate::wire::convert::sixteen_bytes;
use crate::wire::convert::transport::founder_of;
use crate::wire::convert::transport::founder_out;
use crate::wire::proto::v1;
use crate::wire::request::JoinRequest;
use crate::wire::request::JoinResponse;
use crate::wire::request::ShardRoute;

/// Format of a change that is sent as it stands in the log.
const LOGGED_FORMAT: u8 = 1;

/// A change of placement's state as it is sent. What any node may ask for has fields rather than the log's own
/// bytes, so that a node of another version refuses what it does not know with an error that names it.
pub fn command_out(command: PlacementCommand) -> v1::ChangePlacementRequest {
    use v1::change_placement_request::Command;
    let command = match command {
        PlacementCommand::RecordMember(member) => Command::RecordMember(member_out(member)),
        PlacementCommand::RecordShard(shard) => Command::RecordShard(shard_out(shard)),
        PlacementCommand::TakeIds { count } => Command::TakeIds(count),
        PlacementCommand::AddMember(newcomer) => Command::AddMember(newcomer_out(newcomer)),
        other @ (PlacementCommand::DescribeNode { .. }
        | PlacementCommand::SetDuty { .. }
        | PlacementCommand::NoteSilence { .. }
        | PlacementCommand::SetRule(_)
        | PlacementCommand::DeleteRule { .. }
        | PlacementCommand::SetSetting { .. }
        | PlacementCommand::SetPaused(_)
        | PlacementCommand::RecordOperators(_)
        | PlacementCommand::EndOperator { .. }
        | PlacementCommand::CreateKeyspace(_)
        | PlacementCommand::RetireKeyspace { .. }) => {
            Command::Logged(value::encode(LOGGED_FORMAT, &other).into())
        }
    };
    v1::ChangePlacementRequest {
        command: Some(command),
    }
}

/// What has fields of its own does not come as it stands in the log: it would not be checked.
fn logged_of(logged: &[u8]) -> Result<PlacementCommand> {
    let command = value::decode("a change of placement", LOGGED_FORMAT, logged)
        .map_err(|error| Error::invalid("logged", error.to_string()))?;
    match command {
        PlacementCommand::RecordMember(_)
        | PlacementCommand::RecordShard(_)
        | PlacementCommand::TakeIds { .. }
        | PlacementCommand::AddMember(_) => {
            Err(Error::invalid("logged", "it has fields of its own"))
        }
        PlacementCommand::SetRule(rule) => Ok(PlacementCommand::SetRule(rule_of(rule_out(rule))?)),
        PlacementCommand::CreateKeyspace(keyspace) => {
            let sent = definition_out(Definition {
                keyspace,
                retired: false,
            });
            let checked = definition_of(sent)?.keyspace;
            Ok(PlacementCommand::CreateKeyspace(checked))
        }
        other @ (PlacementCommand::DescribeNode { .. }
        | PlacementCommand::SetDuty { .. }
        | PlacementCommand::NoteSilence { .. }
        | PlacementCommand::DeleteRule { .. }
        | PlacementCommand::SetSetting { .. }
        | PlacementCommand::SetPaused(_)
        | PlacementCommand::RecordOperators(_)
        | PlacementCommand::EndOperator { .. }
        | PlacementCommand::RetireKeyspace { .. }) => Ok(other),
    }
}

/// Ids that are given out at once: far more than a split or a change of replicas takes.
const IDS_AT_ONCE_MAX: usize = 1_000;

/// A change of placement's state.
pub fn command_of(request: v1::ChangePlacementRequest) -> Result<PlacementCommand> {
    use v1::change_placement_request::Command;
    Ok(match required("command", request.command)? {
        Command::RecordMember(member) => PlacementCommand::RecordMember(member_of(member)?),
        Command::RecordShard(shard) => PlacementCommand::RecordShard(recorded_of(shard)?),
        Command::TakeIds(0) => return Err(Error::invalid("take_ids", "none are asked for")),
        Command::TakeIds(count) => {
            at_most("take_ids", "ids", count as usize, IDS_AT_ONCE_MAX)?;
            PlacementCommand::TakeIds { count }
        }
        Command::AddMember(newcomer) => PlacementCommand::AddMember(newcomer_of(newcomer)?),
        Command::Logged(logged) => logged_of(&logged)?,
    })
}

/// What a change came to, as it is sent.
pub fn answer_out(answer: PlacementAnswer) -> v1::ChangePlacementResponse {
    use v1::change_placement_response::Answer;
    use v1::change_placement_response::Missing;
    use v1::change_placement_response::Outdated;
    use v1::change_placement_response::Recorded;
    let answer = match answer {
        PlacementAnswer::Recorded => Answer::Recorded(Recorded {}),
        PlacementAnswer::Outdated => Answer::Outdated(Outdated {}),
        PlacementAnswer::FirstId(first) => Answer::FirstId(first),
        PlacementAnswer::Member(node) => Answer::Member(node.0),
        PlacementAnswer::Missing => Answer::Missing(Missing {}),
    };
    v1::ChangePlacementResponse {
        answer: Some(answer),
    }
}

/// What a change came to.
pub fn answer_of(response: v1::ChangePlacementResponse) -> Result<PlacementAnswer> {
    use v1::change_placement_response::Answer;
    Ok(match required("answer", response.answer)? {
        Answer::Recorded(_) => PlacementAnswer::Recorded,
        Answer::Outdated(_) => PlacementAnswer::Outdated,
        Answer::FirstId(first) => PlacementAnswer::FirstId(first),
        Answer::Member(node) => PlacementAnswer::Member(NodeId(node)),
        Answer::Missing(_) => PlacementAnswer::Missing,
    })
}

/// A report as it is sent.
pub fn report_out(report: Report) -> v1::ReportRequest {
    v1::ReportRequest {
        changed: report.changed.into_iter().map(shard_out).collect(),
        since: report.since,
        node: Some(node_report_out(report.node)),
        led: report.led.into_iter().map(shard_report_out).collect(),
    }
}

/// A report.
pub fn report_of(request: v1::ReportRequest) -> Result<Report> {
    let led = request.led.into_iter().map(shard_report_of);
    Ok(Report {
        changed: shards_of(request.changed)?,
        since: request.since,
        node: node_report_of(required("node", request.node)?)?,
        led: led.collect::<Result<_>>()?,
    })
}

/// The answer to a report as it is sent.
pub fn orders_out(orders: Orders) -> v1::ReportResponse {
    let Orders {
        changes,
        steps,
        hosts,
        snapshot_bytes_per_second,
    } = orders;
    v1::ReportResponse {
        upto: changes.upto,
        more: changes.more,
        members: changes.members.into_iter().map(member_out).collect(),
        shards: changes.shards.into_iter().map(shard_out).collect(),
        steps: steps.into_iter().map(step_out).collect(),
        hosts: hosts.into_iter().map(|node| node.0).collect(),
        snapshot_bytes_per_second,
        keyspaces: changes.keyspaces.into_iter().map(definition_out).collect(),
    }
}

/// The answer to a report.
pub fn orders_of(response: v1::ReportResponse) -> Result<Orders> {
    let keyspaces = response.keyspaces.into_iter().map(definition_of);
    let changes = Changes {
        upto: response.upto,
        more: response.more,
        members: members_of(response.members)?,
        shards: shards_of(response.shards)?,
        keyspaces: keyspaces.collect::<Result<_>>()?,
    };
    let steps = response.steps.into_iter().map(step_of);
    Ok(Orders {
        changes,
        steps: steps.collect::<Result<_>>()?,
        hosts: response.hosts.into_iter().map(NodeId).collect(),
        snapshot_bytes_per_second: response.snapshot_bytes_per_second,
    })
}

fn step_out(step: ShardStep) -> v1::ShardStep {
    use v1::shard_step::Step as Sent;
    let sent = match step.step {
        Step::AddReplica(node) => Sent::AddReplica(node.0),
        Step::RemoveReplica(replica) => Sent::RemoveReplica(replica_out(replica)),
        Step::TransferLeader(node) => Sent::TransferLeader(node.0),
        Step::Split(SplitPoint::Middle) => Sent::Split(Key::new()),
        Step::Split(SplitPoint::Key(key)) => Sent::Split(key),
        Step::Merge { right, epoch } => Sent::Merge(v1::AbsorbNeighbour {
            right: right.0,
            conf_epoch: epoch.conf,
            bounds_epoch: epoch.bounds,
        }),
    };
    v1::ShardStep {
        shard: step.shard.0,
        conf_epoch: step.epoch.conf,
        bounds_epoch: step.epoch.bounds,
        step: Some(sent),
    }
}

fn step_of(step: v1::ShardStep) -> Result<ShardStep> {
    use v1::shard_step::Step as Sent;
    let shard = ShardId(step.shard);
    let epoch = Epoch {
        conf: step.conf_epoch,
        bounds: step.bounds_epoch,
    };
    let step = match required("step", step.step)? {
        Sent::AddReplica(node) => Step::AddReplica(NodeId(node)),
        Sent::RemoveReplica(replica) => Step::RemoveReplica(replica_of(replica)),
        Sent::TransferLeader(node) => Step::TransferLeader(NodeId(node)),
        Sent::Split(key) if key.is_empty() => Step::Split(SplitPoint::Middle),
        Sent::Split(key) => {
            check_bound("step.split", &key)?;
            Step::Split(SplitPoint::Key(key))
        }
        Sent::Merge(merge) => Step::Merge {
            right: ShardId(numbered("step.merge.right", merge.right)?),
            epoch: Epoch {
                conf: merge.conf_epoch,
                bounds: merge.bounds_epoch,
            },
        },
    };
    Ok(ShardStep { shard, epoch, step })
}

/// A request to join as it is sent.
pub fn join_out(join: JoinRequest) -> v1::JoinRequest {
    v1::JoinRequest {
        token: join.token,
        newcomer: Some(newcomer_out(join.newcomer)),
    }
}

/// A request to join.
pub fn join_of(request: v1::JoinRequest) -> Result<JoinRequest> {
    Ok(JoinRequest {
        token: request.token,
        newcomer: newcomer_of(required("newcomer", request.newcomer)?)?,
    })
}

/// The answer to a new member as it is sent.
pub fn joined_out(joined: JoinResponse) -> v1::JoinResponse {
    v1::JoinResponse {
        node: joined.node.0,
        cluster_id: sixteen_bytes(joined.cluster.0),
        founders: joined.founders.into_iter().map(founder_out).collect(),
        members: joined.members.into_iter().map(member_out).collect(),
    }
}

/// The answer to a new member.
pub fn joined_of(response: v1::JoinResponse) -> Result<JoinResponse> {
    let founders = response.founders.into_iter().map(founder_of);
    Ok(JoinResponse {
        node: NodeId(response.node),
        cluster: ClusterId(sixteen("cluster_id", &response.cluster_id)?),
        founders: founders.collect::<Result<_>>()?,
        members: members_of(response.members)?,
    })
}

/// Checks a Locate.
pub fn locate_of(request: v1::LocateRequest) -> Result<Meant<Key>> {
    check_bound("key", &request.key)?;
    Ok((request.key, cluster_of(&request.cluster_id)?))
}

/// A Locate as it is sent.
pub fn locate_out(key: Key, cluster: Option<ClusterId>) -> v1::LocateRequest {
    v1::LocateRequest {
        key,
        cluster_id: cluster_bytes(cluster),
    }
}

/// Answers Locate.
pub fn located_out(route: ShardRoute) -> v1::LocateResponse {
    v1::LocateResponse {
        route: Some(route_out(route)),
    }
}

/// The answer to Locate.
pub fn located_of(response: v1::LocateResponse) -> Result<ShardRoute> {
    route_of(required("route", response.route)?)
}

/// Checks a WatchRoutes: gives the cluster that is meant.
pub fn watch_of(request: &v1::WatchRoutesRequest) -> Result<Option<ClusterId>> {
    cluster_of(&request.cluster_id)
}

/// A WatchRoutes as it is sent.
pub fn watch_out(cluster: Option<ClusterId>) -> v1::WatchRoutesRequest {
    v1::WatchRoutesRequest {
        cluster_id: cluster_bytes(cluster),
    }
}

/// One message of WatchRoutes.
pub fn routes_out(routes: Vec<ShardRoute>) -> v1::WatchRoutesResponse {
    v1::WatchRoutesResponse {
        routes: routes.into_iter().map(route_out).collect(),
    }
}

/// One message of WatchRoutes.
pub fn routes_of(response: v1::WatchRoutesResponse) -> Result<Vec<ShardRoute>> {
    response.routes.into_iter().map(route_of).collect()
}

fn route_out(route: ShardRoute) -> v1::ShardRoute {
    v1::ShardRoute {
        shard: Some(shard_out(route.shard)),
        leader: route.leader.map(|node| node.0),
    }
}

fn route_of(route: v1::ShardRoute) -> Result<ShardRoute> {
    Ok(ShardRoute {
        shard: shard_of(required("route.shard", route.shard)?)?,
        leader: route.leader.map(NodeId),
    })
}

fn newcomer_out(newcomer: Newcomer) -> v1::Newcomer {
    v1::Newcomer {
        incarnation: sixteen_bytes(newcomer.incarnation.0),
        name: newcomer.name,
        node_address: newcomer.node_address,
        client_address: newcomer.client_address,
    }
}

fn newcomer_of(newcomer: v1::Newcomer) -> Result<Newcomer> {
    Ok(Newcomer {
        incarnation: Incarnation(sixteen("newcomer.incarnation", &newcomer.incarnation)?),
        name: newcomer.name,
        node_address: newcomer.node_address,
        client_address: newcomer.client_address,
    })
}

fn members_of(members: Vec<v1::Member>) -> Result<Vec<Member>> {
    members.into_iter().map(member_of).collect()
}

fn shards_of(shards: Vec<v1::ShardDescriptor>) -> Result<Vec<ShardDescriptor>> {
    shards.into_iter().map(recorded_of).collect()
}

/// Placement's own group is recorded nowhere.
fn recorded_of(shard: v1::ShardDescriptor) -> Result<ShardDescriptor> {
    match shard.id {
        0 => Err(Error::invalid("shard.id", "ids start at 1")),
        _ => shard_of(shard),
    }
}
