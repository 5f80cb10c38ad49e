//! Defects that the tests plant into a valid history, each with the one validator that must report it.

use std::collections::BTreeSet;

use sessiond_client::v1::{Cause, EventType, GetSessionRequest, ResyncReason, SessionEvent};

use crate::history::{Control, History, Micros, Operation, Outcome, Response};
use crate::{
    fixtures::event_of,
    ground_truth::{Entry, Log, Position},
};
use harness::contract::{Call, Reply};

mod calls;
mod watches;

pub use calls::read_from_memory;

/// Description of a defect, name of the validator that must report it, and the function that plants it.
pub type Defect = (&'static str, &'static str, fn(&mut History));

/// All defects; every validator has at least one.
pub const DEFECTS: [Defect; 57] = [
    ("an event is missing", "Reliable", omit_event),
    ("an event before a resume is missing", "Reliable", omit_event_before_resume),
    ("an event is delivered twice", "Unique", duplicate_event),
    ("an event is delivered again after a resume", "Unique", duplicate_event_after_resume),
    ("two events of a session are swapped", "Ordered", swap_events),
    ("a bookmark precedes an event that it covers", "Bookmarkable", bookmark_before_event),
    ("as_of of a bookmark is later than its position", "Bookmarkable", as_of_after_position),
    ("a position is ahead of its events", "Resumable", position_ahead),
    ("a position is behind its events", "Resumable", position_behind),
    ("synced precedes the end of the snapshot", "SnapshotConsistent", synced_before_snapshot),
    ("the snapshot contains an ended session", "SnapshotConsistent", snapshot_of_ended_session),
    ("the snapshot lacks a session, another due set was lost", "SnapshotConsistent", lose_another_due_set),
    ("the snapshot lacks a session, its due set was lost later", "SnapshotConsistent", lose_due_set_after_snapshot),
    ("an expired session does not end", "EndedOnce", omit_expiry),
    ("a session ends twice", "EndedOnce", end_twice),
    ("an ended session changes", "EndedOnce", update_after_end),
    ("a session ends before its deadline", "NotEndedEarly", end_before_deadline),
    ("a session is read after its deadline", "NotUsedAfterDeadline", read_after_deadline),
    ("an event does not match the filter", "Filter", deliver_unmatched_event),
    ("UPDATED is delivered instead of LEFT", "Filter", updated_instead_of_left),
    ("ENDED has another cause than the log", "Filter", wrong_cause),
    ("an event of another namespace is delivered", "Filter", deliver_event_of_another_namespace),
    ("an event has an older state", "Filter", stale_event_state),
    ("a rollback without a resync", "RollbackReported", rollback_without_resync),
    ("a rollback with reason COMPACTED", "RollbackReported", rollback_as_compacted),
    ("a read is stale", "Linearizable", stale_read),
    ("a read from memory is more than a second old", "Linearizable", calls::read_old_memory),
    ("a read from memory lacks its min_revision", "Linearizable", calls::read_below_min_revision),
    ("an update is lost", "Linearizable", lost_update),
    ("an update is applied though reported as not applied", "Linearizable", apply_rejected_update),
    ("a deleted key is not detected", "OutOfBandReported", miss_deleted_key),
    ("a call fails without a reason", "ErrorsClassified", fail_without_reason),
    ("an acknowledged write is not in the log", "AcknowledgedKept", lose_log_entry),
    ("a list lacks a session", "ListsCorrect", list_too_few),
    ("a session outlives DeleteSubjectSessions", "SubjectEnded", outlive_subject_deletion),
    ("a position is of an unknown store", "Resumable", watches::position_in_unknown_store),
    ("a position is not in the log", "Resumable", watches::position_not_in_log),
    ("a watch of a namespace closes with OK", "WatchEndJustified", watches::close_namespace_watch),
    ("a watch of a live session closes with OK", "WatchEndJustified", watches::close_watch_of_live_session),
    ("a watch of a namespace ends with NOT_FOUND", "WatchEndJustified", watches::not_found_for_namespace),
    ("a watch ends without a reason, no instance was killed", "WatchEndJustified", watches::end_without_reason),
    ("a watch ends without a reason, the instance drained", "WatchEndJustified", watches::end_without_reason_at_drain),
    ("opening a watch of a live session fails", "WatchEndJustified", watches::reject_live_session),
    ("a resume fails because its session ended", "WatchEndJustified", watches::reject_resume),
    ("resync ROLLBACK without lost writes", "ResyncJustified", watches::rollback_without_loss),
    ("resync ROLLBACK after a restart, not in a snapshot", "ResyncJustified", watches::rollback_after_snapshot),
    ("resync FLUSHED without a flush", "ResyncJustified", watches::flushed_without_flush),
    ("resync COMPACTED without a trim", "ResyncJustified", watches::compacted_without_trim),
    ("resync COMPACTED, the watcher is not behind", "ResyncJustified", watches::compacted_while_not_behind),
    ("resync SLOW_CONSUMER to a fast reader", "ResyncJustified", watches::slow_consumer_while_fast),
    ("a failed call is applied after its deadline", "Linearizable", calls::apply_failed_call_late),
    ("an answered call is applied after its deadline", "Linearizable", calls::apply_answered_call_late),
    ("a call fails with an error that the fault does not permit", "ErrorsClassified", calls::fail_without_cause),
    ("a touch shortens the deadline after the clock was set back", "Linearizable", calls::shorten_by_touch),
    ("a session ends early after the clock was set back", "NotEndedEarly", calls::end_early_after_set_back),
    ("a session outlives a step of the clock", "EndedOnce", calls::outlive_step),
    ("a session is read 1.5 s after a step of the clock", "NotUsedAfterDeadline", calls::read_after_step),
];

