//! Typed calls of the session scripts: packs the arguments, unpacks the reply into an outcome.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Condition, Create, Created, Ended, Expired, MAX_LABELS, Reservation, Settled, Store, Successor, Update, Updated,
    error::Error,
    exchange::{Reply, WriteConcern},
    msgpack::Arguments,
    record::{self, Corrupt},
    scripts::{self, Outcome},
    subjects::Why,
};
use crate::redis::{LONGEST_NOT_AFTER, Priority, Script};
use crate::session::{
    Cause, Credential, Millis, Policy, RequestId, Revision, Session, SessionRef, TokenReuse, Touch, View,
};

/// TTL of a tombstone that a delete writes if there is no session: the longest time that a create can be in flight, plus the
/// tolerated difference between the clocks of two Redis hosts.
const UNKNOWN_ID_TOMBSTONE: Duration = LONGEST_NOT_AFTER.saturating_add(Duration::from_secs(5));
/// Minimum TTL of a tombstone whose id is about to be removed from the subject index. Longer than any create or login in
/// flight at the time of the removal.
const INDEX_TOMBSTONE: Duration = Duration::from_secs(60);

impl Store {
    /// Creates a session.
    pub async fn create(
        &self,
        name: &SessionRef,
        create: &Create<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Created, Error> {
        let fields = record::fields_of(create.content);
        self.note_sizes(create.content.attributes.values(), &fields);
        let mut args = Arguments::default();
        args.bytes("verifier", create.verifier.as_bytes()).flag("reserved", create.reserved != Reservation::Missing);
        args.number("idle", create.timeouts.idle).number("absolute", create.timeouts.absolute);
        args.list("fields", flat(&fields).into_iter());
        add_request(&mut args, create.request, policy);
        let target = self.session_target(name).in_store(create.reserved);
        let mut reply = self.write(&scripts::CREATE, WriteConcern::of(policy), target, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Created::Session(self.decode(name, reply.bytes()?)?),
            Outcome::Exists => Created::Exists,
            Outcome::Ended => Created::Ended(self.ended(name, &mut reply)?),
            Outcome::RequestIdReused => Created::RequestIdReused,
            Outcome::NotReserved => Created::NotReserved,
            other => return Err(unexpected(&scripts::CREATE, other)),
        })
    }

