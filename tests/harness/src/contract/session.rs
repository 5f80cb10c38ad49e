//! The rules of one session: state and call → expected reply and state after.

use sessiond_client::v1::{Cause, EventType, TokenState};

use super::{
    Call, Rules, TokenReuse,
    calls::KeyRef,
    patch::Patch,
    state::{Content, Known, Live, State, Token, Tombstone},
    step::{Expected, Step},
};

/// Number of superseded tokens that a session keeps.
const OLD_TOKENS: usize = 16;
/// Number of calls with a request id that a session keeps for their retries.
const REQUEST_IDS: usize = 16;
/// Default idle timeout in seconds.
const IDLE_TIMEOUT: i64 = 30 * 60;

/// Returns the expected result of a call on one session. `has_room`: the subject may have one more session.
pub fn step(rules: &Rules, state: &State, call: &Call, has_room: bool) -> Step {
    match (state, call) {
        (_, Call::Create(_)) => create(state, call, has_room),
        (State::Live(live), _) => live.step(rules, call, has_room),
        // The delete writes a tombstone although there is no session, so that a create in flight fails.
        (State::NotCreated, Call::Delete(_)) => {
            let tombstone = Tombstone { cause: end_cause(call), tokens: Vec::new(), deleted_by: None };
            Step::new(Expected::Deleted(false), State::Ended(tombstone))
        }
        (State::NotCreated, _) => Step::rejected("SESSION_NOT_FOUND", State::NotCreated),
        (State::Ended(tombstone), _) => {
            let is_authenticated = match call.key() {
                Some(KeyRef::Token(token)) => tombstone.tokens.iter().any(|known| known == token),
                _ => true,
            };
            let expected = match call {
                Call::Delete(_) => Expected::Deleted(is_authenticated && tombstone.deleted_by.as_ref() == Some(call)),
                _ if is_authenticated => Expected::Rejected("SESSION_ENDED"),
                _ => Expected::Rejected("SESSION_NOT_FOUND"),
            };
            Step::new(expected, state.clone())
        }
    }
}

fn create(state: &State, call: &Call, has_room: bool) -> Step {
    let Call::Create(request) = call else { unreachable!() };
    match state {
        State::Ended(_) => Step::rejected("SESSION_ENDED", state.clone()),
        State::Live(live) => match live.retried(call) {
            Some(step) => step,
            None => Step::rejected("SESSION_EXISTS", state.clone()),
        },
        State::NotCreated if !has_room => Step::rejected("SUBJECT_SESSION_LIMIT", State::NotCreated),
        State::NotCreated => {
            let content = Content {
                subject: request.subject.clone(),
                attributes: request.attributes.clone(),
                labels: request.labels.clone(),
                authentication: request.authentication.clone(),
                idle_timeout: request.idle_timeout.map_or(IDLE_TIMEOUT, |timeout| timeout.seconds),
                generation: 1,
            };
            let tokens = vec![Token { text: request.token.clone(), ..Token::default() }];
            let (revision, expires) = (Known::AtLeast(1), Known::AtLeast((1, 0)));
            let mut live = Live { revision, expires, content, tokens, requests: Vec::new() };
            live.remember(call);
            live.changed(EventType::Created)
        }
    }
}

/// Returns the cause with which a call ends sessions: the one in the request, else LOGOUT for DeleteSession and REVOKED
/// for DeleteSubjectSessions.
pub fn end_cause(call: &Call) -> Cause {
    match call {
        Call::Delete(request) if request.cause != 0 => request.cause(),
        Call::Delete(_) => Cause::Logout,
        Call::DeleteSubject(request) if request.cause != 0 => request.cause(),
        _ => Cause::Revoked,
    }
}

impl Live {
    fn step(&self, rules: &Rules, call: &Call, has_room: bool) -> Step {
        let presented = match call.key() {
            Some(KeyRef::Token(token)) => match self.token_index(token) {
                None if matches!(call, Call::Delete(_)) => {
                    return Step::new(Expected::Deleted(false), self.clone());
                }
                None => return Step::rejected("SESSION_NOT_FOUND", self.clone()),
                index => index,
            },
            _ => None,
        };
        if let Some(step) = self.retried(call) {
            return step;
        }
        let mut live = self.clone();
        let state = match presented {
            None => TokenState::Unspecified,
            Some(index) if !live.is_valid(index) => return live.reject_superseded(rules, call, index),
            Some(index) if index + 1 == live.tokens.len() => TokenState::Current,
            Some(_) => TokenState::Superseded,
        };
        live = live.with_token_presented(call).unwrap_or(live);
        match call {
            Call::Get(request) => {
                live.touch_if(request.touch && rules.every_touch_is_written);
                Step::new(Expected::Session(state), live)
            }
            Call::Touch(_) => {
                live.touch_if(rules.every_touch_is_written);
                Step::new(Expected::Touched, live)
            }
            Call::Delete(_) => {
                let deleted_by = Some(call.clone()).filter(|call| !call.request_id().is_empty());
                Step::new(Expected::Deleted(true), live.ended(end_cause(call), deleted_by)).with(EventType::Ended)
            }
            _ => live.change(rules, call, &Patch::of(call), presented, has_room),
        }
    }

