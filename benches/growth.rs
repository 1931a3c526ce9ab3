//! What it costs the writers that a cluster grows: three nodes are filled until their shards have split, two more
//! join, and the same writers go on beneath it. Prints what the new nodes got, and the latencies before, during and
//! after the move. Fails when a write failed or what was acknowledged is not there.
//!
//! `cargo bench --bench growth -- --mib 2048`

#[path = "cluster/mod.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use clap::Parser;
use cluster::Cluster;
use cluster::Failed;
use cluster::PATIENCE;
use futures::StreamExt as _;
use quorate::cli::load::Action;
use quorate::cli::load::Sequence;
use quorate::cli::load::Tally;
use quorate::cli::load::key;
use quorate::client::Admin;
use quorate::client::Kv;
use quorate::client::kv::ScanOptions;
use quorate::client::kv::WriteOptions;
use quorate::env::clock::Clock;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::Value;
use quorate::types::overview::Arrangement;
use quorate::types::overview::Overview;
use quorate::wire::request::OverviewQuery;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;

const WRITERS: u64 = 4;
const NODES: usize = 3;
const JOINING: usize = 2;
const PAUSE: Duration = Duration::from_millis(500);
/// A put that takes longer is told of when it is done, to be looked for in the nodes' logs.
const SLOW: Duration = Duration::from_secs(1);
/// Of the mean, in hundredths: how far a node's bytes may be off, and its leaders where that is more than one.
const OFF_MAX: u64 = 15;

#[derive(Parser)]
#[command(about = "What it costs the writers that a cluster grows")]
struct Args {
    /// MiB that the writers store before the cluster grows
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 16_384)]
    value_size: usize,
    /// How long latencies are measured before and after the move
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    window: Duration,
    /// Placement's setting snapshot_bytes_per_second; otherwise its default
    #[arg(long, value_name = "BYTES")]
    pace: Option<u64>,
    /// Where the nodes keep their data while it lasts; otherwise a temporary directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one writer has had acknowledged: how often each of its keys was written.
type Written = BTreeMap<u64, u64>;

/// A writer's keys, and how it goes on.
struct Writer {
    number: u64,
    kv: Kv,
    value_size: usize,
    sequence: Sequence,
    written: Written,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let temporary = tempfile::tempdir()?;
    let dir = args.dir.clone().unwrap_or(temporary.path().to_owned());
    let mut cluster = Cluster::start(dir, NODES).await?;
    let admin = Admin::new(cluster.sender());
    if let Some(pace) = args.pace {
        let setting = Arrangement::SetSetting {
            name: "snapshot_bytes_per_second".to_owned(),
            value: Some(pace.to_string()),
        };
        admin.arrange(setting, None).await?;
    }
    let writers = (0..WRITERS).map(|number| Writer {
        number,
        kv: Kv::new(cluster.sender()),
        value_size: args.value_size,
        sequence: Sequence::new(number),
        written: Written::new(),
    });
    let mut writers: Vec<Writer> = writers.collect();
    let each = (args.mib << 20) / args.value_size as u64 / WRITERS;
    let (filled, _) = during(
        &mut writers,
        Writer::fill,
        each,
        std::future::pending::<()>(),
    )
    .await;
    report("fill", &filled);
    let split = settled(&admin, NODES).await?;
    println!("{} shards on {NODES} nodes", split.shards.len());

    let window = || sleep(args.window);
    let (before, _) = during(&mut writers, Writer::renew, u64::MAX, window()).await;
    report("before", &before);
    let began = Instant::now();
    cluster.join(JOINING).await?;
    let all = NODES + JOINING;
    let (moving, even) = during(&mut writers, Writer::renew, u64::MAX, settled(&admin, all)).await;
    let even = even.ok_or("the writers ended before the move")??;
    report("during the move", &moving);
    println!("even after {:.0?}", began.elapsed());
    show_shares(&even);
    let (after, _) = during(&mut writers, Writer::renew, u64::MAX, window()).await;
    report("after", &after);
    let ratio = p99(&moving) / p99(&before);
    println!("p99 of a put during the move: {ratio:.2} times that before it");

    let tallies = [filled, before, moving, after];
    let failed: u64 = tallies.iter().map(Measured::errors).sum();
    let missing = missing(&writers).await?;
    println!("{failed} writes failed, {missing} acknowledged values not found");
    match (failed, missing) {
        (0, 0) => Ok(()),
        _ => Err("that must not be".into()),
    }
}

/// What was measured, and how long.
struct Measured {
    tally: Tally,
    elapsed: Duration,
}

impl Measured {
    fn errors(&self) -> u64 {
        self.tally.error_count()
    }
}

fn report(what: &str, measured: &Measured) {
    for row in measured.tally.rows(measured.elapsed) {
        let [_, count, rate, p50, p95, p99, max] = row;
        println!(
            "{what:<16} {count:>8} puts, {rate:>6}/s; p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, at most {max} ms"
        );
    }
    if let Some(errors) = measured.tally.errors_line() {
        println!("{what:<16} {errors}: {:?}", measured.tally.first_error);
    }
}

fn p99(measured: &Measured) -> f64 {
    let report = measured.tally.to_json(measured.elapsed);
    report["put"]["p99_us"].as_f64().unwrap_or(f64::NAN)
}

