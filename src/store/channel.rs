//! Receives channel messages and keyspace notifications of a server, and detects when messages may be lost.

use std::sync::Arc;

use fred::{
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message as Raw, Value},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

use super::{Store, error::Error, keys::Partition, log::Message};
use crate::redis::{node::Node, reconnecting_connection::Connection};
use crate::session::SessionRef;

/// Keyspace events after which a key no longer exists under its name. Redis publishes them for out-of-band deletions, for
/// ends by this service (the tombstone replaces the session), and for tombstones that expire.
const KEY_REMOVED_EVENTS: [&str; 5] = ["del", "unlink", "expired", "evicted", "rename_from"];

/// One Redis server and the partitions it owns.
#[derive(Clone)]
pub struct Server {
    pub(super) node: Arc<Node>,
    /// Partitions that the server owns.
    pub partitions: Vec<Partition>,
}

impl Server {
    /// Returns the address of the server for logs.
    pub fn name(&self) -> String {
        self.node.name()
    }
}

/// An event on the subscriber connection of a server.
pub enum ChannelEvent {
    /// A message on the channel of a partition.
    Message(Message),
    /// A keyspace notification: the key of this session was removed or renamed. Any client with the right to publish can
    /// forge it.
    MissingKey(Partition, SessionRef),
    /// A new connection without subscriptions: messages since the last one are lost.
    Connected,
    /// Channel messages were dropped because they were not received fast enough.
    Missed,
    /// Keyspace notifications were dropped because they were not received fast enough.
    MissedNotifications,
}

/// Receiver of the events of one server; continues with the next connection when one breaks.
pub struct Channels {
    node: Arc<Node>,
    open: Option<Open>,
}

/// Receivers of one connection.
struct Open {
    connection: Arc<Connection>,
    messages: Receiver<Raw>,
    keyspace: Receiver<KeyspaceEvent>,
}

impl Channels {
    /// Waits for the next event.
    pub async fn next(&mut self, store: &Store) -> ChannelEvent {
        loop {
            let Some(open) = &mut self.open else {
                let connection = self.node.subscriber.connected().await;
                let (messages, keyspace) = (connection.message_rx(), connection.keyspace_event_rx());
                self.open = Some(Open { connection, messages, keyspace });
                return ChannelEvent::Connected;
            };
            let event = tokio::select! {
                biased;
                () = open.connection.over() => None,
                message = open.messages.recv() => match message {
                    Ok(raw) => match store.read_message(raw) {
                        Some(message) => Some(ChannelEvent::Message(message)),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Some(ChannelEvent::Missed),
                    Err(RecvError::Closed) => None,
                },
                notification = open.keyspace.recv() => match notification {
                    Ok(notification) => match notification.key.as_str().and_then(|key| store.keys.session_of_key(key)) {
                        Some(name) => Some(ChannelEvent::MissingKey(store.partition_of(&name.id), name)),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Some(ChannelEvent::MissedNotifications),
                    Err(RecvError::Closed) => None,
                },
            };
            match event {
                Some(event) => return event,
                None => self.open = None,
            }
        }
    }
}

impl Store {
    /// Creates a receiver for the events of a server. Messages arrive only after [`Store::subscribe`].
    pub fn listen(&self, server: &Server) -> Channels {
        Channels { node: server.node.clone(), open: None }
    }

    /// Subscribes to the channels of the server's partitions and to its keyspace notifications. Call it again on every new
    /// connection.
    pub async fn subscribe(&self, server: &Server) -> Result<(), Error> {
        let sharded = server.partitions.iter().map(|partition| self.keys.channel(*partition).to_owned()).collect();
        let plain = KEY_REMOVED_EVENTS.iter().map(|event| format!("__keyevent@{}__:{event}", self.database)).collect();
        Ok(server.node.subscribe(sharded, plain).await?)
    }

    /// Fails if the Sentinels or the Cluster do not name this server as the owner of any partition.
    pub async fn confirm(&self, server: &Server) -> Result<(), Error> {
        self.router.confirm(&server.node).await
    }

    /// Returns the run id of a server; it changes with every restart.
    pub async fn run_of(&self, server: &Server, deadline: Instant) -> Result<String, Error> {
        Ok(server.node.run(deadline).await?)
    }

    fn read_message(&self, raw: Raw) -> Option<Message> {
        let partition = self.keys.partition_of_channel(&raw.channel)?;
        let text = Value::into_bytes(raw.value)?;
        Some(Message::decode(partition, text))
    }
}
