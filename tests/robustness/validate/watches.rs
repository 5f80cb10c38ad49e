//! What befalls a watch besides its events: it ends for a reason that the contract has, and what was missed has a ground.

use std::collections::BTreeSet;

use sessiond_client::v1::{EventType, ResyncReason};

use super::{Held, calls::FAILURES, hold};
use crate::{
    history::*,
    truth::{Entry, Position},
};

/// Between the look for a session and the end of a watch that was for it.
const A_WHILE: Moment = 1_000_000;

/// A watch lasts until all sessions that it was opened for have ended; before that it ends as the store's failures are
/// named, and is refused for a session only that does not live.
pub fn lasting(history: &History) -> Held {
    for (number, watch) in history.watches.iter().enumerate() {
        let is_in_order = match &watch.end[..] {
            STILL_OPEN | LEFT | SILENT => true,
            CLOSED_AS_TOO_SLOW => watch.responses.iter().any(is_slow_consumer),
            CLOSED_FOR_GOOD => match &watch.filter.scope {
                Scope::Ids(ids) => ids.iter().all(|id| has_ended(history, watch, id)),
                Scope::Namespace | Scope::Subject(_) => false,
            },
            end => is_failure(history, end.trim_start_matches(CLOSED), watch.ended),
        };
        hold(is_in_order, || format!("watch {number}, {:?}, at {}: {}", watch.filter, watch.ended, watch.end))?;
    }
    for refusal in &history.refusals {
        let Refusal { filter, resumes, called, returned, how } = refusal;
        let is_in_order = match (&how[..], &filter.scope) {
            (SILENT, _) => true,
            (NOT_CONNECTED, _) => history.has(Effect::Kills, *returned),
            // What ended since its token is told to who has one.
            ("NotFound SESSION_NOT_FOUND", Scope::Ids(ids)) => {
                !resumes && ids.iter().any(|id| may_be_gone(history, id, *called, *returned))
            }
            (how, _) => is_failure(history, how, *returned),
        };
        hold(is_in_order, || format!("{refusal:?}"))?;
    }
    Ok(())
}

fn is_slow_consumer(response: &Response) -> bool {
    matches!(response.control, Some(Control::Resync(ResyncReason::SlowConsumer, _)))
}

/// Whether the status is one of those that say what failed, or of an instance that was killed.
fn is_failure(history: &History, status: &str, at: Moment) -> bool {
    FAILURES.contains(&status) || status.ends_with(WITHOUT_REASON) && history.has(Effect::Kills, at)
}

/// What stands of the session, in order.
fn standing<'a>(history: &'a History, id: &str) -> impl Iterator<Item = &'a Entry> {
    history.truth.present().entries().filter(move |entry| entry.id == id)
}

/// Whether the session had ended when the watch did, as far as the watcher could know.
fn has_ended(history: &History, watch: &Watch, id: &str) -> bool {
    let by = watch.ended;
    let is_end = |entry: &Entry| entry.id == id && entry.kind == EventType::Ended && entry.position.moment() <= by;
    let stores = &history.truth.stores;
    if stores.iter().any(|store| store.entries().any(is_end)) {
        return true;
    }
    // All ended with their store; what is made again meanwhile may be seen or not.
    let is_gone = || standing(history, id).all(|entry| entry.position.moment() + A_WHILE > by);
    // An end that was lost was one, until somebody knew that it was.
    let was_told = || {
        let mut all = watch.responses.iter().flat_map(|response| &response.events);
        all.any(|event| event.id == id && event.r#type() == EventType::Ended)
    };
    let was_lost = || stores.iter().flat_map(|store| &store.logs).any(|log| log.lost.iter().any(is_end));
    history.is_emptied(by) && is_gone() || history.has(Effect::Loses, by) && (was_told() || was_lost())
}

/// Whether the session did not live at some moment between these, or nobody can say.
fn may_be_gone(history: &History, id: &str, from: Moment, until: Moment) -> bool {
    let begins_later = standing(history, id).next().is_none_or(|first| first.position.moment() > from);
    let mut endings = standing(history, id).filter(|entry| entry.kind == EventType::Ended);
    let has_ended = endings.any(|entry| entry.position.moment() <= until);
    begins_later || has_ended || history.has(Effect::Loses, until)
}

/// What is said to have been missed was missed, or may have been: every resync has a ground in what was done.
pub fn grounded(history: &History) -> Held {
    for (number, watch) in history.watches.iter().enumerate() {
        let begins = watch.resumes.is_none();
        let mut is_amid_state = watch.initial_state && begins;
        let mut before = watch.resumes.and_then(|resumed| history.watches[resumed].responses.last());
        for response in &watch.responses {
            match &response.control {
                Some(Control::Synced) => is_amid_state = false,
                Some(Control::Resync(reason, _)) => {
                    let at = response.at;
                    let has_ground = match reason {
                        ResyncReason::Rollback => {
                            // The state would be of two histories.
                            history.has(Effect::Loses, at) || is_amid_state && history.has(Effect::OtherRun, at)
                        }
                        ResyncReason::Flushed => history.is_emptied(at),
                        ResyncReason::Compacted => is_trimmed_away(history, before, at),
                        ResyncReason::SlowConsumer => watch.is_slow && history.has(Effect::HoldsReaders, at),
                        ResyncReason::Unspecified => false,
                    };
                    hold(has_ground, || {
                        let when = if is_amid_state { ", amid the state" } else { "" };
                        format!("watch {number} at {}: {reason:?} at {at}{when}, without a ground", watch.instance)
                    })?;
                    is_amid_state = watch.initial_state && *reason != ResyncReason::SlowConsumer;
                }
                Some(Control::Bookmark(_)) | None => {}
            }
            before = Some(response);
        }
    }
    Ok(())
}

/// Whether a log was trimmed beyond what the watcher had been told up to.
fn is_trimmed_away(history: &History, before: Option<&Response>, by: Moment) -> bool {
    let logs = &history.truth.present().logs;
    let previous = |partition: usize, oldest: Position| {
        logs[partition].entries.iter().find(|entry| entry.position == oldest).map(|entry| entry.previous.revision)
    };
    let trimmed = history.faults.iter().filter(|fault| fault.at <= by).flat_map(|fault| &fault.trimmed);
    let seen = BTreeSet::from_iter(trimmed.map(|(partition, oldest)| (*partition, previous(*partition, *oldest))));
    let Some(before) = before else { return false };
    seen.into_iter().any(|(partition, kept)| kept.is_some_and(|kept| before.token.positions[partition].revision < kept))
}
