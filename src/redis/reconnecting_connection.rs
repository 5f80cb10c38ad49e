//! A connection that reconnects: a sequence of connections. If one breaks, becomes unresponsive or cannot serve calls, it is
//! dropped and a new one is opened, with a new lookup of the address; no command is carried over.

use std::{sync::Arc, time::Duration};

use fred::error::Error as FredError;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{CONNECT_TIMEOUT, ConnectOptions, Connection, Loss},
    error::{Error, ReplyKind},
    heartbeat::{Condition, Pulse},
};

/// Pause after the first failed attempt to connect; it doubles with each attempt.
const FIRST_RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum pause between two attempts to connect.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(2);

/// What a connection does if it gets no reply.
#[derive(Clone, Copy)]
pub(super) enum OnSilence<'a> {
    /// It is replaced: it carries no request that a write pause holds back.
    Replace,
    /// A second connection shows whether the server is in a write pause.
    OpenSecond,
    /// The condition of this connection shows it.
    Follow(&'a ReconnectingConnection),
}

/// A connection that reconnects.
pub(super) struct ReconnectingConnection {
    options: ConnectOptions,
    current: watch::Sender<Option<Arc<Connection>>>,
    /// Result of the last heartbeat, or the reason why there is no connection.
    condition: Mutex<Condition>,
    /// Cancelled when the node owns no slot any more.
    retired: CancellationToken,
}

impl ReconnectingConnection {
    /// Connects.
    pub(super) async fn open(options: ConnectOptions, retired: CancellationToken) -> Result<Self, FredError> {
        let current = watch::Sender::new(Some(Arc::new(connect(&options).await?)));
        Ok(ReconnectingConnection { options, current, condition: Mutex::new(Condition::Healthy), retired })
    }

    /// Returns the current connection, or the reason why there is none: a request was not sent.
    pub(super) fn ready(&self) -> Result<Arc<Connection>, Error> {
        self.current().ok_or_else(|| self.why_disconnected())
    }

    fn why_disconnected(&self) -> Error {
        if self.retired.is_cancelled() {
            return Error::node_retired();
        }
        match self.condition() {
            // The topology may name another node soon.
            Condition::Down(cause) if ReplyKind::of(&cause) == ReplyKind::ReadOnly => Error::Redirect(cause),
            Condition::Down(cause) => Error::Unavailable(format!("reconnecting: {cause}")),
            Condition::Healthy | Condition::WritesPaused | Condition::WritesRefused(_) => {
                Error::Unavailable("reconnecting".into())
            }
        }
    }

    /// Returns the current connection. None: it is reconnecting.
    pub(super) fn current(&self) -> Option<Arc<Connection>> {
        self.current.borrow().clone()
    }

    /// Returns the result of the last heartbeat, or the reason why there is no connection.
    pub(super) fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// Whether the server answers reads only.
    pub(super) fn writes_are_paused(&self) -> bool {
        *self.condition.lock() == Condition::WritesPaused
    }

    /// Whether the server holds back requests that count as writes, which explains the silence of this connection.
    async fn is_paused(&self, on_silence: OnSilence<'_>) -> bool {
        match on_silence {
            OnSilence::Replace => false,
            OnSilence::Follow(other) => other.writes_are_paused(),
            OnSilence::OpenSecond => {
                let is_paused = Connection::are_writes_paused(&self.options).await;
                if is_paused {
                    self.note_write_pause();
                }
                is_paused
            }
        }
    }

    /// Notes that the server answers reads only, until the next reply to a heartbeat.
    pub(super) fn note_write_pause(&self) {
        *self.condition.lock() = Condition::WritesPaused;
    }

    /// Waits until there is a connection, and returns it.
    #[expect(clippy::expect_used, reason = "the sender is a field of self, and the value was checked")]
    pub(super) async fn connected(&self) -> Arc<Connection> {
        let mut current = self.current.subscribe();
        let current = current.wait_for(Option::is_some).await.expect("the sender lives as long as self");
        current.clone().expect("waited until there is one")
    }

    /// Keeps the connection alive and reconnects; never returns. Replaces the connection when the future of `abandoned`
    /// completes, and calls `on_node_loss` when the connection shows that the node cannot be used. A silent connection
    /// is kept while the server holds back requests that count as writes.
    pub(super) async fn keep_alive<F: Future<Output = ()>>(
        &self,
        server: &str,
        abandoned: impl Fn() -> F,
        on_node_loss: impl Fn(),
        on_silence: OnSilence<'_>,
    ) {
        let mut pause = Duration::ZERO;
        loop {
            let connection = match self.current() {
                Some(connection) => connection,
                None => self.reconnect(&mut pause).await,
            };
            let began = Instant::now();
            let loss = tokio::select! {
                loss = connection.beat(&self.options, &self.condition, || self.is_paused(on_silence)) => loss,
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
            connection.abort();
        }
    }

    /// Connects after a pause, and again until the new connection passes a heartbeat; the pause doubles each time.
    async fn reconnect(&self, pause: &mut Duration) -> Arc<Connection> {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).clamp(FIRST_RECONNECT_PAUSE, MAX_RECONNECT_PAUSE);
            let opened = async {
                let connection = connect(&self.options).await.map_err(|error| error.details().to_owned())?;
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
    pub(super) async fn close(&self) {
        if let Some(connection) = self.current.send_replace(None) {
            connection.close().await;
        }
    }
}

/// Connects and reads the server's clock, without which a read of a record decides nothing and a write has no deadline.
async fn connect(options: &ConnectOptions) -> Result<Connection, FredError> {
    let connection = Connection::open(options).await?;
    connection.read_clock().await?;
    Ok(connection)
}
