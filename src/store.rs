//! Sessions in Redis: one typed call per script. What was found is an outcome; an [`Error`] is a failure.

mod calls;
mod channel;
mod codec;
mod connection;
mod error;
mod keys;
mod log;
mod msgpack;
mod record;
mod scan;
pub mod scripts;
mod start;

use std::sync::Arc;

use parking_lot::RwLock;

pub use channel::{Channels, Heard};
pub use connection::Lane;
pub use error::Error;
pub use keys::Partition;
pub use log::{Entry, Message, Page, Position, StoreId, Tails};
pub use record::Corrupt;
pub use scan::{Due, ListPosition, LogBounds};
pub use start::{Eviction, StartError};

use crate::{
    observe::Metrics,
    session::{Cause, Content, Patch, Proof, RequestId, Revision, Session, TimeoutsMs, Use, Verifier, View},
};
use connection::Connection;
use keys::Keys;

/// Labels of a session.
pub const MAX_LABELS: usize = 16;

/// The store of sessions.
pub struct Store {
    connection: Connection,
    keys: Keys,
    id: RwLock<StoreId>,
    metrics: Arc<Metrics>,
}

/// What a new session begins with.
pub struct Create<'a> {
    pub verifier: Verifier,
    pub content: &'a Content,
    pub timeouts: TimeoutsMs<u64>,
    pub request: Option<RequestId>,
}

/// How a session is read.
#[derive(Clone, Copy)]
pub struct Get {
    pub proof: Proof,
    pub view: View,
    pub use_: Use,
    pub lane: Lane,
}

#[derive(Debug)]
pub enum Created {
    Session(Session),
    Exists,
    Ended(Cause),
    RequestIdReused,
}

#[derive(Debug)]
pub enum Found {
    Session(Session),
    NotFound,
    Ended(Cause),
}

#[derive(Debug)]
pub enum Updated {
    Session(Session),
    NotFound,
    Ended(Cause),
    RevisionMismatch { current: Revision },
    RequestIdReused,
    SubjectChange,
    TooManyAttributes { count: u64 },
    TooManyLabels { count: u64 },
    TooLarge { bytes: u64 },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// By this call, or by the call it repeats.
    Now,
    /// There was no live session.
    Before,
    RequestIdReused,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Expired {
    /// By this call.
    Now,
    /// Its deadline is not over.
    NotDue,
    /// Somebody else ended it.
    Before,
}

/// Everything an update is told beside the session's name.
pub struct Update<'a> {
    pub patch: &'a Patch,
    /// None = keep.
    pub timeouts: TimeoutsMs<Option<u64>>,
    pub use_: Use,
    pub if_revision: Option<Revision>,
    pub view: View,
    pub request: Option<RequestId>,
}

impl Store {
    pub fn id(&self) -> StoreId {
        *self.id.read()
    }

    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        self.keys.partitions()
    }

    /// Whether Redis answers.
    pub fn is_up(&self) -> bool {
        self.connection.is_up()
    }

    /// What the clock of Redis shows, in us; None = not known on this connection.
    pub fn now(&self) -> Option<u64> {
        self.connection.now()
    }

    /// Keeps the connections alive; never ends.
    pub async fn keep_alive(&self) {
        self.connection.keep_alive().await;
    }

    pub async fn close(&self) {
        self.connection.close().await;
    }
}

fn random_u64() -> u64 {
    getrandom::u64().expect("the operating system gives random bytes")
}

impl StoreId {
    fn random() -> Self {
        StoreId((u128::from(random_u64()) << 64 | u128::from(random_u64())).to_be_bytes())
    }
}
