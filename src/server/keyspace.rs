//! Requests in the words of a keyspace as requests for stored keys, and answers the other way. Decides only.

use crate::error::Error;
use crate::error::Result;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::key::REQUEST_BYTES_MAX;
use crate::types::keyspace::Keyspace;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::walk::Walk;
use crate::wire::request::BatchGet;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Scan;
use crate::wire::request::Unordered;

/// Speaks for one keyspace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interpreter<'a>(pub &'a Keyspace);

impl Interpreter<'_> {
    /// A get of a stored key.
    pub(super) fn get(&self, get: Get) -> Result<Get> {
        Ok(Get {
            key: self.stored_key("key", &get.key)?,
            ..get
        })
    }

    /// A get of stored keys.
    pub(super) fn batch_get(&self, get: BatchGet) -> Result<BatchGet> {
        let keys = get.keys.iter().map(|key| self.stored_key("keys", key));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        check_size(keys.iter().map(Key::len).sum())?;
        Ok(BatchGet { keys, ..get })
    }

    /// A write of stored keys.
    pub(super) fn write(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
    ) -> Result<WriteKind> {
        let conditions = conditions.into_iter().map(|it| self.condition(it));
        let conditions = conditions.collect::<Result<Vec<_>>>()?;
        let operations = operations.into_iter().map(|it| self.operation(it));
        let operations = operations.collect::<Result<Vec<_>>>()?;
        let sizes = conditions.iter().map(|condition| match condition {
            Condition::Value { key, value } => key.len() + value.len(),
            Condition::Version { key, .. } | Condition::Exists { key } => key.len(),
        });
        let changes = operations.iter().map(|operation| match operation {
            Operation::Put { key, value } => key.len() + value.len(),
            Operation::Delete { key } => key.len(),
        });
        check_size(sizes.chain(changes).sum())?;
        Ok(WriteKind::Keys {
            conditions,
            operations,
        })
    }

    fn condition(&self, condition: Condition) -> Result<Condition> {
        let stored = self.stored_key("conditions.key", condition.key())?;
        Ok(match condition {
            Condition::Version { version, .. } => Condition::Version {
                key: stored,
                version,
            },
            Condition::Value { value, .. } => Condition::Value { key: stored, value },
            Condition::Exists { .. } => Condition::Exists { key: stored },
        })
    }

    fn operation(&self, operation: Operation) -> Result<Operation> {
        let stored = self.stored_key("operations.key", operation.key())?;
        Ok(match operation {
            Operation::Put { value, .. } => Operation::Put { key: stored, value },
            Operation::Delete { .. } => Operation::Delete { key: stored },
        })
    }

    /// Refuses a range whose bounds are no places between stored keys.
    pub(super) fn check_range(&self, range: &KeyRange) -> Result<()> {
        let bounds = [Some(&range.start), range.end.as_ref()];
        // The place right behind the longest key is one byte longer than a key.
        let lengths = bounds.into_iter().flatten().map(|bound| bound.len());
        let longest = lengths.max().unwrap_or(0);
        self.check_length("range", longest, KEY_BYTES_MAX + 1)
    }

    fn stored_key(&self, field: &str, key: &Key) -> Result<Key> {
        self.check_length(field, key.len(), KEY_BYTES_MAX)?;
        Ok(self.0.stored_key(key))
    }

    fn check_length(&self, field: &str, length: usize, max: usize) -> Result<()> {
        let overhead = self.0.overhead();
        if length + overhead <= max {
            return Ok(());
        }
        let reason = format!(
            "{length} bytes and {overhead} of keyspace {} are over the limit of {max}",
            self.0.name
        );
        Err(Error::invalid(field, reason))
    }

    /// What became of a write of stored keys.
    pub(super) fn outcome(&self, outcome: WriteOutcome) -> WriteOutcome {
        match outcome {
            WriteOutcome::Spanning { key } => WriteOutcome::Spanning {
                key: self.own_key(key),
            },
            other => other,
        }
    }

    /// Why a request for stored keys failed.
    pub(super) fn error(&self, error: Error) -> Error {
        match error {
            Error::Spanning { request, key } => Error::Spanning {
                request,
                key: self.own_key(key),
            },
            other => other,
        }
    }

    fn own_key(&self, stored: Key) -> Key {
        self.0.user_key(&stored).unwrap_or(stored)
    }

    /// What a page of stored keys holds of the keyspace: somebody may have written there without it.
    fn item(&self, item: KeyValue) -> Option<KeyValue> {
        let key = self.0.user_key(&item.key)?;
        Some(KeyValue { key, ..item })
    }

    fn items(&self, items: Vec<KeyValue>) -> Vec<KeyValue> {
        items.into_iter().filter_map(|it| self.item(it)).collect()
    }

    /// A page of an ordered keyspace.
    pub(super) fn ordered(&self, page: Page) -> Page {
        Page {
            items: self.items(page.items),
            rest: page.rest.map(|rest| self.0.user_range(&rest)),
            ..page
        }
    }

    /// A page of a walk over all keys of a hash keyspace.
    pub(super) fn whole(&self, walk: &Walk<'_>, page: Page) -> Page {
        let resume = page.rest.as_ref().and_then(|rest| walk.before(rest));
        Page {
            items: self.items(page.items),
            rest: resume.as_ref().map(|_| KeyRange::ALL),
            rest_cut: page.rest_cut.filter(|_| resume.is_some()),
            unordered: Some(Unordered { resume }),
            ..page
        }
    }
}

