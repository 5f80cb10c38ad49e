//! One watcher: a cursor into the ring, a filter, a wake-up; and the log for what the ring no longer has.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::store::{Page, Partition, Position, Store};

use super::{
    filter::{Filter, Seen},
    hub::{Registration, Taken},
    lifetime::{Finish, Lifetime},
    ring::{Entry, Item, Resync, Slot},
    token::ResumeToken,
};

/// Of the events in one batch, but for the last event.
const BATCH_BYTES: usize = 512 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// A token is looked at so much after its time.
const A_LITTLE: Duration = Duration::from_millis(1);
/// How soon Redis is asked again that did not answer.
const RETRY: Duration = Duration::from_millis(250);

/// An event that the watcher is told of.
pub struct Matched {
    pub entry: Arc<Entry>,
    pub seen: Seen,
}

/// What comes after the events of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Nothing is missing up to this time of Redis, in us.
    Bookmark {
        as_of: u64,
    },
    Resync(Resync),
}

/// What the watcher is told in one response.
pub struct Batch {
    pub events: Vec<Matched>,
    pub control: Option<Control>,
    /// The position after it.
    pub token: Bytes,
}

enum Phase {
    /// Reads the log from these positions to those.
    CatchUp {
        at: ResumeToken,
        to: ResumeToken,
        partition: usize,
    },
    Live,
    /// The last response was sent.
    Over,
}

/// What a subscription starts with.
pub struct Start {
    pub filter: Filter,
    pub lifetime: Lifetime,
    pub bookmark_interval: Duration,
    /// None = from the ring's end on.
    pub resume: Option<ResumeToken>,
    /// Time of Redis in us at which the ring's end was the log's.
    pub as_of: u64,
}

/// One watcher.
pub struct Subscription {
    store: Arc<Store>,
    registration: Registration,
    filter: Filter,
    lifetime: Lifetime,
    /// Why it is over, as soon as what came before is told.
    finish: Option<Finish>,
    phase: Phase,
    pending: VecDeque<Slot>,
    /// Position after what was looked at.
    token: Bytes,
    /// Position after the last batch: where to go on, should the watch end.
    told: Bytes,
    told_at: Instant,
    bookmark_interval: Duration,
    next_bookmark: Instant,
    bookmark: Option<u64>,
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
        let phase = match start.resume {
            Some(at) => Phase::CatchUp { at, to: end, partition: 0 },
            None => Phase::Live,
        };
        Subscription {
            store,
            registration,
            filter: start.filter,
            lifetime: start.lifetime,
            finish: None,
            phase,
            pending: VecDeque::new(),
            told: token.clone(),
            told_at: Instant::now(),
            token,
            bookmark_interval: start.bookmark_interval,
            next_bookmark: Instant::now() + start.bookmark_interval,
            bookmark: Some(start.as_of),
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
        if matches!(batch.control, Some(Control::Bookmark { .. })) {
            self.next_bookmark = self.told_at + self.bookmark_interval;
        }
        Ok(batch)
    }

