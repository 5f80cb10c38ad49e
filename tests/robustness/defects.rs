//! Defects that are planted into a history without one, and who is meant to tell each.

use std::collections::BTreeSet;

use sessiond_client::v1::{Cause, EventType, GetSessionRequest, ResyncReason, SessionEvent};

use crate::{
    contract::{Answer, Call},
    history::{Control, History, Moment, Operation, Outcome, Response},
    made::event_of,
    truth::{Entry, Log, Position},
};

mod watches;

pub type Defect = (&'static str, &'static str, fn(&mut History));

pub const DEFECTS: [Defect; 44] = [
    ("an event is left out", "Reliable", leave_out),
    ("an event is left out before a resume", "Reliable", leave_out_before_the_resume),
    ("an event comes twice", "Unique", double),
    ("an event comes again after a resume", "Unique", double_after_the_resume),
    ("two events of a session change places", "Ordered", reorder),
    ("a bookmark comes before what it covers", "Bookmarkable", bookmark_too_early),
    ("a bookmark tells a later moment than its position has", "Bookmarkable", as_of_too_late),
    ("a position is ahead of its events", "Resumable", position_ahead),
    ("a position is behind its events", "Resumable", position_behind),
    ("synced comes before the state is complete", "SnapshotCut", synced_too_early),
    ("the state has a session that had ended", "SnapshotCut", snapshot_of_an_ended_one),
    ("a session whose time is over does not end", "ExactlyOneEnding", miss_an_ending),
    ("a session ends twice", "ExactlyOneEnding", end_twice),
    ("a session comes back", "ExactlyOneEnding", revive),
    ("a session ends before its time", "NeverEarly", end_early),
    ("a session is used after its time", "NeverLate", use_late),
    ("a watcher is told what does not match", "Filter", tell_what_does_not_match),
    ("a watcher is told UPDATED of what left it", "Filter", tell_updated_for_left),
    ("an ending has another cause", "Filter", tell_another_cause),
    ("an event holds an older state", "Filter", tell_an_older_state),
    ("history is rewound, and nobody is told", "NoSilentRollback", rewind_silently),
    ("history is rewound, and told as compacted", "NoSilentRollback", rewind_as_compacted),
    ("a read is stale", "Linearizable", read_stale),
    ("an update is lost", "Linearizable", lose_an_update),
    ("an update is done that was said not to be", "Linearizable", do_what_was_not_to_be),
    ("a vanished key is not noticed", "OutOfBand", miss_what_vanished),
    ("a call fails for no reason", "Explained", fail_for_no_reason),
    ("an acknowledged change is in no log", "Kept", lose_an_entry),
    ("a list has not all", "Listed", list_too_few),
    ("a session outlasts a log-out everywhere", "LoggedOutEverywhere", outlast),
    ("a position is of a store that nobody knows", "Resumable", watches::stand_in_another_store),
    ("a position is nowhere in the log", "Resumable", watches::stand_nowhere),
    ("a watch of all sessions closes as if none could come", "Lasting", watches::close_one_of_all),
    ("a watch of a session closes, and it lives", "Lasting", watches::close_while_it_lives),
    ("a watch of all sessions ends as if one were not found", "Lasting", watches::lose_one_of_all),
    ("a watch ends without a reason, and nobody was killed", "Lasting", watches::end_without_a_reason),
    ("a watch of a session is refused, and it lives", "Lasting", watches::refuse_what_lives),
    ("a watch is not gone on with, for its session has ended", "Lasting", watches::refuse_to_go_on),
    ("nothing is lost, and told as rewound", "Grounded", watches::tell_of_a_rewind),
    ("Redis runs anew, and all is told as rewound", "Grounded", watches::tell_of_a_rewind_after_the_state),
    ("nothing is emptied, and told as such", "Grounded", watches::tell_of_a_flush),
    ("no log is trimmed, and told as such", "Grounded", watches::tell_of_a_trim),
    ("a trimmed log is told to who was not behind", "Grounded", watches::tell_of_a_trim_to_who_is_not_behind),
    ("a reader that reads is told that it is slow", "Grounded", watches::tell_that_it_is_slow),
];

