//! Reads the responses of one Watch stream.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sessiond_client::v1::{Bookmark, EventType, Resync, SessionEvent, WatchResponse, watch_response::Control};
use tokio::time::timeout;
use tonic::Streaming;

use super::WAIT_LIMIT;

/// A Watch stream, with a buffer for events that were received before the test needs them.
pub struct WatchReader {
    stream: Streaming<WatchResponse>,
    /// Received events that no method has returned yet.
    buffered: std::collections::VecDeque<SessionEvent>,
    /// Resume token of the last response. Empty: no response yet.
    pub token: Vec<u8>,
}

impl WatchReader {
    /// Returns a reader of this stream with an empty buffer.
    pub fn new(stream: Streaming<WatchResponse>) -> Self {
        WatchReader { stream, buffered: Default::default(), token: Vec::new() }
    }

    /// Returns the next response. None: the stream closed with OK.
    pub async fn response(&mut self) -> Result<Option<WatchResponse>, tonic::Status> {
        let response = timeout(WAIT_LIMIT, self.stream.message()).await.expect("a response")?;
        if let Some(response) = &response {
            self.token = response.resume_token.clone();
            assert!(!self.token.is_empty(), "every response carries a resume token");
        }
        Ok(response)
    }

    async fn next_response(&mut self) -> WatchResponse {
        self.response().await.unwrap().expect("the stream is open")
    }

    /// Returns the next event and skips bookmarks. Panics on a resync.
    pub async fn event(&mut self) -> SessionEvent {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < WAIT_LIMIT, "no event within {WAIT_LIMIT:?}");
            if let Some(event) = self.buffered.pop_front() {
                return event;
            }
            let response = self.next_response().await;
            assert!(!matches!(response.control, Some(Control::Resync(_))), "resync: {response:?}");
            self.buffered.extend(response.events);
        }
    }

    /// Returns the next `count` events and skips bookmarks.
    pub async fn events(&mut self, count: usize) -> Vec<SessionEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Returns the next event of this type and session; drops all events before it.
    pub async fn wait_for(&mut self, kind: EventType, id: &str) -> SessionEvent {
        loop {
            let event = self.event().await;
            if event.r#type() == kind && event.id == id {
                return event;
            }
        }
    }

    /// Reads up to the next bookmark and returns it; buffers the events before it.
    pub async fn bookmark(&mut self) -> Bookmark {
        loop {
            let response = self.next_response().await;
            self.buffered.extend(response.events);
            match response.control {
                Some(Control::Bookmark(bookmark)) => return bookmark,
                None => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns all events up to `synced`: the SNAPSHOT events and the changes during the snapshot.
    pub async fn snapshot(&mut self) -> Vec<SessionEvent> {
        loop {
            let response = self.next_response().await;
            self.buffered.extend(response.events);
            match response.control {
                Some(Control::Synced(_)) => return self.buffered.drain(..).collect(),
                None => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads up to the next resync and returns it; buffers the events before it.
    pub async fn resync(&mut self) -> Resync {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < WAIT_LIMIT, "no resync within {WAIT_LIMIT:?}");
            let response = self.next_response().await;
            self.buffered.extend(response.events);
            if let Some(Control::Resync(resync)) = response.control {
                return resync;
            }
        }
    }

    /// Returns all events of changes made before this call.
    ///
    /// Reads up to a bookmark whose `as_of` is later than the call; the test and Redis have the same clock.
    pub async fn events_until_now(&mut self) -> Vec<SessionEvent> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        loop {
            let as_of = self.bookmark().await.as_of.unwrap();
            if Duration::new(as_of.seconds as u64, as_of.nanos as u32) > now {
                return self.buffered.drain(..).collect();
            }
        }
    }

    /// Reads up to the end of the stream and returns its status; buffers the events before it.
    pub async fn end(&mut self) -> Result<(), tonic::Status> {
        while let Some(response) = self.response().await? {
            self.buffered.extend(response.events);
        }
        Ok(())
    }

    /// Returns the buffered events and empties the buffer.
    pub fn buffered(&mut self) -> Vec<SessionEvent> {
        self.buffered.drain(..).collect()
    }
}
