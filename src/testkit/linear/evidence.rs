//! What is wrong with answers, whatever the order of the requests. Decides only.
//!
//! Cheap, and with words of its own for each fault: what the search would only call impossible to order,
//! and what it does not look at, since versions give it no order: that they rise along a key.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use crate::testkit::linear::compile::Effective;
use crate::testkit::linear::compile::effective;
use crate::testkit::linear::compile::last_of_each_key;
use crate::testkit::linear::show;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// Every request once: two of one id are two attempts of one write, of which the first final answer
/// counts. Complains where their answers differ.
pub(super) fn one_per_id(history: &[Observed], complaints: &mut Vec<String>) -> Vec<Observed> {
    let mut places: HashMap<RequestId, usize> = HashMap::new();
    let mut merged: Vec<Observed> = Vec::with_capacity(history.len());
    for observed in history {
        let Asked::Write(write) = &observed.asked else {
            merged.push(observed.clone());
            continue;
        };
        let Some(place) = places.get(&write.id) else {
            places.insert(write.id, merged.len());
            merged.push(observed.clone());
            continue;
        };
        let first = &mut merged[*place];
        if first.asked != observed.asked {
            complaints.push(format!("one id for two writes: {}", both(first, observed)));
        }
        match (outcome_of(first), outcome_of(observed)) {
            (Some(said), Some(again)) if said != again => {
                complaints.push(format!(
                    "one id with two outcomes: {}",
                    both(first, observed)
                ));
            }
            (Some(_), Some(_)) => first.ended = first.ended.min(observed.ended),
            (None, Some(_)) => {
                first.answer = observed.answer.clone();
                first.ended = observed.ended;
            }
            (Some(_) | None, None) => {}
        }
        first.began = first.began.min(observed.began);
    }
    merged
}

fn outcome_of(observed: &Observed) -> Option<&WriteOutcome> {
    match &observed.answer {
        Answer::Wrote(outcome, _) => Some(outcome),
        Answer::Found(..) | Answer::Scanned { .. } | Answer::Unknown | Answer::Refused => None,
    }
}

fn both(first: &Observed, second: &Observed) -> String {
    format!("{} / {}", show::line(first), show::line(second))
}

/// Complains of what can be seen in the answers alone.
pub(super) fn check(history: &[Observed], complaints: &mut Vec<String>) {
    for observed in history {
        let said = alone(observed);
        complaints.extend(said.map(|said| format!("{said}: {}", show::line(observed))));
    }
    made_twice(history, complaints);
    read_from_nobody(history, complaints);
    backwards(history, complaints);
}

/// What is wrong with one request by itself.
pub(super) fn alone(observed: &Observed) -> Option<&'static str> {
    if observed.ended < observed.began {
        return Some("ended before it began");
    }
    match (&observed.asked, &observed.answer) {
        (_, Answer::Unknown | Answer::Refused) => None,
        (Asked::Get { .. }, Answer::Found(..)) => None,
        (
            Asked::Scan {
                range,
                limit,
                reverse,
                ..
            },
            Answer::Scanned {
                entries, covered, ..
            },
        ) => scan(range, *limit, *reverse, entries, covered),
        (Asked::Write(write), Answer::Wrote(outcome, _)) => wrote(&write.kind, outcome),
        (Asked::Get { .. } | Asked::Scan { .. } | Asked::Write(_), _) => {
            Some("an answer to another question")
        }
    }
}

fn scan(
    range: &KeyRange,
    limit: u32,
    reverse: bool,
    entries: &[KeyValue],
    covered: &KeyRange,
) -> Option<&'static str> {
    let begins = if reverse {
        covered.end == range.end || covered.is_empty()
    } else {
        covered.start == range.start || covered.is_empty()
    };
    let in_order = entries.windows(2).all(|pair| match reverse {
        true => pair[0].key > pair[1].key,
        false => pair[0].key < pair[1].key,
    });
    if entries.len() > limit as usize {
        Some("more entries than asked for")
    } else if !range.covers(covered) || !begins {
        Some("covers what was not asked for")
    } else if !entries.iter().all(|entry| covered.contains(&entry.key)) {
        Some("an entry outside of what it covers")
    } else if !in_order {
        Some("entries out of order")
    } else {
        None
    }
}

