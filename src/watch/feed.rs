//! Follows the logs of all Redis nodes into the hub: by channel messages while they are complete, else by reading the
//! logs.
//!
//! Each node has its own follower, so that one that hangs delays no other. A follower takes an entry from a channel
//! only if the entry's `previous` is the last position of its partition. It reads the tails of the node's partitions,
//! and from the logs the entries that the hub lacks: when entries before a received one are missing, on every new
//! connection, after lost messages, and once per second in any case. It subscribes before it reads the tails, so that
//! no entry is missed between the two. Any client with the right to publish can send messages that are not of the log:
//! reads that such messages cause become rare ([`Throttle`]).

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, sleep, sleep_until},
};

use crate::store::{ChannelEvent, Channels, Error, Message, Page, Partition, Position, Server, Store, Tails};

use super::{
    READ_TIMEOUT,
    eviction::EVICTION_INTERVAL,
    hub::{BarrierRequest, Hub, Pushed, TailRead},
    ring::{ResyncReason, RolledBack},
    rollback::find_fork,
    throttle::Throttle,
};

/// Number of failures in sequence after which the feed reports a problem. A single one may be a lost connection.
const FAILURES_REPORTED: u32 = 2;
/// Time between two reads of the tails when nothing else causes one.
const TAIL_READ_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the logs of all Redis nodes into the hub. Never returns.
pub async fn feed(store: Arc<Store>, hub: Arc<Hub>) {
    let (mut requests, mut waiting) = (hub.take_barrier_requests(), Vec::new());
    loop {
        // Created before the nodes are listed, so that it reports every later move of a partition.
        let moved = store.moved();
        let followers: Vec<Follower> =
            store.servers().into_iter().map(|server| Follower::new(&store, &hub, server)).collect();
        let following = join_all(followers.iter().map(Follower::follow));
        tokio::select! {
            // In this order: after a move no message of the previous node is processed.
            biased;
            () = moved => hub.note_rollback(),
            _ = following => {}
            () = serve_barriers(&followers, &mut requests, &mut waiting) => {}
            () = evict_slow_consumers(&hub) => {}
        }
    }
}

/// Reads the tails of every node for each read barrier, including the requests in `waiting`. If one node cannot be
/// read, no request is answered. Never returns.
async fn serve_barriers(
    followers: &[Follower],
    requests: &mut mpsc::UnboundedReceiver<BarrierRequest>,
    waiting: &mut Vec<BarrierRequest>,
) {
    while !waiting.is_empty() || requests.recv_many(waiting, usize::MAX).await > 0 {
        let reads = join_all(followers.iter().map(Follower::request_tail_read)).await;
        if let Some(reads) = reads.into_iter().collect::<Option<Vec<_>>>() {
            let as_of = reads.iter().map(|read| read.as_of).min().unwrap_or(0);
            for request in waiting.drain(..) {
                let _ = request.send(TailRead { as_of });
            }
        }
        waiting.clear();
    }
    std::future::pending().await
}

/// Evicts slow consumers and drops old ends of sessions, once per [`EVICTION_INTERVAL`]. Never returns.
async fn evict_slow_consumers(hub: &Hub) {
    loop {
        sleep(EVICTION_INTERVAL).await;
        hub.evict_slow();
        hub.missing_keys.rotate_ends();
    }
}

/// Follows the logs of one Redis node.
struct Follower {
    store: Arc<Store>,
    hub: Arc<Hub>,
    server: Server,
    sender: mpsc::UnboundedSender<BarrierRequest>,
    requests: Mutex<mpsc::UnboundedReceiver<BarrierRequest>>,
}

/// What the follower does after an event of its channels.
enum NextStep {
    /// Waits for the next event.
    Continue,
    /// Reads the tails, once the throttle permits it.
    ReadTails(Doubt),
    /// Subscribes to the channels of the new connection, then reads the tails.
    Subscribe,
}

/// Why entries may be missing after a channel message.
enum Doubt {
    /// The entry at this position does not follow the last one.
    Gap(Partition, Position),
    /// The message is unreadable.
    Unreadable,
    /// Messages were dropped.
    Dropped,
}

