//! Runs the transcripts under `tests/scripts` on both engines. A stanza is prose, commands, `---`, and
//! what came out, a line for each command, or several. `UPDATE_GOLDEN=1` writes what comes out; a person reads
//! the change.

#![allow(clippy::unwrap_used)]

mod drawing;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use drawing::Drawing;
use quorate::codec::layout;
use quorate::codec::layout::Family;
use quorate::codec::layout::Place;
use quorate::codec::layout::Slot;
use quorate::engine::Batch;
use quorate::engine::Engine;
use quorate::engine::MemoryEngine;
use quorate::engine::Overlay;
use quorate::engine::SledEngine;
use quorate::engine::sled::Options;
use quorate::error::Error;
use quorate::machine::Applied;
use quorate::machine::Membership;
use quorate::machine::SnapshotSource;
use quorate::machine::StateMachine;
use quorate::mvcc::Author;
use quorate::mvcc::Seen;
use quorate::mvcc::gc;
use quorate::mvcc::read;
use quorate::mvcc::version::Content;
use quorate::mvcc::version::Version;
use quorate::mvcc::write::Current;
use quorate::node::routes::Routes;
use quorate::node::routes::Target;
use quorate::shard;
use quorate::shard::Command;
use quorate::shard::Seed;
use quorate::shard::ShardMachine;
use quorate::shard::ShardReader;
use quorate::shard::Slots;
use quorate::shard::command;
use quorate::shard::command::Answer;
use quorate::shard::command::Body;
use quorate::shard::command::SplitOutcome;
use quorate::shard::merge;
use quorate::shard::merge_command::Absorb;
use quorate::shard::merge_command::MergeOutcome;
use quorate::shard::merge_command::MergeStep;
use quorate::shard::merge_command::Prepare;
use quorate::shard::merge_command::Unfreeze;
use quorate::shard::quarantine;
use quorate::shard::quarantine::Quarantined;
use quorate::shard::row::Part;
use quorate::shard::row::Row;
use quorate::types::GroupId;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::Position;
use quorate::types::ReplicaId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::log::LogEntry;
use quorate::types::log::Payload;
use quorate::types::request::Condition;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Versioned;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::types::shard::Attempt;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::types::shard::Size;
use quorate::wire::request::Cut;
use quorate::wire::request::Scan;

#[test]
fn engine_scripts() {
    run_all("engine", |store| Box::new(EngineScript { store }));
}

#[test]
fn mvcc_scripts() {
    run_all("mvcc", |store| Box::new(MvccScript { store }));
}

#[test]
fn shard_scripts() {
    run_all("shard", |store| Box::new(ShardScript::new(store)));
}

/// What a crash leaves, and what a replica makes of it with its log.
#[test]
fn recovery_scripts() {
    run_all("recovery", |store| Box::new(ShardScript::new(store)));
}

/// No engine is asked, so both runs are the same.
#[test]
fn routes_scripts() {
    run_all("routes", |_| Box::new(RoutesScript::default()));
}

/// No engine is asked either.
#[test]
fn placement_scripts() {
    run_all("placement", |_| Box::new(Drawing::default()));
}

/// Something that takes commands and answers each, with a line or with several.
trait Script {
    fn run(&mut self, command: &str) -> String;
}

impl Script for Drawing {
    fn run(&mut self, command: &str) -> String {
        self.answer(command)
    }
}

/// An engine that can be closed and opened again, as it was left or as it was flushed.
struct Store {
    /// Of the engine on disk, and a copy of it as it was flushed.
    directory: Option<tempfile::TempDir>,
    flushed: Option<tempfile::TempDir>,
    memory: Option<Arc<MemoryEngine>>,
    engine: Option<Arc<dyn Engine>>,
}

impl Store {
    fn memory() -> Store {
        let memory = Arc::new(MemoryEngine::new());
        Store {
            directory: None,
            flushed: None,
            memory: Some(memory.clone()),
            engine: Some(memory),
        }
    }

    fn sled() -> Store {
        let mut store = Store {
            directory: Some(tempfile::tempdir().unwrap()),
            flushed: None,
            memory: None,
            engine: None,
        };
        store.reopen();
        store
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        self.engine.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        if let Some(directory) = &self.directory {
            self.engine = None;
            let options = Options {
                cache_bytes: 1024 * 1024,
            };
            let engine = SledEngine::open(directory.path(), &options).unwrap();
            self.engine = Some(Arc::new(engine));
        }
    }

    fn flush(&mut self) {
        self.engine().flush().unwrap();
        if let Some(directory) = &self.directory {
            let copy = tempfile::tempdir().unwrap();
            copy_files(directory.path(), copy.path());
            self.flushed = Some(copy);
        }
    }

    /// Goes back to the last flush. Nobody may hold the engine.
    fn crash(&mut self) {
        if let Some(memory) = &self.memory {
            return memory.crash(0);
        }
        self.engine = None;
        let left = self.flushed.as_ref().expect("a flush comes before a crash");
        let directory = tempfile::tempdir().unwrap();
        copy_files(left.path(), directory.path());
        self.directory = Some(directory);
        self.reopen();
    }
}

fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn run_all(folder: &str, start: impl Fn(Store) -> Box<dyn Script>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts in {}", folder.display());
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        assert!(!script.trim().is_empty(), "{} is empty", file.display());
        let on_memory = rewritten(&script, &mut *start(Store::memory()));
        let on_sled = rewritten(&script, &mut *start(Store::sled()));
        let name = file.display();
        same_lines(&on_memory, &on_sled, &format!("{name}: memory, then sled"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &on_memory).unwrap();
        } else {
            same_lines(&script, &on_memory, &format!("{name}: written, then now"));
        }
    }
}

fn same_lines(left: &str, right: &str, what: &str) {
    for (number, (left, right)) in (1..).zip(left.lines().zip(right.lines())) {
        assert_eq!(left, right, "{what}, line {number}");
    }
    assert_eq!(left, right, "{what}");
}

