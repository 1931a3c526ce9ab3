//! One client of a mix: sends one request at a time and notes what it asked and was told.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::client::Kv;
use crate::client::Sender;
use crate::client::kv::ReadOptions;
use crate::error::Effect;
use crate::error::Result;
use crate::testkit::mix::Options;
use crate::testkit::mix::Progress;
use crate::testkit::mix::Target;
use crate::testkit::mix::choice::Action;
use crate::testkit::mix::choice::Choice;
use crate::testkit::mix::choice::Entry;
use crate::testkit::mix::choice::Expectation;
use crate::testkit::mix::layout::ELEMENTS_MAX;
use crate::testkit::mix::layout::Kind;
use crate::testkit::mix::layout::Layout;
use crate::testkit::mix::layout::counter_value;
use crate::testkit::mix::layout::elements;
use crate::testkit::mix::layout::number_in;
use crate::testkit::mix::layout::with_element;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Scan;

/// Bytes of one portion of a scan; the number of keys bounds it.
const SCAN_BYTES_MAX: u32 = 1024 * 1024;
/// Portions of one scan.
const PORTIONS_MAX: usize = 8;

pub(super) struct Client {
    number: u32,
    sender: Arc<Sender>,
    kv: Kv,
    target: Target,
    options: Options,
    layout: Layout,
    choice: Choice,
    stopped: watch::Receiver<bool>,
    progress: watch::Sender<Progress>,
    /// What was seen last of each key; `None` inside: absent.
    seen: BTreeMap<Key, Option<Versioned>>,
    /// The list or set that is being filled, by kind and number.
    filling: BTreeMap<(bool, u64), u64>,
    /// Writes so far: part of each value, so that no two are equal.
    written: u64,
    history: Vec<Observed>,
}

impl Client {
    pub(super) fn new(
        number: u32,
        sender: Arc<Sender>,
        target: Target,
        options: Options,
        choice: Choice,
        stopped: watch::Receiver<bool>,
        progress: watch::Sender<Progress>,
    ) -> Client {
        Client {
            number,
            kv: Kv::new(Arc::clone(&sender)),
            sender,
            target,
            layout: Layout::new(&options.prefix),
            options,
            choice,
            stopped,
            progress,
            seen: BTreeMap::new(),
            filling: BTreeMap::new(),
            written: 0,
            history: Vec::new(),
        }
    }

