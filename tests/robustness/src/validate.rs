//! The validators: pure functions that check a recorded history against one guarantee each.
//!
//! The validators do not overlap: each planted defect fails exactly one of them. The names of the watch validators
//! (`Ordered`, `Unique`, `Reliable`, `Resumable`, `Bookmarkable`) are those of the robustness tests of etcd.

mod calls;
mod delivery;
mod endings;
mod events;
mod snapshot;
mod watches;

pub use calls::{FAILURES, lost_write_count};

use crate::history::History;

/// Description of a violation of the contract.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

/// Result of a validator. The error describes the first violation that was found.
pub type Verdict = Result<(), Violation>;

/// Function that checks one guarantee in a recorded history.
pub type Validator = fn(&History) -> Verdict;

/// All validators with their names.
pub const VALIDATORS: [(&str, Validator); 19] = [
    ("Ordered", events::ordered),
    ("Unique", events::unique),
    ("Filter", events::filter),
    ("RollbackReported", events::rollback_reported),
    ("Reliable", delivery::reliable),
    ("Resumable", delivery::resumable),
    ("Bookmarkable", delivery::bookmarkable),
    ("SnapshotConsistent", snapshot::snapshot_consistent),
    ("EndedOnce", endings::ended_once),
    ("NotEndedEarly", endings::not_ended_early),
    ("NotUsedAfterDeadline", endings::not_used_after_deadline),
    ("OutOfBandReported", endings::out_of_band_reported),
    ("Linearizable", calls::linearizable),
    ("ErrorsClassified", calls::errors_classified),
    ("AcknowledgedKept", calls::acknowledged_kept),
    ("ListsCorrect", calls::lists_correct),
    ("SubjectEnded", calls::subject_ended),
    ("WatchEndJustified", watches::watch_end_justified),
    ("ResyncJustified", watches::resync_justified),
];

/// Runs all validators; returns the violations with the names of their validators.
pub fn violations(history: &History) -> Vec<(&'static str, Violation)> {
    let results = VALIDATORS.iter().map(|(name, validator)| (*name, validator(history)));
    results.filter_map(|(name, result)| result.err().map(|violation| (name, violation))).collect()
}

/// Returns a violation with this text if the condition is false.
fn ensure(condition: bool, violation: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(Violation(violation())) }
}
