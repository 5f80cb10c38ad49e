//! W1–W10, S1–S6 under faults: recorded histories satisfy the contract, and the validators find every planted defect.

mod near_cache;
mod soak;

use std::path::Path;

use robustness::{
    campaign::{Campaign, first_seed, quick_seeds},
    defects::{DEFECTS, read_from_memory},
    fixtures,
    validate::{self, violations},
};

#[test]
fn validators_valid_history_report_no_violation() {
    let constructed = [
        fixtures::valid(),
        fixtures::rolled_back(),
        fixtures::restarted(),
        fixtures::outcomes_unknown(),
        fixtures::shortened(),
    ];
    for history in constructed.into_iter().chain([3_600, -3_600].map(fixtures::clock_set)) {
        let violations = violations(&history);
        assert!(violations.is_empty(), "{violations:#?}\n{history:?}");
    }
}

#[test]
fn validators_planted_defect_only_its_validator_fails() {
    let mut wrong = Vec::new();
    for (defect, validator, plant) in DEFECTS {
        let mut history = if validator == "RollbackReported" { fixtures::rolled_back() } else { fixtures::valid() };
        plant(&mut history);
        let violations = violations(&history);
        let failed: Vec<&str> = violations.iter().map(|(name, _)| *name).collect();
        if failed != [validator] {
            wrong.push(format!("{defect}: expected a violation of {validator} only, found: {violations:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn validators_read_from_memory_within_a_second_is_valid() {
    let mut history = fixtures::valid();
    read_from_memory(&mut history, 900_000, 0);
    let violations = violations(&history);
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn validators_all_have_a_planted_defect() {
    for (name, _) in validate::VALIDATORS {
        assert!(DEFECTS.iter().any(|(_, validator, _)| *validator == name), "add a defect for {name} to DEFECTS");
    }
}

#[test]
fn histories_under_quick_faults_satisfy_the_contract() {
    let first = first_seed();
    println!("first seed: {first}");
    let failed_histories = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    let (table, failures) = Campaign { seeds: quick_seeds(first), failed_histories }.play();
    println!("{}", table.text());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
