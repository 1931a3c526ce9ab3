//! What placement wants done with one shard, and what of it a node is told to do, as values. Decides only.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::types::id::NodeId;
use crate::types::id::ShardId;
use crate::types::key::Key;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::timestamp::Timestamp;

/// Why something is done with a shard. The earlier in this list, the more urgent; it is stored by its place, so
/// that variants are only ever added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Aim {
    /// A person wants it.
    Order,
    /// Nobody leads who should not: not on a node that is drained, leaves or is slow.
    Relieve,
    /// As many replicas as the rule says, none of them on a dead node.
    Repair,
    /// No more of them than that.
    Reduce,
    /// None on a node that leaves.
    Vacate,
    /// No keys of two rules in one shard.
    Part,
    /// None on a node that the rule excludes.
    Obey,
    /// No two in one zone while there is another.
    Spread,
    /// Led where the rule prefers it.
    Prefer,
    /// No shard so big that it is hard to move.
    SplitSize,
    /// No more load on a shard than one leader bears.
    SplitLoad,
    /// As much to lead for every node.
    EvenLoad,
    /// As many bytes on every node.
    EvenBytes,
    /// No more shards than it takes.
    Merge,
}

impl Aim {
    /// All that placement has by itself, most urgent first.
    pub const ALL: [Aim; 13] = [
        Aim::Relieve,
        Aim::Repair,
        Aim::Reduce,
        Aim::Vacate,
        Aim::Part,
        Aim::Obey,
        Aim::Spread,
        Aim::Prefer,
        Aim::SplitSize,
        Aim::SplitLoad,
        Aim::EvenLoad,
        Aim::EvenBytes,
        Aim::Merge,
    ];
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aim::Order => "order",
            Aim::Relieve => "relieve",
            Aim::Repair => "repair",
            Aim::Reduce => "reduce",
            Aim::Vacate => "vacate",
            Aim::Part => "part",
            Aim::Obey => "obey",
            Aim::Spread => "spread",
            Aim::Prefer => "prefer",
            Aim::SplitSize => "split by size",
            Aim::SplitLoad => "split by load",
            Aim::EvenLoad => "even load",
            Aim::EvenBytes => "even bytes",
            Aim::Merge => "merge",
        })
    }
}

/// Where a shard is split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitPoint {
    /// At the key that halves its bytes, which its leader looks for.
    Middle,
    /// At this key, the first of the right half.
    Key(Key),
}

/// What is done with a shard. Variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// One replica more.
    Add {
        /// Where.
        to: NodeId,
    },
    /// One less.
    Remove {
        /// Which.
        replica: Replica,
    },
    /// One more, and then one less.
    Move {
        /// Which goes, once there is the other.
        from: Replica,
        /// Where the other comes.
        to: NodeId,
    },
    /// Another leader.
    Transfer {
        /// Who leads now.
        from: NodeId,
        /// Who shall.
        to: NodeId,
    },
    /// Two shards.
    Split {
        /// Where.
        at: SplitPoint,
    },
    /// One shard of two: it absorbs its right neighbour.
    Merge {
        /// The neighbour.
        right: ShardId,
        /// The neighbour's epoch when it was planned.
        epoch: Epoch,
    },
}

impl Action {
    /// The shard that it takes beside its own.
    pub fn absorbed(&self) -> Option<ShardId> {
        match self {
            Action::Merge { right, .. } => Some(*right),
            Action::Add { .. }
            | Action::Remove { .. }
            | Action::Move { .. }
            | Action::Transfer { .. }
            | Action::Split { .. } => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Add { to } => write!(f, "add a replica on {to}"),
            Action::Remove { replica } => write!(f, "remove {} from {}", replica.id, replica.node),
            Action::Move { from, to } => write!(f, "move {} from {} to {to}", from.id, from.node),
            Action::Transfer { from, to } => write!(f, "pass the lead from {from} to {to}"),
            Action::Split { at } => match at {
                SplitPoint::Middle => write!(f, "split in the middle"),
                SplitPoint::Key(key) => write!(f, "split at {}", key.escape_ascii()),
            },
            Action::Merge { right, .. } => write!(f, "absorb {right}"),
        }
    }
}

/// One thing that the leader of a shard can do and placement can see done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A replica on a node becomes a voter, from nothing or from what there is already.
    AddReplica(NodeId),
    /// A replica leaves; when it leads, another one leads first.
    RemoveReplica(Replica),
    /// The replica on a node leads.
    TransferLeader(NodeId),
    /// The shard becomes two.
    Split(SplitPoint),
    /// The shard absorbs its right neighbour.
    Merge {
        /// The neighbour.
        right: ShardId,
        /// The neighbour's epoch: of another state it is not absorbed.
        epoch: Epoch,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddReplica(node) => write!(f, "add a replica on {node}"),
            Step::RemoveReplica(replica) => {
                write!(f, "remove {} from {}", replica.id, replica.node)
            }
            Step::TransferLeader(node) => write!(f, "pass the lead to {node}"),
            Step::Split(SplitPoint::Middle) => write!(f, "split in the middle"),
            Step::Split(SplitPoint::Key(key)) => write!(f, "split at {}", key.escape_ascii()),
            Step::Merge { right, .. } => write!(f, "absorb {right}"),
        }
    }
}

/// What placement wants done with one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The shard.
    pub shard: ShardId,
    /// What for.
    pub aim: Aim,
    /// What.
    pub action: Action,
    /// Why, in words and numbers, for people.
    pub reason: String,
    /// The shard's epoch when it was planned.
    pub epoch: Epoch,
    /// The shard's voters when it was planned.
    pub voters: Vec<Replica>,
    /// What it copies.
    pub bytes: u64,
    /// When it is given up.
    pub expires: Timestamp,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({}: {})",
            self.shard.group(),
            self.action,
            self.aim,
            self.reason
        )
    }
}
