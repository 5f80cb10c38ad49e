//! Follows the logs of one Redis node: by channel messages while they are complete, else by reading the logs.
//!
//! Each node has its own follower, so that one that hangs delays no other. A follower takes an entry from a channel
//! only if the entry's `previous` is the last position of its partition. It reads the tails of the node's partitions,
//! and from the logs the entries that the feed lacks: when entries before a received one are missing, on every new
//! connection, after lost messages, for a read barrier, and every 400 ms in any case. It subscribes before it reads
//! the tails, so that no entry is missed between the two. Any client with the right to publish can send messages that
//! are not of the log: reads that such messages cause become rare ([`Throttle`]).

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, sleep_until};

use crate::store::{ChannelEvent, Channels, Entry, Error, Message, Partition, Position};

use super::{
    barrier::BarrierRequests,
    history::Acceptance,
    log_reader::{CaughtUp, LogReader},
    missing_keys::MissingKeys,
    throttle::Throttle,
};

/// Number of failures in sequence after which the feed reports a problem. A single one may be a lost connection.
const FAILURES_REPORTED: u32 = 2;
/// Time between two reads of the tails when nothing else causes one. The near cache answers for 1 s after one.
const TAIL_READ_INTERVAL: Duration = Duration::from_millis(400);
/// Maximum pause between two reads that channel messages cause and that find nothing.
const LONGEST_THROTTLE_PAUSE: Duration = Duration::from_secs(1);

/// Follows the logs of one Redis node.
pub(super) struct Follower {
    reader: LogReader,
    channels: Channels,
    missing_keys: Arc<MissingKeys>,
    /// Requests of the read barrier of this node.
    requests: BarrierRequests,
    /// Whether the current connection is subscribed to all channels.
    is_subscribed: bool,
    /// Whether the tails were not read yet since the current connection was subscribed.
    is_new_connection: bool,
    /// Why entries may be missing. None: there is no doubt.
    doubt: Option<Doubt>,
    /// Limits the tail reads that doubts cause.
    tail_reads: Throttle,
    /// Limits the log reads that announced entries cause.
    log_reads: Throttle,
    /// Number of failures since the last success.
    failures: u32,
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

/// When the follower reads the tails after an event of its channels.
#[derive(PartialEq, Eq)]
enum NextRead {
    /// When it is due, or once the throttle permits it if there is a doubt.
    WhenDue,
    /// At once.
    Now,
}

impl Follower {
    /// A follower of the node of this reader.
    pub(super) fn new(reader: LogReader, missing_keys: &Arc<MissingKeys>, requests: BarrierRequests) -> Self {
        Follower {
            channels: reader.store.listen(&reader.server),
            reader,
            missing_keys: missing_keys.clone(),
            requests,
            is_subscribed: false,
            is_new_connection: true,
            doubt: None,
            tail_reads: Throttle::new(LONGEST_THROTTLE_PAUSE),
            log_reads: Throttle::new(LONGEST_THROTTLE_PAUSE),
            failures: 0,
        }
    }

    /// Follows the logs of the node. Never returns.
    pub(super) async fn follow(mut self) {
        let mut tick = tokio::time::interval(TAIL_READ_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut is_tick = false;
            tokio::select! {
                event = self.channels.next(&self.reader.store) => {
                    if self.receive(event).await == NextRead::WhenDue {
                        continue;
                    }
                }
                () = self.requests.wait() => {}
                _ = tick.tick() => is_tick = true,
                () = sleep_until(self.tail_reads.free_at()), if self.doubt.is_some() => {}
            }
            let read = self.read_tails().await;
            if is_tick {
                if read.is_some_and(|read| read.was_behind) {
                    // The channels should have delivered what the tick found: Redis drops the subscription to a slot that
                    // is migrated away, even if the slot returns. Subscribe again.
                    self.is_subscribed = false;
                }
                // A full interval until the next tick, even after a slow read, so that messages are processed in between.
                tick.reset();
            }
        }
    }

