//! Errors of the store.

use super::record::Corrupt;
use crate::{redis, session::SessionRef};

/// Failure of a store call. Each variant defines whether anything was applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was applied: the call was not sent, Redis refused it for now, or it was a read.
    #[error("Redis is unavailable: {0}")]
    Unavailable(String),
    /// Nothing was applied: the slot of the session is migrating, and a script needs all its keys on one node.
    #[error("the slot of the session is migrating between Redis nodes: {0}")]
    Migrating(String),
    /// Nothing was applied: Redis takes no writes for now.
    #[error("Redis refuses writes: {0}")]
    WritesRefused(String),
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

    /// Returns whether Redis refused the command because a key has another type. [`crate::store::Store::repair_keys`] checks
    /// the keys of such commands.
    pub fn is_wrong_type(&self) -> bool {
        matches!(self, Error::Refused(why) if why.starts_with("WRONGTYPE"))
    }

    /// Returns whether nothing was applied.
    pub fn applied_nothing(&self) -> bool {
        match self {
            Error::Timeout
            | Error::Unavailable(_)
            | Error::Migrating(_)
            | Error::WritesRefused(_)
            | Error::Overloaded
            | Error::StoreChanged
            | Error::Full
            | Error::Refused(_)
            | Error::UnexpectedRead(_) => true,
            Error::OutcomeTimeout
            | Error::OutcomeUnknown(_)
            | Error::NotReplicated { .. }
            | Error::Corrupt { .. }
            | Error::Unexpected(_) => false,
        }
    }

    /// Converts the error of a later step of a call with an applied earlier step: "nothing was applied" becomes "unknown".
    pub fn after_a_part(self) -> Self {
        match self {
            Error::Timeout => Error::OutcomeTimeout,
            _ if self.applied_nothing() => Error::OutcomeUnknown(format!("an earlier step was applied; then: {self}")),
            _ => self,
        }
    }
}

/// Conversion of the error of a request that cannot be sent to another server.
impl From<redis::Error> for Error {
    fn from(error: redis::Error) -> Self {
        match error {
            redis::Error::Redirect(reply) | redis::Error::Unavailable(reply) => Error::Unavailable(reply),
            redis::Error::Migrating(reply) => Error::Migrating(reply),
            redis::Error::WritesRefused(reply) => Error::WritesRefused(reply),
            redis::Error::Overloaded => Error::Overloaded,
            redis::Error::Timeout => Error::Timeout,
            redis::Error::OutcomeTimeout => Error::OutcomeTimeout,
            redis::Error::OutcomeUnknown(cause) => Error::OutcomeUnknown(cause),
            redis::Error::Full => Error::Full,
            redis::Error::Refused(reply) => Error::Refused(reply),
            redis::Error::UnexpectedReply(command) => Error::UnexpectedRead(command.into()),
        }
    }
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
}
