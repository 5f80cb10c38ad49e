//! The state that a watch begins with, and begins again with after a resync.
//!
//! The positions are noted, then the sessions are listed and read, while changes go on; then the changes since the noted
//! positions are told, but for those that the state told has already. Where the ring ended when the last session was read
//! the state is complete: it is what was true at exactly that position.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{
    session::{Change, Event, Proof, Revision, Session, SessionId, SessionName, Subject, View},
    store::{Error, Found, ListPosition, Partition},
};

use super::{
    feed::READ_TIMEOUT,
    filter::{Filter, Scope, Seen},
    lifetime::Finish,
    ring::Entry,
    subscription::{BATCH_BYTES, Batch, Matched, RETRY, Subscription},
    token::ResumeToken,
};

/// Sessions read at once, and kept until they are told; fewer where they come with all that is in them.
const AT_ONCE: usize = 100;
const WHOLE_AT_ONCE: usize = 16;

/// A state that is being told.
pub struct Snapshot {
    listing: Listing,
    view: View,
    /// Read and not told yet.
    ready: VecDeque<Matched>,
    /// Where the log was before anything was read.
    noted: ResumeToken,
    /// How often history had been rewound by then.
    times_rewound: u64,
    /// Sessions told as they were after that: what happened to them up to then is told with them.
    newer: HashMap<SessionId, Newer>,
    /// Where the ring ended when everything was read; None = that is still to come.
    complete_at: Option<u64>,
}

/// A session that was told newer than where the log was.
struct Newer {
    revision: Revision,
    /// Whether the change that it was told with has come: until then a failover may have taken it back.
    is_proven: bool,
}

/// What is still to be read.
enum Listing {
    Ids(VecDeque<SessionId>),
    Namespace(ListPosition),
    /// What a subject's index got after this, in us.
    Subject(Subject, u64),
}

impl Snapshot {
    /// Of everything that matches.
    pub fn of_all(filter: &Filter, view: View, noted: ResumeToken, times_rewound: u64) -> Self {
        let listing = match &filter.scope {
            Scope::Ids(ids) => Listing::Ids(ids.iter().copied().collect()),
            Scope::Namespace => Listing::Namespace(ListPosition::After(Partition(0), None)),
            Scope::Subject(name) => {
                Listing::Subject(Subject { namespace: filter.namespace.clone(), name: name.clone() }, 0)
            }
        };
        Snapshot { listing, ..Snapshot::of_ids([], view, noted, times_rewound) }
    }

    /// Of these, where they match.
    pub fn of_ids(
        ids: impl IntoIterator<Item = SessionId>,
        view: View,
        noted: ResumeToken,
        times_rewound: u64,
    ) -> Self {
        let listing = Listing::Ids(ids.into_iter().collect());
        Snapshot {
            listing,
            view,
            ready: VecDeque::new(),
            noted,
            times_rewound,
            newer: HashMap::new(),
            complete_at: None,
        }
    }

    /// Whether all of it was read and told, but for the changes meanwhile.
    pub fn is_read(&self) -> bool {
        self.complete_at.is_some()
    }

    /// Whether it is complete before the slot of this number.
    pub fn is_complete_at(&self, number: u64) -> bool {
        self.complete_at.is_some_and(|at| number >= at)
    }

    /// Whether the state told has this change already.
    pub fn covers(&mut self, event: &Event) -> bool {
        let Some(newer) = self.newer.get_mut(&event.session.name.id) else { return false };
        newer.is_proven |= newer.revision == event.revision;
        newer.revision >= event.revision
    }

    /// Whether all of it was read from one history: else it says of none that it is not there.
    pub fn is_of_one_history(&self, times_rewound: u64) -> bool {
        self.times_rewound == times_rewound
    }

    /// Sessions told as they never were, as far as the log tells: a failover took back what they were told with.
    pub fn unproven(&self) -> Vec<SessionId> {
        self.newer.iter().filter(|(_, newer)| !newer.is_proven).map(|(id, _)| *id).collect()
    }
}

