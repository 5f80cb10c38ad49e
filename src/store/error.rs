//! Why the store did not do what was asked. What was found there instead is an outcome, not an error.

use crate::session::SessionName;

use super::record::Corrupt;

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