fn wrote(kind: &WriteKind, outcome: &WriteOutcome) -> Option<&'static str> {
    match (kind, outcome) {
        (_, WriteOutcome::TooLateToKnow { .. }) => None,
        (
            _,
            WriteOutcome::ClockAhead { .. }
            | WriteOutcome::StaleEpoch
            | WriteOutcome::StaleStamp
            | WriteOutcome::Frozen,
        ) => Some("not a final answer"),
        (
            WriteKind::Keys { operations, .. },
            WriteOutcome::Done {
                version, deleted, ..
            },
        ) => {
            let last = last_of_each_key(operations);
            let deletes = last
                .values()
                .filter(|last| matches!(last, Operation::Delete { .. }));
            let deletes = deletes.count();
            let changed = deletes < last.len() || *deleted > 0;
            if *deleted as usize > deletes {
                Some("more keys deleted than named")
            } else if changed != (*version != Timestamp::ZERO) {
                Some("a version that does not go with what was done")
            } else {
                None
            }
        }
        (
            WriteKind::Range { range, limit },
            WriteOutcome::Done {
                version, deleted, ..
            },
        ) => {
            if deleted > limit || (*deleted > 0 && range.is_empty()) {
                Some("more keys deleted than asked for")
            } else if (*deleted > 0) != (*version != Timestamp::ZERO) {
                Some("a version that does not go with what was done")
            } else {
                None
            }
        }
        (
            WriteKind::Keys { conditions, .. },
            WriteOutcome::ConditionFailed { condition, actual },
        ) => match conditions.get(*condition as usize) {
            None => Some("there is no such condition"),
            Some(failed) => held(failed, *actual),
        },
        (WriteKind::Range { .. }, WriteOutcome::ConditionFailed { .. }) => {
            Some("there is no condition")
        }
        (
            WriteKind::Keys {
                conditions,
                operations,
            },
            WriteOutcome::Spanning { .. },
        ) => {
            let operated = operations.iter().map(Operation::key);
            let keys: HashSet<&Key> = operated
                .chain(conditions.iter().map(Condition::key))
                .collect();
            (keys.len() < 2).then_some("it has one key")
        }
        (WriteKind::Range { .. }, WriteOutcome::Spanning { .. }) => {
            Some("a range is never spanning")
        }
    }
}

/// A condition that failed although it held.
fn held(condition: &Condition, actual: Timestamp) -> Option<&'static str> {
    let held = match condition {
        Condition::Version { version, .. } => actual == *version,
        Condition::Exists { .. } => actual != Timestamp::ZERO,
        Condition::Value { .. } => false,
    };
    held.then_some("failed although the condition held")
}

/// What a write puts.
pub(super) fn puts(observed: &Observed) -> impl Iterator<Item = (&Key, &Value)> {
    let operations = match &observed.asked {
        Asked::Write(write) => match &write.kind {
            WriteKind::Keys { operations, .. } => operations.as_slice(),
            WriteKind::Range { .. } => &[],
        },
        Asked::Get { .. } | Asked::Scan { .. } => &[],
    };
    let last = last_of_each_key(operations).into_values();
    last.filter_map(|operation| match operation {
        Operation::Put { key, value } => Some((key, value)),
        Operation::Delete { .. } => None,
    })
}

/// A version that two writes of one key were told they made.
fn made_twice(history: &[Observed], complaints: &mut Vec<String>) {
    let mut made: HashMap<(&Key, Timestamp), &Observed> = HashMap::new();
    for observed in history {
        let Some(version) = made_version(observed) else {
            continue;
        };
        let Asked::Write(write) = &observed.asked else {
            continue;
        };
        let WriteKind::Keys { operations, .. } = &write.kind else {
            continue;
        };
        for key in operations.iter().map(Operation::key) {
            let before = made.insert((key, version), observed);
            if let Some(before) = before.filter(|before| !std::ptr::eq(*before, observed)) {
                complaints.push(format!(
                    "one version for two writes: {}",
                    both(before, observed)
                ));
                break;
            }
        }
    }
}

pub(super) fn made_version(observed: &Observed) -> Option<Timestamp> {
    match effective(&observed.answer) {
        Effective::Done { version, .. } => {
            Some(version).filter(|version| *version != Timestamp::ZERO)
        }
        Effective::Failed { .. } | Effective::Nothing | Effective::Unknown => None,
    }
}

/// What a linearizable read saw, key by key.
pub(super) fn seen(observed: &Observed, kind: ReadKind) -> Vec<(&Key, &Versioned)> {
    match (&observed.asked, &observed.answer) {
        (Asked::Get { key, read }, Answer::Found(Some(found), _)) if *read == kind => {
            vec![(key, found)]
        }
        (Asked::Scan { read, .. }, Answer::Scanned { entries, .. }) if *read == kind => {
            let entries = entries.iter();
            entries
                .map(|entry| (&entry.key, &entry.versioned))
                .collect()
        }
        (Asked::Get { .. } | Asked::Scan { .. } | Asked::Write(_), _) => Vec::new(),
    }
}

/// Who may have written what, to which key.
pub(super) struct Writers<'h>(HashMap<(&'h Key, &'h Value), Vec<&'h Observed>>);

