//! Every decoder of what comes from disk, network or people, as a function of any bytes.
//!
//! None panics, whatever it is given, and none takes much more memory than it was given bytes; what one
//! understands it writes again so that it reads the same, which is asserted here. `tests/decoders.rs` tries
//! each with damaged samples out of a real data directory, the targets in `fuzz/` with what a fuzzer thinks
//! of. Where a checksum would hide everything behind it, the bytes get a right one first.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::frame::FrameKind;
use crate::codec::frame::FrameReader;
use crate::codec::frame::FrameWriter;
use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::ordered;
use crate::codec::record;
use crate::config;
use crate::engine::Engine;
use crate::engine::MemoryEngine;
use crate::engine::format;
use crate::engine::format::Segment;
use crate::machine::Membership;
use crate::machine::SnapshotReceiver as _;
use crate::machine::SnapshotSink;
use crate::mvcc::Version;
use crate::mvcc::version::Header;
use crate::node::identity;
use crate::node::keyspaces;
use crate::node::members;
use crate::node::opener::Origin;
use crate::placement::PlacementAnswer;
use crate::placement::PlacementCommand;
use crate::placement::machine;
use crate::raft;
use crate::shard::Command;
use crate::shard::Row;
use crate::shard::Slots;
use crate::shard::apply;
use crate::shard::command::Answer;
use crate::shard::snapshot;
use crate::types::ReplicaId;
use crate::types::shard::Epoch;
use crate::wal;
use crate::wire;

/// A decoder, and a name for people and for folders.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// What it reads.
    pub name: &'static str,
    /// Reads bytes; whether they were understood. Panics where something is wrong with the decoder.
    pub read: fn(&[u8]) -> bool,
}

const fn decoder(name: &'static str, read: fn(&[u8]) -> bool) -> Decoder {
    Decoder { name, read }
}

/// All of them; those of the command line are in [`crate::cli`], which stands above this module.
pub const DECODERS: &[Decoder] = &[
    decoder("ordered", read_ordered),
    decoder("layout", read_layout),
    decoder("frame", read_frame),
    decoder("record", read_record),
    decoder("wal header", wal::trial::header),
    decoder("wal record", wal::trial::record),
    decoder("wal segment", wal::trial::segment),
    decoder("wal records", wal::trial::records),
    decoder("command", read_command),
    decoder("answer", read_answer),
    decoder("row", read_row),
    decoder("version", read_version),
    decoder("outcome", read_outcome),
    decoder("shard snapshot", read_shard_snapshot),
    decoder("placement command", read_placement_command),
    decoder("placement state", read_placement_state),
    decoder("membership", read_membership),
    decoder("origin", read_origin),
    decoder("engine header", read_engine_header),
    decoder("engine segment", read_engine_segment),
    decoder("engine summary", read_engine_summary),
    decoder("identity", read_identity),
    decoder("members", read_members),
    decoder("keyspaces", read_keyspaces),
    decoder("kv message", wire::trial::kv),
    decoder("cluster message", wire::trial::cluster),
    decoder("admin message", wire::trial::admin),
    decoder("placement message", wire::trial::placement),
    decoder("transport message", wire::trial::transport),
    decoder("error message", wire::trial::error),
    decoder("config", read_config),
];

/// Whether `read` understands the bytes; then what it read must be read again from what `write` makes of it.
fn both_ways<T: PartialEq + Debug, E: Debug + PartialEq>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<T, E>,
    write: impl Fn(&T) -> Vec<u8>,
) -> bool {
    let Ok(value) = read(bytes) else {
        return false;
    };
    assert_eq!(read(&write(&value)).as_ref(), Ok(&value));
    true
}

fn read_ordered(bytes: &[u8]) -> bool {
    let _ = ordered::take_u64(bytes);
    let _ = ordered::take_stamp_newest_first(bytes);
    let Ok((string, rest)) = ordered::take_bytes(bytes) else {
        return false;
    };
    let mut again = Vec::new();
    ordered::put_bytes(&mut again, &string);
    assert_eq!(again, bytes[..bytes.len() - rest.len()]);
    true
}

