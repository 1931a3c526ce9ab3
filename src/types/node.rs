//! Who a node is, and where it can be reached. Decides only.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::ClusterId;
use crate::types::id::Incarnation;
use crate::types::id::NodeId;
use crate::types::rule::Labels;
use crate::types::timestamp::Timestamp;

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

/// What a person wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Duty {
    /// It holds replicas and leads.
    #[default]
    Serve,
    /// It leads nothing and gets nothing new; what it holds stays.
    Drain,
    /// Its replicas move away too, so that it can be switched off for good.
    Leave,
}

impl Duty {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Duty::Serve => "serve",
            Duty::Drain => "drain",
            Duty::Leave => "leave",
        }
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Role {
    /// Shards, and placement's group.
    #[default]
    Both,
    /// Shards alone.
    Data,
    /// Placement's group alone.
    Placement,
}

impl Role {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Both => "both",
            Role::Data => "data",
            Role::Placement => "placement",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        match text {
            "both" => Ok(Role::Both),
            "data" => Ok(Role::Data),
            "placement" => Ok(Role::Placement),
            _ => Err(format!("{text:?} is no role: use both, data or placement")),
        }
    }
}

/// What placement has recorded of a node beside where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub id: NodeId,
    /// Its labels, as it reported them last.
    pub labels: Labels,
    /// What it is for, as it reported last.
    pub role: Role,
    /// What a person wants of it.
    pub duty: Duty,
    /// Since when it has been silent, by the cluster's clock; `None`: it reports. Whoever drives placement next
    /// goes on from there.
    pub silent_since: Option<Timestamp>,
}

impl NodeRecord {
    /// Whether it is known to be silent.
    pub fn is_silent(&self) -> bool {
        self.silent_since.is_some()
    }
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
