//! Changes the replicas of the groups that are led from here, one change of a group at a time.
//!
//! `change_step.rs` decides what comes next; here it is done. A change goes on when whoever asked for it
//! has gone away, and whoever asks for the same one again waits for it. A leader that dies leaves a
//! learner that nobody promotes, or a group whose voters are half changed: the next leader sees that and
//! finishes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskResult;
use crate::error::Error;
use crate::error::Result;
use crate::node::change_step::Change;
use crate::node::change_step::Refusal;
use crate::node::change_step::Step;
use crate::node::change_step::next_step;
use crate::node::placement::PlacementClient;
use crate::node::registry::Registry;
use crate::node::replica::merging;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::raft::Seen;
use crate::shard::row::Part;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::shard;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::CreateReplica;
use crate::wire::request::Creation;
use crate::wire::request::ReplicaName;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// Changes at once, and orders that wait. Full: refused with Overloaded.
const CHANGES_MAX: usize = 64;
/// How often the groups led from here are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A group may be joint for so long before its leader finishes the change.
const JOINT_MAX: Duration = Duration::from_secs(1);
/// And have a learner for so long that nobody here is adding.
const LEARNER_MAX: Duration = Duration::from_secs(10);
/// For so long after a change the replica that it adds is not told that it will never be a member, and the
/// same change asked for again is answered with its outcome.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long a new replica may take to catch up before it is removed again.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// And how long it may be silent meanwhile: as long as it is waited for, nothing else is done with the shard.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A replica that lacks so many entries has caught up: it has the rest before the change is committed.
const LAG_MAX: u64 = 100;
/// And it must have answered so recently: it counts in the quorum from then on.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// How long a node may take to make room for a new replica.
const ROOM_MAX: Duration = Duration::from_secs(10);
/// Between two orders for it.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// How long one call to another node may take.
const CALL_MAX: Duration = Duration::from_secs(2);
/// How long a leader that shall leave waits for its successor.
const HANDOVER_MAX: Duration = Duration::from_secs(2);

/// Asks for changes. Cloning shares them.
#[derive(Clone)]
pub struct Changes {
    orders: mpsc::Sender<Order>,
    candidates: Arc<Candidates>,
}

enum Order {
    Change {
        group: GroupId,
        change: Change,
        done: Done,
    },
    Hold {
        group: GroupId,
        held: oneshot::Sender<Result<Held>>,
    },
}

type Done = oneshot::Sender<Result<ShardDescriptor>>;

/// Keeps the replicas of a group from being changed from here, until it is dropped.
pub struct Held {
    _released: oneshot::Sender<()>,
}

impl Changes {
    /// Changes the replicas of a group that is led from here; gives the shard as it is then. Asked for
    /// again, it waits for the same change, or gives its outcome once more. Cancel-safe: a dropped call
    /// goes on.
    ///
    /// # Errors
    /// `NotLeader` with the leader, also when the leader was the replica to be removed and another one
    /// leads now; `Invalid` when the change cannot be; `Unavailable` while another one is under way.
    pub async fn change(&self, group: GroupId, change: Change) -> Result<ShardDescriptor> {
        let (done, outcome) = oneshot::channel();
        self.order(Order::Change {
            group,
            change,
            done,
        })?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Keeps the replicas of a group that is led from here as they are. Changes that were asked for before have
    /// ended then, and later ones are refused. Cancel-safe.
    ///
    /// # Errors
    /// `NotLeader` with the leader; `Unavailable` while a change is under way.
    pub async fn hold(&self, group: GroupId) -> Result<Held> {
        let (held, outcome) = oneshot::channel();
        self.order(Order::Hold { group, held })?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.try_send(order).map_err(|_| overloaded())
    }

    /// Whether a change that makes this replica a member is under way here, or was less than 10 s ago.
    /// Nobody else can become a member as long as this node leads the group.
    pub fn may_become_member(&self, replica: ReplicaId) -> bool {
        self.candidates.has(replica)
    }
}

/// The replicas that are being added, and those of the last seconds.
#[derive(Default)]
struct Candidates {
    /// When the change of each ended; `None`: it has not.
    ended: Mutex<BTreeMap<ReplicaId, Option<Instant>>>,
}

impl Candidates {
    fn has(&self, replica: ReplicaId) -> bool {
        let ended = self.lock().get(&replica).copied();
        ended.is_some_and(is_recent)
    }

