//! Every prefix of the store, in one table. Decides only.
//!
//! | first bytes | then | value |
//! |---|---|---|
//! | `01 01` | | number of the next slot |
//! | `01 02` | slot, start and end of the range | that it is to be cleared there |
//! | `01 03` | | how often the engine was flushed |
//! | `01 04` | replica | it was destroyed, and the log may not say so yet |
//! | `01 05` | replica | it is not as the others are, and is to be rebuilt |
//! | `01 06` | | the key up to which stored state was compared |
//! | `02` | replica | the row of a shard's replica |
//! | `03` | replica | the row of a replica of placement |
//! | `04` | replica, number | a piece of placement's state |
//! | `10` | slot, `10`, key | newest version |
//! | `10` | slot, `20`, key, stamp (newest first) | an older version |
//! | `10` | slot, `30`, key | reserved: intent |
//! | `10` | slot, `40`, key | reserved: shared lock |
//! | `10` | slot, `50`, key | reserved: mark of a transaction |
//! | `10` | slot, `60`, key, request id | stored outcome |
//! | `10` | slot, `70`, key, stamp (newest first), number | a piece of a long value |
//!
//! Replicas, slots and numbers are big-endian, keys are escaped and ended ([`crate::codec::ordered`]).
//! Inside a slot everything is ordered by user key and nothing by shard, so that a split or a merge
//! moves no data. The newest versions stand alone, so that reading them never steps over old ones.

use crate::codec::ordered;
use crate::codec::ordered::OrderedError;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::Timestamp;

/// Stored key and value together, in bytes. The engine counts entries to a leaf, not bytes, and puts
/// records above a quarter of its segment into files that it never syncs.
pub const STORED_BYTES_MAX: usize = 6 * 1024;

const NODE: u8 = 0x01;
const ROW: u8 = 0x02;
const PLACEMENT_ROW: u8 = 0x03;
const PLACEMENT_STATE: u8 = 0x04;
const SLOT: u8 = 0x10;

const NODE_NEXT_SLOT: u8 = 0x01;
const NODE_CLEAR: u8 = 0x02;
const NODE_PROBE: u8 = 0x03;
const NODE_ENDING: u8 = 0x04;
const NODE_QUARANTINE: u8 = 0x05;
const NODE_SCRUBBED: u8 = 0x06;

/// Where the keys of a replica are. Never used twice in one engine.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Slot(pub u64);

/// What is kept about a user's key, as the byte behind the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// The newest version.
    Newest = 0x10,
    /// Older versions.
    History = 0x20,
    /// Reserved: undecided versions of transactions.
    Intent = 0x30,
    /// Reserved: readers that a transaction protects.
    SharedLock = 0x40,
    /// Reserved: how a transaction ended.
    TransactionMark = 0x50,
    /// Answers that no version tells.
    Outcome = 0x60,
    /// Pieces of long values.
    Chunk = 0x70,
}

impl Family {
    /// The order in which a range is cleared: a value is never without its pieces while it is found.
    pub const CLEARED: [Family; 7] = [
        Family::Newest,
        Family::History,
        Family::Intent,
        Family::SharedLock,
        Family::TransactionMark,
        Family::Outcome,
        Family::Chunk,
    ];

    /// The family of that byte.
    pub fn of(byte: u8) -> Option<Family> {
        Family::CLEARED
            .into_iter()
            .find(|family| *family as u8 == byte)
    }
}

/// Where the number of the next slot is.
pub fn next_slot() -> Vec<u8> {
    vec![NODE, NODE_NEXT_SLOT]
}

/// Where the engine counts its flushes, of which each start makes one.
pub fn probe() -> Vec<u8> {
    vec![NODE, NODE_PROBE]
}

/// The mark of a replica that was destroyed and that the log may not call gone yet.
pub fn ending(replica: ReplicaId) -> Vec<u8> {
    let mut out = vec![NODE, NODE_ENDING];
    ordered::put_u64(&mut out, replica.0);
    out
}

