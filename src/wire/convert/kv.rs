//! Requests and answers of `kv.proto`. Decides only.

use std::collections::HashSet;

use bytes::Bytes;

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::ReplicaId;
use crate::types::RequestId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::keyspace::KeyspaceName;
use crate::types::request::Answered;
use crate::types::request::Condition;
use crate::types::request::DELETE_RANGE_KEYS_MAX;
use crate::types::request::KeyValue;
use crate::types::request::Operation;
use crate::types::request::ReadKind;
use crate::types::request::Versioned;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::wire::convert::KEYS_MAX;
use crate::wire::convert::Size;
use crate::wire::convert::at_most;
use crate::wire::convert::check_bound;
use crate::wire::convert::cluster_bytes;
use crate::wire::convert::cluster_of;
use crate::wire::convert::range_of;
use crate::wire::convert::range_out;
use crate::wire::convert::required;
use crate::wire::convert::sixteen;
use crate::wire::convert::sixteen_bytes;
use crate::wire::proto::v1;
use crate::wire::request::BatchGet;
use crate::wire::request::Cut;
use crate::wire::request::Get;
use crate::wire::request::Page;
use crate::wire::request::Scan;
use crate::wire::request::Unordered;

/// A request and the cluster that the caller means.
pub type Meant<T> = (T, Option<ClusterId>);

/// Keys and values that one answer to BatchGet holds at most: with everything around them it stays
/// below the 4 MiB that gRPC clients take by default.
pub const BATCH_ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

// ---- requests, inwards ----

/// The keyspace that a request names.
pub fn keyspace_of(name: &str) -> Result<Option<KeyspaceName>> {
    if name.is_empty() {
        return Ok(None);
    }
    let name = name.parse::<KeyspaceName>();
    name.map(Some)
        .map_err(|reason| Error::invalid("keyspace", reason))
}

/// Where a request goes on.
pub fn resume_of(resume: &Key) -> Result<Option<Key>> {
    at_most("resume_key", "bytes", resume.len(), KEY_BYTES_MAX + 1)?;
    Ok((!resume.is_empty()).then(|| resume.clone()))
}

/// Checks a Get.
pub fn get_of(request: v1::GetRequest) -> Result<Meant<Get>> {
    let cluster = cluster_of(&request.cluster_id)?;
    let key = Size::default().key("key", request.key)?;
    let read = read_of(request.read)?;
    Ok((Get { key, read }, cluster))
}

/// Checks a BatchGet.
pub fn batch_get_of(request: v1::BatchGetRequest) -> Result<Meant<BatchGet>> {
    let cluster = cluster_of(&request.cluster_id)?;
    if request.keys.is_empty() {
        return Err(Error::invalid("keys", "at least one key is needed"));
    }
    at_most("keys", "keys", request.keys.len(), KEYS_MAX)?;
    let mut size = Size::default();
    let keys = request.keys.into_iter().map(|key| size.key("keys", key));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let read = read_of(request.read)?;
    Ok((BatchGet { keys, read }, cluster))
}

/// Checks a Put. Its id comes from [`id_of`].
pub fn put_of(request: v1::PutRequest, id: RequestId) -> Result<Meant<Write>> {
    let cluster = cluster_of(&request.cluster_id)?;
    let mut size = Size::default();
    let key = size.key("key", request.key)?;
    let value = size.value("value", request.value)?;
    Ok((one(id, Operation::Put { key, value }), cluster))
}

/// Checks a Delete. Its id comes from [`id_of`].
pub fn delete_of(request: v1::DeleteRequest, id: RequestId) -> Result<Meant<Write>> {
    let cluster = cluster_of(&request.cluster_id)?;
    let key = Size::default().key("key", request.key)?;
    Ok((one(id, Operation::Delete { key }), cluster))
}

