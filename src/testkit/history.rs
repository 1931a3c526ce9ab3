//! What writers asked of a cluster and what they were told, and whether the cluster still agrees.
//! Decides only: `testkit/workload.rs` sends the writes and reads the answers.
//!
//! Each key has one writer, which sends its next write only after the last one has ended. So the
//! writes of a key have one order, and what the key must hold at any stamp follows from the answers
//! alone: nothing may be missing, and nothing may be there twice.

use std::collections::BTreeMap;

use crate::types::Key;
use crate::types::Timestamp;
use crate::types::request::Operation;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// How a write ended, as far as its writer was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a final answer.
    Answered(WriteOutcome),
    /// Without one: it may be there, and only the same request id may be sent again.
    Unknown,
}

/// One write of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// What was asked; a put or a delete of one key.
    pub write: Write,
    /// How often it was sent under its one request id.
    pub attempts: u32,
    /// How it ended.
    pub ended: Ended,
}

/// What a key holds at a stamp, by the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The key.
    pub key: Key,
    /// Read at this stamp.
    pub as_of: Timestamp,
    /// What must be read: the value with its version, or nothing.
    pub found: Option<Versioned>,
}

/// How much a history says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Writes with a final answer.
    pub answered: usize,
    /// Writes without one.
    pub unknown: usize,
    /// Writes that were sent more than once under their request id.
    pub resent: usize,
}

/// Every write of every key, in the order in which its one writer sent them.
#[derive(Debug, Clone, Default)]
pub struct History {
    keys: BTreeMap<Key, Vec<Recorded>>,
    complaints: Vec<String>,
}

impl History {
    /// Takes the key's next write.
    pub fn record(&mut self, recorded: Recorded) {
        let writes = self.keys.entry(key_of(&recorded.write)).or_default();
        writes.push(recorded);
    }

    /// Takes what was seen to be wrong while the writes went on.
    pub fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// Takes the writes of other keys.
    pub fn merge(&mut self, other: History) {
        self.complaints.extend(other.complaints);
        for (key, writes) in other.keys {
            let before = self.keys.insert(key, writes);
            assert!(before.is_none(), "a key has two writers");
        }
    }

    /// How much it says.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for recorded in self.keys.values().flatten() {
            match recorded.ended {
                Ended::Answered(_) => counts.answered += 1,
                Ended::Unknown => counts.unknown += 1,
            }
            counts.resent += usize::from(recorded.attempts > 1);
        }
        counts
    }

    /// Writes whose outcome is not known.
    pub fn unknown(&self) -> Vec<Write> {
        let all = self.keys.values().flatten();
        all.filter(|recorded| recorded.ended == Ended::Unknown)
            .map(|recorded| recorded.write.clone())
            .collect()
    }

    /// Writes with their final answers, the last one of each key.
    pub fn last_answered(&self) -> Vec<(Write, WriteOutcome)> {
        let lasts = self.keys.values().filter_map(|writes| writes.last());
        lasts
            .filter_map(|recorded| match &recorded.ended {
                Ended::Answered(outcome) => Some((recorded.write.clone(), outcome.clone())),
                Ended::Unknown => None,
            })
            .collect()
    }

    /// The outcome of a write that was unknown, learned by sending its request id again.
    pub fn settle(&mut self, write: &Write, outcome: WriteOutcome) {
        let writes = self.keys.get_mut(&key_of(write));
        let open = writes.and_then(|writes| writes.iter_mut().find(|w| w.write.id == write.id));
        let open = open.expect("only recorded writes are settled");
        open.attempts += 1;
        open.ended = Ended::Answered(outcome);
    }

    /// What is wrong with the answers themselves: stamps that do not rise along a key, an effective
    /// write without a stamp, a condition that failed although it held.
    pub fn check_answers(&self) -> Vec<String> {
        let mut found = self.complaints.clone();
        for (key, writes) in &self.keys {
            let mut last = Timestamp::ZERO;
            for recorded in writes {
                let Ended::Answered(outcome) = &recorded.ended else {
                    continue;
                };
                let said = format!("{}: {outcome:?} for {:?}", show(key), recorded.write);
                match outcome {
                    WriteOutcome::Done { version, .. } if *version == Timestamp::ZERO => {
                        if value_of(&recorded.write).is_some() {
                            found.push(format!("a put without a stamp: {said}"));
                        }
                    }
                    WriteOutcome::Done { version, .. } if *version <= last => {
                        found.push(format!("not above the version before it, {last}: {said}"));
                    }
                    WriteOutcome::Done { version, .. } => last = *version,
                    WriteOutcome::ConditionFailed { .. } => {
                        found.push(format!(
                            "failed, but only its own writer writes here: {said}"
                        ));
                    }
                    WriteOutcome::Spanning { .. } => {
                        found.push(format!("refused, but it has one key: {said}"));
                    }
                    WriteOutcome::TooLateToKnow { .. }
                    | WriteOutcome::ClockAhead { .. }
                    | WriteOutcome::StaleEpoch
                    | WriteOutcome::StaleStamp
                    | WriteOutcome::Frozen => {
                        found.push(format!("not a final answer: {said}"));
                    }
                }
            }
        }
        found
    }

    /// Compares the newest version of every key, as a scan of all keys found them, with the answers.
    pub fn check_newest(&self, scanned: &BTreeMap<Key, Versioned>) -> Vec<String> {
        let mut found = Vec::new();
        for (key, writes) in &self.keys {
            let actual = scanned.get(key);
            let expected = newest(writes);
            if actual == expected.as_ref() || may_be(actual, &expected, writes) {
                continue;
            }
            found.push(format!(
                "{} holds {} instead of {}",
                show(key),
                show_version(actual),
                show_version(expected.as_ref())
            ));
        }
        for key in scanned.keys().filter(|key| !self.keys.contains_key(*key)) {
            found.push(format!("{} was never written", show(key)));
        }
        found
    }

    /// What must be read of every key just before each of its versions, and at its end: one version
    /// for each write, and none beside them. Keys with an unknown write are left out.
    pub fn spans(&self) -> Vec<Expected> {
        let settled = self
            .keys
            .iter()
            .filter(|(_, writes)| writes.iter().all(|write| write.ended != Ended::Unknown));
        settled
            .flat_map(|(key, writes)| spans_of(key, writes))
            .collect()
    }
}

