//! The verbs for single keys and ranges: get, put, delete, cas, scan.
//!
//! `get` prints the bytes of the value and nothing else, so that a file or a pipe receives exactly what
//! was stored; only on a terminal a newline follows, for the prompt's sake.

use std::io::Read;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use serde_json::Map;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::text;
use crate::cli::text::Encoding;
use crate::client::Kv;
use crate::client::kv::Outcome;
use crate::client::kv::ReadOptions;
use crate::client::kv::ScanOptions;
use crate::client::kv::WriteOptions;
use crate::client::kv::Written;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::key::VALUE_BYTES_MAX;
use crate::types::keyspace::KeyspaceName;
use crate::types::request::Condition;
use crate::types::request::DELETE_RANGE_KEYS_MAX;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::wire::request::Page;

/// How keys and values are written as arguments.
#[derive(Debug, Clone, Args)]
pub struct EncodingArgs {
    /// Keys and values given as arguments are base64
    #[arg(long, conflicts_with = "hex")]
    base64: bool,
    /// Keys and values given as arguments are hexadecimal
    #[arg(long)]
    hex: bool,
}

impl EncodingArgs {
    /// Whether something else than text is said.
    pub fn is_given(&self) -> bool {
        self.base64 || self.hex
    }

    /// The bytes meant by an argument.
    pub fn decode(&self, name: &str, text: &str) -> Result<Bytes, Failure> {
        let encoding = match (self.base64, self.hex) {
            (true, _) => Encoding::Base64,
            (false, true) => Encoding::Hex,
            (false, false) => Encoding::Text,
        };
        let decoded = encoding.decode(text);
        decoded.map_err(|error| Failure::bad_input(format!("{name}: {error}")))
    }
}

/// Which keys.
#[derive(Debug, Clone, Args)]
pub struct RangeArgs {
    /// Keys that begin with this
    #[arg(long, value_name = "KEY", conflicts_with_all = ["start", "end"])]
    pub prefix: Option<String>,
    /// First key
    #[arg(long, value_name = "KEY")]
    pub start: Option<String>,
    /// First key that is not meant any more
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
}

impl RangeArgs {
    /// The range; every key when nothing is said.
    pub fn range(&self, encoding: &EncodingArgs) -> Result<KeyRange, Failure> {
        if let Some(prefix) = &self.prefix {
            return Ok(KeyRange::of_prefix(&encoding.decode("--prefix", prefix)?));
        }
        let decode = |name, text: &Option<String>| {
            let text = text.as_ref();
            text.map(|text| encoding.decode(name, text)).transpose()
        };
        let range = KeyRange {
            start: decode("--start", &self.start)?.unwrap_or_default(),
            end: decode("--end", &self.end)?,
        };
        if range.is_empty() {
            return Err(Failure::bad_input("--end must be after --start"));
        }
        Ok(range)
    }

    fn is_given(&self) -> bool {
        self.prefix.is_some() || self.start.is_some() || self.end.is_some()
    }
}

/// Whose keys.
#[derive(Debug, Clone, Args)]
pub struct KeyspaceArgs {
    /// The keyspace that the keys are of
    #[arg(long, value_name = "NAME")]
    keyspace: Option<KeyspaceName>,
}

impl KeyspaceArgs {
    fn kv(&self, context: &Context) -> Result<Kv, Failure> {
        let kv = context.kv()?;
        Ok(match &self.keyspace {
            None => kv,
            Some(keyspace) => kv.within(keyspace.clone()),
        })
    }
}

/// How fresh.
#[derive(Debug, Clone, Copy, Args)]
pub struct FreshnessArgs {
    /// Read what the node asked has, which may be old; `-o json` says as of when
    #[arg(long)]
    follower: bool,
}

impl FreshnessArgs {
    /// As the client says it.
    pub fn options(self) -> ReadOptions {
        let read = if self.follower {
            ReadKind::Follower
        } else {
            ReadKind::Linearizable
        };
        ReadOptions {
            read,
            deadline: None,
        }
    }
}