fn find_entry(history: &History, matches: impl Fn(&Entry) -> bool) -> Entry {
    history.truth.present().entries().find(|entry| matches(entry)).expect("an entry matches").clone()
}

fn last_update(history: &History) -> Entry {
    let updates = history.truth.present().entries().filter(|entry| entry.kind == EventType::Updated);
    updates.max_by_key(|entry| entry.position.revision).expect("the history has an update").clone()
}

/// Returns the partition and the position before the last entry of each log.
fn before_last_entries(history: &History) -> Vec<(usize, Position)> {
    let last = |log: &Log| log.entries[log.entries.len() - 1].previous;
    history.truth.present().logs.iter().map(last).enumerate().collect()
}

/// Removes an event from the watch.
fn remove_event(history: &mut History, watch: usize, (id, revision): (&str, i64)) {
    for response in &mut history.watches[watch].responses {
        response.events.retain(|event| event.id != id || event.revision != revision);
    }
}

/// Returns the first matching response of the watch.
fn response(history: &mut History, watch: usize, matches: impl Fn(&Response) -> bool) -> &mut Response {
    history.watches[watch].responses.iter_mut().find(|response| matches(response)).expect("a response matches")
}

/// Removes an entry and its events from the history.
fn remove_entry(history: &mut History, entry: &Entry) {
    let store = history.truth.stores.last_mut().expect("it exists");
    for log in &mut store.logs {
        log.entries.retain(|other| other.position != entry.position);
        for other in &mut log.entries {
            if other.previous == entry.position {
                other.previous = entry.previous;
            }
        }
    }
    for watch in 0..history.watches.len() {
        remove_event(history, watch, entry.key());
        for response in &mut history.watches[watch].responses {
            for position in &mut response.token.positions {
                if *position == entry.position {
                    *position = entry.previous;
                }
            }
        }
    }
}

/// Appends a change of the session of `template` to its log, and a response to every watch that is not resumed.
fn append(history: &mut History, template: &Entry, kind: EventType, cause: Cause) {
    let now = history.truth.present().entries().map(|entry| entry.position.revision).max().unwrap_or(0);
    let is_template = |entry: &Entry| entry.position == template.position;
    let mut logs = history.truth.stores[0].logs.iter_mut();
    let log = logs.find(|log| log.entries.iter().any(is_template)).expect("the entry is in a log");
    let last = log.entries[log.entries.len() - 1].position;
    let position = Position { revision: now + 2_000, nonce: 1 };
    let entry = Entry { position, previous: last, kind, cause, changed: Vec::new(), before: None, ..template.clone() };
    log.entries.push(entry.clone());
    let not_resumed: Vec<usize> = (0..history.watches.len())
        .filter(|number| history.watches.iter().all(|watch| watch.resumes != Some(*number)))
        .collect();
    for number in not_resumed {
        let watch = &mut history.watches[number];
        let mut token = watch.responses[watch.responses.len() - 1].token.clone();
        token.positions.iter_mut().filter(|at| **at == last).for_each(|at| *at = position);
        let event = watch.filter.event_type(&entry).map(|event_type| event_of(&entry, event_type));
        let at = position.revision;
        watch.responses.push(Response { at, events: event.into_iter().collect(), control: None, token });
    }
}

fn omit_event(history: &mut History) {
    let entry = last_update(history);
    remove_event(history, 1, entry.key());
}

fn omit_event_before_resume(history: &mut History) {
    let is_update = |event: &&SessionEvent| event.r#type() == EventType::Updated;
    let mut all = history.watches[0].responses.iter().flat_map(|response| &response.events);
    let event = all.find(is_update).expect("it exists").clone();
    remove_event(history, 0, (&event.id, event.revision));
}

