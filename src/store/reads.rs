//! Reading a session: for who presents its token or names its id, and without any consequence.

use tokio::time::Instant;

use super::{
    Found, Get, Lane, Store, Told,
    calls::{add_proof, add_tombstone, add_touch_interval, unexpected},
    error::Error,
    exchange::{Answer, Reply},
    msgpack::Arguments,
    record::Corrupt,
    scripts::{self, Outcome},
};
use crate::session::{Millis, Policy, Proof, SessionName, Standing, Use, View};

/// What a reading found.
struct Looked {
    found: Found,
    /// Of the presented token; None = no end.
    good_until: Option<Millis>,
    /// Whether it has to be noted by a script that may write.
    is_news: bool,
}

impl Store {
    /// Reads a session for who presents its token or names its id and, if asked, counts that as a use. The first use of a
    /// token is noted, and one that comes back after its time has its consequence.
    pub async fn get(&self, name: &SessionName, get: Get, policy: &Policy, deadline: Instant) -> Result<Found, Error> {
        let mut args = Arguments::default();
        add_proof(&mut args, get.proof, policy);
        args.flag("brief", get.view == View::Basic);
        if get.use_ == Use::DoesNotCount {
            let reply = self.read_session(Lane::Calls, name, &args, deadline).await?;
            let looked = self.looked(name, reply)?;
            if !looked.is_news {
                return Ok(looked.found);
            }
        }
        args.flag("writes", true).flag("touch", get.use_ == Use::Counts);
        add_touch_interval(&mut args, policy);
        add_tombstone(&mut args, policy);
        let answer = Answer::AtOnce(Lane::Calls);
        let reply = self.write(&scripts::TOUCH, answer, self.session_target(name), args, deadline).await;
        // What was to be noted beside a reading is no outcome that the caller could be unsure of.
        let reply = if get.use_ == Use::Counts { reply } else { reply.map_err(Error::of_a_reading) };
        Ok(self.looked(name, reply?)?.found)
    }

    /// Reads a session without any consequence: nobody presents the token anew.
    pub async fn look(&self, name: &SessionName, proof: Proof, view: View, deadline: Instant) -> Result<Found, Error> {
        Ok(self.look_closely(name, proof, view, deadline).await?.found)
    }

    /// The same for a token, and until when it is, or was, good; None = no end.
    pub async fn look_after(
        &self,
        name: &SessionName,
        proof: Proof,
        deadline: Instant,
    ) -> Result<(Found, Option<Millis>), Error> {
        let looked = self.look_closely(name, proof, View::Basic, deadline).await?;
        Ok((looked.found, looked.good_until))
    }

    async fn look_closely(
        &self,
        name: &SessionName,
        proof: Proof,
        view: View,
        deadline: Instant,
    ) -> Result<Looked, Error> {
        let mut args = Arguments::default();
        add_proof(&mut args, proof, &Policy::default());
        args.flag("brief", view == View::Basic);
        let reply = self.read_session(Lane::Bulk, name, &args, deadline).await?;
        self.looked(name, reply)
    }

    /// As a script that might write: a replica refuses it, which may be behind. A primary that takes no writes now runs it
    /// as one that does not.
    async fn read_session(
        &self,
        lane: Lane,
        name: &SessionName,
        args: &Arguments,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        const TAKES_NO_WRITES: [&str; 2] = ["MISCONF", "NOREPLICAS"];
        match self.read(&scripts::READ, lane, self.session_target(name), args, deadline).await {
            Err(Error::Unavailable(why)) if TAKES_NO_WRITES.iter().any(|word| why.starts_with(word)) => {
                self.read(&scripts::READ_ONLY, lane, self.session_target(name), args, deadline).await
            }
            reply => reply,
        }
    }

    fn looked(&self, name: &SessionName, mut reply: Reply) -> Result<Looked, Error> {
        let found = match reply.outcome {
            Outcome::Done => {
                let session = self.decode(name, reply.bytes()?)?;
                let standing = match reply.number()? {
                    0 => Standing::Named,
                    1 => Standing::Current,
                    2 => Standing::RotationDue,
                    3 => Standing::Superseded,
                    other => return Err(Error::Unexpected(format!("standing {other}"))),
                };
                Found::Session(session, standing)
            }
            Outcome::Rotated => Found::Rotated,
            Outcome::NotFound => Found::NotFound,
            Outcome::Ended => Found::Ended(self.ended(name, &mut reply)?, Told::Yes),
            Outcome::Corrupt => return Err(self.corrupt(name, Corrupt::Seal)),
            other => return Err(unexpected(&scripts::READ, other)),
        };
        let mut number = || reply.next().and_then(|value| value.as_u64());
        let good_until = number().filter(|until| *until > 0).map(Millis);
        let last = number();
        Ok(match found {
            Found::Ended(cause, _) if last == Some(0) => {
                Looked { found: Found::Ended(cause, Told::NotYet), good_until, is_news: false }
            }
            Found::Ended(..) | Found::NotFound => Looked { found, good_until, is_news: false },
            Found::Session(..) | Found::Rotated => Looked { found, good_until, is_news: last == Some(1) },
        })
    }
}