    /// Counts the replica as a candidate until the guard is dropped, and a while longer.
    fn expect(self: &Arc<Self>, replica: ReplicaId) -> Expected {
        let mut known = self.lock();
        known.retain(|_, ended| is_recent(*ended));
        known.insert(replica, None);
        Expected {
            candidates: Arc::clone(self),
            replica,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Option<Instant>>> {
        self.ended.lock().expect("nothing panics under this lock")
    }
}

fn is_recent(ended: Option<Instant>) -> bool {
    ended.is_none_or(|ended| ended.elapsed() < AFTERMATH)
}

/// A replica that is being added.
struct Expected {
    candidates: Arc<Candidates>,
    replica: ReplicaId,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let now = Some(Instant::now());
        self.candidates.lock().insert(self.replica, now);
    }
}

/// What has to be finished by whoever leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsettled {
    Joint,
    Learner(ReplicaId),
}

/// A change under way.
struct Running {
    change: Option<Change>,
    waiters: Vec<Done>,
}

/// What a change has come to.
struct Ended {
    group: GroupId,
    outcome: Result<Option<ShardDescriptor>>,
}

/// Makes the changes.
pub struct Changer {
    worker: Worker,
    orders: mpsc::Receiver<Order>,
    under_way: BTreeMap<GroupId, Running>,
    work: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// The last change of each group that succeeded in the last seconds.
    done: BTreeMap<GroupId, (Change, ShardDescriptor, Instant)>,
    unsettled: BTreeMap<GroupId, (Unsettled, Instant)>,
}

impl Changer {
    /// The task's state, and the handle to it.
    pub fn new(
        registry: Arc<Registry>,
        placement: PlacementClient,
        channel: Arc<dyn Channel>,
    ) -> (Changes, Changer) {
        let (orders, waiting) = mpsc::channel(CHANGES_MAX);
        let candidates = Arc::new(Candidates::default());
        let changer = Changer {
            worker: Worker {
                registry,
                placement,
                channel,
                candidates: Arc::clone(&candidates),
            },
            orders: waiting,
            under_way: BTreeMap::new(),
            work: FuturesUnordered::new(),
            done: BTreeMap::new(),
            unsettled: BTreeMap::new(),
        };
        (Changes { orders, candidates }, changer)
    }

