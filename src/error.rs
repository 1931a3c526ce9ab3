//! What can go wrong between a client and a shard, with the three answers that each error owes:
//! who must act, may it have happened, when to try again. Decides only.

use std::time::Duration;

use crate::types::ClusterId;
use crate::types::GroupId;
use crate::types::Incarnation;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::RequestId;
use crate::types::shard::ShardDescriptor;

/// Result of anything a node can be asked.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal or a failure, typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request breaks a limit or makes no sense. The client must change it.
    #[error("{field}: {reason}; nothing was done")]
    Invalid {
        /// The field, as it is called in the request.
        field: String,
        /// Which limit, and what came.
        reason: String,
    },
    /// This replica does not lead; ask the node named.
    #[error("not the leader of {group}")]
    NotLeader {
        /// The group.
        group: GroupId,
        /// Its leader's node, if known.
        leader: Option<NodeId>,
    },
    /// The group has no leader that can reach a quorum, or the node is still starting.
    #[error("{what} is unavailable: {reason}")]
    Unavailable {
        /// The group or node.
        what: String,
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// A bounded queue was full; nothing was done.
    #[error("overloaded: {queue} is full; nothing was done, try again in {} ms", retry_after.as_millis())]
    Overloaded {
        /// Which queue.
        queue: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// No free space left for client writes; reads and deletes still work.
    #[error("no space left on the node for writes ({free_bytes} bytes free); nothing was done")]
    NoSpace {
        /// What is left.
        free_bytes: u64,
    },
    /// The deadline passed while the outcome was open. Only the same request id may be sent again.
    #[error(
        "the outcome of the write is unknown: {reason}; send the same request id again to learn it"
    )]
    Unknown {
        /// The write.
        request: RequestId,
        /// Why it is unknown.
        reason: String,
    },
    /// A read or control call did not finish in time; nothing was changed.
    #[error("{what} did not finish within {} ms", after.as_millis())]
    Timeout {
        /// What.
        what: String,
        /// The time it had.
        after: Duration,
    },
    /// The id's time lies ahead of the cluster's clock. Not final: the same id may be sent again.
    #[error("the request id is {} ms ahead of the cluster's clock; send it again then", wait.as_millis())]
    ClockAhead {
        /// How long to wait.
        wait: Duration,
    },
    /// The id is older than outcomes are remembered; whether the write happened is not known any more.
    #[error("too late to know: outcomes are remembered for {} s", retry_window.as_secs())]
    TooLateToKnow {
        /// The write.
        request: RequestId,
        /// How long outcomes are remembered.
        retry_window: Duration,
    },
    /// The caller knows an older state of the shard; nothing was done. Look the shard up again.
    #[error("the shard has changed; nothing was done")]
    StaleEpoch {
        /// The group.
        group: GroupId,
        /// The shards there as far as the answering replica knows them; maybe none, and maybe late.
        current: Vec<ShardDescriptor>,
    },
    /// The keys of the write are in different shards. Final for its id: the shard with the first key has
    /// looked and has noted the refusal.
    #[error(
        "the keys of the write are in different shards, {} is not where the first one is; nothing was done",
        key.escape_ascii()
    )]
    Spanning {
        /// The write.
        request: RequestId,
        /// The key that is elsewhere.
        key: Key,
    },
    /// The call was meant for another cluster.
    #[error("cluster {actual}, not {expected}")]
    WrongCluster {
        /// What the caller named.
        expected: ClusterId,
        /// Who was asked.
        actual: ClusterId,
    },
    /// The call was meant for another node, or for an earlier life of this one.
    #[error(
        "node {actual} incarnation {actual_incarnation}, not {expected} incarnation {expected_incarnation}"
    )]
    WrongNode {
        /// What the caller named.
        expected: NodeId,
        /// And which life of it.
        expected_incarnation: Incarnation,
        /// Who was asked.
        actual: NodeId,
        /// And which life of it.
        actual_incarnation: Incarnation,
    },
    /// The named node, shard or replica does not exist here.
    #[error("{what} is not here")]
    NotFound {
        /// What.
        what: String,
    },
    /// There is no keyspace of that name, or none any more; placement has said so.
    #[error("there is no keyspace {name}; nothing was done")]
    NoKeyspace {
        /// The name.
        name: String,
    },
    /// Something of ours failed. The chain is a sentence.
    #[error("{0}")]
    Internal(String),
}

/// Whether the request may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It did not, and will not.
    None,
    /// It may have, or may still.
    Unknown,
}

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Change the request; sending it again gives the same error.
    Fix,
    /// Send it again, now, to this node or to any.
    Redirect(Option<NodeId>),
    /// Send it again (a write: with the same id) after this long.
    RetryAfter(Duration),
    /// Give up: nothing the caller can do changes the answer.
    Stop,
}

const RETRY_SOON: Duration = Duration::from_millis(50);

impl Error {
    /// Shorthand for [`Error::Invalid`].
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// Shorthand for [`Error::Unavailable`] with the usual wait.
    pub fn unavailable(what: impl ToString, reason: impl ToString) -> Error {
        Error::Unavailable {
            what: what.to_string(),
            reason: reason.to_string(),
            retry_after: RETRY_SOON,
        }
    }

    /// May it have happened?
    pub fn effect(&self) -> Effect {
        match self {
            Error::Unknown { .. } | Error::TooLateToKnow { .. } | Error::Internal(_) => {
                Effect::Unknown
            }
            Error::Invalid { .. }
            | Error::NotLeader { .. }
            | Error::Unavailable { .. }
            | Error::Overloaded { .. }
            | Error::NoSpace { .. }
            | Error::Timeout { .. }
            | Error::ClockAhead { .. }
            | Error::StaleEpoch { .. }
            | Error::Spanning { .. }
            | Error::WrongCluster { .. }
            | Error::WrongNode { .. }
            | Error::NotFound { .. }
            | Error::NoKeyspace { .. } => Effect::None,
        }
    }

    /// What to do next?
    pub fn advice(&self) -> Advice {
        match self {
            Error::Invalid { .. }
            | Error::Spanning { .. }
            | Error::WrongCluster { .. }
            | Error::NoKeyspace { .. } => Advice::Fix,
            Error::NotLeader { leader, .. } => Advice::Redirect(*leader),
            Error::StaleEpoch { .. } | Error::WrongNode { .. } | Error::NotFound { .. } => {
                Advice::Redirect(None)
            }
            Error::Unavailable { retry_after, .. } | Error::Overloaded { retry_after, .. } => {
                Advice::RetryAfter(*retry_after)
            }
            Error::ClockAhead { wait } => Advice::RetryAfter(*wait),
            Error::Unknown { .. } | Error::Timeout { .. } => Advice::RetryAfter(RETRY_SOON),
            Error::NoSpace { .. } | Error::TooLateToKnow { .. } | Error::Internal(_) => {
                Advice::Stop
            }
        }
    }
}
