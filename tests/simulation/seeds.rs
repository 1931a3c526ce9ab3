//! Many seeds, on two threads, with a watch over them from outside: a run that does not end is a failure,
//! and so is a panic anywhere in it, even where somebody would have caught it.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::panic;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use quorate::env::clock::Clock;

use crate::fault::Plan;
use crate::report;
use crate::run;
use crate::run::Outcome;

/// Runs at once.
const THREADS: usize = 2;
/// Many take long: after so many there is a line about what they came to so far.
const SEEDS_BETWEEN_LINES: u64 = 500;
/// A run that needs longer, in real time, goes round in circles.
const RUN_MAX: Duration = Duration::from_secs(180);

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static LIBRARY_FAILURES: Cell<u64> = const { Cell::new(0) };
}

/// Where the library's core is known to panic when it has let a snapshot wait and committed entries behind
/// it come first (openraft #2116): the entry to apply next is purged from its view, or, where its
/// assertions are on, what was handed to the state machine goes backwards. The group must be reopened and go
/// on, which is what the rest of the run asks for.
const LIBRARY_FAILS: [(&str, &str); 2] = [
    (
        "core/raft_core.rs",
        "called `Option::unwrap()` on a `None` value",
    ),
    ("raft_state/io_state/io_progress.rs", "expect submitted:"),
];

/// From now on panics are noted for [`panics`] and [`library_failures`] instead of printed.
pub fn note_panics() {
    panic::set_hook(Box::new(|panic| {
        let noted = panic.to_string();
        let is_known = |(place, message): &(&str, &str)| {
            noted.contains("openraft-") && noted.contains(place) && noted.contains(message)
        };
        match LIBRARY_FAILS.iter().any(is_known) {
            true => LIBRARY_FAILURES.set(LIBRARY_FAILURES.get() + 1),
            false => PANICS.with_borrow_mut(|panics| panics.push(noted)),
        }
    }));
}

/// How often the library's core has failed in the known way on this thread since the last call.
pub fn library_failures() -> u64 {
    LIBRARY_FAILURES.take()
}

/// The panics of this thread since the last call.
pub fn panics() -> Vec<String> {
    PANICS.take()
}

/// What many runs came to.
#[derive(Default)]
pub struct Total {
    pub passed: u64,
    pub failed: u64,
    acknowledged: u64,
    terms: usize,
    entries: usize,
    states_compared: u64,
    splits: u64,
    snapshots: u64,
    moves: u64,
    merges: usize,
    frozen_max: Duration,
    crashes: u64,
    operators: usize,
    library_failures: u64,
    virtual_time: Duration,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        match outcome.violations.is_empty() {
            true => self.passed += 1,
            false => self.failed += 1,
        }
        self.acknowledged += outcome.acknowledged;
        self.terms += outcome.seen.terms;
        self.entries += outcome.seen.entries;
        self.states_compared += outcome.seen.states_compared;
        self.snapshots += outcome.seen.snapshots;
        self.splits += outcome.seen.splits;
        self.moves += outcome.seen.moves;
        self.merges += outcome.seen.merges;
        self.frozen_max = self.frozen_max.max(outcome.seen.frozen_max);
        self.crashes += outcome.seen.crashes;
        self.operators += outcome.seen.operators;
        self.library_failures += outcome.library_failures;
        self.virtual_time += outcome.lasted;
    }
}

/// With so many seeds everything must have happened at least once.
const SEEDS_WITH_ALL: u64 = 100;

impl Total {
    /// What was to be tried and never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let counts = [
            ("a crash", self.crashes),
            ("a split", self.splits),
            ("a move", self.moves),
            ("a merge", self.merges as u64),
            ("an operator of placement", self.operators as u64),
            ("a snapshot", self.snapshots),
            ("two states compared", self.states_compared),
        ];
        let never = counts.into_iter().filter(|(_, count)| *count == 0);
        match self.passed + self.failed >= SEEDS_WITH_ALL {
            true => never.map(|(what, _)| what).collect(),
            false => Vec::new(),
        }
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {} s of virtual time: {} writes acknowledged, {} terms led, {} committed entries seen, \
             {} states compared, {} crashes, {} splits, {} merges (frozen for {} ms at most), {} moves, {} operators of placement, {} snapshots, {} failures of the library's core",
            self.passed + self.failed,
            self.virtual_time.as_secs(),
            self.acknowledged,
            self.terms,
            self.entries,
            self.states_compared,
            self.crashes,
            self.splits,
            self.merges,
            self.frozen_max.as_millis(),
            self.moves,
            self.operators,
            self.snapshots,
            self.library_failures
        )
    }
}

