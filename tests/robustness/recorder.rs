//! Records what clients are answered and what watchers are told, while it happens.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use sessiond::watch::ResumeToken;
use sessiond_client::v1::{WatchResponse, watch_response};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    contract::{Call, calls::refusal},
    harness::Client,
    history::*,
    truth::Position,
};

pub fn now() -> Moment {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_micros() as Moment
}

#[derive(Default)]
pub struct Recorder {
    operations: Mutex<Vec<Operation>>,
    watches: Mutex<Vec<Watch>>,
    refusals: Mutex<Vec<Refusal>>,
    /// Of each watcher, who may open several watches.
    progress: Mutex<Vec<Progress>>,
    /// How often clients and watchers saw which code and reason.
    seen: Mutex<BTreeMap<String, usize>>,
}

/// How far a watcher has got.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub as_of: Moment,
    /// After the last response.
    pub token: Option<Token>,
    pub told: HashSet<String>,
    /// There is nothing more to be told.
    pub is_over: bool,
    /// It takes its time.
    pub is_slow: bool,
}

/// What a watch is opened for, and by whom.
pub struct Opening {
    pub filter: Filter,
    pub initial_state: bool,
    /// Whether its reader takes its time, or stops.
    pub is_slow: bool,
}

/// Everything.
pub struct Recorded {
    pub operations: Vec<Operation>,
    pub watches: Vec<Watch>,
    pub refusals: Vec<Refusal>,
    pub seen: BTreeMap<String, usize>,
}

/// Who calls, and whom.
#[derive(Clone, Copy)]
pub struct Caller {
    pub client: usize,
    pub instance: usize,
}

/// Code and reason, as `UNAVAILABLE STORE_UNAVAILABLE`.
pub fn name_of(status: &Status) -> String {
    let reason = status.get_details_error_info().map_or_else(|| WITHOUT_REASON.to_owned(), |info| info.reason);
    format!("{:?} {reason}", status.code())
}

fn failure(call: &Call, status: &Status) -> Outcome {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let is_read = matches!(call, Call::Get(_) | Call::List(_));
    match (status.code(), &reason[..]) {
        (Code::Unavailable, "STORE_UNAVAILABLE" | "OVERLOADED" | "DRAINING" | "STORE_CHANGED") => {
            Outcome::NotApplied(name_of(status))
        }
        // Nothing was sent. A read may have presented its token.
        (_, "STORE_TIMEOUT") if !is_read => Outcome::NotApplied(name_of(status)),
        _ => Outcome::Unknown(name_of(status)),
    }
}

impl Recorder {
    fn saw(&self, what: String) {
        *self.seen.lock().unwrap().entry(what).or_default() += 1;
    }

    pub async fn call(&self, Caller { client, instance }: Caller, through: &Client, call: Call) -> Outcome {
        let called = now();
        let answer = call.clone().try_send(through).await;
        let returned = now();
        let outcome = match answer {
            Ok(answer) => Outcome::Answered(answer),
            Err(status) => {
                self.saw(name_of(&status));
                refusal(&status).map_or_else(|| failure(&call, &status), Outcome::Answered)
            }
        };
        let operation = Operation { client, instance, called, returned, call, outcome: outcome.clone() };
        self.operations.lock().unwrap().push(operation);
        outcome
    }

    /// How many writes were answered.
    pub fn writes(&self) -> usize {
        let is_write = |operation: &&Operation| {
            let changes = !matches!(operation.call, Call::Get(_) | Call::List(_) | Call::Touch(_));
            changes && matches!(operation.outcome, Outcome::Answered(_))
        };
        self.operations.lock().unwrap().iter().filter(is_write).count()
    }

    pub fn new_watcher(&self, is_slow: bool) -> usize {
        let mut progress = self.progress.lock().unwrap();
        progress.push(Progress { is_slow, ..Progress::default() });
        progress.len() - 1
    }

    pub fn progress(&self) -> Vec<Progress> {
        self.progress.lock().unwrap().clone()
    }

    pub fn is_over(&self, watcher: usize) {
        self.progress.lock().unwrap()[watcher].is_over = true;
    }

    /// Begins to record a watch; its number.
    pub fn opened(&self, instance: usize, opening: Opening, resumes: Option<usize>) -> usize {
        let Opening { filter, initial_state, is_slow } = opening;
        let (responses, end, ended) = (Vec::new(), STILL_OPEN.to_owned(), 0);
        let mut watches = self.watches.lock().unwrap();
        watches.push(Watch { instance, filter, initial_state, is_slow, resumes, responses, end, ended });
        watches.len() - 1
    }

    pub fn told(&self, watcher: usize, watch: usize, response: WatchResponse) -> Response {
        let token = ResumeToken::decode(&response.resume_token).expect("every response carries a token");
        let place =
            |position: &sessiond::store::Position| Position { revision: position.revision.0, nonce: position.nonce };
        let control = response.control.map(|control| match control {
            watch_response::Control::Synced(_) => Control::Synced,
            watch_response::Control::Bookmark(bookmark) => {
                let as_of = bookmark.as_of.unwrap_or_default();
                Control::Bookmark(as_of.seconds as Moment * 1_000_000 + as_of.nanos as Moment / 1000)
            }
            watch_response::Control::Resync(resync) => {
                self.saw(format!("resync {}", resync.reason().as_str_name().trim_start_matches("RESYNC_REASON_")));
                Control::Resync(resync.reason(), resync.ids.into_iter().collect())
            }
        });
        let positions = token.positions.iter().map(place).collect();
        let token = Token { store: token.store.0, positions };
        let response = Response { at: now(), events: response.events, control, token };
        let mut progress = self.progress.lock().unwrap();
        let progress = &mut progress[watcher];
        if let Some(Control::Bookmark(as_of)) = response.control {
            progress.as_of = as_of;
        }
        progress.token = Some(response.token.clone());
        progress.told.extend(response.events.iter().map(|event| event.id.clone()));
        self.watches.lock().unwrap()[watch].responses.push(response.clone());
        response
    }

    /// How a watch came to its end.
    pub fn closed(&self, watch: usize, how: String) {
        let watch = &mut self.watches.lock().unwrap()[watch];
        let when = if how.starts_with(CLOSED) && watch.is_amid_state() { " amid the state" } else { "" };
        self.saw(format!("watch: {how}{when}"));
        (watch.end, watch.ended) = (how, now());
    }

    /// Whether a watch at this instance has been told a part of the state that it begins with.
    pub fn is_amid_state(&self, instance: usize) -> bool {
        let is_it = |watch: &Watch| watch.instance == instance && watch.end == STILL_OPEN && watch.is_amid_state();
        self.watches.lock().unwrap().iter().any(is_it)
    }

    /// A watch could not be opened.
    pub fn refused(&self, refusal: Refusal) {
        self.saw(format!("watch: {}", refusal.how));
        self.refusals.lock().unwrap().push(refusal);
    }

    pub fn finish(&self) -> Recorded {
        Recorded {
            operations: std::mem::take(&mut *self.operations.lock().unwrap()),
            watches: std::mem::take(&mut *self.watches.lock().unwrap()),
            refusals: std::mem::take(&mut *self.refusals.lock().unwrap()),
            seen: std::mem::take(&mut *self.seen.lock().unwrap()),
        }
    }
}
