//! Does what placement orders for the shards that are led from here, one step of a shard at a time.
//!
//! A step is ordered again with each answer to a report until placement sees it done, so what is lost or fails
//! here needs no memory: a step for a shard that is busy with one is dropped, and one for another state of the
//! shard is refused. To pass the lead on does not wait for anything else: a node that is drained gives it up within
//! seconds, though it adds a replica that takes ten minutes to catch up. The next leader goes on with that.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::TaskResult;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::change_step::Change;
use crate::node::changes::Changes;
use crate::node::merges::Merges;
use crate::node::merges::Wanted;
use crate::node::placement::PlacementClient;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::router::Router;
use crate::node::splitter;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::operator::SplitPoint;
use crate::types::operator::Step;
use crate::types::report::ShardStep;
use crate::types::shard::ShardDescriptor;

/// Orders that wait. Full: they are dropped, and come again.
const ORDERS_WAITING_MAX: usize = 256;

/// Between two attempts of one step.
const STEP_PAUSE: Duration = Duration::from_secs(1);

/// Takes steps. Cloning shares it.
#[derive(Clone)]
pub struct Steps {
    orders: mpsc::Sender<ShardStep>,
    done: Arc<Notify>,
}

impl Steps {
    /// Takes steps to do. What there is no room for is dropped.
    pub fn order(&self, steps: Vec<ShardStep>) {
        for step in steps {
            if self.orders.try_send(step).is_err() {
                return;
            }
        }
    }

    /// Returns when a step was done since the last call. Cancel-safe.
    pub async fn ended(&self) {
        self.done.notified().await;
    }
}

/// Does the steps.
pub struct Stepper {
    worker: Worker,
    orders: mpsc::Receiver<ShardStep>,
    done: Arc<Notify>,
    under_way: UnderWay,
    /// The last step of each shard, and when it ended.
    last: BTreeMap<ShardId, (Step, Instant)>,
    work: FuturesUnordered<BoxFuture<'static, (ShardStep, Result<()>)>>,
}

/// What steps are done with. Cloning shares it.
#[derive(Clone)]
pub struct Worker {
    /// This node.
    pub me: NodeId,
    /// The replicas here.
    pub registry: Arc<Registry>,
    /// Where ids come from.
    pub placement: PlacementClient,
    /// Who changes replicas.
    pub changes: Changes,
    /// Who makes one shard of two.
    pub merges: Merges,
    /// Who learns of new shards.
    pub router: Arc<Router>,
}

impl Stepper {
    /// The task's state, and the handle to it.
    pub fn new(worker: Worker) -> (Steps, Stepper) {
        let (orders, waiting) = mpsc::channel(ORDERS_WAITING_MAX);
        let done = Arc::new(Notify::new());
        let stepper = Stepper {
            worker,
            orders: waiting,
            done: Arc::clone(&done),
            under_way: UnderWay::default(),
            last: BTreeMap::new(),
            work: FuturesUnordered::new(),
        };
        (Steps { orders, done }, stepper)
    }

    /// Runs until `stop`, which leaves what is under way half-way, as a crash does.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        loop {
            // All of these are cancel-safe: nothing has been taken when one is dropped.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((step, outcome)) = self.work.next() => self.end(&step, &outcome),
                Some(step) = self.orders.recv() => self.begin(step),
            }
        }
    }

    /// One that has ended a moment ago is ordered again because placement has not heard of it, or since it
    /// failed and would fail again.
    fn begin(&mut self, step: ShardStep) {
        self.last
            .retain(|_, (_, ended)| ended.elapsed() < STEP_PAUSE);
        let last = self.last.get(&step.shard);
        let is_repeat = last.is_some_and(|(last, _)| *last == step.step);
        if is_repeat || !self.under_way.begin(&step) {
            return;
        }
        let worker = self.worker.clone();
        let work = async move {
            let outcome = worker.perform(&step).await;
            (step, outcome)
        };
        self.work.push(work.boxed());
    }

    fn end(&mut self, step: &ShardStep, outcome: &Result<()>) {
        self.under_way.end(step);
        let ended = (step.step.clone(), Instant::now());
        self.last.insert(step.shard, ended);
        let (shard, what) = (step.shard, &step.step);
        match outcome {
            Ok(()) => {
                debug!(%shard, step = %what, "step done");
                self.done.notify_one();
            }
            // Placement knows an earlier state, and hears of this one now.
            Err(Error::StaleEpoch { .. } | Error::NotLeader { .. }) => {
                debug!(%shard, step = %what, "step not done: the shard has changed");
            }
            Err(error) => warn!(%shard, step = %what, %error, "step not done"),
        }
    }
}

/// Which shards are busy with what: with passing the lead on or not, with each once.
#[derive(Default)]
struct UnderWay(BTreeSet<(ShardId, bool)>);

