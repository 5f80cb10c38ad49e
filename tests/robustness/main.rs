//! W1–W10, S1–S6 under faults: what was recorded while something failed is held against what the contract promises.

#[path = "../contract/mod.rs"]
mod contract;
mod defects;
#[path = "../harness/mod.rs"]
mod harness;
mod history;
#[path = "../linearizable/history.rs"]
mod linearizable;
mod made;
mod streams;
mod truth;
mod validate;

use defects::DEFECTS;
use validate::violations;

#[test]
fn histories_without_a_defect_are_passed() {
    for history in [made::good(), made::forked()] {
        let violations = violations(&history);
        assert!(violations.is_empty(), "{violations:#?}\n{history:?}");
    }
}

#[test]
fn every_planted_defect_is_told_by_the_validator_that_is_meant_for_it_and_by_no_other() {
    let mut wrong = Vec::new();
    for (what, meant, plant) in DEFECTS {
        let mut history = if meant == "NoSilentRollback" { made::forked() } else { made::good() };
        plant(&mut history);
        let violations = violations(&history);
        let names: Vec<&str> = violations.iter().map(|(name, _)| *name).collect();
        if names != [meant] {
            wrong.push(format!("{what}: {meant} is meant to tell it, and: {violations:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_validator_has_a_defect_that_it_tells() {
    for (name, _) in validate::VALIDATORS {
        assert!(DEFECTS.iter().any(|(_, meant, _)| *meant == name), "plant a defect for {name}");
    }
}
