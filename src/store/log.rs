//! Tails of the logs: the last position of each partition.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Store, error::Error, keys::Partition, position::Position, routing::Server, store_id::StoreId};
use crate::redis::{self, Asking, Reply, Request};

/// Last position of a log, and the position at which its history began.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// Last position.
    pub position: Position,
    /// Position at which the history of the store began. None: another client removed the field.
    pub origin: Option<Position>,
}

/// Tails of the logs of one server.
pub struct Tails {
    /// Time in us, Redis clock, before the tails were read.
    pub as_of: u64,
    /// Tails of the partitions that could be read.
    pub tails: Vec<(Partition, Tail)>,
    /// Error of a partition that could not be read. None: all were read.
    pub unread: Option<Error>,
}

impl Store {
    /// Reads the tail of each partition of this server from the primary. Returns [`Error::StoreChanged`] if it is another
    /// store.
    pub async fn tails(&self, server: &Server, deadline: Instant) -> Result<Tails, Error> {
        // Redis replies in order: it reads its clock first.
        let fields: Vec<[Bytes; 4]> = server.partitions.iter().map(|partition| self.tail_fields(*partition)).collect();
        let reads = fields.iter().map(|args| Request::Command { name: "HMGET", args });
        let time = Request::Command { name: "TIME", args: &[] };
        let requests: Vec<Request<'_>> = std::iter::once(time).chain(reads).collect();
        let sent = Instant::now();
        let replies = server.node.ask_primary_all(&requests, deadline, Asking::No).await;
        let mut replies = replies.map_err(|error| self.note_redirect(error))?.into_iter();
        let time = replies.next().unwrap_or(Err(redis::Error::UnexpectedReply("TIME")))?;
        let as_of = server.node.note_time_reply(time, sent)?;
        let reads = server.partitions.iter().zip(replies).map(async |(partition, reply)| match reply {
            Ok(reply) => Ok((*partition, self.tail_of(reply)?)),
            // Its slot is migrating.
            Err(redis::Error::Redirect(_)) => Ok((*partition, self.tail(*partition, deadline).await?)),
            Err(error) => Err(error.into()),
        });
        let reads = futures_util::future::join_all(reads).await;
        let (mut tails, mut unread) = (Vec::new(), None);
        for read in reads {
            match read {
                Ok(tail) => tails.push(tail),
                Err(Error::StoreChanged) => return Err(Error::StoreChanged),
                Err(error) => unread = Some(error),
            }
        }
        Ok(Tails { as_of, tails, unread })
    }

    /// Reads the last position of each partition.
    pub async fn ends(&self, deadline: Instant) -> Result<Vec<Position>, Error> {
        let tails = self.partitions().map(|partition| self.tail(partition, deadline));
        Ok(futures_util::future::try_join_all(tails).await?.into_iter().map(|tail| tail.position).collect())
    }

    /// Reads the tail of a partition.
    pub async fn tail(&self, partition: Partition, deadline: Instant) -> Result<Tail, Error> {
        let args = self.tail_fields(partition).to_vec();
        self.tail_of(self.command(partition, "HMGET", args, deadline).await?)
    }

    fn tail_fields(&self, partition: Partition) -> [Bytes; 4] {
        [self.keys.meta(partition), "store".into(), "last".into(), "origin".into()]
    }

    fn tail_of(&self, reply: Reply) -> Result<Tail, Error> {
        let fields: Vec<Option<Bytes>> = reply.array().unwrap_or_default().into_iter().map(Reply::bytes).collect();
        let Ok([Some(id), Some(last), origin]) = <[_; 3]>::try_from(fields) else { return Err(Error::StoreChanged) };
        if StoreId::from_text(&id) != Some(self.id()) {
            return Err(Error::StoreChanged);
        }
        let position = Position::from_text(&last).ok_or(Error::StoreChanged)?;
        Ok(Tail { position, origin: origin.and_then(|origin| Position::from_text(&origin)) })
    }
}
