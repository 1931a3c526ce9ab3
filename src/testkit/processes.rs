//! Real nodes as child processes: started, killed, stopped, wiped, waited for.
//!
//! The nodes run on loopback with ports of their own, or each in a [`Place`] of its own, and write what
//! they say to a file each. They may stand behind a [`Relay`], over which all that they say to each other
//! goes. Dropping a [`Processes`] kills them.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::testkit::relay::Relay;
use crate::testkit::workload::Nodes;
use crate::wire::request::Call;
use crate::wire::request::NodeStatus;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Service;
use crate::wire::request::StatusQuery;

/// What is run, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program.
    pub binary: PathBuf,
    /// How many nodes; 1 to 9.
    pub nodes: usize,
    /// Their data goes to `<dir>/n1`, `<dir>/n2` and so on, what they say to `<dir>/n1.log`. Where
    /// `<dir>/n1` is there already (a mount point, say), it is used.
    pub dir: PathBuf,
    /// Further arguments of `serve`, the same for every node.
    pub arguments: Vec<String>,
}

/// Where a node runs when it is not on loopback: in a network namespace, say.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address there, which the others and this process reach.
    pub address: Ipv4Addr,
    /// The command that brings a program there, in front of the program: `ip netns exec n1`. It must
    /// become the program, not wait for it.
    pub before: Vec<String>,
}

impl Default for Place {
    fn default() -> Place {
        Place {
            address: Ipv4Addr::LOCALHOST,
            before: Vec::new(),
        }
    }
}

/// The nodes, numbered from 0; node 0 is named `n1`.
#[derive(Debug)]
pub struct Processes {
    options: Options,
    nodes: Vec<Node>,
    relay: Option<Relay>,
    /// Whether each node looks at its file of faults.
    has_faults_files: bool,
}

#[derive(Debug)]
struct Node {
    name: String,
    data: PathBuf,
    log: PathBuf,
    place: Place,
    ports: Ports,
    /// Where the others reach it: its own node port, or its door in the relay.
    reached_at: String,
    /// The token with which it joins the others; `None`: it is one of those that form the cluster.
    joins: Option<String>,
    child: Option<Child>,
    /// Beside those of all nodes.
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    node: u16,
    http: u16,
}

/// What is sent to a process.
#[derive(Debug, Clone, Copy)]
enum Signal {
    Stop,
    Continue,
    Terminate,
}

impl Processes {
    /// Finds ports and makes the directories; starts nothing.
    pub fn new(options: Options) -> io::Result<Processes> {
        let places = vec![Place::default(); options.nodes];
        Processes::with(options, places, None)
    }

    /// The same, with a relay between the nodes. Needs a runtime.
    pub fn behind(relay: Relay, options: Options) -> io::Result<Processes> {
        let places = vec![Place::default(); options.nodes];
        Processes::with(options, places, Some(relay))
    }

    /// The same, with one node in each place. The arguments must allow it: `--insecure`.
    pub fn at(places: Vec<Place>, options: Options) -> io::Result<Processes> {
        Processes::with(options, places, None)
    }

    fn with(options: Options, places: Vec<Place>, relay: Option<Relay>) -> io::Result<Processes> {
        assert_eq!(places.len(), options.nodes, "each node has one place");
        let ports = free_ports(3 * options.nodes)?;
        let mut processes = Processes {
            options,
            nodes: Vec::new(),
            relay,
            has_faults_files: false,
        };
        for (place, ports) in places.into_iter().zip(ports.chunks_exact(3)) {
            processes.put(place, ports, None)?;
        }
        Ok(processes)
    }

    /// Has a node started with further arguments from now on.
    pub fn give(&mut self, node: usize, arguments: &[&str]) {
        let arguments = arguments.iter().map(ToString::to_string);
        self.nodes[node].arguments = arguments.collect();
    }

    /// Adds a node that is to join the others with `token`; gives its number. Starts nothing.
    pub fn add(&mut self, token: &str) -> io::Result<usize> {
        self.put(Place::default(), &free_ports(3)?, Some(token.to_owned()))
    }

