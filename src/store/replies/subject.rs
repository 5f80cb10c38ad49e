//! Replies of the scripts of subject indexes.

use std::collections::HashSet;

use super::{Reply, Values};
use crate::{
    redis,
    store::{error::Error, index_entry::IndexEntry, scripts::Outcome},
};

/// Reply of `reserve.lua`.
pub(in crate::store) enum ReserveReply {
    /// `{DONE, now, time added, [id, time added, …]}`: added; the caller ends the listed sessions first.
    Added {
        /// Time in us of the new entry.
        added: u64,
        /// Oldest entries beyond the limit. If they fill a page there may be more.
        replaced: Vec<IndexEntry>,
    },
    /// `{SUBJECT_FULL, now, [id, time added, …]}`: the newest entries, possibly with this id; the caller checks whether they
    /// count.
    Full(Vec<IndexEntry>),
    /// `{SUBJECT_LIMIT, now}`: rejected.
    LimitReached,
}

impl ReserveReply {
    pub(in crate::store) fn decode(mut reply: Reply) -> Result<Self, Error> {
        let values = &mut reply.values;
        Ok(match reply.outcome {
            Outcome::Done => ReserveReply::Added { added: values.take_number()?, replaced: values.take_entries()? },
            Outcome::SubjectFull => ReserveReply::Full(values.take_entries()?),
            Outcome::SubjectLimit => ReserveReply::LimitReached,
            _ => return Err(reply.unexpected()),
        })
    }
}

/// Reply of `remove.lua`: `{DONE, now, count}`.
pub(in crate::store) struct RemoveReply;

impl RemoveReply {
    pub(in crate::store) fn decode(reply: Reply) -> Result<Self, Error> {
        done(reply).map(|_| RemoveReply)
    }
}

/// Reply of `missing_in_indexes.lua`: `{DONE, now, [n, …]}`.
pub(in crate::store) struct MissingInIndexesReply {
    /// Numbers of the missing ids, from 1.
    pub numbers: HashSet<u64>,
}

impl MissingInIndexesReply {
    pub(in crate::store) fn decode(reply: Reply) -> Result<Self, Error> {
        let numbers = done(reply)?.take_array()?;
        Ok(MissingInIndexesReply { numbers: numbers.iter().filter_map(redis::Reply::number).collect() })
    }
}

/// Reply of `first_entries.lua`: `{DONE, now, [[id, time added, …], …]}`; 0 instead of the entries = the index cannot be read.
pub(in crate::store) struct FirstEntriesReply {
    /// Entries of each index, in order. None: the index cannot be read, or has an entry that no session can have.
    pub indexes: Vec<Option<Vec<IndexEntry>>>,
}

impl FirstEntriesReply {
    pub(in crate::store) fn decode(reply: Reply) -> Result<Self, Error> {
        let entries = |index: redis::Reply| {
            let pairs = index.is_array().then(|| index.pairs())?;
            pairs.map(|(id, added)| IndexEntry::parse(&id, &added)).collect()
        };
        Ok(FirstEntriesReply { indexes: done(reply)?.take_array()?.into_iter().map(entries).collect() })
    }
}

/// The values that follow DONE, the only outcome of the script.
fn done(reply: Reply) -> Result<Values, Error> {
    if reply.outcome == Outcome::Done { Ok(reply.values) } else { Err(reply.unexpected()) }
}
