//! Keeps the subject indexes consistent with the sessions, and finds sessions whose key is missing.
//!
//! Every instance removes the index entries of the sessions that it ended. A reconciliation of the whole store repairs
//! what a crash or a failover left, in both directions: a live session is in its subject's index, and an index entry
//! has a live session. One instance runs it per interval. After a rollback every instance runs it at once, because
//! session and index may have been rolled back to different times.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{BATCH, deadline, jitter};
use crate::{
    observe::Metrics,
    session::{Credential, Namespace, Policies, Session, SessionId, SessionRef, Subject, View},
    store::{
        Admitted, Error, Found, INDEX_PAGE, Left, Limit, ListPosition, Partition, RESERVATION_WINDOW, ScanPosition,
        Store, Why,
    },
    watch::Hub,
};

/// Pause after each batch, so that other work gets its turn.
const BATCH_PAUSE: Duration = Duration::from_millis(5);
/// Maximum age of an end whose index entry is removed at once. Older ones are left to the next reconciliation, because
/// the tombstone, which is kept for at least 60 s, may be gone.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);
/// Pause before a failed reconciliation is repeated. It doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause before a repetition, unless the interval is longer. After that pause only the interval counts again.
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Lifetime of the claim to reconcile after lost notifications. The holder has received every notification since it
/// took the claim, so other instances that lost some before need not reconcile too. The holder itself cannot rely on
/// its own claim: if it loses notifications again, it reconciles again.
const LOSS_CLAIM: Duration = Duration::from_secs(1);

/// Repairs the subject indexes and finds sessions whose key is missing.
pub struct IndexReconciler {
    /// Store that holds sessions and indexes.
    pub store: Arc<Store>,
    /// Hub that reports rollbacks and collects missing keys.
    pub hub: Arc<Hub>,
    /// Policies of the sessions.
    pub policies: Arc<Policies>,
    /// Metrics that count the repairs.
    pub metrics: Arc<Metrics>,
    /// Time between two reconciliations of the whole store.
    pub interval: Duration,
}

impl IndexReconciler {
    /// Removes the index entries of sessions that this instance ended or made anonymous. Never returns.
    pub async fn remove_ended(&self) {
        let rollbacks = self.hub.rollbacks();
        loop {
            let mut removals: HashMap<Subject, Vec<(SessionId, Option<u64>)>> = HashMap::new();
            for Left { subject, id, why } in self.store.left().await {
                let added_until = match why {
                    // An end from before a rollback may have been lost.
                    Why::Ended(at) if at.elapsed() < REMOVE_WITHIN && at > rollbacks.borrow().last => None,
                    Why::Ended(_) => continue,
                    Why::Left { at } => Some(at),
                };
                removals.entry(subject).or_default().push((id, added_until));
            }
            let calls =
                removals.iter().map(|(subject, ids)| self.store.forget(subject, ids.iter().copied(), deadline()));
            for removed in futures_util::future::join_all(calls).await {
                if let Err(error) = removed {
                    tracing::debug!(%error, "index entry removal failed; left to the next reconciliation");
                }
            }
        }
    }

    /// Reconciles the store once per interval, after lost notifications, and after a rollback. Repeats it with growing
    /// pauses while a part fails. Never returns.
    pub async fn run(&self) {
        let mut rollbacks = self.hub.rollbacks();
        // Time of the last claim after lost notifications, and end of the reservations from before the last rollback.
        let (mut claimed, mut reserved_until) = (None, None);
        // Last pause before a repetition, and time of the next reconciliation that needs no claim.
        let (mut pause, mut due) = (None, None);
        let mut next = Instant::now() + self.period();
        loop {
            tokio::select! {
                () = sleep_until(due.unwrap_or(next)) => {
                    if due.is_none() && !self.has_turn(self.interval).await {
                        next = Instant::now() + self.period();
                        continue;
                    }
                }
                () = self.hub.missing_keys.wait_for_loss() => {
                    let is_ours = claimed.is_some_and(|at: Instant| at.elapsed() < 2 * LOSS_CLAIM);
                    if !self.has_turn(LOSS_CLAIM).await && !is_ours {
                        continue;
                    }
                    (claimed, pause) = (Some(Instant::now()), None);
                }
                Ok(()) = rollbacks.changed() => {
                    (reserved_until, pause) = (Some(Instant::now() + RESERVATION_WINDOW), None);
                }
            }
            let failures = self.reconcile().await;
            pause = match (failures, pause) {
                (0, _) => None,
                (_, None) => Some(FIRST_RETRY),
                (_, Some(pause)) => Some(2 * pause).filter(|pause| *pause <= self.interval.max(LONGEST_RETRY)),
            };
            // The rollback may have removed the reservation of a call in flight, whose session then has no index entry.
            // Reconcile once more after such calls have ended.
            due = if failures == 0 { reserved_until.take() } else { pause.map(|pause| Instant::now() + pause) };
            next = Instant::now() + self.period();
        }
    }

