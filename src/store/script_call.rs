//! Calls of gated scripts: keys, arguments, deadline, connection and required replicas.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    index_entry::Reservation,
    keys::{Partition, SessionKeys},
    random::random_nonce,
    record::ContentArgument,
    replies::{Reply, Values},
    scripts::{self, Outcome},
    store_id::StoreId,
};
use crate::{
    redis::{self, Asking, Effect, Node, OnMigration, Priority, Request, Script},
    session::{Credential, Durability, Policy, RequestId, SessionRef, Subject, TokenReuse, millis},
    tasks::pause_once,
};

/// Servers that must have a write before its reply is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteConcern {
    /// The primary.
    Primary,
    /// The primary and this number of replicas.
    Replicated(u32),
}

impl WriteConcern {
    /// Write concern of a policy.
    pub(super) fn of(policy: &Policy) -> Self {
        match policy.durability {
            Durability::Local => WriteConcern::Primary,
            Durability::Replicated => WriteConcern::Replicated(policy.replicas),
        }
    }
}

/// One call of a gated script.
pub(super) struct ScriptCall {
    partition: Partition,
    keys: Vec<Bytes>,
    /// Store that the caller expects.
    store: StoreId,
    on_migration: OnMigration,
    /// What follows the gate in the first argument.
    credential: Bytes,
    args: Vec<Argument>,
}

enum Argument {
    Fixed(Bytes),
    /// Its first bytes receive the nonce of the send.
    BeginsWithNonce(Bytes),
}

impl ScriptCall {
    /// A call of a script with these keys.
    fn new(partition: Partition, keys: Vec<Bytes>, store: StoreId) -> Self {
        let (on_migration, credential) = (OnMigration::Wait, Bytes::new());
        ScriptCall { partition, keys, store, on_migration, credential, args: Vec::with_capacity(8) }
    }

    /// Sets what the call does while the slot migrates.
    pub(super) fn on_migration(self, on_migration: OnMigration) -> Self {
        ScriptCall { on_migration, ..self }
    }

    /// Requires the store in which the id was reserved.
    pub(super) fn in_store(mut self, reserved: Reservation) -> Self {
        if let Reservation::Held { store, .. } = reserved {
            self.store = store;
        }
        self
    }

    /// Appends an argument.
    pub(super) fn arg(mut self, bytes: impl Into<Bytes>) -> Self {
        self.args.push(Argument::Fixed(bytes.into()));
        self
    }

    /// Appends a number as decimal text.
    pub(super) fn number(self, number: u64) -> Self {
        self.arg(number.to_string())
    }

    /// Appends a number as decimal text; empty if there is none.
    pub(super) fn optional(self, number: Option<u64>) -> Self {
        self.arg(number.map_or_else(String::new, |number| number.to_string()))
    }

    /// Appends id and fingerprint of a request; empty if there is none.
    pub(super) fn request(self, request: Option<RequestId>) -> Self {
        self.arg(request.map_or_else(Vec::new, |request| [&request.id[..], &request.fingerprint[..]].concat()))
    }

    /// Appends a content.
    pub(super) fn content(mut self, content: ContentArgument) -> Self {
        self.args.push(match content {
            ContentArgument::Small(bytes) => Argument::Fixed(bytes),
            ContentArgument::InRecord(bytes) => Argument::BeginsWithNonce(bytes),
        });
        self
    }

    /// The arguments for one send.
    fn args(&self, not_after: u64, nonce: u64) -> Vec<Bytes> {
        let mut gate = BytesMut::with_capacity(64);
        gate.extend_from_slice(self.store.to_text().as_bytes());
        gate.put_u64(not_after);
        gate.put_u64(nonce);
        gate.extend_from_slice(&self.credential);
        let args = self.args.iter().map(|arg| match arg {
            Argument::Fixed(bytes) => bytes.clone(),
            Argument::BeginsWithNonce(bytes) => {
                let mut bytes = BytesMut::from(&bytes[..]);
                bytes[..8].copy_from_slice(&nonce.to_be_bytes());
                bytes.freeze()
            }
        });
        std::iter::once(gate.freeze()).chain(args).collect()
    }
}

/// A script that ran.
struct Run {
    reply: redis::Reply,
    nonce: u64,
    /// Number of replicas that have the write.
    confirmed: u64,
    node: Arc<Node>,
    /// Time at which it was sent.
    sent: Instant,
}

impl Store {
    /// A call of a script of one session, with the arguments that all of them take.
    pub(super) fn session_call(
        &self,
        name: &SessionRef,
        keys: &SessionKeys,
        credential: Credential,
        policy: &Policy,
    ) -> ScriptCall {
        let partition = keys.partition;
        let mut call = ScriptCall::new(partition, self.keys.of_session_script(keys, &name.namespace), self.id());
        if let Credential::Secret(verifier) = credential {
            call.credential = Bytes::copy_from_slice(verifier.as_bytes());
        }
        call.arg(keys.name.clone()).arg(rules(policy)).arg(self.keys.channel(partition))
    }

