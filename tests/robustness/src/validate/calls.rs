//! Validators of calls: linearizability per session, error classes, durability, lists, and the end of all sessions of a
//! subject.

use std::collections::{BTreeMap, BTreeSet};

use sessiond_client::v1::{Cause, EventType, Session};

use super::{Verdict, Violation, endings::SHORTEST_TOMBSTONE, ensure};
use crate::fixtures::CALL_TIMEOUT;
use crate::ground_truth::Entry;
use crate::history::{Effect, History, Micros, Operation, Outcome, WITHOUT_REASON};
use crate::redis_time::WriteTimes;
use harness::contract::{Call, Reply, calls::KeyRef, session::end_cause};
use harness::linearizability::{
    Linearization, MAX_OCCURRENCES, MAX_STATES, Occurrence, OccurrenceKind, find_linearization,
};

/// Lifetime of a tombstone that a delete writes if there is no session.
const UNKNOWN_ID_TOMBSTONE: Micros = 15 * 1_000_000;
/// Time after its deadline until which a write may be applied.
const NOT_AFTER_TOLERANCE: Micros = 1_000_000;

/// Maximum age of the state in an answer from memory.
const MAX_AGE_IN_MEMORY: Micros = 1_000_000;

/// Time without a reply after which the server answers a read without its touch and without the first use of its token.
const HELD_BACK_AFTER: Micros = 100_000;

/// The interval in which Redis may have lost acknowledged writes.
struct Loss {
    from: Micros,
    until: Micros,
}

impl Loss {
    /// Returns the interval from the fault until every instance uses the new primary, because an instance can use the old one
    /// for a while after the fault was healed. None: no fault loses writes.
    fn of(history: &History) -> Option<Self> {
        let lossy = || history.faults.iter().filter(|fault| fault.effects.contains(&Effect::LosesWrites));
        let from = lossy().map(|fault| fault.at).min()?;
        let healed = lossy().map(|fault| fault.healed).max()?;
        let answered = lost_writes(history).map(|operation| operation.returned).max();
        let logs = history.truth.stores.iter().flat_map(|store| &store.logs);
        let logged = logs.flat_map(|log| &log.lost).map(|entry| entry.position.time()).max();
        let until = [answered, logged, all_moved(history, healed)].into_iter().flatten().fold(healed, Micros::max);
        Some(Loss { from, until })
    }
}

/// Returns the time at which every instance has executed a change after this time that is in the log of the present store.
/// An instance without one is left out. None: no instance has one.
fn all_moved(history: &History, healed: Micros) -> Option<Micros> {
    let logged = logged(history);
    let is_new = |change: &(&str, i64)| change.1 as Micros >= healed && logged.contains(change);
    let mut moved: BTreeMap<usize, Micros> = BTreeMap::new();
    for operation in history.operations.iter().filter(|operation| change_by(operation).as_ref().is_some_and(is_new)) {
        moved.entry(operation.instance).or_insert(operation.returned);
    }
    moved.into_values().max()
}

/// Returns the id of the session that the call addresses. None: several sessions, or the id is not known.
fn session_of(operation: &Operation) -> Option<String> {
    let replied = match &operation.outcome {
        Outcome::Answered(Reply::Session(session, ..)) => Some(session.id.clone()),
        Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
    };
    operation.call.id().or(replied)
}

/// S1, S2, S3, S5, S6: the calls on each session have a linearization that explains every reply, and applies no write later
/// than a second after its deadline.
pub fn linearizable(history: &History) -> Verdict {
    let mut sessions: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if let Some(id) = session_of(operation) {
            sessions.entry(id).or_default().push(operation);
        }
    }
    let (deleted_keys, loss, times) = (history.deleted_keys(), Loss::of(history), WriteTimes::of(history));
    for operation in history.operations.iter().filter(|_| loss.is_none()) {
        if let (Call::Get(request), Outcome::Answered(Reply::Session(session, ..))) =
            (&operation.call, &operation.outcome)
        {
            let is_recent = session.revision >= request.min_revision.unwrap_or(0);
            ensure(is_recent, || format!("a read returned less than its min_revision: {operation:?}"))?;
        }
    }
    sessions.retain(|id, _| !deleted_keys.contains(&id[..]));
    for (id, operations) in &sessions {
        let occurrences = occurrences(history, loss.as_ref(), &times, id, operations);
        if occurrences.len() > MAX_OCCURRENCES {
            return Err(Violation(format!("{} calls for {id} are too many to check", occurrences.len())));
        }
        let found = find_linearization(&history.rules, &occurrences);
        ensure(found == Linearization::Found, || {
            let lines: Vec<String> = occurrences.iter().map(|occurrence| format!("{occurrence:?}\n")).collect();
            let result = match found {
                Linearization::Undecided => format!("no linearization among {MAX_STATES} states"),
                _ => "no linearization".to_owned(),
            };
            format!("{result} of the calls for {id}:\n{}", lines.concat())
        })?;
    }
    Ok(())
}

