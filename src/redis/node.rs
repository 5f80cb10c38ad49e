//! One Redis server: its connections with their heartbeats, and an estimate of its clock.
//!
//! fred gets single servers only; `router` decides which of them owns a partition. Some defaults of fred are disabled:
//! sending a command again after a disconnect (one attempt each), queues without a limit, RESP2 (it mistakes an array that
//! begins with the text `message` for a push), and waiting without a limit. `reconnecting_connection` implements timeouts, heartbeats and
//! reconnects.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{
    bytes_utils::Str,
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, PubsubInterface},
    types::{ClusterHash, CustomCommand, Key, Value, config::ServerConfig},
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    heartbeat::{Condition, describe_refused, probe},
    reconnecting_connection::{CONNECT_TIMEOUT, Connection, ReconnectingConnection},
    replicated_writer::ReplicatedWriter,
};
use crate::{
    observe::Metrics,
    store::{
        Error,
        broken_keys::BrokenKeys,
        error::{Failure, ReplyKind, failure},
        health::Problems,
        scripts::Script,
    },
};

/// Maximum time between sending a script and its `not_after`, even if the call's deadline is later.
pub(crate) const LONGEST_NOT_AFTER: Duration = Duration::from_secs(10);

/// Whether a command reads or writes: decides what a lost reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A lost reply means that nothing was applied.
    Reads,
    /// A lost reply means that the outcome is unknown.
    Writes,
}

/// Priority of a command: each has its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A client waits for the reply.
    Interactive,
    /// The reply may be large or late: it delays no interactive command.
    Background,
}

/// Whether connections for replicated writes are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// No policy has replicated durability.
    Never,
    /// Some policy has replicated durability.
    ForReplicas,
}

/// Whether ASKING precedes the command, because the slot is migrating to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// The server owns the slot.
    No,
    /// The slot is migrating to the server.
    Yes,
}

/// Request to a server.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    /// A script; the reply is an array that begins with an integer.
    Script {
        /// Script to run.
        script: &'static Script,
        /// Its KEYS.
        keys: &'a [Key],
        /// Its ARGV.
        args: &'a [Bytes],
    },
    /// A command that reads or can be sent twice.
    Command {
        /// Name of the command.
        name: &'static str,
        /// Its arguments.
        args: &'a [Value],
    },
}

/// One Redis server.
pub(crate) struct Node {
    /// Address of the server.
    pub address: ServerConfig,
    pub(crate) interactive: ReconnectingConnection,
    pub(crate) background: ReconnectingConnection,
    pub(crate) subscriber: ReconnectingConnection,
    pub(crate) replicated: ReplicatedWriter,
    /// Bytes of large replies that may still be requested.
    pub(crate) large_replies: Semaphore,
    pub(crate) clock: Clock,
    /// Notified when the connection for calls shows that the node cannot be used: all other connections are replaced.
    pub(crate) abandoned: Notify,
    /// Name of a key and channel that never exist.
    pub(crate) absent: Str,
    /// Problems that its heartbeats do not show.
    pub(crate) problems: Mutex<Problems>,
    pub(crate) broken_keys: Arc<BrokenKeys>,
    /// Cancelled when the server owns no partition any more.
    pub(crate) left: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
}

impl Node {
    fn all_connections(&self) -> impl Iterator<Item = &ReconnectingConnection> {
        [&self.interactive, &self.background, &self.subscriber].into_iter().chain(self.replicated.connections())
    }

    /// Number of connections to the server.
    pub(crate) fn connections(&self) -> usize {
        self.all_connections().count()
    }

    /// Closes all connections permanently.
    pub(crate) async fn close(&self) {
        self.left.cancel();
        join_all(self.all_connections().map(ReconnectingConnection::close)).await;
    }

    /// Keeps every connection alive until [`Node::close`]. Drops the clock's estimate when the connection for calls changes.
    pub(crate) async fn keep_alive(&self) {
        let name = self.name();
        let mut changes = self.interactive.changes();
        let forgetting = async {
            while changes.changed().await.is_ok() {
                self.clock.forget();
            }
        };
        let calls = self.interactive.keep_alive(&name, std::future::pending, || self.abandoned.notify_waiters());
        let others = self
            .all_connections()
            .skip(1)
            .map(|connection| connection.keep_alive(&name, || self.abandoned.notified(), || ()));
        let working = async { tokio::join!(forgetting, calls, join_all(others), self.replicated.work()) };
        tokio::select! {
            _ = working => {}
            () = self.left.cancelled() => {}
        }
    }

