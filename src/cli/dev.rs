//! `quorate dev`: a whole cluster on this machine, each node a child process.
//!
//! A child stops when its standard input ends, so none outlives this process, however it ends. Each
//! has its own process group: Ctrl-C reaches this process alone, which stops the children in order.

use std::fs::File;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::process::ChildStdin;
use tokio::process::Command;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::Instant;

use crate::cli::failure::Failure;
use crate::env::files::DiskFiles;
use crate::env::files::Files;

/// What there is to do for a person who has the cluster.
const HELP: &str = "\
Examples:
  Three nodes, data in ./.quorate-dev:
    quorate dev

  Five nodes, elsewhere, on ports 9000, 9001, 9002, 9010, ...:
    quorate dev --dir /tmp/play --nodes 5 --base-port 9000

To start over, stop it and remove the directory.";

/// What the cluster is told on the command line.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Where the nodes keep their data and logs; data of an earlier run is found again
    #[arg(long, value_name = "DIR", default_value = ".quorate-dev")]
    dir: PathBuf,

    /// How many nodes [default: 3, or as many as the directory has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: Option<u16>,

    /// The first node's client port; its node port is one above, its HTTP port two, the next node's ten
    /// [default: 7400, or as the directory has it]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: Option<u16>,
}

/// How long the cluster may take until every node is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often a node is asked whether it is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a dead node stays away: long enough to see the others go on without it.
const RESTART_AFTER: Duration = Duration::from_secs(3);

/// How long nodes may take to stop: above their drain timeout.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Lines of a log shown when its node failed.
const LOG_LINES_SHOWN: usize = 15;

/// Runs the cluster until it is told to stop.
pub async fn run(args: Args) -> Result<(), Failure> {
    DiskFiles.create_dir_all(&args.dir)?;
    let _lock = DiskFiles
        .lock(&args.dir.join("lock"))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Failure::bad_input(format!(
                "another `quorate dev` runs in {}; stop it, or choose another --dir",
                args.dir.display()
            )),
            _ => Failure::from(error).while_doing(format!("lock {}", args.dir.display())),
        })?;
    let (plan, found) = Plan::settle(&args)?;
    plan.check_ports()?;
    plan.save()?;
    let mut cluster = Cluster::start(Arc::new(plan))?;
    let outcome = cluster.live(found).await;
    println!("stopping");
    cluster.stop().await?;
    outcome?;
    println!("stopped; the data is in {}", args.dir.display());
    Ok(())
}

/// What the cluster looks like; kept beside its data, because the nodes' addresses are part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    #[serde(skip)]
    dir: PathBuf,
    nodes: u16,
    base_port: u16,
}

/// Which of a node's ports.
#[derive(Debug, Clone, Copy)]
enum Port {
    Client,
    Node,
    Http,
}

impl Plan {
    /// What was asked for, with what the directory has; and whether it had anything.
    fn settle(args: &Args) -> Result<(Plan, bool), Failure> {
        let Some(found) = Plan::load(&args.dir)? else {
            let plan = Plan {
                dir: args.dir.clone(),
                nodes: args.nodes.unwrap_or(3),
                base_port: args.base_port.unwrap_or(7400),
            };
            return Ok((plan, false));
        };
        let asked = [
            ("--nodes", args.nodes, found.nodes),
            ("--base-port", args.base_port, found.base_port),
        ];
        for (flag, asked, has) in asked {
            if asked.is_some_and(|asked| asked != has) {
                return Err(Failure::bad_input(format!(
                    "{flag}: the cluster in {} was made with {flag} {has}; leave the flag out, or choose another --dir",
                    args.dir.display()
                )));
            }
        }
        Ok((found, true))
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("dev.json")
    }

