//! Ends sessions at their deadline.
//!
//! The script that ends a session does so once, whichever instance runs it. The worker wakes at the earliest deadline
//! that the feed noted, and reads the due sets of every partition once per second in any case.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{BATCH, deadline, jitter};
use crate::{
    feed::Deadlines,
    observe::Metrics,
    session::{Namespace, Policies, SessionRef},
    store::{Error, Expired, Partition, Store},
};

/// Maximum random delay of a wake-up. It spreads the instances over time, so that usually one of them ends a due
/// session.
const WAKE_JITTER: Duration = Duration::from_millis(20);
/// Maximum time between two reads of the due sets of a partition.
const DUE_SET_INTERVAL: Duration = Duration::from_secs(1);

/// Ends sessions whose idle or absolute deadline has passed.
pub struct ExpiryWorker {
    /// Store that holds the due sets.
    pub store: Arc<Store>,
    /// Deadlines that wake the worker.
    pub deadlines: Arc<Deadlines>,
    /// Policies of the sessions to end.
    pub policies: Arc<Policies>,
    /// Metrics that count the ended sessions.
    pub metrics: Arc<Metrics>,
}

impl ExpiryWorker {
    /// Ends due sessions. Each partition has its own loop, so that one that cannot be read delays no other. Never
    /// returns.
    pub async fn run(&self) {
        join_all(self.store.partitions().map(|partition| self.run_partition(partition))).await;
    }

    async fn run_partition(&self, partition: Partition) {
        loop {
            self.wait_for_next(partition).await;
            self.deadlines.clear(partition);
            self.end_due(partition).await;
        }
    }

    /// Time of Redis in ms since the epoch. None: unknown.
    fn now_ms(&self, partition: Partition) -> Option<u64> {
        self.store.now_at(partition).map(|now| now / 1000)
    }

    /// Waits for the earliest known deadline, at most [`DUE_SET_INTERVAL`]. Deadlines that are noted during the wait
    /// count.
    async fn wait_for_next(&self, partition: Partition) {
        let since = Instant::now();
        loop {
            let until_poll = DUE_SET_INTERVAL.saturating_sub(since.elapsed());
            let until_due = match self.now_ms(partition) {
                Some(now) => Duration::from_millis(self.deadlines.next(partition).saturating_sub(now)),
                None => DUE_SET_INTERVAL,
            };
            tokio::select! {
                () = sleep(until_due.min(until_poll) + jitter(WAKE_JITTER)) => return,
                () = self.deadlines.wait_for_earlier(partition) => {}
            }
        }
    }

    /// Ends one batch of each due namespace, and notes the next deadline of the partition.
    async fn end_due(&self, partition: Partition) {
        let Some(now) = self.now_ms(partition) else { return };
        let (due, next) = match self.store.due_namespaces(partition, now, deadline()).await {
            Ok(found) => found,
            Err(error) => return tracing::debug!(partition = partition.0, %error, "due set read failed; retrying"),
        };
        let mut earliest = Vec::new();
        let mut all_ended = true;
        for namespace in due {
            match self.end_due_in(partition, &namespace).await {
                Ok(next) => earliest.extend(next),
                Err(error) => {
                    tracing::debug!(partition = partition.0, %error, "expiry failed; retrying");
                    all_ended = false;
                }
            }
        }
        // `next` is `now` if more namespaces may be due. After a failure it is skipped, so that the loop pauses before
        // the failed batch is tried again.
        earliest.extend(next.filter(|next| all_ended || *next > now));
        earliest.into_iter().for_each(|next| self.deadlines.note(partition, next));
    }

    /// Ends one batch of a namespace; the next batch waits until the other namespaces had theirs. Returns the next
    /// deadline in ms since the epoch; 0 if more sessions may be due now; None if the namespace has none.
    async fn end_due_in(&self, partition: Partition, namespace: &Namespace) -> Result<Option<u64>, Error> {
        let policy = self.policies.of_stored(namespace);
        let due = self.store.due(partition, namespace, BATCH, deadline()).await?;
        let calls = due.ids.into_iter().map(async |(id, due)| {
            let name = SessionRef { namespace: namespace.clone(), id };
            (due, self.store.expire(&name, policy, deadline()).await)
        });
        let mut ended_any = false;
        for (due, expired) in join_all(calls).await {
            if expired? == Expired::Now {
                ended_any = true;
                let late = self.store.now_at(partition).unwrap_or(0) as f64 / 1e6 - due as f64 / 1e3;
                self.metrics.sessions_expired.inc();
                self.metrics.expiry_lag_seconds.observe(late.max(0.0));
            }
        }
        Ok(if ended_any { Some(0) } else { due.next })
    }
}
