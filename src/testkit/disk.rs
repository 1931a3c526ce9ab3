//! A disk in memory that keeps what was written and what was synced apart, and loses the difference
//! when the power is cut. It can also fail, and it can lie.
//!
//! What it assumes of a real disk, and no more: a sector of 512 bytes is old or new, except in the
//! last write, which may end at any byte; unsynced sectors survive in any combination; names change in
//! the order in which they were changed, and any number of the last changes may be missing, but for those
//! in a directory that was synced.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use crate::env::files::File;
use crate::env::files::Files;
use crate::env::files::draft_of;
use crate::env::rng::Chance;
use crate::env::rng::Seeded;

const SECTOR_BYTES: u64 = 512;

/// A disk that forgets. Clones are the same disk.
#[derive(Clone, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Open files of an earlier life do not work any more.
    life: u64,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names that are not synced, in order.
    renames: Vec<Rename>,
    next_inode: u64,
    locks: BTreeMap<PathBuf, u64>,
    syncs: u64,
    bytes_written: u64,
    faults: Faults,
}

#[derive(Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    writes: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone)]
enum Rename {
    Link(PathBuf, u64),
    Move(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Default)]
struct Faults {
    failing_sync: Option<u64>,
    failing_write: Option<u64>,
    full: bool,
    lying: bool,
    writes: u64,
    /// A round of the log waits so long at most.
    busy_ms: u64,
}

impl CrashDisk {
    /// An empty disk.
    pub fn new() -> CrashDisk {
        CrashDisk::default()
    }

    /// Cuts the power: what was not synced is kept or lost as `seed` says. Files that are open now
    /// work no more.
    pub fn crash(&self, seed: u64) {
        self.state().crash(&mut Seeded::new(seed));
    }

    /// Kills the process and not the machine: files that are open now work no more, nothing is lost.
    pub fn kill(&self) {
        let mut state = self.state();
        state.life += 1;
        state.locks.clear();
    }

    /// How often something was synced.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// How much was written.
    pub fn bytes_written(&self) -> u64 {
        self.state().bytes_written
    }

    /// The `nth` sync from now on fails, of data or names, 1 being the next. Data that it should have
    /// made durable is lost, though the file still shows it, as Linux does it.
    pub fn fail_sync(&self, nth: u64) {
        let mut state = self.state();
        state.faults.failing_sync = Some(nth);
    }

    /// The `nth` write from now on fails, 1 being the next, half done.
    pub fn fail_write(&self, nth: u64) {
        let mut state = self.state();
        state.faults.failing_write = Some(state.faults.writes + nth);
    }

    /// Whether no further byte can be allocated. Overwriting still works.
    pub fn set_full(&self, full: bool) {
        self.state().faults.full = full;
    }

    /// Whether no further byte can be allocated.
    pub fn is_full(&self) -> bool {
        self.state().faults.full
    }

    /// Whether something will go wrong that may end whoever writes.
    pub fn may_fail(&self) -> bool {
        let faults = &self.state().faults;
        faults.full || faults.failing_sync.is_some() || faults.failing_write.is_some()
    }

    /// From now on the disk is busy for up to so many milliseconds before each round of the log.
    pub fn set_busy_ms(&self, busy_ms: u64) {
        self.state().faults.busy_ms = busy_ms;
    }

    /// From now on the disk works as it should.
    pub fn repair(&self) {
        self.state().faults = Faults::default();
    }

    /// Whether a sync of data does nothing and says that it has: the fault that a test of durability
    /// has to find.
    pub fn set_lying(&self, lying: bool) {
        self.state().faults.lying = lying;
    }

    /// The bytes of a file as they would be read now.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.names.get(path)?;
        Some(state.inodes[inode].now.clone())
    }

    /// Puts a file there, durably.
    pub fn put(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        let inode = state.new_inode(Inode {
            now: content.clone(),
            durable: content,
            writes: Vec::new(),
        });
        state.names.insert(path.to_path_buf(), inode);
        state.durable_names.insert(path.to_path_buf(), inode);
    }

    /// Another disk with the same files, all of them durable.
    pub fn copy(&self) -> CrashDisk {
        let copy = CrashDisk::new();
        let state = self.state();
        for (path, inode) in &state.names {
            copy.put(path, state.inodes[inode].now.clone());
        }
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: u64, life: u64) -> Arc<dyn File> {
        Arc::new(OpenFile {
            disk: self.clone(),
            inode,
            life,
        })
    }
}