    /// Runs until `stop`, which leaves what is under way half-way, as a crash does.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            // All of these are cancel-safe: nothing has been taken when one is dropped.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(ended) = self.work.next() => self.end(ended),
                Some(order) = self.orders.recv() => self.begin(order),
                _ = looks.tick() => self.look(),
            }
        }
    }

    fn begin(&mut self, order: Order) {
        match order {
            Order::Change {
                group,
                change,
                done,
            } => self.begin_change(group, change, done),
            Order::Hold { group, held } => {
                // Whoever has gone holds nothing.
                let _ = held.send(self.hold(group));
            }
        }
    }

    fn begin_change(&mut self, group: GroupId, asked: Change, done: Done) {
        if let Some(running) = self.under_way.get_mut(&group) {
            if running.change == Some(asked) {
                running.waiters.push(done);
            } else {
                answer(done, Err(busy(group)));
            }
            return;
        }
        let (led, current) = match self.worker.led(group) {
            Ok(led) => led,
            Err(error) => return answer(done, Err(error)),
        };
        match self.done.get(&group) {
            Some((change, shard, _)) if *change == asked && *shard == current => {
                answer(done, Ok(shard.clone()));
            }
            Some(_) | None if self.under_way.len() >= CHANGES_MAX => {
                answer(done, Err(overloaded()));
            }
            Some(_) | None => self.start_or_refuse(led, asked, done),
        }
    }

    fn hold(&mut self, group: GroupId) -> Result<Held> {
        if self.under_way.contains_key(&group) {
            return Err(busy(group));
        }
        self.worker.led(group)?;
        let (released, dropped) = oneshot::channel::<()>();
        let work = async move {
            // Nothing is ever sent.
            let _ = dropped.await;
            let outcome = Ok(None);
            Ended { group, outcome }
        };
        self.run_alone(group, None, Vec::new(), work.boxed());
        Ok(Held {
            _released: released,
        })
    }

    /// What is refused at once is not under way for a moment either: callers that ask again and again
    /// must not keep an unfinished change from being found.
    fn start_or_refuse(&mut self, group: Group, change: Change, done: Done) {
        match next_step(&group.membership(), group.replica(), change) {
            Ok(_) => self.start(group, change, vec![done]),
            Err(refusal) => answer(done, Err(refused(group.id(), refusal))),
        }
    }

    fn start(&mut self, group: Group, change: Change, waiters: Vec<Done>) {
        let (id, worker) = (group.id(), self.worker.clone());
        info!(group = %id, ?change, "change of replicas begins");
        let work = async move {
            let outcome = worker.change(&group, change).await;
            Ended {
                group: id,
                outcome: outcome.map(Some),
            }
        };
        self.run_alone(id, Some(change), waiters, work.boxed());
    }

    fn run_alone(
        &mut self,
        group: GroupId,
        change: Option<Change>,
        waiters: Vec<Done>,
        work: BoxFuture<'static, Ended>,
    ) {
        self.unsettled.remove(&group);
        self.under_way.insert(group, Running { change, waiters });
        self.work.push(work);
    }

    fn end(&mut self, Ended { group, outcome }: Ended) {
        let running = self.under_way.remove(&group);
        let running = running.expect("it was put there when the work began");
        match &outcome {
            Ok(None) => {}
            Ok(Some(_)) => info!(%group, change = ?running.change, "change of replicas done"),
            Err(error) => warn!(%group, change = ?running.change, %error, "change of replicas"),
        }
        if let (Ok(Some(shard)), Some(change)) = (&outcome, running.change) {
            self.done
                .insert(group, (change, shard.clone(), Instant::now()));
        }
        for waiter in running.waiters {
            let shard = outcome.clone().and_then(|shard| {
                shard.ok_or_else(|| Error::Internal("a change without a shard".to_string()))
            });
            answer(waiter, shard);
        }
    }

    /// Finishes what other leaders have left.
    fn look(&mut self) {
        self.done.retain(|_, (_, _, ended)| is_recent(Some(*ended)));
        for group in self.worker.registry.groups() {
            match unsettled(&group).filter(|_| !self.under_way.contains_key(&group.id())) {
                Some(found) => self.settle(group, found),
                None => drop(self.unsettled.remove(&group.id())),
            }
        }
    }

    fn settle(&mut self, group: Group, found: Unsettled) {
        let now = Instant::now();
        let known = self.unsettled.entry(group.id()).or_insert((found, now));
        if known.0 != found {
            *known = (found, now);
        }
        let age = known.1.elapsed();
        // A joint group is finished whatever else is under way.
        if found != Unsettled::Joint && self.under_way.len() >= CHANGES_MAX {
            return;
        }
        match (found, group.id()) {
            (Unsettled::Joint, id) if age >= JOINT_MAX => {
                info!(group = %id, "finishing a change of voters");
                let work = async move {
                    let outcome = group.finish_change().await.map(|()| None);
                    Ended { group: id, outcome }
                };
                self.run_alone(id, None, Vec::new(), work.boxed());
            }
            (Unsettled::Learner(replica), _) if age >= LEARNER_MAX => {
                self.start(group, Change::Promote { replica }, Vec::new());
            }
            _ => {}
        }
    }
}

