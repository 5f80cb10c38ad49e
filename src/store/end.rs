//! Ends sessions: on request, at their deadline, and when their key is missing.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    leaving::LeaveReason,
    record::Corrupt,
    replies::{EndReply, Ending, ExpireReply},
    script_call::{ScriptCall, WriteConcern},
    scripts,
};
use crate::{
    redis::LONGEST_NOT_AFTER,
    session::{Basic, Cause, Credential, Millis, Policy, RequestId, SessionRef, encode_subject, millis},
};

/// TTL of a tombstone that a delete writes if there is no session: the longest time that a create can be in flight, plus the
/// tolerated difference between the clocks of two Redis hosts.
const UNKNOWN_ID_TOMBSTONE: Duration = LONGEST_NOT_AFTER.saturating_add(Duration::from_secs(5));
/// Minimum TTL of a tombstone whose id is about to be removed from the subject index. Longer than any create or login in
/// flight at the time of the removal.
const INDEX_TOMBSTONE: Duration = Duration::from_secs(60);

/// Outcome of [`Store::end`] and [`Store::end_of`].
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Ended by this call, or by an earlier call with the same request id.
    Now,
    /// There was no live session.
    Before,
    /// The session lives on: a condition is not met.
    NotMeant,
    /// The request id belongs to another request.
    RequestIdReused,
}

/// Conditions under which [`Store::end_of`] ends a session.
#[derive(Clone, Copy)]
pub struct Condition<'a> {
    /// Required subject.
    pub subject: &'a str,
    /// Time in us of a reservation in the index of the subject: if it is valid, a session without a subject meets the
    /// condition too. None: no reservation.
    pub reserved_since: Option<u64>,
    /// Upper bound of the creation time. None: no bound.
    pub created_before: Option<Millis>,
}

/// Outcome of [`Store::end_if_expired`].
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// The session lives.
    Lives {
        /// Its subject; empty = anonymous.
        subject: String,
        /// Whether it is anonymous and has a valid reservation, so that it may get a subject.
        is_reserved: bool,
    },
    /// The session has ended, and its tombstone outlives every create in flight.
    Ended,
}

/// Outcome of [`Store::expire`].
#[derive(Debug, PartialEq, Eq)]
pub enum Expired {
    /// Ended by this call.
    Now,
    /// The deadline has not passed.
    NotDue,
    /// Another call ended the session.
    Before,
}

impl Store {
    /// Ends a session with this cause. If there is no session, writes a tombstone for [`UNKNOWN_ID_TOMBSTONE`], so that a
    /// create in flight fails.
    pub async fn end(
        &self,
        name: &SessionRef,
        credential: Credential,
        cause: Cause,
        request: Option<RequestId>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let call = self.session_call(name, &self.keys.session_keys(name), credential, policy);
        let call = call.number(cause as u64).number(millis(UNKNOWN_ID_TOMBSTONE)).request(request);
        self.run_end(name, call.arg("").arg("").arg(""), policy, deadline).await
    }

    /// Ends a session if it meets the condition; writes a tombstone if there is no session.
    pub async fn end_of(
        &self,
        name: &SessionRef,
        condition: Condition<'_>,
        cause: Cause,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let call = self.session_call(name, &self.keys.session_keys(name), Credential::Id, policy);
        let call = call.number(cause as u64).number(millis(INDEX_TOMBSTONE)).request(None);
        let call = call.arg(encode_subject(condition.subject)).optional(condition.reserved_since);
        let call = call.optional(condition.created_before.map(|Millis(before)| before));
        self.run_end(name, call, policy, deadline).await
    }

    async fn run_end(
        &self,
        name: &SessionRef,
        call: ScriptCall,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let reply = self.write(&scripts::END, WriteConcern::of(policy), &call, deadline).await?;
        Ok(match EndReply::decode(reply)? {
            EndReply::Done(ending) => {
                self.note_ended(name, ending);
                Ended::Now
            }
            EndReply::Ended(ending) => {
                self.note_ended(name, ending);
                Ended::Before
            }
            EndReply::NotFound => Ended::Before,
            EndReply::NotMeant => Ended::NotMeant,
            EndReply::RequestIdReused => Ended::RequestIdReused,
            EndReply::Corrupt => return Err(self.corrupt(name, Corrupt::Head)),
        })
    }

    /// Ends a session that is past its deadline, or whose key is missing although its id is still in the due set; no other.
    pub async fn expire(&self, name: &SessionRef, policy: &Policy, deadline: Instant) -> Result<Expired, Error> {
        Ok(match self.run_expire(name, None, None, policy, deadline).await? {
            ExpireReply::Done(ending) => {
                self.note_ended(name, ending);
                Expired::Now
            }
            ExpireReply::NotDue { .. } => Expired::NotDue,
            ExpireReply::NotFound | ExpireReply::Ended(_) | ExpireReply::Corrupt => Expired::Before,
        })
    }

    /// Ends a session that expired, and returns whether it lives and its subject. If it does not live, a tombstone keeps its
    /// id from being created while the caller removes the id from the subject index. `reserved_since` is the time in us of a
    /// reservation that may give the session a subject; None = no reservation.
    pub async fn end_if_expired(
        &self,
        name: &SessionRef,
        reserved_since: Option<u64>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Settled, Error> {
        Ok(match self.run_expire(name, Some(millis(INDEX_TOMBSTONE)), reserved_since, policy, deadline).await? {
            ExpireReply::Done(ending) | ExpireReply::Ended(ending) => {
                self.note_ended(name, ending);
                Settled::Ended
            }
            ExpireReply::NotDue { basic, is_reserved } => {
                let basic = Basic::parse(basic).map_err(|_| self.corrupt(name, Corrupt::Basic))?;
                Settled::Lives { subject: basic.subject().to_owned(), is_reserved }
            }
            ExpireReply::Corrupt => return Err(self.corrupt(name, Corrupt::Head)),
            ExpireReply::NotFound => return Err(Error::Unexpected("expire: wrote no tombstone".into())),
        })
    }

    async fn run_expire(
        &self,
        name: &SessionRef,
        least_tombstone: Option<u64>,
        reserved_since: Option<u64>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<ExpireReply, Error> {
        let call = self.session_call(name, &self.keys.session_keys(name), Credential::Id, policy);
        let call = call.optional(least_tombstone).optional(reserved_since);
        ExpireReply::decode(self.write(&scripts::EXPIRE, WriteConcern::Primary, &call, deadline).await?)
    }

    /// Returns the cause of an end. If this call ended the session, queues the id for removal from the subject index.
    pub(super) fn note_ended(&self, name: &SessionRef, ending: Ending) -> Cause {
        if !ending.subject.is_empty() {
            self.note_left(name, ending.subject, LeaveReason::Ended(Instant::now()));
        }
        ending.cause
    }

    pub(super) fn corrupt(&self, name: &SessionRef, cause: Corrupt) -> Error {
        crate::observe::error!(session = %name, %cause, "record is corrupt");
        self.metrics.corrupt_records.inc();
        Error::Corrupt { name: name.clone(), cause }
    }
}
