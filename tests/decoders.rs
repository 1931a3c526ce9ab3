//! Every decoder of what comes from disk, network or people, tried with damaged bytes: real samples out of
//! the data directory of a node, each with every byte changed, cut off at every length, and spliced with
//! others. None panics, none takes much more memory than it was given bytes; what they understand is written
//! again so that it reads the same (`testkit::decoders` asserts that).
//!
//! `QUORATE_CORPUS=fuzz/corpus cargo test --test decoders` also leaves the samples there, a folder for each
//! decoder, for the fuzzer to begin with.

// The counting allocator.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate::cli;
use quorate::codec::frame::FrameKind;
use quorate::codec::frame::FrameReader;
use quorate::codec::frame::FrameWriter;
use quorate::codec::record;
use quorate::codec::value;
use quorate::engine::Engine;
use quorate::engine::SledEngine;
use quorate::engine::sled::Options;
use quorate::error::Error;
use quorate::machine::Membership;
use quorate::machine::StateMachine;
use quorate::placement;
use quorate::placement::PlacementCommand;
use quorate::placement::PlacementMachine;
use quorate::shard;
use quorate::shard::Command;
use quorate::shard::ShardMachine;
use quorate::shard::Slots;
use quorate::shard::command::Answer;
use quorate::shard::command::Body;
use quorate::shard::merge_command::Absorb;
use quorate::shard::merge_command::MergeOutcome;
use quorate::shard::merge_command::MergeStep;
use quorate::shard::merge_command::Prepare;
use quorate::shard::merge_command::Unfreeze;
use quorate::testkit::decoders;
use quorate::testkit::decoders::Decoder;
use quorate::types::ClusterId;
use quorate::types::GroupId;
use quorate::types::Incarnation;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::Position;
use quorate::types::ReplicaId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::keyspace::Buckets;
use quorate::types::keyspace::Definition;
use quorate::types::keyspace::Keyspace;
use quorate::types::keyspace::Layout as KeyLayout;
use quorate::types::node::Member;
use quorate::types::request::WriteOutcome;
use quorate::types::shard::Attempt;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::proto::v1;
use quorate::wire::status::to_detail;
use support::Rig;

