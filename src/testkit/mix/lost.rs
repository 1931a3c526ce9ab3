//! Acknowledged writes that are missing at the end, counted without a search. Decides only.
//!
//! Stamps of a key rise in the order of its writes. So of a register the acknowledged write with the
//! highest stamp must be there at the end, unless a later one, or one whose outcome nobody knows, came
//! after it. A counter shows at least as many increments as were acknowledged, a list or set every
//! element of every value that was. What cannot be told is counted as open, not as kept.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::testkit::mix::layout::Kind;
use crate::testkit::mix::layout::Layout;
use crate::testkit::mix::layout::elements;
use crate::testkit::mix::layout::number_in;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Observed;
use crate::testkit::observed::show;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Operation;
use crate::types::request::Versioned;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;

/// What the final reads say about the acknowledged writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lost {
    /// Keys of which it is known whether something is missing.
    pub judged: usize,
    /// Keys of which it is not: an unknown outcome explains what is there, or they could not be read.
    pub open: usize,
    /// Writes that are missing.
    pub writes: u64,
    /// Each key with missing writes, in words.
    pub complaints: Vec<String>,
}

/// Compares what was acknowledged with what was read at the end.
pub fn lost(history: &[Observed], finals: &[Observed], layout: &Layout) -> Lost {
    let told = Told::of(history);
    let mut lost = Lost::default();
    for read in finals {
        let Asked::Get { key, .. } = &read.asked else {
            continue;
        };
        let Answer::Found(found, _) = &read.answer else {
            lost.open += 1;
            continue;
        };
        let kind = layout.kind_of(key).unwrap_or(Kind::Register);
        match told.judge(kind, key, found.as_ref()) {
            Judged::Kept => lost.judged += 1,
            Judged::Open => lost.open += 1,
            Judged::Missing { writes, complaint } => {
                lost.judged += 1;
                lost.writes += writes;
                lost.complaints.push(format!("{}: {complaint}", show(key)));
            }
        }
    }
    lost
}

enum Judged {
    Kept,
    Open,
    Missing { writes: u64, complaint: String },
}

fn missing(writes: u64, complaint: String) -> Judged {
    Judged::Missing { writes, complaint }
}

/// What clients were told of one key.
#[derive(Default)]
struct OfKey {
    /// The acknowledged write with the highest stamp, and what it left; `None`: nothing.
    last: Option<(Timestamp, Option<Value>)>,
    /// Writes that may have happened, and what each would leave.
    unknown: Vec<Option<Value>>,
    /// Every acknowledged value.
    acknowledged: Vec<Value>,
}

#[derive(Default)]
struct Told {
    keys: BTreeMap<Key, OfKey>,
    /// Ranges that were removed, at their stamps.
    removed: Vec<(Timestamp, KeyRange)>,
    /// Ranges that may have been.
    maybe_removed: Vec<KeyRange>,
}

impl Told {
    fn of(history: &[Observed]) -> Told {
        let mut told = Told::default();
        for observed in history {
            let Asked::Write(write) = &observed.asked else {
                continue;
            };
            match &write.kind {
                WriteKind::Keys { operations, .. } => told.take_keys(operations, &observed.answer),
                WriteKind::Range { range, .. } => told.take_range(range, &observed.answer),
            }
        }
        told
    }

    fn take_keys(&mut self, operations: &[Operation], answer: &Answer) {
        for operation in operations {
            let (key, leaves) = match operation {
                Operation::Put { key, value } => (key, Some(value.clone())),
                Operation::Delete { key } => (key, None),
            };
            let of_key = self.keys.entry(key.clone()).or_default();
            match answer {
                Answer::Wrote(WriteOutcome::Done { version, .. }, _) => {
                    of_key.acknowledged.extend(leaves.clone());
                    let newer = of_key.last.as_ref().is_none_or(|(last, _)| last < version);
                    // A delete that found nothing has changed nothing and has no stamp.
                    if newer && *version > Timestamp::ZERO {
                        of_key.last = Some((*version, leaves));
                    }
                }
                Answer::Unknown => of_key.unknown.push(leaves),
                Answer::Wrote(..)
                | Answer::Refused
                | Answer::Found(..)
                | Answer::Scanned { .. } => {}
            }
        }
    }

