//! Which replicas are on this node.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::machine::Membership;
use crate::node::replica::Replica;
use crate::placement::PlacementReader;
use crate::raft::Group;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::shard::Epoch;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Route;

/// The replicas of a node, by the group they are in.
#[derive(Default)]
pub struct Registry {
    hosted: RwLock<Hosted>,
    /// Rises when a replica was added, or has got its first row, or was not opened after all.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Hosted {
    groups: BTreeMap<GroupId, Group>,
    placement: Option<PlacementReader>,
    shards: BTreeMap<ShardId, Replica>,
    /// By the first key. A shard keeps it for life, since it is split and merged at its end; where the
    /// range ends is asked of the replica.
    by_start: BTreeMap<Key, ShardId>,
    /// Replicas that are being opened.
    opening: BTreeSet<ReplicaId>,
    /// Replicas that were taken out, and are never opened again; those with true stand still.
    out: BTreeMap<ReplicaId, bool>,
}

impl Hosted {
    fn remove(&mut self, replica: ReplicaId) -> Option<Group> {
        let mut groups = self.groups.iter();
        let (&id, _) = groups.find(|(_, group)| group.replica() == replica)?;
        match id {
            GroupId::Placement => self.placement = None,
            GroupId::Shard(shard) => {
                self.by_start.retain(|_, started| *started != shard);
                self.shards.remove(&shard);
            }
        }
        self.groups.remove(&id)
    }
}

struct IsOpening;

async fn heard(news: &mut watch::Receiver<u64>) {
    let heard = news.changed().await;
    heard.expect("the registry keeps the sender");
}

/// A replica that nobody else opens, or takes out, meanwhile.
pub struct Opening<'a> {
    registry: &'a Registry,
    replica: ReplicaId,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.registry.write().opening.remove(&self.replica);
        self.registry.notice();
    }
}

impl Registry {
    /// Adds placement's group and what reads its state here.
    pub fn add_placement(&self, group: Group, reader: PlacementReader) {
        let mut hosted = self.write();
        hosted.groups.insert(group.id(), group);
        hosted.placement = Some(reader);
        drop(hosted);
        self.notice();
    }

    /// What reads placement's state here, where this node has a replica of it.
    pub fn placement(&self) -> Option<PlacementReader> {
        self.read().placement.clone()
    }

    /// Adds a shard's replica and its group.
    pub fn add_shard(&self, shard: ShardId, replica: Replica) {
        let start = replica.reader().row().descriptor.range.start.clone();
        let mut hosted = self.write();
        hosted
            .groups
            .insert(replica.group().id(), replica.group().clone());
        hosted.shards.insert(shard, replica);
        hosted.by_start.insert(start, shard);
        drop(hosted);
        self.notice();
    }