    fn load(dir: &Path) -> Result<Option<Plan>, Failure> {
        let path = Plan::file(dir);
        let Some(bytes) = DiskFiles.read(&path)? else {
            return Ok(None);
        };
        let plan: Plan = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::bad_input(format!("{}: {error}", path.display())))?;
        Ok(Some(Plan {
            dir: dir.to_owned(),
            ..plan
        }))
    }

    fn save(&self) -> Result<(), Failure> {
        let json = serde_json::to_vec_pretty(self).expect("two numbers are always JSON");
        Ok(DiskFiles.write_atomically(&Plan::file(&self.dir), &json)?)
    }

    fn name(&self, place: u16) -> String {
        format!("n{}", place + 1)
    }

    fn address(&self, place: u16, port: Port) -> SocketAddr {
        let offset = match port {
            Port::Client => 0,
            Port::Node => 1,
            Port::Http => 2,
        };
        SocketAddr::from(([127, 0, 0, 1], self.base_port + place * 10 + offset))
    }

    fn log(&self, place: u16) -> PathBuf {
        self.dir.join(format!("{}.log", self.name(place)))
    }

    fn places(&self) -> impl Iterator<Item = u16> + use<> {
        0..self.nodes
    }

    /// A port that is taken is found before anything starts: only then can the message say what to do.
    fn check_ports(&self) -> Result<(), Failure> {
        for place in self.places() {
            for port in [Port::Client, Port::Node, Port::Http] {
                let address = self.address(place, port);
                TcpListener::bind(address).map_err(|error| {
                    Failure::bad_input(format!(
                        "{address}: {error}; stop whoever has it, or choose another --base-port (and --dir)"
                    ))
                })?;
            }
        }
        Ok(())
    }

    fn arguments(&self, place: u16) -> Vec<String> {
        let listed = self
            .places()
            .map(|other| format!("{}={}", self.name(other), self.address(other, Port::Node)));
        let listed: Vec<String> = listed.collect();
        let data = self.dir.join(self.name(place));
        let options = [
            ("--name", self.name(place)),
            ("--data-dir", data.display().to_string()),
            ("--initial-cluster", listed.join(",")),
            ("--initial-cluster-token", "dev".into()),
            (
                "--listen-client",
                self.address(place, Port::Client).to_string(),
            ),
            ("--listen-node", self.address(place, Port::Node).to_string()),
            ("--listen-http", self.address(place, Port::Http).to_string()),
            ("--log-format", "text".into()),
        ];
        let mut arguments = vec!["serve".to_owned(), "--stop-on-stdin-close".to_owned()];
        for (flag, value) in options {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments
    }

    /// What to type to reach a node.
    fn program(&self, place: u16) -> String {
        let called = std::env::args()
            .next()
            .unwrap_or_else(|| "quorate".to_owned());
        match self.address(place, Port::Client) {
            address if address.port() == 7400 => called,
            address => format!("{called} --endpoints {address}"),
        }
    }
}

/// One child. Its standard input stays open as long as it shall run.
struct Process {
    child: Child,
    _stdin: Option<ChildStdin>,
}

struct Node {
    place: u16,
    state: State,
}

enum State {
    Running(Box<Process>),
    Dead { restart_at: Instant },
}

struct Cluster {
    plan: Arc<Plan>,
    nodes: Vec<Node>,
    terminate: Signal,
    interrupt: Signal,
}

/// What happened while the cluster ran.
enum Event {
    Stop,
    Exited(usize, ExitStatus),
    RestartDue(usize),
}

