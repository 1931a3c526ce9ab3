//! Requests and reasons for people to read. Decides only.

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::board::Blocked;
use crate::testkit::linear::board::Held;
use crate::testkit::linear::part::Part;
use crate::testkit::linear::search::DeadEnd;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::testkit::observed::show;
use crate::types::Timestamp;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// Entries and operations of one request that are shown at most.
const SHOWN_MAX: usize = 6;

/// A request as one line: `client 3  12.403–12.417 ms  put a=x  → version 0.17`.
pub(super) fn line(observed: &Observed) -> String {
    let answer = answer(&observed.answer, |_| true);
    format!("{}  → {answer}", asked_line(observed))
}

/// A request of an unordered part: of a scan, only what matters.
pub(super) fn line_of(observed: &Observed, act: &Act, part: &Part) -> String {
    let matters = |key: &bytes::Bytes| {
        let at = part.names.keys.binary_search(key);
        at.is_ok_and(|at| act.needs.iter().any(|(needed, _)| *needed == at))
    };
    let mut said = answer(&observed.answer, matters);
    if let Answer::Scanned { .. } = observed.answer {
        let absent = act.needs.iter().filter(|(_, need)| *need == Need::Absent);
        for (key, _) in absent.take(SHOWN_MAX) {
            said.push_str(&format!(", {} absent", show(&part.names.keys[*key])));
        }
    }
    format!("{}  → {said}", asked_line(observed))
}

fn asked_line(observed: &Observed) -> String {
    let Observed {
        client,
        began,
        ended,
        ..
    } = observed;
    let until = match observed.answer {
        Answer::Unknown => "…".to_owned(),
        Answer::Found(..) | Answer::Scanned { .. } | Answer::Wrote(..) | Answer::Refused => {
            format!("–{}", milliseconds(*ended))
        }
    };
    let asked = asked(&observed.asked);
    format!(
        "client {client}  {}{until} ms  {asked}",
        milliseconds(*began)
    )
}

fn milliseconds(moment: Moment) -> String {
    format!("{}.{:03}", moment.0 / 1_000, moment.0 % 1_000)
}

/// What was asked, in short: `get a`, `put a=x, delete b`.
pub(super) fn asked(asked: &Asked) -> String {
    let from = |read: &ReadKind| match read {
        ReadKind::Linearizable => "",
        ReadKind::Follower => " from a follower",
    };
    match asked {
        Asked::Get { key, read } => format!("get {}{}", show(key), from(read)),
        Asked::Scan {
            range,
            limit,
            reverse,
            read,
        } => {
            let backwards = if *reverse { " backwards" } else { "" };
            format!("scan {range}{backwards} up to {limit}{}", from(read))
        }
        Asked::Write(write) => match &write.kind {
            WriteKind::Range { range, limit } => format!("delete {range} up to {limit}"),
            WriteKind::Keys {
                conditions,
                operations,
            } => {
                let operations = list(operations.iter().map(operation));
                match conditions.is_empty() {
                    true => operations,
                    false => format!("{operations} if {}", list(conditions.iter().map(condition))),
                }
            }
        },
    }
}

fn operation(operation: &Operation) -> String {
    match operation {
        Operation::Put { key, value } => format!("put {}={}", show(key), show(value)),
        Operation::Delete { key } => format!("delete {}", show(key)),
    }
}

fn condition(condition: &Condition) -> String {
    match condition {
        Condition::Version {
            key,
            version: Timestamp::ZERO,
        } => format!("{} is absent", show(key)),
        Condition::Version { key, version } => format!("{} is at {version}", show(key)),
        Condition::Value { key, value } => format!("{} is {}", show(key), show(value)),
        Condition::Exists { key } => format!("{} is there", show(key)),
    }
}

