//! What was written to a rack and how it was answered, and what each replica must know because of that.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use quorate::env::clock::Clock;
use quorate::env::rng::Chance;
use quorate::node::replica::Replica;
use quorate::shard::ShardReader;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::RequestId;
use quorate::types::Timestamp;
use quorate::types::Value;
use quorate::types::request::Condition;
use quorate::types::request::Operation;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::wire::request::Get;
use quorate::wire::request::Request;
use quorate::wire::request::Response;

use crate::rack::Rack;

/// Long enough to be stored in pieces.
const LONG_BYTES: usize = 100 * 1024;

/// The versions of a key, oldest first; `None` where it was deleted.
type Versions = Vec<(Timestamp, Option<Value>)>;

/// Writes that were answered.
#[derive(Default)]
pub struct Facts {
    answered: Vec<(Write, WriteOutcome)>,
}

impl Facts {
    /// Writes all side by side until they are answered. A repeat must be answered as before.
    pub async fn write(&mut self, rack: &Rack, writes: &[Write]) {
        let asked = writes
            .iter()
            .map(|write| rack.ask(Request::Write(write.clone())));
        let answers = join_all(asked).await;
        for (write, answer) in writes.iter().zip(answers) {
            let Response::Write(outcome, _) = answer else {
                unreachable!("a write is answered as one");
            };
            self.record(write, outcome);
        }
    }

    /// Sends everything again: nothing may happen twice, and each answer is the first one.
    pub async fn repeat(&mut self, rack: &Rack) {
        let writes: Vec<_> = self
            .answered
            .iter()
            .map(|(write, _)| write.clone())
            .collect();
        self.write(rack, &writes).await;
    }

    fn record(&mut self, write: &Write, outcome: WriteOutcome) {
        match self.answered.iter().find(|(known, _)| known.id == write.id) {
            Some((_, known)) => assert_eq!(*known, outcome, "a repeat of {write:?}"),
            None => self.answered.push((write.clone(), outcome)),
        }
    }

    /// What a replica's newest versions and its history say, for each key that it has.
    pub fn check(&self, reader: &ShardReader) -> Result<(), String> {
        let range = reader.descriptor().range;
        for (key, versions) in self.versions() {
            if range.contains(&key) {
                check_key(reader, &key, &versions)?;
            }
        }
        Ok(())
    }

    /// A node's replica says the newest value of a key.
    pub async fn read(
        &self,
        rack: &Rack,
        node: usize,
        replica: Replica,
        key: Key,
    ) -> Result<(), String> {
        let get = Get {
            key: key.clone(),
            read: ReadKind::Linearizable,
        };
        let read = rack.on(node, async move { replica.get(get).await });
        let read = read.await.ok_or("the node has ended")?;
        let (found, _) = read.map_err(|error| error.to_string())?;
        let found = found.map(|found| found.value);
        assert_eq!(found, self.newest(&key), "{key:?} on n{}", node + 1);
        Ok(())
    }

    /// The newest value of a key.
    fn newest(&self, key: &[u8]) -> Option<Value> {
        let versions = self.versions().remove(key)?;
        versions.last().and_then(|(_, value)| value.clone())
    }

    fn versions(&self) -> BTreeMap<Key, Versions> {
        let mut all: BTreeMap<Key, Versions> = BTreeMap::new();
        for (write, outcome) in &self.answered {
            // What found nothing to delete, or a condition that did not hold, has made no version.
            let version = match outcome {
                WriteOutcome::Done { version, .. } if *version != Timestamp::ZERO => *version,
                _ => continue,
            };
            match &write.kind {
                WriteKind::Keys { operations, .. } => {
                    for operation in operations {
                        let versions = all.entry(operation.key().clone()).or_default();
                        versions.push((version, value_of(operation)));
                    }
                }
                WriteKind::Range { range, .. } => {
                    let inside = all.iter_mut().filter(|(key, _)| range.contains(key));
                    inside.for_each(|(_, versions)| versions.push((version, None)));
                }
            }
        }
        all
    }
}

fn value_of(operation: &Operation) -> Option<Value> {
    match operation {
        Operation::Put { value, .. } => Some(value.clone()),
        Operation::Delete { .. } => None,
    }
}

fn check_key(reader: &ShardReader, key: &Key, versions: &Versions) -> Result<(), String> {
    let mut before = None;
    for (version, value) in versions {
        expect(reader, key, Timestamp(version.0 - 1), &before)?;
        expect(reader, key, *version, value)?;
        before = value.clone();
    }
    expect(reader, key, reader.last_stamp(), &before)
}

fn expect(
    reader: &ShardReader,
    key: &Key,
    at: Timestamp,
    expected: &Option<Value>,
) -> Result<(), String> {
    let read = reader.get(key, Some(at));
    let read = read.map_err(|error| format!("read {key:?} at {at}: {error}"))?;
    let found = read.value.into_option().map(|found| found.value);
    match found == *expected {
        true => Ok(()),
        false => Err(format!(
            "{key:?} at {at} has {:?} bytes, not {:?}",
            found.map(|value| value.len()),
            expected.as_ref().map(Bytes::len)
        )),
    }
}

fn write(kind: WriteKind) -> Write {
    let id = RequestId::new(Clock::system().wall_ms(), Chance.bytes());
    Write { id, kind }
}

fn put(key: &str, value: impl Into<Value>) -> Operation {
    Operation::Put {
        key: Key::copy_from_slice(key.as_bytes()),
        value: value.into(),
    }
}

fn delete(key: &str) -> Operation {
    Operation::Delete {
        key: Key::copy_from_slice(key.as_bytes()),
    }
}

fn keys(operations: Vec<Operation>) -> Write {
    write(WriteKind::Keys {
        conditions: Vec::new(),
        operations,
    })
}

/// First values for keys that begin with `half`.
pub fn first_writes(half: &str) -> Vec<Write> {
    let key = |name: &str| format!("{half}/{name}");
    vec![
        keys(vec![put(&key("value"), "1"), put(&key("both"), "1")]),
        keys(vec![put(&key("long"), vec![b'a'; LONG_BYTES])]),
        keys(vec![put(&key("gone"), "1")]),
        keys(vec![put(&key("range/1"), "1"), put(&key("range/2"), "1")]),
    ]
}

/// Writes of every kind to the same keys: values are replaced and deleted, a condition does not hold, a
/// delete finds nothing.
pub fn second_writes(half: &str) -> Vec<Write> {
    let key = |name: &str| format!("{half}/{name}");
    let refused = WriteKind::Keys {
        conditions: vec![Condition::Exists {
            key: Key::from(key("nowhere")),
        }],
        operations: vec![put(&key("refused"), "never")],
    };
    let range = WriteKind::Range {
        range: KeyRange::of_prefix(key("range").as_bytes()),
        limit: 10,
    };
    vec![
        keys(vec![put(&key("value"), "2")]),
        keys(vec![put(&key("long"), vec![b'b'; LONG_BYTES / 2])]),
        keys(vec![delete(&key("gone")), put(&key("both"), "2")]),
        keys(vec![delete(&key("absent"))]),
        write(refused),
        write(range),
    ]
}

/// One more write to a half.
pub fn late_write(half: &str) -> Write {
    keys(vec![
        put(&format!("{half}/late"), "late"),
        put(&format!("{half}/value"), "3"),
    ])
}
