//! Consumer of the Watch stream: reconnects, resumes, and reports each response and each lost stream.
//!
//! ```no_run
//! use sessiond_client::{v1::WatchRequest, watch::{Update, Watch}};
//! use tonic::transport::Endpoint;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let request = WatchRequest { namespace: "web".into(), whole_namespace: true, ..Default::default() };
//! let endpoint = Endpoint::from_static("http://127.0.0.1:50051");
//! let mut watch = Watch::new(request, move || endpoint.clone());
//! while let Some(update) = watch.next().await? {
//!     match update {
//!         Update::Response(response) => println!("{} events", response.events.len()),
//!         Update::Opening { .. } | Update::Lost { .. } => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The repository's docs/watching.md explains the states and rules.

mod tracker;

use std::{error::Error, fmt, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Extensions, Request, Status, Streaming, metadata::MetadataMap, transport::Endpoint};
use tonic_types::StatusExt;

pub use self::tracker::{State, Tracker};
use crate::v1::{
    EventType, ResyncReason, SessionEvent, WatchRequest, WatchResponse, session_key::Key,
    session_service_client::SessionServiceClient, watch_response::Control,
};

/// Bookmark interval of a request that sets none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest and longest bookmark interval that a server accepts; other values still give a usable time limit.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Longest RetryInfo delay that is waited for; bounds the effect of a faulty server.
const MAX_RETRY_INFO: Duration = Duration::from_secs(60);

/// One step of a watch, in the order in which it happens.
#[derive(Debug)]
pub enum Update {
    /// A stream is being opened, at the last resume token if `is_resumed`, else without one.
    Opening {
        /// Whether the stream continues where the last one ended. False: a mirror discards all sessions that it holds.
        is_resumed: bool,
    },
    /// A response. Its events take effect before its control.
    Response(WatchResponse),
    /// The stream is lost or could not be opened; the next one opens after the delay.
    Lost {
        /// What ended the stream.
        reason: Lost,
        /// Time until the next stream is opened: RetryInfo of the status, if any, plus a random back-off.
        delay: Duration,
    },
}

impl Update {
    /// Sessions that a mirror discards because of this update, after it applied the events of the response.
    pub fn discard(&self) -> Discard<'_> {
        match self {
            Update::Opening { is_resumed: false } => Discard::All,
            Update::Response(response) => match &response.control {
                Some(Control::Resync(resync)) if resync.reason() == ResyncReason::SlowConsumer => Discard::Nothing,
                Some(Control::Resync(resync)) if resync.ids.is_empty() => Discard::All,
                Some(Control::Resync(resync)) => Discard::Ids(&resync.ids),
                Some(Control::Synced(_) | Control::Bookmark(_)) | None => Discard::Nothing,
            },
            Update::Opening { is_resumed: true } | Update::Lost { .. } => Discard::Nothing,
        }
    }
}

/// Sessions that a mirror discards, together with their revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard<'a> {
    /// No session.
    Nothing,
    /// Sessions with these ids.
    Ids(&'a [String]),
    /// All sessions.
    All,
}

/// Reason why a stream ended or was not opened, although the watch continues.
#[derive(Debug)]
pub enum Lost {
    /// The connection could not be established.
    Unreachable(Box<dyn Error + Send + Sync>),
    /// The server did not accept the call within this time.
    NotOpened(Duration),
    /// The server sent no response for this time: two bookmark intervals.
    Silent(Duration),
    /// The server evicted this watch because it read too slowly.
    SlowConsumer,
    /// The server closed the stream with OK.
    Closed,
    /// The stream ended with a status after which a retry can succeed.
    Status(Status),
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Unreachable(error) => write!(formatter, "no connection: {error}"),
            Lost::NotOpened(time) => write!(formatter, "the server did not open the watch within {time:?}"),
            Lost::Silent(time) => write!(formatter, "no response for {time:?} (two bookmark intervals)"),
            Lost::SlowConsumer => formatter.write_str("the server evicted this watch as a slow consumer"),
            Lost::Closed => formatter.write_str("the server closed the watch"),
            Lost::Status(status) => write!(formatter, "{}: {}", status.code(), status.message()),
        }
    }
}

impl Error for Lost {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Lost::Unreachable(error) => Some(&**error),
            Lost::Status(status) => Some(status),
            Lost::NotOpened(_) | Lost::Silent(_) | Lost::SlowConsumer | Lost::Closed => None,
        }
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<WatchResponse>, Lost>> + Send>>;

/// Watch that continues across lost streams, until it ends or is dropped.
pub struct Watch {
    request: WatchRequest,
    endpoint: Box<dyn FnMut() -> Endpoint + Send>,
    tracker: Tracker,
    phase: Phase,
    /// Time without a response after which the stream counts as lost.
    silence: Duration,
    open_timeout: Duration,
    /// Headers of every request.
    metadata: MetadataMap,
    /// Instant at which `next` reports silence. None: no `next` has waited for the next response yet.
    deadline: Option<Instant>,
}

