//! Keeps the subjects' indexes true: forgets what has left them, and repairs what a crash or a failover left behind. Finds
//! sessions whose keys vanished unheard, too.
//!
//! Every instance forgets what it ended itself. The audit walks through everything, both ways: a session that lives is in
//! its subject's index, and an entry of an index has a session. One instance does it at a time, and each at once after
//! history was rewound, for then the two may have been rewound to different moments.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    observe::Metrics,
    session::{Namespace, Policies, Policy, Proof, Session, SessionId, SessionName, Subject, View},
    store::{
        Admitted, Error, Found, INDEX_PAGE, JOINING, Left, Limit, ListPosition, Partition, ScanPosition, Store, Why,
    },
    watch::Hub,
};

/// Entries and sessions looked at, at once; then other work has its turn.
const BATCH: usize = 100;
const REST: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(2);
/// A tombstone stands for 60 s at least. What waited longer than this to be forgotten is left to the audit.
const FORGET_WITHIN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Where several instances missed something one of them looks: it has listened since it claimed that, so what vanished
/// later it heard of. Only who claimed it last does not count on that.
const CLAIM_OF_ONE: Duration = Duration::from_secs(1);

pub struct Auditor {
    store: Arc<Store>,
    hub: Arc<Hub>,
    policies: Arc<Policies>,
    metrics: Arc<Metrics>,
    /// Between two audits of the store.
    interval: Duration,
}

impl Auditor {
    pub fn new(
        store: Arc<Store>,
        hub: Arc<Hub>,
        policies: Arc<Policies>,
        metrics: Arc<Metrics>,
        interval: Duration,
    ) -> Self {
        Auditor { store, hub, policies, metrics, interval }
    }

    /// Forgets what has left its subject, for ever.
    pub async fn tidy(&self) {
        let rewound = self.hub.rewound();
        loop {
            let mut gone: HashMap<Subject, Vec<(SessionId, Option<u64>)>> = HashMap::new();
            for Left { subject, id, why } in self.store.left().await {
                let added_by = match why {
                    // An ending from before a rewind may not have happened.
                    Why::Ended(at) if at.elapsed() < FORGET_WITHIN && at > rewound.borrow().last => None,
                    Why::Ended(_) => continue,
                    Why::Left { at } => Some(at),
                };
                gone.entry(subject).or_default().push((id, added_by));
            }
            let forgets = gone.iter().map(|(subject, ids)| self.store.forget(subject, ids.iter().copied(), deadline()));
            for forgotten in futures_util::future::join_all(forgets).await {
                if let Err(error) = forgotten {
                    tracing::debug!(%error, "a subject's index could not be tidied; the next audit does it");
                }
            }
        }
    }

