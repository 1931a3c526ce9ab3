//! Replicas of a shard come and go on three real processes, under writers and under kills: no answered
//! write is lost, a replica that has left clears its keys, and one that does not know it disturbs nobody.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use quorate::engine::Engine;
use quorate::engine::sled;
use quorate::engine::sled::SledEngine;
use quorate::error::Error;
use quorate::types::GroupId;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::key::VALUE_BYTES_MAX;
use quorate::types::request::Operation;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::request::AddReplica;
use quorate::wire::request::Call;
use quorate::wire::request::GroupStatus;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::ReplicaName;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::StatusQuery;
use support::READY;
use support::Rig;

const SHARD: ShardId = ShardId(1);
/// For one change of replicas: a debug build on a busy machine is slow.
const CHANGE_MAX: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_removed_under_writers_and_another_comes_to_the_same_node() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    let writers = support::write(&rig.nodes, "moved/", 1);
    support::answered(&writers, 200, "before the change").await;
    let (_, follower) = roles(&mut rig).await;
    let old = replica_on(&mut rig, follower).await;

    let shard = remove(&rig, follower, old).await.unwrap();
    assert!(shard.replica_on(node_id(follower)).is_none(), "{shard:?}");
    until(&mut rig, follower, "the replica is destroyed", |group| {
        group.is_none()
    })
    .await;
    support::answered(&writers, 100, "with two replicas").await;
    let again = remove(&rig, follower, old).await.unwrap();
    assert_eq!(again.replicas, shard.replicas);
    no_key_is_left(&mut rig, follower).await;

    let shard = add(&rig, 0, follower).await.unwrap();
    let new = shard.replica_on(node_id(follower)).unwrap();
    assert!(new.id > old, "{shard:?}");
    let twice = add(&rig, 1, follower).await;
    assert!(
        matches!(twice, Err(Error::Invalid { .. }) | Ok(_)),
        "{twice:?}"
    );
    support::answered(&writers, 100, "with three again").await;
    support::stop_and_verify(writers, "moved/", &rig.nodes).await;
    same_state(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_itself_can_be_removed() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    let writers = support::write(&rig.nodes, "leader/", 2);
    support::answered(&writers, 100, "before the change").await;
    for _ in 0..2 {
        let (leader, _) = roles(&mut rig).await;
        let old = replica_on(&mut rig, leader).await;
        remove(&rig, leader, old).await.unwrap();
        support::answered(&writers, 100, "without the leader").await;
        add(&rig, leader, leader).await.unwrap();
        support::answered(&writers, 100, "with a new one").await;
    }
    support::stop_and_verify(writers, "leader/", &rig.nodes).await;
    same_state(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_that_was_down_destroys_itself_and_raises_no_term() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    let writers = support::write(&rig.nodes, "down/", 3);
    support::answered(&writers, 100, "before the kill").await;
    let (leader, follower) = roles(&mut rig).await;
    let old = replica_on(&mut rig, follower).await;
    rig.processes.kill(follower).unwrap();
    remove(&rig, leader, old).await.unwrap();
    let before = group(&status(&rig, leader).await.unwrap()).unwrap().term;
    support::answered(&writers, 100, "with two replicas").await;

    rig.processes.start(follower).unwrap();
    until(&mut rig, follower, "the replica is destroyed", |group| {
        group.is_none()
    })
    .await;
    support::answered(&writers, 100, "after it came back").await;
    let after = group(&status(&rig, leader).await.unwrap()).unwrap().term;
    assert_eq!(before, after, "it disturbed the others");

    // What is gone stays gone, and does not keep the node from starting.
    rig.processes.kill(follower).unwrap();
    rig.processes.start(follower).unwrap();
    rig.ready(&[0, 1, 2]).await;
    assert!(group(&status(&rig, follower).await.unwrap()).is_none());
    add(&rig, follower, follower).await.unwrap();
    support::stop_and_verify(writers, "down/", &rig.nodes).await;
    same_state(&mut rig).await;
}

/// The leader dies at another moment of the change each time: before the learner, with it, joint, after.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_leader_is_killed_is_finished_by_the_next() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    let writers = support::write(&rig.nodes, "killed/", 4);
    support::answered(&writers, 200, "before the change").await;
    for (round, delay_ms) in [0, 15, 30, 60, 100, 200].into_iter().enumerate() {
        let (leader, follower) = roles(&mut rig).await;
        let old = replica_on(&mut rig, follower).await;
        let asked = begin(&rig, leader, remove_request(old));
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        if round % 2 == 0 {
            restart(&mut rig, leader).await;
        }
        // It may have happened and may not; asked again, it has.
        let _ = asked.await;
        remove(&rig, follower, old).await.unwrap();
        until(&mut rig, follower, "the old one is destroyed", |group| {
            group.is_none_or(|group| group.replica != old)
        })
        .await;

        let (leader, _) = roles(&mut rig).await;
        let asked = begin(&rig, leader, add_request(follower));
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        restart(&mut rig, leader).await;
        let _ = asked.await;
        let again = add(&rig, follower, follower).await;
        assert!(
            matches!(again, Ok(_) | Err(Error::Invalid { .. })),
            "round {round}: {again:?}"
        );
        until(&mut rig, follower, "it follows as a voter", |group| {
            group.is_some_and(|group| group.role != "learner" && group.applied_index > 0)
        })
        .await;
        support::answered(&writers, 50, "after the change").await;
        let shard = shard_of(&mut rig).await;
        assert_eq!(shard.replicas.len(), 3, "round {round}: {shard:?}");
    }
    support::stop_and_verify(writers, "killed/", &rig.nodes).await;
    same_state(&mut rig).await;
    let logs: Vec<String> = (0..3).map(|node| rig.processes.log(node)).collect();
    let count = |what: &str| -> usize { logs.iter().map(|log| log.matches(what).count()).sum() };
    println!(
        "finished by another leader: {} joint, {} learners",
        count("finishing a change of voters"),
        count("change=Promote"),
    );
}

