//! Carries one request to its end: attempts it at one node after another, under one identity, until an
//! answer that is final or the deadline. Where and when is decided by [`retry`] and [`Routes`].

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::ids::RequestIds;
use crate::client::retry;
use crate::client::retry::Next;
use crate::client::retry::Situation;
use crate::client::retry::Target;
use crate::client::routes::Routes;
use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::RequestId;
use crate::types::request::Answered;
use crate::types::request::ReadKind;
use crate::types::request::WriteOutcome;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::StatusQuery;

/// Beyond the deadline that the node was given, so that its own, typed answer still arrives.
const ATTEMPT_GRACE: Duration = Duration::from_millis(100);
/// For the question who leads: a hint is not worth more.
const LEARN_DEADLINE: Duration = Duration::from_millis(500);
/// While leaders move, the question is asked at most this often.
const LEARN_INTERVAL_MS: u64 = 1_000;

/// What holds for every request of a client.
#[derive(Debug, Clone)]
pub struct Options {
    /// For a request with all its attempts, where the caller names no other.
    pub deadline: Duration,
    /// For one attempt: a node that is stopped or cut off holds a request up for this long.
    pub attempt: Duration,
    /// The cluster that is meant; a node of another one refuses.
    pub cluster: Option<ClusterId>,
    /// Which of the addresses is asked first, counted around.
    pub first: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(10),
            attempt: Duration::from_secs(2),
            cluster: None,
            first: 0,
        }
    }
}

/// Sends requests. Shared by all tasks of a client.
pub struct Sender {
    channel: Arc<dyn Channel>,
    options: Options,
    ids: Arc<RequestIds>,
    started: Instant,
    routes: Mutex<Routes>,
    /// An answer came from a replica that the routes do not know. The next request asks first: the
    /// one that is answered already is not held up, and a client with one request never asks.
    wants_status: AtomicBool,
    last_learned_ms: Mutex<Option<u64>>,
}

impl Sender {
    /// A sender that enters at `endpoints` (`host:port`, at least one).
    pub fn new(
        channel: Arc<dyn Channel>,
        endpoints: Vec<String>,
        ids: Arc<RequestIds>,
        options: Options,
    ) -> Result<Sender> {
        if endpoints.is_empty() {
            return Err(Error::invalid("endpoints", "at least one is needed"));
        }
        let routes = Routes::new(endpoints, options.first);
        Ok(Sender {
            channel,
            options,
            ids,
            started: Instant::now(),
            routes: Mutex::new(routes),
            wants_status: AtomicBool::new(false),
            last_learned_ms: Mutex::new(None),
        })
    }

    /// The source of identities.
    pub fn ids(&self) -> &RequestIds {
        &self.ids
    }

    /// Every address known, those given first.
    pub fn addresses(&self) -> Vec<String> {
        self.with_routes(|routes| routes.candidates())
    }

