//! Placement's state behind the cut that Raft sees. Decides only.
//!
//! The state is small and is written whole, in pieces short enough for the engine, in the same batch
//! as the row that says how far it has come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::RwLock;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::codec::frame::FRAME_BYTES;
use crate::codec::frame::FrameKind;
use crate::codec::frame::FrameReader;
use crate::codec::frame::FrameWriter;
use crate::codec::layout;
use crate::codec::value;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Need;
use crate::machine::Received;
use crate::machine::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::machine::SnapshotReceiver;
use crate::machine::SnapshotSink;
use crate::machine::SnapshotSource;
use crate::machine::StateMachine;
use crate::placement::command::PlacementCommand;
use crate::placement::state::PlacementState;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;

const ROW_FORMAT: u8 = 1;
const STATE_FORMAT: u8 = 3;
/// As format 3, without the keyspaces, which stand at its end.
const STATE_FORMAT_BEFORE_KEYSPACES: u8 = 2;
/// How no keyspaces are written.
const NO_KEYSPACES: u8 = 0;

/// Bytes of the state in one stored value.
const PIECE_BYTES: usize = 4 * 1024;

#[derive(Serialize, Deserialize)]
struct Row {
    position: Option<Position>,
    membership_position: Option<Position>,
    membership: Bytes,
    pieces: u32,
}

/// The state as of one position.
#[derive(Debug, Clone, Default)]
struct Current {
    applied: Applied,
    state: Arc<PlacementState>,
    /// How many pieces are stored.
    pieces: u32,
}

/// Writes the first state of a replica; false when it has one already. The caller flushes the engine.
pub fn seed(
    engine: &dyn Engine,
    replica: ReplicaId,
    state: PlacementState,
    applied: Applied,
) -> Result<bool, MachineError> {
    if engine.get(&layout::placement_row(replica))?.is_some() {
        return Ok(false);
    }
    let mut current = Current {
        applied,
        state: Arc::new(state),
        pieces: 0,
    };
    engine.write(current.batch(replica))?;
    Ok(true)
}

/// Writes the row of a replica that begins with nothing, unless it has one. The caller flushes the engine.
pub fn empty(engine: &dyn Engine, replica: ReplicaId) -> Result<(), MachineError> {
    let nothing = PlacementState::default();
    seed(engine, replica, nothing, Applied::default()).map(drop)
}

/// Removes all that a replica has in the engine. Done before, it is done. The caller has stopped the replica's
/// machine, which would write the row again, and flushes the engine. As with shards a mark stays until it is
/// forgotten.
pub fn destroy(engine: &dyn Engine, replica: ReplicaId) -> Result<(), MachineError> {
    let Some(current) = Current::read(engine, replica)? else {
        return Ok(());
    };
    let mut batch = Batch::default();
    batch.delete(layout::placement_row(replica));
    for piece in 0..current.pieces {
        batch.delete(layout::placement_state(replica, piece));
    }
    batch.put(layout::ending(replica), Vec::new());
    Ok(engine.write(batch)?)
}

/// The replicas of placement that have a row in the engine: one, or none.
pub fn replicas(engine: &dyn Engine) -> Result<Vec<ReplicaId>, MachineError> {
    let (start, end) = layout::placement_rows();
    let rows = engine.scan(&start, &end, false);
    rows.map(|pair| Ok(layout::row_replica(&pair?.0)?))
        .collect()
}

impl Current {
    fn read(engine: &dyn Engine, replica: ReplicaId) -> Result<Option<Current>, MachineError> {
        let Some(row) = engine.get(&layout::placement_row(replica))? else {
            return Ok(None);
        };
        let row: Row = value::decode("the row of placement", ROW_FORMAT, &row)?;
        let mut encoded = Vec::new();
        for number in 0..row.pieces {
            let piece = engine.get(&layout::placement_state(replica, number))?;
            encoded.extend(piece.ok_or_else(|| {
                MachineError(format!("piece {number} of placement's state is missing"))
            })?);
        }
        Ok(Some(Current {
            applied: Applied {
                position: row.position,
                membership_position: row.membership_position,
                membership: row.membership,
            },
            state: Arc::new(decode_state(&encoded)?),
            pieces: row.pieces,
        }))
    }

