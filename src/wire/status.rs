//! [`Error`] to gRPC status and back, with typed details. Decides only.
//!
//! A status that carries our detail is the receiver's own word. Any other comes from the network or
//! from the library on either side, and says nothing about what the receiver did: for a write that was
//! sent it is [`Error::Unknown`], whatever its code.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use tonic::Code;
use tonic::ConnectError;
use tonic::Status;
use tonic::TimeoutExpired;
use tonic_types::pb;

use crate::error::Advice;
use crate::error::Effect;
use crate::error::Error;
use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::NodeId;
use crate::types::RequestId;
use crate::types::shard::ShardDescriptor;
use crate::wire::convert::cluster::shard_of;
use crate::wire::convert::cluster::shard_out;
use crate::wire::convert::group_number;
use crate::wire::convert::group_of;
use crate::wire::proto::v1;
use crate::wire::proto::v1::error_detail::Kind;

const DETAIL_URL: &str = "type.googleapis.com/quorate.v1.ErrorDetail";
const INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BAD_REQUEST_URL: &str = "type.googleapis.com/google.rpc.BadRequest";
const REQUEST_URL: &str = "type.googleapis.com/google.rpc.RequestInfo";
const DOMAIN: &str = "quorate";

/// Longest text of an error that is sent, in bytes: a status travels in headers, which are bounded.
const TEXT_BYTES_MAX: usize = 1024;

/// Shards in an error that are sent, in bytes, for the same reason: two with the longest keys.
const SHARDS_BYTES_MAX: usize = 9 * 1024;

// ---- outwards ----

/// The status of an error; `request` is the id of the write that failed.
pub fn to_status(error: &Error, request: Option<RequestId>) -> Status {
    let request = own_request(error).or(request);
    let detail = to_detail(error, request);
    let mut details = vec![any(DETAIL_URL, &detail), any(INFO_URL, &info(error))];
    if let Some(retry) = retry_after(error) {
        let retry_delay = prost_types::Duration::try_from(retry).ok();
        details.push(any(RETRY_URL, &pb::RetryInfo { retry_delay }));
    }
    if let Error::Invalid { field, reason } = error {
        details.push(any(BAD_REQUEST_URL, &bad_request(field, reason)));
    }
    if let Some(id) = request {
        let request_id = uuid::Uuid::from_bytes(id.0).to_string();
        let serving_data = String::new();
        details.push(any(
            REQUEST_URL,
            &pb::RequestInfo {
                request_id,
                serving_data,
            },
        ));
    }
    let message = shortened(&error.to_string());
    let code = code(error);
    let status = pb::Status {
        code: code as i32,
        message: message.clone(),
        details,
    };
    Status::with_details(code, message, Bytes::from(status.encode_to_vec()))
}

/// The code of an error, by gRPC's own definitions.
pub fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::NotLeader { .. } | Error::Unavailable { .. } => Code::Unavailable,
        Error::Overloaded { .. } | Error::NoSpace { .. } => Code::ResourceExhausted,
        // The one code that is defined to mean "it may have been done".
        Error::Unknown { .. } | Error::Timeout { .. } => Code::DeadlineExceeded,
        // Wrong now, right when the clock has come so far.
        Error::ClockAhead { .. } => Code::OutOfRange,
        // To be repeated one level up: look up, then send.
        Error::StaleEpoch { .. } => Code::Aborted,
        Error::TooLateToKnow { .. }
        | Error::Spanning { .. }
        | Error::WrongCluster { .. }
        | Error::WrongNode { .. } => Code::FailedPrecondition,
        Error::NotFound { .. } | Error::NoKeyspace { .. } => Code::NotFound,
        Error::Internal(_) => Code::Internal,
    }
}

/// An error as a message of its own.
pub fn to_detail(error: &Error, request: Option<RequestId>) -> v1::ErrorDetail {
    let effect = match error.effect() {
        Effect::None => v1::Effect::None,
        Effect::Unknown => v1::Effect::Unknown,
    };
    let request = own_request(error).or(request);
    v1::ErrorDetail {
        effect: effect.into(),
        request_id: request.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        retry_after_ms: retry_after(error).map(milliseconds),
        kind: Some(kind_out(error)),
    }
}

