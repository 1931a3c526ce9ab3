//! Looks at the engine's files before sled opens them, and changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::engine::format;
use crate::engine::format::HEADER_BYTES;
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
    for (lsn, start) in used.into_iter().filter(|(lsn, _)| *lsn <= last) {
        let there = step.min(length - start) as usize;
        file.read_exact_at(&mut bytes[..there], start)?;
        inspected.replayed += 1;
        let number = u64::try_from(lsn).unwrap_or_default() / step;
        let flushed = usize::try_from(stable - lsn).unwrap_or_default();
        let damage = format::damage_in(&bytes[..there], number);
        if let Some(offset) = damage.filter(|offset| *offset < flushed) {
            inspected.add(&path, start + offset as u64, "a message");
        }
        progress(there as u64);
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
