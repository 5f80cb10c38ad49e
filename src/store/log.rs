//! The log of changes, one stream per partition: its entries, positions in it, and what follows a position.

use bytes::Bytes;
use fred::types::Value;
use tokio::time::Instant;

use crate::session::{Cause, Change, Event, Revision, Session, SessionName};

use super::{
    Server, Store,
    error::{Error, Failure},
    keys::Partition,
    msgpack::{Reader, Truncated},
    node::Lane,
    record::{self, Corrupt},
};

/// Entries in a page: bounds what one reply may hold.
const PAGE: usize = 32;

/// Identity of a store: made when it was first used, lost when it is emptied.
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

/// Place of an entry in its partition's log. The nonce tells branches of history apart that gave the same revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    pub revision: Revision,
    pub nonce: u64,
}

impl Position {
    /// No revision is as large: Redis would take it for a mistake, not for a place ahead of the log.
    pub const BEYOND: u64 = 1 << 53;

    fn from_text(text: &[u8]) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let position = Position { revision: Revision(revision.parse().ok()?), nonce: nonce.parse().ok()? };
        (position.revision.0 < Position::BEYOND).then_some(position)
    }

    fn to_text(self) -> String {
        format!("{}-{}", self.revision.0, self.nonce)
    }
}

/// One change, its place, and the place of the entry before it: what proves that none is missing between.
#[derive(Clone, Debug)]
pub struct Entry {
    pub partition: Partition,
    pub position: Position,
    pub previous: Position,
    pub event: Event,
}

impl Entry {
    fn decode(partition: Partition, text: Bytes) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(text);
        if reader.array()? < 10 || reader.integer()? != i64::from(record::FORMAT) {
            return Err(Corrupt::Meta);
        }
        let position = Position::from_text(&reader.bytes()?).ok_or(Truncated)?;
        let previous = Position::from_text(&reader.bytes()?).ok_or(Truncated)?;
        let (kind, cause) = (reader.integer()?, reader.integer()?);
        let change = match (kind, Cause::from_number(cause)) {
            (1, None) => Change::Created,
            (2, None) => Change::Updated,
            (3, None) => Change::Rotated,
            (4, Some(cause)) => Change::Ended(cause),
            (7, None) => Change::TokenReused,
            _ => return Err(Corrupt::Meta),
        };
        let namespace = reader.text()?.parse().map_err(|_| Truncated)?;
        let name = SessionName { namespace, id: reader.text()?.parse().map_err(|_| Truncated)? };
        let fields = reader.bytes()?;
        let changed_attributes = (0..reader.array()?).map(|_| reader.text()).collect::<Result<_, _>>()?;
        let before = reader.bytes()?;
        let before = if before.is_empty() { None } else { Some(record::decode_facets(before)?) };
        // A session that cannot be read still has its change told.
        let session = record::decode(name.clone(), fields).unwrap_or_else(|cause| {
            if change != Change::Ended(Cause::OutOfBand) {
                tracing::error!(session = %name, %cause, "log entry holds a session that cannot be read");
            }
            Session::bare(name)
        });
        Ok(Entry {
            partition,
            position,
            previous,
            event: Event { change, revision: position.revision, session, changed_attributes, before },
        })
    }
}

/// Where a log ends, and where it began when its store was made.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    pub position: Position,
    /// None = made by a version that did not note it.
    pub origin: Option<Position>,
}

/// Where the logs of a server end.
pub struct Tails {
    /// Its time in us before they were read.
    pub as_of: u64,
    /// Of each of its partitions that could be read.
    pub tails: Vec<(Partition, Tail)>,
    /// Why others could not.
    pub unread: Option<Error>,
}

/// What the channel of a partition brought.
pub enum Message {
    Entry(Box<Entry>),
    /// Too large to travel: it is in the log of this partition, at this position. None = unreadable.
    InLog(Partition, Option<Position>),
}

impl Message {
    pub(super) fn decode(partition: Partition, text: Bytes) -> Self {
        match Position::from_text(&text) {
            Some(position) => Message::InLog(partition, Some(position)),
            None => match Entry::decode(partition, text) {
                Ok(entry) => Message::Entry(Box::new(entry)),
                Err(_) => Message::InLog(partition, None),
            },
        }
    }
}

/// The entries up to the first one that does not follow the one before it: reading on from there tells why.
fn chained(mut entries: Vec<Entry>) -> Vec<Entry> {
    let follows = entries.windows(2).take_while(|pair| pair[1].previous == pair[0].position).count();
    entries.truncate(follows + 1);
    entries
}

/// What follows a position.
pub enum Page {
    /// At least one, each following the one before it.
    Entries(Vec<Entry>),
    /// Nothing: the position is the tail.
    Tail,
    /// The log no longer reaches back to the position.
    Compacted,
    /// The position is from before the store was emptied.
    Flushed,
    /// The position is not in this history: it was rewound, or is of another branch.
    RolledBack,
}

