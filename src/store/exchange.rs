//! Sends one gated script and reads its reply: keys, deadline, connection and required replicas.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Reservation, Store, StoreId,
    error::Error,
    keys::Partition,
    msgpack::Arguments,
    random_u64,
    scripts::{self, Outcome},
};
use crate::{
    redis::{self, Asking, Effect, Node, Priority, Request, Script},
    session::{Cause, Durability, Policy, SessionRef, Subject},
};

/// Servers that must have a write before its reply is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteConcern {
    /// The primary, on this connection.
    Primary(Priority),
    /// The primary and this number of replicas.
    Replicated(u32),
}

impl WriteConcern {
    /// Write concern of a policy.
    pub(super) fn of(policy: &Policy) -> Self {
        match policy.durability {
            Durability::Local => WriteConcern::Primary(Priority::Interactive),
            Durability::Replicated => WriteConcern::Replicated(policy.replicas),
        }
    }
}

/// Keys of a script, and the arguments that all scripts on these keys take.
pub(super) struct ScriptKeys {
    partition: Partition,
    keys: Vec<Bytes>,
    common: Arguments,
    store: StoreId,
}

impl ScriptKeys {
    /// Keys of a script that takes no common arguments.
    pub(super) fn new(partition: Partition, keys: Vec<Bytes>, store: StoreId) -> Self {
        ScriptKeys { partition, keys, common: Arguments::default(), store }
    }

    /// Requires the store in which the id was reserved.
    pub(super) fn in_store(mut self, reserved: Reservation) -> Self {
        if let Reservation::Held { store, .. } = reserved {
            self.store = store;
        }
        self
    }
}

/// Reply of a script: outcome and further values.
pub(super) struct Reply {
    /// First element of the reply.
    pub outcome: Outcome,
    rest: std::vec::IntoIter<redis::Reply>,
}

impl Reply {
    /// Takes the next value. None: there is no more.
    pub(super) fn next(&mut self) -> Option<redis::Reply> {
        self.rest.next()
    }

    /// Takes the next value as a number.
    pub(super) fn number(&mut self) -> Result<u64, Error> {
        self.rest.next().and_then(|value| value.number()).ok_or_else(|| Error::Unexpected("a number is missing".into()))
    }

    /// Takes the next value as a cause.
    pub(super) fn cause(&mut self) -> Result<Cause, Error> {
        let number = self.number()?;
        i64::try_from(number)
            .ok()
            .and_then(Cause::from_number)
            .ok_or_else(|| Error::Unexpected(format!("cause {number}")))
    }

    /// Takes the next value as bytes.
    pub(super) fn bytes(&mut self) -> Result<Bytes, Error> {
        self.rest
            .next()
            .and_then(redis::Reply::bytes)
            .ok_or_else(|| Error::Unexpected("a byte string is missing".into()))
    }
}

/// A script that ran.
struct Run {
    reply: redis::Reply,
    /// Number of replicas that have the write.
    confirmed: u64,
    node: Arc<Node>,
    /// Time at which it was sent.
    sent: Instant,
}

impl Store {
    /// Keys and common arguments of the scripts of one session.
    pub(super) fn session_target(&self, name: &SessionRef) -> ScriptKeys {
        let partition = self.keys.partition_of(&name.id);
        let mut common = Arguments::default();
        common.text("namespace", &name.namespace).text("id", name.id).text("channel", self.keys.channel(partition));
        let keys = vec![
            self.keys.session(name),
            self.keys.due(partition, &name.namespace),
            self.keys.namespaces(partition),
            self.keys.log(partition),
            self.keys.absent(partition),
            self.keys.meta(partition),
        ];
        ScriptKeys { partition, keys, common, store: self.id() }
    }

    /// Keys of the scripts of a subject index.
    pub(super) fn subject_target(&self, subject: &Subject) -> ScriptKeys {
        let partition = self.keys.partition_of_subject(subject);
        ScriptKeys::new(partition, vec![self.keys.subject(subject), self.keys.meta(partition)], self.id())
    }

    /// Keys of a script that uses the meta of a partition only.
    pub(super) fn meta_target(&self, partition: Partition) -> ScriptKeys {
        ScriptKeys::new(partition, vec![self.keys.meta(partition)], self.id())
    }

