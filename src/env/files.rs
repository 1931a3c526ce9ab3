//! Files. Everything that stores something for good goes through [`Files`], so that a disk that
//! forgets what was not synced can stand in its place.
//!
//! Calls may block on the disk. A failed write or sync is final: the caller must not try it again and
//! hope, because the pages may be gone from memory and marked clean (it ends the node instead).

use std::any::Any;
use std::fs;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A file system, or something that stands in for one.
pub trait Files: Send + Sync + 'static {
    /// Makes a new file of `bytes` zeros that are really written, and syncs it, so that overwriting
    /// it later allocates nothing. Its name is not durable before [`Files::sync_dir`]. Fails when
    /// the file exists.
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn File>>;

    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name; a file of that name is replaced. Durable after
    /// [`Files::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Files::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names of the files directly in a directory, sorted. Names that are not UTF-8 are left out:
    /// none of ours are like that.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Returns when the names in a directory survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a directory and those above it, durably. A directory that exists is fine.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The content of a small file; `None` when there is no such file.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a small file as a whole: after a power cut at any moment it has either the old content
    /// or the new one. Durable on return.
    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Bytes that can still be written to the file system with this directory.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// The size of the file system with this directory, in bytes.
    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// How long the disk is busy with other things before it takes the next write. A real one lets its
    /// callers wait in the write itself; a simulated one has no thread to stop.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }

    /// Takes the file (made when missing) for this process until the answer is dropped, which a
    /// dying process does too. Fails with `WouldBlock` while somebody else has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
}

/// An open file.
pub trait File: Send + Sync + 'static {
    /// Fills `bytes` from `offset` on. Fails with `UnexpectedEof` beyond the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything written before the call survives a power cut (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskFiles;

const ZEROS: &[u8] = &[0; 1024 * 1024];

fn fill_with_zeros(file: &fs::File, bytes: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes {
        let portion = ZEROS
            .len()
            .min(usize::try_from(bytes - written).unwrap_or(usize::MAX));
        file.write_all_at(&ZEROS[..portion], written)?;
        written += portion as u64;
    }
    file.sync_all()
}

impl Files for DiskFiles {
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let filled = fill_with_zeros(&file, bytes);
        if filled.is_err() {
            // A full disk needs the room back that this one took.
            let _ = fs::remove_file(path);
        }
        filled.map(|()| -> Arc<dyn File> { Arc::new(DiskFile(file)) })
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options().read(true).write(true).open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
            .collect();
        fs::create_dir_all(dir)?;
        for made in missing {
            self.sync_dir(parent(made))?;
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Some(content))
    }

    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let draft = draft_of(path);
        let mut file = fs::File::create(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        self.sync_dir(parent(path))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(dir)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(dir)?;
        Ok(system.f_blocks.saturating_mul(system.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(Box::new(file))
    }
}

struct DiskFile(fs::File);

impl File for DiskFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Taken out by the power cut test alone, to show that it can fail.
        if cfg!(quorate_without_log_sync) {
            return Ok(());
        }
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Where [`Files::write_atomically`] writes before it renames.
pub fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".draft");
    PathBuf::from(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zeroed_file_is_made_once_and_overwritten_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = DiskFiles.create_zeroed(&path, 3_000_000).unwrap();
        assert!(DiskFiles.create_zeroed(&path, 1).is_err());
        file.write_at(b"hello", 2_999_000).unwrap();
        file.sync_data().unwrap();
        let mut read = [1; 7];
        DiskFiles
            .open(&path)
            .unwrap()
            .read_at(&mut read, 2_998_999)
            .unwrap();
        assert_eq!(&read, b"\0hello\0");
        assert_eq!(file.len().unwrap(), 3_000_000);
        let beyond = file.read_at(&mut read, 2_999_999).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_small_file_is_replaced_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("x/y");
        DiskFiles.create_dir_all(&below).unwrap();
        let path = below.join("identity");
        assert_eq!(DiskFiles.read(&path).unwrap(), None);
        DiskFiles.write_atomically(&path, b"one").unwrap();
        DiskFiles.write_atomically(&path, b"2").unwrap();
        assert_eq!(DiskFiles.read(&path).unwrap().unwrap(), b"2");
        assert_eq!(DiskFiles.list(&below).unwrap(), ["identity"]);
        assert!(DiskFiles.free_bytes(&below).unwrap() > 0);
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = DiskFiles.lock(&path).unwrap();
        let refused = DiskFiles.lock(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        DiskFiles.lock(&path).unwrap();
    }
}
