//! The other replicas on a node, as the machine of one of them needs them.

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::machine::MachineError;
use crate::machine::Need;
use crate::types::ReplicaId;

/// What machines have the node do with replicas beside their own.
pub trait Neighbours: Send + Sync + 'static {
    /// These have got their first row. Called on a thread that may block, without any lock.
    fn seeded(&self, replicas: Vec<ReplicaId>);

    /// These have ended: their rows are gone from the engine, which is not flushed yet. Called as
    /// [`Neighbours::seeded`] is.
    fn ended(&self, replicas: Vec<ReplicaId>);

    /// Brings a replica to where an entry needs it, after which nobody goes on with it. An error: it does not get
    /// there. Cancel-safe: it may be asked for again.
    fn bring(&self, need: Need) -> BoxFuture<'static, Result<(), MachineError>>;

    /// From its end on nobody goes on with these. Cancel-safe.
    fn stop(&self, replicas: Vec<ReplicaId>) -> BoxFuture<'static, ()>;
}

/// Of a replica that has no neighbours and gets none.
pub struct Alone;

impl Neighbours for Alone {
    fn seeded(&self, _replicas: Vec<ReplicaId>) {}

    fn ended(&self, _replicas: Vec<ReplicaId>) {}

    fn bring(&self, need: Need) -> BoxFuture<'static, Result<(), MachineError>> {
        let missing = MachineError(format!("nobody here brings {need}"));
        async { Err(missing) }.boxed()
    }

    fn stop(&self, _replicas: Vec<ReplicaId>) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}
