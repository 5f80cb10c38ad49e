//! One Redis server: its connections with their heartbeats, and its clock.
//!
//! fred gets single servers only; `router` decides which of them owns a slot. Some defaults of fred are disabled:
//! sending a command again after a disconnect (one attempt each), queues without a limit, RESP2 (it mistakes an array that
//! begins with the text `message` for a push), and waiting without a limit. `connection` and `reconnecting_connection`
//! implement timeouts, heartbeats and reconnects.

use std::{
    collections::BTreeMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fred::{interfaces::PubsubInterface, types::Value};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{CONNECT_TIMEOUT, Connection, HELD_BACK_AFTER},
    endpoint::Address,
    error::{Effect, Error},
    event_queue::EventQueue,
    heartbeat::{Condition, Probe, describe_refused},
    reconnecting_connection::{OnSilence, ReconnectingConnection},
    replicated_writer::ReplicatedWriter,
    reply::Reply,
    request::{Asking, Request, no_reply},
    script::Script,
};
use crate::observe::Metrics;

/// Maximum time between sending a script and its `not_after`, even if the call's deadline is later.
pub const LONGEST_NOT_AFTER: Duration = Duration::from_secs(10);
/// Maximum expected size in bytes of all large replies on their way from one server. Without a bound, heartbeats and small
/// reads wait behind them on a slow line, and Redis closes connections that exceed its `maxmemory-clients`.
pub const MAX_LARGE_REPLY_BYTES: usize = 1024 * 1024;
/// Time after a reply without a write in which the reply to the request that counts as one may follow, if the server is slow.
const SETTLING: Duration = Duration::from_millis(50);

/// Priority of a request: each has its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A client may wait for the reply. Carries every request that counts as a write.
    Interactive,
    /// The reply may be large or late. Carries no request that counts as a write, so that it goes on while Redis holds those
    /// back.
    Background,
}

/// Receives the keys of each request that Redis refuses because one of them has another type.
pub type OnWrongType = Arc<dyn Fn(&[Bytes]) + Send + Sync>;

/// One Redis server.
pub struct Node {
    /// Address of the server.
    pub(super) address: Address,
    pub(super) interactive: ReconnectingConnection,
    pub(super) background: ReconnectingConnection,
    pub(super) subscriber: ReconnectingConnection,
    /// Events of the subscriber connection that wait for the feed.
    pub(super) events: EventQueue,
    pub(super) replicated: ReplicatedWriter,
    /// Bytes of large replies that may still be requested.
    pub(super) large_replies: Semaphore,
    /// Notified when the interactive connection shows that the node cannot be used: all other connections are replaced.
    pub(super) abandoned: Notify,
    pub(super) probe: Probe,
    /// Problems that its heartbeats do not show, by the component that reported them.
    pub(super) problems: Mutex<BTreeMap<&'static str, Vec<String>>>,
    pub(super) on_wrong_type: OnWrongType,
    /// Cancelled when the server owns no slot any more.
    pub(super) retired: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
}

impl Node {
    fn all_connections(&self) -> impl Iterator<Item = &ReconnectingConnection> {
        let replicated = self.replicated.connections();
        [&self.interactive, &self.background, &self.subscriber].into_iter().chain(replicated)
    }

    /// Number of connections to the server.
    pub(super) fn connections(&self) -> usize {
        self.all_connections().count()
    }

    /// Stops [`Node::keep_alive`]: the server owns no slot any more.
    pub(super) fn retire(&self) {
        self.retired.cancel();
    }

    /// Closes all connections permanently.
    pub(super) async fn close(&self) {
        self.retire();
        join_all(self.all_connections().map(ReconnectingConnection::close)).await;
    }

    /// Keeps every connection alive until [`Node::retire`].
    pub(super) async fn keep_alive(&self) {
        let name = self.name();
        let on_loss = || self.abandoned.notify_waiters();
        let interactive = self.interactive.keep_alive(&name, std::future::pending, on_loss, OnSilence::OpenSecond);
        let (abandoned, ignored) = (|| self.abandoned.notified(), || ());
        // No request on these two counts as a write.
        let readers = [&self.background, &self.subscriber]
            .map(|reader| reader.keep_alive(&name, abandoned, ignored, OnSilence::Replace));
        let writers = self.replicated.connections();
        let on_silence = OnSilence::Follow(&self.interactive);
        let writers = writers.iter().map(|writer| writer.keep_alive(&name, abandoned, ignored, on_silence));
        let others = async {
            tokio::join!(
                join_all(readers),
                join_all(writers),
                self.replicated.work(),
                self.events.fill(&self.subscriber)
            )
        };
        let working = async { tokio::join!(interactive, others) };
        tokio::select! {
            _ = working => {}
            () = self.retired.cancelled() => {}
        }
    }

