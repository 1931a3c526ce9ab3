//! Requests and answers of `transport.proto`. Decides only.

use bytes::Bytes;

use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::log::Vote;
use crate::types::node::Room;
use crate::types::shard::Chain;
use crate::types::shard::Link;
use crate::types::shard::ShardDescriptor;
use crate::wire::convert::cluster;
use crate::wire::convert::group_number;
use crate::wire::convert::group_of;
use crate::wire::convert::optional_sixteen;
use crate::wire::convert::range_of;
use crate::wire::convert::range_out;
use crate::wire::convert::required;
use crate::wire::convert::sixteen;
use crate::wire::convert::sixteen_bytes;
use crate::wire::proto::v1;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Check;
use crate::wire::request::Checked;
use crate::wire::request::CreateReplica;
use crate::wire::request::Creation;
use crate::wire::request::FormRequest;
use crate::wire::request::FormResponse;
use crate::wire::request::Founder;
use crate::wire::request::Portion;
use crate::wire::request::ReplicaName;
use crate::wire::request::Route;
use crate::wire::request::SnapshotHeader;
use crate::wire::request::Standing;
use crate::wire::request::TakeLead;
use crate::wire::request::VoteRequest;
use crate::wire::request::VoteResponse;

/// A position as it is sent.
pub fn position_out(position: Position) -> v1::Position {
    v1::Position {
        term: position.term,
        index: position.index,
    }
}

/// A position.
pub fn position_of(position: v1::Position) -> Position {
    Position {
        term: position.term,
        index: position.index,
    }
}

/// A vote as it is sent.
pub fn vote_out(vote: Vote) -> v1::BallotVote {
    v1::BallotVote {
        term: vote.term,
        replica: vote.replica.0,
        committed: vote.committed,
    }
}

/// A vote.
pub fn vote_of(vote: Option<v1::BallotVote>) -> Result<Vote> {
    let vote = required("vote", vote)?;
    Ok(Vote {
        term: vote.term,
        replica: ReplicaId(vote.replica),
        committed: vote.committed,
    })
}

/// A route as it is sent.
pub fn route_out(route: Route) -> v1::Route {
    v1::Route {
        group: group_number(route.group),
        from: route.from.0,
        to: route.to.0,
    }
}

/// A route.
pub fn route_of(route: Option<v1::Route>) -> Result<Route> {
    let route = required("route", route)?;
    Ok(Route {
        group: group_of(route.group),
        from: ReplicaId(route.from),
        to: ReplicaId(route.to),
    })
}

/// An append as it is sent.
pub fn append_out(append: AppendRequest) -> v1::Entries {
    v1::Entries {
        vote: Some(vote_out(append.vote)),
        previous: append.previous.map(position_out),
        entries: append.entries.into_iter().map(entry_out).collect(),
        committed: append.committed.map(position_out),
    }
}

/// An append. Its entries are checked to have no gap, since a log must not get one.
pub fn append_of(append: v1::Entries) -> Result<AppendRequest> {
    let previous = append.previous.map(position_of);
    let entries = append.entries.into_iter().map(entry_of);
    let entries: Vec<LogEntry> = entries.collect::<Result<_>>()?;
    let indexes = entries.iter().map(|entry| entry.position.index);
    let indexes = previous
        .iter()
        .map(|position| position.index)
        .chain(indexes);
    if !indexes
        .clone()
        .zip(indexes.skip(1))
        .all(|(one, next)| one.checked_add(1) == Some(next))
    {
        return Err(Error::invalid(
            "entries",
            "there is a gap between their indexes",
        ));
    }
    Ok(AppendRequest {
        vote: vote_of(append.vote)?,
        previous,
        entries,
        committed: append.committed.map(position_of),
    })
}

fn entry_out(entry: LogEntry) -> v1::Entry {
    let (kind, payload) = match entry.payload {
        Payload::Blank => (v1::PayloadKind::Blank, Bytes::new()),
        Payload::Command(bytes) => (v1::PayloadKind::Command, bytes),
        Payload::Membership(bytes) => (v1::PayloadKind::Membership, bytes),
    };
    v1::Entry {
        position: Some(position_out(entry.position)),
        kind: kind.into(),
        payload,
    }
}

fn entry_of(entry: v1::Entry) -> Result<LogEntry> {
    let position = position_of(required("entries.position", entry.position)?);
    let payload = match v1::PayloadKind::try_from(entry.kind) {
        Ok(v1::PayloadKind::Blank) => Payload::Blank,
        Ok(v1::PayloadKind::Command) => Payload::Command(entry.payload),
        Ok(v1::PayloadKind::Membership) => Payload::Membership(entry.payload),
        Ok(v1::PayloadKind::Unspecified) | Err(_) => {
            let reason = format!("{} is no kind of entry known here", entry.kind);
            return Err(Error::invalid("entries.kind", reason));
        }
    };
    Ok(LogEntry { position, payload })
}

