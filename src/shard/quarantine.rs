//! Replicas that are not as the others of their shard are. Decides only.
//!
//! Such a replica answers nobody any more: what it would say may be wrong. It goes on as a member of its
//! group, whose log it holds and whose votes it gives, until the group has removed it; then a new replica
//! takes its place, which is filled by the others. The mark in the engine stays until that one is there, so
//! that neither a restart nor the death of a leader leaves it half-way. What is split off it has its state, and
//! is quarantined from its birth on; so is what absorbs it.

use crate::codec::layout;
use crate::codec::value;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::machine::MachineError;
use crate::types::ReplicaId;
use crate::types::ShardId;

const FORMAT: u8 = 1;

/// A replica that is to be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantined {
    /// The replica.
    pub replica: ReplicaId,
    /// Its shard.
    pub shard: ShardId,
}

/// Marks a replica. Not flushed: what a power cut takes is found again while the replica is in its group.
pub fn mark(engine: &dyn Engine, quarantined: Quarantined) -> Result<(), MachineError> {
    let mut batch = Batch::default();
    let (place, mark) = entry(quarantined);
    batch.put(place, mark);
    Ok(engine.write(batch)?)
}

/// What stands in the engine for a marked replica: key and value.
pub(crate) fn entry(quarantined: Quarantined) -> (Vec<u8>, Vec<u8>) {
    let place = layout::quarantine(quarantined.replica);
    (place, value::encode(FORMAT, &quarantined.shard))
}

/// Removes the mark: another replica has taken the place.
pub fn unmark(engine: &dyn Engine, replica: ReplicaId) -> Result<(), MachineError> {
    let mut batch = Batch::default();
    batch.delete(layout::quarantine(replica));
    Ok(engine.write(batch)?)
}

/// Whether a replica is marked.
pub(crate) fn is_marked(engine: &dyn Engine, replica: ReplicaId) -> Result<bool, MachineError> {
    Ok(engine.get(&layout::quarantine(replica))?.is_some())
}

/// All that are marked, by id.
pub fn marked(engine: &dyn Engine) -> Result<Vec<Quarantined>, MachineError> {
    let (start, end) = layout::quarantines();
    let marks = engine.scan(&start, &end, false);
    marks
        .map(|pair| {
            let (place, shard) = pair?;
            Ok(Quarantined {
                replica: layout::quarantined_replica(&place)?,
                shard: value::decode("the mark of a quarantine", FORMAT, &shard)?,
            })
        })
        .collect()
}
