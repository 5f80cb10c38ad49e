//! Passes accepted entries and gaps to all consumers, in one order.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    moment::Moment,
    observe::Metrics,
    store::{Entry, Partition, Position},
};

use super::{
    consumer::{Consumer, Gap},
    history::{Acceptance, History},
};

/// Maximum number of positions kept to find the fork point of a rollback, in all partitions together (16 bytes each).
const MAX_POSITIONS: usize = 131_072;

/// Owns what the feed has accepted, and passes it to the consumers.
pub(super) struct Dispatcher {
    /// History of each partition. Locked while the consumers are called, so that all receive the same order.
    histories: Mutex<Vec<History>>,
    consumers: Vec<Arc<dyn Consumer>>,
    metrics: Arc<Metrics>,
}

impl Dispatcher {
    /// A dispatcher of the entries after these tails of the partitions.
    pub(super) fn new(tails: Vec<Position>, consumers: Vec<Arc<dyn Consumer>>, metrics: Arc<Metrics>) -> Self {
        let limit = MAX_POSITIONS / tails.len().max(1);
        let histories = tails.into_iter().map(|tail| History::new(tail, limit)).collect();
        Dispatcher { histories: Mutex::new(histories), consumers, metrics }
    }

    /// Position of the last entry of a partition that was passed on.
    pub(super) fn position(&self, partition: Partition) -> Position {
        self.histories.lock()[partition.index()].last()
    }

    /// Whether the entry at this position was passed on, and is among the last ones.
    pub(super) fn contains(&self, partition: Partition, position: Position) -> bool {
        self.histories.lock()[partition.index()].contains(position)
    }

    /// Returns the last positions of a partition, newest first.
    pub(super) fn positions(&self, partition: Partition) -> Vec<Position> {
        self.histories.lock()[partition.index()].newest_first().collect()
    }

    /// Passes on an entry from a channel, if it directly follows the partition's position.
    pub(super) fn accept(&self, entry: &Entry) -> Acceptance {
        self.pass(&mut self.histories.lock(), entry)
    }

    /// Passes on an entry that was read from the log, if it directly follows the partition's position.
    pub(super) fn accept_from_log(&self, entry: &Entry) -> Acceptance {
        let mut histories = self.histories.lock();
        histories[entry.partition.index()].note_present(entry.position);
        self.pass(&mut histories, entry)
    }

    fn pass(&self, histories: &mut [History], entry: &Entry) -> Acceptance {
        let acceptance = histories[entry.partition.index()].accept(entry.previous, entry.position);
        if acceptance == Acceptance::Next {
            self.metrics.events_received.inc();
            self.consumers.iter().for_each(|consumer| consumer.on_entry(entry));
        }
        acceptance
    }

    /// Passes on a gap, and continues where it ends.
    pub(super) fn pass_gap(&self, gap: &Gap) {
        let mut histories = self.histories.lock();
        for (partition, end) in &gap.ends {
            histories[partition.index()].continue_after(*end);
        }
        self.consumers.iter().for_each(|consumer| consumer.on_gap(gap));
    }

    /// Passes on that the history of these partitions may be another one.
    pub(super) fn pass_restart(&self, partitions: &[Partition]) {
        let _in_order = self.histories.lock();
        self.consumers.iter().for_each(|consumer| consumer.on_restart(partitions));
    }

    /// Passes on that all entries of these partitions were passed on that the logs had at `sent`.
    pub(super) fn pass_tail_read(&self, partitions: &[Partition], sent: Moment) {
        let _in_order = self.histories.lock();
        self.consumers.iter().for_each(|consumer| consumer.on_tail_read(partitions, sent));
    }
}

#[cfg(test)]
mod tests;
