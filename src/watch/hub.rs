//! Appends the feed to the ring, and dispatches each item to the watchers that it may match.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::{MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{
    feed::{Consumer, Gap, GapReason},
    observe::Metrics,
    store::{Entry, Partition, Position, StoreId},
};

use super::{
    filter::Filter,
    item::{Item, LogEntry, Resync, RolledBack, Slot},
    registry::{ClientStream, NotRegistered, Registered, Registry, Watches},
    response::WatchLimits,
    resume_token::ResumeToken,
    ring::Ring,
    watcher::Watcher,
};

/// Maximum size of the ring. Watchers that need older entries read the log.
const RING_BYTES: usize = 64 * 1024 * 1024;

/// Passes the entries and gaps of the feed to the watchers. A consumer of the feed.
pub struct Hub {
    /// Locked after the registry, if both are locked.
    recent: RwLock<Recent>,
    pub(super) registry: Registry,
}

/// Recent items, and the position after them. A watcher that registers at `end` receives exactly the items after it.
pub(super) struct Recent {
    pub ring: Ring,
    /// Position of every partition after the last slot.
    pub end: ResumeToken,
    /// `end`, encoded.
    pub end_token: Bytes,
}

impl Hub {
    /// A hub with an empty ring that continues the logs of `store` after these tails.
    pub fn new(store: StoreId, tails: Vec<Position>, limits: WatchLimits, metrics: Arc<Metrics>) -> Self {
        let end = ResumeToken { store, positions: tails };
        let ring = Ring::new(limits.ring_slots, RING_BYTES);
        let recent = RwLock::new(Recent { ring, end_token: end.encode(), end });
        Hub { recent, registry: Registry::new(limits, metrics) }
    }

    /// Evicts slow consumers. Never returns.
    pub async fn check_watches(&self) {
        self.registry.check_watches().await;
    }

    /// Ends all watches with their resume tokens, and refuses new ones.
    pub fn drain(&self) {
        self.registry.drain();
    }

    /// Maximum number of open watches.
    pub fn max_watches(&self) -> usize {
        self.registry.limits.watches
    }

    /// Whether the server drains.
    pub fn is_draining(&self) -> bool {
        self.registry.is_draining()
    }

    /// Locks the recent items for reading.
    pub(super) fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read()
    }

    /// Registers a watcher, see [`Registry::add`]. Returns with it the number of the slot from which on it receives items, and
    /// the position before that slot.
    pub(super) fn register(
        &self,
        filter: Arc<Filter>,
        interval: Duration,
        client: ClientStream,
    ) -> Result<(Registered, u64, ResumeToken), NotRegistered> {
        let mut watches = self.registry.lock();
        let registered = self.registry.add(&mut watches, filter, interval, client)?;
        let recent = self.recent();
        Ok((registered, recent.ring.end(), recent.end.clone()))
    }

    /// Locks the ring for appending, after the registry.
    fn lock(&self) -> (MutexGuard<'_, Watches>, RwLockWriteGuard<'_, Recent>) {
        let watches = self.registry.lock();
        (watches, self.recent.write())
    }
}

impl Consumer for Hub {
    /// Appends the entry to the ring, and wakes the watchers that it may match.
    fn on_entry(&self, entry: &Entry) {
        let item = Item::Entry(LogEntry::new(entry.clone()));
        let (watches, mut recent) = self.lock();
        recent.end.positions[entry.partition.index()] = entry.position;
        append(recent, item, watches.index.interested_in(&entry.event));
    }

    /// Appends a resync for the watchers of the lost entries, or for all if these are unknown. Wakes all watchers.
    fn on_gap(&self, gap: &Gap) {
        let (watches, mut recent) = self.lock();
        let rolled_back = match gap.reason {
            GapReason::RolledBack => recent.rolled_back(gap),
            GapReason::Compacted | GapReason::Flushed => None,
        };
        recent.end.store = gap.store;
        for (partition, end) in &gap.ends {
            recent.end.positions[partition.index()] = *end;
        }
        append(recent, Item::Resync(Arc::new(Resync { reason: gap.reason.into(), rolled_back })), watches.all());
    }
}

/// Appends an item, after which the end was moved, and wakes the watchers once the ring is unlocked: they read it.
fn append<'a>(
    mut recent: RwLockWriteGuard<'_, Recent>,
    item: Item,
    watchers: impl Iterator<Item = &'a Watcher> + Clone,
) {
    recent.end_token = recent.end.encode();
    let (number, token) = (recent.ring.end(), recent.end_token.clone());
    recent.ring.push(Slot { item, token });
    watchers.clone().for_each(|watcher| watcher.note_slot(number));
    drop(recent);
    watchers.for_each(Watcher::wake);
}

impl Recent {
    /// Returns the entries that a rollback removed. None: the ring does not have them all.
    fn rolled_back(&self, gap: &Gap) -> Option<RolledBack> {
        let lost = gap.ends.iter().map(|(partition, fork)| {
            let last = self.end.positions[partition.index()];
            self.ring.entries_between(*partition, *fork, last)
        });
        let entries = lost.collect::<Option<Vec<_>>>()?.concat();
        Some(RolledBack { entries, forks: gap.ends.clone() })
    }

    /// Returns the rollback that removed the entry at this position. None: the ring has no such rollback.
    pub(super) fn rollback_of(&self, partition: Partition, position: Position) -> Option<Arc<Resync>> {
        self.ring.rollback_of(partition, position)
    }
}

#[cfg(test)]
mod tests;
