//! `quorate serve`: one node, from its flags to its exit code.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::cli::failure::EXIT_ERROR;
use crate::cli::failure::Failure;
use crate::config;
use crate::config::ConfigError;
use crate::config::flags::ServeFlags;
use crate::env::faults::Faults;
use crate::env::faults::FaultsFile;
use crate::env::faults::LOOK_INTERVAL;
use crate::env::tasks::offload;
use crate::server;
use crate::server::Machine;
use crate::server::Running;
use crate::server::StartError;
use crate::server::options::LogFormat;
use crate::telemetry::log;

/// The node failed while it ran, and has to be looked at (`EX_SOFTWARE`).
pub const EXIT_FATAL: u8 = 70;

const HELP: &str = "\
Each option can also be set by its environment variable, or by its name with underscores in the file
of --config; a flag wins over the variable, the variable over the file, the file over the default.

Examples:
  One node, data in ./quorate-data:
    quorate serve

  The first of three; the list and the token are the same on each:
    quorate serve --name n1 --data-dir /var/lib/quorate \\
      --initial-cluster n1=10.0.0.1:7401,n2=10.0.0.2:7401,n3=10.0.0.3:7401 --initial-cluster-token blue \\
      --listen-client 10.0.0.1:7400 --listen-node 10.0.0.1:7401 --insecure

  The same from a file:
    quorate serve --config /etc/quorate.toml

Exit codes: 0 stopped as asked, 1 error, 3 bad input, 70 failed while running";

/// What a node is told on its command line.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    flags: ServeFlags,

    /// Stop cleanly when standard input ends: so a node does not outlive whoever started it
    #[arg(long, hide = true)]
    stop_on_stdin_close: bool,

    /// Fail as this file says, which is looked at ten times a second: for tests of a whole cluster
    #[arg(long, value_name = "FILE", hide = true)]
    faults_file: Option<PathBuf>,
}

/// Runs a node until it is told to stop, or fails.
pub async fn run(args: Args) -> Result<(), Failure> {
    let options = config::load(&args.flags)?;
    let format = match options.log_format {
        LogFormat::Auto => log::Format::Auto,
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    log::install(&options.log, format).map_err(|error| Failure::bad_input(error.to_string()))?;
    let mut stops = Stops::listen(args.stop_on_stdin_close)?;
    info!(name = %options.name, data_dir = %options.data_dir.display(), version = env!("CARGO_PKG_VERSION"), "starting");
    let (machine, _failing) = machine(args.faults_file);
    let mut running = tokio::select! {
        biased;
        why = stops.next() => {
            info!(why, "stopped before the node was up");
            return Ok(());
        }
        started = server::start(options, machine) => started?,
    };
    info!(client = %running.client_address, node = %running.node_address, http = %running.http_address, "running");
    tokio::select! {
        biased;
        reason = running.failed() => {
            error!(reason, "the node cannot go on");
            Err(Failure::new(EXIT_FATAL, reason))
        }
        why = stops.next() => stop(running, stops, why).await,
    }
}

/// What the node stands on; and, where that is to fail on purpose, the task that makes it fail, which
/// ends with the set.
fn machine(faults_file: Option<PathBuf>) -> (Machine, JoinSet<()>) {
    let mut failing = JoinSet::new();
    let mut machine = Machine::default();
    if let Some(path) = faults_file {
        warn!(path = %path.display(), "this node fails on purpose, as the file says");
        let (file, files) = FaultsFile::new(path, machine.clock.clone(), machine.files);
        machine.files = files;
        failing.spawn(fail(Arc::new(file)));
    }
    (machine, failing)
}

async fn fail(file: Arc<FaultsFile>) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    let mut before = Ok(Faults::default());
    loop {
        ticks.tick().await;
        let file = Arc::clone(&file);
        let looked = offload(move || file.look()).await;
        let now = looked.map_err(|error| error.to_string());
        if now != before {
            info!(?now, "told how to fail");
            before = now;
        }
    }
}

async fn stop(running: Running, mut stops: Stops, why: &'static str) -> Result<(), Failure> {
    info!(why, "stopping; the next signal ends the process at once");
    tokio::select! {
        biased;
        stopped = running.stop() => {
            stopped?;
            info!("stopped");
            Ok(())
        }
        why = stops.next_signal() => {
            warn!(why, "ended at once; what was acknowledged is on disk");
            // Not by returning: that would wait for calls that block.
            std::process::exit(EXIT_ERROR.into());
        }
    }
}

/// Everything that asks the process to stop.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
    stdin: Option<oneshot::Receiver<()>>,
}

impl Stops {
    fn listen(stdin: bool) -> Result<Stops, Failure> {
        Ok(Stops {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            stdin: stdin.then(watch_stdin).transpose()?,
        })
    }

    /// The next reason to stop. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        let ended = async {
            match &mut self.stdin {
                // Without the watcher there is nobody left who could tell.
                Some(ended) => ended.await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        let (terminate, interrupt) = (&mut self.terminate, &mut self.interrupt);
        tokio::select! {
            biased;
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = ended => {
                self.stdin = None;
                "the end of standard input"
            }
        }
    }

    /// The next signal: the end of standard input alone does not hurry anybody. Cancel-safe.
    async fn next_signal(&mut self) -> &'static str {
        self.stdin = None;
        self.next().await
    }
}

/// A thread of its own: the runtime would wait for a read that it had begun before it could end.
fn watch_stdin() -> Result<oneshot::Receiver<()>, Failure> {
    let (ended, receiver) = oneshot::channel();
    let watch = move || {
        let mut bytes = [0; 256];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut bytes).is_ok_and(|count| count > 0) {}
        // Nobody listens any more: the node is stopping already.
        let _ = ended.send(());
    };
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(watch)?;
    Ok(receiver)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::bad_input(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        if error.is_bad_input() {
            Failure::bad_input(error.to_string())
        } else {
            Failure::error(error.to_string())
        }
    }
}
