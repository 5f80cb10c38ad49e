//! Subscription of one watcher: a cursor into the ring, a filter and a wake-up, which yield the responses of the
//! stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    feed::Feed,
    session::{SessionId, View},
    store::Store,
};

use super::{
    RETRY_PAUSE,
    bookmark::Bookmarks,
    filter::Filter,
    lifetime::{CloseReason, Lifetime},
    log_progress::CatchUp,
    registration::{Poll, Registration},
    response::{BATCH_BYTES, Batch, Control, Events, MatchedEvent},
    response_reservation::ResponseReservation,
    resume_token::ResumeToken,
    ring::{Item, Resync, ResyncReason, SharedEvent, Slot},
    snapshot::Snapshot,
};

/// Where the subscription reads its events.
pub(super) enum Phase {
    /// From the log, up to the position at which the ring continues.
    CatchingUp(CatchUp),
    /// From the ring.
    Live,
    /// Nowhere: the final response was sent.
    Closed,
}

/// Whether a watch sends a snapshot at its start and after every resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// It sends no snapshot.
    NotRequested,
    /// It sends a snapshot in this view.
    Requested(View),
}

/// Options of a new subscription.
pub struct SubscriptionOptions {
    /// Which events are delivered.
    pub filter: Filter,
    /// When the watch closes.
    pub lifetime: Lifetime,
    /// Maximum time between two responses of a healthy stream.
    pub bookmark_interval: Duration,
    /// Position after which events are delivered. None: the ring's end at registration.
    pub resume: Option<ResumeToken>,
    /// Whether a snapshot is sent.
    pub initial_state: InitialState,
    /// Time in us of the tail read before the registration, Redis clock. The first bookmark has it.
    pub as_of: u64,
}

/// Subscription of one watcher.
pub struct Subscription {
    pub(super) store: Arc<Store>,
    pub(super) feed: Feed,
    pub(super) registration: Registration,
    pub(super) filter: Filter,
    pub(super) lifetime: Lifetime,
    /// Why the stream closes after the events that were collected. None: it stays open.
    pub(super) close_reason: Option<CloseReason>,
    pub(super) phase: Phase,
    initial_state: InitialState,
    /// Snapshot that is being sent. None: not requested, or complete.
    pub(super) snapshot: Option<Snapshot>,
    /// Resume token after the last processed entry.
    pub(super) token: Bytes,
    /// Resume token of the last response. The final response repeats it.
    sent_token: Bytes,
    /// Time of the last response.
    sent_at: Instant,
    bookmarks: Bookmarks,
    /// Reservation of the last response, until the next one is requested.
    reservation: ResponseReservation,
    draining: CancellationToken,
}

impl Subscription {
    /// A subscription with the registration and position that [`Registration::new`] returned. Its responses reserve their
    /// size in `budget`. It closes when `draining` is cancelled.
    pub fn new(
        store: Arc<Store>,
        feed: Feed,
        (registration, end): (Registration, ResumeToken),
        options: SubscriptionOptions,
        budget: Arc<Semaphore>,
        draining: CancellationToken,
    ) -> Self {
        let token = options.resume.as_ref().map_or_else(|| end.encode(), ResumeToken::encode);
        let snapshot = match (&options.resume, options.initial_state) {
            (None, InitialState::Requested(view)) => {
                Some(Snapshot::of_all(&options.filter, view, end.clone(), feed.rollbacks.count()))
            }
            (Some(_), _) | (None, InitialState::NotRequested) => None,
        };
        // The stream starts with a bookmark, or with a snapshot, which `synced` completes.
        let mut bookmarks = Bookmarks::new(options.bookmark_interval, feed.barrier.clone());
        if snapshot.is_none() {
            bookmarks.set_due(options.as_of, &registration);
        }
        let phase = match options.resume {
            Some(resume) => Phase::CatchingUp(CatchUp::resumed(resume, end)),
            None => Phase::Live,
        };
        Subscription {
            store,
            feed,
            registration,
            filter: options.filter,
            lifetime: options.lifetime,
            close_reason: None,
            phase,
            initial_state: options.initial_state,
            snapshot,
            sent_token: token.clone(),
            sent_at: Instant::now(),
            token,
            bookmarks,
            reservation: ResponseReservation::new(budget),
            draining,
        }
    }

    /// Returns the next response, or the reason why the stream is closed.
    pub async fn next(&mut self) -> Result<Batch, CloseReason> {
        let draining = self.draining.clone();
        let batch = tokio::select! {
            biased;
            () = draining.cancelled() => self.final_batch()?,
            batch = self.advance() => batch?,
        };
        self.sent_token = batch.token.clone();
        self.sent_at = Instant::now();
        Ok(batch)
    }

