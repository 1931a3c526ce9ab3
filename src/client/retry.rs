//! Whether a request is sent again, where, and when. Decides only: time left and chance come in as
//! values, [`sender`](super::sender) acts.
//!
//! A write keeps its identity through all attempts. Once one attempt may have happened, only an answer
//! of the shard ends the uncertainty: a later refusal says that *that attempt* did nothing.

use std::time::Duration;

use crate::error::Advice;
use crate::error::Effect;
use crate::error::Error;
use crate::types::NodeId;
use crate::types::RequestId;

/// Redirects that are followed without a wait. More than this many in a row mean that the nodes do
/// not agree on the leader yet.
const REDIRECTS_AT_ONCE: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// Low, since a new leader is there within a second: a client that waits longer adds to the outage.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// What is known when an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation {
    /// Attempts made, this one included; at least 1.
    pub attempts: u32,
    /// Whether some known node has not been tried since the last wait.
    pub untried: bool,
    /// Until the request's deadline.
    pub left: Duration,
    /// From 0 up to 1.
    pub jitter: f64,
}

/// Where the next attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To the same node.
    Same,
    /// To another node, whichever.
    Other,
    /// To this node.
    Node(NodeId),
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same request, under the same identity, is sent once more.
    Again {
        /// To whom.
        target: Target,
        /// After this wait, which ends before the deadline.
        after: Duration,
    },
    /// Nothing is sent any more.
    GiveUp,
}

/// Judges one failed attempt.
pub fn next(error: &Error, situation: Situation) -> Next {
    let (target, after) = match error.advice() {
        Advice::Fix | Advice::Stop => return Next::GiveUp,
        Advice::Redirect(node) => {
            let target = node.map_or(Target::Other, Target::Node);
            (target, redirect_wait(situation))
        }
        Advice::RetryAfter(wait) => {
            let target = target_after(error);
            let wait = if target == Target::Other && situation.untried {
                Duration::ZERO
            } else {
                wait + backoff(situation)
            };
            (target, wait)
        }
    };
    if after >= situation.left {
        return Next::GiveUp;
    }
    Next::Again { target, after }
}

/// Whether an attempt of a write that failed so may still take effect. Stricter than
/// [`Error::effect`]: a time-out says "nothing was changed" of reads only.
pub fn may_have_happened(error: &Error) -> bool {
    matches!(error, Error::Timeout { .. }) || error.effect() == Effect::Unknown
}

/// The error that the caller of a write gets at the end: while an attempt may have happened, a refusal
/// of a later one is not the outcome of the write.
pub fn final_error(error: Error, request: RequestId, happened: bool) -> Error {
    match error {
        // The shard of the first key has looked: had an attempt happened, it would have said so.
        Error::Spanning { .. } => error,
        Error::Unknown { .. } | Error::TooLateToKnow { .. } => error,
        _ if happened => Error::Unknown {
            request,
            reason: error.to_string(),
        },
        _ => error,
    }
}

/// The error that the caller of a read gets at the end: why a node could not answer before the time ran out says more
/// than that it ran out. Where another node was named instead, that one did not answer in time.
pub fn final_error_of_read(error: Error, said_before: Option<Error>) -> Error {
    match (error, said_before) {
        (
            Error::Timeout { .. },
            Some(said @ (Error::Unavailable { .. } | Error::Overloaded { .. })),
        ) => said,
        (error, _) => error,
    }
}

fn redirect_wait(situation: Situation) -> Duration {
    if situation.attempts <= REDIRECTS_AT_ONCE {
        Duration::ZERO
    } else {
        backoff(situation)
    }
}

/// Another node helps against a node that is down or cut off. It does not help against a full queue,
/// which is the leader's own, or a clock.
fn target_after(error: &Error) -> Target {
    match error {
        Error::Overloaded { .. } | Error::ClockAhead { .. } => Target::Same,
        Error::Unavailable { .. } | Error::Unknown { .. } | Error::Timeout { .. } => Target::Other,
        Error::Invalid { .. }
        | Error::NotLeader { .. }
        | Error::NoSpace { .. }
        | Error::TooLateToKnow { .. }
        | Error::StaleEpoch { .. }
        | Error::Spanning { .. }
        | Error::WrongCluster { .. }
        | Error::WrongNode { .. }
        | Error::NotFound { .. }
        | Error::NoKeyspace { .. }
        | Error::Internal(_) => Target::Other,
    }
}

