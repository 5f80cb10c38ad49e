//! The workload: writers that change a few sessions one call after the other, and readers that read them all the time.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sessiond_client::v1::{
    AttributeValue, Authentication, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest,
    GetSessionRequest, RotateSessionRequest, SessionKey, SessionView, TouchSessionRequest, UpdateSessionRequest,
};
use tokio::{
    sync::{RwLock, watch},
    time::sleep,
};

use super::Deletion;
use crate::{
    history::{Operation, Outcome},
    recorder::{Caller, Recorder, now},
    seeded_rng::SeededRng,
};
use harness::{
    Client, Redis,
    client::*,
    contract::{Call, Reply, calls::KeyRef},
    servers::run_blocking,
};

/// Attribute with the number of the call that wrote it, which no other call has.
pub const MARK: &str = "mark";
/// Number of sessions that the workload uses at one time.
pub const SESSIONS: usize = 7;
/// The session that is only created and touched, so that the log has no entry of it for a long time.
const CALM: usize = SESSIONS - 2;
/// A session like [`CALM`] that only the last instance touches, and that is never read from Redis otherwise.
const QUIET: usize = SESSIONS - 1;
/// First of the sessions that are read in such a way that a wrong copy stays in memory.
const LEFT_IN_MEMORY: usize = 3;
/// Subjects of the sessions. Two sessions can have the same.
const SUBJECTS: [&str; 2] = ["subject-1", "subject-2"];
/// Pause of a client after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What the workload knows about one of its sessions.
#[derive(Clone)]
pub struct Slot {
    /// Tokens that the session has or may have, the oldest first.
    pub tokens: Vec<String>,
    /// Whether the last reply says that it lives.
    lives: bool,
    /// Highest revision in a reply.
    revision: i64,
}

impl Slot {
    fn new(token: String) -> Self {
        Slot { tokens: vec![token], lives: false, revision: 0 }
    }

    fn current(&self) -> &str {
        &self.tokens[self.tokens.len() - 1]
    }

    fn id(&self) -> String {
        id_of(&self.tokens[0])
    }
}

/// State that the tasks of one history share.
pub struct Shared {
    pub slots: Mutex<Vec<Slot>>,
    pub recorder: Recorder,
    /// The present primary. Locked for writing while a fault stops or replaces it.
    pub redis: RwLock<Redis>,
    /// Locked for writing while a fault needs a log without new entries.
    pub changes: RwLock<()>,
    /// Records that were deleted directly in Redis.
    pub deletions: Mutex<Vec<Deletion>>,
    /// Number of marks so far.
    marks: AtomicU64,
}

impl Shared {
    pub fn new(redis: Redis, rng: &mut SeededRng) -> Self {
        Shared {
            slots: Mutex::new((0..SESSIONS).map(|_| Slot::new(rng.token())).collect()),
            recorder: Recorder::default(),
            redis: RwLock::new(redis),
            changes: RwLock::new(()),
            deletions: Mutex::default(),
            marks: AtomicU64::new(0),
        }
    }

    /// Returns whether every session was created.
    pub fn all_live(&self) -> bool {
        self.slots.lock().unwrap().iter().all(|slot| slot.lives)
    }

    fn slot(&self, number: usize) -> Slot {
        self.slots.lock().unwrap()[number].clone()
    }

    /// Returns an attribute with a new mark.
    fn mark(&self) -> (String, AttributeValue) {
        (MARK.to_owned(), text(&self.marks.fetch_add(1, Ordering::Relaxed).to_string()))
    }

