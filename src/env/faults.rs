//! A machine that fails on purpose: files that are slow or full and a clock that is wrong, told by a
//! small file while the node runs. For tests of a whole node; one that is not told of such a file runs
//! on the machine's own files, with nothing in between.

use std::any::Any;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::env::clock::Clock;
use crate::env::files::File;
use crate::env::files::Files;

/// What disk and clock do wrong; the default is nothing. The file holds it as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Each sync takes so many milliseconds longer.
    pub sync_delay_ms: u64,
    /// No space is left: nothing grows, and no byte is free.
    pub full: bool,
    /// The wall clock is ahead by so many milliseconds, or behind.
    pub clock_offset_ms: i64,
}

/// How often the file is to be looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Looks at the file and hurts what it was given.
#[derive(Debug)]
pub struct FaultsFile {
    path: PathBuf,
    disk: Arc<DiskFaults>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct DiskFaults {
    sync_delay_ms: AtomicU64,
    full: AtomicBool,
}

impl FaultsFile {
    /// The file at `path` tells what is wrong with `clock` and with the files that come back, which are
    /// `files` else.
    pub fn new(path: PathBuf, clock: Clock, files: Arc<dyn Files>) -> (FaultsFile, Arc<dyn Files>) {
        let disk = Arc::new(DiskFaults::default());
        let faulty = FaultyFiles {
            inner: files,
            faults: Arc::clone(&disk),
        };
        (FaultsFile { path, disk, clock }, Arc::new(faulty))
    }

    /// Reads the file and does what it says. A file that is missing or makes no sense changes nothing.
    /// Blocks for the read.
    pub fn look(&self) -> io::Result<Faults> {
        let content = std::fs::read(&self.path)?;
        let faults: Faults = serde_json::from_slice(&content)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        let Faults {
            sync_delay_ms,
            full,
            clock_offset_ms,
        } = faults;
        self.disk
            .sync_delay_ms
            .store(sync_delay_ms, Ordering::Relaxed);
        self.disk.full.store(full, Ordering::Relaxed);
        self.clock.set_offset_ms(clock_offset_ms);
        Ok(faults)
    }
}

impl DiskFaults {
    fn may_grow(&self) -> io::Result<()> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "stands for a disk: whoever waits for one blocks a thread that may block"
    )]
    fn before_sync(&self) {
        let delay = self.sync_delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            thread::sleep(Duration::from_millis(delay));
        }
    }
}

struct FaultyFiles {
    inner: Arc<dyn Files>,
    faults: Arc<DiskFaults>,
}

struct FaultyFile {
    inner: Arc<dyn File>,
    faults: Arc<DiskFaults>,
}

impl FaultyFiles {
    fn faulty(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        let faults = Arc::clone(&self.faults);
        Arc::new(FaultyFile { inner, faults })
    }
}

impl Files for FaultyFiles {
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn File>> {
        self.faults.may_grow()?;
        let file = self.inner.create_zeroed(path, bytes)?;
        Ok(self.faulty(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.inner.open(path)?;
        Ok(self.faulty(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.before_sync();
        self.inner.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.faults.may_grow()?;
        self.inner.create_dir_all(dir)
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.inner.read(path)
    }

    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.faults.may_grow()?;
        self.faults.before_sync();
        self.inner.write_atomically(path, content)
    }

    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.inner.capacity_bytes(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        match self.faults.full.load(Ordering::Relaxed) {
            true => Ok(0),
            false => self.inner.free_bytes(dir),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.inner.lock(path)
    }
}

impl File for FaultyFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(bytes, offset)
    }

    // Over zeros that were written before: takes no space.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.before_sync();
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::files::DiskFiles;

    #[test]
    fn the_file_says_what_is_wrong_until_it_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults");
        let clock = Clock::system();
        let (file, files) = FaultsFile::new(path.clone(), clock.clone(), Arc::new(DiskFiles));
        assert!(file.look().is_err());
        let right = clock.wall_ms();
        std::fs::write(&path, r#"{"full": true, "clock_offset_ms": 1000000}"#).unwrap();
        let faults = file.look().unwrap();
        assert!(faults.full && faults.sync_delay_ms == 0);
        assert!(clock.wall_ms() >= right + 900_000);
        assert_eq!(files.free_bytes(dir.path()).unwrap(), 0);
        let refused = files
            .create_zeroed(&dir.path().join("a"), 10)
            .err()
            .unwrap();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(file.look().unwrap(), Faults::default());
        assert!(clock.wall_ms() < right + 900_000);
        let made = files.create_zeroed(&dir.path().join("a"), 10).unwrap();
        made.write_at(b"x", 3).unwrap();
        made.sync_data().unwrap();
        std::fs::write(&path, r#"{"fulll": true}"#).unwrap();
        assert!(file.look().is_err());
    }
}
