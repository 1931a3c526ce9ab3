//! `quorate dev`: a cluster on this machine.

use crate::cli::failure::Failure;

/// What the cluster is told on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs the cluster until it is told to stop.
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::error("this build has no server"))
}
