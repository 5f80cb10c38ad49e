//! Reads the log of changes, one stream per partition: entries, positions, and the page after a position.

use bytes::Bytes;
use fred::types::Value;
use tokio::time::Instant;

use crate::session::{Cause, Change, Event, Revision, Session, SessionRef};

use super::{
    Server, Store,
    error::{Error, Failure},
    keys::Partition,
    msgpack::{Reader, Truncated},
    node::Lane,
    record::{self, Corrupt},
};

/// Maximum number of entries in a page; bounds the size of one reply.
const PAGE: usize = 32;

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

    fn from_text(text: &[u8]) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let position = Position { revision: Revision(revision.parse().ok()?), nonce: nonce.parse().ok()? };
        (position.revision.0 < Position::BEYOND).then_some(position)
    }

    fn to_text(self) -> String {
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
    /// The change.
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
        let name = SessionRef { namespace, id: reader.text()?.parse().map_err(|_| Truncated)? };
        let fields = reader.bytes()?;
        let changed_attributes = (0..reader.array()?).map(|_| reader.text()).collect::<Result<_, _>>()?;
        let before = reader.bytes()?;
        let before = if before.is_empty() { None } else { Some(record::decode_filter_fields(before)?) };
        // The event is delivered even if its session cannot be read.
        let session = record::decode(name.clone(), fields).unwrap_or_else(|cause| {
            if change != Change::Ended(Cause::OutOfBand) {
                crate::observe::error!(session = %name, %cause, "log entry has an unreadable session");
            }
            Session::without_state(name)
        });
        Ok(Entry {
            partition,
            position,
            previous,
            event: Event { change, revision: position.revision, session, changed_attributes, before },
        })
    }
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

/// Message on the channel of a partition.
pub enum Message {
    /// A log entry.
    Entry(Box<Entry>),
    /// An entry that is too large to publish and has to be read from the log.
    Announced {
        /// Partition of the log.
        partition: Partition,
        /// Position of the entry.
        position: Position,
        /// Position of the entry before it.
        previous: Position,
    },
    /// Neither of these.
    Unreadable,
}

impl Message {
    pub(super) fn decode(partition: Partition, text: Bytes) -> Self {
        if let Some((position, previous)) = announced(&text) {
            return Message::Announced { partition, position, previous };
        }
        Entry::decode(partition, text).map_or(Message::Unreadable, |entry| Message::Entry(Box::new(entry)))
    }
}

/// Position of an announced entry and the position before it. None: the message is not an announcement.
fn announced(text: &[u8]) -> Option<(Position, Position)> {
    let at = text.iter().position(|byte| *byte == b' ')?;
    Some((Position::from_text(&text[..at])?, Position::from_text(&text[at + 1..])?))
}

/// Keeps the entries up to the first one that does not follow its predecessor; the next read finds the reason.
fn chained(mut entries: Vec<Entry>) -> Vec<Entry> {
    let follows = entries.windows(2).take_while(|pair| pair[1].previous == pair[0].position).count();
    entries.truncate(follows + 1);
    entries
}

/// Result of reading the log after a position.
pub enum Page {
    /// At least one entry; each follows the one before it.
    Entries(Vec<Entry>),
    /// No entry: the position is the tail.
    Tail,
    /// The log no longer reaches back to the position.
    Compacted,
    /// The position is from before the store was emptied.
    Flushed,
    /// The position is not in the current history: it was lost by a rollback, or is of another branch.
    RolledBack,
}

impl Store {
    /// Reads the tail of each partition of this server from the primary. Returns [`Error::StoreChanged`] if it is another
    /// store.
    pub async fn tails(&self, server: &Server, deadline: Instant) -> Result<Tails, Error> {
        // Redis replies in order: it reads its clock first.
        let node = &server.node;
        let as_of = async { Ok(node.time(Lane::Bulk, deadline).await?) };
        let is_primary = async { node.is_primary(deadline).await.map_err(|failure| self.note_redirect(failure)) };
        let reads = server.partitions.iter().map(async |partition| {
            match node.command(Lane::Bulk, "HMGET", &self.tail_fields(*partition), deadline).await {
                Ok(reply) => Ok((*partition, self.tail_of(reply)?)),
                // Its slot is migrating.
                Err(Failure::Redirected(_)) => Ok((*partition, self.tail(*partition, deadline).await?)),
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

    /// Reads the last position of each partition.
    pub async fn ends(&self, deadline: Instant) -> Result<Vec<Position>, Error> {
        let tails = self.partitions().map(|partition| self.tail(partition, deadline));
        Ok(futures_util::future::try_join_all(tails).await?.into_iter().map(|tail| tail.position).collect())
    }

    /// Reads the tail of a partition.
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

    /// Reads at most one page of entries after a position.
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
        // Redis replies in order: an entry that is appended after the tail was read can only be among the entries.
        let (tail, entries) = tokio::join!(
            biased;
            self.tail(partition, deadline),
            self.range(partition, &from, most, deadline)
        );
        let entries = match entries {
            Err(Error::UnexpectedRead(what)) => {
                crate::observe::error!(what, "log entry unreadable; watchers will receive resync");
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
        // During a slot migration each command is redirected separately: the tail may have been read after the entries.
        let entries = self.range(partition, &from, most, deadline).await?;
        if follows(&entries) {
            return Ok(Page::Entries(chained(entries)));
        }
        if entries.is_empty() {
            // After a failover the new primary may lack entries of the old one.
            if self.tail(partition, deadline).await?.position != tail.position {
                return Err(Error::Unavailable("the log changed during the read".into()));
            }
            let is_behind = after.revision < tail.position.revision;
            return Ok(if is_behind { Page::Compacted } else { Page::RolledBack });
        }
        let first = self.range(partition, "-", 1, deadline).await?;
        let is_below = |first: &Entry| after.revision < first.previous.revision;
        Ok(if first.first().is_none_or(is_below) { Page::Compacted } else { Page::RolledBack })
    }

    /// Returns whether a position is in the current history of its partition. Compacted positions are not.
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
        let unreadable = |at: &str| Error::UnexpectedRead(format!("entry {at} of {log:?} has an unknown format"));
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
    fn position_too_large_revision_is_rejected() {
        let last = Position { revision: Revision(Position::BEYOND - 1), nonce: u64::MAX };
        assert_eq!(Position::from_text(last.to_text().as_bytes()), Some(last));
        let beyond = Position { revision: Revision(Position::BEYOND), ..last };
        assert_eq!(Position::from_text(beyond.to_text().as_bytes()), None);
    }
}