/// The snapshot that fills the learner takes a moment, in which its leader dies. Nobody asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_whose_leader_was_killed_is_promoted_by_the_next() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    for number in 0..LARGE_VALUES {
        put(&rig, &format!("large/{number}"), vec![7; VALUE_BYTES_MAX]).await;
    }
    let (leader, follower) = roles(&mut rig).await;
    let old = replica_on(&mut rig, follower).await;
    remove(&rig, leader, old).await.unwrap();
    until(&mut rig, follower, "the old one is destroyed", |group| {
        group.is_none()
    })
    .await;
    let (leader, _) = roles(&mut rig).await;
    let asked = begin(&rig, leader, add_request(follower));
    until(&mut rig, follower, "it is a learner", |group| {
        group.is_some_and(|group| group.role == "learner")
    })
    .await;
    restart(&mut rig, leader).await;
    let killed = asked.await;
    until(&mut rig, follower, "it follows as a voter", |group| {
        group.is_some_and(|group| group.role != "learner" && group.applied_index > 0)
    })
    .await;
    let promoted: usize = (0..3)
        .map(|node| rig.processes.log(node).matches("Promote").count())
        .sum();
    println!("the change ended with {killed:?}; taken up again: {promoted} log lines");
    assert!(promoted > 0 || killed.is_ok(), "{killed:?}");
    same_state(&mut rig).await;
}

/// Values of the longest kind: their snapshot takes a second or so.
const LARGE_VALUES: usize = 24;

async fn put(rig: &Rig, key: &str, value: Vec<u8>) {
    let write = Write {
        id: support::ids()(),
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![Operation::Put {
                key: key.to_owned().into(),
                value: value.into(),
            }],
        },
    };
    begin(rig, 0, Request::Write(write)).await.unwrap();
}

fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

fn remove_request(replica: ReplicaId) -> Request {
    Request::RemoveReplica(ReplicaName {
        shard: SHARD,
        replica,
    })
}

fn add_request(node: usize) -> Request {
    Request::AddReplica(AddReplica {
        shard: SHARD,
        node: node_id(node),
    })
}

fn begin(
    rig: &Rig,
    at: usize,
    request: Request,
) -> impl Future<Output = Result<Response, Error>> + use<> {
    let call = Call {
        request,
        deadline: CHANGE_MAX,
        forwarded: false,
        cluster: None,
    };
    let answer = tokio::spawn(rig.nodes[at].call(call));
    async move { answer.await.unwrap() }
}

async fn changed(rig: &Rig, at: usize, request: Request) -> Result<ShardDescriptor, Error> {
    match begin(rig, at, request).await? {
        Response::AddReplica(shard) | Response::RemoveReplica(shard) => Ok(shard),
        other => panic!("a change was answered {other:?}"),
    }
}

