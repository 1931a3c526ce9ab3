//! The write-ahead log on a disk that forgets: whatever was acknowledged is there after every power
//! cut, nothing that was taken away comes back, and damage is told from a tear.

#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use bytes::Bytes;
use futures::FutureExt as _;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use quorate::env::files::DiskFiles;
use quorate::env::files::File;
use quorate::env::files::Files;
use quorate::testkit::disk::CrashDisk;
use quorate::types::Position;
use quorate::types::ReplicaId;
use quorate::types::log::LogEntry;
use quorate::types::log::Payload;
use quorate::types::log::Vote;
use quorate::wal::Done;
use quorate::wal::LogState;
use quorate::wal::Options;
use quorate::wal::ReplicaLog;
use quorate::wal::Wal;
use quorate::wal::WalError;
use quorate::wal::Writer;

const DIR: &str = "node/wal";

fn small(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        cache_bytes: 4 * 1024,
        spare_segments: 1,
        queue_bytes: 4 * 1024 * 1024,
    }
}

fn position(term: u64, index: u64) -> Position {
    Position { term, index }
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        replica: ReplicaId(1),
        committed: false,
    }
}

// ---- what a log should hold -------------------------------------------------------------------

/// A change in the smallest steps that a crash may fall between.
#[derive(Debug, Clone)]
enum Step {
    Born(ReplicaId, Bytes),
    Gone(ReplicaId),
    Vote(ReplicaId, Vote),
    Truncate(ReplicaId, Option<Position>),
    Purge(ReplicaId, Position),
    Entry(ReplicaId, LogEntry),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ReplicaModel {
    about: Bytes,
    gone: bool,
    vote: Option<Vote>,
    purged: Option<Position>,
    entries: BTreeMap<u64, LogEntry>,
}

impl ReplicaModel {
    fn last(&self) -> Option<Position> {
        let last = self.entries.values().next_back().map(|it| it.position);
        last.or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(1, |last| last.index + 1)
    }
}

type Model = BTreeMap<ReplicaId, ReplicaModel>;

fn apply(model: &mut Model, step: &Step) {
    match step {
        Step::Born(id, about) => model.entry(*id).or_default().about = about.clone(),
        Step::Gone(id) => {
            let gone = ReplicaModel {
                gone: true,
                ..ReplicaModel::default()
            };
            model.insert(*id, gone);
        }
        Step::Vote(id, vote) => model.get_mut(id).unwrap().vote = Some(*vote),
        Step::Truncate(id, last) => {
            let first = last.map_or(0, |last| last.index + 1);
            model.get_mut(id).unwrap().entries.split_off(&first);
        }
        Step::Purge(id, upto) => {
            let replica = model.get_mut(id).unwrap();
            replica.purged = Some(*upto);
            replica.entries = replica.entries.split_off(&(upto.index + 1));
        }
        Step::Entry(id, entry) => {
            let replica = model.get_mut(id).unwrap();
            replica.entries.split_off(&entry.position.index);
            replica.entries.insert(entry.position.index, entry.clone());
        }
    }
}

/// What a log that was just opened holds.
fn held(wal: &Wal) -> Model {
    let replicas = wal.replicas().into_iter().map(|logged| {
        let log = wal.log(logged.id);
        assert_eq!(log.is_none(), logged.gone);
        let state = log.as_ref().map(ReplicaLog::state).unwrap_or_default();
        let entries = log.map_or(Vec::new(), |log| log.read(0..u64::MAX, usize::MAX).unwrap());
        let entries = entries.into_iter().map(|it| (it.position.index, it));
        let model = ReplicaModel {
            about: logged.born,
            gone: logged.gone,
            vote: state.vote,
            purged: state.purged,
            entries: entries.collect(),
        };
        assert_eq!(model.last(), state.last);
        (logged.id, model)
    });
    replicas.collect()
}

// ---- random histories -------------------------------------------------------------------------

/// What happens next. Replicas are numbered 0 to 3; one that is gone is followed by a new one.
#[derive(Debug, Clone)]
enum Event {
    Append {
        replica: usize,
        count: u64,
        bytes: usize,
        replaced: u64,
    },
    Vote(usize),
    Truncate(usize, u64),
    Purge(usize, u64),
    PurgeBeyond(usize, u64),
    Gone(usize),
    Round,
    Rounds,
    Release,
    FailSync(u64),
    FailWrite(u64),
    Kill,
    Crash(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let replica = 0..4_usize;
    let bytes = prop_oneof![8 => 0..200_usize, 3 => 200..4_000_usize, 1 => 4_000..15_000_usize];
    let replaced = prop_oneof![9 => Just(0_u64), 1 => 1..5_u64];
    let append = (replica.clone(), 1..6_u64, bytes, replaced);
    let append = append.prop_map(|(replica, count, bytes, replaced)| Event::Append {
        replica,
        count,
        bytes,
        replaced,
    });
    prop_oneof![
        30 => append,
        5 => replica.clone().prop_map(Event::Vote),
        3 => (replica.clone(), 0..6_u64).prop_map(|(r, back)| Event::Truncate(r, back)),
        8 => (replica.clone(), 0..6_u64).prop_map(|(r, kept)| Event::Purge(r, kept)),
        1 => (replica.clone(), 1..9_u64).prop_map(|(r, ahead)| Event::PurgeBeyond(r, ahead)),
        1 => replica.prop_map(Event::Gone),
        20 => Just(Event::Round),
        15 => Just(Event::Rounds),
        2 => Just(Event::Release),
        1 => (1..4_u64).prop_map(Event::FailSync),
        1 => (1..4_u64).prop_map(Event::FailWrite),
        2 => Just(Event::Kill),
        4 => any::<u64>().prop_map(Event::Crash),
    ]
}

type Answer = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A log on a disk, what it should hold, and what it has promised.
struct Trial {
    disk: CrashDisk,
    lying: bool,
    open: Option<(Wal, Writer)>,
    /// What was there when it was opened, and all that was asked for since.
    base: Model,
    steps: Vec<Step>,
    now: Model,
    /// So many steps have been acknowledged.
    acknowledged: usize,
    /// Calls that wait, with the number of steps that they promise.
    waiting: Vec<(usize, Answer)>,
    answered: Arc<Mutex<VecDeque<(usize, bool)>>>,
    ids: [u64; 4],
    next_id: u64,
    term: u64,
    next_payload: u64,
    failed: bool,
}

impl Trial {
    fn new(lying: bool) -> Result<Trial, String> {
        let mut trial = Trial {
            disk: CrashDisk::new(),
            lying,
            open: None,
            base: Model::new(),
            steps: Vec::new(),
            now: Model::new(),
            acknowledged: 0,
            waiting: Vec::new(),
            answered: Arc::default(),
            ids: [1, 2, 3, 4],
            next_id: 5,
            term: 1,
            next_payload: 0,
            failed: false,
        };
        trial.reopen()?;
        Ok(trial)
    }

