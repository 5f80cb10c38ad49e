//! The connections to Redis. With the keys' hash tags and the scripts' loader this is all that knows fred.
//!
//! What fred does by default and must not do here: send a command again after a disconnect (one attempt each), queue
//! without bound, speak RESP2 (an array that begins with the text `message` is then taken for a push), and wait for
//! ever. Time-outs and heartbeats are our own: fred's do not hold while there is traffic, or while it reconnects to a
//! server that hangs.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, EventInterface, LuaInterface, PubsubInterface},
    types::{
        Builder, ClusterHash, CustomCommand, Key, Message, RespVersion, Value,
        config::{Config, ConnectionConfig, ReconnectPolicy, Server, TcpConfig, UnresponsiveConfig},
    },
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, MissedTickBehavior, timeout, timeout_at},
};

use crate::observe::Metrics;

use super::{
    error::Error,
    replicated::{self, Replicated},
    scripts::Script,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A reply to a ping that takes longer means a server that hangs: the connection is given up.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Commands waiting for a connection's writer.
const QUEUE: usize = 16_384;
/// Messages waiting for the feed; beyond it they are lost, which the feed notices and makes good from the log.
const MESSAGES: usize = 8_192;
/// How far ahead a script's time may end, however long the call's deadline.
const LONGEST_NOT_AFTER: Duration = Duration::from_secs(10);

/// What a command does, which decides what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Writes,
}

/// Which connection a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Calls that somebody waits for.
    Calls,
    /// Log pages, scans, expiry: nothing large stands before a call.
    Bulk,
}

/// Whether some answers wait for replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    Never,
    ForReplicas,
}

pub struct Connection {
    calls: Client,
    bulk: Client,
    subscriber: Client,
    pub(super) replicated: Replicated,
    /// Whether each of them answered its last heartbeat.
    up: [AtomicBool; 3],
    clock: Clock,
    pub(super) metrics: Arc<Metrics>,
}

