//! The nodes as containers of a compose file that is up: hurt through the docker command.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::time::Duration;

use tokio::time::Instant;

/// The port inside a container at which its node serves clients.
const CLIENT_PORT: &str = "7400";
/// How long a node may take to stop in order, in seconds.
const STOP_WITHIN_S: &str = "30";
/// Between two looks whether a container was started again by itself: each runs a command.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// The containers of a compose file, numbered from 0 in the order of their names. Dropping it leaves
/// them as they are.
#[derive(Debug)]
pub struct Containers {
    nodes: Vec<Container>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Container {
    service: String,
    id: String,
    network: String,
    client_address: String,
    /// How often it was started again after it had ended by itself.
    restarts: u64,
}

impl Containers {
    /// Finds the containers of every service of the file. They must be up.
    ///
    /// # Errors
    /// There is no docker, the file is none, or a service has no container that runs: in words.
    pub fn find(file: &Path) -> io::Result<Containers> {
        let compose = Compose::find(file)?;
        let services = compose.run(&["config", "--services"])?;
        let mut services: Vec<&str> = services.split_whitespace().collect();
        services.sort_unstable();
        let nodes = services
            .into_iter()
            .map(|service| compose.container(service));
        Ok(Containers {
            nodes: nodes.collect::<io::Result<_>>()?,
            looked: None,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The services' names.
    pub fn names(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes.map(|node| node.service.clone()).collect()
    }

    /// Where they serve clients.
    pub fn addresses(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes.map(|node| node.client_address.clone()).collect()
    }

    /// Does what a docker command does to these containers, all in one command.
    pub fn all(&self, verb: &str, nodes: &[usize]) -> io::Result<()> {
        let ids = nodes.iter().map(|node| self.nodes[*node].id.as_str());
        let arguments: Vec<&str> = [verb].into_iter().chain(ids).collect();
        docker(&arguments).map(|_| ())
    }

    /// Stops a container in order and starts it.
    pub async fn restart(&self, node: usize) -> io::Result<()> {
        let id = &self.nodes[node].id;
        let mut restart = tokio::process::Command::new("docker");
        let restart = restart.args(["restart", "--time", STOP_WITHIN_S, id]);
        said("docker restart", restart.kill_on_drop(true).output().await?).map(|_| ())
    }

    /// Takes a container off its network, or puts it back.
    pub fn separate(&self, node: usize, cut: bool) -> io::Result<()> {
        let Container {
            service,
            id,
            network,
            ..
        } = &self.nodes[node];
        let done = if cut {
            docker(&["network", "disconnect", network, id])
        } else {
            docker(&["network", "connect", "--alias", service, network, id])
        };
        match done {
            // It is where it shall be.
            Err(error) if error.to_string().contains("already") => Ok(()),
            Err(error) if error.to_string().contains("is not connected") => Ok(()),
            done => done.map(|_| ()),
        }
    }

    /// Containers that have ended by themselves and were started again since the last look. Looks every
    /// few seconds only.
    pub fn ended(&mut self) -> Vec<(usize, String)> {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL)
        {
            return Vec::new();
        }
        self.looked = Some(Instant::now());
        let mut ended = Vec::new();
        for (place, node) in self.nodes.iter_mut().enumerate() {
            let told = docker(&["inspect", "--format", "{{.RestartCount}}", &node.id]);
            let count = told.ok().and_then(|told| told.trim().parse().ok());
            let count: u64 = count.unwrap_or(node.restarts);
            if count > node.restarts {
                ended.push((place, format!("started again {count} times")));
            }
            node.restarts = count;
        }
        ended
    }

    /// The last lines of what each has said.
    pub fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|node| {
            let service = &node.service;
            let log = docker(&["logs", "--tail", "40", &node.id]);
            let log = log.unwrap_or_else(|error| error.to_string());
            format!("--- end of {service}'s log\n{log}")
        });
        logs.collect::<Vec<_>>().join("\n")
    }
}

/// Whichever of the two programs is there, on one file.
struct Compose {
    program: Vec<&'static str>,
    file: PathBuf,
}

impl Compose {
    fn find(file: &Path) -> io::Result<Compose> {
        let programs = [vec!["docker", "compose"], vec!["docker-compose"]];
        let works = |program: &Vec<&str>| {
            let mut version = Command::new(program[0]);
            let output = version.args(&program[1..]).arg("version").output();
            output.is_ok_and(|output| output.status.success())
        };
        let program = programs.into_iter().find(works);
        let program = program.ok_or_else(|| {
            io::Error::other("neither docker compose nor docker-compose is installed")
        })?;
        let file = file.to_owned();
        Ok(Compose { program, file })
    }

    fn run(&self, arguments: &[&str]) -> io::Result<String> {
        let mut command = Command::new(self.program[0]);
        command
            .args(&self.program[1..])
            .arg("--file")
            .arg(&self.file);
        let output = command.args(arguments).output()?;
        said(&format!("compose {}", arguments.join(" ")), output)
    }

    fn container(&self, service: &str) -> io::Result<Container> {
        let id = self.run(&["ps", "--quiet", service])?.trim().to_owned();
        if id.is_empty() {
            let file = self.file.display();
            let what = format!("{service} of {file} is not up; start all of it first (deploy/up)");
            return Err(io::Error::other(what));
        }
        let address = self.run(&["port", service, CLIENT_PORT])?;
        let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
        let networks = docker(&["inspect", "--format", networks, &id])?;
        let network = networks.split_whitespace().next();
        let network = network.ok_or_else(|| {
            io::Error::other(format!("the container of {service} is on no network"))
        })?;
        Ok(Container {
            service: service.to_owned(),
            network: network.to_owned(),
            client_address: address.trim().to_owned(),
            id,
            restarts: 0,
        })
    }
}

fn docker(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("docker").args(arguments).output()?;
    said(&format!("docker {}", arguments.join(" ")), output)
}

/// What a command printed; an error with what it complained of when it failed.
fn said(what: &str, output: Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim();
    Err(io::Error::other(format!("{what}: {complaint}")))
}