    /// Everything, in one batch.
    fn batch(&mut self, replica: ReplicaId) -> Batch {
        let encoded = encode_state(&self.state);
        let mut batch = Batch::default();
        let mut pieces = 0;
        for piece in encoded.chunks(PIECE_BYTES) {
            batch.put(layout::placement_state(replica, pieces), piece.to_vec());
            pieces += 1;
        }
        for surplus in pieces..self.pieces {
            batch.delete(layout::placement_state(replica, surplus));
        }
        self.pieces = pieces;
        let row = Row {
            position: self.applied.position,
            membership_position: self.applied.membership_position,
            membership: self.applied.membership.clone(),
            pieces,
        };
        batch.put(
            layout::placement_row(replica),
            value::encode(ROW_FORMAT, &row),
        );
        batch
    }

    fn entry(&mut self, entry: &LogEntry) -> Result<Bytes, MachineError> {
        let last = self.applied.position.replace(entry.position);
        if let Some(last) = last
            && entry.position.index != last.index + 1
        {
            return Err(MachineError(format!(
                "entry {} does not follow the applied entry {last}",
                entry.position
            )));
        }
        match &entry.payload {
            Payload::Blank => Ok(Bytes::new()),
            Payload::Membership(membership) => {
                self.applied.membership = membership.clone();
                self.applied.membership_position = Some(entry.position);
                Ok(Bytes::new())
            }
            Payload::Command(bytes) => {
                let command = PlacementCommand::decode(bytes)?;
                Ok(Arc::make_mut(&mut self.state).apply(command).encode())
            }
        }
    }
}

pub(crate) fn encode_state(state: &PlacementState) -> Vec<u8> {
    value::encode(STATE_FORMAT, state)
}

pub(crate) fn decode_state(bytes: &[u8]) -> Result<PlacementState, MachineError> {
    const WHAT: &str = "placement's state";
    if let [STATE_FORMAT_BEFORE_KEYSPACES, fields @ ..] = bytes {
        let fields = [fields, &[NO_KEYSPACES]].concat();
        return Ok(value::decode_fields(WHAT, &fields)?);
    }
    Ok(value::decode(WHAT, STATE_FORMAT, bytes)?)
}

/// One replica of placement.
pub struct PlacementMachine {
    engine: Arc<dyn Engine>,
    replica: ReplicaId,
    current: Arc<RwLock<Current>>,
}

/// Reads placement's state while it applies.
#[derive(Clone)]
pub struct PlacementReader {
    current: Arc<RwLock<Current>>,
}

impl PlacementReader {
    /// The state as of the last entries applied.
    pub fn state(&self) -> Arc<PlacementState> {
        self.get().state
    }

    /// How far the replica has come.
    pub fn applied(&self) -> Applied {
        self.get().applied
    }

    fn get(&self) -> Current {
        self.current
            .read()
            .expect("no holder of the lock panics")
            .clone()
    }
}

impl PlacementMachine {
    /// The replica whose row is in the engine; `None` when there is no such row.
    pub fn open(
        engine: Arc<dyn Engine>,
        replica: ReplicaId,
    ) -> Result<Option<PlacementMachine>, MachineError> {
        let current = Current::read(&*engine, replica)?;
        Ok(current.map(|current| PlacementMachine {
            engine,
            replica,
            current: Arc::new(RwLock::new(current)),
        }))
    }

    /// A handle for readers, which stays good while the machine goes on.
    pub fn reader(&self) -> PlacementReader {
        PlacementReader {
            current: self.current.clone(),
        }
    }