/// Doubles with each attempt up to [`BACKOFF_MAX`]; the jitter takes up to half of it away.
fn backoff(situation: Situation) -> Duration {
    let doublings = situation.attempts.saturating_sub(1).min(10);
    let full = BACKOFF_FIRST
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX);
    full.mul_f64(1.0 - situation.jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::ClusterId;
    use crate::types::GroupId;
    use crate::types::Incarnation;

    const ID: RequestId = RequestId([7; 16]);

    fn not_leader(leader: Option<NodeId>) -> Error {
        Error::NotLeader {
            group: GroupId::Placement,
            leader,
        }
    }

    fn overloaded(ms: u64) -> Error {
        Error::Overloaded {
            queue: "proposals".into(),
            retry_after: Duration::from_millis(ms),
        }
    }

    fn unknown() -> Error {
        Error::Unknown {
            request: ID,
            reason: "cut off".into(),
        }
    }

    fn timeout() -> Error {
        Error::Timeout {
            what: "get".into(),
            after: Duration::from_secs(1),
        }
    }

    fn every_error() -> Vec<Error> {
        vec![
            Error::invalid("key", "is empty"),
            not_leader(None),
            not_leader(Some(NodeId(2))),
            Error::unavailable("n1", "refused"),
            overloaded(20),
            Error::NoSpace { free_bytes: 1 },
            unknown(),
            timeout(),
            Error::ClockAhead {
                wait: Duration::from_millis(5),
            },
            Error::TooLateToKnow {
                request: ID,
                retry_window: Duration::from_secs(300),
            },
            Error::StaleEpoch {
                group: GroupId::Placement,
                current: Vec::new(),
            },
            Error::Spanning {
                request: ID,
                key: "k".into(),
            },
            Error::WrongCluster {
                expected: ClusterId([1; 16]),
                actual: ClusterId([2; 16]),
            },
            Error::WrongNode {
                expected: NodeId(1),
                expected_incarnation: Incarnation([1; 16]),
                actual: NodeId(2),
                actual_incarnation: Incarnation([2; 16]),
            },
            Error::NotFound { what: "s9".into() },
            Error::NoKeyspace { name: "a".into() },
            Error::Internal("broken".into()),
        ]
    }

    /// One line per case: error, attempts made, untried nodes, ms left -> what is next.
    fn check(error: Error, attempts: u32, untried: bool, left_ms: u64, expected: &str) {
        let next = next(
            &error,
            Situation {
                attempts,
                untried,
                left: Duration::from_millis(left_ms),
                jitter: 0.0,
            },
        );
        let shown = match next {
            Next::GiveUp => "give up".to_string(),
            Next::Again { target, after } => {
                let target = match target {
                    Target::Same => "same".to_string(),
                    Target::Other => "other".to_string(),
                    Target::Node(node) => node.to_string(),
                };
                format!("{target} after {}", after.as_millis())
            }
        };
        assert_eq!(shown, expected, "{error}");
    }

    #[test]
    fn each_error_goes_where_it_can_be_answered() {
        check(not_leader(Some(NodeId(2))), 1, false, 900, "n2 after 0");
        check(not_leader(Some(NodeId(2))), 4, false, 900, "n2 after 80");
        check(not_leader(None), 1, true, 900, "other after 0");
        check(
            Error::unavailable("n1", "down"),
            1,
            true,
            900,
            "other after 0",
        );
        check(
            Error::unavailable("n1", "down"),
            3,
            false,
            900,
            "other after 90",
        );
        check(
            Error::unavailable("n1", "down"),
            90,
            false,
            900,
            "other after 300",
        );
        check(overloaded(20), 1, true, 900, "same after 30");
        check(overloaded(20), 1, true, 25, "give up");
        check(unknown(), 1, true, 900, "other after 0");
        check(timeout(), 1, false, 900, "other after 60");
        check(Error::invalid("key", "is empty"), 1, true, 900, "give up");
        check(Error::NoSpace { free_bytes: 0 }, 1, true, 900, "give up");
        check(Error::Internal("broken".into()), 1, true, 900, "give up");
        let wait = Duration::from_millis(300);
        check(Error::ClockAhead { wait }, 1, true, 900, "same after 310");
        check(Error::ClockAhead { wait }, 1, true, 200, "give up");
    }

    #[test]
    fn a_refusal_after_an_uncertain_attempt_is_not_the_outcome() {
        for error in every_error() {
            let after_uncertain = final_error(error.clone(), ID, true);
            let expected = match error {
                // Said for good, after a look whether it had happened.
                Error::Spanning { .. } => Effect::None,
                _ => Effect::Unknown,
            };
            assert_eq!(after_uncertain.effect(), expected, "{error}");
            assert_eq!(final_error(error.clone(), ID, false), error);
        }
    }

    #[test]
    fn what_was_said_before_the_time_ran_out_is_the_outcome_of_a_read() {
        let said = Error::unavailable("keyspace a", "placement does not answer");
        let outcome = final_error_of_read(timeout(), Some(said.clone()));
        assert_eq!(outcome, said);
        let outcome = final_error_of_read(overloaded(1), Some(said));
        assert_eq!(outcome, overloaded(1));
        for said in [None, Some(not_leader(Some(NodeId(2)))), Some(timeout())] {
            assert_eq!(final_error_of_read(timeout(), said), timeout());
        }
    }

    #[test]
    fn a_time_out_of_a_write_is_uncertain() {
        assert!(may_have_happened(&timeout()) && may_have_happened(&unknown()));
        assert!(!may_have_happened(&overloaded(1)) && !may_have_happened(&not_leader(None)));
    }

    proptest! {
        #[test]
        fn a_wait_ends_before_the_deadline_and_jitter_never_goes_below_what_the_node_asked_for(
            case in 0..every_error().len(),
            attempts in 1u32..100,
            untried: bool,
            left_ms in 0u64..2_000,
            jitter in 0.0f64..1.0,
        ) {
            let error = &every_error()[case];
            let left = Duration::from_millis(left_ms);
            let Next::Again { target, after } =
                next(error, Situation { attempts, untried, left, jitter })
            else {
                return Ok(());
            };
            prop_assert!(after < left);
            match error.advice() {
                Advice::Fix | Advice::Stop => prop_assert!(false, "sent again: {error}"),
                Advice::Redirect(Some(node)) => prop_assert_eq!(target, Target::Node(node)),
                Advice::Redirect(None) => prop_assert_eq!(target, Target::Other),
                Advice::RetryAfter(wait) => {
                    prop_assert!(after >= wait || (untried && target == Target::Other));
                    prop_assert!(after <= wait + BACKOFF_MAX);
                }
            }
        }
    }
}
