//! Who a node is, and where it can be reached. Decides only.

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::ClusterId;
use crate::types::id::Incarnation;
use crate::types::id::NodeId;

/// What a node says about itself on every call to another node, and checks on every call it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its place in it.
    pub node: NodeId,
    /// Its data directory's random number.
    pub incarnation: Incarnation,
}

/// A member of the cluster as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its data directory's random number.
    pub incarnation: Incarnation,
    /// Its name, as given by the person who runs it.
    pub name: String,
    /// `host:port` for other nodes.
    pub node_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

/// How much room a node's disk has; more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// None: it takes no more entries.
    Full,
    /// Less than it keeps in reserve: it takes what is under way, and deletes.
    Short,
    /// It takes everything.
    Enough,
}

/// A node that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Newcomer {
    /// Its data directory's random number.
    pub incarnation: Incarnation,
    /// Its name, as given by the person who runs it.
    pub name: String,
    /// `host:port` for other nodes.
    pub node_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

impl Newcomer {
    /// The member that it becomes under an id.
    pub fn into_member(self, id: NodeId) -> Member {
        Member {
            id,
            incarnation: self.incarnation,
            name: self.name,
            node_address: self.node_address,
            client_address: self.client_address,
        }
    }
}
