//! Index of the watchers by the sessions that they are interested in: an event costs the work for the watchers that it may
//! match, regardless of how many others there are.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    sync::Arc,
};

use crate::session::{Event, Namespace, SessionId, SessionRef};

use super::{
    filter::{Filter, Scope},
    watcher::Watcher,
};

/// Watchers of the same sessions, by ascending number.
type Watchers = Vec<(u64, Arc<Watcher>)>;

/// Watchers of each session, of each subject and of each namespace.
#[derive(Default)]
pub(super) struct WatcherIndex {
    by_session: HashMap<SessionRef, Watchers>,
    by_namespace: HashMap<Namespace, Watchers>,
    by_subject: HashMap<Namespace, HashMap<String, Watchers>>,
}

impl WatcherIndex {
    /// Adds a watcher, whose number is higher than all numbers before.
    pub(super) fn add(&mut self, filter: &Filter, number: u64, watcher: &Arc<Watcher>) {
        let add = |watchers: &mut Watchers| watchers.push((number, watcher.clone()));
        let namespace = &filter.namespace;
        match &filter.scope {
            Scope::Namespace => add(self.by_namespace.entry(namespace.clone()).or_default()),
            Scope::Subject(subject) => {
                let subjects = self.by_subject.entry(namespace.clone()).or_default();
                add(subjects.entry(subject.clone()).or_default());
            }
            Scope::Ids(ids) => names(namespace, ids).for_each(|name| add(self.by_session.entry(name).or_default())),
        }
    }

    /// Removes a watcher, which was added with this filter.
    pub(super) fn remove(&mut self, filter: &Filter, number: u64) {
        let namespace = &filter.namespace;
        match &filter.scope {
            Scope::Namespace => remove(self.by_namespace.entry(namespace.clone()), number),
            Scope::Subject(subject) => {
                let Some(subjects) = self.by_subject.get_mut(namespace) else { return };
                remove(subjects.entry(subject.clone()), number);
                if subjects.is_empty() {
                    self.by_subject.remove(namespace);
                }
            }
            Scope::Ids(ids) => names(namespace, ids).for_each(|name| remove(self.by_session.entry(name), number)),
        }
    }

    /// Returns the watchers that the event may match, each once.
    pub(super) fn interested_in<'a>(&'a self, event: &Event) -> impl Iterator<Item = &'a Watcher> + Clone + use<'a> {
        let (session, before) = (&event.session, &event.before);
        let by_session = self.by_session.get(&session.name);
        let by_namespace = self.by_namespace.get(&session.name.namespace);
        let subjects = self.by_subject.get(&session.name.namespace);
        // The subject of a session that was deleted out of band is unknown: every subject may match.
        let (all, one) = if session.lacks_state() { (subjects, None) } else { (None, subjects) };
        let after = one.and_then(|subjects| subjects.get(session.basic.subject()));
        let before = before.as_ref().filter(|before| before.subject() != session.basic.subject());
        let before = before.and_then(|before| one?.get(before.subject()));
        let by_subject = all.into_iter().flat_map(HashMap::values).chain(after).chain(before);
        by_session.into_iter().chain(by_namespace).chain(by_subject).flatten().map(|(_, watcher)| &**watcher)
    }
}

fn names<'a>(namespace: &'a Namespace, ids: &'a HashSet<SessionId>) -> impl Iterator<Item = SessionRef> + 'a {
    ids.iter().map(|id| SessionRef { namespace: namespace.clone(), id: *id })
}

/// Removes the watcher with this number, and the list if it becomes empty.
fn remove<K: Eq + Hash>(entry: Entry<'_, K, Watchers>, number: u64) {
    let Entry::Occupied(mut entry) = entry else { return };
    if let Ok(index) = entry.get().binary_search_by_key(&number, |(number, _)| *number) {
        entry.get_mut().remove(index);
    }
    if entry.get().is_empty() {
        entry.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::session::{Change, Revision, Session};

    fn name(namespace: &str, id: u8) -> SessionRef {
        SessionRef { namespace: namespace.parse().unwrap(), id: SessionId::from_bytes([id; 16]) }
    }

    fn event(name: SessionRef) -> Event {
        Event {
            change: Change::Updated,
            revision: Revision(1),
            session: Session::without_state(name),
            changed_attributes: Vec::new(),
            before: None,
        }
    }

    fn filter(namespace: &str, scope: Scope) -> Filter {
        Filter { namespace: namespace.parse().unwrap(), scope, labels: BTreeMap::new(), kinds: None }
    }

    fn ids(ids: &[u8]) -> Scope {
        Scope::Ids(Arc::new(ids.iter().map(|id| SessionId::from_bytes([*id; 16])).collect()))
    }

    #[test]
    fn watcher_index_returns_only_interested_watchers() {
        // The event lacks the subject.
        let subject = || Scope::Subject("7".to_owned());
        let scopes = [("web", ids(&[1, 2])), ("web", Scope::Namespace), ("web", subject())];
        let others = [("web", ids(&[3])), ("app", Scope::Namespace), ("app", subject())];
        let filters = scopes.into_iter().chain(others).map(|(namespace, scope)| filter(namespace, scope));
        let filters: Vec<Filter> = filters.collect();
        let watchers: Vec<_> = filters.iter().map(|_| Arc::new(Watcher::new(0, Duration::ZERO))).collect();
        let mut index = WatcherIndex::default();
        for ((number, filter), watcher) in (0..).zip(&filters).zip(&watchers) {
            index.add(filter, number, watcher);
        }
        let numbers_of = |index: &WatcherIndex| {
            let found = index.interested_in(&event(name("web", 2))).map(std::ptr::from_ref);
            let number = |found| watchers.iter().position(|watcher| Arc::as_ptr(watcher) == found).unwrap();
            found.map(number).collect::<Vec<_>>()
        };
        assert_eq!(numbers_of(&index), [0, 1, 2]);
        for (number, filter) in (0..).zip(&filters) {
            index.remove(filter, number);
        }
        assert!(numbers_of(&index).is_empty());
        assert!(index.by_session.is_empty() && index.by_namespace.is_empty() && index.by_subject.is_empty());
    }
}