    /// Address of the server for logs.
    pub(crate) fn name(&self) -> String {
        name_of(&self.address)
    }

    /// Returns the condition of the connections. If it differs, that of the connection with the most severe one.
    pub(crate) fn condition(&self) -> Condition {
        self.all_connections().map(ReconnectingConnection::condition).max().unwrap_or(Condition::Healthy)
    }

    /// Returns a text that names the commands of scripts that the user may not run.
    pub(crate) async fn refused_commands(&self, deadline: Instant) -> Result<Option<String>, Failure> {
        let connection = self.connected(&self.interactive)?;
        let refused = match timeout_at(deadline, connection.reply(probe(&connection, &self.absent))).await {
            Ok(refused) => refused.map_err(|error| failure(&error, Effect::Reads))?,
            Err(_) => return Err(Error::Timeout.into()),
        };
        Ok((!refused.is_empty()).then(|| describe_refused(&refused)))
    }

    /// Time in ms by the server's clock after which a script of this call must not write. The clock's estimate is at most one
    /// round trip ahead, so this is at most one round trip after the deadline.
    pub(crate) async fn not_after(&self, deadline: Instant) -> Result<u64, Failure> {
        if !self.clock.is_known() {
            self.time(Priority::Interactive, deadline).await?;
        }
        Ok(self.clock.at(deadline.min(Instant::now() + LONGEST_NOT_AFTER)) / 1000)
    }

    /// Estimated time in us of the server's clock. None: no reading on this connection.
    pub(crate) fn now(&self) -> Option<u64> {
        self.clock.is_known().then(|| self.clock.at(Instant::now()))
    }

    /// Adds a reading of the server's clock from the reply to a request sent at `sent`.
    pub(crate) fn note_time(&self, redis_us: u64, sent: Instant) {
        self.clock.note(redis_us, sent);
    }

    /// Returns a section of INFO: one `field:value` per line.
    pub(crate) async fn info(&self, section: &'static str, deadline: Instant) -> Result<String, Failure> {
        let reply = self.command(Priority::Background, "INFO", &[section.into()], deadline).await?;
        reply.into_string().ok_or_else(|| Error::UnexpectedRead("INFO".into()).into())
    }

    /// Returns the run id of the server; it changes with every restart.
    pub(crate) async fn run(&self, deadline: Instant) -> Result<String, Failure> {
        let info = self.info("server", deadline).await?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        run.map(str::to_owned).ok_or_else(|| Error::UnexpectedRead("INFO".into()).into())
    }