/// The script with the output that its commands give now.
fn rewritten(script: &str, runner: &mut dyn Script) -> String {
    let stanzas = script.trim().split("\n\n").map(|stanza| {
        let mut out = String::new();
        let mut output = String::new();
        let given = stanza.lines().take_while(|line| *line != "---");
        for line in given {
            writeln!(out, "{line}").unwrap();
            if !line.starts_with('#') {
                writeln!(output, "{}", runner.run(line)).unwrap();
            }
        }
        if !output.is_empty() {
            write!(out, "---\n{output}").unwrap();
        }
        out
    });
    stanzas.collect::<Vec<_>>().join("\n")
}

fn text(bytes: &[u8]) -> String {
    match bytes {
        [] => "\"\"".to_owned(),
        [first, .., last] if bytes.len() > 40 => {
            let ends = [*first, *last].escape_ascii().to_string();
            format!("<{} bytes {ends}>", bytes.len())
        }
        short => short.escape_ascii().to_string(),
    }
}

/// `x*5000` is five thousand times `x`.
fn value(word: &str) -> Bytes {
    match word.split_once('*') {
        Some((piece, times)) => piece.repeat(times.parse().unwrap()).into(),
        None => word.to_owned().into(),
    }
}

fn key(word: &str) -> Key {
    value(word)
}

/// `7.2` is the third stamp of millisecond 7.
fn stamp(word: &str) -> Timestamp {
    let (wall_ms, counter) = word.split_once('.').unwrap_or((word, "0"));
    Timestamp::from_wall(wall_ms.parse().unwrap()).plus(counter.parse().unwrap())
}

/// `a..m`; either end may be left out.
fn range(word: &str) -> KeyRange {
    let (start, end) = word.split_once("..").unwrap();
    KeyRange {
        start: key(start),
        end: (!end.is_empty()).then(|| key(end)),
    }
}

fn versioned(versioned: &Versioned) -> String {
    format!("{}@{}", text(&versioned.value), versioned.version)
}

fn seen(seen: Seen) -> String {
    match seen {
        Seen::Absent => "absent".to_owned(),
        Seen::Present(found) => versioned(&found),
    }
}

fn portion(portion: &read::Portion) -> String {
    let mut words: Vec<String> = portion
        .items
        .iter()
        .map(|item| format!("{}={}", text(&item.key), versioned(&item.versioned)))
        .collect();
    if let Some(rest) = &portion.rest {
        words.push(format!("rest {rest}"));
    }
    or_nothing(words.join(" "))
}

fn or_nothing(words: String) -> String {
    if words.is_empty() {
        return "nothing".to_owned();
    }
    words
}

/// Everything in the slots, one line for each user key and family.
fn dump(engine: &dyn Engine) -> String {
    let mut out = String::new();
    let (start, end) = (layout::in_other_slot(Slot(0), &[]), vec![0x11]);
    for pair in engine.scan(&start, &end, false) {
        let (place, record) = pair.unwrap();
        let place = Place::of(&place).unwrap();
        let what = match place.family {
            Family::Newest | Family::History => {
                let version = Version::decode(record.into()).unwrap();
                let content = match version.content {
                    Content::Value(value) => text(&value),
                    Content::Chunked { chunks, bytes } => {
                        format!("<{bytes} bytes in {chunks} pieces>")
                    }
                    Content::Tombstone => "tombstone".to_owned(),
                };
                format!("{content}@{}", version.author.stamp)
            }
            Family::Chunk => continue,
            _ => format!("{} bytes", record.len()),
        };
        write!(out, " {:?}:{}={what}", place.family, text(&place.key)).unwrap();
    }
    or_nothing(out.trim().to_owned())
}

/// `put k v`, `delete k`, `batch put k v, delete k`, `get k`, `scan a..b [reverse]`, `flush`, `reopen`.
struct EngineScript {
    store: Store,
}

impl Script for EngineScript {
    fn run(&mut self, command: &str) -> String {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let engine = self.store.engine();
        match verb {
            "put" | "delete" | "batch" => {
                let changes = command.strip_prefix("batch ").unwrap_or(command);
                let mut batch = Batch::default();
                for change in changes.split(", ") {
                    match *change.split(' ').collect::<Vec<_>>() {
                        ["put", place, record] => batch.put(place.into(), value(record).to_vec()),
                        ["delete", place] => batch.delete(place.into()),
                        _ => panic!("no such change: {change}"),
                    }
                }
                engine.write(batch).unwrap();
                "ok".to_owned()
            }
            "get" => match engine.get(rest.as_bytes()).unwrap() {
                Some(record) => text(&record),
                None => "absent".to_owned(),
            },
            "scan" => {
                let reverse = rest.ends_with(" reverse");
                let range = range(rest.trim_end_matches(" reverse"));
                let end = range.end.unwrap_or_else(|| Bytes::from_static(&[0xff]));
                let pairs = engine.scan(&range.start, &end, reverse);
                let words = pairs.map(|pair| {
                    let (place, record) = pair.unwrap();
                    format!("{}={}", text(&place), text(&record))
                });
                or_nothing(words.collect::<Vec<_>>().join(" "))
            }
            "flush" => {
                engine.flush().unwrap();
                "ok".to_owned()
            }
            "reopen" => {
                self.store.reopen();
                "ok".to_owned()
            }
            _ => panic!("no such command: {command}"),
        }
    }
}

/// `put k v STAMP`, `delete k STAMP`, `get k STAMP`, `scan a..b STAMP [keys] [reverse] [limit=N]
/// [bytes=N]`, `gc STAMP`, `dump`.
struct MvccScript {
    store: Store,
}

