//! The workload: clients that send every kind of call to a few sessions at once, before, during and after the fault.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest, ListSessionsRequest,
    RotateSessionRequest, SessionKey, SessionView, TouchSessionRequest, UpdateSessionRequest,
};
use tokio::sync::watch;

use crate::history::Outcome;
use crate::{
    recorder::{Caller, Recorder},
    seeded_rng::SeededRng,
};
use harness::contract::{Call, Reply};
use harness::{Client, client::*};

/// Number of clients of the workload. Other clients have higher numbers.
pub const WORKERS: usize = 5;
/// Number of sessions that the workload uses at one time.
const SLOTS: usize = 6;
/// Maximum number of calls for one session: more cannot be checked for linearizability.
const CALLS: u32 = 70;
/// Pause of a client after each call; ten times as long after an error.
const PAUSE: Duration = Duration::from_millis(6);
/// Subjects of the sessions; some sessions are anonymous.
pub const SUBJECTS: [&str; 2] = ["subject-1", "subject-2"];
/// Values of the label `colour`.
pub const COLOURS: [&str; 2] = ["red", "blue"];

/// Returns a new session that matches every watcher except those by ids. Seed and request id determine its token.
pub fn probe_session(seed: u64, request_id: String) -> CreateSessionRequest {
    CreateSessionRequest {
        namespace: NAMESPACE.to_owned(),
        subject: SUBJECTS[0].to_owned(),
        labels: labels(&[("colour", COLOURS[0])]),
        token: SeededRng::for_name(seed, &request_id).token(),
        request_id,
        ..Default::default()
    }
}

/// The sessions that the workload uses at present, one in each slot.
pub struct Slots {
    seed: u64,
    slots: Mutex<Vec<Slot>>,
}

/// The session of one slot, according to the outcomes of its calls.
#[derive(Clone)]
struct Slot {
    /// Number of the slot.
    number: usize,
    /// Number of sessions that used this slot before.
    generation: usize,
    /// Tokens that the session has or may have, the oldest first.
    tokens: Vec<String>,
    /// Number of calls for the session.
    calls: u32,
    /// Whether a reply has contained the session.
    is_created: bool,
    /// Revision in the last reply. None: not created.
    revision: Option<i64>,
}

impl Slot {
    /// Returns an unused session. Its id depends on the seed, the slot and the generation only, not on the order of
    /// calls.
    fn new(seed: u64, number: usize, generation: usize) -> Self {
        let token = SeededRng::for_name(seed, &format!("session {generation} of slot {number}")).token();
        Slot { number, generation, tokens: vec![token], calls: 0, is_created: false, revision: None }
    }

    /// Returns the unused session that follows in this slot.
    fn next(&self, seed: u64) -> Self {
        Slot::new(seed, self.number, self.generation + 1)
    }

    fn id(&self) -> String {
        id_of(&self.tokens[0])
    }
}

impl Slots {
    /// Returns slots with unused sessions.
    pub fn new(seed: u64) -> Self {
        Slots { seed, slots: Mutex::new((0..SLOTS).map(|number| Slot::new(seed, number, 0)).collect()) }
    }

    /// Returns the ids of the sessions in use that have been created.
    pub fn ids(&self) -> Vec<String> {
        self.slots.lock().unwrap().iter().filter(|slot| slot.is_created).map(Slot::id).collect()
    }

    /// Returns the session of a slot and counts a call for it. Replaces the session after `CALLS` calls.
    fn use_slot(&self, number: usize) -> Slot {
        let slot = &mut self.slots.lock().unwrap()[number];
        if slot.calls >= CALLS {
            *slot = slot.next(self.seed);
        }
        slot.calls += 1;
        slot.clone()
    }

    /// Updates the session of the slot from the outcome of a call; replaces an ended session.
    fn record_outcome(&self, number: usize, call: &Call, outcome: &Outcome) {
        let slot = &mut self.slots.lock().unwrap()[number];
        if call.id() != Some(slot.id()) {
            return;
        }
        match outcome {
            Outcome::Answered(Reply::Session(session, ..)) => {
                (slot.is_created, slot.revision) = (true, Some(session.revision));
            }
            Outcome::Answered(Reply::Rejected(reason, _)) if reason == "SESSION_ENDED" => *slot = slot.next(self.seed),
            Outcome::Answered(Reply::Rejected(reason, _)) if reason == "SESSION_NOT_FOUND" && slot.is_created => {
                *slot = slot.next(self.seed);
            }
            Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => {}
        }
        if let (Call::Rotate(request), Outcome::Answered(Reply::Session(..)) | Outcome::Unknown(_)) = (call, outcome) {
            slot.tokens.push(request.new_token.clone());
        }
    }
}

/// One client of the workload.
pub struct Worker {
    /// Number of the client.
    pub number: usize,
    /// One connection to each instance.
    pub clients: Vec<Client>,
    pub slots: Arc<Slots>,
    pub recorder: Arc<Recorder>,
    pub rng: SeededRng,
}

