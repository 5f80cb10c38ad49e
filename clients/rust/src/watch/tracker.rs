//! State, resume token and back-off of a watch, without I/O.

use std::time::Duration;

use crate::v1::{ResyncReason, WatchRequest, WatchResponse, watch_response::Control};

/// State of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A stream delivers the snapshot; held sessions are incomplete and no resume token is kept.
    Syncing,
    /// A stream without snapshot is being opened and has delivered no response yet.
    Opening,
    /// Every change up to the resume token was received.
    Live,
    /// No stream is open; the next one opens after the back-off delay.
    Waiting,
    /// The watch has ended and never opens a stream again.
    Over,
}

/// State machine of one watch: decides which resume token opens the next stream, and how long to wait before.
///
/// [`Watch`](super::Watch) drives one. A program that reads the stream itself can drive one too: call [`open`](Self::open)
/// before each stream, [`receive`](Self::receive) for each response, and [`lose`](Self::lose) when the stream ends.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// Whether the server sends a snapshot to a stream without a resume token and after each resync.
    wants_snapshot: bool,
    state: State,
    /// Position up to which everything was received. None: the next stream starts from the beginning.
    resume_token: Option<Vec<u8>>,
    /// Streams lost since the last `synced`, or the last bookmark in state `Live`.
    failures: u32,
}

impl Tracker {
    /// Upper bound of the first back-off delay; it doubles with each failure.
    const FIRST_DELAY: Duration = Duration::from_millis(100);
    /// Upper bound of every back-off delay.
    const MAX_DELAY: Duration = Duration::from_secs(5);

    /// Returns a tracker in state `Waiting`, at the resume token of the request if it has one.
    pub fn new(request: &WatchRequest) -> Self {
        Tracker {
            wants_snapshot: request.initial_state,
            state: State::Waiting,
            resume_token: Some(request.resume_token.clone()).filter(|token| !token.is_empty()),
            failures: 0,
        }
    }

    /// Current state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Position to open the next stream at. None: the next stream starts without a resume token.
    pub fn resume_token(&self) -> Option<&[u8]> {
        self.resume_token.as_deref()
    }

    /// Records that a stream is opened: `Syncing` if it starts with a snapshot, else `Opening`.
    pub fn open(&mut self) {
        let is_snapshot = self.wants_snapshot && self.resume_token.is_none();
        self.state = if is_snapshot { State::Syncing } else { State::Opening };
    }

    /// Records a response; returns whether it is the final response of its stream (SLOW_CONSUMER).
    pub fn receive(&mut self, response: &WatchResponse) -> bool {
        if self.state == State::Opening {
            self.state = State::Live;
        }
        let mut is_final = false;
        match &response.control {
            Some(Control::Synced(_)) => (self.state, self.failures) = (State::Live, 0),
            // A bookmark before `synced` proves nothing: the next stream has to start the snapshot again.
            Some(Control::Bookmark(_)) if self.state == State::Live => self.failures = 0,
            Some(Control::Resync(resync)) if resync.reason() == ResyncReason::SlowConsumer => is_final = true,
            Some(Control::Resync(_)) if self.wants_snapshot => {
                (self.state, self.resume_token) = (State::Syncing, None);
            }
            Some(Control::Bookmark(_) | Control::Resync(_)) | None => {}
        }
        if self.state == State::Live {
            self.resume_token = Some(response.resume_token.clone());
        }
        is_final
    }

    /// Records that the stream was lost; returns the upper bound of the back-off delay.
    pub fn lose(&mut self) -> Duration {
        self.state = State::Waiting;
        let bound = Tracker::FIRST_DELAY.saturating_mul(2_u32.saturating_pow(self.failures)).min(Tracker::MAX_DELAY);
        self.failures = self.failures.saturating_add(1);
        bound
    }

    /// Records that the watch has ended.
    pub fn end(&mut self) {
        self.state = State::Over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Bookmark, Resync, Synced};

    fn response(token: u8, control: Option<Control>) -> WatchResponse {
        WatchResponse { events: Vec::new(), resume_token: vec![token], control }
    }

    fn synced() -> Option<Control> {
        Some(Control::Synced(Synced {}))
    }

    fn bookmark() -> Option<Control> {
        Some(Control::Bookmark(Bookmark::default()))
    }

    fn resync(reason: ResyncReason) -> Option<Control> {
        Some(Control::Resync(Resync { reason: reason.into(), ids: Vec::new() }))
    }

    fn opened(request: &WatchRequest) -> Tracker {
        let mut tracker = Tracker::new(request);
        tracker.open();
        tracker
    }

    fn mirror() -> WatchRequest {
        WatchRequest { initial_state: true, ..Default::default() }
    }

    fn position(tracker: &Tracker) -> (State, Option<u8>) {
        (tracker.state(), tracker.resume_token().map(|token| token[0]))
    }

    #[test]
    fn mirror_keeps_a_token_only_after_synced() {
        let mut tracker = opened(&mirror());
        tracker.receive(&response(1, None));
        tracker.receive(&response(2, bookmark()));
        assert_eq!(position(&tracker), (State::Syncing, None));
        tracker.receive(&response(3, synced()));
        assert_eq!(position(&tracker), (State::Live, Some(3)));
        tracker.receive(&response(4, None));
        tracker.lose();
        assert_eq!(position(&tracker), (State::Waiting, Some(4)));
        tracker.open();
        assert_eq!(position(&tracker), (State::Opening, Some(4)));
        tracker.receive(&response(5, None));
        assert_eq!(position(&tracker), (State::Live, Some(5)));
    }

    #[test]
    fn resync_drops_the_token_of_a_mirror() {
        let mut tracker = opened(&WatchRequest { resume_token: vec![1], ..mirror() });
        assert!(!tracker.receive(&response(2, resync(ResyncReason::Compacted))));
        assert_eq!(position(&tracker), (State::Syncing, None));
        tracker.lose();
        tracker.open();
        assert_eq!(position(&tracker), (State::Syncing, None));
    }

    #[test]
    fn resync_keeps_the_token_of_a_follower() {
        let mut tracker = opened(&WatchRequest::default());
        assert_eq!(position(&tracker), (State::Opening, None));
        tracker.receive(&response(1, bookmark()));
        assert!(!tracker.receive(&response(2, resync(ResyncReason::Flushed))));
        assert_eq!(position(&tracker), (State::Live, Some(2)));
    }

    #[test]
    fn slow_consumer_is_final_and_keeps_the_token() {
        let mut tracker = opened(&mirror());
        assert!(tracker.receive(&response(1, resync(ResyncReason::SlowConsumer))));
        assert_eq!(position(&tracker), (State::Syncing, None));
        tracker.receive(&response(2, synced()));
        assert!(tracker.receive(&response(3, resync(ResyncReason::SlowConsumer))));
        assert_eq!(position(&tracker), (State::Live, Some(3)));
    }

    #[test]
    fn backoff_doubles_to_five_seconds_until_a_good_response() {
        let mut tracker = opened(&mirror());
        for bound in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            tracker.receive(&response(1, bookmark()));
            assert_eq!(tracker.lose(), Duration::from_millis(bound));
            tracker.open();
        }
        for (control, bound) in [(synced(), 100), (None, 200), (bookmark(), 100)] {
            tracker.receive(&response(1, control));
            assert_eq!(tracker.lose(), Duration::from_millis(bound));
            tracker.open();
        }
    }
}
