//! Looks at the engine's files before sled opens them, and changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::engine::format;
use crate::engine::format::HEADER_BYTES;
use crate::engine::format::Pages;
use crate::engine::format::Segment;

/// sled's one file.
pub(super) const DATABASE: &str = "db";

/// What is in the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Segments that hold a part of sled's log.
    pub segments: u64,
    /// Of these, those that sled reads again at a start, and that were read here.
    pub replayed: u64,
    /// What was written once and cannot be read: file and offset, and why.
    pub damage: Vec<String>,
}

/// Reads what sled will read when it opens the database in this directory, whose segments have this
/// length; `progress` hears of bytes read. Files that are not there are no damage. Blocks on the disk.
pub fn inspect(
    directory: &Path,
    segment_bytes: usize,
    mut progress: impl FnMut(u64),
) -> io::Result<Inspected> {
    let mut inspected = Inspected::default();
    let Some(from) = inspected.summary(directory)? else {
        return Ok(inspected);
    };
    let path = directory.join(DATABASE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(inspected),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let step = segment_bytes as u64;
    let first = from / segment_bytes as i64 * segment_bytes as i64;
    let mut used = Vec::new();
    let mut stable = first;
    for start in (0..length).step_by(segment_bytes) {
        let mut header = [0; HEADER_BYTES];
        if length - start < HEADER_BYTES as u64 {
            break;
        }
        file.read_exact_at(&mut header, start)?;
        match Segment::of(&header) {
            Segment::Unused => {}
            Segment::Damaged => inspected.add(&path, start, "the header of a segment"),
            Segment::Used { lsn, stable: up_to } => {
                inspected.segments += 1;
                if lsn >= first {
                    used.push((lsn, start));
                    stable = stable.max(up_to);
                }
            }
        }
    }
    // No header vouches for what is behind.
    let last = stable / segment_bytes as i64 * segment_bytes as i64;
    let mut bytes = vec![0; segment_bytes];
    let mut read = |start: u64| {
        let there = step.min(length - start) as usize;
        file.read_exact_at(&mut bytes[..there], start)?;
        io::Result::Ok(bytes[..there].to_vec())
    };
    let number = |lsn: i64| u64::try_from(lsn).unwrap_or_default() / step;
    let mut suspects = Vec::new();
    for (lsn, start) in used.iter().copied().filter(|(lsn, _)| *lsn <= last) {
        let segment = read(start)?;
        inspected.replayed += 1;
        let flushed = usize::try_from(stable - lsn).unwrap_or_default();
        let damage = format::damage_in(&segment, number(lsn));
        if let Some(offset) = damage.filter(|offset| *offset < flushed) {
            let pages = Pages::of(&segment, number(lsn), Some(offset));
            suspects.push((number(lsn), pages, start + offset as u64));
        }
        progress(segment.len() as u64);
    }
    if suspects.is_empty() {
        return Ok(inspected);
    }
    let mut anew: BTreeMap<u64, u64> = BTreeMap::new();
    for (lsn, start) in used.into_iter().filter(|(lsn, _)| *lsn <= last) {
        for page in Pages::of(&read(start)?, number(lsn), None).anew {
            let last = anew.entry(page).or_default();
            *last = number(lsn).max(*last);
        }
    }
    for (number, pages, offset) in suspects {
        if !pages.may_be_freed(number, &anew) {
            inspected.add(&path, offset, "a message");
        }
    }
    Ok(inspected)
}

impl Inspected {
    /// Where the newest summary ends; 0 without one, and `None` when it is damaged.
    fn summary(&mut self, directory: &Path) -> io::Result<Option<i64>> {
        let mut newest = None;
        for entry in directory.read_dir()? {
            let name = entry?.file_name();
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("snap.") && !name.ends_with(".generating") {
                newest = newest.max(Some(name));
            }
        }
        let Some(path) = newest.map(|name| directory.join(name)) else {
            return Ok(Some(0));
        };
        match format::summarized(&std::fs::read(&path)?) {
            Ok(lsn) => Ok(Some(lsn)),
            Err(reason) => {
                self.damage.push(format!("{}: {reason}", path.display()));
                Ok(None)
            }
        }
    }

    fn add(&mut self, path: &Path, offset: u64, what: &str) {
        let text = format!(
            "{} at offset {offset}: {what} is not what was written",
            path.display()
        );
        self.damage.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::tests::SEGMENT_BYTES;
    use crate::engine::format::tests::header;
    use crate::engine::format::tests::message;

    const NODE: u8 = 8;
    const LINK: u8 = 10;

    /// Three segments in the order of the log: two with a message of each of thirteen pages, and one whose
    /// header vouches for both. In the second, page 4 has a message of this kind.
    fn database(kind: u8) -> Vec<u8> {
        let length = SEGMENT_BYTES as i64;
        let mut file = Vec::new();
        for number in 0..3u8 {
            let lsn = i64::from(number) * length;
            let stable = if number == 2 { lsn - 1 } else { -1 };
            file.extend(header(lsn, stable));
            for page in 1..=13 {
                let kind = if (number, page) == (1, 4) { kind } else { NODE };
                file.extend(message(kind, number, page));
            }
            file.resize((usize::from(number) + 1) * SEGMENT_BYTES, 0);
        }
        file
    }

    fn damage(file: &[u8]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(DATABASE), file).unwrap();
        let inspected = inspect(directory.path(), SEGMENT_BYTES, |_| {}).unwrap();
        inspected.damage
    }

    /// Pages of the disk in the middle of a segment that hold a piece of one long message of another one.
    fn torn(mut file: Vec<u8>, segment: usize) -> Vec<u8> {
        let start = segment * SEGMENT_BYTES;
        file[start + 1_000..start + 3_000].fill(0x55);
        file
    }

    #[test]
    fn a_freed_segment_of_which_a_cut_has_kept_the_first_page_and_lost_the_rest_is_no_damage() {
        assert_eq!(damage(&database(NODE)), [""; 0]);
        assert_eq!(damage(&torn(database(NODE), 0)), [""; 0]);
    }

    #[test]
    fn what_was_flushed_and_is_still_needed_is_damage_wherever_it_cannot_be_read() {
        // Nothing later has its pages.
        assert_eq!(damage(&torn(database(NODE), 1)).len(), 1);
        // A page was added to, and needs what it had before.
        assert_eq!(damage(&torn(database(LINK), 0)).len(), 1);
        let mut flipped = database(LINK);
        for page in 0..13 {
            // In the body of each message of the first segment, of which one is needed.
            let at = HEADER_BYTES + page * 309 + 100;
            flipped[at] ^= 0x10;
            assert_eq!(damage(&flipped).len(), 1, "page {}", page + 1);
            flipped[at] ^= 0x10;
        }
        // No header vouches for the last segment: a torn write, nobody can tell.
        assert_eq!(damage(&torn(database(NODE), 2)), [""; 0]);
    }
}