impl Worker {
    /// Sends calls until `stop` is set.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        let mut instance = self.number % self.clients.len();
        let mut last: Option<(usize, Call)> = None;
        let mut turn = 0;
        while !*stop.borrow() {
            turn += 1;
            let (number, call) = match last.take() {
                // Retry after an unknown outcome, possibly at another instance.
                Some(last) => last,
                None => {
                    let number = self.rng.below(SLOTS);
                    let slot = self.slots.use_slot(number);
                    (number, self.call(turn, &slot))
                }
            };
            let caller = Caller { client: self.number, instance };
            let outcome = self.recorder.call(caller, &self.clients[instance], call.clone()).await;
            self.slots.record_outcome(number, &call, &outcome);
            match outcome {
                Outcome::Answered(_) => tokio::time::sleep(PAUSE).await,
                Outcome::Unknown(_) | Outcome::NotApplied(_) => {
                    tokio::time::sleep(PAUSE * 10).await;
                    instance = self.rng.below(self.clients.len());
                    last = Some((number, call)).filter(|(_, call)| {
                        !call.request_id().is_empty() && self.rng.one_in(2) && self.slots.use_slot(number).calls < CALLS
                    });
                }
            }
            if self.rng.one_in(20) {
                instance = self.rng.below(self.clients.len());
            }
        }
    }

    fn key(&mut self, slot: &Slot) -> Option<SessionKey> {
        match self.rng.below(8) {
            0..4 => by_id(&slot.id()),
            4 => by_token(&slot.tokens[self.rng.below(slot.tokens.len())]),
            _ => by_token(&slot.tokens[slot.tokens.len() - 1]),
        }
    }

    /// Returns a new token for the session.
    fn successor(&mut self, slot: &Slot) -> String {
        let (token, other) = (&slot.tokens[0], self.rng.token());
        format!("{}{}", &token[..31], &other[31..])
    }

    fn call(&mut self, turn: usize, slot: &Slot) -> Call {
        let namespace = NAMESPACE.to_owned();
        let subject = self.rng.choose(&SUBJECTS).to_owned();
        let request_id = format!("request-of-{:03}-{turn:08}", self.number);
        if !slot.is_created {
            return self.create(slot, subject, request_id);
        }
        let key = self.key(slot);
        match self.rng.below(40) {
            0..10 => Call::Get(GetSessionRequest {
                namespace,
                key,
                touch: self.rng.one_in(2),
                min_revision: match self.rng.below(3) {
                    0 => None,
                    1 => Some(0),
                    _ => Some(slot.revision.unwrap_or(0)),
                },
                ..Default::default()
            }),
            10..13 => Call::Touch(TouchSessionRequest { namespace, key }),
            13..28 => self.update(turn, slot, key, subject, request_id),
            28..32 => Call::Rotate(RotateSessionRequest {
                namespace,
                token: slot.tokens[slot.tokens.len() - 1].clone(),
                new_token: self.successor(slot),
                request_id,
                ..Default::default()
            }),
            32..34 => Call::Delete(DeleteSessionRequest { namespace, key, request_id, cause: 0 }),
            34 => Call::DeleteSubject(DeleteSubjectSessionsRequest { namespace, subject, ..Default::default() }),
            35..38 => Call::List(ListSessionsRequest { namespace, subject: Some(subject), ..Default::default() }),
            _ => self.create(slot, subject, request_id),
        }
    }

    /// Returns a CreateSession call. One in four sessions has an idle timeout of 1 or 2 s.
    fn create(&mut self, slot: &Slot, subject: String, request_id: String) -> Call {
        let idle_timeout = if self.rng.one_in(4) { seconds(1 + self.rng.below(2) as i64) } else { None };
        Call::Create(CreateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            subject: if self.rng.one_in(2) { subject } else { String::new() },
            labels: labels(&[("colour", self.rng.choose(&COLOURS))]),
            attributes: [("created".to_owned(), text("yes"))].into(),
            token: slot.tokens[0].clone(),
            idle_timeout,
            request_id,
            ..Default::default()
        })
    }

    fn update(
        &mut self,
        turn: usize,
        slot: &Slot,
        key: Option<SessionKey>,
        subject: String,
        request_id: String,
    ) -> Call {
        let value = format!("{}-{turn}", self.number);
        let size = if self.rng.one_in(30) { 9_000 } else { 40 };
        let value = text(&format!("{value}{}", incompressible(size)));
        let name = if self.rng.one_in(2) { format!("of-{}", self.number) } else { "all".to_owned() };
        let update = UpdateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            key,
            view: SessionView::Full.into(),
            request_id: if self.rng.one_in(2) { request_id } else { String::new() },
            if_revision: slot.revision.filter(|_| self.rng.one_in(5)),
            ..Default::default()
        };
        Call::Update(match self.rng.below(12) {
            0 => UpdateSessionRequest { remove_attributes: vec![name], ..update },
            1..3 => UpdateSessionRequest { set_labels: labels(&[("colour", self.rng.choose(&COLOURS))]), ..update },
            3 => UpdateSessionRequest { subject: Some(subject), ..update },
            4 => UpdateSessionRequest { subject: Some(String::new()), ..update },
            5 => UpdateSessionRequest { idle_timeout: seconds(1 + self.rng.below(3) as i64), ..update },
            _ => UpdateSessionRequest { set_attributes: [(name, value)].into(), touch: self.rng.one_in(3), ..update },
        })
    }
}
