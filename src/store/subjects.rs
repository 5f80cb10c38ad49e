//! The index of each subject's sessions: who is added, who is in it, who is forgotten.
//!
//! It lies in another slot than the sessions, so no script can change both. It is a superset: an id is added before its
//! session is this subject's, and leaves only when a script in the id's own partition has made sure that it is not, nor
//! comes to be.

use std::time::Duration;

use fred::types::Value;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};

use super::{
    Found, Lane, Reserved, Settled, Store,
    calls::unexpected,
    error::Error,
    exchange::Answer,
    msgpack::Arguments,
    scripts::{self, Outcome},
};
use crate::session::{Policy, Proof, SessionId, SessionLimitPolicy, SessionName, Subject, View};

/// Entries read or told at once.
pub const PAGE: usize = 1_000;
/// Sessions looked at, at once.
const AT_ONCE: usize = 100;
/// Ids waiting to be forgotten; those beyond it are found by the next audit.
const WAITING: usize = 65_536;
/// An entry may be of a session that is still to come for as long as a script may be under way: 10 s, and as much as the
/// clocks of two Redis hosts may differ.
pub const JOINING: Duration = Duration::from_secs(15);

/// An id in a subject's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: SessionId,
    /// When it was added, in us by the clock of Redis; no two of an index are equal.
    pub added: u64,
}

impl Entry {
    /// Since when its session may be about to become this subject's, in us; None = that is over.
    pub fn joining(&self, now_us: u64) -> Option<u64> {
        (now_us < self.added + JOINING.as_micros() as u64).then_some(self.added)
    }
}

/// How far a walk through all subjects has got.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanPosition {
    server: usize,
    cursor: u64,
}

impl ScanPosition {
    /// Where the next server begins.
    pub fn next_server(self) -> Self {
        ScanPosition { server: self.server + 1, cursor: 0 }
    }
}

/// How many sessions a subject may have, and how far that was looked into.
pub struct Limit {
    /// 0 = any number.
    pub sessions: u32,
    pub beyond: SessionLimitPolicy,
    /// Whether the newest of the index, as many as the limit, are known to count.
    pub is_checked: bool,
}

impl Limit {
    pub const NONE: Limit = Limit { sessions: 0, beyond: SessionLimitPolicy::ReplaceOldest, is_checked: false };
}

pub enum Admitted {
    /// It has this place, and may be made once these are ended, all but the newest; where they fill a page there may be
    /// more.
    InPlaceOf(Vec<Entry>, Reserved),
    /// These are the newest of the index, as many as the limit, and perhaps its own: do they count?
    Full(Vec<Entry>),
    LimitReached,
}

/// A session that is not one of a subject any more.
pub struct Left {
    pub subject: Subject,
    pub id: SessionId,
    pub why: Why,
}

pub enum Why {
    /// It has ended, just now.
    Ended(Instant),
    /// It lives on. All that the index got up to then, in us, is void.
    Left { at: u64 },
}

/// Who left, for whoever tidies the indexes.
pub struct Leaving {
    sender: mpsc::Sender<Left>,
    receiver: Mutex<mpsc::Receiver<Left>>,
}

impl Default for Leaving {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Leaving { sender, receiver: Mutex::new(receiver) }
    }
}

impl Leaving {
    /// One that does not fit is found by the next audit.
    pub(super) fn note(&self, left: Left) {
        let _ = self.sender.try_send(left);
    }

    /// The next ones, at least one.
    pub async fn next(&self) -> Vec<Left> {
        let mut left = Vec::new();
        self.receiver.lock().await.recv_many(&mut left, PAGE).await;
        left
    }
}