/// Checks a DeleteRange. Its id comes from [`id_of`].
pub fn delete_range_of(request: v1::DeleteRangeRequest, id: RequestId) -> Result<Meant<Write>> {
    let cluster = cluster_of(&request.cluster_id)?;
    let mut range = range_of("range", required("range", request.range)?)?;
    if let Some(resume) = resume_of(&request.resume_key)?.filter(|_| request.keyspace.is_empty()) {
        if !range.contains(&resume) {
            return Err(Error::invalid("resume_key", "it is outside of the range"));
        }
        range.start = resume;
    }
    let limit = match request.limit {
        0 => DELETE_RANGE_KEYS_MAX,
        limit => limit,
    };
    at_most(
        "limit",
        "keys",
        limit as usize,
        DELETE_RANGE_KEYS_MAX as usize,
    )?;
    let kind = WriteKind::Range { range, limit };
    Ok((Write { id, kind }, cluster))
}

/// Checks a Write. Its id comes from [`id_of`].
pub fn write_of(request: v1::WriteRequest, id: RequestId) -> Result<Meant<Write>> {
    let cluster = cluster_of(&request.cluster_id)?;
    if request.operations.is_empty() {
        return Err(Error::invalid(
            "operations",
            "at least one operation is needed",
        ));
    }
    at_most(
        "operations",
        "operations",
        request.operations.len(),
        KEYS_MAX,
    )?;
    at_most(
        "conditions",
        "conditions",
        request.conditions.len(),
        KEYS_MAX,
    )?;
    let mut size = Size::default();
    let conditions = request.conditions.into_iter();
    let conditions = conditions.map(|condition| condition_of(condition, &mut size));
    let conditions = conditions.collect::<Result<Vec<_>>>()?;
    let operations = request.operations.into_iter();
    let operations = operations.map(|operation| operation_of(operation, &mut size));
    let operations = operations.collect::<Result<Vec<_>>>()?;
    check_each_key_once(&operations)?;
    let kind = WriteKind::Keys {
        conditions,
        operations,
    };
    Ok((Write { id, kind }, cluster))
}

/// A checked scan: what is to be read in how many portions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeScan {
    /// Range, direction, freshness and stamp; the limits are those of the whole scan, cut to `u32`.
    pub scan: Scan,
    /// Keys at most.
    pub keys_max: u64,
    /// Bytes of keys and values at most.
    pub bytes_max: u64,
    /// Whether it ends with its first cut, which is of one shard.
    pub one_cut: bool,
}

/// Checks a Scan. A limit of 0 is none.
pub fn scan_of(request: v1::ScanRequest) -> Result<Meant<WholeScan>> {
    let cluster = cluster_of(&request.cluster_id)?;
    check_bound("prefix", &request.prefix)?;
    let range = match request.range {
        Some(_) if !request.prefix.is_empty() => {
            return Err(Error::invalid(
                "prefix",
                "it cannot be set together with range",
            ));
        }
        Some(range) => range_of("range", range)?,
        None => KeyRange::of_prefix(&request.prefix),
    };
    let unlimited = |limit: u64| if limit == 0 { u64::MAX } else { limit };
    let narrow = |limit: u64| u32::try_from(limit).unwrap_or(u32::MAX);
    let (keys_max, bytes_max) = (unlimited(request.limit), unlimited(request.limit_bytes));
    let scan = Scan {
        range,
        keys_max: narrow(keys_max),
        bytes_max: narrow(bytes_max),
        reverse: request.reverse,
        keys_only: request.keys_only,
        read: read_of(request.read)?,
        cut: cut_of(("as_of", request.as_of), ("border", request.border))?,
    };
    Ok((
        WholeScan {
            scan,
            keys_max,
            bytes_max,
            one_cut: request.one_cut,
        },
        cluster,
    ))
}

/// The id of a write: a UUIDv7 as sent, or a new one.
pub fn id_of(bytes: &[u8], make: &dyn Fn() -> RequestId) -> Result<RequestId> {
    if bytes.is_empty() {
        return Ok(make());
    }
    let id = RequestId(sixteen("request_id", bytes)?);
    if !id.is_valid() {
        return Err(Error::invalid(
            "request_id",
            "it is not a UUID of version 7",
        ));
    }
    Ok(id)
}

