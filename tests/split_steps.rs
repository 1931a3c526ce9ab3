//! A shard is split, and a crash comes at every step of it.
//!
//! Three nodes run in one process. The steps that a node takes on its disk and in its engine are counted from
//! the moment the split is proposed until both halves serve on every node and a checkpoint has covered both.
//! Then the same is done again for each step, and the node does not live to take it: it is killed, or its
//! power is cut, and it comes back at once or after the others have gone on. Whatever the step, in the end
//! every node has both halves, nothing that was answered is lost or done twice, and the replicas are equal.

#![allow(clippy::unwrap_used)]

mod rack;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Mutex;

use quorate::env::tasks::panic_message;
use quorate::error::Error;
use quorate::node::opener::SEED;
use quorate::node::replica::Replica;
use quorate::raft::Group;
use quorate::shard::command::Split;
use quorate::shard::command::SplitOutcome;
use quorate::types::Key;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::shard;
use quorate::wire::request::Get;
use rack::Crash;
use rack::Kept;
use rack::NODES;
use rack::Rack;
use rack::SHARD;
use rack::eventually;
use rack::facts::Facts;
use rack::facts::first_writes;
use rack::facts::late_write;
use rack::facts::second_writes;
use tokio::time::Instant;

/// What the keys of each half begin with; the shard is split before the second.
const HALVES: [&str; 2] = ["a", "m"];
/// Cases that run at once.
const SIDE_BY_SIDE: usize = 6;
/// Failures that are told in full.
const TOLD_MAX: usize = 5;

/// Who does not live to take the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The node that leads the shard when it is split.
    Leader,
    /// A node that does not.
    Follower,
    /// All nodes, when the leader comes to the step.
    All,
}

/// When the victim is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    /// Before the others notice.
    AtOnce,
    /// When the others have split the shard and serve both halves.
    Late,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    victim: Victim,
    step: u64,
    crash: Crash,
    back: Back,
}

/// A rack with a shard that is split.
struct Stage {
    rack: Rack,
    facts: Facts,
    /// Sent when both halves serve, and again until they are answered.
    late: Vec<Write>,
    /// Sent behind the checkpoint.
    last: Vec<Write>,
    attempts: u64,
}

impl Stage {
    /// Keys of every kind in both halves, some of them flushed, and equal on all nodes.
    async fn set() -> Stage {
        let mut stage = Stage {
            rack: Rack::start().await,
            facts: Facts::default(),
            late: HALVES.map(late_write).into(),
            last: HALVES.map(late_write).into(),
            attempts: 0,
        };
        let first = HALVES.map(first_writes).concat();
        stage.facts.write(&stage.rack, &first).await;
        stage.level(&[SHARD]).await;
        stage.checkpoint().await;
        let second = HALVES.map(second_writes).concat();
        stage.facts.write(&stage.rack, &second).await;
        stage.level(&[SHARD]).await;
        stage
    }

    async fn leader(&self) -> usize {
        eventually("a leader", async || self.rack.leader(SHARD)).await
    }

    /// From the proposal on until nothing of the split is left to be done.
    async fn happen(&mut self) {
        self.serve().await;
        self.checkpoint().await;
        // What was purged is written with the next entry.
        self.facts.write(&self.rack, &self.last).await;
    }

    /// The living nodes split the shard, and serve both halves.
    async fn serve(&mut self) {
        self.split().await;
        self.facts.write(&self.rack, &self.late).await;
        for node in self.rack.living() {
            for half in HALVES {
                let what = format!("{half} on n{}", node + 1);
                eventually(&what, async || self.reads(node, half).await).await;
            }
        }
    }

    /// Splits the shard unless it is split, as an operator does it whose last attempt had no answer.
    async fn split(&mut self) {
        eventually("the shard is split", async || {
            let leader = self.rack.leader(SHARD)?;
            let replica = self.rack.replica(leader, SHARD)?;
            self.attempts += 1;
            let attempt = split(replica, 100 * self.attempts);
            let outcome = self.rack.on(leader, attempt).await;
            outcome.unwrap_or_else(|| Err(format!("n{} has ended", leader + 1)))
        })
        .await;
    }

