//! Validators of positions: the watch delivers every entry between two positions, before the second one.

use std::collections::HashMap;

use super::{Verdict, Violation, ensure};
use crate::history::{Control, History, Response};
use crate::{
    ground_truth::{LogPath, Origins, Store},
    redis_time::WriteTimes,
    streams::{Segment, Start, Stream, is_resynced, streams},
};

/// An error in the delivery of one event.
#[derive(PartialEq)]
enum DeliveryError {
    /// The event was never delivered.
    Missing,
    /// The event was delivered after a bookmark that covers it.
    AfterBookmark,
    /// A resume from some position would skip or repeat the event.
    Position,
}

/// W3: the stream delivers every matching event between two positions, or a resync.
pub fn reliable(history: &History) -> Verdict {
    no_error(history, &DeliveryError::Missing)
}

/// W4: the position of a response follows its events and precedes all later ones; positions never move back.
pub fn resumable(history: &History) -> Verdict {
    check_positions(history)?;
    no_error(history, &DeliveryError::Position)
}

/// Checks that every position is in a known log. Other positions cannot be checked further.
fn check_positions(history: &History) -> Verdict {
    for (number, watch) in history.watches.iter().enumerate() {
        for Response { token, at, .. } in &watch.responses {
            let Some(store) = history.truth.store(token.store) else {
                return Err(Violation(format!("watch {number}: {token:?} at {at} is of an unknown store")));
            };
            let mut logs = store.logs.iter().zip(&token.positions);
            let is_logged =
                token.positions.len() == store.logs.len() && logs.all(|(log, position)| log.contains(*position));
            ensure(is_logged || !history.is_durable(), || format!("watch {number}: {token:?} at {at} is in no log"))?;
        }
    }
    Ok(())
}

/// W5: all matching events up to a bookmark are delivered before it.
pub fn bookmarkable(history: &History) -> Verdict {
    no_error(history, &DeliveryError::AfterBookmark)?;
    if history.is_durable() { check_as_of(history) } else { Ok(()) }
}

fn no_error(history: &History, error: &DeliveryError) -> Verdict {
    for stream in streams(history) {
        for segment in &stream.segments {
            if let Some((_, text)) = errors(history, &stream, segment).into_iter().find(|(found, _)| found == error) {
                return Err(Violation(format!("watch {}: {text}", stream.watch)));
            }
        }
    }
    Ok(())
}

/// Returns the index of the response that first delivered each event.
fn delivered<'a>(segment: &Segment<'a>) -> HashMap<(&'a str, i64), usize> {
    let mut delivered = HashMap::new();
    for (index, event) in segment.changes() {
        delivered.entry((&event.id[..], event.revision)).or_insert(index);
    }
    delivered
}

/// Returns all errors in the delivery of events after the start of the segment, each with a description.
fn errors(history: &History, stream: &Stream<'_>, segment: &Segment<'_>) -> Vec<(DeliveryError, String)> {
    let Some(Start { token, index: first }) = segment.start else { return Vec::new() };
    // `check_positions` reports an unknown store.
    let Some(store) = history.truth.store(token.store) else { return Vec::new() };
    let (delivered, snapshots) = (delivered(segment), segment.snapshots());
    let mut errors = outside_positions(history, store, segment);
    let mut before = token;
    let responses = segment.responses.iter().enumerate().skip(first);
    for (index, response) in responses.filter(|(_, response)| !Segment::is_full_resync(response)) {
        let logs = store.logs.iter().zip(&before.positions);
        for (path, (log, previous)) in store.paths(before, &response.token).into_iter().flatten().zip(logs) {
            let entries = match path {
                LogPath::Forward(entries) => entries,
                // The position moves back to the fork point. Only watchers of the lost events receive a resync.
                LogPath::Backward if is_resync(response) || !log.contains(*previous) => continue,
                LogPath::Backward => {
                    errors.push((DeliveryError::Position, format!("the position moves back at {}", response.at)));
                    continue;
                }
                LogPath::Unknown => continue,
            };
            for entry in entries.into_iter().filter(|entry| stream.filter.event_type(entry).is_some()) {
                let is_in_snapshot = snapshots.get(&entry.id[..]).is_some_and(|revision| *revision >= entry.key().1);
                match delivered.get(&entry.key()) {
                    Some(delivery) if *delivery > index => errors.push(too_late(entry.key(), response)),
                    None if !is_in_snapshot && !is_resynced(response, &entry.id) => errors.push((
                        DeliveryError::Missing,
                        format!(
                            "{:?} {:?} was not delivered before its position at {}",
                            entry.kind,
                            entry.key(),
                            response.at
                        ),
                    )),
                    Some(_) | None => {}
                }
            }
        }
        before = &response.token;
    }
    errors
}

fn is_resync(response: &Response) -> bool {
    matches!(response.control, Some(Control::Resync(..)))
}

fn too_late(event: (&str, i64), response: &Response) -> (DeliveryError, String) {
    let error = match response.control {
        Some(Control::Bookmark(_) | Control::Synced) => DeliveryError::AfterBookmark,
        Some(Control::Resync(..)) | None => DeliveryError::Position,
    };
    (error, format!("{event:?} was delivered after its position at {}", response.at))
}

/// Returns the events before the start of the segment or after the position of their own response.
fn outside_positions(history: &History, store: &Store, segment: &Segment<'_>) -> Vec<(DeliveryError, String)> {
    let origins = Origins::of(&history.truth);
    let Some(start) = segment.start else { return Vec::new() };
    let mut errors = Vec::new();
    for (index, event) in segment.changes().filter(|(index, _)| *index >= start.index) {
        let Some(origin) = origins.find(event).filter(|origin| origin.store.id == store.id) else { continue };
        let (log, response) = (&store.logs[origin.partition], segment.responses[index]);
        let position = origin.entry.position;
        let is_before = matches!(log.path(position, start.token.positions[origin.partition]), LogPath::Forward(_));
        let is_after = !is_resync(response)
            && response.token.store == store.id
            && matches!(log.path(position, response.token.positions[origin.partition]), LogPath::Backward);
        if is_before || is_after {
            let relation = if is_before { "before the start" } else { "after the position of its response" };
            let text = format!("{} {} at {} is {relation}", event.id, event.revision, response.at);
            errors.push((DeliveryError::Position, text));
        }
    }
    errors
}

/// Checks that every event up to `as_of` of a bookmark precedes its position or was delivered before.
fn check_as_of(history: &History) -> Verdict {
    let (store, times) = (history.truth.present(), WriteTimes::of(history));
    for stream in streams(history) {
        for segment in &stream.segments {
            let Some(start) = segment.start else { continue };
            let delivered = delivered(segment);
            for (index, response) in segment.responses.iter().enumerate().skip(start.index) {
                let Some(Control::Bookmark(as_of)) = response.control else { continue };
                let token = &response.token;
                let logs = store.logs.iter().zip(&token.positions).filter(|_| token.store == store.id);
                for (log, position) in logs {
                    let later =
                        log.entries.iter().rev().take_while(|entry| entry.position.revision > position.revision);
                    let mut missing = later.filter(|entry| {
                        let is_delivered = delivered.get(&entry.key()).is_some_and(|delivery| *delivery <= index);
                        times.is_covered(entry, as_of) && stream.filter.event_type(entry).is_some() && !is_delivered
                    });
                    if let Some(missing) = missing.next() {
                        let watch = stream.watch;
                        return Err(Violation(format!("watch {watch}: {missing:?} is not delivered as of {as_of}")));
                    }
                }
            }
        }
    }
    Ok(())
}
