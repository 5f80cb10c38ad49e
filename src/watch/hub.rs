//! The ring, who waits for what in it, and how far it is known to be complete.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    observe::Metrics,
    session::{Change, Namespace, SessionId, SessionName},
    store::{self, Partition, Position, StoreId},
};

use super::{
    deadlines::Deadlines,
    filter::{Filter, Scope},
    pages::Pages,
    registration::{Registration, Shared, Watcher},
    ring::{Item, Link, Lost, Missed, Resync, Ring},
    token::ResumeToken,
    vanished::Vanished,
};

/// Bytes kept for watchers that are a little behind; beyond it they read the log.
const RING_BYTES: usize = 64 * 1024 * 1024;
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Slots and their bytes that a watcher takes in one go: what a stalled one may hold on to.
pub(super) const TAKE_SLOTS: usize = 256;
pub(super) const TAKE_BYTES: usize = 1024 * 1024;

/// The server has as many watches as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimitReached;

/// A reading of all tails: what stood in the logs by then is in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// Time of Redis in us when the reading began.
    pub as_of: u64,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Taken,
    /// From before the place where the partition stands: read from the log already, or of another branch, which the
    /// next reading of the tail finds out.
    Stale,
    /// Something is missing before it.
    Gap,
}

/// Where a feed's changes meet the watchers.
pub struct Hub {
    pub(super) state: Mutex<State>,
    refreshes: mpsc::UnboundedSender<oneshot::Sender<Verified>>,
    requests: Mutex<Option<mpsc::UnboundedReceiver<oneshot::Sender<Verified>>>>,
    pub deadlines: Deadlines,
    pub vanished: Vanished,
    pub(super) pages: Pages,
    rewound: watch::Sender<Rewound>,
    pub metrics: Arc<Metrics>,
    limits: Limits,
    made: Instant,
}

/// That history was, or may have been, rewound.
#[derive(Clone, Copy, Debug)]
pub struct Rewound {
    /// What was read while this changed may be of two histories.
    pub times: u64,
    /// The last time; at first, when this process began.
    pub last: Instant,
}

/// What the watchers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub watches: usize,
    /// How long one may read nothing.
    pub patience: Duration,
    /// Changes kept for those that are a little behind.
    pub ring_slots: usize,
}

pub(super) struct State {
    pub ring: Ring,
    /// Where each partition stands after the last slot.
    pub at: ResumeToken,
    pub token: Bytes,
    pub watchers: HashMap<u64, Watcher>,
    /// Watches that are open: also those that were left, and whose last word nobody reads.
    pub open: usize,
    next_watcher: u64,
    /// What the last rewind took back.
    lost: HashSet<(Partition, Position)>,
    /// When it was last looked who is slow, in ms since the hub was made.
    looked_at: u64,
    /// Who waits for a session, who for a namespace, who for a subject of it.
    by_session: HashMap<SessionName, Vec<u64>>,
    by_namespace: HashMap<Namespace, Vec<u64>>,
    by_subject: HashMap<Namespace, HashMap<String, Vec<u64>>>,
}

impl Hub {
    pub fn new(store: StoreId, tails: Vec<Position>, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let (refreshes, requests) = mpsc::unbounded_channel();
        let partitions = tails.len();
        let deadlines = Deadlines::new(partitions);
        let at = ResumeToken { store, positions: tails };
        let state = State {
            ring: Ring::new(limits.ring_slots, RING_BYTES),
            token: at.encode(),
            at,
            watchers: HashMap::new(),
            open: 0,
            next_watcher: 0,
            lost: HashSet::new(),
            looked_at: 0,
            by_session: HashMap::new(),
            by_namespace: HashMap::new(),
            by_subject: HashMap::new(),
        };
        Hub {
            state: Mutex::new(state),
            refreshes,
            requests: Mutex::new(Some(requests)),
            deadlines,
            vanished: Vanished::new(partitions),
            pages: Pages::new(partitions),
            rewound: watch::Sender::new(Rewound { times: 0, last: Instant::now() }),
            metrics,
            limits,
            made: Instant::now(),
        }
    }

    /// Waits until everything that stood in the logs when this was called is in the ring; None = Redis does not answer.
    pub async fn refresh(&self) -> Option<Verified> {
        self.verify()?.await.ok()
    }

    /// The same, told later.
    pub fn verify(&self) -> Option<oneshot::Receiver<Verified>> {
        let (answer, verified) = oneshot::channel();
        self.refreshes.send(answer).ok()?;
        Some(verified)
    }

