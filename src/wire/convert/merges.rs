//! Steps of a merge, and questions about one, to and from the words of `proto/`. Decides only.

use crate::error::Error;
use crate::error::Result;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::shard::Attempt;
use crate::types::shard::Epoch;
use crate::types::shard::Fate;
use crate::wire::convert::cluster;
use crate::wire::convert::required;
use crate::wire::convert::transport::position_of;
use crate::wire::convert::transport::position_out;
use crate::wire::merge::Fitness;
use crate::wire::merge::MergeReply;
use crate::wire::merge::MergeRequest;
use crate::wire::merge::Standstill;
use crate::wire::proto::v1;
use crate::wire::proto::v1::merge_request as asked;
use crate::wire::proto::v1::merge_response as told;

/// What is asked, as it is sent.
pub fn request_out(request: MergeRequest) -> v1::MergeRequest {
    let step = match request {
        MergeRequest::Look { left, right } => asked::Step::Look(asked::Look {
            left: left.0,
            right: right.0,
        }),
        MergeRequest::Freeze {
            shard,
            attempt,
            epoch,
        } => asked::Step::Freeze(asked::Freeze {
            shard: shard.0,
            attempt: Some(attempt_out(attempt)),
            conf_epoch: epoch.conf,
            bounds_epoch: epoch.bounds,
        }),
        MergeRequest::Unfreeze {
            shard,
            attempt,
            settled,
        } => asked::Step::Unfreeze(asked::Unfreeze {
            shard: shard.0,
            attempt: Some(attempt_out(attempt)),
            settled: Some(position_out(settled)),
        }),
        MergeRequest::Fate { right, attempt } => asked::Step::Fate(asked::Fate {
            right: right.0,
            attempt: Some(attempt_out(attempt)),
        }),
        MergeRequest::Remains(shards) => asked::Step::Remains(asked::Remains {
            shards: numbers(shards),
        }),
    };
    v1::MergeRequest { step: Some(step) }
}

/// What is asked.
pub fn request_of(request: v1::MergeRequest) -> Result<MergeRequest> {
    Ok(match required("step", request.step)? {
        asked::Step::Look(look) => MergeRequest::Look {
            left: ShardId(look.left),
            right: ShardId(look.right),
        },
        asked::Step::Freeze(freeze) => MergeRequest::Freeze {
            shard: ShardId(freeze.shard),
            attempt: attempt_of("freeze.attempt", freeze.attempt)?,
            epoch: Epoch {
                conf: freeze.conf_epoch,
                bounds: freeze.bounds_epoch,
            },
        },
        asked::Step::Unfreeze(unfreeze) => MergeRequest::Unfreeze {
            shard: ShardId(unfreeze.shard),
            attempt: attempt_of("unfreeze.attempt", unfreeze.attempt)?,
            settled: position_of(required("unfreeze.settled", unfreeze.settled)?),
        },
        asked::Step::Fate(fate) => MergeRequest::Fate {
            right: ShardId(fate.right),
            attempt: attempt_of("fate.attempt", fate.attempt)?,
        },
        asked::Step::Remains(remains) => MergeRequest::Remains(shards(remains.shards)),
    })
}

/// An answer as it is sent.
pub fn reply_out(reply: MergeReply) -> v1::MergeResponse {
    let reply = match reply {
        MergeReply::Look(fitness) => told::Reply::Look(told::Look {
            unfit: match fitness {
                Fitness::Fit => String::new(),
                Fitness::Unfit(reason) => reason,
            },
        }),
        MergeReply::Freeze(still) => told::Reply::Freeze(told::Freeze {
            right: Some(cluster::shard_out(still.right)),
            position: Some(position_out(still.position)),
            above: still.above.0,
        }),
        MergeReply::Unfreeze => told::Reply::Unfreeze(told::Unfreeze {}),
        MergeReply::Fate(fate, position) => told::Reply::Fate(told::Fate {
            fate: fate_out(fate).into(),
            position: Some(position_out(position)),
        }),
        MergeReply::Remains(shards) => told::Reply::Remains(told::Remains {
            shards: numbers(shards),
        }),
    };
    v1::MergeResponse { reply: Some(reply) }
}

/// An answer.
pub fn reply_of(response: v1::MergeResponse) -> Result<MergeReply> {
    Ok(match required("reply", response.reply)? {
        told::Reply::Look(look) if look.unfit.is_empty() => MergeReply::Look(Fitness::Fit),
        told::Reply::Look(look) => MergeReply::Look(Fitness::Unfit(look.unfit)),
        told::Reply::Freeze(freeze) => MergeReply::Freeze(Standstill {
            right: cluster::shard_of(required("freeze.right", freeze.right)?)?,
            position: position_of(required("freeze.position", freeze.position)?),
            above: Timestamp(freeze.above),
        }),
        told::Reply::Unfreeze(_) => MergeReply::Unfreeze,
        told::Reply::Fate(fate) => MergeReply::Fate(
            fate_of(fate.fate)?,
            position_of(required("fate.position", fate.position)?),
        ),
        told::Reply::Remains(remains) => MergeReply::Remains(shards(remains.shards)),
    })
}

fn attempt_out(attempt: Attempt) -> v1::MergeAttempt {
    v1::MergeAttempt {
        bounds: attempt.bounds,
        prepared: Some(position_out(attempt.prepared)),
        left: attempt.left.0,
    }
}

fn attempt_of(field: &str, attempt: Option<v1::MergeAttempt>) -> Result<Attempt> {
    let attempt = required(field, attempt)?;
    Ok(Attempt {
        bounds: attempt.bounds,
        prepared: position_of(required("attempt.prepared", attempt.prepared)?),
        left: ShardId(attempt.left),
    })
}

fn fate_out(fate: Fate) -> v1::MergeFate {
    match fate {
        Fate::Open => v1::MergeFate::Open,
        Fate::Absorbed => v1::MergeFate::Absorbed,
        Fate::Cancelled => v1::MergeFate::Cancelled,
        Fate::Unknown => v1::MergeFate::Unknown,
    }
}

fn fate_of(number: i32) -> Result<Fate> {
    match v1::MergeFate::try_from(number) {
        Ok(v1::MergeFate::Open) => Ok(Fate::Open),
        Ok(v1::MergeFate::Absorbed) => Ok(Fate::Absorbed),
        Ok(v1::MergeFate::Cancelled) => Ok(Fate::Cancelled),
        Ok(v1::MergeFate::Unknown) => Ok(Fate::Unknown),
        Ok(v1::MergeFate::Unspecified) | Err(_) => {
            let reason = format!("{number} is no answer known here");
            Err(Error::invalid("fate.fate", reason))
        }
    }
}

fn numbers(shards: Vec<ShardId>) -> Vec<u64> {
    shards.into_iter().map(|shard| shard.0).collect()
}

fn shards(numbers: Vec<u64>) -> Vec<ShardId> {
    numbers.into_iter().map(ShardId).collect()
}
