//! The earliest deadline known of each partition: what wakes the sweeper.
//!
//! The feed tells of every new or earlier deadline. Touches only move deadlines later, so a moment noted here may turn
//! out to be nobody's; it is never too late.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::Partition;

/// Moments in ms by the clock of Redis; `u64::MAX` = none known.
pub struct Deadlines {
    earliest: Mutex<Vec<u64>>,
    earlier: Notify,
}

impl Deadlines {
    /// At first every partition is to be looked at.
    pub fn new(partitions: usize) -> Self {
        Deadlines { earliest: Mutex::new(vec![0; partitions]), earlier: Notify::new() }
    }

    pub fn note(&self, partition: Partition, deadline_ms: u64) {
        let mut earliest = self.earliest.lock();
        let before = earliest.iter().min().copied().unwrap_or(u64::MAX);
        let own = &mut earliest[partition.index()];
        *own = deadline_ms.min(*own);
        if deadline_ms < before {
            self.earlier.notify_one();
        }
    }

    /// The partitions that are due now, in ms by their servers' clocks; they are forgotten until something is noted of them
    /// again.
    pub fn take_due(&self, now_ms: impl Fn(Partition) -> Option<u64>) -> Vec<Partition> {
        let mut earliest = self.earliest.lock();
        let is_due = |index, deadline| now_ms(Partition(index as u16)).is_some_and(|now| deadline <= now);
        let due = earliest.iter_mut().enumerate().filter(|(index, deadline)| is_due(*index, **deadline));
        due.map(|(index, deadline)| {
            *deadline = u64::MAX;
            Partition(index as u16)
        })
        .collect()
    }

    /// The next moment known.
    pub fn next(&self) -> u64 {
        self.earliest.lock().iter().min().copied().unwrap_or(u64::MAX)
    }

    /// Returns when a deadline was noted that is earlier than all others.
    pub async fn changed(&self) {
        self.earlier.notified().await;
    }
}
