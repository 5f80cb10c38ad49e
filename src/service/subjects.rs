//! A subject's sessions as a whole: who may have one more, and ending them all.

use futures_util::{StreamExt, stream};

use super::*;
use crate::{
    session::{Millis, Subject},
    store::{Admitted, Condition, Ended, Found, INDEX_PAGE, IndexEntry, Limit, Reserved},
};

/// Sessions ended at once.
const AT_ONCE: usize = 100;
/// How far ahead of the clock of Redis `created_before` may be, in ms.
const AHEAD: u64 = 10_000;

pub struct DeleteAll {
    pub subject: Subject,
    /// Lives on.
    pub except: Option<SessionId>,
    pub cause: Cause,
    pub created_before: Option<Millis>,
}

/// A place in a subject's index.
pub(super) struct Place {
    pub reserved: Reserved,
    /// Whether others were ended to make room: what fails afterwards has been applied in part.
    pub others_ended: bool,
}

impl Place {
    pub fn none(reserved: Reserved) -> Self {
        Place { reserved, others_ended: false }
    }

    /// The failure of a step for which this place was taken.
    pub fn failure(&self, error: store::Error) -> Error {
        Error::Store(if self.others_ended { error.after_a_part() } else { error })
    }
}

/// What came of ending some sessions.
#[derive(Default)]
struct Endings {
    /// How many lived.
    count: u32,
    failure: Option<store::Error>,
}

/// Whose sessions are ended, and how.
#[derive(Clone, Copy)]
struct Ends<'a> {
    subject: &'a Subject,
    cause: Cause,
    created_before: Option<Millis>,
    policy: &'a Policy,
    deadline: Instant,
}

impl Service {
    /// Adds an id to its subject's index, later than `after`, in us, as the policy's limit allows; what has to make room is
    /// ended.
    ///
    /// The order keeps the limit: whoever is admitted ends all but the newest before its own session is made, those
    /// included that are only about to be made. So of the sessions that live the one admitted last has seen all others.
    pub(super) async fn admit(
        &self,
        subject: &Subject,
        id: SessionId,
        after: u64,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Place, Error> {
        let (sessions, beyond) = (policy.session_limit, policy.session_limit_policy);
        let ends = Ends { subject, cause: Cause::Replaced, created_before: None, policy, deadline };
        let mut place = Place::none(Reserved::No);
        let mut is_checked = false;
        loop {
            let limit = Limit { sessions, beyond, is_checked };
            let admitted = self.store.admit(subject, id, after, limit, deadline).await;
            match admitted.map_err(|error| place.failure(error))? {
                Admitted::LimitReached => return Err(Error::SubjectSessionLimit { limit: sessions }),
                Admitted::Full(mut entries) => {
                    // Its own, of an attempt before this one, is about to be added anew.
                    entries.retain(|entry| entry.id != id);
                    let dead = self.store.forget_dead(subject, &entries, policy, deadline).await;
                    is_checked = dead.map_err(|error| place.failure(error))? == 0;
                }
                Admitted::InPlaceOf(entries, reserved) => {
                    place.reserved = reserved;
                    place.others_ended |= !entries.is_empty();
                    let ended = self.end_entries(&entries, ends).await;
                    ended.failure.map_or(Ok(()), |error| Err(place.failure(error)))?;
                    if entries.len() < INDEX_PAGE {
                        return Ok(place);
                    }
                }
            }
        }
    }

    /// Ends the sessions of these entries that are the subject's or about to become so, and forgets the entries that stand
    /// for none any more. Goes on after a failure, so that a repeat has the less to do.
    async fn end_entries(&self, entries: &[IndexEntry], ends: Ends<'_>) -> Endings {
        let Ends { subject, cause, created_before, policy, deadline } = ends;
        let now = match self.store.clock(deadline).await {
            Ok(now) => now,
            Err(error) => return Endings { count: 0, failure: Some(error) },
        };
        let endings = entries.iter().copied().map(async |entry| {
            let name = SessionName { namespace: subject.namespace.clone(), id: entry.id };
            let condition = Condition { subject: &subject.name, joining: entry.joining(now), created_before };
            (entry, self.store.end_of(&name, condition, cause, policy, deadline).await)
        });
        let ended: Vec<_> = stream::iter(endings).buffer_unordered(AT_ONCE).collect().await;
        let mut all = Endings::default();
        let mut gone = Vec::new();
        for (entry, ended) in ended {
            let stands_for_none = match &ended {
                Ok(Ended::Now | Ended::Before) => true,
                // It is not the subject's, nor about to become so; unless it is spared for its age.
                Ok(Ended::NotMeant) => created_before.is_none(),
                Ok(Ended::RequestIdReused) | Err(_) => false,
            };
            if stands_for_none {
                gone.push((entry.id, Some(entry.added)));
            }
            match ended {
                Ok(ended) => all.count += u32::from(ended == Ended::Now),
                Err(error) => all.failure = all.failure.or(Some(error)),
            }
        }
        if let Err(error) = self.store.forget(subject, gone.into_iter(), deadline).await {
            // The sessions have ended all the same; the next audit forgets them.
            tracing::debug!(%error, "ended sessions stay in their subject's index for now");
        }
        all
    }

    /// Ends all sessions of a subject that were there when this was called; how many lived.
    pub async fn delete_all(&self, call: DeleteAll, deadline: Instant) -> Result<u32, Error> {
        let policy = self.policy(&call.subject.namespace)?;
        let refused = self.refuses_delete_all(&call, deadline).await?;
        if !refused.is_empty() {
            return Err(Error::Refused(refused));
        }
        let DeleteAll { subject, except, cause, created_before } = &call;
        let ends = Ends { subject, cause: *cause, created_before: *created_before, policy, deadline };
        // From the oldest on: an entry that is added anew meanwhile comes again.
        let (mut after, mut all) = (0, Endings::default());
        loop {
            let entries = self.store.entries_after(subject, after, INDEX_PAGE, deadline).await;
            let part = |error: store::Error| if after > 0 { error.after_a_part() } else { error };
            let mut entries = entries.map_err(part)?;
            let Some(last) = entries.last() else { break };
            after = last.added;
            entries.retain(|entry| Some(entry.id) != *except);
            let ended = self.end_entries(&entries, ends).await;
            all.count += ended.count;
            all.failure = all.failure.or(ended.failure);
        }
        all.failure.map_or(Ok(all.count), |error| Err(error.after_a_part().into()))
    }

    async fn refuses_delete_all(&self, call: &DeleteAll, deadline: Instant) -> Result<Vec<Refused>, Error> {
        let mut refused = Vec::new();
        let mut refuse = |field: &str, reason: &str| {
            refused.push(Refused { field: field.into(), reason: reason.into() });
        };
        let latest = self.store.clock(deadline).await? / 1000 + AHEAD;
        if call.created_before.is_some_and(|before| before.0 > latest) {
            refuse("created_before", "must be at most 10 s ahead of the server's clock");
        }
        if let Some(id) = call.except {
            let name = SessionName { namespace: call.subject.namespace.clone(), id };
            let found = self.store.look(&name, Proof::Named, View::Basic, deadline).await?;
            if matches!(&found, Found::Session(session, _) if session.subject != call.subject.name) {
                refuse("except_id", "is not a session of this subject");
            }
        }
        Ok(refused)
    }
}
