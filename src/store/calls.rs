//! One typed call per session script: arguments in, outcome out.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Condition, Create, Created, Ended, Expired, Lane, MAX_LABELS, Reserved, Settled, Store, Successor, Update, Updated,
    error::Error,
    exchange::{Answer, Reply},
    msgpack::Arguments,
    record::{self, Corrupt},
    scripts::{self, Outcome, Script},
    subjects::Why,
};
use crate::session::{Cause, Millis, Policy, Proof, RequestId, Revision, Session, SessionName, TokenReuse, Use, View};

/// Of a tombstone where there was no session, or where its subject's index is to forget the id: outlives every create and
/// login that is under way.
const LEAST_TOMBSTONE: Duration = Duration::from_secs(60);

impl Store {
    pub async fn create(
        &self,
        name: &SessionName,
        create: &Create<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Created, Error> {
        let fields = record::fields_of(create.content);
        self.note_sizes(create.content.attributes.values(), &fields);
        let mut args = Arguments::default();
        args.bytes("verifier", create.verifier.as_bytes()).flag("reserved", create.reserved != Reserved::No);
        args.number("idle", create.timeouts.idle).number("absolute", create.timeouts.absolute);
        args.list("fields", flat(&fields).into_iter());
        add_request(&mut args, create.request, policy);
        let target = self.session_target(name).in_store(create.reserved);
        let mut reply = self.write(&scripts::CREATE, Answer::of(policy), target, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Created::Session(self.decode(name, reply.bytes()?)?),
            Outcome::Exists => Created::Exists,
            Outcome::Ended => Created::Ended(self.ended(name, &mut reply)?),
            Outcome::RequestIdReused => Created::RequestIdReused,
            Outcome::NotReserved => Created::NotReserved,
            other => return Err(unexpected(&scripts::CREATE, other)),
        })
    }

