//! A shard behind the cut that Raft sees. Decides only.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::layout;
use crate::codec::layout::Slot;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Need;
use crate::machine::Received;
use crate::machine::SnapshotReceiver;
use crate::machine::SnapshotSource;
use crate::machine::StateMachine;
use crate::mvcc::Floors;
use crate::mvcc::gc;
use crate::mvcc::gc::Cursor;
use crate::shard::apply::Applying;
use crate::shard::apply::Changes;
use crate::shard::apply::Others;
use crate::shard::apply::decode_outcome;
use crate::shard::quarantine;
use crate::shard::read::ShardReader;
use crate::shard::row::Merge;
use crate::shard::row::Piece;
use crate::shard::row::Row;
use crate::shard::slots;
use crate::shard::slots::Slots;
use crate::shard::snapshot::Receiver;
use crate::shard::snapshot::Source;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::log::LogEntry;
use crate::types::shard::Chain;
use crate::types::shard::ShardDescriptor;
use crate::types::shard::Size;

/// A batch ends after the entry that takes it above this many bytes: the engine lets no reader in
/// while it writes one.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Versions or outcomes that one portion of collection looks at: about a millisecond.
const LOOKS: usize = 2_000;

/// How long replaced versions are kept unless said otherwise, in milliseconds.
pub const HISTORY_RETENTION_MS: u64 = 10 * 60 * 1000;

/// How long outcomes are known unless said otherwise, in milliseconds.
pub const RETRY_WINDOW_MS: u64 = 5 * 60 * 1000;

/// What a replica begins with: no keys, and all that is not keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The shard.
    pub descriptor: ShardDescriptor,
    /// Where its log begins, and the membership there.
    pub applied: Applied,
    /// Its writes are stamped above this.
    pub last_stamp: Timestamp,
    /// And a new leader stamps above this.
    pub ceiling: Timestamp,
    /// How long replaced versions are kept, in milliseconds; raised to `retry_window_ms` if lower.
    pub history_retention_ms: u64,
    /// How long outcomes are known, in milliseconds.
    pub retry_window_ms: u64,
}

impl Seed {
    /// A shard without a past.
    pub fn new(descriptor: ShardDescriptor, applied: Applied) -> Seed {
        Seed {
            descriptor,
            applied,
            last_stamp: Timestamp::ZERO,
            ceiling: Timestamp::ZERO,
            history_retention_ms: HISTORY_RETENTION_MS,
            retry_window_ms: RETRY_WINDOW_MS,
        }
    }
}

/// Writes the first row of a replica, in a fresh slot; false when it has a row already. The caller
/// flushes the engine.
pub fn seed(
    engine: &Arc<dyn Engine>,
    slots: &Arc<Slots>,
    replica: ReplicaId,
    seed: Seed,
) -> Result<bool, MachineError> {
    if engine.get(&layout::row(replica))?.is_some() {
        return Ok(false);
    }
    let fresh = slots.fresh()?;
    let row = Row {
        pieces: vec![Piece {
            range: seed.descriptor.range.clone(),
            slot: fresh.slot(),
        }],
        applied: seed.applied,
        last_stamp: seed.last_stamp,
        descriptor: seed.descriptor,
        floors: Floors::default(),
        ceiling: seed.ceiling,
        ceiling_term: 0,
        last_outcome: Timestamp::ZERO,
        history_retention_ms: seed.history_retention_ms.max(seed.retry_window_ms),
        retry_window_ms: seed.retry_window_ms,
        size: Size::default(),
        birth: None,
        chain: Chain::default(),
        merge: Merge::default(),
    };
    let mut batch = Batch::default();
    batch.put(layout::row(replica), row.encode());
    slots::take_off_clear_list(&mut batch, &slots::whole(fresh.slot()));
    engine.write(batch)?;
    Ok(true)
}

/// Writes the first row of a replica that knows its descriptor and has applied nothing, in a fresh slot:
/// to be filled by its log or a snapshot. False when it has a row already. The caller flushes the engine.
pub fn empty(
    engine: &Arc<dyn Engine>,
    slots: &Arc<Slots>,
    replica: ReplicaId,
    descriptor: ShardDescriptor,
) -> Result<bool, MachineError> {
    seed(
        engine,
        slots,
        replica,
        Seed::new(descriptor, Applied::default()),
    )
}

