//! The write-ahead log on a disk that forgets: whatever was acknowledged is there after every power
//! cut, nothing that was taken away comes back, and damage is told from a tear.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use bytes::Bytes;
use futures::FutureExt as _;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

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
        30 => Just(Event::Round),
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
        self.rounds()?;
        Ok(self.wal().log(id))
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

    /// Lets the writer work until it has nothing to do.
    fn rounds(&mut self) -> Result<(), String> {
        while !self.failed {
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
            Event::Round => return self.rounds(),
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
