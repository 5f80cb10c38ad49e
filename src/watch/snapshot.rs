//! Snapshot of the matching sessions, which a watch with `initial_state` sends at its start and after every resync.
//!
//! The subscription notes the positions of the logs, then lists and reads the sessions while changes continue. It then
//! delivers the changes after the noted positions, except those that a sent session includes already. The snapshot is
//! complete at the position that the ring's end had after the last session was read: it is the state at exactly that
//! position.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    filter::{Filter, Scope},
    item::{Item, Read, Slot},
    live::LiveReader,
    response::{BATCH_BYTES, SharedEvent},
    resume_token::ResumeToken,
    source::{Listing, Source},
};
use crate::{
    session::{Change, Credential, Event, Revision, Session, SessionId, Subject, View},
    store::{Error, ListPosition, Partition},
};

/// Whether a watch sends a snapshot at its start and after every resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// It sends no snapshot.
    NotRequested,
    /// It sends a snapshot in this view.
    Requested(View),
}

/// A snapshot that is being sent.
pub(super) struct Snapshot {
    /// Sessions that were not read yet.
    unread: Listing,
    /// Part of each session that is sent.
    view: View,
    /// Sessions that were read and not sent yet.
    ready: VecDeque<Arc<SharedEvent>>,
    /// Positions of the logs before the first read.
    start: ResumeToken,
    /// `start`, encoded.
    token: Bytes,
    /// Number of rollbacks before the first read.
    rollback_count: u64,
    /// Sessions that were read at a revision after `start`. Their changes up to that revision are not delivered again.
    ahead: HashMap<SessionId, ReadAhead>,
    /// Number of the ring's next slot after the last read. None: sessions are still to be read.
    complete_at: Option<u64>,
}

/// A session that was read at a revision after the start of the snapshot.
struct ReadAhead {
    /// Revision that was read.
    revision: Revision,
    /// Whether the feed has delivered the change with this revision. Before that, a failover may have lost it.
    is_confirmed: bool,
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
        Snapshot { unread, ..Snapshot::of_ids(Vec::new(), view, start, rollback_count) }
    }

    /// A snapshot of those sessions with these ids that match the filter.
    pub(super) fn of_ids(ids: Vec<SessionId>, view: View, start: ResumeToken, rollback_count: u64) -> Self {
        Snapshot {
            unread: Listing::Ids(ids),
            view,
            ready: VecDeque::new(),
            token: start.encode(),
            start,
            rollback_count,
            ahead: HashMap::new(),
            complete_at: None,
        }
    }

    /// Reads sessions that match the filter. At the end it notes the slot at which the snapshot is complete.
    pub(super) async fn read(
        &mut self,
        source: &impl Source,
        live: &LiveReader,
        filter: &Filter,
        credential: Credential,
    ) -> Result<Read, Error> {
        if self.ready.is_empty() && self.unread.is_empty() {
            // After the barrier, the changes during the reads are in the ring.
            source.pass_barrier().await?;
            self.complete_at = Some(live.end());
            return Ok(Read::End(self.token.clone()));
        }
        if self.ready.is_empty() {
            let read = source.sessions(&filter.namespace, &self.unread, credential, self.view).await?;
            let (sessions, unread) = read;
            self.unread = unread;
            for session in sessions.into_iter().filter(|session| filter.matches(session)) {
                self.add(session, source);
            }
        }
        let (mut slots, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(shared) = self.ready.pop_front()
        {
            bytes += shared.event.size();
            slots.push(Slot { item: Item::Session(shared), token: self.token.clone() });
        }
        Ok(Read::Items(slots))
    }

    /// Adds a session that was read.
    fn add(&mut self, session: Session, source: &impl Source) {
        let (id, revision) = (session.name.id, session.revision);
        if revision > self.start.positions[source.partition_of(&id).index()].revision {
            let ahead = self.ahead.entry(id).or_insert(ReadAhead { revision, is_confirmed: false });
            if revision > ahead.revision {
                *ahead = ReadAhead { revision, is_confirmed: false };
            }
        }
        let event = Event { change: Change::Updated, revision, session, changed_attributes: Vec::new(), before: None };
        self.ready.push_back(Arc::new(SharedEvent::new(Arc::new(event))));
    }

    /// Whether all sessions were read and sent. Changes during the reads may still be undelivered.
    pub(super) fn is_sent(&self) -> bool {
        self.complete_at.is_some()
    }

    /// Number of the slot at which the snapshot is complete. None: sessions are still to be read.
    pub(super) fn complete_at(&self) -> Option<u64> {
        self.complete_at
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

#[cfg(test)]
mod tests;
