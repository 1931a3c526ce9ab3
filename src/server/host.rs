//! An open node, as its handler sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep;
use tracing::warn;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::changes::Changes;
use crate::node::checks::Checks;
use crate::node::formation::Formed;
use crate::node::keeper::KeeperHandle;
use crate::node::keyspaces::Keyspaces;
use crate::node::members::Members;
use crate::node::merges::Merges;
use crate::node::orphans::Hints;
use crate::node::placement::PlacementClient;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::router::Router;
use crate::node::routes::Target;
use crate::node::splitter;
use crate::placement::PlacementAnswer;
use crate::placement::PlacementCommand;
use crate::raft::Group;
use crate::server::space::Space;
use crate::server::space::is_enough;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::node::Identity;
use crate::types::node::Member;
use crate::types::node::Room;
use crate::types::request::Operation;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::CreateReplica;
use crate::wire::request::Creation;
use crate::wire::request::GroupStatus;
use crate::wire::request::JoinRequest;
use crate::wire::request::JoinResponse;
use crate::wire::request::NodeStatus;
use crate::wire::request::ReplicaName;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::SplitShard;
use crate::wire::request::Standing;
use crate::wire::request::StatusQuery;

/// So long a node that was asked is waited for whatever is heard of its shard: what is heard may be late, and
/// one that is well mostly answers sooner.
const ANSWER_PATIENCE: Duration = Duration::from_millis(250);

/// Everything that requests need of a node.
pub struct Host {
    /// Who the node is.
    pub identity: Identity,
    /// How others know it.
    pub member: Member,
    /// The cluster as it was formed.
    pub formed: Formed,
    /// Every node of the cluster.
    pub members: Arc<Members>,
    /// Where the keys are that have no replica here.
    pub router: Arc<Router>,
    /// The way to placement.
    pub placement: PlacementClient,
    /// The keyspaces that it has told of.
    pub keyspaces: Arc<Keyspaces>,
    /// Its replicas.
    pub registry: Arc<Registry>,
    /// Who makes and destroys them.
    pub keeper: KeeperHandle,
    /// Who changes the replicas of the shards led from here.
    pub changes: Changes,
    /// Who makes one shard of two.
    pub merges: Merges,
    /// Who asks whether replicas here still belong to their groups.
    pub hints: Hints,
    /// Answers questions about the state of the replicas here.
    pub checks: Checks,
    /// The way to the others.
    pub channel: Arc<dyn Channel>,
    /// When it started.
    pub started: Instant,
    /// Room on its disk.
    pub space: Arc<Space>,
}

impl Host {
    /// Refuses what a majority of the replicas has no room for. Deletes go on longer than puts, since
    /// they make room later. For the shard's leader.
    pub fn check_space(&self, replica: &Replica, write: &Write) -> Result<()> {
        let puts = match &write.kind {
            WriteKind::Keys { operations, .. } => operations
                .iter()
                .any(|operation| matches!(operation, Operation::Put { .. })),
            WriteKind::Range { .. } => false,
        };
        let needed = if puts { Room::Enough } else { Room::Short };
        // It takes every entry itself, before the others do.
        let here = self.space.room() >= needed;
        match here && (!self.space.others_lack() || self.others_have(needed, replica)) {
            true => Ok(()),
            false => Err(Error::NoSpace {
                free_bytes: self.space.free_bytes(),
            }),
        }
    }

    fn others_have(&self, needed: Room, replica: &Replica) -> bool {
        let membership = replica.group().membership();
        is_enough(needed, &membership, |node| match node {
            here if here == self.identity.node => Some(self.space.room()),
            other => self.channel.room(other),
        })
    }

    /// Refuses a node that nobody here has heard of. One that has just joined is heard of within a second.
    pub fn check_member(&self, node: NodeId) -> Result<()> {
        match self.members.list().iter().any(|member| member.id == node) {
            true => Ok(()),
            false => Err(Error::unavailable(node, "no such node is known here")),
        }
    }

    /// The shard that holds a key, as far as is known here. A hint: whoever holds it decides.
    pub fn shard_with(&self, key: &[u8]) -> Option<ShardDescriptor> {
        self.router.locate(key).ok().map(|route| route.shard)
    }

    /// Cuts a shard in two, if its leader is here.
    pub async fn split_shard(&self, split: SplitShard) -> Result<Response> {
        let replica = self.registry.shard(split.shard)?;
        if let Some(right) = self.split_already(&split) {
            let left = replica.reader().descriptor();
            return Ok(Response::SplitShard { left, right });
        }
        let (left, right) = splitter::split(&replica, &self.placement, split.at).await?;
        self.router.learn(right.clone(), Some(self.identity.node));
        Ok(Response::SplitShard { left, right })
    }

