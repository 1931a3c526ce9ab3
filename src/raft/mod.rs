//! Groups: how a log becomes the same on a majority of replicas.
