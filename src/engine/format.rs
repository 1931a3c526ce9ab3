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
//! may also be what a crash leaves, of a freed segment that was half-way to being used again. A power cut
//! keeps any pages of what was not flushed, so the first one, with the new header, may be lost and a later
//! one be there, with a whole message of a later part of the log in it, or with a piece out of the middle of
//! one, which nothing tells from damage. What tells is the rest of the segment: sled frees one only when every
//! page that it has messages of was written anew, whole, in a later one that was flushed since. The first
//! header that would vouch for that one may be the one that the cut has lost: what counts is that sled will
//! read it, as all segments that follow each other without a tear. So a segment of whose pages any was not
//! written anew in those may not have been freed. Anything that it holds was written once, and flushed before
//! the segments behind it were: it is damage, and is found here before sled opens the file.
//! Damage to a segment all of whose pages were written anew loses nothing, and is let pass.
//!
//! What this does not look at: messages below the summary are checked by sled when a page is read, and a
//! wrong one is an error there. In the last segments, whose flush no later header vouches for, a message
//! that cannot be read is a torn write or damage, nobody can tell. sled cuts its log there, as of one
//! moment, and what was cut is applied again from our log, which reaches back to what the summary of the
//! purge demands or the replica is not opened (`node/opener.rs`).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 20;
/// No message begins in the last bytes of a segment.
const MESSAGE_HEADER_BYTES_MAX: usize = 32;
const CORRUPTED: u8 = 0;
const CAP: u8 = 2;
/// From here on messages are about pages.
const FREE: u8 = 4;
/// From here on they add to what is there; the ones before begin a page anew.
const LINK: u8 = 10;
const KIND_MAX: u8 = 11;
/// A disk writes so many bytes as a whole, or not.
const SECTOR_BYTES: usize = 512;

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
    end_of(segment, number).filter(|offset| !is_used_again(segment, *offset, number))
}

