//! Where shards live: who the nodes are, which shards there are, which ids were given out. Replicated
//! by a group of its own, on which the data path does not depend.

pub mod command;
pub mod state;
pub mod machine;
pub mod rule;
pub mod policy;
pub mod node;
pub mod shard;
pub mod operator;
pub mod view;

pub use command::PlacementAnswer;
pub use command::PlacementCommand;
pub use machine::PlacementMachine;
pub use machine::PlacementReader;
pub use machine::replicas;
pub use machine::seed;
pub use node::NodeView;
pub use operator::Operator;
pub use policy::Policy;
pub use shard::ShardView;
pub use state::PlacementState;
pub use view::View;
