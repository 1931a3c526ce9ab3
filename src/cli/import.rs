//! `quorate import`: stores the records of a JSON Lines file.
//!
//! A file is read once before anything is written, so that a bad line is found while nothing has
//! happened; standard input is refused at the bad line. Records of one shard share a write, and writes
//! run beside each other, except that two records of one key are stored in the order of the file. Storing
//! a record twice does no harm, so an import that stopped goes on at the first line that is not certainly
//! stored.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cli::context::Context;
use crate::cli::failure::EXIT_ERROR;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::records;
use crate::cli::records::Record;
use crate::cli::text;
use crate::client::Kv;
use crate::client::kv::WriteOptions;
use crate::error::Advice;
use crate::error::Effect;
use crate::error::Error;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::request::Operation;

/// For one write with all its attempts: longer than any failover, so that an import survives one.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Records read but not yet sent. Full: reading waits.
const RECORDS_WAITING_MAX: usize = 64;
/// A rate is kept over this long: the timer is too coarse for single records.
const RATE_WINDOW: Duration = Duration::from_millis(50);
/// Records of one write: below what a write may have.
const BATCH_RECORDS_MAX: usize = 128;
/// Bytes of the lines of one write; one longer record is sent alone.
const BATCH_BYTES_MAX: u64 = 256 * 1024;
/// Writes at the same time. Full: records gather.
const WRITES_MAX: usize = 64;
/// Writes to one shard at the same time: one is on its way while the shard works on another.
const WRITES_OF_A_SHARD_MAX: usize = 4;
/// Bytes of the lines that are being stored. Full: no more are taken.
const BUSY_BYTES_MAX: u64 = 32 * 1024 * 1024;
const BAD_LINES_SHOWN_MAX: usize = 10;

/// `quorate import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is {\"key\": TEXT, \"value\": TEXT}; what is no text stands in key_base64 or value_base64.
Whatever a cluster answers that can be tried again is tried again, for --timeout (60s) per record.
After an error it says how to go on; a record that is stored twice does no harm.

Example:
  quorate import users.jsonl
  quorate import users.jsonl --rate 500 --from-line 1201
  zcat users.jsonl.gz | quorate import -")]
pub struct ImportArgs {
    /// The file; - reads standard input
    file: String,
    /// Records being stored at the same time; those of one shard share writes
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
    in_flight: u64,
    /// Records per second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Leave out the lines before this one, which are stored already
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
}

/// One line that is no blank.
#[derive(Debug)]
struct Item {
    line: u64,
    /// With the end of the line.
    bytes: u64,
    record: Result<Record, String>,
}

/// Why no more records are taken.
#[derive(Debug)]
enum Stop {
    BadLine { line: u64, reason: String },
    Unreadable(io::Error),
    Refused { line: u64, key: Key, error: Error },
    Interrupted,
}

/// Stores the records of a file or of standard input.
pub async fn run(args: ImportArgs, context: &Context) -> Result<(), Failure> {
    let deadline = context.global.timeout.unwrap_or(TIMEOUT);
    let kv = context.kv_of_its_own(0, deadline)?;
    let (source, bytes_total) = open(&args, context).await?;
    let (sender, items) = mpsc::channel(RECORDS_WAITING_MAX);
    let from_line = args.from_line;
    let reader = tokio::task::spawn_blocking(move || read_items(source, from_line, &sender));
    let progress = Progress::start(&context.world, "imported", bytes_total);
    let mut import = Import::new(kv, &args, progress);
    import.run(items).await;
    import.progress.clear();
    if import.stop.is_none() {
        let read = reader
            .await
            .map_err(|error| Failure::error(error.to_string()))?;
        import.stop = read.err().map(Stop::Unreadable);
    }
    import.finish(&args, context)
}

/// The source, and its bytes if it is a file, whose lines have all been looked at.
async fn open(
    args: &ImportArgs,
    context: &Context,
) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if args.file == "-" {
        return Ok((context.world.take_stdin()?, None));
    }
    let name = args.file.clone();
    let refused = |error: io::Error| Failure::bad_input(format!("{name}: {error}"));
    let file = std::fs::File::open(&args.file).map_err(refused)?;
    let is_file = file.metadata().map_err(refused)?.is_file();
    if !is_file {
        return Ok((Box::new(file), None));
    }
    let path = args.file.clone();
    let from_line = args.from_line;
    let looked_at = tokio::task::spawn_blocking(move || look_at(Path::new(&path), from_line));
    let looked_at = looked_at
        .await
        .map_err(|error| Failure::error(error.to_string()))?;
    let (bytes, bad) = looked_at.map_err(refused)?;
    if bad.is_empty() {
        return Ok((Box::new(file), Some(bytes)));
    }
    let mut message = format!("{name}: nothing was imported");
    for (line, reason) in bad {
        message.push_str(&format!("; line {line}: {reason}"));
    }
    Err(Failure::bad_input(message))
}

