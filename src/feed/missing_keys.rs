//! Sessions whose keys are missing in Redis according to keyspace notifications, until a worker checks them.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    session::{Change, SessionRef},
    store::{Entry, Partition},
};

use super::consumer::{Consumer, Gap};

/// Maximum number of names kept per partition and set. When more keys are missing, the partition must be checked.
const MAX_NAMES: usize = 8_192;

/// Minimum time for which an end is kept after the feed delivered it; it is dropped within twice this time.
const ENDS_KEPT: Duration = Duration::from_secs(1);

/// Sessions whose keys are missing, by partition. A consumer of the feed. A session whose end the feed delivered is left out: its own end
/// removed the key.
pub struct MissingKeys {
    partitions: Vec<PartitionKeys>,
    /// Notified when a partition must be checked.
    lost: Notify,
}

#[derive(Default)]
struct PartitionKeys {
    names: Mutex<Names>,
    /// Notified when a missing key was added.
    added: Notify,
    /// Time of the last loss of notifications. None: none were lost since the last check of the partition began.
    lost_at: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Names {
    missing: HashSet<SessionRef>,
    /// Sessions that ended since old ends were dropped last.
    ended: HashSet<SessionRef>,
    /// Sessions that ended in the period before that.
    ended_before: HashSet<SessionRef>,
}

impl MissingKeys {
    /// Empty sets for this number of partitions.
    pub fn new(partitions: usize) -> Self {
        MissingKeys { partitions: (0..partitions).map(|_| PartitionKeys::default()).collect(), lost: Notify::new() }
    }

    /// Adds a session whose key is missing, unless it ended recently. If the set is full, the partition must be checked.
    pub fn add(&self, partition: Partition, name: SessionRef) {
        let keys = &self.partitions[partition.index()];
        let mut names = keys.names.lock();
        if names.ended.contains(&name) || names.ended_before.contains(&name) {
            return;
        }
        if names.missing.len() >= MAX_NAMES {
            return self.note_lost_notifications(&[partition]);
        }
        names.missing.insert(name);
        keys.added.notify_one();
    }

    /// Notes an end that the feed delivered: the key of this session is not missing.
    fn note_end(&self, partition: Partition, name: &SessionRef) {
        let mut names = self.partitions[partition.index()].names.lock();
        names.missing.remove(name);
        if names.ended.len() < MAX_NAMES {
            names.ended.insert(name.clone());
        }
    }

    /// Drops old ends, once per [`ENDS_KEPT`]. Never returns.
    pub(super) async fn drop_old_ends(&self) {
        loop {
            sleep(ENDS_KEPT).await;
            for keys in &self.partitions {
                let mut names = keys.names.lock();
                names.ended_before = std::mem::take(&mut names.ended);
            }
        }
    }

    /// Notes that keyspace notifications of these partitions were lost: their sessions must be checked.
    pub fn note_lost_notifications(&self, partitions: &[Partition]) {
        for partition in partitions {
            *self.partitions[partition.index()].lost_at.lock() = Some(Instant::now());
        }
        self.lost.notify_one();
    }

    /// Returns when a missing key was added to this partition.
    pub async fn wait_for_missing(&self, partition: Partition) {
        self.partitions[partition.index()].added.notified().await;
    }

    /// Returns when a partition must be checked, because notifications were lost or its set was full.
    pub async fn wait_for_loss(&self) {
        self.lost.notified().await;
    }

    /// Takes the time of the last loss of notifications of this partition. None: it need not be checked.
    pub fn take_loss(&self, partition: Partition) -> Option<Instant> {
        self.partitions[partition.index()].lost_at.lock().take()
    }

    /// Takes all sessions with missing keys of this partition.
    pub fn take(&self, partition: Partition) -> HashSet<SessionRef> {
        std::mem::take(&mut self.partitions[partition.index()].names.lock().missing)
    }
}

impl Consumer for MissingKeys {
    fn on_entry(&self, entry: &Entry) {
        match entry.event.change {
            Change::Ended(_) => self.note_end(entry.partition, &entry.event.session.name),
            Change::Created | Change::Updated | Change::Rotated | Change::TokenReused => {}
        }
    }

    fn on_gap(&self, _: &Gap) {}
}