    /// Begins to open a replica; `None` when it was taken out, or is there, or is being opened by somebody else.
    pub fn begin_opening(&self, replica: ReplicaId) -> Option<Opening<'_>> {
        let mut hosted = self.write();
        let mut open = hosted.groups.values().map(Group::replica);
        if hosted.out.contains_key(&replica) || open.any(|open| open == replica) {
            return None;
        }
        let registry = self;
        let begins = hosted.opening.insert(replica);
        begins.then_some(Opening { registry, replica })
    }

    /// Takes a replica out, for ever: no request finds it any more, and it is not opened again. Waits while it is
    /// being opened. `None` when it is not open. Cancel-safe.
    pub async fn take_out(&self, replica: ReplicaId) -> Option<Group> {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Ok(taken) = self.try_take_out(replica) {
                return taken;
            }
            heard(&mut news).await;
        }
    }

    /// Whether a replica was taken out since the node started.
    pub fn is_out(&self, replica: ReplicaId) -> bool {
        self.read().out.contains_key(&replica)
    }

    /// Notes that nobody goes on with a replica that was taken out.
    pub fn note_still(&self, replica: ReplicaId) {
        self.write().out.insert(replica, true);
    }

    /// Whether nobody goes on with a replica.
    pub fn stands_still(&self, replica: ReplicaId) -> bool {
        self.read().out.get(&replica).copied().unwrap_or(false)
    }

    /// Lets go of all replicas, of which nothing runs any more: they reach each other through here, and would keep each
    /// other in memory.
    pub fn clear(&self) {
        let hosted = std::mem::take(&mut *self.write());
        // Not under the lock: the last ones to go may ask for others.
        drop(hosted);
    }

    /// Has whoever waits for a replica look again.
    pub fn notice(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// Rises with what [`Registry::notice`] is told.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn try_take_out(&self, replica: ReplicaId) -> Result<Option<Group>, IsOpening> {
        let mut hosted = self.write();
        if hosted.opening.contains(&replica) {
            return Err(IsOpening);
        }
        hosted.out.entry(replica).or_insert(false);
        Ok(hosted.remove(replica))
    }

    /// What a group replicates, as of the last entries applied here. Placement's is like a shard without keys.
    pub fn descriptor(&self, id: GroupId) -> Result<ShardDescriptor> {
        let GroupId::Shard(shard) = id else {
            return self.placement_descriptor();
        };
        Ok(self.shard(shard)?.reader().descriptor())
    }

    fn placement_descriptor(&self) -> Result<ShardDescriptor> {
        let reader = self
            .placement()
            .ok_or_else(|| no_replica(GroupId::Placement))?;
        let applied = reader.applied();
        let replicas = match applied.membership_position {
            Some(_) => Membership::decode(&applied.membership)
                .map_err(|error| Error::Internal(error.to_string()))?
                .replicas(),
            None => Vec::new(),
        };
        Ok(ShardDescriptor {
            id: ShardId::PLACEMENT,
            range: KeyRange {
                start: Key::new(),
                end: Some(Key::new()),
            },
            epoch: Epoch {
                conf: applied.membership_position.map_or(0, |at| at.index),
                bounds: 0,
            },
            replicas,
        })
    }

    /// A replica of a shard here that holds keys of a range.
    pub fn overlapping(&self, range: &KeyRange) -> Option<ReplicaId> {
        let hosted = self.read();
        let overlaps = |replica: &&Replica| replica.reader().row().descriptor.range.overlaps(range);
        let found = hosted.shards.values().find(overlaps)?;
        Some(found.group().replica())
    }

    /// All groups, in the order of their ids.
    pub fn groups(&self) -> Vec<Group> {
        self.read().groups.values().cloned().collect()
    }

    /// All replicas of shards, in the order of the shards' first keys.
    pub fn shards(&self) -> Vec<Replica> {
        let hosted = self.read();
        let ordered = hosted.by_start.values();
        ordered
            .filter_map(|shard| hosted.shards.get(shard).cloned())
            .collect()
    }

    /// The replica of a group here.
    pub fn group(&self, id: GroupId) -> Result<Group> {
        let found = self.read().groups.get(&id).cloned();
        found.ok_or_else(|| no_replica(id))
    }

    /// The replicas here whose shards have absorbed a shard: that, or what is split off one that has.
    pub fn absorbers(&self, shard: ShardId) -> Vec<Replica> {
        let mut replicas = self.shards();
        replicas.retain(|replica| replica.reader().row().merge.absorbed.contains(&shard));
        replicas
    }

    /// Whether a replica of a shard runs here.
    pub fn is_open(&self, replica: ReplicaId) -> bool {
        let hosted = self.read();
        hosted
            .groups
            .values()
            .any(|group| group.replica() == replica)
    }

    /// The replica that a message between replicas is for.
    pub fn receiver(&self, route: Route) -> Result<Group> {
        let group = self.group(route.group)?;
        match group.replica() == route.to || mutant::lives(Mutant::WrongReplicaAnswers) {
            true => Ok(group),
            false => Err(Error::NotFound {
                what: format!("{} of {}", route.to, route.group),
            }),
        }
    }

    /// As [`Registry::receiver`], for a message that may come before its replica: a child that was split
    /// off elsewhere is called as soon as one node has applied the split. Waits up to `patience`.
    /// Cancel-safe.
    pub async fn awaited_receiver(&self, route: Route, patience: Duration) -> Result<Group> {
        let mut news = self.news.subscribe();
        let added = async {
            loop {
                news.mark_unchanged();
                match self.receiver(route) {
                    Ok(group) => return group,
                    Err(_) => heard(&mut news).await,
                }
            }
        };
        let found = timeout(patience, added).await;
        found.or_else(|_| self.receiver(route))
    }

    /// A shard's replica here.
    pub fn shard(&self, id: ShardId) -> Result<Replica> {
        let found = self.read().shards.get(&id).cloned();
        found.ok_or_else(|| no_replica(id.group()))
    }

    /// The replica of the shard that holds a key, while it has something to answer with.
    pub fn shard_of(&self, key: &[u8]) -> Result<Replica> {
        let hosted = self.read();
        let before = hosted
            .by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back();
        before
            .and_then(|(_, shard)| hosted.shards.get(shard))
            .filter(|replica| replica.is_filled() && !replica.reader().is_quarantined())
            .filter(|replica| replica.reader().row().descriptor.range.contains(key))
            .ok_or_else(|| no_shard(key))
            .and_then(|replica| replica.group().check().map(|()| replica.clone()))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Hosted> {
        self.hosted.read().expect("nothing panics under this lock")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Hosted> {
        self.hosted.write().expect("nothing panics under this lock")
    }
}

fn no_replica(id: GroupId) -> Error {
    Error::NotFound {
        what: format!("a replica of {id}"),
    }
}

fn no_shard(key: &[u8]) -> Error {
    Error::NotFound {
        what: format!(
            "a replica of the shard with key {:?}",
            key.escape_ascii().to_string()
        ),
    }
}
