//! Stores sessions in Redis, with one typed call per script. Results are outcome enums; an [`Error`] is a failure.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts are bounded by limits, and times and scores are whole numbers below 2^53"
)]

mod broken_keys;
mod channel;
mod codec;
mod create;
mod end;
mod error;
mod health;
mod keys;
mod keyspace;
mod large_reads;
mod log;
mod log_entry;
mod log_page;
mod preconditions;
mod queues;
mod read;
mod record;
mod replies;
mod routing;
mod scan;
mod script_call;
pub mod scripts;
mod start;
mod subjects;
mod survey;
mod trim;
mod update;

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time::Instant;

pub use channel::{ChannelEvent, Channels, Server};
pub use error::Error;
pub use health::Health;
pub use keys::Partition;
pub use keyspace::{NotificationStatus, Notifications};
pub use log::{Entry, Position, StoreId, Tail, Tails};
pub use log_entry::Message;
pub use log_page::Page;
pub use preconditions::Unmet;
pub use read::Validity;
pub use record::{Corrupt, plain_attributes};
pub use replies::{SurveyedState, Trimmed};
pub use scan::{Due, ListPosition};
pub use start::{Eviction, Open, StartError};
pub use subjects::{Admitted, Claim, Entry as IndexEntry, Left, Limit, PAGE as INDEX_PAGE, RESERVATION_WINDOW, Why};
pub use survey::{PER_SCRIPT, Partial, ScanPage, ScanPosition, ScanScope, Survey, Surveyed};
pub use trim::{History, LogBounds, Memory};

pub use crate::redis::ReplicatedWrites;
use crate::{
    observe::Metrics,
    redis::{Priority, Router},
    session::{
        Cause, Content, Credential, Millis, Patch, RequestId, Revision, Salt, Session, SessionId, TimeoutsMs,
        TokenState, Touch, Verifier, View,
    },
};
use keys::Keys;
use large_reads::LargeReads;
use preconditions::Preconditions;
use trim::TrimRequests;

/// Maximum number of labels of a session.
pub const MAX_LABELS: usize = 16;

/// Client of the session store in Redis.
pub struct Store {
    router: Router,
    preconditions: Preconditions,
    keys: Keys,
    /// Number of the Redis database: keyspace notifications name it.
    database: u8,
    id: RwLock<StoreId>,
    leaving: subjects::Leaving,
    queues: queues::Queues,
    broken_keys: Arc<broken_keys::BrokenKeys>,
    /// Random number of this instance, which marks its claims.
    instance: u64,
    large_reads: LargeReads,
    trim_requests: TrimRequests,
    metrics: Arc<Metrics>,
}

/// Arguments of [`Store::create`].
pub struct Create<'a> {
    /// Hash of the new session's token.
    pub verifier: Verifier,
    /// Initial subject, attributes, labels, client and authentication.
    pub content: &'a Content,
    /// Idle and absolute timeout in ms; 0 = none.
    pub timeouts: TimeoutsMs<u64>,
    /// Request id that makes a retry safe. None: a retry is not detected.
    pub request: Option<RequestId>,
    /// Reservation of the id in the index of the subject.
    pub reserved: Reservation,
}

/// Whether the id of a session is reserved in the index of its subject, or of the subject that a call sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Not reserved: the script replies `NotReserved` if it would apply the call otherwise.
    Missing,
    /// The session has no subject.
    NotRequired,
    /// Reserved in the index of this store. Void after the store is emptied.
    Held {
        /// Identity of the store that holds the index.
        store: StoreId,
        /// Time of the reservation in microseconds, Redis clock.
        added: u64,
    },
}

/// Arguments of [`Store::get`].
#[derive(Clone, Copy)]
pub struct Get {
    /// Token that the caller presents, or none if the caller names the id.
    pub credential: Credential,
    /// Parts of the session to return.
    pub view: View,
    /// Whether the call touches the session.
    pub touch: Touch,
}

/// Outcome of [`Store::create`].
#[derive(Debug)]
pub enum Created {
    /// Created by this call, or by an earlier call with the same request id: the current session.
    Session(Session),
    /// An earlier call with the same request id created the session, and the token is not accepted any more.
    Rotated,
    /// A live session has this id.
    Exists,
    /// A session with this id has ended.
    Ended(Cause),
    /// The request id belongs to another request.
    RequestIdReused,
    /// Nothing was applied: the index of the subject does not have the id. All other checks passed.
    NotReserved,
}

/// Outcome of a read.
#[derive(Debug)]
pub enum Found {
    /// A live session and the state of the presented token.
    Session(Session, TokenState),
    /// No live session, or the presented token is not one of the session's.
    NotFound,
    /// The session has ended.
    Ended(Cause, EndLogged),
    /// The presented token is superseded and no longer accepted.
    Rotated,
}

/// Whether the end of a session is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndLogged {
    /// The log has an ENDED entry.
    Yes,
    /// The deadline has passed and no worker has ended the session yet.
    NotYet,
}

