//! Histories of the near cache: a long one under faults has no violation, and the check finds every planted defect.

use std::path::Path;

use robustness::near_cache::{
    NearCacheHistories,
    fixture::{DEFECTS, valid},
    random_seed, violations,
};

/// Number of calls of the history.
const STEPS: usize = 10_000;
/// Number of its faults, which take most of the time.
const FAULTS: usize = 10;

#[test]
fn near_cache_long_history_answers_only_what_was_true() {
    let seed = random_seed();
    println!("seed: {seed}");
    let failed_histories = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    let histories = NearCacheHistories { seeds: vec![seed], steps: STEPS, faults: Some(FAULTS), failed_histories };
    let (_, failures) = histories.play();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn near_cache_check_of_a_valid_history_finds_nothing() {
    let violations = violations(&valid());
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn near_cache_check_finds_every_planted_defect() {
    let mut wrong = Vec::new();
    for (defect, rule, plant) in DEFECTS {
        let mut history = valid();
        plant(&mut history);
        let violations = violations(&history);
        if violations.is_empty() || violations.iter().any(|violation| !violation.starts_with(rule)) {
            wrong.push(format!("{defect}: expected only \"{rule}\", found: {violations:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
