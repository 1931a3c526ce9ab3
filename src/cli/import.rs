//! `quorate import`: stores the records of a JSON Lines file.
//!
//! A file is read once before anything is written, so that a bad line is found while nothing has
//! happened; standard input is refused at the bad line. Puts run beside each other, except that two
//! records of one key are stored in the order of the file. Storing a record twice does no harm, so an
//! import that stopped goes on at the first line that is not certainly stored.

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
use crate::error::Error;
use crate::types::Key;

/// For one record with all its attempts: longer than any failover, so that an import survives one.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Records read but not yet sent. Full: reading waits.
const RECORDS_WAITING_MAX: usize = 64;
/// A rate is kept over this long: the timer is too coarse for single records.
const RATE_WINDOW: Duration = Duration::from_millis(50);
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
    /// Puts at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
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

struct Stored {
    line: u64,
    bytes: u64,
    key: Key,
    result: Result<(), Error>,
}

struct Import<'a> {
    kv: Kv,
    in_flight_max: usize,
    step: Duration,
    /// When the next record may be sent.
    slot: Instant,
    puts: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// Keys being stored, with their lines: a second record of such a key waits.
    busy: HashMap<Key, u64>,
    /// The next record to send.
    next: Option<(Item, Record)>,
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
            in_flight_max: usize::try_from(args.in_flight).unwrap_or(usize::MAX),
            step: step.unwrap_or_default(),
            slot: Instant::now(),
            puts: FuturesUnordered::new(),
            busy: HashMap::new(),
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
            let may_start = goes_on && self.may_start();
            let may_take = goes_on && !ended && self.next.is_none();
            if self.puts.is_empty() && !may_start && !may_take {
                return;
            }
            // Cancel-safe: each branch only takes something out when it is chosen.
            tokio::select! {
                biased;
                Ok(()) = &mut interrupt, if goes_on => self.interrupt(),
                Some(stored) = self.puts.next(), if !self.puts.is_empty() => self.note(stored),
                () = tokio::time::sleep_until(self.slot), if may_start => self.start(),
                item = items.recv(), if may_take => match item {
                    Some(item) => self.take(item),
                    None => ended = true,
                },
            }
        }
    }

    fn may_start(&self) -> bool {
        let next = self.next.as_ref();
        self.puts.len() < self.in_flight_max
            && next.is_some_and(|(_, record)| !self.busy.contains_key(&record.key))
    }

    fn take(&mut self, mut item: Item) {
        let line = item.line;
        match std::mem::replace(&mut item.record, Err(String::new())) {
            Ok(record) => {
                self.last_line = line;
                self.next = Some((item, record));
            }
            Err(reason) => self.stop = Some(Stop::BadLine { line, reason }),
        }
    }

    fn start(&mut self) {
        let Some((item, record)) = self.next.take() else {
            return;
        };
        let now = Instant::now();
        let oldest = now.checked_sub(RATE_WINDOW).unwrap_or(now);
        self.slot = (self.slot + self.step).max(oldest);
        self.busy.insert(record.key.clone(), item.line);
        let kv = self.kv.clone();
        self.puts.push(Box::pin(async move {
            let Record { key, value } = record;
            let written = kv.put(key.clone(), value, WriteOptions::default()).await;
            Stored {
                line: item.line,
                bytes: item.bytes,
                key,
                result: written.map(|_| ()),
            }
        }));
    }

    fn note(&mut self, stored: Stored) {
        self.busy.remove(&stored.key);
        let Err(error) = stored.result else {
            self.progress.advance(1, stored.bytes);
            return;
        };
        self.resume_at(stored.line);
        if self.stop.is_none() {
            self.stop = Some(Stop::Refused {
                line: stored.line,
                key: stored.key,
                error,
            });
        }
    }

    /// Nobody waits for what is under way: it goes on there.
    fn interrupt(&mut self) {
        self.stop = Some(Stop::Interrupted);
        self.puts.clear();
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
        let unsent = self.next.take().map(|(item, _)| item.line);
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