    /// Changes a session, and gives it a new token where there is a successor.
    pub async fn update(
        &self,
        name: &SessionName,
        proof: Proof,
        update: &Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Updated, Error> {
        let script = if update.successor.is_some() { &scripts::ROTATE } else { &scripts::UPDATE };
        let args = self.update_arguments(proof, update, policy);
        let target = self.session_target(name).in_store(update.reserved);
        let mut reply = self.write(script, Answer::of(policy), target, args, deadline).await?;
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

    fn update_arguments(&self, proof: Proof, update: &Update<'_>, policy: &Policy) -> Arguments {
        let set = record::set_by(update.patch);
        let removed = record::removed_by(update.patch);
        self.note_sizes(update.patch.set_attributes.values(), &set);
        let mut args = Arguments::default();
        add_proof(&mut args, proof, policy);
        add_touch_interval(&mut args, policy);
        add_request(&mut args, update.request, policy);
        args.list("set", flat(&set).into_iter());
        args.list("remove", removed.iter().map(String::as_bytes));
        args.flag("clear", update.patch.clear_attributes).flag("touch", update.use_ == Use::Counts);
        args.flag("brief", update.view == View::Basic);
        if let Reserved::In { added, .. } = update.reserved {
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

    /// Ends a session for this cause, or leaves a tombstone where there is none.
    pub async fn end(
        &self,
        name: &SessionName,
        proof: Proof,
        cause: Cause,
        request: Option<RequestId>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let mut args = Arguments::default();
        add_proof(&mut args, proof, policy);
        add_request(&mut args, request, policy);
        args.number("cause", cause as u64);
        // As long as its request id has to be known.
        let least = if request.is_some() { policy.retry_window.max(LEAST_TOMBSTONE) } else { LEAST_TOMBSTONE };
        args.number("least_tombstone", millis(least));
        self.end_with(name, args, policy, deadline).await
    }

    /// Ends a session if it is one of the subject's, or leaves a tombstone where there is none.
    pub async fn end_of(
        &self,
        name: &SessionName,
        condition: Condition<'_>,
        cause: Cause,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let mut args = Arguments::default();
        add_tombstone(&mut args, policy);
        args.number("cause", cause as u64).number("least_tombstone", millis(LEAST_TOMBSTONE));
        args.bytes("subject", &record::stored_subject(condition.subject));
        add_joining(&mut args, condition.joining);
        if let Some(Millis(created_before)) = condition.created_before {
            args.number("created_before", created_before);
        }
        self.end_with(name, args, policy, deadline).await
    }

    async fn end_with(
        &self,
        name: &SessionName,
        args: Arguments,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Ended, Error> {
        let target = self.session_target(name);
        let mut reply = self.write(&scripts::END, Answer::of(policy), target, args, deadline).await?;
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

    /// Ends a session whose deadline is over, or that is gone from Redis while its id is still due; no other.
    pub async fn expire(&self, name: &SessionName, policy: &Policy, deadline: Instant) -> Result<Expired, Error> {
        let mut reply = self.end_if_over(name, Arguments::default(), policy, deadline).await?;
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

    /// Makes sure whether a session lives, and whose it is or since then, in us, may be about to become. Where it does not
    /// live, none of that id can come to while the index of its subject forgets it.
    pub async fn settle(
        &self,
        name: &SessionName,
        joining: Option<u64>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Settled, Error> {
        let mut args = Arguments::default();
        args.number("least_tombstone", millis(LEAST_TOMBSTONE));
        add_joining(&mut args, joining);
        let mut reply = self.end_if_over(name, args, policy, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done | Outcome::Ended => {
                self.ended(name, &mut reply)?;
                Settled::Ended
            }
            Outcome::NotDue => {
                let subject = record::subject_of(&reply.bytes()?).map_err(|cause| self.corrupt(name, cause))?;
                Settled::Lives { subject, is_joining: reply.number()? == 1 }
            }
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::SETTLE, other)),
        })
    }

    async fn end_if_over(
        &self,
        name: &SessionName,
        mut args: Arguments,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        add_tombstone(&mut args, policy);
        let answer = Answer::AtOnce(Lane::Bulk);
        self.write(&scripts::SETTLE, answer, self.session_target(name), args, deadline).await
    }

    /// Why a session is over; where this very call ended it, its subject's index is to forget it.
    pub(super) fn ended(&self, name: &SessionName, reply: &mut Reply) -> Result<Cause, Error> {
        let cause = reply.cause()?;
        if let Some(subject) = leaving(reply) {
            self.note_left(name, subject, Why::Ended(Instant::now()));
        }
        Ok(cause)
    }

    pub(super) fn decode(&self, name: &SessionName, fields: Bytes) -> Result<Session, Error> {
        record::decode(name.clone(), fields).map_err(|cause| self.corrupt(name, cause))
    }

    pub(super) fn corrupt(&self, name: &SessionName, cause: Corrupt) -> Error {
        tracing::error!(session = %name, %cause, "record is corrupt");
        self.metrics.corrupt_records.inc();
        Error::Corrupt { name: name.clone(), cause }
    }

    fn note_sizes<'a>(&self, values: impl Iterator<Item = &'a Bytes>, fields: &record::Fields) {
        self.metrics.value_bytes.inc_by(values.map(|value| value.len() as u64).sum());
        let attributes = fields.iter().filter(|(name, _)| name.starts_with("a:"));
        self.metrics.stored_bytes.inc_by(attributes.map(|(_, value)| value.len() as u64).sum());
    }
}

/// Where the reply goes on with a subject, the session has left it.
fn leaving(reply: &mut Reply) -> Option<String> {
    let subject = record::subject_of(&reply.next()?.into_bytes()?).ok()?;
    Some(subject).filter(|subject| !subject.is_empty())
}

fn flat(fields: &record::Fields) -> Vec<&[u8]> {
    fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]).collect()
}

pub(super) fn add_proof(args: &mut Arguments, proof: Proof, policy: &Policy) {
    let Proof::Secret(verifier) = proof else { return };
    args.bytes("proof", verifier.as_bytes()).number("grace", millis(policy.rotation_grace));
    if let Some(renewal) = policy.renewal_timeout {
        args.number("renewal", millis(renewal));
    }
    if policy.token_reuse == TokenReuse::Report {
        args.flag("report", true);
    }
}

/// What a mutation is told of the tombstone it may leave.
pub(super) fn add_tombstone(args: &mut Arguments, policy: &Policy) {
    args.number("tombstone", millis(policy.tombstone));
}

/// That, and what it is told of its request id.
fn add_request(args: &mut Arguments, request: Option<RequestId>, policy: &Policy) {
    add_tombstone(args, policy);
    if let Some(request) = request {
        args.bytes("request", &request.id).bytes("fingerprint", &request.fingerprint);
        args.number("retry_window", millis(policy.retry_window));
    }
}

fn add_joining(args: &mut Arguments, since: Option<u64>) {
    if let Some(since) = since {
        args.number("joining", since);
    }
}

pub(super) fn add_touch_interval(args: &mut Arguments, policy: &Policy) {
    if let Some(interval) = policy.touch_interval {
        args.number("touch_interval", millis(interval));
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

pub(super) fn unexpected(script: &Script, outcome: Outcome) -> Error {
    Error::Unexpected(format!("{}: {outcome:?}", script.name))
}
