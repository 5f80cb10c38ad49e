//! Keeps the subject indexes consistent with the sessions, and finds sessions that the due sets or the keyspace lack.
//!
//! Every instance removes the index entries of the sessions that it ended. A reconciliation of the whole store repairs
//! what a crash or a failover left, in both directions: a live session is in its subject's index, and an index entry
//! has a live session. One instance runs it per interval. After a rollback every instance runs it at once, because
//! session and index may have been rolled back to different times.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{DueSets, deadline, due_sets::PAGE_PAUSE, jitter};
use crate::{
    feed::Rollbacks,
    session::{SessionId, Subject},
    store::{
        Claim, Error, INDEX_PAGE, IndexEntry, LeaveReason, Left, Limit, PER_SCRIPT, Partial, Partition,
        RESERVATION_WINDOW, ScanPosition, ScanScope,
    },
};

/// Maximum age of an end whose index entry is removed at once. Older ones are left to the next reconciliation, because
/// the tombstone, which is kept for at least 60 s, may be gone.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);
/// Pause before a failed reconciliation is repeated. It doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause before a repetition, unless the interval is longer. After that pause only the interval counts again.
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Maximum number of entries of an index that is read together with others.
const SMALL_INDEX: usize = 100;

/// Repairs the subject indexes and finds sessions whose key is missing.
pub struct IndexReconciler {
    /// Due sets, with the store and the policies of the sessions.
    pub due_sets: DueSets,
    /// Rollbacks, after each of which the store is reconciled.
    pub rollbacks: Arc<Rollbacks>,
    /// Time between two reconciliations of the whole store.
    pub interval: Duration,
}

impl IndexReconciler {
    /// Removes the index entries of sessions that this instance ended or made anonymous. Never returns.
    pub async fn remove_ended(&self) {
        let rollbacks = self.rollbacks.subscribe();
        loop {
            let mut removals: HashMap<Subject, Vec<(SessionId, Option<u64>)>> = HashMap::new();
            for Left { subject, id, reason } in self.due_sets.store.left().await {
                let added_until = match reason {
                    // An end from before a rollback may have been lost.
                    LeaveReason::Ended(at) if at.elapsed() < REMOVE_WITHIN && at > rollbacks.borrow().last => None,
                    LeaveReason::Ended(_) => continue,
                    LeaveReason::Left { at } => Some(at),
                };
                removals.entry(subject).or_default().push((id, added_until));
            }
            let calls = removals
                .iter()
                .map(|(subject, ids)| self.due_sets.store.remove(subject, ids.iter().copied(), deadline()));
            for removed in futures_util::future::join_all(calls).await {
                if let Err(error) = removed {
                    tracing::debug!(%error, "index entry removal failed; left to the next reconciliation");
                }
            }
        }
    }

