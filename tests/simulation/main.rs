//! The whole cluster in one process, under a seed: virtual time, a network and disks that go wrong, nodes
//! that end at any moment. A seed gives the same run, byte for byte.
//!
//! ```text
//! cargo test --test simulation                          a hundred seeds
//! cargo test --test simulation -- --seeds 500           more of them
//! cargo test --test simulation -- --seed 17             one, with what led to the failure
//! cargo test --test simulation -- --seed 17 --shrink    the fewest faults that still fail
//! cargo test --test simulation -- --seed 17 --trace     everything that happened in it
//! cargo test --test simulation -- --until-failure       one line about the first seed that fails
//! ```
//!
//! A run has a fault phase, with clients that ask for everything a shard can do, and a healing phase, in
//! which every node must come back, every group must be led, every replica of a shard must become equal,
//! and everything acknowledged must be there. What must hold at every moment is in
//! `quorate::testkit::invariants`, whether the answers can be explained in `quorate::testkit::linear`.
//!
//! Virtual is: time (`tokio::time` is paused and jumps when nothing else can be done), chance (`env::rng`,
//! the one of the library and the one of the runtime have the seed), the network (`net`: `wire::Channel`),
//! the disk and the engine (`cluster`: `env::Files`, `Engine`), and the life of a node (`env::life`).
//! Everything above that is what runs in production: `server::assembly` puts both together.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub)]

mod trace;
mod fault;
mod watch;
mod net;
#[path = "../rack/steps.rs"]
#[allow(dead_code)]
mod steps;
mod cluster;
mod run;
mod seeds;

use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fault::Plan;
use run::Outcome;

