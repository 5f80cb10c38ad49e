//! What a server has published and the feed has not received yet, bounded in number and bytes.
//!
//! The buffers of fred are bounded in number only. They are emptied here at once, also while the feed reads a log.

use std::collections::VecDeque;

use bytes::Bytes;
use fred::{
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast::error::RecvError};

use super::reconnecting_connection::ReconnectingConnection;

/// Maximum size in bytes of the messages that wait: the limit that Redis itself has for a subscriber by default.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Event on the subscriber connection of a server.
pub enum SubscriberEvent {
    /// A new connection without subscriptions: messages since the last one are lost. [`Node::subscribe`](super::Node::subscribe) follows.
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

/// Events on the subscriber connection of a server. The feed takes them out.
pub(super) struct EventQueue {
    state: Mutex<QueueState>,
    /// Notified when an event was added.
    added: Notify,
}

struct QueueState {
    has_connection: bool,
    /// Whether the next event is [`SubscriberEvent::Connected`].
    is_new_connection: bool,
    messages: Buffer<(Bytes, Bytes)>,
    notifications: Buffer<Bytes>,
}

/// Waiting items. Those beyond a bound are dropped with all others: the log has them.
struct Buffer<T> {
    /// Items with their sizes in bytes.
    waiting: VecDeque<(T, usize)>,
    /// Size of all items.
    bytes: usize,
    /// Maximum number of items.
    most: usize,
    /// Whether items were dropped since the last one was taken.
    has_dropped: bool,
}

impl<T> Buffer<T> {
    fn new(most: usize) -> Self {
        Buffer { waiting: VecDeque::new(), bytes: 0, most, has_dropped: false }
    }

    fn push(&mut self, item: T, bytes: usize) {
        if self.waiting.len() == self.most || self.bytes + bytes > MAX_BYTES {
            self.drop_all();
        }
        if bytes <= MAX_BYTES {
            self.waiting.push_back((item, bytes));
            self.bytes += bytes;
        }
    }

    fn drop_all(&mut self) {
        *self = Buffer { has_dropped: true, ..Buffer::new(self.most) };
    }

    /// Takes the next event out: that items were dropped, or the oldest item.
    fn pop(&mut self, dropped: SubscriberEvent, event: impl FnOnce(T) -> SubscriberEvent) -> Option<SubscriberEvent> {
        if std::mem::take(&mut self.has_dropped) {
            return Some(dropped);
        }
        let (item, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(event(item))
    }
}

impl QueueState {
    fn pop(&mut self) -> Option<SubscriberEvent> {
        if std::mem::take(&mut self.is_new_connection) {
            return Some(SubscriberEvent::Connected);
        }
        let message = |(channel, payload)| SubscriberEvent::Message { channel, payload };
        let message = self.messages.pop(SubscriberEvent::MissedMessages, message);
        let notification = |key| SubscriberEvent::Notification { key };
        message.or_else(|| self.notifications.pop(SubscriberEvent::MissedNotifications, notification))
    }

    /// Drops all events: a new connection has no subscriptions, and a new receiver has received nothing.
    fn restart(&mut self, has_connection: bool) {
        (self.has_connection, self.is_new_connection) = (has_connection, has_connection);
        self.messages = Buffer::new(self.messages.most);
        self.notifications = Buffer::new(self.notifications.most);
    }
}

impl EventQueue {
    /// A queue of at most this number of messages and this number of notifications.
    pub(super) fn new(most: usize) -> Self {
        let (messages, notifications) = (Buffer::new(most), Buffer::new(most));
        let state = QueueState { has_connection: false, is_new_connection: false, messages, notifications };
        EventQueue { state: Mutex::new(state), added: Notify::new() }
    }

    /// Drops all events for a new receiver. Its first one is that of the current connection.
    pub(super) fn restart(&self) {
        let mut state = self.state.lock();
        let has_connection = state.has_connection;
        state.restart(has_connection);
        self.added.notify_one();
    }

    /// Takes out the next event; waits for it if there is none.
    pub(super) async fn next(&self) -> SubscriberEvent {
        loop {
            let event = self.state.lock().pop();
            match event {
                Some(event) => return event,
                None => self.added.notified().await,
            }
        }
    }

    /// Receives the events of each connection; never returns.
    pub(super) async fn fill(&self, subscriber: &ReconnectingConnection) {
        loop {
            let connection = subscriber.connected().await;
            // The receivers exist before the feed subscribes.
            let (mut messages, mut notifications) = (connection.message_rx(), connection.keyspace_event_rx());
            self.update(|state| state.restart(true));
            loop {
                tokio::select! {
                    biased;
                    () = connection.closed() => break,
                    message = messages.recv() => match message {
                        Ok(message) => self.add_message(message),
                        Err(RecvError::Lagged(_)) => self.update(|state| state.messages.drop_all()),
                        Err(RecvError::Closed) => break connection.closed().await,
                    },
                    notification = notifications.recv() => match notification {
                        Ok(notification) => self.add_notification(notification),
                        Err(RecvError::Lagged(_)) => self.update(|state| state.notifications.drop_all()),
                        Err(RecvError::Closed) => break connection.closed().await,
                    },
                }
            }
            self.state.lock().has_connection = false;
        }
    }

    fn add_message(&self, message: Message) {
        let channel = message.channel.into_inner();
        if let Some(payload) = message.value.into_bytes() {
            let bytes = channel.len() + payload.len();
            self.update(|state| state.messages.push((channel, payload), bytes));
        }
    }

    fn add_notification(&self, notification: KeyspaceEvent) {
        let key = notification.key.into_bytes();
        let bytes = key.len();
        self.update(|state| state.notifications.push(key, bytes));
    }

    fn update(&self, change: impl FnOnce(&mut QueueState)) {
        change(&mut self.state.lock());
        self.added.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes out all events. Returns the keys, and how often notifications were missed.
    fn taken(queue: &EventQueue) -> (Vec<Bytes>, usize) {
        let (mut keys, mut missed) = (Vec::new(), 0);
        while let Some(event) = queue.state.lock().pop() {
            match event {
                SubscriberEvent::Notification { key } => keys.push(key),
                SubscriberEvent::MissedNotifications => missed += 1,
                _ => panic!("a notification"),
            }
        }
        (keys, missed)
    }

    fn push(queue: &EventQueue, key: &Bytes) {
        queue.update(|state| state.notifications.push(key.clone(), key.len()));
    }

    #[test]
    fn events_beyond_the_number_are_dropped_and_announced() {
        let queue = EventQueue::new(3);
        let keys = ["a", "b", "c", "d"].map(Bytes::from);
        keys[..3].iter().for_each(|key| push(&queue, key));
        assert_eq!(taken(&queue), (keys[..3].to_vec(), 0));
        keys.iter().for_each(|key| push(&queue, key));
        assert_eq!(taken(&queue), (keys[3..].to_vec(), 1));
    }

    #[test]
    fn events_beyond_the_bytes_are_dropped_and_announced() {
        let queue = EventQueue::new(usize::MAX);
        let half = Bytes::from(vec![0; MAX_BYTES / 2]);
        for _ in 0..2 {
            push(&queue, &half);
        }
        assert_eq!(taken(&queue), (vec![half.clone(); 2], 0), "exactly the maximum");
        for _ in 0..100 {
            push(&queue, &half);
            assert!(queue.state.lock().notifications.bytes <= MAX_BYTES);
        }
        push(&queue, &vec![0; MAX_BYTES + 1].into());
        assert_eq!(taken(&queue), (Vec::new(), 1), "one event alone is too large");
        assert_eq!(queue.state.lock().notifications.bytes, 0);
    }
}
