//! How long a watch lasts: until the sessions it was opened for have ended.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::{
    session::{Cause, Change, Event, Namespace, Policy, Proof, SessionId, SessionName, Use, View},
    store::{Error, Found, Get, Lane, Store},
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
    /// Until the session of this token has ended: with this cause, once that is known.
    Token {
        id: SessionId,
        proof: Proof,
        ended: Option<Finish>,
    },
}

impl Lifetime {
    /// Notes an ending, and a session that is made anew.
    pub fn note(&mut self, event: &Event, filter: &Filter) {
        let name = &event.session.name;
        if name.namespace != filter.namespace {
            return;
        }
        match (self, event.change) {
            (Lifetime::Unlimited, _) | (_, Change::Updated) => {}
            (Lifetime::Ids(alive), Change::Ended(_)) => {
                alive.remove(&name.id);
            }
            // An id may be used again once its tombstone's time is over.
            (Lifetime::Ids(alive), Change::Created) => {
                if matches!(&filter.scope, Scope::Ids(ids) if ids.contains(&name.id)) {
                    alive.insert(name.id);
                }
            }
            (Lifetime::Token { id, ended, .. }, change) if *id == name.id => {
                *ended = if let Change::Ended(cause) = change { Some(Finish::TokenEnded(cause)) } else { None };
            }
            (Lifetime::Token { .. }, _) => {}
        }
    }

    /// Whether the watch goes on.
    pub fn check(&mut self) -> Result<(), Finish> {
        match self {
            Lifetime::Unlimited => Ok(()),
            Lifetime::Ids(alive) if alive.is_empty() => Err(Finish::AllEnded),
            Lifetime::Ids(_) => Ok(()),
            Lifetime::Token { ended, .. } => ended.take().map_or(Ok(()), Err),
        }
    }

    /// How many sessions it lasts for; 0 where that is unlimited.
    pub fn sessions(&self) -> usize {
        match self {
            Lifetime::Unlimited => 0,
            Lifetime::Ids(alive) => alive.len(),
            Lifetime::Token { .. } => 1,
        }
    }

    /// Why the session of its token is over; None = it lives, or the watch is not by token.
    pub fn ended(&self) -> Option<&Finish> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token { ended, .. } => ended.as_ref(),
        }
    }

    /// Looks which of the sessions live.
    pub async fn look(&mut self, store: &Store, namespace: &Namespace) -> Result<(), Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let find = async |id: SessionId, proof: Proof| {
            let name = SessionName { namespace: namespace.clone(), id };
            let get = Get { proof, view: View::Basic, use_: Use::DoesNotCount, lane: Lane::Bulk };
            store.get(&name, get, &Policy::default(), deadline).await
        };
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(alive) => {
                let found = alive.clone().into_iter().map(async |id| (id, find(id, Proof::Named).await));
                let mut found = futures_util::stream::iter(found).buffer_unordered(LOOK_AT_ONCE);
                while let Some((id, found)) = found.next().await {
                    match found {
                        Ok(Found::Session(_)) | Err(Error::Corrupt { .. }) => {}
                        Ok(Found::NotFound | Found::Ended(_)) => {
                            alive.remove(&id);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Lifetime::Token { id, proof, ended } => match find(*id, *proof).await {
                Ok(Found::Session(_)) | Err(Error::Corrupt { .. }) => {}
                Ok(Found::Ended(cause)) => *ended = Some(Finish::TokenEnded(cause)),
                Ok(Found::NotFound) => *ended = Some(Finish::TokenUnknown),
                Err(error) => return Err(error),
            },
        }
        Ok(())
    }
}