impl Connection {
    /// Connects, or says why that failed; afterwards reconnects by itself, for ever.
    pub async fn open(
        url: &str,
        password: Option<&str>,
        waits: Waits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FredError> {
        let mut config = Config::from_url(url)?;
        config.version = RespVersion::RESP3;
        if let Some(password) = password {
            config.password = Some(password.to_owned());
        }
        let waiting = if waits == Waits::ForReplicas { replicated::CONNECTIONS } else { 0 };
        let waiting = (0..waiting).map(|_| client(&config, 32, None)).collect::<Result<_, _>>()?;
        let connection = Connection {
            calls: client(&config, 32, Some(UNRESPONSIVE_AFTER))?,
            bulk: client(&config, 32, Some(UNRESPONSIVE_AFTER))?,
            subscriber: client(&config, MESSAGES, Some(UNRESPONSIVE_AFTER))?,
            replicated: Replicated::new(waiting),
            up: [const { AtomicBool::new(true) }; 3],
            clock: Clock::new(),
            metrics,
        };
        for client in connection.clients().into_iter().chain(connection.replicated.clients()) {
            client.init().await?;
        }
        connection.metrics.store_up.set(1);
        Ok(connection)
    }

    fn clients(&self) -> [&Client; 3] {
        [&self.calls, &self.bulk, &self.subscriber]
    }

    pub async fn close(&self) {
        for client in self.clients().into_iter().chain(self.replicated.clients()) {
            let _ = timeout(Duration::from_secs(1), client.quit()).await;
        }
    }

    /// Pings every connection for ever, gives up one that hangs, and drops the clock's estimate whenever the connection
    /// for calls is a new one.
    pub async fn keep_alive(&self) {
        let mut reconnects = self.calls.reconnect_rx();
        let forgetting = async {
            while reconnects.recv().await != Err(RecvError::Closed) {
                self.clock.forget();
            }
        };
        let beating = self.clients().into_iter().zip(&self.up).map(|(client, up)| self.beat(client, up));
        tokio::join!(forgetting, futures_util::future::join_all(beating), self.replicated.work());
    }

    /// fred gives up a connection that hangs only where nothing is sent on it: its time counts from the last write.
    async fn beat(&self, client: &Client, up: &AtomicBool) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let answer = timeout(UNRESPONSIVE_AFTER, client.ping::<()>(None)).await;
            up.store(matches!(answer, Ok(Ok(()))), Ordering::Relaxed);
            self.metrics.store_up.set(self.is_up().into());
            if answer.is_err() && client.is_connected() {
                tracing::warn!("Redis hangs; connecting anew");
                // Begins it; it ends when Redis answers again.
                let _ = timeout(HEARTBEAT, client.force_reconnection()).await;
            }
        }
    }

    /// Whether Redis answered the last heartbeat on every connection.
    pub fn is_up(&self) -> bool {
        let connected = self.clients().iter().all(|client| client.is_connected());
        connected && self.up.iter().all(|up| up.load(Ordering::Relaxed))
    }

    /// The last moment of Redis' clock, in ms, at which a script of this call may write. The estimate of that clock
    /// is bounded by every answer, so the moment is later than the deadline by a round trip at most.
    pub async fn not_after(&self, deadline: Instant) -> Result<u64, Error> {
        if !self.clock.is_known() {
            self.time(Lane::Calls, deadline).await?;
        }
        Ok(self.clock.at(deadline.min(Instant::now() + LONGEST_NOT_AFTER)) / 1000)
    }

    /// What the clock of Redis shows now, at the latest known; in microseconds.
    pub fn now(&self) -> Option<u64> {
        self.clock.is_known().then(|| self.clock.at(Instant::now()))
    }

    /// Takes a reading of Redis' clock that came in answer to what was sent then.
    pub fn note_time(&self, redis_us: u64, sent: Instant) {
        self.clock.note(redis_us, sent);
    }

    /// What Redis says of itself in this section, a `field:value` a line.
    pub async fn info(&self, section: &'static str, deadline: Instant) -> Result<String, Error> {
        let reply = self.command(Lane::Bulk, "INFO", vec![section.into()], deadline).await?;
        reply.into_string().ok_or_else(|| Error::Unexpected("INFO".into()))
    }

    /// Reads the clock of Redis, in us.
    pub async fn time(&self, lane: Lane, deadline: Instant) -> Result<u64, Error> {
        let sent = Instant::now();
        let reply = self.command(lane, "TIME", Vec::new(), deadline).await?;
        let mut parts = reply.into_array().into_iter().filter_map(|part| part.as_u64());
        let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) else {
            return Err(Error::Unexpected("TIME".into()));
        };
        let now = seconds * 1_000_000 + micros;
        self.note_time(now, sent);
        Ok(now)
    }

    /// Runs a script; the reply is an array that an integer begins.
    pub async fn run(
        &self,
        lane: Lane,
        script: &Script,
        keys: Vec<Key>,
        args: Vec<Bytes>,
        deadline: Instant,
        effect: Effect,
    ) -> Result<Vec<Value>, Error> {
        debug_assert_eq!(keys.len(), script.keys, "{}", script.name);
        let client = self.client(lane);
        let args: Vec<Value> = args.into_iter().map(Value::Bytes).collect();
        let started = Instant::now();
        let attempt = async {
            match client.evalsha(script.digest().clone(), keys.clone(), args.clone()).await {
                // Nothing ran. Sent in full it runs at once, and is known from then on.
                Err(error) if error.details().starts_with("NOSCRIPT") => client.eval(script.source(), keys, args).await,
                answer => answer,
            }
        };
        let answer: Result<Value, Error> = self.wait(client, deadline, effect, attempt).await;
        self.metrics.redis_call(script.name, started.elapsed(), answer.is_ok());
        match answer? {
            Value::Array(reply) => Ok(reply),
            other => Err(Error::Unexpected(format!("{}: {:?}", script.name, other.kind()))),
        }
    }

    /// Sends a command that reads, or that may as well be sent again.
    pub async fn command(
        &self,
        lane: Lane,
        name: &'static str,
        args: Vec<Value>,
        deadline: Instant,
    ) -> Result<Value, Error> {
        let client = self.client(lane);
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let started = Instant::now();
        let answer = self.wait(client, deadline, Effect::Reads, client.custom(command, args)).await;
        self.metrics.redis_call(name, started.elapsed(), answer.is_ok());
        answer
    }

    fn client(&self, lane: Lane) -> &Client {
        match lane {
            Lane::Calls => &self.calls,
            Lane::Bulk => &self.bulk,
        }
    }

    async fn wait(
        &self,
        client: &Client,
        deadline: Instant,
        effect: Effect,
        answer: impl Future<Output = Result<Value, FredError>>,
    ) -> Result<Value, Error> {
        if !client.is_connected() {
            return Err(Error::Unavailable("reconnecting".into()));
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failure(&error, effect)),
            Err(_) if effect == Effect::Reads => Err(Error::Timeout),
            Err(_) => Err(Error::OutcomeTimeout),
        }
    }

    /// Told whenever the subscriber has a new connection, which has no subscriptions.
    pub fn subscriber_reconnects(&self) -> Receiver<Server> {
        self.subscriber.reconnect_rx()
    }

    pub fn messages(&self) -> Receiver<Message> {
        self.subscriber.message_rx()
    }

    pub async fn subscribe(&self, channels: impl Iterator<Item = String>) -> Result<(), Error> {
        for channel in channels {
            let answer = timeout(CONNECT_TIMEOUT, self.subscriber.ssubscribe(channel)).await;
            answer.map_err(|_| Error::Timeout)?.map_err(|error| failure(&error, Effect::Reads))?;
        }
        Ok(())
    }
}