/// All such marks: start and end.
pub fn endings() -> (Vec<u8>, Vec<u8>) {
    (vec![NODE, NODE_ENDING], vec![NODE, NODE_ENDING + 1])
}

/// The replica of such a mark's key.
pub fn ending_replica(key: &[u8]) -> Result<ReplicaId, OrderedError> {
    match key {
        [NODE, NODE_ENDING, rest @ ..] => Ok(ReplicaId(ordered::take_u64(rest)?.0)),
        _ => Err(OrderedError("the mark of a destroyed replica")),
    }
}

/// Where the comparison of stored state goes on.
pub fn scrubbed() -> Vec<u8> {
    vec![NODE, NODE_SCRUBBED]
}

/// The mark of a replica that serves nothing and is to be rebuilt.
pub fn quarantine(replica: ReplicaId) -> Vec<u8> {
    let mut out = vec![NODE, NODE_QUARANTINE];
    ordered::put_u64(&mut out, replica.0);
    out
}

/// All such marks: start and end.
pub fn quarantines() -> (Vec<u8>, Vec<u8>) {
    (vec![NODE, NODE_QUARANTINE], vec![NODE, NODE_QUARANTINE + 1])
}

/// The replica of such a mark's key.
pub fn quarantined_replica(key: &[u8]) -> Result<ReplicaId, OrderedError> {
    match key {
        [NODE, NODE_QUARANTINE, rest @ ..] => Ok(ReplicaId(ordered::take_u64(rest)?.0)),
        _ => Err(OrderedError("the mark of a quarantined replica")),
    }
}

/// The entry of the clear list for a part of a slot. It says all, so that two parts never share one.
pub fn clear(slot: Slot, range: &KeyRange) -> Vec<u8> {
    let mut out = vec![NODE, NODE_CLEAR];
    ordered::put_u64(&mut out, slot.0);
    ordered::put_bytes(&mut out, &range.start);
    if let Some(end) = &range.end {
        ordered::put_bytes(&mut out, end);
    }
    out
}

/// The part of a slot that an entry of the clear list names.
pub fn cleared(entry: &[u8]) -> Result<(Slot, KeyRange), OrderedError> {
    let rest = entry.strip_prefix(&[NODE, NODE_CLEAR]);
    let rest = rest.ok_or(OrderedError("an entry of the clear list"))?;
    let (slot, rest) = ordered::take_u64(rest)?;
    let (start, rest) = ordered::take_bytes(rest)?;
    let end = match rest {
        [] => None,
        rest => Some(ordered::take_bytes(rest)?.0.into()),
    };
    let start = start.into();
    Ok((Slot(slot), KeyRange { start, end }))
}

/// The whole clear list: start and end.
pub fn clear_list() -> (Vec<u8>, Vec<u8>) {
    (vec![NODE, NODE_CLEAR], vec![NODE, NODE_CLEAR + 1])
}

/// The row of a shard's replica.
pub fn row(replica: ReplicaId) -> Vec<u8> {
    numbered(ROW, replica.0)
}

/// The rows of all shards' replicas: start and end.
pub fn rows() -> (Vec<u8>, Vec<u8>) {
    (vec![ROW], vec![ROW + 1])
}

/// The row of a replica of placement.
pub fn placement_row(replica: ReplicaId) -> Vec<u8> {
    numbered(PLACEMENT_ROW, replica.0)
}

/// The rows of all replicas of placement: start and end.
pub fn placement_rows() -> (Vec<u8>, Vec<u8>) {
    (vec![PLACEMENT_ROW], vec![PLACEMENT_ROW + 1])
}