    /// Until it is stopped.
    pub(super) async fn run(mut self) -> Vec<Observed> {
        while !self.is_stopped() {
            let action = self.choice.next_action();
            self.act(action).await;
            self.rest().await;
        }
        self.history
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Get(key, Entry::Usual) => self.get(&key).await,
            Action::Get(key, Entry::Any) => self.get_anywhere(&key, ReadKind::Linearizable).await,
            Action::FollowerGet(key) => self.get_anywhere(&key, ReadKind::Follower).await,
            Action::BatchGet(keys) => self.batch_get(keys).await,
            Action::Put(key) => self.put(key, Vec::new()).await,
            Action::Delete(key) => {
                self.write_keys(Vec::new(), vec![Operation::Delete { key }])
                    .await;
            }
            Action::Compare {
                key,
                on,
                fresh,
                delete,
            } => self.compare(key, on, fresh, delete).await,
            Action::Count(key) => self.count(key).await,
            Action::Append(kind, number) => self.append(kind, number).await,
            Action::Together {
                keys,
                condition,
                delete,
            } => self.write_together(keys, condition, delete).await,
            Action::Scan {
                range,
                portion,
                reverse,
            } => self.scan(range, portion, reverse).await,
            Action::DeleteRange(range, limit) => {
                self.write(WriteKind::Range { range, limit }).await;
            }
        }
    }

    /// Half to one and a half of the pause, and never nothing: a cluster that refuses at once must not
    /// be asked without end in one moment.
    async fn rest(&mut self) {
        let pause = u64::try_from(self.options.pause.as_micros()).unwrap_or(u64::MAX);
        let drawn = pause / 2 + self.choice.below(pause.saturating_add(1));
        let drawn = Duration::from_micros(drawn).max(Duration::from_millis(1));
        let _ = until_stopped(&mut self.stopped, tokio::time::sleep(drawn)).await;
    }

    async fn get(&mut self, key: &Key) {
        let read = ReadKind::Linearizable;
        let get = Request::Get(Get {
            key: key.clone(),
            read,
        });
        let began = self.target.moment();
        let answer = self.send(get).await;
        self.note_get(key, read, began, answer);
    }

    /// Of one node, by chance, and not of another one when it does not answer.
    async fn get_anywhere(&mut self, key: &Key, read: ReadKind) {
        let get = Request::Get(Get {
            key: key.clone(),
            read,
        });
        let addresses = self.sender.addresses();
        let drawn = self.choice.below(addresses.len() as u64);
        let address = &addresses[usize::try_from(drawn).unwrap_or_default()];
        let began = self.target.moment();
        let asked = self.sender.ask(address, get, self.options.attempt);
        let answer = until_stopped(&mut self.stopped, asked).await;
        self.note_get(key, read, began, answer);
    }

    fn note_get(
        &mut self,
        key: &Key,
        read: ReadKind,
        began: Moment,
        answer: Option<Result<Response>>,
    ) {
        let answer = match answer {
            Some(Ok(Response::Get(found, answered))) => {
                if read == ReadKind::Linearizable {
                    self.seen.insert(key.clone(), found.clone());
                }
                Answer::Found(found, answered)
            }
            Some(Ok(_) | Err(_)) | None => Answer::Unknown,
        };
        let key = key.clone();
        self.note(Asked::Get { key, read }, began, answer);
    }

    /// Each key is a get of its own; where several shards have answered, who is said to have answered
    /// is the first of them.
    async fn batch_get(&mut self, keys: Vec<Key>) {
        let options = ReadOptions {
            deadline: Some(self.options.patience),
            ..ReadOptions::default()
        };
        let began = self.target.moment();
        let asked = self.kv.batch_get(keys.clone(), options);
        let answer = until_stopped(&mut self.stopped, asked).await;
        let read = ReadKind::Linearizable;
        let Some(Ok(all)) = answer else {
            for key in keys {
                self.note(Asked::Get { key, read }, began, Answer::Unknown);
            }
            return;
        };
        for (key, found) in keys.into_iter().zip(all.found) {
            self.seen.insert(key.clone(), found.clone());
            let answer = Answer::Found(found, all.answered[0]);
            self.note(Asked::Get { key, read }, began, answer);
        }
    }

    async fn put(&mut self, key: Key, conditions: Vec<Condition>) {
        let value = self.next_value();
        self.write_keys(conditions, vec![Operation::Put { key, value }])
            .await;
    }

    async fn compare(&mut self, key: Key, on: Expectation, fresh: bool, delete: bool) {
        if fresh || !self.seen.contains_key(&key) {
            self.get(&key).await;
        }
        let Some(seen) = self.seen.get(&key).cloned() else {
            return;
        };
        let conditions = vec![expect(&key, on, seen)];
        if delete {
            self.write_keys(conditions, vec![Operation::Delete { key }])
                .await;
        } else {
            self.put(key, conditions).await;
        }
    }

    async fn count(&mut self, key: Key) {
        let Some(seen) = self.read_for_change(&key).await else {
            return;
        };
        let Some(number) = number_in(seen.as_ref().map(|seen| &seen.value)) else {
            return;
        };
        self.replace(key, seen, counter_value(number + 1)).await;
    }

    async fn append(&mut self, kind: Kind, number: u64) {
        let slot = (kind == Kind::List, number);
        let generation = *self.filling.entry(slot).or_default();
        let key = self.layout.collection(kind, number, generation);
        let Some(seen) = self.read_for_change(&key).await else {
            return;
        };
        let value = seen.as_ref().map(|seen| &seen.value);
        if elements(value).len() >= ELEMENTS_MAX {
            self.filling.insert(slot, generation + 1);
            return;
        }
        self.written += 1;
        let element = format!("c{}.{}", self.number, self.written);
        let value = with_element(kind, value, &element);
        self.replace(key, seen, value).await;
    }

    /// Reads a key that is about to be changed; `None` when it could not be read.
    async fn read_for_change(&mut self, key: &Key) -> Option<Option<Versioned>> {
        self.seen.remove(key);
        self.get(key).await;
        self.seen.get(key).cloned()
    }

    /// Writes a key if nobody else did since it was seen.
    async fn replace(&mut self, key: Key, seen: Option<Versioned>, value: Value) {
        let condition = expect(&key, Expectation::Version, seen);
        self.write_keys(vec![condition], vec![Operation::Put { key, value }])
            .await;
    }

    async fn write_together(&mut self, keys: Vec<Key>, condition: bool, delete: bool) {
        let first = keys[0].clone();
        let conditions = match self.seen.get(&first) {
            Some(seen) if condition => vec![expect(&first, Expectation::Version, seen.clone())],
            Some(_) | None => Vec::new(),
        };
        let value = self.next_value();
        let last = keys.len() - 1;
        let operations = keys.into_iter().enumerate().map(|(place, key)| {
            let value = value.clone();
            if delete && place == last {
                Operation::Delete { key }
            } else {
                Operation::Put { key, value }
            }
        });
        let operations = operations.collect();
        self.write_keys(conditions, operations).await;
    }

    async fn write_keys(&mut self, conditions: Vec<Condition>, operations: Vec<Operation>) {
        self.write(WriteKind::Keys {
            conditions,
            operations,
        })
        .await;
    }

    async fn write(&mut self, kind: WriteKind) {
        let id = self.sender.ids().next();
        let write = Write { id, kind };
        let began = self.target.moment();
        let answer = match self.send(Request::Write(write.clone())).await {
            Some(Ok(Response::Write(outcome, answered))) => {
                self.learn(&write, &outcome);
                Answer::Wrote(outcome, answered)
            }
            Some(Err(error)) if error.effect() == Effect::None => Answer::Refused,
            Some(Ok(_) | Err(_)) | None => {
                self.forget(&write);
                Answer::Unknown
            }
        };
        self.note(Asked::Write(write), began, answer);
    }

    fn learn(&mut self, write: &Write, outcome: &WriteOutcome) {
        let WriteKind::Keys { operations, .. } = &write.kind else {
            return;
        };
        let WriteOutcome::Done { version, .. } = outcome else {
            return self.forget(write);
        };
        for operation in operations {
            let seen = match operation {
                Operation::Put { value, .. } => Some(Versioned {
                    value: value.clone(),
                    version: *version,
                }),
                Operation::Delete { .. } => None,
            };
            self.seen.insert(operation.key().clone(), seen);
        }
    }

    /// What was seen of these keys is not worth a condition any more.
    fn forget(&mut self, write: &Write) {
        let WriteKind::Keys { operations, .. } = &write.kind else {
            return;
        };
        for operation in operations {
            self.seen.remove(operation.key());
        }
    }

    /// All portions of one cut: together they are one scan. Where a shard ends, so does the cut.
    async fn scan(&mut self, range: KeyRange, portion: u32, reverse: bool) {
        let began = self.target.moment();
        let mut scan = Scan {
            range: range.clone(),
            keys_max: portion,
            bytes_max: SCAN_BYTES_MAX,
            reverse,
            keys_only: false,
            read: ReadKind::Linearizable,
            cut: None,
        };
        let mut answer = Answer::Unknown;
        for _ in 0..PORTIONS_MAX {
            let Some(Ok(Response::Scan(page))) = self.send(Request::Scan(scan.clone())).await
            else {
                break;
            };
            let next = page.rest.clone().zip(page.rest_cut.clone());
            answer = with_portion(answer, page, &range, reverse);
            let Some((rest, cut)) = next else { break };
            scan.range = rest;
            scan.cut = Some(cut);
        }
        self.see(&answer);
        let asked = Asked::Scan {
            range,
            limit: u32::MAX,
            reverse,
            read: ReadKind::Linearizable,
        };
        self.note(asked, began, answer);
    }

    fn see(&mut self, answer: &Answer) {
        if let Answer::Scanned { entries, .. } = answer {
            for entry in entries {
                let seen = Some(entry.versioned.clone());
                self.seen.insert(entry.key.clone(), seen);
            }
        }
    }

    /// Sends a request to its end; `None` when the client was stopped before.
    async fn send(&mut self, request: Request) -> Option<Result<Response>> {
        let sent = self.sender.send(request, Some(self.options.patience));
        until_stopped(&mut self.stopped, sent).await
    }

    fn next_value(&mut self) -> Value {
        self.written += 1;
        let mut value = format!("c{}.{}", self.number, self.written).into_bytes();
        value.resize(value.len().max(self.options.value_bytes), b'.');
        Bytes::from(value)
    }

    fn note(&mut self, asked: Asked, began: Moment, answer: Answer) {
        self.progress.send_modify(|progress| match &answer {
            Answer::Wrote(WriteOutcome::Done { .. }, _) => {
                progress.answered += 1;
                progress.acknowledged += 1;
            }
            Answer::Found(..) | Answer::Scanned { .. } | Answer::Wrote(..) => {
                progress.answered += 1;
            }
            Answer::Unknown | Answer::Refused => progress.failed += 1,
        });
        self.history.push(Observed {
            client: self.number,
            asked,
            began,
            ended: self.target.moment(),
            answer,
        });
    }
}

