//! Writes that are answered only once replicas have them: script and WAIT back to back on one connection.
//!
//! WAIT counts from what its own connection wrote last, so it has to follow the script on the same one, and it blocks that
//! connection. So these are connections of their own, and each has a worker that sends one call at a time: a call that has
//! to wait for its turn is not sent yet, and one whose caller has gone is not sent at all.

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
    error::{Error, Failure, failure},
    node::{Effect, Node, custom},
    scripts::Script,
    wire::{self, Wire},
};

/// Calls wait for replicas side by side on so many connections.
pub const CONNECTIONS: usize = 4;
/// The longest that replicas are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// A ping waits for what is before it.
pub const UNRESPONSIVE_AFTER: Duration = PATIENCE.saturating_add(wire::UNRESPONSIVE_AFTER);
/// Calls waiting for their turn.
const QUEUE: usize = 1_024;

/// A script to run, and how many replicas are to have what it writes.
struct Call {
    script: &'static Script,
    keys: Vec<Key>,
    args: Vec<Bytes>,
    replicas: u32,
    deadline: Instant,
    answer: oneshot::Sender<Result<Answers, FredError>>,
}

/// Of the script, and of WAIT.
type Answers = [Result<Value, FredError>; 2];

/// A call until it is sent: whoever takes it out decides.
type Waiting = Arc<Mutex<Option<Call>>>;

/// The connections on which replicas are waited for.
pub struct Replicated {
    wires: Vec<Wire>,
    sender: mpsc::Sender<Waiting>,
    receiver: AsyncMutex<mpsc::Receiver<Waiting>>,
}

impl Replicated {
    pub fn new(wires: Vec<Wire>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Replicated { wires, sender, receiver: AsyncMutex::new(receiver) }
    }

    pub fn wires(&self) -> &[Wire] {
        &self.wires
    }

    /// Sends what is to be sent, for ever.
    pub async fn work(&self) {
        join_all(self.wires.iter().map(|wire| self.work_on(wire))).await;
    }

    async fn work_on(&self, wire: &Wire) {
        loop {
            let line = wire.connected().await;
            let waiting = tokio::select! {
                waiting = async { self.receiver.lock().await.recv().await } => waiting,
                () = line.over() => continue,
            };
            let Some(waiting) = waiting else { return };
            // Taken only to be sent at once: its caller takes it back when its time is over.
            let Some(call) = waiting.lock().take() else { continue };
            if !call.answer.is_closed() {
                let answers = line.answer(send(&line, &call)).await;
                let _ = call.answer.send(answers);
            }
        }
    }
}

impl Node {
    /// Runs a script that may write, and waits for so many replicas to have what it wrote; how many have.
    pub async fn run_replicated(
        &self,
        replicas: u32,
        script: &'static Script,
        keys: Vec<Key>,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<(Value, u64), Failure> {
        if self.replicated.wires.iter().all(|wire| wire.line().is_none()) {
            return Err(Error::Unavailable("reconnecting".into()).into());
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { script, keys, args, replicas, deadline, answer };
        let waiting: Waiting = Arc::new(Mutex::new(Some(call)));
        let started = Instant::now();
        self.replicated.sender.try_send(waiting.clone()).map_err(|_| Failure::Error(Error::Overloaded))?;
        let left = async {
            self.left.cancelled().await;
            // Nobody sends it any more; what was sent is answered.
            if waiting.lock().take().is_none() {
                std::future::pending::<()>().await;
            }
        };
        let answers = tokio::select! {
            answers = timeout_at(deadline, answered) => answers,
            () = left => return Err(Failure::Elsewhere("its partitions have moved".into())),
        };
        let Ok(answers) = answers else {
            let was_sent = waiting.lock().take().is_none();
            return Err(if was_sent { Error::OutcomeTimeout } else { Error::Overloaded }.into());
        };
        let answers = answers.unwrap_or_else(|_| Err(FredError::new(ErrorKind::Canceled, "stopped")));
        self.metrics.redis_call(script.name, started.elapsed(), matches!(&answers, Ok([Ok(_), Ok(_)])));
        let failed = |error: &FredError| failure(error, Effect::Writes);
        let [reply, confirmed] = answers.map_err(|error| failed(&error))?;
        let reply = reply.map_err(|error| failed(&error))?;
        // What was written stands, whatever became of the waiting.
        let unknown = |error: FredError| Failure::Error(Error::OutcomeUnknown(error.details().to_owned()));
        let confirmed = confirmed.map_err(unknown)?;
        Ok((reply, confirmed.as_u64().unwrap_or(0)))
    }
}

async fn send(client: &Client, call: &Call) -> Result<Answers, FredError> {
    let answers = pipeline(client, "EVALSHA", call.script.digest().clone().into(), call).await?;
    match &answers[0] {
        // Nothing ran. Sent in full it runs at once, and is known from then on.
        Err(error) if error.details().starts_with("NOSCRIPT") => {
            pipeline(client, "EVAL", call.script.source().into(), call).await
        }
        _ => Ok(answers),
    }
}

/// The script, and WAIT behind it.
async fn pipeline(client: &Client, command: &'static str, script: Value, call: &Call) -> Result<Answers, FredError> {
    let mut values = vec![script, Value::from(call.keys.len() as i64)];
    values.extend(call.keys.iter().cloned().map(Value::from));
    values.extend(call.args.iter().cloned().map(Value::Bytes));
    // WAIT 0 would be for ever.
    let patience = PATIENCE.min(call.deadline.saturating_duration_since(Instant::now())).as_millis().max(1);
    let pipeline = client.pipeline();
    let _: Value = pipeline.custom(custom(command), values).await?;
    let wanted = vec![Value::from(i64::from(call.replicas)), Value::from(patience as i64)];
    let _: Value = pipeline.custom(custom("WAIT"), wanted).await?;
    let mut answers = pipeline.try_all::<Value>().await.into_iter();
    let mut next = || answers.next().unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no answer")));
    Ok([next(), next()])
}
