//! The state of one session in the model.

use std::collections::BTreeMap;

use sessiond_client::v1::{AttributeValue, Authentication, Cause, Session};

use super::{Call, calls::KeyRef};

/// A value that the server chooses and that a reply reveals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known<T> {
    /// The value: a reply has contained it.
    Exactly(T),
    /// Lower bound of the value: no reply has contained it yet.
    AtLeast(T),
}

impl<T: PartialOrd + Copy> Known<T> {
    /// Returns whether the value can be `actual`, and stores it.
    pub(crate) fn confirm(&mut self, actual: T) -> bool {
        match std::mem::replace(self, Known::Exactly(actual)) {
            Known::Exactly(known) => actual == known,
            Known::AtLeast(lower_bound) => actual >= lower_bound,
        }
    }

    /// Returns the value, or its lower bound if no reply has contained it.
    pub(crate) fn lower_bound(self) -> T {
        let (Known::Exactly(lower_bound) | Known::AtLeast(lower_bound)) = self;
        lower_bound
    }
}

impl Known<i64> {
    /// Returns the revision after one more change: any value above this one.
    pub(crate) fn after_change(self) -> Self {
        Known::AtLeast(self.lower_bound() + 1)
    }
}

/// State of one session.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum State {
    /// No CreateSession or DeleteSession for this id was applied.
    #[default]
    NotCreated,
    /// The session has not ended.
    Live(Live),
    /// The session has ended, or was deleted before it was created. CreateSession with its id fails.
    Ended(Tombstone),
}

/// Session that has not ended: its content, its tokens, and the calls whose retries it detects.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    /// Revision of the last change.
    pub revision: Known<i64>,
    /// Deadline in seconds and nanoseconds since the epoch, Redis clock.
    pub expires: Known<(i64, i32)>,
    /// Fields that replies and events contain.
    pub content: Content,
    /// Tokens, the oldest first; the last one is current.
    pub tokens: Vec<Token>,
    /// Calls with a request id, the oldest first; at most 64.
    pub requests: Vec<Call>,
}

/// Fields of a session in replies and events, except revision and deadlines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// Subject. Empty: the session is anonymous.
    pub subject: String,
    /// Attribute values, by name.
    pub attributes: BTreeMap<String, AttributeValue>,
    /// Label values, by name.
    pub labels: BTreeMap<String, String>,
    /// Authentication of the last login. None: no call has set it.
    pub authentication: Option<Authentication>,
    /// Idle timeout in seconds. 0: none.
    pub idle_timeout: i64,
    /// Number of the current token: 1 at creation, incremented by every rotation.
    pub generation: i32,
}

impl From<&Session> for Content {
    fn from(session: &Session) -> Self {
        Content {
            subject: session.subject.clone(),
            attributes: session.attributes.clone(),
            labels: session.labels.clone(),
            authentication: session.authentication.clone(),
            idle_timeout: session.idle_timeout.map_or(0, |timeout| timeout.seconds),
            generation: session.token_generation,
        }
    }
}

/// A token, and the calls that used it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Text of the token. Empty: the server generates it, and no reply has contained it yet.
    pub text: String,
    /// Whether a call with this token was accepted.
    pub presented: bool,
    /// Whether it is superseded and within its grace period.
    pub in_grace: bool,
    /// Which further rotations of its predecessor return it, until it is presented.
    pub returned_to: ReturnedTo,
    /// Whether its reuse was reported. Later reuse is not.
    pub reported: bool,
}

/// Further rotations of a token that return the successor that the server generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReturnedTo {
    /// None: the caller chose the successor, or the token had no grace period and the call no request id.
    #[default]
    NoOther,
    /// All within the grace period of the token.
    AllInGrace,
    /// The retry of the rotation. The token had no grace period.
    Retry,
}

/// Record that is kept after the end of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Tombstone {
    /// Reason for the end, which SESSION_ENDED contains.
    pub cause: Cause,
    /// Tokens of the session at its end, the oldest first. Empty: the session was deleted before it was created.
    ///
    /// Except DeleteSession, calls with one of them fail with SESSION_ENDED, and calls with another token with
    /// SESSION_NOT_FOUND.
    pub tokens: Vec<String>,
    /// Call that ended the session; its retries have the same reply. None: no DeleteSession with a request id ended it.
    pub deleted_by: Option<Call>,
}

impl From<Live> for State {
    fn from(live: Live) -> Self {
        State::Live(live)
    }
}

impl Live {
    /// Returns the index of a token. None: the session does not keep it.
    pub(crate) fn token_index(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|known| known.text == token)
    }

    /// Returns whether the token at this index is current or within its grace period.
    pub(crate) fn is_valid(&self, index: usize) -> bool {
        index + 1 == self.tokens.len() || self.tokens[index].in_grace
    }

    /// Returns the session after the call presented its token for the first time. None: the token was presented before,
    /// or is not accepted.
    pub(crate) fn with_token_presented(&self, call: &Call) -> Option<Self> {
        let Some(KeyRef::Token(token)) = call.key() else { return None };
        let index = self.token_index(token).filter(|index| self.is_valid(*index) && !self.tokens[*index].presented)?;
        let mut live = self.clone();
        live.tokens[index].presented = true;
        Some(live)
    }

    /// Returns whether a token newer than the one at this index was presented.
    pub(crate) fn is_successor_presented(&self, index: usize) -> bool {
        self.tokens[index + 1..].iter().any(|token| token.presented)
    }

    /// Applies a touch if it is written: the new deadline is not before the present one.
    pub(crate) fn touch_if(&mut self, is_written: bool) {
        if is_written {
            self.expires = Known::AtLeast(self.expires.lower_bound());
        }
    }

    /// Ends the session: returns its tombstone.
    pub(crate) fn ended(self, cause: Cause, deleted_by: Option<Call>) -> State {
        let tokens = self.tokens.into_iter().map(|token| token.text).collect();
        State::Ended(Tombstone { cause, tokens, deleted_by })
    }

    /// Compares a session in a reply with the model, and stores its revision and deadline.
    ///
    /// Returns false if the revision or the deadline differs, and an error with the expected content if that differs.
    pub(crate) fn confirm(&mut self, session: &Session) -> Result<bool, String> {
        let expires = session.expire_time.map_or((0, 0), |expires| (expires.seconds, expires.nanos));
        Ok(self.confirm_but_deadline(session)? & self.expires.confirm(expires))
    }

    /// Like [`Live::confirm`], for a reply that may lack touches: its deadline is not compared.
    pub(crate) fn confirm_but_deadline(&mut self, session: &Session) -> Result<bool, String> {
        if Content::from(session) != self.content {
            return Err(format!("expected {:?}", self.content));
        }
        Ok(self.revision.confirm(session.revision))
    }
}
