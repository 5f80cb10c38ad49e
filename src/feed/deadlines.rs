//! Earliest known session deadline of each partition, which wakes the expiry worker.
//!
//! A consumer of the feed: it notes every new or earlier deadline. A touch only moves a deadline later, so a noted
//! deadline may belong to no session any more. It is never too late.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::store::{Entry, Partition};

use super::consumer::{Consumer, Gap};

/// Earliest known session deadline of each partition.
pub struct Deadlines(Vec<Deadline>);

struct Deadline {
    /// Milliseconds since the epoch, Redis clock. `u64::MAX`: none known. 0: the due set must be read.
    earliest: AtomicU64,
    /// Notified when `earliest` becomes earlier.
    earlier: Notify,
}

impl Deadlines {
    /// Deadlines that are all 0, so that the due set of every partition is read once.
    pub fn new(partitions: usize) -> Self {
        let deadline = |_| Deadline { earliest: AtomicU64::new(0), earlier: Notify::new() };
        Deadlines((0..partitions).map(deadline).collect())
    }

    /// Notes a deadline in ms since the epoch, Redis clock. 0: the due set must be read at once.
    pub fn note(&self, partition: Partition, deadline_ms: u64) {
        let deadline = &self.0[partition.index()];
        if deadline.earliest.fetch_min(deadline_ms, Ordering::Relaxed) > deadline_ms {
            deadline.earlier.notify_one();
        }
    }

    /// Clears the deadline of a partition. Call it before the due set is read, so that deadlines noted during the read
    /// are kept.
    pub fn clear(&self, partition: Partition) {
        self.0[partition.index()].earliest.store(u64::MAX, Ordering::Relaxed);
    }

    /// Returns the earliest known deadline in ms since the epoch; `u64::MAX` if none is known.
    pub fn next(&self, partition: Partition) -> u64 {
        self.0[partition.index()].earliest.load(Ordering::Relaxed)
    }

    /// Returns when a deadline was noted that is earlier than the earliest known one.
    pub async fn wait_for_earlier(&self, partition: Partition) {
        self.0[partition.index()].earlier.notified().await;
    }
}

impl Consumer for Deadlines {
    fn on_entry(&self, entry: &Entry) {
        if let Some(deadline) = entry.event.session.expires() {
            self.note(entry.partition, deadline.0);
        }
    }

    fn on_gap(&self, gap: &Gap) {
        gap.ends.iter().for_each(|(partition, _)| self.note(*partition, 0));
    }
}