    fn put(&mut self, place: Place, ports: &[u16], joins: Option<String>) -> io::Result<usize> {
        let number = self.count();
        let mut node = Node::new(&self.options.dir, number, place, ports, joins)?;
        if let Some(relay) = &mut self.relay {
            let listens = SocketAddr::from((node.place.address, node.ports.node));
            node.reached_at = relay.add(listens)?.to_string();
        }
        self.nodes.push(node);
        Ok(number)
    }

    /// What the nodes say to each other goes over it, if there is one.
    pub fn relay(&self) -> Option<&Relay> {
        self.relay.as_ref()
    }

    /// From its next start on each node looks at a file ([`Processes::faults_file`]) that tells it what
    /// its disk and clock do wrong.
    pub fn use_faults_files(&mut self) {
        self.has_faults_files = true;
    }

    /// The file with a node's [`Faults`](crate::env::faults::Faults).
    pub fn faults_file(&self, node: usize) -> PathBuf {
        self.nodes[node].log.with_extension("faults")
    }

    /// How many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The node's process, if it was started.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }

    /// Where the node serves clients.
    pub fn client_address(&self, node: usize) -> String {
        self.nodes[node].address(self.nodes[node].ports.client)
    }

    /// Where the node serves other nodes: itself, not its door in a relay.
    pub fn node_address(&self, node: usize) -> String {
        self.nodes[node].address(self.nodes[node].ports.node)
    }

    /// Where the node serves HTTP.
    pub fn http_address(&self, node: usize) -> String {
        self.nodes[node].address(self.nodes[node].ports.http)
    }

    /// The node's data directory.
    pub fn data(&self, node: usize) -> &Path {
        &self.nodes[node].data
    }

    /// Starts a node that is not running, with the same flags every time.
    pub fn start(&mut self, node: usize) -> io::Result<()> {
        let membership = self.membership(node);
        let mut arguments = self.options.arguments.clone();
        if self.has_faults_files {
            let path = self.faults_file(node).display().to_string();
            arguments.extend(["--faults-file".to_owned(), path]);
        }
        let number = node;
        let node = &mut self.nodes[node];
        arguments.extend(node.arguments.iter().cloned());
        assert!(node.child.is_none(), "{} runs already", node.name);
        let log = node.open_log()?;
        let child = command(&node.place, &self.options.binary)
            .arg("serve")
            .args(["--name", &node.name])
            .arg("--data-dir")
            .arg(&node.data)
            .args(membership)
            .args(["--listen-client", &node.address(node.ports.client)])
            .args(["--listen-node", &node.address(node.ports.node)])
            .args(["--advertise-node", &node.reached_at])
            .args(["--listen-http", &node.address(node.ports.http)])
            .args(arguments)
            // Held open as long as the child is: a node does not outlive a test that was killed.
            .arg("--stop-on-stdin-close")
            .stdin(Stdio::piped())
            // Ctrl-C is for whoever started the nodes, who stops them in order.
            .process_group(0)
            .env("RUST_BACKTRACE", "1")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        if let Some(relay) = &self.relay {
            relay.set_process(number, child.id());
        }
        node.child = Some(child);
        Ok(())
    }

    /// The flags that say with whom a node is in a cluster.
    fn membership(&self, node: usize) -> [String; 4] {
        let listed = || self.nodes.iter().filter(|node| node.joins.is_none());
        let token = "--initial-cluster-token".to_owned();
        match &self.nodes[node].joins {
            None => {
                let list: Vec<String> = listed().map(Node::listed).collect();
                let flag = "--initial-cluster".to_owned();
                [flag, list.join(","), token, TOKEN.to_owned()]
            }
            Some(joins) => {
                let list: Vec<String> = listed().map(|node| node.reached_at.clone()).collect();
                ["--join".to_owned(), list.join(","), token, joins.clone()]
            }
        }
    }

