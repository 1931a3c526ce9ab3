//! A mix of clients that keeps a cluster busy and notes what each asked and was told.
//!
//! The same code runs over gRPC and in a simulation: it reaches nodes through the [`Channel`] it is
//! given, reads time from tokio, which may be paused, and follows its seed in everything that it decides
//! itself. Each client sends one request at a time. A write without a final answer is sent again under
//! its request id, to other nodes, for as long as the client's patience lasts; then it stays unknown, and
//! its client goes on.
//!
//! Kinds of keys ([`layout`]): registers (get, put, delete, compare and set), counters, append lists and
//! sets (read, then compare and set, so that an unknown outcome never runs twice), clusters of keys that
//! are written together, clusters that are scanned and removed by range. [`final_reads`] shows what is
//! left when all is well again, [`lost`] counts what must be there and is not.

pub mod layout;
pub mod choice;
pub mod lost;
mod client;

#[cfg(test)]
pub(crate) mod model;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::RequestIds;
use crate::client::Sender;
use crate::client::sender;
use crate::env::clock::Clock;
use crate::env::rng::Seeded;
use crate::error::Result;
use crate::testkit::mix::choice::Choice;
use crate::testkit::mix::choice::Ratios;
use crate::testkit::mix::client::Client;
use crate::testkit::mix::layout::Counts;
use crate::testkit::mix::layout::Layout;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::request::ReadKind;
use crate::types::request::WriteKind;
use crate::wire::request::Channel;
use crate::wire::request::Get;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// Whom the clients ask, and by which clocks.
#[derive(Clone)]
pub struct Target {
    /// Finds nodes.
    pub channel: Arc<dyn Channel>,
    /// Where the nodes serve clients, `host:port`; at least one.
    pub addresses: Vec<String>,
    /// Wall time, for the identities of writes.
    pub wall: Clock,
    /// The run's beginning: every [`Moment`] counts from here.
    pub started: Instant,
}

impl Target {
    /// Now, counted from the run's beginning.
    pub fn moment(&self) -> Moment {
        let passed = self.started.elapsed().as_micros();
        Moment(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    fn sender(&self, first: usize, seed: u64, attempt: Duration) -> Result<Sender> {
        let wall = self.wall.clone();
        let chance = Mutex::new(Seeded::new(seed));
        let ids = RequestIds::new(
            move || wall.wall_ms(),
            move || {
                let mut bytes = [0; 10];
                let mut chance = chance.lock().unwrap_or_else(PoisonError::into_inner);
                chance.fill(&mut bytes);
                bytes
            },
        );
        let options = sender::Options {
            attempt,
            first,
            ..sender::Options::default()
        };
        Sender::new(
            Arc::clone(&self.channel),
            self.addresses.clone(),
            Arc::new(ids),
            options,
        )
    }
}

/// What is asked, and how patiently.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clients at once.
    pub clients: u32,
    /// Everything that is chosen follows from it.
    pub seed: u64,
    /// Every key begins with it. Nothing else may: what is there at the beginning is taken for nothing.
    pub prefix: String,
    /// How many keys of each kind.
    pub counts: Counts,
    /// How often what is done.
    pub ratios: Ratios,
    /// Bytes of a value, at least; a value also names its write.
    pub value_bytes: usize,
    /// For one attempt at one node.
    pub attempt: Duration,
    /// For one request with all its attempts.
    pub patience: Duration,
    /// Between two requests of a client, on average; at least a millisecond.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            clients: 8,
            seed: 1,
            prefix: String::new(),
            counts: Counts::default(),
            ratios: Ratios::default(),
            value_bytes: 32,
            attempt: Duration::from_secs(1),
            patience: Duration::from_secs(4),
            pause: Duration::from_millis(4),
        }
    }
}

/// How far the clients have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Requests with an answer.
    pub answered: u64,
    /// Writes that were acknowledged among these.
    pub acknowledged: u64,
    /// Requests without one, or refused.
    pub failed: u64,
}

/// Clients at work. Dropping it ends them without evidence.
#[derive(Debug)]
pub struct Mix {
    stop: watch::Sender<bool>,
    progress: watch::Sender<Progress>,
    clients: JoinSet<Vec<Observed>>,
}

impl Mix {
    /// Starts the clients. An error when the target has no address.
    pub fn start(target: &Target, options: &Options) -> Result<Mix> {
        let (stop, stopped) = watch::channel(false);
        let (progress, _) = watch::channel(Progress::default());
        let mut clients = JoinSet::new();
        for number in 0..options.clients {
            let seed = seed_of(options.seed, number);
            let layout = Layout::new(&options.prefix);
            let client = Client::new(
                number,
                Arc::new(target.sender(number as usize, !seed, options.attempt)?),
                target.clone(),
                options.clone(),
                Choice::new(seed, layout, options.counts, options.ratios),
                stopped.clone(),
                progress.clone(),
            );
            clients.spawn(client.run());
        }
        Ok(Mix {
            stop,
            progress,
            clients,
        })
    }

