//! Writes that are answered only once replicas have them: script and WAIT back to back on one connection.
//!
//! WAIT counts from what its own connection wrote last, so it has to follow the script on the same one, and it blocks that
//! connection: these are connections of their own.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::Error as FredError,
    interfaces::ClientLike,
    types::{ClusterHash, CustomCommand, Key, Value},
};
use futures_util::future::join_all;
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::{
    connection::{Connection, Effect, failure},
    error::Error,
    scripts::Script,
};

/// Calls wait side by side on so many connections.
pub const CONNECTIONS: usize = 4;
/// The longest that replicas are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connections on which replicas are waited for.
pub struct Waiting {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Waiting {
    pub fn new(clients: Vec<Client>) -> Self {
        Waiting { clients, next: AtomicUsize::new(0) }
    }

    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    fn next(&self) -> Result<&Client, Error> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let connected = (0..self.clients.len()).map(|n| &self.clients[(next + n) % self.clients.len()]);
        let mut connected = connected.filter(|client| client.is_connected());
        connected.next().ok_or_else(|| Error::Unavailable("reconnecting".into()))
    }

    /// Connects anew what hangs: begun here, ended when Redis answers again.
    pub async fn reconnect(&self, patience: Duration) {
        join_all(self.clients.iter().map(|client| timeout(patience, client.force_reconnection()))).await;
    }
}

impl Connection {
    /// Runs a script that may write, and waits for so many replicas to have what it wrote; how many have.
    pub async fn run_replicated(
        &self,
        replicas: u32,
        script: &Script,
        keys: Vec<Key>,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<(Vec<Value>, u64), Error> {
        let client = self.waiting.next()?;
        let started = Instant::now();
        let by_digest = Value::from(script.digest().clone());
        let answers = async {
            let answers = send(client, "EVALSHA", by_digest, replicas, &keys, &args, deadline).await?;
            match &answers[0] {
                // Nothing ran. Sent in full it runs at once, and is known from then on.
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    send(client, "EVAL", script.source().into(), replicas, &keys, &args, deadline).await
                }
                _ => Ok(answers),
            }
        };
        let answers = timeout_at(deadline, answers).await.map_err(|_| Error::OutcomeTimeout);
        self.metrics.redis_call(script.name, started.elapsed(), matches!(&answers, Ok(Ok([Ok(_), Ok(_)]))));
        let [reply, confirmed] = answers?.map_err(|error| failure(&error, Effect::Writes))?;
        let Value::Array(reply) = reply.map_err(|error| failure(&error, Effect::Writes))? else {
            return Err(Error::Unexpected(script.name.to_owned()));
        };
        // What was written stands, whatever became of the waiting.
        let confirmed = confirmed.map_err(|error| Error::OutcomeUnknown(error.details().to_owned()))?;
        Ok((reply, confirmed.as_u64().unwrap_or(0)))
    }
}

type Answers = [Result<Value, FredError>; 2];

/// One pipeline: the script, and WAIT behind it.
async fn send(
    client: &Client,
    command: &'static str,
    script: Value,
    replicas: u32,
    keys: &[Key],
    args: &[Bytes],
    deadline: Instant,
) -> Result<Answers, FredError> {
    let place = ClusterHash::Custom(fred::util::redis_keyslot(keys[0].as_bytes()));
    let run = CustomCommand::new_static(command, place.clone(), false);
    let mut values = vec![script, Value::from(keys.len() as i64)];
    values.extend(keys.iter().cloned().map(Value::from));
    values.extend(args.iter().cloned().map(Value::Bytes));
    // WAIT 0 would be for ever.
    let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now())).as_millis().max(1) as i64;
    let pipeline = client.pipeline();
    let _: Value = pipeline.custom(run, values).await?;
    let wait = CustomCommand::new_static("WAIT", place, false);
    let _: Value = pipeline.custom(wait, vec![Value::from(i64::from(replicas)), Value::from(patience)]).await?;
    let mut answers = pipeline.try_all::<Value>().await.into_iter();
    let mut next =
        || answers.next().unwrap_or_else(|| Err(FredError::new(fred::error::ErrorKind::Canceled, "no answer")));
    Ok([next(), next()])
}