    /// Reads the server's clock in us.
    pub(crate) async fn time(&self, priority: Priority, deadline: Instant) -> Result<u64, Failure> {
        let sent = Instant::now();
        let reply = self.command(priority, "TIME", &[], deadline).await?;
        let mut parts = reply.into_array().into_iter().filter_map(|part| part.as_u64());
        let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) else {
            return Err(Error::UnexpectedRead("TIME".into()).into());
        };
        let now = seconds * 1_000_000 + micros;
        self.note_time(now, sent);
        Ok(now)
    }

    /// Fails if the server is a replica: its data may be old.
    pub(crate) async fn is_primary(&self, deadline: Instant) -> Result<(), Failure> {
        let reply = self.command(Priority::Background, "ROLE", &[], deadline).await?;
        let role = reply.into_array().into_iter().next().and_then(|role| role.into_string());
        if role.as_deref() == Some("master") {
            Ok(())
        } else {
            Err(Failure::Redirected("the node is a replica".into()))
        }
    }

    /// Sends a command that reads or can be sent twice. Fails if the server is a replica, which may lack recent writes.
    pub(crate) async fn ask_primary(
        &self,
        name: &'static str,
        args: &[Value],
        deadline: Instant,
        asking: Asking,
    ) -> Result<Value, Failure> {
        let reply = self.send(Priority::Background, Request::Command { name, args }, deadline, Effect::Reads, asking);
        // ROLE follows the command on the same connection.
        Ok(tokio::try_join!(biased; reply, self.is_primary(deadline))?.0)
    }

    /// Sends a command that reads or can be sent twice.
    pub(crate) async fn command(
        &self,
        priority: Priority,
        name: &'static str,
        args: &[Value],
        deadline: Instant,
    ) -> Result<Value, Failure> {
        self.send(priority, Request::Command { name, args }, deadline, Effect::Reads, Asking::No).await
    }

    /// Sends a request and waits for its reply, at most until the deadline.
    pub(crate) async fn send(
        &self,
        priority: Priority,
        request: Request<'_>,
        deadline: Instant,
        effect: Effect,
        asking: Asking,
    ) -> Result<Value, Failure> {
        let connection = self.connected(match priority {
            Priority::Interactive => &self.interactive,
            Priority::Background => &self.background,
        })?;
        let started = Instant::now();
        // Boxed: a future of fred takes some 30 KB, which the future of every caller would contain.
        let sending: Pin<Box<dyn Future<Output = _> + Send>> = match asking {
            Asking::No => Box::pin(request.send(&connection)),
            Asking::Yes => Box::pin(request.ask(&connection)),
        };
        let answer = timeout_at(deadline, connection.reply(sending)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| failure(&error, effect)),
            Err(_) if effect == Effect::Reads => Err(Error::Timeout.into()),
            Err(_) => Err(Error::OutcomeTimeout.into()),
        };
        self.metrics.count_redis_command(request.name(), started.elapsed(), answer.is_ok());
        answer.inspect_err(|failure| self.broken_keys.note(failure, request.keys()))
    }

    /// Current connection; an error with the cause if it is reconnecting.
    fn connected(&self, connection: &ReconnectingConnection) -> Result<Arc<Connection>, Failure> {
        connection.current().ok_or_else(|| self.why_disconnected(connection))
    }

    /// Returns the failure of a call that was not sent, because this connection is reconnecting.
    pub(crate) fn why_disconnected(&self, connection: &ReconnectingConnection) -> Failure {
        if self.left.is_cancelled() {
            return Failure::Redirected("the partitions of this node moved".into());
        }
        match connection.condition() {
            // The topology may name another node soon.
            Condition::Down(cause) if ReplyKind::of(&cause) == ReplyKind::ReadOnly => Failure::Redirected(cause),
            Condition::Down(cause) => Error::Unavailable(format!("reconnecting: {cause}")).into(),
            Condition::Healthy | Condition::WritesRefused(_) => Error::Unavailable("reconnecting".into()).into(),
        }
    }

    /// Subscribes to sharded channels, one at a time because their slots differ, and to plain channels.
    pub(crate) async fn subscribe(&self, sharded: Vec<String>, plain: Vec<String>) -> Result<(), Failure> {
        let connection = self.connected(&self.subscriber)?;
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
            Ok(subscribed) => subscribed.map_err(|error| failure(&error, Effect::Reads)),
            Err(_) => Err(Error::Timeout.into()),
        }
    }
}

impl<'a> Request<'a> {
    /// Keys of the request; of a command, its first argument.
    fn keys(self) -> impl Iterator<Item = &'a str> {
        let (keys, args): (&[Key], &[Value]) = match self {
            Request::Script { keys, .. } => (keys, &[]),
            Request::Command { args, .. } => (&[], &args[..args.len().min(1)]),
        };
        let of_command = args.iter().filter_map(|arg| std::str::from_utf8(arg.as_bytes()?).ok());
        keys.iter().filter_map(Key::as_str).chain(of_command)
    }

    fn name(&self) -> &'static str {
        match self {
            Request::Script { script, .. } => script.name,
            Request::Command { name, .. } => name,
        }
    }

    async fn send(self, client: &Client) -> Result<Value, FredError> {
        match self {
            Request::Script { script, keys, args } => {
                let args = args.iter().cloned().map(Value::Bytes).collect();
                script.run(client, keys.to_vec(), args).await
            }
            Request::Command { name, args } => client.custom(custom(name), args.to_vec()).await,
        }
    }

    /// Sends ASKING and the request in one pipeline.
    async fn ask(self, client: &Client) -> Result<Value, FredError> {
        let pipeline = client.pipeline();
        let _: Value = pipeline.custom(custom("ASKING"), Vec::<Value>::new()).await?;
        let _: Value = match self {
            Request::Script { script, keys, args } => {
                let mut values = vec![script.source().into(), Value::from(keys.len() as i64)];
                values.extend(keys.iter().cloned().map(Value::from));
                values.extend(args.iter().cloned().map(Value::Bytes));
                pipeline.custom(custom("EVAL"), values).await?
            }
            Request::Command { name, args } => pipeline.custom(custom(name), args.to_vec()).await?,
        };
        let answer = pipeline.try_all::<Value>().await.into_iter().nth(1);
        answer.unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no reply")))
    }
}

/// Creates a command by name. The slot is irrelevant for connections to single servers.
pub(crate) fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// Returns `host:port`, or the path of a socket.
pub(crate) fn name_of(address: &ServerConfig) -> String {
    match address {
        ServerConfig::Unix { path } => path.display().to_string(),
        address => address.hosts().first().map(ToString::to_string).unwrap_or_default(),
    }
}
