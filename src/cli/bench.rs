//! `quorate bench`: many clients, each one request after the other.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets;
use futures::StreamExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::load;
use crate::cli::load::Action;
use crate::cli::load::Kind;
use crate::cli::load::Sequence;
use crate::cli::load::Tally;
use crate::client::Kv;
use crate::client::kv::ReadOptions;
use crate::client::kv::ScanOptions;
use crate::client::kv::WriteOptions;
use crate::error::Result;
use crate::types::KeyRange;
use crate::types::key::VALUE_BYTES_MAX;
use crate::types::request::ReadKind;

/// Requests of so many clients go well over one connection.
const CLIENTS_PER_CONNECTION: usize = 32;
/// Seeds of clients lie apart from those of the filling.
const FILL_SEED: u64 = 1 << 32;

/// How fresh reads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Freshness {
    /// Every acknowledged write is seen
    Linearizable,
    /// Whatever the node asked has
    Follower,
}

/// `quorate bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Stores keys under --prefix and leaves them there. Latencies are those of requests that were answered,
with all their attempts.

Example:
  quorate bench put --clients 64 --duration 10s
  quorate bench mixed --read-percent 90 -o json
  quorate bench get --read follower --endpoints 127.0.0.1:7400,127.0.0.1:7410")]
pub struct BenchArgs {
    /// What is measured
    #[arg(value_enum)]
    kind: Kind,
    /// Clients at the same time, each with one request under way
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    clients: u64,
    /// Connections that the clients share, spread over the endpoints [default: one for 32 clients, and
    /// one for each endpoint at least]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: Option<u64>,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::parse_time)]
    duration: Duration,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=VALUE_BYTES_MAX as u64))]
    value_size: u64,
    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// What the keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench/")]
    prefix: String,
    /// How fresh reads are
    #[arg(long, value_enum, default_value = "linearizable")]
    read: Freshness,
    /// Reads among the requests of `mixed`
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=100))]
    read_percent: u64,
    /// Keys in one scan
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    scan_keys: u64,
    /// Do not store all keys first: they are there
    #[arg(long)]
    no_fill: bool,
}

/// Runs a load and reports it.
pub async fn run(args: BenchArgs, context: &Context) -> Result<(), Failure> {
    let connections = connections(&args, context)?;
    let fills = args.kind != Kind::Put && !args.no_fill;
    if fills {
        fill(&args, &connections, context).await?;
    }
    let (tally, elapsed) = load(&args, &connections, context).await?;
    let failure = tally.first_error.clone().map(Failure::from);
    if tally.count() == 0 {
        let nothing = || Failure::error("no request was answered");
        return Err(failure.unwrap_or_else(nothing));
    }
    print_report(&args, connections.len(), &tally, elapsed, context)
}

fn connections(args: &BenchArgs, context: &Context) -> Result<Vec<Kv>, Failure> {
    let clients = usize::try_from(args.clients).unwrap_or(usize::MAX);
    let endpoints = context.global.endpoints.len();
    let usual = clients.div_ceil(CLIENTS_PER_CONNECTION).max(endpoints);
    let wanted = args
        .connections
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let count = wanted.unwrap_or(usual).min(clients);
    let connections = (0..count).map(|first| context.kv_of_its_own(first, context.timeout()));
    connections.collect()
}

