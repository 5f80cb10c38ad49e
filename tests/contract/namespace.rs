//! The rules of many sessions: whose they are, how many a subject may have, who is listed, and what is to be told.

use std::collections::BTreeMap;

use sessiond_client::v1::{Cause, DeleteSubjectSessionsRequest, EventType, ListSessionsRequest, Session};

use super::{
    Answer, Beyond, Call, Rules,
    session::{cause_of, step},
    state::{Content, Live, State, Told},
};

pub struct Namespace {
    rules: Rules,
    pub sessions: BTreeMap<String, State>,
    /// Ids by when they last became a subject's, the oldest first.
    joined: Vec<String>,
    pub events: Vec<Event>,
}

/// What watchers are to be told.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub kind: EventType,
    pub cause: Cause,
    pub revision: Told<i64>,
    /// As after the change.
    pub before: Content,
    /// At the end: the last state.
    pub after: Content,
}

impl Namespace {
    pub fn new(rules: Rules) -> Self {
        Namespace { rules, sessions: BTreeMap::new(), joined: Vec::new(), events: Vec::new() }
    }

    pub fn state(&self, id: &str) -> State {
        self.sessions.get(id).cloned().unwrap_or_default()
    }

    /// Whether the call may be answered so; if not, what was expected.
    pub fn hold(&mut self, call: &Call, answer: &Answer) -> Result<(), String> {
        match (call, answer) {
            (Call::DeleteSubject(request), _) => self.delete_subject(call, request, answer),
            (Call::List(request), Answer::Listed(sessions)) => self.list(request, sessions),
            (_, Answer::Session(session, ..)) => self.step(&call.id().unwrap_or(session.id.clone()), call, answer),
            _ => self.step(&call.id().unwrap_or_default(), call, answer),
        }
    }

    fn step(&mut self, id: &str, call: &Call, answer: &Answer) -> Result<(), String> {
        let before = self.state(id);
        let subject = match call {
            Call::Create(request) => Some(&request.subject),
            Call::Update(request) => request.subject.as_ref(),
            Call::Rotate(request) => request.subject.as_ref(),
            _ => None,
        };
        let others = subject.map_or(0, |subject| self.of_subject(subject).iter().filter(|other| *other != id).count());
        let has_room = match self.rules.limit {
            Some((limit, Beyond::NobodyIsAdmitted)) => others < limit,
            _ => true,
        };
        let step = step(&self.rules, &before, call, has_room || subject.is_some_and(String::is_empty));
        let kind = step.event;
        let after = step.hold(call, answer)?;
        if let Some(kind) = kind {
            self.tell(id, kind, &before, &after);
        }
        let subject_of = |state: &State| match state {
            State::Live(live) => live.content.subject.clone(),
            State::Never | State::Ended(_) => String::new(),
        };
        let (was, is) = (subject_of(&before), subject_of(&after));
        self.sessions.insert(id.to_owned(), after);
        if is != was && !is.is_empty() {
            self.joined.retain(|joined| joined != id);
            self.joined.push(id.to_owned());
            self.make_room(&is);
        }
        Ok(())
    }

    /// The oldest sessions that a subject has beyond its limit are replaced.
    fn make_room(&mut self, subject: &str) {
        let Some((limit, Beyond::TheOldestMakesRoom)) = self.rules.limit else { return };
        for id in self.of_subject(subject).iter().skip(limit) {
            self.end(id, Cause::Replaced);
        }
    }

    fn end(&mut self, id: &str, cause: Cause) {
        let State::Live(live) = self.state(id) else { unreachable!() };
        let (before, after) = (State::Live(live.clone()), live.ended(cause, None));
        self.tell(id, EventType::Ended, &before, &after);
        self.sessions.insert(id.to_owned(), after);
    }

    fn tell(&mut self, id: &str, kind: EventType, before: &State, after: &State) {
        let none = || (Told::AtLeast(1), Content::default());
        let facts = |state: &State| match state {
            State::Live(live) => Some((live.revision, live.content.clone())),
            State::Never | State::Ended(_) => None,
        };
        let (revision, before) = facts(before).unwrap_or_else(none);
        let cause = if let State::Ended(tombstone) = after { tombstone.cause } else { Cause::Unspecified };
        let (revision, after) = facts(after).unwrap_or((revision.later(), before.clone()));
        self.events.push(Event { id: id.to_owned(), kind, cause, revision, before, after });
    }

    fn live(&self, id: &str) -> Option<&Live> {
        if let State::Live(live) = self.sessions.get(id)? { Some(live) } else { None }
    }

    /// Ids of the subject's sessions, the newest first.
    fn of_subject(&self, subject: &str) -> Vec<String> {
        let is_its = |id: &&String| self.live(id).is_some_and(|live| live.content.subject == subject);
        self.joined.iter().rev().filter(is_its).cloned().collect()
    }

    fn delete_subject(
        &mut self,
        call: &Call,
        request: &DeleteSubjectSessionsRequest,
        answer: &Answer,
    ) -> Result<(), String> {
        let kept = self.live(&request.except_id);
        if kept.is_some_and(|live| live.content.subject != request.subject) {
            let expected = Answer::Refused("FIELD_INVALID".into(), String::new());
            return if *answer == expected { Ok(()) } else { Err(format!("expected {expected:?}")) };
        }
        let mut ids = self.of_subject(&request.subject);
        ids.retain(|id| *id != request.except_id);
        ids.iter().for_each(|id| self.end(id, cause_of(call)));
        let expected = Answer::DeletedCount(ids.len() as i32);
        if *answer == expected { Ok(()) } else { Err(format!("expected {expected:?}")) }
    }

    /// By subject the newest first, else in any order.
    fn list(&mut self, request: &ListSessionsRequest, sessions: &[Session]) -> Result<(), String> {
        let mut told: Vec<String> = sessions.iter().map(|session| session.id.clone()).collect();
        let mut expected = match &request.subject {
            Some(subject) => self.of_subject(subject),
            None => {
                told.sort();
                self.sessions.keys().filter(|id| self.live(id).is_some()).cloned().collect()
            }
        };
        let matches =
            |live: &Live| request.labels.iter().all(|(name, value)| live.content.labels.get(name) == Some(value));
        expected.retain(|id| self.live(id).is_some_and(matches));
        if told != expected {
            return Err(format!("expected {expected:?}"));
        }
        for session in sessions {
            let Some(State::Live(live)) = self.sessions.get_mut(&session.id) else { unreachable!() };
            if !live.take(session)? {
                return Err(format!("expected {live:?}"));
            }
        }
        Ok(())
    }
}