    fn reopen(&mut self) -> Result<(), String> {
        self.disk.set_lying(self.lying);
        let open = || {
            Wal::open(
                Arc::new(self.disk.clone()),
                Path::new(DIR),
                small(16 * 1024),
            )
        };
        let mut opened = open();
        // Faults put in earlier may strike only now: one of a write, one of a sync, each once.
        for _ in 0..2 {
            if matches!(opened, Err(WalError::Io { .. })) {
                self.disk.kill();
                opened = open();
            }
        }
        let (wal, writer) = opened.map_err(|error| format!("does not open: {error}"))?;
        let found = held(&wal);
        let mut state = self.base.clone();
        let mut matched = self.acknowledged == 0 && state == found;
        for (nth, step) in self.steps.iter().enumerate() {
            apply(&mut state, step);
            matched |= nth + 1 >= self.acknowledged && state == found;
        }
        if !matched {
            let ids: Vec<_> = found
                .iter()
                .map(|(id, it)| (id, it.purged, it.last()))
                .collect();
            let expected: Vec<_> = state
                .iter()
                .map(|(id, it)| (id, it.purged, it.last()))
                .collect();
            return Err(format!(
                "{} of {} steps were acknowledged; found {ids:?}; all steps give {expected:?}",
                self.acknowledged,
                self.steps.len()
            ));
        }
        self.now = found.clone();
        self.base = found;
        self.steps.clear();
        self.acknowledged = 0;
        self.waiting.clear();
        self.answered.lock().unwrap().clear();
        self.failed = false;
        self.open = Some((wal, writer));
        Ok(())
    }

    fn wal(&self) -> Wal {
        self.open.as_ref().unwrap().0.clone()
    }

    fn step(&mut self, step: Step) {
        apply(&mut self.now, &step);
        self.steps.push(step);
    }

    /// The replica of that number; if there is none it is born first.
    fn replica(&mut self, number: usize) -> Result<Option<ReplicaLog>, String> {
        let id = ReplicaId(self.ids[number]);
        if let Some(log) = self.wal().log(id) {
            return Ok(Some(log));
        }
        if self.now.get(&id).is_some_and(|it| it.gone) {
            self.ids[number] = self.next_id;
            self.next_id += 1;
            return self.replica(number);
        }
        let about = Bytes::from(format!("about {id}"));
        let wal = self.wal();
        let said = about.clone();
        self.step(Step::Born(id, about));
        self.wait(async move {
            wal.born(id, said)
                .await
                .map(drop)
                .map_err(|e| e.to_string())
        });
        self.rounds(usize::MAX)?;
        Ok(self.wal().log(id).filter(|_| !self.failed))
    }

    fn wait(&mut self, answer: impl Future<Output = Result<(), String>> + 'static) {
        self.waiting.push((self.steps.len(), Box::pin(answer)));
        self.poll();
    }

    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut still = Vec::new();
        for (steps, mut answer) in self.waiting.drain(..) {
            match answer.as_mut().poll(&mut context) {
                Poll::Pending => still.push((steps, answer)),
                Poll::Ready(Ok(())) => self.acknowledged = self.acknowledged.max(steps),
                Poll::Ready(Err(_)) => {}
            }
        }
        self.waiting = still;
    }

