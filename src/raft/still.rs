//! A replica that stands still: it has its log and its state, and no group goes on with it here.

use std::sync::Arc;

use crate::env::tasks::offload;
use crate::machine::MachineError;
use crate::machine::StateMachine;
use crate::raft::group::Group;
use crate::raft::neighbours::Neighbours;
use crate::raft::state_machine::Fail;
use crate::raft::state_machine::Flush;
use crate::raft::state_machine::Hosted;
use crate::types::Position;
use crate::types::log::LogEntry;
use crate::wal::ReplicaLog;

/// Bytes of entries that are read and applied at once.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// Cloning shares it.
#[derive(Clone)]
pub struct Still {
    hosted: Arc<Hosted>,
    log: ReplicaLog,
}

impl Still {
    /// One whose group never ran since the node started, and never will.
    pub fn new(
        log: ReplicaLog,
        machine: Box<dyn StateMachine>,
        (flush, fail): (Flush, Fail),
        neighbours: Arc<dyn Neighbours>,
    ) -> Still {
        let hosted = Hosted::new(machine, flush, fail, neighbours);
        Still { hosted, log }
    }

    /// One whose group has ended.
    pub fn of(ended: &Group) -> Still {
        Still {
            hosted: Arc::clone(&ended.inner.hosted),
            log: ended.inner.store.log().clone(),
        }
    }

    /// Applies what it lacks up to an entry that is known to be committed. Cancel-safe: what is dropped half-way
    /// goes on where it was, and whoever comes next waits for what is under way.
    ///
    /// # Errors
    /// When its log does not have the entry.
    pub async fn replay(&self, upto: Position) -> Result<(), MachineError> {
        loop {
            let turn = self.hosted.turn().await;
            let applied = self.hosted.machine().applied().position;
            if applied.is_some_and(|at| at.index >= upto.index) {
                return Ok(());
            }
            let entries = self.read(applied, upto).await?;
            let hosted = Arc::clone(&self.hosted);
            let need = offload(move || {
                let need = hosted.on_machine(|machine| {
                    machine.apply(&entries)?;
                    Ok(machine.take_need())
                });
                drop(turn);
                need
            });
            if let Some(need) = need.await? {
                self.hosted.neighbours().bring(need).await?;
            }
        }
    }

    /// The next entries, at least one.
    async fn read(
        &self,
        applied: Option<Position>,
        upto: Position,
    ) -> Result<Vec<LogEntry>, MachineError> {
        let failed = |why: String| {
            let id = self.log.id();
            MachineError(format!("bring {id} from its log to {upto}: {why}"))
        };
        // What is not there will never be synced.
        let last = self.log.state().last;
        if last.is_none_or(|last| last.index < upto.index) {
            return Err(failed(format!("it ends at {last:?}")));
        }
        let synced = self.log.synced(upto.index).await;
        synced.map_err(|error| failed(error.to_string()))?;
        let from = applied.map_or(0, |at| at.index + 1);
        let log = self.log.clone();
        let entries = offload(move || log.read(from..upto.index + 1, READ_BYTES_MAX)).await;
        let entries = entries.map_err(|error| failed(error.to_string()))?;
        let first = entries.first().map(|entry| entry.position.index);
        let last = entries.last().map(|entry| entry.position);
        match (first, last) {
            (Some(first), _) if applied.is_some() && first != from => {
                Err(failed(format!("it goes on at {first} behind {}", from - 1)))
            }
            (_, Some(last)) if last.index == upto.index && last != upto => {
                Err(failed(format!("it has {last} there")))
            }
            (None, _) => Err(failed("it has no such entries".to_owned())),
            (Some(_), _) => Ok(entries),
        }
    }
}
