//! What goes out comes in as itself, and no bytes make reading it panic. Decides only.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::keyspace::Buckets;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::Layout;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;
use crate::types::node::Room;
use crate::types::placement::PlacementCommand;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wire::convert::admin;
use crate::wire::convert::cluster;
use crate::wire::convert::kv;
use crate::wire::convert::placement;
use crate::wire::convert::transport;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::BatchGet;
use crate::wire::request::Cut;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Scan;
use crate::wire::request::SplitShard;
use crate::wire::request::Unordered;
use crate::wire::trial;

/// Over the network and back.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn key() -> impl Strategy<Value = Key> {
    vec(any::<u8>(), 1..40).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..60).prop_map(Bytes::from)
}

fn id() -> impl Strategy<Value = RequestId> {
    (0..1_u64 << 48, any::<[u8; 10]>()).prop_map(|(wall, random)| RequestId::new(wall, random))
}

fn cluster_id() -> impl Strategy<Value = Option<ClusterId>> {
    option::of(any::<[u8; 16]>().prop_map(ClusterId))
}

fn stamp() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn read() -> impl Strategy<Value = ReadKind> {
    prop_oneof![Just(ReadKind::Linearizable), Just(ReadKind::Follower)]
}

fn range() -> impl Strategy<Value = KeyRange> {
    let bound = || vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let ordered = |(one, other): (Bytes, Option<Bytes>)| match other {
        Some(other) if other < one && !other.is_empty() => (other, Some(one)),
        Some(other) if other.is_empty() => (one, None),
        other => (one, other),
    };
    let bounds = (bound(), option::of(bound())).prop_map(ordered);
    bounds.prop_map(|(start, end)| KeyRange { start, end })
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        (key(), stamp()).prop_map(|(key, version)| Condition::Version { key, version }),
        (key(), value()).prop_map(|(key, value)| Condition::Value { key, value }),
        key().prop_map(|key| Condition::Exists { key }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Operation::Put { key, value }),
        key().prop_map(|key| Operation::Delete { key }),
    ]
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    vec(operation(), 1..8).prop_map(|mut operations| {
        operations.sort_by(|one, other| one.key().cmp(other.key()));
        operations.dedup_by(|one, other| one.key() == other.key());
        operations
    })
}

fn write() -> impl Strategy<Value = Write> {
    let keys = (vec(condition(), 0..4), operations()).prop_map(|(conditions, operations)| {
        WriteKind::Keys {
            conditions,
            operations,
        }
    });
    let ranged = (range(), 1_u32..=10_000);
    let ranged = ranged.prop_map(|(range, limit)| WriteKind::Range { range, limit });
    (id(), prop_oneof![keys, ranged]).prop_map(|(id, kind)| Write { id, kind })
}

fn scan() -> impl Strategy<Value = Scan> {
    let limits = (1..=u32::MAX, 1..=u32::MAX);
    let flags = (any::<bool>(), any::<bool>());
    let cut = option::of(cut());
    (range(), limits, flags, read(), cut).prop_map(|(range, limits, flags, read, cut)| Scan {
        range,
        keys_max: limits.0,
        bytes_max: limits.1,
        reverse: flags.0,
        keys_only: flags.1,
        read,
        cut,
    })
}

fn cut() -> impl Strategy<Value = Cut> {
    let as_of = (1..=u64::MAX).prop_map(Timestamp);
    (as_of, option::of(key())).prop_map(|(as_of, border)| Cut { as_of, border })
}

fn answered() -> impl Strategy<Value = Answered> {
    let parts = (any::<u64>(), any::<u64>(), any::<bool>(), stamp(), stamp());
    parts.prop_map(|(shard, replica, leader, timestamp, as_of)| Answered {
        shard: ShardId(shard),
        replica: ReplicaId(replica),
        leader,
        timestamp,
        as_of,
    })
}

fn versioned() -> impl Strategy<Value = Versioned> {
    (value(), stamp()).prop_map(|(value, version)| Versioned { value, version })
}

fn descriptor() -> impl Strategy<Value = ShardDescriptor> {
    let replicas = vec((any::<u64>(), any::<u64>()), 0..4);
    let parts = (any::<u64>(), range(), any::<u64>(), any::<u64>(), replicas);
    parts.prop_map(|(id, range, conf, bounds, replicas)| ShardDescriptor {
        id: ShardId(id),
        range,
        epoch: Epoch { conf, bounds },
        replicas: replicas
            .into_iter()
            .map(|(id, node)| Replica {
                id: ReplicaId(id),
                node: NodeId(node),
            })
            .collect(),
    })
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, index)| Position { term, index })
}

