//! One shard becomes many while it is written, scanned and its nodes are killed.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::testkit::workload::Workload;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::request::Call;
use quorate::wire::request::NodeStatus;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Scan;
use quorate::wire::request::SplitShard;
use support::READY;
use support::Rig;

const SHARDS: usize = 64;
const CONSTANTS: usize = 2_000;
const SCANNERS: usize = 3;
/// Some two hundred replicas of a debug build on few cores: an election must be the work of a kill.
const PATIENT: &[&str] = &[
    "--heartbeat-interval=300ms",
    "--election-timeout-min=1s",
    "--election-timeout-max=1500ms",
];
const BETWEEN_KILLS: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn one_shard_becomes_64_under_writers_scanners_and_kills() {
    let mut rig = Rig::start(&[support::SMALL_LOG, PATIENT].concat()).await;
    put_constants(&rig.nodes).await;
    let options = workload::Options {
        keys: 64,
        ..support::writers("fire/", 7)
    };
    let writers = Workload::start(&rig.nodes, &options, &support::ids());
    let stop = Arc::new(AtomicBool::new(false));
    let scans = Arc::new(AtomicUsize::new(0));
    let scanners: Vec<_> = (0..SCANNERS)
        .map(|number| {
            tokio::spawn(scan_until(
                rig.nodes.clone(),
                number,
                stop.clone(),
                scans.clone(),
            ))
        })
        .collect();
    let splitter = tokio::spawn(split_until(rig.nodes.clone(), SHARDS));

    let mut kills = 0;
    while !splitter.is_finished() || kills < 10 {
        let victim = chance(kills) % 3;
        rig.processes.kill(victim).unwrap();
        tokio::time::sleep(BETWEEN_KILLS / 2).await;
        rig.processes.start(victim).unwrap();
        tokio::time::sleep(BETWEEN_KILLS / 2).await;
        kills += 1;
    }
    splitter.await.unwrap();
    support::answered(&writers, 100, "after the last split").await;
    stop.store(true, Ordering::Relaxed);
    for scanner in scanners {
        scanner.await.unwrap();
    }
    let history = support::stop_and_verify(writers, "fire/", &rig.nodes).await;
    let scans = scans.load(Ordering::Relaxed);
    println!(
        "{SHARDS} shards, {kills} kills, {scans} scans, {:?}",
        history.counts()
    );
    assert!(scans > 0, "no scan came to its end");
    assert_covered(&mut rig).await;
}

