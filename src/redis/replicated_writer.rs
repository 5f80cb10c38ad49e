//! ReplicatedWriter writes: sends a script and WAIT on one connection and replies when replicas have the write.
//!
//! WAIT counts from the last write of its own connection, so it has to follow the script on the same one, and it blocks that
//! connection. These connections are therefore separate, and each has a worker that sends one call at a time. A call in the
//! queue is not sent yet; if its caller gives up, it is never sent.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::Value,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::UNRESPONSIVE_AFTER,
    error::{Effect, Error},
    reconnecting_connection::ReconnectingConnection,
    reply::Reply,
    request::{custom, eval_args},
    script::{Script, is_unknown_script},
};
use crate::observe::Metrics;

/// Number of connections for replicated writes per server.
pub(super) const CONNECTIONS_PER_NODE: usize = 4;
/// Maximum time that WAIT waits for replicas.
const WAIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which the connection is unresponsive: a heartbeat waits behind WAIT.
pub(super) const UNRESPONSIVE_WITH_WAIT_AFTER: Duration = WAIT_TIMEOUT.saturating_add(UNRESPONSIVE_AFTER);
/// Maximum number of queued writes per server.
const MAX_QUEUED_WRITES: usize = 1_024;

/// A script to run, and the number of replicas that have to confirm it.
struct Write {
    script: &'static Script,
    keys: Vec<Bytes>,
    args: Vec<Bytes>,
    replicas: u32,
    deadline: Instant,
    replies: oneshot::Sender<Result<Replies, FredError>>,
}

/// Replies to the script and to WAIT.
type Replies = [Result<Value, FredError>; 2];

/// A queued write. The worker takes it out to send it, the caller to give up.
type Queued = Arc<Mutex<Option<Write>>>;

/// Connections for replicated writes, and their queue.
pub(super) struct ReplicatedWriter {
    connections: Vec<ReconnectingConnection>,
    sender: mpsc::Sender<Queued>,
    receiver: AsyncMutex<mpsc::Receiver<Queued>>,
    /// Cancelled when the node owns no slot any more.
    retired: CancellationToken,
    metrics: Arc<Metrics>,
}

impl ReplicatedWriter {
    /// Creates the queue for these connections; empty = replicated writes are not used.
    pub(super) fn new(
        connections: Vec<ReconnectingConnection>,
        retired: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_WRITES);
        ReplicatedWriter { connections, sender, receiver: AsyncMutex::new(receiver), retired, metrics }
    }

    /// The connections.
    pub(super) fn connections(&self) -> &[ReconnectingConnection] {
        &self.connections
    }

    /// Sends queued writes on all connections; never returns.
    pub(super) async fn work(&self) {
        join_all(self.connections.iter().map(|connection| self.work_on(connection))).await;
    }

    async fn work_on(&self, connection: &ReconnectingConnection) {
        loop {
            let connection = connection.connected().await;
            let queued = tokio::select! {
                queued = async { self.receiver.lock().await.recv().await } => queued,
                () = connection.closed() => continue,
            };
            let Some(queued) = queued else { return };
            // Taken out only when it can be sent at once: until then its caller may give up.
            let Some(write) = queued.lock().take() else { continue };
            if !write.replies.is_closed() {
                let replies = connection.reply(send(&connection, &write)).await;
                let _ = write.replies.send(replies);
            }
        }
    }

    /// Runs a script that may write and waits until `replicas` replicas have the write, at most 1 s. Returns the reply and the
    /// number of replicas that confirmed.
    pub(super) async fn write(
        &self,
        script: &'static Script,
        keys: Vec<Bytes>,
        args: Vec<Bytes>,
        replicas: u32,
        deadline: Instant,
    ) -> Result<(Reply, u64), Error> {
        if let Some(connection) = self.connections.first()
            && self.connections.iter().all(|connection| connection.current().is_none())
        {
            connection.ready()?;
        }
        let (replies, replied) = oneshot::channel();
        let write = Write { script, keys, args, replicas, deadline, replies };
        let queued: Queued = Arc::new(Mutex::new(Some(write)));
        let started = Instant::now();
        self.sender.try_send(queued.clone()).map_err(|_| Error::Overloaded)?;
        let retired = async {
            self.retired.cancelled().await;
            // A queued write is not sent any more; a write in flight still gets its reply.
            if queued.lock().take().is_none() {
                std::future::pending::<()>().await;
            }
        };
        let replies = tokio::select! {
            replies = timeout_at(deadline, replied) => replies,
            () = retired => return Err(Error::node_retired()),
        };
        let Ok(replies) = replies else {
            let was_sent = queued.lock().take().is_none();
            return Err(if was_sent { Error::OutcomeTimeout } else { Error::Overloaded });
        };
        let replies = replies.unwrap_or_else(|_| Err(FredError::new(ErrorKind::Canceled, "stopped")));
        self.metrics.count_redis_command(script.name, started.elapsed(), matches!(&replies, Ok([Ok(_), Ok(_)])));
        let failed = |error: FredError| Error::of(&error, Effect::Writes);
        let [reply, confirmed] = replies.map_err(failed)?;
        let reply = reply.map_err(failed)?;
        // If WAIT fails the write may still be applied.
        let confirmed = confirmed.map_err(|error| Error::OutcomeUnknown(error.details().to_owned()))?;
        Ok((Reply(reply), confirmed.as_u64().unwrap_or(0)))
    }
}

async fn send(client: &Client, write: &Write) -> Result<Replies, FredError> {
    let replies = pipeline(client, "EVALSHA", write.script.sha1().clone().into(), write).await?;
    match &replies[0] {
        // Send the source, which also loads it.
        Err(error) if is_unknown_script(error) => pipeline(client, "EVAL", write.script.source().into(), write).await,
        _ => Ok(replies),
    }
}

/// Sends the script and WAIT in one pipeline.
async fn pipeline(client: &Client, command: &'static str, script: Value, write: &Write) -> Result<Replies, FredError> {
    // WAIT 0 has no timeout.
    let wait = WAIT_TIMEOUT.min(write.deadline.saturating_duration_since(Instant::now())).as_millis().max(1);
    let pipeline = client.pipeline();
    let _: Value = pipeline.custom(custom(command), eval_args(script, &write.keys, &write.args)).await?;
    let wanted = vec![Value::from(i64::from(write.replicas)), Value::from(wait as i64)];
    let _: Value = pipeline.custom(custom("WAIT"), wanted).await?;
    let mut replies = pipeline.try_all::<Value>().await.into_iter();
    let mut next = || replies.next().unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no reply")));
    Ok([next(), next()])
}
