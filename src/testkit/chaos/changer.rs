//! What is asked of the cluster itself while it is hurt: shards are cut, leaders and replicas moved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::Admin;
use crate::client::Sender;
use crate::client::admin::ShardView;
use crate::error::Error;
use crate::error::Result;
use crate::testkit::chaos::outcome::Changed;
use crate::testkit::chaos::schedule::Change;
use crate::testkit::chaos::schedule::ChangeKind;
use crate::testkit::mix::Target;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::overview::Arrangement;

/// For one change with all its attempts. Some cannot succeed while nodes are away.
const PATIENCE: Duration = Duration::from_secs(8);
/// For one question about the shards.
const ASK: Duration = Duration::from_millis(500);
/// Replicas of a shard.
const REPLICAS: usize = 3;
/// Placement repairs and evens out within the time that faults last.
const IMPATIENT: [(&str, &str); 4] = [
    ("suspect_after", "3s"),
    ("replace_after", "8s"),
    ("replica_rest", "10s"),
    ("leader_rest", "5s"),
];
/// Cutting on for an hour would leave nothing but shards.
const SHARDS_MAX: usize = 24;

/// Asks for changes.
pub struct Changer {
    admin: Admin,
    target: Target,
    /// Where shards may be cut.
    cuts: Vec<Key>,
}

impl Changer {
    /// Over a sender of its own; shards are cut at some of `cuts` only.
    pub fn new(sender: Arc<Sender>, target: Target, cuts: Vec<Key>) -> Changer {
        let admin = Admin::new(sender);
        Changer {
            admin,
            target,
            cuts,
        }
    }

    /// Does each change at its time and says what became of it, until the last one or until nobody
    /// listens.
    pub async fn run(self, changes: Vec<Change>, report: mpsc::Sender<Changed>) {
        let began = Instant::now();
        for change in changes {
            tokio::time::sleep_until(began + change.at).await;
            let at = self.target.moment();
            let (what, done) = self.change(&change).await;
            let changed = Changed {
                at,
                what,
                refused: done.err().map(|error| error.to_string()),
            };
            if report.send(changed).await.is_err() {
                return;
            }
        }
    }

    /// Cuts the key space at every third place and spreads the shards over all nodes, so that each node
    /// leads something. Placement watches meanwhile, and is soon impatient afterwards.
    pub async fn spread(&self) -> Result<()> {
        for (name, value) in IMPATIENT {
            let (name, value) = (name.to_owned(), Some(value.to_owned()));
            self.arrange(Arrangement::SetSetting { name, value })
                .await?;
        }
        self.arrange(Arrangement::SetPaused(true)).await?;
        let spread = self.spread_by_hand().await;
        self.arrange(Arrangement::SetPaused(false)).await?;
        spread
    }

    async fn arrange(&self, arrangement: Arrangement) -> Result<()> {
        self.admin.arrange(arrangement, Some(PATIENCE)).await
    }

    async fn spread_by_hand(&self) -> Result<()> {
        let first = self.admin.shards(ASK).await?;
        let mut shard = first.first().map(|view| view.shard.id);
        for cut in self.cuts.iter().step_by(3) {
            let Some(id) = shard else { break };
            let (_, right) = self
                .admin
                .split_shard(id, cut.clone(), Some(PATIENCE))
                .await?;
            shard = Some(right.id);
        }
        let nodes = self.nodes().await?;
        for (place, view) in self.admin.shards(ASK).await?.into_iter().enumerate() {
            let wanted: Vec<NodeId> = (0..REPLICAS.min(nodes.len()))
                .map(|number| nodes[(place + number) % nodes.len()])
                .collect();
            self.place(&view, &wanted).await?;
        }
        Ok(())
    }