fn client(config: &Config, messages: usize, unresponsive_after: Option<Duration>) -> Result<Client, FredError> {
    Builder::from_config(config.clone())
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = QUEUE;
            connection.unresponsive = UnresponsiveConfig { max_timeout: unresponsive_after, interval: HEARTBEAT };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            // Their text tells the caller that nothing was applied; fred would send the command again.
            connection.reconnect_errors = Vec::new();
        })
        .with_performance_config(|performance| performance.broadcast_channel_capacity = messages)
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 2_000, 2))
        .build()
}

/// What an error of fred means for the call. That a write was not applied is said only of what Redis answers before it
/// runs a script, and of what was never handed over.
pub(super) fn failure(error: &FredError, effect: Effect) -> Error {
    const NOT_NOW: [&str; 8] =
        ["LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MISCONF"];
    const REFUSED: [&str; 4] = ["NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE"];
    let text = error.details();
    let is = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    match (error.kind(), effect) {
        (ErrorKind::Backpressure, _) => Error::Overloaded,
        _ if text.starts_with("OOM") => Error::Full,
        _ if is(&NOT_NOW) => Error::Unavailable(text.to_owned()),
        _ if is(&REFUSED) => Error::Refused(text.to_owned()),
        (ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Protocol, Effect::Reads) => {
            Error::Unavailable(text.to_owned())
        }
        (_, Effect::Reads) => Error::Refused(text.to_owned()),
        (_, Effect::Writes) => Error::OutcomeUnknown(text.to_owned()),
    }
}

/// An estimate of Redis' clock that runs at most a round trip ahead of it. A reading was made between the sending and the
/// answer, which bounds the estimate on both sides; the latest one wins. Belongs to one connection.
struct Clock {
    origin: Instant,
    /// Redis' time in us less the time since `origin`.
    offset: AtomicI64,
}

const UNKNOWN: i64 = i64::MIN;

impl Clock {
    fn new() -> Self {
        Clock { origin: Instant::now(), offset: AtomicI64::new(UNKNOWN) }
    }

    fn is_known(&self) -> bool {
        self.offset.load(Ordering::Relaxed) != UNKNOWN
    }

    fn note(&self, redis_us: u64, sent: Instant) {
        let since = |moment: Instant| moment.saturating_duration_since(self.origin).as_micros() as i64;
        let (least, most) = (redis_us as i64 - since(Instant::now()), redis_us as i64 - since(sent));
        let narrowed = |offset: i64| Some(if offset == UNKNOWN { least } else { offset.clamp(least, most) });
        let _ = self.offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, narrowed);
    }

    fn forget(&self) {
        self.offset.store(UNKNOWN, Ordering::Relaxed);
    }

    fn at(&self, moment: Instant) -> u64 {
        let offset = self.offset.load(Ordering::Relaxed);
        (offset.max(0) as u64).saturating_add(moment.saturating_duration_since(self.origin).as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn the_estimate_follows_a_clock_that_steps_back_and_forth() {
        let clock = Clock::new();
        for now in [1_000, 2_000, 500, 700].map(|seconds| seconds * SECOND) {
            clock.note(now, Instant::now());
            let ahead = clock.at(Instant::now()) as i64 - now as i64;
            assert!((0..100_000).contains(&ahead), "{ahead}");
        }
    }

    #[test]
    fn a_slow_answer_does_not_set_the_estimate_back() {
        let clock = Clock::new();
        let sent = clock.origin;
        clock.note(1_000 * SECOND, sent);
        let before = clock.offset.load(Ordering::Relaxed);
        // Read by Redis as soon as it was sent, heard of half a second later.
        clock.note(1_000 * SECOND, sent - Duration::from_millis(500));
        assert_eq!(clock.offset.load(Ordering::Relaxed), before);
    }
}