    /// Starts every node that is not running.
    pub fn start_all(&mut self) -> io::Result<()> {
        let stopped = (0..self.count()).filter(|node| self.nodes[*node].child.is_none());
        for node in stopped.collect::<Vec<_>>() {
            self.start(node)?;
        }
        Ok(())
    }

    /// Kills a node as `kill -9` does and waits until it is gone. Nothing when it is not running.
    pub fn kill(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].kill()
    }

    /// Kills all nodes at once.
    pub fn kill_all(&mut self) -> io::Result<()> {
        let all: Vec<usize> = (0..self.count()).collect();
        self.kill_these(&all)
    }

    /// Kills these nodes at once: all are sent the signal before the first is waited for.
    pub fn kill_these(&mut self, nodes: &[usize]) -> io::Result<()> {
        for node in nodes {
            if let Some(child) = &mut self.nodes[*node].child {
                child.kill()?;
            }
        }
        nodes.iter().try_for_each(|node| self.kill(*node))
    }

    /// Nodes that have ended though nobody has ended them, and how. Each is told of once, and does not
    /// run any more.
    pub fn ended(&mut self) -> Vec<(usize, ExitStatus)> {
        let mut ended = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            // One that cannot be asked is seen to be gone when it does not answer.
            let status = node.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = status {
                node.child = None;
                ended.push((number, status));
            }
        }
        ended
    }

    /// Lets a node stand still (SIGSTOP): it keeps its sockets and answers nobody.
    pub fn pause(&self, node: usize) -> io::Result<()> {
        self.nodes[node].signal(Signal::Stop)
    }

    /// Lets a node go on after [`Processes::pause`].
    pub fn resume(&self, node: usize) -> io::Result<()> {
        self.nodes[node].signal(Signal::Continue)
    }

    /// Asks a node to stop (SIGTERM) and waits for its end; an error after `limit`.
    pub async fn terminate(&mut self, node: usize, limit: Duration) -> io::Result<ExitStatus> {
        self.nodes[node].signal(Signal::Terminate)?;
        self.wait_exit(node, limit).await
    }

    /// Waits until a node has ended by itself; an error after `limit`.
    pub async fn wait_exit(&mut self, node: usize, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = tokio::time::Instant::now() + limit;
        let node = &mut self.nodes[node];
        loop {
            let child = node.child.as_mut().ok_or_else(|| not_running(&node.name))?;
            if let Some(status) = child.try_wait()? {
                node.child = None;
                return Ok(status);
            }
            if tokio::time::Instant::now() > deadline {
                let what = format!("{} still runs after {limit:?}", node.name);
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Removes everything in the data directory of a node that is not running.
    pub fn wipe(&mut self, node: usize) -> io::Result<()> {
        let node = &self.nodes[node];
        assert!(node.child.is_none(), "{} runs", node.name);
        for entry in fs::read_dir(&node.data)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Waits until each of `nodes` says that it is ready and knows a leader of every group; `all` are
    /// the cluster's nodes in order. An error names what was missing, and ends of the logs.
    pub async fn wait_ready(
        &mut self,
        nodes: &[usize],
        all: &Nodes,
        limit: Duration,
    ) -> io::Result<Vec<NodeStatus>> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            for node in nodes {
                self.nodes[*node].must_run()?;
            }
            let mut ready = Vec::new();
            let mut missing = Vec::new();
            for node in nodes {
                match ready_status(&all[*node]).await {
                    Ok(status) => ready.push(status),
                    Err(why) => missing.push(format!("{}: {why}", self.nodes[*node].name)),
                }
            }
            if missing.is_empty() {
                return Ok(ready);
            }
            if tokio::time::Instant::now() > deadline {
                let missing = missing.join("; ");
                let what = format!("not ready after {limit:?}: {missing}\n{}", self.logs());
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Everything that a node has said since it was first started.
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap_or_default()
    }

    /// The last lines of what each node has said.
    pub fn logs(&self) -> String {
        let logs = (0..self.count()).map(|node| {
            let name = &self.nodes[node].name;
            format!("--- end of {name}'s log\n{}", last_lines(&self.log(node)))
        });
        logs.collect::<Vec<_>>().join("\n")
    }
}

/// A node's status, once it is ready and knows a leader of every group; what is missing otherwise.
pub async fn ready_status(node: &Arc<dyn Service>) -> Result<NodeStatus, String> {
    let call = Call {
        request: Request::Status(StatusQuery::default()),
        deadline: STATUS_DEADLINE,
        forwarded: false,
        cluster: None,
    };
    let answer = tokio::time::timeout(STATUS_DEADLINE, node.call(call)).await;
    let status = match answer {
        Ok(Ok(Response::Status(status))) => status,
        Ok(Ok(other)) => return Err(format!("status was answered {other:?}")),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("status was not answered".to_owned()),
    };
    let leaderless = status.groups.iter().find(|group| group.leader.is_none());
    match leaderless {
        _ if !status.ready => Err("not ready".to_owned()),
        Some(group) => Err(format!("{} has no leader", group.group)),
        None => Ok(*status),
    }
}

/// With this token the first nodes form their cluster.
pub const TOKEN: &str = "processes";

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(30);
/// How long one question for the status may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
/// Lines shown of each log after a failure.
const LINES_SHOWN: usize = 40;

impl Node {
    fn new(
        dir: &Path,
        number: usize,
        place: Place,
        ports: &[u16],
        joins: Option<String>,
    ) -> io::Result<Node> {
        let name = format!("n{}", number + 1);
        let data = dir.join(&name);
        fs::create_dir_all(&data)?;
        Ok(Node {
            log: dir.join(format!("{name}.log")),
            name,
            data,
            ports: Ports {
                client: ports[0],
                node: ports[1],
                http: ports[2],
            },
            reached_at: format!("{}:{}", place.address, ports[1]),
            place,
            joins,
            child: None,
            arguments: Vec::new(),
        })
    }

    fn address(&self, port: u16) -> String {
        format!("{}:{port}", self.place.address)
    }

    /// As it stands in `--initial-cluster`.
    fn listed(&self) -> String {
        format!("{}={}", self.name, self.reached_at)
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.log)
    }

    fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self.child.as_ref().ok_or_else(|| not_running(&self.name))?;
        let name = match signal {
            Signal::Stop => "-STOP",
            Signal::Continue => "-CONT",
            Signal::Terminate => "-TERM",
        };
        let sent = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status()?;
        if !sent.success() {
            let what = format!("kill {name} {}: {sent}", self.name);
            return Err(io::Error::other(what));
        }
        Ok(())
    }

    fn must_run(&mut self) -> io::Result<()> {
        let Some(child) = self.child.as_mut() else {
            return Err(not_running(&self.name));
        };
        let Some(status) = child.try_wait()? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let what = format!("{} ended ({status}):\n{}", self.name, last_lines(&log));
        Err(io::Error::other(what))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A child that is gone already is what is wanted.
        let _ = self.kill();
    }
}

fn not_running(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("{name} does not run"))
}

