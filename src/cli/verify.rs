//! `quorate verify`: whether the data of a stopped node is what it wrote.
//!
//! Nothing in the directory is changed. The log is read by the rules by which a start reads it. sled writes
//! when it opens a database, so it is given a copy of the engine's files, which is removed afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::engine::Engine;
use crate::engine::SledEngine;
use crate::engine::sled;
use crate::env::files::DiskFiles;
use crate::env::files::Files;
use crate::machine::MachineError;
use crate::machine::StateMachine;
use crate::node::audit;
use crate::node::audit::AS_A_NEW_NODE;
use crate::node::audit::Stored;
use crate::node::boot::FOUNDED;
use crate::node::identity;
use crate::node::identity::ENGINE;
use crate::node::identity::IdentityError;
use crate::node::identity::WAL;
use crate::node::keyspaces;
use crate::node::members;
use crate::placement::machine as placement;
use crate::placement::machine::PlacementMachine;
use crate::shard;
use crate::shard::Slots;
use crate::types::ReplicaId;
use crate::wal;
use crate::wal::WalError;

/// Bytes that are copied at once.
const PORTION_BYTES: usize = 1024 * 1024;

/// What `quorate verify` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads everything that the node has stored and changes nothing. The engine is checked on a copy, which needs
as much room as it has bytes, beside the directory or in --scratch, and is removed again. A node that runs
on the directory is left alone: stop it first.

Exit codes: 0 nothing is wrong, 1 damaged, 3 it cannot be checked

Example:
  quorate verify /var/lib/quorate
  quorate verify /var/lib/quorate --scratch /mnt/large -o json")]
pub struct VerifyArgs {
    /// The data directory
    directory: PathBuf,
    /// Where the copy of the engine is made [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Checks, and says what is wrong.
pub fn run(args: VerifyArgs, context: &Context) -> Result<(), Failure> {
    let files: Arc<dyn Files> = Arc::new(DiskFiles);
    let directory = &args.directory;
    if !directory.is_dir() {
        return Err(unfit(directory, "it is no directory"));
    }
    // Held to the end, so that no node starts meanwhile.
    let (identity, found) = check_identity(&files, directory)?;
    let mut parts = vec![found];
    parts.extend(check_memories(&*files, directory));
    let (log, engine) = (directory.join(WAL), directory.join(ENGINE));
    let bytes = (bytes_in(&log)?, bytes_in(&engine)?);
    let scratch = Scratch::new(&args, bytes.1, &*files)?;
    // The engine's files are copied, and then what they hold is read.
    let total = Some(bytes.0 + 2 * bytes.1);
    let mut progress = Progress::start(&context.world, "checked", total);
    let (log, found) = check_log(files.clone(), &log, &mut progress)?;
    parts.push(found);
    let (stored, found) = check_engine(&engine, &scratch.0, &mut progress)?;
    parts.push(found);
    progress.clear();
    drop(scratch);
    if let (Some(log), Some(stored)) = (log, stored) {
        let founded = read(&*files, &directory.join(FOUNDED))?.is_some();
        let (stored, ended) = stored;
        let problems = audit::contradictions(&log, &stored, &ended, founded);
        let found = format!("{} replicas agree", stored.len());
        parts.push(Part::new("log and engine", found, problems));
    }
    drop(identity);
    report(&parts, context)
}

/// One thing that was checked.
struct Part {
    name: &'static str,
    found: String,
    problems: Vec<String>,
    /// What to do, when there are problems.
    remedy: &'static str,
}

impl Part {
    fn new(name: &'static str, found: String, problems: Vec<String>) -> Part {
        Part {
            name,
            found,
            problems,
            remedy: AS_A_NEW_NODE,
        }
    }

    fn damaged(name: &'static str, problem: String) -> Part {
        Part::new(name, String::new(), vec![problem])
    }

    fn state(&self) -> &'static str {
        match self.problems.is_empty() {
            true => "fine",
            false => "damaged",
        }
    }

    fn json(&self) -> Json {
        json!({
            "part": self.name,
            "state": self.state(),
            "found": self.found,
            "problems": self.problems,
            "remedy": (!self.problems.is_empty()).then_some(self.remedy),
        })
    }
}