/// Returns the first instant whose state the answer of a call may have.
pub(super) fn earliest_state(operation: &Operation) -> Micros {
    // From memory: an instant before the call. Errors never come from memory.
    let is_from_memory =
        operation.call.accepts_memory() && matches!(operation.outcome, Outcome::Answered(Reply::Session(..)));
    if is_from_memory { operation.called.saturating_sub(MAX_AGE_IN_MEMORY) } else { operation.called }
}

/// Returns the last instant at which a call may be applied. A read that records the first use of a token counts as a write.
pub(super) fn not_after(operation: &Operation) -> Micros {
    operation.called + CALL_TIMEOUT.as_micros() as Micros + NOT_AFTER_TOLERANCE
}

/// Returns the occurrences for a session. A call that Redis may have lost is indeterminate or omitted.
fn occurrences<'a>(
    history: &'a History,
    loss: Option<&Loss>,
    times: &WriteTimes<'_>,
    id: &str,
    operations: &[&'a Operation],
) -> Vec<Occurrence<'a>> {
    let first = operations.iter().map(|operation| operation.called).min().unwrap_or(0);
    let loss = loss.filter(|loss| first < loss.until);
    let is_kept = |at: Micros| loss.is_none_or(|loss| at < loss.from);
    let mut all = Vec::new();
    for operation in operations.iter().filter(|operation| is_kept(operation.called)) {
        let Operation { called: sent, returned, call, outcome, .. } = operation;
        let (called, not_after) = (earliest_state(operation), not_after(operation));
        let is_read = matches!(call, Call::Get(_));
        let is_touch_delayed = is_touch(call) && returned - sent >= HELD_BACK_AFTER;
        let (returned, kind) = match outcome {
            Outcome::Answered(reply) if is_kept(*returned) => {
                let returned = if is_read { *returned } else { not_after.min(*returned) };
                (returned, OccurrenceKind::Completed(call, reply))
            }
            Outcome::Answered(_) | Outcome::Unknown(_) => (not_after, OccurrenceKind::Indeterminate(call)),
            Outcome::NotApplied(_) => (Micros::MAX, OccurrenceKind::NotApplied(call)),
        };
        all.push(Occurrence { called, returned, kind });
        // The read is answered without the touch, which may follow.
        if is_touch_delayed {
            let kind = OccurrenceKind::Indeterminate(call);
            all.push(Occurrence { called, returned: not_after, kind });
        }
    }
    let is_ended_by_call =
        |cause| operations.iter().any(|other| matches!(other.call, Call::Delete(_)) && end_cause(&other.call) == cause);
    let endings = history
        .truth
        .stores
        .iter()
        .flat_map(|store| store.logs.iter().flat_map(|log| log.entries.iter().chain(&log.lost)));
    for ended in endings.filter(|entry| entry.id == id && entry.kind == EventType::Ended) {
        let is_not_by_call = match ended.cause {
            Cause::IdleTimeout | Cause::AbsoluteTimeout | Cause::Replaced | Cause::OutOfBand => true,
            Cause::Revoked => !is_ended_by_call(Cause::Revoked),
            _ => false,
        };
        let returned = times.of_entry(ended)[1];
        if is_not_by_call && is_kept(returned) {
            all.push(Occurrence { called: 0, returned, kind: OccurrenceKind::Ended(ended.cause) });
        }
    }
    all.extend(subject_tombstone(history, operations));
    all.extend(expired_tombstones(history, operations));
    all
}

/// Returns whether the call is a read that may touch the session, or record the first use of a token.
fn is_touch(call: &Call) -> bool {
    let by_token = matches!(call.key(), Some(KeyRef::Token(_)));
    match call {
        Call::Get(request) => request.touch || by_token,
        Call::Touch(_) => true,
        _ => false,
    }
}

