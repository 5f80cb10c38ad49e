//! Reads sessions: for clients, with the effects of presenting a token; and internally, without any effect.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    keys::{Partition, SessionKeys},
    record::{CommonRead, Corrupt, Extent, Record, RecordCopy, common_read},
    replies::ReadReply,
    script_call::{ScriptCall, WriteConcern},
    scripts,
};
use crate::{
    redis::{self, Effect, MAX_LARGE_REPLY_BYTES, Node, OnMigration, PrimaryReads, Priority, Request},
    session::{Cause, Credential, Millis, Policy, Session, SessionRef, TokenState, Touch, View},
};

/// Number of bytes that a read in the BASIC view requests. Most records have head, tokens and `basic` within them.
const BEGINNING: usize = 2_048;

/// Arguments of [`Store::get`].
#[derive(Clone, Copy)]
pub struct Get {
    /// Token that the caller presents, or none if the caller names the id.
    pub credential: Credential,
    /// Parts of the session to return.
    pub view: View,
    /// Whether the call touches the session.
    pub touch: Touch,
}

/// Outcome of a read.
#[derive(Debug)]
pub enum Found {
    /// A live session.
    Live(Live),
    /// No live session, or the presented token is not one of the session's.
    NotFound,
    /// The session has ended.
    Ended(Cause, EndLogged),
    /// The presented token is superseded and no longer accepted.
    Rotated,
}

/// A live session that was read.
#[derive(Debug)]
pub struct Live {
    /// The session.
    pub session: Session,
    /// State of the presented token.
    pub token_state: TokenState,
    record: Record,
    /// `<namespace>:<id>`.
    text: Bytes,
}

impl Live {
    /// Copies the record into memory of its own. None: a part of it was not read, or is damaged.
    pub fn copy(&self) -> Option<RecordCopy> {
        RecordCopy::of(&self.record, &self.session.name, &self.text).ok()
    }
}

/// Whether the end of a session is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndLogged {
    /// The log has an ENDED entry.
    Yes,
    /// The deadline has passed and no worker has ended the session yet.
    NotYet,
}

/// Result of a read, with the data that decides what follows.
struct ReadResult {
    found: Found,
    validity: Validity,
    /// Whether the presentation is token reuse whose consequences have not been written.
    needs_write: bool,
}

/// Validity of a presented token.
#[derive(Clone, Copy)]
pub struct Validity {
    /// Time until which the token is, or was, accepted. None: no limit.
    pub until: Option<Millis>,
    /// Whether that time is over.
    pub is_over: bool,
}

/// Whether a script may write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effects {
    /// The script writes marks, touches, and the consequences of token reuse.
    Written,
    /// The script writes nothing.
    None,
}

/// A call of the read script.
struct ReadCall<'a> {
    name: &'a SessionRef,
    keys: &'a SessionKeys,
    get: Get,
    policy: &'a Policy,
    /// Record that was read before. None: there was none, or it cannot be read.
    record: Option<&'a Record>,
    /// `Fail` if the caller can do without the script.
    on_migration: OnMigration,
    deadline: Instant,
}

impl Store {
    /// Reads a session for a client, and touches it if asked. Records the first use of a token; token reuse ends the session or
    /// is reported, as the policy says. If Redis refuses writes or the slot is migrating, the read succeeds without the touch
    /// and without the record of the first use: the next presentation writes them.
    pub async fn get(&self, name: &SessionRef, get: Get, policy: &Policy, deadline: Instant) -> Result<Found, Error> {
        let keys = self.keys.session_keys(name);
        // Boxed: most reads do not need the script, but their future would contain its own.
        let present = |record, on_migration| {
            Box::pin(self.present(ReadCall { name, keys: &keys, get, policy, record, on_migration, deadline }))
        };
        // If every touch is due, the script alone does both.
        if get.touch == Touch::Yes && policy.touch_interval == Some(Duration::ZERO) {
            match present(None, OnMigration::Fail).await {
                Err(Error::Migrating(_)) => {}
                done => return done,
            }
        }
        let record = self.read_record(&keys, deadline).await?;
        let now_us = self.now_at(keys.partition);
        let read = record.as_ref().map(|record| common_read(&record.front, get.credential, policy, now_us));
        let (record, token_state) = match (record, read) {
            (Some(record), Some(CommonRead::Accepted { token_state, is_first_use, touch_is_due })) => {
                if is_first_use || get.touch == Touch::Yes && touch_is_due {
                    // After any other error the record answers: the next presentation writes what this one did not.
                    let presented = present(Some(&record), OnMigration::Fail).await;
                    if let Ok(_) | Err(Error::Corrupt { .. }) = presented {
                        return presented;
                    }
                }
                (record, token_state)
            }
            (record, _) => return present(record.as_ref(), OnMigration::Wait).await,
        };
        self.found(name, &keys, record, get.view, token_state)
    }

