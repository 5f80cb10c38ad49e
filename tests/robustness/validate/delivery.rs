//! Position by position: what lies between two of them came, all of it, and no later than the second.

use std::collections::HashMap;

use super::{Held, Violation, hold};
use crate::{
    history::{Control, History, Response},
    streams::{Segment, Start, Stream, is_missed, streams},
    truth::{Origins, Store, Way},
};

#[derive(PartialEq)]
enum Fault {
    /// It never came.
    Missing,
    /// It came after a bookmark that covers it.
    AfterBookmark,
    /// A resume from some position would have missed or repeated it.
    Position,
}

/// W3: between two positions every matching event comes, or the stream says resync.
pub fn reliable(history: &History) -> Held {
    none(history, &Fault::Missing)
}

/// W4: the position after every response lies behind its events, before all others, and moves on.
pub fn resumable(history: &History) -> Held {
    every_place_is_known(history)?;
    none(history, &Fault::Position)
}

/// Whatever stands is in the truth, as is every store: else what follows from a position cannot be checked.
fn every_place_is_known(history: &History) -> Held {
    for (number, watch) in history.watches.iter().enumerate() {
        for Response { token, at, .. } in &watch.responses {
            let Some(store) = history.truth.store(token.store) else {
                return Err(Violation(format!("watch {number}: {token:?} at {at} is of no known store")));
            };
            let mut places = store.logs.iter().zip(&token.positions);
            let stands = token.positions.len() == store.logs.len() && places.all(|(log, place)| log.stands(*place));
            hold(stands || !history.keeps_its_word(), || format!("watch {number}: {token:?} at {at} is nowhere"))?;
        }
    }
    Ok(())
}

/// W5: what matches and happened up to a bookmark came before it.
pub fn bookmarkable(history: &History) -> Held {
    none(history, &Fault::AfterBookmark)?;
    if history.keeps_its_word() { as_of_holds(history) } else { Ok(()) }
}

fn none(history: &History, fault: &Fault) -> Held {
    for stream in streams(history) {
        for segment in &stream.segments {
            if let Some((_, what)) = faults(history, &stream, segment).into_iter().find(|(found, _)| found == fault) {
                return Err(Violation(format!("watch {}: {what}", stream.watch)));
            }
        }
    }
    Ok(())
}

/// The step that first brought each event.
fn delivered<'a>(segment: &Segment<'a>) -> HashMap<(&'a str, i64), usize> {
    let mut delivered = HashMap::new();
    for (at, event) in segment.changes() {
        delivered.entry((&event.id[..], event.revision)).or_insert(at);
    }
    delivered
}

fn faults(history: &History, stream: &Stream<'_>, segment: &Segment<'_>) -> Vec<(Fault, String)> {
    let Some(Start { token, step: first }) = segment.start else { return Vec::new() };
    // Where it has to be known it is: see above.
    let Some(store) = history.truth.store(token.store) else { return Vec::new() };
    let (delivered, snapshots) = (delivered(segment), segment.snapshots());
    let mut faults = told_outside(history, store, segment);
    let mut before = token;
    for (at, step) in segment.steps.iter().enumerate().skip(first).filter(|(_, step)| !Segment::is_cut(step)) {
        let places = store.logs.iter().zip(&before.positions);
        for (way, (log, stood)) in store.ways(before, &step.token).into_iter().flatten().zip(places) {
            let entries = match way {
                Way::Forward(entries) => entries,
                // To where history forked, which is told only to whom it concerns.
                Way::Backward if is_resync(step) || !log.stands(*stood) => continue,
                Way::Backward => {
                    faults.push((Fault::Position, format!("the position goes back at {}", step.at)));
                    continue;
                }
                Way::None => continue,
            };
            for entry in entries.into_iter().filter(|entry| stream.filter.sees(entry).is_some()) {
                let is_in_snapshot = snapshots.get(&entry.id[..]).is_some_and(|revision| *revision >= entry.name().1);
                match delivered.get(&entry.name()) {
                    Some(came) if *came > at => faults.push(too_late(entry.name(), step)),
                    None if !is_in_snapshot && !is_missed(step, &entry.id) => faults.push((
                        Fault::Missing,
                        format!(
                            "{:?} {:?} did not come, though the position passed it at {}",
                            entry.kind,
                            entry.name(),
                            step.at
                        ),
                    )),
                    Some(_) | None => {}
                }
            }
        }
        before = &step.token;
    }
    faults
}

fn is_resync(step: &Response) -> bool {
    matches!(step.control, Some(Control::Resync(..)))
}

fn too_late(name: (&str, i64), step: &Response) -> (Fault, String) {
    let fault = match step.control {
        Some(Control::Bookmark(_) | Control::Synced) => Fault::AfterBookmark,
        Some(Control::Resync(..)) | None => Fault::Position,
    };
    (fault, format!("{name:?} came after the position had passed it at {}", step.at))
}

/// Events before the position where the segment begins, or behind the position after their own response.
fn told_outside(history: &History, store: &Store, segment: &Segment<'_>) -> Vec<(Fault, String)> {
    let origins = Origins::of(&history.truth);
    let Some(start) = segment.start else { return Vec::new() };
    let mut faults = Vec::new();
    for (at, event) in segment.changes().filter(|(at, _)| *at >= start.step) {
        let Some(origin) = origins.find(event).filter(|origin| origin.store.id == store.id) else { continue };
        let (log, step, position) = (&store.logs[origin.partition], segment.steps[at], origin.entry.position);
        let is_before = matches!(log.way(position, start.token.positions[origin.partition]), Way::Forward(_));
        let is_behind = !is_resync(step)
            && step.token.store == store.id
            && matches!(log.way(position, step.token.positions[origin.partition]), Way::Backward);
        if is_before || is_behind {
            let where_ = if is_before { "before the start" } else { "behind the position after it" };
            faults.push((Fault::Position, format!("{} {} at {} lies {where_}", event.id, event.revision, step.at)));
        }
    }
    faults
}

/// What happened up to the moment of a bookmark lies before its position, or came.
fn as_of_holds(history: &History) -> Held {
    let store = history.truth.present();
    for stream in streams(history) {
        for segment in &stream.segments {
            let Some(start) = segment.start else { continue };
            let delivered = delivered(segment);
            for (at, step) in segment.steps.iter().enumerate().skip(start.step) {
                let Some(Control::Bookmark(as_of)) = step.control else { continue };
                let ends = store.logs.iter().zip(&step.token.positions).filter(|_| step.token.store == store.id);
                for (log, position) in ends {
                    let later =
                        log.entries.iter().rev().take_while(|entry| entry.position.revision > position.revision);
                    let mut missed = later.filter(|entry| {
                        let came = delivered.get(&entry.name()).is_some_and(|came| *came <= at);
                        entry.position.moment() <= as_of && stream.filter.sees(entry).is_some() && !came
                    });
                    if let Some(missed) = missed.next() {
                        let watch = stream.watch;
                        return Err(Violation(format!("watch {watch}: {missed:?} is not told as of {as_of}")));
                    }
                }
            }
        }
    }
    Ok(())
}
