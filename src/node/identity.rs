//! The data directory: who this node is, and that nobody else uses it.
//!
//! ```text
//! lock        held by the running process
//! identity    who the node is: three lines, see below
//! wal/        the log
//! engine/     the applied state
//! ```
//!
//! `identity` is replaced as a whole, durably. It is there, with a fresh incarnation, before the node
//! sends its first packet. First line: format and the program that wrote it; second: JSON; third: the
//! CRC-32C of all before it. The first and the third stay as they are in every later format, so that
//! any program can tell a newer file from a broken one.

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::env::files::Files;
use crate::node::formation::Formed;
use crate::node::formation::FounderList;
use crate::node::formation::Record;
use crate::types::Incarnation;
use crate::types::NodeId;
use crate::wire::request::Founder;

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
pub(crate) const WAL: &str = "wal";
pub(crate) const ENGINE: &str = "engine";

/// Format of the identity file, and with it of the whole directory: it rises with any format in it, so that
/// a directory is refused at the door and not at the first record that cannot be read. 2: the row of a
/// replica has the hash of what it has applied. 3: and how much there is.
pub const FORMAT: u32 = 3;

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process runs on it.
    #[error(
        "data directory {} is used by another process; stop that one, or give this node its own --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written by a build before the formats of what is in it changed.
    #[error(
        "{} has format {found}, written by an older build of quorate {writer}; this one reads format {FORMAT}, and \
         does not convert. Start the node with the build that wrote it, or move the whole directory aside and let \
         this node join as a new one (--join): the others have the data. To bring a whole cluster over, export its \
         data with that build and import it into a new cluster",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Release that wrote it.
        writer: String,
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

/// What the identity file holds: the stored form of [`Record`], with numbers as people read them.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    name: String,
    incarnation: String,
    confirmed: Vec<StoredList>,
    formed: Option<StoredList>,
    /// Not there for a founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredList {
    cluster: String,
    token: String,
    founders: Vec<StoredFounder>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredFounder {
    name: String,
    incarnation: String,
    node_address: String,
    client_address: String,
}

impl StoredList {
    fn of(list: &FounderList) -> StoredList {
        let founders = list.founders.iter().map(|founder| StoredFounder {
            name: founder.name.clone(),
            incarnation: founder.incarnation.to_string(),
            node_address: founder.node_address.clone(),
            client_address: founder.client_address.clone(),
        });
        StoredList {
            cluster: list.id().to_string(),
            token: list.token.clone(),
            founders: founders.collect(),
        }
    }

    fn into_list(self) -> Result<FounderList, String> {
        let founders = self.founders.into_iter().map(|founder| {
            Ok(Founder {
                incarnation: parse_incarnation(&founder.incarnation)?,
                name: founder.name,
                node_address: founder.node_address,
                client_address: founder.client_address,
            })
        });
        let founders = founders.collect::<Result<_, String>>()?;
        let list = FounderList::new(self.token, founders);
        // Also finds a release that hashes otherwise: it would call the cluster by another name.
        if list.id().to_string() == self.cluster {
            Ok(list)
        } else {
            Err(format!(
                "its list hashes to {}, not to {}",
                list.id(),
                self.cluster
            ))
        }
    }
}

impl Identity {
    fn into_record(self) -> Result<Record, String> {
        let confirmed = self.confirmed.into_iter().map(StoredList::into_list);
        Ok(Record {
            confirmed: confirmed.collect::<Result<_, String>>()?,
            formed: self.formed.map(StoredList::into_list).transpose()?,
            joined: self.joined.map(NodeId),
        })
    }
}

/// A data directory that this process has locked. The lock ends with the value, or with the process.
pub struct DataDirectory {
    files: Arc<dyn Files>,
    path: PathBuf,
    name: String,
    incarnation: Incarnation,
    record: Record,
    _lock: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for DataDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataDirectory({}, {})", self.path.display(), self.name)
    }
}