fn read_of(number: i32) -> Result<ReadKind> {
    match v1::ReadKind::try_from(number) {
        Ok(v1::ReadKind::Unspecified | v1::ReadKind::Linearizable) => Ok(ReadKind::Linearizable),
        Ok(v1::ReadKind::Follower) => Ok(ReadKind::Follower),
        Err(_) => Err(Error::invalid(
            "read",
            format!("{number} is no kind of read"),
        )),
    }
}

fn condition_of(condition: v1::Condition, size: &mut Size) -> Result<Condition> {
    use v1::condition::Must;
    let key = size.key("conditions.key", condition.key)?;
    match required("conditions.must", condition.must)? {
        Must::Version(version) => Ok(Condition::Version {
            key,
            version: Timestamp(version),
        }),
        Must::Value(value) => {
            let value = size.value("conditions.value", value)?;
            Ok(Condition::Value { key, value })
        }
        Must::Exists(true) => Ok(Condition::Exists { key }),
        Must::Exists(false) => {
            let reason = "it can only be true; that a key is absent is version 0";
            Err(Error::invalid("conditions.exists", reason))
        }
    }
}

fn operation_of(operation: v1::Operation, size: &mut Size) -> Result<Operation> {
    use v1::operation::Kind;
    match required("operations.kind", operation.kind)? {
        Kind::Put(put) => {
            let key = size.key("operations.put.key", put.key)?;
            let value = size.value("operations.put.value", put.value)?;
            Ok(Operation::Put { key, value })
        }
        Kind::Delete(delete) => {
            let key = size.key("operations.delete.key", delete.key)?;
            Ok(Operation::Delete { key })
        }
    }
}

fn check_each_key_once(operations: &[Operation]) -> Result<()> {
    if operations.len() == 1 {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(operations.len());
    for (at, operation) in operations.iter().enumerate() {
        if !seen.insert(operation.key()) {
            let reason = format!("operation {at} changes a key that an earlier one changes");
            return Err(Error::invalid("operations", reason));
        }
    }
    Ok(())
}

fn one(id: RequestId, operation: Operation) -> Write {
    let kind = WriteKind::Keys {
        conditions: Vec::new(),
        operations: vec![operation],
    };
    Write { id, kind }
}

// ---- requests, outwards ----

/// A Get as it is sent.
pub fn get_out(get: Get, cluster: Option<ClusterId>) -> v1::GetRequest {
    v1::GetRequest {
        key: get.key,
        read: read_out(get.read),
        cluster_id: cluster_bytes(cluster),
        keyspace: String::new(),
    }
}

/// A BatchGet as it is sent.
pub fn batch_get_out(batch: BatchGet, cluster: Option<ClusterId>) -> v1::BatchGetRequest {
    v1::BatchGetRequest {
        keys: batch.keys,
        read: read_out(batch.read),
        cluster_id: cluster_bytes(cluster),
        keyspace: String::new(),
    }
}

/// A portion of a scan as it is sent: a scan with these limits, of one cut.
pub fn scan_out(scan: Scan, cluster: Option<ClusterId>) -> v1::ScanRequest {
    let (as_of, border) = cut_out(scan.cut);
    v1::ScanRequest {
        range: Some(range_out(scan.range)),
        prefix: Bytes::new(),
        limit: scan.keys_max.into(),
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        read: read_out(scan.read),
        as_of,
        border,
        cluster_id: cluster_bytes(cluster),
        limit_bytes: scan.bytes_max.into(),
        one_cut: true,
        keyspace: String::new(),
        resume_key: Key::new(),
    }
}

/// A write as it is sent, by one of two calls.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteOut {
    /// By Write.
    Keys(v1::WriteRequest),
    /// By DeleteRange.
    Range(v1::DeleteRangeRequest),
}

