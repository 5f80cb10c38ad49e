//! Histories without a fault, made up: what a server would have told, had it been faultless.

use std::collections::{BTreeMap, BTreeSet};

use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, EventType,
    GetSessionRequest, ListSessionsRequest, ResyncReason, Session, SessionEvent, SessionView, TokenState,
    UpdateSessionRequest,
};

use crate::{
    contract::{Answer, Call, OldTokens, Rules, state::Content},
    harness::client::*,
    history::*,
    truth::{After, Entry, Log, Position, Store, Truth},
};

const STORE: [u8; 16] = [7; 16];
const PARTITIONS: usize = 2;
const BEGIN: Moment = 1_700_000_000_000_000;
const SECOND: Moment = 1_000_000;
const IDLE: u64 = 1800;

pub const RULES: Rules = Rules { old_tokens: OldTokens::WorkOn, limit: None, every_use_counts: true };

/// A history in the making.
struct Maker {
    now: Moment,
    nonce: u64,
    logs: Vec<Log>,
    /// Partition and place of each entry, in order of time.
    order: Vec<(usize, Entry)>,
    live: BTreeMap<String, (Session, usize)>,
    operations: Vec<Operation>,
    watches: Vec<Watch>,
}

pub fn everything() -> Filter {
    Filter { scope: Scope::Namespace, labels: BTreeMap::new(), kinds: Vec::new() }
}

/// Sessions that are changed, expire, are deleted, taken away by hand and logged out everywhere; watches of every kind.
pub fn good() -> History {
    let mut maker = Maker::new();
    let [a, b, c, d, e] = [0; 5].map(|_| new_token());
    maker.create(&a, "anna", "red", IDLE);
    maker.create(&b, "anna", "red", IDLE);
    maker.set(&b, "x", "1");
    maker.create(&c, "", "blue", 2);
    let middle = maker.order.len();
    maker.create(&d, "", "blue", IDLE);
    maker.create(&e, "bert", "red", IDLE);
    for turn in ["1", "2", "3"] {
        maker.set(&e, turn, turn);
    }
    maker.set_and_lose_the_answer(&e, "6", "6");
    maker.list("anna");
    maker.label(&a, "blue");
    maker.get(&e);
    maker.delete(&b);
    let late = maker.order.len();
    maker.set(&e, "4", "4");
    maker.get(&e);
    maker.delete_subject("anna");
    let by_hand = vec![(id_of(&d), maker.tick())];
    maker.end(&id_of(&d), Cause::OutOfBand);
    maker.now += 3 * SECOND;
    maker.end(&id_of(&c), Cause::IdleTimeout);
    maker.set(&e, "5", "5");

    let end = maker.order.len();
    maker.watch(everything(), None, 0..middle);
    maker.watch(everything(), Some(0), middle..end);
    maker.watch(Filter { labels: labels(&[("colour", "red")]), ..everything() }, None, 0..end);
    maker.watch_from_state(everything(), late..end);
    maker.watch(Filter { scope: Scope::Subject("anna".into()), ..everything() }, None, 0..end);
    maker.watch(Filter { scope: Scope::Ids(BTreeSet::from([id_of(&e)])), ..everything() }, None, middle + 2..end);
    let at = by_hand[0].1;
    let fault = Fault { at, healed: at, effects: Vec::new(), trimmed: Vec::new(), by_hand };
    maker.finish("made up", vec![fault])
}