fn read_layout(bytes: &[u8]) -> bool {
    let understood = [
        layout::ending_replica(bytes).is_ok(),
        layout::quarantined_replica(bytes).is_ok(),
        layout::row_replica(bytes).is_ok(),
        layout::slot_of(bytes).is_ok(),
    ];
    if let Ok((slot, range)) = layout::cleared(bytes) {
        assert_eq!(
            layout::cleared(&layout::clear(slot, &range)),
            Ok((slot, range))
        );
        return true;
    }
    if let Ok(place) = Place::of(bytes) {
        let _ = place.stamp();
        let moved = layout::slot_of(bytes).map(|slot| {
            let rest = layout::without_slot(bytes);
            layout::in_other_slot(slot, rest)
        });
        assert_eq!(moved.as_deref(), Ok(bytes));
    }
    understood.contains(&true)
}

/// The bytes as a chunk, and as what is in one.
fn read_frame(bytes: &[u8]) -> bool {
    let read = FrameReader::default().open(Bytes::copy_from_slice(bytes));
    if let Ok((kind, payload)) = &read {
        assert_eq!(FrameWriter::default().frame(*kind, payload), bytes);
    }
    read.is_ok()
}

fn read_record(bytes: &[u8]) -> bool {
    let place = record::Place {
        file: 1,
        offset: 512,
    };
    let read = record::decode(&Bytes::copy_from_slice(bytes), place);
    let Ok(Some(frame)) = read else {
        return false;
    };
    let mut again = Vec::new();
    record::encode(
        &mut again,
        place,
        frame.version,
        frame.kind,
        frame.owner,
        |body| {
            body.extend_from_slice(&frame.body);
        },
    );
    assert_eq!(again, bytes[..frame.bytes()]);
    true
}

fn text_of<E: ToString>(error: E) -> String {
    error.to_string()
}

fn read_command(bytes: &[u8]) -> bool {
    both_ways(
        bytes,
        |bytes| Command::decode(bytes).map_err(text_of),
        |it| it.encode().to_vec(),
    )
}

fn read_answer(bytes: &[u8]) -> bool {
    both_ways(bytes, Answer::decode, |it| it.encode().to_vec())
}

fn read_row(bytes: &[u8]) -> bool {
    both_ways(
        bytes,
        |bytes| Row::decode(bytes).map_err(text_of),
        Row::encode,
    )
}

fn read_version(bytes: &[u8]) -> bool {
    let header = Header::of(bytes);
    if let Ok(header) = header {
        let _ = header.chunks(bytes);
    }
    both_ways(
        bytes,
        |bytes| Version::decode(Bytes::copy_from_slice(bytes)).map_err(text_of),
        Version::encode,
    )
}

fn read_outcome(bytes: &[u8]) -> bool {
    apply::decode_outcome(bytes).is_ok()
}

/// Chunks that say what the bytes say: each begins with a kind and a length.
fn chunks_of(bytes: &[u8]) -> Vec<Bytes> {
    let mut writer = FrameWriter::default();
    let mut chunks = Vec::new();
    let mut rest = bytes;
    while let [kind, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (payload, after) = after.split_at(length);
        rest = after;
        let kind = match kind {
            0 => FrameKind::Head,
            1 => FrameKind::Pairs,
            _other => FrameKind::End,
        };
        chunks.push(writer.frame(kind, payload));
    }
    chunks
}

fn take_all(mut sink: Box<dyn SnapshotSink>, bytes: &[u8]) -> bool {
    let mut chunks = chunks_of(bytes).into_iter();
    chunks.all(|chunk| sink.chunk(chunk).is_ok()) && sink.finish().is_ok()
}

fn read_shard_snapshot(bytes: &[u8]) -> bool {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let slots = Slots::open(engine.clone()).expect("an empty engine has no slots to read");
    let epoch = Arc::new(Epoch::default);
    let receiver = snapshot::Receiver {
        engine,
        slots,
        epoch,
    };
    let sink = receiver.begin();
    take_all(sink.expect("an empty engine takes a fresh slot"), bytes)
}

fn read_placement_command(bytes: &[u8]) -> bool {
    let command = both_ways(bytes, PlacementCommand::decode, |it| it.encode().to_vec());
    let answer = both_ways(bytes, PlacementAnswer::decode, |it| it.encode().to_vec());
    command || answer
}

/// The bytes as the state, and as the chunks of a snapshot of it.
fn read_placement_state(bytes: &[u8]) -> bool {
    let as_chunks = take_all(machine::empty_sink(), bytes);
    let as_state = both_ways(
        bytes,
        |bytes| machine::decode_state(bytes).map_err(text_of),
        machine::encode_state,
    );
    as_chunks || as_state
}

