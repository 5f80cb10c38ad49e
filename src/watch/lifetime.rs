//! Lifetime of a watch: it closes when the sessions that it was opened for have ended, or its token is not accepted.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use super::response::{CloseReason, RETRY_PAUSE};
use crate::{
    feed::READ_TIMEOUT,
    session::{Change, Credential, Event, Millis, Namespace, Revision, SessionId, SessionRef, View},
    store::{EndLogged, Error, Found, Store, Validity},
};

/// Maximum number of sessions read at the same time.
const CONCURRENT_READS: usize = 100;
/// Time from the end of a token's validity to the check of the token. Also the first pause between two checks.
const MIN_RECHECK_PAUSE: Duration = Duration::from_millis(1);

/// How long a watch stays open.
pub enum Lifetime {
    /// Until the client cancels it or the server closes it.
    Unlimited,
    /// Until all of these sessions have ended.
    Ids(IdsLifetime),
    /// Until this token is not accepted any more.
    Token(TokenLifetime),
}

/// Lifetime of a watch by ids: until all sessions have ended and their ENDED events were delivered.
pub struct IdsLifetime {
    ids: Arc<HashSet<SessionId>>,
    /// Sessions that live, or whose ENDED event is still to come. None: unknown, to be read.
    alive: Option<HashSet<SessionId>>,
}

impl IdsLifetime {
    /// A lifetime of these sessions. Call [`Lifetime::refresh`] to read which of them live.
    pub fn new(ids: Arc<HashSet<SessionId>>) -> Self {
        IdsLifetime { ids, alive: None }
    }

    fn note(&mut self, id: SessionId, change: Change) {
        match (change, &mut self.alive) {
            (Change::Ended(_), Some(alive)) => drop(alive.remove(&id)),
            // An id can be used again after its tombstone has expired.
            (Change::Created, Some(alive)) if self.ids.contains(&id) => drop(alive.insert(id)),
            (Change::Created | Change::Ended(_), _) => {}
            (Change::Updated | Change::Rotated | Change::TokenReused, _) => {}
        }
    }
}

/// Lifetime of a watch by token: until the token is not accepted any more.
pub struct TokenLifetime {
    id: SessionId,
    credential: Credential,
    /// Status at the last check. None: unknown, to be read.
    status: Option<TokenStatus>,
}

/// What the last check of a token found.
struct TokenStatus {
    /// Time until which the token is or was valid, in ms since the epoch, Redis clock. None: it has no successor.
    valid_until: Option<Millis>,
    /// Whether the validity was over at the check.
    is_over: bool,
    /// Why the token is not accepted any more. None: it is accepted.
    close_reason: Option<CloseReason>,
    /// Time before the check.
    checked_at: Instant,
    /// Minimum time between this check and the next. Doubles while the result stays the same.
    recheck_pause: Duration,
}

impl TokenLifetime {
    /// A lifetime of the token with this credential. Call [`Lifetime::refresh`] to read whether it is accepted.
    pub fn new(id: SessionId, credential: Credential) -> Self {
        TokenLifetime { id, credential, status: None }
    }

    fn note(&mut self, change: Change) {
        match (change, &mut self.status) {
            (Change::Created, status) => *status = None,
            // A token that is not accepted stays so.
            (_, None | Some(TokenStatus { close_reason: Some(_), .. })) => {}
            (Change::Ended(cause), Some(status)) => status.close_reason = Some(CloseReason::TokenEnded(cause)),
            (Change::Rotated, status) => *status = None,
            // A login ends every grace period.
            (Change::Updated, status) if status.as_ref().is_some_and(|status| status.valid_until.is_some()) => {
                *status = None;
            }
            (Change::Updated | Change::TokenReused, _) => {}
        }
    }

    /// Whether the token was valid when the change of this revision was made, which was received at `received_at`. None:
    /// unknown, the status must be read first.
    ///
    /// A revision is the time of the change, or later if the clock of Redis was set back: one within the validity proves
    /// that the change was, too. For a later one the clock of Redis decides, in a check after the change was received.
    fn was_valid_at(&self, revision: Revision, received_at: Instant) -> Option<bool> {
        let status = self.status.as_ref()?;
        match status.valid_until {
            Some(until) if revision.0 / 1000 >= until.0 => match status.is_over {
                _ if status.checked_at < received_at => None,
                false => Some(true),
                // Not closed: the end of the session is still to come.
                true => status.close_reason.as_ref().map(|_| false),
            },
            _ => Some(true),
        }
    }
}

impl Lifetime {
    /// Notes an event of the stream: the end of a session, its creation, or a change of its tokens.
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

