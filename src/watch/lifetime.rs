//! How long a watch lasts: until the sessions it was opened for have ended.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use super::subscription::RETRY;
use crate::{
    session::{Cause, Change, Event, Millis, Namespace, Proof, Revision, SessionId, SessionName, View},
    store::{Error, Found, Store, Told},
};

/// Sessions looked for at once.
const LOOK_AT_ONCE: usize = 100;
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// A token is looked at so much after its time.
const A_LITTLE: Duration = Duration::from_millis(1);

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
    /// Until all of these sessions have ended.
    Ids(IdsLifetime),
    /// Until this token stops being accepted.
    Token(TokenLifetime),
}

/// How long one of these sessions lives, or has its end still to be told.
pub struct IdsLifetime {
    ids: HashSet<SessionId>,
    /// Those that do; None = that is to be looked for.
    alive: Option<HashSet<SessionId>>,
}

impl IdsLifetime {
    pub fn new(ids: HashSet<SessionId>) -> Self {
        IdsLifetime { ids, alive: None }
    }

    fn note(&mut self, id: SessionId, change: Change) {
        match (change, &mut self.alive) {
            (Change::Ended(_), Some(alive)) => drop(alive.remove(&id)),
            // An id may be used again once its tombstone's time is over.
            (Change::Created, Some(alive)) if self.ids.contains(&id) => drop(alive.insert(id)),
            (Change::Created | Change::Ended(_), _) => {}
            (Change::Updated | Change::Rotated | Change::TokenReused, _) => {}
        }
    }
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
    looked_at: Instant,
    /// It is not looked at again before: longer each time that nothing has changed.
    pause: Duration,
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
    pub fn note(&mut self, event: &Event, namespace: &Namespace) {
        let name = &event.session.name;
        if name.namespace != *namespace {
            return;
        }
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(ids) => ids.note(name.id, event.change),
            Lifetime::Token(token) if token.id == name.id => token.note(event.change),
            Lifetime::Token(_) => {}
        }
    }

    /// What was seen of the sessions may not be true any more: it is to be looked for again.
    pub fn forget(&mut self) {
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(ids) => ids.alive = None,
            Lifetime::Token(token) => token.seen = None,
        }
    }

    /// Whether the watch goes on.
    pub fn check(&mut self) -> Result<(), Finish> {
        match self {
            Lifetime::Unlimited => Ok(()),
            Lifetime::Ids(ids) if ids.alive.as_ref().is_some_and(HashSet::is_empty) => Err(Finish::AllEnded),
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

    /// How soon it is to be looked at again; None = not before something happens.
    pub fn look_in(&self, store: &Store) -> Option<Duration> {
        match self {
            Lifetime::Unlimited => None,
            Lifetime::Ids(ids) => ids.alive.is_none().then_some(Duration::ZERO),
            Lifetime::Token(token) => {
                let Some(seen) = &token.seen else { return Some(Duration::ZERO) };
                let until = seen.until?.0 * 1000;
                let left = match store.now_at(store.partition_of(&token.id)) {
                    Some(now) => Duration::from_micros(until.saturating_sub(now)) + A_LITTLE,
                    None => RETRY,
                };
                Some(left.max(seen.pause.saturating_sub(seen.looked_at.elapsed())))
            }
        }
    }

    /// Whether nothing that it is for has ended, as far as was seen.
    pub fn is_whole(&self) -> bool {
        match self {
            Lifetime::Unlimited => true,
            Lifetime::Ids(ids) => ids.alive.as_ref().is_none_or(|alive| alive.len() == ids.ids.len()),
            Lifetime::Token(_) => self.ended().is_none(),
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
            Lifetime::Ids(ids) => {
                let looks = ids.ids.clone().into_iter().map(async |id| {
                    let lives = lives(store, &name_of(id), deadline).await?;
                    Ok::<_, Error>(lives.then_some(id))
                });
                let mut looks = futures_util::stream::iter(looks).buffer_unordered(LOOK_AT_ONCE);
                let mut alive = HashSet::new();
                while let Some(id) = looks.next().await {
                    alive.extend(id?);
                }
                ids.alive = Some(alive);
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
                let pause = match &token.seen {
                    Some(seen) if seen.until == until => (seen.pause * 2).min(RETRY),
                    _ => A_LITTLE,
                };
                token.seen = Some(Seen { until, finish, looked_at: Instant::now(), pause });
            }
        }
        Ok(())
    }
}

/// Whether a session lives, or has its end still to be told.
async fn lives(store: &Store, name: &SessionName, deadline: Instant) -> Result<bool, Error> {
    match store.look(name, Proof::Named, View::Basic, deadline).await {
        Ok(Found::Session(..) | Found::Ended(_, Told::NotYet)) | Err(Error::Corrupt { .. }) => Ok(true),
        Ok(Found::Ended(_, Told::Yes) | Found::Rotated) => Ok(false),
        // It may have vanished behind our back.
        Ok(Found::NotFound) => store.is_due(name, deadline).await,
        Err(error) => Err(error),
    }
}
