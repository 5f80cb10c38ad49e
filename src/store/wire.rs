//! A connection that is kept: one client of fred after the other. One that breaks, or on which nothing is answered any more,
//! is thrown away, and another one opened; nothing is carried over.
//!
//! fred would connect anew by itself, but not where its only task waits to write to a server that hangs: then it reads
//! nothing, hears no request to reconnect, and may end for good once its queue is full.

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

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A reply to a ping that takes longer means a server that hangs. With the time to the next ping that is less than 2 s.
pub const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(1_400);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Before another attempt to connect: after the first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Commands waiting for a connection's writer.
const QUEUE: usize = 16_384;
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// How a connection is made, and when it is given up.
#[derive(Clone)]
pub struct Making {
    pub config: Config,
    /// Messages that may wait; beyond it they are lost, which their receiver is told.
    pub messages: usize,
    pub unresponsive_after: Duration,
}

/// A connection as long as it stands.
pub struct Line {
    client: Client,
    task: Mutex<ConnectHandle>,
    /// Whether it answered the last ping.
    is_up: AtomicBool,
    over: CancellationToken,
}

/// A connection that is kept.
pub struct Wire {
    making: Making,
    line: watch::Sender<Option<Arc<Line>>>,
}

impl Line {
    pub async fn open(making: &Making) -> Result<Self, FredError> {
        let client = client(making)?;
        let connect = async {
            let task = Mutex::new(client.connect());
            Line { client: client.clone(), task, is_up: AtomicBool::new(true), over: CancellationToken::new() }
        };
        // It has to wait before it begins; and dropped amid this, it ends.
        let (connected, line) = tokio::join!(biased; client.wait_for_connect(), connect);
        connected.map(|()| line)
    }

    /// The answer; an error as soon as it is known that none comes. (fred would have its callers wait on.)
    pub async fn answer<T>(&self, asked: impl Future<Output = Result<T, FredError>>) -> Result<T, FredError> {
        tokio::select! {
            biased;
            answer = asked => answer,
            () = self.over() => Err(FredError::new(ErrorKind::Timeout, "Redis hangs")),
        }
    }

    /// Returns once it is given up.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    pub fn is_over(&self) -> bool {
        self.over.is_cancelled() || self.task.try_lock().is_ok_and(|task| task.is_finished())
    }

    /// Has Redis close it.
    pub async fn close(&self) {
        let _ = timeout(QUIT_TIMEOUT, self.client.quit()).await;
        self.over.cancel();
    }

    /// Pings it until it breaks or nothing is answered.
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
            () = beating => "Redis hangs; connecting anew",
            () = broken => "the connection to Redis broke; connecting anew",
            () = self.over() => "it is closed",
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
    /// Connects, or says why that failed.
    pub async fn open(making: Making) -> Result<Self, FredError> {
        let line = watch::Sender::new(Some(Arc::new(Line::open(&making).await?)));
        Ok(Wire { making, line })
    }

    /// The connection; None = there is none right now.
    pub fn line(&self) -> Option<Arc<Line>> {
        self.line.borrow().clone()
    }

    /// The same, as soon as there is one.
    pub async fn connected(&self) -> Arc<Line> {
        let mut line = self.line.subscribe();
        let line = line.wait_for(Option::is_some).await.expect("it is our own");
        line.clone().expect("waited for")
    }

    /// Told whenever there is another connection, or none.
    pub fn lines(&self) -> watch::Receiver<Option<Arc<Line>>> {
        self.line.subscribe()
    }

    /// Whether it answered the last ping.
    pub fn is_up(&self) -> bool {
        self.line.borrow().as_ref().is_some_and(|line| line.is_up.load(Ordering::Relaxed))
    }

    /// Keeps it, for ever.
    pub async fn keep(&self, server: &str) {
        let mut pause = Duration::ZERO;
        loop {
            let line = match self.line() {
                Some(line) => line,
                None => self.connect_anew(&mut pause).await,
            };
            let began = Instant::now();
            let why = line.beat(self.making.unresponsive_after).await;
            tracing::warn!(server, "{why}");
            if began.elapsed() > FIRST_PAUSE {
                pause = Duration::ZERO;
            }
            self.line.send_replace(None);
            // Who waits for an answer is told that none comes.
            line.over.cancel();
        }
    }

    /// After a pause, which is longer the next time.
    async fn connect_anew(&self, pause: &mut Duration) -> Arc<Line> {
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
                Err(_) => tracing::debug!("cannot connect to Redis: no answer"),
            }
        }
    }

    /// Has Redis close it.
    pub async fn close(&self) {
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
            // The heartbeats are our own.
            connection.unresponsive = UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            // Their text tells the caller that nothing was applied; fred would send the command again.
            connection.reconnect_errors = Vec::new();
        })
        .with_performance_config(|performance| performance.broadcast_channel_capacity = making.messages)
        .build()
}
