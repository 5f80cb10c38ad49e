//! W6: the snapshot at `synced` equals the ground truth at its position. Other validators check the events after it.

use std::collections::BTreeMap;

use sessiond_client::v1::EventType;

use super::{Verdict, ensure};
use crate::history::{Control, DecodedToken, History, Micros, Response, Scope};
use crate::{
    ground_truth::{Entry, LogPath, Store},
    redis_time::WriteTimes,
    streams::{Segment, Stream, is_resynced, streams},
};

/// W6: at `synced`, the watcher holds the matching live sessions at its position, in that state or a later one.
pub fn snapshot_consistent(history: &History) -> Verdict {
    let times = WriteTimes::of(history);
    for stream in streams(history) {
        for segment in &stream.segments {
            for (index, response) in segment.responses.iter().enumerate() {
                // `Resumable` checks that the store is known.
                let store = history.truth.store(response.token.store);
                if let (Some(Control::Synced), Some(store)) = (&response.control, store) {
                    check_snapshot(history, &times, &stream, segment, index, store)?;
                }
            }
        }
    }
    Ok(())
}

/// Returns the revision of each session that the watcher holds after this response.
fn view<'a>(segment: &Segment<'a>, until: usize) -> BTreeMap<&'a str, i64> {
    let mut view: BTreeMap<&str, i64> = BTreeMap::new();
    for response in &segment.responses[..=until] {
        for event in &response.events {
            match event.r#type() {
                EventType::Ended | EventType::Left => view.remove(&event.id[..]),
                _ => view.insert(&event.id, event.revision),
            };
        }
        view.retain(|id, _| !is_resynced(response, id));
    }
    view
}

fn check_snapshot(
    history: &History,
    times: &WriteTimes<'_>,
    stream: &Stream<'_>,
    segment: &Segment<'_>,
    synced: usize,
    store: &Store,
) -> Verdict {
    let Response { token, at: time, .. } = segment.responses[synced];
    let Some(truth) = state_at(store, token) else { return Ok(()) };
    let (view, deleted_keys) = (view(segment, synced), history.deleted_keys());
    let is_by_subject = matches!(stream.filter.scope, Scope::Subject(_));
    let describe = |id: &str, error: String| format!("watch {}: {id} {error} at {token:?}", stream.watch);
    for (id, (partition, entry)) in &truth {
        let is_match = entry.after.as_ref().is_some_and(|after| stream.filter.matches_session(entry, &after.content));
        let (revision, held) = (entry.key().1, view.get(id).copied());
        if is_match {
            // A session whose deadline has passed is not in the snapshot, even if its ENDED event is not logged yet.
            let is_expired = held.is_none() && entry.expires_before(history.redis_time(*time)[1]);
            // A session whose key was deleted is not in the snapshot either.
            let is_deleted = held.is_none() && deleted_keys.contains(id);
            // The namespace is listed from its due sets. Subjects have an index of their own.
            let is_unlisted = held.is_none() && !is_by_subject && history.has_lost_due_set(*partition, *time);
            // Redis may have lost the entry in the subject index, until the reconciler repairs it.
            let is_index_entry_lost = held.is_none() && is_by_subject && !history.is_durable();
            let is_correct = is_expired
                || is_deleted
                || is_unlisted
                || is_index_entry_lost
                || held.is_some_and(|held| held >= revision)
                || has_left_since(stream, store, times, (id, revision), *time) && held.is_none();
            ensure(is_correct, || describe(id, format!("has revision {revision}, the watcher holds {held:?}")))?;
        } else if let Some(held) = held {
            ensure(held > revision, || describe(id, format!("does not match, the watcher holds {held}")))?;
        }
    }
    for (id, held) in view {
        // The snapshot can be newer than the position. The watch skips the later event of this change.
        let is_newer = store.entries().any(|entry| entry.key() == (id, held) && !is_before(store, entry, token));
        ensure(truth.contains_key(id) || is_newer, || describe(id, format!("is not live, the watcher holds {held}")))?;
    }
    Ok(())
}

/// Returns whether a later change, which the snapshot already contained, ended the session or made it leave the filter.
fn has_left_since(
    stream: &Stream<'_>,
    store: &Store,
    times: &WriteTimes<'_>,
    (id, revision): (&str, i64),
    until: Micros,
) -> bool {
    let mut later = store.entries().filter(|entry| entry.id == id && entry.key().1 > revision);
    later.any(|entry| {
        let event_type = stream.filter.event_type(entry);
        times.of_entry(entry)[0] <= until && matches!(event_type, Some(EventType::Ended | EventType::Left))
    })
}

/// Returns whether the entry is at or before the position of the token in its log.
fn is_before(store: &Store, entry: &Entry, token: &DecodedToken) -> bool {
    let mut logs = store.logs.iter().zip(&token.positions);
    logs.any(|(log, position)| matches!(log.path(entry.position, *position), LogPath::Forward(_)))
}

/// Returns partition and last change of each session that is live at the token. None: the token is on an unknown branch.
fn state_at<'a>(store: &'a Store, token: &DecodedToken) -> Option<BTreeMap<&'a str, (usize, &'a Entry)>> {
    let mut state = BTreeMap::new();
    for (partition, (log, position)) in store.logs.iter().zip(&token.positions).enumerate() {
        let LogPath::Forward(entries) = log.path(log.start, *position) else { return None };
        for entry in entries {
            match entry.kind {
                EventType::Ended => state.remove(&entry.id[..]),
                _ => state.insert(&entry.id[..], (partition, entry)),
            };
        }
    }
    Some(state)
}
