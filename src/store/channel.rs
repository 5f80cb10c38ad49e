//! The live path: what the channels of a server bring, and every sign that something may have been missed.

use std::sync::Arc;

use fred::types::{KeyspaceEvent, Message as Raw, Value, config::Server as Address};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

use super::{Store, error::Error, keys::Partition, log::Message, node::Node};
use crate::session::SessionName;

/// What Redis tells of a key that is not there any more under its name: of what others did, of our own endings too (the
/// tombstone takes the session's place), and of tombstones whose time is over.
const VANISHINGS: [&str; 5] = ["del", "unlink", "expired", "evicted", "rename_from"];

/// One server of the store, and the partitions that it has.
#[derive(Clone)]
pub struct Server {
    pub(super) node: Arc<Node>,
    pub partitions: Vec<Partition>,
}

/// What the subscriber heard.
pub enum Heard {
    Message(Message),
    /// This key is not there any more, whoever took it away; anybody may say so.
    Vanished(Partition, SessionName),
    /// The connection is a new one, without subscriptions; nothing was heard for a while.
    Reconnected,
    /// Messages were lost here, for they were not taken fast enough.
    Missed,
    /// The same of what vanished.
    MissedVanishings,
    /// The client was closed.
    Closed,
}

/// The receiving ends of a server's subscriber connection.
pub struct Channels {
    messages: Receiver<Raw>,
    keyspace: Receiver<KeyspaceEvent>,
    reconnects: Receiver<Address>,
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
                event = self.keyspace.recv() => match event {
                    Ok(event) => match event.key.as_str().and_then(|key| store.keys.session_of_key(key)) {
                        Some(name) => Heard::Vanished(store.partition_of(&name.id), name),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Heard::MissedVanishings,
                    Err(RecvError::Closed) => Heard::Closed,
                },
            };
            return heard;
        }
    }
}

impl Store {
    /// Begins to listen to a server; nothing is heard before [`Store::subscribe`].
    pub fn listen(&self, server: &Server) -> Channels {
        Channels {
            messages: server.node.messages(),
            keyspace: server.node.keyspace_events(),
            reconnects: server.node.subscriber_reconnects(),
        }
    }

    /// Subscribes to the channels of its partitions, and to what vanishes there; to be repeated on every new connection.
    pub async fn subscribe(&self, server: &Server) -> Result<(), Error> {
        let sharded = server.partitions.iter().map(|partition| self.keys.channel(*partition).to_owned()).collect();
        let plain = VANISHINGS.iter().map(|event| format!("__keyevent@{}__:{event}", self.database)).collect();
        Ok(server.node.subscribe(sharded, plain).await?)
    }

    /// Fails where the server is not, or not any more, one that has partitions, as the Sentinels or the Cluster tell.
    pub async fn confirm(&self, server: &Server) -> Result<(), Error> {
        self.connection.confirm(&server.node).await
    }

    /// Which run of Redis a server is: another one after every restart.
    pub async fn run_of(&self, server: &Server, deadline: Instant) -> Result<String, Error> {
        Ok(server.node.run(deadline).await?)
    }

    fn read_message(&self, raw: Raw) -> Option<Message> {
        let partition = self.keys.partition_of_channel(&raw.channel)?;
        let text = Value::into_bytes(raw.value)?;
        Some(Message::decode(partition, text))
    }
}