/// A write as it is sent.
pub fn write_out(write: Write, cluster: Option<ClusterId>) -> WriteOut {
    let request_id = sixteen_bytes(write.id.0);
    let cluster_id = cluster_bytes(cluster);
    match write.kind {
        WriteKind::Keys {
            conditions,
            operations,
        } => WriteOut::Keys(v1::WriteRequest {
            conditions: conditions.into_iter().map(condition_out).collect(),
            operations: operations.into_iter().map(operation_out).collect(),
            request_id,
            cluster_id,
            keyspace: String::new(),
        }),
        WriteKind::Range { range, limit } => WriteOut::Range(v1::DeleteRangeRequest {
            range: Some(range_out(range)),
            limit,
            request_id,
            cluster_id,
            keyspace: String::new(),
            resume_key: Key::new(),
        }),
    }
}

fn read_out(read: ReadKind) -> i32 {
    match read {
        ReadKind::Linearizable => v1::ReadKind::Linearizable.into(),
        ReadKind::Follower => v1::ReadKind::Follower.into(),
    }
}

fn condition_out(condition: Condition) -> v1::Condition {
    use v1::condition::Must;
    let (key, must) = match condition {
        Condition::Version { key, version } => (key, Must::Version(version.0)),
        Condition::Value { key, value } => (key, Must::Value(value)),
        Condition::Exists { key } => (key, Must::Exists(true)),
    };
    v1::Condition {
        key,
        must: Some(must),
    }
}

fn operation_out(operation: Operation) -> v1::Operation {
    use v1::operation;
    let kind = match operation {
        Operation::Put { key, value } => operation::Kind::Put(operation::Put { key, value }),
        Operation::Delete { key } => operation::Kind::Delete(operation::Delete { key }),
    };
    v1::Operation { kind: Some(kind) }
}

// ---- answers, outwards ----

/// Answers a Get.
pub fn got_out(found: Option<Versioned>, answered: Answered) -> v1::GetResponse {
    v1::GetResponse {
        found: found.map(versioned_out),
        answered: Some(answered_out(answered, None)),
    }
}

/// Answers a BatchGet. Fails where the values are too much for one answer.
pub fn batch_got_out(
    found: Vec<Option<Versioned>>,
    answered: Vec<Answered>,
) -> Result<v1::BatchGetResponse> {
    let bytes = found
        .iter()
        .flatten()
        .map(|versioned| versioned.value.len());
    let unit = "bytes of values for one answer; ask for fewer keys: they";
    at_most("keys", unit, bytes.sum(), BATCH_ANSWER_BYTES_MAX)?;
    let items = found.into_iter().map(|found| v1::BatchGetItem {
        found: found.map(versioned_out),
    });
    let answered = answered.into_iter();
    Ok(v1::BatchGetResponse {
        items: items.collect(),
        answered: answered.map(|one| answered_out(one, None)).collect(),
    })
}

fn cut_out(cut: Option<Cut>) -> (u64, Bytes) {
    match cut {
        Some(cut) => (cut.as_of.0, cut.border.unwrap_or_default()),
        None => (0, Bytes::new()),
    }
}

/// The cut to go on with. A border by itself is that of none.
fn cut_of(as_of: (&str, u64), border: (&str, Bytes)) -> Result<Option<Cut>> {
    let ((stamp, as_of), (field, border)) = (as_of, border);
    at_most(field, "bytes", border.len(), KEY_BYTES_MAX + 1)?;
    let border = Some(border).filter(|border| !border.is_empty());
    match (as_of, border) {
        (0, None) => Ok(None),
        (0, Some(_)) => Err(Error::invalid(field, format!("it needs {stamp}"))),
        (as_of, border) => Ok(Some(Cut {
            as_of: Timestamp(as_of),
            border,
        })),
    }
}

