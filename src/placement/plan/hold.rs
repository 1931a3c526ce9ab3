//! What holds placement back from doing something with a shard, and what it has found about each aim, for
//! people who ask why. Decides only.

use std::fmt;
use std::time::Duration;

use crate::placement::node::Unfit;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::operator::Action;
use crate::types::operator::Aim;
use crate::types::rule::Label;
use crate::types::shard::Replica;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Why a node does not get a replica of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// It has one.
    Holds,
    /// It gets nothing new.
    Unfit(Unfit),
    /// The rule requires this label, or forbids it.
    Label(Label),
    /// Its disk has no room for it.
    Full,
    /// It was to get one a short while ago, and did not take it.
    Refused,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excluded::Holds => write!(f, "has one"),
            Excluded::Unfit(unfit) => write!(f, "{unfit}"),
            Excluded::Label(label) => write!(f, "is excluded by {label}"),
            Excluded::Full => write!(f, "has no room"),
            Excluded::Refused => write!(f, "has not taken it lately"),
        }
    }
}

/// A number of things that may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Replicas that come to a node.
    Arriving,
    /// Replicas that a node's leaders send.
    Sending,
    /// Replicas on their way in the cluster.
    Moves,
    /// Leads passed on from or to a node.
    Transfers,
    /// Splits in the cluster.
    Splits,
    /// Merges in the cluster.
    Merges,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Arriving => "replicas on their way to each node that would do",
            Limit::Sending => "replicas sent by the leader's node",
            Limit::Moves => "replicas on their way in the cluster",
            Limit::Transfers => "leads passed on from or to the node",
            Limit::Splits => "shards being split",
            Limit::Merges => "shards that absorb their neighbours",
        })
    }
}

/// What nodes are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// What they hold.
    Bytes,
    /// What they lead, in operations a second.
    Operations,
}

impl Unit {
    /// So much of it, for people.
    pub(super) fn of(self, amount: u64) -> String {
        match self {
            Unit::Operations => format!("{amount} operations/s"),
            Unit::Bytes if amount >= MIB => format!("{} MiB", amount / MIB),
            Unit::Bytes if amount >= KIB => format!("{} KiB", amount / KIB),
            Unit::Bytes => format!("{amount} B"),
        }
    }
}

/// Why something that is wanted is not planned now.
#[derive(Debug, Clone, PartialEq)]
pub enum Hold {
    /// Something else is being done with the shard.
    Operator(String),
    /// Nobody is known to lead the shard, or the leader's node or a majority is silent: there is nobody to do
    /// it.
    NoLeader,
    /// A replica is being added already.
    Learner(Replica),
    /// A node may come back.
    Silent {
        /// The node.
        node: NodeId,
        /// How long it has been silent.
        silent_for: Duration,
        /// When it is given up.
        replace_after: Duration,
    },
    /// The node that is best has started a moment ago, and not said yet how big its disk is.
    UnknownDisk(NodeId),
    /// There is no node for a replica.
    NoNode(Vec<(NodeId, Excluded)>),
    /// There is no node for a replica in a zone with fewer of them.
    NoZone {
        /// Replicas in the fullest zone.
        replicas: usize,
    },
    /// No other replica can lead: it lags, or its node must not.
    NoSuccessor,
    /// Without the replica too few would be left that answer.
    FewLeft {
        /// Replicas that would be left and answer.
        live: usize,
        /// Replicas that would be left.
        left: usize,
    },
    /// So many at once are enough.
    Limit(Limit, usize),
    /// The replica, or the leader, has come to its node lately.
    Rests,
    /// The nodes are close to each other already.
    Even {
        /// What is counted.
        unit: Unit,
        /// Where it is.
        from: NodeId,
        /// What is there.
        here: u64,
        /// Where it would go best.
        to: NodeId,
        /// What is there.
        there: u64,
        /// The difference that is needed: what goes, and the hysteresis.
        needed: u64,
    },
    /// Nothing is known yet about where the load is.
    Samples {
        /// Keys in the sample.
        known: usize,
        /// How many it takes.
        needed: usize,
    },
    /// The load has not lasted yet.
    Brief {
        /// How long it has lasted.
        busy_for: Duration,
        /// How long it takes.
        needed: Duration,
    },
    /// One key has so much of the load that no split relieves the shard.
    HotKey {
        /// The key.
        key: Key,
        /// Its share of the load, in percent.
        percent: u64,
    },
    /// A single key cannot be split.
    OneKey,
    /// What would come of a merge would have too many bytes.
    TooBig {
        /// The right neighbour.
        with: ShardId,
        /// The bytes of both.
        bytes: u64,
        /// The most.
        max: u64,
    },
    /// What would come of a merge would bear too much.
    TooBusy {
        /// The right neighbour.
        with: ShardId,
        /// What both bear, in operations a second.
        operations: u64,
        /// The most.
        max: u64,
    },
    /// What would come of a merge would have keys that are wanted in two shards.
    Parted {
        /// The right neighbour.
        with: ShardId,
        /// By what.
        bound: String,
    },
    /// It has not been small and cold for long enough.
    Unsettled {
        /// For how long it has been.
        quiet_for: Duration,
        /// How long it takes.
        needed: Duration,
    },
    /// It is not to be merged before it has as many replicas as the rule says.
    NotAsMany {
        /// Its replicas.
        replicas: usize,
        /// What the rule says.
        wanted: usize,
    },
    /// A replica of it is where none is to stay.
    Unfit(NodeId, Unfit),
    /// A replica of it is on a node that is no member any more.
    Gone(NodeId),
}