    /// Sends a request until it is answered, refused for good, or `deadline` (the sender's own when
    /// `None`) has passed. A write of which an attempt may have happened ends as [`Error::Unknown`].
    ///
    /// Cancel-safe, but a write that is dropped may have happened.
    pub async fn send(&self, request: Request, deadline: Option<Duration>) -> Result<Response> {
        let end = Instant::now() + deadline.unwrap_or(self.options.deadline);
        self.learn_if_wanted(end).await;
        let write = write_id(&request);
        let mut address = self.first_address(&request);
        let mut attempts = 0;
        let mut tried_since_wait = 0;
        let mut happened = false;
        loop {
            attempts += 1;
            tried_since_wait += 1;
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.attempt(&address, &request, left).await {
                Ok(response) => {
                    self.note_answer(&address, &response);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.note_error(&address, &error, write);
            happened |= retry::may_have_happened(&error);
            let situation = Situation {
                attempts,
                untried: tried_since_wait < self.with_routes(|routes| routes.count()),
                left: end.saturating_duration_since(Instant::now()),
                jitter: self.ids.jitter(),
            };
            let Next::Again { target, after } = retry::next(&error, situation) else {
                return Err(match write {
                    Some(id) => retry::final_error(error, id, happened),
                    None => error,
                });
            };
            if !after.is_zero() {
                tokio::time::sleep(after).await;
                tried_since_wait = 0;
            }
            address = self.resolve(target, &address, &request).await;
        }
    }

    /// Asks one node once, wherever the routes would lead.
    ///
    /// Cancel-safe, but a write that is dropped may have happened.
    pub async fn ask(
        &self,
        address: &str,
        request: Request,
        deadline: Duration,
    ) -> Result<Response> {
        let response = self.attempt(address, &request, deadline).await?;
        self.note_answer(address, &response);
        Ok(response)
    }

    async fn attempt(&self, address: &str, request: &Request, left: Duration) -> Result<Response> {
        let deadline = left.min(self.options.attempt);
        let call = Call {
            request: request.clone(),
            deadline,
            forwarded: false,
            cluster: self.options.cluster,
        };
        let answer = self.channel.address(address).call(call);
        match tokio::time::timeout(left.min(deadline + ATTEMPT_GRACE), answer).await {
            Ok(answer) => final_answer(answer?, write_id(request)),
            Err(_) => Err(no_answer(address, request, deadline)),
        }
    }

    fn first_address(&self, request: &Request) -> String {
        let now_ms = self.now_ms();
        self.with_routes(|routes| {
            let leader = match wanted(request) {
                Wanted::LeaderOfKey(key) => routes.leader_for(&key, now_ms),
                Wanted::LeaderOf(group) => routes.leader_of(group, now_ms),
                Wanted::Any => None,
            };
            leader.unwrap_or_else(|| routes.entry())
        })
    }

    async fn resolve(&self, target: Target, failed: &str, request: &Request) -> String {
        match target {
            Target::Same => failed.to_string(),
            Target::Other => {
                let entry = self.with_routes(|routes| routes.turn(failed));
                // The leader may have become known while this request waited.
                let better = self.first_address(request);
                if better == failed { entry } else { better }
            }
            Target::Node(node) => {
                if let Some(address) = self.with_routes(|routes| routes.address(node)) {
                    return address;
                }
                self.learn(failed).await;
                self.with_routes(|routes| {
                    let learned = routes.address(node);
                    learned.unwrap_or_else(|| routes.turn(failed))
                })
            }
        }
    }

    async fn learn_if_wanted(&self, end: Instant) {
        if !self.wants_status.swap(false, Ordering::Relaxed) || !self.may_learn_now() {
            return;
        }
        if end.saturating_duration_since(Instant::now()) <= LEARN_DEADLINE {
            return;
        }
        let entry = self.with_routes(|routes| routes.entry());
        self.learn(&entry).await;
    }

    fn may_learn_now(&self) -> bool {
        let now_ms = self.now_ms();
        let mut last = lock(&self.last_learned_ms);
        if last.is_some_and(|last| now_ms < last + LEARN_INTERVAL_MS) {
            return false;
        }
        *last = Some(now_ms);
        true
    }

    /// A failure is no one's concern: the entry goes on serving.
    async fn learn(&self, address: &str) {
        let answer = self
            .attempt(
                address,
                &Request::Status(StatusQuery::default()),
                LEARN_DEADLINE,
            )
            .await;
        if let Ok(Response::Status(status)) = answer {
            self.with_routes(|routes| routes.observe(&status));
        }
    }

    fn note_answer(&self, address: &str, response: &Response) {
        let known = self.with_routes(|routes| {
            routes.reached(address);
            if let Response::Status(status) = response {
                routes.observe(status);
            }
            answered(response).is_none_or(|answered| routes.answered(answered))
        });
        if let Some(answered) = answered(response) {
            self.ids.observe(answered.timestamp);
        }
        if !known {
            self.wants_status.store(true, Ordering::Relaxed);
        }
    }

    fn note_error(&self, address: &str, error: &Error, write: Option<RequestId>) {
        match error {
            Error::NotLeader { group, leader } => {
                self.with_routes(|routes| routes.redirected(*group, *leader));
            }
            Error::Unavailable { .. } | Error::Timeout { .. } | Error::Unknown { .. } => {
                let now_ms = self.now_ms();
                self.with_routes(|routes| routes.failed(address, now_ms));
            }
            Error::ClockAhead { wait } => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                if let Some(id) = write {
                    self.ids.observe_wall(id.wall_ms().saturating_sub(wait_ms));
                }
            }
            Error::Invalid { .. }
            | Error::Overloaded { .. }
            | Error::NoSpace { .. }
            | Error::TooLateToKnow { .. }
            | Error::StaleEpoch { .. }
            | Error::WrongCluster { .. }
            | Error::WrongNode { .. }
            | Error::NotFound { .. }
            | Error::Internal(_) => {}
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn with_routes<T>(&self, action: impl FnOnce(&mut Routes) -> T) -> T {
        action(&mut lock(&self.routes))
    }
}

/// What is behind these locks is consistent after each statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Wanted {
    LeaderOfKey(Key),
    LeaderOf(GroupId),
    Any,
}

fn wanted(request: &Request) -> Wanted {
    let (key, read) = match request {
        Request::Write(write) => return Wanted::LeaderOfKey(write.first_key().clone()),
        Request::TransferLeader(transfer) => return Wanted::LeaderOf(transfer.group),
        Request::ReadPosition(group) => return Wanted::LeaderOf(*group),
        Request::Get(get) => (get.key.clone(), get.read),
        Request::BatchGet(get) => (get.keys.first().cloned().unwrap_or_default(), get.read),
        Request::Scan(scan) => (scan.range.start.clone(), scan.read),
        Request::Status(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::TakeLead(..)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Routes(_) => return Wanted::Any,
        Request::Placement(_) | Request::Report(_) => {
            return Wanted::LeaderOf(GroupId::Placement);
        }
        // Any node knows as much.
        Request::Locate(_) => return Wanted::Any,
        Request::AddReplica(add) => return Wanted::LeaderOf(GroupId::Shard(add.shard)),
        Request::RemoveReplica(name) | Request::Membership(name) => {
            return Wanted::LeaderOf(GroupId::Shard(name.shard));
        }
        Request::CreateReplica(_) | Request::ReplicaLeft(_) => return Wanted::Any,
    };
    match read {
        ReadKind::Linearizable => Wanted::LeaderOfKey(key),
        ReadKind::Follower => Wanted::Any,
    }
}

fn write_id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Write(write) => Some(write.id),
        _ => None,
    }
}

fn answered(response: &Response) -> Option<&Answered> {
    match response {
        Response::Get(_, answered)
        | Response::BatchGet(_, answered)
        | Response::Write(_, answered) => Some(answered),
        Response::Scan(page) => Some(&page.answered),
        Response::Status(_)
        | Response::TransferLeader
        | Response::ReadPosition(_)
        | Response::Vote(_)
        | Response::Append(_)
        | Response::TakeLead(_)
        | Response::Form(_)
        | Response::Join(_)
        | Response::Placement(_)
        | Response::Report(_)
        | Response::Locate(_)
        | Response::Routes(..)
        | Response::CreateReplica(_)
        | Response::Membership(..)
        | Response::ReplicaLeft
        | Response::AddReplica(_)
        | Response::RemoveReplica(_) => None,
    }
}

/// An outcome that asks to be sent again is an error like any other refusal.
fn final_answer(response: Response, write: Option<RequestId>) -> Result<Response> {
    let (Response::Write(outcome, answered), Some(request)) = (&response, write) else {
        return Ok(response);
    };
    let group = GroupId::Shard(answered.shard);
    match outcome {
        WriteOutcome::Done { .. } | WriteOutcome::ConditionFailed { .. } => Ok(response),
        WriteOutcome::TooLateToKnow { retry_window_ms } => Err(Error::TooLateToKnow {
            request,
            retry_window: Duration::from_millis(*retry_window_ms),
        }),
        WriteOutcome::ClockAhead { wait_ms } => Err(Error::ClockAhead {
            wait: Duration::from_millis(*wait_ms),
        }),
        WriteOutcome::StaleEpoch => Err(Error::StaleEpoch { group }),
        WriteOutcome::StaleStamp => Err(Error::unavailable(group, "its leader's clock was late")),
    }
}

fn no_answer(address: &str, request: &Request, after: Duration) -> Error {
    match write_id(request) {
        Some(request) => Error::Unknown {
            request,
            reason: format!("no answer from {address} within {} ms", after.as_millis()),
        },
        None => Error::Timeout {
            what: format!("the request to {address}"),
            after,
        },
    }
}
