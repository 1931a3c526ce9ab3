//! Placement by itself, on real processes: shards split, nodes that join get their share, nodes that die are
//! replaced, nodes that leave are emptied, while clients write.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use quorate::client::Admin;
use quorate::client::Kv;
use quorate::client::kv::ReadOptions;
use quorate::client::kv::ScanOptions;
use quorate::client::kv::WriteOptions;
use quorate::testkit::processes::Processes;
use quorate::testkit::processes::TOKEN;
use quorate::types::GroupId;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::node::Duty;
use quorate::types::overview::Arrangement;
use quorate::types::overview::NodeOverview;
use quorate::types::overview::Overview;
use quorate::types::overview::ShardOverview;
use quorate::wire::request::OverviewQuery;
use support::Rig;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long placement may take for what it does: a debug build on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

const KIB: u64 = 1024;

/// A cluster, and the way to its placement.
struct Scene {
    rig: Rig,
    admin: Admin,
    kv: Kv,
}

impl Scene {
    async fn start(nodes: usize, settings: &[(&str, &str)]) -> Scene {
        let rig = Rig::start_of(nodes, support::SMALL_LOG).await;
        Scene::of(rig, settings).await
    }

    async fn of(rig: Rig, settings: &[(&str, &str)]) -> Scene {
        let nodes: Vec<usize> = (0..rig.nodes.len()).collect();
        let client = rig.client(&nodes);
        let scene = Scene {
            rig,
            admin: Admin::new(Arc::clone(&client)),
            kv: Kv::new(client),
        };
        for (name, value) in settings {
            let value = Some((*value).to_owned());
            let name = (*name).to_owned();
            scene.arrange(Arrangement::SetSetting { name, value }).await;
        }
        scene
    }

    async fn arrange(&self, arrangement: Arrangement) {
        self.admin.arrange(arrangement, None).await.unwrap();
    }

