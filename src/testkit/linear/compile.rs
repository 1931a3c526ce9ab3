//! From what clients asked and were told to what it says about the keys. Decides only.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Clears;
use crate::testkit::linear::act::Count;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::NEVER;
use crate::testkit::linear::act::Names;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::groups::split;
use crate::testkit::linear::part::Part;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// The history in parts that have no key in common.
pub(super) fn parts(history: &[Observed]) -> Vec<Part> {
    let mut compiler = Compiler::new(history);
    let acts: Vec<Act> = history
        .iter()
        .enumerate()
        .filter_map(|(source, observed)| compiler.act(source, observed))
        .collect();
    split(&compiler.names, acts)
}

/// How a write ended, as far as it says what happened.
pub(super) enum Effective<'o> {
    /// It happened, and was told so.
    Done {
        version: Timestamp,
        deleted: u32,
        resume: Option<&'o Key>,
    },
    /// It did not happen, since a condition did not hold.
    Failed { condition: u32, actual: Timestamp },
    /// It did not happen, and that says nothing about the keys.
    Nothing,
    /// It may have happened.
    Unknown,
}

/// What the answer says about whether the write happened.
pub(super) fn effective(answer: &Answer) -> Effective<'_> {
    match answer {
        Answer::Wrote(
            WriteOutcome::Done {
                version,
                deleted,
                resume,
            },
            _,
        ) => Effective::Done {
            version: *version,
            deleted: *deleted,
            resume: resume.as_ref(),
        },
        Answer::Wrote(WriteOutcome::ConditionFailed { condition, actual }, _) => {
            Effective::Failed {
                condition: *condition,
                actual: *actual,
            }
        }
        Answer::Wrote(WriteOutcome::Spanning { .. }, _) | Answer::Refused => Effective::Nothing,
        // The last four are not final: another attempt under the same id may have been applied.
        Answer::Wrote(WriteOutcome::TooLateToKnow { .. }, _)
        | Answer::Wrote(WriteOutcome::ClockAhead { .. }, _)
        | Answer::Wrote(WriteOutcome::StaleEpoch, _)
        | Answer::Wrote(WriteOutcome::StaleStamp, _)
        | Answer::Wrote(WriteOutcome::Frozen, _)
        | Answer::Found(..)
        | Answer::Scanned { .. }
        | Answer::Unknown => Effective::Unknown,
    }
}

/// What is done to each key: if a write names a key twice, the last operation counts.
pub(super) fn last_of_each_key(operations: &[Operation]) -> BTreeMap<&Key, &Operation> {
    operations
        .iter()
        .map(|operation| (operation.key(), operation))
        .collect()
}

struct Compiler {
    names: Names,
    slots: HashMap<(usize, Timestamp), u32>,
    values: HashMap<Value, u32>,
}

impl Compiler {
    fn new(history: &[Observed]) -> Compiler {
        let keys: BTreeSet<&Key> = history.iter().flat_map(named).collect();
        Compiler {
            names: Names {
                keys: keys.into_iter().cloned().collect(),
                slots: Vec::new(),
            },
            slots: HashMap::new(),
            values: HashMap::new(),
        }
    }

    fn act(&mut self, source: usize, observed: &Observed) -> Option<Act> {
        let mut act = Act {
            source,
            began: observed.began,
            ended: observed.ended,
            is_optional: false,
            needs: Vec::new(),
            count: None,
            effects: Vec::new(),
            clears: None,
            hint: Timestamp::ZERO,
        };
        let is_told = match (&observed.asked, &observed.answer) {
            (
                Asked::Get {
                    key,
                    read: ReadKind::Linearizable,
                },
                Answer::Found(found, answered),
            ) => {
                act.hint = answered.as_of;
                let key = self.key(key);
                let need = self.found(key, found.as_ref());
                act.needs.push((key, need));
                true
            }
            (
                Asked::Scan {
                    read: ReadKind::Linearizable,
                    ..
                },
                Answer::Scanned {
                    entries,
                    covered,
                    answered,
                },
            ) => {
                act.hint = answered.as_of;
                act.needs = self.scanned(entries, covered);
                true
            }
            (Asked::Write(write), answer) => self.write(&mut act, write, &effective(answer)),
            // Followers are judged elsewhere; a read without an answer says nothing.
            (Asked::Get { .. } | Asked::Scan { .. }, _) => false,
        };
        is_told.then_some(act)
    }