    pub(super) fn take_requests(&self) -> mpsc::UnboundedReceiver<oneshot::Sender<Verified>> {
        self.requests.lock().take().expect("a hub has one feed")
    }

    /// Where a partition stands.
    pub(super) fn position(&self, partition: Partition) -> Position {
        self.state.lock().at.positions[partition.index()]
    }

    /// Takes the entry in, if and only if it is the next one of its partition.
    pub(super) fn push(&self, entry: store::Entry) -> Pushed {
        let mut state = self.state.lock();
        if state.lost.contains(&(entry.partition, entry.position)) {
            // Still under way when it was taken back.
            return Pushed::Stale;
        }
        let at = &mut state.at.positions[entry.partition.index()];
        if entry.previous != *at {
            let is_stale = entry.position.revision <= at.revision;
            return if is_stale { Pushed::Stale } else { Pushed::Gap };
        }
        *at = entry.position;
        self.metrics.events_received.inc();
        if let Change::Ended(_) = entry.event.change {
            self.vanished.note_end(entry.partition, &entry.event.session.name);
        }
        if let Some(deadline) = entry.event.session.expires() {
            self.deadlines.note(entry.partition, deadline.0);
        }
        state.append(Item::Change(Link::new(entry)));
        Pushed::Taken
    }

    /// The same, from the log: what stands there is not lost, or not any more.
    pub(super) fn push_from_log(&self, entry: store::Entry) -> Pushed {
        self.state.lock().lost.remove(&(entry.partition, entry.position));
        self.push(entry)
    }

    /// Goes on from these positions, and tells everybody that changes were missed.
    pub(super) fn restart(&self, reason: Resync, store: StoreId, positions: Vec<(Partition, Position)>) {
        let mut state = self.state.lock();
        state.at.store = store;
        for (partition, position) in positions {
            self.pages.forget(partition);
            state.at.positions[partition.index()] = position;
            self.deadlines.note(partition, 0);
        }
        state.append(Item::Missed(Arc::new(Missed { reason, lost: None })));
        if reason != Resync::Compacted {
            self.note_rewind();
        }
    }

    /// The changes of a partition up to where it stands, the newest first; as far as the ring has them.
    pub(super) fn history(&self, partition: Partition) -> Vec<Link> {
        let state = self.state.lock();
        state.ring.history(partition, state.at.positions[partition.index()])
    }

    /// Goes back to where history forked, and tells those of whom something was lost.
    pub(super) fn rewind(&self, lost: Lost) {
        let mut state = self.state.lock();
        state.lost = lost.links.iter().map(|link| (link.partition, link.position)).collect();
        for (partition, position) in &lost.from {
            self.pages.forget(*partition);
            state.at.positions[partition.index()] = *position;
            self.deadlines.note(*partition, 0);
        }
        state.append(Item::Missed(Arc::new(Missed { reason: Resync::RolledBack, lost: Some(lost) })));
        self.note_rewind();
    }

    /// What took back the change at this position; None = not known here.
    pub(super) fn taken_back(&self, partition: Partition, position: Position) -> Option<Arc<Missed>> {
        self.state.lock().ring.taken_back(partition, position)
    }

    /// Also where it may have been, and no log shows it.
    pub(super) fn note_rewind(&self) {
        self.rewound.send_modify(|rewound| *rewound = Rewound { times: rewound.times + 1, last: Instant::now() });
    }

    /// What history has been through; told whenever it is, or may have been, rewound.
    pub fn rewound(&self) -> watch::Receiver<Rewound> {
        self.rewound.subscribe()
    }

    pub(super) fn times_rewound(&self) -> u64 {
        self.rewound.borrow().times
    }

    /// To be called every [`LOOK_EVERY`]: takes leave of watchers that have read nothing for too long; their last word
    /// waits until they read again.
    pub(super) fn leave_slow(&self) {
        let now = self.millis();
        let mut state = self.state.lock();
        // Where this process stood still so did they all.
        if now.saturating_sub(state.looked_at) > 2 * LOOK_EVERY.as_millis() as u64 {
            state.watchers.values().for_each(|watcher| watcher.shared.went_on.store(now, Ordering::Relaxed));
        }
        state.looked_at = now;
        let is_slow = |watcher: &Watcher| {
            now.saturating_sub(watcher.shared.went_on.load(Ordering::Relaxed)) > watcher.shared.patience
        };
        let slow: Vec<u64> = state.watchers.iter().filter(|(_, watcher)| is_slow(watcher)).map(|(id, _)| *id).collect();
        for id in slow {
            self.metrics.slow_watchers.inc();
            self.remove(&mut state, id);
        }
    }