    /// Updates this session by its id, with a new mark.
    pub async fn update(&self, number: usize, caller: Caller, through: &Client) {
        let update = UpdateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            key: by_id(&self.slot(number).id()),
            set_attributes: [self.mark()].into(),
            view: SessionView::Full.into(),
            ..Default::default()
        };
        self.recorder.call(caller, through, Call::Update(update)).await;
    }

    /// Deletes the record of this session directly in Redis. Records the deletion of a live one.
    async fn delete_record(&self, id: &str) {
        // The second byte of a record is its kind: 1 = a live session.
        const DELETE: &str = "local kind = redis.call('GETRANGE', KEYS[1], 1, 1) redis.call('DEL', KEYS[1]) \
            return kind == '\\1' and 1 or 0";
        let redis = self.redis.read().await;
        let (present, id) = (redis.clone(), id.to_owned());
        let deletion = run_blocking(move || {
            let key = present.keys(&format!("*:s:*:{id}")).pop()?;
            let from = now();
            let is_live = present.number(&["EVAL", DELETE, "1", &key]) == 1;
            is_live.then(|| Deletion { id, from, until: now() })
        });
        let deletion = deletion.await;
        self.deletions.lock().unwrap().extend(deletion);
    }

    /// Updates what is known of the session from the outcome of a call.
    fn note(&self, number: usize, call: &Call, outcome: &Outcome, rng: &mut SeededRng) {
        let slot = &mut self.slots.lock().unwrap()[number];
        if call.id().is_some_and(|id| id != slot.id()) {
            return;
        }
        match (call, outcome) {
            (Call::Create(_), Outcome::Answered(Reply::Rejected(..))) => *slot = Slot::new(rng.token()),
            (_, Outcome::Answered(Reply::Session(session, ..))) => {
                if matches!(call, Call::Create(_)) {
                    slot.tokens.truncate(1);
                }
                (slot.lives, slot.revision) = (true, slot.revision.max(session.revision));
            }
            (Call::Delete(_), Outcome::Answered(_)) => slot.lives = false,
            // The rotation to the current token was not applied, or was lost.
            (Call::Rotate(request), Outcome::Answered(Reply::Rejected(reason, _)))
                if reason == "SESSION_NOT_FOUND" && slot.tokens.len() > 1 && request.token == slot.current() =>
            {
                slot.tokens.pop();
            }
            (Call::Rotate(_), Outcome::Answered(Reply::Rejected(..))) => {}
            // By the token, which may be another one.
            (Call::Get(_), Outcome::Answered(Reply::Rejected(..))) if matches!(call.key(), Some(KeyRef::Token(_))) => {}
            (_, Outcome::Answered(Reply::Rejected(reason, _)))
                if reason == "SESSION_ENDED" || reason == "SESSION_NOT_FOUND" =>
            {
                slot.lives = false;
            }
            _ => {}
        }
        if let (Call::Rotate(request), Outcome::Answered(Reply::Session(..)) | Outcome::Unknown(_)) = (call, outcome)
            && !slot.tokens.contains(&request.new_token)
        {
            slot.tokens.push(request.new_token.clone());
        }
    }
}

/// A client that changes some sessions, one call after the other.
pub struct Writer {
    /// Number of the client.
    pub number: usize,
    /// One connection to each instance.
    pub clients: Vec<Client>,
    pub shared: Arc<Shared>,
    pub rng: SeededRng,
    /// Sessions that it changes. No other writer does.
    pub slots: Range<usize>,
    /// Maximum pause after a call, in ms.
    pub pause: usize,
}

impl Writer {
    /// Sends calls until `stop` is set.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let number = self.slots.start + self.rng.below(self.slots.len());
            let instance = self.rng.below(self.clients.len());
            let slot = self.shared.slot(number);
            let (is_touched, shared) = (slot.lives && matches!(number, CALM | QUIET), self.shared.clone());
            let permission = if is_touched { None } else { Some(shared.changes.read().await) };
            let call = match (slot.lives, is_touched) {
                (false, _) => self.create(&slot).await,
                (true, true) => touch_of(&slot),
                (true, false) => self.change(&slot).await,
            };
            let Some(call) = call else { continue };
            // The first instance keeps its copy, so that it becomes old.
            let instance = if number == QUIET { self.clients.len() - 1 } else { instance };
            let caller = Caller { client: self.number, instance };
            let outcome = self.shared.recorder.call(caller, &self.clients[instance], call.clone()).await;
            self.shared.note(number, &call, &outcome, &mut self.rng);
            drop(permission);
            if !matches!(outcome, Outcome::Answered(_)) {
                sleep(ERROR_PAUSE).await;
            }
            sleep(Duration::from_millis(self.rng.below(self.pause + 1) as u64)).await;
        }
    }

    /// Returns a CreateSession call. One in three has the id of the session that ended before it, if that has no tombstone any
    /// more.
    async fn create(&mut self, slot: &Slot) -> Option<Call> {
        if self.rng.one_in(3) {
            self.shared.delete_record(&slot.id()).await;
        }
        let subject = if self.rng.one_in(2) { self.rng.choose(&SUBJECTS) } else { "" };
        Some(Call::Create(CreateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            subject: subject.to_owned(),
            attributes: [self.shared.mark(), ("size".to_owned(), text(&"x".repeat(self.rng.below(600))))].into(),
            token: slot.tokens[0].clone(),
            ..Default::default()
        }))
    }

    fn key(&mut self, slot: &Slot) -> Option<SessionKey> {
        if self.rng.one_in(3) { by_token(slot.current()) } else { by_id(&slot.id()) }
    }

    /// Returns a call that changes the session. None: the change was made directly in Redis.
    async fn change(&mut self, slot: &Slot) -> Option<Call> {
        let (namespace, key) = (NAMESPACE.to_owned(), self.key(slot));
        Some(match self.rng.below(40) {
            0..17 => self.update(key, |update| UpdateSessionRequest { touch: true, ..update }),
            17..24 => self.rotate(slot, |rotate| RotateSessionRequest { set_attributes: [].into(), ..rotate }),
            24..27 => self.rotate(slot, |rotate| rotate),
            27..29 => {
                let subject = self.rng.choose(&SUBJECTS).to_owned();
                let authentication = Some(Authentication { level: 1, ..Default::default() });
                self.rotate(slot, |rotate| RotateSessionRequest { subject: Some(subject), authentication, ..rotate })
            }
            // The rotation that led to the current token: it succeeds again until the token is presented.
            29..32 if slot.tokens.len() > 1 => Call::Rotate(RotateSessionRequest {
                namespace,
                token: slot.tokens[slot.tokens.len() - 2].clone(),
                new_token: slot.current().to_owned(),
                ..Default::default()
            }),
            32 => self.update(key, |update| UpdateSessionRequest { idle_timeout: seconds(3), ..update }),
            33 => self.update(key, |update| UpdateSessionRequest { subject: Some(String::new()), ..update }),
            34 | 35 => Call::Delete(DeleteSessionRequest { namespace, key, ..Default::default() }),
            36 => {
                let subject = self.rng.choose(&SUBJECTS).to_owned();
                Call::DeleteSubject(DeleteSubjectSessionsRequest { namespace, subject, ..Default::default() })
            }
            37 => {
                self.shared.delete_record(&slot.id()).await;
                return None;
            }
            _ => Call::Touch(TouchSessionRequest { namespace, key }),
        })
    }

    fn update(
        &mut self,
        key: Option<SessionKey>,
        change: impl FnOnce(UpdateSessionRequest) -> UpdateSessionRequest,
    ) -> Call {
        Call::Update(change(UpdateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            key,
            set_attributes: [self.shared.mark()].into(),
            view: SessionView::Full.into(),
            ..Default::default()
        }))
    }

    fn rotate(&mut self, slot: &Slot, change: impl FnOnce(RotateSessionRequest) -> RotateSessionRequest) -> Call {
        Call::Rotate(change(RotateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            token: slot.current().to_owned(),
            new_token: successor(&slot.tokens[0], &mut self.rng),
            set_attributes: [self.shared.mark()].into(),
            ..Default::default()
        }))
    }
}