    async fn reads(&self, node: usize, half: &str) -> Result<(), String> {
        let key = Key::from(format!("{half}/value"));
        let replica = self.half(node, half)?;
        let read = ReadKind::Linearizable;
        let get = Get {
            key: key.clone(),
            read,
        };
        let read = self.rack.on(node, async move { replica.get(get).await });
        let read = read.await.ok_or("the node has ended")?;
        let (found, _) = read.map_err(|error| error.to_string())?;
        let found = found.map(|found| found.value);
        assert_eq!(found, self.facts.newest(&key), "{key:?} on n{}", node + 1);
        Ok(())
    }

    /// A node's replica of a half, once there are two.
    fn half(&self, node: usize, half: &str) -> Result<Replica, String> {
        self.rack.check(node);
        let registry = self.rack.registry(node);
        let found = registry.shard_of(half.as_bytes());
        let found = found.map_err(|error| error.to_string())?;
        match found.reader().descriptor().range.contains(other(half)) {
            false => Ok(found),
            true => Err("the shard is not split here".to_owned()),
        }
    }

    /// Flushes every node until its logs are purged behind that: the library purges what the checkpoint before
    /// has covered.
    async fn checkpoint(&self) {
        for node in self.rack.living() {
            let groups = self.rack.registry(node).groups();
            let applied = |group: Group| {
                let position = group.machine_applied().position.unwrap_or_default();
                (group, position.index)
            };
            let covered: Vec<_> = groups.into_iter().map(applied).collect();
            eventually("a purged log", async || {
                self.rack.checkpoint(node).await;
                let behind = |(group, upto): &&(Group, u64)| group.view().purged_index < *upto;
                match covered.iter().find(behind) {
                    None => Ok(()),
                    Some((group, upto)) => {
                        Err(format!("{} of n{} to {upto}", group.id(), node + 1))
                    }
                }
            })
            .await;
        }
    }

    /// Waits until the replicas on all living nodes have come equally far, and compares them.
    async fn level(&self, shards: &[ShardId]) {
        for shard in shards {
            eventually("equal replicas", async || {
                let mut hashes = Vec::new();
                for node in self.rack.living() {
                    hashes.push(self.rack.state_hash(node, *shard).await?);
                }
                let first = hashes[0];
                match hashes.iter().all(|hash| hash.position == first.position) {
                    false => Err(format!("{shard} is at {hashes:?}")),
                    true if hashes.iter().all(|hash| *hash == first) => Ok(()),
                    true => panic!("{shard} differs: {hashes:?}"),
                }
            })
            .await;
        }
    }

    /// Everything that holds when the split is over and all nodes are back.
    async fn check(&mut self) {
        self.serve().await;
        self.facts.write(&self.rack, &self.last).await;
        self.facts.repeat(&self.rack).await;
        self.serve().await;
        let [left, right] = HALVES.map(|half| self.half(0, half).unwrap());
        let shards = [left, right].map(|half| half.reader().descriptor().id);
        assert_eq!(shards[0], SHARD);
        self.level(&shards).await;
        for node in NODES {
            self.check_node(node, shards[1]);
        }
    }

    fn check_node(&self, node: usize, child: ShardId) {
        let shards = self.rack.registry(node).shards();
        let descriptors = shards.iter().map(|shard| shard.reader().descriptor());
        let descriptors: Vec<_> = descriptors.collect();
        assert_eq!(descriptors.len(), 2, "n{}: {descriptors:?}", node + 1);
        assert_eq!(descriptors[0].range.start, Key::new());
        assert_eq!(
            descriptors[0].range.end.as_ref(),
            Some(&descriptors[1].range.start)
        );
        assert_eq!(descriptors[1].range.end, None);
        assert_eq!(descriptors[1].id, child);
        for shard in &shards {
            let checked = self.facts.check(shard.reader());
            assert_eq!(checked, Ok(()), "n{}", node + 1);
            // All replicas begin in this term, so that nobody is elected in it.
            let term = shard.group().view().term;
            assert!(term > SEED.term, "{term} on n{}", node + 1);
        }
        let here = |descriptor: &shard::ShardDescriptor| {
            let replica = descriptor.replica_on(NodeId(node as u64 + 1));
            replica.unwrap().id
        };
        let replicas: BTreeSet<ReplicaId> = descriptors.iter().map(here).collect();
        assert_eq!(self.rack.births(node), replicas, "born on n{}", node + 1);
        assert_eq!(self.rack.rows(node), replicas, "in rows of n{}", node + 1);
        self.rack.check(node);
    }
}

