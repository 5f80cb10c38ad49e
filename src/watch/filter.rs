//! Which changes a watcher is told of.

use std::collections::{BTreeMap, HashSet};

use crate::session::{Change, Event, Namespace, SessionId};

/// What a watch is opened for.
#[derive(Clone, Debug)]
pub enum Scope {
    Namespace,
    Ids(HashSet<SessionId>),
}

/// What happened, as a watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Change(Change),
    /// The session lives on, but no longer matches.
    Left,
}

/// Kinds of events that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Created,
    Updated,
    Ended,
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
        let name = &event.session.name;
        let in_scope = match &self.scope {
            Scope::Namespace => true,
            Scope::Ids(ids) => ids.contains(&name.id),
        };
        if name.namespace != self.namespace || !in_scope {
            return None;
        }
        let matches = |labels: &BTreeMap<String, String>| {
            self.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
        };
        let after = matches(&event.session.labels);
        let before = event.before.as_ref().map_or(after, |facets| matches(&facets.labels));
        let seen = match event.change {
            // It vanished from Redis, or cannot be read: nothing is known but its name.
            _ if event.session.is_bare() => Seen::Change(event.change),
            Change::Ended(_) | Change::Created | Change::Updated if after => Seen::Change(event.change),
            Change::Ended(_) | Change::Created | Change::Updated if before => Seen::Left,
            Change::Ended(_) | Change::Created | Change::Updated => return None,
        };
        let kind = match seen {
            Seen::Change(Change::Created) => Kind::Created,
            Seen::Change(Change::Updated) => Kind::Updated,
            Seen::Change(Change::Ended(_)) => Kind::Ended,
            Seen::Left => Kind::Left,
        };
        let asked_for = self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
        asked_for.then_some(seen)
    }
}