/// Runs `count` seeds from `first` on; begins none after `limit`.
pub fn run(first: u64, count: u64, limit: Option<Duration>) -> Total {
    let next = Mutex::new(first..first + count);
    let (done, outcomes) = mpsc::channel();
    let mut total = Total::default();
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            let (next, done) = (&next, done.clone());
            threads.spawn(move || {
                while let Some(seed) = take(next) {
                    let _ = done.send((seed, None));
                    let outcome = run::run(seed, &Plan::of(seed), false);
                    let _ = done.send((seed, Some(outcome)));
                }
            });
        }
        drop(done);
        let (over, ends) = mpsc::channel::<()>();
        if let Some(limit) = limit {
            let next = &next;
            threads.spawn(move || {
                if ends.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    let mut next = next.lock().expect("nothing panics under this lock");
                    next.start = next.end;
                }
            });
        }
        collect(&outcomes, &mut total);
        drop(over);
    });
    total
}

/// Runs seeds one after the other until one fails; gives it, and what was found first. Otherwise how many
/// have passed.
pub fn first_failure(
    first: u64,
    count: u64,
    limit: Option<Duration>,
) -> Result<u64, (u64, String)> {
    let clock = Clock::system();
    let began_ms = clock.wall_ms();
    let is_late =
        || limit.is_some_and(|limit| clock.wall_ms() - began_ms > limit.as_millis() as u64);
    let (done, found) = mpsc::channel();
    std::thread::spawn(move || {
        for seed in first..first + count {
            if done.send(violation(seed)).is_err() {
                return;
            }
        }
    });
    for seed in first..first + count {
        match found.recv_timeout(RUN_MAX) {
            Ok(None) if is_late() => return Ok(seed + 1 - first),
            Ok(None) => {}
            Ok(Some(violation)) => return Err((seed, violation)),
            Err(_) => return Err((seed, format!("the run has not ended after {RUN_MAX:?}"))),
        }
    }
    Ok(count)
}

/// What was found first in a run of this seed. A panic that ends it is found, too.
fn violation(seed: u64) -> Option<String> {
    let run = || run::run(seed, &Plan::of(seed), false);
    match panic::catch_unwind(run) {
        Ok(outcome) => outcome.violations.into_iter().next(),
        Err(_) => panics().into_iter().next(),
    }
}

fn take(next: &Mutex<std::ops::Range<u64>>) -> Option<u64> {
    next.lock().expect("nothing panics under this lock").next()
}

fn collect(outcomes: &mpsc::Receiver<(u64, Option<Outcome>)>, total: &mut Total) {
    let mut under_way = BTreeSet::new();
    while let ControlFlow::Continue(()) = collect_one(outcomes, &mut under_way, total) {}
}

fn collect_one(
    outcomes: &mpsc::Receiver<(u64, Option<Outcome>)>,
    under_way: &mut BTreeSet<u64>,
    total: &mut Total,
) -> ControlFlow<()> {
    match outcomes.recv_timeout(RUN_MAX) {
        Ok((seed, None)) => {
            under_way.insert(seed);
        }
        Ok((seed, Some(outcome))) => {
            under_way.remove(&seed);
            total.add(&outcome);
            if (total.passed + total.failed).is_multiple_of(SEEDS_BETWEEN_LINES) {
                eprintln!("{total}");
            }
            if !outcome.violations.is_empty() {
                println!("{}", report(seed, &outcome));
                println!("  cargo test --test simulation -- --seed {seed}");
            }
        }
        Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        Err(RecvTimeoutError::Timeout) => {
            println!("no run has ended for {RUN_MAX:?}; under way: {under_way:?}");
            println!("{} passed, {} failed", total.passed, total.failed + 1);
            std::process::exit(1);
        }
    }
    ControlFlow::Continue(())
}