impl MvccScript {
    fn write(&self, name: &str, at: &str, content: Option<Bytes>) -> String {
        let engine = self.store.engine();
        let mut overlay = Overlay::new(&**engine);
        let key = key(name);
        let author = Author {
            stamp: stamp(at),
            command: stamp(at),
            request: RequestId::new(1, [0; 10]),
        };
        let current = Current::of(&overlay, Slot(1), &key).unwrap();
        match content {
            Some(content) => current.put(&mut overlay, author, &content),
            None => current.delete(&mut overlay, author),
        }
        let batch = overlay.take_batch();
        let changes = batch.changes.len();
        let longest = batch.changes.iter().map(|(place, record)| {
            let record = record.as_ref().map_or(0, Vec::len);
            place.len() + record
        });
        assert!(longest.max().unwrap() <= layout::STORED_BYTES_MAX);
        engine.write(batch).unwrap();
        format!("{changes} changes")
    }

    fn scan(&self, words: &[&str]) -> String {
        let mut limits = read::Limits {
            keys_max: usize::MAX,
            bytes_max: usize::MAX,
            reverse: false,
            keys_only: false,
        };
        for word in &words[2..] {
            match word.split_once('=') {
                Some(("limit", limit)) => limits.keys_max = limit.parse().unwrap(),
                Some(("bytes", limit)) => limits.bytes_max = limit.parse().unwrap(),
                _ if *word == "reverse" => limits.reverse = true,
                _ if *word == "keys" => limits.keys_only = true,
                _ => panic!("no such word: {word}"),
            }
        }
        let engine = self.store.engine();
        let found = read::scan(
            &**engine,
            Slot(1),
            &range(words[0]),
            stamp(words[1]),
            limits,
        );
        portion(&found.unwrap())
    }
}

impl Script for MvccScript {
    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        let engine = self.store.engine();
        match *words {
            ["put", name, content, at] => self.write(name, at, Some(value(content))),
            ["delete", name, at] => self.write(name, at, None),
            ["get", name, at] => {
                seen(read::get(&**engine, Slot(1), &key(name), stamp(at)).unwrap())
            }
            ["scan", ref words @ ..] => self.scan(words),
            ["gc", floor] => {
                let all = KeyRange::ALL;
                let collected =
                    gc::versions(&**engine, Slot(1), &all, stamp(floor), None, 1_000).unwrap();
                let removed = collected.batch.changes.len();
                engine.write(collected.batch).unwrap();
                format!("{removed} removed")
            }
            ["dump"] => dump(&**engine),
            _ => panic!("no such command: {command}"),
        }
    }
}

/// `retain HISTORY_MS WINDOW_MS` first; `at MS`; `write [stamp:S] [term:N] [ceiling:S] [bounds:N]` and
/// then writes parted by `|`, each of `id:N@MS`, `if:k@S`, `if:k=v`, `if:k`, `put:k=v`, `del:k`,
/// `range:a..b/LIMIT`; `blank`, `membership WHO`, `bad KIND`; `get k [S]`, `scan a..b [S] [limit=N]
/// [reverse] [keys]`; `gc`, `row`, `shard`, `dump`, `slots`; `snapshot`, `install [clearing]`, `abandon`,
/// `reopen`;
/// `split k CHILD REPLICAS [conf:N] [bounds:N] [stamp:S]`, `gone N`, `destroy N`, `empty N`; `flush`, `crash`
/// back to it, and `replay [INDEX]` of what the log of a replica has behind its state.
///
/// The steps of a merge, each with `[conf:N] [bounds:N] [stamp:S]`: `prepare N [on REPLICAS]` for the shard of
/// replica N, which begins the next attempt, from 1 on; `freeze ATTEMPT`, whose answer `absorb ATTEMPT [shard:N]`
/// uses, without one it makes it up; `cancel ATTEMPT`; `unfreeze ATTEMPT`. `fate ATTEMPT SHARD` is what a replica
/// says of one. `doubt N` quarantines a replica. An absorbed replica is not open any more.
///
/// Replicas 1 and 2 begin as one shard on nodes 1 and 2, both in this engine; `on N` goes over to
/// another one, `copy N` says into which one a snapshot is installed. WHO is `1@1,2@2` for voters on
/// nodes, `+3@3` behind them for learners, `;` between the two sets of a change under way.
struct ShardScript {
    store: Store,
    slots: Option<Arc<Slots>>,
    machines: BTreeMap<ReplicaId, ShardMachine>,
    gone: Arc<Mutex<BTreeSet<ReplicaId>>>,
    /// What was applied by each replica; no crash takes it.
    logs: BTreeMap<ReplicaId, Vec<LogEntry>>,
    on: ReplicaId,
    copy: ReplicaId,
    source: Option<(Box<dyn SnapshotSource>, u64)>,
    /// Merges that were begun, and what their freezes were answered.
    attempts: Vec<(Attempt, Option<Absorb>)>,
    wall_ms: u64,
    requests: u64,
}

fn replica(word: &str) -> Replica {
    let (id, node) = word.split_once('@').unwrap();
    Replica {
        id: ReplicaId(id.parse().unwrap()),
        node: NodeId(node.parse().unwrap()),
    }
}

fn replicas(words: &str) -> Vec<Replica> {
    words.split(',').map(replica).collect()
}

fn membership(words: &str) -> Membership {
    let (voters, learners) = words.split_once('+').unwrap_or((words, ""));
    let mut membership = Membership::default();
    for set in voters.split(';') {
        let set = Membership::of(&replicas(set));
        membership.voters.extend(set.voters);
        membership.nodes.extend(set.nodes);
    }
    if !learners.is_empty() {
        let learners = Membership::of(&replicas(learners));
        membership.nodes.extend(learners.nodes);
    }
    membership
}

