//! The host of many groups: what one node is made of.
//!
//! A node finds its identity (`identity.rs`), forms a cluster with the others at its first start
//! (`formation.rs` decides, `formation_driver.rs` talks), opens its stores (`boot.rs`) and its replicas
//! (`opener.rs`), of which there are more with each split (`keeper.rs`), and finds them in a
//! [`Registry`](registry::Registry). One task flushes the engine for all of them
//! (`checkpoint.rs`), one collects what no reader may ask for any more (`collector.rs`). Each shard's
//! replica has one owner of its writes (`proposer.rs`) and shares the round trips of its reads
//! (`barrier.rs`). A shard gets further replicas and gives some up (`change_step.rs` decides,
//! `changes.rs` does it); a replica that is none any more is found (`doubts.rs`) and destroyed
//! (`orphans.rs`). Replicas of a shard are compared (`selfcheck.rs`; `verdict.rs` and `retries.rs` decide), and what is asked
//! about those here is answered by `checks.rs`. Placement is asked through `placement.rs`, wherever its leader is, and told by
//! `reporter.rs` what changes here. Keys without a replica here are found by `router.rs`, of which
//! `routes.rs` is the thinking part; the node that leads placement's group drives it (`driver.rs`), and what it orders is
//! done by `stepper.rs`. What is asked of a replica is counted by its `meter.rs`; `pulse.rs` is how the node itself does.
//! `members.rs` knows the other nodes, and remembers them (`remembered.rs`). A node started later asks to be
//! taken in (`joining.rs`).

pub mod identity;
pub mod formation;
pub mod formation_driver;
pub mod joining;
mod remembered;
pub mod members;
pub mod barrier;
pub mod proposer;
pub mod meter;
pub mod replica;
pub mod registry;
pub mod splitter;
pub mod placement;
pub mod keyspaces;
pub mod driver;
pub mod routes;
pub mod router;
pub mod checkpoint;
pub mod collector;
pub mod beats;
pub mod verdict;
pub mod checks;
pub mod opener;
pub mod audit;
pub mod keeper;
pub mod bringer;
pub mod boot;
pub mod change_step;
pub mod changes;
pub mod merges;
pub mod stepper;
pub mod pulse;
pub mod reporter;
pub mod doubts;
pub mod retries;
pub mod orphans;
pub mod selfcheck;
