//! What a subscription yields: batches of matched events with a control, or the reason why its watch closes, and their
//! limits. All other files of this module use it, and it uses none of them.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    auth::RightLost,
    feed::GapReason,
    session::{Cause, Change, Event, SessionId, View},
    store,
};

/// Size of the events of a batch after which no further event is added.
pub(super) const BATCH_BYTES: usize = 512 * 1024;
/// Pause before a failed read from Redis is retried.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Size of one id in a response.
const ID_BYTES: usize = 28;

/// Limits of the watches of this instance.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// Maximum number of open watches.
    pub watches: usize,
    /// Time without progress after which a watcher is a slow consumer; its bookmark interval is added.
    pub slow_consumer_timeout: Duration,
    /// Time after an eviction in which the client must read the final response.
    pub response_timeout: Duration,
    /// Maximum number of slots in the ring.
    pub ring_slots: usize,
    /// Largest size of a session that a policy allows, in bytes.
    pub largest_session: usize,
}

/// An event and its encoded forms, shared by all watchers that receive it.
pub struct SharedEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Encoded event of each view, filled by the first watcher that delivers it.
    rendered: [OnceLock<Bytes>; 2],
}

impl SharedEvent {
    /// An event that is not encoded yet.
    pub fn new(event: Arc<Event>) -> Self {
        SharedEvent { event, rendered: Default::default() }
    }

    /// Returns the encoded event in this view. Calls `render` only the first time.
    pub fn rendered(&self, view: View, render: impl FnOnce(&Event) -> Bytes) -> &Bytes {
        self.rendered[view as usize].get_or_init(|| render(&self.event))
    }
}

/// How a watcher sees an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// As the change itself.
    Change(Change),
    /// As LEFT: the session lives, but no longer matches the filter.
    Left,
    /// As SNAPSHOT: the current state of the session, not a change.
    Present,
}

/// An event that matches the filter of the watcher.
pub struct MatchedEvent {
    /// The event, shared with other watchers.
    pub shared: Arc<SharedEvent>,
    /// How the watcher sees it.
    pub visibility: Visibility,
}

/// Why a watcher missed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResyncReason {
    /// The log no longer reaches back to the position.
    Compacted,
    /// A failover lost history.
    RolledBack,
    /// The store was emptied or exchanged.
    Flushed,
    /// The client is a slow consumer. The only reason that ends the watch.
    SlowConsumer,
}

impl From<GapReason> for ResyncReason {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::Compacted => ResyncReason::Compacted,
            GapReason::RolledBack => ResyncReason::RolledBack,
            GapReason::Flushed => ResyncReason::Flushed,
        }
    }
}

/// Control of a response, which takes effect after its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// No event is missing so far.
    Bookmark {
        /// Time in us up to which the stream is complete, Redis clock.
        as_of: u64,
    },
    /// The snapshot is complete.
    Synced,
    /// Events were missed.
    Resync {
        /// Why they were missed.
        reason: ResyncReason,
        /// Affected sessions. Empty: all.
        ids: Vec<SessionId>,
    },
}

/// Content of one response.
pub struct Batch {
    /// Events in order of delivery.
    pub events: Vec<MatchedEvent>,
    /// Control after the events. None: the response has none.
    pub control: Option<Control>,
    /// Resume token after the events and the control.
    pub token: Bytes,
}

impl Batch {
    /// Approximate size of the response in bytes.
    pub fn size(&self) -> usize {
        let events: usize = self.events.iter().map(|matched| matched.shared.event.size()).sum();
        let ids = if let Some(Control::Resync { ids, .. }) = &self.control { ids.len() * ID_BYTES } else { 0 };
        self.token.len() + events + ids
    }
}

/// Why the server ends a watch, between any two responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It is draining.
    Draining,
    /// The caller has lost its right to the watch.
    RightLost(RightLost),
}

/// Why a watch is closed.
#[derive(Debug)]
pub enum CloseReason {
    /// All sessions that it was opened for have ended.
    AllEnded,
    /// The session of its token has ended.
    TokenEnded(Cause),
    /// Its token is superseded and the grace period is over.
    TokenRotated,
    /// The session of its token does not exist any more.
    TokenUnknown,
    /// The server ends it.
    Closing(Closing),
    /// Its client is a slow consumer: it read nothing for too long, or the log was compacted past its position.
    SlowConsumer,
    /// The store failed.
    Store(store::Error),
}
