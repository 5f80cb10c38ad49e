//! What the readers of a watch return: the snapshot, the catch-up and the live reader all return a [`Read`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    session::SessionId,
    store::{Entry, Partition, Position},
};

use super::{
    filter::Filter,
    response::{ResyncReason, SharedEvent},
};

/// Result of one read.
pub(super) enum Read {
    /// The next items, in order, not more than fit into one response. None: there were none so far; read again.
    Items(Vec<Slot>),
    /// There is no further item: the reader has reached the position with this resume token, at which the next reader
    /// starts. The live reader waits there.
    End(Bytes),
    /// The ring has dropped slots that the live reader has not taken. They are in the log.
    Overrun,
    /// The client is a slow consumer.
    SlowConsumer,
}

/// An item, with the resume token after it.
#[derive(Clone)]
pub(super) struct Slot {
    /// The item.
    pub item: Item,
    /// Resume token after the item.
    pub token: Bytes,
}

/// An item of a watch, which may not match its filter.
#[derive(Clone)]
pub(super) enum Item {
    /// Current state of a session: a part of a snapshot.
    Session(Arc<SharedEvent>),
    /// A log entry.
    Entry(LogEntry),
    /// A gap. It is the last item of a read.
    Resync(Arc<Resync>),
}

impl Item {
    /// Approximate size in memory: that of the event, and as much again for each of its two encoded forms.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Item::Session(shared) | Item::Entry(LogEntry { shared, .. }) => 3 * shared.event.size(),
            Item::Resync(resync) => 64 * (1 + resync.rolled_back.as_ref().map_or(0, |lost| lost.entries.len())),
        }
    }
}

/// A log entry with its event ready for sharing.
#[derive(Clone)]
pub(super) struct LogEntry {
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
    pub(super) fn new(entry: Entry) -> Self {
        let Entry { partition, position, previous, event } = entry;
        LogEntry { partition, position, previous, shared: Arc::new(SharedEvent::new(event)) }
    }
}

/// A gap of the feed as its watchers receive it: events before it may be missing.
pub(super) struct Resync {
    /// Reason that the watchers receive.
    pub reason: ResyncReason,
    /// Entries that a rollback removed. None: unknown, every session is affected.
    pub rolled_back: Option<RolledBack>,
}

impl Resync {
    /// Whether it is a rollback that removed an entry of a session that may match the filter.
    pub(super) fn may_lose(&self, filter: &Filter) -> bool {
        let mut lost = self.rolled_back.iter().flat_map(|lost| &lost.entries);
        lost.any(|entry| filter.may_match(&entry.shared.event.session.name))
    }

    /// Sessions of a watcher with this filter that the gap affects, in order; empty if all. None: it does not affect the
    /// watcher.
    pub(super) fn affected_ids(&self, filter: &Filter) -> Option<Vec<SessionId>> {
        let Some(lost) = &self.rolled_back else { return Some(Vec::new()) };
        let affected = lost.entries.iter().filter(|entry| filter.visibility_of_any_kind(&entry.shared.event).is_some());
        let mut ids: Vec<SessionId> = affected.map(|entry| entry.shared.event.session.name.id).collect();
        ids.sort_unstable();
        ids.dedup();
        (!ids.is_empty()).then_some(ids)
    }
}

/// Entries of the ring that a rollback removed from the logs.
pub(super) struct RolledBack {
    /// Removed entries.
    pub entries: Vec<LogEntry>,
    /// Last common position of both branches, for each affected partition.
    pub forks: Vec<(Partition, Position)>,
}

impl RolledBack {
    /// Returns the fork of the partition if the entry at this position was removed.
    pub(super) fn fork_before(&self, partition: Partition, position: Position) -> Option<Position> {
        let is_at = |entry: &&LogEntry| entry.partition == partition && entry.position == position;
        self.entries.iter().find(is_at)?;
        self.forks.iter().find(|(of, _)| *of == partition).map(|(_, fork)| *fork)
    }
}
