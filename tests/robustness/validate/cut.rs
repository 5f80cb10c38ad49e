//! W6: the state at `synced` is the truth at its position; what comes after it is the other validators' matter.

use std::collections::BTreeMap;

use sessiond_client::v1::EventType;

use super::{Held, hold};
use crate::{
    history::{Control, History, Moment, Response, Scope, Token},
    streams::{Segment, Stream, is_missed, streams},
    truth::{Entry, Store, Way},
};

pub fn snapshot_cut(history: &History) -> Held {
    for stream in streams(history) {
        for segment in &stream.segments {
            for (at, step) in segment.steps.iter().enumerate() {
                // That it is known is another matter.
                let store = history.truth.store(step.token.store);
                if let (Some(Control::Synced), Some(store)) = (&step.control, store) {
                    is_the_truth(history, &stream, segment, at, store)?;
                }
            }
        }
    }
    Ok(())
}

/// The revision of each session that the watcher knows after this step.
fn view<'a>(segment: &Segment<'a>, until: usize) -> BTreeMap<&'a str, i64> {
    let mut view: BTreeMap<&str, i64> = BTreeMap::new();
    for step in &segment.steps[..=until] {
        for event in &step.events {
            match event.r#type() {
                EventType::Ended | EventType::Left => view.remove(&event.id[..]),
                _ => view.insert(&event.id, event.revision),
            };
        }
        view.retain(|id, _| !is_missed(step, id));
    }
    view
}

fn is_the_truth(history: &History, stream: &Stream<'_>, segment: &Segment<'_>, at: usize, store: &Store) -> Held {
    let Response { token, at: moment, .. } = segment.steps[at];
    let Some(truth) = state_at(store, token) else { return Ok(()) };
    let (view, by_hand) = (view(segment, at), history.by_hand());
    let is_by_subject = matches!(stream.filter.scope, Scope::Subject(_));
    let told = |id: &str, what: String| format!("watch {}: {id} {what} at {token:?}", stream.watch);
    for (id, entry) in &truth {
        let is_its = entry.after.as_ref().is_some_and(|after| stream.filter.holds(id, &after.content));
        let (is, known) = (entry.name().1, view.get(id).copied());
        if is_its {
            // Whose time is over is not shown, though its end may be yet to come.
            let is_over = known.is_none() && entry.is_due(*moment);
            // Nor is one whose key is gone.
            let is_gone = known.is_none() && by_hand.contains(id);
            // Redis may have lost that it was the subject's, until that is repaired.
            let is_lost = known.is_none() && is_by_subject && !history.keeps_its_word();
            let fits = is_over
                || is_gone
                || is_lost
                || known.is_some_and(|known| known >= is)
                || has_left_meanwhile(stream, store, (id, is), *moment) && known.is_none();
            hold(fits, || told(id, format!("is at {is}, the watcher knows {known:?}")))?;
        } else if let Some(known) = known {
            hold(known > is, || told(id, format!("does not match, the watcher knows {known}")))?;
        }
    }
    for (id, known) in view {
        // What the watcher was shown may be newer than the position: the change is left out when it comes.
        let is_newer = store.entries().any(|entry| entry.name() == (id, known) && !is_before(store, entry, token));
        hold(truth.contains_key(id) || is_newer, || told(id, format!("does not live, the watcher knows {known}")))?;
    }
    Ok(())
}

/// Whether a change after the position, which the snapshot had already, took the session from the watcher.
fn has_left_meanwhile(stream: &Stream<'_>, store: &Store, (id, is): (&str, i64), until: Moment) -> bool {
    let mut later = store.entries().filter(|entry| entry.id == id && entry.name().1 > is);
    later.any(|entry| {
        let seen = stream.filter.sees(entry);
        entry.position.moment() <= until && matches!(seen, Some(EventType::Ended | EventType::Left))
    })
}

fn is_before(store: &Store, entry: &Entry, token: &Token) -> bool {
    let mut logs = store.logs.iter().zip(&token.positions);
    logs.any(|(log, position)| matches!(log.way(entry.position, *position), Way::Forward(_)))
}

/// The last change of each session that lives at the token; None = the token lies on no known branch.
fn state_at<'a>(store: &'a Store, token: &Token) -> Option<BTreeMap<&'a str, &'a Entry>> {
    let mut state = BTreeMap::new();
    for (log, position) in store.logs.iter().zip(&token.positions) {
        let Way::Forward(entries) = log.way(log.start, *position) else { return None };
        for entry in entries {
            match entry.kind {
                EventType::Ended => state.remove(&entry.id[..]),
                _ => state.insert(&entry.id[..], entry),
            };
        }
    }
    Some(state)
}