    fn write(&mut self, mut next: Current) -> Result<(), MachineError> {
        self.engine.write(next.batch(self.replica))?;
        *self.current.write().expect("no holder of the lock panics") = next;
        Ok(())
    }
}

impl StateMachine for PlacementMachine {
    fn applied(&self) -> Applied {
        self.reader().applied()
    }

    fn apply(&mut self, entries: &[LogEntry]) -> Result<Vec<Bytes>, MachineError> {
        let mut next = self.reader().get();
        let answers = entries
            .iter()
            .map(|entry| next.entry(entry))
            .collect::<Result<_, _>>()?;
        if !entries.is_empty() {
            self.write(next)?;
        }
        Ok(answers)
    }

    /// Placement waits for nobody.
    fn take_need(&mut self) -> Option<Need> {
        None
    }

    /// Placement splits nothing off.
    fn take_seeded(&mut self) -> Vec<ReplicaId> {
        Vec::new()
    }

    /// And absorbs nothing.
    fn take_ended(&mut self) -> Vec<ReplicaId> {
        Vec::new()
    }

    fn displaces(&self, _received: &Received) -> Result<Vec<ReplicaId>, MachineError> {
        Ok(Vec::new())
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let current = self.reader().get();
        let encoded = encode_state(&current.state);
        let mut writer = FrameWriter::default();
        let pieces = encoded.chunks(SNAPSHOT_CHUNK_BYTES_MAX - FRAME_BYTES);
        let mut chunks: VecDeque<Bytes> = pieces
            .map(|piece| writer.frame(FrameKind::Pairs, piece))
            .collect();
        chunks.push_back(writer.frame(FrameKind::End, &[]));
        Ok(Box::new(Source {
            applied: current.applied,
            chunks,
        }))
    }

    fn collect(&mut self) -> Result<bool, MachineError> {
        Ok(false)
    }

    fn receiver(&self) -> Box<dyn SnapshotReceiver> {
        Box::new(Receiver)
    }

    fn install(&mut self, applied: Applied, received: Received) -> Result<(), MachineError> {
        let before = self.reader().get();
        if applied.position < before.applied.position {
            let position = |applied: &Applied| applied.position.unwrap_or_default();
            return Err(MachineError(format!(
                "a snapshot of position {} cannot replace the state at {}",
                position(&applied),
                position(&before.applied)
            )));
        }
        self.write(Current {
            applied,
            state: Arc::new(decode_state(&received.state)?),
            pieces: before.pieces,
        })
    }
}

struct Source {
    applied: Applied,
    chunks: VecDeque<Bytes>,
}

impl SnapshotSource for Source {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.chunks.pop_front())
    }
}

/// A place for a snapshot that comes in.
pub(crate) fn empty_sink() -> Box<dyn SnapshotSink> {
    Box::new(Sink::default())
}

struct Receiver;

impl SnapshotReceiver for Receiver {
    fn begin(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(empty_sink())
    }
}

#[derive(Default)]
struct Sink {
    reader: FrameReader,
    state: Vec<u8>,
    is_complete: bool,
}