    /// Lets the writer work so often, or until it has nothing to do.
    fn rounds(&mut self, most: usize) -> Result<(), String> {
        for _ in 0..most {
            if self.failed {
                break;
            }
            match self.open.as_mut().unwrap().1.round() {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => self.failed = true,
            }
        }
        self.poll();
        let mut last = 0;
        for (steps, good) in self.answered.lock().unwrap().drain(..) {
            if steps < last {
                return Err(format!("{steps} was answered after {last}"));
            }
            last = steps;
            if good {
                self.acknowledged = self.acknowledged.max(steps);
            }
        }
        if self.failed && !self.waiting.is_empty() {
            return Err("somebody waits for a log that has failed".to_string());
        }
        Ok(())
    }

    fn happen(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Round => self.rounds(1)?,
            Event::Rounds => self.rounds(usize::MAX)?,
            Event::FailSync(nth) => self.disk.fail_sync(*nth),
            Event::FailWrite(nth) => self.disk.fail_write(*nth),
            Event::Kill => return self.end(None),
            Event::Crash(seed) => return self.end(Some(*seed)),
            Event::Release => {
                let wal = self.wal();
                self.wait(async move { wal.release().await.map_err(|e| e.to_string()) });
            }
            _ if self.failed => {}
            Event::Append {
                replica,
                count,
                bytes,
                replaced,
            } => self.append(*replica, *count, *bytes, *replaced)?,
            Event::Vote(replica) => self.vote(*replica)?,
            Event::Truncate(replica, back) => self.truncate(*replica, *back)?,
            Event::Purge(replica, kept) => self.purge(*replica, *kept)?,
            Event::PurgeBeyond(replica, ahead) => self.purge_beyond(*replica, *ahead)?,
            Event::Gone(replica) => self.gone(*replica)?,
        }
        self.compare()
    }

    fn append(
        &mut self,
        number: usize,
        count: u64,
        bytes: usize,
        replaced: u64,
    ) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        let model = &self.now[&log.id()];
        let begins = model.purged.map_or(1, |purged| purged.index + 1);
        let first = model.next().saturating_sub(replaced).max(begins);
        if first < model.next() {
            self.term += 1;
        }
        let entries: Vec<LogEntry> = (first..first + count)
            .map(|index| {
                self.next_payload += 1;
                let mut payload = self.next_payload.to_le_bytes().to_vec();
                payload.resize(8 + bytes, 0x5a);
                LogEntry {
                    position: position(self.term, index),
                    payload: Payload::Command(payload.into()),
                }
            })
            .collect();
        for entry in &entries {
            self.step(Step::Entry(log.id(), entry.clone()));
        }
        let steps = self.steps.len();
        let answered = self.answered.clone();
        let done: Done = Box::new(move |result: std::io::Result<()>| {
            answered.lock().unwrap().push_back((steps, result.is_ok()));
        });
        let appended = log.append(entries, done).now_or_never();
        match appended {
            Some(Ok(())) => Ok(()),
            other => Err(format!("append: {other:?}")),
        }
    }

    fn vote(&mut self, number: usize) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        self.term += 1;
        let vote = vote(self.term);
        self.step(Step::Vote(log.id(), vote));
        self.wait(async move { log.save_vote(vote).await.map_err(|e| e.to_string()) });
        Ok(())
    }

    fn truncate(&mut self, number: usize, back: u64) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        let model = &self.now[&log.id()];
        let back = usize::try_from(back).unwrap();
        let kept = model.entries.values().rev().nth(back).map(|it| it.position);
        let last = kept.or(model.purged);
        self.step(Step::Truncate(log.id(), last));
        self.wait(async move { log.truncate_after(last).await.map_err(|e| e.to_string()) });
        Ok(())
    }

    fn purge(&mut self, number: usize, kept: u64) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        let entries = &self.now[&log.id()].entries;
        let kept = usize::try_from(kept).unwrap();
        if let Some(upto) = entries.values().rev().nth(kept).map(|it| it.position) {
            self.step(Step::Purge(log.id(), upto));
            let purged = log.purge(upto).now_or_never();
            assert!(matches!(purged, Some(Ok(()))), "{purged:?}");
        }
        Ok(())
    }

    fn purge_beyond(&mut self, number: usize, ahead: u64) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        let upto = position(self.term, self.now[&log.id()].next() + ahead);
        self.step(Step::Purge(log.id(), upto));
        let purged = log.purge(upto).now_or_never();
        assert!(matches!(purged, Some(Ok(()))), "{purged:?}");
        Ok(())
    }

    fn gone(&mut self, number: usize) -> Result<(), String> {
        let Some(log) = self.replica(number)? else {
            return Ok(());
        };
        let (wal, id) = (self.wal(), log.id());
        self.step(Step::Gone(id));
        self.wait(async move { wal.gone(id).await.map_err(|e| e.to_string()) });
        Ok(())
    }

    /// What was asked for is seen at once, synced or not.
    fn compare(&self) -> Result<(), String> {
        if self.failed {
            return Ok(());
        }
        let wal = self.wal();
        for (id, model) in &self.now {
            let Some(log) = wal.log(*id) else {
                continue;
            };
            let expected = LogState {
                purged: model.purged,
                last: model.last(),
                vote: model.vote,
            };
            if log.state() != expected {
                return Err(format!("{id} is {:?}, not {expected:?}", log.state()));
            }
            let entries = log
                .read(0..u64::MAX, usize::MAX)
                .map_err(|e| e.to_string())?;
            if !entries.iter().eq(model.entries.values()) {
                return Err(format!(
                    "{id} reads {} entries other than asked for",
                    entries.len()
                ));
            }
        }
        Ok(())
    }

    fn end(&mut self, crash: Option<u64>) -> Result<(), String> {
        self.poll();
        match crash {
            Some(seed) => self.disk.crash(seed),
            None => self.disk.kill(),
        }
        // What its end tells those who wait is not about this disk any more.
        self.waiting.clear();
        self.open = None;
        self.reopen()
    }
}