/// Bytes from `from_line` on, and the first bad lines there.
fn look_at(path: &Path, from_line: u64) -> io::Result<(u64, Vec<(u64, String)>)> {
    let mut lines = Lines::new(std::fs::File::open(path)?);
    let mut bytes = 0;
    let mut bad = Vec::new();
    while let Some((line, length, text)) = lines.next()? {
        if line < from_line {
            continue;
        }
        bytes += length;
        if text.is_empty() {
            continue;
        }
        if let Err(reason) = records::parse(text) {
            bad.push((line, reason));
        }
        if bad.len() == BAD_LINES_SHOWN_MAX {
            break;
        }
    }
    Ok((bytes, bad))
}

/// Runs on a thread of its own until the end, a bad line, or nobody wants more.
fn read_items(source: impl Read, from_line: u64, items: &mpsc::Sender<Item>) -> io::Result<()> {
    let mut lines = Lines::new(source);
    while let Some((line, bytes, text)) = lines.next()? {
        if line < from_line || text.is_empty() {
            continue;
        }
        let record = records::parse(text);
        let is_bad = record.is_err();
        let item = Item {
            line,
            bytes,
            record,
        };
        if items.blocking_send(item).is_err() || is_bad {
            break;
        }
    }
    Ok(())
}

/// Lines with their numbers, never more than one in memory and none of it longer than a record can be.
struct Lines<R> {
    source: BufReader<R>,
    line: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn new(source: R) -> Lines<R> {
        Lines {
            source: BufReader::with_capacity(256 * 1024, source),
            line: 0,
            buffer: Vec::new(),
        }
    }

    /// Number, length with its end, and text without the white space around it.
    fn next(&mut self) -> io::Result<Option<(u64, u64, &[u8])>> {
        self.buffer.clear();
        let longest = records::LINE_BYTES_MAX as u64 + 2;
        let mut source = (&mut self.source).take(longest);
        let mut length = source.read_until(b'\n', &mut self.buffer)? as u64;
        if length == 0 {
            return Ok(None);
        }
        if self.buffer.last() != Some(&b'\n') {
            length += skip_line(&mut self.source)?;
        }
        self.line += 1;
        Ok(Some((self.line, length, self.buffer.trim_ascii())))
    }
}

fn skip_line(source: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = source.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(buffer.len(), |end| end + 1);
        source.consume(count);
        skipped += count as u64;
        if end.is_some() || count == 0 {
            return Ok(skipped);
        }
    }
}

/// Records that one write stores: all of one shard, as far as is known.
struct Batch {
    /// The shard's keys; `None` where the shard is not known: then there is one record.
    range: Option<KeyRange>,
    entries: Vec<Entry>,
    bytes: u64,
}

/// A record with the place that it came from.
struct Entry {
    line: u64,
    /// With the end of the line.
    bytes: u64,
    record: Record,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.range.is_none()
            || self.entries.len() >= BATCH_RECORDS_MAX
            || self.bytes >= BATCH_BYTES_MAX
    }

    fn may_take(&self, key: &[u8]) -> bool {
        let range = self.range.as_ref();
        !self.is_full() && range.is_some_and(|range| range.contains(key))
    }
}

/// What became of a batch. Behind a refused record nothing more of it was sent.
struct Stored {
    batch: Batch,
    /// Of its entries, from the first on.
    stored: usize,
    refused: Option<Error>,
}