    pub(super) fn remove(&self, state: &mut State, id: u64) {
        if let Some(watcher) = state.watchers.remove(&id) {
            watcher.concerns.each(state, |waiting| waiting.retain(|other| *other != id));
            self.metrics.watchers.dec();
        }
    }

    pub(super) fn millis(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }

    /// Registers a watcher that its reader lets go on once in this interval at least; it is told of what comes after the
    /// returned token.
    pub fn register(
        self: &Arc<Self>,
        filter: &Filter,
        interval: Duration,
    ) -> Result<(Registration, ResumeToken), WatchLimitReached> {
        let mut state = self.state.lock();
        if state.open >= self.limits.watches {
            return Err(WatchLimitReached);
        }
        state.open += 1;
        let id = state.next_watcher;
        state.next_watcher += 1;
        let concerns = match &filter.scope {
            Scope::Namespace => Concerns::Namespace(filter.namespace.clone()),
            Scope::Ids(ids) => Concerns::Sessions(filter.namespace.clone(), ids.iter().copied().collect()),
            Scope::Subject(subject) => Concerns::Subject(filter.namespace.clone(), subject.clone()),
        };
        concerns.each(&mut state, |waiting| waiting.push(id));
        self.metrics.watchers.inc();
        let patience = (self.limits.patience + interval).as_millis() as u64;
        let shared = Arc::new(Shared { wake: Notify::new(), went_on: AtomicU64::new(self.millis()), patience });
        state.watchers.insert(id, Watcher { first: None, concerns, shared: shared.clone() });
        let at = state.at.clone();
        Ok((Registration { hub: self.clone(), id, shared }, at))
    }
}

impl State {
    fn append(&mut self, item: Item) {
        self.token = self.at.encode();
        let number = self.ring.end();
        let mut tell = |watcher: &mut Watcher| {
            watcher.first.get_or_insert(number);
            watcher.shared.wake.notify_one();
        };
        match &item {
            Item::Missed(_) => self.watchers.values_mut().for_each(&mut tell),
            Item::Change(link) => {
                let (session, before) = (&link.entry.event.session, &link.entry.event.before);
                let by_session = self.by_session.get(&session.name).into_iter().flatten();
                let by_namespace = self.by_namespace.get(&session.name.namespace).into_iter().flatten();
                let subjects = self.by_subject.get(&session.name.namespace);
                // Whose it was is not known of one that vanished.
                let all = subjects.filter(|_| session.is_bare()).into_iter().flat_map(HashMap::values);
                let after = subjects.and_then(|subjects| subjects.get(&session.subject));
                let before = before.as_ref().filter(|before| before.subject != session.subject);
                let before = before.and_then(|before| subjects?.get(&before.subject));
                let by_subject = all.chain(after).chain(before).flatten();
                for id in by_session.chain(by_namespace).chain(by_subject) {
                    self.watchers.get_mut(id).into_iter().for_each(&mut tell);
                }
            }
        }
        self.ring.push(item, self.token.clone());
    }
}

/// Which changes wake a watcher.
pub(super) enum Concerns {
    Namespace(Namespace),
    Sessions(Namespace, Vec<SessionId>),
    Subject(Namespace, String),
}

impl Concerns {
    fn each(&self, state: &mut State, mut change: impl FnMut(&mut Vec<u64>)) {
        match self {
            Concerns::Namespace(namespace) => {
                let waiting = state.by_namespace.entry(namespace.clone()).or_default();
                change(waiting);
                if waiting.is_empty() {
                    state.by_namespace.remove(namespace);
                }
            }
            Concerns::Subject(namespace, subject) => {
                let subjects = state.by_subject.entry(namespace.clone()).or_default();
                let waiting = subjects.entry(subject.clone()).or_default();
                change(waiting);
                if waiting.is_empty() {
                    subjects.remove(subject);
                }
                if subjects.is_empty() {
                    state.by_subject.remove(namespace);
                }
            }
            Concerns::Sessions(namespace, ids) => {
                for id in ids {
                    let name = SessionName { namespace: namespace.clone(), id: *id };
                    let waiting = state.by_session.entry(name.clone()).or_default();
                    change(waiting);
                    if waiting.is_empty() {
                        state.by_session.remove(&name);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