/// All writers write until each has done so many steps, or until something has happened; says what that gave.
async fn during<T>(
    writers: &mut Vec<Writer>,
    step: fn(&mut Writer) -> (Key, Value),
    steps: u64,
    happens: impl Future<Output = T>,
) -> (Measured, Option<T>) {
    let (began, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let mut work = JoinSet::new();
    for writer in writers.drain(..) {
        work.spawn(writer.write(step, steps, Arc::clone(&stop)));
    }
    let mut tally = Tally::default();
    let mut happens = std::pin::pin!(happens);
    let mut happened = None;
    loop {
        tokio::select! {
            ended = work.join_next() => match ended {
                Some(ended) => {
                    let (writer, part) = ended.expect("no writer panics");
                    writers.push(writer);
                    tally.add(part);
                }
                None => break,
            },
            outcome = &mut happens, if happened.is_none() => {
                happened = Some(outcome);
                stop.store(true, Ordering::Relaxed);
            }
        }
    }
    let elapsed = began.elapsed();
    (Measured { tally, elapsed }, happened)
}

impl Writer {
    async fn write(
        mut self,
        step: fn(&mut Writer) -> (Key, Value),
        steps: u64,
        stop: Arc<AtomicBool>,
    ) -> (Writer, Tally) {
        let mut tally = Tally::default();
        for _ in 0..steps {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (key, value) = step(&mut self);
            let (sent, name) = (Instant::now(), key.clone());
            match self.kv.put(key, value, WriteOptions::default()).await {
                Ok(_) => tally.done(Action::Put, sent.elapsed()),
                Err(error) => tally.failed(error),
            }
            if sent.elapsed() > SLOW {
                let at = UNIX_EPOCH + Duration::from_millis(Clock::system().wall_ms());
                let at = humantime::format_rfc3339_millis(at);
                println!("{at}: {name:?} took {:.1?}", sent.elapsed());
            }
        }
        (self, tally)
    }

    /// A new key.
    fn fill(&mut self) -> (Key, Value) {
        let number = self.written.len() as u64;
        self.put(number)
    }

    /// One of its keys.
    fn renew(&mut self) -> (Key, Value) {
        let number = self.sequence.below(self.written.len() as u64);
        self.put(number)
    }

    fn put(&mut self, number: u64) -> (Key, Value) {
        let times = self.written.entry(number).or_default();
        *times += 1;
        let value = value(self.number, number, *times, self.value_size);
        (key(&self.prefix(), number), value)
    }

    fn prefix(&self) -> String {
        format!("writer{}/", self.number)
    }
}

/// What a key has when it was written so often.
fn value(writer: u64, number: u64, times: u64, size: usize) -> Value {
    Sequence::new(writer << 56 | number << 24 | times).value(size)
}

/// How many keys do not have what was acknowledged last.
async fn missing(writers: &[Writer]) -> Result<u64, Failed> {
    let mut missing = 0;
    for writer in writers {
        let mut expected = writer.written.iter();
        let mut pages = writer.kv.scan(ScanOptions::of(KeyRange::of_prefix(
            writer.prefix().as_bytes(),
        )));
        while let Some(page) = pages.next().await {
            for item in page?.items {
                let Some((number, times)) = expected.next() else {
                    return Err("a key is there that nobody has written".into());
                };
                let is_there = item.key == key(&writer.prefix(), *number)
                    && item.versioned.value
                        == value(writer.number, *number, *times, writer.value_size);
                missing += u64::from(!is_there);
            }
        }
        missing += expected.count() as u64;
    }
    Ok(missing)
}

/// Returns when so many nodes have their share, every shard is smaller than the size at which it is split, and
/// nothing is under way.
async fn settled(admin: &Admin, nodes: usize) -> Result<Overview, Failed> {
    let end = Instant::now() + PATIENCE;
    loop {
        let query = OverviewQuery { shards: true };
        let overview = admin.overview(query, None).await?;
        match is_settled(&overview, nodes) {
            Ok(()) => return Ok(overview),
            Err(why) if Instant::now() > end => return Err(why.into()),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn is_settled(overview: &Overview, nodes: usize) -> Result<(), String> {
    if let Some(operator) = overview.operators.first() {
        return Err(format!("{} is under way", operator.action));
    }
    let split_bytes = 64 << 20;
    for shard in &overview.shards {
        let report = shard.report.as_ref();
        let bytes = report.map_or(u64::MAX, |report| report.size.bytes);
        if bytes >= split_bytes {
            return Err(format!("{} has {bytes} bytes", shard.shard.id));
        }
    }
    let shares = overview.shares();
    let bytes = shares.values().map(|share| share.bytes);
    let leaders = shares.values().map(|share| share.leaders as u64);
    match shares.len() == nodes && is_even(bytes, 0) && is_even(leaders, 1) {
        true => Ok(()),
        false => Err(format!("bytes and leaders are {shares:?}")),
    }
}

/// Whether each is as near to the mean as is asked for, or this near.
fn is_even(shares: impl Iterator<Item = u64> + Clone, near: u64) -> bool {
    let (sum, count) = (shares.clone().sum::<u64>(), shares.clone().count() as u64);
    let off_max = (sum * OFF_MAX / 100).max(near * count);
    shares
        .map(|share| (share * count).abs_diff(sum))
        .all(|off| off <= off_max)
}

fn show_shares(overview: &Overview) {
    let shares = overview.shares();
    let count = shares.len() as f64;
    let bytes = shares.values().map(|share| share.bytes).sum::<u64>() as f64 / count;
    let leaders = shares.values().map(|share| share.leaders).sum::<usize>() as f64 / count;
    for (node, share) in &shares {
        println!(
            "{node}: {:.1} MiB ({:+.1} % of the mean), {} leaders ({:+.1} %)",
            share.bytes as f64 / f64::from(1 << 20),
            (share.bytes as f64 / bytes - 1.0) * 100.0,
            share.leaders,
            (share.leaders as f64 / leaders - 1.0) * 100.0
        );
    }
}
