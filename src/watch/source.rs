//! What the readers of a watch read in addition to the ring: the logs and the sessions. A trait, so that they can be tested
//! without Redis.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{
    feed::{Feed, READ_TIMEOUT, TailRead},
    session::{Credential, Namespace, Session, SessionId, SessionRef, Subject, View},
    store::{Error, Found, ListPosition, Partition, Position, PrimaryReads, Store},
};

use super::page_cache::{PageAfter, PageCache};

/// Maximum number of sessions that are read at once and held until they are sent.
const PAGE_SIZE: usize = 100;
/// Maximum number of sessions that are read at once in the FULL view, whose sessions are larger.
const FULL_PAGE_SIZE: usize = 16;

/// What the readers of a watch read.
pub(super) trait Source {
    /// Returns what follows a position in the log of a partition.
    async fn page_after(&self, partition: Partition, position: Position) -> Result<PageAfter, Error>;

    /// Discards log pages of a partition that were read before.
    fn forget_pages(&self, partition: Partition);

    /// Whether the position is in the present history of the partition.
    async fn is_in_history(&self, partition: Partition, position: Position) -> Result<bool, Error>;

    /// Waits until the ring has every entry that was in the logs before this call.
    async fn pass_barrier(&self) -> Result<TailRead, Error>;

    /// Number of rollbacks so far.
    fn rollback_count(&self) -> u64;

    /// Partition of a session.
    fn partition_of(&self, id: &SessionId) -> Partition;

    /// Reads the next sessions of a listing that live. Returns what is left of the listing with them.
    async fn sessions(
        &self,
        namespace: &Namespace,
        listing: &Listing,
        credential: Credential,
        view: View,
    ) -> Result<(Vec<Session>, Listing), Error>;
}

/// Sessions that are still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Sessions with these ids. None: all were read.
    Ids(Vec<SessionId>),
    /// Sessions of the namespace from this position on.
    Namespace(ListPosition),
    /// Entries of a subject index that were added after this time in us.
    Subject(Subject, u64),
}

impl Listing {
    /// Whether all sessions were read.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Listing::Ids(ids) if ids.is_empty())
    }
}

/// Redis, as all watches of this instance read it.
pub struct RedisSource {
    /// Store of the sessions and logs.
    pub store: Arc<Store>,
    /// Feed with the read barrier.
    pub feed: Feed,
    /// Log pages that were read last. A consumer of the feed, in front of the hub.
    pub pages: Arc<PageCache>,
}

impl RedisSource {
    /// Waits until the ring has every entry that was in the logs before this call.
    pub async fn pass_barrier(&self) -> Result<TailRead, Error> {
        let read = self.feed.barrier.pass().await;
        read.ok_or_else(|| Error::Unavailable("cannot read the end of the log".into()))
    }
}

impl Source for RedisSource {
    async fn page_after(&self, partition: Partition, position: Position) -> Result<PageAfter, Error> {
        self.pages.read_after(&self.store, partition, position, Instant::now() + READ_TIMEOUT).await
    }

    fn forget_pages(&self, partition: Partition) {
        self.pages.invalidate(partition);
    }

    async fn is_in_history(&self, partition: Partition, position: Position) -> Result<bool, Error> {
        self.store.is_in_history(partition, position, Instant::now() + READ_TIMEOUT).await
    }

    async fn pass_barrier(&self) -> Result<TailRead, Error> {
        RedisSource::pass_barrier(self).await
    }

    fn rollback_count(&self) -> u64 {
        self.feed.rollbacks.count()
    }

    fn partition_of(&self, id: &SessionId) -> Partition {
        self.store.partition_of(id)
    }

    async fn sessions(
        &self,
        namespace: &Namespace,
        listing: &Listing,
        credential: Credential,
        view: View,
    ) -> Result<(Vec<Session>, Listing), Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let limit = match view {
            View::Basic => PAGE_SIZE,
            View::Full => FULL_PAGE_SIZE,
        };
        let limit = self.store.reads_at_once(view, limit);
        let reads = PrimaryReads::default();
        let (ids, unread) = match listing {
            Listing::Ids(ids) => {
                let (page, unread) = ids.split_at(limit.min(ids.len()));
                (page.to_vec(), Listing::Ids(unread.to_vec()))
            }
            Listing::Namespace(from) => {
                let page = self.store.list(Some(&reads), namespace, from.clone(), limit, deadline).await?;
                (page.0, page.1.map_or(Listing::Ids(Vec::new()), Listing::Namespace))
            }
            Listing::Subject(subject, after) => {
                let entries = self.store.entries_after(Some(&reads), subject, *after, None, limit, deadline).await?;
                let unread = entries.last().map(|last| Listing::Subject(subject.clone(), last.added));
                (entries.iter().map(|entry| entry.id).collect(), unread.unwrap_or(Listing::Ids(Vec::new())))
            }
        };
        // A listing may return an id twice.
        let ids: HashSet<SessionId> = ids.into_iter().collect();
        let found = ids.into_iter().map(async |id| {
            let name = SessionRef { namespace: namespace.clone(), id };
            match self.store.peek(Some(&reads), &name, credential, view, deadline).await {
                Ok(Found::Live(live)) => Ok(Some(live.session)),
                Ok(Found::NotFound | Found::Ended(..) | Found::Rotated) | Err(Error::Corrupt { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<_> = stream::iter(found).buffer_unordered(PAGE_SIZE).collect().await;
        let sessions = found.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        self.store.verify(reads, deadline).await?;
        Ok((sessions, unread))
    }
}
