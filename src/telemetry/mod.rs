//! Logs and metrics. Pushed to by everyone, pulls from nobody.

pub mod log;
pub mod metrics;
