//! Constructed histories of a correct server, for the tests of the validators.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, EventType,
    GetSessionRequest, ListSessionsRequest, ResyncReason, Session, SessionEvent, SessionView, TokenState,
    UpdateSessionRequest,
};

use crate::ground_truth::{Entry, GroundTruth, Log, Position, SessionState, Store};
use crate::history::*;
use crate::validate::FAILURES;
use harness::client::*;
use harness::contract::{Call, Reply, Rules, TokenReuse, state::Content};

/// Id of the only store.
const STORE: [u8; 16] = [7; 16];
const PARTITIONS: usize = 2;
/// Time before the first call.
const BEGIN: Micros = 1_700_000_000_000_000;
const SECOND: Micros = 1_000_000;
/// Idle timeout in seconds of a session that does not expire.
const IDLE: u64 = 1800;

/// Policy of all histories, recorded and constructed: superseded tokens stay accepted, and no session limit applies.
pub const RULES: Rules = Rules { token_reuse: TokenReuse::InGrace, limit: None, every_touch_is_written: true };

/// Deadline of every call.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Builds a history call by call; each change appends the log entry that a correct server writes.
struct HistoryBuilder {
    /// Time of the last step.
    now: Micros,
    /// Time by which the clock of Redis is ahead, in µs. Negative: it is behind.
    clock_ahead: i64,
    /// Nonce of the last log entry.
    nonce: u64,
    logs: Vec<Log>,
    /// Partition and entry of each change, in order of time.
    order: Vec<(usize, Entry)>,
    /// Time of each change, and what the clock of Redis showed, by position.
    written: HashMap<Position, [Micros; 2]>,
    /// Session and partition of each live session, by id.
    live: BTreeMap<String, (Session, usize)>,
    operations: Vec<Operation>,
    watches: Vec<Watch>,
}

/// Returns the filter that matches all sessions.
pub fn unfiltered() -> Filter {
    Filter { scope: Scope::Namespace, labels: BTreeMap::new(), kinds: Vec::new() }
}

/// Returns a history with watches of every kind, in which sessions change and end in every way: by expiry, by
/// DeleteSession, by DeleteSubjectSessions, and by out-of-band deletion.
pub fn valid() -> History {
    let mut builder = HistoryBuilder::new();
    let [a, b, c, d, e] = [0; 5].map(|_| new_token());
    builder.create(&a, "anna", "red", IDLE);
    builder.create(&b, "anna", "red", IDLE);
    builder.set(&b, "x", "1");
    builder.create(&c, "", "blue", 2);
    let middle = builder.order.len();
    builder.create(&d, "", "blue", IDLE);
    builder.create(&e, "bert", "red", IDLE);
    for turn in ["1", "2", "3"] {
        builder.set(&e, turn, turn);
    }
    builder.set_with_unknown_outcome(&e, "6", "6");
    builder.list("anna");
    builder.label(&a, "blue");
    builder.get(&e);
    builder.delete(&b);
    let late = builder.order.len();
    builder.set(&e, "4", "4");
    builder.get(&e);
    builder.delete_subject("anna");
    let deleted_keys = vec![(id_of(&d), builder.tick())];
    builder.end(&id_of(&d), Cause::OutOfBand);
    builder.now += 3 * SECOND;
    builder.end(&id_of(&c), Cause::IdleTimeout);
    builder.set(&e, "5", "5");

    let end = builder.order.len();
    builder.watch(unfiltered(), None, 0..middle);
    builder.watch(unfiltered(), Some(0), middle..end);
    builder.watch(Filter { labels: labels(&[("colour", "red")]), ..unfiltered() }, None, 0..end);
    builder.watch_with_snapshot(unfiltered(), late..end);
    builder.watch(Filter { scope: Scope::Subject("anna".into()), ..unfiltered() }, None, 0..end);
    builder.watch(Filter { scope: Scope::Ids(BTreeSet::from([id_of(&e)])), ..unfiltered() }, None, middle + 2..end);
    let at = deleted_keys[0].1;
    let trace = Trace { deleted_keys, ..Trace::default() };
    let fault = FaultRecord { at, healed: at, effects: Vec::new(), failures: &FAILURES, trace };
    builder.finish("constructed", vec![fault])
}

