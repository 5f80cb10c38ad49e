//! Validators of events: order, duplicates, filters, and events of lost branches.

use std::collections::{BTreeMap, HashSet};

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use super::{Verdict, ensure};
use crate::history::{Control, Filter, History, Response};
use crate::{
    ground_truth::{Entry, Origins},
    streams::{Segment, is_resynced, streams},
};
use harness::contract::state::Content;

/// W1: the events of a session have increasing revisions. `Unique` checks duplicates.
pub fn ordered(history: &History) -> Verdict {
    for stream in streams(history) {
        for segment in &stream.segments {
            let mut last: BTreeMap<&str, i64> = BTreeMap::new();
            let mut delivered = HashSet::new();
            for response in &segment.responses {
                for event in &response.events {
                    // A SNAPSHOT can be older than the events that were delivered while it was read.
                    let is_snapshot = event.r#type() == EventType::Snapshot;
                    let previous = last.entry(&event.id).or_default();
                    if delivered.insert((&event.id, event.revision)) && !(is_snapshot && *previous > 0) {
                        let last = *previous;
                        ensure(event.revision >= last, || {
                            format!("watch {}: {} {} after {last}", stream.watch, event.id, event.revision)
                        })?;
                        *previous = event.revision;
                    }
                }
                last.retain(|id, _| !is_resynced(response, id));
            }
        }
    }
    Ok(())
}

/// W2: a watch, including its resumes, delivers each event once. An event that Redis has lost can follow the `resync` for it
/// again, if the watch resumes on an instance that still uses the old primary; another `resync` follows then.
pub fn unique(history: &History) -> Verdict {
    let present = history.truth.present();
    let kept: HashSet<_> = present.entries().map(|entry| (&entry.id, entry.position.revision as i64)).collect();
    for stream in streams(history) {
        let mut delivered = HashSet::new();
        for segment in &stream.segments {
            let mut in_snapshot = HashSet::new();
            for response in &segment.responses {
                for event in &response.events {
                    let key = (&event.id, event.revision);
                    let is_new = if event.r#type() == EventType::Snapshot {
                        in_snapshot.insert(key);
                        true
                    } else {
                        delivered.insert(key) && !in_snapshot.contains(&key)
                    };
                    ensure(is_new, || {
                        format!("watch {}: {} {} delivered twice", stream.watch, event.id, event.revision)
                    })?;
                }
                delivered.retain(|key| !is_resynced(response, key.0) || kept.contains(key));
            }
        }
    }
    Ok(())
}

/// Every event matches the filter and equals its log entry. `RollbackReported` checks events without an entry.
pub fn filter(history: &History) -> Verdict {
    let origins = Origins::of(&history.truth);
    for stream in streams(history) {
        for (_, event) in stream.segments.iter().flat_map(Segment::events) {
            let Some(origin) = origins.find(event) else { continue };
            let is_correct = if event.r#type() == EventType::Snapshot {
                is_correct_snapshot(stream.filter, event, origin.entry)
            } else {
                is_correct_change(stream.filter, event, origin.entry)
            };
            ensure(is_correct, || {
                let (filter, entry) = (stream.filter, origin.entry);
                format!("watch {}, {filter:?}, received {event:#?} for {entry:#?}", stream.watch)
            })?;
        }
    }
    Ok(())
}

fn is_correct_snapshot(filter: &Filter, event: &SessionEvent, entry: &Entry) -> bool {
    let (Some(session), Some(after)) = (&event.session, &entry.after) else { return false };
    let is_live = entry.kind != EventType::Ended;
    is_live && Content::from(session) == after.content && filter.matches_session(entry, &after.content)
}

fn is_correct_change(filter: &Filter, event: &SessionEvent, entry: &Entry) -> bool {
    let session = event.session.as_ref();
    let has_state = match &entry.after {
        Some(after) => session.is_some_and(|session| {
            let expires = session.expire_time.map(|expires| (expires.seconds, expires.nanos));
            Content::from(session) == after.content && expires == after.expires
        }),
        None => session.is_none_or(|session| session.revision == 0),
    };
    let is_ending = event.r#type() == EventType::Ended;
    filter.event_type(entry) == Some(event.r#type())
        && has_state
        && event.cause() == if is_ending { entry.cause } else { Default::default() }
        && event.changed_attributes == entry.changed
}

/// W9: an event of a lost branch is followed by a resync of its session; a change of the store by a resync of all
/// sessions.
pub fn rollback_reported(history: &History) -> Verdict {
    let origins = Origins::of(&history.truth);
    for stream in streams(history) {
        let responses: Vec<&Response> =
            stream.segments.iter().flat_map(|segment| segment.responses.iter().copied()).collect();
        for (index, response) in responses.iter().enumerate() {
            for event in &response.events {
                let is_current = origins.find(event).is_some_and(|origin| origin.is_current);
                // A stream that has ended cannot receive the resync.
                let is_reported = is_current
                    || stream.has_ended
                    || responses[index..].iter().any(|later| reports_loss(later, &event.id));
                ensure(is_reported, || {
                    format!("watch {}: {} {} is lost, without a resync", stream.watch, event.id, event.revision)
                })?;
            }
        }
        for pair in responses.windows(2).filter(|pair| !Segment::is_full_resync(pair[1])) {
            let (before, after) = (&pair[0].token, &pair[1].token);
            ensure(before.store == after.store, || {
                format!("watch {} continues in another store at {}, without a resync", stream.watch, pair[1].at)
            })?;
        }
    }
    Ok(())
}

/// Returns whether the response is a resync of this session because of a rollback or a flush.
fn reports_loss(response: &Response, id: &str) -> bool {
    let is_lost = matches!(&response.control, Some(Control::Resync(ResyncReason::Rollback | ResyncReason::Flushed, _)));
    is_lost && is_resynced(response, id)
}
