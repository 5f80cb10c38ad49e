//! One connection to a server, until it breaks: a fred client that never reconnects.
//!
//! The reconnect of fred is not used: if its only task waits to write to a server that hangs, it neither reads nor handles a
//! request to reconnect, and it may end permanently when its queue is full.

use std::{ops::Deref, pin::pin, time::Duration};

use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, MetricsInterface},
    types::{
        Builder, ConnectHandle, Value,
        config::{ConnectionConfig, TcpConfig, UnresponsiveConfig},
    },
};
use parking_lot::Mutex as SyncMutex;
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    endpoint::{Address, Endpoint},
    heartbeat::{Condition, Heartbeat, Pulse},
    reply::Reply,
    request::custom,
};

/// Maximum time to open a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without any reply, while a heartbeat waits for one, after which a connection is unresponsive; with both intervals, less
/// than 2 s in total.
pub(super) const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(1_400);
/// Last part of that time, in which a second connection shows whether the server replies to reads only.
const PAUSE_CHECK: Duration = Duration::from_millis(600);
/// Time without a reply after which a request that counts as a write is taken to be held back.
pub(super) const HELD_BACK_AFTER: Duration = Duration::from_millis(100);
/// Interval between heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two checks for replies while a heartbeat waits.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of messages that wait on a connection without subscriptions.
pub(super) const MESSAGES_WITHOUT_SUBSCRIPTION: usize = 32;
/// Maximum number of commands queued for a connection.
const MAX_QUEUED_COMMANDS: usize = 16_384;
/// Maximum time that closing a connection may take.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of a connection.
#[derive(Clone)]
pub(super) struct ConnectOptions {
    /// Credentials, TLS and protocol version.
    pub endpoint: Endpoint,
    /// Address of the server.
    pub address: Address,
    /// Maximum number of messages that wait for the subscriber. If there are more, messages are lost and it gets an error.
    pub messages: usize,
    /// Proof that the connection can be used.
    pub heartbeat: Heartbeat,
    /// Time without any reply, while a heartbeat waits for one, after which the connection is dropped.
    pub unresponsive_after: Duration,
}

/// One connection, until it breaks.
pub(super) struct Connection {
    client: Client,
    /// The task of fred; it ends when the connection breaks.
    task: Mutex<ConnectHandle>,
    /// Cancelled when the connection is dropped.
    closed: CancellationToken,
    /// Estimate of the server's clock. It has a reading once [`Connection::read_clock`] has succeeded.
    pub clock: Clock,
}

/// Why a connection is replaced.
pub(super) enum Loss {
    /// It broke, with this error.
    Broken(String),
    /// The server sent nothing, although a heartbeat waited for its reply.
    Unresponsive,
    /// The server answered that it cannot serve calls; with its reply.
    Unfit(String),
    /// The node was abandoned: its interactive connection is unresponsive or unfit.
    Abandoned,
}

impl Loss {
    /// Whether the other connections to the node must be replaced, too.
    pub(super) fn concerns_node(&self) -> bool {
        match self {
            Loss::Unresponsive | Loss::Unfit(_) => true,
            Loss::Broken(_) | Loss::Abandoned => false,
        }
    }

    /// Logs the loss and returns its cause for the operator.
    pub(super) fn log(self, server: &str) -> String {
        match self {
            Loss::Broken(cause) => {
                crate::observe::warning!(server, cause, "connection to Redis lost; reconnecting");
                cause
            }
            Loss::Unresponsive => {
                crate::observe::warning!(server, "Redis unresponsive; reconnecting");
                "Redis does not answer".into()
            }
            Loss::Unfit(cause) => {
                crate::observe::warning!(server, cause, "Redis cannot serve calls; reconnecting");
                cause
            }
            // The interactive connection has logged the cause.
            Loss::Abandoned => "reconnecting".into(),
        }
    }
}

impl Connection {
    /// Connects.
    pub(super) async fn open(options: &ConnectOptions) -> Result<Self, FredError> {
        let client = client(options)?;
        let connect = async {
            let task = Mutex::new(client.connect());
            Connection { client: client.clone(), task, closed: CancellationToken::new(), clock: Clock::new() }
        };
        // Begin to wait before connecting. If this future is dropped, the client is closed.
        let (connected, connection) = tokio::join!(biased; client.wait_for_connect(), connect);
        connected.map(|()| connection)
    }

    /// Whether the server holds back requests that count as writes: on a new connection it replies to TIME, and not to the
    /// heartbeat.
    pub(super) async fn are_writes_paused(options: &ConnectOptions) -> bool {
        let Ok(connection) = Connection::open(options).await else { return false };
        connection.read_clock().await.is_ok()
            && timeout(HELD_BACK_AFTER, options.heartbeat.send(&connection)).await.is_err()
    }