/// Returns the ends of tombstones: of those that deletes may have written while there was no session, and of all if the clock
/// was set ahead.
fn expired_tombstones<'a>(history: &History, operations: &[&Operation]) -> Vec<Occurrence<'a>> {
    let deletes = operations.iter().filter(|operation| matches!(operation.call, Call::Delete(_)));
    let expiry = |delete: &&Operation| history.redis_time(delete.called)[0] + UNKNOWN_ID_TOMBSTONE;
    let expiries = deletes.map(|delete| history.first_time_of(expiry(delete))).filter(|at| *at < history.ended);
    let expired = expiries.map(|at| (at, Micros::MAX, OccurrenceKind::TombstoneExpired));
    let step = history.clock_step().filter(|step| step.by >= SHORTEST_TOMBSTONE.cast_signed());
    let all_expired = step.map(|step| (step.from, step.until, OccurrenceKind::TombstonesExpired));
    expired.chain(all_expired).map(|(called, returned, kind)| Occurrence { called, returned, kind }).collect()
}

/// Returns the tombstone that DeleteSubjectSessions may write for a session whose create is in flight.
fn subject_tombstone<'a>(history: &'a History, operations: &[&Operation]) -> Option<Occurrence<'a>> {
    let subjects: BTreeSet<&str> = operations
        .iter()
        .filter_map(|operation| match &operation.call {
            Call::Create(request) => Some(&request.subject[..]),
            _ => None,
        })
        .collect();
    history.operations.iter().find_map(|operation| match &operation.call {
        Call::DeleteSubject(request) if subjects.contains(&request.subject[..]) => {
            let kind = OccurrenceKind::Tombstoned(end_cause(&operation.call));
            Some(Occurrence { called: operation.called, returned: Micros::MAX, kind })
        }
        _ => None,
    })
}

/// Errors that report a failure of Redis or of the network.
pub const FAILURES: [&str; 8] = [
    "Unavailable STORE_UNAVAILABLE",
    "Unavailable STORE_CHANGED",
    "Unavailable OVERLOADED",
    "Unavailable DRAINING",
    "DeadlineExceeded STORE_TIMEOUT",
    "DeadlineExceeded OUTCOME_UNKNOWN",
    UNKNOWN,
    "ResourceExhausted STORE_FULL",
];

/// Error of a call that may have been applied in part.
const UNKNOWN: &str = "Unknown OUTCOME_UNKNOWN";

/// A failed call reports the cause and whether it may have been applied, unless its instance has ended. The fault permits the
/// error. A fault that begins or ends while DeleteSubjectSessions ends sessions can make its outcome unknown.
pub fn errors_classified(history: &History) -> Verdict {
    let ends_instance = |effect: &Effect| matches!(effect, Effect::KillsInstance | Effect::DrainsInstance);
    let is_ended = history.faults.iter().any(|fault| fault.effects.iter().any(ends_instance));
    for operation in &history.operations {
        let (Outcome::NotApplied(failure) | Outcome::Unknown(failure)) = &operation.outcome else { continue };
        let is_from_ended_instance = is_ended && failure.ends_with(WITHOUT_REASON);
        let is_permitted = history.faults.iter().any(|fault| {
            let changed_during_call =
                [fault.at, fault.healed].iter().any(|at| (operation.called..=operation.returned).contains(at));
            let is_in_part = matches!(operation.call, Call::DeleteSubject(_)) && failure == UNKNOWN;
            fault.failures.contains(&&failure[..]) || is_in_part && changed_during_call
        });
        ensure(is_from_ended_instance || is_permitted, || format!("{failure}: {operation:?}"))?;
    }
    Ok(())
}

/// Every revision in a reply is in the log, unless the fault loses acknowledged writes.
pub fn acknowledged_kept(history: &History) -> Verdict {
    if !history.is_durable() {
        return Ok(());
    }
    let logged = logged(history);
    for operation in &history.operations {
        if let Outcome::Answered(Reply::Session(session, ..)) = &operation.outcome {
            let Session { id, revision, .. } = &**session;
            ensure(logged.contains(&(&id[..], *revision)), || {
                format!("{id} {revision} is not in the log: {operation:?}")
            })?;
        }
    }
    Ok(())
}

/// Returns ids and revisions of all entries in the log of the present store.
fn logged(history: &History) -> BTreeSet<(&str, i64)> {
    history.truth.present().entries().map(Entry::key).collect()
}

/// Returns id and revision in the response to a create, update or rotation. None: another call, or no response.
fn change_by(operation: &Operation) -> Option<(&str, i64)> {
    match (&operation.call, &operation.outcome) {
        (Call::Create(_) | Call::Update(_) | Call::Rotate(_), Outcome::Answered(Reply::Session(session, ..))) => {
            Some((&session.id, session.revision))
        }
        _ => None,
    }
}

