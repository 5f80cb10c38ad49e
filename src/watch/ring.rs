//! The latest changes of all partitions in order of arrival, and the resume token after each.

use std::{collections::VecDeque, sync::Arc, sync::OnceLock};

use bytes::Bytes;

use crate::{
    session::{Event, View},
    store::{self, Partition, Position},
};

/// Why changes were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resync {
    /// The log no longer reaches back.
    Compacted,
    /// History was rewound.
    RolledBack,
    /// The store was emptied or exchanged.
    Flushed,
    /// The watcher was too slow; the only one that ends a watch.
    SlowConsumer,
}

/// What everybody missed, at one place of the ring.
pub struct Missed {
    pub reason: Resync,
    /// None = it cannot be said.
    pub lost: Option<Lost>,
}

/// What a rewind took back.
pub struct Lost {
    pub links: Vec<Link>,
    /// Where history forked, of each partition concerned.
    pub from: Vec<(Partition, Position)>,
}

impl Lost {
    /// Where history forked, if this is a position of what was lost.
    pub fn fork_below(&self, partition: Partition, position: Position) -> Option<Position> {
        let is_it = |link: &&Link| link.partition == partition && link.position == position;
        self.links.iter().find(is_it)?;
        self.from.iter().find(|(of, _)| *of == partition).map(|(_, from)| *from)
    }
}

/// One change, and the bytes it was rendered to: by whom it is delivered first, for all others too.
pub struct Entry {
    pub event: Event,
    rendered: [OnceLock<Bytes>; 2],
}

impl Entry {
    pub fn new(event: Event) -> Self {
        Entry { event, rendered: Default::default() }
    }

    /// The bytes of this event in this view, rendered once.
    pub fn rendered(&self, view: View, render: impl FnOnce(&Event) -> Bytes) -> &Bytes {
        self.rendered[view as usize].get_or_init(|| render(&self.event))
    }
}

/// A change, its place in its partition's log, and the place before it.
#[derive(Clone)]
pub struct Link {
    pub partition: Partition,
    pub position: Position,
    pub previous: Position,
    pub entry: Arc<Entry>,
}

impl Link {
    pub fn new(entry: store::Entry) -> Self {
        let store::Entry { partition, position, previous, event } = entry;
        Link { partition, position, previous, entry: Arc::new(Entry::new(event)) }
    }
}

/// What stands at one place of the ring.
#[derive(Clone)]
pub enum Item {
    Change(Link),
    Missed(Arc<Missed>),
}

/// An item, and the resume token after it.
#[derive(Clone)]
pub struct Slot {
    pub item: Item,
    pub token: Bytes,
    pub bytes: usize,
}

/// The slots by their number, which counts from the start of the process.
pub struct Ring {
    slots: VecDeque<Slot>,
    /// Number of the first slot kept.
    first: u64,
    bytes: usize,
    max_slots: usize,
    max_bytes: usize,
}

impl Ring {
    pub fn new(max_slots: usize, max_bytes: usize) -> Self {
        Ring { slots: VecDeque::new(), first: 0, bytes: 0, max_slots, max_bytes }
    }

    /// Number of the first slot kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next slot will have.
    pub fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The slots from this number on; it must not be before the first.
    pub fn from(&self, number: u64) -> impl Iterator<Item = &Slot> {
        self.slots.range((number - self.first) as usize..)
    }

    /// The changes of a partition that led to this position, the newest first; as far as they are here.
    pub fn history(&self, partition: Partition, position: Position) -> Vec<Link> {
        let mut at = position;
        let changes = self.slots.iter().rev().filter_map(|slot| match &slot.item {
            Item::Change(link) if link.partition == partition => Some(link),
            Item::Change(_) | Item::Missed(_) => None,
        });
        let mut history = Vec::new();
        for link in changes {
            if link.position == at {
                at = link.previous;
                history.push(link.clone());
            }
        }
        history
    }

    /// What took back the change at this position; None = not known here.
    pub fn taken_back(&self, partition: Partition, position: Position) -> Option<Arc<Missed>> {
        self.slots.iter().rev().find_map(|slot| {
            let Item::Missed(missed) = &slot.item else { return None };
            missed.lost.as_ref()?.fork_below(partition, position).map(|_| missed.clone())
        })
    }

    pub fn push(&mut self, item: Item, token: Bytes) {
        let bytes = token.len() + item.weight();
        self.bytes += bytes;
        self.slots.push_back(Slot { item, token, bytes });
        while self.slots.len() > self.max_slots || self.bytes > self.max_bytes && self.slots.len() > 1 {
            let dropped = self.slots.pop_front().expect("it is not empty");
            self.bytes -= dropped.bytes;
            self.first += 1;
        }
    }
}

impl Item {
    /// About what it takes in memory: the event, and as much again for each rendering.
    fn weight(&self) -> usize {
        match self {
            Item::Missed(missed) => 64 * (1 + missed.lost.as_ref().map_or(0, |lost| lost.links.len())),
            Item::Change(link) => 3 * link.entry.event.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_drops_its_oldest() {
        let mut ring = Ring::new(3, usize::MAX);
        for n in 0..5u8 {
            let missed = Missed { reason: Resync::Flushed, lost: None };
            ring.push(Item::Missed(Arc::new(missed)), Bytes::from(vec![n]));
        }
        assert_eq!((ring.first(), ring.end()), (2, 5));
        assert_eq!(ring.from(3).map(|slot| slot.token[0]).collect::<Vec<_>>(), [3, 4]);
    }
}