fn members(membership: &[u8]) -> String {
    let membership = Membership::decode(membership).unwrap();
    let word = |id: &ReplicaId| format!("{}@{}", id.0, membership.nodes[id].0);
    let list = |ids: Vec<&ReplicaId>| ids.into_iter().map(word).collect::<Vec<_>>().join(",");
    let voters = membership.voters.iter();
    let sets: Vec<String> = voters.map(|set| list(set.iter().collect())).collect();
    let is_learner = |id: &&ReplicaId| !membership.voters.iter().any(|set| set.contains(*id));
    let learners = list(membership.nodes.keys().filter(is_learner).collect());
    let plus = if learners.is_empty() { "" } else { "+" };
    format!("{}{plus}{learners}", sets.join(";"))
}

fn descriptor(shard: &ShardDescriptor) -> String {
    let replicas = shard.replicas.iter();
    let words: Vec<String> = replicas
        .map(|replica| format!("{}@{}", replica.id.0, replica.node.0))
        .collect();
    let Epoch { conf, bounds } = shard.epoch;
    let (id, range) = (shard.id, &shard.range);
    format!("{id} {range} epoch {conf}.{bounds} on {}", words.join(","))
}

fn split_outcome(outcome: &SplitOutcome) -> String {
    match outcome {
        SplitOutcome::Done { left, right } => {
            format!("{} | {}", descriptor(left), descriptor(right))
        }
        SplitOutcome::Stale { current } => format!("stale, now {}", descriptor(current)),
        SplitOutcome::Refused { reason } => format!("refused: {reason}"),
        other => format!("{other:?}"),
    }
}

fn merge_outcome(outcome: &MergeOutcome) -> String {
    match outcome {
        MergeOutcome::Prepared { attempt } => attempt_of(attempt),
        MergeOutcome::Frozen {
            right,
            position,
            above,
        } => format!("{} stands still at {position}, {above}", descriptor(right)),
        MergeOutcome::Absorbed { left } => descriptor(left),
        MergeOutcome::Stale { current } => format!("stale, now {}", descriptor(current)),
        MergeOutcome::Refused { reason } => format!("refused: {reason}"),
        other => format!("{other:?}"),
    }
}

/// As the leader says it, but for these words.
fn with_words(mut header: command::Header, words: &[&str]) -> command::Header {
    for word in words {
        match word.split_once(':').unwrap() {
            ("stamp", word) => header.stamp = stamp(word),
            ("ceiling", word) => header.ceiling = stamp(word),
            ("conf", word) => header.epoch.conf = word.parse().unwrap(),
            ("bounds", word) => header.epoch.bounds = word.parse().unwrap(),
            _ => panic!("no such word: {word}"),
        }
    }
    header
}

fn attempt_of(attempt: &Attempt) -> String {
    let Attempt {
        bounds,
        prepared,
        left,
    } = attempt;
    format!("{left} of bounds {bounds} at {prepared}")
}

fn part(row: &Row) -> String {
    match &row.merge.part {
        Part::Alone => "alone".to_owned(),
        Part::Left(prepared) => {
            let (right, attempt) = (prepared.right, attempt_of(&prepared.attempt));
            format!("left of {right}, {attempt}")
        }
        Part::Right(frozen) => {
            let (position, attempt) = (frozen.position, attempt_of(&frozen.attempt));
            format!("frozen at {position} for {attempt}")
        }
    }
}

impl ShardScript {
    fn new(store: Store) -> ShardScript {
        ShardScript {
            store,
            slots: None,
            machines: BTreeMap::new(),
            gone: Arc::default(),
            logs: BTreeMap::new(),
            on: ReplicaId(1),
            copy: ReplicaId(2),
            source: None,
            attempts: Vec::new(),
            wall_ms: 0,
            requests: 1000,
        }
    }

    fn machine(&mut self) -> &mut ShardMachine {
        let machine = self.machines.get_mut(&self.on);
        machine.expect("the script begins with retain, and is on a replica that is there")
    }

    fn copy(&mut self) -> &mut ShardMachine {
        self.machines.get_mut(&self.copy).unwrap()
    }

    fn begin(&mut self, history_retention_ms: u64, retry_window_ms: u64) -> String {
        let slots = Slots::open(self.store.engine().clone()).unwrap();
        let replicas = replicas("1@1,2@2");
        for replica in &replicas {
            let descriptor = ShardDescriptor {
                id: ShardId(1),
                range: KeyRange::ALL,
                epoch: Epoch { conf: 1, bounds: 1 },
                replicas: replicas.clone(),
            };
            let begins = Some(Position { term: 1, index: 1 });
            let applied = Applied {
                position: begins,
                membership_position: begins,
                membership: Membership::of(&replicas).encode(),
            };
            let seed = Seed {
                history_retention_ms,
                retry_window_ms,
                ..Seed::new(descriptor, applied)
            };
            assert!(shard::seed(self.store.engine(), &slots, replica.id, seed).unwrap());
        }
        self.slots = Some(slots);
        self.open_all();
        "ok".to_owned()
    }

    fn open_all(&mut self) {
        for replica in shard::replicas(&**self.store.engine()).unwrap() {
            self.open(replica);
        }
    }

    fn open(&mut self, replica: ReplicaId) {
        let (engine, slots) = (self.store.engine().clone(), self.slots.clone().unwrap());
        let gone = self.gone.clone();
        let gone = Arc::new(move |replica| gone.lock().unwrap().contains(&replica));
        let machine = ShardMachine::open(engine, slots, replica, gone).unwrap();
        self.machines.insert(replica, machine.unwrap());
    }

    fn apply(&mut self, term: Option<u64>, payload: Payload) -> Result<Bytes, String> {
        let last = self.machine().applied().position.unwrap();
        let position = Position {
            term: term.unwrap_or(last.term),
            index: last.index + 1,
        };
        let entry = LogEntry { position, payload };
        self.logs.entry(self.on).or_default().push(entry.clone());
        let answers = self.machine().apply(&[entry]);
        let answers = answers.map_err(|error| error.to_string())?;
        match self.machine().take_need() {
            Some(need) => Err(format!("needs {need}")),
            None => Ok(answers[0].clone()),
        }
    }

