//! The use cases, one method each: applies the policy of the namespace and turns tokens into verifiers.
//!
//! Modules below this one never receive the text of a token.

mod list;
mod sessions;
mod steps;
mod subjects;
mod watch;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    auth::{Authenticator, Authorized},
    cache::Cache,
    session::{
        Cause, Credential, Namespace, Policies, Policy, Revision, Session, SessionId, SessionRef, TimeoutViolation,
        Token, Touch, View,
    },
    store::{self, Store},
    watch::{Hub, RedisSource},
};

pub use list::{List, ListScope, PageToken, SessionPage};
pub use sessions::{Create, Delete, Get, Rotate, Update};
pub use subjects::DeleteSubjectSessions;
pub use watch::{Watch, WatchKeys, WatchStream};

/// The session service: one method per use case.
#[derive(Clone)]
pub struct Service {
    /// Store of the sessions.
    pub store: Arc<Store>,
    /// Copies that answer reads from memory. None: the near cache is off.
    pub cache: Option<Arc<Cache>>,
    /// What watches read from Redis.
    pub watch_source: Arc<RedisSource>,
    /// Hub that delivers events to watches.
    pub hub: Arc<Hub>,
    /// Finds the callers of watches again.
    pub authenticator: Arc<Authenticator>,
    /// Policies of all namespaces.
    pub policies: Arc<Policies>,
}

/// Key with which a caller selects a session.
pub enum Key {
    /// Public id.
    Id(SessionId),
    /// Token of the session.
    Token(PresentedToken),
}

/// Token that a caller presented to act on an existing session.
///
/// A malformed one is not a violation: the call gets the same response as for an unknown token.
pub enum PresentedToken {
    /// The text is a token.
    WellFormed(Token),
    /// The text is not a token, so no session has it.
    Malformed,
}

impl PresentedToken {
    /// Parses the text that the caller presented.
    pub fn parse(text: String) -> Self {
        Token::parse(text).map_or(PresentedToken::Malformed, PresentedToken::WellFormed)
    }

    /// Returns the token. None: it is malformed.
    pub fn well_formed(&self) -> Option<&Token> {
        match self {
            PresentedToken::WellFormed(token) => Some(token),
            PresentedToken::Malformed => None,
        }
    }

    /// Returns the id and the credential in the token, or [`Error::NotFound`] if it is malformed.
    fn credential(&self) -> Result<(SessionId, Credential), Error> {
        let token = self.well_formed().ok_or(Error::NotFound)?;
        Ok((token.id(), Credential::Secret(token.verifier())))
    }
}

impl Service {
    /// Drops the copy of a session that this instance may have changed.
    fn forget(&self, name: &SessionRef) {
        if let Some(cache) = &self.cache {
            cache.forget(name);
        }
    }

    /// Drops the copy of a session when the returned guard is dropped: at the end of a write, also if it is cancelled.
    fn forget_after_write<'a>(&'a self, name: &'a SessionRef) -> ForgetAfterWrite<'a> {
        ForgetAfterWrite { service: self, name }
    }
}

/// Guard of a write of one session. See [`Service::forget_after_write`].
struct ForgetAfterWrite<'a> {
    service: &'a Service,
    name: &'a SessionRef,
}

impl Drop for ForgetAfterWrite<'_> {
    fn drop(&mut self) {
        self.service.forget(self.name);
    }
}

impl Key {
    /// Returns the id and the credential in the key, or [`Error::NotFound`] if it is a malformed token.
    fn credential(&self) -> Result<(SessionId, Credential), Error> {
        match self {
            Key::Id(id) => Ok((*id, Credential::Id)),
            Key::Token(token) => token.credential(),
        }
    }
}

/// Field of a request with a value that is malformed or that the policy does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field. Empty: the request as a whole.
    pub field: String,
    /// Reason, without the path of the field.
    pub reason: String,
}

impl From<TimeoutViolation> for Violation {
    fn from(violation: TimeoutViolation) -> Self {
        Violation { field: violation.field.to_owned(), reason: violation.reason }
    }
}

/// Reason why a call did not do what the caller requested.
#[derive(Debug)]
pub enum Error {
    /// Fields that are malformed or that the policy does not allow.
    Violations(Vec<Violation>),
    /// The request id was used with another request.
    RequestIdReused,
    /// The session knows as many request ids as it can.
    RequestIdLimit {
        /// Time until one of them can be dropped.
        wait: Duration,
    },
    /// The namespace is not in the configuration, and only listed ones are allowed.
    NamespaceUnknown,
    /// The session is unknown, the token is malformed, of another namespace, or has a wrong secret. Callers cannot
    /// distinguish these cases.
    NotFound,
    /// These sessions of a watch by ids are not alive, in the order of their ids.
    IdsNotFound(Vec<SessionId>),
    /// The session has ended.
    Ended(Cause),
    /// The presented token is superseded: its grace period is over, or this call requires the current token.
    Rotated,
    /// A live session has the id of the caller's token.
    Exists,
    /// The session has another revision than the one that the caller requires.
    RevisionMismatch {
        /// Current revision of the session.
        current: Revision,
    },
    /// The policy does not allow client tokens.
    ClientTokensForbidden,
    /// The session has a subject, and the call sets another one.
    SubjectChange,
    /// The subject has as many sessions as the policy allows.
    SubjectSessionLimit {
        /// Session limit of the policy.
        limit: u32,
    },
    /// The server has as many watches as its limit allows.
    WatchLimit,
    /// The caller has half of the watches that the server's limit allows.
    CallerWatchLimit,
    /// The server is shutting down.
    Draining,
    /// The store failed.
    Store(store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(error)
    }
}

/// Returns the error for one invalid field.
fn violation(field: &str, reason: impl Into<String>) -> Error {
    Error::Violations(vec![Violation { field: field.to_owned(), reason: reason.into() }])
}

impl Service {
    fn policy(&self, namespace: &Namespace) -> Result<&Policy, Error> {
        self.policies.of(namespace).ok_or(Error::NamespaceUnknown)
    }
}