fn own_request(error: &Error) -> Option<RequestId> {
    match error {
        Error::Unknown { request, .. }
        | Error::TooLateToKnow { request, .. }
        | Error::Spanning { request, .. } => Some(*request),
        Error::Invalid { .. }
        | Error::NotLeader { .. }
        | Error::Unavailable { .. }
        | Error::Overloaded { .. }
        | Error::NoSpace { .. }
        | Error::Timeout { .. }
        | Error::ClockAhead { .. }
        | Error::StaleEpoch { .. }
        | Error::WrongCluster { .. }
        | Error::WrongNode { .. }
        | Error::NotFound { .. }
        | Error::NoKeyspace { .. }
        | Error::Internal(_) => None,
    }
}

fn kind_out(error: &Error) -> Kind {
    match error {
        Error::Invalid { field, reason } => Kind::Invalid(v1::InvalidError {
            field: shortened(field),
            reason: shortened(reason),
        }),
        Error::NotLeader { group, leader } => Kind::NotLeader(v1::NotLeaderError {
            group: group_number(*group),
            leader: leader.map(|node| node.0),
        }),
        Error::Unavailable { what, reason, .. } => Kind::Unavailable(v1::UnavailableError {
            what: shortened(what),
            reason: shortened(reason),
        }),
        Error::Overloaded { queue, .. } => Kind::Overloaded(v1::OverloadedError {
            queue: shortened(queue),
        }),
        Error::NoSpace { free_bytes } => Kind::NoSpace(v1::NoSpaceError {
            free_bytes: *free_bytes,
        }),
        Error::Unknown { reason, .. } => Kind::Unknown(v1::UnknownError {
            reason: shortened(reason),
        }),
        Error::Timeout { what, after } => Kind::Timeout(v1::TimeoutError {
            what: shortened(what),
            after_ms: milliseconds(*after),
        }),
        Error::ClockAhead { .. } => Kind::ClockAhead(v1::ClockAheadError {}),
        Error::TooLateToKnow { retry_window, .. } => Kind::TooLateToKnow(v1::TooLateToKnowError {
            retry_window_ms: milliseconds(*retry_window),
        }),
        Error::StaleEpoch { group, current } => Kind::StaleEpoch(v1::StaleEpochError {
            group: group_number(*group),
            current: current_out(current),
        }),
        Error::Spanning { key, .. } => Kind::Spanning(v1::SpanningError { key: key.clone() }),
        Error::WrongCluster { expected, actual } => Kind::WrongCluster(v1::WrongClusterError {
            expected: Bytes::copy_from_slice(&expected.0),
            actual: Bytes::copy_from_slice(&actual.0),
        }),
        Error::WrongNode {
            expected,
            expected_incarnation,
            actual,
            actual_incarnation,
        } => Kind::WrongNode(v1::WrongNodeError {
            expected: expected.0,
            expected_incarnation: Bytes::copy_from_slice(&expected_incarnation.0),
            actual: actual.0,
            actual_incarnation: Bytes::copy_from_slice(&actual_incarnation.0),
        }),
        Error::NoKeyspace { name } => Kind::NoKeyspace(v1::NoKeyspaceError {
            name: shortened(name),
        }),
        Error::NotFound { what } => Kind::NotFound(v1::NotFoundError {
            what: shortened(what),
        }),
        Error::Internal(reason) => Kind::Internal(v1::InternalError {
            reason: shortened(reason),
        }),
    }
}

/// As many shards as fit; whoever needs more looks them up.
fn current_out(current: &[ShardDescriptor]) -> Vec<v1::ShardDescriptor> {
    let mut bytes = 0;
    let shards = current.iter().cloned().map(shard_out);
    let fitting = shards.take_while(|shard| {
        bytes += shard.encoded_len();
        bytes <= SHARDS_BYTES_MAX
    });
    fitting.collect()
}

