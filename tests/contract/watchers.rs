//! Who is told of which change, as what.

use std::collections::{BTreeMap, BTreeSet};

use sessiond_client::v1::{EventType, SessionEvent, WatchRequest};

use super::{namespace::Event, state::Content};
use crate::harness::client::whole_namespace;

/// What a watcher asks for.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    /// None = whoever's.
    pub subject: Option<String>,
    pub labels: BTreeMap<String, String>,
}

impl Watcher {
    pub fn request(&self) -> WatchRequest {
        WatchRequest {
            whole_namespace: self.subject.is_none(),
            subject: self.subject.clone(),
            labels: self.labels.clone(),
            ..whole_namespace()
        }
    }

    fn matches(&self, content: &Content) -> bool {
        let is_its = self.subject.as_ref().is_none_or(|subject| *subject == content.subject);
        is_its && self.labels.iter().all(|(name, value)| content.labels.get(name) == Some(value))
    }

    /// None = nothing.
    fn sees(&self, event: &Event) -> Option<EventType> {
        let was_there = event.kind != EventType::Created && self.matches(&event.before);
        match (was_there, self.matches(&event.after)) {
            (_, true) => Some(event.kind),
            (true, false) => Some(EventType::Left),
            (false, false) => None,
        }
    }

    /// Whether this is what the watcher was to be told; if not, what it was not. Between sessions there is no order.
    pub fn hold(&self, events: &[Event], told: &[SessionEvent]) -> Result<(), String> {
        let mut expected: BTreeMap<&str, Vec<(EventType, &Event)>> = BTreeMap::new();
        for event in events {
            expected.entry(&event.id).or_default().extend(self.sees(event).map(|seen| (seen, event)));
        }
        for (id, expected) in expected {
            let told: Vec<&SessionEvent> = told.iter().filter(|event| event.id == id).collect();
            let rises = told.is_sorted_by(|a, b| a.revision < b.revision);
            let fits =
                told.len() == expected.len() && told.iter().zip(&expected).all(|(told, event)| fits(told, *event));
            if !rises || !fits {
                return Err(format!("{self:?} expected of {id}: {expected:#?}\nand was told: {told:#?}"));
            }
        }
        let strange = told.iter().find(|told| events.iter().all(|event| event.id != told.id));
        strange.map_or(Ok(()), |event| Err(format!("{self:?} was told {event:?}")))
    }
}

fn fits(told: &SessionEvent, (seen, event): (EventType, &Event)) -> bool {
    let content = told.session.as_ref().map(Content::from);
    let names = |content: &Content| content.attributes.clone().into_iter().collect::<Vec<_>>();
    let changed: BTreeSet<String> = match event.kind {
        EventType::Updated | EventType::Rotated => {
            let (before, after) = (names(&event.before), names(&event.after));
            let differ =
                before.iter().filter(|it| !after.contains(it)).chain(after.iter().filter(|it| !before.contains(it)));
            differ.map(|(name, _)| name.clone()).collect()
        }
        _ => BTreeSet::new(),
    };
    told.r#type() == seen
        && told.cause() == event.cause
        && event.revision.clone().take(told.revision)
        && content.as_ref() == Some(&event.after)
        && told.changed_attributes.iter().cloned().collect::<BTreeSet<_>>() == changed
}