    fn found(&mut self, key: usize, found: Option<&Versioned>) -> Need {
        match found {
            None => Need::Absent,
            Some(versioned) => Need::Exactly {
                value: self.value(&versioned.value),
                slot: self.slot(key, versioned.version),
            },
        }
    }

    fn scanned(&mut self, entries: &[KeyValue], covered: &KeyRange) -> Vec<(usize, Need)> {
        let entries: BTreeMap<&Key, &Versioned> = entries
            .iter()
            .map(|entry| (&entry.key, &entry.versioned))
            .collect();
        let shown = entries.keys().map(|key| self.key(key));
        let keys: BTreeSet<usize> = self.keys_in(covered).chain(shown).collect();
        keys.into_iter()
            .map(|key| {
                let found = entries.get(&self.names.keys[key]).copied();
                (key, self.found(key, found))
            })
            .collect()
    }

    /// Adds what is known about a write; false when it says nothing.
    fn write(&mut self, act: &mut Act, write: &Write, outcome: &Effective<'_>) -> bool {
        if let Effective::Unknown = outcome {
            act.is_optional = true;
            act.ended = NEVER;
            act.hint = Timestamp::MAX;
        }
        match (&write.kind, outcome) {
            (_, Effective::Nothing) => false,
            (
                WriteKind::Keys {
                    conditions,
                    operations,
                },
                Effective::Unknown,
            ) => {
                self.hold(act, conditions);
                self.operate(act, operations, None);
                true
            }
            (
                WriteKind::Keys {
                    conditions,
                    operations,
                },
                Effective::Done {
                    version, deleted, ..
                },
            ) => {
                self.hold(act, conditions);
                self.operate(act, operations, Some(*version));
                self.deleted(act, *deleted);
                act.hint = *version;
                true
            }
            (WriteKind::Keys { conditions, .. }, Effective::Failed { condition, actual }) => {
                act.hint = *actual;
                let number = *condition as usize;
                let Some(failed) = conditions.get(number) else {
                    return false;
                };
                self.hold(act, &conditions[..number]);
                self.failed(act, failed, *actual);
                act.needs.sort_by_key(|(key, _)| *key);
                true
            }
            (WriteKind::Range { range, limit }, Effective::Unknown) => {
                act.clears = Some(Clears {
                    keys: self.keys_in(range).collect(),
                    limit: *limit,
                });
                true
            }
            (
                WriteKind::Range { range, .. },
                Effective::Done {
                    version,
                    deleted,
                    resume,
                },
            ) => {
                let reached = KeyRange {
                    start: range.start.clone(),
                    end: resume.or(range.end.as_ref()).cloned(),
                };
                let keys: Vec<usize> = self.keys_in(&reached).collect();
                act.effects = keys.iter().map(|key| (*key, Effect::Delete)).collect();
                act.hint = *version;
                self.deleted(act, *deleted);
                true
            }
            (WriteKind::Range { .. }, Effective::Failed { .. }) => false,
        }
    }

    fn hold(&mut self, act: &mut Act, conditions: &[Condition]) {
        for condition in conditions {
            let key = self.key(condition.key());
            let need = match condition {
                Condition::Version {
                    version: Timestamp::ZERO,
                    ..
                } => Need::Absent,
                Condition::Version { version, .. } => Need::Version {
                    slot: self.slot(key, *version),
                },
                Condition::Value { value, .. } => Need::Value {
                    value: self.value(value),
                },
                Condition::Exists { .. } => Need::Present,
            };
            act.needs.push((key, need));
        }
        act.needs.sort_by_key(|(key, _)| *key);
    }

