//! A connection that reconnects: a sequence of fred clients, each with one connection. If a connection breaks, becomes
//! unresponsive or cannot serve calls, its client is dropped and a new one is opened, with a new lookup of the address; no
//! command is carried over.
//!
//! The reconnect of fred is not used: if its only task waits to write to a server that hangs, it neither reads nor handles a
//! request to reconnect, and it may end permanently when its queue is full.

use std::{ops::Deref, pin::pin, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, MetricsInterface},
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, TcpConfig, UnresponsiveConfig},
    },
};
use parking_lot::Mutex as SyncMutex;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::heartbeat::{Condition, Heartbeat, Pulse};

/// Maximum time to open a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without any reply, while a heartbeat waits for one, after which a connection is unresponsive; with both intervals, less
/// than 2 s in total.
pub(crate) const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(1_400);
/// Interval between heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two checks for replies while a heartbeat waits.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after the first failed attempt to connect; it doubles with each attempt.
const FIRST_RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum pause between two attempts to connect.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Maximum number of commands queued for a connection.
const MAX_QUEUED_COMMANDS: usize = 16_384;
/// Maximum time that closing a connection may take.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of a connection.
#[derive(Clone)]
pub(crate) struct ConnectOptions {
    /// Address, credentials, TLS and protocol version.
    pub config: Config,
    /// Message buffer. If it overflows, messages are lost and the receiver gets an error.
    pub messages: usize,
    /// Proof that the connection can be used.
    pub heartbeat: Heartbeat,
    /// Time without any reply, while a heartbeat waits for one, after which the connection is dropped.
    pub unresponsive_after: Duration,
}

/// One connection, until it breaks.
pub(crate) struct Connection {
    client: Client,
    task: Mutex<ConnectHandle>,
    over: CancellationToken,
}

/// A connection that reconnects.
pub(crate) struct ReconnectingConnection {
    options: ConnectOptions,
    current: watch::Sender<Option<Arc<Connection>>>,
    /// Result of the last heartbeat, or the reason why there is no connection.
    condition: SyncMutex<Condition>,
}

/// Why a connection is replaced.
enum Loss {
    /// It broke, with this error.
    Broken(String),
    /// The server sent nothing, although a heartbeat waited for its reply.
    Unresponsive,
    /// The server answered that it cannot serve calls; with its reply.
    Unfit(String),
    /// The node was abandoned: its connection for calls is unresponsive or unfit.
    Abandoned,
}

impl Loss {
    /// Whether the other connections to the node must be replaced, too.
    fn concerns_node(&self) -> bool {
        match self {
            Loss::Unresponsive | Loss::Unfit(_) => true,
            Loss::Broken(_) | Loss::Abandoned => false,
        }
    }