fn duplicate_event(history: &mut History) {
    let first = response(history, 1, |response| !response.events.is_empty()).events[0].clone();
    history.watches[1].responses.last_mut().expect("not empty").events.push(first);
}

fn duplicate_event_after_resume(history: &mut History) {
    let first = response(history, 0, |response| !response.events.is_empty()).events[0].clone();
    history.watches[1].responses[0].events.insert(0, first);
}

fn swap_events(history: &mut History) {
    let has_two = |response: &Response| {
        response.events.iter().any(|one| response.events.iter().any(|two| one.id == two.id && one != two))
    };
    response(history, 1, has_two).events.reverse();
}

/// Returns the index of the first response with events that is followed by a bookmark.
fn index_before_bookmark(history: &History, watch: usize) -> usize {
    let responses = &history.watches[watch].responses;
    let index = responses
        .windows(2)
        .position(|pair| !pair[0].events.is_empty() && matches!(pair[1].control, Some(Control::Bookmark(_))));
    index.expect("it exists")
}

fn bookmark_before_event(history: &mut History) {
    let index = index_before_bookmark(history, 1);
    history.watches[1].responses.swap(index, index + 1);
}

fn as_of_after_position(history: &mut History) {
    let last = last_update(history).position.time();
    let bookmark = response(history, 1, |response| matches!(response.control, Some(Control::Bookmark(_))));
    bookmark.control = Some(Control::Bookmark(last as Micros));
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
    let index = index_before_bookmark(history, 1);
    history.watches[1].responses[index + 1].control = None;
    history.watches[1].responses[index].token =
        history.watches[0].responses.last().expect("the watch has responses").token.clone();
}

fn synced_before_snapshot(history: &mut History) {
    let responses = &mut history.watches[3].responses;
    let synced =
        responses.iter().position(|response| response.control == Some(Control::Synced)).expect("the snapshot ends");
    // `synced` moves to the front. If only one session were missing, its deadline could have passed at that time.
    let synced = responses.remove(synced);
    responses.insert(0, synced);
}

fn snapshot_of_ended_session(history: &mut History) {
    let deleted = find_entry(history, |entry| entry.cause == Cause::Logout).id;
    let updated = find_entry(history, |entry| entry.id == deleted && entry.kind == EventType::Updated);
    history.watches[3].responses[0].events.push(event_of(&updated, EventType::Snapshot));
}

/// Removes a session that does not expire from the snapshot; returns its partition.
fn omit_from_snapshot(history: &mut History) -> usize {
    let kept = last_update(history);
    let mut logs = history.truth.present().logs.iter();
    let partition = logs.position(|log| log.entries.iter().any(|entry| entry.position == kept.position));
    for response in &mut history.watches[3].responses {
        response.events.retain(|event| event.r#type() != EventType::Snapshot || event.id != kept.id);
    }
    partition.expect("the entry is in a log")
}

fn lose_another_due_set(history: &mut History) {
    let partition = omit_from_snapshot(history);
    history.faults[0].trace.lost_due_sets.push((1 - partition, 0));
}

fn lose_due_set_after_snapshot(history: &mut History) {
    let partition = omit_from_snapshot(history);
    history.faults[0].trace.lost_due_sets.push((partition, history.ended));
}

fn omit_expiry(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::IdleTimeout);
    remove_entry(history, &ended);
}

fn end_twice(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Logout);
    append(history, &ended, EventType::Ended, Cause::Logout);
}

fn update_after_end(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Logout);
    append(history, &ended, EventType::Updated, Cause::Unspecified);
}

fn end_before_deadline(history: &mut History) {
    let is_expiry = |cause| cause == Cause::IdleTimeout;
    for log in &mut history.truth.stores[0].logs {
        for entry in log.entries.iter_mut().filter(|entry| is_expiry(entry.cause)) {
            let after = entry.after.as_mut().expect("the state is known");
            after.expires = after.expires.map(|(seconds, nanos)| (seconds + 10, nanos));
        }
    }
    for event in
        history.watches.iter_mut().flat_map(|watch| &mut watch.responses).flat_map(|response| &mut response.events)
    {
        if let Some(session) =
            event.session.as_mut().filter(|_| is_expiry(Cause::try_from(event.cause).unwrap_or_default()))
        {
            session.expire_time.as_mut().expect("the state is known").seconds += 10;
        }
    }
}

