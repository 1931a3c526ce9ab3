//! The files of the log: their names, their headers, and the files kept ready to become the next one.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::env::files::File;
use crate::env::files::Files;
use crate::wal::WalError;
use crate::wal::record::FORMAT;

/// Bytes before the first record: a sector of its own, never written again.
pub(super) const HEADER_BYTES: u64 = 512;
/// Zeros that end the records when no others follow.
pub(super) const END_BYTES: usize = 4;

const MAGIC: &[u8; 8] = b"quorumwl";

/// What a segment says about itself and those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Its number: one above that of the segment before. Never used twice.
    pub(super) sequence: u64,
    /// No segment below this one is needed any more.
    pub(super) oldest: u64,
    /// Where the records of the segment before end. All of them are synced.
    pub(super) previous_end: u64,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&u32::from(FORMAT).to_le_bytes());
        for number in [self.sequence, self.oldest, self.previous_end] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.resize(HEADER_BYTES as usize, 0);
        bytes
    }

    /// Reads the header of the segment named `sequence`.
    pub(super) fn decode(bytes: &[u8], sequence: u64) -> Result<Header, HeaderError> {
        let (fields, checksum) = bytes.get(..CHECKED_BYTES + 4).map_or_else(
            || Err(HeaderError::Damaged("it is too short")),
            |head| Ok(head.split_at(CHECKED_BYTES)),
        )?;
        if &fields[..8] != MAGIC {
            return Err(HeaderError::Damaged("it does not begin as a segment does"));
        }
        if crc32c::crc32c(fields).to_le_bytes() != *checksum {
            return Err(HeaderError::Damaged("its header's checksum is wrong"));
        }
        let version = u32::from_le_bytes(four(&fields[8..12]));
        if version != u32::from(FORMAT) {
            return Err(HeaderError::Version(version));
        }
        let number = |at: usize| u64::from_le_bytes(eight(&fields[at..at + 8]));
        let header = Header {
            sequence: number(12),
            oldest: number(20),
            previous_end: number(28),
        };
        if header.sequence != sequence || header.oldest > sequence {
            return Err(HeaderError::Damaged("it is another segment"));
        }
        Ok(header)
    }
}

const CHECKED_BYTES: usize = 36;

fn four(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().expect("four bytes were cut out")
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    bytes.try_into().expect("eight bytes were cut out")
}

/// Bytes that are no header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged(&'static str),
    Version(u32),
}

/// The file of segment `sequence`.
pub(super) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("log-{sequence:016x}"))
}

/// The number in a segment's name.
pub(super) fn segment_sequence(name: &str) -> Option<u64> {
    numbered(name, "log-")
}

/// The number in the name of a file kept ready.
pub(super) fn spare_number(name: &str) -> Option<u64> {
    numbered(name, "spare-")
}

fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("spare-{number:016x}"))
}

