//! Heartbeats: each connection proves at short intervals that it can be used for what it is there for.
//!
//! An answer to PING is not enough: a replica, or a server whose user has lost a right, answers PING and refuses every call.

use std::time::Duration;

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::Value,
};
use tokio::time::sleep;

use super::{error::ReplyKind, request::custom, script::Script};

/// Pause before a heartbeat that found no place in the queue is sent again.
const QUEUE_PAUSE: Duration = Duration::from_millis(50);

/// Proof that a connection has to give with every heartbeat.
#[derive(Clone)]
pub(super) enum Heartbeat {
    /// The server answers and is a primary (ROLE).
    Role,
    /// The server runs the probe, and its user may run every command that the probe checks.
    Probe(Probe),
}

/// Script that may write, so that a replica refuses it. It replies with 1 and the names of the commands that the user may not
/// run, or with 0 if the Cluster does not serve all slots.
#[derive(Clone)]
pub struct Probe {
    /// The script. It takes no keys.
    pub script: &'static Script,
    /// Its argument: name of a key and channel that never exist.
    pub absent: Bytes,
}

/// Result of a heartbeat.
pub(super) enum Pulse {
    /// The connection is kept.
    Alive(Condition),
    /// Another connection may reach a server that can serve calls: this one is replaced. Holds the reply of the server.
    Unfit(String),
}

/// Condition of a connection, ordered by severity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Every call can be served.
    Healthy,
    /// Redis answers reads, and no request that counts as a write (`CLIENT PAUSE WRITE`).
    WritesPaused,
    /// Redis answers and refuses writes. Holds its reply.
    WritesRefused(String),
    /// No call can be served. Holds the cause.
    Down(String),
}

/// Reply of the probe that a replica gives to a script that may write. ROLE of a replica is reported in the same words.
const REPLICA: &str = "READONLY the server is a replica";

impl Heartbeat {
    /// Sends the heartbeat on this connection and waits for the reply, without a limit.
    pub(super) async fn send(&self, client: &Client) -> Pulse {
        loop {
            let reply = match self {
                Heartbeat::Role => client.custom(custom("ROLE"), Vec::<Value>::new()).await.map(pulse_of_role),
                Heartbeat::Probe(probe) => probe.run(client).await.map(pulse_of_probe),
            };
            match reply {
                Ok(pulse) => return pulse,
                // Nothing was sent: the queue is full until the server replies.
                Err(error) if *error.kind() == ErrorKind::Backpressure => sleep(QUEUE_PAUSE).await,
                Err(error) => return pulse_of_error(error.details()),
            }
        }
    }
}

impl Probe {
    /// Runs the probe. Returns the commands that the user may not run.
    pub(super) async fn run(&self, client: &Client) -> Result<Vec<String>, FredError> {
        let reply = self.script.run(client, &[], std::slice::from_ref(&self.absent)).await?.into_array();
        if reply.first().and_then(Value::as_u64) == Some(0) {
            return Err(FredError::new(ErrorKind::Cluster, "CLUSTERDOWN the Cluster does not serve all slots"));
        }
        Ok(reply.into_iter().skip(1).filter_map(Value::into_string).collect())
    }
}

/// Returns the text for an operator about rights that are missing.
pub(super) fn describe_refused(refused: &[String]) -> String {
    format!("the Redis user lacks rights: {}", refused.join(", "))
}

fn pulse_of_role(reply: Value) -> Pulse {
    let role = reply.into_array().into_iter().next().and_then(Value::into_string);
    match role.as_deref() {
        Some("master") => Pulse::Alive(Condition::Healthy),
        _ => Pulse::Unfit(REPLICA.into()),
    }
}

fn pulse_of_probe(refused: Vec<String>) -> Pulse {
    if refused.is_empty() { Pulse::Alive(Condition::Healthy) } else { Pulse::Unfit(describe_refused(&refused)) }
}

fn pulse_of_error(reply: &str) -> Pulse {
    match ReplyKind::of(reply) {
        ReplyKind::ReadOnly | ReplyKind::NotPermitted => Pulse::Unfit(reply.to_owned()),
        // The topology decides: the node may own no slot yet, or none any more.
        ReplyKind::Moved | ReplyKind::Ask | ReplyKind::TryAgain => Pulse::Alive(Condition::Healthy),
        ReplyKind::WritesRefused | ReplyKind::Full => Pulse::Alive(Condition::WritesRefused(reply.to_owned())),
        ReplyKind::ClusterDown | ReplyKind::NotNow | ReplyKind::WrongType | ReplyKind::Other => {
            Pulse::Alive(Condition::Down(reply.to_owned()))
        }
    }
}
