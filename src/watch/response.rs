//! Content of the responses of a watch.

use std::sync::Arc;

use bytes::Bytes;

use crate::session::SessionId;

use super::{
    filter::Visibility,
    ring::{ResyncReason, SharedEvent},
};

/// Size of the events of a batch after which no further event is added.
pub(super) const BATCH_BYTES: usize = 512 * 1024;

/// Size of one id in a response.
const ID_BYTES: usize = 28;

/// An event that matches the filter of the watcher.
pub struct MatchedEvent {
    /// The event, shared with other watchers.
    pub shared: Arc<SharedEvent>,
    /// How the watcher sees it.
    pub visibility: Visibility,
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

/// Events of a batch, and their approximate size.
#[derive(Default)]
pub(super) struct Events {
    pub list: Vec<MatchedEvent>,
    pub bytes: usize,
}