/// A piece of placement's state.
pub fn placement_state(replica: ReplicaId, number: u32) -> Vec<u8> {
    let mut out = numbered(PLACEMENT_STATE, replica.0);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// The replica of a row's key.
pub fn row_replica(key: &[u8]) -> Result<ReplicaId, OrderedError> {
    match key.split_first() {
        Some((&(ROW | PLACEMENT_ROW), rest)) => Ok(ReplicaId(ordered::take_u64(rest)?.0)),
        _ => Err(OrderedError("the key of a row")),
    }
}

/// Where the newest version of a key is.
pub fn newest(slot: Slot, key: &[u8]) -> Vec<u8> {
    of_key(slot, Family::Newest, key, 0)
}

/// Where an older version of a key is.
pub fn history(slot: Slot, key: &[u8], stamp: Timestamp) -> Vec<u8> {
    let mut out = of_key(slot, Family::History, key, 8);
    ordered::put_stamp_newest_first(&mut out, stamp);
    out
}

/// Where the stored outcome of a request is; `key` is the request's first.
pub fn outcome(slot: Slot, key: &[u8], request: RequestId) -> Vec<u8> {
    let mut out = of_key(slot, Family::Outcome, key, 16);
    out.extend_from_slice(&request.0);
    out
}

/// Where a piece of a version's long value is.
pub fn chunk(slot: Slot, key: &[u8], stamp: Timestamp, number: u32) -> Vec<u8> {
    let mut out = of_key(slot, Family::Chunk, key, 12);
    ordered::put_stamp_newest_first(&mut out, stamp);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// All of one family for the keys of a range: start and end.
pub fn family(slot: Slot, family: Family, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let end = match &range.end {
        Some(end) => of_key(slot, family, end, 0),
        None => {
            let mut end = in_slot(slot, family, 0);
            *end.last_mut().expect("a prefix is not empty") += 1;
            end
        }
    };
    (of_key(slot, family, &range.start, 0), end)
}

/// The older versions of one key at or below a stamp, newest first: start and end.
pub fn history_from(slot: Slot, key: &[u8], stamp: Timestamp) -> (Vec<u8>, Vec<u8>) {
    let mut end = of_key(slot, Family::History, key, 0);
    *end.last_mut()
        .expect("an encoded key ends with its terminator") += 1;
    (history(slot, key, stamp), end)
}

/// The same place in another slot.
pub fn in_other_slot(slot: Slot, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SLOT_BYTES + rest.len());
    out.push(SLOT);
    ordered::put_u64(&mut out, slot.0);
    out.extend_from_slice(rest);
    out
}

/// A slot's keys without the slot: what [`in_other_slot`] takes.
pub fn without_slot(key: &[u8]) -> &[u8] {
    key.get(SLOT_BYTES..).unwrap_or_default()
}

/// All keys in slots: start and end.
pub fn slots() -> (Vec<u8>, Vec<u8>) {
    (vec![SLOT], vec![SLOT + 1])
}

/// The slot that a key is in.
pub fn slot_of(key: &[u8]) -> Result<Slot, OrderedError> {
    match key.split_first() {
        Some((&SLOT, rest)) => Ok(Slot(ordered::take_u64(rest)?.0)),
        _ => Err(OrderedError("a key outside of every slot")),
    }
}

/// Whether a key is in a slot.
pub fn is_in_slot(key: &[u8]) -> bool {
    key.first() == Some(&SLOT)
}

const SLOT_BYTES: usize = 9;

/// What a key inside a slot says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The family.
    pub family: Family,
    /// The user's key.
    pub key: Vec<u8>,
    /// What follows: stamp, request id or number.
    pub suffix: Vec<u8>,
}

impl Place {
    /// Reads the key of any family.
    pub fn of(encoded: &[u8]) -> Result<Place, OrderedError> {
        match encoded.first() {
            Some(&SLOT) => Place::without_slot(without_slot(encoded)),
            _ => Err(OrderedError("a key outside of every slot")),
        }
    }

    /// Reads what [`without_slot`] returned.
    pub fn without_slot(rest: &[u8]) -> Result<Place, OrderedError> {
        let (byte, rest) = rest.split_first().ok_or(OrderedError("a short key"))?;
        let family = Family::of(*byte).ok_or(OrderedError("an unknown family of keys"))?;
        let (key, suffix) = ordered::take_bytes(rest)?;
        Ok(Place {
            family,
            key,
            suffix: suffix.to_vec(),
        })
    }