    /// Splits the last shard at each of these keys.
    async fn split_at(&self, keys: &[&'static str]) {
        let mut last = ShardId(1);
        for at in keys {
            let at = Bytes::from_static(at.as_bytes());
            let (_, right) = self.admin.split_shard(last, at, None).await.unwrap();
            last = right.id;
        }
    }

    async fn overview(&self) -> Overview {
        let query = OverviewQuery { shards: true };
        self.admin.overview(query, None).await.unwrap()
    }

    /// Looks until it is so; fails with the last reason for which it was not, and what placement says.
    async fn until(&self, what: &str, is_so: impl Fn(&Overview) -> Result<(), String>) -> Overview {
        let end = Instant::now() + PATIENCE;
        loop {
            let overview = self.overview().await;
            match is_so(&overview) {
                Ok(()) => return overview,
                Err(why) if Instant::now() > end => {
                    panic!("{what}: {why}\n{overview:#?}");
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Values of 4 KiB under keys that rise.
    async fn fill(&self, prefix: &str, count: usize) {
        let puts = (0..count).map(|number| async move {
            let key = Bytes::from(format!("{prefix}{number:06}"));
            let value = Bytes::from(vec![b'v'; 4096]);
            self.kv
                .put(key, value, WriteOptions::default())
                .await
                .unwrap();
        });
        let puts = futures::stream::iter(puts);
        puts.buffer_unordered(16).for_each(|()| async {}).await;
    }

    /// Looks until so many of those values are reported, in shards of less than 256 KiB: reports lag behind what is
    /// written by a second or so.
    async fn until_split(&self, values: u64) -> Overview {
        self.until("shards are split by size", |overview| {
            all_are_small(overview, 256 * KIB)?;
            let reports = overview.shards.iter().flat_map(|shard| &shard.report);
            let bytes: u64 = reports.map(|report| report.size.bytes).sum();
            match bytes > values * 4 * KIB {
                true => is_idle(overview),
                false => Err(format!("{bytes} bytes are reported")),
            }
        })
        .await
    }

    /// The nodes with a replica of placement, as they say themselves.
    async fn hosts(&self) -> BTreeSet<NodeId> {
        let cluster = self.admin.cluster(Duration::from_secs(2)).await.unwrap();
        let statuses = cluster.nodes.into_values();
        let hosts = statuses.filter(|status| {
            let mut groups = status.groups.iter();
            groups.any(|group| group.group == GroupId::Placement)
        });
        hosts.map(|status| status.member.id).collect()
    }

    /// Looks until placement is where it shall be.
    async fn until_hosts(&self, is_so: impl Fn(&BTreeSet<NodeId>) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let hosts = self.hosts().await;
            if is_so(&hosts) {
                return;
            }
            assert!(Instant::now() < end, "placement is on {hosts:?}");
            sleep(PAUSE).await;
        }
    }

    async fn join(&mut self, count: usize) -> Vec<NodeId> {
        let added: Vec<usize> = (0..count).map(|_| self.rig.add(TOKEN)).collect();
        for node in &added {
            self.rig.processes.start(*node).unwrap();
        }
        let ready = self.rig.ready(&added).await;
        ready.into_iter().map(|status| status.member.id).collect()
    }
}

fn all_are_small(overview: &Overview, max: u64) -> Result<(), String> {
    for shard in &overview.shards {
        match &shard.report {
            None => return Err(format!("{} has not been reported", shard.shard.id)),
            Some(report) if report.size.bytes >= max => {
                return Err(format!(
                    "{} has {} bytes",
                    shard.shard.id, report.size.bytes
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn is_idle(overview: &Overview) -> Result<(), String> {
    match overview.operators.first() {
        Some(operator) => Err(format!("{} is under way", operator.action)),
        None => Ok(()),
    }
}

fn node(overview: &Overview, id: NodeId) -> &NodeOverview {
    let mut nodes = overview.nodes.iter();
    nodes.find(|node| node.member.id == id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_grow_are_split_and_nodes_that_join_get_their_share() {
    if support::skipped("placement") {
        return;
    }
    let mut scene = Scene::start(
        3,
        &[
            ("split_bytes", "262144"),
            ("replica_bytes", "1024"),
            ("replica_rest", "1s"),
            ("leader_rest", "1s"),
        ],
    )
    .await;
    let writers = support::write(&scene.rig.nodes, "writers/", 21);
    scene.fill("fill/", 1_000).await;
    let split = scene.until_split(1_000).await;
    // 4 MiB in parts of 128 to 256 KiB.
    assert!(split.shards.len() >= 16, "{}", split.shards.len());
    let new = scene.join(2).await;
    let even = scene
        .until("five nodes have their share", |overview| {
            is_idle(overview)?;
            let shares = overview.shares();
            let mean = shares.values().map(|share| share.bytes).sum::<u64>() / 5;
            let off = shares
                .values()
                .find(|share| share.bytes.abs_diff(mean) * 100 > mean * 20);
            match (shares.len(), off) {
                (5, None) => Ok(()),
                _ => Err(format!("{shares:?}")),
            }
        })
        .await;
    for id in new {
        assert!(node(&even, id).replicas > 0);
    }
    let nodes = scene.rig.nodes.clone();
    let history = support::stop_and_verify(writers, "writers/", &nodes).await;
    println!(
        "{} shards on five nodes, {:?}; {:?}",
        even.shards.len(),
        even.shares(),
        history.counts()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_replaced_and_one_that_leaves_is_emptied() {
    if support::skipped("placement") {
        return;
    }
    let rig = Rig::start_made(5, support::SMALL_LOG, |options| {
        let mut processes = Processes::new(options).unwrap();
        for (node, zone) in ZONES.iter().enumerate() {
            processes.give(node, &["--labels", &format!("zone={zone}")]);
        }
        processes
    })
    .await;
    let settings = [("replace_after", "3s"), ("suspect_after", "2s")];
    let mut scene = Scene::of(rig, &settings).await;
    scene.split_at(&["g", "n", "t"]).await;
    let writers = support::write(&scene.rig.nodes, "writers/", 22);
    support::answered(&writers, 50, "at first").await;
    let spread = |overview: &Overview| {
        is_idle(overview)?;
        overview.shards.iter().try_for_each(is_over_three_zones)
    };
    let overview = scene.until("all zones have every shard", spread).await;
    // Not the one in zone c: nobody could take its place there.
    let victim = *holders(&overview)
        .iter()
        .find(|id| zone(**id) != "c")
        .unwrap();
    let old = replicas_on(&overview, victim);
    scene.rig.processes.kill(victim.0 as usize - 1).unwrap();
    let replaced = scene
        .until(
            "the dead node's replicas are elsewhere",
            |overview| match replicas_on(overview, victim).len() {
                0 => spread(overview),
                count => Err(format!("{count} are still there")),
            },
        )
        .await;
    assert_eq!(node(&replaced, victim).health, "dead");
    let is_without = |node, hosts: &BTreeSet<_>| !hosts.contains(&node);
    scene.until_hosts(|hosts| is_without(victim, hosts)).await;
    support::answered(&writers, 50, "without the dead node").await;
    // It comes back, finds that its replicas are none any more, and may hold others.
    scene.rig.processes.start(victim.0 as usize - 1).unwrap();
    scene
        .until("the dead node is back", |overview| {
            match node(overview, victim).health.as_str() {
                "up" => Ok(()),
                health => Err(health.to_owned()),
            }
        })
        .await;
    // The other one of its zone, so that the one that was dead is needed.
    let mut others = (1..=5).map(NodeId).filter(|id| *id != victim);
    let leaving = others.find(|id| zone(*id) == zone(victim)).unwrap();
    let duty = |duty| Arrangement::SetDuty {
        node: leaving,
        duty,
    };
    scene.arrange(duty(Duty::Leave)).await;
    let left = scene
        .until("the leaving node is empty", |overview| {
            let node = node(overview, leaving);
            match (node.replicas, node.leaders) {
                (0, 0) => spread(overview),
                held => Err(format!("{held:?}")),
            }
        })
        .await;
    let again = replicas_on(&left, victim);
    assert!(
        !again.is_empty() && again.is_disjoint(&old),
        "{again:?} of {old:?}"
    );
    scene.until_hosts(|hosts| is_without(leaving, hosts)).await;
    scene.arrange(duty(Duty::Serve)).await;
    support::answered(&writers, 50, "at the end").await;
    let nodes = scene.rig.nodes.clone();
    let history = support::stop_and_verify(writers, "writers/", &nodes).await;
    println!("{:?}", history.counts());
}

/// Where five nodes stand.
const ZONES: [&str; 5] = ["a", "b", "c", "a", "b"];

fn zone(node: NodeId) -> &'static str {
    ZONES[node.0 as usize - 1]
}

/// Whether a shard has three replicas, one in each zone.
fn is_over_three_zones(shard: &ShardOverview) -> Result<(), String> {
    let nodes = shard.shard.replicas.iter().map(|replica| replica.node);
    let zones: BTreeSet<_> = nodes.clone().map(zone).collect();
    match (nodes.count(), zones.len()) {
        (3, 3) => Ok(()),
        _ => Err(format!("{:?}", shard.shard.replicas)),
    }
}

fn holders(overview: &Overview) -> BTreeSet<NodeId> {
    let shards = overview.shards.iter();
    let replicas = shards.flat_map(|shard| &shard.shard.replicas);
    replicas.map(|replica| replica.node).collect()
}

fn replicas_on(overview: &Overview, node: NodeId) -> BTreeSet<ReplicaId> {
    let shards = overview.shards.iter();
    let replicas = shards.flat_map(|shard| shard.shard.replica_on(node));
    replicas.map(|replica| replica.id).collect()
}

/// How long reads and writes go on without placement; `QUORATE_WITHOUT_PLACEMENT_SECONDS` says another time.
const WITHOUT_PLACEMENT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn placement_may_have_nodes_of_its_own_and_data_goes_on_without_them() {
    if support::skipped("placement") {
        return;
    }
    let rig = Rig::start_made(6, support::SMALL_LOG, |options| {
        let mut processes = Processes::new(options).unwrap();
        for node in 0..6 {
            let role = if node < 3 { "data" } else { "placement" };
            processes.give(node, &["--role", role]);
        }
        processes
    })
    .await;
    let mut scene = Scene::of(rig, &[]).await;
    let own = BTreeSet::from([4, 5, 6].map(NodeId));
    scene.until_hosts(|hosts| *hosts == own).await;
    let settled = scene
        .until("the shard is on the nodes for data", |overview| {
            let replicas = overview.shards[0].shard.replicas.iter();
            let nodes: BTreeSet<u64> = replicas.map(|replica| replica.node.0).collect();
            match nodes == BTreeSet::from([1, 2, 3]) {
                true => is_idle(overview),
                false => Err(format!("it is on {nodes:?}")),
            }
        })
        .await;
    let data: Vec<_> = scene.rig.nodes[..3].to_vec();
    let writers = support::write(&data, "alone/", 23);
    support::answered(&writers, 50, "at first").await;
    scene.rig.processes.kill_these(&[3, 4, 5]).unwrap();
    let report = settled.shards[0].report.as_ref().unwrap();
    let leader = settled.shards[0].shard.replicas.iter();
    let mut leader = leader.filter(|replica| replica.id == report.leader);
    let leader = leader.next().unwrap().node.0 as usize - 1;
    scene.rig.processes.kill(leader).unwrap();
    let end = Instant::now() + without_placement();
    let mut rounds = 0;
    while Instant::now() < end || rounds == 0 {
        support::answered(&writers, 50, "without placement and a leader").await;
        // A client without any routes reads and writes.
        let alive: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        let kv = Kv::new(scene.rig.client(&alive));
        let key = Bytes::from(format!("fresh/{rounds}"));
        kv.put(key.clone(), key.clone(), WriteOptions::default())
            .await
            .unwrap();
        let got = kv.get(key.clone(), ReadOptions::default()).await.unwrap();
        assert_eq!(got.found.unwrap().value, key);
        rounds += 1;
    }
    for node in [3, 4, 5, leader] {
        scene.rig.processes.start(node).unwrap();
    }
    scene.rig.ready(&[0, 1, 2, 3, 4, 5]).await;
    scene
        .until("placement is back", |overview| {
            match overview.nodes.iter().find(|node| node.health != "up") {
                Some(node) => Err(format!("{} is {}", node.member.name, node.health)),
                None => Ok(()),
            }
        })
        .await;
    let history = support::stop_and_verify(writers, "alone/", &data).await;
    println!("{rounds} rounds without placement: {:?}", history.counts());
}

fn without_placement() -> Duration {
    let said = std::env::var("QUORATE_WITHOUT_PLACEMENT_SECONDS").ok();
    let seconds = said.map(|said| said.parse().unwrap());
    seconds.map_or(WITHOUT_PLACEMENT, Duration::from_secs)
}

/// Reads keys as fast as they are answered, until it is ended.
struct Load {
    stop: CancellationToken,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(kv: &Kv, keys: &[&str]) -> Load {
        let keys: Vec<Bytes> = keys
            .iter()
            .map(|key| Bytes::from(key.to_string()))
            .collect();
        let stop = CancellationToken::new();
        let reader = |place: usize| {
            let (kv, keys, stop) = (kv.clone(), keys.clone(), stop.clone());
            tokio::spawn(async move {
                for number in place.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    let key = keys[number * 7 % keys.len()].clone();
                    kv.get(key, ReadOptions::default()).await.unwrap();
                }
            })
        };
        Load {
            readers: (0..8).map(reader).collect(),
            stop,
        }
    }

    /// Fails when any read has failed.
    async fn end(self) {
        self.stop.cancel();
        for reader in self.readers {
            reader.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_range_is_split_and_its_leaders_spread_and_one_hot_key_is_not() {
    if support::skipped("placement") {
        return;
    }
    let scene = Scene::start(
        3,
        &[
            ("split_operations", "100"),
            ("split_sustained", "2s"),
            ("leader_rest", "2s"),
        ],
    )
    .await;
    let range: Vec<String> = (0..100).map(|number| format!("busy/{number:02}")).collect();
    let range: Vec<&str> = range.iter().map(String::as_str).collect();
    for key in range.iter().chain(&["one/key"]) {
        let (key, value) = (Bytes::from(key.to_string()), Bytes::from_static(b"v"));
        scene
            .kv
            .put(key, value, WriteOptions::default())
            .await
            .unwrap();
    }
    let load = Load::on(&scene.kv, &range);
    let busy = KeyRange::of_prefix(b"busy/");
    let split = scene
        .until("the busy range is split and led by all", |overview| {
            let shards = overview.shards.iter();
            let shards = shards.filter(|shard| shard.shard.range.overlaps(&busy));
            let leaders: BTreeSet<NodeId> = shards.clone().filter_map(leader_of).collect();
            match (shards.count(), leaders.len()) {
                (4.., 3) => Ok(()),
                found => Err(format!("shards and nodes that lead them: {found:?}")),
            }
        })
        .await;
    load.end().await;
    let count = split.shards.len();
    scene
        .until("the load is over", |overview| {
            let mut loads = overview.shards.iter().flat_map(|shard| &shard.report);
            match loads.all(|report| report.load.operations < 20) {
                true => is_idle(overview),
                false => Err("somebody is busy".to_owned()),
            }
        })
        .await;
    let load = Load::on(&scene.kv, &["one/key"]);
    let mut findings = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !findings
        .iter()
        .any(|text: &String| text.contains("one hot key"))
    {
        assert!(Instant::now() < end, "{findings:?}");
        sleep(PAUSE).await;
        let overview = scene.overview().await;
        let mut shards = overview.shards.iter();
        let shard = shards.find(|shard| shard.shard.range.contains(b"one/key"));
        let id = shard.unwrap().shard.id;
        let explained = scene.admin.explain(id, None).await.unwrap();
        findings = explained
            .findings
            .into_iter()
            .map(|found| found.text)
            .collect();
    }
    load.end().await;
    let overview = scene.overview().await;
    println!(
        "{count} shards after a busy range, {} after one hot key",
        overview.shards.len()
    );
    let holding = overview.shards.iter();
    let holding = holding.filter(|shard| shard.shard.range.overlaps(&KeyRange::of_prefix(b"one/")));
    assert_eq!(
        holding.count(),
        1,
        "the hot key was not parted from its neighbours"
    );
}

fn leader_of(shard: &ShardOverview) -> Option<NodeId> {
    let leader = shard.report.as_ref()?.leader;
    let mut replicas = shard.shard.replicas.iter();
    Some(replicas.find(|replica| replica.id == leader)?.node)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_in_turn_is_drained_and_recommissioned_under_load() {
    if support::skipped("placement") {
        return;
    }
    let scene = Scene::start(4, &[("leader_rest", "1s")]).await;
    scene.split_at(&["g", "n", "t"]).await;
    let writers = support::write(&scene.rig.nodes, "writers/", 24);
    support::answered(&writers, 50, "at first").await;
    let mut slowest = Duration::ZERO;
    for id in (1..=4).map(NodeId) {
        let duty = |duty| Arrangement::SetDuty { node: id, duty };
        let began = Instant::now();
        scene.arrange(duty(Duty::Drain)).await;
        scene
            .until("the node leads nothing", |overview| {
                match node(overview, id).leaders {
                    0 => Ok(()),
                    leaders => Err(format!("{leaders} leaders")),
                }
            })
            .await;
        slowest = slowest.max(began.elapsed());
        scene.arrange(duty(Duty::Leave)).await;
        scene
            .until("the node is empty", |overview| {
                match node(overview, id).replicas {
                    0 => is_idle(overview),
                    replicas => Err(format!("{replicas} replicas")),
                }
            })
            .await;
        scene.arrange(duty(Duty::Serve)).await;
        support::answered(&writers, 20, "between").await;
    }
    let nodes = scene.rig.nodes.clone();
    let history = support::stop_and_verify(writers, "writers/", &nodes).await;
    println!(
        "leaders moved off within {slowest:?}; {:?}",
        history.counts()
    );
}

/// Reads all keys again and again, and each time finds every key that stays, once and in order. Gives how often.
fn scan_for_ever(
    kv: &Kv,
    staying: Vec<Bytes>,
) -> (tokio::task::JoinHandle<u64>, CancellationToken) {
    let (kv, stop) = (kv.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let scanning = tokio::spawn(async move {
        let mut scans = 0;
        while !stopped.is_cancelled() {
            let mut pages = kv.scan(ScanOptions {
                page_keys: 50,
                ..ScanOptions::of(KeyRange::ALL)
            });
            let mut found: Vec<Bytes> = Vec::new();
            while let Some(page) = pages.next().await {
                let items = page.unwrap().items.into_iter();
                found.extend(items.map(|item| item.key));
            }
            assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
            found.retain(|key| key.starts_with(b"stay/"));
            assert_eq!(found, staying);
            scans += 1;
        }
        scans
    });
    (scanning, stop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_emptied_is_merged_beneath_a_writer_and_a_scanner() {
    if support::skipped("placement") {
        return;
    }
    let mut scene = Scene::start(
        3,
        &[
            ("split_bytes", "262144"),
            ("merge_bytes", "0"),
            ("merge_sustained", "2s"),
            ("merge_operations", "1000"),
            ("leader_rest", "1s"),
        ],
    )
    .await;
    let staying: Vec<Bytes> = (0..20)
        .map(|number| format!("stay/{number:02}").into())
        .collect();
    for key in &staying {
        let put = scene
            .kv
            .put(key.clone(), key.clone(), WriteOptions::default());
        put.await.unwrap();
    }
    scene.fill("fill/", 500).await;
    let split = scene.until_split(500).await;
    let before = split.shards.len();
    assert!(before >= 8, "{before}");
    let writers = support::write(&scene.rig.nodes, "writers/", 24);
    support::answered(&writers, 50, "at first").await;
    let (scanning, stop) = scan_for_ever(&scene.kv, staying);
    let mut range = KeyRange::of_prefix(b"fill/");
    loop {
        let deleted = scene
            .kv
            .delete_range(range.clone(), 1_000, WriteOptions::default());
        match deleted.await.unwrap().resume {
            Some(resume) => range.start = resume,
            None => break,
        }
    }
    let merging = Arrangement::SetSetting {
        name: "merge_bytes".to_owned(),
        value: Some("131072".to_owned()),
    };
    scene.arrange(merging).await;
    let is_fewer = |overview: &Overview, most: usize| match overview.shards.len() <= most {
        true => Ok(()),
        false => Err(format!("{} shards", overview.shards.len())),
    };
    scene
        .until("a first merge", |overview| is_fewer(overview, before - 1))
        .await;
    // One leads something at this moment; the others do what it has begun.
    scene.rig.processes.kill(1).unwrap();
    support::answered(&writers, 50, "without a node").await;
    scene.rig.processes.start(1).unwrap();
    scene.rig.ready(&[1]).await;
    let merged = scene
        .until("what is empty is merged", |overview| {
            is_fewer(overview, 2)?;
            is_idle(overview)
        })
        .await;
    support::answered(&writers, 50, "at the end").await;
    stop.cancel();
    let scans = scanning.await.unwrap();
    let nodes = scene.rig.nodes.clone();
    let history = support::stop_and_verify(writers, "writers/", &nodes).await;
    println!(
        "{before} shards became {}; {scans} scans; {:?}",
        merged.shards.len(),
        history.counts()
    );
}