/// What the next call of `next` waits for. Everything in progress is kept here, so that a dropped `next` loses nothing.
enum Phase {
    Waiting(Instant),
    Opening(Opening),
    Open(Box<Streaming<WatchResponse>>),
    Evicted,
    Over,
}

impl Watch {
    /// Returns a watch that opens its first stream at the first [`next`](Self::next).
    ///
    /// `endpoint` is called once for each stream and returns the server to connect to: the next instance, if there are
    /// several. Each stream has a connection of its own, because a stalled stream blocks other calls on its connection.
    pub fn new(request: WatchRequest, endpoint: impl FnMut() -> Endpoint + Send + 'static) -> Self {
        let interval = request.bookmark_interval.and_then(|interval| Duration::try_from(interval).ok());
        let silence = 2 * interval.unwrap_or(DEFAULT_INTERVAL).clamp(MIN_INTERVAL, MAX_INTERVAL);
        Watch {
            tracker: Tracker::new(&request),
            request,
            endpoint: Box::new(endpoint),
            phase: Phase::Waiting(Instant::now()),
            silence,
            open_timeout: silence,
            metadata: MetadataMap::new(),
            deadline: None,
        }
    }

    /// Sets the headers of every request, such as `authorization` with an API key; default: none.
    pub fn with_metadata(mut self, metadata: MetadataMap) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets the time limit for connecting, and again for opening the stream; default: two bookmark intervals.
    pub fn with_open_timeout(mut self, limit: Duration) -> Self {
        self.open_timeout = limit;
        self
    }

    /// State, resume token and back-off after the last update.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Returns the next update. A status is final: a retry would fail in the same way. None: all watched ids have ended,
    /// or a final status was returned before.
    ///
    /// Dropping the future loses no response. Silence counts from the first `next` that waits for the response; dropping
    /// that `next` does not reset it.
    pub async fn next(&mut self) -> Result<Option<Update>, Status> {
        loop {
            match &mut self.phase {
                Phase::Waiting(until) => {
                    sleep_until(*until).await;
                    return Ok(Some(self.open()));
                }
                Phase::Opening(opening) => match opening.await {
                    Ok(stream) => self.phase = Phase::Open(Box::new(stream)),
                    Err(lost) => return self.lose(lost).map(Some),
                },
                Phase::Open(stream) => {
                    let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.silence);
                    let received = timeout_at(deadline, stream.message()).await;
                    return match received {
                        Ok(Ok(Some(response))) => Ok(Some(self.receive(response))),
                        Ok(Ok(None)) if self.is_by_ids() => Ok(self.end()),
                        Ok(Ok(None)) => self.lose(Lost::Closed).map(Some),
                        Ok(Err(status)) => self.lose(Lost::Status(status)).map(Some),
                        Err(_) => self.lose(Lost::Silent(self.silence)).map(Some),
                    };
                }
                Phase::Evicted => return self.lose(Lost::SlowConsumer).map(Some),
                Phase::Over => return Ok(None),
            }
        }
    }

    fn open(&mut self) -> Update {
        self.tracker.open();
        let resume_token = self.tracker.resume_token();
        let is_resumed = resume_token.is_some();
        self.request.resume_token = resume_token.unwrap_or_default().to_vec();
        let request = Request::from_parts(self.metadata.clone(), Extensions::default(), self.request.clone());
        self.phase = Phase::Opening(Box::pin(open((self.endpoint)(), request, self.open_timeout)));
        Update::Opening { is_resumed }
    }

    fn receive(&mut self, response: WatchResponse) -> Update {
        self.deadline = None;
        if self.tracker.receive(&response) {
            self.phase = Phase::Evicted;
        }
        Update::Response(response)
    }

    /// Drops the stream and its connection, and schedules the next one.
    fn lose(&mut self, reason: Lost) -> Result<Update, Status> {
        self.deadline = None;
        let retry_info = match reason {
            Lost::Status(status) if is_final(&status) => {
                self.end();
                return Err(status);
            }
            Lost::Status(ref status) => status.get_details_retry_info().and_then(|info| info.retry_delay),
            _ => None,
        };
        let delay = retry_info.unwrap_or_default().min(MAX_RETRY_INFO) + jitter(self.tracker.lose());
        self.phase = Phase::Waiting(Instant::now() + delay);
        Ok(Update::Lost { reason, delay })
    }

    fn end(&mut self) -> Option<Update> {
        self.tracker.end();
        self.phase = Phase::Over;
        None
    }

    fn is_by_ids(&self) -> bool {
        self.request.keys.iter().any(|key| matches!(key.key, Some(Key::Id(_))))
    }
}