/// Removes all that a replica has in the engine: its row at once, its keys in portions by and by. Done
/// before, it is done. The caller has stopped the replica's machine, which would write the row again,
/// and flushes the engine; reads that are still under way are refused. A mark stays until [`forget`], so
/// that a start after a crash tells a replica that was destroyed from one that was lost.
pub fn destroy(
    engine: &Arc<dyn Engine>,
    slots: &Arc<Slots>,
    replica: ReplicaId,
) -> Result<(), MachineError> {
    let place = layout::row(replica);
    let Some(row) = engine.get(&place)? else {
        return Ok(());
    };
    // Nothing is cleared before a reader that finds it missing also finds that the replica has ended.
    slots.end(replica);
    let mut batch = Batch::default();
    put_end(&mut batch, replica, &Row::decode(&row)?.pieces);
    Ok(engine.write(batch)?)
}

/// Takes a replica's row away, with the batch.
fn put_end(batch: &mut Batch, replica: ReplicaId, pieces: &[Piece]) {
    batch.delete(layout::row(replica));
    batch.put(layout::ending(replica), Vec::new());
    for piece in pieces {
        slots::put_on_clear_list(batch, piece);
    }
}

/// The replicas that were destroyed and not forgotten.
pub fn destroyed(engine: &dyn Engine) -> Result<Vec<ReplicaId>, MachineError> {
    let (start, end) = layout::endings();
    let marks = engine.scan(&start, &end, false);
    marks
        .map(|pair| Ok(layout::ending_replica(&pair?.0)?))
        .collect()
}

/// Removes the mark of a destroyed replica: the log says for ever that it is gone.
pub fn forget(engine: &dyn Engine, replica: ReplicaId) -> Result<(), MachineError> {
    let mut batch = Batch::default();
    batch.delete(layout::ending(replica));
    Ok(engine.write(batch)?)
}

/// The replicas of shards that have a row in the engine.
pub fn replicas(engine: &dyn Engine) -> Result<Vec<ReplicaId>, MachineError> {
    let (start, end) = layout::rows();
    let rows = engine.scan(&start, &end, false);
    rows.map(|pair| Ok(layout::row_replica(&pair?.0)?))
        .collect()
}

/// The rows of all replicas of shards here, whether or not anybody has opened them.
pub fn rows(engine: &dyn Engine) -> Result<Vec<(ReplicaId, Row)>, MachineError> {
    let (start, end) = layout::rows();
    let rows = engine.scan(&start, &end, false);
    let rows = rows.map(|pair| {
        let (place, row) = pair?;
        Ok((layout::row_replica(&place)?, Row::decode(&row)?))
    });
    rows.collect()
}

/// Which of these shards have a replica here, by the rows in the engine, or have frozen one that has: what became
/// of their attempts may still be asked for.
pub fn remains(engine: &dyn Engine, shards: &[ShardId]) -> Result<Vec<ShardId>, MachineError> {
    let rows = rows(engine)?.into_iter();
    let named = rows.flat_map(|(_, row)| {
        let frozen_by = row.frozen().map(|frozen| frozen.attempt.left);
        frozen_by.into_iter().chain([row.descriptor.id])
    });
    let mut remains: Vec<ShardId> = named.filter(|shard| shards.contains(shard)).collect();
    remains.sort_unstable();
    remains.dedup();
    Ok(remains)
}

/// Whether a replica was destroyed and the log may not call it gone yet.
pub fn is_ending(engine: &dyn Engine, replica: ReplicaId) -> Result<bool, MachineError> {
    Ok(engine.get(&layout::ending(replica))?.is_some())
}

/// A replica that has some of these keys, by its row in the engine.
pub fn holder(engine: &dyn Engine, range: &KeyRange) -> Result<Option<ReplicaId>, MachineError> {
    let mut rows = rows(engine)?.into_iter();
    let holder = rows.find(|(_, row)| row.descriptor.range.overlaps(range));
    Ok(holder.map(|(replica, _)| replica))
}

/// One replica of a shard.
pub struct ShardMachine {
    replica: ReplicaId,
    reader: ShardReader,
    others: Arc<dyn Others>,
    /// Why it has stopped applying.
    need: Option<Need>,
    seeded: Vec<ReplicaId>,
    ended: Vec<ReplicaId>,
    pass: Option<Box<Pass>>,
    /// The floors of the last complete pass.
    collected: Floors,
}

/// A pass of collection over the shard.
struct Pass {
    floors: Floors,
    pieces: Vec<Piece>,
    outcomes: bool,
    piece: usize,
    cursor: Option<Cursor>,
}

