//! Quorate: a sharded, Raft-replicated, linearizable key-value store in one binary.
//!
//! A *shard* is a range of keys that moves as one. Each is replicated by a Raft *group* of its own; a
//! *replica* is one node's copy of it. The *placement* group, replicated in the same way, knows the nodes
//! and where the shards are. Every *node* is one process with one log for all its replicas and one engine
//! that holds what the log has done. A cluster begins with the placement group and one shard over all keys;
//! every further shard is split off another.
//!
//! # What the system promises
//!
//! - A write that was answered survives the loss of any minority of its replicas, and a power cut of all.
//! - Reads and writes are linearizable, through whichever node they enter; weaker reads are asked for by
//!   name, and their answers say how old they are.
//! - A write is applied at most once for each request id, and an unknown outcome is never called a
//!   failure.
//! - Ids are never used twice, so a wiped disk never votes as the node that it was.
//!
//! # One put
//!
//! ```text
//! client::Kv::put              names the write; client::sender finds a node and persists
//! wire::channel                ---- gRPC ---->
//! server::grpc                 checks limits
//! server::handler              one match over every request; sends on to the leader, once
//! node::proposer               the one owner: stamps, gathers what waits into one entry
//! raft::Group                  openraft orders it
//!   wal                        one sync for all that waited     (and the same on the followers)
//!   raft::state_machine        committed and synced here: applied
//! shard::apply                 decides the outcome from the state and the command alone
//! mvcc, engine                 the versions and the applied position in one atomic batch
//! ```
//!
//! A key of a keyspace ([`types::keyspace`]) becomes a stored key at `server::handler`, and its own again in the
//! answer. Which shard holds a key is looked up at each step, by whoever is there: the client's routes and the
//! entering node's ([`node::routes`]) are hints, the replica's own row decides, and a refusal says what is
//! current. The outcome goes back the same way. A linearizable get asks [`node::barrier`] for a position first
//! and reads when that is applied here. A crash takes at most what was not flushed from the engine; the log
//! gives it back, since a log entry is given up only behind a flush ([`node::checkpoint`]).
//!
//! # One split
//!
//! ```text
//! server::host, node::splitter  on the shard's leader: ids from placement, the epoch it was planned at
//! node::proposer                one entry, stamped like a write
//! shard::split                  applied on every replica: one batch shrinks the shard, raises its epoch and
//!                               writes the child's first row. No key moves.
//! node::keeper, node::opener    each node starts the child; the one that leads the parent stands for
//!                               election at once
//! ```
//!
//! # The modules
//!
//! The list below is the architecture and the reading order: each module uses only those above it. A file
//! that *decides only* has no task, clock, chance, file or socket in it. openraft is named only in
//! [`raft`], sled only in `engine/sled.rs`, tonic only in [`wire`] and `server/grpc`.

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
