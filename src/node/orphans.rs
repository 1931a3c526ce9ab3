//! Finds replicas here that have left their group, and has them destroyed.
//!
//! **Only on the word of the group's leader**, which it gives after a round to a quorum: a leader that was
//! deposed does not know who is a member, and a list that comes from elsewhere may be late. When the shard was
//! absorbed by another one, that one's leader gives the word. Until then a
//! replica that is in doubt keeps everything: it may be one that was just added and is needed tomorrow.
//! It disturbs nobody meanwhile, since the others refuse it their votes while they have a leader.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;

use crate::engine::Engine;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskResult;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::node::doubts::Doubts;
use crate::node::doubts::Place;
use crate::node::doubts::is_doubtful;
use crate::node::keeper::KeeperHandle;
use crate::node::members::Nodes;
use crate::node::registry::Registry;
use crate::raft::Group;
use crate::shard;
use crate::shard::merge;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::ReplicaName;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Standing;

/// How often the replicas are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Hints that wait. Full: a hint is dropped; the replica comes to doubt by itself.
const HINTS_WAITING_MAX: usize = 1_024;
/// Replicas that are asked about side by side.
const QUESTIONS_MAX: usize = 32;
/// How long one node may take to answer: a round to a quorum.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Says that a replica here may have left its group. Cloning shares the way to the task.
#[derive(Clone)]
pub struct Hints {
    replicas: mpsc::Sender<ReplicaId>,
}

impl Hints {
    /// Has the replica ask now, if it is here.
    pub fn may_have_left(&self, replica: ReplicaId) {
        // Full: see there.
        let _ = self.replicas.try_send(replica);
    }
}

/// Asks for replicas in doubt.
pub struct Orphans {
    me: NodeId,
    registry: Arc<Registry>,
    engine: Arc<dyn Engine>,
    keeper: KeeperHandle,
    channel: Arc<dyn Channel>,
    nodes: Nodes,
    hints: mpsc::Receiver<ReplicaId>,
    doubts: Doubts,
    started: Instant,
}

impl Orphans {
    /// The task's state, and the way to give it hints.
    pub fn new(
        me: NodeId,
        (registry, engine): (Arc<Registry>, Arc<dyn Engine>),
        keeper: KeeperHandle,
        channel: Arc<dyn Channel>,
        nodes: Nodes,
    ) -> (Hints, Orphans) {
        let (replicas, hints) = mpsc::channel(HINTS_WAITING_MAX);
        let orphans = Orphans {
            me,
            registry,
            engine,
            keeper,
            channel,
            nodes,
            hints,
            doubts: Doubts::default(),
            started: Instant::now(),
        };
        (Hints { replicas }, orphans)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            let doubtful = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(hint) = self.hints.recv() => self.hinted(hint),
                _ = looks.tick() => self.due(),
            };
            // Given up half-way, it is asked again after the next start.
            let asked = stop.run_until_cancelled(self.ask_for_all(doubtful));
            if asked.await.is_none() {
                return Ok(());
            }
        }
    }

    fn hinted(&self, hint: ReplicaId) -> Vec<Group> {
        let mut groups = self.registry.groups();
        groups.retain(|group| group.replica() == hint);
        groups
    }

    fn due(&mut self) -> Vec<Group> {
        let mut groups = self.registry.groups();
        groups.retain(|group| self.place(group).is_some_and(is_doubtful));
        let ids: Vec<ReplicaId> = groups.iter().map(Group::replica).collect();
        let now_ms = self.started.elapsed().as_millis() as u64;
        let due = self.doubts.take_due(&ids, now_ms);
        groups.retain(|group| due.contains(&group.replica()));
        groups
    }

    /// `None`: it is not here any more.
    fn place(&self, group: &Group) -> Option<Place> {
        let descriptor = self.registry.descriptor(group.id()).ok()?;
        let mut listed = descriptor.replicas.iter();
        Some(Place {
            silence_ms: group.silence().as_millis() as u64,
            is_filled: group.machine_applied().position.is_some(),
            is_listed: listed.any(|listed| listed.id == group.replica()),
        })
    }

    async fn ask_for_all(&self, groups: Vec<Group>) {
        let questions = groups.into_iter().map(|group| self.ask_for(group));
        let mut asked = stream::iter(questions).buffer_unordered(QUESTIONS_MAX);
        while asked.next().await.is_some() {}
    }

    async fn ask_for(&self, group: Group) {
        let name = ReplicaName {
            shard: group.id().as_shard(),
            replica: group.replica(),
        };
        let Ok(known) = self.registry.descriptor(group.id()) else {
            return;
        };
        let standing = self.standing(name, &known).await;
        debug!(shard = %name.shard, replica = %name.replica, ?standing, "asked whether it belongs");
        let belongs = match standing {
            Some((standing, shard)) => self.may_belong(name.shard, standing, &shard).await,
            None => true,
        };
        if belongs && !mutant::lives(Mutant::DestroyedOnDoubt) {
            return;
        }
        info!(shard = %name.shard, replica = %name.replica, "the leader says that it has left");
        if let Err(error) = self.keeper.destroy(name.replica).await {
            debug!(replica = %name.replica, %error, "not destroyed yet");
        }
    }

    /// What was absorbed may have to be absorbed here yet.
    async fn may_belong(
        &self,
        orphan: ShardId,
        standing: Standing,
        shard: &ShardDescriptor,
    ) -> bool {
        let absorbed = match standing {
            Standing::Stranger => return false,
            Standing::Member | Standing::NotYet => return true,
            Standing::Absorbed(absorbed) => absorbed,
        };
        // One that is brought to its freeze is not open any more, and may have to absorb it on its way.
        let engine = Arc::clone(&self.engine);
        let Ok(rows) = offload(move || shard::rows(engine.as_ref())).await else {
            return true;
        };
        // One that has absorbed it needs it no more, however it came to that.
        let rows = rows.into_iter().map(|(_, row)| row);
        let needing = rows.filter(|row| !row.merge.absorbed.contains(&orphan));
        let here: Vec<_> = needing.map(|row| row.descriptor).collect();
        !merge::are_left_over(shard, &absorbed, &here)
    }

    /// What the leader says, whom any of the nodes may name; `None` when it is not found.
    async fn standing(
        &self,
        name: ReplicaName,
        shard: &ShardDescriptor,
    ) -> Option<(Standing, ShardDescriptor)> {
        let mut nodes: VecDeque<NodeId> =
            shard.replicas.iter().map(|replica| replica.node).collect();
        nodes.extend((self.nodes)());
        let mut asked = vec![self.me];
        while let Some(node) = nodes.pop_front() {
            if asked.contains(&node) {
                continue;
            }
            asked.push(node);
            match self.ask(node, name).await {
                Ok(standing) => return Some(standing),
                Err(Error::NotLeader {
                    leader: Some(leader),
                    ..
                }) => nodes.push_front(leader),
                Err(_) => {}
            }
        }
        None
    }

    async fn ask(
        &self,
        node: NodeId,
        name: ReplicaName,
    ) -> Result<(Standing, ShardDescriptor), Error> {
        let call = Call {
            request: Request::Membership(name),
            deadline: ANSWER_MAX,
            forwarded: true,
            cluster: None,
        };
        match self.channel.node(node).call(call).await? {
            Response::Membership(standing, shard) => Ok((standing, shard)),
            other => Err(Error::Internal(format!(
                "asked for a membership, got {other:?}"
            ))),
        }
    }
}
