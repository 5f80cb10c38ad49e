//! Defects of the end, the positions and the resyncs of watches.

use std::collections::BTreeSet;

use sessiond_client::v1::{EventType, ResyncReason};

use super::{before_last_entries, find_entry};
use crate::history::*;

/// Number of the watch in `fixtures::valid` that resumes another one.
const RESUMING: usize = 1;
/// Number of the watch in `fixtures::valid` that filters by label.
const BY_LABEL: usize = 2;
/// Number of the watch in `fixtures::valid` of one live session.
const BY_ID: usize = 5;

pub fn position_in_unknown_store(history: &mut History) {
    for response in &mut history.watches[BY_LABEL].responses {
        response.token.store = [9; 16];
    }
}

pub fn position_not_in_log(history: &mut History) {
    let last = history.watches[BY_LABEL].responses.last_mut().expect("the watch has responses");
    last.token.positions[0].nonce += 1_000;
}

fn close(history: &mut History, watch: usize, end: &str) {
    let ended = history.ended;
    let watch = &mut history.watches[watch];
    (watch.end, watch.ended) = (end.to_owned(), ended);
}

pub fn close_namespace_watch(history: &mut History) {
    close(history, RESUMING, CLOSED_COMPLETE);
}

pub fn close_watch_of_live_session(history: &mut History) {
    close(history, BY_ID, CLOSED_COMPLETE);
}

pub fn not_found_for_namespace(history: &mut History) {
    close(history, RESUMING, "closed: NotFound SESSION_NOT_FOUND");
}

pub fn end_without_reason(history: &mut History) {
    close(history, RESUMING, "closed: Unavailable without a reason");
}

pub fn end_without_reason_at_drain(history: &mut History) {
    history.faults[0].effects.push(Effect::DrainsInstance);
    end_without_reason(history);
}

fn reject(history: &mut History, filter: Filter, resumes: bool) {
    let (called, returned) = (history.ended - 1, history.ended);
    let error = "NotFound SESSION_NOT_FOUND".to_owned();
    history.open_failures.push(OpenFailure { filter, resumes, called, returned, error });
}

pub fn reject_live_session(history: &mut History) {
    let filter = history.watches[BY_ID].filter.clone();
    reject(history, filter, false);
}

pub fn reject_resume(history: &mut History) {
    let ended = find_entry(history, |entry| entry.kind == EventType::Ended).id;
    let filter = Filter { scope: Scope::Ids(BTreeSet::from([ended])), ..history.watches[BY_ID].filter.clone() };
    reject(history, filter, true);
}

/// Appends a resync to the watch.
fn resync(history: &mut History, reason: ResyncReason) {
    let responses = &mut history.watches[BY_LABEL].responses;
    let last = responses.last().expect("the watch has responses").clone();
    let control = Some(Control::Resync(reason, BTreeSet::new()));
    responses.push(Response { events: Vec::new(), control, ..last });
}

pub fn rollback_without_loss(history: &mut History) {
    resync(history, ResyncReason::Rollback);
}

pub fn rollback_after_snapshot(history: &mut History) {
    history.faults[0].effects.push(Effect::RestartsOrMoves);
    resync(history, ResyncReason::Rollback);
}

pub fn flushed_without_flush(history: &mut History) {
    resync(history, ResyncReason::Flushed);
}

pub fn compacted_without_trim(history: &mut History) {
    resync(history, ResyncReason::Compacted);
}

pub fn compacted_while_not_behind(history: &mut History) {
    history.faults[0].trace.trimmed = before_last_entries(history);
    resync(history, ResyncReason::Compacted);
}

pub fn slow_consumer_while_fast(history: &mut History) {
    history.faults[0].effects.push(Effect::StallsReaders);
    resync(history, ResyncReason::SlowConsumer);
}
