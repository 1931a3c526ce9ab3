//! Requests and answers of `admin.proto`. Decides only.

use std::time::Duration;

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::keyspace::Buckets;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;
use crate::types::keyspace::Layout;
use crate::types::node::Duty;
use crate::types::node::Role;
use crate::types::overview::Arrangement;
use crate::types::overview::Event;
use crate::types::overview::Explained;
use crate::types::overview::Finding;
use crate::types::overview::NodeOverview;
use crate::types::overview::OperatorOverview;
use crate::types::overview::Overview;
use crate::types::overview::Setting;
use crate::types::overview::ShardOverview;
use crate::types::report::Load;
use crate::types::report::NodeReport;
use crate::types::report::ShardReport;
use crate::types::rule::LABEL_CHARS_MAX;
use crate::types::rule::LABELS_MAX;
use crate::types::rule::Label;
use crate::types::rule::Labels;
use crate::types::rule::Rule;
use crate::types::shard::Epoch;
use crate::types::shard::Size as ShardSize;
use crate::wire::convert::at_most;
use crate::wire::convert::check_bound;
use crate::wire::convert::cluster::member_of;
use crate::wire::convert::cluster::member_out;
use crate::wire::convert::cluster::numbered;
use crate::wire::convert::cluster::shard_of;
use crate::wire::convert::cluster::shard_out;
use crate::wire::convert::cluster_bytes;
use crate::wire::convert::cluster_of;
use crate::wire::convert::kv::Meant;
use crate::wire::convert::required;
use crate::wire::proto::v1;
use crate::wire::request::OverviewQuery;

/// More than this is said of no shard: sums over all shards are numbers still.
const AMOUNT_MAX: u64 = 1 << 44;
/// Nor of a disk.
const DISK_BYTES_MAX: u64 = 1 << 56;
/// Copies that a rule may ask for.
const REPLICAS: [u32; 4] = [1, 3, 5, 7];

/// Checks an Overview.
pub fn overview_query_of(request: &v1::OverviewRequest) -> Result<Meant<OverviewQuery>> {
    let query = OverviewQuery {
        shards: request.shards,
    };
    Ok((query, cluster_of(&request.cluster_id)?))
}

/// An Overview as it is sent.
pub fn overview_query_out(query: OverviewQuery, cluster: Option<ClusterId>) -> v1::OverviewRequest {
    v1::OverviewRequest {
        cluster_id: cluster_bytes(cluster),
        shards: query.shards,
    }
}

/// Answers Overview.
pub fn overview_out(overview: Overview) -> v1::OverviewResponse {
    let settings = overview.settings.into_iter().map(setting_out);
    v1::OverviewResponse {
        driver: overview.driver.0,
        at: overview.at.0,
        paused: overview.paused,
        nodes: overview.nodes.into_iter().map(node_out).collect(),
        shards: overview.shards.into_iter().map(shard_view_out).collect(),
        operators: overview.operators.into_iter().map(operator_out).collect(),
        rules: overview.rules.into_iter().map(rule_out).collect(),
        settings: settings.collect(),
        events: overview.events.into_iter().map(event_out).collect(),
    }
}

/// The answer to Overview.
pub fn overview_of(response: v1::OverviewResponse) -> Result<Overview> {
    let (nodes, shards) = (response.nodes.into_iter(), response.shards.into_iter());
    let rules = response.rules.into_iter();
    Ok(Overview {
        driver: NodeId(response.driver),
        at: Timestamp(response.at),
        paused: response.paused,
        nodes: nodes.map(node_of).collect::<Result<_>>()?,
        shards: shards.map(shard_view_of).collect::<Result<_>>()?,
        operators: response.operators.into_iter().map(operator_of).collect(),
        rules: rules.map(rule_of).collect::<Result<_>>()?,
        settings: response.settings.into_iter().map(setting_of).collect(),
        events: response.events.into_iter().map(event_of).collect(),
    })
}

/// Checks an Explain.
pub fn explain_of(request: &v1::ExplainRequest) -> Result<Meant<ShardId>> {
    let shard = ShardId(request.shard);
    Ok((shard, cluster_of(&request.cluster_id)?))
}

