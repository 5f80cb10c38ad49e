//! One method per use case. Here policy is applied and tokens are turned into hashes: a plain token goes no further.

mod listing;
mod sessions;
mod subjects;
mod watching;

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    session::{
        Cause, Namespace, Policies, Policy, Proof, Revision, Session, SessionId, SessionName, TimeoutRefused, Token,
        Use, View,
    },
    store::{self, Store},
    watch::Hub,
};

pub use listing::{List, Listed, Page, PageToken};
pub use sessions::{Create, Delete, Get, Rotate, Update};
pub use subjects::DeleteAll;
pub use watching::{Watch, WatchKeys};

/// The use cases.
#[derive(Clone)]
pub struct Service {
    pub store: Arc<Store>,
    pub hub: Arc<Hub>,
    pub policies: Arc<Policies>,
    /// Cancelled when the server is being stopped: ends every watch.
    pub draining: CancellationToken,
}

/// What a caller names a session by.
pub enum Key {
    Id(SessionId),
    Token(Token),
    /// In no token's form: no session has it.
    MalformedToken,
}

impl Key {
    fn proof(&self) -> Option<(SessionId, Proof)> {
        match self {
            Key::Id(id) => Some((*id, Proof::Named)),
            Key::Token(token) => Some((token.id(), Proof::Secret(token.verifier()))),
            Key::MalformedToken => None,
        }
    }
}

/// A field that is well-formed, but not allowed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub field: String,
    pub reason: String,
}

impl From<TimeoutRefused> for Refused {
    fn from(refused: TimeoutRefused) -> Self {
        Refused { field: refused.field.to_owned(), reason: refused.reason }
    }
}

/// Why a call did not do what was asked.
#[derive(Debug)]
pub enum Error {
    Refused(Vec<Refused>),
    RequestIdReused,
    NamespaceUnknown,
    /// Unknown, malformed, of another namespace, or the secret is wrong: all the same.
    NotFound,
    Ended(Cause),
    /// The presented token is superseded: its time is over, or it may not do this.
    Rotated,
    Exists,
    RevisionMismatch {
        current: Revision,
    },
    ClientTokensForbidden,
    SubjectChange,
    SubjectSessionLimit {
        limit: u32,
    },
    WatchLimit,
    Draining,
    Store(store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(error)
    }
}

impl Service {
    fn policy(&self, namespace: &Namespace) -> Result<&Policy, Error> {
        self.policies.of(namespace).ok_or(Error::NamespaceUnknown)
    }
}
