//! The rules of one session: state and call → expected answer and state after.

use sessiond_client::v1::{Cause, EventType, TokenState};

use super::{
    Call, OldTokens, Rules,
    calls::Named::ByToken,
    patch::Patch,
    state::{Content, Live, State, Token, Told, Tombstone},
    step::{Expected, Step},
};

/// The tokens before the present one that are known.
const OLD_TOKENS: usize = 16;
const REQUEST_IDS: usize = 16;
const IDLE_TIMEOUT: i64 = 30 * 60;

/// What the contract says. `has_room` = its subject may have one session more.
pub fn step(rules: &Rules, state: &State, call: &Call, has_room: bool) -> Step {
    match (state, call) {
        (_, Call::Create(_)) => create(state, call, has_room),
        (State::Live(live), _) => live.step(rules, call, has_room),
        // It leaves a tombstone where it found nothing: a create that is under way fails.
        (State::Never, Call::Delete(_)) => {
            let tombstone = Tombstone { cause: cause_of(call), tokens: Vec::new(), deleted_by: None };
            Step::new(Expected::Deleted(false), State::Ended(tombstone))
        }
        (State::Never, _) => Step::refused("SESSION_NOT_FOUND", State::Never),
        (State::Ended(tombstone), _) => {
            let proven = match call.key() {
                Some(ByToken(token)) => tombstone.tokens.iter().any(|known| known == token),
                _ => true,
            };
            let expected = match call {
                Call::Delete(_) => Expected::Deleted(proven && tombstone.deleted_by.as_ref() == Some(call)),
                _ if proven => Expected::Refused("SESSION_ENDED"),
                _ => Expected::Refused("SESSION_NOT_FOUND"),
            };
            Step::new(expected, state.clone())
        }
    }
}

fn create(state: &State, call: &Call, has_room: bool) -> Step {
    let Call::Create(request) = call else { unreachable!() };
    match state {
        State::Ended(_) => Step::refused("SESSION_ENDED", state.clone()),
        State::Live(live) => match live.repeated(call) {
            Some(repeat) => repeat,
            None => Step::refused("SESSION_EXISTS", state.clone()),
        },
        State::Never if !has_room => Step::refused("SUBJECT_SESSION_LIMIT", State::Never),
        State::Never => {
            let content = Content {
                subject: request.subject.clone(),
                attributes: request.attributes.clone(),
                labels: request.labels.clone(),
                authentication: request.authentication.clone(),
                idle_timeout: request.idle_timeout.map_or(IDLE_TIMEOUT, |timeout| timeout.seconds),
                generation: 1,
            };
            let tokens = vec![Token { text: request.token.clone(), ..Token::default() }];
            let (revision, expires) = (Told::AtLeast(1), Told::AtLeast((1, 0)));
            let mut live = Live { revision, expires, content, tokens, requests: Vec::new() };
            live.remember(call);
            live.changed(EventType::Created)
        }
    }
}