/// An Explain as it is sent.
pub fn explain_out(shard: ShardId, cluster: Option<ClusterId>) -> v1::ExplainRequest {
    v1::ExplainRequest {
        cluster_id: cluster_bytes(cluster),
        shard: shard.0,
    }
}

/// Answers Explain.
pub fn explained_out(explained: Explained) -> v1::ExplainResponse {
    let findings = explained.findings.into_iter();
    v1::ExplainResponse {
        shard: Some(shard_view_out(explained.shard)),
        rule: Some(rule_out(explained.rule)),
        findings: findings
            .map(|found| v1::Finding {
                aim: found.aim,
                text: found.text,
                state: found.state,
            })
            .collect(),
    }
}

/// The answer to Explain.
pub fn explained_of(response: v1::ExplainResponse) -> Result<Explained> {
    let findings = response.findings.into_iter();
    Ok(Explained {
        shard: shard_view_of(required("shard", response.shard)?)?,
        rule: rule_of(required("rule", response.rule)?)?,
        findings: findings
            .map(|found| Finding {
                aim: found.aim,
                state: found.state,
                text: found.text,
            })
            .collect(),
    })
}

/// Checks an Arrange.
pub fn arrangement_of(request: v1::ArrangeRequest) -> Result<Meant<Arrangement>> {
    use v1::arrange_request::Arrangement as Sent;
    let cluster = cluster_of(&request.cluster_id)?;
    let arrangement = match required("arrangement", request.arrangement)? {
        Sent::SetDuty(set) => Arrangement::SetDuty {
            duty: duty_of(set.duty())?,
            node: NodeId(numbered("set_duty.node", set.node)?),
        },
        Sent::SetRule(rule) => Arrangement::SetRule(rule_of(rule)?),
        Sent::DeleteRule(delete) => {
            check_bound("delete_rule.prefix", &delete.prefix)?;
            Arrangement::DeleteRule {
                prefix: delete.prefix,
            }
        }
        Sent::SetSetting(setting) => Arrangement::SetSetting {
            value: (!setting.value.is_empty()).then_some(setting.value),
            name: setting.name,
        },
        Sent::SetPaused(paused) => Arrangement::SetPaused(paused),
        Sent::CancelOperator(cancel) => Arrangement::CancelOperator {
            shard: ShardId(numbered("cancel_operator.shard", cancel.shard)?),
            number: cancel.number,
        },
        Sent::MoveReplica(order) => Arrangement::MoveReplica {
            shard: ShardId(numbered("move_replica.shard", order.shard)?),
            from: NodeId(numbered("move_replica.from", order.from)?),
            to: NodeId(numbered("move_replica.to", order.to)?),
        },
        Sent::MergeShard(order) => Arrangement::MergeShard {
            shard: ShardId(numbered("merge_shard.shard", order.shard)?),
        },
        Sent::CreateKeyspace(keyspace) => {
            Arrangement::CreateKeyspace(definition_of(keyspace)?.keyspace)
        }
        Sent::DeleteKeyspace(delete) => Arrangement::DeleteKeyspace {
            name: keyspace_name_of(&delete.name)?,
        },
    };
    Ok((arrangement, cluster))
}

/// An Arrange as it is sent.
pub fn arrangement_out(arrangement: Arrangement, cluster: Option<ClusterId>) -> v1::ArrangeRequest {
    use v1::arrange_request::Arrangement as Sent;
    let arrangement = match arrangement {
        Arrangement::SetDuty { node, duty } => Sent::SetDuty(v1::SetDuty {
            node: node.0,
            duty: duty_out(duty).into(),
        }),
        Arrangement::SetRule(rule) => Sent::SetRule(rule_out(rule)),
        Arrangement::DeleteRule { prefix } => Sent::DeleteRule(v1::DeleteRule { prefix }),
        Arrangement::SetSetting { name, value } => Sent::SetSetting(v1::Setting {
            name,
            is_set: value.is_some(),
            value: value.unwrap_or_default(),
        }),
        Arrangement::SetPaused(paused) => Sent::SetPaused(paused),
        Arrangement::CancelOperator { shard, number } => Sent::CancelOperator(v1::CancelOperator {
            shard: shard.0,
            number,
        }),
        Arrangement::MoveReplica { shard, from, to } => Sent::MoveReplica(v1::MoveReplica {
            shard: shard.0,
            from: from.0,
            to: to.0,
        }),
        Arrangement::MergeShard { shard } => Sent::MergeShard(v1::MergeShard { shard: shard.0 }),
        Arrangement::CreateKeyspace(keyspace) => Sent::CreateKeyspace(definition_out(Definition {
            keyspace,
            retired: false,
        })),
        Arrangement::DeleteKeyspace { name } => Sent::DeleteKeyspace(v1::DeleteKeyspace {
            name: name.to_string(),
        }),
    };
    v1::ArrangeRequest {
        cluster_id: cluster_bytes(cluster),
        arrangement: Some(arrangement),
    }
}