fn check_size(bytes: usize) -> Result<()> {
    if bytes <= REQUEST_BYTES_MAX {
        return Ok(());
    }
    let reason = format!(
        "{bytes} bytes of stored keys and values are over the limit of {REQUEST_BYTES_MAX}"
    );
    Err(Error::invalid("request", reason))
}

/// Where the removal of a range goes on in a walk that has come to the end of a span, or has left something of
/// it; `None` when the walk is done.
pub(super) fn resume_of(walk: &Walk<'_>, span: &KeyRange, left_from: Option<&Key>) -> Option<Key> {
    let rest = left_from.map(|key| KeyRange {
        start: key.clone(),
        end: None,
    });
    let place = match rest {
        Some(rest) => walk.before(&rest),
        None => walk.behind(span),
    }?;
    let is_more = !walk.spans(Some(&place), 1).is_empty();
    is_more.then_some(place)
}

/// A page in the making, out of the same keys of several buckets.
#[derive(Debug)]
pub(super) struct Gathering<'a> {
    interpreter: Interpreter<'a>,
    walk: &'a Walk<'a>,
    keys_max: usize,
    bytes_max: usize,
    items: Vec<KeyValue>,
    bytes: usize,
    /// Where the walk stands; `None` at its beginning.
    place: Option<Key>,
    state: State,
    /// Of the last page taken, and the lowest stamp of all.
    answered: Option<(Answered, Timestamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More may be taken.
    Open,
    /// No more may be.
    Full,
    /// There is no more.
    Done,
}

impl<'a> Gathering<'a> {
    /// From a place on, up to the limits of the scan asked for.
    pub(super) fn new(
        interpreter: Interpreter<'a>,
        walk: &'a Walk<'a>,
        asked: &Scan,
        place: Option<Key>,
    ) -> Gathering<'a> {
        Gathering {
            interpreter,
            walk,
            keys_max: asked.keys_max as usize,
            bytes_max: asked.bytes_max as usize,
            items: Vec::new(),
            bytes: 0,
            place,
            state: State::Open,
            answered: None,
        }
    }

    /// The next spans to be read, so many at most; none when nothing more can be taken.
    pub(super) fn spans(&self, count: usize) -> Vec<KeyRange> {
        match self.state {
            State::Open => self.walk.spans(self.place.as_ref(), count),
            State::Full | State::Done => Vec::new(),
        }
    }

    /// Takes what was read of the next span; whether the one behind it can be taken too.
    pub(super) fn take(&mut self, span: &KeyRange, page: Page) -> bool {
        let as_of = self.answered.map_or(page.as_of, |(_, as_of)| as_of);
        self.answered = Some((page.answered, as_of.min(page.as_of)));
        for item in page.items {
            let bytes = item.key.len() + item.versioned.value.len();
            let is_full = self.items.len() >= self.keys_max || self.bytes + bytes > self.bytes_max;
            if is_full && !self.items.is_empty() {
                self.state = State::Full;
                return false;
            }
            self.bytes += bytes;
            self.place = self.walk.past(&item.key);
            self.items.extend(self.interpreter.item(item));
        }
        let place = match &page.rest {
            Some(rest) => self.walk.before(rest),
            None => self.walk.behind(span),
        };
        match place {
            Some(place) => self.place = Some(place),
            None => self.state = State::Done,
        }
        if self.state == State::Open && self.items.len() >= self.keys_max {
            self.state = State::Full;
        }
        page.rest.is_none() && self.state == State::Open
    }

    /// Whether it is worth an answer.
    pub(super) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// The page; `None` when nothing was read.
    pub(super) fn end(self, range: &KeyRange) -> Option<Page> {
        let (answered, as_of) = self.answered?;
        let is_done =
            self.state == State::Done || self.walk.spans(self.place.as_ref(), 1).is_empty();
        let resume = self.place.filter(|_| !is_done);
        Some(Page {
            items: self.items,
            rest: resume.as_ref().map(|_| range.clone()),
            as_of,
            rest_cut: None,
            answered,
            unordered: Some(Unordered { resume }),
        })
    }
}
