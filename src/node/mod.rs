//! The host of many groups.
