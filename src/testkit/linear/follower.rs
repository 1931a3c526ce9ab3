//! What a read of a follower's own state must keep to. Decides only.
//!
//! Such a read is no part of any order: a follower may be behind, and one that was restarted may even go
//! back. But it never makes anything up: each value with its version was written by somebody, and not
//! after the answer was there. And since one replica answers from one position of its log, a scan never
//! shows a part of a write of several keys beside something older that this write had replaced.

use std::collections::HashMap;

use crate::testkit::linear::compile::Effective;
use crate::testkit::linear::compile::effective;
use crate::testkit::linear::evidence::Writers;
use crate::testkit::linear::evidence::seen;
use crate::testkit::linear::show;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::Timestamp;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::WriteKind;

/// Returns what is wrong with the reads of followers.
pub fn check_followers(history: &[Observed]) -> Vec<String> {
    let writers = Writers::of(history);
    let makers = makers(history);
    let mut complaints = Vec::new();
    for observed in history {
        let read = seen(observed, ReadKind::Follower);
        for (key, found) in &read {
            let against = writers.against(key, found, observed.ended);
            complaints
                .extend(against.map(|said| format!("follower: {said}: {}", show::line(observed))));
        }
        let versions = read.iter().map(|(key, found)| (*key, found.version));
        if is_torn(&versions.collect::<Vec<_>>(), &makers) {
            complaints.push(format!(
                "follower: a part of a write: {}",
                show::line(observed)
            ));
        }
    }
    complaints
}

type Makers<'h> = HashMap<(&'h Key, Timestamp), &'h Observed>;

fn makers(history: &[Observed]) -> Makers<'_> {
    let mut makers = HashMap::new();
    for observed in history {
        let Effective::Done { version, .. } = effective(&observed.answer) else {
            continue;
        };
        for key in keys_put(observed) {
            makers.insert((key, version), observed);
        }
    }
    makers
}

fn keys_put(observed: &Observed) -> Vec<&Key> {
    let Asked::Write(write) = &observed.asked else {
        return Vec::new();
    };
    let WriteKind::Keys { operations, .. } = &write.kind else {
        return Vec::new();
    };
    let puts = operations.iter();
    puts.filter(|operation| matches!(operation, Operation::Put { .. }))
        .map(Operation::key)
        .collect()
}

/// Whether a key is shown as a write left it, beside another key of that write as it was left by one
/// that had ended before this one began.
fn is_torn(read: &[(&Key, Timestamp)], makers: &Makers<'_>) -> bool {
    let shown: HashMap<&Key, Timestamp> = read.iter().copied().collect();
    read.iter().any(|(key, version)| {
        let Some(newer) = makers.get(&(*key, *version)) else {
            return false;
        };
        keys_put(newer).into_iter().any(|other| {
            let beside = shown
                .get(other)
                .and_then(|version| makers.get(&(other, *version)));
            beside.is_some_and(|older| older.ended < newer.began)
        })
    })
}
