//! The vocabulary: values that every other module speaks in. Decides only, and knows nobody.

pub mod id;
pub mod key;
pub mod hash;
pub mod keyspace;
pub mod walk;
pub mod timestamp;
pub mod log;
pub mod shard;
pub mod request;
pub mod rule;
pub mod node;
pub mod operator;
pub mod report;
pub mod placement;
pub mod overview;

pub use id::ClusterId;
pub use id::GroupId;
pub use id::Incarnation;
pub use id::NodeId;
pub use id::ReplicaId;
pub use id::RequestId;
pub use id::ShardId;
pub use key::Key;
pub use key::KeyRange;
pub use key::Value;
pub use log::Position;
pub use timestamp::Timestamp;