    /// Audits the store whenever it is time, for ever; and again while a part of it failed, ever later.
    pub async fn run(&self) {
        let (mut claimed, mut rewound, mut joined) = (None, self.hub.rewound(), None);
        // The pause before an audit that failed is repeated, and when one is due that nobody else makes.
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
                // Of some that vanished nothing was heard.
                () = self.hub.vanished.missed() => {
                    let is_ours = claimed.is_some_and(|at: Instant| at.elapsed() < 2 * CLAIM_OF_ONE);
                    if !self.has_turn(CLAIM_OF_ONE).await && !is_ours {
                        continue;
                    }
                    (claimed, pause) = (Some(Instant::now()), None);
                }
                Ok(()) = rewound.changed() => (joined, pause) = (Some(Instant::now() + JOINING), None),
            }
            let failures = self.walk().await;
            pause = match (failures, pause) {
                (0, _) => None,
                (_, None) => Some(RETRY),
                (_, Some(pause)) => Some(2 * pause).filter(|pause| *pause <= self.interval.max(LONGEST_RETRY)),
            };
            // What was under way at a rewind may have lost its place in an index.
            due = if failures == 0 { joined.take() } else { pause.map(|pause| Instant::now() + pause) };
            next = Instant::now() + self.period();
        }
    }

    /// Until the next audit that nothing calls for.
    fn period(&self) -> Duration {
        let jitter = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX) / 10.0;
        self.interval.mul_f64(1.0 + jitter)
    }

    /// Whether this instance is the one to audit in this period. Where the server does not answer that says so, all are: the
    /// others may have lost something meanwhile.
    async fn has_turn(&self, period: Duration) -> bool {
        self.store.claim_audit(period, deadline()).await.unwrap_or(true)
    }

    /// Walks through everything. What fails hinders nothing else; how often something did.
    async fn walk(&self) -> u32 {
        let started = Instant::now();
        let (mut repaired, mut failures) = (0, 0);
        let mut count = |what: Result<u64, Error>| match what {
            Ok(repairs) => {
                repaired += repairs;
                self.metrics.index_repairs.inc_by(repairs);
            }
            Err(error) => {
                tracing::debug!(%error, "a part of the audit failed; it is repeated");
                failures += 1;
            }
        };
        for partition in self.store.partitions() {
            match self.store.namespaces(partition, deadline()).await {
                Ok(namespaces) => {
                    for namespace in namespaces {
                        count(self.audit_sessions(partition, &namespace).await);
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
                        count(self.audit_subject(&subject).await);
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
            tracing::info!(repaired, failures, took = ?started.elapsed(), "subjects' indexes were audited");
        }
        failures
    }

    fn policy(&self, namespace: &Namespace) -> &Policy {
        self.policies.of(namespace).unwrap_or(&self.policies.default)
    }

    /// Adds what lives and is in no index.
    async fn audit_sessions(&self, partition: Partition, namespace: &Namespace) -> Result<u64, Error> {
        let (mut repaired, mut failed) = (0, None);
        let mut next = Some(ListPosition::After(partition, None));
        while let Some(from) = next.filter(|next| next.partition() == Some(partition)) {
            let (ids, then) = self.store.list(namespace, from, BATCH, deadline()).await?;
            let looks = ids.into_iter().map(async |id| {
                let name = SessionName { namespace: namespace.clone(), id };
                match self.store.look(&name, Proof::Named, View::Basic, deadline()).await {
                    Ok(Found::Session(session, _)) => self.is_added_anew(session).await,
                    // It is due at some time, and gone: behind our back, unless it ended just now.
                    Ok(Found::NotFound) => {
                        self.hub.vanished.note(partition, name);
                        Ok(false)
                    }
                    Ok(_) | Err(Error::Corrupt { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            });
            for added in futures_util::future::join_all(looks).await {
                match added {
                    Ok(added) => repaired += u64::from(added),
                    // Its subject's index may lie on another server. The others are looked at all the same.
                    Err(error) => failed = Some(error),
                }
            }
            sleep(REST).await;
            next = then;
        }
        failed.map_or(Ok(repaired), Err)
    }

    /// Whether the session was in no index, and is now.
    async fn is_added_anew(&self, session: Session) -> Result<bool, Error> {
        let subject = Subject { namespace: session.name.namespace, name: session.subject };
        if subject.name.is_empty() || self.store.added(&subject, session.name.id, deadline()).await?.is_some() {
            return Ok(false);
        }
        let admitted = self.store.admit(&subject, session.name.id, 0, Limit::NONE, deadline()).await?;
        Ok(matches!(admitted, Admitted::InPlaceOf(..)))
    }

    /// Forgets the entries of a subject that have no session.
    async fn audit_subject(&self, subject: &Subject) -> Result<u64, Error> {
        let (mut after, mut repaired) = (0, 0);
        loop {
            let entries = self.store.entries_after(subject, after, INDEX_PAGE, deadline()).await?;
            let Some(last) = entries.last() else { break };
            after = last.added;
            for entries in entries.chunks(BATCH) {
                let policy = self.policy(&subject.namespace);
                repaired += self.store.forget_dead(subject, entries, policy, deadline()).await?;
                sleep(REST).await;
            }
        }
        Ok(repaired)
    }
}

fn deadline() -> Instant {
    Instant::now() + TIMEOUT
}
