//! Histories in words, one request per line: `3 10-20 put a=x → 5`. Decides only.
//!
//! ```text
//! CLIENT BEGIN-END REQUEST → ANSWER
//!
//! get a                 → x@5 | none | ?
//! follower get a        → x@5 | none | ?
//! scan a..d             → a=x@5 b=y@6 | nothing | ?        before it `limit 2`, `reverse`, `follower`
//!                         ending in `to c`: it covers that much only
//! put a=x delete b if a@5 b=y c
//!                       → 5 | 5 deleted 1 | failed 0 at 7 | ? | refused
//! clear a..d limit 2    → 5 deleted 2 resume c | ?
//! ```
//! A condition `a@0` says that `a` is absent, `c` alone that it is there. Equal ids: `#7` after the times.

use bytes::Bytes;

use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

pub(super) fn history(text: &str) -> Vec<Observed> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    (0..)
        .zip(lines)
        .map(|(number, line)| observed(line, number))
        .collect()
}

fn observed(line: &str, number: u64) -> Observed {
    let (request, answer) = line
        .split_once("→")
        .unwrap_or_else(|| panic!("no answer: {line}"));
    let mut words: Vec<&str> = request.split_whitespace().collect();
    let client = words.remove(0).parse().expect("a client");
    let (began, ended) = words.remove(0).split_once('-').expect("times");
    let number = match words[0].strip_prefix('#') {
        None => number + 1_000,
        Some(id) => {
            words.remove(0);
            id.parse().expect("an id")
        }
    };
    let asked = asked(&words, number);
    let answer = answer_of(&asked, &answer.split_whitespace().collect::<Vec<_>>());
    Observed {
        client,
        asked,
        began: Moment(began.parse().expect("a begin")),
        ended: Moment(ended.parse().expect("an end")),
        answer,
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

fn version(text: &str) -> Timestamp {
    Timestamp(
        text.parse()
            .unwrap_or_else(|_| panic!("no version: {text}")),
    )
}

fn versioned(text: &str) -> Versioned {
    let (value, at) = text.split_once('@').expect("a value and its version");
    Versioned {
        value: bytes(value),
        version: version(at),
    }
}

fn range(text: &str) -> KeyRange {
    let (start, end) = text.split_once("..").expect("a range");
    KeyRange {
        start: bytes(start),
        end: (!end.is_empty()).then(|| bytes(end)),
    }
}

/// The word after this one.
fn after<'w>(words: &[&'w str], word: &str) -> Option<&'w str> {
    let at = words.iter().position(|w| *w == word)?;
    words.get(at + 1).copied()
}

fn asked(words: &[&str], number: u64) -> Asked {
    let read = match words.contains(&"follower") {
        true => ReadKind::Follower,
        false => ReadKind::Linearizable,
    };
    let limit = after(words, "limit").map_or(1_000, |limit| limit.parse().expect("a limit"));
    let id = RequestId::new(number, [0; 10]);
    if let Some(key) = after(words, "get") {
        return Asked::Get {
            key: bytes(key),
            read,
        };
    }
    if let Some(keys) = after(words, "scan") {
        return Asked::Scan {
            range: range(keys),
            limit,
            reverse: words.contains(&"reverse"),
            read,
        };
    }
    let kind = match after(words, "clear") {
        Some(keys) => WriteKind::Range {
            range: range(keys),
            limit,
        },
        None => keys_written(words),
    };
    Asked::Write(Write { id, kind })
}

fn keys_written(words: &[&str]) -> WriteKind {
    let mut groups = words.split(|word| *word == "if");
    let written = groups.next().expect("what is written");
    let conditions = groups.next().unwrap_or_default();
    let mut operations = Vec::new();
    let mut deletes = false;
    for word in written {
        match (*word, word.split_once('=')) {
            ("put", _) => deletes = false,
            ("delete", _) => deletes = true,
            (_, Some((key, value))) => operations.push(Operation::Put {
                key: bytes(key),
                value: bytes(value),
            }),
            (key, None) if deletes => operations.push(Operation::Delete { key: bytes(key) }),
            (word, None) => panic!("what is {word}?"),
        }
    }
    WriteKind::Keys {
        conditions: conditions.iter().map(|word| condition(word)).collect(),
        operations,
    }
}

fn condition(word: &str) -> Condition {
    if let Some((key, at)) = word.split_once('@') {
        return Condition::Version {
            key: bytes(key),
            version: version(at),
        };
    }
    match word.split_once('=') {
        Some((key, value)) => Condition::Value {
            key: bytes(key),
            value: bytes(value),
        },
        None => Condition::Exists { key: bytes(word) },
    }
}

const ANSWERED: Answered = Answered {
    shard: ShardId(1),
    replica: ReplicaId(1),
    leader: true,
    timestamp: Timestamp::ZERO,
    as_of: Timestamp::ZERO,
};

fn answer_of(asked: &Asked, words: &[&str]) -> Answer {
    match words {
        ["?"] => return Answer::Unknown,
        ["refused"] => return Answer::Refused,
        _ => {}
    }
    match asked {
        Asked::Get { .. } => {
            let found = (words != ["none"]).then(|| versioned(words[0]));
            Answer::Found(found, ANSWERED)
        }
        Asked::Scan { range, .. } => scanned(range, words),
        Asked::Write(_) => Answer::Wrote(outcome(words), ANSWERED),
    }
}

fn scanned(range: &KeyRange, words: &[&str]) -> Answer {
    let shown = words.iter().filter_map(|word| word.split_once('='));
    let entries = shown.map(|(key, found)| KeyValue {
        key: bytes(key),
        versioned: versioned(found),
    });
    let end = after(words, "to").map(bytes);
    Answer::Scanned {
        entries: entries.collect(),
        covered: KeyRange {
            start: range.start.clone(),
            end: end.or(range.end.clone()),
        },
        answered: ANSWERED,
    }
}

fn outcome(words: &[&str]) -> WriteOutcome {
    if let ["failed", condition, "at", actual] = words {
        return WriteOutcome::ConditionFailed {
            condition: condition.parse().expect("a condition's number"),
            actual: version(actual),
        };
    }
    WriteOutcome::Done {
        version: version(words[0]),
        deleted: after(words, "deleted").map_or(0, |count| count.parse().expect("a count")),
        resume: after(words, "resume").map(bytes),
    }
}