fn run(events: &[Event], lying: bool) -> Result<(), String> {
    let mut trial = Trial::new(lying)?;
    for (nth, event) in events.iter().enumerate() {
        trial
            .happen(event)
            .map_err(|reason| format!("event {nth}, {event:?}: {reason}"))?;
    }
    for seed in 0..2 {
        trial
            .end(Some(seed))
            .map_err(|reason| format!("at the end: {reason}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_survives_and_what_was_taken_away_stays_away(
        events in prop::collection::vec(event(), 1..250)
    ) {
        run(&events, false).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let mut runner = TestRunner::deterministic();
    let histories = prop::collection::vec(event(), 50..250);
    let (mut honest, mut lying) = (0, 0);
    for _ in 0..24 {
        let events = histories.new_tree(&mut runner).unwrap().current();
        honest += usize::from(run(&events, false).is_err());
        let found = std::panic::catch_unwind(|| run(&events, true).is_err());
        lying += usize::from(found.unwrap_or(true));
    }
    assert_eq!(honest, 0);
    assert!(
        lying >= 12,
        "only {lying} of 24 histories on a lying disk were found out"
    );
}

// ---- single facts -----------------------------------------------------------------------------

fn entry(term: u64, index: u64, bytes: usize) -> LogEntry {
    LogEntry {
        position: position(term, index),
        payload: Payload::Command(vec![b'a'; bytes].into()),
    }
}

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<LogEntry> {
    indexes.map(|index| entry(term, index, 20)).collect()
}

fn nobody() -> Done {
    Box::new(|_| ())
}

fn open(disk: &CrashDisk) -> Result<(Wal, Writer), WalError> {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), small(16 * 1024))
}

/// Polls once, lets the writer work, and takes the answer.
fn answer<T>(writer: &mut Writer, call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(answer) = call.as_mut().poll(&mut context) {
            return answer;
        }
        assert!(writer.round().unwrap_or(true), "nothing is left to do");
    }
}

fn born(wal: &Wal, writer: &mut Writer, id: u64) -> ReplicaLog {
    answer(writer, wal.born(ReplicaId(id), Bytes::from_static(b"root"))).unwrap()
}

fn append(writer: &mut Writer, log: &ReplicaLog, entries: Vec<LogEntry>) {
    log.append(entries, nobody())
        .now_or_never()
        .unwrap()
        .unwrap();
    while writer.round().unwrap() {}
}

/// A log of a few writes, all in its second segment, and the states between them.
fn a_few_writes() -> (CrashDisk, Vec<Model>) {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    drop((wal, log, writer));
    disk.kill();
    let (wal, mut writer) = open(&disk).unwrap();
    let base = held(&wal);
    let log = wal.log(ReplicaId(1)).unwrap();
    let id = log.id();
    append(&mut writer, &log, entries(1, 1..4));
    answer(&mut writer, log.save_vote(vote(2))).unwrap();
    append(&mut writer, &log, entries(2, 4..6));
    answer(&mut writer, log.truncate_after(Some(position(1, 3)))).unwrap();
    log.purge(position(1, 1)).now_or_never().unwrap().unwrap();
    append(&mut writer, &log, entries(3, 4..7));
    let steps = entries(1, 1..4).into_iter().map(|it| Step::Entry(id, it));
    let steps = steps
        .chain([Step::Vote(id, vote(2))])
        .chain(entries(2, 4..6).into_iter().map(|it| Step::Entry(id, it)))
        .chain([
            Step::Truncate(id, Some(position(1, 3))),
            Step::Purge(id, position(1, 1)),
        ])
        .chain(entries(3, 4..7).into_iter().map(|it| Step::Entry(id, it)));
    let mut states = vec![base];
    for step in steps {
        let mut state = states.last().unwrap().clone();
        apply(&mut state, &step);
        states.push(state);
    }
    (disk, states)
}

