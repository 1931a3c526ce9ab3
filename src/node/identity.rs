//! The data directory: who this node is, and that nobody else uses it.
//!
//! ```text
//! lock        held by the running process; its content is that process's id
//! identity    who the node is: three lines, see below
//! wal/        the log
//! engine/     the applied state
//! ```
//!
//! `identity` is replaced as a whole: written beside, synced, renamed, and the directory synced. It is
//! there, with a fresh incarnation, before the node sends its first packet. First line: format and the
//! program that wrote it; second: JSON; third: the CRC-32C of all before it. The first and the third
//! stay as they are in every later format, so that any program can tell a newer file from a broken one.

use std::fs;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::node::formation::Formed;
use crate::node::formation::Record;
use crate::types::Incarnation;

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const WAL: &str = "wal";
const ENGINE: &str = "engine";

/// Format of the identity file, and with it of the whole directory.
pub const FORMAT: u32 = 1;

/// A real file has a few hundred bytes per founder.
const IDENTITY_BYTES_MAX: u64 = 1024 * 1024;

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process runs on it.
    #[error(
        "data directory {} is used by another process ({holder}); stop that one, or give this node its own --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says about the other process.
        holder: String,
    },
    /// The directory was written by a later release.
    #[error(
        "{} has format {found}, written by quorate {writer}; this is quorate {}, which reads format {FORMAT}: \
         use quorate {writer} or later",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Release that wrote it.
        writer: String,
    },
    /// The file does not read as it was written.
    #[error(
        "{} is damaged ({reason}). Put back a copy of that file, or move the whole directory aside and let this node \
         join as a new one (--join): the others have the data. Do not start it with an emptied directory and the old flags",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is data, but nothing says whose.
    #[error(
        "data directory {} has {found} but no identity file. Put that file back, or move the whole directory aside and let \
         this node join as a new one (--join)",
        path.display()
    )]
    Missing {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The directory is another node's.
    #[error(
        "data directory {} belongs to node {theirs}, not to {name}; give this node its own --data-dir, or start it with --name {theirs}",
        path.display()
    )]
    OtherName {
        /// The directory.
        path: PathBuf,
        /// Who wrote it.
        theirs: String,
        /// Who wants it.
        name: String,
    },
    /// The file system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What the identity file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    name: String,
    incarnation: String,
    forming: Record,
}

/// A data directory that this process has locked. The lock ends with the value, or with the process.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    name: String,
    incarnation: Incarnation,
    record: Record,
    _lock: File,
}

impl DataDirectory {
    /// Locks the directory and reads who the node is. A directory without an identity is made the
    /// home of `name` under the incarnation `fresh`, which is synced when this returns.
    pub fn open(
        path: &Path,
        name: &str,
        fresh: Incarnation,
    ) -> Result<DataDirectory, IdentityError> {
        fs::create_dir_all(path).map_err(io_error("create data directory", path))?;
        let lock = lock(path)?;
        let mut directory = DataDirectory {
            path: path.to_owned(),
            name: name.to_owned(),
            incarnation: fresh,
            record: Record::default(),
            _lock: lock,
        };
        match directory.read()? {
            Some(identity) => directory.take(identity)?,
            None => {
                directory.refuse_orphaned_data()?;
                sync_parent(path)?;
                directory.save(Record::default())?;
            }
        }
        Ok(directory)
    }

    /// Random number of this directory.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What it remembers of forming.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The cluster, if the node is in one.
    pub fn formed(&self) -> Option<Formed> {
        self.record.formed.clone().map(Formed::from)
    }

    /// Where the log lives.
    pub fn wal(&self) -> PathBuf {
        self.path.join(WAL)
    }

