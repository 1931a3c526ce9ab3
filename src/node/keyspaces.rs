//! The keyspaces as this node knows them.
//!
//! A definition never changes and is retired at most once, so that what is known here may be late and is never
//! wrong. What is not known is asked of placement. What is known is kept in a file beside the log, so that a
//! node that starts while placement is down serves keyspaces all the same. The file is only a memory: a damaged
//! one is as good as none.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;

use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tracing::info;
use tracing::warn;

use crate::codec::value;
use crate::env::files::Files;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::placement::PlacementClient;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;

const FILE: &str = "keyspaces";
const FORMAT: u8 = 1;
/// Bytes of the checksum behind the definitions.
const CHECKSUM_BYTES: usize = 4;
/// Questions to placement at once. Full: further requests wait, and mostly find what those before them have
/// learned.
const ASKING_MAX: usize = 4;

/// Every keyspace known here.
pub struct Keyspaces {
    known: RwLock<BTreeMap<KeyspaceName, Definition>>,
    files: Arc<dyn Files>,
    path: PathBuf,
    /// Held while the file is written: what is written last is what is known last.
    writing: Mutex<()>,
    asking: Semaphore,
}

impl Keyspaces {
    /// Those that `directory` remembers. Blocks on the disk.
    pub fn open(files: Arc<dyn Files>, directory: &Path) -> io::Result<Keyspaces> {
        let path = directory.join(FILE);
        let remembered = files.read(&path)?.map(|bytes| decode(&bytes));
        let remembered = match remembered {
            Some(Ok(definitions)) => definitions,
            Some(Err(reason)) => {
                warn!(path = %path.display(), reason, "the remembered keyspaces are damaged; placement will tell them again");
                Vec::new()
            }
            None => Vec::new(),
        };
        let keyspaces = Keyspaces {
            known: RwLock::default(),
            files,
            path,
            writing: Mutex::default(),
            asking: Semaphore::new(ASKING_MAX),
        };
        keyspaces.take(remembered);
        Ok(keyspaces)
    }

    /// Learns definitions, or that some are retired. What is new is in the file when this returns; an error says
    /// that it is not, and does no harm until the next start. Cancel-safe: what was learned is known, and may
    /// not be in the file.
    pub async fn learn(&self, definitions: Vec<Definition>) -> io::Result<()> {
        if !self.take(definitions) {
            return Ok(());
        }
        let _writing = self.writing.lock().await;
        let bytes = encode(&self.list());
        let (files, path) = (Arc::clone(&self.files), self.path.clone());
        offload(move || files.write_atomically(&path, &bytes)).await
    }

    /// The keyspace of that name; placement is asked where none is known. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] where there is none, or none any more.
    pub async fn find(
        &self,
        name: &KeyspaceName,
        placement: &PlacementClient,
        until: Instant,
    ) -> Result<Keyspace> {
        if self.get(name).is_none() {
            let _asking = timeout_at(until, self.asking.acquire()).await;
            if self.get(name).is_none() {
                let asked = self.refresh(placement, until).await;
                asked.map_err(|error| nobody_says(name, &error))?;
            }
        }
        match self.get(name) {
            Some(known) if !known.retired => Ok(known.keyspace),
            Some(_) | None => Err(Error::NoKeyspace {
                name: name.to_string(),
            }),
        }
    }

    /// Learns what placement's leader knows, and gives it. Cancel-safe.
    pub async fn refresh(
        &self,
        placement: &PlacementClient,
        until: Instant,
    ) -> Result<Vec<Definition>> {
        let told = placement.keyspaces(until).await?;
        self.note(told.clone()).await;
        Ok(told)
    }

    /// As [`Keyspaces::learn`], for those who can do nothing about a file that cannot be written.
    pub async fn note(&self, definitions: Vec<Definition>) {
        if let Err(error) = self.learn(definitions).await {
            warn!(%error, "the keyspaces cannot be written down; they are learned again after a restart");
        }
    }

