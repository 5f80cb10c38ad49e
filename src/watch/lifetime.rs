//! How long a watch lasts: until the sessions it was opened for have ended.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::{
    session::{Cause, Change, Event, Millis, Namespace, Proof, SessionId, SessionName, Standing, View},
    store::{Ending, Error, Found, Store},
};

use super::filter::{Filter, Scope};

/// Sessions looked for at once.
const LOOK_AT_ONCE: usize = 100;
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a watch is over.
#[derive(Debug)]
pub enum Finish {
    /// All sessions it was opened for have ended.
    AllEnded,
    /// The session of its token has ended.
    TokenEnded(Cause),
    /// Its token is superseded, and its time is over.
    TokenRotated,
    /// The session of its token is not there any more.
    TokenUnknown,
    /// The server is being stopped.
    Draining,
    Store(Error),
}

/// How long a watch lasts.
pub enum Lifetime {
    Unlimited,
    /// Until all of these have ended.
    Ids(HashSet<SessionId>),
    /// Until this token stops being accepted.
    Token(TokenLifetime),
}

/// How long a token is accepted.
pub struct TokenLifetime {
    id: SessionId,
    proof: Proof,
    /// The last that was seen of it: None = that is to be looked for.
    seen: Option<Seen>,
}

enum Seen {
    Accepted {
        /// Until then, by the clock of Redis; None = there is no newer one.
        until: Option<Millis>,
    },
    Over(Finish),
}

impl TokenLifetime {
    pub fn new(id: SessionId, proof: Proof) -> Self {
        TokenLifetime { id, proof, seen: None }
    }

    /// Whether this change may be one that the token's holder is not to see, so that the token is to be looked at first.
    fn is_in_doubt(&self, event: &Event) -> bool {
        let (accepted, until) = match &self.seen {
            None => (true, None),
            Some(Seen::Accepted { until }) => (true, *until),
            Some(Seen::Over(_)) => (false, None),
        };
        let is_late = until.is_some_and(|until| event.revision.0 / 1000 >= until.0);
        accepted
            && match event.change {
                // What this stream ends with.
                Change::Ended(_) => is_late,
                Change::Rotated | Change::Created => true,
                // A login ends every grace period.
                Change::Updated => until.is_some(),
                Change::TokenReused => is_late,
            }
    }
}

impl Lifetime {
    /// Notes an ending, and a session that is made anew.
    pub fn note(&mut self, event: &Event, filter: &Filter) {
        let name = &event.session.name;
        if name.namespace != filter.namespace {
            return;
        }
        match (self, event.change) {
            (Lifetime::Unlimited, _) => {}
            (Lifetime::Ids(alive), Change::Ended(_)) => {
                alive.remove(&name.id);
            }
            // An id may be used again once its tombstone's time is over.
            (Lifetime::Ids(alive), Change::Created) => {
                if matches!(&filter.scope, Scope::Ids(ids) if ids.contains(&name.id)) {
                    alive.insert(name.id);
                }
            }
            (Lifetime::Ids(_), Change::Updated | Change::Rotated | Change::TokenReused) => {}
            (Lifetime::Token(token), Change::Ended(cause)) if token.id == name.id => {
                token.seen = Some(Seen::Over(Finish::TokenEnded(cause)));
            }
            (Lifetime::Token(_), _) => {}
        }
    }

    /// Whether the watch is to be looked at before it may tell this change.
    pub fn is_in_doubt(&self, event: &Event) -> bool {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => false,
            Lifetime::Token(token) => token.id == event.session.name.id && token.is_in_doubt(event),
        }
    }

    /// Whether the watch goes on.
    pub fn check(&mut self) -> Result<(), Finish> {
        match self {
            Lifetime::Unlimited => Ok(()),
            Lifetime::Ids(alive) if alive.is_empty() => Err(Finish::AllEnded),
            Lifetime::Ids(_) => Ok(()),
            Lifetime::Token(token) => match token.seen.take() {
                Some(Seen::Over(finish)) => Err(finish),
                seen => {
                    token.seen = seen;
                    Ok(())
                }
            },
        }
    }

    /// When it is to be looked at again, in us by the clock of Redis; None = not before something happens.
    pub fn look_at(&self) -> Option<u64> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(token) => match &token.seen {
                None => Some(0),
                Some(Seen::Accepted { until }) => until.map(|until| until.0 * 1000),
                Some(Seen::Over(_)) => None,
            },
        }
    }

    /// How many sessions it lasts for; 0 where that is unlimited.
    pub fn sessions(&self) -> usize {
        match self {
            Lifetime::Unlimited => 0,
            Lifetime::Ids(alive) => alive.len(),
            Lifetime::Token(_) => 1,
        }
    }

    /// Why its token is not accepted any more; None = it is, or the watch is not by token.
    pub fn ended(&self) -> Option<&Finish> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(TokenLifetime { seen: Some(Seen::Over(finish)), .. }) => Some(finish),
            Lifetime::Token(_) => None,
        }
    }

    /// Looks which of the sessions live.
    pub async fn look(&mut self, store: &Store, namespace: &Namespace) -> Result<(), Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let find = async |id: SessionId, proof: Proof| {
            let name = SessionName { namespace: namespace.clone(), id };
            store.look(&name, proof, View::Basic, deadline).await
        };
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(alive) => {
                let found = alive.clone().into_iter().map(async |id| (id, find(id, Proof::Named).await));
                let mut found = futures_util::stream::iter(found).buffer_unordered(LOOK_AT_ONCE);
                while let Some((id, found)) = found.next().await {
                    match found {
                        Ok(Found::Session(..)) | Err(Error::Corrupt { .. }) => {}
                        Ok(Found::NotFound | Found::Ended(_) | Found::Rotated) => {
                            alive.remove(&id);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Lifetime::Token(token) => {
                token.seen = Some(match find(token.id, token.proof).await {
                    Ok(Found::Session(_, Standing::Superseded { until })) => Seen::Accepted { until: Some(until) },
                    Ok(Found::Session(..)) | Err(Error::Corrupt { .. }) => Seen::Accepted { until: None },
                    // Its end comes by the stream.
                    Ok(Found::Ended(Ending { is_told: false, was_accepted: true, .. })) => {
                        Seen::Accepted { until: None }
                    }
                    Ok(Found::Ended(Ending { was_accepted: true, cause, .. })) => Seen::Over(Finish::TokenEnded(cause)),
                    Ok(Found::Ended(_)) => Seen::Over(Finish::TokenRotated),
                    Ok(Found::Rotated) => Seen::Over(Finish::TokenRotated),
                    Ok(Found::NotFound) => Seen::Over(Finish::TokenUnknown),
                    Err(error) => return Err(error),
                });
            }
        }
        Ok(())
    }
}
