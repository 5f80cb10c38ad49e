//! Watchers of every kind, which resume on a random instance whenever their watch ends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sessiond_client::v1::{
    EventType, ResyncReason, SessionView, WatchRequest, WatchResponse, session_service_client::SessionServiceClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Code, Streaming, transport::Channel};

use crate::history::{
    CLOSED, CLOSED_COMPLETE, CLOSED_SLOW_CONSUMER, Control, DISCONNECTED, Filter, NO_RESPONSE, NOT_CONNECTED,
    OpenFailure, Scope,
};
use crate::{
    fixtures::unfiltered,
    recorder::{Recorder, WatchOptions, describe, now},
    seeded_rng::SeededRng,
    workload::{COLOURS, SUBJECTS},
};
use harness::client::*;

/// Maximum time without a response, after which the watcher closes the watch and opens another one.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two watches.
const PAUSE: Duration = Duration::from_millis(50);
/// HTTP/2 window. It is small so that the server detects a reader that stops.
const WINDOW: u32 = 64 * 1024;

/// How a watcher reads its responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReadPattern {
    /// Reads every response at once.
    Steady,
    /// Reconnects after 200 to 1,000 ms and resumes from its token.
    Reconnecting,
    /// Reconnects like `Reconnecting`; starts without a token if it watches with a snapshot.
    WithoutToken,
    /// Is disconnected while `readers_stopped` is set, and resumes after that.
    Disconnected,
    /// Pauses before every response.
    Slow,
    /// Reads nothing while `readers_stopped` is set.
    Stalled,
}

impl ReadPattern {
    /// Returns whether a server may evict such a watcher as a slow consumer.
    pub fn is_slow(self) -> bool {
        matches!(self, ReadPattern::Slow | ReadPattern::Stalled)
    }
}

/// A client that opens one watch after the other, with a fixed filter and read pattern.
pub struct Watcher {
    /// Filter of all its watches.
    pub filter: Filter,
    /// How it reads responses, and when it reconnects.
    pub pattern: ReadPattern,
    /// Whether its requests ask for a snapshot.
    pub initial_state: bool,
    /// Addresses of the instances.
    pub addresses: Vec<String>,
    pub recorder: Arc<Recorder>,
    pub rng: SeededRng,
    /// Whether the fault stops the readers with the patterns Stalled and Disconnected.
    pub readers_stopped: watch::Receiver<bool>,
}

/// Returns filter, read pattern and `initial_state` of every watcher.
pub fn watcher_kinds(ids: BTreeSet<String>, rng: &mut SeededRng) -> Vec<(Filter, ReadPattern, bool)> {
    let by_subject = Filter { scope: Scope::Subject(SUBJECTS[0].to_owned()), ..unfiltered() };
    let by_label = Filter { labels: labels(&[("colour", COLOURS[0])]), ..unfiltered() };
    let by_type = Filter { kinds: vec![EventType::Created, EventType::Ended, EventType::Left], ..by_label.clone() };
    let by_ids = Filter { scope: Scope::Ids(ids), ..unfiltered() };
    let mut with_snapshot = || rng.one_in(2);
    vec![
        (unfiltered(), ReadPattern::Steady, false),
        (unfiltered(), ReadPattern::Steady, true),
        (unfiltered(), ReadPattern::Reconnecting, with_snapshot()),
        (unfiltered(), ReadPattern::Stalled, with_snapshot()),
        (unfiltered(), ReadPattern::Disconnected, with_snapshot()),
        (unfiltered(), ReadPattern::Slow, with_snapshot()),
        (by_subject.clone(), ReadPattern::Reconnecting, with_snapshot()),
        (by_subject, ReadPattern::WithoutToken, true),
        (by_label.clone(), ReadPattern::WithoutToken, true),
        (by_label, ReadPattern::Reconnecting, with_snapshot()),
        (by_type, ReadPattern::Steady, false),
        (by_ids, ReadPattern::Reconnecting, with_snapshot()),
    ]
}

fn request(filter: &Filter, initial_state: bool, resume_token: Vec<u8>) -> WatchRequest {
    let (ids, subject) = match &filter.scope {
        Scope::Namespace => (BTreeSet::new(), None),
        Scope::Ids(ids) => (ids.clone(), None),
        Scope::Subject(subject) => (BTreeSet::new(), Some(subject.clone())),
    };
    WatchRequest {
        namespace: NAMESPACE.to_owned(),
        whole_namespace: filter.scope == Scope::Namespace,
        keys: ids.iter().filter_map(|id| by_id(id)).collect(),
        subject,
        labels: filter.labels.clone(),
        types: filter.kinds.iter().map(|kind| i32::from(*kind)).collect(),
        view: SessionView::Full.into(),
        resume_token,
        initial_state,
        bookmark_interval: millis(200),
    }
}

/// The position at which a watcher resumes.
#[derive(Default)]
struct ResumePoint {
    /// Number of the last watch with a response.
    watch: Option<usize>,
    /// Resume token of the last response. Empty: none.
    token: Vec<u8>,
    /// Whether the snapshot is complete. A partial snapshot cannot be resumed.
    is_complete: bool,
}