fn find_entry(history: &History, is_it: impl Fn(&Entry) -> bool) -> Entry {
    history.truth.present().entries().find(|entry| is_it(entry)).expect("there is such an entry").clone()
}

fn last_update(history: &History) -> Entry {
    let updates = history.truth.present().entries().filter(|entry| entry.kind == EventType::Updated);
    updates.max_by_key(|entry| entry.position.revision).expect("something was updated").clone()
}

/// The last entry of each log, and its partition.
fn last_entries(history: &History) -> Vec<(usize, Position)> {
    let last = |log: &Log| log.entries[log.entries.len() - 1].position;
    history.truth.present().logs.iter().map(last).enumerate().collect()
}

/// Takes an event from the watch.
fn take(history: &mut History, watch: usize, (id, revision): (&str, i64)) {
    for response in &mut history.watches[watch].responses {
        response.events.retain(|event| event.id != id || event.revision != revision);
    }
}

/// The first response of the watch that is so.
fn response(history: &mut History, watch: usize, is_it: impl Fn(&Response) -> bool) -> &mut Response {
    history.watches[watch].responses.iter_mut().find(|response| is_it(response)).expect("there is such a response")
}

/// As if it had never happened.
fn forget(history: &mut History, entry: &Entry) {
    let store = history.truth.stores.last_mut().expect("there is one");
    for log in &mut store.logs {
        log.entries.retain(|other| other.position != entry.position);
        for other in &mut log.entries {
            if other.previous == entry.position {
                other.previous = entry.previous;
            }
        }
    }
    for watch in 0..history.watches.len() {
        take(history, watch, entry.name());
        for response in &mut history.watches[watch].responses {
            for position in &mut response.token.positions {
                if *position == entry.position {
                    *position = entry.previous;
                }
            }
        }
    }
}

/// As if this had happened to the session at the end.
fn append(history: &mut History, like: &Entry, kind: EventType, cause: Cause) {
    let now = history.truth.present().entries().map(|entry| entry.position.revision).max().unwrap_or(0);
    let is_its = |entry: &Entry| entry.position == like.position;
    let mut logs = history.truth.stores[0].logs.iter_mut();
    let log = logs.find(|log| log.entries.iter().any(is_its)).expect("it is in a log");
    let last = log.entries[log.entries.len() - 1].position;
    let position = Position { revision: now + 2_000, nonce: 1 };
    let entry = Entry { position, previous: last, kind, cause, changed: Vec::new(), before: None, ..like.clone() };
    log.entries.push(entry.clone());
    let last_legs: Vec<usize> =
        (0..history.watches.len()).filter(|leg| history.watches.iter().all(|it| it.resumes != Some(*leg))).collect();
    for leg in last_legs {
        let watch = &mut history.watches[leg];
        let mut token = watch.responses[watch.responses.len() - 1].token.clone();
        token.positions.iter_mut().filter(|at| **at == last).for_each(|at| *at = position);
        let events = watch.filter.sees(&entry).map(|seen| event_of(&entry, seen));
        let at = position.revision;
        watch.responses.push(Response { at, events: events.into_iter().collect(), control: None, token });
    }
}

fn leave_out(history: &mut History) {
    let entry = last_update(history);
    take(history, 1, entry.name());
}

fn leave_out_before_the_resume(history: &mut History) {
    let is_update = |event: &&SessionEvent| event.r#type() == EventType::Updated;
    let mut all = history.watches[0].responses.iter().flat_map(|response| &response.events);
    let event = all.find(is_update).expect("there is one").clone();
    take(history, 0, (&event.id, event.revision));
}

fn double(history: &mut History) {
    let first = response(history, 1, |response| !response.events.is_empty()).events[0].clone();
    history.watches[1].responses.last_mut().expect("there are some").events.push(first);
}

