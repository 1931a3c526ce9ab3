//! Compares the replicas of the shards that are led from here, and has the odd one rebuilt.
//!
//! **What is compared.** Every few seconds the rolling hash of what each replica has applied, at a position
//! that all remember: it costs a call for each follower and finds a replica that has done something else,
//! whenever that was. And slowly, in a round through everything each hour, what each has stored, a portion of
//! keys at a time: it finds what has rotted at rest, also where it cannot be read at all. Both go on for as
//! long as the node runs; a start goes on where the last portion was noted.
//!
//! **What becomes of the odd one** (`verdict.rs` says which it is). It stops serving at once and says so to
//! its node's log and metrics. Then its own node has it replaced, step by step, and tries each until it is
//! done: leadership goes to another, the group removes it, a new replica comes to the same node and is
//! filled by the others. It is removed only when that can be expected to go well: until then it votes and
//! holds the log. What stands in the way is said once, and tried again at growing pauses (`retries.rs`). The mark in the engine says that this is under way, so that no crash ends it.
//!
//! **The invariant.** Replicas at one position have one hash (`shard/chain.rs`); a quarantined replica
//! answers no read, takes no write, stands for no election, fills no other one, and is never put back into
//! service.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::env::tasks::TaskResult;
use crate::env::tasks::background;
use crate::error::Error;
use crate::error::Result;
use crate::machine::MachineError;
use crate::node::checks::Checks;
use crate::node::members::Nodes;
use crate::node::registry::Registry;
use crate::node::replica::Replica;
use crate::node::retries::Retries;
use crate::node::verdict;
use crate::node::verdict::Verdict;
use crate::raft::Leadership;
use crate::shard::Quarantined;
use crate::shard::ReadError;
use crate::telemetry::metrics;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::shard;
use crate::types::shard::Link;
use crate::wire::request::AddReplica;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Check;
use crate::wire::request::Checked;
use crate::wire::request::Portion;
use crate::wire::request::ReplicaName;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// Between two looks at what is to be rebuilt.
const REBUILD_INTERVAL: Duration = Duration::from_secs(1);
/// How long one replica may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one step of a rebuilding may take: a replica is filled in it.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Bytes of newest versions in one portion that is compared.
const PORTION_BYTES: u64 = 512 * 1024;
/// A follower may be so much behind the leader when it is asked: so many times, with a pause.
const PORTION_ATTEMPTS: usize = 5;
const PORTION_PAUSE: Duration = Duration::from_millis(200);
/// The place is noted as often: an engine that nobody writes to is left in peace.
const NOTE_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks of a node that leads nothing.
const IDLE_PAUSE: Duration = Duration::from_secs(10);

/// What a node may choose about comparing.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Between two comparisons of what replicas have applied.
    pub interval: Duration,
    /// Bytes of stored state that a node reads in a second, at most, to compare them: of its own and, for those that
    /// lead elsewhere, of as many as others read for it. 0 compares none.
    pub scrub_bytes_per_s: u64,
    /// From the beginning of one round through all that is led from here to that of the next, at least.
    pub scrub_interval: Duration,
}

/// What was found of one portion.
struct Compared {
    portion: Portion,
    bytes: u64,
    read: verdict::Read<u64>,
    verdict: Verdict<u64>,
}