    /// Where the engine lives.
    pub fn engine(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces what is remembered of forming; synced when this returns. After an error the file is
    /// either the old or the new one, and the node has to stop.
    pub fn save(&mut self, record: Record) -> Result<(), IdentityError> {
        let identity = Identity {
            name: self.name.clone(),
            incarnation: self.incarnation.to_string(),
            forming: record,
        };
        replace_file(&self.path, IDENTITY, IDENTITY_NEW, &encode(&identity))?;
        self.record = identity.forming;
        Ok(())
    }

    fn read(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.path.join(IDENTITY);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(IDENTITY_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        decode(&path, &bytes).map(Some)
    }

    fn take(&mut self, identity: Identity) -> Result<(), IdentityError> {
        let path = self.path.join(IDENTITY);
        if identity.name != self.name {
            return Err(IdentityError::OtherName {
                path: self.path.clone(),
                theirs: identity.name,
                name: self.name.clone(),
            });
        }
        let corrupt = |reason: &str| IdentityError::Corrupt {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        self.incarnation = parse_incarnation(&identity.incarnation)
            .ok_or_else(|| corrupt("the incarnation is no number of 32 hexadecimal digits"))?;
        let formed = identity.forming.formed.clone().map(Formed::from);
        if formed.is_some_and(|formed| formed.node_of(self.incarnation).is_none()) {
            return Err(corrupt(
                "the founders do not include this directory's incarnation",
            ));
        }
        self.record = identity.forming;
        Ok(())
    }

    fn refuse_orphaned_data(&self) -> Result<(), IdentityError> {
        let orphan = [WAL, ENGINE]
            .into_iter()
            .find(|entry| self.path.join(entry).exists());
        match orphan {
            None => Ok(()),
            Some(found) => Err(IdentityError::Missing {
                path: self.path.clone(),
                found: format!("{found}/"),
            }),
        }
    }
}

fn lock(directory: &Path) -> Result<File, IdentityError> {
    let path = directory.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open lock", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(IdentityError::InUse {
                path: directory.to_owned(),
                holder: holder(&mut file),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
    }
    // Only a help for whoever is refused; the lock itself is what counts.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("write lock", &path))?;
    Ok(file)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        Ok(_) | Err(_) => "process id unknown".into(),
    }
}

fn encode(identity: &Identity) -> Vec<u8> {
    let json = serde_json::to_string(identity).expect("names and numbers are always JSON");
    let mut text = format!("{}\n{json}\n", header(FORMAT, env!("CARGO_PKG_VERSION")));
    text.push_str(&format!("crc32c {:08x}\n", crc32c::crc32c(text.as_bytes())));
    text.into_bytes()
}

fn header(format: u32, writer: &str) -> String {
    format!("quorate identity format {format} written by {writer}")
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    let corrupt = |reason: String| IdentityError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let body = checked_body(bytes).map_err(corrupt)?;
    let (first, json) = body.split_once('\n').unwrap_or((body, ""));
    let (format, writer) =
        parse_header(first).ok_or_else(|| corrupt(format!("it begins with {first:?}")))?;
    if format != FORMAT {
        return Err(IdentityError::Format {
            path: path.to_owned(),
            found: format,
            writer,
        });
    }
    serde_json::from_str(json).map_err(|error| corrupt(error.to_string()))
}

/// The lines before the checksum, which holds for them.
fn checked_body(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (body, checksum) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .ok_or("it is cut off")?;
    let body = &text[..body.len() + 1];
    let expected = format!("crc32c {:08x}", crc32c::crc32c(body.as_bytes()));
    if checksum == expected {
        Ok(body)
    } else {
        Err(format!("its last line is {checksum:?}, not {expected:?}"))
    }
}

fn parse_header(line: &str) -> Option<(u32, String)> {
    let rest = line.strip_prefix("quorate identity format ")?;
    let (format, writer) = rest.split_once(" written by ")?;
    Some((format.parse().ok()?, writer.to_owned()))
}

fn parse_incarnation(text: &str) -> Option<Incarnation> {
    let number = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32).then(|| Incarnation(number.to_be_bytes()))
}

