//! A subject's sessions as a whole: who may have one more, and ending them all.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::*;
use crate::{
    session::{Millis, Subject},
    store::{Admitted, Condition, Ended, Found, INDEX_PAGE, IndexEntry, Limit},
};

/// Sessions ended, or looked for, at once.
const AT_ONCE: usize = 100;
/// How far ahead of the clock of Redis `created_before` may be.
const AHEAD: u64 = 10_000;

pub struct DeleteAll {
    pub subject: Subject,
    /// Lives on.
    pub except: Option<SessionId>,
    pub cause: Cause,
    pub created_before: Option<Millis>,
}

impl Service {
    /// Adds an id to its subject's index, as the policy's limit allows; what has to make room is ended.
    ///
    /// The order keeps the limit: whoever is admitted ends all but the newest before its own session is made, those
    /// included that are only about to be made. So of the sessions that live the one admitted last has seen all others.
    pub(super) async fn admit(
        &self,
        subject: &Subject,
        id: SessionId,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<(), Error> {
        let (sessions, beyond) = (policy.session_limit, policy.session_limit_policy);
        let mut is_checked = false;
        loop {
            let limit = Limit { sessions, beyond, is_checked };
            match self.store.admit(subject, id, limit, deadline).await? {
                Admitted::LimitReached => return Err(Error::SubjectSessionLimit { limit: sessions }),
                Admitted::Full(entries) => is_checked = self.all_count(subject, entries, policy, deadline).await?,
                Admitted::InPlaceOf(entries) => {
                    let count = entries.len();
                    self.end_entries(subject, entries, Cause::Replaced, None, policy, deadline).await?;
                    if count < INDEX_PAGE {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether all of these count; those that do not are forgotten.
    async fn all_count(
        &self,
        subject: &Subject,
        entries: Vec<IndexEntry>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let looks = entries.into_iter().map(async |entry| {
            let counts = self.store.counts(subject, entry, policy, deadline).await?;
            Ok::<_, store::Error>((!counts).then_some((entry.id, Some(entry.added))))
        });
        let gone: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await?;
        let gone: Vec<_> = gone.into_iter().flatten().collect();
        self.store.forget(subject, gone.iter().copied(), deadline).await?;
        Ok(gone.is_empty())
    }

    /// Ends the sessions of these entries that are the subject's or about to become so, and forgets them; how many lived.
    async fn end_entries(
        &self,
        subject: &Subject,
        entries: Vec<IndexEntry>,
        cause: Cause,
        created_before: Option<Millis>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<u32, Error> {
        let now = self.store.clock(deadline).await?;
        let endings = entries.into_iter().map(async |entry| {
            let name = SessionName { namespace: subject.namespace.clone(), id: entry.id };
            let is_joining = entry.may_be_joining(now);
            let condition = Condition { subject: &subject.name, is_joining, created_before };
            Ok::<_, store::Error>((entry, self.store.end_of(&name, condition, cause, policy, deadline).await?))
        });
        let ended: Vec<_> = stream::iter(endings).buffer_unordered(AT_ONCE).try_collect().await?;
        let gone = ended.iter().filter(|(_, ended)| *ended != Ended::NotMeant);
        self.store.forget(subject, gone.map(|(entry, _)| (entry.id, Some(entry.added))), deadline).await?;
        Ok(ended.iter().filter(|(_, ended)| *ended == Ended::Now).count() as u32)
    }

    /// Ends all sessions of a subject that were there when this was called; how many lived.
    pub async fn delete_all(&self, call: DeleteAll, deadline: Instant) -> Result<u32, Error> {
        let DeleteAll { subject, except, cause, created_before } = call;
        let policy = self.policy(&subject.namespace)?;
        let mut refused = Vec::new();
        let mut refuse = |field: &str, reason: &str| {
            refused.push(Refused { field: field.into(), reason: reason.into() });
        };
        let now = self.store.clock(deadline).await? / 1000;
        if created_before.is_some_and(|before| before.0 > now + AHEAD) {
            refuse("created_before", "must be at most 10 s ahead of the server's clock");
        }
        if let Some(id) = except {
            let name = SessionName { namespace: subject.namespace.clone(), id };
            let found = self.store.look(&name, Proof::Named, View::Basic, deadline).await?;
            if matches!(&found, Found::Session(session, _) if session.subject != subject.name) {
                refuse("except_id", "is not a session of this subject");
            }
        }
        if !refused.is_empty() {
            return Err(Error::Refused(refused));
        }
        // From the oldest on: an entry that is added anew meanwhile comes again.
        let (mut after, mut count) = (0, 0);
        loop {
            let mut entries = self.store.entries_after(&subject, after, deadline).await?;
            let Some(last) = entries.last() else { return Ok(count) };
            after = last.added;
            entries.retain(|entry| Some(entry.id) != except);
            count += self.end_entries(&subject, entries, cause, created_before, policy, deadline).await?;
        }
    }
}
