//! Replies of the scripts of one session.

use std::time::Duration;

use bytes::Bytes;

use super::{Ending, Reply};
use crate::{
    session::{Millis, Revision, TokenState},
    store::{error::Error, scripts::Outcome},
};

/// Reply of `create.lua`.
pub(in crate::store) enum CreateReply {
    /// `{DONE, now, record}`: head and tokens; the whole record if an earlier call with the request id created it.
    Done(Bytes),
    /// `{ROTATED, now}`: so it is for an earlier call, but the token is not accepted any more.
    Rotated,
    /// `{EXISTS, now}`
    Exists,
    /// `{ENDED, now, cause, basic}`
    Ended(Ending),
    /// `{REQUEST_ID_REUSED, now}`
    RequestIdReused,
    /// `{NOT_RESERVED, now}`
    NotReserved,
}

impl CreateReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        Ok(match reply.outcome {
            Outcome::Done => CreateReply::Done(reply.values.take_bytes()?),
            Outcome::Rotated => CreateReply::Rotated,
            Outcome::Exists => CreateReply::Exists,
            Outcome::Ended => CreateReply::Ended(Ending::take(&mut reply.values)?),
            Outcome::RequestIdReused => CreateReply::RequestIdReused,
            Outcome::NotReserved => CreateReply::NotReserved,
            _ => return Err(reply.unexpected()),
        })
    }
}

/// Reply of `read.lua`. `until` is the time until which the presented token is, or was, accepted; None: no limit.
pub(in crate::store) enum ReadReply {
    /// `{DONE, now, record, token state, valid until}`
    Done {
        /// Head and tokens if the caller has the content; else also the content.
        record: Bytes,
        /// State of the presented token.
        token_state: TokenState,
        /// End of the grace period.
        until: Option<Millis>,
    },
    /// `{ROTATED, now, valid until, 1 = token reuse whose consequences need a write}`, or `{ROTATED, now}`: they are written.
    Rotated {
        /// End of the grace period.
        until: Option<Millis>,
        /// Whether consequences have to be written.
        needs_write: bool,
    },
    /// `{NOT_FOUND, now}`
    NotFound,
    /// `{CORRUPT, now}`
    Corrupt,
    /// `{ENDED, now, cause, '', valid until, 1 = that time is over, 1 = the end is in the log}`, or `{ENDED, now, cause, basic}`:
    /// this call ended the session.
    Ended {
        /// Cause and subject.
        ending: Ending,
        /// End of the grace period.
        until: Option<Millis>,
        /// Whether that time is over.
        is_over: bool,
        /// Whether the end is in the log.
        is_logged: bool,
    },
}

impl ReadReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        let values = &mut reply.values;
        Ok(match reply.outcome {
            Outcome::Done => ReadReply::Done {
                record: values.take_bytes()?,
                token_state: match values.take_number()? {
                    0 => TokenState::NotPresented,
                    1 => TokenState::Current,
                    2 => TokenState::RotationDue,
                    3 => TokenState::Superseded,
                    other => return Err(values.unexpected(format!("token state {other}"))),
                },
                until: until(values.take_optional_number()),
            },
            Outcome::Rotated => ReadReply::Rotated {
                until: until(values.take_optional_number()),
                needs_write: values.take_optional_number() == Some(1),
            },
            Outcome::NotFound => ReadReply::NotFound,
            Outcome::Corrupt => ReadReply::Corrupt,
            Outcome::Ended => ReadReply::Ended {
                ending: Ending::take(values)?,
                until: until(values.take_optional_number()),
                is_over: values.take_optional_number() == Some(1),
                is_logged: values.take_optional_number() != Some(0),
            },
            _ => return Err(reply.unexpected()),
        })
    }
}

/// None: no limit.
fn until(valid_until: Option<u64>) -> Option<Millis> {
    valid_until.filter(|until| *until > 0).map(Millis)
}

