//! A connection that reconnects: a sequence of fred clients, each with one connection. If a connection breaks or becomes
//! unresponsive, its client is dropped and a new one is opened; no command is carried over.
//!
//! The reconnect of fred is not used: if its only task waits to write to a server that hangs, it neither reads nor handles a
//! request to reconnect, and it may end permanently when its queue is full.

use std::{
    ops::Deref,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, TcpConfig, UnresponsiveConfig},
    },
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Maximum time to open a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without a reply to a ping after which a connection is unresponsive; with the ping interval, less than 2 s in total.
pub(super) const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(1_400);
/// Interval between pings.
const HEARTBEAT: Duration = Duration::from_millis(500);
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
    /// Time without a reply to a ping after which the connection is dropped.
    pub unresponsive_after: Duration,
}

/// One connection, until it breaks.
pub(super) struct Line {
    client: Client,
    task: Mutex<ConnectHandle>,
    /// Whether the server answered the last ping.
    is_up: AtomicBool,
    over: CancellationToken,
}

/// A connection that reconnects.
pub(super) struct Wire {
    making: Making,
    line: watch::Sender<Option<Arc<Line>>>,
}

impl Line {
    /// Connects.
    pub(super) async fn open(making: &Making) -> Result<Self, FredError> {
        let client = client(making)?;
        let connect = async {
            let task = Mutex::new(client.connect());
            Line { client: client.clone(), task, is_up: AtomicBool::new(true), over: CancellationToken::new() }
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

    /// Sends pings until the connection breaks, is unresponsive or is closed. Returns the log line.
    async fn beat(&self, unresponsive_after: Duration) -> &'static str {
        let beating = async {
            let mut tick = interval(HEARTBEAT);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Ok(answer) = timeout(unresponsive_after, self.client.ping::<()>(None)).await else { return };
                self.is_up.store(answer.is_ok(), Ordering::Relaxed);
            }
        };
        let broken = async {
            let _ = (&mut *self.task.lock().await).await;
        };
        tokio::select! {
            () = beating => "Redis unresponsive; reconnecting",
            () = broken => "connection to Redis lost; reconnecting",
            () = self.over() => "connection to Redis closed",
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
        Ok(Wire { making, line })
    }

    /// Returns the current connection. None: it is reconnecting.
    pub(super) fn line(&self) -> Option<Arc<Line>> {
        self.line.borrow().clone()
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

    /// Whether the server answered the last ping on this connection.
    pub(super) fn is_up(&self) -> bool {
        self.line.borrow().as_ref().is_some_and(|line| line.is_up.load(Ordering::Relaxed))
    }

    /// Keeps the connection alive and reconnects; never returns.
    pub(super) async fn keep(&self, server: &str) {
        let mut pause = Duration::ZERO;
        loop {
            let line = match self.line() {
                Some(line) => line,
                None => self.reconnect(&mut pause).await,
            };
            let began = Instant::now();
            let why = line.beat(self.making.unresponsive_after).await;
            tracing::warn!(server, "{why}");
            if began.elapsed() > FIRST_PAUSE {
                pause = Duration::ZERO;
            }
            self.line.send_replace(None);
            // Fails all calls that wait for a reply.
            line.over.cancel();
        }
    }

    /// Connects after a pause, and again until it succeeds; the pause doubles each time.
    async fn reconnect(&self, pause: &mut Duration) -> Arc<Line> {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            match timeout(CONNECT_TIMEOUT, Line::open(&self.making)).await {
                Ok(Ok(line)) => {
                    let line = Arc::new(line);
                    self.line.send_replace(Some(line.clone()));
                    return line;
                }
                Ok(Err(error)) => tracing::debug!(%error, "cannot connect to Redis"),
                Err(_) => tracing::debug!(error = "no reply", "cannot connect to Redis"),
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