impl Cluster {
    fn start(plan: Arc<Plan>) -> Result<Cluster, Failure> {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            plan,
        };
        for place in cluster.plan.places() {
            let state = State::Running(Box::new(spawn(&cluster.plan, place)?));
            cluster.nodes.push(Node { place, state });
        }
        Ok(cluster)
    }

    /// Until somebody asks to stop, or the cluster cannot start.
    async fn live(&mut self, found: bool) -> Result<(), Failure> {
        let starting = if found {
            "found data of an earlier run; starting"
        } else {
            "starting"
        };
        let (nodes, dir) = (self.plan.nodes, self.plan.dir.display());
        println!("{starting} {nodes} nodes in {dir}");
        let mut ready = Box::pin(all_ready(Arc::clone(&self.plan)));
        let by = Instant::now() + READY_WITHIN;
        loop {
            tokio::select! {
                biased;
                event = self.next() => match event {
                    Event::Stop => return Ok(()),
                    Event::Exited(index, status) => return Err(self.died_early(index, status)),
                    Event::RestartDue(_) => {}
                },
                () = &mut ready => break,
                () = tokio::time::sleep_until(by) => return Err(self.never_ready().await),
            }
        }
        self.print_ready();
        loop {
            match self.next().await {
                Event::Stop => return Ok(()),
                Event::Exited(index, status) => self.bury(index, status),
                Event::RestartDue(index) => self.revive(index)?,
            }
        }
    }

    /// The next thing that happens. Cancel-safe: what it waits for stays where it is.
    async fn next(&mut self) -> Event {
        let events = self.nodes.iter_mut().enumerate().map(|(index, node)| {
            Box::pin(async move {
                match &mut node.state {
                    State::Running(process) => {
                        let status = process.child.wait().await;
                        Event::Exited(index, status.unwrap_or_default())
                    }
                    State::Dead { restart_at } => {
                        tokio::time::sleep_until(*restart_at).await;
                        Event::RestartDue(index)
                    }
                }
            })
        });
        let first = futures::future::select_all(events);
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.terminate.recv() => Event::Stop,
            (event, ..) = first => event,
        }
    }

    fn died_early(&self, index: usize, status: ExitStatus) -> Failure {
        let place = self.nodes[index].place;
        Failure::error(format!(
            "{} ended before the cluster was ready ({status}); {}",
            self.plan.name(place),
            last_lines(&self.plan.log(place))
        ))
    }

    async fn never_ready(&self) -> Failure {
        let seconds = READY_WITHIN.as_secs();
        for place in self.plan.places() {
            let http = self.plan.address(place, Port::Http);
            if let Err(reason) = probe(http).await {
                return Failure::unreachable(format!(
                    "{} is not ready after {seconds} s: {reason}; {}",
                    self.plan.name(place),
                    last_lines(&self.plan.log(place))
                ));
            }
        }
        Failure::unreachable(format!("the cluster was not ready within {seconds} s"))
    }

    fn print_ready(&self) {
        let plan = &self.plan;
        println!("\n{} nodes are ready:\n", plan.nodes);
        for node in &self.nodes {
            let place = node.place;
            println!(
                "  {}  clients {}  http://{}  pid {}  log {}",
                plan.name(place),
                plan.address(place, Port::Client),
                plan.address(place, Port::Http),
                pid(node),
                plan.log(place).display()
            );
        }
        let last = plan.nodes - 1;
        println!("\nTry:\n  {} put hello world", plan.program(0));
        println!("  {} get hello", plan.program(last));
        if let Some(victim) = self.nodes.get(1) {
            println!("\nBreak it, and see put and get go on:");
            println!("  kill -9 {}", pid(victim));
            println!(
                "{} is started again {} s later.",
                plan.name(victim.place),
                RESTART_AFTER.as_secs()
            );
        }
        println!("\nCtrl-C stops the nodes and keeps their data.");
    }

    fn bury(&mut self, index: usize, status: ExitStatus) {
        let node = &mut self.nodes[index];
        println!(
            "{} ended ({status}); it is started again in {} s; its log: {}",
            self.plan.name(node.place),
            RESTART_AFTER.as_secs(),
            self.plan.log(node.place).display()
        );
        node.state = State::Dead {
            restart_at: Instant::now() + RESTART_AFTER,
        };
    }

    fn revive(&mut self, index: usize) -> Result<(), Failure> {
        let node = &mut self.nodes[index];
        node.state = State::Running(Box::new(spawn(&self.plan, node.place)?));
        println!(
            "{} runs again, pid {}",
            self.plan.name(node.place),
            pid(node)
        );
        Ok(())
    }

    /// Ends the standard input of all, and waits for all. Who does not stop, or a second Ctrl-C, ends
    /// by force: the log on disk is made for that.
    async fn stop(mut self) -> Result<(), Failure> {
        let nodes = std::mem::take(&mut self.nodes);
        let children = nodes.into_iter().filter_map(|node| match node.state {
            // The standard input is dropped here.
            State::Running(process) => Some((node.place, process.child)),
            State::Dead { .. } => None,
        });
        let mut children: Vec<(u16, Child)> = children.collect();
        let waits = children.iter_mut().map(|(_, child)| child.wait());
        let all = futures::future::join_all(waits);
        let late = tokio::select! {
            biased;
            _ = all => None,
            _ = self.interrupt.recv() => Some("ended by force, as asked"),
            _ = tokio::time::sleep(STOP_WITHIN) => Some("did not stop in time; ended by force"),
        };
        let Some(how) = late else {
            return Ok(());
        };
        for (place, child) in &mut children {
            if child.try_wait()?.is_none() {
                println!("{}: {how}", self.plan.name(*place));
                child.kill().await?;
            }
        }
        Ok(())
    }
}

