//! Ring of the latest log entries of all partitions in order of arrival, each with the resume token after it.

use std::{collections::VecDeque, sync::Arc};

use crate::store::{Partition, Position};

use super::item::{Item, LogEntry, Resync, Slot};

/// The latest slots. They are numbered from the start of the process.
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// Number of the oldest slot.
    first: u64,
    /// Approximate size of all slots in memory.
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
                Item::Entry(_) | Item::Resync(_) | Item::Session(_) => {}
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

    /// Appends a slot, and drops the oldest slots beyond the limits.
    pub(super) fn push(&mut self, slot: Slot) {
        self.bytes += bytes(&slot);
        self.slots.push_back(slot);
        while (self.slots.len() > self.max_slots || self.bytes > self.max_bytes && self.slots.len() > 1)
            && let Some(dropped) = self.slots.pop_front()
        {
            self.bytes -= bytes(&dropped);
            self.first += 1;
        }
    }
}

/// Approximate size of a slot in memory.
fn bytes(slot: &Slot) -> usize {
    slot.token.len() + slot.item.bytes()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::watch::response::ResyncReason;

    #[test]
    fn ring_full_drops_oldest_slots() {
        let mut ring = Ring::new(3, usize::MAX);
        for n in 0..5u8 {
            let item = Item::Resync(Arc::new(Resync { reason: ResyncReason::Flushed, rolled_back: None }));
            ring.push(Slot { item, token: Bytes::from(vec![n]) });
        }
        assert_eq!((ring.first(), ring.end()), (2, 5));
        assert_eq!(ring.from(3).map(|slot| slot.token[0]).collect::<Vec<_>>(), [3, 4]);
    }
}
