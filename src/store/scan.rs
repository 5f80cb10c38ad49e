//! Walking through what lives: pages of ids for lists, and the ids that are due.

use std::sync::Arc;

use bytes::Bytes;
use fred::types::{Key, Value};
use tokio::time::Instant;

use crate::session::{Namespace, SessionId};

use super::{
    Store,
    error::{Error, Failure},
    keys::Partition,
    node::{Effect, Lane, Node, Request},
    scripts::{self, Script},
};

/// Sets up to this size are read whole and in order; larger ones by a cursor of Redis.
const READ_WHOLE: u64 = 1_000;
/// Namespaces looked at in one go.
const NAMESPACES: i64 = 64;

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListPosition {
    /// In this partition, after this id; None = at its start.
    After(Partition, Option<SessionId>),
    /// In this partition, at a cursor of Redis, good for the run of Redis that has this hash.
    Cursor { partition: Partition, run: u32, cursor: u64 },
    /// In a subject's index, below what was added then, in us; None = at its newest.
    AddedBefore(Option<u64>),
}

impl ListPosition {
    /// None = it is in no partition.
    pub fn partition(&self) -> Option<Partition> {
        match self {
            ListPosition::After(partition, _) | ListPosition::Cursor { partition, .. } => Some(*partition),
            ListPosition::AddedBefore(_) => None,
        }
    }
}

impl Store {
    /// Some ids of a namespace from the position on, and where to go on; None = that was all.
    pub async fn list(
        &self,
        namespace: &Namespace,
        from: ListPosition,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<SessionId>, Option<ListPosition>), Error> {
        let (partition, run_and_cursor, after) = match from {
            ListPosition::After(partition, after) => (partition, None, after),
            ListPosition::Cursor { partition, run, cursor } => (partition, Some((run, cursor)), None),
            ListPosition::AddedBefore(_) => return Ok((Vec::new(), None)),
        };
        let due = self.keys.due(partition, namespace);
        let count = self.connection.command(partition, "ZCARD", vec![due.clone().into()], deadline).await?;
        let next_partition = || {
            let next = Partition(partition.0 + 1);
            (next.index() < self.keys.partitions().len()).then_some(ListPosition::After(next, None))
        };
        if run_and_cursor.is_none() && count.as_u64().unwrap_or(0) <= READ_WHOLE {
            let args = vec![due.into(), 0.into(), (-1).into()];
            let reply = self.connection.command(partition, "ZRANGE", args, deadline).await?;
            let mut ids: Vec<SessionId> = ids(reply.into_array()).filter(|id| Some(*id) > after).collect();
            ids.sort_unstable();
            if ids.len() > limit {
                ids.truncate(limit);
                let last = ids.last().copied();
                return Ok((ids, Some(ListPosition::After(partition, last))));
            }
            return Ok((ids, next_partition()));
        }
        // A cursor is void for another run of Redis, and on another server: the partition starts again.
        let due = &due;
        let scan = async |node: Arc<Node>, asking| {
            let run = crc32fast::hash(node.run(deadline).await?.as_bytes());
            let cursor = run_and_cursor.filter(|(of, _)| *of == run).map_or(0, |(_, cursor)| cursor);
            let args = [due.clone().into(), cursor.to_string().into(), "COUNT".into(), (limit as i64).into()];
            Ok((run, node.ask_primary("ZSCAN", &args, deadline, asking).await?))
        };
        let (run, reply) = self.connection.at(partition, deadline, scan).await?;
        let mut reply = reply.into_array().into_iter();
        let cursor = reply.next().and_then(|cursor| cursor.into_string()).and_then(|cursor| cursor.parse().ok());
        let cursor: u64 = cursor.ok_or_else(|| Error::Unexpected("ZSCAN".into()))?;
        let members = reply.next().map(Value::into_array).unwrap_or_default();
        let ids = ids(members.into_iter().step_by(2)).collect();
        let next = if cursor == 0 { next_partition() } else { Some(ListPosition::Cursor { partition, run, cursor }) };
        Ok((ids, next))
    }

    /// All namespaces that have sessions in a partition.
    pub async fn namespaces(&self, partition: Partition, deadline: Instant) -> Result<Vec<Namespace>, Error> {
        let args = vec![self.keys.namespaces(partition).into(), 0.into(), (-1).into(), "WITHSCORES".into()];
        let reply = self.connection.command(partition, "ZRANGE", args, deadline).await?;
        let name = |pair: Value| pair.into_array().into_iter().next()?.into_string()?.parse().ok();
        Ok(reply.into_array().into_iter().filter_map(name).collect())
    }

    /// How many sessions of a namespace there are; those that are due and not ended yet included.
    pub async fn count(&self, namespace: &Namespace, deadline: Instant) -> Result<u64, Error> {
        let counts = self.keys.partitions().map(async |partition| {
            let args = vec![self.keys.due(partition, namespace).into()];
            Ok::<_, Error>(self.connection.command(partition, "ZCARD", args, deadline).await?.as_u64().unwrap_or(0))
        });
        Ok(futures_util::future::try_join_all(counts).await?.into_iter().sum())
    }

