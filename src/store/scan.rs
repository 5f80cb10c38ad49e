//! Iterates over live sessions: pages of ids for lists, and ids whose deadline has passed.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::session::{Namespace, SessionId};

use super::{Store, error::Error, keys::Partition, replies::DueReply, scripts};
use crate::redis::{Node, OnMigration, PrimaryReads, Reply, Request};

/// Maximum size of a set that is read whole and in order; larger ones are read with a Redis cursor.
const READ_WHOLE: u64 = 1_000;
/// Maximum number of namespaces read at once.
const NAMESPACES: usize = 64;

/// Position at which a list resumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListPosition {
    /// After an id of a partition; None = at the start of the partition.
    After(Partition, Option<SessionId>),
    /// At a Redis cursor of a partition.
    Cursor {
        /// Partition of the cursor.
        partition: Partition,
        /// Hash of the run id of the server; the cursor is void in another run.
        run: u32,
        /// Cursor of ZSCAN.
        cursor: u64,
    },
}

impl ListPosition {
    /// Returns the partition of the position.
    pub fn partition(&self) -> Partition {
        match self {
            ListPosition::After(partition, _) | ListPosition::Cursor { partition, .. } => *partition,
        }
    }
}

impl Store {
    /// Returns a page of ids of a namespace from a position, and the next position; None = the end.
    pub async fn list(
        &self,
        reads: Option<&PrimaryReads>,
        namespace: &Namespace,
        from: ListPosition,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<SessionId>, Option<ListPosition>), Error> {
        let (partition, run_and_cursor, after) = match from {
            ListPosition::After(partition, after) => (partition, None, after),
            ListPosition::Cursor { partition, run, cursor } => (partition, Some((run, cursor)), None),
        };
        let due = self.keys.due(partition, namespace);
        let count = self.command_in(reads, partition, "ZCARD", vec![due.clone()], deadline).await?;
        let next_partition = || {
            let next = Partition(partition.0 + 1);
            (next.index() < self.keys.partitions().len()).then_some(ListPosition::After(next, None))
        };
        if run_and_cursor.is_none() && count.number().unwrap_or(0) <= READ_WHOLE {
            let args = vec![due, "0".into(), "-1".into()];
            let reply = self.command_in(reads, partition, "ZRANGE", args, deadline).await?;
            let mut ids: Vec<SessionId> =
                ids(reply.array().unwrap_or_default()).filter(|id| Some(*id) > after).collect();
            ids.sort_unstable();
            if ids.len() > limit {
                ids.truncate(limit);
                let last = ids.last().copied();
                return Ok((ids, Some(ListPosition::After(partition, last))));
            }
            return Ok((ids, next_partition()));
        }
        // In another run of Redis or on another server the cursor is void: the partition starts again.
        let due = &due;
        let scan = async |node: Arc<Node>, asking| {
            let run = crc32fast::hash(node.run_id(deadline).await?.as_bytes());
            let cursor = run_and_cursor.filter(|(of, _)| *of == run).map_or(0, |(_, cursor)| cursor);
            let args = [due.clone(), cursor.to_string().into(), "COUNT".into(), limit.to_string().into()];
            let request = Request::Command { name: "ZSCAN", args: &args };
            let reply = match reads {
                Some(reads) => reads.ask(&node, request, deadline, asking).await?,
                None => node.ask_primary(request, deadline, asking).await?,
            };
            Ok((run, reply))
        };
        let (run, reply) = self.route(partition, deadline, OnMigration::Wait, scan).await?;
        let mut reply = reply.array().unwrap_or_default().into_iter();
        let cursor = reply.next().and_then(|cursor| cursor.number());
        let cursor: u64 = cursor.ok_or_else(|| Error::UnexpectedRead("ZSCAN".into()))?;
        let members = reply.next().into_iter().flat_map(Reply::pairs).map(|(member, _)| member);
        let ids = ids(members).collect();
        let next = if cursor == 0 { next_partition() } else { Some(ListPosition::Cursor { partition, run, cursor }) };
        Ok((ids, next))
    }