/// Returns a read with a touch.
fn touch_of(slot: &Slot) -> Option<Call> {
    let (namespace, key) = (NAMESPACE.to_owned(), by_id(&slot.id()));
    Some(Call::Get(GetSessionRequest { namespace, key, touch: true, ..Default::default() }))
}

/// Returns a token that the session with this token does not have.
fn successor(token: &str, rng: &mut SeededRng) -> String {
    format!("{}{}", &token[..31], &rng.token()[31..])
}

/// A client that reads all sessions.
pub struct Reader {
    /// Number of the client.
    pub number: usize,
    /// One connection to each instance.
    pub clients: Vec<Client>,
    pub shared: Arc<Shared>,
    pub rng: SeededRng,
    /// Pause after a read.
    pub pause: Duration,
}

impl Reader {
    /// Sends reads until `stop` is set.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let number = self.rng.below(SESSIONS);
            let slot = self.shared.slot(number);
            let call = self.read(number, &slot);
            let instance = self.rng.below(self.clients.len());
            let caller = Caller { client: self.number, instance };
            let outcome = self.shared.recorder.call(caller, &self.clients[instance], call.clone()).await;
            self.shared.note(number, &call, &outcome, &mut self.rng);
            sleep(if matches!(outcome, Outcome::Answered(_)) { self.pause } else { ERROR_PAUSE }).await;
        }
    }

    fn read(&mut self, number: usize, slot: &Slot) -> Call {
        // Other reads would be answered by Redis, and would replace the copy.
        let is_in_memory = number >= LEFT_IN_MEMORY;
        let key = match self.rng.below(20) {
            0..8 => by_id(&slot.id()),
            _ if is_in_memory => by_id(&slot.id()),
            8..17 => by_token(slot.current()),
            17 => by_token(&slot.tokens[self.rng.below(slot.tokens.len())]),
            18 => by_token(&slot.tokens[slot.tokens.len().saturating_sub(2)]),
            _ => by_token(&successor(&slot.tokens[0], &mut self.rng)),
        };
        let min_revision = match self.rng.below(20) {
            _ if is_in_memory => Some(0),
            0 | 1 => None,
            2..6 => Some(slot.revision),
            _ => Some(0),
        };
        let view = if self.rng.one_in(10) { SessionView::Basic } else { SessionView::Full };
        let touch = self.rng.one_in(20) && (!is_in_memory || number == CALM);
        Call::Get(GetSessionRequest { namespace: NAMESPACE.to_owned(), key, touch, view: view.into(), min_revision })
    }
}

/// Returns the mark in these attributes.
pub fn mark_of<'a>(attributes: impl IntoIterator<Item = (&'a String, &'a AttributeValue)>) -> Option<String> {
    let mark = attributes.into_iter().find(|(name, _)| *name == MARK)?.1;
    Some(format!("{mark:?}"))
}

/// Returns the token that the session with this id has after its creation.
pub fn first_token(id: &str, operations: &[Operation]) -> String {
    let first = operations.iter().find_map(|operation| match &operation.call {
        Call::Create(request) if id_of(&request.token) == id => Some(request.token.clone()),
        _ => None,
    });
    first.unwrap_or_default()
}