/// Runs the cluster under seeds.
#[derive(Debug, Parser)]
struct Arguments {
    /// One seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Begin no further seed after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Fail when fewer seeds were run than this
    #[arg(long, default_value_t = 1)]
    at_least: u64,
    /// With --seed: leave out faults while it still fails
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// With --seed: leave these faults out, counted from 0
    #[arg(long, requires = "seed", value_delimiter = ',')]
    without: Vec<usize>,
    /// With --seed: print all that happened
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Only look for the first seed that fails, and say what was found first
    #[arg(long, conflicts_with_all = ["seed", "at_least"])]
    until_failure: bool,
    /// The faults that were built in, and what is wrong with each
    #[cfg(quorate_mutants)]
    #[arg(long)]
    list_mutants: bool,
    /// What the test runner passes
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    runner: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.is_for_others() || is_skipped() {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    #[cfg(quorate_mutants)]
    if arguments.list_mutants {
        list_mutants();
        return ExitCode::SUCCESS;
    }
    seeds::note_panics();
    if arguments.until_failure {
        return until_failure(&arguments);
    }
    match arguments.seed {
        Some(seed) if arguments.shrink => shrink(seed, plan(seed, &arguments.without)),
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

impl Arguments {
    /// Whether the test runner wants tests of another name.
    fn is_for_others(&self) -> bool {
        let mut names = self.runner.iter().filter(|word| !word.starts_with('-'));
        names.clone().next().is_some() && !names.any(|name| "simulation".contains(name.as_str()))
    }
}

fn is_skipped() -> bool {
    let skipped = std::env::var("QUORATE_SKIP").unwrap_or_default();
    let is_skipped = skipped.split(',').any(|name| name == "simulation");
    if is_skipped {
        println!("SKIPPED: simulation, as QUORATE_SKIP says");
    }
    is_skipped
}

fn plan(seed: u64, without: &[usize]) -> Plan {
    let mut plan = Plan::of(seed);
    let faults = plan.faults.into_iter().enumerate();
    let kept = faults.filter(|(number, _)| !without.contains(number));
    plan.faults = kept.map(|(_, fault)| fault).collect();
    plan
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let plan = plan(seed, &arguments.without);
    show(&plan);
    let outcome = run::run(seed, &plan, arguments.trace);
    if arguments.trace || !outcome.violations.is_empty() {
        println!("{}", outcome.text);
    }
    println!("{}", report(seed, &outcome));
    exit(outcome.violations.is_empty())
}

fn show(plan: &Plan) {
    println!(
        "{} nodes, clocks that gain {:?} ppm",
        plan.nodes, plan.drifts_ppm
    );
    for (number, fault) in plan.faults.iter().enumerate() {
        println!("  {number:>2} {fault}");
    }
}

fn report(seed: u64, outcome: &Outcome) -> String {
    let mut report = format!(
        "seed {seed}: {} writes acknowledged, {} shards, {:?}, trace of {} lines {:08x}",
        outcome.acknowledged, outcome.shards, outcome.lasted, outcome.trace.0, outcome.trace.1
    );
    for violation in &outcome.violations {
        report.push_str("\n  ");
        report.push_str(violation);
    }
    report
}

/// Leaves out one fault after the other while the run still fails.
fn shrink(seed: u64, whole: Plan) -> ExitCode {
    let mut kept: Vec<usize> = (0..whole.faults.len()).collect();
    let run = |kept: &[usize]| {
        let faults = kept.iter().map(|number| whole.faults[*number].clone());
        let plan = Plan {
            faults: faults.collect(),
            ..whole.clone()
        };
        run::run(seed, &plan, false)
    };
    let mut outcome = run(&kept);
    if outcome.violations.is_empty() {
        println!("{}", report(seed, &outcome));
        return ExitCode::SUCCESS;
    }
    let mut at = 0;
    while at < kept.len() {
        let mut fewer = kept.clone();
        let number = fewer.remove(at);
        let tried = run(&fewer);
        if tried.violations.is_empty() {
            at += 1;
            continue;
        }
        println!("fails without {number}: {}", tried.violations[0]);
        (kept, outcome, at) = (fewer, tried, 0);
    }
    println!("{}", outcome.text);
    for number in &kept {
        println!("  {number:>2} {}", whole.faults[*number]);
    }
    println!("{}", report(seed, &outcome));
    let without = (0..whole.faults.len()).filter(|number| !kept.contains(number));
    let without: Vec<String> = without.map(|number| number.to_string()).collect();
    println!(
        "  cargo test --test simulation -- --seed {seed} --without {}",
        without.join(",")
    );
    ExitCode::FAILURE
}

fn many(arguments: &Arguments) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for seed in [3, 5] {
        match repeats_itself(seed) {
            true => passed += 1,
            false => failed += 1,
        }
    }
    let limit = arguments.seconds.map(Duration::from_secs);
    let total = seeds::run(arguments.first, arguments.seeds, limit);
    println!("{total}");
    for what in total.missing() {
        println!("never happened: {what}");
        failed += 1;
    }
    if total.passed + total.failed < arguments.at_least {
        println!("fewer than {} seeds", arguments.at_least);
        failed += 1;
    }
    println!(
        "{} passed, {} failed",
        passed + total.passed,
        failed + total.failed
    );
    exit(failed + total.failed == 0)
}

/// One line for a program to read.
fn until_failure(arguments: &Arguments) -> ExitCode {
    let limit = arguments.seconds.map(Duration::from_secs);
    match seeds::first_failure(arguments.first, arguments.seeds, limit) {
        Ok(passed) => {
            println!("{passed}\tpassed");
            ExitCode::SUCCESS
        }
        Err((seed, violation)) => {
            println!("{seed}\t{}", violation.replace(char::is_whitespace, " "));
            ExitCode::FAILURE
        }
    }
}

#[cfg(quorate_mutants)]
fn list_mutants() {
    use quorate::env::mutant::Mutant;
    for mutant in Mutant::ALL {
        println!("{mutant:?}\t{}", mutant.breaks());
    }
}

/// Runs a seed in two processes and compares all that happened in them.
fn repeats_itself(seed: u64) -> bool {
    let trace = || {
        let binary = std::env::current_exe().unwrap();
        let ran = Command::new(binary)
            .args(["--seed", &seed.to_string(), "--trace"])
            .output();
        String::from_utf8(ran.unwrap().stdout).unwrap()
    };
    let (first, second) = (trace(), trace());
    let mut lines = first.lines().zip(second.lines());
    match lines.find(|(first, second)| first != second) {
        None if first.len() == second.len() && first.len() > 1_000 => true,
        differs => {
            println!("seed {seed} does not repeat itself: {differs:?}");
            println!("  cargo test --test simulation -- --seed {seed} --trace");
            false
        }
    }
}

fn exit(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
