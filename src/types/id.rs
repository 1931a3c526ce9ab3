//! Identities. Decides only. None of them is ever used twice in one cluster: Raft loses committed
//! data when an id comes back with another disk.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub u64);

        impl From<u64> for $name {
            fn from(number: u64) -> $name {
                $name(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    };
}

numbered!(
    /// One process with one data directory. Starts at 1; 0 is no node.
    NodeId, "n"
);
numbered!(
    /// A key range that moves as one. Starts at 1.
    ShardId, "s"
);
numbered!(
    /// One node's copy of one group's data. Starts at 1. Also the node id inside the Raft group, and
    /// the key of everything a replica stores: a replica that returns to a group is a new replica.
    ReplicaId, "r"
);

impl ShardId {
    /// Placement's group where it is spoken of like a shard: it has replicas and a leader, and no keys.
    pub const PLACEMENT: ShardId = ShardId(0);

    /// The group that replicates it.
    pub fn group(self) -> GroupId {
        match self {
            ShardId::PLACEMENT => GroupId::Placement,
            shard => GroupId::Shard(shard),
        }
    }
}

/// One Raft group: a shard's, or placement's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GroupId {
    /// The group that maps key ranges to groups.
    Placement,
    /// The group that replicates one shard.
    Shard(ShardId),
}

impl GroupId {
    /// As a shard: see [`ShardId::PLACEMENT`].
    pub fn as_shard(self) -> ShardId {
        match self {
            GroupId::Placement => ShardId::PLACEMENT,
            GroupId::Shard(shard) => shard,
        }
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupId::Placement => write!(f, "placement"),
            GroupId::Shard(shard) => write!(f, "{shard}"),
        }
    }
}

macro_rules! opaque {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

opaque!(
    /// The hash of the list of nodes that formed the cluster.
    ClusterId
);
opaque!(
    /// Random number of one data directory, written before the node's first packet. Tells a node from
    /// one that was wiped and started again under the same name.
    Incarnation
);
opaque!(
    /// Identity of one write: a UUIDv7 whose time is that of the first attempt. A write that is sent
    /// again carries the same one, and is applied once.
    RequestId
);

impl RequestId {
    /// The time inside the id, in milliseconds since the Unix epoch: the first 48 bits.
    pub fn wall_ms(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }

    /// An id of the given time and chance, laid out as a UUIDv7 (RFC 9562, section 5.7).
    pub fn new(wall_ms: u64, random: [u8; 10]) -> RequestId {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&wall_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        RequestId(bytes)
    }

    /// Whether the bytes are a UUIDv7; anything else has no time to judge a repeat by.
    pub fn is_valid(&self) -> bool {
        self.0[6] >> 4 == 7 && self.0[8] >> 6 == 0b10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_carries_its_time_and_is_a_uuid_of_version_seven() {
        let id = RequestId::new(1_700_000_000_123, [0xff; 10]);
        assert_eq!(id.wall_ms(), 1_700_000_000_123);
        assert!(id.is_valid());
        assert_eq!(uuid::Uuid::from_bytes(id.0).get_version_num(), 7);
        assert!(!RequestId([0; 16]).is_valid());
    }
}