impl Hold {
    /// By how much two nodes differ, when they differ by too little.
    pub(super) fn gap(&self) -> Option<u64> {
        if let Hold::Even { here, there, .. } = self {
            return Some(here.saturating_sub(*there));
        }
        None
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Operator(operator) => write!(f, "under way: {operator}"),
            Hold::NoLeader => write!(f, "no majority with a leader answers"),
            Hold::Learner(learner) => {
                write!(f, "{} is being added on {}", learner.id, learner.node)
            }
            Hold::Silent {
                node,
                silent_for,
                replace_after,
            } => write!(
                f,
                "{node} is silent for {} s and is given up after {} s",
                silent_for.as_secs(),
                replace_after.as_secs()
            ),
            Hold::UnknownDisk(node) => write!(f, "{node} has not said how big its disk is"),
            Hold::NoNode(excluded) => {
                write!(f, "no node for a replica:")?;
                excluded
                    .iter()
                    .enumerate()
                    .try_for_each(|(place, (node, why))| {
                        let comma = if place == 0 { "" } else { "," };
                        write!(f, "{comma} {node} {why}")
                    })
            }
            Hold::NoZone { replicas } => {
                write!(
                    f,
                    "{replicas} in one zone, and no node in another for one of them"
                )
            }
            Hold::NoSuccessor => write!(f, "no other replica can lead"),
            Hold::FewLeft { live, left } => {
                write!(f, "only {live} of the {left} left would answer")
            }
            Hold::Limit(limit, max) => write!(f, "limit: there are {max} {limit}"),
            Hold::Rests => write!(f, "hysteresis: it has come there only lately"),
            Hold::Even {
                unit,
                from,
                here,
                to,
                there,
                needed,
            } => write!(
                f,
                "hysteresis: {} on {from} and {} on {to} differ by no more than {}",
                unit.of(*here),
                unit.of(*there),
                unit.of(*needed)
            ),
            Hold::Samples { known, needed } => {
                write!(f, "{known} sampled keys of {needed} that are needed")
            }
            Hold::Brief { busy_for, needed } => write!(
                f,
                "hysteresis: busy for {} s of {} s",
                busy_for.as_secs(),
                needed.as_secs()
            ),
            Hold::HotKey { key, percent } => write!(
                f,
                "one hot key: {} has {percent} % of the load",
                key.escape_ascii()
            ),
            Hold::OneKey => write!(f, "it has one key alone"),
            Hold::TooBig { with, bytes, max } => write!(
                f,
                "with {with} it would have {}, of {} at most",
                Unit::Bytes.of(*bytes),
                Unit::Bytes.of(*max)
            ),
            Hold::TooBusy {
                with,
                operations,
                max,
            } => write!(
                f,
                "with {with} it would bear {operations} operations/s, of {max} at most"
            ),
            Hold::Parted { with, bound } => write!(f, "{with} is kept apart: {bound}"),
            Hold::Unsettled { quiet_for, needed } => write!(
                f,
                "hysteresis: small and cold for {} s of {} s",
                quiet_for.as_secs(),
                needed.as_secs()
            ),
            Hold::NotAsMany { replicas, wanted } => {
                write!(f, "it has {replicas} of {wanted} replicas")
            }
            Hold::Unfit(node, unfit) => write!(f, "{node} {unfit}"),
            Hold::Gone(node) => write!(f, "{node} is no member any more"),
        }
    }
}

/// What came of one aim.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Nothing is to be done for it.
    InOrder,
    /// This is done next.
    Planned(Action, String),
    /// Something would have to be done.
    Held(Hold),
    /// It depends on what is found about a neighbour.
    Beside(ShardId, Box<Finding>),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::InOrder => write!(f, "in order"),
            Finding::Planned(action, reason) => write!(f, "{action}, since {reason}"),
            Finding::Held(hold) => write!(f, "held: {hold}"),
            Finding::Beside(neighbour, finding) => {
                write!(f, "beside its neighbour {neighbour}: {finding}")
            }
        }
    }
}

/// What was considered for one shard, most urgent first. Ends at what is planned, under way, or
/// waits for its turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The shard.
    pub shard: ShardId,
    /// What came of each aim.
    pub findings: Vec<(Aim, Finding)>,
}
