//! Parse, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use quorate::cli;
use quorate::cli::world::World;
use quorate::client::RequestIds;
use quorate::wire::channel::GrpcChannel;

fn main() -> ExitCode {
    let parsed = match cli::Cli::try_parse() {
        Ok(p) => p,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(3);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let world = World::of_process(
        || Arc::new(GrpcChannel::of_client()),
        || {
            RequestIds::new(
                || quorate::env::clock::Clock::system().wall_ms(),
                || quorate::env::rng::Chance.bytes(),
            )
        },
    );
    match runtime.block_on(cli::run(parsed, world)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => ExitCode::from(f.exit_code),
    }
}