/// The wire form of a node's room.
pub fn room_out(room: Option<Room>) -> v1::Room {
    match room {
        Some(Room::Enough) => v1::Room::Enough,
        Some(Room::Short) => v1::Room::Short,
        Some(Room::Full) => v1::Room::Full,
        None => v1::Room::Unspecified,
    }
}

/// Reads it. A number of a later version says nothing.
pub fn room_of(room: i32) -> Option<Room> {
    match v1::Room::try_from(room) {
        Ok(v1::Room::Enough) => Some(Room::Enough),
        Ok(v1::Room::Short) => Some(Room::Short),
        Ok(v1::Room::Full) => Some(Room::Full),
        Ok(v1::Room::Unspecified) | Err(_) => None,
    }
}

/// The answer to an append as it is sent.
pub fn appended_out(response: AppendResponse) -> v1::Agreement {
    use v1::agreement::At;
    use v1::agreement::Kind;
    let at = |position: Option<Position>| At {
        position: position.map(position_out),
    };
    let kind = match response {
        AppendResponse::Matched(position) => Kind::Matched(at(position)),
        AppendResponse::Conflict(position) => Kind::Conflict(position_out(position)),
        AppendResponse::HigherVote(vote) => Kind::HigherVote(vote_out(vote)),
    };
    v1::Agreement { kind: Some(kind) }
}

/// The answer to an append.
pub fn appended_of(response: v1::Agreement) -> Result<AppendResponse> {
    use v1::agreement::Kind;
    match required("agreement", response.kind)? {
        Kind::Matched(at) => Ok(AppendResponse::Matched(at.position.map(position_of))),
        Kind::Conflict(position) => Ok(AppendResponse::Conflict(position_of(position))),
        Kind::HigherVote(vote) => Ok(AppendResponse::HigherVote(vote_of(Some(vote))?)),
    }
}

/// A request for a vote as it is sent.
pub fn vote_request_out(route: Route, request: VoteRequest) -> v1::VoteRequest {
    v1::VoteRequest {
        route: Some(route_out(route)),
        vote: Some(vote_out(request.vote)),
        last: request.last.map(position_out),
        leadership_transfer: request.leadership_transfer,
        pre_vote: request.pre_vote,
    }
}

/// A request for a vote.
pub fn vote_request_of(request: v1::VoteRequest) -> Result<(Route, VoteRequest)> {
    let vote = VoteRequest {
        vote: vote_of(request.vote)?,
        last: request.last.map(position_of),
        leadership_transfer: request.leadership_transfer,
        pre_vote: request.pre_vote,
    };
    Ok((route_of(request.route)?, vote))
}

/// The answer to a request for a vote as it is sent.
pub fn voted_out(response: VoteResponse) -> v1::VoteResponse {
    v1::VoteResponse {
        vote: Some(vote_out(response.vote)),
        last: response.last.map(position_out),
        granted: response.granted,
    }
}

/// The answer to a request for a vote.
pub fn voted_of(response: v1::VoteResponse) -> Result<VoteResponse> {
    Ok(VoteResponse {
        vote: vote_of(response.vote)?,
        last: response.last.map(position_of),
        granted: response.granted,
    })
}

/// A request to lead as it is sent.
pub fn take_lead_out(route: Route, request: TakeLead) -> v1::TakeLeadRequest {
    v1::TakeLeadRequest {
        route: Some(route_out(route)),
        vote: Some(vote_out(request.vote)),
        to: request.to.0,
        last: request.last.map(position_out),
        only_asked: request.only_asked,
    }
}

/// A request to lead.
pub fn take_lead_of(request: v1::TakeLeadRequest) -> Result<(Route, TakeLead)> {
    let take = TakeLead {
        vote: vote_of(request.vote)?,
        to: ReplicaId(request.to),
        last: request.last.map(position_of),
        only_asked: request.only_asked,
    };
    Ok((route_of(request.route)?, take))
}

/// A snapshot's header as it is sent.
pub fn header_out(header: SnapshotHeader) -> v1::snapshot_request::Header {
    v1::snapshot_request::Header {
        route: Some(route_out(header.route)),
        vote: Some(vote_out(header.vote)),
        position: header.position.map(position_out),
        membership_position: header.membership_position.map(position_out),
        membership: header.membership,
    }
}

/// A snapshot's header.
pub fn header_of(header: v1::snapshot_request::Header) -> Result<SnapshotHeader> {
    Ok(SnapshotHeader {
        route: route_of(header.route)?,
        vote: vote_of(header.vote)?,
        position: header.position.map(position_of),
        membership_position: header.membership_position.map(position_of),
        membership: header.membership,
    })
}