impl DataDirectory {
    /// Locks the directory and reads who the node is. A directory without an identity is made the
    /// home of `name` under the incarnation `fresh`, which is synced when this returns. Blocks on the
    /// disk.
    pub fn open(
        files: Arc<dyn Files>,
        path: &Path,
        name: &str,
        fresh: Incarnation,
    ) -> Result<DataDirectory, IdentityError> {
        files
            .create_dir_all(path)
            .map_err(io_error("create data directory", path))?;
        let mut directory = DataDirectory {
            path: path.to_owned(),
            name: name.to_owned(),
            incarnation: fresh,
            record: Record::default(),
            _lock: lock(files.as_ref(), path)?,
            files,
        };
        match directory.read()? {
            Some(identity) => directory.take(identity)?,
            None => {
                directory.refuse_orphaned_data()?;
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

    /// The node's id in its cluster, if it is in one.
    pub fn node(&self) -> Option<NodeId> {
        let founder = || self.formed()?.node_of(self.incarnation);
        self.record.joined.or_else(founder)
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
            confirmed: record.confirmed.iter().map(StoredList::of).collect(),
            formed: record.formed.as_ref().map(StoredList::of),
            joined: record.joined.map(|node| node.0),
        };
        let path = self.path.join(IDENTITY);
        self.files
            .write_atomically(&path, &encode(&identity))
            .map_err(io_error("replace", &path))?;
        self.record = record;
        Ok(())
    }

    fn read(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.path.join(IDENTITY);
        let bytes = self.files.read(&path).map_err(io_error("read", &path))?;
        bytes.map(|bytes| decode(&path, &bytes)).transpose()
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
        let corrupt = |reason: String| IdentityError::Corrupt {
            path: path.clone(),
            reason,
        };
        self.incarnation = parse_incarnation(&identity.incarnation).map_err(corrupt)?;
        self.record = identity.into_record().map_err(corrupt)?;
        // Who joined later is not in the list of those who formed the cluster.
        let formed = self.record.formed.as_ref();
        let formed = formed.filter(|_| self.record.joined.is_none());
        let mut lists = self.record.confirmed.iter().chain(formed);
        if lists.any(|list| list.of_incarnation(self.incarnation).is_none()) {
            return Err(corrupt("a list in it lacks its own incarnation".into()));
        }
        Ok(())
    }

    fn refuse_orphaned_data(&self) -> Result<(), IdentityError> {
        let has_files = |entry: &&str| {
            let listed = self.files.list(&self.path.join(entry));
            listed.is_ok_and(|files| !files.is_empty())
        };
        let orphan = [WAL, ENGINE].into_iter().find(has_files);
        match orphan {
            None => Ok(()),
            Some(found) => Err(IdentityError::Missing {
                path: self.path.clone(),
                found: format!("{found}/"),
            }),
        }
    }
}

/// What a directory says of its node, without becoming the node.
pub struct Inspected {
    /// Its name.
    pub name: String,
    /// Its number.
    pub incarnation: Incarnation,
    /// Its id, if it is in a cluster.
    pub node: Option<NodeId>,
    /// Keeps a node from starting on the directory until it is dropped.
    pub lock: Option<Box<dyn Any + Send + Sync>>,
}

/// Reads who the node of a directory is, and keeps it from starting meanwhile; changes nothing. `None`: a
/// directory without data and without identity. Blocks on the disk.
pub fn inspect(files: Arc<dyn Files>, path: &Path) -> Result<Option<Inspected>, IdentityError> {
    let file = path.join(LOCK);
    // A directory without this file was never used; none is made.
    let lock = match files.read(&file).map_err(io_error("read", &file))? {
        Some(_) => Some(lock(files.as_ref(), path)?),
        None => None,
    };
    let mut directory = DataDirectory {
        path: path.to_owned(),
        name: String::new(),
        incarnation: Incarnation([0; 16]),
        record: Record::default(),
        _lock: Box::new(()),
        files,
    };
    let Some(identity) = directory.read()? else {
        directory.refuse_orphaned_data()?;
        return Ok(None);
    };
    directory.name.clone_from(&identity.name);
    directory.take(identity)?;
    Ok(Some(Inspected {
        node: directory.node(),
        name: directory.name,
        incarnation: directory.incarnation,
        lock,
    }))
}

fn lock(files: &dyn Files, directory: &Path) -> Result<Box<dyn Any + Send + Sync>, IdentityError> {
    let path = directory.join(LOCK);
    files.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => IdentityError::InUse {
            path: directory.to_owned(),
        },
        _ => io_error("lock", &path)(error),
    })
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
    let (path, found) = (path.to_owned(), format);
    match format.cmp(&FORMAT) {
        Ordering::Less => {
            return Err(IdentityError::Older {
                path,
                found,
                writer,
            });
        }
        Ordering::Greater => {
            return Err(IdentityError::Format {
                path,
                found,
                writer,
            });
        }
        Ordering::Equal => {}
    }
    serde_json::from_str(json).map_err(|error| corrupt(error.to_string()))
}

