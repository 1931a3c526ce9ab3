//! What must hold at every moment of a run, whatever goes wrong in it. Each is fed what is seen of the
//! cluster from outside, and says the first thing that cannot be. Decides only.

pub mod leaders;
pub mod voters;
pub mod votes;
pub mod entries;
pub mod states;
pub mod ranges;
pub mod replicas;

/// What was seen that cannot be, in words.
pub type Violation = String;