impl State {
    fn new_inode(&mut self, inode: Inode) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, inode);
        self.next_inode
    }

    fn change(&mut self, rename: Rename) {
        rename.apply(&mut self.names);
        self.renames.push(rename);
    }

    /// The names in a directory are durable, and those in no other.
    fn sync_names(&mut self, dir: Option<&Path>) {
        let renames = std::mem::take(&mut self.renames);
        for rename in renames {
            match rename.is_in(dir) {
                true => rename.apply(&mut self.durable_names),
                false => self.renames.push(rename),
            }
        }
        self.forget_unnamed();
    }

    /// An open file without a name is gone for us.
    fn forget_unnamed(&mut self) {
        let named: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    fn crash(&mut self, chance: &mut Seeded) {
        let kept = chance.below(self.renames.len() as u64 + 1);
        for rename in self
            .renames
            .drain(..)
            .take(usize::try_from(kept).unwrap_or(0))
        {
            rename.apply(&mut self.durable_names);
        }
        self.names = self.durable_names.clone();
        // All, none, or any of the sectors.
        let kept_of_4 = [0, 1, 2, 3, 4, 4][usize::try_from(chance.below(6)).unwrap_or(0)];
        for inode in self.inodes.values_mut() {
            inode.crash(kept_of_4, chance);
        }
        self.life += 1;
        self.locks.clear();
        self.forget_unnamed();
        self.faults = Faults::default();
    }

    fn inode_at(&self, path: &Path) -> io::Result<u64> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))
    }

    fn write(&mut self, inode: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let file = self.inodes.get(&inode).ok_or_else(no_name)?;
        let grows = offset + bytes.len() as u64 > file.now.len() as u64;
        if grows && self.faults.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.faults.writes += 1;
        let fails = self.faults.failing_write == Some(self.faults.writes);
        let written = if fails {
            &bytes[..bytes.len() / 2]
        } else {
            bytes
        };
        self.bytes_written += written.len() as u64;
        let file = self.inodes.get_mut(&inode).ok_or_else(no_name)?;
        file.write(written, offset);
        if fails {
            return Err(io::Error::other("injected write failure"));
        }
        Ok(())
    }

    fn sync(&mut self, inode: u64) -> io::Result<()> {
        self.syncs += 1;
        let fails = self.faults.sync_fails();
        let file = self.inodes.get_mut(&inode).ok_or_else(no_name)?;
        if fails {
            // The pages are marked clean: a later sync has nothing to write.
            file.writes.clear();
            return Err(io::Error::other("injected sync failure"));
        }
        if !self.faults.lying {
            file.sync();
        }
        Ok(())
    }
}

impl Faults {
    fn sync_fails(&mut self) -> bool {
        self.failing_sync = self.failing_sync.map(|left| left.saturating_sub(1));
        let fails = self.failing_sync == Some(0);
        if fails {
            self.failing_sync = None;
        }
        fails
    }
}

fn no_name() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the file was removed")
}

