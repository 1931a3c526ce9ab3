//! Long scans: what is written meanwhile neither changes what they see nor cuts them off.

#![allow(clippy::unwrap_used)]

mod rack;

use quorate::env::rng::Chance;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::RequestId;
use quorate::types::Timestamp;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::wire::request::Page;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Scan;
use rack::NODES;
use rack::Rack;
use rack::cases::play;
use rack::facts::Facts;

const KEYS: [&str; 3] = ["a", "b", "c"];
/// Longer than what is kept of the past.
const LONG_MS: u64 = 3_600_000;

fn put(rack: &Rack, key: &str, value: &str) -> Write {
    let operation = Operation::Put {
        key: Key::copy_from_slice(key.as_bytes()),
        value: value.to_owned().into(),
    };
    Write {
        id: RequestId::new(rack.clock.wall_ms(), Chance.bytes()),
        kind: WriteKind::Keys {
            conditions: Vec::new(),
            operations: vec![operation],
        },
    }
}

/// One key of what is left.
async fn portion(rack: &Rack, node: usize, earlier: Option<Page>) -> Page {
    let (range, cut) = match earlier {
        None => (KeyRange::ALL, None),
        Some(earlier) => (earlier.rest.unwrap(), earlier.rest_cut),
    };
    let scan = Scan {
        range,
        keys_max: 1,
        bytes_max: 1_024,
        reverse: false,
        keys_only: false,
        read: ReadKind::Linearizable,
        cut,
    };
    match rack.ask_from(node, Request::Scan(scan)).await {
        Response::Scan(page) => page,
        other => unreachable!("a scan is answered as one, not with {other:?}"),
    }
}

/// The stamp of the last write is the only one that a quiet shard has, and by then older than anything it keeps.
#[test]
fn a_scan_that_begins_when_nobody_has_written_for_long_outlives_the_writes_that_follow() {
    play(async {
        let (rack, mut facts) = (Rack::start().await, Facts::default());
        // Some lead and some follow.
        for node in NODES {
            let first = KEYS.map(|key| put(&rack, key, "first"));
            facts.write(&rack, &first).await;
            rack.clock.advance_ms(LONG_MS);
            let recent = Timestamp::from_wall(rack.clock.wall_ms() - LONG_MS / 2);
            let mut page = portion(&rack, node, None).await;
            assert!(page.as_of > recent, "n{node} begins with an old stamp");
            let as_of = page.as_of;
            let mut found = Vec::new();
            loop {
                assert_eq!(page.as_of, as_of);
                let items = page.items.iter();
                found.extend(items.map(|item| (item.key.clone(), item.versioned.value.clone())));
                if page.rest.is_none() {
                    break;
                }
                let second = KEYS.map(|key| put(&rack, key, "second"));
                facts.write(&rack, &second).await;
                page = portion(&rack, node, Some(page)).await;
            }
            assert_eq!(found, KEYS.map(|key| (key.into(), "first".into())));
        }
    });
}