    /// Runs a script that reads.
    pub(super) async fn read(
        &self,
        script: &'static Script,
        priority: Priority,
        target: ScriptKeys,
        args: &Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let mut gate = Arguments::default();
        gate.text("store", target.store.to_text());
        let (keys, args) = (&target.keys[..], &[Arguments::join([&gate, &target.common, args])][..]);
        let attempt = |node: Arc<Node>, asking| async move {
            let sent = Instant::now();
            let request = Request::Script { script, keys, args };
            let reply = node.send(priority, request, deadline, Effect::Reads, asking).await?;
            Ok(Run { reply, confirmed: 0, node, sent })
        };
        self.reply(script, self.route(target.partition, deadline, attempt).await?).map_err(Error::of_a_read)
    }

    /// Runs a script that may write, with the time after which it must not. Nothing was applied if the script ran too late, or
    /// if Redis had no memory left for it. If the call has time left, sends it once more after each: with the server's clock
    /// from that reply, or after a trim of the logs.
    pub(super) async fn write(
        &self,
        script: &'static Script,
        concern: WriteConcern,
        target: ScriptKeys,
        mut args: Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        if let WriteConcern::Replicated(_) = concern {
            args.flag("durable", true);
        }
        let (target, args) = (&target, &args);
        let (mut was_late, mut was_full) = (false, false);
        loop {
            let attempt = |node, asking| self.write_at(node, script, concern, target, args, deadline, asking);
            let run = match self.route(target.partition, deadline, attempt).await {
                Err(Error::Full) if !was_full && self.trim_requests.trim(deadline).await => {
                    was_full = true;
                    continue;
                }
                run => run?,
            };
            let confirmed = run.confirmed;
            let reply = self.reply(script, run)?;
            // A delete that finds no session writes a tombstone. No other outcome implies a write that could be lost.
            let may_have_written = match reply.outcome {
                Outcome::TooLate if was_late => return Err(Error::Timeout),
                Outcome::TooLate => {
                    was_late = true;
                    continue;
                }
                Outcome::Done | Outcome::Ended => true,
                Outcome::NotFound => script.name == scripts::END.name,
                _ => false,
            };
            return match concern {
                WriteConcern::Replicated(wanted) if may_have_written && confirmed < u64::from(wanted) => {
                    Err(Error::NotReplicated { confirmed, wanted })
                }
                _ => Ok(reply),
            };
        }
    }

    /// Runs a script at this server, with a deadline by its clock.
    #[expect(clippy::too_many_arguments, reason = "all arguments of one call")]
    async fn write_at(
        &self,
        node: Arc<Node>,
        script: &'static Script,
        concern: WriteConcern,
        target: &ScriptKeys,
        args: &Arguments,
        deadline: Instant,
        asking: Asking,
    ) -> Result<Run, redis::Error> {
        let not_after = node.not_after(deadline).await?;
        let mut gate = Arguments::default();
        gate.text("store", target.store.to_text()).number("not_after", not_after).text("nonce", random_u64());
        let args = vec![Arguments::join([&gate, &target.common, args])];
        let sent = Instant::now();
        let (reply, confirmed) = match concern {
            WriteConcern::Primary(priority) => {
                let request = Request::Script { script, keys: &target.keys, args: &args };
                (node.send(priority, request, deadline, Effect::Writes, asking).await?, 0)
            }
            WriteConcern::Replicated(replicas) => {
                node.write_replicated(script, &target.keys, args, replicas, deadline).await?
            }
        };
        Ok(Run { reply, confirmed, node, sent })
    }

    fn reply(&self, script: &Script, run: Run) -> Result<Reply, Error> {
        let Run { reply, node, sent, .. } = run;
        let reply = reply.array().ok_or_else(|| Error::Unexpected(format!("{}: no array", script.name)))?;
        let mut rest = reply.into_iter();
        let number = rest.next().and_then(|value| value.integer());
        let outcome = number.and_then(Outcome::from_number);
        let outcome = outcome.ok_or_else(|| Error::Unexpected(format!("{}: outcome {number:?}", script.name)))?;
        let now = rest
            .next()
            .and_then(|value| value.number())
            .ok_or_else(|| Error::Unexpected("the time is missing".into()))?;
        if outcome == Outcome::StoreChanged {
            return Err(Error::StoreChanged);
        }
        node.note_time(now, sent);
        Ok(Reply { outcome, rest })
    }
}
