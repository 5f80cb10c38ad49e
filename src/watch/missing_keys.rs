//! Sessions whose keys are missing in Redis according to keyspace notifications, until a worker checks them.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{session::SessionRef, store::Partition};

/// Maximum number of names kept per partition and set. When more keys are missing, all sessions must be checked.
const MAX_NAMES: usize = 8_192;

/// Sessions whose keys are missing, by partition. A session whose end the feed delivered is left out: its own end
/// removed the key.
pub struct MissingKeys {
    partitions: Vec<PartitionKeys>,
    /// Notified when all sessions must be checked.
    lost: Notify,
}

#[derive(Default)]
struct PartitionKeys {
    names: Mutex<Names>,
    /// Notified when a missing key was added.
    added: Notify,
}

#[derive(Default)]
struct Names {
    missing: HashSet<SessionRef>,
    /// Sessions that ended since the last rotation.
    ended: HashSet<SessionRef>,
    /// Sessions that ended between the two last rotations.
    ended_before: HashSet<SessionRef>,
}

impl MissingKeys {
    /// Empty sets for this number of partitions.
    pub fn new(partitions: usize) -> Self {
        MissingKeys { partitions: (0..partitions).map(|_| PartitionKeys::default()).collect(), lost: Notify::new() }
    }

    /// Adds a session whose key is missing, unless it ended recently. If the set is full, all sessions must be checked.
    pub fn add(&self, partition: Partition, name: SessionRef) {
        let keys = &self.partitions[partition.index()];
        let mut names = keys.names.lock();
        if names.ended.contains(&name) || names.ended_before.contains(&name) {
            return;
        }
        if names.missing.len() >= MAX_NAMES {
            return self.lost.notify_one();
        }
        names.missing.insert(name);
        keys.added.notify_one();
    }

    /// Notes an end that the feed delivered: the key of this session is not missing.
    pub fn note_end(&self, partition: Partition, name: &SessionRef) {
        let mut names = self.partitions[partition.index()].names.lock();
        names.missing.remove(name);
        if names.ended.len() < MAX_NAMES {
            names.ended.insert(name.clone());
        }
    }

    /// Drops the ends from before the last rotation. Called periodically, so that an end is kept for one to two
    /// periods.
    pub fn rotate_ends(&self) {
        for keys in &self.partitions {
            let mut names = keys.names.lock();
            names.ended_before = std::mem::take(&mut names.ended);
        }
    }

    /// Notes that keyspace notifications were lost: all sessions must be checked.
    pub fn note_lost_notifications(&self) {
        self.lost.notify_one();
    }

    /// Returns when a missing key was added to this partition.
    pub async fn wait_for_missing(&self, partition: Partition) {
        self.partitions[partition.index()].added.notified().await;
    }

    /// Returns when all sessions must be checked, because notifications were lost or a set was full.
    pub async fn wait_for_loss(&self) {
        self.lost.notified().await;
    }

    /// Takes all sessions with missing keys of this partition.
    pub fn take(&self, partition: Partition) -> HashSet<SessionRef> {
        std::mem::take(&mut self.partitions[partition.index()].names.lock().missing)
    }
}
