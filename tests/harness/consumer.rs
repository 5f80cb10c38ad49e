//! A mirror of the sessions that a watch matches, as docs/watching.md describes it, state by state.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use sessiond_client::v1::{
    Cause, EventType, ResyncReason, Session, SessionEvent, WatchRequest, WatchResponse, session_key::Key,
    session_service_client::SessionServiceClient, watch_response::Control,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

const FINAL: [Code; 9] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::Unauthenticated,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::DataLoss,
];
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Where a consumer stands.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// What it holds is not complete.
    Syncing,
    /// A stream is opened with a token, and nothing has come from it yet.
    Opening,
    /// What it holds is the truth as of its token.
    Live,
    Waiting,
    /// With the status that ended it; None = all ids have ended.
    Over(Option<Code>),
}

/// Why a stream was given up or lost.
#[derive(Clone, Debug, PartialEq)]
pub enum Lost {
    Silent,
    TooSlow,
    Closed,
    Status(Code, Option<String>),
}

/// What a consumer holds, and what it has been through.
pub struct Mirror {
    pub state: State,
    pub held: BTreeMap<String, (i64, Session)>,
    /// None = what is held is not complete.
    pub token: Option<Vec<u8>>,
    pub failures: u32,
    /// Of the last bookmark since the mirror was last not live, in us by the clock of Redis.
    pub as_of: Option<i64>,
    pub resyncs: Vec<ResyncReason>,
    pub lost: Vec<Lost>,
    pub syncs: usize,
    /// Streams opened without a token.
    pub beginnings: usize,
    /// Changes, other than SNAPSHOT, that were not above what was held.
    pub stale: usize,
}

impl Default for Mirror {
    fn default() -> Self {
        Mirror {
            state: State::Waiting,
            held: BTreeMap::new(),
            token: None,
            failures: 0,
            as_of: None,
            resyncs: Vec::new(),
            lost: Vec::new(),
            syncs: 0,
            beginnings: 0,
            stale: 0,
        }
    }
}

impl Mirror {
    /// Before a stream is opened; the token to open it with.
    pub fn open(&mut self) -> Vec<u8> {
        self.as_of = None;
        match self.token.clone() {
            None => {
                // A part of a state is of no use.
                self.held.clear();
                self.beginnings += 1;
                self.state = State::Syncing;
                Vec::new()
            }
            Some(token) => {
                self.state = State::Opening;
                token
            }
        }
    }

    /// Takes a response; false = it is the last one of its stream.
    pub fn take(&mut self, response: WatchResponse) -> bool {
        if self.state == State::Opening {
            self.state = State::Live;
        }
        response.events.into_iter().for_each(|event| self.apply(event));
        let (mut goes_on, mut is_well) = (true, false);
        match response.control {
            Some(Control::Synced(_)) => {
                self.syncs += 1;
                self.state = State::Live;
                is_well = true;
            }
            Some(Control::Bookmark(bookmark)) if self.state == State::Live => {
                self.as_of = bookmark.as_of.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000);
                is_well = true;
            }
            Some(Control::Resync(resync)) if resync.reason() == ResyncReason::SlowConsumer => {
                self.resyncs.push(resync.reason());
                goes_on = false;
            }
            Some(Control::Resync(resync)) => {
                self.resyncs.push(resync.reason());
                match &resync.ids[..] {
                    [] => self.held.clear(),
                    ids => ids.iter().for_each(|id| drop(self.held.remove(id))),
                }
                (self.state, self.token, self.as_of) = (State::Syncing, None, None);
            }
            Some(Control::Bookmark(_)) | None => {}
        }
        if self.state == State::Live {
            self.token = Some(response.resume_token);
        }
        if is_well {
            self.failures = 0;
        }
        goes_on
    }

    fn apply(&mut self, event: SessionEvent) {
        let is_ending = match EventType::try_from(event.r#type) {
            Ok(EventType::Ended | EventType::Left) => true,
            Ok(EventType::Unspecified) | Err(_) => event.cause != i32::from(Cause::Unspecified),
            Ok(
                EventType::Snapshot
                | EventType::Created
                | EventType::Updated
                | EventType::Rotated
                | EventType::TokenReused,
            ) => false,
        };
        if self.held.get(&event.id).is_some_and(|(revision, _)| event.revision <= *revision) {
            self.stale += usize::from(event.r#type() != EventType::Snapshot);
            return;
        }
        if is_ending {
            self.held.remove(&event.id);
        } else {
            self.held.insert(event.id, (event.revision, event.session.unwrap_or_default()));
        }
    }

    /// A stream is lost; how long to wait at most, besides what the status asks for.
    pub fn lose(&mut self, why: Lost) -> Duration {
        (self.state, self.as_of) = (State::Waiting, None);
        self.lost.push(why);
        let longest = BACKOFF.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST_BACKOFF);
        self.failures += 1;
        longest
    }
}