    fn failed(&mut self, act: &mut Act, condition: &Condition, actual: Timestamp) {
        let key = self.key(condition.key());
        let need = if actual == Timestamp::ZERO {
            Need::Absent
        } else {
            let slot = self.slot(key, actual);
            match condition {
                Condition::Version { .. } | Condition::Exists { .. } => Need::Version { slot },
                Condition::Value { value, .. } => Need::NotValue {
                    value: self.value(value),
                    slot,
                },
            }
        };
        act.needs.push((key, need));
    }

    fn operate(&mut self, act: &mut Act, operations: &[Operation], version: Option<Timestamp>) {
        // A put has a version; one that was told it has none is complained of elsewhere.
        let version = version.filter(|version| *version != Timestamp::ZERO);
        for (key, operation) in last_of_each_key(operations) {
            let key = self.key(key);
            let effect = match operation {
                Operation::Put { value, .. } => Effect::Put {
                    value: self.value(value),
                    slot: version.map(|version| self.slot(key, version)),
                },
                Operation::Delete { .. } => Effect::Delete,
            };
            act.effects.push((key, effect));
        }
    }

    /// What it says that so many of the keys which the act deletes were there.
    fn deleted(&mut self, act: &mut Act, deleted: u32) {
        let deletes = act.effects.iter();
        let deletes = deletes.filter(|(_, effect)| *effect == Effect::Delete);
        let keys: Vec<usize> = deletes.map(|(key, _)| *key).collect();
        match deleted as usize {
            0 => {
                act.needs
                    .extend(keys.iter().map(|key| (*key, Need::Absent)));
                act.effects.retain(|(_, effect)| *effect != Effect::Delete);
            }
            count if count == keys.len() => {
                act.needs
                    .extend(keys.iter().map(|key| (*key, Need::Present)));
            }
            _ => {
                act.count = Some(Count {
                    keys,
                    count: deleted,
                })
            }
        }
        act.needs.sort_by_key(|(key, _)| *key);
    }

    fn key(&self, key: &Key) -> usize {
        let found = self.names.keys.binary_search(key);
        found.expect("every key that a history names was collected")
    }

    fn keys_in(&self, range: &KeyRange) -> impl Iterator<Item = usize> + use<> {
        let keys = &self.names.keys;
        let first = keys.partition_point(|key| *key < range.start);
        let end = match &range.end {
            Some(end) => keys.partition_point(|key| key < end),
            None => keys.len(),
        };
        first..end.max(first)
    }

    fn slot(&mut self, key: usize, version: Timestamp) -> u32 {
        let slots = &mut self.names.slots;
        *self.slots.entry((key, version)).or_insert_with(|| {
            slots.push(version);
            number(slots.len() - 1)
        })
    }

    fn value(&mut self, value: &Value) -> u32 {
        let next = number(self.values.len());
        *self.values.entry(value.clone()).or_insert(next)
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("a history fits into memory")
}

/// The keys that a request and its answer name one by one.
fn named(observed: &Observed) -> Vec<&Key> {
    let mut keys: Vec<&Key> = match &observed.asked {
        Asked::Get { key, .. } => vec![key],
        Asked::Scan { .. } => Vec::new(),
        Asked::Write(Write {
            kind:
                WriteKind::Keys {
                    conditions,
                    operations,
                },
            ..
        }) => {
            let operated = operations.iter().map(Operation::key);
            operated
                .chain(conditions.iter().map(Condition::key))
                .collect()
        }
        Asked::Write(Write {
            kind: WriteKind::Range { range, .. },
            ..
        }) => vec![&range.start],
    };
    if let Answer::Scanned { entries, .. } = &observed.answer {
        keys.extend(entries.iter().map(|entry| &entry.key));
    }
    keys
}
