//! Which replicas are on this node.

use std::collections::BTreeMap;
use std::sync::RwLock;

use crate::error::Error;
use crate::error::Result;
use crate::node::replica::Replica;
use crate::placement::PlacementReader;
use crate::raft::Group;
use crate::types::GroupId;
use crate::types::ShardId;
use crate::wire::request::Route;

/// The replicas of a node, by the group they are in.
#[derive(Default)]
pub struct Registry {
    hosted: RwLock<Hosted>,
}

#[derive(Default)]
struct Hosted {
    groups: BTreeMap<GroupId, Group>,
    placement: Option<PlacementReader>,
    shards: BTreeMap<ShardId, Replica>,
}

impl Registry {
    /// Adds placement's group and what reads its state here.
    pub fn add_placement(&self, group: Group, reader: PlacementReader) {
        let mut hosted = self.write();
        hosted.groups.insert(group.id(), group);
        hosted.placement = Some(reader);
    }

    /// What reads placement's state here, where this node has a replica of it.
    pub fn placement(&self) -> Option<PlacementReader> {
        self.read().placement.clone()
    }

    /// Adds a shard's replica and its group.
    pub fn add_shard(&self, shard: ShardId, replica: Replica) {
        let mut hosted = self.write();
        hosted
            .groups
            .insert(replica.group().id(), replica.group().clone());
        hosted.shards.insert(shard, replica);
    }

    /// All groups, in the order of their ids.
    pub fn groups(&self) -> Vec<Group> {
        self.read().groups.values().cloned().collect()
    }

    /// The replica of a group here.
    pub fn group(&self, id: GroupId) -> Result<Group> {
        let found = self.read().groups.get(&id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: format!("a replica of {id}"),
        })
    }

    /// The replica that a message between replicas is for.
    pub fn receiver(&self, route: Route) -> Result<Group> {
        let group = self.group(route.group)?;
        match group.replica() == route.to {
            true => Ok(group),
            false => Err(Error::NotFound {
                what: format!("{} of {}", route.to, route.group),
            }),
        }
    }

    /// All shards' replicas, in the order of their ids.
    pub fn shards(&self) -> Vec<Replica> {
        self.read().shards.values().cloned().collect()
    }

    /// A shard's replica here.
    pub fn shard(&self, id: ShardId) -> Result<Replica> {
        let found = self.read().shards.get(&id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: format!("a replica of {id}"),
        })
    }

    /// The replica of the shard that holds a key.
    pub fn shard_of(&self, key: &[u8]) -> Result<Replica> {
        let hosted = self.read();
        let holds = |replica: &&Replica| replica.reader().row().descriptor.range.contains(key);
        hosted
            .shards
            .values()
            .find(holds)
            .cloned()
            .ok_or_else(|| no_shard(key))
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
