//! A watcher's place in the hub.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    hub::{Concerns, Hub, TAKE_BYTES, TAKE_SLOTS},
    ring::Slot,
    token::ResumeToken,
};

/// What the hub knows of a watcher.
pub(super) struct Watcher {
    /// Number of the first slot that concerns it and that it has not taken.
    pub first: Option<u64>,
    pub concerns: Concerns,
    pub shared: Arc<Shared>,
}

/// The longest that a watcher waits for Redis in one go: for some reads, one after the other.
const REDIS_TAKES: Duration = Duration::from_secs(10);

/// What a watcher and the hub tell each other.
pub(super) struct Shared {
    pub wake: Notify,
    /// When its reader last let it go on, in ms since the hub was made; later than now while it may wait for Redis. One
    /// whose reader reads gets there with every bookmark.
    pub went_on: AtomicU64,
    /// The longest that it may stand, in ms.
    pub patience: u64,
}

/// What a watcher takes from the ring.
pub enum Taken {
    /// Slots in order, the first and perhaps later ones of its concern; and the number of the first one.
    Slots(u64, Vec<Slot>),
    /// Nothing that concerns it, up to this token, before the slot of this number.
    Nothing(Bytes, u64),
    /// It fell off the ring: what it has not taken is in the log.
    FellOff,
    /// The hub has taken leave of it, for it read nothing for too long.
    TooSlow,
}

/// A watcher's place in the hub; leaves it when dropped.
pub struct Registration {
    pub(super) hub: Arc<Hub>,
    pub(super) id: u64,
    pub(super) shared: Arc<Shared>,
}

impl Registration {
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Returns when something that concerns the watcher may have come.
    pub async fn woken(&self) {
        self.shared.wake.notified().await;
    }

    /// The reader lets it go on.
    pub fn go_on(&self) {
        self.shared.went_on.store(self.hub.millis(), Ordering::Relaxed);
    }

    /// The reader lets it go on, and from here on it may be Redis that it waits for.
    pub fn go_on_with_redis(&self) {
        let until = self.hub.millis() + REDIS_TAKES.as_millis() as u64;
        self.shared.went_on.store(until, Ordering::Relaxed);
    }

    /// Some of the next slots, from the first that concerns the watcher on. Where there is none the watcher stands at the
    /// ring's end.
    pub fn take(&self) -> Taken {
        let mut guard = self.hub.state.lock();
        let state = &mut *guard;
        let Some(watcher) = state.watchers.get_mut(&self.id) else { return Taken::TooSlow };
        let Some(first) = watcher.first else {
            return Taken::Nothing(state.token.clone(), state.ring.end());
        };
        if first < state.ring.first() {
            return Taken::FellOff;
        }
        let mut bytes = 0;
        let fits = |slot: &&Slot| {
            let first_or_fits = bytes < TAKE_BYTES;
            bytes += slot.bytes;
            first_or_fits
        };
        let slots: Vec<Slot> = state.ring.from(first).take(TAKE_SLOTS).take_while(fits).cloned().collect();
        let next = first + slots.len() as u64;
        watcher.first = (next < state.ring.end()).then_some(next);
        Taken::Slots(first, slots)
    }

    /// Gives back what was taken from this number on.
    pub fn give_back(&self, number: u64) {
        if let Some(watcher) = self.hub.state.lock().watchers.get_mut(&self.id) {
            watcher.first = Some(number);
        }
    }

    /// Number that the ring's next slot will have.
    pub fn end(&self) -> u64 {
        self.hub.state.lock().ring.end()
    }

    /// Moves the watcher to the ring's end, and says where that is: what stands before it is in the log.
    pub fn skip_to_end(&self) -> ResumeToken {
        let mut state = self.hub.state.lock();
        if let Some(watcher) = state.watchers.get_mut(&self.id) {
            watcher.first = None;
        }
        state.at.clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        self.hub.remove(&mut state, self.id);
        state.open -= 1;
    }
}
