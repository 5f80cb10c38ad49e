//! The log of changes, one stream per partition: entries, positions, messages and tails.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::session::{Event, Revision};

use super::{Server, Store, error::Error, keys::Partition};
use crate::redis::{self, Priority, Reply};

/// Identity of a store: generated on first use, lost when the store is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    pub(super) fn to_text(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        data_encoding::HEXLOWER.decode(text).ok()?.try_into().ok().map(StoreId)
    }
}

/// Position of an entry in its partition's log. The nonce distinguishes branches of history that used the same revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Revision of the change.
    pub revision: Revision,
    /// Random number of the send that made the change.
    pub nonce: u64,
}

impl Position {
    /// Upper bound of revisions: Lua numbers are exact below it. A position at or above it is malformed.
    pub const BEYOND: u64 = 1 << 53;

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let position = Position { revision: Revision(revision.parse().ok()?), nonce: nonce.parse().ok()? };
        (position.revision.0 < Position::BEYOND).then_some(position)
    }

    pub(super) fn to_text(self) -> String {
        format!("{}-{}", self.revision.0, self.nonce)
    }
}

/// One change with its position, and the position of the entry before it, which proves that no entry is missing.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Partition of the log.
    pub partition: Partition,
    /// Position of the entry.
    pub position: Position,
    /// Position of the entry before it.
    pub previous: Position,
    /// The change, shared by those that receive it.
    pub event: Arc<Event>,
}

/// Last position of a log, and the position at which its history began.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// Last position.
    pub position: Position,
    /// Position at which the history of the store began. None: written by a version that did not record it.
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
        let node = &server.node;
        let as_of = async { Ok(node.time(Priority::Background, deadline).await?) };
        let is_primary = async { node.require_primary(deadline).await.map_err(|error| self.note_redirect(error)) };
        let reads = server.partitions.iter().map(async |partition| {
            match node.command(Priority::Background, "HMGET", &self.tail_fields(*partition), deadline).await {
                Ok(reply) => Ok((*partition, self.tail_of(reply)?)),
                // Its slot is migrating.
                Err(redis::Error::Redirect(_)) => Ok((*partition, self.tail(*partition, deadline).await?)),
                Err(error) => Err(error.into()),
            }
        });
        let reads = async { Ok(futures_util::future::join_all(reads).await) };
        let (as_of, (), reads) = tokio::try_join!(biased; as_of, is_primary, reads)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_too_large_revision_is_rejected() {
        let last = Position { revision: Revision(Position::BEYOND - 1), nonce: u64::MAX };
        assert_eq!(Position::from_text(last.to_text().as_bytes()), Some(last));
        let beyond = Position { revision: Revision(Position::BEYOND), ..last };
        assert_eq!(Position::from_text(beyond.to_text().as_bytes()), None);
    }
}
