//! Errors of the store, and what each error of Redis or fred means for a call.

use fred::error::{Error as FredError, ErrorKind};

use crate::session::SessionRef;

use super::record::Corrupt;
use crate::redis::node::Effect;

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
    pub(crate) fn of_a_read(self) -> Self {
        match self {
            Error::OutcomeTimeout => Error::Timeout,
            Error::OutcomeUnknown(why) => Error::Unavailable(why),
            Error::Unexpected(why) => Error::UnexpectedRead(why),
            other => other,
        }
    }

    /// Returns whether Redis refused the command because a key has another type. [`crate::store::Store::repair_keys`] checks
    /// the keys of such commands.
    pub fn is_wrong_type(&self) -> bool {
        matches!(self, Error::Refused(why) if why.starts_with("WRONGTYPE"))
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
pub(crate) enum Failure {
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
pub(crate) fn is_halfway(reply: &str) -> bool {
    // Error of a command inside a script. Session scripts are refused before they begin: see `Keys::absent`.
    const NON_LOCAL: &str = "attempted to access a non local key";
    reply.starts_with("TRYAGAIN") || reply.contains(NON_LOCAL)
}

/// Meaning of an error reply of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    /// The server does not own the slot, or not all of its keys now.
    Redirect,
    /// The server is a replica.
    ReadOnly,
    /// The user lacks a right, or is not authenticated.
    NotPermitted,
    /// The server refuses writes for now: too few replicas, or it cannot save to disk.
    WritesRefused,
    /// The server has no memory left.
    Full,
    /// The Cluster does not serve all slots.
    ClusterDown,
    /// The server serves nothing for now.
    NotNow,
    /// The key has another type.
    WrongType,
    /// Any other reply, and errors of the connection.
    Other,
}

impl ReplyKind {
    /// First words of replies, with their kinds.
    const KINDS: [(&str, ReplyKind); 15] = [
        ("MOVED", ReplyKind::Redirect),
        ("ASK", ReplyKind::Redirect),
        ("READONLY", ReplyKind::ReadOnly),
        ("NOAUTH", ReplyKind::NotPermitted),
        ("NOPERM", ReplyKind::NotPermitted),
        ("WRONGPASS", ReplyKind::NotPermitted),
        ("NOREPLICAS", ReplyKind::WritesRefused),
        ("MISCONF", ReplyKind::WritesRefused),
        ("OOM", ReplyKind::Full),
        ("CLUSTERDOWN", ReplyKind::ClusterDown),
        ("LOADING", ReplyKind::NotNow),
        ("MASTERDOWN", ReplyKind::NotNow),
        ("BUSY", ReplyKind::NotNow),
        ("WRONGTYPE", ReplyKind::WrongType),
        ("TRYAGAIN", ReplyKind::Redirect),
    ];

    /// Returns the kind of a reply, by its first word.
    pub(crate) fn of(reply: &str) -> Self {
        let kind = ReplyKind::KINDS.into_iter().find(|(word, _)| reply.starts_with(word)).map(|(_, kind)| kind);
        kind.unwrap_or(if is_halfway(reply) { ReplyKind::Redirect } else { ReplyKind::Other })
    }

    /// Whether a text about several servers contains a reply of this kind.
    pub(crate) fn is_in(self, text: &str) -> bool {
        ReplyKind::KINDS.into_iter().any(|(word, kind)| kind == self && text.contains(word))
    }
}

/// Converts an error of fred. A write counts as not applied only if Redis refused it before running the script, or if it was
/// never sent.
pub(crate) fn failure(error: &FredError, effect: Effect) -> Failure {
    let text = error.details();
    if *error.kind() == ErrorKind::Backpressure {
        return Error::Overloaded.into();
    }
    let error = match (ReplyKind::of(text), effect) {
        (ReplyKind::Redirect | ReplyKind::ReadOnly, _) => return Failure::Redirected(text.to_owned()),
        (ReplyKind::Full, _) => Error::Full,
        // Redis sent this to one call; fred then fails all calls in flight with it, and some may have been applied.
        (ReplyKind::ClusterDown, Effect::Writes) => Error::OutcomeUnknown(text.to_owned()),
        (ReplyKind::ClusterDown | ReplyKind::NotNow | ReplyKind::WritesRefused, _) => {
            Error::Unavailable(text.to_owned())
        }
        (ReplyKind::NotPermitted | ReplyKind::WrongType, _) => Error::Refused(text.to_owned()),
        (ReplyKind::Other, Effect::Reads) => match error.kind() {
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Protocol => {
                Error::Unavailable(text.to_owned())
            }
            _ => Error::Refused(text.to_owned()),
        },
        (ReplyKind::Other, Effect::Writes) => Error::OutcomeUnknown(text.to_owned()),
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
