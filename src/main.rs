//! Parse, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use quorate::cli;
use quorate::cli::Cli;
use quorate::cli::failure::EXIT_ERROR;
use quorate::cli::world::World;
use quorate::wire::channel::GrpcChannel;
use tikv_jemallocator::Jemalloc;

/// The engine makes and drops pages of many sizes all the time, on all threads: while a cluster grows, 17 % of a node's
/// processor time goes into the C library's allocator (`perf` beside `benches/growth.rs`). This one also
/// gives back what a burst of requests has left (`tests/hostile.rs`).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody to tell that nobody reads.
            let _ = error.print();
            return ExitCode::from(cli::usage_exit_code(&error));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::from(EXIT_ERROR);
        }
    };
    let world = World::of_process(|| Arc::new(GrpcChannel::of_client()));
    let result = runtime.block_on(cli::run(cli, world));
    // A thread that still reads standard input is not waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit_code),
    }
}