    /// Processes an event of the channels.
    async fn receive(&mut self, event: ChannelEvent) -> NextRead {
        match event {
            ChannelEvent::Message(Message::Entry(entry)) => {
                if self.receive_entry(&entry) == Acceptance::Gap {
                    self.doubt = Some(Doubt::Gap(entry.partition, entry.position));
                }
            }
            ChannelEvent::Message(Message::Announced { partition, position, previous }) => {
                if self.needs_tails_after(partition, position, previous).await {
                    self.doubt = Some(Doubt::Gap(partition, position));
                }
            }
            ChannelEvent::Message(Message::Unreadable) => self.doubt = Some(Doubt::Unreadable),
            ChannelEvent::Missed => self.doubt = Some(Doubt::Dropped),
            ChannelEvent::MissingKey(partition, name) => self.missing_keys.add(partition, name),
            ChannelEvent::MissedNotifications => self.note_lost_notifications(),
            ChannelEvent::Connected => {
                (self.is_subscribed, self.is_new_connection) = (false, true);
                return NextRead::Now;
            }
        }
        NextRead::WhenDue
    }

    /// Passes on an entry if it is the next one.
    fn receive_entry(&self, entry: &Entry) -> Acceptance {
        let LogReader { store, dispatcher, metrics, .. } = &self.reader;
        if let Some(now) = store.now_at(entry.partition) {
            let lag = now.saturating_sub(entry.position.revision.0);
            metrics.feed_lag_seconds.observe(lag as f64 / 1e6);
        }
        dispatcher.accept(entry)
    }

    /// Reads an announced entry from the log, if it follows the last one. Returns whether the tails must be read: entries
    /// before it are missing, or it cannot be read.
    async fn needs_tails_after(&mut self, partition: Partition, position: Position, previous: Position) -> bool {
        let reached = self.reader.dispatcher.position(partition);
        if position.revision <= reached.revision {
            return false;
        }
        if previous != reached || !self.log_reads.is_free() {
            return true;
        }
        let read = self.reader.read_log(partition, position).await;
        self.log_reads.note(self.reader.dispatcher.contains(partition, position));
        match read {
            Ok(reason) => reason.is_some(),
            Err(error) => {
                tracing::debug!(partition = partition.0, %error, "log read failed; reading tails");
                true
            }
        }
    }

    /// Subscribes if necessary, reads the tails and the missing entries, and answers the requests of the barrier. None: a
    /// read failed.
    async fn read_tails(&mut self) -> Option<CaughtUp> {
        let mut problem = None;
        if !self.is_subscribed {
            let subscribed = self.reader.store.subscribe(&self.reader.server).await;
            self.is_subscribed = subscribed.is_ok();
            problem = subscribed.err();
        }
        let (run_before, last_request) = (self.reader.run.clone(), self.requests.last());
        let read = self.reader.catch_up().await;
        if let Some(doubt) = self.doubt.take() {
            self.tail_reads.note(self.was_genuine(&doubt, &read));
        }
        self.requests.answer(last_request, read.as_ref().ok().map(|caught_up| caught_up.read));
        let is_first_read = read.is_ok() && self.is_subscribed && std::mem::take(&mut self.is_new_connection);
        if is_first_read && run_before.is_some() && run_before == self.reader.run {
            // Keyspace notifications were lost while there was no connection. Those from before the first connection, or of
            // another run of Redis, are left to the next regular reconciliation.
            self.note_lost_notifications();
        }
        let read = match read {
            Ok(caught_up) => Some(caught_up),
            Err(error) => {
                tracing::debug!(%error, "tail read failed; retrying");
                problem = Some(error);
                None
            }
        };
        self.failures = if problem.is_some() { self.failures + 1 } else { 0 };
        let problem = problem.filter(|_| self.failures >= FAILURES_REPORTED).map(|error| error.to_string());
        self.reader.store.note_feed_problem(&self.reader.server, problem);
        read
    }

    /// Whether the message that caused this read was of the log.
    fn was_genuine(&self, doubt: &Doubt, read: &Result<CaughtUp, Error>) -> bool {
        match doubt {
            Doubt::Gap(partition, position) => self.reader.dispatcher.contains(*partition, *position),
            Doubt::Unreadable => false,
            Doubt::Dropped => read.as_ref().is_ok_and(|caught_up| caught_up.was_behind),
        }
    }

    fn note_lost_notifications(&self) {
        self.missing_keys.note_lost_notifications(&self.reader.server.partitions);
    }
}
