//! Keeps the subjects' indexes true: forgets what has left them, and repairs what a crash or a failover left behind.
//!
//! Every instance forgets what it ended itself. The audit walks through everything, both ways: a session that lives is in
//! its subject's index, and an entry of an index has a session. One instance does it at a time, and each at once after
//! history was rewound, for then the two may have been rewound to different moments.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    observe::Metrics,
    session::{Namespace, Policies, Policy, Proof, Session, SessionId, SessionName, Subject, View},
    store::{Admitted, Error, Found, IndexEntry, Left, Limit, ListPosition, Partition, Store, Why},
    watch::Hub,
};

/// Entries and sessions looked at, at once; then other work has its turn.
const BATCH: usize = 100;
const REST: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(2);
/// A tombstone stands for 60 s at least. What waited longer than this to be forgotten is left to the audit.
const TOO_LATE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

pub struct Auditor {
    pub store: Arc<Store>,
    pub hub: Arc<Hub>,
    pub policies: Arc<Policies>,
    pub metrics: Arc<Metrics>,
    /// Between two audits of the store.
    pub interval: Duration,
}

impl Auditor {
    /// Forgets what has left its subject, for ever.
    pub async fn tidy(&self) {
        loop {
            let mut ended: HashMap<Subject, Vec<SessionId>> = HashMap::new();
            for Left { subject, id, why } in self.store.left().await {
                match why {
                    Why::Ended(at) if at.elapsed() < TOO_LATE => ended.entry(subject).or_default().push(id),
                    Why::Ended(_) => {}
                    Why::Perhaps => {
                        let tidied = self.tidy_one(&subject, id).await;
                        self.note(&tidied);
                    }
                }
            }
            let forgets = ended
                .iter()
                .map(|(subject, ids)| self.store.forget(subject, ids.iter().map(|id| (*id, None)), deadline()));
            for forgotten in futures_util::future::join_all(forgets).await {
                self.note(&forgotten);
            }
        }
    }

    fn note<T>(&self, tidied: &Result<T, Error>) {
        if let Err(error) = tidied {
            tracing::debug!(%error, "a subject's index could not be tidied; the next audit does it");
        }
    }

    async fn tidy_one(&self, subject: &Subject, id: SessionId) -> Result<(), Error> {
        match self.store.added(subject, id, deadline()).await? {
            Some(added) => self.audit_entries(subject, &[IndexEntry { id, added }]).await.map(drop),
            None => Ok(()),
        }
    }

    /// Audits the store whenever it is time, for ever.
    pub async fn run(&self) {
        loop {
            let jitter = self.interval.mul_f64(f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX) / 10.0);
            let is_urgent = tokio::select! {
                () = sleep(self.interval + jitter) => false,
                () = self.hub.rewound() => true,
            };
            let mut audited = self.audit(is_urgent).await;
            while let Err(error) = audited {
                tracing::debug!(%error, "the audit failed; it is repeated");
                sleep(RETRY).await;
                audited = self.audit(is_urgent).await;
            }
        }
    }

    async fn audit(&self, is_urgent: bool) -> Result<(), Error> {
        if !is_urgent && !self.store.claim_audit(self.interval, deadline()).await? {
            return Ok(());
        }
        let started = Instant::now();
        let mut repaired = 0;
        for partition in self.store.partitions() {
            for namespace in self.store.namespaces(partition, deadline()).await? {
                repaired += self.audit_sessions(partition, &namespace).await?;
            }
        }
        let mut cursor = 0;
        loop {
            let (subjects, next) = self.store.subjects(cursor, deadline()).await?;
            for subject in subjects {
                repaired += self.audit_subject(&subject).await?;
            }
            if next == 0 {
                break;
            }
            cursor = next;
        }
        if repaired > 0 {
            tracing::info!(repaired, took = ?started.elapsed(), "subjects' indexes were repaired");
        }
        Ok(())
    }

    fn policy(&self, namespace: &Namespace) -> &Policy {
        self.policies.of(namespace).unwrap_or(&self.policies.default)
    }

    /// Adds what lives and is in no index.
    async fn audit_sessions(&self, partition: Partition, namespace: &Namespace) -> Result<u64, Error> {
        let mut repaired = 0;
        let mut next = Some(ListPosition::After(partition, None));
        while let Some(from) = next.filter(|next| next.partition() == Some(partition)) {
            let (ids, then) = self.store.list(namespace, from, BATCH, deadline()).await?;
            let looks = ids.into_iter().map(async |id| {
                let name = SessionName { namespace: namespace.clone(), id };
                match self.store.look(&name, Proof::Named, View::Basic, deadline()).await {
                    Ok(Found::Session(session, _)) => self.is_added_anew(session).await,
                    Ok(_) | Err(Error::Corrupt { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            });
            for added in futures_util::future::join_all(looks).await {
                repaired += u64::from(added?);
            }
            sleep(REST).await;
            next = then;
        }
        self.metrics.index_repairs.inc_by(repaired);
        Ok(repaired)
    }

    /// Whether the session was in no index, and is now.
    async fn is_added_anew(&self, session: Session) -> Result<bool, Error> {
        let subject = Subject { namespace: session.name.namespace, name: session.subject };
        if subject.name.is_empty() || self.store.added(&subject, session.name.id, deadline()).await?.is_some() {
            return Ok(false);
        }
        let admitted = self.store.admit(&subject, session.name.id, Limit::NONE, deadline()).await?;
        Ok(matches!(admitted, Admitted::InPlaceOf(_)))
    }

    /// Forgets the entries of a subject that have no session.
    async fn audit_subject(&self, subject: &Subject) -> Result<u64, Error> {
        let (mut after, mut repaired) = (0, 0);
        loop {
            let entries = self.store.entries_after(subject, after, deadline()).await?;
            let Some(last) = entries.last() else { break };
            after = last.added;
            for entries in entries.chunks(BATCH) {
                repaired += self.audit_entries(subject, entries).await?;
                sleep(REST).await;
            }
        }
        self.metrics.index_repairs.inc_by(repaired);
        Ok(repaired)
    }

    async fn audit_entries(&self, subject: &Subject, entries: &[IndexEntry]) -> Result<u64, Error> {
        let policy = self.policy(&subject.namespace);
        let looks = entries.iter().map(|entry| self.store.counts(subject, *entry, policy, deadline()));
        let mut gone = Vec::new();
        for (entry, counts) in entries.iter().zip(futures_util::future::join_all(looks).await) {
            if !counts? {
                gone.push((entry.id, Some(entry.added)));
            }
        }
        self.store.forget(subject, gone.iter().copied(), deadline()).await?;
        Ok(gone.len() as u64)
    }
}

fn deadline() -> Instant {
    Instant::now() + TIMEOUT
}