impl Subscription {
    /// Tells some of the state; None = go on.
    pub(super) async fn tell_state(&mut self) -> Result<Option<Batch>, Finish> {
        let Some(mut snapshot) = self.snapshot.take() else { return Ok(None) };
        if snapshot.ready.is_empty() {
            match self.read_some(&mut snapshot).await {
                Ok(true) => {}
                // What happened while it was read is in the ring by then.
                Ok(false) if self.registration.hub().refresh().await.is_some() => {
                    snapshot.complete_at = Some(self.registration.end());
                }
                // Silence tells the reader that another instance may be better.
                answer => {
                    if let Err(error) = answer {
                        tracing::debug!(%error, "a watch waits for the state");
                    }
                    self.snapshot = Some(snapshot);
                    sleep(RETRY).await;
                    return Ok(None);
                }
            }
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(matched) = snapshot.ready.pop_front()
        {
            bytes += matched.entry.event.size();
            events.push(matched);
        }
        self.snapshot = Some(snapshot);
        Ok(self.batch_or_silence(events))
    }

    /// Reads some sessions; false = that was all. Nothing is lost of what could not be read: it is tried again.
    async fn read_some(&self, snapshot: &mut Snapshot) -> Result<bool, Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let limit = if snapshot.view == View::Full { WHOLE_AT_ONCE } else { AT_ONCE };
        let (ids, rest) = match &snapshot.listing {
            Listing::Ids(ids) if ids.is_empty() => return Ok(false),
            Listing::Ids(ids) => {
                let rest = ids.iter().skip(limit).copied().collect();
                (ids.iter().take(limit).copied().collect(), Listing::Ids(rest))
            }
            Listing::Namespace(from) => {
                let page = self.store.list(&self.filter.namespace, from.clone(), limit, deadline).await?;
                (page.0, page.1.map_or(Listing::Ids(VecDeque::new()), Listing::Namespace))
            }
            Listing::Subject(subject, after) => {
                let entries = self.store.entries_after(subject, *after, limit, deadline).await?;
                let rest = entries.last().map(|last| Listing::Subject(subject.clone(), last.added));
                (entries.iter().map(|entry| entry.id).collect(), rest.unwrap_or(Listing::Ids(VecDeque::new())))
            }
        };
        let found = self.read_sessions(&ids, snapshot.view).await?;
        snapshot.listing = rest;
        for session in found.into_iter().filter(|session| self.filter.holds(session)) {
            let (id, revision) = (session.name.id, session.revision);
            let noted = snapshot.noted.positions[self.store.partition_of(&id).index()];
            if revision > noted.revision {
                let told = snapshot.newer.entry(id).or_insert(Newer { revision, is_proven: false });
                if revision > told.revision {
                    *told = Newer { revision, is_proven: false };
                }
            }
            let event =
                Event { change: Change::Updated, revision, session, changed_attributes: Vec::new(), before: None };
            snapshot.ready.push_back(Matched { entry: Arc::new(Entry::new(event)), seen: Seen::Present });
        }
        Ok(true)
    }

    /// Those that live.
    async fn read_sessions(&self, ids: &[SessionId], view: View) -> Result<Vec<Session>, Error> {
        let proof = self.lifetime.proof().unwrap_or(Proof::Named);
        // A list may have an id twice.
        let ids: HashSet<SessionId> = ids.iter().copied().collect();
        let looks = ids.into_iter().map(async |id| {
            let name = SessionName { namespace: self.filter.namespace.clone(), id };
            match self.store.look(&name, proof, view, Instant::now() + READ_TIMEOUT).await {
                Ok(Found::Session(session, _)) => Ok(Some(session)),
                Ok(Found::NotFound | Found::Ended(..) | Found::Rotated) | Err(Error::Corrupt { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        found.into_iter().filter_map(Result::transpose).collect()
    }
}
