//! Reads and writes of keys.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use futures::stream::BoxStream;
use futures::stream::StreamExt;

use crate::client::gather::Gather;
use crate::client::sender::Sender;
use crate::error::Error;
use crate::error::Result;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::Timestamp;
use crate::types::Value;
use crate::types::keyspace::KeyspaceName;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::wire::request::BatchGet;
use crate::wire::request::Cut;
use crate::wire::request::Get;
use crate::wire::request::KeyRequest;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Scan;

/// How a read is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// How fresh.
    pub read: ReadKind,
    /// For all attempts; the sender's own when `None`.
    pub deadline: Option<Duration>,
}

/// How a write is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// The identity of a write that was sent before, whose outcome is to be learned or which is to be
    /// completed. A new one is made when `None`.
    pub id: Option<RequestId>,
    /// For all attempts; the sender's own when `None`.
    pub deadline: Option<Duration>,
}

/// What is scanned, and in which portions.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// The keys.
    pub range: KeyRange,
    /// Keys in all; `None` for every key of the range.
    pub limit: Option<u64>,
    /// From the end of the range backwards.
    pub reverse: bool,
    /// Without values.
    pub keys_only: bool,
    /// Keys in one portion; at least 1.
    pub page_keys: u32,
    /// Bytes in one portion, keys and values together.
    pub page_bytes: u32,
    /// How fresh, and the deadline of **one** portion.
    pub options: ReadOptions,
}

impl ScanOptions {
    /// All keys of a range, forwards, with values.
    pub fn of(range: KeyRange) -> ScanOptions {
        ScanOptions {
            range,
            limit: None,
            reverse: false,
            keys_only: false,
            page_keys: 1_000,
            page_bytes: 1024 * 1024,
            options: ReadOptions::default(),
        }
    }
}

/// What a read found, by whom and as of when.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<T> {
    /// What.
    pub found: T,
    /// By whom, as of when.
    pub answered: Answered,
}

/// What several keys held, and for each part that was read as of one moment by whom and when.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundAll {
    /// In the order asked.
    pub found: Vec<Option<Versioned>>,
    /// One for each part. More than one means several shards: together they are no cut.
    pub answered: Vec<Answered>,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its identity.
    pub id: RequestId,
    /// What it did.
    pub outcome: Outcome,
    /// By whom.
    pub answered: Answered,
}

/// The final outcomes of a write of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Done {
        /// Of what it wrote; `ZERO` when it changed nothing.
        version: Timestamp,
        /// Keys that were there and are not any more.
        deleted: u32,
    },
    /// A condition did not hold, nothing was changed.
    ConditionFailed {
        /// Which, from 0.
        condition: u32,
        /// What was there instead; `ZERO` if the key was absent.
        actual: Timestamp,
    },
}

/// One portion of a removed range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedRange {
    /// The identity of this portion's write.
    pub id: RequestId,
    /// Keys removed.
    pub deleted: u32,
    /// Go on from here ([`Kv::delete_range_on`]); `None` at the end of the range. Outside of hash keyspaces it is
    /// a key.
    pub resume: Option<Key>,
}

/// Keys and values of a cluster, as they are stored or as those of a keyspace. Cloning shares connections and
/// routes.
#[derive(Clone)]
pub struct Kv {
    sender: Arc<Sender>,
    keyspace: Option<KeyspaceName>,
}

impl Kv {
    /// Over the sender given.
    pub fn new(sender: Arc<Sender>) -> Kv {
        Kv {
            sender,
            keyspace: None,
        }
    }

    /// The keys of a keyspace: all requests are about its keys, and so are the answers. [`Error::NoKeyspace`]
    /// where there is none.
    pub fn within(&self, keyspace: KeyspaceName) -> Kv {
        Kv {
            sender: Arc::clone(&self.sender),
            keyspace: Some(keyspace),
        }
    }

    fn asked(&self, request: KeyRequest, resume: Option<Key>) -> Request {
        request.of(self.keyspace.clone(), resume)
    }

