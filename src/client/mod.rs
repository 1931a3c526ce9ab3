//! The client library: reads and writes of keys, and questions about the cluster, over any
//! [`Channel`](crate::wire::request::Channel).
//!
//! [`Kv`] and [`Admin`] say what is wanted, [`Sender`] carries one request to its end, [`Routes`] and
//! [`retry`] decide where the next attempt goes and when. Deliberately absent: a write is never sent
//! again under a new identity, since the first one may still happen.

pub mod ids;
pub mod retry;
pub mod shards;
pub mod routes;
pub mod gather;
pub mod sender;
pub mod kv;
pub mod admin;

pub use admin::Admin;
pub use ids::RequestIds;
pub use kv::Kv;
pub use routes::Routes;
pub use sender::Sender;
