//! How this node does: how long its log takes to sync, how long its peers take to answer.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::node::registry::Registry;
use crate::raft::Group;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::wal::SyncStats;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Route;

/// How long a peer may take to answer.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);
/// Looks that count. Of so many the middle one is told: what is slow for a moment is not slow.
const LOOKS: usize = 7;

/// What is remembered from one look to the next.
pub struct Pulse {
    me: NodeId,
    registry: Arc<Registry>,
    channel: Arc<dyn Channel>,
    syncs: u64,
    sync_times: Recent,
    round_trips: BTreeMap<NodeId, Recent>,
    asked: Option<NodeId>,
}

impl Pulse {
    /// Of the node `me`.
    pub fn new(me: NodeId, registry: Arc<Registry>, channel: Arc<dyn Channel>) -> Pulse {
        Pulse {
            me,
            registry,
            channel,
            syncs: 0,
            sync_times: Recent::default(),
            round_trips: BTreeMap::new(),
            asked: None,
        }
    }

    /// How long a sync takes. A node that has nothing to sync is not slow.
    pub fn sync(&mut self, stats: SyncStats) -> Duration {
        let overdue = stats.under_way.filter(|under_way| *under_way > stats.last);
        let time = match overdue {
            Some(under_way) => under_way,
            None if stats.count == self.syncs => Duration::ZERO,
            None => stats.last,
        };
        self.syncs = stats.count;
        self.sync_times.add(time);
        self.sync_times.middle()
    }

    /// How long a round trip takes to the peer in the middle, so that one that is slow makes nobody else slow. Asks
    /// one of them, the next one in turn, and waits for it up to a second; one that does not answer may be down,
    /// and does not count. Cancel-safe.
    pub async fn round_trip(&mut self) -> Duration {
        let peers = self.peers();
        self.round_trips.retain(|node, _| peers.contains_key(node));
        let behind = peers.iter().find(|(node, _)| Some(**node) > self.asked);
        if let Some((node, route)) = behind.or_else(|| peers.iter().next()) {
            self.asked = Some(*node);
            if let Some(time) = self.ask(*node, *route).await {
                self.round_trips.entry(*node).or_default().add(time);
            }
        }
        middle(self.round_trips.values().map(Recent::middle))
    }

    async fn ask(&self, node: NodeId, route: Route) -> Option<Duration> {
        let began = Instant::now();
        let call = Call {
            request: Request::Term(route),
            deadline: ROUND_TRIP_MAX,
            forwarded: true,
            cluster: None,
        };
        let answer = self.channel.node(node).call(call).await;
        answer.ok().map(|_| began.elapsed())
    }

    /// A replica to ask on each other node that has one in common with this one.
    fn peers(&self) -> BTreeMap<NodeId, Route> {
        let groups = self.registry.groups();
        let routes = groups.iter().flat_map(|group| self.routes(group));
        routes.collect()
    }

    fn routes(&self, group: &Group) -> Vec<(NodeId, Route)> {
        let others = group.membership().nodes.into_iter();
        let others = others.filter(|(_, node)| *node != self.me);
        let route = |to: ReplicaId| Route {
            group: group.id(),
            from: group.replica(),
            to,
        };
        others
            .map(|(replica, node)| (node, route(replica)))
            .collect()
    }
}

/// The last times.
#[derive(Default)]
struct Recent(VecDeque<Duration>);

impl Recent {
    fn add(&mut self, time: Duration) {
        if self.0.len() == LOOKS {
            self.0.pop_front();
        }
        self.0.push_back(time);
    }

    fn middle(&self) -> Duration {
        middle(self.0.iter().copied())
    }
}

/// Of an even number the lower one; nothing of none.
fn middle(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let middle = times.len().saturating_sub(1) / 2;
    times.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_once_or_thrice_is_not_slow() {
        let mut recent = Recent::default();
        assert_eq!(recent.middle(), Duration::ZERO);
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(1));
        (0..LOOKS).for_each(|_| recent.add(quick));
        (0..3).for_each(|_| recent.add(slow));
        assert_eq!(recent.middle(), quick);
        recent.add(slow);
        assert_eq!(recent.middle(), slow);
    }
}