/// Counts what the current thread has allocated and not given back.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.with(|live| {
        live.set(live.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may be there at once.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a decoder may hold for each that it is given, and beside them.
const FOR_EACH: usize = 64;
/// The same for messages: an empty field is two bytes, and more than three hundred in memory while the
/// longest list of the largest ones grows. How many there may be has a bound of its own (`wire/codec.rs`).
const FOR_EACH_OF_MESSAGE: usize = 192;
const BESIDE: usize = 1024 * 1024;

/// Samples of one decoder that are tried; more of the same say nothing new.
const SAMPLES_MAX: usize = 12;
/// Places of one sample that are changed, and lengths at which it is cut.
const PLACES_MAX: usize = 300;
/// Longest sample: a prefix of a longer one is one that was cut off.
const SAMPLE_BYTES_MAX: usize = 8 * 1024;

type Samples = BTreeMap<&'static str, BTreeSet<Vec<u8>>>;

fn all() -> Vec<Decoder> {
    [decoders::DECODERS, cli::DECODERS].concat()
}

/// Reads the bytes; whether they were understood. Fails with the bytes, ready to be tried again.
fn read(decoder: &Decoder, bytes: &[u8]) -> bool {
    let before = LIVE.get();
    PEAK.set(before);
    let read = panic::catch_unwind(|| (decoder.read)(bytes));
    let held = usize::try_from(PEAK.get() - before).unwrap_or_default();
    let shown = || {
        let shown = bytes.iter().take(4_096);
        shown.map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let for_each = match decoder.name.ends_with(" message") {
        true => FOR_EACH_OF_MESSAGE,
        false => FOR_EACH,
    };
    let bound = for_each * bytes.len() + BESIDE;
    assert!(
        held <= bound,
        "{}: {held} bytes held for {} bytes: {}",
        decoder.name,
        bytes.len(),
        shown()
    );
    read.unwrap_or_else(|_| panic!("{} panics with {}", decoder.name, shown()))
}

/// A chance of our own, the same at each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damaged_bytes_harm_a_decoder() {
    let samples = gather().await;
    if let Ok(corpus) = std::env::var("QUORATE_CORPUS") {
        leave(&samples, Path::new(&corpus));
    }
    let tried = tokio::task::spawn_blocking(move || {
        let mut idle = Vec::new();
        for decoder in all() {
            let nothing = BTreeSet::from([Vec::new()]);
            let samples = samples.get(decoder.name).unwrap_or(&nothing);
            let whole = samples.iter().filter(|sample| read(&decoder, sample));
            let understood = whole.count();
            if understood == 0 {
                idle.push(decoder.name);
            }
            let tried = damage(&decoder, samples);
            println!(
                "{}: {} samples, {understood} understood; damaged {} times, {} understood",
                decoder.name,
                samples.len(),
                tried.0,
                tried.1
            );
        }
        assert!(idle.is_empty(), "no sample is understood: {idle:?}");
    });
    tried.await.unwrap();
}

/// Few bytes that claim much: runs of each pair of bytes, as a repeated empty field of a message is.
#[test]
fn repeated_bytes_take_no_more_than_their_share() {
    for decoder in all() {
        for second in [0, 0xff] {
            for first in 0..=255u8 {
                read(&decoder, &[first, second].repeat(8 * 1024));
            }
        }
    }
}

/// How many damaged samples were tried, and how many of them were understood.
fn damage(decoder: &Decoder, samples: &BTreeSet<Vec<u8>>) -> (usize, usize) {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let step = samples.len().div_ceil(SAMPLES_MAX);
    let chosen: Vec<&[u8]> = samples.iter().step_by(step).map(|it| &it[..]).collect();
    let (mut tried, mut understood) = (0, 0);
    let mut attempt = |bytes: &[u8]| {
        tried += 1;
        understood += usize::from(read(decoder, bytes));
    };
    for sample in &chosen {
        let sample = &sample[..sample.len().min(SAMPLE_BYTES_MAX)];
        let step = sample.len().div_ceil(PLACES_MAX).max(1);
        for at in (0..sample.len()).step_by(step) {
            attempt(&sample[..at]);
            let mut changed = sample.to_vec();
            for byte in [sample[at] ^ 1, sample[at] ^ 0x80, 0, 0xff] {
                changed[at] = byte;
                attempt(&changed);
            }
        }
        for _ in 0..200 {
            let other = chosen[chance.below(chosen.len())];
            let other = &other[..other.len().min(SAMPLE_BYTES_MAX)];
            let (head, tail) = (chance.below(sample.len()), chance.below(other.len()));
            let mut spliced = [&sample[..head], &other[tail..]].concat();
            for _ in 0..chance.below(4) {
                let at = chance.below(spliced.len());
                if let Some(byte) = spliced.get_mut(at) {
                    *byte = chance.below(256) as u8;
                }
            }
            attempt(&spliced);
        }
    }
    (tried, understood)
}

fn leave(samples: &Samples, corpus: &Path) {
    for (name, samples) in samples {
        let folder = corpus.join(name.replace(' ', "_"));
        fs::create_dir_all(&folder).unwrap();
        let few = samples.iter().step_by(samples.len().div_ceil(100));
        for sample in few.map(|it| &it[..it.len().min(64 * 1024)]) {
            let name = format!("{:08x}-{}", crc32c::crc32c(sample), sample.len());
            fs::write(folder.join(name), sample).unwrap();
        }
    }
}

/// Runs a node for a while, and takes from it what each decoder reads.
async fn gather() -> Samples {
    let mut rig = Rig::start_of(1, support::SMALL_LOG).await;
    let writers = support::write(&rig.nodes, "decoders/", 5);
    support::answered(&writers, 300, "before the samples are taken").await;
    support::stop_and_verify(writers, "decoders/", &rig.nodes).await;
    let stopped = rig.processes.terminate(0, support::READY).await.unwrap();
    assert!(stopped.success(), "{stopped}");
    let data = rig.processes.data(0).to_owned();
    let mut samples = Samples::new();
    let mut add = |name: &'static str, bytes: Vec<u8>| {
        samples.entry(name).or_default().insert(bytes);
    };
    for segment in engine_segments(&data) {
        add("engine header", segment[1..21].to_vec());
        let decoder = *all().iter().find(|it| it.name == "engine segment").unwrap();
        // Up to the end of a message: there are others behind it.
        let mut ends = (21..2_048.min(segment.len())).rev();
        if let Some(end) = ends.find(|end| (decoder.read)(&segment[..*end])) {
            add("engine segment", segment[..end].to_vec());
        }
        add("engine segment", segment);
    }
    if !data.join("members").exists() {
        fs::write(data.join("members"), members()).unwrap();
    }
    if !data.join("keyspaces").exists() {
        fs::write(data.join("keyspaces"), keyspaces()).unwrap();
    }
    let engine = SledEngine::open(&data.join("engine"), &Options::default()).unwrap();
    for (name, bytes) in decoders::samples(&data, &engine).unwrap() {
        add(name, bytes);
    }
    let engine: Arc<dyn Engine> = Arc::new(engine);
    for (name, bytes) in snapshots(&engine) {
        add(name, bytes);
    }
    for (name, bytes) in messages() {
        add(name, bytes);
    }
    for (name, text) in TEXTS {
        add(name, text.as_bytes().to_vec());
    }
    samples
}

