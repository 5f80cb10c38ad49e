//! Reads sessions: for clients, with the effects of presenting a token; and internally, without any effect.

use tokio::time::Instant;

use super::{
    EndLogged, Found, Get, Store,
    calls::{add_credential, add_tombstone, add_touch_interval, unexpected},
    error::Error,
    exchange::{Reply, WriteConcern},
    msgpack::Arguments,
    record::Corrupt,
    scripts::{self, Outcome},
};
use crate::redis::{MAX_LARGE_REPLY_BYTES, Priority};
use crate::session::{Credential, Millis, Policy, SessionRef, TokenState, Touch, View};

/// Result of a read, with the data that decides what follows.
struct ReadReply {
    found: Found,
    validity: Validity,
    /// Whether the script that writes has to run: first use of the token, or token reuse.
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

impl Store {
    /// Reads a session for a client, and touches it if asked. Records the first use of a token; token reuse ends the session or
    /// is reported, as the policy says.
    pub async fn get(&self, name: &SessionRef, get: Get, policy: &Policy, deadline: Instant) -> Result<Found, Error> {
        let mut args = Arguments::default();
        add_credential(&mut args, get.credential, policy);
        args.flag("brief", get.view == View::Basic);
        if get.touch == Touch::No {
            let reply = self.read_session(Priority::Interactive, name, &args, deadline).await?;
            let read_reply = self.read_reply(name, reply).map_err(Error::of_a_read)?;
            if !read_reply.needs_write {
                return Ok(read_reply.found);
            }
        }
        args.flag("writes", true).flag("touch", get.touch == Touch::Yes);
        add_touch_interval(&mut args, policy);
        add_tombstone(&mut args, policy);
        let concern = WriteConcern::Primary(Priority::Interactive);
        let reply = self.write(&scripts::TOUCH, concern, self.session_target(name), args, deadline).await;
        // Recording the first use does not concern the caller: the read itself has no unknown outcome.
        let read_reply = reply.and_then(|reply| self.read_reply(name, reply));
        let read_reply = if get.touch == Touch::Yes { read_reply } else { read_reply.map_err(Error::of_a_read) };
        Ok(read_reply?.found)
    }

    /// Reads a session without any effect: does not count as presenting the token.
    pub async fn look(
        &self,
        name: &SessionRef,
        credential: Credential,
        view: View,
        deadline: Instant,
    ) -> Result<Found, Error> {
        Ok(self.read_without_effect(name, credential, view, deadline).await?.found)
    }

    /// Reads a session without any effect, and the validity of the token.
    pub async fn look_after(
        &self,
        name: &SessionRef,
        credential: Credential,
        deadline: Instant,
    ) -> Result<(Found, Validity), Error> {
        let read_reply = self.read_without_effect(name, credential, View::Basic, deadline).await?;
        Ok((read_reply.found, read_reply.validity))
    }

    async fn read_without_effect(
        &self,
        name: &SessionRef,
        credential: Credential,
        view: View,
        deadline: Instant,
    ) -> Result<ReadReply, Error> {
        let mut args = Arguments::default();
        add_credential(&mut args, credential, &Policy::default());
        args.flag("brief", view == View::Basic);
        if view == View::Basic {
            let reply = self.read_session(Priority::Background, name, &args, deadline).await?;
            return self.read_reply(name, reply).map_err(Error::of_a_read);
        }
        let node = self.node(self.keys.partition_of(&name.id));
        let _reserved = node.reserve(self.large_reads.expected(), deadline).await?;
        let reply = self.read_session(Priority::Background, name, &args, deadline).await;
        let reply = reply.inspect_err(|error| self.large_reads.note(Err(error)))?;
        let read_reply = self.read_reply(name, reply).map_err(Error::of_a_read)?;
        if let Found::Session(session, _) = &read_reply.found {
            self.large_reads.note(Ok(session.size()));
        }
        Ok(read_reply)
    }

    /// Returns the number of sessions to read with [`Store::look`] at the same time, at most `most`: so many that their
    /// replies are on their way at once. The others would only wait.
    pub fn reads_at_once(&self, view: View, most: usize) -> usize {
        match view {
            View::Basic => most,
            View::Full => (MAX_LARGE_REPLY_BYTES / self.large_reads.expected()).clamp(1, most),
        }
    }

    /// Runs the read as a script that may write, so that a replica, whose data may be old, refuses it. If the primary currently
    /// refuses writes, runs the read-only variant.
    async fn read_session(
        &self,
        priority: Priority,
        name: &SessionRef,
        args: &Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        const WRITES_DISABLED: [&str; 2] = ["MISCONF", "NOREPLICAS"];
        match self.read(&scripts::READ, priority, self.session_target(name), args, deadline).await {
            Err(Error::Unavailable(why)) if WRITES_DISABLED.iter().any(|word| why.starts_with(word)) => {
                self.read(&scripts::READ_ONLY, priority, self.session_target(name), args, deadline).await
            }
            reply => reply,
        }
    }

    fn read_reply(&self, name: &SessionRef, mut reply: Reply) -> Result<ReadReply, Error> {
        let found = match reply.outcome {
            Outcome::Done => {
                let session = self.decode(name, reply.bytes()?)?;
                let token_state = match reply.number()? {
                    0 => TokenState::NotPresented,
                    1 => TokenState::Current,
                    2 => TokenState::RotationDue,
                    3 => TokenState::Superseded,
                    other => return Err(Error::Unexpected(format!("token state {other}"))),
                };
                Found::Session(session, token_state)
            }
            Outcome::Rotated => Found::Rotated,
            Outcome::NotFound => Found::NotFound,
            Outcome::Ended => Found::Ended(self.ended(name, &mut reply)?, EndLogged::Yes),
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::READ, other)),
        };
        let mut number = || reply.next().and_then(|value| value.number());
        let until = number().filter(|until| *until > 0).map(Millis);
        let (found, is_over, needs_write) = match found {
            Found::Ended(cause, _) => {
                let is_over = number() == Some(1);
                let logged = if number() == Some(0) { EndLogged::NotYet } else { EndLogged::Yes };
                (Found::Ended(cause, logged), is_over, false)
            }
            Found::Session(..) => (found, false, number() == Some(1)),
            Found::Rotated => (found, true, number() == Some(1)),
            Found::NotFound => (found, true, false),
        };
        Ok(ReadReply { found, validity: Validity { until, is_over }, needs_write })
    }
}
