//! Opens the connections to one Redis server, each with the heartbeat and the patience for its purpose.

use std::{sync::Arc, time::Duration};

use fred::error::Error as FredError;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{ConnectOptions, MESSAGES_WITHOUT_SUBSCRIPTION, UNRESPONSIVE_AFTER},
    endpoint::{Address, Endpoint},
    event_queue::EventQueue,
    heartbeat::{Heartbeat, Probe},
    node::{MAX_LARGE_REPLY_BYTES, Node, OnWrongType},
    reconnecting_connection::ReconnectingConnection,
    replicated_writer::{CONNECTIONS_PER_NODE, ReplicatedWriter, UNRESPONSIVE_WITH_WAIT_AFTER},
};
use crate::observe::Metrics;

/// Time without any reply, while a heartbeat waits for one, after which the background connection is dropped: one large reply
/// takes this long on a slow line. If the node hangs, its interactive connection shows that earlier.
const BACKGROUND_UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);

/// Whether connections for replicated writes are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicatedWrites {
    /// Open none: no write waits for replicas.
    Disabled,
    /// Open them.
    Enabled,
}

/// Options for the connections to any server.
pub struct NodeConnector {
    /// Credentials and TLS; its addresses are unused.
    pub endpoint: Endpoint,
    /// Whether connections for replicated writes are opened.
    pub replicated_writes: ReplicatedWrites,
    /// Script that proves that the user may run every command.
    pub probe: Probe,
    /// Maximum number of messages of one server that wait for the subscriber. If there are more, messages are lost, and the
    /// subscriber gets an event.
    pub messages: usize,
    /// Metrics of the commands.
    pub metrics: Arc<Metrics>,
    /// Receives the keys of requests that Redis refuses because of the type of a key.
    pub on_wrong_type: OnWrongType,
}

impl NodeConnector {
    /// Connects to a server. [`Node::keep_alive`] reconnects afterwards.
    pub(super) async fn open(&self, address: &Address) -> Result<Node, FredError> {
        let options = ConnectOptions {
            endpoint: self.endpoint.clone(),
            address: address.clone(),
            messages: MESSAGES_WITHOUT_SUBSCRIPTION,
            heartbeat: Heartbeat::Role,
            unresponsive_after: UNRESPONSIVE_AFTER,
        };
        let interactive = ConnectOptions { heartbeat: Heartbeat::Probe(self.probe.clone()), ..options.clone() };
        let background = ConnectOptions { unresponsive_after: BACKGROUND_UNRESPONSIVE_AFTER, ..options.clone() };
        let subscriber = ConnectOptions { messages: self.messages, ..options.clone() };
        let replicated = ConnectOptions { unresponsive_after: UNRESPONSIVE_WITH_WAIT_AFTER, ..options };
        let retired = CancellationToken::new();
        let open = |options| ReconnectingConnection::open(options, retired.clone());
        let writers = if self.replicated_writes == ReplicatedWrites::Enabled { CONNECTIONS_PER_NODE } else { 0 };
        let writers = try_join_all((0..writers).map(|_| open(replicated.clone())));
        let (interactive, background, subscriber, writers) =
            tokio::try_join!(open(interactive), open(background), open(subscriber), writers)?;
        Ok(Node {
            address: address.clone(),
            interactive,
            background,
            subscriber,
            events: EventQueue::new(self.messages),
            replicated: ReplicatedWriter::new(writers, retired.clone(), self.metrics.clone()),
            large_replies: Semaphore::new(MAX_LARGE_REPLY_BYTES),
            abandoned: Notify::new(),
            probe: self.probe.clone(),
            problems: Mutex::default(),
            on_wrong_type: self.on_wrong_type.clone(),
            retired,
            metrics: self.metrics.clone(),
        })
    }
}