impl ShardMachine {
    /// The replica whose row is in the engine; `None` when there is no such row. `others` tells
    /// of the other replicas on this node.
    pub fn open(
        engine: Arc<dyn Engine>,
        slots: Arc<Slots>,
        replica: ReplicaId,
        others: Arc<dyn Others>,
    ) -> Result<Option<ShardMachine>, MachineError> {
        let Some(row) = engine.get(&layout::row(replica))? else {
            return Ok(None);
        };
        let row = Row::decode(&row)?;
        let is_quarantined = quarantine::is_marked(engine.as_ref(), replica)?;
        let reader = ShardReader::new(engine, slots, replica, row);
        if is_quarantined && !mutant::lives(Mutant::QuarantineForgotten) {
            reader.quarantine();
        }
        Ok(Some(ShardMachine {
            replica,
            reader,
            others,
            need: None,
            seeded: Vec::new(),
            ended: Vec::new(),
            pass: None,
            collected: Floors::default(),
        }))
    }

    /// A handle for readers, which stays good while the machine goes on.
    pub fn reader(&self) -> ShardReader {
        self.reader.clone()
    }

    /// Whether a pass of collection is under way.
    #[cfg(test)]
    pub(crate) fn has_pass(&self) -> bool {
        self.pass.is_some()
    }

    fn commit(&mut self, applying: &mut Applying<'_>) -> Result<(), MachineError> {
        let Changes {
            batch,
            row,
            links,
            split,
            absorbed,
        } = applying.take();
        if mutant::lives(Mutant::RowBeforeData) {
            let mut early = Batch::default();
            early.put(layout::row(self.replica), row.encode());
            self.reader.engine().write(early)?;
        }
        if let Some(absorbed) = &absorbed {
            // Its readers find that it has ended before anything is changed in what they read.
            self.reader.slots().end(absorbed.ended);
        }
        let given_up = split.iter().flat_map(|split| &split.given_up);
        let given_up: Vec<Piece> = given_up.cloned().collect();
        // Until the row is published readers still go by the old one.
        let held = (!given_up.is_empty()).then(|| self.reader.slots().hold(&given_up));
        self.reader.engine().write(batch)?;
        if absorbed.is_some_and(|absorbed| absorbed.is_quarantined) {
            self.reader.quarantine();
        }
        self.reader.publish(row, links);
        drop(held);
        if split.is_some() || absorbed.is_some() {
            // It would go on in the child's part, which the child's machine changes from now on, or would not
            // come to the part that is new.
            self.pass = None;
        }
        if let Some(split) = split {
            self.seeded.extend(split.seeded);
        }
        if let Some(absorbed) = absorbed {
            self.collected = Floors::default();
            self.ended.push(absorbed.ended);
        }
        Ok(())
    }

    /// The replicas here of shards that have ended according to this row.
    fn ended_by(&self, row: &Row) -> Result<Vec<(ReplicaId, Row)>, MachineError> {
        let mut ended = Vec::new();
        if row.merge.absorbed.is_empty() {
            return Ok(ended);
        }
        let (start, end) = layout::rows();
        for pair in self.reader.engine().scan(&start, &end, false) {
            let (place, other) = pair?;
            let other = Row::decode(&other)?;
            if row.merge.absorbed.contains(&other.descriptor.id) {
                ended.push((layout::row_replica(&place)?, other));
            }
        }
        Ok(ended)
    }

    /// A new pass, when enough has sunk below the floors to be worth looking for.
    fn next_pass(&self) -> Option<Box<Pass>> {
        let row = self.reader.row();
        let held = row
            .pieces
            .iter()
            .filter_map(|piece| self.reader.slots().held(piece));
        let floors = held.fold(row.floors, Floors::min);
        let has_sunk = |from: Timestamp, to: Timestamp, kept_ms: u64| {
            to > from && to.wall_ms() - from.wall_ms() >= kept_ms / 8
        };
        let collected = self.collected;
        let is_due = has_sunk(collected.history, floors.history, row.history_retention_ms)
            || has_sunk(collected.outcomes, floors.outcomes, row.retry_window_ms);
        let pass = || Pass {
            floors,
            pieces: row.pieces.clone(),
            outcomes: false,
            piece: 0,
            cursor: None,
        };
        is_due.then(|| Box::new(pass()))
    }

    fn collect_portion(&mut self, mut pass: Box<Pass>) -> Result<(), MachineError> {
        let engine = self.reader.engine();
        let Some(piece) = pass.pieces.get(pass.piece) else {
            if pass.outcomes {
                self.collected = pass.floors;
                return Ok(());
            }
            pass.outcomes = true;
            pass.piece = 0;
            self.pass = Some(pass);
            return Ok(());
        };
        let cursor = pass.cursor.take();
        let collected = if pass.outcomes {
            let forgotten = |record: &[u8]| Ok(decode_outcome(record)?.0 <= pass.floors.outcomes);
            gc::outcomes(
                &**engine,
                piece.slot,
                &piece.range,
                forgotten,
                cursor,
                LOOKS,
            )?
        } else {
            let floor = match mutant::lives(Mutant::CollectedTooSoon) {
                true => Timestamp::MAX,
                false => pass.floors.history,
            };
            gc::versions(&**engine, piece.slot, &piece.range, floor, cursor, LOOKS)?
        };
        if !collected.batch.changes.is_empty() {
            engine.write(collected.batch)?;
        }
        pass.cursor = collected.rest;
        pass.piece += usize::from(pass.cursor.is_none());
        self.pass = Some(pass);
        Ok(())
    }
}

