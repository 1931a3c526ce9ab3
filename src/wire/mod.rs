//! What goes over the network: the requests that a node answers, and the one door through which they
//! are sent. Client, Raft and node use [`Channel`](request::Channel) and nothing else, so that a
//! simulated network can stand in its place.
//!
//! Over gRPC a pair of nodes has three connections, so that one kind of traffic never waits behind
//! another: `bulk` for log entries of all groups (one stream of frames, [`appends`]) and for calls that
//! are sent on, `beat` for votes, heartbeats and what else must be quick, `snapshot` for snapshots.
//! An outcome that is not known stays unknown on the way: only an answer of the receiver, or the
//! certainty that nothing was sent, says that a write did not happen ([`status`]).
//! What nodes say to each other is checked as a whole ([`checked`]): a flipped bit is not believed.

pub mod merge;
pub mod request;
pub mod proto;
pub mod identity;
pub mod convert;
pub mod status;
pub mod codec;
pub mod checked;
pub mod outbox;
pub mod lane;
pub mod appends;
pub mod channel;
pub(crate) mod trial;
