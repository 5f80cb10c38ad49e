//! Receives what a server publishes on channels, and detects when messages may be lost.

use std::sync::Arc;

use super::{event_queue::SubscriberEvent, node::Node};

/// Receiver of the events of one server; continues with the next connection when one breaks.
pub struct Subscriber {
    node: Arc<Node>,
}

impl Subscriber {
    /// Creates a receiver of the events of a server, which replaces the one before. Messages arrive only after
    /// [`Node::subscribe`].
    pub fn new(node: Arc<Node>) -> Self {
        node.events.restart();
        Subscriber { node }
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> SubscriberEvent {
        self.node.events.next().await
    }
}