/// What a node writes when it has learned of another: one that is alone has no such file.
fn members() -> Vec<u8> {
    let member = Member {
        id: NodeId(2),
        incarnation: Incarnation([7; 16]),
        name: "n2".to_owned(),
        node_address: "127.0.0.1:7411".to_owned(),
        client_address: "127.0.0.1:7410".to_owned(),
    };
    checked(value::encode(1, &vec![member]))
}

fn keyspaces() -> Vec<u8> {
    let layout = KeyLayout::Hash(Buckets::of(None, None));
    let definition = Definition {
        keyspace: Keyspace::new("orders".parse().unwrap(), None, layout).unwrap(),
        retired: false,
    };
    checked(value::encode(1, &vec![definition]))
}

fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

const TEXTS: &[(&str, &str)] = &[
    (
        "config",
        "name = \"n1\"\ndata_dir = \"/tmp/n1\"\nlog = \"info\"\n",
    ),
    ("config", ""),
    ("import line", "{\"key\":\"a\",\"value\":\"b\"}"),
    (
        "import line",
        "{\"key_base64\":\"/w==\",\"value\":\"\\u0000\"}",
    ),
    ("argument", "00112233445566778899aabbccddeeff"),
    (
        "argument",
        "n1=127.0.0.1:7401,n2=127.0.0.1:7411,n3=127.0.0.1:7421",
    ),
    ("argument", "127.0.0.1:7401,127.0.0.1:7411"),
    ("argument", "64MiB"),
    ("argument", "1h 30m"),
    ("argument", "zone=a"),
    (
        "rule file",
        "[[rule]]\nprefix = \"user/\"\nreplicas = 5\nrequire = [\"region=eu\"]\nspread = \"rack\"\n",
    ),
];

/// The beginnings of the engine's segments, behind the number of each.
fn engine_segments(data: &Path) -> Vec<Vec<u8>> {
    const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
    let file = fs::read(data.join("engine/db")).unwrap();
    let segments = file.chunks(SEGMENT_BYTES).map(|segment| {
        let stored = segment[4..12].try_into().unwrap();
        let number = (i64::from_le_bytes(stored) ^ i64::MAX) / SEGMENT_BYTES as i64;
        [&[number as u8], &segment[..segment.len().min(32 * 1024)]].concat()
    });
    segments.collect()
}

