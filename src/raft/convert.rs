//! Our words for Raft's values to the library's, and back. Decides only.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;
use openraft::vote::RaftVote as _;

use crate::machine::Applied;
use crate::machine::MachineError;
use crate::machine::Membership;
use crate::raft::config::Command;
use crate::raft::config::Entry;
use crate::raft::config::LogId;
use crate::raft::config::RaftVote;
use crate::raft::config::SnapshotMeta;
use crate::raft::config::StoredMembership;
use crate::raft::config::TypeConfig;
use crate::types::NodeId;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;
use crate::wire::request::AppendRequest;

type Leader = openraft::alias::LeaderIdOf<TypeConfig>;
pub(super) type CommittedLeader = openraft::alias::CommittedLeaderIdOf<TypeConfig>;

pub(super) fn to_leader_id(term: u64) -> CommittedLeader {
    CommittedLeader::from(term)
}

pub(super) fn to_log_id(position: Position) -> LogId {
    LogId::new(to_leader_id(position.term), position.index)
}

pub(super) fn to_position(log_id: &LogId) -> Position {
    Position {
        term: **log_id.committed_leader_id(),
        index: log_id.index(),
    }
}

pub(super) fn to_raft_vote(vote: Vote) -> RaftVote {
    RaftVote::from_leader_id(Leader::new(vote.term, vote.replica), vote.committed)
}

pub(super) fn to_vote(vote: &RaftVote) -> Vote {
    Vote {
        term: vote.leader_id().term,
        replica: vote.leader_id().voted_for,
        committed: vote.is_committed(),
    }
}

pub(super) fn to_entry(entry: LogEntry) -> Result<Entry, MachineError> {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Command(bytes) => EntryPayload::Normal(Command(bytes)),
        Payload::Membership(bytes) => EntryPayload::Membership(decode_membership(&bytes)?),
    };
    Ok(Entry {
        log_id: to_log_id(entry.position),
        payload,
    })
}

pub(super) fn to_log_entry(entry: Entry) -> LogEntry {
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(Command(bytes)) => Payload::Command(bytes),
        EntryPayload::Membership(membership) => Payload::Membership(encode_membership(&membership)),
    };
    LogEntry {
        position: to_position(&entry.log_id),
        payload,
    }
}

pub(super) fn to_raft_append(
    request: AppendRequest,
) -> Result<openraft::raft::AppendEntriesRequest<TypeConfig>, MachineError> {
    Ok(openraft::raft::AppendEntriesRequest {
        vote: to_raft_vote(request.vote),
        prev_log_id: request.previous.map(to_log_id),
        entries: request
            .entries
            .into_iter()
            .map(to_entry)
            .collect::<Result<_, _>>()?,
        leader_commit: request.committed.map(to_log_id),
    })
}

pub(super) fn to_append(
    request: openraft::raft::AppendEntriesRequest<TypeConfig>,
) -> AppendRequest {
    AppendRequest {
        vote: to_vote(&request.vote),
        previous: request.prev_log_id.as_ref().map(to_position),
        entries: request.entries.into_iter().map(to_log_entry).collect(),
        committed: request.leader_commit.as_ref().map(to_position),
    }
}

pub(super) fn to_stored_membership(applied: &Applied) -> Result<StoredMembership, MachineError> {
    if applied.membership.is_empty() {
        return Ok(StoredMembership::default());
    }
    let membership = decode_membership(&applied.membership)?;
    Ok(StoredMembership::new(
        applied.membership_position.map(to_log_id),
        membership,
    ))
}

pub(super) fn to_meta(applied: &Applied) -> Result<SnapshotMeta, MachineError> {
    Ok(SnapshotMeta {
        last_log_id: applied.position.map(to_log_id),
        last_membership: to_stored_membership(applied)?,
    })
}

pub(super) fn to_applied(meta: &SnapshotMeta) -> Applied {
    Applied {
        position: meta.last_log_id.as_ref().map(to_position),
        membership_position: meta.last_membership.log_id().as_ref().map(to_position),
        membership: encode_membership(meta.last_membership.membership()),
    }
}

pub(super) fn from_membership(membership: &openraft::Membership<ReplicaId, NodeId>) -> Membership {
    let nodes = membership.nodes();
    Membership {
        voters: membership.get_joint_config().clone(),
        nodes: nodes.map(|(replica, node)| (*replica, *node)).collect(),
    }
}

/// Whether these bytes are a membership that the library takes; what is read is written as it was. For the
/// tests that try every decoder.
pub(crate) fn is_membership(bytes: &[u8]) -> bool {
    let Ok(membership) = decode_membership(bytes) else {
        return false;
    };
    let again = decode_membership(&encode_membership(&membership));
    assert_eq!(again.ok(), Some(membership));
    true
}

fn encode_membership(membership: &openraft::Membership<ReplicaId, NodeId>) -> Bytes {
    from_membership(membership).encode()
}

fn decode_membership(
    bytes: &[u8],
) -> Result<openraft::Membership<ReplicaId, NodeId>, MachineError> {
    let membership = Membership::decode(bytes)?;
    openraft::Membership::new(membership.voters, membership.nodes)
        .map_err(|error| MachineError(format!("decode a membership: {error}")))
}