/// Sends a write again.
#[derive(Debug, Clone, Copy, Args)]
pub struct AgainArgs {
    /// The id of the same write, sent before with an unknown outcome: it happens once at most
    #[arg(long, value_name = "ID", value_parser = text::decode_request_id)]
    request_id: Option<RequestId>,
}

impl AgainArgs {
    fn options(self) -> WriteOptions {
        WriteOptions {
            id: self.request_id,
            deadline: None,
        }
    }
}

/// `quorate get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the value's bytes and nothing else; a newline follows only on a terminal.

Example:
  quorate get greeting
  quorate get greeting --follower -o json
  quorate get --keyspace orders 1001")]
pub struct GetArgs {
    /// The key
    key: String,
    #[command(flatten)]
    freshness: FreshnessArgs,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
}

/// Prints the value of a key.
pub async fn get(args: GetArgs, context: &Context) -> Result<(), Failure> {
    let key = args.encoding.decode("KEY", &args.key)?;
    let options = args.freshness.options();
    let read = args.keyspace.kv(context)?.get(key.clone(), options).await?;
    let Some(versioned) = read.found else {
        return Err(Failure::not_found(format!(
            "key {} is not there",
            text::shown(&key)
        )));
    };
    if !context.is_json() {
        context.world.print(&versioned.value)?;
        if context.world.stdout_is_terminal {
            context.world.print("\n")?;
        }
        return Ok(());
    }
    let mut object = key_object(&key);
    text::insert_bytes(&mut object, "value", &versioned.value);
    object.insert("version".into(), text::stamp(versioned.version).into());
    object.insert("as_of".into(), text::stamp(read.answered.as_of).into());
    context.print_json(object)
}

/// Where a value comes from.
#[derive(Debug, Args)]
pub struct ValueArgs {
    /// The value; - reads standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Read the value from a file
    #[arg(long)]
    file: Option<PathBuf>,
}

impl ValueArgs {
    /// Standard input and files are taken as they are, whatever the encoding of arguments.
    fn read(&self, encoding: &EncodingArgs, context: &Context) -> Result<Value, Failure> {
        match (&self.value, &self.file) {
            (Some(dash), _) if dash == "-" => {
                read_value(context.world.take_stdin()?, "standard input")
            }
            (Some(text), _) => encoding.decode("VALUE", text),
            (None, Some(path)) => {
                let name = path.display().to_string();
                let file = std::fs::File::open(path);
                let file = file.map_err(|error| Failure::bad_input(format!("{name}: {error}")))?;
                read_value(file, &name)
            }
            (None, None) => Err(Failure::bad_input("a value is needed")),
        }
    }
}

/// A value that is too long is refused before all of it is in memory.
fn read_value(source: impl Read, name: &str) -> Result<Value, Failure> {
    let mut bytes = Vec::new();
    let mut source = source.take(VALUE_BYTES_MAX as u64 + 1);
    source
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::error(format!("{name}: {error}")))?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(Failure::bad_input(format!(
            "{name}: a value has at most {VALUE_BYTES_MAX} bytes; nothing was done"
        )));
    }
    Ok(Value::from(bytes))
}

/// `quorate put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate put greeting hello
  quorate put picture --file cat.png
  quorate put --keyspace orders 1001 shipped
  echo -n hello | quorate put greeting -")]
pub struct PutArgs {
    /// The key
    key: String,
    #[command(flatten)]
    value: ValueArgs,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    again: AgainArgs,
}

/// Stores a value.
pub async fn put(args: PutArgs, context: &Context) -> Result<(), Failure> {
    let key = args.encoding.decode("KEY", &args.key)?;
    let value = args.value.read(&args.encoding, context)?;
    let options = args.again.options();
    let kv = args.keyspace.kv(context)?;
    let written = kv.put(key.clone(), value, options).await?;
    print_written(&key, written, context)
}

