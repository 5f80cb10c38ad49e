//! State of a partition on which its copies depend: when the feed was complete, and the epoch.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::moment::Moment;

/// Number that rises whenever the history of the partition may have changed otherwise than by its events.
pub(super) type Epoch = u64;

/// When the feed had every event of a partition.
#[derive(Default)]
pub(super) struct PartitionState {
    /// Moment before the last read of the end of the log. 0: there was none.
    since_boot: AtomicU64,
    wall: AtomicU64,
    epoch: AtomicU64,
}

/// What the last tail read proves.
pub(super) struct Verified {
    /// Every event that was in the log at this moment has dropped the copies of its session.
    pub at: Moment,
    /// Epoch at this moment or later.
    pub epoch: Epoch,
}

impl PartitionState {
    /// Returns what is proved now.
    pub(super) fn verified(&self) -> Verified {
        // Halves of two tail reads together prove what the earlier one proved.
        let at =
            Moment { since_boot: self.since_boot.load(Ordering::Acquire), wall: self.wall.load(Ordering::Acquire) };
        // Last: an epoch that began before the tail read is seen with it.
        Verified { at, epoch: self.epoch.load(Ordering::Acquire) }
    }

    /// Notes a tail read that was sent at this moment.
    pub(super) fn verify(&self, sent: Moment) {
        self.since_boot.store(sent.since_boot, Ordering::Release);
        self.wall.store(sent.wall, Ordering::Release);
    }

    /// Starts an epoch: all copies of the partition become invalid.
    pub(super) fn start_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}
