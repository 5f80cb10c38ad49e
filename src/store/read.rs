//! Reads sessions: for clients, with the effects of presenting a token; and internally, without any effect.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::{
    Store,
    error::Error,
    keys::{Partition, SessionKeys},
    record::{CommonRead, Corrupt, Extent, Record, common_read},
    replies::ReadReply,
    script_call::{ScriptCall, WriteConcern},
    scripts,
};
use crate::{
    redis::{self, Effect, HELD_BACK_AFTER, MAX_LARGE_REPLY_BYTES, Node, PrimaryReads, Priority, Request},
    session::{Cause, Credential, Millis, Policy, Session, SessionRef, TokenState, Touch, View},
};

/// Number of bytes that a read in the BASIC view requests. Most records have head, tokens and `basic` within them.
const BEGINNING: usize = 2_048;

/// Time after a reply without a write in which the reply to the request that counts as one may follow, if the server is slow.
const SETTLING: Duration = Duration::from_millis(50);

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
    /// A live session and the state of the presented token.
    Session(Session, TokenState),
    /// No live session, or the presented token is not one of the session's.
    NotFound,
    /// The session has ended.
    Ended(Cause, EndLogged),
    /// The presented token is superseded and no longer accepted.
    Rotated,
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
    deadline: Instant,
}

impl Store {
    /// Reads a session for a client, and touches it if asked. Records the first use of a token; token reuse ends the session or
    /// is reported, as the policy says. If Redis refuses writes, the read succeeds without the touch and without the record of
    /// the first use: the next presentation writes them.
    pub async fn get(&self, name: &SessionRef, get: Get, policy: &Policy, deadline: Instant) -> Result<Found, Error> {
        let keys = self.keys.session_keys(name);
        // If every touch is due, the script alone does both.
        let touches = get.touch == Touch::Yes && policy.touch_interval == Some(Duration::ZERO);
        let record = if touches { None } else { self.read_record(&keys, deadline).await? };
        let read = |record: &Record| common_read(&record.front, get.credential, policy, self.now_at(keys.partition));
        let accepted = match record.as_ref().map(read) {
            Some(CommonRead::Accepted { token_state, touch_is_due }) => Some((token_state, touch_is_due)),
            Some(CommonRead::NeedsScript) | None => None,
        };
        if let (Some(record), Some((token_state, touch_is_due))) = (&record, accepted)
            && (get.touch == Touch::No || !touch_is_due)
        {
            return self.found(name, &keys, record, get.view, token_state);
        }
        let call = ReadCall { name, keys: &keys, get, policy, record: record.as_ref(), deadline };
        let with_effect = self.read_with_script(&call, Effects::Written);
        let without = async || self.read_with_script(&call, Effects::None).await;
        // The consequences of token reuse are not optional.
        let is_complete = |read: &ReadResult| !read.needs_write;
        match self.read_in_any_case(keys.partition, with_effect, without, is_complete).await {
            Ok(read) => Ok(read.found),
            Err(error) => Err(if get.touch == Touch::Yes { error } else { error.of_a_read() }),
        }
    }

    /// Reads with a request that counts as a write, so that a replica, whose data may be old, refuses it. While Redis refuses
    /// writes or holds them back, reads without a write, which suffices if the result is complete.
    async fn read_in_any_case<T>(
        &self,
        partition: Partition,
        as_write: impl Future<Output = Result<T, Error>>,
        as_read: impl AsyncFnOnce() -> Result<T, Error>,
        is_complete: impl Fn(&T) -> bool,
    ) -> Result<T, Error> {
        let node = self.node(partition);
        let was_paused = node.writes_are_paused();
        let mut as_write = pin!(as_write);
        let first = if was_paused { None } else { timeout(HELD_BACK_AFTER, &mut as_write).await.ok() };
        match first {
            Some(Err(error)) if self.may_read_after(partition, &error) => {
                let read = as_read().await?;
                return if is_complete(&read) { Ok(read) } else { Err(error) };
            }
            Some(done) => return done,
            None => {}
        }
        let received = node.replies_to_writes();
        let read = tokio::select! {
            biased;
            done = &mut as_write, if !was_paused => return done,
            Ok(read) = as_read() => Some(read).filter(is_complete),
            else => None,
        };
        match read {
            Some(read) if was_paused => Ok(read),
            Some(read) => match timeout(SETTLING, &mut as_write).await {
                Ok(done) => done,
                Err(_) if node.replies_to_writes() == received => {
                    node.note_write_pause();
                    Ok(read)
                }
                // The server is slow.
                Err(_) => as_write.await,
            },
            None => as_write.await,
        }
    }

    /// Whether a server that refused a write with this error may be read: one that lacks replicas may be cut off, and another
    /// one in its place.
    fn may_read_after(&self, partition: Partition, error: &Error) -> bool {
        match error {
            Error::WritesRefused(reply) => !redis::lacks_replicas(reply) || self.is_confirmed(partition),
            _ => false,
        }
    }

    /// Reads a session without any effect: does not count as presenting the token. `reads` is the page that it is a part of;
    /// None: a single read.
    pub async fn look(
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
    pub async fn look_after(
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
            let found = self.found(name, &keys, record, view, token_state)?;
            return Ok(ReadResult { found, validity: Validity { until: None, is_over: false }, needs_write: false });
        }
        let call = ReadCall { name, keys: &keys, get, policy, record: record.as_ref(), deadline };
        self.read_with_script(&call, Effects::None).await
    }

    /// Returns the number of sessions to read with [`Store::look`] at the same time, at most `most`: so many that their
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
        let request = Request::Command { name: "GETEX", args };
        let attempt = |node: Arc<Node>, asking| async move {
            node.send(Priority::Interactive, request, deadline, Effect::Reads, asking).await
        };
        let as_write = self.route(keys.partition, deadline, attempt);
        let as_read = || self.command(keys.partition, "GET", args.to_vec(), deadline);
        match self.read_in_any_case(keys.partition, as_write, as_read, |_| true).await {
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
        record: &Record,
        view: View,
        token_state: TokenState,
    ) -> Result<Found, Error> {
        let session = record.session(name, &keys.name, view).map_err(|cause| self.corrupt(name, cause))?;
        Ok(Found::Session(session, token_state))
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
        let ReadCall { name, keys, get, policy, record, .. } = *read;
        let mut seen = vec![
            u8::from(effects == Effects::Written),
            u8::from(get.touch == Touch::Yes),
            u8::from(get.view == View::Basic),
        ];
        if let Some(record) = record {
            seen.extend(record.front.content_position());
            seen.extend(record.front.seal());
        }
        self.session_call(name, keys, get.credential, policy).arg(seen)
    }

    fn read_result(&self, read: &ReadCall<'_>, reply: ReadReply) -> Result<ReadResult, Error> {
        let name = read.name;
        let over = |until| Validity { until, is_over: true };
        Ok(match reply {
            ReadReply::Done { record, token_state, until } => {
                let record = Record::of_reply(&read.keys.name, &record, read.record, Extent::of(read.get.view));
                let record = record.map_err(|cause| self.corrupt(name, cause))?;
                let found = self.found(name, read.keys, &record, read.get.view, token_state)?;
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
