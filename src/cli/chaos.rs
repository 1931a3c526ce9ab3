//! `quorate chaos`: faults on a throw-away cluster, and a verdict on what clients were told.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets;
use serde_json::json;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::watch;

use crate::cli::context::Context;
use crate::cli::failure::EXIT_ERROR;
use crate::cli::failure::EXIT_UNREACHABLE;
use crate::cli::failure::Failure;
use crate::cli::progress::Meter;
use crate::env::clock::Clock;
use crate::env::rng::Chance;
use crate::testkit::chaos::check::check;
use crate::testkit::chaos::containers::Containers;
use crate::testkit::chaos::driver;
use crate::testkit::chaos::driver::Now;
use crate::testkit::chaos::driver::Plan;
use crate::testkit::chaos::fault;
use crate::testkit::chaos::fault::GROUPS;
use crate::testkit::chaos::fault::Kind;
use crate::testkit::chaos::nodes::Nodes;
use crate::testkit::chaos::outcome::Findings;
use crate::testkit::chaos::outcome::Order;
use crate::testkit::chaos::outcome::Outcome;
use crate::testkit::chaos::outcome::Verdict;
use crate::testkit::chaos::outcome::judge;
use crate::testkit::chaos::report;
use crate::testkit::chaos::report::seconds;
use crate::testkit::chaos::schedule::schedule;
use crate::testkit::mix;
use crate::types::key::VALUE_BYTES_MAX;

/// A shorter run has no time for one fault and what follows it.
const DURATION_MIN: Duration = Duration::from_secs(10);
/// A longer one is several.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Seeds are short enough to be read out.
const SEEDS: u64 = 1_000_000;
/// Lines of evidence shown here; the report has all of them.
const EVIDENCE_LINES: usize = 20;
/// What a node comes to after hours, it comes to in a minute: checkpoints, purged logs, snapshots.
const SERVE_FLAGS: &[&str] = &[
    "--log-format=text",
    "--checkpoint-interval=1s",
    "--log-entries-kept=200",
    "--log-segment-bytes=8MiB",
];

/// `quorate chaos`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Starts a cluster of its own on this machine in a directory of its own, and lets clients write and read
registers, counters, lists, sets and several keys at once, while nodes are killed, stopped and cut off,
disks are slow and clocks wrong, and shards are split and moved. Then everything is put right, and what
the clients were told must be explained by one order, with no acknowledged write missing.

Exit codes: 0 all promises were kept, 1 one was broken, 2 it could not run or was too little to say
something, 3 bad input. Ctrl-C ends the faults and still gives a verdict on what was seen.

Example:
  quorate chaos
  quorate chaos --nodes 5 --duration 10m --faults all
  quorate chaos --faults kill-leader,partition --seed 4711
  quorate chaos --list-faults")]
pub struct ChaosArgs {
    /// How many nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// Instead of processes, the containers of this compose file, which must be up. They stay; keys
    /// below chaos/ and cuts of shards are left in them
    #[arg(long, value_name = "FILE", conflicts_with = "nodes")]
    compose: Option<PathBuf>,
    /// How long faults go on, 10s to 24h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Kinds of faults and groups of them, see --list-faults
    #[arg(
        long,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "all"
    )]
    faults: Vec<String>,
    /// List the kinds of faults, and do nothing
    #[arg(long)]
    list_faults: bool,
    /// Which faults come when: the same seed, nodes, duration and kinds give the same schedule
    /// [default: drawn, and said]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Clients at the same time, each with one request under way
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Requests in a second that all clients together try to send
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    rate: u64,
    /// Registers among the keys
    #[arg(long, value_name = "COUNT", default_value_t = 24, value_parser = clap::value_parser!(u64).range(8..=100_000))]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=VALUE_BYTES_MAX as u64))]
    value_size: u64,
    /// Leave shards and replicas where they are
    #[arg(long)]
    no_moves: bool,
    /// Where the report is written [default: quorate-chaos-SEED.html]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Keep the nodes' data and logs also when all was well
    #[arg(long)]
    keep: bool,
}