    /// Reads with the script. While Redis refuses writes or holds them back, the script writes nothing.
    async fn present(&self, call: ReadCall<'_>) -> Result<Found, Error> {
        let partition = call.keys.partition;
        let with_effect = self.read_with_script(&call, Effects::Written);
        let without = || self.read_with_script(&call, Effects::None);
        // The consequences of token reuse are not optional.
        let is_final = |read: &Result<ReadResult, Error>| match read {
            Ok(read) => !read.needs_write,
            Err(error) => matches!(error, Error::Migrating(_)),
        };
        let read = match self.node(partition).read_despite_pause(with_effect, without, is_final).await {
            Err(error) if self.may_read_after(partition, &error) => match without().await {
                Ok(read) if read.needs_write => Err(error),
                read => read,
            },
            read => read,
        };
        match read {
            Ok(read) => Ok(read.found),
            Err(error) => Err(if call.get.touch == Touch::Yes { error } else { error.of_a_read() }),
        }
    }

    /// Whether a server that refused a write with this error may be read. One that lacks replicas may be cut off, and another
    /// one be the primary: only Sentinels or the Cluster can exclude that.
    fn may_read_after(&self, partition: Partition, error: &Error) -> bool {
        match error {
            Error::WritesRefused(reply) => !redis::lacks_replicas(reply) || self.is_confirmed(partition),
            _ => false,
        }
    }

    /// Reads a session without any effect: does not count as presenting the token. `reads` is the page that it is a part of;
    /// None: a single read.
    pub async fn peek(
        &self,
        reads: Option<&PrimaryReads>,
        name: &SessionRef,
        credential: Credential,
        view: View,
        deadline: Instant,
    ) -> Result<Found, Error> {
        Ok(self.read_without_effect(reads, name, credential, view, deadline).await?.found)
    }

    /// Reads a session without any effect, and the validity of the token.
    pub async fn peek_with_validity(
        &self,
        name: &SessionRef,
        credential: Credential,
        deadline: Instant,
    ) -> Result<(Found, Validity), Error> {
        let read = self.read_without_effect(None, name, credential, View::Basic, deadline).await?;
        Ok((read.found, read.validity))
    }

    async fn read_without_effect(
        &self,
        reads: Option<&PrimaryReads>,
        name: &SessionRef,
        credential: Credential,
        view: View,
        deadline: Instant,
    ) -> Result<ReadResult, Error> {
        let keys = self.keys.session_keys(name);
        let (get, policy) = (Get { credential, view, touch: Touch::No }, &Policy::default());
        let record = match view {
            View::Basic => self.read_beginning(reads, &keys, deadline).await?,
            View::Full => self.read_large_record(reads, &keys, deadline).await?,
        };
        if let Some(record) = &record
            && let CommonRead::Accepted { token_state, .. } =
                common_read(&record.front, credential, policy, self.now_at(keys.partition))
        {
            let found = self.found(name, &keys, record.clone(), view, token_state)?;
            return Ok(ReadResult { found, validity: Validity { until: None, is_over: false }, needs_write: false });
        }
        let (record, on_migration) = (record.as_ref(), OnMigration::Wait);
        let call = ReadCall { name, keys: &keys, get, policy, record, on_migration, deadline };
        self.read_with_script(&call, Effects::None).await
    }

    /// Returns the number of sessions to read with [`Store::peek`] at the same time, at most `most`: so many that their
    /// replies are on their way at once. The others would only wait.
    pub fn reads_at_once(&self, view: View, most: usize) -> usize {
        match view {
            View::Basic => most,
            View::Full => (MAX_LARGE_REPLY_BYTES / self.large_reads.expected()).clamp(1, most),
        }
    }

