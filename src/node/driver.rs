//! Drives placement from the node that leads its group: hears reports, and once a second ends, notes and plans
//! what `placement/round.rs` decides, one recorded change after the other.
//!
//! What was heard belongs to one term: a node that leads again begins with nothing. What is to be done is told
//! in the answers to reports, out of what is recorded, never out of a plan: so a driver that dies between the
//! two has planned nothing, and two drivers hand out the same steps.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::error;
use tracing::info;

use crate::env::clock::Clock;
use crate::env::tasks::TaskResult;
use crate::error::Error;
use crate::error::Result;
use crate::node::placement::PlacementClient;
use crate::placement::PlacementState;
use crate::placement::operator::Progress;
use crate::placement::overview::Shown;
use crate::placement::policy::Policy;
use crate::placement::round;
use crate::placement::sightings::Sightings;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::Timestamp;
use crate::types::overview::Event;
use crate::types::placement::PlacementAnswer;
use crate::types::report::Report;
use crate::types::report::ShardReport;
use crate::types::report::ShardStep;
use crate::types::shard::ShardDescriptor;

/// How often the cluster is looked at.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Events that are remembered. Full: the oldest is forgotten.
const EVENTS_MAX: usize = 200;

/// What is heard and shown on the node that leads placement's group. Cloning shares it.
#[derive(Clone)]
pub struct Driver {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    /// From here monotonic times are counted.
    began: Instant,
    /// Held for moments, without an await.
    heard: Mutex<Heard>,
    wake: Notify,
}

/// What was heard in one term.
struct Heard {
    term: u64,
    sightings: Sightings,
    events: VecDeque<Event>,
}

impl Driver {
    /// Nothing was heard yet.
    pub fn new(clock: Clock) -> Driver {
        Driver {
            shared: Arc::new(Shared {
                clock,
                began: Instant::now(),
                heard: Mutex::new(Heard {
                    term: 0,
                    sightings: Sightings::new(Duration::ZERO),
                    events: VecDeque::new(),
                }),
                wake: Notify::new(),
            }),
        }
    }

    /// A node reports in a term in which this node leads. Gives the steps for it.
    pub fn hear(&self, term: u64, report: &Report, state: &PlacementState) -> Vec<ShardStep> {
        let now = self.passed();
        let mut heard = self.heard(term);
        heard.sightings.hear(report, now);
        if is_any_done(state, &heard.sightings, now) {
            self.look_soon();
        }
        if state.is_paused() {
            return Vec::new();
        }
        steps(state, &heard.sightings, report.node.node, now)
    }

