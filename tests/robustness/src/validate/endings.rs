//! Validators of the end of sessions: exactly one ENDED, not before the deadline, and also after an out-of-band
//! deletion.

use std::collections::BTreeMap;

use sessiond_client::v1::{Cause, EventType};

use super::{
    Verdict,
    calls::{earliest_state, not_after},
    ensure,
};
use crate::ground_truth::Entry;
use crate::history::{History, Micros, Operation, Outcome};
use crate::redis_time::WriteTimes;
use harness::contract::{Call, Reply};

const SECOND: Micros = 1_000_000;
/// Minimum lifetime of a tombstone. Until then a create with the same id fails.
pub(super) const SHORTEST_TOMBSTONE: Micros = 60 * SECOND;
/// Maximum time by which a session may be overdue at the end of the recording.
const MAX_EXPIRY_DELAY: Micros = 3 * SECOND;

fn time((seconds, nanos): (i64, i32)) -> Micros {
    seconds as Micros * SECOND + nanos as Micros / 1000
}

fn is_timeout(cause: Cause) -> bool {
    matches!(cause, Cause::IdleTimeout | Cause::AbsoluteTimeout)
}

/// Returns the deadline in the reply of a call.
fn replied_deadline(operation: &Operation) -> Option<Micros> {
    match &operation.outcome {
        Outcome::Answered(Reply::Session(session, ..)) => {
            session.expire_time.map(|expires| time((expires.seconds, expires.nanos)))
        }
        Outcome::Answered(Reply::Touched(expires)) => Some(time(*expires)),
        Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
    }
}

/// Returns the calls for each session.
fn operations(history: &History) -> BTreeMap<String, Vec<&Operation>> {
    let mut operations: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if let Some(id) = operation.call.id() {
            operations.entry(id).or_default().push(operation);
        }
    }
    operations
}

/// W7, S3: a session has exactly one ENDED and no change after it.
pub fn ended_once(history: &History) -> Verdict {
    let (operations, deleted_keys) = (operations(history), history.deleted_keys());
    let times = WriteTimes::of(history);
    for (id, entries) in history.truth.present().by_session() {
        for pair in entries.windows(2).filter(|pair| pair[0].kind == EventType::Ended) {
            let apart = pair[1].position.time() - pair[0].position.time();
            let is_new = pair[1].kind == EventType::Created && apart >= SHORTEST_TOMBSTONE;
            ensure(is_new, || format!("{id} ended, then {:?}: {pair:#?}", pair[1].kind))?;
        }
        let last = entries[entries.len() - 1];
        if last.kind == EventType::Ended || deleted_keys.contains(id) {
            continue;
        }
        let calls = operations.get(id).map_or(&[][..], Vec::as_slice);
        let is_overdue = is_overdue(history, last, calls);
        ensure(!is_overdue, || format!("{id} has expired, but has not ended: {last:#?}"))?;
        // Earlier calls ended an earlier session with this id.
        let last_end = entries.iter().rfind(|entry| entry.kind == EventType::Ended);
        let since = last_end.map_or(0, |ended| times.of_entry(ended)[1]);
        let deleted = calls.iter().find(|operation| {
            operation.called >= since && matches!(operation.outcome, Outcome::Answered(Reply::Deleted(true)))
        });
        if let Some(deleted) = deleted.filter(|_| history.is_durable()) {
            ensure(false, || format!("{id} was deleted, but has not ended: {deleted:?}"))?;
        }
    }
    Ok(())
}

/// Returns whether the deadline, including every extension by a call, was more than `MAX_EXPIRY_DELAY` before the end of the
/// recording.
fn is_overdue(history: &History, last: &Entry, calls: &[&Operation]) -> bool {
    let Some(after) = &last.after else { return false };
    let Some(expires) = after.expires else { return false };
    let idle = after.content.idle_timeout as Micros * SECOND + SECOND;
    let extended = calls.iter().map(|operation| match operation.outcome {
        Outcome::Answered(_) => replied_deadline(operation).unwrap_or(0),
        Outcome::NotApplied(_) | Outcome::Unknown(_) => history.redis_time(operation.returned)[1] + idle,
    });
    extended.fold(time(expires), Micros::max) + MAX_EXPIRY_DELAY < history.redis_time(history.ended)[0]
}

/// W7: a session does not expire before its stored deadline, nor before a deadline in a reply that no later call
/// shortened. Calls overlap a reply that comes from memory from the instant of its state on.
pub fn not_ended_early(history: &History) -> Verdict {
    let (operations, times) = (operations(history), WriteTimes::of(history));
    let entries = history.truth.stores.iter().flat_map(|store| store.entries());
    for ended in entries.filter(|entry| entry.kind == EventType::Ended && is_timeout(entry.cause)) {
        let at = times.latest_redis_time(ended);
        let deadline = ended.after.as_ref().and_then(|after| after.expires).map_or(0, time);
        ensure(at >= deadline, || {
            format!("{} ended at {at} by {:?}, before its deadline {deadline}", ended.id, ended.cause)
        })?;
        let calls = operations.get(&ended.id).map_or(&[][..], Vec::as_slice);
        for operation in
            calls.iter().filter(|operation| operation.returned < times.of_entry(ended)[0] && history.is_durable())
        {
            let deadline = replied_deadline(operation).unwrap_or(0);
            let is_shortened = calls.iter().any(|other| may_shorten_after(other, earliest_state(operation)));
            ensure(is_shortened || at >= deadline, || {
                format!("{} ended at {at}, before {deadline} in {operation:?}", ended.id)
            })?;
        }
    }
    Ok(())
}

/// Returns whether the call may shorten the deadline after this time.
fn may_shorten_after(operation: &Operation, time: Micros) -> bool {
    let applied_by = match operation.outcome {
        Outcome::Answered(_) => operation.returned,
        // The server may execute it after the client has given up.
        Outcome::Unknown(_) => not_after(operation),
        Outcome::NotApplied(_) => return false,
    };
    let Call::Update(request) = &operation.call else { return false };
    let sets_timeout = request.idle_timeout.is_some() || request.absolute_timeout.is_some();
    applied_by > time && sets_timeout
}

/// S4: no reply contains a session whose deadline passed before the call, by a clock whose step ahead is noticed after a second.
pub fn not_used_after_deadline(history: &History) -> Verdict {
    for operation in &history.operations {
        let deadline = replied_deadline(operation);
        let is_before_deadline =
            deadline.is_none_or(|deadline| history.noticed_redis_time(operation.called) < deadline);
        ensure(is_before_deadline, || format!("deadline {deadline:?} had passed: {operation:?}"))?;
    }
    Ok(())
}

/// W10: a session whose key was deleted has exactly one ENDED, unless its store was flushed, which causes a resync.
pub fn out_of_band_reported(history: &History) -> Verdict {
    let sessions = history.truth.present().by_session();
    for (id, at) in history.faults.iter().flat_map(|fault| &fault.trace.deleted_keys) {
        // A session without entries in the present store ended with its store.
        let Some(entries) = sessions.get(&id[..]) else { continue };
        let endings: Vec<_> = entries.iter().filter(|entry| entry.kind == EventType::Ended).collect();
        ensure(endings.len() == 1, || format!("the key of {id} was deleted at {at}; ENDED events: {endings:#?}"))?;
        let (cause, ended) = (endings[0].cause, endings[0].position.time());
        let is_justified = cause == Cause::OutOfBand || is_timeout(cause) || ended <= *at;
        ensure(is_justified, || format!("the key of {id} was deleted at {at}; ended by {cause:?} at {ended}"))?;
    }
    Ok(())
}