fn other(half: &str) -> &[u8] {
    let other = HALVES.into_iter().find(|other| *other != half);
    other.unwrap().as_bytes()
}

/// One attempt by the leader, with the ids from `first` on.
async fn split(replica: Replica, first: u64) -> Result<(), String> {
    let failed = |error: Error| error.to_string();
    // What earlier leaders have committed is applied, so that the shard is seen as it is.
    let position = replica.read_position().await.map_err(failed)?;
    replica.group().wait_applied(position).await.unwrap();
    let planned = replica.reader().descriptor();
    if planned.range.end.is_some() {
        return Ok(());
    }
    let child = |parent: &shard::Replica| shard::Replica {
        id: ReplicaId(first + parent.node.0),
        node: parent.node,
    };
    let command = Split {
        at: Key::from_static(HALVES[1].as_bytes()),
        child: ShardId(first),
        replicas: planned.replicas.iter().map(child).collect(),
    };
    match replica
        .split(planned.epoch, command)
        .await
        .map_err(failed)?
    {
        SplitOutcome::Done { .. } => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    }
}

/// What a case has shown.
struct Ran {
    /// Whether the victim came to the step.
    reached: bool,
    /// Steps of each node, the leader's first.
    steps: [u64; 3],
}

async fn run(case: Option<Case>) -> Ran {
    let mut stage = Stage::set().await;
    let leader = stage.leader().await;
    let order = [0, 1, 2].map(|place| (leader + place) % NODES.len());
    let (at, victims) = match case.map(|case| case.victim) {
        Some(Victim::Leader) => (order[0], vec![order[0]]),
        Some(Victim::Follower) => (order[1], vec![order[1]]),
        Some(Victim::All) => (order[0], NODES.into()),
        None => (order[0], Vec::new()),
    };
    for node in NODES {
        let last = case.filter(|_| node == at).map(|case| case.step);
        stage.rack.steps(node).count_until(last);
    }
    let ended = stage.rack.steps(at).ended();
    tokio::select! {
        biased;
        () = ended.cancelled() => {}
        () = stage.happen() => {}
    }
    let reached = ended.is_cancelled();
    let steps = order.map(|node| stage.rack.steps(node).done());
    if let Some(case) = case {
        stage.rack.crash(&victims, case.crash);
        if case.back == Back::Late {
            stage.serve().await;
        }
        for node in victims {
            stage.rack.open(node).await;
        }
    }
    stage.check().await;
    Ran { reached, steps }
}

/// Runs a story to its end on this thread; the nodes have threads of their own.
fn play<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(story)
}

/// What a crash at a step can leave; half of it comes back at once, half late.
fn kinds(step: u64) -> [(Crash, Back); 4] {
    let crashes = [
        Crash::Kill {
            kept: Kept::Everything,
        },
        Crash::Kill {
            kept: Kept::Nothing,
        },
        Crash::PowerCut {
            seed: step,
            kept: Kept::Nothing,
        },
        Crash::PowerCut {
            seed: step + 1_000,
            kept: Kept::Everything,
        },
    ];
    let mut turn = step;
    crashes.map(|crash| {
        turn += 1;
        let backs = [Back::AtOnce, Back::Late];
        (crash, backs[(turn % 2) as usize])
    })
}

/// Every kind of crash at every step of the leader and of a follower, and a power cut of all.
fn cases(steps: [u64; 3]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (victim, count) in [(Victim::Leader, steps[0]), (Victim::Follower, steps[1])] {
        for step in 0..=count {
            cases.extend(kinds(step).map(|(crash, back)| Case {
                victim,
                step,
                crash,
                back,
            }));
        }
    }
    cases.extend((0..=steps[0]).map(|step| Case {
        victim: Victim::All,
        step,
        crash: kinds(step)[2].0,
        back: Back::AtOnce,
    }));
    cases
}

