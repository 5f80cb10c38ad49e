//! The keyspace bridge: what was done to our keys behind our back becomes the end of the session it was done to.
//!
//! Redis tells of keys that vanish, each server of its own. That is a hint, no more: it may be forged, of a tombstone, or
//! of a session that moved to another server. What counts is the due set: the script that ends what is over ends an id
//! that is due and has no key, once, whichever instance runs it; in no other case it does anything.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::{
    observe::Metrics,
    session::{Policies, SessionName},
    store::{Error, Expired, Notifications, Partition, Store, Telling},
    watch::Hub,
};

/// Vanished keys are gathered for so long, and a little more, so that mostly one instance finds what to do.
const HOLD: Duration = Duration::from_millis(200);
const JITTER_MS: u64 = 100;
/// Looked at in one go; then other work has its turn.
const BATCH: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server is asked whether it tells of keys that vanish.
const LOOK_EVERY: Duration = Duration::from_secs(10);

pub struct Bridge {
    pub store: Arc<Store>,
    pub hub: Arc<Hub>,
    pub policies: Arc<Policies>,
    pub metrics: Arc<Metrics>,
}

impl Bridge {
    /// Ends what has vanished, for ever; every partition by itself.
    pub async fn run(&self) {
        join_all(self.store.partitions().map(|partition| self.run_partition(partition))).await;
    }

    async fn run_partition(&self, partition: Partition) {
        loop {
            self.hub.vanished.some(partition).await;
            let jitter = Duration::from_millis(u64::from(getrandom::u32().unwrap_or(0)) % JITTER_MS);
            sleep(HOLD + jitter).await;
            let names: Vec<SessionName> = self.hub.vanished.take(partition).into_iter().collect();
            for names in names.chunks(BATCH) {
                let looks = names.iter().map(|name| self.reconcile(name));
                for (name, looked) in names.iter().zip(join_all(looks).await) {
                    match looked {
                        Ok(Expired::Now) => drop(self.metrics.keyspace.vanished_sessions.inc()),
                        Ok(Expired::NotDue | Expired::Before) => {}
                        Err(error) => {
                            tracing::debug!(%error, session = %name, "what may have vanished is looked at again");
                            self.hub.vanished.note(partition, name.clone());
                        }
                    }
                }
            }
        }
    }

    async fn reconcile(&self, name: &SessionName) -> Result<Expired, Error> {
        if !self.store.is_due(name, Instant::now() + TIMEOUT).await? {
            return Ok(Expired::Before);
        }
        let policy = self.policies.of(&name.namespace).unwrap_or(&self.policies.default);
        self.store.expire(name, policy, Instant::now() + TIMEOUT).await
    }

    /// Looks whether the servers tell of keys that vanish, for ever. One that does not is asked to, once in each of its
    /// runs: who switches it off later means it. They need not: the audit finds those, later.
    pub async fn look_after_notifications(&self) {
        let mut told: HashMap<String, (String, Notifications)> = HashMap::new();
        loop {
            let mut worst = Notifications::On;
            for Telling { server, run, mut notifications } in self.store.notifications(Instant::now() + TIMEOUT).await {
                let before = told.get(&server).filter(|(of, _)| *of == run).map(|(_, before)| *before);
                if before.is_none() && notifications == Notifications::Off {
                    notifications = self.switch_on(&server).await;
                }
                if before != Some(notifications) {
                    tell(&server, notifications);
                }
                worst = worst.min(notifications);
                told.insert(server, (run, notifications));
            }
            self.metrics.keyspace.notifications.set(match worst {
                Notifications::On => 1,
                Notifications::Off => 0,
                Notifications::Unknown => -1,
            });
            sleep(LOOK_EVERY).await;
        }
    }

    async fn switch_on(&self, server: &str) -> Notifications {
        match self.store.switch_on_notifications(server, Instant::now() + TIMEOUT).await {
            Ok(()) => {
                tracing::info!(server, "Redis was asked to tell of keys that vanish (notify-keyspace-events)");
                Notifications::On
            }
            Err(error) => {
                tracing::debug!(server, %error, "Redis cannot be asked to tell of keys that vanish");
                Notifications::Off
            }
        }
    }
}

fn tell(server: &str, notifications: Notifications) {
    match notifications {
        Notifications::On => {}
        Notifications::Off => tracing::warn!(
            server,
            "Redis does not tell of keys that vanish: sessions that are deleted or evicted behind our back are found by \
             the next audit only. Remedy: CONFIG SET notify-keyspace-events Egxe"
        ),
        Notifications::Unknown => {
            tracing::info!(server, "whether Redis tells of keys that vanish is not known: CONFIG GET is refused");
        }
    }
}