fn is_fine(found: &Result<Option<Compared>, ReadError>) -> bool {
    match found {
        Ok(Some(Compared { read, verdict, .. })) => {
            *verdict == Verdict::Equal && read.odd.is_empty() && !read.is_lost
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Compares. Cloning shares it.
#[derive(Clone)]
pub struct SelfCheck {
    /// This node.
    pub me: NodeId,
    /// Its settings.
    pub options: Options,
    /// The replicas here.
    pub registry: Arc<Registry>,
    /// What is done with them.
    pub checks: Checks,
    /// The way to the others.
    pub channel: Arc<dyn Channel>,
    /// Who they are.
    pub nodes: Nodes,
    /// Whether this node's disk has room for another replica.
    pub has_room: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl SelfCheck {
    /// Compares what was applied, until `stop`.
    pub async fn compare(self, stop: CancellationToken) -> TaskResult {
        let mut ticks = interval(self.options.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            for replica in self.led() {
                let compared = self.compare_chains(&replica);
                if stop.run_until_cancelled(compared).await.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The replicas here that lead and are whole.
    fn led(&self) -> Vec<Replica> {
        let mut replicas = self.registry.shards();
        replicas.retain(|replica| {
            let leads = matches!(
                *replica.group().leadership().borrow(),
                Leadership::Leading { .. }
            );
            leads && replica.is_filled() && !replica.reader().is_quarantined()
        });
        replicas
    }

    async fn compare_chains(&self, replica: &Replica) {
        let others = self.others(replica);
        let asked = others.iter().map(|other| async {
            match self.ask(replica, *other, Check::Chains).await {
                Ok(Checked::Chains(links)) => Some((other.id, links)),
                Ok(Checked::Portion(_) | Checked::Unreadable | Checked::Quarantined) | Err(_) => {
                    None
                }
            }
        });
        let answers = join_all(asked).await;
        // Taken last: it has all the places that the others have passed by now.
        let own: Vec<Link> = replica.reader().chains();
        let mut reports: Vec<_> = answers.into_iter().flatten().collect();
        reports.push((replica.group().replica(), own));
        let said = verdict::at_one_place(&reports);
        metrics::replicas_compared();
        self.follow(
            replica,
            "what was applied",
            verdict::compare(&said, others.len() + 1),
        )
        .await;
    }

    fn others(&self, replica: &Replica) -> Vec<shard::Replica> {
        let own = replica.group().replica();
        let mut replicas = replica.reader().descriptor().replicas;
        replicas.retain(|other| other.id != own);
        replicas
    }

    /// Says what was found, and takes odd replicas out of service.
    async fn follow<T: std::fmt::Debug>(&self, replica: &Replica, what: &str, verdict: Verdict<T>) {
        let shard = replica.reader().row().descriptor.id;
        let (expected, odd) = match verdict {
            Verdict::Equal => return,
            Verdict::Undecided(said) => {
                metrics::replicas_differ();
                error!(
                    %shard, what, ?said,
                    "replicas differ and no majority says which is right: compare their data, and remove the wrong one"
                );
                return;
            }
            Verdict::Odd { expected, odd } => (expected, odd),
        };
        for (id, found) in odd {
            metrics::replicas_differ();
            error!(%shard, replica = %id, what, ?found, ?expected, "a replica differs from the others");
            if let Err(error) = self.quarantine(replica, id).await {
                warn!(%shard, replica = %id, %error, "it could not be told yet, and is at the next look");
            }
        }
    }

    async fn quarantine(&self, leader: &Replica, odd: ReplicaId) -> Result<()> {
        if odd == leader.group().replica() {
            return self.checks.quarantine(leader).await;
        }
        let others = self.others(leader);
        let odd = others.into_iter().find(|other| other.id == odd);
        match odd {
            Some(odd) => self.ask(leader, odd, Check::Quarantine).await.map(drop),
            None => Ok(()),
        }
    }

    async fn ask(&self, of: &Replica, who: shard::Replica, check: Check) -> Result<Checked> {
        let name = ReplicaName {
            shard: of.reader().row().descriptor.id,
            replica: who.id,
        };
        let request = Request::CheckReplica(name, check);
        match self.call(who.node, request, true, ANSWER_MAX).await? {
            Response::CheckReplica(checked) => Ok(checked),
            other => Err(Error::Internal(format!(
                "asked about a replica, got {other:?}"
            ))),
        }
    }

    async fn call(
        &self,
        node: NodeId,
        request: Request,
        forwarded: bool,
        deadline: Duration,
    ) -> Result<Response> {
        let call = Call {
            request,
            deadline,
            forwarded,
            cluster: None,
        };
        self.channel.node(node).call(call).await
    }

    /// Compares what is stored, until `stop`.
    pub async fn scrub(self, stop: CancellationToken) -> TaskResult {
        let rate = self.options.scrub_bytes_per_s;
        if rate == 0 {
            return Ok(());
        }
        let mut noted = (self.checks.scrubbed_up_to().await?, Instant::now());
        let (mut next, mut began) = (noted.0.clone(), Instant::now());
        loop {
            let led = self.led();
            let idle = led.is_empty();
            let went_on = stop.run_until_cancelled(self.scrub_on(led, next, rate));
            let Some(reached) = went_on.await else {
                return Ok(());
            };
            let pause = match &reached {
                Some(_) => Duration::ZERO,
                None if idle => IDLE_PAUSE,
                None => self.options.scrub_interval.saturating_sub(began.elapsed()),
            };
            if reached.is_none() {
                began = Instant::now() + pause;
            }
            next = reached.unwrap_or_default();
            if next != noted.0 && noted.1.elapsed() >= NOTE_INTERVAL {
                self.checks.note_scrubbed(next.clone()).await?;
                noted = (next.clone(), Instant::now());
            }
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Compares the next portion from a key on, of what is led from here; gives where to go on, `None` at the end.
    async fn scrub_on(&self, led: Vec<Replica>, from: Key, rate: u64) -> Option<Key> {
        let behind = |replica: &Replica| {
            let range = &replica.reader().row().descriptor.range;
            range.end.as_ref().is_none_or(|end| *end > from)
        };
        let replica = led.into_iter().find(behind)?;
        let descriptor = replica.reader().descriptor();
        let end = descriptor.range.end;
        let began = Instant::now();
        let (bytes, reached) = match self.scrub_portion(&replica, &from).await {
            Ok(Some((portion, bytes))) => (bytes, portion.range.end),
            Ok(None) => (0, end),
            Err(error) => {
                // Here ends what is compared of this shard in this round.
                warn!(%error, "a portion was not compared, and is in the next round");
                (PORTION_BYTES, end)
            }
        };
        // Every replica reads as much.
        let read = bytes * descriptor.replicas.len() as u64;
        let due = Duration::from_secs_f64(read as f64 / rate as f64);
        sleep(due.saturating_sub(began.elapsed())).await;
        reached
    }

    async fn scrub_portion(&self, replica: &Replica, from: &Key) -> Result<Option<(Portion, u64)>> {
        let mut found = self.compare_portion(replica, from).await;
        // A replica is given up only for what is found twice.
        if !is_fine(&found) {
            found = self.compare_portion(replica, from).await;
        }
        match found {
            Ok(None) => Ok(None),
            Ok(Some(compared)) => {
                let Compared {
                    portion,
                    bytes,
                    read,
                    verdict,
                } = compared;
                self.follow_unread(replica, read).await;
                self.follow(replica, "what is stored", verdict).await;
                Ok(Some((portion, bytes)))
            }
            Err(ReadError::Machine(error)) => {
                self.unread_here(replica, &error).await;
                Err(Error::Internal(error.0))
            }
            Err(error) => Err(error.into_error(replica.group().id())),
        }
    }

    /// Takes those out of service that could not read.
    async fn follow_unread(&self, replica: &Replica, read: verdict::Read<u64>) {
        let shard = replica.reader().row().descriptor.id;
        if read.is_lost {
            metrics::replicas_differ();
            error!(%shard, "no replica that answers can read what is stored, and each serves what it can: restore from a backup");
        }
        for id in read.odd {
            metrics::replicas_differ();
            error!(%shard, replica = %id, "a replica cannot read what it has stored, and another one can");
            if let Err(error) = self.quarantine(replica, id).await {
                warn!(%shard, replica = %id, %error, "it could not be told yet, and is at the next look");
            }
        }
    }

    /// This replica cannot tell where the portion ends, so nobody can be asked about the same; another one
    /// must be whole.
    async fn unread_here(&self, replica: &Replica, error: &MachineError) {
        let own = replica.group().replica();
        error!(replica = %own, %error, "what is stored here cannot be read");
        let whole = self.standing(replica).await.1;
        let mut found = vec![(own, None)];
        found.extend(whole.into_iter().map(|id| (id, Some(0))));
        self.follow_unread(replica, verdict::read(&found)).await;
    }

    /// The other replicas that answer, and of these the ones in service.
    async fn standing(&self, of: &Replica) -> (usize, Vec<ReplicaId>) {
        let others = self.others(of);
        let asked = others.iter().map(|other| async {
            match self.ask(of, *other, Check::Chains).await {
                Ok(Checked::Chains(_)) => Some(Some(other.id)),
                Ok(Checked::Portion(_) | Checked::Unreadable | Checked::Quarantined) => Some(None),
                Err(_) => None,
            }
        });
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        (answers.len(), answers.into_iter().flatten().collect())
    }

    async fn compare_portion(
        &self,
        replica: &Replica,
        from: &Key,
    ) -> Result<Option<Compared>, ReadError> {
        let (reader, from) = (replica.reader().clone(), from.clone());
        let read = background(move || {
            let Some(portion) = reader.portion_from(&from, PORTION_BYTES)? else {
                return Ok(None);
            };
            let hashed = match reader.hash_portion(&portion) {
                Ok(hashed) => Some(hashed),
                Err(ReadError::Machine(error)) => {
                    error!(%error, "what is stored here cannot be read");
                    None
                }
                Err(error) => return Err(error),
            };
            Ok(Some((portion, hashed)))
        });
        let Some((portion, hashed)) = read.await? else {
            return Ok(None);
        };
        let others = self.others(replica);
        let asked = others.iter().map(|other| async {
            let hash = self.hash_of(replica, *other, &portion).await?;
            Some((other.id, hash))
        });
        let answers = join_all(asked).await;
        let mut found: Vec<(ReplicaId, Option<u64>)> = answers.into_iter().flatten().collect();
        found.push((replica.group().replica(), hashed.map(|hashed| hashed.hash)));
        let bytes = hashed.map_or(PORTION_BYTES, |hashed| hashed.bytes);
        metrics::scrubbed(bytes);
        let read = verdict::read(&found);
        let verdict = verdict::compare(&read.said, others.len() + 1);
        Ok(Some(Compared {
            portion,
            bytes,
            read,
            verdict,
        }))
    }

    /// One that has not come so far is asked again; one that cannot answer is left out. `Some(None)`: it
    /// cannot read.
    async fn hash_of(
        &self,
        of: &Replica,
        who: shard::Replica,
        portion: &Portion,
    ) -> Option<Option<u64>> {
        for _ in 0..PORTION_ATTEMPTS {
            match self.ask(of, who, Check::Portion(portion.clone())).await {
                Ok(Checked::Portion(hash)) => return Some(Some(hash)),
                Ok(Checked::Unreadable) => return Some(None),
                Ok(Checked::Chains(_) | Checked::Quarantined) => return None,
                Err(_) => sleep(PORTION_PAUSE).await,
            }
        }
        None
    }

    /// Has quarantined replicas of this node replaced, until `stop`.
    pub async fn rebuild(self, stop: CancellationToken) -> TaskResult {
        let mut ticks = interval(REBUILD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (began, mut retries) = (Instant::now(), Retries::default());
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let quarantined = self.checks.quarantined().await?;
            metrics::replicas_quarantined(quarantined.len());
            let ids: Vec<ReplicaId> = quarantined.iter().map(|one| one.replica).collect();
            retries.keep(&ids);
            for one in quarantined {
                let now_ms = || began.elapsed().as_millis() as u64;
                if !retries.is_due(one.replica, now_ms()) {
                    continue;
                }
                let stepped = stop.run_until_cancelled(self.rebuild_step(one)).await;
                let Some(stepped) = stepped else {
                    return Ok(());
                };
                let Err(error) = stepped else {
                    retries.went_well(one.replica);
                    continue;
                };
                let (shard, replica) = (one.shard, one.replica);
                if retries.failed(replica, now_ms(), &error.to_string()) {
                    warn!(%shard, %replica, %error, "a step of its rebuilding has failed, and is tried again at growing pauses");
                }
            }
            metrics::rebuilds_stuck(retries.stuck());
        }
        Ok(())
    }

    async fn rebuild_step(&self, quarantined: Quarantined) -> Result<()> {
        let Quarantined { replica: id, shard } = quarantined;
        match self.registry.shard(shard) {
            Ok(here) if here.group().replica() == id => self.leave(&here, quarantined).await,
            Ok(here) if here.is_filled() => {
                info!(%shard, old = %id, new = %here.group().replica(), "the replica was rebuilt");
                self.forget(id).await
            }
            // It is being filled.
            Ok(_) => Ok(()),
            Err(_) => match self.registry.absorbers(shard) {
                absorbers if absorbers.is_empty() => {
                    let node = self.me;
                    let request = Request::AddReplica(AddReplica { shard, node });
                    self.ask_anybody(request).await
                }
                absorbers => self.pass_on(id, absorbers).await,
            },
        }
    }

    /// A replica was marked while it was absorbed: what is wrong with it is wrong with those that have its keys.
    async fn pass_on(&self, marked: ReplicaId, absorbers: Vec<Replica>) -> Result<()> {
        for absorber in absorbers {
            self.checks.quarantine(&absorber).await?;
        }
        self.forget(marked).await
    }

    async fn forget(&self, marked: ReplicaId) -> Result<()> {
        let forgotten = self.checks.forget(marked).await;
        forgotten.map_err(|error| Error::Internal(error.0))
    }

    /// Gives up the leadership, then the membership; what has left is destroyed by whoever finds that.
    async fn leave(&self, here: &Replica, quarantined: Quarantined) -> Result<()> {
        // One that has absorbed what is wrong was marked by its machine.
        here.group().hold_back();
        if matches!(
            *here.group().leadership().borrow(),
            Leadership::Leading { .. }
        ) {
            return here.group().transfer_leader(None).await;
        }
        let (answering, whole) = self.standing(here).await;
        let (others, has_room) = (self.others(here).len(), (self.has_room)());
        if let Some(why) = verdict::hindrance(has_room, others, answering, whole.len()) {
            return Err(Error::unavailable(here.group().id(), why));
        }
        self.checks.flush_marks().await;
        let Quarantined { replica, shard } = quarantined;
        let request = Request::RemoveReplica(ReplicaName { shard, replica });
        self.ask_anybody(request).await
    }

    /// Any node finds the shard's leader.
    async fn ask_anybody(&self, request: Request) -> Result<()> {
        let mut refusal = Error::unavailable("the other nodes", "none is known");
        for node in (self.nodes)() {
            if node == self.me {
                continue;
            }
            match self.call(node, request.clone(), false, STEP_MAX).await {
                Ok(_) => return Ok(()),
                // The leader's word: the others would ask it again.
                Err(error @ Error::Invalid { .. }) => return Err(error),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}
