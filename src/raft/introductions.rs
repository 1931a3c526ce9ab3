//! First contact: a member whose node does not have its replica yet is introduced to that node.
//!
//! A replica that was just added, and a child of a split whose node has stepped over the split by a
//! snapshot of the parent, come to be in this one way. Only a member of the membership that this replica
//! has applied is introduced, which is committed: a message to anyone else comes from an older state of
//! the group, and the node that refuses it is right.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::error::Error;
use crate::raft::group::Introduction;
use crate::types::ReplicaId;
use crate::types::shard::Replica;
use crate::wire::request::Call;
use crate::wire::request::CreateReplica;
use crate::wire::request::Creation;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Service;

/// Between two introductions of one replica.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the node may take: it writes down that the replica was born.
const DEADLINE: Duration = Duration::from_secs(1);

/// What one replica tells the nodes of the others.
pub(super) struct Introductions {
    introduction: Introduction,
    /// When each member may be introduced again; `None`: never, since it has ended.
    next: Mutex<BTreeMap<ReplicaId, Option<Instant>>>,
}

impl Introductions {
    pub(super) fn new(introduction: Introduction) -> Introductions {
        Introductions {
            introduction,
            next: Mutex::default(),
        }
    }

    /// Whether it is time, which it then is not for a while.
    fn take_turn(&self, to: ReplicaId, now: Instant) -> bool {
        let mut next = self.next.lock().expect("nothing panics under this lock");
        let is_due = next
            .get(&to)
            .is_none_or(|next| next.is_some_and(|next| next <= now));
        if is_due {
            next.insert(to, Some(now + PAUSE));
        }
        is_due
    }

    fn is_gone(&self, to: ReplicaId) {
        let mut next = self.next.lock().expect("nothing panics under this lock");
        next.insert(to, None);
    }
}

/// Introduces one member to its node.
pub(super) struct Introducer {
    pub(super) introductions: Arc<Introductions>,
    pub(super) service: Arc<dyn Service>,
    pub(super) to: Replica,
}

impl Introducer {
    /// After a refused message: if the replica is not there, has its node make it. The message that was
    /// refused is sent again by its sender. Cancel-safe: a dropped call may have made the replica.
    pub(super) async fn refused(&self, error: &Error) {
        if !matches!(error, Error::NotFound { .. }) {
            return;
        }
        let Some(descriptor) = (self.introductions.introduction)() else {
            return;
        };
        let is_member = descriptor.replicas.contains(&self.to);
        if !is_member || !self.introductions.take_turn(self.to.id, Instant::now()) {
            return;
        }
        let create = CreateReplica {
            descriptor,
            replica: self.to.id,
        };
        let call = Call {
            request: Request::CreateReplica(create),
            deadline: DEADLINE,
            forwarded: false,
            cluster: None,
        };
        let answer = self.service.call(call).await;
        debug!(replica = %self.to.id, node = %self.to.node, ?answer, "introduced");
        if let Ok(Response::CreateReplica(Creation::Gone)) = answer {
            self.introductions.is_gone(self.to.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use futures::stream::BoxStream;

    use super::*;
    use crate::error::Result;
    use crate::types::KeyRange;
    use crate::types::NodeId;
    use crate::types::ShardId;
    use crate::types::log::Vote;
    use crate::types::shard::Epoch;
    use crate::types::shard::ShardDescriptor;
    use crate::wire::request::AppendRequest;
    use crate::wire::request::AppendResponse;
    use crate::wire::request::Route;
    use crate::wire::request::SnapshotHeader;

    const MEMBER: Replica = Replica {
        id: ReplicaId(7),
        node: NodeId(2),
    };

    /// Answers every order for a replica alike.
    struct Node {
        creation: Creation,
        asked: Mutex<Vec<CreateReplica>>,
    }

    impl Service for Node {
        fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
            let Request::CreateReplica(create) = call.request else {
                unreachable!("it was asked {:?}", call.request)
            };
            self.asked.lock().unwrap().push(create);
            let creation = self.creation;
            async move { Ok(Response::CreateReplica(creation)) }.boxed()
        }

        fn append(
            &self,
            _route: Route,
            _requests: BoxStream<'static, AppendRequest>,
        ) -> BoxStream<'static, Result<AppendResponse>> {
            unreachable!("nothing is appended")
        }

        fn snapshot(
            &self,
            _snapshot: SnapshotHeader,
            _chunks: BoxStream<'static, Result<bytes::Bytes>>,
        ) -> BoxFuture<'static, Result<Vote>> {
            unreachable!("nothing is sent")
        }
    }

    fn introducer(creation: Creation, to: Replica) -> (Introducer, Arc<Node>) {
        let descriptor = ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: vec![MEMBER],
        };
        let introduction: Introduction = Arc::new(move || Some(descriptor.clone()));
        let asked = Mutex::default();
        let node = Arc::new(Node { creation, asked });
        let introducer = Introducer {
            introductions: Arc::new(Introductions::new(introduction)),
            service: Arc::clone(&node) as Arc<dyn Service>,
            to,
        };
        (introducer, node)
    }

    /// How often a node is asked when a message is refused every 100 ms for 5 s.
    async fn asked(creation: Creation, to: Replica, refusal: &Error) -> usize {
        let (introducer, node) = introducer(creation, to);
        for _ in 0..50 {
            introducer.refused(refusal).await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let asked = node.asked.lock().unwrap();
        assert!(asked.iter().all(|create| create.replica == to.id));
        asked.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_not_there_is_introduced_once_a_second_until_it_has_ended() {
        let absent = Error::NotFound {
            what: "r7".to_string(),
        };
        assert_eq!(asked(Creation::NotYet, MEMBER, &absent).await, 5);
        assert_eq!(asked(Creation::Gone, MEMBER, &absent).await, 1);
        let stranger = Replica {
            id: ReplicaId(8),
            ..MEMBER
        };
        assert_eq!(asked(Creation::Open, stranger, &absent).await, 0);
        let elsewhere = Replica {
            node: NodeId(3),
            ..MEMBER
        };
        assert_eq!(asked(Creation::Open, elsewhere, &absent).await, 0);
        let starting = Error::unavailable("n2", "it is starting");
        assert_eq!(asked(Creation::Open, MEMBER, &starting).await, 0);
    }
}
