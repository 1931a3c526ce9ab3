//! One of each thing that placement is told and asked, with every field set.

#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::types::Incarnation;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::keyspace::Buckets;
use quorate::types::keyspace::Definition;
use quorate::types::keyspace::Keyspace;
use quorate::types::keyspace::Layout;
use quorate::types::node::Duty;
use quorate::types::node::Newcomer;
use quorate::types::node::Role;
use quorate::types::operator::Action;
use quorate::types::operator::Aim;
use quorate::types::operator::Operator;
use quorate::types::operator::SplitPoint;
use quorate::types::operator::Step;
use quorate::types::overview::Arrangement;
use quorate::types::overview::Event;
use quorate::types::overview::Explained;
use quorate::types::overview::Finding;
use quorate::types::overview::NodeOverview;
use quorate::types::overview::OperatorOverview;
use quorate::types::overview::Overview;
use quorate::types::overview::Setting;
use quorate::types::overview::ShardOverview;
use quorate::types::placement::PlacementCommand;
use quorate::types::report::Load;
use quorate::types::report::NodeReport;
use quorate::types::report::Report;
use quorate::types::report::ShardReport;
use quorate::types::report::ShardStep;
use quorate::types::rule::Label;
use quorate::types::rule::Rule;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::types::shard::Size;
use quorate::wire::request::OverviewQuery;
use quorate::wire::request::Request;

const EPOCH: Epoch = Epoch { conf: 3, bounds: 4 };