/// Runs the faults, and says what they have shown.
pub async fn run(args: ChaosArgs, context: &Context) -> Result<(), Failure> {
    if args.list_faults {
        return list_faults(context);
    }
    let containers = args.compose.as_deref().map(containers).transpose()?;
    let count = match &containers {
        Some(containers) => containers.count(),
        None => usize::try_from(args.nodes).unwrap_or(usize::MAX),
    };
    let kinds = kinds(&args, count)?;
    let seed = args.seed.unwrap_or_else(|| Chance.below(SEEDS));
    let report = report_path(&args, seed)?;
    let command = command(&args, seed);
    context.world.tell(format!("seed {seed}; again: {command}"));
    let directory = Directory::make(seed)?;
    let plan = Plan {
        schedule: schedule(seed, &kinds, count, args.duration),
        duration: args.duration,
        mix: mix_options(&args, seed),
        changes: !args.no_moves,
    };
    let nodes = match containers {
        Some(containers) => Ok(Nodes::Containers(containers)),
        None => processes(count, seed, &directory),
    };
    let ran = match nodes {
        Ok(mut nodes) => drive(&mut nodes, &plan, context).await,
        Err(error) => Err(could_not_run(&error)),
    };
    let findings = ran.map_err(|failure| {
        let kept = directory.kept();
        failure.while_doing(format!("the nodes' logs are in {}", kept.display()))
    })?;
    context.world.tell("looking for an order of everything");
    let outcome = tokio::task::spawn_blocking(move || {
        let order = check(findings.history.clone(), &findings.finals);
        let outcome = judge(&findings, order);
        (findings, outcome)
    });
    let (findings, outcome) = outcome
        .await
        .map_err(|error| Failure::error(format!("judge the run: {error}")))?;
    fs::write(&report, report::html(&findings, &outcome, &command))
        .map_err(|error| Failure::from(error).while_doing(format!("write {}", report.display())))?;
    let kept = (args.keep || outcome.verdict != Verdict::Good).then(|| directory.kept());
    if let Some(kept) = &kept {
        keep_history(&findings, kept)?;
    }
    print(&findings, &outcome, &report, kept.as_deref(), context)?;
    end(&outcome)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = super::parse_time(text)?;
    match (DURATION_MIN..=DURATION_MAX).contains(&duration) {
        true => Ok(duration),
        false => Err("it must be from 10s to 24h".to_owned()),
    }
}

fn list_faults(context: &Context) -> Result<(), Failure> {
    if context.is_json() {
        let kinds = Kind::ALL.map(|kind| json!({"name": kind.name(), "what": kind.description()}));
        return context.print_json(json!({ "faults": kinds }));
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["FAULT", "WHAT HAPPENS"]);
    table.add_rows(Kind::ALL.map(|kind| [kind.name(), kind.description()]));
    context.world.print(format!("{table}\n\n"))?;
    for (name, kinds) in GROUPS.iter().filter(|(name, _)| *name != "all") {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        context
            .world
            .print(format!(" {name} stands for {}\n", names.join(",")))?;
    }
    context.world.print(" all stands for all of them\n")
}

fn containers(file: &Path) -> Result<Containers, Failure> {
    let refuse = |why: String| Failure::bad_input(format!("--compose: {why}"));
    if !file.is_file() {
        return Err(refuse(format!("there is no file {}", file.display())));
    }
    let containers = Containers::find(file).map_err(|error| refuse(error.to_string()))?;
    match containers.count() {
        3..=9 => Ok(containers),
        count => Err(refuse(format!("{count} services; 3 to 9 are needed"))),
    }
}

/// The program itself, so many times.
fn processes(count: usize, seed: u64, directory: &Directory) -> std::io::Result<Nodes> {
    let binary = std::env::current_exe()?;
    let flags = SERVE_FLAGS.iter().map(ToString::to_string).collect();
    Nodes::processes(binary, count, directory.path.clone(), flags, seed)
}

