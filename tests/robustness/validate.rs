//! What the contract promises, each held against a recorded history by a pure function.
//!
//! Every validator has its own part of the whole: a defect is told by the one that it is a defect for.

mod calls;
mod cut;
mod delivery;
mod endings;
mod told;
mod watches;

pub use calls::acknowledged_and_lost;

use crate::history::History;

/// What should not have been.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

pub type Held = Result<(), Violation>;

pub type Validator = fn(&History) -> Held;

/// Every validator by its name.
pub const VALIDATORS: [(&str, Validator); 19] = [
    ("Ordered", told::ordered),
    ("Unique", told::unique),
    ("Filter", told::filter),
    ("NoSilentRollback", told::no_silent_rollback),
    ("Reliable", delivery::reliable),
    ("Resumable", delivery::resumable),
    ("Bookmarkable", delivery::bookmarkable),
    ("SnapshotCut", cut::snapshot_cut),
    ("ExactlyOneEnding", endings::exactly_one_ending),
    ("NeverEarly", endings::never_early),
    ("NeverLate", endings::never_late),
    ("OutOfBand", endings::out_of_band),
    ("Linearizable", calls::linearizable),
    ("Explained", calls::explained),
    ("Kept", calls::kept),
    ("Listed", calls::listed),
    ("LoggedOutEverywhere", calls::logged_out_everywhere),
    ("Lasting", watches::lasting),
    ("Grounded", watches::grounded),
];

/// What is wrong with the history: each violation with its validator's name.
pub fn violations(history: &History) -> Vec<(&'static str, Violation)> {
    let held = VALIDATORS.iter().map(|(name, validator)| (*name, validator(history)));
    held.filter_map(|(name, held)| held.err().map(|violation| (name, violation))).collect()
}

/// Fails with what the closure says, unless it is so.
fn hold(is_so: bool, otherwise: impl FnOnce() -> String) -> Held {
    if is_so { Ok(()) } else { Err(Violation(otherwise())) }
}