    /// Returns all namespaces that have sessions in a partition.
    pub async fn namespaces(&self, partition: Partition, deadline: Instant) -> Result<Vec<Namespace>, Error> {
        let args = vec![self.keys.namespaces(partition), "0".into(), "-1".into(), "WITHSCORES".into()];
        let reply = self.command(partition, "ZRANGE", args, deadline).await?;
        Ok(reply.pairs().filter_map(|(name, _)| name.text()?.parse().ok()).collect())
    }

    /// Returns the number of sessions of a namespace, expired ones that have not been ended yet included.
    pub async fn count(&self, namespace: &Namespace, deadline: Instant) -> Result<u64, Error> {
        let counts = self.keys.partitions().map(async |partition| {
            let args = vec![self.keys.due(partition, namespace)];
            Ok::<_, Error>(self.command(partition, "ZCARD", args, deadline).await?.number().unwrap_or(0))
        });
        Ok(futures_util::future::try_join_all(counts).await?.into_iter().sum())
    }

    /// Returns namespaces of a partition whose bound has passed at `now_ms`, and the bound of the next one in ms. If there may be
    /// more namespaces, the bound is `now_ms`; None = no other namespace has a deadline.
    pub async fn due_namespaces(
        &self,
        partition: Partition,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<(Vec<Namespace>, Option<u64>), Error> {
        let key = self.keys.namespaces(partition);
        let args = vec![key, "0".into(), (NAMESPACES - 1).to_string().into(), "WITHSCORES".into()];
        // With scores the reply is an array of pairs, so it does not begin with the name of a namespace.
        let page: Vec<_> = self.command(partition, "ZRANGE", args, deadline).await?.pairs().collect();
        let next = (page.len() == NAMESPACES).then_some(now_ms);
        let mut due = Vec::new();
        for (name, bound) in page {
            let (Some(namespace), Some(bound)) = (name.text().and_then(|name| name.parse().ok()), bound.float()) else {
                crate::observe::error!(partition = partition.0, "removed invalid namespace from namespace set");
                let args = vec![self.keys.namespaces(partition), name.bytes().unwrap_or_default()];
                self.command(partition, "ZREM", args, deadline).await?;
                continue;
            };
            if bound > now_ms as f64 {
                return Ok((due, bound.is_finite().then_some(bound as u64)));
            }
            due.push(namespace);
        }
        Ok((due, next))
    }

    /// Returns at most `limit` ids of a namespace whose deadline has passed. If there is none, sets the namespace's bound to its
    /// earliest deadline.
    pub async fn due(
        &self,
        partition: Partition,
        namespace: &Namespace,
        limit: usize,
        deadline: Instant,
    ) -> Result<Due, Error> {
        let keys = vec![self.keys.due(partition, namespace), self.keys.namespaces(partition)];
        let args = vec![Bytes::copy_from_slice(namespace.as_str().as_bytes()), limit.to_string().into()];
        let reply = DueReply::decode(self.run(partition, &scripts::DUE, keys, args, deadline).await?)?;
        for member in reply.invalid {
            // No script can end such a member: it would stay due.
            crate::observe::error!(partition = partition.0, %namespace, "removed invalid id from due set");
            let args = vec![self.keys.due(partition, namespace), member];
            self.command(partition, "ZREM", args, deadline).await?;
        }
        Ok(Due { ids: reply.ids, next: reply.next })
    }
}

/// Ids of a namespace whose deadline has passed.
pub struct Due {
    /// Ids with their deadlines in ms, the earliest first.
    pub ids: Vec<(SessionId, u64)>,
    /// Earliest deadline in ms if `ids` is empty. None: there is none.
    pub next: Option<u64>,
}

fn ids(members: impl IntoIterator<Item = Reply>) -> impl Iterator<Item = SessionId> {
    members.into_iter().filter_map(|member| member.text()?.parse().ok())
}