/// The kinds that are asked for and possible on so many nodes. What is named by itself and not possible
/// is refused.
fn kinds(args: &ChaosArgs, nodes: usize) -> Result<Vec<Kind>, Failure> {
    let mut kinds = Vec::new();
    for word in &args.faults {
        let named = fault::named(word).ok_or_else(|| {
            Failure::bad_input(format!(
                "--faults: {word:?} is no kind of fault; `quorate chaos --list-faults` lists them"
            ))
        })?;
        let alone = named.len() == 1;
        for kind in named {
            let least = kind.nodes_min();
            if nodes < least && alone {
                return Err(Failure::bad_input(format!(
                    "--faults: {word} needs --nodes {least} or more"
                )));
            }
            let possible = args.compose.is_none() || kind.is_for_containers();
            if !possible && alone {
                return Err(Failure::bad_input(format!(
                    "--faults: {word} cannot be done to containers"
                )));
            }
            if possible && nodes >= least && !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    if kinds.is_empty() {
        return Err(Failure::bad_input(
            "--faults: none of these can be done to containers",
        ));
    }
    Ok(kinds)
}

/// Found out before an hour was spent, not after it.
fn report_path(args: &ChaosArgs, seed: u64) -> Result<PathBuf, Failure> {
    let usual = || PathBuf::from(format!("quorate-chaos-{seed}.html"));
    let path = args.report.clone().unwrap_or_else(usual);
    let opened = fs::File::options().append(true).create(true).open(&path);
    match opened {
        Ok(_) => Ok(path),
        Err(error) => Err(Failure::bad_input(format!(
            "--report: {} cannot be written: {error}",
            path.display()
        ))),
    }
}

/// What to type for the same schedule.
fn command(args: &ChaosArgs, seed: u64) -> String {
    let ChaosArgs {
        nodes,
        compose,
        duration,
        faults,
        list_faults: _,
        seed: _,
        clients,
        rate,
        keys,
        value_size,
        no_moves,
        report: _,
        keep: _,
    } = args;
    let duration = humantime::format_duration(*duration).to_string();
    let duration = duration.replace(' ', "");
    let faults = faults.join(",");
    let which = match compose {
        Some(file) => format!("--compose {}", file.display()),
        None => format!("--nodes {nodes}"),
    };
    let mut command = format!(
        "quorate chaos --seed {seed} {which} --duration {duration} --faults {faults} --clients {clients} --rate {rate} --keys {keys} --value-size {value_size}"
    );
    if *no_moves {
        command += " --no-moves";
    }
    command
}

/// Hurts the nodes as planned and puts them right, and says how far it is.
async fn drive(nodes: &mut Nodes, plan: &Plan, context: &Context) -> Result<Findings, Failure> {
    let (show, now) = watch::channel(Now::default());
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut meter = Meter::start(&context.world, plan.duration);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let channel = context.world.channel();
    let mut running = Box::pin(driver::run(nodes, channel, plan, &show, stopped));
    let findings = loop {
        let asked = tokio::select! {
            biased;
            findings = &mut running => break findings,
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
            _ = ticks.tick() => false,
        };
        if asked && *stop.borrow() {
            meter.clear();
            return Err(Failure::new(
                EXIT_UNREACHABLE,
                "stopped before there was a verdict",
            ));
        }
        if asked {
            context
                .world
                .tell("stopping; the next Ctrl-C ends it without a verdict");
            stop.send_replace(true);
        }
        let now = now.borrow().clone();
        meter.show(now.since, &line(&now, plan.schedule.faults.len()));
    };
    meter.clear();
    findings.map_err(|error| could_not_run(&error))
}

fn could_not_run(error: &std::io::Error) -> Failure {
    Failure::new(
        EXIT_UNREACHABLE,
        format!("the run could not be made: {error}"),
    )
}

fn mix_options(args: &ChaosArgs, seed: u64) -> mix::Options {
    let usual = mix::Options::default();
    let pause =
        Duration::from_secs(1) * args.clients / u32::try_from(args.rate).unwrap_or(u32::MAX);
    mix::Options {
        clients: args.clients,
        seed,
        // Of this run only: what an earlier one has left is not taken for this one's.
        prefix: format!("chaos/{}/", Clock::system().wall_ms()),
        counts: mix::layout::Counts {
            registers: args.keys,
            ..usual.counts
        },
        value_bytes: usize::try_from(args.value_size).unwrap_or(VALUE_BYTES_MAX),
        pause,
        ..usual
    }
}

fn line(now: &Now, faults: usize) -> String {
    let seconds = now.since.as_secs_f64();
    if seconds == 0.0 {
        return now.doing.clone();
    }
    let rate = now.progress.answered as f64 / seconds;
    format!(
        "{rate:.0} answers/s, fault {} of {faults}, {} leader changes, {} shards: {}",
        now.faults_over, now.leader_changes, now.shards, now.doing
    )
}

fn print(
    findings: &Findings,
    outcome: &Outcome,
    report: &Path,
    kept: Option<&Path>,
    context: &Context,
) -> Result<(), Failure> {
    if context.is_json() {
        return context.print_json(to_json(findings, outcome, report, kept));
    }
    let print = |text: String| context.world.print(text);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "FAULT",
        "TIMES",
        "LASTED",
        "NO WRITE",
        "WORST",
        "WORST SHARD",
        "BACK AFTER",
    ]);
    table.add_rows(outcome.kinds.iter().map(|kind| {
        [
            kind.kind.name().to_owned(),
            kind.times.to_string(),
            seconds(kind.lasted_us),
            seconds(kind.gap_median_us),
            seconds(kind.gap_worst_us),
            seconds(kind.shard_gap_worst_us),
            kind.back_worst_us.map_or("never".to_owned(), seconds),
        ]
    }));
    print(format!("{table}\n\n"))?;
    let counts = &outcome.counts;
    print(format!(
        "{} requests, {} writes acknowledged, {} unknown, {} refused; {} keys read at the end\n",
        counts.requests,
        counts.acknowledged,
        counts.unknown,
        counts.refused,
        findings.finals.len()
    ))?;
    if let Order::Broken(lines) = &outcome.order {
        print("no order explains this:\n".to_owned())?;
        for line in lines.iter().take(EVIDENCE_LINES) {
            print(format!("  {line}\n"))?;
        }
        if lines.len() > EVIDENCE_LINES {
            print(format!(
                "  and {} lines more in the report\n",
                lines.len() - EVIDENCE_LINES
            ))?;
        }
    }
    for complaint in &outcome.lost.complaints {
        print(format!("lost: {complaint}\n"))?;
    }
    print(format!("report: {}\n", report.display()))?;
    if let Some(kept) = kept {
        print(format!("data and logs of the nodes: {}\n", kept.display()))?;
    }
    print(format!("{}\n", outcome.verdict.sentence()))
}