    /// The half that was split off there, if that has been done: the answer may have been lost.
    fn split_already(&self, split: &SplitShard) -> Option<ShardDescriptor> {
        let row = self.registry.shard_of(&split.at).ok()?.reader().row();
        let born = row.birth.as_ref()?;
        let is_it = born.parent == split.shard && row.descriptor.range.start == split.at;
        is_it.then(|| row.descriptor.clone())
    }

    /// Sends a request on to another node.
    pub async fn forward(
        &self,
        to: NodeId,
        request: Request,
        deadline: Duration,
    ) -> Result<Response> {
        let call = Call {
            request,
            deadline,
            forwarded: true,
            cluster: Some(self.identity.cluster),
        };
        self.channel.node(to).call(call).await
    }

    /// Sends a request for a key without a replica here to a node that has one, and learns from its
    /// answer. One attempt; after an error the next one goes where the error points.
    pub async fn ask_elsewhere(
        &self,
        key: &[u8],
        request: Request,
        until: Instant,
    ) -> Result<Response> {
        let target = self.router.target(key, until).await?;
        self.ask_target(target, request, until).await
    }

    /// As [`Host::ask_elsewhere`], for a shard that is named.
    pub async fn ask_shard(
        &self,
        shard: ShardId,
        request: Request,
        until: Instant,
    ) -> Result<Response> {
        let target = self.router.target_of(shard)?;
        self.ask_target(target, request, until).await
    }

    async fn ask_target(
        &self,
        target: Target,
        request: Request,
        until: Instant,
    ) -> Result<Response> {
        let left = until.saturating_duration_since(Instant::now());
        let deadline = match request {
            // Given up half-way it would be unknown; its sender asks again with the same id.
            Request::Write(_) => left,
            // A node that stands still must not use the time of the others up.
            _ => left / 2,
        };
        let write = request.write_id();
        let answer = tokio::select! {
            biased;
            answer = self.forward(target.node, request, deadline) => answer,
            () = self.turned_from(target) => Err(given_up(target, write)),
        };
        match &answer {
            // What was sent on once is written by a leader only.
            Ok(response) => {
                let leads = matches!(response, Response::Write(..));
                self.router.reached(target, leads);
            }
            Err(error) => self.router.refused(target, error),
        }
        answer
    }

    /// Returns when the node asked has had time to answer and, as far as is known, another is to be asked.
    async fn turned_from(&self, target: Target) {
        sleep(ANSWER_PATIENCE).await;
        self.router.turned_from(target).await;
    }

    /// Takes a node into the cluster, or gives the one that is in it already its id once more.
    pub async fn join(&self, join: JoinRequest, until: Instant) -> Result<JoinResponse> {
        self.check_newcomer(&join)?;
        let newcomer = join.newcomer.clone();
        let command = PlacementCommand::AddMember(join.newcomer);
        let node = match self.placement.propose_until(command, until).await? {
            PlacementAnswer::Member(node) => node,
            other => return Err(Error::Internal(format!("a node was added as {other:?}"))),
        };
        if let Err(error) = self.members.learn(vec![newcomer.into_member(node)]).await {
            warn!(%error, "the members cannot be written down; they are learned again after a restart");
        }
        Ok(JoinResponse {
            node,
            cluster: self.formed.cluster,
            founders: self.formed.founders.clone(),
            members: self.members.list(),
        })
    }

    fn check_newcomer(&self, join: &JoinRequest) -> Result<()> {
        let JoinRequest { token, newcomer } = join;
        if *token != self.formed.token {
            let reason = format!(
                "cluster {} was formed with another --initial-cluster-token than {token:?}: check that --join names the \
                 cluster that you mean, and give its token",
                self.formed.cluster
            );
            return Err(Error::invalid("token", reason));
        }
        if newcomer.name.is_empty() {
            return Err(Error::invalid("name", "a node has a name; set --name"));
        }
        if newcomer.node_address.is_empty() || newcomer.client_address.is_empty() {
            let reason = "a node that joins says where it can be reached";
            return Err(Error::invalid("node_address", reason));
        }
        match self.formed.node_of(newcomer.incarnation) {
            Some(founder) => Err(Error::invalid(
                "incarnation",
                format!(
                    "its data directory is an old copy of that of {founder}, which founded the cluster;                      start it with an empty one"
                ),
            )),
            None => Ok(()),
        }
    }

    /// For a follower's read. Only a leader answers.
    pub async fn read_position(&self, group: GroupId) -> Result<Position> {
        match group {
            GroupId::Shard(shard) => self.registry.shard(shard)?.read_position().await,
            GroupId::Placement => self.registry.group(group)?.read_position().await,
        }
    }

