//! The nodes under test: hurt, put right, and asked whether they still run.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::env::faults::Faults;
use crate::testkit::chaos::containers::Containers;
use crate::testkit::processes;
use crate::testkit::processes::Processes;
use crate::testkit::relay::Relay;
use crate::testkit::relay::Rule;
use crate::testkit::relay::Way;

/// How long a node may take to stop in order.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The nodes, numbered from 0. Dropping it ends those that are child processes.
#[derive(Debug)]
pub enum Nodes {
    /// Child processes behind a relay.
    Processes(Box<Processes>),
    /// Containers that were there before and stay.
    Containers(Containers),
}

impl Nodes {
    /// Child processes of this program, started with `arguments` beside what each needs; data and logs
    /// below `dir`. Needs a runtime. Starts them.
    pub fn processes(
        binary: PathBuf,
        count: usize,
        dir: PathBuf,
        arguments: Vec<String>,
        seed: u64,
    ) -> io::Result<Nodes> {
        let options = processes::Options {
            binary,
            nodes: count,
            dir,
            arguments,
        };
        let mut processes = Processes::behind(Relay::new(seed), options)?;
        processes.use_faults_files();
        for node in 0..count {
            write_faults(&processes, node, Faults::default())?;
        }
        processes.start_all()?;
        Ok(Nodes::Processes(Box::new(processes)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Nodes::Processes(processes) => processes.count(),
            Nodes::Containers(containers) => containers.count(),
        }
    }

    /// Their names, in order.
    pub fn names(&self) -> Vec<String> {
        match self {
            Nodes::Processes(processes) => (1..=processes.count())
                .map(|number| format!("n{number}"))
                .collect(),
            Nodes::Containers(containers) => containers.names(),
        }
    }

    /// Where they serve clients, in order.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Nodes::Processes(processes) => (0..processes.count())
                .map(|node| processes.client_address(node))
                .collect(),
            Nodes::Containers(containers) => containers.addresses(),
        }
    }

    /// Kills nodes at once, and waits until they are gone.
    pub fn kill(&mut self, nodes: &[usize]) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => processes.kill_these(nodes),
            Nodes::Containers(containers) => containers.all("kill", nodes),
        }
    }

    /// Starts nodes that were killed.
    pub fn start(&mut self, nodes: &[usize]) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => nodes.iter().try_for_each(|node| processes.start(*node)),
            Nodes::Containers(containers) => containers.all("start", nodes),
        }
    }

    /// Lets nodes stand still.
    pub fn pause(&self, nodes: &[usize]) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => nodes.iter().try_for_each(|node| processes.pause(*node)),
            Nodes::Containers(containers) => containers.all("pause", nodes),
        }
    }

    /// Lets them go on.
    pub fn resume(&self, nodes: &[usize]) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => {
                nodes.iter().try_for_each(|node| processes.resume(*node))
            }
            Nodes::Containers(containers) => containers.all("unpause", nodes),
        }
    }

    /// Stops a node in order and starts it.
    pub async fn restart(&mut self, node: usize) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => {
                processes.terminate(node, STOP_WITHIN).await?;
                processes.start(node)
            }
            Nodes::Containers(containers) => containers.restart(node).await,
        }
    }

    /// Sets a rule for ways between nodes. An error where single ways cannot be reached.
    pub fn set_ways(&self, ways: &[Way], rule: Rule) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => {
                relay(processes).set(ways, rule);
                Ok(())
            }
            Nodes::Containers(_) => Err(not_with_containers()),
        }
    }

    /// Cuts a node off from all others, or lets it back.
    pub fn separate(&self, node: usize, cut: bool) -> io::Result<()> {
        let all: Vec<usize> = (0..self.count()).collect();
        let rule = if cut { Rule::CUT } else { Rule::default() };
        match self {
            Nodes::Processes(processes) => {
                relay(processes).set(&Way::between(&[node], &all), rule);
                Ok(())
            }
            Nodes::Containers(containers) => containers.separate(node, cut),
        }
    }

    /// Tells a node what its disk and clock do wrong from now on.
    pub fn fail(&self, node: usize, faults: Faults) -> io::Result<()> {
        match self {
            Nodes::Processes(processes) => write_faults(processes, node, faults),
            Nodes::Containers(_) => Err(not_with_containers()),
        }
    }

    /// Puts the network between nodes right.
    pub fn heal_ways(&self) {
        match self {
            Nodes::Processes(processes) => relay(processes).heal(),
            // What was separated was put back after its fault.
            Nodes::Containers(_) => {}
        }
    }

    /// Nodes that have ended though nobody has ended them, and how; each is told of once.
    pub fn ended(&mut self) -> Vec<(usize, String)> {
        match self {
            Nodes::Processes(processes) => {
                let ended = processes.ended().into_iter();
                ended
                    .map(|(node, status)| (node, status.to_string()))
                    .collect()
            }
            Nodes::Containers(containers) => containers.ended(),
        }
    }

    /// The last lines of what the nodes have said.
    pub fn logs(&self) -> String {
        match self {
            Nodes::Processes(processes) => processes.logs(),
            Nodes::Containers(containers) => containers.logs(),
        }
    }
}

fn not_with_containers() -> io::Error {
    io::Error::other("containers have no relay between them and no file of faults")
}

fn relay(processes: &Processes) -> &Relay {
    processes.relay().expect("made behind a relay")
}

/// Replaced as a whole, so that the node never reads half of it.
fn write_faults(processes: &Processes, node: usize, faults: Faults) -> io::Result<()> {
    let json = serde_json::to_vec(&faults)?;
    let path = processes.faults_file(node);
    let draft = path.with_extension("draft");
    fs::write(&draft, json)?;
    fs::rename(draft, path)
}