/// Returns a history in which a failover lost the last changes, after a watcher had received them. One instance uses the
/// old primary for a while after the other has created a session on the new one.
pub fn rolled_back() -> History {
    let mut builder = HistoryBuilder::new();
    let [a, b, c] = [0; 3].map(|_| new_token());
    builder.create(&a, "", "red", IDLE);
    builder.create(&b, "", "red", IDLE);
    let kept = builder.order.len();
    let (logs, live, at) = (builder.logs.clone(), builder.live.clone(), builder.tick());
    builder.set(&a, "lost", "1");
    builder.set(&b, "lost", "1");
    let fork = builder.order.len();
    builder.watch(unfiltered(), None, 0..fork);
    let lost = builder.order.split_off(kept);
    (builder.logs, builder.live) = (logs, live);
    for (partition, entry) in lost {
        builder.logs[partition].lost.push(entry);
    }
    let healed = builder.tick();
    builder.create(&c, "", "red", IDLE);
    builder.operations.last_mut().expect("it exists").instance = 1;
    builder.delete_in_vain(&c);
    builder.set(&a, "kept", "1");
    builder.set(&b, "kept", "1");
    builder.set(&a, "kept", "2");
    let (mut continuation, end) = (builder.responses(&unfiltered(), kept..builder.order.len()), builder.order.len());
    let control = Some(Control::Resync(ResyncReason::Rollback, BTreeSet::new()));
    continuation[0] = Response { at: healed, events: Vec::new(), control, token: builder.token(kept) };
    builder.watches[0].responses.extend(continuation);
    builder.watch(unfiltered(), None, 0..end);
    let effects = vec![Effect::LosesWrites];
    let fault = FaultRecord { at, healed, effects, failures: &FAILURES, trace: Trace::default() };
    builder.finish("constructed, rolled back", vec![fault])
}

/// Returns a history in which Redis restarted during a snapshot. The server sends the snapshot again, because the first
/// one may mix two branches of the log.
pub fn restarted() -> History {
    let mut history = valid();
    history.faults[0].effects.push(Effect::RestartsOrMoves);
    let at = history.faults[0].at + 1;
    let responses = &mut history.watches[3].responses;
    let partial = responses[0].clone();
    let control = Some(Control::Resync(ResyncReason::Rollback, BTreeSet::new()));
    let resync = Response { at, events: Vec::new(), control, token: partial.token.clone() };
    responses.splice(0..0, [partial, resync]);
    history
}

/// Returns a history in which many updates of one session failed with an unknown outcome. None of them was applied.
pub fn outcomes_unknown() -> History {
    let mut builder = HistoryBuilder::new();
    let token = new_token();
    builder.create(&token, "", "red", IDLE);
    for name in 0..24 {
        builder.fail_to_set(&token, &name.to_string());
    }
    builder.set(&token, "x", "1");
    builder.get(&token);
    let (at, trace) = (BEGIN, Trace::default());
    let fault = FaultRecord { at, healed: builder.now, effects: Vec::new(), failures: &FAILURES, trace };
    builder.finish("constructed, many outcomes unknown", vec![fault])
}

/// Returns a history in which the clock of Redis was set, by this number of seconds. If it was set ahead by an hour, all
/// sessions expire, and tombstones too.
pub fn clock_set(seconds: i64) -> History {
    let mut builder = HistoryBuilder::new();
    let [a, b, c] = [0; 3].map(|_| new_token());
    builder.create(&a, "", "red", IDLE);
    builder.create(&b, "anna", "blue", IDLE);
    builder.delete(&b);
    let ends = builder.logs.iter().map(|log| log.entries.last().map_or(log.start, |last| last.position)).collect();
    let (from, by) = (builder.tick(), seconds * SECOND.cast_signed());
    builder.clock_ahead = by;
    let until = builder.tick();
    // A step ahead is noticed within a second.
    builder.get(&a);
    builder.now += 2 * SECOND;
    if by > 0 {
        builder.end(&id_of(&a), Cause::IdleTimeout);
        builder.create(&b, "anna", "blue", IDLE);
    }
    builder.create(&c, "anna", "red", 2);
    builder.list("anna");
    builder.set(&c, "x", "1");
    builder.now += 3 * SECOND;
    builder.end(&id_of(&c), Cause::IdleTimeout);
    builder.delete_subject("anna");
    builder.create(&new_token(), "", "red", IDLE);
    let end = builder.order.len();
    builder.watch(unfiltered(), None, 0..end);
    let clock_step = Some(ClockStep { from, until, by, ends });
    let trace = Trace { clock_step, ..Trace::default() };
    let fault = FaultRecord { at: from, healed: until, effects: Vec::new(), failures: &[], trace };
    builder.finish("constructed, clock set", vec![fault])
}

