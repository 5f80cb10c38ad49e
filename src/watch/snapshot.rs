//! Snapshot of the matching sessions, which a watch with `initial_state` sends at its start and after every resync.
//!
//! The subscription notes the positions of the logs, then lists and reads the sessions while changes continue. It then
//! delivers the changes after the noted positions, except those that a sent session includes already. The snapshot is
//! complete at the position that the ring's end had after the last session was read: it is the state at exactly that
//! position.

use std::collections::{HashMap, VecDeque};

use super::{
    filter::{Filter, Scope},
    response::MatchedEvent,
    resume_token::ResumeToken,
};
use crate::{
    session::{Event, Revision, SessionId, Subject, View},
    store::{ListPosition, Partition},
};

/// A snapshot that is being sent.
pub(super) struct Snapshot {
    /// Sessions that were not read yet.
    pub unread: Listing,
    /// Part of each session that is sent.
    pub view: View,
    /// Sessions that were read and not sent yet.
    pub ready: VecDeque<MatchedEvent>,
    /// Positions of the logs before the first read.
    pub start: ResumeToken,
    /// Number of rollbacks before the first read.
    rollback_count: u64,
    /// Sessions that were read at a revision after `start`. Their changes up to that revision are not delivered again.
    pub ahead: HashMap<SessionId, ReadAhead>,
    /// Number of the ring's next slot after the last read. None: sessions are still to be read.
    pub complete_at: Option<u64>,
}

/// A session that was read at a revision after the start of the snapshot.
pub(super) struct ReadAhead {
    /// Revision that was read.
    pub revision: Revision,
    /// Whether the feed has delivered the change with this revision. Before that, a failover may have lost it.
    pub is_confirmed: bool,
}

/// Sessions that are still to be read.
pub(super) enum Listing {
    /// Sessions with these ids.
    Ids(VecDeque<SessionId>),
    /// Sessions of the namespace from this position on.
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
