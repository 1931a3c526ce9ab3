//! Keyspaces of a real cluster: three processes, several shards, every kind of request through every node.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use quorate::client::Admin;
use quorate::client::Kv;
use quorate::client::kv::Outcome;
use quorate::client::kv::ReadOptions;
use quorate::client::kv::ScanOptions;
use quorate::client::kv::WriteOptions;
use quorate::error::Error;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::Timestamp;
use quorate::types::keyspace::Buckets;
use quorate::types::keyspace::Keyspace;
use quorate::types::keyspace::Layout;
use quorate::types::overview::Arrangement;
use quorate::types::request::Condition;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::wire::proto::v1;
use quorate::wire::proto::v1::kv_client::KvClient;
use quorate::wire::request::Page;
use support::READY;
use support::Rig;

const KEYS: usize = 60;

fn kv(rig: &Rig, node: usize) -> Kv {
    Kv::new(rig.client(&[node % 3]))
}

fn within(rig: &Rig, node: usize, keyspace: &str) -> Kv {
    kv(rig, node).within(keyspace.parse().unwrap())
}

fn hash(name: &str, count: u32, parts: u32) -> Keyspace {
    let layout = Layout::Hash(Buckets { count, parts });
    Keyspace::new(name.parse().unwrap(), None, layout).unwrap()
}

fn ordered(name: &str) -> Keyspace {
    Keyspace::new(name.parse().unwrap(), None, Layout::Ordered).unwrap()
}

async fn create(rig: &Rig, keyspace: Keyspace) -> Result<(), Error> {
    let admin = Admin::new(rig.client(&[0]));
    let create = Arrangement::CreateKeyspace(keyspace);
    admin.arrange(create, None).await
}

async fn delete(rig: &Rig, name: &str) -> Result<(), Error> {
    let admin = Admin::new(rig.client(&[1]));
    let name = name.parse().unwrap();
    let delete = Arrangement::DeleteKeyspace { name };
    admin.arrange(delete, None).await
}