    /// One key. Cancel-safe.
    pub async fn get(&self, key: Key, options: ReadOptions) -> Result<Found<Option<Versioned>>> {
        let get = Get {
            key,
            read: options.read,
        };
        let request = self.asked(KeyRequest::Get(get), None);
        match self.sender.send(request, options.deadline).await? {
            Response::Get(found, answered) => Ok(Found { found, answered }),
            other => Err(unexpected("get", &other)),
        }
    }

    /// Several keys, in the order asked: each shard is asked once, all beside each other, and answers
    /// as of one moment of it. Cancel-safe.
    ///
    /// # Errors
    /// The first of any shard; then nothing is returned.
    pub async fn batch_get(&self, keys: Vec<Key>, options: ReadOptions) -> Result<FoundAll> {
        let read = options.read;
        self.sender.prepare(options.deadline).await;
        let mut gather = Gather::new(BatchGet { keys, read });
        // What is not known here is asked of one node, which knows more.
        let parts = gather.parts(|key| self.shard_range(key));
        let asked = parts.iter().map(|part| {
            let request = self.asked(KeyRequest::BatchGet(part.get.clone()), None);
            self.sender.send(request, options.deadline)
        });
        for (part, answer) in parts.iter().zip(try_join_all(asked).await?) {
            match answer {
                Response::BatchGet(found, answered) => gather.take(part, found, answered)?,
                other => return Err(unexpected("batch get", &other)),
            }
        }
        let (found, answered) = gather.end();
        Ok(FoundAll { found, answered })
    }

    /// The range of the shard that holds `key`, if this client has heard of it. A hint: writes of keys
    /// in one range are likely to be of one shard. Where the keys of a keyspace are is not known here.
    pub fn shard_range(&self, key: &[u8]) -> Option<KeyRange> {
        match self.keyspace {
            None => self.sender.range_with(key),
            Some(_) => None,
        }
    }

    /// Stores a value. May have happened when dropped.
    pub async fn put(&self, key: Key, value: Value, options: WriteOptions) -> Result<Written> {
        let put = Operation::Put { key, value };
        self.write(Vec::new(), vec![put], options).await
    }

    /// Removes a key. May have happened when dropped.
    pub async fn delete(&self, key: Key, options: WriteOptions) -> Result<Written> {
        let delete = Operation::Delete { key };
        self.write(Vec::new(), vec![delete], options).await
    }

    /// Changes keys if all conditions hold, all of it or none. May have happened when dropped.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the deadline passed while an attempt may have taken effect: sending the
    /// same [`WriteOptions::id`] again learns or completes it, once. Every other error but
    /// [`Error::TooLateToKnow`] and [`Error::Internal`] means that nothing was changed.
    pub async fn write(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
        options: WriteOptions,
    ) -> Result<Written> {
        if operations.is_empty() {
            return Err(Error::invalid("operations", "a write needs at least one"));
        }
        let kind = WriteKind::Keys {
            conditions,
            operations,
        };
        let (id, outcome, answered) = self.send_write(kind, None, options).await?;
        let outcome = match outcome {
            WriteOutcome::Done {
                version, deleted, ..
            } => Outcome::Done { version, deleted },
            WriteOutcome::ConditionFailed { condition, actual } => {
                Outcome::ConditionFailed { condition, actual }
            }
            WriteOutcome::TooLateToKnow { .. }
            | WriteOutcome::ClockAhead { .. }
            | WriteOutcome::Spanning { .. }
            | WriteOutcome::StaleEpoch
            | WriteOutcome::StaleStamp
            | WriteOutcome::Frozen => return Err(not_final()),
        };
        Ok(Written {
            id,
            outcome,
            answered,
        })
    }

    /// Removes up to `limit` keys from the start of a range: one portion, one write, of one shard. The
    /// next portion is removed by [`Kv::delete_range_on`], under a new identity, until there is no `resume`.
    /// May have happened when dropped.
    pub async fn delete_range(
        &self,
        range: KeyRange,
        limit: u32,
        options: WriteOptions,
    ) -> Result<DeletedRange> {
        self.delete_range_on(range, None, limit, options).await
    }

