//! One watcher: a cursor into the ring, a filter, a wake-up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    session::{SessionId, View},
    store::Store,
};

use super::{
    behind::Behind,
    bookmark::Bookmarks,
    filter::{Filter, Seen},
    lifetime::{Finish, Lifetime},
    registration::{Registration, Taken},
    ring::{Entry, Item, Missed, Resync, Slot},
    snapshot::Snapshot,
    token::ResumeToken,
};

/// Of the events in one batch, but for the last event.
pub(super) const BATCH_BYTES: usize = 512 * 1024;
/// How soon Redis is asked again that did not answer.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// An event that the watcher is told of.
pub struct Matched {
    pub entry: Arc<Entry>,
    pub seen: Seen,
}

/// What comes after the events of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Nothing is missing up to this time of Redis, in us.
    Bookmark { as_of: u64 },
    /// The state that was asked for is complete.
    Synced,
    /// Changes of these sessions were missed; empty = of any.
    Resync { reason: Resync, ids: Vec<SessionId> },
}

/// What the watcher is told in one response.
pub struct Batch {
    pub events: Vec<Matched>,
    pub control: Option<Control>,
    /// The position after it.
    pub token: Bytes,
}

pub(super) enum Phase {
    /// Reads the log up to where the ring goes on.
    Behind(Behind),
    Live,
    /// The last response was sent.
    Over,
}

/// Whether a watch tells the state first, and after every resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    NotAsked,
    Asked(View),
}

/// What a subscription starts with.
pub struct Start {
    pub filter: Filter,
    pub lifetime: Lifetime,
    pub bookmark_interval: Duration,
    /// None = from the ring's end on.
    pub resume: Option<ResumeToken>,
    pub state: State,
    /// Time of Redis in us at which the ring's end was the log's.
    pub as_of: u64,
}

/// One watcher.
pub struct Subscription {
    pub(super) store: Arc<Store>,
    pub(super) registration: Registration,
    pub(super) filter: Filter,
    pub(super) lifetime: Lifetime,
    /// Why it is over, as soon as what came before is told.
    pub(super) finish: Option<Finish>,
    pub(super) phase: Phase,
    state: State,
    /// The state that is being told.
    pub(super) snapshot: Option<Snapshot>,
    /// Position after what was looked at.
    pub(super) token: Bytes,
    /// Position after the last batch: where to go on, should the watch end.
    told: Bytes,
    told_at: Instant,
    bookmarks: Bookmarks,
    draining: CancellationToken,
}

impl Subscription {
    /// Goes on from where the hub registered it.
    pub fn new(
        store: Arc<Store>,
        (registration, end): (Registration, ResumeToken),
        start: Start,
        draining: CancellationToken,
    ) -> Self {
        let token = start.resume.as_ref().map_or_else(|| end.encode(), ResumeToken::encode);
        let snapshot = match (&start.resume, start.state) {
            (None, State::Asked(view)) => {
                Some(Snapshot::of_all(&start.filter, view, end.clone(), registration.hub().times_rewound()))
            }
            (Some(_), _) | (None, State::NotAsked) => None,
        };
        // What stands before the state is told by it.
        let mut bookmarks = Bookmarks::new(start.bookmark_interval);
        if snapshot.is_none() {
            bookmarks.note(start.as_of, &registration);
        }
        let phase = match start.resume {
            Some(at) => Phase::Behind(Behind::resumed(at, end)),
            None => Phase::Live,
        };
        Subscription {
            store,
            registration,
            filter: start.filter,
            lifetime: start.lifetime,
            finish: None,
            phase,
            state: start.state,
            snapshot,
            told: token.clone(),
            told_at: Instant::now(),
            token,
            bookmarks,
            draining,
        }
    }

    /// The next response, or why there is none any more.
    pub async fn next(&mut self) -> Result<Batch, Finish> {
        let draining = self.draining.clone();
        let batch = tokio::select! {
            biased;
            () = draining.cancelled() => self.last_words()?,
            batch = self.advance() => batch?,
        };
        self.told = batch.token.clone();
        self.told_at = Instant::now();
        Ok(batch)
    }

