//! Defects of calls: their errors, the time at which they are applied, and the clock of Redis.

use sessiond_client::v1::{Cause, GetSessionRequest};

use super::{end_before_deadline, find_entry, omit_expiry};
use crate::fixtures::clock_set;
use crate::history::*;
use harness::contract::{Call, Reply};

const HOUR: i64 = 3_600;
/// Longer than the deadline of a call and the tolerance after it.
const LATE: Micros = 4_000_000;

fn send_earlier(history: &mut History, is_match: impl Fn(&Operation) -> bool) {
    let operation = history.operations.iter_mut().find(|operation| is_match(operation)).expect("it exists");
    operation.called -= LATE;
}

pub fn apply_failed_call_late(history: &mut History) {
    send_earlier(history, |operation| matches!(operation.outcome, Outcome::Unknown(_)));
}

pub fn apply_answered_call_late(history: &mut History) {
    send_earlier(history, |operation| {
        matches!((&operation.call, &operation.outcome), (Call::Update(_), Outcome::Answered(_)))
    });
}

pub fn fail_without_cause(history: &mut History) {
    history.faults[0].failures = &["Unavailable STORE_UNAVAILABLE"];
}

pub fn shorten_by_touch(history: &mut History) {
    *history = clock_set(-HOUR);
    let is_update = |operation: &&mut Operation| matches!(operation.call, Call::Update(_));
    let update = history.operations.iter_mut().find(is_update).expect("it exists");
    let (Call::Update(request), Outcome::Answered(Reply::Session(session, ..))) =
        (&mut update.call, &mut update.outcome)
    else {
        panic!("the update is answered")
    };
    request.touch = true;
    session.expire_time.as_mut().expect("the session has a deadline").seconds -= 1;
}

pub fn end_early_after_set_back(history: &mut History) {
    *history = clock_set(-HOUR);
    end_before_deadline(history);
}

pub fn outlive_step(history: &mut History) {
    *history = clock_set(HOUR);
    omit_expiry(history);
}

pub fn read_after_step(history: &mut History) {
    *history = clock_set(HOUR);
    let ended = find_entry(history, |entry| entry.cause == Cause::IdleTimeout);
    let is_read = |operation: &&mut Operation| matches!(operation.call, Call::Get(_));
    let read = history.operations.iter_mut().find(is_read).expect("it exists");
    assert_eq!(read.call.id(), Some(ended.id));
    read.called += 1_500_000;
    read.returned += 1_500_000;
}

/// Adds a read from memory, this long after the last update, which returns the state before the update.
pub fn read_from_memory(history: &mut History, age: Micros, min_revision: i64) {
    let last = history.operations.last().expect("not empty").clone();
    let (Call::Update(update), id) = (&last.call, last.call.id()) else { panic!("the last call is an update") };
    let is_before = |operation: &&Operation| {
        operation.call.id() == id && matches!(&operation.outcome, Outcome::Answered(Reply::Session(..)))
    };
    let before = history.operations.iter().rev().skip(1).find(is_before).expect("an earlier update").outcome.clone();
    let key = update.key.clone();
    let call = Call::Get(GetSessionRequest { key, min_revision: Some(min_revision), ..Default::default() });
    let called = last.returned + age;
    history.operations.push(Operation { called, returned: called + 1, call, outcome: before, ..last });
}

pub fn read_old_memory(history: &mut History) {
    read_from_memory(history, 1_000_001, 0);
}

pub fn read_below_min_revision(history: &mut History) {
    read_from_memory(history, 900_000, i64::MAX);
}