    /// A call of a script of a subject index.
    pub(super) fn subject_call(&self, subject: &Subject) -> ScriptCall {
        self.partition_call(self.keys.partition_of_subject(subject), vec![self.keys.subject(subject)])
    }

    /// A call of a script of a partition with these keys and the meta.
    pub(super) fn partition_call(&self, partition: Partition, mut keys: Vec<Bytes>) -> ScriptCall {
        keys.push(self.keys.meta(partition));
        ScriptCall::new(partition, keys, self.id())
    }

    /// Runs a script that reads, on a primary.
    pub(super) async fn read(
        &self,
        script: &'static Script,
        call: &ScriptCall,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let (keys, args) = (&call.keys[..], &call.args(0, 0)[..]);
        let attempt = |node: Arc<Node>, asking| async move {
            let sent = Instant::now();
            let request = Request::Script { script, keys, args };
            let reply = node.ask_primary(request, deadline, asking).await?;
            Ok(Run { reply, nonce: 0, confirmed: 0, node, sent })
        };
        reply_of(script, self.route(call.partition, deadline, call.on_migration, attempt).await?)
    }

    /// Runs a script that may write, with the time after which it must not. A call that its client has reset is dropped before.
    /// Nothing was applied if the script ran too late, or if Redis had no memory left for it. If the call has time left, sends
    /// it once more after each: with the server's clock from that reply, or after a trim of the logs.
    pub(super) async fn write(
        &self,
        script: &'static Script,
        concern: WriteConcern,
        call: &ScriptCall,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        pause_once().await;
        let (mut was_late, mut was_full) = (false, false);
        loop {
            let attempt = |node, asking| self.write_at(node, script, concern, call, deadline, asking);
            let run = match self.route(call.partition, deadline, call.on_migration, attempt).await {
                Err(Error::Full) if !was_full && self.trim_requests.trim(deadline).await => {
                    was_full = true;
                    continue;
                }
                run => run?,
            };
            let confirmed = run.confirmed;
            let reply = reply_of(script, run)?;
            // A delete that finds no session writes a tombstone. No other outcome implies a write that could be lost.
            let may_have_written = match reply.outcome {
                // Time has passed that this process did not notice, or the clock of Redis was set forward. The former must not
                // let a write happen that the client has given up.
                Outcome::TooLate if was_late || script.name != scripts::READ.name => return Err(Error::Timeout),
                Outcome::TooLate => {
                    was_late = true;
                    continue;
                }
                Outcome::Done | Outcome::Shared | Outcome::Ended => true,
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
    async fn write_at(
        &self,
        node: Arc<Node>,
        script: &'static Script,
        concern: WriteConcern,
        call: &ScriptCall,
        deadline: Instant,
        asking: Asking,
    ) -> Result<Run, redis::Error> {
        let nonce = random_nonce();
        let args = call.args(node.not_after(deadline)?, nonce);
        let sent = Instant::now();
        let (reply, confirmed) = match concern {
            WriteConcern::Primary => {
                let request = Request::Script { script, keys: &call.keys, args: &args };
                (node.send(Priority::Interactive, request, deadline, Effect::Writes, asking).await?, 0)
            }
            WriteConcern::Replicated(replicas) => {
                node.write_replicated(script, &call.keys, args, replicas, deadline).await?
            }
        };
        Ok(Run { reply, nonce, confirmed, node, sent })
    }

    /// Runs a script without gate on a partition. The script has to be idempotent.
    pub(super) async fn run(
        &self,
        partition: Partition,
        script: &'static Script,
        keys: Vec<Bytes>,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Values, Error> {
        let (keys, args) = (&keys[..], &args[..]);
        let attempt = |node: Arc<Node>, asking| async move {
            let request = Request::Script { script, keys, args };
            node.send(Priority::Interactive, request, deadline, Effect::Writes, asking).await
        };
        Values::of(script, self.route(partition, deadline, OnMigration::Wait, attempt).await?)
    }
}

/// The reply of a gated script that ran. Notes the time of the server in it.
fn reply_of(script: &'static Script, run: Run) -> Result<Reply, Error> {
    let reply = Reply::of(script, run.reply, run.nonce)?;
    run.node.note_time(reply.now_us, run.sent);
    Ok(reply)
}

/// The rules of a policy, as RULES in constants.lua.
fn rules(policy: &Policy) -> Bytes {
    /// Numbers above it are not exact in Lua.
    const NEVER: u64 = 1 << 52;
    let ms = |duration: Option<std::time::Duration>| duration.map_or(NEVER, millis).min(NEVER);
    let touch_interval = policy.touch_interval.map_or(super::record::DEFAULT_TOUCH_INTERVAL_MS, millis);
    let mut rules = BytesMut::with_capacity(42);
    rules.put_u64(ms(Some(policy.rotation_grace)));
    rules.put_u64(ms(policy.renewal_timeout));
    rules.put_u64(touch_interval.min(NEVER));
    rules.put_u64(ms(Some(policy.tombstone)));
    rules.put_u64(ms(Some(policy.retry_window)));
    rules.put_u8((policy.token_reuse == TokenReuse::Report).into());
    rules.put_u8((policy.durability == Durability::Replicated).into());
    rules.freeze()
}