    /// Logs the loss and returns its cause for the operator.
    fn log(self, server: &str) -> String {
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
            // The connection for calls has logged the cause.
            Loss::Abandoned => "reconnecting".into(),
        }
    }
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Self, FredError> {
        let client = client(options)?;
        let connect = async {
            let task = Mutex::new(client.connect());
            Connection { client: client.clone(), task, over: CancellationToken::new() }
        };
        // Begin to wait before connecting. If this future is dropped, the client is closed.
        let (connected, connection) = tokio::join!(biased; client.wait_for_connect(), connect);
        connected.map(|()| connection)
    }

    /// Waits for a reply; fails as soon as the connection is dropped. fred itself would keep its callers waiting.
    pub(crate) async fn reply<T>(&self, sent: impl Future<Output = Result<T, FredError>>) -> Result<T, FredError> {
        tokio::select! {
            biased;
            reply = sent => reply,
            () = self.over() => Err(FredError::new(ErrorKind::Timeout, "Redis unresponsive")),
        }
    }

    /// Waits for a reply as long as the server sends others, each at most `limit` after the one before: it may be queued behind
    /// many large ones, also of callers that no longer wait. None: the server is unresponsive.
    async fn wait_while_alive<T>(&self, limit: Duration, reply: impl Future<Output = T>) -> Option<T> {
        let received = || self.client.read_res_size_metrics().samples;
        let (mut last, mut last_at) = (received(), Instant::now());
        let mut reply = pin!(reply);
        loop {
            if let Ok(reply) = timeout(PROGRESS_INTERVAL, &mut reply).await {
                return Some(reply);
            }
            let now = received();
            if now != last {
                (last, last_at) = (now, Instant::now());
            } else if last_at.elapsed() >= limit {
                return None;
            }
        }
    }

    /// Returns when the connection is dropped.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Whether the connection is dropped or broken.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled() || self.task.try_lock().is_ok_and(|task| task.is_finished())
    }

    /// Closes the connection with QUIT.
    pub(crate) async fn close(&self) {
        let _ = timeout(QUIT_TIMEOUT, self.client.quit()).await;
        self.over.cancel();
    }

    /// Sends heartbeats and stores their results, until the connection must be replaced.
    async fn beat(&self, options: &ConnectOptions, condition: &SyncMutex<Condition>) -> Loss {
        let beating = async {
            let mut tick = interval(HEARTBEAT_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let pulse = options.heartbeat.send(&self.client);
                match self.wait_while_alive(options.unresponsive_after, pulse).await {
                    Some(Pulse::Alive(now)) => *condition.lock() = now,
                    Some(Pulse::Unfit(reply)) => return Loss::Unfit(reply),
                    None => return Loss::Unresponsive,
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
            () = self.over() => Loss::Broken("closed".into()),
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
        self.over.cancel();
        self.task.get_mut().abort();
    }
}

impl ReconnectingConnection {
    /// Connects.
    pub(crate) async fn open(options: ConnectOptions) -> Result<Self, FredError> {
        let current = watch::Sender::new(Some(Arc::new(Connection::open(&options).await?)));
        Ok(ReconnectingConnection { options, current, condition: SyncMutex::new(Condition::Healthy) })
    }

    /// Returns the current connection. None: it is reconnecting.
    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        self.current.borrow().clone()
    }

    /// Returns the result of the last heartbeat, or the reason why there is no connection.
    pub(crate) fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// Waits until there is a connection, and returns it.
    #[expect(clippy::expect_used, reason = "the sender is a field of self, and the value was checked")]
    pub(crate) async fn connected(&self) -> Arc<Connection> {
        let mut current = self.current.subscribe();
        let current = current.wait_for(Option::is_some).await.expect("the sender lives as long as self");
        current.clone().expect("waited until there is one")
    }

    /// Returns a receiver that is notified when the connection changes or is lost.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<Arc<Connection>>> {
        self.current.subscribe()
    }

    /// Keeps the connection alive and reconnects; never returns. Replaces the connection when the future of `abandoned`
    /// completes, and calls `on_node_loss` when the connection shows that the node cannot be used.
    pub(crate) async fn keep_alive<F: Future<Output = ()>>(
        &self,
        server: &str,
        abandoned: impl Fn() -> F,
        on_node_loss: impl Fn(),
    ) {
        let mut pause = Duration::ZERO;
        loop {
            let connection = match self.current() {
                Some(connection) => connection,
                None => self.reconnect(&mut pause).await,
            };
            let began = Instant::now();
            let loss = tokio::select! {
                loss = connection.beat(&self.options, &self.condition) => loss,
                () = abandoned() => Loss::Abandoned,
            };
            if loss.concerns_node() {
                on_node_loss();
            }
            let cause = loss.log(server);
            if began.elapsed() > FIRST_RECONNECT_PAUSE {
                pause = Duration::ZERO;
            }
            *self.condition.lock() = Condition::Down(cause);
            self.current.send_replace(None);
            // Fails all calls that wait for a reply.
            connection.over.cancel();
        }
    }

    /// Connects after a pause, and again until the new connection passes a heartbeat; the pause doubles each time.
    async fn reconnect(&self, pause: &mut Duration) -> Arc<Connection> {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).clamp(FIRST_RECONNECT_PAUSE, MAX_RECONNECT_PAUSE);
            let opened = async {
                let connection = Connection::open(&self.options).await.map_err(|error| error.details().to_owned())?;
                match self.options.heartbeat.send(&connection).await {
                    Pulse::Alive(condition) => Ok((connection, condition)),
                    Pulse::Unfit(reply) => Err(reply),
                }
            };
            match timeout(CONNECT_TIMEOUT, opened).await.unwrap_or_else(|_| Err("no reply".into())) {
                Ok((connection, condition)) => {
                    let connection = Arc::new(connection);
                    *self.condition.lock() = condition;
                    self.current.send_replace(Some(connection.clone()));
                    return connection;
                }
                Err(cause) => {
                    tracing::debug!(cause, "cannot connect to Redis");
                    *self.condition.lock() = Condition::Down(cause);
                }
            }
        }
    }

    /// Closes the current connection with QUIT.
    pub(crate) async fn close(&self) {
        if let Some(connection) = self.current.send_replace(None) {
            connection.close().await;
        }
    }
}

fn client(options: &ConnectOptions) -> Result<Client, FredError> {
    Builder::from_config(options.config.clone())
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
