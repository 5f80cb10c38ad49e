//! ReplicatedWriter writes: sends a script and WAIT on one connection and replies when replicas have the write.
//!
//! WAIT counts from the last write of its own connection, so it has to follow the script on the same one, and it blocks that
//! connection. These connections are therefore separate, and each has a worker that sends one call at a time. A call in the
//! queue is not sent yet; if its caller gives up, it is never sent.

use std::sync::Arc;

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::{Key, Value},
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot},
    time::{Duration, Instant, timeout_at},
};

use super::{
    node::{Effect, Node, custom},
    reconnecting_connection::{self, ReconnectingConnection},
};
use crate::store::{
    Error,
    error::{Failure, failure},
    scripts::Script,
};

/// Number of connections for replicated writes per server.
pub(crate) const CONNECTIONS: usize = 4;
/// Maximum time that WAIT waits for replicas.
const WAIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which the connection is unresponsive: a ping waits behind WAIT.
pub(crate) const UNRESPONSIVE_AFTER: Duration =
    WAIT_TIMEOUT.saturating_add(reconnecting_connection::UNRESPONSIVE_AFTER);
/// Maximum number of queued calls.
const QUEUE: usize = 1_024;

/// A script to run, and the number of replicas that have to confirm it.
struct Call {
    script: &'static Script,
    keys: Vec<Key>,
    args: Vec<Bytes>,
    replicas: u32,
    deadline: Instant,
    answer: oneshot::Sender<Result<Answers, FredError>>,
}

/// Replies to the script and to WAIT.
type Answers = [Result<Value, FredError>; 2];

/// A queued call. The worker takes it out to send it, the caller to give up.
type Waiting = Arc<Mutex<Option<Call>>>;

/// Connections for replicated writes, and their queue.
pub(crate) struct ReplicatedWriter {
    connections: Vec<ReconnectingConnection>,
    sender: mpsc::Sender<Waiting>,
    receiver: AsyncMutex<mpsc::Receiver<Waiting>>,
}

impl ReplicatedWriter {
    /// Creates the queue for these connections; empty = replicated writes are not used.
    pub(crate) fn new(connections: Vec<ReconnectingConnection>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        ReplicatedWriter { connections, sender, receiver: AsyncMutex::new(receiver) }
    }

    /// The connections.
    pub(crate) fn connections(&self) -> &[ReconnectingConnection] {
        &self.connections
    }

    /// Sends queued calls on all connections; never returns.
    pub(crate) async fn work(&self) {
        join_all(self.connections.iter().map(|connection| self.work_on(connection))).await;
    }

    async fn work_on(&self, connection: &ReconnectingConnection) {
        loop {
            let connection = connection.connected().await;
            let waiting = tokio::select! {
                waiting = async { self.receiver.lock().await.recv().await } => waiting,
                () = connection.over() => continue,
            };
            let Some(waiting) = waiting else { return };
            // Taken out only when it can be sent at once: until then its caller may give up.
            let Some(call) = waiting.lock().take() else { continue };
            if !call.answer.is_closed() {
                let answers = connection.reply(send(&connection, &call)).await;
                let _ = call.answer.send(answers);
            }
        }
    }
}

impl Node {
    /// Runs a script that may write and waits until `replicas` replicas have the write, at most 1 s. Returns the reply and the
    /// number of replicas that confirmed.
    pub(crate) async fn run_replicated(
        &self,
        replicas: u32,
        script: &'static Script,
        keys: Vec<Key>,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<(Value, u64), Failure> {
        if let Some(connection) = self.replicated.connections.first()
            && self.replicated.connections.iter().all(|connection| connection.current().is_none())
        {
            return Err(self.why_disconnected(connection));
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { script, keys, args, replicas, deadline, answer };
        let waiting: Waiting = Arc::new(Mutex::new(Some(call)));
        let started = Instant::now();
        self.replicated.sender.try_send(waiting.clone()).map_err(|_| Failure::Error(Error::Overloaded))?;
        let left = async {
            self.left.cancelled().await;
            // A queued call is not sent any more; a call in flight still gets its reply.
            if waiting.lock().take().is_none() {
                std::future::pending::<()>().await;
            }
        };
        let answers = tokio::select! {
            answers = timeout_at(deadline, answered) => answers,
            () = left => return Err(Failure::Redirected("the partitions of this node moved".into())),
        };
        let Ok(answers) = answers else {
            let was_sent = waiting.lock().take().is_none();
            return Err(if was_sent { Error::OutcomeTimeout } else { Error::Overloaded }.into());
        };
        let answers = answers.unwrap_or_else(|_| Err(FredError::new(ErrorKind::Canceled, "stopped")));
        self.metrics.count_redis_command(script.name, started.elapsed(), matches!(&answers, Ok([Ok(_), Ok(_)])));
        let failed = |error: &FredError| failure(error, Effect::Writes);
        let [reply, confirmed] = answers.map_err(|error| failed(&error))?;
        let reply = reply.map_err(|error| failed(&error))?;
        // If WAIT fails the write may still be applied.
        let unknown = |error: FredError| Failure::Error(Error::OutcomeUnknown(error.details().to_owned()));
        let confirmed = confirmed.map_err(unknown)?;
        Ok((reply, confirmed.as_u64().unwrap_or(0)))
    }
}

async fn send(client: &Client, call: &Call) -> Result<Answers, FredError> {
    let answers = pipeline(client, "EVALSHA", call.script.digest().clone().into(), call).await?;
    match &answers[0] {
        // Redis does not have the script: send its source, which also loads it.
        Err(error) if error.details().starts_with("NOSCRIPT") => {
            pipeline(client, "EVAL", call.script.source().into(), call).await
        }
        _ => Ok(answers),
    }
}

/// Sends the script and WAIT in one pipeline.
async fn pipeline(client: &Client, command: &'static str, script: Value, call: &Call) -> Result<Answers, FredError> {
    let mut values = vec![script, Value::from(call.keys.len() as i64)];
    values.extend(call.keys.iter().cloned().map(Value::from));
    values.extend(call.args.iter().cloned().map(Value::Bytes));
    // WAIT 0 has no timeout.
    let wait = WAIT_TIMEOUT.min(call.deadline.saturating_duration_since(Instant::now())).as_millis().max(1);
    let pipeline = client.pipeline();
    let _: Value = pipeline.custom(custom(command), values).await?;
    let wanted = vec![Value::from(i64::from(call.replicas)), Value::from(wait as i64)];
    let _: Value = pipeline.custom(custom("WAIT"), wanted).await?;
    let mut answers = pipeline.try_all::<Value>().await.into_iter();
    let mut next = || answers.next().unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no reply")));
    Ok([next(), next()])
}
