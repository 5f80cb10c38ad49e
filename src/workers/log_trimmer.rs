//! Keeps every log within its bounds of age, entries and bytes.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::deadline;
use crate::store::{LogBounds, Store};

/// Time between two rounds over all partitions.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// Removes the oldest entries of each log that is beyond its bounds.
pub struct LogTrimmer {
    /// Store whose logs are trimmed.
    pub store: Arc<Store>,
    /// Bounds of the log of each partition.
    pub bounds: LogBounds,
}

impl LogTrimmer {
    /// Trims all logs once per [`TRIM_INTERVAL`], in batches. A failed trim is left to the next round. Never returns.
    pub async fn run(&self) {
        loop {
            sleep(TRIM_INTERVAL).await;
            for partition in self.store.partitions() {
                while let Ok(removed) = self.store.trim(partition, self.bounds, deadline()).await
                    && removed >= self.bounds.batch
                {}
            }
        }
    }
}
