//! The ring of recent events, the index of watchers that it wakes, and the position up to which it is complete.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    sync::atomic::AtomicU64,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    observe::Metrics,
    session::{Change, Namespace, SessionId, SessionRef},
    store::{self, Partition, Position, StoreId},
};

use super::{
    deadlines::Deadlines,
    eviction::Evicted,
    filter::{Filter, Scope},
    missing_keys::MissingKeys,
    page_cache::PageCache,
    registration::{Registration, Watcher, WatcherProgress},
    resume_token::ResumeToken,
    ring::{Gap, Item, LogEntry, ResyncReason, Ring, RolledBack},
    rollback::Rollbacks,
};

/// Maximum size of the ring. Watchers that need older entries read the log.
const RING_BYTES: usize = 64 * 1024 * 1024;
/// Maximum number of slots that a watcher takes at once. With [`TAKE_BYTES`] it bounds the memory of a stalled watcher.
pub(super) const TAKE_SLOTS: usize = 256;
/// Size in bytes after which a watcher takes no further slot at once.
pub(super) const TAKE_BYTES: usize = 1024 * 1024;

/// Answered when the tails of all logs have been read. Dropped without an answer if Redis cannot be read.
pub(super) type BarrierRequest = oneshot::Sender<TailRead>;

/// The server has as many watches as its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimitReached;

/// A completed read of the tails of all logs. Entries that were in the logs before it are in the ring.
#[derive(Clone, Copy, Debug)]
pub struct TailRead {
    /// Time in us before the read, Redis clock.
    pub as_of: u64,
}

/// What the hub did with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Appended to the ring.
    Appended,
    /// Ignored, because it is not after the partition's position: it was read from the log already, or it is on another
    /// branch of history, which the next tail read detects.
    Stale,
    /// Not appended, because entries before it are missing.
    Gap,
}

/// Passes the events of the feed to the watchers.
pub struct Hub {
    pub(super) state: Mutex<State>,
    barrier_sender: mpsc::UnboundedSender<BarrierRequest>,
    /// Receiver of the barrier requests. None: the feed has taken it.
    barrier_receiver: Mutex<Option<mpsc::UnboundedReceiver<BarrierRequest>>>,
    /// Earliest known session deadline of each partition.
    pub deadlines: Deadlines,
    /// Sessions whose keys may have been deleted out of band.
    pub missing_keys: MissingKeys,
    pub(super) page_cache: PageCache,
    rollbacks: watch::Sender<Rollbacks>,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    pub(super) limits: WatchLimits,
    created: Instant,
}

/// Limits of the watches of this instance.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// Maximum number of open watches.
    pub watches: usize,
    /// Time without progress after which a watcher is a slow consumer; its bookmark interval is added.
    pub slow_consumer_timeout: Duration,
    /// Time after an eviction in which the client must read the final response.
    pub response_timeout: Duration,
    /// Maximum number of slots in the ring.
    pub ring_slots: usize,
    /// Largest size of a session that a policy allows, in bytes.
    pub largest_session: usize,
}

/// State of the hub, behind its lock.
pub(super) struct State {
    pub ring: Ring,
    /// Position of every partition after the last slot.
    pub end: ResumeToken,
    /// `end`, encoded.
    pub end_token: Bytes,
    /// Watchers by number, evicted ones excluded.
    pub watchers: HashMap<u64, Watcher>,
    /// Evicted watchers by number, until they are dropped.
    pub evicted: HashMap<u64, Evicted>,
    /// Number of open watches, including evicted ones whose final response is still unread.
    pub open_watches: usize,
    next_watcher: u64,
    /// Entries that the last rollback removed from the log.
    rolled_back: HashSet<(Partition, Position)>,
    /// Time of the last check for slow consumers, in ms since the hub was created.
    pub(super) last_eviction_ms: u64,
    /// Numbers of the watchers of a session, of a whole namespace, and of a subject.
    by_session: HashMap<SessionRef, Vec<u64>>,
    by_namespace: HashMap<Namespace, Vec<u64>>,
    by_subject: HashMap<Namespace, HashMap<String, Vec<u64>>>,
}

impl Hub {
    /// A hub with an empty ring that continues the logs of `store` after these tails.
    pub fn new(store: StoreId, tails: Vec<Position>, limits: WatchLimits, metrics: Arc<Metrics>) -> Self {
        let (barrier_sender, barrier_receiver) = mpsc::unbounded_channel();
        let partitions = tails.len();
        let end = ResumeToken { store, positions: tails };
        let state = State {
            ring: Ring::new(limits.ring_slots, RING_BYTES),
            end_token: end.encode(),
            end,
            watchers: HashMap::new(),
            evicted: HashMap::new(),
            open_watches: 0,
            next_watcher: 0,
            rolled_back: HashSet::new(),
            last_eviction_ms: 0,
            by_session: HashMap::new(),
            by_namespace: HashMap::new(),
            by_subject: HashMap::new(),
        };
        Hub {
            state: Mutex::new(state),
            barrier_sender,
            barrier_receiver: Mutex::new(Some(barrier_receiver)),
            deadlines: Deadlines::new(partitions),
            missing_keys: MissingKeys::new(partitions),
            page_cache: PageCache::new(partitions),
            rollbacks: watch::Sender::new(Rollbacks { count: 0, last: Instant::now() }),
            metrics,
            limits,
            created: Instant::now(),
        }
    }

