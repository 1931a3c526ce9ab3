//! A replica's state on its way to another replica. Decides only.
//!
//! The first chunk carries the row, the last one counts; in between are pairs without their slot, so
//! that the receiver puts them into a fresh slot of its own, a batch per chunk. One small batch then
//! switches the row.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::frame::FRAME_BYTES;
use crate::codec::frame::FrameError;
use crate::codec::frame::FrameKind;
use crate::codec::frame::FrameReader;
use crate::codec::frame::FrameWriter;
use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::value;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::Pair;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Received;
use crate::machine::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::machine::SnapshotReceiver;
use crate::machine::SnapshotSink;
use crate::machine::SnapshotSource;
use crate::shard::read::ShardReader;
use crate::shard::row::Row;
use crate::shard::slots::Fresh;
use crate::shard::slots::Slots;
use crate::shard::walk::Walk;
use crate::types::shard::Epoch;

const COUNT_FORMAT: u8 = 1;

/// What the last chunk says of all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
struct Count {
    pairs: u64,
    bytes: u64,
    checksum: u32,
}

impl Count {
    fn add(&mut self, (place, record): &Pair) {
        self.pairs += 1;
        self.bytes += (place.len() + record.len()) as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, place);
        self.checksum = crc32c::crc32c_append(self.checksum, record);
    }
}

/// The outgoing end.
pub(crate) struct Source {
    reader: ShardReader,
    walk: Walk,
    writer: FrameWriter,
    ready: VecDeque<Pair>,
    count: Count,
    stage: Stage,
}

enum Stage {
    Head,
    Pairs,
    Over,
}

impl Source {
    pub(crate) fn new(reader: &ShardReader) -> Source {
        Source {
            reader: reader.clone(),
            walk: Walk::begin(reader),
            writer: FrameWriter::default(),
            ready: VecDeque::new(),
            count: Count::default(),
            stage: Stage::Head,
        }
    }

    fn pairs(&mut self) -> Result<Option<Bytes>, MachineError> {
        let mut payload = Vec::new();
        loop {
            let Some(pair) = self.ready.front() else {
                match self.walk.portion()? {
                    Some(pairs) => self.ready.extend(pairs),
                    None => break,
                }
                continue;
            };
            let more = 6 + pair.0.len() + pair.1.len();
            if payload.len() + more > SNAPSHOT_CHUNK_BYTES_MAX - FRAME_BYTES && !payload.is_empty()
            {
                break;
            }
            self.count.add(pair);
            put_pair(&mut payload, pair);
            self.ready.pop_front();
        }
        let chunk = || self.writer.frame(FrameKind::Pairs, &payload);
        Ok((!payload.is_empty()).then(chunk))
    }
}

impl SnapshotSource for Source {
    fn applied(&self) -> Applied {
        self.walk.row().applied.clone()
    }

    fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        // It may lead for a moment yet, and must fill no other replica with what it has.
        if self.reader.is_quarantined() {
            return Err(MachineError("the replica is quarantined".to_owned()));
        }
        match self.stage {
            Stage::Head => {
                self.stage = Stage::Pairs;
                let row = self.walk.row().encode();
                Ok(Some(self.writer.frame(FrameKind::Head, &row)))
            }
            Stage::Pairs => {
                if let Some(chunk) = self.pairs()? {
                    return Ok(Some(chunk));
                }
                self.stage = Stage::Over;
                let count = value::encode(COUNT_FORMAT, &self.count);
                Ok(Some(self.writer.frame(FrameKind::End, &count)))
            }
            Stage::Over => Ok(None),
        }
    }
}

/// Opens places for snapshots.
pub(crate) struct Receiver {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) slots: Arc<Slots>,
    /// The shard's epoch as it is known here.
    pub(crate) epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
}