/// Checks a ListKeyspaces: gives the cluster that is meant.
pub fn list_keyspaces_of(request: &v1::ListKeyspacesRequest) -> Result<Option<ClusterId>> {
    cluster_of(&request.cluster_id)
}

/// A ListKeyspaces as it is sent.
pub fn list_keyspaces_out(cluster: Option<ClusterId>) -> v1::ListKeyspacesRequest {
    v1::ListKeyspacesRequest {
        cluster_id: cluster_bytes(cluster),
    }
}

/// Answers ListKeyspaces.
pub fn keyspaces_out(definitions: Vec<Definition>) -> v1::ListKeyspacesResponse {
    v1::ListKeyspacesResponse {
        keyspaces: definitions.into_iter().map(definition_out).collect(),
    }
}

/// The answer to ListKeyspaces.
pub fn keyspaces_of(response: v1::ListKeyspacesResponse) -> Result<Vec<Definition>> {
    response.keyspaces.into_iter().map(definition_of).collect()
}

/// A keyspace, to be sent.
pub(super) fn definition_out(definition: Definition) -> v1::Keyspace {
    let Definition { keyspace, retired } = definition;
    v1::Keyspace {
        name: keyspace.name.to_string(),
        prefix: keyspace.prefix,
        hash: match keyspace.layout {
            Layout::Ordered => None,
            Layout::Hash(Buckets { count, parts }) => Some(v1::keyspace::Hash {
                buckets: count,
                parts,
            }),
        },
        retired,
    }
}

/// Checks a keyspace.
pub(super) fn definition_of(sent: v1::Keyspace) -> Result<Definition> {
    let said = |number: u32| (number != 0).then_some(number);
    let layout = sent.hash.map_or(Layout::Ordered, |hash| {
        Layout::Hash(Buckets::of(said(hash.buckets), said(hash.parts)))
    });
    let prefix = (!sent.prefix.is_empty()).then_some(sent.prefix);
    let keyspace = Keyspace::new(keyspace_name_of(&sent.name)?, prefix, layout);
    Ok(Definition {
        keyspace: keyspace.map_err(|reason| Error::invalid("keyspace", reason))?,
        retired: sent.retired,
    })
}

fn keyspace_name_of(name: &str) -> Result<KeyspaceName> {
    let name = name.parse::<KeyspaceName>();
    name.map_err(|reason| Error::invalid("keyspace.name", reason))
}

/// A rule, to be sent.
pub(super) fn rule_out(rule: Rule) -> v1::Rule {
    let labels = |labels: Vec<Label>| labels.into_iter().map(label_out).collect();
    v1::Rule {
        prefix: rule.prefix,
        replicas: u32::try_from(rule.replicas).unwrap_or(u32::MAX),
        required: labels(rule.required),
        forbidden: labels(rule.forbidden),
        preferred_leaders: labels(rule.preferred_leaders),
        spread: rule.spread,
    }
}

/// Checks a rule.
pub(super) fn rule_of(rule: v1::Rule) -> Result<Rule> {
    check_bound("rule.prefix", &rule.prefix)?;
    if !REPLICAS.contains(&rule.replicas) {
        let reason = format!("there are 1, 3, 5 or 7 replicas, not {}", rule.replicas);
        return Err(Error::invalid("rule.replicas", reason));
    }
    let labels = |field, labels: Vec<v1::Label>| -> Result<Vec<Label>> {
        at_most(field, "labels", labels.len(), LABELS_MAX)?;
        labels.into_iter().map(label_of).collect()
    };
    let spread = match rule.spread.is_empty() {
        true => Rule::default().spread,
        false => rule.spread,
    };
    check_word("rule.spread", &spread)?;
    Ok(Rule {
        prefix: rule.prefix,
        replicas: rule.replicas as usize,
        required: labels("rule.required", rule.required)?,
        forbidden: labels("rule.forbidden", rule.forbidden)?,
        preferred_leaders: labels("rule.preferred_leaders", rule.preferred_leaders)?,
        spread,
    })
}

