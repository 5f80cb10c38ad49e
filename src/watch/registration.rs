//! Registration of a watcher with the hub: its wake-up, its progress, and its cursor into the ring.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::session::millis;

use super::{
    filter::Filter,
    hub::Hub,
    resume_token::ResumeToken,
    ring::Slot,
    watcher_index::{Interest, Watcher, WatcherProgress},
};

/// Time in ms that is added to a watcher's timeout while it reads from Redis: enough for several reads in sequence.
const REDIS_ALLOWANCE_MS: u64 = 10_000;

/// Maximum number of slots that a watcher takes at once. With [`TAKE_BYTES`] it bounds the memory of a stalled watcher.
const TAKE_SLOTS: usize = 256;
/// Size in bytes after which a watcher takes no further slot at once.
const TAKE_BYTES: usize = 1024 * 1024;

/// The server has as many watches as its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimitReached;

/// What a watcher gets from the ring.
pub enum Poll {
    /// Number of the first slot, and slots in order. The first is of interest to the watcher, the others may be.
    Slots(u64, Vec<Slot>),
    /// Nothing of interest before the ring's end: the resume token of the end, and the number of the next slot.
    AtEnd(Bytes, u64),
    /// The ring has dropped slots that the watcher has not taken. They are in the log.
    Overrun,
    /// The hub has evicted the watcher as a slow consumer.
    Evicted,
}

/// Registration of a watcher with the hub. Dropping it removes the watcher.
pub struct Registration {
    hub: Arc<Hub>,
    id: u64,
    progress: Arc<WatcherProgress>,
}

impl Registration {
    /// Registers a watcher that makes progress at least once per `interval` while its client reads. The watcher
    /// receives the events after the returned position. `reset` resets its stream.
    pub fn new(
        hub: Arc<Hub>,
        filter: &Filter,
        interval: Duration,
        reset: CancellationToken,
    ) -> Result<(Self, ResumeToken), WatchLimitReached> {
        let progress = Arc::new(WatcherProgress {
            wake: Notify::new(),
            progress_at: AtomicU64::new(hub.now_ms()),
            timeout_ms: millis(hub.limits.slow_consumer_timeout + interval),
        });
        let interest = Interest::of(filter);
        let mut state = hub.state.lock();
        if state.open_watches >= hub.limits.watches {
            return Err(WatchLimitReached);
        }
        state.open_watches += 1;
        let id = state.watchers.add(Watcher { first_pending: None, interest, progress: progress.clone(), reset });
        let end = state.end.clone();
        drop(state);
        hub.metrics.watches.inc();
        Ok((Registration { hub, id, progress }, end))
    }

    /// Hub that the watcher is registered with.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Returns when an item of interest may have been appended to the ring.
    pub async fn woken(&self) {
        self.progress.wake.notified().await;
    }

    /// Marks progress: the stream was polled, so the client reads.
    pub fn mark_progress(&self) {
        self.progress.progress_at.store(self.hub.now_ms(), Ordering::Relaxed);
    }

    /// Marks progress before reads from Redis, whose time does not count against the client.
    pub fn mark_progress_before_reads(&self) {
        self.progress.progress_at.store(self.hub.now_ms() + REDIS_ALLOWANCE_MS, Ordering::Relaxed);
    }

    /// Takes some slots of the ring, from the first slot of interest on.
    pub fn poll(&self) -> Poll {
        let mut guard = self.hub.state.lock();
        let state = &mut *guard;
        let Some(watcher) = state.watchers.get_mut(self.id) else { return Poll::Evicted };
        let Some(first) = watcher.first_pending else {
            return Poll::AtEnd(state.end_token.clone(), state.ring.end());
        };
        if first < state.ring.first() {
            return Poll::Overrun;
        }
        let mut bytes = 0;
        let fits = |slot: &&Slot| {
            let is_below_limit = bytes < TAKE_BYTES;
            bytes += slot.bytes;
            is_below_limit
        };
        let slots: Vec<Slot> = state.ring.from(first).take(TAKE_SLOTS).take_while(fits).cloned().collect();
        let next = first + slots.len() as u64;
        watcher.first_pending = (next < state.ring.end()).then_some(next);
        Poll::Slots(first, slots)
    }

    /// Returns the slots from this number on, so that the next [`Registration::poll`] takes them again.
    pub fn return_slots(&self, number: u64) {
        if let Some(watcher) = self.hub.state.lock().watchers.get_mut(self.id) {
            watcher.first_pending = Some(number);
        }
    }

    /// Number that the next slot of the ring will have.
    pub fn end(&self) -> u64 {
        self.hub.state.lock().ring.end()
    }

    /// Moves the watcher to the ring's end and returns its position. Entries before it are in the log.
    pub fn skip_to_end(&self) -> ResumeToken {
        let mut state = self.hub.state.lock();
        if let Some(watcher) = state.watchers.get_mut(self.id) {
            watcher.first_pending = None;
        }
        state.end.clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        state.watchers.remove(self.id);
        state.evicted.remove(&self.id);
        state.open_watches -= 1;
        self.hub.metrics.watches.dec();
    }
}
