//! What a node remembers of what others have told it: a list in a file beside the log, with a checksum.
//!
//! The file is only a memory, for a start while nobody can be asked: a damaged one is as good as none, and what is
//! told again replaces it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tracing::warn;

use crate::codec::value;
use crate::env::files::Files;
use crate::env::tasks::offload;

const FORMAT: u8 = 1;
/// Bytes of the checksum behind the list.
const CHECKSUM_BYTES: usize = 4;

/// A list on the disk.
pub(super) struct Remembered {
    /// The name of the file, and what it is called when it is damaged.
    name: &'static str,
    files: Arc<dyn Files>,
    path: PathBuf,
    /// Held while the file is written: what is written last is what is known last.
    writing: Mutex<()>,
}

impl Remembered {
    /// The file of that name in the directory. Nothing is read yet.
    pub(super) fn new(files: Arc<dyn Files>, directory: &Path, name: &'static str) -> Remembered {
        Remembered {
            name,
            files,
            path: directory.join(name),
            writing: Mutex::default(),
        }
    }

    /// What is remembered; nothing where the file is not there, or damaged. Blocks on the disk.
    pub(super) fn read<T: DeserializeOwned>(&self) -> io::Result<Vec<T>> {
        let Some(bytes) = self.files.read(&self.path)? else {
            return Ok(Vec::new());
        };
        Ok(decode(self.name, &bytes).unwrap_or_else(|reason| {
            warn!(path = %self.path.display(), reason, "what was remembered is damaged; placement will tell it again");
            Vec::new()
        }))
    }

    /// Remembers the list instead of what was remembered. Cancel-safe: the file has one or the other.
    pub(super) async fn write<T: Serialize>(
        &self,
        list: impl FnOnce() -> Vec<T>,
    ) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let bytes = encode(&list());
        let (files, path) = (Arc::clone(&self.files), self.path.clone());
        offload(move || files.write_atomically(&path, &bytes)).await
    }
}

/// How many a file remembers; `None` when there is none. The error says what is wrong with it, which does no harm.
pub(super) fn inspect<T: DeserializeOwned>(
    files: &dyn Files,
    directory: &Path,
    name: &'static str,
) -> Result<Option<usize>, String> {
    let bytes = files.read(&directory.join(name));
    match bytes.map_err(|error| error.to_string())? {
        Some(bytes) => decode::<T>(name, &bytes).map(|list| Some(list.len())),
        None => Ok(None),
    }
}

/// Whether these bytes are such a file; what is read is written as it was. For the tests that try every decoder.
pub(super) fn is_list<T>(name: &'static str, bytes: &[u8]) -> bool
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(list) = decode::<T>(name, bytes) else {
        return false;
    };
    assert_eq!(decode(name, &encode(&list)), Ok(list));
    true
}

fn encode<T: Serialize>(list: &[T]) -> Vec<u8> {
    let mut bytes = value::encode(FORMAT, &list);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

pub(super) fn decode<T: DeserializeOwned>(
    name: &'static str,
    bytes: &[u8],
) -> Result<Vec<T>, String> {
    let split = bytes.len().checked_sub(CHECKSUM_BYTES);
    let (bytes, checksum) = bytes.split_at(split.ok_or("it is cut off")?);
    if crc32c::crc32c(bytes).to_be_bytes() != checksum {
        return Err("its checksum does not match".into());
    }
    value::decode(name, FORMAT, bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::files::DiskFiles;

    fn open(directory: &Path) -> Remembered {
        Remembered::new(Arc::new(DiskFiles), directory, "numbers")
    }

    #[tokio::test]
    async fn a_damaged_memory_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = open(dir.path());
        assert_eq!(remembered.read::<u64>().unwrap(), [0; 0]);
        remembered.write(|| vec![1_u64, 2]).await.unwrap();
        assert_eq!(open(dir.path()).read::<u64>().unwrap(), [1, 2]);
        let path = dir.path().join("numbers");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            decode::<u64>("numbers", &flipped).unwrap_err();
            decode::<u64>("numbers", &whole[..at]).unwrap_err();
        }
        std::fs::write(&path, &whole[1..]).unwrap();
        assert_eq!(open(dir.path()).read::<u64>().unwrap(), [0; 0]);
        inspect::<u64>(&DiskFiles, dir.path(), "numbers").unwrap_err();
    }

    /// The list begins before the one that is on its way has been written.
    #[tokio::test]
    async fn what_is_written_last_is_what_is_known_last() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = open(dir.path());
        let known = std::sync::Mutex::new(vec![1_u64]);
        let held = remembered.writing.lock().await;
        let write = remembered.write(|| known.lock().unwrap().clone());
        let learn = async {
            known.lock().unwrap().push(2);
            drop(held);
        };
        let (written, ()) = tokio::join!(write, learn);
        written.unwrap();
        assert_eq!(remembered.read::<u64>().unwrap(), [1, 2]);
    }
}