    async fn place(&self, view: &ShardView, wanted: &[NodeId]) -> Result<()> {
        let id = view.shard.id;
        let has = |node: &NodeId| {
            view.shard
                .replicas
                .iter()
                .any(|replica| replica.node == *node)
        };
        for node in wanted.iter().filter(|node| !has(node)) {
            self.admin.add_replica(id, *node, Some(PATIENCE)).await?;
        }
        // Handing over to who leads already is refused.
        if view.leader != Some(wanted[0]) {
            let (group, to) = (GroupId::Shard(id), Some(wanted[0]));
            let moved = self.admin.transfer_leader(group, to, Some(PATIENCE));
            moved.await?;
        }
        let unwanted = view.shard.replicas.iter();
        for replica in unwanted.filter(|replica| !wanted.contains(&replica.node)) {
            let removed = self.admin.remove_replica(id, replica.id, Some(PATIENCE));
            removed.await?;
        }
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<NodeId>> {
        let cluster = self.admin.cluster(ASK).await?;
        let mut nodes: BTreeSet<NodeId> = cluster.nodes.keys().copied().collect();
        nodes.extend(cluster.silent.keys());
        Ok(nodes.into_iter().collect())
    }

    async fn change(&self, change: &Change) -> (String, Result<()>) {
        let mut shards = match self.admin.shards(ASK).await {
            Ok(shards) => shards,
            Err(error) => return ("look at the shards".to_owned(), Err(error)),
        };
        shards.retain(|view| !view.shard.replicas.is_empty());
        if shards.is_empty() {
            let nobody = Error::unavailable("the shards", "nobody tells of one");
            return ("look at the shards".to_owned(), Err(nobody));
        }
        match change.kind {
            ChangeKind::Split => self.split(&shards, change.lot).await,
            ChangeKind::MoveLeader => {
                self.move_leader(&pick(&shards, change.lot), change.lot)
                    .await
            }
            ChangeKind::MoveReplica => {
                self.move_replica(&pick(&shards, change.lot), change.lot)
                    .await
            }
        }
    }

    async fn split(&self, shards: &[ShardView], lot: u64) -> (String, Result<()>) {
        let starts: BTreeSet<&Key> = shards.iter().map(|view| &view.shard.range.start).collect();
        let fresh: Vec<&Key> = self
            .cuts
            .iter()
            .filter(|cut| !starts.contains(cut))
            .collect();
        if fresh.is_empty() || shards.len() >= SHARDS_MAX {
            // Nothing is left to be cut; a leader moves instead.
            return self.move_leader(&pick(shards, lot), lot).await;
        }
        let cut = pick(&fresh, lot).clone();
        let mut holding = shards.iter();
        let Some(view) = holding.find(|view| view.shard.range.contains(&cut)) else {
            let error = Error::unavailable("the shard", "nobody tells of it");
            return (format!("cut at {}", cut.escape_ascii()), Err(error));
        };
        let what = format!("cut {} at {}", view.shard.id, cut.escape_ascii());
        let split = self.admin.split_shard(view.shard.id, cut, Some(PATIENCE));
        (what, split.await.map(|_| ()))
    }

    async fn move_leader(&self, view: &ShardView, lot: u64) -> (String, Result<()>) {
        let others = view.shard.replicas.iter();
        let others: Vec<NodeId> = others
            .map(|replica| replica.node)
            .filter(|node| Some(*node) != view.leader)
            .collect();
        let id = view.shard.id;
        if others.is_empty() {
            return (format!("{id} has one replica"), Ok(()));
        }
        let to = pick(&others, lot >> 8);
        let group = GroupId::Shard(id);
        let moved = self.admin.transfer_leader(group, Some(to), Some(PATIENCE));
        (format!("{id} led by {to}"), moved.await)
    }

    /// To a node that has none, where there is one, by an operator of placement. Otherwise one leaves, and
    /// placement puts another one in its place.
    async fn move_replica(&self, view: &ShardView, lot: u64) -> (String, Result<()>) {
        let id = view.shard.id;
        let nodes = match self.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => return (format!("move a replica of {id}"), Err(error)),
        };
        let replicas = &view.shard.replicas;
        let has = |node: &NodeId| replicas.iter().any(|replica| replica.node == *node);
        let free: Vec<NodeId> = nodes.into_iter().filter(|node| !has(node)).collect();
        let leaving = pick(replicas, lot >> 8);
        let from = leaving.node;
        if free.is_empty() {
            let what = format!("replica of {id} off {from}");
            // One that an earlier change has left with fewer keeps them.
            if replicas.len() < REPLICAS {
                return (what, Ok(()));
            }
            let removed = self.admin.remove_replica(id, leaving.id, Some(PATIENCE));
            return (what, removed.await.map(drop));
        }
        let to = pick(&free, lot >> 16);
        let shard = id;
        let ordered = self.arrange(Arrangement::MoveReplica { shard, from, to });
        (
            format!("replica of {id} from {from} to {to}"),
            ordered.await,
        )
    }
}

/// One of them, counted around.
fn pick<T: Clone>(things: &[T], lot: u64) -> T {
    let place = lot % things.len() as u64;
    things[usize::try_from(place).unwrap_or_default()].clone()
}
