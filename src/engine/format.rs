//! The bytes of the engine's files, read more strictly than sled reads them. Decides only.
//!
//! sled keeps one file, cut into segments of equal length. A segment begins with a header and goes on with
//! messages, each with a checksum over all of it. A position in sled's log (an *lsn*) rises for ever; a
//! segment's says which part of the log it holds, until the segment is freed and used again for a later
//! part. At a start sled reads a summary of the log up to some lsn (a `snap` file, which has a checksum),
//! and then all messages from there on.
//!
//! **In that second part sled takes damage for the end of a segment**, skips to the next one, and goes on:
//! updates that were flushed are lost without a word, and what stood below them is served instead. That
//! may also be what a crash leaves, of a freed segment that was half-way to being used again; then the rest
//! of the segment holds messages of a later part of the log. Anything else was written once, and flushed
//! before the segments behind it were: it is damage, and is found here before sled opens the file.
//!
//! What this does not look at: messages below the summary are checked by sled when a page is read, and a
//! wrong one is an error there. In the last segments, whose flush no later header vouches for, a message
//! that cannot be read is a torn write or damage, nobody can tell. sled cuts its log there, as of one
//! moment, and what was cut is applied again from our log, which reaches back to what the summary of the
//! purge demands or the replica is not opened (`node/opener.rs`).

/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 20;
/// No message begins in the last bytes of a segment.
const MESSAGE_HEADER_BYTES_MAX: usize = 32;
const CORRUPTED: u8 = 0;
const CAP: u8 = 2;
const KIND_MAX: u8 = 11;

/// What a segment's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Never used, or wiped.
    Unused,
    /// In use, or freed and not used again yet.
    Used {
        /// Where in the log it begins.
        lsn: i64,
        /// All of the log up to here was flushed when the header was written.
        stable: i64,
    },
    /// Not what was written.
    Damaged,
}

impl Segment {
    /// Reads a header.
    pub(crate) fn of(header: &[u8; HEADER_BYTES]) -> Segment {
        const MASK: i64 = i64::MAX;
        if header.iter().all(|byte| *byte == CORRUPTED) {
            return Segment::Unused;
        }
        if u32::from_le_bytes(part(header, 0)) ^ u32::MAX != crc32fast::hash(&header[4..]) {
            return Segment::Damaged;
        }
        Segment::Used {
            lsn: i64::from_le_bytes(part(header, 4)) ^ MASK,
            stable: i64::from_le_bytes(part(header, 12)) ^ MASK,
        }
    }
}

/// The lsn that a summary goes up to; an error says what is wrong with the file.
pub(crate) fn summarized(file: &[u8]) -> Result<i64, String> {
    let (body, rest) = file
        .len()
        .checked_sub(12)
        .filter(|body| *body >= 8)
        .map(|body| file.split_at(body))
        .ok_or("it is too short")?;
    if u32::from_le_bytes(part(rest, 8)) != crc32fast::hash(body) {
        return Err("its checksum is wrong".to_owned());
    }
    let stored = i64::from_le_bytes(part(body, 0));
    Ok(if stored > 0 { stored - 1 } else { stored })
}

/// The first offset in a whole segment where a message cannot be read that was written there.
/// `number` is the segment's lsn by the length of a segment.
pub(crate) fn damage_in(segment: &[u8], number: u64) -> Option<usize> {
    let mut offset = HEADER_BYTES;
    while offset + MESSAGE_HEADER_BYTES_MAX <= segment.len() {
        match Message::at(segment, offset).filter(|message| message.number == number) {
            Some(message) if message.kind == CAP => return None,
            Some(message) => offset = message.end,
            None if is_used_again(segment, offset, number) => return None,
            None => return Some(offset),
        }
    }
    None
}

/// Whether a later part of the log stands behind this place.
fn is_used_again(segment: &[u8], from: usize, number: u64) -> bool {
    let last = segment.len().saturating_sub(MESSAGE_HEADER_BYTES_MAX);
    let mut messages = (from..=last).filter_map(|offset| Message::at(segment, offset));
    messages.any(|message| message.number > number)
}

/// A message whose checksum is right.
struct Message {
    kind: u8,
    number: u64,
    end: usize,
}

