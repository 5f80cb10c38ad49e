//! The rules of several sessions: subjects, session limits, lists, and events.

use std::collections::BTreeMap;

use sessiond_client::v1::{Cause, DeleteSubjectSessionsRequest, EventType, ListSessionsRequest, Session};

use super::{
    Call, OverLimit, Reply, Rules,
    session::{end_cause, step},
    state::{Content, Known, Live, State},
};

/// The state of a namespace, and the events of all changes.
pub struct Namespace {
    rules: Rules,
    sessions: BTreeMap<String, State>,
    /// Ids in the order in which they last joined a subject, the oldest first.
    join_order: Vec<String>,
    /// Changes so far, in the order of the calls.
    pub events: Vec<Event>,
}

/// A change that watchers receive.
#[derive(Clone, Debug)]
pub struct Event {
    /// Id of the changed session.
    pub id: String,
    /// Event type for a watcher that matches the session after the change; never LEFT or SNAPSHOT.
    pub kind: EventType,
    /// Reason for the end. Unspecified: the session has not ended.
    pub cause: Cause,
    /// Revision of the session after the change.
    pub revision: Known<i64>,
    /// Content before the change; for CREATED the first content.
    pub before: Content,
    /// Content after the change; for ENDED the last content.
    pub after: Content,
}

impl Namespace {
    /// Returns a namespace without sessions.
    pub fn new(rules: Rules) -> Self {
        Namespace { rules, sessions: BTreeMap::new(), join_order: Vec::new(), events: Vec::new() }
    }

    /// Returns the state of a session; `NotCreated` for an unknown id.
    pub fn state(&self, id: &str) -> State {
        self.sessions.get(id).cloned().unwrap_or_default()
    }

    /// Applies a call with this reply. Returns an error with the expected reply if the contract forbids this one.
    pub fn check(&mut self, call: &Call, reply: &Reply) -> Result<(), String> {
        match (call, reply) {
            (Call::DeleteSubject(request), _) => self.delete_subject(call, request, reply),
            (Call::List(request), Reply::Listed(sessions)) => self.list(request, sessions),
            (_, Reply::Session(session, ..)) => self.step(&call.id().unwrap_or(session.id.clone()), call, reply),
            _ => self.step(&call.id().unwrap_or_default(), call, reply),
        }
    }

    fn step(&mut self, id: &str, call: &Call, reply: &Reply) -> Result<(), String> {
        let before = self.state(id);
        let subject = match call {
            Call::Create(request) => Some(&request.subject),
            Call::Update(request) => request.subject.as_ref(),
            Call::Rotate(request) => request.subject.as_ref(),
            _ => None,
        };
        let others = subject.map_or(0, |subject| self.of_subject(subject).iter().filter(|other| *other != id).count());
        let has_room = match self.rules.limit {
            Some((limit, OverLimit::Reject)) => others < limit,
            _ => true,
        };
        let step = step(&self.rules, &before, call, has_room || subject.is_some_and(String::is_empty));
        let kind = step.event;
        let after = step.check(call, reply)?;
        if let Some(kind) = kind {
            self.add_event(id, kind, &before, &after);
        }
        let subject_of = |state: &State| match state {
            State::Live(live) => live.content.subject.clone(),
            State::NotCreated | State::Ended(_) => String::new(),
        };
        let (subject_before, subject_after) = (subject_of(&before), subject_of(&after));
        self.sessions.insert(id.to_owned(), after);
        if subject_after != subject_before && !subject_after.is_empty() {
            self.join_order.retain(|join_order| join_order != id);
            self.join_order.push(id.to_owned());
            self.replace_oldest(&subject_after);
        }
        Ok(())
    }

    /// Ends the oldest sessions of the subject that exceed the limit.
    fn replace_oldest(&mut self, subject: &str) {
        let Some((limit, OverLimit::ReplaceOldest)) = self.rules.limit else { return };
        for id in self.of_subject(subject).iter().skip(limit) {
            self.end(id, Cause::Replaced);
        }
    }

    fn end(&mut self, id: &str, cause: Cause) {
        let State::Live(live) = self.state(id) else { unreachable!() };
        let (before, after) = (State::Live(live.clone()), live.ended(cause, None));
        self.add_event(id, EventType::Ended, &before, &after);
        self.sessions.insert(id.to_owned(), after);
    }

    fn add_event(&mut self, id: &str, kind: EventType, before: &State, after: &State) {
        let none = || (Known::AtLeast(1), Content::default());
        let known = |state: &State| match state {
            State::Live(live) => Some((live.revision, live.content.clone())),
            State::NotCreated | State::Ended(_) => None,
        };
        let (revision, before) = known(before).unwrap_or_else(none);
        let cause = if let State::Ended(tombstone) = after { tombstone.cause } else { Cause::Unspecified };
        let (revision, after) = known(after).unwrap_or((revision.after_change(), before.clone()));
        self.events.push(Event { id: id.to_owned(), kind, cause, revision, before, after });
    }

    fn live(&self, id: &str) -> Option<&Live> {
        if let State::Live(live) = self.sessions.get(id)? { Some(live) } else { None }
    }

    /// Returns the ids of the subject's sessions, the newest first.
    fn of_subject(&self, subject: &str) -> Vec<String> {
        let has_subject = |id: &&String| self.live(id).is_some_and(|live| live.content.subject == subject);
        self.join_order.iter().rev().filter(has_subject).cloned().collect()
    }

    fn delete_subject(
        &mut self,
        call: &Call,
        request: &DeleteSubjectSessionsRequest,
        reply: &Reply,
    ) -> Result<(), String> {
        let kept = self.live(&request.except_id);
        if kept.is_some_and(|live| live.content.subject != request.subject) {
            let expected = Reply::Rejected("FIELD_INVALID".into(), String::new());
            return if *reply == expected { Ok(()) } else { Err(format!("expected {expected:?}")) };
        }
        let mut ids = self.of_subject(&request.subject);
        ids.retain(|id| *id != request.except_id);
        ids.iter().for_each(|id| self.end(id, end_cause(call)));
        let expected = Reply::DeletedCount(ids.len() as i32);
        if *reply == expected { Ok(()) } else { Err(format!("expected {expected:?}")) }
    }

    /// Checks a list: newest first by subject, otherwise in any order.
    fn list(&mut self, request: &ListSessionsRequest, sessions: &[Session]) -> Result<(), String> {
        let mut listed: Vec<String> = sessions.iter().map(|session| session.id.clone()).collect();
        let mut expected = match &request.subject {
            Some(subject) => self.of_subject(subject),
            None => {
                listed.sort();
                self.sessions.keys().filter(|id| self.live(id).is_some()).cloned().collect()
            }
        };
        let matches =
            |live: &Live| request.labels.iter().all(|(name, value)| live.content.labels.get(name) == Some(value));
        expected.retain(|id| self.live(id).is_some_and(matches));
        if listed != expected {
            return Err(format!("expected {expected:?}"));
        }
        for session in sessions {
            let Some(State::Live(live)) = self.sessions.get_mut(&session.id) else { unreachable!() };
            if !live.confirm(session)? {
                return Err(format!("expected {live:?}"));
            }
        }
        Ok(())
    }
}
