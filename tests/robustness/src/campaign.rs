//! Plays many histories, some at once, each with its own seed.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    faults::{Fault, faults, is_selected},
    run::{HistoryRun, run, start_runtime},
    table::Table,
};

/// Number of histories that run at once. A history spends most of its time waiting.
const CONCURRENT_HISTORIES: usize = 3;
/// Maximum number of characters of a violation that a failure prints.
const VIOLATION_CHARS: usize = 3_000;

/// Returns a random seed that selects the first fault.
pub fn first_seed() -> u64 {
    u64::from(getrandom::u32().expect("the system provides random numbers")) * faults().len() as u64
}

/// Returns the fault that this seed selects.
fn fault_of(seed: u64) -> Box<dyn Fault> {
    let mut faults = faults();
    faults.swap_remove((seed % faults.len() as u64) as usize)
}

fn play(fault: Box<dyn Fault>, seed: u64) -> HistoryRun {
    let runtime = start_runtime();
    let run = runtime.block_on(run(fault, seed));
    runtime.shutdown_background();
    run
}

/// Returns this number of seeds, from the first on, that select one of these faults, by parts of their names. Empty: all.
///
/// # Panics
///
/// Panics if no fault is selected.
pub fn seeds(first: u64, histories: usize, selection: &[String]) -> Vec<u64> {
    let names: Vec<&str> = faults().iter().map(|fault| fault.name()).collect();
    assert!(names.iter().any(|name| is_selected(name, selection)), "no fault is selected: {selection:?}; {names:#?}");
    (first..).filter(|seed| is_selected(fault_of(*seed).name(), selection)).take(histories).collect()
}

/// Returns a seed for each fault that takes little time, and for one of each topology, from the first on.
pub fn quick_seeds(first: u64) -> Vec<u64> {
    (first..).take(faults().len()).filter(|seed| fault_of(*seed).is_quick()).collect()
}

/// A series of histories, one for each seed.
pub struct Campaign {
    /// Seeds of the histories. A seed selects the fault and all random choices.
    pub seeds: Vec<u64>,
    /// Directory that receives every history with a violation.
    pub failed_histories: PathBuf,
}

impl Campaign {
    /// Plays all histories; returns their table and one text for each failure.
    pub fn play(&self) -> (Table, Vec<String>) {
        let (table, failures) = (Mutex::new(Table::default()), Mutex::new(Vec::new()));
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CONCURRENT_HISTORIES.min(self.seeds.len()) {
                scope.spawn(|| {
                    while let Some(seed) = self.seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.play_one(*seed, &table, &failures);
                    }
                });
            }
        });
        (table.into_inner().unwrap(), failures.into_inner().unwrap())
    }

    fn play_one(&self, seed: u64, table: &Mutex<Table>, failures: &Mutex<Vec<String>>) {
        let fault = fault_of(seed);
        let (name, topology) = (fault.name(), fault.topology());
        let Ok(run) = std::panic::catch_unwind(AssertUnwindSafe(|| play(fault, seed))) else {
            table.lock().unwrap().add_panicked(name, topology);
            failures.lock().unwrap().push(format!("SEED={seed} {name}: the history panicked, see above"));
            return;
        };
        println!("SEED={seed} {name}: {} log entries, recovery {:?}", run.log_entries(), run.faults[0].recovery);
        table.lock().unwrap().add(name, topology, &run);
        failures
            .lock()
            .unwrap()
            .extend(run.failure(&format!("replay with `make test-faults SEED={seed}`"), &self.failed_histories));
    }
}

impl HistoryRun {
    /// Returns the number of log entries of all stores.
    pub fn log_entries(&self) -> usize {
        self.history.truth.stores.iter().map(|store| store.entries().count()).sum()
    }

    /// Returns a text with the violations and with how to replay them, and writes the history into a file in this directory.
    /// None: no violation.
    pub fn failure(&self, replay: &str, directory: &Path) -> Option<String> {
        if self.violations.is_empty() {
            return None;
        }
        let (seed, about) = (self.history.seed, &self.history.about);
        let file = directory.join(format!("history-{seed}.txt"));
        std::fs::write(&file, format!("{:?}", self.history)).expect("the history is written");
        let violations = self
            .violations
            .iter()
            .map(|(name, text)| format!("{name}: {}\n", text.chars().take(VIOLATION_CHARS).collect::<String>()));
        let (file, violations) = (file.display(), violations.collect::<String>());
        Some(format!("SEED={seed}, {about}; {replay}; history in {file}:\n{violations}"))
    }
}
