//! A watch, and what came of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sessiond_client::v1::{Bookmark, EventType, Resync, SessionEvent, WatchResponse, watch_response::Control};
use tokio::time::timeout;
use tonic::Streaming;

use super::PATIENCE;

pub struct Watching {
    stream: Streaming<WatchResponse>,
    /// Events that came and were not asked for yet.
    ahead: std::collections::VecDeque<SessionEvent>,
    /// After the last response.
    pub token: Vec<u8>,
}

impl Watching {
    pub fn new(stream: Streaming<WatchResponse>) -> Self {
        Watching { stream, ahead: Default::default(), token: Vec::new() }
    }

    /// The next response as it comes; None = closed with OK.
    pub async fn response(&mut self) -> Result<Option<WatchResponse>, tonic::Status> {
        let response = timeout(PATIENCE, self.stream.message()).await.expect("a response comes")?;
        if let Some(response) = &response {
            self.token = response.resume_token.clone();
            assert!(!self.token.is_empty(), "every response carries a resume token");
        }
        Ok(response)
    }

    async fn open_response(&mut self) -> WatchResponse {
        self.response().await.unwrap().expect("the watch is open")
    }

    /// The next event, bookmarks passed over.
    pub async fn event(&mut self) -> SessionEvent {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "an event comes");
            if let Some(event) = self.ahead.pop_front() {
                return event;
            }
            let response = self.open_response().await;
            assert!(!matches!(response.control, Some(Control::Resync(_))), "resync: {response:?}");
            self.ahead.extend(response.events);
        }
    }

    pub async fn events(&mut self, count: usize) -> Vec<SessionEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// The next event of this session that is of this type; all others are passed over.
    pub async fn wait_for(&mut self, kind: EventType, id: &str) -> SessionEvent {
        loop {
            let event = self.event().await;
            if event.r#type() == kind && event.id == id {
                return event;
            }
        }
    }

    /// The next bookmark; events on the way to it are kept.
    pub async fn bookmark(&mut self) -> Bookmark {
        loop {
            let response = self.open_response().await;
            self.ahead.extend(response.events);
            match response.control {
                Some(Control::Bookmark(bookmark)) => return bookmark,
                None => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The state that is told first: all events until `synced`, which are SNAPSHOT and what happened meanwhile.
    pub async fn state(&mut self) -> Vec<SessionEvent> {
        loop {
            let response = self.open_response().await;
            self.ahead.extend(response.events);
            match response.control {
                Some(Control::Synced(_)) => return self.ahead.drain(..).collect(),
                None => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next resync; what comes before it is kept.
    pub async fn resync(&mut self) -> Resync {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "a resync comes");
            let response = self.open_response().await;
            self.ahead.extend(response.events);
            if let Some(Control::Resync(resync)) = response.control {
                return resync;
            }
        }
    }

    /// Everything that has come up to now: all events until a bookmark as of after this call. The tests and Redis have
    /// one clock.
    pub async fn everything_so_far(&mut self) -> Vec<SessionEvent> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        loop {
            let as_of = self.bookmark().await.as_of.unwrap();
            if Duration::new(as_of.seconds as u64, as_of.nanos as u32) > now {
                return self.ahead.drain(..).collect();
            }
        }
    }

    /// How the watch ends: what comes before is kept.
    pub async fn end(&mut self) -> Result<(), tonic::Status> {
        while let Some(response) = self.response().await? {
            self.ahead.extend(response.events);
        }
        Ok(())
    }

    pub fn kept(&mut self) -> Vec<SessionEvent> {
        self.ahead.drain(..).collect()
    }
}
