//! Applies committed entries. Decides only.
//!
//! The outcome is a function of the row, the keys above the floors and the entry alone, so that all
//! replicas at one position are equal: whatever collection has removed or not removed yet below the
//! floors makes no difference here. Nothing is asserted about an entry: an assertion would stop every
//! replica for ever. What every replica sees alike is an answer; what only this one may see (the
//! engine fails, stored bytes make no sense, the program is too old) ends this replica.
//!
//! A write is applied once. One that made a version at its first key is known by that version; any
//! other final answer is stored under the first key. Both are known for the retry window, and a repeat
//! of an older request is refused as too late to know, so no delay lets a write happen twice.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::codec::layout::Slot;
use crate::codec::value;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::engine::Overlay;
use crate::engine::overlay::View;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::machine::Membership;
use crate::mvcc::Author;
use crate::mvcc::Seen;
use crate::mvcc::read;
use crate::mvcc::version::Header;
use crate::mvcc::write::Current;
use crate::shard::apply_merge::AbsorbedHere;
use crate::shard::chain;
use crate::shard::chain::Marks;
use crate::shard::command::Answer;
use crate::shard::command::Body;
use crate::shard::command::Command;
use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::row::Part;
use crate::shard::row::Piece;
use crate::shard::row::Row;
use crate::shard::slots;
use crate::shard::split;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::request::Condition;
use crate::types::request::DELETE_RANGE_KEYS_MAX;
use crate::types::request::Operation;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::shard::Epoch;
use crate::types::shard::Link;
use crate::types::shard::Size;

const OUTCOME_FORMAT: u8 = 1;

/// Bytes of keys and records that one DeleteRange moves aside; then it answers with a resume key. One
/// entry is one batch, and a batch holds the engine's lock.
const DELETE_RANGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a machine must know of the other replicas on its node.
pub trait Others: Send + Sync {
    /// Whether a replica has ended here: then it is never seeded again.
    fn has_ended(&self, replica: ReplicaId) -> bool;

    /// Whether nobody goes on with a replica here any more.
    fn stands_still(&self, replica: ReplicaId) -> bool;
}

/// Says which have ended. All others stand still: nobody but the machine that asks does anything.
impl<F: Fn(ReplicaId) -> bool + Send + Sync> Others for F {
    fn has_ended(&self, replica: ReplicaId) -> bool {
        self(replica)
    }

    fn stands_still(&self, _replica: ReplicaId) -> bool {
        true
    }
}

/// Entries being applied: the row and the changes so far, none of them written yet.
pub(crate) struct Applying<'e> {
    pub(super) replica: ReplicaId,
    pub(super) others: &'e dyn Others,
    pub(super) row: Row,
    pub(super) overlay: Overlay<'e>,
    links: Vec<Link>,
    split: Option<SplitHere>,
    pub(super) absorbed: Option<AbsorbedHere>,
}

/// What the changes go with.
pub(crate) struct Changes {
    /// The changes and the row.
    pub(crate) batch: Batch,
    /// The row as of the last entry.
    pub(crate) row: Row,
    /// The hashes to remember.
    pub(crate) links: Vec<Link>,
    /// The split at the end of the changes.
    pub(crate) split: Option<SplitHere>,
    /// The merge at the end of the changes.
    pub(super) absorbed: Option<AbsorbedHere>,
}

/// What became of a split's right half on this node.
#[derive(Default)]
pub(crate) struct SplitHere {
    /// The replica whose first row is in the changes.
    pub(crate) seeded: Option<ReplicaId>,
    /// Pieces that nobody here has any more: they are on the clear list.
    pub(crate) given_up: Vec<Piece>,
}

