//! `quorate serve`: one node.

use crate::cli::failure::Failure;

/// What a node is told on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs a node until it is told to stop.
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::error("this build has no server"))
}