/// What comes first: the answer, or the sign to stop.
async fn until_stopped<T>(
    stopped: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        _ = stopped.wait_for(|stopped| *stopped) => None,
    }
}

fn expect(key: &Key, on: Expectation, seen: Option<Versioned>) -> Condition {
    let key = key.clone();
    let absent = Condition::Version {
        key: key.clone(),
        version: Timestamp::ZERO,
    };
    match (on, seen) {
        (Expectation::Presence, _) => Condition::Exists { key },
        (Expectation::Absence, _) | (Expectation::Version | Expectation::Value, None) => absent,
        (Expectation::Version, Some(seen)) => Condition::Version {
            key,
            version: seen.version,
        },
        (Expectation::Value, Some(seen)) => Condition::Value {
            key,
            value: seen.value,
        },
    }
}

/// One answer out of the portions before and this one.
fn with_portion(before: Answer, page: Page, range: &KeyRange, reverse: bool) -> Answer {
    let mut all = match before {
        Answer::Scanned { entries, .. } => entries,
        Answer::Found(..) | Answer::Wrote(..) | Answer::Unknown | Answer::Refused => Vec::new(),
    };
    all.extend(page.items);
    Answer::Scanned {
        entries: all,
        covered: covered(range, page.rest.as_ref(), reverse),
        answered: page.answered,
    }
}

