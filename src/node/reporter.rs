//! Once a second: tells placement what has changed among the shards that this node leads, and learns
//! what has changed elsewhere. While nothing changes nothing is proposed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::env::tasks::TaskResult;
use crate::error::Result;
use crate::node::members::Members;
use crate::node::placement::PlacementClient;
use crate::node::registry::Registry;
use crate::node::router::Router;
use crate::placement::PlacementCommand;
use crate::raft::Leadership;
use crate::types::ShardId;
use crate::types::node::Member;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Report;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Shards in one report; what is left goes into the next, at once.
const REPORT_SHARDS_MAX: usize = 500;

/// What the task keeps.
pub struct Reporter {
    own: Member,
    registry: Arc<Registry>,
    placement: PlacementClient,
    members: Arc<Members>,
    router: Arc<Router>,
    acknowledged: Acknowledged,
    /// The last change of placement's state that is known here.
    since: u64,
}

impl Reporter {
    /// For the node that is this member. Nothing is reported and nothing known yet.
    pub fn new(
        own: Member,
        registry: Arc<Registry>,
        placement: PlacementClient,
        members: Arc<Members>,
        router: Arc<Router>,
    ) -> Reporter {
        Reporter {
            own,
            registry,
            placement,
            members,
            router,
            acknowledged: Acknowledged::default(),
            since: 0,
        }
    }

    /// Reports until it is told to stop. A report that fails is made again a second later.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        let mut ticks = interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.router.learn_own();
            let Some(round) = stop.run_until_cancelled(self.round()).await else {
                break;
            };
            if let Err(error) = round {
                debug!(%error, "placement does not answer");
            }
        }
        Ok(())
    }

    /// Reports until there is nothing new on either side.
    async fn round(&mut self) -> Result<()> {
        loop {
            let due = self.acknowledged.due(self.led());
            let is_last = due.len() < REPORT_SHARDS_MAX;
            let report = Report {
                shards: due.clone(),
                since: self.since,
            };
            let changes = self.placement.report(report).await?;
            self.acknowledged.note(due);
            for shard in changes.shards {
                self.router.learn(shard, None);
            }
            self.correct(&changes.members).await?;
            if let Err(error) = self.members.learn(changes.members).await {
                warn!(%error, "the members cannot be written down; they are learned again after a restart");
            }
            // Only now: what is learned half-way is told again.
            self.since = changes.upto;
            if is_last && !changes.more {
                return Ok(());
            }
        }
    }

    /// Placement may know addresses that this node had before it was started with others.
    async fn correct(&self, members: &[Member]) -> Result<()> {
        let mut members = members.iter();
        if !members.any(|member| member.id == self.own.id && *member != self.own) {
            return Ok(());
        }
        let command = PlacementCommand::RecordMember(self.own.clone());
        self.placement.propose(command).await.map(drop)
    }

    fn led(&self) -> Vec<ShardDescriptor> {
        let replicas = self.registry.shards().into_iter();
        let led = replicas.filter(|replica| {
            let leadership = *replica.group().leadership().borrow();
            matches!(leadership, Leadership::Leading { .. })
        });
        led.map(|replica| replica.reader().row().descriptor.clone())
            .collect()
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