    fn take_range(&mut self, range: &KeyRange, answer: &Answer) {
        match answer {
            Answer::Wrote(
                WriteOutcome::Done {
                    version, resume, ..
                },
                _,
            ) => {
                let mut removed = range.clone();
                removed.end = resume.clone().or(removed.end);
                self.removed.push((*version, removed));
            }
            Answer::Unknown => self.maybe_removed.push(range.clone()),
            Answer::Wrote(..) | Answer::Refused | Answer::Found(..) | Answer::Scanned { .. } => {}
        }
    }

    fn judge(&self, kind: Kind, key: &Key, found: Option<&Versioned>) -> Judged {
        let nothing = OfKey::default();
        let of_key = self.keys.get(key).unwrap_or(&nothing);
        match kind {
            Kind::Register | Kind::Pair | Kind::Span => self.judge_register(key, of_key, found),
            Kind::Counter => judge_counter(of_key, found),
            Kind::List | Kind::Set => judge_elements(of_key, found),
        }
    }

    fn judge_register(&self, key: &Key, of_key: &OfKey, found: Option<&Versioned>) -> Judged {
        let removed = self.removed.iter();
        let removed = removed.filter(|(_, range)| range.contains(key));
        let removed = removed.map(|(version, _)| (*version, None)).max();
        let last = of_key.last.clone().max(removed);
        let Some((stamp, left)) = last else {
            return match found {
                None => Judged::Kept,
                Some(_) if of_key.unknown.is_empty() => {
                    missing(1, "is there, though nobody wrote it".to_owned())
                }
                Some(_) => Judged::Open,
            };
        };
        match found {
            Some(found) if found.version > stamp => {
                if of_key.unknown.contains(&Some(found.value.clone())) {
                    return Judged::Open;
                }
                let value = show(&found.value);
                missing(
                    1,
                    format!("holds {value}, which nobody wrote at {stamp} or after"),
                )
            }
            Some(found) if Some(&found.value) == left.as_ref() && found.version == stamp => {
                Judged::Kept
            }
            Some(found) => {
                let (value, version) = (show(&found.value), found.version);
                let left = left.map_or("nothing".to_owned(), |left| show(&left));
                missing(
                    1,
                    format!("holds {value} of {version}; {left} was acknowledged at {stamp}"),
                )
            }
            None if left.is_none() => Judged::Kept,
            None if self.may_be_removed(key, of_key) => Judged::Open,
            None => {
                let left = left.map_or("nothing".to_owned(), |left| show(&left));
                missing(1, format!("is absent; {left} was acknowledged at {stamp}"))
            }
        }
    }

    fn may_be_removed(&self, key: &Key, of_key: &OfKey) -> bool {
        let mut ranges = self.maybe_removed.iter();
        of_key.unknown.contains(&None) || ranges.any(|range| range.contains(key))
    }
}

fn judge_counter(of_key: &OfKey, found: Option<&Versioned>) -> Judged {
    let acknowledged = of_key.acknowledged.len() as u64;
    let most = acknowledged + of_key.unknown.len() as u64;
    match number_in(found.map(|found| &found.value)) {
        None => missing(acknowledged.max(1), "holds no number".to_owned()),
        Some(number) if number < acknowledged => missing(
            acknowledged - number,
            format!("counted {number}; {acknowledged} were acknowledged"),
        ),
        Some(number) if number > most => missing(
            number - most,
            format!("counted {number}; at most {most} were asked for"),
        ),
        Some(_) => Judged::Kept,
    }
}

