//! The keyspaces as this node knows them.
//!
//! A definition never changes and is retired at most once, so that what is known here may be late and is never
//! wrong. What is not known is asked of placement. What is known is remembered beside the log, so that a
//! node that starts while placement is down serves keyspaces all the same.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tracing::info;
use tracing::warn;

use crate::env::files::Files;
use crate::error::Error;
use crate::error::Result;
use crate::node::placement::PlacementClient;
use crate::node::remembered;
use crate::node::remembered::Remembered;
use crate::types::GroupId;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;

const FILE: &str = "keyspaces";
/// Questions to placement at once. Full: further requests wait, and mostly find what those before them have
/// learned.
const ASKING_MAX: usize = 4;
/// How long a request waits until this node knows its keyspace.
const FIND_MAX: Duration = Duration::from_secs(1);

/// Every keyspace known here.
pub struct Keyspaces {
    known: RwLock<BTreeMap<KeyspaceName, Definition>>,
    remembered: Remembered,
    asking: Semaphore,
}

impl Keyspaces {
    /// Those that `directory` remembers. Blocks on the disk.
    pub fn open(files: Arc<dyn Files>, directory: &Path) -> io::Result<Keyspaces> {
        let remembered = Remembered::new(files, directory, FILE);
        let earlier = remembered.read()?;
        let keyspaces = Keyspaces {
            known: RwLock::default(),
            remembered,
            asking: Semaphore::new(ASKING_MAX),
        };
        keyspaces.take(earlier);
        Ok(keyspaces)
    }

    /// Learns definitions, or that some are retired. What is new is in the file when this returns; an error says
    /// that it is not, and does no harm until the next start. Cancel-safe: what was learned is known, and may
    /// not be in the file.
    pub async fn learn(&self, definitions: Vec<Definition>) -> io::Result<()> {
        if !self.take(definitions) {
            return Ok(());
        }
        self.remembered.write(|| self.list()).await
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
            // Requests that wait here take places of those whose keyspaces are known.
            let until = until.min(Instant::now() + FIND_MAX);
            let asking = timeout_at(until, self.asking.acquire()).await;
            if self.get(name).is_none() {
                let asked = match asking {
                    Ok(_) => self.refresh(placement, until).await.map(drop),
                    Err(_) => Err(Error::unavailable(GroupId::Placement, "others wait for it")),
                };
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
    remembered::inspect::<Definition>(files, directory, FILE)
}

/// Whether these bytes are a file of keyspaces; what is read is written as it was. For the tests that try every
/// decoder.
pub(crate) fn is_keyspaces(bytes: &[u8]) -> bool {
    remembered::is_list::<Definition>(FILE, bytes)
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

    #[test]
    fn an_example_of_format_one_is_read() {
        let bytes = b"\x01\x01\x02ks\x03ks/\x01\x04\x02\x01";
        let checksum = crc32c::crc32c(bytes).to_be_bytes();
        let bytes = [&bytes[..], &checksum].concat();
        assert_eq!(
            remembered::decode(FILE, &bytes),
            Ok(vec![definition("ks", true)])
        );
    }
}