/// Returns the acknowledged creates, updates and rotations that are not in the log of the present store.
fn lost_writes(history: &History) -> impl Iterator<Item = &Operation> {
    let logged = logged(history);
    history.operations.iter().filter(move |operation| change_by(operation).is_some_and(|key| !logged.contains(&key)))
}

/// Returns the number of acknowledged creates, updates and rotations that are not in the log.
pub fn lost_write_count(history: &History) -> usize {
    lost_writes(history).count()
}

/// Returns the last entry of a session that was certainly written by this time. None: the session is not live.
fn state_at<'a>(times: &WriteTimes<'_>, entries: &[&'a Entry], at: Micros) -> Option<&'a Entry> {
    live(entries.iter().rev().find(|entry| times.of_entry(entry)[1] <= at)?)
}

fn live<'a>(last: &&'a Entry) -> Option<&'a Entry> {
    (last.kind != EventType::Ended).then_some(*last)
}

fn subject_of(entry: &Entry) -> &str {
    entry.after.as_ref().map_or("", |after| &after.content.subject)
}

/// A list by subject contains every session that belonged to the subject during the whole call, and no session that
/// never did.
pub fn lists_correct(history: &History) -> Verdict {
    let (sessions, deleted_keys) = (history.truth.present().by_session(), history.deleted_keys());
    let times = WriteTimes::of(history);
    for operation in history.operations.iter().filter(|_| history.is_durable()) {
        let (Call::List(request), Outcome::Answered(Reply::Listed(listed))) = (&operation.call, &operation.outcome)
        else {
            continue;
        };
        let Some(subject) = &request.subject else { continue };
        let listed_ids: BTreeSet<&str> = listed.iter().map(|session| &session.id[..]).collect();
        let is_during_call = |entry: &&&Entry| {
            let [from, until] = times.of_entry(entry);
            from <= operation.returned && operation.called <= until
        };
        for (id, entries) in sessions.iter().filter(|(id, _)| !deleted_keys.contains(*id)) {
            let Some(before) = state_at(&times, entries, operation.called) else { continue };
            let expires = before.after.as_ref().and_then(|after| after.expires);
            let keeps_subject = entries
                .iter()
                .filter(is_during_call)
                .all(|entry| subject_of(entry) == subject && entry.kind != EventType::Ended);
            let latest = history.redis_time(operation.returned)[1];
            let outlives = expires.is_none_or(|(seconds, _)| seconds as Micros * 1_000_000 > latest);
            if subject_of(before) == subject && keeps_subject && outlives {
                ensure(listed_ids.contains(id), || format!("{id} of {subject} is missing in the list: {operation:?}"))?;
            }
        }
        for id in listed_ids.difference(&deleted_keys) {
            let entries = sessions.get(id).map_or(&[][..], Vec::as_slice);
            let had_subject = state_at(&times, entries, operation.called)
                .is_some_and(|entry| subject_of(entry) == subject)
                || entries.iter().filter(is_during_call).any(|entry| subject_of(entry) == subject);
            ensure(had_subject, || format!("{id} is in the list, but not of {subject}: {operation:?}"))?;
        }
    }
    Ok(())
}

/// After DeleteSubjectSessions no session is live that belonged to the subject when the call began.
pub fn subject_ended(history: &History) -> Verdict {
    let (sessions, deleted_keys) = (history.truth.present().by_session(), history.deleted_keys());
    let times = WriteTimes::of(history);
    for operation in history.operations.iter().filter(|_| history.is_durable()) {
        let (Call::DeleteSubject(request), Outcome::Answered(Reply::DeletedCount(_))) =
            (&operation.call, &operation.outcome)
        else {
            continue;
        };
        for (id, entries) in sessions.iter().filter(|(id, _)| **id != request.except_id && !deleted_keys.contains(*id))
        {
            let is_of_subject = |entry: &Entry| subject_of(entry) == request.subject;
            let had_subject = state_at(&times, entries, operation.called).is_some_and(is_of_subject);
            let last = entries.iter().rev().find(|entry| times.of_entry(entry)[0] <= operation.returned);
            let is_live = last.and_then(live).is_some_and(is_of_subject);
            ensure(!(had_subject && is_live), || format!("{id} is still live after {operation:?}"))?;
        }
    }
    Ok(())
}
