//! The live path: what the channels of a server bring, and every sign that something may have been missed.

use std::sync::Arc;

use fred::{
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message as Raw, Value},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

use super::{Store, error::Error, keys::Partition, log::Message, node::Node, wire::Line};
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
    Connected,
    /// Messages were lost here, for they were not taken fast enough.
    Missed,
    /// The same of what vanished.
    MissedVanishings,
}

/// What a server's subscriber connection brings, one such connection after the other.
pub struct Channels {
    node: Arc<Node>,
    open: Option<Open>,
}

/// The receiving ends of one connection.
struct Open {
    line: Arc<Line>,
    messages: Receiver<Raw>,
    keyspace: Receiver<KeyspaceEvent>,
}

impl Channels {
    pub async fn next(&mut self, store: &Store) -> Heard {
        loop {
            let Some(open) = &mut self.open else {
                let line = self.node.subscriber.connected().await;
                let (messages, keyspace) = (line.message_rx(), line.keyspace_event_rx());
                self.open = Some(Open { line, messages, keyspace });
                return Heard::Connected;
            };
            let heard = tokio::select! {
                biased;
                () = open.line.over() => None,
                message = open.messages.recv() => match message {
                    Ok(raw) => match store.read_message(raw) {
                        Some(message) => Some(Heard::Message(message)),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Some(Heard::Missed),
                    Err(RecvError::Closed) => None,
                },
                event = open.keyspace.recv() => match event {
                    Ok(event) => match event.key.as_str().and_then(|key| store.keys.session_of_key(key)) {
                        Some(name) => Some(Heard::Vanished(store.partition_of(&name.id), name)),
                        None => continue,
                    },
                    Err(RecvError::Lagged(_)) => Some(Heard::MissedVanishings),
                    Err(RecvError::Closed) => None,
                },
            };
            match heard {
                Some(heard) => return heard,
                None => self.open = None,
            }
        }
    }
}

impl Store {
    /// Begins to listen to a server; nothing is heard before [`Store::subscribe`].
    pub fn listen(&self, server: &Server) -> Channels {
        Channels { node: server.node.clone(), open: None }
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