impl Store {
    /// Adds an id to its subject's index, later than this, in us.
    pub async fn admit(
        &self,
        subject: &Subject,
        id: SessionId,
        after: u64,
        limit: Limit,
        deadline: Instant,
    ) -> Result<Admitted, Error> {
        let mut args = Arguments::default();
        args.text("id", id).number("after", after).number("limit", limit.sessions.into()).number("page", PAGE as u64);
        if limit.is_checked {
            args.flag("checked", true);
        }
        if limit.beyond == SessionLimitPolicy::Reject {
            args.flag("rejects", true);
        }
        let (target, store) = (self.subject_target(subject), self.id());
        let target = target.in_store(Reserved::In { store, added: 0 });
        let mut reply = self.write(&scripts::ADMIT, Answer::AtOnce(Lane::Calls), target, args, deadline).await?;
        Ok(match reply.outcome {
            Outcome::Done => {
                let place = Reserved::In { store, added: reply.number()? };
                Admitted::InPlaceOf(flat_entries(reply.next()), place)
            }
            Outcome::SubjectFull => Admitted::Full(flat_entries(reply.next())),
            Outcome::SubjectLimit => Admitted::LimitReached,
            other => return Err(unexpected(&scripts::ADMIT, other)),
        })
    }

    /// Takes ids out of a subject's index, each if it was added by then, in us; None = whenever.
    pub async fn forget(
        &self,
        subject: &Subject,
        entries: impl Iterator<Item = (SessionId, Option<u64>)>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let text = |(id, added): (SessionId, Option<u64>)| {
            [id.to_string(), added.map_or_else(String::new, |added| added.to_string())]
        };
        let entries: Vec<String> = entries.flat_map(text).collect();
        for entries in entries.chunks(2 * PAGE) {
            let mut args = Arguments::default();
            args.list("entries", entries.iter().map(String::as_bytes));
            let target = self.subject_target(subject);
            self.write(&scripts::FORGET, Answer::AtOnce(Lane::Bulk), target, args, deadline).await?;
        }
        Ok(())
    }