fn info(error: &Error) -> pb::ErrorInfo {
    let reason = match error {
        Error::Invalid { .. } => "INVALID",
        Error::NotLeader { .. } => "NOT_LEADER",
        Error::Unavailable { .. } => "UNAVAILABLE",
        Error::Overloaded { .. } => "OVERLOADED",
        Error::NoSpace { .. } => "NO_SPACE",
        Error::Unknown { .. } => "UNKNOWN_OUTCOME",
        Error::Timeout { .. } => "TIMEOUT",
        Error::ClockAhead { .. } => "CLOCK_AHEAD",
        Error::TooLateToKnow { .. } => "TOO_LATE_TO_KNOW",
        Error::StaleEpoch { .. } => "STALE_EPOCH",
        Error::Spanning { .. } => "SPANNING",
        Error::WrongCluster { .. } => "WRONG_CLUSTER",
        Error::WrongNode { .. } => "WRONG_NODE",
        Error::NotFound { .. } => "NOT_FOUND",
        Error::NoKeyspace { .. } => "NO_KEYSPACE",
        Error::Internal(_) => "INTERNAL",
    };
    let effect = match error.effect() {
        Effect::None => "none",
        Effect::Unknown => "unknown",
    };
    pb::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: [("effect".to_owned(), effect.to_owned())].into(),
    }
}

fn bad_request(field: &str, reason: &str) -> pb::BadRequest {
    let violation = pb::bad_request::FieldViolation {
        field: shortened(field),
        description: shortened(reason),
        ..Default::default()
    };
    pb::BadRequest {
        field_violations: vec![violation],
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error.advice() {
        Advice::RetryAfter(wait) => Some(wait),
        Advice::Redirect(_) => Some(Duration::ZERO),
        Advice::Fix | Advice::Stop => None,
    }
}

fn any(url: &str, message: &impl Message) -> Any {
    Any {
        type_url: url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

// ---- inwards ----

/// What was asked with a call that failed: decides what its failure means.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who was asked, in words.
    pub what: &'a str,
    /// The write's id; `None` for what changes nothing.
    pub write: Option<RequestId>,
    /// How long the answer was allowed to take.
    pub deadline: Duration,
}

impl Asked<'_> {
    /// The error of a call that failed after it had been handed to a connection.
    pub fn failed(&self, status: &Status) -> Error {
        if let Some(error) = from_status(status) {
            return error;
        }
        // The connection was not even made.
        if has_cause::<ConnectError>(status) {
            return Error::unavailable(self.what, status.message());
        }
        if let Some(request) = self.write {
            let reason = format!("{}: {}", status.code().description(), status.message());
            return Error::Unknown { request, reason };
        }
        self.failed_without_effect(status)
    }

    /// The error of a call that had been handed to a connection and was not answered in time.
    pub fn timed_out(&self) -> Error {
        match self.write {
            Some(request) => Error::Unknown {
                request,
                reason: format!("no answer within {} ms", self.deadline.as_millis()),
            },
            None => Error::Timeout {
                what: self.what.to_owned(),
                after: self.deadline,
            },
        }
    }

    fn failed_without_effect(&self, status: &Status) -> Error {
        match status.code() {
            Code::DeadlineExceeded => self.timed_out(),
            // How the library says, on either side, that the time is over.
            Code::Cancelled if has_cause::<TimeoutExpired>(status) || status.source().is_none() => {
                self.timed_out()
            }
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Error::unavailable(self.what, status.message()),
            Code::ResourceExhausted => Error::Overloaded {
                queue: self.what.to_owned(),
                retry_after: Duration::from_millis(50),
            },
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Error::Internal(format!(
                "{} was answered by something that is no node of this version: {}: {}",
                self.what,
                status.code().description(),
                status.message()
            )),
        }
    }
}

/// The error that the receiver has put into a status; `None` if the status is not a receiver's.
pub fn from_status(status: &Status) -> Option<Error> {
    from_detail(detail_of(status)?)
}

/// The request id in a status: that of a write, chosen by the entering node if the caller had none.
pub fn request_of(status: &Status) -> Option<RequestId> {
    id_of(&detail_of(status)?)
}

/// The error in an encoded detail.
pub fn from_detail_bytes(detail: Bytes) -> Error {
    let error = v1::ErrorDetail::decode(detail).ok().and_then(from_detail);
    error.unwrap_or_else(|| Error::Internal("it failed without a readable reason".to_owned()))
}

/// The error in a detail; `None` if it is not one that this version knows.
pub fn from_detail(detail: v1::ErrorDetail) -> Option<Error> {
    let id = id_of(&detail);
    let retry_after = Duration::from_millis(detail.retry_after_ms.unwrap_or_default());
    let error = match detail.kind? {
        Kind::Invalid(invalid) => Error::Invalid {
            field: invalid.field,
            reason: invalid.reason,
        },
        Kind::NotLeader(other) => Error::NotLeader {
            group: group_of(other.group),
            leader: other.leader.map(NodeId),
        },
        Kind::Unavailable(unavailable) => Error::Unavailable {
            what: unavailable.what,
            reason: unavailable.reason,
            retry_after,
        },
        Kind::Overloaded(overloaded) => Error::Overloaded {
            queue: overloaded.queue,
            retry_after,
        },
        Kind::NoSpace(no_space) => Error::NoSpace {
            free_bytes: no_space.free_bytes,
        },
        Kind::Unknown(unknown) => Error::Unknown {
            request: id?,
            reason: unknown.reason,
        },
        Kind::Timeout(timeout) => Error::Timeout {
            what: timeout.what,
            after: Duration::from_millis(timeout.after_ms),
        },
        Kind::ClockAhead(_) => Error::ClockAhead { wait: retry_after },
        Kind::TooLateToKnow(too_late) => Error::TooLateToKnow {
            request: id?,
            retry_window: Duration::from_millis(too_late.retry_window_ms),
        },
        Kind::StaleEpoch(stale) => Error::StaleEpoch {
            group: group_of(stale.group),
            // What cannot be read is looked up.
            current: stale.current.into_iter().flat_map(shard_of).collect(),
        },
        Kind::Spanning(spanning) => Error::Spanning {
            request: id?,
            key: spanning.key,
        },
        Kind::WrongCluster(wrong) => Error::WrongCluster {
            expected: ClusterId(sixteen(&wrong.expected)?),
            actual: ClusterId(sixteen(&wrong.actual)?),
        },
        Kind::WrongNode(wrong) => Error::WrongNode {
            expected: NodeId(wrong.expected),
            expected_incarnation: Incarnation(sixteen(&wrong.expected_incarnation)?),
            actual: NodeId(wrong.actual),
            actual_incarnation: Incarnation(sixteen(&wrong.actual_incarnation)?),
        },
        Kind::NotFound(not_found) => Error::NotFound {
            what: not_found.what,
        },
        Kind::NoKeyspace(absent) => Error::NoKeyspace { name: absent.name },
        Kind::Internal(internal) => Error::Internal(internal.reason),
    };
    Some(error)
}

fn detail_of(status: &Status) -> Option<v1::ErrorDetail> {
    let details = pb::Status::decode(status.details()).ok()?.details;
    let ours = details.into_iter().find(|any| any.type_url == DETAIL_URL)?;
    v1::ErrorDetail::decode(ours.value.as_slice()).ok()
}

fn id_of(detail: &v1::ErrorDetail) -> Option<RequestId> {
    sixteen(&detail.request_id).map(RequestId)
}

fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}

