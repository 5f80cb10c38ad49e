//! What a call leads to, and whether an answer bears it out.

use sessiond_client::v1::{EventType, TokenState};

use super::{
    Answer, Call,
    state::{Live, State, Tombstone},
};
use crate::harness::client::id_of;

#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// The session as it is after the call.
    Session(TokenState),
    Touched,
    Deleted(bool),
    /// Reason.
    Refused(&'static str),
}

/// What a call leads to; what the server decides is still open.
pub struct Step {
    pub expected: Expected,
    pub after: State,
    pub event: Option<EventType>,
}

impl Step {
    pub fn new(expected: Expected, after: impl Into<State>) -> Self {
        Step { expected, after: after.into(), event: None }
    }

    pub fn refused(reason: &'static str, after: impl Into<State>) -> Self {
        Step::new(Expected::Refused(reason), after)
    }

    pub fn with(self, event: EventType) -> Self {
        Step { event: Some(event), ..self }
    }

    /// The state after this answer, which has to be the expected one.
    pub fn hold(self, call: &Call, answer: &Answer) -> Result<State, String> {
        let mut after = self.after;
        let fits = match (&self.expected, answer, &mut after) {
            (Expected::Session(state), Answer::Session(session, token, told), State::Live(live)) => {
                let is_it = call.id().is_none_or(|id| id == session.id);
                live.take(session)? && is_it && state == told && live.takes_token(&session.id, call, token)
            }
            (Expected::Touched, Answer::Touched(expires), State::Live(live)) => live.expires.take(*expires),
            (Expected::Deleted(deleted), Answer::Deleted(told), _) => deleted == told,
            (Expected::Refused(reason), Answer::Refused(told, metadata), after) => {
                let fits = match (*reason, after) {
                    ("REVISION_MISMATCH", State::Live(live)) => {
                        metadata.parse().is_ok_and(|told| live.revision.take(told))
                    }
                    ("SESSION_ENDED", State::Ended(Tombstone { cause, .. })) => {
                        cause.as_str_name().strip_prefix("CAUSE_") == Some(metadata)
                    }
                    _ => true,
                };
                fits && reason == told
            }
            _ => false,
        };
        if fits { Ok(after) } else { Err(format!("expected {:?} of {after:?}", self.expected)) }
    }
}

impl Live {
    /// Whether the server told a token where it was to make one, and there alone.
    fn takes_token(&mut self, id: &str, call: &Call, told: &str) -> bool {
        let present = self.tokens.last_mut().expect("a session has a token");
        match call {
            Call::Create(_) | Call::Rotate(_) if present.text.is_empty() => {
                told.clone_into(&mut present.text);
                !told.is_empty() && id_of(told) == id
            }
            _ => told.is_empty(),
        }
    }
}