fn unsettled(group: &Group) -> Option<Unsettled> {
    let leads = matches!(*group.leadership().borrow(), Leadership::Leading { .. });
    if !leads {
        return None;
    }
    if group.is_joint() && !mutant::lives(Mutant::JointLeftAlone) {
        return Some(Unsettled::Joint);
    }
    let learner = group.learner()?;
    Some(Unsettled::Learner(learner.id))
}

fn answer(done: Done, outcome: Result<ShardDescriptor>) {
    // Whoever has gone needs no answer.
    let _ = done.send(outcome);
}

fn busy(group: GroupId) -> Error {
    Error::unavailable(group, "its replicas are being changed already")
}

fn stopping() -> Error {
    Error::unavailable("the node", "it is stopping")
}

fn overloaded() -> Error {
    Error::Overloaded {
        queue: "changes of replicas".to_string(),
        retry_after: Duration::from_secs(1),
    }
}

/// Does what is decided. Cloning shares what it works on.
#[derive(Clone)]
struct Worker {
    registry: Arc<Registry>,
    placement: PlacementClient,
    channel: Arc<dyn Channel>,
    candidates: Arc<Candidates>,
}

impl Worker {
    /// A group here, whose replica leads it, and what it replicates.
    fn led(&self, id: GroupId) -> Result<(Group, ShardDescriptor)> {
        let group = self.registry.group(id)?;
        check_leads(&group)?;
        Ok((group, self.registry.descriptor(id)?))
    }

    async fn change(&self, group: &Group, asked: Change) -> Result<ShardDescriptor> {
        let mut leaving = None;
        let mut expected = None;
        let mut change = asked;
        loop {
            // Seen first: what is behind the barrier then is what stood before this membership and in this term.
            let seen = group.seen()?;
            self.check_alone(group).await?;
            let membership = &seen.membership;
            if let Change::Remove { replica } = change {
                leaving = membership.nodes.get(&replica).copied().or(leaving);
            }
            let step = next_step(membership, group.replica(), change);
            match step.map_err(|refusal| refused(group.id(), refusal))? {
                Step::Done => break,
                Step::Create { node } => {
                    let added = ReplicaId(self.placement.take_ids(1).await?);
                    expected = Some(self.candidates.expect(added));
                    self.add(group, &seen, shard::Replica { id: added, node })
                        .await?;
                    change = Change::Promote { replica: added };
                }
                Step::Promote { learner, voters } => {
                    catch_up(group, &seen, learner).await?;
                    group.set_voters(&seen, voters).await?;
                    change = Change::Promote { replica: learner };
                }
                Step::SetVoters(voters) => group.set_voters(&seen, voters).await?,
                Step::RemoveLearner(learner) => group.remove_learner(&seen, learner).await?,
                Step::HandOver => return Err(hand_over(group).await?),
            }
        }
        drop(expected);
        let shard = self.registry.descriptor(group.id())?;
        if let (Change::Remove { replica }, Some(node)) = (change, leaving) {
            self.tell_that_it_left(shard.id, replica, node).await;
        }
        Ok(shard)
    }

    /// Whoever merges two shards counts on their replicas as they were when it began. One that has begun is seen here
    /// behind the barrier, and none begins while this change is under way.
    async fn check_alone(&self, group: &Group) -> Result<()> {
        let GroupId::Shard(shard) = group.id() else {
            return Ok(());
        };
        let position = group.read_position().await?;
        group.wait_applied(position).await?;
        let row = self.registry.shard(shard)?.reader().row();
        match row.merge.part == Part::Alone {
            true => Ok(()),
            false => Err(merging(group)),
        }
    }