    /// Looks at the cluster in a term in which this node leads.
    pub fn show<T>(
        &self,
        term: u64,
        state: &PlacementState,
        show: impl FnOnce(&Shown<'_>, Vec<Event>) -> T,
    ) -> T {
        let policy = Policy::of(state.settings());
        let (now, wall) = (self.passed(), self.wall());
        let mut heard = self.heard(term);
        let view = heard.sightings.look(state, &policy, now, wall);
        let shown = Shown {
            state,
            sightings: &heard.sightings,
            view: &view,
            policy: &policy,
            now: wall,
        };
        show(&shown, heard.events.iter().cloned().collect())
    }

    /// Has the next look be made now.
    pub fn look_soon(&self) {
        self.shared.wake.notify_one();
    }

    /// The cluster's clock, as this node has it.
    pub fn wall(&self) -> Timestamp {
        Timestamp::from_wall(self.shared.clock.wall_ms())
    }

    fn see_placement(&self, term: u64, descriptor: ShardDescriptor, report: ShardReport) {
        let now = self.passed();
        let mut heard = self.heard(term);
        heard.sightings.see_placement(descriptor, report, now);
    }

    fn changes(&self, term: u64, state: &PlacementState) -> Vec<round::Change> {
        let policy = Policy::of(state.settings());
        let (now, wall) = (self.passed(), self.wall());
        let mut heard = self.heard(term);
        let view: View = heard.sightings.look(state, &policy, now, wall);
        if !heard.sightings.is_settled(state, &policy, now) {
            return Vec::new();
        }
        round::changes(state, &heard.sightings, &view, &policy, wall)
    }

    fn note(&self, term: u64, texts: Vec<String>) {
        let at = self.wall();
        let mut heard = self.heard(term);
        for text in texts {
            info!(event = text, "placement");
            if heard.events.len() == EVENTS_MAX {
                heard.events.pop_front();
            }
            heard.events.push_back(Event { at, text });
        }
    }

    fn passed(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// What was heard in this term; of an earlier one nothing counts.
    fn heard(&self, term: u64) -> MutexGuard<'_, Heard> {
        let heard = self.shared.heard.lock();
        let mut heard = heard.unwrap_or_else(PoisonError::into_inner);
        // A call that began in an earlier term sees what belongs to the later one, and wipes nothing.
        if term > heard.term {
            heard.term = term;
            heard.sightings = Sightings::new(self.passed());
            heard.events.clear();
        }
        heard
    }
}

/// Whether something can be struck off, so that what comes next need not wait for the next look.
fn is_any_done(state: &PlacementState, sightings: &Sightings, now: Duration) -> bool {
    state.operators().any(|(operator, _)| {
        let known = sightings.descriptor(state, operator.shard);
        let shard = known.map(|known| sightings.shard_view(known, now));
        shard.is_some_and(|shard| operator.next(&shard) == Progress::Done)
    })
}

/// What a node is to do with the shards that it leads.
fn steps(
    state: &PlacementState,
    sightings: &Sightings,
    node: NodeId,
    now: Duration,
) -> Vec<ShardStep> {
    let steps = state.operators().filter_map(|(operator, _)| {
        let known = sightings.descriptor(state, operator.shard)?;
        let shard = sightings.shard_view(known, now);
        if shard.leading()?.node != node {
            return None;
        }
        match operator.next(&shard) {
            Progress::Next(step, epoch) => Some(ShardStep {
                shard: operator.shard,
                epoch,
                step,
            }),
            Progress::Done | Progress::Stale => None,
        }
    });
    steps.collect()
}

/// Looks and has changes recorded until it is told to stop. On nodes that do not lead it does nothing.
pub async fn drive(
    driver: Driver,
    placement: PlacementClient,
    stop: CancellationToken,
) -> TaskResult {
    let mut ticks = interval(ROUND_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe: a tick or a wake that is not taken stays.
        let due = async {
            tokio::select! {
                biased;
                () = driver.shared.wake.notified() => {}
                _ = ticks.tick() => {}
            }
        };
        if stop.run_until_cancelled(due).await.is_none() {
            return Ok(());
        }
        let Some(round) = stop
            .run_until_cancelled(one_round(&driver, &placement))
            .await
        else {
            return Ok(());
        };
        match round {
            Err(error @ Error::Internal(_)) => {
                error!(%error, "a look at the cluster was not finished");
            }
            Err(error) => debug!(%error, "a look at the cluster was not finished"),
            Ok(()) => {}
        }
    }
}

async fn one_round(driver: &Driver, placement: &PlacementClient) -> Result<()> {
    let Ok((term, state)) = placement.led().await else {
        return Ok(());
    };
    let (descriptor, report) = placement.own_group()?;
    driver.see_placement(term, descriptor, report);
    // A fault in planning must not end the node, and then the next one that leads, and so all of them: keys are
    // served without it. It changes nothing but what was heard, which the next look corrects.
    let changes = catch_unwind(AssertUnwindSafe(|| driver.changes(term, &state)));
    let changes = changes.map_err(|_| Error::Internal("planning has panicked".to_owned()))?;
    for change in changes {
        match placement.propose_here(change.command).await? {
            PlacementAnswer::Recorded => driver.note(term, change.events),
            // Another driver was first, or it has come to its end.
            PlacementAnswer::Outdated | PlacementAnswer::Missing => {}
            other @ (PlacementAnswer::FirstId(_) | PlacementAnswer::Member(_)) => {
                return Err(Error::Internal(format!(
                    "a change of placement was answered with {other:?}"
                )));
            }
        }
    }
    Ok(())
}