impl Watcher {
    /// Watches until the task is aborted or all watched sessions have ended.
    pub async fn run(mut self, number: usize) {
        let mut resume = ResumePoint::default();
        let mut instance = self.rng.below(self.addresses.len());
        loop {
            if self.pattern == ReadPattern::Disconnected {
                let _ = self.readers_stopped.wait_for(|stopped| !stopped).await;
            }
            let starts_over = self.pattern == ReadPattern::WithoutToken || !resume.is_complete;
            if self.initial_state && starts_over {
                resume = ResumePoint::default();
            }
            let may_be_finished = match self.open(instance, &resume).await {
                Ok(stream) => {
                    let (filter, is_slow) = (self.filter.clone(), self.pattern.is_slow());
                    let options = WatchOptions { filter, initial_state: self.initial_state, is_slow };
                    let watch = self.recorder.record_opened(instance, options, resume.watch);
                    let end = self.read(stream, number, watch, &mut resume).await;
                    let is_complete = end == CLOSED_COMPLETE;
                    self.recorder.record_closed(watch, end);
                    is_complete
                }
                // NOT_FOUND: one of its sessions had ended before the request.
                Err(code) => code == Code::NotFound,
            };
            // With any other scope, new sessions can match, so the watcher continues.
            if may_be_finished && matches!(self.filter.scope, Scope::Ids(_)) {
                return self.recorder.record_finished(number);
            }
            tokio::time::sleep(PAUSE).await;
            instance = self.rng.below(self.addresses.len());
        }
    }

    /// Opens a watch, and records the failure if the attempt fails.
    async fn open(&self, instance: usize, resume: &ResumePoint) -> Result<Streaming<WatchResponse>, Code> {
        let called = now();
        let opened = timeout(RESPONSE_TIMEOUT, self.try_open(instance, resume)).await;
        let (error, code) = match opened {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) => failure,
            Err(_) => (NO_RESPONSE.to_owned(), Code::DeadlineExceeded),
        };
        let (filter, resumes) = (self.filter.clone(), !resume.token.is_empty());
        self.recorder.record_open_failure(OpenFailure { filter, resumes, called, returned: now(), error });
        Err(code)
    }

    async fn try_open(
        &self,
        instance: usize,
        resume: &ResumePoint,
    ) -> Result<Streaming<WatchResponse>, (String, Code)> {
        let endpoint = Channel::from_shared(format!("http://{}", self.addresses[instance])).expect("an address");
        let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let connected = endpoint.connect().await.map_err(|_| (NOT_CONNECTED.to_owned(), Code::Unavailable))?;
        let request = request(&self.filter, self.initial_state, resume.token.clone());
        let opened = SessionServiceClient::new(connected).watch(request).await;
        opened.map(tonic::Response::into_inner).map_err(|status| (describe(&status), status.code()))
    }

    /// Reads until the watch ends or the watcher disconnects; returns the end.
    async fn read(
        &mut self,
        mut stream: Streaming<WatchResponse>,
        number: usize,
        watch: usize,
        resume: &mut ResumePoint,
    ) -> String {
        let read_time = Duration::from_millis(200 + self.rng.below(800) as u64);
        let disconnects_at = Instant::now() + read_time;
        let mut is_evicted = false;
        loop {
            match self.pattern {
                ReadPattern::Slow => tokio::time::sleep(Duration::from_millis(20)).await,
                ReadPattern::Stalled => {
                    let _ = self.readers_stopped.wait_for(|stopped| !stopped).await;
                }
                ReadPattern::Reconnecting | ReadPattern::WithoutToken if Instant::now() > disconnects_at => {
                    return DISCONNECTED.to_owned();
                }
                ReadPattern::Disconnected if *self.readers_stopped.borrow() => return DISCONNECTED.to_owned(),
                ReadPattern::Reconnecting
                | ReadPattern::WithoutToken
                | ReadPattern::Disconnected
                | ReadPattern::Steady => {}
            }
            let response = match timeout(RESPONSE_TIMEOUT, stream.message()).await {
                Err(_) => return NO_RESPONSE.to_owned(),
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) if is_evicted => return CLOSED_SLOW_CONSUMER.to_owned(),
                Ok(Ok(None)) => return CLOSED_COMPLETE.to_owned(),
                Ok(Err(status)) => return format!("{CLOSED}{}", describe(&status)),
            };
            resume.token.clone_from(&response.resume_token);
            resume.watch = Some(watch);
            let response = self.recorder.record_response(number, watch, response);
            match response.control {
                Some(Control::Synced) => resume.is_complete = true,
                // The final response of this watch.
                Some(Control::Resync(ResyncReason::SlowConsumer, _)) => is_evicted = true,
                Some(Control::Bookmark(_)) | None => {}
                Some(Control::Resync(..)) => resume.is_complete = false,
            }
        }
    }
}
