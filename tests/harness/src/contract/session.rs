//! The rules of one session: state and call → expected reply and state after.

use sessiond_client::v1::{Cause, EventType, TokenState};

use super::{
    Call, Rules, TokenReuse,
    calls::KeyRef,
    patch::Patch,
    state::{Content, Known, Live, ReturnedTo, State, Token, Tombstone},
    step::{Expected, Step},
};

/// Number of superseded tokens that a session keeps.
const OLD_TOKENS: usize = 16;
/// Number of calls with a request id that a session keeps for their retries. A further one is rejected: a case takes less than
/// the time for which each is kept.
const REQUEST_IDS: usize = 64;
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
        State::Live(live) => match (live.retried(call), live.token_index(&request.token)) {
            (None, _) | (_, None) => Step::rejected("SESSION_EXISTS", state.clone()),
            (Some(_), Some(index)) if !live.is_valid(index) => Step::rejected("TOKEN_ROTATED", state.clone()),
            (Some(step), Some(_)) => step,
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
        let mut live = self.clone();
        let state = match presented {
            _ if matches!(call, Call::Delete(_)) => TokenState::Unspecified,
            None => TokenState::Unspecified,
            Some(index) if !live.is_valid(index) => {
                return match live.retried(call) {
                    Some(step) if live.remembers(call) && live.may_retry_rotation(call, index) => step,
                    Some(_) => Step::rejected("TOKEN_ROTATED", live),
                    None => live.reject_superseded(rules, index),
                };
            }
            Some(index) if index + 1 == live.tokens.len() => TokenState::Current,
            Some(_) => TokenState::Superseded,
        };
        live = live.with_token_presented(call).unwrap_or(live);
        if let Some(step) = live.retried(call) {
            let is_lost = presented.is_some_and(|index| live.remembers(call) && !live.may_retry_rotation(call, index));
            return if is_lost { Step::rejected("TOKEN_ROTATED", live) } else { step };
        }
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
                let is_reuse = presented.is_some_and(|index| !live.is_valid(index) && live.is_reuse(rules, index));
                let ends_for_reuse = is_reuse && rules.token_reuse == TokenReuse::EndSession;
                let cause = if ends_for_reuse { Cause::TokenReuse } else { end_cause(call) };
                Step::new(Expected::Deleted(true), live.ended(cause, deleted_by)).with(EventType::Ended)
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

    /// Returns whether this very call is kept for its retries.
    fn remembers(&self, call: &Call) -> bool {
        self.requests.contains(call)
    }

    /// Returns whether a kept call may be retried with the token at this index. Of all calls, only a rotation has a
    /// condition: the server must be able to return its successor, and a token that is not accepted any more must have been
    /// superseded by it.
    fn may_retry_rotation(&self, call: &Call, index: usize) -> bool {
        let Call::Rotate(request) = call else { return self.is_valid(index) };
        let (is_newest, current) = (index + 2 == self.tokens.len(), &self.tokens[self.tokens.len() - 1]);
        match (request.new_token.is_empty(), self.is_valid(index)) {
            (false, is_valid) => is_valid || is_newest,
            (true, true) => is_newest && !current.presented && current.returned_to == ReturnedTo::AllInGrace,
            (true, false) => is_newest && !current.presented && current.returned_to == ReturnedTo::Retry,
        }
    }

    /// Returns whether a superseded token after its grace period is token reuse: a successor was presented and the grace
    /// period of the policy is over too.
    fn is_reuse(&self, rules: &Rules, index: usize) -> bool {
        rules.token_reuse != TokenReuse::InGrace && self.is_successor_presented(index)
    }

    /// Rejects a superseded token after its grace period.
    fn reject_superseded(mut self, rules: &Rules, index: usize) -> Step {
        let is_reuse = self.is_reuse(rules, index);
        let was_reported = self.tokens[index].reported;
        match rules.token_reuse {
            TokenReuse::EndSession if is_reuse => {
                Step::rejected("SESSION_ENDED", self.ended(Cause::TokenReuse, None)).with(EventType::Ended)
            }
            TokenReuse::Report if is_reuse && !was_reported => {
                self.tokens[index].reported = true;
                self.revision = self.revision.after_change();
                Step::rejected("TOKEN_ROTATED", self).with(EventType::TokenReused)
            }
            _ => Step::rejected("TOKEN_ROTATED", self),
        }
    }

    /// Returns whether a superseded token in its grace period may rotate to this successor; empty: one that the server
    /// generates. The rotation returns the successor that was issued, and changes no token.
    fn may_rotate_again(&self, index: usize, successor: &str) -> bool {
        let current = &self.tokens[self.tokens.len() - 1];
        let is_issued = match successor {
            "" => current.returned_to == ReturnedTo::AllInGrace,
            _ => current.text == successor,
        };
        index + 2 == self.tokens.len() && !current.presented && is_issued
    }

    /// Applies UpdateSession or RotateSession.
    fn change(mut self, rules: &Rules, call: &Call, patch: &Patch, presented: Option<usize>, has_room: bool) -> Step {
        let before = self.clone();
        let superseded = presented.filter(|index| index + 1 < self.tokens.len());
        let is_login = patch.subject.is_some() || patch.authentication.is_some();
        let joined_subject =
            patch.subject.as_ref().filter(|subject| !subject.is_empty() && before.content.subject != **subject);
        let may_rotate = |index: usize, new: &String| before.may_rotate_again(index, new);
        let is_refused = |index: usize| patch.successor.as_ref().is_some_and(|new| !may_rotate(index, new));
        let successor = patch.successor.as_ref().filter(|_| superseded.is_none());
        let is_known = |new: &String| !new.is_empty() && self.tokens.iter().any(|token| token.text == *new);
        let rejected = if superseded.is_some_and(|index| is_login || is_refused(index)) {
            Some("TOKEN_ROTATED")
        } else if successor.is_some_and(is_known) {
            Some("FIELD_INVALID")
        } else if patch.if_revision.is_some_and(|revision| self.revision != Known::Exactly(revision)) {
            Some("REVISION_MISMATCH")
        } else if joined_subject.is_some() && !before.content.subject.is_empty() {
            Some("SUBJECT_CHANGE")
        } else if !call.request_id().is_empty() && self.requests.len() >= REQUEST_IDS {
            Some("REQUEST_ID_LIMIT")
        } else if joined_subject.is_some() && !has_room {
            Some("SUBJECT_SESSION_LIMIT")
        } else {
            None
        };
        if let Some(reason) = rejected {
            return Step::rejected(reason, self);
        }

        patch.apply(&mut self.content);
        if let Some(successor) = successor {
            self.content.generation += 1;
            let has_grace = rules.token_reuse == TokenReuse::InGrace && !patch.without_grace && !is_login;
            if let Some(present) = self.tokens.last_mut() {
                present.in_grace = has_grace;
            }
            let returned_to = match (successor.is_empty(), has_grace, call.request_id().is_empty()) {
                (true, true, _) => ReturnedTo::AllInGrace,
                (true, false, false) => ReturnedTo::Retry,
                _ => ReturnedTo::NoOther,
            };
            self.tokens.push(Token { text: successor.clone(), returned_to, ..Token::default() });
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
        match (is_change, successor) {
            (false, _) => Step::new(Expected::Session(TokenState::Unspecified), self),
            (true, None) => self.changed(EventType::Updated),
            (true, Some(_)) => self.changed(EventType::Rotated),
        }
    }

    /// Stores a call with a request id for its retries.
    fn remember(&mut self, call: &Call) {
        if !call.request_id().is_empty() {
            self.requests.push(call.clone());
        }
    }

    fn changed(mut self, event: EventType) -> Step {
        self.revision = self.revision.after_change();
        Step::new(Expected::Session(TokenState::Unspecified), self).with(event)
    }
}
