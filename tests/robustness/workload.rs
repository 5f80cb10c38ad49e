//! Clients that use a few hot sessions in every way at once, whatever fails meanwhile.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest, ListSessionsRequest,
    RotateSessionRequest, SessionKey, SessionView, TouchSessionRequest, UpdateSessionRequest,
};
use tokio::sync::watch;

use crate::{
    chance::Chance,
    contract::{Answer, Call},
    harness::{Client, client::*},
    history::Outcome,
    recorder::{Caller, Recorder},
};

/// Clients that work; others have later numbers.
pub const WORKERS: usize = 5;
const SLOTS: usize = 6;
/// Calls for one session: what can be checked as a whole.
const CALLS: u32 = 70;
const PAUSE: Duration = Duration::from_millis(6);
pub const SUBJECTS: [&str; 2] = ["subject-1", "subject-2"];
pub const COLOURS: [&str; 2] = ["red", "blue"];

/// A new session that every kind of watcher by namespace, subject and labels is told of; the same one for a seed and an id.
pub fn one_for_all(seed: u64, request_id: String) -> CreateSessionRequest {
    CreateSessionRequest {
        namespace: NAMESPACE.to_owned(),
        subject: SUBJECTS[0].to_owned(),
        labels: labels(&[("colour", COLOURS[0])]),
        token: Chance::named(seed, &request_id).token(),
        request_id,
        ..Default::default()
    }
}

/// The sessions that are used at a time.
pub struct Slots {
    seed: u64,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Clone)]
struct Slot {
    place: usize,
    /// How many sessions had this place before.
    before: usize,
    /// That it has, or may have, the oldest first.
    tokens: Vec<String>,
    calls: u32,
    is_made: bool,
    revision: Option<i64>,
}

impl Slot {
    /// Whoever comes first to a place: its sessions have the same ids whenever the seed is played.
    fn new(seed: u64, place: usize, before: usize) -> Self {
        let token = Chance::named(seed, &format!("session {before} of slot {place}")).token();
        Slot { place, before, tokens: vec![token], calls: 0, is_made: false, revision: None }
    }

    fn next(&self, seed: u64) -> Self {
        Slot::new(seed, self.place, self.before + 1)
    }

    fn id(&self) -> String {
        id_of(&self.tokens[0])
    }
}

impl Slots {
    pub fn of(seed: u64) -> Self {
        Slots { seed, slots: Mutex::new((0..SLOTS).map(|place| Slot::new(seed, place, 0)).collect()) }
    }

    /// Ids of the sessions that are used now, as far as they are made.
    pub fn ids(&self) -> Vec<String> {
        self.slots.lock().unwrap().iter().filter(|slot| slot.is_made).map(Slot::id).collect()
    }

    /// The session of a slot, used once more; another one after too many calls.
    fn take(&self, place: usize) -> Slot {
        let slot = &mut self.slots.lock().unwrap()[place];
        if slot.calls >= CALLS {
            *slot = slot.next(self.seed);
        }
        slot.calls += 1;
        slot.clone()
    }

    fn learn(&self, place: usize, call: &Call, outcome: &Outcome) {
        let slot = &mut self.slots.lock().unwrap()[place];
        if call.id() != Some(slot.id()) {
            return;
        }
        match outcome {
            Outcome::Answered(Answer::Session(session, ..)) => {
                (slot.is_made, slot.revision) = (true, Some(session.revision));
            }
            Outcome::Answered(Answer::Refused(reason, _)) if reason == "SESSION_ENDED" => *slot = slot.next(self.seed),
            Outcome::Answered(Answer::Refused(reason, _)) if reason == "SESSION_NOT_FOUND" && slot.is_made => {
                *slot = slot.next(self.seed);
            }
            Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => {}
        }
        if let (Call::Rotate(request), Outcome::Answered(Answer::Session(..)) | Outcome::Unknown(_)) = (call, outcome) {
            slot.tokens.push(request.new_token.clone());
        }
    }
}

/// One of the clients.
pub struct Worker {
    pub number: usize,
    /// One of each instance.
    pub clients: Vec<Client>,
    pub slots: Arc<Slots>,
    pub recorder: Arc<Recorder>,
    pub chance: Chance,
}