    /// The oldest entries of a subject's index that were added after this.
    pub async fn entries_after(
        &self,
        subject: &Subject,
        after: u64,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Entry>, Error> {
        let bounds = [format!("({after}"), "+inf".into()];
        self.entries(subject, bounds, &["BYSCORE"], limit, deadline).await
    }

    /// The newest entries of a subject's index that were added before this; None = of all.
    pub async fn entries_before(
        &self,
        subject: &Subject,
        before: Option<u64>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Entry>, Error> {
        let bounds = [before.map_or_else(|| "+inf".into(), |before| format!("({before}")), "-inf".into()];
        self.entries(subject, bounds, &["BYSCORE", "REV"], limit, deadline).await
    }

    async fn entries(
        &self,
        subject: &Subject,
        [from, to]: [String; 2],
        order: &[&'static str],
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Entry>, Error> {
        let mut args: Vec<Value> = vec![self.keys.subject(subject).into(), from.into(), to.into()];
        args.extend(order.iter().map(|word| Value::from(*word)));
        args.extend(["LIMIT".into(), 0.into(), (limit as i64).into(), "WITHSCORES".into()]);
        // With scores the reply is an array of pairs: none that a stored text could begin.
        let partition = self.keys.partition_of_subject(subject);
        let reply = self.connection.command(partition, "ZRANGE", args, deadline).await?;
        let mut entries = Vec::new();
        for pair in reply.into_array() {
            let mut pair = pair.into_array().into_iter();
            let (Some(id), Some(score)) = (pair.next(), pair.next()) else { continue };
            match entry(id.clone(), score) {
                Some(entry) => entries.push(entry),
                // It would stand for a session for ever.
                None => {
                    tracing::error!(?subject, "what is no id is dropped from a subject's index");
                    let args = vec![self.keys.subject(subject).into(), id];
                    self.connection.command(partition, "ZREM", args, deadline).await?;
                }
            }
        }
        Ok(entries)
    }

    /// When an id was added to a subject's index; None = it is not in it.
    pub async fn added(&self, subject: &Subject, id: SessionId, deadline: Instant) -> Result<Option<u64>, Error> {
        let args = vec![self.keys.subject(subject).into(), id.to_string().into()];
        let score = self.connection.command(self.keys.partition_of_subject(subject), "ZSCORE", args, deadline).await?;
        Ok(score.as_f64().map(|score| score as u64))
    }

    /// Some subjects that have an index, and where to go on; None = that was all. The same one may come again.
    pub async fn subjects(
        &self,
        from: ScanPosition,
        deadline: Instant,
    ) -> Result<(Vec<Subject>, Option<ScanPosition>), Error> {
        let nodes = self.connection.nodes();
        let Some(node) = nodes.get(from.server) else { return Ok((Vec::new(), None)) };
        let words =
            [from.cursor.to_string(), "MATCH".into(), self.keys.subjects_pattern(), "COUNT".into(), PAGE.to_string()];
        let args = words.map(Value::from);
        let mut reply = node.command(Lane::Bulk, "SCAN", &args, deadline).await?.into_array().into_iter();
        let cursor = reply.next().and_then(|cursor| cursor.into_string()).and_then(|cursor| cursor.parse().ok());
        let cursor = cursor.ok_or_else(|| Error::Unexpected("SCAN".into()))?;
        let keys = reply.next().map(Value::into_array).unwrap_or_default();
        let subject = |key: Value| self.keys.subject_of_key(&key.into_string()?);
        let next = match cursor {
            0 => from.next_server(),
            cursor => ScanPosition { cursor, ..from },
        };
        let next = (next.server < nodes.len()).then_some(next);
        Ok((keys.into_iter().filter_map(subject).collect(), next))
    }

    /// Whether an entry of a subject's index still counts. Where it does not, it may be forgotten: nothing of its id can
    /// become this subject's for a while.
    async fn counts(&self, subject: &Subject, entry: Entry, policy: &Policy, deadline: Instant) -> Result<bool, Error> {
        let name = SessionName { namespace: subject.namespace.clone(), id: entry.id };
        let joining = entry.joining(self.clock(deadline).await?);
        if joining.is_some() {
            match self.look(&name, Proof::Named, View::Basic, deadline).await {
                // Not made yet: it must not be kept from that.
                Ok(Found::NotFound) => return Ok(true),
                Ok(_) | Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.settle(&name, joining, policy, deadline).await {
            Ok(Settled::Lives { subject: of, is_joining }) => Ok(of == subject.name || is_joining),
            Ok(Settled::Ended) => Ok(false),
            // It ends by its deadline, or by its id.
            Err(Error::Corrupt { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Forgets those entries of a subject's index that do not count any more; how many.
    pub async fn forget_dead(
        &self,
        subject: &Subject,
        entries: &[Entry],
        policy: &Policy,
        deadline: Instant,
    ) -> Result<u64, Error> {
        let looks = entries.iter().copied();
        let looks = looks.map(async |entry| (entry, self.counts(subject, entry, policy, deadline).await));
        let looked: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        let dead = looked.iter().filter(|(_, counts)| matches!(counts, Ok(false)));
        let dead: Vec<_> = dead.map(|(entry, _)| (entry.id, Some(entry.added))).collect();
        self.forget(subject, dead.iter().copied(), deadline).await?;
        // What is known dead is forgotten, whatever could not be looked at.
        looked.into_iter().try_for_each(|(_, counts)| counts.map(drop))?;
        Ok(dead.len() as u64)
    }

    /// Whether this instance is to audit the store now: one of all is, once in a period.
    pub async fn claim_audit(&self, period: Duration, deadline: Instant) -> Result<bool, Error> {
        let mut args = Arguments::default();
        args.number("period", period.as_millis() as u64);
        let answer = Answer::AtOnce(Lane::Bulk);
        let reply = self.write(&scripts::CLAIM, answer, self.store_target(), args, deadline).await?;
        Ok(reply.outcome == Outcome::Done)
    }

    /// Who left since this was last asked; waits until somebody has.
    pub async fn left(&self) -> Vec<Left> {
        self.leaving.next().await
    }

    pub(super) fn note_left(&self, name: &SessionName, subject: String, why: Why) {
        let subject = Subject { namespace: name.namespace.clone(), name: subject };
        self.leaving.note(Left { subject, id: name.id, why });
    }
}

fn flat_entries(list: Option<Value>) -> Vec<Entry> {
    let mut list = list.map(Value::into_array).unwrap_or_default().into_iter();
    let mut entries = Vec::new();
    while let (Some(id), Some(score)) = (list.next(), list.next()) {
        entries.extend(entry(id, score));
    }
    entries
}

fn entry(id: Value, score: Value) -> Option<Entry> {
    Some(Entry { id: id.into_string()?.parse().ok()?, added: score.as_f64()? as u64 })
}
