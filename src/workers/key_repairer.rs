//! Repairs keys of the store that another client has overwritten with another type.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{sleep, timeout};

use super::{DueSets, deadline};

/// Time between two checks of the keys that are known to have another type.
const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after each check, however often Redis refuses a key, and before a failed repair is repeated.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);

/// Deletes keys of another type that can be rebuilt, and rebuilds due sets.
pub struct KeyRepairer {
    /// Due sets to rebuild.
    pub due_sets: DueSets,
}

impl KeyRepairer {
    /// Checks the keys of every command that Redis refuses for the type of a key. Never returns.
    pub async fn run(&self) {
        let store = &self.due_sets.store;
        let mut without_due_sets = BTreeSet::new();
        loop {
            let limit = if without_due_sets.is_empty() { KEY_CHECK_INTERVAL } else { Duration::ZERO };
            let _ = timeout(limit, store.wait_for_suspect_keys()).await;
            without_due_sets.extend(store.repair_keys(deadline()).await);
            let mut failed = BTreeSet::new();
            for partition in without_due_sets {
                if let Err(error) = self.due_sets.restore(partition).await {
                    tracing::debug!(partition = partition.0, %error, "due sets not rebuilt; retrying");
                    failed.insert(partition);
                }
            }
            without_due_sets = failed;
            sleep(REPAIR_PAUSE).await;
        }
    }
}