/// Judges one read against what had to be found.
pub fn check_span(expected: &Expected, actual: Option<&Versioned>) -> Option<String> {
    (actual != expected.found.as_ref()).then(|| {
        format!(
            "{} as of {} held {} instead of {}",
            show(&expected.key),
            expected.as_of,
            show_version(actual),
            show_version(expected.found.as_ref())
        )
    })
}

/// The one key of a write.
pub fn key_of(write: &Write) -> Key {
    write.first_key().clone()
}

fn value_of(write: &Write) -> Option<&bytes::Bytes> {
    let WriteKind::Keys { operations, .. } = &write.kind else {
        return None;
    };
    match &operations[0] {
        Operation::Put { value, .. } => Some(value),
        Operation::Delete { .. } => None,
    }
}

/// The stamp of a write that changed its key, by its answer.
fn stamp_of(recorded: &Recorded) -> Option<Timestamp> {
    match recorded.ended {
        Ended::Answered(WriteOutcome::Done { version, .. }) if version != Timestamp::ZERO => {
            Some(version)
        }
        _ => None,
    }
}

fn made_by(recorded: &Recorded, version: Timestamp) -> Option<Versioned> {
    value_of(&recorded.write).map(|value| Versioned {
        value: value.clone(),
        version,
    })
}

/// The newest version by the answers; unknown writes are left out.
fn newest(writes: &[Recorded]) -> Option<Versioned> {
    let last = writes
        .iter()
        .rev()
        .find_map(|write| Some((write, stamp_of(write)?)));
    last.and_then(|(write, version)| made_by(write, version))
}

