//! Index of the watchers by the sessions that they are interested in: an entry wakes only watchers that it may match.

use std::{
    collections::HashMap,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::session::{Event, Namespace, SessionId, SessionRef};

use super::filter::{Filter, Scope};

/// State of a watcher in the hub.
pub(super) struct Watcher {
    /// Number of the first slot of interest that the watcher has not taken. None: there is none before the ring's end.
    pub first_pending: Option<u64>,
    /// Which entries wake the watcher.
    pub interest: Interest,
    pub progress: Arc<WatcherProgress>,
    /// Resets the stream of the watcher.
    pub reset: CancellationToken,
}

impl Watcher {
    /// Notes the slot with this number, and wakes the watcher.
    fn wake(&mut self, number: u64) {
        self.first_pending.get_or_insert(number);
        self.progress.wake.notify_one();
    }
}

/// A watcher that was evicted and whose stream has not ended.
pub(super) struct EvictedWatcher {
    /// Resets the stream.
    pub reset: CancellationToken,
    /// Time of the reset, in ms since the hub was created.
    pub reset_at: u64,
}

/// Wake-up and progress of a watcher, shared by the hub and the registration.
pub(super) struct WatcherProgress {
    /// Notified when an item of interest is appended to the ring.
    pub wake: Notify,
    /// Time of the watcher's last progress, in ms since the hub was created. In the future while it reads from Redis. A
    /// watcher whose client reads makes progress with every bookmark.
    pub progress_at: AtomicU64,
    /// Maximum time without progress in ms. After it the hub evicts the watcher.
    pub timeout_ms: u64,
}

impl WatcherProgress {
    /// Whether the watcher has made no progress for longer than its timeout, at `now_ms` since the hub was created.
    pub(super) fn is_slow(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.progress_at.load(Ordering::Relaxed)) > self.timeout_ms
    }
}

/// Watchers by number, and the numbers of those that an entry may concern.
#[derive(Default)]
pub(super) struct WatcherIndex {
    watchers: HashMap<u64, Watcher>,
    /// Number of the next watcher.
    next: u64,
    /// Numbers of the watchers of a session, of a whole namespace, and of a subject.
    by_session: HashMap<SessionRef, Vec<u64>>,
    by_namespace: HashMap<Namespace, Vec<u64>>,
    by_subject: HashMap<Namespace, HashMap<String, Vec<u64>>>,
}

impl WatcherIndex {
    /// Adds a watcher and returns its number.
    pub(super) fn add(&mut self, watcher: Watcher) -> u64 {
        let id = self.next;
        self.next += 1;
        self.update(&watcher.interest, |watchers| watchers.push(id));
        self.watchers.insert(id, watcher);
        id
    }

    /// Removes a watcher. None: it was removed before.
    pub(super) fn remove(&mut self, id: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&id)?;
        self.update(&watcher.interest, |watchers| watchers.retain(|other| *other != id));
        Some(watcher)
    }

    /// Returns a watcher. None: it was removed.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Watcher> {
        self.watchers.get_mut(&id)
    }

    /// Iterates over all watchers, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Watcher)> {
        self.watchers.iter().map(|(id, watcher)| (*id, watcher))
    }

    /// Wakes all watchers for the slot with this number.
    pub(super) fn wake_all(&mut self, number: u64) {
        self.watchers.values_mut().for_each(|watcher| watcher.wake(number));
    }

    /// Wakes the watchers that the event of the slot with this number may match.
    pub(super) fn wake_interested(&mut self, event: &Event, number: u64) {
        let (session, before) = (&event.session, &event.before);
        let by_session = self.by_session.get(&session.name).into_iter().flatten();
        let by_namespace = self.by_namespace.get(&session.name.namespace).into_iter().flatten();
        let subjects = self.by_subject.get(&session.name.namespace);
        // The subject of a session that was deleted out of band is unknown: wake the watchers of every subject.
        let all = subjects.filter(|_| session.lacks_state()).into_iter().flat_map(HashMap::values);
        let after = subjects.and_then(|subjects| subjects.get(session.basic.subject()));
        let before = before.as_ref().filter(|before| before.subject() != session.basic.subject());
        let before = before.and_then(|before| subjects?.get(before.subject()));
        let by_subject = all.chain(after).chain(before).flatten();
        for id in by_session.chain(by_namespace).chain(by_subject) {
            self.watchers.get_mut(id).into_iter().for_each(|watcher| watcher.wake(number));
        }
    }

    /// Applies `change` to each list of watchers that belongs to this interest. Removes empty lists.
    fn update(&mut self, interest: &Interest, mut change: impl FnMut(&mut Vec<u64>)) {
        match interest {
            Interest::Namespace(namespace) => {
                let watchers = self.by_namespace.entry(namespace.clone()).or_default();
                change(watchers);
                if watchers.is_empty() {
                    self.by_namespace.remove(namespace);
                }
            }
            Interest::Subject(namespace, subject) => {
                let subjects = self.by_subject.entry(namespace.clone()).or_default();
                let watchers = subjects.entry(subject.clone()).or_default();
                change(watchers);
                if watchers.is_empty() {
                    subjects.remove(subject);
                }
                if subjects.is_empty() {
                    self.by_subject.remove(namespace);
                }
            }
            Interest::Sessions(namespace, ids) => {
                for id in ids {
                    let name = SessionRef { namespace: namespace.clone(), id: *id };
                    let watchers = self.by_session.entry(name.clone()).or_default();
                    change(watchers);
                    if watchers.is_empty() {
                        self.by_session.remove(&name);
                    }
                }
            }
        }
    }
}

/// Which entries wake a watcher. They may still not match its filter.
pub(super) enum Interest {
    Namespace(Namespace),
    Sessions(Namespace, Vec<SessionId>),
    Subject(Namespace, String),
}

impl Interest {
    /// Interest of a watcher with this filter.
    pub(super) fn of(filter: &Filter) -> Self {
        let namespace = filter.namespace.clone();
        match &filter.scope {
            Scope::Namespace => Interest::Namespace(namespace),
            Scope::Ids(ids) => Interest::Sessions(namespace, ids.iter().copied().collect()),
            Scope::Subject(subject) => Interest::Subject(namespace, subject.clone()),
        }
    }
}