    /// The stamp in the suffix of an older version or of a piece.
    pub fn stamp(&self) -> Result<Timestamp, OrderedError> {
        Ok(ordered::take_stamp_newest_first(&self.suffix)?.0)
    }
}

fn numbered(prefix: u8, number: u64) -> Vec<u8> {
    let mut out = vec![prefix];
    ordered::put_u64(&mut out, number);
    out
}

fn in_slot(slot: Slot, family: Family, more: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(SLOT_BYTES + 1 + more);
    out.push(SLOT);
    ordered::put_u64(&mut out, slot.0);
    out.push(family as u8);
    out
}

fn of_key(slot: Slot, family: Family, key: &[u8], suffix: usize) -> Vec<u8> {
    let mut out = in_slot(slot, family, key.len() + 4 + suffix);
    ordered::put_bytes(&mut out, key);
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn some_key() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 1..6)
    }

    proptest! {
        #[test]
        fn a_place_is_read_back(key in some_key(), slot in any::<u64>(), stamp in any::<u64>()) {
            let place = Place::of(&history(Slot(slot), &key, Timestamp(stamp))).unwrap();
            prop_assert_eq!(place.stamp(), Ok(Timestamp(stamp)));
            prop_assert_eq!((place.family, &place.key), (Family::History, &key));
            let place = Place::of(&newest(Slot(slot), &key)).unwrap();
            prop_assert_eq!((place.family, place.key), (Family::Newest, key));
        }

        #[test]
        fn a_range_of_a_family_holds_its_keys_and_no_others(
            key in some_key(), start in some_key(), end in some_key(), open in any::<bool>()
        ) {
            let range = KeyRange {
                start: Bytes::from(start),
                end: (!open).then(|| Bytes::from(end)),
            };
            let inside = |(start, end): (Vec<u8>, Vec<u8>), key: Vec<u8>| start <= key && key < end;
            for stamp in [0, 1, u64::MAX] {
                let place = history(Slot(7), &key, Timestamp(stamp));
                prop_assert_eq!(
                    inside(family(Slot(7), Family::History, &range), place.clone()),
                    range.contains(&key)
                );
                prop_assert!(!inside(family(Slot(7), Family::Newest, &range), place.clone()));
                prop_assert!(!inside(family(Slot(8), Family::History, &range), place));
            }
        }

        #[test]
        fn an_entry_of_the_clear_list_is_read_back(
            start in some_key(), end in some_key(), open in any::<bool>(), slot in any::<u64>()
        ) {
            let range = KeyRange {
                start: Bytes::from(start),
                end: (!open).then(|| Bytes::from(end)),
            };
            let entry = clear(Slot(slot), &range);
            prop_assert_eq!(cleared(&entry), Ok((Slot(slot), range)));
        }

        #[test]
        fn history_at_or_below_a_stamp_is_of_this_key_only(
            key in some_key(), other in some_key(), at in any::<u64>(), stamp in any::<u64>()
        ) {
            let (start, end) = history_from(Slot(1), &key, Timestamp(at));
            let place = history(Slot(1), &other, Timestamp(stamp));
            prop_assert_eq!(start <= place && place < end, other == key && stamp <= at);
        }

        #[test]
        fn places_in_a_family_are_ordered_by_user_key(left in some_key(), right in some_key()) {
            prop_assert_eq!(newest(Slot(1), &left).cmp(&newest(Slot(1), &right)), left.cmp(&right));
        }
    }

    #[test]
    fn the_longest_key_leaves_room_for_a_value() {
        let key = vec![0; crate::types::key::KEY_BYTES_MAX];
        let longest = chunk(Slot(u64::MAX), &key, Timestamp::MAX, u32::MAX).len();
        assert!(longest + 1024 <= STORED_BYTES_MAX, "{longest}");
    }
}
