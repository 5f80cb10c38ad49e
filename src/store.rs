//! Sessions in Redis: one typed call per script. What was found is an outcome; an [`Error`] is a failure.

mod calls;
mod channel;
mod clock;
mod codec;
mod connection;
mod directory;
mod error;
mod exchange;
mod keys;
mod keyspace;
mod log;
mod msgpack;
mod node;
mod reads;
mod record;
mod replicated;
mod scan;
pub mod scripts;
mod start;
mod subjects;
mod wire;

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time::Instant;

pub use channel::{Channels, Heard, Server};
pub use error::Error;
pub use keys::Partition;
pub use keyspace::{Notifications, Telling};
pub use log::{Entry, Message, Page, Position, StoreId, Tail, Tails};
pub use node::{Lane, Waits};
pub use record::Corrupt;
pub use scan::{Due, ListPosition, LogBounds};
pub use start::{Eviction, Open, StartError};
pub use subjects::{Admitted, Entry as IndexEntry, JOINING, Left, Limit, PAGE as INDEX_PAGE, ScanPosition, Why};

use crate::{
    observe::Metrics,
    session::{
        Cause, Content, Millis, Patch, Proof, RequestId, Revision, Session, SessionId, Standing, TimeoutsMs, Use,
        Verifier, View,
    },
};
use connection::Connection;
use keys::Keys;

/// Labels of a session.
pub const MAX_LABELS: usize = 16;

/// The store of sessions.
pub struct Store {
    connection: Connection,
    keys: Keys,
    /// Of Redis, whose events name it.
    database: u8,
    id: RwLock<StoreId>,
    leaving: subjects::Leaving,
    metrics: Arc<Metrics>,
}

/// What a new session begins with.
pub struct Create<'a> {
    pub verifier: Verifier,
    pub content: &'a Content,
    pub timeouts: TimeoutsMs<u64>,
    pub request: Option<RequestId>,
    pub reserved: Reserved,
}

/// Whether a session's id stands in the index of its subject, or of the one it is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    No,
    /// There is no subject.
    NeedsNot,
    /// In the index of this store since then, in us: should that be emptied meanwhile, the index is gone.
    In {
        store: StoreId,
        added: u64,
    },
}

/// How a session is read.
#[derive(Clone, Copy)]
pub struct Get {
    pub proof: Proof,
    pub view: View,
    pub use_: Use,
}

#[derive(Debug)]
pub enum Created {
    Session(Session),
    Exists,
    Ended(Cause),
    RequestIdReused,
    /// It would be made, were it in its subject's index.
    NotReserved,
}

#[derive(Debug)]
pub enum Found {
    Session(Session, Standing),
    NotFound,
    Ended(Cause, Told),
    /// The presented token is superseded, and its time is over.
    Rotated,
}

/// Whether an ending stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Yes,
    /// The deadline is over, and nobody has ended the session yet.
    NotYet,
}

#[derive(Debug)]
pub enum Updated {
    Session(Session),
    NotFound,
    Ended(Cause),
    /// The presented token is superseded: its time is over, or it may not do this.
    Rotated,
    /// The successor is, or was, a token of this session.
    TokenKnown,
    /// It would become this subject's, were it in the subject's index since later than this, in us.
    NotReserved {
        void_until: u64,
    },
    RevisionMismatch {
        current: Revision,
    },
    RequestIdReused,
    SubjectChange,
    TooManyAttributes {
        count: u64,
    },
    TooManyLabels {
        count: u64,
    },
    TooLarge {
        bytes: u64,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// By this call, or by the call it repeats.
    Now,
    /// There was no live session.
    Before,
    /// It lives on: the condition is not met.
    NotMeant,
    RequestIdReused,
}

/// Which session may be ended.
#[derive(Clone, Copy)]
pub struct Condition<'a> {
    /// Only one of this subject.
    pub subject: &'a str,
    /// Also one of no subject that since then, in us, may be about to become this one's.
    pub joining: Option<u64>,
    /// Only one made before this.
    pub created_before: Option<Millis>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// Empty = anonymous.
    Lives {
        subject: String,
        /// It is anonymous, and may be about to become somebody's.
        is_joining: bool,
    },
    /// It has ended, and none of its id can come to live for a while.
    Ended,
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
    pub reserved: Reserved,
    /// None = it keeps its token.
    pub successor: Option<Successor>,
}

/// The token after a rotation.
#[derive(Clone, Copy)]
pub struct Successor {
    pub verifier: Verifier,
    /// How long the one before is still accepted.
    pub grace: Duration,
}

impl Store {
    pub fn id(&self) -> StoreId {
        *self.id.read()
    }

    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        self.keys.partitions()
    }

    pub fn partition_of(&self, id: &SessionId) -> Partition {
        self.keys.partition_of(id)
    }

    /// The servers that have partitions, and which.
    pub fn servers(&self) -> Vec<Server> {
        let map = self.connection.map().borrow().clone();
        let server = |node| Server { partitions: map.partitions_of(node).collect(), node: Arc::clone(node) };
        map.nodes.iter().map(server).filter(|server| !server.partitions.is_empty()).collect()
    }

    /// Returns when partitions have moved since this was called.
    pub fn moved(&self) -> impl Future<Output = ()> + use<> {
        let mut map = self.connection.map();
        let before = map.borrow().clone();
        async move {
            let _ = map.wait_for(|now| !now.has_owners_of(&before)).await;
        }
    }

    /// Whether a server answers: of several those that do are worth serving. The metric tells whether all do.
    pub fn is_up(&self) -> bool {
        let (servers, up) = self.connection.up();
        self.metrics.store_up.set((up == servers).into());
        up > 0
    }

    /// What the clock of the server that has this partition shows, in us; None = not known on this connection.
    pub fn now_at(&self, partition: Partition) -> Option<u64> {
        self.connection.node(partition).now()
    }

    /// The latest that the clock of any server shows, in us; None = none is known.
    pub fn now(&self) -> Option<u64> {
        self.connection.nodes().iter().filter_map(|node| node.now()).max()
    }

    /// The same; asks Redis where it is not known.
    pub async fn clock(&self, deadline: Instant) -> Result<u64, Error> {
        match self.now() {
            Some(now) => Ok(now),
            None => Ok(self.connection.node(Partition(0)).time(Lane::Calls, deadline).await?),
        }
    }

    /// What a server answered that may not have what the directory says.
    fn elsewhere(&self, failure: error::Failure) -> Error {
        if let error::Failure::Elsewhere(_) = failure {
            self.connection.note_out_of_date();
        }
        failure.into()
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