    /// Reconciles the store once per interval, and after a rollback. Repeats it with growing pauses while a part fails.
    /// Never returns.
    pub async fn run(&self) {
        let mut rollbacks = self.rollbacks.subscribe();
        // End of the reservations from before the last rollback.
        let mut reserved_until = None;
        // Last pause before a repetition, and time of the next reconciliation that needs no claim.
        let (mut pause, mut due) = (None, None);
        let mut next = Instant::now() + self.period();
        loop {
            tokio::select! {
                () = sleep_until(due.unwrap_or(next)) => {
                    if due.is_none() && !self.has_turn().await {
                        next = Instant::now() + self.period();
                        continue;
                    }
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
    async fn has_turn(&self) -> bool {
        let periods = [self.interval; 2];
        self.due_sets.store.claim(Partition(0), Claim::Reconciliation, periods, deadline()).await.unwrap_or(true)
    }

    /// Checks the whole store and returns the number of parts that failed. A failure does not stop the other parts.
    async fn reconcile(&self) -> u32 {
        let started = Instant::now();
        let mut progress = Progress::default();
        for partition in self.due_sets.store.partitions() {
            let mut pages = match self.due_sets.pages(partition).await {
                Ok(pages) => pages,
                Err(error) => {
                    progress.count(0, Err(error));
                    continue;
                }
            };
            while let Some(page) = pages.next().await {
                self.add_missing_entries(page, &mut progress).await;
            }
        }
        let mut from = Some(ScanPosition::default());
        while let Some(position) = from {
            from = match self.due_sets.store.scan(ScanScope::All, position, deadline()).await {
                Ok(page) => {
                    let scheduled = self.due_sets.schedule(page.sessions).await;
                    self.add_missing_entries(scheduled, &mut progress).await;
                    self.remove_dead_entries(page.subjects, &mut progress).await;
                    sleep(PAGE_PAUSE).await;
                    page.next
                }
                Err(error) => {
                    progress.count(0, Err(error));
                    Some(position.next_server())
                }
            };
        }
        let Progress { repaired, failures } = progress;
        self.due_sets.metrics.index_repairs.inc_by(repaired);
        if repaired > 0 || failures > 0 {
            tracing::info!(repaired, failures, took = ?started.elapsed(), "subject indexes reconciled");
        }
        failures
    }

    /// Adds those of these live sessions that are missing in their subject index.
    async fn add_missing_entries(&self, page: Result<Vec<(Subject, SessionId)>, Error>, progress: &mut Progress) {
        let sessions = match page {
            Ok(sessions) => sessions,
            Err(error) => return progress.count(0, Err(error)),
        };
        let Partial { found, error } = self.due_sets.store.missing_in_indexes(sessions, deadline()).await;
        progress.count(0, error.map_or(Ok(()), Err));
        for (subject, id) in found {
            let admitted = self.due_sets.store.reserve(&subject, id, 0, Limit::NONE, deadline()).await;
            progress.count(u64::from(admitted.is_ok()), admitted.map(drop));
        }
    }

    /// Removes the entries of subject indexes that have no live session. Small indexes are checked together.
    async fn remove_dead_entries(&self, subjects: Vec<Subject>, progress: &mut Progress) {
        let store = &self.due_sets.store;
        let Partial { found, error } = store.first_entries(subjects, SMALL_INDEX, deadline()).await;
        progress.count(0, error.map_or(Ok(()), Err));
        let (small, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, entries)| entries.is_some());
        let mut all = Vec::new();
        for (subject, entries) in small {
            all.extend(entries.into_iter().flatten().map(|entry| (subject.clone(), entry)));
        }
        let Partial { found, error } = store.entries_without_session(all, deadline()).await;
        progress.count(0, error.map_or(Ok(()), Err));
        let mut suspects: HashMap<Subject, Vec<IndexEntry>> = HashMap::new();
        for (subject, entry) in found {
            suspects.entry(subject).or_default().push(entry);
        }
        for (subject, entries) in suspects {
            progress.count_repairs(self.remove_if_dead(&subject, &entries).await);
        }
        for (subject, _) in others {
            progress.count_repairs(self.remove_dead_entries_of(&subject).await);
        }
    }

    async fn remove_if_dead(&self, subject: &Subject, entries: &[IndexEntry]) -> Result<u64, Error> {
        let policy = self.due_sets.policies.of_stored(&subject.namespace);
        self.due_sets.store.remove_dead(subject, entries, policy, deadline()).await
    }

    /// Removes the entries of a large subject index that have no live session. Returns the number removed.
    async fn remove_dead_entries_of(&self, subject: &Subject) -> Result<u64, Error> {
        let (mut after, mut repaired) = (0, 0);
        loop {
            let entries = self.due_sets.store.entries_after(None, subject, after, None, INDEX_PAGE, deadline()).await?;
            let Some(last) = entries.last() else { break };
            after = last.added;
            for entries in entries.chunks(PER_SCRIPT) {
                repaired += self.remove_if_dead(subject, entries).await?;
                sleep(PAGE_PAUSE).await;
            }
        }
        Ok(repaired)
    }
}

/// Repairs and failures of a reconciliation.
#[derive(Default)]
struct Progress {
    repaired: u64,
    failures: u32,
}

impl Progress {
    fn count(&mut self, repairs: u64, outcome: Result<(), Error>) {
        self.repaired += repairs;
        if let Err(error) = outcome {
            tracing::debug!(%error, "reconciliation failed in part; retrying");
            // A key of another type stays until the key repairer or an operator deletes it.
            self.failures += u32::from(!error.is_wrong_type());
        }
    }

    fn count_repairs(&mut self, repairs: Result<u64, Error>) {
        match repairs {
            Ok(repairs) => self.count(repairs, Ok(())),
            Err(error) => self.count(0, Err(error)),
        }
    }
}