/// Whether these bytes are an identity file; what is read is written as it was. For the tests that try
/// every decoder.
pub(crate) fn is_identity(bytes: &[u8]) -> bool {
    let path = Path::new(IDENTITY);
    let Ok(identity) = decode(path, bytes) else {
        return false;
    };
    let again = decode(path, &encode(&identity)).expect("it was just written");
    let same = |left: &Identity, right: &Identity| encode(left) == encode(right);
    assert!(same(&identity, &again), "{identity:?} became {again:?}");
    identity.into_record().is_ok()
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

fn parse_incarnation(text: &str) -> Result<Incarnation, String> {
    match u128::from_str_radix(text, 16) {
        Ok(number) if text.len() == 32 => Ok(Incarnation(number.to_be_bytes())),
        Ok(_) | Err(_) => Err(format!(
            "{text:?} is no incarnation of 32 hexadecimal digits"
        )),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::env::files::DiskFiles;

    fn opened(path: &Path, name: &str, number: u8) -> Result<DataDirectory, IdentityError> {
        DataDirectory::open(Arc::new(DiskFiles), path, name, Incarnation([number; 16]))
    }

    /// A lock let go of here may be held a moment longer by a child that another test is starting.
    fn opened_again(path: &Path, name: &str) -> Result<DataDirectory, IdentityError> {
        loop {
            match opened(path, name, 2) {
                Err(IdentityError::InUse { .. }) => std::thread::yield_now(),
                other => return other,
            }
        }
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
            joined: None,
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
        let again = opened_again(&path, "n1").unwrap();
        assert_eq!(again.incarnation(), Incarnation([1; 16]));
        assert_eq!(again.record(), &record(1));
        assert_eq!(
            again.formed().unwrap().node_of(again.incarnation()),
            Some(NodeId(1))
        );
        assert_eq!(again.node(), Some(NodeId(1)));
    }

    #[test]
    fn a_node_that_joined_keeps_its_id_and_the_list_that_it_is_not_in() {
        let dir = tempfile::tempdir().unwrap();
        let list = record(1).formed.unwrap();
        let mut joined = opened(dir.path(), "n9", 9).unwrap();
        let joins = joined.record().with_joined(list.clone(), NodeId(9));
        joined.save(joins).unwrap();
        drop(joined);
        let again = opened_again(dir.path(), "n9").unwrap();
        assert_eq!(again.node(), Some(NodeId(9)));
        assert_eq!(again.formed().unwrap().cluster, list.id());
    }

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = opened(dir.path(), "n1", 1).unwrap();
        let error = opened(dir.path(), "n1", 2).unwrap_err();
        assert!(matches!(error, IdentityError::InUse { .. }), "{error}");
        drop(first);
        opened_again(dir.path(), "n1").unwrap();
    }

    #[test]
    fn every_torn_and_every_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let file = dir.path().join(IDENTITY);
        let whole = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            let error = decode(&file, bytes).unwrap_err();
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
        decode(&file, &whole).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_naming_the_release_that_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let mut text = format!("{}\nwhatever comes then\n", header(7, "3.2.1"));
        text.push_str(&format!("crc32c {:08x}\n", crc32c::crc32c(text.as_bytes())));
        fs::write(dir.path().join(IDENTITY), text).unwrap();
        let error = opened_again(dir.path(), "n1").unwrap_err();
        assert!(
            matches!(error, IdentityError::Format { found: 7, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("use quorate 3.2.1"), "{error}");
    }

    /// With what a node of that format has written beside it, which must not matter.
    fn example(format: u32, checksum: &str) -> Result<DataDirectory, IdentityError> {
        let list = concat!(
            r#"{"cluster":"d8aee1296c3a7a4764755a67c92c914b","token":"token","founders":[{"name":"n1","#,
            r#""incarnation":"000102030405060708090a0b0c0d0e0f","#,
            r#""node_address":"127.0.0.1:7401","client_address":"127.0.0.1:7400"}]}"#
        );
        let text = format!(
            "{}{{{},\"confirmed\":[{list}],\"formed\":{list}}}\ncrc32c {checksum}\n",
            format_args!("quorate identity format {format} written by 0.1.0\n"),
            r#""name":"n1","incarnation":"000102030405060708090a0b0c0d0e0f""#,
        );
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IDENTITY), text).unwrap();
        opened(dir.path(), "n1", 2)
    }

    #[test]
    fn a_directory_of_an_older_build_is_refused_at_the_door_with_the_ways_on() {
        let error = example(1, "eff12b0a").unwrap_err();
        assert!(
            matches!(error, IdentityError::Older { found: 1, .. }),
            "{error}"
        );
        let said = error.to_string();
        for way in ["older build of quorate 0.1.0", "--join", "export"] {
            assert!(said.contains(way), "{said}");
        }
    }

    #[test]
    fn an_example_of_format_three_is_read() {
        let directory = example(3, "8b722e62").unwrap();
        assert_eq!(
            directory.incarnation().to_string(),
            "000102030405060708090a0b0c0d0e0f"
        );
        assert_eq!(directory.formed().unwrap().founders.len(), 1);
    }

    #[test]
    fn another_nodes_directory_and_data_without_identity_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(opened(dir.path(), "n1", 1).unwrap());
        let error = opened_again(dir.path(), "n2").unwrap_err();
        assert!(matches!(error, IdentityError::OtherName { .. }), "{error}");
        fs::remove_file(dir.path().join(IDENTITY)).unwrap();
        fs::create_dir(dir.path().join(WAL)).unwrap();
        fs::write(dir.path().join(WAL).join("1"), "data").unwrap();
        let error = opened_again(dir.path(), "n1").unwrap_err();
        assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
    }
}
