//! Crashes at every step of something that three nodes do.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Mutex;

use quorate::env::tasks::panic_message;
use tokio::time::Instant;

use crate::rack::Crash;
use crate::rack::Kept;
use crate::rack::NODES;
use crate::rack::Rack;
use crate::rack::SHARD;
use crate::rack::eventually;

/// Cases that run at once.
const SIDE_BY_SIDE: usize = 6;
/// Failures that are told in full.
const TOLD_MAX: usize = 5;

/// Who does not live to take the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The node that leads the shard when it begins.
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
    /// When the others have gone on.
    Late,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    victim: Victim,
    step: u64,
    crash: Crash,
    back: Back,
}

/// What a case has shown.
struct Ran {
    /// Whether the victim came to the step.
    reached: bool,
    /// Steps of each node, the leader's first.
    steps: [u64; 3],
}

/// Runs a story to its end on this thread; the nodes have threads of their own.
pub fn play<T>(story: impl Future<Output = T>) -> T {
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

/// Something that three nodes do, at every step of which a crash comes.
pub trait Crashed: Sized {
    /// The nodes before it begins.
    async fn set() -> Self;

    /// The nodes.
    fn rack(&mut self) -> &mut Rack;

    /// From its beginning on until nothing of it is left to be done.
    async fn happen(&mut self);

    /// The living nodes serve all keys.
    async fn serve(&mut self);

    /// Everything that holds when it is over and all nodes are back.
    async fn check(&mut self);

    /// The node that leads the first shard.
    async fn leader(&mut self) -> usize {
        let rack = self.rack();
        eventually("a leader", async || rack.leader(SHARD)).await
    }
}

/// Without a case only the steps are counted.
async fn run<T: Crashed>(case: Option<Case>) -> Ran {
    let mut stage = T::set().await;
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
        stage.rack().steps(node).count_until(last);
    }
    let ended = stage.rack().steps(at).ended();
    tokio::select! {
        biased;
        () = ended.cancelled() => {}
        () = stage.happen() => {}
    }
    let reached = ended.is_cancelled();
    let steps = order.map(|node| stage.rack().steps(node).done());
    if let Some(case) = case {
        stage.rack().crash(&victims, case.crash);
        if case.back == Back::Late {
            stage.serve().await;
        }
        for node in victims {
            stage.rack().open(node).await;
        }
    }
    stage.check().await;
    Ran { reached, steps }
}

/// Runs all cases, some side by side; gives how many came to their step, and what failed.
fn run_all<T: Crashed>(cases: &[Case]) -> (usize, Vec<String>) {
    let (rest, done) = (Mutex::new(cases.iter()), Mutex::new((0, Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(case) = rest.lock().unwrap().next() else {
                        return;
                    };
                    let ran = catch_unwind(AssertUnwindSafe(|| play(run::<T>(Some(*case)))));
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

/// Counts the steps of something, and then runs every kind of crash at each of them. Fails when any case does.
pub fn crash_at_every_step<T: Crashed>(what: &str) {
    let began = Instant::now();
    // What is written together differs from run to run, and a slow machine elects now and then.
    let counted = [(); 3].map(|()| play(run::<T>(None)).steps);
    let steps = [0, 1, 2].map(|place| {
        let mut steps = counted.map(|steps| steps[place]);
        steps.sort_unstable();
        steps[1]
    });
    let cases = cases(steps);
    let (reached, failed) = run_all::<T>(&cases);
    println!(
        "{what}: {steps:?} steps on leader and followers, {} cases, {reached} came to their step, {} failed, {} s",
        cases.len(),
        failed.len(),
        began.elapsed().as_secs()
    );
    let told = failed.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>();
    assert!(failed.is_empty(), "{}", told.join("\n"));
    // Steps vary from run to run; a crash that comes behind all of them shows little.
    assert!(reached * 4 >= cases.len() * 3, "too few came to their step");
}
