//! Opening a log: reads what an earlier run has left, cuts a torn write, and starts a new segment.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::env::files::File;
use crate::env::files::Files;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::wal::Options;
use crate::wal::WalError;
use crate::wal::recovery::Damaged;
use crate::wal::recovery::End;
use crate::wal::recovery::Recovered;
use crate::wal::segment::END_BYTES;
use crate::wal::segment::HEADER_BYTES;
use crate::wal::segment::Header;
use crate::wal::segment::HeaderError;
use crate::wal::segment::Spares;
use crate::wal::segment::segment_path;
use crate::wal::segment::segment_sequence;
use crate::wal::segment::spare_number;

/// A log that can be written.
pub(super) struct Opened {
    pub(super) recovered: Recovered,
    /// Every segment that is needed; the last one is empty and the next to be written.
    pub(super) segments: BTreeMap<u64, Arc<dyn File>>,
    pub(super) spares: Spares,
}

/// Reads the log in `dir`, or makes one. The directory must belong to this process alone.
pub(super) fn open(
    files: Arc<dyn Files>,
    dir: &Path,
    options: &Options,
) -> Result<Opened, WalError> {
    let made = files.create_dir_all(dir);
    made.map_err(|error| WalError::io("make", dir, error))?;
    // A run that was killed may have renamed without having synced: what is seen here must stay.
    let synced = files.sync_dir(dir);
    synced.map_err(|error| WalError::io("sync", dir, error))?;
    let found = Found::in_dir(&*files, dir)?;
    let mut spares = Spares::new(
        files.clone(),
        dir.to_path_buf(),
        options.segment_bytes,
        options.spare_segments,
    );
    for (number, name) in &found.spares {
        spares.adopt(name, *number)?;
    }
    let mut opening = Opening {
        files,
        dir: dir.to_path_buf(),
        segments: BTreeMap::new(),
        recovered: Recovered::default(),
        progress: &mut |_| {},
    };
    let (last, previous_end) = match found.segments.last() {
        Some(last) => {
            let (bytes, end) = opening.read(&found.segments, *last)?;
            opening.settle(*last, &bytes, end)?;
            (*last, end.offset)
        }
        None => (0, 0),
    };
    let sequence = last + 1;
    let oldest = opening.recovered.live.oldest().unwrap_or(sequence);
    let header = Header {
        sequence,
        oldest,
        previous_end,
    };
    let file = spares.start_segment(&header)?;
    opening.segments.insert(sequence, file);
    for obsolete in found.segments.into_iter().filter(|found| *found < oldest) {
        opening.segments.remove(&obsolete);
        spares.recycle(obsolete)?;
    }
    Ok(Opened {
        recovered: opening.recovered,
        segments: opening.segments,
        spares,
    })
}

/// Reads the log in `dir` as [`open`] does, and changes nothing. `progress` hears of bytes read.
pub(super) fn inspect(
    files: Arc<dyn Files>,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Inspected, WalError> {
    let found = Found::in_dir(&*files, dir)?;
    let mut opening = Opening {
        files,
        dir: dir.to_path_buf(),
        segments: BTreeMap::new(),
        recovered: Recovered::default(),
        progress,
    };
    let torn = match found.segments.last() {
        Some(last) => opening.read(&found.segments, *last)?.1.torn,
        None => false,
    };
    Ok(Inspected {
        segments: opening.segments.len(),
        torn,
        recovered: opening.recovered,
    })
}

/// What a log holds that was not opened.
pub(super) struct Inspected {
    pub(super) segments: usize,
    pub(super) torn: bool,
    pub(super) recovered: Recovered,
}

/// The files of a log, in order.
struct Found {
    segments: Vec<u64>,
    spares: BTreeMap<u64, String>,
}

impl Found {
    fn in_dir(files: &dyn Files, dir: &Path) -> Result<Found, WalError> {
        let listed = files.list(dir);
        let names = listed.map_err(|error| WalError::io("list", dir, error))?;
        let mut segments: Vec<u64> = names.iter().filter_map(|n| segment_sequence(n)).collect();
        segments.sort_unstable();
        let spares = names
            .into_iter()
            .filter_map(|name| Some((spare_number(&name)?, name)))
            .collect();
        Ok(Found { segments, spares })
    }
}

struct Opening<'p> {
    files: Arc<dyn Files>,
    dir: PathBuf,
    segments: BTreeMap<u64, Arc<dyn File>>,
    recovered: Recovered,
    progress: &'p mut dyn FnMut(u64),
}