fn report(parts: &[Part], context: &Context) -> Result<(), Failure> {
    let problems: usize = parts.iter().map(|part| part.problems.len()).sum();
    if context.is_json() {
        let parts: Vec<Json> = parts.iter().map(Part::json).collect();
        context.print_json(json!({ "fine": problems == 0, "parts": parts }))?;
    } else {
        let mut table = table(&["PART", "STATE", "FOUND"]);
        for part in parts {
            let mut said = part.problems.clone();
            said.extend(Some(part.found.clone()).filter(|found| !found.is_empty()));
            table.add_row([part.name, part.state(), &said.join("\n")]);
        }
        context.world.print(format!("{table}\n"))?;
    }
    let Some(worst) = parts.iter().find(|part| !part.problems.is_empty()) else {
        return Ok(());
    };
    let things = if problems == 1 {
        "thing is"
    } else {
        "things are"
    };
    Err(Failure::error(format!(
        "{problems} {things} wrong in the {}; what to do: {}",
        worst.name, worst.remedy
    )))
}

fn unfit(path: &Path, reason: impl std::fmt::Display) -> Failure {
    Failure::bad_input(format!("{}: {reason}", path.display()))
}

fn read(files: &dyn Files, path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    files.read(path).map_err(|error| unfit(path, error))
}

fn check_identity(
    files: &Arc<dyn Files>,
    directory: &Path,
) -> Result<(Option<identity::Inspected>, Part), Failure> {
    const NAME: &str = "identity";
    match identity::inspect(Arc::clone(files), directory) {
        Ok(Some(found)) => {
            let id = found
                .node
                .map_or("not in a cluster yet".to_owned(), |id| id.to_string());
            let said = format!("{} ({id}), incarnation {}", found.name, found.incarnation);
            Ok((Some(found), Part::new(NAME, said, Vec::new())))
        }
        Ok(None) => Err(unfit(directory, "there is no node's data in it")),
        Err(error @ (IdentityError::Corrupt { .. } | IdentityError::Missing { .. })) => {
            let remedy = "put back a copy of the file identity, or move the data directory away and start the \
                          node with --join as a new one";
            let part = Part {
                remedy,
                ..Part::damaged(NAME, error.to_string())
            };
            Ok((None, part))
        }
        Err(error) => Err(Failure::bad_input(error.to_string())),
    }
}

/// What the node remembers of what placement has told. Damage here does no harm: it is told again.
fn check_memory(
    name: &'static str,
    remembered: Result<Option<usize>, String>,
    remedy: &'static str,
) -> Part {
    match remembered {
        Ok(count) => {
            let found = count.map_or("none remembered".to_owned(), |count| format!("{count}"));
            Part::new(name, found, Vec::new())
        }
        Err(error) => Part {
            remedy,
            ..Part::damaged(name, error)
        },
    }
}

fn check_memories(files: &dyn Files, directory: &Path) -> [Part; 2] {
    let members = members::inspect(files, directory);
    let keyspaces = keyspaces::inspect(files, directory);
    [
        check_memory(
            "members",
            members,
            "remove the file members: placement tells them again",
        ),
        check_memory(
            "keyspaces",
            keyspaces,
            "remove the file keyspaces: placement tells them again",
        ),
    ]
}

fn check_log(
    files: Arc<dyn Files>,
    directory: &Path,
    progress: &mut Progress<'_>,
) -> Result<(Option<wal::Inspected>, Part), Failure> {
    const NAME: &str = "log";
    if !directory.is_dir() {
        let empty = wal::Inspected::default();
        return Ok((
            Some(empty),
            Part::new(NAME, "none yet".to_owned(), Vec::new()),
        ));
    }
    match wal::inspect(files, directory, &mut |bytes| progress.advance(0, bytes)) {
        Ok(log) => {
            let torn = match log.torn {
                true => {
                    "; its last write was torn, was never answered, and is cut off at the next start"
                }
                false => "",
            };
            let (segments, replicas) = (log.segments, log.replicas.len());
            let found = format!("{segments} segments, {replicas} replicas{torn}");
            Ok((Some(log), Part::new(NAME, found, Vec::new())))
        }
        Err(error @ WalError::Io { .. }) => Err(unfit(directory, error)),
        Err(error) => Ok((None, Part::damaged(NAME, error.to_string()))),
    }
}

/// What the engine says of each replica, and which ones have ended.
type StoredReplicas = (BTreeMap<ReplicaId, Stored>, Vec<ReplicaId>);