/// What the shard and placement send to a new replica: chunks, and the same as the decoders take them.
fn snapshots(engine: &Arc<dyn Engine>) -> Vec<(&'static str, Vec<u8>)> {
    let slots = Slots::open(engine.clone()).unwrap();
    let replica = shard::replicas(&**engine).unwrap()[0];
    let shard = ShardMachine::open(engine.clone(), slots, replica, Arc::new(|_| false))
        .unwrap()
        .unwrap();
    let replica = placement::replicas(&**engine).unwrap()[0];
    let placement = PlacementMachine::open(engine.clone(), replica)
        .unwrap()
        .unwrap();
    let mut samples = Vec::new();
    for (name, machine) in [
        ("shard snapshot", &shard as &dyn StateMachine),
        ("placement state", &placement),
    ] {
        let mut source = machine.snapshot().unwrap();
        let mut reader = FrameReader::default();
        let mut flat = Vec::new();
        while let Some(chunk) = source.next().unwrap() {
            samples.push(("frame", chunk[..chunk.len().min(2_048)].to_vec()));
            let (kind, payload) = reader.open(chunk).unwrap();
            let number = match kind {
                FrameKind::Head => 0,
                FrameKind::Pairs => 1,
                FrameKind::End => 2,
            };
            let pieces = match (kind, name) {
                (FrameKind::Pairs, "shard snapshot") => pairs_of(&payload),
                _whole => vec![&payload[..]],
            };
            for piece in pieces {
                flat.push(number);
                flat.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
                flat.extend(piece);
            }
        }
        samples.push((name, flat));
    }
    let mut whole = Vec::new();
    let place = record::Place {
        file: 1,
        offset: 512,
    };
    record::encode(&mut whole, place, 1, 2, 3, |body| {
        body.extend_from_slice(b"a body")
    });
    samples.push(("record", whole));
    // Born, voted, gone: owner, kind, length and body of each.
    let vote = [&[1, 3, 17][..], &[0; 17]].concat();
    let records = [&[1, 6, 1, b'x'][..], &vote, &[1, 7, 0]].concat();
    samples.push(("wal records", records));
    let mut writer = FrameWriter::default();
    samples.push(("frame", writer.frame(FrameKind::Head, b"a head").to_vec()));
    samples
}

/// A chunk's pairs, each of which may be a chunk of its own: the lengths of key and record, then both.
fn pairs_of(mut payload: &[u8]) -> Vec<&[u8]> {
    let mut pairs = Vec::new();
    while let [a, b, c, d, e, f, ..] = *payload {
        let place = usize::from(u16::from_be_bytes([a, b]));
        let record = u32::from_be_bytes([c, d, e, f]) as usize;
        let (pair, rest) = payload.split_at(6 + place + record);
        pairs.push(pair);
        payload = rest;
    }
    pairs
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let key = Bytes::from_static(b"a key");
    let id = Bytes::from_static(&[1, 2, 3, 4, 5, 6, 0x77, 8, 0x89, 10, 11, 12, 13, 14, 15, 16]);
    let cluster_id = Bytes::from_static(&[9; 16]);
    let put = v1::PutRequest {
        key: key.clone(),
        value: Bytes::from_static(b"a value"),
        request_id: id.clone(),
        cluster_id,
        keyspace: "orders".to_owned(),
    };
    let operation = |key: &'static [u8]| v1::Operation {
        kind: Some(v1::operation::Kind::Put(v1::operation::Put {
            key: Bytes::from_static(key),
            value: Bytes::from_static(b"b value"),
        })),
    };
    let write = v1::WriteRequest {
        operations: vec![operation(b"k1"), operation(b"k2")],
        conditions: vec![v1::Condition {
            key: key.clone(),
            must: Some(v1::condition::Must::Version(7)),
        }],
        request_id: id,
        ..Default::default()
    };
    let scan = v1::ScanRequest {
        range: Some(v1::KeyRange {
            start: key.clone(),
            end: Bytes::from_static(b"b"),
        }),
        limit: 10,
        ..Default::default()
    };
    let keys = v1::BatchGetRequest {
        keys: vec![key.clone(), Bytes::from_static(b"another")],
        ..Default::default()
    };
    let entries = v1::Entries {
        vote: Some(v1::BallotVote {
            term: 3,
            ..Default::default()
        }),
        ..Default::default()
    };
    let frames = v1::AppendRequest {
        frames: vec![
            v1::AppendFrame {
                stream: 1,
                body: Some(v1::append_frame::Body::Open(v1::Route {
                    from: 1,
                    to: 2,
                    ..Default::default()
                })),
            },
            v1::AppendFrame {
                stream: 1,
                body: Some(v1::append_frame::Body::Request(entries.clone())),
            },
        ],
    };
    let split = v1::SplitShardRequest {
        shard: 1,
        at: key.clone(),
        ..Default::default()
    };
    let rule = v1::Rule {
        prefix: key.clone(),
        replicas: 3,
        required: vec![v1::Label {
            name: "zone".to_owned(),
            value: "a".to_owned(),
        }],
        ..Default::default()
    };
    let arrange = v1::ArrangeRequest {
        arrangement: Some(v1::arrange_request::Arrangement::SetRule(rule)),
        ..Default::default()
    };
    let locate = v1::LocateRequest {
        key: key.clone(),
        ..Default::default()
    };
    let shard = ShardDescriptor {
        id: ShardId(1),
        range: KeyRange::ALL,
        epoch: Epoch::default(),
        replicas: Vec::new(),
    };
    let errors = [
        Error::StaleEpoch {
            group: GroupId::Shard(ShardId(1)),
            current: vec![shard],
        },
        Error::Unknown {
            request: RequestId([7; 16]),
            reason: "a reason".to_owned(),
        },
        Error::WrongCluster {
            expected: ClusterId([1; 16]),
            actual: ClusterId([2; 16]),
        },
        Error::invalid("field", "a reason"),
    ];
    let mut samples = vec![
        ("kv message", put.encode_to_vec()),
        ("kv message", write.encode_to_vec()),
        ("kv message", scan.encode_to_vec()),
        ("kv message", keys.encode_to_vec()),
        ("transport message", entries.encode_to_vec()),
        ("transport message", frames.encode_to_vec()),
        ("cluster message", split.encode_to_vec()),
        ("admin message", arrange.encode_to_vec()),
        ("placement message", locate.encode_to_vec()),
    ];
    let errors = errors.iter().map(|error| to_detail(error, None));
    samples.extend(errors.map(|detail| ("error message", detail.encode_to_vec())));
    let answer = Answer::Writes(vec![
        WriteOutcome::StaleEpoch,
        WriteOutcome::Done {
            version: Timestamp(9),
            deleted: 2,
            resume: Some(Key::from_static(b"x")),
        },
    ]);
    let take = PlacementCommand::TakeIds { count: 7 };
    samples.push(("placement command", take.encode().to_vec()));
    let membership = Membership::of(&[Replica {
        id: ReplicaId(5),
        node: NodeId(6),
    }]);
    samples.push(("membership", membership.encode().to_vec()));
    samples.push(("answer", answer.encode().to_vec()));
    samples.extend(of_a_merge());
    let outcome = WriteOutcome::ConditionFailed {
        condition: 1,
        actual: Timestamp(8),
    };
    samples.push(("outcome", value::encode(1, &(Timestamp(9), outcome))));
    samples
}

