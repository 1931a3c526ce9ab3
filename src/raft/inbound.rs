//! What other replicas send to a group: requests for votes, entries, snapshots, the wish that it leads.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::StreamAppendError;
use openraft::raft::StreamAppendResult;
use openraft::raft::TransferLeaderRequest;

use crate::env::tasks::background;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::SnapshotSink;
use crate::raft::Group;
use crate::raft::config::Snapshot;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::raft::state_machine::SnapshotData;
use crate::types::log::Vote;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::SnapshotHeader;
use crate::wire::request::TakeLead;
use crate::wire::request::VoteRequest;
use crate::wire::request::VoteResponse;

impl Group {
    /// Answers a candidate.
    pub async fn vote(&self, request: VoteRequest) -> Result<VoteResponse> {
        let raft = self.inner.raft();
        let rpc = openraft::raft::VoteRequest {
            vote: convert::to_raft_vote(request.vote),
            last_log_id: request.last.map(convert::to_log_id),
            leadership_transfer: request.leadership_transfer,
        };
        let answer = if request.pre_vote {
            raft.pre_vote(rpc).await
        } else {
            raft.vote(rpc).await
        };
        let answer = answer.map_err(|error| self.inner.raft_error(&error))?;
        Ok(VoteResponse {
            vote: convert::to_vote(&answer.vote),
            last: answer.last_log_id.as_ref().map(convert::to_position),
            granted: answer.vote_granted,
        })
    }

    /// Takes one append outside the pipeline.
    pub async fn append(&self, request: AppendRequest) -> Result<AppendResponse> {
        let last = request
            .entries
            .last()
            .map(|entry| entry.position)
            .or(request.previous);
        let previous = request.previous;
        let rpc =
            convert::to_raft_append(request).map_err(|error| Error::Internal(error.to_string()))?;
        let answer = self.inner.raft().append_entries(rpc).await;
        let answer = answer.map_err(|error| self.inner.raft_error(&error))?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.inner.hear();
        }
        Ok(match answer {
            AppendEntriesResponse::Success => AppendResponse::Matched(last),
            AppendEntriesResponse::PartialSuccess(upto) => {
                AppendResponse::Matched(upto.as_ref().map(convert::to_position))
            }
            AppendEntriesResponse::Conflict => {
                AppendResponse::Conflict(previous.unwrap_or_default())
            }
            AppendEntriesResponse::HigherVote(vote) => {
                AppendResponse::HigherVote(convert::to_vote(&vote))
            }
        })
    }

    /// Takes a pipeline of appends; the answers come in their order, the first error ends it.
    pub fn append_stream(
        &self,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        // A request that cannot be decoded ends the stream; the leader starts another.
        let requests = requests
            .map(convert::to_raft_append)
            .take_while(|rpc| futures::future::ready(rpc.is_ok()));
        let requests = requests.filter_map(|rpc| futures::future::ready(rpc.ok()));
        let inner = Arc::clone(&self.inner);
        let answers = self.inner.raft().stream_append(requests);
        answers
            .map(move |answer| {
                let answer = answer.map(to_append_response);
                if matches!(
                    answer,
                    Ok(AppendResponse::Matched(_) | AppendResponse::Conflict(_))
                ) {
                    inner.hear();
                }
                answer.map_err(|fatal| inner.stopped(&fatal))
            })
            .boxed()
    }

    /// Takes a snapshot and installs it; answers with the replica's vote.
    pub async fn install(
        &self,
        header: SnapshotHeader,
        mut chunks: BoxStream<'static, Result<Bytes>>,
    ) -> Result<Vote> {
        let machine_error =
            |error: MachineError| Error::Internal(format!("receive a snapshot: {error}"));
        let hosted = Arc::clone(&self.inner.hosted);
        let mut sink: Box<dyn SnapshotSink> = offload(move || hosted.receiver().begin())
            .await
            .map_err(machine_error)?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let (taken, back) = background(move || (sink.chunk(chunk), sink)).await;
            // Entries come no more until the snapshot is here.
            self.inner.hear();
            taken.map_err(machine_error)?;
            sink = back;
        }
        let received = offload(move || sink.finish())
            .await
            .map_err(machine_error)?;
        let applied = Applied {
            position: header.position,
            membership_position: header.membership_position,
            membership: header.membership,
        };
        let meta = convert::to_meta(&applied).map_err(machine_error)?;
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Received(received),
        };
        let vote = convert::to_raft_vote(header.vote);
        let answer = self
            .inner
            .raft()
            .install_full_snapshot(vote, snapshot)
            .await;
        answer
            .map(|answer| convert::to_vote(&answer.vote))
            .map_err(|fatal| self.inner.stopped(&fatal))
    }

    /// The leader asks this replica to lead, or whether it would, or tells it whom it has asked. False when this
    /// one is asked and cannot yet, or holds back.
    pub async fn take_lead(&self, take: TakeLead) -> Result<bool> {
        if take.to == self.replica() && self.inner.holds_back() {
            return Ok(false);
        }
        if take.only_asked {
            return Ok(true);
        }
        let vote = convert::to_raft_vote(take.vote);
        let request = TransferLeaderRequest::new(vote, take.to, take.last.map(convert::to_log_id));
        let answer = self.inner.raft().handle_transfer_leader(request).await;
        answer
            .map(|taken| taken.is_ok())
            .map_err(|fatal| self.inner.stopped(&fatal))
    }
}

fn to_append_response(result: StreamAppendResult<TypeConfig>) -> AppendResponse {
    match result {
        Ok(position) => AppendResponse::Matched(position.as_ref().map(convert::to_position)),
        Err(StreamAppendError::Conflict(log_id)) => {
            AppendResponse::Conflict(convert::to_position(&log_id))
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            AppendResponse::HigherVote(convert::to_vote(&vote))
        }
    }
}