fn segment(sequence: u64) -> std::path::PathBuf {
    Path::new(DIR).join(format!("log-{sequence:016x}"))
}

fn written(content: &[u8]) -> usize {
    content
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

/// Where the writes of a segment of the current format begin: behind the bytes of a mark's head.
fn marks(content: &[u8]) -> Vec<usize> {
    let mark = |at: &usize| content[*at..].starts_with(&[26, 0, 0, 0]) && content[at + 9] == 1;
    (512..written(content) - 10).filter(mark).collect()
}

#[test]
fn every_prefix_of_the_bytes_is_a_prefix_of_the_writes() {
    let (disk, states) = a_few_writes();
    let content = disk.content(&segment(2)).unwrap();
    for rest in [0, 0x5a] {
        let mut reached = 0;
        for length in 512..=written(&content) {
            let cut = disk.copy();
            let mut bytes = content[..length].to_vec();
            bytes.resize(content.len(), rest);
            cut.put(&segment(2), bytes);
            let (wal, _) = open(&cut).unwrap_or_else(|error| panic!("{length}: {error}"));
            let found = held(&wal);
            let further = states[reached..].iter().position(|state| *state == found);
            reached += further.unwrap_or_else(|| panic!("{length}: {found:?} after {reached}"));
        }
        assert_eq!(reached, states.len() - 1);
    }
}

#[test]
fn a_flipped_byte_below_the_last_mark_is_damage_and_above_it_a_tear() {
    let (disk, states) = a_few_writes();
    let content = disk.content(&segment(2)).unwrap();
    let last_mark = *marks(&content).last().unwrap();
    assert!(marks(&content).len() >= 5);
    // Bytes 40 to 512 of a header are not used.
    for at in (0..40).chain(512..written(&content)) {
        for flip in [0x01, 0x80, content[at].max(1)] {
            let damaged = disk.copy();
            let mut bytes = content.clone();
            bytes[at] ^= flip;
            damaged.put(&segment(2), bytes);
            match open(&damaged) {
                Err(WalError::Damaged { file, offset, .. }) => {
                    assert!(
                        at < last_mark,
                        "{at} is damage, above the mark at {last_mark}"
                    );
                    assert_eq!(file, segment(2));
                    assert!(offset <= at as u64, "{offset} is named, {at} is damaged");
                }
                Err(error) => panic!("{at}: {error}"),
                Ok((wal, _)) => {
                    assert!(
                        at >= last_mark,
                        "{at} is not found, below the mark at {last_mark}"
                    );
                    let found = held(&wal);
                    assert!(states.contains(&found), "{at}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn a_flipped_byte_in_a_segment_that_has_a_successor_is_damage() {
    let (disk, _) = a_few_writes();
    disk.kill();
    drop(open(&disk).unwrap());
    let content = disk.content(&segment(2)).unwrap();
    for at in (0..40).chain(512..written(&content)) {
        let damaged = disk.copy();
        let mut bytes = content.clone();
        bytes[at] ^= 0x10;
        damaged.put(&segment(2), bytes);
        let Err(error) = open(&damaged) else {
            panic!("byte {at} is not found");
        };
        let text = error.to_string();
        assert!(matches!(error, WalError::Damaged { .. }), "{at}: {text}");
        assert!(
            text.contains("log-0000000000000002") && text.contains("--join"),
            "{text}"
        );
    }
}

#[test]
fn after_a_stop_the_last_write_is_below_a_mark_too() {
    let disk = CrashDisk::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (wal, writer) = open(&disk).unwrap();
        let handle = writer.spawn(&wal).unwrap();
        wal.born(ReplicaId(1), Bytes::new()).await.unwrap();
        handle.stop().await.unwrap();
        assert!(wal.born(ReplicaId(2), Bytes::new()).await.is_err());
        assert_eq!(wal.failed().await, "closed");
    });
    let mut bytes = disk.content(&segment(1)).unwrap();
    bytes[512 + 26 + 3] ^= 1;
    disk.put(&segment(1), bytes);
    assert!(matches!(
        open(&disk),
        Err(WalError::Damaged { offset: 538, .. })
    ));
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, _) = a_few_writes();
    disk.kill();
    drop(open(&disk).unwrap());
    disk.remove(&segment(2)).unwrap();
    let error = open(&disk).map(drop).unwrap_err();
    assert!(error.to_string().contains("the file is missing"), "{error}");
}

#[test]
fn an_id_is_taken_once_and_gone_is_for_ever() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 7);
    let again = answer(&mut writer, wal.born(ReplicaId(7), Bytes::new()));
    assert!(matches!(again, Err(WalError::BornBefore(ReplicaId(7)))));
    append(&mut writer, &log, entries(1, 1..3));
    answer(&mut writer, wal.gone(ReplicaId(7))).unwrap();
    assert!(
        log.append(entries(1, 3..4), nobody())
            .now_or_never()
            .unwrap()
            .is_err()
    );
    for _ in 0..6 {
        // Copied forward from segment to segment.
        answer(&mut writer, wal.release()).unwrap();
    }
    drop((wal, log, writer));
    disk.crash(1);
    let (wal, mut writer) = open(&disk).unwrap();
    assert!(wal.log(ReplicaId(7)).is_none() && wal.replicas()[0].gone);
    let again = answer(&mut writer, wal.born(ReplicaId(7), Bytes::new()));
    assert!(matches!(again, Err(WalError::BornBefore(ReplicaId(7)))));
}

#[test]
fn what_is_given_up_is_used_again() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    let idle = born(&wal, &mut writer, 2);
    append(&mut writer, &idle, entries(1, 1..4));
    for index in 1..2_000 {
        append(&mut writer, &log, vec![entry(1, index, 200)]);
        log.purge(position(1, index))
            .now_or_never()
            .unwrap()
            .unwrap();
    }
    assert!(
        wal.segments() <= 8,
        "{} segments are in use",
        wal.segments()
    );
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(names.len() <= 9, "{names:?}");
    assert_eq!(idle.read(0..9, usize::MAX).unwrap(), entries(1, 1..4));
}