    /// Changes a session; rotates its token if there is a successor.
    pub async fn update(
        &self,
        name: &SessionRef,
        credential: Credential,
        update: &Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Updated, Error> {
        let script = if update.successor.is_some() { &scripts::ROTATE } else { &scripts::UPDATE };
        let args = self.update_arguments(credential, update, policy);
        let target = self.session_target(name).in_store(update.reserved);
        let mut reply = self.write(script, WriteConcern::of(policy), target, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => {
                let fields = reply.bytes()?;
                if let Some(subject) = leaving(&mut reply) {
                    self.note_left(name, subject, Why::Left { at: reply.number()? });
                }
                Updated::Session(self.decode(name, fields)?)
            }
            Outcome::NotFound => Updated::NotFound,
            Outcome::Ended => Updated::Ended(self.ended(name, &mut reply)?),
            Outcome::Rotated => Updated::Rotated,
            Outcome::TokenKnown => Updated::TokenKnown,
            Outcome::NotReserved => Updated::NotReserved { void_until: reply.number()? },
            Outcome::RevisionMismatch => Updated::RevisionMismatch { current: Revision(reply.number()?) },
            Outcome::RequestIdReused => Updated::RequestIdReused,
            Outcome::SubjectChange => Updated::SubjectChange,
            Outcome::TooManyAttributes => Updated::TooManyAttributes { count: reply.number()? },
            Outcome::TooManyLabels => Updated::TooManyLabels { count: reply.number()? },
            Outcome::TooLarge => Updated::TooLarge { bytes: reply.number()? },
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(script, other)),
        })
    }

    fn update_arguments(&self, credential: Credential, update: &Update<'_>, policy: &Policy) -> Arguments {
        let set = record::set_by(update.patch);
        let removed = record::removed_by(update.patch);
        self.note_sizes(update.patch.set_attributes.values(), &set);
        let mut args = Arguments::default();
        add_credential(&mut args, credential, policy);
        add_touch_interval(&mut args, policy);
        add_request(&mut args, update.request, policy);
        args.list("set", flat(&set).into_iter());
        args.list("remove", removed.iter().map(String::as_bytes));
        args.flag("clear", update.patch.clear_attributes).flag("touch", update.touch == Touch::Yes);
        args.flag("brief", update.view == View::Basic);
        if let Reservation::Held { added, .. } = update.reserved {
            args.number("reserved", added);
        }
        args.flag("login", update.patch.is_login());
        args.number("max_attributes", policy.max_attributes as u64).number("max_labels", MAX_LABELS as u64);
        args.number("max_payload", policy.max_payload_bytes as u64);
        if let Some(revision) = update.if_revision {
            args.text("if_revision", revision.0);
        }
        if let Some(subject) = &update.patch.subject {
            args.bytes("subject", &record::stored_subject(subject));
        }
        for (field, timeout) in [("idle", update.timeouts.idle), ("absolute", update.timeouts.absolute)] {
            timeout.map(|ms| args.number(field, ms));
        }
        if let Some(Successor { verifier, grace }) = update.successor {
            args.bytes("successor", verifier.as_bytes()).number("grace_period", millis(grace));
        }
        args
    }

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
        let mut args = Arguments::default();
        add_credential(&mut args, credential, policy);
        add_request(&mut args, request, policy);
        args.number("cause", cause as u64).number("least_tombstone", millis(UNKNOWN_ID_TOMBSTONE));
        self.end_with(name, args, policy, deadline).await
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
        let mut args = Arguments::default();
        add_tombstone(&mut args, policy);
        args.number("cause", cause as u64).number("least_tombstone", millis(INDEX_TOMBSTONE));
        args.bytes("subject", &record::stored_subject(condition.subject));
        add_reserved_since(&mut args, condition.reserved_since);
        if let Some(Millis(created_before)) = condition.created_before {
            args.number("created_before", created_before);
        }
        self.end_with(name, args, policy, deadline).await
    }

    async fn end_with(
        &self,
        name: &SessionRef,
        args: Arguments,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let target = self.session_target(name);
        let mut reply = self.write(&scripts::END, WriteConcern::of(policy), target, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => {
                self.ended(name, &mut reply)?;
                Ended::Now
            }
            Outcome::Ended => {
                self.ended(name, &mut reply)?;
                Ended::Before
            }
            Outcome::NotFound => Ended::Before,
            Outcome::NotMeant => Ended::NotMeant,
            Outcome::RequestIdReused => Ended::RequestIdReused,
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::END, other)),
        })
    }

    /// Ends a session that is past its deadline, or whose key is missing although its id is still in the due set; no other.
    pub async fn expire(&self, name: &SessionRef, policy: &Policy, deadline: Instant) -> Result<Expired, Error> {
        let mut reply = self.end_if_expired(name, Arguments::default(), policy, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => {
                self.ended(name, &mut reply)?;
                Expired::Now
            }
            Outcome::NotDue => Expired::NotDue,
            Outcome::NotFound | Outcome::Ended | Outcome::Corrupt => Expired::Before,
            other => return Err(unexpected(&scripts::SETTLE, other)),
        })
    }

    /// Ends a session that expired, and returns whether it lives and its subject. If it does not live, a tombstone keeps its
    /// id from being created while the caller removes the id from the subject index. `reserved_since` is the time in us of a
    /// reservation that may give the session a subject; None = no reservation.
    pub async fn settle(
        &self,
        name: &SessionRef,
        reserved_since: Option<u64>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Settled, Error> {
        let mut args = Arguments::default();
        args.number("least_tombstone", millis(INDEX_TOMBSTONE));
        add_reserved_since(&mut args, reserved_since);
        let mut reply = self.end_if_expired(name, args, policy, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done | Outcome::Ended => {
                self.ended(name, &mut reply)?;
                Settled::Ended
            }
            Outcome::NotDue => {
                let subject = record::subject_of(&reply.bytes()?).map_err(|cause| self.corrupt(name, cause))?;
                Settled::Lives { subject, is_reserved: reply.number()? == 1 }
            }
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::SETTLE, other)),
        })
    }

    async fn end_if_expired(
        &self,
        name: &SessionRef,
        mut args: Arguments,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        add_tombstone(&mut args, policy);
        let concern = WriteConcern::Primary(Priority::Background);
        self.write(&scripts::SETTLE, concern, self.session_target(name), args, deadline).await
    }

    /// Reads the cause of an end. If this call ended the session, queues the id for removal from the subject index.
    pub(super) fn ended(&self, name: &SessionRef, reply: &mut Reply) -> Result<Cause, Error> {
        let cause = reply.cause()?;
        if let Some(subject) = leaving(reply) {
            self.note_left(name, subject, Why::Ended(Instant::now()));
        }
        Ok(cause)
    }

    pub(super) fn decode(&self, name: &SessionRef, fields: Bytes) -> Result<Session, Error> {
        record::decode(name.clone(), fields).map_err(|cause| self.corrupt(name, cause))
    }

    pub(super) fn corrupt(&self, name: &SessionRef, cause: Corrupt) -> Error {
        crate::observe::error!(session = %name, %cause, "record is corrupt");
        self.metrics.corrupt_records.inc();
        Error::Corrupt { name: name.clone(), cause }
    }

    fn note_sizes<'a>(&self, values: impl Iterator<Item = &'a Bytes>, fields: &record::Fields) {
        let stored = fields.iter().filter(|(name, _)| name.starts_with("a:")).map(|(_, value)| value.len());
        self.metrics.count_attribute_bytes(values.map(Bytes::len).sum(), stored.sum());
    }
}