fn to_json(
    findings: &Findings,
    outcome: &Outcome,
    report: &Path,
    kept: Option<&Path>,
) -> serde_json::Value {
    let verdict = match outcome.verdict {
        Verdict::Good => "good",
        Verdict::Bad => "bad",
        Verdict::SaysNothing => "says nothing",
    };
    let evidence = match &outcome.order {
        Order::Broken(lines) => lines.as_slice(),
        Order::Linearizable | Order::Undecided(_) => &[],
    };
    let kinds = outcome.kinds.iter().map(|kind| {
        json!({
            "fault": kind.kind.name(),
            "times": kind.times,
            "lasted_us": kind.lasted_us,
            "no_write_median_us": kind.gap_median_us,
            "no_write_worst_us": kind.gap_worst_us,
            "shard_no_write_median_us": kind.shard_gap_median_us,
            "shard_no_write_worst_us": kind.shard_gap_worst_us,
            "back_worst_us": kind.back_worst_us,
        })
    });
    json!({
        "verdict": verdict,
        "reasons": outcome.reasons,
        "evidence": evidence,
        "seed": findings.seed,
        "requests": outcome.counts.requests,
        "acknowledged": outcome.counts.acknowledged,
        "unknown": outcome.counts.unknown,
        "refused": outcome.counts.refused,
        "lost": outcome.lost.writes,
        "keys_compared": outcome.lost.judged,
        "faults": kinds.collect::<Vec<_>>(),
        "interrupted": findings.interrupted,
        "report": report.display().to_string(),
        "kept": kept.map(|kept| kept.display().to_string()),
    })
}

fn end(outcome: &Outcome) -> Result<(), Failure> {
    let code = match outcome.verdict {
        Verdict::Good => return Ok(()),
        Verdict::Bad => EXIT_ERROR,
        Verdict::SaysNothing => EXIT_UNREACHABLE,
    };
    Err(Failure::new(code, outcome.reasons.join("; ")))
}

/// Everything that clients asked and were told, one request on a line.
fn keep_history(findings: &Findings, directory: &Path) -> Result<(), Failure> {
    let path = directory.join("history.txt");
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    for observed in findings.history.iter().chain(&findings.finals) {
        writeln!(file, "{observed:?}")?;
    }
    Ok(file.flush()?)
}

/// Where the nodes keep their data; removed when dropped, unless it is kept.
struct Directory {
    path: PathBuf,
    is_kept: std::cell::Cell<bool>,
}

