//! Once a second: tells placement how this node and the shards do that it leads, and what has changed among
//! them; learns what has changed elsewhere, and takes what is to be done. While nothing changes nothing is
//! proposed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::env::tasks::TaskResult;
use crate::error::Result;
use crate::node::keyspaces::Keyspaces;
use crate::node::members::Members;
use crate::node::meter::Rates;
use crate::node::placement::PlacementClient;
use crate::node::pulse::Pulse;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::router::Router;
use crate::node::stepper::Steps;
use crate::placement::PlacementCommand;
use crate::raft::Leadership;
use crate::raft::Pace;
use crate::types::ShardId;
use crate::types::node::Member;
use crate::types::node::Role;
use crate::types::report::NodeReport;
use crate::types::report::Report;
use crate::types::report::ShardReport;
use crate::types::rule::Labels;
use crate::types::shard::ShardDescriptor;
use crate::wal::SyncStats;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Shards in one report; what is left goes into the next, at once.
const REPORT_SHARDS_MAX: usize = 500;
/// Bytes of samples in the reports of one round; further shards are reported without.
const SAMPLE_BYTES_MAX: usize = 1024 * 1024;
/// A shard that is asked less than this, in operations a second, has no hot keys that anybody needs to know.
const SAMPLED_FROM: u64 = 20;

/// Who reports.
pub struct Reported {
    /// The node as others know it.
    pub own: Member,
    /// Its labels.
    pub labels: Labels,
    /// What it is for.
    pub role: Role,
    /// The size of its disk, and what is used of it.
    pub disk: Box<dyn Fn() -> (u64, u64) + Send + Sync>,
    /// How fast it sends snapshots.
    pub pace: Arc<Pace>,
    /// How its log does.
    pub syncs: Box<dyn Fn() -> SyncStats + Send + Sync>,
}

/// What the task keeps.
pub struct Reporter {
    reported: Reported,
    pulse: Pulse,
    registry: Arc<Registry>,
    placement: PlacementClient,
    members: Arc<Members>,
    keyspaces: Arc<Keyspaces>,
    router: Arc<Router>,
    steps: Steps,
    acknowledged: Acknowledged,
    leads: Leads,
    /// The last change of placement's state that is known here.
    since: u64,
}

impl Reporter {
    /// Nothing is reported and nothing known yet.
    pub fn new(
        (reported, pulse): (Reported, Pulse),
        registry: Arc<Registry>,
        placement: PlacementClient,
        (members, keyspaces): (Arc<Members>, Arc<Keyspaces>),
        router: Arc<Router>,
        steps: Steps,
    ) -> Reporter {
        Reporter {
            reported,
            pulse,
            registry,
            placement,
            members,
            keyspaces,
            router,
            steps,
            acknowledged: Acknowledged::default(),
            leads: Leads::default(),
            since: 0,
        }
    }

    /// Reports until it is told to stop; also when a step has ended. A report that fails is made again a
    /// second later.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        let mut ticks = interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both are cancel-safe: a tick or an end that is not taken stays.
            let due = async {
                tokio::select! {
                    biased;
                    () = self.steps.ended() => {}
                    _ = ticks.tick() => {}
                }
            };
            if stop.run_until_cancelled(due).await.is_none() {
                return Ok(());
            }
            self.router.learn_own();
            let Some(round) = stop.run_until_cancelled(self.round()).await else {
                return Ok(());
            };
            if let Err(error) = round {
                debug!(%error, "placement does not answer");
            }
        }
    }

    /// Reports until there is nothing new on either side.
    async fn round(&mut self) -> Result<()> {
        let node = self.node().await;
        let led = self.led();
        let mut reports = self.leads.look(&led, Instant::now());
        loop {
            let descriptors = led.iter().map(|replica| replica.reader().descriptor());
            let due = self.acknowledged.due(descriptors.collect());
            let rest = reports.split_off(reports.len().min(REPORT_SHARDS_MAX));
            let is_last = due.len() < REPORT_SHARDS_MAX && rest.is_empty();
            let report = Report {
                node: node.clone(),
                changed: due.clone(),
                led: std::mem::replace(&mut reports, rest),
                since: self.since,
            };
            let orders = self.placement.report(report).await?;
            self.acknowledged.note(due);
            // A step may be ordered with each portion; the second time it finds the first under way.
            self.steps.order(orders.steps);
            self.placement.learn_hosts(orders.hosts);
            self.reported.pace.set(orders.snapshot_bytes_per_second);
            let changes = orders.changes;
            for shard in changes.shards {
                self.router.learn(shard, None);
            }
            self.correct(&changes.members).await?;
            if let Err(error) = self.members.learn(changes.members).await {
                warn!(%error, "the members cannot be written down; they are learned again after a restart");
            }
            self.keyspaces.note(changes.keyspaces).await;
            // Only now: what is learned half-way is told again.
            self.since = changes.upto;
            if is_last && !changes.more {
                return Ok(());
            }
        }
    }

    async fn node(&mut self) -> NodeReport {
        let (capacity_bytes, used_bytes) = (self.reported.disk)();
        NodeReport {
            node: self.reported.own.id,
            labels: self.reported.labels.clone(),
            role: self.reported.role,
            capacity_bytes,
            used_bytes,
            sync: self.pulse.sync((self.reported.syncs)()),
            round_trip: self.pulse.round_trip().await,
        }
    }

    /// Placement may know addresses that this node had before it was started with others.
    async fn correct(&self, members: &[Member]) -> Result<()> {
        let own = &self.reported.own;
        let mut members = members.iter();
        if !members.any(|member| member.id == own.id && member != own) {
            return Ok(());
        }
        let command = PlacementCommand::RecordMember(own.clone());
        self.placement.propose(command).await.map(drop)
    }

    fn led(&self) -> Vec<Replica> {
        let mut led = self.registry.shards();
        led.retain(|replica| {
            let leadership = *replica.group().leadership().borrow();
            matches!(leadership, Leadership::Leading { .. })
        });
        led
    }
}