    /// How far the clients have come.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until `count` further writes are acknowledged; false when `limit` passes before.
    /// Cancel-safe.
    pub async fn wait_acknowledged(&self, count: u64, limit: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let goal = progress.borrow().acknowledged + count;
        let reached = progress.wait_for(|progress| progress.acknowledged >= goal);
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    /// Stops the clients at once and gives what they have seen, in the order in which it began. A write
    /// that is under way stays unknown.
    pub async fn stop(mut self) -> Vec<Observed> {
        self.stop.send_replace(true);
        let mut history = Vec::new();
        while let Some(seen) = self.clients.join_next().await {
            history.extend(seen.expect("clients do not panic"));
        }
        history.sort_by_key(|observed| (observed.began, observed.client));
        history
    }
}

/// Reads every key that was asked for, linearizably, one after the other, as the client numbered
/// `client`: what is left when all is well again. A key that cannot be read before `limit` is noted as
/// unknown, and those behind it too.
pub async fn final_reads(
    target: &Target,
    history: &[Observed],
    client: u32,
    limit: Duration,
) -> Result<Vec<Observed>> {
    let end = Instant::now() + limit;
    let sender = target.sender(0, u64::from(client), FINAL_ATTEMPT)?;
    let mut reads = Vec::new();
    for key in keys_of(history) {
        let read = ReadKind::Linearizable;
        let get = Request::Get(Get {
            key: key.clone(),
            read,
        });
        let began = target.moment();
        let left = end.saturating_duration_since(Instant::now());
        let answer = match sender.send(get, Some(left)).await {
            Ok(Response::Get(found, answered)) => Answer::Found(found, answered),
            Ok(_) | Err(_) => Answer::Unknown,
        };
        reads.push(Observed {
            client,
            asked: Asked::Get { key, read },
            began,
            ended: target.moment(),
            answer,
        });
    }
    Ok(reads)
}

/// For one attempt of a final read.
const FINAL_ATTEMPT: Duration = Duration::from_secs(2);

/// Every key that somebody asked for by name, or was shown.
fn keys_of(history: &[Observed]) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for observed in history {
        match &observed.asked {
            Asked::Get { key, .. } => {
                keys.insert(key.clone());
            }
            Asked::Write(write) => match &write.kind {
                WriteKind::Keys { operations, .. } => {
                    keys.extend(operations.iter().map(|operation| operation.key().clone()));
                }
                WriteKind::Range { .. } => {}
            },
            Asked::Scan { .. } => {}
        }
        match &observed.answer {
            Answer::Scanned { entries, .. } => {
                keys.extend(entries.iter().map(|entry| entry.key.clone()));
            }
            Answer::Found(..) | Answer::Wrote(..) | Answer::Unknown | Answer::Refused => {}
        }
    }
    keys
}

/// The clients' seeds lie far apart.
fn seed_of(seed: u64, client: u32) -> u64 {
    seed ^ u64::from(client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::mix::lost::lost;
    use crate::testkit::mix::model::Lie;
    use crate::testkit::mix::model::Model;
    use crate::types::request::WriteOutcome;

    /// What clients of a model with this fault have seen, and what is left at the end.
    async fn run(lie: Lie, seed: u64) -> (Vec<Observed>, Vec<Observed>) {
        let target = Model::new(lie, seed).target();
        let options = Options {
            seed,
            ..Options::default()
        };
        let mix = Mix::start(&target, &options).unwrap();
        assert!(mix.wait_acknowledged(2_000, Duration::from_secs(600)).await);
        let history = mix.stop().await;
        let limit = Duration::from_secs(60);
        let finals = final_reads(&target, &history, options.clients, limit).await;
        (history, finals.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_run() {
        assert_eq!(run(Lie::None, 7).await, run(Lie::None, 7).await);
        assert_ne!(run(Lie::None, 7).await, run(Lie::None, 8).await);
    }

    #[tokio::test(start_paused = true)]
    async fn each_client_has_one_request_under_way() {
        let (history, _) = run(Lie::None, 1).await;
        for client in 0..Options::default().clients {
            let own = history.iter().filter(|seen| seen.client == client);
            let mut own: Vec<&Observed> = own.collect();
            // The keys of a batch are one request.
            own.dedup_by_key(|seen| (seen.began, seen.ended));
            assert!(own.len() > 100);
            assert!(own.windows(2).all(|pair| pair[0].ended <= pair[1].began));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everything_that_can_be_asked_is_answered_in_every_way() {
        let (history, finals) = run(Lie::None, 2).await;
        let count = |is: fn(&Observed) -> bool| history.iter().filter(|seen| is(seen)).count();
        let found = count(|seen| matches!(seen.answer, Answer::Found(Some(_), _)));
        let absent = count(|seen| matches!(seen.answer, Answer::Found(None, _)));
        let scanned = count(|seen| matches!(seen.answer, Answer::Scanned { .. }));
        let refused = count(|seen| {
            let failed =
                |outcome: &WriteOutcome| matches!(outcome, WriteOutcome::ConditionFailed { .. });
            matches!(&seen.answer, Answer::Wrote(outcome, _) if failed(outcome))
        });
        let ranges = count(|seen| {
            let range = |kind: &WriteKind| matches!(kind, WriteKind::Range { .. });
            matches!(&seen.asked, Asked::Write(write) if range(&write.kind))
        });
        for count in [found, absent, scanned, refused, ranges] {
            assert!(count > 10, "{found} {absent} {scanned} {refused} {ranges}");
        }
        assert!(
            finals
                .iter()
                .all(|read| matches!(read.answer, Answer::Found(..)))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_by_a_store_that_keeps_its_word() {
        for seed in 0..5 {
            let (history, finals) = run(Lie::None, seed).await;
            let lost = lost(&history, &finals, &Layout::new(""));
            assert_eq!(lost.complaints, Vec::<String>::new());
            assert!(lost.judged > 40, "{lost:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_loses_writes_is_found_without_a_search() {
        let (history, finals) = run(Lie::LosesWrites, 3).await;
        let lost = lost(&history, &finals, &Layout::new(""));
        assert!(lost.writes > 0 && !lost.complaints.is_empty(), "{lost:?}");
    }
}
