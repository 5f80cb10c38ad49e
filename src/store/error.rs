//! Why the store did not do what was asked. What was found there instead is an outcome, not an error.

use fred::error::{Error as FredError, ErrorKind};

use crate::session::SessionName;

use super::{node::Effect, record::Corrupt};

/// Failures of the store; each says whether anything was applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was applied: it was never handed to a connection, Redis answered that it cannot now, or it was a read.
    #[error("no connection to Redis: {0}")]
    Unavailable(String),
    /// Never handed to a connection: nothing was applied.
    #[error("too many calls are under way")]
    Overloaded,
    /// Nothing was applied: it was a read, or the script found its time over.
    #[error("Redis did not answer in time")]
    Timeout,
    /// A write that may have been applied, though never later than the call's deadline.
    #[error("Redis did not answer in time; the change may have been applied")]
    OutcomeTimeout,
    /// A write that may have been applied, though never later than the call's deadline.
    #[error("the connection to Redis was lost; the change may have been applied: {0}")]
    OutcomeUnknown(String),
    /// The primary has the write; too few replicas said so in time.
    #[error("the change was applied, but {confirmed} of {wanted} replicas have confirmed it: a failover may lose it")]
    NotReplicated { confirmed: u64, wanted: u32 },
    /// Nothing was applied: the store has another id than the one this server serves, or none.
    #[error("the store was exchanged or emptied")]
    StoreChanged,
    /// Nothing was applied.
    #[error("Redis has no memory left for writes")]
    Full,
    /// Nothing was applied: Redis refused the command before it ran, or it was a read.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// What Redis holds of this session cannot be read.
    #[error("record of {name} is corrupt: {cause}")]
    Corrupt { name: SessionName, cause: Corrupt },
    /// Redis answered what no script of ours answers.
    #[error("unexpected answer of Redis: {0}")]
    Unexpected(String),
}

impl Error {
    /// The same of a call that only reads, whatever it was to note: nothing was applied that matters to its caller.
    pub(super) fn of_a_reading(self) -> Self {
        match self {
            Error::OutcomeTimeout => Error::Timeout,
            Error::OutcomeUnknown(why) | Error::Unexpected(why) => Error::Unavailable(why),
            other => other,
        }
    }

    /// The same of a call of which a part was applied before: that nothing was applied is true of this step alone.
    pub fn after_a_part(self) -> Self {
        match self {
            Error::Timeout => Error::OutcomeTimeout,
            Error::Unavailable(_) | Error::Overloaded | Error::StoreChanged | Error::Full | Error::Refused(_) => {
                Error::OutcomeUnknown(format!("a part of it was; then: {self}"))
            }
            Error::OutcomeTimeout
            | Error::OutcomeUnknown(_)
            | Error::NotReplicated { .. }
            | Error::Corrupt { .. }
            | Error::Unexpected(_) => self,
        }
    }
}

/// What one server made of what it was sent.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was applied: it does not have the slot, or not all of it right now; another one may. What it said.
    Elsewhere(String),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

/// Where there is no other server to ask.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Elsewhere(text) => Error::Unavailable(text),
            Failure::Error(error) => error,
        }
    }
}

/// Whether a server says that the slot is on its way to another one, while it is still where it was.
pub(super) fn is_halfway(told: &str) -> bool {
    // Of a script's command. No script that appends to a log gets so far: see `keys::ABSENT`.
    const NON_LOCAL: &str = "attempted to access a non local key";
    told.starts_with("TRYAGAIN") || told.contains(NON_LOCAL)
}

/// What an error of fred means for the call. That a write was not applied is said only of what Redis answers before it
/// runs a script, and of what was never handed over.
pub(super) fn failure(error: &FredError, effect: Effect) -> Failure {
    const ELSEWHERE: [&str; 3] = ["MOVED", "ASK", "READONLY"];
    const NOT_NOW: [&str; 6] = ["LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOREPLICAS", "MISCONF"];
    const REFUSED: [&str; 4] = ["NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE"];
    let text = error.details();
    let is = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    let error = match (error.kind(), effect) {
        (ErrorKind::Backpressure, _) => Error::Overloaded,
        _ if is(&ELSEWHERE) || is_halfway(text) => return Failure::Elsewhere(text.to_owned()),
        _ if text.starts_with("OOM") => Error::Full,
        // To one of what was under way; fred breaks off and says so to all, and some may have been applied.
        (_, Effect::Writes) if text.starts_with("CLUSTERDOWN") => Error::OutcomeUnknown(text.to_owned()),
        _ if is(&NOT_NOW) => Error::Unavailable(text.to_owned()),
        _ if is(&REFUSED) => Error::Refused(text.to_owned()),
        (ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Protocol, Effect::Reads) => {
            Error::Unavailable(text.to_owned())
        }
        (_, Effect::Reads) => Error::Refused(text.to_owned()),
        (_, Effect::Writes) => Error::OutcomeUnknown(text.to_owned()),
    };
    Failure::Error(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_that_is_down_says_to_one_call_says_nothing_of_a_write_beside_it() {
        let told = FredError::new(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down");
        assert!(matches!(failure(&told, Effect::Writes), Failure::Error(Error::OutcomeUnknown(_))));
        assert!(matches!(failure(&told, Effect::Reads), Failure::Error(Error::Unavailable(_))));
    }
}