/// Reply of `update.lua`. The nonce is that of the record if this call changed it.
pub(in crate::store) enum UpdateReply {
    /// `{DONE, now, record}`: as in record_text.lua.
    Done {
        /// What the caller does not have of the record.
        record: Bytes,
        /// Nonce of this call.
        nonce: u64,
    },
    /// `{SHARED, now, record}`: the presented token has a successor that was not presented yet; the rest is applied.
    Shared {
        /// What the caller does not have of the record.
        record: Bytes,
        /// Nonce of this call.
        nonce: u64,
    },
    /// `{CONFLICT, now, record of up to 4 KiB or ''}`: the content or a length is not the expected one. None: a larger record.
    Conflict(Option<Bytes>),
    /// `{BUSY, now, ms}`: another call has the turn, for at most this time.
    Busy(Duration),
    /// `{NOT_FOUND, now}`
    NotFound,
    /// `{ENDED, now, cause, basic}`
    Ended(Ending),
    /// `{CORRUPT, now}`
    Corrupt,
    /// `{ROTATED, now}`
    Rotated,
    /// `{TOKEN_KNOWN, now}`
    TokenKnown,
    /// `{NOT_RESERVED, now, reservations up to this us are void}`
    NotReserved {
        /// Time in us; 0 = none is void.
        void_until: u64,
    },
    /// `{REVISION_MISMATCH, now, revision}`
    RevisionMismatch(Revision),
    /// `{REQUEST_ID_REUSED, now}`
    RequestIdReused,
    /// `{REQUEST_ID_LIMIT, now, ms until there is room}`
    RequestIdLimit(Duration),
}

impl UpdateReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        let (values, nonce) = (&mut reply.values, reply.nonce);
        Ok(match reply.outcome {
            Outcome::Done => UpdateReply::Done { record: values.take_bytes()?, nonce },
            Outcome::Shared => UpdateReply::Shared { record: values.take_bytes()?, nonce },
            Outcome::Conflict => UpdateReply::Conflict(Some(values.take_bytes()?).filter(|text| !text.is_empty())),
            Outcome::Busy => UpdateReply::Busy(Duration::from_millis(values.take_number()?)),
            Outcome::NotFound => UpdateReply::NotFound,
            Outcome::Ended => UpdateReply::Ended(Ending::take(values)?),
            Outcome::Corrupt => UpdateReply::Corrupt,
            Outcome::Rotated => UpdateReply::Rotated,
            Outcome::TokenKnown => UpdateReply::TokenKnown,
            Outcome::NotReserved => UpdateReply::NotReserved { void_until: values.take_number()? },
            Outcome::RevisionMismatch => UpdateReply::RevisionMismatch(Revision(values.take_number()?)),
            Outcome::RequestIdReused => UpdateReply::RequestIdReused,
            Outcome::RequestIdLimit => UpdateReply::RequestIdLimit(Duration::from_millis(values.take_number()?)),
            _ => return Err(reply.unexpected()),
        })
    }
}

/// Reply of `end.lua`.
pub(in crate::store) enum EndReply {
    /// `{DONE, now, cause, basic}`
    Done(Ending),
    /// `{NOT_FOUND, now}`
    NotFound,
    /// `{ENDED, now, cause, basic}`
    Ended(Ending),
    /// `{CORRUPT, now}`
    Corrupt,
    /// `{REQUEST_ID_REUSED, now}`
    RequestIdReused,
    /// `{NOT_MEANT, now}`: a condition is not met, the session lives on.
    NotMeant,
}

impl EndReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        Ok(match reply.outcome {
            Outcome::Done => EndReply::Done(Ending::take(&mut reply.values)?),
            Outcome::NotFound => EndReply::NotFound,
            Outcome::Ended => EndReply::Ended(Ending::take(&mut reply.values)?),
            Outcome::Corrupt => EndReply::Corrupt,
            Outcome::RequestIdReused => EndReply::RequestIdReused,
            Outcome::NotMeant => EndReply::NotMeant,
            _ => return Err(reply.unexpected()),
        })
    }
}

/// Reply of `expire.lua`.
pub(in crate::store) enum ExpireReply {
    /// `{DONE, now, cause, basic}`
    Done(Ending),
    /// `{NOT_FOUND, now}`: only if no tombstone was asked for.
    NotFound,
    /// `{ENDED, now, cause, ''}`
    Ended(Ending),
    /// `{CORRUPT, now}`
    Corrupt,
    /// `{NOT_DUE, now, basic, 1 = has no subject, but a valid reservation}`: the session lives on.
    NotDue {
        /// Subject, labels, client and authentication.
        basic: Bytes,
        /// Whether it has no subject, but a valid reservation.
        is_reserved: bool,
    },
}

impl ExpireReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        let values = &mut reply.values;
        Ok(match reply.outcome {
            Outcome::Done => ExpireReply::Done(Ending::take(values)?),
            Outcome::NotFound => ExpireReply::NotFound,
            Outcome::Ended => ExpireReply::Ended(Ending::take(values)?),
            Outcome::Corrupt => ExpireReply::Corrupt,
            Outcome::NotDue => ExpireReply::NotDue { basic: values.take_bytes()?, is_reserved: values.take_flag()? },
            _ => return Err(reply.unexpected()),
        })
    }
}
