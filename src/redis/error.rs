//! Errors of requests to Redis: what an error reply or a lost connection means for the request.

use fred::error::{Error as FredError, ErrorKind};

/// Whether a request reads or writes: decides what a lost reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A lost reply means that nothing was applied.
    Reads,
    /// A lost reply means that the outcome is unknown.
    Writes,
}

/// Failure of a request. Each variant defines whether anything was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was applied: the server is a replica, or does not own the slot, or not all of its keys now. Another server may
    /// execute the request. Holds the reply.
    #[error("Redis redirected the request: {0}")]
    Redirect(String),
    /// Nothing was applied: the slot is migrating, and the request needs all its keys on one server. Holds the reply.
    #[error("the slot of the keys is migrating between Redis nodes: {0}")]
    Migrating(String),
    /// Nothing was applied: the request was not sent, Redis refused it for now, or it was a read.
    #[error("Redis is unavailable: {0}")]
    Unavailable(String),
    /// Nothing was applied: the server takes no writes for now.
    #[error("Redis refuses writes: {0}")]
    WritesRefused(String),
    /// Nothing was applied: the queue of the connection is full.
    #[error("too many requests in flight")]
    Overloaded,
    /// Nothing was applied: it was a read.
    #[error("Redis did not reply before the deadline")]
    Timeout,
    /// A write that may have been applied.
    #[error("Redis did not reply before the deadline; the write may have been applied")]
    OutcomeTimeout,
    /// A write that may have been applied. The connection was lost.
    #[error("the connection to Redis was lost; the write may have been applied: {0}")]
    OutcomeUnknown(String),
    /// Nothing was applied: Redis has reached its memory limit.
    #[error("Redis has no memory left for writes")]
    Full,
    /// Nothing was applied: Redis refused the command before it ran, or it was a read.
    #[error("Redis refused the command: {0}")]
    Refused(String),
    /// A reply that this command does not return. Nothing was applied: it was a read.
    #[error("unexpected reply from Redis to {0}")]
    UnexpectedReply(&'static str),
}

impl Error {
    /// Redirect of a request to a node that no longer owns any slot.
    pub(super) fn node_retired() -> Self {
        Error::Redirect("the slots of this node moved".into())
    }

    /// Converts an error of fred. A write counts as not applied only if Redis refused it before running the script, or if it
    /// was never sent.
    pub(super) fn of(error: &FredError, effect: Effect) -> Self {
        let text = error.details().to_owned();
        if *error.kind() == ErrorKind::Backpressure {
            return Error::Overloaded;
        }
        match (ReplyKind::of(&text), effect) {
            (ReplyKind::Moved | ReplyKind::Ask | ReplyKind::TryAgain | ReplyKind::ReadOnly, _) => Error::Redirect(text),
            (ReplyKind::Full, _) => Error::Full,
            // Redis sent this to one call; fred then fails all calls in flight with it, and some may have been applied.
            (ReplyKind::ClusterDown, Effect::Writes) => Error::OutcomeUnknown(text),
            (ReplyKind::WritesRefused, _) => Error::WritesRefused(text),
            (ReplyKind::ClusterDown | ReplyKind::NotNow, _) => Error::Unavailable(text),
            (ReplyKind::NotPermitted | ReplyKind::WrongType, _) => Error::Refused(text),
            (ReplyKind::Other, Effect::Reads) => match error.kind() {
                ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Protocol => {
                    Error::Unavailable(text)
                }
                _ => Error::Refused(text),
            },
            (ReplyKind::Other, Effect::Writes) => Error::OutcomeUnknown(text),
        }
    }

    /// Whether Redis refused the command because a key has another type.
    pub fn is_wrong_type(&self) -> bool {
        matches!(self, Error::Refused(reply) if ReplyKind::of(reply) == ReplyKind::WrongType)
    }

    /// Whether a server refuses the user or the password. The text may be about several servers.
    pub fn is_not_permitted(&self) -> bool {
        matches!(self, Error::Unavailable(text) if ReplyKind::NotPermitted.is_in(text))
    }
}

/// Whether a server that refuses writes with this reply lacks replicas, as one that is cut off from the others does.
pub fn lacks_replicas(reply: &str) -> bool {
    reply.starts_with("NOREPLICAS")
}

/// Meaning of an error reply of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// Another server owns the slot.
    Moved,
    /// The slot is migrating to another server, which has the keys.
    Ask,
    /// The slot is migrating, and each server has some of the keys.
    TryAgain,
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
        ("MOVED", ReplyKind::Moved),
        ("ASK", ReplyKind::Ask),
        ("TRYAGAIN", ReplyKind::TryAgain),
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
    ];
    /// Error of a command inside a script while the slot migrates. Redis refuses scripts that declare a key that never exists
    /// before they begin, with TRYAGAIN.
    const NON_LOCAL_KEY: &str = "attempted to access a non local key";

    /// Errors of a command inside a script for which the user lacks the right. Scripts check the right to every command that
    /// follows their first write before it.
    const NO_RIGHT_IN_SCRIPT: [&str; 2] =
        ["The user executing the script can't run this command", "ACL failure in script"];

    /// Returns the kind of a reply, by its first word or by a part of it.
    pub(super) fn of(reply: &str) -> Self {
        let first = ReplyKind::KINDS.into_iter().find(|(word, _)| reply.starts_with(word)).map(|(_, kind)| kind);
        first.unwrap_or_else(|| match reply {
            _ if reply.contains(ReplyKind::NON_LOCAL_KEY) => ReplyKind::TryAgain,
            _ if ReplyKind::NO_RIGHT_IN_SCRIPT.iter().any(|part| reply.contains(part)) => ReplyKind::NotPermitted,
            _ => ReplyKind::Other,
        })
    }

    /// Whether a text about several servers contains a reply of this kind.
    fn is_in(self, text: &str) -> bool {
        ReplyKind::KINDS.into_iter().any(|(word, kind)| kind == self && text.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusterdown_reply_to_a_write_has_unknown_outcome() {
        let reply = FredError::new(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down");
        assert!(matches!(Error::of(&reply, Effect::Writes), Error::OutcomeUnknown(_)));
        assert!(matches!(Error::of(&reply, Effect::Reads), Error::Unavailable(_)));
    }

    #[test]
    fn redirects_of_a_write_have_applied_nothing() {
        for reply in
            ["MOVED 1 a:1", "ASK 1 a:1", "TRYAGAIN", "READONLY", "ERR attempted to access a non local key in a script"]
        {
            let reply = FredError::new(ErrorKind::Unknown, reply);
            assert!(matches!(Error::of(&reply, Effect::Writes), Error::Redirect(_)), "{reply:?}");
        }
    }
}
