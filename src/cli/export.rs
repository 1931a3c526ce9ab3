//! `quorate export`: writes records as JSON Lines, in the order of their keys.
//!
//! A file appears under its name only when it is complete; until then it is called `….partial`, and an
//! export that stopped goes on after the last complete line of it.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::keys::EncodingArgs;
use crate::cli::keys::FreshnessArgs;
use crate::cli::keys::RangeArgs;
use crate::cli::progress::Progress;
use crate::cli::records;
use crate::client::kv::ScanOptions;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::request::KeyValue;

/// Read from the end of a partial file at a time, to find its last line.
const TAIL_BYTES: u64 = 64 * 1024;

/// `quorate export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is {\"key\": TEXT, \"value\": TEXT}; what is no text stands in key_base64 or value_base64.
After an error it says how to go on. What is written while the export goes on is not in it, unless it
was resumed.

Example:
  quorate export all.jsonl
  quorate export users.jsonl --prefix user/
  quorate export all.jsonl --resume
  quorate export | gzip > all.jsonl.gz")]
pub struct ExportArgs {
    /// The file; - writes standard output
    #[arg(default_value = "-")]
    file: String,
    #[command(flatten)]
    range: RangeArgs,
    /// Go on with the partial file of an export that stopped
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    freshness: FreshnessArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
}

/// Writes all records of a range.
pub async fn run(args: ExportArgs, context: &Context) -> Result<(), Failure> {
    let mut range = args.range.range(&args.encoding)?;
    let mut target = Target::open(&args)?;
    if let Some(last) = &target.last_key {
        range.start = range.start.max(after(last));
    }
    let mut progress = Progress::start(&context.world, "exported", None);
    let result = copy(&args, range.clone(), &mut target, &mut progress, context).await;
    progress.clear();
    match result {
        Ok(()) => {
            target.finish()?;
            context.world.tell(progress.summary());
            Ok(())
        }
        // Nobody to tell, and nothing to go on with.
        Err(failure) if failure.message.is_none() => Err(failure),
        Err(failure) => {
            let records = progress.records();
            let way_on = way_on(&args, &range, &mut target, context);
            let failure = failure.while_doing(format!("after {records} records"));
            Err(Failure {
                message: failure
                    .message
                    .map(|message| format!("{message}; {way_on}")),
                ..failure
            })
        }
    }
}

async fn copy(
    args: &ExportArgs,
    range: KeyRange,
    target: &mut Target,
    progress: &mut Progress<'_>,
    context: &Context,
) -> Result<(), Failure> {
    if range.is_empty() {
        return Ok(());
    }
    let mut options = ScanOptions::of(range);
    options.options = args.freshness.options();
    let mut pages = context.kv()?.scan(options);
    while let Some(page) = pages.next().await {
        let page = page?;
        for KeyValue { key, versioned } in page.items {
            let line = format!("{}\n", records::format(&key, &versioned.value));
            target.write(&line, context)?;
            target.last_key = Some(key);
            progress.advance(1, line.len() as u64);
        }
    }
    Ok(())
}

