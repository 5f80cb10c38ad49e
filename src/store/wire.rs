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
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without any reply, while a heartbeat waits for one, after which a connection is unresponsive; with both intervals, less
/// than 2 s in total.
pub(super) const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(1_400);
/// Interval between heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two checks for replies while a heartbeat waits.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after the first failed attempt to connect; it doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Maximum pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Maximum number of commands queued for a connection.
const QUEUE: usize = 16_384;
/// Maximum time that closing a connection may take.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of a connection.
#[derive(Clone)]
pub(super) struct Making {
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
pub(super) struct Line {
    client: Client,
    task: Mutex<ConnectHandle>,
    over: CancellationToken,
}

/// A connection that reconnects.
pub(super) struct Wire {
    making: Making,
    line: watch::Sender<Option<Arc<Line>>>,
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

impl Line {
    /// Connects.
    pub(super) async fn open(making: &Making) -> Result<Self, FredError> {
        let client = client(making)?;
        let connect = async {
            let task = Mutex::new(client.connect());
            Line { client: client.clone(), task, over: CancellationToken::new() }
        };
        // Begin to wait before connecting. If this future is dropped, the client is closed.
        let (connected, line) = tokio::join!(biased; client.wait_for_connect(), connect);
        connected.map(|()| line)
    }

    /// Waits for a reply; fails as soon as the connection is dropped. fred itself would keep its callers waiting.
    pub(super) async fn answer<T>(&self, asked: impl Future<Output = Result<T, FredError>>) -> Result<T, FredError> {
        tokio::select! {
            biased;
            answer = asked => answer,
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
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Whether the connection is dropped or broken.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled() || self.task.try_lock().is_ok_and(|task| task.is_finished())
    }

    /// Closes the connection with QUIT.
    pub(super) async fn close(&self) {
        let _ = timeout(QUIT_TIMEOUT, self.client.quit()).await;
        self.over.cancel();
    }

    /// Sends heartbeats and stores their results, until the connection must be replaced.
    async fn beat(&self, making: &Making, condition: &SyncMutex<Condition>) -> Loss {
        let beating = async {
            let mut tick = interval(HEARTBEAT_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let pulse = making.heartbeat.send(&self.client);
                match self.wait_while_alive(making.unresponsive_after, pulse).await {
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

impl Deref for Line {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.over.cancel();
        self.task.get_mut().abort();
    }
}

impl Wire {
    /// Connects.
    pub(super) async fn open(making: Making) -> Result<Self, FredError> {
        let line = watch::Sender::new(Some(Arc::new(Line::open(&making).await?)));
        Ok(Wire { making, line, condition: SyncMutex::new(Condition::Healthy) })
    }

    /// Returns the current connection. None: it is reconnecting.
    pub(super) fn line(&self) -> Option<Arc<Line>> {
        self.line.borrow().clone()
    }

    /// Returns the result of the last heartbeat, or the reason why there is no connection.
    pub(super) fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// Waits until there is a connection, and returns it.
    #[expect(clippy::expect_used, reason = "the sender is a field of self, and the value was checked")]
    pub(super) async fn connected(&self) -> Arc<Line> {
        let mut line = self.line.subscribe();
        let line = line.wait_for(Option::is_some).await.expect("the sender lives as long as self");
        line.clone().expect("waited until there is one")
    }

    /// Returns a receiver that is notified when the connection changes or is lost.
    pub(super) fn lines(&self) -> watch::Receiver<Option<Arc<Line>>> {
        self.line.subscribe()
    }

    /// Keeps the connection alive and reconnects; never returns. Replaces the connection when the future of `abandoned`
    /// completes, and calls `on_node_loss` when the connection shows that the node cannot be used.
    pub(super) async fn keep<F: Future<Output = ()>>(
        &self,
        server: &str,
        abandoned: impl Fn() -> F,
        on_node_loss: impl Fn(),
    ) {
        let mut pause = Duration::ZERO;
        loop {
            let line = match self.line() {
                Some(line) => line,
                None => self.reconnect(&mut pause).await,
            };
            let began = Instant::now();
            let loss = tokio::select! {
                loss = line.beat(&self.making, &self.condition) => loss,
                () = abandoned() => Loss::Abandoned,
            };
            if loss.concerns_node() {
                on_node_loss();
            }
            let cause = loss.log(server);
            if began.elapsed() > FIRST_PAUSE {
                pause = Duration::ZERO;
            }
            *self.condition.lock() = Condition::Down(cause);
            self.line.send_replace(None);
            // Fails all calls that wait for a reply.
            line.over.cancel();
        }
    }

    /// Connects after a pause, and again until the new connection passes a heartbeat; the pause doubles each time.
    async fn reconnect(&self, pause: &mut Duration) -> Arc<Line> {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            let opened = async {
                let line = Line::open(&self.making).await.map_err(|error| error.details().to_owned())?;
                match self.making.heartbeat.send(&line).await {
                    Pulse::Alive(condition) => Ok((line, condition)),
                    Pulse::Unfit(reply) => Err(reply),
                }
            };
            match timeout(CONNECT_TIMEOUT, opened).await.unwrap_or_else(|_| Err("no reply".into())) {
                Ok((line, condition)) => {
                    let line = Arc::new(line);
                    *self.condition.lock() = condition;
                    self.line.send_replace(Some(line.clone()));
                    return line;
                }
                Err(cause) => {
                    tracing::debug!(cause, "cannot connect to Redis");
                    *self.condition.lock() = Condition::Down(cause);
                }
            }
        }
    }

    /// Closes the current connection with QUIT.
    pub(super) async fn close(&self) {
        if let Some(line) = self.line.send_replace(None) {
            line.close().await;
        }
    }
}

fn client(making: &Making) -> Result<Client, FredError> {
    Builder::from_config(making.config.clone())
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = QUEUE;
            // `Line::beat` detects unresponsive servers.
            connection.unresponsive = UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            // These errors mean that nothing was applied. fred would send the command again; the caller decides instead.
            connection.reconnect_errors = Vec::new();
        })
        .with_performance_config(|performance| performance.broadcast_channel_capacity = making.messages)
        .build()
}
