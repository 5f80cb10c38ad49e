//! Ends sessions whose keys were deleted, renamed, expired or evicted directly in Redis, and checks that Redis notifies
//! of such keys.
//!
//! A keyspace notification is a hint: it may be forged, or may concern a tombstone or a session that moved to another
//! node. The due set decides: the expiry script ends an id that is in the due set and has no key, once, whichever
//! instance runs it, and does nothing in any other case.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{BATCH, deadline, jitter};
use crate::{
    feed::MissingKeys,
    observe::Metrics,
    session::{Policies, SessionRef},
    store::{Error, Expired, NotificationStatus, Notifications, Partition, Store},
};

/// Time to collect missing keys before they are checked.
const COLLECT_FOR: Duration = Duration::from_millis(200);
/// Maximum random addition to [`COLLECT_FOR`], so that usually one instance ends the sessions.
const COLLECT_JITTER: Duration = Duration::from_millis(100);
/// Time between two checks of the nodes' notification settings.
const SETTING_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Turns out-of-band deletions into ENDED events with cause OUT_OF_BAND.
pub struct KeyspaceReconciler {
    /// Store that holds the due sets.
    pub store: Arc<Store>,
    /// Sessions whose keys are missing.
    pub missing_keys: Arc<MissingKeys>,
    /// Policies of the sessions to end.
    pub policies: Arc<Policies>,
    /// Metrics that count the ended sessions.
    pub metrics: Arc<Metrics>,
}

impl KeyspaceReconciler {
    /// Ends the sessions with missing keys. Each partition has its own loop. Never returns.
    pub async fn run(&self) {
        join_all(self.store.partitions().map(|partition| self.run_partition(partition))).await;
    }

    async fn run_partition(&self, partition: Partition) {
        loop {
            self.missing_keys.wait_for_missing(partition).await;
            sleep(COLLECT_FOR + jitter(COLLECT_JITTER)).await;
            let names: Vec<SessionRef> = self.missing_keys.take(partition).into_iter().collect();
            for names in names.chunks(BATCH) {
                let checks = names.iter().map(|name| self.end_if_missing(name));
                for (name, checked) in names.iter().zip(join_all(checks).await) {
                    match checked {
                        Ok(Expired::Now) => drop(self.metrics.sessions_deleted_out_of_band.inc()),
                        Ok(Expired::NotDue | Expired::Before) => {}
                        Err(error) => {
                            tracing::debug!(%error, session = %name, "missing key check failed; retrying");
                            self.missing_keys.add(partition, name.clone());
                        }
                    }
                }
            }
        }
    }

    /// Ends a session that is in the due set and has no key, or whose deadline has passed.
    async fn end_if_missing(&self, name: &SessionRef) -> Result<Expired, Error> {
        if !self.store.is_due(name, deadline()).await? {
            return Ok(Expired::Before);
        }
        let policy = self.policies.of_stored(&name.namespace);
        self.store.expire(name, policy, deadline()).await
    }

    /// Checks whether every Redis node publishes the keyspace notifications, and enables them once per run of a node.
    /// A setting that an operator disables later stays disabled: the index reconciler finds missing keys more slowly.
    /// Never returns.
    pub async fn watch_notification_settings(&self) {
        let mut known: HashMap<String, (String, Notifications)> = HashMap::new();
        loop {
            let mut worst = Notifications::On;
            for NotificationStatus { server, run, mut notifications } in self.store.notifications(deadline()).await {
                let before = known.get(&server).filter(|(known_run, _)| *known_run == run).map(|(_, before)| *before);
                if before.is_none() && notifications == Notifications::Off {
                    notifications = self.enable(&server).await;
                }
                if before != Some(notifications) {
                    log_status(&server, notifications);
                }
                worst = worst.min(notifications);
                known.insert(server, (run, notifications));
            }
            self.metrics.keyspace_notifications.set(match worst {
                Notifications::On => 1,
                Notifications::Off => 0,
                Notifications::Unknown => -1,
            });
            sleep(SETTING_CHECK_INTERVAL).await;
        }
    }

    /// Enables the notifications of a node. Off if the node refuses.
    async fn enable(&self, server: &str) -> Notifications {
        match self.store.switch_on_notifications(server, deadline()).await {
            Ok(()) => {
                tracing::info!(server, "keyspace notifications enabled");
                Notifications::On
            }
            Err(error) => {
                tracing::debug!(server, %error, "keyspace notifications cannot be enabled");
                Notifications::Off
            }
        }
    }
}

/// Logs the notification setting of a node after a change, unless the notifications are on.
fn log_status(server: &str, notifications: Notifications) {
    match notifications {
        Notifications::On => {}
        Notifications::Off => crate::observe::warning!(
            server,
            "keyspace notifications disabled; out-of-band deletions are found by the next reconciliation only; set \
             notify-keyspace-events to Egxe"
        ),
        Notifications::Unknown => {
            tracing::info!(server, "keyspace notifications unknown; CONFIG GET is not permitted");
        }
    }
}
