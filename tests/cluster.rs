//! Three real processes, killed and wiped under writers: every answered write stays, once.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::client::Sender;
use quorate::error::Error;
use quorate::testkit::history::History;
use quorate::testkit::processes::TOKEN;
use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::types::Incarnation;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::RequestId;
use quorate::types::node::Newcomer;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::Get;
use quorate::wire::request::JoinRequest;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Service;
use quorate::wire::request::StatusQuery;
use support::READY;
use support::Rig;

/// Who is killed in a round.
#[derive(Debug, Clone, Copy)]
enum Victims {
    Leader,
    Follower,
    All,
}

const ROUNDS: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_answered_write_survives_kills_of_leader_follower_and_all() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    let mut total = History::default();
    for round in 0..ROUNDS {
        let victims = [Victims::Leader, Victims::Follower, Victims::All][round as usize % 3];
        let prefix = format!("round{round:02}/");
        let writers = support::write(&rig.nodes, &prefix, round);
        support::answered(&writers, 100, "before the kill").await;
        let killed = kill(&mut rig, victims).await;
        if killed.len() == 1 {
            support::answered(&writers, 50, "with one node dead").await;
        }
        rig.processes.start_all().unwrap();
        rig.ready(&[0, 1, 2]).await;
        support::answered(&writers, 50, "after the restart").await;
        total.merge(support::stop_and_verify(writers, &prefix, &rig.nodes).await);
    }
    let counts = total.counts();
    println!("{ROUNDS} rounds of kill -9: {counts:?}");
    assert!(
        counts.resent > 0,
        "no answer was lost: the kills came too late to mean something"
    );
    let everything = workload::scan(&rig.nodes, KeyRange::ALL, ReadKind::Linearizable).await;
    support::none_of(&total.check_newest(&everything.unwrap()), "all rounds");
}

