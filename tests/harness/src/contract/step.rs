//! The expected result of a call, and its comparison with the reply.

use sessiond_client::v1::{EventType, TokenState};

use super::{
    Call, Reply,
    state::{Live, State, Tombstone},
};
use crate::client::id_of;

/// The expected reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// The session as it is after the call.
    Session(TokenState),
    /// New deadline, not before the present one.
    Touched,
    /// Whether DeleteSession ended the session.
    Deleted(bool),
    /// `ErrorInfo` reason of the error.
    Rejected(&'static str),
}

/// The expected reply, state and event of a call. Values that the server chooses are not known yet.
pub struct Step {
    pub expected: Expected,
    pub after: State,
    /// Event for a watcher that matches the session. None: the call sends no event.
    pub event: Option<EventType>,
}

impl Step {
    pub fn new(expected: Expected, after: impl Into<State>) -> Self {
        Step { expected, after: after.into(), event: None }
    }

    pub fn rejected(reason: &'static str, after: impl Into<State>) -> Self {
        Step::new(Expected::Rejected(reason), after)
    }

    pub fn with(self, event: EventType) -> Self {
        Step { event: Some(event), ..self }
    }

    /// Returns the state after a call with this reply, including the values that the server chose. Returns an error
    /// with the expected reply if this one differs.
    pub fn check(self, call: &Call, reply: &Reply) -> Result<State, String> {
        let mut after = self.after;
        let matches = match (&self.expected, reply, &mut after) {
            (Expected::Session(state), Reply::Session(session, token, actual), State::Live(live)) => {
                let has_id = call.id().is_none_or(|id| id == session.id);
                let is_right =
                    if call.accepts_memory() { live.confirm_but_deadline(session) } else { live.confirm(session) };
                is_right? && has_id && state == actual && live.confirm_token(&session.id, call, token)
            }
            (Expected::Touched, Reply::Touched(expires), State::Live(live)) => live.expires.confirm(*expires),
            (Expected::Deleted(deleted), Reply::Deleted(actual), _) => deleted == actual,
            (Expected::Rejected(reason), Reply::Rejected(actual, metadata), after) => {
                let matches_metadata = match (*reason, after) {
                    ("REVISION_MISMATCH", State::Live(live)) => {
                        metadata.parse().is_ok_and(|revision| live.revision.confirm(revision))
                    }
                    ("SESSION_ENDED", State::Ended(Tombstone { cause, .. })) => {
                        cause.as_str_name().strip_prefix("CAUSE_") == Some(metadata)
                    }
                    _ => true,
                };
                matches_metadata && reason == actual
            }
            _ => false,
        };
        if matches { Ok(after) } else { Err(format!("expected {:?} for {after:?}", self.expected)) }
    }
}

impl Live {
    /// Returns whether the reply has a token exactly if the server had to generate one, and stores that token.
    fn confirm_token(&mut self, id: &str, call: &Call, token: &str) -> bool {
        let present = self.tokens.last_mut().expect("a session has a token");
        match call {
            Call::Create(_) | Call::Rotate(_) if present.text.is_empty() => {
                token.clone_into(&mut present.text);
                !token.is_empty() && id_of(token) == id
            }
            // A further rotation of the predecessor returns the same successor.
            Call::Rotate(request) if request.new_token.is_empty() => present.text == token,
            _ => token.is_empty(),
        }
    }
}
