//! Answers what is asked about the state of the replicas here, and takes them out of service.

use std::sync::Arc;

use tracing::error;

use crate::codec::layout;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::env::tasks::background;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::machine::MachineError;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::raft::Flush;
use crate::shard::Quarantined;
use crate::shard::ReadError;
use crate::shard::quarantine;
use crate::telemetry::metrics;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::ReplicaId;
use crate::wire::request::Check;
use crate::wire::request::Checked;
use crate::wire::request::ReplicaName;

/// The replicas here, as those are asked about who are to be compared. Cloning shares them.
#[derive(Clone)]
pub struct Checks {
    registry: Arc<Registry>,
    engine: Arc<dyn Engine>,
    flush: Flush,
}

impl Checks {
    /// Of the replicas in the registry, whose state is in the engine.
    pub fn new(registry: Arc<Registry>, engine: Arc<dyn Engine>, flush: Flush) -> Checks {
        Checks {
            registry,
            engine,
            flush,
        }
    }

    /// The answer for one replica here. Cancel-safe: sent again it does no harm.
    ///
    /// # Errors
    /// `NotFound` when it is not here; `Unavailable` when it cannot answer as of the moment asked about.
    pub async fn check(&self, name: ReplicaName, check: Check) -> Result<Checked> {
        let replica = self.registry.shard(name.shard)?;
        if replica.group().replica() != name.replica {
            return Err(Error::NotFound {
                what: format!("{} of {}", name.replica, name.shard),
            });
        }
        if replica.reader().is_quarantined() {
            return Ok(Checked::Quarantined);
        }
        match check {
            Check::Chains => Ok(Checked::Chains(replica.reader().chains())),
            Check::Portion(portion) => {
                let (reader, group) = (replica.reader().clone(), GroupId::Shard(name.shard));
                let hashed = background(move || reader.hash_portion(&portion)).await;
                match hashed {
                    Ok(hashed) => Ok(Checked::Portion(hashed.hash)),
                    Err(ReadError::Machine(error)) => {
                        error!(shard = %name.shard, replica = %name.replica, %error, "what is stored here cannot be read");
                        Ok(Checked::Unreadable)
                    }
                    Err(error) => Err(Error::unavailable(group, error)),
                }
            }
            Check::Quarantine => {
                self.quarantine(&replica).await?;
                Ok(Checked::Quarantined)
            }
        }
    }

    /// Takes a replica out of service at once, and for ever: another one takes its place.
    pub async fn quarantine(&self, replica: &Replica) -> Result<()> {
        if replica.reader().is_quarantined() {
            return Ok(());
        }
        replica.reader().quarantine();
        replica.group().hold_back();
        metrics::replica_quarantined();
        let quarantined = Quarantined {
            replica: replica.group().replica(),
            shard: replica.reader().row().descriptor.id,
        };
        let Quarantined { replica, shard } = quarantined;
        error!(%shard, %replica, "the replica here is not as the others are: it serves nothing and is rebuilt");
        let engine = Arc::clone(&self.engine);
        offload(move || quarantine::mark(engine.as_ref(), quarantined))
            .await
            .map_err(|error| Error::Internal(error.0))
    }

    /// The replicas of this node that are to be rebuilt, here or not any more.
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>, MachineError> {
        let engine = Arc::clone(&self.engine);
        offload(move || quarantine::marked(engine.as_ref())).await
    }

    /// Returns when what is marked survives a power cut. Only then may a marked replica leave its group:
    /// nobody else knows that another one is to come.
    pub async fn flush_marks(&self) {
        (self.flush)().await;
    }

    /// The key from which on stored state is to be compared next.
    pub async fn scrubbed_up_to(&self) -> Result<Key, MachineError> {
        let engine = Arc::clone(&self.engine);
        let noted = offload(move || engine.get(&layout::scrubbed())).await?;
        Ok(noted.unwrap_or_default().into())
    }

    /// Notes that key. Not flushed: what a crash takes is compared again.
    pub async fn note_scrubbed(&self, upto: Key) -> Result<(), MachineError> {
        let engine = Arc::clone(&self.engine);
        let mut batch = Batch::default();
        batch.put(layout::scrubbed(), upto.to_vec());
        Ok(offload(move || engine.write(batch)).await?)
    }

    /// Another replica has taken the place.
    pub async fn forget(&self, replica: ReplicaId) -> Result<(), MachineError> {
        let engine = Arc::clone(&self.engine);
        offload(move || quarantine::unmark(engine.as_ref(), replica)).await
    }
}
