//! Assembles a node and opens its doors.

pub mod options;
pub mod http;

use std::net::SocketAddr;

use crate::node::formation_driver::FormationError;
use crate::node::identity::IdentityError;
use crate::server::options::OptionError;
use crate::server::options::Options;

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node has no cluster.
    #[error(transparent)]
    Formation(#[from] FormationError),
    /// A port cannot be had.
    #[error("listen on {address}: {source}; choose another with {flag}")]
    Listen {
        /// What was tried.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Something of ours failed.
    #[error("{0}")]
    Internal(String),
}

impl StartError {
    /// Whether the person who starts the node has to change something.
    pub fn is_bad_input(&self) -> bool {
        match self {
            StartError::Options(_) | StartError::Formation(_) | StartError::Listen { .. } => true,
            StartError::Identity(error) => !matches!(error, IdentityError::Io { .. }),
            StartError::Internal(_) => false,
        }
    }
}

/// A node that runs.
#[derive(Debug)]
pub struct Running {
    /// Where clients are served.
    pub client_address: SocketAddr,
    /// Where the other nodes are served.
    pub node_address: SocketAddr,
    /// Where health and metrics are served.
    pub http_address: SocketAddr,
}

/// Starts a node.
pub async fn start(options: Options) -> Result<Running, StartError> {
    options.validate()?;
    Err(StartError::Internal("the node is not assembled yet".into()))
}

impl Running {
    /// Stops in order: readiness off, requests ended, log and engine flushed.
    pub async fn stop(self) -> Result<(), StartError> {
        Ok(())
    }

    /// Returns when the node cannot go on, with the reason. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        std::future::pending().await
    }
}
