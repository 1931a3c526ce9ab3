//! Carries one request to its end: attempts it at one node after another, under one identity, until an
//! answer that is final or the deadline. Where and when is decided by [`retry`] and [`Routes`].

use std::slice;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::ids::RequestIds;
use crate::client::retry;
use crate::client::retry::Next;
use crate::client::retry::Situation;
use crate::client::retry::Target;
use crate::client::routes::Routes;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::RequestId;
use crate::types::key::Anchor;
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
    /// Where an answer came from of a replica that the routes do not know, and the key that it was about. The next
    /// request asks there first: the one that is answered already is not held up, and a client with one request
    /// never asks.
    knows_more: Mutex<Option<(String, Option<Key>)>>,
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
            knows_more: Mutex::new(None),
            last_learned_ms: Mutex::new(None),
        })
    }

    /// The source of identities.
    pub fn ids(&self) -> &RequestIds {
        &self.ids
    }

    /// The range of the shard that holds `key`, if this client has heard of it. A hint.
    pub fn range_with(&self, key: &[u8]) -> Option<KeyRange> {
        self.with_routes(|routes| routes.range_with(key))
    }

    /// Before a request is made to fit the shards: learns where they are, if the last answers have shown
    /// that this is not known well. Cancel-safe.
    pub async fn prepare(&self, deadline: Option<Duration>) {
        let end = Instant::now() + deadline.unwrap_or(self.options.deadline);
        self.refresh(end).await;
    }

    /// Every address known, those given first.
    pub fn addresses(&self) -> Vec<String> {
        self.with_routes(|routes| routes.candidates())
    }

    /// Sends a request until it is answered, refused for good, or `deadline` (the sender's own when
    /// `None`) has passed. A write of which an attempt may have happened ends as [`Error::Unknown`].
    ///
    /// Cancel-safe, but a write that is dropped may have happened.
    pub async fn send(&self, mut request: Request, deadline: Option<Duration>) -> Result<Response> {
        let end = Instant::now() + deadline.unwrap_or(self.options.deadline);
        self.refresh(end).await;
        let write = request.write_id();
        let is_about_placement = is_about_placement(&request);
        let mut address = self.first_address(&request);
        let mut attempts = 0;
        let mut tried_since_wait = 0;
        let mut happened = false;
        let mut said = None;
        loop {
            attempts += 1;
            tried_since_wait += 1;
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.attempt(&address, &request, left).await {
                Ok(response) => {
                    self.note_answer(&address, &request, &response);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.note_error(&address, &error, write);
            // The leader of placement's group has said so.
            if is_about_placement && matches!(error, Error::NotFound { .. }) {
                return Err(error);
            }
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
                    None => retry::final_error_of_read(error, said),
                });
            };
            said = Some(error);
            if !after.is_zero() {
                tokio::time::sleep(after).await;
                tried_since_wait = 0;
            }
            address = self.resolve(target, &address, &request).await;
            if mutant::lives(Mutant::RetryUnderNewId)
                && let Request::Write(write) = &mut request
            {
                write.id = self.ids.next();
            }
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
        self.note_answer(address, &request, &response);
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
            Ok(answer) => final_answer(answer?, request.write_id()),
            Err(_) => Err(no_answer(address, request, deadline)),
        }
    }

    fn first_address(&self, request: &Request) -> String {
        let now_ms = self.now_ms();
        self.with_routes(|routes| {
            let leader = match (group_of(request), request.anchor()) {
                (Some(group), _) => routes.leader_of(group, now_ms),
                (None, Some(anchor)) if !is_for_any(request) => routes.leader_at(anchor, now_ms),
                (None, _) => None,
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

    /// Learns where shards are, if an answer has shown that this is not known well, and if there is
    /// time for it until `end`. Cancel-safe.
    async fn refresh(&self, end: Instant) {
        let Some((address, key)) = lock(&self.knows_more).take() else {
            return;
        };
        let is_time = || end.saturating_duration_since(Instant::now()) > LEARN_DEADLINE;
        if !self.may_learn_now() || !is_time() {
            return;
        }
        self.learn(&address).await;
        // A node tells of the replicas that it has; of the others it has heard.
        let now_ms = self.now_ms();
        let is_unknown = |key: &Key| {
            let leader = self.with_routes(|routes| routes.leader_at(Anchor::At(key), now_ms));
            leader.is_none()
        };
        if let Some(key) = key.filter(|key| is_time() && is_unknown(key)) {
            self.locate(&address, key).await;
        }
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

    /// As [`Sender::learn`].
    async fn locate(&self, address: &str, key: Key) {
        let answer = self
            .attempt(address, &Request::Locate(key), LEARN_DEADLINE)
            .await;
        if let Ok(Response::Locate(route)) = answer {
            self.with_routes(|routes| routes.located(route));
        }
    }

    fn note_answer(&self, address: &str, request: &Request, response: &Response) {
        let known = self.with_routes(|routes| {
            routes.reached(address);
            if let Response::Status(status) = response {
                routes.observe(status);
            }
            if let Response::SplitShard { left, right } = response {
                routes.learn(left.clone());
                routes.learn(right.clone());
            }
            // All are looked at: each teaches who leads, also behind one that is not known.
            let answers = answered(response).iter();
            let unknown = answers.filter(|answer| !routes.answered(answer)).count();
            match request.anchor() {
                Some(anchor) => unknown == 0 && routes.meant(anchor, answered(response)),
                // Where it goes does not depend on the shards.
                None => unknown == 0 || routes.knows_members(),
            }
        });
        // A leader's clock is the one that stamps; a follower's may be far behind.
        let leaders = answered(response).iter().filter(|answered| answered.leader);
        leaders.for_each(|answered| self.ids.observe(answered.timestamp));
        if !known {
            let key = request
                .anchor()
                .map(|anchor| Key::from(anchor.key().into_owned()));
            *lock(&self.knows_more) = Some((address.to_string(), key));
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
            Error::StaleEpoch { current, .. } => self.with_routes(|routes| {
                for shard in current {
                    routes.learn(shard.clone());
                }
            }),
            Error::Invalid { .. }
            | Error::Overloaded { .. }
            | Error::NoSpace { .. }
            | Error::TooLateToKnow { .. }
            | Error::Spanning { .. }
            | Error::WrongCluster { .. }
            | Error::WrongNode { .. }
            | Error::NotFound { .. }
            | Error::NoKeyspace { .. }
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

/// Whether only placement's leader answers, and says itself that something is not there. A node without a replica
/// says so of the group when another request names it, and that is no answer.
fn is_about_placement(request: &Request) -> bool {
    matches!(
        request,
        Request::Overview(_) | Request::Explain(_) | Request::Arrange(_) | Request::ListKeyspaces
    )
}

/// The group that a request names; shards that are found by a key are found by the routes.
fn group_of(request: &Request) -> Option<GroupId> {
    match request {
        Request::TransferLeader(transfer) => Some(transfer.group),
        Request::SplitShard(split) => Some(GroupId::Shard(split.shard)),
        Request::ReadPosition(group) => Some(*group),
        Request::Get(_)
        | Request::BatchGet(_)
        | Request::Scan(_)
        | Request::Write(_)
        | Request::Status(_)
        | Request::Vote(..)
        | Request::Append(..)
        | Request::Term(_)
        | Request::TakeLead(..)
        | Request::Form(_)
        | Request::Join(_)
        | Request::Routes(_)
        // Any node knows as much.
        | Request::Locate(_)
        | Request::Within(_)
        | Request::CreateReplica(_)
        | Request::CheckReplica(..)
        | Request::Merge(_)
        | Request::ReplicaLeft(_) => None,
        Request::Placement(_)
        | Request::Report(_)
        | Request::Overview(_)
        | Request::Explain(_)
        | Request::Arrange(_)
        | Request::ListKeyspaces => Some(GroupId::Placement),
        Request::AddReplica(add) => Some(GroupId::Shard(add.shard)),
        Request::RemoveReplica(name) | Request::Membership(name) => {
            Some(GroupId::Shard(name.shard))
        }
    }
}

/// Whether any replica answers as well as the leader.
fn is_for_any(request: &Request) -> bool {
    request.read_kind() == Some(ReadKind::Follower)
}

/// Who answered; several where several shards were asked.
fn answered(response: &Response) -> &[Answered] {
    match response {
        Response::Get(_, answered) | Response::Write(_, answered) => slice::from_ref(answered),
        Response::BatchGet(_, answered) => answered,
        Response::Scan(page) => slice::from_ref(&page.answered),
        Response::Status(_)
        | Response::TransferLeader
        | Response::SplitShard { .. }
        | Response::ReadPosition(_)
        | Response::Vote(_)
        | Response::Append(_)
        | Response::Term(_)
        | Response::TakeLead(_)
        | Response::Form(_)
        | Response::Join(_)
        | Response::Placement(_)
        | Response::Report(_)
        | Response::Overview(_)
        | Response::Explain(_)
        | Response::Arrange
        | Response::Keyspaces(_)
        | Response::Locate(_)
        | Response::Routes(..)
        | Response::CreateReplica(_)
        | Response::Membership(..)
        | Response::ReplicaLeft
        | Response::AddReplica(_)
        | Response::RemoveReplica(_)
        | Response::CheckReplica(_)
        | Response::Merge(_) => &[],
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
        WriteOutcome::Spanning { key } => Err(Error::Spanning {
            request,
            key: key.clone(),
        }),
        WriteOutcome::StaleEpoch => Err(Error::StaleEpoch {
            group,
            current: Vec::new(),
        }),
        WriteOutcome::StaleStamp => Err(Error::unavailable(group, "its leader's clock was late")),
        WriteOutcome::Frozen => Err(Error::unavailable(
            group,
            "it is about to be one with its neighbour",
        )),
    }
}

fn no_answer(address: &str, request: &Request, after: Duration) -> Error {
    match request.write_id() {
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
