//! Asks other nodes about a merge, and this one as if it were another.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::Error;
use crate::error::Result;
use crate::node::merges::Merges;
use crate::raft::Leadership;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;
use crate::wire::request::Call;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// One call to another node.
const CALL_MAX: Duration = Duration::from_secs(1);

impl Merges {
    /// The answer of a shard's leader, which the replica here or another one names.
    pub(super) async fn ask_leader(
        &self,
        shard: ShardId,
        request: MergeRequest,
    ) -> Result<MergeReply> {
        let here = self.registry.shard(shard)?;
        let leadership = *here.group().leadership().borrow();
        let first = match leadership {
            Leadership::Leading { .. } => Some(self.me),
            Leadership::Following { leader } => leader.map(|leader| leader.node),
            Leadership::Failed => None,
        };
        let descriptor = here.reader().descriptor();
        let others = descriptor.replicas.iter().map(|replica| replica.node);
        let nodes = first.into_iter().chain(others).collect();
        self.ask_in_turn(nodes, request).await
    }

    /// Asks one node after the other, and whom they name.
    pub(super) async fn ask_in_turn(
        &self,
        nodes: Vec<NodeId>,
        request: MergeRequest,
    ) -> Result<MergeReply> {
        let mut refusal = Error::unavailable("its leader", "no node is known to have a replica");
        let mut asked = BTreeSet::new();
        let mut next: Vec<NodeId> = nodes.into_iter().rev().collect();
        while let Some(node) = next.pop() {
            if !asked.insert(node) {
                continue;
            }
            match self.ask(node, request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    if let Error::NotLeader {
                        leader: Some(leader),
                        ..
                    } = &error
                    {
                        next.push(*leader);
                    }
                    refusal = error;
                }
            }
        }
        Err(refusal)
    }

    pub(super) async fn ask(&self, node: NodeId, request: MergeRequest) -> Result<MergeReply> {
        if node == self.me {
            return Box::pin(self.answer(request)).await;
        }
        let call = Call {
            request: Request::Merge(request),
            deadline: CALL_MAX,
            forwarded: true,
            cluster: None,
        };
        match self.channel.node(node).call(call).await? {
            Response::Merge(reply) => Ok(reply),
            other => Err(Error::Internal(format!(
                "asked about a merge, got {other:?}"
            ))),
        }
    }
}

/// An answer to something else.
pub(super) fn misfit(reply: &MergeReply) -> Error {
    Error::Internal(format!("asked about a merge, got {reply:?}"))
}