/// What a forming node says, as it is sent.
pub fn form_out(request: FormRequest) -> v1::FormRequest {
    let confirmed = request.confirmed;
    v1::FormRequest {
        token: request.token,
        list: sixteen_bytes(request.list.0),
        from: Some(founder_out(request.from)),
        confirmed: confirmed.map_or_else(Bytes::new, |hash| sixteen_bytes(hash.0)),
    }
}

/// What a forming node says.
pub fn form_of(request: v1::FormRequest) -> Result<FormRequest> {
    Ok(FormRequest {
        token: request.token,
        list: ClusterId(sixteen("list", &request.list)?),
        from: founder_of(required("from", request.from)?)?,
        confirmed: optional_sixteen("confirmed", &request.confirmed)?.map(ClusterId),
    })
}

/// The answer to a forming node as it is sent.
pub fn formed_out(response: FormResponse) -> v1::FormResponse {
    use v1::form_response;
    let state = match response {
        FormResponse::Forming(request) => form_response::State::Forming(form_out(request)),
        FormResponse::Formed {
            token,
            cluster,
            founders,
        } => form_response::State::Formed(form_response::Formed {
            token,
            cluster_id: sixteen_bytes(cluster.0),
            founders: founders.into_iter().map(founder_out).collect(),
        }),
    };
    v1::FormResponse { state: Some(state) }
}

/// The answer to a forming node.
pub fn formed_of(response: v1::FormResponse) -> Result<FormResponse> {
    use v1::form_response::State;
    match required("state", response.state)? {
        State::Forming(request) => Ok(FormResponse::Forming(form_of(request)?)),
        State::Formed(formed) => Ok(FormResponse::Formed {
            token: formed.token,
            cluster: ClusterId(sixteen("cluster_id", &formed.cluster_id)?),
            founders: formed
                .founders
                .into_iter()
                .map(founder_of)
                .collect::<Result<_>>()?,
        }),
    }
}

pub(super) fn founder_out(founder: Founder) -> v1::Founder {
    v1::Founder {
        name: founder.name,
        incarnation: sixteen_bytes(founder.incarnation.0),
        node_address: founder.node_address,
        client_address: founder.client_address,
    }
}

pub(super) fn founder_of(founder: v1::Founder) -> Result<Founder> {
    Ok(Founder {
        name: founder.name,
        incarnation: Incarnation(sixteen("founder.incarnation", &founder.incarnation)?),
        node_address: founder.node_address,
        client_address: founder.client_address,
    })
}

/// A CreateReplica as it is sent.
pub fn create_replica_out(create: CreateReplica) -> v1::CreateReplicaRequest {
    v1::CreateReplicaRequest {
        shard: Some(cluster::shard_out(create.descriptor)),
        replica: create.replica.0,
    }
}

/// A CreateReplica.
pub fn create_replica_of(request: v1::CreateReplicaRequest) -> Result<CreateReplica> {
    Ok(CreateReplica {
        descriptor: cluster::shard_of(required("shard", request.shard)?)?,
        replica: ReplicaId(request.replica),
    })
}

/// The answer to a CreateReplica as it is sent.
pub fn created_out(creation: Creation) -> v1::CreateReplicaResponse {
    let creation = match creation {
        Creation::Open => v1::Creation::Open,
        Creation::Gone => v1::Creation::Gone,
        Creation::NotYet => v1::Creation::NotYet,
    };
    v1::CreateReplicaResponse {
        creation: creation.into(),
    }
}

/// The answer to a CreateReplica.
pub fn created_of(response: v1::CreateReplicaResponse) -> Result<Creation> {
    match v1::Creation::try_from(response.creation) {
        Ok(v1::Creation::Open) => Ok(Creation::Open),
        Ok(v1::Creation::Gone) => Ok(Creation::Gone),
        Ok(v1::Creation::NotYet) => Ok(Creation::NotYet),
        Ok(v1::Creation::Unspecified) | Err(_) => {
            let reason = format!("{} is no answer known here", response.creation);
            Err(Error::invalid("creation", reason))
        }
    }
}

/// A Membership as it is sent.
pub fn membership_out(name: ReplicaName) -> v1::MembershipRequest {
    v1::MembershipRequest {
        shard: name.shard.0,
        replica: name.replica.0,
    }
}

/// A Membership.
pub fn membership_of(request: v1::MembershipRequest) -> ReplicaName {
    ReplicaName {
        shard: ShardId(request.shard),
        replica: ReplicaId(request.replica),
    }
}

