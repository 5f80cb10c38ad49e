//! Operations on all sessions of a subject: admission below the session limit, and ending all of them.

use futures_util::{StreamExt, stream};

use super::*;
use crate::{
    session::{Millis, Subject},
    store::{Admitted, Condition, Ended, Found, INDEX_PAGE, IndexEntry, Limit, Reservation},
    tasks::run_to_end,
};

/// Maximum number of sessions that are ended at the same time.
const CONCURRENT_ENDS: usize = 100;
/// Maximum number of sessions of a subject that DeleteSubjectSessions reads at once.
const READ_AT_ONCE: usize = 10_000;
/// Maximum time by which `created_before` may be ahead of the Redis clock, in milliseconds.
const MAX_AHEAD: u64 = 10_000;

/// Request of DeleteSubjectSessions.
pub struct DeleteSubjectSessions {
    /// Subject whose sessions end.
    pub subject: Authorized<Subject>,
    /// Id of a session that lives on. None: all end.
    pub except: Option<SessionId>,
    /// Cause of the end.
    pub cause: Cause,
    /// Time before which a session must have been created to end. None: sessions of any age end.
    pub created_before: Option<Millis>,
}

/// Result of reserving an id in a subject index.
pub(super) struct Admission {
    /// Reservation of the id.
    pub reservation: Reservation,
    /// Whether other sessions were ended to make room. If a later step fails, the call has been applied in part.
    pub others_ended: bool,
}

impl Admission {
    /// Returns an admission that ended no other session.
    pub(super) fn new(reservation: Reservation) -> Self {
        Admission { reservation, others_ended: false }
    }

    /// Returns the error of the call if the step that follows this admission failed.
    pub(super) fn error_of_next_step(&self, error: store::Error) -> Error {
        Error::Store(if self.others_ended { error.after_a_part() } else { error })
    }
}

/// Which sessions of a subject [`Service::end_entries`] ends, and with which cause.
#[derive(Clone, Copy)]
struct EndRequest<'a> {
    subject: &'a Subject,
    cause: Cause,
    /// Time before which a session must have been created to end. None: sessions of any age end.
    created_before: Option<Millis>,
    policy: &'a Policy,
    deadline: Instant,
}

/// Result of ending some sessions of a subject.
#[derive(Default)]
struct EndResult {
    /// Number of live sessions that were ended.
    count: u32,
    /// Whether a session may have been ended, or an id kept from being created.
    may_be_applied: bool,
    /// First error. None: every step succeeded.
    error: Option<store::Error>,
}

impl EndResult {
    /// Adds the result of later steps.
    fn add(&mut self, later: EndResult) {
        self.count += later.count;
        self.may_be_applied |= later.may_be_applied;
        self.error = self.error.take().or(later.error);
    }

    /// Returns the error of the call if this step of it failed.
    fn error_of_step(&self, error: store::Error) -> store::Error {
        if self.may_be_applied { error.after_a_part() } else { error }
    }
}

