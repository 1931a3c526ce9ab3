//! What puts a cluster to the test: writers that remember what they were told, the check of their
//! memory against what the cluster still knows, and real processes to be killed.

pub mod observed;
pub mod linear;
pub mod history;
pub mod invariants;
pub mod workload;
pub mod mix;
pub mod relay;
pub mod processes;
pub mod disk;
pub mod decoders;
pub mod chaos;
