//! Which changes a watcher is told of.

use std::collections::{BTreeMap, HashSet};

use crate::session::{Change, Event, Namespace, Session, SessionId, SessionName};

/// What a watch is opened for.
#[derive(Clone, Debug)]
pub enum Scope {
    Namespace,
    Ids(HashSet<SessionId>),
    /// The sessions that are this subject's before or after the change.
    Subject(String),
}

/// What happened, as a watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Change(Change),
    /// The session lives on, but no longer matches.
    Left,
    /// Nothing happened: it is told as it is.
    Present,
}

/// Kinds of events that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Created,
    Updated,
    Rotated,
    Ended,
    TokenReused,
    Left,
}

/// Which changes a watcher is told of.
#[derive(Clone, Debug)]
pub struct Filter {
    pub namespace: Namespace,
    pub scope: Scope,
    /// All must match, before or after the change.
    pub labels: BTreeMap<String, String>,
    /// None = every kind.
    pub kinds: Option<HashSet<Kind>>,
}

impl Filter {
    /// How the watcher sees the change; None = not at all.
    pub fn sees(&self, event: &Event) -> Option<Seen> {
        let seen = self.concern(event)?;
        let kind = match seen {
            Seen::Change(Change::Created) => Kind::Created,
            Seen::Change(Change::Updated) => Kind::Updated,
            Seen::Change(Change::Rotated) => Kind::Rotated,
            Seen::Change(Change::Ended(_)) => Kind::Ended,
            Seen::Change(Change::TokenReused) => Kind::TokenReused,
            Seen::Left => Kind::Left,
            Seen::Present => return Some(seen),
        };
        let asked_for = self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
        asked_for.then_some(seen)
    }

    /// What the change is to the watcher, whether it asked for that kind or not; None = nothing.
    pub fn concern(&self, event: &Event) -> Option<Seen> {
        if !self.names(&event.session.name) {
            return None;
        }
        let session = &event.session;
        let after = self.matches(&session.subject, &session.labels);
        let before = event.before.as_ref().map_or(after, |facets| self.matches(&facets.subject, &facets.labels));
        match (after, before) {
            // It vanished from Redis, or cannot be read: nothing is known but its name.
            _ if session.is_bare() => Some(Seen::Change(event.change)),
            (true, _) => Some(Seen::Change(event.change)),
            (false, true) => Some(Seen::Left),
            (false, false) => None,
        }
    }

    /// Whether a session of this name may be one that the watch is for.
    pub fn names(&self, name: &SessionName) -> bool {
        let may_match = match &self.scope {
            Scope::Namespace | Scope::Subject(_) => true,
            Scope::Ids(ids) => ids.contains(&name.id),
        };
        name.namespace == self.namespace && may_match
    }

    /// Whether the session, one of those the watch is for, matches as it is.
    pub fn holds(&self, session: &Session) -> bool {
        self.matches(&session.subject, &session.labels)
    }

    fn matches(&self, subject: &str, labels: &BTreeMap<String, String>) -> bool {
        let is_subjects = match &self.scope {
            Scope::Subject(of) => of == subject,
            Scope::Namespace | Scope::Ids(_) => true,
        };
        is_subjects && self.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
    }
}
