//! What the console shows, as JSON: placement's overview in the words of the page. Decides only.
//!
//! Keys are bytes and are sent as escaped text; where all shards are listed a long one is cut, so that a
//! thousand shards are some hundred kilobytes. Replicas are arrays for the same reason.

use serde_json::Value as Json;
use serde_json::json;

use crate::types::ClusterId;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::overview::Event;
use crate::types::overview::Explained;
use crate::types::overview::NodeOverview;
use crate::types::overview::OperatorOverview;
use crate::types::overview::Overview;
use crate::types::overview::Setting;
use crate::types::overview::ShardOverview;
use crate::types::report::ShardReport;
use crate::types::rule::Label;
use crate::types::rule::Rule;
use crate::types::rule::rule_of;

/// Characters of a key where all shards are listed.
const KEY_CHARS_MAX: usize = 96;
/// Events that are shown.
const EVENTS_MAX: usize = 50;
/// What the page compares with.
const POLICY: [&str; 4] = [
    "split_bytes",
    "split_operations",
    "operation_bytes",
    "full_percent",
];

/// The whole picture, as `answered_by` was told it.
pub fn picture(overview: &Overview, cluster: ClusterId, answered_by: NodeId) -> Json {
    let default = Rule::default();
    let shards = overview.shards.iter();
    let rules = std::iter::once(&default).chain(&overview.rules);
    json!({
        "at_ms": overview.at.wall_ms(),
        "cluster": cluster.to_string(),
        "answered_by": answered_by.0,
        "placement_leader": overview.driver.0,
        "paused": overview.paused,
        "policy": policy(&overview.settings),
        "nodes": overview.nodes.iter().map(node).collect::<Vec<Json>>(),
        "shards": shards
            .map(|it| shard(it, rule_place(&overview.rules, &default, &it.shard.range)))
            .collect::<Vec<Json>>(),
        "operators": overview.operators.iter().map(operator).collect::<Vec<Json>>(),
        "events": overview.events.iter().rev().take(EVENTS_MAX).map(event).collect::<Vec<Json>>(),
        "rules": rules.map(rule).collect::<Vec<Json>>(),
    })
}

/// Why one shard is where it is.
pub fn explanation(explained: &Explained) -> Json {
    let findings = explained.findings.iter();
    let range = &explained.shard.shard.range;
    json!({
        "shard": explained.shard.shard.id.0,
        "start": range.start.escape_ascii().to_string(),
        "end": range.end.as_ref().map(|end| end.escape_ascii().to_string()),
        "findings": findings
            .map(|found| json!({
                "aim": found.aim,
                "state": found.state,
                "text": found.text.strip_prefix("held: ").unwrap_or(&found.text),
            }))
            .collect::<Vec<Json>>(),
    })
}

fn policy(settings: &[Setting]) -> Json {
    let wanted = settings
        .iter()
        .filter(|setting| POLICY.contains(&setting.name.as_str()));
    let numbers = wanted.map(|setting| {
        let number: u64 = setting.value.parse().unwrap_or_default();
        (setting.name.clone(), Json::from(number))
    });
    Json::Object(numbers.collect())
}

fn node(node: &NodeOverview) -> Json {
    let report = node.report.as_ref();
    json!({
        "id": node.member.id.0,
        "name": node.member.name,
        "address": node.member.client_address,
        "health": node.health,
        "duty": node.duty.to_string(),
        "role": report.map(|report| report.role).unwrap_or_default().to_string(),
        "labels": report.map(|report| report.labels.clone()).unwrap_or_default(),
        "used_bytes": report.map_or(0, |report| report.used_bytes),
        "capacity_bytes": report.map_or(0, |report| report.capacity_bytes),
        "silent_ms": report.map(|_| milliseconds(node.silent_for)),
        "sync_us": report.map(|report| microseconds(report.sync)),
        "round_trip_us": report.map(|report| microseconds(report.round_trip)),
    })
}

