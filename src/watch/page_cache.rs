//! Cache of log pages for watchers that catch up: watchers at nearby positions share one read.

use std::{
    collections::VecDeque,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{sync::Mutex, time::Instant};

use crate::{
    feed::{Consumer, Gap},
    store::{Entry, Error, LogPage, Partition, Position, Store},
};

use super::item::LogEntry;

/// Maximum number of pages cached per partition.
const MAX_PAGES: usize = 8;
/// Approximate maximum size per partition of all cached pages except the newest.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// What follows a position in the log.
pub(super) enum PageAfter {
    /// At least one entry. Each follows the one before it, and the first follows the position.
    Entries(Vec<LogEntry>),
    /// No entry: the position is the tail.
    Tail,
    /// Unknown: the log no longer reaches back to the position.
    Compacted,
    /// Unknown: the position is from before the store was emptied.
    Flushed,
    /// Unknown: the position is not in this history.
    RolledBack,
}

/// The pages of each partition that were read last. The cached pages of a partition are of one history.
pub struct PageCache(Vec<PartitionCache>);

#[derive(Default)]
struct PartitionCache {
    pages: Mutex<CachedPages>,
    /// Number of invalidations.
    generation: AtomicU64,
}

#[derive(Default)]
struct CachedPages {
    /// Generation in which the pages were read.
    generation: u64,
    /// Pages, newest first.
    pages: VecDeque<Arc<[LogEntry]>>,
}

impl PageCache {
    /// An empty cache for this number of partitions.
    pub fn new(partitions: usize) -> Self {
        PageCache((0..partitions).map(|_| PartitionCache::default()).collect())
    }

    /// Discards the pages of a partition, including a page that is being read.
    pub(super) fn invalidate(&self, partition: Partition) {
        self.0[partition.index()].generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the entries after the position, from a cached page or from the log. Concurrent calls for a partition
    /// wait for one read.
    pub(super) async fn read_after(
        &self,
        store: &Store,
        partition: Partition,
        position: Position,
        deadline: Instant,
    ) -> Result<PageAfter, Error> {
        let cache = &self.0[partition.index()];
        let mut cached = cache.pages.lock().await;
        let generation = cache.generation.load(Ordering::Relaxed);
        if cached.generation != generation {
            *cached = CachedPages { generation, pages: VecDeque::new() };
        }
        let found = cached.pages.iter().find_map(|page| {
            let first = page.iter().position(|entry| entry.previous == position)?;
            Some(page[first..].to_vec())
        });
        if let Some(entries) = found {
            return Ok(PageAfter::Entries(entries));
        }
        let entries = match store.read_after(partition, position, deadline).await? {
            LogPage::Entries(entries) => entries,
            LogPage::Tail => return Ok(PageAfter::Tail),
            LogPage::Compacted => return Ok(PageAfter::Compacted),
            LogPage::Flushed => return Ok(PageAfter::Flushed),
            LogPage::RolledBack => return Ok(PageAfter::RolledBack),
        };
        let page: Arc<[LogEntry]> = entries.into_iter().map(LogEntry::new).collect();
        cached.insert(page.clone());
        Ok(PageAfter::Entries(page.to_vec()))
    }
}

impl Consumer for PageCache {
    fn on_entry(&self, _: &Entry) {}

    /// Discards the pages of the partitions that have the gap: they may be of another branch of history.
    fn on_gap(&self, gap: &Gap) {
        gap.ends.iter().for_each(|(partition, _)| self.invalidate(*partition));
    }
}

impl CachedPages {
    /// Inserts a page and drops the oldest pages beyond the limits.
    fn insert(&mut self, page: Arc<[LogEntry]>) {
        let mut bytes = 0;
        let size = |page: &Arc<[LogEntry]>| page.iter().map(|entry| entry.shared.event.size()).sum::<usize>();
        let mut fits = |page: &Arc<[LogEntry]>| {
            bytes += size(page);
            bytes <= MAX_BYTES
        };
        let fitting = self.pages.iter().take(MAX_PAGES - 1).take_while(|page| fits(page)).count();
        self.pages.truncate(fitting);
        self.pages.push_front(page);
    }
}