/// The words with which an export that stopped goes on.
fn way_on(args: &ExportArgs, range: &KeyRange, target: &mut Target, context: &Context) -> String {
    let file = &args.file;
    if let Some(output) = &mut target.file {
        if let Err(error) = output.writer.flush() {
            return format!("and {}: {error}", output.partial.display());
        }
        return format!("go on with: quorate export {file} --resume, and the same range");
    }
    let _ = context.world.flush();
    let start = target
        .last_key
        .as_deref()
        .map_or(range.start.clone(), after);
    let end = range.end.as_ref();
    let end = end.map_or(String::new(), |end| format!(" --end {}", hex(end)));
    if start.is_empty() {
        return format!("nothing was written, start again with: quorate export{end}");
    }
    let start = hex(&start);
    format!("go on with: quorate export --hex --start {start}{end}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first key after `key`.
fn after(key: &[u8]) -> Key {
    Bytes::from([key, &[0]].concat())
}

/// Where the lines go.
struct Target {
    /// `None`: standard output.
    file: Option<Output>,
    /// Of the last line written.
    last_key: Option<Key>,
}

struct Output {
    partial: PathBuf,
    complete: PathBuf,
    writer: BufWriter<File>,
}

impl Target {
    fn open(args: &ExportArgs) -> Result<Target, Failure> {
        if args.file == "-" {
            if args.resume {
                return Err(Failure::bad_input(
                    "--resume goes on with a file: standard output has none",
                ));
            }
            return Ok(Target {
                file: None,
                last_key: None,
            });
        }
        let complete = PathBuf::from(&args.file);
        let partial = PathBuf::from(format!("{}.partial", args.file));
        let refused =
            |error: io::Error| Failure::bad_input(format!("{}: {error}", partial.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(!args.resume)
            .truncate(!args.resume)
            .open(&partial)
            .map_err(refused)?;
        let last_key = if args.resume {
            cut_to_last_line(&mut file, &partial)?
        } else {
            None
        };
        Ok(Target {
            file: Some(Output {
                partial,
                complete,
                writer: BufWriter::with_capacity(256 * 1024, file),
            }),
            last_key,
        })
    }

    fn write(&mut self, line: &str, context: &Context) -> Result<(), Failure> {
        match &mut self.file {
            None => context.world.print(line),
            Some(output) => output
                .writer
                .write_all(line.as_bytes())
                .map_err(|error| Failure::error(format!("{}: {error}", output.partial.display()))),
        }
    }

    /// Gives a complete file its name, after its bytes are on the disk.
    fn finish(self) -> Result<(), Failure> {
        let Some(output) = self.file else {
            return Ok(());
        };
        let complete = &output.complete;
        let failed = |error: io::Error| Failure::error(format!("{}: {error}", complete.display()));
        let file = output.writer.into_inner();
        let file = file.map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&output.partial, complete).map_err(failed)?;
        let directory = match complete.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(directory).map_err(failed)?;
        directory.sync_all().map_err(failed)
    }
}

/// Cuts off a line that was not written to its end, and tells the key of the last one that was.
fn cut_to_last_line(file: &mut File, path: &Path) -> Result<Option<Key>, Failure> {
    let name = path.display();
    let failed = |error: io::Error| Failure::error(format!("{name}: {error}"));
    let Some(end) = line_end_before(file, u64::MAX).map_err(failed)? else {
        file.set_len(0).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        return Ok(None);
    };
    let start = line_end_before(file, end).map_err(failed)?;
    let start = start.map_or(0, |end| end + 1);
    file.set_len(end + 1).map_err(failed)?;
    file.seek(SeekFrom::Start(start)).map_err(failed)?;
    let mut line = Vec::new();
    file.read_to_end(&mut line).map_err(failed)?;
    let record = records::parse(line.trim_ascii());
    let record = record.map_err(|reason| {
        Failure::bad_input(format!("{name} is no export: its last line: {reason}"))
    })?;
    Ok(Some(record.key))
}

/// The place of the last newline below `below`.
fn line_end_before(file: &mut File, below: u64) -> io::Result<Option<u64>> {
    let mut end = file.metadata()?.len().min(below);
    let mut buffer = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        buffer.clear();
        Read::by_ref(file)
            .take(end - start)
            .read_to_end(&mut buffer)?;
        if let Some(place) = buffer.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(start + place as u64));
        }
        end = start;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, kept: &str, last: Option<&str>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let key = cut_to_last_line(&mut file, Path::new("x")).unwrap();
        assert_eq!(key, last.map(|key| Key::copy_from_slice(key.as_bytes())));
        // The writer goes on where the file ends now.
        file.write_all(b"!").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut left = String::new();
        file.read_to_string(&mut left).unwrap();
        assert_eq!(left, format!("{kept}!"));
    }

    #[test]
    fn a_partial_file_is_cut_to_its_last_complete_line() {
        let a = "{\"key\":\"a\",\"value\":\"1\"}\n";
        let b = format!("{{\"key\":\"b\",\"value\":\"{}\"}}\n", "x".repeat(200_000));
        check("", "", None);
        check("{\"key\":\"a\"", "", None);
        check(a, a, Some("a"));
        check(&format!("{a}{b}"), &format!("{a}{b}"), Some("b"));
        check(
            &format!("{a}{b}{}", &b[..150_000]),
            &format!("{a}{b}"),
            Some("b"),
        );
    }
}
