//! Which replicas are on this node.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::node::replica::Replica;
use crate::placement::PlacementReader;
use crate::raft::Group;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::wire::request::Route;

/// The replicas of a node, by the group they are in.
#[derive(Default)]
pub struct Registry {
    hosted: RwLock<Hosted>,
    /// Rises with every replica added.
    additions: watch::Sender<u64>,
}

#[derive(Default)]
struct Hosted {
    groups: BTreeMap<GroupId, Group>,
    placement: Option<PlacementReader>,
    shards: BTreeMap<ShardId, Replica>,
    /// By the first key. A shard keeps it for life, since it is split and merged at its end; where the
    /// range ends is asked of the replica.
    by_start: BTreeMap<Key, ShardId>,
}

impl Registry {
    /// Adds placement's group and what reads its state here.
    pub fn add_placement(&self, group: Group, reader: PlacementReader) {
        let mut hosted = self.write();
        hosted.groups.insert(group.id(), group);
        hosted.placement = Some(reader);
        drop(hosted);
        self.additions.send_modify(|count| *count += 1);
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
        self.additions.send_modify(|count| *count += 1);
    }

    /// Takes a shard's replica out: no request finds it any more.
    pub fn remove_shard(&self, replica: ReplicaId) -> Option<Replica> {
        let mut hosted = self.write();
        let mut shards = hosted.shards.iter();
        let (&shard, _) = shards.find(|(_, hosted)| hosted.group().replica() == replica)?;
        hosted.groups.remove(&GroupId::Shard(shard));
        hosted.by_start.retain(|_, started| *started != shard);
        hosted.shards.remove(&shard)
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
        found.ok_or_else(|| Error::NotFound {
            what: format!("a replica of {id}"),
        })
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
        let mut additions = self.additions.subscribe();
        let added = async {
            loop {
                additions.mark_unchanged();
                match self.receiver(route) {
                    Ok(group) => return group,
                    Err(_) => additions
                        .changed()
                        .await
                        .expect("the registry keeps the sender"),
                }
            }
        };
        let found = timeout(patience, added).await;
        found.or_else(|_| self.receiver(route))
    }

    /// A shard's replica here.
    pub fn shard(&self, id: ShardId) -> Result<Replica> {
        let found = self.read().shards.get(&id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: format!("a replica of {id}"),
        })
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

fn no_shard(key: &[u8]) -> Error {
    Error::NotFound {
        what: format!(
            "a replica of the shard with key {:?}",
            key.escape_ascii().to_string()
        ),
    }
}
