//! W1–W10, S1–S6 under faults: what was recorded while something failed is held against what the contract promises.

mod chance;
#[path = "../contract/mod.rs"]
mod contract;
mod defects;
mod faults;
mod felt;
#[path = "../harness/mod.rs"]
mod harness;
mod history;
#[path = "../linearizable/history.rs"]
mod linearizable;
mod made;
mod many;
mod reader;
mod recorder;
mod run;
mod scene;
mod streams;
mod table;
mod truth;
mod validate;
mod watchers;
mod workload;

use defects::DEFECTS;
use many::Which;
use validate::violations;

#[test]
fn histories_without_a_defect_are_passed() {
    for history in [made::good(), made::forked(), made::run_anew()] {
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

#[test]
fn histories_with_faults_hold_what_the_contract_promises() {
    let faults = faults::faults().len() as u64;
    let (seed, count) = (many::seed_given(), many::count_given());
    let first = seed.unwrap_or_else(|| u64::from(getrandom::u32().unwrap()) * faults);
    let (count, which) = match (seed, count) {
        (_, Some(count)) => (count, Which::All),
        (Some(_), None) => (1, Which::All),
        (None, None) => (faults, Which::Quick),
    };
    println!("the first seed is {first}");
    let (table, wrong) = many::play_all(first..first + count, which);
    println!("{}", table.text());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Not before: the page tells of no histories that failed.
    if which == Which::All && seed.is_none() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
        std::fs::write(page, table.page(&std::fs::read_to_string(page).unwrap_or_default())).unwrap();
    }
}