/// Whether a failed call says something about its connection: then it did not come back from the other
/// side, and did not just take too long.
pub fn blames_the_connection(status: &Status) -> bool {
    status.source().is_some() && !has_cause::<TimeoutExpired>(status)
}

fn has_cause<E: StdError + 'static>(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::GroupId;
    use crate::types::Key;
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::key::KEY_BYTES_MAX;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;

    fn id() -> RequestId {
        RequestId::new(1_700_000_000_000, [7; 10])
    }

    fn shard(id: u64) -> ShardDescriptor {
        let long = |byte| vec![byte; KEY_BYTES_MAX].into();
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: long(b'a'),
                end: Some(long(b'b')),
            },
            epoch: Epoch { conf: 3, bounds: 4 },
            replicas: vec![Replica {
                id: ReplicaId(5),
                node: NodeId(6),
            }],
        }
    }

    fn one_of_each() -> Vec<Error> {
        let text = || "some text".to_owned();
        let wait = Duration::from_millis(120);
        vec![
            Error::invalid("key", "too long"),
            Error::NotLeader {
                group: GroupId::Shard(ShardId(3)),
                leader: Some(NodeId(2)),
            },
            Error::NotLeader {
                group: GroupId::Placement,
                leader: None,
            },
            Error::Unavailable {
                what: text(),
                reason: text(),
                retry_after: wait,
            },
            Error::Overloaded {
                queue: text(),
                retry_after: wait,
            },
            Error::NoSpace { free_bytes: 4096 },
            Error::Unknown {
                request: id(),
                reason: text(),
            },
            Error::Timeout {
                what: text(),
                after: wait,
            },
            Error::ClockAhead { wait },
            Error::TooLateToKnow {
                request: id(),
                retry_window: wait,
            },
            Error::StaleEpoch {
                group: GroupId::Shard(ShardId(1)),
                current: vec![shard(1), shard(2)],
            },
            Error::Spanning {
                request: id(),
                key: Key::from_static(b"k"),
            },
            Error::WrongCluster {
                expected: ClusterId([1; 16]),
                actual: ClusterId([2; 16]),
            },
            Error::WrongNode {
                expected: NodeId(1),
                expected_incarnation: Incarnation([1; 16]),
                actual: NodeId(2),
                actual_incarnation: Incarnation([2; 16]),
            },
            Error::NotFound { what: text() },
            Error::NoKeyspace { name: text() },
            Error::Internal(text()),
        ]
    }

    #[test]
    fn every_error_comes_back_as_itself_with_the_request_it_belongs_to() {
        for error in one_of_each() {
            let status = to_status(&error, Some(id()));
            assert_eq!(from_status(&status).as_ref(), Some(&error));
            assert_eq!(request_of(&status), Some(id()), "{error}");
            assert_eq!(status.code(), code(&error));
        }
    }

    #[test]
    fn the_standard_details_are_there_for_clients_that_know_nothing_else() {
        use tonic_types::StatusExt;
        let status = to_status(&Error::invalid("key", "too long"), None);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "key");
        let wait = Duration::from_millis(70);
        let full = Error::Overloaded {
            queue: "q".to_owned(),
            retry_after: wait,
        };
        let details = to_status(&full, None).get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(wait));
        assert_eq!(details.error_info().unwrap().reason, "OVERLOADED");
    }

    #[test]
    fn only_the_receiver_may_say_that_a_write_did_not_happen() {
        let asked = |write| Asked {
            what: "n1",
            write,
            deadline: Duration::from_secs(1),
        };
        for code in 0..=16 {
            let status = Status::new(Code::from_i32(code), "broken pipe");
            let write = asked(Some(id())).failed(&status);
            assert_eq!(write.effect(), Effect::Unknown, "{write}");
            assert!(!matches!(
                asked(None).failed(&status),
                Error::Unknown { .. }
            ));
        }
        let reset = Status::unavailable("connection reset");
        let read = asked(None).failed(&reset);
        assert!(matches!(read, Error::Unavailable { .. }));
        let said = to_status(&Error::NoSpace { free_bytes: 1 }, Some(id()));
        assert_eq!(
            asked(Some(id())).failed(&said),
            Error::NoSpace { free_bytes: 1 }
        );
        assert!(matches!(
            asked(Some(id())).timed_out(),
            Error::Unknown { .. }
        ));
    }

    #[test]
    fn a_write_whose_connection_was_never_made_did_not_happen() {
        let mut status = Status::unavailable("tcp connect error");
        status.set_source(std::sync::Arc::new(ConnectError("refused".into())));
        let asked = Asked {
            what: "n1",
            write: Some(id()),
            deadline: Duration::from_secs(1),
        };
        assert!(matches!(asked.failed(&status), Error::Unavailable { .. }));
    }

    #[test]
    fn of_many_shards_as_many_are_sent_as_fit_in_a_header() {
        let group = GroupId::Shard(ShardId(1));
        let current = (1..=9).map(shard).collect();
        let status = to_status(&Error::StaleEpoch { group, current }, None);
        let current = vec![shard(1), shard(2)];
        let sent = Error::StaleEpoch { group, current };
        assert_eq!(from_status(&status), Some(sent));
        // The details are sent in base64, and a library takes 16 KiB of headers.
        assert!(status.details().len() * 4 / 3 < 15 * 1024);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "ä".repeat(TEXT_BYTES_MAX);
        let status = to_status(&Error::Internal(text), None);
        assert!(status.message().len() < TEXT_BYTES_MAX + 10);
        assert!(status.details().len() < 4 * TEXT_BYTES_MAX);
    }
}
