//! The ring, who waits for what in it, and how far it is known to be complete.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    observe::Metrics,
    session::{Namespace, SessionId, SessionName},
    store::{self, Partition, Position, StoreId},
};

use super::{
    deadlines::Deadlines,
    filter::{Filter, Scope},
    ring::{Entry, Item, Resync, Ring, Slot},
    token::ResumeToken,
};

/// Entries and bytes kept for watchers that are a little behind; beyond it they read the log.
const RING_SLOTS: usize = 65_536;
const RING_BYTES: usize = 64 * 1024 * 1024;
/// Slots and their bytes that a watcher takes in one go: what a stalled one may hold on to.
const TAKE_SLOTS: usize = 256;
const TAKE_BYTES: usize = 1024 * 1024;

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
    state: Mutex<State>,
    refreshes: mpsc::UnboundedSender<oneshot::Sender<Verified>>,
    requests: Mutex<Option<mpsc::UnboundedReceiver<oneshot::Sender<Verified>>>>,
    pub deadlines: Deadlines,
    rewinds: Notify,
    pub metrics: Arc<Metrics>,
    max_watches: usize,
}

struct State {
    ring: Ring,
    /// Where each partition stands after the last slot.
    at: ResumeToken,
    token: Bytes,
    watchers: HashMap<u64, Watcher>,
    next_watcher: u64,
    /// Who waits for a session, who for a namespace, who for a subject of it.
    by_session: HashMap<SessionName, Vec<u64>>,
    by_namespace: HashMap<Namespace, Vec<u64>>,
    by_subject: HashMap<Namespace, HashMap<String, Vec<u64>>>,
}

struct Watcher {
    /// Number of the first slot that concerns it and that it has not taken.
    first: Option<u64>,
    wake: Arc<Notify>,
}

/// What a watcher takes from the ring.
pub enum Taken {
    /// Slots in order, the first and perhaps later ones of its concern.
    Slots(Vec<Slot>),
    /// Nothing that concerns it, up to this token.
    Nothing(Bytes),
    /// It fell off the ring: what it has not taken is in the log.
    FellOff,
}

impl Hub {
    pub fn new(store: StoreId, tails: Vec<Position>, max_watches: usize, metrics: Arc<Metrics>) -> Self {
        let (refreshes, requests) = mpsc::unbounded_channel();
        let deadlines = Deadlines::new(tails.len());
        let at = ResumeToken { store, positions: tails };
        let state = State {
            ring: Ring::new(RING_SLOTS, RING_BYTES),
            token: at.encode(),
            at,
            watchers: HashMap::new(),
            next_watcher: 0,
            by_session: HashMap::new(),
            by_namespace: HashMap::new(),
            by_subject: HashMap::new(),
        };
        Hub {
            state: Mutex::new(state),
            refreshes,
            requests: Mutex::new(Some(requests)),
            deadlines,
            rewinds: Notify::new(),
            metrics,
            max_watches,
        }
    }

    /// Waits until everything that stood in the logs when this was called is in the ring; None = Redis does not answer.
    pub async fn refresh(&self) -> Option<Verified> {
        let (answer, verified) = oneshot::channel();
        self.refreshes.send(answer).ok()?;
        verified.await.ok()
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
        let at = &mut state.at.positions[entry.partition.index()];
        if entry.previous != *at {
            let is_stale = entry.position.revision <= at.revision;
            return if is_stale { Pushed::Stale } else { Pushed::Gap };
        }
        *at = entry.position;
        self.metrics.events_received.inc();
        if let Some(deadline) = entry.event.session.expires() {
            self.deadlines.note(entry.partition, deadline.0);
        }
        state.append(Item::Change(Arc::new(Entry::new(entry.event))));
        Pushed::Taken
    }

    /// Goes on from these positions, and tells everybody that changes were missed.
    pub(super) fn restart(&self, reason: Resync, store: StoreId, positions: Vec<(Partition, Position)>) {
        let mut state = self.state.lock();
        state.at.store = store;
        for (partition, position) in positions {
            state.at.positions[partition.index()] = position;
            self.deadlines.note(partition, 0);
        }
        state.append(Item::Resync(reason));
        if reason != Resync::Compacted {
            self.rewinds.notify_one();
        }
    }

    /// Returns once history was rewound, or emptied, since this was last asked.
    pub async fn rewound(&self) {
        self.rewinds.notified().await;
    }

    /// Registers a watcher; it is told of what comes after the returned token.
    pub fn register(self: &Arc<Self>, filter: &Filter) -> Result<(Registration, ResumeToken), WatchLimitReached> {
        let mut state = self.state.lock();
        if state.watchers.len() >= self.max_watches {
            return Err(WatchLimitReached);
        }
        let id = state.next_watcher;
        state.next_watcher += 1;
        let wake = Arc::new(Notify::new());
        state.watchers.insert(id, Watcher { first: None, wake: wake.clone() });
        let concerns = match &filter.scope {
            Scope::Namespace => Concerns::Namespace(filter.namespace.clone()),
            Scope::Ids(ids) => Concerns::Sessions(filter.namespace.clone(), ids.iter().copied().collect()),
            Scope::Subject(subject) => Concerns::Subject(filter.namespace.clone(), subject.clone()),
        };
        concerns.each(&mut state, |waiting| waiting.push(id));
        self.metrics.watchers.inc();
        let at = state.at.clone();
        Ok((Registration { hub: self.clone(), id, wake, concerns }, at))
    }
}

impl State {
    fn append(&mut self, item: Item) {
        self.token = self.at.encode();
        let number = self.ring.end();
        let mut tell = |watcher: &mut Watcher| {
            watcher.first.get_or_insert(number);
            watcher.wake.notify_one();
        };
        match &item {
            Item::Resync(_) => self.watchers.values_mut().for_each(&mut tell),
            Item::Change(entry) => {
                let (session, before) = (&entry.event.session, &entry.event.before);
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
enum Concerns {
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

/// A watcher's place in the hub; leaves it when dropped.
pub struct Registration {
    hub: Arc<Hub>,
    id: u64,
    wake: Arc<Notify>,
    concerns: Concerns,
}

impl Registration {
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Returns when something that concerns the watcher may have come.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Some of the next slots, from the first that concerns the watcher on. Where there is none the watcher stands at the
    /// ring's end.
    pub fn take(&self) -> Taken {
        let mut guard = self.hub.state.lock();
        let state = &mut *guard;
        let watcher = state.watchers.get_mut(&self.id).expect("registered");
        let Some(first) = watcher.first else {
            return Taken::Nothing(state.token.clone());
        };
        if first < state.ring.first() {
            return Taken::FellOff;
        }
        let mut bytes = 0;
        let fits = |slot: &&Slot| {
            let first_or_fits = bytes < TAKE_BYTES;
            bytes += slot.bytes;
            first_or_fits
        };
        let slots: Vec<Slot> = state.ring.from(first).take(TAKE_SLOTS).take_while(fits).cloned().collect();
        let next = first + slots.len() as u64;
        watcher.first = (next < state.ring.end()).then_some(next);
        Taken::Slots(slots)
    }

    /// Moves the watcher to the ring's end, and says where that is: what stands before it is in the log.
    pub fn skip_to_end(&self) -> ResumeToken {
        let mut state = self.hub.state.lock();
        state.watchers.get_mut(&self.id).expect("registered").first = None;
        state.at.clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        state.watchers.remove(&self.id);
        self.concerns.each(&mut state, |waiting| waiting.retain(|id| *id != self.id));
        self.hub.metrics.watchers.dec();
    }
}
