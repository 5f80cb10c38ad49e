//! Subscription of one watcher: reads with the snapshot, then the catch-up, then the live reader, and yields the responses
//! of the stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::session::{Credential, Event, SessionId};

use super::{
    bookmark::Bookmarks,
    catch_up::CatchUp,
    filter::Filter,
    item::{Item, Read, Slot},
    lifetime::Lifetime,
    live::LiveReader,
    response::{
        BATCH_BYTES, Batch, CloseReason, Closing, Control, MatchedEvent, RETRY_PAUSE, ResyncReason, SharedEvent,
        Visibility,
    },
    response_reservation::{Fit, ResponseReservation},
    resume_token::ResumeToken,
    snapshot::{InitialState, Snapshot},
    source::{RedisSource, Source},
};

/// Options of a new subscription.
pub struct SubscriptionOptions {
    /// Which events are delivered.
    pub filter: Arc<Filter>,
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
    source: Arc<RedisSource>,
    filter: Arc<Filter>,
    lifetime: Lifetime,
    initial_state: InitialState,
    /// Snapshot, until it is complete. None: there is none now.
    snapshot: Option<Box<Snapshot>>,
    /// Catch-up, until it has reached the ring. None: the watcher is not behind the ring.
    catch_up: Option<Box<CatchUp>>,
    live: LiveReader,
    /// Resume token after the last processed item.
    token: Bytes,
    /// Resume token of the last response. The final response repeats it.
    sent_token: Bytes,
    /// Time of the last response.
    sent_at: Instant,
    bookmarks: Bookmarks,
    /// Reservation of the last response, until the next one is requested.
    reservation: ResponseReservation,
    /// Why the stream closes after the last response. None: it stays open.
    close_reason: Option<CloseReason>,
}

impl Subscription {
    /// A subscription with the live reader and position that [`LiveReader::register`] returned. Its responses reserve
    /// their size in `budget`.
    pub fn new(
        source: Arc<RedisSource>,
        (live, end): (LiveReader, ResumeToken),
        options: SubscriptionOptions,
        budget: Arc<Semaphore>,
    ) -> Self {
        let token = options.resume.as_ref().map_or_else(|| end.encode(), ResumeToken::encode);
        let snapshot = match (&options.resume, options.initial_state) {
            (None, InitialState::Requested(view)) => {
                Some(Box::new(Snapshot::of_all(&options.filter, view, end.clone(), source.rollback_count())))
            }
            (Some(_), _) | (None, InitialState::NotRequested) => None,
        };
        // The stream starts with a bookmark, or with a snapshot, which `synced` completes.
        let mut bookmarks = Bookmarks::new(options.bookmark_interval);
        if snapshot.is_none() {
            bookmarks.set_due(options.as_of, &live);
        }
        Subscription {
            source,
            filter: options.filter,
            lifetime: options.lifetime,
            initial_state: options.initial_state,
            snapshot,
            catch_up: options.resume.map(|resume| Box::new(CatchUp::resumed(resume, end))),
            live,
            sent_token: token.clone(),
            sent_at: Instant::now(),
            token,
            bookmarks,
            reservation: ResponseReservation::new(budget),
            close_reason: None,
        }
    }

    /// Returns the next response, or the reason why the stream is closed.
    pub async fn next(&mut self) -> Result<Batch, CloseReason> {
        let watcher = self.live.watcher().clone();
        let batch = tokio::select! {
            biased;
            closing = watcher.closed() => self.final_batch(closing)?,
            batch = self.advance() => batch?,
        };
        self.sent_token = batch.token.clone();
        Ok(batch)
    }

    /// Returns the final response of a watch that the server ends, which repeats the last resume token, then fails. Entries
    /// that were taken and not sent are after that token.
    fn final_batch(&mut self, closing: Closing) -> Result<Batch, CloseReason> {
        match self.close_reason.replace(CloseReason::Closing(closing)) {
            Some(CloseReason::Closing(closing)) => Err(CloseReason::Closing(closing)),
            _ => Ok(Batch { events: Vec::new(), control: None, token: self.sent_token.clone() }),
        }
    }

    async fn advance(&mut self) -> Result<Batch, CloseReason> {
        loop {
            let now = Instant::now();
            self.live.mark_progress(now);
            self.reservation.release();
            if let Some(reason) = self.close_reason.take() {
                return Err(reason);
            }
            let batch = match self.is_live() {
                true => self.read_ring(now).await?,
                // Boxed: rarely used, and large.
                false => Box::pin(self.read_redis()).await,
            };
            if let Some(batch) = batch {
                if self.reservation.fit(batch.size()).await == Fit::Waited {
                    self.live.mark_progress(Instant::now());
                }
                self.sent_at = now;
                return Ok(batch);
            }
        }
    }

    /// Whether the live reader reads: a snapshot is sent, and the watcher is not behind the ring.
    fn is_live(&self) -> bool {
        self.catch_up.is_none() && self.snapshot.as_ref().is_none_or(|snapshot| snapshot.is_sent())
    }

