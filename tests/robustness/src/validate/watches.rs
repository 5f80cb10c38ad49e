//! Validators of the end of a watch and of its resyncs: each has a cause that the contract names.

use sessiond_client::v1::{EventType, ResyncReason};

use super::{Verdict, calls::FAILURES, ensure};
use crate::ground_truth::Entry;
use crate::history::*;
use crate::redis_time::WriteTimes;

/// Maximum time between reading a session and closing the watch that waits for its end.
const CLOSE_DELAY: Micros = 1_000_000;

/// A watch ends with OK only after all its sessions have ended, and otherwise with an error of the store. Opening it
/// fails with NOT_FOUND only if a session is not live.
pub fn watch_end_justified(history: &History) -> Verdict {
    let times = WriteTimes::of(history);
    for (number, watch) in history.watches.iter().enumerate() {
        let is_justified = match &watch.end[..] {
            STILL_OPEN | DISCONNECTED | NO_RESPONSE => true,
            CLOSED_SLOW_CONSUMER => watch.responses.iter().any(is_slow_consumer),
            CLOSED_COMPLETE => match &watch.filter.scope {
                Scope::Ids(ids) => ids.iter().all(|id| has_ended(history, &times, watch, id)),
                Scope::Namespace | Scope::Subject(_) => false,
            },
            end => is_failure(history, &[Effect::KillsInstance], end.trim_start_matches(CLOSED), watch.ended),
        };
        ensure(is_justified, || format!("watch {number}, {:?}, at {}: {}", watch.filter, watch.ended, watch.end))?;
    }
    for failure in &history.open_failures {
        let OpenFailure { filter, resumes, called, returned, error } = failure;
        let is_justified = match (&error[..], &filter.scope) {
            (NO_RESPONSE, _) => true,
            (NOT_CONNECTED, _) => ENDS_INSTANCE.iter().any(|effect| history.has_effect(*effect, *returned)),
            // A request with a resume token receives the ENDED events after the token instead.
            ("NotFound SESSION_NOT_FOUND", Scope::Ids(ids)) => {
                !resumes && ids.iter().any(|id| may_not_be_live(history, &times, id, *called, *returned))
            }
            (error, _) => is_failure(history, &ENDS_INSTANCE, error, *returned),
        };
        ensure(is_justified, || format!("{failure:?}"))?;
    }
    Ok(())
}

fn is_slow_consumer(response: &Response) -> bool {
    matches!(response.control, Some(Control::Resync(ResyncReason::SlowConsumer, _)))
}

/// Effects after which an instance accepts no connection.
const ENDS_INSTANCE: [Effect; 2] = [Effect::KillsInstance, Effect::DrainsInstance];

/// Returns whether the status is an error of the store, or has no reason because of one of these effects.
fn is_failure(history: &History, effects: &[Effect], status: &str, at: Micros) -> bool {
    let is_explained = || effects.iter().any(|effect| history.has_effect(*effect, at));
    FAILURES.contains(&status) || status.ends_with(WITHOUT_REASON) && is_explained()
}

/// Returns the entries of the session on the current branch, in order.
fn entries_of<'a>(history: &'a History, id: &str) -> impl Iterator<Item = &'a Entry> {
    history.truth.present().entries().filter(move |entry| entry.id == id)
}

/// Returns whether the session had ended when the watch ended, including an ENDED that was lost later.
fn has_ended(history: &History, times: &WriteTimes<'_>, watch: &Watch, id: &str) -> bool {
    let by = watch.ended;
    let is_ended = |entry: &Entry| entry.id == id && entry.kind == EventType::Ended && times.of_entry(entry)[0] <= by;
    let stores = &history.truth.stores;
    if stores.iter().any(|store| store.entries().any(is_ended)) {
        return true;
    }
    // All sessions end with their store. A session created shortly before may not be visible yet.
    let is_absent = || entries_of(history, id).all(|entry| entry.position.time() + CLOSE_DELAY > by);
    // A lost ENDED counts until the service detects the rollback.
    let was_delivered = || {
        let mut all = watch.responses.iter().flat_map(|response| &response.events);
        all.any(|event| event.id == id && event.r#type() == EventType::Ended)
    };
    let was_lost = || stores.iter().flat_map(|store| &store.logs).any(|log| log.lost.iter().any(is_ended));
    history.was_flushed(by) && is_absent()
        || history.has_effect(Effect::LosesWrites, by) && (was_delivered() || was_lost())
}

/// Returns whether the session was not live at some time in this interval, or may not have been.
fn may_not_be_live(history: &History, times: &WriteTimes<'_>, id: &str, from: Micros, until: Micros) -> bool {
    let is_created_later = entries_of(history, id).next().is_none_or(|first| times.of_entry(first)[1] > from);
    let mut endings = entries_of(history, id).filter(|entry| entry.kind == EventType::Ended);
    let has_ended = endings.any(|entry| times.of_entry(entry)[0] <= until);
    is_created_later || has_ended || history.has_effect(Effect::LosesWrites, until)
}

/// Every resync has a cause in a fault of the history.
pub fn resync_justified(history: &History) -> Verdict {
    for (number, watch) in history.watches.iter().enumerate() {
        let mut is_in_snapshot = watch.initial_state && watch.resumes.is_none();
        let mut before = watch.resumes.and_then(|resumed| history.watches[resumed].responses.last());
        for response in &watch.responses {
            match &response.control {
                Some(Control::Synced) => is_in_snapshot = false,
                Some(Control::Resync(reason, _)) => {
                    let at = response.at;
                    let is_justified = match reason {
                        ResyncReason::Rollback => {
                            // A snapshot during a restart or a move may mix two branches.
                            history.has_effect(Effect::LosesWrites, at)
                                || is_in_snapshot && history.has_effect(Effect::RestartsOrMoves, at)
                        }
                        ResyncReason::Flushed => history.was_flushed(at),
                        ResyncReason::Compacted => is_trimmed_past(history, before, at),
                        ResyncReason::SlowConsumer => watch.is_slow && history.has_effect(Effect::StallsReaders, at),
                        ResyncReason::Unspecified => false,
                    };
                    ensure(is_justified, || {
                        let when = if is_in_snapshot { ", during the snapshot" } else { "" };
                        format!(
                            "watch {number} of instance {}: {reason:?} at {at}{when}, without a cause",
                            watch.instance
                        )
                    })?;
                    is_in_snapshot = watch.initial_state && *reason != ResyncReason::SlowConsumer;
                }
                Some(Control::Bookmark(_)) | None => {}
            }
            before = Some(response);
        }
    }
    Ok(())
}

/// Returns whether a log was trimmed past the last position of the watcher.
fn is_trimmed_past(history: &History, before: Option<&Response>, by: Micros) -> bool {
    let Some(before) = before else { return false };
    let mut trimmed = history.faults.iter().filter(|fault| fault.at <= by).flat_map(|fault| &fault.trace.trimmed);
    trimmed.any(|(partition, last)| before.token.positions[*partition].revision < last.revision)
}
