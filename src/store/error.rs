//! Errors of the store, and what each error of Redis or fred means for a call.

use fred::error::{Error as FredError, ErrorKind};

use crate::session::SessionRef;

use super::{node::Effect, record::Corrupt};

/// Failure of a store call. Each variant defines whether anything was applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was applied: the call was not sent, Redis refused it for now, or it was a read.
    #[error("Redis is unavailable: {0}")]
    Unavailable(String),
    /// Nothing was applied: the queue of the connection is full.
    #[error("too many calls in flight")]
    Overloaded,
    /// Nothing was applied: it was a read, or the script ran after the deadline.
    #[error("Redis did not reply before the deadline")]
    Timeout,
    /// A write that may have been applied, but never after the call's deadline.
    #[error("Redis did not reply before the deadline; the change may have been applied")]
    OutcomeTimeout,
    /// A write that may have been applied, but never after the call's deadline. The connection was lost.
    #[error("the connection to Redis was lost; the change may have been applied: {0}")]
    OutcomeUnknown(String),
    /// The primary applied the write; too few replicas confirmed it in time.
    #[error("the change was applied, but {confirmed} of {wanted} replicas have confirmed it: a failover may lose it")]
    NotReplicated {
        /// Number of replicas that confirmed the write.
        confirmed: u64,
        /// Number of replicas that the policy requires.
        wanted: u32,
    },
    /// Nothing was applied: the store has no id, or another id than the one this server serves.
    #[error("the store was replaced or emptied")]
    StoreChanged,
    /// Nothing was applied: Redis has reached its memory limit.
    #[error("Redis has no memory left for writes")]
    Full,
    /// Nothing was applied: Redis refused the command before it ran, or it was a read.
    #[error("Redis refused the command: {0}")]
    Refused(String),
    /// The record of this session cannot be read.
    #[error("record of {name} is corrupt: {cause}")]
    Corrupt {
        /// Session of the record.
        name: SessionRef,
        /// Reason why it cannot be read.
        cause: Corrupt,
    },
    /// A reply to a write that no script returns: the write may have been applied.
    #[error("unexpected reply from Redis: {0}")]
    Unexpected(String),
    /// A reply to a read that neither the script nor the command returns. Nothing was applied.
    #[error("unexpected reply from Redis to a read: {0}")]
    UnexpectedRead(String),
}

impl Error {
    /// Converts the error of a read whose script may have recorded a first use: nothing that matters to the caller was applied.
    pub(super) fn of_a_read(self) -> Self {
        match self {
            Error::OutcomeTimeout => Error::Timeout,
            Error::OutcomeUnknown(why) => Error::Unavailable(why),
            Error::Unexpected(why) => Error::UnexpectedRead(why),
            other => other,
        }
    }

    /// Converts the error of a later step of a call with an applied earlier step: "nothing was applied" becomes "unknown".
    pub fn after_a_part(self) -> Self {
        match self {
            Error::Timeout => Error::OutcomeTimeout,
            Error::Unavailable(_)
            | Error::Overloaded
            | Error::StoreChanged
            | Error::Full
            | Error::Refused(_)
            | Error::UnexpectedRead(_) => Error::OutcomeUnknown(format!("an earlier step was applied; then: {self}")),
            Error::OutcomeTimeout
            | Error::OutcomeUnknown(_)
            | Error::NotReplicated { .. }
            | Error::Corrupt { .. }
            | Error::Unexpected(_) => self,
        }
    }
}

/// Failure of a request to one server.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was applied: the server does not own the slot, or not all of its keys now. Holds its reply.
    Redirected(String),
    /// Any other failure.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

/// Conversion for calls that cannot be sent to another server.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Redirected(text) => Error::Unavailable(text),
            Failure::Error(error) => error,
        }
    }
}

/// Whether the reply says that the slot is migrating, while the server still owns it.
pub(super) fn is_halfway(reply: &str) -> bool {
    // Error of a command inside a script. Session scripts are refused before they begin: see `Keys::absent`.
    const NON_LOCAL: &str = "attempted to access a non local key";
    reply.starts_with("TRYAGAIN") || reply.contains(NON_LOCAL)
}

/// Converts an error of fred. A write counts as not applied only if Redis refused it before running the script, or if it was
/// never sent.
pub(super) fn failure(error: &FredError, effect: Effect) -> Failure {
    const REDIRECTS: [&str; 3] = ["MOVED", "ASK", "READONLY"];
    const NOT_NOW: [&str; 6] = ["LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOREPLICAS", "MISCONF"];
    const REFUSED: [&str; 4] = ["NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE"];
    let text = error.details();
    let is = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    let error = match (error.kind(), effect) {
        (ErrorKind::Backpressure, _) => Error::Overloaded,
        _ if is(&REDIRECTS) || is_halfway(text) => return Failure::Redirected(text.to_owned()),
        _ if text.starts_with("OOM") => Error::Full,
        // Redis sent this to one call; fred then fails all calls in flight with it, and some may have been applied.
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
    fn unexpected_reply_to_a_read_applied_nothing() {
        let unexpected = || Error::Unexpected("no bytes".into());
        assert!(matches!(unexpected().of_a_read(), Error::UnexpectedRead(_)));
        assert!(matches!(unexpected().of_a_read().after_a_part(), Error::OutcomeUnknown(_)));
        assert!(matches!(unexpected().after_a_part(), Error::Unexpected(_)));
    }

    #[test]
    fn failure_clusterdown_write_has_unknown_outcome() {
        let reply = FredError::new(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down");
        assert!(matches!(failure(&reply, Effect::Writes), Failure::Error(Error::OutcomeUnknown(_))));
        assert!(matches!(failure(&reply, Effect::Reads), Failure::Error(Error::Unavailable(_))));
    }
}