/// Stores a batch: by one write, or record by record where the keys turn out not to be of one shard,
/// or where one bad record keeps the others from being stored.
async fn store(kv: Kv, batch: Batch) -> Stored {
    if batch.entries.len() > 1 {
        let puts = batch.entries.iter().map(|entry| Operation::Put {
            key: entry.record.key.clone(),
            value: entry.record.value.clone(),
        });
        let written = kv.write(Vec::new(), puts.collect(), WriteOptions::default());
        match written.await {
            Ok(_) => {
                return Stored {
                    stored: batch.entries.len(),
                    refused: None,
                    batch,
                };
            }
            Err(error) if is_for_all_together(&error) => {}
            Err(error) => {
                return Stored {
                    stored: 0,
                    refused: Some(error),
                    batch,
                };
            }
        }
    }
    let (mut stored, mut refused) = (0, None);
    for entry in &batch.entries {
        let Record { key, value } = entry.record.clone();
        match kv.put(key, value, WriteOptions::default()).await {
            Ok(_) => stored += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    Stored {
        batch,
        stored,
        refused,
    }
}

/// Whether records that were refused together, with nothing done, may be stored one by one.
fn is_for_all_together(error: &Error) -> bool {
    let advice = error.advice();
    error.effect() == Effect::None && matches!(advice, Advice::Fix | Advice::Redirect(_))
}

struct Import<'a> {
    kv: Kv,
    records_max: usize,
    step: Duration,
    /// When the next record may be taken.
    slot: Instant,
    /// Records that wait for their write.
    gathered: Vec<Batch>,
    writes: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// How many of the writes are for each shard, by its first key.
    writes_of: BTreeMap<Key, usize>,
    /// Keys being stored, with their lines: a second record of such a key waits.
    busy: HashMap<Key, u64>,
    busy_bytes: u64,
    /// A record whose key is being stored.
    next: Option<Entry>,
    /// The first line that is not certainly stored.
    resume: Option<u64>,
    last_line: u64,
    stop: Option<Stop>,
    progress: Progress<'a>,
}

impl<'a> Import<'a> {
    fn new(kv: Kv, args: &ImportArgs, progress: Progress<'a>) -> Import<'a> {
        let step = args
            .rate
            .map(|rate| Duration::from_secs(1).div_f64(rate as f64));
        Import {
            kv,
            records_max: usize::try_from(args.in_flight).unwrap_or(usize::MAX),
            step: step.unwrap_or_default(),
            slot: Instant::now(),
            gathered: Vec::new(),
            writes: FuturesUnordered::new(),
            writes_of: BTreeMap::new(),
            busy: HashMap::new(),
            busy_bytes: 0,
            next: None,
            resume: None,
            last_line: args.from_line - 1,
            stop: None,
            progress,
        }
    }

    /// Until everything is stored, or nothing more is taken and all that was sent has ended.
    async fn run(&mut self, mut items: mpsc::Receiver<Item>) {
        let mut interrupt = Box::pin(tokio::signal::ctrl_c());
        let mut ended = false;
        loop {
            let goes_on = self.stop.is_none();
            // What stands before a bad line is good.
            if matches!(self.stop, None | Some(Stop::BadLine { .. })) {
                self.start_what_may();
            }
            let may_take = goes_on && !ended && self.has_room();
            if self.writes.is_empty() && !may_take {
                return;
            }
            let slot = self.slot;
            let item = async {
                tokio::time::sleep_until(slot).await;
                items.recv().await
            };
            // Cancel-safe: each branch only takes something out when it is chosen.
            tokio::select! {
                biased;
                Ok(()) = &mut interrupt, if goes_on => self.interrupt(),
                Some(stored) = self.writes.next(), if !self.writes.is_empty() => self.note(stored),
                item = item, if may_take => match item {
                    Some(item) => self.take(item),
                    None => ended = true,
                },
            }
        }
    }

    fn has_room(&self) -> bool {
        self.next.is_none()
            && self.busy.len() < self.records_max
            && self.busy_bytes < BUSY_BYTES_MAX
    }

    fn take(&mut self, item: Item) {
        let now = Instant::now();
        let oldest = now.checked_sub(RATE_WINDOW).unwrap_or(now);
        self.slot = (self.slot + self.step).max(oldest);
        let line = item.line;
        match item.record {
            Ok(record) => {
                self.last_line = line;
                let bytes = item.bytes;
                self.gather(Entry {
                    line,
                    bytes,
                    record,
                });
            }
            Err(reason) => self.stop = Some(Stop::BadLine { line, reason }),
        }
    }

    /// Puts a record to others of its shard, unless its key is being stored.
    fn gather(&mut self, entry: Entry) {
        let key = &entry.record.key;
        if self.busy.contains_key(key) {
            self.next = Some(entry);
            return;
        }
        self.busy.insert(key.clone(), entry.line);
        self.busy_bytes += entry.bytes;
        let mut gathered = self.gathered.iter();
        let batch = match gathered.position(|batch| batch.may_take(key)) {
            Some(place) => &mut self.gathered[place],
            None => {
                self.gathered.push(Batch {
                    range: self.kv.shard_range(key),
                    entries: Vec::new(),
                    bytes: 0,
                });
                self.gathered.last_mut().expect("one was pushed")
            }
        };
        batch.bytes += entry.bytes;
        batch.entries.push(entry);
    }

    /// Sends what is full, and what is for a shard that has little to do. What comes meanwhile gathers:
    /// the busier a shard is, the more records go into one write.
    fn start_what_may(&mut self) {
        while self.writes.len() < WRITES_MAX {
            let may_start = |batch: &Batch| {
                let shard = batch.range.as_ref();
                let writes = shard.and_then(|range| self.writes_of.get(&range.start));
                writes.copied().unwrap_or(0) < WRITES_OF_A_SHARD_MAX
            };
            let Some(place) = self.gathered.iter().position(may_start) else {
                return;
            };
            let batch = self.gathered.remove(place);
            if let Some(range) = &batch.range {
                *self.writes_of.entry(range.start.clone()).or_default() += 1;
            }
            self.writes.push(Box::pin(store(self.kv.clone(), batch)));
        }
    }

    fn note(&mut self, stored: Stored) {
        let Stored {
            batch,
            stored,
            refused,
        } = stored;
        self.note_end_of_write(&batch);
        for entry in &batch.entries {
            self.busy.remove(&entry.record.key);
            self.busy_bytes -= entry.bytes;
        }
        let (done, left) = batch.entries.split_at(stored);
        let bytes = done.iter().map(|entry| entry.bytes);
        self.progress.advance(done.len() as u64, bytes.sum());
        if let (Some(error), Some(entry)) = (refused, left.first()) {
            self.refuse(entry, error);
        }
        if let Some(next) = self.next.take() {
            self.gather(next);
        }
    }

    fn note_end_of_write(&mut self, batch: &Batch) {
        let Some(range) = &batch.range else {
            return;
        };
        if let Some(writes) = self.writes_of.get_mut(&range.start) {
            *writes -= 1;
            if *writes == 0 {
                self.writes_of.remove(&range.start);
            }
        }
    }

    fn refuse(&mut self, entry: &Entry, error: Error) {
        self.resume_at(entry.line);
        if self.stop.is_none() {
            self.stop = Some(Stop::Refused {
                line: entry.line,
                key: entry.record.key.clone(),
                error,
            });
        }
    }

    /// Nobody waits for what is under way: it goes on there.
    fn interrupt(&mut self) {
        self.stop = Some(Stop::Interrupted);
        self.writes.clear();
        if let Some(first) = self.busy.values().min().copied() {
            self.resume_at(first);
        }
    }

    fn resume_at(&mut self, line: u64) {
        self.resume = Some(self.resume.map_or(line, |first| first.min(line)));
    }

    fn finish(mut self, args: &ImportArgs, context: &Context) -> Result<(), Failure> {
        let Some(stop) = self.stop.take() else {
            let object = json!({
                "records": self.progress.records(),
                "bytes": self.progress.bytes(),
                "seconds": self.progress.elapsed().as_secs_f64(),
            });
            return context.print_result(object, &self.progress.summary());
        };
        let gathered = self.gathered.iter().flat_map(|batch| &batch.entries);
        let unsent = gathered.chain(&self.next).map(|entry| entry.line).min();
        self.resume_at(unsent.unwrap_or(self.last_line + 1));
        let mut failure = match stop {
            Stop::BadLine { line, reason } => {
                self.resume_at(line);
                Failure::bad_input(format!("line {line}: {reason}"))
            }
            Stop::Unreadable(error) => Failure::error(format!("{}: {error}", args.file)),
            Stop::Refused { line, key, error } => {
                let key = text::shown(&key);
                Failure::from(error).while_doing(format!("line {line}, key {key}"))
            }
            Stop::Interrupted => Failure::new(EXIT_ERROR, "interrupted"),
        };
        // Putting the record again under a new id does no harm: nobody needs the old one.
        failure.request = None;
        let line = self.resume.unwrap_or(1);
        let records = self.progress.records();
        let file = &args.file;
        failure.message = failure.message.map(|message| {
            format!(
                "{message}; {records} records are stored, go on with: quorate import {file} --from-line {line}"
            )
        });
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, u64, String)> {
        let mut lines = Lines::new(text);
        let mut all = Vec::new();
        while let Some((line, bytes, text)) = lines.next().unwrap() {
            all.push((line, bytes, String::from_utf8_lossy(text).into_owned()));
        }
        all
    }

    #[test]
    fn lines_are_counted_from_one_with_all_their_bytes() {
        let seen = lines(b"a\r\n\n  b \nc");
        let expected = [(1, 3, "a"), (2, 1, ""), (3, 5, "b"), (4, 1, "c")];
        assert_eq!(seen, expected.map(|(n, b, t)| (n, b, t.to_string())));
    }

    #[test]
    fn a_line_longer_than_any_record_is_cut_and_the_next_one_is_found() {
        let mut text = vec![b'x'; records::LINE_BYTES_MAX + 1_000_000];
        text.extend(b"\nnext\n");
        let seen = lines(&text);
        assert!(
            records::parse(seen[0].2.as_bytes())
                .unwrap_err()
                .contains("longer")
        );
        assert_eq!(seen[0].1, records::LINE_BYTES_MAX as u64 + 1_000_001);
        assert_eq!(seen[1].2, "next");
    }
}
