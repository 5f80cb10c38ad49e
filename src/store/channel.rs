//! Receives channel messages and keyspace notifications of a server, and detects when messages may be lost.

use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    keys::Partition,
    log_entry::{Message, MessageReader},
    routing::Server,
};
use crate::{
    redis::{Subscriber, SubscriberEvent},
    session::SessionRef,
};

/// Keyspace events after which a key no longer exists under its name. Redis publishes them for out-of-band deletions, and for
/// tombstones that expire.
const KEY_REMOVED_EVENTS: [&str; 5] = ["del", "unlink", "expired", "evicted", "rename_from"];

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
    subscriber: Subscriber,
    messages: MessageReader,
}

impl Channels {
    /// Waits for the next event.
    pub async fn next(&mut self, store: &Store) -> ChannelEvent {
        loop {
            let event = match self.subscriber.next().await {
                SubscriberEvent::Connected => {
                    self.messages.note_gap();
                    Some(ChannelEvent::Connected)
                }
                SubscriberEvent::Message { channel, payload } => store
                    .keys
                    .partition_of_channel(&channel)
                    .and_then(|partition| self.messages.read(partition, &payload))
                    .map(ChannelEvent::Message),
                SubscriberEvent::Notification { key } => store.read_notification(&key),
                SubscriberEvent::MissedMessages => {
                    self.messages.note_gap();
                    Some(ChannelEvent::Missed)
                }
                SubscriberEvent::MissedNotifications => Some(ChannelEvent::MissedNotifications),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }
}

impl Store {
    /// Creates a receiver for the events of a server. Messages arrive only after [`Store::subscribe`].
    pub fn listen(&self, server: &Server) -> Channels {
        Channels { subscriber: Subscriber::new(server.node.clone()), messages: MessageReader::default() }
    }

    /// Subscribes to the channels of the server's partitions and to its keyspace notifications. Call it again on every new
    /// connection.
    pub async fn subscribe(&self, server: &Server) -> Result<(), Error> {
        let sharded = server.partitions.iter().map(|partition| self.keys.channel_name(*partition)).collect();
        let plain = KEY_REMOVED_EVENTS.iter().map(|event| format!("__keyevent@{}__:{event}", self.database)).collect();
        Ok(server.node.subscribe(sharded, plain).await?)
    }

    /// Fails if the Sentinels or the Cluster do not name this server as the owner of any partition.
    pub async fn confirm(&self, server: &Server) -> Result<(), Error> {
        Ok(self.router.confirm(&server.node).await?)
    }

    /// Returns the run id of a server; it changes with every restart.
    pub async fn run_of(&self, server: &Server, deadline: Instant) -> Result<String, Error> {
        Ok(server.node.run_id(deadline).await?)
    }

    /// None: the key of no session of this store.
    fn read_notification(&self, key: &[u8]) -> Option<ChannelEvent> {
        let name = self.keys.session_of_key(std::str::from_utf8(key).ok()?)?;
        Some(ChannelEvent::MissingKey(self.partition_of(&name.id), name))
    }
}
