//! Collects versions and outcomes that no reader may ask for any more, in small portions between the
//! entries that are applied, and clears what replicas have left behind, which is nobody's any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::env::tasks::TaskResult;
use crate::env::tasks::background;
use crate::env::tasks::offload;
use crate::machine::MachineError;
use crate::node::registry::Registry;
use crate::raft::Group;
use crate::shard::Slots;

/// Between two rounds over all replicas.
const ROUND: Duration = Duration::from_secs(1);
/// Portions of one replica in one round, and of clearing: the rest waits, so that one replica does not hold up others.
const PORTIONS_MAX: usize = 512;

/// Runs until `stop`. A failure ends the node, since the engine is poisoned then.
pub async fn run(
    registry: Arc<Registry>,
    slots: Arc<Slots>,
    stop: CancellationToken,
) -> TaskResult {
    while stop.run_until_cancelled(sleep(ROUND)).await.is_some() {
        let groups = registry.groups();
        offload(move || groups.iter().try_for_each(collect)).await?;
        clear(&slots, &stop).await?;
    }
    Ok(())
}

/// Blocks. Between two portions the replica applies what has arrived.
fn collect(group: &Group) -> Result<(), MachineError> {
    for _ in 0..PORTIONS_MAX {
        if !group.collect()? {
            return Ok(());
        }
    }
    Ok(())
}

/// Nobody waits for it.
async fn clear(slots: &Arc<Slots>, stop: &CancellationToken) -> Result<(), MachineError> {
    for _ in 0..PORTIONS_MAX {
        let slots = Arc::clone(slots);
        // A portion is never left half-way: the engine is closed behind this task.
        if stop.is_cancelled() || !background(move || slots.clear()).await? {
            return Ok(());
        }
    }
    Ok(())
}
