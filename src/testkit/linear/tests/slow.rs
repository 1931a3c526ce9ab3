//! The slow obvious checker: tries every order. Decides only.

use std::collections::BTreeMap;

use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// A version: told, or that of an unknown write, by its place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Told(Timestamp),
    Of(usize),
}

type Map = BTreeMap<Key, (Value, Stamp)>;

/// Whether some order of the requests explains all answers.
pub(super) fn is_linearizable(history: &[Observed]) -> bool {
    extends(history, &mut vec![false; history.len()], &Map::new())
}

fn is_unknown(observed: &Observed) -> bool {
    observed.answer == Answer::Unknown
}

fn extends(history: &[Observed], done: &mut Vec<bool>, map: &Map) -> bool {
    let must = (0..history.len()).filter(|n| !done[*n] && !is_unknown(&history[*n]));
    let must: Vec<usize> = must
        .filter(|n| history[*n].answer != Answer::Refused)
        .collect();
    let Some(first_end) = must.iter().map(|n| history[*n].ended).min() else {
        return true;
    };
    for number in 0..history.len() {
        let observed = &history[number];
        if done[number] || observed.began > first_end || observed.answer == Answer::Refused {
            continue;
        }
        done[number] = true;
        let follow = after(history, number, map);
        if follow.iter().any(|map| extends(history, done, map)) {
            return true;
        }
        done[number] = false;
    }
    false
}

/// The maps that there may be after a request, if it may happen now.
fn after(history: &[Observed], number: usize, map: &Map) -> Vec<Map> {
    let observed = &history[number];
    let mut map = map.clone();
    let is_right = match (&observed.asked, &observed.answer) {
        (_, Answer::Unknown) => return after_unknown(history, number, &map),
        (Asked::Get { key, .. }, Answer::Found(None, _)) => !map.contains_key(key),
        (Asked::Get { key, .. }, Answer::Found(Some(found), _)) => {
            holds_value(&map, key, &found.value) && is_at(history, &mut map, key, found.version)
        }
        (
            Asked::Scan { .. },
            Answer::Scanned {
                entries, covered, ..
            },
        ) => {
            map.keys().filter(|key| covered.contains(key)).count() == entries.len()
                && entries.iter().all(|entry| {
                    holds_value(&map, &entry.key, &entry.versioned.value)
                        && is_at(history, &mut map, &entry.key, entry.versioned.version)
                })
        }
        (Asked::Write(write), Answer::Wrote(outcome, _)) => match (&write.kind, outcome) {
            (
                WriteKind::Keys {
                    conditions,
                    operations,
                },
                WriteOutcome::Done {
                    version, deleted, ..
                },
            ) => {
                conditions
                    .iter()
                    .all(|c| condition_holds(history, &mut map, c))
                    && operate(&mut map, operations, Stamp::Told(*version)) == *deleted
            }
            (
                WriteKind::Keys { conditions, .. },
                WriteOutcome::ConditionFailed { condition, actual },
            ) => {
                let number = *condition as usize;
                let before = &conditions[..number];
                let failed = &conditions[number];
                before.iter().all(|c| condition_holds(history, &mut map, c))
                    && is_at(history, &mut map, failed.key(), *actual)
                    && !condition_holds(history, &mut map, failed)
            }
            (
                WriteKind::Range { range, .. },
                WriteOutcome::Done {
                    deleted, resume, ..
                },
            ) => {
                let before = map.len();
                map.retain(|key, _| {
                    !range.contains(key) || resume.as_ref().is_some_and(|resume| key >= resume)
                });
                before - map.len() == *deleted as usize
            }
            other => panic!("not in these histories: {other:?}"),
        },
        other => panic!("not in these histories: {other:?}"),
    };
    if is_right { vec![map] } else { Vec::new() }
}

fn after_unknown(history: &[Observed], number: usize, map: &Map) -> Vec<Map> {
    let Asked::Write(write) = &history[number].asked else {
        return Vec::new();
    };
    let mut map = map.clone();
    match &write.kind {
        WriteKind::Keys {
            conditions,
            operations,
        } => {
            if !conditions
                .iter()
                .all(|c| condition_holds(history, &mut map, c))
            {
                return Vec::new();
            }
            operate(&mut map, operations, Stamp::Of(number));
            vec![map]
        }
        WriteKind::Range { range, limit } => {
            let there: Vec<Key> = map
                .keys()
                .filter(|key| range.contains(key))
                .cloned()
                .collect();
            let mut maps = Vec::new();
            for key in there.iter().take(*limit as usize) {
                map.remove(key);
                maps.push(map.clone());
            }
            maps
        }
    }
}

fn holds_value(map: &Map, key: &Key, value: &Value) -> bool {
    map.get(key).is_some_and(|(held, _)| held == value)
}

/// Whether a key is at a version; `ZERO`: absent. The version of an unknown write becomes known by this.
fn is_at(history: &[Observed], map: &mut Map, key: &Key, version: Timestamp) -> bool {
    match map.get(key).map(|(_, stamp)| *stamp) {
        None => version == Timestamp::ZERO,
        Some(Stamp::Told(told)) => told == version,
        Some(Stamp::Of(_)) if version == Timestamp::ZERO => false,
        Some(Stamp::Of(writer)) => {
            let mut free = true;
            for (key, (_, stamp)) in map
                .iter_mut()
                .filter(|(_, (_, stamp))| *stamp == Stamp::Of(writer))
            {
                free &= !was_told(history, key, version);
                *stamp = Stamp::Told(version);
            }
            free
        }
    }
}

/// Whether a write of the key was told that it made this version.
fn was_told(history: &[Observed], key: &Key, version: Timestamp) -> bool {
    history
        .iter()
        .any(|observed| match (&observed.asked, &observed.answer) {
            (Asked::Write(write), Answer::Wrote(WriteOutcome::Done { version: told, .. }, _)) => {
                let puts = match &write.kind {
                    WriteKind::Keys { operations, .. } => operations.as_slice(),
                    WriteKind::Range { .. } => &[],
                };
                let last = puts.iter().rfind(|operation| operation.key() == key);
                *told == version && matches!(last, Some(Operation::Put { .. }))
            }
            _ => false,
        })
}

fn condition_holds(history: &[Observed], map: &mut Map, condition: &Condition) -> bool {
    match condition {
        Condition::Version { key, version } => is_at(history, map, key, *version),
        Condition::Value { key, value } => holds_value(map, key, value),
        Condition::Exists { key } => map.contains_key(key),
    }
}

/// Returns how many keys were deleted.
fn operate(map: &mut Map, operations: &[Operation], stamp: Stamp) -> u32 {
    let last: BTreeMap<&Key, &Operation> = operations.iter().map(|o| (o.key(), o)).collect();
    let mut deleted = 0;
    for (key, operation) in last {
        match operation {
            Operation::Put { value, .. } => {
                map.insert(key.clone(), (value.clone(), stamp));
            }
            Operation::Delete { .. } => deleted += u32::from(map.remove(key).is_some()),
        }
    }
    deleted
}
