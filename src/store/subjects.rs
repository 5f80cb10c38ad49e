//! Subject indexes: adds, reads and removes the ids of each subject's sessions.
//!
//! An index is in another slot than the sessions, so that no script can change both. It is a superset of the subject's
//! sessions: an id is added before its session gets the subject. It is removed only after a script in the id's own partition
//! has found that the session neither has the subject nor can get it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{
    Store,
    end::Settled,
    error::Error,
    index_entry::{INDEX_PAGE, IndexEntry, Reservation},
    keys::Partition,
    leaving::{LeaveReason, Left},
    read::Found,
    replies::{ClaimReply, RemoveReply, ReserveReply},
    script_call::WriteConcern,
    scripts,
    survey::Partial,
};
use crate::redis::PrimaryReads;
use crate::session::{Credential, Policy, SessionId, SessionLimitPolicy, SessionRef, Subject, View, millis};

/// Maximum number of sessions checked concurrently.
const AT_ONCE: usize = 100;
/// Work that the instances share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The reconciliation of the whole store; claimed on the first partition.
    Reconciliation,
    /// The check of one partition for missing keys.
    MissingKeys,
}

impl Claim {
    /// Field of the meta that holds the claim.
    fn field(self) -> &'static str {
        match self {
            Claim::Reconciliation => "reconciled",
            Claim::MissingKeys => "checked",
        }
    }
}

/// Session limit of a subject.
pub struct Limit {
    /// Maximum number of sessions; 0 = unlimited.
    pub sessions: u32,
    /// What happens when the limit is reached.
    pub beyond: SessionLimitPolicy,
    /// Whether the caller has checked that the newest entries, as many as the limit, count.
    pub is_checked: bool,
}

impl Limit {
    /// No limit.
    pub const NONE: Limit = Limit { sessions: 0, beyond: SessionLimitPolicy::ReplaceOldest, is_checked: false };
}

/// Outcome of [`Store::reserve`].
pub enum Admitted {
    /// The id is reserved. The session may be created once these oldest entries are ended. If they fill a page there may be
    /// more.
    InPlaceOf(Vec<IndexEntry>, Reservation),
    /// The limit is reached. The caller checks whether these newest entries, possibly with the id itself, still count.
    Full(Vec<IndexEntry>),
    /// The limit is reached and the policy rejects new sessions.
    LimitReached,
}

impl Store {
    /// Adds an id to the index of its subject, with a time later than `after` in us.
    pub async fn reserve(
        &self,
        subject: &Subject,
        id: SessionId,
        after: u64,
        limit: Limit,
        deadline: Instant,
    ) -> Result<Admitted, Error> {
        let store = self.id();
        let call = self.subject_call(subject).in_store(Reservation::Held { store, added: 0 });
        let call = call.arg(id.to_string()).number(after).number(limit.sessions.into());
        let call = call.number(limit.is_checked.into());
        let call = call.number((limit.beyond == SessionLimitPolicy::Reject).into()).number(INDEX_PAGE as u64);
        let reply = self.write(&scripts::RESERVE, WriteConcern::Primary, &call, deadline).await?;
        Ok(match ReserveReply::decode(reply)? {
            ReserveReply::Added { added, replaced } => {
                Admitted::InPlaceOf(replaced, Reservation::Held { store, added })
            }
            ReserveReply::Full(newest) => Admitted::Full(newest),
            ReserveReply::LimitReached => Admitted::LimitReached,
        })
    }

    /// Removes ids from a subject index, each if it was added at or before the given time in us; None = any time.
    pub async fn remove(
        &self,
        subject: &Subject,
        entries: impl Iterator<Item = (SessionId, Option<u64>)>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let text = |(id, added): (SessionId, Option<u64>)| {
            [id.to_string(), added.map_or_else(String::new, |added| added.to_string())]
        };
        let entries: Vec<String> = entries.flat_map(text).collect();
        for entries in entries.chunks(2 * INDEX_PAGE) {
            let call = entries.iter().fold(self.subject_call(subject), |call, text| call.arg(text.clone()));
            RemoveReply::decode(self.write(&scripts::REMOVE, WriteConcern::Primary, &call, deadline).await?)?;
        }
        Ok(())
    }