/// Waits until shards begin wherever parts do.
async fn parted(rig: &Rig, keyspace: &Keyspace) {
    let admin = Admin::new(rig.client(&[0]));
    let end = tokio::time::Instant::now() + READY;
    loop {
        let shards = admin.shards(Duration::from_secs(2)).await.unwrap();
        let starts: BTreeSet<Key> = shards.into_iter().map(|it| it.shard.range.start).collect();
        if keyspace.bounds().iter().all(|bound| starts.contains(bound)) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{starts:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn key(number: usize) -> Key {
    Key::from(format!("k{number:03}"))
}

fn keys(numbers: impl IntoIterator<Item = usize>) -> Vec<Key> {
    numbers.into_iter().map(key).collect()
}

/// The same keys everywhere, each with the place's name as value, entered at each node in turn.
async fn fill(place: &'static str, of: impl Fn(usize) -> Kv) {
    for number in 0..KEYS {
        let kv = of(number);
        let written = kv.put(key(number), place.into(), WriteOptions::default());
        let outcome = written.await.unwrap().outcome;
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }
}

async fn get(kv: &Kv, key: Key) -> Result<Option<Bytes>, Error> {
    let found = kv.get(key, ReadOptions::default()).await?.found;
    Ok(found.map(|versioned| versioned.value))
}

fn scan(range: KeyRange, reverse: bool) -> ScanOptions {
    ScanOptions {
        reverse,
        page_keys: 7,
        ..ScanOptions::of(range)
    }
}

async fn pages(kv: &Kv, options: ScanOptions) -> Vec<Page> {
    let pages: Vec<_> = kv.scan(options).collect().await;
    pages.into_iter().map(Result::unwrap).collect()
}

async fn scanned(kv: &Kv, options: ScanOptions) -> Vec<Key> {
    let pages = pages(kv, options).await.into_iter();
    let items = pages.flat_map(|page| page.items);
    items.map(|item| item.key).collect()
}

fn sorted(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort();
    keys
}

fn some(from: usize, to: usize) -> KeyRange {
    KeyRange {
        start: key(from),
        end: Some(key(to)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_is_about_the_keys_of_the_keyspace_alone() {
    let rig = Rig::start(&[]).await;
    let orders = hash("orders", 16, 4);
    create(&rig, ordered("users")).await.unwrap();
    create(&rig, orders.clone()).await.unwrap();
    create(&rig, orders.clone()).await.unwrap();
    fill("raw", |node| kv(&rig, node)).await;
    for place in ["users", "orders"] {
        fill(place, |node| within(&rig, node, place)).await;
    }
    parted(&rig, &orders).await;
    for place in ["users", "orders"] {
        for number in 0..KEYS {
            let found = get(&within(&rig, number + 1, place), key(number)).await;
            assert_eq!(found, Ok(Some(place.into())));
        }
        let options = ReadOptions::default();
        let kv = within(&rig, 2, place);
        let all = kv.batch_get(keys(0..KEYS + 1), options);
        let found = all.await.unwrap().found;
        let found = found.into_iter().map(|it| it.map(|it| it.value));
        let expected = (0..=KEYS).map(|number| (number < KEYS).then(|| Bytes::from(place)));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
    scans_of_an_ordered_keyspace(&rig).await;
    scans_of_a_hash_keyspace(&rig).await;
    streamed_scans(&rig).await;
    conditions(&rig).await;
    limits(&rig, &orders).await;
    ranges_are_removed(&rig).await;
    for number in 0..KEYS {
        assert_eq!(get(&kv(&rig, 0), key(number)).await, Ok(Some("raw".into())));
    }
    names_are_used_once(&rig).await;
}

async fn scans_of_an_ordered_keyspace(rig: &Rig) {
    let users = within(rig, 1, "users");
    let all = keys(0..KEYS);
    assert_eq!(scanned(&users, scan(KeyRange::ALL, false)).await, all);
    let backwards: Vec<Key> = all.into_iter().rev().collect();
    assert_eq!(scanned(&users, scan(KeyRange::ALL, true)).await, backwards);
    let part = keys((10..35).rev());
    assert_eq!(scanned(&users, scan(some(10, 35), true)).await, part);
    let pages = pages(&users, scan(some(10, 35), false)).await;
    assert!(pages.iter().all(|page| page.unordered.is_none()));
    let rest = pages[0].rest.clone().unwrap();
    assert!(rest.start > key(16) && rest.end == Some(key(35)), "{rest}");
}

async fn scans_of_a_hash_keyspace(rig: &Rig) {
    let orders = within(rig, 1, "orders");
    let forwards = scanned(&orders, scan(KeyRange::ALL, false)).await;
    assert_ne!(
        forwards,
        keys(0..KEYS),
        "sixteen buckets have another order"
    );
    assert_eq!(sorted(forwards.clone()), keys(0..KEYS));
    let backwards: Vec<Key> = forwards.iter().rev().cloned().collect();
    assert_eq!(scanned(&orders, scan(KeyRange::ALL, true)).await, backwards);
    let is_inside = |key: &&Key| some(10, 35).contains(key);
    let part: Vec<Key> = forwards.iter().filter(is_inside).cloned().collect();
    assert_eq!(scanned(&orders, scan(some(10, 35), false)).await, part);
    let backwards: Vec<Key> = part.iter().rev().cloned().collect();
    assert_eq!(scanned(&orders, scan(some(10, 35), true)).await, backwards);
    let mut few = scan(some(10, 35), false);
    few.limit = Some(9);
    assert_eq!(scanned(&orders, few).await, part[..9]);
    let none = some(35, 35);
    assert_eq!(scanned(&orders, scan(none, false)).await, keys([]));
    for page in pages(&orders, scan(some(10, 35), false)).await {
        assert!(page.unordered.is_some() && page.items.len() <= 7);
    }
}

/// As a caller sees them that knows nothing but the interface.
async fn streamed_scans(rig: &Rig) {
    let address = format!("http://{}", rig.processes.client_address(2));
    let mut client = KvClient::connect(address).await.unwrap();
    for range in [None, Some((10, 35))] {
        let range = range.map(|(from, to)| v1::KeyRange {
            start: key(from),
            end: key(to),
        });
        let asked = v1::ScanRequest {
            keyspace: "orders".to_owned(),
            range,
            ..v1::ScanRequest::default()
        };
        let whole = messages(&mut client, asked.clone()).await;
        assert!(whole.iter().all(|message| message.unordered));
        let last = whole.last().unwrap();
        assert!(last.resume.is_none() && last.resume_key.is_empty());
        let mut found = Vec::new();
        let mut next = Some(v1::ScanRequest { limit: 11, ..asked });
        while let Some(request) = next.take() {
            let portion = messages(&mut client, request.clone()).await;
            let last = portion.last().unwrap().clone();
            let items = portion.into_iter().flat_map(|message| message.items);
            found.extend(items.map(|item| item.key));
            next = last.resume.map(|range| v1::ScanRequest {
                range: Some(range),
                resume_key: last.resume_key,
                as_of: last.resume_as_of,
                border: last.resume_border,
                ..request
            });
        }
        let items = whole.into_iter().flat_map(|message| message.items);
        assert_eq!(found, items.map(|item| item.key).collect::<Vec<_>>());
    }
    let stray = v1::ScanRequest {
        resume_key: "x".into(),
        ..v1::ScanRequest::default()
    };
    let refused = client.scan(stray).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

async fn messages(
    client: &mut KvClient<tonic::transport::Channel>,
    request: v1::ScanRequest,
) -> Vec<v1::ScanResponse> {
    let stream = client.scan(request).await.unwrap().into_inner();
    let messages: Vec<_> = stream.collect().await;
    messages.into_iter().map(Result::unwrap).collect()
}

async fn conditions(rig: &Rig) {
    let orders = within(rig, 0, "orders");
    let put = |number| Operation::Put {
        key: key(number),
        value: "orders".into(),
    };
    let absent = |number| Condition::Version {
        key: key(number),
        version: Timestamp::ZERO,
    };
    let options = WriteOptions::default();
    let exists = Condition::Exists { key: key(1) };
    let value = Condition::Value {
        key: key(1),
        value: "orders".into(),
    };
    let written = orders.write(vec![exists, value], vec![put(1)], options);
    let outcome = written.await.unwrap().outcome;
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    let failed = orders.write(vec![absent(1)], vec![put(1)], options).await;
    let outcome = failed.unwrap().outcome;
    assert!(
        matches!(outcome, Outcome::ConditionFailed { condition: 0, .. }),
        "{outcome:?}"
    );
    let many = orders.write(Vec::new(), (0..KEYS).map(put).collect(), options);
    match many.await {
        Err(Error::Spanning { key, .. }) => assert!(keys(0..KEYS).contains(&key), "{key:?}"),
        other => panic!("{other:?}"),
    }
    let users = within(rig, 0, "users");
    let put_all = (0..KEYS).map(|number| Operation::Put {
        key: key(number),
        value: "users".into(),
    });
    let many = users.write(Vec::new(), put_all.collect(), options);
    assert!(many.await.is_ok(), "they are of one shard");
}

async fn limits(rig: &Rig, keyspace: &Keyspace) {
    let orders = within(rig, 0, "orders");
    let longest = vec![b'x'; keyspace.key_bytes_max()];
    assert_eq!(get(&orders, longest.clone().into()).await, Ok(None));
    let longer = [&longest[..], b"x"].concat();
    let reason = "2040 bytes and 9 of keyspace orders are over the limit of 2048";
    let refused = Err(Error::invalid("key", reason));
    assert_eq!(get(&orders, longer.into()).await, refused);
}

async fn ranges_are_removed(rig: &Rig) {
    for place in ["users", "orders"] {
        let options = WriteOptions::default();
        let (mut deleted, mut resume) = (0, None);
        for turn in 0.. {
            let kv = within(rig, turn, place);
            let portion = kv.delete_range_on(some(10, 35), resume, 2, options);
            let portion = portion.await.unwrap();
            assert!(portion.deleted <= 2);
            deleted += portion.deleted;
            resume = portion.resume;
            if resume.is_none() {
                break;
            }
        }
        assert_eq!(deleted, 25, "{place}");
        let left = scanned(&within(rig, 0, place), scan(KeyRange::ALL, false)).await;
        assert_eq!(sorted(left), keys((0..10).chain(35..KEYS)), "{place}");
    }
}

async fn names_are_used_once(rig: &Rig) {
    let absent = |name: &str| Error::NoKeyspace {
        name: name.to_owned(),
    };
    let asked = get(&within(rig, 0, "nowhere"), key(1)).await;
    assert_eq!(asked, Err(absent("nowhere")));
    assert_eq!(delete(rig, "nowhere").await, Err(absent("nowhere")));
    let full = Error::invalid(
        "delete_keyspace",
        "keyspace orders has keys; delete them first",
    );
    assert_eq!(delete(rig, "orders").await, Err(full));
    let orders = within(rig, 1, "orders");
    let mut resume = None;
    loop {
        let options = WriteOptions::default();
        let portion = orders.delete_range_on(KeyRange::ALL, resume, 100, options);
        resume = portion.await.unwrap().resume;
        if resume.is_none() {
            break;
        }
    }
    delete(rig, "orders").await.unwrap();
    let gone = "a keyspace orders was deleted, and its name is not used again";
    let again = create(rig, hash("orders", 16, 4)).await;
    assert_eq!(again, Err(Error::invalid("create_keyspace", gone)));
    let end = tokio::time::Instant::now() + READY;
    for node in 0..3 {
        while get(&within(rig, node, "orders"), key(1)).await != Err(absent("orders")) {
            assert!(
                tokio::time::Instant::now() < end,
                "n{} has not heard",
                node + 1
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let prefix = Some(Key::from("k0"));
    let layout = Layout::Hash(Buckets::of(None, None));
    let keyspace = Keyspace::new("late".parse().unwrap(), prefix, layout).unwrap();
    let taken = "there are keys already that begin with k0";
    let late = create(rig, keyspace).await;
    assert_eq!(late, Err(Error::invalid("create_keyspace", taken)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_serves_the_keyspaces_that_it_has_known() {
    let mut rig = Rig::start(&[]).await;
    create(&rig, hash("orders", 4, 1)).await.unwrap();
    fill("orders", |_| within(&rig, 0, "orders")).await;
    for node in 0..3 {
        rig.processes.terminate(node, READY).await.unwrap();
    }
    rig.processes.start(0).unwrap();
    let options = ReadOptions {
        read: ReadKind::Follower,
        deadline: Some(READY),
    };
    let orders = within(&rig, 0, "orders");
    let mut found = BTreeMap::new();
    for number in 0..KEYS {
        let answer = orders.get(key(number), options).await.unwrap();
        found.extend(answer.found.map(|versioned| (number, versioned.value)));
    }
    // What it had applied: it may not have heard of the end of the log.
    assert!(!found.is_empty() && found.values().all(|value| value == "orders"));
    let options = ReadOptions {
        deadline: Some(Duration::from_secs(3)),
        ..options
    };
    let unheard = within(&rig, 0, "nowhere").get(key(1), options).await;
    match unheard.unwrap_err() {
        Error::Unavailable { what, .. } => assert_eq!(what, "keyspace nowhere"),
        other => panic!("{other}"),
    }
}
