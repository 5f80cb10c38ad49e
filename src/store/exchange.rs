//! One gated script sent, and its reply: what it may do, by when, on which connection, and what has to hold afterwards.

use std::sync::Arc;

use bytes::Bytes;
use fred::types::{Key, Value};
use tokio::time::Instant;

use super::{
    Lane, Reserved, Store, StoreId,
    error::{Error, Failure},
    keys::Partition,
    msgpack::Arguments,
    node::{Asking, Effect, Node, Request},
    random_u64,
    scripts::{self, Outcome, Script},
};
use crate::session::{Cause, Durability, Policy, SessionName, Subject};

/// Whom an answer to a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The primary alone.
    AtOnce(Lane),
    /// So many replicas, too.
    Replicated(u32),
}

impl Answer {
    pub fn of(policy: &Policy) -> Self {
        match policy.durability {
            Durability::Local => Answer::AtOnce(Lane::Calls),
            Durability::Replicated => Answer::Replicated(policy.replicas),
        }
    }
}

/// The keys a script is given, and what all scripts on such keys are told.
pub(super) struct Target {
    partition: Partition,
    keys: Vec<Key>,
    common: Arguments,
    store: StoreId,
}

impl Target {
    /// Only in the store in which the id was reserved.
    pub fn in_store(mut self, reserved: Reserved) -> Self {
        if let Reserved::In { store, .. } = reserved {
            self.store = store;
        }
        self
    }
}

/// A reply of a script: its outcome, and what follows.
pub(super) struct Reply {
    pub outcome: Outcome,
    rest: std::vec::IntoIter<Value>,
}

impl Reply {
    /// The next value, if there is one more.
    pub fn next(&mut self) -> Option<Value> {
        self.rest.next()
    }

    pub fn number(&mut self) -> Result<u64, Error> {
        self.rest.next().and_then(|value| value.as_u64()).ok_or_else(|| Error::Unexpected("no number".into()))
    }

    pub fn cause(&mut self) -> Result<Cause, Error> {
        let number = self.number()?;
        Cause::from_number(number as i64).ok_or_else(|| Error::Unexpected(format!("cause {number}")))
    }

    pub fn bytes(&mut self) -> Result<Bytes, Error> {
        self.rest.next().and_then(Value::into_bytes).ok_or_else(|| Error::Unexpected("no bytes".into()))
    }
}

impl Store {
    /// What a script of one session is given.
    pub(super) fn session_target(&self, name: &SessionName) -> Target {
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
        Target { partition, keys, common, store: self.id() }
    }

    /// What a script of a subject's index is given.
    pub(super) fn subject_target(&self, subject: &Subject) -> Target {
        let partition: Partition = self.keys.partition_of_subject(subject);
        let keys = vec![self.keys.subject(subject), self.keys.meta(partition)];
        Target { partition, keys, common: Arguments::default(), store: self.id() }
    }

    /// What a script of the whole store is given.
    pub(super) fn store_target(&self) -> Target {
        let partition = Partition(0);
        Target { partition, keys: vec![self.keys.meta(partition)], common: Arguments::default(), store: self.id() }
    }

    /// Sends a script that reads.
    pub(super) async fn read(
        &self,
        script: &'static Script,
        lane: Lane,
        target: Target,
        args: &Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let mut gate = Arguments::default();
        gate.text("store", target.store.to_text());
        let (keys, args) = (&target.keys[..], &[Arguments::join([&gate, &target.common, args])][..]);
        let attempt = |node: Arc<Node>, asking| async move {
            let sent = Instant::now();
            let request = Request::Script { script, keys, args };
            let reply = node.send(lane, request, deadline, Effect::Reads, asking).await?;
            Ok(self.reply(script, reply, &node, sent)?)
        };
        self.connection.at(target.partition, deadline, attempt).await
    }

    /// Sends a script that may write, with the last moment at which it may. Where that was over when it ran, and the call
    /// still has time, it is sent once more, by the clock that the refusal told.
    pub(super) async fn write(
        &self,
        script: &'static Script,
        answer: Answer,
        target: Target,
        mut args: Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        if let Answer::Replicated(_) = answer {
            args.flag("durable", true);
        }
        let (target, args) = (&target, &args);
        for _ in 0..2 {
            let attempt = |node, asking| self.write_at(node, script, answer, target, args, deadline, asking);
            let (reply, confirmed) = self.connection.at(target.partition, deadline, attempt).await?;
            // A delete that finds nothing leaves a tombstone. Other outcomes tell of no write that could be lost.
            let tells_of_a_write = match reply.outcome {
                Outcome::TooLate => continue,
                Outcome::Done | Outcome::Ended => true,
                Outcome::NotFound => script.name == scripts::END.name,
                _ => false,
            };
            return match answer {
                Answer::Replicated(wanted) if tells_of_a_write && confirmed < u64::from(wanted) => {
                    Err(Error::NotReplicated { confirmed, wanted })
                }
                _ => Ok(reply),
            };
        }
        Err(Error::Timeout)
    }

    /// By the clock of this server; the reply, and how many replicas have what was written.
    #[expect(clippy::too_many_arguments, reason = "all of one call")]
    async fn write_at(
        &self,
        node: Arc<Node>,
        script: &'static Script,
        answer: Answer,
        target: &Target,
        args: &Arguments,
        deadline: Instant,
        asking: Asking,
    ) -> Result<(Reply, u64), Failure> {
        let not_after = node.not_after(deadline).await?;
        let mut gate = Arguments::default();
        gate.text("store", target.store.to_text()).number("not_after", not_after).text("nonce", random_u64());
        let args = vec![Arguments::join([&gate, &target.common, args])];
        let sent = Instant::now();
        let (reply, confirmed) = match answer {
            Answer::AtOnce(lane) => {
                let request = Request::Script { script, keys: &target.keys, args: &args };
                (node.send(lane, request, deadline, Effect::Writes, asking).await?, 0)
            }
            Answer::Replicated(replicas) => {
                node.run_replicated(replicas, script, target.keys.clone(), args, deadline).await?
            }
        };
        Ok((self.reply(script, reply, &node, sent)?, confirmed))
    }

    fn reply(&self, script: &Script, reply: Value, node: &Node, sent: Instant) -> Result<Reply, Error> {
        let Value::Array(reply) = reply else {
            return Err(Error::Unexpected(format!("{}: {:?}", script.name, reply.kind())));
        };
        let mut rest = reply.into_iter();
        let number = rest.next().and_then(|value| value.as_i64());
        let outcome = number.and_then(Outcome::from_number);
        let outcome = outcome.ok_or_else(|| Error::Unexpected(format!("{}: outcome {number:?}", script.name)))?;
        let now = rest.next().and_then(|value| value.as_u64()).ok_or_else(|| Error::Unexpected("no time".into()))?;
        if outcome == Outcome::StoreChanged {
            return Err(Error::StoreChanged);
        }
        node.note_time(now, sent);
        Ok(Reply { outcome, rest })
    }
}