    /// Nothing goes on with what has ended.
    fn drop_ended(&mut self, replica: ReplicaId) -> String {
        let machine = self.machines.get_mut(&replica).unwrap();
        let mut out = String::new();
        for ended in machine.take_ended() {
            self.machines.remove(&ended);
            write!(out, ", ended {}", ended.0).unwrap();
        }
        out
    }

    fn header(&mut self) -> command::Header {
        let wall_ms = self.wall_ms;
        let row = self.machine().reader().row();
        let last = row.last_stamp;
        command::Header {
            stamp: last.plus(1).max(Timestamp::from_wall(wall_ms)),
            ceiling: Timestamp::ZERO,
            epoch: row.descriptor.epoch,
        }
    }

    fn header_with(&mut self, words: &[&str]) -> command::Header {
        let header = self.header();
        with_words(header, words)
    }

    fn merge(&mut self, step: MergeStep, words: &[&str]) -> Result<MergeOutcome, String> {
        let mut header = self.header();
        // The leader has heard of what the right shard has stamped and closed.
        if let MergeStep::Absorb(absorb) = &step {
            header.stamp = header.stamp.max(absorb.above.plus(1));
        }
        let header = with_words(header, words);
        let body = Body::Merge(step);
        let answer = self.apply(None, Payload::Command(Command { header, body }.encode()))?;
        match Answer::decode(&answer).unwrap() {
            Answer::Merge(outcome) => Ok(outcome),
            other => panic!("a step of a merge was answered {other:?}"),
        }
    }

    fn merged(&mut self, step: MergeStep, words: &[&str]) -> String {
        let outcome = match self.merge(step, words) {
            Ok(outcome) => outcome,
            Err(error) => return error,
        };
        let on = self.on;
        format!("{}{}", merge_outcome(&outcome), self.drop_ended(on))
    }

    fn prepare(&mut self, right: &str, words: &[&str]) -> String {
        let row = self.machines[&numbered(right)].reader().row();
        let mut right = row.descriptor.clone();
        let words = match words {
            ["on", nodes, rest @ ..] => {
                right.replicas = replicas(nodes);
                rest
            }
            words => words,
        };
        let over = Vec::new();
        let outcome = self.merge(MergeStep::Prepare(Prepare { right, over }), words);
        match outcome {
            Ok(MergeOutcome::Prepared { attempt }) => {
                self.attempts.push((attempt, None));
                format!("attempt {}: {}", self.attempts.len(), attempt_of(&attempt))
            }
            Ok(outcome) => merge_outcome(&outcome),
            Err(error) => error,
        }
    }

    fn attempt(&mut self, number: &str) -> &mut (Attempt, Option<Absorb>) {
        let number: usize = number.parse().unwrap();
        &mut self.attempts[number - 1]
    }

    fn freeze(&mut self, number: &str, words: &[&str]) -> String {
        let attempt = self.attempt(number).0;
        let outcome = self.merge(MergeStep::Freeze(attempt), words);
        if let Ok(MergeOutcome::Frozen {
            right,
            position,
            above,
        }) = &outcome
        {
            self.attempt(number).1 = Some(Absorb {
                attempt,
                right: right.clone(),
                frozen: *position,
                above: *above,
            });
        }
        outcome.map_or_else(|error| error, |outcome| merge_outcome(&outcome))
    }

    fn absorb(&mut self, number: &str, words: &[&str]) -> String {
        let (attempt, frozen) = self.attempt(number).clone();
        let (shard, words) = match words {
            [first, rest @ ..] if first.starts_with("shard:") => (Some(&first[6..]), rest),
            words => (None, words),
        };
        let mut absorb = frozen.unwrap_or_else(|| Absorb {
            attempt,
            right: self.machine().reader().descriptor(),
            frozen: Position { term: 1, index: 1 },
            above: Timestamp::ZERO,
        });
        if let Some(shard) = shard {
            absorb.right.id = ShardId(shard.parse().unwrap());
        }
        self.merged(MergeStep::Absorb(absorb), words)
    }

    fn unfreeze(&mut self, number: &str, words: &[&str]) -> String {
        let attempt = self.attempt(number).0;
        let settled = attempt.prepared;
        self.merged(MergeStep::Unfreeze(Unfreeze { attempt, settled }), words)
    }

    fn fate(&mut self, number: &str, shard: &str) -> String {
        let attempt = self.attempt(number).0;
        let row = self.machine().reader().row();
        let fate = merge::fate(&row, &attempt, ShardId(shard.parse().unwrap()));
        format!("{fate:?}")
    }

    fn doubt(&mut self, replica: ReplicaId) -> String {
        let shard = self.machines[&replica].reader().descriptor().id;
        let quarantined = Quarantined { replica, shard };
        quarantine::mark(&**self.store.engine(), quarantined).unwrap();
        "ok".to_owned()
    }

    fn split(&mut self, at: &str, child: &str, replicas_of_child: &str, words: &[&str]) -> String {
        let header = self.header_with(words);
        let body = Body::Split(command::Split {
            at: key(at),
            child: ShardId(child.parse().unwrap()),
            left: Size::default(),
            replicas: replicas(replicas_of_child),
        });
        let payload = Payload::Command(Command { header, body }.encode());
        let answer = match self.apply(None, payload) {
            Ok(answer) => Answer::decode(&answer).unwrap(),
            Err(error) => return error,
        };
        let Answer::Split(outcome) = answer else {
            panic!("a split was answered as writes")
        };
        let seeded = self.machine().take_seeded();
        let mut out = split_outcome(&outcome);
        for replica in seeded {
            self.open(replica);
            write!(out, ", seeded {}", replica.0).unwrap();
        }
        out
    }

