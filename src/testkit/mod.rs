//! Workloads, histories and checks.

pub mod disk;