async fn open(
    endpoint: Endpoint,
    request: Request<WatchRequest>,
    limit: Duration,
) -> Result<Streaming<WatchResponse>, Lost> {
    let connected = timeout(limit, endpoint.connect()).await.map_err(|elapsed| Lost::Unreachable(elapsed.into()))?;
    let channel = connected.map_err(|error| Lost::Unreachable(error.into()))?;
    let mut client = SessionServiceClient::new(channel);
    let opened = timeout(limit, client.watch(request)).await.map_err(|_| Lost::NotOpened(limit))?;
    Ok(opened.map_err(Lost::Status)?.into_inner())
}

/// Returns a random delay from 0 to the bound (full jitter), so that the watchers of a stopped server reconnect spread out.
fn jitter(bound: Duration) -> Duration {
    // Without a random source the delay is the bound itself: later than necessary, never too early.
    let random = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    bound.mul_f64(random)
}

/// Returns whether a retry of the watch would fail with the same status.
///
/// A status that this process made because of a broken connection has a source and is never final.
pub fn is_final(status: &Status) -> bool {
    match status.code() {
        _ if status.source().is_some() => false,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => true,
        Code::ResourceExhausted => status.get_details_error_info().is_none_or(|info| info.reason != "WATCH_LIMIT"),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => false,
    }
}

/// Returns the type of an event; a type that this version does not know is ENDED if the event has a cause, else UPDATED.
pub fn event_type(event: &SessionEvent) -> EventType {
    match EventType::try_from(event.r#type) {
        Ok(EventType::Unspecified) | Err(_) if event.cause == 0 => EventType::Updated,
        Ok(EventType::Unspecified) | Err(_) => EventType::Ended,
        Ok(known) => known,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tonic_types::ErrorDetails;

    use super::*;
    use crate::v1::{Resync, Synced};

    #[test]
    fn status_is_final_unless_a_retry_can_succeed() {
        use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, Internal, InvalidArgument, NotFound};
        use Code::{ResourceExhausted, Unavailable, Unimplemented, Unknown};
        for code in [Unavailable, DeadlineExceeded, Cancelled, Unknown, Internal, Aborted] {
            assert!(!is_final(&Status::new(code, "")), "{code:?}");
        }
        for code in [ResourceExhausted, InvalidArgument, NotFound, Unimplemented, DataLoss] {
            assert!(is_final(&Status::new(code, "")), "{code:?}");
        }
        let limit = ErrorDetails::with_error_info("WATCH_LIMIT", "sessiond", [("a".to_owned(), "b".to_owned())]);
        assert!(!is_final(&Status::with_error_details(ResourceExhausted, "", limit)));
        let mut broken = Status::new(ResourceExhausted, "");
        broken.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(!is_final(&broken));
    }

    #[test]
    fn jitter_never_exceeds_the_bound() {
        let bound = Duration::from_millis(100);
        let delays: Vec<_> = (0..100).map(|_| jitter(bound)).collect();
        assert!(delays.iter().all(|delay| *delay <= bound) && delays.iter().any(|delay| *delay != delays[0]));
    }

    #[test]
    fn unknown_event_types_map_to_ended_or_updated() {
        let event = |kind, cause| SessionEvent { r#type: kind, cause, ..Default::default() };
        assert_eq!(event_type(&event(99, 0)), EventType::Updated);
        assert_eq!(event_type(&event(99, 99)), EventType::Ended);
        assert_eq!(event_type(&event(EventType::Left.into(), 0)), EventType::Left);
    }

    #[test]
    fn discard_depends_on_the_resync() {
        let resync = |reason: ResyncReason, ids: &[&str]| {
            let ids = ids.iter().map(|&id| id.to_owned()).collect();
            let control = Some(Control::Resync(Resync { reason: reason.into(), ids }));
            Update::Response(WatchResponse { control, ..Default::default() })
        };
        assert_eq!(resync(ResyncReason::Flushed, &[]).discard(), Discard::All);
        assert_eq!(resync(ResyncReason::Rollback, &["a"]).discard(), Discard::Ids(&["a".to_owned()]));
        assert_eq!(resync(ResyncReason::SlowConsumer, &[]).discard(), Discard::Nothing);
        let synced = WatchResponse { control: Some(Control::Synced(Synced {})), ..Default::default() };
        assert_eq!(Update::Response(synced).discard(), Discard::Nothing);
        assert_eq!(Update::Opening { is_resumed: false }.discard(), Discard::All);
        assert_eq!(Update::Opening { is_resumed: true }.discard(), Discard::Nothing);
    }

    #[tokio::test]
    async fn refused_connection_is_lost_and_retried() {
        let endpoint = Endpoint::from_static("http://127.0.0.1:1");
        let mut watch = Watch::new(WatchRequest::default(), move || endpoint.clone());
        for _ in 0..2 {
            assert!(matches!(watch.next().await, Ok(Some(Update::Opening { is_resumed: false }))));
            let lost = watch.next().await;
            assert!(matches!(lost, Ok(Some(Update::Lost { reason: Lost::Unreachable(_), .. }))), "{lost:?}");
            assert_eq!(watch.tracker().state(), State::Waiting);
        }
    }
}
