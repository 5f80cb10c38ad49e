//! What a consumer of the feed receives: entries and gaps.

use crate::{
    moment::Moment,
    store::{Entry, Partition, Position, StoreId},
};

/// Component that receives the feed. The consumers are fixed at the start, and all receive the same calls in the same
/// order. A consumer keeps what it needs and returns at once: it never waits, and never calls the feed.
pub trait Consumer: Send + Sync {
    /// Receives the next entry of a partition. It follows the last one, or the position at which the last gap ends.
    fn on_entry(&self, entry: &Entry);

    /// Receives a gap.
    fn on_gap(&self, gap: &Gap);

    /// Receives partitions whose history may be another one, although their logs do not show it: Redis was restarted, or
    /// another server owns them.
    fn on_restart(&self, _: &[Partition]) {}

    /// Receives partitions whose consumers have every entry that was in the logs at `sent`.
    fn on_tail_read(&self, _: &[Partition], _sent: Moment) {}
}

/// Why the feed has a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The log no longer reaches back to the last position.
    Compacted,
    /// A failover lost history.
    RolledBack,
    /// The store was emptied or exchanged.
    Flushed,
}

/// Interruption of some logs: entries were lost, or are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why the logs do not continue from the last positions.
    pub reason: GapReason,
    /// Identity of the store after the gap.
    pub store: StoreId,
    /// Affected partitions, with the position after which the next entry follows: the fork point of a rollback if it is
    /// known, else the tail.
    pub ends: Vec<(Partition, Position)>,
}