    /// Goes on with the removal of a range, where an earlier portion of the same range has said.
    pub async fn delete_range_on(
        &self,
        mut range: KeyRange,
        mut resume: Option<Key>,
        limit: u32,
        options: WriteOptions,
    ) -> Result<DeletedRange> {
        if self.keyspace.is_none()
            && let Some(start) = resume.take()
        {
            range.start = start;
        }
        let kind = WriteKind::Range { range, limit };
        let (id, outcome, _) = self.send_write(kind, resume, options).await?;
        match outcome {
            WriteOutcome::Done {
                deleted, resume, ..
            } => Ok(DeletedRange {
                id,
                deleted,
                resume,
            }),
            WriteOutcome::ConditionFailed { .. }
            | WriteOutcome::TooLateToKnow { .. }
            | WriteOutcome::ClockAhead { .. }
            | WriteOutcome::Spanning { .. }
            | WriteOutcome::StaleEpoch
            | WriteOutcome::StaleStamp
            | WriteOutcome::Frozen => Err(not_final()),
        }
    }

    /// A range in order of keys, portion by portion; the next one is asked for when the last was
    /// taken, so memory holds one. The portions of one shard are as of one moment of it; the next shard
    /// begins a new one. A key that was there all the time comes once, whatever splits meanwhile. After
    /// an error the stream ends; the keys before it are complete. The keys of a hash keyspace come bucket by
    /// bucket ([`Page::unordered`]).
    pub fn scan(&self, scan: ScanOptions) -> BoxStream<'static, Result<Page>> {
        let state = Some(ScanState {
            kv: self.clone(),
            left: scan.limit,
            range: scan.range.clone(),
            cut: None,
            resume: None,
            scan,
        });
        futures::stream::unfold(state, |state| async {
            let mut state = state?;
            match state.portion().await {
                Ok(Some((page, true))) => Some((Ok(page), Some(state))),
                Ok(Some((page, false))) => Some((Ok(page), None)),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn send_write(
        &self,
        kind: WriteKind,
        resume: Option<Key>,
        options: WriteOptions,
    ) -> Result<(RequestId, WriteOutcome, Answered)> {
        let id = options.id.unwrap_or_else(|| self.sender.ids().next());
        let request = self.asked(KeyRequest::Write(Write { id, kind }), resume);
        match self.sender.send(request, options.deadline).await? {
            Response::Write(outcome, answered) => Ok((id, outcome, answered)),
            other => Err(unexpected("write", &other)),
        }
    }
}

struct ScanState {
    kv: Kv,
    scan: ScanOptions,
    range: KeyRange,
    left: Option<u64>,
    cut: Option<Cut>,
    resume: Option<Key>,
}

impl ScanState {
    /// The next portion and whether there may be another; `None` when nothing is left to ask for.
    async fn portion(&mut self) -> Result<Option<(Page, bool)>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let keys_max = self.left.map_or(self.scan.page_keys, |left| {
            u32::try_from(left).map_or(self.scan.page_keys, |left| left.min(self.scan.page_keys))
        });
        let scan = Scan {
            range: self.range.clone(),
            keys_max,
            bytes_max: self.scan.page_bytes,
            reverse: self.scan.reverse,
            keys_only: self.scan.keys_only,
            read: self.scan.options.read,
            cut: self.cut.take(),
        };
        let request = self.kv.asked(KeyRequest::Scan(scan), self.resume.take());
        let sender = &self.kv.sender;
        let page = match sender.send(request, self.scan.options.deadline).await? {
            Response::Scan(page) => page,
            other => return Err(unexpected("scan", &other)),
        };
        self.cut = page.rest_cut.clone();
        self.resume = page.unordered.as_ref().and_then(|it| it.resume.clone());
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.items.len() as u64);
        }
        let more = match &page.rest {
            Some(rest) => {
                self.range = rest.clone();
                !rest.is_empty() && self.left != Some(0)
            }
            None => false,
        };
        Ok(Some((page, more)))
    }
}

fn unexpected(asked: &str, answer: &Response) -> Error {
    Error::Internal(format!("a {asked} was answered with {answer:?}"))
}

fn not_final() -> Error {
    Error::Internal("the sender passed on an outcome that is not final".to_string())
}