async fn kill(rig: &mut Rig, victims: Victims) -> Vec<usize> {
    let leader = rig.leader().await;
    let killed = match victims {
        Victims::Leader => vec![leader],
        Victims::Follower => vec![(leader + 1) % 3],
        Victims::All => vec![0, 1, 2],
    };
    match killed.as_slice() {
        [one] => rig.processes.kill(*one).unwrap(),
        _ => rig.processes.kill_all().unwrap(),
    }
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_ends_each_node_cleanly_and_loses_nothing() {
    let mut rig = Rig::start(&[]).await;
    let writers = support::write(&rig.nodes, "rolling/", 1);
    for node in 0..3 {
        support::answered(&writers, 50, "before the stop").await;
        let ended = rig.processes.terminate(node, READY).await.unwrap();
        assert_eq!(ended.code(), Some(0), "n{}", node + 1);
        support::answered(&writers, 50, "with one node stopped").await;
        rig.processes.start(node).unwrap();
        rig.ready(&[0, 1, 2]).await;
    }
    support::stop_and_verify(writers, "rolling/", &rig.nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_and_goes_on_answers_nothing_stale() {
    let mut rig = Rig::start(&[]).await;
    let writers = support::write(&rig.nodes, "still/", 2);
    for _ in 0..5 {
        support::answered(&writers, 50, "before the stop").await;
        let leader = rig.leader().await;
        rig.processes.pause(leader).unwrap();
        support::answered(&writers, 100, "with the leader standing still").await;
        rig.processes.resume(leader).unwrap();
    }
    rig.ready(&[0, 1, 2]).await;
    support::stop_and_verify(writers, "still/", &rig.nodes).await;
}

/// A client's write is held up for less than this by a node that has stopped, whatever the client knows.
const HELD_UP_MAX: Duration = Duration::from_secs(2);
/// Clients that come one after another while a node stands still, and enter at each node in turn.
const LATECOMERS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_holds_no_client_up_for_long() {
    let mut rig = Rig::start(&[]).await;
    for _ in 0..3 {
        let leader = rig.leader().await;
        let through = rig.nodes[(leader + 1) % 3].clone();
        let acquainted = rig.client(&in_turn(leader));
        put(&acquainted).await;
        rig.processes.pause(leader).unwrap();
        let times = tokio::join!(
            timed(put(&acquainted)),
            timed(async { put(&rig.client(&in_turn(leader))).await }),
            timed(put_through(&through)),
        );
        println!(
            "held up: one who knows it, one who comes to it, one through another node: {times:?}"
        );
        for time in [times.0, times.1, times.2] {
            assert!(time < HELD_UP_MAX, "{times:?}");
        }
        let began = tokio::time::Instant::now();
        for first in 0..LATECOMERS {
            let time = timed(async { put(&rig.client(&in_turn(first))).await }).await;
            assert!(time < HELD_UP_MAX, "the {first}th who came later: {time:?}");
        }
        println!("{LATECOMERS} who came later: {:?}", began.elapsed());
        rig.processes.resume(leader).unwrap();
        rig.ready(&[0, 1, 2]).await;
    }
}

async fn timed(action: impl Future<Output = ()>) -> Duration {
    let began = tokio::time::Instant::now();
    action.await;
    began.elapsed()
}

/// The nodes, this one first.
fn in_turn(first: usize) -> [usize; 3] {
    [0, 1, 2].map(|next| (first + next) % 3)
}

async fn put(client: &Sender) {
    let write = write_of(client.ids().next());
    let answer = client.send(write, None).await.unwrap();
    assert!(matches!(
        answer,
        Response::Write(WriteOutcome::Done { .. }, _)
    ));
}

/// One call, which the node itself has to bring to an end.
async fn put_through(node: &Arc<dyn Service>) {
    let call = Call {
        request: write_of((support::ids())()),
        deadline: READY,
        forwarded: false,
        cluster: None,
    };
    let answer = node.call(call).await.unwrap();
    assert!(matches!(
        answer,
        Response::Write(WriteOutcome::Done { .. }, _)
    ));
}

fn write_of(id: RequestId) -> Request {
    let put = Operation::Put {
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"value"),
    };
    Request::Write(Write {
        id,
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![put],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log_catches_up_by_snapshot_while_writes_go_on() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    let writers = support::write(&rig.nodes, "behind/", 3);
    support::answered(&writers, 100, "before the stop").await;
    let leader = rig.leader().await;
    let behind = (leader + 1) % 3;
    let others = [leader, (leader + 2) % 3];
    rig.processes.kill(behind).unwrap();
    let held = last_index(&rig.ready(&others).await);
    wait_for(&mut rig, &others, "the log is purged", |all| {
        all.iter()
            .all(|status| support::shard(status).purged_index > held)
    })
    .await;
    rig.processes.start(behind).unwrap();
    wait_for(&mut rig, &[behind], "it has caught up by snapshot", |all| {
        let group = support::shard(&all[0]);
        group.purged_index > held && group.applied_index > held
    })
    .await;
    support::answered(&writers, 100, "after it came back").await;
    support::stop_and_verify(writers, "behind/", &rig.nodes).await;
    same_state_everywhere(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_does_not_come_back_as_itself() {
    let mut rig = Rig::start(&[]).await;
    let writers = support::write(&rig.nodes, "wiped/", 4);
    support::answered(&writers, 100, "before the wipe").await;

    rig.processes.kill(0).unwrap();
    rig.processes.wipe(0).unwrap();
    rig.processes.start(0).unwrap();
    refused(&mut rig, 0).await;
    support::answered(&writers, 100, "with the wiped node refused").await;
    let history = support::stop_and_verify(writers, "wiped/", &rig.nodes).await;

    // The last node left with data has everything before the second one goes.
    wait_for(&mut rig, &[1, 2], "both have applied the same", |all| {
        let applied = |status| support::shard(status).applied_index;
        applied(&all[0]) == applied(&all[1])
    })
    .await;
    rig.processes.kill(1).unwrap();
    rig.processes.wipe(1).unwrap();
    rig.processes.start_all().unwrap();
    refused(&mut rig, 0).await;
    refused(&mut rig, 1).await;

    let last: Nodes = vec![rig.nodes[2].clone()];
    let left = workload::scan(&last, KeyRange::ALL, ReadKind::Follower).await;
    support::none_of(&history.check_newest(&left.unwrap()), "two wiped");
    let read = last[0].call(Call {
        request: Request::Get(Get {
            key: Bytes::from_static(b"wiped/"),
            read: ReadKind::Linearizable,
        }),
        deadline: Duration::from_secs(3),
        forwarded: false,
        cluster: None,
    });
    let answer = read.await;
    assert!(
        answer.is_err(),
        "two wiped nodes gave the third a quorum: {answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_serves_keys_that_it_does_not_hold_and_comes_back() {
    let mut rig = Rig::start(&[]).await;
    let joined = rig.add(TOKEN);
    rig.processes.start(joined).unwrap();
    let before = rig.ready(&[joined]).await.remove(0);
    assert!(before.groups.is_empty(), "it has no replica: {before:?}");
    wait_for(
        &mut rig,
        &[0, 1, 2, joined],
        "all know the new one",
        |all| {
            let known = |status: &NodeStatus| status.members.contains(&before.member);
            all.iter()
                .all(|status| status.members.len() == 4 && known(status))
        },
    )
    .await;
    let through_it: Nodes = vec![rig.nodes[joined].clone()];
    let writers = support::write(&through_it, "joined/", 5);
    support::answered(&writers, 100, "through the new node").await;
    let leader = rig.leader().await;
    routed(&through_it[0], leader).await;
    rig.processes.kill(leader).unwrap();
    support::answered(&writers, 100, "with the leader dead").await;
    rig.processes.start(leader).unwrap();
    support::stop_and_verify(writers, "joined/", &through_it).await;

    let ended = rig.processes.terminate(joined, READY).await.unwrap();
    assert_eq!(ended.code(), Some(0));
    rig.processes.start(joined).unwrap();
    let after = rig.ready(&[joined]).await.remove(0);
    assert_eq!(after.member, before.member);
    let writers = support::write(&through_it, "again/", 6);
    support::answered(&writers, 50, "after its restart").await;
    support::stop_and_verify(writers, "again/", &rig.nodes).await;

    // The disk is another one, so the node is another one.
    rig.processes.kill(joined).unwrap();
    rig.processes.wipe(joined).unwrap();
    rig.processes.start(joined).unwrap();
    let wiped = rig.ready(&[joined]).await.remove(0);
    assert_ne!(wiped.member.id, before.member.id);
    assert_eq!(wiped.member.name, before.member.name);
}

/// A node without a replica says where the shard is and who leads it, to one who asks and to one who
/// watches.
async fn routed(node: &Arc<dyn Service>, leader: usize) {
    let call = |request| Call {
        request,
        deadline: READY,
        forwarded: false,
        cluster: None,
    };
    let located = match node
        .call(call(Request::Locate(Bytes::new())))
        .await
        .unwrap()
    {
        Response::Locate(route) => route,
        other => panic!("locate was answered {other:?}"),
    };
    assert_eq!(located.shard.range, KeyRange::ALL);
    assert_eq!(located.leader, Some(NodeId(leader as u64 + 1)));
    match node.call(call(Request::Routes(0))).await.unwrap() {
        Response::Routes(_, routes) => assert_eq!(routes, [located]),
        other => panic!("a watch was answered {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_gets_the_same_id_and_a_wrong_token_is_refused() {
    let mut rig = Rig::start(&[]).await;
    let founder = rig.ready(&[0]).await.remove(0);
    let newcomer = Newcomer {
        incarnation: Incarnation([77; 16]),
        name: "n9".into(),
        node_address: "127.0.0.1:1".into(),
        client_address: "127.0.0.1:2".into(),
    };
    let join = |node: usize, token: &str, newcomer: Newcomer| {
        let address = rig.processes.node_address(node);
        let call = Call {
            request: Request::Join(JoinRequest {
                token: token.into(),
                newcomer,
            }),
            deadline: READY,
            forwarded: false,
            cluster: None,
        };
        GrpcChannel::of_client().address(&address).call(call)
    };
    let mut ids = Vec::new();
    for node in [0, 1, 2, 0] {
        match join(node, TOKEN, newcomer.clone()).await.unwrap() {
            Response::Join(joined) => ids.push(joined.node),
            other => panic!("join was answered {other:?}"),
        }
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let nameless = Newcomer {
        name: String::new(),
        ..newcomer.clone()
    };
    let old_copy = Newcomer {
        incarnation: founder.member.incarnation,
        ..newcomer.clone()
    };
    let refused = [
        join(1, "other", newcomer),
        join(1, TOKEN, nameless),
        join(1, TOKEN, old_copy),
    ];
    for refused in refused {
        let error = refused.await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    let stranger = rig.add("another cluster's");
    rig.processes.start(stranger).unwrap();
    let ended = rig.processes.wait_exit(stranger, READY).await.unwrap();
    assert_eq!(ended.code(), Some(3), "bad input");
    let said = rig.processes.log(stranger);
    assert!(said.contains("another --initial-cluster-token"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_placement_every_node_finds_every_key_that_is_placed() {
    let mut rig = Rig::start_of(5, &[]).await;
    let joined = rig.add(TOKEN);
    rig.processes.start(joined).unwrap();
    rig.ready(&[joined]).await;
    let through_it: Nodes = vec![rig.nodes[joined].clone()];
    let writers = support::write(&through_it, "placed/", 7);
    support::answered(&writers, 50, "with everybody there").await;
    // Placement has replicas on all five, the shard on the first three.
    for node in [2, 3, 4] {
        rig.processes.kill(node).unwrap();
    }
    support::answered(&writers, 50, "without placement").await;
    rig.processes.kill(joined).unwrap();
    rig.processes.start(joined).unwrap();
    support::answered(&writers, 50, "without placement and memory").await;
    support::stop_and_verify(writers, "placed/", &through_it).await;
}

/// A wiped node ends by itself and says how it can join.
async fn refused(rig: &mut Rig, node: usize) {
    let ended = rig.processes.wait_exit(node, READY).await.unwrap();
    assert!(!ended.success(), "n{} ended with {ended}", node + 1);
    let said = rig.processes.log(node);
    assert!(
        said.contains("--join"),
        "n{} does not say what to do:\n{said}",
        node + 1
    );
}

/// Every node has applied the same, and then holds the same.
async fn same_state_everywhere(rig: &mut Rig) {
    let equal = wait_for(rig, &[0, 1, 2], "all have applied the same", |all| {
        let applied = |status| support::shard(status).applied_index;
        all.iter().all(|status| applied(status) == applied(&all[0]))
    })
    .await;
    assert_eq!(equal.len(), 3);
    let mut hashes = Vec::new();
    for node in &rig.nodes {
        hashes.push(state_hash(node).await);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let mut scans = Vec::new();
    for node in &rig.nodes {
        let one: Nodes = vec![node.clone()];
        scans.push(
            workload::scan(&one, KeyRange::ALL, ReadKind::Follower)
                .await
                .unwrap(),
        );
    }
    assert!(!scans[0].is_empty());
    assert!(
        scans.iter().all(|scan| *scan == scans[0]),
        "the nodes hold different states"
    );
}

/// A node's applied index and the hash of its shard's state there.
async fn state_hash(node: &Arc<dyn Service>) -> (u64, u64) {
    let call = Call {
        request: Request::Status(StatusQuery { state_hash: true }),
        deadline: READY,
        forwarded: false,
        cluster: None,
    };
    match node.call(call).await.unwrap() {
        Response::Status(status) => {
            let shard = support::shard(&status);
            (shard.applied_index, shard.state_hash.unwrap())
        }
        other => panic!("status was answered {other:?}"),
    }
}

fn last_index(statuses: &[NodeStatus]) -> u64 {
    let ends = statuses
        .iter()
        .map(|status| support::shard(status).last_index);
    ends.max().unwrap()
}

/// Waits until the statuses of these nodes, all ready, fulfil a condition.
async fn wait_for(
    rig: &mut Rig,
    nodes: &[usize],
    what: &str,
    holds: impl Fn(&[NodeStatus]) -> bool,
) -> Vec<NodeStatus> {
    let deadline = tokio::time::Instant::now() + 2 * READY;
    loop {
        let statuses = rig.ready(nodes).await;
        if holds(&statuses) {
            return statuses;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: {statuses:#?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