/// Whether an unknown last write explains what is there.
fn may_be(actual: Option<&Versioned>, before: &Option<Versioned>, writes: &[Recorded]) -> bool {
    let Some(last) = writes.last().filter(|last| last.ended == Ended::Unknown) else {
        return false;
    };
    let floor = before.as_ref().map_or(Timestamp::ZERO, |v| v.version);
    match (actual, value_of(&last.write)) {
        (Some(actual), Some(value)) => actual.value == *value && actual.version > floor,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn spans_of(key: &Key, writes: &[Recorded]) -> Vec<Expected> {
    let mut spans = Vec::new();
    let mut held = None;
    let mut last = None;
    for recorded in writes {
        let Some(stamp) = stamp_of(recorded) else {
            continue;
        };
        spans.push(Expected {
            key: key.clone(),
            as_of: Timestamp(stamp.0 - 1),
            found: held,
        });
        held = made_by(recorded, stamp);
        last = Some(stamp);
    }
    spans.extend(last.map(|as_of| Expected {
        key: key.clone(),
        as_of,
        found: held,
    }));
    spans
}

fn show(key: &Key) -> String {
    key.escape_ascii().to_string()
}

fn show_version(version: Option<&Versioned>) -> String {
    version.map_or("nothing".to_owned(), |version| {
        let value = version.value.escape_ascii().to_string();
        let short: String = value.chars().take(60).collect();
        format!("version {} {short:?}", version.version)
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::RequestId;

    /// A history in words: `put a=x @3`, `delete a @4`, `put a=y ?` in the order of sending.
    fn history(lines: &[&str]) -> History {
        let mut history = History::default();
        for (number, line) in lines.iter().enumerate() {
            history.record(recorded(line, number as u64));
        }
        history
    }

    fn recorded(line: &str, number: u64) -> Recorded {
        let words: Vec<&str> = line.split(' ').collect();
        let (key, value) = words[1].split_once('=').unwrap_or((words[1], ""));
        let key = Bytes::from(key.to_owned());
        let operation = match words[0] {
            "put" => Operation::Put {
                key,
                value: Bytes::from(value.to_owned()),
            },
            _ => Operation::Delete { key },
        };
        let ended = match words[2].strip_prefix('@') {
            Some(stamp) => Ended::Answered(WriteOutcome::Done {
                version: Timestamp(stamp.parse().unwrap()),
                deleted: 0,
                resume: None,
            }),
            None => Ended::Unknown,
        };
        Recorded {
            write: Write {
                id: RequestId::new(number, [0; 10]),
                kind: WriteKind::Keys {
                    conditions: Vec::new(),
                    operations: vec![operation],
                },
            },
            attempts: 1,
            ended,
        }
    }

    fn versioned(text: &str) -> Versioned {
        let (value, version) = text.split_once('@').unwrap();
        Versioned {
            value: Bytes::from(value.to_owned()),
            version: Timestamp(version.parse().unwrap()),
        }
    }

    fn newest_of(lines: &[&str], scanned: &[(&str, &str)]) -> Vec<String> {
        let scanned = scanned
            .iter()
            .map(|(key, held)| (Bytes::from((*key).to_owned()), versioned(held)))
            .collect();
        history(lines).check_newest(&scanned)
    }

    #[track_caller]
    fn newest_agrees(lines: &[&str], scanned: &[(&str, &str)]) {
        assert_eq!(newest_of(lines, scanned), Vec::<String>::new());
    }

    #[track_caller]
    fn newest_differs(lines: &[&str], scanned: &[(&str, &str)]) {
        assert_eq!(newest_of(lines, scanned).len(), 1);
    }

    #[test]
    fn an_answered_write_must_be_there_with_its_version() {
        newest_agrees(&["put a=x @3", "put a=y @5"], &[("a", "y@5")]);
        newest_differs(&["put a=x @3", "put a=y @5"], &[("a", "x@3")]);
        newest_differs(&["put a=x @3"], &[]);
        newest_differs(&["put a=x @3"], &[("a", "x@4")]);
        newest_agrees(&["put a=x @3", "delete a @5"], &[]);
        newest_differs(&["put a=x @3", "delete a @5"], &[("a", "x@3")]);
        newest_agrees(&["put a=x @3", "delete a @5", "delete a @0"], &[]);
        newest_differs(&["put a=x @3"], &[("a", "x@3"), ("b", "y@4")]);
    }

    #[test]
    fn an_unknown_write_may_be_there_or_not() {
        newest_agrees(&["put a=x @3", "put a=y ?"], &[("a", "x@3")]);
        newest_agrees(&["put a=x @3", "put a=y ?"], &[("a", "y@4")]);
        newest_differs(&["put a=x @3", "put a=y ?"], &[("a", "y@2")]);
        newest_differs(&["put a=x @3", "put a=y ?"], &[]);
        newest_agrees(&["put a=x @3", "delete a ?"], &[]);
    }

    #[test]
    fn stamps_rise_along_a_key_and_its_own_conditions_hold() {
        let complaints = |lines: &[&str]| history(lines).check_answers().len();
        assert_eq!(complaints(&["put a=x @3", "put a=y @5", "put b=x @4"]), 0);
        assert_eq!(complaints(&["put a=x @3", "put a=y @3"]), 1);
        assert_eq!(complaints(&["put a=x @0"]), 1);
        let mut failed = history(&["put a=x ?"]);
        let write = failed.unknown().remove(0);
        failed.settle(
            &write,
            WriteOutcome::ConditionFailed {
                condition: 0,
                actual: Timestamp(9),
            },
        );
        assert_eq!(failed.check_answers().len(), 1);
    }

    #[test]
    fn between_two_writes_a_key_holds_the_first_and_nothing_else() {
        let history = history(&["put a=x @3", "put a=y @7", "delete a @9"]);
        let spans = history.spans();
        let read: Vec<_> = spans
            .iter()
            .map(|span| (span.as_of.0, span.found.clone()))
            .collect();
        assert_eq!(
            read,
            [
                (2, None),
                (6, Some(versioned("x@3"))),
                (8, Some(versioned("y@7"))),
                (9, None)
            ]
        );
        assert!(check_span(&spans[1], Some(&versioned("x@3"))).is_none());
        assert!(check_span(&spans[1], Some(&versioned("x@5"))).is_some());
        assert!(check_span(&spans[1], None).is_some());
    }
}
