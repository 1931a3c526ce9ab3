//! Groups beside voters that do not do their part.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use openraft::network::RPCOption;
use openraft::network::RaftNetworkFactory;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::AppendEntriesRequest;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::error::Effect;
use crate::error::Error;
use crate::error::Result;
use crate::machine::Membership;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::raft::convert;
use crate::raft::introductions::Introductions;
use crate::raft::network::Network;
use crate::raft::successor::ELECTED_WITHIN;
use crate::raft::suite::group_with;
use crate::raft::suite::leading;
use crate::raft::suite::newborn;
use crate::raft::suite::put;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;
use crate::types::shard::Replica;
use crate::wal::Wal;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Route;
use crate::wire::request::Service;
use crate::wire::request::SnapshotHeader;
use crate::wire::request::VoteResponse;

/// Another voter: it grants every vote, answers heartbeats, never says that it has an entry, and when it is asked
/// for its term has seen a later leader. When it is offered the lead it says that it takes it, and does not; or it
/// says from the first that it would not.
#[derive(Clone)]
struct Deaf {
    /// The replica that would not lead.
    holds_back: Option<ReplicaId>,
    offered: mpsc::UnboundedSender<ReplicaId>,
    /// Streams of entries that were opened to it.
    opened: Arc<AtomicU64>,
}

impl Channel for Deaf {
    fn node(&self, _id: NodeId) -> Arc<dyn Service> {
        Arc::new(self.clone())
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        unreachable!("{address} was asked")
    }

    fn learn(&self, _member: crate::types::node::Member) {}
}

impl Service for Deaf {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let answer = match call.request {
            Request::Vote(_, asked) => Ok(Response::Vote(VoteResponse {
                vote: asked.vote,
                last: None,
                granted: true,
            })),
            Request::Append(_, beat) => {
                Ok(Response::Append(AppendResponse::Matched(beat.previous)))
            }
            Request::Term(_) => Ok(Response::Term(u64::MAX)),
            Request::TakeLead(route, take) => {
                if take.to == route.to && !take.only_asked {
                    self.offered.send(take.to).unwrap();
                }
                Ok(Response::TakeLead(self.holds_back != Some(route.to)))
            }
            other => Err(Error::Internal(format!("{other:?} was asked"))),
        };
        std::future::ready(answer).boxed()
    }

    fn append(
        &self,
        _route: Route,
        _requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        stream::pending().boxed()
    }

    fn snapshot(
        &self,
        _snapshot: SnapshotHeader,
        _chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        std::future::pending().boxed()
    }
}

/// One that leads beside so many of [`Deaf`], in which term, and what it stands on.
async fn beside_the_deaf(count: u64) -> (Group, u64, Stand) {
    beside_the_deaf_of_whom(count, None).await
}

async fn beside_the_deaf_of_whom(count: u64, holds_back: Option<ReplicaId>) -> (Group, u64, Stand) {
    let (engine, wal, directory) = newborn().await;
    let replicas: Vec<Replica> = (1..=count + 1)
        .map(|number| Replica {
            id: ReplicaId(number),
            node: NodeId(number),
        })
        .collect();
    let members = Membership::of(&replicas);
    let (offered, offers) = mpsc::unbounded_channel();
    let deaf = Arc::new(Deaf {
        holds_back,
        offered,
        opened: Arc::default(),
    });
    let (group, _) = group_with(&engine, &wal, members, deaf).await;
    let term = leading(&group).await;
    let stand = Stand {
        offers,
        _ground: (directory, wal),
    };
    (group, term, stand)
}

struct Stand {
    /// Whom the leader has asked to lead.
    offers: mpsc::UnboundedReceiver<ReplicaId>,
    _ground: (TempDir, Wal),
}

/// The library sends one message, and the leader proposes nothing after that: were it lost, nobody would lead.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hands_over_asks_until_another_one_leads() {
    let (group, term, mut stand) = beside_the_deaf(2).await;
    let (second, third) = (ReplicaId(2), ReplicaId(3));
    let patience = Duration::from_secs(10);
    let handed_over = async {
        // It asks nobody of whom it has not heard.
        while group.transfer_leader(Some(NodeId(2))).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(patience, handed_over).await.unwrap();
    for expected in [second, second, third, second] {
        let offered = tokio::time::timeout(patience, stand.offers.recv()).await;
        assert_eq!(offered.unwrap(), Some(expected));
    }
    let beat = AppendRequest {
        vote: Vote {
            term: term + 1,
            replica: third,
            committed: true,
        },
        previous: Some(Position { term: 1, index: 1 }),
        entries: Vec::new(),
        committed: None,
    };
    group.append(beat).await.unwrap();
    let mut leadership = group.leadership();
    let follows = |now: &Leadership| matches!(now, Leadership::Following { .. });
    leadership.wait_for(follows).await.unwrap();
    // One offer may have been on its way.
    while tokio::time::timeout(ELECTED_WITHIN / 2, stand.offers.recv())
        .await
        .is_ok()
    {}
    let more = tokio::time::timeout(4 * ELECTED_WITHIN, stand.offers.recv()).await;
    assert!(more.is_err(), "it asks though another one leads");
}