impl Follower {
    fn new(store: &Arc<Store>, hub: &Arc<Hub>, server: Server) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        Follower { store: store.clone(), hub: hub.clone(), server, sender, requests: Mutex::new(requests) }
    }

    /// Waits until the running follower has read all tails of the node; None if it could not.
    async fn request_tail_read(&self) -> Option<TailRead> {
        let (request, read) = oneshot::channel();
        self.sender.send(request).ok()?;
        read.await.ok()
    }

    /// Follows the logs of the node. Never returns.
    async fn follow(&self) {
        let mut channels = self.store.listen(&self.server);
        let mut requests = self.requests.lock().await;
        let (mut subscribed, mut is_new, mut run, mut failures) = (false, true, None::<String>, 0);
        let (mut doubt, mut tail_reads) = (None, Throttle::new(TAIL_READ_INTERVAL));
        let mut log_reads = Throttle::new(TAIL_READ_INTERVAL);
        let mut tick = tokio::time::interval(TAIL_READ_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut waiting: Vec<BarrierRequest> = Vec::new();
            let mut is_tick = false;
            tokio::select! {
                step = self.receive(&mut channels, &mut log_reads) => match step {
                    NextStep::Continue => continue,
                    NextStep::ReadTails(cause) => {
                        doubt = Some(cause);
                        continue;
                    }
                    NextStep::Subscribe => (subscribed, is_new) = (false, true),
                },
                request = requests.recv() => waiting.extend(request),
                _ = tick.tick() => is_tick = true,
                () = sleep_until(tail_reads.free_at()), if doubt.is_some() => {}
            }
            while let Ok(request) = requests.try_recv() {
                waiting.push(request);
            }
            let mut problem = None;
            if !subscribed {
                let result = self.store.subscribe(&self.server).await;
                subscribed = result.is_ok();
                problem = result.err();
            }
            let run_before = run.clone();
            let read = self.catch_up(&mut run).await;
            if let Some(cause) = doubt.take() {
                tail_reads.note(self.was_genuine(&cause, &read));
            }
            match read {
                Ok((read, was_behind)) => {
                    let is_first_read = subscribed && std::mem::take(&mut is_new);
                    if is_first_read && run_before.is_some() && run_before == run {
                        // Keyspace notifications were lost while there was no connection. Those from before the first
                        // connection, or of another run of Redis, are left to the next regular reconciliation.
                        self.hub.missing_keys.note_lost_notifications(&self.server.partitions);
                    }
                    for request in waiting {
                        let _ = request.send(read);
                    }
                    // The channels should have delivered what a tick found: Redis drops the subscription to a slot that
                    // is migrated away, even if the slot returns. Subscribe again.
                    subscribed = subscribed && !(is_tick && was_behind);
                }
                Err(error) => {
                    tracing::debug!(%error, "tail read failed; retrying");
                    problem = Some(error);
                }
            }
            failures = if problem.is_some() { failures + 1 } else { 0 };
            let problem = problem.filter(|_| failures >= FAILURES_REPORTED).map(|error| error.to_string());
            self.store.note_feed_problem(&self.server, problem);
            if is_tick {
                // A full interval until the next tick, even after a slow read, so that messages are processed in
                // between.
                tick.reset();
            }
        }
    }

    /// Whether the message that caused this read was of the log.
    fn was_genuine(&self, doubt: &Doubt, read: &Result<(TailRead, bool), Error>) -> bool {
        match doubt {
            Doubt::Gap(partition, position) => self.has_entry(*partition, *position),
            Doubt::Unreadable => false,
            Doubt::Dropped => read.as_ref().is_ok_and(|(_, was_behind)| *was_behind),
        }
    }

    fn has_entry(&self, partition: Partition, position: Position) -> bool {
        self.hub.state.lock().ring.contains(partition, position)
    }

    /// Receives and processes the next event of the channels.
    async fn receive(&self, channels: &mut Channels, log_reads: &mut Throttle) -> NextStep {
        match channels.next(&self.store).await {
            ChannelEvent::Message(Message::Entry(entry)) => {
                if let Some(now) = self.store.now_at(entry.partition) {
                    let lag = now.saturating_sub(entry.position.revision.0);
                    self.hub.metrics.feed_lag_seconds.observe(lag as f64 / 1e6);
                }
                let (partition, position) = (entry.partition, entry.position);
                match self.hub.push(*entry) {
                    Pushed::Appended | Pushed::Stale => NextStep::Continue,
                    Pushed::Gap => NextStep::ReadTails(Doubt::Gap(partition, position)),
                }
            }
            ChannelEvent::Message(Message::Announced { partition, position, previous }) => {
                let reached = self.hub.position(partition);
                if position.revision <= reached.revision {
                    return NextStep::Continue;
                }
                if previous == reached && log_reads.is_free() {
                    let read = self.read_log(partition, position).await;
                    log_reads.note(self.has_entry(partition, position));
                    match read {
                        Ok(None) => return NextStep::Continue,
                        Ok(Some(_)) => {}
                        Err(error) => {
                            tracing::debug!(partition = partition.0, %error, "log read failed; reading tails")
                        }
                    }
                }
                NextStep::ReadTails(Doubt::Gap(partition, position))
            }
            ChannelEvent::MissingKey(partition, name) => {
                self.hub.missing_keys.add(partition, name);
                NextStep::Continue
            }
            ChannelEvent::MissedNotifications => {
                self.hub.missing_keys.note_lost_notifications(&self.server.partitions);
                NextStep::Continue
            }
            ChannelEvent::Message(Message::Unreadable) => NextStep::ReadTails(Doubt::Unreadable),
            ChannelEvent::Missed => NextStep::ReadTails(Doubt::Dropped),
            ChannelEvent::Connected => NextStep::Subscribe,
        }
    }

    /// Reads all tails, and from the logs the entries that the hub lacks. Returns the tail read, and whether the hub
    /// lacked entries. If a log does not continue from the hub's position, watchers receive `resync`. Entries that were
    /// lost by a restart of Redis may show in no log, so a change of `run` counts as a rollback.
    async fn catch_up(&self, run: &mut Option<String>) -> Result<(TailRead, bool), Error> {
        let tails = self.tails().await?;
        // Read after the tails, which are therefore of this run or of an earlier one.
        let current_run = self.store.run_of(&self.server, Instant::now() + READ_TIMEOUT).await?;
        if run.replace(current_run.clone()).is_some_and(|before| before != current_run) {
            self.hub.note_rollback();
        }
        let mut gaps: HashMap<ResyncReason, Vec<(Partition, Position)>> = HashMap::new();
        let was_behind = tails.tails.iter().any(|(partition, tail)| self.hub.position(*partition) != tail.position);
        let mut outcome = tails.unread.map_or(Ok((TailRead { as_of: tails.as_of }, was_behind)), Err);
        for (partition, tail) in tails.tails {
            match self.read_log(partition, tail.position).await {
                Ok(None) => {}
                Ok(Some(reason)) => gaps.entry(reason).or_default().push((partition, tail.position)),
                // The other partitions are still read.
                Err(error) => outcome = Err(error),
            }
        }
        if gaps.is_empty() {
            return outcome;
        }
        for (reason, tails) in gaps {
            self.skip_gap(reason, tails).await?;
        }
        // After a rollback the hub is at the fork: read the new branch from there.
        let tails = self.tails().await?;
        outcome = tails.unread.map_or(outcome, Err);
        for (partition, tail) in tails.tails {
            if self.read_log(partition, tail.position).await?.is_some() {
                let cause = format!("log of partition {} was rolled back again; the feed retries", partition.0);
                outcome = Err(Error::Unavailable(cause));
            }
        }
        outcome
    }

    /// Appends a gap to the ring, so that watchers receive `resync`. Continues from the fork of a rollback if the ring
    /// still has it, else at the tails.
    async fn skip_gap(&self, reason: ResyncReason, tails: Vec<(Partition, Position)>) -> Result<(), Error> {
        if reason == ResyncReason::RolledBack {
            let mut lost = RolledBack { entries: Vec::new(), forks: Vec::new() };
            for (partition, _) in &tails {
                let history = self.hub.history(*partition);
                if let Some((fork, entries)) = find_fork(&self.store, *partition, &history).await? {
                    lost.forks.push((*partition, fork));
                    lost.entries.extend(entries);
                }
            }
            if lost.forks.len() == tails.len() {
                crate::observe::warning!(entries = lost.entries.len(), "log rollback detected; sending resync");
                self.hub.roll_back(lost);
                return Ok(());
            }
        }
        crate::observe::warning!(?reason, "log continuity lost; sending resync");
        self.hub.restart_at(reason, self.store.id(), tails);
        Ok(())
    }

    /// Reads the tails of all logs. If the store was emptied or exchanged, adopts it as it is now, or initialises it.
    async fn tails(&self) -> Result<Tails, Error> {
        match self.store.tails(&self.server, Instant::now() + READ_TIMEOUT).await {
            Err(Error::StoreChanged) => {
                // A former primary that returns empty is not the store.
                self.store.confirm(&self.server).await?;
                let initialised = self.store.initialise(&self.server.partitions).await;
                initialised.map_err(|error| Error::Unavailable(error.to_string()))?;
                self.store.tails(&self.server, Instant::now() + READ_TIMEOUT).await
            }
            tails => tails,
        }
    }

    /// Reads from the log the entries that the hub lacks up to `until`. Returns the reason if the log does not continue
    /// from the hub's position.
    async fn read_log(&self, partition: Partition, until: Position) -> Result<Option<ResyncReason>, Error> {
        if self.hub.position(partition) != until {
            self.hub.metrics.feed_gaps.inc();
        }
        loop {
            let before = self.hub.position(partition);
            if before == until {
                return Ok(None);
            }
            match self.store.read_after(partition, before, Instant::now() + READ_TIMEOUT).await? {
                Page::Tail => return Ok(None),
                Page::Entries(entries) => {
                    for entry in entries {
                        self.hub.push_from_log(entry);
                    }
                    let reached = self.hub.position(partition);
                    if reached == before {
                        let cause = format!("log of partition {} makes no progress; the feed retries", partition.0);
                        return Err(Error::Unavailable(cause));
                    }
                    // Later entries arrive by the channel, or with the next tail read.
                    if reached.revision >= until.revision {
                        return Ok(None);
                    }
                }
                Page::Compacted => return Ok(Some(ResyncReason::Compacted)),
                Page::Flushed => return Ok(Some(ResyncReason::Flushed)),
                Page::RolledBack => return Ok(Some(ResyncReason::RolledBack)),
            }
        }
    }
}