    /// Reads the snapshot, or else the log. None: nothing to send yet; call again.
    ///
    /// Nothing is sent while Redis fails: a silent stream makes the client try another instance.
    async fn read_redis(&mut self) -> Option<Batch> {
        // The last event of a batch may exceed its size.
        self.reservation.reserve(BATCH_BYTES + self.live.limits().largest_session).await;
        self.live.mark_progress_before_reads(Instant::now());
        let source = &*self.source;
        let read = if let Some(snapshot) = self.snapshot.as_mut().filter(|snapshot| !snapshot.is_sent()) {
            let credential = self.lifetime.credential().unwrap_or(Credential::Id);
            snapshot.read(source, &self.live, &self.filter, credential).await
        } else if let Some(catch_up) = &mut self.catch_up {
            let read = catch_up.read(source, &mut self.live).await;
            if let Ok(Read::End(_)) = read {
                self.catch_up = None;
            }
            read
        } else {
            return None;
        };
        match read {
            Ok(Read::Items(slots)) => {
                let batch = self.deliver(slots, Instant::now()).await;
                // An empty response shows the client that the stream is alive.
                let is_silent = batch.is_none() && self.sent_at.elapsed() >= self.bookmarks.interval();
                batch.or_else(|| is_silent.then(|| self.batch(Vec::new(), None)))
            }
            Ok(Read::End(_) | Read::Overrun) => None,
            Ok(Read::SlowConsumer) => Some(self.slow_consumer_batch()),
            Err(error) => {
                tracing::debug!(%error, "watch read failed; retrying");
                sleep(RETRY_PAUSE).await;
                None
            }
        }
    }

    /// Reads the ring. None: nothing to send yet; call again.
    async fn read_ring(&mut self, now: Instant) -> Result<Option<Batch>, CloseReason> {
        let until = self.snapshot.as_ref().and_then(|snapshot| snapshot.complete_at()).unwrap_or(u64::MAX);
        match self.live.read(until) {
            Read::Items(slots) => {
                // A watcher that always finds slots never waits at the ring's end, so its bookmarks advance here.
                self.bookmarks.advance_now(now, &self.source.feed.barrier, &self.live);
                Ok(self.deliver(slots, now).await)
            }
            Read::End(token) => {
                let processed = std::mem::replace(&mut self.token, token);
                let batch = self.respond(Vec::new());
                if batch.is_none() {
                    // An idle watcher keeps one token, of its last response. Nothing after it is of interest.
                    self.token = processed;
                    self.wait().await?;
                }
                Ok(batch)
            }
            Read::Overrun => {
                self.catch_up = Some(Box::new(CatchUp::overrun(self.position(), self.live.skip_to_end())));
                Ok(None)
            }
            Read::SlowConsumer => Ok(Some(self.slow_consumer_batch())),
        }
    }

    /// Waits for the next event, bookmark or check of the lifetime. Fails if the watch must be closed.
    async fn wait(&mut self) -> Result<(), CloseReason> {
        self.lifetime.check()?;
        match self.lifetime.next_check(&self.source.store) {
            None => self.event_or_bookmark().await,
            // Boxed: rarely used, and large.
            Some(next_check) => {
                if Box::pin(timeout(next_check, self.event_or_bookmark())).await.is_err() {
                    Box::pin(self.refresh_lifetime()).await;
                }
            }
        }
        Ok(())
    }

    /// Waits for the next event or step of the bookmarks.
    async fn event_or_bookmark(&mut self) {
        tokio::select! {
            biased;
            () = self.live.woken() => {}
            () = self.bookmarks.advance(&self.source.feed.barrier, &self.live) => {}
        }
    }

    /// Builds a response with the items that match, which were received at `now`, and the control after them. None: there is
    /// neither.
    async fn deliver(&mut self, slots: Vec<Slot>, now: Instant) -> Option<Batch> {
        let mut events = Vec::new();
        for Slot { item, token } in slots {
            match item {
                Item::Session(shared) => events.push(MatchedEvent { shared, visibility: Visibility::Present }),
                Item::Entry(entry) => events.extend(self.matched(entry.shared, now).await),
                Item::Resync(resync) => {
                    if resync.may_lose(&self.filter) {
                        // A lost entry may be an end, delivered or not.
                        self.lifetime.invalidate();
                    }
                    if let Some(ids) = resync.affected_ids(&self.filter) {
                        self.token = token;
                        return Some(self.resync(resync.reason, ids, events));
                    }
                }
            }
            if self.close_reason.is_some() {
                break;
            }
            self.token = token;
        }
        self.respond(events)
    }