impl SnapshotReceiver for Receiver {
    fn begin(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(Sink {
            engine: self.engine.clone(),
            slot: self.slots.fresh()?,
            epoch: Arc::clone(&self.epoch),
            reader: FrameReader::default(),
            state: None,
            count: Count::default(),
            is_complete: false,
        }))
    }
}

/// The incoming end.
struct Sink {
    engine: Arc<dyn Engine>,
    slot: Fresh,
    epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    reader: FrameReader,
    state: Option<Bytes>,
    count: Count,
    is_complete: bool,
}

impl Sink {
    fn store(&mut self, payload: &Bytes) -> Result<(), MachineError> {
        let mut batch = Batch::default();
        let mut rest = &payload[..];
        while !rest.is_empty() {
            let (pair, after) = take_pair(rest)?;
            rest = after;
            let family = Place::without_slot(&pair.0)?.family;
            self.count.add(&pair);
            if mutant::lives(Mutant::SnapshotWithoutOutcomes) && family == Family::Outcome {
                continue;
            }
            batch.put(layout::in_other_slot(self.slot.slot(), &pair.0), pair.1);
        }
        Ok(self.engine.write(batch)?)
    }
}

impl SnapshotSink for Sink {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        if self.is_complete {
            return Err(wrong("a chunk follows the last one"));
        }
        let (kind, payload) = self.reader.open(chunk)?;
        match (kind, &self.state) {
            (FrameKind::Head, None) => {
                let row = Row::decode(&payload)?;
                // A replica that was made behind a merge has nothing to do that merge with. Whoever sends this has
                // not come so far yet, and sends another one when he has.
                let is_older = row.descriptor.epoch.is_before((self.epoch)());
                if is_older && !mutant::lives(Mutant::OlderSnapshotTaken) {
                    return Err(wrong("the shard has changed since"));
                }
                self.state = Some(payload);
                Ok(())
            }
            (FrameKind::Pairs, Some(_)) => self.store(&payload),
            (FrameKind::End, Some(_)) => {
                let sent: Count = value::decode("the count of a snapshot", COUNT_FORMAT, &payload)?;
                if sent != self.count {
                    let arrived = self.count;
                    return Err(wrong(&format!("{sent:?} was sent, {arrived:?} arrived")));
                }
                self.is_complete = true;
                Ok(())
            }
            (FrameKind::Head, Some(_)) | (FrameKind::Pairs | FrameKind::End, None) => {
                Err(wrong("its chunks are out of order"))
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<Received, MachineError> {
        let Some(state) = self.state.clone().filter(|_| self.is_complete) else {
            return Err(wrong("its last chunk is missing"));
        };
        Ok(Received {
            slot: Some(self.slot.slot().0),
            state,
            hold: Some(Box::new(self.slot)),
        })
    }
}

impl From<FrameError> for MachineError {
    fn from(error: FrameError) -> MachineError {
        MachineError(error.to_string())
    }
}

fn wrong(reason: &str) -> MachineError {
    MachineError(format!("a received snapshot is wrong: {reason}"))
}

fn put_pair(out: &mut Vec<u8>, (place, record): &Pair) {
    out.extend_from_slice(&(place.len() as u16).to_be_bytes());
    out.extend_from_slice(&(record.len() as u32).to_be_bytes());
    out.extend_from_slice(place);
    out.extend_from_slice(record);
}

fn take_pair(bytes: &[u8]) -> Result<(Pair, &[u8]), MachineError> {
    let short = || wrong("a pair is cut short");
    let (place_bytes, rest) = bytes.split_first_chunk::<2>().ok_or_else(short)?;
    let (record_bytes, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let place_bytes = u16::from_be_bytes(*place_bytes) as usize;
    let record_bytes = u32::from_be_bytes(*record_bytes) as usize;
    let (place, rest) = rest.split_at_checked(place_bytes).ok_or_else(short)?;
    let (record, rest) = rest.split_at_checked(record_bytes).ok_or_else(short)?;
    Ok(((place.to_vec(), record.to_vec()), rest))
}
