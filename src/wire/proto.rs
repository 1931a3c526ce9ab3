//! Generated from `proto/`. Decides only. Read those files instead: they are the reference.

/// Package `quorate.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::disallowed_methods
)]
pub mod v1 {
    tonic::include_proto!("quorate.v1");
    // The service between nodes, whose messages have a checksum.
    include!(concat!(env!("OUT_DIR"), "/between-nodes/quorate.v1.rs"));
}

/// The description of every message and service, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate.descriptors"));