#[test]
fn a_log_full_of_what_counts_is_not_copied_round_and_round() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    for index in 1..200 {
        // More than half a segment each, so that no packing helps.
        append(&mut writer, &log, vec![entry(1, index, 9_000)]);
    }
    assert!(
        disk.bytes_written() < 20 * 200 * 9_000,
        "{}",
        disk.bytes_written()
    );
    assert_eq!(log.read(1..300, usize::MAX).unwrap().len(), 199);
}

#[test]
fn an_entry_as_long_as_a_segment_fits_and_a_longer_one_is_refused() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    let most = 16 * 1024 - 512 - 200;
    append(
        &mut writer,
        &log,
        (1..9).map(|index| entry(1, index, most)).collect(),
    );
    let refused = log.append(vec![entry(1, 9, 16 * 1024)], nobody());
    let error = refused.now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    answer(&mut writer, wal.release()).unwrap();
    drop((wal, log, writer));
    disk.crash(3);
    let (wal, _) = open(&disk).unwrap();
    let log = wal.log(ReplicaId(1)).unwrap();
    assert_eq!(log.read(0..100, usize::MAX).unwrap().len(), 8);
    assert_eq!(log.read(3..100, 1).unwrap(), [entry(1, 3, most)]);
    assert_eq!(log.read(3..100, 2 * most).unwrap().len(), 2);
}

#[test]
fn entries_that_leave_a_gap_are_refused() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 5..8));
    let refused = |entries| {
        log.append(entries, nobody())
            .now_or_never()
            .unwrap()
            .is_err()
    };
    assert!(refused(entries(1, 9..10)));
    assert!(refused(vec![entry(1, 8, 1), entry(1, 10, 1)]));
    log.purge(position(1, 6)).now_or_never().unwrap().unwrap();
    assert!(refused(entries(1, 6..8)));
    assert_eq!(log.state().last, Some(position(1, 7)));
    assert!(
        log.truncate_after(Some(position(1, 5)))
            .now_or_never()
            .unwrap()
            .is_err()
    );
}

#[test]
fn cutting_behind_the_end_removes_nothing() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 5..8));
    let mut cut = Box::pin(log.truncate_after(Some(position(1, 8))));
    assert!(cut.as_mut().now_or_never().is_none());
    while writer.round().unwrap() {}
    cut.now_or_never().unwrap().unwrap();
    assert_eq!(log.state().last, Some(position(1, 7)));
    drop((wal, writer));
    disk.kill();
    let (wal, _writer) = open(&disk).unwrap();
    let log = wal.log(log.id()).unwrap();
    assert_eq!(log.state().last, Some(position(1, 7)));
}

#[test]
fn a_failed_sync_is_the_end_for_all_who_wait_and_all_who_come() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let done: Done = Box::new(move |result| tell.lock().unwrap().push(result.is_ok()));
    log.append(entries(1, 1..2), done)
        .now_or_never()
        .unwrap()
        .unwrap();
    let mut synced = Box::pin(log.synced(1));
    let mut drained = Box::pin(log.drained());
    assert!(synced.as_mut().now_or_never().is_none());
    assert!(drained.as_mut().now_or_never().is_none());
    disk.fail_sync(1);
    assert!(writer.round().is_err());
    assert_eq!(*told.lock().unwrap(), [false]);
    assert!(synced.now_or_never().unwrap().is_err());
    drained.now_or_never().unwrap();
    assert!(log.save_vote(vote(1)).now_or_never().unwrap().is_err());
    let reason = wal.failed().now_or_never().unwrap();
    assert!(reason.contains("injected sync failure"), "{reason}");
    let syncs = disk.syncs();
    assert!(!writer.round().unwrap());
    assert_eq!(disk.syncs(), syncs);
}

#[test]
fn a_purge_rides_along_and_a_fence_takes_it_with_it() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 1..4));
    let syncs = disk.syncs();
    log.purge(position(1, 2)).now_or_never().unwrap().unwrap();
    assert!(!writer.round().unwrap());
    assert_eq!(disk.syncs(), syncs);
    answer(&mut writer, log.drained());
    assert_eq!(disk.syncs(), syncs + 1);
    drop((wal, log, writer));
    disk.crash(5);
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(
        wal.log(ReplicaId(1)).unwrap().state().purged,
        Some(position(1, 2))
    );
}