    /// Reads the server's clock.
    pub(super) async fn read_clock(&self) -> Result<(), FredError> {
        let sent = Instant::now();
        let reply = self.custom(custom("TIME"), Vec::<Value>::new()).await?;
        let now = Reply(reply).time().ok_or_else(|| FredError::new(ErrorKind::Protocol, "unexpected reply to TIME"))?;
        self.clock.note(now, sent);
        Ok(())
    }

    /// Waits for a reply; fails as soon as the connection is dropped. fred itself would keep its callers waiting.
    pub(super) async fn reply<T>(&self, sent: impl Future<Output = Result<T, FredError>>) -> Result<T, FredError> {
        tokio::select! {
            biased;
            reply = sent => reply,
            () = self.closed() => Err(FredError::new(ErrorKind::Timeout, "Redis unresponsive")),
        }
    }

    /// Number of replies so far.
    pub(super) fn replies(&self) -> u64 {
        self.client.read_res_size_metrics().samples
    }

    /// Waits for a reply as long as the server sends others, each at most `limit` after the one before: it may be queued behind
    /// many large ones, also of callers that no longer wait. None: the server is unresponsive.
    async fn wait_while_alive<T>(&self, limit: Duration, reply: impl Future<Output = T>) -> Option<T> {
        let (mut last, mut last_at) = (self.replies(), Instant::now());
        let mut reply = pin!(reply);
        loop {
            if let Ok(reply) = timeout(PROGRESS_INTERVAL, &mut reply).await {
                return Some(reply);
            }
            let now = self.replies();
            if now != last {
                (last, last_at) = (now, Instant::now());
            } else if last_at.elapsed() >= limit {
                return None;
            }
        }
    }

    /// Returns when the connection is dropped.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether the connection is dropped or broken.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.task.try_lock().is_ok_and(|task| task.is_finished())
    }

    /// Drops the connection: fails all commands that wait for a reply.
    pub(super) fn abort(&self) {
        self.closed.cancel();
    }

    /// Closes the connection with QUIT.
    pub(super) async fn close(&self) {
        let _ = timeout(QUIT_TIMEOUT, self.client.quit()).await;
        self.abort();
    }

    /// Sends a heartbeat and waits for its reply. None: the server is unresponsive. Silence does not count while `is_paused`
    /// returns true.
    async fn pulse<F: Future<Output = bool>>(
        &self,
        options: &ConnectOptions,
        is_paused: impl Fn() -> F,
    ) -> Option<Pulse> {
        let mut pulse = pin!(options.heartbeat.send(&self.client));
        loop {
            if let Some(pulse) = self.wait_while_alive(options.unresponsive_after - PAUSE_CHECK, &mut pulse).await {
                return Some(pulse);
            }
            let checked_by = Instant::now() + PAUSE_CHECK;
            let checked = tokio::select! {
                biased;
                pulse = &mut pulse => return Some(pulse),
                checked = timeout_at(checked_by, is_paused()) => checked,
            };
            if checked != Ok(true) {
                // A pause may have ended during the check: the replies that it held back are then on their way.
                let rest = checked_by.saturating_duration_since(Instant::now());
                return self.wait_while_alive(rest, pulse).await;
            }
        }
    }

    /// Sends heartbeats and stores their results, until the connection must be replaced. A silent connection is kept while
    /// `is_paused` returns true.
    pub(super) async fn beat<F: Future<Output = bool>>(
        &self,
        options: &ConnectOptions,
        condition: &SyncMutex<Condition>,
        is_paused: impl Fn() -> F,
    ) -> Loss {
        let beating = async {
            let mut tick = interval(HEARTBEAT_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(pulse) = self.pulse(options, &is_paused).await else { return Loss::Unresponsive };
                match pulse {
                    Pulse::Alive(now) => *condition.lock() = now,
                    Pulse::Unfit(reply) => return Loss::Unfit(reply),
                }
            }
        };
        let broken = async {
            match (&mut *self.task.lock().await).await {
                Ok(Err(error)) => Loss::Broken(error.details().to_owned()),
                Ok(Ok(())) | Err(_) => Loss::Broken("closed".into()),
            }
        };
        tokio::select! {
            loss = beating => loss,
            loss = broken => loss,
            () = self.closed() => Loss::Broken("closed".into()),
        }
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closed.cancel();
        self.task.get_mut().abort();
    }
}

fn client(options: &ConnectOptions) -> Result<Client, FredError> {
    Builder::from_config(options.endpoint.config_for(&options.address)?)
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = MAX_QUEUED_COMMANDS;
            // `Connection::beat` detects unresponsive servers.
            connection.unresponsive = UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            // These errors mean that nothing was applied. fred would send the command again; the caller decides instead.
            connection.reconnect_errors = Vec::new();
        })
        .with_performance_config(|performance| performance.broadcast_channel_capacity = options.messages)
        .build()
}