fn label_out(label: Label) -> v1::Label {
    v1::Label {
        name: label.name,
        value: label.value,
    }
}

fn label_of(label: v1::Label) -> Result<Label> {
    check_word("label.name", &label.name)?;
    check_chars("label.value", &label.value)?;
    Ok(Label {
        name: label.name,
        value: label.value,
    })
}

fn check_word(field: &str, word: &str) -> Result<()> {
    match word.is_empty() {
        true => Err(Error::invalid(field, "it is empty")),
        false => check_chars(field, word),
    }
}

fn check_chars(field: &str, word: &str) -> Result<()> {
    at_most(field, "characters", word.chars().count(), LABEL_CHARS_MAX)
}

fn duty_out(duty: Duty) -> v1::Duty {
    match duty {
        Duty::Serve => v1::Duty::Unspecified,
        Duty::Drain => v1::Duty::Drain,
        Duty::Leave => v1::Duty::Leave,
    }
}

fn duty_of(duty: v1::Duty) -> Result<Duty> {
    Ok(match duty {
        v1::Duty::Unspecified => Duty::Serve,
        v1::Duty::Drain => Duty::Drain,
        v1::Duty::Leave => Duty::Leave,
    })
}

fn role_out(role: Role) -> v1::NodeRole {
    match role {
        Role::Both => v1::NodeRole::Unspecified,
        Role::Data => v1::NodeRole::Data,
        Role::Placement => v1::NodeRole::Placement,
    }
}

fn role_of(role: v1::NodeRole) -> Role {
    match role {
        v1::NodeRole::Unspecified => Role::Both,
        v1::NodeRole::Data => Role::Data,
        v1::NodeRole::Placement => Role::Placement,
    }
}

/// How a node does, to be sent.
pub(super) fn node_report_out(report: NodeReport) -> v1::NodeReport {
    let labels = report.labels.into_iter();
    v1::NodeReport {
        node: report.node.0,
        labels: labels
            .map(|(name, value)| v1::Label { name, value })
            .collect(),
        role: role_out(report.role).into(),
        capacity_bytes: report.capacity_bytes,
        used_bytes: report.used_bytes,
        sync_us: microseconds(report.sync),
        round_trip_us: microseconds(report.round_trip),
    }
}

