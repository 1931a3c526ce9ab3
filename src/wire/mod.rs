//! What goes over the network: the requests that a node answers, and the one door through which they
//! are sent. Client, Raft and node use [`Channel`](request::Channel) and nothing else, so that a
//! simulated network can stand in its place.

pub mod request;