    /// Waits until every entry that was in the logs before this call is in the ring. None: Redis cannot be read.
    pub async fn read_barrier(&self) -> Option<TailRead> {
        self.start_read_barrier()?.await.ok()
    }

    /// Starts a read barrier without waiting for it. The receiver fails if Redis cannot be read.
    pub fn start_read_barrier(&self) -> Option<oneshot::Receiver<TailRead>> {
        let (request, read) = oneshot::channel();
        self.barrier_sender.send(request).ok()?;
        Some(read)
    }

    /// Takes the receiver of the barrier requests. Only the feed calls it, once.
    #[expect(clippy::expect_used, reason = "the server starts one feed per hub")]
    pub(super) fn take_barrier_requests(&self) -> mpsc::UnboundedReceiver<BarrierRequest> {
        self.barrier_receiver.lock().take().expect("a hub has one feed")
    }

    /// Position of the last entry of a partition that is in the ring, or was in it.
    pub(super) fn position(&self, partition: Partition) -> Position {
        self.state.lock().end.positions[partition.index()]
    }

    /// Appends an entry from a channel to the ring, if it directly follows the partition's position.
    pub(super) fn push(&self, entry: store::Entry) -> Pushed {
        let mut state = self.state.lock();
        if state.rolled_back.contains(&(entry.partition, entry.position)) {
            // The message was in flight when the rollback was detected.
            return Pushed::Stale;
        }
        let position = &mut state.end.positions[entry.partition.index()];
        if entry.previous != *position {
            return if entry.position.revision <= position.revision { Pushed::Stale } else { Pushed::Gap };
        }
        *position = entry.position;
        self.metrics.events_received.inc();
        if let Change::Ended(_) = entry.event.change {
            self.missing_keys.note_end(entry.partition, &entry.event.session.name);
        }
        if let Some(deadline) = entry.event.session.expires() {
            self.deadlines.note(entry.partition, deadline.0);
        }
        state.append(Item::Entry(LogEntry::new(entry)));
        Pushed::Appended
    }

    /// Appends an entry that was read from the log. It is there, so it no longer counts as rolled back.
    pub(super) fn push_from_log(&self, entry: store::Entry) -> Pushed {
        self.state.lock().rolled_back.remove(&(entry.partition, entry.position));
        self.push(entry)
    }

    /// Appends a gap for all watchers, and continues at these positions.
    pub(super) fn restart_at(&self, reason: ResyncReason, store: StoreId, positions: Vec<(Partition, Position)>) {
        let mut state = self.state.lock();
        state.end.store = store;
        for (partition, position) in positions {
            self.page_cache.invalidate(partition);
            state.end.positions[partition.index()] = position;
            self.deadlines.note(partition, 0);
        }
        state.append(Item::Gap(Arc::new(Gap { reason, rolled_back: None })));
        if reason != ResyncReason::Compacted {
            self.note_rollback();
        }
    }

    /// Returns the entries of a partition up to its position, newest first. It ends with the oldest entry in the ring.
    pub(super) fn history(&self, partition: Partition) -> Vec<LogEntry> {
        let state = self.state.lock();
        state.ring.history(partition, state.end.positions[partition.index()])
    }

    /// Appends a gap for the watchers of the lost entries, and continues at the forks.
    pub(super) fn roll_back(&self, lost: RolledBack) {
        let mut state = self.state.lock();
        state.rolled_back = lost.entries.iter().map(|entry| (entry.partition, entry.position)).collect();
        for (partition, fork) in &lost.forks {
            self.page_cache.invalidate(*partition);
            state.end.positions[partition.index()] = *fork;
            self.deadlines.note(*partition, 0);
        }
        state.append(Item::Gap(Arc::new(Gap { reason: ResyncReason::RolledBack, rolled_back: Some(lost) })));
        self.note_rollback();
    }

    /// Returns the gap of the rollback that removed the entry at this position. None: the ring has no such gap.
    pub(super) fn rollback_of(&self, partition: Partition, position: Position) -> Option<Arc<Gap>> {
        self.state.lock().ring.rollback_of(partition, position)
    }

    /// Counts a rollback. Also called when one is possible although no log shows it, such as after a restart of Redis.
    pub(super) fn note_rollback(&self) {
        self.rollbacks
            .send_modify(|rollbacks| *rollbacks = Rollbacks { count: rollbacks.count + 1, last: Instant::now() });
    }

