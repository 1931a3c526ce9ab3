//! The client against a cluster in memory that goes wrong as told. Time is tokio's, and paused: a
//! deadline of ten seconds passes at once.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fake;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fake::Cluster;
use fake::Fault;
use fake::START_MS;
use futures::StreamExt;
use proptest::prelude::*;
use quorate::client::Admin;
use quorate::client::Kv;
use quorate::client::RequestIds;
use quorate::client::Sender;
use quorate::client::kv::Outcome;
use quorate::client::kv::ReadOptions;
use quorate::client::kv::ScanOptions;
use quorate::client::kv::WriteOptions;
use quorate::client::retry;
use quorate::client::sender::Options;
use quorate::error::Effect;
use quorate::error::Error;
use quorate::types::GroupId;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::request::Condition;
use quorate::types::request::Operation;
use tokio::time::Instant;

const SHARD: GroupId = GroupId::Shard(ShardId(1));

/// Different ids each time, at the time given.
fn ids(wall_ms: u64) -> Arc<RequestIds> {
    let count = AtomicU64::new(0);
    Arc::new(RequestIds::new(
        move || wall_ms,
        move || {
            let mut bytes = [0; 10];
            bytes[2..].copy_from_slice(&count.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            bytes
        },
    ))
}

fn sender(cluster: &Cluster, endpoints: &str) -> Arc<Sender> {
    let endpoints = endpoints.split(',').map(String::from).collect();
    let channel = Arc::new(cluster.clone());
    let sender = Sender::new(channel, endpoints, ids(START_MS), Options::default());
    Arc::new(sender.unwrap())
}

fn kv(cluster: &Cluster, endpoints: &str) -> Kv {
    Kv::new(sender(cluster, endpoints))
}

fn all(cluster: &Cluster) -> Kv {
    kv(cluster, "n1:7400,n2:7400,n3:7400")
}

async fn put(kv: &Kv, key: &'static str) -> Result<RequestId, Error> {
    let value = Bytes::from_static(b"value");
    let written = kv.put(
        Bytes::from_static(key.as_bytes()),
        value,
        WriteOptions::default(),
    );
    Ok(written.await?.id)
}

async fn get(kv: &Kv, key: &'static str) -> Result<Option<Bytes>, Error> {
    let found = kv.get(Bytes::from_static(key.as_bytes()), ReadOptions::default());
    Ok(found.await?.found.map(|versioned| versioned.value))
}

fn not_leader(leader: Option<u64>) -> Error {
    Error::NotLeader {
        group: SHARD,
        leader: leader.map(NodeId),
    }
}

fn no_space() -> Error {
    Error::NoSpace { free_bytes: 7 }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_got_with_its_version() {
    let cluster = Cluster::new();
    let kv = all(&cluster);
    assert_eq!(get(&kv, "a").await, Ok(None));
    let value = Bytes::from_static(b"1");
    let written = kv.put("a".into(), value.clone(), WriteOptions::default());
    let Outcome::Done { version, .. } = written.await.unwrap().outcome else {
        panic!("no condition, so none can fail");
    };
    let found = kv.get("a".into(), ReadOptions::default()).await.unwrap();
    let versioned = found.found.unwrap();
    assert_eq!((versioned.value, versioned.version), (value, version));
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_is_passed_by_without_a_wait_and_not_asked_again() {
    let cluster = Cluster::new();
    cluster.state().down.insert(1);
    cluster.state().leader = Some(2);
    let kv = all(&cluster);
    let started = Instant::now();
    put(&kv, "a").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(5));
    put(&kv, "b").await.unwrap();
    assert_eq!(cluster.take_calls(), "n1 write n2 write n2 status n2 write");
}

#[tokio::test(start_paused = true)]
async fn while_there_is_no_leader_a_write_is_tried_until_there_is_one() {
    let cluster = Cluster::new();
    cluster.state().leader = None;
    let kv = all(&cluster);
    let election = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.state().leader = Some(3);
    };
    let (result, ()) = tokio::join!(put(&kv, "a"), election);
    assert!(result.is_ok());
    let calls = cluster.take_calls().matches("write").count();
    assert!((6..30).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_sent_again_under_its_id_and_happens_once() {
    let cluster = Cluster::new();
    cluster.fault(1, Fault::LoseAnswer);
    let id = put(&all(&cluster), "a").await.unwrap();
    assert_eq!(cluster.take_calls(), "n1 write n2 write");
    assert_eq!(cluster.state().versions, [("a".into(), id)]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_never_answered_ends_as_unknown_at_its_deadline() {
    let cluster = Cluster::new();
    cluster.state().every_write = Some(Fault::LoseAnswer);
    let kv = all(&cluster);
    let started = Instant::now();
    let error = put(&kv, "a").await.unwrap_err();
    let Error::Unknown { request, .. } = error else {
        panic!("{error}");
    };
    assert!((9..11).contains(&started.elapsed().as_secs()));
    assert_eq!(cluster.state().versions, [("a".into(), request)]);
    // The same id learns the outcome.
    cluster.state().every_write = None;
    let options = WriteOptions {
        id: Some(request),
        deadline: None,
    };
    let written = kv.put("a".into(), "value".into(), options).await.unwrap();
    assert_eq!(written.id, request);
    assert_eq!(cluster.state().versions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_an_uncertain_attempt_is_unknown() {
    let cluster = Cluster::new();
    cluster.fault(1, Fault::LoseAnswer);
    cluster.fault(2, Fault::Refuse(no_space()));
    let error = put(&all(&cluster), "a").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("no space"));
}

#[tokio::test(start_paused = true)]
async fn what_certainly_did_not_happen_is_not_called_unknown() {
    let cluster = Cluster::new();
    cluster.state().down.extend([1, 2, 3]);
    let error = put(&all(&cluster), "a").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");

    let cluster = Cluster::new();
    cluster.fault(1, Fault::Refuse(no_space()));
    assert_eq!(put(&all(&cluster), "a").await, Err(no_space()));
    assert_eq!(cluster.take_calls(), "n1 write");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_answered_is_asked_elsewhere_and_ends_as_a_time_out() {
    let cluster = Cluster::new();
    cluster.store("a", "1");
    cluster.fault(1, Fault::Hang);
    let kv = all(&cluster);
    assert_eq!(get(&kv, "a").await, Ok(Some("1".into())));
    for node in [1, 2, 3] {
        for _ in 0..20 {
            cluster.fault(node, Fault::Hang);
        }
    }
    let error = get(&kv, "a").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_a_node_without_a_known_address_asks_for_it() {
    let cluster = Cluster::new();
    cluster.state().leader = Some(3);
    cluster.fault(1, Fault::Refuse(not_leader(Some(3))));
    let kv = kv(&cluster, "n1:7400");
    put(&kv, "a").await.unwrap();
    assert_eq!(cluster.take_calls(), "n1 write n1 status n3 write");
}

#[tokio::test(start_paused = true)]
async fn after_the_first_answer_the_leader_is_asked_and_a_new_one_is_found() {
    let cluster = Cluster::new();
    cluster.state().leader = Some(2);
    let kv = kv(&cluster, "n1:7400");
    for _ in 0..3 {
        put(&kv, "a").await.unwrap();
    }
    assert_eq!(cluster.take_calls(), "n1 write n1 status n2 write n2 write");
    cluster.state().leader = Some(3);
    for _ in 0..2 {
        put(&kv, "a").await.unwrap();
    }
    assert_eq!(cluster.take_calls(), "n2 write n3 write");
    cluster.state().down.insert(3);
    cluster.state().leader = Some(2);
    for _ in 0..2 {
        put(&kv, "a").await.unwrap();
    }
    assert_eq!(cluster.take_calls(), "n3 write n1 write n2 write");
}

#[tokio::test(start_paused = true)]
async fn a_reader_follows_the_leader_though_whoever_led_goes_on_to_answer() {
    let cluster = Cluster::new();
    let kv = kv(&cluster, "n1:7400");
    for _ in 0..3 {
        get(&kv, "a").await.unwrap();
    }
    assert_eq!(cluster.take_calls(), "n1 get n1 status n1 get n1 get");
    cluster.state().leader = Some(3);
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..3 {
        get(&kv, "a").await.unwrap();
    }
    assert_eq!(cluster.take_calls(), "n1 get n1 status n3 get n3 get");
}

#[tokio::test(start_paused = true)]
async fn where_a_shard_is_that_the_node_asked_has_not_is_learned_from_what_it_has_heard() {
    let cluster = Cluster::new();
    cluster.add_node();
    let kv = kv(&cluster, "n4:7400");
    for _ in 0..3 {
        get(&kv, "a").await.unwrap();
    }
    let calls = "n4 get n4 status n4 locate n1 get n1 get";
    assert_eq!(cluster.take_calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_tried_again_at_the_same_node_after_the_time_it_asked_for() {
    let cluster = Cluster::new();
    let full = Error::Overloaded {
        queue: "proposals".into(),
        retry_after: Duration::from_millis(300),
    };
    cluster.fault(1, Fault::Refuse(full));
    let started = Instant::now();
    put(&all(&cluster), "a").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(cluster.take_calls(), "n1 write n1 write");
}

#[tokio::test(start_paused = true)]
async fn ids_are_made_on_the_clusters_clock_once_it_is_known() {
    let cluster = Cluster::new();
    let kv = all(&cluster);
    cluster.state().stamp = Timestamp::from_wall(START_MS + 3_600_000);
    assert_eq!(put(&kv, "a").await.unwrap().wall_ms(), START_MS);
    let wall_ms = put(&kv, "b").await.unwrap().wall_ms();
    assert_eq!(wall_ms, START_MS + 3_600_000);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_clock_is_far_ahead_learns_it_from_the_refusal() {
    let cluster = Cluster::new();
    let wait = Duration::from_secs(3_600);
    cluster.fault(1, Fault::Refuse(Error::ClockAhead { wait }));
    let kv = all(&cluster);
    assert_eq!(put(&kv, "a").await, Err(Error::ClockAhead { wait }));
    let wall_ms = put(&kv, "a").await.unwrap().wall_ms();
    assert_eq!(wall_ms, START_MS - 3_600_000);

    assert!(get(&kv, "a").await.unwrap().is_some());
    assert_eq!(cluster.take_calls(), "n1 write n1 write n1 status n1 get");
    // A short wait is waited, and the same id sent again: a new one could let both happen.
    let wait = Duration::from_secs(2);
    cluster.fault(1, Fault::Refuse(Error::ClockAhead { wait }));
    let before = Instant::now();
    put(&kv, "b").await.unwrap();
    assert!(before.elapsed() >= wait);
    assert_eq!(cluster.take_calls(), "n1 write n1 write");
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_fails_is_an_outcome_and_not_an_error() {
    let cluster = Cluster::new();
    cluster.store("a", "1");
    let kv = all(&cluster);
    let condition = Condition::Version {
        key: "a".into(),
        version: Timestamp::ZERO,
    };
    let delete = Operation::Delete { key: "a".into() };
    let written = kv.write(vec![condition], vec![delete], WriteOptions::default());
    let outcome = written.await.unwrap().outcome;
    let Outcome::ConditionFailed {
        condition: 0,
        actual,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(actual > Timestamp::ZERO);
}

async fn scanned(kv: &Kv, options: ScanOptions) -> Vec<String> {
    let mut keys = Vec::new();
    let mut pages = kv.scan(options);
    while let Some(page) = pages.next().await {
        for item in page.unwrap().items {
            keys.push(String::from_utf8(item.key.to_vec()).unwrap());
        }
    }
    keys
}

#[tokio::test(start_paused = true)]
async fn a_scan_comes_in_portions_as_of_one_moment_and_stops_at_its_limit() {
    let cluster = Cluster::new();
    for number in 0..25 {
        cluster.store(format!("k{number:02}"), "v");
    }
    let kv = all(&cluster);
    let mut options = ScanOptions::of(KeyRange::ALL);
    options.page_keys = 10;
    let keys = scanned(&kv, options.clone()).await;
    assert_eq!((keys.len(), cluster.state().pages), (25, 3));
    assert!(keys.is_sorted());

    options.reverse = true;
    options.limit = Some(12);
    let keys = scanned(&kv, options.clone()).await;
    assert_eq!(
        (keys.len(), keys[0].as_str(), keys[11].as_str()),
        (12, "k24", "k13")
    );

    let stamps = kv.scan(options).map(|page| page.unwrap().as_of);
    let stamps: Vec<Timestamp> = stamps.collect().await;
    assert!(stamps.len() == 2 && stamps[0] == stamps[1]);
}

/// A cluster of the keys k00 to k29 in portions of ten, whose shards are cut before the pages given.
fn cut_while_read(cuts: &[(u64, &str)]) -> (Cluster, ScanOptions) {
    let cluster = Cluster::new();
    for number in 0..30 {
        cluster.store(format!("k{number:02}"), "v");
    }
    for (page, at) in cuts {
        let at = Bytes::copy_from_slice(at.as_bytes());
        let mut state = cluster.state();
        state.cuts.entry(*page).or_default().push(at);
    }
    let mut options = ScanOptions::of(KeyRange::ALL);
    options.page_keys = 10;
    (cluster, options)
}

#[tokio::test(start_paused = true)]
async fn a_scan_over_shards_is_a_cut_of_each() {
    let (cluster, options) = cut_while_read(&[]);
    cluster.split("k15");
    cluster.split("x");
    let kv = all(&cluster);
    for reverse in [false, true] {
        let mut options = options.clone();
        options.reverse = reverse;
        let pages: Vec<_> = kv.scan(options).map(Result::unwrap).collect().await;
        let shards = pages
            .iter()
            .map(|page| (page.answered.shard.0, page.items.len()));
        let mut expected = [(1, 10), (1, 5), (2, 10), (2, 5), (3, 0)];
        if reverse {
            expected = [(3, 0), (2, 10), (2, 5), (1, 10), (1, 5)];
        }
        assert_eq!(shards.collect::<Vec<_>>(), expected);
        for pair in pages.windows(2) {
            let is_one_cut = pair[0].as_of == pair[1].as_of;
            assert_eq!(is_one_cut, pair[0].answered.shard == pair[1].answered.shard);
        }
        assert!(pages[4].rest.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn batch_get_asks_each_shard_once_and_answers_in_the_order_asked() {
    let cluster = Cluster::new();
    cluster.split("m");
    for key in ["a", "b", "x"] {
        cluster.store(key, key);
    }
    cluster.state().leaders.insert(2, 3);
    let kv = kv(&cluster, "n1:7400");
    let keys = ["x", "a", "none", "b", "x"].map(Bytes::from);
    for calls in ["n1 batch-get", "n1 status n3 batch-get n1 batch-get"] {
        let found = kv.batch_get(keys.to_vec(), ReadOptions::default());
        let found = found.await.unwrap();
        let values = found.found.into_iter();
        let values: Vec<_> = values.map(|found| found.map(|one| one.value)).collect();
        let expected =
            ["x", "a", "", "b", "x"].map(|value| (!value.is_empty()).then(|| value.into()));
        assert_eq!(values, expected);
        let mut shards: Vec<u64> = found.answered.iter().map(|one| one.shard.0).collect();
        shards.sort_unstable();
        assert_eq!(shards, [1, 2]);
        assert_eq!(cluster.take_calls(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_split_each_half_is_asked_at_its_own_leader() {
    let cluster = Cluster::new();
    let kv = kv(&cluster, "n1:7400");
    for _ in 0..2 {
        put(&kv, "x").await.unwrap();
    }
    cluster.take_calls();
    cluster.split("m");
    cluster.state().leaders.insert(2, 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        put(&kv, "x").await.unwrap();
    }
    put(&kv, "a").await.unwrap();
    let calls = "n1 write n1 status n3 write n3 write n1 write";
    assert_eq!(cluster.take_calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn all_nodes_together_know_the_shards() {
    let cluster = Cluster::new();
    cluster.split("m");
    cluster.split("c");
    cluster.state().leaders.insert(3, 2);
    let admin = Admin::new(sender(&cluster, "n1:7400"));
    let shards = admin.shards(Duration::from_secs(1)).await.unwrap();
    let seen = shards.iter().map(|view| (view.shard.id.0, view.leader));
    let expected = [(1, 1), (3, 2), (2, 1)].map(|(id, leader)| (id, Some(NodeId(leader))));
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    let (left, right) = admin
        .split_shard(ShardId(2), "x".into(), None)
        .await
        .unwrap();
    assert_eq!(left.range.end.as_deref(), Some(&b"x"[..]));
    assert_eq!((right.id, right.range.end), (ShardId(4), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn whatever_splits_while_it_is_read_each_key_comes_once_and_in_order(
        cuts in prop::collection::vec((0..8u64, 0..32u8), 0..12),
        reverse: bool,
        bounds in (0..32u8, 0..32u8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let cuts: Vec<_> = cuts.into_iter().map(|(page, at)| (page, format!("k{at:02}"))).collect();
        let cuts: Vec<_> = cuts.iter().map(|(page, at)| (*page, at.as_str())).collect();
        let (cluster, mut options) = cut_while_read(&cuts);
        let (start, end) = (bounds.0.min(bounds.1), bounds.0.max(bounds.1));
        options.page_keys = 4;
        options.reverse = reverse;
        options.range = KeyRange {
            start: format!("k{start:02}").into(),
            end: (end < 31).then(|| format!("k{end:02}").into()),
        };
        let end = if end < 31 { end } else { 30 };
        let mut expected: Vec<_> = (start..end).map(|number| format!("k{number:02}")).collect();
        expected.truncate(expected.iter().filter(|key| key.as_str() < "k30").count());
        if reverse {
            expected.reverse();
        }
        prop_assert_eq!(runtime.block_on(scanned(&all(&cluster), options)), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_asks_for_the_next_portion_only_when_the_last_was_taken() {
    let cluster = Cluster::new();
    for number in 0..100 {
        cluster.store(format!("k{number:02}"), "v");
    }
    let mut options = ScanOptions::of(KeyRange::ALL);
    options.page_keys = 10;
    let mut pages = all(&cluster).scan(options);
    pages.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.state().pages, 1);
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_fails_ends_with_the_error() {
    let cluster = Cluster::new();
    cluster.store("a", "1");
    cluster.fault(1, Fault::Refuse(Error::invalid("range", "is wrong")));
    let pages: Vec<_> = all(&cluster)
        .scan(ScanOptions::of(KeyRange::ALL))
        .collect()
        .await;
    assert_eq!(pages, [Err(Error::invalid("range", "is wrong"))]);
}

#[tokio::test(start_paused = true)]
async fn a_range_is_removed_portion_by_portion() {
    let cluster = Cluster::new();
    for number in 0..5 {
        cluster.store(format!("k{number}"), "v");
    }
    let kv = all(&cluster);
    let options = WriteOptions::default();
    let first = kv.delete_range(KeyRange::ALL, 3, options).await.unwrap();
    assert_eq!((first.deleted, first.resume), (3, Some("k3".into())));
    let second = kv.delete_range(KeyRange::ALL, 3, options).await.unwrap();
    assert_eq!((second.deleted, second.resume), (2, None));
    assert_ne!(first.id, second.id);
}

#[tokio::test(start_paused = true)]
async fn the_whole_cluster_is_found_from_one_address_and_silence_is_named() {
    let cluster = Cluster::new();
    cluster.state().down.insert(2);
    let admin = Admin::new(sender(&cluster, "n1:7400"));
    let seen = admin.cluster(Duration::from_secs(1)).await.unwrap();
    let nodes: Vec<u64> = seen.nodes.keys().map(|node| node.0).collect();
    let silent: Vec<u64> = seen.silent.keys().map(|node| node.0).collect();
    assert_eq!((nodes, silent), (vec![1, 3], vec![2]));
    admin
        .transfer_leader(SHARD, Some(NodeId(3)), None)
        .await
        .unwrap();
    assert_eq!(cluster.state().leader, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_replica_of_placement_does_not_end_the_transfer_of_its_leader() {
    let cluster = Cluster::new();
    let what = GroupId::Placement.to_string();
    cluster.fault(1, Fault::Refuse(Error::NotFound { what }));
    let admin = Admin::new(sender(&cluster, "n1:7400,n2:7400,n3:7400"));
    let to = Some(NodeId(3));
    let transferred = admin.transfer_leader(GroupId::Placement, to, None).await;
    assert_eq!(transferred, Ok(()));
    assert_eq!(cluster.take_calls(), "n1 transfer n2 transfer");
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::LoseAnswer),
        Just(Fault::Hang),
        Just(Fault::Refuse(no_space())),
        Just(Fault::Refuse(Error::invalid("value", "is wrong"))),
        Just(Fault::Refuse(Error::unavailable("s1", "it has no leader"))),
        Just(Fault::Refuse(not_leader(None))),
        (1..4u64).prop_map(|node| Fault::Refuse(not_leader(Some(node)))),
        Just(Fault::Refuse(Error::Internal("broken".into()))),
        Just(Fault::Refuse(Error::Timeout {
            what: "the write".into(),
            after: Duration::from_secs(1),
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_goes_wrong_a_write_happens_once_and_a_no_means_no(
        faults in prop::collection::vec((1..4u64, any_fault()), 0..12),
        endless in prop::option::of(any_fault()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let cluster = Cluster::new();
        for (node, fault) in faults {
            cluster.fault(node, fault);
        }
        cluster.state().every_write = endless;
        let kv = all(&cluster);
        let result = runtime.block_on(put(&kv, "a"));
        let versions = cluster.state().versions.clone();
        match result {
            Ok(id) => prop_assert_eq!(versions, vec![("a".into(), id)]),
            Err(error) if error.effect() == Effect::None => {
                prop_assert!(versions.is_empty(), "{error}, and yet it happened");
                prop_assert!(!retry::may_have_happened(&error));
            }
            Err(_) => prop_assert!(versions.len() <= 1),
        }
    }
}