async fn fill(args: &BenchArgs, connections: &[Kv], context: &Context) -> Result<(), Failure> {
    let keys = args.keys;
    context.world.tell(format!("storing {keys} keys"));
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..args.clients.min(keys) {
        let kv = connections[client as usize % connections.len()].clone();
        let args = args.clone();
        let next = next.clone();
        clients.spawn(async move {
            let mut sequence = Sequence::new(FILL_SEED + client);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= args.keys {
                    return Ok(());
                }
                put(&kv, &args, number, &mut sequence).await?;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        let result: Result<()> = ended.map_err(|error| Failure::error(error.to_string()))?;
        result.map_err(|error| Failure::from(error).while_doing("storing the keys"))?;
    }
    Ok(())
}

async fn load(
    args: &BenchArgs,
    connections: &[Kv],
    context: &Context,
) -> Result<(Tally, Duration), Failure> {
    let started = Instant::now();
    let end = started + args.duration;
    let counts = Arc::new(Counts::default());
    let mut clients = JoinSet::new();
    for client in 0..args.clients {
        let kv = connections[client as usize % connections.len()].clone();
        clients.spawn(drive(kv, args.clone(), client, end, counts.clone()));
    }
    let mut all = Tally::default();
    let mut second =
        tokio::time::interval_at(started + Duration::from_secs(1), Duration::from_secs(1));
    let mut seen = 0;
    loop {
        // Cancel-safe: a tick and a join are each taken whole or not at all.
        tokio::select! {
            biased;
            ended = clients.join_next() => match ended {
                Some(tally) => all.add(tally.map_err(|error| Failure::error(error.to_string()))?),
                None => return Ok((all, started.elapsed())),
            },
            _ = second.tick() => {
                let done = counts.done.load(Ordering::Relaxed);
                let failed = counts.failed.load(Ordering::Relaxed);
                let passed = started.elapsed().as_secs();
                let rate = done - seen;
                context.world.tell(format!("{passed:>4} s {rate:>9} ops/s {failed:>6} errors"));
                seen = done;
            }
        }
    }
}

/// For the line of each second.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
}

/// One client: one request after the other, until the end.
async fn drive(kv: Kv, args: BenchArgs, client: u64, end: Instant, counts: Arc<Counts>) -> Tally {
    let mut tally = Tally::default();
    let mut sequence = Sequence::new(client);
    while Instant::now() < end {
        let action = sequence.action(args.kind, args.read_percent);
        let number = sequence.below(args.keys);
        let sent = Instant::now();
        match act(&kv, &args, action, number, &mut sequence).await {
            Ok(()) => {
                tally.done(action, sent.elapsed());
                counts.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed(error);
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    tally
}

async fn act(
    kv: &Kv,
    args: &BenchArgs,
    action: Action,
    number: u64,
    sequence: &mut Sequence,
) -> Result<()> {
    let options = ReadOptions {
        read: match args.read {
            Freshness::Linearizable => ReadKind::Linearizable,
            Freshness::Follower => ReadKind::Follower,
        },
        deadline: None,
    };
    match action {
        Action::Put => put(kv, args, number, sequence).await,
        Action::Get => {
            kv.get(load::key(&args.prefix, number), options).await?;
            Ok(())
        }
        Action::Scan => {
            let mut scan = ScanOptions::of(KeyRange {
                start: load::key(&args.prefix, number),
                end: KeyRange::of_prefix(args.prefix.as_bytes()).end,
            });
            scan.limit = Some(args.scan_keys);
            scan.options = options;
            let mut pages = kv.scan(scan);
            while let Some(page) = pages.next().await {
                page?;
            }
            Ok(())
        }
    }
}

async fn put(kv: &Kv, args: &BenchArgs, number: u64, sequence: &mut Sequence) -> Result<()> {
    let key = load::key(&args.prefix, number);
    let length = usize::try_from(args.value_size).unwrap_or(VALUE_BYTES_MAX);
    let value = sequence.value(length);
    kv.put(key, value, WriteOptions::default()).await?;
    Ok(())
}

fn print_report(
    args: &BenchArgs,
    connections: usize,
    tally: &Tally,
    elapsed: Duration,
    context: &Context,
) -> Result<(), Failure> {
    if context.is_json() {
        let mut report = tally.to_json(elapsed);
        report["clients"] = args.clients.into();
        report["connections"] = connections.into();
        report["value_bytes"] = args.value_size.into();
        report["keys"] = args.keys.into();
        return context.print_json(report);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "REQUEST", "COUNT", "OPS/S", "P50 MS", "P95 MS", "P99 MS", "MAX MS",
    ]);
    table.add_rows(tally.rows(elapsed));
    context.world.print(format!("{table}\n"))?;
    if let Some(errors) = tally.errors_line() {
        context.world.print(format!("{errors}\n"))?;
    }
    if let Some(error) = &tally.first_error {
        context.world.tell(format!("the first error: {error}"));
    }
    Ok(())
}