pub fn cause_of(call: &Call) -> Cause {
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
            Some(ByToken(token)) => match self.place_of(token) {
                None if matches!(call, Call::Delete(_)) => {
                    return Step::new(Expected::Deleted(false), self.clone());
                }
                None => return Step::refused("SESSION_NOT_FOUND", self.clone()),
                place => place,
            },
            _ => None,
        };
        if let Some(repeat) = self.repeated(call) {
            return repeat;
        }
        let mut live = self.clone();
        let state = match presented {
            None => TokenState::Unspecified,
            Some(place) if !live.is_good(place) => return live.refuse(rules, call, place),
            Some(place) if place + 1 == live.tokens.len() => TokenState::Current,
            Some(_) => TokenState::Superseded,
        };
        live = live.presented(call).unwrap_or(live);
        match call {
            Call::Get(request) => {
                live.used_if(request.touch && rules.every_use_counts);
                Step::new(Expected::Session(state), live)
            }
            Call::Touch(_) => {
                live.used_if(rules.every_use_counts);
                Step::new(Expected::Touched, live)
            }
            Call::Delete(_) => {
                let deleted_by = Some(call.clone()).filter(|call| !call.request_id().is_empty());
                Step::new(Expected::Deleted(true), live.ended(cause_of(call), deleted_by)).with(EventType::Ended)
            }
            _ => live.change(rules, call, &Patch::of(call), presented, has_room),
        }
    }

    /// A request id that is known: its repeat has the same outcome, with the present state.
    fn repeated(&self, call: &Call) -> Option<Step> {
        let is_known = |known: &&Call| !call.request_id().is_empty() && known.request_id() == call.request_id();
        let expected = match self.requests.iter().find(is_known)? {
            known if known == call => Expected::Session(TokenState::Unspecified),
            _ => Expected::Refused("REQUEST_ID_REUSED"),
        };
        Some(Step::new(expected, self.clone()))
    }

    /// A superseded token after its grace period: theft, if a successor was used and the policy's grace is over too.
    fn refuse(mut self, rules: &Rules, call: &Call, place: usize) -> Step {
        let is_theft = rules.old_tokens != OldTokens::WorkOn && self.successor_was_used(place);
        let was_reported = self.tokens[place].reported;
        let step = match rules.old_tokens {
            OldTokens::EndTheSession if is_theft => {
                Step::refused("SESSION_ENDED", self.ended(Cause::TokenReuse, None)).with(EventType::Ended)
            }
            OldTokens::AreReported if is_theft && !was_reported => {
                self.tokens[place].reported = true;
                self.revision = self.revision.later();
                Step::refused("TOKEN_ROTATED", self).with(EventType::TokenReused)
            }
            _ => Step::refused("TOKEN_ROTATED", self),
        };
        match call {
            Call::Delete(_) => Step { expected: Expected::Deleted(false), ..step },
            _ => step,
        }
    }

    /// UpdateSession and RotateSession.
    fn change(mut self, rules: &Rules, call: &Call, patch: &Patch, presented: Option<usize>, has_room: bool) -> Step {
        let before = self.clone();
        let superseded = presented.filter(|place| place + 1 < self.tokens.len());
        let is_login = patch.subject.is_some() || patch.authentication.is_some();
        let joins = patch.subject.as_ref().filter(|subject| !subject.is_empty() && before.content.subject != **subject);
        // Its answer may have been lost, once, if nobody presented a successor.
        let may_rotate = |place: usize| !before.tokens[place].rotated_again && !before.successor_was_used(place);
        let refused = if superseded.is_some_and(|place| is_login || patch.successor.is_some() && !may_rotate(place)) {
            Some("TOKEN_ROTATED")
        } else if patch.successor.as_ref().is_some_and(|new| self.tokens.iter().any(|token| token.text == *new)) {
            Some("FIELD_INVALID")
        } else if patch.if_revision.is_some_and(|revision| self.revision != Told::Is(revision)) {
            Some("REVISION_MISMATCH")
        } else if joins.is_some() && !before.content.subject.is_empty() {
            Some("SUBJECT_CHANGE")
        } else if joins.is_some() && !has_room {
            Some("SUBJECT_SESSION_LIMIT")
        } else {
            None
        };
        if let Some(reason) = refused {
            return Step::refused(reason, self);
        }

        patch.apply(&mut self.content);
        if let Some(successor) = &patch.successor {
            self.content.generation += 1;
            if let Some(place) = superseded {
                self.tokens[place].rotated_again = true;
            }
            if let Some(present) = self.tokens.last_mut() {
                present.in_grace = rules.old_tokens == OldTokens::WorkOn && !patch.without_grace;
            }
            self.tokens.push(Token { text: successor.clone(), ..Token::default() });
            self.tokens.drain(..self.tokens.len().saturating_sub(OLD_TOKENS + 1));
        }
        if is_login {
            self.tokens.iter_mut().for_each(|token| token.in_grace = false);
        }
        let graces = |live: &Live| live.tokens.iter().filter(|token| token.in_grace).count();
        let is_change = self.content != before.content || graces(&self) != graces(&before);
        if patch.idle_timeout.is_some() {
            self.expires = Told::AtLeast((1, 0));
        }
        self.used_if(patch.touch && (is_change || rules.every_use_counts));
        self.remember(call);
        match (is_change, &patch.successor) {
            (false, _) => Step::new(Expected::Session(TokenState::Unspecified), self),
            (true, None) => self.changed(EventType::Updated),
            (true, Some(_)) => self.changed(EventType::Rotated),
        }
    }

    /// What comes with a request id is known by it from now on.
    fn remember(&mut self, call: &Call) {
        if !call.request_id().is_empty() {
            self.requests.push(call.clone());
            self.requests.drain(..self.requests.len().saturating_sub(REQUEST_IDS));
        }
    }

    fn changed(mut self, event: EventType) -> Step {
        self.revision = self.revision.later();
        Step::new(Expected::Session(TokenState::Unspecified), self).with(event)
    }
}