/// `quorate delete`.
#[derive(Debug, Args)]
#[command(after_help = "\
A key that is not there is no error: it is gone either way.

Example:
  quorate delete greeting
  quorate delete --prefix session/
  quorate delete --keyspace orders --all")]
pub struct DeleteArgs {
    /// The key
    #[arg(conflicts_with_all = ["prefix", "start", "end", "all"])]
    key: Option<String>,
    #[command(flatten)]
    range: RangeArgs,
    /// Every key of the cluster, or of the keyspace
    #[arg(long, conflicts_with_all = ["prefix", "start", "end"])]
    all: bool,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    again: AgainArgs,
}

/// Removes a key or a range of keys.
pub async fn delete(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    let Some(key) = &args.key else {
        return delete_range(args, context).await;
    };
    let key = args.encoding.decode("KEY", key)?;
    let options = args.again.options();
    let kv = args.keyspace.kv(context)?;
    let written = kv.delete(key.clone(), options).await?;
    print_written(&key, written, context)
}

async fn delete_range(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    if !args.all && !args.range.is_given() {
        return Err(Failure::bad_input(
            "say what to delete: a KEY, --prefix, --start and --end, or --all",
        ));
    }
    if args.again.request_id.is_some() {
        return Err(Failure::bad_input(
            "--request-id is for one key: a range is removed in several writes, and starting over does no harm",
        ));
    }
    let range = args.range.range(&args.encoding)?;
    let kv = args.keyspace.kv(context)?;
    let mut deleted: u64 = 0;
    let mut resume = None;
    loop {
        let options = WriteOptions::default();
        let portion = kv.delete_range_on(range.clone(), resume, DELETE_RANGE_KEYS_MAX, options);
        let portion = portion.await.map_err(|error| {
            Failure::from(error).while_doing(format!(
                "after {deleted} keys were deleted (starting over does no harm)"
            ))
        })?;
        deleted += u64::from(portion.deleted);
        resume = portion.resume;
        if resume.is_none() {
            break;
        }
    }
    let line = format!("deleted {deleted}");
    context.print_result(json!({ "deleted": deleted }), &line)
}

/// `quorate cas`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 1, and says which version is there, when the key is not as expected.

Example:
  quorate cas greeting 'good evening' --expect hello
  quorate cas lock mine --expect-absent
  quorate cas --keyspace orders 1001 paid --expect new")]
pub struct CasArgs {
    /// The key
    key: String,
    #[command(flatten)]
    value: ValueArgs,
    #[command(flatten)]
    expected: Expected,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
    #[command(flatten)]
    again: AgainArgs,
}

/// What must be there.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Expected {
    /// The key has this value
    #[arg(long, value_name = "VALUE")]
    expect: Option<String>,
    /// The key has this version, as `get -o json` prints it
    #[arg(long, value_name = "VERSION")]
    expect_version: Option<u64>,
    /// The key is not there
    #[arg(long)]
    expect_absent: bool,
    /// The key is there
    #[arg(long)]
    expect_present: bool,
}

impl Expected {
    fn condition(&self, key: Key, encoding: &EncodingArgs) -> Result<Condition, Failure> {
        if let Some(value) = &self.expect {
            let value = encoding.decode("--expect", value)?;
            return Ok(Condition::Value { key, value });
        }
        if self.expect_present {
            return Ok(Condition::Exists { key });
        }
        let version = match self.expect_version {
            Some(version) => Timestamp(version),
            None => Timestamp::ZERO,
        };
        Ok(Condition::Version { key, version })
    }
}

/// Stores a value if the key is as expected.
pub async fn cas(args: CasArgs, context: &Context) -> Result<(), Failure> {
    let key = args.encoding.decode("KEY", &args.key)?;
    let condition = args.expected.condition(key.clone(), &args.encoding)?;
    let value = args.value.read(&args.encoding, context)?;
    let put = Operation::Put {
        key: key.clone(),
        value,
    };
    let options = args.again.options();
    let kv = args.keyspace.kv(context)?;
    let written = kv.write(vec![condition], vec![put], options).await?;
    print_written(&key, written, context)
}