#[test]
fn synced_waits_for_the_entry_as_it_stands_now() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 1..4));
    log.synced(3).now_or_never().unwrap().unwrap();
    let mut missing = Box::pin(log.synced(4));
    assert!(missing.as_mut().now_or_never().is_none());
    // Entry 3 is replaced: that the old one was synced does not count.
    log.append(entries(2, 3..5), nobody())
        .now_or_never()
        .unwrap()
        .unwrap();
    log.synced(2).now_or_never().unwrap().unwrap();
    let mut replaced = Box::pin(log.synced(3));
    assert!(replaced.as_mut().now_or_never().is_none());
    assert!(writer.round().unwrap());
    replaced.now_or_never().unwrap().unwrap();
    missing.now_or_never().unwrap().unwrap();
    log.purge(position(2, 9)).now_or_never().unwrap().unwrap();
    log.synced(9).now_or_never().unwrap().unwrap();
}

#[test]
fn recent_entries_are_cached_and_old_ones_are_read_from_the_disk() {
    let disk = CrashDisk::new();
    let (wal, mut writer) = open(&disk).unwrap();
    let log = born(&wal, &mut writer, 1);
    for index in 1..100 {
        append(&mut writer, &log, vec![entry(1, index, 500)]);
    }
    assert!(log.is_cached(&(98..100)) && log.is_cached(&(98..1_000)) && !log.is_cached(&(1..100)));
    let read = log.read(1..100, usize::MAX).unwrap();
    let expected: Vec<LogEntry> = (1..100).map(|index| entry(1, index, 500)).collect();
    assert_eq!(read, expected);
}

#[test]
fn appenders_share_syncs() {
    let disk = CrashDisk::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let before = runtime.block_on(async {
        let (wal, writer) =
            Wal::open(Arc::new(disk.clone()), Path::new(DIR), small(1024 * 1024)).unwrap();
        let writing = tokio::spawn(writer.run());
        let mut logs = Vec::new();
        for id in 1..=64 {
            logs.push(wal.born(ReplicaId(id), Bytes::new()).await.unwrap());
        }
        let before = disk.syncs();
        let appenders = logs.into_iter().map(|log| async move {
            for index in 1..=20 {
                let (tell, told) = tokio::sync::oneshot::channel();
                let done: Done = Box::new(move |result| tell.send(result).unwrap());
                log.append(vec![entry(1, index, 50)], done).await.unwrap();
                told.await.unwrap().unwrap();
            }
        });
        let appenders: Vec<_> = appenders.map(tokio::spawn).collect();
        for appender in appenders {
            appender.await.unwrap();
        }
        drop(wal);
        writing.await.unwrap().unwrap();
        before
    });
    let syncs = disk.syncs() - before;
    assert!(
        syncs <= 25,
        "{syncs} syncs for 64 appenders of 20 entries each"
    );
}

#[test]
fn a_full_queue_makes_appenders_wait_until_the_writer_has_caught_up() {
    let disk = CrashDisk::new();
    let options = Options {
        queue_bytes: 1_000,
        ..small(16 * 1024)
    };
    let opened = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options);
    let (wal, mut writer) = opened.unwrap();
    let log = born(&wal, &mut writer, 1);
    let first = log.append(vec![entry(1, 1, 900)], nobody());
    first.now_or_never().unwrap().unwrap();
    let mut second = Box::pin(log.append(vec![entry(1, 2, 900)], nobody()));
    assert!(second.as_mut().now_or_never().is_none());
    // Nothing has happened yet: it may be given up.
    assert_eq!(log.state().last, Some(position(1, 1)));
    assert!(writer.round().unwrap());
    second.now_or_never().unwrap().unwrap();
    assert_eq!(log.state().last, Some(position(1, 2)));
}

#[test]
fn an_append_that_needs_the_whole_queue_does_not_wait_for_purges_that_ride() {
    let disk = CrashDisk::new();
    let options = Options {
        queue_bytes: 1_000,
        ..small(16 * 1024)
    };
    let opened = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options);
    let (wal, mut writer) = opened.unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 1..3));
    log.purge(position(1, 1)).now_or_never().unwrap().unwrap();
    assert!(!writer.round().unwrap());
    let long = log.append(vec![entry(1, 3, 2_000)], nobody());
    long.now_or_never().unwrap().unwrap();
}

/// A disk whose syncs take until they are let go, and on which something happens during a read.
struct Hooked {
    disk: CrashDisk,
    hooks: Arc<Hooks>,
}

#[derive(Default)]
struct Hooks {
    syncs_held: AtomicBool,
    during_read: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct HookedFile {
    file: Arc<dyn File>,
    hooks: Arc<Hooks>,
}

impl File for HookedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        let hook = self.hooks.during_read.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.file.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        while self.hooks.syncs_held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.file.sync_data()
    }

    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
}

