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
    broken_keys::BrokenKeys,
    clock::Clock,
    heartbeat::Heartbeat,
    large_reads::IN_FLIGHT,
    node::{Node, Waits},
    replicated::{self, Replicated},
    wire::{Making, UNRESPONSIVE_AFTER, Wire},
};
use crate::observe::Metrics;

/// Message buffer of a connection without subscriptions.
pub(super) const FEW: usize = 32;
/// Time without any reply, while a heartbeat waits for one, after which the connection for bulk reads is dropped: one large
/// reply takes this long on a slow line. If the node hangs, its connection for calls shows that earlier.
const BULK_UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);

/// Settings for connections to any server: credentials, TLS, buffers. The address in `config` is unused.
pub(super) struct NodeConnector {
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
    pub(super) async fn open(&self, place: &ServerConfig) -> Result<Node, FredError> {
        let config = Config { server: place.clone(), ..self.config.clone() };
        let (heartbeat, unresponsive_after) = (Heartbeat::Role, UNRESPONSIVE_AFTER);
        let making = Making { config, messages: FEW, heartbeat, unresponsive_after };
        let for_calls = Making { heartbeat: Heartbeat::Probe { absent: self.absent.clone() }, ..making.clone() };
        let for_bulk = Making { unresponsive_after: BULK_UNRESPONSIVE_AFTER, ..making.clone() };
        let patient = Making { unresponsive_after: replicated::UNRESPONSIVE_AFTER, ..making.clone() };
        let for_subscriber = Making { messages: self.messages, ..making };
        let waiting = if self.waits == Waits::ForReplicas { replicated::CONNECTIONS } else { 0 };
        let waiting = try_join_all((0..waiting).map(|_| Wire::open(patient.clone())));
        let (calls, bulk, subscriber) = (Wire::open(for_calls), Wire::open(for_bulk), Wire::open(for_subscriber));
        let (calls, bulk, subscriber, waiting) = tokio::try_join!(calls, bulk, subscriber, waiting)?;
        Ok(Node {
            place: place.clone(),
            calls,
            bulk,
            subscriber,
            replicated: Replicated::new(waiting),
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