fn label(name: &str, value: &str) -> Label {
    Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn rule() -> Rule {
    Rule {
        prefix: "tenant/".into(),
        replicas: 5,
        required: vec![label("region", "eu")],
        forbidden: vec![label("disk", "hdd")],
        preferred_leaders: vec![label("zone", "a"), label("zone", "b")],
        spread: "rack".to_owned(),
    }
}

fn replica() -> Replica {
    Replica {
        id: ReplicaId(17),
        node: NodeId(2),
    }
}

pub fn node_report() -> NodeReport {
    NodeReport {
        node: NodeId(2),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        role: Role::Data,
        capacity_bytes: 1 << 40,
        used_bytes: 1 << 30,
        sync: Duration::from_micros(83),
        round_trip: Duration::from_micros(210),
    }
}

pub fn shard_report() -> ShardReport {
    ShardReport {
        shard: ShardId(5),
        epoch: EPOCH,
        leader: ReplicaId(17),
        term: 6,
        led_for: Duration::from_millis(7_500),
        learners: vec![ReplicaId(18)],
        lags: vec![(ReplicaId(17), 0), (ReplicaId(18), 42)],
        size: Size {
            keys: 9,
            bytes: 900,
        },
        load: Load {
            operations: 10,
            bytes: 1_000,
        },
        sample: vec!["a".into(), Key::new()],
    }
}

pub fn report() -> Report {
    Report {
        node: node_report(),
        changed: vec![shard()],
        led: vec![shard_report()],
        since: 5,
    }
}

fn shard() -> ShardDescriptor {
    ShardDescriptor {
        id: ShardId(5),
        range: KeyRange::of_prefix(b"k"),
        epoch: EPOCH,
        replicas: vec![replica()],
    }
}

fn operator() -> Operator {
    Operator {
        shard: ShardId(5),
        aim: Aim::Spread,
        action: Action::Move {
            from: replica(),
            to: NodeId(4),
        },
        reason: "two in zone a".to_owned(),
        epoch: EPOCH,
        voters: vec![replica()],
        bytes: 900,
        expires: Timestamp(77),
    }
}

fn merger() -> Operator {
    Operator {
        aim: Aim::Merge,
        action: Action::Merge {
            right: ShardId(6),
            epoch: EPOCH,
        },
        ..operator()
    }
}

/// The steps that are told in the answer to a report.
pub fn steps() -> Vec<ShardStep> {
    let steps = [
        Step::AddReplica(NodeId(4)),
        Step::RemoveReplica(replica()),
        Step::TransferLeader(NodeId(4)),
        Step::Split(SplitPoint::Middle),
        Step::Split(SplitPoint::Key("m".into())),
        Step::Merge {
            right: ShardId(6),
            epoch: EPOCH,
        },
    ];
    let steps = steps.into_iter().map(|step| ShardStep {
        shard: ShardId(5),
        epoch: EPOCH,
        step,
    });
    steps.collect()
}

pub fn overview() -> Overview {
    let newcomer = Newcomer {
        incarnation: Incarnation([3; 16]),
        name: "two".to_owned(),
        node_address: "two:7401".to_owned(),
        client_address: "two:7400".to_owned(),
    };
    let node = |duty, report| NodeOverview {
        member: newcomer.clone().into_member(NodeId(2)),
        report,
        duty,
        health: "up".to_owned(),
        silent_for: Duration::from_millis(900),
        replicas: 7,
        leaders: 3,
    };
    Overview {
        driver: NodeId(1),
        at: Timestamp(70),
        paused: true,
        nodes: vec![
            node(Duty::Serve, Some(node_report())),
            node(Duty::Drain, None),
            node(Duty::Leave, None),
        ],
        shards: vec![
            explained().shard,
            ShardOverview {
                shard: shard(),
                report: None,
                busy_for: Duration::ZERO,
                quiet_for: Duration::from_millis(6),
            },
        ],
        operators: vec![OperatorOverview {
            shard: ShardId(5),
            number: 12,
            aim: "spread".to_owned(),
            action: "move r17".to_owned(),
            reason: "two in zone a".to_owned(),
            step: "add a replica on n4".to_owned(),
            expires: Timestamp(77),
            progress: "next".to_owned(),
            bytes: 900,
        }],
        rules: vec![rule()],
        settings: vec![Setting {
            name: "split_bytes".to_owned(),
            value: "9".to_owned(),
            is_set: true,
        }],
        events: vec![Event {
            at: Timestamp(60),
            text: "n3 is silent".to_owned(),
        }],
    }
}

pub fn keyspaces() -> Vec<Definition> {
    let hash = Layout::Hash(Buckets { count: 4, parts: 2 });
    let keyspaces = [("orders", hash, false), ("users", Layout::Ordered, true)];
    let keyspaces = keyspaces.map(|(name, layout, retired)| Definition {
        keyspace: Keyspace::new(name.parse().unwrap(), None, layout).unwrap(),
        retired,
    });
    keyspaces.to_vec()
}

pub fn explained() -> Explained {
    Explained {
        shard: ShardOverview {
            shard: shard(),
            report: Some(shard_report()),
            busy_for: Duration::from_millis(4),
            quiet_for: Duration::ZERO,
        },
        rule: rule(),
        findings: vec![Finding {
            aim: "repair".to_owned(),
            state: "in_order".to_owned(),
            text: "in order".to_owned(),
        }],
    }
}

pub fn requests() -> Vec<Request> {
    let arrangements = [
        Arrangement::SetDuty {
            node: NodeId(2),
            duty: Duty::Leave,
        },
        Arrangement::SetRule(rule()),
        Arrangement::DeleteRule {
            prefix: Key::from("tenant/"),
        },
        Arrangement::SetSetting {
            name: "split_bytes".to_owned(),
            value: Some("9".to_owned()),
        },
        Arrangement::SetSetting {
            name: "split_bytes".to_owned(),
            value: None,
        },
        Arrangement::SetPaused(true),
        Arrangement::SetPaused(false),
        Arrangement::CancelOperator {
            shard: ShardId(5),
            number: 12,
        },
        Arrangement::MoveReplica {
            shard: ShardId(5),
            from: NodeId(2),
            to: NodeId(4),
        },
        Arrangement::MergeShard { shard: ShardId(5) },
        Arrangement::CreateKeyspace(keyspaces()[0].keyspace.clone()),
        Arrangement::CreateKeyspace(keyspaces()[1].keyspace.clone()),
        Arrangement::DeleteKeyspace {
            name: "orders".parse().unwrap(),
        },
    ];
    let commands = [
        PlacementCommand::DescribeNode {
            node: NodeId(2),
            labels: node_report().labels,
            role: Role::Placement,
        },
        PlacementCommand::RecordOperators(vec![operator(), merger()]),
        PlacementCommand::EndOperator {
            shard: ShardId(5),
            change: 12,
        },
        PlacementCommand::CreateKeyspace(keyspaces()[0].keyspace.clone()),
        PlacementCommand::RetireKeyspace {
            name: "orders".parse().unwrap(),
        },
    ];
    let arrangements = arrangements.into_iter().map(Request::Arrange);
    let commands = commands.into_iter().map(Request::Placement);
    let mut requests = vec![
        Request::Report(Box::new(report())),
        Request::Overview(OverviewQuery { shards: true }),
        Request::Overview(OverviewQuery { shards: false }),
        Request::Explain(ShardId(5)),
        Request::ListKeyspaces,
    ];
    requests.extend(arrangements.chain(commands));
    requests
}