fn read_after_deadline(history: &mut History) {
    let last = history.operations.last().expect("not empty").clone();
    let (Call::Update(update), Outcome::Answered(Reply::Session(session, ..))) = (&last.call, &last.outcome) else {
        panic!("the last call is an update")
    };
    let late = session.expire_time.expect("the session has a deadline").seconds as Micros * 1_000_000 + 1_000_000;
    let call = Call::Get(GetSessionRequest { key: update.key.clone(), ..Default::default() });
    history.operations.push(Operation { called: late, returned: late + 1, call, ..last });
}

fn deliver_unmatched_event(history: &mut History) {
    let blue =
        find_entry(history, |entry| entry.after.as_ref().is_some_and(|after| after.content.labels["colour"] == "blue"));
    let event = event_of(&blue, blue.kind);
    history.watches[2].responses.last_mut().expect("not empty").events.push(event);
}

fn updated_instead_of_left(history: &mut History) {
    let is_left = |response: &Response| response.events.iter().any(|event| event.r#type() == EventType::Left);
    let events = &mut response(history, 2, is_left).events;
    let left = events.iter_mut().find(|event| event.r#type() == EventType::Left).expect("it exists");
    left.set_type(EventType::Updated);
}

fn wrong_cause(history: &mut History) {
    let has_expiry = |response: &Response| response.events.iter().any(|event| event.cause() == Cause::IdleTimeout);
    let events = &mut response(history, 1, has_expiry).events;
    let ended = events.iter_mut().find(|event| event.cause() == Cause::IdleTimeout).expect("it exists");
    ended.set_cause(Cause::AbsoluteTimeout);
}

fn deliver_event_of_another_namespace(history: &mut History) {
    let update = last_update(history);
    let mut entries = history.truth.stores[0].logs.iter_mut().flat_map(|log| &mut log.entries);
    let entry = entries.find(|entry| entry.position == update.position).expect("it exists");
    "other".clone_into(&mut entry.namespace);
}

fn stale_event_state(history: &mut History) {
    let entry = last_update(history);
    let has_event = |response: &Response| response.events.iter().any(|event| event.revision == entry.key().1);
    let events = &mut response(history, 1, has_event).events;
    let event = events.iter_mut().find(|event| event.revision == entry.key().1).expect("it exists");
    event.session.as_mut().expect("the event has a session").attributes.remove(&entry.changed[0]);
}

fn rollback_without_resync(history: &mut History) {
    history.watches[0].responses.retain(|response| !matches!(response.control, Some(Control::Resync(..))));
}

fn rollback_as_compacted(history: &mut History) {
    let resync = response(history, 0, |response| matches!(response.control, Some(Control::Resync(..))));
    resync.control = Some(Control::Resync(ResyncReason::Compacted, BTreeSet::new()));
    // The logs are trimmed too, so that `ResyncJustified` accepts the reason.
    history.faults[0].trace.trimmed = before_last_entries(history);
}

/// Replaces the reply of the second read by that of the first.
fn stale_read(history: &mut History) {
    let reads: Vec<usize> =
        (0..history.operations.len()).filter(|at| matches!(history.operations[*at].call, Call::Get(_))).collect();
    history.operations[reads[1]].outcome = history.operations[reads[0]].outcome.clone();
}

fn lost_update(history: &mut History) {
    let last = history.operations.last_mut().expect("not empty");
    let Outcome::Answered(Reply::Session(session, ..)) = &mut last.outcome else {
        panic!("the last call is an update")
    };
    session.attributes.remove("4").expect("the attribute is set");
}

fn miss_deleted_key(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::OutOfBand);
    remove_entry(history, &ended);
}

fn lose_log_entry(history: &mut History) {
    let entry = last_update(history);
    remove_entry(history, &entry);
}

fn list_too_few(history: &mut History) {
    for operation in &mut history.operations {
        if let Outcome::Answered(Reply::Listed(listed)) = &mut operation.outcome {
            listed.pop().expect("it exists");
        }
    }
}

fn outlive_subject_deletion(history: &mut History) {
    let ended = find_entry(history, |entry| entry.cause == Cause::Revoked);
    remove_entry(history, &ended);
}

fn fail_without_reason(history: &mut History) {
    let read = history.operations.iter_mut().find(|operation| matches!(operation.call, Call::Get(_)));
    read.expect("it exists").outcome = Outcome::Unknown("Internal without a reason".to_owned());
}

fn apply_rejected_update(history: &mut History) {
    let is_unknown = |operation: &&mut Operation| matches!(operation.outcome, Outcome::Unknown(_));
    let unknown = history.operations.iter_mut().find(is_unknown).expect("it exists");
    unknown.outcome = Outcome::NotApplied("Unavailable STORE_UNAVAILABLE".to_owned());
}
