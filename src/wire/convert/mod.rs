//! Our words to and from the words of `proto/`. Decides only. Outwards it cannot fail; inwards every
//! field is checked, and an error names the field as the caller knows it. No bytes make it panic.

pub mod kv;
pub mod cluster;
pub mod admin;
pub mod placement;
pub mod transport;
pub mod merges;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Value;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::key::REQUEST_BYTES_MAX;
use crate::types::key::VALUE_BYTES_MAX;
use crate::wire::proto::v1;

/// Keys of one BatchGet, and conditions or operations of one Write.
pub const KEYS_MAX: usize = 1_000;

/// A group as a number: its shard's id, or 0 for placement.
pub fn group_number(group: GroupId) -> u64 {
    group.as_shard().0
}

/// The group of a number.
pub fn group_of(number: u64) -> GroupId {
    ShardId(number).group()
}

fn node_of(number: u64) -> Option<NodeId> {
    (number != 0).then_some(NodeId(number))
}

pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::invalid(field, "it is not set"))
}

fn sixteen(field: &str, bytes: &[u8]) -> Result<[u8; 16]> {
    let sixteen = bytes.try_into();
    sixteen.map_err(|_| Error::invalid(field, format!("it is {} bytes, not 16", bytes.len())))
}

fn optional_sixteen(field: &str, bytes: &[u8]) -> Result<Option<[u8; 16]>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    sixteen(field, bytes).map(Some)
}

fn cluster_of(bytes: &[u8]) -> Result<Option<ClusterId>> {
    Ok(optional_sixteen("cluster_id", bytes)?.map(ClusterId))
}

fn cluster_bytes(cluster: Option<ClusterId>) -> Bytes {
    cluster.map_or_else(Bytes::new, |cluster| sixteen_bytes(cluster.0))
}

fn sixteen_bytes(bytes: [u8; 16]) -> Bytes {
    Bytes::copy_from_slice(&bytes)
}

fn check_key(field: &str, key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid(field, "a key is at least 1 byte long"));
    }
    check_bound(field, key)
}

fn check_bound(field: &str, key: &[u8]) -> Result<()> {
    at_most(field, "bytes", key.len(), KEY_BYTES_MAX)
}

fn check_value(field: &str, value: &[u8]) -> Result<()> {
    at_most(field, "bytes", value.len(), VALUE_BYTES_MAX)
}

fn at_most(field: &str, unit: &str, count: usize, max: usize) -> Result<()> {
    if count > max {
        return Err(Error::invalid(
            field,
            format!("{count} {unit} are over the limit of {max}"),
        ));
    }
    Ok(())
}

/// Counts keys and values of one request.
#[derive(Default)]
struct Size(usize);

impl Size {
    fn key(&mut self, field: &str, key: Key) -> Result<Key> {
        check_key(field, &key)?;
        self.add(key.len())?;
        Ok(key)
    }

    fn value(&mut self, field: &str, value: Value) -> Result<Value> {
        check_value(field, &value)?;
        self.add(value.len())?;
        Ok(value)
    }

    fn add(&mut self, bytes: usize) -> Result<()> {
        self.0 += bytes;
        at_most(
            "request",
            "bytes of keys and values",
            self.0,
            REQUEST_BYTES_MAX,
        )
    }
}

fn range_of(field: &str, range: v1::KeyRange) -> Result<KeyRange> {
    // The place right behind the longest key is one byte longer than a key.
    for bound in [&range.start, &range.end] {
        at_most(field, "bytes", bound.len(), KEY_BYTES_MAX + 1)?;
    }
    let end = (!range.end.is_empty()).then_some(range.end);
    if end.as_ref().is_some_and(|end| *end < range.start) {
        return Err(Error::invalid(field, "its end is before its start"));
    }
    Ok(KeyRange {
        start: range.start,
        end,
    })
}

fn range_out(range: KeyRange) -> v1::KeyRange {
    v1::KeyRange {
        start: range.start,
        end: range.end.unwrap_or_default(),
    }
}
