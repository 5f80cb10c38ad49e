//! Receives what a server publishes on channels, and detects when messages may be lost.

use std::sync::Arc;

use bytes::Bytes;
use fred::{
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{connection::Connection, node::Node};

/// Event on the subscriber connection of a server.
pub enum SubscriberEvent {
    /// A new connection without subscriptions: messages since the last one are lost. [`Node::subscribe`] follows.
    Connected,
    /// A message.
    Message {
        /// Name of the channel.
        channel: Bytes,
        /// The message.
        payload: Bytes,
    },
    /// A keyspace notification. Any client with the right to publish can forge it.
    Notification {
        /// Key that it is about.
        key: Bytes,
    },
    /// Messages were dropped because they were not received fast enough.
    MissedMessages,
    /// Keyspace notifications were dropped because they were not received fast enough.
    MissedNotifications,
}

/// Receiver of the events of one server; continues with the next connection when one breaks.
pub struct Subscriber {
    node: Arc<Node>,
    current: Option<Receivers>,
}

/// Receivers of one connection. Their buffers hold [`NodeConnector::messages`](super::NodeConnector::messages) each.
struct Receivers {
    connection: Arc<Connection>,
    messages: Receiver<Message>,
    notifications: Receiver<KeyspaceEvent>,
}

impl Subscriber {
    /// Creates a receiver of the events of a server. Messages arrive only after [`Node::subscribe`].
    pub fn new(node: Arc<Node>) -> Self {
        Subscriber { node, current: None }
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> SubscriberEvent {
        loop {
            let Some(current) = &mut self.current else {
                let connection = self.node.subscriber.connected().await;
                let (messages, notifications) = (connection.message_rx(), connection.keyspace_event_rx());
                self.current = Some(Receivers { connection, messages, notifications });
                return SubscriberEvent::Connected;
            };
            let event = tokio::select! {
                biased;
                () = current.connection.closed() => None,
                message = current.messages.recv() => match message {
                    Ok(message) => match message.value.into_bytes() {
                        Some(payload) => {
                            Some(SubscriberEvent::Message { channel: message.channel.into_inner(), payload })
                        }
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Some(SubscriberEvent::MissedMessages),
                    Err(RecvError::Closed) => None,
                },
                notification = current.notifications.recv() => match notification {
                    Ok(notification) => Some(SubscriberEvent::Notification { key: notification.key.into_bytes() }),
                    Err(RecvError::Lagged(_)) => Some(SubscriberEvent::MissedNotifications),
                    Err(RecvError::Closed) => None,
                },
            };
            match event {
                Some(event) => return event,
                None => self.current = None,
            }
        }
    }
}
