//! The live path: what the partitions' channels bring, and every sign that something may have been missed.

use fred::types::{Message as Raw, Value, config::Server};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Store, error::Error, log::Message};

/// What the subscriber heard.
pub enum Heard {
    Message(Message),
    /// The connection is a new one, without subscriptions.
    Reconnected,
    /// Messages were lost here, for they were not taken fast enough.
    Missed,
    /// The client was closed.
    Closed,
}

/// The receiving ends of the subscriber connection.
pub struct Channels {
    messages: Receiver<Raw>,
    reconnects: Receiver<Server>,
}

impl Channels {
    pub async fn next(&mut self, store: &Store) -> Heard {
        loop {
            let heard = tokio::select! {
                biased;
                reconnected = self.reconnects.recv() => match reconnected {
                    Ok(_) | Err(RecvError::Lagged(_)) => Heard::Reconnected,
                    Err(RecvError::Closed) => Heard::Closed,
                },
                message = self.messages.recv() => match message {
                    Ok(raw) => match store.read_message(raw) {
                        Some(message) => Heard::Message(message),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Heard::Missed,
                    Err(RecvError::Closed) => Heard::Closed,
                },
            };
            return heard;
        }
    }
}

impl Store {
    /// Begins to listen; nothing is heard before [`Store::subscribe`].
    pub fn listen(&self) -> Channels {
        Channels { messages: self.connection.messages(), reconnects: self.connection.subscriber_reconnects() }
    }

    /// Subscribes to the channels of all partitions; to be repeated on every new connection.
    pub async fn subscribe(&self) -> Result<(), Error> {
        self.connection.subscribe(self.keys.partitions().map(|partition| self.keys.channel(partition).to_owned())).await
    }

    fn read_message(&self, raw: Raw) -> Option<Message> {
        let partition = self.keys.partition_of_channel(&raw.channel)?;
        let text = Value::into_bytes(raw.value)?;
        Some(Message::decode(partition, text))
    }
}
