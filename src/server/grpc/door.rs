//! What every call goes through: who may enter, how long it may take, how many may be inside.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::REQUESTS_IN_WORK_MAX;
use crate::telemetry::metrics;
use crate::telemetry::metrics::Queue;
use crate::types::ClusterId;
use crate::types::RequestId;
use crate::wire::convert::kv;
use crate::wire::identity;
use crate::wire::identity::FORWARDED_HEADER;
use crate::wire::identity::IdentityCell;
use crate::wire::request::Call;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Service;
use crate::wire::status;
use crate::wire::status::Asked;

/// For calls that name no deadline.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Nobody waits longer; keeps sums with the clock in range.
const DEADLINE_MAX: Duration = Duration::from_secs(3_600);
/// The answer to a call that takes too long comes this much before the caller's own deadline, so that
/// it is our answer, with the request's id, that arrives. For short deadlines an eighth of them.
const MARGIN_MAX: Duration = Duration::from_millis(200);
/// When a full node is to be asked again: some hundred requests end in this time.
pub(super) const OVERLOADED_RETRY: Duration = Duration::from_millis(25);
/// Different refusals of other nodes that are logged. Full: further ones are not.
const REFUSALS_LOGGED_MAX: usize = 256;

/// Who may enter.
pub enum Guard {
    /// Anyone; nothing that they say about themselves is believed.
    Clients,
    /// Nodes of the same cluster that mean this node.
    Nodes(IdentityCell),
}

/// One door of a node.
pub struct Door {
    /// The node.
    pub service: Arc<dyn Service>,
    new_request_id: Arc<dyn Fn() -> RequestId + Send + Sync>,
    in_work: Arc<Semaphore>,
    guard: Guard,
    logged: Mutex<HashSet<String>>,
}

/// A call that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Another node has sent it on.
    pub forwarded: bool,
    /// What the caller allows for the answer; `None` if it did not say.
    pub deadline: Option<Duration>,
}

impl Door {
    /// A door to `service`.
    pub fn new(
        service: Arc<dyn Service>,
        new_request_id: Arc<dyn Fn() -> RequestId + Send + Sync>,
        in_work: Arc<Semaphore>,
        guard: Guard,
    ) -> Door {
        Door {
            service,
            new_request_id,
            in_work,
            guard,
            logged: Mutex::default(),
        }
    }

    /// Lets a call in, or says why not.
    pub fn enter(&self, headers: &MetadataMap) -> Result<Entered, Status> {
        let forwarded = match &self.guard {
            Guard::Clients => false,
            Guard::Nodes(identity) => {
                self.check(headers, identity)
                    .map_err(|error| status::to_status(&error, None))?;
                headers.contains_key(FORWARDED_HEADER)
            }
        };
        Ok(Entered {
            forwarded,
            deadline: deadline_of(headers),
        })
    }

    /// Lets a call in that comes before nodes know each other.
    pub fn enter_unknown(&self, headers: &MetadataMap) -> Entered {
        Entered {
            forwarded: false,
            deadline: deadline_of(headers),
        }
    }

    fn check(&self, headers: &MetadataMap, identity: &IdentityCell) -> Result<()> {
        let Some(me) = identity.get() else {
            return Err(Error::unavailable(
                "the node",
                "it is still forming its cluster",
            ));
        };
        let checked = identity::check(headers, &me);
        checked
            .map(|_sender| ())
            .inspect_err(|error| self.log_once(headers, error))
    }

    fn log_once(&self, headers: &MetadataMap, error: &Error) {
        let sender = identity::sender(headers).unwrap_or_default();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < REFUSALS_LOGGED_MAX && logged.insert(format!("{sender} {error}")) {
            tracing::warn!(%sender, %error, "refused a call that is not meant for this node");
        }
    }

    /// The id of a write: its client's, or a new one.
    pub fn request_id(&self, bytes: &[u8]) -> Result<RequestId, Status> {
        let id = kv::id_of(bytes, &*self.new_request_id);
        id.map_err(|error| status::to_status(&error, None))
    }

    /// Asks the node on behalf of a client. Refused when too much is in work.
    pub async fn ask_as_client(
        &self,
        entered: Entered,
        request: Request,
        cluster: Option<ClusterId>,
    ) -> Result<Response> {
        let taken = REQUESTS_IN_WORK_MAX.saturating_sub(self.in_work.available_permits());
        metrics::queue_depth(Queue::Requests, taken);
        let Ok(_in_work) = self.in_work.try_acquire() else {
            return Err(Error::Overloaded {
                queue: "requests in work".to_owned(),
                retry_after: OVERLOADED_RETRY,
            });
        };
        self.ask(entered, request, cluster).await
    }

    /// Asks the node. The answer comes before the caller's deadline.
    pub async fn ask(
        &self,
        entered: Entered,
        request: Request,
        cluster: Option<ClusterId>,
    ) -> Result<Response> {
        let deadline = entered
            .deadline
            .unwrap_or(DEADLINE_DEFAULT)
            .min(DEADLINE_MAX);
        let margin = (deadline / 8).min(MARGIN_MAX);
        let write = request.write_id();
        let call = Call {
            request,
            deadline: deadline - margin,
            forwarded: entered.forwarded,
            cluster,
        };
        let asked = Asked {
            what: "the request",
            write,
            deadline,
        };
        let answer = timeout(deadline - margin / 2, self.service.call(call)).await;
        answer.unwrap_or_else(|_elapsed| Err(asked.timed_out()))
    }
}

/// An answer of another kind than the request's: a fault of the node.
pub fn unexpected(response: &Response) -> Error {
    let text = format!("{response:?}");
    let kind = text.split(['(', ' ', '{']).next().unwrap_or_default();
    Error::Internal(format!(
        "the node answered with {kind}, which was not asked"
    ))
}

/// gRPC's own header: up to eight digits and a unit. One that cannot be read counts as none.
fn deadline_of(headers: &MetadataMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &'static str| {
            let mut headers = MetadataMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline_of(&headers)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        assert_eq!(read("2000000u"), Some(Duration::from_secs(2)));
        for nonsense in ["", "m", "5", "5x", "999999999S", "-1S"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