impl<'h> Writers<'h> {
    pub(super) fn of(history: &'h [Observed]) -> Writers<'h> {
        let mut writers: HashMap<_, Vec<&Observed>> = HashMap::new();
        for observed in history {
            for put in puts(observed) {
                writers.entry(put).or_default().push(observed);
            }
        }
        Writers(writers)
    }

    /// What speaks against a version of a key, read by somebody who had his answer at that moment.
    pub(super) fn against(
        &self,
        key: &Key,
        read: &Versioned,
        ended: Moment,
    ) -> Option<&'static str> {
        let Some(writers) = self.0.get(&(key, &read.value)) else {
            return Some("a value that nobody wrote");
        };
        let happened = |observed: &&&Observed| match effective(&observed.answer) {
            Effective::Done { .. } | Effective::Unknown => true,
            Effective::Failed { .. } | Effective::Nothing => false,
        };
        let mut writers = writers.iter().filter(happened).peekable();
        if writers.peek().is_none() {
            return Some("the value of a write that did not happen");
        }
        let mut writers = writers
            .filter(|observed| observed.began <= ended)
            .peekable();
        if writers.peek().is_none() {
            return Some("a value that nobody had written yet");
        }
        let may_have_made = |observed: &&Observed| match effective(&observed.answer) {
            Effective::Done { version, .. } => version == read.version,
            Effective::Unknown => true,
            Effective::Failed { .. } | Effective::Nothing => false,
        };
        let is_explained = writers.any(may_have_made);
        (!is_explained).then_some("a value with a version that its writer was not told")
    }
}

fn read_from_nobody(history: &[Observed], complaints: &mut Vec<String>) {
    let writers = Writers::of(history);
    for observed in history {
        for (key, read) in seen(observed, ReadKind::Linearizable) {
            let against = writers.against(key, read, observed.ended);
            complaints.extend(against.map(|said| format!("{said}: {}", show::line(observed))));
        }
    }
}

/// Somebody had, or made, a version of a key while that request was under way.
struct Sighting<'h> {
    version: Timestamp,
    made: bool,
    observed: &'h Observed,
}

/// Versions of one key that fall while time goes on.
fn backwards(history: &[Observed], complaints: &mut Vec<String>) {
    let mut keys: BTreeMap<&Key, Vec<Sighting<'_>>> = BTreeMap::new();
    for observed in history {
        for (key, version, made) in sightings(observed) {
            let sighting = Sighting {
                version,
                made,
                observed,
            };
            keys.entry(key).or_default().push(sighting);
        }
    }
    for sightings in keys.values_mut() {
        sightings.sort_by_key(|sighting| sighting.observed.began);
        let mut ends: Vec<usize> = (0..sightings.len()).collect();
        ends.sort_by_key(|at| sightings[*at].observed.ended);
        let mut ends = ends.into_iter().peekable();
        let mut highest: Option<&Sighting<'_>> = None;
        for sighting in sightings.iter() {
            while let Some(at) =
                ends.next_if(|at| sightings[*at].observed.ended < sighting.observed.began)
            {
                if highest.is_none_or(|highest| sightings[at].version > highest.version) {
                    highest = Some(&sightings[at]);
                }
            }
            let Some(before) = highest else {
                continue;
            };
            let falls = sighting.version < before.version;
            if falls || (sighting.made && sighting.version == before.version) {
                let requests = both(before.observed, sighting.observed);
                complaints.push(format!(
                    "versions of a key do not rise with time: {requests}"
                ));
                break;
            }
        }
    }
}

fn sightings(observed: &Observed) -> Vec<(&Key, Timestamp, bool)> {
    let read = seen(observed, ReadKind::Linearizable).into_iter();
    let mut found: Vec<_> = read.map(|(key, read)| (key, read.version, false)).collect();
    let Asked::Write(write) = &observed.asked else {
        return found;
    };
    let WriteKind::Keys {
        conditions,
        operations,
    } = &write.kind
    else {
        return found;
    };
    match effective(&observed.answer) {
        Effective::Done { version, .. } if version != Timestamp::ZERO => {
            let puts = puts(observed).map(|(key, _)| (key, version, true));
            found.extend(puts);
            if let [Operation::Delete { key }] = operations.as_slice() {
                found.push((key, version, true));
            }
        }
        Effective::Failed { condition, actual } if actual != Timestamp::ZERO => {
            let failed = conditions.get(condition as usize);
            found.extend(failed.map(|failed| (failed.key(), actual, false)));
        }
        Effective::Done { .. }
        | Effective::Failed { .. }
        | Effective::Nothing
        | Effective::Unknown => {}
    }
    found
}
