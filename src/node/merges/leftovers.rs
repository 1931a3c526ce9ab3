//! Settles the attempts to merge that nobody drives any more, at the leaders of both sides.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::env::tasks::TaskResult;
use crate::error::Error;
use crate::error::Result;
use crate::node::merges::Merges;
use crate::node::merges::barrier;
use crate::node::merges::talk::misfit;
use crate::node::merges::unfreeze;
use crate::node::replica::Replica;
use crate::raft::Leadership;
use crate::shard::row::Part;
use crate::types::ShardId;
use crate::types::shard::Attempt;
use crate::types::shard::Fate;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;

/// A leader asks what has become of an attempt for which it has frozen its shard so long ago.
const ASK_AFTER: Duration = Duration::from_millis(300);
/// Between two looks at what is left of attempts, while there is any, and while there is none.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_IDLE: Duration = Duration::from_millis(200);

impl Merges {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        let mut leftovers = Leftovers {
            merges: self,
            frozen: BTreeMap::new(),
            under_way: BTreeSet::new(),
            work: FuturesUnordered::new(),
        };
        loop {
            let pause = match leftovers.look() {
                true => LOOK_BUSY,
                false => LOOK_IDLE,
            };
            // All of these are cancel-safe: nothing has been taken when one is dropped.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((shard, outcome)) = leftovers.work.next() => leftovers.end(shard, outcome),
                () = sleep(pause) => {}
            }
        }
    }

    async fn settle_left(&self, left: &Replica, attempt: Attempt, right: ShardId) -> Result<()> {
        barrier(left.group()).await?;
        match &left.reader().row().merge.part {
            Part::Left(open) if open.attempt == attempt && !self.is_driven(attempt.left) => {
                self.settle(left, attempt, right).await.map(drop)
            }
            Part::Left(_) | Part::Right(_) | Part::Alone => Ok(()),
        }
    }

    /// Asks for the fate of the attempt that has frozen a shard which is led from here.
    async fn ask_fate(&self, right: &Replica, attempt: Attempt) -> Result<()> {
        let descriptor = right.reader().descriptor();
        // Where it is the left one is too, unless that has moved since, or become another one's.
        let near = descriptor.replicas.iter().map(|replica| replica.node);
        let nodes = near.chain((self.nodes)());
        let ask = MergeRequest::Fate {
            right: descriptor.id,
            attempt,
        };
        match self.ask_in_turn(nodes.collect(), ask).await? {
            MergeReply::Fate(Fate::Cancelled, settled) => unfreeze(right, attempt, settled).await,
            // Its replicas end when what has absorbed it is applied beside them.
            MergeReply::Fate(Fate::Absorbed | Fate::Open | Fate::Unknown, _) => Ok(()),
            other => Err(misfit(&other)),
        }
    }
}

/// Attempts that nobody drives any more, at the leaders of both sides.
struct Leftovers {
    merges: Merges,
    /// Since when this leader has seen its shard frozen.
    frozen: BTreeMap<ShardId, (Attempt, Instant)>,
    under_way: BTreeSet<ShardId>,
    work: FuturesUnordered<BoxFuture<'static, (ShardId, Result<()>)>>,
}

impl Leftovers {
    /// Whether any shard that is led from here takes part in a merge.
    fn look(&mut self) -> bool {
        let mut found = BTreeSet::new();
        for replica in self.merges.registry.shards() {
            let row = replica.reader().row();
            if row.merge.part == Part::Alone {
                continue;
            }
            let Leadership::Leading { term } = *replica.group().leadership().borrow() else {
                continue;
            };
            let shard = row.descriptor.id;
            found.insert(shard);
            match &row.merge.part {
                Part::Alone => {}
                Part::Left(open) => self.left(replica.clone(), open.attempt, open.right),
                Part::Right(frozen) => {
                    let attempt = frozen.attempt;
                    // Who froze it for the driver leads it no more, so nobody is told how the attempt ends.
                    let is_inherited = frozen.position.term != term;
                    if is_inherited || self.stands_long(shard, attempt) {
                        self.right(shard, replica.clone(), attempt);
                    }
                }
            }
        }
        self.frozen.retain(|shard, _| found.contains(shard));
        !found.is_empty()
    }

    fn left(&mut self, left: Replica, attempt: Attempt, right: ShardId) {
        if self.merges.is_driven(attempt.left) || !self.under_way.insert(attempt.left) {
            return;
        }
        let merges = self.merges.clone();
        let work = async move {
            let outcome = merges.settle_left(&left, attempt, right).await;
            (attempt.left, outcome)
        };
        self.work.push(work.boxed());
    }

    fn stands_long(&mut self, shard: ShardId, attempt: Attempt) -> bool {
        let now = Instant::now();
        let since = self.frozen.entry(shard).or_insert((attempt, now));
        if since.0 != attempt {
            *since = (attempt, now);
        }
        since.1.elapsed() >= ASK_AFTER
    }

    fn right(&mut self, shard: ShardId, right: Replica, attempt: Attempt) {
        if !self.under_way.insert(shard) {
            return;
        }
        debug!(%shard, ?attempt, "asks what has become of the merge that has frozen it");
        let merges = self.merges.clone();
        let work = async move { (shard, merges.ask_fate(&right, attempt).await) };
        self.work.push(work.boxed());
    }

    fn end(&mut self, shard: ShardId, outcome: Result<()>) {
        self.under_way.remove(&shard);
        match outcome {
            Ok(()) => {}
            Err(error @ Error::NotLeader { .. }) => debug!(%shard, %error, "merge not settled"),
            Err(error) => warn!(%shard, %error, "merge not settled yet"),
        }
    }
}