    /// Reads the whole record on the connection for calls. GETEX without options changes nothing, but counts as a write: a
    /// replica, whose data may be old, refuses it. None: there is no record, or it cannot be read; the script finds out.
    pub(super) async fn read_record(&self, keys: &SessionKeys, deadline: Instant) -> Result<Option<Record>, Error> {
        let args = &[keys.session.clone()][..];
        let request = |name| Request::Command { name, args };
        let attempt = |node: Arc<Node>, asking| async move {
            let as_write = node.send(Priority::Interactive, request("GETEX"), deadline, Effect::Reads, asking);
            let as_read = || Box::pin(node.ask_primary(request("GET"), deadline, asking));
            let is_final = |read: &_| matches!(read, Ok(_) | Err(redis::Error::Redirect(_)));
            node.read_despite_pause(as_write, as_read, is_final).await
        };
        let read = match self.route(keys.partition, deadline, OnMigration::Wait, attempt).await {
            Err(error) if self.may_read_after(keys.partition, &error) => {
                self.command(keys.partition, "GET", args.to_vec(), deadline).await
            }
            read => read,
        };
        match read {
            Ok(reply) => Ok(record_of(keys, reply.bytes(), Extent::Whole)),
            // A key of another type: the script reports it.
            Err(error) if error.is_wrong_type() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the beginning of a record; all of it if head, tokens and `basic` are longer.
    pub(super) async fn read_beginning(
        &self,
        reads: Option<&PrimaryReads>,
        keys: &SessionKeys,
        deadline: Instant,
    ) -> Result<Option<Record>, Error> {
        let read = async |last: String| {
            let args = vec![keys.session.clone(), "0".into(), last.into()];
            match self.command_in(reads, keys.partition, "GETRANGE", args, deadline).await {
                Ok(reply) => Ok(reply.bytes()),
                Err(error) if error.is_wrong_type() => Ok(None),
                Err(error) => Err(error),
            }
        };
        let record = record_of(keys, read((BEGINNING - 1).to_string()).await?, Extent::Beginning);
        match record {
            Some(record) if !record.has_basic() => Ok(record_of(keys, read("-1".to_owned()).await?, Extent::Beginning)),
            // The head may say that the tokens are longer.
            None => Ok(record_of(keys, read("-1".to_owned()).await?, Extent::Whole)),
            record => Ok(record),
        }
    }

    async fn read_large_record(
        &self,
        reads: Option<&PrimaryReads>,
        keys: &SessionKeys,
        deadline: Instant,
    ) -> Result<Option<Record>, Error> {
        let node = self.node(keys.partition);
        let _reserved = node.reserve(self.large_reads.expected(), deadline).await?;
        let reply = self.command_in(reads, keys.partition, "GET", vec![keys.session.clone()], deadline).await;
        let text = match reply {
            Ok(reply) => reply.bytes(),
            Err(error) if error.is_wrong_type() => None,
            Err(error) => {
                self.large_reads.note(Err(&error));
                return Err(error);
            }
        };
        self.large_reads.note(Ok(text.as_ref().map_or(0, Bytes::len)));
        Ok(record_of(keys, text, Extent::Whole))
    }

    fn found(
        &self,
        name: &SessionRef,
        keys: &SessionKeys,
        record: Record,
        view: View,
        token_state: TokenState,
    ) -> Result<Found, Error> {
        let session = record.session(name, &keys.name, view).map_err(|cause| self.corrupt(name, cause))?;
        Ok(Found::Live(Live { session, token_state, record, text: keys.name.clone() }))
    }

    async fn read_with_script(&self, read: &ReadCall<'_>, effects: Effects) -> Result<ReadResult, Error> {
        let call = self.script_call(read, effects);
        let reply = match effects {
            Effects::Written => self.write(&scripts::READ, WriteConcern::Primary, &call, read.deadline).await?,
            Effects::None => self.read(&scripts::READ_ONLY, &call, read.deadline).await?,
        };
        self.read_result(read, ReadReply::decode(reply)?)
    }

    fn script_call(&self, read: &ReadCall<'_>, effects: Effects) -> ScriptCall {
        let ReadCall { name, keys, get, policy, record, on_migration, .. } = *read;
        let mut seen = vec![
            u8::from(effects == Effects::Written),
            u8::from(get.touch == Touch::Yes),
            u8::from(get.view == View::Basic),
        ];
        if let Some(record) = record {
            seen.extend(record.front.content_position());
            seen.extend(record.front.seal());
        }
        self.session_call(name, keys, get.credential, policy).on_migration(on_migration).arg(seen)
    }

    fn read_result(&self, read: &ReadCall<'_>, reply: ReadReply) -> Result<ReadResult, Error> {
        let name = read.name;
        let over = |until| Validity { until, is_over: true };
        Ok(match reply {
            ReadReply::Done { record, token_state, until } => {
                let record = Record::of_reply(&read.keys.name, &record, read.record, Extent::of(read.get.view));
                let record = record.map_err(|cause| self.corrupt(name, cause))?;
                let found = self.found(name, read.keys, record, read.get.view, token_state)?;
                ReadResult { found, validity: Validity { until, is_over: false }, needs_write: false }
            }
            ReadReply::Rotated { until, needs_write } => {
                ReadResult { found: Found::Rotated, validity: over(until), needs_write }
            }
            ReadReply::NotFound => ReadResult { found: Found::NotFound, validity: over(None), needs_write: false },
            ReadReply::Ended { ending, until, is_over, is_logged } => {
                let logged = if is_logged { EndLogged::Yes } else { EndLogged::NotYet };
                let found = Found::Ended(self.note_ended(name, ending), logged);
                ReadResult { found, validity: Validity { until, is_over }, needs_write: false }
            }
            ReadReply::Corrupt => return Err(self.corrupt(name, Corrupt::Head)),
        })
    }
}

/// Parses a record. None: there is no record, or it cannot be read; the script finds out.
fn record_of(keys: &SessionKeys, text: Option<Bytes>, extent: Extent) -> Option<Record> {
    Record::parse(&keys.name, &text.filter(|text| !text.is_empty())?, extent).ok()
}

#[cfg(test)]
mod tests;