/// The subject that the session lost, if the reply has one.
fn leaving(reply: &mut Reply) -> Option<String> {
    let subject = record::subject_of(&reply.next()?.bytes()?).ok()?;
    Some(subject).filter(|subject| !subject.is_empty())
}

fn flat(fields: &record::Fields) -> Vec<&[u8]> {
    fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]).collect()
}

pub(super) fn add_credential(args: &mut Arguments, credential: Credential, policy: &Policy) {
    let Credential::Secret(verifier) = credential else { return };
    args.bytes("credential", verifier.as_bytes()).number("grace", millis(policy.rotation_grace));
    if let Some(renewal) = policy.renewal_timeout {
        args.number("renewal", millis(renewal));
    }
    if policy.token_reuse == TokenReuse::Report {
        args.flag("report", true);
    }
}

/// Adds the arguments for the tombstone that a mutation may write.
pub(super) fn add_tombstone(args: &mut Arguments, policy: &Policy) {
    args.number("tombstone", millis(policy.tombstone));
}

/// Adds the arguments for the tombstone and the request id.
fn add_request(args: &mut Arguments, request: Option<RequestId>, policy: &Policy) {
    add_tombstone(args, policy);
    if let Some(request) = request {
        args.bytes("request", &request.id).bytes("fingerprint", &request.fingerprint);
        args.number("retry_window", millis(policy.retry_window));
    }
}

fn add_reserved_since(args: &mut Arguments, since: Option<u64>) {
    if let Some(since) = since {
        args.number("reserved_since", since);
    }
}

pub(super) fn add_touch_interval(args: &mut Arguments, policy: &Policy) {
    if let Some(interval) = policy.touch_interval {
        args.number("touch_interval", millis(interval));
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unexpected(script: &Script, outcome: Outcome) -> Error {
    Error::Unexpected(format!("{}: {outcome:?}", script.name))
}
