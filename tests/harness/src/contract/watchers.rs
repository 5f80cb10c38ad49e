//! The events that each watcher receives.

use std::collections::{BTreeMap, BTreeSet};

use sessiond_client::v1::{EventType, SessionEvent, WatchRequest};

use super::{namespace::Event, state::Content};
use crate::client::whole_namespace;

/// The filter of a watcher.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    /// Subject of the matching sessions. None: the whole namespace.
    pub subject: Option<String>,
    /// Labels that matching sessions have, with their values. Empty: no filter by label.
    pub labels: BTreeMap<String, String>,
}

impl Watcher {
    /// Returns the watch request with this filter: FULL view, a bookmark every 100 ms.
    pub fn request(&self) -> WatchRequest {
        WatchRequest {
            whole_namespace: self.subject.is_none(),
            subject: self.subject.clone(),
            labels: self.labels.clone(),
            ..whole_namespace()
        }
    }

    fn matches(&self, content: &Content) -> bool {
        let has_subject = self.subject.as_ref().is_none_or(|subject| *subject == content.subject);
        has_subject && self.labels.iter().all(|(name, value)| content.labels.get(name) == Some(value))
    }

    /// Returns the type of the event that the watcher receives. None: no event.
    fn event_type(&self, event: &Event) -> Option<EventType> {
        let matched_before = event.kind != EventType::Created && self.matches(&event.before);
        match (matched_before, self.matches(&event.after)) {
            (_, true) => Some(event.kind),
            (true, false) => Some(EventType::Left),
            (false, false) => None,
        }
    }

    /// Checks that the watcher received its events of all changes, each once, and no others.
    ///
    /// The order is checked per session only, because different partitions have no common order.
    pub fn check(&self, events: &[Event], received: &[SessionEvent]) -> Result<(), String> {
        let mut expected: BTreeMap<&str, Vec<(EventType, &Event)>> = BTreeMap::new();
        for event in events {
            expected.entry(&event.id).or_default().extend(self.event_type(event).map(|event_type| (event_type, event)));
        }
        for (id, expected) in expected {
            let received: Vec<&SessionEvent> = received.iter().filter(|event| event.id == id).collect();
            let is_ordered = received.is_sorted_by(|a, b| a.revision < b.revision);
            let is_complete = received.len() == expected.len()
                && received.iter().zip(&expected).all(|(event, change)| is_event_of(event, *change));
            if !is_ordered || !is_complete {
                return Err(format!("{self:?} expected for {id}: {expected:#?}\nreceived: {received:#?}"));
            }
        }
        let unexpected = received.iter().find(|event| events.iter().all(|change| change.id != event.id));
        unexpected.map_or(Ok(()), |event| Err(format!("{self:?} received unexpected {event:?}")))
    }
}

/// Returns whether the received event is the event of this change with this type.
fn is_event_of(received: &SessionEvent, (event_type, event): (EventType, &Event)) -> bool {
    let content = received.session.as_ref().map(Content::from);
    let names = |content: &Content| content.attributes.clone().into_iter().collect::<Vec<_>>();
    let changed: BTreeSet<String> = match event.kind {
        EventType::Updated | EventType::Rotated => {
            let (before, after) = (names(&event.before), names(&event.after));
            let differ = before
                .iter()
                .filter(|pair| !after.contains(pair))
                .chain(after.iter().filter(|pair| !before.contains(pair)));
            differ.map(|(name, _)| name.clone()).collect()
        }
        _ => BTreeSet::new(),
    };
    received.r#type() == event_type
        && received.cause() == event.cause
        && event.revision.clone().confirm(received.revision)
        && content.as_ref() == Some(&event.after)
        && received.changed_attributes.iter().cloned().collect::<BTreeSet<_>>() == changed
}