    /// Discards the result of the last check, so that the sessions are read again.
    pub fn invalidate(&mut self) {
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(ids) => ids.alive = None,
            Lifetime::Token(token) => token.status = None,
        }
    }

    /// Fails with the reason if the watch must be closed.
    pub fn check(&mut self) -> Result<(), CloseReason> {
        match self {
            Lifetime::Unlimited => Ok(()),
            Lifetime::Ids(ids) if ids.alive.as_ref().is_some_and(HashSet::is_empty) => Err(CloseReason::AllEnded),
            Lifetime::Ids(_) => Ok(()),
            Lifetime::Token(token) => {
                let close_reason = token.status.as_mut().and_then(|status| status.close_reason.take());
                close_reason.map_or(Ok(()), Err)
            }
        }
    }

    /// Whether the event, which was received at `received_at`, may be delivered: events after the end of the token's
    /// validity are not. False: unknown, call [`Lifetime::refresh`] first.
    pub fn covers(&mut self, event: &Event, received_at: Instant) -> Result<bool, CloseReason> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => Ok(true),
            Lifetime::Token(token) => match token.was_valid_at(event.revision, received_at) {
                Some(false) => self.check().map(|()| false),
                known => Ok(known.is_some()),
            },
        }
    }

    /// Time until [`Lifetime::refresh`] is due. None: not before the next event.
    pub fn next_check(&self, store: &Store) -> Option<Duration> {
        match self {
            Lifetime::Unlimited => None,
            Lifetime::Ids(ids) => ids.alive.is_none().then_some(Duration::ZERO),
            Lifetime::Token(token) => {
                let Some(status) = &token.status else { return Some(Duration::ZERO) };
                let until = status.valid_until?.0 * 1000;
                let left = match store.now_at(store.partition_of(&token.id)) {
                    Some(now) => Duration::from_micros(until.saturating_sub(now)) + MIN_RECHECK_PAUSE,
                    None => RETRY_PAUSE,
                };
                Some(left.max(status.recheck_pause.saturating_sub(status.checked_at.elapsed())))
            }
        }
    }

    /// Whether no end of a session, or of the token's validity, is known from the last check or an event since then.
    /// True as well before the first check.
    pub fn all_alive(&self) -> bool {
        match self {
            Lifetime::Unlimited => true,
            Lifetime::Ids(ids) => ids.alive.as_ref().is_none_or(|alive| alive.len() == ids.ids.len()),
            Lifetime::Token(_) => self.token_close_reason().is_none(),
        }
    }

    /// Sessions of a watch by ids that are known to have ended, in order.
    pub fn ended_ids(&self) -> Vec<SessionId> {
        let Lifetime::Ids(IdsLifetime { ids, alive: Some(alive) }) = self else { return Vec::new() };
        let mut ended: Vec<_> = ids.difference(alive).copied().collect();
        ended.sort_unstable();
        ended
    }

    /// Why the token is not accepted any more. None: it is accepted, or the watch is not by token.
    pub fn token_close_reason(&self) -> Option<&CloseReason> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(token) => token.status.as_ref()?.close_reason.as_ref(),
        }
    }

    /// Credential of the token. None: the watch is not by token.
    pub fn credential(&self) -> Option<Credential> {
        match self {
            Lifetime::Unlimited | Lifetime::Ids(_) => None,
            Lifetime::Token(token) => Some(token.credential),
        }
    }

    /// Reads from the store which of the sessions live, or whether the token is accepted.
    pub async fn refresh(&mut self, store: &Store, namespace: &Namespace) -> Result<(), Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let name_of = |id: SessionId| SessionRef { namespace: namespace.clone(), id };
        match self {
            Lifetime::Unlimited => {}
            Lifetime::Ids(ids) => {
                let reads = ids.ids.iter().copied().map(async |id| {
                    let is_alive = is_alive(store, &name_of(id), deadline).await?;
                    Ok::<_, Error>(is_alive.then_some(id))
                });
                let mut reads = futures_util::stream::iter(reads).buffer_unordered(CONCURRENT_READS);
                let mut alive = HashSet::new();
                while let Some(id) = reads.next().await {
                    alive.extend(id?);
                }
                ids.alive = Some(alive);
            }
            Lifetime::Token(token) => {
                let checked_at = Instant::now();
                let found = store.peek_with_validity(&name_of(token.id), token.credential, deadline).await;
                let (Validity { until: valid_until, is_over }, close_reason) = match found {
                    Ok((Found::Live(_), validity)) => (validity, None),
                    // The ENDED event is still to come.
                    Ok((Found::Ended(_, EndLogged::NotYet), validity)) => (validity, None),
                    Ok((Found::Ended(cause, EndLogged::Yes), validity)) => {
                        (validity, Some(CloseReason::TokenEnded(cause)))
                    }
                    Ok((Found::Rotated, validity)) => (validity, Some(CloseReason::TokenRotated)),
                    // The time of the end is unknown: no event may be delivered.
                    Ok((Found::NotFound, _)) => {
                        (Validity { until: Some(Millis(0)), is_over: true }, Some(CloseReason::TokenUnknown))
                    }
                    Err(Error::Corrupt { .. }) => (Validity { until: None, is_over: false }, None),
                    Err(error) => return Err(error),
                };
                let recheck_pause = match &token.status {
                    Some(status) if status.valid_until == valid_until => (status.recheck_pause * 2).min(RETRY_PAUSE),
                    _ => MIN_RECHECK_PAUSE,
                };
                token.status = Some(TokenStatus { valid_until, is_over, close_reason, checked_at, recheck_pause });
            }
        }
        Ok(())
    }
}

/// Whether a session lives, or its ENDED event is still to come.
async fn is_alive(store: &Store, name: &SessionRef, deadline: Instant) -> Result<bool, Error> {
    match store.peek(None, name, Credential::Id, View::Basic, deadline).await {
        Ok(Found::Live(_) | Found::Ended(_, EndLogged::NotYet)) | Err(Error::Corrupt { .. }) => Ok(true),
        Ok(Found::Ended(_, EndLogged::Yes) | Found::Rotated) => Ok(false),
        // In the due set without a key: deleted out of band, and its ENDED event is still to come.
        Ok(Found::NotFound) => store.is_due(name, deadline).await,
        Err(error) => Err(error),
    }
}