    fn destroy(&mut self, replica: ReplicaId) -> String {
        let reader = self
            .machines
            .remove(&replica)
            .map(|machine| machine.reader());
        let engine = self.store.engine();
        for _ in 0..2 {
            shard::destroy(engine, self.slots.as_ref().unwrap(), replica).unwrap();
        }
        let get = |reader: ShardReader| reader.get(&reader.descriptor().range.start, None);
        match reader.map(get) {
            Some(Err(error)) => error.to_string(),
            Some(Ok(found)) => panic!("a destroyed replica has answered: {found:?}"),
            None => "it was not there".to_owned(),
        }
    }

    /// A replica that knows what the one that the script is on is, and has nothing.
    fn empty(&mut self, replica: ReplicaId) -> String {
        let descriptor = self.machine().reader().descriptor();
        let (engine, slots) = (self.store.engine(), self.slots.as_ref().unwrap());
        let is_new = shard::empty(engine, slots, replica, descriptor).unwrap();
        if is_new {
            self.open(replica);
        }
        format!("{is_new}")
    }

    fn shard(&mut self) -> String {
        let row = self.machine().reader().row();
        let pieces = row.pieces.iter();
        let pieces = pieces.map(|piece| format!("slot {} {}", piece.slot.0, piece.range));
        let birth = row.birth.map_or("nobody".to_owned(), |birth| {
            let (parent, replica, position) = (birth.parent, birth.replica, birth.position);
            format!("{parent} {replica} at {position}")
        });
        format!(
            "{} in {} born of {birth}",
            descriptor(&row.descriptor),
            pieces.collect::<Vec<_>>().join(" and ")
        )
    }

    fn part(&mut self) -> String {
        let row = self.machine().reader().row();
        let absorbed = row.merge.absorbed.iter().map(ShardId::to_string);
        let absorbed = or_nothing(absorbed.collect::<Vec<_>>().join(" "));
        format!(
            "{}, has absorbed {absorbed}, size {} of {} bytes",
            part(&row),
            row.size.keys,
            row.size.bytes
        )
    }

    fn write(&mut self, words: &str) -> String {
        let mut term = None;
        let mut header = self.header();
        let mut writes = Vec::new();
        for words in words.split(" | ") {
            self.requests += 1;
            let mut write = WriteWords::new(self.requests, self.wall_ms.saturating_sub(1));
            for word in words.split(' ') {
                match word.split_once(':').unwrap() {
                    ("stamp", word) => header.stamp = stamp(word),
                    ("term", word) => term = Some(word.parse().unwrap()),
                    ("ceiling", word) => header.ceiling = stamp(word),
                    ("bounds", word) => header.epoch.bounds = word.parse().unwrap(),
                    (verb, word) => write.take(verb, word),
                }
            }
            writes.push(write.write());
        }
        let body = Body::Writes(writes);
        let bytes = Command { header, body }.encode();
        match self.apply(term, Payload::Command(bytes)) {
            Ok(answer) => match Answer::decode(&answer).unwrap() {
                Answer::Writes(outcomes) => {
                    outcomes.iter().map(outcome).collect::<Vec<_>>().join(" | ")
                }
                other => panic!("writes were answered {other:?}"),
            },
            Err(error) => error,
        }
    }

    fn scan(&mut self, words: &[&str]) -> String {
        let mut scan = Scan {
            range: range(words[0]),
            keys_max: u32::MAX,
            bytes_max: u32::MAX,
            reverse: false,
            keys_only: false,
            read: ReadKind::Linearizable,
            cut: None,
        };
        for word in &words[1..] {
            match word.split_once('=') {
                Some(("limit", limit)) => scan.keys_max = limit.parse().unwrap(),
                _ if *word == "reverse" => scan.reverse = true,
                _ if *word == "keys" => scan.keys_only = true,
                _ => scan.cut = Some(Cut::at(stamp(word))),
            }
        }
        match self.machine().reader().scan(&scan) {
            Ok(found) => format!("{} as of {}", portion(&found.value), found.as_of),
            Err(error) => error.to_string(),
        }
    }

    fn get(&mut self, name: &str, at: Option<&str>) -> String {
        match self.machine().reader().get(&key(name), at.map(stamp)) {
            Ok(found) => seen(found.value),
            Err(error) => error.to_string(),
        }
    }

    /// `clears`: whoever clears what nobody needs comes by after every chunk with keys.
    fn install(&mut self, clears: bool) -> String {
        let (mut source, hash) = self.source.take().expect("snapshot comes before install");
        let slots = self.slots.clone().unwrap();
        let copy = self.copy();
        let mut sink = copy.receiver().begin().unwrap();
        let mut chunks = 0;
        while let Some(chunk) = source.next().unwrap() {
            sink.chunk(chunk).unwrap();
            chunks += 1;
            // The first one has none.
            while clears && chunks > 1 && slots.clear().unwrap() {}
        }
        let received = sink.finish().unwrap();
        let displaced = self.copy().displaces(&received).unwrap();
        let displaced: Vec<_> = displaced
            .iter()
            .filter_map(|it| self.machines.remove(it))
            .collect();
        let copy = self.copy();
        copy.install(source.applied(), received).unwrap();
        let installed = copy.reader().state_hash().unwrap();
        assert_eq!(installed.hash, hash, "the copy differs from the original");
        let position = installed.position.unwrap();
        drop(displaced);
        let ended = self.drop_ended(self.copy);
        format!("{chunks} chunks, at {position}, equal to the original{ended}")
    }

    fn abandon(&mut self) -> String {
        let (mut source, _) = self.source.take().expect("snapshot comes before abandon");
        let copy = self.copy();
        let mut sink = copy.receiver().begin().unwrap();
        for _ in 0..2 {
            sink.chunk(source.next().unwrap().unwrap()).unwrap();
        }
        "given up half-way".to_owned()
    }