    /// Returns the final response, which repeats the last resume token, then fails. Entries that were taken and not
    /// sent are after that token.
    fn final_batch(&mut self) -> Result<Batch, CloseReason> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Closed => Err(CloseReason::Draining),
            Phase::CatchingUp(_) | Phase::Live => {
                Ok(Batch { events: Vec::new(), control: None, token: self.sent_token.clone() })
            }
        }
    }

    async fn advance(&mut self) -> Result<Batch, CloseReason> {
        loop {
            self.registration.mark_progress();
            self.reservation.release();
            if let Some(reason) = self.close_reason.take() {
                return Err(reason);
            }
            // The last event of a batch may exceed its size.
            let largest = BATCH_BYTES + self.registration.hub().limits.largest_session;
            let batch = match (&self.phase, &self.snapshot) {
                (Phase::Closed, _) => return Err(CloseReason::Draining),
                // Boxed: rarely used, and large.
                (_, Some(snapshot)) if !snapshot.is_sent() => {
                    self.reservation.reserve(largest).await;
                    self.registration.mark_progress_before_reads();
                    Box::pin(self.send_snapshot()).await?
                }
                (Phase::CatchingUp(_), _) => {
                    self.reservation.reserve(largest).await;
                    self.registration.mark_progress_before_reads();
                    Box::pin(self.catch_up()).await?
                }
                (Phase::Live, _) => self.read_ring().await?,
            };
            if let Some(batch) = batch {
                self.reservation.fit(batch.size()).await;
                self.registration.mark_progress();
                return Ok(batch);
            }
        }
    }

    /// Builds a response at the current position and counts its events.
    pub(super) fn batch(&self, events: Vec<MatchedEvent>, control: Option<Control>) -> Batch {
        self.registration.hub().metrics.events_delivered.inc_by(events.len() as u64);
        Batch { events, control, token: self.token.clone() }
    }

    /// Builds a response if there are events, or if the last response is older than the bookmark interval.
    pub(super) fn batch_unless_silent(&self, events: Vec<MatchedEvent>) -> Option<Batch> {
        let is_silent = events.is_empty() && self.sent_at.elapsed() < self.bookmarks.interval;
        (!is_silent).then(|| self.batch(events, None))
    }

    /// Builds the final response of a slow consumer: the client keeps its state and resumes with the token.
    pub(super) fn slow_consumer_batch(&mut self) -> Batch {
        self.close_reason = Some(CloseReason::SlowConsumer);
        self.batch(Vec::new(), Some(Control::Resync { reason: ResyncReason::SlowConsumer, ids: Vec::new() }))
    }

    /// Reads slots from the ring. None: nothing to send yet; call again.
    async fn read_ring(&mut self) -> Result<Option<Batch>, CloseReason> {
        let (first, slots) = match self.registration.poll() {
            Poll::Slots(first, slots) => (first, slots),
            Poll::AtEnd(token, end) => {
                self.token = token;
                if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_complete_at(end)) {
                    return Ok(Some(self.synced(Events::default())));
                }
                return self.wait_at_end().await;
            }
            Poll::Overrun => {
                let reached = self.position();
                self.phase = Phase::CatchingUp(CatchUp::overrun(reached, self.registration.skip_to_end()));
                return Ok(None);
            }
            Poll::Evicted => return Ok(Some(self.slow_consumer_batch())),
        };
        // A watcher that always finds slots never waits at the ring's end, so its bookmarks advance here.
        self.bookmarks.advance_now(&self.registration);
        let (mut events, mut reached) = (Events::default(), first);
        for (number, Slot { item, token, .. }) in (first..).zip(slots) {
            if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_complete_at(number)) {
                self.registration.return_slots(number);
                return Ok(Some(self.synced(events)));
            }
            match item {
                Item::Entry(entry) => self.collect(entry.shared, &mut events).await,
                Item::Resync(resync) => {
                    if let Some(ids) = self.affected_ids(&resync) {
                        self.registration.return_slots(number + 1);
                        self.token = token;
                        return Ok(Some(self.resync(resync.reason, ids, events)));
                    }
                }
            }
            if self.close_reason.is_some() {
                break;
            }
            (self.token, reached) = (token, number + 1);
            if events.bytes >= BATCH_BYTES {
                self.registration.return_slots(number + 1);
                break;
            }
        }
        if events.list.is_empty() {
            return Ok(None);
        }
        let bookmark = self.bookmark_before(reached);
        Ok(Some(self.batch(events.list, bookmark)))
    }

    /// Takes the bookmark that is due before this slot. There is none during a snapshot, which is not complete yet.
    fn bookmark_before(&mut self, number: u64) -> Option<Control> {
        if self.snapshot.is_some() { None } else { self.bookmarks.take_due(number) }
    }

    /// Completes the snapshot with `synced`, or with `resync` if it is not the state of one history: a rollback lost a
    /// change that a sent session includes, or happened during the reads, so that a session that was not found may
    /// exist.
    fn synced(&mut self, events: Events) -> Batch {
        let rollback_count = self.feed.rollbacks.count();
        let snapshot = self.snapshot.take();
        let is_of_one = snapshot.as_ref().is_none_or(|snapshot| snapshot.is_of_one_history(rollback_count));
        let unconfirmed = snapshot.filter(|_| is_of_one).map(|snapshot| snapshot.unconfirmed()).unwrap_or_default();
        if is_of_one && unconfirmed.is_empty() {
            return self.batch(events.list, Some(Control::Synced));
        }
        self.resync(ResyncReason::RolledBack, unconfirmed, events)
    }

    /// Sends a due bookmark, fails if the watch must be closed, or waits for the next event, bookmark or lifetime
    /// check.
    async fn wait_at_end(&mut self) -> Result<Option<Batch>, CloseReason> {
        if let Some(bookmark) = self.bookmark_before(u64::MAX) {
            return Ok(Some(self.batch(Vec::new(), Some(bookmark))));
        }
        self.lifetime.check()?;
        let next_check = self.lifetime.next_check(&self.store);
        tokio::select! {
            () = self.registration.woken() => {}
            () = sleep(next_check.unwrap_or_default()), if next_check.is_some() => self.refresh_lifetime().await,
            () = self.bookmarks.advance(&self.registration) => {}
        }
        Ok(None)
    }

    /// Reads which sessions live. If one has ended, waits until the events before its end are in the ring.
    async fn refresh_lifetime(&mut self) {
        self.registration.mark_progress_before_reads();
        // Boxed: rarely used, and large.
        match Box::pin(self.lifetime.refresh(&self.store, &self.filter.namespace)).await {
            Ok(()) if !self.lifetime.all_alive() => {
                while self.feed.barrier.pass().await.is_none() {
                    self.registration.mark_progress_before_reads();
                    sleep(RETRY_PAUSE).await;
                }
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "watch lifetime check failed; retrying");
                sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Adds an event to the batch if it matches and the snapshot does not include it. Sets the close reason if the
    /// watch closes before the event.
    pub(super) async fn collect(&mut self, shared: Arc<SharedEvent>, events: &mut Events) {
        self.lifetime.note(&shared.event, &self.filter.namespace);
        if self.snapshot.as_mut().is_some_and(|snapshot| snapshot.includes(&shared.event)) {
            return;
        }
        let Some(visibility) = self.filter.visibility(&shared.event) else { return };
        let (received_at, mut pause) = (Instant::now(), Duration::ZERO);
        loop {
            match self.lifetime.covers(&shared.event, received_at) {
                Ok(true) => break,
                Ok(false) => {
                    sleep(pause).await;
                    pause = RETRY_PAUSE;
                    self.refresh_lifetime().await;
                }
                Err(reason) => return self.close_reason = Some(reason),
            }
        }
        events.bytes += shared.event.size();
        events.list.push(MatchedEvent { shared, visibility });
    }

    /// Sessions of this watcher that a resync affects; empty if all. None: it does not affect the watcher.
    pub(super) fn affected_ids(&mut self, resync: &Resync) -> Option<Vec<SessionId>> {
        let Some(lost) = &resync.rolled_back else { return Some(Vec::new()) };
        // A lost entry may be an end, delivered or not.
        if lost.entries.iter().any(|entry| self.filter.may_match(&entry.shared.event.session.name)) {
            self.lifetime.invalidate();
        }
        let affected =
            lost.entries.iter().filter(|entry| self.filter.visibility_of_any_kind(&entry.shared.event).is_some());
        let mut ids: Vec<SessionId> = affected.map(|entry| entry.shared.event.session.name.id).collect();
        ids.sort_unstable();
        ids.dedup();
        (!ids.is_empty()).then_some(ids)
    }

    /// Builds a `resync` response and starts a new snapshot if one was requested. A missed event may be an end, so the
    /// lifetime is checked again.
    pub(super) fn resync(&mut self, reason: ResyncReason, mut ids: Vec<SessionId>, events: Events) -> Batch {
        self.registration.hub().metrics.resyncs.inc();
        self.lifetime.invalidate();
        if let InitialState::Requested(view) = self.initial_state {
            if self.snapshot.is_some() {
                // The current snapshot is incomplete: send all of it again.
                ids.clear();
            }
            let start = self.position();
            let rollback_count = self.feed.rollbacks.count();
            self.snapshot = Some(match ids.is_empty() {
                true => Snapshot::of_all(&self.filter, view, start, rollback_count),
                false => Snapshot::of_ids(ids.iter().copied(), view, start, rollback_count),
            });
        }
        self.batch(events.list, Some(Control::Resync { reason, ids }))
    }

    /// Position after the last processed entry.
    #[expect(clippy::expect_used, reason = "the token was encoded by this process")]
    fn position(&self) -> ResumeToken {
        ResumeToken::decode(&self.token).expect("the token was encoded by this process")
    }
}
