//! Where shards live.