/// Runs all cases, some side by side; gives how many came to their step, and what failed.
fn run_all(cases: &[Case]) -> (usize, Vec<String>) {
    let (rest, done) = (Mutex::new(cases.iter()), Mutex::new((0, Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(case) = rest.lock().unwrap().next() else {
                        return;
                    };
                    let ran = catch_unwind(AssertUnwindSafe(|| play(run(Some(*case)))));
                    let mut done = done.lock().unwrap();
                    match ran {
                        Ok(ran) => done.0 += usize::from(ran.reached),
                        Err(panic) => done.1.push(format!("{case:?}: {}", panic_message(&*panic))),
                    }
                }
            });
        }
    });
    done.into_inner().unwrap()
}

#[test]
fn a_crash_at_any_step_of_a_split_loses_nothing() {
    let began = Instant::now();
    // What is written together differs from run to run, and a slow machine elects now and then.
    let counted = [(); 3].map(|()| play(run(None)).steps);
    let steps = [0, 1, 2].map(|place| {
        let mut steps = counted.map(|steps| steps[place]);
        steps.sort_unstable();
        steps[1]
    });
    let cases = cases(steps);
    let (reached, failed) = run_all(&cases);
    println!(
        "split: {steps:?} steps on leader and followers, {} cases, {reached} came to their step, {} failed, {} s",
        cases.len(),
        failed.len(),
        began.elapsed().as_secs()
    );
    let told = failed.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>();
    assert!(failed.is_empty(), "{}", told.join("\n"));
}

#[test]
fn a_replica_that_was_away_splits_when_it_is_back() {
    play(async {
        let mut stage = Stage::set().await;
        let away = (stage.leader().await + 1) % NODES.len();
        let kept = Kept::Everything;
        stage.rack.crash(&[away], Crash::Kill { kept });
        stage.serve().await;
        stage.rack.open(away).await;
        stage.check().await;
    });
}

/// Its child is called by the other nodes all the while.
#[test]
fn a_replica_that_splits_last_joins_a_child_that_is_led_already() {
    play(async {
        let mut stage = Stage::set().await;
        let late = (stage.leader().await + 1) % NODES.len();
        stage.rack.hold(late, SHARD);
        stage.split().await;
        stage.facts.write(&stage.rack, &stage.late).await;
        assert_eq!(stage.rack.registry(late).shards().len(), 1);
        stage.rack.let_go();
        stage.check().await;
    });
}

/// The others have the split and commit it without the leader's disk; what the leader has not synced itself
/// must not be in its engine, which would come back from a power cut ahead of the log.
#[test]
fn a_leader_whose_disk_stands_still_does_not_split_before_it_has_synced() {
    play(async {
        let mut stage = Stage::set().await;
        let leader = stage.leader().await;
        let followers = NODES.into_iter().filter(|node| *node != leader);
        let registries: Vec<_> = followers.map(|node| stage.rack.registry(node)).collect();
        let here = stage.rack.registry(leader);
        stage.rack.steps(leader).hold_syncs();
        let split = async || match registries.iter().all(|others| others.shards().len() == 2) {
            true => Ok(()),
            false => Err("not everywhere".to_owned()),
        };
        tokio::select! {
            () = stage.split() => panic!("the leader has split before it has synced"),
            () = eventually("the followers split", split) => {}
        }
        assert_eq!(here.shards().len(), 1);
        let kept = Kept::Everything;
        stage
            .rack
            .crash(&[leader], Crash::PowerCut { seed: 1, kept });
        stage.rack.open(leader).await;
        stage.check().await;
    });
}

/// The entries that it missed are purged: the shard comes to it as a snapshot, without the right half, and
/// the right half's leader introduces it there.
#[test]
fn a_replica_that_was_away_for_long_is_introduced_to_the_right_half() {
    play(async {
        let mut stage = Stage::set().await;
        let away = (stage.leader().await + 1) % NODES.len();
        let kept = Kept::Everything;
        stage.rack.crash(&[away], Crash::Kill { kept });
        stage.serve().await;
        stage.checkpoint().await;
        stage.rack.open(away).await;
        stage.check().await;
    });
}