/// The shards as every node knows them come to cover the key space without gap or overlap.
async fn assert_covered(rig: &mut Rig) {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let statuses = rig.ready(&[0, 1, 2]).await;
        let counts: Vec<usize> = statuses.iter().map(|status| ranges(status).len()).collect();
        if counts.iter().all(|count| *count == SHARDS) {
            return statuses
                .iter()
                .for_each(|status| assert_seamless(&ranges(status)));
        }
        // A node that was down is still applying splits.
        assert!(
            tokio::time::Instant::now() < deadline,
            "{counts:?} of {SHARDS} shards"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn ranges(status: &NodeStatus) -> Vec<KeyRange> {
    let shards = status.groups.iter().filter_map(|group| group.shard.clone());
    let mut ranges: Vec<KeyRange> = shards.map(|shard| shard.range).collect();
    ranges.sort_by(|left, right| left.start.cmp(&right.start));
    ranges
}

fn assert_seamless(ranges: &[KeyRange]) {
    assert!(ranges[0].start.is_empty() && ranges.last().unwrap().end.is_none());
    for pair in ranges.windows(2) {
        assert_eq!(pair[0].end.as_ref(), Some(&pair[1].start));
    }
}

fn constant(number: usize) -> Key {
    Bytes::from(format!("constant/{number:05}"))
}

async fn put_constants(nodes: &Nodes) {
    for first in (0..CONSTANTS).step_by(100) {
        let put = |number| Operation::Put {
            key: constant(number),
            value: Bytes::from(vec![b'c'; 200]),
        };
        let write = Request::Write(Write {
            id: support::ids()(),
            kind: WriteKind::Keys {
                conditions: Vec::new(),
                operations: (first..first + 100).map(put).collect(),
            },
        });
        nodes[0].call(call(write, READY)).await.unwrap();
    }
}

/// Scans everything again and again: all keys in order, each constant once.
async fn scan_until(nodes: Nodes, number: usize, stop: Arc<AtomicBool>, scans: Arc<AtomicUsize>) {
    // A follower's own view may go back when its node is killed, and promises nothing of this.
    let read = ReadKind::Linearizable;
    let mut node = number;
    while !stop.load(Ordering::Relaxed) {
        match scan_all(&nodes, node, read).await {
            Some(keys) => {
                assert!(
                    keys.windows(2).all(|pair| pair[0] < pair[1]),
                    "out of order or twice"
                );
                let constants = keys.iter().filter(|key| key.starts_with(b"constant/"));
                assert!(constants.eq((0..CONSTANTS).map(constant).collect::<Vec<_>>().iter()));
                scans.fetch_add(1, Ordering::Relaxed);
            }
            // The node is down, or the history that the scan needs has been collected.
            None => node += 1,
        }
    }
}

/// Every key, in portions; `None` when a portion is not to be had.
async fn scan_all(nodes: &Nodes, node: usize, read: ReadKind) -> Option<Vec<Key>> {
    let (mut keys, mut rest, mut cut) = (Vec::new(), Some(KeyRange::ALL), None);
    let mut turn = node;
    let mut failures = 0;
    while let Some(range) = rest.clone() {
        let scan = Scan {
            range,
            keys_max: 97,
            bytes_max: 1024 * 1024,
            reverse: false,
            keys_only: true,
            read,
            cut: cut.clone(),
        };
        match nodes[turn % 3]
            .call(call(Request::Scan(scan), Duration::from_secs(2)))
            .await
        {
            Ok(Response::Scan(page)) => {
                keys.extend(page.items.into_iter().map(|item| item.key));
                cut = page.rest_cut;
                rest = page.rest;
                failures = 0;
            }
            Ok(other) => panic!("a scan was answered {other:?}"),
            Err(_) if failures > 200 => return None,
            Err(_) => {
                failures += 1;
                turn += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    Some(keys)
}

/// Splits at keys drawn by chance until there are so many shards.
async fn split_until(nodes: Nodes, shards: usize) {
    let mut ends = BTreeSet::new();
    for draw in 0.. {
        if ends.len() + 1 >= shards {
            return;
        }
        let at = drawn_key(draw);
        if !ends.contains(&at) && split_at(&nodes, &at, draw).await {
            ends.insert(at);
        }
    }
}

fn drawn_key(draw: usize) -> Key {
    let number = chance(draw + 1_000);
    match number % 2 {
        0 => constant(number / 2 % CONSTANTS),
        _ => Bytes::from(format!(
            "fire/w{:02}/k{:03}",
            number / 2 % 8,
            number / 16 % 64
        )),
    }
}

/// Splits the shard that holds the key there, through whichever node; true when a shard begins there.
async fn split_at(nodes: &Nodes, at: &Key, draw: usize) -> bool {
    for attempt in 0..1_000 {
        let node = &nodes[(draw + attempt) % 3];
        let Some(shard) = shard_of(nodes, at).await else {
            continue;
        };
        if shard.range.start == *at {
            return true;
        }
        let split = Request::SplitShard(SplitShard {
            shard: shard.id,
            at: at.clone(),
        });
        match node.call(call(split, Duration::from_secs(2))).await {
            Ok(Response::SplitShard { right, .. }) => return right.range.start == *at,
            Ok(other) => panic!("a split was answered {other:?}"),
            // Whoever told of the shard knew an older state of it, or the node is down: look again.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    false
}

/// The newest descriptor, as any node knows it, of the shard that holds a key.
async fn shard_of(nodes: &Nodes, key: &Key) -> Option<ShardDescriptor> {
    let mut newest: Option<ShardDescriptor> = None;
    for node in nodes {
        let query = Request::Status(Default::default());
        let Ok(Response::Status(status)) = node.call(call(query, Duration::from_secs(2))).await
        else {
            continue;
        };
        let shards = status.groups.into_iter().filter_map(|group| group.shard);
        for shard in shards.filter(|shard| shard.range.contains(key)) {
            if newest
                .as_ref()
                .is_none_or(|known| known.epoch.bounds < shard.epoch.bounds)
            {
                newest = Some(shard);
            }
        }
    }
    newest
}

fn call(request: Request, deadline: Duration) -> Call {
    Call {
        request,
        deadline,
        forwarded: false,
        cluster: None,
    }
}

/// Repeatable chance: splitmix64.
fn chance(number: usize) -> usize {
    let mut mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as usize >> 1
}