impl SnapshotSink for Sink {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        let opened = self.reader.open(chunk);
        let (kind, payload) = opened.map_err(|error| MachineError(error.to_string()))?;
        match kind {
            FrameKind::Pairs if !self.is_complete => self.state.extend_from_slice(&payload),
            FrameKind::End if !self.is_complete => self.is_complete = true,
            FrameKind::Head | FrameKind::Pairs | FrameKind::End => {
                return Err(MachineError(
                    "the chunks of placement's snapshot are out of order".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Received, MachineError> {
        if !self.is_complete {
            return Err(MachineError(
                "the last chunk of placement's snapshot is missing".to_owned(),
            ));
        }
        decode_state(&self.state)?;
        Ok(Received {
            slot: None,
            state: self.state.into(),
            hold: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::MemoryEngine;
    use crate::placement::command::PlacementAnswer;
    use crate::types::Incarnation;
    use crate::types::KeyRange;
    use crate::types::NodeId;
    use crate::types::ShardId;
    use crate::types::node::Member;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;
    use crate::types::shard::ShardDescriptor;

    use super::*;
    use crate::types::Timestamp;
    use crate::types::keyspace::Buckets;
    use crate::types::keyspace::Keyspace;
    use crate::types::keyspace::Layout;
    use crate::types::node::Duty;
    use crate::types::operator::Action;
    use crate::types::operator::Aim;
    use crate::types::operator::Operator;
    use crate::types::rule::Rule;

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            incarnation: Incarnation([id as u8; 16]),
            name: format!("n{id}"),
            node_address: "a".repeat(200),
            client_address: String::new(),
        }
    }

    fn entry(index: u64, payload: Payload) -> LogEntry {
        LogEntry {
            position: Position { term: 1, index },
            payload,
        }
    }

    fn command(index: u64, command: PlacementCommand) -> LogEntry {
        entry(index, Payload::Command(command.encode()))
    }

    fn machine(engine: &Arc<MemoryEngine>) -> PlacementMachine {
        let engine: Arc<dyn Engine> = engine.clone();
        PlacementMachine::open(engine, ReplicaId(1))
            .unwrap()
            .unwrap()
    }

    fn seeded() -> Arc<MemoryEngine> {
        let engine = Arc::new(MemoryEngine::new());
        let applied = Applied {
            position: Some(Position { term: 1, index: 1 }),
            ..Applied::default()
        };
        let state = PlacementState::formed(vec![member(1)], Vec::new(), 2);
        assert!(seed(&*engine, ReplicaId(1), state.clone(), applied.clone()).unwrap());
        assert!(!seed(&*engine, ReplicaId(1), state, applied).unwrap());
        engine
    }

    #[test]
    fn what_was_applied_is_there_after_a_restart_as_far_as_it_was_written() {
        let engine = seeded();
        engine.flush().unwrap();
        let mut first = machine(&engine);
        let entries: Vec<LogEntry> = (2..40)
            .map(|id| command(id, PlacementCommand::RecordMember(member(id))))
            .collect();
        first.apply(&entries).unwrap();
        let again = machine(&engine);
        assert_eq!(again.reader().state(), first.reader().state());
        assert_eq!(again.applied(), first.applied());
        assert!(first.reader().get().pieces > 1);

        engine.crash(0);
        let mut behind = machine(&engine);
        assert_eq!(behind.applied().position.unwrap().index, 1);
        behind.apply(&entries).unwrap();
        assert_eq!(behind.reader().state(), first.reader().state());
    }

    #[test]
    fn a_snapshot_carries_the_whole_state() {
        let mut sender = machine(&seeded());
        let entries: Vec<LogEntry> = (2..3000)
            .map(|id| command(id, PlacementCommand::RecordMember(member(id))))
            .collect();
        sender.apply(&entries).unwrap();
        let mut source = sender.snapshot().unwrap();
        let mut target = machine(&seeded());
        let mut sink = target.receiver().begin().unwrap();
        sender.apply(&[entry(3000, Payload::Blank)]).unwrap();
        let mut chunks = 0;
        while let Some(chunk) = source.next().unwrap() {
            assert!(chunk.len() <= SNAPSHOT_CHUNK_BYTES_MAX);
            sink.chunk(chunk).unwrap();
            chunks += 1;
        }
        assert!(chunks > 2);
        let received = sink.finish().unwrap();
        target.install(source.applied(), received).unwrap();
        assert_eq!(target.reader().state(), sender.reader().state());
        assert_eq!(target.applied().position.unwrap().index, 2999);
    }

    #[test]
    fn examples_of_formats_two_and_three_are_read() {
        let shard = ShardDescriptor {
            id: ShardId(1),
            range: KeyRange {
                start: Bytes::new(),
                end: Some("m".into()),
            },
            epoch: Epoch { conf: 1, bounds: 2 },
            replicas: vec![Replica {
                id: ReplicaId(41),
                node: NodeId(4),
            }],
        };
        let node = Member {
            node_address: "a:1".into(),
            ..member(4)
        };
        let mut state = PlacementState::formed(vec![node], vec![shard.clone()], 50);
        let operator = Operator {
            shard: ShardId(1),
            aim: Aim::Repair,
            action: Action::Add { to: NodeId(5) },
            reason: "why".to_owned(),
            epoch: shard.epoch,
            voters: shard.replicas,
            bytes: 9,
            expires: Timestamp(8),
        };
        for command in [
            PlacementCommand::SetDuty {
                node: NodeId(4),
                duty: Duty::Drain,
            },
            PlacementCommand::NoteSilence {
                node: NodeId(4),
                since: Some(Timestamp(7)),
            },
            PlacementCommand::SetRule(Rule {
                prefix: "p".into(),
                ..Rule::default()
            }),
            PlacementCommand::SetSetting {
                name: "s".to_owned(),
                value: Some("1".to_owned()),
            },
            PlacementCommand::SetPaused(true),
            PlacementCommand::RecordOperators(vec![operator]),
        ] {
            assert_eq!(state.apply(command), PlacementAnswer::Recorded);
        }
        let example = [
            // The format; one member, made by change 1.
            &[2, 1, 4][..],
            &[4; 16],
            b"\x02n4\x03a:1\x00\x01",
            // One shard: id, range, epoch, one replica; made by change 2.
            b"\x01\x01\x00\x01\x01m\x01\x02\x01\x29\x04\x02",
            // One node: id, no labels, both roles, drained, silent since 7.
            &[1, 4, 0, 0, 1, 1, 7],
            // One rule: prefix, replicas, no labels, spread.
            b"\x01\x01p\x03\x00\x00\x00\x04zone",
            // One setting; paused.
            b"\x01\x01s\x011\x01",
            // One operator: shard, aim, action, reason, epoch, voters, bytes, expiry; made by change 3.
            b"\x01\x01\x02\x00\x05\x03why\x01\x02\x01\x29\x04\x09\x08\x03",
            // The next number, and the last change.
            &[50, 3],
        ];
        assert_eq!(decode_state(&example.concat()).unwrap(), state);
        let fields = &example.concat()[1..];
        assert_eq!(encode_state(&state), [&[3], fields, &[0]].concat());
        let layout = Layout::Hash(Buckets { count: 4, parts: 2 });
        let keyspace = Keyspace::new("ks".parse().unwrap(), None, layout).unwrap();
        state.apply(PlacementCommand::CreateKeyspace(keyspace));
        let name = "ks".parse().unwrap();
        state.apply(PlacementCommand::RetireKeyspace { name });
        // One keyspace: name, prefix, buckets and parts, retired; made by change 5, the last.
        let keyspaces = b"\x01\x02ks\x03ks/\x01\x04\x02\x01\x05";
        let before = &fields[..fields.len() - 1];
        let example = [&[3], before, &[5], &keyspaces[..]].concat();
        assert_eq!(decode_state(&example).unwrap(), state);
        assert_eq!(encode_state(&state), example);
    }

    #[test]
    fn a_gap_ends_the_replica_and_an_id_is_answered() {
        let mut machine = machine(&seeded());
        let take = PlacementCommand::TakeIds { count: 2 };
        let answers = machine.apply(&[command(2, take.clone())]).unwrap();
        let answer = PlacementAnswer::decode(&answers[0]).unwrap();
        assert_eq!(answer, PlacementAnswer::FirstId(2));
        let error = machine.apply(&[command(4, take)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "entry 1.4 does not follow the applied entry 1.2"
        );
    }
}