/// Whether a repeat would be answered alike.
pub fn is_final(status: &Status) -> bool {
    let is_limit = status.get_details_error_info().is_some_and(|info| info.reason == "WATCH_LIMIT");
    FINAL.contains(&status.code()) || status.code() == Code::ResourceExhausted && !is_limit
}

/// A mirror that is kept; no longer than this value lives.
pub struct Consumer {
    mirror: Arc<Mutex<Mirror>>,
    task: tokio::task::JoinHandle<()>,
}

impl Consumer {
    /// Watches on these instances, one after the other.
    pub fn start(request: WatchRequest, instances: Vec<String>) -> Self {
        Consumer::start_and_see(request, instances, |_| {})
    }

    /// The same; each response is shown before it is taken.
    pub fn start_and_see(
        request: WatchRequest,
        instances: Vec<String>,
        see: impl FnMut(&WatchResponse) + Send + 'static,
    ) -> Self {
        let mirror = Arc::new(Mutex::new(Mirror::default()));
        #[expect(clippy::disallowed_methods, reason = "the consumer owns it")]
        let task = tokio::spawn(keep(request, instances, mirror.clone(), see));
        Consumer { mirror, task }
    }

    /// A look at what it holds.
    pub fn look<T>(&self, look: impl FnOnce(&Mirror) -> T) -> T {
        look(&self.mirror.lock().unwrap())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
        if std::thread::panicking() {
            let (state, lost, resyncs) =
                self.look(|mirror| (mirror.state.clone(), mirror.lost.clone(), mirror.resyncs.clone()));
            eprintln!("a mirror was {state:?} after {lost:?} and {resyncs:?}");
        }
    }
}

async fn keep(
    request: WatchRequest,
    instances: Vec<String>,
    mirror: Arc<Mutex<Mirror>>,
    mut see: impl FnMut(&WatchResponse),
) {
    for instance in instances.iter().cycle() {
        let resume_token = mirror.lock().unwrap().open();
        let asked = WatchRequest { resume_token, ..request.clone() };
        let (why, retry_after) = match follow(instance, asked, &mirror, &mut see).await {
            Ok(lost) => (lost, Duration::ZERO),
            Err(End::AllEnded) => return mirror.lock().unwrap().state = State::Over(None),
            Err(End::Status(status)) if is_final(&status) => {
                return mirror.lock().unwrap().state = State::Over(Some(status.code()));
            }
            Err(End::Status(status)) => {
                let reason = status.get_details_error_info().map(|info| info.reason);
                let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
                (Lost::Status(status.code(), reason), retry_after.unwrap_or_default())
            }
        };
        let longest = mirror.lock().unwrap().lose(why);
        let random = f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX);
        sleep(retry_after + longest.mul_f64(random)).await;
    }
}

enum End {
    AllEnded,
    Status(Status),
}

/// One stream, on a channel of its own; Ok = it was given up.
async fn follow(
    instance: &str,
    request: WatchRequest,
    mirror: &Mutex<Mirror>,
    see: &mut impl FnMut(&WatchResponse),
) -> Result<Lost, End> {
    let interval = request.bookmark_interval.unwrap_or(prost_types::Duration { seconds: 10, nanos: 0 });
    let silence = 2 * Duration::try_from(interval).unwrap();
    let by_ids = request.keys.iter().any(|key| matches!(key.key, Some(Key::Id(_))));
    let mut heard = Instant::now();
    // Little is under way that was not asked for yet: a connection that breaks takes it along.
    let endpoint = Channel::from_shared(format!("http://{instance}")).unwrap().initial_stream_window_size(64 * 1024);
    let open = async {
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(SessionServiceClient::new(channel).watch(request).await?.into_inner())
    };
    let Ok(opened) = timeout_at(heard + silence, open).await else { return Ok(Lost::Silent) };
    let mut stream = opened.map_err(End::Status)?;
    loop {
        let Ok(response) = timeout_at(heard + silence, stream.message()).await else { return Ok(Lost::Silent) };
        match response.map_err(End::Status)? {
            None if by_ids => return Err(End::AllEnded),
            None => return Ok(Lost::Closed),
            Some(response) => {
                see(&response);
                if !mirror.lock().unwrap().take(response) {
                    return Ok(Lost::TooSlow);
                }
            }
        }
        heard = Instant::now();
    }
}