impl Opening<'_> {
    /// Reads every segment that the last one needs; gives the last one's bytes, and where its records end.
    fn read(&mut self, found: &[u64], last: u64) -> Result<(Bytes, End), WalError> {
        let header = self.header(last)?;
        let missing = (header.oldest..last).find(|needed| found.binary_search(needed).is_err());
        if let Some(missing) = missing {
            let path = segment_path(&self.dir, missing);
            return Err(WalError::damaged(&path, 0, "the file is missing"));
        }
        for sequence in header.oldest..last {
            self.header(sequence)?;
            let end = self.header(sequence + 1)?.previous_end;
            let bytes = self.content(sequence)?;
            let read = self.recovered.read_ended(sequence, &bytes, end);
            read.map_err(|damaged| self.damaged(sequence, damaged))?;
        }
        let bytes = self.content(last)?;
        let read = self.recovered.read_last(last, &bytes);
        let end = read.map_err(|damaged| self.damaged(last, damaged))?;
        let checked = self.recovered.check();
        let path = segment_path(&self.dir, last);
        checked.map_err(|reason| WalError::damaged(&path, end.offset, &reason))?;
        Ok((bytes, end))
    }

    /// Makes durable what was read: a run that was killed may have written it without a sync, or its
    /// sync may have failed and left pages that only look clean. So they are written again.
    fn settle(&self, last: u64, bytes: &Bytes, end: End) -> Result<(), WalError> {
        let path = segment_path(&self.dir, last);
        if end.torn {
            let file = path.display();
            tracing::warn!(%file, offset = end.offset, "the last write was torn and is cut off");
        }
        if mutant::lives(Mutant::TailNotRewritten) {
            return Ok(());
        }
        let inside = |offset: u64| usize::try_from(offset).expect("it is inside the file");
        let mut tail = bytes[inside(end.synced)..inside(end.offset)].to_vec();
        let zeros = END_BYTES.min(bytes.len() - inside(end.offset));
        tail.resize(tail.len() + zeros, 0);
        let file = &self.segments[&last];
        let written = file.write_at(&tail, end.synced);
        written.map_err(|error| WalError::io("write", &path, error))?;
        let synced = file.sync_data();
        synced.map_err(|error| WalError::io("sync", &path, error))
    }

    fn header(&mut self, sequence: u64) -> Result<Header, WalError> {
        let path = segment_path(&self.dir, sequence);
        if !self.segments.contains_key(&sequence) {
            let opened = self.files.open(&path);
            let file = opened.map_err(|error| WalError::io("open", &path, error))?;
            self.segments.insert(sequence, file);
        }
        let file = &self.segments[&sequence];
        let mut bytes = vec![0; HEADER_BYTES as usize];
        match file.read_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(WalError::damaged(&path, 0, "it is shorter than its header"));
            }
            Err(error) => return Err(WalError::io("read", &path, error)),
        }
        Header::decode(&bytes, sequence).map_err(|error| match error {
            HeaderError::Damaged(reason) => WalError::damaged(&path, 0, reason),
            HeaderError::Version(version) => WalError::version(&path, version),
        })
    }

    fn content(&mut self, sequence: u64) -> Result<Bytes, WalError> {
        let path = segment_path(&self.dir, sequence);
        let file = &self.segments[&sequence];
        let length = file.len();
        let length = length.map_err(|error| WalError::io("measure", &path, error))?;
        let mut bytes = vec![0; usize::try_from(length).expect("a segment fits in memory")];
        let read = file.read_at(&mut bytes, 0);
        read.map_err(|error| WalError::io("read", &path, error))?;
        (self.progress)(length);
        Ok(bytes.into())
    }

    fn damaged(&self, sequence: u64, damaged: Damaged) -> WalError {
        let path = segment_path(&self.dir, sequence);
        match damaged.version {
            Some(version) => WalError::version(&path, version),
            None => WalError::damaged(&path, damaged.offset, &damaged.reason),
        }
    }
}