    /// Returns the result of a call with a known request id: a retry returns the present state, and another call is
    /// rejected. None: the request id is new.
    fn retried(&self, call: &Call) -> Option<Step> {
        let is_known = |known: &&Call| !call.request_id().is_empty() && known.request_id() == call.request_id();
        let expected = match self.requests.iter().find(is_known)? {
            known if known == call => Expected::Session(TokenState::Unspecified),
            _ => Expected::Rejected("REQUEST_ID_REUSED"),
        };
        Some(Step::new(expected, self.clone()))
    }

    /// Rejects a superseded token after its grace period. It is token reuse if a successor was presented and the grace
    /// period of the policy is over too.
    fn reject_superseded(mut self, rules: &Rules, call: &Call, index: usize) -> Step {
        let is_reuse = rules.token_reuse != TokenReuse::InGrace && self.is_successor_presented(index);
        let was_reported = self.tokens[index].reported;
        let step = match rules.token_reuse {
            TokenReuse::EndSession if is_reuse => {
                Step::rejected("SESSION_ENDED", self.ended(Cause::TokenReuse, None)).with(EventType::Ended)
            }
            TokenReuse::Report if is_reuse && !was_reported => {
                self.tokens[index].reported = true;
                self.revision = self.revision.after_change();
                Step::rejected("TOKEN_ROTATED", self).with(EventType::TokenReused)
            }
            _ => Step::rejected("TOKEN_ROTATED", self),
        };
        match call {
            Call::Delete(_) => Step { expected: Expected::Deleted(false), ..step },
            _ => step,
        }
    }

    /// Applies UpdateSession or RotateSession.
    fn change(mut self, rules: &Rules, call: &Call, patch: &Patch, presented: Option<usize>, has_room: bool) -> Step {
        let before = self.clone();
        let superseded = presented.filter(|index| index + 1 < self.tokens.len());
        let is_login = patch.subject.is_some() || patch.authentication.is_some();
        let joined_subject =
            patch.subject.as_ref().filter(|subject| !subject.is_empty() && before.content.subject != **subject);
        // A superseded token may rotate once more while no successor was presented: the reply of the first rotation may
        // have been lost.
        let may_rotate =
            |index: usize| !before.tokens[index].was_rotated_again && !before.is_successor_presented(index);
        let rejected = if superseded.is_some_and(|index| is_login || patch.successor.is_some() && !may_rotate(index)) {
            Some("TOKEN_ROTATED")
        } else if patch.successor.as_ref().is_some_and(|new| self.tokens.iter().any(|token| token.text == *new)) {
            Some("FIELD_INVALID")
        } else if patch.if_revision.is_some_and(|revision| self.revision != Known::Exactly(revision)) {
            Some("REVISION_MISMATCH")
        } else if joined_subject.is_some() && !before.content.subject.is_empty() {
            Some("SUBJECT_CHANGE")
        } else if joined_subject.is_some() && !has_room {
            Some("SUBJECT_SESSION_LIMIT")
        } else {
            None
        };
        if let Some(reason) = rejected {
            return Step::rejected(reason, self);
        }

        patch.apply(&mut self.content);
        if let Some(successor) = &patch.successor {
            self.content.generation += 1;
            if let Some(index) = superseded {
                self.tokens[index].was_rotated_again = true;
            }
            if let Some(present) = self.tokens.last_mut() {
                present.in_grace = rules.token_reuse == TokenReuse::InGrace && !patch.without_grace;
            }
            self.tokens.push(Token { text: successor.clone(), ..Token::default() });
            self.tokens.drain(..self.tokens.len().saturating_sub(OLD_TOKENS + 1));
        }
        if is_login {
            self.tokens.iter_mut().for_each(|token| token.in_grace = false);
        }
        let tokens_in_grace = |live: &Live| live.tokens.iter().filter(|token| token.in_grace).count();
        let is_change = self.content != before.content || tokens_in_grace(&self) != tokens_in_grace(&before);
        if patch.idle_timeout.is_some() {
            self.expires = Known::AtLeast((1, 0));
        }
        self.touch_if(patch.touch && (is_change || rules.every_touch_is_written));
        self.remember(call);
        match (is_change, &patch.successor) {
            (false, _) => Step::new(Expected::Session(TokenState::Unspecified), self),
            (true, None) => self.changed(EventType::Updated),
            (true, Some(_)) => self.changed(EventType::Rotated),
        }
    }

    /// Stores a call with a request id for its retries.
    fn remember(&mut self, call: &Call) {
        if !call.request_id().is_empty() {
            self.requests.push(call.clone());
            self.requests.drain(..self.requests.len().saturating_sub(REQUEST_IDS));
        }
    }

    fn changed(mut self, event: EventType) -> Step {
        self.revision = self.revision.after_change();
        Step::new(Expected::Session(TokenState::Unspecified), self).with(event)
    }
}