fn judge_elements(of_key: &OfKey, found: Option<&Versioned>) -> Judged {
    let there: BTreeSet<&[u8]> = elements(found.map(|found| &found.value))
        .into_iter()
        .collect();
    let acknowledged = of_key.acknowledged.iter();
    let acknowledged = acknowledged.flat_map(|value| elements(Some(value)));
    let missed: BTreeSet<&[u8]> = acknowledged
        .filter(|element| !there.contains(element))
        .collect();
    let Some(first) = missed.first() else {
        return Judged::Kept;
    };
    let complaint = format!(
        "{} elements that were acknowledged are missing, among them {}",
        missed.len(),
        first.escape_ascii()
    );
    missing(missed.len() as u64, complaint)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::testkit::mix::model::ANSWERED;
    use crate::testkit::observed::Moment;
    use crate::types::RequestId;
    use crate::types::request::ReadKind;
    use crate::types::request::Write;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn observed(asked: Asked, answer: Answer) -> Observed {
        Observed {
            client: 0,
            asked,
            began: Moment(0),
            ended: Moment(1),
            answer,
        }
    }

    /// `k=v@7` was acknowledged at 7, `k=v?` is unknown, `k@7` and `k?` are deletes.
    fn write(text: &str) -> Observed {
        let unknown = text.strip_suffix('?');
        let (what, version) = match unknown {
            Some(what) => (what, 0),
            None => {
                let (what, version) = text.rsplit_once('@').unwrap();
                (what, version.parse().unwrap())
            }
        };
        let operation = match what.split_once('=') {
            Some((key, value)) => Operation::Put {
                key: bytes(key),
                value: bytes(value),
            },
            None => Operation::Delete { key: bytes(what) },
        };
        let kind = WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![operation],
        };
        let answer = match unknown {
            Some(_) => Answer::Unknown,
            None => done(version, None),
        };
        let id = RequestId::new(1, [0; 10]);
        observed(Asked::Write(Write { id, kind }), answer)
    }

    fn done(version: u64, resume: Option<&str>) -> Answer {
        let outcome = WriteOutcome::Done {
            version: Timestamp(version),
            deleted: 0,
            resume: resume.map(bytes),
        };
        Answer::Wrote(outcome, ANSWERED)
    }

    /// `k=v@7`, or `k` where it is absent.
    fn read(text: &str) -> Observed {
        let (key, found) = match text.split_once('=') {
            None => (text, None),
            Some((key, rest)) => {
                let (value, version) = rest.rsplit_once('@').unwrap();
                let version = Timestamp(version.parse().unwrap());
                let value = bytes(value);
                (key, Some(Versioned { value, version }))
            }
        };
        let asked = Asked::Get {
            key: bytes(key),
            read: ReadKind::Linearizable,
        };
        observed(asked, Answer::Found(found, ANSWERED))
    }

    #[track_caller]
    fn check(writes: &str, found: &str, expected: &str) {
        let history: Vec<Observed> = writes.split_whitespace().map(write).collect();
        let lost = lost(&history, &[read(found)], &Layout::new(""));
        let said = match (lost.writes, lost.open) {
            (0, 0) => "kept".to_owned(),
            (0, _) => "open".to_owned(),
            (writes, _) => format!("{writes} missing: {}", lost.complaints[0]),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn the_last_acknowledged_write_of_a_register_is_there() {
        check("reg/1=a@5 reg/1=b@7", "reg/1=b@7", "kept");
        check("reg/1=b@7 reg/1=a@5", "reg/1=b@7", "kept");
        check(
            "reg/1=a@5 reg/1=b@7",
            "reg/1=a@5",
            "1 missing: reg/1: holds a of 0.5; b was acknowledged at 0.7",
        );
        check(
            "reg/1=a@5",
            "reg/1",
            "1 missing: reg/1: is absent; a was acknowledged at 0.5",
        );
        check("reg/1=a@5 reg/1@7", "reg/1", "kept");
        check("reg/1=a@5 reg/1@0", "reg/1=a@5", "kept");
        check(
            "reg/1=a@5 reg/1@7",
            "reg/1=a@5",
            "1 missing: reg/1: holds a of 0.5; nothing was acknowledged at 0.7",
        );
    }

    #[test]
    fn an_unknown_write_explains_what_it_could_have_left() {
        check("reg/1=a@5 reg/1=b?", "reg/1=b@9", "open");
        check("reg/1=a@5 reg/1=b?", "reg/1=a@5", "kept");
        check("reg/1=a@5 reg/1?", "reg/1", "open");
        check(
            "reg/1=a@5 reg/1=b?",
            "reg/1=c@9",
            "1 missing: reg/1: holds c, which nobody wrote at 0.5 or after",
        );
        check(
            "reg/1=a@5 reg/1=b?",
            "reg/1",
            "1 missing: reg/1: is absent; a was acknowledged at 0.5",
        );
        check(
            "",
            "reg/1=a@5",
            "1 missing: reg/1: is there, though nobody wrote it",
        );
    }

    #[test]
    fn a_removed_range_ends_where_it_says() {
        let range = KeyRange {
            start: bytes("span/0"),
            end: Some(bytes("span/9")),
        };
        let remove = |answer| {
            let id = RequestId::new(1, [0; 10]);
            let range = range.clone();
            let kind = WriteKind::Range { range, limit: 2 };
            observed(Asked::Write(Write { id, kind }), answer)
        };
        let judge = |answer: Answer, found: &str| {
            let history = [write("span/3=a@5"), write("span/7=a@5"), remove(answer)];
            lost(&history, &[read(found)], &Layout::new("")).writes
        };
        assert_eq!(judge(done(9, Some("span/4")), "span/3"), 0);
        assert_eq!(judge(done(9, Some("span/4")), "span/3=a@5"), 1);
        assert_eq!(judge(done(9, Some("span/4")), "span/7=a@5"), 0);
        assert_eq!(judge(done(9, Some("span/4")), "span/7"), 1);
        assert_eq!(judge(done(9, None), "span/7"), 0);
        assert_eq!(judge(Answer::Unknown, "span/7"), 0);
        assert_eq!(judge(Answer::Refused, "span/7"), 1);
    }

    #[test]
    fn a_counter_has_counted_what_was_acknowledged_and_no_more_than_was_asked() {
        check("count/1=1@5 count/1=2@7", "count/1=2@7", "kept");
        check("count/1=1@5 count/1=2?", "count/1=2@7", "kept");
        check(
            "count/1=1@5 count/1=2@7 count/1=3@8",
            "count/1=1@5",
            "2 missing: count/1: counted 1; 3 were acknowledged",
        );
        check(
            "count/1=1@5 count/1=2?",
            "count/1=3@9",
            "1 missing: count/1: counted 3; at most 2 were asked for",
        );
    }

    #[test]
    fn a_list_has_every_element_that_was_acknowledged() {
        let value = |text: &str| bytes(&text.replace('+', " "));
        let history = ["list/1/0=a@5", "list/1/0=a+b@6"].map(|text| {
            let mut write = write(text);
            if let Asked::Write(write) = &mut write.asked
                && let WriteKind::Keys { operations, .. } = &mut write.kind
                && let Operation::Put { value: put, .. } = &mut operations[0]
            {
                *put = value(str::from_utf8(put).unwrap());
            }
            write
        });
        let judge = |found: &str| {
            let mut read = read("list/1/0=x@9");
            if let Answer::Found(Some(versioned), _) = &mut read.answer {
                versioned.value = value(found);
            }
            lost(&history, &[read], &Layout::new("")).writes
        };
        assert_eq!(
            (judge("a+b"), judge("a+b+c"), judge("a"), judge("c")),
            (0, 0, 1, 2)
        );
    }

    #[test]
    fn a_key_that_could_not_be_read_is_open() {
        let asked = Asked::Get {
            key: bytes("reg/1"),
            read: ReadKind::Linearizable,
        };
        let reads = [observed(asked, Answer::Unknown)];
        assert_eq!(
            lost(&[write("reg/1=a@5")], &reads, &Layout::new("")).open,
            1
        );
    }
}