    fn get(&self, name: &KeyspaceName) -> Option<Definition> {
        let known = self.known.read().expect("nothing panics under this lock");
        known.get(name).cloned()
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Definition> {
        let known = self.known.read().expect("nothing panics under this lock");
        known.values().cloned().collect()
    }

    /// Whether anything was new. Late news does not bring back what is retired.
    fn take(&self, definitions: Vec<Definition>) -> bool {
        let mut known = self.known.write().expect("nothing panics under this lock");
        let mut changed = false;
        for definition in definitions {
            let name = definition.keyspace.name.clone();
            let is_old = known
                .get(&name)
                .is_some_and(|known| known.retired || !definition.retired);
            if is_old {
                continue;
            }
            info!(%name, retired = definition.retired, "keyspace");
            known.insert(name, definition);
            changed = true;
        }
        changed
    }
}

fn nobody_says(name: &KeyspaceName, error: &Error) -> Error {
    Error::unavailable(
        format!("keyspace {name}"),
        format!("this node has not heard of it, and placement does not answer: {error}"),
    )
}

/// How many keyspaces a directory remembers; `None` when it remembers none. The error says what is wrong with
/// the file, which does no harm: placement tells them again.
pub fn inspect(files: &dyn Files, directory: &Path) -> Result<Option<usize>, String> {
    let bytes = files.read(&directory.join(FILE));
    match bytes.map_err(|error| error.to_string())? {
        Some(bytes) => decode(&bytes).map(|definitions| Some(definitions.len())),
        None => Ok(None),
    }
}

/// Whether these bytes are a file of keyspaces; what is read is written as it was. For the tests that try every
/// decoder.
pub(crate) fn is_keyspaces(bytes: &[u8]) -> bool {
    let Ok(definitions) = decode(bytes) else {
        return false;
    };
    assert_eq!(decode(&encode(&definitions)), Ok(definitions));
    true
}

fn encode(definitions: &[Definition]) -> Vec<u8> {
    let mut bytes = value::encode(FORMAT, &definitions);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Definition>, String> {
    let split = bytes.len().checked_sub(CHECKSUM_BYTES);
    let (bytes, checksum) = bytes.split_at(split.ok_or("it is cut off")?);
    if crc32c::crc32c(bytes).to_be_bytes() != checksum {
        return Err("its checksum does not match".into());
    }
    value::decode("the keyspaces", FORMAT, bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::files::DiskFiles;
    use crate::types::keyspace::Buckets;
    use crate::types::keyspace::Layout;

    fn definition(name: &str, retired: bool) -> Definition {
        let layout = Layout::Hash(Buckets { count: 4, parts: 2 });
        Definition {
            keyspace: Keyspace::new(name.parse().unwrap(), None, layout).unwrap(),
            retired,
        }
    }

    fn open(directory: &Path) -> Keyspaces {
        Keyspaces::open(Arc::new(DiskFiles), directory).unwrap()
    }

    #[tokio::test]
    async fn what_was_learned_is_known_after_a_restart_and_retired_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let keyspaces = open(dir.path());
        let (a, b) = (definition("a", false), definition("b", false));
        keyspaces.learn(vec![b.clone(), a.clone()]).await.unwrap();
        assert_eq!(open(dir.path()).list(), [a.clone(), b.clone()]);
        let gone = definition("a", true);
        keyspaces.learn(vec![gone.clone()]).await.unwrap();
        keyspaces.learn(vec![a]).await.unwrap();
        assert_eq!(keyspaces.list(), [gone.clone(), b.clone()], "late news");
        assert_eq!(open(dir.path()).list(), [gone, b]);
    }

    #[tokio::test]
    async fn a_damaged_memory_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let learned = vec![definition("a", false)];
        open(dir.path()).learn(learned).await.unwrap();
        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped).is_err(), "byte {at}");
            assert!(decode(&whole[..at]).is_err(), "cut at {at}");
        }
        std::fs::write(dir.path().join(FILE), &whole[1..]).unwrap();
        assert_eq!(open(dir.path()).list(), []);
    }

    #[test]
    fn an_example_of_format_one_is_read() {
        let bytes = b"\x01\x01\x02ks\x03ks/\x01\x04\x02\x01";
        let checksum = crc32c::crc32c(bytes).to_be_bytes();
        let bytes = [&bytes[..], &checksum].concat();
        assert_eq!(decode(&bytes), Ok(vec![definition("ks", true)]));
    }
}