impl Worker {
    /// Calls until it is told to stop.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        let mut instance = self.number % self.clients.len();
        let mut last: Option<(usize, Call)> = None;
        let mut turn = 0;
        while !*stop.borrow() {
            turn += 1;
            let (place, call) = match last.take() {
                // What is not known to be done is repeated, sometimes elsewhere.
                Some(last) => last,
                None => {
                    let place = self.chance.below(SLOTS);
                    let slot = self.slots.take(place);
                    (place, self.call(turn, &slot))
                }
            };
            let caller = Caller { client: self.number, instance };
            let outcome = self.recorder.call(caller, &self.clients[instance], call.clone()).await;
            self.slots.learn(place, &call, &outcome);
            match outcome {
                Outcome::Answered(_) => tokio::time::sleep(PAUSE).await,
                Outcome::Unknown(_) | Outcome::NotApplied(_) => {
                    tokio::time::sleep(PAUSE * 10).await;
                    instance = self.chance.below(self.clients.len());
                    last = Some((place, call)).filter(|(_, call)| {
                        !call.request_id().is_empty() && self.chance.once_in(2) && self.slots.take(place).calls < CALLS
                    });
                }
            }
            if self.chance.once_in(20) {
                instance = self.chance.below(self.clients.len());
            }
        }
    }

    fn key(&mut self, slot: &Slot) -> Option<SessionKey> {
        match self.chance.below(8) {
            0..4 => by_id(&slot.id()),
            4 => by_token(&slot.tokens[self.chance.below(slot.tokens.len())]),
            _ => by_token(&slot.tokens[slot.tokens.len() - 1]),
        }
    }

    /// Another token for the session.
    fn successor(&mut self, slot: &Slot) -> String {
        let (own, other) = (&slot.tokens[0], self.chance.token());
        format!("{}{}", &own[..31], &other[31..])
    }

    fn call(&mut self, turn: usize, slot: &Slot) -> Call {
        let namespace = NAMESPACE.to_owned();
        let subject = self.chance.of_these(&SUBJECTS).to_owned();
        let request_id = format!("request-of-{:03}-{turn:08}", self.number);
        if !slot.is_made {
            return self.create(slot, subject, request_id);
        }
        let key = self.key(slot);
        match self.chance.below(40) {
            0..10 => {
                Call::Get(GetSessionRequest { namespace, key, touch: self.chance.once_in(2), ..Default::default() })
            }
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

    /// Some live for a short while only.
    fn create(&mut self, slot: &Slot, subject: String, request_id: String) -> Call {
        let idle_timeout = if self.chance.once_in(4) { seconds(1 + self.chance.below(2) as i64) } else { None };
        Call::Create(CreateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            subject: if self.chance.once_in(2) { subject } else { String::new() },
            labels: labels(&[("colour", self.chance.of_these(&COLOURS))]),
            attributes: [("made".to_owned(), text("yes"))].into(),
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
        let size = if self.chance.once_in(30) { 9_000 } else { 40 };
        let value = text(&format!("{value}{}", incompressible(size)));
        let name = if self.chance.once_in(2) { format!("of-{}", self.number) } else { "all".to_owned() };
        let of_this = UpdateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            key,
            view: SessionView::Full.into(),
            request_id: if self.chance.once_in(2) { request_id } else { String::new() },
            if_revision: slot.revision.filter(|_| self.chance.once_in(5)),
            ..Default::default()
        };
        Call::Update(match self.chance.below(12) {
            0 => UpdateSessionRequest { remove_attributes: vec![name], ..of_this },
            1..3 => {
                UpdateSessionRequest { set_labels: labels(&[("colour", self.chance.of_these(&COLOURS))]), ..of_this }
            }
            3 => UpdateSessionRequest { subject: Some(subject), ..of_this },
            4 => UpdateSessionRequest { subject: Some(String::new()), ..of_this },
            5 => UpdateSessionRequest { idle_timeout: seconds(1 + self.chance.below(3) as i64), ..of_this },
            _ => UpdateSessionRequest {
                set_attributes: [(name, value)].into(),
                touch: self.chance.once_in(3),
                ..of_this
            },
        })
    }
}
