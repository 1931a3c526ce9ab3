//! One shard as placement sees it at one moment: what its leader reported last. Decides only.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::placement::policy::Policy;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::report::Load;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;

/// What placement makes of it.
impl Load {
    /// What it costs whoever leads the shard, in operations a second.
    pub fn cost(&self, policy: &Policy) -> u64 {
        self.operations + self.bytes / policy.operation_bytes.max(1)
    }
}

/// One shard at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// As its group knows it, or knew it when it was reported.
    pub descriptor: ShardDescriptor,
    /// Those of its replicas that are learners: they are being added, or were and nobody has finished it.
    pub learners: BTreeSet<ReplicaId>,
    /// The replica that leads; `None` while nobody has said so.
    pub leader: Option<ReplicaId>,
    /// How long it has led, or, in a shard that was split off since, its node led the shard before.
    pub led_for: Duration,
    /// How many entries each replica lacks. One that is not here has not been heard of by the leader.
    pub lags: BTreeMap<ReplicaId, u64>,
    /// How long ago those replicas were added that have come to the shard lately. Replicas that were there
    /// when the shard was split off are not among them.
    pub arrived: BTreeMap<ReplicaId, Duration>,
    /// Its size.
    pub bytes: u64,
    /// How many keys it has.
    pub keys: u64,
    /// What is asked of it, as a mean over some seconds.
    pub load: Load,
    /// The same as a mean over half a minute: what wavers is not evened out.
    pub steady: Load,
    /// For how long its load has been enough to be split, without a break.
    pub busy_for: Duration,
    /// For how long it has been so small and so cold that it may be merged, without a break and with the same
    /// range.
    pub quiet_for: Duration,
    /// For how long the node that is to get a replica next has not taken it.
    pub asked_for: Duration,
    /// Nodes that have not taken a replica lately.
    pub refused: BTreeSet<NodeId>,
    /// Keys of operations drawn by chance, each operation as likely as any other; in no order.
    pub sample: Vec<Key>,
}

impl ShardView {
    /// A shard of which nothing is known but what it is.
    pub fn new(descriptor: ShardDescriptor) -> ShardView {
        ShardView {
            descriptor,
            learners: BTreeSet::new(),
            leader: None,
            led_for: Duration::ZERO,
            lags: BTreeMap::new(),
            arrived: BTreeMap::new(),
            bytes: 0,
            keys: 0,
            load: Load::default(),
            steady: Load::default(),
            busy_for: Duration::ZERO,
            quiet_for: Duration::ZERO,
            asked_for: Duration::ZERO,
            refused: BTreeSet::new(),
            sample: Vec::new(),
        }
    }

    /// Whether it is placement's own group.
    pub fn is_placement(&self) -> bool {
        self.descriptor.id == ShardId::PLACEMENT
    }

    /// The replicas that count in its quorum.
    pub fn voters(&self) -> impl Iterator<Item = Replica> {
        let replicas = self.descriptor.replicas.iter().copied();
        replicas.filter(|replica| !self.learners.contains(&replica.id))
    }

    /// The replica on a node that counts in its quorum.
    pub fn voter_on(&self, node: NodeId) -> Option<Replica> {
        self.voters().find(|replica| replica.node == node)
    }

    /// A replica that does not count yet.
    pub fn learner(&self) -> Option<Replica> {
        let mut replicas = self.descriptor.replicas.iter().copied();
        replicas.find(|replica| self.learners.contains(&replica.id))
    }

    /// The replica that leads, if it is known and still a member.
    pub fn leading(&self) -> Option<Replica> {
        self.voters().find(|voter| Some(voter.id) == self.leader)
    }

    /// Whether a replica has come as far as the leader, but for what is on its way.
    pub fn caught_up(&self, replica: ReplicaId, policy: &Policy) -> bool {
        let lag = self.lags.get(&replica);
        lag.is_some_and(|lag| *lag <= policy.lag_max)
    }

    /// Whether a replica has come to its node so lately that it stays there.
    pub fn rests(&self, replica: ReplicaId, policy: &Policy) -> bool {
        let ago = self.arrived.get(&replica);
        ago.is_some_and(|ago| *ago < policy.replica_rest)
    }

    /// Whether its load is enough to be split at this moment. Whoever makes views remembers since when.
    pub fn is_busy(&self, policy: &Policy) -> bool {
        policy.is_busy(self.load)
    }

    /// Whether it is so small and so cold that it may be merged. Whoever makes views remembers since when.
    pub fn is_quiet(&self, policy: &Policy) -> bool {
        policy.is_quiet(self.bytes, self.load)
    }
}
