//! Every session ends once, never before its deadline, never used after it, and also where its key vanished.

use std::collections::BTreeMap;

use sessiond_client::v1::{Cause, EventType};

use super::{Held, hold};
use crate::{
    contract::{Answer, Call},
    history::{History, Moment, Operation, Outcome},
    truth::Entry,
};

const SECOND: Moment = 1_000_000;
/// No id is used again before.
const SHORTEST_TOMBSTONE: Moment = 60 * SECOND;
/// What is due longer than this when everything is quiet is not ended any more.
const LONG_OVER: Moment = 3 * SECOND;

fn moment((seconds, nanos): (i64, i32)) -> Moment {
    seconds as Moment * SECOND + nanos as Moment / 1000
}

fn is_timeout(cause: Cause) -> bool {
    matches!(cause, Cause::IdleTimeout | Cause::AbsoluteTimeout)
}

/// The deadline that an answer tells.
fn told_deadline(operation: &Operation) -> Option<Moment> {
    match &operation.outcome {
        Outcome::Answered(Answer::Session(session, ..)) => {
            session.expire_time.map(|expires| moment((expires.seconds, expires.nanos)))
        }
        Outcome::Answered(Answer::Touched(expires)) => Some(moment(*expires)),
        Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
    }
}

/// The calls for each session.
fn operations(history: &History) -> BTreeMap<String, Vec<&Operation>> {
    let mut operations: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if let Some(id) = operation.call.id() {
            operations.entry(id).or_default().push(operation);
        }
    }
    operations
}

/// W7, S3: exactly one ENDED per session, and nothing after it.
pub fn exactly_one_ending(history: &History) -> Held {
    let (operations, by_hand) = (operations(history), history.by_hand());
    for (id, entries) in history.truth.present().by_session() {
        for pair in entries.windows(2).filter(|pair| pair[0].kind == EventType::Ended) {
            let apart = pair[1].position.moment() - pair[0].position.moment();
            let is_new = pair[1].kind == EventType::Created && apart >= SHORTEST_TOMBSTONE;
            hold(is_new, || format!("{id} ended, and then {:?} came: {pair:#?}", pair[1].kind))?;
        }
        let last = entries[entries.len() - 1];
        if last.kind == EventType::Ended || by_hand.contains(id) {
            continue;
        }
        let calls = operations.get(id).map_or(&[][..], Vec::as_slice);
        let over = is_over(last, calls, history.ended);
        hold(!over, || format!("the time of {id} is over, and it has not ended: {last:#?}"))?;
        let deleted =
            calls.iter().find(|operation| matches!(operation.outcome, Outcome::Answered(Answer::Deleted(true))));
        if let Some(deleted) = deleted.filter(|_| history.keeps_its_word()) {
            hold(false, || format!("{id} was deleted, and has not ended: {deleted:?}"))?;
        }
    }
    Ok(())
}

/// Whether its deadline was long over by then, whatever calls may have moved it to.
fn is_over(last: &Entry, calls: &[&Operation], then: Moment) -> bool {
    let Some(after) = &last.after else { return false };
    let Some(expires) = after.expires else { return false };
    let idle = after.content.idle_timeout as Moment * SECOND + SECOND;
    let may_be = calls.iter().map(|operation| match operation.outcome {
        Outcome::Answered(_) => told_deadline(operation).unwrap_or(0),
        Outcome::NotApplied(_) | Outcome::Unknown(_) => operation.returned + idle,
    });
    may_be.fold(moment(expires), Moment::max) + LONG_OVER < then
}

/// W7: expiry is never before the stored deadline, nor before one that a client was told and that nobody moved since.
pub fn never_early(history: &History) -> Held {
    let operations = operations(history);
    let entries = history.truth.stores.iter().flat_map(|store| store.entries());
    for ended in entries.filter(|entry| entry.kind == EventType::Ended && is_timeout(entry.cause)) {
        let at = ended.position.moment();
        let deadline = ended.after.as_ref().and_then(|after| after.expires).map_or(0, moment);
        hold(at >= deadline, || format!("{} ended at {at} by {:?}, due at {deadline}", ended.id, ended.cause))?;
        let calls = operations.get(&ended.id).map_or(&[][..], Vec::as_slice);
        for operation in calls.iter().filter(|operation| operation.returned < at && history.keeps_its_word()) {
            let told = told_deadline(operation).unwrap_or(0);
            let is_moved = calls.iter().any(|other| other.returned > operation.called && may_hasten(&other.call));
            hold(is_moved || at >= told, || format!("{} ended at {at}, {operation:?} told {told}", ended.id))?;
        }
    }
    Ok(())
}

/// Whether the call may bring the deadline nearer.
fn may_hasten(call: &Call) -> bool {
    matches!(call, Call::Update(request) if request.idle_timeout.is_some() || request.absolute_timeout.is_some())
}

/// S4: no session is answered whose deadline was over when the call began.
pub fn never_late(history: &History) -> Held {
    for operation in &history.operations {
        let deadline = told_deadline(operation);
        let is_in_time = deadline.is_none_or(|deadline| operation.called < deadline);
        hold(is_in_time, || format!("due at {deadline:?}: {operation:?}"))?;
    }
    Ok(())
}

/// W10: a session whose key was taken away becomes ENDED once, or the store was flushed, which every watch tells.
pub fn out_of_band(history: &History) -> Held {
    let sessions = history.truth.present().by_session();
    for (id, at) in history.faults.iter().flat_map(|fault| &fault.by_hand) {
        // With its store, unless the key is of the present one.
        let Some(entries) = sessions.get(&id[..]) else { continue };
        let endings: Vec<_> = entries.iter().filter(|entry| entry.kind == EventType::Ended).collect();
        hold(endings.len() == 1, || format!("{id} vanished at {at}, its endings: {endings:#?}"))?;
        let (cause, ended) = (endings[0].cause, endings[0].position.moment());
        let is_told = cause == Cause::OutOfBand || is_timeout(cause) || ended <= *at;
        hold(is_told, || format!("{id} vanished at {at}, and ended by {cause:?} at {ended}"))?;
    }
    Ok(())
}