fn check_engine(
    directory: &Path,
    scratch: &Path,
    progress: &mut Progress<'_>,
) -> Result<(Option<StoredReplicas>, Part), Failure> {
    const NAME: &str = "engine";
    if !directory.is_dir() {
        let none = Part::new(NAME, "none yet".to_owned(), Vec::new());
        return Ok((Some(StoredReplicas::default()), none));
    }
    copy_files(directory, scratch, progress).map_err(|error| unfit(scratch, error))?;
    let engine = match SledEngine::open(scratch, &sled::Options::default()) {
        Ok(engine) => Arc::new(engine),
        Err(sled::OpenError::Damaged { reason, .. }) => {
            let reason = reason.replace(&*scratch.to_string_lossy(), &directory.to_string_lossy());
            return Ok((None, Part::damaged(NAME, reason)));
        }
        Err(error) => return Err(unfit(scratch, error)),
    };
    Ok(match check_stored(engine, progress) {
        Ok((stored, part)) => (Some(stored), part),
        Err(error) => (None, Part::damaged(NAME, error.to_string())),
    })
}

fn check_stored(
    engine: Arc<dyn Engine>,
    progress: &mut Progress<'_>,
) -> Result<(StoredReplicas, Part), MachineError> {
    let slots = Slots::open(Arc::clone(&engine))?;
    let clear_list = slots.clear_list()?;
    let mut advance = |bytes| progress.advance(1, bytes);
    let mut checked = shard::audit::audit(&*engine, &clear_list, &mut advance)?;
    let rows = checked.rows.iter();
    let mut stored: BTreeMap<_, _> = rows.map(|(id, row)| (*id, Stored::of(row))).collect();
    for replica in placement::replicas(&*engine)? {
        match PlacementMachine::open(Arc::clone(&engine), replica) {
            Ok(machine) => {
                let applied = machine.and_then(|machine| machine.applied().position);
                let is_split_off = false;
                stored.insert(
                    replica,
                    Stored {
                        applied,
                        is_split_off,
                    },
                );
            }
            Err(error) => checked
                .problems
                .push(format!("{replica} of placement: {error}")),
        }
    }
    let stray = match checked.stray {
        0 => String::new(),
        stray => format!("; {stray} records belong to nobody and only take room"),
    };
    let (records, replicas) = (checked.records, stored.len());
    let found = format!("{records} records, {replicas} replicas{stray}");
    let part = Part::new("engine", found, checked.problems);
    Ok(((stored, checked.destroyed), part))
}

/// A directory that is removed again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(args: &VerifyArgs, bytes: u64, files: &dyn Files) -> Result<Scratch, Failure> {
        let directory = args.directory.canonicalize();
        let directory = directory.map_err(|error| unfit(&args.directory, error))?;
        let home = args.scratch.as_deref().or(directory.parent());
        let home = home.unwrap_or(&directory);
        let free = files.free_bytes(home).map_err(|error| unfit(home, error))?;
        if free < bytes {
            let (free, bytes) = (HumanBytes(free), HumanBytes(bytes));
            return Err(unfit(
                home,
                format!(
                    "a copy of the engine needs {bytes} and {free} are free; name a place with --scratch"
                ),
            ));
        }
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let path = home.join(format!("{name}.verify-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| unfit(&path, error))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is seen by whoever looks there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bytes_in(directory: &Path) -> Result<u64, Failure> {
    let count = || {
        let mut bytes = 0;
        for entry in fs::read_dir(directory)? {
            let about = entry?.metadata()?;
            bytes += if about.is_file() { about.len() } else { 0 };
        }
        Ok::<u64, io::Error>(bytes)
    };
    match count() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        counted => counted.map_err(|error| unfit(directory, error)),
    }
}

fn copy_files(from: &Path, to: &Path, progress: &mut Progress<'_>) -> io::Result<()> {
    let mut portion = vec![0; PORTION_BYTES];
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let mut source = fs::File::open(entry.path())?;
        let mut copy = fs::File::create(to.join(entry.file_name()))?;
        loop {
            let read = source.read(&mut portion)?;
            if read == 0 {
                break;
            }
            copy.write_all(&portion[..read])?;
            progress.advance(0, read as u64);
        }
    }
    Ok(())
}