/// The answer to a Membership as it is sent.
pub fn standing_out(standing: Standing, shard: ShardDescriptor) -> v1::MembershipResponse {
    let (standing, absorbed) = match standing {
        Standing::Member => (v1::Standing::Member, Vec::new()),
        Standing::NotYet => (v1::Standing::NotYet, Vec::new()),
        Standing::Stranger => (v1::Standing::Stranger, Vec::new()),
        Standing::Absorbed(absorbed) => (v1::Standing::Absorbed, absorbed),
    };
    v1::MembershipResponse {
        standing: standing.into(),
        shard: Some(cluster::shard_out(shard)),
        absorbed: absorbed.into_iter().map(|shard| shard.0).collect(),
    }
}

/// The answer to a Membership.
pub fn standing_of(response: v1::MembershipResponse) -> Result<(Standing, ShardDescriptor)> {
    let standing = match v1::Standing::try_from(response.standing) {
        Ok(v1::Standing::Member) => Standing::Member,
        Ok(v1::Standing::NotYet) => Standing::NotYet,
        Ok(v1::Standing::Stranger) => Standing::Stranger,
        Ok(v1::Standing::Absorbed) => {
            let absorbed = response.absorbed.into_iter();
            Standing::Absorbed(absorbed.map(ShardId).collect())
        }
        Ok(v1::Standing::Unspecified) | Err(_) => {
            let reason = format!("{} is no answer known here", response.standing);
            return Err(Error::invalid("standing", reason));
        }
    };
    let shard = cluster::shard_of(required("shard", response.shard)?)?;
    Ok((standing, shard))
}

/// A ReplicaLeft as it is sent.
pub fn left_out(name: ReplicaName) -> v1::ReplicaLeftRequest {
    v1::ReplicaLeftRequest {
        shard: name.shard.0,
        replica: name.replica.0,
    }
}

/// A ReplicaLeft.
pub fn left_of(request: v1::ReplicaLeftRequest) -> ReplicaName {
    ReplicaName {
        shard: ShardId(request.shard),
        replica: ReplicaId(request.replica),
    }
}

/// A CheckReplica as it is sent.
pub fn check_out(name: ReplicaName, check: Check) -> v1::CheckReplicaRequest {
    use v1::check_replica_request as parts;
    let check = match check {
        Check::Chains => parts::Check::Chains(parts::Chains {}),
        Check::Portion(portion) => parts::Check::Portion(parts::Portion {
            range: Some(range_out(portion.range)),
            as_of: portion.as_of.0,
            floor: portion.floor.0,
        }),
        Check::Quarantine => parts::Check::Quarantine(parts::Quarantine {}),
    };
    v1::CheckReplicaRequest {
        shard: name.shard.0,
        replica: name.replica.0,
        check: Some(check),
    }
}

/// A CheckReplica.
pub fn check_of(request: v1::CheckReplicaRequest) -> Result<(ReplicaName, Check)> {
    use v1::check_replica_request as parts;
    let check = match required("check", request.check)? {
        parts::Check::Chains(_) => Check::Chains,
        parts::Check::Portion(portion) => Check::Portion(Portion {
            range: range_of("portion.range", required("portion.range", portion.range)?)?,
            as_of: Timestamp(portion.as_of),
            floor: Timestamp(portion.floor),
        }),
        parts::Check::Quarantine(_) => Check::Quarantine,
    };
    let name = ReplicaName {
        shard: ShardId(request.shard),
        replica: ReplicaId(request.replica),
    };
    Ok((name, check))
}

/// The answer to a CheckReplica as it is sent.
pub fn checked_out(checked: Checked) -> v1::CheckReplicaResponse {
    use v1::check_replica_response as parts;
    let link = |link: Link| parts::Link {
        position: Some(position_out(link.position)),
        chain: link.chain.0,
    };
    let checked = match checked {
        Checked::Chains(links) => parts::Checked::Chains(parts::Chains {
            links: links.into_iter().map(link).collect(),
        }),
        Checked::Portion(hash) => parts::Checked::Portion(hash),
        Checked::Unreadable => parts::Checked::Unreadable(parts::Unreadable {}),
        Checked::Quarantined => parts::Checked::Quarantined(parts::Quarantined {}),
    };
    v1::CheckReplicaResponse {
        checked: Some(checked),
    }
}

/// The answer to a CheckReplica.
pub fn checked_of(response: v1::CheckReplicaResponse) -> Result<Checked> {
    use v1::check_replica_response as parts;
    let link = |link: parts::Link| {
        Ok(Link {
            position: position_of(required("links.position", link.position)?),
            chain: Chain(link.chain),
        })
    };
    Ok(match required("checked", response.checked)? {
        parts::Checked::Chains(chains) => {
            Checked::Chains(chains.links.into_iter().map(link).collect::<Result<_>>()?)
        }
        parts::Checked::Portion(hash) => Checked::Portion(hash),
        parts::Checked::Unreadable(_) => Checked::Unreadable,
        parts::Checked::Quarantined(_) => Checked::Quarantined,
    })
}