fn read_membership(bytes: &[u8]) -> bool {
    let understood = raft::is_membership(bytes);
    both_ways(
        bytes,
        |bytes| Membership::decode(bytes).map_err(text_of),
        |it| it.encode().to_vec(),
    );
    understood
}

fn read_origin(bytes: &[u8]) -> bool {
    let Ok(origin) = Origin::decode(ReplicaId(1), bytes) else {
        return false;
    };
    let written = origin.encode();
    let again = Origin::decode(ReplicaId(1), &written).expect("it was just written");
    assert_eq!(again.encode(), written);
    true
}

fn read_engine_header(bytes: &[u8]) -> bool {
    let header = bytes.first_chunk().map(Segment::of);
    matches!(header, Some(Segment::Unused | Segment::Used { .. }))
}

fn read_engine_segment(bytes: &[u8]) -> bool {
    let Some((number, segment)) = bytes.split_first() else {
        return false;
    };
    let damage = format::damage_in(segment, u64::from(*number));
    assert!(damage.is_none_or(|offset| offset < segment.len()));
    damage.is_none()
}

fn read_engine_summary(bytes: &[u8]) -> bool {
    let mut sealed = bytes.to_vec();
    if let Some(body) = sealed.len().checked_sub(12) {
        let checksum = crc32fast::hash(&sealed[..body]);
        sealed[body + 8..].copy_from_slice(&checksum.to_le_bytes());
    }
    let _ = format::summarized(&sealed);
    format::summarized(bytes).is_ok()
}

/// The bytes as they are, and with a last line that makes them whole.
fn read_identity(bytes: &[u8]) -> bool {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let mut sealed = lines.take(2).flatten().copied().collect::<Vec<u8>>();
    let last = format!("crc32c {:08x}\n", crc32c::crc32c(&sealed));
    sealed.extend(last.as_bytes());
    identity::is_identity(&sealed);
    identity::is_identity(bytes)
}

fn read_members(bytes: &[u8]) -> bool {
    let body = &bytes[..bytes.len().saturating_sub(4)];
    let checksum = crc32c::crc32c(body).to_be_bytes();
    members::is_members(&[body, &checksum].concat());
    members::is_members(bytes)
}

fn read_keyspaces(bytes: &[u8]) -> bool {
    let body = &bytes[..bytes.len().saturating_sub(4)];
    let checksum = crc32c::crc32c(body).to_be_bytes();
    keyspaces::is_keyspaces(&[body, &checksum].concat());
    keyspaces::is_keyspaces(bytes)
}

fn read_config(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| config::of_text(text).is_ok())
}

/// Real bytes for the decoders, by name, out of the data directory of a node that has stopped.
pub fn samples(data: &Path, engine: &dyn Engine) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut samples = vec![
        ("identity", fs::read(data.join("identity"))?),
        ("members", fs::read(data.join("members"))?),
        ("keyspaces", fs::read(data.join("keyspaces"))?),
    ];
    for file in files_in(&data.join("wal"), "log-")? {
        samples.extend(wal::trial::samples(&file));
    }
    for summary in files_in(&data.join("engine"), "snap.")? {
        samples.push(("engine summary", summary));
    }
    samples.extend(engine_samples(engine)?);
    let commands: Vec<_> = samples
        .iter()
        .filter(|(name, _)| *name == "command")
        .map(|(_, bytes)| ("placement command", bytes.clone()))
        .collect();
    samples.extend(commands);
    Ok(samples)
}

fn files_in(directory: &Path, prefix: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort();
    let begins = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    let paths = paths.into_iter().filter(|path| begins(path));
    paths.map(fs::read).collect()
}

/// Every key, and what is stored under it by the decoder that reads it.
fn engine_samples(engine: &dyn Engine) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut samples = Vec::new();
    for pair in engine.scan(&[], &[0xff; 16], false) {
        let (key, value) = pair.map_err(io::Error::other)?;
        samples.push(("layout", key.clone()));
        if let Ok(place) = Place::of(&key) {
            let mut string = Vec::new();
            ordered::put_bytes(&mut string, &place.key);
            samples.push(("ordered", string));
            match place.family {
                Family::Newest | Family::History => samples.push(("version", value)),
                Family::Outcome => samples.push(("outcome", value)),
                Family::Intent | Family::SharedLock | Family::TransactionMark | Family::Chunk => {}
            }
        } else if key.first() == Some(&2) {
            samples.push(("row", value));
        }
    }
    Ok(samples)
}
