//! Many histories, some at a time, each with a seed of its own.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    faults::{Fault, faults},
    run::{Run, run},
    table::Table,
};

/// Histories under way at once: mostly they wait.
const AT_ONCE: u64 = 3;
/// What is shown of a violation.
const SHOWN: usize = 3_000;

#[expect(clippy::disallowed_methods, reason = "it is no setting of the service")]
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|number| number.parse().ok())
}

/// To play a failing one again: SEED=<seed> cargo test --test robustness
pub fn seed_given() -> Option<u64> {
    given("SEED")
}

/// How many histories there are to be; None = one of each fault.
pub fn count_given() -> Option<u64> {
    given("HISTORIES")
}

/// The fault that this seed chooses.
fn fault_of(seed: u64) -> Box<dyn Fault> {
    let mut faults = faults();
    faults.swap_remove((seed % faults.len() as u64) as usize)
}

fn play(fault: Box<dyn Fault>, seed: u64) -> Run {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it is built");
    let ran = runtime.block_on(run(fault, seed));
    runtime.shutdown_background();
    ran
}

#[derive(Clone, Copy, PartialEq)]
pub enum Which {
    All,
    /// With faults that take little time.
    Quick,
}

/// Plays the histories of these seeds; the table, and what was wrong.
pub fn play_all(seeds: std::ops::Range<u64>, which: Which) -> (Table, Vec<String>) {
    let (table, wrong) = (Mutex::new(Table::default()), Mutex::new(Vec::new()));
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(seeds.end - seeds.start) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let fault = fault_of(seed);
                    if which == Which::Quick && !fault.is_quick() {
                        continue;
                    }
                    let (name, topology) = (fault.name(), fault.topology());
                    let Ok(ran) = std::panic::catch_unwind(AssertUnwindSafe(|| play(fault, seed))) else {
                        table.lock().unwrap().add_broken_off(name, topology);
                        wrong.lock().unwrap().push(format!("SEED={seed} {name}: it broke off, see above"));
                        continue;
                    };
                    println!("SEED={seed} {name}: {} entries, recovery {:?}", ran.entries(), ran.recovery);
                    table.lock().unwrap().add(name, topology, &ran);
                    wrong.lock().unwrap().extend(ran.complaint());
                }
            });
        }
    });
    (table.into_inner().unwrap(), wrong.into_inner().unwrap())
}

impl Run {
    fn entries(&self) -> usize {
        self.history.truth.stores.iter().map(|store| store.entries().count()).sum()
    }

    /// What is wrong with it; the whole history is in a file.
    fn complaint(&self) -> Option<String> {
        if self.violations.is_empty() {
            return None;
        }
        let file = format!("{}/history-{}.txt", env!("CARGO_TARGET_TMPDIR"), self.history.seed);
        std::fs::write(&file, format!("{:?}", self.history)).expect("the history is written");
        let told = self
            .violations
            .iter()
            .map(|(name, what)| format!("{name}: {}\n", what.chars().take(SHOWN).collect::<String>()));
        let (seed, about) = (self.history.seed, &self.history.about);
        Some(format!("SEED={seed}, {about}, the whole of it in {file}:\n{}", told.collect::<String>()))
    }
}