fn double_after_the_resume(history: &mut History) {
    let first = response(history, 0, |response| !response.events.is_empty()).events[0].clone();
    history.watches[1].responses[0].events.insert(0, first);
}

fn reorder(history: &mut History) {
    let has_two = |response: &Response| {
        response.events.iter().any(|one| response.events.iter().any(|two| one.id == two.id && one != two))
    };
    response(history, 1, has_two).events.reverse();
}

/// The place of the first response with events that a bookmark comes after.
fn before_a_bookmark(history: &History, watch: usize) -> usize {
    let responses = &history.watches[watch].responses;
    let place = responses
        .windows(2)
        .position(|pair| !pair[0].events.is_empty() && matches!(pair[1].control, Some(Control::Bookmark(_))));
    place.expect("there is one")
}

fn bookmark_too_early(history: &mut History) {
    let place = before_a_bookmark(history, 1);
    history.watches[1].responses.swap(place, place + 1);
}

fn as_of_too_late(history: &mut History) {
    let last = last_update(history).position.moment();
    let bookmark = response(history, 1, |response| matches!(response.control, Some(Control::Bookmark(_))));
    bookmark.control = Some(Control::Bookmark(last as Moment));
}

fn position_ahead(history: &mut History) {
    let with_events: Vec<usize> = (0..history.watches[1].responses.len())
        .filter(|at| !history.watches[1].responses[*at].events.is_empty())
        .collect();
    let token = history.watches[1].responses[with_events[1]].token.clone();
    for response in &mut history.watches[1].responses[with_events[0]..with_events[1]] {
        response.token = token.clone();
        response.control = None;
    }
}

fn position_behind(history: &mut History) {
    let place = before_a_bookmark(history, 1);
    history.watches[1].responses[place + 1].control = None;
    history.watches[1].responses[place].token = history.watches[0].responses.last().expect("it goes on").token.clone();
}

fn synced_too_early(history: &mut History) {
    let responses = &mut history.watches[3].responses;
    let synced = responses.iter().position(|response| response.control == Some(Control::Synced)).expect("it comes");
    // Before all of it: of one session it might not matter, whose time is over at that very moment.
    let synced = responses.remove(synced);
    responses.insert(0, synced);
}

fn snapshot_of_an_ended_one(history: &mut History) {
    let deleted = find_entry(history, |entry| entry.cause == Cause::Logout).id;
    let updated = find_entry(history, |entry| entry.id == deleted && entry.kind == EventType::Updated);
    history.watches[3].responses[0].events.push(event_of(&updated, EventType::Snapshot));
}

fn miss_an_ending(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::IdleTimeout);
    forget(history, &ended);
}

fn end_twice(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Logout);
    append(history, &ended, EventType::Ended, Cause::Logout);
}

fn revive(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Logout);
    append(history, &ended, EventType::Updated, Cause::Unspecified);
}

fn end_early(history: &mut History) {
    let is_it = |cause| cause == Cause::IdleTimeout;
    for log in &mut history.truth.stores[0].logs {
        for entry in log.entries.iter_mut().filter(|entry| is_it(entry.cause)) {
            let after = entry.after.as_mut().expect("it is known");
            after.expires = after.expires.map(|(seconds, nanos)| (seconds + 10, nanos));
        }
    }
    for event in history.watches.iter_mut().flat_map(|watch| &mut watch.responses).flat_map(|it| &mut it.events) {
        if let Some(session) =
            event.session.as_mut().filter(|_| is_it(Cause::try_from(event.cause).unwrap_or_default()))
        {
            session.expire_time.as_mut().expect("it is known").seconds += 10;
        }
    }
}

fn use_late(history: &mut History) {
    let last = history.operations.last().expect("there are some").clone();
    let (Call::Update(update), Outcome::Answered(Answer::Session(session, ..))) = (&last.call, &last.outcome) else {
        panic!("it is an update")
    };
    let late = session.expire_time.expect("it has a deadline").seconds as Moment * 1_000_000 + 1_000_000;
    let call = Call::Get(GetSessionRequest { key: update.key.clone(), ..Default::default() });
    history.operations.push(Operation { called: late, returned: late + 1, call, ..last });
}

