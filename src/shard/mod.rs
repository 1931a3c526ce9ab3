//! The replicated state machine of one key range. Decides only.
//!
//! Everything that a replica of a shard stores is in the node's engine: its keys in a *slot* of the
//! engine's key space ([`slots`]), and one [`row`](row::Row) that says how far it has come, which
//! range it holds and where its keys are. The row changes in the same batch as the keys.
//!
//! [`apply`] turns committed entries into batches; it is a function of the row, the keys and the
//! entries alone, so that all replicas stay equal. [`split`] makes two shards of one, [`merge`] one of two.
//! [`read`] answers readers while entries are applied; [`measure`] counts what is there. [`chain`] is the hash of all that was applied, by
//! which replicas are compared at one position.
//! [`walk`] goes through the state as of one position: for snapshots ([`snapshot`]) and for the hash
//! that replicas are compared by ([`portion`]; [`quarantine`] is what becomes of the odd one); [`audit`] through all that an engine holds, to find damage. [`machine`] holds it together behind the cut that Raft sees.

pub mod merge_command;
pub mod command;
pub mod chain;
pub mod row;
pub mod slots;
pub mod split;
pub mod merge;
pub mod apply;
pub mod apply_merge;
pub mod read;
pub mod measure;
pub mod walk;
pub mod portion;
pub mod snapshot;
pub mod quarantine;
pub mod machine;
pub mod audit;
#[cfg(test)]
mod tests;

pub use apply::Others;
pub use command::Command;
pub use machine::Seed;
pub use machine::ShardMachine;
pub use machine::destroy;
pub use machine::destroyed;
pub use machine::empty;
pub use machine::forget;
pub use machine::holder;
pub use machine::is_ending;
pub use machine::remains;
pub use machine::replicas;
pub use machine::rows;
pub use machine::seed;
pub use portion::Hashed;
pub use quarantine::Quarantined;
pub use read::ReadAt;
pub use read::ReadError;
pub use read::ShardReader;
pub use read::StateHash;
pub use row::Row;
pub use slots::Slots;
