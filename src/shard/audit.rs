//! Goes through all that an engine holds and says what cannot be. Decides only.
//!
//! Every key must be one that the layout has, every value one that can be decoded, and what belongs
//! together must agree: a long value with its pieces, a version with the row of the replica that has its
//! key, one replica's keys with another's. Nothing is changed.

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Place;
use crate::engine::Engine;
use crate::machine::MachineError;
use crate::mvcc::version::Content;
use crate::mvcc::version::Version;
use crate::shard::apply::decode_outcome;
use crate::shard::destroyed;
use crate::shard::replicas;
use crate::shard::row::Piece;
use crate::shard::row::Row;
use crate::types::Key;
use crate::types::ReplicaId;
use crate::types::Timestamp;

/// Problems that are told of one engine; what comes behind is more of the same.
const PROBLEMS_MAX: usize = 20;

/// What the engine holds, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Audit {
    /// The replicas of shards with their rows, by id.
    pub rows: Vec<(ReplicaId, Row)>,
    /// Replicas that were destroyed and that the log may not call gone yet.
    pub destroyed: Vec<ReplicaId>,
    /// Versions of keys, pieces of long values and stored outcomes.
    pub records: u64,
    /// Records that belong to no replica and are on no list of things to clear: room that is lost.
    pub stray: u64,
    /// What cannot be, the first of it. Empty: nothing is wrong.
    pub problems: Vec<String>,
}

/// Reads everything. `progress` hears of bytes read. An error is the engine's own: it cannot be read.
pub fn audit(
    engine: &dyn Engine,
    clear_list: &[Piece],
    progress: &mut dyn FnMut(u64),
) -> Result<Audit, MachineError> {
    let mut audit = Audit {
        destroyed: destroyed(engine)?,
        ..Audit::default()
    };
    for replica in replicas(engine)? {
        let row = engine.get(&layout::row(replica))?.unwrap_or_default();
        match Row::decode(&row) {
            Ok(row) => audit.take_row(replica, row),
            Err(error) => audit.add(format!("the row of {replica}: {error}")),
        }
    }
    let (start, end) = layout::slots();
    for pair in engine.scan(&start, &end, false) {
        let (place, record) = pair?;
        audit.records += 1;
        progress((place.len() + record.len()) as u64);
        let checked = audit.check(engine, clear_list, &place, record);
        if let Err(error) = checked {
            audit.add(format!("at {}: {error}", place.escape_ascii()));
        }
    }
    Ok(audit)
}

impl Audit {
    fn add(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn take_row(&mut self, replica: ReplicaId, row: Row) {
        if let Err(problem) = check_pieces(&row) {
            self.add(format!("the row of {replica}: {problem}"));
        }
        let other = self.rows.iter().find(|(_, other)| {
            let shares = other.shares_slot_with(&row.pieces);
            shares || other.descriptor.range.overlaps(&row.descriptor.range)
        });
        if let Some((other, _)) = other {
            self.add(format!("{replica} and {other} both have some keys"));
        }
        self.rows.push((replica, row));
    }

    fn check(
        &mut self,
        engine: &dyn Engine,
        clear_list: &[Piece],
        encoded: &[u8],
        record: Vec<u8>,
    ) -> Result<(), MachineError> {
        let place = Place::of(encoded)?;
        let slot = layout::slot_of(encoded)?;
        let has_it = |piece: &Piece| piece.slot == slot && piece.range.contains(&place.key);
        let mut rows = self.rows.iter();
        let Some((_, row)) = rows.find(|(_, row)| row.pieces.iter().any(has_it)) else {
            self.stray += u64::from(!clear_list.iter().any(has_it));
            return Ok(());
        };
        let last = row.last_stamp;
        match place.family {
            Family::Newest => check_version(engine, slot, &place.key, record, None, last),
            Family::History => {
                let stamp = Some(place.stamp()?);
                check_version(engine, slot, &place.key, record, stamp, last)
            }
            Family::Outcome => check_stamp(decode_outcome(&record)?.0, last),
            Family::Chunk => check_stamp(place.stamp()?, last),
            Family::Intent | Family::SharedLock | Family::TransactionMark => Err(MachineError(
                "a record of a kind that this program never writes".to_owned(),
            )),
        }
    }
}

fn check_version(
    engine: &dyn Engine,
    slot: layout::Slot,
    key: &[u8],
    record: Vec<u8>,
    stored_at: Option<Timestamp>,
    last: Timestamp,
) -> Result<(), MachineError> {
    let version = Version::decode(record.into())?;
    let stamp = version.author.stamp;
    check_stamp(stamp, last)?;
    if stored_at.is_some_and(|at| at != stamp) {
        return Err(MachineError(format!(
            "the version of {stamp} stands elsewhere"
        )));
    }
    let Content::Chunked { chunks, bytes } = version.content else {
        return Ok(());
    };
    let start = layout::chunk(slot, key, stamp, 0);
    let end = layout::chunk(slot, key, stamp, chunks);
    let (mut found, mut length) = (0, 0);
    for pair in engine.scan(&start, &end, false) {
        found += 1;
        length += pair?.1.len();
    }
    match found == chunks && length == bytes as usize {
        true => Ok(()),
        false => Err(MachineError(format!(
            "{found} of {chunks} pieces with {length} of {bytes} bytes are there"
        ))),
    }
}

fn check_stamp(stamp: Timestamp, last: Timestamp) -> Result<(), MachineError> {
    match stamp <= last {
        true => Ok(()),
        false => Err(MachineError(format!(
            "the stamp {stamp} is above the last one applied, {last}"
        ))),
    }
}

/// The pieces cover the range, in order, without gap or overlap.
fn check_pieces(row: &Row) -> Result<(), String> {
    let range = &row.descriptor.range;
    let mut next: Option<Key> = Some(range.start.clone());
    for Piece { range: piece, .. } in &row.pieces {
        if next.as_ref() != Some(&piece.start) || piece.is_empty() {
            return Err(format!(
                "its pieces do not join at {}",
                piece.start.escape_ascii()
            ));
        }
        next = piece.end.clone();
    }
    match row.pieces.is_empty() || next != range.end {
        true => Err(format!("its pieces do not cover {range}")),
        false => Ok(()),
    }
}