    /// Makes a replica here. Where an earlier one of the same shard is in the way, it may have left the
    /// group without hearing of it.
    pub async fn create_replica(&self, create: CreateReplica) -> Result<Creation> {
        let (shard, replica) = (create.descriptor.id, create.replica);
        let creation = self.keeper.create(create).await?;
        match self.registry.group(shard.group()) {
            Ok(other) if creation == Creation::NotYet && other.replica() != replica => {
                self.hints.may_have_left(other.replica());
            }
            Ok(_) | Err(_) => {}
        }
        Ok(creation)
    }

    /// Whether a replica belongs to its shard, and the shard. Only a leader answers, after a round to a
    /// quorum: what it says may destroy the replica.
    pub async fn standing(&self, name: ReplicaName) -> Result<(Standing, ShardDescriptor)> {
        let group = match self.registry.group(name.shard.group()) {
            Ok(group) => group,
            Err(error) => return self.absorber(name.shard).await.unwrap_or(Err(error)),
        };
        if !mutant::lives(Mutant::StrangerByOldLeader) {
            let position = self.read_position(group.id()).await?;
            group.wait_applied(position).await?;
        }
        let shard = self.registry.descriptor(group.id())?;
        let is_member = group.membership().nodes.contains_key(&name.replica)
            || shard.replicas.iter().any(|known| known.id == name.replica);
        // Looked at behind the membership: a change that ended between the two still counts.
        let standing = match is_member {
            true => Standing::Member,
            false if self.changes.may_become_member(name.replica) => Standing::NotYet,
            false => Standing::Stranger,
        };
        Ok((standing, shard))
    }

    /// The shard here that has absorbed another one, if it is led from here.
    async fn absorber(&self, shard: ShardId) -> Option<Result<(Standing, ShardDescriptor)>> {
        let absorber = self.registry.absorbers(shard).into_iter().next()?;
        let confirmed = async {
            let position = absorber.read_position().await?;
            absorber.group().wait_applied(position).await?;
            let absorbed = absorber.reader().row().merge.absorbed.clone();
            let standing = Standing::Absorbed(absorbed);
            Ok((standing, absorber.reader().descriptor()))
        };
        Some(confirmed.await)
    }

    /// What the node says about itself.
    pub async fn status(&self, query: StatusQuery) -> Result<NodeStatus> {
        let mut status = self.glance();
        if query.state_hash {
            for group in &mut status.groups {
                self.hash_state(group).await?;
            }
        }
        Ok(status)
    }

    /// Hashes a shard's state; `applied_index` becomes the position that was hashed.
    async fn hash_state(&self, status: &mut GroupStatus) -> Result<()> {
        let GroupId::Shard(shard) = status.group else {
            return Ok(());
        };
        let reader = self.registry.shard(shard)?.reader().clone();
        let hashed = offload(move || reader.state_hash()).await;
        let hashed = hashed.map_err(|error| Error::Internal(format!("hash {shard}: {error}")))?;
        status.state_hash = Some(hashed.hash);
        status.applied_index = hashed.position.map_or(0, |position| position.index);
        Ok(())
    }

    fn glance(&self) -> NodeStatus {
        let groups: Vec<GroupStatus> = self
            .registry
            .groups()
            .iter()
            .map(|group| self.group_status(group))
            .collect();
        NodeStatus {
            cluster: self.identity.cluster,
            member: self.member.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            uptime_s: self.started.elapsed().as_secs(),
            ready: groups.iter().all(|group| group.leader.is_some()),
            free_bytes: self.space.free_bytes(),
            groups,
            members: self.members.list(),
        }
    }

    fn group_status(&self, group: &Group) -> GroupStatus {
        let view = group.view();
        let shard = match group.id() {
            GroupId::Shard(shard) => self.registry.shard(shard).ok(),
            GroupId::Placement => None,
        };
        GroupStatus {
            group: group.id(),
            replica: group.replica(),
            role: view.role.to_string(),
            leader: view.leader.map(|leader| leader.node),
            term: view.term,
            last_index: view.last_index,
            applied_index: view.applied_index,
            purged_index: view.purged_index,
            shard: shard.map(|replica| replica.reader().row().descriptor.clone()),
            state_hash: None,
        }
    }
}

/// Somebody else is to be asked now: the node asked may stand still.
fn given_up(target: Target, write: Option<RequestId>) -> Error {
    let reason = format!("{} leads no more and has not answered", target.node);
    match write {
        Some(request) => Error::Unknown { request, reason },
        None => Error::unavailable(target.shard, reason),
    }
}