    fn slots(&self) -> String {
        let pieces = self.slots.as_ref().unwrap().clear_list().unwrap();
        let words = pieces
            .iter()
            .map(|piece| format!("slot {} {}", piece.slot.0, piece.range));
        let clear = or_nothing(words.collect::<Vec<_>>().join(" "));
        let (start, end) = (layout::in_other_slot(Slot(0), &[]), vec![0x11]);
        let mut counts = BTreeMap::<u8, u32>::new();
        for pair in self.store.engine().scan(&start, &end, false) {
            *counts.entry(pair.unwrap().0[8]).or_default() += 1;
        }
        format!("to clear: {clear}; keys by slot: {counts:?}")
    }

    fn reopen(&mut self) -> String {
        (self.source, self.slots) = (None, None);
        self.machines.clear();
        self.store.engine().flush().unwrap();
        self.store.reopen();
        self.slots = Some(Slots::open(self.store.engine().clone()).unwrap());
        self.open_all();
        format!("at {}", self.machine().applied().position.unwrap())
    }

    fn crash(&mut self) -> String {
        (self.source, self.slots) = (None, None);
        self.machines.clear();
        self.store.crash();
        self.slots = Some(Slots::open(self.store.engine().clone()).unwrap());
        self.open_all();
        let machines = self.machines.iter();
        let words = machines.map(|(id, machine)| {
            let applied = machine.applied().position;
            format!("{id} at {}", applied.unwrap_or_default())
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn replay(&mut self, upto: u64) -> String {
        let applied = self.machine().applied().position.unwrap();
        let log = self.logs.get(&self.on).cloned().unwrap_or_default();
        let behind = log.into_iter().filter(|entry| {
            let index = entry.position.index;
            index > applied.index && index <= upto
        });
        let entries: Vec<LogEntry> = behind.collect();
        let answers = self.machine().apply(&entries).unwrap();
        let need = self.machine().take_need();
        let need = need.map_or(String::new(), |need| format!(", needs {need}"));
        let seeded = self.machine().take_seeded();
        for replica in &seeded {
            self.open(*replica);
        }
        let words = seeded
            .iter()
            .map(|replica| format!(", seeded {}", replica.0));
        let words = words.collect::<String>();
        let on = self.on;
        let ended = self.drop_ended(on);
        format!("{} entries{words}{ended}{need}", answers.len())
    }

    fn row(&mut self) -> String {
        let row = self.machine().reader().row();
        format!(
            "at {} last {} floors {} {} ceiling {} of term {} conf {} membership {} at {}",
            row.applied.position.unwrap(),
            row.last_stamp,
            row.floors.history,
            row.floors.outcomes,
            row.ceiling,
            row.ceiling_term,
            row.descriptor.epoch.conf,
            members(&row.applied.membership),
            row.applied.membership_position.unwrap_or_default(),
        )
    }
}

impl Script for ShardScript {
    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        match *words {
            ["retain", history, window] => {
                self.begin(history.parse().unwrap(), window.parse().unwrap())
            }
            ["at", wall_ms] => {
                self.wall_ms = wall_ms.parse().unwrap();
                "ok".to_owned()
            }
            ["write", ..] => self.write(command.strip_prefix("write ").unwrap()),
            ["blank"] => format!("{:?}", self.apply(None, Payload::Blank).unwrap()),
            ["membership", who] => {
                let membership = Payload::Membership(membership(who).encode());
                format!("{:?}", self.apply(None, membership).unwrap())
            }
            ["split", at, child, replicas, ref words @ ..] => {
                self.split(at, child, replicas, words)
            }
            ["prepare", right, ref words @ ..] => self.prepare(right, words),
            ["freeze", number, ref words @ ..] => self.freeze(number, words),
            ["absorb", number, ref words @ ..] => self.absorb(number, words),
            ["cancel", number, ref words @ ..] => {
                let attempt = self.attempt(number).0;
                self.merged(MergeStep::Cancel(attempt), words)
            }
            ["unfreeze", number, ref words @ ..] => self.unfreeze(number, words),
            ["fate", number, shard] => self.fate(number, shard),
            ["part"] => self.part(),
            ["doubt", id] => self.doubt(numbered(id)),
            ["gone", id] => {
                self.gone.lock().unwrap().insert(numbered(id));
                "ok".to_owned()
            }
            ["destroy", id] => self.destroy(numbered(id)),
            ["empty", id] => self.empty(numbered(id)),
            ["on", id] => {
                self.on = numbered(id);
                "ok".to_owned()
            }
            ["copy", id] => {
                self.copy = numbered(id);
                "ok".to_owned()
            }
            ["shard"] => self.shard(),
            ["bad", kind] => {
                let mut bytes = Command::default().encode().to_vec();
                bytes[1] = kind.parse().unwrap();
                let payload = Payload::Command(bytes.into());
                self.apply(None, payload).unwrap_err()
            }
            ["get", name] => self.get(name, None),
            ["get", name, at] => self.get(name, Some(at)),
            ["scan", ref words @ ..] => self.scan(words),
            ["gc"] => {
                while self.machine().collect().unwrap() {}
                let slots = self.slots.clone().unwrap();
                while slots.clear().unwrap() {}
                "ok".to_owned()
            }
            ["row"] => self.row(),
            ["dump"] => dump(&**self.store.engine()),
            ["slots"] => self.slots(),
            ["snapshot"] => {
                let hash = self.machine().reader().state_hash().unwrap();
                self.source = Some((self.machine().snapshot().unwrap(), hash.hash));
                format!("at {}", hash.position.unwrap())
            }
            ["install"] => self.install(false),
            ["install", "clearing"] => self.install(true),
            ["abandon"] => self.abandon(),
            ["reopen"] => self.reopen(),
            ["flush"] => {
                self.store.flush();
                "ok".to_owned()
            }
            ["crash"] => self.crash(),
            ["replay"] => self.replay(u64::MAX),
            ["replay", index] => self.replay(index.parse().unwrap()),
            _ => panic!("no such command: {command}"),
        }
    }
}

/// What node 9 knows of where keys are: `learn 2@3[m,t) [N]` is shard 2 of bounds 3 from m to t, led by node
/// N, with replicas on nodes 1, 2 and 3; `target k`; `reached k leads|follows`; `refused k REASON`, which is
/// `leads:N`, `nobody`, `late`, `away`, or `now:2@4[m,p)`; `changes N`.
#[derive(Default)]
struct RoutesScript {
    routes: Routes,
}

const ASKING: NodeId = NodeId(9);

impl RoutesScript {
    fn target(&self, key: &str) -> Option<Target> {
        self.routes.target(key.as_bytes(), ASKING)
    }

    fn shown(&self, key: &str) -> String {
        match self.target(key) {
            Some(target) => format!("{} on {}", target.shard, target.node),
            None => "unknown".to_owned(),
        }
    }

    fn refused(&mut self, key: &str, reason: &str) -> String {
        let target = self.target(key).expect("only who was asked refuses");
        let group = GroupId::Shard(target.shard);
        let error = match reason.split_once(':') {
            Some(("leads", node)) => Error::NotLeader {
                group,
                leader: Some(NodeId(node.parse().unwrap())),
            },
            Some(("now", shard)) => Error::StaleEpoch {
                group,
                current: vec![routed_shard(shard)],
            },
            _ if reason == "nobody" => Error::NotLeader {
                group,
                leader: None,
            },
            _ if reason == "late" => Error::unavailable(group, "it does not answer"),
            _ if reason == "away" => Error::NotFound {
                what: target.shard.to_string(),
            },
            _ => panic!("no such reason: {reason}"),
        };
        self.routes.refused(target, &error);
        self.shown(key)
    }

    fn changes(&self, since: u64) -> String {
        let routes = self.routes.changes_since(since).into_iter();
        let words = routes.map(|route| {
            let leader = route
                .leader
                .map_or("nobody".to_owned(), |node| node.to_string());
            let ShardDescriptor {
                id, range, epoch, ..
            } = route.shard;
            format!("{id}@{} {range} led by {leader}", epoch.bounds)
        });
        let words = or_nothing(words.collect::<Vec<_>>().join(" | "));
        format!("up to {}: {words}", self.routes.changes())
    }
}

fn routed_shard(text: &str) -> ShardDescriptor {
    let (name, range) = text.split_once('[').unwrap();
    let (id, bounds) = name.split_once('@').unwrap();
    let (start, end) = range.trim_end_matches(')').split_once(',').unwrap();
    let id: u64 = id.parse().unwrap();
    let replica = |node| Replica {
        id: ReplicaId(id * 10 + node),
        node: NodeId(node),
    };
    ShardDescriptor {
        id: ShardId(id),
        range: KeyRange {
            start: key(start),
            end: (!end.is_empty()).then(|| key(end)),
        },
        epoch: Epoch {
            conf: 1,
            bounds: bounds.parse().unwrap(),
        },
        replicas: (1..=3).map(replica).collect(),
    }
}

impl Script for RoutesScript {
    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        match *words {
            ["learn", shard, ref leader @ ..] => {
                let leader = leader.first().map(|node| NodeId(node.parse().unwrap()));
                self.routes.learn(routed_shard(shard), leader);
                "ok".to_owned()
            }
            ["target", key] => self.shown(key),
            ["reached", key, how] => {
                let target = self.target(key).expect("only who was asked answers");
                self.routes.reached(target, how == "leads");
                self.shown(key)
            }
            ["refused", key, reason] => self.refused(key, reason),
            ["changes", since] => self.changes(since.parse().unwrap()),
            _ => panic!("no such command: {command}"),
        }
    }
}

fn numbered(word: &str) -> ReplicaId {
    ReplicaId(word.parse().unwrap())
}

/// The words of one write.
struct WriteWords {
    id: RequestId,
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
    range: Option<(KeyRange, u32)>,
}

fn request(number: u64, wall_ms: u64) -> RequestId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    RequestId::new(wall_ms, random)
}

