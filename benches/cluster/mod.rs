//! A cluster of child processes for a measurement.

// Each measurement uses its own part of this file.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate::client::RequestIds;
use quorate::client::Sender;
use quorate::client::sender;
use quorate::env::clock::Clock;
use quorate::env::rng::Chance;
use quorate::testkit::processes::Options;
use quorate::testkit::processes::Processes;
use quorate::testkit::processes::TOKEN;
use quorate::testkit::workload::Nodes;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::request::Channel as _;

/// A cluster of this machine's processes is ready, and placement is done, within this time.
pub const PATIENCE: Duration = Duration::from_secs(3_600);

pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Nodes that run until it is dropped.
pub struct Cluster {
    pub processes: Processes,
    nodes: Nodes,
}

impl Cluster {
    /// So many nodes with their data below `dir`, formed and ready.
    pub async fn start(dir: PathBuf, nodes: usize) -> Result<Cluster, Failed> {
        Cluster::start_with(dir, nodes, Vec::new()).await
    }

    /// The same, with further arguments for each node.
    pub async fn start_with(
        dir: PathBuf,
        nodes: usize,
        arguments: Vec<String>,
    ) -> Result<Cluster, Failed> {
        let log = "--log=info,openraft=warn".to_owned();
        let processes = Processes::new(Options {
            binary: PathBuf::from(env!("CARGO_BIN_EXE_quorate")),
            nodes,
            dir,
            arguments: [vec![log], arguments].concat(),
        })?;
        let mut cluster = Cluster {
            nodes: Nodes::new(),
            processes,
        };
        cluster.processes.start_all()?;
        cluster.ready().await?;
        Ok(cluster)
    }

    /// So many further nodes.
    pub async fn join(&mut self, count: usize) -> Result<(), Failed> {
        for _ in 0..count {
            let node = self.processes.add(TOKEN)?;
            self.processes.start(node)?;
        }
        self.ready().await
    }

    async fn ready(&mut self) -> Result<(), Failed> {
        let channel = GrpcChannel::of_client();
        let addresses = self.addresses();
        self.nodes = addresses
            .iter()
            .map(|address| channel.address(address))
            .collect();
        let all: Vec<usize> = (0..self.processes.count()).collect();
        let ready = self.processes.wait_ready(&all, &self.nodes, PATIENCE);
        ready.await?;
        Ok(())
    }

    fn addresses(&self) -> Vec<String> {
        let nodes = 0..self.processes.count();
        nodes
            .map(|node| self.processes.client_address(node))
            .collect()
    }

    /// The way of a client to it.
    pub fn sender(&self) -> Arc<Sender> {
        let ids = Arc::new(RequestIds::new(
            || Clock::system().wall_ms(),
            || Chance.bytes(),
        ));
        let channel = Arc::new(GrpcChannel::of_client());
        let options = sender::Options::default();
        let sender = Sender::new(channel, self.addresses(), ids, options);
        Arc::new(sender.expect("the addresses are those of nodes"))
    }
}