    /// Address of the server for logs: `host:port`, or the path of a socket.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Returns the condition of the connections. If it differs, that of the connection with the most severe one.
    pub fn condition(&self) -> Condition {
        self.all_connections().map(ReconnectingConnection::condition).max().unwrap_or(Condition::Healthy)
    }

    /// Whether the server answers reads only: it holds back every request that counts as a write.
    pub fn writes_are_paused(&self) -> bool {
        self.interactive.writes_are_paused()
    }

    /// Number of replies to requests that count as writes, since the connection for them was opened.
    fn replies_to_writes(&self) -> u64 {
        self.interactive.current().map_or(0, |connection| connection.replies())
    }

    /// Reads with a request that counts as a write. While the server holds such requests back, reads with `as_read`, which does
    /// not count as one and suffices if its result is final.
    pub async fn read_despite_pause<T, F: Future<Output = T>>(
        &self,
        as_write: impl Future<Output = T>,
        as_read: impl FnOnce() -> F,
        is_final: impl Fn(&T) -> bool,
    ) -> T {
        let was_paused = self.writes_are_paused();
        let mut as_write = pin!(as_write);
        if !was_paused && let Ok(done) = timeout(HELD_BACK_AFTER, &mut as_write).await {
            return done;
        }
        let received = self.replies_to_writes();
        let read = tokio::select! {
            biased;
            done = &mut as_write, if !was_paused => return done,
            read = as_read() => read,
        };
        if !is_final(&read) {
            return as_write.await;
        }
        if was_paused {
            return read;
        }
        match timeout(SETTLING, &mut as_write).await {
            Ok(done) => done,
            Err(_) if self.replies_to_writes() == received => {
                self.interactive.note_write_pause();
                read
            }
            // The server is slow.
            Err(_) => as_write.await,
        }
    }

    /// Replaces the problems that a component has found and the heartbeats do not show.
    pub fn report_problems(&self, component: &'static str, problems: Vec<String>) {
        self.problems.lock().insert(component, problems);
    }

