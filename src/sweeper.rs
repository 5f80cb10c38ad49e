//! Expiry on time, and the bounds of the log.
//!
//! Every instance has one; no lease is needed, for the script that ends a session does so once. It wakes at the next
//! known deadline, and looks at every partition once a second anyway.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::{
    session::{Namespace, Policies, SessionName},
    store::{Error, Expired, LogBounds, Partition, Store},
    watch::Hub,
};

/// Ids ended before other work gets its turn.
const BATCH: usize = 100;
/// Spreads the instances, so that mostly one of them finds what is due.
const JITTER_MS: u64 = 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);

pub struct Sweeper {
    pub store: Arc<Store>,
    pub hub: Arc<Hub>,
    pub policies: Arc<Policies>,
}

impl Sweeper {
    /// Ends what is due, for ever. Every partition by itself: one that cannot be swept now holds up no other.
    pub async fn run(&self) {
        join_all(self.store.partitions().map(|partition| self.run_partition(partition))).await;
    }

    async fn run_partition(&self, partition: Partition) {
        loop {
            self.wait_for_next(partition).await;
            self.hub.deadlines.forget(partition);
            self.sweep(partition).await;
        }
    }

    fn now_ms(&self, partition: Partition) -> Option<u64> {
        self.store.now_at(partition).map(|now| now / 1000)
    }

    /// Until the next deadline known, but no longer than it is looked anyway.
    async fn wait_for_next(&self, partition: Partition) {
        let since = Instant::now();
        loop {
            let until_look = LOOK_EVERY.saturating_sub(since.elapsed());
            let until_due = match self.now_ms(partition) {
                Some(now) => Duration::from_millis(self.hub.deadlines.next(partition).saturating_sub(now)),
                None => LOOK_EVERY,
            };
            let jitter = Duration::from_millis(getrandom::u32().unwrap_or(0) as u64 % JITTER_MS);
            tokio::select! {
                () = sleep(until_due.min(until_look) + jitter) => return,
                () = self.hub.deadlines.changed(partition) => {}
            }
        }
    }

    /// Ends what is due in a partition, and notes its next deadline. One pass: what is due again at once is noted as
    /// such, and comes after the other partitions.
    async fn sweep(&self, partition: Partition) {
        let Some(now) = self.now_ms(partition) else { return };
        let (due, next) = match self.store.due_namespaces(partition, now, deadline()).await {
            Ok(found) => found,
            Err(error) => return tracing::debug!(partition = partition.0, %error, "sweep failed; it is repeated"),
        };
        let mut earliest = Vec::new();
        let mut all_swept = true;
        for namespace in due {
            match self.sweep_namespace(partition, &namespace).await {
                Ok(next) => earliest.extend(next),
                Err(error) => {
                    tracing::debug!(partition = partition.0, %error, "sweep failed; it is repeated");
                    all_swept = false;
                }
            }
        }
        // What cannot be ended now is not tried again at once.
        earliest.extend(next.filter(|next| all_swept || *next > now));
        earliest.into_iter().for_each(|next| self.hub.deadlines.note(partition, next));
    }

    /// Ends what is due of a namespace, a batch of it: the others have their turn before the next. When that is.
    async fn sweep_namespace(&self, partition: Partition, namespace: &Namespace) -> Result<Option<u64>, Error> {
        let policy = self.policies.of(namespace).unwrap_or(&self.policies.default);
        let due = self.store.due(partition, namespace, BATCH, deadline()).await?;
        let endings = due.ids.into_iter().map(async |(id, due)| {
            let name = SessionName { namespace: namespace.clone(), id };
            (due, self.store.expire(&name, policy, deadline()).await)
        });
        let mut ended_one = false;
        for (due, ended) in join_all(endings).await {
            if ended? == Expired::Now {
                ended_one = true;
                let late = self.store.now_at(partition).unwrap_or(0) as f64 / 1e6 - due as f64 / 1e3;
                self.hub.metrics.sessions_expired.inc();
                self.hub.metrics.expiry_lag_seconds.observe(late.max(0.0));
            }
        }
        // There may be more of it at once.
        Ok(if ended_one { Some(0) } else { due.next })
    }

    /// Keeps every log within its bounds, for ever.
    pub async fn trim(&self, bounds: LogBounds) {
        loop {
            sleep(LOOK_EVERY).await;
            for partition in self.store.partitions() {
                while let Ok(dropped) = self.store.trim(partition, bounds, deadline()).await
                    && dropped >= bounds.batch
                {}
            }
        }
    }
}

fn deadline() -> Instant {
    Instant::now() + TIMEOUT
}
