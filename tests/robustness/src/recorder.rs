//! Records the outcomes of calls and the responses of watches while the history runs.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use sessiond::watch::ResumeToken;
use sessiond_client::v1::{WatchResponse, watch_response};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::ground_truth::Position;
use crate::history::*;
use harness::Client;
use harness::contract::{Call, calls::rejection};

/// Returns the time in µs since the epoch.
pub fn now() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_micros() as Micros
}

/// Recorder that all clients and watchers of one history share.
#[derive(Default)]
pub struct Recorder {
    operations: Mutex<Vec<Operation>>,
    watches: Mutex<Vec<Watch>>,
    open_failures: Mutex<Vec<OpenFailure>>,
    /// Progress by watcher. A watcher opens several watches, one after the other.
    progress: Mutex<Vec<Progress>>,
    /// Errors and resyncs that calls and watches received, with their number.
    reported: Mutex<BTreeMap<String, usize>>,
}

/// Progress of a watcher, over all its watches.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// `as_of` of the last bookmark. 0: no bookmark yet.
    pub as_of: Micros,
    /// Time at which it was received. 0: no bookmark yet.
    pub bookmark_at: Micros,
    /// Position after the last response. None: no response yet.
    pub token: Option<DecodedToken>,
    /// Ids of all sessions with a received event.
    pub received_ids: HashSet<String>,
    /// Whether all its sessions have ended, so that it receives no more events.
    pub is_finished: bool,
    /// Whether it reads slowly, so that its progress has no deadline.
    pub is_slow: bool,
}

/// The parameters of a watch.
pub struct WatchOptions {
    /// Filter of the request.
    pub filter: Filter,
    /// Whether the request asks for a snapshot.
    pub initial_state: bool,
    /// Whether the watcher reads slowly or stops reading during the fault.
    pub is_slow: bool,
}

/// Calls and watches of one history.
pub struct RecordedHistory {
    pub operations: Vec<Operation>,
    pub watches: Vec<Watch>,
    pub open_failures: Vec<OpenFailure>,
    /// Errors and resyncs that calls and watches received, with their number.
    pub reported: BTreeMap<String, usize>,
}

/// Number of the client that sends a call, and of the instance that receives it.
#[derive(Clone, Copy)]
pub struct Caller {
    pub client: usize,
    pub instance: usize,
}

/// Returns code and reason, such as `Unavailable STORE_UNAVAILABLE`.
pub fn describe(status: &Status) -> String {
    let reason = status.get_details_error_info().map_or_else(|| WITHOUT_REASON.to_owned(), |info| info.reason);
    format!("{:?} {reason}", status.code())
}

/// Returns the outcome of a call that failed with a status that is no rejection.
fn failure(call: &Call, status: &Status) -> Outcome {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let is_read = matches!(call, Call::Get(_) | Call::List(_));
    match (status.code(), &reason[..]) {
        (Code::Unavailable, "STORE_UNAVAILABLE" | "OVERLOADED" | "DRAINING" | "STORE_CHANGED")
        | (Code::ResourceExhausted, "STORE_FULL") => Outcome::NotApplied(describe(status)),
        // A write with this error was not sent. A read may have been executed, which marks its token as presented.
        (_, "STORE_TIMEOUT") if !is_read => Outcome::NotApplied(describe(status)),
        _ => Outcome::Unknown(describe(status)),
    }
}

impl Recorder {
    /// Counts an error or a resync that a call or a watch received.
    fn count(&self, outcome: String) {
        *self.reported.lock().unwrap().entry(outcome).or_default() += 1;
    }

    /// Sends a call through this client and records its outcome.
    pub async fn call(&self, Caller { client, instance }: Caller, through: &Client, call: Call) -> Outcome {
        let called = now();
        let result = call.clone().try_send(through).await;
        let returned = now();
        let outcome = match result {
            Ok(reply) => Outcome::Answered(reply),
            Err(status) => {
                self.count(describe(&status));
                rejection(&status).map_or_else(|| failure(&call, &status), Outcome::Answered)
            }
        };
        let operation = Operation { client, instance, called, returned, call, outcome: outcome.clone() };
        self.operations.lock().unwrap().push(operation);
        outcome
    }

    /// Returns the number of calls.
    pub fn calls(&self) -> usize {
        self.operations.lock().unwrap().len()
    }

