//! Defects of what befalls a watch besides its events.

use std::collections::BTreeSet;

use sessiond_client::v1::{EventType, ResyncReason};

use super::{find_entry, last_entries};
use crate::history::*;

/// The watches of a made-up history that is good.
const GOES_ON: usize = 1;
const OF_COLOUR: usize = 2;
const OF_ONE_SESSION: usize = 5;

pub fn stand_in_another_store(history: &mut History) {
    for response in &mut history.watches[OF_COLOUR].responses {
        response.token.store = [9; 16];
    }
}

pub fn stand_nowhere(history: &mut History) {
    let last = history.watches[OF_COLOUR].responses.last_mut().expect("there are some");
    last.token.positions[0].nonce += 1_000;
}

fn close(history: &mut History, watch: usize, how: &str) {
    let ended = history.ended;
    let watch = &mut history.watches[watch];
    (watch.end, watch.ended) = (how.to_owned(), ended);
}

pub fn close_one_of_all(history: &mut History) {
    close(history, GOES_ON, CLOSED_FOR_GOOD);
}

pub fn close_while_it_lives(history: &mut History) {
    close(history, OF_ONE_SESSION, CLOSED_FOR_GOOD);
}

pub fn lose_one_of_all(history: &mut History) {
    close(history, GOES_ON, "closed: NotFound SESSION_NOT_FOUND");
}

pub fn end_without_a_reason(history: &mut History) {
    close(history, GOES_ON, "closed: Unavailable without a reason");
}

fn refuse(history: &mut History, filter: Filter, resumes: bool) {
    let (called, returned) = (history.ended - 1, history.ended);
    let how = "NotFound SESSION_NOT_FOUND".to_owned();
    history.refusals.push(Refusal { filter, resumes, called, returned, how });
}

pub fn refuse_what_lives(history: &mut History) {
    let filter = history.watches[OF_ONE_SESSION].filter.clone();
    refuse(history, filter, false);
}

pub fn refuse_to_go_on(history: &mut History) {
    let ended = find_entry(history, |entry| entry.kind == EventType::Ended).id;
    let filter =
        Filter { scope: Scope::Ids(BTreeSet::from([ended])), ..history.watches[OF_ONE_SESSION].filter.clone() };
    refuse(history, filter, true);
}

/// At the end, where nothing is to come after it.
fn tell(history: &mut History, reason: ResyncReason) {
    let responses = &mut history.watches[OF_COLOUR].responses;
    let last = responses.last().expect("there are some").clone();
    let control = Some(Control::Resync(reason, BTreeSet::new()));
    responses.push(Response { events: Vec::new(), control, ..last });
}

pub fn tell_of_a_rewind(history: &mut History) {
    tell(history, ResyncReason::Rollback);
}

pub fn tell_of_a_rewind_after_the_state(history: &mut History) {
    history.faults[0].effects.push(Effect::OtherRun);
    tell(history, ResyncReason::Rollback);
}

pub fn tell_of_a_flush(history: &mut History) {
    tell(history, ResyncReason::Flushed);
}

pub fn tell_of_a_trim(history: &mut History) {
    tell(history, ResyncReason::Compacted);
}

pub fn tell_of_a_trim_to_who_is_not_behind(history: &mut History) {
    history.faults[0].trimmed = last_entries(history);
    tell(history, ResyncReason::Compacted);
}

pub fn tell_that_it_is_slow(history: &mut History) {
    history.faults[0].effects.push(Effect::HoldsReaders);
    tell(history, ResyncReason::SlowConsumer);
}