    /// The namespaces of a partition whose bound is over at `now_ms`, some of them at least, and the bound of the next one:
    /// `now_ms` where there may be more.
    pub async fn due_namespaces(
        &self,
        partition: Partition,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<(Vec<Namespace>, Option<u64>), Error> {
        let key = self.keys.namespaces(partition);
        let args = vec![key.into(), 0.into(), (NAMESPACES - 1).into(), "WITHSCORES".into()];
        // With scores the reply is an array of pairs: none that a namespace's name could begin.
        let page = self.connection.command(partition, "ZRANGE", args, deadline).await?.into_array();
        let next = (page.len() as i64 == NAMESPACES).then_some(now_ms);
        let mut due = Vec::new();
        for pair in page {
            let mut pair = pair.into_array().into_iter();
            let (name, bound) = (pair.next().unwrap_or(Value::Null), pair.next().and_then(|bound| bound.as_f64()));
            let (Some(namespace), Some(bound)) = (name.as_str().and_then(|name| name.parse().ok()), bound) else {
                tracing::error!(partition = partition.0, "what is no namespace is dropped from the set of them");
                let args = vec![self.keys.namespaces(partition).into(), name];
                self.connection.command(partition, "ZREM", args, deadline).await?;
                continue;
            };
            if bound > now_ms as f64 {
                return Ok((due, bound.is_finite().then_some(bound as u64)));
            }
            due.push(namespace);
        }
        Ok((due, next))
    }

    /// What is due of a namespace, at most so many ids. Where there is none, the namespace's bound is set to its earliest
    /// deadline.
    pub async fn due(
        &self,
        partition: Partition,
        namespace: &Namespace,
        limit: usize,
        deadline: Instant,
    ) -> Result<Due, Error> {
        let keys = vec![self.keys.due(partition, namespace), self.keys.namespaces(partition)];
        let args = vec![Bytes::copy_from_slice(namespace.as_str().as_bytes()), limit.to_string().into()];
        let mut reply = self.run(partition, &scripts::DUE, keys, args, deadline).await?.into_iter();
        reply.next();
        let members = reply.next().map(Value::into_array).unwrap_or_default();
        let mut ids = Vec::with_capacity(members.len() / 2);
        let mut members = members.into_iter();
        while let (Some(id), Some(score)) = (members.next(), members.next()) {
            match id.as_str().and_then(|id| id.parse().ok()) {
                Some(id) => ids.push((id, score.as_f64().unwrap_or(0.0) as u64)),
                // No session of that name can be ended: it would be due for ever.
                None => {
                    tracing::error!(partition = partition.0, %namespace, "what is no id is dropped from the due set");
                    let args = vec![self.keys.due(partition, namespace).into(), id];
                    self.connection.command(partition, "ZREM", args, deadline).await?;
                }
            }
        }
        let next = reply.next().and_then(|next| next.as_f64()).filter(|next| next.is_finite());
        Ok(Due { ids, next: next.map(|next| next as u64) })
    }

    /// Drops log entries beyond the bounds, at most a batch of them; says how many.
    pub async fn trim(&self, partition: Partition, bounds: LogBounds, deadline: Instant) -> Result<u64, Error> {
        let keys = vec![self.keys.log(partition), self.keys.meta(partition)];
        let numbers = [bounds.age_us, bounds.entries, bounds.bytes, bounds.batch];
        let args = numbers.map(|number| number.to_string().into()).to_vec();
        let reply = self.run(partition, &scripts::TRIM, keys, args, deadline).await?;
        Ok(reply.first().and_then(|dropped| dropped.as_u64()).unwrap_or(0))
    }
}

impl Store {
    /// Runs a script of a partition that no gate stands before. Twice does no more than once.
    pub(super) async fn run(
        &self,
        partition: Partition,
        script: &'static Script,
        keys: Vec<Key>,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Value>, Error> {
        let (keys, args) = (&keys[..], &args[..]);
        let attempt = |node: Arc<Node>, asking| async move {
            let request = Request::Script { script, keys, args };
            match node.send(Lane::Bulk, request, deadline, Effect::Writes, asking).await? {
                Value::Array(reply) => Ok(reply),
                other => Err(Failure::Error(Error::Unexpected(format!("{}: {:?}", script.name, other.kind())))),
            }
        };
        self.connection.at(partition, deadline, attempt).await
    }
}

/// What is due of a namespace.
pub struct Due {
    /// With their deadlines in ms.
    pub ids: Vec<(SessionId, u64)>,
    /// The earliest deadline in ms, where nothing is due; None = there is none.
    pub next: Option<u64>,
}

/// How long a partition's log may get.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    pub age_us: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Entries dropped in one go.
    pub batch: u64,
}

fn ids(members: impl IntoIterator<Item = Value>) -> impl Iterator<Item = SessionId> {
    members.into_iter().filter_map(|member| member.into_string()?.parse().ok())
}
