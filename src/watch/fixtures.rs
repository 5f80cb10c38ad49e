//! Entries, a hub and a source without Redis, for the tests of the readers.

use std::{cell::RefCell, collections::VecDeque, sync::Arc, time::Duration};

use futures_util::stream::AbortHandle;

use super::{
    filter::{Filter, Scope},
    hub::Hub,
    item::{Item, LogEntry, Read, Slot},
    live::LiveReader,
    page_cache::PageAfter,
    registry::ClientStream,
    response::WatchLimits,
    resume_token::ResumeToken,
    source::{Listing, Source},
};
use crate::{
    feed::{Consumer, TailRead},
    session::{Change, Credential, Event, Namespace, Revision, Session, SessionId, SessionRef, View},
    store::{Entry, Error, Partition, Position, StoreId},
};

pub(super) const PARTITION: Partition = Partition(0);
pub(super) const STORE: StoreId = StoreId([0; 16]);

pub(super) fn position(revision: u64) -> Position {
    Position { revision: Revision(revision), nonce: 1 }
}

pub(super) fn token(revision: u64) -> ResumeToken {
    ResumeToken { store: STORE, positions: vec![position(revision)] }
}

pub(super) fn id(byte: u8) -> SessionId {
    SessionId::from_bytes([byte; 16])
}

pub(super) fn session(byte: u8, revision: u64) -> Session {
    let name = SessionRef { namespace: "web".parse().unwrap(), id: id(byte) };
    Session { revision: Revision(revision), ..Session::without_state(name) }
}

/// The entry with this revision, which follows the one before. Its session has the id 0.
pub(super) fn entry(revision: u64) -> Entry {
    entry_of(0, revision)
}

pub(super) fn entry_of(byte: u8, revision: u64) -> Entry {
    let event = Event {
        change: Change::Updated,
        revision: Revision(revision),
        session: session(byte, revision),
        changed_attributes: Vec::new(),
        before: None,
    };
    let (position, previous) = (position(revision), position(revision - 1));
    Entry { partition: PARTITION, position, previous, event: Arc::new(event) }
}

/// A hub of one partition at position 0, with a ring of this size.
pub(super) fn hub(ring_slots: usize) -> Arc<Hub> {
    let limits = WatchLimits {
        watches: 2,
        slow_consumer_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(1),
        ring_slots,
        largest_session: 1,
    };
    Arc::new(Hub::new(STORE, vec![position(0)], limits, Arc::default()))
}

/// Appends the entries of session 0 with these revisions.
pub(super) fn append(hub: &Hub, revisions: impl IntoIterator<Item = u64>) {
    revisions.into_iter().for_each(|revision| hub.on_entry(&entry(revision)));
}

pub(super) fn filter(scope: Scope) -> Arc<Filter> {
    Arc::new(Filter { namespace: "web".parse().unwrap(), scope, labels: Default::default(), kinds: None })
}

/// The live reader of a new watcher.
pub(super) fn live_reader(hub: &Arc<Hub>, scope: Scope) -> LiveReader {
    let registered = LiveReader::register(hub.clone(), filter(scope), Duration::ZERO, client_stream());
    registered.unwrap().0
}

/// What a read returned: for an entry its revision, for a gap "resync" with its reason, for a session "session".
pub(super) fn items(read: Read) -> Vec<String> {
    let Read::Items(slots) = read else { panic!("the read returned no items") };
    let text = |Slot { item, .. }| match item {
        Item::Session(_) => "session".to_owned(),
        Item::Entry(LogEntry { position, .. }) => position.revision.0.to_string(),
        Item::Resync(resync) => format!("resync {:?}", resync.reason),
    };
    slots.into_iter().map(text).collect()
}

/// A source with prepared results. A read without one fails.
#[derive(Default)]
pub(super) struct FakeSource {
    /// Log pages, in the order of their reads, each with the revision after which it is read.
    pub pages: RefCell<VecDeque<(u64, PageAfter)>>,
    /// Revisions in the present history.
    pub history: Vec<u64>,
    /// Pages of sessions, in the order of their reads. An error fails one read.
    pub sessions: RefCell<VecDeque<Result<Vec<Session>, Error>>>,
    /// Hub that receives an entry of this revision while a barrier is passed. None: it receives none.
    pub at_barrier: Option<(Arc<Hub>, u64)>,
}

impl Source for FakeSource {
    async fn page_after(&self, _: Partition, position: Position) -> Result<PageAfter, Error> {
        let (after, page) = self.pages.borrow_mut().pop_front().ok_or(Error::Timeout)?;
        assert_eq!(position.revision.0, after, "page after");
        Ok(page)
    }

    fn forget_pages(&self, _: Partition) {}

    async fn is_in_history(&self, _: Partition, position: Position) -> Result<bool, Error> {
        Ok(self.history.contains(&position.revision.0))
    }

    async fn pass_barrier(&self) -> Result<TailRead, Error> {
        if let Some((hub, revision)) = &self.at_barrier {
            append(hub, [*revision]);
        }
        Ok(TailRead { as_of: 0 })
    }

    fn rollback_count(&self) -> u64 {
        0
    }

    fn partition_of(&self, _: &SessionId) -> Partition {
        PARTITION
    }

    async fn sessions(
        &self,
        _: &Namespace,
        _: &Listing,
        _: Credential,
        _: View,
    ) -> Result<(Vec<Session>, Listing), Error> {
        let mut pages = self.sessions.borrow_mut();
        let page = pages.pop_front().ok_or(Error::Timeout)??;
        let unread = if pages.is_empty() { Vec::new() } else { vec![id(9)] };
        Ok((page, Listing::Ids(unread)))
    }
}

/// A stream whose caller cannot lose its right.
pub(super) fn client_stream() -> ClientStream {
    ClientStream { reset: AbortHandle::new_pair().0, right: None }
}
