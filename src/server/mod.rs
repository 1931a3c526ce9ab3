//! Assembles a node and opens its doors.

pub mod grpc;