impl Service {
    /// Reserves an id in the subject index, later than `after` (microseconds, Redis clock), within the session limit of
    /// the policy. Ends the sessions that have to make room.
    ///
    /// The order keeps the limit: an admitted call ends all but the newest entries before its own session is created,
    /// including sessions that are only reserved. So the live session that was admitted last has seen all others.
    pub(super) async fn admit(
        &self,
        subject: &Subject,
        id: SessionId,
        after: u64,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Admission, Error> {
        let (sessions, beyond) = (policy.session_limit, policy.session_limit_policy);
        let request = EndRequest { subject, cause: Cause::Replaced, created_before: None, policy, deadline };
        let mut admission = Admission::new(Reservation::Missing);
        let mut is_checked = false;
        loop {
            let limit = Limit { sessions, beyond, is_checked };
            let admitted = self.store.reserve(subject, id, after, limit, deadline).await;
            match admitted.map_err(|error| admission.error_of_next_step(error))? {
                Admitted::LimitReached => return Err(Error::SubjectSessionLimit { limit: sessions }),
                Admitted::Full(mut entries) => {
                    // An earlier attempt may have added this id. The next attempt replaces that entry.
                    entries.retain(|entry| entry.id != id);
                    let dead = self.store.remove_dead(subject, &entries, policy, deadline).await;
                    is_checked = dead.map_err(|error| admission.error_of_next_step(error))? == 0;
                }
                Admitted::InPlaceOf(entries, reservation) => {
                    admission.reservation = reservation;
                    let result = self.end_entries(&entries, request).await;
                    admission.others_ended |= result.may_be_applied;
                    result.error.map_or(Ok(()), |error| Err(admission.error_of_next_step(error)))?;
                    if entries.len() < INDEX_PAGE {
                        return Ok(admission);
                    }
                }
            }
        }
    }

    /// Ends the sessions of these entries that belong to the subject or are about to, and removes the entries without a
    /// session from the index. Continues after an error, so that a retry has less to do.
    async fn end_entries(&self, entries: &[IndexEntry], request: EndRequest<'_>) -> EndResult {
        let EndRequest { subject, cause, created_before, policy, deadline } = request;
        let now = match self.store.now() {
            Ok(now) => now,
            Err(error) => return EndResult { error: Some(error), ..EndResult::default() },
        };
        let ends = entries.iter().copied().map(async |entry| {
            let name = SessionRef { namespace: subject.namespace.clone(), id: entry.id };
            let condition =
                Condition { subject: &subject.name, reserved_since: entry.reserved_since(now), created_before };
            let _forget = self.forget_after_write(&name);
            (entry, self.store.end_of(&name, condition, cause, policy, deadline).await)
        });
        let ended: Vec<_> = stream::iter(ends).buffer_unordered(CONCURRENT_ENDS).collect().await;
        let mut result = EndResult::default();
        let mut removable = Vec::new();
        for (entry, ended) in ended {
            let is_removable = match &ended {
                Ok(Ended::Now | Ended::Before) => true,
                // The session does not belong to the subject and is not about to. With `created_before` it may have
                // been kept for its age instead.
                Ok(Ended::NotMeant) => created_before.is_none(),
                Ok(Ended::RequestIdReused) | Err(_) => false,
            };
            if is_removable {
                removable.push((entry.id, Some(entry.added)));
            }
            match ended {
                Ok(ended) => {
                    result.count += u32::from(ended == Ended::Now);
                    result.may_be_applied |= matches!(ended, Ended::Now | Ended::Before);
                }
                Err(error) => {
                    result.may_be_applied |= !error.applied_nothing();
                    result.error = result.error.or(Some(error));
                }
            }
        }
        if let Err(error) = self.store.remove(subject, removable.into_iter(), deadline).await {
            // The sessions have ended all the same.
            tracing::debug!(%error, "cannot remove ended sessions from the subject index; left to the reconciler");
        }
        result
    }

    /// Ends all sessions that the subject had when the call began, also if the client gives up. Returns the number of live
    /// sessions that were ended.
    pub async fn delete_subject_sessions(&self, call: DeleteSubjectSessions, deadline: Instant) -> Result<u32, Error> {
        let service = self.clone();
        run_to_end(async move { service.delete_in_steps(call, deadline).await }).await
    }

    async fn delete_in_steps(&self, call: DeleteSubjectSessions, deadline: Instant) -> Result<u32, Error> {
        let policy = self.policy(&call.subject.namespace)?;
        let violations = self.delete_violations(&call, deadline).await?;
        if !violations.is_empty() {
            return Err(Error::Violations(violations));
        }
        let DeleteSubjectSessions { subject, except, cause, created_before } = &call;
        let request = EndRequest { subject, cause: *cause, created_before: *created_before, policy, deadline };
        // Entries that are added later belong to later logins, which would keep the call from ending. A concurrent create with the
        // id of a live session adds its entry again: one read at once misses none of these.
        let mut entries = self.store.entries_after(None, subject, 0, None, READ_AT_ONCE, deadline).await?;
        let until = match entries.len() {
            READ_AT_ONCE => {
                self.store.entries_before(None, subject, None, 1, deadline).await?.first().map(|last| last.added)
            }
            _ => None,
        };
        let mut total = EndResult::default();
        while let Some(after) = entries.last().map(|entry| entry.added) {
            entries.retain(|entry| Some(entry.id) != *except);
            total.add(self.end_entries(&entries, request).await);
            let Some(until) = until else { break };
            let next = self.store.entries_after(None, subject, after, Some(until), INDEX_PAGE, deadline).await;
            entries = next.map_err(|error| total.error_of_step(error))?;
        }
        match total.error.take() {
            Some(error) => Err(total.error_of_step(error).into()),
            None => Ok(total.count),
        }
    }

    /// Returns the fields of the call that do not fit the Redis clock or the stored sessions.
    async fn delete_violations(
        &self,
        call: &DeleteSubjectSessions,
        deadline: Instant,
    ) -> Result<Vec<Violation>, Error> {
        let mut violations = Vec::new();
        let mut add = |field: &str, reason: &str| {
            violations.push(Violation { field: field.into(), reason: reason.into() });
        };
        let latest = self.store.now()? / 1000 + MAX_AHEAD;
        if call.created_before.is_some_and(|before| before.0 > latest) {
            add("created_before", "must be at most 10 s ahead of the server's clock");
        }
        if let Some(id) = call.except {
            let name = SessionRef { namespace: call.subject.namespace.clone(), id };
            let found = self.store.peek(None, &name, Credential::Id, View::Basic, deadline).await?;
            if matches!(&found, Found::Live(live) if live.session.basic.subject() != call.subject.name) {
                add("except_id", "is not a session of this subject");
            }
        }
        Ok(violations)
    }
}