/// The program, brought to its place.
fn command(place: &Place, binary: &Path) -> Command {
    match place.before.as_slice() {
        [] => Command::new(binary),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(binary);
            command
        }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

/// Ports that nobody listens on. They lie below those that the system gives to outgoing connections,
/// so that a node that is down finds its port free again, and each process looks in a block of its
/// own, so that tests at once do not meet.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    static BLOCK: AtomicU32 = AtomicU32::new(0);
    const BLOCK_PORTS: u32 = 30;
    const BLOCKS: u32 = 700;
    const FIRST: u32 = 11_000;
    assert!(count <= BLOCK_PORTS as usize, "a block of ports is smaller");
    for _ in 0..BLOCKS {
        let block = (std::process::id() * 7 + BLOCK.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
        let first = FIRST + block * BLOCK_PORTS;
        let ports = (first..).take(count).map(|port| port as u16);
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if ports.clone().all(|port| free(&port)) {
            return Ok(ports.collect());
        }
    }
    let what = "no block of free ports on 127.0.0.1";
    Err(io::Error::new(ErrorKind::AddrInUse, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes that are shell scripts.
    fn scripts(dir: &Path, script: &str) -> Processes {
        let binary = dir.join("node");
        // Another process writes it: while one of ours has it open, it cannot be executed.
        let written = Command::new("sh")
            .args([
                "-c",
                "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\"; chmod +x \"$0\"",
            ])
            .arg(&binary)
            .arg(script)
            .status();
        assert!(written.unwrap().success());
        let processes = Processes::new(Options {
            binary,
            nodes: 3,
            dir: dir.to_owned(),
            arguments: vec!["--insecure".to_owned()],
        });
        processes.unwrap()
    }

    fn runs(id: u32) -> bool {
        let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    }

    fn is_stopped(id: u32) -> bool {
        fs::read_to_string(format!("/proc/{id}/stat"))
            .unwrap()
            .contains(") T ")
    }

    fn id(processes: &Processes, node: usize) -> u32 {
        processes.nodes[node].child.as_ref().unwrap().id()
    }

    #[tokio::test]
    async fn nodes_are_started_with_their_flags_and_killed_with_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = scripts(dir.path(), "echo \"$@\"; exec sleep 600");
        processes.start_all().unwrap();
        let ids: Vec<u32> = (0..3).map(|node| id(&processes, node)).collect();
        while processes.log(1).is_empty() {
            tokio::time::sleep(POLL).await;
        }
        let said = processes.log(1);
        let ports = processes.nodes[1].ports;
        assert!(said.starts_with("serve --name n2 --data-dir "), "{said}");
        assert!(
            said.contains(&format!(",n2=127.0.0.1:{},n3=", ports.node)),
            "{said}"
        );
        assert!(said.contains(&processes.client_address(1)), "{said}");
        processes.kill(0).unwrap();
        assert!(!runs(ids[0]) && runs(ids[1]));
        processes.start(0).unwrap();
        processes.kill_all().unwrap();
        assert!(!runs(ids[1]) && !runs(ids[2]));
        processes.start(2).unwrap();
        let last = id(&processes, 2);
        drop(processes);
        assert!(!runs(last));
    }

    #[tokio::test]
    async fn a_node_stands_still_until_it_may_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done";
        let mut processes = scripts(dir.path(), script);
        processes.start(0).unwrap();
        while processes.log(0).is_empty() {
            tokio::time::sleep(POLL).await;
        }
        processes.pause(0).unwrap();
        while !is_stopped(id(&processes, 0)) {
            tokio::time::sleep(POLL).await;
        }
        processes.resume(0).unwrap();
        let ended = processes.terminate(0, Duration::from_secs(10)).await;
        assert_eq!(ended.unwrap().code(), Some(3));
        assert!(processes.pause(0).is_err());
    }

    #[tokio::test]
    async fn a_node_that_ends_before_it_is_ready_is_shown_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = scripts(dir.path(), "echo the port is taken; exit 1");
        processes.start(0).unwrap();
        while processes.nodes[0].must_run().is_ok() {
            tokio::time::sleep(POLL).await;
        }
        let nodes = Nodes::new();
        let said = processes.wait_ready(&[0], &nodes, Duration::from_secs(10));
        let said = said.await.unwrap_err().to_string();
        assert!(
            said.contains("n1 ended") && said.contains("the port is taken"),
            "{said}"
        );
        assert!(processes.wait_exit(1, POLL).await.is_err());
    }

    #[tokio::test]
    async fn a_wiped_node_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = scripts(dir.path(), "exit 0");
        let data = processes.data(0).to_owned();
        fs::create_dir(data.join("wal")).unwrap();
        fs::write(data.join("wal/1"), "x").unwrap();
        fs::write(data.join("identity"), "x").unwrap();
        processes.wipe(0).unwrap();
        assert_eq!(fs::read_dir(data).unwrap().count(), 0);
    }
}
