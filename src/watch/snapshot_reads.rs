//! Reads the sessions of a snapshot page by page, and sends them.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{
    RETRY_PAUSE,
    filter::Visibility,
    lifetime::CloseReason,
    response::{BATCH_BYTES, Batch, MatchedEvent},
    ring::SharedEvent,
    snapshot::{Listing, ReadAhead, Snapshot},
    subscription::Subscription,
};
use crate::{
    feed::READ_TIMEOUT,
    session::{Change, Credential, Event, Session, SessionId, SessionRef, View},
    store::{Error, Found, PrimaryReads},
};

/// Maximum number of sessions that are read at once and held until they are sent.
const PAGE_SIZE: usize = 100;
/// Maximum number of sessions that are read at once in the FULL view, whose sessions are larger.
const FULL_PAGE_SIZE: usize = 16;

fn most_at_once(view: View) -> usize {
    match view {
        View::Basic => PAGE_SIZE,
        View::Full => FULL_PAGE_SIZE,
    }
}

impl Subscription {
    /// Sends a part of the snapshot. None: nothing to send yet; call again.
    pub(super) async fn send_snapshot(&mut self) -> Result<Option<Batch>, CloseReason> {
        let Some(mut snapshot) = self.snapshot.take() else { return Ok(None) };
        if snapshot.ready.is_empty() {
            match self.read_sessions(&mut snapshot).await {
                Ok(true) => {}
                // After the barrier, the changes during the reads are in the ring.
                Ok(false) if self.feed.barrier.pass().await.is_some() => {
                    snapshot.complete_at = Some(self.registration.end());
                }
                // Nothing is sent while Redis fails: a silent stream makes the client try another instance.
                outcome => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "snapshot read failed; retrying");
                    }
                    self.snapshot = Some(snapshot);
                    sleep(RETRY_PAUSE).await;
                    return Ok(None);
                }
            }
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(matched) = snapshot.ready.pop_front()
        {
            bytes += matched.shared.event.size();
            events.push(matched);
        }
        self.snapshot = Some(snapshot);
        Ok(self.batch_unless_silent(events))
    }

    /// Reads the next page of sessions; false if all were read. A page that cannot be read is read again by the next
    /// call.
    async fn read_sessions(&self, snapshot: &mut Snapshot) -> Result<bool, Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let limit = self.store.reads_at_once(snapshot.view, most_at_once(snapshot.view));
        let page = PrimaryReads::default();
        let reads = Some(&page);
        let (ids, unread) = match &snapshot.unread {
            Listing::Ids(ids) if ids.is_empty() => return Ok(false),
            Listing::Ids(ids) => {
                let unread = ids.iter().skip(limit).copied().collect();
                (ids.iter().take(limit).copied().collect(), Listing::Ids(unread))
            }
            Listing::Namespace(from) => {
                let page = self.store.list(reads, &self.filter.namespace, from.clone(), limit, deadline).await?;
                (page.0, page.1.map_or(Listing::Ids(VecDeque::new()), Listing::Namespace))
            }
            Listing::Subject(subject, after) => {
                let entries = self.store.entries_after(reads, subject, *after, None, limit, deadline).await?;
                let unread = entries.last().map(|last| Listing::Subject(subject.clone(), last.added));
                (entries.iter().map(|entry| entry.id).collect(), unread.unwrap_or(Listing::Ids(VecDeque::new())))
            }
        };
        let sessions = self.read_live(&page, &ids, snapshot.view, deadline).await?;
        self.store.verify(page, deadline).await?;
        snapshot.unread = unread;
        for session in sessions.into_iter().filter(|session| self.filter.matches(session)) {
            let (id, revision) = (session.name.id, session.revision);
            let start = snapshot.start.positions[self.store.partition_of(&id).index()];
            if revision > start.revision {
                let ahead = snapshot.ahead.entry(id).or_insert(ReadAhead { revision, is_confirmed: false });
                if revision > ahead.revision {
                    *ahead = ReadAhead { revision, is_confirmed: false };
                }
            }
            let event =
                Event { change: Change::Updated, revision, session, changed_attributes: Vec::new(), before: None };
            let shared = Arc::new(SharedEvent::new(Arc::new(event)));
            snapshot.ready.push_back(MatchedEvent { shared, visibility: Visibility::Present });
        }
        Ok(true)
    }

    /// Reads those of the sessions that live.
    async fn read_live(
        &self,
        page: &PrimaryReads,
        ids: &[SessionId],
        view: View,
        deadline: Instant,
    ) -> Result<Vec<Session>, Error> {
        let credential = self.lifetime.credential().unwrap_or(Credential::Id);
        // A listing may return an id twice.
        let ids: HashSet<SessionId> = ids.iter().copied().collect();
        let reads = ids.into_iter().map(async |id| {
            let name = SessionRef { namespace: self.filter.namespace.clone(), id };
            match self.store.peek(Some(page), &name, credential, view, deadline).await {
                Ok(Found::Live(live)) => Ok(Some(live.session)),
                Ok(Found::NotFound | Found::Ended(..) | Found::Rotated) | Err(Error::Corrupt { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<_> = stream::iter(reads).buffer_unordered(PAGE_SIZE).collect().await;
        found.into_iter().filter_map(Result::transpose).collect()
    }
}
