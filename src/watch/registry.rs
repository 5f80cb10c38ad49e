//! Registry of the open watches: their limit, the eviction of slow consumers, and the drain.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::stream::AbortHandle;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use crate::{observe::Metrics, session::millis};

use super::{filter::Filter, response::WatchLimits, watcher::Watcher, watcher_index::WatcherIndex};

/// Time between two checks for slow consumers.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

/// Why a watch cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRegistered {
    /// The server has as many watches as its limit allows.
    LimitReached,
    /// The server is draining.
    Draining,
}

/// Open watches of this instance.
pub(super) struct Registry {
    watches: Mutex<Watches>,
    pub limits: WatchLimits,
    pub metrics: Arc<Metrics>,
    created: Instant,
}

/// Open watches, behind the lock of the registry.
#[derive(Default)]
pub(super) struct Watches {
    /// Watchers by interest, evicted ones excluded.
    pub index: WatcherIndex,
    /// Open watches by number. An evicted one is open until its client has read the final response.
    open: HashMap<u64, OpenWatch>,
    /// Number of the next watcher.
    next: u64,
    /// Time of the last check for slow consumers, in ms since the registry was created.
    last_eviction_ms: u64,
    is_draining: bool,
}

struct OpenWatch {
    watcher: Arc<Watcher>,
    /// Filter that the index has it under.
    filter: Arc<Filter>,
    /// Resets the stream.
    reset: AbortHandle,
    /// Time in ms since the registry was created, at which the stream of an evicted watcher is reset. None: it was not
    /// evicted.
    reset_at: Option<u64>,
}

/// A watcher, and its number in the registry. The owner removes it.
pub(super) struct Registered {
    pub number: u64,
    pub watcher: Arc<Watcher>,
}

impl Registry {
    /// A registry without watches.
    pub(super) fn new(limits: WatchLimits, metrics: Arc<Metrics>) -> Self {
        Registry { watches: Mutex::default(), limits, metrics, created: Instant::now() }
    }

    /// Locks the open watches.
    pub(super) fn lock(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock()
    }

    /// Milliseconds from the creation of the registry to this time.
    pub(super) fn ms_at(&self, time: Instant) -> u64 {
        millis(time.saturating_duration_since(self.created))
    }

    /// Registers a watcher that makes progress at least once per `interval` while its client reads. `reset` resets its
    /// stream.
    pub(super) fn add(
        &self,
        watches: &mut Watches,
        filter: Arc<Filter>,
        interval: Duration,
        reset: AbortHandle,
    ) -> Result<Registered, NotRegistered> {
        if watches.is_draining {
            return Err(NotRegistered::Draining);
        }
        if watches.open.len() >= self.limits.watches {
            return Err(NotRegistered::LimitReached);
        }
        let watcher = Arc::new(Watcher::new(self.ms_at(Instant::now()), self.limits.slow_consumer_timeout + interval));
        let number = watches.next;
        watches.next += 1;
        watches.index.add(&filter, number, &watcher);
        watches.open.insert(number, OpenWatch { watcher: watcher.clone(), filter, reset, reset_at: None });
        self.metrics.watches.inc();
        Ok(Registered { number, watcher })
    }

    /// Removes a watcher, whose stream has ended.
    pub(super) fn remove(&self, number: u64) {
        let mut watches = self.lock();
        if let Some(watch) = watches.open.remove(&number) {
            watches.index.remove(&watch.filter, number);
            self.metrics.watches.dec();
        }
    }

    /// Evicts slow consumers once per [`EVICTION_INTERVAL`]. Never returns.
    pub(super) async fn evict_slow_consumers(&self) {
        loop {
            sleep(EVICTION_INTERVAL).await;
            self.evict_slow();
        }
    }

    /// Evicts slow consumers, and resets the streams of evicted ones that have not read their final response in time.
    fn evict_slow(&self) {
        let now = self.ms_at(Instant::now());
        let mut guard = self.lock();
        let watches = &mut *guard;
        // If the process was paused, no watcher could make progress: the timeouts of all start again.
        if now.saturating_sub(watches.last_eviction_ms) > 2 * millis(EVICTION_INTERVAL) {
            watches.open.values().for_each(|watch| watch.watcher.mark_progress(now));
        }
        watches.last_eviction_ms = now;
        for (number, watch) in &mut watches.open {
            match watch.reset_at {
                Some(reset_at) if reset_at <= now => watch.reset.abort(),
                Some(_) => {}
                None if watch.watcher.is_slow(now) => {
                    self.metrics.watches_evicted.inc();
                    watch.reset_at = Some(now.saturating_add(millis(self.limits.response_timeout)));
                    watches.index.remove(&watch.filter, *number);
                    watch.watcher.evict();
                }
                None => {}
            }
        }
    }

    /// Whether the server drains.
    pub(super) fn is_draining(&self) -> bool {
        self.lock().is_draining
    }

    /// Ends all watches, and refuses new ones.
    pub(super) fn drain(&self) {
        let mut watches = self.lock();
        watches.is_draining = true;
        watches.open.values().for_each(|watch| watch.watcher.drain());
    }
}

impl Watches {
    /// Returns all watchers, evicted ones excluded.
    pub(super) fn all(&self) -> impl Iterator<Item = &Watcher> + Clone {
        self.open.values().filter(|watch| watch.reset_at.is_none()).map(|watch| &*watch.watcher)
    }
}
