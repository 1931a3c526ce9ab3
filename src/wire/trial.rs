//! Every message that comes in, as a function of any bytes, for the tests that try them with damaged ones.
//! Decides only.

use bytes::Bytes;
use prost::Message;

use crate::types::RequestId;
use crate::wire::codec;
use crate::wire::convert::admin;
use crate::wire::convert::cluster;
use crate::wire::convert::kv;
use crate::wire::convert::placement;
use crate::wire::convert::transport;
use crate::wire::proto::v1;
use crate::wire::proto::v1::append_frame::Body;
use crate::wire::status;

/// Reads the bytes as one message; whether it was understood.
type Reader = fn(Bytes) -> bool;

fn read<M: Message + Default, T>(
    bytes: Bytes,
    convert: impl FnOnce(M) -> crate::error::Result<T>,
) -> bool {
    codec::decode::<M>(bytes).is_ok_and(|message| convert(message).is_ok())
}

/// Reads bytes as each kind of message in turn.
fn any(readers: &[Reader], bytes: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(bytes);
    let understood = readers.iter().filter(|reader| reader(bytes.clone()));
    understood.count() > 0
}

const ID: RequestId = RequestId([0; 16]);

const KV: &[Reader] = &[
    |bytes| read(bytes, kv::get_of),
    |bytes| read(bytes, kv::batch_get_of),
    |bytes| {
        read(bytes, |message: v1::PutRequest| {
            kv::id_of(&message.request_id, &|| ID)
        })
    },
    |bytes| read(bytes, |message: v1::PutRequest| kv::put_of(message, ID)),
    |bytes| {
        read(bytes, |message: v1::DeleteRequest| {
            kv::delete_of(message, ID)
        })
    },
    |bytes| {
        read(bytes, |message: v1::DeleteRangeRequest| {
            kv::delete_range_of(message, ID)
        })
    },
    |bytes| read(bytes, |message: v1::WriteRequest| kv::write_of(message, ID)),
    |bytes| read(bytes, kv::scan_of),
    |bytes| read(bytes, kv::got_of),
    |bytes| read(bytes, |message| kv::batch_got_of(message, 2)),
    |bytes| read(bytes, kv::page_of),
    |bytes| read(bytes, kv::range_done_of),
    |bytes| read(bytes, kv::written_of),
];

const CLUSTER: &[Reader] = &[
    |bytes| read(bytes, |message| cluster::status_request_of(&message)),
    |bytes| read(bytes, cluster::status_of),
    |bytes| read(bytes, |message| cluster::transfer_of(&message)),
    |bytes| read(bytes, cluster::split_of),
    |bytes| read(bytes, cluster::split_done_of),
    |bytes| read(bytes, |message| cluster::add_replica_of(&message)),
    |bytes| read(bytes, |message| cluster::remove_replica_of(&message)),
    |bytes| read(bytes, |message| cluster::changed_of(Some(message))),
];

const ADMIN: &[Reader] = &[
    |bytes| read(bytes, |message| admin::overview_query_of(&message)),
    |bytes| read(bytes, admin::overview_of),
    |bytes| read(bytes, |message| admin::explain_of(&message)),
    |bytes| read(bytes, admin::explained_of),
    |bytes| read(bytes, admin::arrangement_of),
    |bytes| read(bytes, |message| admin::list_keyspaces_of(&message)),
    |bytes| read(bytes, admin::keyspaces_of),
];

const PLACEMENT: &[Reader] = &[
    |bytes| read(bytes, placement::command_of),
    |bytes| read(bytes, placement::answer_of),
    |bytes| read(bytes, placement::report_of),
    |bytes| read(bytes, placement::orders_of),
    |bytes| read(bytes, placement::join_of),
    |bytes| read(bytes, placement::joined_of),
    |bytes| read(bytes, placement::locate_of),
    |bytes| read(bytes, placement::located_of),
    |bytes| read(bytes, |message| placement::watch_of(&message)),
    |bytes| read(bytes, placement::routes_of),
];

const TRANSPORT: &[Reader] = &[
    |bytes| read(bytes, transport::append_of),
    |bytes| read(bytes, transport::appended_of),
    |bytes| read(bytes, transport::vote_request_of),
    |bytes| read(bytes, transport::voted_of),
    |bytes| read(bytes, transport::take_lead_of),
    |bytes| read(bytes, transport::header_of),
    |bytes| read(bytes, transport::form_of),
    |bytes| read(bytes, transport::formed_of),
    |bytes| read(bytes, transport::create_replica_of),
    |bytes| read(bytes, transport::created_of),
    |bytes| read(bytes, |message| Ok(transport::membership_of(message))),
    |bytes| read(bytes, transport::standing_of),
    |bytes| read(bytes, |message| Ok(transport::left_of(message))),
    |bytes| read(bytes, transport::check_of),
    |bytes| read(bytes, transport::checked_of),
    |bytes| {
        read(bytes, |message: v1::AppendRequest| {
            frames_of(message.frames)
        })
    },
    |bytes| {
        read(bytes, |message: v1::AppendResponse| {
            frames_of(message.frames)
        })
    },
    |bytes| read(bytes, |message: v1::SnapshotRequest| Ok(message)),
];

const ERRORS: &[Reader] = &[
    |bytes| {
        v1::ErrorDetail::decode(bytes).is_ok_and(|detail| status::from_detail(detail).is_some())
    },
    |bytes| {
        let status = tonic::Status::with_details(tonic::Code::Internal, "", bytes);
        status::request_of(&status);
        status::from_status(&status).is_some()
    },
];

/// As a message of `Kv`.
pub(crate) fn kv(bytes: &[u8]) -> bool {
    any(KV, bytes)
}

/// As a message of `Cluster`.
pub(crate) fn cluster(bytes: &[u8]) -> bool {
    any(CLUSTER, bytes)
}

/// As a message of `Administration`.
pub(crate) fn admin(bytes: &[u8]) -> bool {
    any(ADMIN, bytes)
}

/// As a message of `Placement`, between nodes or with clients.
pub(crate) fn placement(bytes: &[u8]) -> bool {
    any(PLACEMENT, bytes)
}

/// As a message of `Transport`, and the frames in it as both ends read them.
pub(crate) fn transport(bytes: &[u8]) -> bool {
    any(TRANSPORT, bytes)
}

/// As the details of a failed call.
pub(crate) fn error(bytes: &[u8]) -> bool {
    any(ERRORS, bytes)
}

/// As all of these.
#[cfg(test)]
pub(crate) fn everything(bytes: &[u8]) {
    for read in [kv, cluster, admin, placement, transport, error] {
        read(bytes);
    }
}

fn frames_of(frames: Vec<v1::AppendFrame>) -> crate::error::Result<()> {
    frames.into_iter().try_for_each(|frame| match frame.body {
        Some(Body::Open(route) | Body::Question(route)) => {
            transport::route_of(Some(route)).map(|_| ())
        }
        Some(Body::Request(entries)) => transport::append_of(entries).map(|_| ()),
        Some(Body::Beat(beat)) => {
            transport::route_of(beat.route)?;
            transport::append_of(beat.entries.unwrap_or_default()).map(|_| ())
        }
        Some(Body::Response(response)) => transport::appended_of(response).map(|_| ()),
        Some(Body::Failed(detail)) => {
            status::from_detail_bytes(detail);
            Ok(())
        }
        Some(Body::End(_) | Body::Cancel(_) | Body::Term(_)) | None => Ok(()),
    })
}