    /// Returns the oldest entries of a subject index that were added after a time in us, up to `until`; None = any later time.
    pub async fn entries_after(
        &self,
        reads: Option<&PrimaryReads>,
        subject: &Subject,
        after: u64,
        until: Option<u64>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<IndexEntry>, Error> {
        let bounds = [format!("({after}"), until.map_or_else(|| "+inf".into(), |until| until.to_string())];
        self.entries(reads, subject, bounds, &["BYSCORE"], limit, deadline).await
    }

    /// Returns the newest entries of a subject index that were added before a time in us; None = any time.
    pub async fn entries_before(
        &self,
        reads: Option<&PrimaryReads>,
        subject: &Subject,
        before: Option<u64>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<IndexEntry>, Error> {
        let bounds = [before.map_or_else(|| "+inf".into(), |before| format!("({before}")), "-inf".into()];
        self.entries(reads, subject, bounds, &["BYSCORE", "REV"], limit, deadline).await
    }

    async fn entries(
        &self,
        reads: Option<&PrimaryReads>,
        subject: &Subject,
        [from, to]: [String; 2],
        order: &[&'static str],
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<IndexEntry>, Error> {
        let mut args: Vec<Bytes> = vec![self.keys.subject(subject), from.into(), to.into()];
        args.extend(order.iter().map(|word| Bytes::from(*word)));
        args.extend(["LIMIT".into(), "0".into(), limit.to_string().into(), "WITHSCORES".into()]);
        let partition = self.keys.partition_of_subject(subject);
        loop {
            // With scores the reply is an array of pairs, so it does not begin with stored text.
            let reply = self.command_in(reads, partition, "ZRANGE", args.clone(), deadline).await?;
            let (mut is_end, mut entries) = (true, Vec::new());
            for (id, score) in reply.pairs() {
                is_end = false;
                match IndexEntry::parse(&id, &score) {
                    Some(entry) => entries.push(entry),
                    // No session can have this id: the entry would stay.
                    None => {
                        crate::observe::error!(?subject, "removed invalid id from subject index");
                        let args = vec![self.keys.subject(subject), id.bytes().unwrap_or_default()];
                        self.command(partition, "ZREM", args, deadline).await?;
                    }
                }
            }
            // A page of invalid ids is not the end of the index.
            if is_end || !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// Returns whether an entry of a subject index counts: its session has the subject, or may get it. If it does not, the entry
    /// can be removed: a tombstone prevents the id from getting the subject, or the session lives and its reservation is no
    /// longer valid.
    async fn counts(
        &self,
        subject: &Subject,
        entry: IndexEntry,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let name = SessionRef { namespace: subject.namespace.clone(), id: entry.id };
        let reserved_since = entry.reserved_since(self.now()?);
        if reserved_since.is_some() {
            match self.peek(None, &name, Credential::Id, View::Basic, deadline).await {
                // The session may be about to be created: a tombstone would prevent that.
                Ok(Found::NotFound) => return Ok(true),
                Ok(_) | Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.end_if_expired(&name, reserved_since, policy, deadline).await {
            Ok(Settled::Lives { subject: of, is_reserved }) => Ok(of == subject.name || is_reserved),
            Ok(Settled::Ended) => Ok(false),
            // It ends at its deadline, or by a delete of its id.
            Err(Error::Corrupt { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes the entries of a subject index that no longer count. Returns their number.
    pub async fn remove_dead(
        &self,
        subject: &Subject,
        entries: &[IndexEntry],
        policy: &Policy,
        deadline: Instant,
    ) -> Result<u64, Error> {
        // Mostly, all entries belong to live sessions: one script per partition finds that. The others are checked one by one.
        let entries = entries.iter().map(|entry| (subject.clone(), *entry)).collect();
        let Partial { found, error } = self.entries_without_session(entries, deadline).await;
        let checks = found.into_iter();
        let checks = checks.map(async |(_, entry)| (entry, self.counts(subject, entry, policy, deadline).await));
        let checked: Vec<_> = stream::iter(checks).buffer_unordered(AT_ONCE).collect().await;
        let dead = checked.iter().filter(|(_, counts)| matches!(counts, Ok(false)));
        let dead: Vec<_> = dead.map(|(entry, _)| (entry.id, Some(entry.added))).collect();
        self.remove(subject, dead.iter().copied(), deadline).await?;
        // Entries that do not count are removed even if the check of another entry failed.
        checked.into_iter().try_for_each(|(_, counts)| counts.map(drop))?;
        error.map_or(Ok(dead.len() as u64), Err)
    }

    /// Claims work on a partition. Returns false if another instance has claimed it within the period, or this instance within
    /// the second period.
    pub async fn claim(
        &self,
        partition: Partition,
        claim: Claim,
        [period, own_period]: [Duration; 2],
        deadline: Instant,
    ) -> Result<bool, Error> {
        let call = self.partition_call(partition, Vec::new()).arg(claim.field()).number(self.instance);
        let call = call.number(millis(period)).number(millis(own_period));
        let reply = self.write(&scripts::CLAIM, WriteConcern::Primary, &call, deadline).await?;
        Ok(ClaimReply::decode(reply)? == ClaimReply::Claimed)
    }

    /// Waits for sessions that no longer have their subject, and returns those since the last call; at least one.
    pub async fn left(&self) -> Vec<Left> {
        self.leaving.next().await
    }

    pub(super) fn note_left(&self, name: &SessionRef, subject: String, reason: LeaveReason) {
        let subject = Subject { namespace: name.namespace.clone(), name: subject };
        self.leaving.note(Left { subject, id: name.id, reason });
    }
}
