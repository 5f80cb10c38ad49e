//! The earliest deadline known of each partition: what wakes its sweeper.
//!
//! The feed tells of every new or earlier deadline. Touches only move deadlines later, so a moment noted here may turn
//! out to be nobody's; it is never too late.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::store::Partition;

pub struct Deadlines(Vec<Deadline>);

struct Deadline {
    /// In ms by the clock of Redis; `u64::MAX` = none known.
    earliest: AtomicU64,
    earlier: Notify,
}

impl Deadlines {
    /// At first every partition is to be looked at.
    pub fn new(partitions: usize) -> Self {
        let deadline = |_| Deadline { earliest: AtomicU64::new(0), earlier: Notify::new() };
        Deadlines((0..partitions).map(deadline).collect())
    }

    pub fn note(&self, partition: Partition, deadline_ms: u64) {
        let own = &self.0[partition.index()];
        if own.earliest.fetch_min(deadline_ms, Ordering::Relaxed) > deadline_ms {
            own.earlier.notify_one();
        }
    }

    /// Before a partition is looked at: what is noted from now on is news.
    pub fn forget(&self, partition: Partition) {
        self.0[partition.index()].earliest.store(u64::MAX, Ordering::Relaxed);
    }

    /// The next moment known.
    pub fn next(&self, partition: Partition) -> u64 {
        self.0[partition.index()].earliest.load(Ordering::Relaxed)
    }

    /// Returns when a deadline was noted that is earlier than the one known.
    pub async fn changed(&self, partition: Partition) {
        self.0[partition.index()].earlier.notified().await;
    }
}
