//! The live reader: takes the items of the ring that may match its watcher.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    observe::Metrics,
    store::{Partition, Position},
};

use super::{
    filter::Filter,
    hub::Hub,
    item::{Item, Read, Resync},
    registry::{ClientStream, NotRegistered, Registered},
    response::WatchLimits,
    resume_token::ResumeToken,
    watcher::Watcher,
};

/// Maximum number of slots that a watcher takes at once.
const READ_SLOTS: usize = 256;
/// Approximate size in memory after which a watcher takes no further slot at once: their events fit into a response.
const READ_BYTES: usize = 1024 * 1024;

/// Cursor of a registered watcher in the ring. Dropping it removes the watcher.
pub struct LiveReader {
    hub: Arc<Hub>,
    registered: Registered,
    /// Number of the first slot that was not read. The slots before it were taken, or do not concern the watcher.
    next: u64,
}

impl LiveReader {
    /// Registers a watcher that makes progress at least once per `interval` while its client reads. It receives the
    /// items after the returned position.
    pub fn register(
        hub: Arc<Hub>,
        filter: Arc<Filter>,
        interval: Duration,
        client: ClientStream,
    ) -> Result<(Self, ResumeToken), NotRegistered> {
        let (registered, next, end) = hub.register(filter, interval, client)?;
        Ok((LiveReader { hub, registered, next }, end))
    }

    /// Takes slots of the ring, from the first one that may match, up to `until` exclusive.
    pub(super) fn read(&mut self, until: u64) -> Read {
        if self.registered.watcher.is_evicted() {
            return Read::SlowConsumer;
        }
        let recent = self.hub.recent();
        let Some(first) = self.registered.watcher.take_pending() else {
            self.next = recent.ring.end();
            return Read::End(recent.end_token.clone());
        };
        if first < recent.ring.first() {
            return Read::Overrun;
        }
        let mut bytes = 0;
        let mut slots = Vec::new();
        for slot in recent.ring.from(first).take(usize::try_from(until.saturating_sub(first)).unwrap_or(usize::MAX)) {
            bytes += slot.item.bytes();
            slots.push(slot.clone());
            if slots.len() == READ_SLOTS || bytes >= READ_BYTES || matches!(slot.item, Item::Resync(_)) {
                break;
            }
        }
        self.next = first.min(until) + slots.len() as u64;
        if self.next < recent.ring.end() {
            self.registered.watcher.note_slot(self.next.max(first));
        }
        Read::Items(slots)
    }

    /// Returns when a slot that may match was appended, or the watcher was evicted.
    pub(super) async fn woken(&self) {
        self.registered.watcher.woken().await;
    }

    /// The watcher.
    pub(super) fn watcher(&self) -> &Arc<Watcher> {
        &self.registered.watcher
    }

    /// Number of the first slot that was not read.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Number that the next slot of the ring will have.
    pub(super) fn end(&self) -> u64 {
        self.hub.recent().ring.end()
    }

    /// Limits of the watches.
    pub(super) fn limits(&self) -> &WatchLimits {
        &self.hub.registry.limits
    }

    /// Metrics of the watches.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.hub.registry.metrics
    }

    /// Moves the watcher to the ring's end and returns its position. Items before it are in the log.
    pub(super) fn skip_to_end(&mut self) -> ResumeToken {
        let recent = self.hub.recent();
        self.registered.watcher.take_pending();
        self.next = recent.ring.end();
        recent.end.clone()
    }

    /// Returns the rollback that removed the entry at this position. None: the ring has no such rollback.
    pub(super) fn rollback_of(&self, partition: Partition, position: Position) -> Option<Arc<Resync>> {
        self.hub.recent().rollback_of(partition, position)
    }

    /// Marks progress: the stream was polled, so the client reads.
    pub(super) fn mark_progress(&self, now: Instant) {
        self.registered.watcher.mark_progress(self.hub.registry.ms_at(now));
    }

    /// Marks progress before reads from Redis, whose time does not count against the client.
    pub(super) fn mark_progress_before_reads(&self, now: Instant) {
        self.registered.watcher.mark_progress_before_reads(self.hub.registry.ms_at(now));
    }
}

impl Drop for LiveReader {
    fn drop(&mut self) {
        self.hub.registry.remove(self.registered.number);
    }
}

#[cfg(test)]
mod tests;
