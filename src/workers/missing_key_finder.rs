//! Finds sessions whose keys were deleted while this instance received no keyspace notifications.
//!
//! After such a loss the due sets of the affected partitions are compared with the session keys. The instances share this
//! work: each claims one partition after the other. An instance that has claimed a partition receives all later
//! notifications, so that the others need not check that partition. If it loses notifications again, it cannot rely on its own
//! claim from before.

use std::time::Duration;

use tokio::time::sleep;

use super::{DueSets, deadline, jitter};
use crate::store::{Claim, Error, Partition};

/// Maximum time between a loss and the first claim. It collects the losses of several nodes, and spreads the instances.
const START_JITTER: Duration = Duration::from_millis(100);
/// Time before a loss from which another instance's claim is sufficient: all instances lose their connections to a Redis node
/// together, but do not reconnect at the same time.
const EARLIER_CLAIM: Duration = Duration::from_secs(1);
/// Pause after a failed check.
const CHECK_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Finds missing keys after lost notifications.
pub struct MissingKeyFinder {
    /// Due sets to check.
    pub due_sets: DueSets,
}

impl MissingKeyFinder {
    /// Checks each partition whose notifications were lost. If more are lost during a check, only the partitions that were
    /// already checked are checked again. Never returns.
    pub async fn run(&self) {
        let missing_keys = &self.due_sets.missing_keys;
        loop {
            missing_keys.wait_for_loss().await;
            sleep(jitter(START_JITTER)).await;
            for partition in self.rotated_partitions() {
                let Some(lost_at) = missing_keys.take_loss(partition) else { continue };
                if let Err(error) = self.check(partition, lost_at.elapsed()).await {
                    tracing::debug!(partition = partition.0, %error, "check for missing keys failed; retrying");
                    missing_keys.note_lost_notifications(&[partition]);
                    sleep(CHECK_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// All partitions, from a random one on, so that the instances start at different ones.
    fn rotated_partitions(&self) -> Vec<Partition> {
        let mut partitions: Vec<Partition> = self.due_sets.store.partitions().collect();
        let first = getrandom::u32().unwrap_or(0) as usize % partitions.len();
        partitions.rotate_left(first);
        partitions
    }

    /// Checks a partition, unless another instance does or this instance has since the loss.
    async fn check(&self, partition: Partition, since_loss: Duration) -> Result<(), Error> {
        let periods = [since_loss + EARLIER_CLAIM, since_loss];
        if self.due_sets.store.claim(partition, Claim::MissingKeys, periods, deadline()).await? {
            let mut pages = self.due_sets.pages(partition).await?;
            while let Some(page) = pages.next().await {
                page?;
            }
        }
        Ok(())
    }
}
