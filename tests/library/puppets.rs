//! Replicas that the test plays: they vote, and take entries, as they are told.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate::error::Error;
use quorate::error::Result;
use quorate::types::NodeId;
use quorate::types::Position;
use quorate::types::log::Vote;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;
use quorate::wire::request::VoteRequest;
use quorate::wire::request::VoteResponse;
use tokio::sync::watch;

use crate::wires::Wires;
use crate::wires::unexpected;

/// How a puppet answers a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It votes for it.
    Grants,
    /// It has seen the candidate's vote, and takes it over as the newest, but its own log is longer, so it
    /// does not vote for it.
    OnlySees,
}

/// One puppet. Cloning shares it.
#[derive(Clone)]
pub struct Puppet {
    state: Arc<Mutex<State>>,
    /// It has this entry and all before it. What was sent beyond that is answered later.
    has: watch::Sender<u64>,
}

struct State {
    manner: Manner,
    /// The last entry that was sent to it.
    sent: u64,
    /// The last entry that it was told is committed.
    committed: u64,
    votes_asked: u64,
    /// The term that it says it is in; nothing: whoever asks waits in vain.
    says: Option<u64>,
}

impl Puppet {
    /// Puts a puppet at a node, which has what every replica is born with.
    pub fn put(wires: &Wires, node: u64, manner: Manner) -> Puppet {
        let state = State {
            manner,
            sent: 1,
            committed: 0,
            votes_asked: 0,
            says: None,
        };
        let puppet = Puppet {
            state: Arc::new(Mutex::new(state)),
            has: watch::Sender::new(1),
        };
        wires.put(NodeId(node), Arc::new(puppet.clone()));
        puppet
    }

    /// From now on it answers candidates so.
    pub fn behave(&self, manner: Manner) {
        self.look(|state| state.manner = manner);
    }

    /// From now on it says that it is in this term, or says nothing.
    pub fn say(&self, term: Option<u64>) {
        self.look(|state| state.says = term);
    }

    /// From now on it has the entries up to this one.
    pub fn take(&self, upto: u64) {
        self.has.send_if_modified(|has| {
            let is_more = *has < upto;
            *has = upto.max(*has);
            is_more
        });
    }

    /// The last entry that it has.
    pub fn has(&self) -> u64 {
        *self.has.borrow()
    }

    /// The last entry that was sent to it.
    pub fn sent(&self) -> u64 {
        self.look(|state| state.sent)
    }

    /// The last entry that it was told is committed.
    pub fn committed(&self) -> u64 {
        self.look(|state| state.committed)
    }

    /// How often it was asked for its vote in earnest.
    pub fn votes_asked(&self) -> u64 {
        self.look(|state| state.votes_asked)
    }

    fn vote(&self, asked: VoteRequest) -> VoteResponse {
        self.look(|state| {
            state.votes_asked += u64::from(!asked.pre_vote);
            let longer = Position {
                term: asked.vote.term,
                index: 1_000,
            };
            match state.manner {
                Manner::OnlySees if !asked.pre_vote => VoteResponse {
                    vote: asked.vote,
                    last: Some(longer),
                    granted: false,
                },
                Manner::Grants | Manner::OnlySees => VoteResponse {
                    vote: asked.vote,
                    last: None,
                    granted: true,
                },
            }
        })
    }

    fn hear(&self, request: &AppendRequest) {
        let committed = request.committed.map_or(0, |position| position.index);
        let last = request.entries.last().map(|entry| entry.position.index);
        self.look(|state| {
            state.committed = state.committed.max(committed);
            state.sent = state.sent.max(last.unwrap_or(0));
        });
    }

    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().expect("nothing panics under this lock"))
    }
}

/// The end of the log behind a request's entries.
fn end_of(request: &AppendRequest) -> Option<Position> {
    let last = request.entries.last().map(|entry| entry.position);
    last.or(request.previous)
}

impl Service for Puppet {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let answer = match call.request {
            Request::Vote(_, asked) => Ok(Response::Vote(self.vote(asked))),
            Request::Append(_, request) => {
                self.hear(&request);
                let end = end_of(&request);
                Ok(Response::Append(AppendResponse::Matched(end)))
            }
            Request::Term(_) => match self.look(|state| state.says) {
                Some(term) => Ok(Response::Term(term)),
                None => return std::future::pending().boxed(),
            },
            other => unexpected(&other),
        };
        std::future::ready(answer).boxed()
    }

    fn append(
        &self,
        _route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        let puppet = self.clone();
        let heard = requests.map(move |request| {
            puppet.hear(&request);
            let (end, mut has) = (end_of(&request), puppet.has.subscribe());
            async move {
                let needed = end.map_or(0, |end| end.index);
                let _ = has.wait_for(|has| *has >= needed).await;
                Ok(AppendResponse::Matched(end))
            }
        });
        heard.buffered(64).boxed()
    }

    fn snapshot(
        &self,
        _header: SnapshotHeader,
        _chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(Error::Internal("a puppet takes no snapshot".to_owned()))
        }
        .boxed()
    }
}