fn tell_what_does_not_match(history: &mut History) {
    let blue =
        find_entry(history, |entry| entry.after.as_ref().is_some_and(|after| after.content.labels["colour"] == "blue"));
    let event = event_of(&blue, blue.kind);
    history.watches[2].responses.last_mut().expect("there are some").events.push(event);
}

fn tell_updated_for_left(history: &mut History) {
    let is_left = |response: &Response| response.events.iter().any(|event| event.r#type() == EventType::Left);
    let events = &mut response(history, 2, is_left).events;
    let left = events.iter_mut().find(|event| event.r#type() == EventType::Left).expect("there is one");
    left.set_type(EventType::Updated);
}

fn tell_another_cause(history: &mut History) {
    let ends = |response: &Response| response.events.iter().any(|event| event.cause() == Cause::IdleTimeout);
    let events = &mut response(history, 1, ends).events;
    let ended = events.iter_mut().find(|event| event.cause() == Cause::IdleTimeout).expect("there is one");
    ended.set_cause(Cause::AbsoluteTimeout);
}

fn tell_an_older_state(history: &mut History) {
    let entry = last_update(history);
    let is_it = |response: &Response| response.events.iter().any(|event| event.revision == entry.name().1);
    let events = &mut response(history, 1, is_it).events;
    let event = events.iter_mut().find(|event| event.revision == entry.name().1).expect("there is one");
    event.session.as_mut().expect("it has one").attributes.remove(&entry.changed[0]);
}

fn rewind_silently(history: &mut History) {
    history.watches[0].responses.retain(|response| !matches!(response.control, Some(Control::Resync(..))));
}

fn rewind_as_compacted(history: &mut History) {
    let resync = response(history, 0, |response| matches!(response.control, Some(Control::Resync(..))));
    resync.control = Some(Control::Resync(ResyncReason::Compacted, BTreeSet::new()));
    // A log may have been trimmed besides.
    history.faults[0].trimmed = last_entries(history);
}

/// The last read, and what the one before it was answered.
fn read_stale(history: &mut History) {
    let reads: Vec<usize> =
        (0..history.operations.len()).filter(|at| matches!(history.operations[*at].call, Call::Get(_))).collect();
    history.operations[reads[1]].outcome = history.operations[reads[0]].outcome.clone();
}

fn lose_an_update(history: &mut History) {
    let last = history.operations.last_mut().expect("there are some");
    let Outcome::Answered(Answer::Session(session, ..)) = &mut last.outcome else { panic!("it is an update") };
    session.attributes.remove("4").expect("it was set before");
}

fn miss_what_vanished(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::OutOfBand);
    forget(history, &ended);
}

fn lose_an_entry(history: &mut History) {
    let entry = last_update(history);
    forget(history, &entry);
}

fn list_too_few(history: &mut History) {
    for operation in &mut history.operations {
        if let Outcome::Answered(Answer::Listed(listed)) = &mut operation.outcome {
            listed.pop().expect("there is one");
        }
    }
}

fn outlast(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Revoked);
    forget(history, &ended);
}

fn fail_for_no_reason(history: &mut History) {
    let read = history.operations.iter_mut().find(|operation| matches!(operation.call, Call::Get(_)));
    read.expect("there is one").outcome = Outcome::Unknown("Internal without a reason".to_owned());
}

fn do_what_was_not_to_be(history: &mut History) {
    let is_unknown = |operation: &&mut Operation| matches!(operation.outcome, Outcome::Unknown(_));
    let unknown = history.operations.iter_mut().find(is_unknown).expect("there is one");
    unknown.outcome = Outcome::NotApplied("Unavailable STORE_UNAVAILABLE".to_owned());
}