    /// Returns a receiver that is notified of every rollback, including possible ones.
    pub fn rollbacks(&self) -> watch::Receiver<Rollbacks> {
        self.rollbacks.subscribe()
    }

    pub(super) fn rollback_count(&self) -> u64 {
        self.rollbacks.borrow().count
    }

    /// Milliseconds since the hub was created.
    pub(super) fn now_ms(&self) -> u64 {
        millis(self.created.elapsed())
    }

    /// Registers a watcher that makes progress at least once per `interval` while its client reads. The watcher
    /// receives the events after the returned position. `reset` resets its stream.
    pub fn register(
        self: &Arc<Self>,
        filter: &Filter,
        interval: Duration,
        reset: CancellationToken,
    ) -> Result<(Registration, ResumeToken), WatchLimitReached> {
        let mut state = self.state.lock();
        if state.open_watches >= self.limits.watches {
            return Err(WatchLimitReached);
        }
        state.open_watches += 1;
        let id = state.next_watcher;
        state.next_watcher += 1;
        let interest = match &filter.scope {
            Scope::Namespace => Interest::Namespace(filter.namespace.clone()),
            Scope::Ids(ids) => Interest::Sessions(filter.namespace.clone(), ids.iter().copied().collect()),
            Scope::Subject(subject) => Interest::Subject(filter.namespace.clone(), subject.clone()),
        };
        interest.update_index(&mut state, |watchers| watchers.push(id));
        self.metrics.watches.inc();
        let progress = Arc::new(WatcherProgress {
            wake: Notify::new(),
            progress_at: AtomicU64::new(self.now_ms()),
            timeout_ms: millis(self.limits.slow_consumer_timeout + interval),
        });
        state.watchers.insert(id, Watcher { first_pending: None, interest, progress: progress.clone(), reset });
        Ok((Registration { hub: self.clone(), id, progress }, state.end.clone()))
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// Removes a watcher and its place in the index. None: it was removed before.
    pub(super) fn remove(&mut self, id: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&id)?;
        watcher.interest.update_index(self, |watchers| watchers.retain(|other| *other != id));
        Some(watcher)
    }

    /// Appends an item to the ring and wakes the watchers that it may match. A gap wakes all of them.
    fn append(&mut self, item: Item) {
        self.end_token = self.end.encode();
        let number = self.ring.end();
        let mut wake = |watcher: &mut Watcher| {
            watcher.first_pending.get_or_insert(number);
            watcher.progress.wake.notify_one();
        };
        match &item {
            Item::Gap(_) => self.watchers.values_mut().for_each(&mut wake),
            Item::Entry(entry) => {
                let (session, before) = (&entry.shared.event.session, &entry.shared.event.before);
                let by_session = self.by_session.get(&session.name).into_iter().flatten();
                let by_namespace = self.by_namespace.get(&session.name.namespace).into_iter().flatten();
                let subjects = self.by_subject.get(&session.name.namespace);
                // The subject of a session that was deleted out of band is unknown: wake the watchers of every subject.
                let all = subjects.filter(|_| session.lacks_state()).into_iter().flat_map(HashMap::values);
                let after = subjects.and_then(|subjects| subjects.get(&session.subject));
                let before = before.as_ref().filter(|before| before.subject != session.subject);
                let before = before.and_then(|before| subjects?.get(&before.subject));
                let by_subject = all.chain(after).chain(before).flatten();
                for id in by_session.chain(by_namespace).chain(by_subject) {
                    self.watchers.get_mut(id).into_iter().for_each(&mut wake);
                }
            }
        }
        self.ring.push(item, self.end_token.clone());
    }
}

/// Which entries wake a watcher. They may still not match its filter.
pub(super) enum Interest {
    Namespace(Namespace),
    Sessions(Namespace, Vec<SessionId>),
    Subject(Namespace, String),
}

impl Interest {
    /// Applies `change` to each list of watchers in the index that belongs to this interest. Removes empty lists.
    fn update_index(&self, state: &mut State, mut change: impl FnMut(&mut Vec<u64>)) {
        match self {
            Interest::Namespace(namespace) => {
                let watchers = state.by_namespace.entry(namespace.clone()).or_default();
                change(watchers);
                if watchers.is_empty() {
                    state.by_namespace.remove(namespace);
                }
            }
            Interest::Subject(namespace, subject) => {
                let subjects = state.by_subject.entry(namespace.clone()).or_default();
                let watchers = subjects.entry(subject.clone()).or_default();
                change(watchers);
                if watchers.is_empty() {
                    subjects.remove(subject);
                }
                if subjects.is_empty() {
                    state.by_subject.remove(namespace);
                }
            }
            Interest::Sessions(namespace, ids) => {
                for id in ids {
                    let name = SessionRef { namespace: namespace.clone(), id: *id };
                    let watchers = state.by_session.entry(name.clone()).or_default();
                    change(watchers);
                    if watchers.is_empty() {
                        state.by_session.remove(&name);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