impl StateMachine for ShardMachine {
    fn applied(&self) -> Applied {
        self.reader.applied()
    }

    fn apply(&mut self, entries: &[LogEntry]) -> Result<Vec<Bytes>, MachineError> {
        let engine = self.reader.engine().clone();
        let others = Arc::clone(&self.others);
        let row = (*self.reader.row()).clone();
        let mut applying = Applying::new(&*engine, others.as_ref(), self.replica, row);
        let mut answers = Vec::with_capacity(entries.len());
        let mut uncommitted = false;
        self.need = None;
        for entry in entries {
            self.need = applying.need(entry)?;
            if self.need.is_some() {
                break;
            }
            answers.push(applying.entry(entry)?);
            uncommitted = applying.bytes() <= BATCH_BYTES_MAX && !applying.ends_batch();
            if !uncommitted {
                self.commit(&mut applying)?;
            }
        }
        if uncommitted {
            self.commit(&mut applying)?;
        }
        Ok(answers)
    }

    fn take_need(&mut self) -> Option<Need> {
        self.need.take()
    }

    fn take_seeded(&mut self) -> Vec<ReplicaId> {
        std::mem::take(&mut self.seeded)
    }

    fn take_ended(&mut self) -> Vec<ReplicaId> {
        std::mem::take(&mut self.ended)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Source::new(&self.reader)))
    }

    fn collect(&mut self) -> Result<bool, MachineError> {
        match self.pass.take().or_else(|| self.next_pass()) {
            Some(pass) => self.collect_portion(pass).map(|()| true),
            None => Ok(false),
        }
    }

    fn receiver(&self) -> Box<dyn SnapshotReceiver> {
        let reader = self.reader.clone();
        Box::new(Receiver {
            engine: self.reader.engine().clone(),
            slots: self.reader.slots().clone(),
            epoch: Arc::new(move || reader.row().descriptor.epoch),
        })
    }

    fn displaces(&self, received: &Received) -> Result<Vec<ReplicaId>, MachineError> {
        let ended = self.ended_by(&Row::decode(&received.state)?)?;
        Ok(ended.into_iter().map(|(replica, _)| replica).collect())
    }

    fn install(&mut self, applied: Applied, received: Received) -> Result<(), MachineError> {
        let slot = received.slot.map(Slot).ok_or_else(|| {
            MachineError("a snapshot of a shard came without the slot that it filled".to_owned())
        })?;
        let before = self.reader.row();
        let sent = Row::decode(&received.state)?;
        if sent.applied.position != applied.position || applied.position < before.applied.position {
            let position = |applied: &Applied| applied.position.unwrap_or_default();
            return Err(MachineError(format!(
                "a snapshot of position {}, announced as {}, cannot replace the state at {}",
                position(&sent.applied),
                position(&applied),
                position(&before.applied)
            )));
        }
        let displaced = match mutant::lives(Mutant::SnapshotLeavesRight) {
            true => Vec::new(),
            false => self.ended_by(&sent)?,
        };
        let row = Row {
            pieces: vec![Piece {
                range: sent.descriptor.range.clone(),
                slot,
            }],
            applied,
            birth: before.birth.or(sent.birth_elsewhere()),
            ..sent
        };
        let mut batch = Batch::default();
        batch.put(layout::row(self.replica), row.encode());
        slots::take_off_clear_list(&mut batch, &slots::whole(slot));
        for piece in &before.pieces {
            slots::put_on_clear_list(&mut batch, piece);
        }
        for (ended, other) in &displaced {
            self.reader.slots().end(*ended);
            put_end(&mut batch, *ended, &other.pieces);
            // What was wrong with it has nothing to do with what was sent.
            batch.delete(layout::quarantine(*ended));
        }
        // Until the row is published readers still go by the old one.
        let old = self.reader.slots().hold(&before.pieces);
        self.reader.engine().write(batch)?;
        self.reader.replace(row);
        drop(old);
        drop(received.hold);
        self.pass = None;
        self.collected = Floors::default();
        self.ended.extend(displaced.iter().map(|(ended, _)| *ended));
        Ok(())
    }
}