fn replace_file(
    directory: &Path,
    name: &str,
    beside: &str,
    bytes: &[u8],
) -> Result<(), IdentityError> {
    let new = directory.join(beside);
    let mut file = File::create(&new).map_err(io_error("create", &new))?;
    file.write_all(bytes).map_err(io_error("write", &new))?;
    file.sync_all().map_err(io_error("sync", &new))?;
    let path = directory.join(name);
    fs::rename(&new, &path).map_err(io_error("rename to", &path))?;
    sync_directory(directory)
}

/// A directory just made is found again after a power cut only when its parent is synced.
fn sync_parent(path: &Path) -> Result<(), IdentityError> {
    let whole = path
        .canonicalize()
        .map_err(io_error("find data directory", path))?;
    whole.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &Path) -> Result<(), IdentityError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync directory", path))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::formation::FounderList;
    use crate::wire::request::Founder;

    fn opened(path: &Path, name: &str, number: u8) -> Result<DataDirectory, IdentityError> {
        DataDirectory::open(path, name, Incarnation([number; 16]))
    }

    fn record(number: u8) -> Record {
        let founder = Founder {
            name: "n1".into(),
            incarnation: Incarnation([number; 16]),
            node_address: "127.0.0.1:7401".into(),
            client_address: "127.0.0.1:7400".into(),
        };
        let list = FounderList::new("token".into(), vec![founder]);
        Record {
            confirmed: vec![list.clone()],
            formed: Some(list),
        }
    }

    #[test]
    fn the_first_incarnation_stays_and_what_was_saved_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let mut first = opened(&path, "n1", 1).unwrap();
        assert_eq!(first.record(), &Record::default());
        first.save(record(1)).unwrap();
        drop(first);
        let again = opened(&path, "n1", 2).unwrap();
        assert_eq!(again.incarnation(), Incarnation([1; 16]));
        assert_eq!(again.record(), &record(1));
        assert_eq!(
            again.formed().unwrap().node_of(again.incarnation()),
            Some(crate::types::NodeId(1))
        );
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = opened(dir.path(), "n1", 1).unwrap();
        let error = opened(dir.path(), "n1", 2).unwrap_err();
        assert!(matches!(error, IdentityError::InUse { .. }), "{error}");
        let told = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&told), "{error}");
        drop(first);
        opened(dir.path(), "n1", 2).unwrap();
    }

    #[test]
    fn every_torn_and_every_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let file = dir.path().join(IDENTITY);
        let whole = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let error = opened(dir.path(), "n1", 2).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
        };
        for length in 0..whole.len() {
            refused(&whole[..length]);
        }
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x04;
            refused(&flipped);
        }
        fs::write(&file, whole).unwrap();
        opened(dir.path(), "n1", 2).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_naming_the_release_that_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let mut text = format!("{}\nwhatever comes then\n", header(7, "3.2.1"));
        text.push_str(&format!("crc32c {:08x}\n", crc32c::crc32c(text.as_bytes())));
        fs::write(dir.path().join(IDENTITY), text).unwrap();
        let error = opened(dir.path(), "n1", 2).unwrap_err();
        assert!(
            matches!(error, IdentityError::Format { found: 7, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("use quorate 3.2.1"), "{error}");
    }

    #[test]
    fn an_example_of_format_one_is_read() {
        let text = concat!(
            "quorate identity format 1 written by 0.1.0\n",
            r#"{"name":"n1","incarnation":"000102030405060708090a0b0c0d0e0f","forming":{"confirmed":[],"formed":null}}"#,
            "\ncrc32c 00000000\n"
        );
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IDENTITY), text).unwrap();
        let directory = opened(dir.path(), "n1", 2).unwrap();
        assert_eq!(
            directory.incarnation().to_string(),
            "000102030405060708090a0b0c0d0e0f"
        );
    }

    #[test]
    fn another_nodes_directory_and_data_without_identity_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let error = opened(dir.path(), "n2", 1).unwrap_err();
        assert!(matches!(error, IdentityError::OtherName { .. }), "{error}");
        fs::remove_file(dir.path().join(IDENTITY)).unwrap();
        fs::create_dir(dir.path().join(WAL)).unwrap();
        let error = opened(dir.path(), "n1", 1).unwrap_err();
        assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
    }
}