/// The part of a range that is done when `rest` is left.
fn covered(range: &KeyRange, rest: Option<&KeyRange>, reverse: bool) -> KeyRange {
    let mut covered = range.clone();
    match rest {
        None => {}
        Some(rest) if reverse => {
            // All that is left has an end, unless nothing was read.
            let start = rest.end.clone().or_else(|| range.end.clone());
            covered.start = start.unwrap_or_else(|| range.start.clone());
        }
        Some(rest) => covered.end = Some(rest.start.clone()),
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &str, end: &str) -> KeyRange {
        KeyRange {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Some(Bytes::copy_from_slice(end.as_bytes())),
        }
    }

    #[test]
    fn what_is_covered_is_what_is_not_left() {
        let all = range("a", "z");
        assert_eq!(covered(&all, None, false), all);
        assert_eq!(
            covered(&all, Some(&range("m", "z")), false),
            range("a", "m")
        );
        assert_eq!(covered(&all, Some(&range("a", "m")), true), range("m", "z"));
    }

    #[test]
    fn what_was_seen_is_what_is_expected() {
        let key = Bytes::from_static(b"k");
        let seen = Versioned {
            value: Bytes::from_static(b"v"),
            version: Timestamp(7),
        };
        let version = |version| Condition::Version {
            key: key.clone(),
            version,
        };
        let on_version = |seen| expect(&key, Expectation::Version, seen);
        assert_eq!(on_version(Some(seen.clone())), version(Timestamp(7)));
        assert_eq!(on_version(None), version(Timestamp::ZERO));
        let on_value = expect(&key, Expectation::Value, Some(seen.clone()));
        let value = seen.value.clone();
        let key = key.clone();
        assert_eq!(on_value, Condition::Value { key, value });
    }
}