impl Directory {
    fn make(seed: u64) -> Result<Directory, Failure> {
        let name = format!("quorate-chaos-{}-{seed}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(|error| {
            Failure::from(error).while_doing(format!("make {}", path.display()))
        })?;
        let is_kept = std::cell::Cell::new(false);
        Ok(Directory { path, is_kept })
    }

    fn kept(&self) -> PathBuf {
        self.is_kept.set(true);
        self.path.clone()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            // What is left in a directory for what passes is nobody's concern.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::Verb;
    use crate::testkit::chaos::sample;
    use crate::testkit::mix::model::Lie;

    fn parse(flags: &str) -> Result<ChaosArgs, String> {
        let words = ["quorate", "chaos"]
            .into_iter()
            .chain(flags.split_whitespace());
        match Cli::try_parse_from(words).map(|cli| cli.verb) {
            Ok(Verb::Chaos(args)) => Ok(*args),
            Ok(_) => panic!("another verb"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        for (flags, words) in [
            ("--nodes 2", "2 is not in 3..=9"),
            ("--duration 5s", "10s to 24h"),
            ("--duration never", "--duration"),
            ("--clients 0", "0 is not in 1..=256"),
            ("--rate 1", "1 is not in 10..=100000"),
            ("--seed x", "--seed"),
        ] {
            let said = parse(flags).unwrap_err();
            assert!(said.contains(words), "{flags}: {said}");
        }
        for (flags, words) in [
            (
                "--faults kill,earthquake",
                "\"earthquake\" is no kind of fault",
            ),
            ("--faults ring", "ring needs --nodes 4"),
            ("--faults kill,", "\"\" is no kind of fault"),
            (
                "--compose c --faults clock",
                "clock cannot be done to containers",
            ),
            ("--compose c --faults disk", "none of these"),
        ] {
            let failure = kinds(&parse(flags).unwrap(), 3).unwrap_err();
            assert_eq!(failure.exit_code, 3);
            let said = failure.to_string();
            assert!(said.contains(words), "{flags}: {said}");
        }
    }

    #[test]
    fn a_group_leaves_out_what_is_not_possible() {
        let all = parse("--faults all").unwrap();
        let (three, five) = (kinds(&all, 3).unwrap(), kinds(&all, 5).unwrap());
        assert_eq!((three.len(), five.len()), (20, 21));
        let containers = parse("--compose compose.yaml --faults all").unwrap();
        assert_eq!(kinds(&containers, 3).unwrap().len(), 10);
        let twice = kinds(&parse("--faults kill,kills").unwrap(), 3).unwrap();
        assert_eq!(twice.len(), 4);
    }

    /// What is said of a store that lies so, and the page that shows it.
    async fn ending(lie: Lie) -> (Result<(), Failure>, String) {
        let findings = sample::findings(lie, 3).await;
        let order = check(findings.history.clone(), &findings.finals);
        let outcome = judge(&findings, order);
        let page = report::html(&findings, &outcome, "quorate chaos");
        (end(&outcome), page)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_lies_ends_with_one_and_its_report_shows_the_evidence() {
        let (end, page) = ending(Lie::None).await;
        assert_eq!(end, Ok(()));
        assert!(page.contains("verdict good"));
        for lie in [Lie::LosesWrites, Lie::ReadsStale, Lie::ForgetsIds] {
            let (end, page) = ending(lie).await;
            assert_eq!(end.unwrap_err().exit_code, 1, "{lie:?}");
            assert!(page.contains("verdict bad"), "{lie:?}");
            assert!(page.contains("What cannot be ordered"), "{lie:?}");
        }
        let (_, page) = ending(Lie::LosesWrites).await;
        assert!(page.contains("What is missing") && page.contains("was acknowledged"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_without_a_fault_ends_with_two() {
        let mut calm = sample::findings(Lie::None, 3).await;
        calm.faults.clear();
        let nothing = end(&judge(&calm, Order::Linearizable));
        assert_eq!(nothing.unwrap_err().exit_code, 2);
    }

    #[test]
    fn the_command_that_repeats_a_run_gives_the_same_schedule() {
        let args = parse("--faults kill,partition --nodes 5 --duration 90s --no-moves").unwrap();
        let again = command(&args, 7);
        let again = parse(again.strip_prefix("quorate chaos ").unwrap()).unwrap();
        assert_eq!(again.seed, Some(7));
        assert_eq!(command(&again, 7), command(&args, 7));
    }
}
