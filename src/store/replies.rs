//! Replies of scripts: one type for each script, and its only decoder. The header of each file in `scripts/` documents the same
//! values in the same order.

mod partition;
mod session;
mod subject;

use std::{fmt::Display, vec};

use bytes::Bytes;

use super::{error::Error, index_entry::IndexEntry, scripts::Outcome};
use crate::{
    redis::{self, Script},
    session::{Basic, Cause},
};

pub(super) use partition::{ClaimReply, DueReply, Meta, PageReply, RepairReply, SurveyReply};
pub use partition::{SurveyedState, Trimmed};
pub(super) use session::{CreateReply, EndReply, ExpireReply, ReadReply, UpdateReply};
pub(super) use subject::{FirstEntriesReply, MissingInIndexesReply, RemoveReply, ReserveReply};

/// Values of a reply, which a decoder takes one after the other.
pub(super) struct Values {
    script: &'static Script,
    rest: vec::IntoIter<redis::Reply>,
}

impl Values {
    /// The values in the reply of a script.
    pub(super) fn of(script: &'static Script, reply: redis::Reply) -> Result<Self, Error> {
        let none = Values { script, rest: Vec::new().into_iter() };
        let rest = reply.array().ok_or_else(|| none.unexpected("no array"))?.into_iter();
        Ok(Values { script, rest })
    }

    /// Error for a reply that the script does not return.
    fn unexpected(&self, what: impl Display) -> Error {
        let why = format!("{}: {what}", self.script.name);
        if self.script.is_read_only() { Error::UnexpectedRead(why) } else { Error::Unexpected(why) }
    }

    fn take_number(&mut self) -> Result<u64, Error> {
        self.take_optional_number().ok_or_else(|| self.unexpected("a number is missing"))
    }

    /// Takes a number that some replies end without.
    fn take_optional_number(&mut self) -> Option<u64> {
        self.rest.next()?.number()
    }

    fn take_flag(&mut self) -> Result<bool, Error> {
        Ok(self.take_number()? == 1)
    }

    fn take_bytes(&mut self) -> Result<Bytes, Error> {
        self.rest.next().and_then(redis::Reply::bytes).ok_or_else(|| self.unexpected("a byte string is missing"))
    }

    fn take_text(&mut self) -> Result<String, Error> {
        let bytes = self.take_bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| self.unexpected("a text is not UTF-8"))
    }

    fn take_array(&mut self) -> Result<Vec<redis::Reply>, Error> {
        self.rest.next().and_then(redis::Reply::array).ok_or_else(|| self.unexpected("an array is missing"))
    }

    /// Takes a list of members and scores.
    fn take_pairs(&mut self) -> Result<impl Iterator<Item = (redis::Reply, redis::Reply)> + use<>, Error> {
        let list = self.rest.next().filter(redis::Reply::is_array);
        Ok(list.ok_or_else(|| self.unexpected("a list is missing"))?.pairs())
    }

    /// Takes entries of a subject index. Leaves out those that no session can have.
    fn take_entries(&mut self) -> Result<Vec<IndexEntry>, Error> {
        Ok(self.take_pairs()?.filter_map(|(id, added)| IndexEntry::parse(&id, &added)).collect())
    }
}

/// Reply of a gated script: `{outcome, now in us, …}`.
pub(super) struct Reply {
    /// First value.
    pub outcome: Outcome,
    /// Time in us, Redis clock.
    pub now_us: u64,
    /// Nonce of the change, if the script made one.
    nonce: u64,
    values: Values,
}

impl Reply {
    /// The reply of a gated script that was sent with this nonce.
    pub(super) fn of(script: &'static Script, reply: redis::Reply, nonce: u64) -> Result<Self, Error> {
        let mut values = Values::of(script, reply)?;
        let number = values.rest.next().and_then(|value| value.integer());
        let outcome = number.and_then(Outcome::from_number);
        let outcome = outcome.ok_or_else(|| values.unexpected(format!("outcome {number:?}")))?;
        let now_us = values.take_number()?;
        if outcome == Outcome::StoreChanged {
            Err(Error::StoreChanged)
        } else {
            Ok(Reply { outcome, now_us, nonce, values })
        }
    }

    /// Error for an outcome that the script does not return.
    fn unexpected(&self) -> Error {
        self.values.unexpected(format!("{:?}", self.outcome))
    }
}

/// End of a session: `cause, basic`.
pub(super) struct Ending {
    /// Cause of the end.
    pub cause: Cause,
    /// Subject of the session if this call ended it; else empty.
    pub subject: String,
}

impl Ending {
    fn take(values: &mut Values) -> Result<Self, Error> {
        let number = values.take_number()?;
        let cause = i64::try_from(number).ok().and_then(Cause::from_number);
        let cause = cause.ok_or_else(|| values.unexpected(format!("cause {number}")))?;
        let basic = Basic::parse(values.take_bytes()?).unwrap_or_default();
        Ok(Ending { cause, subject: basic.subject().to_owned() })
    }
}