/// A primary lost its last changes, which watchers had been told.
pub fn forked() -> History {
    let mut maker = Maker::new();
    let [a, b] = [0; 2].map(|_| new_token());
    maker.create(&a, "", "red", IDLE);
    maker.create(&b, "", "red", IDLE);
    let kept = maker.order.len();
    let (logs, live, at) = (maker.logs.clone(), maker.live.clone(), maker.tick());
    maker.set(&a, "lost", "1");
    maker.set(&b, "lost", "1");
    let fork = maker.order.len();
    maker.watch(everything(), None, 0..fork);
    let lost = maker.order.split_off(kept);
    (maker.logs, maker.live) = (logs, live);
    for (partition, entry) in lost {
        maker.logs[partition].lost.push(entry);
    }
    let healed = maker.tick();
    maker.set(&a, "kept", "1");
    maker.set(&b, "kept", "1");
    maker.set(&a, "kept", "2");
    let (mut goes_on, end) = (maker.responses(&everything(), kept..maker.order.len()), maker.order.len());
    let control = Some(Control::Resync(ResyncReason::Rollback, BTreeSet::new()));
    goes_on[0] = Response { at: healed, events: Vec::new(), control, token: maker.token(kept) };
    maker.watches[0].responses.extend(goes_on);
    maker.watch(everything(), None, 0..end);
    let effects = vec![Effect::Loses];
    let fault = Fault { at, healed, effects, trimmed: Vec::new(), by_hand: Vec::new() };
    maker.finish("made up, forked", vec![fault])
}

/// Redis was started again while a watcher was told the state: it may be of two histories, and is told once more.
pub fn run_anew() -> History {
    let mut history = good();
    history.faults[0].effects.push(Effect::OtherRun);
    let at = history.faults[0].at + 1;
    let responses = &mut history.watches[3].responses;
    let begun = responses[0].clone();
    let control = Some(Control::Resync(ResyncReason::Rollback, BTreeSet::new()));
    let again = Response { at, events: Vec::new(), control, token: begun.token.clone() };
    responses.splice(0..0, [begun, again]);
    history
}

pub fn after_of(session: &Session) -> After {
    let expires = session.expire_time.map(|expires| (expires.seconds, expires.nanos));
    After { content: Content::from(session), expires }
}

/// The event of this change, as it is told to whoever sees it so.
pub fn event_of(entry: &Entry, seen: EventType) -> SessionEvent {
    let after = entry.after.as_ref().expect("its state is known");
    let session = Session {
        id: entry.id.clone(),
        revision: entry.position.revision as i64,
        subject: after.content.subject.clone(),
        attributes: after.content.attributes.clone(),
        labels: after.content.labels.clone(),
        idle_timeout: seconds(after.content.idle_timeout),
        token_generation: after.content.generation,
        expire_time: after.expires.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
        ..Default::default()
    };
    let cause = if seen == EventType::Ended { entry.cause } else { Cause::Unspecified };
    SessionEvent {
        r#type: seen.into(),
        id: entry.id.clone(),
        revision: session.revision,
        cause: cause.into(),
        session: Some(session),
        changed_attributes: if seen == EventType::Snapshot { Vec::new() } else { entry.changed.clone() },
        ..Default::default()
    }
}

/// One whose reader reads to the end.
fn watch(filter: Filter, resumes: Option<usize>, responses: Vec<Response>) -> Watch {
    let end = STILL_OPEN.into();
    Watch { instance: 0, filter, initial_state: false, is_slow: false, resumes, responses, end, ended: 0 }
}

