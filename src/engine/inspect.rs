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
    let database = Database::of(file, segment_bytes as u64, from, |start, header| {
        match header {
            Segment::Unused => {}
            Segment::Damaged => inspected.add(&path, start, "the header of a segment"),
            Segment::Used { .. } => inspected.segments += 1,
        };
    })?;
    let mut suspects = Vec::new();
    for (number, start) in database.vouched() {
        let segment = database.read(start)?;
        inspected.replayed += 1;
        let flushed = database.flushed(number);
        let damage = format::damage_in(&segment, number);
        if let Some(offset) = damage.filter(|offset| *offset < flushed) {
            let pages = Pages::of(&segment, number, Some(offset));
            suspects.push((number, pages, start + offset as u64));
        }
        progress(segment.len() as u64);
    }
    if suspects.is_empty() {
        return Ok(inspected);
    }
    let anew = database.anew()?;
    for (number, pages, offset) in suspects {
        if !pages.may_be_freed(number, &anew) {
            inspected.add(&path, offset, "a message");
        }
    }
    Ok(inspected)
}

/// sled's one file, and where in it each part of the log is that sled reads again at a start.
struct Database {
    file: File,
    length: u64,
    segment_bytes: u64,
    /// By their numbers, which are their lsns by the length of a segment.
    segments: BTreeMap<u64, u64>,
    /// All of the log up to here was flushed: some header vouches for it.
    stable: u64,
}

impl Database {
    /// Reads all headers; the log is read from this lsn on.
    fn of(
        file: File,
        segment_bytes: u64,
        from: i64,
        mut seen: impl FnMut(u64, Segment),
    ) -> io::Result<Database> {
        let number = |lsn: i64| u64::try_from(lsn).unwrap_or_default() / segment_bytes;
        let first = number(from);
        let mut database = Database {
            length: file.metadata()?.len(),
            file,
            segment_bytes,
            segments: BTreeMap::new(),
            stable: first * segment_bytes,
        };
        for start in (0..database.length).step_by(segment_bytes as usize) {
            let mut header = [0; HEADER_BYTES];
            if database.length - start < HEADER_BYTES as u64 {
                break;
            }
            database.file.read_exact_at(&mut header, start)?;
            let header = Segment::of(&header);
            seen(start, header);
            let Segment::Used { lsn, stable } = header else {
                continue;
            };
            if number(lsn) >= first {
                database.segments.insert(number(lsn), start);
                let stable = u64::try_from(stable).unwrap_or_default();
                database.stable = database.stable.max(stable);
            }
        }
        Ok(database)
    }

    /// The last segment of which any part is vouched for.
    fn last(&self) -> u64 {
        self.stable / self.segment_bytes
    }

    /// The segments for which some header vouches, the last one perhaps in part.
    fn vouched(&self) -> impl Iterator<Item = (u64, u64)> {
        let vouched = self.segments.range(..=self.last());
        vouched.map(|(number, start)| (*number, *start))
    }

    /// How many bytes of this vouched segment were flushed.
    fn flushed(&self, number: u64) -> usize {
        let flushed = self.stable - number * self.segment_bytes;
        usize::try_from(flushed).unwrap_or(usize::MAX)
    }

    fn read(&self, start: u64) -> io::Result<Vec<u8>> {
        let there = self.segment_bytes.min(self.length - start);
        let mut bytes = vec![0; there as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// Of each page the last segment that begins it anew, of all that sled will read: what is vouched for,
    /// and behind it what follows without a tear.
    fn anew(&self) -> io::Result<BTreeMap<u64, u64>> {
        let mut anew = BTreeMap::new();
        let mut add = |pages: Pages, number: u64| {
            anew.extend(pages.anew.into_iter().map(|page| (page, number)));
        };
        for (number, start) in self.vouched() {
            add(Pages::of(&self.read(start)?, number, None), number);
        }
        let mut number = self.last();
        while let Some(start) = self.segments.get(&number) {
            let segment = self.read(*start)?;
            let end = format::end_of(&segment, number);
            let there = &segment[..end.unwrap_or(segment.len())];
            add(Pages::of(there, number, None), number);
            if end.is_some() {
                break;
            }
            number += 1;
        }
        Ok(anew)
    }
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
    /// header vouches for both. Behind the first, page 4 has messages of this kind.
    fn database(kind: u8) -> Vec<u8> {
        let length = SEGMENT_BYTES as i64;
        let mut file = Vec::new();
        for number in 0..3u8 {
            let lsn = i64::from(number) * length;
            let stable = if number == 2 { lsn - 1 } else { -1 };
            file.extend(header(lsn, stable));
            for page in 1..=13 {
                let kind = if number > 0 && page == 4 { kind } else { NODE };
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

    /// Four segments in the order of the log. The last one writes the pages of the first anew, or the third
    /// does; headers vouch for the first two.
    fn unvouched(anew: usize) -> Vec<u8> {
        let length = SEGMENT_BYTES as i64;
        let mut file = Vec::new();
        for number in 0..4u8 {
            let lsn = i64::from(number) * length;
            file.extend(header(lsn, if number == 3 { length } else { -1 }));
            let replaces = number == 0 || usize::from(number) == anew;
            let first = if replaces { 1 } else { 100 + 20 * number };
            for page in first..first + 13 {
                file.extend(message(NODE, number, page));
            }
            file.resize((usize::from(number) + 1) * SEGMENT_BYTES, 0);
        }
        file
    }

    /// The first header that would vouch for the segment that took its pages was the one of its own next life.
    #[test]
    fn a_freed_segment_is_no_damage_when_what_replaced_it_follows_without_a_tear() {
        for anew in [2, 3] {
            assert_eq!(damage(&unvouched(anew)), [""; 0]);
            assert_eq!(damage(&torn(unvouched(anew), 0)), [""; 0]);
        }
        // sled will not read what is behind a tear, or behind a gap.
        assert_eq!(damage(&torn(torn(unvouched(2), 0), 2)).len(), 1);
        assert_eq!(damage(&torn(torn(unvouched(3), 0), 2)).len(), 1);
        let mut gap = torn(unvouched(3), 0);
        gap[2 * SEGMENT_BYTES..3 * SEGMENT_BYTES].fill(0);
        assert_eq!(damage(&gap).len(), 1);
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