/// Answers a portion of a scan.
pub fn page_out(page: Page) -> v1::ScanResponse {
    let (resume_as_of, resume_border) = cut_out(page.rest_cut);
    let items = page.items.into_iter().map(|item| v1::KeyValue {
        key: item.key,
        value: item.versioned.value,
        version: item.versioned.version.0,
    });
    v1::ScanResponse {
        unordered: page.unordered.is_some(),
        resume_key: page.unordered.and_then(|it| it.resume).unwrap_or_default(),
        items: items.collect(),
        resume: page.rest.map(range_out),
        as_of: page.as_of.0,
        resume_as_of,
        resume_border,
        answered: Some(answered_out(page.answered, None)),
    }
}

/// Answers a Put.
pub fn put_done_out(done: Done, answered: Answered, id: RequestId) -> v1::PutResponse {
    v1::PutResponse {
        version: done.version.0,
        answered: Some(answered_out(answered, Some(id))),
    }
}

/// Answers a Delete.
pub fn delete_done_out(done: Done, answered: Answered, id: RequestId) -> v1::DeleteResponse {
    v1::DeleteResponse {
        version: done.version.0,
        deleted: done.deleted > 0,
        answered: Some(answered_out(answered, Some(id))),
    }
}

/// Answers a DeleteRange.
pub fn range_done_out(done: Done, answered: Answered, id: RequestId) -> v1::DeleteRangeResponse {
    v1::DeleteRangeResponse {
        version: done.version.0,
        deleted: done.deleted,
        resume_key: done.resume.unwrap_or_default(),
        answered: Some(answered_out(answered, Some(id))),
    }
}

/// Answers a Write.
pub fn written_out(written: Written, answered: Answered, id: RequestId) -> v1::WriteResponse {
    use v1::write_response;
    let outcome = match written {
        Written::Done(done) => write_response::Outcome::Done(write_response::Done {
            version: done.version.0,
            deleted: done.deleted,
        }),
        Written::ConditionFailed { condition, actual } => {
            write_response::Outcome::ConditionFailed(write_response::ConditionFailed {
                condition,
                actual: actual.0,
            })
        }
    };
    v1::WriteResponse {
        outcome: Some(outcome),
        answered: Some(answered_out(answered, Some(id))),
    }
}

/// A write that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Stamp of what it made; `ZERO` when it changed nothing.
    pub version: Timestamp,
    /// Keys removed.
    pub deleted: u32,
    /// Where a range goes on.
    pub resume: Option<Key>,
}

/// What an answer to a write can say; all other outcomes are errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It happened.
    Done(Done),
    /// It did not.
    ConditionFailed {
        /// Which condition, from 0.
        condition: u32,
        /// The version there.
        actual: Timestamp,
    },
}

/// Parts answers from errors.
pub fn written(outcome: WriteOutcome, id: RequestId, answered: &Answered) -> Result<Written> {
    use std::time::Duration;
    match outcome {
        WriteOutcome::Done {
            version,
            deleted,
            resume,
        } => Ok(Written::Done(Done {
            version,
            deleted,
            resume,
        })),
        WriteOutcome::ConditionFailed { condition, actual } => {
            Ok(Written::ConditionFailed { condition, actual })
        }
        WriteOutcome::TooLateToKnow { retry_window_ms } => Err(Error::TooLateToKnow {
            request: id,
            retry_window: Duration::from_millis(retry_window_ms),
        }),
        WriteOutcome::ClockAhead { wait_ms } => Err(Error::ClockAhead {
            wait: Duration::from_millis(wait_ms),
        }),
        WriteOutcome::Spanning { key } => Err(Error::Spanning { request: id, key }),
        WriteOutcome::StaleEpoch => Err(Error::StaleEpoch {
            group: crate::types::GroupId::Shard(answered.shard),
            current: Vec::new(),
        }),
        WriteOutcome::Frozen => {
            let reason = "it is about to be one with its neighbour; nothing was done";
            Err(Error::unavailable(answered.shard, reason))
        }
        WriteOutcome::StaleStamp => {
            let reason = "the write was overtaken by a change of leader; nothing was done";
            Err(Error::unavailable(answered.shard, reason))
        }
    }
}