/// Outcome of [`Store::update`].
#[derive(Debug)]
pub enum Updated {
    /// The session after the change. If an earlier call had the same request id: the current session.
    Session {
        /// The session.
        session: Session,
        /// Salt of the successor that the presented token already has, and that was not presented yet. None: the token has the
        /// successor of this call, or the call has none.
        salt: Option<Salt>,
    },
    /// No live session, or the presented token is not one of the session's.
    NotFound,
    /// The session has ended.
    Ended(Cause),
    /// The presented token is superseded: it is no longer accepted, or not allowed to make this change.
    Rotated,
    /// The successor is, or was, a token of this session.
    TokenKnown,
    /// Nothing was applied: the index of the new subject has no valid reservation. All other checks passed.
    NotReserved {
        /// Time in us up to which reservations are void; 0 = none is.
        void_until: u64,
    },
    /// `if_revision` is not the current revision.
    RevisionMismatch {
        /// Current revision of the session.
        current: Revision,
    },
    /// The request id belongs to another request.
    RequestIdReused,
    /// Nothing was applied: the session knows as many request ids as it can.
    RequestIdLimit {
        /// Time until one of them can be dropped.
        wait: Duration,
    },
    /// The session has another subject, which cannot be replaced.
    SubjectChange,
    /// The change would exceed the maximum number of attributes.
    TooManyAttributes {
        /// Number of attributes after the change.
        count: u64,
    },
    /// The change would exceed [`MAX_LABELS`].
    TooManyLabels {
        /// Number of labels after the change.
        count: u64,
    },
    /// The change would exceed the maximum payload.
    TooLarge {
        /// Bytes of all attribute names and values after the change.
        bytes: u64,
    },
}

/// Outcome of [`Store::end`] and [`Store::end_of`].
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Ended by this call, or by an earlier call with the same request id.
    Now,
    /// There was no live session.
    Before,
    /// The session lives on: a condition is not met.
    NotMeant,
    /// The request id belongs to another request.
    RequestIdReused,
}

/// Conditions under which [`Store::end_of`] ends a session.
#[derive(Clone, Copy)]
pub struct Condition<'a> {
    /// Required subject.
    pub subject: &'a str,
    /// Time in us of a reservation in the index of the subject: if it is valid, a session without a subject meets the
    /// condition too. None: no reservation.
    pub reserved_since: Option<u64>,
    /// Upper bound of the creation time. None: no bound.
    pub created_before: Option<Millis>,
}

/// Outcome of [`Store::settle`].
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// The session lives.
    Lives {
        /// Its subject; empty = anonymous.
        subject: String,
        /// Whether it is anonymous and has a valid reservation, so that it may get a subject.
        is_reserved: bool,
    },
    /// The session has ended, and its tombstone outlives every create in flight.
    Ended,
}

/// Outcome of [`Store::expire`].
#[derive(Debug, PartialEq, Eq)]
pub enum Expired {
    /// Ended by this call.
    Now,
    /// The deadline has not passed.
    NotDue,
    /// Another call ended the session.
    Before,
}

/// Arguments of [`Store::update`], apart from the session.
pub struct Update<'a> {
    /// Changes of subject, attributes, labels and authentication.
    pub patch: &'a Patch,
    /// New idle and absolute timeout in ms, 0 = none. None: keep.
    pub timeouts: TimeoutsMs<Option<u64>>,
    /// Whether the call touches the session.
    pub touch: Touch,
    /// Required current revision. None: any.
    pub if_revision: Option<Revision>,
    /// Parts of the session to return.
    pub view: View,
    /// Request id that makes a retry safe. None: a retry is not detected.
    pub request: Option<RequestId>,
    /// Reservation of the id in the index of the subject that the patch sets.
    pub reserved: Reservation,
    /// New token. None: no rotation.
    pub successor: Option<Successor>,
}

/// New token of a rotation.
#[derive(Clone, Copy)]
pub struct Successor {
    /// Hash of the new token.
    pub verifier: Verifier,
    /// Salt from which the server derived the new token. None: the caller made it.
    pub salt: Option<Salt>,
    /// Time for which the superseded token stays accepted.
    pub grace: Duration,
}

impl Store {
    /// Returns the current id of the store; it changes when the store is emptied.
    pub fn id(&self) -> StoreId {
        *self.id.read()
    }

    /// Iterates over all partitions.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        self.keys.partitions()
    }

    /// Returns the partition of a session.
    pub fn partition_of(&self, id: &SessionId) -> Partition {
        self.keys.partition_of(id)
    }

    /// Returns the estimated time in us of the server that owns this partition. None: unknown on this connection.
    pub fn now_at(&self, partition: Partition) -> Option<u64> {
        self.node(partition).now()
    }

    /// Returns the latest estimated time in us of any server. None: none is known.
    pub fn now(&self) -> Option<u64> {
        self.router.nodes().iter().filter_map(|node| node.now()).max()
    }

    /// Returns the latest known time in us of any server; reads the clock of the first partition's server if none is known.
    pub async fn clock(&self, deadline: Instant) -> Result<u64, Error> {
        match self.now() {
            Some(now) => Ok(now),
            None => Ok(self.node(Partition(0)).time(Priority::Interactive, deadline).await?),
        }
    }

    /// Returns the maximum number of connections that this store has open at the same time, with its current nodes.
    pub fn max_connections(&self) -> usize {
        self.router.max_connections()
    }

    /// Keeps the connections alive and follows the topology; never returns.
    pub async fn keep_alive(&self) {
        self.router.keep_alive().await;
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.router.close().await;
    }
}

#[expect(clippy::expect_used, reason = "the operating system's random source does not fail on supported platforms")]
fn random_u64() -> u64 {
    getrandom::u64().expect("the operating system returns random bytes")
}

/// Random number that distinguishes changes with the same revision. Lua keeps it exactly.
fn random_nonce() -> u64 {
    random_u64() >> 11
}

impl StoreId {
    fn random() -> Self {
        StoreId((u128::from(random_u64()) << 64 | u128::from(random_u64())).to_be_bytes())
    }
}