impl Message {
    fn at(segment: &[u8], offset: usize) -> Option<Message> {
        let bytes = &segment[offset..];
        let kind = *bytes.get(4)?;
        if kind == CORRUPTED || kind > KIND_MAX {
            return None;
        }
        let mut at = 5;
        let mut next = || {
            let (number, used) = number(bytes.get(at..)?)?;
            at += used;
            Some(number)
        };
        let (length, number, _page) = (next()?, next()?, next()?);
        let end = at.checked_add(usize::try_from(length).ok()?)?;
        let body = bytes.get(at..end)?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(body);
        checksum.update(&bytes[4..at]);
        let stored = u32::from_le_bytes(part(bytes, 0));
        (checksum.finalize() ^ u32::MAX == stored).then_some(Message {
            kind,
            number,
            end: offset + end,
        })
    }
}

/// A number as sled writes it, and how many bytes it took.
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let byte = |at: usize| bytes.get(at).map(|byte| u64::from(*byte));
    match first {
        0..=240 => Some((u64::from(first), 1)),
        241..=248 => Some((240 + 256 * (u64::from(first) - 241) + byte(1)?, 2)),
        249 => Some((2_288 + 256 * byte(1)? + byte(2)?, 3)),
        250..=255 => {
            let length = usize::from(first) - 247;
            let mut whole = [0; 8];
            whole[..length].copy_from_slice(bytes.get(1..=length)?);
            Some((u64::from_le_bytes(whole), length + 1))
        }
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the caller has seen that they are there")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES: usize = 4 + 5 + 300;
    /// With less room behind the last message than another one's header takes.
    const SEGMENT_BYTES: usize = HEADER_BYTES + 13 * MESSAGE_BYTES + 20;

    /// A segment with a message of each of these numbers, whose bodies have 300 bytes.
    fn segment(numbers: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xee; HEADER_BYTES];
        for number in numbers {
            // 300 is 240 + 60, in two bytes.
            let head = [8, 241, 60, *number, 7];
            let body = vec![*number; 300];
            let mut checksum = crc32fast::Hasher::new();
            checksum.update(&body);
            checksum.update(&head);
            bytes.extend((checksum.finalize() ^ u32::MAX).to_le_bytes());
            bytes.extend(head);
            bytes.extend(body);
        }
        bytes.resize(SEGMENT_BYTES, 0);
        bytes
    }

    /// As many as there is room for.
    const FULL: [u8; 13] = [5; 13];

    #[test]
    fn every_flipped_byte_of_a_message_is_found_where_it_begins() {
        assert_eq!(damage_in(&segment(&FULL), 5), None);
        let third = HEADER_BYTES + 2 * MESSAGE_BYTES;
        for at in third..third + MESSAGE_BYTES {
            let mut flipped = segment(&FULL);
            flipped[at] ^= 0x10;
            assert_eq!(damage_in(&flipped, 5), Some(third), "byte {at}");
        }
    }

    #[test]
    fn what_a_later_part_of_the_log_has_written_over_is_no_damage() {
        let mut reused = segment(&[5, 5, 5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(damage_in(&reused, 5), None);
        // Half a message between them.
        reused[HEADER_BYTES + 3 * MESSAGE_BYTES + 50] ^= 1;
        assert_eq!(damage_in(&reused, 5), None);
        // What is older than the segment was there before.
        let old = segment(&[5, 5, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(damage_in(&old, 5), Some(HEADER_BYTES + 3 * MESSAGE_BYTES));
    }

    #[test]
    fn a_header_is_read_and_no_flipped_byte_passes() {
        let mut header = [0; HEADER_BYTES];
        assert_eq!(Segment::of(&header), Segment::Unused);
        header[4..12].copy_from_slice(&(8_192 ^ i64::MAX).to_le_bytes());
        header[12..].copy_from_slice(&(77 ^ i64::MAX).to_le_bytes());
        let checksum = crc32fast::hash(&header[4..]) ^ u32::MAX;
        header[..4].copy_from_slice(&checksum.to_le_bytes());
        let (lsn, stable) = (8_192, 77);
        assert_eq!(Segment::of(&header), Segment::Used { lsn, stable });
        for at in 0..HEADER_BYTES {
            let mut flipped = header;
            flipped[at] ^= 1;
            assert_eq!(Segment::of(&flipped), Segment::Damaged, "byte {at}");
        }
    }

    #[test]
    fn a_summary_with_a_flipped_byte_is_not_believed() {
        let body = 4_097i64.to_le_bytes().to_vec();
        let mut file = body.clone();
        file.extend([0; 8]);
        file.extend(crc32fast::hash(&body).to_le_bytes());
        assert_eq!(summarized(&file), Ok(4_096));
        for at in (0..8).chain(16..20) {
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            assert!(summarized(&flipped).is_err(), "byte {at}");
        }
        assert!(summarized(&file[..10]).is_err());
    }
}