    /// Makes a replica on its node and adds it as a learner. Its id is new: one that an earlier attempt
    /// made may have ended.
    async fn add(&self, leader: &Group, seen: &Seen, added: shard::Replica) -> Result<()> {
        let create = CreateReplica {
            descriptor: self.registry.descriptor(leader.id())?,
            replica: added.id,
        };
        let made = timeout(ROOM_MAX, self.create(added.node, create)).await;
        made.unwrap_or_else(|_| {
            let reason = "another replica there still holds keys of the shard";
            Err(Error::unavailable(added.node, reason))
        })?;
        leader.add_learner(seen, added).await
    }

    async fn create(&self, node: NodeId, create: CreateReplica) -> Result<()> {
        loop {
            let request = Request::CreateReplica(create.clone());
            match self.call(node, request).await? {
                Response::CreateReplica(Creation::Open) => return Ok(()),
                Response::CreateReplica(Creation::NotYet) => sleep(ROOM_PAUSE).await,
                other => {
                    let what = format!("{node} answered a new replica with {other:?}");
                    return Err(Error::Internal(what));
                }
            }
        }
    }

    /// A hint: the replica may not have heard of its end, and asks when nobody tells it.
    async fn tell_that_it_left(&self, shard: ShardId, replica: ReplicaId, node: NodeId) {
        let name = ReplicaName { shard, replica };
        if let Err(error) = self.call(node, Request::ReplicaLeft(name)).await {
            info!(%node, %replica, %error, "not told that it has left; it will ask");
        }
    }

    async fn call(&self, node: NodeId, request: Request) -> Result<Response> {
        let call = Call {
            request,
            deadline: CALL_MAX,
            forwarded: true,
            cluster: None,
        };
        self.channel.node(node).call(call).await
    }
}

fn check_leads(group: &Group) -> Result<()> {
    let leadership = *group.leadership().borrow();
    match leadership {
        Leadership::Leading { .. } => Ok(()),
        Leadership::Following { leader } => Err(not_leader(group, leader)),
        Leadership::Failed => Err(group.failed()),
    }
}

fn not_leader(group: &Group, leader: Option<shard::Replica>) -> Error {
    Error::NotLeader {
        group: group.id(),
        leader: leader.map(|leader| leader.node),
    }
}

/// Before it votes it must have what the others have, or it would be missing from every quorum. One that
/// does not get there is given up.
async fn catch_up(group: &Group, seen: &Seen, learner: ReplicaId) -> Result<()> {
    let caught_up = group.caught_up(learner, LAG_MAX, ANSWERED_WITHIN);
    let why = tokio::select! {
        caught_up = timeout(CATCH_UP_MAX, caught_up) => match caught_up {
            Ok(caught_up) => return caught_up,
            Err(_) => "did not catch up",
        },
        () = group.silent(learner, SILENCE_MAX) => "did not answer",
    };
    group.remove_learner(seen, learner).await?;
    let reason = format!("{learner} {why} and was removed again");
    Err(Error::unavailable(group.id(), reason))
}

/// Another replica shall lead, and then remove this one; gives the error that names it.
async fn hand_over(group: &Group) -> Result<Error> {
    group.transfer_leader(None).await?;
    let mut leadership = group.leadership();
    let follows = |now: &Leadership| matches!(now, Leadership::Following { leader: Some(_) });
    let handed = timeout(HANDOVER_MAX, leadership.wait_for(follows)).await;
    match handed.map(|now| now.map(|now| *now)) {
        Ok(Ok(Leadership::Following { leader })) => Ok(not_leader(group, leader)),
        Ok(_) | Err(_) => Err(Error::unavailable(
            group.id(),
            "its leader shall leave, and no other took over",
        )),
    }
}

fn refused(group: GroupId, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Joint | Refusal::Unfinished { .. } | Refusal::Removed { .. } => {
            Error::unavailable(group, refusal)
        }
        Refusal::HasReplica { .. } => Error::invalid("node", refusal.to_string()),
        Refusal::LastVoter { .. } => Error::invalid("replica", refusal.to_string()),
    }
}
