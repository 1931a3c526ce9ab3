//! Workloads, histories and checks.