    /// Returns the number of answered writes.
    pub fn writes(&self) -> usize {
        self.operations.lock().unwrap().iter().filter(|operation| operation.is_answered_write()).count()
    }

    /// Adds a watcher; returns its number.
    pub fn new_watcher(&self, is_slow: bool) -> usize {
        let mut progress = self.progress.lock().unwrap();
        progress.push(Progress { is_slow, ..Progress::default() });
        progress.len() - 1
    }

    /// Returns the progress of all watchers, by number.
    pub fn progress(&self) -> Vec<Progress> {
        self.progress.lock().unwrap().clone()
    }

    /// Records that all sessions of the watcher have ended.
    pub fn record_finished(&self, watcher: usize) {
        self.progress.lock().unwrap()[watcher].is_finished = true;
    }

    /// Starts to record a watch; returns its number.
    pub fn record_opened(&self, instance: usize, options: WatchOptions, resumes: Option<usize>) -> usize {
        let WatchOptions { filter, initial_state, is_slow } = options;
        let (responses, end, ended) = (Vec::new(), STILL_OPEN.to_owned(), 0);
        let mut watches = self.watches.lock().unwrap();
        watches.push(Watch { instance, filter, initial_state, is_slow, resumes, responses, end, ended });
        watches.len() - 1
    }

    /// Records a response of this watch; returns it decoded.
    pub fn record_response(&self, watcher: usize, watch: usize, response: WatchResponse) -> Response {
        let token = ResumeToken::decode(&response.resume_token).expect("every response carries a token");
        let position =
            |position: &sessiond::store::Position| Position { revision: position.revision.0, nonce: position.nonce };
        let control = response.control.map(|control| match control {
            watch_response::Control::Synced(_) => Control::Synced,
            watch_response::Control::Bookmark(bookmark) => {
                let as_of = bookmark.as_of.unwrap_or_default();
                Control::Bookmark(as_of.seconds as Micros * 1_000_000 + as_of.nanos as Micros / 1000)
            }
            watch_response::Control::Resync(resync) => {
                self.count(format!("resync {}", resync.reason().as_str_name().trim_start_matches("RESYNC_REASON_")));
                Control::Resync(resync.reason(), resync.ids.into_iter().collect())
            }
        });
        let positions = token.positions.iter().map(position).collect();
        let token = DecodedToken { store: token.store.0, positions };
        let response = Response { at: now(), events: response.events, control, token };
        let mut progress = self.progress.lock().unwrap();
        let progress = &mut progress[watcher];
        if let Some(Control::Bookmark(as_of)) = response.control {
            (progress.as_of, progress.bookmark_at) = (as_of, response.at);
        }
        progress.token = Some(response.token.clone());
        progress.received_ids.extend(response.events.iter().map(|event| event.id.clone()));
        self.watches.lock().unwrap()[watch].responses.push(response.clone());
        response
    }

    /// Records the end of a watch.
    pub fn record_closed(&self, watch: usize, end: String) {
        let watch = &mut self.watches.lock().unwrap()[watch];
        let when = if end.starts_with(CLOSED) && watch.is_in_snapshot() { " during the snapshot" } else { "" };
        self.count(format!("watch: {end}{when}"));
        (watch.end, watch.ended) = (end, now());
    }

    /// Returns whether an open watch of this instance has received only a part of its snapshot.
    pub fn is_in_snapshot(&self, instance: usize) -> bool {
        let is_match = |watch: &Watch| watch.instance == instance && watch.end == STILL_OPEN && watch.is_in_snapshot();
        self.watches.lock().unwrap().iter().any(is_match)
    }

    /// Records a failed attempt to open a watch.
    pub fn record_open_failure(&self, failure: OpenFailure) {
        self.count(format!("watch: {}", failure.error));
        self.open_failures.lock().unwrap().push(failure);
    }

    /// Returns the errors and resyncs that calls and watches have received, with their number.
    pub fn reported(&self) -> BTreeMap<String, usize> {
        self.reported.lock().unwrap().clone()
    }

    /// Returns everything that was recorded, and empties the recorder.
    pub fn finish(&self) -> RecordedHistory {
        RecordedHistory {
            operations: std::mem::take(&mut *self.operations.lock().unwrap()),
            watches: std::mem::take(&mut *self.watches.lock().unwrap()),
            open_failures: std::mem::take(&mut *self.open_failures.lock().unwrap()),
            reported: std::mem::take(&mut *self.reported.lock().unwrap()),
        }
    }
}
