//! Watchers of every kind, which go on elsewhere whenever their watch breaks off.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sessiond_client::v1::{
    EventType, ResyncReason, SessionView, WatchRequest, WatchResponse, session_service_client::SessionServiceClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    chance::Chance,
    harness::client::*,
    history::{
        CLOSED, CLOSED_AS_TOO_SLOW, CLOSED_FOR_GOOD, Control, Filter, LEFT, NOT_CONNECTED, Refusal, SILENT, Scope,
    },
    made::everything,
    recorder::{Opening, Recorder, name_of, now},
    workload::{COLOURS, SUBJECTS},
};

/// No response for so long: the watch is given up, and opened elsewhere.
const SILENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
/// So little is on its way to a reader that the server notices one that stops.
const WINDOW: u32 = 64 * 1024;

/// How a watcher reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// As fast as it can.
    Steady,
    /// It breaks off again and again, and goes on elsewhere.
    Restless,
    /// The same, and it has forgotten where it was.
    Forgetful,
    /// It is not there while readers are told to stop, and goes on after that.
    Away,
    /// It takes its time for every response.
    Slow,
    /// It reads nothing while readers are told to stop.
    Stopping,
}

impl Manner {
    pub fn is_slow(self) -> bool {
        matches!(self, Manner::Slow | Manner::Stopping)
    }
}

pub struct Watcher {
    pub filter: Filter,
    pub manner: Manner,
    pub initial_state: bool,
    /// Addresses of the instances.
    pub addresses: Vec<String>,
    pub recorder: Arc<Recorder>,
    pub chance: Chance,
    /// Whether stopping readers are to stop.
    pub stopped: watch::Receiver<bool>,
}

/// What is watched, how, and whether the state comes first.
pub fn kinds(ids: BTreeSet<String>, chance: &mut Chance) -> Vec<(Filter, Manner, bool)> {
    let of_subject = Filter { scope: Scope::Subject(SUBJECTS[0].to_owned()), ..everything() };
    let of_colour = Filter { labels: labels(&[("colour", COLOURS[0])]), ..everything() };
    let endings = Filter { kinds: vec![EventType::Created, EventType::Ended, EventType::Left], ..of_colour.clone() };
    let of_ids = Filter { scope: Scope::Ids(ids), ..everything() };
    let mut state = || chance.once_in(2);
    vec![
        (everything(), Manner::Steady, false),
        (everything(), Manner::Steady, true),
        (everything(), Manner::Restless, state()),
        (everything(), Manner::Stopping, state()),
        (everything(), Manner::Away, state()),
        (everything(), Manner::Slow, state()),
        (of_subject.clone(), Manner::Restless, state()),
        (of_subject, Manner::Forgetful, true),
        (of_colour.clone(), Manner::Forgetful, true),
        (of_colour, Manner::Restless, state()),
        (endings, Manner::Steady, false),
        (of_ids, Manner::Restless, state()),
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

/// Where a watcher is to go on.
#[derive(Default)]
struct Place {
    /// The last watch that told something.
    watch: Option<usize>,
    token: Vec<u8>,
    /// A state begun is of no use before it is complete.
    is_complete: bool,
}

impl Watcher {
    /// Watches until it is dropped, or nothing more is to come.
    pub async fn run(mut self, number: usize) {
        let mut place = Place::default();
        let mut instance = self.chance.below(self.addresses.len());
        loop {
            if self.manner == Manner::Away {
                let _ = self.stopped.wait_for(|stopped| !stopped).await;
            }
            let begins_anew = self.manner == Manner::Forgetful || !place.is_complete;
            if self.initial_state && begins_anew {
                place = Place::default();
            }
            let is_over = match self.open(instance, &place).await {
                Ok(stream) => {
                    let (filter, is_slow) = (self.filter.clone(), self.manner.is_slow());
                    let opening = Opening { filter, initial_state: self.initial_state, is_slow };
                    let watch = self.recorder.opened(instance, opening, place.watch);
                    let how = self.read(stream, number, watch, &mut place).await;
                    let is_over = how == CLOSED_FOR_GOOD;
                    self.recorder.closed(watch, how);
                    is_over
                }
                // One that it was to watch had ended before, or so it is told.
                Err(code) => code == Code::NotFound,
            };
            // Other sessions may always be made.
            if is_over && matches!(self.filter.scope, Scope::Ids(_)) {
                return self.recorder.is_over(number);
            }
            tokio::time::sleep(PAUSE).await;
            instance = self.chance.below(self.addresses.len());
        }
    }

    /// Why there is no watch is recorded.
    async fn open(&self, instance: usize, place: &Place) -> Result<Streaming<WatchResponse>, Code> {
        let called = now();
        let opened = timeout(SILENCE, self.try_open(instance, place)).await;
        let (how, code) = match opened {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refused)) => refused,
            Err(_) => (SILENT.to_owned(), Code::DeadlineExceeded),
        };
        let (filter, resumes) = (self.filter.clone(), !place.token.is_empty());
        self.recorder.refused(Refusal { filter, resumes, called, returned: now(), how });
        Err(code)
    }

    async fn try_open(&self, instance: usize, place: &Place) -> Result<Streaming<WatchResponse>, (String, Code)> {
        let endpoint = Channel::from_shared(format!("http://{}", self.addresses[instance])).expect("an address");
        let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let connected = endpoint.connect().await.map_err(|_| (NOT_CONNECTED.to_owned(), Code::Unavailable))?;
        let request = request(&self.filter, self.initial_state, place.token.clone());
        let opened = SessionServiceClient::new(connected).watch(request).await;
        opened.map(tonic::Response::into_inner).map_err(|status| (name_of(&status), status.code()))
    }

    /// Reads until the watch ends, or it has enough of it; how that was.
    async fn read(
        &mut self,
        mut stream: Streaming<WatchResponse>,
        number: usize,
        watch: usize,
        place: &mut Place,
    ) -> String {
        let patience = Duration::from_millis(200 + self.chance.below(800) as u64);
        let leaves_at = Instant::now() + patience;
        let mut is_slow = false;
        loop {
            match self.manner {
                Manner::Slow => tokio::time::sleep(Duration::from_millis(20)).await,
                Manner::Stopping => {
                    let _ = self.stopped.wait_for(|stopped| !stopped).await;
                }
                Manner::Restless | Manner::Forgetful if Instant::now() > leaves_at => return LEFT.to_owned(),
                Manner::Away if *self.stopped.borrow() => return LEFT.to_owned(),
                Manner::Restless | Manner::Forgetful | Manner::Away | Manner::Steady => {}
            }
            let response = match timeout(SILENCE, stream.message()).await {
                Err(_) => return SILENT.to_owned(),
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) if is_slow => return CLOSED_AS_TOO_SLOW.to_owned(),
                Ok(Ok(None)) => return CLOSED_FOR_GOOD.to_owned(),
                Ok(Err(status)) => return format!("{CLOSED}{}", name_of(&status)),
            };
            place.token.clone_from(&response.resume_token);
            place.watch = Some(watch);
            let response = self.recorder.told(number, watch, response);
            match response.control {
                Some(Control::Synced) => place.is_complete = true,
                // A last word.
                Some(Control::Resync(ResyncReason::SlowConsumer, _)) => is_slow = true,
                Some(Control::Bookmark(_)) | None => {}
                Some(Control::Resync(..)) => place.is_complete = false,
            }
        }
    }
}
