//! How a verb fails: one sentence for a person, one number for a script. Decides only.

use std::fmt;
use std::io;

use crate::error::Advice;
use crate::error::Error;
use crate::types::RequestId;

/// Something went wrong.
pub const EXIT_ERROR: u8 = 1;
/// Nobody answered, or nobody could in time.
pub const EXIT_UNREACHABLE: u8 = 2;
/// The caller must change what was asked.
pub const EXIT_BAD_INPUT: u8 = 3;
/// What was asked for is not there.
pub const EXIT_NOT_FOUND: u8 = 4;

/// The end of a verb that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the shell.
    pub exit_code: u8,
    /// One sentence; `None` when there is nobody to tell.
    pub message: Option<String>,
    /// The write whose outcome is not known.
    pub request: Option<RequestId>,
}

impl Failure {
    /// With any exit code.
    pub fn new(exit_code: u8, message: impl Into<String>) -> Failure {
        Failure {
            exit_code,
            message: Some(message.into()),
            request: None,
        }
    }

    /// Something went wrong (exit code 1).
    pub fn error(message: impl Into<String>) -> Failure {
        Failure::new(EXIT_ERROR, message)
    }

    /// Nobody answered (exit code 2).
    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure::new(EXIT_UNREACHABLE, message)
    }

    /// The input is refused (exit code 3).
    pub fn bad_input(message: impl Into<String>) -> Failure {
        Failure::new(EXIT_BAD_INPUT, message)
    }

    /// Not there (exit code 4).
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(EXIT_NOT_FOUND, message)
    }

    /// The reader of our output went away: it has seen all it wanted, which is no error.
    pub fn nobody_reads() -> Failure {
        Failure {
            exit_code: 0,
            message: None,
            request: None,
        }
    }

    /// The same failure, said in the context of `what` was being done.
    pub fn while_doing(mut self, what: impl fmt::Display) -> Failure {
        self.message = self.message.map(|message| format!("{what}: {message}"));
        self
    }

    /// As one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        object.insert("error".into(), self.message.clone().into());
        object.insert("exit_code".into(), self.exit_code.into());
        if let Some(request) = self.request {
            object.insert("request_id".into(), request.to_string().into());
        }
        object.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or_default())?;
        match self.request {
            Some(request) => write!(f, " (request id {request})"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit_code = match &error {
            Error::NotFound { .. } | Error::NoKeyspace { .. } => EXIT_NOT_FOUND,
            Error::Unavailable { .. } | Error::Timeout { .. } | Error::NotLeader { .. } => {
                EXIT_UNREACHABLE
            }
            _ if error.advice() == Advice::Fix => EXIT_BAD_INPUT,
            _ => EXIT_ERROR,
        };
        let request = match &error {
            Error::Unknown { request, .. } | Error::TooLateToKnow { request, .. } => Some(*request),
            _ => None,
        };
        Failure {
            exit_code,
            message: Some(error.to_string()),
            request,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::nobody_reads();
        }
        Failure::error(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(error: Error, exit_code: u8, said: &str) {
        let failure = Failure::from(error);
        assert_eq!(
            (failure.exit_code, failure.to_string().as_str()),
            (exit_code, said)
        );
    }

    #[test]
    fn each_error_has_its_exit_code_and_its_sentence() {
        check(
            Error::invalid("key", "is empty"),
            3,
            "key: is empty; nothing was done",
        );
        check(
            Error::unavailable("127.0.0.1:7400", "connection refused"),
            2,
            "127.0.0.1:7400 is unavailable: connection refused",
        );
        check(Error::NotFound { what: "s9".into() }, 4, "s9 is not here");
        let request = RequestId::new(1, [0; 10]);
        check(
            Error::TooLateToKnow {
                request,
                retry_window: Duration::from_secs(300),
            },
            1,
            "too late to know: outcomes are remembered for 300 s (request id 00000000000170008000000000000000)",
        );
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit_code, failure.message), (0, None));
    }
}