/// The shards that are led from here: since when, and what is asked of them.
#[derive(Default)]
struct Leads(BTreeMap<ShardId, Lead>);

struct Lead {
    since: Instant,
    rates: Rates,
}

impl Leads {
    /// How each of the shards does. Those led no more are forgotten.
    fn look(&mut self, led: &[Replica], now: Instant) -> Vec<ShardReport> {
        let ids: BTreeSet<ShardId> = led
            .iter()
            .map(|it| it.reader().row().descriptor.id)
            .collect();
        self.0.retain(|id, _| ids.contains(id));
        let mut room = SAMPLE_BYTES_MAX;
        let reports = led.iter().map(|replica| {
            let mut report = self.report(replica, now);
            let bytes: usize = report.sample.iter().map(|key| key.len() + 8).sum();
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None => report.sample.clear(),
            }
            report
        });
        reports.collect()
    }

    fn report(&mut self, replica: &Replica, now: Instant) -> ShardReport {
        let row = replica.reader().row();
        let shard = row.descriptor.id;
        // Whoever led the parent leads the child at once: its load has been here as long.
        let parent = row.birth.and_then(|birth| self.0.get(&birth.parent));
        let since = parent.map_or(now, |parent| parent.since);
        let lead = self.0.entry(shard).or_insert_with(|| Lead {
            since,
            rates: Rates::default(),
        });
        let load = lead.rates.look(replica.meter().totals(), now);
        let group = replica.group();
        ShardReport {
            shard,
            epoch: row.descriptor.epoch,
            leader: group.replica(),
            term: group.view().term,
            led_for: now.saturating_duration_since(lead.since),
            learners: group.learners(),
            lags: group.lags(),
            size: row.size,
            load,
            sample: match load.operations >= SAMPLED_FROM {
                true => replica.meter().sample(),
                false => Vec::new(),
            },
        }
    }
}

/// The shards as placement has acknowledged them to this node.
#[derive(Default)]
struct Acknowledged(BTreeMap<ShardId, ShardDescriptor>);

impl Acknowledged {
    /// What of the shards led here is to be reported, a portion at most. Shards led no more are
    /// forgotten: others may change them, so that they count as new when they come back.
    fn due(&mut self, led: Vec<ShardDescriptor>) -> Vec<ShardDescriptor> {
        let ids: BTreeSet<ShardId> = led.iter().map(|shard| shard.id).collect();
        self.0.retain(|id, _| ids.contains(id));
        let changed = led
            .into_iter()
            .filter(|shard| self.0.get(&shard.id) != Some(shard));
        changed.take(REPORT_SHARDS_MAX).collect()
    }

    fn note(&mut self, shards: Vec<ShardDescriptor>) {
        self.0
            .extend(shards.into_iter().map(|shard| (shard.id, shard)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;
    use crate::types::shard::Epoch;

    fn shard(id: u64, bounds: u64) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange::ALL,
            epoch: Epoch { conf: 1, bounds },
            replicas: Vec::new(),
        }
    }

    #[test]
    fn only_what_has_changed_since_it_was_acknowledged_is_due() {
        let mut acknowledged = Acknowledged::default();
        let led = || vec![shard(1, 1), shard(2, 1)];
        assert_eq!(acknowledged.due(led()), led());
        assert_eq!(acknowledged.due(led()), led(), "not acknowledged yet");
        acknowledged.note(led());
        assert_eq!(acknowledged.due(led()), []);
        assert_eq!(
            acknowledged.due(vec![shard(1, 2), shard(2, 1)]),
            [shard(1, 2)]
        );
        assert_eq!(acknowledged.due(vec![shard(1, 1)]), []);
        assert_eq!(
            acknowledged.due(led()),
            [shard(2, 1)],
            "it was led elsewhere"
        );
    }

    #[test]
    fn many_are_reported_in_portions() {
        let mut acknowledged = Acknowledged::default();
        let led = || (0..1_200).map(|id| shard(id, 1)).collect::<Vec<_>>();
        let mut portions = Vec::new();
        loop {
            let due = acknowledged.due(led());
            if due.is_empty() {
                break;
            }
            portions.push(due.len());
            acknowledged.note(due);
        }
        assert_eq!(portions, [500, 500, 200]);
    }
}