/// Returns a history in which replies have deadlines that were shortened: by a call that was executed after its client gave up,
/// and by a call before a read from memory.
pub fn shortened() -> History {
    let mut builder = HistoryBuilder::new();
    let [late, cached] = [0; 2].map(|_| new_token());
    builder.create(&late, "", "red", IDLE);
    builder.create(&cached, "", "red", IDLE);
    let request = UpdateSessionRequest { key: by_id(&id_of(&late)), idle_timeout: seconds(2), ..Default::default() };
    let (called, returned) = (builder.tick(), builder.tick());
    let (call, outcome) = (Call::Update(request), Outcome::Unknown("Unknown OUTCOME_UNKNOWN".to_owned()));
    builder.operations.push(Operation { client: 0, instance: 0, called, returned, call, outcome });
    builder.get(&late);
    builder.shorten(&late, 2);
    let copy = builder.session(&id_of(&cached));
    let called = builder.tick();
    builder.shorten(&cached, 2);
    let request = UpdateSessionRequest { key: by_id(&id_of(&cached)), idle_timeout: seconds(2), ..Default::default() };
    builder.record_call(called, Call::Update(request), builder.session(&id_of(&cached)));
    let request = GetSessionRequest { key: by_id(&id_of(&cached)), min_revision: Some(0), ..Default::default() };
    let called = builder.tick();
    builder.record_call(called, Call::Get(request), copy);
    builder.now += 3 * SECOND;
    builder.end(&id_of(&late), Cause::IdleTimeout);
    builder.end(&id_of(&cached), Cause::IdleTimeout);
    let (at, trace) = (BEGIN, Trace::default());
    let fault = FaultRecord { at, healed: builder.now, effects: Vec::new(), failures: &FAILURES, trace };
    builder.finish("constructed, deadlines shortened", vec![fault])
}

/// Returns the state that the log entry of a change stores for this session.
pub fn after_of(session: &Session) -> SessionState {
    let expires = session.expire_time.map(|expires| (expires.seconds, expires.nanos));
    SessionState { content: Content::from(session), expires }
}

/// Returns the event of this change with this type.
pub fn event_of(entry: &Entry, event_type: EventType) -> SessionEvent {
    let after = entry.after.as_ref().expect("the state is known");
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
    let cause = if event_type == EventType::Ended { entry.cause } else { Cause::Unspecified };
    SessionEvent {
        r#type: event_type.into(),
        id: entry.id.clone(),
        revision: session.revision,
        cause: cause.into(),
        session: Some(session),
        changed_attributes: if event_type == EventType::Snapshot { Vec::new() } else { entry.changed.clone() },
        ..Default::default()
    }
}

/// Returns a watch that is open until the end of the recording.
fn watch(filter: Filter, resumes: Option<usize>, responses: Vec<Response>) -> Watch {
    let end = STILL_OPEN.into();
    Watch { instance: 0, filter, initial_state: false, is_slow: false, resumes, responses, end, ended: 0 }
}

impl HistoryBuilder {
    fn new() -> Self {
        let start = |nonce| Position { revision: BEGIN, nonce };
        let log = |nonce| Log { start: start(nonce), entries: Vec::new(), lost: Vec::new() };
        HistoryBuilder {
            now: BEGIN,
            clock_ahead: 0,
            nonce: 100,
            logs: (0..PARTITIONS as u64).map(log).collect(),
            order: Vec::new(),
            written: HashMap::new(),
            live: BTreeMap::new(),
            operations: Vec::new(),
            watches: Vec::new(),
        }
    }