impl WriteWords {
    fn new(number: u64, wall_ms: u64) -> WriteWords {
        WriteWords {
            id: request(number, wall_ms),
            conditions: Vec::new(),
            operations: Vec::new(),
            range: None,
        }
    }

    fn take(&mut self, verb: &str, word: &str) {
        match verb {
            "id" => {
                let (number, wall_ms) = word.split_once('@').unwrap();
                self.id = request(number.parse().unwrap(), wall_ms.parse().unwrap());
            }
            "if" => self.conditions.push(condition(word)),
            "put" => {
                let (name, content) = word.split_once('=').unwrap();
                self.operations.push(Operation::Put {
                    key: key(name),
                    value: value(content),
                });
            }
            "del" => self.operations.push(Operation::Delete { key: key(word) }),
            "range" => {
                let (span, limit) = word.split_once('/').unwrap();
                self.range = Some((range(span), limit.parse().unwrap()));
            }
            _ => panic!("no such word: {verb}:{word}"),
        }
    }

    fn write(self) -> Write {
        let kind = match self.range {
            Some((range, limit)) => WriteKind::Range { range, limit },
            None => WriteKind::Keys {
                conditions: self.conditions,
                operations: self.operations,
            },
        };
        Write { id: self.id, kind }
    }
}

fn condition(word: &str) -> Condition {
    if let Some((name, version)) = word.split_once('@') {
        return Condition::Version {
            key: key(name),
            version: stamp(version),
        };
    }
    match word.split_once('=') {
        Some((name, content)) => Condition::Value {
            key: key(name),
            value: value(content),
        },
        None => Condition::Exists { key: key(word) },
    }
}

fn outcome(outcome: &WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Done {
            version,
            deleted,
            resume,
        } => {
            let resume = resume
                .as_ref()
                .map_or(String::new(), |key| format!(", resume at {}", text(key)));
            format!("done @{version} deleted {deleted}{resume}")
        }
        WriteOutcome::ConditionFailed { condition, actual } => {
            format!("condition {condition} failed, there is @{actual}")
        }
        other => format!("{other:?}"),
    }
}