/// `quorate scan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints one key in each line, a tab, and its value. What is no text is escaped; -o json, or export,
gives every byte. The keys of a hash keyspace come bucket by bucket, in order within each alone, which is
said on standard error.

Example:
  quorate scan --prefix user/ --limit 10
  quorate scan --start a --end m --reverse --keys-only -o json
  quorate scan --keyspace orders --prefix 2024-")]
pub struct ScanArgs {
    #[command(flatten)]
    range: RangeArgs,
    /// Keys at most; 0 for all
    #[arg(long, default_value_t = 1_000)]
    limit: u64,
    /// From the end backwards
    #[arg(long)]
    reverse: bool,
    /// Without values
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    freshness: FreshnessArgs,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    encoding: EncodingArgs,
}

/// Lists keys in order.
pub async fn scan(args: ScanArgs, context: &Context) -> Result<(), Failure> {
    let mut options = ScanOptions::of(args.range.range(&args.encoding)?);
    options.limit = (args.limit > 0).then_some(args.limit);
    options.reverse = args.reverse;
    options.keys_only = args.keys_only;
    options.options = args.freshness.options();
    let mut pages = args.keyspace.kv(context)?.scan(options);
    let mut rest = None;
    let mut is_told = false;
    while let Some(page) = pages.next().await {
        let page = page?;
        if page.unordered.is_some() && !is_told {
            let order =
                "these keys come bucket by bucket, and are in order within each bucket alone";
            context.world.tell(order);
            is_told = true;
        }
        print_page(&page, args.keys_only, context)?;
        context.world.flush()?;
        rest = page.rest;
    }
    if rest.is_some_and(|rest| !rest.is_empty()) {
        let limit = args.limit;
        context.world.tell(format!(
            "there may be more after these {limit} keys: see --limit"
        ));
    }
    Ok(())
}

fn print_page(page: &Page, keys_only: bool, context: &Context) -> Result<(), Failure> {
    for KeyValue { key, versioned } in &page.items {
        if context.is_json() {
            let mut object = key_object(key);
            if !keys_only {
                text::insert_bytes(&mut object, "value", &versioned.value);
            }
            object.insert("version".into(), text::stamp(versioned.version).into());
            context.print_json(object)?;
            continue;
        }
        let key = text::shown(key);
        if keys_only {
            context.world.print(format!("{key}\n"))?;
        } else {
            let value = text::shown(&versioned.value);
            context.world.print(format!("{key}\t{value}\n"))?;
        }
    }
    Ok(())
}

fn print_written(key: &[u8], written: Written, context: &Context) -> Result<(), Failure> {
    let (version, deleted) = match written.outcome {
        Outcome::Done { version, deleted } => (version, deleted),
        Outcome::ConditionFailed { actual, .. } => return Err(not_as_expected(key, actual)),
    };
    let mut object = key_object(key);
    object.insert("version".into(), text::stamp(version).into());
    object.insert("deleted".into(), deleted.into());
    object.insert("request_id".into(), written.id.to_string().into());
    let line = if version == Timestamp::ZERO {
        "nothing changed".to_string()
    } else if deleted > 0 {
        format!("deleted {deleted}")
    } else {
        format!("version {}", text::stamp(version))
    };
    context.print_result(object, &line)
}

fn not_as_expected(key: &[u8], actual: Timestamp) -> Failure {
    let key = text::shown(key);
    Failure::error(if actual == Timestamp::ZERO {
        format!("key {key} is not as expected: it is not there; nothing was done")
    } else {
        let version = text::stamp(actual);
        format!("key {key} is not as expected: its version is {version}; nothing was done")
    })
}

fn key_object(key: &[u8]) -> Map<String, Json> {
    let mut object = Map::new();
    text::insert_bytes(&mut object, "key", key);
    object
}