    /// Advances the time by 1 ms and returns it.
    fn tick(&mut self) -> Micros {
        self.now += 1000;
        self.now
    }

    /// Returns the time that the clock of Redis shows.
    fn redis_now(&self) -> Micros {
        self.now.saturating_add_signed(self.clock_ahead)
    }

    /// Returns the deadline of a session with this idle timeout that is touched now.
    fn deadline(&self, idle: u64) -> Option<prost_types::Timestamp> {
        let at = self.redis_now() + idle * SECOND;
        Some(prost_types::Timestamp { seconds: (at / SECOND) as i64, nanos: (at % SECOND / 1000 * SECOND) as i32 })
    }

    /// Appends a log entry for a session; returns its revision.
    fn append(&mut self, id: &str, kind: EventType, cause: Cause, changed: &[&str], before: Option<Session>) -> i64 {
        let written = self.tick();
        let shown = self.redis_now();
        self.nonce += 1;
        let (session, partition) = self.live.get_mut(id).expect("the session is live");
        let log = &mut self.logs[*partition];
        let last = log.entries.last().map_or(log.start, |last| last.position);
        let revision = shown.max(last.revision + 1);
        session.revision = if kind == EventType::Ended { session.revision } else { revision as i64 };
        let entry = Entry {
            position: Position { revision, nonce: self.nonce },
            previous: last,
            namespace: NAMESPACE.to_owned(),
            id: id.to_owned(),
            kind,
            cause,
            after: Some(after_of(session)),
            before: before.map(|before| (before.subject, before.labels)),
            changed: changed.iter().map(|&name| name.to_owned()).collect(),
        };
        log.entries.push(entry.clone());
        self.written.insert(entry.position, [written, shown]);
        self.order.push((*partition, entry));
        revision as i64
    }

    fn record_call(&mut self, called: Micros, call: Call, reply: Reply) {
        let returned = self.tick();
        let outcome = Outcome::Answered(reply);
        self.operations.push(Operation { client: 0, instance: 0, called, returned, call, outcome });
    }

    fn session(&self, id: &str) -> Reply {
        Reply::Session(Box::new(self.live[id].0.clone()), String::new(), TokenState::Unspecified)
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
        // A session that is created again has its partition.
        let earlier = self.order.iter().find(|(_, entry)| entry.id == id).map(|(partition, _)| *partition);
        self.live.insert(id.clone(), (session, earlier.unwrap_or(self.live.len() % PARTITIONS)));
        self.append(&id, EventType::Created, Cause::Unspecified, &[], None);
        self.record_call(called, Call::Create(request), self.session(&id));
    }

    fn set(&mut self, token: &str, name: &str, value: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let set: BTreeMap<String, AttributeValue> = [(name.to_owned(), text(value))].into();
        self.live.get_mut(&id).expect("the session is live").0.attributes.extend(set.clone());
        self.append(&id, EventType::Updated, Cause::Unspecified, &[name], None);
        let view = SessionView::Full.into();
        let request = UpdateSessionRequest { key: by_id(&id), set_attributes: set, view, ..Default::default() };
        self.record_call(called, Call::Update(request), self.session(&id));
    }

    fn set_with_unknown_outcome(&mut self, token: &str, name: &str, value: &str) {
        self.set(token, name, value);
        let last = self.operations.last_mut().expect("it exists");
        last.outcome = Outcome::Unknown("Unknown OUTCOME_UNKNOWN".to_owned());
    }

    /// Gives a session this idle timeout, which starts now.
    fn shorten(&mut self, token: &str, idle: u64) {
        let (id, deadline) = (id_of(token), self.deadline(idle));
        let session = &mut self.live.get_mut(&id).expect("the session is live").0;
        (session.idle_timeout, session.expire_time) = (seconds(idle as i64), deadline);
        self.append(&id, EventType::Updated, Cause::Unspecified, &[], None);
    }

    /// Records an update that was not applied and whose outcome is unknown.
    fn fail_to_set(&mut self, token: &str, name: &str) {
        let set_attributes = [(name.to_owned(), text("1"))].into();
        let request = UpdateSessionRequest { key: by_id(&id_of(token)), set_attributes, ..Default::default() };
        let (called, returned) = (self.tick(), self.tick());
        let (call, outcome) = (Call::Update(request), Outcome::Unknown("Unknown OUTCOME_UNKNOWN".to_owned()));
        self.operations.push(Operation { client: 0, instance: 0, called, returned, call, outcome });
    }

