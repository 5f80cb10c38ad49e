//! Eviction of slow consumers, and the reset of their streams if they still do not read.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use crate::session::millis;

use super::{hub::Hub, watcher_index::EvictedWatcher};

/// Time between two checks for slow consumers.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

impl Hub {
    /// Evicts slow consumers once per [`EVICTION_INTERVAL`]. Never returns.
    pub async fn evict_slow_consumers(&self) {
        loop {
            sleep(EVICTION_INTERVAL).await;
            self.evict_slow();
        }
    }

    /// Evicts slow consumers, and resets the streams of evicted ones that have not read their final response in time.
    fn evict_slow(&self) {
        let now = self.now_ms();
        let mut state = self.state.lock();
        // If the process was paused, no watcher could make progress: the timeouts of all start again.
        if now.saturating_sub(state.last_eviction_ms) > 2 * millis(EVICTION_INTERVAL) {
            state.watchers.iter().for_each(|(_, watcher)| watcher.progress.progress_at.store(now, Ordering::Relaxed));
        }
        state.last_eviction_ms = now;
        let slow = state.watchers.iter().filter(|(_, watcher)| watcher.progress.is_slow(now)).map(|(id, _)| id);
        let slow: Vec<u64> = slow.collect();
        for id in slow {
            self.metrics.watches_evicted.inc();
            let reset_at = now.saturating_add(millis(self.limits.response_timeout));
            let reset = state.watchers.remove(id).map(|watcher| watcher.reset);
            state.evicted.extend(reset.map(|reset| (id, EvictedWatcher { reset, reset_at })));
        }
        for evicted in state.evicted.values().filter(|evicted| evicted.reset_at <= now) {
            evicted.reset.cancel();
        }
    }
}