/// No node does that yet.
fn of_a_merge() -> Vec<(&'static str, Vec<u8>)> {
    let attempt = Attempt {
        bounds: 4,
        prepared: Position { term: 5, index: 6 },
        left: ShardId(1),
    };
    let right = ShardDescriptor {
        id: ShardId(2),
        range: KeyRange::ALL,
        epoch: Epoch::default(),
        replicas: vec![Replica {
            id: ReplicaId(21),
            node: NodeId(9),
        }],
    };
    let (frozen, above) = (Position { term: 3, index: 10 }, Timestamp(11));
    let prepare = Prepare {
        right: right.clone(),
        over: vec![ShardId(44)],
    };
    let absorb = Absorb {
        attempt,
        right: right.clone(),
        frozen,
        above,
    };
    let unfreeze = Unfreeze {
        attempt,
        settled: frozen,
    };
    let steps = [
        MergeStep::Prepare(prepare),
        MergeStep::Freeze(attempt),
        MergeStep::Absorb(absorb),
        MergeStep::Cancel(attempt),
        MergeStep::Unfreeze(unfreeze),
    ];
    let commands = steps.map(|step| Command {
        body: Body::Merge(step),
        ..Command::default()
    });
    let answers = [
        MergeOutcome::Prepared { attempt },
        MergeOutcome::Frozen {
            right,
            position: frozen,
            above,
        },
    ];
    let commands = commands.iter().map(|it| ("command", it.encode().to_vec()));
    let answers = answers.map(|it| ("answer", Answer::Merge(it).encode().to_vec()));
    commands.chain(answers).collect()
}
