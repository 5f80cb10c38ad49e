//! Ring of the latest log entries of all partitions in order of arrival, each with the resume token after it.

use std::{collections::VecDeque, sync::Arc, sync::OnceLock};

use bytes::Bytes;

use crate::{
    feed::GapReason,
    session::{Event, View},
    store::{Entry, Partition, Position},
};

/// Why a watcher missed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResyncReason {
    /// The log no longer reaches back to the position.
    Compacted,
    /// A failover lost history.
    RolledBack,
    /// The store was emptied or exchanged.
    Flushed,
    /// The client is a slow consumer. The only reason that ends the watch.
    SlowConsumer,
}

impl From<GapReason> for ResyncReason {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::Compacted => ResyncReason::Compacted,
            GapReason::RolledBack => ResyncReason::RolledBack,
            GapReason::Flushed => ResyncReason::Flushed,
        }
    }
}

/// A gap of the feed as its watchers receive it: events before it may be missing.
pub struct Resync {
    /// Reason that the watchers receive.
    pub reason: ResyncReason,
    /// Entries that a rollback removed. None: unknown, every session is affected.
    pub rolled_back: Option<RolledBack>,
}

/// Entries of the ring that a rollback removed from the logs.
pub struct RolledBack {
    /// Removed entries.
    pub entries: Vec<LogEntry>,
    /// Last common position of both branches, for each affected partition.
    pub forks: Vec<(Partition, Position)>,
}

impl RolledBack {
    /// Returns the fork of the partition if the entry at this position was removed.
    pub fn fork_before(&self, partition: Partition, position: Position) -> Option<Position> {
        let is_at = |entry: &&LogEntry| entry.partition == partition && entry.position == position;
        self.entries.iter().find(is_at)?;
        self.forks.iter().find(|(of, _)| *of == partition).map(|(_, fork)| *fork)
    }
}

/// An event and its encoded forms, shared by all watchers that receive it.
pub struct SharedEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Encoded event of each view, filled by the first watcher that delivers it.
    rendered: [OnceLock<Bytes>; 2],
}

impl SharedEvent {
    /// An event that is not encoded yet.
    pub fn new(event: Arc<Event>) -> Self {
        SharedEvent { event, rendered: Default::default() }
    }

    /// Returns the encoded event in this view. Calls `render` only the first time.
    pub fn rendered(&self, view: View, render: impl FnOnce(&Event) -> Bytes) -> &Bytes {
        self.rendered[view as usize].get_or_init(|| render(&self.event))
    }
}

/// A log entry with its event ready for sharing.
#[derive(Clone)]
pub struct LogEntry {
    /// Partition of the log.
    pub partition: Partition,
    /// Position of the entry.
    pub position: Position,
    /// Position of the entry before it in the same partition.
    pub previous: Position,
    /// Event of the entry.
    pub shared: Arc<SharedEvent>,
}

impl LogEntry {
    /// Wraps the event of a stored entry for sharing.
    pub fn new(entry: Entry) -> Self {
        let Entry { partition, position, previous, event } = entry;
        LogEntry { partition, position, previous, shared: Arc::new(SharedEvent::new(event)) }
    }
}

/// Content of a slot.
#[derive(Clone)]
pub enum Item {
    /// A log entry.
    Entry(LogEntry),
    /// A gap.
    Resync(Arc<Resync>),
}

/// Slot of the ring.
#[derive(Clone)]
pub struct Slot {
    /// Content.
    pub item: Item,
    /// Resume token after the item.
    pub token: Bytes,
    /// Approximate size in memory.
    pub bytes: usize,
}

/// The latest slots. They are numbered from the start of the process.
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// Number of the oldest slot.
    first: u64,
    bytes: usize,
    max_slots: usize,
    max_bytes: usize,
}

impl Ring {
    /// An empty ring that drops its oldest slots beyond these limits. It keeps the last slot even if that is larger
    /// than `max_bytes`.
    pub(super) fn new(max_slots: usize, max_bytes: usize) -> Self {
        Ring { slots: VecDeque::new(), first: 0, bytes: 0, max_slots, max_bytes }
    }

    /// Number of the oldest slot.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next slot will have.
    pub(super) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Returns the slots from this number on. The number must not be below [`Ring::first`].
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = &Slot> {
        let skipped = usize::try_from(number - self.first).unwrap_or(usize::MAX).min(self.slots.len());
        self.slots.range(skipped..)
    }

    /// Returns the entries of a partition after `first` up to `last`, newest first, each of which follows the next one.
    /// None: the ring does not have them all.
    pub(super) fn entries_between(
        &self,
        partition: Partition,
        first: Position,
        last: Position,
    ) -> Option<Vec<LogEntry>> {
        let (mut expected, mut found) = (last, Vec::new());
        for slot in self.slots.iter().rev() {
            if expected == first {
                break;
            }
            match &slot.item {
                Item::Entry(entry) if entry.partition == partition && entry.position == expected => {
                    expected = entry.previous;
                    found.push(entry.clone());
                }
                Item::Entry(_) | Item::Resync(_) => {}
            }
        }
        (expected == first).then_some(found)
    }

    /// Returns the latest rollback that removed the entry at this position. None: the ring has no such rollback.
    pub(super) fn rollback_of(&self, partition: Partition, position: Position) -> Option<Arc<Resync>> {
        self.slots.iter().rev().find_map(|slot| {
            let Item::Resync(resync) = &slot.item else { return None };
            resync.rolled_back.as_ref()?.fork_before(partition, position).map(|_| resync.clone())
        })
    }

    /// Appends an item with the resume token after it, and drops the oldest slots beyond the limits.
    pub(super) fn push(&mut self, item: Item, token: Bytes) {
        let bytes = token.len() + item.bytes();
        self.bytes += bytes;
        self.slots.push_back(Slot { item, token, bytes });
        while (self.slots.len() > self.max_slots || self.bytes > self.max_bytes && self.slots.len() > 1)
            && let Some(dropped) = self.slots.pop_front()
        {
            self.bytes -= dropped.bytes;
            self.first += 1;
        }
    }
}

impl Item {
    /// Approximate size in memory: that of the event, and as much again for each of its two encoded forms.
    fn bytes(&self) -> usize {
        match self {
            Item::Resync(resync) => 64 * (1 + resync.rolled_back.as_ref().map_or(0, |lost| lost.entries.len())),
            Item::Entry(entry) => 3 * entry.shared.event.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_full_drops_oldest_slots() {
        let mut ring = Ring::new(3, usize::MAX);
        for n in 0..5u8 {
            let resync = Resync { reason: ResyncReason::Flushed, rolled_back: None };
            ring.push(Item::Resync(Arc::new(resync)), Bytes::from(vec![n]));
        }
        assert_eq!((ring.first(), ring.end()), (2, 5));
        assert_eq!(ring.from(3).map(|slot| slot.token[0]).collect::<Vec<_>>(), [3, 4]);
    }
}