    /// Tells where to go on elsewhere, then ends. What was taken but not told yet is not behind that.
    fn last_words(&mut self) -> Result<Batch, Finish> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Over => Err(Finish::Draining),
            Phase::CatchUp { .. } | Phase::Live => {
                Ok(Batch { events: Vec::new(), control: None, token: self.told.clone() })
            }
        }
    }

    async fn advance(&mut self) -> Result<Batch, Finish> {
        loop {
            if let Some(finish) = self.finish.take() {
                return Err(finish);
            }
            match self.phase {
                Phase::Over => return Err(Finish::Draining),
                Phase::CatchUp { .. } => {
                    if let Some(batch) = self.catch_up().await? {
                        return Ok(batch);
                    }
                }
                Phase::Live => {
                    if let Some(batch) = self.live().await? {
                        return Ok(batch);
                    }
                }
            }
        }
    }

    fn batch(&self, events: Vec<Matched>, control: Option<Control>) -> Batch {
        self.registration.hub().metrics.events_delivered.inc_by(events.len() as u64);
        Batch { events, control, token: self.token.clone() }
    }

    // ---- from the ring ----

    async fn live(&mut self) -> Result<Option<Batch>, Finish> {
        if self.pending.is_empty() {
            match self.registration.take() {
                Taken::Slots(slots) => self.pending = slots.into(),
                Taken::Nothing(token) => {
                    self.token = token;
                    return self.rest().await;
                }
                Taken::FellOff => {
                    let at = ResumeToken::decode(&self.token).expect("a token of our own");
                    self.phase = Phase::CatchUp { at, to: self.registration.skip_to_end(), partition: 0 };
                    return Ok(None);
                }
            }
        }
        let mut events = Events::default();
        while let Some(slot) = self.pending.pop_front() {
            match slot.item {
                Item::Change(entry) => self.consider(entry, &mut events).await,
                Item::Resync(reason) => {
                    self.token = slot.token;
                    return self.resync(reason, events).await.map(Some);
                }
            }
            if self.finish.is_some() {
                break;
            }
            self.token = slot.token;
            if events.bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok((!events.list.is_empty()).then(|| self.batch(events.list, None)))
    }

    /// At the ring's end: a bookmark if one is due, the end if the watch is over, else waits for what comes first.
    async fn rest(&mut self) -> Result<Option<Batch>, Finish> {
        if let Some(as_of) = self.bookmark.take() {
            return Ok(Some(self.batch(Vec::new(), Some(Control::Bookmark { as_of }))));
        }
        self.lifetime.check()?;
        let look_in = self.lifetime.look_at().map(|at| match self.store.now() {
            Some(now) => Duration::from_micros(at.saturating_sub(now)) + A_LITTLE,
            None => RETRY,
        });
        tokio::select! {
            () = self.registration.woken() => {}
            () = sleep(look_in.unwrap_or_default()), if look_in.is_some() => self.look().await,
            () = sleep_until(self.next_bookmark) => match self.registration.hub().refresh().await {
                Some(verified) => self.bookmark = Some(verified.as_of),
                None => self.next_bookmark = Instant::now() + RETRY.min(self.bookmark_interval),
            },
        }
        Ok(None)
    }

    /// Looks whether the watch goes on. Where it does not, what it was to tell before is in the ring by then.
    async fn look(&mut self) {
        // Boxed: seldom needed, and large.
        match Box::pin(self.lifetime.look(&self.store, &self.filter.namespace)).await {
            Ok(()) if self.lifetime.ended().is_some() => {
                while self.registration.hub().refresh().await.is_none() {
                    sleep(RETRY).await;
                }
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "a watch looks for its token again");
                sleep(RETRY).await;
            }
        }
    }

    // ---- from the log ----

    /// Reads a page of the log; None = go on.
    async fn catch_up(&mut self) -> Result<Option<Batch>, Finish> {
        let Phase::CatchUp { at, to, partition } = &self.phase else { return Ok(None) };
        let index = *partition;
        if at.store != to.store || at.positions.len() != to.positions.len() {
            return self.give_up(Resync::Flushed).await.map(Some);
        }
        let (Some(from), Some(target)) = (at.positions.get(index).copied(), to.positions.get(index).copied()) else {
            self.phase = Phase::Live;
            return Ok(None);
        };
        if from == target {
            self.step_to(index, target, true);
            return Ok(None);
        }
        let partition = Partition(index as u16);
        let page = self.store.read_after(partition, from, Instant::now() + READ_TIMEOUT).await;
        let entries = match page {
            Ok(Page::Entries(entries)) => entries,
            Ok(Page::Compacted) => return self.give_up(Resync::Compacted).await.map(Some),
            Ok(Page::Tail | Page::RolledBack) => return self.give_up(Resync::RolledBack).await.map(Some),
            Err(error) => {
                tracing::debug!(%error, "a watch waits for the log");
                sleep(RETRY).await;
                return Ok(None);
            }
        };
        let mut events = Events::default();
        for entry in entries {
            // What follows the target comes from the ring.
            let is_last = entry.position.revision >= target.revision;
            if entry.position.revision <= target.revision {
                self.consider(Arc::new(Entry::new(entry.event)), &mut events).await;
                if self.finish.is_some() {
                    break;
                }
                self.step_to(index, entry.position, is_last);
            } else {
                self.step_to(index, target, true);
            }
            if is_last || events.bytes >= BATCH_BYTES {
                break;
            }
        }
        let is_silent = events.list.is_empty() && self.told_at.elapsed() < self.bookmark_interval;
        Ok((!is_silent).then(|| self.batch(events.list, None)))
    }

    /// Moves a partition on, and after its last position to the next partition.
    fn step_to(&mut self, index: usize, position: Position, is_last: bool) {
        if let Phase::CatchUp { at, partition, .. } = &mut self.phase {
            at.positions[index] = position;
            *partition = index + usize::from(is_last);
            self.token = at.encode();
        }
    }

    /// The log does not lead from where the watcher is to where the ring goes on.
    async fn give_up(&mut self, reason: Resync) -> Result<Batch, Finish> {
        if let Phase::CatchUp { to, .. } = std::mem::replace(&mut self.phase, Phase::Live) {
            self.token = to.encode();
        }
        self.resync(reason, Events::default()).await
    }

    // ---- for both ----

    /// Takes a change in, unless the watch is over before it.
    async fn consider(&mut self, entry: Arc<Entry>, events: &mut Events) {
        self.lifetime.note(&entry.event, &self.filter);
        let Some(seen) = self.filter.sees(&entry.event) else { return };
        loop {
            match self.lifetime.lasts_to(&entry.event) {
                Ok(true) => break,
                Ok(false) => {
                    sleep(A_LITTLE).await;
                    self.look().await;
                }
                Err(finish) => return self.finish = Some(finish),
            }
        }
        events.bytes += entry.event.size();
        events.list.push(Matched { entry, seen });
    }

    /// Endings may be among what was missed: looks which sessions the watch still lasts for.
    async fn resync(&mut self, reason: Resync, events: Events) -> Result<Batch, Finish> {
        self.registration.hub().metrics.resyncs.inc();
        // Boxed: seldom needed, and large.
        Box::pin(self.lifetime.look(&self.store, &self.filter.namespace)).await.map_err(Finish::Store)?;
        Ok(self.batch(events.list, Some(Control::Resync(reason))))
    }
}

/// Events of a batch, and about how many bytes they are.
#[derive(Default)]
struct Events {
    list: Vec<Matched>,
    bytes: usize,
}