fn pid(node: &Node) -> String {
    match &node.state {
        State::Running(process) => process
            .child
            .id()
            .map_or_else(|| "?".to_owned(), |pid| pid.to_string()),
        State::Dead { .. } => "-".to_owned(),
    }
}

fn spawn(plan: &Plan, place: u16) -> Result<Process, Failure> {
    let program = std::env::current_exe()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(plan.log(place))?;
    let mut command = Command::new(&program);
    command
        .args(plan.arguments(place))
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // What is meant for a single node would hold for all of them.
        if text.starts_with("QUORATE_") && text != "QUORATE_LOG" {
            command.env_remove(&name);
        }
    }
    let mut child = command.spawn().map_err(|error| {
        Failure::from(error).while_doing(format!("start {}", program.display()))
    })?;
    // Waiting for a child closes its input unless somebody else has it.
    let stdin = child.stdin.take();
    Ok(Process {
        child,
        _stdin: stdin,
    })
}

async fn all_ready(plan: Arc<Plan>) {
    for place in plan.places() {
        let http = plan.address(place, Port::Http);
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        loop {
            ticks.tick().await;
            if probe(http).await.is_ok() {
                break;
            }
        }
    }
}

/// Asks a node whether it is ready; else says what it said.
async fn probe(http: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PROBE_TIMEOUT, ask_readyz(http)).await {
        Ok(Ok(answer)) => ready_in(&answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

async fn ask_readyz(http: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer).await?;
    Ok(answer)
}

fn ready_in(answer: &str) -> Result<(), String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split_whitespace().nth(1);
    if status == Some("200") {
        return Ok(());
    }
    Err(body.trim().replace('\n', "; "))
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(LOG_LINES_SHOWN);
    let shown = lines[first..].join("\n  ");
    format!("the end of {}:\n  {shown}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, nodes: Option<u16>, base_port: Option<u16>) -> Args {
        Args {
            dir: dir.to_owned(),
            nodes,
            base_port,
        }
    }

    #[test]
    fn a_directory_keeps_its_nodes_and_ports() {
        let dir = tempfile::tempdir().unwrap();
        let (plan, found) = Plan::settle(&args(dir.path(), Some(5), Some(9000))).unwrap();
        assert!(!found);
        plan.save().unwrap();
        let (again, found) = Plan::settle(&args(dir.path(), None, None)).unwrap();
        assert_eq!((&again, found), (&plan, true));
        let refused = Plan::settle(&args(dir.path(), Some(3), None)).unwrap_err();
        assert!(refused.to_string().contains("--nodes 5"), "{refused}");
        let refused = Plan::settle(&args(dir.path(), None, Some(7400))).unwrap_err();
        assert!(
            refused.to_string().contains("--base-port 9000"),
            "{refused}"
        );
    }

    #[test]
    fn the_children_get_flags_that_serve_takes() {
        let plan = Plan {
            dir: "d".into(),
            nodes: 3,
            base_port: 7400,
        };
        let arguments = plan.arguments(1);
        let text = arguments.join(" ");
        for part in [
            "--name n2 --data-dir d/n2",
            "n1=127.0.0.1:7401,n2=127.0.0.1:7411,n3=127.0.0.1:7421",
            "--listen-client 127.0.0.1:7410 --listen-node 127.0.0.1:7411 --listen-http 127.0.0.1:7412",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        #[derive(clap::Parser)]
        struct Serve {
            #[command(flatten)]
            _args: crate::cli::serve::Args,
        }
        <Serve as clap::Parser>::try_parse_from(arguments).unwrap();
    }

    #[test]
    fn a_taken_port_is_named_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = Plan {
            dir: "d".into(),
            nodes: 1,
            base_port: taken.local_addr().unwrap().port(),
        };
        let refused = plan.check_ports().unwrap_err();
        assert!(refused.to_string().contains("--base-port"), "{refused}");
    }

    #[test]
    fn readiness_is_read_from_the_answer() {
        assert_eq!(ready_in("HTTP/1.1 200 OK\r\nx: y\r\n\r\nok\n"), Ok(()));
        let answer =
            "HTTP/1.1 503 Service Unavailable\r\n\r\n[-] placement failed: no leader\nnot ready\n";
        assert_eq!(
            ready_in(answer),
            Err("[-] placement failed: no leader; not ready".into())
        );
        assert_eq!(ready_in(""), Err(String::new()));
    }
}
