//! Event by event: in order, once, as the filter says, and none of a branch that was lost without a word.

use std::collections::{BTreeMap, HashSet};

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use super::{Held, Violation, hold};
use crate::{
    contract::state::Content,
    history::{Control, Filter, History, Response},
    streams::{Segment, ids_of, streams},
    truth::{Entry, Origins},
};

/// W1: per session by rising revision. What was told before already is another matter.
pub fn ordered(history: &History) -> Held {
    for stream in streams(history) {
        for segment in &stream.segments {
            let mut last: BTreeMap<&str, i64> = BTreeMap::new();
            let mut told = HashSet::new();
            for (_, event) in segment.changes_and_snapshots_before() {
                let known = last.entry(&event.id).or_default();
                if told.insert((&event.id, event.revision)) {
                    let last = *known;
                    hold(event.revision >= last, || {
                        format!("watch {}: {} {} after {last}", stream.watch, event.id, event.revision)
                    })?;
                    *known = event.revision;
                }
            }
        }
    }
    Ok(())
}

impl<'a> Segment<'a> {
    /// Every event, but no SNAPSHOT of a session that had one or a change before.
    fn changes_and_snapshots_before(&self) -> impl Iterator<Item = (usize, &'a SessionEvent)> {
        let mut known = HashSet::new();
        self.events().filter(move |(_, event)| known.insert(&event.id) || event.r#type() != EventType::Snapshot)
    }
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

/// W9: what was told and does not stand is followed by a resync that says so, and so is a position.
pub fn no_silent_rollback(history: &History) -> Held {
    let origins = Origins::of(&history.truth);
    for stream in streams(history) {
        for segment in &stream.segments {
            let cut = segment.steps.last().filter(|step| Segment::is_cut(step));
            for (_, event) in segment.events() {
                if origins.find(event).is_some_and(|origin| origin.stands) {
                    continue;
                }
                let is_announced = cut.is_some_and(|step| announces(step, &event.id));
                hold(is_announced, || {
                    let cut = cut.map(|step| &step.control);
                    format!("watch {}: {} {} does not stand, and {cut:?}", stream.watch, event.id, event.revision)
                })?;
            }
            let uncut = if cut.is_some() { &segment.steps[..segment.steps.len() - 1] } else { &segment.steps };
            uncut.windows(2).try_for_each(|pair| stays_on_its_branch(history, stream.watch, pair))?;
        }
    }
    Ok(())
}

fn announces(step: &Response, id: &str) -> bool {
    let is_lost = matches!(&step.control, Some(Control::Resync(ResyncReason::Rollback | ResyncReason::Flushed, _)));
    is_lost && ids_of(step).is_none_or(|ids| ids.contains(id))
}

fn stays_on_its_branch(history: &History, watch: usize, pair: &[&Response]) -> Held {
    let (before, after) = (&pair[0].token, &pair[1].token);
    let silently = |what: String| Violation(format!("watch {watch} went silently {what}"));
    if before.store != after.store {
        return Err(silently("to another store".into()));
    }
    let Some(store) = history.truth.store(before.store) else { return Ok(()) };
    let ends = before.positions.iter().zip(&after.positions);
    for (log, (before, after)) in store.logs.iter().zip(ends) {
        if !log.stands(*before) && log.stands(*after) {
            return Err(silently(format!("from {before:?}, which was lost, to {after:?}")));
        }
    }
    Ok(())
}
