//! Sessions whose keys are said to have vanished from Redis, until somebody looks.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{session::SessionName, store::Partition};

/// Names kept of a partition; of vanished ones beyond it everything has to be looked at.
const NAMES: usize = 8_192;

/// Held against the feed: a key that our own ending took away is none that vanished.
pub struct Vanished {
    partitions: Vec<OfPartition>,
    missed: Notify,
}

#[derive(Default)]
struct OfPartition {
    state: Mutex<State>,
    some: Notify,
}

#[derive(Default)]
struct State {
    vanished: HashSet<SessionName>,
    /// Whose end was told, since the last turn and in the one before.
    ended: HashSet<SessionName>,
    ended_before: HashSet<SessionName>,
}

impl Vanished {
    pub fn new(partitions: usize) -> Self {
        Vanished { partitions: (0..partitions).map(|_| OfPartition::default()).collect(), missed: Notify::new() }
    }

    pub fn note(&self, partition: Partition, name: SessionName) {
        let own = &self.partitions[partition.index()];
        let mut state = own.state.lock();
        if state.ended.contains(&name) || state.ended_before.contains(&name) {
            return;
        }
        if state.vanished.len() >= NAMES {
            return self.missed.notify_one();
        }
        state.vanished.insert(name);
        own.some.notify_one();
    }

    /// The feed told of its end.
    pub fn note_end(&self, partition: Partition, name: &SessionName) {
        let mut state = self.partitions[partition.index()].state.lock();
        state.vanished.remove(name);
        if state.ended.len() < NAMES {
            state.ended.insert(name.clone());
        }
    }

    /// Forgets the ends told before the last turn.
    pub fn turn(&self) {
        for own in &self.partitions {
            let mut state = own.state.lock();
            state.ended_before = std::mem::take(&mut state.ended);
        }
    }

    /// Some were not heard of.
    pub fn note_missed(&self) {
        self.missed.notify_one();
    }

    /// Returns once there is one in this partition.
    pub async fn some(&self, partition: Partition) {
        self.partitions[partition.index()].some.notified().await;
    }

    /// Returns once there were more than are kept, or some were not heard of.
    pub async fn missed(&self) {
        self.missed.notified().await;
    }

    pub fn take(&self, partition: Partition) -> HashSet<SessionName> {
        std::mem::take(&mut self.partitions[partition.index()].state.lock().vanished)
    }
}
