//! Changes sessions: merges the content in Rust, and lets the script decide everything else.
//!
//! A change of the content is read, merged and sent with the content position that was read. If another call changed the content
//! in between, the script writes nothing and the call decides again on the new record. With the second conflict the call takes
//! the turn: changes of the content by others wait until it ends.

mod outcome;
mod plan;

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::time::{Instant, sleep};

use super::{
    Store,
    error::Error,
    leaving::LeaveReason,
    random::random_nonce,
    record::{Corrupt, Extent, Kind, Record},
    replies::UpdateReply,
    script_call::WriteConcern,
    scripts,
};
use crate::session::{Credential, Durability, Policy, SessionRef};

pub use outcome::{MAX_LABELS, Successor, Update, Updated};
use plan::{Plan, UpdateCall};

/// Number of conflicts after which a call takes the turn if there is another one.
const CONFLICTS_BEFORE_TURN: u32 = 1;
/// Maximum number of sends with the turn. Others can then be faster only while the turn lapses.
const SENDS_WITH_TURN: u32 = 3;
/// Maximum time of a turn. The same number is in update.lua.
const LONGEST_TURN: Duration = Duration::from_millis(100);
impl Store {
    /// Changes a session; rotates its token if there is a successor.
    pub async fn update(
        &self,
        name: &SessionRef,
        credential: Credential,
        update: &Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Updated, Error> {
        let keys = self.keys.session_keys(name);
        let call = UpdateCall { name, keys, credential, update, policy, deadline };
        if update.patch.is_empty() {
            let reply = self.send_update(&call, None, &Plan::default(), 0).await?;
            return self.updated(&call, None, Plan::default(), reply);
        }
        // A replicated write waits for replicas, and must not make others wait too.
        let _turn = match policy.durability {
            Durability::Local => Some(self.queues.wait(name, deadline).await?),
            Durability::Replicated => None,
        };
        self.update_content(&call).await
    }

    async fn update_content(&self, call: &UpdateCall<'_>) -> Result<Updated, Error> {
        let (mut conflicts, mut turn) = (0, 0);
        let mut record = self.read_record(&call.keys, call.deadline).await?;
        loop {
            // A wrong token costs no merge, which would reveal by its time that the session exists.
            let is_known = |record: &&Record| record.front.kind == Kind::Live && record.front.knows(call.credential);
            let live = record.as_ref().filter(is_known);
            let now_us = self.now_at(call.keys.partition);
            // The script decides first whether the caller may learn that the content is damaged.
            let (mut plan, damage) = match live.map(|record| call.plan(record, now_us)) {
                Some(Ok(plan)) => (plan, None),
                Some(Err(cause)) => (Plan::default(), Some(cause)),
                None => (Plan::default(), None),
            };
            let live = live.filter(|_| damage.is_none());
            if let Some(record) = live
                && call.is_decided_by(record, &plan, now_us)
            {
                if let Some(refusal) = plan.refusal.take() {
                    return Ok(refusal);
                }
                let session = record.session(call.name, &call.keys.name, call.update.view);
                let session = session.map_err(|cause| self.corrupt(call.name, cause))?;
                return Ok(Updated::Session { session, salt: None });
            }
            match self.send_update(call, Some(live), &plan, turn).await? {
                UpdateReply::Conflict(text) if conflicts < CONFLICTS_BEFORE_TURN + SENDS_WITH_TURN => {
                    if let Some(cause) = damage {
                        return Err(self.corrupt(call.name, cause));
                    }
                    conflicts += 1;
                    if conflicts >= CONFLICTS_BEFORE_TURN && turn == 0 {
                        turn = random_nonce() | 1;
                    }
                    record = match text {
                        None => self.read_record(&call.keys, call.deadline).await?,
                        Some(text) => Record::parse(&call.keys.name, &text, Extent::Whole).ok(),
                    };
                }
                UpdateReply::Busy(wait) => {
                    let wait = wait.clamp(Duration::from_millis(1), LONGEST_TURN);
                    if Instant::now() + wait >= call.deadline {
                        return Err(Error::Timeout);
                    }
                    sleep(wait).await;
                    record = self.read_record(&call.keys, call.deadline).await?;
                }
                reply => return self.updated(call, live, plan, reply),
            }
        }
    }

    /// Sends the script. `read` is the record that was read before; None: any record is right.
    async fn send_update(
        &self,
        call: &UpdateCall<'_>,
        read: Option<Option<&Record>>,
        plan: &Plan,
        turn: u64,
    ) -> Result<UpdateReply, Error> {
        let UpdateCall { name, keys, credential, update, policy, deadline } = call;
        let script = if update.successor.is_some() { &scripts::ROTATE } else { &scripts::UPDATE };
        let mut script_call = self.session_call(name, keys, *credential, policy).in_store(update.reserved);
        script_call = script_call.arg(call.change(plan, turn));
        let mut expected = BytesMut::with_capacity(64);
        match read {
            None => {}
            // No live session has this content position.
            Some(None) => expected.put_bytes(0, 26),
            Some(Some(record)) => {
                expected.extend_from_slice(&record.front.content_position());
                expected.put_u16(record.front.tokens().bytes() as u16);
                expected.put_u16(record.front.request_bytes as u16);
                expected.extend_from_slice(&record.front.seal());
            }
        }
        if let Some(content) = &plan.content {
            expected.extend_from_slice(&content.layout(plan.requests));
            self.note_sizes(content);
        }
        script_call = script_call.arg(expected);
        script_call = match (&plan.content, read) {
            (Some(content), Some(Some(record))) => {
                let front_bytes = record.front.bytes_after(*credential, update.keeps_salt());
                script_call.content(content.argument(front_bytes, plan.requests))
            }
            _ => script_call.arg(""),
        };
        script_call = script_call.arg(plan.changes.clone());
        if update.request.is_some() || update.successor.is_some() {
            script_call = script_call.request(update.request);
        }
        if let Some(Successor { verifier, salt, .. }) = &update.successor {
            let mut successor = BytesMut::with_capacity(48);
            successor.extend_from_slice(verifier.as_bytes());
            successor.extend_from_slice(salt.as_ref().map_or(&[], |salt| &salt[..]));
            script_call = script_call.arg(successor);
        }
        UpdateReply::decode(self.write(script, WriteConcern::of(policy), &script_call, *deadline).await?)
    }

    /// Converts the final reply of the script.
    fn updated(
        &self,
        call: &UpdateCall<'_>,
        read: Option<&Record>,
        plan: Plan,
        reply: UpdateReply,
    ) -> Result<Updated, Error> {
        let (name, text) = (call.name, &call.keys.name);
        let is_shared = matches!(reply, UpdateReply::Shared { .. });
        Ok(match reply {
            UpdateReply::Done { record, nonce } | UpdateReply::Shared { record, nonce } => {
                if let Some(refusal) = plan.refusal {
                    return Ok(refusal);
                }
                let corrupt = |cause| self.corrupt(name, cause);
                let record = Record::of_reply(text, &record, read, Extent::of(call.update.view)).map_err(corrupt)?;
                let is_applied = record.front.position.nonce == nonce;
                let session = match plan.content {
                    // The reply to a retry is the current session, without the content of this call.
                    Some(content) if is_applied => call.session_after(&record, content),
                    _ => record.session(name, text, call.update.view).map_err(corrupt)?,
                };
                if let Some(subject) = plan.lost_subject.filter(|_| is_applied) {
                    self.note_left(name, subject, LeaveReason::Left { at: session.revision.0 });
                }
                Updated::Session { session, salt: record.front.tokens().salt().filter(|_| is_shared) }
            }
            UpdateReply::NotFound => Updated::NotFound,
            UpdateReply::Ended(ending) => Updated::Ended(self.note_ended(name, ending)),
            UpdateReply::Rotated => Updated::Rotated,
            UpdateReply::TokenKnown => Updated::TokenKnown,
            UpdateReply::NotReserved { void_until } => Updated::NotReserved { void_until },
            UpdateReply::RevisionMismatch(current) => Updated::RevisionMismatch { current },
            UpdateReply::RequestIdReused => Updated::RequestIdReused,
            UpdateReply::RequestIdLimit(wait) => Updated::RequestIdLimit { wait },
            // The session changes faster than this call can follow.
            UpdateReply::Conflict(_) | UpdateReply::Busy(_) => return Err(Error::Timeout),
            UpdateReply::Corrupt => return Err(self.corrupt(name, Corrupt::Head)),
        })
    }
}
