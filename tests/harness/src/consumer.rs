//! Mirror of the sessions that a watch matches, built on the client's watch consumer; docs/watching.md has the rules.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use sessiond_client::{
    v1::{EventType, ResyncReason, Session, SessionEvent, WatchRequest, WatchResponse, watch_response::Control},
    watch::{Discard, Lost, State, Update, Watch, event_type},
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

/// Mirror of a watch: the sessions that it holds, and a record of its streams, resyncs and events.
pub struct Mirror {
    /// State of the watch after the last update.
    pub state: State,
    /// Status code that ended the watch. None: it has not ended, or all watched ids have ended.
    pub final_status: Option<Code>,
    /// Last revision and state of each matching session, by id.
    pub held: BTreeMap<String, (i64, Session)>,
    /// `as_of` of the last bookmark in the current state LIVE, in µs, Redis clock. None: no bookmark yet.
    pub as_of: Option<i64>,
    /// Reasons of all `resync` controls received, in order.
    pub resyncs: Vec<ResyncReason>,
    /// Reasons for which the watch lost its streams, in order.
    pub lost: Vec<Lost>,
    /// Number of `synced` controls received.
    pub syncs: usize,
    /// Number of streams opened without a resume token.
    pub fresh_streams: usize,
    /// Number of events, other than SNAPSHOT, whose revision was not above the held one: duplicates and wrong order.
    pub stale_events: usize,
}

impl Default for Mirror {
    fn default() -> Self {
        Mirror {
            state: State::Waiting,
            final_status: None,
            held: BTreeMap::new(),
            as_of: None,
            resyncs: Vec::new(),
            lost: Vec::new(),
            syncs: 0,
            fresh_streams: 0,
            stale_events: 0,
        }
    }
}

impl Mirror {
    /// Applies an update. `state`: state of the watch after the update.
    pub fn apply(&mut self, update: Update, state: State) {
        self.state = state;
        if state != State::Live {
            self.as_of = None;
        }
        if let Update::Response(response) = &update {
            response.events.iter().for_each(|event| self.apply_event(event));
        }
        match update.discard() {
            Discard::Nothing => {}
            Discard::Ids(ids) => ids.iter().for_each(|id| drop(self.held.remove(id))),
            Discard::All => self.held.clear(),
        }
        match update {
            Update::Opening { is_resumed } => self.fresh_streams += usize::from(!is_resumed),
            Update::Lost { reason, .. } => self.lost.push(reason),
            Update::Response(WatchResponse { control, .. }) => self.record(control),
        }
    }

    fn record(&mut self, control: Option<Control>) {
        match control {
            Some(Control::Synced(_)) => self.syncs += 1,
            Some(Control::Bookmark(bookmark)) if self.state == State::Live => {
                self.as_of = bookmark.as_of.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000);
            }
            Some(Control::Resync(resync)) => self.resyncs.push(resync.reason()),
            Some(Control::Bookmark(_)) | None => {}
        }
    }

    fn apply_event(&mut self, event: &SessionEvent) {
        if self.held.get(&event.id).is_some_and(|(revision, _)| event.revision <= *revision) {
            self.stale_events += usize::from(event.r#type() != EventType::Snapshot);
            return;
        }
        if matches!(event_type(event), EventType::Ended | EventType::Left) {
            self.held.remove(&event.id);
        } else {
            self.held.insert(event.id.clone(), (event.revision, event.session.clone().unwrap_or_default()));
        }
    }

    fn end(&mut self, status: Option<Code>) {
        (self.state, self.as_of, self.final_status) = (State::Over, None, status);
    }
}

/// Returns whether the server ended the stream because it is being stopped.
pub fn is_draining(lost: &Lost) -> bool {
    let Lost::Status(status) = lost else { return false };
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.as_deref()) == (Code::Unavailable, Some("DRAINING"))
}

/// Task that keeps a mirror up to date until this value is dropped.
pub struct Consumer {
    mirror: Arc<Mutex<Mirror>>,
    task: tokio::task::JoinHandle<()>,
}

impl Consumer {
    /// Starts a mirror that opens its streams on these instances in turn.
    pub fn start(request: WatchRequest, instances: Vec<String>) -> Self {
        Consumer::start_with(request, instances, |_| {})
    }

    /// Starts a mirror like `start`; calls `inspect` with each response before the mirror applies it.
    pub fn start_with(
        request: WatchRequest,
        instances: Vec<String>,
        inspect: impl FnMut(&WatchResponse) + Send + 'static,
    ) -> Self {
        let mut instances = instances.into_iter().cycle();
        let watch = Watch::new(request, move || {
            let url = format!("http://{}", instances.next().unwrap());
            // With a small window, a broken connection loses few responses that were sent but not read.
            Channel::from_shared(url).unwrap().initial_stream_window_size(64 * 1024)
        });
        let mirror = Arc::new(Mutex::new(Mirror::default()));
        #[expect(clippy::disallowed_methods, reason = "the consumer owns it")]
        let task = tokio::spawn(run(watch, mirror.clone(), inspect));
        Consumer { mirror, task }
    }

    /// Locks the mirror, calls `read` with it, and returns the result.
    pub fn look<T>(&self, read: impl FnOnce(&Mirror) -> T) -> T {
        read(&self.mirror.lock().unwrap())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
        if std::thread::panicking() {
            self.look(|mirror| {
                eprintln!("mirror in state {:?}, lost {:?}, resyncs {:?}", mirror.state, mirror.lost, mirror.resyncs);
            });
        }
    }
}

async fn run(mut watch: Watch, mirror: Arc<Mutex<Mirror>>, mut inspect: impl FnMut(&WatchResponse)) {
    loop {
        match watch.next().await {
            Ok(Some(update)) => {
                if let Update::Response(response) = &update {
                    inspect(response);
                }
                mirror.lock().unwrap().apply(update, watch.tracker().state());
            }
            Ok(None) => return mirror.lock().unwrap().end(None),
            Err(status) => return mirror.lock().unwrap().end(Some(status.code())),
        }
    }
}