fn answer(answer: &Answer, matters: impl Fn(&bytes::Bytes) -> bool) -> String {
    match answer {
        Answer::Found(None, _) => "absent".to_owned(),
        Answer::Found(Some(found), _) => versioned(found),
        Answer::Scanned {
            entries, covered, ..
        } => {
            let shown = entries.iter().filter(|entry| matters(&entry.key));
            let shown =
                shown.map(|entry| format!("{}={}", show(&entry.key), versioned(&entry.versioned)));
            format!("of {} in {covered}: {}", entries.len(), list(shown))
        }
        Answer::Wrote(outcome, _) => wrote(outcome),
        Answer::Unknown => "unknown".to_owned(),
        Answer::Refused => "refused".to_owned(),
    }
}

fn wrote(outcome: &WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Done {
            version: Timestamp::ZERO,
            ..
        } => "done, nothing changed".to_owned(),
        WriteOutcome::Done {
            version,
            deleted: 0,
            ..
        } => format!("version {version}"),
        WriteOutcome::Done {
            version,
            deleted,
            resume,
        } => {
            let resume = resume.iter().map(|key| format!(", on from {}", show(key)));
            format!(
                "version {version}, {deleted} deleted{}",
                resume.collect::<String>()
            )
        }
        WriteOutcome::ConditionFailed {
            condition,
            actual: Timestamp::ZERO,
        } => {
            format!("condition {condition} failed: absent")
        }
        WriteOutcome::ConditionFailed { condition, actual } => {
            format!("condition {condition} failed: at {actual}")
        }
        WriteOutcome::TooLateToKnow { .. } => "too late to know".to_owned(),
        WriteOutcome::ClockAhead { .. }
        | WriteOutcome::Spanning { .. }
        | WriteOutcome::StaleEpoch
        | WriteOutcome::StaleStamp
        | WriteOutcome::Frozen => format!("{outcome:?}"),
    }
}

fn versioned(versioned: &Versioned) -> String {
    format!("{} at {}", show(&versioned.value), versioned.version)
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(SHOWN_MAX);
    let shown = items[..items.len() - more].join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Why an order could not go on.
pub(super) fn dead_end(dead_end: &DeadEnd, part: &Part, history: &[Observed]) -> String {
    let request = |number: &usize| {
        let observed = &history[part.acts[*number].source];
        format!("client {}'s {}", observed.client, asked(&observed.asked))
    };
    let order = match dead_end.order.is_empty() {
        true => "At the beginning".to_owned(),
        false => format!("After {}", list(dead_end.order.iter().map(request))),
    };
    let blocked = dead_end.blocked.iter().map(|obstacle| {
        let key = |key: &usize| show(&part.names.keys[*key]);
        let request_of = request;
        let request = request(&obstacle.number);
        match &obstacle.blocked {
            Blocked::Unmet {
                key: at,
                need,
                held,
            } => {
                let saw = saw(*need, part);
                format!(
                    "{request} saw {} {saw}, but it is {}",
                    key(at),
                    holds(*held, part)
                )
            }
            Blocked::Miscounted { counted, there } => {
                format!("{request} counted {counted} keys, but there are {there}")
            }
            Blocked::Overwrites { key: at, held } => format!(
                "{request} would end {} being {}, which {} has still to see",
                key(at),
                holds(*held, part),
                list(obstacle.readers.iter().map(request_of))
            ),
        }
    });
    format!("{order}: {}.", blocked.collect::<Vec<_>>().join("; "))
}

fn saw(need: Need, part: &Part) -> String {
    match (
        need,
        need.slot().map(|slot| part.names.slots[slot as usize]),
    ) {
        (Need::Absent, _) => "absent".to_owned(),
        (_, Some(version)) => format!("at {version}"),
        (_, None) => "otherwise".to_owned(),
    }
}

fn holds(held: Held, part: &Part) -> String {
    match held {
        Held::Absent => "absent".to_owned(),
        Held::Known { slot, .. } => match part.names.slots.get(slot as usize) {
            Some(version) => format!("at {version}"),
            None => "at a version that nobody saw".to_owned(),
        },
        Held::Open { .. } => "at a version that nobody saw so far".to_owned(),
    }
}