impl Store {
    /// Where the log of each partition of this server ends, as the primary tells it; [`Error::StoreChanged`] where it is
    /// another store.
    pub async fn tails(&self, server: &Server, deadline: Instant) -> Result<Tails, Error> {
        // Redis answers in order: it reads its clock first.
        let node = &server.node;
        let as_of = async { Ok(node.time(Lane::Bulk, deadline).await?) };
        let is_primary = async { node.is_primary(deadline).await.map_err(|failure| self.elsewhere(failure)) };
        let reads = server.partitions.iter().map(async |partition| {
            match node.command(Lane::Bulk, "HMGET", &self.tail_fields(*partition), deadline).await {
                Ok(reply) => Ok((*partition, self.tail_of(reply)?)),
                // It is on its way to another server.
                Err(Failure::Elsewhere(_)) => Ok((*partition, self.tail(*partition, deadline).await?)),
                Err(Failure::Error(error)) => Err(error),
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

    /// Where the log of each partition ends.
    pub async fn ends(&self, deadline: Instant) -> Result<Vec<Position>, Error> {
        let tails = self.partitions().map(|partition| self.tail(partition, deadline));
        Ok(futures_util::future::try_join_all(tails).await?.into_iter().map(|tail| tail.position).collect())
    }

    /// Where the log of this partition ends.
    pub async fn tail(&self, partition: Partition, deadline: Instant) -> Result<Tail, Error> {
        let args = self.tail_fields(partition).to_vec();
        self.tail_of(self.connection.command(partition, "HMGET", args, deadline).await?)
    }

    fn tail_fields(&self, partition: Partition) -> [Value; 4] {
        [self.keys.meta(partition).into(), "store".into(), "last".into(), "origin".into()]
    }

    fn tail_of(&self, reply: Value) -> Result<Tail, Error> {
        let fields: Vec<Option<Bytes>> = reply.into_array().into_iter().map(Value::into_bytes).collect();
        let Ok([Some(id), Some(last), origin]) = <[_; 3]>::try_from(fields) else { return Err(Error::StoreChanged) };
        if StoreId::from_text(&id) != Some(self.id()) {
            return Err(Error::StoreChanged);
        }
        let position = Position::from_text(&last).ok_or(Error::StoreChanged)?;
        Ok(Tail { position, origin: origin.and_then(|origin| Position::from_text(&origin)) })
    }

    /// The entries that follow the position, at most a page of them.
    pub async fn read_after(&self, partition: Partition, after: Position, deadline: Instant) -> Result<Page, Error> {
        self.read_page(partition, after, PAGE, deadline).await
    }

    async fn read_page(
        &self,
        partition: Partition,
        after: Position,
        most: usize,
        deadline: Instant,
    ) -> Result<Page, Error> {
        let from = format!("({}", after.to_text());
        let follows = |entries: &[Entry]| entries.first().is_some_and(|first| first.previous == after);
        // Redis answers in order: what is appended after the tail was read can only be among the entries.
        let (tail, entries) = tokio::join!(
            biased;
            self.tail(partition, deadline),
            self.range(partition, &from, most, deadline)
        );
        let entries = match entries {
            Err(Error::Unexpected(what)) => {
                tracing::error!(what, "watchers have to resync past it");
                return Ok(Page::Compacted);
            }
            entries => entries?,
        };
        if follows(&entries) {
            return Ok(Page::Entries(chained(entries)));
        }
        let tail = tail?;
        if after == tail.position {
            return Ok(Page::Tail);
        }
        if tail.origin.is_some_and(|origin| after.revision < origin.revision) {
            return Ok(Page::Flushed);
        }
        // Where the keys are on their way each is asked for by itself: the tail may have been read after the entries.
        let entries = self.range(partition, &from, most, deadline).await?;
        if follows(&entries) {
            return Ok(Page::Entries(chained(entries)));
        }
        if entries.is_empty() {
            // Another server, which took over meanwhile, may not have what the first one told.
            if self.tail(partition, deadline).await?.position != tail.position {
                return Err(Error::Unavailable("the log has moved".into()));
            }
            let is_behind = after.revision < tail.position.revision;
            return Ok(if is_behind { Page::Compacted } else { Page::RolledBack });
        }
        let first = self.range(partition, "-", 1, deadline).await?;
        let is_below = |first: &Entry| after.revision < first.previous.revision;
        Ok(if first.first().is_none_or(is_below) { Page::Compacted } else { Page::RolledBack })
    }

    /// Whether this position is in the present history of its partition, as far as the log reaches back.
    pub async fn is_in_history(
        &self,
        partition: Partition,
        position: Position,
        deadline: Instant,
    ) -> Result<bool, Error> {
        Ok(matches!(self.read_page(partition, position, 1, deadline).await?, Page::Entries(_) | Page::Tail))
    }

    async fn range(
        &self,
        partition: Partition,
        from: &str,
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<Entry>, Error> {
        let log = self.keys.log(partition);
        let args = vec![log.clone().into(), from.into(), "+".into(), "COUNT".into(), (count as i64).into()];
        let reply = self.connection.command(partition, "XRANGE", args, deadline).await?;
        let unreadable = |at: &str| Error::Unexpected(format!("entry {at} of {log:?} is in no known format"));
        let mut entries = Vec::new();
        for entry in reply.into_array() {
            let mut parts = entry.into_array().into_iter();
            let id = parts.next().and_then(|id| id.into_string()).unwrap_or_default();
            let text =
                parts.next().and_then(|fields| fields.into_array().into_iter().nth(1)).and_then(Value::into_bytes);
            let text = text.ok_or_else(|| unreadable(&id))?;
            entries.push(Entry::decode(partition, text).map_err(|_| unreadable(&id))?);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_is_too_large_is_in_no_position() {
        let last = Position { revision: Revision(Position::BEYOND - 1), nonce: u64::MAX };
        assert_eq!(Position::from_text(last.to_text().as_bytes()), Some(last));
        let beyond = Position { revision: Revision(Position::BEYOND), ..last };
        assert_eq!(Position::from_text(beyond.to_text().as_bytes()), None);
    }
}
