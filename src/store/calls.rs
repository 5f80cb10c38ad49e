//! One typed call per session script: arguments in, outcome out.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use tokio::time::Instant;

use super::{
    Create, Created, Ended, Expired, Found, Get, Lane, MAX_LABELS, Store, Update, Updated,
    connection::Effect,
    error::Error,
    msgpack::Arguments,
    random_u64,
    record::{self, Corrupt},
    scripts::{self, Outcome, Script},
};
use crate::session::{Cause, Policy, Proof, RequestId, Revision, Session, SessionName, Use, View};

/// Tombstone of a delete that found nothing: outlives every create that was under way.
const NOTHING_TOMBSTONE: Duration = Duration::from_secs(60);

/// A reply of a session script: its outcome, and what follows it.
struct Reply {
    outcome: Outcome,
    rest: std::vec::IntoIter<Value>,
}

impl Reply {
    fn number(&mut self) -> Result<u64, Error> {
        self.rest.next().and_then(|value| value.as_u64()).ok_or_else(|| Error::Unexpected("no number".into()))
    }

    fn cause(&mut self) -> Result<Cause, Error> {
        let number = self.number()?;
        Cause::from_number(number as i64).ok_or_else(|| Error::Unexpected(format!("cause {number}")))
    }

    fn fields(&mut self) -> Result<Bytes, Error> {
        self.rest.next().and_then(Value::into_bytes).ok_or_else(|| Error::Unexpected("no fields".into()))
    }
}

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
        args.bytes("proof", create.verifier.as_bytes());
        args.number("idle", create.timeouts.idle).number("absolute", create.timeouts.absolute);
        args.list("fields", flat(&fields).into_iter());
        add_request(&mut args, create.request, policy);
        let mut reply = self.write(&scripts::CREATE, Lane::Calls, name, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Created::Session(self.decode(name, reply.fields()?)?),
            Outcome::Exists => Created::Exists,
            Outcome::Ended => Created::Ended(reply.cause()?),
            Outcome::RequestIdReused => Created::RequestIdReused,
            other => return Err(unexpected(&scripts::CREATE, other)),
        })
    }

    /// Reads a session and, if asked, counts that as a use.
    pub async fn get(&self, name: &SessionName, get: Get, policy: &Policy, deadline: Instant) -> Result<Found, Error> {
        let mut args = Arguments::default();
        add_proof(&mut args, get.proof);
        if get.view == View::Basic {
            args.flag("brief", true);
        }
        let mut reply = match get.use_ {
            Use::DoesNotCount => self.run(&scripts::READ, get.lane, name, &args, None, deadline).await?,
            Use::Counts => {
                args.flag("touch", true);
                add_touch_interval(&mut args, policy);
                self.write(&scripts::TOUCH, get.lane, name, args, deadline).await?
            }
        };
        Ok(match reply.outcome {
            Outcome::Done => Found::Session(self.decode(name, reply.fields()?)?),
            Outcome::NotFound => Found::NotFound,
            Outcome::Ended => Found::Ended(reply.cause()?),
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::READ, other)),
        })
    }

    pub async fn update(
        &self,
        name: &SessionName,
        proof: Proof,
        update: &Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Updated, Error> {
        let set = record::set_by(update.patch);
        let removed = record::removed_by(update.patch);
        self.note_sizes(update.patch.set_attributes.values(), &set);
        let mut args = Arguments::default();
        add_proof(&mut args, proof);
        add_touch_interval(&mut args, policy);
        add_request(&mut args, update.request, policy);
        args.list("set", flat(&set).into_iter());
        args.list("remove", removed.iter().map(String::as_bytes));
        args.flag("clear", update.patch.clear_attributes).flag("touch", update.use_ == Use::Counts);
        args.flag("brief", update.view == View::Basic);
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
        let mut reply = self.write(&scripts::UPDATE, Lane::Calls, name, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Updated::Session(self.decode(name, reply.fields()?)?),
            Outcome::NotFound => Updated::NotFound,
            Outcome::Ended => Updated::Ended(reply.cause()?),
            Outcome::RevisionMismatch => Updated::RevisionMismatch { current: Revision(reply.number()?) },
            Outcome::RequestIdReused => Updated::RequestIdReused,
            Outcome::SubjectChange => Updated::SubjectChange,
            Outcome::TooManyAttributes => Updated::TooManyAttributes { count: reply.number()? },
            Outcome::TooManyLabels => Updated::TooManyLabels { count: reply.number()? },
            Outcome::TooLarge => Updated::TooLarge { bytes: reply.number()? },
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::UPDATE, other)),
        })
    }

    /// Ends a session for this cause.
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
        add_proof(&mut args, proof);
        add_request(&mut args, request, policy);
        args.number("cause", cause as u64);
        // As long as its request id has to be known.
        let nothing = if request.is_some() { policy.retry_window.max(NOTHING_TOMBSTONE) } else { NOTHING_TOMBSTONE };
        args.number("nothing", millis(nothing));
        let reply = self.write(&scripts::END, Lane::Calls, name, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Ended::Now,
            Outcome::NotFound | Outcome::Ended => Ended::Before,
            Outcome::RequestIdReused => Ended::RequestIdReused,
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::END, other)),
        })
    }

    /// Ends a session whose deadline is over, or that is gone from Redis while its id is still due; no other.
    pub async fn expire(&self, name: &SessionName, policy: &Policy, deadline: Instant) -> Result<Expired, Error> {
        let mut args = Arguments::default();
        args.number("tombstone", millis(policy.tombstone));
        let reply = self.write(&scripts::END, Lane::Bulk, name, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => Expired::Now,
            Outcome::NotDue => Expired::NotDue,
            Outcome::NotFound => Expired::Before,
            other => return Err(unexpected(&scripts::END, other)),
        })
    }

    /// Sends a script that may write. Where its time was over when it ran, and the call still has some, it is sent once
    /// more, by the clock that the refusal told.
    async fn write(
        &self,
        script: &'static Script,
        lane: Lane,
        name: &SessionName,
        args: Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        for _ in 0..2 {
            let not_after = self.connection.not_after(deadline).await?;
            let reply = self.run(script, lane, name, &args, Some(not_after), deadline).await?;
            if reply.outcome != Outcome::TooLate {
                return Ok(reply);
            }
        }
        Err(Error::Timeout)
    }

    /// Runs a session script; one that may write is given the last moment at which it may.
    async fn run(
        &self,
        script: &'static Script,
        lane: Lane,
        name: &SessionName,
        args: &Arguments,
        not_after: Option<u64>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let partition = self.keys.partition_of(&name.id);
        let mut common = Arguments::default();
        common.text("store", self.id().to_text()).text("namespace", &name.namespace).text("id", name.id);
        let effect = if not_after.is_some() { Effect::Writes } else { Effect::Reads };
        if let Some(not_after) = not_after {
            common
                .number("not_after", not_after)
                .text("nonce", random_u64())
                .text("channel", self.keys.channel(partition));
        }
        let keys = vec![
            self.keys.session(name),
            self.keys.due(partition, &name.namespace),
            self.keys.namespaces(partition),
            self.keys.log(partition),
            self.keys.meta(partition),
        ];
        let sent = Instant::now();
        let reply = self.connection.run(lane, script, keys, vec![common.join(args)], deadline, effect).await?;
        let mut rest = reply.into_iter();
        let number = rest.next().and_then(|value| value.as_i64());
        let outcome = number.and_then(Outcome::from_number);
        let outcome = outcome.ok_or_else(|| Error::Unexpected(format!("{}: outcome {number:?}", script.name)))?;
        let mut reply = Reply { outcome, rest };
        let now = reply.number()?;
        match outcome {
            Outcome::StoreChanged => return Err(Error::StoreChanged),
            _ => self.connection.note_time(now, sent),
        }
        Ok(reply)
    }

    fn decode(&self, name: &SessionName, fields: Bytes) -> Result<Session, Error> {
        record::decode(name.clone(), fields).map_err(|cause| self.corrupt(name, cause))
    }

    fn corrupt(&self, name: &SessionName, cause: Corrupt) -> Error {
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

fn flat(fields: &record::Fields) -> Vec<&[u8]> {
    fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]).collect()
}

fn add_proof(args: &mut Arguments, proof: Proof) {
    match proof {
        Proof::Named => {}
        Proof::Secret(verifier) => {
            args.bytes("proof", verifier.as_bytes());
        }
    }
}

/// What a mutation is told of its request id, and of the tombstone it may leave.
fn add_request(args: &mut Arguments, request: Option<RequestId>, policy: &Policy) {
    args.number("tombstone", millis(policy.tombstone));
    if let Some(request) = request {
        args.bytes("request", &request.id).bytes("fingerprint", &request.fingerprint);
        args.number("retry_window", millis(policy.retry_window));
    }
}

fn add_touch_interval(args: &mut Arguments, policy: &Policy) {
    if let Some(interval) = policy.touch_interval {
        args.number("touch_interval", millis(interval));
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn unexpected(script: &Script, outcome: Outcome) -> Error {
    Error::Unexpected(format!("{}: {outcome:?}", script.name))
}
