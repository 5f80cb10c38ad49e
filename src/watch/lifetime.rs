//! How long a watch lasts: until the sessions it was opened for have ended.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::{
    session::{Cause, Change, Event, Millis, Namespace, Proof, Revision, SessionId, SessionName, View},
    store::{Error, Found, Store, Told},
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
    /// Nothing was read from it for too long, or the log no longer reaches back to where it is.
    TooSlow,
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

struct Seen {
    /// It is, or was, good until then, by the clock of Redis; None = there is no newer one.
    until: Option<Millis>,
    /// Why it is not accepted any more.
    finish: Option<Finish>,
}

impl TokenLifetime {
    pub fn new(id: SessionId, proof: Proof) -> Self {
        TokenLifetime { id, proof, seen: None }
    }

    fn note(&mut self, change: Change) {
        match (change, &mut self.seen) {
            (Change::Created, seen) => *seen = None,
            // Once it is over, it is so for good.
            (_, None | Some(Seen { finish: Some(_), .. })) => {}
            (Change::Ended(cause), Some(seen)) => seen.finish = Some(Finish::TokenEnded(cause)),
            (Change::Rotated, seen) => *seen = None,
            // A login ends every grace period.
            (Change::Updated, seen) if seen.as_ref().is_some_and(|seen| seen.until.is_some()) => *seen = None,
            (Change::Updated | Change::TokenReused, _) => {}
        }
    }

    /// Whether it was good when this happened; None = that is to be looked for.
    fn was_good_at(&self, revision: Revision) -> Option<bool> {
        let seen = self.seen.as_ref()?;
        match seen.until {
            Some(until) if revision.0 / 1000 >= until.0 => seen.finish.as_ref().map(|_| false),
            _ => Some(true),
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
            (Lifetime::Token(token), change) if token.id == name.id => token.note(change),
            (Lifetime::Token(_), _) => {}
        }
    }

    /// Whether the watch goes on.
    pub fn check(&mut self) -> Result<(), Finish> {
        match self {
            Lifetime::Unlimited => Ok(()),
            Lifetime::Ids(alive) if alive.is_empty() => Err(Finish::AllEnded),
            Lifetime::Ids(_) => Ok(()),
            Lifetime::Token(token) => token.seen.as_mut().and_then(|seen| seen.finish.take()).map_or(Ok(()), Err),
        }
    }

    /// Whether the watch lasts to this event; false = that is to be looked for first. Nothing that happened after its
    /// token's time is told.
    pub fn lasts_to(&mut self, event: &Event) -> Result<bool, Finish> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => Ok(true),
            Lifetime::Token(token) => match token.was_good_at(event.revision) {
                Some(false) => self.check().map(|()| false),
                known => Ok(known.is_some()),
            },
        }
    }

    /// When it is to be looked at again, in us by the clock of Redis; None = not before something happens.
    pub fn look_at(&self) -> Option<u64> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(token) => match &token.seen {
                None => Some(0),
                Some(seen) => seen.until.map(|until| until.0 * 1000),
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
            Lifetime::Token(token) => token.seen.as_ref()?.finish.as_ref(),
        }
    }

    /// Of the token that it is for; None = it is for ids, or for more.
    pub fn proof(&self) -> Option<Proof> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(token) => Some(token.proof),
        }
    }

    /// Looks which of the sessions live.
    pub async fn look(&mut self, store: &Store, namespace: &Namespace) -> Result<(), Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let name_of = |id: SessionId| SessionName { namespace: namespace.clone(), id };
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(alive) => {
                let found = alive.clone().into_iter().map(async |id| {
                    let name = name_of(id);
                    (id, store.look(&name, Proof::Named, View::Basic, deadline).await)
                });
                let mut found = futures_util::stream::iter(found).buffer_unordered(LOOK_AT_ONCE);
                while let Some((id, found)) = found.next().await {
                    match found {
                        Ok(Found::Session(..)) | Err(Error::Corrupt { .. }) => {}
                        Ok(Found::NotFound | Found::Ended(..) | Found::Rotated) => {
                            alive.remove(&id);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Lifetime::Token(token) => {
                let (until, finish) = match store.look_after(&name_of(token.id), token.proof, deadline).await {
                    Ok((Found::Session(..), until)) => (until, None),
                    // Its end comes by the stream.
                    Ok((Found::Ended(_, Told::NotYet), until)) => (until, None),
                    Ok((Found::Ended(cause, Told::Yes), until)) => (until, Some(Finish::TokenEnded(cause))),
                    Ok((Found::Rotated, until)) => (until, Some(Finish::TokenRotated)),
                    // It cannot be said since when.
                    Ok((Found::NotFound, _)) => (Some(Millis(0)), Some(Finish::TokenUnknown)),
                    Err(Error::Corrupt { .. }) => (None, None),
                    Err(error) => return Err(error),
                };
                token.seen = Some(Seen { until, finish });
            }
        }
        Ok(())
    }
}
