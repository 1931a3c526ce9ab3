//! What is said about merges, and what a node that knows of none answers.

use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::shard::Attempt;
use quorate::types::shard::Epoch;
use quorate::types::shard::Fate;
use quorate::wire::merge::Fitness;
use quorate::wire::merge::MergeReply;
use quorate::wire::merge::MergeRequest;
use quorate::wire::merge::Standstill;
use quorate::wire::request::Request;

use super::position;
use super::shard_descriptor;

fn attempt(bounds: u64) -> Attempt {
    Attempt {
        bounds,
        prepared: position(8).unwrap(),
        left: ShardId(3),
    }
}

/// One of each kind, and more where the answers differ in kind.
pub(super) fn requests() -> Vec<Request> {
    let shard = ShardId(5);
    let look = |left| MergeRequest::Look {
        left: ShardId(left),
        right: shard,
    };
    let mut requests = vec![
        look(1),
        look(2),
        MergeRequest::Freeze {
            shard,
            attempt: attempt(4),
            epoch: Epoch { conf: 6, bounds: 7 },
        },
        MergeRequest::Unfreeze {
            shard,
            attempt: attempt(4),
            settled: position(9).unwrap(),
        },
        MergeRequest::Remains(vec![ShardId(1), ShardId(2)]),
    ];
    requests.extend((0..4).map(|bounds| MergeRequest::Fate {
        right: shard,
        attempt: attempt(bounds),
    }));
    requests.into_iter().map(Request::Merge).collect()
}

pub(super) fn answer(request: MergeRequest) -> MergeReply {
    match request {
        MergeRequest::Look { left, .. } => MergeReply::Look(match left.0 {
            1 => Fitness::Fit,
            _ => Fitness::Unfit("it is not there".to_owned()),
        }),
        MergeRequest::Freeze { .. } => MergeReply::Freeze(Standstill {
            right: shard_descriptor(),
            position: position(10).unwrap(),
            above: Timestamp(u64::MAX),
        }),
        MergeRequest::Unfreeze { .. } => MergeReply::Unfreeze,
        MergeRequest::Fate { attempt, .. } => {
            let fate = match attempt.bounds {
                0 => Fate::Open,
                1 => Fate::Absorbed,
                2 => Fate::Cancelled,
                _ => Fate::Unknown,
            };
            MergeReply::Fate(fate, attempt.prepared)
        }
        MergeRequest::Remains(shards) => MergeReply::Remains(shards[1..].to_vec()),
    }
}
