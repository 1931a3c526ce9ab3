//! The log's decoders as functions of any bytes, for the tests that try them with damaged ones. Decides only.

use bytes::Bytes;

use crate::codec::record;
use crate::codec::record::FRAME_BYTES;
use crate::codec::record::Frame;
use crate::codec::record::Place;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::wal::record::FORMAT;
use crate::wal::record::Record;
use crate::wal::recovery::Recovered;
use crate::wal::segment::HEADER_BYTES;
use crate::wal::segment::Header;

/// The number of the segment that is read.
const SEQUENCE: u64 = 1;

/// Whether the bytes are a segment's header; what is read is written as it was.
pub(crate) fn header(bytes: &[u8]) -> bool {
    let sequence = bytes.get(12..20).and_then(|number| number.try_into().ok());
    let sequence = sequence.map_or(0, u64::from_le_bytes);
    let Ok(header) = Header::decode(bytes, sequence) else {
        return false;
    };
    let again = Header::decode(&header.encode(), sequence);
    assert_eq!(again, Ok(header));
    true
}

/// Whether the bytes, a kind and a body, are a record.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let Some((kind, body)) = bytes.split_first() else {
        return false;
    };
    let frame = Frame {
        version: FORMAT,
        kind: *kind,
        owner: 7,
        body: Bytes::copy_from_slice(body),
    };
    let Ok(read) = Record::decode(&frame) else {
        return false;
    };
    let place = Place {
        file: SEQUENCE,
        offset: HEADER_BYTES,
    };
    let mut buffer = Vec::new();
    read.encode(&mut buffer, place, ReplicaId(frame.owner));
    assert_eq!(buffer.len(), read.bytes());
    let again = record::decode(&buffer.into(), place);
    let again = again
        .expect("it was just written")
        .expect("it is not empty");
    assert_eq!(Record::decode(&again), Ok(read));
    true
}

/// Whether the bytes are a segment's records from its header on. Read as the last one, as one with a
/// successor that names their end, and twice in a row.
pub(crate) fn segment(bytes: &[u8]) -> bool {
    let mut whole = vec![0; HEADER_BYTES as usize];
    whole.extend_from_slice(bytes);
    let whole = Bytes::from(whole);
    let mut last = Recovered::default();
    let Ok(end) = last.read_last(SEQUENCE, &whole) else {
        return false;
    };
    assert!(end.synced <= end.offset && end.offset <= whole.len() as u64);
    let is_whole = last.check().is_ok();
    let mut ended = Recovered::default();
    let read = ended.read_ended(SEQUENCE, &whole, end.offset);
    assert_eq!(read, Ok(()), "what the last segment may hold, any may");
    assert_eq!(ended.replicas, last.replicas);
    assert!(
        end.offset == whole.len() as u64 || ended.read_ended(SEQUENCE, &whole, u64::MAX).is_err()
    );
    is_whole && !end.torn
}

/// Makes records of the bytes, with right checksums, and reads them as a segment: what a later part of the
/// log may say after any earlier one. Each is an owner, a kind, a length and a body.
pub(crate) fn records(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut buffer = vec![0; HEADER_BYTES as usize];
    while let [owner, kind, length, after @ ..] = rest {
        let (body, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let place = Place {
            file: SEQUENCE,
            offset: buffer.len() as u64,
        };
        record::encode(
            &mut buffer,
            place,
            FORMAT,
            *kind,
            u64::from(owner % 4),
            |out| {
                out.extend_from_slice(body);
            },
        );
    }
    segment(&buffer[HEADER_BYTES as usize..])
}

/// The parts of a real segment for each of these functions: by the function's name.
pub(crate) fn samples(file: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Vec::new();
    let Some(head) = file.get(..HEADER_BYTES as usize) else {
        return samples;
    };
    let sequence = head[12..20].try_into().map_or(0, u64::from_le_bytes);
    samples.push(("wal header", head.to_vec()));
    let whole = Bytes::copy_from_slice(file);
    let mut flat = Vec::new();
    let mut resealed = Vec::new();
    let mut offset = HEADER_BYTES;
    // The checksums of a file hold for its own number alone: here each has the number that is tried.
    while let Ok(Some(frame)) = record::decode(
        &whole.slice(offset as usize..),
        Place {
            file: sequence,
            offset,
        },
    ) {
        offset += frame.bytes() as u64;
        samples.push(("wal record", [&[frame.kind], &frame.body[..]].concat()));
        samples.extend(payloads(&frame));
        let length = frame.body.len().min(255);
        flat.extend([frame.owner as u8, frame.kind, length as u8]);
        flat.extend(&frame.body[..length]);
        let place = Place {
            file: SEQUENCE,
            offset: HEADER_BYTES + resealed.len() as u64,
        };
        record::encode(
            &mut resealed,
            place,
            frame.version,
            frame.kind,
            frame.owner,
            |out| {
                out.extend_from_slice(&frame.body);
            },
        );
        assert!(frame.bytes() >= FRAME_BYTES);
    }
    samples.push(("wal records", flat));
    samples.push(("wal segment", resealed));
    samples
}

/// What the entries and the births in a record say to those above the log.
fn payloads(frame: &Frame) -> Vec<(&'static str, Vec<u8>)> {
    let of_entry = |entry: &LogEntry| match &entry.payload {
        Payload::Blank => None,
        Payload::Command(bytes) => Some(("command", bytes.to_vec())),
        Payload::Membership(bytes) => Some(("membership", bytes.to_vec())),
    };
    match Record::decode(frame) {
        Ok(Record::Entries(entries) | Record::CopiedEntries(entries)) => {
            entries.iter().filter_map(of_entry).collect()
        }
        Ok(Record::Born(about)) => vec![("origin", about.to_vec())],
        Ok(_) | Err(_) => Vec::new(),
    }
}