fn shard(overview: &ShardOverview, rule: usize) -> Json {
    let shard = &overview.shard;
    let report = overview.report.as_ref();
    let replicas = shard.replicas.iter().map(|replica| {
        let lag = report.and_then(|report| {
            let mut lags = report.lags.iter();
            lags.find(|(id, _)| *id == replica.id).map(|(_, lag)| *lag)
        });
        let learns = report.is_some_and(|report| report.learners.contains(&replica.id));
        json!([replica.id.0, replica.node.0, lag, u8::from(learns)])
    });
    let number = |number: fn(&ShardReport) -> u64| report.map_or(0, number);
    json!({
        "id": shard.id.0,
        "start": cut(&shard.range.start),
        "end": shard.range.end.as_deref().map(cut),
        "epoch": format!("{}.{}", shard.epoch.bounds, shard.epoch.conf),
        "replicas": replicas.collect::<Vec<Json>>(),
        "leader": report.map(|report| report.leader.0),
        "led_s": number(|report| report.led_for.as_secs()),
        "bytes": number(|report| report.size.bytes),
        "keys": number(|report| report.size.keys),
        "operations": number(|report| report.load.operations),
        "load_bytes": number(|report| report.load.bytes),
        "busy_s": overview.busy_for.as_secs(),
        "quiet_s": overview.quiet_for.as_secs(),
        "rule": rule,
    })
}

fn operator(operator: &OperatorOverview) -> Json {
    let step = (operator.progress == "next").then_some(&operator.step);
    json!({
        "shard": operator.shard.0,
        "aim": operator.aim,
        "action": operator.action,
        "reason": operator.reason,
        "progress": operator.progress,
        "step": step,
        "bytes": operator.bytes,
        "expires_ms": operator.expires.wall_ms(),
    })
}

fn event(event: &Event) -> Json {
    json!({ "at_ms": event.at.wall_ms(), "text": event.text })
}

fn rule(rule: &Rule) -> Json {
    let labels =
        |labels: &[Label]| -> Vec<String> { labels.iter().map(ToString::to_string).collect() };
    json!({
        "prefix": rule.prefix.escape_ascii().to_string(),
        "replicas": rule.replicas,
        "required": labels(&rule.required),
        "forbidden": labels(&rule.forbidden),
        "preferred_leaders": labels(&rule.preferred_leaders),
        "spread": rule.spread,
    })
}

/// The place of the rule that a range keeps, counted from the one for everything else.
fn rule_place(rules: &[Rule], default: &Rule, range: &KeyRange) -> usize {
    let kept = rule_of(rules, default, range);
    let place = rules.iter().position(|rule| std::ptr::eq(rule, kept));
    place.map_or(0, |place| place + 1)
}

fn cut(key: &[u8]) -> String {
    let whole = key.escape_ascii().to_string();
    match whole.char_indices().nth(KEY_CHARS_MAX) {
        Some((end, _)) => format!("{}\u{2026}", &whole[..end]),
        None => whole,
    }
}

fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::types::Incarnation;
    use crate::types::Key;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::Timestamp;
    use crate::types::node::Duty;
    use crate::types::node::Member;
    use crate::types::overview::Finding;
    use crate::types::report::Load;
    use crate::types::report::NodeReport;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::ShardDescriptor;
    use crate::types::shard::Size;

    use super::*;

    fn shard_overview(start: &[u8], report: bool) -> ShardOverview {
        let replica = |id| Replica {
            id: ReplicaId(id),
            node: NodeId(id % 10),
        };
        let report = report.then(|| ShardReport {
            shard: ShardId(5),
            epoch: Epoch::default(),
            leader: ReplicaId(11),
            term: 3,
            led_for: Duration::from_secs(9),
            learners: vec![ReplicaId(12)],
            lags: vec![(ReplicaId(11), 0), (ReplicaId(12), 7)],
            size: Size { keys: 2, bytes: 30 },
            load: Load {
                operations: 4,
                bytes: 50,
            },
            sample: Vec::new(),
        });
        ShardOverview {
            shard: ShardDescriptor {
                id: ShardId(5),
                range: KeyRange {
                    start: Key::copy_from_slice(start),
                    end: None,
                },
                epoch: Epoch { conf: 4, bounds: 2 },
                replicas: [11, 12, 13].map(replica).into(),
            },
            report,
            busy_for: Duration::from_secs(6),
            quiet_for: Duration::from_secs(7),
        }
    }

    fn overview(shards: Vec<ShardOverview>) -> Overview {
        let member = Member {
            id: NodeId(1),
            incarnation: Incarnation([1; 16]),
            name: "<one>".to_owned(),
            node_address: String::new(),
            client_address: "one:7400".to_owned(),
        };
        Overview {
            driver: NodeId(2),
            at: Timestamp::from_wall(77),
            paused: true,
            nodes: vec![NodeOverview {
                member,
                report: Some(NodeReport {
                    sync: Duration::from_micros(80),
                    ..NodeReport::default()
                }),
                duty: Duty::Drain,
                health: "up".to_owned(),
                silent_for: Duration::from_millis(400),
                replicas: 1,
                leaders: 1,
            }],
            shards,
            rules: vec![Rule {
                prefix: "t".into(),
                replicas: 5,
                ..Rule::default()
            }],
            settings: vec![Setting {
                name: "split_bytes".to_owned(),
                value: "64".to_owned(),
                is_set: false,
            }],
            events: vec![Event {
                at: Timestamp::from_wall(70),
                text: "n3 is silent".to_owned(),
            }],
            ..Overview::default()
        }
    }

    #[test]
    fn a_shard_says_who_leads_and_who_lags() {
        let shown = picture(
            &overview(vec![shard_overview(b"a\x00", true)]),
            ClusterId([7; 16]),
            NodeId(3),
        );
        let shard = &shown["shards"][0];
        assert_eq!(shard["start"], "a\\x00");
        assert_eq!(shard["end"], Json::Null);
        assert_eq!(shard["epoch"], "2.4");
        let replicas = json!([[11, 1, 0, 0], [12, 2, 7, 1], [13, 3, null, 0]]);
        assert_eq!(shard["replicas"], replicas);
        assert_eq!((&shard["leader"], &shard["led_s"]), (&json!(11), &json!(9)));
        assert_eq!((&shard["keys"], &shard["busy_s"]), (&json!(2), &json!(6)));
        assert_eq!(shard["quiet_s"], 7);
        assert_eq!(shard["rule"], 0);
        assert_eq!(shown["placement_leader"], 2);
        assert_eq!(shown["answered_by"], 3);
        assert_eq!(shown["policy"], json!({ "split_bytes": 64 }));
        assert_eq!(shown["nodes"][0]["duty"], "drain");
        assert_eq!(shown["nodes"][0]["name"], "<one>");
        assert_eq!(shown["rules"][1]["prefix"], "t");
    }

    #[test]
    fn what_is_not_known_is_null_and_long_keys_are_cut() {
        let long = [b'k'; 2_048];
        let shown = picture(
            &overview(vec![shard_overview(&long, false)]),
            ClusterId([7; 16]),
            NodeId(3),
        );
        let shard = &shown["shards"][0];
        assert_eq!(shard["leader"], Json::Null);
        assert_eq!(shard["start"].as_str().unwrap().chars().count(), 97);
        let explained = Explained {
            shard: shard_overview(&long, false),
            rule: Rule::default(),
            findings: vec![Finding {
                aim: "repair".to_owned(),
                state: "held".to_owned(),
                text: "held: no node".to_owned(),
            }],
        };
        let shown = explanation(&explained);
        assert_eq!(shown["start"].as_str().unwrap().len(), 2_048);
        assert_eq!(shown["findings"][0]["text"], "no node");
        // One that has not reported yet since another node leads placement, or never will again.
        let mut silent = overview(Vec::new());
        silent.nodes[0].report = None;
        let shown = picture(&silent, ClusterId([7; 16]), NodeId(3));
        assert_eq!(shown["nodes"][0]["labels"], json!({}));
    }

    #[test]
    fn a_thousand_shards_stay_below_three_hundred_kilobytes() {
        let shards = (0..1_000u32).map(|number| shard_overview(&number.to_be_bytes(), true));
        let shown = picture(&overview(shards.collect()), ClusterId([7; 16]), NodeId(3));
        assert!(
            shown.to_string().len() < 300_000,
            "{}",
            shown.to_string().len()
        );
    }
}
