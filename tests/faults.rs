//! Real processes under real faults of the network: each node in a network namespace of its own, whose
//! packets are dropped, or behind a relay, which delays and loses what they say. The side with a
//! majority goes on, the other one answers nothing, and after healing everything answers and nothing
//! that was answered is missing.
//!
//! `QUORATE_FAULT_SECONDS` says how long each fault lasts; the default keeps the whole within minutes.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "faults/load.rs"]
mod load;
#[path = "faults/network.rs"]
mod network;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use load::Load;
use load::SILENCE_MAX;
use network::Network;
use quorate::error::Error;
use quorate::testkit::processes::Processes;
use quorate::testkit::relay::Relay;
use quorate::testkit::relay::Rule;
use quorate::testkit::relay::Way;
use quorate::testkit::workload::Nodes;
use quorate::types::GroupId;
use quorate::types::RequestId;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::wire::request::Call;
use quorate::wire::request::Get;
use quorate::wire::request::GroupStatus;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use support::READY;
use support::Rig;
use tokio::time::Instant;
use tokio::time::sleep;

/// Shards of the clusters whose network is slow: with six, delay on one node has frozen two for good
/// (openraft #1761).
const SHARDS: usize = 8;
/// With another address than loopback a node asks whether that is meant.
const INSECURE: &str = "--insecure";

/// What was under way when a network was cut may still be answered for so long.
const UNDER_WAY_MAX: Duration = Duration::from_secs(1);

/// How long a fault lasts.
fn fault_time() -> Duration {
    let said = std::env::var("QUORATE_FAULT_SECONDS").ok();
    Duration::from_secs(said.map_or(3, |said| said.parse().unwrap()))
}

/// Packets that are dropped between three nodes, of which one leads.
#[derive(Debug, Clone, Copy)]
enum Cut {
    LeaderAlone,
    FollowerAlone,
    IntoLeader,
    OutOfLeader,
    IntoFollower,
    OutOfFollower,
    OneLink,
}

const CUTS: [Cut; 7] = [
    Cut::LeaderAlone,
    Cut::FollowerAlone,
    Cut::IntoLeader,
    Cut::OutOfLeader,
    Cut::IntoFollower,
    Cut::OutOfFollower,
    Cut::OneLink,
];

impl Cut {
    /// The ways that are cut, and who can still reach a majority.
    fn of(self, leader: usize) -> (Vec<Way>, [usize; 2]) {
        let follower = (leader + 1) % 3;
        let other = (leader + 2) % 3;
        let (without_leader, without_follower) = ([follower, other], [leader, other]);
        match self {
            Cut::LeaderAlone => (Way::between(&[leader], &without_leader), without_leader),
            Cut::FollowerAlone => (
                Way::between(&[follower], &without_follower),
                without_follower,
            ),
            Cut::IntoLeader => (Way::across(&without_leader, &[leader]), without_leader),
            Cut::OutOfLeader => (Way::across(&[leader], &without_leader), without_leader),
            Cut::IntoFollower => (
                Way::across(&without_follower, &[follower]),
                without_follower,
            ),
            Cut::OutOfFollower => (
                Way::across(&[follower], &without_follower),
                without_follower,
            ),
            Cut::OneLink => (Way::between(&[leader], &[follower]), without_follower),
        }
    }
}

/// A cluster in namespaces.
async fn in_namespaces(nodes: usize) -> Option<(Network, Rig)> {
    if support::skipped("faults") {
        support::skip(REQUIRED, "faults", "QUORATE_SKIP names it");
        return None;
    }
    let network = match Network::new(nodes) {
        Ok(network) => network,
        Err(error) => {
            let why = format!("no network namespaces (root, iproute2 and nftables?): {error}");
            support::skip(REQUIRED, "faults", &why);
            return None;
        }
    };
    let arguments = [support::SMALL_LOG, &[INSECURE]].concat();
    let places = network.places();
    let make = |options| Processes::at(places, options).unwrap();
    let rig = Rig::start_made(nodes, &arguments, make).await;
    Some((network, rig))
}

const REQUIRED: &str = "QUORATE_REQUIRE_NAMESPACES";

