//! Registry of the open watches: their limit, and how the server ends them: slow consumers, callers without their right,
//! the drain.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::stream::AbortHandle;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use crate::{auth::LastingRight, observe::Metrics, session::millis};

use super::{
    filter::Filter,
    response::{Closing, WatchLimits},
    watcher::Watcher,
    watcher_index::WatcherIndex,
};

/// Time between two checks of all watches.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Time of the last check of all watches, in ms since the registry was created.
    last_check_ms: u64,
    is_draining: bool,
}

struct OpenWatch {
    watcher: Arc<Watcher>,
    /// Filter that the index has it under.
    filter: Arc<Filter>,
    client: ClientStream,
    /// Time in ms since the registry was created, at which the stream of an evicted watcher is reset, or of one whose caller
    /// has lost its right. None: it is neither.
    reset_at: Option<u64>,
}

/// Stream of a watch, as the server ends it.
pub struct ClientStream {
    /// Resets the stream.
    pub reset: AbortHandle,
    /// Right of the caller to the watch. None: it cannot lose it.
    pub right: Option<Box<LastingRight>>,
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

    /// Registers a watcher that makes progress at least once per `interval` while its client reads.
    pub(super) fn add(
        &self,
        watches: &mut Watches,
        filter: Arc<Filter>,
        interval: Duration,
        client: ClientStream,
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
        watches.open.insert(number, OpenWatch { watcher: watcher.clone(), filter, client, reset_at: None });
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

    /// Checks all watches once per [`CHECK_INTERVAL`]. Never returns.
    pub(super) async fn check_watches(&self) {
        loop {
            sleep(CHECK_INTERVAL).await;
            self.check_all(SystemTime::now());
        }
    }

    /// Evicts slow consumers, ends watches whose callers have lost their right, and resets the streams of both that have not
    /// read their final response in time.
    fn check_all(&self, wall_clock: SystemTime) {
        let now = self.ms_at(Instant::now());
        let mut guard = self.lock();
        let watches = &mut *guard;
        // If the process was paused, no watcher could make progress: the timeouts of all start again.
        if now.saturating_sub(watches.last_check_ms) > 2 * millis(CHECK_INTERVAL) {
            watches.open.values().for_each(|watch| watch.watcher.mark_progress(now));
        }
        watches.last_check_ms = now;
        for (number, watch) in &mut watches.open {
            match watch.reset_at {
                Some(reset_at) if reset_at <= now => watch.client.reset.abort(),
                Some(_) => {}
                None if watch.watcher.is_slow(now) => {
                    self.metrics.watches_evicted.inc();
                    watch.reset_at = Some(now.saturating_add(millis(self.limits.response_timeout)));
                    watches.index.remove(&watch.filter, *number);
                    watch.watcher.evict();
                }
                None => {
                    let right = watch.client.right.as_ref().map_or(Ok(()), |right| right.check(wall_clock));
                    if let Err(lost) = right {
                        watch.reset_at = Some(now.saturating_add(millis(self.limits.response_timeout)));
                        watches.index.remove(&watch.filter, *number);
                        watch.watcher.close(Closing::RightLost(lost));
                    }
                }
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
        watches.open.values().for_each(|watch| watch.watcher.close(Closing::Draining));
    }
}

impl Watches {
    /// Returns all watchers, evicted ones excluded.
    pub(super) fn all(&self) -> impl Iterator<Item = &Watcher> + Clone {
        self.open.values().filter(|watch| watch.reset_at.is_none()).map(|watch| &*watch.watcher)
    }
}