async fn remove(rig: &Rig, at: usize, replica: ReplicaId) -> Result<ShardDescriptor, Error> {
    changed(rig, at, remove_request(replica)).await
}

async fn add(rig: &Rig, at: usize, node: usize) -> Result<ShardDescriptor, Error> {
    changed(rig, at, add_request(node)).await
}

async fn restart(rig: &mut Rig, node: usize) {
    rig.processes.kill(node).unwrap();
    rig.processes.start(node).unwrap();
}

async fn status(rig: &Rig, node: usize) -> Option<NodeStatus> {
    asked_status(rig, node, false).await
}

async fn asked_status(rig: &Rig, node: usize, state_hash: bool) -> Option<NodeStatus> {
    let call = Call {
        request: Request::Status(StatusQuery { state_hash }),
        deadline: Duration::from_secs(10),
        forwarded: false,
        cluster: None,
    };
    match rig.nodes[node].call(call).await {
        Ok(Response::Status(status)) => Some(*status),
        Ok(other) => panic!("status was answered {other:?}"),
        Err(_) => None,
    }
}

fn group(status: &NodeStatus) -> Option<GroupStatus> {
    let mut groups = status.groups.iter();
    let found = groups.find(|group| group.group == GroupId::Shard(SHARD));
    found.cloned()
}

async fn groups(rig: &Rig) -> Vec<Option<GroupStatus>> {
    let mut groups = Vec::new();
    for node in 0..3 {
        groups.push(status(rig, node).await.as_ref().and_then(group));
    }
    groups
}

/// The node that leads the shard, and one that follows it.
async fn roles(rig: &mut Rig) -> (usize, usize) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let groups = groups(rig).await;
        let with = |role: &str| {
            groups
                .iter()
                .position(|group| group.as_ref().is_some_and(|group| group.role == role))
        };
        if let (Some(leader), Some(follower)) = (with("leader"), with("follower")) {
            return (leader, follower);
        }
        assert!(tokio::time::Instant::now() < deadline, "{groups:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn replica_on(rig: &mut Rig, node: usize) -> ReplicaId {
    let seen = status(rig, node).await.unwrap();
    group(&seen).unwrap().replica
}

/// The shard as its leader knows it.
async fn shard_of(rig: &mut Rig) -> ShardDescriptor {
    let (leader, _) = roles(rig).await;
    let seen = status(rig, leader).await.unwrap();
    group(&seen).unwrap().shard.unwrap()
}

/// Waits until what a node says of the shard's replica there fulfils a condition.
async fn until(
    rig: &mut Rig,
    node: usize,
    what: &str,
    holds: impl Fn(Option<&GroupStatus>) -> bool,
) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let seen = status(rig, node).await;
        if seen
            .as_ref()
            .is_some_and(|seen| holds(group(seen).as_ref()))
        {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {seen:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The clearing goes on until the engine has no key of a shard; it is looked into while the node is down.
async fn no_key_is_left(rig: &mut Rig, node: usize) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.processes.terminate(node, READY).await.unwrap();
        let path = rig.processes.data(node).join("engine");
        let engine: Arc<dyn Engine> = Arc::new(
            SledEngine::open(
                &path,
                &sled::Options {
                    cache_bytes: 16 << 20,
                },
            )
            .unwrap(),
        );
        let left = engine.scan(&[0x10], &[0x11], false).count();
        drop(engine);
        rig.processes.start(node).unwrap();
        rig.ready(&[node]).await;
        if left == 0 {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{left} keys left");
    }
}

/// All three have applied the same, and then hold the same.
async fn same_state(rig: &mut Rig) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let mut hashes = Vec::new();
        for node in 0..3 {
            let seen = asked_status(rig, node, true).await;
            let seen = seen.as_ref().and_then(group);
            hashes.push(seen.map(|group| (group.applied_index, group.state_hash.unwrap())));
        }
        if hashes[0].is_some() && hashes.iter().all(|hash| *hash == hashes[0]) {
            return;
        }
        let indexes = hashes.iter().map(|hash| hash.map(|(index, _)| index));
        let equal = indexes
            .clone()
            .all(|index| index.is_some() && index == indexes.clone().next().unwrap());
        assert!(!equal, "the nodes hold different states: {hashes:?}");
        assert!(tokio::time::Instant::now() < deadline, "{hashes:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