fn vote() -> impl Strategy<Value = Vote> {
    let parts = (any::<u64>(), any::<u64>(), any::<bool>());
    parts.prop_map(|(term, replica, committed)| Vote {
        term,
        replica: ReplicaId(replica),
        committed,
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::Blank),
        value().prop_map(Payload::Command),
        value().prop_map(Payload::Membership),
    ]
}

fn append() -> impl Strategy<Value = AppendRequest> {
    let entries = vec((any::<u64>(), payload()), 0..6);
    let first = 1..u64::MAX / 2;
    let parts = (
        vote(),
        any::<bool>(),
        first,
        entries,
        option::of(position()),
    );
    parts.prop_map(
        |(vote, from_start, first, entries, committed)| AppendRequest {
            vote,
            previous: (!from_start).then_some(Position {
                term: 1,
                index: first - 1,
            }),
            entries: (first..)
                .zip(entries)
                .map(|(index, (term, payload))| LogEntry {
                    position: Position { term, index },
                    payload,
                })
                .collect(),
            committed,
        },
    )
}

fn append_response() -> impl Strategy<Value = AppendResponse> {
    prop_oneof![
        option::of(position()).prop_map(AppendResponse::Matched),
        position().prop_map(AppendResponse::Conflict),
        vote().prop_map(AppendResponse::HigherVote),
    ]
}

#[test]
fn room_comes_in_as_it_went_out() {
    for room in [
        None,
        Some(Room::Enough),
        Some(Room::Short),
        Some(Room::Full),
    ] {
        assert_eq!(transport::room_of(transport::room_out(room).into()), room);
    }
    assert_eq!(transport::room_of(77), None);
}

