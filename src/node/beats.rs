//! The heartbeat of a node: all its groups send theirs at one moment ([`Group::beat`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::env::tasks::TaskResult;
use crate::node::registry::Registry;
use crate::raft::Group;

/// Runs until `stop`.
pub async fn run(registry: Arc<Registry>, every: Duration, stop: CancellationToken) -> TaskResult {
    let mut beats = interval(every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(beats.tick()).await.is_some() {
        registry.groups().iter().for_each(Group::beat);
    }
    Ok(())
}