    /// Returns the reported problems, by the names of the components.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().values().flatten().cloned().collect()
    }

    /// Returns a text that names the commands of scripts that the user may not run.
    pub async fn refused_commands(&self, deadline: Instant) -> Result<Option<String>, Error> {
        let connection = self.interactive.ready()?;
        let refused = timeout_at(deadline, connection.reply(self.probe.run(&connection))).await;
        let refused = refused.map_err(|_| Error::Timeout)?.map_err(|error| Error::of(&error, Effect::Reads))?;
        Ok((!refused.is_empty()).then(|| describe_refused(&refused)))
    }

    /// Time in ms by the server's clock after which a script of this call must not write. The clock's estimate is at most one
    /// round trip ahead, so this is at most one round trip after the deadline.
    pub fn not_after(&self, deadline: Instant) -> Result<u64, Error> {
        Ok(self.interactive.ready()?.clock.at(deadline.min(Instant::now() + LONGEST_NOT_AFTER)) / 1000)
    }

    /// Returns the estimated time in us of the server's clock. Fails while the connections are reconnecting.
    pub fn now(&self) -> Result<u64, Error> {
        let connection = self.interactive.ready().or_else(|_| self.background.ready())?;
        Ok(connection.clock.at(Instant::now()))
    }

    /// Adds a reading of the server's clock in us from the reply to a request sent at `sent`.
    pub fn note_time(&self, redis_us: u64, sent: Instant) {
        for connection in [&self.interactive, &self.background].into_iter().filter_map(|to| to.current()) {
            connection.clock.note(redis_us, sent);
        }
    }

    /// Returns a section of INFO: one `field:value` per line.
    pub async fn info(&self, section: &'static str, deadline: Instant) -> Result<String, Error> {
        let reply = self.command(Priority::Background, "INFO", &[section.into()], deadline).await?;
        reply.text().map(str::to_owned).ok_or(Error::UnexpectedReply("INFO"))
    }

    /// Returns the run id of the server; it changes with every restart.
    pub async fn run_id(&self, deadline: Instant) -> Result<String, Error> {
        let info = self.info("server", deadline).await?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        run.map(str::to_owned).ok_or(Error::UnexpectedReply("INFO"))
    }

    /// Returns the time in us in the reply to a TIME that was sent at `sent`, and adds it to the estimate of the clock.
    pub fn note_time_reply(&self, reply: Reply, sent: Instant) -> Result<u64, Error> {
        let now = reply.time().ok_or(Error::UnexpectedReply("TIME"))?;
        self.note_time(now, sent);
        Ok(now)
    }

    /// Sends a command that reads or can be sent twice.
    pub async fn command(
        &self,
        priority: Priority,
        name: &'static str,
        args: &[Bytes],
        deadline: Instant,
    ) -> Result<Reply, Error> {
        self.send(priority, Request::Command { name, args }, deadline, Effect::Reads, Asking::No).await
    }

    /// Sends a request and waits for its reply, at most until the deadline.
    pub async fn send(
        &self,
        priority: Priority,
        request: Request<'_>,
        deadline: Instant,
        effect: Effect,
        asking: Asking,
    ) -> Result<Reply, Error> {
        debug_assert!(priority == Priority::Interactive || !request.counts_as_write(), "{}", request.name());
        let connection = match priority {
            Priority::Interactive => &self.interactive,
            Priority::Background => &self.background,
        };
        self.send_on(&*connection.ready()?, request, deadline, effect, asking).await
    }

    /// Sends a request on a connection to this server and waits for its reply, at most until the deadline.
    pub(super) async fn send_on(
        &self,
        connection: &Connection,
        request: Request<'_>,
        deadline: Instant,
        effect: Effect,
        asking: Asking,
    ) -> Result<Reply, Error> {
        let started = Instant::now();
        // Boxed: a future of fred takes some 30 KB, which the future of every caller would contain.
        let sending: Pin<Box<dyn Future<Output = _> + Send>> = match asking {
            Asking::No => Box::pin(request.send(connection)),
            Asking::Yes => Box::pin(async move {
                let mut replies = Request::send_all(connection, &[request], asking).await?;
                replies.pop().unwrap_or_else(|| Err(no_reply()))
            }),
        };
        let reply = match timeout_at(deadline, connection.reply(sending)).await {
            Ok(reply) => reply.map_err(|error| Error::of(&error, effect)),
            Err(_) if effect == Effect::Reads => Err(Error::Timeout),
            Err(_) => Err(Error::OutcomeTimeout),
        };
        self.noted(request, started, reply)
    }

    /// Counts a request and notes its keys if one of them has another type. Returns the reply.
    pub(super) fn noted(
        &self,
        request: Request<'_>,
        started: Instant,
        reply: Result<Value, Error>,
    ) -> Result<Reply, Error> {
        self.metrics.count_redis_command(request.name(), started.elapsed(), reply.is_ok());
        reply.map(Reply).inspect_err(|error| self.note_wrong_type(error, request.keys()))
    }

    /// Runs a script that may write and waits until `replicas` replicas have the write, at most 1 s. Returns the reply and the
    /// number of replicas that confirmed.
    pub async fn write_replicated(
        &self,
        script: &'static Script,
        keys: &[Bytes],
        args: Vec<Bytes>,
        replicas: u32,
        deadline: Instant,
    ) -> Result<(Reply, u64), Error> {
        let written = self.replicated.write(script, keys.to_vec(), args, replicas, deadline).await;
        written.inspect_err(|error| self.note_wrong_type(error, keys))
    }

    fn note_wrong_type(&self, error: &Error, keys: &[Bytes]) {
        if error.is_wrong_type() {
            (self.on_wrong_type)(keys);
        }
    }

    /// Waits until a reply of this size in bytes may be on its way, at most until the deadline.
    pub async fn reserve(&self, bytes: usize, deadline: Instant) -> Result<SemaphorePermit<'_>, Error> {
        let bytes = bytes.min(MAX_LARGE_REPLY_BYTES) as u32;
        let reserved = timeout_at(deadline, self.large_replies.acquire_many(bytes)).await;
        reserved.ok().and_then(Result::ok).ok_or(Error::Timeout)
    }

    /// Subscribes to sharded channels, one at a time because their slots differ, and to plain channels.
    pub async fn subscribe(&self, sharded: Vec<String>, plain: Vec<String>) -> Result<(), Error> {
        let connection = self.subscriber.ready()?;
        // One channel whose slot has moved must not prevent the other subscriptions.
        let subscribing = async {
            let mut outcome = connection.subscribe(plain).await;
            for channel in sharded {
                let subscribed = connection.ssubscribe(channel).await;
                outcome = outcome.and(subscribed);
            }
            outcome
        };
        match timeout(CONNECT_TIMEOUT, connection.reply(subscribing)).await {
            Ok(subscribed) => subscribed.map_err(|error| Error::of(&error, Effect::Reads)),
            Err(_) => Err(Error::Timeout),
        }
    }
}