impl Rename {
    fn is_in(&self, dir: Option<&Path>) -> bool {
        match self {
            Rename::Link(path, _) | Rename::Move(_, path) | Rename::Unlink(path) => {
                path.parent() == dir
            }
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Rename::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Rename::Move(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Rename::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: u64) {
        put(&mut self.now, bytes, offset);
        self.writes.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self) {
        for (offset, bytes) in self.writes.drain(..) {
            put(&mut self.durable, &bytes, offset);
        }
    }

    fn crash(&mut self, kept_of_4: u64, chance: &mut Seeded) {
        let torn = (chance.below(3) == 0).then(|| self.writes.len().saturating_sub(1));
        for (nth, (offset, bytes)) in self.writes.drain(..).enumerate() {
            if torn == Some(nth) {
                let kept = usize::try_from(chance.below(bytes.len() as u64 + 1)).unwrap_or(0);
                put(&mut self.durable, &bytes[..kept], offset);
                continue;
            }
            for (at, sector) in sectors(offset, &bytes) {
                if chance.below(4) < kept_of_4 {
                    put(&mut self.durable, sector, at);
                }
            }
        }
        self.now = self.durable.clone();
    }
}

fn put(content: &mut Vec<u8>, bytes: &[u8], offset: u64) {
    let start = usize::try_from(offset).expect("a file of a test fits in memory");
    let end = start + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// A write cut at the borders of sectors.
fn sectors(offset: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        let whole = usize::try_from(SECTOR_BYTES - at % SECTOR_BYTES).unwrap_or(rest.len());
        let (piece, behind) = rest.split_at(whole.min(rest.len()));
        pieces.push((at, piece));
        at += piece.len() as u64;
        rest = behind;
    }
    pieces
}

impl Files for CrashDisk {
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let inode = state.new_inode(Inode::default());
        state.change(Rename::Link(path.to_path_buf(), inode));
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        state.write(inode, &vec![0; length], 0)?;
        state.sync(inode)?;
        Ok(self.file(inode, state.life))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let state = self.state();
        Ok(self.file(state.inode_at(path)?, state.life))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.inode_at(from)?;
        state.change(Rename::Move(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.inode_at(path)?;
        state.change(Rename::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(ToString::to_string).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.faults.sync_fails() {
            return Err(io::Error::other("injected sync failure"));
        }
        state.sync_names(Some(dir));
        Ok(())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(self.content(path))
    }

    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let draft = draft_of(path);
        let mut state = self.state();
        let inode = state.new_inode(Inode::default());
        state.change(Rename::Link(draft.clone(), inode));
        state.write(inode, content, 0)?;
        state.sync(inode)?;
        state.change(Rename::Move(draft, path.to_path_buf()));
        state.sync_names(path.parent());
        Ok(())
    }

    fn capacity_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(u64::MAX / 2)
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let full = self.state().faults.full;
        Ok(if full { 0 } else { u64::MAX / 2 })
    }

    fn busy(&self) -> Duration {
        let busy_ms = self.state().faults.busy_ms;
        Duration::from_millis(Chance.below(busy_ms + 1))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut state = self.state();
        let life = state.life;
        if state.locks.insert(path.to_path_buf(), life).is_some() {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        Ok(Box::new(Lock {
            disk: self.clone(),
            path: path.to_path_buf(),
            life,
        }))
    }
}

struct Lock {
    disk: CrashDisk,
    path: PathBuf,
    life: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.locks.get(&self.path) == Some(&self.life) {
            state.locks.remove(&self.path);
        }
    }
}

struct OpenFile {
    disk: CrashDisk,
    inode: u64,
    life: u64,
}

impl OpenFile {
    fn living(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life != self.life {
            return Err(io::Error::other("opened before the power was cut"));
        }
        Ok(state)
    }
}

impl File for OpenFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.living()?;
        let file = state.inodes.get(&self.inode).ok_or_else(no_name)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.saturating_add(bytes.len());
        let found = file.now.get(start..end);
        let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.living()?.write(self.inode, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.living()?.sync(self.inode)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.living()?;
        let file = state.inodes.get(&self.inode).ok_or_else(no_name)?;
        Ok(file.now.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> PathBuf {
        PathBuf::from("d/a")
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_go() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let disk = CrashDisk::new();
            let file = disk.create_zeroed(&path(), 2_048).unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            file.write_at(&[1; 1_024], 0).unwrap();
            file.sync_data().unwrap();
            file.write_at(&[2; 1_024], 512).unwrap();
            disk.crash(seed);
            assert!(file.sync_data().is_err());
            let content = disk.content(&path()).unwrap();
            assert_eq!(content[..512], [1; 512]);
            outcomes.insert((content[512], content[1_024]));
        }
        assert_eq!(outcomes, [(1, 0), (1, 2), (2, 0), (2, 2)].into());
    }

    #[test]
    fn a_name_that_is_not_synced_may_go() {
        let found: Vec<bool> = (0..32)
            .map(|seed| {
                let disk = CrashDisk::new();
                disk.create_zeroed(&path(), 8).unwrap();
                disk.crash(seed);
                disk.content(&path()).is_some()
            })
            .collect();
        assert!(found.contains(&true) && found.contains(&false));
    }

    #[test]
    fn a_synced_directory_keeps_its_names_and_no_other_directorys() {
        let (here, there) = (Path::new("here/a"), Path::new("there/a"));
        let kept: BTreeSet<(bool, bool)> = (0..32)
            .map(|seed| {
                let disk = CrashDisk::new();
                disk.create_zeroed(there, 8).unwrap();
                disk.create_zeroed(here, 8).unwrap();
                disk.sync_dir(Path::new("here")).unwrap();
                disk.crash(seed);
                let is_there = |path| disk.content(path).is_some();
                (is_there(here), is_there(there))
            })
            .collect();
        assert_eq!(kept, BTreeSet::from([(true, true), (true, false)]));
    }

    #[test]
    fn a_lying_disk_loses_what_was_synced() {
        let lost = (0..32).any(|seed| {
            let disk = CrashDisk::new();
            disk.put(&path(), vec![0; 512]);
            disk.set_lying(true);
            let file = disk.open(&path()).unwrap();
            file.write_at(&[1; 512], 0).unwrap();
            file.sync_data().unwrap();
            disk.crash(seed);
            disk.content(&path()).unwrap() != [1; 512]
        });
        assert!(lost);
    }

    #[test]
    fn a_failed_sync_loses_the_pages_for_good() {
        let disk = CrashDisk::new();
        disk.put(&path(), vec![0; 512]);
        disk.fail_sync(1);
        let file = disk.open(&path()).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(disk.content(&path()).unwrap(), [1; 512]);
        disk.crash(1);
        assert_eq!(disk.content(&path()).unwrap(), [0; 512]);
    }

    #[test]
    fn a_full_disk_overwrites_and_does_not_grow() {
        let disk = CrashDisk::new();
        disk.put(&path(), vec![0; 512]);
        disk.set_full(true);
        let file = disk.open(&path()).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        let refused = file.write_at(&[1], 512).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }
}