    /// Time until the next regular reconciliation: the interval and up to 10 % of jitter.
    fn period(&self) -> Duration {
        self.interval + jitter(self.interval / 10)
    }

    /// Takes the claim to reconcile in this period; false if another instance has it. True as well if the node that
    /// keeps the claim does not answer: the other nodes may have lost data.
    async fn has_turn(&self, period: Duration) -> bool {
        self.store.claim_audit(period, deadline()).await.unwrap_or(true)
    }

    /// Checks the whole store and returns the number of parts that failed. A failure does not stop the other parts.
    async fn reconcile(&self) -> u32 {
        let started = Instant::now();
        let (mut repaired, mut failures) = (0, 0);
        let mut count = |outcome: Result<u64, Error>| match outcome {
            Ok(repairs) => {
                repaired += repairs;
                self.metrics.index_repairs.inc_by(repairs);
            }
            Err(error) => {
                tracing::debug!(%error, "reconciliation failed in part; retrying");
                failures += 1;
            }
        };
        for partition in self.store.partitions() {
            match self.store.namespaces(partition, deadline()).await {
                Ok(namespaces) => {
                    for namespace in namespaces {
                        count(self.add_missing_entries(partition, &namespace).await);
                    }
                }
                Err(error) => count(Err(error)),
            }
        }
        let mut from = Some(ScanPosition::default());
        while let Some(position) = from {
            from = match self.store.subjects(position, deadline()).await {
                Ok((subjects, next)) => {
                    for subject in subjects {
                        count(self.remove_dead_entries(&subject).await);
                    }
                    next
                }
                Err(error) => {
                    count(Err(error));
                    Some(position.next_server())
                }
            };
        }
        if repaired > 0 || failures > 0 {
            tracing::info!(repaired, failures, took = ?started.elapsed(), "subject indexes reconciled");
        }
        failures
    }

    /// Adds the live sessions that are missing in their subject index, and notes missing keys. Returns the number
    /// added.
    async fn add_missing_entries(&self, partition: Partition, namespace: &Namespace) -> Result<u64, Error> {
        let (mut repaired, mut failed) = (0, None);
        let mut next = Some(ListPosition::After(partition, None));
        while let Some(from) = next.filter(|next| next.partition() == partition) {
            let (ids, then) = self.store.list(namespace, from, BATCH, deadline()).await?;
            let checks = ids.into_iter().map(async |id| {
                let name = SessionRef { namespace: namespace.clone(), id };
                match self.store.look(&name, Credential::Id, View::Basic, deadline()).await {
                    Ok(Found::Session(session, _)) => self.add_if_missing(session).await,
                    // In the due set without a key: deleted out of band, unless it ended after the listing.
                    Ok(Found::NotFound) => {
                        self.hub.missing_keys.add(partition, name);
                        Ok(false)
                    }
                    Ok(_) | Err(Error::Corrupt { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            });
            for added in futures_util::future::join_all(checks).await {
                match added {
                    Ok(added) => repaired += u64::from(added),
                    // The index of this session may be on a node that fails; the other sessions are still checked.
                    Err(error) => failed = Some(error),
                }
            }
            sleep(BATCH_PAUSE).await;
            next = then;
        }
        failed.map_or(Ok(repaired), Err)
    }

    /// Adds the session to its subject index if it is missing there; returns whether it was.
    async fn add_if_missing(&self, session: Session) -> Result<bool, Error> {
        let subject = Subject { namespace: session.name.namespace, name: session.subject };
        if subject.name.is_empty() || self.store.added(&subject, session.name.id, deadline()).await?.is_some() {
            return Ok(false);
        }
        let admitted = self.store.admit(&subject, session.name.id, 0, Limit::NONE, deadline()).await?;
        Ok(matches!(admitted, Admitted::InPlaceOf(..)))
    }

    /// Removes the entries of a subject index that have no live session. Returns the number removed.
    async fn remove_dead_entries(&self, subject: &Subject) -> Result<u64, Error> {
        let (mut after, mut repaired) = (0, 0);
        loop {
            let entries = self.store.entries_after(subject, after, INDEX_PAGE, deadline()).await?;
            let Some(last) = entries.last() else { break };
            after = last.added;
            for entries in entries.chunks(BATCH) {
                let policy = self.policies.of_stored(&subject.namespace);
                repaired += self.store.forget_dead(subject, entries, policy, deadline()).await?;
                sleep(BATCH_PAUSE).await;
            }
        }
        Ok(repaired)
    }
}
