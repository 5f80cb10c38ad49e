//! The log of changes, one stream per partition: its entries, positions in it, and what follows a position.

use bytes::Bytes;
use fred::types::Value;
use tokio::time::Instant;

use crate::session::{Cause, Change, Event, Revision, Session, SessionName};

use super::{
    Store,
    connection::Lane,
    error::Error,
    keys::Partition,
    msgpack::{Reader, Truncated},
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub revision: Revision,
    pub nonce: u64,
}

impl Position {
    fn from_text(text: &[u8]) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Position { revision: Revision(revision.parse().ok()?), nonce: nonce.parse().ok()? })
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

/// Where all logs end.
pub struct Tails {
    /// Time of Redis in us before they were read.
    pub as_of: u64,
    /// One of each partition.
    pub positions: Vec<Position>,
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
    /// The position is not in this history: it was rewound, or is of another branch.
    RolledBack,
}

impl Store {
    /// Where each partition's log ends, as the primary tells it; [`Error::StoreChanged`] where it is another store.
    pub async fn tails(&self, deadline: Instant) -> Result<Tails, Error> {
        // Redis answers in order: it reads its clock first.
        let as_of = self.connection.time(Lane::Bulk, deadline);
        let reads = self.keys.partitions().map(|partition| self.tail(partition, deadline));
        let (as_of, positions) = tokio::try_join!(biased; as_of, futures_util::future::try_join_all(reads))?;
        Ok(Tails { as_of, positions })
    }

    async fn tail(&self, partition: Partition, deadline: Instant) -> Result<Position, Error> {
        let args = vec![self.keys.meta(partition).into(), "store".into(), "last".into()];
        let reply = self.connection.command(Lane::Bulk, "HMGET", args, deadline).await?.into_array();
        let fields: Vec<Bytes> = reply.into_iter().filter_map(Value::into_bytes).collect();
        match &fields[..] {
            [id, last] if StoreId::from_text(id) == Some(self.id()) => {
                Position::from_text(last).ok_or(Error::StoreChanged)
            }
            _ => Err(Error::StoreChanged),
        }
    }

    /// The entries that follow the position, at most a page of them.
    pub async fn read_after(&self, partition: Partition, after: Position, deadline: Instant) -> Result<Page, Error> {
        let from = format!("({}", after.to_text());
        // Redis answers in order: what is appended after the tail was read can only be among the entries.
        let reads = tokio::join!(
            biased;
            self.tail(partition, deadline),
            self.range(partition, &from, PAGE, deadline)
        );
        let entries = match reads.1 {
            Err(Error::Unexpected(what)) => {
                tracing::error!(what, "watchers have to resync past it");
                return Ok(Page::Compacted);
            }
            entries => entries?,
        };
        if entries.first().is_some_and(|first| first.previous == after) {
            return Ok(Page::Entries(chained(entries)));
        }
        let tail = reads.0?;
        if after == tail {
            return Ok(Page::Tail);
        }
        if entries.is_empty() {
            return Ok(if after.revision < tail.revision { Page::Compacted } else { Page::RolledBack });
        }
        let first = self.range(partition, "-", 1, deadline).await?;
        let is_below = |first: &Entry| after.revision < first.previous.revision;
        Ok(if first.first().is_none_or(is_below) { Page::Compacted } else { Page::RolledBack })
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
        let reply = self.connection.command(Lane::Bulk, "XRANGE", args, deadline).await?;
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
