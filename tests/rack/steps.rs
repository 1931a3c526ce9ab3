//! Counts what a node does to its disk, and ends the node at a chosen step. A step is one write or flush of
//! the engine, or one change of the log's files: what a crash can fall between.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use quorate::engine::Batch;
use quorate::engine::Engine;
use quorate::engine::EngineError;
use quorate::engine::MemoryEngine;
use quorate::env::files::File;
use quorate::env::files::Files;
use quorate::env::rng::Chance;
use quorate::testkit::disk::CrashDisk;
use tokio_util::sync::CancellationToken;

/// The steps of one life of a node. Taken one after the other, so that after the end none is under way.
#[derive(Default)]
pub struct Steps {
    count: Mutex<Count>,
    /// Whether syncs of files wait.
    held: Mutex<bool>,
    let_go: Condvar,
    end: CancellationToken,
}

#[derive(Default)]
struct Count {
    /// Whether steps are counted yet.
    counts: bool,
    done: u64,
    /// The step that the node does not live to take.
    last: Option<u64>,
}

impl Steps {
    /// Counts from now on; step `last`, from 0, is not taken, nor is any after it.
    pub fn count_until(&self, last: Option<u64>) {
        *self.lock() = Count {
            counts: true,
            done: 0,
            last,
        };
    }

    /// Steps counted.
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// Ends the node now; no step is under way when it returns.
    pub fn end(&self) {
        let count = self.lock();
        self.end.cancel();
        drop(count);
        *self.held() = false;
        self.let_go.notify_all();
    }

    /// Syncs of files do not return any more until the node ends: its disk stands still.
    pub fn hold_syncs(&self) {
        *self.held() = true;
    }

    fn wait_while_held(&self) {
        let waited = self.let_go.wait_while(self.held(), |held| *held);
        drop(waited.expect("nothing panics under this lock"));
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().expect("nothing panics under this lock")
    }

    /// Cancelled when the node has ended.
    pub fn ended(&self) -> CancellationToken {
        self.end.clone()
    }

    fn take<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let mut count = self.lock();
        if count.counts && count.last == Some(count.done) {
            self.end.cancel();
        }
        if self.end.is_cancelled() {
            return None;
        }
        count.done += u64::from(count.counts);
        Some(step())
    }

    fn look<T>(&self, look: impl FnOnce() -> T) -> Option<T> {
        (!self.end.is_cancelled()).then(look)
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().expect("nothing panics in a step")
    }
}

fn over() -> EngineError {
    EngineError("the node has ended".to_owned())
}

/// An engine whose changes are steps.
pub struct SteppedEngine {
    pub engine: Arc<MemoryEngine>,
    pub steps: Arc<Steps>,
    /// How long a flush goes on at most, for a simulation.
    pub flush_ms: u64,
}

impl Engine for SteppedEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let found = self.steps.look(|| self.engine.get(key));
        found.ok_or_else(over)?
    }

    fn scan<'a>(
        &'a self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>), EngineError>> + Send + 'a> {
        let found = self.steps.look(|| self.engine.scan(start, end, reverse));
        found.unwrap_or_else(|| Box::new(std::iter::once(Err(over()))))
    }

    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let written = self.steps.take(|| self.engine.write(batch));
        written.ok_or_else(over)?
    }

    fn flush(&self) -> Result<(), EngineError> {
        let flushed = self.steps.take(|| self.engine.flush());
        flushed.ok_or_else(over)?
    }

    fn busy(&self) -> Duration {
        Duration::from_millis(Chance.below(self.flush_ms + 1))
    }
}

/// A disk whose changes are steps.
pub struct SteppedFiles {
    pub disk: CrashDisk,
    pub steps: Arc<Steps>,
}

impl SteppedFiles {
    fn take<T>(&self, step: impl FnOnce(&CrashDisk) -> io::Result<T>) -> io::Result<T> {
        let taken = self.steps.take(|| step(&self.disk));
        taken.ok_or_else(|| io::Error::other(over()))?
    }

    fn look<T>(&self, look: impl FnOnce(&CrashDisk) -> io::Result<T>) -> io::Result<T> {
        let looked = self.steps.look(|| look(&self.disk));
        looked.ok_or_else(|| io::Error::other(over()))?
    }

    fn stepped(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let steps = Arc::clone(&self.steps);
        Arc::new(SteppedFile { file, steps })
    }
}

impl Files for SteppedFiles {
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn File>> {
        let file = self.take(|disk| disk.create_zeroed(path, bytes))?;
        Ok(self.stepped(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.look(|disk| disk.open(path))?;
        Ok(self.stepped(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.take(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.take(|disk| disk.remove(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.look(|disk| disk.list(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.take(|disk| disk.sync_dir(dir))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.look(|disk| disk.create_dir_all(dir))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.look(|disk| disk.read(path))
    }

    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.take(|disk| disk.write_atomically(path, content))
    }

    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.look(|disk| disk.capacity_bytes(dir))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.look(|disk| disk.free_bytes(dir))
    }

    fn busy(&self) -> Duration {
        self.disk.busy()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.look(|disk| disk.lock(path))
    }
}

struct SteppedFile {
    file: Arc<dyn File>,
    steps: Arc<Steps>,
}

impl File for SteppedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.steps.look(|| self.file.read_at(bytes, offset));
        read.ok_or_else(|| io::Error::other(over()))?
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = self.steps.take(|| self.file.write_at(bytes, offset));
        written.ok_or_else(|| io::Error::other(over()))?
    }

    fn sync_data(&self) -> io::Result<()> {
        self.steps.wait_while_held();
        let synced = self.steps.take(|| self.file.sync_data());
        synced.ok_or_else(|| io::Error::other(over()))?
    }

    fn len(&self) -> io::Result<u64> {
        let length = self.steps.look(|| self.file.len());
        length.ok_or_else(|| io::Error::other(over()))?
    }
}