fn versioned_out(versioned: Versioned) -> v1::Versioned {
    v1::Versioned {
        value: versioned.value,
        version: versioned.version.0,
    }
}

fn answered_out(answered: Answered, id: Option<RequestId>) -> v1::Answered {
    let role = if answered.leader {
        v1::Role::Leader
    } else {
        v1::Role::Follower
    };
    v1::Answered {
        shard: answered.shard.0,
        replica: answered.replica.0,
        role: role.into(),
        timestamp: answered.timestamp.0,
        as_of: answered.as_of.0,
        request_id: id.map_or_else(Bytes::new, |id| sixteen_bytes(id.0)),
    }
}

// ---- answers, inwards ----

/// The answer to a Get.
pub fn got_of(response: v1::GetResponse) -> Result<(Option<Versioned>, Answered)> {
    let answered = answered_of(response.answered)?;
    Ok((response.found.map(versioned_of), answered))
}

/// The answer to a BatchGet of `asked` keys.
pub fn batch_got_of(
    response: v1::BatchGetResponse,
    asked: usize,
) -> Result<(Vec<Option<Versioned>>, Vec<Answered>)> {
    if response.items.len() != asked {
        let reason = format!("{} answers to {asked} keys", response.items.len());
        return Err(Error::invalid("items", reason));
    }
    let answered = response.answered.into_iter();
    let answered = answered.map(|one| answered_of(Some(one)));
    let items = response.items.into_iter();
    let found = items.map(|item| item.found.map(versioned_of));
    Ok((found.collect(), answered.collect::<Result<_>>()?))
}

/// A portion of a scan.
pub fn page_of(response: v1::ScanResponse) -> Result<Page> {
    let items = response.items.into_iter().map(|item| KeyValue {
        key: item.key,
        versioned: Versioned {
            value: item.value,
            version: Timestamp(item.version),
        },
    });
    let rest = response.resume.map(|range| range_of("resume", range));
    let resume = resume_of(&response.resume_key)?;
    let cut = cut_of(
        ("resume_as_of", response.resume_as_of),
        ("resume_border", response.resume_border),
    )?;
    Ok(Page {
        unordered: response.unordered.then_some(Unordered { resume }),
        items: items.collect(),
        rest: rest.transpose()?,
        as_of: Timestamp(response.as_of),
        rest_cut: cut,
        answered: answered_of(response.answered)?,
    })
}

/// The answer to a DeleteRange.
pub fn range_done_of(response: v1::DeleteRangeResponse) -> Result<(WriteOutcome, Answered)> {
    let outcome = WriteOutcome::Done {
        version: Timestamp(response.version),
        deleted: response.deleted,
        resume: (!response.resume_key.is_empty()).then_some(response.resume_key),
    };
    Ok((outcome, answered_of(response.answered)?))
}

/// The answer to a Write.
pub fn written_of(response: v1::WriteResponse) -> Result<(WriteOutcome, Answered)> {
    use v1::write_response::Outcome;
    let outcome = match required("outcome", response.outcome)? {
        Outcome::Done(done) => WriteOutcome::Done {
            version: Timestamp(done.version),
            deleted: done.deleted,
            resume: None,
        },
        Outcome::ConditionFailed(failed) => WriteOutcome::ConditionFailed {
            condition: failed.condition,
            actual: Timestamp(failed.actual),
        },
    };
    Ok((outcome, answered_of(response.answered)?))
}

fn versioned_of(versioned: v1::Versioned) -> Versioned {
    Versioned {
        value: versioned.value,
        version: Timestamp(versioned.version),
    }
}

fn answered_of(answered: Option<v1::Answered>) -> Result<Answered> {
    let answered = required("answered", answered)?;
    Ok(Answered {
        shard: ShardId(answered.shard),
        replica: ReplicaId(answered.replica),
        leader: answered.role() == v1::Role::Leader,
        timestamp: Timestamp(answered.timestamp),
        as_of: Timestamp(answered.as_of),
    })
}
