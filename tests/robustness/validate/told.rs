//! Event by event: in order, once, as the filter says, and none of a branch that was lost without a word.

use std::collections::{BTreeMap, HashSet};

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use super::{Held, hold};
use crate::{
    contract::state::Content,
    history::{Control, Filter, History, Response},
    streams::{Segment, is_missed, streams},
    truth::{Entry, Origins},
};

/// W1: per session by rising revision. What was told before already is another matter.
pub fn ordered(history: &History) -> Held {
    for stream in streams(history) {
        for segment in &stream.segments {
            let mut last: BTreeMap<&str, i64> = BTreeMap::new();
            let mut told = HashSet::new();
            for step in &segment.steps {
                for event in &step.events {
                    // A state that is read meanwhile may lag behind the changes.
                    let is_state = event.r#type() == EventType::Snapshot;
                    let known = last.entry(&event.id).or_default();
                    if told.insert((&event.id, event.revision)) && !(is_state && *known > 0) {
                        let last = *known;
                        hold(event.revision >= last, || {
                            format!("watch {}: {} {} after {last}", stream.watch, event.id, event.revision)
                        })?;
                        *known = event.revision;
                    }
                }
                last.retain(|id, _| !is_missed(step, id));
            }
        }
    }
    Ok(())
}

/// W2: once in a watch, those that go on with it included.
pub fn unique(history: &History) -> Held {
    for stream in streams(history) {
        let mut told = HashSet::new();
        for segment in &stream.segments {
            let mut in_snapshot = HashSet::new();
            for (_, event) in segment.events() {
                let name = (&event.id, event.revision);
                let is_new = if event.r#type() == EventType::Snapshot {
                    in_snapshot.insert(name);
                    true
                } else {
                    told.insert(name) && !in_snapshot.contains(&name)
                };
                hold(is_new, || format!("watch {}: {} {} twice", stream.watch, event.id, event.revision))?;
            }
        }
    }
    Ok(())
}

/// What is told is what happened, and matches. What never happened, or did no longer, is another matter.
pub fn filter(history: &History) -> Held {
    let origins = Origins::of(&history.truth);
    for stream in streams(history) {
        for (_, event) in stream.segments.iter().flat_map(Segment::events) {
            let Some(origin) = origins.find(event) else { continue };
            let fits = if event.r#type() == EventType::Snapshot {
                is_state(stream.filter, event, origin.entry)
            } else {
                is_change(stream.filter, event, origin.entry)
            };
            hold(fits, || {
                let (filter, entry) = (stream.filter, origin.entry);
                format!("watch {}, {filter:?}, was told {event:#?} of {entry:#?}", stream.watch)
            })?;
        }
    }
    Ok(())
}

fn is_state(filter: &Filter, event: &SessionEvent, entry: &Entry) -> bool {
    let (Some(session), Some(after)) = (&event.session, &entry.after) else { return false };
    let is_alive = entry.kind != EventType::Ended;
    is_alive && Content::from(session) == after.content && filter.holds(&entry.id, &after.content)
}

fn is_change(filter: &Filter, event: &SessionEvent, entry: &Entry) -> bool {
    let session = event.session.as_ref();
    let is_after = match &entry.after {
        Some(after) => session.is_some_and(|session| {
            let expires = session.expire_time.map(|expires| (expires.seconds, expires.nanos));
            Content::from(session) == after.content && expires == after.expires
        }),
        None => session.is_none_or(|session| session.revision == 0),
    };
    let is_ending = event.r#type() == EventType::Ended;
    filter.sees(entry) == Some(event.r#type())
        && is_after
        && event.cause() == if is_ending { entry.cause } else { Default::default() }
        && event.changed_attributes == entry.changed
}

/// W9: what was told and does not stand is followed by a resync that says so; another store is never told as the same.
pub fn no_silent_rollback(history: &History) -> Held {
    let origins = Origins::of(&history.truth);
    for stream in streams(history) {
        let steps: Vec<&Response> = stream.segments.iter().flat_map(|segment| segment.steps.iter().copied()).collect();
        for (at, step) in steps.iter().enumerate() {
            for event in &step.events {
                let stands = origins.find(event).is_some_and(|origin| origin.stands);
                // Who is there no more cannot be told.
                let is_told = stands || stream.is_over || steps[at..].iter().any(|later| announces(later, &event.id));
                hold(is_told, || {
                    format!(
                        "watch {}: {} {} does not stand, and nobody says so",
                        stream.watch, event.id, event.revision
                    )
                })?;
            }
        }
        for pair in steps.windows(2).filter(|pair| !Segment::is_cut(pair[1])) {
            let (before, after) = (&pair[0].token, &pair[1].token);
            hold(before.store == after.store, || {
                format!("watch {} is in another store at {}", stream.watch, pair[1].at)
            })?;
        }
    }
    Ok(())
}

fn announces(step: &Response, id: &str) -> bool {
    let is_lost = matches!(&step.control, Some(Control::Resync(ResyncReason::Rollback | ResyncReason::Flushed, _)));
    is_lost && is_missed(step, id)
}
