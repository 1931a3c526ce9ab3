//! The checker and the slow obvious one say the same of small histories, right ones and ones that were
//! tampered with. Decides only.

use crate::env::rng::Seeded;
use crate::testkit::linear::Options;
use crate::testkit::linear::Verdict;
use crate::testkit::linear::check;
use crate::testkit::linear::evidence::alone;
use crate::testkit::linear::evidence::made_version;
use crate::testkit::linear::evidence::puts;
use crate::testkit::linear::evidence::seen;
use crate::testkit::linear::sample::Shape;
use crate::testkit::linear::sample::sample;
use crate::testkit::linear::tests::slow;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::Timestamp;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::WriteOutcome;

const HISTORIES: u64 = 30_000;

#[test]
fn the_checker_and_the_slow_one_agree_on_small_histories() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..HISTORIES {
        let mut chance = Seeded::new(seed);
        let mut history = sample(&shape(&mut chance), seed);
        let tampered = chance.below(4) * (1 + chance.below(2));
        for _ in 0..tampered {
            tamper(&mut history, &mut chance);
        }
        if history.iter().any(|observed| alone(observed).is_some()) {
            continue;
        }
        let expected = slow::is_linearizable(&history);
        assert!(
            expected || tampered > 0,
            "seed {seed}: the sample is wrong\n{history:#?}"
        );
        match check(&history, &Options::default()) {
            Verdict::Linearizable(_) => {
                assert!(expected, "seed {seed}: wrong, called right\n{history:#?}")
            }
            Verdict::Inconclusive { .. } => panic!("seed {seed}: too hard\n{history:#?}"),
            Verdict::Violated(violation) => {
                let ordered = violation.unordered_parts == 0;
                assert_eq!(ordered, expected, "seed {seed}\n{violation}\n{history:#?}");
                for unordered in &violation.unordered {
                    let part = &unordered.requests;
                    assert!(
                        !slow::is_linearizable(part),
                        "seed {seed}\n{violation}\n{history:#?}"
                    );
                }
            }
        }
        if expected { right += 1 } else { wrong += 1 }
    }
    assert!(
        right > 10_000 && wrong > 6_000,
        "{right} right and {wrong} wrong ones"
    );
}

fn shape(chance: &mut Seeded) -> Shape {
    let keys = 1 + (chance.below(3) * chance.below(2)) as usize;
    let mut some = |most: u64| chance.below(2) * chance.below(most);
    let mut shape = Shape {
        requests: 0,
        clients: 0,
        keys,
        values: some(3),
        unknown: some(600),
        wide: some(400),
        scans: some(300),
        range_deletes: some(200),
    };
    shape.requests = 3 + chance.below(5) as usize;
    shape.clients = 1 + chance.below(4) as u32;
    shape
}

/// Changes one request or its answer a little.
fn tamper(history: &mut [Observed], chance: &mut Seeded) {
    let found = versions(history);
    let other = |chance: &mut Seeded| {
        let at = chance.below(found.len() as u64 + 1) as usize;
        found.get(at).cloned()
    };
    let is_read = |observed: &Observed| match observed.answer {
        Answer::Found(..) | Answer::Scanned { .. } => true,
        Answer::Wrote(..) | Answer::Unknown | Answer::Refused => false,
    };
    let mut number = chance.below(history.len() as u64) as usize;
    let reads: Vec<usize> = (0..history.len())
        .filter(|n| is_read(&history[*n]))
        .collect();
    if !reads.is_empty() && chance.below(6) > 0 {
        number = reads[chance.below(reads.len() as u64) as usize];
    }
    let observed = &mut history[number];
    match chance.below(20) {
        0 => {
            let later = chance.below(3_000);
            observed.began.0 += later;
            observed.ended.0 += later;
            return;
        }
        1 => {
            observed.ended = Moment(observed.ended.0.max(observed.began.0 + 1) - 1);
            return;
        }
        2 => {
            observed.began = Moment(observed.began.0.saturating_sub(1_000));
            return;
        }
        3 => {
            observed.answer = match chance.below(2) {
                0 => Answer::Refused,
                _ => Answer::Unknown,
            };
            return;
        }
        _ => {}
    }
    match &mut observed.answer {
        Answer::Found(found, _) => {
            let before = found.clone();
            *found = other(chance);
            if *found == before {
                *found = other(chance);
            }
        }
        Answer::Scanned { entries, .. } => {
            let at = chance.below(entries.len() as u64 + 1) as usize;
            match (entries.get_mut(at), other(chance)) {
                (Some(entry), Some(other)) => entry.versioned = other,
                (Some(_), None) => drop(entries.remove(at)),
                (None, _) => {}
            }
        }
        Answer::Wrote(
            WriteOutcome::Done {
                version, deleted, ..
            },
            _,
        ) => match chance.below(4) {
            0 if *deleted > 1 => *deleted -= 1,
            1 if *deleted > 0 => *deleted += 1,
            _ if *version != Timestamp::ZERO => *version = Timestamp(1 + chance.below(9)),
            _ => {}
        },
        Answer::Wrote(WriteOutcome::ConditionFailed { actual, .. }, _) => {
            *actual = Timestamp(chance.below(9));
        }
        _ => {}
    }
}

/// Every value with its version that anybody saw or wrote.
fn versions(history: &[Observed]) -> Vec<Versioned> {
    let mut found = Vec::new();
    for observed in history {
        let read = seen(observed, ReadKind::Linearizable).into_iter();
        found.extend(read.map(|(_, versioned)| versioned.clone()));
        let Some(version) = made_version(observed) else {
            continue;
        };
        let written = puts(observed).map(|(_, value)| Versioned {
            value: value.clone(),
            version,
        });
        found.extend(written);
    }
    found
}