impl Maker {
    fn new() -> Self {
        let start = |nonce| Position { revision: BEGIN, nonce };
        let log = |nonce| Log { start: start(nonce), entries: Vec::new(), lost: Vec::new() };
        Maker {
            now: BEGIN,
            nonce: 100,
            logs: (0..PARTITIONS as u64).map(log).collect(),
            order: Vec::new(),
            live: BTreeMap::new(),
            operations: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn tick(&mut self) -> Moment {
        self.now += 1000;
        self.now
    }

    /// The deadline of a session that is used now.
    fn deadline(&self, idle: u64) -> Option<prost_types::Timestamp> {
        let at = self.now + idle * SECOND;
        Some(prost_types::Timestamp { seconds: (at / SECOND) as i64, nanos: (at % SECOND / 1000 * SECOND) as i32 })
    }

    fn append(&mut self, id: &str, kind: EventType, cause: Cause, changed: &[&str], before: Option<Session>) -> i64 {
        let revision = self.tick();
        self.nonce += 1;
        let (session, partition) = self.live.get_mut(id).expect("it lives");
        session.revision = if kind == EventType::Ended { session.revision } else { revision as i64 };
        let log = &mut self.logs[*partition];
        let entry = Entry {
            position: Position { revision, nonce: self.nonce },
            previous: log.entries.last().map_or(log.start, |last| last.position),
            id: id.to_owned(),
            kind,
            cause,
            after: Some(after_of(session)),
            before: before.map(|before| (before.subject, before.labels)),
            changed: changed.iter().map(|&name| name.to_owned()).collect(),
        };
        log.entries.push(entry.clone());
        self.order.push((*partition, entry));
        revision as i64
    }

    fn called(&mut self, called: Moment, call: Call, answer: Answer) {
        let returned = self.tick();
        let outcome = Outcome::Answered(answer);
        self.operations.push(Operation { client: 0, instance: 0, called, returned, call, outcome });
    }

    fn session(&self, id: &str) -> Answer {
        Answer::Session(Box::new(self.live[id].0.clone()), String::new(), TokenState::Unspecified)
    }

    fn create(&mut self, token: &str, subject: &str, colour: &str, idle: u64) {
        let (called, id) = (self.tick(), id_of(token));
        let session = Session {
            id: id.clone(),
            subject: subject.to_owned(),
            labels: labels(&[("colour", colour)]),
            expire_time: self.deadline(idle),
            idle_timeout: seconds(idle as i64),
            token_generation: 1,
            ..Default::default()
        };
        let request = CreateSessionRequest {
            token: token.to_owned(),
            subject: subject.to_owned(),
            labels: session.labels.clone(),
            idle_timeout: session.idle_timeout,
            ..Default::default()
        };
        self.live.insert(id.clone(), (session, self.live.len() % PARTITIONS));
        self.append(&id, EventType::Created, Cause::Unspecified, &[], None);
        self.called(called, Call::Create(request), self.session(&id));
    }

    fn set(&mut self, token: &str, name: &str, value: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let set: BTreeMap<String, AttributeValue> = [(name.to_owned(), text(value))].into();
        self.live.get_mut(&id).expect("it lives").0.attributes.extend(set.clone());
        self.append(&id, EventType::Updated, Cause::Unspecified, &[name], None);
        let view = SessionView::Full.into();
        let request = UpdateSessionRequest { key: by_id(&id), set_attributes: set, view, ..Default::default() };
        self.called(called, Call::Update(request), self.session(&id));
    }

    fn set_and_lose_the_answer(&mut self, token: &str, name: &str, value: &str) {
        self.set(token, name, value);
        let last = self.operations.last_mut().expect("there is one");
        last.outcome = Outcome::Unknown("Unknown OUTCOME_UNKNOWN".to_owned());
    }

    fn label(&mut self, token: &str, colour: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let before = self.live[&id].0.clone();
        self.live.get_mut(&id).expect("it lives").0.labels = labels(&[("colour", colour)]);
        self.append(&id, EventType::Updated, Cause::Unspecified, &[], Some(before));
        let (set_labels, view) = (labels(&[("colour", colour)]), SessionView::Full.into());
        let request = UpdateSessionRequest { key: by_id(&id), set_labels, view, ..Default::default() };
        self.called(called, Call::Update(request), self.session(&id));
    }

    fn get(&mut self, token: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let request = GetSessionRequest { key: by_id(&id), ..Default::default() };
        self.called(called, Call::Get(request), self.session(&id));
    }

    fn end(&mut self, id: &str, cause: Cause) {
        self.append(id, EventType::Ended, cause, &[], None);
        self.live.remove(id);
    }

    fn delete(&mut self, token: &str) {
        let (called, id) = (self.tick(), id_of(token));
        self.end(&id, Cause::Logout);
        let request = DeleteSessionRequest { key: by_id(&id), ..Default::default() };
        self.called(called, Call::Delete(request), Answer::Deleted(true));
    }

    fn of_subject(&self, subject: &str) -> Vec<Session> {
        self.live
            .values()
            .filter(|(session, _)| session.subject == subject)
            .map(|(session, _)| session.clone())
            .collect()
    }

    fn list(&mut self, subject: &str) {
        let (called, listed) = (self.tick(), self.of_subject(subject));
        let request = ListSessionsRequest { subject: Some(subject.to_owned()), ..Default::default() };
        self.called(called, Call::List(request), Answer::Listed(listed));
    }

    fn delete_subject(&mut self, subject: &str) {
        let (called, ended) = (self.tick(), self.of_subject(subject));
        ended.iter().for_each(|session| self.end(&session.id, Cause::Revoked));
        let request = DeleteSubjectSessionsRequest { subject: subject.to_owned(), ..Default::default() };
        self.called(called, Call::DeleteSubject(request), Answer::DeletedCount(ended.len() as i32));
    }

    /// After so many entries.
    fn token(&self, count: usize) -> Token {
        let mut positions: Vec<Position> = self.logs.iter().map(|log| log.start).collect();
        for (partition, entry) in &self.order[..count] {
            positions[*partition] = entry.position;
        }
        Token { store: STORE, positions }
    }

    fn bookmark(&self, count: usize) -> Response {
        let as_of = count.checked_sub(1).map_or(BEGIN, |last| self.order[last].1.position.revision);
        Response {
            at: as_of + 1,
            events: Vec::new(),
            control: Some(Control::Bookmark(as_of)),
            token: self.token(count),
        }
    }

    /// A bookmark, the events by threes, and a bookmark between and after them.
    fn responses(&self, filter: &Filter, range: std::ops::Range<usize>) -> Vec<Response> {
        let mut responses = vec![self.bookmark(range.start)];
        let all: Vec<usize> = range.clone().collect();
        for chunk in all.chunks(3) {
            let seen = chunk.iter().filter_map(|at| {
                let entry = &self.order[*at].1;
                filter.sees(entry).map(|seen| event_of(entry, seen))
            });
            let (events, last) = (seen.collect::<Vec<_>>(), chunk[chunk.len() - 1]);
            let at = self.order[last].1.position.revision;
            if !events.is_empty() {
                responses.push(Response { at, events, control: None, token: self.token(last + 1) });
            }
            responses.push(self.bookmark(last + 1));
        }
        responses
    }

    fn watch(&mut self, filter: Filter, resumes: Option<usize>, range: std::ops::Range<usize>) {
        let mut responses = self.responses(&filter, range);
        if resumes.is_some() {
            responses.remove(0);
        }
        self.watches.push(watch(filter, resumes, responses));
    }

    fn watch_from_state(&mut self, filter: Filter, range: std::ops::Range<usize>) {
        let (mut state, token) = (BTreeMap::new(), self.token(range.start));
        for (_, entry) in &self.order[..range.start] {
            state.insert(entry.id.clone(), event_of(entry, EventType::Snapshot));
            if entry.kind == EventType::Ended {
                state.remove(&entry.id);
            }
        }
        let response = |events, control| Response { at: BEGIN, events, control, token: token.clone() };
        let mut responses: Vec<Response> = state.into_values().map(|event| response(vec![event], None)).collect();
        responses.push(response(Vec::new(), Some(Control::Synced)));
        responses.extend(self.responses(&filter, range).into_iter().skip(1));
        self.watches.push(Watch { initial_state: true, ..watch(filter, None, responses) });
    }

    fn finish(self, about: &str, faults: Vec<Fault>) -> History {
        History {
            seed: 0,
            about: about.into(),
            rules: RULES,
            operations: self.operations,
            watches: self.watches,
            refusals: Vec::new(),
            faults,
            truth: Truth { stores: vec![Store { id: STORE, logs: self.logs }] },
            ended: self.now + 4 * SECOND,
        }
    }
}
