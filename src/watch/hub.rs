//! The ring of recent events, the position after its last slot, and the watchers that it wakes, behind one lock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    feed::{Consumer, Gap, GapReason},
    observe::Metrics,
    session::millis,
    store::{Entry, Partition, Position, StoreId},
};

use super::{
    page_cache::PageCache,
    resume_token::ResumeToken,
    ring::{Item, LogEntry, Resync, Ring, RolledBack},
    watcher_index::{EvictedWatcher, WatcherIndex},
};

/// Maximum size of the ring. Watchers that need older entries read the log.
const RING_BYTES: usize = 64 * 1024 * 1024;

/// Passes the entries and gaps of the feed to the watchers. A consumer of the feed.
pub struct Hub {
    pub(super) state: Mutex<HubState>,
    pub(super) page_cache: PageCache,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: WatchLimits,
    created: Instant,
}

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

/// State of the hub, behind its lock. A watcher that registers at `end` receives exactly the items after it.
pub(super) struct HubState {
    pub ring: Ring,
    /// Position of every partition after the last slot.
    pub end: ResumeToken,
    /// `end`, encoded.
    pub end_token: Bytes,
    /// Watchers, evicted ones excluded.
    pub watchers: WatcherIndex,
    /// Evicted watchers by number, until they are dropped.
    pub evicted: HashMap<u64, EvictedWatcher>,
    /// Number of open watches, including evicted ones whose final response is still unread.
    pub open_watches: usize,
    /// Time of the last check for slow consumers, in ms since the hub was created.
    pub last_eviction_ms: u64,
}

impl Hub {
    /// A hub with an empty ring that continues the logs of `store` after these tails.
    pub fn new(store: StoreId, tails: Vec<Position>, limits: WatchLimits, metrics: Arc<Metrics>) -> Self {
        let page_cache = PageCache::new(tails.len());
        let end = ResumeToken { store, positions: tails };
        let state = HubState {
            ring: Ring::new(limits.ring_slots, RING_BYTES),
            end_token: end.encode(),
            end,
            watchers: WatcherIndex::default(),
            evicted: HashMap::new(),
            open_watches: 0,
            last_eviction_ms: 0,
        };
        Hub { state: Mutex::new(state), page_cache, metrics, limits, created: Instant::now() }
    }

    /// Returns the rollback that removed the entry at this position. None: the ring has no such rollback.
    pub(super) fn rollback_of(&self, partition: Partition, position: Position) -> Option<Arc<Resync>> {
        self.state.lock().ring.rollback_of(partition, position)
    }

    /// Milliseconds since the hub was created.
    pub(super) fn now_ms(&self) -> u64 {
        millis(self.created.elapsed())
    }
}

impl Consumer for Hub {
    /// Appends the entry to the ring.
    fn on_entry(&self, entry: &Entry) {
        let mut state = self.state.lock();
        state.end.positions[entry.partition.index()] = entry.position;
        state.append(Item::Entry(LogEntry::new(entry.clone())));
    }

    /// Appends a resync for the watchers of the lost entries, or for all if these are unknown.
    fn on_gap(&self, gap: &Gap) {
        let mut state = self.state.lock();
        let rolled_back = match gap.reason {
            GapReason::RolledBack => state.rolled_back(gap),
            GapReason::Compacted | GapReason::Flushed => None,
        };
        state.end.store = gap.store;
        for (partition, end) in &gap.ends {
            self.page_cache.invalidate(*partition);
            state.end.positions[partition.index()] = *end;
        }
        state.append(Item::Resync(Arc::new(Resync { reason: gap.reason.into(), rolled_back })));
    }
}

impl HubState {
    /// Returns the entries that a rollback removed. None: the ring does not have them all.
    fn rolled_back(&self, gap: &Gap) -> Option<RolledBack> {
        let lost = gap.ends.iter().map(|(partition, fork)| {
            let last = self.end.positions[partition.index()];
            self.ring.entries_between(*partition, *fork, last)
        });
        let entries = lost.collect::<Option<Vec<_>>>()?.concat();
        Some(RolledBack { entries, forks: gap.ends.clone() })
    }

    /// Appends an item to the ring and wakes the watchers that it may match. A resync wakes all of them.
    fn append(&mut self, item: Item) {
        self.end_token = self.end.encode();
        let number = self.ring.end();
        match &item {
            Item::Resync(_) => self.watchers.wake_all(number),
            Item::Entry(entry) => self.watchers.wake_interested(&entry.shared.event, number),
        }
        self.ring.push(item, self.end_token.clone());
    }
}

#[cfg(test)]
mod tests;
