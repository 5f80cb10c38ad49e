//! Opens the connections to one Redis server, each with the heartbeat and the patience for its purpose.

use std::{sync::Arc, time::Duration};

use fred::{
    bytes_utils::Str,
    error::Error as FredError,
    types::config::{Config, ServerConfig},
};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    heartbeat::Heartbeat,
    node::{Node, Waits},
    reconnecting_connection::{ConnectOptions, ReconnectingConnection, UNRESPONSIVE_AFTER},
    replicated_writer::{self, ReplicatedWriter},
};
use crate::{
    observe::Metrics,
    store::{broken_keys::BrokenKeys, large_reads::IN_FLIGHT},
};

/// Message buffer of a connection without subscriptions.
pub(crate) const FEW: usize = 32;
/// Time without any reply, while a heartbeat waits for one, after which the connection for bulk reads is dropped: one large
/// reply takes this long on a slow line. If the node hangs, its connection for calls shows that earlier.
const BULK_UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);

/// Settings for connections to any server: credentials, TLS, buffers. The address in `config` is unused.
pub(crate) struct NodeConnector {
    /// Credentials, TLS and protocol version.
    pub config: Config,
    /// Whether connections for replicated writes are opened.
    pub waits: Waits,
    /// Name of a key and channel that never exist, for the probe.
    pub absent: Str,
    /// Message buffer of the feed. If it overflows, messages are lost; the feed detects that and reads the log.
    pub messages: usize,
    /// Metrics of the commands.
    pub metrics: Arc<Metrics>,
    /// Receives the keys of commands that Redis refuses for the type of a key.
    pub broken_keys: Arc<BrokenKeys>,
}

impl NodeConnector {
    /// Connects to a server. [`Node::keep_alive`] reconnects afterwards.
    pub(crate) async fn open(&self, address: &ServerConfig) -> Result<Node, FredError> {
        let config = Config { server: address.clone(), ..self.config.clone() };
        let (heartbeat, unresponsive_after) = (Heartbeat::Role, UNRESPONSIVE_AFTER);
        let options = ConnectOptions { config, messages: FEW, heartbeat, unresponsive_after };
        let for_calls =
            ConnectOptions { heartbeat: Heartbeat::Probe { absent: self.absent.clone() }, ..options.clone() };
        let for_bulk = ConnectOptions { unresponsive_after: BULK_UNRESPONSIVE_AFTER, ..options.clone() };
        let patient = ConnectOptions { unresponsive_after: replicated_writer::UNRESPONSIVE_AFTER, ..options.clone() };
        let for_subscriber = ConnectOptions { messages: self.messages, ..options };
        let waiting = if self.waits == Waits::ForReplicas { replicated_writer::CONNECTIONS } else { 0 };
        let waiting = try_join_all((0..waiting).map(|_| ReconnectingConnection::open(patient.clone())));
        let (calls, bulk, subscriber) = (
            ReconnectingConnection::open(for_calls),
            ReconnectingConnection::open(for_bulk),
            ReconnectingConnection::open(for_subscriber),
        );
        let (calls, bulk, subscriber, waiting) = tokio::try_join!(calls, bulk, subscriber, waiting)?;
        Ok(Node {
            address: address.clone(),
            interactive: calls,
            background: bulk,
            subscriber,
            replicated: ReplicatedWriter::new(waiting),
            large_replies: Semaphore::new(IN_FLIGHT),
            clock: Clock::new(),
            abandoned: Notify::new(),
            absent: self.absent.clone(),
            problems: Mutex::default(),
            broken_keys: self.broken_keys.clone(),
            left: CancellationToken::new(),
            metrics: self.metrics.clone(),
        })
    }
}