    /// Returns the event if it matches and the snapshot does not include it. Sets the close reason if the watch closes before
    /// the event.
    async fn matched(&mut self, shared: Arc<SharedEvent>, now: Instant) -> Option<MatchedEvent> {
        self.lifetime.note(&shared.event, &self.filter.namespace);
        if self.snapshot.as_mut().is_some_and(|snapshot| snapshot.includes(&shared.event)) {
            return None;
        }
        let visibility = self.filter.visibility(&shared.event)?;
        let is_covered = match self.lifetime.covers(&shared.event, now) {
            // Boxed: rarely used, and large.
            Ok(false) => Box::pin(self.check_lifetime(&shared.event, now)).await,
            known => known.map(|_| ()),
        };
        match is_covered {
            Ok(()) => Some(MatchedEvent { shared, visibility }),
            Err(reason) => {
                self.close_reason = Some(reason);
                None
            }
        }
    }

    /// Reads the lifetime until it is known whether the watch was open at an event. Fails with the reason if it closes before
    /// the event.
    async fn check_lifetime(&mut self, event: &Event, received_at: Instant) -> Result<(), CloseReason> {
        let mut pause = Duration::ZERO;
        while !self.lifetime.covers(event, received_at)? {
            sleep(pause).await;
            pause = RETRY_PAUSE;
            self.refresh_lifetime().await;
        }
        Ok(())
    }

    /// Builds a response with these events and the control that is due after them. None: there is neither.
    fn respond(&mut self, events: Vec<MatchedEvent>) -> Option<Batch> {
        let mut control = None;
        if self.is_live() && self.close_reason.is_none() {
            let next = self.live.next();
            match self
                .snapshot
                .take_if(|snapshot| snapshot.complete_at().is_some_and(|complete_at| complete_at <= next))
            {
                Some(snapshot) => return Some(self.synced(&snapshot, events)),
                // There is no bookmark during a snapshot, which is not complete yet.
                None if self.snapshot.is_some() => {}
                None => control = self.bookmarks.take_due(next),
            }
        }
        (!events.is_empty() || control.is_some()).then(|| self.batch(events, control))
    }

    /// Builds a response at the current position and counts its events.
    fn batch(&self, events: Vec<MatchedEvent>, control: Option<Control>) -> Batch {
        self.live.metrics().events_delivered.inc_by(events.len() as u64);
        Batch { events, control, token: self.token.clone() }
    }

    /// Builds the final response of a slow consumer: the client keeps its state and resumes with the token.
    fn slow_consumer_batch(&mut self) -> Batch {
        self.close_reason = Some(CloseReason::SlowConsumer);
        self.batch(Vec::new(), Some(Control::Resync { reason: ResyncReason::SlowConsumer, ids: Vec::new() }))
    }

    /// Completes the snapshot with `synced`, or with `resync` if it is not the state of one history: a rollback lost a
    /// change that a sent session includes, or happened during the reads, so that a session that was not found may
    /// exist.
    fn synced(&mut self, snapshot: &Snapshot, events: Vec<MatchedEvent>) -> Batch {
        let is_of_one = snapshot.is_of_one_history(self.source.rollback_count());
        let unconfirmed = if is_of_one { snapshot.unconfirmed() } else { Vec::new() };
        if is_of_one && unconfirmed.is_empty() {
            return self.batch(events, Some(Control::Synced));
        }
        self.resync(ResyncReason::RolledBack, unconfirmed, events)
    }

    /// Reads which sessions live. If one has ended, waits until the events before its end are in the ring. Pauses after a
    /// failure.
    async fn refresh_lifetime(&mut self) {
        self.live.mark_progress_before_reads(Instant::now());
        match self.lifetime.refresh(&self.source.store, &self.filter.namespace).await {
            Ok(()) if !self.lifetime.all_alive() => {
                while self.source.pass_barrier().await.is_err() {
                    self.live.mark_progress_before_reads(Instant::now());
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

    /// Builds a `resync` response and starts a new snapshot if one was requested. A missed event may be an end, so the
    /// lifetime is checked again.
    fn resync(&mut self, reason: ResyncReason, mut ids: Vec<SessionId>, events: Vec<MatchedEvent>) -> Batch {
        self.live.metrics().resyncs.inc();
        self.lifetime.invalidate();
        if let InitialState::Requested(view) = self.initial_state {
            if self.snapshot.is_some() {
                // The current snapshot is incomplete: send all of it again.
                ids.clear();
            }
            let start = self.position();
            let rollback_count = self.source.rollback_count();
            self.snapshot = Some(Box::new(match ids.is_empty() {
                true => Snapshot::of_all(&self.filter, view, start, rollback_count),
                false => Snapshot::of_ids(ids.clone(), view, start, rollback_count),
            }));
        }
        self.batch(events, Some(Control::Resync { reason, ids }))
    }

    /// Position after the last processed item.
    #[expect(clippy::expect_used, reason = "the token was encoded by this process")]
    fn position(&self) -> ResumeToken {
        ResumeToken::decode(&self.token).expect("the token was encoded by this process")
    }
}