fn numbered(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// A file of full length that is no segment. What is in it does not matter: checksums tell it from
/// what will be written there.
pub(super) struct Spare {
    path: PathBuf,
    file: Arc<dyn File>,
}

/// Files kept ready to become segments, so that the log neither waits for 32 MiB of zeros nor needs
/// space when there is none.
pub(super) struct Spares {
    files: Arc<dyn Files>,
    dir: PathBuf,
    segment_bytes: u64,
    /// As many are kept; what is freed beyond is given back to the file system.
    keep: usize,
    ready: Vec<Spare>,
    next_number: u64,
    maker: Option<Maker>,
}

/// A thread that writes zeros while the log's own goes on.
struct Maker {
    orders: mpsc::SyncSender<PathBuf>,
    made: mpsc::Receiver<Result<Spare, (PathBuf, io::Error)>>,
    ordered: usize,
}

impl Spares {
    pub(super) fn new(
        files: Arc<dyn Files>,
        dir: PathBuf,
        segment_bytes: u64,
        keep: usize,
    ) -> Spares {
        Spares {
            files,
            dir,
            segment_bytes,
            keep,
            ready: Vec::new(),
            next_number: 0,
            maker: None,
        }
    }

    /// Takes over a file that an earlier run has kept ready; one of another length is removed.
    pub(super) fn adopt(&mut self, name: &str, number: u64) -> Result<(), WalError> {
        self.next_number = self.next_number.max(number + 1);
        let path = self.dir.join(name);
        let opened = self.files.open(&path);
        let file = opened.map_err(|error| WalError::io("open", &path, error))?;
        let length = file.len();
        let length = length.map_err(|error| WalError::io("measure", &path, error))?;
        if length != self.segment_bytes || self.ready.len() >= self.keep {
            return self.remove(&path);
        }
        self.ready.push(Spare { path, file });
        Ok(())
    }

    /// Takes over a segment that is not needed any more. The header that says so must be synced.
    pub(super) fn recycle(&mut self, sequence: u64) -> Result<(), WalError> {
        let from = segment_path(&self.dir, sequence);
        if self.ready.len() >= self.keep {
            return self.remove(&from);
        }
        let number = self.next_number;
        self.next_number += 1;
        let to = spare_path(&self.dir, number);
        let renamed = self.files.rename(&from, &to);
        renamed.map_err(|error| WalError::io("rename", &from, error))?;
        let name = format!("spare-{number:016x}");
        self.adopt(&name, number)
    }

    /// Makes the next segment. When this returns it survives a power cut, with its header and nothing
    /// else in it.
    pub(super) fn start_segment(&mut self, header: &Header) -> Result<Arc<dyn File>, WalError> {
        let spare = self.take()?;
        let mut head = header.encode();
        head.extend_from_slice(&[0; END_BYTES]);
        let written = spare.file.write_at(&head, 0);
        written.map_err(|error| WalError::io("write the header of", &spare.path, error))?;
        let synced = spare.file.sync_data();
        synced.map_err(|error| WalError::io("sync", &spare.path, error))?;
        let path = segment_path(&self.dir, header.sequence);
        let renamed = self.files.rename(&spare.path, &path);
        renamed.map_err(|error| WalError::io("rename", &spare.path, error))?;
        let synced = self.files.sync_dir(&self.dir);
        synced.map_err(|error| WalError::io("sync the directory of", &path, error))?;
        self.order();
        Ok(spare.file)
    }

    /// See [`Files::busy`].
    pub(super) fn disk_busy(&self) -> Duration {
        self.files.busy()
    }

    /// From now on files are made ready by a thread of their own.
    pub(super) fn make_ahead(&mut self) -> io::Result<()> {
        let (orders, ordered) = mpsc::sync_channel::<PathBuf>(self.keep.max(1));
        let (give, made) = mpsc::sync_channel(self.keep.max(1));
        let files = self.files.clone();
        let bytes = self.segment_bytes;
        let work = move || {
            while let Ok(path) = ordered.recv() {
                let spare = match files.create_zeroed(&path, bytes) {
                    Ok(file) => Ok(Spare { path, file }),
                    Err(error) => Err((path, error)),
                };
                if give.send(spare).is_err() {
                    return;
                }
            }
        };
        let name = "wal-spares".to_string();
        std::thread::Builder::new().name(name).spawn(work)?;
        self.maker = Some(Maker {
            orders,
            made,
            ordered: 0,
        });
        self.order();
        Ok(())
    }

    fn order(&mut self) {
        let Some(maker) = &mut self.maker else {
            return;
        };
        while let Ok(made) = maker.made.try_recv() {
            maker.ordered -= 1;
            self.ready.extend(made_or_logged(made));
        }
        while self.ready.len() + maker.ordered < self.keep {
            let path = spare_path(&self.dir, self.next_number);
            if maker.orders.try_send(path).is_err() {
                return;
            }
            self.next_number += 1;
            maker.ordered += 1;
        }
    }

    fn take(&mut self) -> Result<Spare, WalError> {
        if let Some(spare) = self.ready.pop() {
            return Ok(spare);
        }
        if let Some(spare) = self.take_ordered() {
            return Ok(spare);
        }
        let path = spare_path(&self.dir, self.next_number);
        self.next_number += 1;
        let made = self.files.create_zeroed(&path, self.segment_bytes);
        let file = made.map_err(|error| WalError::io("make", &path, error))?;
        Ok(Spare { path, file })
    }

    fn take_ordered(&mut self) -> Option<Spare> {
        let maker = self.maker.as_mut().filter(|maker| maker.ordered > 0)?;
        let made = maker.made.recv().ok()?;
        maker.ordered -= 1;
        made_or_logged(made)
    }

    fn remove(&self, path: &Path) -> Result<(), WalError> {
        let removed = self.files.remove(path);
        removed.map_err(|error| WalError::io("remove", path, error))
    }
}

// A file that could not be made ahead is no failure yet: the log may never need it.
fn made_or_logged(made: Result<Spare, (PathBuf, io::Error)>) -> Option<Spare> {
    made.inspect_err(|(path, error)| {
        tracing::warn!(path = %path.display(), %error, "no log file could be made ready");
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        sequence: 7,
        oldest: 3,
        previous_end: 4_096,
    };

    #[test]
    fn a_header_is_read_back_and_no_flipped_byte_passes() {
        let bytes = HEADER.encode();
        assert_eq!(bytes.len(), HEADER_BYTES as usize);
        assert_eq!(Header::decode(&bytes, 7), Ok(HEADER));
        assert!(Header::decode(&bytes, 8).is_err());
        for at in 0..CHECKED_BYTES + 4 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Header::decode(&flipped, 7).is_err(), "byte {at}");
        }
    }

    #[test]
    fn names_are_read_back() {
        let path = segment_path(Path::new("d"), 0x1f);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(segment_sequence(name), Some(0x1f));
        assert_eq!(segment_sequence("log-1"), None);
        assert_eq!(spare_number("log-000000000000001f"), None);
    }
}
