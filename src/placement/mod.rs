//! Where shards live: who the nodes are, which shards there are, which ids were given out. Replicated
//! by a group of its own, on which the data path does not depend.
//!
//! What is replicated is in [`state`]. What follows from it and from the nodes' reports is decided here and
//! kept nowhere: a [`view`] of the cluster at one moment, by the thresholds of one [`policy`] and the
//! [`Rule`](crate::types::rule::Rule)s that people have set, gives a [`mod@plan`]: operators, each to be recorded and then carried out
//! step by step by the leader of its shard. What the nodes say is gathered in [`sightings`], and what follows from
//! it at one moment is a [`round`].

pub mod command;
pub mod state;
pub mod machine;
pub mod policy;
pub mod node;
pub mod shard;
pub mod operator;
pub mod view;
pub mod plan;
pub mod order;
pub mod sightings;
pub mod round;
pub mod overview;

pub use command::PlacementAnswer;
pub use command::PlacementCommand;
pub use machine::PlacementMachine;
pub use machine::PlacementReader;
pub use machine::replicas;
pub use machine::seed;
pub use node::NodeView;
pub use plan::explain;
pub use plan::plan;
pub use policy::Policy;
pub use shard::ShardView;
pub use state::PlacementState;
pub use view::View;
