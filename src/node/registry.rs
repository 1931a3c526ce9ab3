//! Which replicas are on this node.

use std::collections::BTreeMap;
use std::sync::RwLock;

use crate::error::Error;
use crate::error::Result;
use crate::node::replica::Replica;
use crate::raft::Group;
use crate::types::GroupId;
use crate::types::ShardId;
use crate::types::key::Anchor;
use crate::wire::request::Route;

/// The replicas of a node, by the group they are in.
#[derive(Default)]
pub struct Registry {
    hosted: RwLock<Hosted>,
}

#[derive(Default)]
struct Hosted {
    groups: BTreeMap<GroupId, Group>,
    shards: BTreeMap<ShardId, Replica>,
}

impl Registry {
    /// Adds a group that is no shard's.
    pub fn add_group(&self, group: Group) {
        self.write().groups.insert(group.id(), group);
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

    /// A shard's replica here.
    pub fn shard(&self, id: ShardId) -> Result<Replica> {
        let found = self.read().shards.get(&id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: format!("a replica of {id}"),
        })
    }

    /// The replica of the shard that holds a key.
    pub fn shard_of(&self, key: &[u8]) -> Result<Replica> {
        self.shard_at(Anchor::At(key))
    }

    /// The replica of the shard at a place in the order of keys.
    pub fn shard_at(&self, anchor: Anchor<'_>) -> Result<Replica> {
        let hosted = self.read();
        let holds = |replica: &&Replica| replica.reader().row().descriptor.range.holds(anchor);
        let found = hosted.shards.values().find(holds).cloned();
        found.ok_or_else(|| no_shard(anchor))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Hosted> {
        self.hosted.read().expect("nothing panics under this lock")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Hosted> {
        self.hosted.write().expect("nothing panics under this lock")
    }
}

fn no_shard(anchor: Anchor<'_>) -> Error {
    let place = match anchor {
        Anchor::At(key) => format!("with key {:?}", key.escape_ascii().to_string()),
        Anchor::Before(Some(end)) => format!("below key {:?}", end.escape_ascii().to_string()),
        Anchor::Before(None) => "with the last keys".to_string(),
    };
    Error::NotFound {
        what: format!("a replica of the shard {place}"),
    }
}