impl Hooked {
    fn new() -> (Hooked, Arc<Hooks>) {
        let hooks = Arc::new(Hooks::default());
        let disk = CrashDisk::new();
        let files = Hooked {
            disk,
            hooks: hooks.clone(),
        };
        (files, hooks)
    }

    fn hooked(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookedFile {
            file,
            hooks: self.hooks.clone(),
        })
    }
}

impl Files for Hooked {
    fn create_zeroed(&self, path: &Path, bytes: u64) -> std::io::Result<Arc<dyn File>> {
        Ok(self.hooked(self.disk.create_zeroed(path, bytes)?))
    }

    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn File>> {
        Ok(self.hooked(self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> std::io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn read(&self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        self.disk.read(path)
    }

    fn write_atomically(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        self.disk.write_atomically(path, content)
    }

    fn capacity_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        self.disk.capacity_bytes(dir)
    }

    fn free_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        self.disk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> std::io::Result<Box<dyn std::any::Any + Send + Sync>> {
        self.disk.lock(path)
    }
}

#[test]
fn a_reader_does_not_wait_for_a_sync() {
    let (files, hooks) = Hooked::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = Options {
            cache_bytes: 0,
            ..small(64 * 1024)
        };
        let (wal, writer) = Wal::open(Arc::new(files), Path::new(DIR), options).unwrap();
        let handle = writer.spawn(&wal).unwrap();
        let log = wal.born(ReplicaId(1), Bytes::new()).await.unwrap();
        log.append(entries(1, 1..4), nobody()).await.unwrap();
        log.drained().await;
        hooks.syncs_held.store(true, Ordering::SeqCst);
        log.append(entries(1, 4..6), nobody()).await.unwrap();
        while wal.syncs().under_way.is_none() {
            std::thread::yield_now();
        }
        assert!(!log.is_cached(&(1..4)));
        assert_eq!(log.read(1..9, usize::MAX).unwrap(), entries(1, 1..6));
        log.append(entries(1, 6..7), nobody()).await.unwrap();
        assert_eq!(log.state().last, Some(position(1, 6)));
        assert_eq!(log.read(6..7, usize::MAX).unwrap(), entries(1, 6..7));
        hooks.syncs_held.store(false, Ordering::SeqCst);
        log.synced(6).await.unwrap();
        handle.stop().await.unwrap();
    });
}

#[test]
fn a_segment_given_up_during_a_read_is_read_where_its_rest_stands_now() {
    let (files, hooks) = Hooked::new();
    let options = Options {
        cache_bytes: 0,
        ..small(16 * 1024)
    };
    let opened = Wal::open(Arc::new(files), Path::new(DIR), options);
    let (wal, mut writer) = opened.unwrap();
    let log = born(&wal, &mut writer, 1);
    append(&mut writer, &log, entries(1, 1..6));
    let released = Arc::new(AtomicBool::new(false));
    let (sees, moves, other) = (released.clone(), wal.clone(), log.clone());
    // Fill the first segment, so that it is not the one that is written.
    append(
        &mut writer,
        &log,
        (6..9).map(|index| entry(1, index, 9_000)).collect(),
    );
    assert!(wal.segments() > 1);
    *hooks.during_read.lock().unwrap() = Some(Box::new(move || {
        answer(&mut writer, moves.release()).unwrap();
        answer(&mut writer, moves.release()).unwrap();
        // Now its file is used again, and overwritten where the reader looks.
        append(&mut writer, &other, entries(1, 9..99));
        sees.store(true, Ordering::SeqCst);
    }));
    assert_eq!(log.read(1..6, usize::MAX).unwrap(), entries(1, 1..6));
    assert!(released.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn real_files_and_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let files = Arc::new(DiskFiles);
    let path = dir.path().join("wal");
    for start in 0..3_u64 {
        let (wal, writer) = Wal::open(files.clone(), &path, small(256 * 1024)).unwrap();
        let handle = writer.spawn(&wal).unwrap();
        let appenders = (1..=8).map(|id| {
            let wal = wal.clone();
            tokio::spawn(async move {
                let id = ReplicaId(id);
                let log = match wal.log(id) {
                    Some(log) => log,
                    None => wal.born(id, Bytes::new()).await.unwrap(),
                };
                let first = start * 100 + 1;
                assert_eq!(log.state().last.map_or(1, |last| last.index + 1), first);
                for index in first..first + 100 {
                    log.append(vec![entry(1, index, 700)], nobody())
                        .await
                        .unwrap();
                }
                log.synced(first + 99).await.unwrap();
                log.purge(position(1, first + 50)).await.unwrap();
                assert_eq!(
                    log.read(first + 51..u64::MAX, usize::MAX).unwrap().len(),
                    49
                );
                log.drained().await;
            })
        });
        let appenders: Vec<_> = appenders.collect();
        for appender in appenders {
            appender.await.unwrap();
        }
        wal.release().await.unwrap();
        handle.stop().await.unwrap();
    }
}
