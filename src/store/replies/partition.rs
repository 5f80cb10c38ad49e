//! Replies of the scripts of a partition: its log, meta, due sets and keys.

use bytes::Bytes;

use super::{Reply, Values};
use crate::{
    redis,
    session::SessionId,
    store::{error::Error, scripts::Outcome},
};

/// Reply of `claim.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum ClaimReply {
    /// `{DONE, now}`: claimed.
    Claimed,
    /// `{NOT_DUE, now}`: a valid claim exists.
    NotDue,
}

impl ClaimReply {
    pub(in crate::store) fn decode(reply: Reply) -> Result<Self, Error> {
        match reply.outcome {
            Outcome::Done => Ok(ClaimReply::Claimed),
            Outcome::NotDue => Ok(ClaimReply::NotDue),
            _ => Err(reply.unexpected()),
        }
    }
}

/// State of a session in a survey. The same list is in survey.lua.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurveyedState {
    /// The due set has the session, but it has no key.
    Missing,
    /// A live session whose deadline has not passed.
    Live,
    /// A session whose deadline has passed.
    Overdue,
    /// A live session that the due set lacks.
    Unscheduled,
    /// A tombstone, an unreadable record, or no session.
    Other,
}

/// Reply of `survey.lua`: `{DONE, now, 1 = the set of namespaces has the namespace, [state, beginning of a live record or '',
/// …]}`.
pub(in crate::store) struct SurveyReply {
    /// Whether the set of namespaces has the namespace.
    pub has_namespace: bool,
    /// A pair for each id, in order.
    pub sessions: Vec<(SurveyedState, Bytes)>,
}

impl SurveyReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        if reply.outcome != Outcome::Done {
            return Err(reply.unexpected());
        }
        let has_namespace = reply.values.take_flag()?;
        let mut pairs = Values { script: reply.values.script, rest: reply.values.take_array()?.into_iter() };
        let mut sessions = Vec::with_capacity(pairs.rest.len() / 2);
        while pairs.rest.len() > 0 {
            let state = match pairs.take_number()? {
                0 => SurveyedState::Missing,
                1 => SurveyedState::Live,
                2 => SurveyedState::Overdue,
                3 => SurveyedState::Unscheduled,
                4 => SurveyedState::Other,
                other => return Err(pairs.unexpected(format!("state {other}"))),
            };
            sessions.push((state, pairs.take_bytes()?));
        }
        Ok(SurveyReply { has_namespace, sessions })
    }
}

/// Reply of `repair.lua`.
pub(in crate::store) enum RepairReply {
    /// `{0}`: the key has its type or does not exist.
    Intact,
    /// `{1}`: deleted.
    Deleted,
    /// `{2}`: it has another type and cannot be rebuilt.
    NotRebuilt,
}

impl RepairReply {
    pub(in crate::store) fn decode(mut values: Values) -> Result<Self, Error> {
        match values.take_number()? {
            0 => Ok(RepairReply::Intact),
            1 => Ok(RepairReply::Deleted),
            2 => Ok(RepairReply::NotRebuilt),
            other => Err(values.unexpected(other)),
        }
    }
}

/// Reply of `initialise.lua`: `{1, store id, format, number of partitions}`.
pub(in crate::store) struct Meta {
    /// Id of the store as text.
    pub store: String,
    /// Storage format.
    pub format: String,
    /// Number of partitions.
    pub partitions: String,
}

impl Meta {
    /// Fields of the meta in the order of the reply.
    pub(in crate::store) const FIELDS: [&str; 3] = ["store", "format", "partitions"];

    pub(in crate::store) fn decode(mut values: Values) -> Result<Self, Error> {
        values.take_number()?;
        Ok(Meta { store: values.take_text()?, format: values.take_text()?, partitions: values.take_text()? })
    }

    /// Reply of HMGET of the fields. None: one of them is missing.
    pub(in crate::store) fn of_fields(reply: redis::Reply) -> Option<Self> {
        let mut fields = reply.array()?.into_iter().map(|field| field.text().map(str::to_owned));
        Some(Meta { store: fields.next()??, format: fields.next()??, partitions: fields.next()?? })
    }
}

/// Reply of `due.lua`: `{now in us, [id, deadline in ms, …], earliest deadline that has not passed, "" = none}`.
pub(in crate::store) struct DueReply {
    /// Ids with their deadlines in ms, the earliest first.
    pub ids: Vec<(SessionId, u64)>,
    /// Members that no session can have as id.
    pub invalid: Vec<Bytes>,
    /// Earliest deadline in ms that has not passed, if there is no id. None: there is none.
    pub next: Option<u64>,
}

impl DueReply {
    pub(in crate::store) fn decode(mut values: Values) -> Result<Self, Error> {
        values.take_number()?;
        let (mut ids, mut invalid) = (Vec::new(), Vec::new());
        for (id, score) in values.take_pairs()? {
            match id.text().and_then(|id| id.parse().ok()) {
                Some(id) => ids.push((id, score.float().unwrap_or(0.0) as u64)),
                None => invalid.push(id.bytes().unwrap_or_default()),
            }
        }
        let next = values.rest.next().and_then(|next| next.float()).filter(|next| next.is_finite());
        Ok(DueReply { ids, invalid, next: next.map(|next| next as u64) })
    }
}

/// Reply of `trim.lua`: `{entries dropped, entries left, bytes left, last revision}`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trimmed {
    /// Number of entries that were dropped.
    pub dropped: u64,
    /// Size of the entries that are left, in bytes.
    pub bytes: u64,
    /// Last revision of the partition. 0: the partition has no meta.
    pub last: u64,
}

impl Trimmed {
    pub(in crate::store) fn decode(mut values: Values) -> Result<Self, Error> {
        let dropped = values.take_number()?;
        let _entries = values.take_number()?;
        Ok(Trimmed { dropped, bytes: values.take_number()?, last: values.take_number()? })
    }
}

/// Reply of `page.lua`: `{1, entry, content, …}`.
pub(in crate::store) struct PageReply {
    /// Entries, each with its content, which is empty if the entry contains it.
    pub entries: Vec<[Bytes; 2]>,
}

impl PageReply {
    pub(in crate::store) fn decode(mut values: Values) -> Result<Self, Error> {
        values.take_number()?;
        let mut entries = Vec::with_capacity(values.rest.len() / 2);
        while values.rest.len() > 0 {
            entries.push([values.take_bytes()?, values.take_bytes()?]);
        }
        Ok(PageReply { entries })
    }
}
