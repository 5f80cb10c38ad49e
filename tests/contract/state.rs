//! What there is to know of one session.

use std::collections::BTreeMap;

use sessiond_client::v1::{AttributeValue, Authentication, Cause, Session};

use super::{Call, calls::Named::ByToken};

/// What the server decides, and an answer tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told<T> {
    Is(T),
    AtLeast(T),
}

impl<T: PartialOrd + Copy> Told<T> {
    /// Whether it may be this, which it is from now on.
    pub fn take(&mut self, told: T) -> bool {
        match std::mem::replace(self, Told::Is(told)) {
            Told::Is(known) => told == known,
            Told::AtLeast(least) => told >= least,
        }
    }

    pub fn least(self) -> T {
        let (Told::Is(least) | Told::AtLeast(least)) = self;
        least
    }
}

impl Told<i64> {
    pub fn later(self) -> Self {
        Told::AtLeast(self.least() + 1)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum State {
    #[default]
    Never,
    Live(Live),
    Ended(Tombstone),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub revision: Told<i64>,
    /// Seconds and nanoseconds.
    pub expires: Told<(i64, i32)>,
    pub content: Content,
    /// The oldest first, the present one last.
    pub tokens: Vec<Token>,
    /// The last that came with a request id.
    pub requests: Vec<Call>,
}

/// What a reader sees besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub subject: String,
    pub attributes: BTreeMap<String, AttributeValue>,
    pub labels: BTreeMap<String, String>,
    pub authentication: Option<Authentication>,
    /// In seconds.
    pub idle_timeout: i64,
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

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    pub text: String,
    /// It was presented, and accepted.
    pub used: bool,
    /// Good, though superseded.
    pub in_grace: bool,
    pub rotated_again: bool,
    pub reported: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tombstone {
    pub cause: Cause,
    pub tokens: Vec<String>,
    /// Its repeat is told so again.
    pub deleted_by: Option<Call>,
}

impl From<Live> for State {
    fn from(live: Live) -> Self {
        State::Live(live)
    }
}

impl Live {
    pub fn place_of(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|known| known.text == token)
    }

    pub fn is_good(&self, place: usize) -> bool {
        place + 1 == self.tokens.len() || self.tokens[place].in_grace
    }

    /// The session once the call's token was accepted for the first time; None = that changes nothing.
    pub fn presented(&self, call: &Call) -> Option<Self> {
        let Some(ByToken(token)) = call.key() else { return None };
        let place = self.place_of(token).filter(|place| self.is_good(*place) && !self.tokens[*place].used)?;
        let mut live = self.clone();
        live.tokens[place].used = true;
        Some(live)
    }

    pub fn successor_was_used(&self, place: usize) -> bool {
        self.tokens[place + 1..].iter().any(|token| token.used)
    }

    pub fn used_if(&mut self, counts: bool) {
        if counts {
            self.expires = Told::AtLeast(self.expires.least());
        }
    }

    pub fn ended(self, cause: Cause, deleted_by: Option<Call>) -> State {
        let tokens = self.tokens.into_iter().map(|token| token.text).collect();
        State::Ended(Tombstone { cause, tokens, deleted_by })
    }

    /// Whether this is the session.
    pub fn take(&mut self, session: &Session) -> Result<bool, String> {
        let content = Content::from(session);
        let expires = session.expire_time.map_or((0, 0), |expires| (expires.seconds, expires.nanos));
        if content != self.content {
            return Err(format!("expected {:?}", self.content));
        }
        Ok(self.revision.take(session.revision) & self.expires.take(expires))
    }
}