    fn label(&mut self, token: &str, colour: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let before = self.live[&id].0.clone();
        self.live.get_mut(&id).expect("the session is live").0.labels = labels(&[("colour", colour)]);
        self.append(&id, EventType::Updated, Cause::Unspecified, &[], Some(before));
        let (set_labels, view) = (labels(&[("colour", colour)]), SessionView::Full.into());
        let request = UpdateSessionRequest { key: by_id(&id), set_labels, view, ..Default::default() };
        self.record_call(called, Call::Update(request), self.session(&id));
    }

    fn get(&mut self, token: &str) {
        let (called, id) = (self.tick(), id_of(token));
        let request = GetSessionRequest { key: by_id(&id), ..Default::default() };
        self.record_call(called, Call::Get(request), self.session(&id));
    }

    fn end(&mut self, id: &str, cause: Cause) {
        self.append(id, EventType::Ended, cause, &[], None);
        self.live.remove(id);
    }

    fn delete(&mut self, token: &str) {
        let (called, id) = (self.tick(), id_of(token));
        self.end(&id, Cause::Logout);
        let request = DeleteSessionRequest { key: by_id(&id), ..Default::default() };
        self.record_call(called, Call::Delete(request), Reply::Deleted(true));
    }

    /// Records a delete that found no session.
    fn delete_in_vain(&mut self, token: &str) {
        let request = DeleteSessionRequest { key: by_id(&id_of(token)), ..Default::default() };
        let called = self.tick();
        self.record_call(called, Call::Delete(request), Reply::Deleted(false));
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
        self.record_call(called, Call::List(request), Reply::Listed(listed));
    }

    fn delete_subject(&mut self, subject: &str) {
        let (called, ended) = (self.tick(), self.of_subject(subject));
        ended.iter().for_each(|session| self.end(&session.id, Cause::Revoked));
        let request = DeleteSubjectSessionsRequest { subject: subject.to_owned(), ..Default::default() };
        self.record_call(called, Call::DeleteSubject(request), Reply::DeletedCount(ended.len() as i32));
    }

    /// Returns the resume token after the first `count` entries.
    fn token(&self, count: usize) -> DecodedToken {
        let mut positions: Vec<Position> = self.logs.iter().map(|log| log.start).collect();
        for (partition, entry) in &self.order[..count] {
            positions[*partition] = entry.position;
        }
        DecodedToken { store: STORE, positions }
    }

    fn bookmark(&self, count: usize) -> Response {
        let last = count.checked_sub(1).map(|last| self.written[&self.order[last].1.position]);
        let [at, as_of] = last.unwrap_or([BEGIN; 2]);
        Response { at: at + 1, events: Vec::new(), control: Some(Control::Bookmark(as_of)), token: self.token(count) }
    }

    /// Returns a bookmark, then the events in groups of three, each followed by a bookmark.
    fn responses(&self, filter: &Filter, range: std::ops::Range<usize>) -> Vec<Response> {
        let mut responses = vec![self.bookmark(range.start)];
        let all: Vec<usize> = range.clone().collect();
        for chunk in all.chunks(3) {
            let events = chunk.iter().filter_map(|index| {
                let entry = &self.order[*index].1;
                filter.event_type(entry).map(|event_type| event_of(entry, event_type))
            });
            let (events, last) = (events.collect::<Vec<_>>(), chunk[chunk.len() - 1]);
            let [at, _] = self.written[&self.order[last].1.position];
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

    fn watch_with_snapshot(&mut self, filter: Filter, range: std::ops::Range<usize>) {
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

    fn finish(self, about: &str, faults: Vec<FaultRecord>) -> History {
        History {
            seed: 0,
            about: about.into(),
            rules: RULES,
            operations: self.operations,
            watches: self.watches,
            open_failures: Vec::new(),
            faults,
            truth: GroundTruth { stores: vec![Store { id: STORE, logs: self.logs }] },
            ended: self.now + 4 * SECOND,
        }
    }
}
