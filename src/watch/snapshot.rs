//! Snapshot of the matching sessions, which a watch with `initial_state` sends at its start and after every resync.
//!
//! The subscription notes the positions of the logs, then lists and reads the sessions while changes continue. It then
//! delivers the changes after the noted positions, except those that a sent session includes already. The snapshot is
//! complete at the position that the ring's end had after the last session was read: it is the state at exactly that
//! position.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{
    feed::READ_TIMEOUT,
    session::{Change, Credential, Event, Revision, Session, SessionId, SessionRef, Subject, View},
    store::{Error, Found, ListPosition, Partition},
};

use super::{
    RETRY_PAUSE,
    filter::{Filter, Scope, Visibility},
    lifetime::CloseReason,
    response::{BATCH_BYTES, Batch, MatchedEvent},
    resume_token::ResumeToken,
    ring::SharedEvent,
    subscription::Subscription,
};

/// Maximum number of sessions that are read at once and held until they are sent.
const PAGE_SIZE: usize = 100;
/// Maximum number of sessions that are read at once in the FULL view, whose sessions are larger.
const FULL_PAGE_SIZE: usize = 16;

/// A snapshot that is being sent.
pub(super) struct Snapshot {
    unread: Listing,
    view: View,
    /// Sessions that were read and not sent yet.
    ready: VecDeque<MatchedEvent>,
    /// Positions of the logs before the first read.
    start: ResumeToken,
    /// Number of rollbacks before the first read.
    rollback_count: u64,
    /// Sessions that were read at a revision after `start`. Their changes up to that revision are not delivered again.
    ahead: HashMap<SessionId, ReadAhead>,
    /// Number of the ring's next slot after the last read. None: sessions are still to be read.
    complete_at: Option<u64>,
}

/// A session that was read at a revision after the start of the snapshot.
struct ReadAhead {
    revision: Revision,
    /// Whether the feed has delivered the change with this revision. Before that, a failover may have lost it.
    is_confirmed: bool,
}

/// Sessions that are still to be read.
enum Listing {
    Ids(VecDeque<SessionId>),
    Namespace(ListPosition),
    /// Entries of a subject index that were added after this time in us.
    Subject(Subject, u64),
}

impl Snapshot {
    /// A snapshot of all sessions that match the filter.
    pub(super) fn of_all(filter: &Filter, view: View, start: ResumeToken, rollback_count: u64) -> Self {
        let unread = match &filter.scope {
            Scope::Ids(ids) => Listing::Ids(ids.iter().copied().collect()),
            Scope::Namespace => Listing::Namespace(ListPosition::After(Partition(0), None)),
            Scope::Subject(name) => {
                Listing::Subject(Subject { namespace: filter.namespace.clone(), name: name.clone() }, 0)
            }
        };
        Snapshot { unread, ..Snapshot::of_ids([], view, start, rollback_count) }
    }

    /// A snapshot of those sessions with these ids that match the filter.
    pub(super) fn of_ids(
        ids: impl IntoIterator<Item = SessionId>,
        view: View,
        start: ResumeToken,
        rollback_count: u64,
    ) -> Self {
        let unread = Listing::Ids(ids.into_iter().collect());
        Snapshot {
            unread,
            view,
            ready: VecDeque::new(),
            start,
            rollback_count,
            ahead: HashMap::new(),
            complete_at: None,
        }
    }

    /// Whether all sessions were read and sent. Changes during the reads may still be undelivered.
    pub(super) fn is_sent(&self) -> bool {
        self.complete_at.is_some()
    }

    /// Whether the snapshot is complete before the slot with this number.
    pub(super) fn is_complete_at(&self, number: u64) -> bool {
        self.complete_at.is_some_and(|complete_at| number >= complete_at)
    }

    /// Whether a session of the snapshot includes this change. Also confirms the session's revision.
    pub(super) fn includes(&mut self, event: &Event) -> bool {
        let Some(ahead) = self.ahead.get_mut(&event.session.name.id) else { return false };
        ahead.is_confirmed |= ahead.revision == event.revision;
        ahead.revision >= event.revision
    }

    /// Whether all sessions were read from one history. If not, a session that was not found may exist.
    pub(super) fn is_of_one_history(&self, rollback_count: u64) -> bool {
        self.rollback_count == rollback_count
    }

    /// Sessions that were sent at a revision that the log does not contain, because a failover lost it.
    pub(super) fn unconfirmed(&self) -> Vec<SessionId> {
        self.ahead.iter().filter(|(_, ahead)| !ahead.is_confirmed).map(|(id, _)| *id).collect()
    }
}

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
        let (ids, unread) = match &snapshot.unread {
            Listing::Ids(ids) if ids.is_empty() => return Ok(false),
            Listing::Ids(ids) => {
                let unread = ids.iter().skip(limit).copied().collect();
                (ids.iter().take(limit).copied().collect(), Listing::Ids(unread))
            }
            Listing::Namespace(from) => {
                let page = self.store.list(&self.filter.namespace, from.clone(), limit, deadline).await?;
                (page.0, page.1.map_or(Listing::Ids(VecDeque::new()), Listing::Namespace))
            }
            Listing::Subject(subject, after) => {
                let entries = self.store.entries_after(subject, *after, None, limit, deadline).await?;
                let unread = entries.last().map(|last| Listing::Subject(subject.clone(), last.added));
                (entries.iter().map(|entry| entry.id).collect(), unread.unwrap_or(Listing::Ids(VecDeque::new())))
            }
        };
        let sessions = self.read_live(&ids, snapshot.view).await?;
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
    async fn read_live(&self, ids: &[SessionId], view: View) -> Result<Vec<Session>, Error> {
        let credential = self.lifetime.credential().unwrap_or(Credential::Id);
        // A listing may return an id twice.
        let ids: HashSet<SessionId> = ids.iter().copied().collect();
        let reads = ids.into_iter().map(async |id| {
            let name = SessionRef { namespace: self.filter.namespace.clone(), id };
            match self.store.look(&name, credential, view, Instant::now() + READ_TIMEOUT).await {
                Ok(Found::Session(session, _)) => Ok(Some(session)),
                Ok(Found::NotFound | Found::Ended(..) | Found::Rotated) | Err(Error::Corrupt { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<_> = stream::iter(reads).buffer_unordered(PAGE_SIZE).collect().await;
        found.into_iter().filter_map(Result::transpose).collect()
    }
}