/// Where in a segment no further message of this part of the log can be read; none when it is full.
pub(super) fn end_of(segment: &[u8], number: u64) -> Option<usize> {
    let mut offset = HEADER_BYTES;
    while offset + MESSAGE_HEADER_BYTES_MAX <= segment.len() {
        match Message::at(segment, offset).filter(|message| message.number == number) {
            Some(message) if message.kind == CAP => return None,
            Some(message) => offset = message.end,
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

/// Which pages a segment has messages of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    /// All of them.
    pub(super) all: BTreeSet<u64>,
    /// Those that are begun anew.
    pub(super) anew: BTreeSet<u64>,
}

impl Pages {
    /// Of all messages of this part of the log, also of those behind the first that cannot be read, which
    /// begins at `torn`.
    pub(super) fn of(segment: &[u8], number: u64, torn: Option<usize>) -> Pages {
        let mut pages = Pages::default();
        let head = torn.and_then(|offset| Head::beside(segment, offset));
        if let Some(head) = head.filter(|head| head.number == number) {
            pages.add(head.kind, head.page);
        }
        let mut offset = HEADER_BYTES;
        while offset + MESSAGE_HEADER_BYTES_MAX <= segment.len() {
            match Message::at(segment, offset).filter(|message| message.number == number) {
                Some(message) => {
                    pages.add(message.kind, message.page);
                    offset = message.end;
                }
                None => offset += 1,
            }
        }
        pages
    }

    fn add(&mut self, kind: u8, page: u64) {
        if kind < FREE {
            return;
        }
        self.all.insert(page);
        if kind < LINK {
            self.anew.insert(page);
        }
    }

    /// Whether the segment of this number with these pages may have been freed. `anew` says of pages the
    /// last segment that begins them anew.
    pub(super) fn may_be_freed(&self, number: u64, anew: &BTreeMap<u64, u64>) -> bool {
        let is_replaced = |page: &u64| anew.get(page).is_some_and(|by| *by > number);
        self.all.iter().all(is_replaced)
    }
}

/// What a message says before its body.
struct Head {
    kind: u8,
    number: u64,
    page: u64,
    /// Where the body begins and ends, from the beginning of the message.
    body: (usize, usize),
}

impl Head {
    fn at(bytes: &[u8]) -> Option<Head> {
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
        let (length, number, page) = (next()?, next()?, next()?);
        let end = at.checked_add(usize::try_from(length).ok()?)?;
        Some(Head {
            kind,
            number,
            page,
            body: (at, end),
        })
    }

    /// Of a message that cannot be read, behind something that can: where both are in one sector, the disk
    /// has kept them both.
    fn beside(segment: &[u8], offset: usize) -> Option<Head> {
        let head = Head::at(&segment[offset..])?;
        let last = offset + head.body.0 - 1;
        ((offset - 1) / SECTOR_BYTES == last / SECTOR_BYTES).then_some(head)
    }
}

/// A message whose checksum is right.
struct Message {
    kind: u8,
    number: u64,
    page: u64,
    end: usize,
}

impl Message {
    fn at(segment: &[u8], offset: usize) -> Option<Message> {
        let bytes = &segment[offset..];
        let head = Head::at(bytes)?;
        let (begin, end) = head.body;
        let body = bytes.get(begin..end)?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(body);
        checksum.update(&bytes[4..begin]);
        let stored = u32::from_le_bytes(part(bytes, 0));
        (checksum.finalize() ^ u32::MAX == stored).then_some(Message {
            kind: head.kind,
            number: head.number,
            page: head.page,
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
pub(super) mod tests {
    use super::*;

    const MESSAGE_BYTES: usize = 4 + 5 + 300;
    /// With less room behind the last message than another one's header takes.
    pub(in crate::engine) const SEGMENT_BYTES: usize = HEADER_BYTES + 13 * MESSAGE_BYTES + 20;

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

    /// A message of a part of the log, about a page.
    pub(in crate::engine) fn message(kind: u8, number: u8, page: u8) -> Vec<u8> {
        let head = [kind, 241, 60, number, page];
        let body = vec![number; 300];
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&body);
        checksum.update(&head);
        let checksum = (checksum.finalize() ^ u32::MAX).to_le_bytes();
        [&checksum[..], &head, &body].concat()
    }

    #[test]
    fn a_segment_whose_pages_were_all_written_anew_may_have_been_freed_and_no_other() {
        let (node, link) = (8, 10);
        let messages: Vec<Vec<u8>> = (1..=12).map(|page| message(node, 5, page)).collect();
        let mut torn = vec![0xee; HEADER_BYTES];
        torn.extend(messages.concat());
        // The third, from its middle on, up to the sixth: a piece of a later message.
        let (from, to) = (
            HEADER_BYTES + 2 * MESSAGE_BYTES + 100,
            HEADER_BYTES + 5 * MESSAGE_BYTES + 9,
        );
        torn[from..to].fill(0x55);
        let offset = damage_in(&torn, 5);
        assert_eq!(offset, Some(HEADER_BYTES + 2 * MESSAGE_BYTES));
        let pages = Pages::of(&torn, 5, offset);
        let seen = [1, 2, 3, 7, 8, 9, 10, 11, 12];
        assert_eq!(pages.all, seen.into(), "the third by its head");

        let mut anew: BTreeMap<u64, u64> = (1..=12).map(|page| (page, 7)).collect();
        assert!(pages.may_be_freed(5, &anew));
        // Any that is still needed, before, at and behind what cannot be read.
        for page in seen {
            let by = anew.insert(page, 5);
            assert!(!pages.may_be_freed(5, &anew), "page {page}");
            anew.remove(&page);
            assert!(!pages.may_be_freed(5, &anew), "page {page}");
            anew.extend(by.map(|by| (page, by)));
        }

        // What adds to a page does not begin it anew, and what was given up is about none.
        let mut later = vec![0xee; HEADER_BYTES];
        later.extend([message(node, 7, 1), message(link, 7, 2), message(4, 7, 3)].concat());
        later.extend(message(1, 7, 9));
        later.resize(SEGMENT_BYTES, 0);
        let pages = Pages::of(&later, 7, None);
        assert_eq!((pages.all, pages.anew), ([1, 2, 3].into(), [1, 3].into()));
    }

    #[test]
    fn the_head_of_what_cannot_be_read_counts_only_in_a_sector_that_was_kept() {
        let mut segment = vec![0xee; HEADER_BYTES];
        segment.extend(message(8, 5, 1));
        segment.resize(SECTOR_BYTES - 3, 0);
        let offset = segment.len();
        segment.extend(message(8, 5, 2));
        assert!(Head::beside(&segment, offset).is_none());
        assert!(Head::beside(&segment, HEADER_BYTES).is_some());
    }

    /// The header of a segment.
    pub(in crate::engine) fn header(lsn: i64, stable: i64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[4..12].copy_from_slice(&(lsn ^ i64::MAX).to_le_bytes());
        header[12..].copy_from_slice(&(stable ^ i64::MAX).to_le_bytes());
        let checksum = crc32fast::hash(&header[4..]) ^ u32::MAX;
        header[..4].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    #[test]
    fn a_header_is_read_and_no_flipped_byte_passes() {
        let mut header = [0; HEADER_BYTES];
        assert_eq!(Segment::of(&header), Segment::Unused);
        let (lsn, stable) = (8_192, 77);
        header = self::header(lsn, stable);
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