impl UnderWay {
    fn key(step: &ShardStep) -> (ShardId, bool) {
        (step.shard, matches!(step.step, Step::TransferLeader(_)))
    }

    /// False when the shard is busy with it.
    fn begin(&mut self, step: &ShardStep) -> bool {
        self.0.insert(UnderWay::key(step))
    }

    fn end(&mut self, step: &ShardStep) {
        self.0.remove(&UnderWay::key(step));
    }
}

/// A step is only right for the state that it was planned for.
fn check_epoch(current: ShardDescriptor, order: &ShardStep) -> Result<()> {
    match current.epoch == order.epoch || mutant::lives(Mutant::StepOfAnotherEpoch) {
        true => Ok(()),
        false => Err(Error::StaleEpoch {
            group: order.shard.group(),
            current: vec![current],
        }),
    }
}

impl Worker {
    async fn perform(&self, order: &ShardStep) -> Result<()> {
        let id = order.shard.group();
        check_epoch(self.registry.descriptor(id)?, order)?;
        match &order.step {
            Step::AddReplica(node) => self.change(id, Change::Add { node: *node }).await,
            Step::RemoveReplica(leaving) => {
                let change = Change::Remove {
                    replica: leaving.id,
                };
                self.change(id, change).await
            }
            Step::TransferLeader(node) => {
                self.registry.group(id)?.transfer_leader(Some(*node)).await
            }
            Step::Split(at) => self.split(&self.registry.shard(order.shard)?, at).await,
            Step::Merge { right, epoch } => {
                let wanted = Wanted {
                    left: order.shard,
                    left_epoch: order.epoch,
                    right: *right,
                    right_epoch: *epoch,
                };
                self.merge(wanted).await
            }
        }
    }

    async fn change(&self, id: GroupId, change: Change) -> Result<()> {
        self.changes.change(id, change).await.map(drop)
    }

    async fn split(&self, replica: &Replica, at: &SplitPoint) -> Result<()> {
        let at = match at {
            SplitPoint::Key(key) => key.clone(),
            SplitPoint::Middle => {
                let (reader, group) = (replica.reader().clone(), replica.group().id());
                let middle = offload(move || reader.middle()).await;
                let middle =
                    middle.map_err(|error| Error::Internal(format!("measure {group}: {error}")))?;
                let none = || Error::unavailable(group, "it has fewer than two keys");
                middle.ok_or_else(none)?.0
            }
        };
        let (_, right) = splitter::split(replica, &self.placement, at).await?;
        self.router.learn(right, Some(self.me));
        Ok(())
    }

    async fn merge(&self, wanted: Wanted) -> Result<()> {
        let merged = self.merges.merge(wanted).await?;
        self.router.learn(merged, Some(self.me));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;
    use crate::types::shard::Epoch;

    #[test]
    fn the_lead_is_passed_on_beside_anything_else_and_all_else_one_after_the_other() {
        let step = |shard, step| ShardStep {
            shard: ShardId(shard),
            epoch: Epoch::default(),
            step,
        };
        let add = |shard| step(shard, Step::AddReplica(NodeId(4)));
        let pass = |to| step(5, Step::TransferLeader(NodeId(to)));
        let mut under_way = UnderWay::default();
        assert!(under_way.begin(&add(5)) && under_way.begin(&add(6)));
        assert!(!under_way.begin(&step(5, Step::Split(SplitPoint::Middle))));
        assert!(under_way.begin(&pass(2)) && !under_way.begin(&pass(3)));
        under_way.end(&pass(2));
        assert!(under_way.begin(&pass(3)) && !under_way.begin(&add(5)));
        under_way.end(&add(5));
        assert!(under_way.begin(&step(5, Step::Split(SplitPoint::Middle))));
    }

    #[test]
    fn a_step_for_an_earlier_or_later_state_is_refused_with_the_shard() {
        let epoch = |conf, bounds| Epoch { conf, bounds };
        let current = ShardDescriptor {
            id: ShardId(5),
            range: KeyRange::ALL,
            epoch: epoch(3, 4),
            replicas: Vec::new(),
        };
        let check = |epoch| {
            let order = ShardStep {
                shard: ShardId(5),
                epoch,
                step: Step::Split(SplitPoint::Middle),
            };
            check_epoch(current.clone(), &order)
        };
        assert_eq!(check(epoch(3, 4)), Ok(()));
        let stale = Err(Error::StaleEpoch {
            group: GroupId::Shard(ShardId(5)),
            current: vec![current.clone()],
        });
        for other in [epoch(2, 4), epoch(3, 3), epoch(4, 4), epoch(3, 5)] {
            assert_eq!(check(other), stale);
        }
    }
}