#[tokio::test(flavor = "multi_thread")]
async fn the_side_with_a_majority_goes_on_and_the_other_answers_nothing() {
    let Some((network, mut rig)) = in_namespaces(3).await else {
        return;
    };
    for (seed, cut) in CUTS.into_iter().enumerate() {
        partition(&network, &mut rig, cut, seed as u64).await;
    }
}

async fn partition(network: &Network, rig: &mut Rig, cut: Cut, seed: u64) {
    let leader = rig.leader().await;
    let (ways, majority) = cut.of(leader);
    let alone = 3 - majority[0] - majority[1];
    let major: Nodes = majority.map(|node| rig.nodes[node].clone()).to_vec();
    let minor: Nodes = vec![rig.nodes[alone].clone()];

    let everywhere = Load::start(&rig.nodes, &format!("{cut:?}/all/"), seed);
    let beside = Load::impatient(&major, &format!("{cut:?}/majority/"), seed);
    beside.answered(50, "before the cut").await;
    network.cut(&ways).unwrap();
    let alone = async {
        sleep(UNDER_WAY_MAX).await;
        let load = Load::impatient(&minor, &format!("{cut:?}/alone/"), seed);
        (load.is_silent(fault_time()).await, load)
    };
    let whole = UNDER_WAY_MAX + fault_time();
    let (silence, (silent, cut_off)) = tokio::join!(beside.longest_silence(whole), alone);
    beside.answered(50, "with a majority").await;
    println!("{cut:?}: longest time without an answered write {silence:?}");
    assert!(
        silence < SILENCE_MAX,
        "{cut:?}: {silence:?} without a write"
    );
    assert!(
        silent,
        "{cut:?}: a node without a majority answered a write"
    );
    network.heal().unwrap();
    rig.ready(&[0, 1, 2]).await;
    everywhere.answered(50, "after healing").await;
    cut_off.answered(20, "after healing").await;
    for load in [everywhere, beside, cut_off] {
        load.verify(&rig.nodes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_answered_until_there_is_one_again() {
    let Some((network, mut rig)) = in_namespaces(3).await else {
        return;
    };
    let load = Load::start(&rig.nodes, "scattered/", 1);
    load.answered(50, "before the cut").await;
    let everybody = [0, 1, 2];
    network.cut(&Way::across(&everybody, &everybody)).unwrap();
    sleep(UNDER_WAY_MAX).await;
    let silent = load.is_silent(fault_time()).await;
    assert!(silent, "a node alone answered a write");
    network.heal().unwrap();
    let healed = Instant::now();
    load.answered(50, "after healing").await;
    println!("scattered: 50 writes {:?} after healing", healed.elapsed());
    rig.ready(&everybody).await;
    load.verify(&rig.nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_flaps_loses_nothing_and_is_well_when_it_ends() {
    let Some((network, mut rig)) = in_namespaces(3).await else {
        return;
    };
    let load = Load::start(&rig.nodes, "flapping/", 2);
    load.answered(50, "before the flapping").await;
    let until = Instant::now() + 2 * fault_time();
    let mut flaps = 0;
    while Instant::now() < until {
        // Each node in turn, for longer and shorter than an election.
        let node = flaps % 3;
        let others = [(node + 1) % 3, (node + 2) % 3];
        let ways = match flaps % 2 {
            0 => Way::between(&[node], &others),
            _ => Way::across(&others, &[node]),
        };
        network.cut(&ways).unwrap();
        sleep(Duration::from_millis([150, 400, 900][flaps / 3 % 3])).await;
        network.heal().unwrap();
        sleep(Duration::from_millis(200)).await;
        flaps += 1;
    }
    println!("{flaps} times cut off and let in again");
    rig.ready(&[0, 1, 2]).await;
    load.answered(50, "after the flapping").await;
    load.verify(&rig.nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_go_on_as_a_ring_and_as_two_halves_with_a_bridge() {
    let Some((network, mut rig)) = in_namespaces(5).await else {
        return;
    };
    let ring: Vec<Way> = (0..5)
        .flat_map(|node| Way::across(&[node], &[(node + 2) % 5, (node + 3) % 5]))
        .collect();
    let bridge = Way::between(&[0, 1], &[3, 4]);
    for (name, ways) in [("ring", ring), ("bridge", bridge)] {
        let load = Load::impatient(&rig.nodes, &format!("{name}/"), 3);
        load.answered(50, "before the cut").await;
        network.cut(&ways).unwrap();
        let silence = load.longest_silence(fault_time()).await;
        load.answered(50, name).await;
        println!("{name}: longest time without an answered write {silence:?}");
        assert!(silence < SILENCE_MAX, "{name}: {silence:?} without a write");
        network.heal().unwrap();
        rig.ready(&[0, 1, 2, 3, 4]).await;
        load.answered(50, "after healing").await;
        load.verify(&rig.nodes).await;
    }
}

/// A cluster behind a relay, cut into shards: one for each of eight writers below `prefix`.
async fn behind_relay(prefix: &str) -> Rig {
    let make = |options| Processes::behind(Relay::new(1), options).unwrap();
    let rig = Rig::start_made(3, support::SMALL_LOG, make).await;
    let mut split = Command::new(env!("CARGO_BIN_EXE_quorate"));
    split
        .args(["shard", "split"])
        .env("QUORATE_ENDPOINTS", rig.processes.client_address(0));
    for shard in 1..SHARDS {
        split.args(["--at", &format!("{prefix}w{shard:02}")]);
    }
    let done = split.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    rig
}

/// openraft #1761: a delay of one node's network made two of six groups on it stand still for good, while the
/// process lived and the others had their majority. Each of eight shards must answer writes while a node's links are
/// slow, and afterwards no replica of any, on any node, may stand still.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_lossy_link_of_one_node_freezes_no_shard() {
    if support::skipped("faults") {
        return;
    }
    let mut rig = behind_relay("slow/").await;
    let slow_and_narrow = Rule {
        bytes_per_second: Some(100_000),
        ..Rule::late(Duration::from_millis(50), Duration::from_millis(20))
    };
    let rules = [
        (
            "late",
            Rule::late(Duration::from_millis(200), Duration::from_millis(200)),
        ),
        ("lossy", Rule::lossy(10)),
        ("very lossy", Rule::lossy(50)),
        ("narrow", slow_and_narrow),
        ("stalled", Rule::STALLED),
    ];
    let all = rig.nodes.clone();
    let everywhere = Each::start("all", |prefix, seed| Load::start_one(&all, prefix, seed));
    every_shard_is_everywhere(&mut rig).await;
    for (number, (name, rule)) in rules.into_iter().enumerate() {
        // First the one that leads: its children are led there too. What it is asked takes longer than an
        // impatient client waits, and is answered all the same.
        let node = match number {
            0 => led_by(&rig.ready(&[0, 1, 2]).await),
            _ => number % 3,
        };
        let others = [(node + 1) % 3, (node + 2) % 3];
        let quick: Nodes = others.map(|node| rig.nodes[node].clone()).to_vec();
        let beside = Each::start(&format!("quick/{number}"), |prefix, seed| {
            Load::start_one(&quick, prefix, seed)
        });
        beside.answered(10, "before the fault").await;
        relay(&rig).set(&Way::between(&[node], &others), rule);
        let silences = beside.longest_silences(fault_time()).await;
        println!("{name}: longest times without an answered write, by shard: {silences:?}");
        for (shard, silence) in silences.iter().enumerate() {
            assert!(
                *silence < SILENCE_MAX,
                "{name}: {silence:?} without a write to shard {shard}"
            );
        }
        relay(&rig).heal();
        rig.ready(&[0, 1, 2]).await;
        every_shard_is_written(&rig).await;
        every_replica_follows(&mut rig, name).await;
        beside.answered(10, "after healing").await;
        everywhere.answered(10, "after healing").await;
        beside.verify(&rig.nodes).await;
    }
    everywhere.verify(&rig.nodes).await;
}

/// A load for each shard.
struct Each(Vec<Load>);

impl Each {
    /// One writer for each; `start` is given its prefix and its seed.
    fn start(name: &str, start: impl Fn(&str, u64) -> Load) -> Each {
        let load = |shard| start(&format!("slow/w{shard:02}/{name}/"), shard as u64);
        Each((0..SHARDS).map(load).collect())
    }

    /// Waits until every shard has answered so many further writes.
    async fn answered(&self, count: usize, what: &str) {
        let each = self.0.iter().map(|load| load.answered(count, what));
        join_all(each).await;
    }

    /// The longest time without an answered write, of each shard.
    async fn longest_silences(&self, span: Duration) -> Vec<Duration> {
        join_all(self.0.iter().map(|load| load.longest_silence(span))).await
    }

    async fn verify(self, nodes: &Nodes) {
        join_all(self.0.into_iter().map(|load| load.verify(nodes))).await;
    }
}

/// The shards' groups on a node.
fn shards(status: &NodeStatus) -> BTreeMap<GroupId, GroupStatus> {
    let groups = status.groups.iter();
    let shards = groups.filter(|group| matches!(group.group, GroupId::Shard(_)));
    shards.map(|group| (group.group, group.clone())).collect()
}

/// The node that leads most shards.
fn led_by(nodes: &[NodeStatus]) -> usize {
    let leads = |node: &usize| {
        let shards = shards(&nodes[*node]);
        shards
            .values()
            .filter(|group| group.role == "leader")
            .count()
    };
    (0..nodes.len()).max_by_key(leads).expect("there are nodes")
}

/// Returns when each node has opened its replicas of all shards: a split is answered when its leader has.
async fn every_shard_is_everywhere(rig: &mut Rig) {
    let deadline = Instant::now() + READY;
    loop {
        let ready = rig.ready(&[0, 1, 2]).await;
        let found: Vec<usize> = ready.iter().map(|status| shards(status).len()).collect();
        if found == [SHARDS; 3] {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} shards on the nodes");
    }
}

/// Every replica of every shard, on the slow node too, comes to apply what its leader has now: none stands still.
/// A majority would hide it.
async fn every_replica_follows(rig: &mut Rig, name: &str) {
    let mut goals = BTreeMap::new();
    for status in rig.ready(&[0, 1, 2]).await {
        for (id, group) in shards(&status) {
            let goal = goals.entry(id).or_insert(0);
            *goal = group.last_index.max(*goal);
        }
    }
    assert_eq!(goals.len(), SHARDS);
    let deadline = Instant::now() + READY;
    loop {
        let mut behind = Vec::new();
        for status in rig.ready(&[0, 1, 2]).await {
            let found = shards(&status);
            assert_eq!(found.len(), SHARDS, "replicas on {}", status.member.name);
            let late = found.into_iter().filter(|(id, group)| {
                assert_ne!(
                    group.role, "failed",
                    "{name}: {id} on {}",
                    status.member.name
                );
                group.applied_index < goals[id]
            });
            behind.extend(late.map(|(id, group)| (status.member.name.clone(), id, group)));
        }
        if behind.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{name}: frozen: {behind:?} of {goals:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

fn relay(rig: &Rig) -> &Relay {
    rig.processes.relay().expect("it was started behind one")
}

/// Each shard commits something, through each node.
async fn every_shard_is_written(rig: &Rig) {
    for shard in 0..SHARDS {
        for node in 0..3 {
            let key = Bytes::from(format!("slow/w{shard:02}/never-there"));
            write(&rig.nodes, node, Operation::Delete { key }).await;
        }
    }
}

/// A leader that nobody can answer, but whom all hear, must not keep the others from electing one
/// (openraft #2080).
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_is_replaced_though_all_hear_it() {
    if support::skipped("faults") {
        return;
    }
    let make = |options| Processes::behind(Relay::new(2), options).unwrap();
    let mut rig = Rig::start_made(3, support::SMALL_LOG, make).await;
    for (name, deaf) in [("deaf", true), ("mute", false)] {
        let leader = rig.leader().await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let ways = match deaf {
            true => Way::across(&others, &[leader]),
            false => Way::across(&[leader], &others),
        };
        let majority: Nodes = others.map(|node| rig.nodes[node].clone()).to_vec();
        let load = Load::impatient(&majority, &format!("{name}/"), 6);
        load.answered(50, "before the cut").await;
        relay(&rig).set(&ways, Rule::CUT);
        let silence = load.longest_silence(2 * fault_time()).await;
        load.answered(50, name).await;
        println!("{name} leader: longest time without an answered write {silence:?}");
        assert!(silence < SILENCE_MAX, "{name}: {silence:?} without a write");
        relay(&rig).heal();
        rig.ready(&[0, 1, 2]).await;
        load.answered(50, "after healing").await;
        load.verify(&rig.nodes).await;
    }
}

/// A read that waits for a leader that stands still is answered with what was written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_around_a_pause_of_the_leader_is_never_stale() {
    if support::skipped("faults") {
        return;
    }
    let mut rig = Rig::start(support::SMALL_LOG).await;
    let mut answered = 0;
    for (round, millis) in [500, 1_000, 2_000, 5_000].into_iter().enumerate() {
        let leader = rig.leader().await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let keys: Vec<String> = (0..8).map(|key| format!("pause/{round}/{key}")).collect();
        for key in &keys {
            put(&rig.nodes, leader, key, "before").await;
        }
        rig.processes.pause(leader).unwrap();
        let stood_still = Instant::now();
        let ask = |key: &String| tokio::spawn(get(&rig.nodes, leader, key));
        // Asked before the writes, they may show either; asked behind them, only the new.
        let beside: Vec<_> = keys.iter().map(ask).collect();
        for key in &keys {
            put(&rig.nodes, others[round % 2], key, "after").await;
        }
        let behind: Vec<_> = keys.iter().map(ask).collect();
        sleep(Duration::from_millis(millis).saturating_sub(stood_still.elapsed())).await;
        rig.processes.resume(leader).unwrap();
        for read in beside {
            let found = read.await.unwrap();
            assert!(found.is_none_or(|found| found == "before" || found == "after"));
        }
        for (key, read) in keys.iter().zip(behind) {
            let early = read.await.unwrap();
            let late = get(&rig.nodes, leader, key).await;
            for found in [early, late].into_iter().flatten() {
                assert_eq!(found, "after", "{key} after {millis} ms");
                answered += 1;
            }
        }
        rig.ready(&[0, 1, 2]).await;
    }
    println!("{answered} reads around pauses were answered");
    assert!(
        answered > 16,
        "too few reads were answered to mean something"
    );
}

async fn put(nodes: &Nodes, first: usize, key: &str, value: &str) {
    let operation = Operation::Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
    };
    write(nodes, first, operation).await;
}

/// Writes through this node first, and through the others when it does not answer.
async fn write(nodes: &Nodes, first: usize, operation: Operation) {
    let write = Write {
        id: RequestId(uuid::Uuid::now_v7().into_bytes()),
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![operation],
        },
    };
    let deadline = Instant::now() + READY;
    for attempt in 0.. {
        let node = &nodes[(first + attempt) % nodes.len()];
        let request = Request::Write(write.clone());
        match node.call(call(request, Duration::from_secs(3))).await {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < deadline, "{write:?}: {error}"),
        }
    }
}

/// Reads a key at this node, linearizable; none when it does not answer.
fn get(nodes: &Nodes, node: usize, key: &str) -> impl Future<Output = Option<String>> + use<> {
    let request = Request::Get(Get {
        key: Bytes::from(key.to_owned()),
        read: ReadKind::Linearizable,
    });
    let asked = nodes[node].call(call(request, 2 * Duration::from_secs(5)));
    async move {
        match asked.await {
            Ok(Response::Get(found, _)) => {
                let value = found.expect("the key is never deleted").value;
                Some(String::from_utf8(value.to_vec()).unwrap())
            }
            Ok(other) => panic!("a get was answered {other:?}"),
            Err(Error::Internal(error)) => panic!("{error}"),
            Err(_) => None,
        }
    }
}

fn call(request: Request, deadline: Duration) -> Call {
    Call {
        request,
        deadline,
        forwarded: false,
        cluster: None,
    }
}
