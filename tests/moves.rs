//! Shards are moved by hand to nodes that joined later, until the first nodes hold none of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::client::Kv;
use quorate::client::kv::ReadOptions;
use quorate::client::kv::WriteOptions;
use quorate::engine::Engine;
use quorate::engine::sled;
use quorate::engine::sled::SledEngine;
use quorate::testkit::processes::TOKEN;
use quorate::types::GroupId;
use quorate::types::NodeId;
use quorate::types::ShardId;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::request::AddReplica;
use quorate::wire::request::Call;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::ReplicaName;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::SplitShard;
use support::READY;
use support::Rig;

const OLD: [usize; 3] = [0, 1, 2];
const SHARDS: usize = 4;
/// For one change of replicas: a debug build on a busy machine is slow.
const CHANGE_MAX: Duration = Duration::from_secs(40);
/// How long reads and writes go on without placement; `QUORATE_WITHOUT_PLACEMENT_SECONDS` says another time.
const WITHOUT_PLACEMENT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_emptied_onto_two_under_writers_and_stopped_for_good() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    split(&rig, "emptied/").await;
    let new = join(&mut rig, 2).await;
    let writers = support::write(&rig.nodes, "emptied/", 11);
    support::answered(&writers, 200, "before the moves").await;
    move_all(&mut rig, &new).await;
    support::answered(&writers, 100, "after the moves").await;
    for node in OLD {
        stop_empty(&mut rig, node).await;
    }
    support::answered(&writers, 200, "without the old nodes").await;
    let left = new.iter().map(|node| rig.nodes[*node].clone()).collect();
    let history = support::stop_and_verify(writers, "emptied/", &left).await;
    println!(
        "{SHARDS} shards moved from three nodes to two: {:?}",
        history.counts()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_placement_reads_and_writes_go_on_and_a_node_may_die() {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    support::pause_placement(&rig.nodes).await;
    split(&rig, "alone/").await;
    let new = join(&mut rig, 3).await;
    move_all(&mut rig, &new).await;
    for node in OLD {
        rig.processes.kill(node).unwrap();
    }
    let left: Vec<_> = new.iter().map(|node| rig.nodes[*node].clone()).collect();
    let writers = support::write(&left, "alone/", 12);
    support::answered(&writers, 100, "without placement").await;
    let until = tokio::time::Instant::now() + without_placement();
    let mut rounds = 0;
    while tokio::time::Instant::now() < until {
        let victim = new[rounds % new.len()];
        rig.processes.kill(victim).unwrap();
        let alive = new.iter().copied().filter(|node| *node != victim);
        let client = rig.client(&alive.collect::<Vec<_>>());
        write_and_read_everywhere(&Kv::new(client), rounds).await;
        support::answered(&writers, 50, "with a node dead too").await;
        rig.processes.start(victim).unwrap();
        rig.ready(&new).await;
        rounds += 1;
    }
    let history = support::stop_and_verify(writers, "alone/", &left).await;
    println!(
        "{rounds} nodes killed without placement: {:?}",
        history.counts()
    );
}

fn without_placement() -> Duration {
    let said = std::env::var("QUORATE_WITHOUT_PLACEMENT_SECONDS").ok();
    let seconds = said.map(|said| said.parse().unwrap());
    seconds.map_or(WITHOUT_PLACEMENT, Duration::from_secs)
}

/// A client that knows no routes writes and reads in every shard.
async fn write_and_read_everywhere(kv: &Kv, round: usize) {
    for shard in 0..SHARDS {
        let key = Bytes::from(format!("alone/w{:02}/fresh{round}", shard * 2));
        let value = Bytes::from(format!("{round}"));
        kv.put(key.clone(), value.clone(), WriteOptions::default())
            .await
            .unwrap();
        let got = kv.get(key.clone(), ReadOptions::default()).await.unwrap();
        assert_eq!(got.found.unwrap().value, value);
        kv.delete(key, WriteOptions::default()).await.unwrap();
    }
}

/// Cuts the keys of eight writers into shards.
async fn split(rig: &Rig, prefix: &str) {
    for part in 1..SHARDS {
        let at = Bytes::from(format!("{prefix}w{:02}", part * 8 / SHARDS));
        let shard = shard_with(rig, &at).await;
        ask(rig, 0, Request::SplitShard(SplitShard { shard, at })).await;
    }
}

/// The shard that holds a key; right after a split it takes a moment until a node tells of it.
async fn shard_with(rig: &Rig, key: &Bytes) -> ShardId {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let mut shards = newest_shards(rig).await.into_iter();
        if let Some(shard) = shards.find(|shard| shard.range.contains(key)) {
            return shard.id;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody has {key:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nodes that join the others.
async fn join(rig: &mut Rig, count: usize) -> Vec<usize> {
    let new: Vec<usize> = (0..count).map(|_| rig.add(TOKEN)).collect();
    for node in &new {
        rig.processes.start(*node).unwrap();
    }
    rig.ready(&new).await;
    new
}

/// Gives every shard a replica on each new node, then takes those on the old ones away.
async fn move_all(rig: &mut Rig, new: &[usize]) {
    let mut ids = Vec::new();
    for status in rig.ready(new).await {
        ids.push(status.member.id);
    }
    ids.sort();
    for shard in newest_shards(rig).await {
        for node in &ids {
            let add = Request::AddReplica(AddReplica {
                shard: shard.id,
                node: *node,
            });
            ask(rig, 0, add).await;
        }
        for replica in &shard.replicas {
            let name = ReplicaName {
                shard: shard.id,
                replica: replica.id,
            };
            ask(rig, 1, Request::RemoveReplica(name)).await;
        }
    }
    await_empty(rig, &ids).await;
}

/// Until the old nodes have no replica of a shard, and every shard is on the new ones alone.
async fn await_empty(rig: &mut Rig, new: &[NodeId]) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let old = rig.ready(&OLD).await;
        let left: Vec<ShardId> = old.iter().flat_map(shards_on).collect();
        let shards = newest_shards(rig).await;
        let placed = shards.iter().all(|shard| {
            let mut nodes: Vec<NodeId> =
                shard.replicas.iter().map(|replica| replica.node).collect();
            nodes.sort();
            nodes == new
        });
        if left.is_empty() && placed {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "left on the old nodes: {left:?}; {shards:?}, not on {new:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn shards_on(status: &NodeStatus) -> Vec<ShardId> {
    let groups = status.groups.iter().filter_map(|group| match group.group {
        GroupId::Shard(shard) => Some(shard),
        GroupId::Placement => None,
    });
    groups.collect()
}

/// Every shard, as the node knows it that knows it best.
async fn newest_shards(rig: &Rig) -> Vec<ShardDescriptor> {
    let mut newest = std::collections::BTreeMap::<ShardId, ShardDescriptor>::new();
    for node in &rig.nodes {
        let call = call(Request::Status(Default::default()), Duration::from_secs(5));
        let Ok(Response::Status(status)) = node.call(call).await else {
            continue;
        };
        for shard in status.groups.into_iter().filter_map(|group| group.shard) {
            let known = newest.entry(shard.id).or_insert_with(|| shard.clone());
            if known.epoch.conf < shard.epoch.conf || known.epoch.bounds < shard.epoch.bounds {
                *known = shard;
            }
        }
    }
    newest.into_values().collect()
}

async fn ask(rig: &Rig, node: usize, request: Request) -> Response {
    let answer = rig.nodes[node]
        .call(call(request.clone(), CHANGE_MAX))
        .await;
    answer.unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

fn call(request: Request, deadline: Duration) -> Call {
    Call {
        request,
        deadline,
        forwarded: false,
        cluster: None,
    }
}

/// Stops a node for good once it holds no key any more. Keys are cleared in the background, also after a start;
/// only a node that is stopped can be looked into.
async fn stop_empty(rig: &mut Rig, node: usize) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let ended = rig.processes.terminate(node, READY).await.unwrap();
        assert_eq!(ended.code(), Some(0));
        let left = keys_on_disk(rig, node);
        if left == 0 {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "n{} has {left} keys",
            node + 1
        );
        rig.processes.start(node).unwrap();
        rig.ready(&[node]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What is stored of shards' keys on a node that is stopped.
fn keys_on_disk(rig: &Rig, node: usize) -> usize {
    let path = rig.processes.data(node).join("engine");
    let options = sled::Options {
        cache_bytes: 16 << 20,
    };
    let engine: Arc<dyn Engine> = Arc::new(SledEngine::open(&path, &options).unwrap());
    let keys = engine.scan(&[0x10], &[0x11], false);
    keys.count()
}
