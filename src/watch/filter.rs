//! Filter of a watch: which changes the watcher receives, and how it sees them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::response::Visibility;
use crate::session::{Basic, Change, Event, Namespace, Session, SessionId, SessionRef};

/// Sessions that a watch is opened for.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All sessions of the namespace.
    Namespace,
    /// Sessions with these ids.
    Ids(Arc<HashSet<SessionId>>),
    /// Sessions that belong to this subject before or after the change.
    Subject(String),
}

/// Kind of events that a watch can request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// CREATED events.
    Created,
    /// UPDATED events.
    Updated,
    /// ROTATED events.
    Rotated,
    /// ENDED events.
    Ended,
    /// TOKEN_REUSED events.
    TokenReused,
    /// LEFT events.
    Left,
}

/// Filter of a watch. All conditions must hold.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Namespace of the sessions.
    pub namespace: Namespace,
    /// Sessions that the watch is opened for.
    pub scope: Scope,
    /// Labels that must all match, before or after the change. Empty: any.
    pub labels: BTreeMap<String, String>,
    /// Requested kinds of events. None: all.
    pub kinds: Option<HashSet<Kind>>,
}

impl Filter {
    /// Returns how the watcher sees the event. None: it does not match, or its kind was not requested.
    pub fn visibility(&self, event: &Event) -> Option<Visibility> {
        let visibility = self.visibility_of_any_kind(event)?;
        let kind = match visibility {
            Visibility::Change(Change::Created) => Kind::Created,
            Visibility::Change(Change::Updated) => Kind::Updated,
            Visibility::Change(Change::Rotated) => Kind::Rotated,
            Visibility::Change(Change::Ended(_)) => Kind::Ended,
            Visibility::Change(Change::TokenReused) => Kind::TokenReused,
            Visibility::Left => Kind::Left,
            Visibility::Present => return Some(visibility),
        };
        let is_requested = self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
        is_requested.then_some(visibility)
    }

    /// Returns how the watcher would see the event if it had requested every kind. None: it does not match.
    pub fn visibility_of_any_kind(&self, event: &Event) -> Option<Visibility> {
        if !self.may_match(&event.session.name) {
            return None;
        }
        let session = &event.session;
        let after = self.matches_fields(&session.basic);
        let before = event.before.as_ref().map_or(after, |fields| self.matches_fields(fields));
        match (after, before) {
            // Deleted out of band, or unreadable: only the name is known, so the filter cannot exclude it.
            _ if session.lacks_state() => Some(Visibility::Change(event.change)),
            (true, _) => Some(Visibility::Change(event.change)),
            (false, true) => Some(Visibility::Left),
            (false, false) => None,
        }
    }

    /// Whether a session with this name can match the filter.
    pub fn may_match(&self, name: &SessionRef) -> bool {
        let in_scope = match &self.scope {
            Scope::Namespace | Scope::Subject(_) => true,
            Scope::Ids(ids) => ids.contains(&name.id),
        };
        name.namespace == self.namespace && in_scope
    }

    /// Whether the current state of a session matches. Its name must match already.
    pub fn matches(&self, session: &Session) -> bool {
        self.matches_fields(&session.basic)
    }

    fn matches_fields(&self, basic: &Basic) -> bool {
        let matches_subject = match &self.scope {
            Scope::Subject(wanted) => wanted == basic.subject(),
            Scope::Namespace | Scope::Ids(_) => true,
        };
        matches_subject && basic.has_labels(&self.labels)
    }
}
