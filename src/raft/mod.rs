//! Groups: how a log becomes the same on a majority of replicas.
//!
//! A [`Group`] is one replica's membership in one Raft group (Ongaro and Ousterhout, "In Search of an
//! Understandable Consensus Algorithm", 2014). The library openraft decides who leads and what is
//! committed; this folder is the only place that knows its name. It gives the library what it needs of
//! us and takes from it what the rest of the house understands: bytes proposed, bytes applied in order,
//! a position from which on a read is linearizable.
//!
//! ```text
//! propose(bytes) ─▶ openraft ─▶ log_store ─▶ wal            (one sync for all that waits)
//!                      │  └───▶ network ──▶ other replicas  (pipelined, many groups on one connection)
//!                      ▼ committed
//!                  state_machine ─▶ machine::StateMachine ─▶ engine
//! ```
//!
//! What must hold, and where it is held:
//!
//! - **A replica never leads again in a term that it led before a restart.** Entries go to followers
//!   before they are synced here; after a power cut the same position could get another payload.
//!   `group.rs` turns the library's leader restore off.
//! - **Apply waits until the local log has synced the entry** (`state_machine.rs`). The library applies
//!   what a majority has, synced here or not; an engine ahead of its log could not start again.
//! - **A log entry is purged only when a flush of the engine covers it.** [`Group::checkpointed`] tells
//!   the library a position read before that flush began, and nothing else ever builds a snapshot. After a
//!   snapshot is installed the engine is flushed before the library purges (`state_machine.rs`).
//! - **Each proposal names the term of its stamp.** A deposed leader's proposals are refused, not
//!   carried into another term.
//! - **A read asks a majority, in a round of its own, whether there is a later leader** (`reads.rs`). The
//!   library's word for it is not taken.
//! - **A leader that hands over proposes nothing more in its term**, so it goes on until another one leads
//!   (`successor.rs`).
//! - **A panic or a failure of ours ends the process; the library's own failure reopens the group** on
//!   the same store, a few times, and only after its queued log writes and its old apply worker have
//!   ended (`group.rs`).
//!
//! The votes of a term are asked for beforehand (pre-vote, Ongaro's thesis, section 9.6), so that a node
//! that was cut off does not disturb a healthy leader on its return.

mod beats;
mod config;
mod convert;
mod group;
mod inbound;
mod introductions;
mod log_store;
mod members;
mod neighbours;
mod pace;
mod network;
mod reads;
mod runtime;
mod state_machine;
mod still;
mod successor;
#[cfg(test)]
mod suite;

pub use config::Options;
pub(crate) use convert::is_membership;
pub use group::Group;
pub use group::Introduction;
pub use group::Leadership;
pub use group::Opening;
pub use group::View;
pub use members::Seen;
pub use neighbours::Alone;
pub use neighbours::Neighbours;
pub use pace::Pace;
pub use state_machine::Fail;
pub use state_machine::Flush;
pub use still::Still;
