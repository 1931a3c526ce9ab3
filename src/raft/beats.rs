//! When heartbeats are sent, and a replica's timers looked at.
//!
//! The library has a clock for each replica, which looks at its timers five times between two heartbeats: a thousand
//! idle groups of three cost 150,000 looks a second, and each wakes three tasks. All that a follower needs them for is
//! to miss its leader. So the node has its leaders send heartbeats, those of all groups at one moment, so that the ones
//! to the same node share a message; and the clock of the library runs only in a replica that knows no leader, or has
//! not heard it for [`MISSED_HALVES`].
//!
//! **A clock that starts late must not delay an election.** It runs at the latest one beat after that, 2.5 heartbeats
//! after the leader's last message, and an election waits for three at least (`server/options.rs` refuses less).

use std::time::Duration;

use futures::FutureExt;
use tokio::task::unconstrained;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::raft::Group;
use crate::raft::Leadership;

/// So many half heartbeats without a word of its leader, and a follower's own clock runs.
const MISSED_HALVES: u32 = 3;

impl Group {
    /// Sends the heartbeats of a leader, and has the library's clock run where it must. To be called once in each
    /// heartbeat interval; waits for nothing.
    pub fn beat(&self) {
        let raft = self.inner.raft();
        let leadership = *self.leadership().borrow();
        let clock_runs = match leadership {
            // Behind a full queue of proposals it must not fall silent.
            Leadership::Leading { .. } => unconstrained(raft.trigger().heartbeat())
                .now_or_never()
                .is_none(),
            Leadership::Following { leader: Some(_) } => {
                self.silence() >= self.missed() && !mutant::lives(Mutant::LeaderNeverMissed)
            }
            Leadership::Following { leader: None } | Leadership::Failed => true,
        };
        raft.runtime_config().tick(clock_runs);
    }

    fn missed(&self) -> Duration {
        Duration::from_millis(self.inner.config.heartbeat_interval) / 2 * MISSED_HALVES
    }
}