/// How a node does.
pub(super) fn node_report_of(report: v1::NodeReport) -> Result<NodeReport> {
    at_most("node.labels", "labels", report.labels.len(), LABELS_MAX)?;
    let role = role_of(report.role());
    let labels = report.labels.into_iter().map(label_of);
    let labels = labels.map(|label| label.map(|label| (label.name, label.value)));
    Ok(NodeReport {
        node: NodeId(numbered("node.node", report.node)?),
        labels: labels.collect::<Result<Labels>>()?,
        role,
        capacity_bytes: report.capacity_bytes.min(DISK_BYTES_MAX),
        used_bytes: report.used_bytes.min(DISK_BYTES_MAX),
        sync: Duration::from_micros(report.sync_us),
        round_trip: Duration::from_micros(report.round_trip_us),
    })
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How a shard does, to be sent.
pub(super) fn shard_report_out(report: ShardReport) -> v1::ShardReport {
    let lags = report.lags.into_iter();
    let lags = lags.map(|(replica, entries)| v1::ReplicaLag {
        replica: replica.0,
        entries,
    });
    v1::ShardReport {
        shard: report.shard.0,
        conf_epoch: report.epoch.conf,
        bounds_epoch: report.epoch.bounds,
        leader: report.leader.0,
        term: report.term,
        led_for_ms: milliseconds(report.led_for),
        learners: report.learners.into_iter().map(|it| it.0).collect(),
        lags: lags.collect(),
        keys: report.size.keys,
        bytes: report.size.bytes,
        load_operations: report.load.operations,
        load_bytes: report.load.bytes,
        sample: report.sample,
    }
}

/// How a shard does.
pub(super) fn shard_report_of(report: v1::ShardReport) -> Result<ShardReport> {
    for key in &report.sample {
        check_bound("sample", key)?;
    }
    let lags = report.lags.into_iter();
    Ok(ShardReport {
        shard: ShardId(report.shard),
        epoch: Epoch {
            conf: report.conf_epoch,
            bounds: report.bounds_epoch,
        },
        leader: ReplicaId(report.leader),
        term: report.term,
        led_for: Duration::from_millis(report.led_for_ms),
        learners: report.learners.into_iter().map(ReplicaId).collect(),
        lags: lags
            .map(|lag| (ReplicaId(lag.replica), lag.entries))
            .collect(),
        size: ShardSize {
            keys: report.keys.min(AMOUNT_MAX),
            bytes: report.bytes.min(AMOUNT_MAX),
        },
        load: Load {
            operations: report.load_operations.min(AMOUNT_MAX),
            bytes: report.load_bytes.min(AMOUNT_MAX),
        },
        sample: report.sample,
    })
}

fn node_out(node: NodeOverview) -> v1::NodeOverview {
    v1::NodeOverview {
        member: Some(member_out(node.member)),
        report: node.report.map(node_report_out),
        duty: duty_out(node.duty).into(),
        health: node.health,
        silent_for_ms: milliseconds(node.silent_for),
        replicas: node.replicas,
        leaders: node.leaders,
    }
}

fn node_of(node: v1::NodeOverview) -> Result<NodeOverview> {
    Ok(NodeOverview {
        duty: duty_of(node.duty())?,
        member: member_of(required("node.member", node.member)?)?,
        report: node.report.map(node_report_of).transpose()?,
        health: node.health,
        silent_for: Duration::from_millis(node.silent_for_ms),
        replicas: node.replicas,
        leaders: node.leaders,
    })
}

fn shard_view_out(shard: ShardOverview) -> v1::ShardOverview {
    v1::ShardOverview {
        shard: Some(shard_out(shard.shard)),
        report: shard.report.map(shard_report_out),
        busy_for_ms: milliseconds(shard.busy_for),
        quiet_for_ms: milliseconds(shard.quiet_for),
    }
}

fn shard_view_of(shard: v1::ShardOverview) -> Result<ShardOverview> {
    Ok(ShardOverview {
        shard: shard_of(required("shard", shard.shard)?)?,
        report: shard.report.map(shard_report_of).transpose()?,
        busy_for: Duration::from_millis(shard.busy_for_ms),
        quiet_for: Duration::from_millis(shard.quiet_for_ms),
    })
}

fn operator_out(operator: OperatorOverview) -> v1::OperatorOverview {
    v1::OperatorOverview {
        shard: operator.shard.0,
        number: operator.number,
        aim: operator.aim,
        action: operator.action,
        reason: operator.reason,
        step: operator.step,
        expires: operator.expires.0,
        progress: operator.progress,
        bytes: operator.bytes,
    }
}

fn operator_of(operator: v1::OperatorOverview) -> OperatorOverview {
    OperatorOverview {
        shard: ShardId(operator.shard),
        number: operator.number,
        aim: operator.aim,
        action: operator.action,
        reason: operator.reason,
        step: operator.step,
        expires: Timestamp(operator.expires),
        progress: operator.progress,
        bytes: operator.bytes,
    }
}

fn setting_out(setting: Setting) -> v1::Setting {
    v1::Setting {
        name: setting.name,
        value: setting.value,
        is_set: setting.is_set,
    }
}

fn setting_of(setting: v1::Setting) -> Setting {
    Setting {
        name: setting.name,
        value: setting.value,
        is_set: setting.is_set,
    }
}

fn event_out(event: Event) -> v1::Event {
    v1::Event {
        at: event.at.0,
        text: event.text,
    }
}

fn event_of(event: v1::Event) -> Event {
    Event {
        at: Timestamp(event.at),
        text: event.text,
    }
}
