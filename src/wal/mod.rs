//! The write-ahead log: one for all groups of a node.