proptest! {
    #[test]
    fn writes_come_in_as_they_went_out(write in write(), cluster in cluster_id()) {
        let expected = (write.clone(), cluster);
        let id = write.id;
        let came = match kv::write_out(write, cluster) {
            kv::WriteOut::Keys(request) => kv::write_of(sent(&request), id),
            kv::WriteOut::Range(request) => kv::delete_range_of(sent(&request), id),
        };
        prop_assert_eq!(came, Ok(expected));
    }

    #[test]
    fn reads_come_in_as_they_went_out(
        keys in vec(key(), 1..9), read in read(), scan in scan(), cluster in cluster_id(),
    ) {
        let get = Get { key: keys[0].clone(), read };
        prop_assert_eq!(kv::get_of(sent(&kv::get_out(get.clone(), cluster))), Ok((get, cluster)));
        let batch = BatchGet { keys, read };
        let came = kv::batch_get_of(sent(&kv::batch_get_out(batch.clone(), cluster)));
        prop_assert_eq!(came, Ok((batch, cluster)));
        let whole = kv::WholeScan {
            keys_max: scan.keys_max.into(),
            bytes_max: scan.bytes_max.into(),
            one_cut: true,
            scan: scan.clone(),
        };
        prop_assert_eq!(kv::scan_of(sent(&kv::scan_out(scan, cluster))), Ok((whole, cluster)));
    }

    #[test]
    fn keyspaces_come_in_as_they_went_out(
        name in "[a-z0-9._-]{1,64}", prefix in option::of(vec(any::<u8>(), 1..9)),
        hash in option::of((1u32..=16, 1u32..=256)), retired: bool,
    ) {
        let layout = hash.map_or(Layout::Ordered, |(bits, parts)| {
            Layout::Hash(Buckets { count: 1 << bits, parts: parts.min(1 << bits) })
        });
        let keyspace = Keyspace::new(name.parse().unwrap(), prefix.map(Key::from), layout).unwrap();
        let known = vec![Definition { keyspace: keyspace.clone(), retired }];
        let came = admin::keyspaces_of(sent(&admin::keyspaces_out(known.clone())));
        prop_assert_eq!(came, Ok(known));
        let create = PlacementCommand::CreateKeyspace(keyspace);
        prop_assert_eq!(placement::command_of(sent(&placement::command_out(create.clone()))), Ok(create));
    }

    #[test]
    fn answers_come_in_as_they_went_out(
        found in vec(option::of(versioned()), 1..9), items in vec((key(), versioned()), 0..9),
        rest in option::of(range()), as_of in stamp(), answered in answered(), id in id(),
        rest_cut in option::of(cut()), second in answered(),
        version in stamp(), number in any::<u32>(), resume in option::of(key()),
        bucketed in any::<bool>(),
    ) {
        let unordered = bucketed.then(|| Unordered { resume: resume.clone() });
        let one = found[0].clone();
        let came = kv::got_of(sent(&kv::got_out(one.clone(), answered)));
        prop_assert_eq!(came, Ok((one, answered)));
        let all = vec![answered, second];
        let batch = kv::batch_got_out(found.clone(), all.clone()).unwrap();
        prop_assert_eq!(kv::batch_got_of(sent(&batch), found.len()), Ok((found, all)));
        let items = items.into_iter().map(|(key, versioned)| KeyValue { key, versioned });
        let page = Page { items: items.collect(), rest, as_of, rest_cut, answered, unordered };
        prop_assert_eq!(kv::page_of(sent(&kv::page_out(page.clone()))), Ok(page));
        let done = kv::Done { version, deleted: number, resume: resume.clone() };
        let range_done = kv::range_done_of(sent(&kv::range_done_out(done, answered, id)));
        let outcome = WriteOutcome::Done { version, deleted: number, resume };
        prop_assert_eq!(range_done, Ok((outcome, answered)));
        let failed = WriteOutcome::ConditionFailed { condition: number, actual: version };
        for outcome in [WriteOutcome::Done { version, deleted: number, resume: None }, failed] {
            let written = kv::written(outcome.clone(), id, &answered).unwrap();
            let came = kv::written_of(sent(&kv::written_out(written, answered, id)));
            prop_assert_eq!(came, Ok((outcome, answered)));
        }
    }

    #[test]
    fn splits_come_in_as_they_went_out(
        shard in 1..=u64::MAX, at in key(), cluster in cluster_id(),
        left in descriptor(), right in descriptor(),
    ) {
        let split = SplitShard { shard: ShardId(shard), at };
        let came = cluster::split_of(sent(&cluster::split_out(split.clone(), cluster)));
        prop_assert_eq!(came, Ok((split, cluster)));
        let done = Response::SplitShard { left: left.clone(), right: right.clone() };
        let came = cluster::split_done_of(sent(&cluster::split_done_out(left, right)));
        prop_assert_eq!(came, Ok(done));
    }

    #[test]
    fn appends_come_in_as_they_went_out(append in append(), response in append_response()) {
        let came = transport::append_of(sent(&transport::append_out(append.clone())));
        prop_assert_eq!(came, Ok(append));
        let came = transport::appended_of(sent(&transport::appended_out(response)));
        prop_assert_eq!(came, Ok(response));
    }

    #[test]
    fn entries_with_a_gap_are_refused(append in append(), at in any::<prop::sample::Index>()) {
        let mut append = append;
        prop_assume!(append.entries.len() + usize::from(append.previous.is_some()) > 1);
        let from = usize::from(append.previous.is_none());
        let at = from + at.index(append.entries.len() - from);
        append.entries[at].position.index += 1;
        prop_assert!(transport::append_of(transport::append_out(append)).is_err());
    }

    #[test]
    fn routes_name_placement_and_shards(shard in option::of(1..=u64::MAX), from in any::<u64>()) {
        let group = shard.map_or(GroupId::Placement, |shard| GroupId::Shard(ShardId(shard)));
        let route = Route { group, from: ReplicaId(from), to: ReplicaId(2) };
        prop_assert_eq!(transport::route_of(Some(sent(&transport::route_out(route)))), Ok(route));
    }

    #[test]
    fn no_bytes_make_reading_panic(
        write in write(), scan in scan(), append in append(), noise in vec(any::<u8>(), 0..80),
        places in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let write = match kv::write_out(write, None) {
            kv::WriteOut::Keys(request) => request.encode_to_vec(),
            kv::WriteOut::Range(request) => request.encode_to_vec(),
        };
        let scan = kv::scan_out(scan, None).encode_to_vec();
        let append = transport::append_out(append).encode_to_vec();
        for mut bytes in [write, scan, append, noise] {
            for (place, byte) in &places {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = *byte;
                }
            }
            trial::everything(&bytes);
        }
    }
}