impl<'e> Applying<'e> {
    pub(crate) fn new(
        engine: &'e dyn Engine,
        others: &'e dyn Others,
        replica: ReplicaId,
        row: Row,
    ) -> Applying<'e> {
        Applying {
            replica,
            others,
            row,
            overlay: Overlay::counting(engine, chain::counted),
            links: Vec::new(),
            split: None,
            absorbed: None,
        }
    }

    /// Bytes changed since the last changes were taken.
    pub(crate) fn bytes(&self) -> usize {
        self.overlay.bytes()
    }

    /// Whether the last entry was a split or has made one shard of two: it must be the last of its batch. A
    /// child's row appears with exactly the position that it was born at; and what becomes of the other replica
    /// is told before anything else is applied.
    pub(crate) fn ends_batch(&self) -> bool {
        self.split.is_some() || self.absorbed.is_some()
    }

    /// The changes and the row as of the last entry, in one batch.
    pub(crate) fn take(&mut self) -> Changes {
        let row = layout::row(self.replica);
        self.overlay.put(row, self.row.encode());
        Changes {
            batch: self.overlay.take_batch(),
            row: self.row.clone(),
            links: std::mem::take(&mut self.links),
            split: self.split.take(),
            absorbed: self.absorbed.take(),
        }
    }

    /// Applies the next entry, which [needs](Applying::need) nothing.
    pub(crate) fn entry(&mut self, entry: &LogEntry) -> Result<Bytes, MachineError> {
        self.follow(entry.position)?;
        let answer = self.payload(entry)?;
        self.link(entry, &answer);
        Ok(answer)
    }

    /// Folds what the entry did into the hash of all that was applied.
    fn link(&mut self, entry: &LogEntry, answer: &[u8]) {
        let position = entry.position;
        let stored = self.overlay.take_digest().to_be_bytes();
        let numbers = self.row.numbers();
        let parts = [chain::said(&entry.payload), &stored, &numbers, answer];
        self.row.chain = chain::after(self.row.chain, position, &parts);
        if Marks::has_place_for(position) {
            let chain = self.row.chain;
            self.links.push(Link { position, chain });
        }
        if let Part::Right(frozen) = &mut self.row.merge.part
            && frozen.position == position
        {
            frozen.chain = self.row.chain;
        }
    }

    fn payload(&mut self, entry: &LogEntry) -> Result<Bytes, MachineError> {
        match &entry.payload {
            Payload::Blank => Ok(Bytes::new()),
            Payload::Membership(membership) => {
                // Each raises the epoch, whether it changes the set of replicas or not: a plan that was
                // made before it does not know it.
                self.row.descriptor.replicas = Membership::decode(membership)?.replicas();
                self.row.descriptor.epoch.conf += 1;
                self.row.applied.membership = membership.clone();
                self.row.applied.membership_position = Some(entry.position);
                self.cancel_for_membership();
                Ok(Bytes::new())
            }
            Payload::Command(bytes) => {
                let command = Command::decode(bytes)?;
                let answer = self.command(&command, entry.position.term)?;
                Ok(answer.encode())
            }
        }
    }

    /// An entry out of order was not committed where it stands: this replica alone is wrong.
    fn follow(&mut self, position: Position) -> Result<(), MachineError> {
        let last = self.row.applied.position.replace(position);
        match last {
            Some(last) if position.index != last.index + 1 => Err(MachineError(format!(
                "entry {position} does not follow the applied entry {last}"
            ))),
            _ => Ok(()),
        }
    }

    fn command(&mut self, command: &Command, term: u64) -> Result<Answer, MachineError> {
        if let Some(answer) = self.answer_of_frozen(&command.body) {
            return Ok(answer);
        }
        let header = command.header;
        let is_stale = self.is_stale(command, term);
        if !is_stale {
            self.take_stamps(command, term);
        }
        match &command.body {
            Body::Writes(writes) if is_stale => Ok(all(writes, WriteOutcome::StaleStamp)),
            Body::Writes(writes) if header.epoch.bounds != self.row.descriptor.epoch.bounds => {
                Ok(all(writes, WriteOutcome::StaleEpoch))
            }
            Body::Writes(writes) => {
                let numbered = (0..).zip(writes);
                let outcomes = numbered
                    .map(|(number, write)| self.write(write, header.stamp.plus(number)))
                    .collect::<Result<_, _>>()?;
                Ok(Answer::Writes(outcomes))
            }
            Body::Split(_) if is_stale => Ok(Answer::Split(SplitOutcome::StaleStamp)),
            Body::Split(split) => self.split(split, header.epoch).map(Answer::Split),
            Body::Merge(_) if is_stale => Ok(Answer::Merge(MergeOutcome::StaleStamp)),
            Body::Merge(step) => self.merge(step, header).map(Answer::Merge),
        }
    }

    /// Whether the command's stamps are not above what was stamped or closed before.
    pub(super) fn is_stale(&self, command: &Command, term: u64) -> bool {
        let header = command.header;
        let stamped_by_later_leader = term > self.row.ceiling_term;
        // What a leader has closed, within the ceiling, a later one must not write.
        let falls = header.stamp <= self.row.last_stamp && !mutant::lives(Mutant::StampsMayFall);
        let is_closed = header.stamp <= self.row.ceiling && !mutant::lives(Mutant::CeilingNotKept);
        falls || (stamped_by_later_leader && is_closed)
    }

    /// Moves the stamps of the shard to the end of the command's.
    fn take_stamps(&mut self, command: &Command, term: u64) {
        let header = command.header;
        self.row.last_stamp = header.stamp.plus(command.body.stamps() - 1);
        self.row.ceiling = self.row.ceiling.max(header.ceiling);
        self.row.ceiling_term = term;
        self.row.raise_floors(header.stamp);
    }

    fn split(&mut self, split: &Split, planned_at: Epoch) -> Result<SplitOutcome, MachineError> {
        if self.row.merge.part != Part::Alone && !mutant::lives(Mutant::SplitWhileMerging) {
            return Ok(SplitOutcome::Merging);
        }
        let membership = Membership::decode(&self.row.applied.membership)?;
        let halves = split::halves(&self.row, &membership, self.replica, split, planned_at);
        let halves = match halves {
            Ok(halves) => halves,
            Err(refused) => return Ok(*refused),
        };
        let outcome = SplitOutcome::Done {
            left: halves.left.descriptor.clone(),
            right: halves.right.descriptor.clone(),
        };
        self.row = halves.left;
        let here = self.settle_child(halves.child, &halves.right)?;
        for piece in &here.given_up {
            let (place, entry) = slots::clear_entry(piece);
            self.overlay.put(place, entry);
        }
        self.split = Some(here);
        Ok(outcome)
    }

    /// Seeds the child's replica on this node, unless it has begun already or has ended. What is not the
    /// child's then is nobody's.
    fn settle_child(
        &mut self,
        child: Option<ReplicaId>,
        right: &Row,
    ) -> Result<SplitHere, MachineError> {
        let nobodys = || SplitHere {
            seeded: None,
            given_up: right.pieces.clone(),
        };
        let Some(child) = child.filter(|child| {
            !self.others.has_ended(*child) || mutant::lives(Mutant::GoneSeededAgain)
        }) else {
            return Ok(nobodys());
        };
        let place = layout::row(child);
        let begun = self.overlay.get(&place)?;
        if let Some(row) = begun.filter(|_| !mutant::lives(Mutant::ChildSeededTwice)) {
            let has_keys_here = Row::decode(&row)?.shares_slot_with(&right.pieces);
            return Ok(if has_keys_here {
                SplitHere::default()
            } else {
                nobodys()
            });
        }
        self.overlay.put(place, right.encode());
        Ok(SplitHere {
            seeded: Some(child),
            given_up: Vec::new(),
        })
    }

    fn write(&mut self, write: &Write, stamp: Timestamp) -> Result<WriteOutcome, MachineError> {
        let asked = Timestamp::from_wall(write.id.wall_ms());
        // A version's stamp is above its request's time: that is where a repeat is looked for.
        if asked >= stamp && !mutant::lives(Mutant::StampBelowItsRequest) {
            let ahead_ms = asked.wall_ms() - stamp.wall_ms();
            return Ok(WriteOutcome::ClockAhead {
                wait_ms: ahead_ms + 1,
            });
        }
        match &write.kind {
            WriteKind::Keys {
                conditions,
                operations,
            } => self.write_keys(write.id, stamp, conditions, operations),
            WriteKind::Range { range, limit } => self.delete_range(write.id, stamp, range, *limit),
        }
    }

    fn write_keys(
        &mut self,
        id: RequestId,
        stamp: Timestamp,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<WriteOutcome, MachineError> {
        // Without operations there is nothing that could happen twice.
        let Some(first_key) = operations.first().map(Operation::key) else {
            return self.check_only(conditions);
        };
        if self.row.slot_of(first_key).is_none() {
            return Ok(WriteOutcome::StaleEpoch);
        }
        let first = self.current(first_key)?;
        if let Some(known) = self.known(id, first_key, Some(&first))? {
            return Ok(known);
        }
        let operated = operations.iter().map(Operation::key);
        if let Some(key) = self.elsewhere(operated.chain(conditions.iter().map(Condition::key))) {
            if mutant::lives(Mutant::SpanningNotKnown) {
                return Ok(WriteOutcome::Spanning { key });
            }
            // Remembered, or a delayed repeat could happen once the shards are one again.
            return self.remember(id, first_key, stamp, WriteOutcome::Spanning { key });
        }
        if let Some(failed) = self.failed_condition(conditions, Some((first_key, &first)))? {
            if mutant::lives(Mutant::RefusalNotKnown) {
                return Ok(failed);
            }
            return self.remember(id, first_key, stamp, failed);
        }
        self.operate(id, stamp, operations, first)
    }

    fn check_only(&self, conditions: &[Condition]) -> Result<WriteOutcome, MachineError> {
        let keys = || conditions.iter().map(Condition::key);
        if keys()
            .next()
            .is_some_and(|first| self.row.slot_of(first).is_none())
        {
            return Ok(WriteOutcome::StaleEpoch);
        }
        if let Some(key) = self.elsewhere(keys()) {
            return Ok(WriteOutcome::Spanning { key });
        }
        let failed = self.failed_condition(conditions, None)?;
        Ok(failed.unwrap_or(done(Timestamp::ZERO, 0)))
    }

    /// The first of the keys that is not in this shard.
    fn elsewhere<'k>(&self, mut keys: impl Iterator<Item = &'k Key>) -> Option<Key> {
        keys.find(|key| self.row.slot_of(key).is_none()).cloned()
    }

    fn operate<'k>(
        &mut self,
        id: RequestId,
        stamp: Timestamp,
        operations: &'k [Operation],
        first: Current<'k>,
    ) -> Result<WriteOutcome, MachineError> {
        let author = Author {
            stamp,
            command: stamp,
            request: id,
        };
        let first_key = operations[0].key();
        let mut first = Some(first);
        let mut deleted = 0;
        let mut versions = 0;
        // What the version at the first key tells of the answer, if there is one.
        let mut told = None;
        let only_one = mutant::lives(Mutant::OneOperationOfMany);
        let count = if only_one { 1 } else { operations.len() };
        for operation in last_of_each_key(operations).into_iter().take(count) {
            let key = operation.key();
            let is_first = key == first_key;
            let current = match first.take_if(|_| is_first) {
                Some(first) => first,
                None => self.current(key)?,
            };
            let removed = match operation {
                Operation::Put { value, .. } => {
                    let size = Size::of(key, value.len() as u64);
                    self.row.size = self.row.size.without(current.size()?).with(size);
                    current.put(&mut self.overlay, author, value);
                    0
                }
                Operation::Delete { .. } if current.version() == Timestamp::ZERO => continue,
                Operation::Delete { .. } => {
                    self.row.size = self.row.size.without(current.size()?);
                    current.delete(&mut self.overlay, author);
                    1
                }
            };
            deleted += removed;
            versions += 1;
            if is_first {
                told = Some(done(stamp, removed));
            }
        }
        let outcome = done(
            if versions == 0 {
                Timestamp::ZERO
            } else {
                stamp
            },
            deleted,
        );
        if told.as_ref() == Some(&outcome) {
            return Ok(outcome);
        }
        self.remember(id, first_key, stamp, outcome)
    }

    fn delete_range(
        &mut self,
        id: RequestId,
        stamp: Timestamp,
        range: &KeyRange,
        limit: u32,
    ) -> Result<WriteOutcome, MachineError> {
        if self.row.slot_of(&range.start).is_none() {
            return Ok(WriteOutcome::StaleEpoch);
        }
        if let Some(known) = self.known(id, &range.start, None)? {
            return Ok(known);
        }
        let author = Author {
            stamp,
            command: stamp,
            request: id,
        };
        let (found, resume) = self.live_keys(range, limit.clamp(1, DELETE_RANGE_KEYS_MAX))?;
        // What is behind the shard's end is for the next shard, as another write.
        let is_all_here = self.row.descriptor.range.covers(range);
        let resume = resume.filter(|_| !mutant::lives(Mutant::RangeEndsEarly));
        let resume = resume.or_else(|| match is_all_here {
            true => None,
            false => self.row.descriptor.range.end.clone(),
        });
        let deleted = u32::try_from(found.len()).unwrap_or(u32::MAX);
        for (slot, key, place, record) in found {
            let current = Current::found(slot, &key, place, record)?;
            self.row.size = self.row.size.without(current.size()?);
            current.delete(&mut self.overlay, author);
        }
        let version = if deleted == 0 { Timestamp::ZERO } else { stamp };
        let outcome = WriteOutcome::Done {
            version,
            deleted,
            resume,
        };
        self.remember(id, &range.start, stamp, outcome)
    }

    /// The first keys of a range that have a value, and the next such key after them. Tombstones do not
    /// count for any limit: replicas may have collected different ones.
    fn live_keys(
        &self,
        range: &KeyRange,
        limit: u32,
    ) -> Result<(Vec<Found>, Option<Key>), MachineError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for piece in self.row.pieces_in(range) {
            let (start, end) = layout::family(piece.slot, Family::Newest, &piece.range);
            for pair in self.overlay.scan(&start, &end, false) {
                let (place, record) = pair?;
                if Header::of(&record)?.is_tombstone() {
                    continue;
                }
                let key = Key::from(Place::of(&place)?.key);
                if found.len() >= limit as usize || bytes > DELETE_RANGE_BYTES_MAX {
                    return Ok((found, Some(key)));
                }
                bytes += place.len() + record.len();
                found.push((piece.slot, key, place, record));
            }
        }
        Ok((found, None))
    }

    /// The answer that this request had, or the refusal of one whose answer is forgotten. `None`: it
    /// was not applied before.
    fn known(
        &self,
        id: RequestId,
        first_key: &Key,
        first: Option<&Current<'_>>,
    ) -> Result<Option<WriteOutcome>, MachineError> {
        if mutant::lives(Mutant::RepeatNotKnown) {
            return Ok(None);
        }
        let asked = Timestamp::from_wall(id.wall_ms());
        let horizon = self.row.horizon();
        if self.row.last_outcome > asked
            && let Some(outcome) = self.stored_outcome(id, first_key, horizon)?
        {
            return Ok(Some(outcome));
        }
        let newest = first.and_then(Current::header);
        if let Some(newest) = newest
            && newest.author.stamp > asked.max(horizon)
        {
            let made = if newest.author.request == id {
                Some(newest)
            } else {
                let slot = self.slot(first_key)?;
                read::made_by(&self.overlay, slot, first_key, id, asked.max(horizon))?
            };
            if let Some(made) = made {
                return Ok(Some(done(
                    made.author.stamp,
                    u32::from(made.is_tombstone()),
                )));
            }
        }
        if asked < horizon && !mutant::lives(Mutant::WindowNotKept) {
            let retry_window_ms = self.row.retry_window_ms;
            return Ok(Some(WriteOutcome::TooLateToKnow { retry_window_ms }));
        }
        Ok(None)
    }

    fn stored_outcome(
        &self,
        id: RequestId,
        first_key: &Key,
        horizon: Timestamp,
    ) -> Result<Option<WriteOutcome>, MachineError> {
        let place = layout::outcome(self.slot(first_key)?, first_key, id);
        let Some(record) = self.overlay.get(&place)? else {
            return Ok(None);
        };
        let (stamp, outcome) = decode_outcome(&record)?;
        Ok((stamp > horizon).then_some(outcome))
    }

    fn remember(
        &mut self,
        id: RequestId,
        first_key: &Key,
        stamp: Timestamp,
        outcome: WriteOutcome,
    ) -> Result<WriteOutcome, MachineError> {
        let place = layout::outcome(self.slot(first_key)?, first_key, id);
        let record = value::encode(OUTCOME_FORMAT, &(stamp, &outcome));
        self.overlay.put(place, record);
        self.row.last_outcome = stamp;
        Ok(outcome)
    }

    fn failed_condition(
        &self,
        conditions: &[Condition],
        first: Option<(&Key, &Current<'_>)>,
    ) -> Result<Option<WriteOutcome>, MachineError> {
        for (number, condition) in (0..).zip(conditions) {
            let key = condition.key();
            let actual = match first {
                Some((first_key, current)) if first_key == key => current.version(),
                _ => self.current(key)?.version(),
            };
            let holds = match condition {
                Condition::Version { version, .. } => actual == *version,
                Condition::Exists { .. } => actual != Timestamp::ZERO,
                Condition::Value { value, .. } => {
                    match read::get(&self.overlay, self.slot(key)?, key, Timestamp::MAX)? {
                        Seen::Present(versioned) => versioned.value == *value,
                        Seen::Absent => false,
                    }
                }
            };
            if !holds && !mutant::lives(Mutant::ConditionsNotChecked) {
                return Ok(Some(WriteOutcome::ConditionFailed {
                    condition: number,
                    actual,
                }));
            }
        }
        Ok(None)
    }

    fn current<'k>(&self, key: &'k Key) -> Result<Current<'k>, MachineError> {
        Current::of(&self.overlay, self.slot(key)?, key)
    }

    fn slot(&self, key: &Key) -> Result<Slot, MachineError> {
        self.row.slot_of(key).ok_or_else(|| {
            MachineError(format!(
                "no piece of the shard {} has the key {}",
                self.row.descriptor.range,
                key.escape_ascii()
            ))
        })
    }
}

type Found = (Slot, Key, Vec<u8>, Vec<u8>);

/// Reads a stored outcome: its command's stamp and the answer.
pub(crate) fn decode_outcome(record: &[u8]) -> Result<(Timestamp, WriteOutcome), MachineError> {
    Ok(value::decode("a stored outcome", OUTCOME_FORMAT, record)?)
}

pub(super) fn all(writes: &[Write], outcome: WriteOutcome) -> Answer {
    Answer::Writes(vec![outcome; writes.len()])
}

fn done(version: Timestamp, deleted: u32) -> WriteOutcome {
    WriteOutcome::Done {
        version,
        deleted,
        resume: None,
    }
}

/// A key has one version per stamp: if a write names it twice, the last operation counts.
fn last_of_each_key(operations: &[Operation]) -> Vec<&Operation> {
    if let [only] = operations {
        return vec![only];
    }
    let keyed = operations
        .iter()
        .map(|operation| (operation.key(), operation));
    BTreeMap::from_iter(keyed).into_values().collect()
}