    /// Tells where to go on elsewhere, then ends. What was taken but not told yet is not behind that.
    fn last_words(&mut self) -> Result<Batch, Finish> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Over => Err(Finish::Draining),
            Phase::Behind(_) | Phase::Live => Ok(Batch { events: Vec::new(), control: None, token: self.told.clone() }),
        }
    }

    async fn advance(&mut self) -> Result<Batch, Finish> {
        loop {
            self.registration.go_on();
            if let Some(finish) = self.finish.take() {
                return Err(finish);
            }
            let told = match (&self.phase, &self.snapshot) {
                (Phase::Over, _) => return Err(Finish::Draining),
                // Boxed: seldom needed, and large.
                (_, Some(snapshot)) if !snapshot.is_read() => {
                    self.registration.go_on_with_redis();
                    Box::pin(self.tell_state()).await?
                }
                (Phase::Behind(_), _) => {
                    self.registration.go_on_with_redis();
                    Box::pin(self.catch_up()).await?
                }
                (Phase::Live, _) => self.live().await?,
            };
            if let Some(batch) = told {
                self.registration.go_on();
                return Ok(batch);
            }
        }
    }

    pub(super) fn batch(&self, events: Vec<Matched>, control: Option<Control>) -> Batch {
        self.registration.hub().metrics.events_delivered.inc_by(events.len() as u64);
        Batch { events, control, token: self.token.clone() }
    }

    /// The same, unless there is nothing to tell and the reader has heard of us lately.
    pub(super) fn batch_or_silence(&self, events: Vec<Matched>) -> Option<Batch> {
        let is_silent = events.is_empty() && self.told_at.elapsed() < self.bookmarks.interval;
        (!is_silent).then(|| self.batch(events, None))
    }

    /// The last response: where to go on. Nothing is to be forgotten.
    pub(super) fn too_slow(&mut self) -> Batch {
        self.finish = Some(Finish::TooSlow);
        self.batch(Vec::new(), Some(Control::Resync { reason: Resync::SlowConsumer, ids: Vec::new() }))
    }

    async fn live(&mut self) -> Result<Option<Batch>, Finish> {
        let (first, slots) = match self.registration.take() {
            Taken::Slots(first, slots) => (first, slots),
            Taken::Nothing(token, end) => {
                self.token = token;
                if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_complete_at(end)) {
                    return Ok(Some(self.synced(Events::default())));
                }
                return self.rest().await;
            }
            Taken::FellOff => {
                let at = ResumeToken::decode(&self.token).expect("a token of our own");
                self.phase = Phase::Behind(Behind::fell_off(at, self.registration.skip_to_end()));
                return Ok(None);
            }
            Taken::TooSlow => return Ok(Some(self.too_slow())),
        };
        // A reader that always has something to take does not rest.
        self.bookmarks.look(&self.registration);
        let (mut events, mut reached) = (Events::default(), first);
        for (number, Slot { item, token, .. }) in (first..).zip(slots) {
            if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_complete_at(number)) {
                self.registration.give_back(number);
                return Ok(Some(self.synced(events)));
            }
            match item {
                Item::Change(link) => self.consider(link.entry, &mut events).await,
                Item::Missed(missed) => {
                    if let Some(ids) = self.concerned(&missed) {
                        self.registration.give_back(number + 1);
                        self.token = token;
                        return Ok(Some(self.resync(missed.reason, ids, events)));
                    }
                }
            }
            if self.finish.is_some() {
                break;
            }
            (self.token, reached) = (token, number + 1);
            if events.bytes >= BATCH_BYTES {
                self.registration.give_back(number + 1);
                break;
            }
        }
        if events.list.is_empty() {
            return Ok(None);
        }
        let bookmark = self.bookmark_before(reached);
        Ok(Some(self.batch(events.list, bookmark)))
    }

    /// Amid a state nothing is complete.
    fn bookmark_before(&mut self, number: u64) -> Option<Control> {
        if self.snapshot.is_some() { None } else { self.bookmarks.before(number) }
    }

    /// The state is complete here, unless a part of it was taken back before it was told as a change, or history may have
    /// been rewound while it was read: then what was read as gone may be there.
    fn synced(&mut self, events: Events) -> Batch {
        let times_rewound = self.registration.hub().times_rewound();
        let snapshot = self.snapshot.take();
        let is_of_one = snapshot.as_ref().is_none_or(|snapshot| snapshot.is_of_one_history(times_rewound));
        let unproven = snapshot.filter(|_| is_of_one).map(|snapshot| snapshot.unproven()).unwrap_or_default();
        if is_of_one && unproven.is_empty() {
            return self.batch(events.list, Some(Control::Synced));
        }
        self.resync(Resync::RolledBack, unproven, events)
    }

    /// At the ring's end: a bookmark if one is due, the end if the watch is over, else waits for what comes first.
    async fn rest(&mut self) -> Result<Option<Batch>, Finish> {
        if let Some(bookmark) = self.bookmark_before(u64::MAX) {
            return Ok(Some(self.batch(Vec::new(), Some(bookmark))));
        }
        self.lifetime.check()?;
        let look_in = self.lifetime.look_in(&self.store);
        tokio::select! {
            () = self.registration.woken() => {}
            () = sleep(look_in.unwrap_or_default()), if look_in.is_some() => self.look().await,
            () = self.bookmarks.advance(&self.registration) => {}
        }
        Ok(None)
    }

    /// Looks which sessions the watch goes on for. What it was to tell of those that have ended is in the ring by then.
    async fn look(&mut self) {
        self.registration.go_on_with_redis();
        // Boxed: seldom needed, and large.
        match Box::pin(self.lifetime.look(&self.store, &self.filter.namespace)).await {
            Ok(()) if !self.lifetime.is_whole() => {
                while self.registration.hub().refresh().await.is_none() {
                    self.registration.go_on_with_redis();
                    sleep(RETRY).await;
                }
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "a watch looks for its sessions again");
                sleep(RETRY).await;
            }
        }
    }

    /// Takes a change in, unless the watch is over before it.
    pub(super) async fn consider(&mut self, entry: Arc<Entry>, events: &mut Events) {
        self.lifetime.note(&entry.event, &self.filter.namespace);
        if self.snapshot.as_mut().is_some_and(|snapshot| snapshot.covers(&entry.event)) {
            return;
        }
        let Some(seen) = self.filter.sees(&entry.event) else { return };
        loop {
            match self.lifetime.lasts_to(&entry.event) {
                Ok(true) => break,
                Ok(false) => {
                    sleep(self.lifetime.look_in(&self.store).unwrap_or_default().min(RETRY)).await;
                    self.look().await;
                }
                Err(finish) => return self.finish = Some(finish),
            }
        }
        events.bytes += entry.event.size();
        events.list.push(Matched { entry, seen });
    }

    /// The sessions of which this watcher missed something, empty = any; None = it missed nothing.
    pub(super) fn concerned(&mut self, missed: &Missed) -> Option<Vec<SessionId>> {
        let Some(lost) = &missed.lost else { return Some(Vec::new()) };
        // An ending may be among it, told or not.
        if lost.links.iter().any(|link| self.filter.names(&link.entry.event.session.name)) {
            self.lifetime.forget();
        }
        let concerns = lost.links.iter().filter(|link| self.filter.concern(&link.entry.event).is_some());
        let mut ids: Vec<SessionId> = concerns.map(|link| link.entry.event.session.name.id).collect();
        ids.sort_unstable();
        ids.dedup();
        (!ids.is_empty()).then_some(ids)
    }

    /// Tells that changes were missed; the present state follows where it was asked for. Endings may be among what was
    /// missed.
    pub(super) fn resync(&mut self, reason: Resync, mut ids: Vec<SessionId>, events: Events) -> Batch {
        self.registration.hub().metrics.resyncs.inc();
        self.lifetime.forget();
        if let State::Asked(view) = self.state {
            if self.snapshot.is_some() {
                // It is not complete: all of it is told again.
                ids.clear();
            }
            let noted = ResumeToken::decode(&self.token).expect("a token of our own");
            let times_rewound = self.registration.hub().times_rewound();
            self.snapshot = Some(match ids.is_empty() {
                true => Snapshot::of_all(&self.filter, view, noted, times_rewound),
                false => Snapshot::of_ids(ids.iter().copied(), view, noted, times_rewound),
            });
        }
        self.batch(events.list, Some(Control::Resync { reason, ids }))
    }
}

/// Events of a batch, and about how many bytes they are.
#[derive(Default)]
pub(super) struct Events {
    pub list: Vec<Matched>,
    pub bytes: usize,
}
