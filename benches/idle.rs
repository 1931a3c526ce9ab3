//! What shards cost that nobody uses: three nodes with so many of them, and what part of a core each node takes.
//!
//! `cargo bench --bench idle -- --shards 1000`

#[path = "cluster/mod.rs"]
mod cluster;

use std::time::Duration;

use clap::Parser;
use cluster::Cluster;
use cluster::Failed;
use cluster::PATIENCE;
use quorate::cli::load::key;
use quorate::client::Admin;
use quorate::types::ShardId;
use quorate::types::overview::Arrangement;
use quorate::wire::request::OverviewQuery;
use tokio::time::Instant;
use tokio::time::sleep;

const NODES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Clock ticks a second in which the kernel says what a process has used; the same on every Linux.
const TICKS: f64 = 100.0;

#[derive(Parser)]
#[command(about = "What shards cost that nobody uses")]
struct Args {
    /// How many
    #[arg(long, default_value_t = 1_000)]
    shards: u64,
    /// Milliseconds between the heartbeats of a shard's leader; otherwise the nodes' default. The longer, the more of
    /// what is left is what placement costs
    #[arg(long, value_name = "MS")]
    heartbeat: Option<u64>,
    /// How long it is looked
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    window: Duration,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start_with(dir.path().to_owned(), NODES, pace(args.heartbeat)).await?;
    let admin = Admin::new(cluster.sender());
    let merge_bytes = Arrangement::SetSetting {
        name: "merge_bytes".to_owned(),
        value: Some("0".to_owned()),
    };
    admin.arrange(merge_bytes, None).await?;
    let began = Instant::now();
    let mut last = ShardId(1);
    for number in 1..args.shards {
        let (_, right) = admin
            .split_shard(last, key("", number), Some(PATIENCE))
            .await?;
        last = right.id;
    }
    println!("{} shards after {:.0?}", args.shards, began.elapsed());
    quiet(&admin, args.shards).await?;
    let used = |node| used(&cluster, node);
    let before = (0..NODES).map(used).collect::<Result<Vec<f64>, Failed>>()?;
    let began = Instant::now();
    sleep(args.window).await;
    let elapsed = began.elapsed().as_secs_f64();
    for (node, before) in before.iter().enumerate() {
        let share = (used(node)? - before) / elapsed;
        println!("n{}: {:.1} % of a core", node + 1, share * 100.0);
    }
    Ok(())
}

/// Elections wait for as many heartbeats as they do by default.
fn pace(heartbeat: Option<u64>) -> Vec<String> {
    let Some(heartbeat) = heartbeat else {
        return Vec::new();
    };
    vec![
        format!("--heartbeat-interval={heartbeat}ms"),
        format!("--election-timeout-min={}ms", heartbeat * 3),
        format!("--election-timeout-max={}ms", heartbeat * 9 / 2),
    ]
}

/// Returns when every shard is reported and nothing is under way.
async fn quiet(admin: &Admin, shards: u64) -> Result<(), Failed> {
    let end = Instant::now() + PATIENCE;
    loop {
        let overview = admin.overview(OverviewQuery { shards: true }, None).await?;
        let reported = overview
            .shards
            .iter()
            .filter(|shard| shard.report.is_some());
        let reported = reported.count() as u64;
        if reported == shards && overview.operators.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{reported} shards of {shards} are reported").into());
        }
        sleep(PAUSE).await;
    }
}

/// Seconds of a core that a node has used so far.
fn used(cluster: &Cluster, node: usize) -> Result<f64, Failed> {
    let pid = cluster.processes.pid(node).ok_or("a node does not run")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: the 12th and 13th are its own and the kernel's.
    let (_, fields) = stat
        .rsplit_once(')')
        .ok_or("an unknown form of /proc/PID/stat")?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / TICKS)
}