/// Had it handed over to one that never leads, no write would be taken any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_goes_on_when_whom_it_would_hand_over_to_holds_back() {
    let second = ReplicaId(2);
    let (group, term, mut stand) = beside_the_deaf_of_whom(2, Some(second)).await;
    let refused = async {
        loop {
            let error = group.transfer_leader(Some(NodeId(2))).await.unwrap_err();
            // Before that it has not been heard of.
            if error.to_string().contains("does not lead now") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, refused).await.unwrap();
    let landed = group.propose(term, put(1).encode()).await.unwrap();
    assert!(stand.offers.try_recv().is_err(), "it was asked to lead");
    drop(landed);
    let handed_over = async {
        while group.transfer_leader(None).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(patience, handed_over).await.unwrap();
    let offered = tokio::time::timeout(patience, stand.offers.recv()).await;
    assert_eq!(offered.unwrap(), Some(ReplicaId(3)));
}

/// One voter of two is no majority without the other, and that one has seen a later leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_reads_nothing_when_a_voter_that_it_needs_has_seen_a_later_one() {
    let (group, _, _stand) = beside_the_deaf(1).await;
    let refused = group.read_position().await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader { .. }), "{refused:?}");
}

/// The next leader has not got the write, and a third replica may have: the leader after that may commit it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_next_leader_throws_away_is_unknown() {
    let (group, term, _stand) = beside_the_deaf(1).await;
    // Before the others have answered its first heartbeat it takes no write.
    let raft = group.inner.raft();
    let confirmed = async {
        while raft
            .get_read_linearizer(openraft::ReadPolicy::ReadIndex)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    let confirmed = tokio::time::timeout(Duration::from_secs(10), confirmed);
    confirmed.await.unwrap();
    let landed = group.propose(term, put(1).encode()).await.unwrap();
    let first = Position {
        term: term + 1,
        index: 2,
    };
    let append = AppendRequest {
        vote: Vote {
            term: term + 1,
            replica: ReplicaId(2),
            committed: true,
        },
        previous: Some(Position { term: 1, index: 1 }),
        entries: vec![LogEntry {
            position: first,
            payload: Payload::Blank,
        }],
        committed: None,
    };
    let taken = group.append(append).await.unwrap();
    assert_eq!(taken, AppendResponse::Matched(Some(first)));
    let landed = tokio::time::timeout(Duration::from_secs(10), landed).await;
    assert_eq!(landed.unwrap().unwrap_err().effect(), Effect::Unknown);
}

/// The library waits, after an error, before it makes a request: until then there must be no stream that can fail.
#[tokio::test]
async fn a_stream_of_entries_is_opened_with_its_first_request() {
    let (offered, _) = mpsc::unbounded_channel();
    let opened = Arc::new(AtomicU64::new(0));
    let deaf = Deaf {
        holds_back: None,
        offered,
        opened: Arc::clone(&opened),
    };
    let mut network = Network {
        group: GroupId::Placement,
        from: ReplicaId(1),
        channel: Arc::new(deaf),
        outgoing: Arc::default(),
        introductions: Arc::new(Introductions::new(Arc::new(|| None))),
        pace: Arc::default(),
    };
    let mut sender = network.new_client(ReplicaId(2), &NodeId(2)).await;
    let (requests, input) = futures::channel::mpsc::unbounded();
    let option = RPCOption::new(Duration::from_secs(10));
    let mut answers = sender.stream_append(input, option).await.unwrap();
    assert!(answers.next().now_or_never().is_none());
    assert_eq!(opened.load(Ordering::SeqCst), 0);
    let request = AppendEntriesRequest {
        vote: convert::to_raft_vote(Vote {
            term: 1,
            replica: ReplicaId(1),
            committed: true,
        }),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    requests.unbounded_send(request).unwrap();
    assert!(answers.next().now_or_never().is_none());
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}
