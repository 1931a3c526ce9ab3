//! Quorate: a sharded, Raft-replicated, linearizable key-value store in one binary.
//!
//! The order of the modules below is the architecture: each uses only those above it.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod types;
pub mod error;
pub mod codec;
pub mod hlc;
pub mod telemetry;
pub mod env;
pub mod wire;
pub mod engine;
pub mod machine;
pub mod wal;
pub mod mvcc;
pub mod shard;
pub mod placement;
pub mod raft;
pub mod client;
pub mod node;
pub mod server;
pub mod config;
pub mod testkit;
pub mod cli;
